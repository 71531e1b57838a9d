"""Fields on plain axes and where on the page their maps go.

One-dimensional lat and lon are axes already. Curvilinear grids (2-D lat and lon, tripolar) are shown by the
nearest cell on a regular raster: their quadrilaterals cross the date line and meet at poles inside land, which
no pair of plain axes can draw. Nothing but the picture uses that raster.

Maps are placed in inches, for the layout engines of matplotlib let titles collide above axes of fixed aspect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.spatial import KDTree

from . import style
from .conventions import coordinate, horizontal_dims

_Array = np.ndarray[Any, Any]
Rectangle = tuple[float, float, float, float]

# Inches.
_LEFT, _RIGHT, _HEAD, _TICKS, _BAR, _NAMES = 0.58, 0.2, 0.32, 0.27, 0.72, 0.24
_TALLEST = 6.0
_BAR_HEIGHT = 0.13


@dataclass(frozen=True)
class Panel:
    """A field on plain axes: values (y, x), the centres of its rows and columns, what lies outside its grid."""

    field: xr.DataArray
    values: _Array
    y: _Array
    x: _Array
    geographic: bool
    outside: _Array | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """West, east, south and north edge."""
        (west, east), (south, north) = _ends(self.x), _ends(self.y)
        return (west, east, max(south, -90.0), min(north, 90.0)) if self.geographic else (west, east, south, north)

    @property
    def shape(self) -> float:
        """Height over width of the map."""
        west, east, south, north = self.box
        return (north - south) * self.aspect / (east - west)

    @property
    def aspect(self) -> float:
        """Length of a degree north over that of a degree east, at the mean latitude; 1 without latitudes."""
        return 1 / max(np.cos(np.deg2rad(np.mean(self.box[2:]))), 0.2) if self.geographic else 1.0


def _ends(centres: _Array) -> tuple[float, float]:
    first, last = centres[0] - (centres[1] - centres[0]) / 2, centres[-1] + (centres[-1] - centres[-2]) / 2
    return float(min(first, last)), float(max(first, last))


def panel_of(name: str, field: xr.DataArray) -> Panel:
    """The field of a map, transposed to its plain axes; ValueError unless it has two dimensions."""
    dims = horizontal_dims(field)
    if field.ndim != 2 or min(field.shape) < 2:
        raise ValueError(
            f"a map needs two dimensions, got {dict(field.sizes)} for {name!r}: select or average the rest"
        )
    field = field.transpose(*dims)
    values = field.to_numpy().astype("f8")
    lat, lon = coordinate(field, "lat", "latitude"), coordinate(field, "lon", "longitude")
    if lat is None or lon is None:
        y, x = (np.asarray(field[d], dtype="f8") for d in dims)
        return Panel(field, values, y, x, geographic=False)
    if lat.ndim == lon.ndim == 1:
        east = np.unwrap(lon.to_numpy().astype("f8"), period=360)
        return Panel(field, values, lat.to_numpy().astype("f8"), east, geographic=True)
    both = (c.transpose(*dims).to_numpy().astype("f8") for c in xr.broadcast(lat, lon))
    values, y, x, outside = _rastered(values, *both)
    return Panel(field, values, y, x, geographic=True, outside=outside)


def _sphere(lat: _Array, lon: _Array) -> _Array:
    """Points on the unit sphere with shape (…, 3)."""
    north, east = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def _rastered(values: _Array, lat: _Array, lon: _Array) -> tuple[_Array, _Array, _Array, _Array]:
    """Values (y, x) of the nearest cell on a regular raster, its rows, its columns, and what lies outside."""
    known = np.isfinite(lat) & np.isfinite(lon)
    points = _sphere(lat, lon)
    # A cell reaches as far as its farther neighbour: beyond that the raster is outside the grid.
    to_north, to_east = (np.linalg.norm(np.diff(points, axis=a), axis=-1) for a in (0, 1))
    reach = np.maximum(np.pad(to_north, ((0, 1), (0, 0)), mode="edge"), np.pad(to_east, ((0, 0), (0, 1)), mode="edge"))
    start = _largest_gap(lon[known])
    east = start + (lon[known] - start) % 360
    rows, columns = (min(2 * n, limit) for n, limit in zip(values.shape, (720, 1440), strict=True))
    y, x = (np.linspace(c.min(), c.max(), n) for c, n in ((lat[known], rows), (east, columns)))
    distance, nearest = KDTree(points[known]).query(_sphere(*np.meshgrid(y, x, indexing="ij")))
    return values[known][nearest], y, x, distance > 0.75 * reach[known][nearest]


def _largest_gap(lon: _Array) -> float:
    """The longitude east of the widest gap between longitudes, where a map can begin without being cut."""
    turn = np.unique(lon % 360)
    return float(turn[(np.argmax(np.diff(turn, append=turn[0] + 360)) + 1) % turn.size])


@dataclass(frozen=True)
class Page:
    """Where everything goes: rectangles (left, bottom, width, height) in inches, and the height of all."""

    maps: list[Rectangle]
    bars: list[Rectangle]
    height: float


def place(panels: list[Panel], columns: int, *, own_bars: bool, outer: bool) -> Page:
    """Places of maps in `columns` and of their colour bars, `own_bars` for each or one for all.

    `outer` if only the outermost maps have tick labels. Maps are as wide as their column or `_TALLEST` high.
    """
    names = 0.0 if all(p.geographic for p in panels) else _NAMES
    gap = 0.2 if outer else _LEFT + names + 0.1
    width = (style.WIDTH - _LEFT - names - _RIGHT - gap * (columns - 1)) / columns
    sizes = [(min(width, _TALLEST / p.shape), min(width * p.shape, _TALLEST)) for p in panels]
    y, bar = 0.0, _BAR if own_bars else 0.0
    found: list[Rectangle] = []
    bars: list[Rectangle] = []
    for first in range(0, len(panels), columns):
        row = sizes[first : first + columns]
        inner = outer and first + columns + len(row) <= len(panels)
        foot = 0.08 if inner else _TICKS + names
        y += _HEAD + max(high for _, high in row)
        for column, (wide, high) in enumerate(row):
            x = _LEFT + names + column * (width + gap)
            found.append((x, y - max(h for _, h in row), wide, high))
            bars += [(x + 0.04 * wide, y + foot + 0.05, 0.92 * wide, _BAR_HEIGHT)] if own_bars else []
        y += foot + bar
    if not own_bars:
        span = max(x + wide for x, _, wide, _ in found) - found[0][0]
        bars = [(found[0][0] + 0.12 * span, y + 0.07, 0.76 * span, _BAR_HEIGHT)]
        y += _BAR
    # Measured from the top so far, from the bottom as matplotlib does from here on.
    turned = [[(x, y - top - high, wide, high) for x, top, wide, high in group] for group in (found, bars)]
    return Page(turned[0], turned[1], y)
