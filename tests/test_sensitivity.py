"""Sensitivities against the adjoint of a matrix and finite differences; the quantities they are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
from small import START, forcing_layout, random_state, small_layout
from test_emulators import network_emulator
from torch import Tensor
from toys import Matrix, row_layout

from polynya.da.adjoint_faults import in_dtype
from polynya.da.quantities import At, HeatContent, IceVolume, Mean, volumes
from polynya.da.sensitivity import sensitivity
from polynya.emulators import Field, Layout, Noise, State, samples
from polynya.emulators.nature_ocean import HEAT_CAPACITY, RHO0
from polynya.ensembles import Box

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@dataclass(frozen=True, eq=False)
class Weather:
    """Different forcing at each date."""

    layout: Layout

    def at(self, time: cftime.datetime, members: Sequence[int]) -> State:
        single = self.layout.select(self.layout.names, slots=(0,)).shape
        draws = [Noise(5).normal(members, t, single, dtype=torch.float64) for t in self.layout.times(time)]
        data = torch.cat(draws, 1)
        return State(data * self.layout.mask, time, self.layout, tuple(members))


def test_it_is_the_transpose_of_a_matrix() -> None:
    layout = row_layout(12)
    A = 0.3 * torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = State(torch.randn(2, 1, 1, 12, dtype=torch.float64), START, layout, (3, 7))
    found = sensitivity(Matrix(A, layout), state, None, Mean("zos", Box(lon=(0, 100))), 4)
    weights = volumes(layout, "zos", Box(lon=(0, 100))).flatten()
    wanted = torch.linalg.matrix_power(A, 4).mT @ (weights / weights.sum())
    assert found.zos.dims == ("member", "time", "lat", "lon") and found.member.values.tolist() == [3, 7]
    assert np.allclose(found.zos.values[:, 0, 0], wanted, atol=1e-14)
    assert found.zos.attrs["units"] == "m (m)-1" and "sea surface height" in found.zos.attrs["long_name"]
    end = torch.linalg.matrix_power(A, 4) @ state.data.flatten(1).mT
    assert np.allclose(found.quantity, (weights / weights.sum()) @ end)
    now = sensitivity(Matrix(A, layout), state, None, Mean("zos"), 0)
    assert np.allclose(now.zos, 1 / 12) and found.attrs["end"] == str(START + 4 * timedelta(days=5))


@pytest.mark.parametrize("slots", [(0,), (-1, 0)])
def test_it_agrees_with_finite_differences_in_state_and_forcing(slots: tuple[int, ...]) -> None:
    emulator = in_dtype(network_emulator(slots, increments=len(slots) == 1), torch.float64)
    state = random_state(emulator.layout, (0, 1)).to(torch.float64)
    weather = Weather(forcing_layout(slots))
    quantity = Mean("thetao", Box(lat=(-25, -5)), (0.0, 100.0))
    found = sensitivity(emulator, state, weather, quantity, 3)
    assert found.sizes["time"] == len(slots) and found.sizes["forcing_time"] == 3 * len(slots)
    for name in ("thetao", "uo", "zos", "tauuo", "hfatm"):
        wet = found[name].isel(member=0, drop=True).notnull()
        assert bool((abs(found[name]) > 0).any()) and 0 < int(wet.sum()) < wet.size

    @torch.no_grad()
    def run(x: Tensor, push: dict[cftime.datetime, Tensor]) -> Tensor:
        now = state.replace(data=x)
        for _ in range(3):
            drive = weather.at(now.time, now.members)
            change = torch.cat([push[t] for t in drive.layout.times(now.time)], 0)
            now = emulator.step(now, drive.replace(data=drive.data + change), Noise(0))
        return quantity(now)

    dates = found["forcing_time"].values.tolist()
    still = {t: torch.zeros(2, 8, 12, dtype=torch.float64) for t in dates}
    direction = random_state(emulator.layout, (5,), seed=9).data.double()
    h = 1e-5
    slope = (run(state.data + h * direction, still) - run(state.data - h * direction, still)) / (2 * h)
    maps = emulator.layout.unpack(state.replace(data=direction.expand_as(state.data)))
    predicted = sum(float((found[n] * maps[n].values).isel(member=1).sum()) for n in ("thetao", "uo", "zos"))
    assert predicted == pytest.approx(float(slope[1]), rel=1e-6)
    for k, date in enumerate(dates):
        push = dict(still)
        push[date] = torch.randn(2, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        push[date] = push[date] * small_layout().mask[:1]
        ahead, behind = (run(state.data, {t: s * p for t, p in push.items()}) for s in (h, -h))
        predicted = sum(
            float(np.nansum(found[n].isel(member=0, forcing_time=k) * push[date][c].numpy()))
            for c, n in enumerate(("tauuo", "hfatm"))
        )
        assert predicted == pytest.approx(float((ahead - behind)[0] / (2 * h)), rel=1e-5, abs=1e-12)


def test_densities_do_not_depend_on_the_cells() -> None:
    """The gradient of heat is ρ c_p times the volume of each cell: per volume it is ρ c_p in the box."""
    layout = small_layout()
    state = random_state(layout).to(torch.float64)
    emulator = Matrix(torch.eye(layout.mask.numel(), dtype=torch.float64), layout)
    found = sensitivity(emulator, state, None, HeatContent(depth=(0.0, 80.0)), 1, density=True)
    wet = layout.mask[:2].numpy()
    assert np.allclose(found.thetao.values[0, 0, :2][wet], RHO0 * HEAT_CAPACITY, rtol=1e-12)
    assert np.nanmax(abs(found.thetao.values[0, 0, 2])) == 0
    assert np.isnan(found.thetao.values[0, 0, :2][~wet]).all()
    assert found.thetao.attrs["units"] == "J (degC)-1 m-3" and found.zos.attrs["units"] == "J (m)-1 m-2"


def test_a_stored_ocean_and_its_emulator() -> None:
    """Heat of a box a few steps on: ρ c_p within, and a flux into the surface counts once per second and area."""
    emulator, dataset = samples.emulator("globe"), samples.sample("globe")
    from polynya.emulators import Source

    state = Source.open(dataset, emulator.layout).state("0036-07-20")
    forcing = Source.open(dataset, emulator.forcing_layout)
    box = Box(lat=(30, 50), lon=(290, 340))
    found = sensitivity(emulator, state, forcing, HeatContent(box), 2, density=True)
    inside = found.isel(member=0).sel(lat=38.0, lon=318.0)
    assert float(inside.thetao[0, 4]) == pytest.approx(RHO0 * HEAT_CAPACITY, rel=0.1)
    assert float(inside.hfatm.sel(forcing_time=inside.forcing_time[0])) == pytest.approx(5 * 86400, rel=0.35)
    far = found.isel(member=0).sel(lat=-30.0, lon=200.0, method="nearest")
    assert abs(float(far.thetao[0, 4])) < 0.01 * RHO0 * HEAT_CAPACITY


def test_quantities() -> None:
    layout = small_layout()
    state = random_state(layout).to(torch.float64)
    box, data = Box(lat=(-25, -5), lon=(30, 200)), state["thetao"]
    weights = volumes(layout, "thetao", box, (10.0, 50.0))
    whole = volumes(layout, "thetao", box)
    assert float(weights[2].sum()) == 0 and torch.allclose(weights[0], 0.5 * whole[0])
    assert torch.allclose(weights[1], whole[1] * 30 / 60) and float(whole[0].max()) > 1e11
    mean = (weights * data).sum((1, 2, 3)) / weights.sum()
    assert torch.allclose(Mean("thetao", box, (10.0, 50.0))(state), mean)
    whole = RHO0 * HEAT_CAPACITY * (volumes(layout, "thetao") * data).sum((1, 2, 3))
    assert torch.allclose(HeatContent(depth=(0.0, np.inf))(state), whole)
    point = At("thetao", -10.0, 60.0, 50.0)
    assert torch.allclose(point(state), data[:, 1, 4, 2]) and point.units == "degC"
    assert torch.allclose(At("zos", -10.0, 75.0)(state), state["zos"][:, 0, 4, 2:4].mean(-1))
    ice = Layout((Field("sithick"), Field("siconc")), layout.grid)
    frozen = random_state(ice).to(torch.float64)
    area = torch.from_numpy(layout.grid["areacello"].values)
    assert torch.allclose(IceVolume()(frozen), (area * frozen["sithick"][:, 0]).sum((1, 2)))
    both = frozen["sithick"][:, 0] * frozen["siconc"][:, 0]
    assert torch.allclose(IceVolume(per_ice=True)(frozen), (area * both).sum((1, 2)))
    with pytest.raises(ValueError, match="no water there"):
        Mean("thetao", depth=(500.0, 600.0))(state)


def test_what_has_no_gradient_is_refused() -> None:
    layout = row_layout(6)
    state = State(torch.ones(1, 1, 1, 6, dtype=torch.float64), START, layout, (0,))
    emulator = Matrix(torch.eye(6), layout)
    with pytest.raises(ValueError, match="shape \\(1,\\) with a gradient, got \\(1, 6\\)"):
        sensitivity(emulator, state, None, lambda s: s.data[:, 0, 0], 1)
    with pytest.raises(ValueError, match="without"):
        sensitivity(emulator, state, None, lambda s: s.data.detach().sum((1, 2, 3)), 1)
    with pytest.raises(ValueError, match="steps >= 0"):
        sensitivity(emulator, state, None, Mean("zos"), -1)
