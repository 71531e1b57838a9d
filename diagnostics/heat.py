"""Ocean heat content and heat uptake.

    OHC(x, y, t) = rho0 cp sum_k theta_k |layer_k ∩ [z1, z2]|        J m-2
    uptake(t)    = d(∫ OHC dA)/dt / A                                W m-2

Layers that straddle z1 or z2 count by their exact overlap: choosing levels by their centres moves 0-700 m to 0-650 m on
common grids, which is 2e9 J m-2. Heat is relative to 0 degC; constants are written to attrs, because models differ by
3.5 % in cp: those in use have names in `HEAT_CONVENTIONS`. The heat that a model conserves is its own cp times its own
temperature, which is therefore not converted (McDougall et al. 2021, Geosci. Model Dev. 14, 6445; Griffies et al. 2016,
Geosci. Model Dev. 9, 3231); that of observed water, with its own density, is `enthalpy_content`. cp0 is that of TEOS-10
(IOC et al. 2010).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .columns import integral, over_columns, over_volume
from .conventions import (
    RHO0,
    bare,
    cell_area,
    check_units,
    described,
    horizontal_dims,
    matched,
    thickness_of,
    thickness_within,
    vertical_dim,
)
from .coordinates import check_along, check_rising

CP0 = 3991.86795711963
"""Specific heat capacity of TEOS-10, J kg-1 K-1."""


@dataclass(frozen=True)
class HeatConvention:
    """The constants that turn a temperature into heat: `rho0` in kg m-3, `cp` in J kg-1 K-1, and whose they are."""

    rho0: float = RHO0
    cp: float = CP0
    source: str = "TEOS-10 specific heat, reference density of MOM6"

    def __post_init__(self) -> None:
        if not (500 < self.rho0 < 2000 and 2000 < self.cp < 6000):
            raise ValueError(
                f"rho0 must be the density of sea water in kg m-3 and cp its specific heat in J kg-1 K-1, got {self}"
            )


HEAT_CONVENTIONS = {
    "TEOS-10": HeatConvention(),
    "CM4": HeatConvention(1035.0, 3992.0, "GFDL CM4; the scores that Samudra and ACE print while they train"),
    "Samudra": HeatConvention(1035.0, 3850.0, "papers and `metrics` of Samudra"),
    "Samudra viz": HeatConvention(1025.0, 3850.0, "`viz` of Samudra"),
}
"""Constants in use by name. The three of Samudra's own package are up to 4.7 % apart, more than most signals."""


def constants_of(
    convention: str | HeatConvention, *, rho0: float | None = None, cp: float | None = None
) -> HeatConvention:
    """The convention itself or that of this name, with `rho0` or `cp` replaced; ValueError for an unknown name."""
    if isinstance(convention, str):
        if convention not in HEAT_CONVENTIONS:
            raise ValueError(
                f"convention must be one of {[*HEAT_CONVENTIONS]} or a HeatConvention(rho0, cp), got {convention!r}"
            )
        convention = HEAT_CONVENTIONS[convention]
    if rho0 is None and cp is None:
        return convention
    rho0, cp = convention.rho0 if rho0 is None else rho0, convention.cp if cp is None else cp
    return HeatConvention(rho0, cp, "given")


