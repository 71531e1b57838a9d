"""Cycling: forecast to the next observations, analyse, and go on from the analysis.

    x[k+1] = M(x[k], f[k], ξ[k]),   x[k] ← analysis(x[k], y[k]) wherever there are observations

`cycle` yields states as `trajectory` does, analyses where there were observations and forecasts between
them, so that the same `record` stores it. It keeps nothing between steps but the state: a cycle that is
started again from its last state, with the observations after it, continues in the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

from ..emulators import Draws, Emulator, Forcing, State
from ..ensembles import trajectory
from ..ensembles.dates import shifted
from .observations import ObservationError, Observations
from .operators import newest


@runtime_checkable
class Analysis(Protocol):
    """Anything that turns a forecast and observations into an analysis."""

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis: same members, time and layout as the forecast."""
        ...


def cycle(
    emulator: Emulator,
    state: State,
    forcing: Forcing | None,
    observations: Iterable[Observations],
    analysis: Analysis,
    noise: Draws | None = None,
    *,
    monitor: Callable[[State, Observations], object] | None = None,
) -> Iterator[State]:
    """The initial state and then, step by step, forecasts and analyses until the observations end.

    Args:
        emulator: what advances the ensemble.
        state: initial ensemble.
        forcing: asked for `forcing.at(time, members)` at the start of every step.
        observations: in order of time, the first after the initial state, each a whole number of emulator
            steps after the one before.
        analysis: such as `LETKF(...)`.
        noise: for stochastic emulators; `Noise(0)` if not given.
        monitor: called with every background and its observations before the analysis, e.g. to gather
            `innovation(background, observations)`.

    Raises ObservationError for observations at a time that no step leads to.
    """
    yield state
    for observed in observations:
        steps = _steps_to(observed, state, emulator, forcing)
        forecasts = islice(trajectory(emulator, state, forcing, noise), 1, steps + 1)
        for k, state in enumerate(forecasts, 1):
            if k == steps:
                if monitor is not None:
                    monitor(state, observed)
                state = analysis.analysis(state, observed)
            yield state


def _steps_to(observed: Observations, state: State, emulator: Emulator, forcing: Forcing | None) -> int:
    """How many emulator steps lead from a state to the time of observations, as `trajectory` dates them."""
    now = newest(state)
    try:
        ahead = observed.time - now
    except TypeError as error:
        raise ObservationError(
            f"wanted observations dated in the state's calendar {now.calendar}, got {observed.time.calendar}"
        ) from error
    steps, date = 0, state.time
    lag = now - state.time  # of the newest slot, which is what is observed
    while date + lag < observed.time:
        steps, date = steps + 1, shifted(forcing, date, emulator.dt)
    if steps < 1 or date + lag != observed.time:
        raise ObservationError(
            f"observations of {observed.time} are {ahead} after the state of {now}: wanted a whole number >= 1 of "
            f"emulator steps ({emulator.dt}). Give them in order of time, join those of one time with "
            "`Observations.concat`, and analyse an initial state before the cycle"
        )
    return steps
