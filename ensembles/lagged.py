"""Lagged states: members from earlier records, whose differences have the structure of the ocean's own changes.

Member k starts from the state k lags before (Hoffman and Kalnay 1983, Tellus A 35).
`lagged` gives these states; `Lagged` their anomalies, scaled, as a perturbation like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import cftime
import torch
from torch import Tensor

from ..emulators import Draws, Layout, Source, State

__all__ = ["Lagged", "lagged"]


def lagged(source: Source, time: cftime.datetime, members: int | Sequence[int], lag: timedelta) -> State:
    """An ensemble whose member k is the state k lags before `time`, all dated `time`.

    Args:
        source: of the states; of a dataset with members, the first is taken.
        time: date of the ensemble; member 0 is the state of this date.
        members: how many, or which numbers.
        lag: time from one member to the next, counted in records as by `Source.shift`; negative for later states.

    Raises ValueError for no members or a lag of 0; SourceError if a date is not in the source.
    """
    numbers = tuple(range(members)) if isinstance(members, int) else tuple(members)
    if not numbers or not lag:
        raise ValueError(f"lagged states need at least one member and a lag that is not 0, got {numbers} and {lag}")
    first = source.members[:1]
    states = [source.state(source.shift(time, -m * lag), first) for m in numbers]
    return State(torch.cat([s.data for s in states]), time, states[0].layout, numbers)


@dataclass(frozen=True, eq=False)
class Lagged:
    """Anomalies of lagged states from their mean, of unit variance per channel; a `Perturbation`.

    Each channel is divided by its root-mean-square anomaly over the `count` lags and its wet cells (by area), so
    that amplitudes mean what they mean elsewhere on average, and cells keep the ratios the record gives them. What a
    member draws depends on `count` but not on which members are drawn. Noise is not used.

    Attributes:
        source: of the states.
        lag: time from one member to the next.
        count: number of lagged states; members are numbered below it.
        centred: anomalies from the mean of all `count`; otherwise from the newest, so that member 0 is unperturbed.

    Raises ValueError for fewer than two states or a lag of 0.
    """

    source: Source
    lag: timedelta
    count: int
    centred: bool = True
    _kept: dict[cftime.datetime, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.count < 2 or not self.lag:
            raise ValueError(f"Lagged needs count >= 2 and a lag that is not 0, got {self.count} and {self.lag}")

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """The anomalies, (member, channel, y, x); raises ValueError for a member number that is not below `count`."""
        self.source.layout.require_same(layout, "Lagged: layout")
        beyond = [m for m in members if not 0 <= m < self.count]
        if beyond:
            raise ValueError(f"there are {self.count} lagged states, got members {beyond}; raise `count`")
        if time not in self._kept:
            self._kept.clear()
            self._kept[time] = self._anomalies(layout, time)
        return self._kept[time][list(members)]

    def _anomalies(self, layout: Layout, time: cftime.datetime) -> Tensor:
        states = lagged(self.source, time, self.count, self.lag).data.double()
        anomalies = states - (states.mean(0) if self.centred else states[0])
        weights = torch.from_numpy(layout.grid["areacello"].fillna(0.0).values).double() * layout.mask
        mean_square = (anomalies.square() * weights).sum((-2, -1)).mean(0) / weights.sum((-2, -1)).clamp(min=1e-30)
        size = mean_square.sqrt()[:, None, None]
        return torch.where((size > 0) & layout.mask, anomalies / size.clamp(min=1e-30), 0.0).float()
