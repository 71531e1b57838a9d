"""Localisation: a taper of distance, distances on the sphere, and the observations near each column.

An observation at distance r acts on a column with R⁻¹ multiplied by ρ(r), the fifth-order compact
function of Gaspari and Cohn (1999, doi:10.1002/qj.49712555417, eq. 4.10) with z = r / half_width:

    ρ = 1 - 5/3 z² + 5/8 z³ + 1/2 z⁴ - 1/4 z⁵                            z <= 1
    ρ = 4 - 5 z + 5/3 z² + 5/8 z³ - 1/2 z⁴ + 1/12 z⁵ - 2/(3 z)      1 <= z <= 2

which is 5/24 at the half width and exactly 0 from `support = 2 half_width` on. Others call other lengths
"the radius": a Gaussian's standard deviation s corresponds to half_width = sqrt(10/3) s = 1.83 s.

Neighbours are found with a k-d tree of unit vectors, block of columns by block of columns: nothing of size
observations x columns ever exists. A sector that repeats in longitude (`period` < 360 degrees) has its
observations copied one period to the east and west.

Distance on the sphere does not see land: `BasinObservations` keeps apart what labels of basins keep apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

EARTH_RADIUS = 6.371e6  # m


def gaspari_cohn(distance: Tensor, *, half_width: float | Tensor | None = None, support: float | None = None) -> Tensor:
    """The taper of Gaspari and Cohn (1999).

    Args:
        distance: of any shape, >= 0, in any unit; infinite distances have weight 0.
        half_width: where the weight is 5/24, in the unit of `distance`; differentiable if a tensor.
        support: from where on the weight is 0; twice the half width. Give one of the two.

    Returns weights in [0, 1], of the shape of `distance`. Raises ValueError unless one length > 0 is given.
    """
    if (half_width is None) == (support is None):
        raise ValueError(f"give either half_width or support = 2 half_width, got {half_width} and {support}")
    length = half_width if half_width is not None else support / 2  # type: ignore[operator]
    if not length > 0:
        raise ValueError(f"a taper needs a length > 0, got half_width={half_width}, support={support}")
    z = (distance / length).clamp(max=2.0)
    near = 1 + z**2 * (-5 / 3 + z * (5 / 8 + z * (1 / 2 - z / 4)))
    f = z.clamp(min=1.0)  # keeps 2/(3z), which is not used below one, from its pole
    far = 4 + f * (-5 + f * (5 / 3 + f * (5 / 8 + f * (-1 / 2 + f / 12)))) - 2 / (3 * f)
    return torch.where(z <= 1, near, far).clamp(min=0.0)


def unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Points on the unit sphere, (point, 3), from degrees."""
    y, x = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], -1)


def great_circle(
    lat1: np.ndarray, lon1: np.ndarray, lat2: np.ndarray, lon2: np.ndarray, period: float = 360.0
) -> np.ndarray:
    """Distance on the sphere (m) between points in degrees, which broadcast; haversine formula.

    In a sector that repeats every `period` degrees of longitude it is the distance to the nearer copy.
    """
    y1, y2 = np.radians(lat1), np.radians(lat2)
    apart = np.radians((lon2 - lon1 + period / 2) % period - period / 2)
    h = np.sin((y2 - y1) / 2) ** 2 + np.cos(y1) * np.cos(y2) * np.sin(apart / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0))))


_FEW = 512  # observations of a column


