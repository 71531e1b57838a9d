"""Checks of observations against those near them: buddies, duplicates, more than a grid can use.

Near is within an ellipsoid, (r/radius)² + (z/height)² + (t/seconds)² <= 1, of distances r on the sphere, z in depth and
t in time, and of the same variable. Neighbours are found with k-d trees, for blocks of observations: nothing of
size observations x observations exists, and no Python runs for each. All checks take observations in an order of their
own, so that what they reject does not depend on the one they came in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..emulators import Draws, Layout, State
from .localise import EARTH_RADIUS, gaspari_cohn, unit_vectors
from .observations import Observations
from .operators import operator_for
from .verification import innovation, order_of

BLOCK = 65536  # observations whose neighbours are looked at together


@dataclass(frozen=True)
class Buddy:
    """Rejects an observation that contradicts those around it, where these agree among themselves.

    With s the spread, r the error and c the correlation of background errors of two observations, the departures of
    i and j near it differ with variance v_ij + r_i², v_ij = s_i² + s_j² - 2 s_i s_j c_ij + r_j². Departure d_i is
    compared with the mean m_i = Σ w_j d_j of those around, w_j ~ c_ij / v_ij, of which close and accurate ones count
    most. As background errors of two others correlate with 1 at most, the variance of d_i - m_i is at most

        σ_i² = r_i² + Σ w_j² r_j² + (s_i - s̄)² + 2 s_i s̄ (1 - c̄),    s̄ = Σ w_j s_j,  s̄ c̄ = Σ w_j s_j c_ij

    An observation is suspect if |d_i - m_i| > threshold σ_i, and if no more than a quorum of those around, weighted
    with c_ij / (s_j² + r_j²), agrees with it in pairs, |d_i - d_j| <= threshold/2 sqrt(v_ij + r_i²): a sharp front
    that many see is none of their errors. Of suspects near each other the worst goes, and the others are looked at
    again without it.

    Attributes:
        radius: where the correlation of background errors has fallen to 0, m: the support of a Gaspari-Cohn taper.
        height: likewise in depth, m.
        threshold: in standard deviations, of which σ is an upper bound.
        quorum: fraction of the weight around an observation whose agreement saves it.
        most: at most so many, the nearest, are asked.
        least: fewer than so many neighbours cannot tell who is wrong.

    Sources: Lorenc and Hammon (1988, Q. J. R. Meteorol. Soc. 114, 515-543), for pairs; Dee et al. (2001),
    doi:10.1002/qj.49712757714, for the iteration with local statistics; Ingleby and Huddleston (2007),
    doi:10.1016/j.jmarsys.2005.11.019, for the ocean.
    """

    radius: float
    height: float = 100.0
    threshold: float = 3.0
    quorum: float = 0.25
    most: int = 16
    least: int = 2

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.height > 0 and self.threshold > 0) or not 0 <= self.quorum < 1:
            raise ValueError(f"Buddy: wanted radius, height and threshold > 0 and 0 <= quorum < 1, got {self}")
        if not self.most >= self.least >= 2:
            raise ValueError(f"Buddy: wanted most >= least >= 2 neighbours, got {self.most} and {self.least}")

    @property
    def reasons(self) -> tuple[str, ...]:
        """One."""
        return ("contradicted by neighbours",)

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """Which their neighbours contradict, (observation,) bool."""
        order, out = order_of(observations), np.zeros(len(observations), bool)
        seen = innovation(forecast, observations)
        columns = seen.departure, seen.spread, observations.error
        d, s, r = (a[order] for a in columns)
        o = observations.select(order)
        for rows in _of_each_variable(o):
            near, c = self._neighbours(forecast.layout, o.select(rows))
            out[order[rows]] = self.outvoted(d[rows], s[rows], r[rows], near, c)
        return out

    def _neighbours(self, layout: Layout, o: Observations) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of neighbours and correlations, both (observation, most); 0 for the correlation of none."""
        here, number, there = _points(layout, o, (self.radius, self.height))
        tree = cKDTree(there)
        k = min(self.most + 1, len(number))
        near, c = np.zeros((len(o), k), np.int32), np.zeros((len(o), k), np.float32)
        for part in _blocks(len(o)):
            away, found = tree.query(here[part], k=np.arange(1, k + 1), distance_upper_bound=1.0)
            near[part] = number[np.where(np.isfinite(away), found, 0)]
            c[part] = gaspari_cohn(torch.from_numpy(away), support=1.0).numpy()
            c[part][near[part] == np.arange(len(o))[part, None]] = 0.0  # itself
        return near, c

    def outvoted(self, d: np.ndarray, s: np.ndarray, r: np.ndarray, near: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Which of some departures their neighbours contradict, (observation,) bool.

        Args:
            d, s, r: departures, spreads and errors, (observation,).
            near: numbers of neighbours, (observation, near).
            c: correlation with their background errors, (observation, near); 0 for no neighbour.
        """
        gone, worse = np.zeros(len(d), bool), np.zeros(len(d))
        again = np.arange(len(d))
        while len(again):
            for part in _blocks(len(again)):
                rows = again[part]
                worse[rows] = self._misfit(rows, d, s, r, near[rows], np.where(gone[near[rows]], 0.0, c[rows]))
            suspects = np.flatnonzero(worse)
            around = np.where(c[suspects] > 0, worse[near[suspects]], 0.0)
            first_equal = np.where(around == worse[suspects, None], near[suspects], len(d)).min(1)
            top = around.max(1)
            worst = suspects[(worse[suspects] > top) | ((worse[suspects] == top) & (suspects < first_equal))]
            gone[worst], worse[worst] = True, 0.0
            just = np.zeros(len(d), bool)
            just[worst] = True
            again = np.flatnonzero(just[near].any(1) & ~gone)
        return gone

    def _misfit(
        self, rows: np.ndarray, d: np.ndarray, s: np.ndarray, r: np.ndarray, near: np.ndarray, c: np.ndarray
    ) -> np.ndarray:
        """|d_i - m_i| / σ_i of suspects, 0 for others, (row,)."""
        d_j, s_j, r_j = d[near], s[near], r[near]
        d_i, s_i, r_i = (a[rows, None] for a in (d, s, r))
        v = (s_i - s_j) ** 2 + 2 * s_i * s_j * (1 - c) + r_j**2
        w, votes = _shares(c / v), _shares(c / (s_j**2 + r_j**2))
        mean_s, with_it = (w * s_j).sum(1), (w * s_j * c).sum(1)
        s_1 = s_i[:, 0]
        variance = r_i[:, 0] ** 2 + (w**2 * r_j**2).sum(1) + (s_1 - mean_s) ** 2 + 2 * s_1 * (mean_s - with_it)
        misfit = np.abs(d_i[:, 0] - (w * d_j).sum(1)) / np.sqrt(variance)
        agrees = (votes * (np.abs(d_i - d_j) <= self.threshold / 2 * np.sqrt(v + r_i**2))).sum(1)
        judged = (c > 0).sum(1) >= self.least
        return np.asarray(np.where(judged & (misfit > self.threshold) & (agrees <= self.quorum), misfit, 0.0))


def _shares(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1.0))


@dataclass(frozen=True)
class Duplicates:
    """Of observations of one variable that are next to each other keeps the one with the smallest error.

    An observation goes if a better one is near it, whether or not that goes because of a third.

    Attributes:
        distance: how near, m.
        height: how near in depth, m.
        seconds: how near in time, s.
    """

    distance: float = 1000.0
    height: float = 1.0
    seconds: float = 3600.0

    def __post_init__(self) -> None:
        if not (self.distance > 0 and self.height > 0 and self.seconds > 0):
            raise ValueError(f"Duplicates: wanted distance, height and seconds > 0, got {self}")

    @property
    def reasons(self) -> tuple[str, ...]:
        """One."""
        return ("duplicate",)

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """Which have a better one near them, (observation,) bool; of the forecast only the period counts."""
        order = order_of(observations)
        order = order[np.argsort(observations.error[order], kind="stable")]  # the best first
        o, out = observations.select(order), np.zeros(len(observations), bool)
        scales = (self.distance, self.height, self.seconds)
        for rows in _of_each_variable(o):
            here, number, there = _points(forecast.layout, o.select(rows), scales)
            out[order[rows]] = _has_lower(cKDTree(there), number, here)
        return out


def _has_lower(tree: cKDTree, number: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Whether a point of lower number is within 1 of each, (point,) bool."""
    out, open_, k = np.zeros(len(here), bool), np.arange(len(here)), 4
    while len(open_):
        k = min(2 * k, len(number))
        undecided = []
        for part in _blocks(len(open_), -(-k // 8)):
            rows = open_[part]
            away, found = tree.query(here[rows], k=np.arange(1, k + 1), distance_upper_bound=1.0 + 1e-9)
            there = np.isfinite(away)
            lower = number[np.where(there, found, 0)]
            out[rows] = (there & (lower < rows[:, None])).any(1)
            undecided.append(rows[~out[rows] & there[:, -1]])
        open_ = np.concatenate(undecided) if k < len(number) else open_[:0]
    return out


@dataclass(frozen=True)
class Thin:
    """Keeps one observation of each variable and kind in a box: the nearest to its centre, or a random one.

    Attributes:
        size: of a box in degrees, one number or (latitude, longitude), counted from the south pole and 0 E; None for
            the cells and levels of the state, of which it keeps the observation with most weight.
        depth: thickness of boxes, m; None for only what is at one depth. Cells have their levels.
        noise: of the random choice; None for the nearest.

    Averages, which lose less, are made by `superobbed`.
    """

    size: float | tuple[float, float] | None = None
    depth: float | None = None
    noise: Draws | None = None

    def __post_init__(self) -> None:
        if not (np.asarray(1.0 if self.size is None else self.size) > 0).all() or not (self.depth or 1.0) > 0:
            raise ValueError(f"Thin: wanted a size > 0 degrees and a depth > 0 m, got {self}")

    @property
    def reasons(self) -> tuple[str, ...]:
        """One."""
        return ("thinned",)

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """All but one of each box, (observation,) bool."""
        order = order_of(observations)
        o = observations.select(order)
        box, away = self._in_cells(forecast.layout, o) if self.size is None else self._in_boxes(o)
        if self.noise is not None:
            drawn = self.noise.stream("thin").normal((0,), o.time, (len(o),), dtype=torch.float64)
            away = drawn[0].cpu().numpy()
        labels = [np.unique(a, return_inverse=True)[1] for a in (o.variable, o.kind)]
        keys = np.stack([*labels, *box])
        ranked = np.lexsort((away, *keys))
        first = np.ones(len(o), bool)
        first[1:] = (np.diff(keys[:, ranked], axis=1) != 0).any(0)
        out = np.ones(len(o), bool)
        out[order[ranked[first]]] = False
        return out

    def _in_boxes(self, o: Observations) -> tuple[list[np.ndarray], np.ndarray]:
        """Numbers that say which box, and the squared distance from its centre in boxes, (observation,)."""
        assert self.size is not None
        south, east = np.broadcast_to(np.asarray(self.size, float), (2,))
        places = [(o.lat + 90) / south, o.lon % 360.0 / east]
        if self.depth is not None:
            places.append(o.depth / self.depth)
        box = [np.floor(p).astype(np.int64) for p in places]
        away = sum((p - b - 0.5) ** 2 for p, b in zip(places, box, strict=True))
        box = box if self.depth is not None else [*box, np.unique(o.depth, return_inverse=True)[1]]
        return box, np.asarray(away)

    @staticmethod
    def _in_cells(layout: Layout, o: Observations) -> tuple[list[np.ndarray], np.ndarray]:
        operator = operator_for(layout, o)
        weight, heaviest = operator.weight.max(0)
        return [operator.index.gather(0, heaviest[None])[0].numpy()], -weight.numpy()


def _of_each_variable(o: Observations) -> list[np.ndarray]:
    return [np.flatnonzero(o.variable == name) for name in np.unique(o.variable)]


def _blocks(size: int, per: int = 1) -> list[slice]:
    """Slices of some thousand observations, fewer if each takes `per` times as much."""
    step = max(BLOCK // per, 1)
    return [slice(i, i + step) for i in range(0, size, step)]


def _points(layout: Layout, o: Observations, scales: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points whose distance is that of the ellipsoid, the numbers of observations that can be near them, and theirs.

    In a sector that repeats every observation is there three times, once a period to either side.
    """
    period, number = float(layout.grid.attrs.get("zonal_period", 360.0)), np.arange(len(o))
    rest = [a / scale for a, scale in zip((o.depth, o.offset), scales[1:], strict=False)]

    def at(lon: np.ndarray) -> np.ndarray:
        return np.column_stack([unit_vectors(o.lat, lon) * (EARTH_RADIUS / scales[0]), *rest])

    here = at(o.lon % period)
    if period >= 360:
        return here, number, here
    return here, np.tile(number, 3), np.concatenate([here, at(o.lon % period - period), at(o.lon % period + period)])
