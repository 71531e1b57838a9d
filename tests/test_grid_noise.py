"""The filter of grid noise: its response to waves, coasts, integrals, and what it leaves alone."""

from __future__ import annotations

from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
from small import random_state, small_layout

from polynya.emulators import Corrected, Field, GridNoise, Layout, Noise, Persistence, State

torch.set_num_threads(1)
DAY = cftime.DatetimeNoLeap(2000, 1, 1)


def flat(nx=24, ny=1, period=360.0, wet=None):
    lat, lon = np.zeros(1) if ny == 1 else np.linspace(-0.5, 0.5, ny), np.arange(nx) * 360.0 / nx
    wet = np.ones((ny, nx)) if wet is None else wet
    coords = {"lat": ("lat", lat), "lon": ("lon", lon), "wetmask": (("lat", "lon"), wet)}
    coords["areacello"] = (("lat", "lon"), np.ones((ny, nx)))
    return Layout((Field("zos"),), xr.Dataset(coords=coords, attrs={"zonal_period": period}))


def filtered(noise, state):
    return noise(state, state, None)


@pytest.mark.parametrize(("strength", "order"), [(1.0, 4), (0.2, 4), (0.5, 1)])
def test_waves_are_damped_as_the_formula_says(strength, order):
    layout = flat()
    for wave in range(13):
        x = torch.cos(2 * torch.pi * wave * torch.arange(24, dtype=torch.float64) / 24)
        state = State(x[None, None, None], DAY, layout, (0,))
        response = 1 - strength * np.sin(np.pi * wave / 24) ** (2 * order)
        assert torch.allclose(filtered(GridNoise(strength, order), state).data, response * state.data, atol=1e-12)


def test_nothing_passes_a_coast_and_integrals_are_kept():
    layout = small_layout((-1, 0))
    state = random_state(layout).to(torch.float64)
    after = filtered(GridNoise(0.7), state)
    area, wet = torch.from_numpy(layout.grid["areacello"].values), layout.mask
    before_sum, after_sum = ((s.data * area * wet).sum((-2, -1)) for s in (state, after))
    assert torch.allclose(before_sum, after_sum, rtol=1e-12)
    assert torch.equal(after.data[:, ~wet], state.data[:, ~wet])
    changed = (after.data != state.data)[:, wet]
    assert changed.float().mean() > 0.9
    # Two basins that touch nowhere do not know of each other.
    walls = np.ones((6, 12))
    walls[:, [0, 6]] = 0
    two = flat(12, 6, wet=walls)
    x = torch.zeros(1, 1, 6, 12, dtype=torch.float64)
    x[..., 7:] = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert not filtered(GridNoise(1.0), State(x, DAY, two, (0,))).data[..., 1:6].any()


def test_a_region_does_not_close_upon_itself():
    x = torch.zeros(1, 1, 1, 24, dtype=torch.float64)
    x[..., 0] = 1.0
    coords = flat().grid.assign_coords(lon=np.arange(24) * 1.0)
    region = Layout((Field("zos"),), coords)
    assert filtered(GridNoise(1.0), State(x, DAY, region, (0,))).data[..., -5:].abs().max() == 0
    assert filtered(GridNoise(1.0), State(x, DAY, flat(), (0,))).data[..., -1].abs().max() > 0


def test_it_is_a_correction_and_differentiable():
    layout = small_layout()
    state = random_state(layout).to(torch.float64)
    emulator = Corrected(Persistence(layout, timedelta(days=5)), GridNoise(0.3, variables=("thetao",)))
    after = emulator.step(state, None, Noise(0))
    assert not torch.equal(after["thetao"], state["thetao"])
    others = [n for n in layout.names if n != "thetao"]
    assert all(torch.equal(after[n], state[n]) for n in others)
    correction = GridNoise(0.3)

    def f(x):
        return correction(state, state.replace(data=x), None).data

    u, w = torch.randn_like(state.data), torch.randn_like(state.data)
    Ju = torch.func.jvp(f, (state.data,), (u,))[1]
    JTw = torch.func.vjp(f, state.data)[1](w)[0]
    assert float((Ju * w).sum()) == pytest.approx(float((u * JTw).sum()), rel=1e-12)
    for wrong in (lambda: GridNoise(0.0), lambda: GridNoise(1.5), lambda: GridNoise(0.5, order=0)):
        with pytest.raises(ValueError, match="wanted"):
            wrong()
