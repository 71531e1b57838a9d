"""Training losses of the regional sea-ice models, as functions of tensors.

Finn et al. (2024, doi:10.1029/2024MS004395); the pieces are in `diffusion`.  On maps with land, networks see 0 there,
as in forecasts, and means are over the ocean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .diffusion import AdaptiveSchedule, noised, v_error, v_loss
from .gensim_files import ConfigError
from .regional_files import RegionalConfig
from .regional_scaling import encode, increment, on_ocean, residual
from .uvit import UViT

__all__ = [
    "denoising_error",
    "diffusion_error",
    "diffusion_loss",
    "increment_error",
    "increment_loss",
    "ocean_mean",
    "sample_means",
]

Network: TypeAlias = Callable[..., Tensor]


def increment_loss(
    network: UViT, states: Tensor, forcings: Tensor, labels: Tensor, config: RegionalConfig, mask: Tensor | None = None
) -> Tensor:
    """The mean squared error of a deterministic network's normalised increment; arguments as `diffusion_loss`."""
    return ocean_mean(increment_error(network, states, forcings, labels, config, mask), mask).mean()


def increment_error(
    network: Network,
    states: Tensor,
    forcings: Tensor,
    labels: Tensor,
    config: RegionalConfig,
    mask: Tensor | None = None,
) -> Tensor:
    """What `increment_loss` is the mean of, (batch, state, y, x), 0 on land; a network is any function like `UViT`."""
    before, later = states[:, 0], states[:, 1]
    predicted = network(encode(before, forcings, config, mask), labels)
    return (on_ocean(predicted, mask) - on_ocean(increment(before, later, config), mask)).square()


def diffusion_loss(
    network: UViT,
    states: Tensor,
    forcings: Tensor,
    labels: Tensor,
    noise: Tensor,
    gamma: Tensor,
    schedule: AdaptiveSchedule,
    config: RegionalConfig,
    first_guess: UViT | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted error of v, divided by the density of the noise levels.

    Args:
        network: to train, of a diffusion model or a residual one.
        states: at t and t + 12 h, physical units (batch, 2, state, y, x).
        forcings: at t and t + 12 h (batch, 2, forcing, y, x).
        labels: of augmentation (batch, n_augment_hidden).
        noise: standard normal numbers (batch, state, y, x).
        gamma: noise levels, such as `schedule.gamma(flow.stratified_times(...))` (batch,).
        schedule: that drew them.
        config: constants.
        first_guess: deterministic network of a residual model; it is not trained.
        mask: 1 for ocean, 0 for land (batch, 1, y, x); None for no land.

    Returns:
        The loss, a number without unit; and the mean of `v_error` of each sample (batch,), for `schedule.updated`.

    Raises:
        ConfigError: for a residual model without deterministic network.
    """
    guess = None
    if config.kind_of(network.config) == "residual":
        if first_guess is None:
            raise ConfigError("a residual model needs the deterministic network it corrects; give it as first_guess")
        guess = first_guess
    error = denoising_error(network, states, forcings, labels, noise, gamma, config, guess, mask)
    density = schedule.density(gamma)[:, None, None, None]
    loss = v_loss(error, density) if mask is None else 0.5 * ocean_mean(error / density, mask).mean()
    return loss, sample_means(error.detach(), mask)


def denoising_error(
    network: Network,
    states: Tensor,
    forcings: Tensor,
    labels: Tensor,
    noise: Tensor,
    gamma: Tensor,
    config: RegionalConfig,
    first_guess: Network | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`diffusion_error` of the increment, or of the residual that a first guess leaves; 0 on land.

    Arguments as `diffusion_loss`; networks are any functions like `UViT`.  Returns (batch, state, y, x).
    """
    before, later = states[:, 0], states[:, 1]
    told = encode(before, forcings, config, mask)
    if first_guess is None:
        x = increment(before, later, config)
    else:
        with torch.no_grad():
            d = on_ocean(first_guess(told, labels).to(told.dtype), mask)
        x, told = residual(before, later, d, config), torch.cat((told, d), 1)
    x, eps = on_ocean(x, mask), on_ocean(noise, mask)
    return on_ocean(diffusion_error(network, x, told, labels, eps, gamma, config), mask)


def diffusion_error(
    network: Network, x: Tensor, told: Tensor, labels: Tensor, noise: Tensor, gamma: Tensor, config: RegionalConfig
) -> Tensor:
    """`diffusion.v_error` of a network, (batch, state, y, x).

    Args:
        network: of a diffusion model.
        x: normalised data (batch, state, y, x).
        told: normalised conditions (batch, n_input - state, y, x).
        labels, noise, gamma, config: as `diffusion_loss`.
    """
    level, (low, high) = gamma[:, None, None, None], config.level_range
    x_g, v = noised(x, noise, level)
    predicted = network(torch.cat((x_g, told), 1), labels, ((gamma - low) / (high - low))[:, None])
    return v_error(v, predicted, level, config.weight)


def ocean_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over samples and ocean cells of each channel of (batch, channel, y, x), as (channel,)."""
    if mask is None:
        return error.mean((0, 2, 3))
    return (error * mask).sum((0, 2, 3)) / mask.sum().to(error.dtype)


def sample_means(error: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over channels and ocean cells of each sample of (batch, channel, y, x), as (batch,)."""
    if mask is None:
        return error.mean((1, 2, 3))
    return (error * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * error.shape[1])
