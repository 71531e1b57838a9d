"""The stochastic ensemble Kalman filter: every member sees observations perturbed in its own way.

    x_i ← x_i + K (y + ε_i - H x_i),   ε_i ~ N(0, R),   Σ ε_i = 0

(Evensen 1994; Burgers et al. 1998, doi:10.1175/1520-0493(1998)126<1719:ASITEK>2.0.CO;2). In weights, with A of
`filters.py` and everything in observation space divided by the errors, K = λ² X A⁻¹ Yᵀ / (N-1) and

    T = λ A⁻¹ (I + λ Yᵀ ε / (N-1)),   w as in every other filter.

Perturbations that sum to zero make the mean that of the Kalman filter; the covariance is the Kalman
filter's in expectation over ε, exactly: the sample covariance of centred ε has expectation R.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..emulators import Draws, Noise, State
from .filters import GlobalFilter, departures, in_order, over_matrices, precision, solve
from .observations import Observations


def enkf(Y: Tensor, d: Tensor, perturbations: Tensor, *, inflation: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """The weights of a stochastic ensemble Kalman filter, batched over experiments.

    Args:
        Y: anomalies of the background in observation space, divided by the observation errors,
            (..., observation, member); they sum to zero over members.
        d: observations minus the background mean, divided by the errors, (..., observation).
        perturbations: ε, standard normal numbers (..., observation, member); their mean over members is taken
            out here.
        inflation: λ, multiplies the background anomalies; a number, or one per experiment (...).

    Returns T (..., member, member), T 1 = λ 1, and w (..., member): the analysis is x̄ + X w + X T.

    Source: Burgers et al. (1998).
    """
    N = Y.shape[-1]
    A, b = precision(Y, d, None, inflation)
    factor = over_matrices(inflation)
    centred = perturbations - perturbations.mean(-1, keepdim=True)
    eye = torch.eye(N, dtype=Y.dtype, device=Y.device)
    right = eye + Y.mT @ centred * (factor / (N - 1))
    both = solve(A, torch.cat([right, b.unsqueeze(-1)], -1))
    return factor * both[..., :-1], both[..., -1]


@dataclass(frozen=True)
class EnKF(GlobalFilter):
    """The stochastic ensemble Kalman filter, with perturbed observations; every observation acts everywhere.

    Attributes:
        inflation, rtpp, variables, block: as in `GlobalFilter`.
        noise: where the perturbations come from, by the members' numbers and the time. The order of the
            observations does not matter.
    """

    noise: Draws = field(default_factory=lambda: Noise(0))

    def weights(self, forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
        """T (member, member) and w (member,), float64, before relaxation."""
        observations = in_order(observations)
        Y, d = departures(forecast, observations)
        drawn = self.noise.stream("perturbed observations").normal(
            forecast.members, observations.time, (len(observations),), dtype=torch.float64, device=Y.device
        )
        return enkf(Y, d, drawn.mT, inflation=self.inflation)
