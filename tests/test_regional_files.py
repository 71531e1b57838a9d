"""Weights and configurations of the regional models: published forms are read, others are refused with reasons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polynya.emulators import regional
from polynya.emulators.checkpoint import CheckpointError
from polynya.emulators.regional_files import load_residual

DATA = Path(__file__).parent / "data" / "seaice"
CONFIG = DATA / "regional_tiny_config.json"
WEIGHTS = {kind: DATA / f"regional_tiny_{kind}.safetensors" for kind in ("deterministic", "diffusion")}


@pytest.fixture(scope="module")
def networks():
    return {kind: regional.load_network(path, CONFIG) for kind, path in WEIGHTS.items()}


def test_a_file_of_another_architecture_is_refused(tmp_path):
    good, path = load_file(WEIGHTS["diffusion"]), tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match=r"lacks down_blocks.1.blocks.1.*has other shapes for.*instead of"):
        regional.load_network(WEIGHTS["diffusion"])
    with pytest.raises(CheckpointError, match=r"of a regional UViT, but .* lacks"):
        regional.load_network(DATA / "gensim_tiny.safetensors", CONFIG)
    save_file({k: v for k, v in good.items() if k != "in_encoder.bias"}, path)
    with pytest.raises(CheckpointError, match=r"lacks in_encoder.bias; load it with the configuration"):
        regional.load_network(path, CONFIG)
    save_file(good | {"other.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"has besides other.weight"):
        regional.load_network(path, CONFIG)
    with pytest.raises(CheckpointError, match=r"start with 'det_network.'"):
        regional.load_network(path, CONFIG, part="det_network.")
    path.write_bytes(b"not a file of weights")
    for name in (path, path.rename(tmp_path / "w.ckpt")):
        if name.exists():
            with pytest.raises(CheckpointError, match="cannot be read as one"):
                regional.load_network(name, CONFIG)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        regional.load_network(tmp_path / "absent.safetensors", CONFIG)


def test_published_checkpoints_are_read(tmp_path, networks):
    """Lightning's form: averaged weights are preferred, and a residual model brings its first guess along."""
    path = tmp_path / "residual.ckpt"
    det, own = (load_file(WEIGHTS[k]) for k in ("deterministic", "diffusion"))
    state = {f"network.{k}": 0 * v for k, v in own.items()} | {f"ema_model.module.{k}": v for k, v in own.items()}
    state |= {"ema_model.n_averaged": torch.tensor(3), "scheduler.bins": torch.ones(100), "encoder.mean": torch.ones(1)}
    renamed = {k.replace("branch_layer.2", "branch_layer.3"): v for k, v in det.items()}
    state |= {f"det_network.{k}": v for k, v in renamed.items()}
    state |= {"residual_mean": torch.arange(5.0)[:, None, None], "residual_scale": torch.ones(5, 1, 1)}
    torch.save({"state_dict": state, "epoch": 7}, path)
    loaded = regional.load_network(path, CONFIG)
    guess = regional.load_network(path, CONFIG, part="det_network.")
    for got, kind in ((loaded, "diffusion"), (guess, "deterministic")):
        pairs = zip(got.state_dict().values(), networks[kind].state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) and got.config == networks[kind].config
    assert load_residual(path) == ((0.0, 1.0, 2.0, 3.0, 4.0), (1.0,) * 5)
    with pytest.raises(CheckpointError, match="wanted residual_mean"):
        load_residual(WEIGHTS["diffusion"])


def test_wrong_configurations_are_explained():
    good = json.loads(CONFIG.read_text())
    cases = {
        "got numbers": good | {"decoder": good["decoder"] | {"mean": [1.0] * 4}},
        "n_layers": good | {"diffusion": good["diffusion"] | {"n_layers": 3}},
        "n_heads = ": good | {"diffusion": good["diffusion"] | {"n_heads": 0}},
        "equal width": good | {"diffusion": good["diffusion"] | {"n_heads": 3}},
        "one for each level": good | {"diffusion": good["diffusion"] | {"n_up_blocks": [1]}},
        "embed positions": good | {"diffusion": good["diffusion"] | {"n_mesh_hidden": 4}},
        "could not convert": good | {"encoder": {"mean": ["warm"]}},
        "are positive": good | {"sampler": {"timesteps": 0}},
        "levels grow": good | {"sampler": {"gamma_min": 20}},
        "shift of 0": good | {"weighting": {"shift": 1.0}},
    }
    for words, config in cases.items():
        with pytest.raises(regional.ConfigError, match=words):
            regional.read_config(config)
    c = regional.read_config(good | {"sampler": {"timesteps": 3, "second_order": False}})
    assert c.calls == 3 and c.weight == 0.5 and c.lower[3] == -math.inf
    with pytest.raises(regional.ConfigError, match="the network takes 14 and gives 5 channels without"):
        regional.load_network(
            WEIGHTS["deterministic"], good | {"deterministic": good["deterministic"] | {"n_input": 14}}
        )
