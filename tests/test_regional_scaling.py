"""Small scales of residuals: against sums over neighbours, waves, and forecasts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_regional import batch_of, emulator

from polynya.emulators import regional
from polynya.emulators.regional_constants import fine_power
from polynya.emulators.regional_scaling import detail, encode, residual


@pytest.mark.parametrize("ocean", [0.7, 1.0])
def test_detail_is_what_a_mean_of_the_surroundings_lacks(ocean):
    rng = np.random.default_rng(0)
    x, wet = rng.normal(size=(2, 3, 9, 8)), rng.random((9, 8)) < ocean
    wanted = np.zeros_like(x)
    for j, i in np.argwhere(wet):
        near = [(a, b) for a, b in np.argwhere(wet) if abs(a - j) < 2 and abs(b - i) < 2]
        weights = [2.0 ** -(abs(a - j) + abs(b - i)) for a, b in near]
        wanted[..., j, i] = x[..., j, i] - np.average([x[..., a, b] for a, b in near], axis=0, weights=weights)
    mask = None if wet.all() else torch.from_numpy(wet)[None, None].expand(2, -1, -1, -1)
    np.testing.assert_allclose(detail(torch.from_numpy(x), mask).numpy(), wanted, atol=1e-14)


def test_detail_of_a_wave_is_less_of_it():
    a, b = 0.9, 0.4
    wave = torch.cos(a * torch.arange(12.0)[:, None] + b * torch.arange(12.0)).double()[None, None]
    kept = 1 - math.cos(a / 2) ** 2 * math.cos(b / 2) ** 2
    torch.testing.assert_close(detail(wave)[..., 1:-1, 1:-1], kept * wave[..., 1:-1, 1:-1], atol=1e-6, rtol=0)


def test_power_at_the_smallest_scales_is_that_of_the_upper_third_of_rings():
    wet = torch.ones(16, 24, dtype=torch.bool)
    wet[3, 0] = False  # of three squares the last two are left
    maps = torch.randn(3, 2, 16, 24, generator=torch.Generator().manual_seed(1))
    n, wanted = np.arange(16), np.zeros(2)
    waves = np.exp(-2j * np.pi * np.outer(n, n) / 16)
    taper = np.outer(window := np.sin(np.pi * (n + 1) / 17) ** 2, window)
    number = np.minimum(n, 16 - n)
    rings = (np.hypot(*np.meshgrid(number, number)) > 16 / 3) & (np.hypot(*np.meshgrid(number, number)) <= 8)
    for square in (maps[..., 4:20], maps[..., 8:]):
        x = square.double().numpy()
        modes = waves @ ((x - x.mean((-2, -1), keepdims=True)) * taper) @ waves
        wanted += (np.abs(modes) ** 2)[..., rings].sum(-1).mean(0) / 2
    np.testing.assert_allclose(fine_power(maps, wet), wanted, rtol=1e-10)
    longest = torch.cos(2 * math.pi * torch.arange(1, 9)[:, None] / 16 * torch.arange(24.0))[None, :, None]
    power = fine_power(longest.expand(1, 8, 16, 24), wet)
    assert (power[:4] < 1e-2 * power[6]).all() and (power[5:7] > 0.8 * power[6]).all()  # the fifth leaks in


def test_a_gain_multiplies_the_detail_of_the_residual():
    gain = (1.4, 1.0, 0.7, 1.2, 0.9)
    model = emulator("residual", lower=(-math.inf,) * 5, upper=(math.inf,) * 5)
    batch, c, mask = batch_of(model), model.config, model.layout.mask[None, :1].expand(3, -1, -1, -1)
    driven = batch.forcings[0].reshape(3, 2, 4, 16, 16)
    eps = torch.randn(3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, sharp = (
            regional.forecast(
                model.network, batch.start[:, None], driven, eps, m.config, first_guess=model.first_guess, mask=mask
            )
            for m in (model, model.tuned(residual_gain=gain))
        )
        d = model.first_guess(encode(batch.start, driven, c, mask), torch.zeros(3, 3))
    z = torch.where(mask, residual(batch.start, plain, d, c), 0.0)
    more = torch.tensor(c.residual_scale)[:, None, None] * (torch.tensor(gain)[:, None, None] - 1) * detail(z, mask)
    torch.testing.assert_close(sharp, plain + more, rtol=1e-5, atol=1e-5)
    assert float(more.abs().max()) > 1e-3
