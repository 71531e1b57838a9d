"""The regional sea-ice models against the original's numbers: network, loss, schedule; and what samplers must do."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polynya.emulators import diffusion, flow, regional
from polynya.emulators.free_drift import drift
from polynya.emulators.regional_loss import diffusion_error, diffusion_loss, increment_loss
from polynya.emulators.regional_scaling import after, encode, increment, residual
from polynya.emulators.state import LayoutError
from polynya.emulators.uvit import UVIT_L, UVIT_S, UViT, UViTConfig, weight_decay_groups

DATA = Path(__file__).parent / "data" / "seaice"
CONFIG = DATA / "regional_tiny_config.json"
WEIGHTS = {kind: DATA / f"regional_tiny_{kind}.safetensors" for kind in ("deterministic", "diffusion")}


def arrays(name):
    return {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(DATA / f"regional_{name}.npz").items()}


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=5e-6)


@pytest.fixture(scope="module")
def networks():
    return {kind: regional.load_network(path, CONFIG) for kind, path in WEIGHTS.items()}


@pytest.fixture(scope="module")
def io():
    return arrays("network_forward")


@pytest.fixture(scope="module")
def residual_model(networks):
    """An untrained residual network around the deterministic one."""
    c = regional.read_config(CONFIG)
    sizes = replace(c.diffusion, n_input=23)
    torch.manual_seed(3)
    network = UViT(sizes).eval()
    for name, p in network.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(p, 0.5)
    constants = {"residual_mean": (0.01, 0.0, -0.01, 0.002, 0.0), "residual_scale": (0.08, 0.02, 0.04, 0.04, 0.05)}
    return network, replace(c, diffusion=sizes, **constants), networks["deterministic"]


# --- against the original -----------------------------------------------------------------------------


def test_the_networks_are_the_originals_at_every_layer(networks, io):
    seen, network = {}, networks["diffusion"]

    def keep(name, module):
        return module.register_forward_hook(lambda _m, _x, y: seen.__setitem__(name, y))

    named = {"time_emb": network.time_embedder, "aug_emb": network.augment_embedder}
    named |= {"down0_b0": network.down_blocks[0].blocks[0], "downscale0": network.down_blocks[0].downscale}
    named |= {"upscale0": network.up_blocks[0].upscale}
    hooks = [keep(name, module) for name, module in named.items()]
    c, states = regional.read_config(CONFIG), io["states"][:, 0]
    hooks.append(network.bottleneck[0].register_forward_hook(lambda _m, x, y: seen.__setitem__("bottleneck0", y)))
    with torch.no_grad():
        seen["encoded"] = encode(states, io["forcings"], c)
        given = torch.cat((io["noised"], seen["encoded"]), 1)
        seen["v_prediction"] = network(given, io["labels"], io["normalized_gamma"])
        seen["det_output"] = networks["deterministic"](seen["encoded"], torch.zeros(2, 3))
        seen["det_prediction"] = regional.forecast(
            networks["deterministic"], io["states"], io["forcings"], None, CONFIG
        )
    for hook in hooks:
        hook.remove()
    wanted = io["bottleneck0"].shape  # as maps there, as tokens here
    seen["bottleneck0"] = seen["bottleneck0"].transpose(1, 2).reshape(wanted)
    assert seen.keys() == io.keys() - {"states", "forcings", "noised", "normalized_gamma", "labels"}
    for name, value in seen.items():
        close(value, io[name])
    close(increment(states, states + 0.1, c) * torch.tensor(c.std)[:, None, None], torch.full_like(states, 0.1))


def test_the_loss_and_the_schedule_are_the_originals(networks):
    io, c = arrays("v_loss"), regional.read_config(CONFIG)
    schedule = diffusion.AdaptiveSchedule()
    gamma = schedule.gamma(io["time"])
    close(gamma, io["gamma"])
    density = schedule.density(gamma)
    close(density, io["density"])
    x_g, v = diffusion.noised(io["target"], io["noise"], gamma)
    close(x_g, io["noised"])
    network, level = networks["diffusion"], (io["gamma"].flatten(1) + 20) / 40
    with torch.no_grad():
        predicted = network(torch.cat((x_g, io["encoded"]), 1), io["labels"], level)
        flat = gamma.flatten()
        error = diffusion_error(network, io["target"], io["encoded"], io["labels"], io["noise"], flat, c)
    close(predicted, io["v_prediction"])
    close(diffusion.v_error(v, predicted, gamma), io["weighted_error"])
    close(error, io["weighted_error"])
    close(diffusion.v_loss(error, density)[None], io["loss"])
    x, eps = diffusion.denoised(io["noised"], io["v_prediction"], io["gamma"])
    close(x, io["denoised"])
    again, _ = diffusion.noised(x, eps, io["gamma"])
    close(again, io["noised"])
    for _ in range(int(io["sched_n_updates"])):
        schedule = schedule.updated(io["sched_update_gamma"], io["sched_update_target"])
    close(schedule.bins, io["sched_bin_values"])
    close(schedule.gamma(torch.linspace(0, 1, 11)), io["sched_gamma_at_t11"])
    close(schedule.density(io["sched_gamma_at_t11"]), io["sched_density_at_t11"])


def test_free_drift_is_the_originals():
    io = arrays("freedrift_velocity")
    close(drift(io["wind"]), io["velocity"])
    assert torch.linalg.vector_norm(drift(torch.tensor([10.0, 0.0]))) == pytest.approx(0.174)
    assert drift(torch.tensor([10.0, 0.0]))[1] < 0  # to the right of the wind


@pytest.mark.parametrize(
    ("file", "config", "number"),
    [
        ("s_nin13", UVIT_S, 7_624_453),
        ("l_nin18", UVIT_L, 19_417_669),
        ("l_nin23", replace(UVIT_L, n_input=23), 19_417_989),
    ],
)
def test_published_keys_shapes_and_number_of_parameters(file, config, number):
    with torch.device("meta"):
        network = UViT(config)
    wanted = json.loads((DATA / f"regional_uvit_{file}_keys.json").read_text())
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == {k: v[0] for k, v in wanted.items()}
    assert sum(p.numel() for p in network.parameters()) == number


def test_sizes_of_noise_are_the_originals():
    """The 20-interval nodes of the published sampler, of which the last interval ends at data."""
    wanted = (
        *(148.41, 110.22, 80.777, 58.352, 41.49, 28.989, 19.867, 13.325, 8.7232, 5.557, 3.4318, 2.0451, 1.1694),
        *(0.63694, 0.32745, 0.15697, 0.069022, 0.027203, 0.0092916, 0.0026107),
    )
    got = [math.exp(-gamma / 2) for gamma in diffusion.karras_levels(20)]
    assert got == pytest.approx(wanted, rel=5e-5)
    assert regional.read_config(None).calls == 39
    with pytest.raises(ValueError, match="at least 1 step"):
        diffusion.karras_levels(0)


# --- samplers -----------------------------------------------------------------------------------------


def by_hand(network, states, forcings, noise, c, first_guess=None):
    """Heun's method as Karras et al. (2022) write it, in the noised space of y = x + s eps."""
    told, x, labels = encode(states[:, 0], forcings, c), states[:, 0], torch.zeros(len(states), 3, dtype=states.dtype)
    guess = None if first_guess is None else first_guess(told, labels)
    told = told if guess is None else torch.cat((told, guess), 1)
    s = [math.exp(-g / 2) for g in diffusion.karras_levels(c.n_steps, c.rho, c.gamma_min, c.gamma_max)]

    def denoise(y, s):
        alpha = 1 / math.sqrt(1 + s * s)
        level = torch.full((len(y), 1), (-2 * math.log(s) + 20) / 40, dtype=y.dtype)
        v = network(torch.cat((alpha * y, told), 1), labels, level)
        return alpha * (alpha * y) - s * alpha * v

    y = noise * math.sqrt(1 + s[0] ** 2)
    for a, b in itertools.pairwise(s):
        d = (y - denoise(y, a)) / a
        ahead = y + (b - a) * d
        y = y + (b - a) * 0.5 * (d + (ahead - denoise(ahead, b)) / b) if c.second_order else ahead
    z, low, high = denoise(y, s[-1]), *(torch.tensor(b, dtype=x.dtype)[:, None, None] for b in (c.lower, c.upper))
    size, m, scale = (
        torch.tensor(n, dtype=x.dtype)[..., None, None] for n in (c.std, c.residual_mean, c.residual_scale)
    )
    return (x + size * z if guess is None else x + size * guess + m + scale * z).clamp(low, high)


