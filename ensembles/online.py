"""Statistics of a run as it goes: parts of every block and time on disk, merged when all blocks are done.

What is on disk of a block is a few maps per time, whatever the number of its members. `ensemble_statistics` opens the
result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from numpy.typing import NDArray
from torch import Tensor

from ..emulators import Layout, SourceError, State
from ..emulators.stores import open_zarr
from .block import Block
from .durable import Background
from .recording import Recording, numbers_of
from .shards import Array, Record, Series, create_series
from .statistics import Parts, Statistic, merge_all

__all__ = ["Online", "ensemble_statistics", "merge_statistics"]


class Online:
    """Takes the states of a block, and has the parts of its statistics written.

    Args:
        block: whose members.
        background: the thread that writes.
        statistics: which.
        every: records between them, the first included.
        total: records of the whole run.
    """

    def __init__(
        self, block: Block, background: Background, statistics: Sequence[Statistic], every: int, total: int
    ) -> None:
        self.block, self.background, self.every = block, background, every
        self.statistics = statistics if block.group.attrs["statistics"] else ()
        self.records = block.records
        length, start = -(-total // every), -(-block.records // every)
        for k, statistic in enumerate(self.statistics):
            for name, array in _arrays(block.group, k, statistic, block.whole, length).items():
                block.series[f"{k}-{name}"] = Series(array, None, start)

    def write(self, state: State, slots: Iterable[int]) -> None:
        """Take some time slots of a state, which come after those that were taken."""
        for slot in slots:
            if self.records % self.every == 0:
                for k, statistic in enumerate(self.statistics):
                    fields = {n: state.data[:, state.layout.channels(n, slot)] for n in state.layout.names}
                    parts = statistic.parts(fields[statistic.variable], fields, state.members)
                    self.background.do(partial(self._put, k, parts))
            self.records += 1

    def _put(self, number: int, parts: Parts) -> None:
        for name, value in parts.items():
            self.block.series[f"{number}-{name}"].put(_copy_of(value.cpu().numpy()))


def _arrays(group: zarr.Group, number: int, statistic: Statistic, layout: Layout, length: int) -> dict[str, Array]:
    """Where the parts of a statistic go, (time, ...), made as long as the run if they are not."""
    f = layout.field(statistic.variable)
    found = {}
    for name, (shape, dtype) in statistic.part_shapes((f.channels, *layout.shape[1:])).items():
        key = f"statistic-{number}-{name}"
        if key not in group:
            dims = ("time", *(f"{name}_{k}" for k in range(len(shape))))
            kind = np.dtype(str(dtype).removeprefix("torch."))
            create_series(group, key, (length, *shape), dims, kind, fill=0)
        array = group[key]
        assert isinstance(array, zarr.Array)
        array.resize((length, *shape))
        found[name] = array
    return found


def merge_statistics(
    recording: Recording, blocks: Sequence[Block], statistics: Sequence[Statistic], every: int, dates: Sequence[Any]
) -> None:
    """Merge the parts of all blocks into the group `statistics`, one time after another."""
    blocks = [b for b in blocks if b.group.attrs["statistics"]]
    layout, times = blocks[0].whole, dates[::every]
    group = recording.group.create_group("statistics", overwrite=True)
    grid = layout.grid.copy()
    grid.attrs = {k: v for k, v in dict(recording.group.attrs).items() if k in ("Conventions", "title", "history")}
    grid.attrs["members"] = sum(len(b.members) for b in blocks)
    for statistic in statistics:
        coords = {n: (dim, values, attrs) for n, (dim, values, attrs) in statistic.coords().items()}
        grid = grid.assign_coords(coords)
    grid.to_zarr(recording.files, group="statistics", mode="a", zarr_format=3, consolidated=False)
    stamp = {"units": recording.array("time").attrs["units"], "calendar": recording.calendar}
    group.create_array(
        "time", data=numbers_of(times, recording.calendar), chunks=(4096,), dimension_names=["time"], compressors=None,
        attributes={**stamp, "standard_name": "time", "axis": "T"},
    )  # fmt: skip
    for k, statistic in enumerate(statistics):
        parts = [_arrays(b.group, k, statistic, layout, len(times)) for b in blocks]
        written: dict[str, Series] = {}
        for t in range(len(times)):
            read = ({n: torch.from_numpy(np.asarray(a[t])) for n, a in arrays.items()} for arrays in parts)
            _write(group, statistic, layout, merge_all(statistic, read), written, len(times))
        for series in written.values():
            series.flush()


def _write(
    group: zarr.Group, statistic: Statistic, layout: Layout, parts: Parts, written: dict[str, Series], length: int
) -> None:
    """One time of a statistic; land is NaN, of integers -1."""
    f = layout.field(statistic.variable)
    wet = torch.from_numpy(layout.field_mask(f).copy())
    for name, (values, leading, attrs) in statistic.finished(parts).items():
        cells = values.ndim > len(leading)
        if cells:
            values = _land(values, wet)
            values = values if f.levels else values.squeeze(-3)
        numbers = values.cpu().numpy()
        if name not in written:
            place = (*(("lev",) if f.levels else ()), *layout.dims) if cells else ()
            fill = np.nan if numbers.dtype.kind == "f" else -1
            create_series(
                group, name, (length, *numbers.shape), ("time", *leading, *place), numbers.dtype, fill=fill,
                attributes={**attrs, **({"cell_measures": "area: areacello"} if cells else {})},
            )  # fmt: skip
            array = group[name]
            assert isinstance(array, zarr.Array)
            written[name] = Series(array, None, 0)
        written[name].put(_copy_of(numbers))


def _copy_of(numbers: NDArray[Any]) -> Record:
    return lambda _, out: np.copyto(out, numbers)


def _land(values: Tensor, wet: Tensor) -> Tensor:
    return torch.where(wet, values, torch.nan if values.is_floating_point() else -1)


def ensemble_statistics(store: str | Path) -> xr.Dataset:
    """The statistics of a run's store, lazily: `<variable>_<what>` (time, ..., [lev], y, x).

    Raises FileNotFoundError if there is no such store; SourceError if the run is not complete, or kept none.
    """
    root = open_zarr(store)
    if root.attrs.get("status", "complete") != "complete":
        raise SourceError(f"{store} is incomplete: finish it with `rollout(..., resume=True)`")
    if not (Path(store) / "statistics" / "zarr.json").exists():
        raise SourceError(f"{store} has no statistics; ask for some with `rollout(..., statistics=[Moments(...)])`")
    return open_zarr(store, "statistics").chunk({})
