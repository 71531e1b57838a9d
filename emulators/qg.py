"""The quasi-geostrophic model of Sakov and Oke as an emulator: a wind-driven double gyre full of eddies.

    q = ∇²ψ - Fψ,      q_t = -ψ_x - r J(ψ, q) - A∇⁶ψ - 2π W sin(2πy)

on the unit square, one and a half layers (reduced gravity), ψ = ∇²ψ = ∇⁴ψ = 0 on the walls. x is the last dimension,
y the one before, northwards: the wind drives an anticyclone (ψ > 0) in the south and a cyclone in the north. Second
order in space, with the Jacobian of Arakawa (1966, J. Comput. Phys. 1, 119), which conserves energy and enstrophy;
fourth-order Runge-Kutta in time. With these walls the five-point operators are diagonal in sines, so that ψ follows
from q exactly, by fast transforms.

Source: Sakov and Oke (2008, Tellus A 60, 361); constants and the sign of the wind as in enkf-matlab's Fortran today.
The solver works on the inside of the walls, (..., n - 2, n - 2), where ψ and q are 0 on the wall around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, lru_cache
from numbers import Integral

import cftime
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .emulator import check_inputs
from .grids import EARTH_RADIUS
from .integrate import EPOCH, Autonomous, advanced, constant, integrate, regular
from .noise import Draws, Noise
from .state import Field, Layout, State

__all__ = ["QuasiGeostrophic", "arakawa", "helmholtz", "laplacian", "qg_tendency", "streamfunction"]

_CELL = 0.01  # degrees: so small a sea around the equator is flat to 1e-4
_WAVES = 6  # of the noise a spin-up begins with, in either direction
_LEVEL = 8.0  # its root mean square, near that of the attractor, which a start from rest takes 20000 units to reach
_CACHED = 65536  # numbers of a field that are advanced together
_FINE = 129  # points from which a spin-up begins on a grid of half the resolution
_SPIN_UP, _REFINE = 4000.0, 1000.0  # time units, from noise, and from the coarser grid


def laplacian(x: Tensor, h: float) -> Tensor:
    """Five-point ∇²x of points `h` apart, (..., m, m), with walls of 0 around them."""
    around = pad(x, (1, 1, 1, 1))
    across = around[..., 1:-1, 2:] + around[..., 1:-1, :-2]
    along = around[..., 2:, 1:-1] + around[..., :-2, 1:-1]
    return (across + along - 4 * x) / h**2


def helmholtz(psi: Tensor, h: float, froude: float) -> Tensor:
    """q = ∇²ψ - Fψ, (..., m, m)."""
    return laplacian(psi, h) - froude * psi


def streamfunction(q: Tensor, h: float, froude: float) -> Tensor:
    """ψ with ∇²ψ - Fψ = q and ψ = 0 on the walls, (..., m, m): the inverse of `helmholtz`, by sine transforms."""
    inverse = _inverse(q.shape[-1], h, froude, q.dtype, q.device)
    return _sines(_sines(inverse * _sines(_sines(q, -1), -2), -2), -1)


def arakawa(p: Tensor, q: Tensor, h: float) -> Tensor:
    """J(p, q) = p_x q_y - p_y q_x at the inner points of (..., m, n) points `h` apart: (..., m - 2, n - 2).

    The mean of three forms by which the sums of J, pJ and qJ over a periodic or closed domain vanish.
    Source: Arakawa (1966), ordered by the neighbours of q, with differences of p taken once.
    """
    north = p[..., 2:, :] - p[..., :-2, :]
    north = north[..., 1:] + north[..., :-1]  # on the faces between columns
    east = p[..., :, 2:] - p[..., :, :-2]
    east = east[..., 1:, :] + east[..., :-1, :]  # on the faces between rows
    up = p[..., 1:, 1:] - p[..., :-1, :-1]  # on the corners, along one diagonal
    down = p[..., :-1, 1:] - p[..., 1:, :-1]  # and the other
    sum_of = north[..., :-1] * q[..., 1:-1, :-2] - north[..., 1:] * q[..., 1:-1, 2:]
    sum_of = sum_of + east[..., 1:, :] * q[..., 2:, 1:-1] - east[..., :-1, :] * q[..., :-2, 1:-1]
    sum_of = sum_of + down[..., 1:, 1:] * q[..., 2:, 2:] - down[..., :-1, :-1] * q[..., :-2, :-2]
    sum_of = sum_of + up[..., 1:, :-1] * q[..., 2:, :-2] - up[..., :-1, 1:] * q[..., :-2, 2:]
    return sum_of / (12 * h**2)


def qg_tendency(q: Tensor, h: float, froude: float, r: float, viscosity: float, wind: float = 1.0) -> Tensor:
    """q_t of the module's equation, (..., m, m) on the inside of walls, points `h` apart, per time unit."""
    psi = streamfunction(q, h, froude)
    friction = laplacian(laplacian(q + froude * psi, h), h)
    p, q = (pad(x, (1, 1, 1, 1)) for x in (psi, q))
    waves = (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) / (2 * h)
    curl = _curl(q.shape[-2] - 2, h, wind, q.dtype, q.device)
    return -(waves + r * arakawa(p, q, h) + viscosity * friction + curl)


