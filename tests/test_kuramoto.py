"""The Kuramoto-Sivashinsky equation against an independent spectral integration, its invariants and its dimension."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from test_lorenz_models import NOISE, check_contract, exponents, kaplan_yorke

from polynya.emulators.kuramoto import KuramotoSivashinsky, etdrk4, kuramoto_sivashinsky

LENGTH = 32 * math.pi


def kassam_trefethen(n: int) -> np.ndarray:
    """Their initial state on n points."""
    x = 32 * np.pi * np.arange(n) / n
    return np.cos(x / 16) * (1 + np.sin(x / 16))


def by_fourier_sums(u: np.ndarray, length: float) -> np.ndarray:
    """u_t of a trigonometric polynomial, with matrices of cosines and sines and without any FFT."""
    n = len(u)
    x, k = length * np.arange(n) / n, 2 * np.pi / length * np.arange(1, n // 2)
    cosine, sine = np.cos(np.outer(x, k)), np.sin(np.outer(x, k))
    a, b = 2 / n * cosine.T @ u, 2 / n * sine.T @ u
    u_x = -sine @ (k * a) + cosine @ (k * b)
    u_xx = -cosine @ (k**2 * a) - sine @ (k**2 * b)
    u_xxxx = cosine @ (k**4 * a) + sine @ (k**4 * b)
    return -u * u_x - u_xx - u_xxxx


def smooth(n: int, waves: int, seed: int = 0) -> torch.Tensor:
    """A field of a few waves, so that products are exact."""
    drawn = np.random.default_rng(seed).standard_normal(2 * waves)
    amplitudes = np.zeros(n // 2 + 1, complex)
    amplitudes[1 : waves + 1] = drawn[:waves] + 1j * drawn[waves:]
    return torch.from_numpy(np.fft.irfft(amplitudes * n / 8, n))


def test_the_tendency_of_resolved_waves_is_exact() -> None:
    u = smooth(64, 10)
    wanted = by_fourier_sums(u.numpy(), LENGTH)
    for dealias in (False, True):
        assert np.abs(kuramoto_sivashinsky(u, LENGTH, dealias).numpy() - wanted).max() < 1e-11


def test_a_run_agrees_with_scipy_at_twice_the_resolution() -> None:
    k = 2 * np.pi / LENGTH * np.fft.rfftfreq(256, 1 / 256)

    def tendency(_: float, u: np.ndarray) -> np.ndarray:
        v, product = np.fft.rfft(u), np.fft.rfft(u * u)
        product[86:] = 0
        return np.fft.irfft((k**2 - k**4) * v - 0.5j * k * product, 256)

    exact = solve_ivp(tendency, (0, 4), kassam_trefethen(256), "DOP853", rtol=1e-11, atol=1e-11).y[::2, -1]
    u = torch.from_numpy(kassam_trefethen(128))
    errors = [np.abs(etdrk4(u, LENGTH, 4 / n, n).numpy() - exact).max() for n in (8, 16, 32)]
    assert errors[1] < 1e-5, "the default time step"
    order = -np.polyfit(np.log([8, 16, 32]), np.log(errors), 1)[0]
    assert 3.6 < order < 4.6, errors
    assert np.abs(etdrk4(u, LENGTH, 4 / 256, 256).numpy() - exact).max() < 1e-9


def test_without_products_waves_grow_as_the_exponential_says() -> None:
    x = 2 * np.pi * np.arange(64) / 64
    for wave in (1, 5, 12, 20):
        k = 2 * np.pi / LENGTH * wave
        u = torch.from_numpy(1e-9 * np.cos(wave * x))
        later = etdrk4(u, LENGTH, 0.25, 8)
        assert torch.allclose(later, u * math.exp(2.0 * (k**2 - k**4)), rtol=0, atol=1e-16), wave


def test_the_mean_never_changes_and_energy_has_the_budget_of_the_equation() -> None:
    state = KuramotoSivashinsky(dealias=True).at_attractor((0, 1), NOISE).data[:, 0, 0]
    assert state.mean(-1).abs().max() < 1e-15
    moved = etdrk4(state + 0.7, LENGTH, 0.25, 200)
    assert (moved.mean(-1) - 0.7).abs().max() < 1e-13
    v, k = torch.fft.rfft(state), 2 * math.pi / LENGTH * torch.arange(65)
    v[:, 43:] = 0  # what the product does not see
    u = torch.fft.irfft(v, 128)
    gained = (u * kuramoto_sivashinsky(u, LENGTH, dealias=True)).mean(-1)
    slope, curvature = torch.fft.irfft(1j * k * v, 128), torch.fft.irfft(k**2 * v, 128)
    assert torch.allclose(gained, (slope.square() - curvature.square()).mean(-1), rtol=0, atol=1e-12)


def test_a_moving_frame_is_the_same_run() -> None:
    """Galilean invariance: a mean of c carries the pattern along at speed c."""
    u = smooth(128, 10)
    cells, time = 8, 2.0
    c = cells * LENGTH / 128 / time
    there, here = (etdrk4(start, LENGTH, time / 400, 400, dealias=True) for start in (u + c, u))
    assert torch.allclose(torch.roll(here, cells), there - c, rtol=0, atol=1e-7)


def test_the_shortest_wave_is_damped() -> None:
    """Noise from an analysis must not stay for ever, as with the wave number 0 that is often given to that wave."""
    u = torch.from_numpy((-1.0) ** np.arange(128))
    assert etdrk4(u, LENGTH, 0.25, 1).abs().max() < 1e-20


@pytest.mark.parametrize(
    "emulator", [KuramotoSivashinsky(), KuramotoSivashinsky(n=48, length=22.0, steps=3, dealias=True)], ids=repr
)
def test_keeps_the_contract(emulator: Any) -> None:
    check_contract(emulator)


def test_exponents_and_dimension_are_those_published() -> None:
    """Edson et al. (2019, ANZIAM J. 61, 270): dimension 0.226 L - 0.160, leading exponents about 0.09 and 0.04-0.05."""
    spectrum = exponents(KuramotoSivashinsky(), 8, 26, 1600, 400, 8)
    assert 0.075 < spectrum[0] < 0.1
    assert 10 <= (spectrum > 0.002).sum() <= 13
    assert kaplan_yorke(spectrum) == pytest.approx(0.226 * LENGTH - 0.160, abs=0.5)
    assert exponents(KuramotoSivashinsky(n=48, length=22.0), 64, 1, 2000, 800, 10)[0] == pytest.approx(0.0455, abs=0.01)


def test_float32_follows_float64() -> None:
    u = torch.from_numpy(kassam_trefethen(128))
    assert (etdrk4(u.float(), LENGTH, 0.25, 80) - etdrk4(u, LENGTH, 0.25, 80)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 127}, "even number of points n >= 8, got 127"),
        ({"n": 6}, "even number of points n >= 8, got 6"),
        ({"n": 64, "length": 1000.0}, "take at least 319 points"),
        ({"length": -1.0}, "a length > 0"),
        ({"dt_model": float("nan")}, "dt_model > 0"),
    ],
)
def test_bad_parameters_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"KuramotoSivashinsky: .*{message}"):
        KuramotoSivashinsky(**wrong)
