"""Arrays along time, written shard by shard: a shard is gathered in memory, packed once and written in one go.

Of a shard that is written in two goes, Zarr reads, unpacks and packs the first part again, which is 4 to 10 times as
expensive; and of one that it is given whole, it still makes five copies. So whole shards are put together here as the
Zarr 3 specification of the `sharding_indexed` codec has them (zarr-specs, v3.1, "Sharding codec"): encoded chunks one
after the other, then for each its offset and length, 64 bits each, and a CRC-32C of that index. A chunk is Blosc LZ4
with its own CRC-32C behind it.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from .durable import Durable

__all__ = ["Array", "Series", "create_series"]

Array: TypeAlias = zarr.Array[Any]

_CHUNK_BYTES, _SHARD_BYTES = 4e6, 32e6
_WHOLE: Any = {"write_empty_chunks": True}  # every shard is on disk, so that a missing one is known to be missing
_BLOSC = Blosc(cname="lz4", clevel=1, shuffle=Blosc.SHUFFLE)


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
        shape = (*members, self.depth, *array.shape[axis + 1 :])
        self._buffer: NDArray[Any] = np.full(shape, array.fill_value, array.dtype)
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
            if self.depth > 1:
                self._buffer[...] = self.array.fill_value

    def flush(self) -> None:
        """Write what was gathered, also of a shard that is not full; the next time will write it again."""
        if not self.filled:
            return
        if not self._rows:
            _write(self.array, self.first // self.depth, (), self._buffer)
            return
        rows, across = self._rows[0], (self.array.shards or self.array.chunks)[0]
        for k in range(rows.start // across, -(-rows.stop // across)):
            first, stop = max(k * across, rows.start), min((k + 1) * across, rows.stop)
            part = self._buffer[first - rows.start : stop - rows.start]
            if first == k * across and stop in (first + across, self.array.shape[0]):
                _write(self.array, self.first // self.depth, (k,), part)
            else:  # other members are in this shard, too
                times = slice(self.first, self.first + self.filled)
                self.array[first:stop, times] = part[:, : self.filled]

    def _at(self, times: int | slice) -> tuple[Any, ...]:
        return (*(slice(None) for _ in self._rows), times)


def _write(array: Array, time: int, member: tuple[int, ...], values: NDArray[Any]) -> None:
    """Write a whole shard; members beyond the last are not there."""
    store, chunks, shards = array.store, array.chunks, array.shards or array.chunks
    assert isinstance(store, Durable)
    parts, table, offset = [], [], 0
    for at in product(*(range(s // c) for s, c in zip(shards, chunks, strict=True))):
        chunk = values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, chunks, strict=True))]
        if chunk.shape != chunks:
            whole = np.full(chunks, array.fill_value, array.dtype)
            whole[tuple(slice(0, n) for n in chunk.shape)] = chunk
            chunk = whole
        data = _BLOSC.encode(np.ascontiguousarray(chunk))
        parts += [data, _checksum(data)]
        table.append((offset, len(data) + 4))
        offset += len(data) + 4
    index = np.asarray(table, dtype="<u8").tobytes()
    space = (0,) * (len(chunks) - 1 - len(member))
    key = array.metadata.encode_chunk_key((*member, time, *space))
    store.write(f"{array.path}/{key}", [*parts, index, _checksum(index)])


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")
