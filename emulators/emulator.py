"""The Emulator protocol, the simplest emulator, and wrappers that change one.

x[k+1] = M(x[k], f[k], ξ[k]): one pure, batched, differentiable step. Nothing inside a step switches
gradients off, keeps state, or depends on which members happen to share the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

import cftime
import torch
from torch import Tensor

from .noise import Draws
from .state import Layout, LayoutError, State


@runtime_checkable
class Emulator(Protocol):
    """Anything that advances a State.

    Attributes:
        layout: of the states it takes and returns.
        forcing_layout: of the forcing it wants, None if it wants none.
        dt: how far one step goes.
    """

    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def forcing_layout(self) -> Layout | None: ...  # noqa: D102
    @property
    def dt(self) -> timedelta: ...  # noqa: D102

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state one `dt` later, for the same members."""
        ...


class Forcing(Protocol):
    """Anything that gives the forcing of a time: a `Source`, or a nature run's own weather."""

    def at(self, time: cftime.datetime, members: Sequence[int]) -> State:
        """The forcing to use for the step that starts at `time`, one row per member."""
        ...


@dataclass(frozen=True)
class Persistence:
    """Tomorrow is like today."""

    layout: Layout
    dt: timedelta
    forcing_layout: Layout | None = None

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The same values, `dt` later."""
        return state.replace(time=state.time + self.dt)


class Correction(Protocol):
    """What a `Corrected` emulator does to each new state."""

    def __call__(self, before: State, after: State, forcing: State | None) -> State:
        """The corrected `after`; differentiable."""
        ...


@dataclass(frozen=True)
class Wrapped:
    """What every emulator around another one has in common: layouts and step length are those of the one inside."""

    emulator: Emulator

    @property
    def layout(self) -> Layout:
        """Of the wrapped emulator."""
        return self.emulator.layout

    @property
    def forcing_layout(self) -> Layout | None:
        """Of the wrapped emulator."""
        return self.emulator.forcing_layout

    @property
    def dt(self) -> timedelta:
        """Of the wrapped emulator."""
        return self.emulator.dt


@dataclass(frozen=True)
class Corrected(Wrapped):
    """An emulator whose every step is followed by a correction, e.g. `Corrected(emulator, Bounds(...))`."""

    correction: Correction

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """One step of the wrapped emulator, corrected."""
        return self.correction(state, self.emulator.step(state, forcing, noise), forcing)


@dataclass(frozen=True)
class Bounds:
    """Keep variables within physical limits in wet cells, e.g. `Bounds({"thetao": (-2.0, 40.0)})`."""

    limits: Mapping[str, tuple[float | None, float | None]]

    def __call__(self, before: State, after: State, forcing: State | None) -> State:
        """`after`, clamped in every time slot; land stays 0."""
        layout, data = after.layout, after.data.clone()
        mask = layout.mask.to(data.device)
        for name, (low, high) in self.limits.items():
            for slot in range(len(layout.slots)):
                c = layout.channels(name, slot)
                data[:, c] = torch.where(mask[c], after.data[:, c].clamp(low, high), after.data[:, c])
        return after.replace(data=data)


@dataclass(frozen=True, eq=False)
class Climatology:
    """The forecast that knows only the season: mean and annual cycle per cell, whatever the state.

    Attributes:
        layout: of one time slot.
        dt: step.
        harmonics: mean, cosine and sine of the annual cycle, (3, channel, y, x); see `annual_cycle`.
    """

    layout: Layout
    dt: timedelta
    harmonics: Tensor
    forcing_layout: Layout | None = None

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The climatology of the time one `dt` later; no gradient flows from the state."""
        time = state.time + self.dt
        phase = 2 * math.pi * year_fraction(time)
        mean, cosine, sine = self.harmonics.to(state.data)
        season = mean + math.cos(phase) * cosine + math.sin(phase) * sine
        return state.replace(data=season + torch.zeros_like(state.data), time=time)


def annual_cycle(states: Iterable[State]) -> Tensor:
    """Least-squares mean, cosine and sine of the annual cycle, (3, channel, y, x), over times and members.

    One pass, float64 sums. Raises ValueError for fewer than three times.
    """
    normal = torch.zeros(3, 3, dtype=torch.float64)
    right: Tensor | float = 0.0
    times = 0
    for state in states:
        phase = 2 * math.pi * year_fraction(state.time)
        basis = torch.tensor([1.0, math.cos(phase), math.sin(phase)], dtype=torch.float64)
        normal += torch.outer(basis, basis)
        right = right + basis[:, None, None, None] * state.data.double().mean(0)
        times += 1
    if times < 3:
        raise ValueError(f"an annual cycle needs at least three times, got {times}")
    assert isinstance(right, Tensor)
    solved: Tensor = torch.linalg.solve(normal, right.flatten(1))
    return solved.view_as(right).float()


def year_fraction(time: cftime.datetime) -> float:
    """Position in the calendar year, 0 to 1."""
    start = time.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
    return float((time - start) / (start.replace(year=time.year + 1) - start))


def check_inputs(emulator: Emulator, state: State, forcing: State | None) -> State | None:
    """Compare what a step was given with what the emulator wants; returns the forcing.

    Raises LayoutError that names the difference: fields, time slots, shape, or forcing missing.
    """
    emulator.layout.require_same(state.layout, f"{type(emulator).__name__}: state")
    if emulator.forcing_layout is None:
        return None
    if forcing is None:
        raise LayoutError(
            f"{type(emulator).__name__} needs forcing ({', '.join(emulator.forcing_layout.names)}), got None; "
            "pass a Source or a nature run's forcing"
        )
    emulator.forcing_layout.require_same(forcing.layout, f"{type(emulator).__name__}: forcing")
    return forcing
