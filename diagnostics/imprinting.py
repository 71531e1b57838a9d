"""Imprinting: small patterns that an emulator presses into its fields, that stay or leak from one into another.

With the error e = model - truth at the same times and its small scales e' = e - (mean over a box of cells), <> a mean
over area, a bar one over the n records,

    fixed²   = <ē'²> - noise²,      noise² = <var_t e'> / (n_eff - 1),      n_eff = n (1 - r1) / (1 + r1)
    ratio    = <ē'²> / noise²                     1 on average for an error that only varies, whatever its size
    leak     = <mean_t e' s'> / <mean_t s'²>      of the error on the small scales s' of another field

The time mean of errors that vary has small scales too, as much as n_eff independent records leave: only what exceeds
that is an imprint. r1 is the lag-one autocorrelation of e', pooled over the cells, and errors that remember longer than
a first-order process look like imprints. The other failure of long rollouts, variance that collapses, is shown by
`temporal_variance` of `detrended` and `deseasoned` fields, by `variance_ratio`, and by scale in `scale_ratio`. Imprints
"in which velocity patterns leak into deep-ocean fields" are named in arXiv:2606.02610 (Samudra 2); the measures are
ours, with n_eff of Bretherton et al. 1999, J. Climate 12, 1990.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.ndimage import uniform_filter

from .conventions import area_of, bare, coordinate, described, horizontal_dims, matched, same_units, weighted_mean
from .coordinates import check_along, check_rising
from .skill import difference

_Array = np.ndarray[Any, Any]


def _departures(maps: _Array, *, cells: int, periodic: bool) -> _Array:
    """Maps (…, y, x) minus the mean over the wet cells of a box about each, float64."""
    x = maps.astype("f8")
    wet = np.isfinite(x)
    size = (1,) * (x.ndim - 2) + (cells, cells)
    mode = ["constant"] * (x.ndim - 1) + ["wrap" if periodic else "constant"]
    total = uniform_filter(np.where(wet, x, 0.0), size, mode=mode)
    share = uniform_filter(wet.astype("f8"), size, mode=mode)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(wet, x - total / share, np.nan)


def _round_the_globe(field: xr.DataArray) -> bool:
    lon = coordinate(field, "lon", "longitude")
    if lon is None or lon.ndim != 1 or lon.chunks is not None or lon.size < 3:
        return False
    steps = np.diff(np.unwrap(np.asarray(lon, dtype="f8"), period=360))
    return bool(np.allclose(steps, 360 / lon.size, atol=1e-3))


def small_scales(field: xr.DataArray, *, cells: int = 5) -> xr.DataArray:
    """The field minus the mean over the wet cells of a box of `cells` by `cells` about each cell.

    `field` (…, lat|y, lon|x), NaN on land, round the globe if its 1-D lon is; `cells`, an odd number: what is left are
    wavelengths of less than about twice that. Returns the same shape, float64, lazy for lazy input. Raises ValueError
    for an even or too large box.
    """
    dims = horizontal_dims(field)
    if cells < 3 or cells % 2 == 0 or cells > min(field.sizes[d] for d in dims):
        raise ValueError(f"cells must be odd, from 3 to the size of the map {dict(field.sizes)}, got {cells}")
    whole = field.chunk(dict.fromkeys(dims, -1)) if field.chunks else field
    result: xr.DataArray = xr.apply_ufunc(
        _departures,
        whole,
        input_core_dims=[list(dims)],
        output_core_dims=[list(dims)],
        kwargs={"cells": cells, "periodic": _round_the_globe(field)},
        dask="parallelized",
        output_dtypes=["f8"],
    )
    return described(result.transpose(*field.dims), field.name, **field.attrs)


def _neighbours(x: xr.DataArray, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Sum of squares about the time mean, and of products with the next record, at each cell."""
    n, mean = x.sizes[dim], x.mean(dim, skipna=False)
    first, last = x.isel({dim: 0}), x.isel({dim: n - 1})
    squares = (x**2).sum(dim, skipna=False) - n * mean**2
    products = (x.isel({dim: slice(1, None)}) * x.isel({dim: slice(None, -1)})).sum(dim, skipna=False)
    return squares, products - mean * (2 * n * mean - first - last) + (n - 1) * mean**2


