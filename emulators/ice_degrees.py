"""Degree days of a month and a year, from as many temperatures as a chunk of dates needs.

A trailing sum over B blocks of time, block k the degrees of the interval that ends with record k, is for a chunk that
begins at k0, with C blocks, C a divisor of B,

    sum_k = (sum of the B / C chunks before k0) + (blocks k0 .. k) - (blocks k0 - B .. k - B)

so that a chunk is made of itself, of the chunk a window earlier, and of sums over those between, which are kept: dates
in order read every temperature three times, whatever the window, and hold none.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import numpy as np
from dask.utils import SerializableLock
from numpy.typing import NDArray

from .ice_forcing import FREEZING
from .ice_maps import Maps

__all__ = ["DegreeDays"]

_SPARE = 16  # sums kept beyond those of a window, for threads that are not equally far


class DegreeDays:
    """Mean melting and freezing degrees of the last month and year, of blocks of dates (time, 4, y, x).

    Args:
        temperature: K.
        first: position of the record that the first date is.
        every: records in an interval between dates.
        month, year: numbers of intervals that are averaged.
        wet: where there is ocean (y, x).

    Same numbers as `ice_forcing.degree_days` over month * every and year * every records, to rounding.
    """

    def __init__(self, temperature: Maps, first: int, every: int, month: int, year: int, wet: NDArray[Any]) -> None:
        self.temperature, self.first, self.every, self.wet = temperature, first, every, wet
        self.windows = (month, year)
        self.size = math.gcd(month, year)
        self._kept: dict[int, NDArray[Any]] = {}
        self._lock = SerializableLock()

    def __dask_tokenize__(self) -> str:
        return uuid.uuid4().hex

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def __call__(self, block_info: Any = None) -> NDArray[Any]:
        """The dates of one chunk; called by dask."""
        begin, end = block_info[None]["array-location"][0]
        chunk, count = begin // self.size, end - begin
        own = self._degrees(chunk, count).cumsum(1)
        out = np.full((count, 4, *self.wet.shape), np.nan, np.float32)
        for k, window in enumerate(self.windows):
            far = chunk - window // self.size
            before = sum(self._total(c) for c in range(far, chunk))
            sums = before + own - self._degrees(far, count).cumsum(1)
            # Melting may cancel to -1e-16.
            out[:, 2 * k : 2 * k + 2, self.wet] = (sums / (window * self.every)).clip(min=0).swapaxes(0, 1)
        return out

    def _degrees(self, chunk: int, count: int) -> NDArray[Any]:
        """Sums over each interval of degrees above and below freezing, K, (2, interval, cell).

        Intervals before the first record are 0: the formula takes away again what it adds of them.
        """
        begin = self.first + (chunk * self.size - 1) * self.every + 1
        end = begin + count * self.every
        degrees = np.zeros((2, count * self.every, int(self.wet.sum())))
        if end > 0:
            above = self.temperature(slice(max(begin, 0), end)).astype(float) - FREEZING
            degrees[0, max(-begin, 0) :] = above.clip(min=0)
            degrees[1, max(-begin, 0) :] = (-above).clip(min=0)
        sums: NDArray[Any] = degrees.reshape(2, count, self.every, -1).sum(2)
        return sums

    def _total(self, chunk: int) -> NDArray[Any]:
        """Sum over a whole chunk, (2, 1, cell), read once."""
        with self._lock:
            found = self._kept.get(chunk)
        if found is None:
            found = self._degrees(chunk, self.size).sum(1, keepdims=True)
            with self._lock:
                self._kept[chunk] = found
                while len(self._kept) > self.windows[1] // self.size + _SPARE:
                    self._kept.pop(min(self._kept))
        return found