@pytest.mark.parametrize("change", [{}, {"second_order": False}, {"n_steps": 20}, {"n_steps": 2}, {"gamma_max": 10.0}])
def test_the_sampler_is_the_one_of_karras(io, change):
    c = replace(regional.read_config(CONFIG), **change)
    network = regional.load_network(WEIGHTS["diffusion"], c).double()
    states, forcings, noise = (io[k].double() for k in ("states", "forcings", "noised"))
    calls = []
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        got = regional.forecast(network, states, forcings, noise, c)
        hook.remove()
        wanted = by_hand(network, states, forcings, noise, c)
        single = regional.forecast(network.float(), io["states"], io["forcings"], io["noised"], c)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    close(single, got.float())
    assert len(calls) == 2 * c.calls
    assert (got[:, :3] >= 0).all() and (got[:, 1:3] <= 1).all()


def test_the_sampler_samples_gaussian_data_with_second_order():
    """Of data N(m, c^2) the denoiser is known, and y - m grows as sqrt(c^2 + s^2)."""
    m, c = 0.7, 0.4
    eps = torch.linspace(-2, 2, 9, dtype=torch.float64)

    def v(x_g, gamma):
        g = torch.tensor(gamma, dtype=torch.float64)
        alpha, sigma = g.sigmoid().sqrt(), (-g).sigmoid().sqrt()
        best = m + alpha * c**2 / (alpha**2 * c**2 + sigma**2) * (x_g - alpha * m)
        return (alpha * x_g - best) / sigma

    def error(n, second_order=True):
        levels = diffusion.karras_levels(n, gamma_max=20.0)
        s = math.exp(-levels[0] / 2)
        exact = m + (eps * math.sqrt(1 + s * s) - m) * c / math.sqrt(c * c + s * s)
        return float((diffusion.sample(v, eps, levels, second_order=second_order) - exact).abs().max())

    assert error(160) < 1e-3
    assert error(80) / error(160) == pytest.approx(4, rel=0.1)
    assert error(80, False) / error(160, False) == pytest.approx(2, rel=0.1)


