"""Conservation as a correction: budgets against sums written out here, gradients, slots, the moving surface."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from small import START, random_state, small_grid

from polynya.emulators import Conserve, Corrected, Field, Layout, LayoutError, Noise, Persistence, State
from polynya.emulators import nature_ocean as nature

RHO_CP = 1035.0 * 3991.86795711963


def ocean(slots: tuple[int, ...] = (0,)) -> Layout:
    return Layout((Field("thetao", 3), Field("so", 3), Field("zos")), small_grid(), slots)


def fluxes(slots: tuple[int, ...] = (0,)) -> Layout:
    return Layout((Field("hfds"),), small_grid(), slots)


@dataclass(frozen=True)
class Leaky:
    """Creates heat and salt, differently in every cell."""

    layout: Layout
    forcing_layout: Layout | None

    @property
    def dt(self) -> timedelta:
        return self.layout.interval * len(self.layout.slots)

    def step(self, state: State, forcing: State | None, noise: Any) -> State:
        changed = (1.1 * state.data + 0.3) * self.layout.mask
        return state.replace(data=changed, time=state.time + self.dt)


def content(state: State, name: str, slot: int = -1, surface: bool = False) -> np.ndarray:
    """Sum over wet cells in NumPy, per member."""
    grid = state.layout.grid
    thick = np.broadcast_to(grid.dz.values[:, None, None], grid.wetmask.shape).copy()[None].repeat(len(state.data), 0)
    if surface:
        thick[:, 0] += state.data[:, state.layout.channels("zos", slot)][:, 0].double().numpy()
    values = state.data[:, state.layout.channels(name, slot)].double().numpy()
    return (values * thick * grid.areacello.values * grid.wetmask.values).sum((1, 2, 3))


def power(forcing: State, slot: int = -1) -> np.ndarray:
    grid = forcing.layout.grid
    flux = forcing.data[:, forcing.layout.channels("hfds", slot)][:, 0].double().numpy()
    return (flux * grid.areacello.values * grid.wetmask.values[0]).sum((1, 2))


@pytest.mark.parametrize("how", ["shift", "scale"])
@pytest.mark.parametrize("surface", [False, True])
def test_budgets_close_to_round_off(how: Any, surface: bool) -> None:
    state = random_state(ocean()).to(torch.float64)
    forcing = random_state(fluxes(), seed=5)
    forcing = forcing.replace(data=50 * forcing.data.double())
    correction = Conserve(geothermal=0.1, how=how, moving_surface=surface)
    new = Corrected(Leaky(ocean(), fluxes()), correction).step(state, forcing, Noise(0))
    grid = state.layout.grid
    floor = 0.1 * float((grid.areacello * grid.wetmask[0]).sum())
    gain = (power(forcing) + floor) * 5 * 86400 / RHO_CP
    heat = content(new, "thetao", surface=surface) - content(state, "thetao", surface=surface)
    assert np.allclose(heat, gain, rtol=1e-9)
    salt = content(state, "so", surface=surface)
    assert np.allclose(content(new, "so", surface=surface), salt, rtol=1e-10, atol=1e-12 * abs(salt).max())
    assert (new.data[:, ~state.layout.mask] == 0).all()
    assert torch.equal(new["zos"], Leaky(ocean(), None).step(state, None, None)["zos"])


def test_a_shift_is_the_same_everywhere_and_float32_is_good_to_its_rounding() -> None:
    state, forcing = random_state(ocean()), random_state(fluxes(), seed=5)
    plain = Leaky(ocean(), fluxes()).step(state, forcing, None)
    new = Corrected(Leaky(ocean(), fluxes()), Conserve()).step(state, forcing, Noise(0))
    change = (new["thetao"] - plain["thetao"])[:, state.layout.mask[:3]]
    assert torch.allclose(change, change[:, :1].expand_as(change), atol=1e-6) and change.abs().max() > 1e-3
    scale = float((state.layout.grid.areacello * state.layout.grid.dz * state.layout.grid.wetmask).sum())
    expected = content(state, "thetao") + power(forcing) * 5 * 86400 / RHO_CP
    assert np.abs(content(new, "thetao") - expected).max() < 1e-7 * scale


def test_two_slots_follow_each_other_and_fluxes_of_predicted_records_are_used() -> None:
    slots = (-1, 0)
    state = random_state(ocean(slots)).to(torch.float64)
    forcing = random_state(fluxes(slots), seed=5).to(torch.float64)
    new = Corrected(Leaky(ocean(slots), fluxes(slots)), Conserve()).step(state, forcing, Noise(0))
    gain = power(forcing) * 5 * 86400 / RHO_CP
    start = content(state, "thetao")
    assert np.allclose(content(new, "thetao", 0), start + gain) and np.allclose(
        content(new, "thetao", 1), start + 2 * gain
    )

    class Fluxes:
        def at(self, time: Any, members: Any) -> State:
            return random_state(fluxes(), members, seed=round((time - START).days)).to(torch.float64)

    means = Conserve(flux=Fluxes(), records="means")
    new = Corrected(Leaky(ocean(slots), fluxes(slots)), means).step(state, forcing, Noise(0))
    p = [power(Fluxes().at(START + k * timedelta(days=5), state.members)) for k in range(3)]
    first = start + (p[0] + p[1]) / 2 * 5 * 86400 / RHO_CP
    assert np.allclose(content(new, "thetao", 0), first)
    assert np.allclose(content(new, "thetao", 1), first + (p[1] + p[2]) / 2 * 5 * 86400 / RHO_CP)


def test_the_embedded_ocean_closes_its_own_budget_with_this_correction() -> None:
    """The truth conserves heat, so correcting it changes it by rounding only."""
    globe = nature.globe()
    state = globe.at_rest(START, Noise(3)).to(torch.float64)
    forcing = globe.forcing(noise=Noise(3)).at(START, (0,))
    with torch.no_grad():
        new = globe.step(state, forcing, Noise(0))
    flux = State(new["hfds"], START, new.layout.select(["hfds"]), (0,))
    correction = Conserve(salt=False, moving_surface=True, rho0=nature.RHO0, cp=nature.HEAT_CAPACITY)
    again = correction(state, new, flux)
    assert float((again["thetao"] - new["thetao"]).abs().max()) < 1e-11


@pytest.mark.parametrize("how", ["shift", "scale"])
def test_the_correction_is_differentiable(how: Any) -> None:
    state, forcing = random_state(ocean(), (0,)).to(torch.float64), random_state(fluxes(), (0,)).to(torch.float64)
    correction = Conserve(how=how, moving_surface=True)

    def run(data: torch.Tensor) -> torch.Tensor:
        return correction(state, state.replace(data=data), forcing).data

    point = (state.data + 3.0).requires_grad_()
    direction = torch.randn_like(point, generator=torch.Generator().manual_seed(1))
    # Dot-product test: <J v, w> = <v, J^T w>.
    weight = torch.randn_like(point, generator=torch.Generator().manual_seed(2))
    _, forward = torch.func.jvp(run, (point,), (direction,))
    (backward,) = torch.autograd.grad(run(point), point, weight)
    assert torch.allclose((forward * weight).sum(), (direction * backward).sum(), rtol=1e-10)
    # Taylor test: the remainder of first order falls with the square of the step.
    remainders = [(run(point + h * direction) - run(point) - h * forward).norm().item() for h in (1e-1, 1e-2, 1e-3)]
    assert remainders[0] > 50 * remainders[1] > 2500 * remainders[2] or max(remainders) < 1e-9


def test_what_is_missing_is_named() -> None:
    state, layout = random_state(ocean()), ocean()
    bare = Corrected(Persistence(layout, layout.interval), Conserve())
    with pytest.raises(LayoutError, match="needs the surface flux"):
        bare.step(state, None, Noise(0))
    winds = Layout((Field("tauuo"),), small_grid())
    with pytest.raises(LayoutError, match="the forcing has tauuo"):
        bare.step(state, random_state(winds), Noise(0))
    thin = replace(layout, grid=small_grid().drop_vars("dz"))
    with pytest.raises(LayoutError, match="layer thickness"):
        Corrected(Persistence(thin, thin.interval), Conserve()).step(random_state(thin), None, Noise(0))
    with pytest.raises(ValueError, match="how is one of"):
        Conserve(how="divide")  # type: ignore[arg-type]
