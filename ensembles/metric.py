"""Distances on any grid: between points, around the globe, and across the fold of a tripolar one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..emulators.grids import EARTH_RADIUS

__all__ = ["closes", "distance", "folds", "on_sphere"]

Array = NDArray[np.float64]


def distance(lat: Array, lon: Array, other_lat: Array, other_lon: Array, period: float = 360.0) -> Array:
    """Great-circle distance in m between points in degrees, of longitudes that repeat after `period` degrees."""
    apart = np.radians((other_lon - lon + period / 2) % period - period / 2)
    phi, other = np.radians(lat), np.radians(other_lat)
    h = np.sin((other - phi) / 2) ** 2 + np.cos(phi) * np.cos(other) * np.sin(apart / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.minimum(h, 1.0))))


def on_sphere(lat: Array, lon: Array) -> Array:
    """Positions in space, (*, 3), in m."""
    phi, lam = np.radians(lat), np.radians(lon)
    return EARTH_RADIUS * np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1)


def closes(lat: Array, lon: Array, period: float) -> bool:
    """Whether most rows are circles: from the last column to the first is a step like those before; (y, x)."""
    if lat.shape[1] < 3:
        return False
    steps = distance(lat[:, :-1], lon[:, :-1], lat[:, 1:], lon[:, 1:], period)
    last = distance(lat[:, -1], lon[:, -1], lat[:, 0], lon[:, 0], period)
    good = np.isfinite(steps).any(1) & np.isfinite(last)
    return bool(good.any()) and bool(np.median(last[good] < 1.5 * np.nanmean(steps[good], 1)) == 1)


def folds(lat: Array, lon: Array) -> bool:
    """Whether the last row is folded onto itself, its column i next to column -1 - i, as in tripolar grids; (y, x).

    Rows along a parallel are not, even the one next to the pole.
    """
    if min(lat.shape) < 2 or not np.isfinite(lat[-1]).any() or np.nanmax(lat[-1]) - np.nanmin(lat[-1]) < 1e-3:
        return False
    across = distance(lat[-1], lon[-1], lat[-1, ::-1], lon[-1, ::-1])
    step = distance(lat[-2], lon[-2], lat[-1], lon[-1])
    ratio = (across / step)[np.isfinite(across) & np.isfinite(step) & (step > 0)]
    return bool(len(ratio)) and bool(np.median(ratio) < 1.5)
