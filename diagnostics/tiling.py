"""How a stream will read a store, before it reads: walks, tiles, bytes, and the memory that they take.

Products that share variables walk together. A tile is at most as large as is asked for, if products let it: blocks of
time first, then of members where no product needs them whole, then of levels or rows, in multiples of shards or chunks
as long as these fit. Tiles depend on the store and the products, not on how many threads read, so neither do the bits
of the result; only where memory is short are they made smaller. A thread takes

    tile + max(4 x what is read at once of a variable, working x slice of each product) + 3 states of a tile

where a slice is what a product is given at once; results are held twice while they are put together. Compiled code that
is loaded on first use, 0.1 GB, comes on top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask
import dask.array as da
import xarray as xr
from dask.utils import format_bytes

from .chunks import Variable, blocks, fitted
from .products import Each, Product
from .stores import Reader, Tile

_RECORDS = ("time", "init", "lead", "member")
_TASKS = 256


class MemoryNeededError(ValueError):
    """A computation needs more memory than it may take; `needed` (bytes) says how much."""

    def __init__(self, message: str, needed: float) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Wanted:
    """A product with what the trial told about it.

    Attributes:
        name, product: as asked for.
        variables: that it reads.
        whole: dimensions that it needs complete.
        result: bytes of its state for the whole store; 0 if the trial failed.
        kept: dimensions of its state.
    """

    name: str
    product: Product
    variables: tuple[str, ...]
    whole: frozenset[str]
    result: float
    kept: frozenset[str]

    @classmethod
    def of(cls, name: str, asked: Product | Callable[[xr.Dataset], Any], store: xr.Dataset) -> Wanted:
        """Try a product on lazy arrays of zeros, which computes nothing."""
        product: Product = Each(asked) if callable(asked) else asked
        names = [str(v) for v in store.data_vars] if product.variables is None else list(product.variables)
        if missing := [v for v in names if v not in store.data_vars]:
            raise ValueError(f"{name!r} needs {missing}, which the store lacks: it has {[*store.data_vars]}")
        dims = {str(d) for v in names for d in store[v].dims}
        whole = dims - set(_RECORDS) if product.whole is None else dims & set(product.whole)
        try:
            state, names = _tried(product, store[names])
        except Exception:  # whatever a function does not like about lazy arrays, it may like in memory
            return cls(name, product, tuple(names), frozenset(whole), 0.0, frozenset())
        if product.whole is None:
            whole |= {str(d) for v in names for d in store[v].dims} - set(map(str, state.dims)) - _averaged(product)
        return cls(name, product, tuple(names), frozenset(whole), float(state.nbytes), frozenset(map(str, state.dims)))


def _averaged(product: Product) -> set[str]:
    return set(getattr(product, "over", ()))


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a trial must not compute")


def _tried(product: Product, store: xr.Dataset) -> tuple[xr.Dataset, list[str]]:
    """State of the whole store, lazily, and the variables that it is made of."""
    zeros = {
        str(n): v.copy(data=da.zeros(v.shape, dtype=v.dtype, chunks=-1, name=f"tile-{n}"))
        for n, v in store.data_vars.items()
    }
    with dask.config.set(scheduler=_refuse):
        state = product.partial(store.assign(zeros))
    graphs: list[Any] = [v.data.dask for v in state.data_vars.values() if v.chunks]
    layers = {layer for graph in graphs for layer in graph.layers}
    used = [n for n in zeros if f"tile-{n}" in layers]
    return state, used if product.variables is None and used else list(zeros)


@dataclass(frozen=True)
class Walk:
    """One pass over some variables.

    Attributes:
        wanted: the products that it feeds.
        variables: their sizes and types, by name: ((dim, size, chunk), …) and bytes of a value.
        sizes: of all dimensions.
        steps: extent of a tile along each dimension.
        work: bytes of temporaries that products are kept to by giving them less than a tile.
    """

    wanted: tuple[Wanted, ...]
    variables: Mapping[str, Variable]
    sizes: Mapping[str, int]
    steps: Mapping[str, int]
    work: float

    def tiles(self) -> Iterator[dict[str, slice]]:
        """Pieces that together are the store; rows outermost, so that neighbours in order are at the same places."""
        order = sorted(self.sizes, key=lambda d: d in _RECORDS)
        return blocks({d: self.sizes[d] for d in order}, self.steps)

    @cached_property
    def n_tiles(self) -> int:
        """How many."""
        return math.prod(-(-self.sizes[d] // self.steps[d]) for d in self.sizes)

    def groups(self) -> list[list[dict[str, slice]]]:
        """Tiles by task: at most 256 tasks, whoever runs them."""
        tiles = list(self.tiles())
        size = -(-len(tiles) // _TASKS)
        return [tiles[k : k + size] for k in range(0, len(tiles), size)]

    def slices(self, wanted: Wanted, tile: Tile) -> Iterator[dict[str, slice]]:
        """Parts of a tile, relative to it, that a product is given one after the other."""
        extent = {d: tile[d].stop - tile[d].start if d in tile else n for d, n in self.sizes.items()}
        return blocks(extent, self.slice_steps(wanted, extent))

    def slice_steps(self, wanted: Wanted, extent: Mapping[str, int]) -> dict[str, int]:
        """Extent of what a product is given at once, of a tile of this extent."""
        free = [d for d in extent if d not in wanted.whole]
        variables = [self.variables[v] for v in wanted.variables]
        most = self.work / wanted.product.working
        return fitted(dict(extent), free, {}, lambda steps: sum(v.bytes_of(steps) for v in variables), most)

    @property
    def nbytes(self) -> float:
        """Bytes of all values."""
        return sum(v.bytes_of(self.sizes) for v in self.variables.values())

    @property
    def tile_bytes(self) -> float:
        """Bytes of the values of a tile."""
        return sum(v.bytes_of(self.steps) for v in self.variables.values())

    @property
    def read_bytes(self) -> float:
        """Bytes of the chunks that are decoded, those that several tiles share as often as they are read."""
        return sum(v.decoded(self.steps, self.sizes) for v in self.variables.values())

    @property
    def task_bytes(self) -> float:
        """Memory of one thread at its peak."""
        decoding = max((v.decoding(self.steps) for v in self.variables.values()), default=0.0)
        # One state at work and two that wait for those of earlier tiles.
        states = 3 * sum(self.state_bytes(w) for w in self.wanted)
        return self.tile_bytes + max([decoding, *(self.working_bytes(w) for w in self.wanted)]) + states

    def working_bytes(self, wanted: Wanted) -> float:
        """Temporaries of a product."""
        steps = self.slice_steps(wanted, self.steps)
        return wanted.product.working * sum(self.variables[v].bytes_of(steps) for v in wanted.variables)

    def state_bytes(self, wanted: Wanted) -> float:
        """State of a tile."""
        return wanted.result * math.prod(self.steps[d] / self.sizes[d] for d in self.steps if d in wanted.kept)

    @property
    def result_bytes(self) -> float:
        """States of the whole store, twice."""
        return 2 * sum(w.result for w in self.wanted)


@dataclass(frozen=True)
class Plan:
    """What a stream is going to do; `print` it.

    Attributes:
        walks: passes, each over variables of its own unless memory made them share.
        workers: threads at work at the same time.
        memory: that they may take, bytes.
    """

    walks: tuple[Walk, ...]
    workers: int
    memory: float

    @property
    def peak(self) -> float:
        """Estimated memory beside what the process holds already, bytes."""
        results = sum(w.result_bytes for w in self.walks)
        return results + self.workers * max((w.task_bytes for w in self.walks), default=0.0)

    def __str__(self) -> str:
        lines = []
        for walk in self.walks:
            split = {d: n for d, n in walk.steps.items() if n < walk.sizes[d]}
            lines.append(f"{', '.join(w.name for w in walk.wanted)}: {', '.join(walk.variables)}")
            tile = ", ".join(f"{d} {n} of {walk.sizes[d]}" for d, n in split.items()) or "everything"
            lines.append(f"  {walk.n_tiles} tiles of {format_bytes(int(walk.tile_bytes))}: {tile}")
            times = walk.read_bytes / walk.nbytes
            again = f", chunks read {times:.1f} times" if times > 1.05 else ""
            each = format_bytes(int(walk.task_bytes))
            lines.append(f"  {format_bytes(int(walk.nbytes))} in all{again}; a thread takes {each}")
        peak, memory = format_bytes(int(self.peak)), format_bytes(int(self.memory))
        return "\n".join([*lines, f"{self.workers} at work, estimated peak {peak} of {memory}"])


def planned(
    reader: Reader,
    products: Mapping[str, Product | Callable[[xr.Dataset], Any]],
    *,
    memory: float,
    workers: int | None,
    tile: float,
) -> Plan:
    """Lay out a stream; MemoryNeededError if no tiling fits."""
    store = reader.whole
    wanted = [Wanted.of(name, product, store) for name, product in products.items()]
    results = 2 * sum(w.result for w in wanted)
    if results > memory:
        largest = max(wanted, key=lambda w: w.result)
        raise MemoryNeededError(
            f"the result of {largest.name!r} alone is {format_bytes(int(largest.result))}, and results are held twice, "
            f"but memory is {format_bytes(int(memory))}: reduce it further (a mean over time, fewer levels), or write "
            f"it with to_zarr from the lazy plain function, or give memory='{(results + 4e8) / 1e9:.1f} GB'",
            results,
        )
    budget = _Budget(memory, results, workers or 1, tile)
    walks: list[Walk] = []
    for group in _sharing(wanted):
        try:
            walks.append(_walk(tuple(group), store, budget))
        except MemoryNeededError:
            if len(group) == 1:
                raise
            walks += [_walk((w,), store, budget) for w in group]
    most = max((w.task_bytes for w in walks), default=1.0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Plan(tuple(walks), workers or max(1, min(cores, int((memory - results) // max(most, 1.0)))), memory)


def _sharing(wanted: list[Wanted]) -> list[list[Wanted]]:
    """Products in groups that share variables."""
    groups: list[list[Wanted]] = []
    for w in wanted:
        near = [g for g in groups if any(set(w.variables) & set(o.variables) for o in g)]
        joined = [*(o for g in near for o in g), w]
        groups = [*(g for g in groups if g not in near), joined]
    return groups


@dataclass(frozen=True)
class _Budget:
    """Bytes of memory, of them for results, threads that share the rest, and bytes of a tile."""

    memory: float
    results: float
    threads: int
    tile: float

    @property
    def thread(self) -> float:
        return (self.memory - self.results) / self.threads


def _walk(wanted: tuple[Wanted, ...], store: xr.Dataset, budget: _Budget) -> Walk:
    """A walk in tiles as large as the budget has them, if products let it; MemoryNeededError if a thread needs more."""
    names = sorted({v for w in wanted for v in w.variables})
    variables = {n: Variable.of(store[n]) for n in names}
    dims = list(dict.fromkeys(d for v in variables.values() for d, *_ in v.dims))
    sizes = {d: store.sizes[d] for d in dims}
    whole = frozenset().union(*(w.whole for w in wanted))
    order = [d for d in _RECORDS if d in dims and d not in whole]
    order += [d for d in dims if d not in whole and d not in order]
    grains: dict[str, tuple[int, int]] = {}
    for v in sorted(variables.values(), key=lambda v: v.bytes_of(sizes)):
        grains |= {d: (c, max(s, c)) for d, _, c, s in v.dims}  # those of the largest variable count

    def tile(steps: Mapping[str, int]) -> float:
        return sum(v.bytes_of(steps) for v in variables.values())

    def needs(steps: Mapping[str, int]) -> float:
        return Walk(wanted, variables, sizes, steps, 2 * budget.tile).task_bytes

    steps = fitted(dict(sizes), order, grains, tile, budget.tile)
    if needs(steps) > budget.thread:
        steps = fitted(steps, order, {}, needs, budget.thread)
    walk = Walk(wanted, variables, sizes, steps, 2 * budget.tile)
    if walk.task_bytes > budget.thread:
        raise _too_much(walk, budget)
    return walk


def _too_much(walk: Walk, budget: _Budget) -> MemoryNeededError:
    """Which variable is to blame, and what would help."""
    name, worst = max(walk.variables.items(), key=lambda v: v[1].decoding(walk.steps) + v[1].bytes_of(walk.steps))
    how = ", ".join(f"{d} {c} of {n}" for d, n, c, _ in worst.dims)
    reasons = [f"{w.name!r} needs {sorted(w.whole)} whole" for w in walk.wanted if name in w.variables and w.whole]
    needed = budget.results + budget.threads * walk.task_bytes
    at_once, have = format_bytes(int(walk.task_bytes)), format_bytes(int(budget.thread))
    message = (
        f"{name!r} needs {at_once} at once but {have} a thread are allowed: it comes in chunks of {how}, "
        f"{format_bytes(int(worst.chunk_bytes))} each; {'; '.join(reasons) or 'no tile is smaller'}."
    )
    free = [(d, n, c) for d, n, c, _ in worst.dims if all(d not in w.whole for w in walk.wanted) and c > 1]
    if worst.stored and free:
        # Chunks of which one and the tile made of it fit, in the first dimension that may be split.
        d, n, c = free[0]
        few = max(1, int(min(c, n) * min(budget.tile, budget.thread / 4) // worst.chunk_bytes))
        message += f" Write it in smaller chunks: ds.chunk({d}={few}).to_zarr(…), or give"
    else:
        message += " Select levels or a region, ask for fewer products at a time, or give"
    return MemoryNeededError(f"{message} memory='{math.ceil(needed * 1.1 / 1e8) / 10:.1f} GB'.", needed)
