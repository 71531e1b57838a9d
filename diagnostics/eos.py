"""Density of sea water from what models store: potential temperature and practical salinity.

TEOS-10 (IOC et al. 2010; Roquet et al. 2015, Ocean Modelling 90, 29) wants Absolute Salinity and
Conservative Temperature at a sea pressure. At a fixed place Absolute Salinity is exactly affine in practical
salinity, Baltic included, so the atlas of anomalies (McDougall et al. 2012, Ocean Sci. 8, 1123) is read once
per cell instead of once per value:

    S_A = slope(lon, lat, p) S_P + offset(lon, lat, p),      offset = 0 but in the Baltic.

Where the atlas has no value (land, south of 86 S, idealised continents) the slope is 35.16504/35 g/kg.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import gsw
import numpy as np
import xarray as xr

from . import seawater
from .conventions import bare, check_units, coordinate, matched, vertical_dim
from .coordinates import check_degrees, check_levels

_Array = np.ndarray[Any, Any]

REFERENCE_SLOPE = 35.16504 / 35
"""Absolute over practical salinity of standard sea water, g/kg."""

SALINITY_NOTE = "TEOS-10 atlas of Absolute Salinity anomalies; S_A = 35.16504/35 S_P where the atlas has no value"


def sea_pressure(depth: _Array, lat: _Array) -> _Array:
    """Sea pressure in dbar at `depth` in m, positive down, and latitude in degrees."""
    return np.asarray(gsw.p_from_z(-depth, lat))


_BALTIC = (5.0, 47.0, 49.0, 71.0)  # west, east, south, north of a box around it, degrees


def salinity_offset(depth: _Array, lat: _Array, lon: _Array) -> _Array:
    """Absolute Salinity at practical salinity 0, g/kg, by depth (m), lat and lon (degrees): 0 but in the Baltic."""
    depth, lat, lon = (np.asarray(x, dtype="f8") for x in (depth, lat, lon))
    shape = np.broadcast_shapes(depth.shape, lat.shape, lon.shape)
    west, east, south, north = _BALTIC
    near = (lat > south) & (lat < north) & (lon % 360 > west) & (lon % 360 < east)
    near = np.broadcast_to(near, shape)
    offset = np.zeros(shape)
    if near.any():
        z, y, x = (np.broadcast_to(c, shape)[near] for c in (depth, lat, lon))
        baltic = gsw.SA_from_SP(0.0, sea_pressure(z, y), x, y)
        offset[near] = np.where(np.isfinite(baltic), baltic, 0.0)
    return offset


def salinity_slope(depth: _Array, lat: _Array, lon: _Array) -> _Array:
    """Slope of Absolute over practical salinity, g/kg, at depth (m), lat and lon (degrees)."""
    slope = (gsw.SA_from_SP(35.0, sea_pressure(depth, lat), lon, lat) - salinity_offset(depth, lat, lon)) / 35
    return np.where(np.isfinite(slope), slope, REFERENCE_SLOPE)


@lru_cache(maxsize=6)
def _computed(function: Callable[..., _Array], shapes: tuple[tuple[int, ...], ...], *data: bytes) -> _Array:
    return function(*(np.frombuffer(d).reshape(s) for d, s in zip(data, shapes, strict=True)))


def _remembered(function: Callable[..., _Array], *places: _Array) -> _Array:
    """Return function(*places), kept for the next call.

    A store read in pieces asks for the same places again and again, and reading the atlas takes 30 times as long as a
    density.
    """
    arrays = [np.ascontiguousarray(x, dtype="f8") for x in places]
    return _computed(function, tuple(x.shape for x in arrays), *(x.tobytes() for x in arrays))


@dataclass(frozen=True)
class Place:
    """Where the cells are, as far as density depends on it: (lev, lat|y, lon|x), lazy for lazy fields."""

    slope: xr.DataArray
    offset: xr.DataArray
    pressure: xr.DataArray

    @classmethod
    def of(cls, field: xr.DataArray) -> Place:
        """Return the place of `field` (…, lev, lat|y, lon|x); ValueError without lev, lat and lon."""
        dim = vertical_dim(field)
        lev = coordinate(field, dim)
        lat, lon = coordinate(field, "lat", "latitude"), coordinate(field, "lon", "longitude")
        if lev is None or lat is None or lon is None:
            raise ValueError(f"density needs {dim!r} (m), lat and lon (degrees), got {list(field.coords)}: assign them")
        check_levels(field, dim)
        check_degrees(lat, lon)
        where = [matched(field, c) for c in (lev.astype("f8"), lat, lon)]
        return cls(
            slope=_blockwise(partial(_remembered, salinity_slope), *where),
            offset=_blockwise(partial(_remembered, salinity_offset), *where),
            pressure=_blockwise(partial(_remembered, sea_pressure), *where[:2]),
        )

    def density(self, theta: xr.DataArray, sp: xr.DataArray) -> xr.DataArray:
        """In-situ density in kg m-3, float64, of potential temperature (degC) and practical salinity at this place."""
        return _blockwise(seawater.density, bare(theta), matched(theta, sp), self.slope, self.offset, self.pressure)


def check_water(theta: xr.DataArray, sp: xr.DataArray) -> None:
    """Raise ValueError unless `theta` is in degC and `sp` a practical salinity."""
    check_units(theta, "degC")
    check_units(sp, "0.001")


def _blockwise(function: Any, *fields: xr.DataArray) -> xr.DataArray:
    result: xr.DataArray = xr.apply_ufunc(function, *fields, dask="parallelized", output_dtypes=["f8"])
    return result
