"""The embedded sea ice: a compact brittle model whose leads and ridges an emulator can learn. Start reading here.

Ice of mean thickness h, concentration A and damage d moves with velocity u under wind and water, and breaks:

    Dσ/Dt = E K:ε̇ - (σ/λ)(1 + P̃),   E = E0 q,  λ = λ0 q^(α-1),  q = (1 - d) e^{-C(1-A)}
    ρ h ∂u/∂t = ∇·(hσ) + A τ_air + A τ_water - ρ h f k×u
    ∂h/∂t = -∇·(hu) + growth,   A and d h likewise

Where stress leaves the Mohr-Coulomb envelope τ + μ σ_n <= c, damage grows until it is back on it, which makes the ice
there softer and the next break likelier: failure runs along lines. P̃ keeps weak, converging ice from ridging without
resistance; damage heals in weeks. Sources: Ólason et al. (2022, J. Adv. Model. Earth Syst. 14, "BBM"), with Dansereau
et al. (2016, The Cryosphere 10) for elasticity and damage; Semtner (1976) and Hibler (1979) for growth and new ice.

`arctic()` is a basin of 64 x 64 cells of 20 km around the pole, driven by winds and air temperatures twelve hours
apart, linear in between, so that the nature run is told exactly what an emulator is told. One step is twelve
hours; the rheology takes 60 substeps an hour. It is a toy: reduced elasticity (elastic waves of 150 m/s), two ice
classes, no snow, no ocean but a steady gyre under the ice, walls all around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple

import cftime
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .emulator import check_inputs
from .nature_grid import arctic as arctic_grid
from .nature_ice_forcing import ICE_FORCING_FIELDS, IceWeather
from .noise import Draws, Noise
from .state import Field, Layout, State

_RHO_ICE, _RHO_AIR, _RHO_WATER = 917.0, 1.3, 1026.0  # kg m-3
_FUSION = 3.0e5  # J kg-1
_FREEZING = 271.35  # K
_SECONDS_A_DAY = 86400.0

STATES = ("sithick", "siconc", "sidamage", "siu", "siv")


@dataclass(frozen=True)
class IceParameters:
    """Numbers of the solver, SI units; letters as in Ólason et al. (2022)."""

    time_step: float = 3600.0  # of advection and growth
    substeps: int = 60  # of the rheology in a time step
    elasticity: float = 2.0e7  # E0, Pa
    poisson: float = 1 / 3  # ν
    relaxation: float = 1.0e7  # λ0, s
    exponent: float = 5.0  # α
    compaction: float = 20.0  # C
    ridging: float = 1.0e4  # P0, Pa m-3/2
    cohesion: float = 5.0e3  # c, Pa
    friction: float = 0.7  # μ
    healing: float = 15 * _SECONDS_A_DAY  # s
    coriolis: float = 1.46e-4  # s-1
    air_drag: float = 2.0e-3
    water_drag: float = 5.5e-3
    turning: float = 25.0  # of the water's drag, degrees
    gyre: float = 0.03  # speed of the water, m s-1
    hourglass: float = 0.08  # damping of the B grid's chequerboard in velocity
    hourglass_stress: float = 0.5  # and in stress
    conduction: float = 2.1  # W m-1 K-1
    exchange: float = 15.0  # of heat with the air, W m-2 K-1
    new_ice: float = 0.4  # thickness of ice that forms in open water, m


class _Frozen(NamedTuple):
    """What does not change within the substeps of a time step, (member, y, x) each."""

    compact: Tensor  # e^{-C(1-A)}
    thickness: Tensor
    strength: Tensor  # Pmax, Pa
    ice: Tensor  # 1 where there is enough to carry stress
    mass: Tensor  # at corners, kg m-2
    cover: Tensor  # concentration at corners
    air_x: Tensor  # stress of the wind, N m-2
    air_y: Tensor


@dataclass(frozen=True, eq=False)
class NatureIce:
    """A configuration of the embedded sea ice; an `Emulator` of twelve-hour steps.

    Its layout has what emulators have, `STATES`, at cell centres: of these drift is the mean over the last hour and is
    written, never read. The rest, velocity at the corners and internal stress, is what a restart needs besides.

    Attributes:
        grid: with `x` and `y` (m) on a plane that touches the pole.
        parameters: of the solver.
        compiled: let `torch.compile` fuse the rheology: several times faster, after a minute's compilation.
    """

    grid: xr.Dataset = field(repr=False)
    parameters: IceParameters = IceParameters()
    interval: timedelta = timedelta(hours=12)
    compiled: bool = False

    def __post_init__(self) -> None:
        steps = self.interval.total_seconds() / self.parameters.time_step
        if steps != int(steps):
            raise ValueError(f"interval {self.interval} is not a whole number of {self.parameters.time_step} s steps")

    @cached_property
    def layout(self) -> Layout:
        """`STATES`, then velocity at corners (m s-1) and stress (N m-2)."""
        fields = [Field(name) for name in STATES]
        fields += [Field(name, 0, "corner") for name in ("siu_corner", "siv_corner")]
        fields += [Field(f"sistress{axes}") for axes in ("xx", "yy", "xy")]
        return Layout(tuple(fields), self.grid, (0,), self.interval)

    @cached_property
    def forcing_layout(self) -> Layout:
        """Air temperature, humidity and wind, at the start and at the end of a step."""
        return Layout(ICE_FORCING_FIELDS, self.grid, (0, 1), self.interval)

    @property
    def dt(self) -> timedelta:
        """One step of the emulator: many of the solver."""
        return self.interval

    @property
    def spacing(self) -> float:
        """Size of a cell, m."""
        return float(self.grid["x"][1] - self.grid["x"][0])

    def forcing(self, noise: Noise | None = None, **weather: Any) -> IceWeather:
        """Seasons, and weather if `noise` is given; `weather` as in `IceWeather`."""
        return IceWeather(self.forcing_layout, noise, **weather)

    def at_rest(self, time: cftime.datetime, members: tuple[int, ...] = (0,), thickness: float = 2.0) -> State:
        """Even, unbroken ice of a thickness (m), 98 % of the sea."""
        data = torch.zeros(len(members), *self.layout.shape)
        data[:, 0], data[:, 1] = thickness, 0.98
        return State(data * self.layout.mask, time, self.layout, members)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The ice twelve hours later."""
        forcing = check_inputs(self, state, forcing)
        assert forcing is not None
        # Differences reach onto land; what stands there is no business of theirs, nor of their adjoint.
        state = state.replace(data=torch.where(self.layout.mask.to(state.data.device), state.data, 0.0))
        p, sea = self.parameters, _Sea.of(self, state.data)
        h, area, damage = state.data[:, 0], state.data[:, 1], state.data[:, 2]
        velocity, stress = state.data[:, 5:7], state.data[:, 7:10]
        early, late = forcing.data.to(state.data).chunk(2, 1)
        steps = int(self.interval.total_seconds() / p.time_step)
        drift = velocity
        for k in range(steps):
            air = torch.lerp(early, late, (k + 0.5) / steps)
            frozen = _frozen(p, sea, h, area, air[:, 2:4])
            total = torch.zeros_like(velocity)
            for _ in range(p.substeps):
                velocity, stress, damage = sea.substep(p, sea, frozen, velocity, stress, damage)
                total = total + velocity
            drift = total / p.substeps
            h, area, damage = _carried(p, sea, h, area, damage, drift)
            h, area, damage = _grown(p, sea, h, area, damage, air[:, 0])
        centre = (drift + _west(drift) + _south(drift) + _south(_west(drift))) / 4 * sea.wet
        data = torch.cat([torch.stack([h, area, damage], 1), centre, velocity, stress], 1)
        return state.replace(data=data, time=state.time + self.interval)


@dataclass(frozen=True, eq=False)
class _Sea:
    """Masks, currents and metrics in a dtype on a device."""

    wet: Tensor  # (y, x)
    corner: Tensor
    east: Tensor  # open faces
    north: Tensor
    wet_around: Tensor  # share of wet cells around a corner, at least a quarter
    water_x: Tensor  # m s-1, at corners
    water_y: Tensor
    spacing: float
    substep: Any

    @classmethod
    def of(cls, nature: NatureIce, like: Tensor) -> _Sea:
        grid, p = nature.grid, nature.parameters
        wet = torch.tensor(grid["wetmask"].values).to(like)
        corner = torch.tensor(grid["wetmask_corner"].values).to(like)
        x, y = (torch.from_numpy(grid[n].values + nature.spacing / 2).to(like) for n in ("x", "y"))
        radius = float(grid["x"].max() - grid["x"].min()) / 3
        spin = p.gyre / radius * torch.exp(-(x[None] ** 2 + y[:, None] ** 2) / (2 * radius**2))
        around = _corner_mean(wet).clamp(min=0.25)
        return cls(
            wet, corner, wet * _ahead(wet, -1) * _inside(wet, -1), wet * _ahead(wet, -2) * _inside(wet, -2), around,
            spin * y[:, None], -spin * x[None], nature.spacing, _compiled_substep() if nature.compiled else _substep,
        )  # fmt: skip


