"""Forcing changed: scaled, offset, ramped, in a box, of other years, or with noise; each a `Forcing` around another.

    ssp = Changed(source, offset={"hfds": 4.0}, when=Ramp(start, end))
    gulf = Changed(ssp, scale={"tauuo": 1.2}, where=Box(lat=(30, 45), lon=(280, 320)))
    storms = NoisyForcing(gulf, {"tauuo": 0.02}, Remembered(Diffused(8e5), timedelta(days=5)), Noise(1))

Wrappers nest in any order, and pass on what a stored forcing knows of its dates (`shift`, `require`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import cftime
import numpy as np
import torch
from torch import Tensor

from ..emulators import Draws, Forcing, Layout, State
from .dates import shifted, slot_times
from .perturb import Perturbation

__all__ = ["Box", "Changed", "NoisyForcing", "Ramp", "SurrogateYears"]


class When(Protocol):
    """How much of a change applies at a date."""

    def at(self, time: cftime.datetime) -> float:
        """Weight, 0 for none of the change and 1 for all of it."""
        ...


@dataclass(frozen=True)
class Ramp:
    """None of a change until `start`, all of it from `stop` on, and linearly more between.

    Attributes:
        start: last date without.
        stop: first date with all of it; `start` itself for a jump.
        onward: go on growing at the same rate after `stop`.

    Raises ValueError if `stop` is before `start`, or equal to it and `onward`.
    """

    start: cftime.datetime
    stop: cftime.datetime
    onward: bool = False

    def __post_init__(self) -> None:
        if self.stop < self.start or (self.onward and self.stop == self.start):
            raise ValueError(
                f"a ramp needs start {'<' if self.onward else '<='} stop, got {self.start} and {self.stop}"
            )

    def at(self, time: cftime.datetime) -> float:
        """Weight, from 0."""
        if time <= self.start:
            return 0.0 if time < self.start or self.stop > self.start else 1.0
        if self.stop == self.start:
            return 1.0
        passed = float((time - self.start) / (self.stop - self.start))
        return passed if self.onward else min(passed, 1.0)


@dataclass(frozen=True)
class Box:
    """Cells within latitudes and longitudes, and a margin over which a change fades out.

    Attributes:
        lat: southern and northern edge, degrees.
        lon: western and eastern edge, degrees, in any turn of the circle: (350, 10) crosses Greenwich.
        margin: degrees outside the edges over which the weight falls from 1 to 0 as a cosine; 0 for none.

    Raises ValueError for edges in the wrong order or a negative margin.
    """

    lat: tuple[float, float] = (-90.0, 90.0)
    lon: tuple[float, float] = (0.0, 360.0)
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.lat[0] >= self.lat[1] or self.lon[0] == self.lon[1] or self.margin < 0:
            raise ValueError(
                f"a box needs lat from south to north, two different lon and margin >= 0, got {self.lat}, {self.lon} "
                f"and {self.margin}"
            )

    def weights(self, layout: Layout, name: str) -> Tensor:
        """Weight of a field's cells, (y, x), 0 to 1; raises ValueError if no cell is inside."""
        lat, lon = layout.position(layout.field(name))
        width = self.lon[1] - self.lon[0]
        width = width % 360.0 or 360.0
        east = (lon - self.lon[0]) % 360.0
        outside_lat = np.maximum(np.maximum(self.lat[0] - lat, lat - self.lat[1]), 0.0)
        outside_lon = np.where(east <= width, 0.0, np.minimum(east - width, 360.0 - east))
        away = np.hypot(outside_lat, outside_lon)
        inside = (away == 0).astype(float)
        if not inside.any():
            raise ValueError(
                f"no cell lies within {self}; the grid has lat {lat.min()} to {lat.max()}, "
                f"lon {lon.min()} to {lon.max()}"
            )
        if self.margin:
            inside = 0.5 * (1 + np.cos(np.pi * np.minimum(away / self.margin, 1.0)))
        return torch.from_numpy(inside)


class _Dated:
    """What wrappers of a forcing pass on of its dates."""

    forcing: Forcing

    def shift(self, time: cftime.datetime, by: timedelta) -> cftime.datetime:
        """The date `by` after `time`, counted in the records of the forcing underneath, if it has any."""
        return shifted(self.forcing, time, by)

    def require(self, start: cftime.datetime, steps: int = 0, dt: timedelta = timedelta(0)) -> None:
        """Raise now if the forcing underneath ends before `steps` steps of `dt` are done."""
        require: Callable[..., None] | None = getattr(self.forcing, "require", None)
        if require is not None:
            require(start, steps, dt)


