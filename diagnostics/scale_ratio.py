"""Collapse of variance by scale: the energy of a model over that of its reference in bands of wavenumber.

    R = sum_band E_model dk / sum_band E_reference dk,      R ~ F(nu_model, nu_reference) for equal spectra,

with nu = (sum E_b)² / sum (E_b² / nu_b) over the rings b of the band, nu_b = modes x maps x share that the window
leaves: in a steep spectrum the largest waves alone decide how sure a band is (Satterthwaite 1946). A ratio of total
variances hides what happens to small scales, which hold little of it: a network that smooths loses these first.
Give the spectra of single members, never of an ensemble mean, and average them over maps of one lead time, so that R
by lead shows the collapse grow. Priestley 1981, Spectral Analysis and Time Series, ch. 6, for the degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special
import xarray as xr

from .conventions import bare, described

_Array = np.ndarray[Any, Any]

_WINDOW_SHARE = {"hann": (18 / 35) ** 2}
"""Independent modes left of those of a map: (mean w²)² / mean w⁴ along each axis, 18/35 for Hann."""


def _freedom(energy: xr.DataArray, modes: _Array) -> xr.DataArray:
    """Degrees of freedom of a sum over rings of unequal energy, that of each being chi² of `modes` (wavenumber)."""
    squares = energy**2 / xr.DataArray(modes, dims="wavenumber")
    return energy.sum("wavenumber") ** 2 / squares.sum("wavenumber")


def _quantile(q: float, *free: xr.DataArray) -> xr.DataArray:
    def ppf(first: _Array, second: _Array) -> _Array:
        return np.asarray(scipy.special.fdtri(first, second, q))

    result: xr.DataArray = xr.apply_ufunc(ppf, *free, dask="parallelized", output_dtypes=["f8"])
    return result


def scale_ratio(
    model: xr.DataArray,
    reference: xr.DataArray,
    *,
    bands: Mapping[str, tuple[float, float]],
    maps: tuple[int, int],
    level: float = 0.95,
) -> xr.Dataset:
    """Ratio of the energy of a model to that of a reference in bands of wavelength, with its interval.

    `model` (…, wavenumber) and `reference` (wavenumber) or with some of its dimensions, both of `isotropic_spectrum`
    with the same options, averaged over `maps` = (model's, reference's) independent maps; `bands`, {name: (shortest,
    longest)} wavelength in m. Returns ratio, low and high (band, …), dimensionless: the interval of this `level` that
    holds the true ratio, for fields near Gaussian and maps that are independent; and `collapsed`, where high < 1.
    float64, lazy for lazy input. Raises ValueError for spectra of other rings or options, and bands without a ring.
    """
    if min(maps) < 1 or not 0 < level < 1:
        raise ValueError(f"maps must be at least (1, 1) and 0 < level < 1, got {maps} and {level}")
    k = np.asarray(model.indexes["wavenumber"], dtype="f8")
    theirs = np.asarray(reference.indexes["wavenumber"], dtype="f8")
    differing = [o for o in ("window", "detrend", "land", "normalize") if model.attrs.get(o) != reference.attrs.get(o)]
    if k.shape != theirs.shape or not np.allclose(k, theirs) or differing:
        raise ValueError(f"spectra must be of the same rings and options, got other {differing or 'wavenumbers'}")
    share = _WINDOW_SHARE.get(str(model.attrs.get("window")), 1.0)
    modes = np.asarray(model["n_modes"], dtype="f8")
    parts: dict[str, list[xr.DataArray]] = {"ratio": [], "low": [], "high": []}
    for name, (shortest, longest) in bands.items():
        inside = np.flatnonzero((k > 0) & (k <= 1 / shortest) & (k >= 1 / longest))
        if not inside.size:
            reach = f"{1 / k[-1]:g} to {1 / k[1]:g} m"
            raise ValueError(f"band {name!r}, {shortest:g} to {longest:g} m, has no ring: wavelengths are {reach}")
        cut = [bare(s).isel(wavenumber=inside).drop_vars("wavenumber") for s in (model, reference)]
        ours, other = (s.sum("wavenumber") for s in cut)
        ratio = ours / other
        free = [_freedom(c, modes[inside] * share) * n for c, n in zip(cut, maps, strict=True)]
        low, high = (_quantile(q, *free) for q in ((1 - level) / 2, (1 + level) / 2))
        for key, value in (("ratio", ratio), ("low", ratio / high), ("high", ratio / low)):
            parts[key].append(value)
    band = xr.DataArray([*bands], dims="band", name="band")
    joined = {key: xr.concat(values, dim=band, coords="minimal", compat="override") for key, values in parts.items()}
    kept = {n: c for n, c in model.coords.items() if "wavenumber" not in c.dims}
    result = {
        key: described(value.assign_coords(kept) * 1.0, key, units="1", long_name=f"{key} of energy ratio")
        for key, value in joined.items()
    }
    collapsed = (joined["high"] < 1).assign_coords(kept)
    result["collapsed"] = described(collapsed, "collapsed", long_name="significantly less energy than the reference")
    return xr.Dataset(result, attrs={"level": level, "maps": list(maps)})