# --- the B grid: quantities at centres, velocity at the north-east corners ------------------------------


def _west(q: Tensor) -> Tensor:
    """The western neighbour's value, 0 outside."""
    return F.pad(q[..., :-1], (1, 0))


def _south(q: Tensor) -> Tensor:
    return F.pad(q[..., :-1, :], (0, 0, 1, 0))


def _ahead(q: Tensor, dim: int) -> Tensor:
    """The value of the next cell along a dimension, 0 outside."""
    return F.pad(q[..., 1:], (0, 1)) if dim == -1 else F.pad(q[..., 1:, :], (0, 0, 0, 1))


def _inside(like: Tensor, dim: int) -> Tensor:
    """1 but in the last place of a dimension."""
    return _ahead(torch.ones_like(like), dim)


def _corner_mean(q: Tensor) -> Tensor:
    """Mean of the four centres around each corner; outside counts as 0."""
    east = q + _ahead(q, -1)
    return (east + _ahead(east, -2)) / 4


def _strain(velocity: Tensor, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
    """ε̇_xx, ε̇_yy, ε̇_xy at centres, s-1."""
    across, along = velocity - _west(velocity), velocity - _south(velocity)
    dx, dy = (across + _south(across)) / (2 * spacing), (along + _west(along)) / (2 * spacing)
    return dx[:, 0], dy[:, 1], (dy[:, 0] + dx[:, 1]) / 2


def _divergence(stress: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """∇·σ at corners."""
    across, along = _ahead(stress, -1) - stress, _ahead(stress, -2) - stress
    dx, dy = (across + _ahead(across, -2)) / (2 * spacing), (along + _ahead(along, -1)) / (2 * spacing)
    return dx[:, 0] + dy[:, 2], dx[:, 2] + dy[:, 1]


# --- rheology and momentum -----------------------------------------------------------------------------


def _frozen(p: IceParameters, sea: _Sea, h: Tensor, area: Tensor, wind: Tensor) -> _Frozen:
    compact = torch.exp(-p.compaction * (1 - area))
    cover = _corner_mean(area) / sea.wet_around
    u, v = _corner_mean(wind * sea.wet).unbind(1)
    u, v = u / sea.wet_around, v / sea.wet_around
    drag = _RHO_AIR * p.air_drag * torch.sqrt(u * u + v * v + 1e-6) * cover
    mass = _RHO_ICE * (_corner_mean(h) / sea.wet_around).clamp(min=0.05)
    strength = p.ridging * h.clamp(min=0) ** 1.5 * compact
    return _Frozen(compact, h, strength, (h > 0.05).to(h) * sea.wet, mass, cover, drag * u, drag * v)


def _substep(
    p: IceParameters, sea: _Sea, frozen: _Frozen, velocity: Tensor, stress: Tensor, damage: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity, stress and damage a substep later: elasticity, relaxation, failure, momentum."""
    dt = p.time_step / p.substeps
    exx, eyy, exy = _strain(velocity, sea.spacing)
    q = (1 - damage) * frozen.compact
    stiff = p.elasticity * dt / (1 - p.poisson**2) * q
    relaxation = (p.relaxation * q.clamp(min=1e-6) ** (p.exponent - 1)).clamp(min=1e-3)
    normal = (stress[:, 0] + stress[:, 1]) / 2
    pressed = torch.where(normal < 0, (frozen.strength / (normal - 1e-3)).clamp(min=-1), 0.0)
    left = 1 / (1 + dt / relaxation * (1 + pressed))
    sxx = (stress[:, 0] + stiff * (exx + p.poisson * eyy)) * left
    syy = (stress[:, 1] + stiff * (eyy + p.poisson * exx)) * left
    sxy = (stress[:, 2] + stiff * (1 - p.poisson) * exy) * left

    shear = torch.sqrt((sxx - syy) ** 2 / 4 + sxy**2 + 1e-6)
    beyond = shear + p.friction * (sxx + syy) / 2
    critical = (p.cohesion / beyond.clamp(min=p.cohesion)).clamp(max=1)
    wave = math.sqrt(p.elasticity / (2 * (1 + p.poisson) * _RHO_ICE))  # of shear: the speed of failure
    kept = 1 - (1 - critical) * (dt * wave / sea.spacing)
    damage = (1 - (1 - damage) * kept - dt / p.healing).clamp(0, 0.9999)
    stress = (
        _even(torch.stack([sxx, syy, sxy], 1) * kept[:, None], sea.corner, p.hourglass_stress) * frozen.ice[:, None]
    )

    u, v = velocity.unbind(1)
    fx, fy = _divergence(stress * frozen.thickness[:, None], sea.spacing)
    slip = torch.sqrt((sea.water_x - u) ** 2 + (sea.water_y - v) ** 2 + 1e-6)
    drag = _RHO_WATER * p.water_drag * frozen.cover * slip
    cos, sin = math.cos(math.radians(p.turning)), math.sin(math.radians(p.turning))
    along, turn = 1 + dt * drag * cos / frozen.mass, dt * (p.coriolis + drag * sin / frozen.mass)
    rx = u + dt / frozen.mass * (fx + frozen.air_x + drag * (cos * sea.water_x - sin * sea.water_y))
    ry = v + dt / frozen.mass * (fy + frozen.air_y + drag * (cos * sea.water_y + sin * sea.water_x))
    scale = sea.corner / (along * along + turn * turn)  # water's drag and Coriolis implicit: a rotation
    velocity = torch.stack([(along * rx + turn * ry) * scale, (along * ry - turn * rx) * scale], 1)
    return _smoothed(velocity, p.hourglass) * sea.corner, stress, damage


def _smoothed(velocity: Tensor, share: float) -> Tensor:
    """Without part of the mode that changes sign from corner to corner both ways, which strain cannot see."""
    twist = velocity - _west(velocity)
    twist = twist - _south(twist)
    back = twist - _ahead(twist, -1)
    return velocity - share / 16 * (back - _ahead(back, -2))


def _even(stress: Tensor, corner: Tensor, share: float) -> Tensor:
    """Without part of the mode of stress that changes sign from centre to centre, which divergence cannot see."""
    twist = stress - _ahead(stress, -1)
    twist = (twist - _ahead(twist, -2)) * corner
    back = twist - _west(twist)
    return stress - share / 16 * (back - _south(back))


_COMPILED: list[Any] = []


def _compiled_substep() -> Any:
    if not _COMPILED:
        _COMPILED.append(torch.compile(_substep))
    return _COMPILED[0]


# --- advection and growth ------------------------------------------------------------------------------


def _carried(
    p: IceParameters, sea: _Sea, h: Tensor, area: Tensor, damage: Tensor, drift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Thickness, concentration and damage carried upwind; what is more than full ice has ridged."""
    east = (drift[:, 0] + _south(drift[:, 0])) / 2 * sea.east
    north = (drift[:, 1] + _west(drift[:, 1])) / 2 * sea.north

    def moved(q: Tensor) -> Tensor:
        right = torch.relu(east) * q - torch.relu(-east) * _ahead(q, -1)
        up = torch.relu(north) * q - torch.relu(-north) * _ahead(q, -2)
        return q - p.time_step / sea.spacing * (right - _west(right) + up - _south(up))

    broken, h, area = moved(damage * h), moved(h).clamp(min=0), moved(area).clamp(0, 1)
    return h, area, torch.where(h > 0.02, broken / h.clamp(min=0.02), damage).clamp(0, 0.9999)


def _grown(
    p: IceParameters, sea: _Sea, h: Tensor, area: Tensor, damage: Tensor, air: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Growth and melt of ice without heat content; new ice closes leads and is whole."""
    cold = _FREEZING - air
    actual = (h / area.clamp(min=0.05)).clamp(min=0.1)
    heat = _RHO_ICE * _FUSION
    over_ice = torch.where(cold > 0, p.conduction * cold / (actual + 0.5), p.exchange * cold.clamp(min=-8)) / heat
    open_water = p.exchange * cold.clamp(min=0) / heat
    formed = p.time_step * open_water * (1 - area)
    melted = p.time_step * over_ice.clamp(max=0) * area
    new_h = (h + p.time_step * over_ice * area + formed).clamp(min=0) * sea.wet
    new_area = (area + formed / p.new_ice + melted / (2 * actual)).clamp(0, 1)
    new_area = torch.minimum(torch.where(new_h > 0.01, new_area, 0.0), new_h / 0.05) * sea.wet
    whole = (formed / new_h.clamp(min=0.05)).clamp(0, 1)
    return new_h, new_area, damage * (1 - whole) * sea.wet


def arctic(cells: int = 64, spacing: float = 20e3) -> NatureIce:
    """A basin around the pole with a rugged coast and two islands, `cells` x `cells` of `spacing` m."""
    return NatureIce(arctic_grid(cells, spacing))
