"""Streaming States to a store, as they come: whole shards, CF names, member numbers, provenance.

`Recorder` takes the states of one block of members; `record` is for states that come from anywhere, `rollout` for runs
that can be resumed. Values are packed and written by another thread while the next state is computed.
"""

from __future__ import annotations

import platform
import time as clock
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import cftime
import torch
import xarray as xr
from rich.progress import track
from torch import Tensor

from ..emulators import Forcing, Source, State, StoreExistsError, open_store
from ..emulators.state import Layout
from .block import Block
from .dates import slot_times
from .durable import Background
from .output import Output, Selection
from .recording import Recording, numbers_of, whole

__all__ = ["Recorder", "StoreExistsError", "made_by", "record", "recorded", "states_of"]

_COMMIT_SECONDS = 10.0


class Recorder:
    """Takes the states of a block of members, in order of time, and has what is kept of them written.

    Args:
        block: where they go.
        background: the thread that writes.
        output: what is kept.
        selection: of the states; with the second, of the forcing that is recorded beside them.
        forcing: what is recorded beside the states.
        dates: a `Source` that dates the time slots of the states.
        last: date of the newest record that was written before; slots up to it are not written again.
        sums: of means that are not yet complete.
        grows: the store is made longer with every record; otherwise it has its dates already.
    """

    def __init__(
        self,
        block: Block,
        background: Background,
        output: Output,
        selection: tuple[Selection, ...],
        forcing: Forcing | None,
        dates: Forcing | None,
        last: cftime.datetime | None,
        sums: Mapping[str, Tensor] | None = None,
        grows: bool = False,
    ) -> None:
        self.block, self.background, self.output, self.selection = block, background, output, selection
        self.forcing, self.dates, self.last, self.grows = forcing, dates, last, grows
        self.records, self.kept = block.records, block.kept
        self.sums = dict(sums or {})
        block.start()

    def write(self, state: State) -> list[int]:
        """Record the slots that are newer than what is there; which ones, by position."""
        fresh = []
        for slot, time in enumerate(slot_times(state, self.dates)):
            if self.last is None or time > self.last:
                self._record(state, slot, time)
                self.last = time
                fresh.append(slot)
        return fresh

    def _record(self, state: State, slot: int, time: cftime.datetime) -> None:
        parts = [self.selection[0].of(state.data, slot)]
        if self.forcing is not None:
            driven = self.forcing.at(time, state.members)
            parts.append(self.selection[1].of(driven.data, driven.layout.slots.index(0)))
        first, done = self.records % self.output.every == 0, (self.records + 1) % self.output.every == 0
        self.records += 1
        if self.output.mean:
            for k, part in enumerate(parts):
                self.sums[f"sum-{k}"] = part.double() if first else self.sums[f"sum-{k}"] + part
            if not done:
                return
            parts = [(self.sums.pop(f"sum-{k}") / self.output.every).to(p.dtype) for k, p in enumerate(parts)]
        elif not first:
            return
        self.kept += 1
        event = None
        if state.data.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.background.do(partial(self._put, tuple(parts), event, time if self.grows else None))

    def _put(self, parts: tuple[Tensor, ...], event: torch.cuda.Event | None, time: cftime.datetime | None) -> None:
        """Pack and write; by the other thread, on a GPU in another stream."""
        if event is None:
            self._put_each(parts, time)
            return
        stream = torch.cuda.Stream(parts[0].device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.wait_event(event)
            self._put_each(parts, time)
            for part in parts:
                if part.is_cuda:  # a forcing may not be
                    part.record_stream(stream)
        stream.synchronize()

    def _put_each(self, parts: tuple[Tensor, ...], time: cftime.datetime | None) -> None:
        if time is not None:
            self.block.append_time(time)
        for selection, part in zip(self.selection, parts, strict=True):
            self.block.put(selection.layout, part)

    def commit(self, steps: int = 0, state: State | None = None) -> None:
        """Have the other thread make sure of what was taken so far."""
        told = {"records": self.records, "kept": self.kept, "steps": steps}
        self.background.do(partial(self.block.commit, told, state, dict(self.sums)))


def record(
    states: Iterable[State],
    store: str | Path,
    *,
    forcing: Forcing | None = None,
    dates: Forcing | None = None,
    provenance: Mapping[str, Any] | None = None,
    title: str = "",
    append: bool = False,
    overwrite: bool = False,
    steps: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Write every state of an iterator to a Zarr 3 store, as they come; returns the store, opened lazily.

    What came is made sure of every ten seconds, and if the iterator raises.

    Args:
        states: forecasts, analyses or a truth, in order of time, all with the same members and layout.
            Time slots that an earlier state already wrote are not written again.
        store: path of a new store.
        forcing: also write the forcing of the step that starts at each state's time.
        dates: a `Source` whose record dates all time slots of the states carry, as `trajectory` gives them to the
            states; default `forcing`. Needed only where records are not evenly spaced, as in leap years.
        provenance: what made the states, kept as JSON in the store's attributes.
        title: of the store.
        append: continue a store whose states came from the same layout and members.
        overwrite: replace an existing store.
        steps: how many states will come, for the progress bar.
        progress: show one.

    Raises StoreExistsError if the path exists and neither `append` nor `overwrite` was asked for;
    ValueError if there are no states, or if they change members or layout on the way.
    """
    path = Path(store)
    if path.exists() and not (append or overwrite):
        raise StoreExistsError(
            f"{path} exists; nothing was written. Choose another path, or pass overwrite=True (a rollout can be "
            "continued with resume=True)"
        )
    shown: Iterable[State] = track(states, description=path.name, total=steps) if progress else states
    come = iter(shown)
    first = next(come, None)
    if first is None:
        raise ValueError(f"no states came to be recorded in {path}; nothing was written")
    layouts = [first.layout, *([forcing.at(first.time, first.members[:1]).layout] if forcing is not None else [])]
    selections = tuple(Output().selection(layout) for layout in layouts)
    kept = tuple(s.layout for s in selections)
    if append and path.exists():
        recording = Recording(path)
        if recording.members != first.members:
            raise ValueError(f"{path}: wanted members {recording.members}, got {first.members}")
        recording.reopen()
        group = recording.blocks()[0]
        recording.extend_time(numbers_of(recording.dates(), recording.calendar)[: whole(group, "kept")])
    else:
        recording = Recording.create(
            path, kept, first.members, first.time.calendar, first.data.dtype, wave=len(first.members), title=title,
            provenance=made_by(first, provenance), overwrite=overwrite,
        )  # fmt: skip
        names = [n for layout in kept for n in layout.names]
        group = recording.add_block(slice(0, len(first.members)), names)
    _stream(
        first,
        come,
        Block(recording, group, kept, Output().packing, first.layout),
        selections,
        forcing,
        dates or forcing,
    )
    recording.finish()
    return open_store(path)


def _stream(
    first: State,
    rest: Iterator[State],
    block: Block,
    selections: tuple[Selection, ...],
    forcing: Forcing | None,
    dates: Forcing | None,
) -> None:
    """Write states until they end."""
    recording, layout = block.recording, first.layout
    known = recording.dates()
    with Background() as background:
        last = known[-1] if known else None
        taken = Recorder(block, background, Output(), selections, forcing, dates, last, grows=True)
        made_sure = clock.monotonic()
        try:
            for state in chain((first,), rest):
                if state.members != block.members:
                    raise ValueError(f"{recording.path}: wanted members {block.members}, got {state.members}")
                layout.require_same(state.layout, str(recording.path))
                taken.write(state)
                if clock.monotonic() - made_sure > _COMMIT_SECONDS:
                    taken.commit()
                    made_sure = clock.monotonic()
        finally:
            taken.commit()


def recorded(store: str | Path) -> list[cftime.datetime]:
    """Times that are fully on disk, whether a store is complete or not; empty if there is none that we recorded."""
    if not (Path(store) / "blocks" / "zarr.json").exists():
        return []
    recording = Recording(Path(store))
    return recording.dates()[: min((whole(b, "kept") for b in recording.blocks()), default=0)]


def made_by(state: State, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Versions, device and dtype, and what is said beside."""
    versions = {p: version(p) for p in ("polynya", "torch", "numpy", "xarray", "zarr")}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": str(state.data.device),
        "dtype": str(state.data.dtype).removeprefix("torch."),
        "state": repr(state),
        **(extra or {}),
    }


def states_of(dataset: xr.Dataset, layout: Layout) -> Iterator[State]:
    """The records of an opened store as States, one by one: the inverse of `record`."""
    source = Source.open(dataset, layout)
    for time in source.times[-min(layout.slots) :]:
        yield source.state(time)
