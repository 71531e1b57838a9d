"""The Emulator protocol, the simplest emulator, and wrappers that change one.

x[k+1] = M(x[k], f[k], ξ[k]): one pure, batched, differentiable step. Nothing inside a step switches
gradients off, keeps state, or depends on which members happen to share the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

import cftime

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


@dataclass(frozen=True)
class Repeated:
    """`times` steps of an emulator as one step, for comparing emulators of different step length.

    The forcing of the first step is held for all of them.
    """

    emulator: Emulator
    times: int

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
        """`times` steps of the wrapped emulator."""
        return self.emulator.dt * self.times

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """`times` steps."""
        for _ in range(self.times):
            state = self.emulator.step(state, forcing, noise)
        return state


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
