"""Noise with memory that needs no state: a moving average of past draws.

    r(t) = Σ_j w_j ξ(n - j),      w_j ∝ exp(-j Δ / τ),  Σ w² = 1,      n = ⌊t / Δ⌋,

has unit variance and the correlation exp(-lag / τ) of a first-order autoregression, up to its cut at four
memories, but any date can be drawn alone: by another member, in another order, after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import cftime
import numpy as np
import torch
from torch import Tensor

from ..emulators import Draws, Layout
from .perturb import Perturbation

__all__ = ["Remembered"]


@dataclass(frozen=True, eq=False)
class Remembered:
    """A perturbation that remembers: unit variance, correlated in time; itself a `Perturbation`.

    Attributes:
        kind: what is drawn anew every `spacing`, e.g. `Diffused(5e5)`.
        memory: τ, the time over which correlation falls to 1/e.
        spacing: Δ; the noise is constant in between. Dates are counted from year 1 of their calendar, so records
            of uneven spacing share one series.

    Raises ValueError for a memory or spacing that is not positive.
    """

    kind: Perturbation
    memory: timedelta
    spacing: timedelta = timedelta(days=5)
    _kept: dict[Any, tuple[Layout, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.memory <= timedelta(0) or self.spacing <= timedelta(0):
            raise ValueError(f"Remembered needs memory > 0 and spacing > 0, got {self.memory} and {self.spacing}")

    def __reduce__(self) -> tuple[Any, ...]:  # draws are made again, not pickled
        return Remembered, (self.kind, self.memory, self.spacing)

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """Noise with memory, (member, channel, y, x)."""
        epoch = time.replace(year=1, month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
        tick, ratio = (time - epoch) // self.spacing, self.spacing / self.memory
        weights = np.exp(-np.arange(math.ceil(4 / ratio) + 1) * ratio)
        weights /= np.sqrt((weights**2).sum())
        total = torch.zeros(len(members), *layout.shape)
        for j, w in enumerate(weights):
            date = epoch + (tick - j) * self.spacing
            total = total.add(self._drawn(layout, tuple(members), date, noise, len(weights)), alpha=float(w))
        return total

    def _drawn(
        self, layout: Layout, members: tuple[int, ...], date: cftime.datetime, noise: Draws, lags: int
    ) -> Tensor:
        """One draw, kept while its memory lasts."""
        key = (id(layout.grid), layout.fields, layout.slots, members, date, noise)
        if key not in self._kept:
            if len(self._kept) > 4 * lags:  # a few batches or time slots in turn, each with its own dates
                for old in list(self._kept)[: 2 * lags]:
                    del self._kept[old]
            self._kept[key] = (layout, self.kind.draw(layout, members, date, noise))  # the layout keeps its id
        return self._kept[key][1]
