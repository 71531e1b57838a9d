"""Totals against the scores they stand for, whatever the chunks and stores, and intervals against known errors."""

import dask
import numpy as np
import pytest
import scipy.signal
import xarray as xr

from polynya.diagnostics import (
    bias,
    block_length,
    bootstrap,
    brier_score,
    crps_ensemble,
    event_table,
    mae,
    merged,
    rank_histogram,
    resampled,
    rmse,
    score_totals,
    scores,
    spread_error,
)
from polynya.diagnostics.totals import block_counts

DIMS = ("member", "time", "lat", "lon")


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def forecasts(members=6, seed=0, shape=(20, 6, 8)):
    values = np.random.default_rng(seed).normal(15, 1, (members + 1, *shape))
    values[..., :2, :3] = np.nan
    values[2, 3, 4, 4] = np.nan  # one member, one place
    values[0, 5, 5, 5] = np.nan
    coords = {"time": np.arange(shape[0]), "lat": np.linspace(-60, 60, shape[1])}
    attrs = {"units": "degC"}
    return xr.DataArray(values[0], coords, DIMS[1:], attrs=attrs), xr.DataArray(values[1:], coords, DIMS, attrs=attrs)


def test_scores_of_totals_are_the_scores():
    obs, ens = forecasts()
    area = np.cos(np.deg2rad(obs.lat))
    found = scores(score_totals(obs, ens, weights=area))
    both = spread_error(obs, ens, weights=area)
    mean = ens.mean("member", skipna=False)
    expected = {
        "crps": crps_ensemble(obs, ens, weights=area),
        "fair_crps": crps_ensemble(obs, ens, weights=area, fair=True),
        "bias": bias(obs, mean, weights=area),
        "mae": mae(obs, mean, weights=area),
        "rmse": rmse(obs, mean, weights=area),
        "spread": both.spread,
        "ratio": both.ratio,
    }
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-12), name
    assert found.crps.attrs["units"] == "degC"
    assert found.ratio.attrs["units"] == "1"
    assert "spread" not in scores(score_totals(obs, ens[:1]))


def test_stores_of_any_years_add_up_to_one():
    obs, ens = forecasts()
    whole = scores(score_totals(obs, ens))
    cuts = [slice(0, 3), slice(3, 11), slice(11, 20)]
    parts = [score_totals(obs.isel(time=c), ens.isel(time=c)) for c in cuts]
    for order in ([0, 1, 2], [2, 0, 1]):
        xr.testing.assert_allclose(scores(merged(*(parts[k] for k in order))), whole, rtol=1e-13)
    ranks = [rank_histogram(obs.isel(time=c), ens.isel(time=c), ties="fractional") for c in cuts]
    np.testing.assert_allclose(merged(*ranks), rank_histogram(obs, ens, ties="fractional"))


def test_totals_of_other_experiments_do_not_mix():
    obs, ens = forecasts()
    totals = score_totals(obs, ens)
    with pytest.raises(ValueError, match="one experiment.*'members': 6.*'members': 5"):
        merged(totals, score_totals(obs, ens[:5]))
    with pytest.raises(ValueError, match="same dim"):
        merged(totals, score_totals(obs, ens, dim="time"))
    with pytest.raises(ValueError, match="without"):
        scores(obs.to_dataset(name="crps"))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"member": 1}, {"lat": 2, "lon": 3}, {"time": 7, "member": 4}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    obs, ens = forecasts()
    with dask.config.set(scheduler=refuse_to_compute):
        totals = score_totals(obs.chunk(time=3), ens.chunk(chunks), dim=("lat", "lon"))
        lazy = scores(merged(totals, totals)), bootstrap(totals, block=3, samples=20)
    eager = score_totals(obs, ens, dim=("lat", "lon"))
    expected = scores(merged(eager, eager)), bootstrap(eager, block=3, samples=20)
    for ours, theirs in zip(dask.compute(*lazy), expected, strict=True):
        xr.testing.assert_allclose(ours, theirs, rtol=1e-11)


def test_blocks_are_neighbours_and_all_records_are_equally_likely():
    counts = block_counts(50, block=7, samples=4000, seed=1)
    assert (counts.sum(1) == 50).all()
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.1)
    one = block_counts(50, block=25, samples=3, seed=2)
    assert ((np.diff(one, axis=1) != 0).sum(1) <= 4).all()
    np.testing.assert_array_equal(block_counts(50, block=7, samples=4000, seed=1), counts)


