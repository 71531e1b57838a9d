"""Statistics of a store: mean, standard deviation and typical change per variable and level, and a climatology.

What an emulator needs to normalise its fields, saved as one small file: with it, a checkpoint and an initial
condition are enough to run. One pass over the records, a few at a time, added up in float64 and merged as Chan et
al. (1979, Updating formulae for computing sample variances) do, so that a store larger than memory is no obstacle.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.progress import Progress
from zarr.codecs import BloscCodec

from .grids import grid_of
from .names import VARIABLES, attributes
from .source import cftime_like
from .stores import SourceError, StoreExistsError, dates_of, levels_in, open_store, open_zarr, usual_step

_FORMAT = "polynya-statistics-1"
_BLOCK_BYTES = 64e6
_CLIMATOLOGY = "hfds_climatology"
_CODEC = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")


def statistics_of(
    store: str | Path | xr.Dataset,
    *,
    start: str | cftime.datetime | None = None,
    end: str | cftime.datetime | None = None,
    variables: Sequence[str] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Statistics of a store over its wet cells, unweighted, with divisor n; members count as records.

    Args:
        store: what `open_store` takes.
        start, end: first and last date of the period, both included; default all there is. Give the training years
            only: statistics that have seen the test period leak it into the emulator.
        variables: names; default all of the CF table that the store has over time.
        progress: show a bar.

    Returns:
        For each variable `v_mean`, `v_std` and `v_increment` (of the change over one record interval), float64 in
        the variable's units, with dimension `lev` where it has levels (NaN where no cell is wet, and below the
        last level of a variable that stops above the deepest: its attribute `levels`). From `hfds`
        also `hfds_climatology (dayofyear, y, x)`, float32, NaN on land: the mean over all records of the same day
        of the year, for the days there are; and `hfds_anomalies_mean`, `hfds_anomalies_std` of what is left. The
        grid is in the coordinates, so that `grid_of(statistics)` serves a Layout; calendar, `interval` (s),
        period, number of records and provenance are in the attributes.

    Raises FileNotFoundError; UnitsError; SourceError for a variable that is missing or never varies, for NaN where
    the mask is wet, for time that does not increase or has gaps, and for a period of fewer than two records.
    """
    dataset, name = open_store(store), "the dataset" if isinstance(store, xr.Dataset) else str(store)
    names = _chosen(dataset, variables, name)
    dataset = _period(dataset, start, end, name)
    grid = grid_of(dataset)
    found: dict[str, Any] = {}
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("statistics", total=len(names) * dataset.sizes["time"])
        for variable in names:
            walk = _Walk(variable, dataset[variable], grid, name)
            year = _YearOfFlux(walk.wet[0]) if variable == "hfds" else None
            days = dataset["time"].dt.dayofyear.values.tolist()
            for index, record in enumerate(walk.records()):
                walk.add(record)
                if year is not None:
                    year.add(record[:, 0], days[index])
                bar.advance(task)
            found |= walk.results()
            if year is not None:
                found |= year.results(grid, name, skip="hfds_anomalies" in names)
    return xr.Dataset(found, coords=grid.coords, attrs=grid.attrs | _attributes(dataset, name))


def _chosen(dataset: xr.Dataset, variables: Sequence[str] | None, name: str) -> list[str]:
    there = [str(v) for v in dataset.data_vars if "time" in dataset[v].dims]
    names = [v for v in VARIABLES if v in there] if variables is None else list(variables)
    missing = [v for v in names if v not in there]
    if missing or not names:
        raise SourceError(
            f"{name} has no {', '.join(missing) or 'variable of the CF table'} over time; it has {', '.join(there)}"
        )
    return names


def _period(dataset: xr.Dataset, start: Any, end: Any, name: str) -> xr.Dataset:
    times = dates_of(dataset, name)
    first, last = (cftime_like(t, times[0]) if isinstance(t, str) else t for t in (start, end))
    try:
        keep = [k for k, t in enumerate(times) if (start is None or t >= first) and (end is None or t <= last)]
    except TypeError as error:
        raise SourceError(f"{name}: wanted dates of the {times[0].calendar} calendar, got {start} and {end}") from error
    if len(keep) < 2:
        raise SourceError(
            f"{name}: wanted at least two records from {start or 'the first'} to {end or 'the last'}, got {len(keep)}; "
            f"the store covers {times[0]} to {times[-1]}"
        )
    return dataset.isel(time=slice(keep[0], keep[-1] + 1))


