"""Compiled loops over ensembles: CRPS by a sorting network, CRPS with missing members, ranks.

    CRPS(x, y) = 1/M sum_i |x_i - y| - c sum_ij |x_i - x_j| / 2,     c = 1/M^2, or 1/(M (M-1)) if fair,

where for sorted members sum_ij |x_i - x_j| = 2 sum_i (2i - M - 1) x_(i). All columns of a tile are sorted
together by the same comparisons (Batcher 1968, odd-even merge), so every loop runs along memory and is
vectorised. Members are centred on y first, which keeps float32 errors near 1e-6.
Ferro 2014, Q. J. R. Meteorol. Soc. 140, 1917; Zamo & Naveau 2018, Math. Geosci. 50, 209.

Arrays are (member, point) and (point); callers flatten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import numba
import numpy as np

_Array = np.ndarray[Any, Any]
_F = TypeVar("_F", bound=Callable[..., Any])

_TILE = 1024  # points sorted together: 50 members of float32 then fit the L2 cache


def _compiled(function: _F) -> _F:
    # NaN and inf keep their meaning; only the order of sums is free.
    compiler = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
    return cast(_F, compiler(function))


@lru_cache(maxsize=32)
def sorting_network(n: int) -> _Array:
    """Pairs (i, j), i < j, with shape (comparison, 2): exchanging them in turn sorts any n numbers."""
    padded = 1 << max(n - 1, 0).bit_length()
    pairs = []
    run = 1
    while run < padded:
        step = run
        while step:
            starts = range(step % run, padded - step, 2 * step)
            lower = [i for s in starts for i in range(s, min(s + step, padded - step))]
            # The numbers missing from n to `padded` stand for +inf, which no exchange moves.
            pairs += [(i, i + step) for i in lower if i // (2 * run) == (i + step) // (2 * run) and i + step < n]
            step //= 2
        run *= 2
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


# The loops take one-dimensional rows, because indexing a matrix twice keeps LLVM from vectorising.


@_compiled
def _centre(members: _Array, obs: _Array, row: _Array, distance: _Array) -> None:
    for j in range(row.size):
        d = members[j] - obs[j]
        row[j] = d
        distance[j] += abs(d)


@_compiled
def _exchange(low: _Array, high: _Array) -> None:
    for j in range(low.size):
        a, b = low[j], high[j]
        low[j] = min(a, b)
        high[j] = max(a, b)


@_compiled
def _add(total: _Array, row: _Array, factor: float) -> None:
    for j in range(total.size):
        total[j] += factor * row[j]


@_compiled
def _crps_tiles(ens: _Array, obs: _Array, network: _Array, pair_weight: float, out: _Array) -> None:
    members, points = ens.shape
    rows = np.empty((members, _TILE), ens.dtype)
    sums = np.empty((2, _TILE), ens.dtype)
    for start in range(0, points, _TILE):
        stop = min(start + _TILE, points)
        width = stop - start
        distance, spread = sums[0, :width], sums[1, :width]
        distance[:] = 0
        spread[:] = 0
        for m in range(members):
            _centre(ens[m, start:stop], obs[start:stop], rows[m, :width], distance)
        for q in range(network.shape[0]):
            _exchange(rows[network[q, 0], :width], rows[network[q, 1], :width])
        for m in range(members):
            _add(spread, rows[m, :width], ens.dtype.type(2 * m - members + 1))
        for j in range(width):
            out[start + j] = distance[j] / members - spread[j] * pair_weight


@_compiled
def _crps_present(ens: _Array, obs: _Array, fair: bool, out: _Array) -> None:
    column = np.empty(ens.shape[0], np.float64)
    for j in range(obs.size):
        n = 0
        distance = 0.0
        for m in range(ens.shape[0]):
            if not np.isnan(ens[m, j]):
                column[n] = ens[m, j] - obs[j]
                distance += abs(column[n])
                n += 1
        least = 2 if fair else 1
        if n < least:
            out[j] = np.nan
            continue
        column[:n].sort()
        spread = 0.0
        for i in range(n):
            spread += (2 * i - n + 1) * column[i]
        out[j] = distance / n - spread / (n * (n - 1) if fair else n * n)


def crps(ens: _Array, obs: _Array, *, fair: bool, skipna: bool) -> _Array:
    """CRPS at each point: `ens` (member, point), `obs` (point), returns (point) in the dtype of `ens`.

    NaN in a member or the observation gives NaN; with `skipna` only the members that are there count, each
    point with its own number of members (NaN if none, or fewer than two if fair).
    """
    members = ens.shape[0]
    out = np.empty(obs.shape, ens.dtype)
    if skipna:
        _crps_present(ens, obs, fair, out)
    else:
        pair_weight = 1 / (members * (members - 1)) if fair else 1 / members**2
        _crps_tiles(ens, obs, sorting_network(members), ens.dtype.type(pair_weight), out)
    return out


@_compiled
def _compare(members: _Array, obs: _Array, below: _Array, equal: _Array, valid: _Array) -> None:
    for j in range(obs.size):
        below[j] += members[j] < obs[j]
        equal[j] += members[j] == obs[j]
        valid[j] &= not np.isnan(members[j])


def ranks(ens: _Array, obs: _Array) -> tuple[_Array, _Array]:
    """Members below and members equal to the observation: `ens` (member, point), `obs` (point), int32.

    Where a member or the observation is NaN the first is -1.
    """
    below, equal = np.zeros((2, *obs.shape), np.int32)
    valid = ~np.isnan(obs)
    for row in ens:
        _compare(row, obs, below, equal, valid)
    return np.where(valid, below, -1), equal
