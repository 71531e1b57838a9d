"""Lorenz's models against hand-written sums, scipy's integrator and published exponents; the contract of all of them.

`check_contract` and `exponents` serve the tests of the other reference dynamics too.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from polynya.emulators import Emulator, GivenNoise, LayoutError, Noise, Persistence, State
from polynya.emulators.integrate import EPOCH, integrate, rk4
from polynya.emulators.lorenz import Lorenz63, Lorenz96, lorenz63, lorenz96

NOISE = Noise(11)


# --- shared by the tests of all reference dynamics -----------------------------------------------------


def exponents(emulator: Any, members: int, count: int, steps: int, skip: int, every: int) -> np.ndarray:
    """Leading Lyapunov exponents per time unit, (count,): growth of small separations, kept orthogonal."""
    state = emulator.at_attractor(range(members), NOISE)
    shape, x, small = state.layout.shape, state.data.flatten(1), 1e-7
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(members, x.shape[1], count, generator=generator, dtype=x.dtype))
    grown = torch.zeros(count, dtype=x.dtype)
    for k in range(0, steps, every):
        together = torch.cat([x[:, None], x[:, None] + small * Q.mT], 1).flatten(0, 1)
        now = State(together.view(-1, *shape), EPOCH, state.layout, tuple(range(len(together))))
        for _ in range(every):
            now = emulator.step(now, None, NOISE)
        rows = now.data.reshape(members, 1 + count, -1)
        x = rows[:, 0]
        Q, R = torch.linalg.qr((rows[:, 1:] - rows[:, :1]).mT / small)
        if k >= skip:
            grown += R.diagonal(dim1=-2, dim2=-1).abs().log().mean(0)
    return (grown / ((steps - skip) * emulator.dt_model * emulator.steps)).numpy()


def kaplan_yorke(exponents: np.ndarray) -> float:
    """Dimension of the attractor: how many exponents add up to zero."""
    total = np.cumsum(exponents)
    k = int((total > 0).sum())
    return k + float(total[k - 1] / -exponents[k])


def check_contract(emulator: Any, long: int = 1000) -> State:
    """What every emulator promises, and a run of `long` steps; returns members 0 to 6 on the attractor."""
    members = (0, 1, 2, 5, 4, 6, 3)
    state = emulator.at_attractor(members, NOISE)
    assert isinstance(emulator, Emulator) and emulator.forcing_layout is None
    assert state.members == members and state.data.dtype == torch.float64
    again = pickle.loads(pickle.dumps(emulator))
    assert again == emulator and hash(again) == hash(emulator)
    for start in (state, state.to(torch.float32)):
        before = start.data.clone()
        new = emulator.step(start, None, NOISE)
        assert torch.equal(start.data, before) and new.data.dtype == start.data.dtype
        assert new.time - start.time == emulator.dt and new.members == members
        assert torch.equal(new.data, again.step(start, None, NOISE).data)
        assert (new.data[:, ~emulator.layout.mask] == 0).all()
        for part in ((2,), (6,), (3, 0), (6, 5, 4, 3, 2)):
            assert torch.equal(emulator.step(start.sel(part), None, NOISE).data, new.sel(part).data), part
    assert torch.equal(emulator.at_attractor((5,), NOISE).data, state.sel((5,)).data)
    assert not torch.equal(emulator.at_attractor((5,), Noise(12)).data, state.sel((5,)).data)
    _check_derivatives(emulator, state.sel((0, 1)))
    _check_noise(emulator, state)
    packed = emulator.layout.pack(state.to_xarray(), state.time, members, torch.float64)
    assert torch.equal(packed.data, state.data)
    with pytest.raises(LayoutError, match=f"{type(emulator).__name__}: state: wanted"):
        other = Lorenz96(n=7)
        emulator.step(other.at_attractor((0,), NOISE), None, NOISE)
    now = state.sel((0, 1))
    for _ in range(long):
        now = emulator.step(now, None, NOISE)
    assert torch.isfinite(now.data).all() and now.data.abs().max() < 10 * state.data.abs().max()
    return state


def _check_derivatives(emulator: Any, state: State) -> None:
    """<M v, w> = <v, Mᵀ w>, and |M(x + h v) - M(x) - h M v| falls as h², over three steps."""

    def step(data: Tensor) -> Tensor:
        now = state.replace(data=data)
        for _ in range(3):
            now = emulator.step(now, None, NOISE)
        return now.data

    shape, mask = state.data.shape, state.layout.mask
    v, w = (Noise(s).normal((0,), None, shape, dtype=torch.float64)[0] * mask for s in (5, 6))
    value, tangent = torch.func.jvp(step, (state.data,), (v,))
    data = state.data.clone().requires_grad_()
    (adjoint,) = torch.autograd.grad(step(data), data, w)
    forward, backward = float((tangent * w).sum()), float((v * adjoint).sum())
    assert abs(forward - backward) <= 1e-12 * float((tangent * w).abs().sum())
    sizes = 10.0 ** np.arange(-1, -5, -1)
    remainders = [float((step(state.data + h * v) - value - h * tangent).norm()) for h in sizes]
    slope = np.polyfit(np.log10(sizes), np.log10(remainders), 1)[0]
    assert slope == pytest.approx(2.0, abs=0.05), remainders
    with torch.inference_mode():  # what a step keeps for later must not be spoilt by how it was first called
        quiet = replace(emulator, dt_model=emulator.dt_model * 1.01)
        quiet.step(state, None, NOISE)
    data = state.data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(quiet.step(state.replace(data=data), None, NOISE).data.square().sum(), data)
    assert torch.isfinite(gradient).all()


def _check_noise(emulator: Any, state: State) -> None:
    noisy = replace(emulator, noise_std=0.3)
    step, plain = noisy.step(state, None, NOISE), emulator.step(state, None, NOISE)
    drawn = NOISE.stream("model").normal(state.members, state.time, state.layout.shape, dtype=torch.float64)
    assert torch.allclose(step.data, plain.data + 0.3 * drawn * state.layout.mask, rtol=0, atol=1e-13)
    given = GivenNoise({"model": drawn}, state.members)
    assert torch.equal(noisy.step(state, None, given).data, step.data)
    assert not torch.equal(noisy.step(state.replace(time=step.time), None, NOISE).data, step.data)


# --- the models of Lorenz -----------------------------------------------------------------------------


def test_the_tendency_of_1996_is_lorenz_sum() -> None:
    x = np.random.default_rng(0).standard_normal((3, 9))
    wanted = np.empty_like(x)
    for i in range(9):
        wanted[:, i] = (x[:, (i + 1) % 9] - x[:, i - 2]) * x[:, i - 1] - x[:, i] + 5.0
    assert np.abs(lorenz96(torch.from_numpy(x), 5.0).numpy() - wanted).max() < 1e-14
    assert (lorenz96(torch.full((2, 4), 8.0)) == 0).all(), "x = F is steady"


def test_the_forcing_of_1996_may_differ_between_members_and_has_a_gradient() -> None:
    x = NOISE.normal((0, 1), None, (40,), dtype=torch.float64)
    forcing = torch.tensor([[7.0], [9.0]], dtype=torch.float64, requires_grad=True)
    assert torch.equal(lorenz96(x, forcing)[1], lorenz96(x[1], 9.0))
    (gradient,) = torch.autograd.grad(lorenz96(x, forcing).sum(), forcing)
    assert torch.equal(gradient, torch.full((2, 1), 40.0, dtype=torch.float64))


def test_the_tendency_of_1963_by_hand_and_its_steady_states() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.allclose(lorenz63(x), torch.tensor([10.0, 23.0, -6.0], dtype=torch.float64), atol=1e-14)
    root = (8 / 3 * 27) ** 0.5
    steady = torch.tensor([[0.0, 0.0, 0.0], [root, root, 27.0], [-root, -root, 27.0]], dtype=torch.float64)
    assert lorenz63(steady).abs().max() < 1e-13


def test_without_forcing_and_damping_the_energy_of_1996_is_conserved() -> None:
    x = NOISE.normal((0,), None, (40,), dtype=torch.float64)
    assert abs(float((x * (lorenz96(x, 0.0) + x)).sum())) < 1e-13


@pytest.mark.parametrize(("emulator", "time"), [(Lorenz63(), 0.4), (Lorenz96(), 0.8)], ids=["63", "96"])
def test_runge_kutta_is_of_fourth_order(emulator: Any, time: float) -> None:
    x = emulator.at_attractor((0,), NOISE).data.flatten()
    tendency = emulator.tendency
    exact = solve_ivp(
        lambda _, y: tendency(torch.from_numpy(y)).numpy(), (0, time), x.numpy(), "DOP853", rtol=1e-13, atol=1e-13
    ).y[:, -1]
    counts = np.array([40, 80, 160])
    errors = [np.abs(integrate(tendency, x, time / k, k).numpy() - exact).max() for k in counts]
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 3.8 < order < 4.3, errors
    one = rk4(tendency, x, time / 40)
    assert torch.equal(one, integrate(tendency, x, time / 40, 1))


@pytest.mark.parametrize(
    "emulator", [Lorenz63(), Lorenz96(), Lorenz96(n=5, forcing=10.0, dt_model=0.02, steps=3)], ids=repr
)
def test_keeps_the_contract(emulator: Any) -> None:
    check_contract(emulator)


def test_steps_of_several_are_several_steps() -> None:
    state = Lorenz96().at_attractor((0, 1), NOISE)
    once, twice = Lorenz96(steps=4).step(state, None, NOISE), state
    for _ in range(4):
        twice = Lorenz96().step(twice, None, NOISE)
    assert torch.equal(once.data, twice.data) and once.time == twice.time
    assert Lorenz96().dt == timedelta(hours=6) and Lorenz63(steps=25).dt == timedelta(hours=6)


def test_the_exponent_of_1963() -> None:
    assert exponents(Lorenz63(), 400, 1, 1300, 200, 10)[0] == pytest.approx(0.906, abs=0.02)


def test_the_exponents_of_1996() -> None:
    assert exponents(Lorenz96(), 200, 1, 1000, 400, 5)[0] == pytest.approx(1.67, abs=0.05)
    spectrum = exponents(Lorenz96(), 16, 40, 800, 200, 4)
    assert 12 <= (spectrum > 0).sum() <= 14  # 13, of which one is 0 (Lorenz and Emanuel 1998)
    assert kaplan_yorke(spectrum) == pytest.approx(27.1, abs=0.35)
    assert spectrum.sum() == pytest.approx(-40.0, abs=0.05), "every site is damped at rate 1"


def test_climates() -> None:
    x = Lorenz96().at_attractor(range(3000), NOISE).data
    assert float(x.mean()) == pytest.approx(2.34, abs=0.03) and float(x.std()) == pytest.approx(3.64, abs=0.03)
    apart = torch.corrcoef(x[:500].flatten(1).T)[0]
    assert apart[5:35].abs().max() < 0.25
    y = Lorenz63().at_attractor(range(3000), NOISE).data.flatten(1)
    assert y.mean(0).numpy() == pytest.approx([0.0, 0.0, 23.55], abs=0.5)
    assert y.std(0).numpy() == pytest.approx([7.92, 9.01, 8.62], abs=0.3)


def test_distance_on_the_sphere_is_distance_along_the_ring() -> None:
    emulator = Lorenz96()
    lat, lon = emulator.layout.position(emulator.layout.fields[0])
    assert lat.shape == lon.shape == (1, 40) and (lat == 0).all()
    apart = np.abs(lon[0, :, None] - lon[0])
    arc = np.radians(np.minimum(apart, 360 - apart)) * 6.371e6
    sites = np.abs(np.arange(40)[:, None] - np.arange(40))
    assert np.allclose(arc, np.minimum(sites, 40 - sites) * emulator.spacing)


def test_a_wrapper_sees_an_ordinary_emulator() -> None:
    emulator = Lorenz63()
    state = emulator.at_attractor((3,), NOISE)
    assert torch.equal(Persistence(emulator.layout, emulator.dt).step(state, None, NOISE).data, state.data)
    assert state.layout.names == ("x", "y", "z") and state["z"].shape == (1, 1, 1, 1)
    assert set(state.to_xarray().data_vars) == {"x", "y", "z"}


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Lorenz96, {"n": 3}, "wanted n >= 4 sites"),
        (Lorenz96, {"n": 4.5}, "wanted n >= 4 sites"),
        (Lorenz96, {"forcing": float("nan")}, "finite forcing"),
        (Lorenz96, {"dt_model": 0.0}, "dt_model > 0, got 0.0"),
        (Lorenz96, {"steps": 0}, "whole number of steps >= 1, got 0"),
        (Lorenz96, {"noise_std": -1.0}, "noise_std >= 0"),
        (Lorenz96, {"unit": timedelta(seconds=1)}, "shorter than a second"),
        (Lorenz63, {"rho": float("inf")}, "finite sigma, rho, beta"),
        (Lorenz63, {"steps": 1.5}, "whole number of steps"),
    ],
)
def test_bad_parameters_are_named(kind: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{message}"):
        kind(**wrong)
