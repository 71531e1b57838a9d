"""A prediction beside its truth: common times, one grid, one set of places and one climatology for both.

Everything that could make two runs incomparable is an error or is counted here, so that scores need not ask again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from .conventions import area_of, bare, check_units, horizontal_dims, matched, same_units, thickness_of
from .heat import elapsed_seconds
from .regions import EmptyRegionError, Region, RegionError, region_indices
from .variability import climatology_labels

_Array = np.ndarray[Any, Any]

GLOBAL = "Global"
_UNITS = {"thetao": "degC", "so": "0.001", "uo": "m s-1", "vo": "m s-1", "zos": "m"}
_YEAR = 365.25 * 86400


class ComparisonError(ValueError):
    """A prediction and a truth that cannot be compared."""


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same times and places, and what is needed to score one by the other.

    `prediction` (member, time, [lev,] y, x), `truth` (time, [lev,] y, x); `area` (y, x) in m2; `thickness` (lev) or
    (lev, y, x) in m, None if unknown; `bands`, the level indices of each, and `tops`, its upper edge in m; `boxes`,
    rows and columns of each region; `labels` (time), classes of the climatology; `tau` (time), years; `limit`, bytes
    to read at a time; `left_out`, records without partner; `skipped`, why rows are not there.
    """

    prediction: xr.Dataset
    truth: xr.Dataset
    area: _Array
    thickness: _Array | None
    levels: _Array | None
    bands: dict[str, _Array]
    tops: dict[str, float]
    boxes: dict[str, tuple[_Array, _Array]]
    regions: dict[str, Region]
    labels: _Array
    climatology: str
    limit: float
    left_out: tuple[int, int]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def tau(self) -> _Array:
        """Years since the first record (time)."""
        return elapsed_seconds(self.truth["time"]) / _YEAR

    def has(self, row: str, *names: str) -> bool:
        """Whether both runs have these variables; notes a row that has to be skipped."""
        missing = [n for n in names if n not in self.truth]
        if missing:
            self.skipped[row] = f"{' and '.join(missing)} not in both prediction and truth"
        return not missing

    def wet(self, name: str) -> _Array:
        """Places ([lev,] y, x) where the first record of all members and of the truth is finite."""
        ours, theirs = (d[name].isel(time=0) for d in (self.prediction, self.truth))
        return np.asarray(ours.notnull().all("member") & theirs.notnull())


def _without_member(truth: xr.Dataset) -> xr.Dataset:
    if "member" not in truth.dims:
        return truth
    if truth.sizes["member"] > 1:
        raise ComparisonError(
            f"one truth is needed, got {truth.sizes['member']} members: select one with isel(member=)"
        )
    return truth.isel(member=0, drop=True)


def _common_names(prediction: xr.Dataset, truth: xr.Dataset, variables: list[str]) -> list[str]:
    names = [n for n in variables if n in prediction.data_vars and n in truth.data_vars]
    if not names:
        have = sorted(map(str, prediction.data_vars)), sorted(map(str, truth.data_vars))
        raise ComparisonError(f"none of {variables} is in both prediction {have[0]} and truth {have[1]}: rename yours")
    return names


def _calendar(dataset: xr.Dataset) -> str:
    first = dataset["time"].to_numpy()[0]
    return str(getattr(first, "calendar", dataset["time"].dtype))


def _same_times(prediction: xr.Dataset, truth: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, tuple[int, int]]:
    """Both at their common times, and how many records of each were left out."""
    for name, dataset in (("prediction", prediction), ("truth", truth)):
        if "time" not in dataset.indexes or not dataset.sizes["time"]:
            raise ComparisonError(f"the {name} needs records along the coordinate 'time', got {dict(dataset.sizes)}")
        if not (dataset.indexes["time"].is_unique and dataset.indexes["time"].is_monotonic_increasing):
            raise ComparisonError(f"times of the {name} must rise without repetition: sortby and drop_duplicates")
    calendars = _calendar(prediction), _calendar(truth)
    if calendars[0] != calendars[1]:
        raise ComparisonError(
            f"prediction and truth must share a calendar, got {calendars[0]!r} and {calendars[1]!r}: "
            "convert one with convert_calendar"
        )
    common = prediction.indexes["time"].intersection(truth.indexes["time"])
    if not common.size:
        spans = [f"{d['time'].to_numpy()[0]} to {d['time'].to_numpy()[-1]}" for d in (prediction, truth)]
        raise ComparisonError(
            f"prediction ({spans[0]}) and truth ({spans[1]}) have no common time: select the truth of the same "
            "period, with the same time of day"
        )
    left_out = (prediction.sizes["time"] - common.size, truth.sizes["time"] - common.size)
    return prediction.sel(time=common), truth.sel(time=common), left_out


