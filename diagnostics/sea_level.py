"""Sea level: steric height with its parts, its global mean, and the dynamic part.

Local steric height relative to a reference state, in the form of a Boussinesq model or by specific volume v:

    boussinesq   eta = -(1/rho0) sum_k [rho(theta, S) - rho_ref] dz_k      (Griffies & Greatbatch 2012)
    specvol      eta = sum_k [v(theta, S) / v_ref - 1] dz_k                 (Gill & Niiler 1973)

which differ by 0.8 % near the surface. The thermosteric part keeps S at the reference, the halosteric part
theta; what the two leave is returned as the residual. A Boussinesq model keeps its volume, so its global mean
is computed from the mean density over the volume V and the ocean area A (Griffies et al. 2016, Geosci. Model
Dev. 9, 3231, appendix H):

    eta_g = (V / A) ln(rho_ref / rho),   rho = sum(rho V) / sum(V).

The global halosteric part is not a rise of the sea where fresh water was added (Gregory et al. 2019, Surv.
Geophys. 40, 1251). Millimetres are 3e-7 of a column's density, hence float64 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from . import seawater
from .columns import over_columns
from .conventions import (
    RHO0,
    area_mean,
    bare,
    cell_area,
    check_units,
    described,
    horizontal_dims,
    matched,
    thickness_within,
    vertical_dim,
)
from .eos import SALINITY_NOTE, Place, check_water

_Array = np.ndarray[Any, Any]

_NAMES = {
    "steric": "steric_change_in_sea_surface_height",
    "thermosteric": "thermosteric_change_in_sea_surface_height",
    "halosteric": "halosteric_change_in_sea_surface_height",
}
_GLOBAL_NAMES = {
    "steric": "global_average_steric_sea_level_change",
    "thermosteric": "global_average_thermosteric_sea_level_change",
}


def steric(
    thetao: xr.DataArray,
    so: xr.DataArray,
    *,
    reference: xr.Dataset,
    form: str = "boussinesq",
    parts: bool = True,
    depth: tuple[float, float] = (0.0, np.inf),
    dz: xr.DataArray | None = None,
    rho0: float = RHO0,
) -> xr.Dataset:
    """Local steric height relative to a reference state.

    `thetao` (…, lev, lat|y, lon|x), potential temperature in degC; `so` alike, practical salinity;
    `reference`, a Dataset with thetao and so without time, such as `ds.isel(time=slice(73)).mean("time",
    keep_attrs=True)`; `form` "boussinesq" or "specvol"; `parts=False` computes the sum only, in half the
    time; `depth`, `dz`, in m, as `heat_content`; `rho0` in kg m-3 (boussinesq only). Returns steric,
    thermosteric, halosteric and residual (…, lat|y, lon|x) in m, float64, lazy for lazy input, NaN on land.
    Raises ValueError for an unknown form, other units, a reference that varies in time or lies elsewhere.
    """
    if form not in ("boussinesq", "specvol"):
        raise ValueError(f"form must be one of ['boussinesq', 'specvol'], got {form!r}")
    place, states = _states(thetao, so, reference, parts=parts)
    thickness = thickness_within(thetao, depth=depth, dz=dz)
    rho_ref = place.density(*states.pop("reference"))
    rest = [place.slope, place.offset, place.pressure, rho_ref, thickness]
    constant = rho0 if form == "boussinesq" else 0.0
    heights = {name: _height([*water, *rest], rho0=constant, like=thetao) for name, water in states.items()}
    constants = {"form": form, "reference_density": rho0} if form == "boussinesq" else {"form": form}
    return _described(heights, _NAMES, {**constants, "depth_range": list(depth)})


def _height(fields: list[xr.DataArray], *, rho0: float, like: xr.DataArray) -> xr.DataArray:
    """Steric height in one pass over theta, salinity, slope, offset, pressure, reference density and thickness."""

    def heights(*columns: _Array) -> _Array:
        return seawater.steric_height(*columns, rho0=rho0)

    return over_columns(heights, fields, like=like)[0]


def global_steric(
    thetao: xr.DataArray,
    so: xr.DataArray,
    *,
    reference: xr.Dataset,
    area: xr.DataArray | None = None,
    parts: bool = True,
    depth: tuple[float, float] = (0.0, np.inf),
    dz: xr.DataArray | None = None,
) -> xr.Dataset:
    """Global mean steric height relative to a reference state, by the mean density of the volume.

    Arguments as `steric`, with `area` (lat|y, lon|x) in m2, by default `area_of(thetao)`. The volume is that
    of the cells wet in both states. Returns steric, thermosteric, halosteric and residual (…) in m, float64.
    """
    return global_rise(volume_sums(thetao, so, reference=reference, area=area, parts=parts, depth=depth, dz=dz))


def volume_sums(
    thetao: xr.DataArray,
    so: xr.DataArray,
    *,
    reference: xr.Dataset,
    area: xr.DataArray | None = None,
    parts: bool = True,
    depth: tuple[float, float] = (0.0, np.inf),
    dz: xr.DataArray | None = None,
) -> xr.Dataset:
    """What `global_rise` needs: those of two halves of an ocean add up to those of the whole.

    Arguments as `global_steric`. Returns volume (m3), mass, deficit (what the reference weighs more, kg) and
    surface (m2), float64, along `part` = steric, thermosteric, halosteric (…, part), lazy for lazy input.
    """
    place, states = _states(thetao, so, reference, parts=parts)
    rho_ref = place.density(*states.pop("reference"))
    rest = [place.slope, place.offset, place.pressure, rho_ref, thickness_within(thetao, depth=depth, dz=dz)]
    area = matched(thetao, cell_area(thetao, area)).astype("f8")

    def sums(water: tuple[xr.DataArray, xr.DataArray]) -> xr.Dataset:
        columns = over_columns(seawater.column_masses, [*water, *rest], like=thetao, outputs=3)
        volume, mass, deficit = ((bare(c) * area).sum(area.dims) for c in columns)
        surface = ((bare(columns[0]) > 0) * area).sum(area.dims)
        return xr.Dataset({"volume": volume, "mass": mass, "deficit": deficit, "surface": surface})

    dims = [vertical_dim(thetao), *horizontal_dims(thetao)]
    found = xr.concat([sums(water) for water in states.values()], "part").assign_coords(part=list(states))
    attrs = {"form": "logarithm of mean density", "depth_range": list(depth)}
    return found.transpose(..., "part").assign_coords(_outer(thetao, dims)).assign_attrs(attrs)


def global_rise(sums: xr.Dataset) -> xr.Dataset:
    """Global mean steric height of `volume_sums` of the whole ocean, as `global_steric`."""
    mass = sums["mass"].where(sums["volume"] > 0)  # NaN where no water was
    rise = sums["volume"] / sums["surface"] * np.log1p(sums["deficit"] / mass)
    heights = {str(name): rise.sel(part=name, drop=True) for name in sums["part"].values}
    return _described(heights, _GLOBAL_NAMES, dict(sums.attrs))


def _outer(field: xr.DataArray, dims: list[str]) -> dict[Any, xr.DataArray]:
    """Coordinates of the dimensions that are left after a sum over `dims`."""
    return {name: c for name, c in field.coords.items() if not set(c.dims) & set(dims)}


def _states(
    thetao: xr.DataArray, so: xr.DataArray, reference: xr.Dataset, *, parts: bool
) -> tuple[Place, dict[str, tuple[xr.DataArray, xr.DataArray]]]:
    """Temperature and salinity of the reference, of the state and, for the parts, of the two mixed states."""
    if missing := {"thetao", "so"} - set(reference.data_vars):
        raise ValueError(f"reference must be a Dataset with thetao and so, it lacks {sorted(missing)}")
    check_water(thetao, so)
    check_water(reference["thetao"], reference["so"])
    if extra := {d for d in reference["thetao"].dims if d not in thetao.dims or d == "time"}:
        raise ValueError(
            f"reference must not vary along {sorted(map(str, extra))}: take .mean(…, keep_attrs=True) first"
        )
    theta, theta_ref = bare(thetao), matched(thetao, reference["thetao"])
    sp, sp_ref = matched(thetao, so), matched(thetao, reference["so"])
    result = {"reference": (theta_ref, sp_ref), "steric": (theta, sp)}
    if parts:
        # The first operand sets the order of dimensions, so the reference is spread (as a view) over them.
        spread = theta_ref.broadcast_like(theta).transpose(*theta.dims)
        result |= {"thermosteric": (theta, sp_ref), "halosteric": (spread, sp)}
    return Place.of(thetao), result


def _described(
    heights: dict[str, xr.DataArray], standard_names: Mapping[str, str], attrs: dict[str, Any]
) -> xr.Dataset:
    heights = dict(heights)
    if "halosteric" in heights:
        heights["residual"] = heights["steric"] - heights["thermosteric"] - heights["halosteric"]
    for name, values in heights.items():
        # A copy, for dask.compute loses a variable of a Dataset that another, here the residual, is computed
        # from (pydata/xarray#11329).
        values = values * 1.0
        named = {"standard_name": standard_names[name]} if name in standard_names else {}
        heights[name] = described(values, name, units="m", long_name=f"{name} height", **named)
    return xr.Dataset(heights, attrs={**attrs, "equation_of_state": "TEOS-10", "absolute_salinity": SALINITY_NOTE})


def dynamic_sea_level(zos: xr.DataArray, *, area: xr.DataArray | None = None) -> xr.DataArray:
    """Sea surface height without its ocean mean at each time, m, as CMIP defines `zos`.

    `zos` (…, lat|y, lon|x) in m, NaN on land; `area` in m2, by default `area_of(zos)`. Returns the same
    shape, float64. Raises ValueError for other units. Griffies et al. 2016, appendix H.
    """
    check_units(zos, "m")
    result = zos - bare(area_mean(zos, area))
    naming = {"standard_name": "sea_surface_height_above_geoid", "comment": "ocean mean removed at each time"}
    return described(result, "zos", **{**zos.attrs, **naming})
