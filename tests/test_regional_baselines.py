"""The baselines of the regional models: free drift and correlated noise, piece by piece."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from small import START
from test_regional_emulator import DAY, MEMBERS, emulator, ice, layouts, weather

from polynya.emulators import Noise, State
from polynya.emulators.correlated import amplitude_of, correlated, factor_of, periodic_part
from polynya.emulators.free_drift import FreeDrift, advected, departure, interpolated


def test_interpolation_is_exact_for_its_polynomials_and_at_cells():
    maps = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    row, column = (
        v.double().expand(2, -1, -1) for v in torch.meshgrid(torch.arange(9), torch.arange(11), indexing="ij")
    )
    for order in ("nearest", "linear", "cubic"):
        torch.testing.assert_close(interpolated(maps, row, column, order), maps)
    f = torch.rand(2, 9, 11, dtype=torch.float64) - 0.5
    r, c = (row + f).clamp(1, 7), (column - f).clamp(1, 9)
    plane, bowl = (
        g(row, column)[:, None] for g in (lambda y, x: 2 * y - 3 * x, lambda y, x: y * y - 2 * x * x + y * x)
    )
    torch.testing.assert_close(interpolated(plane, r, c, "linear")[:, 0], 2 * r - 3 * c)
    torch.testing.assert_close(interpolated(bowl, r, c, "cubic")[:, 0], r * r - 2 * c * c + r * c)
    assert set(interpolated(maps, r, c, "nearest").flatten().tolist()) <= set(maps.flatten().tolist())


def test_free_drift_moves_ice_where_it_should():
    """A steady wind that carries ice by whole cells; what is out of the grid is as at its edge."""
    layout, forcing = layouts(("siu", "siv"))
    wet = layout.grid.assign_coords(wetmask=1 + 0 * layout.grid["wetmask"])
    layout, forcing = replace(layout, grid=wet), replace(forcing, grid=wet)
    model = FreeDrift(layout, forcing)  # drift given: "perfect"
    state = ice(layout)
    cells = torch.tensor([2.0, -1.0])  # to larger columns, to smaller rows
    speed = cells * model.spacing / model.dt.total_seconds()
    given = State(speed.repeat(2)[None, :, None, None].expand(3, 4, 8, 12), START, forcing, MEMBERS)
    new = model.step(state, given, Noise(0))
    torch.testing.assert_close(new["siconc"][..., :-1, 2:], state["siconc"][..., 1:, :-2], rtol=0, atol=5e-5)
    torch.testing.assert_close(
        new["siconc"][..., 3, :2], state["siconc"][..., 4, :1].expand(-1, -1, 2), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(new["sithick"][..., :-1, 2:], state["sithick"][..., 1:, :-2], rtol=0, atol=2e-4)
    assert torch.equal(new["siu"], speed[0].expand_as(new["siu"])) and new.time == START + DAY
    wind = emulator("free drift")
    blown = wind.step(ice(wind.layout), weather(wind.forcing_layout, state), Noise(0))
    later = weather(wind.forcing_layout, state)["uas"][0, 0]
    assert (blown["siu"][0, 0][wind.layout.mask[0]].sign() == later[wind.layout.mask[0]].sign()).double().mean() > 0.5


def test_paths_follow_a_rotation():
    """A vortex turned by a quarter brings to each cell what was a quarter turn before it."""
    line = torch.arange(33, dtype=torch.float64) - 16
    y, x = torch.meshgrid(line, line, indexing="ij")
    velocity = torch.stack((-y, x))[:, None] * (np.pi / 2)
    row, column = departure(velocity, velocity, 1.0, 1.0, 2000)
    inside = (x * x + y * y < 200)[None]
    torch.testing.assert_close(row[inside] - 16, -x[None][inside], rtol=0, atol=0.03)
    torch.testing.assert_close(column[inside] - 16, y[None][inside], rtol=0, atol=0.03)


def test_paths_follow_a_wind_that_changes():
    """Steady flow at the start, strain at the end: dx/dt = (1 - t) b + t a x, followed back by scipy."""
    x = torch.arange(21, dtype=torch.float64).expand(3, -1)
    start, end = (torch.stack((u, 0 * u))[:, None] for u in (torch.full_like(x, 2.0), 0.3 * (x - 10)))
    row, column = departure(start, end, 1.0, 1.0, 2000)
    for i in (5, 10, 15):
        path = solve_ivp(lambda t, x: (1 - t) * 2.0 + t * 0.3 * (x - 10), (1.0, 0.0), [i], rtol=1e-8)
        assert float(column[0, 1, i]) == pytest.approx(path.y[0, -1], abs=2e-3)
    assert torch.equal(row[0, :, 0], torch.arange(3.0, dtype=torch.float64))


def test_concentration_beyond_its_bounds_takes_thickness_along():
    step = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)[:, None].expand(1, 3, 6, 6) * 2
    ice = step * torch.tensor([1.0, 0.5, 0.5])[:, None, None]
    row, column = (v.double()[None] for v in torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"))
    h, c, d = advected(ice, (row + 0.5).clamp(max=5), column, "cubic")[0]
    raw = interpolated(ice, (row + 0.5).clamp(max=5), column, "cubic")[0]
    assert raw[1].max() > 1 and raw[1].min() < 0
    assert c.max() == 1 and c.min() == 0 and (h[c == 0] == 0).all()
    torch.testing.assert_close(h[2], raw[0, 2] * c[2] / raw[1, 2], rtol=1e-6, atol=1e-6)
    assert d.max() <= 1


def test_correlated_noise_has_the_covariance_and_spectrum_asked_for():
    torch.manual_seed(0)
    std = torch.tensor([0.1, 0.02, 0.05, 0.03, 0.04])
    factor = factor_of(std)
    errors = torch.randn(50, 5, 16, 20).cumsum(-1) * std[:, None, None]
    amplitude = amplitude_of(errors)
    drawn = correlated(torch.randn(4000, 5, 16, 20), amplitude, factor)
    size = std * torch.tensor([1.05, 1.35, 1.1, 1.02, 1.02])
    torch.testing.assert_close(drawn.std((0, 2, 3)), size, rtol=0.01, atol=0)
    torch.testing.assert_close(drawn.std(0).std((1, 2)) / size, torch.zeros(5), rtol=0, atol=0.02)
    matrix = torch.corrcoef(drawn.movedim(1, 0).flatten(1))
    wanted = torch.eye(5)
    for i, j, value in ((0, 1, 0.57), (0, 2, -0.05), (3, 4, -0.06)):
        wanted[i, j] = wanted[j, i] = value
    torch.testing.assert_close(matrix, wanted, rtol=0, atol=0.02)
    power = torch.fft.rfft2(drawn[:, 0]).abs().square().mean(0)
    torch.testing.assert_close(
        power / power.max(), amplitude[0].square() / amplitude[0].square().max(), rtol=0.2, atol=0.02
    )
    with pytest.raises(ValueError, match="residuals are constant"):
        amplitude_of(torch.ones(2, 5, 8, 8))


def test_the_periodic_part_is_the_map_less_a_smooth_one():
    torch.manual_seed(0)
    rough = torch.randn(3, 16, 24, dtype=torch.float64)
    line = torch.linspace(0, 1, 24, dtype=torch.float64).expand(16, -1)
    part = periodic_part(line)
    assert part.var() < 0.05 * line.var() and float((part - line).mean().abs()) < 1e-12
    torch.testing.assert_close(periodic_part(periodic_part(rough)).mean(), rough.mean())
    wave = torch.sin(2 * torch.pi * torch.arange(24, dtype=torch.float64) / 24).expand(16, -1)
    assert float((periodic_part(wave) - wave).abs().max()) < 0.2
    # Moisan's defining property: inside, both parts together are the map, and the smooth one is harmonic.
    smooth = rough - periodic_part(rough)
    inner = smooth[:, 1:-1, 1:-1]
    around = smooth[:, :-2, 1:-1] + smooth[:, 2:, 1:-1] + smooth[:, 1:-1, :-2] + smooth[:, 1:-1, 2:]
    torch.testing.assert_close(around - 4 * inner, torch.zeros_like(inner), rtol=0, atol=1e-12)
