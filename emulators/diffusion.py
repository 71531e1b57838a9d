"""Diffusion between noise and data: noise levels, their schedules, the v-parameterisation, sampling and the loss.

With the logarithm gamma of the signal-to-noise ratio as noise level (Kingma et al. 2021, arXiv:2107.00630), data x and
noise eps, and the network's target v (Salimans and Ho 2022, arXiv:2202.00512):

    x_g = alpha x + sigma eps,   alpha^2 = sigmoid(gamma),   sigma^2 = 1 - alpha^2
    v   = alpha eps - sigma x,   so that x = alpha x_g - sigma v and eps = sigma x_g + alpha v

Karras et al. (2022, arXiv:2206.00364) sample along y = x_g / alpha, whose noise has the size s = sigma / alpha =
exp(-gamma / 2), where dy/ds = eps.  These are pure functions of tensors, whatever the network and the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import flow

__all__ = ["AdaptiveSchedule", "denoised", "denoiser", "karras_levels", "noised", "sample", "v_error", "v_loss", "v_of"]


def noised(x: Tensor, eps: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The noised data x_g and the target v, of data x and noise eps at levels gamma broadcast to them."""
    alpha, sigma = _alpha_sigma(gamma)
    return alpha * x + sigma * eps, alpha * eps - sigma * x


