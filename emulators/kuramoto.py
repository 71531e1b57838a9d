"""The Kuramoto-Sivashinsky equation as an emulator: chaos in space and time, in one dimension.

    u_t = -u u_x - u_xx - u_xxxx,      0 <= x < length, periodic

Spectral in space, and in time by fourth-order exponential differencing (ETDRK4): the linear terms, stiff as they are,
are exact. The mean of u never changes. Sources: Kassam and Trefethen (2005, SIAM J. Sci. Comput. 26, 1214), whose grid
of 128 points on 32π with time step 1/4 is the default, as in Bocquet and Farchi (2019, Foundations of Data Science).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from numbers import Integral
from typing import NamedTuple

import cftime
import numpy as np
import torch
from torch import Tensor

from .emulator import check_inputs
from .integrate import EPOCH, OnRing, advanced, constant, ring
from .noise import Draws, Noise
from .state import Field, Layout, State

__all__ = ["KuramotoSivashinsky", "etdrk4", "kuramoto_sivashinsky"]

_SPIN_UP = 200.0  # time units; the fastest wave grows e-fold in 4
_CONTOUR = 32  # points of the mean over a circle around each eigenvalue


def kuramoto_sivashinsky(u: Tensor, length: float = 32 * math.pi, dealias: bool = False) -> Tensor:
    """Tendency of u at the points in the last dimension, (..., n), per unit of time."""
    n = u.shape[-1]
    k2, gradient = _spectrum(n, length, dealias, u.dtype, u.device)
    waves = gradient * torch.fft.rfft(u * u) + (k2 - k2 * k2) * torch.fft.rfft(u)
    tendency: Tensor = torch.fft.irfft(waves, n)
    return tendency


def etdrk4(u: Tensor, length: float, dt: float, steps: int = 1, dealias: bool = False) -> Tensor:
    """u after `steps` time steps of `dt`, (..., n); see the module for the equation and source.

    Args:
        u: values at n equidistant points, an even number, (..., n).
        length: of the period.
        dt: of one time step.
        steps: number of time steps.
        dealias: leave out the upper third of the wave numbers in the product, after which energy is exact.
    """
    n = u.shape[-1]
    _, gradient = _spectrum(n, length, dealias, u.dtype, u.device)
    whole, half, q, f1, f2, f3 = _weights(n, length, dt, u.dtype, u.device)

    def product(v: Tensor) -> Tensor:
        u = torch.fft.irfft(v, n)
        waves: Tensor = gradient * torch.fft.rfft(u * u)
        return waves

    v = torch.fft.rfft(u)
    for _ in range(steps):
        nv = product(v)
        decayed = half * v
        a = decayed + q * nv
        na = product(a)
        nb = product(decayed + q * na)
        nc = product(half * a + q * (2 * nb - nv))
        v = whole * v + f1 * nv + f2 * (na + nb) + f3 * nc
    later: Tensor = torch.fft.irfft(v, n)
    return later


@dataclass(frozen=True)
class KuramotoSivashinsky(OnRing):
    """The Kuramoto-Sivashinsky equation on a ring: variable `u`; an `Emulator`.

    Attributes:
        n: number of points, even, at least 8.
        length: of the ring, in the equation's units; chaotic degrees of freedom grow with it.
        dt_model: of an ETDRK4 step, time units.
        steps: of these in a step of the emulator.
        dealias: leave out the upper third of the wave numbers in the product; published set-ups do not.
        noise_std: of white noise added to every point after every step of the emulator, stream "model".
        unit: nominal length of a time unit, for dates.

    Raises ValueError for values that make no sense.
    """

    n: int = 128
    length: float = 32 * math.pi
    dt_model: float = 0.25
    steps: int = 1
    dealias: bool = False
    noise_std: float = 0.0
    unit: timedelta = timedelta(days=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.n, Integral) or self.n < 8 or self.n % 2:
            raise ValueError(f"KuramotoSivashinsky: wanted an even number of points n >= 8, got {self.n}")
        if not (math.isfinite(self.length) and self.length > 0):
            raise ValueError(f"KuramotoSivashinsky: wanted a length > 0, got {self.length}")
        resolved = math.pi * self.n / self.length * (2 / 3 if self.dealias else 1)
        if resolved < 1:
            raise ValueError(
                f"KuramotoSivashinsky: {self.n} points on a length of {self.length:.4g} resolve wave numbers up to "
                f"{resolved:.3g}, but all below 1 grow; take at least {math.ceil(self.n / resolved)} points"
            )

    @cached_property
    def layout(self) -> Layout:
        """`u` at n points around the equator, (1, n) cells."""
        return ring((Field("u"),), self.n, self.dt)

    def tendency(self, u: Tensor) -> Tensor:
        """u_t for values (..., n), per time unit."""
        return kuramoto_sivashinsky(u, self.length, self.dealias)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state one `dt` later."""
        check_inputs(self, state, forcing)
        u = etdrk4(state.data[:, 0, 0], self.length, self.dt_model, self.steps, self.dealias)
        return advanced(state, u[:, None, None], self.dt, noise, self.noise_std)

    def at_attractor(
        self,
        members: Sequence[int],
        noise: Noise,
        *,
        time: cftime.datetime = EPOCH,
        dtype: torch.dtype = torch.float64,
    ) -> State:
        """Independent states of mean 0 on the attractor: noise, 200 time units later.

        A member is a function of `noise` and its number only.
        """
        u = noise.stream("attractor").normal(members, None, self.layout.shape, dtype=dtype)[:, 0, 0]
        u = etdrk4(u, self.length, self.dt_model, math.ceil(_SPIN_UP / self.dt_model), self.dealias)
        u = u - u.mean(-1, keepdim=True)  # which never changes, and moves the frame only
        return State(u[:, None, None], time, self.layout, tuple(members))


