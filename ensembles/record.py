"""Streaming States to a Zarr 3 store: whole shards, CF names, member numbers, provenance.

A store grows by one shard per variable and time, the shard holding every member. Its `time` coordinate
is written after the values, and its `status` becomes `complete` only at the end: a run that is killed
leaves a store that says so, and `rollout(..., resume=True)` continues it. Inner chunks hold several
members (2-8 MB) and are packed with Blosc LZ4 and shuffle, which costs a quarter of Zarr's default codec.
"""

from __future__ import annotations

import json
import platform
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
import zarr
from rich.progress import track
from zarr.codecs import BloscCodec

from ..emulators import Forcing, Source, State, StoreExistsError, attributes, open_store
from ..emulators.state import MEMBER_ATTRS, Field, Layout

_TIME_UNITS = "seconds since 0001-01-01 00:00:00"
_CHUNK_BYTES = 4e6
_CODEC = BloscCodec(cname="lz4", clevel=1, shuffle="shuffle")


__all__ = ["StoreExistsError", "record", "recorded", "reopen", "shifted", "slot_times", "states_of"]


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
    writer: _Writer | None = None
    for state in shown:
        if writer is None:
            if path.exists() and overwrite:
                shutil.rmtree(path)
            writer = _Writer(path, state, forcing, dates or forcing, _provenance(state, provenance), title)
        writer.write(state)
    if writer is None:
        raise ValueError(f"no states came to be recorded in {path}; nothing was written")
    writer.finish()
    return open_store(path)


def recorded(store: str | Path) -> list[cftime.datetime]:
    """Times fully written to a store, complete or not; empty if there is no store."""
    path = Path(store)
    if not (path / "zarr.json").exists():
        return []
    group = zarr.open_group(path, mode="r")
    if "time" not in group:
        return []
    time = group["time"]
    assert isinstance(time, zarr.Array)
    numbers = np.asarray(time[:])
    if not len(numbers):
        return []
    backward = np.flatnonzero(np.diff(numbers) <= 0)  # killed between making room for a date and writing it
    numbers = numbers[: backward[0] + 1] if len(backward) else numbers
    return list(np.atleast_1d(cftime.num2date(numbers, _TIME_UNITS, str(time.attrs["calendar"]))))


def reopen(store: str | Path, layout: Layout, members: tuple[int, ...]) -> State:
    """The last state of a store that may be incomplete, to continue from.

    Raises ValueError if the store holds other members or lacks fields of the layout.
    """
    group = zarr.open_group(Path(store), mode="r")
    times = recorded(store)
    have = tuple(np.asarray(group["member"][:]).tolist())  # type: ignore[index]
    if have != members:
        raise ValueError(f"{store} holds members {have}, this run has {members}; choose another store")
    missing = [n for n in layout.names if n not in group]
    if missing:
        raise ValueError(f"{store} lacks {', '.join(missing)}; it was not written by this emulator")
    keep = [len(times) - 1 + s - layout.slots[-1] for s in layout.slots]
    variables = {}
    for f in layout.fields:
        dims = ("member", "time", "lev", *layout.dims) if f.levels else ("member", "time", *layout.dims)
        array = group[f.name]
        assert isinstance(array, zarr.Array)
        variables[f.name] = (dims, np.stack([np.asarray(array[:, k]) for k in keep], 1))
    dataset = xr.Dataset(variables, coords={"member": list(members)})
    dtype = torch.float64 if dataset[layout.names[0]].dtype == np.float64 else torch.float32
    now = layout.slots[-1]  # slot 0 may be an earlier record; its date is there, whatever the calendar
    time = times[-1 - now] if 0 <= now < len(times) else times[-1] - now * layout.interval
    return layout.pack(dataset, time, members, dtype)


def shifted(forcing: Forcing | None, time: cftime.datetime, by: timedelta) -> cftime.datetime:
    """The date `by` after `time`, counted in the records of a stored forcing; plainly `time + by` without one."""
    shift = getattr(forcing, "shift", None)
    return time + by if shift is None else shift(time, by)


def slot_times(state: State, forcing: Forcing | None) -> list[cftime.datetime]:
    """The dates of a state's time slots, oldest first, counted in the records of a stored forcing."""
    return [shifted(forcing, state.time, s * state.layout.interval) for s in state.layout.slots]


