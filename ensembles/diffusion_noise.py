"""Noise that is correlated along the water: white noise through an implicit diffusion operator.

Diffusing white noise W implicitly, m times over, on a grid of cell areas S and with no flux through coasts,

    u = [(S + l² K)^-1 S]^m S^-1/2 W,        K = the five-point flux form of -∇², between wet cells only,

gives a field with the Matérn correlation of smoothness ν = 2m - 1 where the ocean is open,

    c(r) = 2^(1-ν) / Γ(ν) (r/l)^ν K_ν(r/l),        1 - r²/2D² near r = 0 with D = sqrt(4m - 4) l,

and one that goes around land, not across it, where it is not (Weaver and Courtier 2001, Q. J.
R. Meteorol. Soc. 127; Weaver and Mirouze 2013, Q. J. R. Meteorol. Soc. 139; Lindgren, Rue and Lindström 2011, J. R.
Stat. Soc. B 73).  Fluxes need distances between neighbours and nothing else,
so any grid will do.  The variance that coasts raise is divided out cell by cell.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cftime
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from ..emulators import Draws, Layout
from .metric import closes, distance, folds, on_sphere
from .perturb import vertical_weights

__all__ = ["Diffused", "Diffusion", "diffusion"]

Array = NDArray[np.float64]

_EXACT = 8000  # wet cells up to which the variance of each is computed with all the others
_COLUMNS = 64  # right-hand sides solved at once when preparing


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A factorised diffusion operator on the wet cells of one level.

    Attributes:
        wet: (y, x) bool.
        area: of the wet cells relative to their mean, (cell,).
        factor: of S + l² K.
        solves: m.
        deviation: standard deviation of u before it is divided out, (cell,).
    """

    wet: NDArray[np.bool_]
    area: Array
    factor: Any = field(repr=False)
    solves: int
    deviation: Array = field(repr=False)

    def sample(self, white: Array) -> Array:
        """White noise (y, x) to noise of unit variance, (y, x), 0 on land."""
        u = self.factor.solve(np.sqrt(self.area) * white[self.wet])
        for _ in range(self.solves - 1):
            u = self.factor.solve(self.area * u)
        out = np.zeros(self.wet.shape)
        out[self.wet] = u / self.deviation
        return out


def diffusion(
    lat: Array,
    lon: Array,
    wet: NDArray[np.bool_],
    length: float,
    *,
    solves: int = 2,
    period: float = 360.0,
    exact: int = _EXACT,
) -> Diffusion:
    """Prepare the operator: assemble, factorise, and find the variance of every wet cell.

    Args:
        lat: degrees, (y, x); NaN is allowed on land.
        lon: degrees, (y, x).
        wet: (y, x).
        length: D in m, of the correlation's curvature at 0.
        solves: m, at least 2.
        period: of longitude, in degrees. The first column follows the last, and the last row its own other half (as
            in tripolar grids), where their distances say so.
        exact: number of wet cells up to which variances are exact. Beyond, unit impulses at least (8 + 2m) l apart
            share a solve and each is credited with what is nearest to it, an error of some tenths of a percent.

    Raises ValueError for neighbours in one place, no wet cell, a length that is not positive, or fewer than two solves.
    """
    if length <= 0 or solves < 2:
        raise ValueError(f"diffusion needs length > 0 m and at least 2 solves, got {length} and {solves}")
    if not wet.any():
        raise ValueError("diffusion needs at least one wet cell, and the mask has none")
    scale = length / math.sqrt(4 * solves - 4)
    area, ends, conductance = metric(lat, lon, wet, period)
    mean = area.mean()
    a, b, c = *ends, conductance * (scale**2 / mean)
    size = len(area)
    rows, columns = np.concatenate([a, b, a, b]), np.concatenate([b, a, a, b])
    fluxes = sparse.coo_matrix((np.concatenate([-c, -c, c, c]), (rows, columns)), (size, size))
    matrix = (fluxes + sparse.diags(area / mean)).tocsc()
    factor = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    operator = Diffusion(wet, area / mean, factor, solves, np.ones(size))
    apart = 2 * (4 + solves) * scale
    whole = size <= exact or period != 360.0
    where = on_sphere(lat[wet], lon[wet])
    groups = [np.array([i]) for i in range(size)] if whole else list(scattered(where, apart))
    deviation = np.sqrt(_variance(operator, groups, where))
    return Diffusion(wet, area / mean, factor, solves, deviation)