def imprint(
    truth: xr.DataArray,
    model: xr.DataArray,
    *,
    source: xr.DataArray | None = None,
    cells: int = 5,
    area: xr.DataArray | None = None,
    dim: str = "time",
) -> xr.Dataset:
    """Small-scale pattern that stays in the error of a model, and what leaks into it from another field.

    `truth` (time, [lev,] lat|y, lon|x) and `model` alike or with more dimensions (member), at the same times, NaN on
    land; remove drift and annual cycle first where they matter (`deseasoned` of each removes what is to be found, so
    not that); `source` (…, time, lat|y, lon|x) or without time, of the model, such as its speed at the surface, whose
    patterns may leak; `cells`, the box as in `small_scales`; `area` in m2 as weights, by default `area_of(truth)`.

    Returns, over the dimensions that are left, float64, lazy for lazy input: fixed, the amplitude (root mean square) of
    the pattern that stays, 0 if the error leaves no more than its variability does; noise, what that leaves; ratio, 1
    without an imprint; relative, fixed over the amplitude of the same scales in the time mean of the truth;
    effective_size; pattern (…, lat|y, lon|x), the time mean of the small scales of the error; with `source` also leak
    (units of the field per unit of the source) and correlation, over all times and cells. Cells with a gap in time do
    not count, but for these two. Raises ValueError for other units, times or places, fewer than five records, times
    that do not rise, a box as `small_scales`.
    """
    check_along(truth, dim, 5, "an imprint")
    check_rising(truth[dim])
    same_units(truth, model)
    dims = list(horizontal_dims(truth))
    weights = area_of(truth) if area is None else area
    error = small_scales(difference(truth, model), cells=cells)
    plain = bare(error).drop_vars(dim)
    n = plain.sizes[dim]

    def mean(field: xr.DataArray) -> xr.DataArray:
        return bare(weighted_mean(field, weights, dim=dims))

    pattern = plain.mean(dim, skipna=False)
    squares, products = _neighbours(plain, dim)
    varying = mean(squares)
    r1 = (mean(products) / varying.where(varying > 0)).clip(0.0, 1.0)  # fewer independent values, never more
    size = (n * (1 - r1) / (1 + r1)).where(varying > 0, float(n))
    noise = varying / n / (size - 1).where(size > 1)
    standing = mean(pattern**2)
    calm = small_scales(bare(truth).astype("f8").drop_vars(dim).mean(dim, skipna=False), cells=cells)
    usual = mean(calm**2)
    fixed = (standing - noise).clip(min=0) ** 0.5
    # Not from fixed: dask.compute loses a variable that another is computed from (pydata/xarray#11329).
    relative = (standing - noise).clip(min=0) / usual.where(usual > 0)
    unit = str(truth.attrs.get("units", "?"))
    found = {
        "fixed": (fixed, unit, "amplitude of the small-scale error that stays"),
        "noise": (noise**0.5, unit, "what varying errors leave in the time mean"),
        "ratio": (standing / noise.where(noise > 0), "1", "small-scale mean error over what varying errors leave"),
        "relative": (relative**0.5, "1", "fixed over that of the truth"),
        "effective_size": (size * 1.0, "1", "independent records"),
        "pattern": (pattern * 1.0, unit, "time mean of the small scales of the error"),
    }
    if source is not None:
        found |= _leaks(plain, error, source, dims=dims, cells=cells, weights=weights, dim=dim, unit=unit)
    result = {k: described(v, k, units=u, long_name=text) for k, (v, u, text) in found.items()}
    places = {k: c for k, c in truth.coords.items() if dim not in c.dims}
    return xr.Dataset(result, attrs={"cells": cells, "records": n}).assign_coords(places)


def _leaks(
    plain: xr.DataArray,
    error: xr.DataArray,
    source: xr.DataArray,
    *,
    dims: list[str],
    cells: int,
    weights: xr.DataArray,
    dim: str,
    unit: str,
) -> dict[str, tuple[xr.DataArray, str, str]]:
    """Regression and correlation of the error on the small scales of the source, about no mean: both have none."""
    if extra := set(source.dims) - set(error.dims):
        raise ValueError(f"the source {source.dims} has {sorted(map(str, extra))}, which the field lacks: select one")
    other = bare(matched(error, small_scales(source, cells=cells))).drop_vars(dim, errors="ignore")
    both = plain.notnull() & other.notnull()

    def mean(field: xr.DataArray) -> xr.DataArray:
        return bare(weighted_mean(field.where(both), weights, dim=[*dims, dim]))

    cross, power = mean(plain * other), mean(other**2 + 0.0 * plain)
    per = f"{unit} ({source.attrs.get('units', '?')})-1"
    name = source.name or "the source"
    norm = (power * mean(plain**2)) ** 0.5
    return {
        "leak": (cross / power.where(power > 0), per, f"small-scale error for one unit of {name}"),
        "correlation": (cross / norm.where(norm > 0), "1", f"of the small scales of the error with those of {name}"),
    }
