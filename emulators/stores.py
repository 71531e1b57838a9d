"""Stores: any Zarr store under the package's names, and what is wrong with one.

`open_store` gives compact variables `thetao(time, lev, y, x)`, canonical units, and the grid as coordinates,
whether the file holds that already, or one flat variable per level: `thetao_0` with `mask_0` as the public OM4
stores have them, or `thetao_lev_2_5` with one `wetmask` as their first generation. Everything stays lazy.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import cftime
import dask.array
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from .names import ALIASES, GRID_ATTRS, flat_name, level_of, mask_level, to_canonical_units

GRID_NAMES = tuple(GRID_ATTRS)
_TICKS = "microseconds since 1970-01-01"
_GAP = 1.5  # a step of six days among five-day means is a leap year, not a gap


class SourceError(ValueError):
    """A store cannot be read as what was asked of it."""


class StoreExistsError(FileExistsError):
    """There is something at the path already; nothing was touched."""


def open_zarr(path: str | Path, group: str | None = None) -> xr.Dataset:
    """A Zarr store (a folder, a URL, or one `.zip` file) as it is: unread, not yet in chunks, with cftime dates.

    Args:
        path: of the store.
        group: in it; default its root.

    Raises FileNotFoundError if there is nothing at the path, SourceError if it is no Zarr store.
    """
    if "://" not in str(path) and not Path(path).exists():
        raise FileNotFoundError(f"no store at {path}; check the path, or make one with `rollout(..., store=...)`")
    try:
        store = ZipStore(path, mode="r") if str(path).endswith(".zip") else str(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
            coder = xr.coders.CFDatetimeCoder(use_cftime=True)
            how = {"engine": "zarr", "group": group, "chunks": None, "cache": False, "decode_times": coder}
            return xr.open_dataset(store, **how)  # type: ignore[arg-type]
    except Exception as error:
        raise SourceError(
            f"{path} cannot be read as a Zarr store ({type(error).__name__}: {error}); if a run was cut short, "
            "continue it with `rollout(..., resume=True)`"
        ) from error


def open_store(path: str | Path | xr.Dataset) -> xr.Dataset:
    """Open a Zarr store (or take a Dataset) with canonical names and units, cftime dates and grid coordinates.

    Args:
        path: Zarr store (a folder, a URL, or one `.zip` file), or a Dataset opened with cftime dates.

    A variable with fewer levels than the store's `lev` is padded with NaN below; its attribute `levels` then
    says how many it has. Raises FileNotFoundError if there is no such store; SourceError if the store's recording
    was cut short, if flat levels do not form a column, or if a mask has to be read off a variable that is NaN
    everywhere; UnitsError for unknown units.
    """
    dataset = path if isinstance(path, xr.Dataset) else open_zarr(path)
    if not isinstance(path, xr.Dataset) and dataset.attrs.get("status", "complete") != "complete":
        raise SourceError(
            f"{path} is incomplete: its recording was cut short after {dataset.sizes.get('time', 0)} times; "
            "finish it with `rollout(..., resume=True)`"
        )
    return _with_grid(_compact(dataset))


def levels_in(array: xr.DataArray) -> int:
    """How many levels of an opened variable hold data: 0 for a surface field."""
    return min(int(array.attrs.get("levels", array.sizes["lev"])), array.sizes["lev"]) if "lev" in array.dims else 0


# --- layouts -------------------------------------------------------------------------------------


def _compact(dataset: xr.Dataset) -> xr.Dataset:
    """Rename aliases, join flat variables along `lev`, convert units."""
    dataset = dataset.rename({a: b for a, b in ALIASES.items() if a in dataset.variables})
    flat: dict[str, list[str]] = {}
    for variable in map(str, dataset.data_vars):
        split = flat_name(variable)
        if split is not None:
            flat.setdefault(split[0], []).append(variable)
        elif mask_level(variable) is not None and "wetmask" not in dataset.variables:
            flat.setdefault("wetmask", []).append(variable)
    flat = {name: _ordered(dataset, name, sorted(parts, key=level_of)) for name, parts in flat.items()}
    flat_names = [v for parts in flat.values() for v in parts]
    if flat and "lev" not in dataset.coords:
        dataset = dataset.assign_coords(lev=_own_levels(flat, dataset.sizes.get("lev", 0)))
    joined = {name: _column(dataset, name, parts, dataset["lev"]) for name, parts in flat.items()}
    dataset = dataset.drop_vars(flat_names).assign(joined)
    dataset = dataset.assign({str(n): _chunked(v) for n, v in dataset.data_vars.items()})
    return dataset.assign({str(n): to_canonical_units(v, str(n)) for n, v in dataset.data_vars.items()})


def _own_levels(flat: dict[str, list[str]], size: int) -> NDArray[np.float64]:
    """Depths as the longest column's names tell them, for a store that has no `lev` coordinate."""
    longest = max(flat.values(), key=len)
    return np.sort([level_of(v) for v in longest]) if len(longest) >= size else np.arange(size, dtype=float)


