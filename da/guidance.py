"""Samples of a posterior from a denoiser: the sampler of a diffusion or flow model, guided by observations.

With y = x_0 + s ε, ε ~ N(0, 1), a generative model is its denoiser D(y, s) = E[x_0 | y]. Observations
o = H(x_0) + R^½ ε turn it into that of the posterior, D + s² ∇_y log p(o | y), where the rules differ in what they take
for the covariance V of x_0 given y (J = ∂D/∂y):

    ∇_y log p(o | y) = Jᵀ Hᵀ (R + H V Hᵀ)⁻¹ (o - H(D))
    MMPS    V = s² J                 Rozet et al. (2024), arXiv:2405.13712: exact for Gaussian data
    SDA     V = γ s²                 Rozet and Louppe (2023), arXiv:2306.10574
    ΠGDM    V = s² / (1 + s²)        Song et al. (2023), ICLR
    DPS     Jᵀ Hᵀ R^(-½) ζ r / |r|   Chung et al. (2023), arXiv:2209.14687

MMPS is the one to use; the others are here to be compared with it (`benchmarks/guidance.py`). Only products with Jᵀ are
needed, and J = Jᵀ for a perfect denoiser. These are functions of tensors; `guided.py` applies them to states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..emulators import flow

Denoiser = Callable[[Tensor, float], Tensor]
"""E[x_0 | y = x_0 + s ε] of y (member, ...) and s, of y's shape; see `flow.denoiser` and `diffusion.denoiser`."""

Departures = Callable[[Tensor], Tensor]
"""r = R^(-½) (o - H(x_0)) of x_0 (member, ...): (member, observation), differentiable, each member by itself."""


class Linearised:
    """A denoiser and the departures of what it gives, at one place, with the products that rules need.

    Attributes:
        denoised: D, of y's shape.
        departures: r of D, (member, observation).
    """

    def __init__(self, denoise: Denoiser, departures: Departures, y: Tensor, s: float) -> None:
        with torch.enable_grad():
            self._y = y.detach().requires_grad_()
            self._D = denoise(self._y, s)
            self.denoised = self._D.detach()
            self._x = self._D.detach().requires_grad_()
            r = departures(self._x)
            self._seen = -r
            self.departures = r.detach()
            self._u = torch.zeros_like(r, requires_grad=True)
            # Linear in u: its derivative is the product with A, which needs no forward mode.
            self._pulled = torch.autograd.grad(self._seen, self._x, self._u, create_graph=True, materialize_grads=True)

    def observe(self, increment: Tensor) -> Tensor:
        """A p, with A = R^(-½) ∂H/∂x_0: (member, observation) from y's shape."""
        return torch.autograd.grad(self._pulled, self._u, (increment,), retain_graph=True, materialize_grads=True)[0]

    def transposed(self, u: Tensor) -> Tensor:
        """Aᵀ u: of y's shape from (member, observation)."""
        return torch.autograd.grad(self._seen, self._x, u, retain_graph=True, materialize_grads=True)[0]

    def back(self, increment: Tensor) -> Tensor:
        """Jᵀ p, of y's shape."""
        return torch.autograd.grad(self._D, self._y, increment, retain_graph=True, materialize_grads=True)[0]


class Rule(Protocol):
    """How observations change what a denoiser gives."""

    def increment(self, at: Linearised, s: float) -> Tensor:
        """s² ∇_y log p(o | y), of y's shape."""
        ...


@dataclass(frozen=True)
class MMPS:
    """Moment matching: the covariance that the denoiser's own derivative implies (Tweedie), s² J.

    A call costs one forward and `iterations` backward passes of the network at most. Where a network's J is so far from
    symmetric and positive that conjugate gradients fail, a member goes on with what it has.

    Attributes:
        iterations: of conjugate gradients; with 10 the mean of a Gaussian field is off by 3 % of the posterior's
            standard deviation, with 5 by 6 %.
        tolerance: of the linear system, relative to the departures.
        inflation: factor on the variance of x_0 given y, where what the model generates is too sure of itself.
    """

    iterations: int = 10
    tolerance: float = 1e-3
    inflation: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.tolerance < 0 or self.inflation <= 0:
            raise ValueError(f"MMPS: wanted iterations >= 1, tolerance >= 0 and inflation > 0, got {self}")

    def increment(self, at: Linearised, s: float) -> Tensor:
        """s² Jᵀ Aᵀ (1 + A s² J Aᵀ)⁻¹ r; each product of the iteration brings its share of the result along."""
        variance = self.inflation * s * s

        def product(u: Tensor) -> tuple[Tensor, Tensor]:
            back = at.back(at.transposed(u))
            return variance * at.observe(back), back

        return variance * _conjugate_gradients(product, at.departures, self.iterations, self.tolerance)


