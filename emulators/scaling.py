"""Normalisation: mean and standard deviation per channel, and the size of a typical change.

Statistics run over wet cells and the records given (training years only, if that is what is given), in
one pass and in float64, so that a store larger than memory is no obstacle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .state import Layout, State


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


def scaling_of(layout: Layout, forcing_layout: Layout, states: Iterable[State], forcings: Iterable[State]) -> Scaling:
    """Statistics of records, each a one-slot State; consecutive states of the same members give increments.

    Args:
        layout, forcing_layout: of the emulator; with several slots, every slot gets the same constants.
        states: records in order of time; a jump in time starts a new series.
        forcings: forcing records, in any order.

    A forcing that never varies is only centred. Raises ValueError for a state channel that never varies.
    """
    state, change, driven = _Moments(), _Moments(), _Moments()
    wet = layout.mask[: layout.shape[0] // len(layout.slots)]
    previous: State | None = None
    for now in states:
        state.add(now.data, wet)
        if previous is not None and now.time - previous.time == layout.interval and now.members == previous.members:
            change.add(now.data - previous.data, wet)
        previous = now
    forcing_wet = forcing_layout.mask[: forcing_layout.shape[0] // len(forcing_layout.slots)]
    for forcing in forcings:
        driven.add(forcing.data, forcing_wet)
    flat = (state.std() <= 1e-12).nonzero().flatten().tolist()
    if flat:
        labels = [layout.channel_labels()[k] for k in flat]
        raise ValueError(f"constant over these records: {', '.join(labels)}; leave them out, or give more records")
    spread = driven.std()
    n, m = len(layout.slots), len(forcing_layout.slots)
    return Scaling(
        state.mean().float().repeat(n),
        state.std().float().repeat(n),
        change.std().clamp(min=1e-12).float().repeat(n),
        driven.mean().float().repeat(m),
        torch.where(spread > 1e-12, spread, 1.0).float().repeat(m),
    )


class _Moments:
    """Count, sum and centred sum of squares per channel, added up in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def add(self, data: Tensor, wet: Tensor) -> None:
        """Include (member, channel, y, x) values where `wet` (channel, y, x)."""
        x = data.detach().double()
        count = (wet.sum((1, 2)) * len(x)).double()
        total = (x * wet).sum((0, 2, 3))
        mean = total / count.clamp(min=1)
        square = (((x - mean[:, None, None]) * wet) ** 2).sum((0, 2, 3))
        if isinstance(self.count, Tensor):
            shift = mean - self.mean()
            square = square + shift**2 * self.count * count / (self.count + count)
        self.count, self.total, self.square = self.count + count, self.total + total, self.square + square

    def mean(self) -> Tensor:
        """(channel,)."""
        return torch.as_tensor(self.total / self.count)

    def std(self) -> Tensor:
        """(channel,), divisor n."""
        return torch.as_tensor(self.square / self.count).sqrt()
