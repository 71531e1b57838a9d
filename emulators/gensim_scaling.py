"""What GenSIM's network sees instead of physical numbers, and back: inputs, bounds and increments, normalised.

Inputs are standardised; outputs are increments over twelve hours in units of their standard deviation, so that the
bounds of a state are bounds of its increment that differ from cell to cell (Finn et al. 2025, arXiv:2508.14984).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gensim_files import GenSIMConfig

__all__ = ["at_bounds", "decode", "encode", "increment", "latent_bounds"]


def encode(states: Tensor, forcings: Tensor, degree_days: Tensor, mask: Tensor, config: GenSIMConfig) -> Tensor:
    """Normalise what the network is told.

    Args:
        states: at t, physical units (batch, state, y, x).
        forcings: at t and t + 12 h (batch, 2, forcing, y, x).
        degree_days: at t (batch, degree day, y, x).
        mask: 1 for ocean, 0 for land (batch, 1, y, x).
        config: with `input_mean` and `input_std`.

    Returns:
        Conditions (batch, input, y, x), without unit, 0 on land.
    """
    x = torch.cat((states, forcings.flatten(1, 2), degree_days), 1)
    mean, std = _constants(x, config.input_mean, config.input_std)
    return torch.where(mask > 0, (x - mean) / (std + 1e-9), 0.0)


def latent_bounds(states: Tensor, mask: Tensor, config: GenSIMConfig) -> tuple[Tensor, Tensor]:
    """The bounds of the normalised increment, (batch, state, y, x) each; on land 0, and infinite where they are."""
    mean, std, lower, upper = _constants(states, config.mean, config.std, config.lower, config.upper)
    low, high = ((bound - states - mean) / std for bound in (lower, upper))
    land = mask == 0
    return (torch.where(land & low.isfinite(), 0.0, low), torch.where(land & high.isfinite(), 0.0, high))


def decode(states: Tensor, increment: Tensor, mask: Tensor, config: GenSIMConfig) -> Tensor:
    """The state after a normalised increment, within bounds, physical units (batch, state, y, x), 0 on land."""
    mean, std, lower, upper = _constants(states, config.mean, config.std, config.lower, config.upper)
    after = torch.clamp(states + increment * std + mean, lower, upper)
    return torch.where(mask > 0, after, 0.0)


def increment(before: Tensor, after: Tensor, mask: Tensor, config: GenSIMConfig) -> Tensor:
    """The normalised increment from one state to another, (batch, state, y, x), 0 on land; undone by `decode`."""
    mean, std = _constants(before, config.mean, config.std)
    return torch.where(mask > 0, (after - before - mean) / std, 0.0)


def at_bounds(states: Tensor, config: GenSIMConfig) -> tuple[Tensor, Tensor]:
    """Where states (batch, state, y, x) are at their lower and at their upper bound, bool."""
    lower, upper = _constants(states, config.lower, config.upper)
    return states <= lower, states >= upper


def _constants(like: Tensor, *numbers: tuple[float, ...]) -> list[Tensor]:
    return [torch.tensor(n, dtype=like.dtype, device=like.device)[:, None, None] for n in numbers]
