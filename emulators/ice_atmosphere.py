"""The weather that drives the sea-ice emulators, from a reanalysis on a regular map such as ERA5.

Temperature, humidity and wind are brought to the cells of a grid, the wind onto the grid's axes, and the temperatures
of the last month and year are summed up as degree days, by the formulas of `ice_forcing`:

    weather = ice_forcing_of("era5.zarr", emulator.layout.grid, names=emulator.forcing_layout.names)
    forcing = Source.open(weather, emulator.forcing_layout)

Nothing is read before it is asked for, and then a few hours of maps at a time.  Reading the same dates again and
again, as training does, computes them again: write such a Dataset to a store once.

Reference: Finn et al. (2025, arXiv:2508.14984).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import cftime
import dask.array
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from . import ice_forcing
from .gensim import DEGREE_DAYS, FORCINGS
from .ice_degrees import DegreeDays
from .ice_maps import Maps, around, part_of_chunk
from .ice_weights import METHODS, covered
from .names import attributes, conversion
from .source import SourceError, cftime_like
from .stores import dates_of, open_zarr, ticks

__all__ = ["ice_forcing_of"]

_ALIASES = {
    "t2m": "tas",
    "2m_temperature": "tas",
    "d2m": "tdps",
    "2m_dewpoint_temperature": "tdps",
    "sp": "ps",
    "surface_pressure": "ps",
    "u10": "uas",
    "10m_u_component_of_wind": "uas",
    "v10": "vas",
    "10m_v_component_of_wind": "vas",
    "latitude": "lat",
    "longitude": "lon",
    "valid_time": "time",
}
_MONTH, _YEAR = timedelta(days=30), timedelta(days=366)
_DIMS = ("time", "lat", "lon")


def ice_forcing_of(
    atmosphere: str | Path | xr.Dataset,
    grid: xr.Dataset,
    *,
    names: Sequence[str] = FORCINGS,
    interval: timedelta = timedelta(hours=12),
    start: str | cftime.datetime | None = None,
    method: str = "nearest",
) -> xr.Dataset:
    """The forcing of a sea-ice emulator from the weather on a regular map, lazily.

    Args:
        atmosphere: Zarr store or Dataset `(time, lat, lon)` with temperature, humidity (or dew point and surface
            pressure) and the wind's east and north components, 10 m, under the names of ERA5 (t2m, d2m, sp, u10, v10)
            or CMIP (tas, huss, tdps, ps, uas, vas); units as in `names`, or converted. Times at equal intervals that
            divide `interval`; any order of latitudes, any convention of longitudes.
        grid: of the emulator, `emulator.layout.grid`: `lat`, `lon` (degrees) and `wetmask`.
        names: fields wanted: `regional.FORCINGS` are the default, `emulator.forcing_layout.names` gives GenSIM its
            degree days too.
        interval: time between records of the result, the emulator's `dt`.
        start: date of the first record; default the first of the atmosphere, or, with degree days, the first a whole
            number of intervals later that has 366 days behind it.
        method: "nearest" on the stereographic plane, as published, or "bilinear" in latitude and longitude.

    Returns:
        Dataset `(time, y, x)` on the grid, float32, NaN on land, every `interval` from `start` on: tas K, huss 1, uas
        and vas m s-1 along the grid's axes, and mean melting and freezing degrees K of the 30 and 366 days that end
        with the record, from all temperatures there are.

    Raises:
        SourceError: for a variable, records, a past or a part of the ocean that the atmosphere lacks; while computing,
            for values that are NaN over the ocean or cannot be in the units they are said to be in.
        UnitsError: for units that are not known.

    Source: Finn et al. (2025).
    """
    name = "the dataset" if isinstance(atmosphere, xr.Dataset) else str(atmosphere)
    unknown = [n for n in names if n not in FORCINGS + DEGREE_DAYS]
    if unknown or not names:
        raise SourceError(f"wanted names among {', '.join(FORCINGS + DEGREE_DAYS)}, got {', '.join(names) or 'none'}")
    came = atmosphere if isinstance(atmosphere, xr.Dataset) else open_zarr(atmosphere)
    dataset = _renamed(came, name)
    target = _target(grid)
    times = dates_of(dataset, name)
    step, every = _every(times, interval, name)
    needed = [*(["tas"] if set(names) - {"huss", "uas", "vas"} else []), *(["huss"] if "huss" in names else [])]
    needed += ["uas", "vas"] if {"uas", "vas"} & set(names) else []
    variables = _variables(dataset, needed, f"{name}, with {', '.join(map(str, came.data_vars))},")
    days = bool(set(names) & set(DEGREE_DAYS))
    first = _first(times, start, every, _YEAR // step if days else 1, name)
    lat, lon = (np.asarray(dataset[c].values, float) for c in ("lat", "lon"))
    _require_cover(lat, lon, target, name)
    if method not in METHODS:
        raise SourceError(f"wanted a method among {', '.join(METHODS)}, got {method!r}")
    weights = METHODS[method](lat, lon, target.lat[target.wet], target.lon[target.wet])
    maps = {n: Maps(n, *v, weights, times[0], step, target.places) for n, v in variables.items()}
    count = (len(times) - 1 - first) // every + 1
    weather = _Weather(maps, first, every, target.wet, *_angles(target))
    arrays = dict(zip(FORCINGS, _lazy(weather, _chunks(maps, first, every, count), target), strict=True))
    if days:
        window = DegreeDays(maps["tas"], first, every, _MONTH // interval, _YEAR // interval, target.wet)
        arrays |= zip(DEGREE_DAYS, _lazy(window, around(count, window.size), target), strict=True)
    return _described({n: arrays[n] for n in names}, times[first::every], grid, target, method, name)


# --- what came ------------------------------------------------------------------------------------------


def _renamed(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """Under the names of the package, with cftime dates; unread."""
    there = set(map(str, dataset.variables)) | set(map(str, dataset.dims))
    renamed: dict[str, str] = {}
    for old, new in _ALIASES.items():
        if old in there and new not in there and new not in renamed.values():
            renamed[old] = new
    dataset = dataset.rename(renamed)
    for axis in ("lat", "lon"):
        if axis not in dataset.coords or dataset[axis].ndim != 1 or dataset[axis].size < 2:
            got = f"{axis} {dict(dataset[axis].sizes)}" if axis in dataset.variables else f"no {axis}"
            raise SourceError(
                f"{name}: wanted a regular map with 1-D lat and lon (or latitude and longitude) of two points at "
                f"least, got {got}; regrid it to one"
            )
    time = dataset["time"] if "time" in dataset.coords else None
    if time is not None and time.dtype.kind == "M":
        since = time.values.astype("datetime64[us]").astype(np.int64)
        dates = cftime.num2date(since, "microseconds since 1970-01-01", "proleptic_gregorian")  # as numpy's are
        dataset = dataset.assign_coords(time=("time", dates, time.attrs))
    return dataset


class _Variable(NamedTuple):
    values: xr.Variable
    conversion: tuple[float, float]


def _variables(dataset: xr.Dataset, needed: Sequence[str], name: str) -> dict[str, _Variable]:
    """What makes the fields wanted, unread; dew point and pressure where there is no humidity."""
    if "huss" in needed and "huss" not in dataset:
        needed = [n for n in needed if n != "huss"] + ["tdps", "ps"]
    missing = [n for n in needed if n not in dataset.data_vars]
    if missing:
        known = {n: " or ".join(old for old, new in _ALIASES.items() if new == n) for n in missing}
        wanted = ", ".join(f"{n} ({known[n]})" if known[n] else n for n in missing)
        huss = "; humidity is huss, or both tdps and ps" if {"tdps", "ps"} & set(missing) else ""
        raise SourceError(f"{name} lacks {wanted}{huss}; rename or add what is missing")
    found = {}
    for n in needed:
        array = dataset[n].squeeze([d for d in dataset[n].dims if d not in _DIMS and dataset[n].sizes[d] == 1])
        if set(array.dims) != set(_DIMS):
            raise SourceError(f"{name}: wanted {n} (time, lat, lon), got {dict(array.sizes)}; select one of the others")
        found[n] = _Variable(array.variable.transpose(*_DIMS), conversion(n, array.attrs.get("units")))
    return found


def _every(times: list[cftime.datetime], interval: timedelta, name: str) -> tuple[timedelta, int]:
    """The step between records, and how many make an interval."""
    if len(times) < 2:
        raise SourceError(f"{name}: wanted at least two records, got {len(times)}")
    steps = np.diff(ticks(np.array(times, dtype=object), times[0].calendar))
    odd = np.flatnonzero(steps != np.median(steps))
    if len(odd):
        k = int(odd[0])
        raise SourceError(
            f"{name}: wanted records at equal steps, but from {times[k]} to {times[k + 1]} it is "
            f"{times[k + 1] - times[k]} and usually {timedelta(microseconds=int(np.median(steps)))}; add what is "
            "missing, or select every n-th record of a part"
        )
    step = timedelta(microseconds=int(steps[0]))
    if interval % step or timedelta(days=6) % interval:
        raise SourceError(
            f"{name}: wanted a step between records that divides the emulator's {interval}, which divides 6 days, got "
            f"{step}; 1, 2, 3, 4, 6 and 12 hours divide 12 hours"
        )
    return step, interval // step


def _first(times: list[cftime.datetime], start: str | cftime.datetime | None, every: int, past: int, name: str) -> int:
    """Position of the first record of the result, with `past` records up to it."""
    step = times[1] - times[0]
    why = f"degree days are means over {_YEAR.days} days, {past} records of {step} each, the last included"
    if start is None:
        first = -(-(past - 1) // every) * every
        if first >= len(times):
            raise SourceError(
                f"{name}: {why}, but it holds {len(times)} ({len(times) * step / timedelta(days=1):g} days), "
                f"{times[0]} to {times[-1]}; add the year before"
            )
        return first
    date = cftime_like(start, times[0]) if isinstance(start, str) else start
    if date.calendar != times[0].calendar or date not in times:
        raise SourceError(
            f"{name}: wanted a start that is one of its dates, {times[0]} to {times[-1]} every {step} "
            f"({times[0].calendar} calendar), got {date} ({date.calendar})"
        )
    first = times.index(date)
    if first < past - 1:
        raise SourceError(
            f"{name}: {why}, but up to {date} there are {first + 1} ({(first + 1) * step / timedelta(days=1):g} days); "
            f"start at {times[0] + (past - 1) * step} or later, or add the past from {date - (past - 1) * step} on"
        )
    return first


# --- where it goes --------------------------------------------------------------------------------------


class _Target(NamedTuple):
    """Latitude and longitude of all cells, degrees, and where there is ocean, each (y, x)."""

    lat: NDArray[Any]
    lon: NDArray[Any]
    wet: NDArray[Any]
    dims: tuple[str, ...]

    @property
    def places(self) -> NDArray[Any]:
        """Latitude and longitude of the ocean cells (2, cell)."""
        return np.stack([self.lat[self.wet], self.lon[self.wet]])


def _target(grid: xr.Dataset) -> _Target:
    missing = [c for c in ("lat", "lon", "wetmask") if c not in grid.coords]
    if missing:
        raise SourceError(
            f"the grid lacks {', '.join(missing)}; it has {', '.join(map(str, grid.coords))}. Take "
            "`emulator.layout.grid`, or build it with `grid_of(dataset)`"
        )
    wet = grid["wetmask"].isel(dict.fromkeys(grid["wetmask"].dims[:-2], 0), drop=True)
    places = xr.broadcast(grid["lat"], grid["lon"])
    lat, lon = (np.asarray(c.transpose(*wet.dims).values, float) for c in places)
    return _Target(lat, lon, wet.values.astype(bool), tuple(map(str, wet.dims)))


def _require_cover(lat: NDArray[Any], lon: NDArray[Any], target: _Target, name: str) -> None:
    places = target.places
    out = ~covered(lat, lon, *places)
    if out.any():
        at_lat, at_lon = places[:, out.argmax()]
        raise SourceError(
            f"{name} does not cover the grid: {int(out.sum())} of {out.size} ocean cells, the first at lat "
            f"{at_lat:.4g}, lon {at_lon:.4g}, lie outside of lat {lat.min():g} to {lat.max():g}, lon {lon.min():g} to "
            f"{lon.max():g}; the ocean reaches from lat {places[0].min():.4g} to {places[0].max():.4g}. Take a larger "
            "part of the atmosphere"
        )


def _angles(target: _Target) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sine and cosine onto the grid's axes at the ocean cells, each (cell)."""
    lat, lon = (torch.from_numpy(c) for c in (target.lat, target.lon))
    sine, cosine = ice_forcing.rotation(ice_forcing.polar_stereographic(lat, lon), lon)
    return sine.numpy()[target.wet], cosine.numpy()[target.wet]


