"""Transports and stratification: overturning and barotropic stream functions, sections, mixed-layer depth.

    overturning    psi(y, z) = ∫_z^0 ∫ v dx dz'                      Sv, positive: northward above, southward below
    barotropic     psi(x, y) = -∫_{y_s}^y ∫_{-H}^0 u dz dy'          Sv, 0 at the southern edge
    section        T = ∫∫ u_n dl dz                                  Sv
    mixed layer    depth at which density exceeds that at 10 m by 0.03 kg m-3, or temperature differs by 0.2 K

Both stream functions follow CMIP's signs (Griffies et al. 2016, Geosci. Model Dev. 9, 3231, appendix I). Velocities lie
on the cells as stored: on a C-grid give `vo` with the widths of its own faces, or errors of a cell remain. Mixed layer:
de Boyer Montégut et al. 2004, J. Geophys. Res. 109, C12003, by linear interpolation between levels.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from . import seawater
from .conventions import bare, check_units, described, horizontal_dims, matched, thickness_within, vertical_dim
from .coordinates import check_field, check_levels
from .eos import REFERENCE_SLOPE, check_water

_Array = np.ndarray[Any, Any]

SVERDRUP = 1e6
"""m3 s-1."""


def _transport(velocity: xr.DataArray, width: xr.DataArray, dz: xr.DataArray | None) -> xr.DataArray:
    """Volume transport of each cell face in Sv (…, lev, lat|y, lon|x), 0 on land."""
    check_units(velocity, "m s-1")
    check_units(width, "m")
    if not set(width.dims) <= set(horizontal_dims(velocity)):
        raise ValueError(f"width must have horizontal dimensions only, got {width.dims}: give that of one level, in m")
    thickness = thickness_within(velocity, depth=(0.0, np.inf), dz=dz)
    face = bare(velocity).astype("f8") * thickness * matched(velocity, width).astype("f8")
    return (face / SVERDRUP).fillna(0.0)


def _coords(field: xr.DataArray, dims: tuple[Hashable, ...]) -> dict[Hashable, xr.DataArray]:
    return {name: c for name, c in field.coords.items() if set(c.dims) <= set(dims)}


def overturning(vo: xr.DataArray, *, width: xr.DataArray, dz: xr.DataArray | None = None) -> xr.DataArray:
    """Meridional overturning stream function.

    `vo` (…, lev, lat|y, lon|x), northward velocity in m s-1, NaN on land (and in other basins, for that of one);
    `width` (lat|y, lon|x) or a part, zonal width of the faces in m; `dz` in m as `heat_content`. Returns (…, lev,
    lat|y) in Sv, at the *lower* edge of each layer, float64, lazy for lazy input; the last level is the net transport
    through the section. Raises ValueError for other units or a missing thickness. Rows of a curvilinear grid are grid
    lines.
    """
    dim = vertical_dim(vo)
    total = _transport(vo, width, dz).sum(horizontal_dims(vo)[1])
    psi = total.cumsum(dim).transpose(*(d for d in vo.dims if d in total.dims))
    about = {"units": "Sv", "long_name": "meridional overturning stream function at the lower edge of each layer"}
    return described(psi.assign_coords(_coords(vo, psi.dims)), "msft", **about)


def barotropic_streamfunction(uo: xr.DataArray, *, width: xr.DataArray, dz: xr.DataArray | None = None) -> xr.DataArray:
    """Barotropic stream function, summed from the southern edge, where it is 0.

    `uo` (…, lev, lat|y, lon|x), eastward velocity in m s-1, NaN on land, rows from south to north; `width` (lat|y,
    lon|x) or a part, meridional width of the faces in m; `dz` in m. Returns (…, lat|y, lon|x) in Sv at the *northern*
    edge of each row, float64, lazy for lazy input. Raises ValueError for other units, and rows from north to south.
    """
    rows, _ = horizontal_dims(uo)
    if rows in uo.indexes and uo.indexes[rows].size > 1 and not uo.indexes[rows].is_monotonic_increasing:
        raise ValueError(f"{rows!r} must run from south to north: sortby({rows!r}) first")
    psi = -_transport(uo, width, dz).sum(vertical_dim(uo)).cumsum(rows)
    dims = tuple(d for d in uo.dims if d in psi.dims)
    about = {"units": "Sv", "long_name": "barotropic stream function at the northern edge of each row"}
    return described(psi.transpose(*dims).assign_coords(_coords(uo, dims)), "msftbarot", **about)


def section_transport(
    velocity: xr.DataArray,
    *,
    along: str,
    width: xr.DataArray,
    dz: xr.DataArray | None = None,
    depth: tuple[float, float] = (0.0, np.inf),
) -> xr.Dataset:
    """Transport through a straight section such as a strait: net, and its two directions.

    `velocity` (…, lev, along) in m s-1, normal to the section, NaN on land, such as `uo.sel(lon=292,
    method="nearest").sel(lat=slice(-68, -55))` for Drake Passage; `along`, the dimension of the section; `width`
    (along) in m; `dz` and `depth` in m. Returns net, positive and negative (…) in Sv, float64, lazy for lazy input.
    Raises ValueError for other units or dimensions.
    """
    check_units(velocity, "m s-1")
    check_units(width, "m")
    if along not in velocity.dims or not set(width.dims) <= {along}:
        raise ValueError(
            f"the section must lie along {along!r}, got a velocity {velocity.dims} and widths {width.dims}"
        )
    thickness = thickness_within(velocity, depth=depth, dz=dz)
    face = bare(velocity).astype("f8") * thickness * matched(velocity, width).astype("f8") / SVERDRUP
    dims = [vertical_dim(velocity), along]
    parts = {"net": face, "positive": face.clip(min=0), "negative": face.clip(max=0)}
    kept = _coords(velocity, tuple(d for d in velocity.dims if d not in dims))
    return xr.Dataset(
        {
            name: described(
                part.sum(dims, min_count=1).assign_coords(kept), name, units="Sv", long_name=f"{name} transport"
            )
            for name, part in parts.items()
        }
    )


def _crossing(x: _Array, *, lev: _Array, reference: float, step: float, rising: bool) -> _Array:
    """Depth (…) at which x (…, lev) leaves its value at `reference` by `step`; the last wet level if it never does."""
    wet = np.isfinite(x)
    start = np.stack([np.interp(reference, lev, row) for row in x.reshape(-1, lev.size)]).reshape(x.shape[:-1])
    change = x - start[..., None] if rising else np.abs(x - start[..., None])
    beyond = (change > step) & (lev > reference) & wet
    k = np.argmax(beyond, axis=-1)[..., None]
    deeper = np.take_along_axis(change, k, -1)[..., 0]
    above = np.maximum(k - 1, 0)
    upper = np.where(lev[above[..., 0]] > reference, np.take_along_axis(change, above, -1)[..., 0], 0.0)
    z0, z1 = np.maximum(lev[above[..., 0]], reference), lev[k[..., 0]]
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = z0 + (z1 - z0) * (step - upper) / (deeper - upper)
    floor = np.where(wet.any(-1), lev[lev.size - 1 - np.argmax(wet[..., ::-1], axis=-1)], np.nan)
    return np.where(beyond.any(-1), depth, np.where(np.isfinite(start), floor, np.nan))


def mixed_layer_depth(
    thetao: xr.DataArray,
    so: xr.DataArray | None = None,
    *,
    criterion: float | None = None,
    reference: float = 10.0,
) -> xr.DataArray:
    """Depth of the mixed layer by a threshold, from density if salinity is given, else from temperature.

    `thetao` (…, lev, …), potential temperature in degC; `so` alike, practical salinity; `criterion`, by default 0.03 kg
    m-3 in potential density, or 0.2 K in either direction; `reference`, the depth in m from which it counts. Returns
    (…) in m, float64, lazy for lazy input; the deepest wet level where the criterion is not met, NaN on land. Raises
    ValueError for other units, levels that are not depths rising downwards, or a criterion that is not positive.
    """
    check_field(thetao, "thetao")
    dim = vertical_dim(thetao)
    check_levels(thetao, dim)
    if dim not in thetao.indexes or thetao.sizes[dim] < 2:
        raise ValueError(f"{dim!r} must hold two depths or more in m, positive down: assign_coords({dim}=…)")
    lev = np.asarray(thetao.indexes[dim], dtype="f8")
    if not lev[0] <= reference < lev[-1]:
        raise ValueError(f"reference must lie between the levels {lev[0]:g} and {lev[-1]:g} m, got {reference:g}")
    if so is None:
        check_units(thetao, "degC")
        field, step = bare(thetao).astype("f8"), 0.2 if criterion is None else criterion
    else:
        check_water(thetao, so)
        step = 0.03 if criterion is None else criterion
        field = xr.apply_ufunc(_potential, bare(thetao), matched(thetao, so), dask="parallelized", output_dtypes=["f8"])
    if step <= 0:
        raise ValueError(f"criterion must be positive, got {step}")
    depth: xr.DataArray = xr.apply_ufunc(
        _crossing,
        field.chunk({dim: -1}) if field.chunks else field,
        kwargs={"lev": lev, "reference": float(reference), "step": float(step), "rising": so is not None},
        input_core_dims=[[dim]],
        dask="parallelized",
        output_dtypes=["f8"],
    )
    depth = depth.assign_coords(_coords(thetao, depth.dims))
    told = {"criterion": step, "reference_depth": reference, "quantity": "temperature" if so is None else "density"}
    name = "ocean_mixed_layer_thickness_defined_by_" + ("temperature" if so is None else "sigma_theta")
    return described(depth, "mlotst", units="m", long_name="mixed-layer depth", standard_name=name, **told)


def _potential(theta: _Array, sp: _Array) -> _Array:
    """Potential density at the surface, kg m-3, without the anomalies of composition, which cancel in a difference."""
    return seawater.density(theta, sp, np.array(REFERENCE_SLOPE), np.array(0.0), np.array(0.0))