@dataclass(frozen=True)
class Changed(_Dated):
    """A forcing of which some variables are scaled and then offset: x + w ((scale - 1) x + offset).

    Attributes:
        forcing: what is changed.
        scale: factor per variable.
        offset: per variable, in its unit.
        when: the weight w at a date, e.g. `Ramp(start, stop)`; default always 1. Each time slot has its own date.
        where: the weight in a cell, e.g. a `Box`; default 1 everywhere.

    Raises ValueError if neither `scale` nor `offset` is given; `at` for a variable the forcing lacks.
    """

    forcing: Forcing
    scale: Mapping[str, float] = field(default_factory=dict)
    offset: Mapping[str, float] = field(default_factory=dict)
    when: When | None = None
    where: Box | None = None

    def __post_init__(self) -> None:
        if not self.scale and not self.offset:
            raise ValueError("Changed needs `scale` or `offset`, e.g. offset={'hfds': 4.0}; got neither")

    def at(self, time: cftime.datetime, members: Sequence[int] = (0,)) -> State:
        """The changed forcing of the step that starts at `time`; land stays 0."""
        state = self.forcing.at(time, members)
        layout, data = state.layout, state.data.clone()
        names = list(dict.fromkeys([*self.scale, *self.offset]))
        _require_known(names, layout, "Changed")
        for slot, date in enumerate(slot_times(state, self.forcing)):
            share = 1.0 if self.when is None else self.when.at(date)
            for name in names if share else ():
                c = layout.channels(name, slot)
                change = share * ((self.scale.get(name, 1.0) - 1) * state.data[:, c] + self.offset.get(name, 0.0))
                if self.where is not None:
                    change = change * self.where.weights(layout, name).to(change)
                data[:, c] += change * layout.mask[c].to(change)
        return state.replace(data=data)


@dataclass(frozen=True)
class SurrogateYears:
    """The forcing of other years under the dates of the run, for paired experiments and long spin-ups.

    Attributes:
        forcing: asked for the same day and time of another year (29 February becomes the 28th).
        years: which year's forcing a year gets, e.g. `{2015: 1997, 2016: 1998}`, or one year for all.

    Dates go on plainly (`time + dt`): records of the other year need only be within half an interval. Raises
    ValueError at a date whose year is not in `years`.
    """

    forcing: Forcing
    years: Mapping[int, int] | int

    def at(self, time: cftime.datetime, members: Sequence[int] = (0,)) -> State:
        """The forcing of the other year, dated `time`."""
        return self.forcing.at(self.surrogate(time), members).replace(time=time)

    def surrogate(self, time: cftime.datetime) -> cftime.datetime:
        """The date whose forcing is used."""
        if isinstance(self.years, int):
            year = self.years
        elif time.year in self.years:
            year = self.years[time.year]
        else:
            raise ValueError(
                f"no surrogate for {time.year} ({time}); years has {', '.join(map(str, sorted(self.years)))}"
            )
        try:
            return time.replace(year=year)
        except ValueError:
            return time.replace(year=year, day=28)

    def require(self, start: cftime.datetime, steps: int = 0, dt: timedelta = timedelta(0)) -> None:
        """Raise now if a year has no surrogate, or the forcing lacks a date of it."""
        require: Callable[..., None] | None = getattr(self.forcing, "require", None)
        for k in range(steps + 1):
            other = self.surrogate(start + k * dt)
            if require is not None:
                require(other)


@dataclass(frozen=True)
class NoisyForcing(_Dated):
    """A forcing with correlated noise of its own for every member.

    Noise of a time slot belongs to the slot's date, so that a date has one weather in whatever slot it comes.

    Attributes:
        forcing: what is perturbed.
        amplitude: standard deviation per variable, in its unit.
        kind: e.g. `Remembered(Diffused(8e5), memory=timedelta(days=5))`; drawn for the perturbed variables.
        noise: of the experiment; draws are of its stream "forcing".

    `at` raises ValueError for a variable the forcing lacks.
    """

    forcing: Forcing
    amplitude: Mapping[str, float]
    kind: Perturbation
    noise: Draws

    def at(self, time: cftime.datetime, members: Sequence[int] = (0,)) -> State:
        """The perturbed forcing of the step that starts at `time`; land stays 0."""
        state = self.forcing.at(time, members)
        layout, data = state.layout, state.data.clone()
        _require_known(list(self.amplitude), layout, "NoisyForcing")
        part = layout.select([n for n in layout.names if n in self.amplitude], slots=(0,))
        for slot, date in enumerate(slot_times(state, self.forcing)):
            drawn = self.kind.draw(part, members, date, self.noise.stream("forcing")).to(data)
            for name in part.names:
                data[:, layout.channels(name, slot)] += self.amplitude[name] * drawn[:, part.channels(name)]
        return state.replace(data=data)


def _require_known(names: Sequence[str], layout: Layout, what: str) -> None:
    unknown = [n for n in names if n not in layout.names]
    if unknown:
        raise ValueError(
            f"{what}: no variable(s) {', '.join(unknown)} in the forcing; it has {', '.join(layout.names)}"
        )