# --- what comes out -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Weather:
    """Temperature, humidity and wind of some records, (time, 4, y, x)."""

    maps: dict[str, Maps]
    first: int
    every: int
    wet: NDArray[Any]
    sine: NDArray[Any]
    cosine: NDArray[Any]

    def __call__(self, block_info: Any = None) -> NDArray[Any]:
        begin, end = block_info[None]["array-location"][0]
        records = slice(self.first + begin * self.every, self.first + (end - 1) * self.every + 1, self.every)
        read = {n: torch.from_numpy(m(records)) for n, m in self.maps.items()}
        if "tdps" in read:
            read["huss"] = ice_forcing.specific_humidity(read["tdps"], read["ps"])
        if "uas" in read:
            sine, cosine = (torch.from_numpy(a) for a in (self.sine, self.cosine))
            read["uas"], read["vas"] = ice_forcing.rotated(read["uas"], read["vas"], sine, cosine)
        out = np.full((end - begin, len(FORCINGS), *self.wet.shape), np.nan, np.float32)
        for k, n in enumerate(FORCINGS):
            if n in read:
                out[:, k, self.wet] = read[n].numpy()
        return out


def _chunks(maps: dict[str, Maps], first: int, every: int, count: int) -> tuple[int, ...]:
    """Records of the result that are computed together: those of one chunk of the store, if it is small."""
    most = min((part_of_chunk(m) for m in maps.values()), default=1)
    owner = (first + every * np.arange(count)) // most
    return tuple(np.unique(owner, return_counts=True)[1].tolist())


