"""Compiled sums over the layers of each column, beneath labelled fields: one pass over memory, no field of float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from .conventions import bare, horizontal_dims, matched, vertical_dim
from .sorting import compiled

_Array = np.ndarray[Any, Any]


def over_columns(
    function: Callable[..., _Array], fields: Sequence[xr.DataArray], *, like: xr.DataArray, outputs: int = 1
) -> list[xr.DataArray]:
    """Apply function(*fields (…, lev, y, x)) -> (…, y, x), or (output, …, y, x) for more than one, block by block.

    `fields` have dimensions of `like` (…, lev, lat|y, lon|x), the first as many as the result has, and lev; those that
    a field lacks have length 1 for the function. Returns fields (…, lat|y, lon|x), float64, lazy for lazy fields, with
    those coordinates of `like` that do not depend on the level.
    """
    dim = vertical_dim(like)
    if len(like.variable.chunksizes.get(dim, ())) > 1:
        # "auto" splits the other dimensions where joining the levels would make huge chunks.
        whole = bare(like).chunk({d: -1 if d == dim else "auto" for d in like.dims})
        fields = [matched(whole, f) for f in fields]

    def columns(*arrays: _Array) -> _Array:
        # xarray moved the levels last as a view; before the map is how they lie in memory.
        places = max(x.ndim for x in arrays) - 1
        grid = [x.reshape((1,) * (places + 1 - x.ndim) + x.shape) for x in arrays]
        grid = [np.moveaxis(x.reshape((1,) * max(0, 3 - x.ndim) + x.shape), -1, -3) for x in grid]
        found = function(*grid)
        found = found.reshape(outputs, *found.shape[found.ndim - max(places, 2) :])
        return np.moveaxis(found.reshape(outputs, *found.shape[found.ndim - places :]), 0, -1)

    several: xr.DataArray = xr.apply_ufunc(
        columns,
        *map(bare, fields),
        input_core_dims=[[dim]] * len(fields),
        output_core_dims=[["_output"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_output": outputs}},
    )
    kept = {name: c for name, c in like.coords.items() if dim not in c.dims and set(c.dims) <= set(several.dims)}
    order = [d for d in fields[0].dims if d != dim]
    return [several.isel(_output=k).transpose(*order, ...).assign_coords(kept) for k in range(outputs)]


def over_volume(field: xr.DataArray, area: xr.DataArray, layers: Sequence[xr.DataArray]) -> xr.DataArray:
    """`volume_integrals` of a labelled field (…, lev, lat|y, lon|x), (…, range), float64.

    `area` (lat|y, lon|x) and `layers`, alike, (lev) or (…, lev, lat|y, lon|x), each the thickness within a range. Lazy
    for lazy fields whose columns and maps are not chunked.
    """
    dims = [vertical_dim(field), *horizontal_dims(field)]
    even = set(dims[1:]).isdisjoint(layers[0].dims)
    thick = [d if even else d.broadcast_like(area) for d in layers]

    def sums(values: _Array, cells: _Array, *dz: _Array) -> _Array:
        return volume_integrals(values, cells, *(d[..., None, None] if even else d for d in dz))

    found: xr.DataArray = xr.apply_ufunc(
        sums,
        bare(field),
        area,
        *thick,
        input_core_dims=[dims, dims[1:], *[dims[:1] if even else dims] * len(thick)],
        output_core_dims=[["range"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"range": len(layers)}},
    )
    return found


_WIDTH = 1024  # cells whose rows of float64 stay in the first cache


@compiled
def _integrate(field: _Array, dz: _Array, first: int, total: _Array, count: _Array) -> None:
    """Sum of field (lev, cell) times dz (lev, cell or 1) over the layers of some thickness, and their number.

    For as many cells, from the `first` on, as `total` and `count` are long.
    """
    end = first + total.size
    total[:] = 0.0
    count[:] = 0.0
    for k in range(field.shape[0]):
        row = field[k, first:end]
        if dz.shape[1] == 1:
            d = dz[k, 0]
            if d > 0:
                for j in range(total.size):
                    x = np.float64(row[j])
                    total[j] += x * d if x == x else 0.0
                    count[j] += 1.0 if x == x else 0.0
        else:
            layer = dz[k, first:end]
            for j in range(total.size):
                x = np.float64(row[j])
                there = (x == x) & (layer[j] > 0)
                total[j] += x * layer[j] if there else 0.0
                count[j] += 1.0 if there else 0.0


@compiled
def _integrals(field: _Array, dz: _Array, out: _Array) -> None:
    """As `_integrate`, of all cells, NaN where no layer counts."""
    counts = np.empty(_WIDTH)
    for first in range(0, out.size, _WIDTH):
        total = out[first : first + _WIDTH]
        count = counts[: total.size]
        _integrate(field, dz, first, total, count)
        for j in range(total.size):
            total[j] = total[j] if count[j] > 0 else np.nan


@compiled
def _volume_integrals(field: _Array, dz: _Array, area: _Array, out: _Array) -> None:
    """Sum of field (lev, cell) times dz (range, lev, cell or 1) times area (cell), (range), NaN if nothing counts."""
    totals, counts = np.empty(_WIDTH), np.empty(_WIDTH)
    number = np.zeros(out.size)
    out[:] = 0.0
    for first in range(0, area.size, _WIDTH):
        cells = area[first : first + _WIDTH]
        total, count = totals[: cells.size], counts[: cells.size]
        for b in range(out.size):  # the rows come from memory once
            _integrate(field, dz[b], first, total, count)
            part, layers = 0.0, 0.0
            for j in range(cells.size):
                part += total[j] * cells[j] if count[j] > 0 else 0.0
                layers += count[j]
            out[b] += part
            number[b] += layers
    for b in range(out.size):
        out[b] = out[b] if number[b] > 0 else np.nan


def integral(field: _Array, dz: _Array) -> _Array:
    """Integral (…, y, x) of `field` (…, lev, y, x) over its layers `dz` (…, lev, y or 1, x or 1), float64.

    NaN and layers without thickness do not count; NaN where none counts.
    """
    shape = np.broadcast_shapes(field.shape, dz.shape)
    out = np.empty((*shape[:-3], shape[-2] * shape[-1]))
    values, layers = _values(field, shape), _layers(dz, shape)
    for index in np.ndindex(shape[:-3]):
        _integrals(_at(values, index), _at(layers, index), out[index])
    return out.reshape(*shape[:-3], *shape[-2:])


def volume_integrals(field: _Array, area: _Array, *dz: _Array) -> _Array:
    """Integrals (…, range) of `field` (…, lev, y, x) over `area` (y, x) and each of the layers `dz`, as `integral`.

    `dz` have one shape. The field is passed over once for all of them.
    """
    shape = np.broadcast_shapes(field.shape, dz[0].shape)
    out = np.empty((*shape[:-3], len(dz)))
    values, layers = _values(field, shape), np.stack([_layers(d, shape) for d in dz], axis=-3)
    cells = np.ascontiguousarray(area, dtype="f8").reshape(-1)
    for index in np.ndindex(shape[:-3]):
        _volume_integrals(_at(values, index), _at(layers, index, own=3), cells, out[index])
    return out


def _values(field: _Array, shape: tuple[int, ...]) -> _Array:
    return _flat(field if field.dtype in (np.float32, np.float64) else field.astype("f8"), shape)


def _layers(dz: _Array, shape: tuple[int, ...]) -> _Array:
    """Thickness (…, lev, cell), or (…, lev, 1) if it is that of all cells."""
    if dz.shape[-2:] == (1, 1):
        return np.ascontiguousarray(dz, dtype="f8").reshape(*dz.shape[:-2], 1)
    return _flat(dz.astype("f8", copy=False), shape)


def _flat(field: _Array, shape: tuple[int, ...]) -> _Array:
    """The field (…, lev, y, x) with as many levels and cells as `shape`, cells joined, contiguous."""
    whole = np.ascontiguousarray(np.broadcast_to(field, (*field.shape[:-3], *shape[-3:])))
    return whole.reshape(*whole.shape[:-2], -1)


def _at(field: _Array, index: tuple[int, ...], own: int = 2) -> Any:
    """The `own` last axes of `field` at an index of those before, of which it may have fewer, or of length 1."""
    lead = field.shape[:-own]
    return field[tuple(min(i, n - 1) for i, n in zip(index[len(index) - len(lead) :], lead, strict=True))]
