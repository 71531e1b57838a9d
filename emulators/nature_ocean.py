"""The embedded ocean: a compact, batched, differentiable primitive-equation model. Start reading here.

Hydrostatic and Boussinesq, on z levels, with a linear implicit free surface:

    ∂u/∂t + (u·∇)u + f k×u = -∇p - g∇η + ∇·(A∇u) - A₄∇⁴u + ∂z(ν ∂z u) + τ/(ρ₀ Δz₁) - r u_bottom/Δz_b
    ∂T/∂t = -∇·(uT) + K∇²T + ∂z(κ ∂z T) + Q/(ρ₀ c_p Δz₁),          S likewise
    ∂η/∂t = -∇·∫u dz,         p = -∫b dz,    b = -g ρ'(T, S, z)/ρ₀

Two configurations of the one solver serve as truth ("nature run") for experiments: `globe()`, near-global
at 4 degrees, for heat uptake and sea level; `channel()`, 25 km, eddying and chaotic, for assimilation and
spectra. Its state is temperature, salinity, velocity and sea level, nothing else: a restart needs no more.

How one time step goes (each stage uses the newest values there are, as in forward-backward schemes):

1. velocity: advection, viscosity, wind, pressure of the present T and S; vertical mixing and bottom drag
   implicit; Coriolis half implicit, a rotation of (u, v) at each point;
2. sea level: the free surface implicit, by a dense inverse built once per grid;
3. tracers: carried by the transports of the *new* velocity, in a top cell whose thickness follows exactly
   from the same transports, so that heat and salt change by their surface fluxes alone, to round-off;
   then surface fluxes and implicit vertical mixing, strong where the column is unstable.

Sources: equation of state, Roquet et al. (2015) in NEMO's simplified form; eddy form stress as vertical
viscosity, Greatbatch and Lamb (1990, J. Phys. Oceanogr. 20, 1634), the poor man's Gent-McWilliams.
It is a toy: no sea ice, no rivers, restoring surface, whole cells, simple mixing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .emulator import check_inputs
from .nature_forcing import (
    FORCING_FIELDS,
    Climate,
    NatureForcing,
    Warming,
    Weather,
    channel_climate,
    globe_climate,
)
from .nature_grid import channel as channel_grid
from .nature_grid import globe as globe_grid
from .nature_operators import (
    GRAVITY,
    Mesh,
    advective_inflow,
    advective_tendency_corner,
    dense_inverse,
    implicit_diffusion,
    to_corner,
    upward_transport,
)
from .noise import Draws, Noise
from .state import Field, Layout, State

RHO0 = 1026.0  # kg m-3
HEAT_CAPACITY = 3991.86795711963  # J kg-1 K-1, TEOS-10
FREEZING = -1.8  # degC


@dataclass(frozen=True)
class OceanParameters:
    """Numbers of the solver, SI units."""

    time_step: float
    viscosity: float  # A, m2 s-1, times cos(latitude)
    diffusivity: float  # K, m2 s-1
    biharmonic: float = 0.0  # A4, m4 s-1
    momentum_advection: bool = False
    eddy_form_stress: float = 0.0  # κ of Greatbatch and Lamb, m2 s-1
    background_mixing: float = 1e-5  # κ of the quiet interior, m2 s-1
    background_viscosity: float = 1e-3  # ν of the quiet interior, m2 s-1
    wind_mixing: float = 1e-3  # m2 s-1 at the surface under 0.1 N m-2
    wind_mixing_depth: float = 40.0  # m
    convective_mixing: float = 0.5  # m2 s-1
    bottom_drag: float = 2e-3  # r, m s-1
    implicitness: float = 0.6  # of the Coriolis term
    temperature_restoring: float = 60.0  # days, for the top layer
    salinity_restoring: float = 120.0  # days
    surface_filter: float = 0.006  # of the B grid's chequerboard in sea level, dx2 per step


@dataclass(frozen=True, eq=False)
class NatureOcean:
    """A configuration of the embedded ocean; an `Emulator` whose steps are `layout.interval` long.

    Besides its state, the layout holds `hfds`, the mean net heat flux over the last step (W m-2): it is
    written, never read, so that every store of a nature run carries its own heat budget.
    """

    grid: xr.Dataset = field(repr=False)
    parameters: OceanParameters
    climate: Climate = field(repr=False)
    interval: timedelta = timedelta(days=5)
    _prepared: dict[Any, tuple[Mesh, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = self.interval.total_seconds() / self.parameters.time_step
        if steps != int(steps):
            raise ValueError(f"interval {self.interval} is not a whole number of {self.parameters.time_step} s steps")

    def __reduce__(self) -> tuple[Any, ...]:  # the prepared inverse is rebuilt, not pickled
        return NatureOcean, (self.grid, self.parameters, self.climate, self.interval)

    @cached_property
    def layout(self) -> Layout:
        """thetao, so, uo, vo on all levels, zos, and the diagnostic hfds."""
        n = self.grid.sizes["lev"]
        velocity = (Field("uo", n, "corner"), Field("vo", n, "corner"))
        fields = (Field("thetao", n), Field("so", n), *velocity, Field("zos"), Field("hfds"))
        return Layout(fields, self.grid, (0,), self.interval)

    @cached_property
    def forcing_layout(self) -> Layout:
        """tauuo, tauvo and hfatm, constant over a step."""
        return Layout(FORCING_FIELDS, self.grid, (0,), self.interval)

    @property
    def dt(self) -> timedelta:
        """One step of the emulator: many time steps of the solver."""
        return self.interval

    @property
    def heat_feedback(self) -> float:
        """λ (W m-2 K-1): how strongly the surface is restored."""
        top = float(self.grid["dz"][0])
        return RHO0 * HEAT_CAPACITY * top / (self.parameters.temperature_restoring * 86400)

    def forcing(self, *, warming: Warming = Warming(), noise: Noise | None = None) -> NatureForcing:  # noqa: B008
        """The forcing of a run: analytic climate, a warming scenario, weather if `noise` is given."""
        lat, lon = self.grid["lat"].values, self.grid["lon"].values
        weather = None if noise is None else Weather(lat, lon, noise, self.interval)
        return NatureForcing(self.forcing_layout, self.climate, self.heat_feedback, warming, weather)

    def at_rest(self, time: cftime.datetime, noise: Noise | None = None, members: tuple[int, ...] = (0,)) -> State:
        """An ocean at rest with a warm upper layer; `noise` adds 0.05 K to seed eddies."""
        layout, depth = self.layout, self.grid["lev"].values[:, None]
        temperature = 0.8 + (self.climate.t_ref - 0.8) * np.exp(-depth / 700)
        salinity = 34.7 + (self.climate.s_ref - 34.7) * np.exp(-depth / 500)
        n = len(depth)
        data = torch.zeros(len(members), *layout.shape)
        data[:, :n] = torch.from_numpy(np.maximum(temperature, -1.5))[:, :, None]
        data[:, n : 2 * n] = torch.from_numpy(salinity)[:, :, None]
        if noise is not None:
            data[:, :n] += 0.05 * noise.stream("at rest").normal(members, time, (n, *layout.shape[1:]))
        return State(data * layout.mask, time, layout, members)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The ocean one interval later, under constant forcing."""
        forcing = check_inputs(self, state, forcing)
        assert forcing is not None
        mesh, inverse = self._prepare(state.data.dtype, state.data.device)
        n, (ny, nx) = self.grid.sizes["lev"], state.data.shape[-2:]
        # Differences reach onto land; what stands there is no business of theirs, nor of their adjoint.
        state = state.replace(data=torch.where(self.layout.mask.to(state.data.device), state.data, 0.0))
        prognostic, eta = state.data[:, : 4 * n].view(-1, 4, n, ny, nx), state["zos"][:, 0]
        tracers, velocity = prognostic[:, :2], prognostic[:, 2:]
        flux, heat = forcing.data.to(state.data), torch.zeros_like(eta)
        steps = int(self.interval.total_seconds() / self.parameters.time_step)
        for _ in range(steps):
            velocity, eta, transports = self._momentum(mesh, inverse, tracers, velocity, eta, flux)
            tracers, eta, absorbed = self._tracers(mesh, tracers, eta, transports, flux)
            heat = heat + absorbed / steps
        data = torch.cat([tracers.flatten(1, 2), velocity.flatten(1, 2), eta[:, None], heat[:, None]], 1)
        return state.replace(data=data, time=state.time + self.interval)

    # --- stage 1 and 2: velocity and sea level ---------------------------------------------------

    def _momentum(
        self, mesh: Mesh, inverse: Tensor, tracers: Tensor, velocity: Tensor, eta: Tensor, flux: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """New velocity, the implicit sea level, and the transports that carry the tracers."""
        p, dt = self.parameters, self.parameters.time_step
        buoyancy = _buoyancy(mesh, tracers)
        laplacian = mesh.laplacian_corner(velocity)
        tendency = p.viscosity * mesh.cos_corner * laplacian
        if p.biharmonic:
            tendency = tendency - p.biharmonic * mesh.laplacian_corner(laplacian)
        if p.momentum_advection:
            tendency = tendency + self._advection(mesh, velocity)
        wind = to_corner(flux[:, :2]) / (RHO0 * mesh.dz[0])
        tendency = torch.cat([tendency[..., :1, :, :] + wind.unsqueeze(-3), tendency[..., 1:, :, :]], -3)
        explicit = (1 - p.implicitness) * dt * mesh.coriolis
        turned = torch.stack([explicit * velocity[:, 1], -explicit * velocity[:, 0]], 1)
        velocity = velocity + dt * tendency + turned
        velocity = velocity / (1 + dt * p.bottom_drag * mesh.bottom_corner / mesh.dz)
        viscosity = self._vertical_viscosity(mesh, buoyancy, flux) * mesh.open_below_corner
        velocity = implicit_diffusion(velocity, viscosity.unsqueeze(1), mesh.dz, mesh.dz_between, dt)
        weight = buoyancy * mesh.dz
        pressure = 0.5 * weight - torch.cumsum(weight, -3)
        velocity = velocity - dt * torch.stack(mesh.gradient(pressure), 1)
        velocity = self._rotate(mesh, velocity) * mesh.corner

        whole = mesh.transports(velocity[:, 0], velocity[:, 1], mesh.dz)
        inflow = mesh.convergence(*(t.sum(-3) for t in whole))
        level = self._solve_surface(mesh, inverse, (eta + dt * inflow / mesh.area) * mesh.wet[0])
        velocity = velocity - self._surface_response(mesh, level).unsqueeze(-3) * mesh.corner
        eastward, northward = mesh.transports(velocity[:, 0], velocity[:, 1], mesh.dz)
        filtered = mesh.down_gradient(level, self._filter(mesh), 0)
        transports = tuple(
            torch.cat([t[..., :1, :, :] + f.unsqueeze(-3), t[..., 1:, :, :]], -3)
            for t, f in zip((eastward, northward), filtered, strict=True)
        )
        return velocity, eta, (transports[0], transports[1])

    def _advection(self, mesh: Mesh, velocity: Tensor) -> Tensor:
        """-(u·∇)u, second order in time: evaluated at a midpoint, with the transports of the start."""
        eastward, northward = mesh.transports(velocity[:, 0], velocity[:, 1], mesh.dz)
        upward = upward_transport(mesh.convergence(eastward, northward))
        first = advective_tendency_corner(mesh, velocity, eastward, northward, upward)
        middle = velocity + 0.5 * self.parameters.time_step * first
        return advective_tendency_corner(mesh, middle, eastward, northward, upward)

    def _vertical_viscosity(self, mesh: Mesh, buoyancy: Tensor, flux: Tensor) -> Tensor:
        """ν at the corners: background, wind, and the form stress of unresolved eddies κ f²/N²."""
        p = self.parameters
        stability = _stratification(mesh, buoyancy)
        viscosity = p.background_viscosity + to_corner(self._wind_mixing(mesh, stability, flux))
        if p.eddy_form_stress:
            stable = to_corner(torch.relu(stability) * mesh.open_below) + 2e-7
            viscosity = viscosity + torch.clamp(p.eddy_form_stress * mesh.coriolis**2 / stable, max=5.0)
        return viscosity

    def _wind_mixing(self, mesh: Mesh, stability: Tensor, flux: Tensor) -> Tensor:
        """Mixing by the wind, which decays with depth and gives up against stratification."""
        p = self.parameters
        stress = torch.sqrt(flux[:, 0] ** 2 + flux[:, 1] ** 2 + 1e-6).unsqueeze(-3)
        decay = torch.exp(-mesh.interface / p.wind_mixing_depth)
        return p.wind_mixing * (stress / 0.1) * decay / (1 + torch.relu(stability) / 2e-5)

    def _rotate(self, mesh: Mesh, vector: Tensor) -> Tensor:
        """(1 + a²)⁻¹ [[1, a], [-a, 1]] (u, v), a = θ f dt: the implicit part of the Coriolis term."""
        a = self.parameters.implicitness * self.parameters.time_step * mesh.coriolis
        dim = 1 if vector.dim() == 5 else -3
        u, v = vector.unbind(dim)
        return torch.stack([(u + a * v) / (1 + a * a), (v - a * u) / (1 + a * a)], dim)

    def _filter(self, mesh: Mesh) -> float:
        return self.parameters.surface_filter * float(mesh.dx.median()) ** 2 / self.parameters.time_step

    def _surface_response(self, mesh: Mesh, eta: Tensor) -> Tensor:
        """What a sea level takes from the velocity within a time step, (..., 2, y, x)."""
        push = torch.stack(mesh.gradient(eta), -3) * (GRAVITY * self.parameters.time_step)
        return self._rotate(mesh, push)

    def _surface_operator(self, mesh: Mesh, eta: Tensor) -> Tensor:
        """η - dt ∇·(transport that η itself drives within the step), the left side of the implicit equation."""
        u, v = (self._surface_response(mesh, eta) * mesh.column_corner).unbind(-3)
        driven = mesh.convergence(*mesh.transports(u, v, 1.0))
        filtered = mesh.convergence(*mesh.down_gradient(eta, self._filter(mesh), 0))
        return eta + self.parameters.time_step * (driven - filtered) / mesh.area

    def _solve_surface(self, mesh: Mesh, inverse: Tensor, right_side: Tensor) -> Tensor:
        # One product per member, each on a fresh (aligned) vector: the bits of a matrix product depend on
        # the size of the batch and on the alignment of its rows.
        wet = right_side.flatten(-2)[:, mesh.surface]
        solved = torch.stack([row.clone() @ inverse for row in wet])
        return torch.zeros_like(right_side.flatten(-2)).index_copy(-1, mesh.surface, solved).view_as(right_side)

    # --- stage 3: temperature and salinity -------------------------------------------------------

    def _tracers(
        self, mesh: Mesh, tracers: Tensor, eta: Tensor, transports: tuple[Tensor, Tensor], flux: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New T and S, the sea level of the same transports, and the heat absorbed (W m-2)."""
        p, dt = self.parameters, self.parameters.time_step
        eastward, northward = (t.unsqueeze(1) for t in transports)
        upward = upward_transport(mesh.convergence(eastward, northward))
        new_eta = eta + dt * upward[:, 0, 0] / mesh.area
        thickness = _thickness(mesh, new_eta)
        inflow = advective_inflow(mesh, tracers, eastward, northward, upward)
        inflow = inflow + mesh.convergence(*mesh.down_gradient(tracers, p.diffusivity)) * mesh.dz
        growth = thickness - _thickness(mesh, eta)
        tracers = tracers + (dt * inflow / mesh.area - tracers * growth) / thickness * mesh.wet

        heat, salt = self._surface_fluxes(mesh, tracers, flux)
        gain = dt * torch.stack([heat / (RHO0 * HEAT_CAPACITY), salt], 1).unsqueeze(2) / thickness[:, :, :1]
        tracers = torch.cat([tracers[:, :, :1] + gain, tracers[:, :, 1:]], 2)

        stability = _stratification(mesh, _buoyancy(mesh, tracers))
        convection = p.convective_mixing * torch.sigmoid(-stability / 2e-8)
        mixing = (p.background_mixing + self._wind_mixing(mesh, stability, flux) + convection) * mesh.open_below
        tracers = implicit_diffusion(tracers, mixing.unsqueeze(1), thickness, mesh.dz_between, dt)
        return tracers * mesh.wet, new_eta, heat

    def _surface_fluxes(self, mesh: Mesh, tracers: Tensor, flux: Tensor) -> tuple[Tensor, Tensor]:
        """Heat (W m-2) and salt (1e-3 m s-1) into the ocean; freezing water is not cooled further."""
        sst, sss = tracers[:, 0, 0], tracers[:, 1, 0]
        t_ref, s_ref, virtual_salt = (
            torch.as_tensor(profile, dtype=sst.dtype, device=sst.device)[:, None]
            for profile in (self.climate.t_ref, self.climate.s_ref, self.climate.virtual_salt)
        )
        heat = flux[:, 2] + self.heat_feedback * (t_ref - sst)
        heat = torch.where((sst < FREEZING) & (heat < 0), torch.zeros_like(heat), heat)
        piston = mesh.dz[0] / (self.parameters.salinity_restoring * 86400)
        return heat * mesh.wet[0], (piston * (s_ref - sss) + virtual_salt) * mesh.wet[0]

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> tuple[Mesh, Tensor]:
        """Mesh and free-surface inverse in the state's dtype and device, built on first use."""
        key = (dtype, str(device))
        if key not in self._prepared:
            exact = Mesh(self.grid, torch.float64, device)
            shape = (self.grid.sizes["lat"], self.grid.sizes["lon"])
            inverse = dense_inverse(lambda eta: self._surface_operator(exact, eta), shape, exact.surface)
            self._prepared[key] = (Mesh(self.grid, dtype, device), inverse.to(dtype))
        return self._prepared[key]


def _thickness(mesh: Mesh, eta: Tensor) -> Tensor:
    """Thickness of the cells (m), (member, 1, lev, y, x): only the top one moves."""
    rest = mesh.dz.expand(eta.shape[0], 1, -1, *eta.shape[-2:])
    return torch.cat([rest[:, :, :1] + eta[:, None, None], rest[:, :, 1:]], 2)


def _buoyancy(mesh: Mesh, tracers: Tensor) -> Tensor:
    """b = -g ρ'/ρ₀ without its depth-only part; NEMO's simplified equation of state (S-EOS)."""
    t, s = tracers[:, 0] - 10.0, tracers[:, 1] - 35.0
    density = -0.1655 * (1 + 0.5 * 0.05952 * t + 1.4970e-4 * mesh.depth) * t
    density = density + 0.76554 * (1 - 0.5 * 7.4914e-4 * s - 1.1090e-5 * mesh.depth) * s - 2.4341e-3 * t * s
    return -GRAVITY / RHO0 * density


def _stratification(mesh: Mesh, buoyancy: Tensor) -> Tensor:
    """N² at the interfaces (s-2)."""
    return (buoyancy[..., :-1, :, :] - buoyancy[..., 1:, :, :]) / mesh.dz_between


def globe() -> NatureOcean:
    """Near-global ocean at 4 degrees: ten levels, idealised continents, half-day time step."""
    grid = globe_grid()
    physics = OceanParameters(43200.0, viscosity=3e5, diffusivity=300.0, eddy_form_stress=1500.0)
    return NatureOcean(grid, physics, globe_climate(grid["lat"].values))


def channel() -> NatureOcean:
    """Eddying re-entrant channel at about 25 km: eight levels, a ridge and an island, hourly time step."""
    grid = channel_grid()
    physics = OceanParameters(
        3600.0,
        viscosity=50.0,
        diffusivity=50.0,
        biharmonic=8e10,
        momentum_advection=True,
        background_mixing=2e-5,
        background_viscosity=5e-4,
        temperature_restoring=30.0,
        salinity_restoring=90.0,
    )
    return NatureOcean(grid, physics, channel_climate(grid["lat"].values))
