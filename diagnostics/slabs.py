"""Many diagnostics of one store in one pass: slab after slab of records, each read once and then let go.

One dask graph of a long run's many diagnostics can hold far more than its chunks at once; a graph for each slab, of
whole chunks, holds no more than a slab and lets a bar say how far it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import xarray as xr

_BYTES = 256e6  # of a slab, if its chunks allow


def slabs_of(stores: tuple[xr.Dataset, ...], dim: str) -> list[slice]:
    """Ranges of records of whole chunks of the first store, each about 256 MB of all stores, at least one chunk."""
    first = stores[0]
    n = first.sizes[dim]
    each = sum(s.nbytes for s in stores) / max(n, 1)
    chunks = [dict(v.variable.chunksizes).get(dim) for v in first.data_vars.values() if v.chunks]
    # The coarsest chunks: those of the others divide them, or are few.
    pieces = min((c for c in chunks if c), key=len, default=(1,) * n)
    found: list[slice] = []
    begin = end = 0
    for size in pieces:
        if end > begin and (end + size - begin) * each > _BYTES:
            found.append(slice(begin, end))
            begin = end
        end += size
    return [*found, slice(begin, end)]


def by_slab(
    function: Callable[..., xr.Dataset],
    *stores: xr.Dataset,
    dim: str = "time",
    title: str = "",
    progress: bool = False,
) -> xr.Dataset:
    """The dataset function(*slabs), computed slab by slab along `dim` and joined along it, in memory.

    `stores` (…, time, …), with the same `dim`, lazy or not; `function` returns variables along `dim`, small ones, for
    they are kept; `progress` shows a bar with this `title`.
    """
    parts = []
    for slab in _tracked(slabs_of(stores, dim), title, progress):
        parts.append(function(*(s.isel({dim: slab}) for s in stores)).compute())  # noqa: PERF401  # one after the other
    return xr.concat(parts, dim, data_vars="minimal", coords="minimal", compat="override", join="exact")


def _tracked(slabs: list[slice], title: str, progress: bool) -> Iterator[slice]:
    if not progress:
        yield from slabs
        return
    from rich.progress import track  # here, for who shows no bar needs none

    yield from track(slabs, title)