class _Writer:
    """One open store."""

    def __init__(
        self,
        path: Path,
        first: State,
        forcing: Forcing | None,
        dates: Forcing | None,
        provenance: dict[str, Any],
        title: str,
    ) -> None:
        self.path, self.forcing, self.members, self.layout = path, forcing, first.members, first.layout
        self.dates = dates
        self.calendar = first.time.calendar
        new = not (path / "zarr.json").exists()
        if new:
            self._create(first, provenance, title)
        self.group = zarr.open_group(path, mode="r+")
        self.times = recorded(path)
        if not new:
            self.group.attrs["status"] = "recording"

    def _create(self, first: State, provenance: dict[str, Any], title: str) -> None:
        grid = first.layout.grid.copy()
        grid = grid.assign_coords(member=("member", np.asarray(first.members), MEMBER_ATTRS))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        grid.attrs = {
            **grid.attrs,
            "Conventions": "CF-1.11",
            "title": title or "polynya states",
            "history": f"{now} recorded by polynya {version('polynya')}",
            "provenance": json.dumps(provenance, default=repr),
            "status": "recording",
        }
        grid.to_zarr(self.path, mode="w-", zarr_format=3, consolidated=False)
        group = zarr.open_group(self.path, mode="r+")
        layouts = [first.layout]
        if self.forcing is not None:
            layouts.append(self.forcing.at(first.time, first.members[:1]).layout)
        for layout in layouts:
            for f in layout.fields:
                self._create_array(group, layout, f, first.data.dtype)
        time = group.create_array(
            "time", shape=(0,), chunks=(4096,), dtype="int64", dimension_names=["time"], compressors=None
        )
        time.attrs.update({"units": _TIME_UNITS, "calendar": self.calendar, "standard_name": "time", "axis": "T"})

    def _create_array(self, group: zarr.Group, layout: Layout, f: Field, dtype: torch.dtype) -> None:
        levels = (f.levels,) if f.levels else ()
        shape = (len(self.members), *levels, *layout.shape[1:])
        number = np.dtype("float64" if dtype == torch.float64 else "float32")
        each = int(np.prod(shape[1:])) * number.itemsize
        per_chunk = max(1, min(len(self.members), int(_CHUNK_BYTES // each)))
        while len(self.members) % per_chunk:  # inner chunks must divide the shard
            per_chunk -= 1
        names = ["member", "time", *(["lev"] if f.levels else []), *layout.dims]
        array = group.create_array(
            f.name,
            shape=(shape[0], 0, *shape[1:]),
            chunks=(per_chunk, 1, *shape[1:]),
            shards=(shape[0], 1, *shape[1:]),
            dtype=number,
            fill_value=np.nan,
            compressors=_CODEC,
            dimension_names=names,
        )
        location = {"location": f.location} if f.location != "center" else {}
        array.attrs.update({**attributes(f.name), **location, "cell_measures": "area: areacello"})

    def write(self, state: State) -> None:
        """Append the slots of a state that are newer than what is there."""
        if state.members != self.members:
            raise ValueError(f"{self.path}: wanted members {self.members}, got {state.members}")
        self.layout.require_same(state.layout, str(self.path))
        times = slot_times(state, self.dates)
        fresh = [k for k, t in enumerate(times) if not self.times or t > self.times[-1]]
        if not fresh:
            return
        values = state.layout.unpack(state)
        start = len(self.times)
        for k, slot in enumerate(fresh):
            self._put(values, slot, start + k)
            if self.forcing is not None:
                driven = self.forcing.at(times[slot], state.members)
                self._put(driven.layout.unpack(driven), driven.layout.slots.index(0), start + k)
        # Time goes last: a step that is not dated was not written.
        self.times += [times[slot] for slot in fresh]
        stamp = self.group["time"]
        assert isinstance(stamp, zarr.Array)
        stamp.resize((len(self.times),))
        stamp[start:] = np.asarray(cftime.date2num(self.times[start:], _TIME_UNITS, self.calendar), dtype="int64")

    def _put(self, values: xr.Dataset, slot: int, index: int) -> None:
        for name in map(str, values.data_vars):
            array = self.group[name]
            assert isinstance(array, zarr.Array)
            array.resize((array.shape[0], index + 1, *array.shape[2:]))
            array[:, index] = values[name].values[:, slot]

    def finish(self) -> None:
        """Declare the store complete."""
        self.group.attrs["status"] = "complete"
        with warnings.catch_warnings():
            # Zarr 3 has consolidated metadata as an extension; readers without it just open more files.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(self.path)


def _provenance(state: State, extra: Mapping[str, Any] | None) -> dict[str, Any]:
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
