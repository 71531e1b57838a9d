"""Compiled loops over ensembles: CRPS of sorted members, CRPS with missing or weighted members, ranks.

    CRPS(x, y) = 1/M sum_i |x_i - y| - c sum_ij |x_i - x_j| / 2,     c = 1/M^2, or 1/(M (M-1)) if fair,

or alpha of the second plus 1 - alpha of the first if almost fair, which is (1 - eps) / (M (M-1)) with eps = (1 - alpha)
/ M (Lang et al. 2024, arXiv:2412.15832); for sorted members sum_ij |x_i - x_j| = 2 sum_i (2i - M - 1) x_(i). With
weights w_i that add up to 1,

    CRPS(x, y) = sum_i w_i |x_i - y| - c sum_ij w_i w_j |x_i - x_j| / 2,     c = 1, or 1/(1 - sum_i w_i^2) if fair,

and the sum over pairs is 2 sum_i w_(i) x_(i) (2 W_(i) - w_(i) - 1) with W_(i) the weight up to and with i. All columns
of a tile are sorted together. Members are centred on y first, which keeps float32 errors near 1e-6.
Ferro 2014, Q. J. R. Meteorol. Soc. 140, 1917; Zamo & Naveau 2018, Math. Geosci. 50, 209.

Arrays are (member, point) and (point); callers flatten.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from .sorting import TILE, compiled, padded, sort_columns

_Array = np.ndarray[Any, Any]

_BLOCK = 16 * TILE  # points whose members stay in the second cache from one loop to the next
_POINTS = 128 * TILE  # points whose scores stay in the third


@compiled
def _centre(rows: _Array, stride: int, obs: _Array, tile: _Array) -> None:
    """Four rows minus the observations: four streams hide each other's wait for memory."""
    n = TILE
    a, b = rows[: obs.size], rows[stride : stride + obs.size]
    c, d = rows[2 * stride : 2 * stride + obs.size], rows[3 * stride : 3 * stride + obs.size]
    for j in range(obs.size):
        y = obs[j]
        tile[j] = a[j] - y
        tile[n + j] = b[j] - y
        tile[2 * n + j] = c[j] - y
        tile[3 * n + j] = d[j] - y


@compiled
def _centre_one(row: _Array, obs: _Array, tile: _Array) -> None:
    for j in range(obs.size):
        tile[j] = row[j] - obs[j]


@compiled
def _add(distance: _Array, spread: _Array, tile: _Array, factor: float, step: float) -> None:
    """Add four sorted rows to the sums of |x| and of factor x."""
    n = TILE
    for j in range(distance.size):
        a, b, c, d = tile[j], tile[n + j], tile[2 * n + j], tile[3 * n + j]
        distance[j] += abs(a) + abs(b) + abs(c) + abs(d)
        spread[j] += factor * (a + b + c + d) + step * (b + c + c + d + d + d)


@compiled
def _add_one(distance: _Array, spread: _Array, row: _Array, factor: float) -> None:
    for j in range(distance.size):
        distance[j] += abs(row[j])
        spread[j] += factor * row[j]


@compiled
def _crps_tiles(
    ens: _Array, stride: int, members: int, obs: _Array, rows: int, pair_weights: _Array, out: _Array
) -> None:
    """CRPS by pair weight (weight, point) of members that begin each `stride` numbers; NaN where it is not finite."""
    real = ens.dtype.type
    tile = np.full(rows * TILE, np.inf, ens.dtype)
    sums = np.empty((2, TILE), ens.dtype)
    fours = members - members % 4
    for start in range(0, obs.size, TILE):
        width = min(TILE, obs.size - start)
        y = obs[start : start + width]
        for m in range(0, fours, 4):
            _centre(ens[m * stride + start :], stride, y, tile[m * TILE :])
        for m in range(fours, members):
            _centre_one(ens[m * stride + start : m * stride + start + width], y, tile[m * TILE :])
        tile[members * TILE :] = np.inf  # NaN may have been moved there
        sort_columns(tile, members)
        distance, spread = sums[0, :width], sums[1, :width]
        distance[:] = 0
        spread[:] = 0
        for m in range(0, fours, 4):
            _add(distance, spread, tile[m * TILE :], real(2 * m - members + 1), real(2))
        for m in range(fours, members):
            _add_one(distance, spread, tile[m * TILE :], real(2 * m - members + 1))
        for k in range(pair_weights.size):
            pair_weight, scores = pair_weights[k], out[k, start : start + width]
            for j in range(width):
                score = distance[j] / members - spread[j] * pair_weight
                scores[j] = score if abs(score) < np.inf else np.nan