def test_a_residual_forecast_corrects_the_deterministic_one(residual_model, io):
    network, c, guess = residual_model
    given = io["states"], io["forcings"]
    with torch.no_grad():
        y = regional.forecast(network, *given, io["noised"], c, first_guess=guess)
        alone = regional.forecast(guess, *given, None, c)
        wanted = by_hand(network, *given, io["noised"], c, guess)
        told = encode(io["states"][:, 0], io["forcings"], c)
        z = residual(io["states"][:, 0], y, guess(told, torch.zeros(2, 3)), c)
    close(y, wanted)
    assert float((y - alone).abs().max()) > 1e-2
    inside = (y > torch.tensor(c.lower)[:, None, None]) & (y < torch.tensor(c.upper)[:, None, None])
    again = after(io["states"][:, 0], guess(told, torch.zeros(2, 3)), c, z)
    close(again[inside], y[inside])  # what `residual` takes off, `after` puts on
    for missing in ({}, {"first_guess": network}):
        with pytest.raises(regional.ConfigError, match="needs the deterministic network"):
            regional.forecast(network, *given, io["noised"], c, **missing)
    with pytest.raises(regional.ConfigError, match="needs mean and scale of the residual"):
        none = replace(c, residual_mean=(), residual_scale=())
        regional.forecast(network, *given, io["noised"], none, first_guess=guess)


