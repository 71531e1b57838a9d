"""Rank histograms: where the observation falls among the members.

The rank of y is the number of members below it, 0 … M; for a y that is like another member all M + 1 ranks
are equally likely. Ties (sea ice of 0 or 1, integers) are broken at random or shared out:

    random       one of the k + 1 ranks open to one tied with k members, by a hash of seed and place
    fractional   1/(k + 1) for each of them

The hash depends on where a value is in the whole array, so chunks, threads and their order change nothing.
Hamill 2001, Mon. Weather Rev. 129, 550. The hash is SplitMix64 (Steele et al. 2014, OOPSLA).
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from . import kernels
from .conventions import bare, described, matched
from .skill import Dims, over_members, paired, reduced

_Array = np.ndarray[Any, Any]


def _uniform(index: _Array, seed: int) -> _Array:
    """Hash of (seed, index), uniform on [0, 1), float64."""
    golden = 0x9E3779B97F4A7C15
    z = index.astype(np.uint64) + np.uint64((seed + 1) * golden % 2**64)
    z *= np.uint64(golden)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def _break_ties(below: _Array, equal: _Array, index: _Array, *, seed: int) -> _Array:
    return np.where(below < 0, below, below + (_uniform(index, seed) * (equal + 1)).astype(below.dtype))


def _index(field: xr.DataArray) -> xr.DataArray:
    """Position of each value in the whole array, int64, lazy if the field is."""
    index = xr.DataArray(np.int64(0))
    stride = 1
    for d in reversed([str(d) for d in field.dims]):
        steps = xr.DataArray(np.arange(field.sizes[d], dtype=np.int64) * stride, dims=d)
        index = index + matched(field, steps)
        stride *= field.sizes[d]
    return index.transpose(*field.dims)


def _count(lowest: _Array, tied: _Array, weight: _Array, *, kept: tuple[int, ...], members: int) -> _Array:
    """Histogram over all axes but `kept` (their positions), ranks last; reduced axes keep length 1."""
    shape = tuple(n if axis in kept else 1 for axis, n in enumerate(lowest.shape))
    cell = np.broadcast_to(np.arange(np.prod(shape, dtype=int)).reshape(shape), lowest.shape)
    valid = (lowest >= 0) & np.isfinite(weight)
    share = weight[valid] / (tied[valid] + 1)
    first = cell[valid] * (members + 2) + lowest[valid]
    size = int(np.prod(shape)) * (members + 2)
    if not tied.any():  # exact zeros where nothing is counted
        return np.bincount(first, share, size).reshape(*shape, members + 2)[..., :-1]
    # A value spread over ranks first … first + tied is a step up and a step down.
    up, down = (np.bincount(at, share, size) for at in (first, first + tied[valid] + 1))
    counts = np.cumsum((up - down).reshape(*shape, members + 2), axis=-1)[..., :-1]
    return np.maximum(counts, 0.0)


def rank_histogram(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    member_dim: str = "member",
    dim: Dims = None,
    ties: str = "random",
    seed: int = 0,
    weights: xr.DataArray | None = None,
) -> xr.DataArray:
    """How often (or with how much weight) the observation has each rank among the members.

    `obs` (…) and `ens` (member, …) as for `crps_ensemble`; `dim` to count over, all by default; `ties`
    "random" (with `seed`) or "fractional"; `weights` (…) as an area. Returns (…, rank) with rank = 0 … M,
    float64; places with a missing member or observation are not counted. Raises ValueError for unknown
    `ties` and as `crps_ensemble`. Source: above.
    """
    if ties not in ("random", "fractional"):
        raise ValueError(f"ties must be 'random' or 'fractional', got {ties!r}")
    y, x = paired(obs, ens, member_dim)
    dims = reduced(dim, y)
    members = x.sizes[member_dim]
    lowest, tied = _ranked(y, x, member_dim, seed=seed if ties == "random" else None)
    weight = xr.ones_like(lowest, dtype="f8") if weights is None else spread_weights(lowest, weights)
    counts = histogram(lowest, weight, dims=dims, highest=members, name="rank", tied=tied)
    coords = {d: obs.indexes[d] for d in counts.dims if d in obs.indexes} | {"rank": np.arange(members + 1)}
    attrs = {
        "units": "1" if weights is None else str(weights.attrs.get("units", "1")),
        "long_name": "rank histogram",
    }
    return described(counts.assign_coords(coords), "rank_histogram", **attrs, ties=ties)


def _ranked(
    obs: xr.DataArray, ens: xr.DataArray, member_dim: str, *, seed: int | None
) -> tuple[xr.DataArray, xr.DataArray]:
    """Lowest rank of each observation, -1 where one is missing, and how many more are open to it."""
    lowest, tied = over_members(kernels.ranks, obs, ens, member_dim, dtype="i4", outputs=2)
    if seed is None:
        return lowest, tied
    arrays = lowest, tied, _index(lowest)
    rank = xr.apply_ufunc(_break_ties, *arrays, kwargs={"seed": seed}, dask="parallelized", output_dtypes=["i4"])
    return rank, xr.zeros_like(tied)


def matched_weights(field: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    """Weights on a subset of the dimensions of `field`, float64, chunked alike; ValueError for another dimension."""
    if not set(weights.dims) <= set(field.dims):
        raise ValueError(f"weights {weights.dims} have dimensions that the field {field.dims} lacks: reduce them")
    return matched(field, weights).astype("f8")


def spread_weights(field: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    """Weights on a subset of the dimensions of `field`, spread over all of them; ValueError for another dimension."""
    return (matched_weights(field, weights) * xr.ones_like(field, dtype="f8")).transpose(*field.dims)


def histogram(
    labels: xr.DataArray,
    weight: xr.DataArray,
    *,
    dims: list[str],
    highest: int,
    name: str,
    tied: xr.DataArray | None = None,
) -> xr.DataArray:
    """Weight of each label 0 … `highest` over `dims`, with the labels along a last dimension `name`, float64.

    `labels` (…) integers, those below 0 not counted; `weight` (…); `tied` (…), over how many more labels from this one
    on a weight is shared out, 0 by default. Counts each chunk by itself and adds the chunks.
    """
    tied = xr.zeros_like(labels) if tied is None else tied
    kept = tuple(axis for axis, d in enumerate(labels.dims) if d not in dims)
    counts = _tiles(labels, tied, weight, kept=kept, members=highest)
    return xr.DataArray(counts, dims=[*(str(labels.dims[axis]) for axis in kept), name])


def _tiles(lowest: xr.DataArray, tied: xr.DataArray, weight: xr.DataArray, **options: Any) -> Any:
    """Histogram per chunk, then the sum over the chunks of the reduced axes."""
    reduced_axes = tuple(axis for axis in range(lowest.ndim) if axis not in options["kept"])
    if lowest.chunks is None:
        return _count(lowest.to_numpy(), tied.to_numpy(), weight.to_numpy(), **options).sum(reduced_axes)
    chunks = [c if axis in options["kept"] else (1,) * len(c) for axis, c in enumerate(lowest.chunks)]
    ranks = (options["members"] + 1,)
    tied, weight = (bare(f).chunk(lowest.variable.chunksizes) for f in (tied, weight))
    map_blocks: Any = da.map_blocks  # dask has no types
    parts = map_blocks(
        _count,
        lowest.data,
        tied.data,
        weight.data,
        chunks=(*chunks, ranks),
        new_axis=lowest.ndim,
        dtype="f8",
        meta=np.empty((0,) * (lowest.ndim + 1)),
        **options,
    )
    return parts.sum(axis=reduced_axes)