class _Weights(NamedTuple):
    """Of ETDRK4, one number per wave number; names as in the paper, f2 twice as large."""

    whole: Tensor  # e^{hL}
    half: Tensor  # e^{hL/2}
    q: Tensor
    f1: Tensor
    f2: Tensor
    f3: Tensor


@lru_cache(maxsize=16)
def _spectrum(n: int, length: float, dealias: bool, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """k² and -ik/2, (n/2 + 1,); the derivative of the shortest wave is unseen by the grid, hence 0."""
    k = 2 * np.pi / length * np.arange(n // 2 + 1)
    gradient = -0.5 * k
    gradient[-1] = 0.0
    if dealias:
        gradient[np.arange(n // 2 + 1) * 3 >= n] = 0.0
    imaginary = torch.complex64 if dtype == torch.float32 else torch.complex128
    return constant(k**2, dtype, device), constant(1j * gradient, imaginary, device)


@lru_cache(maxsize=16)
def _weights(n: int, length: float, h: float, dtype: torch.dtype, device: torch.device) -> _Weights:
    """By means over circles around hL, where the formulas themselves would cancel (Kassam and Trefethen, sec. 3)."""
    k = 2 * np.pi / length * np.arange(n // 2 + 1)
    linear = h * (k**2 - k**4)
    z = linear[:, None] + np.exp(1j * np.pi * (np.arange(_CONTOUR) + 0.5) / _CONTOUR)
    e = np.exp(z)
    q = (np.exp(z / 2) - 1) / z
    f1 = (-4 - z + e * (4 - 3 * z + z**2)) / z**3
    f2 = 2 * (2 + z + e * (z - 2)) / z**3
    f3 = (-4 - 3 * z - z**2 + e * (4 - z)) / z**3
    means = [h * f.real.mean(1) for f in (q, f1, f2, f3)]
    return _Weights(*(constant(w, dtype, device) for w in (np.exp(linear), np.exp(linear / 2), *means)))
