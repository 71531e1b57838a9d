"""Variances in time of data larger than memory, read once: batches of records by class, and moments that merge.

For records x_1..x_n at times tau, moments are n, the means, M2 = sum (x - <x>)^2 and C = sum (x - <x>)(tau - <tau>).
Those of two sets a and b merge exactly (Chan et al. 1983, Am. Stat. 37, 242):

    M2 = M2_a + M2_b + d^2 n_a n_b / n,      C = C_a + C_b + d d_tau n_a n_b / n,      d = <x>_b - <x>_a.

Read class by class, for example one day of the year after the other, each class is finished when the next begins, so
the sum of M2 within classes (variance of anomalies from class means) needs no climatology in memory; and as
anomalies add up to 0 in each class, sum tau x' is the sum of C within classes, which detrends them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

_Array = np.ndarray[Any, Any]


def merged_moments(first: tuple[Any, _Array, _Array], second: tuple[Any, _Array, _Array]) -> tuple[Any, _Array, _Array]:
    """Number, mean and M2 of two sets together, from those of each."""
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = first, second
    n, d = n_a + n_b, mean_b - mean_a
    return n, mean_a + d * (n_b / n), m2_a + m2_b + d**2 * (n_a * n_b / n)


@dataclass(frozen=True)
class _Set:
    """Moments of one set of records, per place."""

    n: int
    tau: float
    mean: _Array
    m2: _Array
    c: _Array

    @classmethod
    def of(cls, x: _Array, tau: _Array) -> _Set:
        """Moments of x (record, …) at times tau (record)."""
        mean = x.mean(0, dtype="f8")
        away = x - mean
        since = tau - tau.mean()
        m2 = np.einsum("t...,t...->...", away, away)
        return cls(len(x), float(tau.mean()), mean, m2, np.einsum("t,t...->...", since, away))

    def merged(self, other: _Set) -> _Set:
        ours, theirs = (self.n, self.mean, self.m2), (other.n, other.mean, other.m2)
        n, mean, m2 = merged_moments(ours, theirs)
        d_tau = other.tau - self.tau
        c = self.c + other.c + (other.mean - self.mean) * (d_tau * self.n * other.n / n)
        return _Set(n, self.tau + d_tau * (other.n / n), mean, m2, c)


class ClassMoments:
    """Sums over time of one field: add its records class by class, then ask for variances.

    Memory is about eight maps of the field, whatever the number of records and classes.
    """

    def __init__(self) -> None:
        self._all: _Set | None = None
        self._open: _Set | None = None
        self._label: int | None = None
        self._within: tuple[_Array, _Array] | None = None

    def add(self, x: _Array, labels: _Array, tau: _Array) -> None:
        """Add records x (record, …) of the classes `labels` (record), equal ones together, at times `tau` (record)."""
        edges = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
        for first, last in pairwise(edges):
            part = _Set.of(x[first:last], tau[first:last])
            if self._label == labels[first] and self._open is not None:
                self._open = self._open.merged(part)
            else:
                self._close()
                self._open, self._label = part, labels[first]

    def _close(self) -> None:
        if self._open is None:
            return
        done, self._open = self._open, None
        self._all = done if self._all is None else self._all.merged(done)
        within = self._within
        self._within = (done.m2, done.c) if within is None else (within[0] + done.m2, within[1] + done.c)

    def _finished(self) -> tuple[_Set, _Array, _Array]:
        self._close()
        if self._all is None or self._within is None:
            raise ValueError("no records were added: a variance needs some")
        return self._all, *self._within

    def variance(self) -> _Array:
        """Variance about the mean of all records, divided by n."""
        total, *_ = self._finished()
        return np.asarray(total.m2 / total.n)

    def anomaly_variance(self, tau: _Array | None = None) -> _Array:
        """Mean square anomaly from the class means; with all times `tau` (record), of the detrended anomalies."""
        total, m2, c = self._finished()
        if tau is not None and np.ptp(tau) > 0:
            m2 = np.maximum(m2 - c**2 / float(((tau - tau.mean()) ** 2).sum()), 0.0)
        return np.asarray(m2 / total.n)


def batches(
    dataset: xr.Dataset, labels: _Array, *, limit: float, dim: str = "time"
) -> Iterator[tuple[_Array, dict[str, _Array]]]:
    """Read all records once, class by class: the indices of some records and their values {name: (time, …)}.

    `dataset` with variables (…, time, …), lazy or not; `labels` (time), the class of each record; `limit`, bytes of
    one batch in memory. Classes follow one another; those larger than a batch go on in the next.
    """
    order = np.argsort(labels, kind="stable")
    per_record = sum(v.nbytes for v in dataset.data_vars.values()) / dataset.sizes[dim]
    size = max(1, int(limit / per_record))
    for first in range(0, order.size, size):
        records = order[first : first + size]
        part = dataset.isel({dim: records}).compute()
        yield records, {str(k): v.transpose(dim, ...).to_numpy() for k, v in part.data_vars.items()}
