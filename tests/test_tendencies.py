"""Stochastic tendencies and several checkpoints: emulators around emulators, held to the contract of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import islice

import numpy as np
import pytest
import test_emulators as contract
import torch
from small import START, random_state, small_layout
from toys import Matrix, row_layout

from polynya.emulators import Draws, Emulator, Layout, LayoutError, Noise, Persistence, State, nature_ocean
from polynya.emulators.grids import EARTH_RADIUS
from polynya.ensembles import Diffused, Remembered, Several, StochasticTendencies, White, trajectory
from polynya.ensembles.tendencies import coast_distance

DAY = timedelta(days=1)


def decay(layout: Layout, rate: float = 0.5) -> Matrix:
    size = int(np.prod(layout.shape))
    return Matrix((1 - rate) * torch.eye(size), layout)


def stochastic(layout: Layout, **changes: float) -> StochasticTendencies:
    emulator = decay(layout)
    kind = Remembered(Diffused(2e6), 10 * DAY, emulator.dt)
    return StochasticTendencies(emulator, kind, **{"amplitude": 0.3, **changes})


def test_increments_are_multiplied_and_land_stays_land() -> None:
    layout = small_layout()
    emulator, state = stochastic(layout), random_state(layout, tuple(range(400)))
    new = emulator.step(state, None, Noise(1))
    assert isinstance(emulator, Emulator) and new.time == state.time + emulator.dt
    r = emulator.factor(state.members, state.time, Noise(1))
    assert torch.allclose(new.data, state.data * (1 - 0.5 * (1 + r)), atol=1e-6)
    assert (new.data[:, ~layout.mask] == 0).all() and r.shape == (400, 1, 8, 12)
    wet = layout.mask[6]
    assert float(r[:, 0, wet].std(0).mean()) == pytest.approx(0.3, rel=0.02) and float(r.abs().max()) <= 0.9
    assert (r[:, 0, ~wet] == 0).all()
    plain = stochastic(layout, amplitude=0.0).step(state, None, Noise(1))
    assert torch.equal(plain.data, decay(layout).step(state, None, Noise(1)).data)
    still = replace(emulator, emulator=Persistence(layout, 5 * DAY)).step(state, None, Noise(1))
    assert torch.equal(still.data, state.data)


def test_large_amplitudes_are_bounded() -> None:
    layout = small_layout()
    r = stochastic(layout, amplitude=5.0, limit=0.6).factor(range(50), START, Noise(1))
    assert float(r.abs().max()) == pytest.approx(0.6) and abs(float(r[:, 0, layout.mask[6]].mean())) < 0.05


def test_the_factor_is_correlated_in_time_and_needs_no_history() -> None:
    layout, many = small_layout(), tuple(range(2000))
    emulator = stochastic(layout)
    cell = [emulator.factor(many, START + k * emulator.dt, Noise(1))[:, 0, 6, 6] for k in range(4)]
    for k in (1, 2, 3):
        assert float(torch.stack([cell[0], cell[k]]).corrcoef()[0, 1]) == pytest.approx(np.exp(-k / 2), abs=0.05)
    alone = stochastic(layout).factor((1234,), START + 3 * emulator.dt, Noise(1))
    assert float(alone[0, 0, 6, 6]) == float(cell[3][1234])


def test_members_do_not_depend_on_their_batch_or_on_restarts() -> None:
    layout = small_layout()
    state = random_state(layout, tuple(range(7)))
    run = list(islice(trajectory(stochastic(layout), state, None, Noise(3)), 4))
    alone = list(islice(trajectory(stochastic(layout), state.sel((5,)), None, Noise(3)), 4))
    assert all(torch.equal(a.data[5], b.data[0]) for a, b in zip(run, alone, strict=True))
    resumed = list(islice(trajectory(stochastic(layout), run[2], None, Noise(3)), 2))
    assert torch.equal(resumed[1].data, run[3].data)


def test_the_taper_rises_from_the_coast() -> None:
    layout = nature_ocean.channel().layout.select(["zos"])
    emulator = StochasticTendencies(Persistence(layout, 5 * DAY), White(), 0.3, coast=1e5)
    r = emulator.factor(tuple(range(2000)), START, Noise(0))[:, 0]
    step = 0.225 * np.radians(1) * EARTH_RADIUS
    for row, wanted in ((1, np.sin(np.pi / 2 * step / 1e5) ** 2), (2, np.sin(np.pi * step / 1e5) ** 2), (9, 1.0)):
        assert float(r[:, row, 20].std()) == pytest.approx(0.299 * wanted, rel=0.07)


def test_coast_distance_is_the_nearest_land_by_brute_force() -> None:
    layout = small_layout()
    (lat, lon), wet = layout.position(layout.fields[0]), layout.mask[0].numpy()
    phi, lam = np.radians(lat), np.radians(lon)
    cosine = np.sin(phi[..., None, None]) * np.sin(phi) + np.cos(phi[..., None, None]) * np.cos(phi) * np.cos(
        lam[..., None, None] - lam
    )
    brute = EARTH_RADIUS * np.arccos(np.clip(cosine, -1, 1))[:, :, ~wet].min(-1)
    assert coast_distance(layout)[wet] == pytest.approx(brute[wet], rel=1e-6)
    assert (coast_distance(layout)[~wet] == 0).all()
    assert np.isinf(coast_distance(row_layout(4))).all()
    sector = nature_ocean.channel().layout  # 28 degrees wide, with an island at columns 60 to 63: 36 columns from 16
    assert coast_distance(sector)[19, 10] == pytest.approx(coast_distance(sector)[19, 33], rel=0.02)


def test_old_slots_are_not_perturbed_twice() -> None:
    layout = small_layout((-1, 0))

    class Sliding:
        """Steps by one slot: the newest becomes the older."""

        def __init__(self) -> None:
            self.layout, self.forcing_layout, self.dt = layout, None, 5 * DAY

        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            newest = state.data[:, 7:]
            return state.replace(data=torch.cat([newest, 0.5 * newest], 1), time=state.time + self.dt)

    emulator = StochasticTendencies(Sliding(), White(), 0.5)
    state = random_state(layout)
    new, r = emulator.step(state, None, Noise(0)), emulator.factor((0, 1, 2), START, Noise(0))
    assert torch.equal(new.data[:, :7], state.data[:, 7:])
    assert torch.allclose(new.data[:, 7:], state.data[:, 7:] * (1 - 0.5 * (1 + r)), atol=1e-6)
    whole = StochasticTendencies(decay(layout), White(), 0.5)
    assert whole.layout.slots == (-1, 0)


def test_gradients_flow_through_stochastic_tendencies() -> None:
    layout = row_layout(6)
    emulator = StochasticTendencies(decay(layout), White(), 0.3)
    state = State(torch.ones(1, 1, 1, 6, dtype=torch.float64), START, layout, (0,))
    r = emulator.factor((0,), START, Noise(0)).double().flatten()
    jacobian = torch.func.jacrev(lambda x: emulator.step(state.replace(data=x), None, Noise(0)).data)(state.data)
    assert torch.allclose(jacobian.view(6, 6), torch.diag(1 - 0.5 * (1 + r)), atol=1e-7)


def test_bad_settings_are_refused() -> None:
    for wrong in ({"amplitude": -0.1}, {"limit": 1.0}, {"coast": -1.0}):
        with pytest.raises(ValueError, match="wanted amplitude >= 0, 0 < limit < 1 and coast >= 0"):
            stochastic(small_layout(), **wrong)


CONTRACT = [
    contract.test_satisfies_the_protocol_and_moves_time,
    contract.test_a_step_is_pure,
    contract.test_a_member_does_not_depend_on_its_batch,
    contract.test_land_stays_land,
    contract.test_float64_in_float64_out,
    contract.test_the_gradient_of_five_steps_passes_a_taylor_test,
    contract.test_tangent_and_adjoint_agree,
    contract.test_pickles,
]


@pytest.mark.parametrize("check", CONTRACT, ids=lambda c: c.__name__)
def test_the_contract_of_all_emulators(check: Callable[..., None]) -> None:
    layout = small_layout()
    stirred = replace(
        decay(layout), A=0.3 * torch.randn(84 * 8, 84 * 8, generator=torch.Generator().manual_seed(0)) / 26
    )
    wet = layout.mask.flatten().float()
    stirred = replace(stirred, A=wet[:, None] * stirred.A * wet)
    for emulator in (StochasticTendencies(stirred, White(), 0.3, coast=5e5), Several((stirred, decay(layout)))):
        check((emulator, random_state(layout), lambda state: None))


# --- several checkpoints -------------------------------------------------------------------------


def test_members_take_their_own_emulator_in_any_batch() -> None:
    layout = small_layout()
    emulators = tuple(replace(decay(layout, rate), noise=0.1) for rate in (0.1, 0.5, 0.9))
    several, members = Several(emulators), (4, 0, 8, 5, 2, 3)
    state = random_state(layout, members)
    assert isinstance(several, Emulator)
    new = several.step(state, None, Noise(2))
    assert new.members == members and new.time == state.time + several.dt
    for row, m in enumerate(members):
        own = emulators[m % 3].step(state.sel((m,)), None, Noise(2))
        assert torch.equal(new.data[row], own.data[0])
        assert torch.equal(several.step(state.sel((m,)), None, Noise(2)).data, own.data)


def test_forcing_rows_go_with_their_members() -> None:
    layout = small_layout()

    class Driven(Matrix):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            assert forcing is not None and forcing.members == state.members
            return state.replace(data=state.data + forcing.data, time=state.time + self.dt)

    several = Several(
        (Driven(torch.eye(1), layout, 0.0, 5 * DAY, layout), Driven(torch.eye(1), layout, 0.0, 5 * DAY, layout))
    )
    state, forcing = random_state(layout, (1, 6, 3)), random_state(layout, (1, 6, 3), seed=5)
    assert torch.equal(several.step(state, forcing, Noise(0)).data, state.data + forcing.data)


def test_emulators_that_do_not_fit_are_refused() -> None:
    layout = small_layout()
    with pytest.raises(ValueError, match="at least one emulator"):
        Several(())
    with pytest.raises(LayoutError, match="Several: emulator 1: wanted fields"):
        Several((Persistence(layout, DAY), Persistence(layout.select(["zos"]), DAY)))
    with pytest.raises(ValueError, match="emulator 1: wanted steps of 1 day, 0:00:00, got 2 days"):
        Several((Persistence(layout, DAY), Persistence(layout, 2 * DAY)))
    with pytest.raises(LayoutError, match="wanted forcing like the first"):
        Several((Persistence(layout, DAY), Persistence(layout, DAY, layout)))
