"""What drives the embedded oceans: an analytic climate, a warming scenario, and stochastic weather.

The heat flux into the ocean is written as in Haney (1971, J. Phys. Oceanogr. 1, 241),

    Q = hfatm + λ (T_ref - SST),        hfatm = λ (T*(t) - T_ref + ΔT(t)) + q'(t),

so that `hfatm` is what the atmosphere would do to an ocean at the reference temperature: it depends on
season, scenario and weather but not on the ocean, and can be prescribed to a nature run and to an
emulator alike.

Weather is a stationary Gaussian process in time and space. Each pattern is white noise smoothed along
both axes; its memory is a truncated moving average of past draws with weights exp(-lag / τ), normalised
to unit variance. A moving average needs no generator state: the weather of any member at any time can
be computed alone, in any order, which is what makes runs restartable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import cftime
import numpy as np
import torch
from torch import Tensor

from .emulator import year_fraction
from .noise import Noise
from .state import Field, Layout, State

Array = np.ndarray[Any, np.dtype[np.float64]]

FORCING_FIELDS = (Field("tauuo"), Field("tauvo"), Field("hfatm"))


@dataclass(frozen=True)
class Climate:
    """Zonally uniform surface climate; every profile is (y,), one value per latitude.

    Attributes:
        tauuo: annual-mean zonal stress (N m-2); tauuo_season: its relative strengthening in local winter.
        t_ref: reference temperature (degC); t_season: amplitude of its annual cycle (K, negative = austral).
        s_ref: reference salinity (1e-3); virtual_salt: prescribed salt flux (1e-3 m s-1).
    """

    tauuo: Array
    tauuo_season: Array
    t_ref: Array
    t_season: Array
    s_ref: Array
    virtual_salt: Array


def globe_climate(lat: Array) -> Climate:
    """Trades, westerlies and a temperature that follows cos(lat), on the globe."""
    phi = np.radians(lat)
    t_ref = 27.5 * np.cos(phi) ** 2.2 - 1.2 * np.exp(-((lat / 6) ** 2))
    t_ref += np.where(lat < 0, -1.5 * np.sin(phi) ** 2, 2.5 * np.sin(2 * phi) ** 2)
    subtropics = np.exp(-(((np.abs(lat) - 24) / 13) ** 2))
    evaporation = subtropics - 0.45
    evaporation -= np.average(evaporation, weights=np.cos(phi))
    return Climate(
        tauuo=np.interp(
            lat,
            [-74, -66, -50, -30, -15, 0, 15, 30, 46, 62, 70],
            [-0.02, -0.01, 0.17, 0, -0.075, -0.03, -0.075, 0, 0.09, 0.02, 0],
        ),
        tauuo_season=0.25 * np.sign(lat) * (np.abs(lat) > 25),
        t_ref=np.maximum(t_ref, -1.8),
        t_season=5.5 * np.sin(np.clip(2 * phi, -0.6 * np.pi, 0.6 * np.pi)),
        s_ref=34.0 + 1.9 * subtropics - 0.4 * np.exp(-((lat / 7) ** 2)),
        virtual_salt=1.2e-6 * evaporation,
    )


def channel_climate(lat: Array) -> Climate:
    """A westerly jet over a front of 14 K, with an austral annual cycle."""
    y = (lat - lat[0]) / (lat[-1] - lat[0])
    zero = np.zeros_like(lat)
    return Climate(
        tauuo=0.15 * np.sin(np.pi * y) ** 2,
        tauuo_season=zero,
        t_ref=1.0 + 14.0 * y,
        t_season=zero - 2.5,
        s_ref=34.0 + 0.8 * y,
        virtual_salt=zero,
    )


@dataclass(frozen=True)
class Warming:
    """A warming atmosphere: ΔT jumps by `step` (K) at `start` and then rises by `rate` (K per year)."""

    step: float = 0.0
    rate: float = 0.0
    start: cftime.datetime | None = None

    def at(self, time: cftime.datetime) -> float:
        """ΔT in K."""
        if self.start is None:
            return self.step
        years = (time - self.start).total_seconds() / (365.0 * 86400.0)
        return self.step + self.rate * years if years >= 0 else 0.0


@dataclass(frozen=True, eq=False)
class NatureForcing:
    """Forcing of an embedded ocean: `at(time, members)` for the step that starts at `time`.

    Attributes:
        layout: of `tauuo`, `tauvo`, `hfatm`.
        climate: the analytic climate.
        heat_feedback: λ in W m-2 K-1.
        warming: the scenario.
        weather: stochastic weather, None for a calm year.
    """

    layout: Layout
    climate: Climate
    heat_feedback: float
    warming: Warming = Warming()
    weather: Weather | None = None

    def at(self, time: cftime.datetime, members: Sequence[int] = (0,)) -> State:
        """The forcing held constant over `[time, time + interval]`, (member, 3, y, x)."""
        middle = time + self.layout.interval / 2
        c = self.climate
        season = -math.cos(2 * math.pi * (year_fraction(middle) - 0.1))  # northern winter is -1
        stress = c.tauuo * (1 - c.tauuo_season * season)
        heat = self.heat_feedback * (
            np.maximum(c.t_ref + c.t_season * season, -1.8) - c.t_ref + self.warming.at(middle)
        )
        columns = torch.from_numpy(np.stack([stress, np.zeros_like(stress), heat]))[None, :, :, None]
        data = columns.expand(len(members), -1, -1, self.layout.shape[2]).to(torch.float32)
        if self.weather is not None:
            data = data + self.weather.at(time, members)
        return State(data * self.layout.mask, time, self.layout, tuple(members))


@dataclass(frozen=True)
class Pattern:
    """A stationary random field: its memory in days and its length scales in degrees."""

    name: str
    memory: float
    length_lon: float
    length_lat: float


SYNOPTIC = Pattern("synoptic", 4.0, 18.0, 7.0)
SLOW = Pattern("slow", 60.0, 32.0, 13.0)
TROPICAL = Pattern("tropical", 45.0, 40.0, 15.0)
HEAT = Pattern("heat", 6.0, 18.0, 7.0)


@dataclass(frozen=True, eq=False)
class Weather:
    """Stochastic wind stress and heat flux on a regular latitude-longitude grid, per member.

    Synoptic and slow non-divergent stress from random stream functions, strongest in the storm tracks;
    zonal stress on the equator; heat flux partly opposed to the westerlies (stronger wind, more loss).

    Attributes:
        lat, lon: degrees, (y,) and (x,).
        noise: where the draws come from; `at` is a pure function of (noise, member, time).
        interval: time between draws.
        strength: multiplies everything.
    """

    lat: Array
    lon: Array
    noise: Noise
    interval: timedelta = timedelta(days=5)
    strength: float = 1.0
    _cache: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def at(self, time: cftime.datetime, members: Sequence[int]) -> Tensor:
        """Anomalies of (tauuo, tauvo, hfatm), (member, 3, y, x), float32."""
        phi = np.radians(self.lat)
        track = 0.25 + np.sin(2 * phi) ** 2 * np.where(self.lat < 0, 1.2, 1.0)
        column = {
            "track": track,
            "equator": np.exp(-((self.lat / 6) ** 2)),
            "heat": 0.5 + 0.8 * track,
            "loss": np.tanh((np.abs(self.lat) - 25) / 6),
        }
        c = {k: torch.from_numpy(v)[:, None].to(torch.float32) for k, v in column.items()}
        synoptic, slow = (self._remembered(p, time, members, curl=True) for p in (SYNOPTIC, SLOW))
        wind = (0.05 * synoptic + 0.012 * slow) * c["track"]
        tropical = self._remembered(TROPICAL, time, members)[:, 0]
        tauuo = wind[:, 0] + 0.018 * tropical * c["equator"]
        heat = 30.0 * self._remembered(HEAT, time, members)[:, 0] * c["heat"] - 150.0 * tauuo * c["loss"]
        return self.strength * torch.stack([tauuo, wind[:, 1], heat], 1)

    def _remembered(self, p: Pattern, time: cftime.datetime, members: Sequence[int], curl: bool = False) -> Tensor:
        """Moving average of past draws with weights exp(-lag / memory), unit variance."""
        days = self.interval / timedelta(days=1)
        lags = np.arange(math.ceil(4 * p.memory / days) + 1)
        weights = np.exp(-lags * days / p.memory)
        weights /= np.sqrt((weights**2).sum())
        drawn = [self._drawn(p, time - int(j) * self.interval, tuple(members), curl) for j in lags]
        total = torch.zeros_like(drawn[0])
        for w, d in zip(weights, drawn, strict=True):
            total = total.add(d, alpha=float(w))
        return total

    def _drawn(self, p: Pattern, time: cftime.datetime, members: tuple[int, ...], curl: bool) -> Tensor:
        """One spatially correlated draw, (member, 1 or 2, y, x); kept while its memory lasts."""
        key = (p.name, time, members)
        if key not in self._cache:
            if len(self._cache) > 400:  # four patterns, each with at most 50 lags alive
                for old in list(self._cache)[:200]:
                    del self._cache[old]
            along_lat, along_lon = self._smoothers(p, curl)
            white = self.noise.stream(p.name).normal(members, time, (len(self.lat), len(self.lon)))
            # One product per member: the bits of a member must not depend on its batch.
            rows = [
                torch.stack([a @ w @ b for a, b in zip(along_lat, along_lon, strict=True)])
                for w in (row.clone() for row in white)
            ]
            self._cache[key] = torch.stack(rows)
        return self._cache[key]

    def _smoothers(self, p: Pattern, curl: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices A, B of `A @ white @ B`: the field itself, or (-∂/∂y, ∂/∂x) of a stream function.

        Rows have unit norm, so the variance is 1 everywhere, up to the edges.
        """
        dlat, dlon = abs(self.lat[1] - self.lat[0]), abs(self.lon[1] - self.lon[0])
        ny, nx = len(self.lat), len(self.lon)
        away = np.abs(np.arange(nx)[:, None] - np.arange(nx))
        lon = np.exp(-0.5 * (np.minimum(away, nx - away) * dlon / p.length_lon) ** 2)
        lat = np.exp(-0.5 * ((np.arange(ny)[:, None] - np.arange(ny)) * dlat / p.length_lat) ** 2)
        pairs = [(lat, lon)]
        if curl:
            pairs = [(-np.gradient(lat, axis=0), lon), (lat, np.roll(lon, -1, 0) - np.roll(lon, 1, 0))]
        unit = [
            tuple(torch.from_numpy(m / np.linalg.norm(m, axis=1, keepdims=True)).float() for m in pair)
            for pair in pairs
        ]
        return [a for a, _ in unit], [b.T.contiguous() for _, b in unit]
