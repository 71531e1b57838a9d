"""Localisation without distance: weights from the sample correlations between observations and state.

Of N members that are independent of an observation, the sample correlation r is not 0 but has the distribution of
Student's t = r sqrt((N-2) / (1-r²)), with variance 1/(N-1). Where |r| is not above the level θ of that noise, an update
would mostly be noise, too. Luo et al. (2018, doi:10.2118/185936-PA) and Luo and Bhakta (2020,
doi:10.1016/j.petrol.2019.106559) taper with

    ρ = f((1 - |r|) / (1 - θ))

f being the function of Gaspari and Cohn with half width 1: ρ is 1 for |r| = 1, 5/24 for |r| = θ, and 0 for
|r| <= 2θ - 1. θ is here the quantile of t. Weights multiply entries of the Kalman gain or of covariances, or a taper
of distance (`column_taper`), where correlations that are far off but real deserve no weight, or noise nearby.
"""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor

from .filters import over_matrices, precision
from .localise import gaspari_cohn


def correlations(X: Tensor, Y: Tensor) -> Tensor:
    """Sample correlations (..., point, observation) of anomalies (..., point, member) and (..., observation, member).

    Both sum to 0 over members; what has no variance has correlation 0. Units do not matter.
    """
    unit = [Z / Z.square().sum(-1, keepdim=True).sqrt().clamp(min=torch.finfo(Z.dtype).tiny) for Z in (X, Y)]
    return (unit[0] @ unit[1].mT).clamp(-1.0, 1.0)


def noise_level(members: int, chance: float = 0.05) -> float:
    """The correlation θ that so many members of independent Gaussian variables exceed, in size, with this chance.

    Raises ValueError for fewer than three members, or a chance that is not within (0, 1).
    """
    if members < 3 or not 0 < chance < 1:
        raise ValueError(f"wanted three members or more and 0 < chance < 1, got {members} and {chance}")
    t = float(stats.t.isf(chance / 2, members - 2))
    return t / math.sqrt(members - 2 + t**2)


def correlation_taper(r: Tensor, members: int, *, chance: float = 0.05) -> Tensor:
    """Weights in [0, 1] of sample correlations, of their shape.

    Args:
        r: sample correlations of any shape.
        members: N, which they were computed from.
        chance: of a correlation above the level of noise, where there is none; less localises more.

    Source: Luo and Bhakta (2020), with the level from Student's t instead of shuffled members.
    """
    return gaspari_cohn((1 - r.abs()) / (1 - noise_level(members, chance)), half_width=1.0)


def column_taper(X: Tensor, Y: Tensor, *, chance: float = 0.05, over: str = "max") -> Tensor:
    """One weight per column and observation, from the correlations with all of the column's channels.

    Args:
        X: anomalies of columns (..., channel, member); land, where these are 0, has no correlations.
        Y: anomalies of the observations that act on each, (..., observation, member).
        chance: as in `correlation_taper`.
        over: "max", the largest |r| in the column, of as many as there are channels, each with the chance divided by
            their number; or "rms", their root mean square, where only an observation that matters to the whole column
            is to act.

    Returns (..., observation). Multiplied with the weights of distance, it removes what distance cannot know: an
    observation beyond a front, or an ensemble too small to see the far ones.

    Raises ValueError for another `over`.
    """
    r = correlations(X, Y)
    if over == "max":
        return correlation_taper(r.abs().amax(-2), X.shape[-1], chance=chance / X.shape[-2])
    if over == "rms":
        wet = (X != 0).any(-1).sum(-1).clamp(min=1)  # of channels
        return correlation_taper((r.square().sum(-2) / wet.unsqueeze(-1)).sqrt(), X.shape[-1], chance=chance)
    raise ValueError(f'column_taper: wanted over="max" or "rms", got {over!r}')


def tapered_kalman(
    E: Tensor, Y: Tensor, d: Tensor, taper: Tensor | None = None, *, inflation: float | Tensor = 1.0
) -> Tensor:
    """A deterministic ensemble Kalman filter whose gain is tapered entry by entry, batched over experiments.

    x̄ ← x̄ + (ρ ∘ K) d,   X ← X - ½ (ρ ∘ K) Y,   K = X A⁻¹ Yᵀ/(N-1),   A = I + YᵀY/(N-1)

    Args:
        E: background members (..., point, member).
        Y: anomalies of the background in observation space, divided by the observation errors,
            (..., observation, member); they sum to zero over members.
        d: observations minus the background mean, divided by the errors, (..., observation).
        taper: ρ, (..., point, observation); default `correlation_taper` of the sample's correlations.
        inflation: λ, multiplies the background anomalies; a number, or one per experiment (...).

    Returns the analysis members (..., point, member). The gain has (point, observation) entries: for states that
    are small enough. Where ρ = 1 everywhere, it is the filter of Sakov and Oke (2008a,
    doi:10.1111/j.1600-0870.2007.00299.x), `denkf`.
    """
    N, lam = E.shape[-1], over_matrices(inflation)
    mean = E.mean(-1, keepdim=True)
    X, Y = (E - mean) * lam, Y * lam
    if taper is None:
        taper = correlation_taper(correlations(X, Y), N)
    A, _ = precision(Y, d, None, 1.0)
    K = taper * (X @ torch.linalg.solve(A, Y.mT)) / (N - 1)
    analysis: Tensor = mean + X + K @ (d.unsqueeze(-1) - Y / 2)
    return analysis