def _ordered(dataset: xr.Dataset, name: str, parts: list[str]) -> list[str]:
    """Flat variables that are sorted by level. Raises SourceError unless they form a column."""
    if name in dataset:
        raise SourceError(f"the store holds both {name} and {parts[0]}; drop one of the two layouts")
    by_depth = ["_lev_" in p for p in parts]
    numbers = [level_of(p) for p in parts]
    if any(by_depth) and not all(by_depth):
        raise SourceError(
            f"{name}: levels are named in two ways, {parts[by_depth.index(False)]} and {parts[by_depth.index(True)]}; "
            "rename one kind"
        )
    absent = sorted(set(range(int(numbers[-1]) + 1)) - set(numbers)) if not any(by_depth) else []
    if absent:
        raise SourceError(
            f"{name}: level {absent[0]} is missing: the store has {', '.join(parts)}; add it, or drop the "
            "levels below it"
        )
    first = dataset[parts[0]]
    odd = [p for p in parts if (dataset[p].dims, dataset[p].shape) != (first.dims, first.shape)]
    if odd:
        raise SourceError(
            f"{odd[0]} is {dict(dataset[odd[0]].sizes)}, {parts[0]} is {dict(first.sizes)}: wanted one grid"
        )
    return parts


def _column(dataset: xr.Dataset, name: str, parts: list[str], lev: xr.DataArray) -> xr.DataArray:
    """Flat variables as one on the store's levels; one that stops above the deepest is padded. Lazy stays lazy."""
    have, depths = len(parts), [level_of(p) for p in parts]
    if have > lev.size or ("_lev_" in parts[0] and not np.allclose(depths, lev.values[:have], rtol=0.01)):
        raise SourceError(
            f"{name}: its {have} levels are named {', '.join(map(str, depths))}, but `lev` holds "
            f"{', '.join(map(str, lev.values))}; correct the names or `lev`"
        )
    first = dataset[parts[0]]
    column = _Column([dataset[p].variable for p in parts], lev.size)
    if first._in_memory:
        data: Any = column[(slice(None),) * column.ndim]
    else:
        own = first.chunksizes or first.encoding.get("preferred_chunks", {})
        chunks = {d: own.get(d, first.sizes[d]) for d in first.dims} | {"lev": lev.size}
        chunked = [chunks[d] for d in column.dims]
        data = dask.array.from_array(column, chunked, name=False, fancy=False)  # type: ignore[no-untyped-call]
    attrs = first.attrs | ({"levels": have} if have < lev.size else {})
    coords = {n: c for n, c in first.coords.items() if n != "lev"} | {"lev": lev}
    return xr.DataArray(data, dims=column.dims, coords=coords, attrs=attrs, name=name)


class _Column:
    """Flat variables (..., y, x) as one array (..., lev, y, x), each read when asked for; NaN below the last.

    One task of a lazy graph reads a whole column of levels: were they concatenated, 65 years of 76 variables would
    make a graph that takes a second per record to walk.
    """

    def __init__(self, parts: list[xr.Variable], levels: int) -> None:
        first = parts[0]
        self.parts, self.dtype = parts, first.dtype
        self.dims = (*map(str, first.dims[:-2]), "lev", *map(str, first.dims[-2:]))
        self.shape = (*first.shape[:-2], levels, *first.shape[-2:])
        self.ndim = len(self.shape)

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        at = self.ndim - 3
        which = np.arange(self.shape[at])[key[at]]
        below = np.nan if np.issubdtype(self.dtype, np.floating) else 0  # no water below the last mask
        rest = (*key[:at], *key[at + 1 :])
        empty = np.broadcast_to(np.array(below, self.dtype), self.shape[:at] + self.shape[at + 1 :])[rest]
        read = [_values(self.parts[k][rest]) if k < len(self.parts) else empty for k in np.atleast_1d(which).tolist()]
        levels = sum(isinstance(k, slice) for k in key[:at])
        return np.stack(read, axis=levels) if np.ndim(which) else read[0]


