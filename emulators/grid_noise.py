"""A selective filter against noise at the scale of the grid, as a correction around any emulator.

An emulator that was trained on single steps has seen little at the scale of two cells, and may neither damp nor
transport it: noise from its own errors, or from analyses, then accumulates over hundreds of steps. The filter of
Shapiro (1970, doi:10.1016/0021-9991(70)90050-9) takes it away direction by direction,

    x ← x - s (-δ²/4)^n x,     response to a wave of wavenumber k:  1 - s sin^2n(k Δx / 2)

With n = 4 waves of four cells keep 94 % at s = 1, those of six 99.6 %; waves of two cells keep 1 - s. Nothing flows
through coasts, and fluxes between cells are weighted with their smaller area, so that the integral over the area of
every level is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .state import State


@dataclass(frozen=True)
class GridNoise:
    """Damp noise of two cells after every step: `Corrected(emulator, GridNoise(0.2))`.

    Attributes:
        strength: s, the share of a wave of two cells that is taken away at each step and in each direction, in (0, 1].
        order: n; the larger, the fewer waves are touched.
        variables: which; default all. Bounded variables stay within their bounds but for rounding only with order 1.

    Raises ValueError for a strength or an order that makes no sense, KeyError for variables that are not there.
    """

    strength: float
    order: int = 4
    variables: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or self.order < 1:
            raise ValueError(f"GridNoise: wanted 0 < strength <= 1 and order >= 1, got {self}")

    def __call__(self, before: State, after: State, forcing: State | None) -> State:
        """`after` without so much of its noise; land bitwise the same."""
        layout, data = after.layout, after.data
        names = layout.names if self.variables is None else self.variables
        rows = torch.cat(
            [
                torch.arange(*layout.channels(n, s).indices(data.shape[1]))
                for s in range(len(layout.slots))
                for n in names
            ]
        ).to(data.device)
        wet = layout.mask.to(data.device)[rows]
        area = torch.as_tensor(layout.grid["areacello"].values, dtype=data.dtype, device=data.device)
        x = data[:, rows]
        for dim, around in ((-1, _closes_upon_itself(after)), (-2, False)):
            open_, smaller = wet & wet.roll(-1, dim), torch.minimum(area, area.roll(-1, dim))
            if not around:
                open_.select(dim, -1).fill_(False)
            y = x
            for _ in range(self.order):
                flux = torch.where(open_, smaller * (y.roll(-1, dim) - y), 0.0)
                y = (flux.roll(1, dim) - flux) / (4 * area)
            x = x - self.strength * y
        return after.replace(data=data.index_copy(1, rows, torch.where(wet, x, data[:, rows])))


def _closes_upon_itself(state: State) -> bool:
    """Whether the last column lies beside the first."""
    lon = state.layout.grid["lon"].values
    row = lon if lon.ndim == 1 else lon[lon.shape[0] // 2]
    if len(row) < 3:
        return False
    period = float(state.layout.grid.attrs.get("zonal_period", 360.0))
    width = float((row[1] - row[0]) % period)
    return bool(abs((row[0] - row[-1]) % period - width) < 0.5 * width)
