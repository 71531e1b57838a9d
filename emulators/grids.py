"""Grids and layouts of opened stores, and the Gaussian grid of the public ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .names import GRID_ATTRS
from .state import Field, Layout
from .stores import GRID_NAMES, SourceError, dates_of, levels_in, usual_step

EARTH_RADIUS = 6.371e6
"""Of a sphere with the Earth's volume (m)."""


def gaussian_grid(ny: int, nx: int) -> xr.Dataset:
    """The Gaussian grid of `ny` latitudes from south to north and `nx` longitudes, as coordinates.

    Args:
        ny: number of latitudes, the arcsines of the roots of the Legendre polynomial of degree `ny`.
        nx: number of longitudes, cell centres: the first is half a cell east of Greenwich.

    Returns:
        2-D `lat`, `lon` (degrees) and `areacello` (m2), all (y, x), as in the public OM4 stores. The cells of a row
        share the row's quadrature weight, area = R² Δλ w with Σw = 2, so that a sum over the grid is the Gaussian
        quadrature and the areas add up to 4πR² with R = 6371 km.

    Raises ValueError for fewer than two rows or columns. See Abramowitz & Stegun (1964), 25.4.29.
    """
    if ny < 2 or nx < 2:
        raise ValueError(f"a Gaussian grid needs at least 2 x 2 cells, got ny={ny}, nx={nx}")
    sine, weight = _legendre(ny)
    lat = np.broadcast_to(np.degrees(np.arcsin(sine))[:, None], (ny, nx))
    lon = np.broadcast_to((np.arange(nx) + 0.5) * (360.0 / nx), (ny, nx))
    area = np.broadcast_to((EARTH_RADIUS**2 * 2 * np.pi / nx * weight)[:, None], (ny, nx))
    named = {"lat": lat, "lon": lon, "areacello": area}
    return xr.Dataset(coords={n: (("y", "x"), v.copy(), GRID_ATTRS[n]) for n, v in named.items()})


