"""Smoothers: the EnKS, the IEnKS and ES-MDA, as functions of arrays, batched over experiments.

An ensemble analysis is x̄ + X w + X T, and T and w know nothing of the time of X: applied to the members of an
earlier time they give what the new observations say of it. This is the ensemble Kalman smoother (Evensen and van
Leeuwen 2000), at the cost of one product (Kalnay and Yang 2010 call it no-cost smoother).

The iterative ensemble Kalman smoother (Bocquet and Sakov 2014, doi:10.1002/qj.2236) finds the weights of the members
at the *beginning* of a window by minimising, with Gauss-Newton steps,

    J(w) = |y - H M(x̄ + X w)|² / 2 + (N-1) |w|² / 2

where the sensitivity Y = d(H M)/dw comes from propagating the ensemble itself: x̄ + X w + X T, T the square root of
the inverse Hessian over (N-1) ("transform"), or x̄ + X w + ε X ("bundle"). With a window of one cycle it is the
IEnKF of Sakov, Oliver and Bertino (2012, doi:10.1175/MWR-D-11-00176.1).

ES-MDA (Emerick and Reynolds 2013, doi:10.1016/j.cageo.2012.03.011) assimilates the same observations several times,
with R multiplied by α_i, Σ 1/α_i = 1: exact where everything is linear and normal, and gentler where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .filters import transform
from .finite_size import cost_prior
from .stochastic import enkf

Observed = Callable[[Tensor], Tensor]
"""Members (..., point, member) of the beginning to what would be observed of them (..., observation, member)."""


class Iterated(NamedTuple):
    """Weights found by iteration: the analysis is x̄ + X w + X T."""

    T: Tensor  # (..., member, member)
    w: Tensor  # (..., member)
    iterations: Tensor  # (...) int64, how many runs of the ensemble it took
    converged: Tensor  # (...) bool


def reweighted(E: Tensor, T: Tensor, w: Tensor) -> Tensor:
    """x̄ + X w + X T.

    Args:
        E: members (..., point, member), of any time.
        T: (..., member, member), of an analysis such as `transform`.
        w: (..., member).

    Returns members (..., point, member); differentiable.
    """
    mean = E.mean(-1, keepdim=True)
    return mean + (E - mean) @ (T + w.unsqueeze(-1))


def enks(window: Tensor, T: Tensor, w: Tensor) -> Tensor:
    """The ensemble Kalman smoother: one analysis applied to a window of times.

    Args:
        window: members (cycle, ..., point, member), among them those that were observed; with only those (lag 0)
            it is the filter.
        T: (..., member, member), the analysis of the observed cycle, without inflation: past members have been
            inflated already.
        w: (..., member).

    Returns the analysis of all cycles (cycle, ..., point, member). Random rotations belong into T: members that were
    rotated at one time only are no longer those of another.

    Source: Evensen and van Leeuwen (2000), doi:10.1175/1520-0493(2000)128<1852:AEKSFN>2.0.CO;2.
    """
    return reweighted(window, T, w)


def ienks(
    E: Tensor,
    observed: Observed,
    y: Tensor,
    *,
    bundle: bool = False,
    xN: float | None = None,
    iterations: int = 10,
    tolerance: float = 1e-5,
    epsilon: float = 1e-4,
) -> Iterated:
    """The weights of an iterative ensemble Kalman smoother for the members at the beginning of a window.

    Observations of one time at the end of the window, each used once, make it the single data assimilation of the
    paper; the next window begins one cycle later, with the analysis propagated. Batched over experiments, of which
    each stops when it has converged: the result does not depend on the others.

    Args:
        E: members at the beginning of the window (..., point, member).
        observed: propagates members and observes them, divided by the observation errors; called with ensembles
            of the shape of E.
        y: observations divided by their errors (..., observation).
        bundle: whether sensitivities are those of ε X around the mean rather than those of the ensemble's spread.
        xN: confidence in the prior of the inflation for a finite-size prior, as in `enkf_n`; None for a normal one.
        iterations: at most so many.
        tolerance: a step with |δw|² < tolerance · N is the last.
        epsilon: ε of the bundle.

    Raises ValueError for settings that make no sense, and if `observed` returns what is not finite.
    """
    if iterations < 1 or not tolerance >= 0 or not epsilon > 0:
        raise ValueError(
            f"ienks: wanted iterations >= 1, tolerance >= 0 and epsilon > 0, got {iterations}, {tolerance}, {epsilon}"
        )
    N, batch = E.shape[-1], E.shape[:-2]
    mean = E.mean(-1, keepdim=True)
    X = E - mean
    eye = torch.eye(N, dtype=E.dtype, device=E.device).expand(*batch, N, N)
    w, T, inverse = torch.zeros(*batch, N, dtype=E.dtype, device=E.device), eye, eye
    done = torch.zeros(batch, dtype=torch.bool, device=E.device)
    used = torch.zeros(batch, dtype=torch.int64, device=E.device)
    for _ in range(iterations):
        inner = epsilon * eye if bundle else T
        seen = observed(mean + X @ (inner + w.unsqueeze(-1)))
        if not seen.isfinite().all():
            raise ValueError("ienks: what was observed of the members is not finite; the forecast has failed")
        centre = seen.mean(-1, keepdim=True)
        Y = (seen - centre) / epsilon if bundle else (seen - centre) @ inverse
        d = y - centre.squeeze(-1)
        C = Y.mT @ Y
        zeta: float | Tensor = N - 1.0
        if xN is not None:
            e, c = cost_prior(C, N, xN, 0, True)
            zeta = (c / (e + (w**2).sum(-1))).unsqueeze(-1)
        values, V = torch.linalg.eigh(C)
        values = values.clamp(min=0.0) + zeta
        gradient = (Y.mT @ d.unsqueeze(-1)).squeeze(-1) - zeta * w
        step = (V @ ((V.mT @ gradient.unsqueeze(-1)) / values.unsqueeze(-1))).squeeze(-1)
        root = (values / (N - 1)).sqrt().unsqueeze(-2)
        keep = done.unsqueeze(-1)
        w = torch.where(keep, w, w + step)
        T = torch.where(keep.unsqueeze(-1), T, (V / root) @ V.mT)
        inverse = torch.where(keep.unsqueeze(-1), inverse, (V * root) @ V.mT)
        used = used + (~done).to(used)
        done = done | ((step**2).sum(-1) < tolerance * N)
        if bool(done.all()):
            break
    return Iterated(T, w, used, done)


def esmda(
    E: Tensor, observed: Observed, y: Tensor, alphas: Sequence[float], *, perturbations: Tensor | None = None
) -> Tensor:
    """The ensemble smoother with multiple data assimilation, batched over experiments.

    Args:
        E: members (..., point, member): parameters, or states at the beginning of a window.
        observed: propagates members and observes them, divided by the observation errors.
        y: observations divided by their errors (..., observation).
        alphas: what R is multiplied by, one number per step, Σ 1/α = 1; with [1.0] it is the ensemble smoother.
        perturbations: standard normal numbers (step, ..., observation, member), whose mean over members is taken
            out; None for the deterministic transform, which has no sampling error of its own.

    Returns the analysis members (..., point, member). Differentiable where `observed` is.

    Raises ValueError unless every α >= 1 and Σ 1/α = 1, or for perturbations of another number of steps.
    """
    total = math.fsum(1 / a for a in alphas) if alphas and min(alphas) >= 1 else math.nan
    if not abs(total - 1) < 1e-9:
        raise ValueError(f"esmda: wanted alphas >= 1 whose inverses sum to 1, such as [4, 4, 4, 4], got {list(alphas)}")
    if perturbations is not None and len(perturbations) != len(alphas):
        raise ValueError(f"esmda: wanted perturbations of {len(alphas)} steps, got {len(perturbations)}")
    for i, a in enumerate(alphas):
        seen = observed(E)
        centre = seen.mean(-1, keepdim=True)
        Y, d = (seen - centre) / a**0.5, (y - centre.squeeze(-1)) / a**0.5
        T, w = transform(Y, d) if perturbations is None else enkf(Y, d, perturbations[i])
        E = reweighted(E, T, w)
    return E
