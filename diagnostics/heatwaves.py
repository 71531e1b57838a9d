"""Marine heatwaves: events of five days or more above the 90th percentile of the season.

For each day of the year the climatology and the threshold are the mean and the percentile over all years of the days
within five of it, smoothed over 31 days. An event is a run of days above the threshold; events two days apart or less
are one. Categories are multiples of the distance from climatology to threshold (1 moderate … 4 extreme).
Hobday et al. 2016, Prog. Oceanogr. 141, 227; Hobday et al. 2018, Oceanography 31, 162. Data are daily.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .conventions import bare, check_units, described
from .timescales import time_step

_Array = np.ndarray[Any, Any]

_DAYS = 366


def _calendar_day(time: xr.DataArray) -> _Array:
    """Day of a leap year, 1 to 366, so that 1 March is day 61 in every year."""
    since_new_year, month, day = (np.asarray(getattr(time.dt, name)) for name in ("dayofyear", "month", "day"))
    before = np.cumsum([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30])
    return np.where(month >= 3, before[month - 1] + day, since_new_year)


def _smooth(x: _Array, width: int) -> _Array:
    """Running mean over a circular last axis."""
    half = width // 2
    wrapped = np.concatenate([x[..., -half:], x, x[..., :half]], axis=-1) if half else x
    sums = np.cumsum(np.concatenate([np.zeros((*x.shape[:-1], 1)), wrapped], axis=-1), axis=-1)
    return np.asarray((sums[..., width:] - sums[..., :-width]) / width)


def _seasons(x: _Array, *, day: _Array, window: int, smooth: int, percentile: float) -> _Array:
    """Climatology and threshold (…, 2, 366) of x (…, time)."""
    out = np.empty((*x.shape[:-1], 2, _DAYS))
    for d in range(1, _DAYS + 1):
        near = np.abs((day - d + _DAYS // 2) % _DAYS - _DAYS // 2) <= window // 2
        values = x[..., near].astype("f8")
        out[..., 0, d - 1] = values.mean(-1)
        out[..., 1, d - 1] = np.percentile(values, percentile, axis=-1)
    return _smooth(out, smooth)


def heatwave_climatology(
    sst: xr.DataArray, *, window: int = 11, smooth: int = 31, percentile: float = 90.0, dim: str = "time"
) -> xr.Dataset:
    """Seasonal climatology and threshold of daily temperature, for `marine_heatwaves`.

    `sst` (…, time, …) in degC, daily, of the baseline, 30 years by convention; `window` and `smooth` in days, odd.
    Returns climatology and threshold (…, dayofyear), dayofyear 1 to 366 of a leap year, float64, lazy for lazy input;
    NaN where a value is missing. Raises ValueError for other units, steps other than a day, or less than a year.
    """
    check_units(sst, "degC")
    if abs(time_step(sst[dim]) - 1) > 1e-6 or sst.sizes[dim] < 360:
        raise ValueError(
            f"heatwaves need daily values of a year or more, got {sst.sizes[dim]} in steps of {time_step(sst[dim]):g} d"
        )
    if window % 2 == 0 or smooth % 2 == 0 or not 0 < percentile < 100:
        raise ValueError(f"window and smooth must be odd, 0 < percentile < 100; got {window}, {smooth}, {percentile}")
    whole = sst.chunk({d: -1 if d == dim else "auto" for d in sst.dims}) if sst.chunks else sst
    options = {"day": _calendar_day(sst[dim]), "window": window, "smooth": smooth, "percentile": percentile}
    found: xr.DataArray = xr.apply_ufunc(
        _seasons,
        whole,
        kwargs=options,
        input_core_dims=[[dim]],
        output_core_dims=[["_part", "dayofyear"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_part": 2, "dayofyear": _DAYS}},
    )
    result = {
        name: described(found.isel(_part=k), name, units="degC", long_name=f"seasonal {name}")
        for k, name in enumerate(("climatology", "threshold"))
    }
    attrs = {"window": window, "smooth": smooth, "percentile": percentile}
    return xr.Dataset(result, coords={"dayofyear": np.arange(1, _DAYS + 1)}, attrs=attrs)


def _events(warm: _Array, *, shortest: int, gap: int) -> _Array:
    """Days of events (time), of days above the threshold (time), boolean."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], warm, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= shortest
    starts, ends = starts[long], ends[long]
    out = np.zeros(warm.size, dtype=bool)
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        joined = k + 1 < starts.size and starts[k + 1] - end <= gap
        out[start : starts[k + 1] if joined else end] = True
    return out


