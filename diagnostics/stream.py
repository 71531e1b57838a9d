"""One pass over a store larger than memory that feeds any number of diagnostics.

    found = stream({"heat": HeatContent(), "crps": ScoreTotals("zos", "zos_truth")}, "ensemble.zarr",
                   beside={"truth": "truth.zarr"}, memory="1.5 GB")

One task reads a tile, computes a small float64 state for each product and folds those of its tiles; the states of all
tasks are folded in the order of the tiles, whichever was finished first, so the bits of a result do not depend on
threads, processes or workers. Chan et al. 1983, Am. Stat. 37, 242, for states that merge.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from dask.utils import parse_bytes
from rich.progress import Progress

from .chunks import within
from .products import Data, Product
from .stores import Reader, Space, Store, Tile, pickled
from .tiling import MemoryNeededError, Plan, Walk, planned

__all__ = ["MemoryNeededError", "Plan", "stream", "stream_plan"]

Asked: TypeAlias = Mapping[str, Product | Callable[[xr.Dataset], Data]]


def stream_plan(
    products: Asked,
    store: Store,
    *,
    beside: Mapping[str, Store] | None = None,
    memory: str | float = "1.5 GB",
    workers: int | None = None,
    tile: str | float = "128 MB",
) -> Plan:
    """How `stream` would read: tiles, bytes and estimated peak memory. Reads coordinates only.

    Arguments and errors as `stream`.
    """
    limits = {"memory": parse_bytes(memory), "tile": parse_bytes(tile)}
    return planned(Reader.of(store, beside or {}), products, workers=workers, **limits)


def stream(
    products: Asked,
    store: Store,
    *,
    beside: Mapping[str, Store] | None = None,
    client: Any = None,
    memory: str | float = "1.5 GB",
    workers: int | None = None,
    tile: str | float = "128 MB",
    progress: bool = False,
) -> dict[str, Data]:
    """Walk a store once and compute all products.

    `products` by name: products such as `HeatContent`, or functions of a Dataset that treat members and times by
    themselves, see `Each`; `store`, the path of a Zarr store or a Dataset, lazy or not, which is read in tiles of about
    `tile` bytes; `beside`, other stores with the same coordinates, whose variables are called `variable_name` in the
    tiles; `client`, a `distributed.Client` to run the tasks, by default threads of this process; `memory`, of this
    process, or of each worker of the client, beside what it holds already; `workers`, threads at work at once, by
    default as many as there are cores and the memory allows; `progress` shows the plan and a bar.

    Returns the results by name, in memory. They do not depend on workers or client, bit by bit, but on the tiles. With
    a client a task whose worker dies is computed again by another. Raises MemoryNeededError before reading if the
    smallest tiles or the results do not fit, naming the variable and what would help, and ValueError for stores that
    do not agree.
    """
    reader = Reader.of(store, beside or {})
    threads = workers if client is None else max(client.nthreads().values(), default=1)
    plan = planned(reader, products, memory=parse_bytes(memory), workers=threads, tile=parse_bytes(tile))
    found: dict[str, Data] = {}
    with Progress(disable=not progress) as bar:
        if progress:
            bar.console.print(str(plan), highlight=False)
        for walk in plan.walks:
            sums = {w.name: _Sums(w.product) for w in walk.wanted}
            groups = walk.groups()
            job = bar.add_task(", ".join(sums), total=len(groups))
            for partial in _run(reader, walk, groups, client, plan.workers):
                for name, part in zip(sums, partial, strict=True):
                    sums[name].merge(part)
                bar.advance(job)
            found |= {name: s.finished(walk.sizes) for name, s in sums.items()}
    computed = [] if reader.knows_area else ["areacello"]
    return {name: found[name].drop_vars(computed, errors="ignore") for name in products}


_Key: TypeAlias = tuple[tuple[str, int], ...]
_States: TypeAlias = dict[_Key, xr.Dataset]


@dataclass(frozen=True)
class _Sums:
    """States of a product by where they begin along the dimensions that they keep."""

    product: Product
    states: _States = field(default_factory=dict)

    def add(self, state: xr.Dataset, at: Tile) -> None:
        """Take the state of a piece of the store."""
        for d in at:
            if d in state.dims and state.sizes[d] != at[d].stop - at[d].start:
                raise ValueError(
                    f"{self.product!r} returned {state.sizes[d]} of {at[d].stop - at[d].start} values along {d!r}, in "
                    f"which the store is read in tiles: name {d!r} in its `whole`"
                )
        self.merge({tuple((d, s.start) for d, s in sorted(at.items()) if d in state.dims): state})

    def merge(self, states: _States) -> None:
        """Take those of other pieces, which come in the order of the store."""
        for key, state in states.items():
            self.states[key] = self.product.merge(self.states[key], state) if key in self.states else state

    def finished(self, sizes: Mapping[str, int]) -> Data:
        """The result."""
        return self.product.finish(_side_by_side(self.states, sizes))


def _side_by_side(states: _States, sizes: Mapping[str, int]) -> xr.Dataset:
    """One Dataset of states that begin at their keys; what has no such dimension is that of the first."""
    first, kept = next(iter(states.values())), {d for key in states for d, _ in key}
    if not kept:
        return first
    whole: dict[Any, tuple[Any, Any, Any]] = {}
    for name, variable in first.variables.items():
        if not kept & set(variable.dims):
            whole[name] = (variable.dims, variable.values, variable.attrs)
            continue
        values = np.empty([sizes[str(d)] if d in kept else variable.sizes[d] for d in variable.dims], variable.dtype)
        for key, state in states.items():
            start = dict(key)
            part = state.variables[name].transpose(*variable.dims)
            at = (slice(start.get(d, 0), start.get(d, 0) + part.sizes[d]) for d in map(str, variable.dims))
            values[tuple(at)] = part.values
        whole[name] = (variable.dims, values, variable.attrs)
    coords = {name: whole.pop(name) for name in first.coords}
    return xr.Dataset(whole, coords=coords, attrs=first.attrs)


def _partials(reader: Reader, walk: Walk, tiles: Iterable[dict[str, slice]], space: Space) -> list[_States]:
    """States of each product of a run of tiles."""
    sums = [_Sums(w.product) for w in walk.wanted]
    for tile in tiles:
        data = reader.load(walk.variables, tile, space)
        for wanted, own in zip(walk.wanted, sums, strict=True):
            names = list(wanted.variables)
            for part in walk.slices(wanted, tile):
                state = wanted.product.partial(data[names].isel(part))
                if any(v.chunks for v in state.variables.values()):
                    state = state.compute(scheduler="synchronous")
                own.add(space.apart(state), within(tile, part))
    return [s.states for s in sums]


_Groups: TypeAlias = list[list[dict[str, slice]]]


def _run(reader: Reader, walk: Walk, groups: _Groups, client: Any, workers: int) -> Iterator[list[_States]]:
    """States of all groups, in order; as many are under way as the memory allows."""
    if client is not None:
        return _in_cluster(reader, walk, groups, client, workers)
    return _in_threads(reader, walk, groups, workers)


def _in_threads(reader: Reader, walk: Walk, groups: _Groups, workers: int) -> Iterator[list[_States]]:
    waiting: deque[Any] = deque()
    space = Space()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stream")
    try:
        for tiles in groups:
            waiting.append(pool.submit(_partials, reader, walk, tiles, space))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _in_worker(pieces: list[tuple[bytes, dict[str, slice]]], walk: Walk) -> list[_States]:
    """As `_partials`, of stores that came with the task; those by path are opened once in a process."""
    sums: list[_Sums] = [_Sums(w.product) for w in walk.wanted]
    space = Space()  # of the task: a worker keeps nothing between two
    for carried, tile in pieces:
        reader: Reader = pickle.loads(carried)
        # A piece that was cut out begins at 0 whatever its place in the store.
        source = reader if reader.paths is not None else _Piece(reader)
        for own, states in zip(sums, _partials(source, walk, [tile], space), strict=True):  # type: ignore[arg-type]
            own.merge(states)
    return [s.states for s in sums]


@dataclass(frozen=True)
class _Piece:
    """A Reader of one tile."""

    reader: Reader

    def load(self, variables: Iterable[str], tile: Tile, space: Space) -> xr.Dataset:
        """All of it."""
        return self.reader.load(variables, {}, space)


def _in_cluster(reader: Reader, walk: Walk, groups: _Groups, client: Any, workers: int) -> Iterator[list[_States]]:
    # A task of its own makes the products: they travel once, and are made again if a worker that has them dies.
    shared = client.submit(pickle.loads, pickled(walk), pure=False)
    window = max(1, 2 * min(workers * len(client.nthreads()), sum(client.nthreads().values())))
    waiting: deque[Any] = deque()
    try:
        for tiles in groups:
            pieces = [(reader.carried(walk.variables, tile), tile) for tile in tiles]
            waiting.append(client.submit(_in_worker, pieces, shared, pure=False, retries=3))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        client.cancel([*waiting, shared], force=True)