def test_resampled_sums_equal_sums_of_the_drawn_records():
    obs, ens = forecasts()
    totals = score_totals(obs, ens, dim=("lat", "lon"))
    drawn = resampled(totals, block=4, samples=5, seed=3)
    counts = block_counts(20, block=4, samples=5, seed=3).astype(int)
    for s in range(5):
        records = np.repeat(np.arange(20), counts[s])
        xr.testing.assert_allclose(drawn.isel(sample=s), totals.isel(time=records).sum("time"), rtol=1e-12)
    with pytest.raises(ValueError, match="must keep 'time'"):
        resampled(score_totals(obs, ens), block=2)
    with pytest.raises(ValueError, match="half of the 20 records"):
        resampled(totals, block=11)


def red(n, phi, seed, size):
    noise = np.random.default_rng(seed).normal(size=(n + 200, size))
    return scipy.signal.lfilter([1], [1, -phi], noise, axis=0)[200:]


def test_intervals_of_a_red_series_need_blocks():
    """Spread of the means of many AR(1) series against what resampling one of them says."""
    phi, n = 0.7, 400
    series = red(n, phi, 0, 300)
    true = series.mean(0).std()
    x = xr.DataArray(series, dims=("time", "case"))
    wide, narrow = (resampled(x, block=b, samples=300).std("sample").mean().item() / n for b in (20, 1))
    assert wide == pytest.approx(true, rel=0.15)
    assert narrow < 0.6 * true


def test_confidence_intervals_cover_and_p_values_are_uniform():
    phi, n, cases = 0.5, 300, 200
    x = xr.DataArray(red(n, phi, 1, cases), dims=("time", "case")).to_dataset(name="x")
    found = bootstrap(x, lambda t: t / n, block=12, against=x * 0, samples=400).x
    assert found.sel(estimate="value").values == pytest.approx(x.x.mean("time").values)
    inside = (found.sel(estimate="low") < 0) & (found.sel(estimate="high") > 0)
    assert 0.86 < inside.mean().item() < 0.99
    p = found.sel(estimate="p_value")
    assert 0.02 < (p < 0.1).mean().item() < 0.2
    shifted = bootstrap(x + 1, lambda t: t / n, block=12, against=x * 0, samples=400).x
    assert (shifted.sel(estimate="p_value") < 0.01).mean() > 0.95


def test_paired_differences_are_sharper_than_two_intervals():
    obs, ens = forecasts(shape=(60, 6, 8))
    worse = ens + 0.1
    totals = [score_totals(obs, e, dim=("lat", "lon")) for e in (ens, worse)]
    alone = bootstrap(totals[0], block=3).crps
    difference = bootstrap(totals[1], block=3, against=totals[0]).crps
    assert difference.sel(estimate="p_value") < 0.05
    assert difference.sel(estimate="low") > 0
    width = [float(v.sel(estimate="high") - v.sel(estimate="low")) for v in (alone, difference)]
    assert width[1] < width[0]
    assert difference.attrs["units"] == "degC"


def test_tables_of_events_bootstrap_too():
    obs, ens = forecasts(shape=(60, 6, 8))
    table = event_table(obs, ens, threshold=15, dim=("lat", "lon"))
    found = bootstrap(table, brier_score, block=3, samples=200).brier
    assert found.sel(estimate="low") < found.sel(estimate="value") < found.sel(estimate="high")
    assert found.sel(estimate="value").item() == pytest.approx(
        brier_score(event_table(obs, ens, threshold=15)).brier.item()
    )


def test_block_length_grows_with_memory():
    lengths = []
    for phi in (0.0, 0.5, 0.9):
        series = xr.DataArray(red(2000, phi, 4, 1)[:, 0], dims="time")
        lengths.append(block_length(series))
    assert lengths[0] <= 6
    assert lengths[0] < lengths[1] < lengths[2]
    # Best length for AR(1) in the limit: (2 G² / (4/3 g²) n)^(1/3) with G/g = 2 phi/(1 - phi²).
    assert lengths[2] == pytest.approx((1.5 * (2 * 0.9 / 0.19) ** 2 * 2000) ** (1 / 3), rel=0.5)
    assert block_length(xr.DataArray(np.ones(50), dims="time")) == 1
    with pytest.raises(ValueError, match="finite series"):
        block_length(xr.DataArray(np.ones((5, 2)), dims=("time", "x")))