def heat_content(
    thetao: xr.DataArray,
    *,
    depth: tuple[float, float] = (0.0, 700.0),
    dz: xr.DataArray | None = None,
    convention: str | HeatConvention = "TEOS-10",
    rho0: float | None = None,
    cp: float | None = None,
) -> xr.DataArray:
    """Heat content of the water between two depths, relative to 0 degC.

    `thetao` (…, lev, lat|y, lon|x) in degC, NaN on land; `depth` (top, bottom) in m, `(0, inf)` for the whole
    column; `dz` (lev) or (…, lev, lat|y, lon|x) in m, by default the field's `dz` or `thkcello`;
    `convention`, a name of `HEAT_CONVENTIONS` or a `HeatConvention`, of which `rho0` in kg m-3 and `cp` in J kg-1 K-1
    replace a part. Returns (…, lat|y, lon|x) in J m-2, float64, lazy for lazy input, NaN where no
    water lies in the range. Raises ValueError for other units, levels that are not depths, a missing or inconsistent
    thickness, an empty range, an unknown convention. Definition: Levitus et al. 2012, Geophys. Res. Lett. 39, L10603.
    """
    check_units(thetao, "degC")
    constants = constants_of(convention, rho0=rho0, cp=cp)
    dim = vertical_dim(thetao)
    thickness = thickness_within(thetao, depth=depth, dz=dz)
    (column,) = over_columns(integral, [thetao, thickness], like=thetao)
    return described(
        constants.rho0 * constants.cp * column,
        "ohc",
        units="J m-2",
        long_name=f"ocean heat content {depth[0]:g}-{depth[1]:g} m",
        standard_name="integral_wrt_depth_of_sea_water_potential_temperature_expressed_as_heat_content",
        cell_methods=f"{dim}: sum",
        depth_range=list(depth),
        reference_density=constants.rho0,
        specific_heat_capacity=constants.cp,
        convention=constants.source,
    )


def global_heat_content(
    thetao: xr.DataArray,
    *,
    area: xr.DataArray | None = None,
    depth: tuple[float, float] = (0.0, 700.0),
    dz: xr.DataArray | None = None,
    convention: str | HeatConvention = "TEOS-10",
    rho0: float | None = None,
    cp: float | None = None,
) -> xr.DataArray:
    """Heat content of the water between two depths, integrated over the area of the field.

    As `heat_content`, with `area` (lat|y, lon|x) in m2, by default `area_of(thetao)`. Returns (…) in J.
    """
    local = heat_content(thetao, depth=depth, dz=dz, convention=convention, rho0=rho0, cp=cp)
    area = matched(local, cell_area(thetao, area))
    dims = horizontal_dims(local)
    total = (local * area).sum(dims, min_count=1)
    methods = f"{local.attrs['cell_methods']} {dims[0]}: {dims[1]}: sum"
    return described(total, "ohc", **{**_without_name(local), "units": "J", "cell_methods": methods})


def heat_between(thetao: xr.DataArray, bands: Sequence[tuple[float, float]]) -> xr.DataArray:
    """As `global_heat_content` between several pairs of depths, (…, band), in one pass over memory.

    Lazy for lazy input whose columns and maps are not chunked.
    """
    check_units(thetao, "degC")
    constants = constants_of("TEOS-10")
    surface = thetao.isel({vertical_dim(thetao): 0}, drop=True)
    area = matched(surface, cell_area(thetao, None))
    # Thicknesses of single cells are as large as the field: one band after the other then.
    groups = [bands] if thickness_of(thetao).ndim == 1 else [[band] for band in bands]
    parts = [over_volume(thetao, area, [thickness_within(thetao, depth=b) for b in group]) for group in groups]
    heat = xr.concat(parts, "range")
    return described(
        (heat * (constants.rho0 * constants.cp)).rename(range="band"),
        "ohc",
        units="J",
        long_name="ocean heat content",
        reference_density=constants.rho0,
        specific_heat_capacity=constants.cp,
    ).assign_coords(band=[f"{top:g}-{bottom:g} m" for top, bottom in bands])


def _without_name(field: xr.DataArray) -> dict[str, Any]:
    """Attrs of a quantity derived from `field`, for which no standard name exists."""
    return {key: value for key, value in field.attrs.items() if key != "standard_name"}


def elapsed_seconds(time: xr.DataArray) -> np.ndarray[Any, Any]:
    """Seconds since the first of `time` (time), float64, in the calendar of the coordinate itself.

    `time` holds cftime dates, datetime64 or timedelta64; ValueError for anything else, whose unit is unknown.
    """
    values = np.asarray(time)
    since = values - values[0]
    if isinstance(since[0], datetime.timedelta):
        seconds = np.array([step.total_seconds() for step in since])
    elif np.issubdtype(values.dtype, np.datetime64) or np.issubdtype(values.dtype, np.timedelta64):
        seconds = since / np.timedelta64(1, "s")
    else:
        raise ValueError(
            f"{str(time.name)!r} must hold cftime dates, datetime64 or timedelta64 to measure seconds, got "
            f"{type(values[0]).__name__}: decode it with xr.coders.CFDatetimeCoder(use_cftime=True)"
        )
    return seconds