def _values(part: xr.Variable) -> NDArray[Any]:
    """Read on the thread that asks: it is one of a pool already."""
    return np.asarray(part.compute(scheduler="synchronous").values if part.chunks is not None else part.values)


def _chunked(array: xr.DataArray) -> xr.DataArray:
    """A variable that is still unread in the shards of its store: one task a file; in its chunks if it has none."""
    if array.chunks is not None or array._in_memory:
        return array
    shards = array.encoding.get("shards")
    files = dict(zip(array.dims, shards, strict=True)) if shards else array.encoding.get("preferred_chunks", {})
    return array.chunk(files)


def _with_grid(dataset: xr.Dataset) -> xr.Dataset:
    """Grid variables as in-memory coordinates, and a wet mask if the store has none."""
    dataset = dataset.set_coords([n for n in GRID_NAMES if n in dataset.data_vars])
    if "wetmask" not in dataset.coords and dataset.sizes.get("time", 0):
        deep = [v for v in dataset.data_vars.values() if {"time", "lev"} <= set(v.dims)]
        flat = [v for v in dataset.data_vars.values() if "time" in v.dims and v.ndim >= 3]
        if deep or flat:
            dataset = dataset.assign_coords(wetmask=_mask_from((deep or flat)[0]))
    loaded = {n: dataset.coords[n].load() for n in GRID_NAMES if n in dataset.coords}
    loaded = {n: c.assign_attrs({**GRID_ATTRS[n], **c.attrs}) for n, c in loaded.items()}
    if "wetmask" in loaded and loaded["wetmask"].dtype != bool and not loaded["wetmask"].isnull().any():
        loaded["wetmask"] = loaded["wetmask"].astype(bool)
    return dataset.assign_coords(loaded)


def _mask_from(array: xr.DataArray) -> xr.DataArray:
    """Land is NaN on disk; the first record tells where."""
    first = array.isel(time=0, drop=True)
    wet = (first.isel(member=0, drop=True) if "member" in first.dims else first).notnull().compute()
    if not wet.any():
        raise SourceError(
            f"{array.name} is NaN everywhere at {array['time'].values[0] if 'time' in array.coords else 'time 0'}, so "
            "it cannot tell where the ocean is; drop it or that record, or add a `wetmask` (lev, y, x)"
        )
    return wet


# --- time ----------------------------------------------------------------------------------------


def ticks(times: NDArray[np.object_], calendar: str) -> NDArray[np.int64]:
    """Dates as microseconds, for arithmetic that is quick and exact."""
    return np.asarray(cftime.date2num(times, _TICKS, calendar), dtype=np.int64)


def dates_of(dataset: xr.Dataset, name: str) -> list[cftime.datetime]:
    """The record times of an opened store, checked: cftime, strictly increasing and without gaps.

    Reads no data. Raises SourceError that says between which dates the trouble is; a step may be up to 1.5
    times the usual one (the median), as the six days of leap years among five-day means are.
    """
    if "time" not in dataset.coords or not dataset.sizes.get("time", 0):
        raise SourceError(f"{name} has no records: wanted a `time` coordinate with dates, got {dict(dataset.sizes)}")
    times = list(dataset["time"].values)
    if not isinstance(times[0], cftime.datetime):
        raise SourceError(
            f"{name}: wanted cftime dates, got {dataset['time'].dtype}; open it with `open_store(path)`, or with "
            "`decode_times=xr.coders.CFDatetimeCoder(use_cftime=True)`"
        )
    steps = np.diff(ticks(dataset["time"].values, times[0].calendar))
    if not len(steps):
        return times
    backward, wide = np.flatnonzero(steps <= 0), np.flatnonzero(steps > _GAP * np.median(steps))
    if len(backward):
        k = int(backward[0])
        raise SourceError(
            f"{name}: time must increase, but record {k + 1} ({times[k + 1]}) does not come after record {k} "
            f"({times[k]}); sort the store by time and drop what is there twice"
        )
    if len(wide):
        k = int(wide[0])
        raise SourceError(
            f"{name}: records are missing between {times[k]} and {times[k + 1]} (the usual step is "
            f"{usual_step(times)}); select a contiguous period, e.g. `.sel(time=slice(...))` before or after the gap"
        )
    return times


def usual_step(times: list[cftime.datetime]) -> timedelta:
    """The median step between at least two records."""
    steps = np.diff(ticks(np.array(times, dtype=object), times[0].calendar))
    return timedelta(microseconds=int(np.sort(steps)[len(steps) // 2]))
