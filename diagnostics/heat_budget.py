"""Where the heat came from and how sure a trend is: closure with the surface flux, basins, trends with errors.

    residual(t) = [OHC(t) - OHC(0)] - ∫_0^t F dt',      F = ∫ (hfds + hfgeou) dA                       J

closes for snapshots of a model's own heat, with its own cp. An ordinary least-squares slope b of a series whose
residuals remember has fewer independent values than records; with r1 the lag-one autocorrelation of the residuals,

    n_eff = n (1 - r1) / (1 + r1),     s_b² = sum e² / (n_eff - 2) / sum (t - <t>)²           (Santer et al. 2000)

and the interval is Student's with n_eff - 2 degrees of freedom. Santer et al. 2000, J. Geophys. Res. 105, 7337.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
import xarray as xr

from .conventions import bare, cell_area, check_units, described, horizontal_dims, matched
from .coordinates import check_along
from .heat import rising_seconds

_Array = np.ndarray[Any, Any]


def _fit(x: _Array, *, seconds: _Array, level: float) -> _Array:
    """Slope, its standard error, half width of the interval and n_eff (…, 4) of x (…, time)."""
    n = seconds.size
    t = seconds - seconds.mean()
    away = x.astype("f8") - x[..., :1]
    away = away - away.mean(-1, keepdims=True)
    slope = away @ t / (t @ t)
    left = away - slope[..., None] * t
    squares = (left**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r1 = np.clip((left[..., 1:] * left[..., :-1]).sum(-1) / squares, 0.0, 1.0)  # fewer values, never more
        independent = np.where(squares > 0, n * (1 - r1) / (1 + r1), n)
        free = np.where(independent > 2, independent - 2, np.nan)
        error = np.sqrt(squares / free / (t @ t))
        half = error * scipy.special.stdtrit(free, (1 + level) / 2)
    return np.stack([slope, error, half, np.where(np.isnan(slope), np.nan, independent)], axis=-1)


def trend_with_error(series: xr.DataArray, *, level: float = 0.95, dim: str = "time") -> xr.Dataset:
    """Least-squares slope along `dim` per second, with an error for residuals that remember.

    `series` (…, time) with dates at even steps, such as deseasonalised heat content. Returns trend, standard_error,
    low, high (units per second) and effective_size (…), float64, lazy for lazy input; the errors are NaN where two
    independent values or fewer are left, all is NaN where a value is missing. Raises ValueError for fewer than five
    records or a time coordinate without a unit. Source: Santer et al. 2000.
    """
    check_along(series, dim, 5, "a trend with an error")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    whole = series.chunk({d: -1 if d == dim else "auto" for d in series.dims}) if series.chunks else series
    found: xr.DataArray = xr.apply_ufunc(
        _fit,
        whole,
        kwargs={"seconds": rising_seconds(series[dim]), "level": level},
        input_core_dims=[[dim]],
        output_core_dims=[["_part"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_part": 4}},
    )
    slope, error, half, size = (found.isel(_part=k) for k in range(4))
    units = {"units": f"{series.attrs['units']} s-1"} if "units" in series.attrs else {}
    name = series.attrs.get("long_name", series.name)
    result = {
        "trend": described(slope * 1.0, "trend", **units, long_name=f"trend of {name}"),
        "standard_error": described(error * 1.0, "standard_error", **units, long_name="standard error of the trend"),
        "low": described(slope - half, "low", **units, long_name="lower end of the interval"),
        "high": described(slope + half, "high", **units, long_name="upper end of the interval"),
        "effective_size": described(size, "effective_size", units="1", long_name="independent values"),
    }
    return xr.Dataset(result, attrs={"level": level, "errors": "Santer et al. 2000, lag-one autocorrelation"})


def heat_closure(
    ohc: xr.DataArray,
    hfds: xr.DataArray,
    *,
    hfgeou: xr.DataArray | None = None,
    area: xr.DataArray | None = None,
    dim: str = "time",
) -> xr.Dataset:
    """Change of heat content beside the accumulated surface and geothermal fluxes, and what is left.

    `ohc` (…, time), snapshots at the ends of the intervals, in J (global) or J m-2 (per cell); `hfds` (…, time, [lat|y,
    lon|x]) in W m-2, positive down, means over the interval that *ends* at its time, on the same times, so that its
    first record is not used; `hfgeou` alike or without time, the geothermal flux through the sea floor, W m-2, positive
    up into the ocean (about 0.1 W m-2, which a model may or may not have); `area` (lat|y, lon|x) in m2 to integrate the
    fluxes for heat in J, by default `area_of(hfds)`. Returns change, accumulated, geothermal (if `hfgeou` is given) and
    residual (…, time), in the units of `ohc`, zero at the first time, float64, lazy for lazy input. Raises ValueError
    for other units, places, or times, and times that do not rise.
    """
    per_area = ohc.attrs.get("units") == "J m-2"
    check_units(ohc, "J m-2" if per_area else "J")
    fluxes = {"accumulated": hfds} | ({} if hfgeou is None else {"geothermal": hfgeou})
    for flux in fluxes.values():
        check_units(flux, "W m-2")
    check_along(ohc, dim, 2, "a budget")
    if dim not in hfds.dims:
        raise ValueError(f"hfds must have the dimension {dim!r} of the heat content, got {hfds.dims}")
    if hfgeou is not None:
        matched(hfds, hfgeou)
    if not per_area:
        cells = matched(hfds, cell_area(hfds, area)).astype("f8")
        dims = horizontal_dims(hfds)
        fluxes = {k: (bare(f).astype("f8") * cells).sum(dims, min_count=1) for k, f in fluxes.items()}
    change = (bare(ohc).astype("f8") - bare(ohc).isel({dim: 0}, drop=True).astype("f8")).assign_coords(ohc.coords)
    sums = {k: _accumulated(ohc, flux, dim) for k, flux in fluxes.items()}
    units = ohc.attrs["units"]
    residual = change
    for heat in sums.values():
        residual = residual - heat
    # Copies, for dask.compute loses a variable of a Dataset that another is computed from (pydata/xarray#11329).
    result = {
        "change": described(change * 1.0, "change", units=units, long_name="change of heat content"),
        **{k: described(v * 1.0, k, units=units, long_name=_FLUXES[k]) for k, v in sums.items()},
        "residual": described(residual, "residual", units=units, long_name="change minus flux"),
    }
    return xr.Dataset(result)


_FLUXES = {"accumulated": "accumulated surface heat flux", "geothermal": "accumulated geothermal heat flux"}


def _accumulated(ohc: xr.DataArray, flux: xr.DataArray, dim: str) -> xr.DataArray:
    """Heat (…, time) that a flux with or without time has brought since the first time, on the places of `ohc`."""
    seconds = rising_seconds(ohc[dim])
    steps = xr.DataArray(np.diff(seconds, prepend=seconds[0]), dims=dim)
    flux = matched(ohc, flux).astype("f8")
    steady = dim not in flux.dims
    heat = flux * steps.cumsum(dim) if steady else (flux.drop_vars(dim, errors="ignore") * steps).cumsum(dim)
    return heat.broadcast_like(bare(ohc).drop_vars(dim)).transpose(*ohc.dims).assign_coords(ohc.coords)


def basin_totals(
    field: xr.DataArray, basins: xr.DataArray, *, names: dict[int, str] | None = None, area: xr.DataArray | None = None
) -> xr.DataArray:
    """Integral of a quantity per area over each basin.

    `field` (…, lat|y, lon|x) in units per m2, such as heat content in J m-2, NaN on land; `basins` (lat|y, lon|x),
    numbers as in CMIP's `basin`, those below 1 and NaN belong to none; `names` by number, by default "basin 1" …;
    `area` in m2. Returns (basin, …), float64, lazy for lazy input, in the units times m2; NaN for a basin without
    water. Raises ValueError if no cell has a basin, or a number has no name.
    """
    numbers = np.asarray(basins, dtype="f8")
    found = [int(n) for n in np.unique(numbers[np.isfinite(numbers)]) if n >= 1]
    if not found:
        raise ValueError("basins has no number from 1 on: give CMIP's `basin`, or a map of your own numbers")
    if names is not None and (missing := [n for n in found if n not in names]):
        raise ValueError(f"basins has the numbers {missing} without a name: add them to names={{...}}")
    cells = matched(field, cell_area(field, area)).astype("f8")
    where = matched(field, basins)
    dims = horizontal_dims(field)
    parts = [(bare(field) * cells.where(where == n)).sum(dims, min_count=1) for n in found]
    labels = [f"basin {n}" if names is None else names[n] for n in found]
    total = xr.concat(parts, dim="basin", coords="minimal", compat="override").assign_coords(basin=labels)
    kept = {k: c for k, c in field.coords.items() if not set(c.dims) & set(dims)}
    units = str(field.attrs.get("units", ""))
    summed = units.removesuffix(" m-2") if units.endswith(" m-2") else f"{units} m2".strip()
    attrs = {k: v for k, v in field.attrs.items() if k != "standard_name"}
    return described(total.assign_coords(kept), field.name, **{**attrs, "units": summed})


def thermosteric_efficiency(thermosteric: xr.DataArray, heat: xr.DataArray, *, dim: str = "time") -> xr.DataArray:
    """Sea-level rise per heat taken up, m per J or m per J m-2: the slope of one on the other along `dim`.

    `thermosteric` (…, time) in m and `heat` (…, time) in J or J m-2 at the same times. Returns (…), float64. About 0.12
    m per 10^24 J for the global ocean. Raises ValueError for other units. Source: Kuhlbrodt & Gregory 2012, Geophys.
    Res. Lett. 39, L18608.
    """
    check_units(thermosteric, "m")
    units = "J m-2" if heat.attrs.get("units") == "J m-2" else "J"
    check_units(heat, units)
    x = bare(heat).astype("f8")
    x = x - x.mean(dim, skipna=False)
    y = matched(heat, thermosteric).astype("f8")
    slope = (x * (y - y.mean(dim, skipna=False))).sum(dim, skipna=False) / (x**2).sum(dim, skipna=False)
    per = "m J-1" if units == "J" else "m3 J-1"
    return described(slope, "efficiency", units=per, long_name="thermosteric rise per heat")
