"""What a stream reads: a store of any size and those beside it, opened where they are read, piece by piece."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import xarray as xr
from dask.base import optimize

from .conventions import area_of

Store: TypeAlias = str | Path | xr.Dataset
_SMALL = 64e6
Tile: TypeAlias = Mapping[str, slice]


@dataclass(frozen=True)
class Reader:
    """Pieces of stores by position: those of a path are opened by whoever reads, so that tasks carry no data.

    Attributes:
        paths: of the store and, by name, of those beside it; None if one of them is a Dataset.
        dataset: all of them together, lazily.
    """

    paths: tuple[tuple[str, str], ...] | None
    dataset: xr.Dataset | None

    @classmethod
    def of(cls, store: Store, beside: Mapping[str, Store]) -> Reader:
        """Open stores; ValueError if those beside it lack places or times of the store."""
        every = {"": store, **beside}
        if not any(isinstance(s, xr.Dataset) for s in every.values()):
            return cls(tuple((name, str(s)) for name, s in every.items()), None)
        return cls(None, _together({name: _opened(s) for name, s in every.items()}))

    @property
    def whole(self) -> xr.Dataset:
        """All variables, lazily."""
        if self.dataset is not None:
            return self.dataset
        assert self.paths is not None
        return _opened_together(self.paths)

    @property
    def knows_area(self) -> bool:
        """Whether the area of cells is the store's own."""
        return "earth_radius" not in self.whole.get("areacello", xr.DataArray()).attrs

    def load(self, variables: Iterable[str], tile: Tile) -> xr.Dataset:
        """A piece of some variables in memory, read by the thread that asks."""
        at = {d: s for d, s in tile.items() if d in self.whole.dims}
        piece = self.whole[list(variables)].isel(at)
        # A copy, or what is loaded would stay with the variables of the store.
        return piece.compute(scheduler="synchronous")

    def carried(self, variables: Iterable[str], tile: Tile) -> bytes:
        """Make a task's own store of a piece: a few hundred bytes for paths, otherwise the piece, lazy if it was."""
        if self.paths is not None:
            return pickle.dumps(self)
        piece = self.whole[list(variables)].isel({d: s for d, s in tile.items() if d in self.whole.dims})
        # Of a graph only what leads to the piece.
        culled: Any = optimize  # dask has no types
        (piece,) = culled(piece)
        return pickled(replace(self, dataset=piece))


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
def _opened_together(paths: tuple[tuple[str, str], ...]) -> xr.Dataset:
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
