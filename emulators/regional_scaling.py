"""What the regional networks see instead of physical numbers, and back: inputs and increments, normalised.

Finn et al. (2024, doi:10.1029/2024MS004395).  There is no land where these models were trained; on maps with land
whatever a network sees is 0 there, and so are forecasts.  With `sees_mask` it is told which cells these are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .regional_files import RegionalConfig

__all__ = ["after", "detail", "encode", "increment", "on_ocean", "residual"]


def encode(states: Tensor, forcings: Tensor, config: RegionalConfig, mask: Tensor | None = None) -> Tensor:
    """Normalise what a network is told.

    Args:
        states: at t, physical units (batch, state, y, x).
        forcings: at t and t + 12 h (batch, 2, forcing, y, x).
        config: with `input_mean` and `input_std`.
        mask: 1 for ocean, 0 for land (batch, 1, y, x); None for no land.

    Returns:
        Conditions (batch, input, y, x), without unit, 0 on land; with `sees_mask` the last of them is the mask.
    """
    x = torch.cat((states, forcings.flatten(1, 2)), 1)
    mean, std = _constants(x, config.input_mean, config.input_std)
    told = on_ocean((x - mean) / (std + 1e-9), mask)
    if not config.sees_mask:
        return told
    return torch.cat((told, torch.ones_like(told[:, :1]) if mask is None else mask.to(told)), 1)


def increment(before: Tensor, later: Tensor, config: RegionalConfig) -> Tensor:
    """The normalised increment from one state to another, (batch, state, y, x)."""
    mean, std = _constants(before, config.mean, config.std)
    return (later - before - mean) / std


def residual(before: Tensor, later: Tensor, d: Tensor, config: RegionalConfig) -> Tensor:
    """What the normalised deterministic increment d lacks, normalised (batch, state, y, x)."""
    mean, std, m, s = _constants(before, config.mean, config.std, config.residual_mean, config.residual_scale)
    return (later - (before + d * std + mean) - m) / s


def after(
    states: Tensor,
    increment: Tensor,
    config: RegionalConfig,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The state after a normalised increment, and a normalised residual to it.

    Args:
        states: at t, physical units (batch, state, y, x).
        increment, residual: of its shape.
        config: with `mean`, `std`, bounds, and the constants of the residual.
        mask: as in `encode`.

    Returns:
        State at t + 12 h, physical units (batch, state, y, x), within bounds, 0 on land.
    """
    mean, std, lower, upper = _constants(states, config.mean, config.std, config.lower, config.upper)
    x = states + increment * std + mean
    if residual is not None:
        m, s = _constants(states, config.residual_mean, config.residual_scale)
        if config.residual_gain:
            (gain,) = _constants(states, config.residual_gain)
            residual = residual + (gain - 1) * detail(residual, mask)
        x = x + residual * s + m
    return on_ocean(torch.clamp(x, lower, upper), mask)


def detail(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What maps (batch, channel, y, x) have beyond the mean of their surroundings; linear, 0 on land.

    The mean is of the ocean among 3 x 3 cells, weighted 1 2 1 in either direction. Far from land, a wave that turns by
    a and b from cell to cell is multiplied by 1 - cos²(a/2) cos²(b/2): by 1 if of two cells, by 0.1 if of ten.
    """
    kept, wet = on_ocean(x, mask), torch.ones_like(x[:, :1]) if mask is None else mask.to(x)
    weights = torch.outer(row := x.new_tensor([0.25, 0.5, 0.25]), row)[None, None]
    total, share = (functional.conv2d(v.flatten(0, 1)[:, None], weights, padding=1).view_as(v) for v in (kept, wet))
    return on_ocean(kept - total / share.clamp(min=weights.min()), mask)


def on_ocean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Maps (batch, channel, y, x) with 0 on land, whatever was there; as they are without a mask."""
    return x if mask is None else torch.where(mask > 0, x, 0.0)


def _constants(like: Tensor, *numbers: tuple[float, ...]) -> list[Tensor]:
    return [torch.tensor(n, dtype=like.dtype, device=like.device)[:, None, None] for n in numbers]
