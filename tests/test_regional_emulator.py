"""The regional models and their baselines as Emulators: the contract of all emulators, bounds, noise, adjoint."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import test_emulators as contract
import torch
from small import START, small_grid

from polynya.emulators import Field, GivenNoise, Layout, LayoutError, Noise, State, regional
from polynya.emulators.correlated import CorrelatedNoise, amplitude_of, factor_of
from polynya.emulators.free_drift import FreeDrift
from polynya.emulators.uvit import UViT, UViTConfig

DATA = Path(__file__).parent / "data" / "seaice"
MEMBERS = (0, 1, 2)
DAY = timedelta(hours=12)
SIZES = UViTConfig(
    n_features=8, n_bottleneck=1, n_down_blocks=(1, 1), n_up_blocks=(1, 1), channel_mul=(1, 2), n_heads=2, n_embedding=8
)
KINDS = ("deterministic", "diffusion", "residual", "correlated", "free drift", "cubic drift")


def layouts(forcings=regional.FORCINGS):
    grid = small_grid(levels=1)
    forcing = Layout(tuple(Field(n) for n in forcings), grid, (0, 1), DAY)
    return Layout(tuple(Field(n) for n in regional.STATES), grid), forcing


def network(n_input, time=True):
    """Random weights that matter, unlike the first ones of a training."""
    torch.manual_seed(n_input)
    net = UViT(replace(SIZES, n_input=n_input, n_time_hidden=8 if time else 0)).eval()
    for name, p in net.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(p, 0.5)
    return net


def emulator(kind, double=False, **config):
    layout, forcing = layouts()
    if "drift" in kind:
        return FreeDrift(layout, forcing, "cubic" if kind == "cubic drift" else "linear")
    constants = {"residual_mean": (0.0,) * 5, "residual_scale": (0.08, 0.02, 0.04, 0.04, 0.05)}
    deterministic, told = network(13, False), {"deterministic": 13, "correlated": 13, "diffusion": 18, "residual": 23}
    main = deterministic if told[kind] == 13 else network(told[kind])
    c = regional.RegionalConfig(**({"n_steps": 3} | constants | config))
    guess = deterministic if kind == "residual" else None
    if double:
        for net in (main, deterministic):
            net.double().requires_grad_(False)
    made = regional.Regional(main, layout, forcing, c, first_guess=guess)
    return noisy(made) if kind == "correlated" else made


def noisy(model):
    layout = model.layout
    errors = Noise(7).normal((0, 1, 2, 3), None, layout.shape).cumsum(-1)
    return CorrelatedNoise(model, amplitude_of(errors), factor_of(torch.tensor([0.08, 0.02, 0.04, 0.03, 0.03])))


def ice(layout):
    """A state of ice of all kinds, some of it at its bounds."""
    z = Noise(3).normal(MEMBERS, START, layout.shape)
    u = torch.special.ndtr(z)
    free = u[:, 1:2] < 0.2
    parts = (2 * u[:, :1], u[:, 1:2], u[:, 2:3], 0.1 * z[:, 3:5])
    data = torch.cat([p.masked_fill(free, 0.0) for p in parts], 1)
    return State(data * layout.mask, START, layout, MEMBERS)


def weather(layout, like):
    c = regional.RegionalConfig()
    mean, std = (torch.tensor(v)[5:, None, None] for v in (c.input_mean, c.input_std))
    z = Noise(4).normal(like.members, START, layout.shape)
    return State((mean + std * z).to(like.data) * layout.mask, like.time, layout, like.members)


def case_of(model):
    return model, ice(model.layout), lambda state: weather(model.forcing_layout, state)


@pytest.mark.parametrize("kind", KINDS)
class TestContract:
    """What every emulator must do; see test_emulators.py."""

    @pytest.fixture
    def case(self, kind):
        return case_of(emulator(kind))

    test_protocol = staticmethod(contract.test_satisfies_the_protocol_and_moves_time)
    test_pure = staticmethod(contract.test_a_step_is_pure)
    test_batch = staticmethod(contract.test_a_member_does_not_depend_on_its_batch)
    test_land = staticmethod(contract.test_land_stays_land)
    test_pickles = staticmethod(contract.test_pickles)


@pytest.mark.parametrize("kind", KINDS)
class TestContractInDouble:
    @pytest.fixture
    def case(self, kind):
        return case_of(emulator(kind, double=True, **FREE))  # bounds have kinks: see below

    test_float64 = staticmethod(contract.test_float64_in_float64_out)
    test_taylor = staticmethod(contract.test_the_gradient_of_five_steps_passes_a_taylor_test)
    test_tangent_and_adjoint = staticmethod(contract.test_tangent_and_adjoint_agree)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_every_member_at_every_step(kind):
    model = emulator(kind, n_steps=2)
    state = ice(model.layout)
    forcing = weather(model.forcing_layout, state)
    for _ in range(12):
        with torch.no_grad():
            state = model.step(state, forcing, Noise(5))
        assert state["siconc"].max() <= 1 and state["sidamage"].max() <= 1 and state.data.isfinite().all()
        assert all(state[n].min() >= 0 for n in ("sithick", "siconc", "sidamage"))
    assert state.time == START + 12 * DAY


@pytest.mark.parametrize(("kind", "stream"), [("diffusion", "regional"), ("correlated", "correlated")])
def test_noise_is_an_argument_drawn_per_member(kind, stream):
    model = emulator(kind)
    state, forcing = ice(model.layout), weather(model.forcing_layout, ice(model.layout))
    drawn = Noise(9).stream(stream).normal(MEMBERS, START, model.layout.shape)
    with torch.no_grad():
        one = model.step(state, forcing, Noise(9))
        two = model.step(state, forcing, GivenNoise({stream: drawn}, MEMBERS))
        other = model.step(state, forcing, Noise(10))
    assert torch.equal(one.data, two.data) and not torch.equal(one.data, other.data)
    without = emulator("deterministic")
    with torch.no_grad():
        pair = [without.step(state, forcing, Noise(n)).data for n in (1, 2)]
    assert torch.equal(*pair)


def test_loads_from_files_and_steps_as_the_function_does(tmp_path):
    layout, forcing = layouts()
    config, paths = DATA / "regional_tiny_config.json", [DATA / f"regional_tiny_{k}.safetensors" for k in KINDS[:2]]
    det, dif = (regional.Regional.load(path, layout, forcing, config) for path in paths)
    assert (det.kind, dif.kind) == ("deterministic", "diffusion") and dif.checkpoint[:12] in repr(dif)
    assert "11 network calls" in repr(dif) and "1 network call;" in repr(det) and dif.tuned(n_steps=2).config.calls == 3
    state, driven = ice(layout), weather(forcing, ice(layout))
    drawn = Noise(0).stream("regional").normal(MEMBERS, START, layout.shape)
    mask, two = layout.mask[None, :1].expand(3, -1, -1, -1), driven.data.unflatten(1, (2, 4))
    with torch.no_grad():
        got = dif.step(state, driven, Noise(0)).data
        wanted = regional.forecast(dif.network, state.data[:, None], two, drawn, config, mask=mask)
    assert torch.equal(got, wanted)
    path, both = tmp_path / "residual.ckpt", network(23)
    parts = {f"ema_model.module.{k}": v for k, v in both.state_dict().items()}
    parts |= {f"det_network.{k}": v for k, v in network(13, False).state_dict().items()}
    torch.save({"state_dict": parts | {"residual_mean": torch.zeros(5), "residual_scale": torch.full((5,), 0.1)}}, path)
    sizes = regional.RegionalConfig(deterministic=replace(SIZES, n_input=13), diffusion=both.config, n_steps=2)
    loaded = regional.Regional.load(path, layout, forcing, sizes)
    assert loaded.kind == "residual" and loaded.config.residual_scale == pytest.approx((0.1,) * 5)
    assert loaded.step(state, driven, Noise(0)).data.isfinite().all()


def test_wrong_layouts_are_named():
    layout, forcing = layouts()
    c = regional.RegionalConfig(deterministic=replace(SIZES, n_input=13), diffusion=network(18).config, n_steps=1)
    assert regional.Regional.untrained(layout, forcing, c).kind == "diffusion"
    det = regional.Regional.untrained(layout, forcing, c, "deterministic", seed=3)
    assert det.kind == "deterministic"
    with pytest.raises(LayoutError, match="Regional: wanted states"):
        regional.Regional(det.network, layout.select(regional.STATES[::-1]), forcing, c)
    with pytest.raises(LayoutError, match="cannot tile a grid of 8 x 12"):
        regional.Regional.untrained(layout, forcing, regional.RegionalConfig(), "deterministic")
    with pytest.raises(LayoutError, match="Regional needs forcing"):
        det.step(ice(layout), None, Noise(0))
    with pytest.raises(LayoutError, match="FreeDrift: wanted states"):
        FreeDrift(layout, forcing.select(("uas", "tas")))
    with pytest.raises(ValueError, match="nearest, linear or cubic"):
        FreeDrift(layout, forcing, "quintic")
    with pytest.raises(LayoutError, match="CorrelatedNoise: wanted one time slot"):
        CorrelatedNoise(det, torch.ones(5, 8, 12), torch.eye(5))


# --- adjoint ------------------------------------------------------------------------------------------


def differentiable(kind):
    """The fixtures' network in float64 with the Heun sampler of 6 intervals, or a residual model around it."""
    io = np.load(DATA / "regional_network_forward.npz")
    c = regional.read_config(DATA / "regional_tiny_config.json")
    nets = [regional.load_network(DATA / f"regional_tiny_{k}.safetensors", c) for k in ("diffusion", "deterministic")]
    dif, det = (n.double().requires_grad_(False) for n in nets)
    if kind == "residual":
        torch.manual_seed(0)
        dif = UViT(replace(c.diffusion, n_input=23)).double().requires_grad_(False).eval()
        for name, p in dif.named_parameters():
            if name.endswith("gamma"):
                p.fill_(1.0)
        scale = {"residual_mean": (0.01, 0.0, 0.0, 0.0, 0.0), "residual_scale": (0.08, 0.02, 0.04, 0.04, 0.05)}
        scale["residual_gain"] = (1.2, 1.0, 0.8, 1.1, 1.3)
        c = replace(c, diffusion=dif.config, **scale)

    def run(states, forcings, noise, running=None, **change):
        how, guess = replace(c, **change), det if kind == "residual" else None
        if kind == "deterministic":
            return regional.forecast(det, states, forcings, None, how, running=running) + 0 * noise
        return regional.forecast(dif, states, forcings, noise, how, first_guess=guess, running=running)

    x = tuple(torch.from_numpy(io[k][:1]).double() for k in ("states", "forcings", "noised"))
    torch.manual_seed(2)
    scales = (c.std, c.input_std[5:9], (1.0,) * 5)
    v = tuple(torch.randn_like(a) * torch.tensor(s).double()[:, None, None] for a, s in zip(x, scales, strict=True))
    return run, x, v, torch.randn(1, 5, 16, 16, dtype=torch.float64)


