"""The embedded ocean against what is known exactly: budgets, analytic solutions, plain linear algebra."""

from __future__ import annotations

import math
import pickle
from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
from scipy.linalg import solve_banded

from polynya.emulators import Noise, State
from polynya.emulators import nature_ocean as nature
from polynya.emulators.nature_forcing import NatureForcing, Warming, Weather
from polynya.emulators.nature_operators import (
    GRAVITY,
    Mesh,
    advective_inflow,
    implicit_diffusion,
    upward_transport,
)

START = cftime.DatetimeNoLeap(1, 1, 1)
RHO_CP = nature.RHO0 * nature.HEAT_CAPACITY


def content(ocean: nature.NatureOcean, state: State, name: str) -> float:
    """Volume integral of a tracer over cells whose top one moves with the sea level."""
    thickness = torch.tensor(ocean.grid["dz"].values)[:, None, None].repeat(1, *state.data.shape[-2:])
    thickness[0] += state["zos"][0, 0].double()
    return float((state[name][0].double() * thickness * torch.tensor(ocean.grid["areacello"].values)).sum())


@pytest.mark.parametrize("name", ["globe", "channel"])
def test_heat_salt_and_volume_close_to_float64_round_off(name: str) -> None:
    ocean = nature.globe() if name == "globe" else nature.channel()
    noise = Noise(3)
    forcing = ocean.forcing(noise=noise) if name == "globe" else ocean.forcing()
    state = ocean.at_rest(START, noise).to(torch.float64)
    area = torch.tensor(ocean.grid["areacello"].values)
    with torch.no_grad():
        for _ in range(2):
            new = ocean.step(state, forcing.at(state.time), noise)
            gain = content(ocean, new, "thetao") - content(ocean, state, "thetao")
            absorbed = float((new["hfds"][0, 0] * area).sum()) * ocean.dt.total_seconds() / RHO_CP
            scale = content(ocean, state, "thetao")
            assert abs(gain - absorbed) < 2e-14 * scale
            assert abs(gain) > 1e-6 * scale
            volume = float(((new["zos"] - state["zos"])[0, 0] * area).sum())
            assert abs(volume) < 1e-13 * float(area.sum())
            state = new


def test_salt_is_conserved_without_surface_fluxes() -> None:
    ocean = nature.globe()
    quiet = nature.OceanParameters(43200.0, 3e5, 300.0, eddy_form_stress=1500.0, salinity_restoring=1e30)
    climate = nature.Climate(**{**vars(ocean.climate), "virtual_salt": 0 * ocean.climate.virtual_salt})
    closed = nature.NatureOcean(ocean.grid, quiet, climate)
    state = closed.at_rest(START).to(torch.float64)
    with torch.no_grad():
        new = closed.step(state, closed.forcing().at(START), Noise(0))
    before, after = content(closed, state, "so"), content(closed, new, "so")
    assert abs(after - before) < 1e-14 * before
    assert float((new["so"] - state["so"]).abs().max()) > 1e-3


def test_a_uniform_tracer_stays_uniform_under_any_flow(globe: nature.NatureOcean) -> None:
    mesh = Mesh(globe.grid, torch.float64, "cpu")
    u, v = Noise(1).normal((0, 1), None, (10, 37, 90), dtype=torch.float64) * mesh.corner
    e, n = mesh.transports(u[None], v[None], mesh.dz)
    up = upward_transport(mesh.convergence(e, n))
    inflow = advective_inflow(
        mesh, torch.full((1, 1, 10, 37, 90), 7.0, dtype=torch.float64), e[:, None], n[:, None], up[:, None]
    )
    expected = torch.zeros_like(inflow)
    expected[0, 0, 0] = 7.0 * up[0, 0]  # only the top cell changes its volume
    assert float((inflow - expected).abs().max()) < 1e-12 * float(e.abs().max())


def test_advection_makes_no_new_extremes(channel: nature.NatureOcean) -> None:
    mesh = Mesh(channel.grid, torch.float64, "cpu")
    u = torch.full((1, 8, 40, 80), 0.5, dtype=torch.float64) * mesh.corner
    e, n = mesh.transports(u, 0 * u, mesh.dz)
    up = upward_transport(mesh.convergence(e, n))
    q = torch.zeros(1, 1, 8, 40, 80, dtype=torch.float64)
    q[..., 10:20, 10:20] = 1.0
    q = q * mesh.wet
    volume = mesh.area * mesh.dz
    for _ in range(40):
        grown = volume.clone()[None, None].repeat(1, 1, 1, 1, 1)
        q = (
            q + 3600.0 * (advective_inflow(mesh, q, e[:, None], n[:, None], up[:, None]) - q * _top(up)) / grown
        ) * mesh.wet
    assert float(q.max()) <= 1 + 1e-12 and float(q.min()) >= -1e-12
    assert float(q.max()) > 0.5


