"""Roots of Matérn correlations that follow the water: implicit diffusion on the wet cells of one level.

With cell areas S, and K the five-point flux form of -∇·l²∇ between wet cells only, so that nothing flows through a
coast, the symmetric matrix A = I + S^-½ K S^-½ gives the correlation matrix

    C = G Gᵀ,    G = N S^-½ A^-m,        N = the diagonal that makes diag C = 1,

of M = 2m implicit steps.  In the open ocean it is the Matérn function of smoothness ν = 2m - 1,

    c(r) = 2^(1-ν) / Γ(ν) (r/l)^ν K_ν(r/l),        1 - r²/2D² near r = 0 with D = sqrt(2M - 4) l

(Weaver and Mirouze 2013, Q. J. R. Meteorol. Soc. 139, doi:10.1002/qj.1955, in two dimensions).  D may vary in space.
A^-m is applied by a sparse factorisation, or, on devices that have none, as the Chebyshev series of λ^-m on an interval
that holds all eigenvalues: a polynomial of fixed degree, hence as linear and symmetric as the solves (Weaver, Tshimanga
and Piacentini 2016, doi:10.1002/qj.2664, solve by Chebyshev's iteration).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from ..emulators import Noise
from ..ensembles.diffusion_noise import metric, scattered
from ..ensembles.metric import on_sphere
from .linear import Constant, linear

__all__ = ["ImplicitDiffusion", "Normalisation", "Solver", "implicit_diffusion"]

Array = NDArray[np.float64]
Normalisation = Literal["exact", "local"] | int | None
Solver = Literal["auto", "factor", "chebyshev"]

_COLUMNS = 64  # fields at once when normalising


@dataclass(frozen=True, eq=False)
class ImplicitDiffusion:
    """The root of a correlation of the wet cells of one level; made by `implicit_diffusion`.

    Attributes:
        wet: (y, x) bool.
        area: of the wet cells over their mean, (cell,).
        diagonal: of A, (cell,).
        neighbour: cells beside each cell, (side, cell); the cell itself where there is none.
        weight: entries of A between them, (side, cell).
        solves: m.
        solver: "factor", "chebyshev", or "auto" for what suits the device: a factor on the CPU.
        gain: N S^-½, (cell,).
    """

    wet: NDArray[np.bool_]
    area: Array
    diagonal: Array = field(repr=False)
    neighbour: NDArray[np.int64] = field(repr=False)
    weight: Array = field(repr=False)
    solves: int
    solver: Solver = "auto"
    gain: Array = field(default_factory=lambda: np.ones(1), repr=False)

    def __getstate__(self) -> dict[str, Any]:  # factors are made again, not pickled
        return {k: v for k, v in self.__dict__.items() if k not in ("_factor", "_tensors")}

    @property
    def size(self) -> int:
        """Number of wet cells."""
        return len(self.area)

    def root(self, v: Tensor) -> Tensor:
        """G v, (..., cell) to the same: of unit variance for white v. Differentiable."""
        return self.power(v) * self._tensors["gain"].like(v)

    def inverse(self, x: Tensor) -> Tensor:
        """The v of which x = G v, (..., cell)."""
        v = x / self._tensors["gain"].like(x)
        for _ in range(self.solves):
            v = self._product(v)
        return v

    def mean(self, x: Tensor) -> Tensor:
        """x averaged with the weights of m implicit steps, (..., cell): constants stay, and the integral too."""
        side = self._tensors["side"].like(x)
        return self.power(x * side) / side

    def power(self, x: Tensor) -> Tensor:
        """A^-m x, (..., cell); differentiable, its own transpose."""
        cheap = self.solver == "factor" or (self.solver == "auto" and x.device.type == "cpu")
        apply = self._solved if cheap else self._polynomial
        return linear(x, apply, apply)

    # --- the two ways ----------------------------------------------------------------------------

    @cached_property
    def _factor(self) -> Any:
        sides, size = self.weight.shape
        row = np.tile(np.arange(size), sides)
        entries = sparse.coo_matrix((self.weight.ravel(), (row, self.neighbour.ravel())), (size, size))
        matrix = (entries + sparse.diags(self.diagonal)).tocsc()
        return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    @cached_property
    def _tensors(self) -> dict[str, Constant]:
        arrays = {
            "gain": self.gain, "side": np.sqrt(self.area), "diagonal": self.diagonal, "weight": self.weight,
            "neighbour": self.neighbour,
        }  # fmt: skip
        return {k: Constant(torch.from_numpy(np.ascontiguousarray(v))) for k, v in arrays.items()}

    def _solved(self, x: Tensor) -> Tensor:
        columns = x.detach().reshape(-1, self.size).cpu().double().numpy().T
        for _ in range(self.solves):
            columns = self._factor.solve(columns)
        return torch.from_numpy(np.ascontiguousarray(columns.T)).to(x).reshape(x.shape)

    def _product(self, x: Tensor) -> Tensor:
        """A x."""
        weight, neighbour = self._tensors["weight"].like(x), self._tensors["neighbour"].like(x)
        out = self._tensors["diagonal"].like(x) * x
        for w, j in zip(weight, neighbour, strict=True):
            out = out + w * x[..., j]
        return out

    @cached_property
    def _top(self) -> float:
        """No eigenvalue of A is larger: Gershgorin's bound."""
        return float((self.diagonal + np.abs(self.weight).sum(0)).max())

    def _polynomial(self, x: Tensor) -> Tensor:
        top = self._top
        middle, half = (top + 1) / 2, max(top - 1, 1e-12) / 2
        c = series(self.solves, top, 2e-15 if x.dtype == torch.float64 else 2e-8)
        before, now = x, (self._product(x) - middle * x) / half
        out = c[0] * before + (c[1] * now if len(c) > 1 else 0.0)
        for coefficient in c[2:]:
            before, now = now, (2 / half) * (self._product(now) - middle * now) - before
            out = out + coefficient * now
        return out


