"""What every diagnostic agrees on: dimension names, units, cell areas, layer thicknesses and means.

Fields are laid out `(member, time, lev, lat|y, lon|x)` with NaN on land; `areacello` (m2) and `dz` (m) are
coordinates. A mean over cells x with weights w uses one mask for both sums, in float64,

    <x> = sum(w x) / sum(w [x is finite]),

and a cell between the latitudes s and n has the area R^2 dlon (sin n - sin s) exactly. Names and units are
those of the CF conventions and of CMIP (Griffies et al. 2016, Geosci. Model Dev. 9, 3231).

Input that cannot be right is a ValueError that names the variable and what to do, raised at the call for what is known
without reading data: units, dimensions, coordinates, areas in memory. What only the values show is raised when they are
computed. Where nothing is finite, a mean, an integral, a score or a spectrum of that place, time or region is NaN, from
memory as from a lazy store, so both give the same; only what has no NaN to return (EOFs, a spectrum of maps that must
not have land) raises.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import xarray as xr

from .coordinates import check_degrees, check_field, check_levels, check_places, mismatch, named, pair_named

EARTH_RADIUS = 6.371e6
"""Radius of the sphere, m."""

RHO0 = 1035.0
"""Reference density of a Boussinesq ocean, kg m-3 (MOM6; NEMO uses 1026)."""

_HORIZONTAL = (("lat", "lon"), ("y", "x"), ("latitude", "longitude"), ("j", "i"))
_VERTICAL = ("lev", "depth", "z")

_ALIASES = {
    "degC": (
        "degC",
        "°C",
        "deg_C",
        "degree_C",
        "degree_Celsius",
        "degrees_Celsius",
        "celsius",
        "Celsius",
        "C",
    ),
    "0.001": ("0.001", "1e-3", "1e-03", "psu", "PSU", "pss", "g kg-1", "g/kg", "1"),
    "m s-1": ("m s-1", "m/s", "m s**-1", "m s^-1", "meter second-1"),
    "m": ("m", "meter", "meters", "metre", "metres"),
    "m2": ("m2", "m^2", "m**2"),
    "Pa": ("Pa", "pascal", "N m-2", "N/m2"),
    "kg m-2": ("kg m-2", "kg/m2", "kg m**-2", "kg m^-2"),
    "J": ("J", "joule", "joules"),
    "J m-2": ("J m-2", "J/m2", "J m**-2", "J m^-2"),
    "W m-2": ("W m-2", "W/m2", "W m**-2", "W m^-2", "watt m-2"),
}
_CONVERSIONS = {
    ("degC", "K"): "subtract 273.15",
    ("degC", "kelvin"): "subtract 273.15",
    ("m s-1", "cm s-1"): "divide by 100",
    ("degC", "degK"): "subtract 273.15",
    ("0.001", "kg kg-1"): "multiply by 1000",
    ("m2", "km2"): "multiply by 1e6",
    ("m2", "cm2"): "divide by 1e4",
    ("J", "ZJ"): "multiply by 1e21",
    ("Pa", "hPa"): "multiply by 100",
    ("Pa", "mbar"): "multiply by 100",
    ("m", "km"): "multiply by 1000",
    ("m", "cm"): "divide by 100",
    ("m", "mm"): "divide by 1000",
}


def check_units(field: xr.DataArray, wanted: str) -> None:
    """Raise ValueError unless the units attribute of `field` is `wanted` or an alias of it.

    `wanted` is a CF unit such as "degC", "0.001", "m s-1" or "m". Nothing is converted: kelvin for "degC" is
    an error that says how to convert, because a silent offset of 273.15 K is a heat content of 8e11 J m-2. TypeError
    for what is no DataArray.
    """
    check_field(field, f"a field in {wanted!r}")
    got = field.attrs.get("units")
    if got is not None and str(got).strip() in _ALIASES.get(wanted, (wanted,)):
        return
    if got is None:
        advice = f"if it is in {wanted}, set .attrs['units'] = {wanted!r}"
    else:
        how = _CONVERSIONS.get((wanted, str(got).strip()), "convert the values")
        advice = f"{how} and set .attrs['units'] = {wanted!r}"
    came = "no units attribute" if got is None else f"units {str(got)!r}"
    raise ValueError(f"{named(field)} must be in {wanted!r} but has {came}: {advice}")


def check_stated_units(field: xr.DataArray, wanted: str) -> None:
    """As `check_units` for an argument whose unit is documented: none is taken to be `wanted`, another is an error."""
    check_field(field, f"an argument in {wanted!r}")
    if "units" in field.attrs:
        check_units(field, wanted)


def same_units(first: xr.DataArray, second: xr.DataArray) -> None:
    """Raise ValueError if both fields state units and these differ beyond spelling."""
    units = first.attrs.get("units"), second.attrs.get("units")
    if None in units or str(units[0]) == str(units[1]):
        return
    if not any(str(units[0]) in names and str(units[1]) in names for names in _ALIASES.values()):
        came = f"{named(first)} is in {str(units[0])!r}, {named(second)} in {str(units[1])!r}"
        raise ValueError(f"units must agree but {came}: convert one of them")


def horizontal_dims(obj: xr.DataArray | xr.Dataset) -> tuple[str, str]:
    """Names of the two horizontal dimensions, north-south first; ValueError if there are none."""
    for pair in _HORIZONTAL:
        if set(pair) <= set(obj.dims):
            return pair
    raise ValueError(f"no horizontal dimensions among {tuple(obj.dims)}: rename yours to ('lat', 'lon') or ('y', 'x')")


def vertical_dim(obj: xr.DataArray | xr.Dataset) -> str:
    """Name of the vertical dimension; ValueError if there is none."""
    for name in _VERTICAL:
        if name in obj.dims:
            return name
    raise ValueError(f"no vertical dimension among {tuple(obj.dims)}: rename yours to 'lev'")


def bare(field: xr.DataArray) -> xr.DataArray:
    """The field with its index coordinates only.

    xarray compares the other coordinates of two operands and would compute lazy ones for that.
    """
    return field.reset_coords(drop=True)


def described(field: xr.DataArray, name: Hashable, /, **attrs: Any) -> xr.DataArray:
    """The field under this name with these attrs only: xarray's arithmetic collects those of its operands."""
    return field.drop_attrs(deep=False).rename(name).assign_attrs(attrs)


