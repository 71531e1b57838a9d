"""Losses against the original trainer's numbers, and against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scoringrules
import torch
from test_emulators import network_emulator

from polynya.emulators.losses import SAMUDRA2, Dynamic, Loss
from polynya.emulators.samudra import load_network

DATA = Path(__file__).parent / "data" / "samudra"


@pytest.mark.parametrize("recompute", [False, True])
def test_two_training_steps_are_the_originals(recompute: bool) -> None:
    """Loss, gradients and batch-norm statistics; recomputed blocks do not count their batch twice."""
    given = {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(DATA / "v2_tiny_train_step.npz").items()}
    network = load_network(DATA / "v2_tiny.pt").train()
    network.recompute = recompute
    weight = given["mask"].float() / given["mask"][0].numel()
    state, errors = given["prognostic"], torch.zeros(42)
    for k in (1, 2):
        state = network(state, given[f"boundary{k}"], given["mask"])
        errors = errors + SAMUDRA2.errors(state[None], given[f"label{k}"], weight)
    assert torch.allclose(errors, given["loss_per_channel"], rtol=1e-4)
    errors.mean().backward()
    assert errors.mean().item() == pytest.approx(given["loss"].item(), rel=1e-5)
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert norm.item() == pytest.approx(given["grad_norm"].item(), rel=1e-4)
    for key, wanted in given.items():
        # A bias that a normalisation follows has no gradient but rounding.
        if key.startswith("grad/") and not key.endswith(("convblock.0.bias", "convblock.3.bias")):
            assert (gradients[key[5:]] - wanted).abs().max() <= 1e-4 * wanted.abs().max(), key
    buffers = dict(network.named_buffers())
    for key, wanted in given.items():
        if key.startswith("buf_after/"):
            assert torch.allclose(buffers[key[10:]], wanted, rtol=1e-5), key


@pytest.mark.parametrize("limit", [None, 20.0])
def test_dynamic_weights_are_the_originals(limit: float | None) -> None:
    reference = np.load(DATA / "loss_and_ema_reference.npz")
    dynamic, scale = Dynamic(limit), torch.ones(21)
    for errors, wanted in zip(reference["raw_losses"], reference[f"scale_limit_{limit}"], strict=True):
        scale = dynamic.updated(scale, torch.from_numpy(errors))
        assert np.abs(scale.numpy() / wanted - 1).max() < 1e-6
    assert torch.isfinite(dynamic.updated(torch.ones(2), torch.tensor([0.0, 1.0]))).all()


def test_fair_crps_is_that_of_scoringrules_with_the_maps_weights() -> None:
    torch.manual_seed(0)
    ensemble, target = torch.randn(5, 3, 2, 4, 6, dtype=torch.float64), torch.randn(3, 2, 4, 6, dtype=torch.float64)
    weight = torch.rand(2, 4, 6, dtype=torch.float64)
    ours = Loss("crps", members=5).errors(ensemble, target, weight)
    theirs = scoringrules.crps_ensemble(target.numpy(), ensemble.numpy(), m_axis=0, estimator="fair")
    assert np.allclose(ours.numpy(), (theirs * weight.numpy()).sum((-1, -2)).mean(0), rtol=1e-12)


def test_area_weights_are_the_areas_of_wet_cells_and_cells_count_alike() -> None:
    emulator = network_emulator()
    mask = emulator.layout.mask.numpy()
    area = np.where(mask, emulator.layout.grid["areacello"].values, 0.0)
    wanted = area / area.sum((1, 2), keepdims=True)
    assert np.allclose(Loss().map_weights(emulator).numpy(), wanted, rtol=1e-6)
    cells = Loss(weights="cells").map_weights(emulator).numpy()
    assert np.allclose(cells, mask / mask[0].size)
    assert Loss(units="std").unit(emulator) is emulator.scaling.std
    assert Loss().unit(emulator) is emulator.scaling.increment


def test_mean_absolute_error() -> None:
    one, two = torch.tensor([1.0, -3.0]).view(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    assert Loss("mae").errors(one, two, torch.full((1, 1, 2), 0.5)).item() == 2.0
    assert Loss("mse").errors(one, two, torch.full((1, 1, 2), 0.5)).item() == 5.0


def test_impossible_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="kind of a loss is one of"):
        Loss("huber")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 members for 'crps'"):
        Loss("crps")
    with pytest.raises(ValueError, match="a limit of at least 1"):
        Dynamic(limit=0.5)
