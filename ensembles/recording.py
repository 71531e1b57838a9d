"""A store of a run: one Zarr 3 group whose arrays are written by blocks of members.

    store.zarr/
      thetao, …          (member, time, [lev], y, x), CF names and attributes
      member, time, lat, lon, areacello, wetmask, dz, …
      blocks/0/          of a block of members: attributes `first` and `stop`, `variables`, `records`, `steps`
        initial, restart-120        states that the block began with and goes on from, in full precision
        statistic-0-…               what merges into the statistics
      statistics/        merged, when all blocks are done

A block's attributes are written after the records they tell of are on disk: they are the commit. Whatever lies beyond
them is written again by the run that goes on, in the same bits. The store's `status` is `complete` when no block has
anything left to do. Blocks share no shard, so that processes need not wait for one another.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import zarr

from ..emulators import Field, Layout, attributes
from ..emulators.state import MEMBER_ATTRS
from .durable import Durable
from .packing import Exact, Packing
from .shards import Array, create_series

__all__ = ["TIME_UNITS", "Recording", "differences", "numbers_of", "whole"]

TIME_UNITS = "seconds since 0001-01-01 00:00:00"
_PATHS = re.compile(r"path='[^']*/([^'/]*)'")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def numbers_of(dates: Sequence[cftime.datetime], calendar: str) -> np.ndarray:
    """Dates as they are on disk."""
    if not dates:
        return np.zeros(0, dtype="int64")
    return np.atleast_1d(np.asarray(cftime.date2num(list(dates), TIME_UNITS, calendar))).round().astype("int64")


def whole(group: zarr.Group, key: str) -> int:
    """An attribute that is a whole number."""
    value = group.attrs[key]
    assert isinstance(value, int | float), f"{group.path}: {key} is {value!r}"
    return int(value)


class Recording:
    """A store that is being written.

    Attributes:
        path: of the store.
        files: its folder.
        group: its root.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = Durable(path)
        self.group = zarr.open_group(self.files, mode="r+", use_consolidated=False)

    @classmethod
    def create(
        cls,
        path: Path,
        layouts: Sequence[Layout],
        members: Sequence[int],
        calendar: str,
        dtype: torch.dtype,
        *,
        wave: int,
        packing: Packing | None = None,
        bounds: bool = False,
        title: str = "",
        provenance: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Recording:
        """A new store, without a record. It appears at its path whole, and only then is what was there removed.

        Args:
            path: of the store.
            layouts: of a record: of the states, and of the forcing if that is kept.
            members: their numbers.
            calendar: of its dates.
            dtype: of the states.
            wave: how many members are written at once.
            packing: of numbers.
            bounds: records are means, of times within bounds.
            title: of the store.
            provenance: kept as JSON in an attribute.
            overwrite: replace what is there.
        """
        new = path.with_name(f"{path.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        grid = layouts[0].grid.assign_coords(member=("member", np.asarray(members), MEMBER_ATTRS))
        grid.attrs = {
            **grid.attrs,
            "Conventions": "CF-1.11",
            "title": title or "polynya states",
            "history": f"{now} recorded by polynya {version('polynya')}",
            "provenance": json.dumps(provenance or {}, default=repr),
            "status": "recording",
        }
        grid.to_zarr(new, mode="w-", zarr_format=3, consolidated=False)
        recording = cls(new)
        recording.group.create_group("blocks", attributes={"wave": wave, "count": 0})
        time = recording.group.create_array(
            "time", shape=(0,), chunks=(4096,), dtype="int64", dimension_names=["time"], compressors=None, fill_value=0
        )
        stamp: dict[str, Any] = {"units": TIME_UNITS, "calendar": calendar}
        time.update_attributes(
            stamp | {"standard_name": "time", "axis": "T"} | ({"bounds": "time_bnds"} if bounds else {})
        )
        if bounds:
            recording.group.create_array(
                "time_bnds", shape=(0, 2), chunks=(4096, 2), dtype="int64", dimension_names=["time", "bnds"],
                compressors=None, fill_value=0, attributes=stamp,
            )  # fmt: skip
        for layout in layouts:
            recording.add(layout, layout.names, dtype, packing or Exact(), bounds)
        recording.files.sync()
        if overwrite:
            shutil.rmtree(path, ignore_errors=True)
        new.rename(path)
        return cls(path)

    def add(self, layout: Layout, names: Sequence[str], dtype: torch.dtype, packing: Packing, mean: bool) -> None:
        """Arrays of variables that are not there yet, as long as the others are."""
        for name in names:
            if name not in self.group:
                self._create(layout, layout.field(name), dtype, packing, mean)

    def _create(self, layout: Layout, f: Field, dtype: torch.dtype, packing: Packing, mean: bool) -> None:
        lev = {"lev": f.levels} if f.levels else {}
        sizes = {
            "member": self.array("member").shape[0], "time": self.array("time").shape[0], **lev,
            **dict(zip(layout.dims, layout.shape[1:], strict=True)),
        }  # fmt: skip
        said = {**attributes(f.name), **packing.attributes(f.name), "cell_measures": "area: areacello"}
        if f.location != "center":
            said["location"] = f.location
        if mean:
            said["cell_methods"] = "time: mean"
        create_series(
            self.group, f.name, tuple(sizes.values()), tuple(sizes), packing.dtype(dtype), fill=packing.fill(dtype),
            block=self.wave, attributes=said,
        )  # fmt: skip

    # --- what is there ---------------------------------------------------------------------------

    def array(self, name: str) -> Array:
        """The array of a variable or coordinate."""
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _group(self, name: str) -> zarr.Group:
        group = self.group[name]
        assert isinstance(group, zarr.Group)
        return group

    @property
    def members(self) -> tuple[int, ...]:
        """Numbers of the members, in order."""
        return tuple(np.asarray(self.array("member")[:]).tolist())

    @property
    def calendar(self) -> str:
        """Of its dates."""
        return str(self.array("time").attrs["calendar"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What made it."""
        return dict(json.loads(str(self.group.attrs["provenance"])))

    def dates(self) -> list[cftime.datetime]:
        """All dates, whether the records are there or not."""
        numbers = np.asarray(self.array("time")[:])
        return list(np.atleast_1d(cftime.num2date(numbers, TIME_UNITS, self.calendar))) if len(numbers) else []

    def blocks(self) -> list[zarr.Group]:
        """What is known of each block, in the order they were made."""
        parent = self._group("blocks")
        found = [parent[str(k)] for k in range(whole(parent, "count"))]
        return [g for g in found if isinstance(g, zarr.Group)]

    @property
    def wave(self) -> int:
        """How many members a block has, but for the last."""
        return whole(self._group("blocks"), "wave")

    def add_block(self, rows: slice, variables: Sequence[str], statistics: bool = False) -> zarr.Group:
        """A block more, of the members at these rows, which counts in the statistics or not."""
        parent = self._group("blocks")
        number = whole(parent, "count")
        block = parent.create_group(
            str(number), overwrite=True,
            attributes={"first": rows.start, "stop": rows.stop, "variables": list(variables),
                        "statistics": statistics, "records": 0, "kept": 0, "steps": 0, "restart": None},
        )  # fmt: skip
        parent.attrs["count"] = number + 1
        return block

    # --- growing ---------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Say that it is no longer complete, and clear what a killed process left."""
        self.group.attrs["status"] = "recording"  # first: what follows leaves it incomplete
        self.files.sweep()
        shutil.rmtree(self.path / "statistics", ignore_errors=True)  # which are merged again

    def extend_time(self, numbers: np.ndarray, bounds: np.ndarray | None = None) -> None:
        """Make it as long as these dates, which begin with those that are there."""
        for name, array in self.group.arrays():
            if "time" in (array.metadata.dimension_names or ()) and name not in ("time", "time_bnds"):  # type: ignore[union-attr]
                array.resize((array.shape[0], len(numbers), *array.shape[2:]))
        for name, values in (("time_bnds", bounds), ("time", numbers)):
            if values is not None:
                stamp = self.array(name)
                stamp.resize(values.shape)
                stamp[...] = values  # all: a run may have been killed after it made room

    def append_time(self, date: cftime.datetime) -> int:
        """One date more; how many there are. The arrays are then to be made as long."""
        stamp = self.array("time")
        count = stamp.shape[0]
        stamp.resize((count + 1,))
        stamp[count:] = numbers_of([date], self.calendar)
        return count + 1

    def extend_members(self, members: Sequence[int]) -> None:
        """Make room for members, which begin with those that are there."""
        for name, array in self.group.arrays():
            if "member" in (array.metadata.dimension_names or ()) and name != "member":  # type: ignore[union-attr]
                array.resize((len(members), *array.shape[1:]))
        numbers = self.array("member")
        numbers.resize((len(members),))
        numbers[...] = np.asarray(members)

    def finish(self, said: Mapping[str, Any] | None = None) -> None:
        """Declare it complete."""
        self.group.update_attributes({**(said or {}), "status": "complete"})
        with warnings.catch_warnings():
            # Zarr 3 has consolidated metadata as an extension; readers without it just open more files.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(self.files)
        self.files.sync()


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes two experiments different, a line each; folders and addresses in memory do not."""
    lines = []
    for key, value in now.items():
        before, after = (_ADDRESS.sub("", _PATHS.sub(r"path='\1'", str(v))) for v in (was.get(key), value))
        if before != after:
            at = next((k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
            cut = slice(max(0, at - 40), at + 80)
            lines.append(f"{key}: the store has …{before[cut]}…, this run …{after[cut]}…")
    return lines