@dataclass(frozen=True)
class QuasiGeostrophic(Autonomous):
    """The double gyre of Sakov and Oke (2008): streamfunction `psi` on n x n points, walls included; an `Emulator`.

    The walls are land: `psi` is 0 there. Members of small ensembles are commonly given ten times the viscosity.

    Attributes:
        n: points along a side, walls included, at least 9.
        froude: F, the square of the sea's width over the radius of deformation.
        rossby: r, of the nonlinear term.
        viscosity: A, of the biharmonic friction; on coarser grids larger, as the fourth power of the spacing.
        wind: W, strength of the wind over the published one.
        dt_model: of a Runge-Kutta step, time units.
        steps: Runge-Kutta steps in a step of the emulator: 4, after which observations came.
        noise_std: of white noise added to every inner point after every step of the emulator, stream "model".
        unit: nominal length of a time unit, for dates.

    Raises ValueError for values that make no sense.
    """

    n: int = 129
    froude: float = 1600.0
    rossby: float = 1e-5
    viscosity: float = 2e-12
    wind: float = 1.0
    dt_model: float = 1.25
    steps: int = 4
    noise_std: float = 0.0
    unit: timedelta = timedelta(days=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.n, Integral) or self.n < 9:
            raise ValueError(f"QuasiGeostrophic: wanted n >= 9 points along a side, got {self.n}")
        for name in ("froude", "rossby", "viscosity", "wind"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"QuasiGeostrophic: wanted {name} >= 0, got {value}")

    @cached_property
    def layout(self) -> Layout:
        """`psi` on a small square at the equator, (n, n) cells, the outermost dry."""
        wet = np.zeros((self.n, self.n), bool)
        wet[1:-1, 1:-1] = True
        place = _CELL * (np.arange(self.n) - (self.n - 1) / 2)
        return regular((Field("psi"),), place, place + _CELL * self.n, wet, self.spacing**2, self.dt)

    @property
    def spacing(self) -> float:
        """Distance between neighbours on the sphere of the layout (m): radii of localisation are multiples of it."""
        return math.radians(_CELL) * EARTH_RADIUS

    @property
    def h(self) -> float:
        """Distance between neighbours, of a side of 1."""
        return 1 / (self.n - 1)

    def tendency(self, q: Tensor) -> Tensor:
        """q_t within the walls, (..., n - 2, n - 2), per time unit."""
        return qg_tendency(q, self.h, self.froude, self.rossby, self.viscosity, self.wind)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state one `dt` later."""
        check_inputs(self, state, forcing)
        psi = self._advance(state.data[..., 1:-1, 1:-1], self.steps)
        return advanced(state, pad(psi, (1, 1, 1, 1)), self.dt, noise, self.noise_std)

    def at_rest(self, time: cftime.datetime = EPOCH, members: Sequence[int] = (0,)) -> State:
        """No motion, float64."""
        data = torch.zeros(len(members), *self.layout.shape, dtype=torch.float64)
        return State(data, time, self.layout, tuple(members))

    def at_attractor(
        self,
        members: Sequence[int],
        noise: Noise,
        *,
        time: cftime.datetime = EPOCH,
        dtype: torch.dtype = torch.float64,
    ) -> State:
        """Independent states on the attractor: large-scale noise, 5000 time units later; seconds per member.

        Most of the time is spent on a grid of half the resolution where that has 65 points or more, and all of it in
        float32. A member that is lost on the way is spun up again in half the time steps. A member is a function of
        `noise` and its number only, not of `dtype`.

        Raises ValueError where members are lost even in an eighth of the time steps.
        """
        psi = self._spun_up(members, noise.stream("attractor"))
        data = pad(psi, (1, 1, 1, 1)).to(dtype)
        return State(data, time, self.layout, tuple(members))

    def _spun_up(self, members: Sequence[int], noise: Noise, tries: int = 4) -> Tensor:
        """psi within the walls (member, 1, n - 2, n - 2), float32."""
        m = self.n - 2
        if self.n >= _FINE and self.n % 2:
            half = replace(self, n=self.n // 2 + 1, viscosity=4 * self.viscosity, dt_model=2 * self.dt_model)
            psi, units = _waves(_amplitudes(half._spun_up(members, noise, tries)), m), _REFINE
        else:
            waves = min(_WAVES, m)
            psi, units = _waves(noise.normal(members, None, (1, waves, waves)), m), _SPIN_UP
            level = torch.stack([row.square().mean().sqrt() for row in psi])  # one by one: the same bits in any batch
            psi = psi * (_LEVEL / level)[:, None, None, None]
        psi = self._advance(psi, math.ceil(units / self.dt_model))
        bad = ~psi.isfinite().flatten(1).all(1)
        if bool(bad.any()):  # currents beyond what the published step can follow, one member in some hundred
            again = [m for m, lost in zip(members, bad.tolist(), strict=True) if lost]
            if tries == 1:
                raise ValueError(
                    f"QuasiGeostrophic: members {again} blow up before they reach the attractor, even with "
                    f"dt_model={self.dt_model:g}; wanted a larger viscosity or weaker wind for n={self.n}"
                )
            psi[bad] = replace(self, dt_model=self.dt_model / 2)._spun_up(again, noise, tries - 1)
        return psi

    def _advance(self, psi: Tensor, steps: int) -> Tensor:
        """psi (member, 1, n - 2, n - 2), `steps` later; on a CPU as many members at a time as its cache holds."""
        few = max(1, _CACHED // psi[0].numel()) if psi.device.type == "cpu" else len(psi)
        later = []
        for some in torch.split(psi, few):
            q = integrate(self.tendency, helmholtz(some, self.h, self.froude), self.dt_model, steps)
            later.append(streamfunction(q, self.h, self.froude))
        return torch.cat(later)


def _sines(x: Tensor, dim: int) -> Tensor:
    """-Σ_j x_j sin(π j k / (m + 1)), j, k = 1..m along `dim` -1 or -2: DST-I; twice it is (m + 1) / 2 times x."""
    m = x.shape[dim]
    lead = (1, 0) if dim == -1 else (0, 0, 1, 0)
    transformed: Tensor = torch.fft.rfft(pad(x, lead), 2 * (m + 1), dim)
    return transformed.imag.narrow(dim, 1, m)


def _amplitudes(psi: Tensor) -> Tensor:
    """Amplitudes of the sine waves of a field (..., m, m)."""
    return _sines(_sines(psi, -1), -2) * (2 / (psi.shape[-1] + 1)) ** 2


def _waves(amplitudes: Tensor, m: int) -> Tensor:
    """The field (..., m, m) of sine waves (..., k, k), k <= m: on a finer grid, the same field."""
    more = m - amplitudes.shape[-1]
    return _sines(_sines(pad(amplitudes, (0, more, 0, more)), -1), -2)


@lru_cache(maxsize=16)
def _inverse(m: int, h: float, froude: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 / (eigenvalue of ∇² - F), (m, m), over what four sine transforms multiply by."""
    along = -((2 / h * np.sin(np.pi * np.arange(1, m + 1) / (2 * (m + 1)))) ** 2)
    return constant((2 / (m + 1)) ** 2 / (along[:, None] + along - froude), dtype, device)


@lru_cache(maxsize=16)
def _curl(m: int, h: float, wind: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """2π W sin(2πy), (m, 1)."""
    return constant(2 * np.pi * wind * np.sin(2 * np.pi * h * np.arange(1, m + 1))[:, None], dtype, device)
