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
class Windows:
    """Windows cut from sources, numbered over stores, members and starting records.

    A window is read from its store when it is asked for, unless all records are kept in memory, see `keep`.

    Attributes:
        states: one Source of the emulator's layout per store.
        forcings: the Source of the same store in the emulator's forcing layout.
    """

    states: Sequence[Source]
    forcings: Sequence[Source]
    _layouts: dict[Any, Layout] = field(default_factory=dict, repr=False)
    _kept: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def count(self, steps: int, stride: int) -> int:
        """How many windows of `steps` calls there are, over all stores and members."""
        return sum(len(s.members) * self._starts(s, steps, stride) for s in self.states)

    def _starts(self, source: Source, steps: int, stride: int) -> int:
        slots = source.layout.slots
        starts = len(source.times) + min(slots) - max(slots) - steps * stride
        if starts < 1:
            raise ValueError(
                f"{source.path}: {len(source.times)} records are too few for windows of {steps} steps of {stride} "
                f"record(s) and time slots {slots}"
            )
        return starts

    def get(self, index: int, steps: int, stride: int, links: int = 1, link: int = 0) -> Batch:
        """Window `index` alone, as a batch of one; of a chain of `links` windows, number `link`.

        Raises IndexError if there is none.
        """
        at = index
        for number, source in enumerate(self.states):
            starts = self._starts(source, steps * links, stride)
            if at < starts * len(source.members):
                member, start = source.members[at // starts], at % starts - min(source.layout.slots)
                start += link * steps * stride
                records = self._read(number, "states", start, steps * stride, member)
                driven = self._read(number, "forcings", start, (steps - 1) * stride, member)
                states = _slots(records, source.layout.slots, steps + 1, stride)
                forcings = _slots(driven, self.forcings[number].layout.slots, steps, stride)
                return Batch(states[:1].flatten(0, 1), forcings, states[1:], (index,), source.times[start])
            at -= starts * len(source.members)
        raise IndexError(f"no window {index}: there are {self.count(steps * links, stride)} of {steps * links} steps")

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

    def _read(self, number: int, kind: str, start: int, length: int, member: int) -> Tensor:
        """Records of a store, from the oldest slot of `start` on (record, channel of one slot, y, x)."""
        source: Source = getattr(self, kind)[number]
        slots = source.layout.slots
        first, records = start + min(slots), length + max(slots) - min(slots) + 1
        kept = self._kept.get((number, kind, member))
        return self._packed(number, kind, first, records, member) if kept is None else kept[first : first + records]

    def keep(self) -> Windows:
        """Read all records now and keep them as tensors, from which windows are cut a hundred times faster."""
        for number, states in enumerate(self.states):
            for kind, source in (("states", states), ("forcings", self.forcings[number])):
                alike = source.dataset.sizes.get("member", 1) == 1  # one record for all members
                for member in states.members:
                    whole = self._kept.get((number, kind, states.members[0])) if alike else None
                    self._kept[number, kind, member] = self._all(number, kind, member) if whole is None else whole
        return self

    def _all(self, number: int, kind: str, member: int) -> Tensor:
        """All records of a store, as `_read`."""
        source: Source = getattr(self, kind)[number]
        count, channels = len(source.times), source.layout.shape[0] // len(source.layout.slots)
        whole = torch.empty(count, channels, *source.layout.shape[1:])
        for first in range(0, count, _BLOCK):
            records = min(_BLOCK, count - first)
            whole[first : first + records] = self._packed(number, kind, first, records, member)
        return whole

    def _packed(self, number: int, kind: str, first: int, records: int, member: int) -> Tensor:
        """Records of a store from number `first` on, read (record, channel of one slot, y, x)."""
        source: Source = getattr(self, kind)[number]
        layout = self._layouts.setdefault(
            (kind, number, records), replace(source.layout, slots=tuple(range(records)))
        )  # one slot per record: the border to tensors is crossed once per window
        part = source.dataset[list(layout.names)].isel(time=slice(first, first + records))
        if "member" in part.dims:
            part = part.isel(member=0, drop=True) if part.sizes["member"] == 1 else part.sel(member=member, drop=True)
        data = layout.pack(part.load(), source.times[first]).data
        return data.view(records, -1, *data.shape[2:])


def _slots(records: Tensor, slots: tuple[int, ...], count: int, stride: int) -> Tensor:
    """The states at every `stride`-th record, with their time slots as channels (state, 1, channel, y, x)."""
    shift = -min(slots)
    states = [torch.cat([records[k * stride + shift + s] for s in slots]) for k in range(count)]
    return torch.stack(states)[:, None]


def windows_of(
    emulator: Trainable, stores: Sequence[Any], *, in_memory: bool = False, climatology: Any = None
) -> Windows:
    """Windows from stores that hold both the states and their forcing, as `rollout(with_forcing=True)` writes.

    Args:
        emulator: its layouts say what is read.
        stores: paths, or datasets, e.g. of training years only: `open_store(path).sel(time=slice(...))`.
        in_memory: read the variables now and keep them, in float32; raises LayoutError for NaN in wet cells.
        climatology: for `hfds_anomalies`, see `Source.open`.
    """
    states, forcings = [], []
    for store in stores:
        dataset = open_store(store)
        wanted = dict.fromkeys((*emulator.layout.names, *emulator.forcing_layout.names, "hfds"))  # its anomalies too
        dataset = dataset[[n for n in wanted if n in dataset]]
        given = {} if climatology is None else {"climatology": climatology}
        states.append(replace(Source.open(dataset, emulator.layout), path=_name(store)))
        forcings.append(replace(Source.open(dataset, emulator.forcing_layout, **given), path=_name(store)))
    windows = Windows(states, forcings)
    return windows.keep() if in_memory else windows


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