def _legendre(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Roots of the Legendre polynomial of degree n, ascending, and their quadrature weights, by Newton's method."""
    x = -np.cos(np.pi * (np.arange(n) + 0.75) / (n + 0.5))
    for _ in range(100):
        before, now = np.ones_like(x), x
        for k in range(2, n + 1):
            before, now = now, ((2 * k - 1) * x * now - (k - 1) * before) / k
        slope = n * (before - x * now) / (1 - x**2)
        x = x - now / slope
        if np.abs(now / slope).max() < 1e-15:
            break
    x = (x - x[::-1]) / 2  # symmetric to the last bit
    weight = 2 / ((1 - x**2) * slope**2)
    return x, (weight + weight[::-1]) / 2


def grid_of(dataset: xr.Dataset, levels: int | None = None) -> xr.Dataset:
    """The grid of an opened store, for a Layout; only the `levels` uppermost levels if given.

    Cell areas that are missing are computed on a sphere from a regular 1-D `lat` and `lon`. A store with
    neither areas nor `lat` and `lon` that says `grid_type: gaussian` gets those of `gaussian_grid`, from south
    to north unless its `y` says otherwise. Nothing else is made up.

    Raises SourceError for cell areas that are missing and cannot be computed.
    """
    grid = xr.Dataset(coords={n: dataset.coords[n] for n in GRID_NAMES if n in dataset.coords})
    grid = grid.drop_vars([c for c in ("member", "time") if c in grid.coords])
    if "areacello" not in grid.coords:
        if not {"lat", "lon"} & set(grid.coords) and dataset.attrs.get("grid_type") == "gaussian":
            grid = _with_gaussian(grid, dataset)
        else:
            grid = grid.assign_coords(areacello=_regular_areas(grid, dataset))
    grid = grid.drop_encoding()  # how another store was written must not decide how a new one is
    grid.attrs = {k: dataset.attrs[k] for k in ("zonal_period",) if k in dataset.attrs}
    return grid.isel(lev=slice(0, levels)) if levels is not None and "lev" in grid.dims else grid


def _with_gaussian(grid: xr.Dataset, dataset: xr.Dataset) -> xr.Dataset:
    sizes = [dataset.sizes.get(d, 0) for d in ("y", "x")]
    if min(sizes) < 2:
        raise SourceError(
            f"the store says `grid_type: gaussian` but has no dimensions y, x; it has {dict(dataset.sizes)}. "
            "Rename its horizontal dimensions to y and x"
        )
    made = gaussian_grid(*sizes)
    if "y" in dataset.coords and dataset["y"].values[0] > dataset["y"].values[-1]:
        made = made.isel(y=slice(None, None, -1))
    return grid.assign_coords({n: (("y", "x"), c.values, c.attrs) for n, c in made.coords.items()})


def _regular_areas(grid: xr.Dataset, dataset: xr.Dataset) -> xr.DataArray:
    """Areas of the cells between the middles of a regular 1-D `lat` and `lon`."""
    if {"lat", "lon"} - set(grid.coords) or grid["lat"].ndim != 1:
        raise SourceError(
            f"the store lacks `areacello` and has no 1-D `lat` and `lon` to compute it from; "
            f"its coordinates are {', '.join(map(str, dataset.coords))}. Add cell areas in m2; for a Gaussian grid "
            "`dataset.assign_coords(gaussian_grid(ny, nx).coords)` does"
        )
    lat, lon = np.radians(grid["lat"].values), np.radians(grid["lon"].values)
    edges = np.concatenate([[1.5 * lat[0] - 0.5 * lat[1]], (lat[1:] + lat[:-1]) / 2, [1.5 * lat[-1] - 0.5 * lat[-2]]])
    band = EARTH_RADIUS**2 * abs(lon[1] - lon[0]) * np.abs(np.diff(np.sin(np.clip(edges, -np.pi / 2, np.pi / 2))))
    return xr.DataArray(np.tile(band[:, None], (1, len(lon))), dims=("lat", "lon"), attrs={"units": "m2"})


def layout_of(
    dataset: xr.Dataset,
    names: Sequence[str],
    *,
    slots: tuple[int, ...] = (0,),
    levels: int | None = None,
) -> Layout:
    """The layout of some variables of an opened store, in the order given.

    Args:
        dataset: from `open_store`.
        names: variable names; those with a `lev` dimension become fields with levels.
        slots: time slots as multiples of the store's record interval.
        levels: use only the uppermost levels; default as many as the variables have.

    Raises SourceError if a variable is missing, or has fewer levels than `levels`.
    """
    missing = [n for n in names if n not in dataset]
    if missing:
        raise SourceError(
            f"no variable(s) {', '.join(missing)}; the store has {', '.join(map(str, dataset.data_vars))}"
        )
    have = {n: levels_in(dataset[n]) for n in names}
    require_levels({n: levels or 0 for n in names if have[n]}, dataset, "the store")
    grid = grid_of(dataset, max(have.values()) if levels is None and any(have.values()) else levels)
    fields = tuple(
        Field(n, min(have[n], grid.sizes.get("lev", 0)), dataset[n].attrs.get("location", "center")) for n in names
    )
    layout = Layout(fields, grid, slots)
    if dataset.sizes.get("time", 0) < 2:
        return layout
    return Layout(fields, grid, slots, _interval(dataset))


def _interval(dataset: xr.Dataset) -> timedelta:
    return usual_step(dates_of(dataset, "the store"))


def require_levels(wanted: dict[str, int], dataset: xr.Dataset, name: str) -> None:
    """Raise SourceError, naming the variable, if one has fewer levels than wanted."""
    for variable, levels in wanted.items():
        have = levels_in(dataset[variable])
        if have < levels:
            depth = f" (down to {dataset['lev'].values[have - 1]} m)" if have and "lev" in dataset.coords else ""
            raise SourceError(
                f"{name}: wanted {levels} levels of {variable}, got {have}{depth}; choose a layout with "
                f"`levels={have}`, or a store with all of them"
            )
