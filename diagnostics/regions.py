"""Boxes of longitude and latitude with names, and how to cut them out of any separable grid.

The six boxes are those in which the Samudra papers score eddies and the tropical Pacific (Dheeshjith et al. 2025,
Geophys. Res. Lett., "Samudra: an AI global ocean emulator for climate"; arXiv:2606.02610). A box holds the cells
whose centres lie in it, its edges included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from .conventions import coordinate, horizontal_dims
from .coordinates import check_degrees

_Array = np.ndarray[Any, Any]
_Data = TypeVar("_Data", xr.DataArray, xr.Dataset)

_ROUNDING = 1e-5  # degrees; float32 longitudes are good to 3e-5


class RegionError(ValueError):
    """A box that cannot be cut out of a grid."""


class EmptyRegionError(RegionError):
    """A box in which a grid has no cell."""


@dataclass(frozen=True)
class Region:
    """Box between the meridians `west` and `east` (degrees east, eastwards) and two latitudes (degrees north)."""

    west: float
    east: float
    south: float
    north: float

    def __post_init__(self) -> None:
        if not (self.west < self.east <= self.west + 360 and -90 <= self.south < self.north <= 90):
            raise RegionError(
                "a region needs west < east <= west + 360 and -90 <= south < north <= 90, got "
                f"{self}: give the eastern edge beyond 360 for a box across the date line or Greenwich"
            )


REGIONS = {
    "Gulf Stream": Region(300, 320, 25, 45),
    "Kuroshio": Region(150, 170, 25, 45),
    "Agulhas": Region(40, 60, -50, -30),
    "Malvinas": Region(311, 331, -51, -31),
    "Nino 3.4": Region(190, 240, -5, 5),
    "Tropical Pacific": Region(130, 290, -30, 30),
}
"""The boxes of the Samudra papers by name."""


def region_named(region: str | Region) -> Region:
    """The region itself, or the one of `REGIONS` with this name; RegionError for an unknown name."""
    if isinstance(region, Region):
        return region
    if region not in REGIONS:
        raise RegionError(f"no region {region!r}: choose among {[*REGIONS]}, or give Region(west, east, south, north)")
    return REGIONS[region]


def _axes(obj: xr.DataArray | xr.Dataset) -> tuple[_Array, _Array]:
    """Latitudes of the rows and longitudes of the columns of a separable grid."""
    rows, columns = horizontal_dims(obj)
    lat, lon = coordinate(obj, "lat", "latitude"), coordinate(obj, "lon", "longitude")
    if lat is None or lon is None:
        raise RegionError("a region needs the coordinates lat and lon in degrees: assign them, 1-D or 2-D")
    lat, lon = (c.transpose(rows, columns, missing_dims="ignore") for c in (lat, lon))
    y, x = (np.asarray(c, dtype="f8") for c in (lat, lon))
    if y.ndim == 2:
        y = _one(y, axis=1, name="lat")
    if x.ndim == 2:
        x = _one(x, axis=0, name="lon")
    check_degrees(lat, lon)
    return y, x


def _one(values: _Array, *, axis: int, name: str) -> _Array:
    first = values.take([0], axis=axis)
    # Longitudes may differ by whole turns.
    if np.nanmax(np.abs((values - first + 180) % 360 - 180)) > 100 * _ROUNDING:
        raise RegionError(
            f"regions need rows of one latitude and columns of one longitude, but {name} varies along both "
            "dimensions (a curvilinear grid): interpolate to a regular grid first"
        )
    return np.asarray(np.nanmean(first, axis=axis))


def region_indices(obj: xr.DataArray | xr.Dataset, region: str | Region) -> tuple[_Array, _Array]:
    """Indices of the rows, and of the columns from west to east, of the cells in a box.

    `obj` has lat and lon, 1-D, or 2-D and separable, in degrees; longitudes may count from any meridian. Raises
    RegionError for an unknown name and a curvilinear grid, its EmptyRegionError for a box that holds no cell.
    """
    box = region_named(region)
    lat, lon = _axes(obj)
    east = (lon - box.west + _ROUNDING) % 360 - _ROUNDING
    rows = np.flatnonzero((lat >= box.south - _ROUNDING) & (lat <= box.north + _ROUNDING))
    columns = np.flatnonzero(east <= box.east - box.west + _ROUNDING)
    if not (rows.size and columns.size):
        raise EmptyRegionError(
            f"no cell in {box.west:g}-{box.east:g} E, {box.south:g}-{box.north:g} N: the grid spans latitudes "
            f"{lat.min():g} to {lat.max():g} and longitudes {lon.min():g} to {lon.max():g}; choose a box inside"
        )
    return rows, columns[np.argsort(east[columns], kind="stable")]


def select_region(obj: _Data, region: str | Region) -> _Data:
    """The cells of a box, from west to east even where the grid's edge runs through it.

    `obj` (…, lat|y, lon|x); `region`, a `Region` or a name of `REGIONS`. Returns the same with fewer cells, lazy for
    lazy input, its longitudes made to rise through the box from `west` on. Raises as `region_indices`.
    """
    box = region_named(region)
    rows, columns = region_indices(obj, box)
    names = horizontal_dims(obj)
    picked = obj.isel(dict(zip(names, (_slice(rows), _slice(columns)), strict=True)))
    name = next(n for n in ("lon", "longitude") if n in picked.coords)
    lon = picked[name]
    rising = (lon - box.west + _ROUNDING) % 360 - _ROUNDING + box.west
    return picked.assign_coords({name: rising.assign_attrs(lon.attrs)})


def _slice(indices: _Array) -> _Array | slice:
    """A slice where the indices are neighbours: dask then keeps its chunks."""
    if np.all(np.diff(indices) == 1):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices
