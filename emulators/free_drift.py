"""Free drift: ice that goes where the wind blows it and otherwise stays what it is, a baseline for sea-ice emulators.

Ice drifts with 1.74 % of the wind's speed, 25 degrees to its right (the rule of Thorndike and Colony 1982, J. Geophys.
Res. 87; constants of Finn et al. 2024, doi:10.1029/2024MS004395).  What is in a cell at t + 12 h was at the other end
of a path that is followed back in time in small steps (semi-Lagrangian advection; Staniforth and Cote 1991, Mon.
Weather Rev. 119).  Where interpolation leaves [0, 1] in concentration, thickness and damage are cut in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor

from .emulator import Bounds, check_inputs
from .noise import Draws
from .regional import STATES
from .state import Layout, LayoutError, State

__all__ = ["FreeDrift", "advected", "departure", "drift", "interpolated"]

Order = Literal["nearest", "linear", "cubic"]
_BOUNDS = Bounds({"sithick": (0.0, None), "siconc": (0.0, 1.0), "sidamage": (0.0, 1.0)})
_PAIRS = (("uas", "vas"), ("siu", "siv"))


def drift(wind: Tensor, ratio: float = 0.0174, angle: float = -25.0) -> Tensor:
    """The velocity of ice in free drift.

    Args:
        wind: x and y components m/s (2, ...).
        ratio: of the speeds of ice and wind.
        angle: degrees from the wind to the drift, counter-clockwise.

    Returns:
        x and y components m/s, of wind's shape.

    Source: Thorndike and Colony (1982); constants of Finn et al. (2024).
    """
    cosine, sine = ratio * math.cos(math.radians(angle)), ratio * math.sin(math.radians(angle))
    return torch.stack((cosine * wind[0] - sine * wind[1], sine * wind[0] + cosine * wind[1]))


def departure(start: Tensor, end: Tensor, duration: float, spacing: float, steps: int) -> tuple[Tensor, Tensor]:
    """Where what is in the cells at the end was at the start, by Euler steps back in time.

    Args:
        start, end: velocity at both times, x component first, m/s (2, batch, y, x); between them it is linear in time,
            and between cells in space.
        duration: from start to end, s.
        spacing: of the cells, m.
        steps: number of steps.

    Returns:
        Rows and columns, in cells (batch, y, x) each, on the grid: what lies beyond is what is at its edge.

    Source: Staniforth and Cote (1991).
    """
    height, width = start.shape[-2:]
    line = [torch.arange(n, dtype=start.dtype, device=start.device) for n in (height, width)]
    row, column = (v.expand(start.shape[1:]) for v in torch.meshgrid(*line, indexing="ij"))
    for k in range(steps):
        late = 1 - k / steps
        u, v = interpolated((late * end + (1 - late) * start).movedim(0, 1), row, column).unbind(1)
        there = duration / steps / spacing
        row, column = (row - there * v).clamp(0, height - 1), (column - there * u).clamp(0, width - 1)
    return row, column


def advected(ice: Tensor, row: Tensor, column: Tensor, order: Order = "linear") -> Tensor:
    """Thickness, concentration and damage, moved.

    Args:
        ice: sithick m, siconc, sidamage (batch, 3, y, x).
        row, column: where each cell's ice was, see `departure`.
        order: of the interpolation.

    Returns:
        Of ice's shape; thickness and damage times clip(c, 0, 1) / (max(c, 0) + 1e-7), concentration clipped.

    Source: Finn et al. (2024).
    """
    h, c, damage = interpolated(ice, row, column, order).unbind(1)
    inside = c.clamp(0, 1)
    share = inside / (c.clamp(min=0) + 1e-7)
    return torch.stack((h * share, inside, damage * share), 1)


def interpolated(maps: Tensor, row: Tensor, column: Tensor, order: Order = "linear") -> Tensor:
    """Values of maps between their cells; what lies beyond the edge is what is at it.

    Args:
        maps: (batch, channel, y, x).
        row, column: in cells (batch, ...).
        order: "nearest", "linear", or "cubic" of Keys (1981, IEEE Trans. Acoust. 29), which passes through all values.

    Returns:
        (batch, channel, ...); differentiable in maps and, but for "nearest", in rows and columns.
    """
    (height, width), flat = maps.shape[-2:], maps.flatten(2)
    total: Tensor | float = 0.0
    for j, by_row in _weights(row, order):
        for i, by_column in _weights(column, order):
            cell = j.clamp(0, height - 1) * width + i.clamp(0, width - 1)
            index = cell.flatten(1)[:, None].expand(-1, maps.shape[1], -1)
            weight = (by_row * by_column).flatten(1)[:, None]
            total = total + weight * flat.gather(2, index)
    assert isinstance(total, Tensor)
    return total.reshape(*maps.shape[:2], *row.shape[1:])


def _weights(place: Tensor, order: Order) -> list[tuple[Tensor, Tensor]]:
    """Neighbours of places, by number, with their weights."""
    if order == "nearest":
        return [((place.detach() + 0.5).floor().long(), torch.ones_like(place))]
    base = place.detach().floor()
    f, at = place - base, base.long()
    if order == "linear":
        return [(at, 1 - f), (at + 1, f)]
    kernels: list[Callable[[Tensor], Tensor]] = [
        lambda s: s * (-0.5 + s * (1 - 0.5 * s)),
        lambda s: 1 + s * s * (-2.5 + 1.5 * s),
        lambda s: s * (0.5 + s * (2 - 1.5 * s)),
        lambda s: s * s * (-0.5 + 0.5 * s),
    ]
    return [(at + n - 1, weight(f)) for n, weight in enumerate(kernels)]


@dataclass(frozen=True)
class FreeDrift:
    """Ice in free drift; an `Emulator` without a network and without noise.

    Drift is that of the wind, or, to know what free drift costs, that of the truth: with a forcing of siu and siv
    instead of uas and vas ice is moved by just that ("perfect" drift).

    Attributes:
        layout: of the state, the fields `regional.STATES`; what comes from land is open water.
        forcing_layout: with uas and vas, or siu and siv, along the grid's axes, at the slots 0 and 1 of `dt` each.
        order: of the interpolation.
        spacing: of the cells, m.
        substep: of the paths.
        dt: how far one step goes.

    Raises:
        LayoutError: for other fields or slots.
        ValueError: for an unknown order, or steps and spacing that are not positive.
    """

    layout: Layout
    forcing_layout: Layout
    order: Order = "linear"
    spacing: float = 12_500.0
    substep: timedelta = timedelta(seconds=1200)
    dt: timedelta = timedelta(hours=12)

    def __post_init__(self) -> None:
        state, forcing = self.layout, self.forcing_layout
        driven = [p for p in _PAIRS if set(p) <= set(forcing.names)]
        got = (state.names, state.slots, len(driven), forcing.slots, forcing.interval, forcing.shape[1:])
        if got != (STATES, (0,), 1, (0, 1), self.dt, state.shape[1:]):
            raise LayoutError(
                f"FreeDrift: wanted states {STATES} at slot 0, a forcing with either {' or '.join(map(str, _PAIRS))} "
                f"at slots (0, 1) of {self.dt} on the same grid {state.shape[1:]}, got {state.names} at {state.slots} "
                f"and {forcing.names} at {forcing.slots} of {forcing.interval} on {forcing.shape[1:]}"
            )
        if self.order not in ("nearest", "linear", "cubic"):
            raise ValueError(f"wanted the order nearest, linear or cubic, got {self.order!r}")
        if self.spacing <= 0 or self.substep <= timedelta(0):
            raise ValueError(f"spacing and substep are positive, got {self.spacing} m and {self.substep}")

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state twelve hours later: moved, drifting with the wind of that time, within bounds."""
        forcing = check_inputs(self, state, forcing)
        assert forcing is not None
        (pair,), driven = [p for p in _PAIRS if set(p) <= set(self.forcing_layout.names)], forcing.data.to(state.data)
        start, end = (
            torch.cat([driven[:, self.forcing_layout.channels(n, slot)] for n in pair], 1).movedim(1, 0)
            for slot in (0, 1)
        )
        if pair == _PAIRS[0]:
            start, end = drift(start), drift(end)
        steps = max(1, round(self.dt / self.substep))
        where = departure(start, end, self.dt.total_seconds(), self.spacing, steps)
        new = torch.cat((advected(state.data[:, :3], *where, self.order), end.movedim(0, 1)), 1)
        data = torch.where(self.layout.mask.to(new.device), new, 0.0)
        return _BOUNDS(state, state.replace(data=data, time=state.time + self.dt), forcing)
