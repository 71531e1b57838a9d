"""What a stream reads: a store of any size and those beside it, opened where they are read, piece by piece."""

from __future__ import annotations

import math
import pickle
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import xarray as xr
import zarr
from dask.base import optimize
from zarr.buffer.cpu import NDBuffer

from .chunks import Variable, blocks, within
from .conventions import area_of

Store: TypeAlias = str | Path | xr.Dataset
_SMALL = 64e6
Tile: TypeAlias = Mapping[str, slice]
_Array = np.ndarray[Any, Any]


class Space(threading.local):
    """Arrays that a thread reads tiles into, one after the other; each thread has its own.

    Fresh memory for every tile would cost half as much as decoding it. The next tile overwrites what is read, so what
    is kept must be `apart`.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, _Array] = {}

    def read(self, field: xr.DataArray, stored: zarr.Array[Any] | None, tile: Tile) -> xr.DataArray:
        """A variable of a `tile`, piece by piece, decoded into place if the array is known that it is `stored` in.

        As it is if it is in memory, lazy for dask, or a single piece to copy.
        """
        variable = Variable.of(field)
        sizes, steps = {str(d): n for d, n in field.sizes.items()}, variable.pieces()
        if not variable.stored or field.chunks is not None or (stored is None and steps == sizes):
            return field
        values = self._array(str(field.name), field.shape, field.dtype)
        for at in blocks(sizes, steps):
            part = values[tuple(at.get(d, slice(None)) for d in sizes)]
            if stored is None:
                part[...] = field[at].to_numpy()
            else:
                whole = within(tile, at)
                place = tuple(whole.get(d, slice(None)) for d in sizes)
                stored.get_basic_selection(place, out=NDBuffer.from_numpy_array(part))
        return field.copy(data=values)

    def _array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Array:
        size, have = math.prod(shape), self._arrays.get(name)
        if have is None or have.size < size or have.dtype != dtype:
            have = self._arrays[name] = np.empty(size, dtype)
        return have[:size].reshape(shape)

    def apart(self, state: xr.Dataset) -> xr.Dataset:
        """The state, or a copy if it shows values of the tile itself."""
        values = [v.values for v in state.variables.values()]
        shared = any(np.may_share_memory(v, a) for v in values for a in self._arrays.values())
        return state.copy(deep=True) if shared else state


@dataclass(frozen=True)
class Reader:
    """Pieces of stores by position: those of a path are opened by whoever reads, so that tasks carry no data.

    Attributes:
        paths: of the store and, by name, of those beside it; None if one of them is a Dataset.
        dataset: all of them together, lazily.
        path: of the store; None if it is a Dataset.
        opening: which opening of them it is: a process opens paths once for each, as stores may have grown in between.
    """

    paths: tuple[tuple[str, str], ...] | None
    dataset: xr.Dataset | None
    path: str | None
    opening: str = field(default_factory=lambda: uuid4().hex)

    @classmethod
    def of(cls, store: Store, beside: Mapping[str, Store]) -> Reader:
        """Open stores; ValueError if those beside it lack places or times of the store."""
        every = {"": store, **beside}
        path = None if isinstance(store, xr.Dataset) else str(store)
        if not any(isinstance(s, xr.Dataset) for s in every.values()):
            return cls(tuple((name, str(s)) for name, s in every.items()), None, path)
        return cls(None, _together({name: _opened(s) for name, s in every.items()}), path)

    @property
    def whole(self) -> xr.Dataset:
        """All variables, lazily."""
        if self.dataset is not None:
            return self.dataset
        assert self.paths is not None
        return _opened_together(self.paths, self.opening)

    @property
    def knows_area(self) -> bool:
        """Whether the area of cells is the store's own."""
        return "earth_radius" not in self.whole.get("areacello", xr.DataArray()).attrs

    def load(self, variables: Iterable[str], tile: Tile, space: Space) -> xr.Dataset:
        """A piece of some variables in memory, read by the thread that asks, until it reads another into the space."""
        at = {d: s for d, s in tile.items() if d in self.whole.dims}
        piece = self.whole[list(variables)].isel(at)
        piece = piece.assign({n: space.read(v, self._stored(str(n)), tile) for n, v in piece.data_vars.items()})
        # A copy, or what is loaded would stay with the variables of the store.
        return piece.compute(scheduler="synchronous")

    def _stored(self, name: str) -> zarr.Array[Any] | None:
        """The array of a variable of the store, if its values are those that it holds."""
        array, field = None if self.path is None else _group(self.path, self.opening).get(name), self.whole[name]
        if not isinstance(array, zarr.Array) or (array.shape, array.dtype) != (field.shape, field.dtype):
            return None
        return array if field.ndim and _undecoded(field) else None

    def carried(self, variables: Iterable[str], tile: Tile) -> bytes:
        """Make a task's own store of a piece: a few hundred bytes for paths, otherwise the piece, lazy if it was."""
        if self.paths is not None:
            return pickle.dumps(self)
        piece = self.whole[list(variables)].isel({d: s for d, s in tile.items() if d in self.whole.dims})
        # Of a graph only what leads to the piece.
        culled: Any = optimize  # dask has no types
        (piece,) = culled(piece)
        return pickled(replace(self, dataset=piece, path=None))


