"""The quasi-geostrophic model against a plain numpy one, the conservation laws of Arakawa, and analytic solutions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.integrate import solve_ivp
from scipy.sparse.linalg import splu
from test_lorenz_models import NOISE, check_contract
from torch import Tensor
from torch.nn.functional import pad

from polynya.emulators import Noise
from polynya.emulators.integrate import integrate
from polynya.emulators.qg import QuasiGeostrophic, arakawa, helmholtz, laplacian, qg_tendency, streamfunction

SMALL = QuasiGeostrophic(n=33, viscosity=2e-10, dt_model=5.0, steps=1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return Noise(seed).normal((0,), None, shape, dtype=torch.float64)[0]


def jacobians(p: np.ndarray, q: np.ndarray, h: float) -> np.ndarray:
    """J++, J+x and Jx+ of Arakawa (1966), point by point, at the inner points (3, m - 2, n - 2)."""
    out = np.zeros((3, p.shape[0] - 2, p.shape[1] - 2))
    for j in range(1, p.shape[0] - 1):
        for i in range(1, p.shape[1] - 1):
            pe, pw, pn, ps = p[j, i + 1], p[j, i - 1], p[j + 1, i], p[j - 1, i]
            qe, qw, qn, qs = q[j, i + 1], q[j, i - 1], q[j + 1, i], q[j - 1, i]
            pne, pnw, pse, psw = p[j + 1, i + 1], p[j + 1, i - 1], p[j - 1, i + 1], p[j - 1, i - 1]
            qne, qnw, qse, qsw = q[j + 1, i + 1], q[j + 1, i - 1], q[j - 1, i + 1], q[j - 1, i - 1]
            plus = (pe - pw) * (qn - qs) - (pn - ps) * (qe - qw)
            first = pe * (qne - qse) - pw * (qnw - qsw) - pn * (qne - qnw) + ps * (qse - qsw)
            second = qn * (pne - pnw) - qs * (pse - psw) - qe * (pne - pse) + qw * (pnw - psw)
            out[:, j - 1, i - 1] = plus, first, second
    return out / (4 * h**2)


def test_the_jacobian_is_the_mean_of_arakawas_three() -> None:
    p, q = drawn(7, 9), drawn(7, 9, seed=1)
    wanted = jacobians(p.numpy(), q.numpy(), 0.1).mean(0)
    assert np.abs(arakawa(p, q, 0.1).numpy() - wanted).max() < 1e-12
    assert torch.allclose(arakawa(p, q, 0.1), -arakawa(q, p, 0.1), rtol=0, atol=1e-12)


def test_the_jacobian_conserves_energy_and_enstrophy() -> None:
    p, q = drawn(3, 12, 15), drawn(3, 12, 15, seed=1)
    for around in (lambda x: pad(x, (1, 1, 1, 1), mode="circular"), lambda x: pad(x, (1, 1, 1, 1))):
        J = arakawa(around(p), around(q), 0.1)
        for what in (p * J, q * J):
            assert (what.sum((-2, -1)) / what.abs().sum((-2, -1))).abs().max() < 1e-15
    J = arakawa(pad(p, (1, 1, 1, 1), mode="circular"), pad(q, (1, 1, 1, 1), mode="circular"), 0.1)
    assert (J.sum((-2, -1)) / J.abs().sum((-2, -1))).abs().max() < 1e-15
    J = arakawa(pad(p, (2, 2, 2, 2)), pad(q, (2, 2, 2, 2)), 0.1)  # the wall's own points belong to the sum
    assert (J.sum((-2, -1)) / J.abs().sum((-2, -1))).abs().max() < 1e-15


def test_the_jacobian_is_of_second_order() -> None:
    errors = []
    for n in (20, 40):
        x = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        y = x[:, None]
        J = arakawa(torch.sin(2 * x) * torch.cos(y), torch.cos(x) * y**2, 1 / n)
        p_x, p_y = 2 * torch.cos(2 * x) * torch.cos(y), -torch.sin(2 * x) * torch.sin(y)
        q_x, q_y = -torch.sin(x) * y**2, 2 * torch.cos(x) * y
        errors.append(float((J - (p_x * q_y - p_y * q_x)[1:-1, 1:-1]).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_inversion_is_exact() -> None:
    q = drawn(3, 127, 127)
    psi = streamfunction(q, 1 / 128, 1600.0)
    assert (helmholtz(psi, 1 / 128, 1600.0) - q).abs().max() < 1e-12
    again = streamfunction(helmholtz(q, 1 / 128, 1600.0), 1 / 128, 1600.0)
    assert (again - q).abs().max() < 1e-11
    for one, together in zip(q, psi, strict=True):
        assert torch.equal(streamfunction(one, 1 / 128, 1600.0), together)


def plain_tendency(q: np.ndarray, h: float, froude: float, r: float, viscosity: float, wind: float) -> np.ndarray:
    """q_t with sparse matrices and loops."""
    m = len(q)
    second = sparse.diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(m, m)) / h**2
    one = sparse.identity(m)
    lap = sparse.kron(second, one) + sparse.kron(one, second)
    psi = splu((lap - froude * sparse.identity(m * m)).tocsc()).solve(q.ravel())
    friction = (lap @ lap @ lap @ psi).reshape(m, m)
    p, around = (np.pad(x, 1) for x in (psi.reshape(m, m), q))
    y = h * np.arange(1, m + 1)[:, None]
    waves = (p[1:-1, 2:] - p[1:-1, :-2]) / (2 * h)
    J = jacobians(p, around, h).mean(0)
    return -waves - r * J - viscosity * friction - 2 * np.pi * wind * np.sin(2 * np.pi * y)


def test_the_tendency_agrees_with_a_plain_one() -> None:
    q = 1e3 * drawn(2, 15, 15)
    numbers = 1 / 16, 1600.0, 1e-5, 1e-8, 0.7
    got = qg_tendency(q, *numbers)
    for k in range(2):
        wanted = plain_tendency(q[k].numpy(), *numbers)
        assert np.abs(got[k].numpy() - wanted).max() < 1e-12 * np.abs(wanted).max()


def test_friction_alone_damps_a_wave_at_its_own_rate() -> None:
    """q_t = -A∇⁶ψ with q = (λ - F)ψ: ψ falls as exp(-A λ³ t / (λ - F))."""
    m, h, froude, viscosity = 31, 1 / 32, 1600.0, 1e-6
    x = math.pi * torch.arange(1, m + 1, dtype=torch.float64) / (m + 1)
    wave = torch.sin(3 * x) * torch.sin(5 * x)[:, None]
    eigenvalue = -4 / h**2 * (math.sin(1.5 * math.pi * h) ** 2 + math.sin(2.5 * math.pi * h) ** 2)
    assert torch.allclose(laplacian(wave, h), eigenvalue * wave, rtol=0, atol=1e-9)
    q = helmholtz(wave, h, froude)
    rate = viscosity * eigenvalue**3 / (eigenvalue - froude)
    got = qg_tendency(q, h, froude, 0.0, viscosity, 0.0) + pad(wave, (1, 1))[:, 2:] / (2 * h)
    got = got - pad(wave, (1, 1))[:, :-2] / (2 * h)
    assert torch.allclose(got, -rate * q, rtol=0, atol=1e-8)


def test_without_wind_and_friction_energy_and_enstrophy_change_only_by_the_time_step() -> None:
    start = SMALL.at_attractor((0,), NOISE).data[0, 0, 1:-1, 1:-1]
    q, h, froude = helmholtz(start, 1 / 32, 1600.0), 1 / 32, 1600.0
    later = integrate(lambda q: qg_tendency(q, h, froude, 1e-5, 0.0, 0.0), q, 0.5, 100)
    energy = [float((streamfunction(x, h, froude) * x).sum()) for x in (q, later)]
    enstrophy = [float((x * x).sum()) for x in (q, later)]
    assert energy[1] / energy[0] == pytest.approx(1, abs=1e-7)
    # ψ_x brings enstrophy in through the western and eastern walls; J alone does not.
    still = integrate(
        lambda q: -1e-5 * arakawa(pad(streamfunction(q, h, froude), (1,) * 4), pad(q, (1,) * 4), h), q, 0.5, 100
    )
    assert float((still * still).sum()) / enstrophy[0] == pytest.approx(1, abs=1e-6)


def test_runge_kutta_is_of_fourth_order() -> None:
    start = SMALL.at_attractor((1,), NOISE).data[0, 0, 1:-1, 1:-1]
    q = helmholtz(start, SMALL.h, SMALL.froude)
    exact = solve_ivp(
        lambda _, y: SMALL.tendency(torch.from_numpy(y).view_as(q)).flatten().numpy(),
        (0, 40),
        q.flatten().numpy(),
        "DOP853",
        rtol=1e-12,
        atol=1e-8,
    ).y[:, -1]
    counts = np.array([8, 16, 32])
    errors = [np.abs(integrate(SMALL.tendency, q, 40 / k, k).flatten().numpy() - exact).max() for k in counts]
    assert 3.7 < -np.polyfit(np.log(counts), np.log(errors), 1)[0] < 4.4, errors


def test_a_sea_at_rest_without_wind_stays_at_rest_and_wind_drives_two_gyres() -> None:
    calm = QuasiGeostrophic(n=33, wind=0.0)
    rest = calm.at_rest(members=(0, 3))
    assert (calm.step(rest, None, NOISE).data == 0).all()
    state = SMALL.at_rest()
    for _ in range(20):
        state = SMALL.step(state, None, NOISE)
    psi = state["psi"][0, 0]
    assert psi[8].max() > 0.1 and psi[8].min() > -0.1, "an anticyclone in the south"
    assert psi[24].min() < -0.1 and psi[24].max() < 0.1, "a cyclone in the north"
    assert torch.allclose(psi, -psi.flip(0), rtol=0, atol=1e-12), "from rest the gyres mirror each other"


def test_keeps_the_contract() -> None:
    state = check_contract(SMALL)
    apart = state["psi"].flatten(1)
    assert float(torch.corrcoef(apart)[0, 1:].abs().max()) < 0.9
    assert 2 < float(apart.std()) < 15


def test_the_published_grid_is_a_batch_of_independent_members() -> None:
    emulator = QuasiGeostrophic()
    assert emulator.layout.shape == (1, 129, 129) and emulator.dt.days == 5
    wave = drawn(3, 6, 6)
    x = math.pi * torch.arange(129, dtype=torch.float64) / 128
    sines = torch.sin(x[:, None] * torch.arange(1, 7))
    state = emulator.at_rest(members=(0, 1, 2))
    state = state.replace(data=(3 * sines @ wave @ sines.T * emulator.layout.mask[0])[:, None])
    together = emulator.step(state, None, NOISE)
    assert torch.equal(emulator.step(state.sel((1,)), None, NOISE).data, together.sel((1,)).data)
    single = emulator.step(state.to(torch.float32), None, NOISE)
    assert float((single.data - together.data).abs().max()) < 1e-4 * float(together.data.abs().max())
    assert torch.equal(emulator.step(state.sel((2,)).to(torch.float32), None, NOISE).data, single.sel((2,)).data)


def test_values_on_the_walls_do_not_count() -> None:
    state = SMALL.at_attractor((0,), NOISE)
    spoilt = state.replace(data=torch.where(SMALL.layout.mask, state.data, 7.0))
    assert torch.equal(SMALL.step(spoilt, None, NOISE).data, SMALL.step(state, None, NOISE).data)


def test_how_many_members_are_advanced_together_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SMALL.at_attractor((0, 1, 2), NOISE)
    together = SMALL.step(state, None, NOISE)
    monkeypatch.setattr("polynya.emulators.qg._CACHED", 2 * 31**2)
    assert torch.equal(SMALL.step(state, None, NOISE).data, together.data)


def test_a_fine_grid_is_spun_up_from_a_coarse_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polynya.emulators.qg._FINE", 33)
    monkeypatch.setattr("polynya.emulators.qg._REFINE", 0.0)
    fine = SMALL.at_attractor((0,), NOISE).data[0, 0]
    half = QuasiGeostrophic(n=17, viscosity=4 * SMALL.viscosity, dt_model=10.0, steps=1)
    coarse = half.at_attractor((0,), NOISE).data[0, 0]
    assert torch.allclose(fine[::2, ::2], coarse, rtol=0, atol=1e-4)


def test_members_that_blow_up_are_spun_up_in_smaller_steps() -> None:
    coarse = replace(SMALL, dt_model=60.0)  # which all blow up with
    psi = coarse.at_attractor((0, 1), NOISE).data
    assert torch.equal(psi, replace(SMALL, dt_model=30.0).at_attractor((0, 1), NOISE).data)
    with pytest.raises(ValueError, match=r"members \[0, 1\] blow up .* dt_model=60; wanted a larger viscosity"):
        replace(SMALL, dt_model=480.0).at_attractor((0, 1), NOISE)


def test_neighbours_are_equally_far_apart_everywhere() -> None:
    lat, lon = QuasiGeostrophic().layout.position(QuasiGeostrophic().layout.fields[0])
    east = 6.371e6 * np.radians(np.diff(lon, axis=1)) * np.cos(np.radians(lat[:, 1:]))
    north = 6.371e6 * np.radians(np.diff(lat, axis=0))
    spacing = QuasiGeostrophic().spacing
    assert np.abs(east / spacing - 1).max() < 1e-4 and np.abs(north / spacing - 1).max() < 1e-9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 8}, "wanted n >= 9 points along a side, got 8"),
        ({"froude": -1.0}, "wanted froude >= 0, got -1.0"),
        ({"viscosity": math.nan}, "wanted viscosity >= 0"),
        ({"steps": 0}, "whole number of steps"),
    ],
)
def test_bad_parameters_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"QuasiGeostrophic: .*{message}"):
        QuasiGeostrophic(**wrong)
