"""Generative assimilation: a generative emulator's next state, sampled with the observations it will be compared with.

    x[k+1] ~ p(x[k+1] | x[k], f[k], y[k+1])

by the emulator's own sampler, noise and number of network calls, whose denoiser is guided (`guidance.py`). The prior is
the emulator's conditional one, not a climatology, so that an ensemble of such members is a filter (Hodyss and Morzfeld
2023 on which posterior a sampler has). Each member draws from the posterior given its own past; what it is wrong in
already is corrected as far as the spread of one step admits, over the cycles, and `MMPS(inflation=4)` lets the
observations say more where an emulator is too sure of itself. Members are not weighted by how well their past foresaw
the observations. Bounds hold in every member as they do in a forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import cftime
import numpy as np
import torch
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, Noise, State
from ..emulators.flow import Conditional
from ..ensembles.dates import shifted
from .correlation import whitening
from .cycle import Smoothed
from .guidance import MMPS, Rule, guided
from .observations import Observations
from .operators import ObservationOperator, newest, operator_for
from .window import Window


class GuidanceError(ValueError):
    """An emulator has no denoiser to guide."""


@runtime_checkable
class Generative(Emulator, Protocol):
    """An emulator that draws its next state from noise, and can say what from: `Regional`, `GenSIM`."""

    def conditional(self, state: State, forcing: State | None, noise: Draws) -> Iterable[Conditional]:
        """What `step` would draw from."""
        ...


@dataclass(frozen=True)
class Guided:
    """Every step of a window is sampled given the observations of its time; an analysis for `cycle`.

    A network call that cost one forward pass costs one and `rule.iterations` backward passes; emulators whose
    `Running` recomputes make each of these a forward pass dearer.

    Attributes:
        rule: how observations guide the sampler.
    """

    rule: Rule = field(default_factory=MMPS)

    @torch.no_grad()
    def window(
        self,
        emulator: Emulator,
        begin: State,
        forcing: Forcing | None,
        noise: Draws | None,
        observations: Observations,
        steps: int,
    ) -> Smoothed:
        """The sampled trajectory from the beginning of the window to the time of the observations.

        Args:
            emulator: `Generative`, such as a `Regional` of kind "diffusion" or "residual".
            begin: the ensemble at the beginning of the window.
            forcing, noise: as for `trajectory`; the noise is what a forecast would use.
            observations: of the end of the window; those with an `offset` guide the step that passes their time.
            steps: of the window.

        A step without observations is the emulator's own. The `report` holds `misfit`, the root mean square of the
        members' departures in units of the observations' errors, (member,). No gradient is kept.

        Raises GuidanceError for an emulator without a denoiser, ConfigError for a deterministic network, and
        ObservationError for observations that are nowhere or outside the window.
        """
        generative = _generative(emulator)
        dates = [begin.time]
        for _ in range(steps):
            dates.append(shifted(forcing, dates[-1], emulator.dt))
        lag = newest(begin) - begin.time
        window = Window(observations, begin.layout, [t + lag for t in dates])
        passed = [_Seen.of(window, observations, k, begin, dates[k + 1]) for k in range(steps)]
        states, squares, source = [begin], list[Tensor](), Noise(0) if noise is None else noise
        for seen in passed:
            before = states[-1]
            driven = None if forcing is None else forcing.at(before.time, before.members)
            if seen.count:
                after = self._sampled(generative, before, driven, source, seen)
                squares.append(seen.departures(before, after.data).square())
            else:
                after = emulator.step(before, driven, source)
            states.append(after.replace(time=seen.date))
        return Smoothed(states, _report(squares))

    def _sampled(self, emulator: Generative, before: State, forcing: State | None, noise: Draws, seen: _Seen) -> State:
        parts = []
        for drawn in emulator.conditional(before, forcing, noise):
            alone = before.replace(data=before.data[drawn.rows], members=before.members[drawn.rows])
            posterior = guided(drawn.denoise, seen.through(alone, drawn), self.rule)
            parts.append(drawn.decode(drawn.draw(posterior), True))
        return before.replace(data=torch.cat(parts))


@dataclass(frozen=True, eq=False)
class _Seen:
    """The observations that one step passes by: those within it, and if it is the last those at its end.

    Errors are correlated among these only.
    """

    window: Window
    step: int
    date: cftime.datetime
    at_end: ObservationOperator
    white: Callable[[Tensor], Tensor]
    value: Tensor
    error: Tensor

    @classmethod
    def of(cls, window: Window, observations: Observations, step: int, state: State, date: cftime.datetime) -> _Seen:
        end = window.end if step == len(window.rows) - 1 else window.end[:0]
        chosen, place = observations.select(np.concatenate((window.rows[step], end))), state.data.device
        at_end = operator_for(state.layout, observations.select(end))
        value, error = (torch.tensor(a, device=place) for a in (chosen.value, chosen.error))
        return cls(window, step, date, at_end, whitening(chosen, place), value, error)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.value)

    def departures(self, before: State, data: Tensor) -> Tensor:
        """R^(-½) (y - H(x)), (member, observation) float64, of the next states."""
        after = before.replace(data=data, time=self.date)
        between = self.window.seen(self.step, before, after)
        parts = [p for p in (between, self.at_end.apply(after).double()) if p is not None]
        return self.white(((self.value - torch.cat(parts, 1)) / self.error).mT).mT

    def through(self, before: State, drawn: Conditional) -> Callable[[Tensor], Tensor]:
        """Departures of normalised data: of states within bounds, with the derivative of those as they come.

        At a bound a derivative would be 0, and the observations could not lift a value off it.
        """

        def departures(r: Tensor) -> Tensor:
            free = drawn.decode(r, False)
            return self.departures(before, free + (drawn.decode(r, True) - free).detach())

        return departures


def _generative(emulator: Emulator) -> Generative:
    if not isinstance(emulator, Generative):
        raise GuidanceError(
            f"Guided: wanted an emulator with a denoiser (GenSIM, or a Regional of kind diffusion or residual, not "
            f"wrapped), got {type(emulator).__name__}, which has no `conditional`"
        )
    return emulator


def _report(squares: list[Tensor]) -> dict[str, np.ndarray]:
    if not squares:
        return {}
    return {"misfit": torch.cat(squares, 1).mean(1).sqrt().detach().cpu().numpy()}
