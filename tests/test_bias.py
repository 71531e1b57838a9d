"""Biases that are learned from innovations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_quality import DAY, plain, scattered

from polynya.da import innovation
from polynya.da.bias import Debiased
from polynya.emulators import State


def biased(seed, count=200):
    """Observations of a truth of 0 by an anchor and by an instrument that reads 0.5 too much; a background near 0."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(["anchor", "drifting"], count)
    value = 0.1 * rng.standard_normal(2 * count) + np.where(kind == "drifting", 0.5, 0.0)
    layout = plain()
    obs = scattered(layout, 2 * count, seed).replace(value=value, kind=kind)
    return State(torch.zeros(1, *layout.shape), DAY, layout, (0,)), obs


def test_a_bias_is_learned_and_the_anchor_is_left_alone():
    debiased = Debiased(("drifting",), ("zos", "thetao"))
    carried = debiased.initial
    raw = []
    for k in range(8):
        state, obs = biased(k)
        raw.append(obs.value[obs.kind == "drifting"])
        corrected = debiased.correct(obs, carried)
        assert np.array_equal(corrected.value[obs.kind == "anchor"], obs.value[obs.kind == "anchor"])
        carried = debiased.step(innovation(state, corrected), carried)
    weight, bias = carried["drifting", "zos"]
    assert weight == 1600 and np.isclose(bias, np.mean(raw)) and abs(bias - 0.5) < 0.01  # the mean of all
    assert carried["drifting", "thetao"] == (0.0, 0.0) and set(carried) == set(debiased.types)
    assert abs(debiased.correct(biased(99)[1], carried).value[200:].mean()) < 0.03


def test_a_bias_with_memory_follows_and_a_prior_holds_back():
    debiased = Debiased(("drifting",), ("zos",), memory=3.0)
    carried, state = {("drifting", "zos"): (1e4, 5.0)}, biased(0)[0]
    for k in range(60):
        carried = debiased.step(innovation(state, debiased.correct(biased(k)[1], carried)), carried)
    weight, bias = carried["drifting", "zos"]
    assert abs(bias - 0.5) < 0.02 and np.isclose(weight, 600, rtol=1e-3)
    careful = Debiased(("drifting",), ("zos",), prior=200.0)
    obs = biased(0)[1]
    after = careful.step(innovation(state, obs), careful.initial)["drifting", "zos"]
    assert np.isclose(after[1], obs.value[200:].sum() / 400)


def test_what_a_bias_carries_can_be_stored():
    debiased = Debiased(("a", "b"), ("zos", "so"))
    carried = {t: (float(k), -0.1 * k) for k, t in enumerate(debiased.types)}
    flat = debiased.flat(carried)
    assert flat.dtype == torch.float64 and flat.shape == (8,) and debiased.carried(flat) == carried
    with pytest.raises(ValueError, match="wanted 8 numbers"):
        debiased.carried(flat[:-1])
