"""Instruments in orbit: nadir altimeters and swaths along the ground tracks of satellites (`orbits.py`), and clouds.

In a sector that repeats in longitude a satellite sees what lies between the sector's own longitudes, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np
import torch
from scipy.signal import lfilter
from scipy.special import ndtri

from ..emulators import Layout, Noise
from .localise import EARTH_RADIUS, unit_vectors
from .observations import Derived, Observations
from .orbits import JASON, Orbit
from .places import ErrorModel, Wrapper, blank, field_of, in_water, seconds_of

_WAVES = 128  # of a field of clouds


@dataclass(frozen=True)
class LinearError:
    """An error that grows with what is observed: base + slope |x|, and no observation where x < least."""

    base: float
    slope: float
    least: float = -np.inf

    def __call__(self, exact: np.ndarray) -> np.ndarray:
        """Standard deviations, inf where there is nothing to see."""
        return np.where(exact >= self.least, self.base + self.slope * np.abs(exact), np.inf)


@dataclass(frozen=True)
class ThinIceError:
    """An error of ice thickness from L-band emission, base exp(h / scale), and no observation of thicker ice than most.

    The emission saturates exponentially with thickness (Kaleschke et al. 2012, doi:10.1029/2012GL050916).

    Attributes:
        base: standard deviation for the thinnest ice, m.
        scale: thickness over which it grows by e, m.
        most: thickest ice that is seen, m.
        least: thinnest, m; below it there is no ice.
    """

    base: float = 0.05
    scale: float = 0.4
    most: float = 1.0
    least: float = 0.01

    def __call__(self, exact: np.ndarray) -> np.ndarray:
        """Standard deviations, inf where there is nothing to see."""
        seen = (exact >= self.least) & (exact <= self.most)
        return np.where(seen, self.base * np.exp(np.where(seen, exact, 0.0) / self.scale), np.inf)


@dataclass(frozen=True)
class Satellite:
    """What altimeters and swaths share; not an instrument itself.

    Attributes:
        variable: CF name, or a derived quantity; its uppermost level is seen.
        error: standard deviation, in the unit of the variable; or a function of the true value such as
            `LinearError(0.1, 0.1)`, which says where nothing is seen too.
        orbit: such as `JASON`.
        window: so long before a time all passes are observed: the time between analyses.
        spacing: of the points along the track, m.
        timed: whether observations say when they were taken (`offset`), and see the truth of that time.
        length: along which errors are correlated, m; inf for independent ones.
        kind: label of the observations.

    Each pass from one extreme latitude to the other is a `group`.
    """

    variable: str | Derived = "zos"
    error: float | ErrorModel = 0.03
    orbit: Orbit = JASON
    window: timedelta = timedelta(days=5)
    spacing: float = 7e3
    timed: bool = False
    length: float = np.inf
    kind: str = "altimeter"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.window <= timedelta(0) or not (self.spacing > 0 and self.length > 0):
            raise ValueError(
                f"{name}: wanted window > 0, spacing > 0 m and length > 0 m, got {self.window}, {self.spacing} and "
                f"{self.length}"
            )
        if not callable(self.error) and not self.error > 0:
            raise ValueError(f"{name}: wanted an error > 0, got {self.error}")

    def errors(self, places: Observations, exact: np.ndarray) -> np.ndarray:
        """Standard deviations of the random errors, (observation,)."""
        return np.asarray(self.error(exact)) if callable(self.error) else places.error

    def _seen(
        self,
        layout: Layout,
        time: cftime.datetime,
        across: np.ndarray,
        value: np.ndarray | None = None,
        length: float = np.inf,
    ) -> Observations:
        """All points at some distances across the track, with an own offset (sample, across), that are in water."""
        for name in self.variable.inputs if isinstance(self.variable, Derived) else (self.variable,):
            field_of(layout, name)
        seconds = self.orbit.samples(time, self.window, self.spacing)
        near = _near(layout, *self.orbit.point(seconds), float(np.abs(across).max(initial=0.0)))
        seconds = np.repeat(seconds[near, None], len(across), 1)
        lat, lon = (a.ravel() for a in self.orbit.point(seconds, across))
        number = self.orbit.passes(seconds).ravel()
        since = np.clip(seconds.ravel() - seconds_of(time), -self.window.total_seconds(), 0.0)
        inside = _in_sector(layout, lon)
        error = 1.0 if callable(self.error) else self.error
        found = blank(
            time, self.variable, lat[inside], lon[inside], np.zeros(inside.sum()), error, self.kind,
            offset=since[inside] if self.timed else 0.0, length=length,
            group=(number - number.min(initial=0) + 1)[inside],
        )  # fmt: skip
        if value is not None:
            found = found.replace(value=value[near].ravel()[inside])
        return in_water(layout, found)


@dataclass(frozen=True)
class Altimeter(Satellite):
    """A nadir altimeter: all passes of its orbit since `window` before a time.

    For the sea level of Jason the defaults will do. Ice thickness of CryoSat is
    `Altimeter("sithick", LinearError(0.1, 0.1, least=0.05), CRYOSAT)`.

    Attributes are those of `Satellite`.
    """

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The points of a time, (observation,), in order of time."""
        return self._seen(layout, time, np.zeros(1), length=self.length)


