"""CRPS and the sorting beneath it: closed forms, other libraries, weights, thresholds, gaps."""

import math

import numpy as np
import properscoring
import pytest
import scipy.stats
import scoringrules
import xarray as xr
import xskillscore
from test_skill import DIMS, SIZES, area, brute, forecasts

from polynya.diagnostics import bias, crps_ensemble, rank_histogram, spread_error
from polynya.diagnostics.sorting import TILE, padded, sort_columns


def sort(x):
    """The columns of x (row, column), sorted by the kernel."""
    tile = np.full((padded(len(x)), TILE), np.inf, x.dtype)
    tile[: len(x)] = x
    sort_columns(tile.reshape(-1), len(x))
    return tile


@pytest.mark.parametrize("n", [*range(1, 20), 31, 32, 33, 50, 64, 65, 100, 129, 300])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_columns_are_sorted(n, dtype):
    x = np.random.default_rng(n).permuted(np.tile(np.arange(n, dtype=dtype), (TILE, 1)), axis=1).T
    np.testing.assert_array_equal(sort(x)[:n], np.arange(n)[:, None] + np.zeros(TILE))
    assert np.isinf(sort(x)[n:]).all()


@pytest.mark.parametrize("n", [10, 16])
def test_zero_one_principle_proves_the_network(n):
    x = ((np.arange(2**n) >> np.arange(n)[:, None]) & 1).astype("f4")
    for first in range(0, 2**n, TILE):
        assert (np.diff(sort(x[:, first : first + TILE])[:n], axis=0) >= 0).all()


def test_nan_is_moved_and_never_lost():
    x = np.random.default_rng(0).normal(size=(50, TILE)).astype("f4")
    x[np.random.default_rng(1).integers(0, 50, TILE), np.arange(TILE)] = np.nan
    assert (np.isnan(sort(x)).sum(0) == 1).all()


def test_crps_of_the_hand_case():
    ens = xr.DataArray([1.0, 2, 4, 7], dims="member")
    obs = xr.DataArray(3.0)
    assert crps_ensemble(obs, ens).item() == pytest.approx(0.75, abs=1e-15)
    assert crps_ensemble(obs, ens, fair=True).item() == pytest.approx(1 / 3, abs=1e-15)
    assert crps_ensemble(obs, ens, alpha=0.95).item() == pytest.approx(0.3541666667, abs=1e-10)


@pytest.mark.parametrize("options", [{}, {"skipna": True}, {"member_weights": "even"}, {"threshold": (14.5, 15.5)}])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.95, 1.0])
def test_almost_fair_is_between_plain_and_fair_by_every_route(alpha, options):
    obs, ens = forecasts(7)
    if "member_weights" in options:
        options = {"member_weights": xr.DataArray(np.full(7, 3.0), dims="member")}
    if "skipna" in options:
        ens = ens.where(ens < 16)
    found = crps_ensemble(obs, ens, alpha=alpha, dim=(), **options)
    plain, fair = (crps_ensemble(obs, ens, fair=f, dim=(), **options) for f in (False, True))
    np.testing.assert_allclose(found, (1 - alpha) * plain + alpha * fair, rtol=2e-5, atol=1e-6)
    lazy = crps_ensemble(obs, ens.chunk(member=2, time=1), alpha=alpha, dim=(), **options)
    np.testing.assert_array_equal(lazy.compute(), found)


def test_almost_fair_as_lang_et_al_write_it():
    obs, ens = (f.astype("f8") for f in forecasts(5))
    alpha, m, x = 0.9, 5, ens.values
    eps = (1 - alpha) / m
    pairs = abs(x[:, None] - x[None])
    terms = [
        abs(x[j] - obs.values) + abs(x[k] - obs.values) - (1 - eps) * pairs[j, k]
        for j in range(m)
        for k in range(m)
        if j != k
    ]
    expected = np.sum(terms, axis=0) / (2 * m * (m - 1))
    found = crps_ensemble(obs, ens, alpha=alpha, dim=())
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (found.attrs["long_name"], found.attrs["alpha"]) == ("almost fair CRPS", alpha)


