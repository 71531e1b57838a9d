"""Source: a dataset read as states and forcings, lazily, by time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from .anomalies import anomalies, means_from, means_of
from .grids import gaussian_grid, grid_of, layout_of, require_levels
from .state import Layout, LayoutError, State
from .stores import SourceError, dates_of, open_store, open_zarr, ticks, usual_step

__all__ = ["Source", "SourceError", "cftime_like", "gaussian_grid", "grid_of", "layout_of", "open_store"]

_SLACK = 1e-3  # relative, for dates that went through float32


@dataclass(frozen=True, eq=False)
class Source:
    """States or forcings of one layout, read from a dataset by time.

    `Source.open(path, layout)` for a store; `.state(time, members)` for an initial condition or truth,
    `.at(time, members)` for the forcing of a step, `.shift(time, dt)` for the date of the next. The next
    forcing is read in the background.
    """

    dataset: xr.Dataset = field(repr=False)
    layout: Layout
    path: str = ""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), repr=False)
    _ahead: dict[Any, Future[State]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls, path: str | Path | xr.Dataset, layout: Layout, climatology: str | Path | xr.Dataset | None = None
    ) -> Source:
        """Open a store as the fields of `layout`; reads coordinates only.

        Args:
            path: Zarr store, or a Dataset opened with cftime dates.
            layout: the fields wanted.
            climatology: for `hfds_anomalies` that are not in the store: a statistics file (see
                `save_statistics`), or a Dataset with `hfds_climatology (dayofyear, y, x)` in W m-2. Without it they
                are relative to the day-of-year means of the opened record, which depend on what it covers.

        Raises FileNotFoundError; SourceError if a variable or a level is missing, the grid has another shape, time
        does not increase or has gaps, or the climatology does not fit.
        """
        dataset, name = open_store(path), "the dataset" if isinstance(path, xr.Dataset) else str(path)
        dates_of(dataset, name)
        if "hfds_anomalies" in layout.names and "hfds_anomalies" not in dataset and "hfds" in dataset:
            dataset = dataset.assign(hfds_anomalies=_anomalies(dataset["hfds"], climatology, name))
        missing = [n for n in layout.names if n not in dataset]
        if missing:
            raise SourceError(
                f"{name} lacks the variable(s) {', '.join(missing)}; it has {', '.join(map(str, dataset.data_vars))}. "
                "Rename or add them, or choose a layout without them"
            )
        sizes = tuple(dataset.sizes.get(d, 0) for d in layout.dims)
        if sizes != layout.shape[1:]:
            raise SourceError(f"{name}: wanted a grid of {layout.dims} = {layout.shape[1:]}, got {sizes}")
        require_levels({f.name: f.levels for f in layout.fields}, dataset, name)
        source = cls(dataset, layout, name)
        if len(layout.slots) > 1 and source._records_in(layout.interval) != 1:
            raise SourceError(
                f"{name}: wanted records every {layout.interval} for the time slots {layout.slots}, got one every "
                f"{source.spacing}; select every n-th record, or take the layout from this store with `layout_of`"
            )
        return source

    @cached_property
    def times(self) -> list[cftime.datetime]:
        """All record times."""
        return dates_of(self.dataset, self.path)

    @cached_property
    def _ticks(self) -> NDArray[np.int64]:
        return ticks(np.array(self.times, dtype=object), self.times[0].calendar)

    @cached_property
    def spacing(self) -> timedelta:
        """The usual time between records."""
        return usual_step(self.times) if len(self.times) > 1 else self.layout.interval

    @property
    def members(self) -> tuple[int, ...]:
        """Member numbers in the dataset; (0,) for a dataset without members."""
        return tuple(self.dataset["member"].values.tolist()) if "member" in self.dataset.dims else (0,)

    def state(
        self,
        time: str | cftime.datetime | None = None,
        members: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """The state at a time (default: the last record) for some members (default: all there are).

        A dataset of one member serves any member numbers.
        """
        index = len(self.times) - 1 - max(self.layout.slots) if time is None else self._index(time)
        return self._read(index, tuple(self.members if members is None else members), dtype)

    def at(self, time: cftime.datetime, members: Sequence[int] = (0,)) -> State:
        """The forcing for the step that starts at `time`: the record nearest to it, within half an interval."""
        index, key = self._index(time), tuple(members)
        waiting = self._ahead.pop((index, key), None)
        if index + 1 < len(self.times):
            step = round(self.layout.interval / self.spacing) or 1
            for ahead in {index + 1, index + step, index + step * len(self.layout.slots)}:
                if ahead + self.layout.slots[-1] < len(self.times) and len(self._ahead) < 4:
                    self._ahead.setdefault((ahead, key), self._pool.submit(self._read, ahead, key))
        return waiting.result() if waiting is not None else self._read(index, key)

    # --- dates -----------------------------------------------------------------------------------

    def nearest(self, time: cftime.datetime) -> cftime.datetime:
        """The date of the record nearest to `time`, if within half an interval; else `time` itself."""
        index = self._nearest(time)
        return time if index is None else self.times[index]

    def shift(self, time: cftime.datetime, by: timedelta) -> cftime.datetime:
        """The date `by` after `time` (before, if negative), counted in records where there are any.

        The public stores hold 73 five-day means a year, one of which is six days long in leap years: two records
        on is ten days, or eleven. A `time` between records keeps its distance from the nearest. Where `by` is no
        whole number of records, or leads past the first or last, the answer is plainly `time + by`.
        """
        index, count = self._nearest(time), self._records_in(by)
        if index is None or count is None or not 0 <= index + count < len(self.times):
            return time + by
        return self.times[index + count] + (time - self.times[index])

    def require(self, start: cftime.datetime, steps: int = 0, dt: timedelta = timedelta(0)) -> None:
        """Raise SourceError now, rather than hours later, unless there are records `steps` steps of `dt` on."""
        index, count = self._index(start), self._records_in(dt)
        if count is None:
            self._index(start + steps * dt)
        elif index + steps * count > len(self.times) - 1 - max(self.layout.slots):
            raise self._out_of_range(f"{start} and {steps} steps of {dt} after it")

    def _records_in(self, by: timedelta) -> int | None:
        """How many records `by` goes, None if it is no whole number; steps of leap years and months differ."""
        count, microsecond = round(by / self.spacing), timedelta(microseconds=1)
        steps = np.diff(self._ticks) if len(self.times) > 1 else np.array([self.spacing / microsecond])
        shortest, longest = (1 - _SLACK) * steps.min() * abs(count), (1 + _SLACK) * steps.max() * abs(count)
        return count if shortest <= abs(by) / microsecond <= longest else None

    def _nearest(self, time: cftime.datetime) -> int | None:
        """Position of the record nearest to `time`, None if it is further than half an interval."""
        if time.calendar != self.times[0].calendar:
            raise SourceError(
                f"{self.path}: wanted a date of the {self.times[0].calendar} calendar, got {time} of {time.calendar}"
            )
        wanted = int(ticks(np.array([time], dtype=object), time.calendar)[0])
        after = int(self._ticks.searchsorted(wanted))
        around = [k for k in (after - 1, after) if 0 <= k < len(self._ticks)]
        index = min(around, key=lambda k: abs(int(self._ticks[k]) - wanted))
        return index if abs(int(self._ticks[index]) - wanted) <= self.spacing / timedelta(microseconds=2) else None

    def _index(self, time: str | cftime.datetime) -> int:
        """Position of the record nearest to `time`, such that every slot of the layout exists."""
        wanted = cftime_like(time, self.times[0]) if isinstance(time, str) else time
        index = self._nearest(wanted)
        if index is None or not -min(self.layout.slots) <= index <= len(self.times) - 1 - max(self.layout.slots):
            raise self._out_of_range(str(wanted))
        return index

    def _out_of_range(self, wanted: str) -> SourceError:
        times, slots = self.times, self.layout.slots
        first, last = min(-min(slots), len(times) - 1), max(len(times) - 1 - max(slots), 0)
        return SourceError(
            f"{self.path} has no record of {', '.join(self.layout.names)} for {wanted}: with time slots {slots} it "
            f"covers {times[first]} to {times[last]}, every {self.spacing}; choose a time within, or a longer store"
        )

    def _read(self, index: int, members: tuple[int, ...], dtype: torch.dtype = torch.float32) -> State:
        """The state whose time is record `index`."""
        keep = [index + s for s in self.layout.slots]
        run = slice(keep[0], keep[-1] + 1)  # a slice is much quicker than a list in a store of many chunks
        which = run if keep == list(range(run.start, run.stop)) else keep
        records = self.dataset[list(self.layout.names)].isel(time=which)
        if "member" in records.dims and records.sizes["member"] == 1 and members != self.members:
            records = records.isel(member=0, drop=True)
        if "member" in records.dims:
            records = records.sel(member=list(members))
        records = records.load()
        try:
            return self.layout.pack(records, self.times[index], members, dtype)
        except LayoutError as error:
            dates = " and ".join(str(self.times[index + s]) for s in self.layout.slots)
            empty = [n for n in self.layout.names if records[n].isnull().all()]
            note = f" ({', '.join(empty)}: NaN everywhere)" if empty else ""
            raise SourceError(f"{self.path}, {dates}: {error}{note}") from error


def _anomalies(
    flux: xr.DataArray, climatology: str | Path | xr.Dataset | None = None, name: str = "the store"
) -> xr.DataArray:
    """Samudra's `hfds_anomalies`, relative to a saved climatology or to the record itself."""
    if climatology is None:
        return anomalies(flux, means_of(flux), name)
    saved = climatology if isinstance(climatology, xr.Dataset) else open_zarr(climatology)
    of = "the climatology" if isinstance(climatology, xr.Dataset) else str(climatology)
    if "hfds_climatology" not in saved:
        raise SourceError(
            f"{of}: wanted hfds_climatology (dayofyear, y, x), got {', '.join(map(str, saved.data_vars))}; make it "
            "with `polynya stats` from a store that has hfds"
        )
    means, wanted = means_from(saved["hfds_climatology"], of), flux.isel(time=0).shape[-2:]
    got = saved["hfds_climatology"].isel(dayofyear=0).shape
    if got != wanted:
        raise SourceError(f"{of}: wanted a climatology on the grid of {name}, (y, x) = {wanted}, got {got}")
    return anomalies(flux, means, name)


def cftime_like(text: str, like: cftime.datetime) -> cftime.datetime:
    """`2014-01-03` or `2014-01-03 12:00` as a date of the same calendar; without a time of day, that of `like`."""
    date, _, clock = text.replace("T", " ").partition(" ")
    try:
        year, month, day = (int(p) for p in date.split("-"))
        hour, minute = (int(p) for p in clock.split(":")[:2]) if clock else (like.hour, like.minute)
        return like.replace(year=year, month=month, day=day, hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError as error:
        raise SourceError(f"wanted a date like '2014-01-03' or '2014-01-03 12:00', got {text!r}") from error