@dataclass(frozen=True)
class Swath(Satellite):
    """An imager or wide-swath altimeter: points across the track on either side of it.

    A roll of the platform adds an error that is linear in the distance across the track and correlated along it over
    `length`. It is drawn as the instrument's own offset: analyses are told of its mean variance across the swath, and,
    if `correlated`, of its length, exp(-distance/length) within a pass, for all of the error. Without roll and with
    `correlated` the random error itself is drawn so.

    SWOT is `Swath("zos", 0.02, SWOT, width=1.2e5, gap=2e4, roll=0.02, length=5e5)`, an imager of ice concentration
    `Swath("siconc", 0.1, AQUA, width=1.45e6, across=2.5e4, spacing=2.5e4)`. The footprint is a point.

    Attributes:
        width: from edge to edge, m.
        gap: width of what is not seen around the nadir, m.
        across: spacing of the points across the track, m, or nearly so that whole cells fit; default that along it.
        roll: standard deviation at the edges, in the unit of the variable.
        correlated: whether observations say that their errors are correlated; the cost of an analysis grows with the
            cube of the number of observations in a pass.
    """

    kind: str = "swath"
    width: float = 1.2e5
    gap: float = 0.0
    across: float | None = None
    roll: float = 0.0
    correlated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gap < self.width or (self.across is not None and not self.across > 0):
            raise ValueError(
                f"Swath: wanted 0 <= gap < width and across > 0 m, got {self.gap}, {self.width} and {self.across}"
            )
        if not self.roll >= 0 or (not np.isfinite(self.length) and (self.roll or self.correlated)):
            raise ValueError(
                f"Swath: wanted roll >= 0, and with roll or correlated errors a finite length, got {self.roll} and "
                f"{self.length}"
            )

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The points of a time, (observation,), in order of time and then across from right to left."""
        across, value = self._distances(), None
        if self.roll:
            value = self._rolls(time, noise)[:, None] * (across / (self.width / 2))
        drawn = self.length if self.correlated and not self.roll else np.inf
        return self._seen(layout, time, across, value, drawn)

    def reported(self, observations: Observations, noise: Noise) -> Observations:
        """The observations with the variance of the roll added to that of the random error."""
        if not self.roll:
            return observations
        rms = self.roll * np.sqrt(np.mean((self._distances() / (self.width / 2)) ** 2))
        length = self.length if self.correlated else np.inf
        return observations.replace(error=np.hypot(observations.error, rms), length=np.array(length))

    def _distances(self) -> np.ndarray:
        """Of the points from the nadir, m."""
        step = self.across or self.spacing
        half = (self.width - self.gap) / 2
        right = self.gap / 2 + half * (np.arange(max(round(half / step), 1)) + 0.5) / max(round(half / step), 1)
        return np.concatenate([-right[::-1], right])

    def _rolls(self, time: cftime.datetime, noise: Noise) -> np.ndarray:
        """The offset at the left edge at every sample: a first-order Markov process."""
        seconds = self.orbit.samples(time, self.window, self.spacing)
        eta = noise.stream("roll").normal((0,), time, (len(seconds),), dtype=torch.float64)[0].numpy()
        memory = np.exp(-self.spacing / self.length)
        eta[1:] *= np.sqrt(1 - memory**2)  # the first is drawn from the distribution that the others keep
        return self.roll * np.asarray(lfilter([1.0], [1.0, -memory], eta))


@dataclass(frozen=True)
class Clouds(Wrapper):
    """An instrument that clouds hide from what it looks at, such as an infrared imager.

    Clouds are where a smooth Gaussian field on the sphere, of covariance exp(-r²/2scale²), is highest; it is a sum of
    cosines with Gaussian wave vectors (Rahimi and Recht 2007). Those of one instrument differ from another's.

    Attributes:
        cover: fraction of places that are hidden, on average over many clouds.
        scale: of the field, m.
        memory: over which clouds live, with covariance exp(-t²/2memory²); None for new clouds at each time.
    """

    cover: float = 0.6
    scale: float = 5e5
    memory: timedelta | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.cover < 1 or not self.scale > 0 or (self.memory is not None and self.memory <= timedelta(0)):
            raise ValueError(
                f"Clouds: wanted 0 <= cover < 1, scale > 0 m and memory > 0, got {self.cover}, {self.scale} and "
                f"{self.memory}"
            )

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places that are clear."""
        seen = self.instrument.places(layout, time, noise)
        return seen.select(self._field(seen, time, noise) < -ndtri(self.cover))

    def _field(self, o: Observations, time: cftime.datetime, noise: Noise) -> np.ndarray:
        """The field at the observations, (observation,), of variance 1."""
        drawn, when = self.own(noise), None if self.memory else time
        wave = drawn.normal((0,), when, (_WAVES, 4), dtype=torch.float64)[0].numpy()
        phase = drawn.uniform((0,), when, (_WAVES,), dtype=torch.float64)[0].numpy() * 2 * np.pi
        place = unit_vectors(o.lat, o.lon) * (EARTH_RADIUS / self.scale)
        out = np.zeros(len(o))
        for k, p in zip(wave, phase, strict=True):  # one by one: (observation, wave) may be large
            ahead = k[3] * (seconds_of(time) + o.offset) / self.memory.total_seconds() if self.memory else 0.0
            out += np.cos(place @ k[:3] + ahead + p)
        return np.asarray(out * np.sqrt(2 / _WAVES))


def _near(layout: Layout, lat: np.ndarray, lon: np.ndarray, margin: float) -> np.ndarray:
    """Which points are within `margin` m of the smallest cap around the grid's middle that holds it, or nearly so."""
    points = unit_vectors(*layout.position(layout.fields[0])).reshape(-1, 3)
    middle = points.mean(0)
    if np.linalg.norm(middle) < 1e-3:
        return np.ones(len(lat), bool)
    middle /= np.linalg.norm(middle)
    cell = np.sqrt(float(layout.grid["areacello"].max()))
    reach = np.arccos(np.clip(points @ middle, -1, 1).min()) + (margin + 2 * cell) / EARTH_RADIUS
    return np.asarray(unit_vectors(lat, lon) @ middle >= np.cos(min(reach, np.pi)))


def _in_sector(layout: Layout, lon: np.ndarray) -> np.ndarray:
    """Which longitudes a grid's own are, where it repeats after less than the whole circle."""
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    if period >= 360:
        return np.ones(len(lon), bool)
    own = np.sort(layout.grid["lon"].values.ravel())
    west = own[0] - (own[1] - own[0]) / 2 if len(own) > 1 else own[0]
    return np.asarray((lon - west) % 360.0 < period)