def _attributes(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    times = list(dataset["time"].values)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    packages = ("polynya", "numpy", "xarray", "zarr")
    made = {"versions": {"python": platform.python_version()} | {p: version(p) for p in packages}, "store": name}
    return {
        "format": _FORMAT,
        "Conventions": "CF-1.11",
        "title": f"statistics of {name}",
        "history": f"{now} computed by polynya {version('polynya')}",
        "source": str(dataset.attrs.get("title", name)),
        "calendar": times[0].calendar,
        "interval": usual_step(times).total_seconds(),
        "start": str(times[0]),
        "end": str(times[-1]),
        "records": len(times),
        "provenance": json.dumps(made | {"of": dataset.attrs.get("provenance", "")}),
    }


class _Moments:
    """Count, mean and centred sum of squares per level, merged record by record."""

    def __init__(self, wet: NDArray[np.bool_]) -> None:
        self.wet, self.count = wet, np.zeros(len(wet))
        self.mean, self.square = np.zeros(len(wet)), np.zeros(len(wet))

    def add(self, x: NDArray[np.float64]) -> None:
        """Include values (member, lev, y, x) that are 0 on land."""
        count = self.wet.sum((1, 2)) * float(len(x))
        mean = x.sum((0, 2, 3)) / np.maximum(count, 1)
        centred = (x - mean[:, None, None]) * self.wet
        shift, total = mean - self.mean, np.maximum(self.count + count, 1)
        self.square += np.einsum("mlyx,mlyx->l", centred, centred) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count += count

    def std(self) -> NDArray[np.float64]:
        """Divisor n; NaN where there is no cell."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(self.square / self.count))


class _Walk:
    """One pass over the records of one variable."""

    def __init__(self, variable: str, array: xr.DataArray, grid: xr.Dataset, name: str) -> None:
        self.variable, self.name, self.deep = variable, name, "lev" in array.dims
        self.levels, self.padded = levels_in(array) or 1, array.sizes.get("lev", 1)
        self.across = tuple(str(d) for d in grid["areacello"].dims)
        self.array = array.isel(lev=slice(0, self.levels)) if self.deep else array
        self.location = str(array.attrs.get("location", "center"))
        mask = grid["wetmask" if self.location == "center" else "wetmask_corner"].values.astype(bool)
        self.wet = np.broadcast_to(mask, (self.levels, *mask.shape)) if mask.ndim == 2 else mask[: self.levels]
        self.value, self.change = _Moments(self.wet), _Moments(self.wet)
        self.previous: NDArray[np.float64] | None = None

    def records(self) -> Iterator[NDArray[np.float32]]:
        """Every record, (member, lev, y, x), checked for NaN; a few are read at a time, along the store's chunks."""
        array = self.array.expand_dims([d for d in ("member", "lev") if d not in self.array.dims])
        array = array.transpose("time", "member", "lev", *self.across)
        for block in _blocks(array):
            values = array.isel(time=block).values
            for k, record in enumerate(values):
                holes = np.isnan(record) & self.wet
                if holes.any():
                    m, level, j, i = np.argwhere(holes)[0].tolist()
                    raise SourceError(
                        f"{self.name}: {self.variable} is NaN in {'all' if (holes == self.wet).all() else holes.sum()} "
                        f"wet cells at {array['time'].values[block.start + k]}, the first at level {level}, row {j}, "
                        f"column {i} (member {m}); the mask and the data do not belong together"
                    )
                yield record

    def add(self, record: NDArray[np.float32]) -> None:
        """Include a record that follows the one before."""
        x = np.where(self.wet, record, 0.0).astype(np.float64, copy=False)
        self.value.add(x)
        if self.previous is not None:
            self.change.add(x - self.previous)
        self.previous = x

    def results(self) -> dict[str, Any]:
        """`v_mean`, `v_std`, `v_increment`. Raises SourceError for a level that never varies."""
        std, mean = self.value.std(), np.where(self.value.count > 0, self.value.mean, np.nan)
        flat = np.flatnonzero(std <= 1e-12 * np.abs(mean))
        if len(flat):
            level = f" at level {flat[0]}" if self.deep else ""
            raise SourceError(
                f"{self.name}: {self.variable} never varies{level}: it is {mean[flat[0]]:g} in every wet cell and "
                "record; leave it out with `variables`, or give another period"
            )
        found = {"mean": mean, "std": std, "increment": self.change.std()}
        units = attributes(self.variable).get("units", self.array.attrs.get("units", ""))
        attrs: dict[str, Any] = {"units": units} | ({"location": self.location} if self.location != "center" else {})
        attrs |= {"levels": self.levels} if self.deep and self.levels < self.padded else {}
        below = (0, self.padded - self.levels)
        return {
            f"{self.variable}_{k}": (("lev",), np.pad(v, below, constant_values=np.nan), attrs)
            if self.deep
            else ((), v[0], attrs)
            for k, v in found.items()
        }


def _blocks(array: xr.DataArray) -> Iterator[slice]:
    """Ranges of records of at most 64 MB, along chunks where these are smaller."""
    records = array.sizes["time"]
    most = max(1, int(_BLOCK_BYTES / (array.nbytes / records)))
    start = stop = 0
    for size in array.chunksizes.get("time", (records,)):
        if stop > start and stop + size - start > most:
            yield slice(start, stop)
            start = stop
        stop += size
        while stop - start > most:
            yield slice(start, start + most)
            start += most
    if stop > start:
        yield slice(start, stop)


class _YearOfFlux:
    """Mean flux per day of the year, and the spread around it.

    Sums per cell are float32 in order of time, as the original's, so that anomalies are the same to the bit; the
    spread is float64, updated by Welford's rule.
    """

    def __init__(self, wet: NDArray[np.bool_]) -> None:
        self.wet, self.sum, self.square = wet, 0.0, 0.0
        self.total: dict[int, NDArray[np.float32]] = {}
        self.count: dict[int, int] = {}

    def add(self, record: NDArray[np.float32], day: int) -> None:
        """Include a record (member, y, x) of a day of the year."""
        for values in record:
            flux: NDArray[np.float32] = np.where(self.wet, values, np.zeros((), values.dtype))
            n = self.count.get(day, 0)
            if n:
                apart = flux - self.total[day].astype(np.float64) / n
                self.square += float((apart**2).sum()) * n / (n + 1)
            self.total[day] = flux + self.total[day] if n else flux
            self.count[day] = n + 1
            self.sum += float(flux.sum(dtype=np.float64))

    def results(self, grid: xr.Dataset, name: str, skip: bool) -> dict[str, Any]:
        """The climatology, and the moments of the anomalies unless `skip`."""
        days = sorted(self.count)
        means = np.empty((len(days), *self.wet.shape), np.float32)
        for k, day in enumerate(days):
            means[k] = np.where(self.wet, self.total.pop(day) / self.count[day], np.nan)
        attrs = attributes("hfds") | {"long_name": "mean net heat flux of the day of the year"}
        across, day_attrs = grid["areacello"].dims, {"long_name": "day of the year", "units": "1"}
        found: dict[str, Any] = {
            "dayofyear": (("dayofyear",), np.array(days), day_attrs),
            _CLIMATOLOGY: (("dayofyear", *across), means, attrs),
        }
        if skip:
            return found
        cells = float(self.wet.sum()) * sum(self.count.values())
        known = sum(self.count[d] * float(np.nansum(m, dtype=np.float64)) for d, m in zip(days, means, strict=True))
        if self.square == 0:
            warnings.warn(
                f"{name}: hfds_anomalies are 0 everywhere, as no day of the year occurs twice in the period; give more "
                "than a year if they are to be used",
                stacklevel=3,
            )
        moments = {"mean": (self.sum - known) / cells, "std": np.sqrt(self.square / cells)}
        units = {"units": attrs["units"]}
        return found | {f"hfds_anomalies_{k}": ((), v, units) for k, v in moments.items()}


# --- the file ------------------------------------------------------------------------------------


def save_statistics(dataset: xr.Dataset, path: str | Path, overwrite: bool = False) -> Path:
    """Write statistics as one Zarr 3 store: a `.zarr.zip` file, or a `.zarr` folder; all of it or nothing.

    Args:
        dataset: from `statistics_of`.
        path: of the file; its folder must exist.
        overwrite: replace what is there.

    Raises StoreExistsError if there is something at the path; SourceError for another suffix, or if the dataset
    holds no statistics; FileNotFoundError if the folder is missing.
    """
    path, dataset = Path(path), open_statistics(dataset)
    if not path.name.endswith((".zarr", ".zarr.zip")):
        raise SourceError(f"wanted a path that ends in .zarr.zip (one file) or .zarr (a folder), got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into; make it first")
    if path.exists() and not overwrite:
        raise StoreExistsError(f"{path} exists; nothing was written. Choose another path, or pass overwrite=True")
    fields = [n for n in dataset.data_vars if dataset[n].ndim > 1]
    encoding = {n: {"compressors": _CODEC, "chunks": (1, *dataset[n].shape[1:])} for n in fields}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        made, whole = Path(beside) / "made.zarr", Path(beside) / "whole.zip"
        dataset.drop_encoding().to_zarr(made, zarr_format=3, consolidated=False, encoding=encoding)
        if path.suffix == ".zip":
            with zipfile.ZipFile(whole, "w") as archive:
                for file in sorted(p for p in made.rglob("*") if p.is_file()):
                    archive.write(file, file.relative_to(made))
            made = whole
        if path.is_dir():  # a folder cannot be replaced in one move
            path.rename(Path(beside) / "old")
        made.replace(path)
        shutil.rmtree(Path(beside) / "old", ignore_errors=True)
    return path


def open_statistics(path: str | Path | xr.Dataset) -> xr.Dataset:
    """Open what `save_statistics` wrote, or check a Dataset of `statistics_of`; the climatology stays lazy.

    Raises FileNotFoundError, SourceError if it is no statistics file.
    """
    dataset = path if isinstance(path, xr.Dataset) else open_zarr(path)
    name = "the dataset" if isinstance(path, xr.Dataset) else str(path)
    means = [str(n).removesuffix("_mean") for n in dataset.data_vars if str(n).endswith("_mean")]
    if dataset.attrs.get("format") != _FORMAT or not means or any(f"{n}_std" not in dataset for n in means):
        raise SourceError(
            f"{name}: wanted statistics written by polynya (format {_FORMAT!r}), got "
            f"{dataset.attrs.get('format')!r} with {', '.join(map(str, list(dataset.variables)[:6]))} ...; make them "
            "with `polynya stats STORE OUT`"
        )
    small = {n: v.load() for n, v in dataset.variables.items() if n != _CLIMATOLOGY}
    return dataset.assign({n: v for n, v in small.items() if n in dataset.data_vars}).assign_coords(
        {n: v for n, v in small.items() if n in dataset.coords}
    )


def flat_statistics(statistics: xr.Dataset) -> dict[str, xr.Dataset]:
    """`mean`, `std` and `increment` as the public statistics stores have them: scalars named `thetao_0`, `zos`, ..."""
    flat: dict[str, xr.Dataset] = {}
    for kind in ("mean", "std", "increment"):
        values: dict[str, float] = {}
        for name in (str(n) for n in statistics.data_vars if str(n).endswith(f"_{kind}")):
            array, variable = statistics[name], name.removesuffix(f"_{kind}")
            numbers = {f"{variable}_{k}": float(v) for k, v in enumerate(np.ravel(array.values))}
            values |= {n: v for n, v in numbers.items() if np.isfinite(v)} if array.ndim else {variable: float(array)}
        flat[kind] = xr.Dataset({n: ((), v) for n, v in values.items()})
    return flat


def interval_of(statistics: xr.Dataset) -> timedelta:
    """Time between the records that the statistics are of."""
    return timedelta(seconds=float(statistics.attrs["interval"]))
