"""Training losses of the regional sea-ice models, as functions of tensors.

Finn et al. (2024, doi:10.1029/2024MS004395); the pieces are in `diffusion`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .diffusion import AdaptiveSchedule, noised, v_error, v_loss
from .gensim_files import ConfigError
from .regional_files import RegionalConfig
from .regional_scaling import encode, increment, residual
from .uvit import UViT

__all__ = ["diffusion_error", "diffusion_loss", "increment_loss"]


def increment_loss(network: UViT, states: Tensor, forcings: Tensor, labels: Tensor, config: RegionalConfig) -> Tensor:
    """The mean squared error of a deterministic network's normalised increment; arguments as `diffusion_loss`."""
    before, later = states[:, 0], states[:, 1]
    return F.mse_loss(network(encode(before, forcings, config), labels), increment(before, later, config))


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

    Returns:
        The loss, a number without unit; and the mean of `v_error` of each sample (batch,), for `schedule.updated`.

    Raises:
        ConfigError: for a residual model without deterministic network.
    """
    before, later = states[:, 0], states[:, 1]
    x, told = increment(before, later, config), encode(before, forcings, config)
    if config.kind_of(network.config) == "residual":
        if first_guess is None:
            raise ConfigError("a residual model needs the deterministic network it corrects; give it as first_guess")
        with torch.no_grad():
            d = first_guess(told, labels)
        x, told = residual(before, later, d, config), torch.cat((told, d), 1)
    error = diffusion_error(network, x, told, labels, noise, gamma, config)
    loss = v_loss(error, schedule.density(gamma)[:, None, None, None])
    return loss, error.detach().mean((1, 2, 3))


def diffusion_error(
    network: UViT, x: Tensor, told: Tensor, labels: Tensor, noise: Tensor, gamma: Tensor, config: RegionalConfig
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
