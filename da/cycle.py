"""Cycling: forecast to the next observations, check them, analyse, and go on from the analysis.

    x[k+1] = M(x[k], f[k], ξ[k]),   x[k] ← analysis(x[k], y[k]) wherever there are observations

`cycle` yields states as `trajectory` does, analyses where there were observations and forecasts between
them, so that the same `record` stores it; `assimilate` (`assimilate.py`) keeps all there is to keep in one store.
Nothing is kept between cycles but the state and what the analysis has learned (`Cycle.carried`): a cycle that is
started again from both, with the observations after it, continues in the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Protocol, runtime_checkable

import cftime
import numpy as np
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, Layout, State
from ..ensembles import trajectory
from ..ensembles.dates import shifted
from .bias import Debiased
from .observations import ObservationError, Observations
from .operators import newest
from .quality import Checked, Quality
from .verification import innovation
from .window import Window


@runtime_checkable
class Analysis(Protocol):
    """Anything that turns a forecast and observations into an analysis."""

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis: same members, time and layout as the forecast."""
        ...


@runtime_checkable
class Learning(Protocol):
    """An analysis that learns from cycle to cycle, such as `Adaptive`."""

    def start(self, layout: Layout) -> Tensor:
        """What it knows before the first cycle."""
        ...

    def step(self, forecast: State, observations: Observations, known: Tensor) -> tuple[State, Tensor]:
        """The analysis, and what is known after it."""
        ...


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The analysis of a window.

    Attributes:
        states: from its beginning to its end, one per step.
        report: numbers of the analysis, such as the iterations it took, (member,) each.
    """

    states: list[State]
    report: dict[str, np.ndarray] = field(default_factory=dict)


@runtime_checkable
class Smoothing(Protocol):
    """An analysis of a whole window that makes its own trajectories, such as `FourDVar`."""

    def window(
        self,
        emulator: Emulator,
        begin: State,
        forcing: Forcing | None,
        noise: Draws | None,
        observations: Observations,
        steps: int,
    ) -> Smoothed:
        """The trajectory from the state at the beginning to the observations' time, corrected by them."""
        ...


Method = Analysis | Learning | Smoothing
"""What `cycle` takes."""