@dataclass(frozen=True)
class SDA:
    """Score-based data assimilation: γ s² for every variance.

    Attributes:
        gamma: γ, without unit, for x_0 of unit variance.
        iterations: of conjugate gradients, which need no network.
    """

    gamma: float = 1e-2
    iterations: int = 50

    def increment(self, at: Linearised, s: float) -> Tensor:
        """s² Jᵀ Aᵀ (1 + γ s² A Aᵀ)⁻¹ r."""
        return _isotropic(at, s, self.gamma * s * s, self.iterations)


@dataclass(frozen=True)
class PiGDM:
    """Pseudo-inverse guidance: the variance of one number of unit variance, s² / (1 + s²).

    Attributes:
        iterations: of conjugate gradients, which need no network.
    """

    iterations: int = 50

    def increment(self, at: Linearised, s: float) -> Tensor:
        """s² Jᵀ Aᵀ (1 + s² / (1 + s²) A Aᵀ)⁻¹ r."""
        return _isotropic(at, s, s * s / (1 + s * s), self.iterations)


@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling: a step of fixed length along the gradient of |r|; no variances at all.

    Attributes:
        zeta: ζ, the length.
    """

    zeta: float = 1.0

    def increment(self, at: Linearised, s: float) -> Tensor:
        """ζ s² Jᵀ Aᵀ r / |r|."""
        r = at.departures
        return s * s * self.zeta * at.back(at.transposed(r / r.norm(dim=1, keepdim=True).clamp(min=1e-9)))


def guided(denoise: Denoiser, departures: Departures, rule: Rule) -> Denoiser:
    """The denoiser of a posterior.

    Args:
        denoise: of the prior.
        departures: of the observations.
        rule: such as `MMPS()`.

    Returns:
        A denoiser; no gradient passes through it.
    """

    def conditioned(y: Tensor, s: float) -> Tensor:
        at = Linearised(denoise, departures, y, s)
        return at.denoised + rule.increment(at, s).to(at.denoised)

    return conditioned


def draw(denoise: Denoiser, eps: Tensor, levels: Sequence[float], *, second_order: bool = True) -> Tensor:
    """Samples x_0 that a denoiser describes, by dy/ds = (y - D) / s from much noise to none.

    Args:
        denoise: of a prior, or `guided`.
        eps: standard normal start (member, ...).
        levels: s, falling, the first far above the size of the data; the last interval ends with the denoised data.
        second_order: Heun's method, else Euler's.

    Source: Karras et al. (2022, arXiv:2206.00364), algorithm 1.
    """
    if not levels or min(levels) <= 0 or list(levels) != sorted(levels, reverse=True):
        raise ValueError(f"draw: wanted noise levels > 0 that fall, got {tuple(levels)}")
    nodes = (*levels, 0.0)
    return flow.sample(lambda y, s: (y - denoise(y, s)) / s, nodes[0] * eps, nodes, second_order=second_order)


def _isotropic(at: Linearised, s: float, variance: float, iterations: int) -> Tensor:
    def product(u: Tensor) -> tuple[Tensor, Tensor]:
        pulled = at.transposed(u)
        return variance * at.observe(pulled), pulled

    return s * s * at.back(_conjugate_gradients(product, at.departures, iterations, 1e-6))


def _conjugate_gradients(
    product: Callable[[Tensor], tuple[Tensor, Tensor]], r: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """L w with (1 + B) w = r, each member by itself.

    Args:
        product: B p and L p, of p (member, observation).
        r: right-hand side (member, observation).
        iterations: at most.
        tolerance: of |r - (1 + B) w| relative to |r|.

    A member stops where its B has shown itself not to be positive: p (1 + B) p < p p / 2.
    """
    p = rest = r
    size = r.square().sum(1)
    wanted, alive, found = tolerance**2 * size, torch.ones_like(size, dtype=torch.bool), None
    for _ in range(iterations):
        Bp, Lp = product(p)
        curve = (p * (p + Bp)).sum(1)
        alive = alive & (size > wanted) & (curve >= p.square().sum(1) / 2)
        step = torch.where(alive, size / curve, 0.0)
        share = (step.view(-1, *[1] * (Lp.ndim - 1)) * Lp).to(Lp)
        found = share if found is None else found + share
        rest = rest - step[:, None] * (p + Bp)
        before, size = size, rest.square().sum(1)
        p = rest + (size / before.clamp(min=1e-300))[:, None] * p
        if not alive.any():
            break
    assert found is not None
    return found