@lru_cache(maxsize=64)
def series(solves: int, top: float, tolerance: float) -> tuple[float, ...]:
    """Chebyshev coefficients of λ^-m on [1, top], up to the last one above `tolerance`."""
    n = 32
    while True:
        x = np.cos(np.pi * (np.arange(n) + 0.5) / n)
        c = scipy.fft.dct(((top + 1) / 2 + (top - 1) / 2 * x) ** -float(solves), type=2) / n
        c[0] /= 2
        if np.abs(c[n // 2 :]).max() < tolerance:
            return tuple(float(v) for v in c[: int(np.flatnonzero(np.abs(c) >= tolerance)[-1]) + 1])
        n *= 2


def implicit_diffusion(
    lat: Array,
    lon: Array,
    wet: NDArray[np.bool_],
    length: float | Array,
    *,
    solves: int = 2,
    period: float = 360.0,
    normalisation: Normalisation = "exact",
    solver: Solver = "auto",
    device: torch.device | str = "cpu",
) -> ImplicitDiffusion:
    """Prepare the root of one level: assemble, and find the variance of every wet cell.

    Args:
        lat: degrees, (y, x); NaN is allowed on land.
        lon: degrees, (y, x).
        wet: (y, x).
        length: D in m, of the correlation's curvature at 0; one, or (y, x).
        solves: m, at least 2.
        period: of longitude, degrees. Rows close, and a tripolar grid folds, where distances say so.
        normalisation: "exact", one solve for each wet cell; "local", in which impulses at least (8 + 2m) l apart share
            one and each is credited with what is nearest to it, an error of some tenths of a percent; or a number n of
            random fields, with a relative error of sqrt(2/n) in the variance; None leaves variances alone.
        solver: as of `ImplicitDiffusion`.
        device: where variances are computed.

    Raises ValueError for no wet cell, a length that is not positive, fewer than two solves or random fields, or
    neighbours in one place.
    """
    lengths = np.broadcast_to(np.asarray(length, float), wet.shape)[wet]
    if solves < 2 or not (lengths > 0).all():
        raise ValueError(f"diffusion needs lengths > 0 m and at least 2 solves, got {length} and {solves}")
    if not wet.any():
        raise ValueError("diffusion needs at least one wet cell, and the mask has none")
    scale = lengths / math.sqrt(4 * solves - 4)
    area, (a, b), conductance = metric(lat, lon, wet, period)
    mean = area.mean()
    flux = conductance * 0.5 * (scale[a] ** 2 + scale[b] ** 2) / mean
    area = area / mean
    diagonal = 1 + (np.bincount(a, flux, len(area)) + np.bincount(b, flux, len(area))) / area
    neighbour, weight = _sides(a, b, -flux / np.sqrt(area[a] * area[b]), len(area))
    made = ImplicitDiffusion(wet, area, diagonal, neighbour, weight, solves, solver, np.ones(len(area)))
    if normalisation is None:
        return made
    where = on_sphere(lat[wet], lon[wet])
    if normalisation == "local" and period == 360.0:
        groups = list(scattered(where, 2 * (4 + solves) * float(scale.max())))
        variance = _variance(made, groups, where, device)
    elif isinstance(normalisation, str):
        variance = _variance(made, [np.array([i]) for i in range(len(area))], where, device)
    else:
        variance = _sampled(made, normalisation, device)
    return replace(made, gain=1 / np.sqrt(variance))


def _sides(a: NDArray[np.int64], b: NDArray[np.int64], values: Array, size: int) -> tuple[NDArray[np.int64], Array]:
    """Neighbours and entries of each cell from a list of faces, both (side, cell), padded with the cell and 0."""
    row, column, entry = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([values, values])
    order = np.argsort(row, kind="stable")
    row, column, entry = row[order], column[order], entry[order]
    count = np.bincount(row, minlength=size)
    side = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    sides = int(count.max(initial=1))
    neighbour = np.tile(np.arange(size), (sides, 1))
    weight = np.zeros((sides, size))
    neighbour[side, row], weight[side, row] = column, entry
    return neighbour, weight


def _variance(
    made: ImplicitDiffusion, groups: list[NDArray[np.int64]], where: Array, device: torch.device | str
) -> Array:
    """Diagonal of A^-2m, (cell,): squared rows of A^-m, several distant ones from one product."""
    found = np.empty(made.size)
    for start in range(0, len(groups), _COLUMNS):
        block = groups[start : start + _COLUMNS]
        impulses = torch.zeros(len(block), made.size, dtype=torch.float64, device=device)
        for row, group in enumerate(block):
            impulses[row, torch.from_numpy(group).to(device)] = 1.0
        energy = made.power(impulses).square()
        total = energy.sum(1).cpu().numpy()
        for row, group in enumerate(block):
            if len(group) == 1:
                found[group] = total[row]
            else:
                nearest = cKDTree(where[group]).query(where)[1]
                found[group] = np.bincount(nearest, energy[row].cpu().numpy(), len(group))
    return found


def _sampled(made: ImplicitDiffusion, samples: int, device: torch.device | str) -> Array:
    """Diagonal of A^-2m, (cell,), from random fields."""
    if samples < 2:
        raise ValueError(f"wanted normalisation 'exact', 'local' or at least 2 random fields, got {samples}")
    noise, total = Noise(0).stream("normalisation"), np.zeros(made.size)
    for start in range(0, samples, _COLUMNS):
        some = range(start, min(start + _COLUMNS, samples))
        white = noise.normal(some, None, (made.size,), dtype=torch.float64, device=device)
        total += made.power(white).square().sum(0).cpu().numpy()
    return total / samples