def _same_levels(prediction: xr.Dataset, truth: xr.Dataset, skipped: dict[str, str]) -> tuple[xr.Dataset, xr.Dataset]:
    """Both with as many of the uppermost levels as both have: an emulator may predict only some of a store's."""
    dim = next((d for d in ("lev", "depth", "z") if d in prediction.dims and d in truth.dims), None)
    if dim is None or prediction.sizes[dim] == truth.sizes[dim]:
        return prediction, truth
    both = min(prediction.sizes[dim], truth.sizes[dim])
    most = max(prediction.sizes[dim], truth.sizes[dim])
    skipped["levels"] = f"{most - both} of {most} levels are only in one of prediction and truth"
    return prediction.isel({dim: slice(both)}), truth.isel({dim: slice(both)})


def _check_grid(prediction: xr.Dataset, truth: xr.Dataset) -> None:
    """Raise unless all dimensions and the places of their indices, lat and lon are the same to rounding."""
    for dim in set(truth.dims) - {"time"}:
        if prediction.sizes.get(dim) != truth.sizes[dim]:
            sizes = prediction.sizes.get(dim), truth.sizes[dim]
            raise ComparisonError(
                f"grids differ: {dim!r} has {sizes[0]} and {sizes[1]} points; interpolate to one grid"
            )
    for name in sorted({str(d) for d in truth.dims} - {"time"} | {"lat", "lon"}):
        if name in prediction.coords and name in truth.coords:
            ours, theirs = (np.asarray(d[name], dtype="f8") for d in (prediction, truth))
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-5, atol=1e-4, equal_nan=True):
                raise ComparisonError(f"grids differ: {name!r} of prediction and truth; interpolate to one grid")


def _on_grid(prediction: xr.Dataset, truth: xr.Dataset, names: list[str]) -> tuple[xr.Dataset, xr.Dataset]:
    """Both with these variables, in one order of dimensions, with index coordinates, lat and lon only."""
    places = {"lat", "lon", "latitude", "longitude"}
    kept = (d[names] for d in (prediction, truth))
    prediction, truth = (d.drop_vars([c for c in d.coords if c not in d.dims and c not in places]) for d in kept)
    for name in names:
        if name in _UNITS:
            check_units(truth[name], _UNITS[name])
        same_units(prediction[name], truth[name])
        others = set(truth[name].dims) - {"time", "lev", "depth", "z", *horizontal_dims(truth[name])}
        if others:
            raise ComparisonError(f"{name} has the dimensions {sorted(map(str, others))}: select one of each first")
        if set(prediction[name].dims) - {"member"} != set(truth[name].dims):
            dims = prediction[name].dims, truth[name].dims
            raise ComparisonError(
                f"{name} has dimensions {dims[0]} and {dims[1]}: select or average to make them equal"
            )
    _check_grid(prediction, truth)
    same = {c: truth[c].variable for c in truth.coords}
    rows, columns = horizontal_dims(truth)
    order = [d for d in truth.dims if d not in ("time", rows, columns)]
    truth = truth.transpose("time", *order, rows, columns)
    return prediction.assign_coords(same).transpose("member", "time", *order, rows, columns), truth


def _levels(truth: xr.Dataset, skipped: dict[str, str]) -> tuple[str | None, _Array | None]:
    """Name of the vertical dimension and the depths of its levels, as far as there are any."""
    lev = next((d for d in ("lev", "depth", "z") if d in truth.dims), None)
    if lev is None or lev in truth.indexes:
        return lev, None if lev is None else np.asarray(truth.indexes[lev], dtype="f8")
    skipped["bands"] = f"{lev!r} has no coordinate, the depth of its levels in m"
    return lev, None


