"""GenSIM as an Emulator: the contract of all emulators, exact land skipping, its cost, and the adjoint."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import test_emulators as contract
import torch
from small import START, small_grid
from torch.utils.flop_counter import FlopCounterMode

from polynya.emulators import Field, GivenNoise, Layout, LayoutError, Noise, State, gensim
from polynya.emulators.gensim_cost import call_operations, operations, published_operations
from polynya.emulators.tiles import tiling
from polynya.emulators.transformer import Transformer, TransformerConfig

DATA = Path(__file__).parent / "data" / "seaice"
TINY = TransformerConfig(
    n_features=16, n_blocks=3, n_heads=2, n_features_head=8, n_rope_features=4, n_embedding=8, n_input=24
)
MEMBERS = (0, 1, 2)
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def emulator(running=None, **config):
    grid = small_grid(levels=1)
    layout = Layout(tuple(Field(n) for n in gensim.STATES), grid)
    forcing = Layout(tuple(Field(n) for n in gensim.FORCINGS + gensim.DEGREE_DAYS), grid, (0, 1), timedelta(hours=12))
    small = gensim.GenSIMConfig(network=TINY, window=(4, 4), halo=(2, 2), **({"n_steps": 3} | config))
    return gensim.GenSIM.untrained(layout, forcing, small).tuned(running)


def ice(layout):
    """A state of ice of all kinds, some of it at its bounds."""
    shape = layout.shape[1:]
    z = Noise(3).normal(MEMBERS, START, (6, *shape))
    u = torch.special.ndtr(z)
    free = u[:, 1:2] < 0.2
    parts = (2 * u[:, :1], u[:, 1:2], u[:, 2:3], 0.1 * z[:, 3:5], 0.2 * u[:, 5:])
    data = torch.cat([p.masked_fill(free, 0.0) for p in parts], 1)
    return State(data * layout.mask, START, layout, MEMBERS)


def weather(layout, like):
    c = gensim.GenSIMConfig()
    mean, std = (torch.tensor(v)[:, None, None] for v in (c.input_mean, c.input_std))
    mean, std = (torch.cat((v[6:10], v[14:], v[10:])) for v in (mean, std))
    z = Noise(4).normal(like.members, START, layout.shape)
    return State((mean + std * z).to(like.data) * layout.mask, like.time, layout, like.members)


def case_of(model):
    return model, ice(model.layout), lambda state: weather(model.forcing_layout, state)


class TestContract:
    """What every emulator must do; see test_emulators.py."""

    @pytest.fixture
    def case(self):
        return case_of(emulator())

    test_protocol = staticmethod(contract.test_satisfies_the_protocol_and_moves_time)
    test_pure = staticmethod(contract.test_a_step_is_pure)
    test_batch = staticmethod(contract.test_a_member_does_not_depend_on_its_batch)
    test_land = staticmethod(contract.test_land_stays_land)
    test_pickles = staticmethod(contract.test_pickles)


class TestContractInDouble:
    @pytest.fixture
    def case(self):
        model = emulator()
        model.network.double().requires_grad_(False)
        return case_of(model)

    test_float64 = staticmethod(contract.test_float64_in_float64_out)
    test_taylor = staticmethod(contract.test_the_gradient_of_five_steps_passes_a_taylor_test)
    test_tangent_and_adjoint = staticmethod(contract.test_tangent_and_adjoint_agree)


def test_bounds_hold_for_every_member_at_every_step():
    model = emulator(n_steps=2)
    state, forcing = ice(model.layout), weather(model.forcing_layout, ice(model.layout))
    for _ in range(12):
        with torch.no_grad():
            state = model.step(state, forcing, Noise(5))
        assert state["siconc"].max() <= 1 and state["sidamage"].max() <= 1 and state.data.isfinite().all()
        assert all(state[n].min() >= 0 for n in ("sithick", "siconc", "sidamage", "sisnthick"))
    assert state.time == START + 12 * timedelta(hours=12)
    assert (state["siconc"] == 0).any() and state.data.std(0).max() > 0


def test_noise_is_an_argument_drawn_per_member():
    model = emulator()
    state, forcing = ice(model.layout), weather(model.forcing_layout, ice(model.layout))
    drawn = Noise(9).stream("gensim").normal(MEMBERS, START, model.layout.shape)
    with torch.no_grad():
        one = model.step(state, forcing, Noise(9))
        two = model.step(state, forcing, GivenNoise({"gensim": drawn}, MEMBERS))
        other = model.step(state, forcing, Noise(10))
    assert torch.equal(one.data, two.data) and not torch.equal(one.data, other.data)
    assert "5 network calls" in repr(model) and model.tuned(n_steps=1).config.calls == 1


def test_loads_from_a_file_and_steps_as_the_function_does():
    model = emulator()
    config = json.loads((DATA / "gensim_tiny_config.json").read_text()) | {"patch_size": [4, 4], "overlap_size": [2, 2]}
    path, mesh = DATA / "gensim_tiny.safetensors", 12.5 * torch.randn(2, 8, 12)
    loaded = replace(gensim.GenSIM.load(path, model.layout, model.forcing_layout, config), mesh=mesh)
    assert len(loaded.checkpoint) == 64 and loaded.checkpoint[:12] in repr(loaded)
    state = ice(model.layout)
    driven = weather(model.forcing_layout, state)
    atmosphere, days = driven.data.unflatten(1, (2, 8)).split(4, 2)
    mesh, mask = (v.expand(3, -1, -1, -1) for v in (mesh, model.layout.mask[:1].float()))
    drawn = Noise(0).stream("gensim").normal(MEMBERS, START, model.layout.shape)
    with torch.no_grad():
        got = loaded.step(state, driven, Noise(0)).data
        wanted = gensim.forecast(loaded.network, state.data[:, None], atmosphere, days[:, 0], mesh, mask, drawn, config)
    assert torch.equal(got, wanted)


def test_wrong_layouts_are_named():
    model = emulator()
    with pytest.raises(LayoutError, match="GenSIM: wanted states"):
        gensim.GenSIM(model.network, model.layout.select(gensim.STATES[::-1]), model.forcing_layout, model.config)
    with pytest.raises(gensim.ConfigError, match="load it with that"):
        gensim.GenSIM(model.network, model.layout, model.forcing_layout)
    with pytest.raises(gensim.TilingError, match="cannot tile a grid of 8 x 12"):
        model.tuned(window=(6, 6))
    with pytest.raises(LayoutError, match="GenSIM needs forcing"):
        model.step(ice(model.layout), None, Noise(0))


# --- land ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_skipping_land_changes_nothing(together, dtype):
    """Windows without ocean, windows of all ocean, coasts within a patch: the same to rounding, gradient too."""
    torch.manual_seed(0)
    network = Transformer(TransformerConfig(**vars(TINY) | {"n_features": 48})).to(dtype).eval()
    config = gensim.GenSIMConfig(network=network.config, window=(8, 8), halo=(4, 4), n_steps=2)
    mask = (torch.rand(1, 1, 32, 24) > 0.4).to(dtype)
    mask[..., :16, :16] = 0
    mask[..., 16:, 8:] = 1
    line = 12.5 * torch.arange(32, dtype=dtype)
    mesh = torch.stack(torch.meshgrid(line[:24], line, indexing="xy"))[None]
    sizes = ((1, 6), (2, 4), (4,), (6,))
    states, forcings, days, noise = (torch.randn(1, *n, 32, 24, dtype=dtype) for n in sizes)
    states.requires_grad_()
    results = []
    for skip in (True, False):
        how = gensim.Running(skip_land=skip, together=together)
        y = gensim.forecast(network, states, forcings, days, mesh, mask, noise, config, how)
        results += [y.detach(), torch.autograd.grad(y.sin().sum(), states)[0]]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert float((results[0] - results[2]).abs().max()) < tolerance * float(results[0].abs().max())
    assert float((results[1] - results[3]).abs().max()) < 5 * tolerance * float(results[1].abs().max())
    windows = tiling(mesh[0], mask[0], (8, 8), (4, 4), 2)
    assert windows.windows == 12 and len(windows.groups) < 12 and windows.lengths[-1][1] == windows.tokens


def test_the_full_network_is_one_window_of_it():
    torch.manual_seed(1)
    network = Transformer(TINY).eval()
    x, mesh = torch.randn(1, 24, 8, 12), 100 * torch.randn(1, 2, 8, 12)
    mask = (torch.rand(1, 1, 8, 12) > 0.4).float()
    mask[..., :4, 6:] = 0
    told = torch.tensor([[0.3]]), torch.zeros(1, 3), torch.tensor([[12.5]])
    group = tiling(mesh[0], mask[0], (8, 12), (0, 0), 2).groups[0]
    cut = group.gather(torch.cat((x, torch.ones(1, 1, 8, 12)), 1) * mask)
    place, e = network.position(group.mesh, told[2]), network.embedder(*told)
    with torch.no_grad():
        got = torch.zeros(1, 6, 96)
        got[..., group.goals] = group.select(network.tokens(cut, place, group.ocean, e, group.skipped, group.wanted))
        wanted = network(x, mesh, mask, *told)
    assert group.skipped > 0
    torch.testing.assert_close(got.view_as(wanted), wanted, rtol=1e-5, atol=1e-6)


def test_the_real_mask_needs_less_than_half_the_operations():
    bits = np.load(DATA / "grid_creg025_512_part.npz")["mask_bits"]
    mask = torch.from_numpy(np.unpackbits(bits).reshape(1, 512, 512)).float()
    assert int(mask.sum()) == 127_152
    config = gensim.GenSIMConfig()
    windows = tiling(torch.zeros(2, 512, 512), mask, config.window, config.halo, 2)
    ours, published = sum(call_operations(config, windows)), sum(published_operations(config, windows))
    assert (windows.windows, len(windows.groups), windows.tokens) == (64, 55, 1600)
    assert published == pytest.approx(6.98e12, rel=0.01)
    assert published / ours > 2.4


def test_operations_are_counted_right():
    network = Transformer(TINY).eval()
    mask = (torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    group = tiling(torch.randn(2, 8, 8), mask, (8, 8), (2, 2), 2).groups[0]
    tokens, wanted = group.cells.shape[1], group.wanted
    network.plain_attention = True  # the counter knows matrix products
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        given = (torch.randn(1, tokens, 100), group.mesh[..., :2], group.ocean, torch.zeros(1, 8))
        network.tokens(*given, group.skipped, wanted)
    gates = 2 * 8 * (3 * 2 + 2 + 1) * 16  # of the embedding, once a call and not once a token
    assert group.skipped and wanted < tokens
    assert counter.get_total_flops() - gates == sum(operations(TINY, tokens, tokens + 1, wanted))


# --- adjoint ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def differentiable():
    """The fixtures' network in float64, five Heun steps, and what a forecast is a function of."""
    io = np.load(DATA / "gensim_step_censored.npz")
    step = {k: torch.from_numpy(io[k][:1]).double() for k in io.files}
    step = {k: v[..., 8:40, 8:40] for k, v in step.items() if v.ndim > 3}
    config = gensim.read_config(json.loads((DATA / "gensim_tiny_config.json").read_text()))
    network = gensim.load_network(DATA / "gensim_tiny.safetensors", config).double().requires_grad_(False)

    def run(states, forcings, noise, running=None, **change):
        days, mesh, mask = step["degree_days"], step["mesh"], step["mask"]
        how = replace(config, **change)
        return gensim.forecast(network, states, forcings, days, mesh, mask, noise, how, running)

    torch.manual_seed(2)
    x = tuple(step[k] for k in ("states", "forcings", "noise"))
    sizes = (config.std, config.input_std[6:10], (1.0,) * 6)
    v = tuple(torch.randn_like(a) * torch.tensor(s).double()[:, None, None] for a, s in zip(x, sizes, strict=True))
    return run, x, v, torch.randn(1, 6, 32, 32, dtype=torch.float64)