def test_a_sample_alone_is_the_same_to_the_bit(networks, io):
    given = io["states"], io["forcings"], io["noised"]
    with torch.no_grad():
        both = regional.forecast(networks["diffusion"], *given, CONFIG)
        for i in (0, 1):
            alone = regional.forecast(networks["diffusion"], *(v[i : i + 1] for v in given), CONFIG)
            assert torch.equal(alone[0], both[i])
        how = regional.Running(one_at_a_time=False)
        close(regional.forecast(networks["diffusion"], *given, CONFIG, running=how), both)


def test_bfloat16_is_close(networks, io):
    given = io["states"], io["forcings"], io["noised"], CONFIG
    with torch.no_grad():
        half, full = (
            regional.forecast(networks["diffusion"], *given, running=regional.Running(bf16=b)) for b in (True, False)
        )
    change = (full - io["states"][:, 0]).square().mean(dim=(0, 2, 3)).sqrt()
    error = (half - full).square().mean(dim=(0, 2, 3)).sqrt()
    assert half.dtype == torch.float32 and (error > 0).all() and (error < 0.05 * change).all()


# --- training -----------------------------------------------------------------------------------------


def test_losses_have_right_gradients(residual_model, io):
    """Against finite differences, of all three kinds; the first guess is not trained."""
    _, residual_config, guess = residual_model
    c = regional.read_config(CONFIG)
    later = io["states"] + 0.05 * torch.randn(2, 1, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    states, forcings, labels = (v.double() for v in (torch.cat((io["states"], later), 1), io["forcings"], io["labels"]))
    schedule = diffusion.AdaptiveSchedule()
    gamma = schedule.gamma(flow.stratified_times(2, torch.tensor(0.3, dtype=torch.float64)))
    eps, frozen = io["noised"].double(), UViT(guess.config).double().eval()

    def deterministic(network):
        return increment_loss(network, states, forcings, labels, c)

    def direct(network):
        return diffusion_loss(network, states, forcings, labels, eps, gamma, schedule, c)[0]

    def of_residual(network):
        return diffusion_loss(
            network, states, forcings, labels, eps, gamma, schedule, residual_config, first_guess=frozen
        )[0]

    tiny = [regional.load_network(WEIGHTS[k], c).double() for k in ("deterministic", "diffusion")]
    cases = [*zip((deterministic, direct), tiny, strict=True), (of_residual, UViT(residual_config.diffusion).double())]
    for loss, network in cases:
        network.eval()
        weight = network.in_encoder.weight
        value = loss(network)
        (gradient,) = torch.autograd.grad(value, weight)
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        moved = []
        for h in (1e-6, -1e-6):
            with torch.no_grad():
                weight += h * direction
                moved.append(float(loss(network)))
                weight -= h * direction
        assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)
    with torch.no_grad():  # the residual one again, from its definition
        network, rc, told = cases[2][1], residual_config, encode(states[:, 0], forcings, c)
        d, g = frozen(told, labels), gamma[:, None, None, None]
        std, m, scale = (torch.tensor(n)[:, None, None] for n in (c.std, rc.residual_mean, rc.residual_scale))
        x_g, v = diffusion.noised((states[:, 1] - states[:, 0] - std * d - m) / scale, eps, g)
        error = network(torch.cat((x_g, told, d), 1), labels, (gamma[:, None] + 20) / 40) - v
        wanted = 0.5 * (torch.exp(-g / 2) / (1 + torch.exp(-g)) * error.square() / 0.01).mean()
        assert float(of_residual(network)) == pytest.approx(float(wanted), rel=1e-6)
    _, samples = diffusion_loss(tiny[1], states, forcings, labels, eps, gamma, schedule, c)
    assert samples.shape == (2,) and not samples.requires_grad
    with pytest.raises(regional.ConfigError, match="needs the deterministic network"):
        diffusion_loss(cases[2][1], states, forcings, labels, eps, gamma, schedule, residual_config)


