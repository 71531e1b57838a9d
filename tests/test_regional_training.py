"""Training of the regional sea-ice models: that they learn, restarts, processes, files of the result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_regional import KINDS, SINGLE, emulator, objective_of, truth
from test_training import KilledError, killed_after, same, under_torchrun

from polynya.emulators import Noise, load, regional
from polynya.emulators.losses import Dynamic, Loss
from polynya.emulators.regional_objectives import Denoising, Increment
from polynya.emulators.training import Recipe, train, windows_of
from polynya.emulators.windows import Place


def column(path, name):
    head, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [float(row[head.index(name)]) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns(kind, tmp_path):
    model = emulator(kind)
    windows = windows_of(model, [truth()], in_memory=True)
    before = [p.clone() for net in filter(None, (model.network, model.first_guess)) for p in net.parameters()]
    recipe = Recipe(120, loss=objective_of(kind), **SINGLE)
    trained = train(model, windows, recipe, folder=tmp_path, validation=windows, validate_every=10)
    loss = column(tmp_path / "validation.csv", "loss")
    assert loss[-1] < (0.5 if kind == "deterministic" else 0.8) * loss[0], loss
    channels = [column(tmp_path / "validation.csv", n)[-1] for n in regional.STATES]
    assert np.mean(channels) == pytest.approx(loss[-1], rel=1e-4)
    after = [p for net in filter(None, (model.network, model.first_guess)) for p in net.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    assert (
        not trained.network.training and trained.running == model.running and trained.first_guess is model.first_guess
    )
    kept = torch.load(tmp_path / "restart.pt", weights_only=True)
    assert ("bins" in kept["task"]) == (kind != "deterministic")
    if kind != "deterministic":
        assert len(set(kept["task"]["bins"].tolist())) > 50
    assert same(trained, load(tmp_path / "emulator.safetensors"))


def test_weights_of_channels_follow_the_inverse_of_their_errors(tmp_path):
    model = emulator("deterministic")
    windows, follow = windows_of(model, [truth()], in_memory=True), Dynamic(limit=None, window=1, probe=False)
    objective = Increment(augment=False, dynamic=follow)
    recipe = Recipe(1, loss=objective, **SINGLE)
    train(model, windows, recipe, folder=tmp_path)
    batch = windows.batch(recipe.places(0, windows.count(1, 1)), 1, 1)
    errors = objective.task(model)(batch, batch.start, 1, Noise(0))[0][0]  # of the update, but for dropout
    scale = torch.load(tmp_path / "restart.pt", weights_only=True)["scale"]
    assert torch.allclose(scale * errors, torch.ones(5), atol=0.02) and scale.max() > 1.2 * scale.min()
    for kind in ("deterministic", "residual"):
        with pytest.raises(ValueError, match=r"choose Dynamic\(probe=False\)"):
            objective_of(kind, dynamic=Dynamic()).task(emulator(kind))


def test_a_rollout_loss_trains_any_kind():
    """Two steps of the emulator itself, a deterministic one and, by CRPS, one that draws."""
    for kind, loss in (("deterministic", Loss()), ("residual", Loss("crps", members=2))):
        model = emulator(kind, land=True)
        batch = windows_of(model, [truth()], in_memory=True).batch([Place(0), Place(5)], 2, 1)
        recipe = Recipe(8, batch=2, steps=(2,), learning_rate=1e-2, decay=0.0, loss=loss)
        trained = train(model, windows_of(model, [truth()], in_memory=True), recipe)
        start = batch.start.repeat(loss.members, 1, 1, 1)
        with torch.no_grad():
            before, after = (loss.task(m)(batch, start, 2, Noise(0))[0] for m in (model, trained))
        assert before.shape == (2, 5) and float(after.mean()) < float(before.mean())
        if model.first_guess is not None:
            assert all(p.grad is None and p.requires_grad for p in model.first_guess.parameters())


@pytest.mark.parametrize("kind", ["deterministic", "residual"])
def test_a_killed_training_continues_to_the_same_bits(kind, tmp_path):
    """With dropout, flips, noise levels and the histogram that they come from."""
    model = emulator(kind)
    windows = windows_of(model, [truth()], in_memory=True)
    recipe = Recipe(14, **(SINGLE | {"accumulate": 2, "jitter": 0.1, "weight_decay": 0.01}), loss=objective_of(kind))
    whole = train(model, windows, recipe, folder=tmp_path / "whole")
    with pytest.raises(KilledError):
        torch.manual_seed(5)
        train(model, killed_after(windows, 8), recipe, folder=tmp_path / "cut", save_minutes=0)
    torch.manual_seed(7)
    again = train(model, windows, recipe, folder=tmp_path / "cut", resume=True)
    assert same(whole, again)
    kept = [torch.load(tmp_path / n / "restart.pt", weights_only=True)["task"] for n in ("whole", "cut")]
    assert kept[0].keys() == kept[1].keys() and all(torch.equal(v, kept[1][k]) for k, v in kept[0].items())
    other = replace(model, config=replace(model.config, std=(1.0,) * 5))
    with pytest.raises(ValueError, match="constants: .* then"):
        train(other, windows, recipe, folder=tmp_path / "cut", resume=True)
    with pytest.raises(ValueError, match="recipe|loss: .*augment"):
        train(
            model,
            windows,
            replace(recipe, loss=objective_of(kind, augment=False)),
            folder=tmp_path / "cut",
            resume=True,
        )


def test_two_processes_share_the_histogram_and_continue(tmp_path):
    """Levels are drawn alike in all processes, whoever was killed."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    for name, last, good in (("whole", 99, True), ("cut", 4, False), ("cut", 99, True)):
        done = under_torchrun(script, 2, tmp_path / name, last)
        assert (done.returncode == 0) == good, done.stderr[-2000:]
    kept = [torch.load(tmp_path / n / "restart.pt", weights_only=True)["task"] for n in ("whole", "cut")]
    assert all(torch.equal(v, kept[1][k]) for k, v in kept[0].items())
    assert int((kept[0]["bins"] != 1).sum()) > 6 * 2  # more than one process hits with its two windows


TWO_PROCESSES = """
import sys
from small_regional import emulator, truth
from test_training import killed_after
from polynya.emulators.regional_scaling import encode
from polynya.emulators.regional_objectives import Denoising
from polynya.emulators.training import Recipe, train, windows_of

model = emulator("residual")
windows = killed_after(windows_of(model, [truth()], in_memory=True), int(sys.argv[2]))
recipe = Recipe(6, batch=4, steps=(1,), loss=Denoising())
train(model, windows, recipe, folder=sys.argv[1], resume=True, save_minutes=0)
"""


def test_recomputed_activations_and_bfloat16_agree():
    model = emulator("diffusion")
    windows, recipe = windows_of(model, [truth()], in_memory=True), Recipe(3, loss=Denoising(), **SINGLE)
    plain = train(model, windows, recipe)
    assert same(plain, train(model, windows, replace(recipe, recompute=True)))
    half = train(model.tuned(regional.Running(bf16=True)), windows, recipe)
    pairs = list(zip(plain.network.parameters(), half.network.parameters(), strict=True))
    assert not same(plain, half) and all(torch.allclose(a, b, atol=0.05) for a, b in pairs)
