"""The bootstrap particle filter: the reference for posteriors that are not Gaussian, in few dimensions.

    w_i ∝ exp(-|(y - H x_i) / σ|² / 2)

and members are drawn anew in proportion to w (Gordon et al. 1993) by systematic resampling: one uniform number
u for all of them, positions (u + i) / N on the cumulated weights, so that member i has N w_i copies, rounded
up or down. In more than a few dimensions one member takes all the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..emulators import Draws, Noise, State
from .filters import departures, in_order
from .observations import Observations


def log_weights(Y: Tensor, d: Tensor, prior: Tensor | None = None) -> Tensor:
    """Logarithms of the normalised weights of members, batched over experiments.

    Args:
        Y: observed anomalies of the members, divided by the observation errors, (..., observation, member).
        d: observations minus the background mean, divided by the errors, (..., observation).
        prior: logarithms of weights they already have (..., member); default equal.

    Returns (..., member), whose exponentials sum to one; differentiable.
    """
    fit = -(d.unsqueeze(-1) - Y).square().sum(-2) / 2
    return torch.log_softmax(fit if prior is None else fit + prior, -1)


def effective_size(log_weights: Tensor) -> Tensor:
    """1 / Σ w_i², (...): how many members of equal weight are worth as much."""
    return (-torch.logsumexp(2 * log_weights, -1)).exp()


def systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """Which member each new one is a copy of, (..., member) int64, by systematic resampling.

    Args:
        log_weights: normalised, (..., member).
        u: uniform numbers in (0, 1), (...).

    Copies stay in their own place where they can: what survives keeps one copy where it was.

    Source: Kitagawa (1996), doi:10.1080/10618600.1996.10474692.
    """
    N = log_weights.shape[-1]
    cumulated = log_weights.exp().cumsum(-1)
    cumulated = cumulated / cumulated[..., -1:]
    positions = (torch.arange(N, dtype=u.dtype, device=u.device) + u.unsqueeze(-1)) / N
    drawn = torch.searchsorted(cumulated.contiguous(), positions.contiguous()).clamp(max=N - 1)
    return _in_place(drawn)


def _in_place(drawn: Tensor) -> Tensor:
    """The same copies, (..., member), with every member that has some keeping one."""
    N = drawn.shape[-1]
    counts = torch.zeros_like(drawn).scatter_add(-1, drawn, torch.ones_like(drawn))
    own = torch.arange(N, device=drawn.device).expand_as(drawn)
    spare = (counts - 1).clamp(min=0).cumsum(-1)  # of all members up to this one
    vacancy = (counts == 0).cumsum(-1) - 1  # number of each vacant place
    heir = torch.searchsorted(spare.contiguous(), (vacancy + 1).clamp(min=1).contiguous()).clamp(max=N - 1)
    return torch.where(counts > 0, own, heir)


@dataclass(frozen=True)
class ParticleFilter:
    """The bootstrap particle filter, resampled at every analysis; a reference for few dimensions.

    Attributes:
        bandwidth: h; members then get noise of the covariance h² P, P that of the background ensemble, so that
            copies differ. 0 for none, which only noisy models can live with.
        noise: where resampling and jitter come from, by the members' numbers and the time.
    """

    bandwidth: float = 0.0
    noise: Draws = field(default_factory=lambda: Noise(0))

    def __post_init__(self) -> None:
        if not self.bandwidth >= 0:
            raise ValueError(f"ParticleFilter: wanted bandwidth >= 0, got {self.bandwidth}")

    def analysis(self, forecast: State, observations: Observations) -> State:
        """Members drawn anew, of equal weight: same numbers, time and layout; land bitwise the same.

        Args:
            forecast: at least two members that differ.
            observations: of the time of its newest slot; all must have a wet point around them.

        Without observations it is the forecast. Raises ObservationError as `departures`.
        """
        if not len(observations):
            return forecast
        observations = in_order(observations)
        members, device, N = forecast.members, forecast.data.device, len(forecast.members)
        rank = sorted(range(N), key=lambda i: members[i])  # so that the order of members does not matter
        Y, d = departures(forecast, observations)
        z = self.noise.stream("resampling").normal(
            (members[rank[0]],), observations.time, (), dtype=torch.float64, device=device
        )[0]
        u = (1 + torch.erf(z / math.sqrt(2))) / 2  # `Draws` are normal
        place = torch.tensor(rank, device=device)
        ancestor = torch.empty_like(place)
        ancestor[place] = place[systematic(log_weights(Y[:, place], d), u)]
        data = forecast.data[ancestor]
        if self.bandwidth:
            drawn = self.noise.stream("jitter").normal(
                members, observations.time, (N,), dtype=torch.float64, device=device
            )
            column = torch.argsort(place)  # the k-th number of a draw belongs to the k-th member by number
            weights = (self.bandwidth / math.sqrt(N - 1) * drawn[:, column]).to(data.dtype)
            anomalies = forecast.data - forecast.data.mean(0)
            data = data + torch.einsum("ij,j...->i...", weights, anomalies)
        return forecast.replace(data=torch.where(forecast.layout.mask.to(device), data, forecast.data))
