"""Cells between four nodes of a grid, each laid flat: where its corners are, and how velocities turn into its plane.

Nodes are unit vectors n in space. The plane of a cell touches the sphere at its centre c = sum n / |sum n|; its corner
k has the coordinates R n_k . e_1 and R n_k . e_2, and a velocity w_k the components w_k . e_1, w_k . e_2. The axes e_1,
e_2 of all cells are those of one point p, the middle of the grid, carried along great circles,

    e(c) = e - (e . c) / (1 + p . c) (p + c),

which are the directions of x and y in the stereographic (conformal) projection on p: they vary slowly, so tensors of
neighbouring cells can be averaged component by component, save near the antipode of p.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .conventions import EARTH_RADIUS

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cells:
    """Corners `x`, `y` (corner, J, I) in m around each cell; `turn` (corner, to, from, J, I) of velocities, or None.

    `area` (m2), `lat` and `lon` (degrees) of the centres are (J, I), NaN in a plane.
    """

    x: _Array
    y: _Array
    turn: _Array | None
    area: _Array
    lat: _Array
    lon: _Array

    def turned(self, u: _Array, v: _Array) -> tuple[_Array, _Array]:
        """Components (corner, J, I) along the axes of the cell of velocities along the axes of the grid."""
        if self.turn is None:
            return u, v
        along, across = (self.turn[:, to, 0] * u + self.turn[:, to, 1] * v for to in (0, 1))
        return along, across


def plane_cells(spacing: tuple[float, float]) -> Cells:
    """The one cell, of shape (1, 1), of an even grid with `spacing` (dy, dx) in m."""
    dy, dx = spacing
    x = np.array([0, dx, dx, 0])[:, None, None] - dx / 2
    y = np.array([0, 0, dy, dy])[:, None, None] - dy / 2
    nowhere = np.full((1, 1), np.nan)
    return Cells(x=x, y=y, turn=None, area=np.full((1, 1), dx * dy), lat=nowhere, lon=nowhere)


def _unit(vectors: _Array) -> _Array:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length == 0, np.nan, length))


def _nodes(lat: _Array, lon: _Array) -> _Array:
    north, east = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def _east_north(lat: _Array, lon: _Array) -> tuple[_Array, _Array]:
    """Unit vectors (y, x, 3) to the east and to the north."""
    north, east = np.deg2rad(lat), np.deg2rad(lon)
    zero = np.zeros_like(east)
    up = [-np.sin(north) * np.cos(east), -np.sin(north) * np.sin(east), np.cos(north)]
    return np.stack([-np.sin(east), np.cos(east), zero], axis=-1), np.stack(up, axis=-1)


def _along_grid(nodes: _Array) -> tuple[_Array, _Array]:
    """Unit vectors (y, x, 3), tangent at the nodes, in the direction of rising x and of rising y."""
    ahead = [np.gradient(nodes, axis=axis) for axis in (1, 0)]
    level = [d - (d * nodes).sum(-1, keepdims=True) * nodes for d in ahead]
    return _unit(level[0]), _unit(level[1])


def _middle(nodes: _Array) -> _Array:
    """The mean direction of the nodes, or the north pole where these surround the Earth."""
    mean = np.nanmean(nodes.reshape(-1, 3), axis=0)
    length = float(np.linalg.norm(mean))
    return np.asarray(mean / length) if length > 1e-3 else np.array([0.0, 0.0, 1.0])


def _carried(e: _Array, p: _Array, c: _Array) -> _Array:
    """The tangent vector e (3) of p (3) carried along great circles to the points c (…, 3)."""
    share = (c @ e) / np.maximum(1 + c @ p, 1e-12)
    return np.asarray(e - share[..., None] * (p + c))


def _axes_at(c: _Array, p: _Array) -> tuple[_Array, _Array]:
    """Tangent axes (…, 3), right-handed seen from above, at the points c (…, 3)."""
    least = np.eye(3)[int(np.argmin(np.abs(p)))]
    first = np.cross(least, p)
    first /= np.linalg.norm(first)
    return _carried(first, p, c), _carried(np.cross(p, first), p, c)


def _around(field: _Array) -> _Array:
    """Values (y, x, 3) at the corners of each cell: (corner, J, I, 3)."""
    return np.stack([field[:-1, :-1], field[:-1, 1:], field[1:, 1:], field[1:, :-1]])


def sphere_cells(lat: _Array, lon: _Array, *, geographic: bool) -> Cells:
    """The cells between nodes at `lat`, `lon` (y, x) in degrees; velocities are east and north, or along the grid.

    Those of the last grid are kept, because every chunk of a lazy field asks for the same: do not change them.
    """
    return _sphere_cells(lat.astype("f8").tobytes(), lon.astype("f8").tobytes(), lat.shape, geographic)


@lru_cache(maxsize=2)  # the areas of a grid are asked for with one kind of axes, its gradients perhaps with the other
def _sphere_cells(lat_bytes: bytes, lon_bytes: bytes, shape: tuple[int, ...], geographic: bool) -> Cells:
    lat, lon = (np.frombuffer(values, "f8").reshape(shape) for values in (lat_bytes, lon_bytes))
    nodes = _nodes(lat, lon)
    first, second = _east_north(lat, lon) if geographic else _along_grid(nodes)
    at = _around(nodes)
    centre = _unit(at.sum(0))
    e1, e2 = _axes_at(centre, _middle(nodes))
    x, y = ((at * e).sum(-1) * EARTH_RADIUS for e in (e1, e2))
    turn = np.stack([np.stack([(_around(w) * e).sum(-1) for w in (first, second)], axis=1) for e in (e1, e2)], axis=1)
    area = np.abs((x * np.roll(y, -1, axis=0) - np.roll(x, -1, axis=0) * y).sum(0)) / 2
    north, east = np.arcsin(np.clip(centre[..., 2], -1, 1)), np.arctan2(centre[..., 1], centre[..., 0])
    return Cells(x=x, y=y, turn=turn, area=area, lat=np.rad2deg(north), lon=np.rad2deg(east))


def sphere_steps(lat: _Array, lon: _Array, *, geographic: bool) -> tuple[_Array, _Array]:
    """Distances dy, dx (y, x) in m from the node before, along great circles; the first are those of the second.

    dy is negative where rows run southwards and the second component of velocities points north (`geographic`).
    """
    nodes = _nodes(lat, lon)
    steps = []
    for axis in (0, 1):
        chord = np.linalg.norm(np.diff(nodes, axis=axis), axis=-1)
        step = 2 * EARTH_RADIUS * np.arcsin(np.clip(chord / 2, 0, 1))
        pad = [(1, 0) if a == axis else (0, 0) for a in (0, 1)]
        steps.append(np.pad(step, pad, mode="edge"))
    dy, dx = steps
    return (-dy if geographic and lat[-1, 0] < lat[0, 0] else dy), dx