def test_levels_are_drawn_with_the_density_of_the_histogram():
    bins = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    schedule = diffusion.AdaptiveSchedule(bins)
    gamma = schedule.gamma(flow.stratified_times(200_000, torch.tensor(0.5, dtype=torch.float64)))
    counts = torch.histc(gamma, 100, -20, 20) / len(gamma)
    torch.testing.assert_close(counts, bins / bins.sum(), rtol=0, atol=1e-4)
    assert float((schedule.density(gamma) - (bins / bins.sum())[((gamma + 20) / 0.4).long()]).abs().max()) == 0


def test_dropout_acts_in_training_only(io):
    torch.manual_seed(0)
    network = UViT(UViTConfig(n_features=8, n_bottleneck=1, n_embedding=8, n_heads=2))
    for name, p in network.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(p)
    x, labels = io["encoded"], io["labels"]
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(x, labels), network(x, labels))
        network.train()
        assert not torch.equal(network(x, labels), network(x, labels))


def test_weight_decay_is_of_matrices(networks):
    decay, free = weight_decay_groups(networks["diffusion"])
    assert "in_encoder.weight" in decay and "bottleneck.0.attention.qkv_layer.weight" in decay
    assert not any("embedd" in n or n.endswith(("gamma", "bias")) for n in decay)
    assert {"out_decoder.0.weight", "time_embedder.1.weight", "bottleneck.0.mlp.gamma"} <= set(free)


# --- wrong input --------------------------------------------------------------------------------------


def test_wrong_input_is_explained(networks, io):
    def run(network="diffusion", **changes):
        given = {"states": io["states"], "forcings": io["forcings"], "noise": io["noised"], "config": CONFIG} | changes
        return regional.forecast(networks[network], **given)

    hole = io["states"].clone()
    hole[1, 0, 2, 3, 4] = torch.nan
    with pytest.raises(LayoutError, match="states are not finite in 1 ocean cells, the first in sample 1, row 3, col"):
        run(states=hole)
    mask = torch.ones(2, 1, 16, 16)
    mask[..., 3, 4] = 0
    hole.requires_grad_()
    filled = run(states=hole, mask=mask)  # land may hold anything
    assert torch.equal(filled, run(states=hole.detach().nan_to_num(7.0), mask=mask))
    assert (filled[..., 3, 4] == 0).all() and torch.autograd.grad(filled.sum(), hole)[0].isfinite().all()
    with pytest.raises(LayoutError, match=r"wanted forcings \(2, 2, 4, 16, 16\), got \(2, 1, 4, 16, 16\)"):
        run(forcings=io["forcings"][:, :1])
    with pytest.raises(LayoutError, match=r"wanted noise \(2, 5, 16, 16\)"):
        run(noise=io["noised"][:1])
    with pytest.raises(LayoutError, match="cannot tile a grid of 16 x 14"):
        run(**{k: io[n][..., :14] for k, n in (("states", "states"), ("forcings", "forcings"), ("noise", "noised"))})
    with pytest.raises(regional.ConfigError, match="a diffusion network needs noise"):
        run(noise=None)
    with torch.no_grad():
        assert torch.equal(run("deterministic"), run("deterministic", noise=None))
    with pytest.raises(regional.ConfigError, match="corrects no first guess"):
        run(first_guess=networks["deterministic"])
    with pytest.raises(ValueError, match="needs a noise level"):
        networks["diffusion"](torch.zeros(1, 18, 16, 16), torch.zeros(1, 3))
