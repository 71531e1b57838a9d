"""From a regular map of latitudes and longitudes to the cells of any grid: nearest neighbour, and bilinear.

The published forcing of the sea-ice emulators is that of the nearest neighbour on the stereographic plane (Finn et al.
2025, arXiv:2508.14984).  What is found here are positions and weights, once; a field is then a sum over them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from .ice_forcing import polar_stereographic

__all__ = ["METHODS", "Weights", "bilinear", "covered", "nearest"]

_Array = NDArray[Any]
_EDGE = 0.505  # of a step: how far beyond the outermost point of a map its cells reach
_POLE = 90 - 1e-6


@dataclass(frozen=True, eq=False)
class Weights:
    """Which points of a map make the value of a cell.

    Attributes:
        rows, columns: the part of the map that is needed.
        index: positions in that part, flattened (corner, cell).
        weight: of these points, without unit, adding up to 1 (corner, cell).
    """

    rows: slice
    columns: slice
    index: _Array
    weight: _Array

    def __call__(self, maps: _Array) -> _Array:
        """Values (..., cell) of maps (..., lat, lon) cut to `rows` and `columns`; in float64 if several points mix."""
        flat = maps.reshape(*maps.shape[:-2], -1)
        if len(self.index) == 1:
            return flat[..., self.index[0]]
        total = np.zeros((*maps.shape[:-2], self.index.shape[1]))
        for index, weight in zip(self.index, self.weight, strict=True):
            total += weight * flat[..., index]
        return total


def nearest(lat: _Array, lon: _Array, to_lat: _Array, to_lon: _Array) -> Weights:
    """The nearest point of a map to each cell, on the stereographic plane of `polar_stereographic`.

    Args:
        lat, lon: degrees, of the map's rows and columns (lat), (lon), in any order and convention.
        to_lat, to_lon: degrees, of the cells (cell).

    At a pole, where all longitudes are one point, it is the column nearest in longitude, for the components of a wind
    are those of its own meridian.
    """
    southern = np.flatnonzero(lat >= to_lat.min() - 2 * _widest(lat))  # what is far off only slows the search
    points = _plane(*(c.ravel() for c in np.meshgrid(lat[southern], lon, indexing="ij")))
    found = KDTree(points).query(_plane(to_lat, to_lon))[1]
    row, column = southern[found // len(lon)], found % len(lon)
    at_pole = np.flatnonzero(np.abs(lat[row]) > _POLE)
    column[at_pole] = np.abs(_turn(lon[:, None] - to_lon[at_pole])).argmin(0)
    return _cut(row[None], column[None], np.ones((1, len(row))))


def bilinear(lat: _Array, lon: _Array, to_lat: _Array, to_lon: _Array) -> Weights:
    """The four points of a map around each cell, weighted linearly in latitude and longitude; arguments as `nearest`.

    Beyond the outermost row or column the map goes on as it ends there.
    """
    (south, north), up = _around(np.sort(lat), to_lat)
    rows = np.argsort(lat)[[south, south, north, north]]
    east, columns = np.unique(lon % 360, return_index=True)
    west_of = np.searchsorted(east, to_lon % 360, side="right") - 1
    west, beyond = west_of % len(east), (west_of + 1) % len(east)
    width = (east[beyond] - east[west]) % 360
    along = np.clip(((to_lon - east[west]) % 360) / np.where(width > 0, width, 360), 0, 1)
    nearer_east = np.abs(_turn(to_lon - east[beyond])) < np.abs(_turn(to_lon - east[west]))
    hole = width > 1.5 * np.median(_steps(east))  # beyond the edge of a map that is not global
    along = np.where(hole, nearer_east.astype(float), along)
    weight = np.stack([(1 - up) * (1 - along), (1 - up) * along, up * (1 - along), up * along])
    column = columns[np.stack([west, beyond, west, beyond])]
    # A point without weight may lie where there are no data, and 0 NaN is NaN.
    best, cells = weight.argmax(0), np.arange(len(to_lat))
    rows = np.where(weight > 0, rows, rows[best, cells])
    return _cut(rows, np.where(weight > 0, column, column[best, cells]), weight)


METHODS: dict[str, Callable[[_Array, _Array, _Array, _Array], Weights]] = {"nearest": nearest, "bilinear": bilinear}


def covered(lat: _Array, lon: _Array, to_lat: _Array, to_lon: _Array) -> _Array:
    """Whether cells lie in a map, bool (cell); arguments as `nearest`.

    A map reaches half a step beyond its outermost points, and to the pole if that is less than a step off.
    """
    step = _widest(lat)
    south, north = (edge - sign * _EDGE * step for edge, sign in ((lat.min(), 1), (lat.max(), -1)))
    south, north = (-90.0 if lat.min() - step <= -90 else south), (90.0 if lat.max() + step >= 90 else north)
    east = np.unique(lon % 360)
    reach = _EDGE * float(np.median(_steps(east)))
    after = np.searchsorted(east, to_lon % 360) % len(east)
    off = np.minimum(*(np.abs(_turn(to_lon - east[k])) for k in (after, after - 1)))
    return np.asarray((to_lat >= south) & (to_lat <= north) & (off <= reach))


def _around(points: _Array, wanted: _Array) -> tuple[_Array, _Array]:
    """The neighbours (2, cell) of values among ascending points, and the weight of the upper one (cell)."""
    low = np.clip(np.searchsorted(points, wanted, side="right") - 1, 0, len(points) - 2)
    up = (wanted - points[low]) / (points[low + 1] - points[low])
    return np.stack([low, low + 1]), np.clip(up, 0, 1)


def _cut(row: _Array, column: _Array, weight: _Array) -> Weights:
    rows, columns = (slice(int(k.min()), int(k.max()) + 1) for k in (row, column))
    index = (row - rows.start) * (columns.stop - columns.start) + column - columns.start
    return Weights(rows, columns, index, weight)


def _plane(lat: _Array, lon: _Array) -> _Array:
    return polar_stereographic(torch.from_numpy(lat), torch.from_numpy(lon)).numpy().T


def _turn(degrees: _Array) -> _Array:
    """Differences of longitude in [-180, 180)."""
    return np.asarray((degrees + 180) % 360 - 180)


def _steps(east: _Array) -> _Array:
    """From each of ascending longitudes in [0, 360) to the next, around the globe."""
    return np.asarray(np.diff(east, append=east[0] + 360))


def _widest(lat: _Array) -> float:
    return float(np.diff(np.sort(lat)).max())