def matched(field: xr.DataArray, other: xr.DataArray, *, exclude: Iterable[Hashable] = ()) -> xr.DataArray:
    """Return `other`, bare, on exactly the coordinates of `field` and chunked like it.

    xarray's own arithmetic keeps the intersection of unequal coordinates, silently; here they are a
    ValueError, which names the coordinate and by how much it differs, also for two-dimensional lat and lon in memory.
    Equal chunks keep a binary operation at one task per chunk instead of one per overlap.
    """
    check_field(field)
    check_field(other)
    try:
        xr.align(field, other, join="exact", copy=False, exclude=frozenset(exclude))
    except ValueError as error:
        raise ValueError(
            f"{pair_named(other, field)} must share their coordinates exactly but do not: {mismatch(field, other)}"
        ) from error
    check_places(field, other)
    other = bare(other)
    if field.chunks is None:
        return other
    chunks = field.variable.chunksizes  # the coordinates may be chunked otherwise
    return other.chunk({d: chunks[d] for d in other.dims if d in chunks and d not in set(exclude)})


def coordinate(obj: xr.DataArray | xr.Dataset, *names: str) -> xr.DataArray | None:
    """Return the first of the named coordinates (or a Dataset's variables) that is there."""
    found = (name for name in names if name in obj.coords or (isinstance(obj, xr.Dataset) and name in obj))
    name = next(found, None)
    return None if name is None else obj[name]


def _edges(centres: xr.DataArray, bounds: xr.DataArray | None) -> np.ndarray[Any, Any]:
    """Cell edges with shape (n, 2), from bounds or half-way between centres."""
    if bounds is not None:
        return np.asarray(bounds, dtype="f8")
    x = np.asarray(centres, dtype="f8")
    if x.size < 2:
        raise ValueError(f"cannot infer cell widths from a single {named(centres)}: give `areacello` (m2)")
    middle = (x[1:] + x[:-1]) / 2
    inner = np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])
    return np.stack([inner[:-1], inner[1:]], axis=1)


