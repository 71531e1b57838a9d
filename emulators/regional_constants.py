"""Constants of a regional sea-ice model of the residual: what normalises what a deterministic one lacks."""

from __future__ import annotations

import torch
from torch import Tensor

from .gensim_files import ConfigError
from .regional import Regional
from .regional_scaling import encode, increment
from .windows import Windows

__all__ = ["residual_constants"]


def residual_constants(
    emulator: Regional, windows: Windows, count: int = 256
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of what a deterministic emulator's forecasts lack, before they are clamped.

    Args:
        emulator: deterministic.
        windows: of training.
        count: of windows, spread evenly; all of them if there are fewer.

    Returns:
        `residual_mean` and `residual_scale` of the configuration of a residual model around its network (state,),
        physical units, over ocean cells, added up in float64.

    Raises ConfigError for an emulator that is not deterministic, or a channel that it forecasts without any error.
    """
    if emulator.kind != "deterministic":
        raise ConfigError(
            f"wanted a deterministic emulator, whose forecasts are to be corrected, got a {emulator.kind} one"
        )
    total, config = windows.count(1, 1), emulator.config
    device = next(emulator.network.parameters()).device
    wet = emulator.layout.mask[None, :1].to(device)
    cells = squares = sums = torch.zeros((), dtype=torch.float64, device=device)
    for k in sorted({i * total // count for i in range(count)}):
        batch = windows.get(k, 1, 1).to(device)
        driven = batch.forcings[0].reshape(1, 2, -1, *wet.shape[2:])
        told = encode(batch.start, driven, config, wet.to(batch.start))
        with torch.no_grad():
            d = emulator.network(told, told.new_zeros(1, emulator.network.config.n_augment_hidden))
        lacks = torch.where(wet, increment(batch.start, batch.targets[0], config) - d, 0.0).double()
        cells, sums, squares = cells + wet.sum(), sums + lacks.sum((0, 2, 3)), squares + lacks.square().sum((0, 2, 3))
    std = torch.tensor(config.std, dtype=torch.float64, device=device)
    mean, scale = std * sums / cells, std * (squares / cells - (sums / cells).square()).clamp(min=0).sqrt()
    exact = [n for n, s in zip(emulator.layout.names, scale.tolist(), strict=True) if s == 0]
    if exact:
        raise ConfigError(f"the forecasts of {', '.join(exact)} lack nothing that varies, which no residual can learn")
    return _numbers(mean), _numbers(scale)


def _numbers(*tensors: Tensor) -> tuple[float, ...]:
    return tuple(float(v) for t in tensors for v in t)