def test_alpha_is_a_share_and_needs_two_members():
    obs, ens = forecasts(3)
    for wrong in ({"alpha": 1.2}, {"alpha": -0.1}, {"alpha": 0.5, "fair": True}):
        with pytest.raises(ValueError, match="alpha must be from 0"):
            crps_ensemble(obs, ens, **wrong)
    with pytest.raises(ValueError, match="two members"):
        crps_ensemble(obs, ens.isel(member=[0]), alpha=0.95)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (0, 0.233694977255),
        (0.5, 0.331403531255),
        (1, 0.602441357628),
        (2, 1.452791821686),
        (-3, 2.436574725086),
    ],
)
def test_crps_of_normal_quantiles_converges_to_the_closed_form(y, expected):
    quantiles = scipy.stats.norm.ppf((np.arange(40_000) + 0.5) / 40_000)
    ours = crps_ensemble(xr.DataArray(float(y)), xr.DataArray(quantiles, dims="member"))
    assert ours.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("members", "expected"), [(2, 0.8462843753), (10, 0.6206085419), (50, 0.5754733752)])
def test_expected_crps_of_a_perfect_forecast(members, expected):
    draws = np.random.default_rng(0).normal(size=(members + 1, 40_000))
    obs, ens = xr.DataArray(draws[0], dims="x"), xr.DataArray(draws[1:], dims=("member", "x"))
    assert crps_ensemble(obs, ens).item() == pytest.approx(expected, abs=0.01)
    assert crps_ensemble(obs, ens, fair=True).item() == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)


@pytest.mark.parametrize("members", SIZES)
def test_crps_equals_three_other_routes(members):
    obs, ens = forecasts(members)
    ours = crps_ensemble(obs, ens, dim=())
    np.testing.assert_allclose(ours, brute(obs.values, ens.values, fair=False), atol=1e-13)
    np.testing.assert_allclose(ours, properscoring.crps_ensemble(obs.values, ens.values, axis=0), atol=1e-13)
    theirs = scoringrules.crps_ensemble(obs.values, ens.values, m_axis=0, estimator="qd", backend="numba")
    np.testing.assert_allclose(ours, theirs, atol=1e-13)
    if members > 1:
        fair = crps_ensemble(obs, ens, dim=(), fair=True)
        np.testing.assert_allclose(fair, brute(obs.values, ens.values, fair=True), atol=1e-13)
        theirs = scoringrules.crps_ensemble(obs.values, ens.values, m_axis=0, estimator="fair", backend="numba")
        np.testing.assert_allclose(fair, theirs, atol=1e-13)


def test_weighted_mean_crps_equals_xskillscore():
    obs, ens = forecasts()
    weights = area(obs)
    ours = crps_ensemble(obs, ens, weights=weights)
    expected = xskillscore.crps_ensemble(
        obs, ens, dim=["time", "lat", "lon"], weights=weights.expand_dims(time=obs.time.size)
    )
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    assert ours.attrs == {"units": "degC", "long_name": "CRPS", "members": 10}
    assert crps_ensemble(obs, ens, dim="time", weights=weights).dims == ("lat", "lon")


def test_float32_scores_stay_float32_near_and_means_are_float64():
    obs, ens = forecasts(50, dtype="f4")
    exact = brute(obs.values.astype("f8"), ens.values.astype("f8"), fair=False)
    ours = crps_ensemble(obs, ens, dim=())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, atol=3e-6)
    assert crps_ensemble(obs, ens).dtype == np.float64


@pytest.mark.parametrize("dtype", ["f2", "i4"])
def test_other_types_are_scored_in_float64(dtype):
    obs, ens = (x.fillna(0).round().astype(dtype) for x in forecasts())
    ours = crps_ensemble(obs, ens, dim=())
    np.testing.assert_allclose(ours, brute(*(x.values.astype("f8") for x in (obs, ens)), fair=False), atol=1e-13)
    assert rank_histogram(obs, ens).sum() == obs.size


def test_unweighted_maps_reduce_nothing():
    obs, ens = forecasts()
    np.testing.assert_allclose(bias(obs, ens[0], dim=()), ens[0] - obs)
    assert spread_error(obs, ens, dim=()).spread.dims == obs.dims


def test_many_tiles_and_any_order_of_dimensions():
    obs, ens = forecasts(7, shape=(3, 40, 60))
    expected = crps_ensemble(obs, ens, dim=())
    turned = crps_ensemble(obs.transpose("lon", "time", "lat"), ens.transpose("lat", "member", "lon", "time"), dim=())
    np.testing.assert_allclose(turned.transpose(*expected.dims), expected, atol=1e-15)