@dataclass(frozen=True, eq=False)
class LocalObservations:
    """Which observations are near a column.

    Attributes:
        lat: of the observations, degrees (observation,).
        lon: of the observations, degrees (observation,).
        support: how near, m.
        most: at most so many, the nearest, for one column.
        period: degrees of longitude after which the domain repeats.
    """

    lat: np.ndarray
    lon: np.ndarray
    support: float
    most: int
    period: float = 360.0

    @cached_property
    def _copies(self) -> tuple[np.ndarray, np.ndarray]:
        """Observation numbers and longitudes, with the copies that a column within the sector can see."""
        number, lon = np.arange(len(self.lon)), self.lon % self.period
        if self.period >= 360:
            return number, lon
        beyond = np.where(lon < self.period / 2, lon + self.period, lon - self.period)
        return np.tile(number, 2), np.concatenate([lon, beyond])

    @cached_property
    def _tree(self) -> cKDTree:
        number, lon = self._copies
        return cKDTree(unit_vectors(self.lat[number], lon), leafsize=32)

    @cached_property
    def _can_be_seen_twice(self) -> bool:
        """Whether one support can hold an observation and its copy."""
        apart = 2 * EARTH_RADIUS * np.cos(np.radians(self.lat)) * abs(np.sin(np.radians(self.period / 2)))
        return self.period < 360 and bool((apart <= 2 * self.support).any())

    def near(self, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The observations near each of some columns, nearest first.

        Args:
            lat: of the columns, degrees (column,).
            lon: of the columns, degrees (column,).

        Returns observation numbers and distances (m), both (column, near), where `near` is the longest
        list among these columns; shorter ones are padded with number 0 at infinite distance.
        """
        number, lon_of = self._copies
        here, lon = unit_vectors(lat, lon % self.period), lon % self.period
        chord = 2 * np.sin(min(self.support / (2 * EARTH_RADIUS), np.pi / 2)) * (1 + 1e-12)
        k = min(self.most * (2 if self._can_be_seen_twice else 1), len(number))
        if k > _FEW:  # counting costs a third of a query, room for many that are not there more than that
            k = min(k, int(self._tree.query_ball_point(here, chord, return_length=True).max(initial=0)))
        if k == 0 or len(lat) == 0:
            return np.zeros((len(lat), 0), np.int64), np.zeros((len(lat), 0))
        length, found = self._tree.query(here, k=np.arange(1, k + 1), distance_upper_bound=np.nextafter(chord, 3))
        longest = int((found != len(number)).sum(1).max())
        length, found = length[:, :longest], found[:, :longest]
        missing = found == len(number)
        found = np.where(missing, 0, found)
        distance = 2 * EARTH_RADIUS * np.arcsin(np.clip(length / 2, 0.0, 1.0))
        distance[missing] = np.inf
        index = number[found]
        return self._nearer_copies(index, distance, lon_of[found] - lon[:, None])

    def _nearer_copies(
        self, index: np.ndarray, distance: np.ndarray, east: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of an observation that was found twice, only the copy within half a period."""
        if not self._can_be_seen_twice:
            return index, distance
        distance = np.where((east >= -self.period / 2) & (east < self.period / 2), distance, np.inf)
        order = np.argsort(distance, axis=1, kind="stable")[:, : self.most]
        return np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1)


@dataclass(frozen=True, eq=False)
class BasinObservations:
    """Which observations are near a column and in its basin: `LocalObservations` for each label.

    Attributes:
        lat, lon: of the observations, degrees (observation,).
        basin: their labels, (observation,) integers; 0 is near columns of any label.
        support, most, period: as in `LocalObservations`; `most` counts those of the basin only.
    """

    lat: np.ndarray
    lon: np.ndarray
    basin: np.ndarray
    support: float
    most: int
    period: float = 360.0
    _of: dict[int, tuple[np.ndarray, LocalObservations]] = field(default_factory=dict, init=False, repr=False)

    def near(self, lat: np.ndarray, lon: np.ndarray, basin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The observations near each of some columns, nearest first.

        Args:
            lat, lon: of the columns, degrees (column,).
            basin: their labels, (column,) integers; a column of label 0 sees the observations of all.

        Returns observation numbers and distances (m), both (column, near), padded as by `LocalObservations.near`.
        """
        labels = np.unique(basin)
        parts = [(basin == label, *self._near_in(int(label), lat, lon, basin == label)) for label in labels]
        longest = max((distance.shape[1] for _, _, distance in parts), default=0)
        index, away = np.zeros((len(lat), longest), np.int64), np.full((len(lat), longest), np.inf)
        for here, number, distance in parts:
            index[here, : distance.shape[1]], away[here, : distance.shape[1]] = number, distance
        return index, away

    def _near_in(self, label: int, lat: np.ndarray, lon: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if label not in self._of:
            seen = (self.basin == label) | (self.basin == 0) | (label == 0)
            rows = np.flatnonzero(seen)
            local = LocalObservations(self.lat[rows], self.lon[rows], self.support, self.most, self.period)
            self._of[label] = rows, local
        rows, local = self._of[label]
        if not len(rows):
            return np.zeros((int(here.sum()), 0), np.int64), np.zeros((int(here.sum()), 0))
        index, distance = local.near(lat[here], lon[here])
        return rows[index], distance


def connected_basins(wet: np.ndarray, *, periodic: bool = False) -> np.ndarray:
    """Labels of the parts of an ocean that are connected through the sides of cells.

    Args:
        wet: (y, x) bool.
        periodic: whether the last column is beside the first.

    Returns (y, x) integers from 1, in order of their first cell; 0 on land.
    """
    labels, number = ndimage.label(wet)
    if periodic and number:
        seam = wet[:, 0] & wet[:, -1]
        a, b = labels[seam, 0] - 1, labels[seam, -1] - 1
        joined = coo_array((np.ones(len(a)), (a, b)), shape=(number, number))
        _, component = connected_components(joined, directed=False)
        labels = np.append(0, component + 1)[labels]
    return np.asarray(labels, dtype=np.int64)
