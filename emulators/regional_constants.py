"""Constants of the regional sea-ice models from data: what normalises inputs, increments and residuals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .gensim_files import ConfigError
from .regional import Regional
from .regional_files import RegionalConfig
from .regional_scaling import encode, increment
from .scaling import scaling_from
from .state import Layout
from .statistics import statistics_of
from .stores import open_store
from .windows import Windows

__all__ = ["fitted", "residual_constants"]


def fitted(
    config: RegionalConfig,
    layout: Layout,
    forcing_layout: Layout,
    stores: Sequence[Any],
    *,
    start: Any = None,
    end: Any = None,
    progress: bool = False,
) -> RegionalConfig:
    """A configuration with the inputs' means and standard deviations in the stores, and those of increments.

    Args:
        config: all else.
        layout, forcing_layout: of the emulator.
        stores: as for `windows_of`, with a record every step; several are pooled, by numbers of records and members.
        start, end: first and last date of the period, of training; see `statistics_of`, which reads the stores once.
        progress: show bars.

    Returns:
        With `input_mean`, `input_std`, and `std` of increments around their mean in each store, over ocean cells,
        unweighted, added up in float64; `mean` is 0.

    Raises SourceError for a variable that is missing, NaN in the ocean or never varies; StatisticsError for one
    whose increments are all alike; ConfigError for records that are not one step apart.
    """
    names, dt = tuple(dict.fromkeys((*layout.names, *forcing_layout.names))), forcing_layout.interval
    parts, records = [], []
    for store in stores:
        part = statistics_of(store, start=start, end=end, variables=names, progress=progress)
        if part.attrs["interval"] != dt.total_seconds():
            hours = part.attrs["interval"] / 3600
            raise ConfigError(f"wanted records every {dt}, got one every {hours:g} hours; select every n-th record")
        parts.append(part)
        records.append((part.attrs["records"], open_store(store).sizes.get("member", 1)))
    scaling = scaling_from(_pooled(parts, names, records), layout, forcing_layout)
    n = layout.shape[0]
    return replace(
        config,
        input_mean=_numbers(scaling.mean, scaling.forcing_mean),
        input_std=_numbers(scaling.std, scaling.forcing_std),
        mean=(0.0,) * n,
        std=_numbers(scaling.increment),
    )


def _pooled(parts: list[xr.Dataset], names: tuple[str, ...], records: list[tuple[int, int]]) -> xr.Dataset:
    """Statistics of all stores as of one."""
    share = np.array([n * members for n, members in records], float)
    steps = np.array([(n - 1) * members for n, members in records], float)
    found = {}
    for name in names:
        mean, std, change = (np.array([float(p[f"{name}_{k}"]) for p in parts]) for k in ("mean", "std", "increment"))
        middle = np.average(mean, weights=share)
        found[f"{name}_mean"] = middle
        found[f"{name}_std"] = np.sqrt(np.average(std**2 + (mean - middle) ** 2, weights=share))
        found[f"{name}_increment"] = np.sqrt(np.average(change**2, weights=steps))
    return xr.Dataset(found)


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
