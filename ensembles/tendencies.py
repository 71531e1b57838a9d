"""Stochastic tendencies: every step's increment is multiplied by 1 + r, with r correlated in space and time.

    x[k+1] = x[k] + (1 + r) (M(x[k]) - x[k]),        r = taper · clip(amplitude · g, ±limit)

after Buizza, Miller and Palmer (1999, Q. J. R. Meteorol. Soc. 125) and, for the pattern g, Palmer et al.
(2009, ECMWF Technical Memorandum 598).  One r serves all variables and levels of a column, which keeps
the balance between them; it vanishes at coasts, where increments are largest and least uncertain in sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cftime
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..emulators import Draws, Field, Layout, State
from ..emulators.emulator import Wrapped
from ..emulators.grids import EARTH_RADIUS
from .metric import on_sphere
from .perturb import Perturbation

__all__ = ["StochasticTendencies", "coast_distance"]


@dataclass(frozen=True)
class StochasticTendencies(Wrapped):
    """An emulator with stochastic tendencies; an `Emulator`.

    Noise is drawn of the stream "tendencies" for the time a step starts from: r is a function of (noise, member, time).
    A step whose increment is zero is not perturbed; land stays 0.

    Attributes:
        emulator: what is perturbed.
        kind: the pattern g of unit variance, e.g. `Remembered(Diffused(5e5), timedelta(days=10), emulator.dt)`.
        amplitude: standard deviation of r before it is clipped and tapered.
        limit: largest |r|, below 1 so that no increment changes its sign.
        coast: distance in m over which r rises from 0 at land to its full size; 0 for no taper.

    Raises ValueError unless amplitude >= 0, 0 < limit < 1 and coast >= 0.
    """

    kind: Perturbation
    amplitude: float = 0.3
    limit: float = 0.9
    coast: float = 0.0

    def __post_init__(self) -> None:
        if self.amplitude < 0 or not 0 < self.limit < 1 or self.coast < 0:
            raise ValueError(
                f"wanted amplitude >= 0, 0 < limit < 1 and coast >= 0, got {self.amplitude}, {self.limit} and "
                f"{self.coast}"
            )

    def factor(self, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """r of the step that starts at `time`, (member, 1, y, x), float32; 0 on land."""
        drawn = self.kind.draw(self._pattern, members, time, noise.stream("tendencies"))
        return (self.amplitude * drawn).clamp(-self.limit, self.limit) * self._taper

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """One step of the wrapped emulator, its increments multiplied by 1 + r."""
        new, layout = self.emulator.step(state, forcing, noise), self.layout
        r = self.factor(state.members, state.time, noise).to(new.data)
        data, slots, size = new.data.clone(), layout.slots, layout.shape[0] // len(layout.slots)
        newest = state.data[:, -size:]
        for k, slot in enumerate(slots):
            if (slots[-1] - slot) * layout.interval < self.dt:  # older slots were there before this step
                c = slice(k * size, (k + 1) * size)
                data[:, c] = new.data[:, c] + r * (new.data[:, c] - newest)
        return new.replace(data=data)

    @cached_property
    def _pattern(self) -> Layout:
        return Layout((Field("r"),), self.layout.grid)

    @cached_property
    def _taper(self) -> Tensor:
        if not self.coast:
            return torch.ones(self._pattern.shape[1:])
        near = np.minimum(coast_distance(self._pattern) / self.coast, 1.0)
        return torch.from_numpy(np.sin(0.5 * np.pi * near) ** 2).float()


def coast_distance(layout: Layout) -> np.ndarray:
    """Distance of every cell of the first level to the nearest land cell, (y, x) in m; 0 on land, inf without land."""
    f = layout.fields[0]
    (lat, lon), wet = layout.position(f), layout.field_mask(f)[0]
    if wet.all():
        return np.full(wet.shape, np.inf)
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    land = ~wet & np.isfinite(lat) & np.isfinite(lon)
    turns = (0.0,) if period == 360.0 else (-period, 0.0, period)
    shores = np.concatenate([on_sphere(lat[land], lon[land] + turn) for turn in turns])
    chord = cKDTree(shores).query(on_sphere(lat[wet], lon[wet]))[0]
    out = np.zeros(wet.shape)
    out[wet] = 2 * EARTH_RADIUS * np.arcsin(np.minimum(chord / (2 * EARTH_RADIUS), 1.0))
    return out
