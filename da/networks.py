"""Observing networks for twin experiments: where instruments look, and what they read off a truth.

    y[k] = H(x[k]) + error · η[k],   η ~ N(0, 1)

A network is an instrument, or a tuple of instruments; an instrument is a small frozen object with one
method, `places`. Positions and errors are drawn from `noise.stream("observe")` by the time of the
observation and the instrument's place in the tuple, so that an experiment that is continued sees what it
would have seen without the break.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import cftime
import numpy as np
import torch

from ..emulators import Field, Layout, Noise, State
from .observations import ObservationError, Observations
from .operators import newest, operator_for


class Instrument(Protocol):
    """Anything that knows where it looks at a time."""

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """Observations whose values are still 0."""
        ...


Network = Instrument | Sequence[Instrument]


@dataclass(frozen=True)
class RandomPoints:
    """A variable's uppermost level at random places, uniform over its wet area, drawn anew at each time.

    Attributes:
        variable: CF name.
        error: standard deviation, in the unit of the variable.
        count: how many; or else
        fraction: how many relative to the number of wet cells.
        kind: label of the observations; default the variable's name.
    """

    variable: str
    error: float
    count: int | None = None
    fraction: float | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if (self.count is None) == (self.fraction is None):
            raise ValueError(f"RandomPoints: give either count or fraction, got {self.count} and {self.fraction}")

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places of a time, (observation,)."""
        f = _field(layout, self.variable)
        wet = int(layout.field_mask(f)[0].sum())
        count = self.count if self.count is not None else round((self.fraction or 0.0) * wet)
        _, lat, lon = _random_places(layout, f, count, time, noise)
        return _blank(time, self.variable, lat, lon, np.zeros(len(lat)), self.error, self.kind or self.variable)


@dataclass(frozen=True)
class SurfaceField:
    """A variable's uppermost level on the grid, as an imager sees it: every `stride`-th wet point of a swath.

    Attributes:
        variable: CF name.
        error: standard deviation, in the unit of the variable.
        stride: distance between observed rows and columns, in cells.
        coverage: fraction of all longitudes that the swath of one time covers; where it lies is random.
        kind: label of the observations.
    """

    variable: str = "thetao"
    error: float = 0.5
    stride: int = 1
    coverage: float = 1.0
    kind: str = "surface"

    def __post_init__(self) -> None:
        if self.stride < 1 or not 0 < self.coverage <= 1:
            raise ValueError(
                f"SurfaceField: wanted stride >= 1 and 0 < coverage <= 1, got {self.stride}, {self.coverage}"
            )

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places of a time, (observation,)."""
        f = _field(layout, self.variable)
        lat, lon = layout.position(f)
        chosen = np.zeros(lat.shape, bool)
        first = [min(self.stride, n) // 2 for n in lat.shape]  # a grid narrower than the stride has one row
        chosen[first[0] :: self.stride, first[1] :: self.stride] = True
        # All longitudes: the whole circle or sector, or what there is of a region.
        extent = lon.max() - lon.min() + np.diff(lon).max(initial=0.0)
        period = min(float(layout.grid.attrs.get("zonal_period", 360.0)), extent) or 1.0
        start = float(noise.stream("swath").uniform((0,), time, (1,), dtype=torch.float64))
        chosen &= ((lon - lon.min()) / period - start) % 1.0 < self.coverage
        chosen &= layout.field_mask(f)[0]
        return _blank(time, self.variable, lat[chosen], lon[chosen], np.zeros(chosen.sum()), self.error, self.kind)


@dataclass(frozen=True)
class Profiles:
    """Argo-like profiles at random wet places, drawn anew at each time, with a value at every wet level.

    Attributes:
        count: number of profiles.
        variables: standard deviation of the error per variable, in its unit.
        max_depth: deepest level observed, m.
        kind: label of the observations.
    """

    count: int
    variables: Mapping[str, float]
    max_depth: float = 2000.0
    kind: str = "profile"

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places of a time, (observation,), variable by variable and profile by profile."""
        observed = [_field(layout, name) for name in self.variables]
        if len({f.location for f in observed}) != 1:
            raise ObservationError(f"Profiles: wanted variables at the same points of the grid, got {observed}")
        cell, lat, lon = _random_places(layout, observed[0], self.count, time, noise)
        parts = []
        for f in observed:
            depth = layout.grid["lev"].values[: f.levels] if f.levels else np.zeros(1)
            wet = layout.field_mask(f).reshape(f.channels, -1)[:, cell].T & (depth <= self.max_depth)
            profile, level = np.nonzero(wet)
            place = lat[profile], lon[profile], depth[level]
            parts.append(_blank(time, f.name, *place, self.variables[f.name], self.kind))
        return Observations.concat(parts)


def observe_state(truth: State, network: Network, noise: Noise) -> Observations:
    """What a network reads off a truth of one member, in its newest time slot.

    Raises ObservationError for several members, or a variable that the truth has not.
    """
    if len(truth.members) != 1:
        raise ObservationError(f"wanted a truth of one member, got members {truth.members}; choose with `state.sel`")
    time, drawn = newest(truth), noise.stream("observe")
    instruments = network if isinstance(network, Sequence) else (network,)
    parts = []
    for k, instrument in enumerate(instruments):
        own = drawn.stream(str(k))
        blank = instrument.places(truth.layout, time, own)
        exact = operator_for(truth.layout, blank).apply(truth.to(torch.float64))[0].detach().cpu().numpy()
        eta = own.stream("error").normal((0,), time, (len(blank),), dtype=torch.float64)[0].numpy()
        parts.append(blank.replace(value=exact + blank.error * eta))
    return Observations.concat(parts)


def observe(
    truth: State | Iterable[State], network: Network, noise: Noise, *, every: int = 1, skip_first: bool = True
) -> Iterator[Observations]:
    """Observations of a truth as it goes by, lazily.

    Args:
        truth: states of one member, such as `trajectory(...)` or `states_of(store, layout)`; or one state,
            which is observed once.
        network: an instrument, or several.
        noise: of the experiment; positions and errors are functions of it and of time.
        every: observe every so many states, counted from the first.
        skip_first: do not observe the first state, where a cycle begins.

    Raises ObservationError as `observe_state`.
    """
    if every < 1:
        raise ValueError(f"observe: wanted every >= 1, got {every}")
    if isinstance(truth, State):
        yield observe_state(truth, network, noise)
        return
    for k, state in enumerate(truth):
        if k % every == 0 and not (k == 0 and skip_first):
            yield observe_state(state, network, noise)


def _field(layout: Layout, name: str) -> Field:
    if name not in layout.names:
        raise ObservationError(f"no field {name} to observe; the truth has {', '.join(layout.names)}")
    return layout.field(name)


def _random_places(
    layout: Layout, f: Field, count: int, time: cftime.datetime, noise: Noise
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


def _blank(
    time: cftime.datetime, variable: str, lat: np.ndarray, lon: np.ndarray, depth: np.ndarray, error: float, kind: str
) -> Observations:
    """Observations without values yet."""
    columns = {"variable": variable, "lat": lat, "lon": lon, "depth": depth, "value": np.zeros(len(lat))}
    return Observations.from_table(time, columns | {"error": error, "kind": kind})
