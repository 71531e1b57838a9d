"""Isotropic wavenumber spectra that keep the variance.

For a map a on cells dy by dx, detrended and multiplied with a window w, the two-dimensional density is

    S(k, l) = |FFT(w a)|^2 dx dy / (Ny Nx <w^2>),          sum S dk dl = variance,

and its isotropic form collects the modes of each ring |(k, l)| in [(b - 1/2) dk, (b + 1/2) dk):

    E_b = sum_{ring b} S dk dl / dk_b,                      sum_b E_b dk_b = variance (Parseval).

Wavenumbers are in cycles per metre, of distances measured on the sphere: degrees of longitude taken as metres
turn a 150 km wave at 60 N into one of 315 km. Ring 0 holds the mean and whatever is longer than the box.
Durran et al. 2017, Mon. Weather Rev. 145, 3833 (rings and their normalisation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse
import xarray as xr
from scipy.ndimage import distance_transform_edt

from .conventions import EARTH_RADIUS, bare, check_units, coordinate, described, horizontal_dims, matched

_Array = np.ndarray[Any, Any]

_MAPS_AT_ONCE = 16  # bounds the temporaries to a few maps, whatever the chunk
_ORDERS = {None: 0, "constant": 1, "linear": 3}
_WINDOWS: dict[str | None, Callable[[int], _Array]] = {
    None: np.ones,
    "hann": lambda n: np.sin(np.pi * np.arange(n) / n) ** 2,  # periodic
}


@dataclass(frozen=True)
class _Rings:
    """Rings of wavenumber: centres, width, modes and mean wavenumber per ring, and the summing matrix."""

    k: _Array
    dk: float
    n_modes: _Array
    mean_k: _Array
    matrix: Any


@lru_cache(maxsize=8)
def _rings(shape: tuple[int, int], spacing: tuple[float, float], truncate: bool) -> _Rings:
    (ny, nx), (dy, dx) = shape, spacing
    k = np.hypot(scipy.fft.fftfreq(ny, dy)[:, None], scipy.fft.rfftfreq(nx, dx)).ravel()
    # A real transform stores one of each conjugate pair, except in the column 0 and the Nyquist column.
    twice = np.full((ny, nx // 2 + 1), 2.0)
    twice[:, 0] = 1
    if nx % 2 == 0:
        twice[:, -1] = 1
    dk = max(1 / (ny * dy), 1 / (nx * dx))
    ring = np.floor(k / dk + 0.5).astype(int)
    last = int((min(0.5 / dy, 0.5 / dx) if truncate else k.max()) / dk + 0.5)
    inside = np.flatnonzero(ring <= last)
    entries = (twice.ravel()[inside], (ring[inside], inside))
    matrix = scipy.sparse.csr_array(entries, shape=(last + 1, k.size))
    n_modes = matrix @ np.ones(k.size)
    mean_k = matrix @ k / np.maximum(n_modes, 1)
    return _Rings(k=np.arange(last + 1) * dk, dk=dk, n_modes=n_modes, mean_k=mean_k, matrix=matrix)


def _refuse(maps: _Array) -> tuple[_Array, _Array]:
    missing = np.isnan(maps).mean()
    if missing:
        raise ValueError(
            f"a spectrum needs maps without NaN but {missing:.1%} of the values are (land?): choose a box of "
            "open ocean, or land='fill' (ocean mean) or land='taper' (window that ends at the coast)"
        )
    return maps, np.ones((1, *maps.shape[1:]))


def _fill(maps: _Array) -> tuple[_Array, _Array]:
    ocean_mean = np.nanmean(maps, axis=(1, 2), keepdims=True)
    return np.where(np.isnan(maps), ocean_mean, maps), np.ones((1, *maps.shape[1:]))


def _taper(maps: _Array) -> tuple[_Array, _Array]:
    """Window that falls to 0 at the coast over an eighth of the box, by distance to land."""
    wet = ~np.isnan(maps)
    if np.all(wet == wet[0]):
        wet = wet[:1]
    width = max(2, min(maps.shape[1:]) // 8)
    reach = [np.minimum(distance_transform_edt(w) / width, 1) if not w.all() else np.ones(w.shape) for w in wet]
    return np.where(np.isnan(maps), 0.0, maps), np.sin(np.pi / 2 * np.stack(reach)) ** 2


_LAND = {"refuse": _refuse, "fill": _fill, "taper": _taper}


def _remove_plane(maps: _Array, wet: _Array, order: int) -> _Array:
    """Least-squares constant (`order` 1) or plane (3) over the wet cells taken off maps (n, y, x)."""
    n, ny, nx = maps.shape
    y, x = np.meshgrid(np.linspace(-1, 1, ny), np.linspace(-1, 1, nx), indexing="ij")
    basis = np.stack([np.ones_like(x), y, x])[:order].reshape(order, -1)
    flat, weight = maps.reshape(n, -1), wet.reshape(len(wet), 1, -1)
    normal = (basis * weight) @ basis.T
    right = (flat * weight[:, 0]) @ basis.T
    fit = (np.linalg.pinv(normal, hermitian=True) @ right[..., None])[..., 0]
    return (flat - fit @ basis).reshape(maps.shape)


def _spectra(
    maps: _Array,
    *,
    spacing: tuple[float, float],
    detrend: str | None,
    window: str | None,
    mean: bool,
    truncate: bool,
    land: str,
) -> _Array:
    """Isotropic spectra (…, ring), float64, of maps (…, y, x)."""
    ny, nx = maps.shape[-2:]
    rings = _rings((ny, nx), spacing, truncate)
    tapers = _WINDOWS[window](ny)[:, None] * _WINDOWS[window](nx)
    flat = maps.reshape(-1, ny, nx)
    out = np.empty((len(flat), rings.k.size))
    for first in range(0, len(flat), _MAPS_AT_ONCE):
        batch, open_water = _LAND[land](flat[first : first + _MAPS_AT_ONCE].astype("f8"))
        if order := _ORDERS[detrend]:
            batch = _remove_plane(batch, open_water > 0, order)
        weight = tapers * open_water
        modes = scipy.fft.rfft2(batch * weight)
        power = (modes.real**2 + modes.imag**2).reshape(len(batch), -1)
        scale = (ny * nx) ** 2 * (weight**2).mean((1, 2)) * rings.dk
        out[first : first + _MAPS_AT_ONCE] = (rings.matrix @ power.T).T / scale[:, None]
    if mean:
        modes_per_area = spacing[0] * spacing[1] * ny * nx * rings.dk
        out *= 2 * np.pi * rings.k * modes_per_area / np.maximum(rings.n_modes, 1)
    return out.reshape(*maps.shape[:-2], -1)


def grid_spacing(field: xr.DataArray, dim: tuple[str, str]) -> tuple[float, float]:
    """Mean distance in m between neighbours along `dim` (north-south, east-west), on the sphere.

    From 1-D or 2-D `lat` and `lon` in degrees. Raises ValueError if they are missing, lazy, or if the
    east-west spacing varies more than twofold over the box, where one wavenumber means nothing.
    """
    lat, lon = coordinate(field, "lat", "latitude"), coordinate(field, "lon", "longitude")
    if lat is None or lon is None or lat.chunks is not None or lon.chunks is not None:
        raise ValueError("distances need lat and lon in memory: assign or load() them, or give spacing=(dy, dx) in m")
    both = xr.broadcast(bare(lat), bare(lon))
    north, east = (np.deg2rad(c.transpose(*dim).to_numpy().astype("f8")) for c in both)
    dy, dx = (_distances(north, east, axis) for axis in (0, 1))
    if dx.max() > 2 * dx.min():
        raise ValueError(
            f"east-west spacing varies from {dx.min():.0f} to {dx.max():.0f} m: choose a smaller box, "
            "or give spacing=(dy, dx) in m for a field interpolated to even distances"
        )
    return float(dy.mean()), float(dx.mean())


def _distances(lat: _Array, lon: _Array, axis: int) -> _Array:
    """Great-circle distance in m between neighbours along an axis (haversine)."""
    north, east = np.diff(lat, axis=axis), np.diff(lon, axis=axis)
    here, there = (np.delete(lat, end, axis=axis) for end in (-1, 0))
    h = np.sin(north / 2) ** 2 + np.cos(here) * np.cos(there) * np.sin(east / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.sqrt(h)))


_CHOICES: dict[str, list[Any]] = {
    "detrend": list(_ORDERS),
    "window": list(_WINDOWS),
    "land": list(_LAND),
    "normalize": ["sum", "mean"],
}


def _check_choices(**options: Any) -> None:
    for name, value in options.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {_CHOICES[name]}, got {value!r}")


def isotropic_spectrum(
    field: xr.DataArray,
    *,
    dim: tuple[str, str] | None = None,
    spacing: tuple[float, float] | None = None,
    detrend: str | None = "linear",
    window: str | None = "hann",
    normalize: str = "sum",
    truncate: bool = True,
    land: str = "refuse",
) -> xr.DataArray:
    """Isotropic spectral density of the maps in `field`.

    `field` (…, lat|y, lon|x); `dim`, the two map dimensions, north-south first, by default detected;
    `spacing` (dy, dx) in m, by default measured from lat and lon; `detrend` None, "constant" or "linear" (a
    plane); `window` None or "hann"; `normalize` "sum" (keeps the variance) or "mean" (2 pi k times the ring
    mean: smoother, not exact for ragged rings); `truncate` at the smaller Nyquist wavenumber, else to the
    corners; `land` "refuse" NaN, "fill" it with the ocean mean of its map (the step at the coast adds
    small scales, threefold in a k^-3 field), or "taper" the window to 0 at the coast (no such bias, but peaks
    are smoothed over the wavenumbers of the taper, an eighth of the box).

    Returns (…, wavenumber), float64, lazy for lazy input, in units^2 m, with the coordinates wavenumber (ring
    centres, m-1), n_modes and mean_wavenumber. Raises ValueError for unknown options, lazy or missing lat and
    lon without spacing, and, when computed, for NaN with land="refuse". Definition: above.
    """
    _check_choices(detrend=detrend, window=window, land=land, normalize=normalize)
    dim = horizontal_dims(field) if dim is None else dim
    spacing = grid_spacing(field, dim) if spacing is None else (float(spacing[0]), float(spacing[1]))
    if spacing[0] <= 0 or spacing[1] <= 0:
        raise ValueError(f"spacing must be positive distances (dy, dx) in m, got {spacing}")
    rings = _rings((field.sizes[dim[0]], field.sizes[dim[1]]), spacing, truncate)
    # A transform needs the whole map.
    whole = field.chunk(dict.fromkeys(dim, -1)) if field.chunks else field
    options = {"spacing": spacing, "detrend": detrend, "window": window, "land": land, "truncate": truncate}
    result: xr.DataArray = xr.apply_ufunc(
        _spectra,
        whole,
        input_core_dims=[list(dim)],
        output_core_dims=[["wavenumber"]],
        kwargs={**options, "mean": normalize == "mean"},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"wavenumber": rings.k.size}},
    )
    chosen = {name: str(value) for name, value in options.items()} | {"spacing": list(spacing)}
    return _labelled(result, field, rings).assign_attrs({**chosen, "normalize": normalize})


def _labelled(spectrum: xr.DataArray, field: xr.DataArray, rings: _Rings) -> xr.DataArray:
    coords = {"wavenumber": rings.k, "n_modes": rings.n_modes, "mean_wavenumber": rings.mean_k}
    # Copies, for the rings are shared by all spectra of this shape.
    spectrum = spectrum.assign_coords({name: ("wavenumber", values.copy()) for name, values in coords.items()})
    for name in ("wavenumber", "mean_wavenumber"):
        spectrum[name].attrs.update(units="m-1", long_name="wavenumber in cycles per metre")
    return described(
        spectrum,
        "spectrum",
        units=f"({field.attrs.get('units', '?')})2 m",
        long_name=f"isotropic spectral density of {field.name}",
        ring_width=rings.dk,
    )


def kinetic_energy_spectrum(uo: xr.DataArray, vo: xr.DataArray, **options: Any) -> xr.DataArray:
    """Isotropic spectral density of kinetic energy, (E_uu + E_vv) / 2, in m3 s-2.

    `uo`, `vo` (…, lat|y, lon|x) in m s-1 at the same places; options, shape and errors as
    `isotropic_spectrum`, and ValueError if the two are in other units or on other cells.
    """
    for velocity in (uo, vo):
        check_units(velocity, "m s-1")
    spacing = options.pop("spacing", None) or grid_spacing(uo, options.get("dim") or horizontal_dims(uo))
    first, second = (isotropic_spectrum(x, spacing=spacing, **options) for x in (uo, matched(uo, vo)))
    result = (first + bare(second)) / 2
    long_name = "isotropic spectral density of kinetic energy"
    return described(result, "spectrum", **{**first.attrs, "units": "m3 s-2", "long_name": long_name})


def spectral_slope(spectrum: xr.DataArray, *, band: tuple[float, float]) -> xr.DataArray:
    """Exponent s of the power law E ~ k^s, by least squares of log E on log k within a band.

    `spectrum` (…, wavenumber); `band` (low, high) in m-1. Returns (…), dimensionless, lazy for lazy input.
    Raises ValueError if fewer than three rings above wavenumber 0 lie in the band.
    """
    k = np.asarray(spectrum.indexes["wavenumber"], dtype="f8")
    inside = np.flatnonzero((k >= band[0]) & (k <= band[1]) & (k > 0))
    if inside.size < 3:
        width = k[1] - k[0]
        raise ValueError(f"a slope needs three rings in {band} m-1, got {inside.size}, {width:.3g} m-1 apart")
    centred = xr.DataArray(np.log(k[inside]) - np.log(k[inside]).mean(), dims="wavenumber")
    energy = bare(spectrum.isel(wavenumber=inside)).drop_vars("wavenumber")
    log_e: xr.DataArray = energy.copy(data=np.log(energy.data))
    slope: xr.DataArray = (log_e * centred).sum("wavenumber", skipna=False) / (centred**2).sum()
    return described(slope, "slope", units="1", long_name="spectral slope", band=list(band))
