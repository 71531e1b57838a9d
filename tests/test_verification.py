"""Observations against backgrounds: sums that add up, rank histograms, intervals that know of autocorrelation."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
import torch
from scipy import stats
from toys import row_layout

from polynya.da import Observations, innovation, operator_for, pooled
from polynya.da.correlation import coloured
from polynya.da.verification import (
    InnovationStatistics,
    RankHistogram,
    autocorrelation_time,
    calibration,
    calibrations,
    order_of,
    rank_histograms,
    tabulated,
)
from polynya.emulators import Noise, State

DAY = cftime.DatetimeNoLeap(2000, 1, 6)
NX = 50


def drawn(members, seed=0, names=("zos", "thetao"), size=1.0):
    """Members of independent normal numbers."""
    layout = row_layout(NX, *names)
    data = size * torch.randn(
        members, *layout.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return State(data, DAY, layout, tuple(range(members)))


def every_cell(error=0.5, names=("zos", "thetao"), **columns):
    lon = np.tile(360 / NX * np.arange(NX), len(names))
    named = {"variable": np.repeat(names, NX), "lat": 0.0, "lon": lon, "value": 0.0, "error": error}
    return Observations.from_table(DAY, named | {"kind": np.where(np.arange(len(lon)) % 3, "a", "b")} | columns)


def seen(state, obs):
    return operator_for(state.layout, obs).apply(state).numpy()


# --- sums --------------------------------------------------------------------------------------------


def test_sums_of_each_type_are_those_of_a_loop():
    forecast, obs = drawn(5), every_cell(value=np.random.default_rng(0).standard_normal(2 * NX))
    one = innovation(forecast, obs)
    statistics = one.statistics()
    assert set(statistics) == {(k, v) for k in "ab" for v in ("zos", "thetao")}
    for (kind, name), s in statistics.items():
        rows = [i for i in range(len(obs)) if obs.kind[i] == kind and obs.variable[i] == name]
        d = [one.departure[i] for i in rows]
        assert (
            s.count == len(rows)
            and np.isclose(s.mean, np.mean(d))
            and np.isclose(s.rms, np.sqrt(np.mean(np.square(d))))
        )
        assert np.isclose(s.expected**2, np.mean([one.spread[i] ** 2 + 0.25 for i in rows]))


def test_no_observations_have_no_statistics():
    none = every_cell().select(np.zeros(0, int))
    assert innovation(drawn(3), none).statistics() == {} and rank_histograms(drawn(3), none, Noise(0)) == {}
    assert len(tabulated({})) == 0


def test_a_table_has_kinds_variables_and_units():
    total = {
        ("a", "zos"): InnovationStatistics(4, 2.0, 9.0, 16.0),
        ("b", "thetao"): InnovationStatistics(1, 3.0, 9.0, 4.0),
    }
    ds = tabulated(total)
    assert ds.sizes == {"kind": 2, "variable": 2} and ds["units"].sel(variable="thetao") == "degC"
    assert ds["rms"].sel(kind="a", variable="zos") == 1.5 and ds["mean"].sel(kind="b", variable="thetao") == 3.0
    assert np.isnan(ds["rms"].sel(kind="b", variable="zos")) and all(a.attrs["long_name"] for a in ds.values())


# --- ranks -------------------------------------------------------------------------------------------


def histograms(spread=1.0, bias=0.0, error=0.5, perturbed=True, members=9, times=40):
    """Of a truth drawn as the members are, but for a factor of their spread and a bias, observed with errors."""
    total = {}
    for k in range(times):
        members_and_truth = drawn(members + 1, seed=k)
        truth, forecast = members_and_truth.sel([0]), members_and_truth.sel(range(1, members + 1))
        obs = every_cell(error)
        eta = np.random.default_rng(k).standard_normal(len(obs))
        obs = obs.replace(value=seen(truth, obs)[0] + bias + obs.error * eta)
        obs = obs if perturbed else obs.replace(error=1e-9)
        total = pooled(total, rank_histograms(forecast.replace(data=spread * forecast.data), obs, Noise(k)))
    return total


def test_ranks_of_a_perfect_ensemble_are_flat():
    for histogram in histograms().values():
        assert len(histogram.counts) == 10 and histogram.p_value > 0.01
    assert sum(h.counts.sum() for h in histograms(times=3).values()) == 300


def test_p_values_are_uniform_where_ranks_are():
    rng = np.random.default_rng(0)
    p = [RankHistogram(np.bincount(rng.integers(0, 10, 500), minlength=10)).p_value for _ in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.isnan(RankHistogram(np.zeros(4, int)).p_value)


def test_ranks_show_too_little_spread_bias_and_forgotten_errors():
    narrow = histograms(spread=0.3)["a", "zos"]
    assert narrow.p_value < 1e-6 and narrow.counts[[0, -1]].sum() > 1.5 * narrow.counts.sum() * 2 / 10
    high = histograms(bias=1.0)["a", "zos"]
    assert high.p_value < 1e-6 and high.counts[-1] > 3 * high.counts[0]
    assert (
        histograms(error=1.5, perturbed=False)["a", "zos"].p_value < 1e-3
    )  # errors of observation look like too little spread


def test_ranks_are_those_of_a_loop_with_the_same_errors():
    forecast, obs = drawn(7), every_cell(value=np.random.default_rng(0).standard_normal(2 * NX))
    order = order_of(obs)
    eta = np.empty((7, len(obs)))
    drawn_errors = Noise(3).stream("ranks").stream("error")
    eta[:, order] = drawn_errors.normal(range(7), DAY, (len(obs),), dtype=torch.float64).numpy()
    members = seen(forecast, obs) + obs.error * eta
    rank = [sum(m < y for m in members[:, i]) for i, y in enumerate(obs.value)]
    got = rank_histograms(forecast, obs, Noise(3))
    for (kind, name), h in got.items():
        rows = [r for r, k, v in zip(rank, obs.kind, obs.variable, strict=True) if (k, v) == (kind, name)]
        assert h.counts.tolist() == np.bincount(rows, minlength=8).tolist()
    shuffled = obs.select(np.random.default_rng(1).permutation(len(obs)))
    again = rank_histograms(forecast, shuffled, Noise(3))
    assert all(np.array_equal(again[k].counts, h.counts) for k, h in got.items())


def test_members_get_errors_with_the_correlations_of_the_observations():
    forecast = drawn(4)
    obs = every_cell(value=0.3, group=np.repeat([1, 2], NX), length=2e6)
    order = order_of(obs)
    eta = np.empty((4, len(obs)))
    eta[:, order] = Noise(3).stream("ranks/error").normal(range(4), DAY, (len(obs),), dtype=torch.float64).numpy()
    members = seen(forecast, obs) + np.stack([obs.error * coloured(obs, e) for e in eta])
    rank = (members < obs.value).sum(0)
    total = sum(h.counts for h in rank_histograms(forecast, obs, Noise(3)).values())
    assert np.array_equal(total, np.bincount(rank, minlength=5))


def test_ranks_among_equals_are_random():
    forecast = drawn(4)
    forecast = forecast.replace(data=torch.ones_like(forecast.data))  # ice everywhere
    total = pooled(*(rank_histograms(forecast, every_cell(error=1e-20, value=1.0), Noise(k)) for k in range(20)))
    counts = sum(h.counts for h in total.values())
    assert counts.sum() == 2000 and stats.chisquare(counts).pvalue > 0.01
    with pytest.raises(ValueError, match="ensembles of one size, got 4 and 3 members"):
        _ = total["a", "zos"] + RankHistogram(np.zeros(4, int))


def test_rank_tables_have_a_dimension_of_ranks():
    ds = tabulated(histograms(times=2))
    assert ds["counts"].dims == ("kind", "variable", "rank") and ds["counts"].sum() == 200
    assert ds["p_value"].dims == ("kind", "variable")


# --- intervals ---------------------------------------------------------------------------------------


def red(rng, phi, shape):
    """AR(1) of variance 1, the last axis is time."""
    x = rng.standard_normal(shape)
    for k in range(1, shape[-1]):
        x[..., k] = phi * x[..., k - 1] + np.sqrt(1 - phi**2) * x[..., k]
    return x


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.8])
def test_the_time_of_autocorrelation_of_an_ar1_process(phi):
    series = red(np.random.default_rng(0), phi, (200, 2000))
    wanted = max((1 + phi) / (1 - phi), 1.0)
    assert np.isclose(np.mean([autocorrelation_time(x) for x in series]), wanted, rtol=0.1)
    assert autocorrelation_time(np.ones(10)) == 1.0


@pytest.mark.parametrize("phi, n", [(0.0, 100), (0.7, 500), (0.9, 2000)])
def test_intervals_of_autocorrelated_errors_cover_the_truth(phi, n):
    rng, repeats = np.random.default_rng(1), 600
    errors = red(rng, phi, (repeats, n)) ** 2
    spread = 2.0 + 0.5 * red(rng, phi, (repeats, n))  # known but for its fluctuations; its mean is twice the error
    found = [calibration(v, e) for v, e in zip(spread, errors, strict=True)]
    inside = np.mean([c.low < np.sqrt(2.0) < c.high for c in found])
    assert 0.91 < inside < 0.975
    naive = np.mean([
        abs(np.log(c.ratio**2 / 2)) < 1.96 * np.std(v / v.mean() - e / e.mean()) / np.sqrt(n)
        for c, v, e in zip(found, spread, errors, strict=True)
    ])  # fmt: skip
    assert naive < inside and (phi < 0.5 or naive < 0.85)
    assert all(c.low < c.ratio < c.high and 2 <= c.effective <= n for c in found)
    wide = calibration(spread[0], errors[0], level=0.99)
    assert wide.low < found[0].low and wide.high > found[0].high


def test_calibrations_of_each_type_use_the_sums_of_each_time():
    series = []
    for k in range(30):
        obs = every_cell()
        members = drawn(6, seed=k)
        obs = obs.replace(
            value=seen(members.sel([0]), obs)[0] + 0.5 * np.random.default_rng(k).standard_normal(len(obs))
        )
        series.append(innovation(members.sel(range(1, 6)), obs).statistics())
    del series[3]["a", "zos"]
    found = calibrations(series)
    total = pooled(*series)
    for key, c in found.items():
        assert np.isclose(c.ratio, total[key].expected / total[key].rms)
        assert c.low < c.ratio < c.high and c.high / c.low < 1.3
    assert set(found) == set(total) and tabulated(found)["ratio"].notnull().all()
    assert calibrations(series[:1]) == {}


@pytest.mark.parametrize("v, e", [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([0.0, 0.0], [1.0, 1.0])])
def test_series_without_anything_to_say_are_refused(v, e):
    with pytest.raises(ValueError, match="wanted two series"):
        calibration(np.array(v), np.array(e))
