"""Orbits of satellites: where on the ground they look, and when.

A circular orbit that repeats exactly, of inclination i, after N revolutions and D turns of the Earth relative to its
plane (nodal days), on a sphere: with u = 2π N t/repeat and the node at Λ at the start,

    sin lat = sin i sin u,    lon = Λ - 2π D t/repeat + atan2(cos i sin u, cos u)

Precession of the plane is in D: 10 nodal days of Jason are 9.9156 days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np

from .localise import EARTH_RADIUS
from .places import seconds_of


@dataclass(frozen=True)
class Orbit:
    """A circular orbit that repeats.

    Attributes:
        inclination: of its plane, degrees; above 90 it is retrograde.
        revolutions: until the ground track repeats.
        turns: of the Earth relative to the orbital plane in that time (nodal days).
        repeat: that time.
        node: longitude of the ascending node at the start of 2000, degrees east.
    """

    inclination: float
    revolutions: int
    turns: int
    repeat: timedelta
    node: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.inclination < 180 or self.revolutions < 1 or self.turns < 1 or self.repeat <= timedelta(0):
            raise ValueError(
                f"Orbit: wanted 0 < inclination < 180 degrees and revolutions, turns, repeat > 0, got {self}"
            )

    @property
    def period(self) -> float:
        """Of a revolution, s."""
        return self.repeat.total_seconds() / self.revolutions

    def point(self, seconds: np.ndarray, across: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Where the satellite looks.

        Args:
            seconds: since the start of 2000, any shape.
            across: distance from the nadir to the left of the flight, square to the orbital plane, m; broadcasts.

        Returns latitude and longitude, degrees.
        """
        # Within one repeat, where numbers are small and repeats are exact.
        s = np.asarray(seconds, float) % self.repeat.total_seconds() / self.repeat.total_seconds()
        u, i = 2 * np.pi * (s * self.revolutions % 1.0), np.radians(self.inclination)
        d = np.asarray(across, float) / EARTH_RADIUS
        # In axes whose first points to the ascending node: nadir cos d + normal sin d.
        x = np.cos(u) * np.cos(d)
        y = np.sin(u) * np.cos(i) * np.cos(d) - np.sin(i) * np.sin(d)
        z = np.sin(u) * np.sin(i) * np.cos(d) + np.cos(i) * np.sin(d)
        lon = self.node - 360.0 * (s * self.turns % 1.0) + np.degrees(np.arctan2(y, x))
        return np.degrees(np.arcsin(np.clip(z, -1, 1))), lon % 360.0

    def samples(self, time: cftime.datetime, window: timedelta, spacing: float) -> np.ndarray:
        """Seconds since the start of 2000 at which points about `spacing` m apart are passed before a time.

        A whole number of them makes a revolution, at equal intervals: they are `spacing` apart on a sphere at rest,
        and a few per cent more or less on one that turns. Windows that follow each other share none and leave none out.
        """
        step = self.period / max(round(2 * np.pi * EARTH_RADIUS / spacing), 1)
        last = seconds_of(time)
        first = np.floor((last - window.total_seconds()) / step) + 1
        return np.asarray(step * np.arange(first, np.floor(last / step) + 1))

    def passes(self, seconds: np.ndarray) -> np.ndarray:
        """Numbers of the half revolutions, from one extreme latitude to the other."""
        return np.floor(2 * seconds / self.period + 0.5).astype(np.int64)


JASON = Orbit(66.04, 127, 10, timedelta(days=9.9156))
SWOT = Orbit(77.6, 292, 21, timedelta(days=20.8646))
SENTINEL3 = Orbit(98.65, 385, 27, timedelta(days=27))
CRYOSAT = Orbit(92.0, 5344, 369, timedelta(days=368.24))
SMOS = Orbit(98.44, 2144, 149, timedelta(days=149))
AQUA = Orbit(98.2, 233, 16, timedelta(days=16))
