"""Inverse square roots from matrix products alone, for devices on which eigenvalues are slow.

The sign iteration of Newton and Schulz, x ← a x + b x³, takes every x in [l, h] to 1. With the coefficients that
are best for the interval, those of the odd cubic nearest to 1 there, it needs about half the steps:

    m² = (l² + l h + h²) / 3,   b = -2 / (2 m³ + l (3 m² - l²)),   a = -3 b m²

makes f(l) = f(h) = 1 - e and f(m) = 1 + e, so the next interval is [1-e, 1+e] (Chen and Chow 2014, a stable scaling
of Newton-Schulz; the equations follow from f'(m) = 0 and equal errors at l, m and h). On matrices the coupled form

    M = a I + b Z Y,   Y ← Y M,   Z ← M Z,     Y = A, Z = I at first

has Z → A^(-1/2) (Higham 2008, Functions of Matrices, eq. 6.35) and x² for the eigenvalues of Z Y, which begin
within [1, ‖A‖]: the A of an ensemble filter is I plus a positive semidefinite matrix, and its norm is bounded by its
rows. On a CPU `eigh` is faster; on CUDA it runs through the matrices one by one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .filters import over_matrices, precision, relaxed, transform

MOST_STEPS = 40


def newton_schulz_root(A: Tensor, *, least: float = 1.0) -> Tensor:
    """A^(-1/2) of symmetric positive definite matrices by products of matrices.

    Args:
        A: (..., n, n) float32 or float64, eigenvalues >= `least`.
        least: a lower bound of all eigenvalues, > 0; the closer, the fewer the steps.

    Returns (..., n, n), symmetric; its relative error is about the condition number times the rounding error, that
    of `eigh` or less. Differentiable any number of times. Everything stays on the device but the largest norm, which
    sets the number of steps.

    Raises ValueError for `least` <= 0, or a matrix that is not finite.
    """
    if not least > 0:
        raise ValueError(f"wanted a lower bound of the eigenvalues > 0, got {least}")
    with torch.no_grad():
        top = A.abs().sum(-1).amax(-1).clamp(min=least)[..., None, None]  # of each matrix, (..., 1, 1)
        largest = float(top.max()) if top.numel() else least
    if not math.isfinite(largest):
        raise ValueError(
            "wanted finite matrices, got infinities or NaN: the ensemble or the observation errors are broken"
        )
    # Scaled so that the interval of x = √eigenvalue is [√(least/top), 1]: products stay of order one.
    low, high = (least / top).sqrt() * (1 - 1e-6), torch.ones_like(top)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    Y, Z = A / top, eye.expand_as(A)
    for step in range(steps(largest / least, A.dtype)):
        a, b, low, high = _best(low, high)
        M = a * eye + b * (Y if step == 0 else Z @ Y)
        Y, Z = Y @ M, M if step == 0 else M @ Z
    Z = (Z + Z.mT) / 2
    return Z / top.sqrt()


def steps(condition: float, dtype: torch.dtype = torch.float64) -> int:
    """How many steps take matrices of a condition to the rounding error of a dtype."""
    low, high = torch.tensor(1 / math.sqrt(max(condition, 1.0)) * (1 - 1e-6)).double(), torch.tensor(1.0).double()
    for step in range(MOST_STEPS):
        if float(high - low) / 2 < torch.finfo(dtype).eps:
            return step
        _, _, low, high = _best(low, high)
    return MOST_STEPS


def _best(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coefficients a and b for an interval, and the interval after the step."""
    m2 = (low * low + low * high + high * high) / 3
    m = m2.sqrt()
    b = -2 / (2 * m * m2 + low * (3 * m2 - low * low))
    a = -3 * b * m2
    error = (1 - low * (a + b * low * low)).clamp(min=0.0)
    return a, b, 1 - error, 1 + error


def column_transform(
    Y: Tensor, d: Tensor, rho: Tensor, *, inflation: float | Tensor = 1.0, rtpp: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """As `transform`, with the root that suits the device: `eigh` on a CPU, products of matrices on CUDA."""
    if not Y.is_cuda:
        return transform(Y, d, rho, inflation=inflation, rtpp=rtpp)
    return product_transform(Y, d, rho, inflation=inflation, rtpp=rtpp)


def product_transform(
    Y: Tensor, d: Tensor, rho: Tensor, *, inflation: float | Tensor = 1.0, rtpp: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """As `transform`, by products of matrices alone."""
    A, b = precision(Y, d, rho, inflation)
    root = newton_schulz_root(A)
    w = (root @ (root @ b.unsqueeze(-1))).squeeze(-1)
    return relaxed(over_matrices(inflation) * root, rtpp), w
