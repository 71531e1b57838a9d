"""Lorenz's models of 1963 and 1996 as emulators: small, chaotic, and with published scores for every filter.

    1963:  x' = σ(y - x),  y' = x(ρ - z) - y,  z' = xy - βz
    1996:  x_i' = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F,  indices around a ring

Both take classical Runge-Kutta steps. Sources: Lorenz (1963, J. Atmos. Sci. 20, 130); Lorenz (1996, ECMWF Seminar on
Predictability, 1), where a unit of time is about 5 days; set-ups of Sakov and Oke (2008, Tellus A 60, 361) and Sakov,
Oliver and Bertino (2012, Mon. Wea. Rev. 140, 1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from numbers import Integral

import cftime
import torch
from torch import Tensor

from .emulator import check_inputs
from .integrate import EPOCH, Autonomous, OnRing, advanced, integrate, ring
from .noise import Draws, Noise
from .state import Field, Layout, State

__all__ = ["Lorenz63", "Lorenz96", "lorenz63", "lorenz96"]

_SPIN_UP = 20.0  # time units from the noise around the attractor to the attractor: both forget within a few


def lorenz63(x: Tensor, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3) -> Tensor:
    """Tendency of (x, y, z) in the last dimension, (..., 3), per unit of time."""
    u, v, w = x.unbind(-1)
    return torch.stack([sigma * (v - u), u * (rho - w) - v, u * v - beta * w], -1)


def lorenz96(x: Tensor, forcing: float | Tensor = 8.0) -> Tensor:
    """Tendency of the sites in the last dimension, (..., n), per unit of time; `forcing` broadcasts against them."""
    around = torch.cat([x[..., -2:], x, x[..., :1]], -1)
    return (around[..., 3:] - around[..., :-3]) * around[..., 1:-2] - x + forcing


@dataclass(frozen=True)
class Lorenz63(Autonomous):
    """The convection of Lorenz (1963): three variables `x`, `y`, `z` at one place; an `Emulator`.

    Attributes:
        sigma: Prandtl number σ.
        rho: Rayleigh number over its critical value, ρ.
        beta: of the geometry, β.
        dt_model: of a Runge-Kutta step, time units.
        steps: Runge-Kutta steps in a step of the emulator.
        noise_std: of white noise added to every variable after every step of the emulator, stream "model".
        unit: nominal length of a time unit, for dates.

    Raises ValueError for values that make no sense.
    """

    sigma: float = 10.0
    rho: float = 28.0
    beta: float = 8 / 3
    dt_model: float = 0.01
    steps: int = 1
    noise_std: float = 0.0
    unit: timedelta = timedelta(days=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(map(math.isfinite, (self.sigma, self.rho, self.beta))):
            raise ValueError(f"Lorenz63: wanted finite sigma, rho, beta, got {self.sigma}, {self.rho}, {self.beta}")

    @cached_property
    def layout(self) -> Layout:
        """`x`, `y`, `z` on a grid of one cell."""
        return ring((Field("x"), Field("y"), Field("z")), 1, self.dt)

    def tendency(self, x: Tensor) -> Tensor:
        """x' for values (..., 3), per time unit."""
        return lorenz63(x, self.sigma, self.rho, self.beta)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state one `dt` later."""
        check_inputs(self, state, forcing)
        x = integrate(self.tendency, state.data.flatten(1), self.dt_model, self.steps)
        return advanced(state, x.view_as(state.data), self.dt, noise, self.noise_std)

    def at_attractor(
        self,
        members: Sequence[int],
        noise: Noise,
        *,
        time: cftime.datetime = EPOCH,
        dtype: torch.dtype = torch.float64,
    ) -> State:
        """Independent states on the attractor: noise of its mean and size, 20 time units later.

        A member is a function of `noise` and its number only.
        """
        drawn = noise.stream("attractor").normal(members, None, self.layout.shape, dtype=dtype).flatten(1)
        x = torch.tensor([0.0, 0.0, self.rho - 1], dtype=dtype) + 8.0 * drawn
        x = integrate(self.tendency, x, self.dt_model, math.ceil(_SPIN_UP / self.dt_model))
        return State(x.view(-1, *self.layout.shape), time, self.layout, tuple(members))


@dataclass(frozen=True)
class Lorenz96(OnRing):
    """A quantity at `n` sites around a latitude circle, by Lorenz (1996): variable `x`; an `Emulator`.

    Attributes:
        n: number of sites, at least 4.
        forcing: F; 8 is chaotic.
        dt_model: of a Runge-Kutta step, time units.
        steps: Runge-Kutta steps in a step of the emulator.
        noise_std: of white noise added to every site after every step of the emulator, stream "model".
        unit: nominal length of a time unit, for dates: 5 days, as Lorenz has it, so that 0.05 is 6 hours.

    Raises ValueError for values that make no sense.
    """

    n: int = 40
    forcing: float = 8.0
    dt_model: float = 0.05
    steps: int = 1
    noise_std: float = 0.0
    unit: timedelta = timedelta(days=5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.n, Integral) or self.n < 4:
            raise ValueError(f"Lorenz96: wanted n >= 4 sites, so that all neighbours differ, got {self.n}")
        if not math.isfinite(self.forcing):
            raise ValueError(f"Lorenz96: wanted a finite forcing, got {self.forcing}")

    @cached_property
    def layout(self) -> Layout:
        """`x` at n sites around the equator, (1, n) cells."""
        return ring((Field("x"),), self.n, self.dt)

    def tendency(self, x: Tensor) -> Tensor:
        """x' for values (..., n), per time unit."""
        return lorenz96(x, self.forcing)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state one `dt` later."""
        check_inputs(self, state, forcing)
        x = integrate(self.tendency, state.data[:, 0, 0], self.dt_model, self.steps)
        return advanced(state, x[:, None, None], self.dt, noise, self.noise_std)

    def at_attractor(
        self,
        members: Sequence[int],
        noise: Noise,
        *,
        time: cftime.datetime = EPOCH,
        dtype: torch.dtype = torch.float64,
    ) -> State:
        """Independent states on the attractor: noise around F/4 of size F/2, 20 time units later.

        A member is a function of `noise` and its number only.
        """
        drawn = noise.stream("attractor").normal(members, None, self.layout.shape, dtype=dtype)[:, 0, 0]
        x = self.forcing / 4 + (abs(self.forcing) / 2) * drawn
        x = integrate(self.tendency, x, self.dt_model, math.ceil(_SPIN_UP / self.dt_model))
        return State(x[:, None, None], time, self.layout, tuple(members))
