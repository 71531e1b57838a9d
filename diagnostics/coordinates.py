"""What can be wrong with coordinates, said in words: levels, degrees, times, and two fields that lie elsewhere.

Checks look at coordinates that are in memory only, so a lazy field stays lazy; nothing is sorted, shifted or
intersected silently. Longitudes of two fields may count from other meridians, which is an error that says how to turn
one of them; those of a box may too, and `select_region` turns them itself.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

_Array = np.ndarray[Any, Any]

_DEGREES = 1e-3
"""Two-dimensional lat and lon that differ by less are the same: float32 is good to 3e-5."""

_NOT_METRES = {
    "cm": "divide by 100",
    "centimeters": "divide by 100",
    "km": "multiply by 1000",
    "dbar": "convert pressure to depth (gsw.z_from_p)",
    "db": "convert pressure to depth (gsw.z_from_p)",
    "pa": "convert pressure to depth (gsw.z_from_p)",
    "hpa": "convert pressure to depth (gsw.z_from_p)",
}


def named(field: xr.DataArray) -> str:
    """The name of a field in quotes, for messages."""
    return repr(str(field.name)) if field.name is not None else "the unnamed field"


def pair_named(other: xr.DataArray, field: xr.DataArray) -> str:
    """The names of two fields, for messages."""
    if field.name is not None and field.name == other.name:
        return f"the two fields {named(field)}"
    return f"{named(other)} and {named(field)}"


def check_field(field: Any, what: str = "a field") -> None:
    """Raise TypeError, saying what to give instead, unless `field` is a DataArray."""
    if isinstance(field, xr.DataArray):
        return
    if isinstance(field, xr.Dataset):
        raise TypeError(f"{what} must be a DataArray, got a Dataset: choose one variable, of {[*field.data_vars]}")
    raise TypeError(f"{what} must be a DataArray with named dimensions and units, got {type(field).__name__}")


def check_levels(field: xr.DataArray, dim: str) -> None:
    """Raise ValueError unless the coordinate `dim`, if there is one, holds depths in m from the surface downwards."""
    if dim not in field.indexes:
        return
    lev, attrs, who = np.asarray(field.indexes[dim]), field[dim].attrs, f"{dim!r} of {named(field)}"
    if lev.dtype.kind not in "iuf":
        raise ValueError(f"{who} must hold depths in m, got {lev.dtype}: assign_coords({dim}=…)")
    units = str(attrs.get("units", "m")).strip().lower()
    if units in _NOT_METRES:
        raise ValueError(
            f"{who} must be in 'm' but is in {attrs['units']!r}: {_NOT_METRES[units]}, assign_coords({dim}=…)"
        )
    if str(attrs.get("positive", "down")).lower() == "up" or np.any(lev < 0):
        come = "positive: up" if np.all(lev >= 0) else f"{lev[:3]}…"
        raise ValueError(
            f"{who} must be depth in m, positive down, got {come}: if these are heights, change their sign "
            f"(assign_coords({dim}=-{dim})) and run from the surface downwards (sortby({dim!r})); if they are depths, "
            "set attrs['positive'] = 'down'"
        )
    if np.any(np.isnan(lev)) or np.any(np.diff(lev) <= 0):
        raise ValueError(
            f"{who} must be depths in m, positive down, from the surface downwards, each once, got {lev}: "
            f"sortby({dim!r}), and drop_duplicates({dim!r})"
        )


def check_degrees(lat: xr.DataArray, lon: xr.DataArray | None = None) -> None:
    """Raise ValueError unless latitudes (and longitudes) in memory can be degrees."""
    for coordinate, limit in ((lat, 90.001), (lon, 1000.0)):
        if coordinate is None:
            continue
        if str(coordinate.attrs.get("units", "")).lower().startswith("rad"):
            raise ValueError(f"{coordinate.name!r} must be in degrees but is in radians: numpy.rad2deg it")
        if coordinate.chunks is None and coordinate.size and float(np.abs(coordinate).max()) > limit:
            most = float(np.abs(coordinate).max())
            raise ValueError(
                f"{coordinate.name!r} must be in degrees but reaches {most:g}: give lat and lon, not distances on a "
                "projection, and NaN where a cell has no place"
            )


def check_rising(time: xr.DataArray) -> None:
    """Raise ValueError unless dates or times (time) rise, each once."""
    values = np.asarray(time)
    for k, (before, after) in enumerate(pairwise(values)):
        if not after > before:
            raise ValueError(
                f"{str(time.name)!r} must rise but record {k + 1} at {after} follows {before}: "
                f"sortby({str(time.name)!r}) and drop_duplicates({str(time.name)!r})"
            )


def check_along(field: xr.DataArray, dim: str, least: int, what: str) -> None:
    """Raise ValueError unless `field` has `least` records and a coordinate along `dim`; `what` needs them."""
    check_field(field)
    if dim not in field.dims or dim not in field.coords:
        raise ValueError(
            f"{what} needs the dimension and coordinate {dim!r}, but {named(field)} has dimensions {field.dims} and "
            f"coordinates {sorted(map(str, field.indexes))}: rename or assign {dim!r}, or name yours with dim="
        )
    if field.sizes[dim] < least:
        words = {2: "two", 3: "three", 4: "four", 5: "five"}.get(least, str(least))
        raise ValueError(f"{what} needs {words} values along {dim!r}, got {field.sizes[dim]} in {named(field)}")


def _turned(ours: _Array, theirs: _Array) -> bool:
    return np.allclose(np.sort(ours % 360), np.sort(theirs % 360), atol=_DEGREES)


def _numbers(d: str, ours: _Array, theirs: _Array) -> str:
    """Which way numbers differ that were to be equal."""
    if ours.shape != theirs.shape:
        spans = [f"{t.size} from {t[0]:g} to {t[-1]:g}" if t.size else "empty" for t in (theirs, ours)]
        return f"{d!r} is {' not '.join(spans)}; {d!r} differs; select or interpolate to common coordinates first"
    most = float(np.abs(ours - theirs).max())
    if most < 1e-4 * max(1.0, float(np.abs(ours).max())):
        return (
            f"{d!r} differs by up to {most:.2g}, by rounding it seems; give both the same with "
            f"assign_coords({d}=other[{d!r}].values)"
        )
    if "lon" in d and _turned(ours, theirs):
        return f"{d!r} counts from another meridian; assign_coords({d}={d} % 360).sortby({d!r}) on both"
    if np.allclose(np.sort(ours), np.sort(theirs)):
        return f"{d!r} runs in another order; sortby({d!r}) on both"
    if np.allclose(ours, -theirs):
        return f"{d!r} has the other sign; make both depths, positive down"
    return f"{d!r} differs by up to {most:g}; select or interpolate to common coordinates first"


def mismatch(field: xr.DataArray, other: xr.DataArray) -> str:
    """Which coordinate of `other` differs from that of `field`, by how much, and what to do about it."""
    for d in map(str, field.dims):
        if d not in other.dims:
            continue
        if d not in field.indexes or d not in other.indexes:
            if field.sizes[d] != other.sizes[d]:
                return f"{d!r} has {other.sizes[d]} cells not {field.sizes[d]}; select common ones first"
            continue
        ours, theirs = (np.asarray(f.indexes[d]) for f in (field, other))
        if ours.shape == theirs.shape and np.array_equal(ours, theirs):
            continue
        if d == "member" and set(ours.tolist()) != set(theirs.tolist()):
            return f"members {theirs.tolist()} are not {ours.tolist()}; select those that both have"
        if all(x.dtype.kind in "iuf" for x in (ours, theirs)):
            return _numbers(d, ours, theirs)
        spans = [f"{len(t)} from {t[0]} to {t[-1]}" if len(t) else "empty" for t in (theirs, ours)]
        common = len(set(ours.tolist()) & set(theirs.tolist()))
        return (
            f"{d!r} is {' not '.join(spans)} ({common} in common); select common times, with the same calendar and "
            "time of day"
        )
    return "select or interpolate to common coordinates first"


def check_places(field: xr.DataArray, other: xr.DataArray) -> None:
    """Raise ValueError if lat or lon of curvilinear grids, which are no indexes, are in memory and differ."""
    for name in ("lat", "lon", "latitude", "longitude"):
        if name not in field.coords or name not in other.coords or name in field.indexes or name in other.indexes:
            continue
        ours, theirs = field.coords[name].variable, other.coords[name].variable
        if ours.chunks or theirs.chunks or ours.dims != theirs.dims or ours.shape != theirs.shape:
            continue
        a, b = ours.values, theirs.values
        if a is b or np.may_share_memory(a, b) or not a.size:
            continue
        away = np.abs((a - b + 180) % 360 - 180) if name.startswith("lon") else np.abs(a - b)
        most = float(np.nanmax(away, initial=0.0))
        if most > _DEGREES:
            raise ValueError(
                f"{pair_named(other, field)} must lie on the same cells but their {name!r} differ by up to {most:g} "
                "degrees: interpolate one to the grid of the other first"
            )