def denoised(x_g: Tensor, v: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The data and the noise that noised data and v imply at levels gamma; undoes `noised`."""
    alpha, sigma = _alpha_sigma(gamma)
    return alpha * x_g - sigma * v, sigma * x_g + alpha * v


def _alpha_sigma(gamma: Tensor) -> tuple[Tensor, Tensor]:
    square = torch.sigmoid(gamma)
    return square.sqrt(), (1 - square).sqrt()  # the original's rounding: in float32 sigma is 0 above gamma = 17


# --- sampling -----------------------------------------------------------------------------------------


def karras_levels(
    n_steps: int, rho: float = 7.0, gamma_min: float = -10.0, gamma_max: float = 15.0
) -> tuple[float, ...]:
    """Noise levels of a sampler, dense where there is little noise.

    Args:
        n_steps: number of intervals.
        rho: s^(1 / rho) is linear in the number of the interval, s = exp(-gamma / 2).
        gamma_min, gamma_max: levels of the start and the end of the last interval.

    Returns:
        n_steps levels gamma, growing, where intervals start; the end of the last is data, whatever gamma_max.

    Raises:
        ValueError: for fewer than one step, or levels that do not grow.

    Source: Karras et al. (2022), equation 5; Finn et al. (2024) for the limits.
    """
    if n_steps < 1 or not gamma_min < gamma_max or rho <= 0:
        raise ValueError(
            f"a sampler needs at least 1 step, gamma_min < gamma_max and rho > 0, got {n_steps} steps from "
            f"{gamma_min} to {gamma_max} with rho {rho}"
        )
    first, last = (math.exp(-gamma / 2 / rho) for gamma in (gamma_min, gamma_max))
    return tuple(-2 * rho * math.log(first + k / n_steps * (last - first)) for k in range(n_steps))


def sample(
    v: Callable[[Tensor, float], Tensor], eps: Tensor, levels: Sequence[float], *, second_order: bool = True
) -> Tensor:
    """Follow the flow from noise to data; differentiable in whatever v depends on.

    Args:
        v: network as function of noised data and level gamma.
        eps: standard normal start, any shape.
        levels: see `karras_levels`.
        second_order: Heun's method, 2 n - 1 calls for n intervals; else Euler's, n calls.  The last interval returns
            the denoised data.

    Returns:
        Data, normalised, of eps's shape.

    Source: Karras et al. (2022), algorithm 1.
    """
    alpha = {s: 1 / math.sqrt(1 + s * s) for s in (math.exp(-gamma / 2) for gamma in levels)}
    gamma = dict(zip(alpha, levels, strict=True))

    def noise(y: Tensor, s: float) -> Tensor:
        x_g = alpha[s] * y
        return s * alpha[s] * x_g + alpha[s] * v(x_g, gamma[s])

    nodes = (*alpha, 0.0)  # Euler's step to 0 is what denoises
    return flow.sample(noise, eps / alpha[nodes[0]], nodes, second_order=second_order)


def denoiser(v: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """The denoiser D(y, s) = E[x | y] of y = x + s eps that a network v(x_g, gamma) is."""

    def denoise(y: Tensor, s: float) -> Tensor:
        alpha = 1 / math.sqrt(1 + s * s)
        x_g = alpha * y
        return alpha * x_g - s * alpha * v(x_g, -2 * math.log(s))

    return denoise


def v_of(denoise: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """The v that a denoiser D(y, s) implies, as function of noised data and level gamma; undoes `denoiser`."""

    def v(x_g: Tensor, gamma: float) -> Tensor:
        s = math.exp(-gamma / 2)
        alpha = 1 / math.sqrt(1 + s * s)
        return (alpha * x_g - denoise(x_g / alpha, s)) / (s * alpha)

    return v


# --- training -----------------------------------------------------------------------------------------


def v_error(v: Tensor, predicted: Tensor, gamma: Tensor, multiplier: float = 0.5) -> Tensor:
    """The weighted squared error of a network.

    Args:
        v, predicted: of one shape.
        gamma: level, broadcast to them.
        multiplier: of gamma in the weight.

    Returns:
        Of their shape: exp(-multiplier gamma) (v - predicted)^2 / (1 + exp(-gamma)); the last two factors are the
        squared error of the noise.

    Source: Kingma and Gao (2023, arXiv:2303.00848); Finn et al. (2024) for the weight.
    """
    return torch.exp(-multiplier * gamma) * (v - predicted).square() * torch.sigmoid(gamma)


def v_loss(error: Tensor, density: Tensor) -> Tensor:
    """Half the mean of errors from `v_error`, divided by the density with which their levels were drawn."""
    return 0.5 * (error / density).mean()


@dataclass(frozen=True, eq=False)
class AdaptiveSchedule:
    """Noise levels drawn where the loss is large: a histogram that learns (Kingma and Gao 2023, appendix F).

    Attributes:
        bins: height of each bin, not normalised (bin,), growing with gamma.
        gamma_min, gamma_max: limits of the histogram.
        decay: share of its height that a bin keeps when it is hit.
    """

    bins: Tensor = field(default_factory=lambda: torch.ones(100))
    gamma_min: float = -20.0
    gamma_max: float = 20.0
    decay: float = 0.999

    def gamma(self, time: Tensor) -> Tensor:
        """Levels, from gamma_max at time 0 to gamma_min at time 1, drawn by uniform times of any shape."""
        share = self.bins.cumsum(0) / self.bins.sum()
        below = torch.cat((torch.zeros_like(share[:1]), share))
        left = (1 - time).to(share)
        i = torch.searchsorted(share, left.contiguous()).clamp(max=len(share) - 1)
        part = (left - below[i]) / (share[i] - below[i])
        return (self.gamma_min + (i + part.clamp(0, 1)) * self._width).to(time.dtype)

    def density(self, gamma: Tensor) -> Tensor:
        """The share of draws that fall into the bin of levels of any shape."""
        return (self.bins / self.bins.sum())[self._bin(gamma)].to(gamma.dtype)

    def updated(self, gamma: Tensor, loss: Tensor) -> AdaptiveSchedule:
        """The schedule after a batch: n hits of a bin move it to their mean loss by 1 - decay^n.

        Args:
            gamma: levels (batch,).
            loss: mean of `v_error` of each sample (batch,); no gradient is kept.
        """
        hit, bins = self._bin(gamma), self.bins
        n = torch.bincount(hit, minlength=len(bins)).to(bins)
        total = torch.zeros_like(bins).index_add(0, hit, loss.detach().to(bins))
        keep = self.decay**n
        return replace(self, bins=keep * bins + (1 - keep) * total / n.clamp(min=1))

    @property
    def _width(self) -> float:
        return (self.gamma_max - self.gamma_min) / len(self.bins)

    def _bin(self, gamma: Tensor) -> Tensor:
        place = (gamma.detach().double() - self.gamma_min) / self._width
        return place.long().clamp(0, len(self.bins) - 1).to(self.bins.device)