FREE = {"lower": (-torch.inf,) * 5, "upper": (torch.inf,) * 5}


@pytest.mark.parametrize("kind", ["deterministic", "diffusion", "residual"])
def test_dot_product_of_the_whole_sampler(kind):
    """<M v, w> = <v, M^T w> with respect to state, forcing and noise together."""
    run, x, v, w = differentiable(kind)
    _, tangent = torch.func.jvp(run, x, v)
    given = tuple(a.clone().requires_grad_() for a in x)
    adjoint = torch.autograd.grad(run(*given), given, w)
    left, right = float((tangent * w).sum()), sum(float((a * b).sum()) for a, b in zip(v, adjoint, strict=True))
    assert abs(left - right) <= 1e-10 * abs(left)
    assert all(float(a.abs().max()) > 0 for a in adjoint[: 2 if kind == "deterministic" else 3])


@pytest.mark.parametrize("kind", ["deterministic", "diffusion", "residual"])
@pytest.mark.parametrize("change", [FREE, {}], ids=["free", "bounded"])
def test_taylor_remainder_of_the_whole_sampler(kind, change):
    """|J(x + h v) - J(x) - h <grad J, v>| falls as h^2 in state, forcing and noise, below the first kink."""
    run, x, v, w = differentiable(kind)
    given = tuple(a.clone().requires_grad_() for a in x)
    start = run(*given, **change)
    slope = sum(float((a * b).sum()) for a, b in zip(v, torch.autograd.grad(start, given, w), strict=True))
    sizes = 8e-6 / 2.0 ** np.arange(3)
    with torch.no_grad():
        moved = [run(*(a + h * b for a, b in zip(x, v, strict=True)), **change) - start for h in sizes]
    remainders = [abs(float((w * m).sum()) - h * slope) for m, h in zip(moved, sizes, strict=True)]
    slopes = -np.diff(np.log2(remainders))
    assert (np.abs(slopes - 2) < 0.02).all(), (slopes, remainders)


