"""What regional sea-ice networks are trained on: what is minimised and drawn, and land."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small import small_grid
from small_regional import DAY, KINDS, batch_of, emulator, layouts, objective_of

from polynya.emulators import Noise, Persistence, State, regional
from polynya.emulators.diffusion import AdaptiveSchedule
from polynya.emulators.flow import stratified_times
from polynya.emulators.ice_patches import horizontal_flip, quarter_turn, vertical_flip
from polynya.emulators.processes import Processes
from polynya.emulators.regional_loss import diffusion_loss, increment_loss
from polynya.emulators.regional_objectives import Denoising, Increment, Sample, augmented
from polynya.emulators.regional_scaling import encode
from polynya.emulators.training import Recipe
from polynya.emulators.uvit import UViT


@pytest.mark.parametrize("land", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_is_its_function_on_the_same_draws(kind, land):
    model = emulator(kind, land)
    batch, noise, c = batch_of(model, land=land), Noise(3).stream("7"), model.config
    task = objective_of(kind, augment=False).task(model)
    errors, end = task(batch, batch.start, 1, noise)
    states, forcings = torch.stack((batch.start, batch.targets[0]), 1), batch.forcings[0].view(3, 2, 4, 16, 16)
    mask = model.layout.mask[None, :1].float().expand(3, -1, -1, -1) if land else None
    labels = torch.zeros(3, 3)
    if kind == "deterministic":
        wanted = increment_loss(model.network, states, forcings, labels, c, mask)
    else:
        eps = noise.stream("noise").normal(batch.numbers, None, (5, 16, 16))
        shift = noise.stream("times").uniform(batch.numbers[:1], None, ())
        schedule = AdaptiveSchedule()
        gamma = schedule.gamma(stratified_times(3, shift[0]))
        wanted, each = diffusion_loss(
            model.network, states, forcings, labels, eps, gamma, schedule, c, model.first_guess, mask
        )
        task.finish_update(Processes())
        torch.testing.assert_close(task.bins, schedule.updated(gamma, each).bins)
        assert int((task.bins != 1).sum()) == 3
    assert errors.shape == (1, 5) and not end.requires_grad
    torch.testing.assert_close(errors.mean(), wanted)
    if kind == "deterministic":  # from its definition, in cells of the ocean
        wet = model.layout.mask[0]
        with torch.no_grad():
            z = model.network(encode(batch.start, forcings, c, mask), labels)
        target = (batch.targets[0] - batch.start) / torch.tensor(c.std)[:, None, None]
        by_hand = (z - target)[..., wet].square().mean((0, 2))
        torch.testing.assert_close(errors[0].detach(), by_hand)
        assert bool(wet.all()) != land


def test_levels_are_drawn_within_limits_and_bins_follow_as_fast_as_wanted():
    model = emulator("residual")
    batch, drawn = batch_of(model), []
    task = Denoising(augment=False, levels=(-3.0, 5.0), memory=0.25).task(model)
    low, high = model.config.level_range
    model.network.register_forward_pre_hook(lambda _m, given: drawn.append(given[2][:, 0] * (high - low) + low))
    task(batch, batch.start, 1, Noise(3))
    levels = drawn[0]  # stratified: one in each third
    assert ((levels + 3) / 8 * 3).long().sort().values.tolist() == [0, 1, 2]
    (seen,) = task._seen
    task.finish_update(Processes())
    places = ((levels.double() + 3) / 0.08).long()
    torch.testing.assert_close(task.bins[places], 0.25 + 0.75 * seen[1], rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"wanted levels that grow .* got Denoising\(.*levels=\(5.0, -3.0\)"):
        Denoising(levels=(5.0, -3.0))
    with pytest.raises(ValueError, match="0 < memory < 1"):
        Denoising(memory=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_on_land_changes_nothing(kind):
    model = emulator(kind)
    batch, dry = batch_of(model), ~model.layout.mask[0]
    found = []
    for value in (0.0, 1e3, math.nan):
        filled = replace(
            batch, **{n: torch.where(dry, value, getattr(batch, n)) for n in ("start", "forcings", "targets")}
        )
        task = objective_of(kind).task(model)
        errors, _ = task(filled, filled.start, 1, Noise(0))
        found.append((errors, *torch.autograd.grad(errors.mean(), list(model.network.parameters()), allow_unused=True)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_forecasts_do_not_hear_what_a_network_says_of_land():
    """Nor is there noise on land, in forecasts as in training."""
    model = emulator("residual")
    batch = batch_of(model)
    state = State(batch.start, batch.time, model.layout, (0, 1, 2))
    forcing = State(batch.forcings[0], batch.time, model.forcing_layout, (0, 1, 2))
    wet, seen = model.layout.mask[0], []
    for net in (model.network, model.first_guess):
        net.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    with torch.no_grad():
        model.step(state, forcing, Noise(0))
    assert len(seen) == 3 * (1 + model.config.calls) and all((x[..., ~wet] == 0).all() for x in seen)
    assert {x.shape[1] for x in seen} == {14, 24}
    assert all(torch.equal(x[0, 13 if x.shape[1] == 14 else 18], wet.float()) for x in seen)


def test_a_network_that_sees_the_mask_runs_without_land():
    model = emulator("deterministic", land=False)
    batch = batch_of(model, land=False)
    state = State(batch.start, batch.time, model.layout, (0, 1, 2))
    forcing = State(batch.forcings[0], batch.time, model.forcing_layout, (0, 1, 2))
    states, forcings, ones = batch.start[:, None], batch.forcings[0].view(3, 2, 4, 16, 16), torch.ones(3, 1, 16, 16)
    with torch.no_grad():
        got = model.step(state, forcing, Noise(0)).data
        wanted = regional.forecast(model.network, states, forcings, None, model.config, mask=ones)
    assert torch.equal(got, wanted)
    assert regional.read_config({"sees_mask": True}).sees_mask and not regional.read_config({}).sees_mask
    with pytest.raises(regional.ConfigError, match="the network takes 14 .* wanted 5 out, and in 13 without"):
        replace(model, config=replace(model.config, sees_mask=False))


def test_draws_belong_to_windows():
    """Flips and noise of a window are the same in any batch; other windows and updates have others."""
    model = emulator("diffusion")
    task = Denoising().task(model)
    whole, alone = batch_of(model, tuple(range(8))), batch_of(model, (3,))
    noise = Noise(0).stream("1")
    one, many = (task.sample(b, b.start, noise) for b in (alone, whole))
    for name in ("states", "forcings", "mask", "labels"):
        assert torch.equal(getattr(one, name)[0], getattr(many, name)[3])
    assert len({tuple(row.tolist()) for row in many.labels}) > 2
    assert not torch.equal(many.labels, task.sample(whole, whole.start, Noise(0).stream("2")).labels)
    task.eval()
    plain = task.sample(whole, whole.start, noise)
    assert not plain.labels.any() and torch.equal(plain.states[:, 0], whole.start)
    kept = task.bins.clone()
    task(whole, whole.start, 1, noise)
    assert torch.equal(kept, task.bins) and not task._seen


def test_augmented_samples_are_the_turned_maps():
    """Drift and wind follow, components and all; the mask turns with them; labels say what was done."""
    model = emulator("diffusion")
    batch = batch_of(model, (0,))
    flags = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    states = torch.stack((batch.start, batch.targets[0]), 1).expand(8, -1, -1, -1, -1)
    forcings = batch.forcings[0].view(1, 2, 4, 16, 16).expand(8, -1, -1, -1, -1)
    mask = model.layout.mask[None, :1].float().expand(8, -1, -1, -1)
    for vectors in (True, False):
        got = augmented(Sample(states, forcings, mask, torch.zeros(8, 3)), flags, vectors)
        assert torch.equal(got.labels, flags.float())
        drift, wind = (((3, 4),), ((2, 3),)) if vectors else ((), ())
        for i, row in enumerate(flags.tolist()):
            x, f, m = states[i], forcings[i], mask[i]
            for move, done in zip((horizontal_flip, vertical_flip, quarter_turn), row, strict=True):
                x, f, m = (move(x, drift), move(f, wind), move(m)) if done else (x, f, m)
            assert torch.equal(got.states[i], x) and torch.equal(got.forcings[i], f) and torch.equal(got.mask[i], m)
    speed = got.states[:, 0, 3:5].square().sum((1, 2, 3))
    torch.testing.assert_close(speed, speed[:1].expand(8))
    wide = small_grid(8, 16, levels=1)
    narrow = [replace(layout, grid=wide) for layout in layouts()]
    task = Denoising().task(replace(model, layout=narrow[0], forcing_layout=narrow[1]))
    cut = replace(batch, **{n: getattr(batch, n)[..., :8, :] for n in ("start", "forcings", "targets")})
    labels = [task.sample(cut, cut.start, Noise(k)).labels for k in range(12)]
    assert not any(v[0, 2] for v in labels) and any(v[0, 0] for v in labels)


def test_a_network_of_single_cells_errs_alike_however_maps_are_turned():
    """States, targets, forcings and mask stay together; one without neighbours, labels and vectors cannot tell."""
    model = emulator("deterministic", sees_mask=True)
    for name, p in model.network.named_parameters():
        if "gamma" in name or "embedd" in name:
            torch.nn.init.zeros_(p)
    with torch.no_grad():
        for up, width in zip(model.network.up_blocks, (8,), strict=True):
            up.upscale.conv_layer.weight[:, :-width] = 0.0  # nothing from below
            up.upscale.conv_layer.weight[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0
    batch = batch_of(model)
    plain, scalars = (Increment(augment=a, vectors=False).task(model) for a in (False, True))
    for k in range(3):
        given = batch, batch.start, 1, Noise(k)
        torch.testing.assert_close(plain(*given)[0], scalars(*given)[0])


def test_wrong_objectives_are_refused():
    with pytest.raises(ValueError, match=r"Denoising is an objective of single steps .* got \(1, 2\)"):
        Recipe(3, steps=(1, 2), loss=Denoising())
    with pytest.raises(ValueError, match=r"wanted steps=\(1,\) and links=\(1,\)"):
        Recipe(3, steps=(1,), links=(4,), loss=Increment())
    with pytest.raises(ValueError, match="Increment trains a Regional that is deterministic, got diffusion"):
        Increment().task(emulator("diffusion"))
    with pytest.raises(ValueError, match="Denoising trains a Regional that is diffusion or residual, got determ"):
        Denoising().task(emulator("deterministic"))
    model = emulator("deterministic")
    with pytest.raises(ValueError, match="got Persistence"):
        Increment().task(Persistence(model.layout, DAY))
    labels = UViT(replace(model.network.config, n_augment_hidden=1)).eval()
    with pytest.raises(ValueError, match="told by 3 labels, and the network takes 1"):
        Increment().task(replace(model, network=labels))
    batch = batch_of(model)
    with pytest.raises(ValueError, match="single steps, got 2"):
        Increment().task(model)(batch, batch.start, 2, Noise(0))


def test_only_matrices_decay():
    task = Denoising().task(emulator("diffusion"))
    decays, others = task.parameter_groups(0.3)
    assert (decays["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim > 1 for p in decays["params"])
    assert len(decays["params"]) + len(others["params"]) == len(list(task.network.parameters()))