def _lazy(function: Any, chunks: tuple[int, ...], target: _Target) -> list[Any]:
    """The four channels of blocks (time, 4, y, x) that `function` makes, as dask arrays (time, y, x)."""
    shape = target.wet.shape
    made: Any = dask.array.map_blocks(  # type: ignore[no-untyped-call]
        function,
        chunks=(chunks, (4,), *((n,) for n in shape)),
        dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )
    return [made[:, k] for k in range(4)]


def _described(
    arrays: dict[str, Any], times: list[cftime.datetime], grid: xr.Dataset, target: _Target, method: str, name: str
) -> xr.Dataset:
    methods = {n: f"time: mean (over the {d} days that end with the record)"
               for n, d in zip(DEGREE_DAYS, 2 * [_MONTH.days] + 2 * [_YEAR.days], strict=True)}  # fmt: skip
    fields = {
        n: (("time", *target.dims), array, attributes(n) | {"cell_methods": methods.get(n, "time: point")})
        for n, array in arrays.items()
    }
    attrs = {
        "Conventions": "CF-1.11",
        "title": "atmospheric forcing of a sea-ice emulator",
        "source": name,
        "history": f"{method} in space, wind along the axes of the grid (Finn et al. 2025)",
    }
    dated = {"time": ("time", np.array(times, dtype=object), {"standard_name": "time", "axis": "T"})}
    return xr.Dataset(fields, coords=dated, attrs=attrs).assign_coords(grid.coords)