def _bands(
    bands: Mapping[str, tuple[float, float]], levels: _Array | None, skipped: dict[str, str]
) -> dict[str, _Array]:
    """Indices of the levels whose centres lie in each band."""
    inside: dict[str, _Array] = {}
    if levels is None:
        return inside
    for label, (top, bottom) in bands.items():
        found = np.flatnonzero((levels >= top) & (levels <= bottom))
        if found.size:
            inside[label] = found
        else:
            skipped[f"band {label}"] = f"no level between {top:g} and {bottom:g} m"
    return inside


def _drop_dry(bands: dict[str, _Array], truth: xr.Dataset, lev: str | None, skipped: dict[str, str]) -> None:
    """Take out bands in which the first record of no variable has water."""
    deep = [x.isel(time=0).notnull().any(horizontal_dims(truth)) for x in truth.data_vars.values() if lev in x.dims]
    if not deep:
        return
    wet = np.any([np.asarray(x) for x in deep], axis=0)
    for label in [label for label, k in bands.items() if not wet[k].any()]:
        del bands[label]
        skipped[f"band {label}"] = "no wet cell in its levels"


def _boxes(
    regions: Mapping[str, Region], truth: xr.Dataset, skipped: dict[str, str]
) -> dict[str, tuple[_Array, _Array]]:
    """Rows and columns of the whole grid and of each region that has cells."""
    rows, columns = (np.arange(truth.sizes[d]) for d in horizontal_dims(truth))
    boxes = {GLOBAL: (rows, columns)}
    empty = []
    for name, region in regions.items():
        try:
            boxes[name] = region_indices(truth, region)
        except EmptyRegionError:
            empty.append(name)
        except RegionError as error:
            skipped["regions"] = str(error)
    if empty:
        skipped[", ".join(empty)] = "no cell of this grid lies in the box"
    return boxes


def _thickness(truth: xr.Dataset, dz: xr.DataArray | None, lev: str, skipped: dict[str, str]) -> _Array | None:
    try:
        found = thickness_of(truth) if dz is None else bare(dz)
    except ValueError as error:
        skipped["bands"] = str(error)
        return None
    if not {lev} <= set(found.dims) <= {lev, *horizontal_dims(truth)}:
        raise ComparisonError(f"layer thicknesses must not change in time, got dimensions {found.dims}: give dz= (m)")
    return np.asarray(found.transpose(lev, ...), dtype="f8")


def compare(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    variables: list[str],
    regions: Mapping[str, Region],
    bands: Mapping[str, tuple[float, float]],
    climatology: str,
    area: xr.DataArray | None,
    dz: xr.DataArray | None,
    limit: float,
) -> Comparison:
    """Bring both runs to common times and one grid.

    Arguments as `samudra_scorecard`; levels belong to a band by their centres, edges included. Raises
    ComparisonError for a truth of several members, no common variable or time, other calendars or grids, and
    ValueError for other units.
    """
    truth = _without_member(truth)
    names = _common_names(prediction, truth, variables)
    if "member" not in prediction.dims:
        prediction = prediction.drop_vars("member", errors="ignore").expand_dims("member")
    area = area_of(truth) if area is None else bare(area)
    skipped: dict[str, str] = {}
    prediction, truth = _same_levels(prediction, truth, skipped)
    prediction, truth_at, left_out = _same_times(prediction, truth)
    prediction, common = _on_grid(prediction, truth_at, names)
    lev, levels = _levels(common, skipped)
    inside = _bands(bands, levels, skipped)
    _drop_dry(inside, common, lev, skipped)
    boxes = _boxes(regions, common, skipped)
    labels, used = climatology_labels(common["time"], climatology)
    return Comparison(
        prediction=prediction,
        truth=common,
        area=np.asarray(matched(common[names[0]].isel(time=0), area).transpose(*horizontal_dims(common)), dtype="f8"),
        thickness=None if lev is None else _thickness(truth, dz, lev, skipped),
        levels=levels,
        bands=inside,
        tops={label: float(top) for label, (top, _) in bands.items()},
        boxes=boxes,
        regions={n: r for n, r in regions.items() if n in boxes},
        labels=labels,
        climatology=used,
        limit=limit,
        left_out=left_out,
        skipped=skipped,
    )