def _top(up: torch.Tensor) -> torch.Tensor:
    """Volume change of the top cells, taken back so that the test's cells keep their size."""
    change = torch.zeros_like(up)[:, None]
    change[:, :, 0] = up[:, None, 0]
    return change


def test_the_free_surface_solves_its_equation(globe: nature.NatureOcean) -> None:
    mesh, inverse = globe._prepare(torch.float64, torch.device("cpu"))
    eta = Noise(2).normal((0, 1), None, (37, 90), dtype=torch.float64) * mesh.wet[0]
    right = globe._surface_operator(mesh, eta) * mesh.wet[0]
    assert torch.allclose(globe._solve_surface(mesh, inverse, right), eta, atol=1e-10)


def test_gravity_waves_have_the_right_speed() -> None:
    """A narrow bump in a flat, resting channel splits into waves that run at sqrt(g H)."""
    ocean = nature.channel()
    grid = ocean.grid.copy(deep=True)
    wet = np.ones(grid["wetmask"].shape, bool)
    wet[:, [0, -1]] = False
    corner = wet & np.roll(wet, -1, 1)
    corner[:, -1] = False
    grid["wetmask"].values[:], grid["wetmask_corner"].values[:] = wet, corner
    physics = nature.OceanParameters(120.0, 0.0, 0.0, surface_filter=0.0, bottom_drag=0.0, implicitness=0.0)
    flat = nature.NatureOcean(grid, physics, ocean.climate, timedelta(minutes=2))
    mesh, inverse = flat._prepare(torch.float64, torch.device("cpu"))
    mesh.coriolis = torch.zeros_like(mesh.coriolis)
    x = torch.arange(80, dtype=torch.float64)
    state = flat.at_rest(START).to(torch.float64)
    tracers = torch.stack([torch.full((8, 40, 80), 10.0), torch.full((8, 40, 80), 35.0)])[None].double() * mesh.wet
    eta = (0.1 * torch.exp(-(((x - 40) / 6) ** 2))).expand(1, 40, 80) * mesh.wet[0]
    velocity, flux = torch.zeros(1, 2, 8, 40, 80, dtype=torch.float64), torch.zeros(1, 3, 40, 80, dtype=torch.float64)
    flat._prepared[(torch.float64, "cpu")] = (mesh, inverse)
    exact = nature.dense_inverse(lambda e: flat._surface_operator(mesh, e), (40, 80), mesh.surface)
    steps = 20
    for _ in range(steps):
        velocity, eta, transports = flat._momentum(mesh, exact, tracers, velocity, eta, flux)
        eta = eta + 120.0 * mesh.convergence(*(t.sum(-3) for t in transports)) / mesh.area
    row = eta[0, 20]
    travelled = float((row[40:].argmax()).item()) * float(mesh.dx[20])
    assert travelled == pytest.approx(math.sqrt(GRAVITY * 2500.0) * 120.0 * steps, rel=0.15)
    assert state.members == (0,)


def test_inertial_oscillation_turns_at_f(channel: nature.NatureOcean) -> None:
    mesh = Mesh(channel.grid, torch.float64, "cpu")
    u = torch.zeros(1, 2, 8, 40, 80, dtype=torch.float64)
    u[:, 0] = 1.0
    half = nature.NatureOcean(channel.grid, nature.OceanParameters(600.0, 0.0, 0.0, implicitness=0.5), channel.climate)
    explicit = 0.5 * 600.0 * mesh.coriolis
    for _ in range(10):
        turned = torch.stack([explicit * u[:, 1], -explicit * u[:, 0]], 1)
        u = half._rotate(mesh, u + turned)
    angle = torch.atan2(-u[0, 1, 0, :, 0], u[0, 0, 0, :, 0])
    assert torch.allclose(angle, mesh.coriolis[:, 0] * 6000.0, rtol=1e-2)
    assert torch.allclose((u**2).sum(1), torch.ones_like(u[:, 0]), rtol=1e-12)


def test_implicit_diffusion_is_the_banded_solve() -> None:
    generator = np.random.default_rng(0)
    k, h, dz, q = (generator.uniform(0.5, 2.0, s) for s in ((5, 1, 1), (6, 1, 1), (5, 1, 1), (6, 1, 1)))
    ours = implicit_diffusion(*(torch.from_numpy(a) for a in (q, k, h, dz)), 3.0).flatten().numpy()  # type: ignore[arg-type]
    rate = 3.0 * (k / dz).ravel()
    up, low, diagonal = -rate / h.ravel()[:-1], -rate / h.ravel()[1:], np.ones(6)
    diagonal[:-1] -= up
    diagonal[1:] -= low
    reference = solve_banded((1, 1), np.stack([np.r_[0, up], diagonal, np.r_[low, 0]]), q.ravel())
    assert np.allclose(ours, reference, rtol=1e-13)
    assert (h.ravel() * ours).sum() == pytest.approx((h * q).sum(), rel=1e-14)