def area_of(obj: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Cell area with shape (lat|y, lon|x) in m2, land included.

    `areacello` if there, lazily if it is lazy; else exact spherical bands from 1-D lat and lon (and
    `lat_bnds`, `lon_bnds` of a Dataset; otherwise edges lie half-way and stop at the poles). ValueError if
    only 2-D lat and lon are known: areas of a curvilinear grid are the model's to say.
    """
    area = coordinate(obj, "areacello")
    if area is not None:
        check_units(area, "m2")
        return bare(area)
    lat, lon = coordinate(obj, "lat", "latitude"), coordinate(obj, "lon", "longitude")
    if lat is None or lon is None or lat.ndim != 1 or lon.ndim != 1:
        raise ValueError(
            "cell areas need `areacello` (m2) or one-dimensional lat and lon: assign areacello as coordinate"
        )
    check_degrees(lat, lon)
    south_north = np.clip(_edges(lat, coordinate(obj, f"{lat.name}_bnds")), -90, 90)
    east_west = _edges(lon.copy(data=np.unwrap(lon.data, period=360)), coordinate(obj, f"{lon.name}_bnds"))
    band = np.abs(np.diff(np.sin(np.deg2rad(south_north)), axis=1))
    width = np.abs(np.diff(np.deg2rad(east_west), axis=1))
    attrs = {"units": "m2", "standard_name": "cell_area", "earth_radius": EARTH_RADIUS}
    area = xr.DataArray(EARTH_RADIUS**2 * band * width.T, dims=(*lat.dims, *lon.dims), attrs=attrs, name="areacello")
    return area.assign_coords({d: obj.indexes[d] for d in area.dims if d in obj.indexes})


def cell_area(field: xr.DataArray, area: xr.DataArray | None) -> xr.DataArray:
    """The areas (m2) that a caller gave for the cells of `field`, bare, or `area_of(field)` for None.

    Raises ValueError if they state another unit than m2 or are, in memory, negative.
    """
    if area is None:
        return area_of(field)
    check_stated_units(area, "m2")
    if area.chunks is None and bool((area < 0).any()):
        raise ValueError(
            f"{named(area)} must be areas in m2 but is negative down to {float(area.min()):g}: mask or abs()"
        )
    return bare(area)


def thickness_of(obj: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Layer thickness in m: `dz` (lev), `thkcello` (…, lev, lat|y, lon|x), or from a Dataset's level bounds.

    Raises ValueError if none is there: thicknesses guessed from level centres are wrong on stretched levels.
    """
    thickness = coordinate(obj, "dz", "thkcello")
    if thickness is not None:
        check_units(thickness, "m")
        return bare(thickness)
    dim = vertical_dim(obj)
    bounds = (
        coordinate(obj, str(obj[dim].attrs.get("bounds", f"{dim}_bnds")), "lev_bnds") if dim in obj.coords else None
    )
    if bounds is None:
        name = named(obj) if isinstance(obj, xr.DataArray) else "the dataset"
        raise ValueError(
            f"{name} has no layer thickness: assign `dz` ({dim}) or `thkcello` in m as coordinate, or pass "
            f"dz=thickness_of(dataset) where the dataset has {dim}_bnds"
        )
    (edge,) = set(bounds.dims) - {dim}
    thickness = abs(bounds.isel({edge: 1}) - bounds.isel({edge: 0}))
    return described(bare(thickness), "dz", units="m")


def _overlap(
    dz: np.ndarray[Any, Any], *, depth: tuple[float, float], lev: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, Any]:
    """Part of each layer between two depths, layers on the last axis."""
    dz = np.nan_to_num(dz.astype("f8"))
    bottom = np.cumsum(dz, axis=-1)
    top = bottom - dz
    # Partial cells may end above their nominal level, so only a column common to all places can be checked.
    # Levels whose upper neighbours were dropped lie too deep in the layers that are left.
    if dz.ndim == 1 and lev is not None and np.any((lev < top - 1e-3 * dz) | (lev > top + 0.75 * dz)):
        raise ValueError(
            "thicknesses must be stacked from the surface downwards, each level in its layer, but the levels "
            f"{lev} do not lie in the layers that end at {bottom}: give all layers, sortby the levels, and select "
            "with depth="
        )
    inside = np.minimum(bottom, depth[1]) - np.maximum(top, depth[0])
    return np.asarray(np.maximum(inside, 0.0))


def thickness_within(
    field: xr.DataArray, *, depth: tuple[float, float], dz: xr.DataArray | None = None
) -> xr.DataArray:
    """Thickness in m of the part of each layer that lies between the depths `depth[0]` and `depth[1]` (m).

    `field` is (…, lev, …); `dz` (m) defaults to `thickness_of(field)` and must begin at the surface. Raises
    ValueError for an empty range, levels that are not depths in m from the surface downwards, thicknesses in
    another unit or negative, and (when computed) for levels that lie outside their layers.
    """
    top, bottom = depth
    if not 0 <= top < bottom:
        raise ValueError(f"depth must be (top, bottom) with 0 <= top < bottom in m, got {depth}")
    dim = vertical_dim(field)
    check_levels(field, dim)
    if dz is not None:
        check_stated_units(dz, "m")
    dz = matched(field, thickness_of(field) if dz is None else dz)
    if dz.chunks is None and bool((dz < 0).any()):
        raise ValueError(
            f"the layer thickness {named(dz)} must not be negative but is, down to {float(dz.min()):g} m: abs()"
        )
    if dim not in dz.dims:
        raise ValueError(f"dz must have the dimension {dim!r}, got {dz.dims}")
    lev = np.asarray(field.indexes[dim], dtype="f8") if dim in field.indexes else None
    result: xr.DataArray = xr.apply_ufunc(
        _overlap,
        dz.chunk({dim: -1}) if dz.chunks else dz,
        input_core_dims=[[dim]],
        output_core_dims=[[dim]],
        kwargs={"depth": depth, "lev": lev},
        dask="parallelized",
        output_dtypes=["f8"],
    )
    return matched(field, result)


def weighted_mean(field: xr.DataArray, weights: xr.DataArray | None, *, dim: Iterable[Hashable]) -> xr.DataArray:
    """Mean over `dim` of the finite values, with `weights` on a subset of the field's dimensions, in float64.

    Keeps attrs. Where nothing is finite the mean is NaN. Raises ValueError if the weights have a dimension
    that the field lacks.
    """
    dims = list(dim)
    if weights is None:
        return field.astype("f8").mean(dims, skipna=True, keep_attrs=True)
    if not set(weights.dims) <= set(field.dims):
        raise ValueError(f"weights {weights.dims} have dimensions that {named(field)} {field.dims} lacks: reduce them")
    weights = matched(field, weights).astype("f8").fillna(0)
    total = (field.fillna(0) * weights).sum(dims)
    wet = (field.notnull() * weights).sum(dims)
    return described(total / wet.where(wet > 0), field.name, **field.attrs)


def area_mean(field: xr.DataArray, area: xr.DataArray | None = None) -> xr.DataArray:
    """Mean of `field` (…, lat|y, lon|x) over the cells where it is finite, weighted by `area` (m2), float64.

    `area` defaults to `area_of(field)`.
    """
    return weighted_mean(field, area_of(field) if area is None else area, dim=horizontal_dims(field))


def wet_area(field: xr.DataArray, area: xr.DataArray | None = None) -> xr.DataArray:
    """Area in m2, a scalar, of the cells where the first level, time and member of `field` is finite."""
    dims = horizontal_dims(field)
    for name in set(_VERTICAL) & set(field.dims):
        check_levels(field, name)
    surface = field.isel({d: 0 for d in field.dims if d not in dims}, drop=True)
    area = matched(surface, cell_area(field, area)).astype("f8")
    wet = bare((surface.notnull() * area).sum(dims))
    return described(wet, "ocean_area", units="m2", long_name="area of the ocean surface")
