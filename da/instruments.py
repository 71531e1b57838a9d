"""Instruments in the water and on the ice: random points and images, profiles, moorings, and what drifts.

Whatever drifts does not follow the truth's currents, which an instrument does not know: it roams about its start as a
function of its number and the time alone, so that an experiment that is continued sees the same floats in the same
places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np
import torch

from ..emulators import Layout, Noise
from .localise import EARTH_RADIUS, unit_vectors
from .observations import ObservationError, Observations
from .places import blank, field_of, in_water, random_places, seconds_of

_WAVES = 32  # of a float's path: displacements are sums of so many cosines of time


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
        f = field_of(layout, self.variable)
        wet = int(layout.field_mask(f)[0].sum())
        count = self.count if self.count is not None else round((self.fraction or 0.0) * wet)
        _, lat, lon = random_places(layout, f, count, time, noise)
        return blank(time, self.variable, lat, lon, np.zeros(len(lat)), self.error, self.kind or self.variable)


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
        f = field_of(layout, self.variable)
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
        return blank(time, self.variable, lat[chosen], lon[chosen], np.zeros(chosen.sum()), self.error, self.kind)


@dataclass(frozen=True)
class Profiles:
    """Profiles at random wet places, drawn anew at each time, with a value at every wet level; see also `Floats`.

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
        observed = [field_of(layout, name) for name in self.variables]
        if len({f.location for f in observed}) != 1:
            raise ObservationError(f"Profiles: wanted variables at the same points of the grid, got {observed}")
        cell, lat, lon = random_places(layout, observed[0], self.count, time, noise)
        parts = []
        for f in observed:
            depth = layout.grid["lev"].values[: f.levels] if f.levels else np.zeros(1)
            wet = layout.field_mask(f).reshape(f.channels, -1)[:, cell].T & (depth <= self.max_depth)
            profile, level = np.nonzero(wet)
            place = lat[profile], lon[profile], depth[level]
            parts.append(blank(time, f.name, *place, self.variables[f.name], self.kind))
        return Observations.concat(parts)


@dataclass(frozen=True)
class Moorings:
    """Instruments at fixed positions and depths.

    Attributes:
        lat, lon: of the moorings, degrees.
        variables: standard deviation of the error per variable, in its unit.
        depths: of the instruments, m; default the levels of the truth. Those below the sea floor do not exist.
        height: vertical length of correlation of a mooring's errors, m; inf for independent ones.
        kind: label of the observations.
    """

    lat: tuple[float, ...]
    lon: tuple[float, ...]
    variables: Mapping[str, float]
    depths: tuple[float, ...] | None = None
    height: float = np.inf
    kind: str = "mooring"

    def __post_init__(self) -> None:
        if len(self.lat) != len(self.lon):
            raise ValueError(f"Moorings: wanted as many lat as lon, got {len(self.lat)} and {len(self.lon)}")

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places, (observation,), the same at all times.

        Raises ObservationError for a mooring on land or outside the grid.
        """
        lat, lon = np.asarray(self.lat, float), np.asarray(self.lon, float)
        levels = None if self.depths is None else np.asarray(self.depths, float)
        found = _columns(layout, time, lat, lon, self.variables, self.kind, levels=levels, height=self.height)
        dry = sorted(set(range(1, len(lat) + 1)) - set(found.group.tolist()))
        if dry:
            where = ", ".join(f"({lat[k - 1]}, {lon[k - 1]})" for k in dry[:3])
            raise ObservationError(
                f"Moorings: {len(dry)} of {len(lat)} have no water at any of their depths, the first at (lat, lon) "
                f"{where}; leave them out"
            )
        return found


@dataclass(frozen=True)
class Floats:
    """A fleet of profiling floats that persists, each of which surfaces once in a cycle (Argo).

    A float roams about its start with a displacement that is a smooth Gaussian function of its number and the time
    (covariance range² exp(-t²/2memory²) in each direction), so with a speed of about range/memory. One that is on land
    or outside the grid when it would surface is silent that time.

    Attributes:
        count: number of floats; the first of a larger fleet are those of a smaller one.
        variables: standard deviation of the error per variable, in its unit.
        every: length of a cycle; when in it a float surfaces is random, and always the same.
        window: profiles of so long before a time are observed then: the time between analyses.
        timed: whether observations say when they were taken (`offset`), and see the truth of that time.
        max_depth: deepest level observed, m.
        range: standard deviation of the displacement, m, in each direction.
        memory: time over which a displacement is remembered.
        height: vertical length of correlation of a profile's errors, m; inf for independent ones.
        kind: label of the observations.

    Each profile is a `group`.
    """

    count: int
    variables: Mapping[str, float]
    every: timedelta = timedelta(days=10)
    window: timedelta = timedelta(days=5)
    timed: bool = False
    max_depth: float = 2000.0
    range: float = 2e5
    memory: timedelta = timedelta(days=60)
    height: float = np.inf
    kind: str = "float"

    def __post_init__(self) -> None:
        if not (self.every > timedelta(0) and self.window > timedelta(0)):
            raise ValueError(f"Floats: wanted every > 0 and window > 0, got {self.every} and {self.window}")
        _check_roaming("Floats", self.range, self.memory)

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The profiles since `window` before a time, (observation,), variable by variable."""
        number, before = self._surfaced(time, noise)
        lat, lon = _starts(layout, self.variables, self.count, noise)
        seconds = seconds_of(time) - before
        lat, lon = _roamed(lat[number], lon[number], number, seconds, self.range, self.memory, noise)
        offset = -before if self.timed else None
        return _columns(
            layout, time, lat, lon, self.variables, self.kind,
            max_depth=self.max_depth, height=self.height, offset=offset,
        )  # fmt: skip

    def _surfaced(self, time: cftime.datetime, noise: Noise) -> tuple[np.ndarray, np.ndarray]:
        """Which floats surfaced within the window, and how many seconds before its end, both (profile,)."""
        cycle, window = self.every.total_seconds(), self.window.total_seconds()
        phase = noise.stream("phase").uniform((0,), None, (self.count,), dtype=torch.float64)[0].numpy()
        since = (seconds_of(time) / cycle - phase) % 1.0 * cycle
        before = since[:, None] + cycle * np.arange(int(np.ceil(window / cycle)))
        number, past = np.nonzero(before < window)
        return number, before[number, past]


