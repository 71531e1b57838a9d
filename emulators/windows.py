"""Training windows: an initial state, the forcing of each step and the states that came, read ahead in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import cftime
import torch
import xarray as xr
from torch import Tensor

from .source import Source, open_store
from .state import Layout
from .trainable import Trainable

_AHEAD = 3  # batches read before they are wanted
_BLOCK = 32  # records read at once


@dataclass(frozen=True)
class Place:
    """Which window: number `link` of the chain that starts at window `index`; `fresh` if from its truth."""

    index: int
    link: int = 0
    fresh: bool = True


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of one update.

    Attributes:
        start: initial states (window, channel, y, x), physical units.
        forcings: of each step (step, window, forcing channel, y, x).
        targets: the state after each step (step, window, channel, y, x).
        numbers: of the windows; they name the members that noise is drawn for.
        time: of the first window's initial state.
        fresh: whether a window starts from its truth, or where the run of the update before has ended (window,).
    """

    start: Tensor
    forcings: Tensor
    targets: Tensor
    numbers: tuple[int, ...]
    time: cftime.datetime
    fresh: tuple[bool, ...] = (True,)

    def members(self, each: int) -> tuple[int, ...]:
        """Numbers of the members when every window is run `each` times, member slowest."""
        return tuple(each * k + i for i in range(each) for k in self.numbers)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = {n: getattr(self, n).to(device, non_blocking=True) for n in ("start", "forcings", "targets")}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Forecast:
    """Forecasts that windows begin from, of some members and times of a store.

    Attributes:
        states: the records of the forecast, after its initial state.
        number: of the store.
        offset: the record of the store that the first of the forecast is a forecast of.
    """

    states: Source
    number: int
    offset: int


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows cut from sources, numbered over stores, members and starting records; then over forecasts likewise.

    A window is read from its store when it is asked for, unless all records are kept in memory, see `keep`.

    Attributes:
        states: one Source of the emulator's layout per store.
        forcings: the Source of the same store in the emulator's forcing layout.
        forecasts: each record of them begins a window, too, whose forcing and targets are those of the store.
    """

    states: Sequence[Source]
    forcings: Sequence[Source]
    forecasts: Sequence[Forecast] = ()
    _layouts: dict[Any, Layout] = field(default_factory=dict, repr=False)
    _kept: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def count(self, steps: int, stride: int) -> int:
        """How many windows of `steps` calls there are, over all stores, forecasts and members."""
        return sum(len(members) * starts for _, members, starts in self._parts(steps, stride))

    def _parts(self, steps: int, stride: int) -> Iterator[tuple[Forecast | int, tuple[int, ...], int]]:
        """Each forecast or number of a store, with its members and the number of windows of each."""
        for number, source in enumerate(self.states):
            yield number, source.members, _starts(source, len(source.times), steps, stride)
        for forecast in self.forecasts:
            source = forecast.states
            ahead = max(source.layout.slots) + steps * stride  # records of the store's that may lie after the forecast
            left = len(self.states[forecast.number].times) - forecast.offset
            yield forecast, source.members, _starts(source, min(len(source.times) + ahead, left), steps, stride)

    def get(self, index: int, steps: int, stride: int, links: int = 1, link: int = 0) -> Batch:
        """Window `index` alone, as a batch of one; of a chain of `links` windows, number `link`.

        Raises IndexError if there is none.
        """
        at = index
        for part, members, starts in self._parts(steps * links, stride):
            if at < starts * len(members):
                return self._cut(part, members[at // starts], at % starts, (steps, stride, link), index)
            at -= starts * len(members)
        raise IndexError(f"no window {index}: there are {self.count(steps * links, stride)} of {steps * links} steps")

    def _cut(self, part: Forecast | int, member: int, first: int, calls: tuple[int, int, int], index: int) -> Batch:
        """The window of a member that begins at the first record that can."""
        steps, stride, link = calls
        number, offset = (part, 0) if isinstance(part, int) else (part.number, part.offset)
        source = self.states[number]
        start = offset + first - min(source.layout.slots) + link * steps * stride
        records = self._read("states", number, start, steps * stride, member)
        driven = self._read("forcings", number, start, (steps - 1) * stride, member)
        states = _slots(records, source.layout.slots, steps + 1, stride)
        forcings = _slots(driven, self.forcings[number].layout.slots, steps, stride)
        begin = states[:1]
        if not isinstance(part, int) and link == 0:  # chains go on from where they are; if lost, from the truth
            own = self._read("forecasts", self.forecasts.index(part), start - offset, 0, member)
            begin = _slots(own, source.layout.slots, 1, stride)
        return Batch(begin.flatten(0, 1), forcings, states[1:], (index,), source.times[start])

    def batch(self, chosen: Sequence[Place], steps: int, stride: int, links: int = 1) -> Batch:
        """Some windows as one batch; all are of chains of equal length."""
        parts = [self.get(c.index, steps, stride, links, c.link) for c in chosen]
        return Batch(
            torch.cat([p.start for p in parts]),
            torch.cat([p.forcings for p in parts], 1),
            torch.cat([p.targets for p in parts], 1),
            tuple(c.index for c in chosen),
            parts[0].time,
            tuple(c.fresh for c in chosen),
        )

    def _source(self, kind: str, number: int) -> Source:
        """The Source of a store's states or forcings, or of a forecast."""
        sources = {"states": self.states, "forcings": self.forcings, "forecasts": [f.states for f in self.forecasts]}
        return sources[kind][number]

    def _read(self, kind: str, number: int, start: int, length: int, member: int) -> Tensor:
        """Records of a store, from the oldest slot of `start` on (record, channel of one slot, y, x)."""
        source = self._source(kind, number)
        slots = source.layout.slots
        first, records = start + min(slots), length + max(slots) - min(slots) + 1
        kept = self._kept.get((kind, number, member))
        return self._packed(kind, number, first, records, member) if kept is None else kept[first : first + records]

    def keep(self) -> Windows:
        """Read all records now and keep them as tensors, from which windows are cut a hundred times faster."""
        wanted = [("states", k, s.members) for k, s in enumerate(self.states)]
        wanted += [("forcings", k, s.members) for k, s in enumerate(self.states)]
        wanted += [("forecasts", k, f.states.members) for k, f in enumerate(self.forecasts)]
        for kind, number, members in wanted:
            alike = self._source(kind, number).dataset.sizes.get("member", 1) == 1  # one record for all members
            for member in members:
                whole = self._kept.get((kind, number, members[0])) if alike else None
                self._kept[kind, number, member] = self._all(kind, number, member) if whole is None else whole
        return self

    def _all(self, kind: str, number: int, member: int) -> Tensor:
        """All records of a store, as `_read`."""
        source = self._source(kind, number)
        count, channels = len(source.times), source.layout.shape[0] // len(source.layout.slots)
        whole = torch.empty(count, channels, *source.layout.shape[1:])
        for first in range(0, count, _BLOCK):
            records = min(_BLOCK, count - first)
            whole[first : first + records] = self._packed(kind, number, first, records, member)
        return whole

    def _packed(self, kind: str, number: int, first: int, records: int, member: int) -> Tensor:
        """Records of a store from number `first` on, read (record, channel of one slot, y, x)."""
        source = self._source(kind, number)
        layout = self._layouts.setdefault(
            (kind, number, records), replace(source.layout, slots=tuple(range(records)))
        )  # one slot per record: the border to tensors is crossed once per window
        part = source.dataset[list(layout.names)].isel(time=slice(first, first + records))
        if "member" in part.dims:
            part = part.isel(member=0, drop=True) if part.sizes["member"] == 1 else part.sel(member=member, drop=True)
        data = layout.pack(part.load(), source.times[first]).data
        return data.view(records, -1, *data.shape[2:])


