"""How variables lie in chunks, what reading a piece of them takes, and the largest pieces that fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import xarray as xr

_COPIES = 4  # of a piece: as it is stored, its chunks, what is made of them, and what malloc keeps of the one before
_PIECE = 32e6  # bytes; larger arrays malloc takes fresh from the system each time, which costs as much as decoding them


@dataclass(frozen=True)
class Variable:
    """Dimensions, chunks and bytes of a variable.

    Attributes:
        dims: (name, size, chunk, shard) of each.
        itemsize: bytes of a value in memory.
        stored: whether chunks must be decoded.
    """

    dims: tuple[tuple[str, int, int, int], ...]
    itemsize: int
    stored: bool

    @classmethod
    def of(cls, field: xr.DataArray) -> Variable:
        """As stored by zarr, as chunked by dask, or one value by value if in memory."""
        shape, lazy = field.shape, field.chunks is not None or not field.variable._in_memory
        chunks: tuple[int, ...] = (1,) * field.ndim
        if field.chunks is not None:
            chunks = tuple(max(c) for c in field.chunks)
        elif lazy:
            chunks = tuple(field.encoding.get("chunks") or shape)
        shards = field.encoding.get("shards") if lazy and field.chunks is None else None
        if len(chunks) != field.ndim:  # a dimension was selected away
            preferred = field.encoding.get("preferred_chunks", {})
            chunks, shards = tuple(preferred.get(d, n) for d, n in zip(field.dims, shape, strict=True)), None
        shards = shards if shards is not None and len(shards) == field.ndim else chunks
        dims = zip(map(str, field.dims), shape, map(min, chunks, shape), map(min, shards, shape), strict=True)
        return cls(tuple(dims), field.dtype.itemsize, lazy)

    def bytes_of(self, steps: Mapping[str, int]) -> float:
        """Bytes of a piece."""
        return float(self.itemsize * math.prod(min(steps[d], n) for d, n, *_ in self.dims))

    def pieces(self) -> dict[str, int]:
        """Extent along each dimension of what is read at once: whole shards, or chunks, of less than 32 MB."""
        grains = {d: (c, max(s, c)) for d, _, c, s in self.dims}
        return fitted({d: n for d, n, *_ in self.dims}, [*grains], grains, self.bytes_of, _PIECE)

    @property
    def chunk_bytes(self) -> float:
        """Bytes of a decoded chunk."""
        return float(self.itemsize * math.prod(c for *_, c, _ in self.dims))

    def decoding(self, steps: Mapping[str, int]) -> float:
        """Bytes that reading a tile of these steps takes beside it."""
        if not self.stored:
            return 0.0
        tile = replace(self, dims=tuple((d, min(-(-steps[d] // c) * c, n), c, s) for d, n, c, s in self.dims))
        return _COPIES * tile.bytes_of(tile.pieces())

    def decoded(self, steps: Mapping[str, int], sizes: Mapping[str, int]) -> float:
        """Bytes of all chunks that all tiles decode."""
        if not self.stored:
            return self.bytes_of(sizes)
        total = float(self.itemsize)
        for d, n, c, _ in self.dims:
            starts = range(0, n, steps[d])
            total *= sum((min(-(-min(k + steps[d], n) // c) * c, n) - k // c * c) for k in starts)
        return total


def blocks(extent: Mapping[str, int], steps: Mapping[str, int]) -> Iterator[dict[str, slice]]:
    """Blocks of `steps` that together are `extent`, in the order of its dimensions; nothing of those not split."""
    split = [d for d in extent if steps[d] < extent[d]]
    for starts in product(*(range(0, extent[d], steps[d]) for d in split)):
        yield {d: slice(k, min(k + steps[d], extent[d])) for d, k in zip(split, starts, strict=True)}


def within(tile: Mapping[str, slice], part: Mapping[str, slice]) -> dict[str, slice]:
    """Where a part of a tile is in what the tile is a piece of."""
    found = {}
    for d in {**tile, **part}:
        first, stop = (tile[d].start, tile[d].stop) if d in tile else (0, part[d].stop)
        inner = part.get(d, slice(0, stop - first))
        found[d] = slice(first + inner.start, first + inner.stop)
    return found


def fitted(
    steps: dict[str, int],
    order: list[str],
    grains: Mapping[str, tuple[int, int]],
    bytes_of: Callable[[Mapping[str, int]], float],
    limit: float,
) -> dict[str, int]:
    """Steps shrunk in `order`, in multiples of the grains (chunk, shard), until they fit, as far as they can be."""
    for d in order:
        if bytes_of(steps) <= limit:
            break
        chunk, shard = grains.get(d, (1, 1))
        full = steps[d]
        for grain in dict.fromkeys((shard, chunk)):
            low, high = 1, -(-full // grain)
            while low < high:  # the most grains that fit
                middle = (low + high + 1) // 2
                fits = bytes_of({**steps, d: min(middle * grain, full)}) <= limit
                low, high = (middle, high) if fits else (low, middle - 1)
            if bytes_of({**steps, d: min(low * grain, full)}) <= limit:
                break
        parts = -(-full // (low * grain))
        steps[d] = min(-(-full // (parts * grain)) * grain, full)
    return steps
