"""Perturbations have the variance they claim everywhere it is wet, and belong to their member."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import START, random_state, small_layout

from polynya.emulators import Noise
from polynya.emulators import nature_ocean as nature
from polynya.ensembles import Correlated, White, perturb

MANY = tuple(range(2000))


@pytest.mark.parametrize("kind", [White(), Correlated(3e6), Correlated(3e6, 60.0)])
def test_unit_variance_in_every_wet_cell_and_nothing_on_land(kind: White | Correlated) -> None:
    layout = small_layout()
    drawn = kind.draw(layout, MANY, START, Noise(1))
    assert (drawn[:, ~layout.mask] == 0).all()
    std = drawn.std(0)[layout.mask]
    assert float((std - 1).abs().max()) < 5 / np.sqrt(2 * len(MANY))
    assert float(drawn.mean(0)[layout.mask].abs().max()) < 5 / np.sqrt(len(MANY))


def test_correlation_falls_as_a_gaussian_of_twice_the_variance() -> None:
    """Smoothing white noise with exp(-r²/2L²) gives the correlation exp(-r²/4L²) where the ocean is open."""
    layout = nature.channel().layout.select(["zos"])
    length = 75e3
    drawn = Correlated(length).draw(layout, tuple(range(4000)), START, Noise(2))[:, 0]
    origin, metres = drawn[:, 30, 20], 0.225 * np.radians(1) * 6.371e6
    for away in (1, 2, 4):
        seen = float((origin * drawn[:, 30 + away, 20]).mean())
        assert seen == pytest.approx(np.exp(-((away * metres) ** 2) / (4 * length**2)), abs=0.06)
    around = float((drawn[:, 30, 0] * drawn[:, 30, 79]).mean())  # the sector is periodic
    assert around > 0.8


def test_levels_are_correlated_if_a_depth_is_given() -> None:
    layout = small_layout()
    deep = Correlated(1e6, 1000.0).draw(layout, MANY, START, Noise(1))
    flat = Correlated(1e6).draw(layout, MANY, START, Noise(1))
    assert float((deep[:, 0, 6, 6] * deep[:, 1, 6, 6]).mean()) > 0.9
    assert abs(float((flat[:, 0, 6, 6] * flat[:, 1, 6, 6]).mean())) < 0.1


@pytest.mark.parametrize("kind", [White(), Correlated(2e6, 50.0)])
def test_a_member_is_the_same_in_any_ensemble(kind: White | Correlated) -> None:
    state = random_state(small_layout(), (0,))
    large = perturb(state, 9, amplitude={"thetao": 0.1}, noise=Noise(3), kind=kind)
    small = perturb(state, (7, 2), amplitude={"thetao": 0.1}, noise=Noise(3), kind=kind)
    assert torch.equal(small.data[0], large.data[7]) and torch.equal(small.data[1], large.data[2])
    assert not torch.equal(large.data[0], large.data[1])


def test_amplitudes_are_per_variable_and_in_their_units() -> None:
    state = random_state(small_layout(), (0,))
    ensemble = perturb(state, MANY, amplitude={"thetao": 0.5, "zos": 0.02}, noise=Noise(3))
    wet = state.layout.mask[6]
    assert float((ensemble["zos"] - state["zos"]).std(0)[0][wet].mean()) == pytest.approx(0.02, rel=0.02)
    assert torch.equal(ensemble["uo"], state["uo"].expand_as(ensemble["uo"]))
    scaled = perturb(state, MANY, amplitude=0.5, scale={"thetao": [1.0, 0.1, 0.01]}, noise=Noise(3))
    spread = (scaled["thetao"] - state["thetao"]).std(0)
    for level, wanted in enumerate((0.5, 0.05, 0.005)):
        assert float(spread[level][state.layout.mask[level]].mean()) == pytest.approx(wanted, rel=0.02)


def test_an_ensemble_is_perturbed_member_by_member() -> None:
    ensemble = random_state(small_layout(), (4, 1))
    again = perturb(ensemble, amplitude={"zos": 1.0}, noise=Noise(0))
    assert again.members == (4, 1) and torch.equal(again["thetao"], ensemble["thetao"])


def test_bad_amplitudes_are_refused() -> None:
    state = random_state(small_layout(), (0,))
    with pytest.raises(ValueError, match="amplitude=0.1 has no unit"):
        perturb(state, 3, amplitude=0.1, noise=Noise(0))
    with pytest.raises(ValueError, match=r"no variable\(s\) so to perturb; the state has thetao, uo, zos"):
        perturb(state, 3, amplitude={"so": 0.1}, noise=Noise(0))