@dataclass(frozen=True)
class Buoys:
    """Buoys that drift on the ice or the sea surface and measure there; they roam as `Floats` do.

    Attributes:
        count: number of buoys.
        variables: standard deviation of the error per variable, in its unit, such as {"siu": 0.01, "siv": 0.01}.
        range: standard deviation of the displacement from the start, m, in each direction.
        memory: time over which a displacement is remembered.
        kind: label of the observations.
    """

    count: int
    variables: Mapping[str, float]
    range: float = 1e5
    memory: timedelta = timedelta(days=20)
    kind: str = "buoy"

    def __post_init__(self) -> None:
        _check_roaming("Buoys", self.range, self.memory)

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places of a time, (observation,), variable by variable; none for buoys that are ashore."""
        start, number = _starts(layout, self.variables, self.count, noise), np.arange(self.count)
        seconds = np.full(self.count, seconds_of(time))
        lat, lon = _roamed(*start, number, seconds, self.range, self.memory, noise)
        return _columns(layout, time, lat, lon, self.variables, self.kind, levels=np.zeros(1))


def _check_roaming(name: str, distance: float, memory: timedelta) -> None:
    if not distance >= 0 or memory <= timedelta(0):
        raise ValueError(f"{name}: wanted range >= 0 m and memory > 0, got {distance} and {memory}")


def _starts(layout: Layout, variables: Mapping[str, float], count: int, noise: Noise) -> tuple[np.ndarray, np.ndarray]:
    """Where things that drift begin, the same at all times: lat, lon (thing,)."""
    observed = [field_of(layout, name) for name in variables]
    return random_places(layout, observed[0], count, None, noise)[1:]


def _columns(
    layout: Layout,
    time: cftime.datetime,
    lat: np.ndarray,
    lon: np.ndarray,
    variables: Mapping[str, float],
    kind: str,
    *,
    levels: np.ndarray | None = None,
    max_depth: float = np.inf,
    height: float = np.inf,
    offset: np.ndarray | None = None,
) -> Observations:
    """Variables at some depths (default: the levels) in each of some columns, where there is water.

    Columns are groups, numbered from 1.
    """
    parts = []
    for f in (field_of(layout, name) for name in variables):
        own = layout.grid["lev"].values[: f.levels] if f.levels else np.zeros(1)
        depth = own if levels is None or not f.levels else levels
        depth = depth[depth <= max_depth]
        column, level = (a.ravel() for a in np.indices((len(lat), len(depth))))
        place = lat[column], lon[column], depth[level]
        found = blank(time, f.name, *place, variables[f.name], kind, group=column + 1, height=height)
        found = found if offset is None else found.replace(offset=offset[column])
        parts.append(in_water(layout, found))
    # As `Observations.concat`, but a column's variables share its number.
    group = np.concatenate([p.group for p in parts])
    return Observations.concat(parts).replace(group=group)


def _roamed(
    lat: np.ndarray,
    lon: np.ndarray,
    number: np.ndarray,
    seconds: np.ndarray,
    distance: float,
    memory: timedelta,
    noise: Noise,
) -> tuple[np.ndarray, np.ndarray]:
    """Where things of some numbers that began at (lat, lon) are at some times, lat and lon (thing,).

    Displacements are sums of cosines with Gaussian frequencies (Rahimi and Recht 2007, "Random features for large-scale
    kernel machines"), along great circles.
    """
    drawn, members = noise.stream("roaming"), number.tolist()
    frequency = drawn.normal(members, None, (2, _WAVES), dtype=torch.float64).numpy() / memory.total_seconds()
    phase = drawn.uniform(members, None, (2, _WAVES), dtype=torch.float64).numpy() * 2 * np.pi
    waves = np.cos(frequency * seconds[:, None, None] + phase).sum(-1)
    east, north = (distance / EARTH_RADIUS * np.sqrt(2 / _WAVES) * waves).T
    y, x, zero = np.radians(lat), np.radians(lon), np.zeros(len(lat))
    eastward = np.stack([-np.sin(x), np.cos(x), zero], -1)
    northward = np.stack([-np.sin(y) * np.cos(x), -np.sin(y) * np.sin(x), np.cos(y)], -1)
    angle = np.hypot(east, north)
    way = (east[:, None] * eastward + north[:, None] * northward) / np.where(angle > 0, angle, 1.0)[:, None]
    place = np.cos(angle)[:, None] * unit_vectors(lat, lon) + np.sin(angle)[:, None] * way
    there = np.degrees(np.arctan2(place[:, 1], place[:, 0]))
    return np.degrees(np.arcsin(np.clip(place[:, 2], -1, 1))), lon + (there - lon + 180) % 360 - 180