@compiled
def _crps_present(ens: _Array, obs: _Array, fair: float, out: _Array) -> None:
    column = np.empty(ens.shape[0], np.float64)
    for j in range(obs.size):
        n = 0
        distance = 0.0
        for m in range(ens.shape[0]):
            if not np.isnan(ens[m, j]):
                column[n] = ens[m, j] - obs[j]
                distance += abs(column[n])
                n += 1
        least = 2 if fair > 0 else 1
        if n < least:
            out[j] = np.nan
            continue
        column[:n].sort()
        spread = 0.0
        for i in range(n):
            spread += (2 * i - n + 1) * column[i]
        pair_weight = (1 - fair) / (n * n) + (fair / (n * (n - 1)) if fair > 0 else 0.0)
        out[j] = distance / n - spread * pair_weight


def _flat(ens: _Array) -> tuple[_Array, int]:
    """One contiguous array that holds all members, and the distance between two: a block of a store needs no copy."""
    if ens.strides[1] != ens.itemsize or ens.strides[0] < ens.itemsize * ens.shape[1]:
        ens = np.ascontiguousarray(ens)
    stride = ens.strides[0] // ens.itemsize
    size = (len(ens) - 1) * stride + ens.shape[1]
    return np.lib.stride_tricks.as_strided(ens, (size,), (ens.itemsize,), writeable=False), stride


@compiled
def _crps_weighted(ens: _Array, weights: _Array, obs: _Array, fair: float, out: _Array) -> None:
    members = ens.shape[0]
    column, share = np.empty(members, np.float64), np.empty(members, np.float64)
    for j in range(obs.size):
        n, total, squares, distance = 0, 0.0, 0.0, 0.0
        for m in range(members):
            x, w = np.float64(ens[m, j]) - obs[j], weights[m, j]
            if w != 0:
                i = n  # insertion keeps each member's weight beside it
                while i > 0 and column[i - 1] > x:
                    column[i], share[i] = column[i - 1], share[i - 1]
                    i -= 1
                column[i], share[i] = x, w
                n += 1
                total += w
                squares += w * w
                distance += w * abs(x)
        spread, below = 0.0, 0.0
        for i in range(n):
            below += 2 * share[i]
            spread += share[i] * column[i] * (below - share[i] - total)
        all_pairs, pairs = total * total, total * total - squares
        if all_pairs > 0 and (pairs > 0 or fair == 0):
            pair_weight = (1 - fair) / all_pairs + (fair / pairs if fair > 0 else 0.0)
            out[j] = distance / total - spread * pair_weight
        else:
            out[j] = np.nan


def crps_weighted(ens: _Array, weights: _Array, obs: _Array, *, fair: float) -> _Array:
    """CRPS of members with `weights` >= 0 (member, point), which need not add up to 1, else as `crps`.

    A member of weight 0 is not there, its value may be NaN; NaN where all weights are 0, or all but one if fair.
    """
    out = np.empty(obs.shape, ens.dtype)
    _crps_weighted(ens, weights, obs, float(fair), out)
    return out


def pair_weight(members: int, fair: float) -> float:
    """Weight c of a pair: 1/M^2 for `fair` 0, 1/(M (M-1)) for 1, and in between if almost fair."""
    return (1 - fair) / members**2 + (fair / (members * (members - 1)) if fair > 0 else 0.0)


def crps(ens: _Array, obs: _Array, *, fair: float, skipna: bool) -> _Array:
    """CRPS at each point: `ens` (member, point), `obs` (point), returns (point) in the dtype of `ens`.

    `fair` is 0 (or False) for the plain score, 1 (or True) for the fair one, alpha for the almost fair one.
    NaN in a member or the observation gives NaN; with `skipna` only the members that are there count, each
    point with its own number of members (NaN if none, or fewer than two if fair).
    """
    if not skipna:
        scores: _Array = _crps_all(ens, obs, pair_weight(len(ens), fair))[0]
        return scores
    out = np.empty(obs.shape, ens.dtype)
    _crps_present(ens, obs, float(fair), out)
    return out


def _crps_all(ens: _Array, obs: _Array, *pair_weights: float) -> _Array:
    out = np.empty((len(pair_weights), *obs.shape), ens.dtype)
    flat, stride = _flat(ens)
    weights = np.array(pair_weights, ens.dtype)
    _crps_tiles(flat, stride, len(ens), np.ascontiguousarray(obs), padded(len(ens)), weights, out)
    return out