def _heatwaves(x: _Array, season: _Array, threshold: _Array, *, day: _Array, shortest: int, gap: int) -> _Array:
    """Intensity in events, else 0, and category (…, 2, time); NaN where there is no threshold."""
    usual, limit = season[..., day - 1], threshold[..., day - 1]
    warm = x > limit
    flat = warm.reshape(-1, warm.shape[-1])
    event = np.stack([_events(row, shortest=shortest, gap=gap) for row in flat]).reshape(warm.shape)
    anomaly = x.astype("f8") - usual
    with np.errstate(invalid="ignore", divide="ignore"):
        category = np.where(event, np.clip(np.floor(anomaly / (limit - usual)), 0, 4), 0.0)
    out = np.stack([np.where(event, anomaly, 0.0), category], axis=-2)
    return np.where(np.isfinite(limit + anomaly)[..., None, :], out, np.nan)


def marine_heatwaves(
    sst: xr.DataArray, climatology: xr.Dataset, *, shortest: int = 5, gap: int = 2, dim: str = "time"
) -> xr.Dataset:
    """Days in marine heatwaves, with their intensity above climatology and their category.

    `sst` (…, time, …) in degC, daily; `climatology` of `heatwave_climatology` on the same places; `shortest` in days;
    `gap`, days between events that make them one. Returns intensity (K, 0 outside events) and category (0 none, 1
    moderate … 4 extreme; 0 too in the gaps inside an event) (…, time, …), float64, lazy for lazy input; NaN on land.
    The days of heatwave are those of intensity other than 0. Raises ValueError for other units, steps or datasets.
    """
    check_units(sst, "degC")
    if missing := {"climatology", "threshold"} - set(climatology.data_vars):
        raise ValueError(f"wanted a climatology of `heatwave_climatology`, got one without {sorted(missing)}")
    if abs(time_step(sst[dim]) - 1) > 1e-6:
        raise ValueError(f"heatwaves need daily values, got steps of {time_step(sst[dim]):g} days")
    whole = sst.chunk({d: -1 if d == dim else "auto" for d in sst.dims}) if sst.chunks else sst
    if whole.chunks:
        chunks = {d: c for d, c in whole.variable.chunksizes.items() if d != dim}
        seasons = [bare(climatology[n]).chunk({**chunks, "dayofyear": -1}) for n in ("climatology", "threshold")]
    else:
        seasons = [bare(climatology[n]) for n in ("climatology", "threshold")]
    found: xr.DataArray = xr.apply_ufunc(
        _heatwaves,
        bare(whole),
        *seasons,
        kwargs={"day": _calendar_day(sst[dim]), "shortest": shortest, "gap": gap},
        input_core_dims=[[dim], ["dayofyear"], ["dayofyear"]],
        output_core_dims=[["_part", dim]],
        join="exact",
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_part": 2}},
    )
    intensity, category = (found.isel(_part=k).transpose(*sst.dims).assign_coords(sst.coords) for k in (0, 1))
    result = {
        "intensity": described(intensity, "intensity", units="K", long_name="intensity of marine heatwaves"),
        "category": described(category, "category", units="1", long_name="category of marine heatwaves"),
    }
    return xr.Dataset(result, attrs={"shortest": shortest, "gap": gap, **climatology.attrs})
