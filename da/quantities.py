"""Scalars of a state that sensitivities are asked of: means, heat, ice, and values at a place; all differentiable.

Each is called with a State and gives one number per member, float64, of the newest time slot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..emulators import Layout, State, attributes
from ..emulators.nature_ocean import HEAT_CAPACITY, RHO0
from ..ensembles import Box
from .observations import Observations
from .operators import newest, operator_for

__all__ = ["At", "HeatContent", "IceVolume", "Mean", "Quantity", "volumes"]


class Quantity(Protocol):
    """A scalar of a state; any function will do, these know their unit too."""

    @property
    def units(self) -> str: ...  # noqa: D102

    def __call__(self, state: State) -> Tensor:
        """One number per member, (member,)."""
        ...


def volumes(
    layout: Layout, variable: str, where: Box | None = None, depth: tuple[float, float] = (0.0, math.inf)
) -> Tensor:
    """Volumes of a variable's wet cells (m3), of a surface field their areas (m2), (level, y, x) float64.

    Args:
        layout: has `areacello`, and `dz` for variables with levels.
        variable: of the layout.
        where: counts cells by its weight.
        depth: top and bottom in m; layers count by the part that lies between, surface fields always.
    """
    f = layout.field(variable)
    size = torch.from_numpy(np.nan_to_num(layout.grid["areacello"].values).astype(float)) * torch.from_numpy(
        layout.field_mask(f).astype(float)
    )
    if f.levels:
        thick = layout.grid["dz"].values[: f.levels].astype(float)
        bottom = np.cumsum(thick)
        part = np.clip(np.minimum(bottom, depth[1]) - np.maximum(bottom - thick, depth[0]), 0, None)
        size = size * torch.from_numpy(part)[:, None, None]
    return size if where is None else size * where.weights(layout, variable)


def _weighted(state: State, variable: str, weights: Tensor) -> Tensor:
    return (state[variable].double() * weights.to(state.data.device)).sum((-3, -2, -1))


@dataclass(frozen=True)
class Mean:
    """Mean of a variable over a volume, or over an area for surface fields; raises ValueError if none is wet.

    Attributes:
        variable: of the state.
        where: counts cells by its weight; default all.
        depth: top and bottom, m.
    """

    variable: str
    where: Box | None = None
    depth: tuple[float, float] = (0.0, math.inf)

    @property
    def units(self) -> str:
        """Of the variable."""
        return str(attributes(self.variable).get("units", "1"))

    def __call__(self, state: State) -> Tensor:
        """(member,)."""
        weights = volumes(state.layout, self.variable, self.where, self.depth)
        if not float(weights.sum()) > 0:
            raise ValueError(f"{self}: no water there")
        return _weighted(state, self.variable, weights / weights.sum())


@dataclass(frozen=True)
class HeatContent:
    """Heat of a volume relative to 0 degC, ρ c_p ∫ θ dV, J, with the density and heat capacity of the embedded ocean.

    Attributes:
        where: counts cells by its weight; default all.
        depth: top and bottom, m.
    """

    where: Box | None = None
    depth: tuple[float, float] = (0.0, 700.0)
    units = "J"

    def __call__(self, state: State) -> Tensor:
        """(member,)."""
        return (
            RHO0 * HEAT_CAPACITY * _weighted(state, "thetao", volumes(state.layout, "thetao", self.where, self.depth))
        )


@dataclass(frozen=True)
class IceVolume:
    """Volume of sea ice, m3.

    Attributes:
        where: counts cells by its weight; default all.
        per_ice: whether `sithick` is thickness where there is ice, to be multiplied by `siconc`, rather than per cell.
    """

    where: Box | None = None
    per_ice: bool = False
    units = "m3"

    def __call__(self, state: State) -> Tensor:
        """(member,)."""
        area = volumes(state.layout, "sithick", self.where).to(state.data.device)
        thickness = state["sithick"].double()
        if self.per_ice:
            thickness = thickness * state["siconc"].double()
        return (thickness * area).sum((-3, -2, -1))


@dataclass(frozen=True)
class At:
    """A variable at a place, interpolated as an observation would be; raises ObservationError for a place on land.

    Attributes:
        variable: of the state.
        lat, lon: degrees.
        depth: m.
    """

    variable: str
    lat: float
    lon: float
    depth: float = 0.0

    @property
    def units(self) -> str:
        """Of the variable."""
        return str(attributes(self.variable).get("units", "1"))

    def __call__(self, state: State) -> Tensor:
        """(member,)."""
        here = Observations(
            newest(state), np.array([self.variable]), np.array([self.lat]), np.array([self.lon]),
            np.array([self.depth]), np.zeros(1), np.ones(1), np.array(["point"]),
        )  # fmt: skip
        return operator_for(state.layout, here).apply(state)[:, 0].double()