def test_recomputing_gives_the_same_gradient_and_keeps_less():
    run, x, _, w = differentiable("diffusion")
    gradients, kept = [], []
    for recompute in (True, False):
        given = tuple(a.clone().requires_grad_() for a in x)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            y = run(*given, regional.Running(recompute=recompute))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(y, given, w)]))
        kept.append(sum(saved))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert kept[0] < kept[1] / 5, kept


def test_free_drift_is_differentiable_in_the_wind():
    """Which the contract's test leaves alone; interpolation has kinks where a path crosses a cell, below them none."""
    model = emulator("cubic drift")
    state, forcing = (
        s.to(torch.float64) for s in (ice(model.layout), weather(model.forcing_layout, ice(model.layout)))
    )
    torch.manual_seed(0)
    v, w = torch.randn_like(forcing.data), torch.randn_like(state.data)

    def j(wind):
        return (w * model.step(state, forcing.replace(data=wind), Noise(0)).data).sum()

    wind = forcing.data.clone().requires_grad_()
    value = j(wind)
    slope = float((torch.autograd.grad(value, wind)[0] * v).sum())
    with torch.no_grad():
        remainders = [abs(float(j(forcing.data + h * v) - value) - h * slope) for h in (3e-4, 1.5e-4, 7.5e-5)]
    assert all(a / b > 3.5 for a, b in itertools.pairwise(remainders)), remainders