def _starts(source: Source, records: int, steps: int, stride: int) -> int:
    """How many of the records of a source windows of so many steps can begin with."""
    slots = source.layout.slots
    starts = records + min(slots) - max(slots) - steps * stride
    if starts < 1:
        raise ValueError(
            f"{source.path}: {records} records are too few for windows of {steps} steps of {stride} "
            f"record(s) and time slots {slots}"
        )
    return starts


def _slots(records: Tensor, slots: tuple[int, ...], count: int, stride: int) -> Tensor:
    """The states at every `stride`-th record, with their time slots as channels (state, 1, channel, y, x)."""
    shift = -min(slots)
    states = [torch.cat([records[k * stride + shift + s] for s in slots]) for k in range(count)]
    return torch.stack(states)[:, None]


def windows_of(
    emulator: Trainable,
    stores: Sequence[Any],
    *,
    forecasts: Sequence[Any] = (),
    in_memory: bool = False,
    climatology: Any = None,
) -> Windows:
    """Windows from stores that hold both the states and their forcing, as `rollout(with_forcing=True)` writes.

    Args:
        emulator: its layouts say what is read.
        stores: paths, or datasets, e.g. of training years only: `open_store(path).sel(time=slice(...))`.
        forecasts: stores of the emulator's own forecasts from states of `stores`, as `rollout` writes them: members are
            those of the truth. A window begins from each of their records, too, but for the initial one, while its
            targets are the truth. So a network learns to lead states as it makes them back to states as they
            are: trained on them as well, a generative one keeps the power of small scales that it else loses or piles
            up from step to step. (Ross, Gordon & Bagnell 2011, AISTATS, "A reduction of imitation learning and
            structured prediction to no-regret online learning".)
        in_memory: read the variables now and keep them, in float32; raises LayoutError for NaN in wet cells.
        climatology: for `hfds_anomalies`, see `Source.open`.

    Raises ValueError for a forecast whose members and times are in no store.
    """
    states, forcings = [], []
    for store in stores:
        dataset = open_store(store)
        wanted = dict.fromkeys((*emulator.layout.names, *emulator.forcing_layout.names, "hfds"))  # its anomalies too
        dataset = dataset[[n for n in wanted if n in dataset]]
        given = {} if climatology is None else {"climatology": climatology}
        states.append(replace(Source.open(dataset, emulator.layout), path=_name(store)))
        forcings.append(replace(Source.open(dataset, emulator.forcing_layout, **given), path=_name(store)))
    own = []
    for store in forecasts:
        later = open_store(store)[list(emulator.layout.names)].isel(time=slice(1, None))
        own.append(_matched(replace(Source.open(later, emulator.layout), path=_name(store)), states))
    windows = Windows(states, forcings, own)
    return windows.keep() if in_memory else windows


def _matched(forecast: Source, truths: Sequence[Source]) -> Forecast:
    """A forecast with the store that has its members and times."""
    for number, truth in enumerate(truths):
        if set(forecast.members) <= set(truth.members) and forecast.times[0] in truth.times:
            offset = truth.times.index(forecast.times[0])
            if truth.times[offset : offset + len(forecast.times)] == forecast.times:
                return Forecast(forecast, number, offset)
    raise ValueError(
        f"{forecast.path}: no store has the members {forecast.members} of this forecast at its times, "
        f"{forecast.times[0]} to {forecast.times[-1]}; make it from states of the stores, members numbered as there"
    )


def _name(store: Any) -> str:
    return "the dataset" if isinstance(store, xr.Dataset) else str(store)


def read_ahead(read: Callable[[int], Batch], first: int, last: int) -> Iterator[Batch]:
    """`read(first)` to `read(last - 1)` in order, each read in the background while the ones before are used."""
    with ThreadPoolExecutor(1, "windows") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for n in range(first, last):
                while len(waiting) < min(_AHEAD, last - n):
                    waiting.append(pool.submit(read, n + len(waiting)))
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
