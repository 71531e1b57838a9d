"""The rise of the sea from its parts: global mean of a Boussinesq model, fresh water, closure, values at places.

    zos + global steric height                 what a Boussinesq model would show with its mass kept   (Greatbatch 1994)
    barystatic(t) = 1/(rho_f A) ∫_0^t ∫ wfo dA dt'            rho_f = 1000 kg m-3
    rise = barystatic + global (thermo)steric + residual      (Gregory et al. 2019, Surv. Geophys. 40, 1251)

The global mean of a Boussinesq model is fixed by its volume, so the steric part has to be added as one number for each
time. Fresh water lowers salinity without making the mean sea rise further: where it was added, the thermosteric part is
the one that adds to the barystatic. Greatbatch 1994, J. Geophys. Res. 99, 12767; 1 mm over 3.61e14 m2 is 361 Gt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .conventions import EARTH_RADIUS, bare, cell_area, check_units, coordinate, described, horizontal_dims, matched
from .coordinates import check_along, check_degrees
from .heat import rising_seconds
from .sea_level import dynamic_sea_level

_Array = np.ndarray[Any, Any]

RHO_FRESH = 1000.0
"""Density of fresh water, kg m-3."""


def absolute_sea_level(
    zos: xr.DataArray,
    global_mean: xr.DataArray,
    *,
    area: xr.DataArray | None = None,
) -> xr.DataArray:
    """Sea level with the global mean change that a Boussinesq model lacks.

    `zos` (…, time, lat|y, lon|x) in m, whose own ocean mean is removed at each time; `global_mean` (…, time) in m, such
    as `global_steric(...).thermosteric`, with `barystatic` added where known; `area` in m2. Returns the shape of `zos`,
    float64, lazy for lazy input. Raises ValueError for other units, times or members. Source: Greatbatch 1994.
    """
    check_units(global_mean, "m")
    dynamic = dynamic_sea_level(zos, area=area)
    total = bare(dynamic) + matched(dynamic, global_mean)
    naming = {"long_name": "sea level with its global mean change", "comment": "Boussinesq correction added"}
    kept = {k: v for k, v in zos.attrs.items() if k != "standard_name"}
    return described(total.transpose(*zos.dims).assign_coords(zos.coords), zos.name, **{**kept, "units": "m", **naming})


def barystatic(
    wfo: xr.DataArray,
    *,
    area: xr.DataArray | None = None,
    ocean_area: float | xr.DataArray,
    rho_fresh: float = RHO_FRESH,
    dim: str = "time",
) -> xr.DataArray:
    """Rise of the global mean by the fresh water that entered the ocean since the first time.

    `wfo` (…, time, lat|y, lon|x) in kg m-2 s-1, positive into the ocean, rivers and ice included, means over the
    interval that ends at its time (the first record is not used); `area` of the cells in m2, by default `area_of(wfo)`;
    `ocean_area` in m2, one number such as `wet_area(...)`. Returns (…, time) in m, float64, lazy for lazy input. Raises
    ValueError for other units or no dates. Definition: Gregory et al. 2019.
    """
    check_units(wfo, "kg m-2 s-1")
    if isinstance(ocean_area, xr.DataArray) and ocean_area.ndim:
        raise ValueError(f"ocean_area must be one number in m2, got dimensions {ocean_area.dims}: see wet_area")
    surface = bare(ocean_area) if isinstance(ocean_area, xr.DataArray) else ocean_area
    cells = matched(wfo, cell_area(wfo, area)).astype("f8")
    rate = (bare(wfo) * cells).sum(horizontal_dims(wfo), min_count=1)
    check_along(wfo, dim, 2, "a rise")
    seconds = rising_seconds(wfo[dim])
    steps = xr.DataArray(np.diff(seconds, prepend=seconds[0]), dims=dim)
    mass = (rate.drop_vars(dim) * steps).cumsum(dim)
    rise = (mass / (rho_fresh * surface)).assign_coords({dim: wfo[dim].variable})
    return described(
        rise.transpose(*rate.dims),
        "barystatic",
        units="m",
        long_name="barystatic sea-level rise",
        standard_name="global_average_sea_level_change_due_to_change_in_ocean_mass",
        density_of_fresh_water=rho_fresh,
    )


def sea_level_closure(rise: xr.DataArray, **parts: xr.DataArray) -> xr.Dataset:
    """Change of sea level since the first time, its parts, and what they leave.

    `rise` (…, time) in m, such as an observed global mean; `parts` by name, (…, time) in m at the same times, such as
    steric= and barystatic=. Returns rise, each part and residual (…, time), all zero at the first time, float64.
    Raises ValueError for other units or times, and without parts.
    """
    if not parts:
        raise ValueError("a budget needs parts: give steric=, barystatic= or others by name")
    changes = {}
    for name, field in {"rise": rise, **parts}.items():
        check_units(field, "m")
        plain = bare(field) if name == "rise" else matched(rise, field)
        changes[name] = plain.astype("f8") - plain.isel(time=0, drop=True).astype("f8")
    residual = changes["rise"] - sum(changes[name] for name in parts)
    named = {**changes, "residual": residual}
    # Copies, for dask.compute loses a variable of a Dataset that another is computed from (pydata/xarray#11329).
    return xr.Dataset({k: described(v * 1.0, k, units="m", long_name=f"{k}, change") for k, v in named.items()})


def at_points(field: xr.DataArray, points: dict[str, tuple[float, float]], *, farthest: float = 2e5) -> xr.DataArray:
    """Series at places such as tide gauges, from the nearest cell that is wet at the first record.

    `field` (…, lat|y, lon|x) with 1-D or 2-D lat and lon in degrees, NaN on land; `points`, {name: (lat, lon)};
    `farthest` in m. Returns (…, point), lazy for lazy input (its first map is read), with the coordinates lat, lon of
    the cell and distance (m) to it. Raises ValueError for no wet cell within `farthest`, naming the place.
    """
    dims = horizontal_dims(field)
    lat, lon = coordinate(field, "lat", "latitude"), coordinate(field, "lon", "longitude")
    if lat is None or lon is None:
        raise ValueError("places need lat and lon in degrees: assign them as coordinates, 1-D or 2-D")
    check_degrees(lat, lon)
    first = bare(field).isel({d: 0 for d in field.dims if d not in dims}).transpose(*dims)
    wet = np.isfinite(first.to_numpy())
    both = (bare(c) for c in xr.broadcast(bare(lat), bare(lon)))
    y, x = (np.deg2rad(c.transpose(*dims).to_numpy().astype("f8")) for c in both)
    rows, columns, away = [], [], []
    for name, place in points.items():
        there = np.deg2rad(place)
        h = np.sin((y - there[0]) / 2) ** 2 + np.cos(y) * np.cos(there[0]) * np.sin((x - there[1]) / 2) ** 2
        distance = np.where(wet, 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(h, 0, 1))), np.inf)
        row, column = np.unravel_index(int(np.argmin(distance)), distance.shape)
        if not distance[row, column] <= farthest:
            raise ValueError(
                f"no wet cell within {farthest / 1e3:g} km of {name!r} at {place}: the nearest is "
                f"{distance[row, column] / 1e3:.0f} km away; check (lat, lon) or raise farthest="
            )
        rows.append(int(row))
        columns.append(int(column))
        away.append(float(distance[row, column]))
    picked = bare(field).isel({dims[0]: xr.DataArray(rows, dims="point"), dims[1]: xr.DataArray(columns, dims="point")})
    placed = picked.drop_vars([d for d in dims if d in picked.coords]).assign_coords(
        point=list(points),
        lat=("point", np.rad2deg(y[rows, columns]), {"units": "degrees_north"}),
        lon=("point", np.rad2deg(x[rows, columns]), {"units": "degrees_east"}),
        distance=("point", away, {"units": "m", "long_name": "distance to the cell"}),
    )
    return described(placed, field.name, **field.attrs, sampling="nearest wet cell")