@dataclass(frozen=True, eq=False)
class Cycle:
    """What happened at one time of observations.

    Attributes:
        background: the forecast.
        checked: the observations, and which were used.
        analysis: of them.
        goes_on: the state the next forecast begins from: the analysis, or with `increments` the background, to which
            `carried["increment"]` is added on the way.
        carried: what the next cycle has to know beside the state.
        report: numbers of the analysis.
    """

    background: State
    checked: Checked
    analysis: State
    goes_on: State
    carried: dict[str, Tensor]
    report: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class NoAnalysis:
    """No analysis: a free run, to compare with."""

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The forecast."""
        return forecast


def cycle(
    emulator: Emulator,
    state: State,
    forcing: Forcing | None,
    observations: Iterable[Observations],
    analysis: Method,
    noise: Draws | None = None,
    *,
    quality: Quality | None = None,
    bias: Debiased | None = None,
    increments: int = 0,
    carried: Mapping[str, Tensor] | None = None,
    monitor: Callable[[Cycle], object] | None = None,
) -> Iterator[State]:
    """The initial state and then, step by step, forecasts and analyses until the observations end.

    Args:
        emulator: what advances the ensemble.
        state: initial ensemble.
        forcing: asked for `forcing.at(time, members)` at the start of every step.
        observations: in order of time, the first after the initial state, each a whole number of emulator
            steps after the one before. Those with an `offset` are compared with the trajectory at their own time,
            linear between steps.
        analysis: such as `LETKF(...)`, `Adaptive(LETKF(...), ...)`, or `FourDVar(...)`, whose windows are from one
            time of observations to the next.
        noise: for stochastic emulators; `Noise(0)` if not given.
        quality: checks before use; without it, an observation that cannot be used is an error.
        bias: estimates the bias of some kinds of observations from cycle to cycle, and takes it off before the checks.
        increments: add the analysis increment in so many equal parts, one before each of the steps that follow, not
            all at once (incremental analysis update, Bloom et al. 1996, doi:10.1175/1520-0493(1996)124<1256:
            DAUIAU>2.0.CO;2, begun at the time of the analysis). The states between are then forecasts on the way.
        carried: of the `Cycle` whose `goes_on` is `state`; what is known at the beginning if not given.
        monitor: called with every `Cycle`.

    Raises ObservationError for observations at a time that no step leads to, or that reach back beyond the
    cycle before; ValueError for increments with an analysis of windows.
    """
    if increments and isinstance(analysis, Smoothing):
        raise ValueError(f"{type(analysis).__name__} corrects whole windows; increments are for analyses at a time")
    known = {"inflation": analysis.start(state.layout)} if isinstance(analysis, Learning) else {}
    if bias is not None:
        known["bias"] = bias.flat(bias.initial)
    known |= carried or {}
    yield state
    for observed in observations:
        dates = _dates_to(observed, state, emulator, forcing)
        steps = len(dates) - 1
        if bias is not None:
            observed = bias.correct(observed, bias.carried(known["bias"]))
        window = Window(observed, state.layout, dates)
        if isinstance(analysis, Smoothing):
            done, way = _smoothed(analysis, emulator, state, forcing, noise, window, quality, steps)
            yield from way
        else:
            parts, seen = _parts(known.pop("increment", None), increments, steps), list[Tensor | None]()
            for k in range(steps):
                before = state if k >= len(parts) else state.replace(data=state.data + parts[k])
                state = next(islice(trajectory(emulator, before, forcing, noise), 1, None))
                seen.append(window.seen(k, before, state))
                if k < steps - 1:
                    yield state
            done = _analysed(state, window.observations(seen, state), analysis, quality, known, increments > 0)
        if bias is not None:
            seen_by = innovation(done.background, done.checked.used)
            done.carried["bias"] = bias.flat(bias.step(seen_by, bias.carried(known["bias"])))
        state, known = done.goes_on, dict(done.carried)
        if monitor is not None:
            monitor(done)
        yield done.analysis


def _parts(increment: Tensor | None, wanted: int, steps: int) -> list[Tensor]:
    """What is added before each of the next steps."""
    if increment is None:
        return []
    if wanted > steps:
        raise ObservationError(
            f"wanted increments to be added within the {steps} steps to the next observations, got increments={wanted}"
        )
    return [increment / wanted] * wanted


def _checked(background: State, observations: Observations, quality: Quality | None) -> Checked:
    if quality is not None:
        return quality.check(background, observations)
    return Checked(observations, np.zeros(len(observations), np.int64), (), observations.error)


def _analysed(
    background: State,
    observations: Observations,
    analysis: Analysis | Learning,
    quality: Quality | None,
    known: dict[str, Tensor],
    gradually: bool,
) -> Cycle:
    checked = _checked(background, observations, quality)
    if isinstance(analysis, Learning):
        after, learned = analysis.step(background, checked.used, known["inflation"])
        known = {**known, "inflation": learned}
    else:
        after = analysis.analysis(background, checked.used)
    if not gradually:
        return Cycle(background, checked, after, after, known)
    known = {**known, "increment": after.data - background.data}
    return Cycle(background, checked, after, background, known)


def _smoothed(
    analysis: Smoothing,
    emulator: Emulator,
    begin: State,
    forcing: Forcing | None,
    noise: Draws | None,
    window: Window,
    quality: Quality | None,
    steps: int,
) -> tuple[Cycle, list[State]]:
    """The analysis of a window, and the states on the way to its end."""
    path = list(islice(trajectory(emulator, begin, forcing, noise), steps + 1))
    seen = [window.seen(k, *pair) for k, pair in enumerate(pairwise(path))]
    checked = _checked(path[-1], window.observations(seen, path[-1]), quality)
    found = analysis.window(emulator, begin, forcing, noise, checked.used.replace(view=None), steps)
    return Cycle(path[-1], checked, found.states[-1], found.states[-1], {}, found.report), found.states[1:-1]


def _dates_to(
    observed: Observations, state: State, emulator: Emulator, forcing: Forcing | None
) -> list[cftime.datetime]:
    """Dates of the newest slots from a state to the time of observations, as `trajectory` dates the states."""
    now = newest(state)
    try:
        ahead = observed.time - now
    except TypeError as error:
        raise ObservationError(
            f"wanted observations dated in the state's calendar {now.calendar}, got {observed.time.calendar}"
        ) from error
    dates, date = [now], state.time
    lag = now - state.time  # of the newest slot, which is what is observed
    while dates[-1] < observed.time:
        date = shifted(forcing, date, emulator.dt)
        dates.append(date + lag)
    if len(dates) < 2 or dates[-1] != observed.time:
        raise ObservationError(
            f"observations of {observed.time} are {ahead} after the state of {now}: wanted a whole number >= 1 of "
            f"emulator steps ({emulator.dt}). Give them in order of time, join those of one time with "
            "`Observations.concat`, and analyse an initial state before the cycle"
        )
    return dates
