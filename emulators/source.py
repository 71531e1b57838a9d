"""Source: a dataset read as states and forcings, lazily, by time.

`open_store` gives any store the package's names: compact variables `thetao(time, lev, y, x)`, canonical
units, and the grid as coordinates, whether the file holds that already or one flat variable per level
(`thetao_0`, ..., `mask_0`, ...), as the public OM4 stores do. Everything stays lazy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from zarr.storage import ZipStore

from .names import ALIASES, GRID_ATTRS, flat_name, to_canonical_units
from .state import Field, Layout, State

_GRID_NAMES = tuple(GRID_ATTRS)


class SourceError(ValueError):
    """A store cannot be read as what was asked of it."""


def open_store(path: str | Path | xr.Dataset) -> xr.Dataset:
    """Open a Zarr store (or take a Dataset) with canonical names and units, cftime dates and grid coordinates.

    Args:
        path: Zarr store (a folder, a URL, or one `.zip` file), or a Dataset opened with cftime dates.

    Raises FileNotFoundError if there is no such store, SourceError if the store's recording was cut
    short, UnitsError for unknown units.
    """
    if isinstance(path, xr.Dataset):
        dataset = path
    else:
        if "://" not in str(path) and not Path(path).exists():
            raise FileNotFoundError(f"no store at {path}; check the path, or make one with `rollout(..., store=...)`")
        coder = xr.coders.CFDatetimeCoder(use_cftime=True)
        try:
            store = ZipStore(path, mode="r") if str(path).endswith(".zip") else str(path)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
                dataset = xr.open_zarr(store, decode_times=coder)
        except Exception as error:
            raise SourceError(
                f"{path} cannot be read as a Zarr store ({type(error).__name__}: {error}); if a run was cut short, "
                "continue it with `rollout(..., resume=True)`"
            ) from error
        if dataset.attrs.get("status", "complete") != "complete":
            raise SourceError(
                f"{path} is incomplete: its recording was cut short after {dataset.sizes.get('time', 0)} times; "
                "finish it with `rollout(..., resume=True)`"
            )
    return _with_grid(_compact(dataset))


def _compact(dataset: xr.Dataset) -> xr.Dataset:
    """Rename aliases, join flat variables along `lev`, convert units."""
    dataset = dataset.rename({a: b for a, b in ALIASES.items() if a in dataset.variables})
    flat: dict[str, list[str]] = {}
    for variable in map(str, dataset.data_vars):
        split = flat_name(variable)
        if split is not None:
            flat.setdefault(split[0], []).append(variable)
    masks = sorted((str(v) for v in dataset.data_vars if str(v).startswith("mask_")), key=_level_of)
    joined = {name: _join(dataset, sorted(parts, key=_level_of)) for name, parts in flat.items()}
    if masks:
        joined["wetmask"] = _join(dataset, masks)
    dataset = dataset.drop_vars([v for parts in flat.values() for v in parts] + masks)
    if joined and "lev" not in dataset.dims:
        dataset = dataset.assign_coords(lev=np.arange(max(j.sizes["lev"] for j in joined.values()), dtype=float))
    for name, array in joined.items():
        if array.sizes["lev"] < dataset.sizes["lev"]:
            # State variables may stop above the deepest level; pad lazily so that all share one `lev`.
            array = array.pad(lev=(0, dataset.sizes["lev"] - array.sizes["lev"]))
        dataset[name] = array.assign_coords(lev=dataset["lev"])
    return dataset.assign({str(n): to_canonical_units(v, str(n)) for n, v in dataset.data_vars.items()})


def _level_of(name: str) -> float:
    """3 for `thetao_3`, 2.5 for `thetao_lev_2_5`."""
    head, _, tail = name.partition("_lev_")
    return float(tail.replace("_", ".")) if tail else float(head.rsplit("_", 1)[1])


def _join(dataset: xr.Dataset, parts: list[str]) -> xr.DataArray:
    joined = xr.concat([dataset[p] for p in parts], "lev", coords="minimal", compat="override")
    return joined.transpose(..., "lev", *dataset[parts[0]].dims[-2:]).drop_vars("lev", errors="ignore")


def _with_grid(dataset: xr.Dataset) -> xr.Dataset:
    """Grid variables as in-memory coordinates, and a wet mask if the store has none."""
    dataset = dataset.set_coords([n for n in _GRID_NAMES if n in dataset.data_vars])
    if "wetmask" not in dataset.coords and "time" in dataset.dims:
        deep = [v for v in dataset.data_vars.values() if {"time", "lev"} <= set(v.dims)]
        flat = [v for v in dataset.data_vars.values() if "time" in v.dims]
        if deep or flat:
            # Land is NaN on disk; the first record tells where.
            first = (deep or flat)[0].isel(time=0, drop=True)
            first = first.isel(member=0, drop=True) if "member" in first.dims else first
            dataset = dataset.assign_coords(wetmask=first.notnull())
    loaded = {n: dataset.coords[n].load() for n in _GRID_NAMES if n in dataset.coords}
    loaded = {n: c.assign_attrs({**GRID_ATTRS[n], **c.attrs}) for n, c in loaded.items()}
    if "wetmask" in loaded and loaded["wetmask"].dtype != bool and not loaded["wetmask"].isnull().any():
        loaded["wetmask"] = loaded["wetmask"].astype(bool)
    return dataset.assign_coords(loaded)


def grid_of(dataset: xr.Dataset, levels: int | None = None) -> xr.Dataset:
    """The grid of an opened store, for a Layout; only the `levels` uppermost levels if given.

    Cell areas that are missing are computed on a sphere from a regular 1-D `lat` and `lon`; nothing
    else is made up.
    """
    grid = xr.Dataset(coords={n: dataset.coords[n] for n in _GRID_NAMES if n in dataset.coords})
    grid = grid.drop_vars([c for c in ("member", "time") if c in grid.coords])
    if "areacello" not in grid.coords:
        if {"lat", "lon"} - set(grid.coords) or grid["lat"].ndim != 1:
            raise SourceError(
                f"the store lacks `areacello` and has no 1-D `lat` and `lon` to compute it from; "
                f"its coordinates are {', '.join(map(str, dataset.coords))}. Add cell areas in m2"
            )
        lat, lon = np.radians(grid["lat"].values), np.radians(grid["lon"].values)
        edges = np.concatenate(
            [[1.5 * lat[0] - 0.5 * lat[1]], (lat[1:] + lat[:-1]) / 2, [1.5 * lat[-1] - 0.5 * lat[-2]]]
        )
        band = 6.371e6**2 * abs(lon[1] - lon[0]) * np.abs(np.diff(np.sin(np.clip(edges, -np.pi / 2, np.pi / 2))))
        grid = grid.assign_coords(areacello=(("lat", "lon"), np.tile(band[:, None], (1, len(lon))), {"units": "m2"}))
    grid = grid.drop_encoding()  # how another store was written must not decide how a new one is
    grid.attrs = {k: dataset.attrs[k] for k in ("zonal_period",) if k in dataset.attrs}
    return grid.isel(lev=slice(0, levels)) if levels is not None and "lev" in grid.dims else grid


@dataclass(frozen=True, eq=False)
class Source:
    """States or forcings of one layout, read from a dataset by time.

    `Source.open(path, layout)` for a store; `.state(time, members)` for an initial condition or truth,
    `.at(time, members)` for the forcing of a step. The next forcing is read in the background.
    """

    dataset: xr.Dataset = field(repr=False)
    layout: Layout
    path: str = ""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), repr=False)
    _ahead: dict[Any, Future[State]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path | xr.Dataset, layout: Layout) -> Source:
        """Open a store as the fields of `layout`.

        Raises FileNotFoundError, SourceError if a variable is missing or the grid has another shape.
        """
        dataset = open_store(path)
        if "hfds_anomalies" in layout.names and "hfds_anomalies" not in dataset and "hfds" in dataset:
            dataset = dataset.assign(hfds_anomalies=_anomalies(dataset["hfds"]))
        missing = [n for n in layout.names if n not in dataset]
        name = "the dataset" if isinstance(path, xr.Dataset) else str(path)
        if missing:
            raise SourceError(
                f"{name} lacks the variable(s) {', '.join(missing)}; it has {', '.join(map(str, dataset.data_vars))}. "
                "Rename or add them, or choose a layout without them"
            )
        sizes = tuple(dataset.sizes.get(d, 0) for d in layout.dims)
        if sizes != layout.shape[1:]:
            raise SourceError(f"{name}: wanted a grid of {layout.dims} = {layout.shape[1:]}, got {sizes}")
        return cls(dataset, layout, name)

    @property
    def times(self) -> list[cftime.datetime]:
        """All record times."""
        return list(self.dataset["time"].values)

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
            step = round(self.layout.interval / self._spacing()) or 1
            for ahead in {index + 1, index + step, index + step * len(self.layout.slots)}:
                if ahead + self.layout.slots[-1] < len(self.times) and len(self._ahead) < 4:
                    self._ahead.setdefault((ahead, key), self._pool.submit(self._read, ahead, key))
        return waiting.result() if waiting is not None else self._read(index, key)

    def require(self, start: cftime.datetime, end: cftime.datetime) -> None:
        """Raise SourceError now, rather than hours later, unless the records cover steps in [start, end]."""
        for time in (start, end):
            self._index(time)

    def _spacing(self) -> Any:
        return self.times[1] - self.times[0] if len(self.times) > 1 else self.layout.interval

    def _index(self, time: str | cftime.datetime) -> int:
        """Position of the record nearest to `time`, such that every slot of the layout exists."""
        times = self.times
        wanted = cftime_like(time, times[0]) if isinstance(time, str) else time
        try:
            seconds = np.array([abs((t - wanted).total_seconds()) for t in times])
        except TypeError as error:
            raise SourceError(
                f"{self.path}: wanted a date of the {times[0].calendar} calendar, got {wanted} of {wanted.calendar}"
            ) from error
        index = int(seconds.argmin())
        first, last = -min(self.layout.slots), len(times) - 1 - max(self.layout.slots)
        if seconds[index] > self._spacing().total_seconds() / 2 or not first <= index <= last:
            raise SourceError(
                f"{self.path} has no record of {', '.join(self.layout.names)} for {wanted}: with time slots "
                f"{self.layout.slots} it covers {times[min(first, len(times) - 1)]} to {times[max(last, 0)]}, every "
                f"{self._spacing()}; choose a time within, or a longer store"
            )
        return index

    def _read(self, index: int, members: tuple[int, ...], dtype: torch.dtype = torch.float32) -> State:
        """The state whose time is record `index`."""
        records = self.dataset[list(self.layout.names)].isel(time=[index + s for s in self.layout.slots])
        if "member" in records.dims and records.sizes["member"] == 1 and members != self.members:
            records = records.isel(member=0, drop=True)
        if "member" in records.dims:
            records = records.sel(member=list(members))
        return self.layout.pack(records.load(), self.times[index], members, dtype)


def cftime_like(text: str, like: cftime.datetime) -> cftime.datetime:
    """`2014-01-03` or `2014-01-03 12:00` as a date of the same calendar; without a time of day, that of `like`."""
    date, _, clock = text.replace("T", " ").partition(" ")
    try:
        year, month, day = (int(p) for p in date.split("-"))
        hour, minute = (int(p) for p in clock.split(":")[:2]) if clock else (like.hour, like.minute)
        return like.replace(year=year, month=month, day=day, hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError as error:
        raise SourceError(f"wanted a date like '2014-01-03' or '2014-01-03 12:00', got {text!r}") from error


def _anomalies(flux: xr.DataArray) -> xr.DataArray:
    """Flux minus its mean over all records of the same day of year (Samudra's `hfds_anomalies`)."""
    groups = flux.load().groupby("time.dayofyear")
    return (groups - groups.mean("time")).drop_vars("dayofyear")


def layout_of(
    dataset: xr.Dataset,
    names: Sequence[str],
    *,
    slots: tuple[int, ...] = (0,),
    levels: int | None = None,
) -> Layout:
    """The layout of some variables of an opened store, in the order given.

    Args:
        dataset: from `open_store`.
        names: variable names; those with a `lev` dimension become fields with levels.
        slots: time slots as multiples of the store's record interval.
        levels: use only the uppermost levels.
    """
    missing = [n for n in names if n not in dataset]
    if missing:
        raise SourceError(
            f"no variable(s) {', '.join(missing)}; the store has {', '.join(map(str, dataset.data_vars))}"
        )
    grid = grid_of(dataset, levels)
    fields = tuple(
        Field(
            n,
            grid.sizes["lev"] if "lev" in dataset[n].dims else 0,
            dataset[n].attrs.get("location", "center"),
        )
        for n in names
    )
    layout = Layout(fields, grid, slots)
    if dataset.sizes.get("time", 0) < 2:
        return layout
    first, second = dataset["time"].values[:2]
    return replace(layout, interval=second - first)
