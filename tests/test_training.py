"""Training: statistics against NumPy, a loss that falls, weights that are averaged as said."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import xarray as xr
from small import START, forcing_layout, random_state, small_layout
from test_emulators import network_emulator

from polynya.emulators import Noise, Source, State
from polynya.emulators.scaling import scaling_of
from polynya.emulators.training import Windows, _average, parameters, train, windows_of

STEP = timedelta(days=5)


def truth(records: int = 40, members: tuple[int, ...] = (0, 1)) -> xr.Dataset:
    """States that decay towards the forcing: something a small network can learn."""
    layout, forcing_of = small_layout(), forcing_layout()
    state, parts = random_state(layout, members), []
    for k in range(records):
        forcing = random_state(forcing_of, members, seed=100 + k).replace(time=state.time)
        parts.append(state.to_xarray().assign(forcing.to_xarray().data_vars))
        push = 0.5 * forcing.data[:, :1] * layout.mask
        state = state.replace(data=0.8 * state.data + push, time=state.time + STEP)
    dataset = xr.concat(parts, "time", data_vars="minimal", coords="minimal", compat="override")
    return dataset.assign_coords({c: state.layout.grid[c] for c in state.layout.grid.coords})


@pytest.fixture(scope="module")
def windows() -> Windows:
    emulator = network_emulator()
    return windows_of(emulator, [truth()])


def test_statistics_are_those_of_numpy_over_wet_cells() -> None:
    layout, forcing_of = small_layout((-1, 0)), forcing_layout()
    states = [random_state(small_layout(), seed=k).replace(time=START + k * STEP) for k in range(5)]
    forcings = [random_state(forcing_of, seed=50 + k) for k in range(5)]
    scaling = scaling_of(layout, forcing_of, states, forcings)
    stacked = np.stack([s.data.double().numpy() for s in states])
    for c in range(7):
        wet = small_layout().mask[c].numpy()
        values = stacked[:, :, c][..., wet]
        assert scaling.mean[c] == pytest.approx(values.mean(), abs=1e-6)
        assert scaling.std[c] == pytest.approx(values.std(), rel=1e-6)
        assert scaling.increment[c] == pytest.approx(np.diff(values, axis=0).std(), rel=1e-6)
        assert scaling.mean[c] == scaling.mean[c + 7]
    assert len(scaling.forcing_mean) == 2


def test_a_jump_in_time_is_no_increment_and_a_constant_is_refused() -> None:
    layout, forcing_of = small_layout(), forcing_layout()
    one, two = random_state(layout), random_state(layout, seed=9).replace(time=START + 3 * STEP)
    near = one.replace(data=one.data + 0.1 * random_state(layout, seed=3).data, time=START + STEP)
    scaling = scaling_of(layout, forcing_of, [one, near, two], [random_state(forcing_of)])
    assert float(scaling.increment.max()) < 0.2
    flat = one.replace(data=torch.zeros_like(one.data))
    with pytest.raises(ValueError, match="constant over these records: thetao_0"):
        scaling_of(layout, forcing_of, [flat, flat], [random_state(forcing_of)])
    still = random_state(forcing_of)
    still = still.replace(data=3.0 * forcing_of.mask * torch.ones_like(still.data))
    quiet = scaling_of(layout, forcing_of, [one, near], [still, still])
    assert torch.allclose(quiet.forcing_mean, torch.full((2,), 3.0)) and (quiet.forcing_std == 1).all()


def test_windows_are_consecutive_records_of_one_member(windows: Windows) -> None:
    assert windows.count(3, 1) == 2 * (40 - 3)
    start, forcings, targets = windows.get(37 + 4, 3, 1)
    assert start.members == (1,) and start.time == START + 4 * STEP
    assert [t.time for t in targets] == [START + k * STEP for k in (5, 6, 7)]
    assert [f.time for f in forcings] == [START + k * STEP for k in (4, 5, 6)]
    with pytest.raises(IndexError):
        windows.get(windows.count(3, 1), 3, 1)
    with pytest.raises(ValueError, match="too few for windows of 40 steps"):
        windows.count(40, 1)


def test_windows_of_two_slot_emulators_step_by_two() -> None:
    emulator = network_emulator((-1, 0), False)
    two = windows_of(emulator, [truth()])
    start, _, targets = two.get(0, 2, emulator.stride)
    assert start.time == START + STEP
    assert [t.time for t in targets] == [START + 3 * STEP, START + 5 * STEP]
    assert torch.equal(targets[0].data[:, :7], two.states[0].state(START + 3 * STEP, (0,)).data[:, :7])


def test_training_learns_and_leaves_its_start_alone(windows: Windows) -> None:
    emulator = network_emulator()
    before = [p.detach().clone() for p in emulator.network.parameters()]
    trained = train(emulator, windows, updates=150, batch=8, steps=(1, 2), learning_rate=5e-3, decay=0.9)
    assert all(torch.equal(a, b) for a, b in zip(before, emulator.network.parameters(), strict=True))
    assert not trained.network.training
    errors = {}
    for name, model in (("untrained", emulator), ("trained", trained)):
        start, forcings, targets = windows.get(30, 1, 1)
        with torch.no_grad():
            errors[name] = float((model.step(start, forcings[0], Noise(0)).data - targets[0].data).square().mean())
    persistence = float((windows.get(30, 1, 1)[0].data - windows.get(30, 1, 1)[2][0].data).square().mean())
    assert errors["trained"] < 0.3 * errors["untrained"]
    assert errors["trained"] < 0.6 * persistence


def test_training_is_reproducible(windows: Windows) -> None:
    one, two = (train(network_emulator(), windows, updates=5, batch=4, steps=(2,), seed=4) for _ in range(2))
    pairs = zip(one.network.parameters(), two.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_average_follows_its_recurrence() -> None:
    average, now = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.9 * average.weight.detach() + 0.1 * now.weight.detach()
    _average(average, now, 0.9)
    assert torch.allclose(average.weight, expected)
    assert parameters(now) == 6


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    dataset = truth(6)
    broken = dataset.assign(thetao=dataset.thetao * np.float32(np.inf))
    emulator = network_emulator()
    bad = Windows([Source.open(broken.fillna(0.0), emulator.layout)], [Source.open(dataset, emulator.forcing_layout)])
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(emulator, bad, updates=1, batch=2, steps=(1,))


def test_the_loss_of_persistence_is_about_one() -> None:
    from polynya.emulators.training import _loss

    emulator = network_emulator()
    for parameter in emulator.network.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    dataset = truth()
    source = Source.open(dataset, emulator.layout)
    forcing = Source.open(dataset, emulator.forcing_layout)
    states: list[State] = [source.state(t, (m,)) for m in (0, 1) for t in source.times]
    scaling = scaling_of(emulator.layout, emulator.forcing_layout, states, [forcing.at(t, (0,)) for t in source.times])
    loss = _loss(replace(emulator, scaling=scaling), Windows([source], [forcing]), list(range(39)), 1)
    assert loss.item() == pytest.approx(1.0, rel=0.35)
