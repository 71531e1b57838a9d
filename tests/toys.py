"""Emulators with known dynamics, on one row of cells: linear maps and Lorenz (1996)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from polynya.emulators import Draws, Field, Layout, State


def row_layout(nx: int, *names: str) -> Layout:
    """Cells of one area around the equator, all wet."""
    coords = {
        "lat": ("lat", np.zeros(1)),
        "lon": ("lon", 360.0 / nx * np.arange(nx)),
        "areacello": (("lat", "lon"), np.ones((1, nx))),
        "wetmask": (("lat", "lon"), np.ones((1, nx))),
    }
    return Layout(tuple(Field(n) for n in names or ("zos",)), xr.Dataset(coords=coords))


@dataclass(frozen=True)
class Lorenz96:
    """Forty variables, F = 8, one Runge-Kutta step of 0.05; the largest Lyapunov exponent is 1.67."""

    layout: Layout = field(default_factory=lambda: row_layout(40))
    dt: timedelta = timedelta(days=1)
    forcing_layout: Layout | None = None

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        def tendency(x: Tensor) -> Tensor:
            return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8.0

        x, h = state.data, 0.05
        k1 = tendency(x)
        k2 = tendency(x + h / 2 * k1)
        k3 = tendency(x + h / 2 * k2)
        new = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + tendency(x + h * k3))
        return state.replace(data=new, time=state.time + self.dt)


@dataclass(frozen=True, eq=False)
class Matrix:
    """x' = A x over the flattened channels and cells; and, if asked, noise of the stream "model"."""

    A: Tensor
    layout: Layout
    noise: float = 0.0
    dt: timedelta = timedelta(days=5)
    forcing_layout: Layout | None = None

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        rows = [(self.A.to(x) @ x.flatten()).view_as(x) for x in state.data]  # singly: bits belong to a member
        shock = noise.stream("model").normal(state.members, state.time, self.layout.shape, dtype=state.data.dtype)
        return state.replace(data=torch.stack(rows) + self.noise * shock, time=state.time + self.dt)
