"""Training: statistics against NumPy, a loss that falls, weights that are averaged as said."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from small import START, forcing_layout, random_state, small_layout
from test_emulators import network_emulator

from polynya.emulators import Noise, Samudra, Source, State, load
from polynya.emulators.losses import SAMUDRA2, Loss
from polynya.emulators.processes import Processes
from polynya.emulators.samudra import SamudraNet
from polynya.emulators.scaling import scaling_from
from polynya.emulators.statistics import statistics_of
from polynya.emulators.training import Recipe, _average, _Run, averaging, parameters, train
from polynya.emulators.windows import Place, Windows, read_ahead, windows_of

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


def test_constants_follow_the_channels_of_every_slot() -> None:
    dataset = truth()
    layout, forcing_of = small_layout((-1, 0)), forcing_layout()
    statistics = statistics_of(dataset)
    scaling = scaling_from(statistics, layout, forcing_of)
    wet = layout.field_mask(layout.field("uo"))[1]
    values = dataset.uo.isel(lev=1).values[..., wet]
    c = layout.channels("uo").start + 1
    assert scaling.mean[c] == pytest.approx(values.mean(), abs=1e-6)
    assert scaling.std[c] == pytest.approx(values.std(), rel=1e-5)
    assert scaling.increment[c] == pytest.approx(np.diff(values, axis=1).std(), rel=1e-5)
    assert torch.equal(scaling.mean[:7], scaling.mean[7:]) and len(scaling.forcing_std) == 2
    without = scaling_from(statistics.drop_vars([n for n in statistics if "increment" in str(n)]), layout, forcing_of)
    assert torch.equal(without.increment, scaling.std)


def test_windows_are_consecutive_records_of_one_member(windows: Windows) -> None:
    assert windows.count(3, 1) == 2 * (40 - 3)
    window, source, forcing = windows.get(37 + 4, 3, 1), windows.states[0], windows.forcings[0]
    assert window.time == START + 4 * STEP and window.numbers == (41,)
    assert torch.equal(window.start, source.state(START + 4 * STEP, (1,)).data)
    for k in range(3):
        assert torch.equal(window.targets[k], source.state(START + (5 + k) * STEP, (1,)).data)
        assert torch.equal(window.forcings[k], forcing.at(START + (4 + k) * STEP, (1,)).data)
    with pytest.raises(IndexError):
        windows.get(windows.count(3, 1), 3, 1)
    with pytest.raises(ValueError, match="too few for windows of 40 steps"):
        windows.count(40, 1)


def test_windows_of_two_slot_emulators_step_by_two() -> None:
    emulator = network_emulator((-1, 0), False)
    two = windows_of(emulator, [truth()], in_memory=True)
    window = two.get(0, 2, emulator.stride)
    assert window.time == START + STEP and two.count(4, 2) == 2 * (40 - 2 * 4 - 1)  # n - 2 K - 1, as published
    for k in (0, 1):
        assert torch.equal(window.targets[k], two.states[0].state(START + (3 + 2 * k) * STEP, (0,)).data)
        assert torch.equal(window.forcings[k], two.forcings[0].at(START + (1 + 2 * k) * STEP, (0,)).data)
    both = two.batch([Place(0), Place(7)], 2, emulator.stride)
    assert torch.equal(both.targets[:, 1:], two.get(7, 2, emulator.stride).targets)


def test_batches_are_read_ahead_in_order_and_errors_come_through(windows: Windows) -> None:
    asked: list[int] = []

    def read(n: int) -> Any:
        asked.append(n)
        if n == 7:
            raise ValueError("broken record")
        return n

    ahead: Any = read_ahead(read, 2, 9)
    assert next(ahead) == 2
    assert [next(ahead) for _ in range(4)] == [3, 4, 5, 6] and max(asked) <= 6 + 3
    with pytest.raises(ValueError, match="broken record"):
        next(ahead)


def test_every_window_is_seen_once_an_epoch() -> None:
    recipe = Recipe(6, batch=4, steps=(1,), seed=3)
    seen = [p.index for n in range(6) for p in recipe.places(n, 12)]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)) and seen[:12] != seen[12:]
    assert seen != [p.index for n in range(6) for p in replace(recipe, seed=4).places(n, 12)]
    assert all(p.fresh and p.link == 0 for n in range(6) for p in recipe.places(n, 12))


def test_chains_go_on_where_they_were_and_begin_at_different_updates() -> None:
    recipe = Recipe(40, batch=4, steps=(1, 2), links=(1, 8), seed=3)
    assert all(p.fresh for n in range(20) for p in recipe.places(n, 12))
    assert recipe.places(0, 12)[0].index != recipe.places(20, 12)[0].index
    assert all(p.fresh for p in recipe.places(20, 12)) and [p.link for p in recipe.places(20, 12)] == [0, 2, 4, 6]
    for n in range(21, 40):
        for before, now in zip(recipe.places(n - 1, 12), recipe.places(n, 12), strict=True):
            if now.fresh:
                assert now.link == 0 and before.link == 7
            else:
                assert now.link == before.link + 1 and now.index == before.index
        assert sum(p.fresh for p in recipe.places(n, 12)) <= 1


def test_a_link_is_the_window_further_along(windows: Windows) -> None:
    chain, third = windows.get(5, 2, 1, 4, 2), windows.get(5, 8, 1)
    assert torch.equal(chain.targets, third.targets[4:6]) and torch.equal(chain.forcings, third.forcings[4:6])
    assert torch.equal(chain.start, third.targets[3]) and chain.time == START + 9 * STEP


def test_carried_runs_start_where_they_ended_unless_they_are_lost(windows: Windows) -> None:
    emulator = network_emulator()
    run = _Run(emulator, Recipe(2, batch=2, links=(4,)), Processes())
    batch = replace(windows.batch([Place(0), Place(3)], 1, 1), fresh=(False, False))
    ended = batch.start + 0.1 * emulator.layout.mask
    assert torch.equal(run._start(batch, ended), ended)
    assert torch.equal(run._start(batch, None), batch.start)
    lost = torch.cat([ended[:1], ended[1:] + 100.0])
    assert torch.equal(run._start(batch, lost), torch.cat([ended[:1], batch.start[1:]]))
    lost[1, 0] = float("nan")
    assert torch.equal(run._start(batch, lost)[1], batch.start[1])
    mixed = replace(batch, fresh=(True, False))
    assert torch.equal(run._start(mixed, ended), torch.cat([batch.start[:1], ended[1:]]))


def test_the_rate_rises_and_falls_as_a_cosine() -> None:
    recipe = Recipe(100, learning_rate=2.0, warmup=0.1)
    assert recipe.rate(0) == pytest.approx(0.2, rel=1e-3) and recipe.rate(99) < 1e-3
    assert recipe.rate(50) == pytest.approx(1.0)
    published = Recipe.samudra2(70)
    assert published.rate(0) == 6e-4 and published.rate(35) == pytest.approx(3e-4) and published.loss.dynamic
    with pytest.raises(ValueError, match="cannot be cut into 3"):
        Recipe(1, batch=4, accumulate=3)


def test_training_learns_and_leaves_its_start_alone(windows: Windows) -> None:
    emulator = network_emulator()
    before = [p.detach().clone() for p in emulator.network.parameters()]
    trained = train(emulator, windows, Recipe(150, steps=(1, 2), learning_rate=5e-3, decay=0.9))
    assert all(torch.equal(a, b) for a, b in zip(before, emulator.network.parameters(), strict=True))
    assert not trained.network.training
    errors = {}
    window = windows.get(30, 1, 1)
    state = State(window.start, window.time, emulator.layout, (0,))
    forcing = State(window.forcings[0], window.time, emulator.forcing_layout, (0,))
    for name, model in (("untrained", emulator), ("trained", trained)):
        with torch.no_grad():
            errors[name] = float((model.step(state, forcing, Noise(0)).data - window.targets[0]).square().mean())
    persistence = float((window.start - window.targets[0]).square().mean())
    assert errors["trained"] < 0.3 * errors["untrained"]
    assert errors["trained"] < 0.6 * persistence


def test_jitter_is_white_and_stays_in_the_sea(windows: Windows) -> None:
    emulator = network_emulator()
    run = _Run(emulator, Recipe(2, batch=2, jitter=0.5), Processes())
    batch = windows.batch([Place(0), Place(3)], 1, 1)
    added = run._jittered(batch.start, batch, Noise(3)) - batch.start
    assert (added[:, ~emulator.layout.mask] == 0).all()
    wet = added[:, emulator.layout.mask]
    assert float(wet.std()) == pytest.approx(0.5 * 0.3, rel=0.1) and abs(float(wet.mean())) < 0.02
    assert not torch.equal(added[0], added[1])
    with pytest.raises(ValueError, match="jitter is a standard deviation"):
        Recipe(1, jitter=-1.0)


def same(one: Samudra, two: Samudra) -> bool:
    a, b = one.network.state_dict(), two.network.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def normed_emulator() -> Samudra:
    """With batch norm: its running statistics are part of what a restart must bring back."""
    emulator = network_emulator((-1, 0), False)
    torch.manual_seed(1)
    return replace(emulator, network=SamudraNet(replace(emulator.network.config, norm="batch")))


class KilledError(Exception):
    pass


def killed_after(windows: Windows, updates: int) -> Windows:
    """Windows that die when the read-ahead has nothing more to give."""

    class Mortal(Windows):
        asked = 0

        def batch(self, *args: Any) -> Any:
            Mortal.asked += 1
            if Mortal.asked > updates:
                raise KilledError
            return super().batch(*args)

    return Mortal(windows.states, windows.forcings)


@pytest.mark.parametrize("loss", [Loss(), SAMUDRA2], ids=["weighted", "dynamic"])
def test_a_killed_training_continues_to_the_same_bits(tmp_path: Path, loss: Loss) -> None:
    emulator = normed_emulator()
    windows = windows_of(emulator, [truth()], in_memory=True)
    recipe = Recipe(30, batch=2, steps=(1, 2), links=(4,), jitter=0.1, loss=loss, seed=4)
    whole = train(emulator, windows, recipe, folder=tmp_path / "whole")
    with pytest.raises(KilledError):
        train(emulator, killed_after(windows, 13), recipe, folder=tmp_path / "cut", save_minutes=0)
    again = train(emulator, windows, recipe, folder=tmp_path / "cut", resume=True)
    assert same(whole, again)
    tables = [(tmp_path / n / "training.csv").read_text().splitlines() for n in ("whole", "cut")]
    assert [row.split(",")[0] for row in tables[1]] == ["update", "10", "20", "30"]
    for one, two in zip(*tables, strict=True):  # all but the share of time spent waiting, the seventh column
        assert one.split(",")[:6] == two.split(",")[:6] and one.split(",")[7:] == two.split(",")[7:]
    assert tables[0][0].endswith("zos") and "thetao_2" in tables[0][0]
    assert same(whole, load(tmp_path / "cut" / "emulator.safetensors"))


def test_validation_is_of_the_averaged_weights_and_changes_nothing(tmp_path: Path) -> None:
    emulator = normed_emulator()
    windows, others = (windows_of(emulator, [d], in_memory=True) for d in (truth(), truth(12, (0, 1))))
    recipe = Recipe(20, batch=2, steps=(1, 2))
    plain = train(emulator, windows, recipe, folder=tmp_path / "plain")
    checked = train(emulator, windows, recipe, folder=tmp_path / "checked", validation=others, validate_every=8)
    assert same(plain, checked)
    head, *rows = (tmp_path / "checked" / "validation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["8", "16", "20"] and head.startswith("update,loss,thetao_0")
    chain = Loss().task(checked)
    places = [Place(k) for k in range(others.count(2, emulator.stride))]
    with torch.no_grad():
        batch = others.batch(places, 2, emulator.stride)
        expected = float(chain(batch, batch.start, 2, Noise(0))[0].mean())
    assert float(rows[-1].split(",")[1]) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="say in which folder"):
        train(emulator, windows, recipe, validation=others)


def test_a_training_is_not_overwritten_and_not_continued_differently(tmp_path: Path) -> None:
    emulator = normed_emulator()
    windows = windows_of(emulator, [truth()], in_memory=True)
    train(emulator, windows, Recipe(2, batch=2, steps=(1,)), folder=tmp_path)
    before = (tmp_path / "restart.pt").read_bytes()
    with pytest.raises(FileExistsError, match="resume=True"):
        train(emulator, windows, Recipe(2, batch=2, steps=(1,)), folder=tmp_path)
    with pytest.raises(ValueError, match="learning_rate: 0.001 then, 0.01 now"):
        train(emulator, windows, Recipe(2, batch=2, steps=(1,), learning_rate=0.01), folder=tmp_path, resume=True)
    assert (tmp_path / "restart.pt").read_bytes() == before


def test_micro_batches_and_recomputed_activations_change_nothing(windows: Windows) -> None:
    emulator = network_emulator()
    recipe = Recipe(3, batch=4, steps=(2,), learning_rate=1e-2)
    plain = train(emulator, windows, recipe)
    for other in (replace(recipe, accumulate=2), replace(recipe, recompute=True)):
        pairs = zip(plain.network.parameters(), train(emulator, windows, other).network.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


def test_an_ensemble_is_trained_to_have_the_spread_of_its_errors() -> None:
    """Targets that cannot be known: a fair CRPS finds their mean and spread, with one noise map."""
    dataset = truth(60)
    random = Noise(5).stream("unknowable")
    shape = dataset.zos.shape
    jumps = random.normal((0,), None, (int(np.prod(shape)),))[0].numpy().reshape(shape)
    dataset["zos"] = (0.0 * dataset.zos + jumps).astype("float32")
    plain = network_emulator()
    config = replace(plain.network.config, in_channels=plain.network.config.in_channels + 1)
    torch.manual_seed(0)
    emulator = replace(plain, network=SamudraNet(config), noise_maps=1, increments=False)
    windows = windows_of(emulator, [dataset], in_memory=True)
    recipe = Recipe(250, batch=4, steps=(1,), learning_rate=1e-2, decay=0.9, loss=Loss("crps", members=4))
    trained = train(emulator, windows, recipe)
    window = windows.get(20, 1, 1)
    state = State(window.start.repeat(64, 1, 1, 1), window.time, emulator.layout, tuple(range(64)))
    forcing = State(window.forcings[0].repeat(64, 1, 1, 1), window.time, emulator.forcing_layout, state.members)
    with torch.no_grad():
        zos = trained.step(state, forcing, Noise(1))["zos"][:, 0, emulator.layout.mask[-1]]
    assert float(zos.std(0).mean()) == pytest.approx(1.0, abs=0.3)
    assert float(zos.mean(0).abs().mean()) < 0.35


def test_the_average_follows_its_recurrence() -> None:
    reference = np.load(Path(__file__).parent / "data" / "samudra" / "loss_and_ema_reference.npz")
    average, now = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 2, bias=False)
    weights = torch.from_numpy(reference["ema_weights"])
    average.weight.data.copy_(weights[0])
    for n, decay in enumerate(reference["ema_decay"]):
        now.weight.data.copy_(weights[n + 1])
        assert averaging(n, 0.999) == pytest.approx(decay, rel=1e-6)
        _average(average, now, averaging(n, 0.999))
        assert np.abs(average.weight.detach().numpy() - reference["ema_avg"][n + 1]).max() < 1e-6
    assert averaging(10**6, 0.999) == 0.999 and parameters(now) == 6


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    dataset = truth(6)
    broken = dataset.assign(thetao=dataset.thetao * np.float32(np.inf))
    emulator = network_emulator()
    bad = Windows([Source.open(broken.fillna(0.0), emulator.layout)], [Source.open(dataset, emulator.forcing_layout)])
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(emulator, bad, Recipe(1, batch=2, steps=(1,)))


def test_the_loss_of_persistence_is_about_one() -> None:
    emulator = network_emulator()
    for parameter in emulator.network.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    dataset = truth()
    source = Source.open(dataset, emulator.layout)
    forcing = Source.open(dataset, emulator.forcing_layout)
    scaling = scaling_from(statistics_of(dataset), emulator.layout, emulator.forcing_layout)
    chain = Loss().task(replace(emulator, scaling=scaling))
    batch = Windows([source], [forcing]).batch([Place(k) for k in range(39)], 1, 1)
    errors = chain(batch, batch.start, 1, Noise(0))[0].detach()
    assert float(errors.mean()) == pytest.approx(1.0, rel=0.35)


def under_torchrun(script: Path, processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, str(script), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240
    )


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Under torchrun each takes half of every batch; gradients are averaged."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    for count, name in ((1, "one"), (2, "two")):
        done = under_torchrun(script, count, tmp_path / name)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load(tmp_path / n / "emulator.safetensors") for n in ("one", "two"))
    pairs = zip(one.network.parameters(), two.network.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


def test_two_killed_processes_continue_from_their_own_states(tmp_path: Path) -> None:
    """Each has runs of its own under way, and gets its own back."""
    script = tmp_path / "script.py"
    script.write_text(CARRIED)
    for name, last, good in (("whole", 99, True), ("cut", 5, False), ("cut", 99, True)):
        done = under_torchrun(script, 2, tmp_path / name, last)
        assert (done.returncode == 0) == good, done.stderr[-2000:]
    assert same(*(load(tmp_path / n / "emulator.safetensors") for n in ("whole", "cut")))
    windows = windows_of(network_emulator(), [truth()], in_memory=True)
    with pytest.raises(ValueError, match="processes: 2 then, 1 now"):
        train(network_emulator(), windows, CARRIED_RECIPE, folder=tmp_path / "cut", resume=True)


CARRIED_RECIPE = Recipe(9, batch=4, steps=(1,), links=(6,), jitter=0.1)
CARRIED = """
import sys
from test_emulators import network_emulator
from test_training import CARRIED_RECIPE, killed_after, truth
from polynya.emulators.training import train, windows_of

emulator = network_emulator()
windows = killed_after(windows_of(emulator, [truth()], in_memory=True), int(sys.argv[2]))
train(emulator, windows, CARRIED_RECIPE, folder=sys.argv[1], resume=True, save_minutes=0)
"""
TWO_PROCESSES = """
import sys
from test_emulators import network_emulator
from test_training import truth
from polynya.emulators.losses import Loss
from polynya.emulators.training import Recipe, train, windows_of

emulator = network_emulator((-1, 0), False)
recipe = Recipe(4, batch=4, steps=(2,), accumulate=2, loss=Loss(units='std'))
train(emulator, windows_of(emulator, [truth()], in_memory=True), recipe, folder=sys.argv[1])
"""
