"""GenSIM against the original's numbers: network, sampler, a whole step, the loss and its gradient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from polynya.emulators import flow, gensim
from polynya.emulators.checkpoint import CheckpointError
from polynya.emulators.gensim_files import load_log_scale
from polynya.emulators.gensim_loss import flow_loss
from polynya.emulators.gensim_scaling import decode, encode, increment, latent_bounds
from polynya.emulators.state import LayoutError
from polynya.emulators.transformer import LogScale, Transformer, TransformerConfig, patches, unpatched
from polynya.emulators.transformer import weight_decay_groups as decay_groups

DATA = Path(__file__).parent / "data" / "seaice"
WEIGHTS, CONFIG = DATA / "gensim_tiny.safetensors", DATA / "gensim_tiny_config.json"
NAMES = ("states", "forcings", "degree_days", "mesh", "mask", "noise")


def arrays(name):
    return {k: torch.from_numpy(v) for k, v in np.load(DATA / f"gensim_{name}.npz").items() if v.dtype.kind in "fi"}


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=5e-6)


@pytest.fixture(scope="module")
def network():
    return gensim.load_network(WEIGHTS, CONFIG)


@pytest.fixture(scope="module")
def step():
    return arrays("step_censored")


# --- against the original -----------------------------------------------------------------------------


def test_the_network_is_the_originals_at_every_layer(network):
    io, seen = arrays("network_forward"), {}

    def keep(name, module):
        return module.register_forward_hook(lambda _m, _x, y: seen.__setitem__(name, y))

    blocks = [*network.in_blocks, *network.bottleneck, *network.out_blocks]
    named = {f"block{i}": b for i, b in enumerate(blocks)}
    named |= {"tokens": network.tokenizer, "embedding": network.embedder}
    named |= {"attn0": blocks[0].self_attention, "mlp0": blocks[0].mlp_layer}
    hooks = [keep(name, module) for name, module in named.items()]
    told = [io[k] for k in ("pseudo_time", "labels", "resolution")]
    with torch.no_grad():
        seen["output"] = network(io["in_tensor"], io["mesh"], io["mask"], *told)
        seen["log_scale"] = load_log_scale(DATA / "gensim_tiny_logscale.safetensors", CONFIG)(*told)
    for hook in hooks:
        hook.remove()
    seen["tokens_mesh_before_resolution"] = network.position(patches(io["mesh"], 2), torch.ones(2, 1))
    seen["tokens_mask"] = patches(io["mask"], 2).amax(-1, keepdim=True)
    given = {"in_tensor", "mesh", "mask", "pseudo_time", "labels", "resolution"}
    assert seen.keys() == io.keys() - given
    for name, value in seen.items():
        close(value, io[name])


def test_a_censored_step_is_the_originals(network, step):
    config, x = gensim.read_config(CONFIG), step["states"][:, 0]
    close(encode(x, step["forcings"], step["degree_days"], step["mask"], config), step["encoded"])
    lower, upper = latent_bounds(x, step["mask"], config)
    close(lower, step["latent_lower"])
    close(upper, step["latent_upper"])
    close(decode(x, step["dynamics"], step["mask"], config), step["prediction"])
    with torch.no_grad():
        got = gensim.forecast(network, *(step[k] for k in NAMES), CONFIG)
    close(got, step["prediction"])
    close(increment(x, got, step["mask"], config), increment(x, step["prediction"], step["mask"], config))


@pytest.mark.parametrize(
    ("key", "args"),
    [("n20_scale3_shift05", (20, 3, 0.5)), ("n5_scale3_shift05", (5, 3, 0.5)), ("n4_scale0", (4, 0, 0))],
)
def test_times_are_the_originals(key, args):
    close(torch.tensor(flow.time_nodes(*args)), arrays("schedule")[key])


def test_likelihoods_are_the_originals():
    io = arrays("nll_funcs")
    v = io["value"]
    yes, no = torch.ones_like(v, dtype=torch.bool), torch.zeros_like(v, dtype=torch.bool)
    zero, s = torch.zeros_like(v), torch.tensor(0.3)
    unit = v * (1 + 1e-5)  # the original divides by exp(s) + 1e-5
    close(flow.censored_nll(unit, zero, zero, yes, no), io["neglogcdf"])
    close(flow.censored_nll(zero, unit, zero, no, yes), io["neglogcdf"])
    close(flow.censored_nll(v * (s.exp() + 1e-5), zero, s, no, no), io["neglogpdf_logscale03"])


def test_loss_and_gradients_are_the_originals():
    io, config = arrays("loss"), gensim.read_config(CONFIG)
    network = gensim.load_network(WEIGHTS, CONFIG)
    scale = load_log_scale(DATA / "gensim_tiny_logscale.safetensors", CONFIG)
    names = ("states", "forcings", "degree_days", "mesh", "mask", "labels", "resolution", "noise")
    loss = flow_loss(network, scale, *(io[k] for k in names), io["sampled_time"].flatten(1), config)
    loss.backward()
    close(loss.detach()[None], io["loss"])
    wanted = dict(zip(np.load(DATA / "gensim_loss.npz")["grad_norm_names"], io["grad_norm"].tolist(), strict=True))
    got = {name: float(p.grad.norm()) for name, p in network.named_parameters()}
    assert got == pytest.approx(wanted, rel=1e-5)
    assert all(p.grad is not None for p in scale.parameters())
    t = io["sampled_time"]
    r = increment(io["states"][:, 0], io["states"][:, 1], io["mask"], config)
    close(r, io["residual"])
    for got_one, key in zip(flow.on_path(r, io["noise"], t), ("noised_residual", "velocity"), strict=True):
        close(got_one, io[key])
    assert float((flow.stratified_times(2, t[0, 0, 0, 0]) - t[:, 0, 0, 0]).abs().max()) < 1e-6


def test_released_keys_shapes_and_number_of_parameters():
    with torch.device("meta"):
        network, scale = Transformer(TransformerConfig()), LogScale(TransformerConfig())
    wanted = json.loads((DATA / "gensim_state_dict_keys.json").read_text())
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == {k: v[0] for k, v in wanted.items()}
    assert sum(p.numel() for p in network.parameters()) == 28_121_088
    assert sum(p.numel() for p in scale.parameters()) == 1_579_014
    assert sum(b.numel() for b in network.buffers()) == 1_280


def test_weight_decay_is_the_originals(network):
    wanted = json.loads((DATA / "gensim_weight_decay_groups.json").read_text())
    assert [sorted(names) for names in decay_groups(network)] == [wanted["decay"], wanted["no_decay"]]


# --- what follows from the definition -----------------------------------------------------------------


def test_more_of_the_same_kind(network, step):
    """Euler, uncensored, other windows, fewer steps: finite, bounded, and different."""
    given, base = [step[k] for k in NAMES], json.loads(CONFIG.read_text())
    variants = {
        "as it is": {},
        "euler": {"sampler": base["sampler"] | {"second_order": False}},
        "uncensored": {"sampler": base["sampler"] | {"censoring": False}},
        "larger windows": {"patch_size": [24, 48], "overlap_size": [8, 2]},
        "one step": {"sampler": base["sampler"] | {"n_steps": 1}},
    }
    seen = []
    for change in variants.values():
        with torch.no_grad():
            y = gensim.forecast(network, *given, base | change)
        assert y.isfinite().all() and (y[(step["mask"] == 0).expand_as(y)] == 0).all()
        assert (y[:, [0, 1, 2, 5]] >= 0).all() and (y[:, 1:3] <= 1).all()
        assert all(float((y - other).abs().max()) > 1e-4 for other in seen)
        seen.append(y)


def test_the_bounded_sampler_ends_within_its_bounds():
    torch.manual_seed(0)
    eps = torch.randn(1000, dtype=torch.float64)
    lower = -torch.rand(1000, dtype=torch.float64)
    bounds = (lower, torch.full_like(lower, torch.inf))
    for second_order in (True, False):
        calls = []
        end = flow.sample(
            lambda x, t, calls=calls: calls.append(t) or -3 * x - 1,
            eps,
            flow.time_nodes(7),
            second_order=second_order,
            bounds=bounds,
        )
        assert len(calls) == (13 if second_order else 7)
        assert float((end - lower).min()) > -1e-12
        assert float((end == end.clamp(min=lower + 1e-9)).double().mean()) < 1  # and some are at their bound


def test_heun_is_of_second_order_and_euler_of_first():
    """dx/dt = x - t has the solution (x_0 - 1) e^t + t + 1; Heun's last interval is Euler's, h^2 once."""
    x = torch.tensor([0.3], dtype=torch.float64)
    exact = (x - 1) * np.e + 2

    def error(n, second_order):
        return float((flow.sample(lambda x, t: x - t, x, flow.time_nodes(n), second_order=second_order) - exact).abs())

    assert error(200, True) / error(400, True) == pytest.approx(4, rel=0.05)
    assert error(200, False) / error(400, False) == pytest.approx(2, rel=0.05)


def test_a_sample_alone_is_the_same_to_the_bit(network, step):
    with torch.no_grad():
        both = gensim.forecast(network, *(step[k] for k in NAMES), CONFIG)
        for i in (0, 1):
            alone = gensim.forecast(network, *(step[k][i : i + 1] for k in NAMES), CONFIG)
            assert torch.equal(alone[0], both[i])
        batch = gensim.forecast(network, *(step[k] for k in NAMES), CONFIG, gensim.Running(one_at_a_time=False))
    close(batch, both)


def test_bfloat16_is_close(network, step):
    with torch.no_grad():
        half, full = (
            gensim.forecast(network, *(step[k] for k in NAMES), base)
            for base in (json.loads(CONFIG.read_text()) | {"bf16": True}, CONFIG)
        )
    change = (full - step["states"][:, 0]).square().mean(dim=(0, 2, 3)).sqrt()
    error = (half - full).square().mean(dim=(0, 2, 3)).sqrt()
    assert half.dtype == torch.float32 and (error > 0).all() and (error < 0.02 * change).all()


def test_patches_there_and_back():
    x = torch.randn(2, 3, 6, 8)
    assert torch.equal(unpatched(patches(x, 2), (6, 8), 2), x)


# --- wrong input --------------------------------------------------------------------------------------


def test_a_file_of_another_architecture_is_refused(tmp_path):
    good, path = load_file(WEIGHTS), tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match=r"lacks in_blocks.2.*has other shapes for.*instead of"):
        gensim.load_network(WEIGHTS)
    save_file({k: v for k, v in good.items() if k != "head.out_layer.weight"}, path)
    with pytest.raises(CheckpointError, match=r"lacks head.out_layer.weight; load it with the configuration"):
        gensim.load_network(path, CONFIG)
    save_file(good | {"unet.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"has besides unet.weight"):
        gensim.load_network(path, CONFIG)
    with pytest.raises(CheckpointError, match="cannot be read as one"):
        path.write_bytes(b"not a file of weights")
        gensim.load_network(path, CONFIG)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        gensim.load_network(tmp_path / "absent.safetensors", CONFIG)


def test_prefixes_of_training_are_taken_off(tmp_path, network):
    path = tmp_path / "w.safetensors"
    save_file({f"other.{k}": v for k, v in load_file(WEIGHTS).items()}, path)
    with pytest.raises(CheckpointError, match="has besides other"):
        gensim.load_network(path, CONFIG)
    save_file({f"_orig_mod.network.{k}": v.half() for k, v in load_file(WEIGHTS).items()}, path)
    again = gensim.load_network(path, CONFIG)
    assert again.head.out_layer.weight.dtype == torch.float32
    close(again.head.out_layer.weight.detach(), network.head.out_layer.weight.detach().half().float())


def test_a_repository_is_read_through_its_client(monkeypatch):
    asked = []

    def download(*args, **kwargs):
        asked.append((args, kwargs))
        return str(WEIGHTS)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    gensim.load_network("tobifinn/GenSIM", CONFIG, file="model_weights.safetensors")
    gensim.load_network("tobifinn/GenSIM", CONFIG, revision="abc")
    assert asked == [
        (("tobifinn/GenSIM", "model_weights.safetensors"), {"revision": None}),
        (("tobifinn/GenSIM", "model_weights_ema.safetensors"), {"revision": "abc"}),
    ]


def test_wrong_configurations_are_explained(tmp_path):
    good = json.loads(CONFIG.read_text())
    cases = {
        "constants of 5 states": good | {"decoder": good["decoder"] | {"std": [1.0] * 5}},
        "got numbers": good | {"decoder": good["decoder"] | {"mean": [1.0] * 5}},
        "n_layers": good | {"network": good["network"] | {"n_layers": 3}},
        "got n_heads = 0": good | {"network": good["network"] | {"n_heads": 0}},
        "could not convert": good | {"encoder": {"mean": ["warm"]}},
        "are positive": good | {"resolution": 0},
        "half of n_features_head": good | {"network": good["network"] | {"n_rope_features": 3}},
        "at least 3 blocks": good | {"network": good["network"] | {"long_skips": False}},
    }
    for words, config in cases.items():
        with pytest.raises(gensim.ConfigError, match=words):
            gensim.read_config(config)
    (tmp_path / "c.json").write_text("[1")
    with pytest.raises(gensim.ConfigError, match="cannot be read as JSON"):
        gensim.read_config(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="check the path"):
        gensim.read_config(tmp_path / "absent.json")
    assert gensim.read_config(None).calls == 39
    assert gensim.read_config(good).network.n_features == 48


def test_wrong_input_is_explained(network, step):
    def run(config=None, **changes):
        given = step | changes
        return gensim.forecast(network, *(given[k] for k in NAMES), (config or {}) | json.loads(CONFIG.read_text()))

    hole = step["states"].clone()
    row, column = (int(i) for i in step["mask"][1, 0].nonzero()[5])
    hole[1, 0, 2, row, column] = torch.nan
    with pytest.raises(LayoutError, match=rf"states are not finite in 1 cells .* sample 1, row {row}, column {column}"):
        run(states=hole)
    with pytest.raises(LayoutError, match="forcings are not finite"):
        run(forcings=step["forcings"] / 0)
    with pytest.raises(LayoutError, match=r"wanted mask \(2, 1, 48, 48\), got \(2, 1, 48, 40\)"):
        run(mask=step["mask"][..., :40])
    with pytest.raises(LayoutError, match="wanted forcings"):
        run(forcings=step["forcings"][:, :1])
    with pytest.raises(gensim.TilingError, match="1 for ocean and 0 for land"):
        run(mask=step["mask"] * 0.5)
    cut = {k: v[..., :40] for k, v in step.items()}
    with pytest.raises(gensim.TilingError, match="cannot tile a grid of 48 x 40; extend it by land to 48 x 48"):
        run(**cut)
    config = json.loads(CONFIG.read_text())
    for change in ({"patch_size": [15, 16]}, {"overlap_size": [3, 4]}):
        with pytest.raises(gensim.TilingError, match="cannot tile windows"):
            gensim.forecast(network, *(step[k] for k in NAMES), config | change)


def test_land_may_hold_anything(network, step):
    """NaN and fill values on land, as stores have them, change nothing."""
    dry = step["mask"] == 0
    holes = {k: step[k].masked_fill(dry if step[k].ndim == 4 else dry[:, None], torch.nan) for k in NAMES[:3]}
    with torch.no_grad():
        got, wanted = (gensim.forecast(network, *((step | h)[k] for k in NAMES), CONFIG) for h in (holes, {}))
    assert torch.equal(got, wanted)
