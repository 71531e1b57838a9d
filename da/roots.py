"""Inverse square roots from matrix products alone, where eigenvalues are slow.

The sign iteration of Newton and Schulz, x ← a x + b x³, takes every x in [l, h] to 1. With the coefficients that
are best for the interval, those of the odd cubic nearest to 1 there, it needs about half the steps:

    m² = (l² + l h + h²) / 3,   b = -2 / (2 m³ + l (3 m² - l²)),   a = -3 b m²

makes f(l) = f(h) = 1 - e and f(m) = 1 + e, so the next interval is [1-e, 1+e] (Chen and Chow 2014, a stable scaling
of Newton-Schulz; the equations follow from f'(m) = 0 and equal errors at l, m and h). On matrices the coupled form

    M = a I + b Z Y,   Y ← Y M,   Z ← M Z,     Y = A, Z = I at first

has Z → A^(-1/2) (Higham 2008, Functions of Matrices, eq. 6.35) and x² for the eigenvalues of Z Y, which begin
within [1, ‖A‖]: the A of an ensemble filter is I plus a positive semidefinite matrix, and its norm is bounded by its
rows. In float32 this is faster than `eigh` everywhere (30 members on a CPU: 20 to 48 µs), in float64 on CUDA, where
`eigh` runs through the matrices one by one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .filters import inverse_root

MOST_STEPS = 40


def newton_schulz_root(A: Tensor, *, least: float = 1.0, tolerance: float = 0.0) -> Tensor:
    """A^(-1/2) of symmetric positive definite matrices by products of matrices.

    Args:
        A: (..., n, n) float32 or float64, eigenvalues >= `least`.
        least: a lower bound of all eigenvalues, > 0; the closer, the fewer the steps.
        tolerance: a relative error that is small enough; rounding error by default.

    Returns (..., n, n), symmetric; its relative error is about the condition number times the rounding error, that
    of `eigh` or less. Differentiable any number of times. Everything stays on the device but the largest norm, which
    sets the number of steps.

    Raises ValueError for `least` <= 0, or a matrix that is not finite.
    """
    if not least > 0:
        raise ValueError(f"wanted a lower bound of the eigenvalues > 0, got {least}")
    known = A.detach()
    bounds = torch.minimum(known.abs().sum(-1).amax(-1), known.square().sum((-1, -2)).sqrt())
    largest = float(bounds.max()) if A.numel() else least
    if not math.isfinite(largest):
        raise ValueError(
            "wanted finite matrices, got infinities or NaN: the ensemble or the observation errors are broken"
        )
    # Scaled so that the interval of x = √eigenvalue is [√(least/largest), 1]: products stay of order one.
    largest = max(largest, least)
    low, high = math.sqrt(least / largest) * (1 - 1e-6), 1.0
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    Y, Z = A.reshape(-1, *A.shape[-2:]) / largest, eye.expand_as(A).reshape(-1, *A.shape[-2:])
    number = steps(largest / least, A.dtype, tolerance)
    for step in range(number):
        a, b, low, high = _best(low, high)
        M = a * eye + b * Y if step == 0 else torch.baddbmm(eye, Z, Y, beta=a, alpha=b)
        Z = M if step == 0 else M @ Z
        if step < number - 1:
            Y = Y @ M
    return ((Z + Z.mT) / (2 * math.sqrt(largest))).view_as(A)


def steps(condition: float, dtype: torch.dtype = torch.float64, tolerance: float = 0.0) -> int:
    """How many steps take matrices of a condition to the rounding error of a dtype, or a tolerance."""
    low, high = 1 / math.sqrt(max(condition, 1.0)) * (1 - 1e-6), 1.0
    for step in range(MOST_STEPS):
        if (high - low) / 2 < max(torch.finfo(dtype).eps, tolerance):
            return step
        _, _, low, high = _best(low, high)
    return MOST_STEPS


def _best(low: float, high: float) -> tuple[float, float, float, float]:
    """Coefficients a and b for an interval, and the interval after the step."""
    m2 = (low * low + low * high + high * high) / 3
    m = math.sqrt(m2)
    b = -2 / (2 * m * m2 + low * (3 * m2 - low * low))
    a = -3 * b * m2
    error = max(1 - low * (a + b * low * low), 0.0)
    return a, b, 1 - error, 1 + error


def faster_root(A: Tensor, tolerance: float = 0.0) -> Tensor:
    """A^(-1/2) as it is found faster: by `eigh` in float64 on a CPU, else by products of matrices, to a tolerance."""
    if A.dtype == torch.float64 and not A.is_cuda:
        return inverse_root(A)
    return newton_schulz_root(A, tolerance=tolerance)
