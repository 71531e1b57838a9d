"""GenSIM's training loss: the censored likelihood of the velocity, as a function of tensors.

Finn et al. (2025, arXiv:2508.14984); the pieces are in `flow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .flow import censored_nll, on_path
from .gensim_files import GenSIMConfig
from .gensim_scaling import at_bounds, encode, increment

__all__ = ["flow_errors", "flow_loss"]

Network = Callable[..., Tensor]


def flow_errors(
    network: Network,
    log_scale: Network,
    states: Tensor,
    forcings: Tensor,
    degree_days: Tensor,
    mesh: Tensor,
    mask: Tensor,
    labels: Tensor,
    resolution: Tensor,
    noise: Tensor,
    time: Tensor,
    config: GenSIMConfig,
) -> Tensor:
    """The censored negative log-likelihood of a velocity, the mean over ocean cells away from the halo.

    Args:
        network, log_scale: a `Transformer` and a `LogScale`, or functions like them.
        states: at t and t + 12 h, physical units, 0 on land (batch, 2, state, y, x).
        forcings, degree_days, mesh, mask, noise: as in `forecast`; a sample is one window with its halo.
        labels: of augmentation (batch, n_augment_in).
        resolution: size of a cell in km (batch, 1).
        time: pseudo-times, see `flow.stratified_times` (batch, 1).
        config: constants, bounds, and the halo to leave out.

    Returns:
        Of each variable (state,), without unit; 0 where there is no ocean at all.

    Source: Finn et al. (2025).
    """
    before, after = states[:, 0], states[:, 1]
    x, v = on_path(increment(before, after, mask, config), noise, time[:, :, None, None])
    told = encode(before, forcings, degree_days, mask, config)
    predicted = network(torch.cat((x, told), 1), mesh, mask, time, labels, resolution)
    s = log_scale(time, labels, resolution)[:, :, None, None]
    nll = censored_nll(v, predicted, s, *at_bounds(after, config))
    rows, columns = (slice(h, n - h) for h, n in zip(config.halo, mask.shape[-2:], strict=True))
    inner = mask[..., rows, columns]
    return (nll[..., rows, columns] * inner).sum((0, 2, 3)) / inner.sum().clamp(min=1)


def flow_loss(*given: Any, **named: Any) -> Tensor:
    """The mean of `flow_errors` over variables, a number: what the original minimises."""
    return flow_errors(*given, **named).mean()
