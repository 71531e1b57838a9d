"""Scores of events against xskillscore, brute force over pairs, and the identities of their parts."""

import dask
import numpy as np
import pytest
import xarray as xr
import xskillscore

from polynya.diagnostics import brier_score, event_table, merged, reliability_diagram, roc

DIMS = ("member", "time", "lat", "lon")


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def forecasts(members=10, seed=0, shape=(12, 8, 9), land=False):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=shape)
    values = signal + rng.normal(size=(members + 1, *shape))
    if land:
        values[..., :2, :3] = np.nan
    coords = {"time": np.arange(shape[0]), "lat": np.linspace(-60, 60, shape[1]), "lon": np.arange(shape[2]) * 40.0}
    attrs = {"units": "degC"}
    return (
        xr.DataArray(values[0], dims=DIMS[1:], coords=coords, name="thetao", attrs=attrs),
        xr.DataArray(values[1:], dims=DIMS, coords=coords, name="thetao", attrs=attrs),
    )


@pytest.mark.parametrize("fair", [False, True])
def test_brier_score_equals_xskillscore(fair):
    obs, ens = forecasts()
    ours = brier_score(event_table(obs, ens, threshold=0.5), fair=fair).brier
    theirs = xskillscore.brier_score(obs >= 0.5, ens >= 0.5, fair=fair)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_land_is_not_a_forecast_of_no_event():
    obs, ens = forecasts(land=True)
    careless = xskillscore.brier_score(obs >= 0.5, ens >= 0.5)
    sea = {"lat": slice(2, None)}
    table = event_table(obs, ens, threshold=0.5)
    assert table.cases.sum() == obs.notnull().sum()
    assert brier_score(table).brier > 1.02 * careless
    inside = event_table(obs.isel(sea), ens.isel(sea), threshold=0.5)
    rest = {"lat": slice(0, 2), "lon": slice(3, None)}
    both = merged(inside, event_table(obs.isel(rest), ens.isel(rest), threshold=0.5))
    xr.testing.assert_allclose(both, table)


def test_expected_scores_of_a_fair_coin():
    rng = np.random.default_rng(1)
    values = (rng.random((11, 200_000)) < 0.3).astype(float)
    obs, ens = xr.DataArray(values[0], dims="x"), xr.DataArray(values[1:], dims=("member", "x"))
    table = event_table(obs, ens, threshold=0.5)
    assert brier_score(table).brier.item() == pytest.approx(0.231, abs=1e-3)
    assert brier_score(table, fair=True).brier.item() == pytest.approx(0.21, abs=1e-3)
    assert roc(table).area.item() == pytest.approx(0.5, abs=5e-3)


def test_parts_add_up_and_equal_their_definitions():
    obs, ens = forecasts(4)
    table = event_table(obs, ens, threshold=0.2, dim=("lat", "lon"))
    parts = brier_score(table)
    assert parts.brier.dims == ("time",)
    np.testing.assert_allclose(parts.reliability - parts.resolution + parts.uncertainty, parts.brier, atol=1e-14)
    p, o = (ens >= 0.2).mean("member"), (obs >= 0.2).astype(float)
    reliability = 0
    for k in range(5):
        here = np.isclose(p, k / 4)
        share = here.sum(("lat", "lon")) if isinstance(here, xr.DataArray) else here.sum((1, 2))
        frequency = np.where(here, o, 0).sum((1, 2)) / np.maximum(share, 1)
        reliability = reliability + share * (k / 4 - frequency) ** 2 / 72
    np.testing.assert_allclose(parts.reliability, reliability, atol=1e-14)


def test_reliability_diagram_equals_xskillscore():
    obs, ens = forecasts(4)
    found = reliability_diagram(event_table(obs, ens, threshold=0.5))
    edges = np.array([0, 0.125, 0.375, 0.625, 0.875, 1])
    theirs = xskillscore.reliability(obs >= 0.5, (ens >= 0.5).mean("member"), probability_bin_edges=edges)
    np.testing.assert_allclose(found.observed_frequency, theirs)
    np.testing.assert_array_equal(found.cases, theirs.samples)
    np.testing.assert_allclose(found.probability, [0, 0.25, 0.5, 0.75, 1])


def test_roc_equals_xskillscore_and_the_chance_to_rank_pairs():
    obs, ens = forecasts(6)
    found = roc(event_table(obs, ens, threshold=0.5))
    p, o = (ens >= 0.5).mean("member"), obs >= 0.5
    theirs = xskillscore.roc(o, p, bin_edges="continuous")
    assert found.area.item() == pytest.approx(theirs.item(), abs=1e-12)
    yes, no = p.values[o.values], p.values[~o.values]
    wins = (yes[:, None] > no).mean() + (yes[:, None] == no).mean() / 2
    assert found.area.item() == pytest.approx(wins, abs=1e-12)
    assert found.hit_rate[0] == 0
    assert found.hit_rate[-1] == 1
    assert (found.members_asked == np.arange(7, -1, -1)).all()


def test_maps_of_thresholds_weights_and_gaps():
    obs, ens = forecasts(land=True)
    ens[3, 2, 5, 5] = np.nan
    limit = obs.quantile(0.8, "time").drop_vars("quantile")
    area = np.cos(np.deg2rad(obs.lat))
    table = event_table(obs, ens, threshold=limit, weights=area)
    counted = obs.notnull() & ens.notnull().all("member")
    assert table.cases.sum().item() == pytest.approx((counted * area).sum().item())
    assert table.events.sum().item() == pytest.approx((((obs >= limit) & counted) * area).sum().item())
    assert table.attrs == {"members": 10, "threshold": "varies"}


def test_errors_say_what_is_wrong():
    obs, ens = forecasts(1)
    with pytest.raises(ValueError, match=r"threshold has \['basin'\]"):
        event_table(obs, ens, threshold=xr.DataArray([1.0], dims="basin"))
    with pytest.raises(ValueError, match="two members"):
        brier_score(event_table(obs, ens, threshold=0), fair=True)
    with pytest.raises(ValueError, match="without \\['cases', 'events'\\]"):
        roc(obs.to_dataset())
    with pytest.raises(ValueError, match="one experiment"):
        merged(event_table(obs, ens, threshold=0), event_table(obs, ens, threshold=1))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"member": 1}, {"lat": 3, "lon": 2}, {"member": 3, "time": 5}])
@pytest.mark.parametrize("dim", [None, "time", ("lat", "lon")])
def test_lazy_equals_eager_and_computes_nothing(chunks, dim):
    obs, ens = forecasts(land=True)

    def products(y, x):
        table = event_table(y, x, threshold=0.3, dim=dim, weights=np.cos(np.deg2rad(obs.lat)))
        return [brier_score(table), reliability_diagram(table), roc(table)]

    with dask.config.set(scheduler=refuse_to_compute):
        results = products(obs.chunk(time=2), ens.chunk(chunks))
    for ours, expected in zip(dask.compute(*results), products(obs, ens), strict=True):
        xr.testing.assert_allclose(ours, expected, rtol=1e-11)