def _rate_attrs(series: xr.DataArray, how: str) -> dict[str, Any]:
    units = {"units": f"{series.attrs['units']} s-1"} if "units" in series.attrs else {}
    name = series.attrs.get("long_name", series.name)
    return {**_without_name(series), **units, "long_name": f"{how} of {name}"}


def rising_seconds(time: xr.DataArray) -> np.ndarray[Any, Any]:
    """As `elapsed_seconds`, and ValueError for times that do not rise, which a sum or difference over steps needs."""
    seconds = elapsed_seconds(time)
    check_rising(time)
    return seconds


def trend(series: xr.DataArray, *, dim: str = "time") -> xr.DataArray:
    """Least-squares slope along `dim`, per second, for each member and place.

    `series` (…, time); returns (…), float64, in units of the series per second; NaN where a value is missing.
    Raises ValueError for fewer than two times or a time coordinate without a unit.
    """
    check_along(series, dim, 2, "a rate")
    seconds = elapsed_seconds(series[dim])
    if not np.ptp(seconds) > 0:
        raise ValueError(f"a rate needs two different times along {dim!r}, all {seconds.size} are the same")
    t = xr.DataArray(seconds - seconds.mean(), dims=dim)
    # The first value is taken off so that small changes of a large store keep their digits.
    x = series.astype("f8") - series.isel({dim: 0}, drop=True)
    slope = (x * t).sum(dim, skipna=False) / (t**2).sum()
    return described(slope, series.name, **_rate_attrs(series, "trend"))


def tendency(series: xr.DataArray, *, dim: str = "time") -> xr.DataArray:
    """Centred difference (x[k+1] - x[k-1]) / (t[k+1] - t[k-1]) along `dim`, per second.

    `series` (…, time), snapshots for a budget; returns (…, time) without the first and last time, float64.
    With uneven steps it is the mean rate between the two neighbours. Raises as `trend`, for fewer than three, and
    for times that do not rise.
    """
    check_along(series, dim, 3, "a rate")
    seconds = rising_seconds(series[dim])
    x = bare(series).astype("f8").drop_vars(dim)
    ahead, behind = {dim: slice(2, None)}, {dim: slice(None, -2)}
    rate = (x.isel(ahead) - x.isel(behind)) / xr.DataArray(seconds[2:] - seconds[:-2], dims=dim)
    rate = rate.assign_coords(series.isel({dim: slice(1, -1)}).coords)
    return described(rate, series.name, **_rate_attrs(series, "tendency"))


def heat_uptake(
    ohc: xr.DataArray,
    *,
    area: xr.DataArray | float | None = None,
    rate: Callable[..., xr.DataArray] = trend,
    dim: str = "time",
) -> xr.DataArray:
    """Heat flux into the water, W m-2: the rate of change of its heat content per area.

    `ohc` (…, time) in J with `area` a number of m2 (such as `wet_area(thetao)`, or the Earth's 5.1e14), or
    `ohc` (…, time, lat|y, lon|x) in J m-2 without `area`. `rate` is `trend` (one value per member) or
    `tendency` (a series). Raises ValueError for other units, an area missing, superfluous or not summed.
    """
    per_area = ohc.attrs.get("units") == "J m-2"
    check_units(ohc, "J m-2" if per_area else "J")
    if per_area != (area is None):
        raise ValueError("heat in J needs area= (m2), heat in J m-2 none: for example area=wet_area(thetao)")
    if isinstance(area, xr.DataArray) and area.ndim:
        raise ValueError(f"area must be one number, got dimensions {area.dims}: sum it over the ocean, see wet_area")
    if area is not None and getattr(area, "chunks", None) is None and not float(area) > 0:
        raise ValueError(f"area must be positive, got {float(area):g} m2: the field has no wet cell (all NaN?)")
    flux = rate(ohc, dim=dim)
    if area is not None:
        flux = flux / (bare(area) if isinstance(area, xr.DataArray) else area)
    name = f"ocean heat uptake ({rate.__name__})"
    return described(flux, "heat_uptake", **{**_without_name(ohc), "units": "W m-2", "long_name": name})