@dataclass(frozen=True)
class Diffused:
    """Noise correlated along the water, of unit variance in every wet cell; a `Perturbation`.

    Operators are prepared when first needed and kept, one for each distinct mask, with 42,000 wet cells of 1° in 20 s
    (200 km) to 50 s (500 km) and 25 MB; a field then takes 6 ms. Levels get the masks of their depth.

    Attributes:
        length: D in m: the correlation begins as 1 - r²/2D², as exp(-r²/2D²) does.
        depth: vertical length scale in m; 0 for independent levels.
        solves: m; the more, the closer to a Gaussian. Two give c(D) = 0.65 and c(2D) = 0.24.

    Raises ValueError for a length that is not positive or fewer than two solves.
    """

    length: float
    depth: float = 0.0
    solves: int = 2
    _kept: dict[str, Diffusion] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length <= 0 or self.solves < 2:
            raise ValueError(f"Diffused needs length > 0 m and solves >= 2, got {self.length} and {self.solves}")

    def __reduce__(self) -> tuple[Any, ...]:  # factors are made again, not pickled
        return Diffused, (self.length, self.depth, self.solves)

    def prepare(self, layout: Layout) -> list[list[Diffusion | None]]:
        """The operator of every field and level, None without wet cells; made once for levels of one mask."""
        period = float(layout.grid.attrs.get("zonal_period", 360.0))
        found = []
        for f in layout.fields:
            lat, lon = (np.ascontiguousarray(v, dtype=np.float64) for v in layout.position(f))
            levels: list[Diffusion | None] = []
            for wet in layout.field_mask(f):
                if not wet.any():
                    levels.append(None)
                    continue
                digest = hashlib.sha256(b"".join((lat.tobytes(), lon.tobytes(), wet.tobytes(), str(period).encode())))
                key = f"{digest.hexdigest()} {wet.shape}"
                if key not in self._kept:
                    self._kept[key] = diffusion(lat, lon, wet.copy(), self.length, solves=self.solves, period=period)
                levels.append(self._kept[key])
            found.append(levels)
        return found

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """Correlated noise, (member, channel, y, x); variables and time slots are independent."""
        operators = self.prepare(layout)
        white = noise.stream("diffused").normal(members, time, layout.shape)
        out = torch.empty_like(white)
        for slot in range(len(layout.slots)):
            for f, levels in zip(layout.fields, operators, strict=True):
                channels, wet = layout.channels(f.name, slot), layout.field_mask(f)
                vertical = vertical_weights(layout, f.channels, self.depth)
                norm = np.sqrt(np.einsum("kl,lyx->kyx", vertical**2, wet))
                for row, fields in enumerate(white[:, channels].double().numpy()):  # singly: bits belong to a member
                    flat = np.stack([0 * w if o is None else o.sample(w) for o, w in zip(levels, fields, strict=True)])
                    mixed = np.einsum("kl,lyx->kyx", vertical, flat) / np.where(wet, norm, 1.0) * wet
                    out[row, channels] = torch.from_numpy(mixed).to(out)
        return out


def metric(
    lat: Array, lon: Array, wet: NDArray[np.bool_], period: float
) -> tuple[Array, tuple[NDArray[np.int64], NDArray[np.int64]], Array]:
    """Areas (cell,) in m2; the two cells of every face between wet cells; face length over distance, (face,)."""
    ny, nx = wet.shape
    index = np.arange(ny * nx).reshape(ny, nx)
    number = np.cumsum(wet.ravel()) - 1

    def between(a: NDArray[np.int64], b: NDArray[np.int64]) -> Array:
        return distance(lat.ravel()[a], lon.ravel()[a], lat.ravel()[b], lon.ravel()[b], period)

    east, north = [(index[:, :-1].ravel(), index[:, 1:].ravel())], [(index[:-1].ravel(), index[1:].ravel())]
    if closes(lat, lon, period):
        east.append((index[:, -1], index[:, 0]))
    if folds(lat, lon):
        north.append((index[-1, : nx // 2], index[-1, ::-1][: nx // 2]))
    pairs = [tuple(np.concatenate(v) for v in zip(*faces, strict=True)) for faces in (east, north)]
    steps = [between(*p) for p in pairs]
    sizes = [_mean_step(ny * nx, p, s) for p, s in zip(pairs, steps, strict=True)]
    area = (sizes[0] * sizes[1])[wet.ravel()]
    ends, conductance = [], []
    for (a, b), step, width in zip(pairs, steps, sizes[::-1], strict=True):
        both = wet.ravel()[a] & wet.ravel()[b]
        if not (step[both] > 0).all():
            raise ValueError(
                f"two neighbouring wet cells are {step[both].min() if both.any() else 0} m apart; "
                "wanted distinct finite `lat` and `lon` in every wet cell"
            )
        ends.append((number[a[both]], number[b[both]]))
        conductance.append(0.5 * (width[a] + width[b])[both] / step[both])
    first, second = (np.concatenate(v) for v in zip(*ends, strict=True))
    return area, (first, second), np.concatenate(conductance)


def _mean_step(size: int, pair: tuple[NDArray[np.int64], ...], step: Array) -> Array:
    """Mean distance of every cell to its neighbours along one axis, (cell,); 1 m on an axis of one cell."""
    if not len(step):
        return np.ones(size)
    good = np.isfinite(step)
    total, count = (
        sum(np.bincount(end[good], w, size) for end in pair) for w in (step[good], np.ones(int(good.sum())))
    )
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nanmean(step)))


def scattered(where: Array, distance: float) -> Iterator[NDArray[np.int64]]:
    """Split points (point, 3) greedily into groups whose points are at least `distance` from each other."""
    tree, waiting = cKDTree(where), np.ones(len(where), bool)
    while waiting.any():
        free, group = waiting.copy(), []
        while free.any():
            chosen = int(free.argmax())
            group.append(chosen)
            free[tree.query_ball_point(where[chosen], distance)] = False
        waiting[group] = False
        yield np.array(group)


def _variance(operator: Diffusion, groups: list[NDArray[np.int64]], where: Array) -> Array:
    """Variance of u in every cell, (cell,): the squared rows of its operator, several distant ones from one solve."""
    area, found = operator.area, np.empty(len(where))
    for start in range(0, len(groups), _COLUMNS):
        block = groups[start : start + _COLUMNS]
        v = np.zeros((len(where), len(block)))
        for j, group in enumerate(block):
            v[group, j] = 1.0
        v = operator.factor.solve(v)
        for _ in range(operator.solves - 1):
            v = operator.factor.solve(area[:, None] * v)
        energy = area[:, None] * v**2
        for j, group in enumerate(block):
            if len(group) == 1:
                found[group] = energy[:, j].sum()
            else:
                nearest = cKDTree(where[group]).query(where)[1]
                found[group] = np.bincount(nearest, energy[:, j], len(group))
    return found
