"""Training of GenSIM: patches and what is drawn of them, what is minimised, restarts, symmetry, land."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import xarray as xr
from small import START, small_grid
from test_regional_training import column
from test_training import KilledError, killed_after, same

from polynya.emulators import Field, Layout, Noise, Persistence, gensim, load
from polynya.emulators.flow import stratified_times
from polynya.emulators.gensim_loss import flow_errors, flow_loss
from polynya.emulators.gensim_objectives import CensoredFlow, grid_axes
from polynya.emulators.ice_constants import fitted
from polynya.emulators.ice_patches import horizontal_flip, quarter_turn, vertical_flip
from polynya.emulators.losses import Loss
from polynya.emulators.running import Running
from polynya.emulators.training import Recipe, train, windows_of
from polynya.emulators.transformer import TransformerConfig
from polynya.emulators.windows import Place

HALF = timedelta(hours=12)
TINY = TransformerConfig(
    n_features=16, n_blocks=3, n_heads=2, n_features_head=8, n_rope_features=4, n_embedding=16, n_input=24
)
MEAN = torch.tensor([1.0, 0.8, 0.4, 0.0, 0.0, 0.2])
SIZE = torch.tensor([0.5, 0.3, 0.4, 0.1, 0.1, 0.1])
SINGLE = {"batch": 2, "steps": (1,), "learning_rate": 3e-3, "decay": 0.9}
N = 32


def layouts():
    grid = small_grid(N, N, levels=1)
    wet = grid.wetmask.values.copy()
    wet[:, 20:27, 4:12] = False
    grid = grid.assign_coords(wetmask=(grid.wetmask.dims, wet), lat=("lat", np.linspace(60, 85, N)))
    area = np.tile(1e10 * np.cos(np.radians(grid.lat.values))[:, None], (1, N))
    grid["areacello"] = (("lat", "lon"), area, {"units": "m2"})
    forcing = Layout(tuple(Field(n) for n in gensim.FORCINGS + gensim.DEGREE_DAYS), grid, (0, 1), HALF)
    return Layout(tuple(Field(n) for n in gensim.STATES), grid, interval=HALF), forcing


def mesh():
    """Cells of 12.5 km, the grid turned by a quarter of a right angle against the plane of positions."""
    i = 12.5 * torch.arange(N, dtype=torch.float64)
    x, y = torch.meshgrid(i, i, indexing="xy")
    c, s = math.cos(math.pi / 8), math.sin(math.pi / 8)
    return torch.stack((c * x - s * y, s * x + c * y))


def truth(records=10, seed=0):
    """Ice that decays towards what the weather pushes to, some of it at its bounds; a store as a Dataset."""
    layout, forcing = layouts()
    weather = Noise(seed).stream("weather").normal(range(records), None, (8, N, N))
    weather[:, 4:] = weather[:, 4:].abs()
    x, states = Noise(seed).stream("ice").normal((0,), None, (6, N, N))[0], []
    for k in range(records):
        state = MEAN[:, None, None] + SIZE[:, None, None] * x
        state[[0, 1, 2, 5]] = state[[0, 1, 2, 5]].clamp(min=0)
        state[1:3] = state[1:3].clamp(max=1)
        states.append(state)
        x = 0.7 * x + 0.3 * weather[k, [0, 1, 1, 2, 3, 4]]
    data = torch.where(layout.mask[0], torch.cat((torch.stack(states), weather), 1), torch.nan).numpy()
    fields = {n: (("time", "lat", "lon"), data[:, i]) for i, n in enumerate((*layout.names, *forcing.names))}
    dates = {"time": [START + k * HALF for k in range(records)]}
    return xr.Dataset(fields, coords=dates).assign_coords(layout.grid.coords)


@pytest.fixture(scope="module")
def config():
    small = gensim.GenSIMConfig(network=TINY, window=(16, 16), halo=(2, 2), n_steps=2)
    return fitted(small, *layouts(), [truth()])


@pytest.fixture
def model(config):
    return gensim.GenSIM.untrained(*layouts(), config, mesh=mesh(), seed=1)


@pytest.fixture
def windows(model):
    return windows_of(model, [truth()], in_memory=True)


# --- learning -----------------------------------------------------------------------------------------


def test_training_learns(model, windows, tmp_path):
    loss = CensoredFlow(patches=4, log_scale_rate=2e-2)
    recipe = Recipe(60, weight_decay=1e-3, loss=loss, **(SINGLE | {"learning_rate": 1e-2}))
    before = [p.clone() for p in model.network.parameters()]
    trained = train(model, windows, recipe, folder=tmp_path, validation=windows, validate_every=20)
    loss = column(tmp_path / "validation.csv", "loss")
    assert len(loss) == 3 and loss[-1] < loss[0] - 0.08, loss
    channels = [column(tmp_path / "validation.csv", n)[-1] for n in gensim.STATES]
    assert np.mean(channels) == pytest.approx(loss[-1], rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, model.network.parameters(), strict=True))
    assert not trained.network.training and trained.running == model.running and trained.mesh is model.mesh
    again = load(tmp_path / "emulator.safetensors")
    assert isinstance(again, gensim.GenSIM) and same(trained, again) and torch.equal(again.mesh, model.mesh)
    kept = torch.load(tmp_path / "restart.pt", weights_only=True)
    assert kept["task"]["log_scale.out_layer.bias"].abs().max() > 1e-2
    groups = kept["optimiser"]["param_groups"]
    assert [g["weight_decay"] for g in groups] == [1e-3, 0.0, 0.0] and groups[0]["betas"] == (0.9, 0.99)
    assert groups[2]["lr"] == pytest.approx(2 * groups[0]["lr"])


def test_a_killed_training_continues_to_the_same_bits(model, windows, tmp_path):
    """Flips, patches, noise and times are functions of the update; the log-scale is in the restart."""
    recipe = Recipe(8, **(SINGLE | {"accumulate": 2, "jitter": 0.1}), loss=CensoredFlow(patches=2))
    whole = train(model, windows, recipe, folder=tmp_path / "whole", validation=windows)
    with pytest.raises(KilledError):
        torch.manual_seed(5)
        train(model, killed_after(windows, 5), recipe, folder=tmp_path / "cut", save_minutes=0)
    torch.manual_seed(7)
    again = train(model, windows, recipe, folder=tmp_path / "cut", resume=True, validation=windows)
    assert same(whole, again)
    one, two = (torch.load(tmp_path / n / "restart.pt", weights_only=True)["task"] for n in ("whole", "cut"))
    assert one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())
    assert sum(k.startswith("log_scale.") for k in one) == 17
    validated = [(tmp_path / n / "validation.csv").read_text() for n in ("whole", "cut")]
    assert validated[0] == validated[1]
    with pytest.raises(ValueError, match="loss: .*patches"):
        train(model, windows, replace(recipe, loss=CensoredFlow(patches=3)), folder=tmp_path / "cut", resume=True)


def test_a_rollout_loss_trains_it_too(model, windows):
    """Two steps of the sampler by CRPS, gradients through windows, bounds and all calls."""
    loss = Loss("crps", members=2)
    batch = windows.batch([Place(0), Place(5)], 2, 1)
    start = batch.start.repeat(2, 1, 1, 1)
    recipe = Recipe(4, batch=2, steps=(2,), learning_rate=3e-3, decay=0.0, loss=loss)
    trained = train(model, windows, recipe)
    with torch.no_grad():
        before, after = (loss.task(m)(batch, start, 2, Noise(0))[0] for m in (model, trained))
    assert before.shape == (2, 6) and float(after.mean()) < float(before.mean())


def test_recomputed_activations_and_bfloat16_agree(model, windows):
    recipe = Recipe(2, loss=CensoredFlow(patches=2), **SINGLE)
    plain = train(model, windows, recipe)
    assert same(plain, train(model, windows, replace(recipe, recompute=True)))
    half = train(model.tuned(Running(bf16=True)), windows, recipe)
    pairs = zip(plain.network.parameters(), half.network.parameters(), strict=True)
    assert not same(plain, half) and all(torch.allclose(a, b, atol=0.02) for a, b in pairs)


def test_dropout_is_drawn_again_alike_when_activations_are_recomputed(model):
    """In steps of the emulator as well."""
    network = gensim.Transformer(replace(TINY, dropout_mlp=0.5)).train()
    noisy = replace(model, network=network, config=replace(model.config, network=network.config))
    batch, found = windows_of(model, [truth(3)]).batch([Place(0)], 1, 1), []
    for recompute in (True, False):
        task = Loss().task(noisy.with_network(network, recompute=recompute))
        torch.manual_seed(0)
        errors, _ = task(batch, batch.start, 1, Noise(0))
        found.append(torch.autograd.grad(errors.mean(), list(network.parameters())))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


# --- the objective ------------------------------------------------------------------------------------


def test_the_objective_is_its_function_on_the_same_draws(model, windows):
    batch, noise = windows.batch([Place(k) for k in (0, 3, 7)], 1, 1), Noise(3).stream("7")
    task = CensoredFlow(augment=False, levels=(1,), patches=2).task(model)
    torch.nn.init.normal_(task.log_scale.out_layer.bias)
    errors, end = task(batch, batch.start, 1, noise)
    u = noise.stream("patches").uniform(batch.numbers, None, (2, 2), dtype=torch.float64)[..., 1]
    where = task.levels[0][2]
    driven = batch.forcings[0].view(3, 2, 8, N, N)
    maps = torch.cat((batch.start, batch.targets[0], driven[:, :, :4].flatten(1, 2), driven[:, 0, 4:]), 1)
    given = torch.cat((maps, mesh().float().expand(3, -1, -1, -1), model.layout.mask[:1].float().expand(3, 1, N, N)), 1)
    padded = torch.nn.functional.pad(given, (2, 2, 2, 2), mode="replicate")
    corner = [where[int(share * len(where))].tolist() for share in u.flatten()]
    x = torch.stack([padded[k // 2, :, i : i + 20, j : j + 20] for k, (i, j) in enumerate(corner)])
    states, forcings, days, place, mask = torch.split(x, (12, 8, 4, 2, 1), 1)
    eps = noise.stream("noise").normal(batch.numbers, None, (2, 6, 20, 20)).flatten(0, 1)
    time = stratified_times(6, noise.stream("times").uniform(batch.numbers[:1], None, ())[0])[:, None]
    told = torch.zeros(6, 3), torch.full((6, 1), 12.5), eps, time, model.config
    given = states.unflatten(1, (2, 6)), forcings.unflatten(1, (2, 4)), days, place, mask, *told
    wanted = flow_errors(model.network, task.log_scale, *given)
    assert errors.shape == (1, 6) and not end.requires_grad and len({tuple(c) for c in corner}) > 3
    torch.testing.assert_close(errors[0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(errors.mean(), flow_loss(model.network, task.log_scale, *given), rtol=1e-4, atol=1e-5)


def test_what_is_on_land_changes_nothing(model, windows):
    batch, dry, found = windows.batch([Place(0), Place(5)], 1, 1), ~model.layout.mask[0], []
    for value in (0.0, 1e3, math.nan):
        names = ("start", "forcings", "targets")
        filled = replace(batch, **{n: torch.where(dry, value, getattr(batch, n)) for n in names})
        task = CensoredFlow().task(model)
        errors, _ = task(filled, filled.start, 1, Noise(0))
        found.append((errors, *torch.autograd.grad(errors.mean(), list(task.parameters()))))
    assert all(g.isfinite().all() for g in found[0])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_coarse_patches_are_means_over_blocks(model, windows):
    """On a map that a patch of twice the cells fills with its padding; ocean where all four cells are."""
    small = replace(model, config=replace(model.config, window=(8, 8), halo=(2, 2)))
    batch = windows.batch([Place(4)], 1, 1)
    task = CensoredFlow(augment=False, levels=(0, 1), patches=3).task(small)
    s = task.sample(batch, batch.start, Noise(2))
    assert s.states.shape == (3, 2, 6, 12, 12) and (s.resolution == 25).all() and not s.labels.any()
    places = task._places(batch.numbers, Noise(2))[0]
    wet = model.layout.mask[0].numpy()
    wide = np.pad(wet, 2, mode="edge")
    for k, (level, (i, j)) in enumerate(places):
        assert level == 2

        def mean(field, i=i, j=j):
            blocks = np.pad(field, 2, mode="edge")[i : i + 24, j : j + 24]
            return blocks.reshape(12, 2, 12, 2).mean((1, 3))

        assert wide[i : i + 24, j : j + 24].mean() > 0.1
        assert np.array_equal(s.mask[k, 0].numpy(), mean(wet.astype(float)) == 1)
        for got, map_ in (
            (s.states[k, 0, 1], batch.start[0, 1]),
            (s.states[k, 1, 4], batch.targets[0, 0, 4]),
            (s.forcings[k, 1, 2], batch.forcings[0, 0, 10]),
            (s.degree_days[k, 3], batch.forcings[0, 0, 7]),
        ):
            assert got.numpy() == pytest.approx(mean(np.where(wet, map_.numpy(), 0.0)), abs=1e-6)
        place = np.stack([mean(m) for m in mesh().numpy()])
        shift = (s.mesh[k].numpy() - place).reshape(2, -1)  # all cells moved alike
        assert np.ptp(shift, axis=1) == pytest.approx(0.0, abs=1e-3)


def test_levels_come_as_often_as_said_and_those_that_do_not_fit_never(model, windows):
    task = CensoredFlow(augment=False, patches=500).task(replace(model, config=replace(model.config, window=(4, 4))))
    assert [level for level, _, _ in task.levels] == [1, 2, 4]  # 8 cells of 8 are more than 36
    drawn = [level for level, _ in task._places((3,), Noise(0))[0]]
    assert [drawn.count(level) / 500 for level in (1, 2, 4)] == pytest.approx([8 / 14, 4 / 14, 2 / 14], abs=0.06)
    assert [level for level, _, _ in CensoredFlow().task(model).levels] == [1]
    filling = replace(model, config=replace(model.config, window=(32, 32)))
    assert CensoredFlow(augment=False).task(filling)._places((0,), Noise(0))[0] == [(1, (0, 0))] * 8
    with pytest.raises(ValueError, match="lies on the map of .32, 32. cells with more than 10% of ocean"):
        CensoredFlow(levels=(0, 0, 0, 1)).task(model)


def test_draws_belong_to_windows(model, windows):
    """Patches of a window are the same in any batch; other windows and updates have others."""
    task, noise = CensoredFlow(patches=3).task(model), Noise(0).stream("1")
    many, one = (windows.batch([Place(k) for k in ks], 1, 1) for ks in (range(6), (4,)))
    whole, alone = (task.sample(b, b.start, noise) for b in (many, one))
    for name in ("states", "forcings", "degree_days", "mesh", "mask", "labels", "resolution"):
        assert torch.equal(getattr(alone, name), getattr(whole, name)[12:15])
    assert len({tuple(row.tolist()) for row in whole.labels}) > 3
    assert not torch.equal(whole.labels, task.sample(many, many.start, Noise(0).stream("2")).labels)
    assert not task.eval().sample(many, many.start, noise).labels.any()


# --- symmetry -----------------------------------------------------------------------------------------


def test_a_turned_sample_is_the_sample_of_a_turned_world(model, windows):
    """A world where ice drifts down a gradient of thickness, positions and all; scalars stay, vectors follow."""
    i = torch.arange(N, dtype=torch.float32)
    y, x = torch.meshgrid(i, i, indexing="ij")
    hills = torch.sin(x / 3) + torch.cos(y / 5) + 0.1 * x
    along = torch.gradient(hills, dim=(1, 0))
    batch = windows.batch([Place(0)], 1, 1)
    start, forcings = batch.start.clone(), batch.forcings.clone()
    start[0, 0], start[0, 3], start[0, 4] = hills, *along
    forcings[0, 0, 2], forcings[0, 0, 3], forcings[0, 0, 10], forcings[0, 0, 11] = *along, *along
    batch = replace(batch, start=start, forcings=forcings, targets=start[None])
    free = replace(model, layout=replace(model.layout, grid=all_ocean()), forcing_layout=replace(
        model.forcing_layout, grid=all_ocean()))  # fmt: skip
    plain = CensoredFlow(augment=False, patches=32).task(free).sample(batch, start, Noise(1))
    turned = CensoredFlow(patches=32).task(free).sample(batch, start, Noise(1))
    assert len({tuple(row.tolist()) for row in turned.labels}) > 5
    axes = grid_axes(mesh()).float()
    for k, row in enumerate(turned.labels.bool().tolist()):
        h, place = plain.states[k, 0, :1], plain.mesh[k]
        for move, done in zip((horizontal_flip, vertical_flip, quarter_turn), row, strict=True):
            h = move(h) if done else h
        assert torch.equal(turned.states[k, 0, :1], h) and torch.equal(turned.states[k, 1], turned.states[k, 0])
        inner = (slice(1, -1), slice(1, -1))
        slope = torch.stack(torch.gradient(h[0], dim=(1, 0)))
        for got in (turned.states[k, 0, 3:5], turned.forcings[k, 0, 2:4], turned.forcings[k, 1, 2:4]):
            core = (slice(None), slice(3, -3), slice(3, -3))  # beyond the map's edge all is repeated
            torch.testing.assert_close(got[core], slope[core], rtol=1e-4, atol=1e-4)
        # Neighbours lie where they did, along the grid: columns one way, rows the other.
        steps = [axes.T @ (turned.mesh[k].diff(dim=d)[(slice(None), *inner)]).flatten(1) for d in (2, 1)]
        assert float(steps[0][0].min()) > -1e-3 and float(steps[1][1].min()) > -1e-3
        assert float(steps[0][1].abs().max()) < 1e-2 and float(steps[1][0].abs().max()) < 1e-2
        assert place.shape == turned.mesh[k].shape


def all_ocean():
    grid = layouts()[0].grid
    return grid.assign_coords(wetmask=grid.wetmask | True)


def test_published_turns_carry_everything_along(model, windows):
    batch = windows.batch([Place(0)], 1, 1)
    plain = CensoredFlow(augment=False, patches=32).task(model).sample(batch, batch.start, Noise(1))
    turned = CensoredFlow(vectors=False, patches=32).task(model).sample(batch, batch.start, Noise(1))
    for k, row in enumerate(turned.labels.bool().tolist()):
        for name in ("states", "forcings", "degree_days", "mesh", "mask"):
            x = getattr(plain, name)[k]
            for move, done in zip((horizontal_flip, vertical_flip, quarter_turn), row, strict=True):
                x = move(x) if done else x
            torch.testing.assert_close(getattr(turned, name)[k], x)


def test_the_axes_of_a_grid():
    c, s = math.cos(math.pi / 8), math.sin(math.pi / 8)
    torch.testing.assert_close(grid_axes(mesh()), torch.tensor([[c, -s], [s, c]], dtype=torch.float64))
    torch.testing.assert_close(grid_axes(mesh().flip(1)), torch.tensor([[c, s], [s, -c]], dtype=torch.float64))


# --- wrong use ----------------------------------------------------------------------------------------


def test_wrong_objectives_are_refused(model, windows):
    with pytest.raises(ValueError, match=r"CensoredFlow is an objective of single steps"):
        Recipe(3, steps=(1, 2), loss=CensoredFlow())
    with pytest.raises(ValueError, match="trains a GenSIM, got Persistence"):
        CensoredFlow().task(Persistence(model.layout, HALF))
    sizes = replace(TINY, n_augment_in=1)
    other = gensim.GenSIM.untrained(*layouts(), replace(model.config, network=sizes))
    with pytest.raises(ValueError, match="told by 3 labels, and the network takes 1"):
        CensoredFlow().task(other)
    assert CensoredFlow(augment=False).task(other)
    for wrong in ({"levels": ()}, {"levels": (0, 0)}, {"levels": (1, -1)}, {"patches": 0}):
        with pytest.raises(ValueError, match="levels are drawn in proportion"):
            CensoredFlow(**wrong)
    with pytest.raises(ValueError, match="share that can be exceeded"):
        CensoredFlow(least_ocean=1.0)
    batch = windows.batch([Place(0)], 1, 1)
    with pytest.raises(ValueError, match="single steps, got 2"):
        CensoredFlow().task(model)(batch, batch.start, 2, Noise(0))
