"""Gauss-Newton with truncated conjugate gradients in a trust region, for batches of independent problems.

Source: Nocedal and Wright (2006), Numerical Optimization, 2nd ed., algorithms 7.2 (Steihaug's conjugate gradients) and
4.1 (the radius).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .minimise import Minimum, dot

Linearised = Callable[[Tensor], tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]
"""From v (problem, n) to J, its gradient, and the product of the Gauss-Newton Hessian with vectors (problem, n)."""


@dataclass(frozen=True)
class GaussNewton:
    """Gauss-Newton with conjugate gradients inside and a trust region around each iterate.

    Attributes:
        tolerance: stop when the norm of the gradient is this fraction of what it was at the first guess.
        iterations: outer ones, at most; each linearises once.
        inner: products with the Hessian in each, at most.
        inner_tolerance: stop the inner iterations when the residual is this fraction of the gradient.
    """

    tolerance: float = 1e-3
    iterations: int = 20
    inner: int = 30
    inner_tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1 or not 0 < self.inner_tolerance < 1 or min(self.iterations, self.inner) < 1:
            raise ValueError(f"GaussNewton: wanted tolerances in [0, 1) and counts >= 1, got {self}")

    def minimise(self, linearised: Linearised, start: Tensor) -> Minimum:
        """The minimum of each problem; raises ValueError if J or its gradient is not finite at the first guess."""
        v = start
        cost, g, product = linearised(v)
        cost, norm = cost.double(), dot(g, g).sqrt()
        if not (cost.isfinite() & norm.isfinite()).all():
            raise ValueError(f"wanted a finite cost and gradient at the first guess, got {cost.tolist()}")
        first, radius = norm.clone(), torch.full_like(cost, torch.inf)
        iterations = torch.zeros_like(cost, dtype=torch.int64)
        history, evaluations, products = [cost.clone()], 1, 0
        done = norm <= self.tolerance * first
        while not done.all() and evaluations <= self.iterations:
            p, Hp, count = truncated_cg(product, g, radius, ~done, self.inner, self.inner_tolerance)
            products += count
            trial = v + p
            new, g_new, product_new = linearised(trial)
            evaluations += 1
            new = torch.where(new.isfinite() & g_new.isfinite().all(-1), new.double(), torch.inf)
            predicted = -(dot(g, p) + dot(p, Hp) / 2)
            ratio = torch.where(predicted > 0, (cost - new) / predicted.clamp(min=1e-300), -1.0)
            length = dot(p, p).sqrt()
            good = ~done & (ratio > 1e-3)
            radius = torch.where(ratio < 0.25, 0.25 * length, radius)
            radius = torch.where((ratio > 0.75) & (length > 0.8 * radius), 2 * radius, radius)
            rows = good[:, None]
            v, g = torch.where(rows, trial, v), torch.where(rows, g_new, g)
            cost, norm = torch.where(good, new, cost), dot(g, g).sqrt()
            iterations += good
            history.append(cost.clone())
            done |= (norm <= self.tolerance * first) | (length <= 1e-12 * dot(v, v).sqrt())
            if good.all() or done[~good].all():
                product = product_new
            elif not good.any():
                pass  # the linearisation of before still holds for all
            else:
                _, _, product = linearised(v)
                evaluations += 1
        return Minimum(
            v, cost, norm, first, iterations, evaluations, products, norm <= self.tolerance * first,
            torch.stack(history),
        )  # fmt: skip


def truncated_cg(
    product: Callable[[Tensor], Tensor], g: Tensor, radius: Tensor, which: Tensor, most: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """Steihaug's conjugate gradients for H p = -g within |p| <= radius, batched.

    Returns p and H p (problem, n), 0 for problems not in `which`, and the number of products.
    """
    p, Hp = torch.zeros_like(g), torch.zeros_like(g)
    r = torch.where(which[:, None], g, 0.0)
    d = -r
    square = dot(r, r)
    limit, active, count = tolerance**2 * square, which & (square > 0), 0
    while active.any() and count < most:
        Hd = product(d)
        count += 1
        curvature = dot(d, Hd)
        alpha = square / torch.where(curvature > 0, curvature, 1.0)
        ahead = p + alpha.to(p)[:, None] * d
        beyond = active & ((curvature <= 0) | (dot(ahead, ahead).sqrt() >= radius))
        # To the edge of the region: |p + τ d| = radius.
        a, b, c = dot(d, d), dot(p, d), dot(p, p) - radius.clamp(max=1e150).square()
        tau = (-b + (b.square() - a * c).clamp(min=0).sqrt()) / a.clamp(min=1e-300)
        move = torch.where(beyond, tau, alpha) * active
        p, Hp = p + move.to(p)[:, None] * d, Hp + move.to(p)[:, None] * Hd
        r = r + (alpha * active).to(r)[:, None] * Hd
        new = dot(r, r)
        active = active & ~beyond & (new > limit)
        d = torch.where(active[:, None], -r + (new / square.clamp(min=1e-300)).to(r)[:, None] * d, 0.0)
        square = torch.where(active, new, square)
    return p, Hp, count
