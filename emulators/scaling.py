"""Normalisation: mean and standard deviation per channel, and the size of a typical change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .state import Layout


class StatisticsError(ValueError):
    """Constants that cannot normalise the variables asked for."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Constants of one emulator, one per channel of all its time slots.

    Attributes:
        mean, std: of the state (channel,).
        increment: standard deviation of the change over one interval (channel,).
        forcing_mean, forcing_std: of the forcing (forcing channel,).
    """

    mean: Tensor
    std: Tensor
    increment: Tensor
    forcing_mean: Tensor
    forcing_std: Tensor

    def to(self, like: Tensor) -> Scaling:
        """The constants in the dtype and on the device of a tensor, shaped (channel, 1, 1)."""
        return Scaling(**{f.name: getattr(self, f.name).to(like).view(-1, 1, 1) for f in fields(self)})


def scaling_from(statistics: xr.Dataset, layout: Layout, forcing_layout: Layout) -> Scaling:
    """Normalisation constants from statistics per variable and level, as `statistics_of` makes them.

    Args:
        statistics: `NAME_mean`, `NAME_std` and `NAME_increment`, with dimension `lev` for variables with levels;
            increments that are missing are taken to be the standard deviations.
        layout, forcing_layout: of the emulator; every time slot gets the same constants.

    Raises StatisticsError, naming variable and level, for constants that are missing, not finite, or zero where
    they divide.
    """
    state, forced = (len(of.slots) for of in (layout, forcing_layout))
    return Scaling(
        _constants(statistics, layout, "mean").repeat(state),
        _constants(statistics, layout, "std").repeat(state),
        _constants(statistics, layout, "increment").repeat(state),
        _constants(statistics, forcing_layout, "mean").repeat(forced),
        _constants(statistics, forcing_layout, "std").repeat(forced),
    )


def _constants(statistics: xr.Dataset, layout: Layout, kind: str) -> Tensor:
    """One kind of constant for the channels of one slot."""
    values: list[float] = []
    for f in layout.fields:
        name = f"{f.name}_{kind}"
        if kind == "increment" and name not in statistics:
            name = f"{f.name}_std"
        known = np.atleast_1d(statistics[name].values.astype(float)) if name in statistics else np.empty(0)
        values += [*known[: f.channels], *[np.nan] * (f.channels - len(known))]
    pairs = list(zip(layout.channel_labels(), values, strict=True))
    missing = [label for label, value in pairs if not np.isfinite(value)]
    if missing:
        have = sorted({str(n).rsplit("_", 1)[0] for n in statistics.data_vars})
        raise StatisticsError(f"the statistics lack the {kind} of {_few(missing)}; they are of {_few(have)}")
    zero = [] if kind == "mean" else [label for label, value in pairs if value <= 0]
    if zero:
        raise StatisticsError(
            f"the statistics have a {kind} of 0 for {_few(zero)}, by which nothing can be divided; leave those "
            "variables or levels out, or compute statistics over records in which they vary"
        )
    return torch.tensor(values, dtype=torch.float32)


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
