"""What a variational analysis knows of its own error: Ritz pairs of the Hessian, covariance, samples.

At the minimum the Hessian of J in the control space is 1 + JᵀJ, J the derivative of the scaled departures. Of JᵀJ a few
pairs (λ, u) stand out; they are what the observations tell. With them

    covariance of v     1 - U diag(λ / (1 + λ)) Uᵀ                  of x_0: L (...) Lᵀ
    its root            1 + U diag((1 + λ)^(-1/2) - 1) Uᵀ           a `Root` of the analysis error, and samples
    degrees of freedom  Σ λ / (1 + λ)                               for signal

exact with as many pairs as there are independent observations; with fewer, the directions left out keep the
background's variance.

Source: Fisher and Courtier (1995), ECMWF Tech. Memo. 220; for linear problems the covariance is the Kalman smoother's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..emulators import Draws, Layout, State
from .background import Root
from .minimise import Minimum
from .window_cost import Problem
from .window_trajectory import Trajectory

__all__ = ["Posterior", "PosteriorRoot", "ritz_pairs"]

_LOST = 1e-10  # of the largest: what is left of a vector this small is rounding


def ritz_pairs(product: Callable[[Tensor], Tensor], start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a symmetric positive semidefinite map that `count` products find, by Lanczos.

    Args:
        product: the map, of rows (1, n).
        start: first vector, (n,); the gradient, say. Where its Krylov space ends, another one is begun at random.
        count: products, at most n.

    Returns values (pair,), largest first, and vectors (pair, n), orthonormal, float64. Every vector is made orthogonal
    to all before, twice: without that Lanczos finds the same pair again and again (Parlett 1998, The Symmetric
    Eigenvalue Problem, chapter 13).
    """
    n = len(start)
    count = min(count, n)
    generator = torch.Generator().manual_seed(0)
    basis, images = (torch.zeros(count, n, dtype=torch.float64, device=start.device) for _ in range(2))
    q, top = start.double(), float(start.double().norm())
    for k in range(count):
        for _ in range(100):
            for _ in range(2):
                q = q - (basis[:k] @ q) @ basis[:k]
            if float(q.norm()) > _LOST * max(top, 1e-300):
                break
            q = torch.randn(n, generator=generator, dtype=torch.float64).to(start.device)
            top = float(q.norm())
        basis[k] = q / q.norm()
        images[k] = product(basis[k][None].to(start))[0].double()
        q = images[k]
        top = max(top, float(q.norm()))
    small = basis @ images.mT
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1).mT @ basis


@dataclass(frozen=True, eq=False)
class PosteriorRoot:
    """The root of an analysis error covariance, L (1 + U diag((1 + λ)^(-1/2) - 1) Uᵀ).

    Attributes:
        root: L, of the background.
        values: λ, (pair,).
        vectors: U, (pair, n); n may be longer than the control of L, where the model's errors have their own.
    """

    root: Root
    values: Tensor = field(repr=False)
    vectors: Tensor = field(repr=False)

    @property
    def layout(self) -> Layout:
        """Of the fields."""
        return self.root.layout

    @property
    def size(self) -> int:
        """Length of the whole control vector."""
        return self.vectors.shape[1]

    def control(self, v: Tensor) -> Tensor:
        """White v (..., n) as control vectors of the analysis error."""
        U, shrunk = self.vectors.to(v), ((1 + self.values) ** -0.5 - 1).to(v)
        return v + ((v @ U.mT) * shrunk) @ U

    def apply(self, v: Tensor) -> Tensor:
        """Errors of the analysis at the beginning of the window, (..., channel, y, x)."""
        return self.root.apply(self.control(v)[..., : self.root.size])


@dataclass(frozen=True, eq=False)
class Posterior:
    """A variational analysis of one state, and its error.

    Attributes:
        problem: whose cost function was minimised.
        found: the minimum.
        values: λ, (pair,) float64, largest first.
        vectors: U, (pair, n) float64.
        again: the problem for other backgrounds, of several members, say.
    """

    problem: Problem
    found: Minimum
    values: Tensor
    vectors: Tensor = field(repr=False)
    again: Callable[[State], Problem] = field(repr=False)

    @cached_property
    def root(self) -> PosteriorRoot:
        """Of the analysis error covariance at the beginning of the window (4D-Var) or at the analysis (3D-Var)."""
        return PosteriorRoot(self.problem.how.root, self.values, self.vectors)

    @property
    def degrees_of_freedom(self) -> float:
        """For signal: how many numbers of the state the observations have determined."""
        return float((self.values / (1 + self.values)).sum())

    @property
    def states(self) -> list[State]:
        """The analysed trajectory, one member; of 3D-Var the analysis alone."""
        return _path(self.problem, self.found.v)

    def samples(self, noise: Draws, members: Sequence[int], *, centred: bool = True) -> list[State]:
        """Trajectories drawn from the posterior, at every step of the window.

        Args:
            noise: draws white control vectors of the stream "posterior", the same for a member in any batch.
            members: numbers.
            centred: shift and stretch them so that their mean is that of the analysis and the expected covariance
                stays; a member then depends on the others. For linear models the mean of the samples is the analysis.

        Returns one State per step; of 3D-Var one.
        """
        many = self.problem.background.spread_to(members)
        v = noise.stream("posterior").normal(
            members, many.time, (self.problem.size,), dtype=torch.float64, device=many.data.device
        )
        if centred and len(members) > 1:
            v = (v - v.mean(0)) * (len(v) / (len(v) - 1)) ** 0.5
        return _path(self.again(many), self.found.v + self.root.control(v))


def _path(problem: Problem, v: Tensor) -> list[State]:
    if isinstance(problem, Trajectory):
        return problem.states(v)
    with torch.no_grad():
        return [problem.first(v)]


def posterior_of(problem: Problem, found: Minimum, pairs: int, again: Callable[[State], Problem]) -> Posterior:
    """The posterior at a minimum, from so many products with the Hessian.

    Raises ValueError for a background of several members, fewer than one pair, or perturbed observations.
    """
    members = problem.background.members
    if len(members) != 1 or pairs < 1 or problem.how.perturb is not None:
        raise ValueError(
            f"a posterior is that of one state and of observations as they are, with one pair or more: got members "
            f"{members}, {pairs} pairs{', and perturbations' if problem.how.perturb is not None else ''}"
        )
    _, _, product = problem.linearised(found.v)
    # The gradient at the background looks where the observations do; at the minimum it is 0.
    start = problem.cost(problem.start())[1][0]
    values, vectors = ritz_pairs(lambda v: product(v) - v, start, pairs)
    return Posterior(problem, found, values, vectors, again)
