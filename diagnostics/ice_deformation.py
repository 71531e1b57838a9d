"""Deformation of sea ice: gradients of its velocity on curvilinear grids, divergence and shear.

Two methods. Backward differences, u_x = (u[j, i] - u[j, i - 1]) / dx (Finn et al. 2024, J. Adv. Model. Earth Syst. 16,
e2024MS004395), leave the first row and column without value. Contour integrals around the cell between four nodes
(Green's theorem; Marsan et al. 2004, Phys. Rev. Lett. 93, 178501; Finn et al. 2025, arXiv:2508.14984),

    a = sum_k (x_k y_k+1 - x_k+1 y_k) / 2,   u_x = 1/a sum_k (u_k + u_k+1)/2 (y_k+1 - y_k),
    u_y = -1/a sum_k (u_k + u_k+1)/2 (x_k+1 - x_k),

are exact for linear velocities on any quadrilateral. On the sphere x and y are distances in the plane that touches
the cell's centre, and the four velocities are turned, as vectors in space, into that plane: differences of components
along the axes of a curved grid would be deformation that is not there. The error is of second order in cell size
over Earth's radius. With either,

    divergence = u_x + v_y,   shear = ((u_x - v_y)^2 + (u_y + v_x)^2)^1/2,   total = (divergence^2 + shear^2)^1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import dask
import numpy as np
import xarray as xr

from .cell_frames import Cells, plane_cells, sphere_cells, sphere_steps
from .conventions import bare, check_units, coordinate, described, horizontal_dims, matched

_Array = np.ndarray[Any, Any]

COMPONENTS = ("u_x", "u_y", "v_x", "v_y")
_CHUNK = "16MiB"  # of velocities put together from parts of maps; their gradients take eight times that
_METHODS = ("contour", "backward")
_AXES = ("grid", "east-north")
_PLACES = (
    ("areacello", "m2", "cell_area"),
    ("lat", "degrees_north", "latitude"),
    ("lon", "degrees_east", "longitude"),
)


def corners(field: _Array) -> list[_Array]:
    """Values (…, y, x) at the nodes of each cell between four of them, in order around it: 4 of (…, y - 1, x - 1)."""
    return [field[..., :-1, :-1], field[..., :-1, 1:], field[..., 1:, 1:], field[..., 1:, :-1]]


def contour_gradients(u: _Array, v: _Array, x: _Array, y: _Array) -> _Array:
    """Gradients u_x, u_y, v_x, v_y (4, …) by contour integrals, from values at corners, all (corner, …).

    `u`, `v` in m s-1 along x and y, `x`, `y` in m, corners in order around each cell. Returns s-1, NaN where a cell
    has no area. Equations: above.
    """
    dx, dy = (np.roll(c, -1, axis=0) - c for c in (x, y))
    twice = (x * np.roll(y, -1, axis=0) - np.roll(x, -1, axis=0) * y).sum(0)
    twice = np.where(twice == 0, np.nan, twice)
    pairs = [w + np.roll(w, -1, axis=0) for w in (u, v)]
    return np.stack([sign * (w * d).sum(0) / twice for w in pairs for sign, d in ((1, dy), (-1, dx))])


def _over_maps(u: _Array, v: _Array, one: Callable[[_Array, _Array], _Array]) -> _Array:
    """Apply one(u, v) -> (4, J, I) to each map (…, y, x): (…, 4, J, I)."""
    u, v = np.broadcast_arrays(u, v)
    flat = zip(*(w.reshape(-1, *w.shape[-2:]) for w in (u, v)), strict=True)
    # One map at a time, in float64, bounds the temporaries whatever the chunk.
    out = np.stack([one(a.astype("f8"), b.astype("f8")) for a, b in flat])
    return out.reshape(*u.shape[:-2], *out.shape[1:])


def _contour(u: _Array, v: _Array, cells: Cells) -> _Array:
    def contour(a: _Array, b: _Array) -> _Array:
        along, across = cells.turned(np.stack(corners(a)), np.stack(corners(b)))
        return contour_gradients(along, across, cells.x, cells.y)

    return _over_maps(u, v, contour)


def _backward(u: _Array, v: _Array, dy: _Array, dx: _Array) -> _Array:
    def backward(a: _Array, b: _Array) -> _Array:
        out = np.full((4, *a.shape), np.nan)
        for n, w in enumerate((a, b)):
            out[2 * n, :, 1:] = np.diff(w, axis=1) / dx[:, 1:]
            out[2 * n + 1, 1:, :] = np.diff(w, axis=0) / dy[1:, :]
        out[:, 0, :] = out[:, :, 0] = np.nan
        return out

    return _over_maps(u, v, backward)


def _gradients_in_plane(u: _Array, v: _Array, *, method: str, spacing: tuple[float, float]) -> _Array:
    shape = u.shape[-2:]
    if method == "backward":
        return _backward(u, v, *(np.full(shape, d) for d in spacing))
    return _contour(u, v, plane_cells(spacing))


def _gradients_on_sphere(u: _Array, v: _Array, lat: _Array, lon: _Array, *, method: str, axes: str) -> _Array:
    if method == "backward":
        return _backward(u, v, *sphere_steps(lat, lon, geographic=axes == "east-north"))
    return _contour(u, v, sphere_cells(lat, lon, geographic=axes == "east-north"))


def _geometry(lat: _Array, lon: _Array, *, method: str) -> _Array:
    """Area (m2), latitude and longitude (degrees) of the places of the gradients: (3, J, I)."""
    if method == "backward":
        dy, dx = sphere_steps(lat, lon, geographic=False)
        return np.stack([dy * dx, lat, lon])
    cells = sphere_cells(lat, lon, geographic=False)
    return np.stack([cells.area, cells.lat, cells.lon])


def whole_maps(field: xr.DataArray, dims: tuple[Hashable, ...]) -> xr.DataArray:
    """The field with one chunk along `dims`; where these were split, the others are cut to keep chunks small."""
    chunks = field.variable.chunksizes
    if all(len(chunks.get(d, ())) <= 1 for d in dims):
        return field
    with dask.config.set({"array.chunk-size": _CHUNK}):
        return field.chunk({d: -1 if d in dims else "auto" for d in field.dims})


def _axes_of(siu: xr.DataArray, lat: xr.DataArray) -> str:
    named = str(siu.attrs.get("standard_name", ""))
    return "east-north" if lat.ndim == 1 or named.startswith("eastward") else "grid"


def velocity_gradients(
    siu: xr.DataArray,
    siv: xr.DataArray,
    *,
    method: str = "contour",
    spacing: tuple[float, float] | None = None,
    axes: str | None = None,
) -> xr.DataArray:
    """Gradients of ice velocity: u_x, u_y, v_x, v_y.

    `siu`, `siv` (…, lat|y, lon|x) in m s-1 at the same nodes, NaN on land; mask them where there is too little ice,
    `siu.where(siconc >= 0.15)`, for the drift of open water is none. `method` "contour", between four nodes, on a grid
    one smaller each way, or "backward", on the same grid. `spacing` (dy, dx) in m, for an even plane grid; by default
    positions come from `lat` and `lon` (degrees, 1-D or 2-D). `axes` of the components there: "grid" (along x and y of
    the array) or "east-north"; by default east-north if lat is 1-D or siu is an eastward velocity by its standard_name.

    Returns (…, gradient, lat|y, lon|x) in s-1, float64, lazy for lazy input, NaN where a node is missing; with
    `areacello` (m2), the true area of its cells, and their lat and lon. On the sphere the contour method's axes are
    those of a stereographic plane through the middle of the grid, so that neighbours can be averaged; of a global grid
    cut out one hemisphere and close it, `siu.pad(lon=(0, 1), mode="wrap")`. Raises ValueError for other units or
    options, missing positions, nodes that differ, and for backward differences of east-north components on a
    curvilinear grid. Equations: above.
    """
    dims = horizontal_dims(siu)
    _check(siu, siv, method, axes, dims)
    u = whole_maps(siu, dims)
    v = matched(u, siv)
    if spacing is not None:
        return _labelled_in_plane(u, v, dims, method=method, spacing=spacing)
    lat, lon = coordinate(siu, "lat", "latitude"), coordinate(siu, "lon", "longitude")
    if lat is None or lon is None:
        raise ValueError(
            "gradients need the positions of the nodes: assign lat and lon in degrees as coordinates, or give "
            "spacing=(dy, dx) in m for an even plane grid"
        )
    chosen = _axes_of(siu, lat) if axes is None else axes
    if method == "backward" and chosen == "east-north" and lat.ndim == 2:
        raise ValueError(
            "backward differences need components along the grid, got east-north ones on a curvilinear grid: use "
            "method='contour', which turns them"
        )
    return _labelled_on_sphere(u, v, dims, lat, lon, method=method, axes=chosen)


def _check(siu: xr.DataArray, siv: xr.DataArray, method: str, axes: str | None, dims: tuple[str, str]) -> None:
    for velocity in (siu, siv):
        check_units(velocity, "m s-1")
    for name, value, known in (("method", method, _METHODS), ("axes", axes, (None, *_AXES))):
        if value not in known:
            raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")
    if min(siu.sizes[d] for d in dims) < 2:
        raise ValueError(f"gradients need two nodes each way, got {dict(siu.sizes)}: give the field's map uncut")


def _applied(
    function: Any,
    fields: tuple[xr.DataArray, ...],
    dims: tuple[str, str],
    new: str,
    n: int,
    *,
    method: str,
    **options: Any,
) -> xr.DataArray:
    """Apply function(maps (…, y, x), …) -> (…, n, J, I) to fields, as (…, new, *dims) without coordinates."""
    lost = 0 if method == "backward" else 1
    sizes = {new: n} | {f"cell_{d}": fields[0].sizes[d] - lost for d in dims}
    result: xr.DataArray = xr.apply_ufunc(
        function,
        *fields,
        input_core_dims=[list(dims)] * len(fields),
        output_core_dims=[list(sizes)],
        kwargs={"method": method, **options},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": sizes},
    )
    return result.rename({f"cell_{d}": d for d in dims})


def _labelled_in_plane(
    u: xr.DataArray, v: xr.DataArray, dims: tuple[str, str], *, method: str, spacing: tuple[float, float]
) -> xr.DataArray:
    dy, dx = (float(d) for d in spacing)
    if not (dy > 0 and dx > 0):
        raise ValueError(f"spacing must be positive distances (dy, dx) in m, got {spacing}")
    values = _applied(_gradients_in_plane, (bare(u), v), dims, "gradient", 4, method=method, spacing=(dy, dx))
    area = xr.DataArray(np.full([values.sizes[d] for d in dims], dy * dx), dims=dims)
    return _labelled(values, u, dims, [area], method)


def _labelled_on_sphere(
    u: xr.DataArray,
    v: xr.DataArray,
    dims: tuple[str, str],
    lat: xr.DataArray,
    lon: xr.DataArray,
    *,
    method: str,
    axes: str,
) -> xr.DataArray:
    both = [c.transpose(*dims).astype("f8") for c in xr.broadcast(bare(lat), bare(lon))]
    places = [whole_maps(c.drop_vars(dims, errors="ignore"), dims) for c in both]
    values = _applied(_gradients_on_sphere, (bare(u), v, *places), dims, "gradient", 4, method=method, axes=axes)
    about = _applied(_geometry, tuple(places), dims, "about", 3, method=method)
    return _labelled(values, u, dims, list(about.transpose("about", ...)), method)


def _labelled(
    values: xr.DataArray, siu: xr.DataArray, dims: tuple[str, str], about: list[xr.DataArray], method: str
) -> xr.DataArray:
    """Name the values and their places: the nodes of `siu`, or the cells `about` (area, lat, lon) between these."""
    same = method == "backward"
    kept = {n: c for n, c in siu.coords.items() if same or not set(c.dims) & set(dims)}
    values = values.assign_coords(kept).assign_coords(gradient=list(COMPONENTS))
    if not same:
        between = {d: _between(siu[d]) for d in dims if d in siu.indexes}
        values = values.assign_coords({d: (d, at, siu[d].attrs) for d, at in between.items() if at is not None})
    for field, (name, units, standard) in zip(about, _PLACES, strict=False):
        if not {name, standard} & {*dims, *map(str, values.coords)}:
            values = values.assign_coords({name: (dims, field.data, {"units": units, "standard_name": standard})})
    attrs = {"units": "s-1", "long_name": "gradient of sea-ice velocity", "method": method}
    return described(values, "velocity_gradient", **attrs)


def _between(index: xr.DataArray) -> _Array | None:
    """Coordinates half-way between the nodes along one dimension, if they are numbers."""
    at = np.asarray(index)
    if not np.issubdtype(at.dtype, np.number):
        return None
    at = at.astype("f8")
    if str(index.name) in ("lon", "longitude"):
        at = np.unwrap(at, period=360)
    return np.asarray((at[1:] + at[:-1]) / 2)


def invariants(gradients: xr.DataArray) -> xr.Dataset:
    """Divergence, shear and total deformation of `gradients` (…, gradient, …); see `deformation`."""
    if "gradient" not in gradients.dims or gradients.sizes["gradient"] != len(COMPONENTS):
        raise ValueError(
            f"need the dimension 'gradient' with {COMPONENTS}, got {dict(gradients.sizes)}: use velocity_gradients"
        )
    u_x, *others = (gradients.isel(gradient=n, drop=True) for n in range(4))
    u_y, v_x, v_y = (bare(g) for g in others)
    divergence, stretch, shear = u_x + v_y, u_x - v_y, bare(u_y + v_x)
    squared_shear = stretch**2 + shear**2
    # dask.compute loses a variable that another is computed from (pydata/xarray#11329), hence + 0.
    found = {
        "divergence": (divergence + 0.0, "divergence of sea-ice velocity"),
        "shear": (squared_shear**0.5, "shear rate of sea ice"),
        "total": ((divergence**2 + bare(squared_shear)) ** 0.5, "total deformation rate of sea ice"),
    }
    fields = {n: described(x, n, units="s-1", long_name=long) for n, (x, long) in found.items()}
    fields["divergence"].attrs["standard_name"] = "divergence_of_sea_ice_velocity"
    return xr.Dataset(fields, attrs={"method": str(gradients.attrs.get("method", ""))})


def deformation(siu: xr.DataArray, siv: xr.DataArray, **options: Any) -> xr.Dataset:
    """Divergence, shear and total deformation rate of sea ice.

    Arguments, options, cells and errors as `velocity_gradients`. Returns divergence, shear and total
    (…, lat|y, lon|x) in s-1 (86400 times that is per day), float64, lazy for lazy input. Equations: above.
    """
    return invariants(velocity_gradients(siu, siv, **options))