def test_density_has_the_published_coefficients(globe: nature.NatureOcean) -> None:
    """Roquet's check: at 10 degC and 35 the anomaly is zero, its slopes are -a0 and b0 at the surface."""
    mesh = Mesh(globe.grid, torch.float64, "cpu")
    mesh.depth = torch.zeros_like(mesh.depth)

    def rho(t: float, s: float) -> float:
        tracers = torch.tensor([t, s], dtype=torch.float64).view(1, 2, 1, 1, 1).expand(1, 2, 10, 1, 1)
        return -float(nature._buoyancy(mesh, tracers)[0, 0, 0, 0]) * nature.RHO0 / GRAVITY

    assert rho(10, 35) == 0
    assert (rho(10.001, 35) - rho(9.999, 35)) / 0.002 == pytest.approx(-0.1655, rel=1e-6)
    assert (rho(10, 35.001) - rho(10, 34.999)) / 0.002 == pytest.approx(0.76554, rel=1e-6)


def test_seasons_warming_and_weather(globe: nature.NatureOcean) -> None:
    calm, warm = globe.forcing(), globe.forcing(warming=Warming(step=2.0))
    january, july = calm.at(cftime.DatetimeNoLeap(5, 2, 10)), calm.at(cftime.DatetimeNoLeap(5, 8, 10))
    north = 30
    assert january["hfatm"][0, 0, north].min() < 0 < july["hfatm"][0, 0, north].max()
    raised = warm.at(START)["hfatm"] - calm.at(START)["hfatm"]
    wet = globe.forcing_layout.mask[0]
    tropics = raised[0, 0, 12:24][wet[12:24]]
    assert torch.allclose(tropics, torch.full_like(tropics, 2 * globe.heat_feedback), rtol=1e-4)
    ramp = Warming(rate=0.5, start=START)
    assert ramp.at(START + timedelta(days=730)) == pytest.approx(1.0)
    assert ramp.at(START - timedelta(days=5)) == 0.0
    assert calm.at(START, (0, 4)).members == (0, 4)


def test_weather_is_a_function_of_member_and_time_with_the_right_statistics() -> None:
    lat, lon = np.arange(-74.0, 71, 4), np.arange(2.0, 360, 4)
    weather = Weather(lat, lon, Noise(5))
    alone, together = weather.at(START, (7,)), Weather(lat, lon, Noise(5)).at(START, (2, 7, 1))
    assert torch.equal(alone[0], together[1])
    many = weather.at(START, tuple(range(200)))
    heat = weather._remembered(nature_heat(), START, tuple(range(200)))
    assert float(heat.std()) == pytest.approx(1.0, abs=0.03)
    assert float(heat.mean()) == pytest.approx(0.0, abs=0.05)
    next_week = weather._remembered(nature_heat(), START + timedelta(days=5), tuple(range(200)))
    correlation = float((heat * next_week).mean() / heat.square().mean())
    assert correlation == pytest.approx(math.exp(-5 / 6), abs=0.05)
    assert many.shape == (200, 3, 37, 90)


def nature_heat() -> object:
    from polynya.emulators.nature_forcing import HEAT

    return HEAT


def test_refuses_forcing_of_another_kind_and_odd_steps(globe: nature.NatureOcean) -> None:
    state = globe.at_rest(START)
    with pytest.raises(ValueError, match="needs forcing"):
        globe.step(state, None, Noise(0))
    with pytest.raises(ValueError, match="forcing: wanted fields"):
        globe.step(state, state, Noise(0))
    with pytest.raises(ValueError, match="not a whole number"):
        nature.NatureOcean(globe.grid, globe.parameters, globe.climate, timedelta(hours=7))


def test_pickles_without_its_inverse(globe: nature.NatureOcean) -> None:
    globe._prepare(torch.float32, torch.device("cpu"))
    assert len(pickle.dumps(globe)) < 2e6
    again = pickle.loads(pickle.dumps(globe))
    assert again.layout.shape == globe.layout.shape
    assert isinstance(globe.forcing(), NatureForcing)


def test_grids_are_oceans(globe: nature.NatureOcean, channel: nature.NatureOcean) -> None:
    ocean_area = float(globe.grid["areacello"].where(globe.grid["wetmask"][0]).sum())
    assert 3.2e14 < ocean_area < 3.8e14
    drake = globe.grid["wetmask"].sel(lat=slice(-66, -58))
    assert drake.isel(lev=0).all()
    assert not globe.grid["wetmask"].isel(lev=0).sel(lon=282, lat=slice(8, 12)).any()  # Panama is closed
    assert float(channel.grid["lon"][-1] - channel.grid["lon"][0]) + 0.35 == pytest.approx(28.0)
    for ocean in (globe, channel):
        deeper = ocean.grid["wetmask"].values[1:] & ~ocean.grid["wetmask"].values[:-1]
        assert not deeper.any()
