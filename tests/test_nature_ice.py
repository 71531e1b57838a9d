"""The embedded sea ice against what can be worked out by hand: balances, closed forms, exact identities."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch

from polynya.emulators import LayoutError, Noise, State
from polynya.emulators import nature_ice as nature
from polynya.emulators.nature_grid import plane
from polynya.emulators.nature_ice_forcing import IceWeather

START = cftime.datetime(1, 3, 1, calendar="360_day")
CALM = {"anticyclone": 0.0, "season": 0.0, "slope": 0.0}


def sea(cells: int = 16, hours: int = 1, **numbers: float) -> nature.NatureIce:
    """A square sea with walls."""
    wet = np.zeros((cells, cells), bool)
    wet[1:-1, 1:-1] = True
    changed = replace(nature.IceParameters(gyre=0.0), **numbers)  # type: ignore[arg-type]
    return nature.NatureIce(plane(wet, 20e3), changed, timedelta(hours=hours))


def driven(ice: nature.NatureIce, tas: float = 271.35, wind: tuple[float, float] = (0.0, 0.0)) -> State:
    """Even forcing of one member."""
    values = torch.tensor([tas, 0.001, *wind] * 2).double()[None, :, None, None]
    data = values * ice.forcing_layout.mask
    return State(data, START, ice.forcing_layout, (0,))


def at_rest(ice: nature.NatureIce, thickness: float = 2.0, cover: float = 0.98) -> State:
    state = ice.at_rest(START, thickness=thickness).to(torch.float64)
    state.data[:, 1] = cover * ice.layout.mask[1]
    return state


def test_work_of_stress_is_what_deformation_takes() -> None:
    # Σ u·(∇·hσ) = -Σ hσ:ε̇ for any stress and any velocity that is zero on the edge: strain and divergence are adjoint.
    g = torch.Generator().manual_seed(0)
    velocity, stress = (torch.randn(1, n, 12, 14, generator=g, dtype=torch.float64) for n in (2, 3))
    velocity[..., -1, :] = velocity[..., -1] = 0.0
    exx, eyy, exy = nature._strain(velocity, 5e3)
    fx, fy = nature._divergence(stress, 5e3)
    work = (velocity[:, 0] * fx + velocity[:, 1] * fy).sum()
    taken = (stress[:, 0] * exx + stress[:, 1] * eyy + 2 * stress[:, 2] * exy).sum()
    assert float(work) == pytest.approx(-float(taken), rel=1e-12)


def test_strain_of_a_linear_flow_is_exact() -> None:
    y, x = torch.meshgrid(*(torch.arange(8.0, dtype=torch.float64) * 5e3,) * 2, indexing="ij")
    velocity = torch.stack([2e-6 * x + 3e-6 * y, -1e-6 * x + 4e-6 * y])[None]
    exx, eyy, exy = (e[0, 1:, 1:] for e in nature._strain(velocity, 5e3))
    for got, wanted in ((exx, 2e-6), (eyy, 4e-6), (exy, 1e-6)):
        assert torch.allclose(got, torch.full_like(got, wanted), rtol=1e-12)


def test_filters_take_the_chequerboard_and_nothing_linear() -> None:
    j, i = torch.meshgrid(*(torch.arange(12.0, dtype=torch.float64),) * 2, indexing="ij")
    board, plane = (-1.0) ** (i + j), 1 + 2 * i - 3 * j
    inner = slice(2, -2)
    for smooth in (nature._smoothed, lambda q, share: nature._even(q, torch.ones_like(q), share)):
        assert torch.allclose(smooth(board, 0.4)[inner, inner], 0.6 * board[inner, inner])
        assert torch.allclose(smooth(plane, 0.4)[inner, inner], plane[inner, inner])


def test_free_drift_balances_wind_water_and_coriolis() -> None:
    # Loose ice carries no stress: τ_air = τ_water(u) turned + ρ h f k×u, solved here by complex iteration.
    ice = sea(24, conduction=0.0, exchange=0.0)
    wind, h, cover = (6.0, -3.0), 1.0, 0.3
    # With A = 0.3, e^{-C(1-A)} = 8e-7: no strength.
    state = at_rest(ice, h, cover)
    with torch.no_grad():
        for _ in range(12):
            state = ice.step(state, driven(ice, wind=wind), Noise(0))
    p, w = ice.parameters, complex(*wind)
    air = 1.3 * p.air_drag * abs(w) * w * cover
    u = 0j
    for _ in range(500):
        drag = 1026 * p.water_drag * cover * abs(u) * np.exp(1j * np.radians(p.turning))
        u = 0.5 * u + 0.5 * air / (drag + 1j * 917 * h * p.coriolis)
    got = state["siu"][0, 0, 12, 12] + 1j * state["siv"][0, 0, 12, 12]
    assert abs(complex(got) - u) / abs(u) < 0.02


def test_ice_is_conserved_where_none_grows() -> None:
    ice = sea(hours=12, conduction=0.0, exchange=0.0)
    state = at_rest(ice)
    with torch.no_grad():
        after = ice.step(state, driven(ice, wind=(9.0, 4.0)), Noise(0))
    assert float(after["sithick"].sum()) == pytest.approx(float(state["sithick"].sum()), rel=1e-12)
    assert float((after["sithick"] - state["sithick"]).abs().max()) > 0.01  # and it has moved


def test_growth_follows_stefans_law() -> None:
    # dh/dt = k ΔT / (ρ L (h + 1/2)), so (h + 1/2)² grows linearly; the solver's steps are an hour, first order.
    ice = sea(hours=12, substeps=1)
    state = at_rest(ice, 1.0, 1.0)
    with torch.no_grad():
        for _ in range(20):
            state = ice.step(state, driven(ice, tas=251.35), Noise(0))
    seconds, p = 10 * 86400, ice.parameters
    wanted = np.sqrt(1.5**2 + 2 * p.conduction * 20 / (917 * 3e5) * seconds) - 0.5
    assert float(state["sithick"][0, 0, 8, 8]) == pytest.approx(wanted, rel=1e-4)


def test_stress_returns_to_the_envelope() -> None:
    ice = sea(24, hours=6)
    state = at_rest(ice)
    with torch.no_grad():
        for k in range(4):
            state = ice.step(state, driven(ice, wind=(12.0 * (-1) ** k, 5.0)), Noise(0))
    sxx, syy, sxy = (state[f"sistress{a}"][0, 0] for a in ("xx", "yy", "xy"))
    shear, normal = torch.sqrt((sxx - syy) ** 2 / 4 + sxy**2), (sxx + syy) / 2
    p = ice.parameters
    beyond = (shear + p.friction * normal)[2:-2, 2:-2] / p.cohesion
    assert float(beyond.max()) < 1.25  # failure takes a few substeps
    assert float(state["sidamage"].max()) > 0.5


def test_days_of_weather_stay_in_bounds_and_repeats_member_by_member() -> None:
    ice = replace(nature.arctic(32, 40e3), parameters=replace(nature.IceParameters(), substeps=30))
    weather = ice.forcing(Noise(3))
    both = ice.at_rest(START, (4, 9))
    alone = both.sel((9,))
    with torch.no_grad():
        for _ in range(4):
            both = ice.step(both, weather.at(both.time, (4, 9)), Noise(0))
            alone = ice.step(alone, weather.at(alone.time, (9,)), Noise(0))
    assert alone.members == (9,)
    assert torch.equal(both.sel((9,)).data, alone.data)
    assert not torch.equal(both.data[0], both.data[1])
    for name, low, high in (("sithick", 0, 8), ("siconc", 0, 1), ("sidamage", 0, 1), ("siu", -1, 1)):
        assert low <= float(both[name].min()) <= float(both[name].max()) <= high, name


def test_weather_has_its_variance_memory_and_no_divergence() -> None:
    ice = nature.arctic(32, 40e3)
    weather = ice.forcing(Noise(5), steering=(0.0, 0.0), **CALM)
    members = tuple(range(40))
    now, later = (weather._weather(START + k * timedelta(hours=12), members) for k in (0, 1))
    std = now.std((0, 2, 3))
    assert torch.allclose(std, torch.tensor([2.5, 8.0, 8.0], dtype=torch.float64), rtol=0.1)
    correlation = (now * later).mean((0, 2, 3)) / std / later.std((0, 2, 3))
    assert torch.allclose(correlation, torch.full_like(std, np.exp(-0.2)), atol=0.05)
    u, v = now[:, 1], now[:, 2]
    divergence = (u[:, 1:-1, 2:] - u[:, 1:-1, :-2]) + (v[:, 2:, 1:-1] - v[:, :-2, 1:-1])
    vorticity = (v[:, 1:-1, 2:] - v[:, 1:-1, :-2]) - (u[:, 2:, 1:-1] - u[:, :-2, 1:-1])
    assert float(divergence.std()) < 0.03 * float(vorticity.std())


def test_storms_travel_with_the_steering_flow() -> None:
    ice = nature.arctic(32, 40e3)
    weather = IceWeather(
        ice.forcing_layout, Noise(5), steering=(40e3 * 4 / 43200, 0.0), memory=timedelta(days=50), **CALM
    )
    now, later = (weather._weather(START + k * timedelta(hours=12), (0,)) for k in (0, 1))
    moved = torch.corrcoef(torch.stack([now[0, 0, :, :-4].flatten(), later[0, 0, :, 4:].flatten()]))[0, 1]
    assert float(moved) > 0.97
    stayed = torch.corrcoef(torch.stack([now[0, 0].flatten(), later[0, 0].flatten()]))[0, 1]
    assert float(stayed) < float(moved)


def test_a_record_is_the_same_as_the_end_of_one_step_and_the_start_of_the_next() -> None:
    ice = nature.arctic(16, 80e3)
    weather = ice.forcing(Noise(1))
    first, second = (weather.at(START + k * ice.dt, (2,)).data for k in (0, 1))
    assert torch.equal(first[:, 4:], second[:, :4])


def test_refuses_odd_steps_and_forcing_of_another_kind() -> None:
    ice = nature.arctic(16, 80e3)
    with pytest.raises(ValueError, match="whole number"):
        replace(ice, interval=timedelta(minutes=90))
    state = ice.at_rest(START)
    with pytest.raises(LayoutError):
        ice.step(state, None, Noise(0))
