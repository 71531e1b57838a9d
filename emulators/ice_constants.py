"""Constants of the sea-ice models from data: what normalises their inputs and increments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from .gensim import DEGREE_DAYS
from .gensim_files import ConfigError, GenSIMConfig
from .regional_files import RegionalConfig
from .scaling import scaling_from
from .state import Layout
from .statistics import statistics_of
from .stores import open_store

__all__ = ["fitted"]

C = TypeVar("C", bound=GenSIMConfig | RegionalConfig)


def fitted(
    config: C,
    layout: Layout,
    forcing_layout: Layout,
    stores: Sequence[Any],
    *,
    start: Any = None,
    end: Any = None,
    progress: bool = False,
) -> C:
    """A configuration with the inputs' means and standard deviations in the stores, and those of increments.

    Args:
        config: all else, of a `Regional` or a `GenSIM`.
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
    driven = _order(forcing_layout)
    return replace(
        config,
        input_mean=(*scaling.mean.tolist(), *scaling.forcing_mean[driven].tolist()),
        input_std=(*scaling.std.tolist(), *scaling.forcing_std[driven].tolist()),
        mean=(0.0,) * layout.shape[0],
        std=tuple(scaling.increment.tolist()),
    )


def _order(layout: Layout) -> list[int]:
    """Channels of forcing that a network is told: weather of both slots, then degree days of the first."""
    days = [k for k, name in enumerate(layout.names) if name in DEGREE_DAYS]
    weather = [k for k in range(len(layout.names)) if k not in days]
    return [*weather, *(len(layout.names) + k for k in weather), *days]


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