def test_dot_product_of_the_whole_sampler(differentiable):
    """<M v, w> = <v, M^T w> with respect to state, forcing and noise together."""
    run, x, v, w = differentiable
    _, tangent = torch.func.jvp(run, x, v)
    given = tuple(a.clone().requires_grad_() for a in x)
    adjoint = torch.autograd.grad(run(*given), given, w)
    left, right = float((tangent * w).sum()), sum(float((a * b).sum()) for a, b in zip(v, adjoint, strict=True))
    assert abs(left - right) <= 1e-10 * abs(left)
    assert all(float(a.abs().max()) > 0 for a in adjoint)


FREE = {"censoring": False, "lower": (-torch.inf,) * 6, "upper": (torch.inf,) * 6}


@pytest.mark.parametrize("change", [FREE, {}], ids=["free", "censored"])
def test_taylor_remainder_of_the_whole_sampler(differentiable, change):
    """|J(x + h v) - J(x) - h <grad J, v>| falls as h^2 in state, forcing and noise.

    J has a kink wherever one of thousands of clamps, or of ReLUs in the head, switches; the sizes lie below the first.
    """
    run, x, _, w = differentiable
    c = gensim.GenSIMConfig()
    torch.manual_seed(1)
    scales = (c.std, c.input_std[6:10], (1.0,) * 6)
    v = [torch.randn_like(a) * torch.tensor(s)[:, None, None] for a, s in zip(x, scales, strict=True)]
    given = tuple(a.clone().requires_grad_() for a in x)
    start = run(*given, **change)
    slope = sum(float((a * b).sum()) for a, b in zip(v, torch.autograd.grad(start, given, w), strict=True))
    sizes = 1e-5 / 2.0 ** np.arange(3)
    with torch.no_grad():
        moved = [run(*(a + h * b for a, b in zip(x, v, strict=True)), **change) - start for h in sizes]
    remainders = [abs(float((w * m).sum()) - h * slope) for m, h in zip(moved, sizes, strict=True)]
    slopes = -np.diff(np.log2(remainders))
    assert (np.abs(slopes - 2) < 0.02).all(), (slopes, remainders)


def test_recomputing_gives_the_same_gradient_and_keeps_less(differentiable):
    run, x, _, w = differentiable
    gradients, kept = [], []
    for recompute in (True, False):
        given = tuple(a.clone().requires_grad_() for a in x)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            y = run(*given, gensim.Running(recompute=recompute))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(y, given, w)]))
        kept.append(sum(saved))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert kept[0] < kept[1] / 5, kept
