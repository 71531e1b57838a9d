"""Where an instrument looks: what an instrument is, what may be wrapped around one, and places with water.

An instrument is a small frozen object with one method, `places`. Two more are optional: `errors`, for an error that
depends on the truth, and `reported`, for what happens to observations after they were read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import cftime
import numpy as np
import torch

from ..emulators import Field, Layout, Noise
from .observations import Derived, ObservationError, Observations
from .operators import operator_for

ErrorModel = Callable[[np.ndarray], np.ndarray]
"""From true values (observation,) to standard deviations of their errors; what is not finite cannot be seen."""


class Instrument(Protocol):
    """Anything that knows where it looks at a time.

    It may also have `errors` (see `TruthDependent`) and `reported` (see `Reporting`).
    """

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """Observations of a time, each with a wet point around it.

        Their `value` is the instrument's own offset, which is added to the truth and the random error: 0 for a
        perfect one. Their `error` is the standard deviation of the random error.
        """
        ...


@runtime_checkable
class TruthDependent(Protocol):
    """An instrument whose random errors depend on what it sees."""

    def errors(self, places: Observations, exact: np.ndarray) -> np.ndarray:
        """Standard deviations (observation,) at these places, where the truth is `exact` (observation,).

        Where they are not finite the instrument sees nothing, and there is no observation.
        """
        ...


@runtime_checkable
class Reporting(Protocol):
    """An instrument whose observations change after they were read."""

    def reported(self, observations: Observations, noise: Noise) -> Observations:
        """What is handed to an analysis of observations that hold truth, offset and random error."""
        ...


def errors_of(instrument: Instrument, places: Observations, exact: np.ndarray) -> np.ndarray:
    """The standard deviations of an instrument's random errors, (observation,)."""
    return instrument.errors(places, exact) if isinstance(instrument, TruthDependent) else places.error


def reported_by(instrument: Instrument, observations: Observations, noise: Noise) -> Observations:
    """What an instrument hands on of what it read."""
    return instrument.reported(observations, noise) if isinstance(instrument, Reporting) else observations


@dataclass(frozen=True)
class Wrapper:
    """An instrument that is another one with something changed; by itself it changes nothing.

    The wrapped instrument draws what it would draw alone.

    Attributes:
        instrument: what is wrapped.
    """

    instrument: Instrument

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places of the wrapped instrument."""
        return self.instrument.places(layout, time, noise)

    def errors(self, places: Observations, exact: np.ndarray) -> np.ndarray:
        """The errors of the wrapped instrument."""
        return errors_of(self.instrument, places, exact)

    def reported(self, observations: Observations, noise: Noise) -> Observations:
        """What the wrapped instrument reports."""
        return reported_by(self.instrument, observations, noise)

    def own(self, noise: Noise) -> Noise:
        """The draws of this wrapper, apart from those of others of its class within it."""
        inner, depth = self.instrument, 0
        while isinstance(inner, Wrapper):
            depth += type(inner) is type(self)
            inner = inner.instrument
        return noise.stream(f"{type(self).__name__}/{depth}")


def field_of(layout: Layout, name: str) -> Field:
    """A field of the truth; ObservationError with those there are."""
    if name not in layout.names:
        raise ObservationError(f"no field {name} to observe; the truth has {', '.join(layout.names)}")
    return layout.field(name)


def blank(
    time: cftime.datetime,
    variable: str | Derived | np.ndarray,
    lat: np.ndarray,
    lon: np.ndarray,
    depth: np.ndarray,
    error: float | np.ndarray,
    kind: str,
    **more: Any,
) -> Observations:
    """Observations of a perfect instrument, before they are read; `more` are optional columns."""
    derived = (variable,) if isinstance(variable, Derived) else ()
    name = variable.name if isinstance(variable, Derived) else variable
    columns = {"variable": name, "lat": lat, "lon": lon, "depth": depth, "value": np.zeros(len(lat))}
    return Observations.from_table(time, columns | {"error": error, "kind": kind} | more, derived)


def in_water(layout: Layout, observations: Observations) -> Observations:
    """Those observations that a state of this layout has a value for."""
    return operator_for(layout, observations, drop=True).observations


def random_places(
    layout: Layout, f: Field, count: int, time: cftime.datetime | None, noise: Noise
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells drawn by wet area, and a place within each: cell, lat, lon, all (count,)."""
    u = noise.stream("places").uniform((0,), time, (count, 3), dtype=torch.float64)[0].numpy()
    area = np.cumsum(layout.grid["areacello"].values.ravel() * layout.field_mask(f)[0].ravel())
    if area[-1] <= 0:
        raise ObservationError(f"{f.name} is nowhere wet; there is nothing to observe")
    cell = np.searchsorted(area, u[:, 0] * area[-1], side="right")
    lat, lon = (a.ravel()[cell] for a in layout.position(f))
    if layout.grid["lat"].ndim == 1:  # on curvilinear grids H looks at the nearest cell: stay on its centre
        rows, columns = layout.position(f)
        row, column = np.unravel_index(cell, rows.shape)
        lat = np.clip(lat + (u[:, 1] - 0.5) * _width(rows[:, 0])[row], -90, 90)
        lon = lon + (u[:, 2] - 0.5) * _width(columns[0])[column]
    return cell, lat, lon


def _width(points: np.ndarray) -> np.ndarray:
    return np.asarray(np.gradient(points)) if len(points) > 1 else np.zeros(1)


def seconds_of(time: cftime.datetime) -> float:
    """Seconds since the start of 2000 in the date's own calendar."""
    start = cftime.datetime(2000, 1, 1, calendar=time.calendar, has_year_zero=time.has_year_zero)
    return float((time - start).total_seconds())
