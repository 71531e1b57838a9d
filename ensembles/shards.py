"""Arrays along time, written shard by shard: a shard is gathered in memory, packed once and written in one go.

Of a shard that is written in two goes, Zarr reads, unpacks and packs the first part again, which is 4 to 10 times as
expensive; and of one that it is given whole, it still makes five copies. So whole shards are put together here as the
Zarr 3 specification of the `sharding_indexed` codec has them (zarr-specs, v3.1, "Sharding codec"): encoded chunks one
after the other, then for each its offset and length, 64 bits each, and a CRC-32C of that index. A chunk is Blosc LZ4
with its own CRC-32C behind it. All shards of an array lie in one folder: of a folder for every index, as is Zarr's
default, a disk makes three more for each shard, and `sync` would have to make sure of them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from .durable import Durable

__all__ = ["Array", "Series", "create_series", "write_rows"]

Array: TypeAlias = zarr.Array[Any]

_CHUNK_BYTES, _SHARD_BYTES = 4e6, 32e6
_WHOLE: Any = {"write_empty_chunks": True}  # every shard is on disk, so that a missing one is known to be missing
_FLAT: Any = {"name": "default", "separator": "."}
_LZ4: dict[str, Any] = {"cname": "lz4", "clevel": 1, "shuffle": Blosc.SHUFFLE}
# How long the blocks of a frame are is for the writer to choose: in Blosc's own, 16-bit integers take more room.
_BLOSC, _BLOSC_16 = Blosc(**_LZ4), Blosc(**_LZ4, blocksize=2**17)


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
    record = math.prod(shape[axis + 1 :]) * dtype.itemsize
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
        chunk_key_encoding=_FLAT,
    )  # fmt: skip
    array.update_attributes(attributes or {})


def write_rows(group: zarr.Group, name: str, numbers: NDArray[Any]) -> None:
    """A new array of these numbers as they are, a file for each row."""
    array: Array = group.create_array(
        name, shape=numbers.shape, chunks=(1, *numbers.shape[1:]), dtype=numbers.dtype, compressors=None,
        chunk_key_encoding=_FLAT,
    )  # fmt: skip
    for k, row in enumerate(numbers):
        _store(array).write(_file(array, (k,)), [np.ascontiguousarray(row).reshape(-1).view("u1").data])


def _divisor(number: int, most: float) -> int:
    """The largest divisor that is not above `most`, at least 1."""
    return next(d for d in range(max(1, min(number, int(most))), 0, -1) if number % d == 0)


Record: TypeAlias = Callable[[slice, NDArray[Any]], None]
"""Writes some of the members of a record (member, ...), or the record where there are no members, into an array."""


class Series:
    """The records of some members in one array: gathered until a shard is full, then written.

    Where shards hold one record each nothing is gathered: a chunk is made, compressed and written while it is in the
    cache.

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
        self._gathers = rows is None or self.depth > 1 or not all(whole for *_, whole in self._shards())
        members = () if rows is None else (rows.stop - rows.start,)
        shape = (*members, self.depth, *array.shape[axis + 1 :]) if self._gathers else (0,)
        self._buffer: NDArray[Any] = np.full(shape, array.fill_value, array.dtype)
        if self.filled:
            self._buffer[self._at(slice(0, self.filled))] = array[(*self._rows, slice(self.first, start))]

    def grow(self, length: int) -> None:
        """Make the array so many records long."""
        axis = len(self._rows)
        self.array.resize((*self.array.shape[:axis], length, *self.array.shape[axis + 1 :]))

    def put(self, record: Record) -> None:
        """The next record."""
        if not self._gathers:
            for k, first, stop, _ in self._shards():
                here = slice(first - self._rows[0].start, stop - self._rows[0].start)
                _write(self.array, self.first, (k,), _made(self.array, here, record))
            self.first += 1
            return
        everybody = slice(0, self._rows[0].stop - self._rows[0].start) if self._rows else slice(None)
        record(everybody, self._buffer[(*self._at(self.filled), ...)])
        self.filled += 1
        if self.filled == self.depth:
            self.flush()
            self.first, self.filled = self.first + self.depth, 0
            if self.depth > 1:
                self._buffer[...] = self.array.fill_value

    def flush(self) -> None:
        """Write what was gathered, also of a shard that is not full; the next time will write it again."""
        if not self.filled:
            return
        time = self.first // self.depth
        if not self._rows:
            _write(self.array, time, (), _pieces(self.array, self._buffer))
            return
        for k, first, stop, whole in self._shards():
            part = self._buffer[first - self._rows[0].start : stop - self._rows[0].start]
            if whole:
                _write(self.array, time, (k,), _pieces(self.array, part))
            else:  # other members are in this shard, too
                times = slice(self.first, self.first + self.filled)
                self.array[first:stop, times] = part[:, : self.filled]

    def _shards(self) -> Iterator[tuple[int, int, int, bool]]:
        """Shards across members: which, the first and last row of those here, and whether these are all it has."""
        rows, across = self._rows[0], (self.array.shards or self.array.chunks)[0]
        for k in range(rows.start // across, -(-rows.stop // across)):
            first, stop = max(k * across, rows.start), min((k + 1) * across, rows.stop)
            yield k, first, stop, first == k * across and stop in (first + across, self.array.shape[0])

    def _at(self, times: int | slice) -> tuple[Any, ...]:
        return (*(slice(None) for _ in self._rows), times)


Chunks: TypeAlias = Iterator[NDArray[Any]]
"""The chunks of a shard in order, each valid until the next; those at the edge of the array may be cut."""


def _pieces(array: Array, values: NDArray[Any]) -> Chunks:
    """Of a shard that is there."""
    chunks, shards = array.chunks, array.shards or array.chunks
    for at in product(*(range(s // c) for s, c in zip(shards, chunks, strict=True))):
        yield values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, chunks, strict=True))]


def _made(array: Array, members: slice, record: Record) -> Chunks:
    """Of a shard (member, 1, ...) with some members of one record."""
    across, shard = array.chunks[0], (array.shards or array.chunks)[0]
    room = np.empty(array.chunks, array.dtype)
    for first in range(members.start, members.start + shard, across):
        number = max(0, min(first + across, members.stop) - first)
        if number:
            record(slice(first, first + number), room[:number, 0])
        yield room[:number]


def _write(array: Array, time: int, member: tuple[int, ...], chunks: Chunks) -> None:
    """Write a whole shard; members beyond the last are not there."""
    _store(array).write(_file(array, (*member, time)), _encoded(array, chunks))


def _encoded(array: Array, chunks: Chunks) -> Iterator[bytes]:
    """The parts of a shard's file, one by one: what was just compressed is written while it is in the cache."""
    blosc, table, offset = _BLOSC_16 if array.dtype.itemsize == 2 else _BLOSC, [], 0
    for chunk in chunks:
        if chunk.shape != array.chunks:
            whole = np.full(array.chunks, array.fill_value, array.dtype)
            whole[tuple(slice(0, n) for n in chunk.shape)] = chunk
            chunk = whole
        data = blosc.encode(np.ascontiguousarray(chunk))
        yield data
        yield _checksum(data)
        table.append((offset, len(data) + 4))
        offset += len(data) + 4
    index = np.asarray(table, dtype="<u8").tobytes()
    yield index
    yield _checksum(index)


def _store(array: Array) -> Durable:
    assert isinstance(array.store, Durable)
    return array.store


def _file(array: Array, at: tuple[int, ...]) -> str:
    """Name of the shard, or chunk, with these leading indices."""
    return f"{array.path}/{array.metadata.encode_chunk_key((*at, *(0,) * (array.ndim - len(at))))}"


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")
