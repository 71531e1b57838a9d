"""Sorting the columns of a matrix all at once, in registers: Batcher's odd-even merge sort, compiled.

A tile is a one-dimensional array of rows of `TILE` numbers; its columns are sorted by exchanges of whole rows, so every
loop runs along memory and is vectorised. Eight rows are loaded, exchanged in registers as far as the network allows and
stored once: three of the steps p, p/2, p/4, … of a merge touch rows r + m p/4, m = 0 … 7, and no others. That is half
the memory traffic of one exchange after the other. Batcher 1968, AFIPS Spring Joint Comput. Conf. 32, 307.

An exchange is a permutation whatever it compares, so NaN is moved but never lost or doubled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

_Array = np.ndarray[Any, Any]
_F = TypeVar("_F", bound=Callable[..., Any])

TILE = 512
"""Columns of a tile: 50 rows of float32 then fit into half of a small L2 cache."""


_FAST = {"nsz", "arcp", "contract", "reassoc"}


def compiled(function: _F) -> _F:
    """Compile with numba, to be kept on disk; NaN and inf keep their meaning, only the order of sums is free."""
    return cast(_F, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)(function))


def inlined(function: _F) -> _F:
    """Compile a long function of numbers into the loops that call it, which are then vectorised."""
    return cast(_F, numba.njit(inline="always", nogil=True, error_model="numpy", fastmath=_FAST)(function))


def padded(rows: int) -> int:
    """Rows that a tile must have for `rows` of numbers: the next power of 2, at least 8."""
    return max(8, 1 << max(rows - 1, 0).bit_length())


@compiled
def _exchange(a: float, b: float) -> tuple[float, float]:
    return (b, a) if b < a else (a, b)


# Distances between rows are constants of each loop: of unknown ones LLVM would have to check that no two rows overlap.


@compiled
def _sort_8(t: _Array) -> None:
    """Sort 8 neighbouring rows."""
    n = TILE
    for j in range(n):
        a, b, c, d = t[j], t[n + j], t[2 * n + j], t[3 * n + j]
        e, f, g, h = t[4 * n + j], t[5 * n + j], t[6 * n + j], t[7 * n + j]
        (a, b), (c, d), (e, f), (g, h) = _exchange(a, b), _exchange(c, d), _exchange(e, f), _exchange(g, h)
        (a, c), (b, d), (e, g), (f, h) = _exchange(a, c), _exchange(b, d), _exchange(e, g), _exchange(f, h)
        (b, c), (f, g) = _exchange(b, c), _exchange(f, g)
        (a, e), (b, f), (c, g), (d, h) = _exchange(a, e), _exchange(b, f), _exchange(c, g), _exchange(d, h)
        (c, e), (d, f) = _exchange(c, e), _exchange(d, f)
        (b, c), (d, e), (f, g) = _exchange(b, c), _exchange(d, e), _exchange(f, g)
        t[j], t[n + j], t[2 * n + j], t[3 * n + j] = a, b, c, d
        t[4 * n + j], t[5 * n + j], t[6 * n + j], t[7 * n + j] = e, f, g, h


def _merging(rows: int) -> Callable[[_Array], None]:
    """Steps p, p/2 and p/4 of the merge of two runs of p = 4 `rows` rows each."""
    n = rows * TILE

    @compiled
    def merge(t: _Array) -> None:
        for j in range(n):
            a, b, c, d = t[j], t[n + j], t[2 * n + j], t[3 * n + j]
            e, f, g, h = t[4 * n + j], t[5 * n + j], t[6 * n + j], t[7 * n + j]
            (a, e), (b, f), (c, g), (d, h) = _exchange(a, e), _exchange(b, f), _exchange(c, g), _exchange(d, h)
            (c, e), (d, f) = _exchange(c, e), _exchange(d, f)
            (b, c), (d, e), (f, g) = _exchange(b, c), _exchange(d, e), _exchange(f, g)
            t[j], t[n + j], t[2 * n + j], t[3 * n + j] = a, b, c, d
            t[4 * n + j], t[5 * n + j], t[6 * n + j], t[7 * n + j] = e, f, g, h

    return merge


_merge_8, _merge_16, _merge_32 = _merging(2), _merging(4), _merging(8)


@compiled
def _step(t: _Array, start: int, rows: int) -> None:
    """Exchange `rows` rows with the next ones, from row `start` on, skip as many, and so on."""
    n = rows * TILE
    for first in range(start * TILE, t.size - n, 2 * n):
        low, high = t[first : first + n], t[first + n : first + 2 * n]
        for j in range(low.size):
            a, b = low[j], high[j]
            low[j], high[j] = (b, a) if b < a else (a, b)


@compiled
def _steps_4_2_1(t: _Array) -> None:
    """Last three steps of a merge of 32 rows or more, by windows of eleven rows that overlap in three."""
    n = TILE
    for first in range(n, t.size - 11 * n, 8 * n):
        w = t[first : first + 11 * n]
        for j in range(n):
            a, b, c, d, e, f = w[j], w[n + j], w[2 * n + j], w[3 * n + j], w[4 * n + j], w[5 * n + j]
            g, h, i, k, m = w[6 * n + j], w[7 * n + j], w[8 * n + j], w[9 * n + j], w[10 * n + j]
            (d, h), (e, i), (f, k), (g, m) = _exchange(d, h), _exchange(e, i), _exchange(f, k), _exchange(g, m)
            (b, d), (c, e), (f, h), (g, i) = _exchange(b, d), _exchange(c, e), _exchange(f, h), _exchange(g, i)
            (a, b), (c, d), (e, f), (g, h) = _exchange(a, b), _exchange(c, d), _exchange(e, f), _exchange(g, h)
            w[j], w[n + j], w[2 * n + j], w[3 * n + j], w[4 * n + j], w[5 * n + j] = a, b, c, d, e, f
            w[6 * n + j], w[7 * n + j], w[8 * n + j], w[9 * n + j], w[10 * n + j] = g, h, i, k, m
    w = t[t.size - 7 * n : t.size - n]
    for j in range(n):
        a, b, c, d, e, f = w[j], w[n + j], w[2 * n + j], w[3 * n + j], w[4 * n + j], w[5 * n + j]
        (b, d), (c, e) = _exchange(b, d), _exchange(c, e)
        (a, b), (c, d), (e, f) = _exchange(a, b), _exchange(c, d), _exchange(e, f)
        w[j], w[n + j], w[2 * n + j], w[3 * n + j], w[4 * n + j], w[5 * n + j] = a, b, c, d, e, f


@compiled
def _merge(t: _Array, run: int) -> None:
    """Merge two sorted runs of `run` rows each, a power of 2 from 8 on."""
    if run == 8:
        _merge_8(t)
        _step(t, 1, 1)
    elif run == 16:
        _merge_16(t)
        _step(t, 2, 2)
        _step(t, 1, 1)
    elif run == 32:
        _merge_32(t)
        _steps_4_2_1(t)
    else:
        _step(t, 0, run)
        rows = run // 2
        while rows > 4:
            _step(t, rows, rows)
            rows //= 2
        _steps_4_2_1(t)


@compiled
def sort_columns(tile: _Array, rows: int) -> None:
    """Sort each column of a tile in place.

    `tile` (padded(rows) * TILE), row after row; those from `rows` on must hold +inf, and do so afterwards.
    """
    total = tile.size // TILE
    for first in range(0, rows, 8):
        _sort_8(tile[first * TILE : (first + 8) * TILE])
    run = 8
    while run < total:
        for first in range(0, total, 2 * run):
            if first + run < rows:  # else there is nothing to merge with
                _merge(tile[first * TILE : (first + 2 * run) * TILE], run)
        run *= 2
