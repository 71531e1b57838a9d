"""What the reference dynamics share: the classical Runge-Kutta step, nominal dates, model noise and simple grids.

Lorenz (1963, 1996), Kuramoto-Sivashinsky and the quasi-geostrophic model are autonomous and without units. They
become emulators by convention: a unit of model time is given a nominal length, so that states have dates, and sites are
put on a sphere such that distances along it are proportional to distances in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from numbers import Integral

import cftime
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .grids import EARTH_RADIUS
from .names import GRID_ATTRS
from .noise import Draws
from .state import Field, Layout, State

EPOCH = cftime.DatetimeNoLeap(1, 1, 1)
"""The date of a state that was given none."""


class Autonomous:
    """What the reference dynamics have in common: no forcing, and steps of a nominal length.

    Their dataclasses have these fields, and check them with `nominal` first.
    """

    dt_model: float
    steps: int
    noise_std: float
    unit: timedelta

    def __post_init__(self) -> None:
        _ = self.dt  # says what makes no sense

    @property
    def forcing_layout(self) -> None:
        """No forcing: all constants are the model's own."""
        return

    @property
    def dt(self) -> timedelta:
        """Nominal length of a step."""
        return nominal(type(self).__name__, self.dt_model, self.steps, self.unit, self.noise_std)


class OnRing(Autonomous):
    """Dynamics at `n` sites around the equator."""

    n: int

    @property
    def spacing(self) -> float:
        """Distance between neighbours on the sphere of the layout (m): radii of localisation are multiples of it."""
        return 2 * math.pi * EARTH_RADIUS / self.n


def rk4(f: Callable[[Tensor], Tensor], x: Tensor, dt: float) -> Tensor:
    """One classical Runge-Kutta step of x' = f(x), of fourth order; the unit of `dt` is that of the model's time."""
    k1 = f(x)
    k2 = f(x + (dt / 2) * k1)
    k3 = f(x + (dt / 2) * k2)
    k4 = f(x + dt * k3)
    return x + (dt / 6) * (k1 + 2 * (k2 + k3) + k4)


def integrate(f: Callable[[Tensor], Tensor], x: Tensor, dt: float, steps: int) -> Tensor:
    """`steps` steps of `rk4`."""
    for _ in range(steps):
        x = rk4(f, x, dt)
    return x


def nominal(what: str, dt_model: float, steps: int, unit: timedelta, noise_std: float) -> timedelta:
    """The nominal length of `steps` time steps of `dt_model` units, to the second, as dates of draws are.

    Raises ValueError, beginning with `what`, for a time step, number of steps, unit or noise that makes no sense.
    """
    if not (math.isfinite(dt_model) and dt_model > 0):
        raise ValueError(f"{what}: wanted a time step dt_model > 0, got {dt_model}")
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"{what}: wanted a whole number of steps >= 1, got {steps}")
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise ValueError(f"{what}: wanted noise_std >= 0, got {noise_std}")
    length = timedelta(seconds=round(dt_model * steps * unit.total_seconds()))
    if length < timedelta(seconds=1):
        raise ValueError(
            f"{what}: {steps} steps of {dt_model} x {unit} are shorter than a second, which dates cannot tell apart; "
            "take a longer unit"
        )
    return length


def advanced(state: State, data: Tensor, dt: timedelta, noise: Draws, noise_std: float) -> State:
    """The state one `dt` later with new `data`, plus white noise of the stream "model" where there is any."""
    if noise_std:
        drawn = noise.stream("model").normal(
            state.members, state.time, data.shape[1:], dtype=data.dtype, device=data.device
        )
        data = data + noise_std * drawn * state.layout.mask.to(data.device)
    return state.replace(data=data, time=state.time + dt)


def ring(fields: tuple[Field, ...], n: int, interval: timedelta) -> Layout:
    """A layout of `n` wet sites of equal area around the equator: great-circle distance is distance along the ring."""
    return regular(fields, np.zeros(1), 360.0 / n * np.arange(n), np.ones((1, n), bool), 1.0, interval)


def regular(
    fields: tuple[Field, ...], lat: np.ndarray, lon: np.ndarray, wet: np.ndarray, area: float, interval: timedelta
) -> Layout:
    """A layout of one time slot on a regular grid of cells of one area (m2); `wet (lat, lon)` bool."""
    dims = ("lat", "lon")
    coords = {
        "lat": ("lat", lat, GRID_ATTRS["lat"]),
        "lon": ("lon", lon, GRID_ATTRS["lon"]),
        "areacello": (dims, np.full(wet.shape, area), GRID_ATTRS["areacello"]),
        "wetmask": (dims, wet, GRID_ATTRS["wetmask"]),
    }
    return Layout(fields, xr.Dataset(coords=coords), (0,), interval)


def constant(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor to keep for later steps, which gradients may pass even if it is made within `inference_mode`."""
    with torch.inference_mode(False):
        return torch.from_numpy(values).to(device=device, dtype=dtype)
