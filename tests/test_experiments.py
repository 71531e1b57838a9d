"""Twin experiments in batches: rows and what is wrong with them, draws, identities between methods, failures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from polynya.da.experiment_methods import Local, Particles
from polynya.da.experiment_static import METHODS, WITHOUT_MEMBERS
from polynya.da.experiment_systems import Drawn, Setup
from polynya.da.experiments import Row, run, shortened
from polynya.da.localise import gaspari_cohn
from polynya.emulators import Noise

torch.set_num_threads(1)
SHORT = Row("lorenz96", "ETKF", 20, 1.04, True, cycles=30, burn_in=10, replicates=3)


def same(a, b, tolerance=1e-12):
    assert float((a.rmse - b.rmse).abs().max()) <= tolerance
    assert float((a.spread - b.spread).abs().max()) <= tolerance


# --- rows ----------------------------------------------------------------------------------------


def test_rows_are_read_from_json(tmp_path):
    given = {"system": "lorenz96", "method": "LETKF", "members": 7, "inflation": 1.04, "rotation": True}
    given |= {"localisation": 4, "obs_error": 1.0, "obs_interval": 1, "cycles": 50, "replicates": 2}
    expected = Row("lorenz96", "LETKF", 7, 1.04, True, 4, obs_error=1.0, obs_interval=1, cycles=50, replicates=2)
    (tmp_path / "row.json").write_text(json.dumps(given))
    for source in (given, json.dumps(given), tmp_path / "row.json", str(tmp_path / "row.json")):
        assert Row.from_json(source) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"infl": 1.1}, "no 'infl' .did you mean 'inflation'"),
        ({"localization": 3}, "did you mean 'localisation'"),
        ({"method": "LETFK"}, "did you mean 'letkf'"),
        ({"method": "ETKF", "batch": 2}, "batch is for LETKF"),
        ({"method": 3}, "no method 3"),
        ({"system": "lorenz95"}, "did you mean 'lorenz96'"),
        ({"members": 1}, "at least two members"),
        ({"members": 7.5}, "members: wanted a whole number"),
        ({"inflation": 0}, "inflation: wanted a number > 0"),
        ({"inflation": "1.1"}, "inflation: wanted a number"),
        ({"rotation": 1}, "rotation: wanted true or false"),
        ({"cycles": 0}, "cycles: wanted a whole number >= 1"),
        ({"obs_error": math.nan}, "obs_error: wanted a number"),
        ({"localisation": 4.0}, "localisation is for LETKF and EnSRF"),
        ({"method": "LETKF"}, "wanted a localisation"),
        ({"method": "LETKF", "system": "lorenz63", "localisation": 4.0}, "points in space"),
        ({"model": [1]}, "model: wanted options"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        Row.from_json({"system": "lorenz96", "method": "ETKF", "members": 5} | change)


@pytest.mark.parametrize("source", ["[1]", "{", '{"system": "lorenz96"}'])
def test_what_is_no_row_is_said(source):
    with pytest.raises(ValueError, match="a row"):
        Row.from_json(source)


def test_unknown_options_of_the_model_are_said():
    with pytest.raises(ValueError, match="Lorenz96 has no rho; it has n, forcing, dt_model"):
        run(replace(SHORT, model={"rho": 28.0}))


def test_usual_settings_are_those_of_the_literature():
    row = Row("lorenz63", "ETKF", 3)
    assert row.first == 64 and Row("lorenz96", "ETKF", 3).first == 400
    assert Row("lorenz96", "ETKF", 3, obs_interval=4).first == 100
    assert row.setup(Noise(0)).error == math.sqrt(2) and row.setup(Noise(0)).model.steps == 25
    assert shortened(SHORT, 0.1).cycles == 3


# --- draws and batches ---------------------------------------------------------------------------


def test_draws_belong_to_replicate_and_cycle():
    noise = Noise(1)
    many, few = Drawn(noise, 5, (7, 3)), Drawn(noise, 2, (7, 3))
    for cycle in (0, 130, 99, 0):
        assert torch.equal(many.at(cycle)[:2], few.at(cycle))
    assert not torch.equal(many.at(0), many.at(1))
    drawn = torch.stack([many.at(k) for k in range(300)])
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.std()) - 1) < 0.02


def test_a_batch_of_replicates_is_a_loop():
    together, fewer = run(SHORT), run(replace(SHORT, replicates=2))
    assert float((together.rmse[:2] - fewer.rmse).abs().max()) < 1e-8
    same(together, run(SHORT), 0.0)
    assert float((together.rmse - run(SHORT, seed=1).rmse).abs().min()) > 1e-3


def test_results_tell_what_they_are():
    result = run(SHORT)
    assert result.rmse.shape == result.spread.shape == (3,) and result.cycles == 40
    assert result.cycles_per_second > 0 and result.smoothed is None and math.isnan(result.median_smoothed)
    assert "ETKF on lorenz96" in str(result) and "3 replicates" in str(result)
    assert 0.1 < result.median < 0.4 and 0.1 < result.median_spread < 0.4


def test_progress_is_shown_if_wanted(capsys):
    run(SHORT)
    assert not capsys.readouterr().out
    run(SHORT, progress=True)
    assert "ETKF on lorenz96" in capsys.readouterr().out


# --- identities between methods ------------------------------------------------------------------


def test_enks_scores_as_the_etkf_and_smooths():
    filtered, smoothed = run(replace(SHORT, cycles=100)), run(replace(SHORT, method="EnKS", lag=10, cycles=100))
    same(smoothed, filtered)
    assert smoothed.median_smoothed < 0.85 * filtered.median


def test_local_filters_with_a_wide_taper_are_global():
    row = replace(SHORT, cycles=5, burn_in=0, members=12)
    same(run(replace(row, method="LETKF", localisation=1e6)), run(row), 1e-8)
    serial = replace(row, method="EnSRF")
    same(run(replace(serial, localisation=1e6)), run(serial), 1e-8)


def test_filters_of_one_covariance_agree_at_the_first_analysis():
    row = replace(SHORT, cycles=1, burn_in=0, rotation=False)
    same(run(replace(row, method="ESTKF")), run(row))
    same(run(replace(row, method="EnSRF")), run(row))
    assert float((run(replace(row, method="EnKF")).rmse - run(row).rmse).abs().max()) < 1e-12  # one mean


def test_ienks_with_accurate_forecasts_is_the_etkf():
    """Members that are close together see a linear model, and the weights at the beginning are those at the end."""
    row = replace(SHORT, cycles=3, burn_in=0, rotation=False, inflation=1.0)
    same(run(replace(row, method="IEnKS", lag=1)), run(row), 1e-4)


def test_tapers_are_those_of_all_distances():
    setup = replace(SHORT, observed_every=2).setup(Noise(0))
    observed = setup.observed(0)
    near, rho = setup.near(observed, 7.28, setup.patches(1))
    dense = torch.zeros(40, 20, dtype=torch.float64).scatter(1, near, rho)
    apart = torch.tensor([[min(abs(i - j), 40 - abs(i - j)) for j in range(0, 40, 2)] for i in range(40)])
    assert torch.allclose(dense, gaspari_cohn(apart.to(torch.float64), half_width=7.28), atol=1e-15)


def test_patches_share_the_taper_of_their_centre():
    options = {"n": 9, "viscosity": 1e-6}
    gyre = Row("quasi_geostrophic", "LETKF", 5, localisation=2.0, model=options).setup(Noise(0))
    patch = gyre.patches(2)
    squares = [(j // 2) * 5 + i // 2 for j in range(9) for i in range(9)]
    assert patch.tolist() == squares and gyre.patches(1).tolist() == list(range(81))
    near, rho = gyre.near(torch.tensor([0, 40]), 3.0, patch)
    for square in (0, 7, 24):
        inside = [divmod(p, 9) for p in range(81) if squares[p] == square]
        centre = np.mean(inside, 0)
        apart = torch.tensor([np.hypot(*(centre - at)) for at in ((0, 0), (4, 4))])
        dense = torch.zeros(2, dtype=torch.float64).index_add(0, near[square], rho[square])
        assert torch.allclose(dense, gaspari_cohn(apart, half_width=3.0), atol=1e-15)


def test_points_of_a_patch_share_a_transform():
    """By one transform members that are alike at two points stay so, with the taper of either or of the middle."""
    row = replace(SHORT, method="LETKF", localisation=4.0, inflation=1.0, rotation=False, cycles=1, burn_in=0)
    for side, equal in ((1, False), (2, True)):
        setup = row.setup(Noise(0))
        E = torch.randn(1, row.members, setup.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        E[:, :, 5] = E[:, :, 4]
        method = Local(replace(row, batch=side), setup, Noise(0), E)
        method.forecast = lambda E: E  # as they are
        method.step(0, torch.zeros(1, setup.n, dtype=torch.float64))
        assert torch.allclose(method.E[:, :, 4], method.E[:, :, 5], atol=1e-12) == equal
    assert 0.15 < run(replace(row, members=7, inflation=1.04, rotation=True, cycles=200, batch=2)).median < 0.3


def test_a_truth_that_blows_up_is_a_replicate_that_failed(monkeypatch):
    row, advance = replace(SHORT, cycles=2, burn_in=0), Setup.advance

    def unstable(setup, x, truth=False):
        later = advance(setup, x, truth)
        return later.index_fill(0, torch.tensor([1]), math.nan) if truth else later

    as_it_is = run(row)
    monkeypatch.setattr(Setup, "advance", unstable)
    result = run(row)
    assert result.diverged == 1 and result.rmse[1] == math.inf
    assert torch.equal(result.rmse[[0, 2]], as_it_is.rmse[[0, 2]])


def test_climatology_is_lorenz_s():
    mean, covariance = SHORT.setup(Noise(0)).climatology()
    assert abs(float(mean.mean()) - 2.34) < 0.05 and abs(float(covariance.diagonal().mean().sqrt()) - 3.64) < 0.05


def test_weighted_moments_are_numpy_s():
    E = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.rand(2, 50, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = w / w.sum(1, keepdim=True)
    mean, covariance = Particles._moments(E, w)
    for b in range(2):
        expected = np.cov(E[b].numpy().T, aweights=w[b, :, 0].numpy())
        assert np.allclose(covariance[b], expected, atol=1e-14)
        assert np.allclose(mean[b], np.average(E[b], axis=0, weights=w[b, :, 0]), atol=1e-14)


# --- every method and system ---------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "IEnKS", "I En-KS"])
def test_every_method_runs_on_a_small_ring(method):
    tuning = {"localisation": 3.0} if method == "letkf" else {}
    members = 0 if method in WITHOUT_MEMBERS else 9
    row = Row("lorenz96", method, members, cycles=30, burn_in=10, replicates=2, model={"n": 10}, scale=0.1, **tuning)
    result = run(replace(row, observed_every=2))
    assert bool(result.rmse.isfinite().all()) and bool((result.spread > 0).all())
    assert result.median < {"climatology": 5.0, "oi": 2.5, "pf": 3.0}.get(method, 2.0)


def test_the_other_rings_run():
    row = Row("kuramoto_sivashinsky", "LETKF", 6, 1.06, True, localisation=13.7, cycles=20, burn_in=20, replicates=2)
    assert run(row).median < 0.3
    assert run(Row("lorenz63", "IEnKS", 10, 1.02, True, cycles=20, burn_in=10, replicates=2, bundle=True)).median < 1.5


def test_the_gyre_runs():
    options = {"n": 17, "viscosity": 1e-8, "dt_model": 5.0}
    row = Row("quasi_geostrophic", "LETKF", 5, 1.04, True, 3.0, cycles=3, burn_in=0, replicates=1, model=options)
    setup = row.setup(Noise(0))
    assert len(setup.observed(0)) == 300 and setup.n == 289
    first, last = run(replace(row, cycles=1)), run(row)
    assert bool(last.rmse.isfinite().all()) and last.median < first.median * 1.5


def test_the_model_of_the_members_may_be_wrong():
    wrong = run(replace(SHORT, member_model={"forcing": 9.0}))
    assert wrong.median > 1.1 * run(SHORT).median


# --- failures ------------------------------------------------------------------------------------


def test_divergence_is_counted_and_nothing_raised():
    few = run(replace(SHORT, members=5, inflation=1.0, cycles=150, burn_in=150))
    assert few.diverged == 3 and few.median > 0.5 and bool(few.rmse.isfinite().all())
    wild = run(replace(SHORT, inflation=30.0, cycles=60, obs_error=40.0, members=4))
    assert wild.diverged == 3 and wild.median == math.inf and math.isnan(wild.deviation)


def test_the_limit_can_be_given():
    assert run(replace(SHORT, divergence=0.01)).diverged == 3
