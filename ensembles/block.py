"""What one process writes: the records of a block of members, and where they go on from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import cftime
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from ..emulators import State
from ..emulators.state import Layout
from .packing import Packing
from .recording import TIME_UNITS, Recording, whole
from .shards import Series, write_rows

__all__ = ["Block"]


@dataclass(eq=False)
class Block:
    """The records of a block of members.

    Attributes:
        recording: the store.
        group: what it knows of the block.
        layouts: of a record of what is kept, of states and of forcing.
        packing: of their numbers.
        whole: layout of the states.
        series: what is written, record by record.
    """

    recording: Recording
    group: zarr.Group
    layouts: tuple[Layout, ...]
    packing: Packing
    whole: Layout
    series: dict[str, Series] = field(default_factory=dict)

    @property
    def rows(self) -> slice:
        """Positions of its members in the store."""
        return slice(whole(self.group, "first"), whole(self.group, "stop"))

    @property
    def members(self) -> tuple[int, ...]:
        """Numbers of its members."""
        return tuple(self.recording.members[self.rows])

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables it writes."""
        return tuple(str(v) for v in self.group.attrs["variables"])  # type: ignore[union-attr]

    @property
    def records(self) -> int:
        """How many records of the run are on disk, kept or not."""
        return whole(self.group, "records")

    @property
    def kept(self) -> int:
        """How many of them were kept."""
        return whole(self.group, "kept")

    @property
    def steps(self) -> int:
        """How many steps they are."""
        return whole(self.group, "steps")

    @cached_property
    def _masks(self) -> dict[str, tuple[slice, Tensor]]:
        """Channels and wet cells (level, y, x) of what it writes."""
        found = {}
        for layout in self.layouts:
            for f in layout.fields:
                if f.name in self.variables:
                    found[f.name] = layout.channels(f.name), torch.from_numpy(layout.field_mask(f).copy())
        return found

    def start(self) -> None:
        """Go on after what is on disk."""
        self.series = {n: Series(self.recording.array(n), self.rows, self.kept) for n in self._masks}

    def append_time(self, date: cftime.datetime) -> None:
        """Make the store longer by one record, whose date was not known when it was made."""
        length = self.recording.append_time(date)
        for series in self.series.values():
            series.grow(length)

    def put(self, layout: Layout, data: Tensor) -> None:
        """One more kept record (member, channel, y, x) of one of the layouts."""
        for name in layout.names:
            if name not in self._masks:
                continue
            channels, wet = self._masks[name]
            self.series[name].put(partial(self._pack, name, data[:, channels], wet))

    def _pack(self, name: str, values: Tensor, wet: Tensor, members: slice, out: NDArray[Any]) -> None:
        """Some members of a record (member, level, y, x) into (member, [level], y, x)."""
        room, here = torch.from_numpy(out).view(-1, *values.shape[1:]), values[members]
        if values.device.type == "cpu":
            self.packing.pack(name, here, wet, room, members.start)
            return
        there = torch.empty(here.shape, dtype=room.dtype, device=values.device)
        self.packing.pack(name, here, wet.to(values.device, non_blocking=True), there, members.start)
        pinned = torch.empty(here.shape, dtype=room.dtype, pin_memory=True)
        pinned.copy_(there)
        room.copy_(pinned)

    # --- commits ---------------------------------------------------------------------------------

    def begin(self, state: State) -> None:
        """Keep what it begins with."""
        _save(self.group, "initial", state, {})
        self.recording.files.sync()

    def commit(self, told: Mapping[str, int], state: State | None, sums: Mapping[str, Tensor]) -> None:
        """Make sure that what was put is on disk, and with a state, what the run goes on from.

        Args:
            told: how many `records` of the run these are, how many of them were `kept`, and how many `steps`.
            state: the newest.
            sums: of means that are not yet complete.
        """
        for series in self.series.values():
            series.flush()
        before, name = self.group.attrs["restart"], None
        if state is not None:
            name = f"restart-{told['steps']}"
            if name != before:  # never touch what a resumed run would begin with
                _save(self.group, name, state, sums)
        self.recording.files.sync()
        self.group.update_attributes({**told, "restart": name})
        self.recording.files.sync()
        self.tidy()

    def tidy(self) -> None:
        """Remove states that it no longer goes on from."""
        for path in (self.recording.path / self.group.path).glob("restart-*"):
            if path.name != self.group.attrs["restart"]:
                shutil.rmtree(path)

    def restart(self) -> tuple[State, dict[str, Tensor]] | None:
        """The state it goes on from, and the sums of means that are not yet complete; None if it has not begun."""
        name = self.group.attrs["restart"]
        found = _load(self.group, str(name or "initial"), self.whole, self.members)
        if found is None and name is not None:
            raise ValueError(f"{self.recording.path}: {self.group.path}/{name} is damaged; run it again from the start")
        return found

    def initial(self) -> State | None:
        """The state it began with, None if it has not begun."""
        found = _load(self.group, "initial", self.whole, self.members)
        return None if found is None else found[0]


def _save(group: zarr.Group, name: str, state: State, sums: Mapping[str, Tensor]) -> None:
    """Tensors of a state as arrays; dated last."""
    inside = group.create_group(name, overwrite=True)
    for key, value in {"state": state.data, **sums}.items():
        write_rows(inside, key, value.detach().cpu().numpy())
    calendar = state.time.calendar
    inside.update_attributes({"calendar": calendar, "time": int(cftime.date2num(state.time, TIME_UNITS, calendar))})


def _load(
    group: zarr.Group, name: str, layout: Layout, members: Sequence[int]
) -> tuple[State, dict[str, Tensor]] | None:
    """What `_save` saved, None if it did not come to the end."""
    inside = group.get(name)
    if not isinstance(inside, zarr.Group) or "time" not in inside.attrs:
        return None
    found: dict[str, Any] = {key: torch.from_numpy(np.asarray(array[...])) for key, array in inside.arrays()}
    time = cftime.num2date(inside.attrs["time"], TIME_UNITS, str(inside.attrs["calendar"]))
    return State(found.pop("state"), time, layout, tuple(members)), found