def test_missing_members_are_nan_unless_skipped():
    obs, ens = forecasts(6)
    ens[2, 0, 5, 5] = np.nan
    strict, loose = (crps_ensemble(obs, ens, dim=(), skipna=s) for s in (False, True))
    assert strict.isnull().sum() == loose.isnull().sum() + 1
    remaining = np.delete(ens.values[:, 0, 5, 5], 2)[:, None]
    assert loose[0, 5, 5].item() == pytest.approx(brute(obs.values[0, 5, 5], remaining, fair=False).item())
    np.testing.assert_allclose(loose.where(strict.notnull()), strict, atol=1e-14)
    fair = crps_ensemble(obs, ens.where(ens.member < 1), dim=(), fair=True, skipna=True)
    assert fair.isnull().all()


@pytest.mark.parametrize(("fair", "estimator"), [(False, "nrg"), (True, "fair")])
def test_weighted_members_equal_scoringrules_and_repeated_members(fair, estimator):
    obs, ens = (x.isel(lat=slice(2, None)) for x in forecasts(6))
    shares = xr.DataArray(np.random.default_rng(1).uniform(0, 2, ens.shape), dims=DIMS, coords=ens.coords)
    ours = crps_ensemble(obs, ens, member_weights=shares, dim=(), fair=fair)
    w = shares.values / shares.values.sum(0)
    options = {"m_axis": 0, "ens_w": w, "estimator": estimator, "backend": "numpy"}
    np.testing.assert_allclose(ours, scoringrules.crps_ensemble(obs.values, ens.values, **options), atol=1e-12)
    counts = xr.DataArray([1, 0, 2, 3, 0, 1], dims="member")
    repeated = ens.isel(member=np.repeat(np.arange(6), counts))
    np.testing.assert_allclose(crps_ensemble(obs, ens, member_weights=counts), crps_ensemble(obs, repeated), rtol=1e-12)
    equal = crps_ensemble(obs, ens, member_weights=xr.full_like(shares, 3.0), dim=(), fair=fair)
    np.testing.assert_allclose(equal, crps_ensemble(obs, ens, dim=(), fair=fair), atol=1e-13)


def test_members_of_no_weight_are_not_there():
    obs, ens = forecasts(4)
    ens[1] = np.nan
    shares = xr.DataArray([1.0, 0, 1, 1], dims="member")
    expected = crps_ensemble(obs, ens.isel(member=[0, 2, 3]), dim=())
    np.testing.assert_allclose(crps_ensemble(obs, ens, member_weights=shares, dim=()), expected, atol=1e-13)
    skipped = crps_ensemble(obs, ens, member_weights=shares * 0 + 1, dim=(), skipna=True)
    np.testing.assert_allclose(skipped, expected, atol=1e-13)
    assert np.isnan(crps_ensemble(obs, ens, member_weights=shares * 0, dim=())).all()
    with pytest.raises(ValueError, match="must be >= 0"):
        crps_ensemble(obs, ens, member_weights=-shares)
    with pytest.raises(ValueError, match="must have 'member'"):
        crps_ensemble(obs, ens, member_weights=xr.DataArray([1.0], dims="time"))


@pytest.mark.parametrize(("low", "high"), [(15.5, np.inf), (-np.inf, 14), (14.5, 15.5)])
def test_threshold_weighted_crps_equals_scoringrules(low, high):
    obs, ens = forecasts()
    ours = crps_ensemble(obs, ens, threshold=(low, high), dim=())
    theirs = scoringrules.twcrps_ensemble(obs.values, ens.values, a=low, b=high, m_axis=0, estimator="nrg")
    np.testing.assert_allclose(ours, theirs, atol=1e-13)
    assert ours.attrs["threshold"] == [low, high]
    with pytest.raises(ValueError, match="low < high"):
        crps_ensemble(obs, ens, threshold=(high, low))


def test_threshold_weighted_parts_add_up():
    obs, ens = forecasts()
    parts = [crps_ensemble(obs, ens, threshold=t, dim=()) for t in ((-np.inf, 15.2), (15.2, np.inf))]
    np.testing.assert_allclose(sum(parts), crps_ensemble(obs, ens, dim=()), atol=1e-13)


def test_many_members_and_nan_or_infinity_among_them():
    obs, ens = forecasts(150, shape=(2, 9, 70))
    ens[77, 0, 5, 5] = np.nan
    ens[3, 1, 6, 6] = np.inf
    ours = crps_ensemble(obs, ens, dim=())
    expected = brute(obs.values, ens.values, fair=False)
    np.testing.assert_allclose(ours, np.where(np.isfinite(expected), expected, np.nan), atol=1e-12)
    assert np.isnan(ours[0, 5, 5])
    assert np.isnan(ours[1, 6, 6])
