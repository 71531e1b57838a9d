"""The Samudra network against outputs of the original package, and its gradient against mathematics."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polynya.emulators.checkpoint import CheckpointError, load_network
from polynya.emulators.unet import NetworkConfig, SamudraNet

DATA = Path(__file__).parent / "data" / "samudra"
TINY, FOUR = DATA / "v2_tiny.pt", DATA / "v2_4level_tiny.pt"
V1 = {"widths": (200, 250, 300, 400), "expansion": 4, "upsample": "plain"}
SMALL = NetworkConfig(5, 3, (4, 6), (1, 2))
# Forward-mode differentiation compiles some of its formulas by the deprecated torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
FULL_SIZE = [
    ("samudra_om4_v2", NetworkConfig(162, 154), 84_066_474),
    ("samudra_om4_v2_highres", NetworkConfig(162, 154, norm="instance", bf16=True), 84_038_618),
    ("samudra_om4_v1", NetworkConfig(162, 154, **V1), 135_376_762),
    ("v1_original_published", NetworkConfig(158, 154, **V1), 135_142_266),
]


def arrays(name):
    return {key: torch.from_numpy(value) for key, value in np.load(DATA / f"{name}_io.npz").items()}


def listing(name):
    """Key to shape, as written beside the original models."""
    lines = (DATA / "state_dicts" / f"{name}_state_dict.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line]
    return {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, shape, _ in rows}


def state_from(name):
    """Random tensors of the listed keys and shapes."""
    torch.manual_seed(0)
    state = {key: torch.randn(shape).abs() * 0.1 for key, shape in listing(name).items()}
    return {k: torch.tensor(0) if k.endswith("num_batches_tracked") else t for k, t in state.items()}


def example(config, size=(16, 24), batch=2, dtype=torch.float32):
    torch.manual_seed(1)
    x = torch.randn(batch, config.in_channels, *size, dtype=dtype)
    mask = torch.rand(config.out_channels, *size) > 0.3
    return x[:, : config.out_channels], x[:, config.out_channels :], mask


def new(config, seed=2, **how):
    torch.manual_seed(seed)
    return SamudraNet(config, **how).eval()


# --- against the original ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", [TINY, FOUR], ids=lambda p: p.stem)
def test_forward_is_the_originals(path):
    io = arrays(path.stem)
    with torch.no_grad():
        y = load_network(path)(io["prognostic"], io["boundary"], io["mask"])
    rms = io["output"].square().mean().sqrt()
    assert (y - io["output"]).abs().max() <= 1e-5 * rms


def test_three_steps_are_the_originals():
    io, network = arrays("v2_tiny"), load_network(TINY)
    y = io["prognostic"]
    for s in range(3):
        with torch.no_grad():
            y = network(y, torch.roll(io["boundary"], s, -1) * io["mask"][0], io["mask"])
        wanted = io["rollout3"][s]
        assert (y - wanted).abs().max() <= 1e-4 * wanted.square().mean().sqrt()


def test_every_layer_is_the_originals():
    io, network, seen = arrays("v2_tiny"), load_network(TINY), {}
    for i, layer in enumerate(network.unet.layers):
        layer.register_forward_hook(lambda _m, _x, y, i=i: seen.__setitem__(f"trace_layer_{i:02d}", y))
    network.unet.register_forward_hook(lambda _m, _x, y: seen.__setitem__("trace_unet_out", y))
    network.decoder.register_forward_hook(lambda _m, _x, y: seen.__setitem__("trace_decoder_out_unmasked", y))
    with torch.no_grad():
        network(io["prognostic"][:1], io["boundary"][:1], io["mask"])
    traces = {key: value for key, value in io.items() if key.startswith("trace")}
    assert traces.keys() == seen.keys()
    for key in traces:
        torch.testing.assert_close(seen[key], traces[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "config", "parameters"), FULL_SIZE, ids=lambda v: v if isinstance(v, str) else "")
def test_full_size_keys_shapes_and_parameter_counts(name, config, parameters):
    with torch.device("meta"):
        network = SamudraNet(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    wanted = {re.sub(r"^layers\.17", "decoder", key): shape for key, shape in listing(name).items()}
    wanted = {re.sub(r"^layers", "unet.layers", key): shape for key, shape in wanted.items()}
    got = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list(got.items()) == list(wanted.items())  # order too: that of the optimiser's state


@pytest.mark.parametrize(
    ("channels", "out", "parameters"),
    [(160, 154, 84_029_994), (158, 154, 83_993_946)],
)
def test_fewer_forcings(channels, out, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in SamudraNet(NetworkConfig(channels, out)).parameters()) == parameters


def test_thermo_variant_of_version_1():
    with torch.device("meta"):
        network = SamudraNet(NetworkConfig(82, 78, **V1))
    assert sum(p.numel() for p in network.parameters()) == 131_644_366


# --- reading files ----------------------------------------------------------------------------------


def test_what_the_file_tells():
    network = load_network(FOUR)
    assert network.config == NetworkConfig(50, 42, (6, 8, 10, 12), (1, 2, 4, 8), 2, seam="published")
    assert not network.training
    assert all(p.requires_grad and not p.is_meta for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("v1_orig_tiny", NetworkConfig(46, 42, (12, 16, 20), (1, 2, 4), 4, "batch", "plain", "published")),
        ("v1_tiny", NetworkConfig(50, 42, (12, 16, 20), (1, 2, 4), 4, "batch", "plain", "published")),
        ("v2_highres_tiny", NetworkConfig(50, 42, (12, 16, 20), (1, 2, 4), 2, "instance", seam="published")),
    ],
)
@pytest.mark.parametrize("layout", ["bare", "model", "module."])
def test_layouts_are_recognised(tmp_path, name, config, layout):
    state = state_from(name)
    held = {f"module.{k}": t for k, t in state.items()} if layout == "module." else state
    torch.save({"model": held, "epoch": 70} if layout == "model" else held, tmp_path / "net.pt")
    network = load_network(tmp_path / "net.pt")
    assert network.config == config
    last = "layers.13.weight" if "orig" in name else "decoder.weight"
    assert torch.equal(network.decoder.weight, state[last])
    assert network(*example(config, (8, 32))).shape == (2, 42, 8, 32)


def test_what_the_file_cannot_tell_is_an_argument():
    network = load_network(TINY, dilations=(1, 2, 2), upsample="plain", seam="periodic", bf16=True)
    assert network.config.dilations == (1, 2, 2)
    assert (network.config.upsample, network.config.seam, network.config.bf16) == ("plain", "periodic", True)
    with pytest.raises(ValueError, match="one dilation per width"):
        load_network(TINY, dilations=(1, 2))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"wanted a Samudra checkpoint.*ema_ckpt"):
        load_network(tmp_path / "none.pt")


def test_not_a_torch_file(tmp_path):
    (tmp_path / "page.pt").write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match=r"written by torch.save.*cannot be read.*download it again"):
        load_network(tmp_path / "page.pt")
    (tmp_path / "half.pt").write_bytes(TINY.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network(tmp_path / "half.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "wanted a state dict.*got a Tensor"),
        ({"epoch": 3}, "wanted a state dict.*got a dict with 'epoch'"),
        ({}, "got an empty dict"),
        ({"conv.weight": torch.zeros(3)}, "wanted keys of a Samudra U-Net.*has conv.weight"),
    ],
)
def test_foreign_content(tmp_path, content, message):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=message):
        load_network(tmp_path / "foreign.pt")


def test_missing_foreign_and_misshaped_tensors_are_named_and_few(tmp_path):
    state = state_from("v2_tiny")
    for key in [k for k in state if k.startswith("unet.layers.6.") and not k.endswith("0.weight")]:
        del state[key]
    state["positional_params"] = torch.zeros(3)
    state["decoder.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(CheckpointError) as caught:
        load_network(tmp_path / "net.pt")
    text = str(caught.value)
    assert "lacks unet.layers.6.convblock.0.bias" in text and "more" in text
    assert "has besides positional_params" in text
    assert "decoder.bias (7,) instead of (42,)" in text
    assert len(text) < 900


def test_a_lost_encoder_block_is_named(tmp_path):
    state = {k: t for k, t in state_from("v2_tiny").items() if not k.startswith(("unet.layers.2.", "unet.layers.4."))}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"unet\.layers\.2\.convblock\.6\.weight"):
        load_network(tmp_path / "net.pt")


# --- properties -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 24), (37, 90), (11, 13), (5, 9)])
@pytest.mark.parametrize("upsample", ["periodic", "plain"])
def test_any_grid_keeps_its_shape_and_land(size, upsample):
    config = replace(SMALL, upsample=upsample)
    prognostic, boundary, mask = example(config, size)
    y = new(config)(prognostic, boundary, mask)
    assert y.shape == (2, 3, *size)
    assert (y[:, ~mask] == 0).all()
    assert (y[:, mask] != 0).all()


@pytest.mark.parametrize(("width", "changes"), [(24, False), (26, True), (25, True)])
def test_seam_matters_only_where_pooling_drops_a_column(width, changes):
    args = example(SMALL, (16, width))
    published, periodic = (new(replace(SMALL, seam=s))(*args) for s in ("published", "periodic"))
    assert torch.equal(published, periodic) != changes


def test_longitude_has_no_origin_at_even_widths():
    config = replace(SMALL, norm="instance")
    prognostic, boundary, mask = example(config, (12, 24))
    network = new(config)
    rolled = network(prognostic.roll(4, -1), boundary.roll(4, -1), mask.roll(4, -1))
    torch.testing.assert_close(rolled, network(prognostic, boundary, mask).roll(4, -1), rtol=0, atol=1e-5)


def test_plain_upsampling_does_have_an_origin():
    config = replace(SMALL, upsample="plain")
    prognostic, boundary, mask = example(config, (12, 24))
    network = new(config)
    rolled = network(prognostic.roll(4, -1), boundary.roll(4, -1), mask.roll(4, -1))
    assert (rolled - network(prognostic, boundary, mask).roll(4, -1)).abs().max() > 1e-4


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_a_sample_has_the_same_bits_in_any_batch(norm):
    config = NetworkConfig(7, 4, (24, 32), (1, 2), norm=norm)
    prognostic, boundary, mask = example(config, (37, 90), batch=5)
    network = new(config)
    with torch.no_grad():
        alone = torch.cat([network(prognostic[i : i + 1], boundary[i : i + 1], mask) for i in range(5)])
        for batch in (2, 3, 5):
            assert torch.equal(network(prognostic[:batch], boundary[:batch], mask), alone[:batch])
        order = [3, 0, 4]
        assert torch.equal(network(prognostic[order], boundary[order], mask), alone[order])


def test_whole_batches_agree_to_rounding_and_training_uses_them():
    args = example(SMALL)
    single, whole = new(SMALL), new(SMALL, one_at_a_time=False)
    torch.testing.assert_close(whole(*args), single(*args), rtol=1e-4, atol=1e-5)
    assert torch.equal(single.train()(*args), whole.train()(*args))
    assert single.unet.layers[0].convblock[1].num_batches_tracked == 1


def test_nan_on_land_of_the_output_stays_there():
    network = new(SMALL)
    prognostic, boundary, mask = example(SMALL)
    with torch.no_grad():
        network.decoder.bias[1] = torch.nan
    mask[1] = False
    assert network(prognostic, boundary, mask).isfinite().all()


def test_residual_adds_the_state():
    args = example(SMALL)
    absolute, change = new(SMALL)(*args), new(replace(SMALL, residual=True))(*args)
    torch.testing.assert_close(change, absolute + args[0] * args[2])


def test_bfloat16_trunk_is_near_and_the_output_float32():
    args = example(SMALL)
    exact, rounded = new(SMALL)(*args), new(replace(SMALL, bf16=True))(*args)
    assert rounded.dtype == torch.float32
    error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-5 < error < 0.05


def test_activation_is_capped():
    network = new(SMALL)
    y = network.unet.layers[0].convblock[2](torch.tensor([-50.0, 0.0, 1.0, 9.0, 50.0]))
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 0.841345, 9.0, 10.0]))


# --- gradient ---------------------------------------------------------------------------------------


def smooth_case(size=(11, 13)):
    network = new(SMALL).double()
    prognostic, boundary, mask = example(SMALL, size, dtype=torch.float64)
    return (lambda x: network(x, boundary, mask)), prognostic


def test_taylor_remainder_falls_with_the_square():
    f, x = smooth_case()
    torch.manual_seed(3)
    v = torch.randn_like(x)
    y, jv = torch.func.jvp(f, (x,), (v,))
    steps = 10.0 ** -torch.arange(2, 5, dtype=torch.float64)
    remainders = torch.stack([(f(x + h * v) - y - h * jv).norm() for h in steps])
    slopes = (remainders[:-1] / remainders[1:]).log10()
    assert ((slopes - 2).abs() < 0.05).all(), slopes


def test_adjoint_passes_the_dot_product_test():
    f, x = smooth_case()
    torch.manual_seed(4)
    v = torch.randn_like(x)
    y, jv = torch.func.jvp(f, (x,), (v,))
    w = torch.randn_like(y)
    _, pullback = torch.func.vjp(f, x)
    (jtw,) = pullback(w)
    forward, backward = (jv * w).sum(), (v * jtw).sum()
    assert abs(forward - backward) <= 1e-12 * jv.norm() * w.norm()


def test_second_derivatives_exist_and_repeat():
    f, x = smooth_case((5, 9))
    gradient = torch.func.grad(lambda x: f(x).square().sum())
    first, hv = torch.func.jvp(gradient, (x,), (torch.ones_like(x),))
    assert hv.isfinite().all() and hv.norm() > 0
    assert torch.equal(first, gradient(x))


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dilations": (1,)}, "one dilation per width"),
        ({"widths": (), "dilations": ()}, "at least one level"),
        ({"expansion": 0}, "at least 1"),
        ({"norm": "layer"}, "norm is one of"),
        ({"upsample": "cubic"}, "upsample is one of"),
        ({"seam": "zero"}, "seam is one of"),
    ],
)
def test_impossible_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_wrong_inputs_are_refused():
    network, (prognostic, boundary, mask) = new(SMALL), example(SMALL)
    with pytest.raises(ValueError, match=r"takes 5 prognostic plus boundary channels, got 3 \+ 1"):
        network(prognostic, boundary[:, :1], mask)
    with pytest.raises(ValueError, match=r"mask must be .*\(3, 16, 24\), got \(16, 24\)"):
        network(prognostic, boundary, mask[0])
    for size in [(3, 24), (16, 6)]:
        with pytest.raises(ValueError, match="too small"):
            network(*example(SMALL, size))
    assert network(*example(SMALL, (4, 8))).shape[-2:] == (4, 8)
