"""Stores on disk: files appear whole, survive a power cut once synced, and are written by another thread.

Arrays are written shard by shard, never a part of one but where a run ends: of a shard that is written in two goes,
Zarr reads, unpacks and packs the first part again, which is 4 to 10 times as expensive.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

Array: TypeAlias = zarr.Array[Any]

__all__ = ["Array", "Background", "Durable", "Series", "create_series"]

_CHUNK_BYTES, _SHARD_BYTES = 4e6, 32e6
_WHOLE: Any = {"write_empty_chunks": True}  # every shard is on disk, so that a missing one is known to be missing


class Durable(LocalStore):
    """A folder of Zarr files. Each appears whole, as `LocalStore` has it; `sync` makes sure of what was written."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._fresh: set[str] = set()

    async def set(self, key: str, value: Buffer, byte_range: ByteRequest | None = None) -> None:
        """Write a file, and remember to sync it. Raises OSError with what to do when the disk is full."""
        self._fresh.add(key)
        try:
            await super().set(key, value)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OSError(
                error.errno,
                f"no space is left for {self.root / key}; what was written before is safe. Free some space and go on "
                "with resume=True",
            ) from error

    def sync(self) -> None:
        """Return when all files written so far are on disk, with the folders that name them."""
        fresh, self._fresh = self._fresh, set()
        folders = {(self.root / key).parent for key in fresh}
        for path in [*(self.root / key for key in sorted(fresh)), *sorted(folders)]:
            if not path.exists():  # deleted since
                continue
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)

    def sweep(self) -> None:
        """Remove what a killed process left behind in the middle of writing."""
        for path in self.root.rglob("*.partial"):
            path.unlink(missing_ok=True)


def create_series(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dims: tuple[str, ...],
    dtype: np.dtype[Any],
    *,
    fill: float | int,
    block: int = 0,
    attributes: dict[str, Any] | None = None,
) -> None:
    """A new array along time, in shards of about 32 MB and chunks of about 4 MB, each with a checksum.

    Args:
        group: where.
        name: of the array.
        shape, dims: (member, time, ...) if there are blocks of members, else (time, ...).
        dtype: on disk.
        fill: what was not written.
        block: how many members are written at once; 0 if there is no member dimension.
        attributes: of CF.
    """
    axis = 1 if block else 0
    record = int(np.prod(shape[axis + 1 :])) * dtype.itemsize
    members = _divisor(block, _CHUNK_BYTES / max(record, 1)) if block else 1
    deep = max(1, int(_CHUNK_BYTES // max(record * members, 1))) if members >= block else 1
    across = _divisor(block // members, _SHARD_BYTES / max(record * members, 1)) * members if block else 1
    times = max(1, int(_SHARD_BYTES // max(record * across, 1)))
    deep, times = min(deep, 64), min(times, 64)
    times = max(deep, times - times % deep)
    lead = ((members, deep), (across, times)) if block else ((deep,), (times,))
    array = group.create_array(
        name, shape=shape, chunks=(*lead[0], *shape[axis + 1 :]), shards=(*lead[1], *shape[axis + 1 :]), dtype=dtype,
        fill_value=fill, dimension_names=dims,
        compressors=[BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec()], config=_WHOLE,
    )  # fmt: skip
    array.update_attributes(attributes or {})


def _divisor(number: int, most: float) -> int:
    """The largest divisor that is not above `most`, at least 1."""
    return next(d for d in range(max(1, min(number, int(most))), 0, -1) if number % d == 0)


class Series:
    """The records of some members in one array: gathered until a shard is full, then written.

    Args:
        array: (member, time, ...), or (time, ...) if there are no rows.
        rows: positions of the members.
        start: the record that comes first; those before it in its shard are read.
    """

    def __init__(self, array: Array, rows: slice | None, start: int) -> None:
        self.array = array.with_config(_WHOLE)
        self._rows: tuple[slice, ...] = () if rows is None else (rows,)
        axis = len(self._rows)
        self.depth = (array.shards or array.chunks)[axis]
        self.first, self.filled = start - start % self.depth, start % self.depth
        members = () if rows is None else (rows.stop - rows.start,)
        self._buffer: NDArray[Any] = np.empty((*members, self.depth, *array.shape[axis + 1 :]), array.dtype)
        if self.filled:
            self._buffer[self._at(slice(0, self.filled))] = array[(*self._rows, slice(self.first, start))]

    def grow(self, length: int) -> None:
        """Make the array so many records long."""
        axis = len(self._rows)
        self.array.resize((*self.array.shape[:axis], length, *self.array.shape[axis + 1 :]))

    @property
    def next(self) -> NDArray[Any]:
        """Where the next record ([member], ...) is to be put, a view."""
        return self._buffer[(*self._at(self.filled), ...)]

    def advance(self) -> None:
        """The next record is there."""
        self.filled += 1
        if self.filled == self.depth:
            self.flush()
            self.first, self.filled = self.first + self.depth, 0

    def flush(self) -> None:
        """Write what was gathered, also of a shard that is not full; the next time will write it again."""
        if self.filled:
            times = slice(self.first, self.first + self.filled)
            self.array[(*self._rows, times)] = self._buffer[self._at(slice(0, self.filled))]

    def _at(self, times: int | slice) -> tuple[Any, ...]:
        return (*(slice(None) for _ in self._rows), times)


class Background:
    """One other thread that does what it is told, in order, while no more than `depth` tasks wait.

    An exception in a task ends the thread's work; it is raised where the next task is given, or on leaving.

    Attributes:
        waited: seconds that `do` and leaving had to wait.
        busy: seconds of work.
    """

    def __init__(self, depth: int = 2) -> None:
        self.waited = self.busy = 0.0
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="polynya-writer", daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        begin = time.perf_counter()
        self._tasks.put(None)
        self._thread.join()
        self.waited += time.perf_counter() - begin
        if error is None:
            self._raise()

    def do(self, task: Callable[[], None]) -> None:
        """Have it done; waits while too many tasks wait."""
        self._raise()
        begin = time.perf_counter()
        self._tasks.put(task)
        self.waited += time.perf_counter() - begin

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._error is not None:
                continue  # what follows a failure is not written
            begin = time.perf_counter()
            try:
                task()
            except BaseException as error:
                self._error = error
            self.busy += time.perf_counter() - begin