def _undecoded(field: xr.DataArray) -> bool:
    """Whether xarray returns the numbers of a store as they are: not scaled, and missing only where they are NaN."""
    missing = [field.encoding[k] for k in ("_FillValue", "missing_value") if k in field.encoding]
    scaled = {"scale_factor", "add_offset", "_Unsigned"} & set(field.encoding)
    return field.dtype.kind == "f" and not scaled and all(m != m for m in missing)


def pickled(what: Any) -> bytes:
    """With functions that have no name, as those of a notebook."""
    return bytes(cloudpickle.dumps(what))


def _opened(store: Store) -> xr.Dataset:
    if isinstance(store, xr.Dataset):
        return store
    if "://" not in str(store) and not Path(store).exists():
        raise FileNotFoundError(f"there is no store {str(store)!r}")
    # Without dask: a tile is one read, not a graph.
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    with warnings.catch_warnings():
        # A store without consolidated metadata is as good.
        warnings.simplefilter("ignore", RuntimeWarning)
        opened: xr.Dataset = xr.open_zarr(str(store), chunks=None, decode_times=coder)
    return opened


@lru_cache(maxsize=4)
def _group(path: str, opening: str) -> zarr.Group:
    return zarr.open_group(path, mode="r")


@lru_cache(maxsize=4)
def _opened_together(paths: tuple[tuple[str, str], ...], opening: str) -> xr.Dataset:
    return _together({name: _opened(path) for name, path in paths})


def _together(every: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The store with the variables of the others, named `variable_name`, at the same places and times."""
    store = every[""]
    for name, other in every.items():
        if name:
            other = _aligned(other, store, name).drop_vars([c for c in other.coords if c not in other.dims])
            store = store.assign({f"{v}_{name}": field for v, field in other.data_vars.items()})
    # What says where cells are is read once, not with every tile.
    small = {n: c.compute() for n, c in store.coords.items() if n not in store.indexes and c.nbytes < _SMALL}
    return _located(store.assign_coords(small))


def _aligned(other: xr.Dataset, store: xr.Dataset, name: str) -> xr.Dataset:
    """The other store at the store's coordinates, lazily."""
    for d in set(other.dims) & set(store.dims):
        if d in other.indexes and d in store.indexes:
            where = other.indexes[d].get_indexer(store.indexes[d])
            if (where < 0).any():
                missing = store.indexes[d][where < 0]
                raise ValueError(
                    f"{name!r} lacks {len(missing)} of the {len(where)} values of {d!r} in the store, {missing[0]} "
                    "first: select those that both have, in the same calendar, or interpolate"
                )
            if not np.array_equal(where, np.arange(other.sizes[d])):
                steps = np.unique(np.diff(where))
                run = slice(int(where[0]), int(where[-1]) + 1) if steps.size == 0 or (steps == 1).all() else where
                other = other.isel({d: run})
        elif other.sizes[d] != store.sizes[d]:
            raise ValueError(f"{name!r} has {other.sizes[d]} values along {d!r}, the store {store.sizes[d]}")
    return other


def _located(store: xr.Dataset) -> xr.Dataset:
    """The store with the cells' area, which rows of latitude alone do not tell."""
    if "areacello" in store.variables:
        return store.set_coords("areacello")
    try:
        return store.assign_coords(areacello=area_of(store))
    except ValueError:
        return store  # a product that needs it says so
