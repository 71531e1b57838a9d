"""What a lazy result will need, said before it is computed: tasks, the largest piece of work, and memory.

The estimate reads the graph and computes nothing. A chunk of the data has the bytes of its values; a task that joins
chunks (`rechunk`) those of all that it joins; other tasks are taken to return as much as the largest of their inputs,
and reductions nothing. Then, with n threads,

    peak = 2 results + 3 n (largest piece) + 2 n (largest chunk) + chunks that are kept until others have come + graph.

Two, for results are put together from chunks; three, for a piece is taken, widened and reduced; two more while chunks
are decoded. Kept are those whose parts are joined with parts of others, and those that meet a reduction of them all, as
anomalies from a mean do. A task of the graph takes 3 kB. The estimate is meant to tell 1 GB from 10 GB; functions that
allocate much more than they are given, as FFTs of many maps, need more.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

from dask.base import compute as compute_all
from dask.base import is_dask_collection
from dask.callbacks import Callback
from dask.utils import format_bytes, key_split, parse_bytes
from rich.progress import Progress

from .tiling import MemoryNeededError

_TASKS = 500_000
_TASK_BYTES = 3e3
_JOINS = ("rechunk-merge", "concatenate", "stack", "getitem-merge")
_REDUCTIONS = (
    "sum",
    "mean",
    "prod",
    "max",
    "min",
    "var",
    "std",
    "moment",
    "any",
    "all",
    "count",
    "aggregate",
    "partial",
)


@dataclass(frozen=True)
class Needed:
    """What a computation needs; `print` it.

    Attributes:
        tasks: in the graph.
        variable: that the largest piece is of.
        chunk: bytes of the largest chunk of the data.
        piece: bytes of the largest that a task has at once, more than a chunk where chunks are joined.
        kept: bytes of chunks that wait for others.
        results: bytes of the results.
        workers: threads that were counted on.
    """

    tasks: int
    variable: str
    chunk: float
    piece: float
    kept: float
    results: float
    workers: int

    @property
    def peak(self) -> float:
        """Estimated bytes beside what the process holds already."""
        pieces = self.workers * (3 * self.piece + 2 * self.chunk)
        return 2 * self.results + pieces + self.kept + _TASK_BYTES * self.tasks

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {format_bytes(int(value))}"
            for name, value in (("largest chunk", self.chunk), ("largest piece", self.piece), ("result", self.results))
        )
        peak = format_bytes(int(self.peak))
        return f"{self.tasks} tasks, {parts} ({self.variable!r}): about {peak} with {self.workers} threads"


def memory_needed(*lazy: Any, workers: int | None = None) -> Needed:
    """Estimate tasks and memory of computing lazy DataArrays, Datasets or dask arrays together.

    `workers`, threads at work at once, by default the cores. Computes nothing; the module says how it is done. Raises
    MemoryNeededError for a graph of more than 500 000 tasks, which takes longer to schedule than to compute.
    """
    workers = workers or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    results = float(sum(x.nbytes for x in lazy))
    layers = _layers(lazy)
    tasks = sum(len(layer) for layer in layers.values())
    if tasks > _TASKS:
        name, layer = max(layers.items(), key=lambda item: len(item[1]))
        raise MemoryNeededError(
            f"{tasks} tasks, {len(layer)} of them to {key_split(name)!r}, are more than {_TASKS}: chunks are too small "
            "or do not match. Give all variables the same larger chunks before joining them, as "
            "ds.chunk(time=…, lat=-1, lon=-1), or let `stream` read the store",
            results,
        )
    graph = {key: task for layer in layers.values() for key, task in layer.items()}
    sizes = _Sizes(graph)
    chunks = {key: b for key in graph if (b := sizes.source(key)) is not None}
    largest = max(chunks, key=chunks.__getitem__, default=None)
    pieces = {key: sizes.piece(key) for key in graph}
    piece = max(pieces.values(), default=0.0)
    kept = max((sizes.kept(key) for key in graph), default=0.0)
    variable = "?" if largest is None else _variable(largest)
    return Needed(tasks, variable, chunks.get(largest, 0.0), piece, max(kept, 0.0), results, workers)


def compute(
    *lazy: Any,
    memory: str | float = "4 GB",
    workers: int | None = None,
    client: Any = None,
    progress: bool = False,
) -> tuple[Any, ...]:
    """Compute lazy results together, as `dask.compute`, unless they need more than `memory`.

    `client`, a `distributed.Client`, by default threads of this process; `memory`, of this process or of one worker of
    the client; `workers` threads; `progress` shows a bar. Returns as many results as were given. Raises
    MemoryNeededError, naming the variable and what would help, before anything is read.
    """
    threads = workers if client is None else max(client.nthreads().values(), default=1)
    needed, limit = memory_needed(*lazy, workers=threads), parse_bytes(memory)
    if needed.peak > limit:
        raise MemoryNeededError(_advice(needed, limit), needed.peak)
    if client is not None:
        futures = client.compute(list(lazy))
        return tuple(client.gather(futures))
    run: Any = compute_all  # dask has no types
    with _Bar() if progress else nullcontext():
        found: tuple[Any, ...] = run(*lazy, scheduler="threads", num_workers=needed.workers)
    return found


def _advice(needed: Needed, limit: float) -> str:
    """What is too much, and what to do about it."""
    have = format_bytes(int(limit))
    if 2 * needed.results > limit / 2:
        return f"{needed}, of {have}: the result itself is too large; reduce it further, or write it with to_zarr"
    share = max(1.0, (limit - 2 * needed.results) / (5 * needed.workers))
    if needed.chunk > share:
        times = -(-needed.chunk // share)
        return (
            f"{needed}, of {have}: a chunk of {needed.variable!r} is too large; open it in chunks at least {times:.0f} "
            f"times smaller, of {format_bytes(int(share))} or less, as ds.chunk(time=…) or xr.open_zarr(…, chunks=…) "
            "do (if it was written in one chunk, write it anew: decoding needs all of it)"
        )
    return (
        f"{needed}, of {have}: chunks of {needed.variable!r} are joined; chunk the other dimensions more finely first, "
        "as ds.chunk(member=-1, lat=30), use fewer workers, or let `stream` read the store"
    )


class _Bar(Callback):
    """Shows how many tasks are done."""

    def __init__(self) -> None:
        self._bar = Progress()
        super().__init__(start_state=self._begin, posttask=self._step, finish=self._end)  # type: ignore[no-untyped-call]

    def _begin(self, graph: Any, state: Mapping[str, Any]) -> None:
        self._job = self._bar.add_task("compute", total=sum(len(state[k]) for k in ("ready", "waiting")))
        self._bar.start()

    def _step(self, *args: Any) -> None:
        self._bar.advance(self._job)

    def _end(self, *args: Any) -> None:
        self._bar.stop()


def _layers(lazy: Iterable[Any]) -> dict[str, Mapping[Hashable, Any]]:
    """Layers of all graphs, each once."""
    layers: dict[str, Mapping[Hashable, Any]] = {}
    for x in lazy:
        graph = x.__dask_graph__() if is_dask_collection(x) else None
        if graph is not None:
            layers |= getattr(graph, "layers", {str(id(graph)): graph})
    return layers


def _named(key: Hashable, names: tuple[str, ...]) -> bool:
    return any(n in str(key[0] if isinstance(key, tuple) else key) for n in names)


def _variable(key: Hashable) -> str:
    name = str(key[0] if isinstance(key, tuple) else key).rsplit("-", 1)[0]
    for prefix in ("open_dataset-", "xarray-"):
        name = name.removeprefix(prefix)
    return "data" if name == "<this-array>" else name


class _Sizes:
    """Bytes of what the tasks of a graph return, as far as they can be told without computing."""

    def __init__(self, graph: Mapping[Hashable, Any]) -> None:
        self._graph = graph
        self._pieces: dict[Hashable, float] = {}
        self._kept: dict[Hashable, float] = {}

    def source(self, key: Hashable) -> float | None:
        """Bytes of a chunk that is cut out of stored data; None for other tasks."""
        task = self._graph[key]
        value = getattr(task, "value", task)
        if isinstance(key, tuple) and hasattr(value, "nbytes") and hasattr(value, "shape"):
            return float(value.nbytes)
        args = getattr(task, "args", None)
        if not args or not callable(getattr(task, "func", None)):
            return None
        arrays = [self._graph.get(getattr(a, "key", None), a) for a in args]
        arrays = [getattr(a, "value", a) for a in arrays]
        cuts = [a for a in arrays if isinstance(a, tuple) and a and all(isinstance(s, slice) for s in a)]
        data = [a for a in arrays if hasattr(a, "dtype") and hasattr(a, "shape")]
        if not cuts or not data or len(cuts[0]) != len(data[0].shape):
            return None
        shape = [len(range(*s.indices(n))) for s, n in zip(cuts[0], data[0].shape, strict=True)]
        return float(prod(shape) * data[0].dtype.itemsize)

    def _inputs(self, key: Hashable) -> list[Hashable]:
        return [d for d in getattr(self._graph[key], "dependencies", ()) if d in self._graph and isinstance(d, tuple)]

    def piece(self, key: Hashable) -> float:
        """Bytes of what a task returns."""
        return self._walk(key, self._pieces, self._piece)

    def kept(self, key: Hashable) -> float:
        """Bytes of the chunks of the data that wait, whole, until a task can begin."""
        if self.source(key) is not None or _named(key, _REDUCTIONS):
            return 0.0
        inputs = self._inputs(key)
        if _named(key, ("rechunk-merge",)):
            return self._walk(key, self._kept, self._whole) - self.piece(key)
        # What comes from a reduction has no bytes of its own, and its chunks are also those of the other inputs.
        reduced = [d for d in inputs if self.piece(d) == 0]
        if len(reduced) in (0, len(inputs)):
            return 0.0
        return max(self._walk(d, self._kept, self._whole) for d in reduced)

    def _piece(self, key: Hashable, inputs: list[float]) -> float:
        if _named(key, ("rechunk-split",)):
            cut = [getattr(a, "value", a) for a in self._graph[key].args]
            shapes = [[s.stop - s.start for s in a] for a in cut if isinstance(a, tuple) and a]
            return float(min([prod(shape) * 8.0 for shape in shapes] + inputs))
        if _named(key, _JOINS):
            return sum(inputs)
        return 0.0 if _named(key, _REDUCTIONS) else max(inputs, default=0.0)

    def _whole(self, key: Hashable, inputs: list[float]) -> float:
        return sum(inputs) if _named(key, (*_JOINS, *_REDUCTIONS)) else max(inputs, default=0.0)

    def _walk(self, key: Hashable, known: dict[Hashable, float], rule: Any) -> float:
        """The rule for a task after those for its inputs, without recursion, for graphs are deep."""
        stack = [key]
        while stack:
            top = stack[-1]
            if top in known:
                stack.pop()
                continue
            source = self.source(top)
            inputs = [] if source is not None else self._inputs(top)
            if missing := [d for d in inputs if d not in known]:
                stack += missing
                continue
            known[top] = float(rule(top, [known[d] for d in inputs])) if source is None else source
            stack.pop()
        return known[key]
