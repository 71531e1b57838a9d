"""What drives the embedded sea ice: seasons of air temperature, a mean anticyclone, and travelling storms.

Weather is a stationary Gaussian process: stream function and temperature anomaly are white noise on a periodic plane,
smoothed, remembered with weights exp(-lag / τ), and carried by a steering flow. As in `nature_forcing` a record is a
function of (noise, member, time) alone, so that any member's weather at any time can be computed by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import cftime
import torch
from torch import Tensor

from .emulator import year_fraction
from .ice_forcing import specific_humidity
from .noise import Noise
from .state import Field, Layout, State

ICE_FORCING_FIELDS = (Field("tas"), Field("huss"), Field("uas"), Field("vas"))
_MEMORIES = 4  # after so many memories the past is forgotten
_DRY = 1.5  # K, of the dew point below the air's temperature
_PRESSURE = 101325.0  # Pa


@dataclass(frozen=True, eq=False)
class IceWeather:
    """Forcing of an embedded sea ice: `at(time, members)` for the step that starts at `time`.

    Attributes:
        layout: of `tas`, `huss`, `uas`, `vas` at the slots 0 and 1, on a grid with `x` and `y` (m).
        noise: where the weather comes from; None for seasons and mean wind alone.
        wind: standard deviation of each component of the weather's wind, m s-1.
        size: of storms: length scale of the stream function, m.
        memory: e-folding time of the weather.
        steering: velocity that carries it, m s-1 along x and y.
        temperature: standard deviation of the weather's air temperature, K.
        anticyclone: speed of the mean wind, m s-1.
        mean, season, slope: of the air temperature: annual mean and annual amplitude at the pole, K, and what
            it rises by from the middle of the map to its lower edge, K.
    """

    layout: Layout
    noise: Noise | None = None
    wind: float = 8.0
    size: float = 225e3
    memory: timedelta = timedelta(days=2.5)
    steering: tuple[float, float] = (6.0, 2.5)
    temperature: float = 2.5
    anticyclone: float = 3.0
    mean: float = 260.0
    season: float = 15.0
    slope: float = 7.0
    _cache: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    _spectra: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def at(self, time: cftime.datetime, members: Sequence[int] = (0,)) -> State:
        """The forcing at the slots' times, (member, 8, y, x), float32."""
        data = torch.cat([self._record(t, tuple(members)) for t in self.layout.times(time)], 1)
        return State(data * self.layout.mask, time, self.layout, tuple(members))

    def _record(self, time: cftime.datetime, members: tuple[int, ...]) -> Tensor:
        """Temperature, humidity and wind of one time, (member, 4, y, x)."""
        key = (time, members)
        if key not in self._cache:
            while len(self._cache) > 1:  # a step's end is the next one's start
                self._cache.pop(next(iter(self._cache)))
            air, wind = self._mean(time)
            calm = torch.zeros(len(members), 3, *self.layout.shape[1:], dtype=torch.float64)
            weather = calm if self.noise is None else self._weather(time, members)
            tas = (air + weather[:, 0]).clamp(max=277.0)  # over melting ice
            humidity = specific_humidity(tas - _DRY, torch.tensor(_PRESSURE))
            self._cache[key] = torch.stack([tas, humidity, *(wind + weather[:, 1:]).unbind(1)], 1).float()
        return self._cache[key]

    def _mean(self, time: cftime.datetime) -> tuple[Tensor, Tensor]:
        """Air temperature (y, x) and wind (2, y, x) without weather."""
        x, y = (torch.tensor(self.layout.grid[n].values) for n in ("x", "y"))
        half = float(x.max() - x.min()) / 2
        season = -math.cos(2 * math.pi * (year_fraction(time) - 20 / 360))
        air = self.mean + self.season * season - self.slope * y[:, None] / half * torch.ones_like(x)
        radius = 2 * half / 3
        spin = self.anticyclone / radius * torch.exp(-(x**2 + y[:, None] ** 2) / (2 * radius**2))
        return air, torch.stack([spin * y[:, None], -spin * x])

    def _weather(self, time: cftime.datetime, members: tuple[int, ...]) -> Tensor:
        """Anomalies of temperature and wind, (member, 3, y, x), float64."""
        assert self.noise is not None
        grid = self.layout.grid
        ny, nx = self.layout.shape[1:]
        spacing = float(grid["x"][1] - grid["x"][0])
        cells = 2 * max(ny, nx) + 32  # periodic far outside the map
        k = 2 * math.pi * torch.fft.fftfreq(cells, spacing, dtype=torch.float64)
        kx, ky = k[None, : cells // 2 + 1].abs(), k[:, None]
        smooth = torch.exp(-(kx**2 + ky**2) * self.size**2 / 2)
        days = self.layout.interval / timedelta(days=1)
        lags = range(math.ceil(_MEMORIES * (self.memory / timedelta(days=1)) / days) + 1)
        weights = [math.exp(-j * (self.layout.interval / self.memory)) for j in lags]
        norm = math.sqrt(sum(w * w for w in weights))
        phase = (kx * self.steering[0] + ky * self.steering[1]) * self.layout.interval.total_seconds()
        turned = [torch.polar(torch.ones_like(phase), -j * phase) for j in lags]
        rows = []
        for member in members:
            flow, warm = torch.zeros(2, cells, cells // 2 + 1, dtype=torch.complex128)
            for j, w in zip(lags, weights, strict=True):
                carried = self._drawn(member, time - j * self.layout.interval, cells) * (w / norm * turned[j])
                flow, warm = flow + carried[0], warm + carried[1]
            flow, warm = flow * smooth, warm * smooth
            maps = torch.fft.irfft2(torch.stack([warm, -1j * ky * flow, 1j * kx * flow]), (cells, cells))
            rows.append(maps[:, :ny, :nx])
        while len(self._spectra) > len(lags) * len(members):
            self._spectra.pop(next(iter(self._spectra)))
        # White noise has unit variance, so these are the standard deviations of the smoothed maps.
        full = torch.exp(-(k[None] ** 2 + k[:, None] ** 2) * self.size**2)
        scale = torch.stack([full.mean(), (ky**2 * full).mean(), (ky**2 * full).mean()]).sqrt()
        wanted = torch.tensor([self.temperature, self.wind, self.wind], dtype=torch.float64)
        return torch.stack(rows) * (wanted / scale)[:, None, None]

    def _drawn(self, member: int, time: cftime.datetime, cells: int) -> Tensor:
        """White noise of stream function and temperature, in wavenumbers; kept while its memory lasts."""
        key = (member, time)
        if key not in self._spectra:
            assert self.noise is not None
            white = self.noise.stream("storms").normal((member,), time, (2, cells, cells))
            self._spectra[key] = torch.fft.rfft2(white[0].double())
        return self._spectra[key]