@compiled
def _moments(ens: _Array, stride: int, members: int, mean: _Array, m2: _Array) -> None:
    for start in range(0, mean.size, TILE):
        end = min(start + TILE, mean.size)
        means, squares = mean[start:end], m2[start:end]
        means[:] = 0.0
        squares[:] = 0.0
        for m in range(members):
            row = ens[m * stride + start : m * stride + end]
            for j in range(means.size):
                means[j] += np.float64(row[j])
        for j in range(means.size):
            means[j] /= members
        for m in range(members):
            row = ens[m * stride + start : m * stride + end]
            for j in range(means.size):
                away = np.float64(row[j]) - means[j]
                squares[j] += away * away


def moments(ens: _Array) -> _Array:
    """Mean over members and sum of squared deviations from it, (2, point), float64, of `ens` (member, point)."""
    out = np.empty((2, ens.shape[1]))
    flat, stride = _flat(ens)
    _moments(flat, stride, len(ens), out[0], out[1])
    return out


@compiled
def _terms(obs: _Array, scores: _Array, members: int, first: int, out: _Array) -> None:
    """Fill (7, point) from `first` on, of which error holds the mean and variance the sum of squares; 0 for missing."""
    for j in range(obs.size):
        k = first + j
        plain, fair, y = np.float64(scores[0, j]), np.float64(scores[1, j]), np.float64(obs[j])
        error = out[2, k] - y
        there = (plain == plain) & (error == error)
        error = error if there else 0.0
        out[0, k] = plain if there else 0.0
        out[1, k] = fair if there else 0.0
        out[2, k] = error
        out[3, k] = abs(error)
        out[4, k] = error * error
        out[5, k] = out[5, k] / (members - 1) if there else 0.0
        out[6, k] = 1.0 if there else 0.0


@compiled
def _score_terms(
    ens: _Array, stride: int, members: int, obs: _Array, rows: int, pair_weights: _Array, out: _Array
) -> None:
    for first in range(0, obs.size, _BLOCK):
        y, there = obs[first : first + _BLOCK], ens[first:]
        end = first + y.size
        scores = np.empty((2, y.size), ens.dtype)
        _moments(there, stride, members, out[2, first:end], out[5, first:end])
        _crps_tiles(there, stride, members, y, rows, pair_weights, scores)
        _terms(y, scores, members, first, out)


SCORE_TERMS = ("crps", "fair_crps", "error", "absolute_error", "squared_error", "variance", "weight")


def score_terms(ens: _Array, obs: _Array) -> _Array:
    """What scores are means of, at each point: `ens` (member, point), `obs` (point), returns (7, point), float64.

    CRPS, fair CRPS, error, absolute error and squared error of the members' mean, their variance (both without meaning
    for one member), and 1; all are 0 where a member or the observation is missing.
    """
    members = len(ens)
    out = np.empty((len(SCORE_TERMS), *obs.shape))
    pairs = 1 / (members * (members - 1)) if members > 1 else 0.0
    flat, stride = _flat(ens)
    weights = np.array([1 / members**2, pairs], ens.dtype)
    _score_terms(flat, stride, members, np.ascontiguousarray(obs), padded(members), weights, out)
    return out


def score_sums(ens: _Array, obs: _Array, weights: _Array, axes: tuple[int, ...]) -> _Array:
    """Weighted sums over `axes` of what `score_terms` returns, (7, …), those axes of length 1, float64.

    `ens` (member, …), `obs` (…), `weights` (…), each axis as long as that of `obs` or 1. Block by block of points, so
    that no field of terms is made.
    """
    weights = np.broadcast_to(weights, obs.shape)
    out = np.zeros((len(SCORE_TERMS), *(1 if k in axes else n for k, n in enumerate(obs.shape))))
    here = list(range(1, obs.ndim + 1))
    left = [0, *(k for k in here if k - 1 not in axes)]
    for at in _point_blocks(obs.shape):
        y = obs[at]
        terms = score_terms(ens[:, *at].reshape(len(ens), -1), y.reshape(-1)).reshape(-1, *y.shape)
        into = out[:, *(slice(None) if k in axes else s for k, s in enumerate(at))]
        into += np.einsum(terms, [0, *here], weights[at], here, left).reshape(into.shape)
    return out


def _point_blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Blocks of neighbouring points of an array, few enough for the third cache."""
    steps, most = [], _POINTS
    for n in reversed(shape):
        steps.append(max(1, min(n, most)))
        most //= max(n, 1)
    steps.reverse()
    for starts in product(*(range(0, n, step) for n, step in zip(shape, steps, strict=True))):
        yield tuple(slice(k, k + step) for k, step in zip(starts, steps, strict=True))


@compiled
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
