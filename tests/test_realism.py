"""Growth and validity of tangents, and spectra of gradients, where they are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import pytest
import torch
from small import START
from toys import Lorenz96, Matrix, row_layout

from polynya.da.quantities import Mean
from polynya.da.realism import Dynamics, gradient_spectra, growth, passport, zonal_spectrum
from polynya.emulators import Draws, LayoutError, Noise, State
from polynya.ensembles import Box, Norm

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def row(nx: int, seed: int = 0, members: tuple[int, ...] = (0, 1)) -> State:
    layout = row_layout(nx)
    return State(Noise(seed).normal(members, START, layout.shape, dtype=torch.float64), START, layout, members)


def test_a_matrix_grows_by_its_eigenvalue_and_is_its_own_tangent() -> None:
    state, errors = row(8), row(8, 1)
    models = {
        name: Dynamics(Matrix(factor * torch.eye(8, dtype=torch.float64), state.layout), state)
        for name, factor in (("fast", 1.5), ("slow", 0.9))
    }
    found = growth(models, errors, Norm({"zos": 1.0}), 4, sizes=(0.1, 1.0))
    assert found.nonlinear.dims == ("model", "size", "member", "lead") and found.lead.values.tolist() == [
        0,
        5,
        10,
        15,
        20,
    ]
    for name, factor in (("fast", 1.5), ("slow", 0.9)):
        assert np.allclose(found.rate.sel(model=name), np.log(factor) / 5)
        assert np.allclose(found.tangent_rate.sel(model=name), np.log(factor) / 5)
    assert np.allclose(found.nonlinear[..., 0].sel(size=0.1), 0.1 * found.nonlinear[..., 0].sel(size=1.0))
    assert np.allclose(found.valid_time, 20.0) and np.allclose(found.correlation, 1.0)
    assert float(found.relative_error.max()) < 1e-12


def test_tangents_hold_longer_for_smaller_errors() -> None:
    model = Lorenz96()
    state = row(40, members=(0, 1, 2))
    for _ in range(200):
        state = model.step(state, None, Noise(0))
    errors = row(40, 1, (0, 1, 2))
    found = growth({"truth": Dynamics(model, state)}, errors, Norm({"zos": 1.0}), 40, sizes=(1e-3, 0.1, 1.0))
    times = found.valid_time.mean("member").values[0]
    assert times[0] > times[1] > times[2] > 0
    assert float(found.rate.sel(size=1e-3).mean()) == pytest.approx(1.67 * 0.05, rel=0.6)  # exponent per time unit
    assert float(found.relative_error[0, 0, :, :10].max()) < 0.01


@dataclass(frozen=True, eq=False)
class Blind(Lorenz96):
    """Loses its gradient: the step is right, its tangent is not."""

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        new = super().step(state.replace(data=state.data.detach()), forcing, noise)
        return new.replace(data=new.data + 0.1 * (state.data - state.data.detach()))


def test_a_wrong_tangent_is_seen() -> None:
    models = {n: Dynamics(m, row(40)) for n, m in (("truth", Lorenz96()), ("emulator", Blind()))}
    found = growth(models, row(40, 1), Norm({"zos": 1.0}), 3, sizes=(1e-3,))
    assert np.allclose(found.nonlinear[0], found.nonlinear[1])
    assert (found.valid_time.sel(model="truth") == 3).all() and (found.valid_time.sel(model="emulator") == 0).all()


def test_arguments_are_checked() -> None:
    state, errors = row(8), row(8, 1)
    model = Dynamics(Matrix(torch.eye(8), state.layout), state)
    norm = Norm({"zos": 1.0})
    with pytest.raises(ValueError, match="one step length"):
        growth({"a": model, "b": replace(model, emulator=Lorenz96())}, errors, norm, 1)
    with pytest.raises(ValueError, match="steps >= 1"):
        growth({"a": model}, errors, norm, 0)
    with pytest.raises(LayoutError, match="wanted errors of members"):
        growth({"a": model}, row(8, 1, (0,)), norm, 1)
    other = row_layout(8, "tos")
    with pytest.raises(LayoutError, match="tos is perturbed"):
        growth({"a": model}, State(errors.data, START, other, (0, 1)), norm, 1)


def test_spectra_find_waves_and_slopes() -> None:
    nx, wet = 64, np.ones((6, 64), bool)
    wave = np.cos(2 * np.pi * 4 * np.arange(nx) / 32 + np.arange(6)[:, None])
    power = zonal_spectrum(wave, wet, 32)
    assert power.argmax() == 3 and power[2:5].sum() > 0.99 * power.sum()  # four cycles in 32 cells
    wet[:3, 10] = False
    dry = wave.copy()
    dry[:3] = 1e3  # rows with land in them count only where a stretch is all wet
    assert zonal_spectrum(np.where(wet, dry, 0.0), wet, 64).argmax() == 7
    assert zonal_spectrum(wave, np.zeros((6, 64), bool), 32).sum() == 0
    with pytest.raises(ValueError, match="even segment of 4 to 64"):
        zonal_spectrum(wave, wet, 33)


def test_a_smooth_adjoint_has_a_steep_spectrum_and_a_noisy_one_a_flat_one() -> None:
    nx = 64
    layout = row_layout(nx)
    away = np.minimum(np.arange(nx), nx - np.arange(nx))
    kernel = torch.from_numpy(np.exp(-0.5 * (away / 3.0) ** 2) / np.exp(-0.5 * (away / 3.0) ** 2).sum())
    smooth = torch.stack([kernel.roll(k) for k in range(nx)])
    noisy = smooth + 0.02 * torch.randn(nx, nx, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = np.fft.rfftfreq(nx)
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, len(k)))
    x = np.fft.irfft(np.where(k > 0, k.clip(1e-9) ** -1.5, 0) * np.exp(1j * phase), nx)
    state = State(torch.from_numpy(x.copy())[:, None, None], START, layout, (0, 1))
    models = {
        n: Dynamics(Matrix(A, layout, dt=timedelta(days=5)), state) for n, A in (("smooth", smooth), ("noisy", noisy))
    }
    found = gradient_spectra(models, Mean("zos", Box(lon=(100, 106))), 1, segment=32)
    assert found.gradient.dims == ("model", "variable", "wavenumber") and np.allclose(
        found.gradient.sum("wavenumber"), 1
    )
    slope = found.gradient_slope.sel(variable="zos")
    assert float(slope.sel(model="smooth")) < -4 and float(slope.sel(model="noisy")) > -2.5
    assert float(found.state_slope[0, 0]) == pytest.approx(-3, abs=0.8)


def test_a_passport_has_it_all() -> None:
    models = {n: Dynamics(m, row(40)) for n, m in (("truth", Lorenz96()), ("emulator", Blind()))}
    found = passport(models, row(40, 1), Norm({"zos": 1.0}), Mean("zos"), 2, segment=16)
    assert {"valid_time", "rate", "gradient_slope", "dot_product"} <= set(found.data_vars)
    assert float(found.taylor_slope.sel(model="truth")) == pytest.approx(2.0, abs=0.05)
    assert str(found.failures.sel(model="truth").values) == ""
    assert "cut or wrong" in str(found.failures.sel(model="emulator").values)
