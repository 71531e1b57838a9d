"""Scores against closed forms, other packages, brute force, simulation, and the traps of missing data."""

import math

import cloudpickle
import dask
import numpy as np
import pytest
import scipy.stats
import xarray as xr
import xskillscore

from polynya.diagnostics import bias, crps_ensemble, rank_histogram, rmse, spread_error, variance_ratio

DIMS = ("member", "time", "lat", "lon")
SIZES = [1, 2, 3, 5, 10, 17, 50]


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def forecasts(members=10, seed=0, shape=(6, 8, 12), dtype="f8", decimals=None):
    """Observations and an exchangeable ensemble, with land."""
    rng = np.random.default_rng(seed)
    values = rng.normal(15, 1, (members + 1, *shape))
    if decimals is not None:
        values = values.round(decimals)
    values[..., :2, :3] = np.nan
    coords = {"lat": np.linspace(-60, 60, shape[1]), "lon": np.arange(shape[2]) * 30.0}
    obs = xr.DataArray(values[0].astype(dtype), dims=DIMS[1:], coords=coords, name="obs", attrs={"units": "degC"})
    ens = xr.DataArray(values[1:].astype(dtype), dims=DIMS, coords=coords, name="thetao", attrs={"units": "degC"})
    return obs, ens


def area(field):
    return np.cos(np.deg2rad(field.lat)).rename("area") * xr.ones_like(field.lon)


def brute(obs, ens, fair):
    """CRPS by its definition, over all pairs of members."""
    m = len(ens)
    pairs = abs(ens[:, None] - ens[None]).sum((0, 1))
    return abs(ens - obs).mean(0) - pairs / (2 * (m * (m - 1) if fair else m * m))


def test_spread_and_error_of_an_exchangeable_ensemble():
    draws = np.random.default_rng(3).normal(0, 2, (11, 200_000))
    obs, ens = xr.DataArray(draws[0], dims="x"), xr.DataArray(draws[1:], dims=("member", "x"))
    result = spread_error(obs, ens)
    assert result.spread.item() == pytest.approx(2, rel=5e-3)
    assert result.error.item() ** 2 == pytest.approx(1.1 * 4, rel=1e-2)
    assert (result.spread / result.error).item() == pytest.approx(0.9535, abs=5e-3)
    assert result.ratio.item() == pytest.approx(1, abs=5e-3)


def test_spread_and_error_use_one_mask_and_average_variances():
    obs, ens = forecasts()
    obs[1, 6, 6] = np.nan
    ens[3, 2, 7, 7] = np.nan
    valid = obs.notnull() & ens.notnull().all("member")
    weights = area(obs) * valid
    result = spread_error(obs, ens, weights=area(obs))
    variance = ens.values.var(0, ddof=1)
    expected = np.sqrt(np.nansum(variance * weights.transpose(*obs.dims)) / weights.sum())
    assert result.spread.item() == pytest.approx(expected.item(), rel=1e-12)
    theirs = xskillscore.rmse(ens.mean("member", skipna=False), obs, weights=weights.transpose(*obs.dims), skipna=True)
    assert result.error.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert result.spread.attrs["units"] == "degC"


def test_rank_histogram_of_exchangeable_members_is_flat():
    obs, ens = forecasts(9, shape=(50, 20, 20))
    counts = rank_histogram(obs, ens)
    assert counts.sizes == {"rank": 10}
    assert counts.sum() == obs.notnull().sum()
    assert scipy.stats.chisquare(counts.values).pvalue > 0.01
    narrow = rank_histogram(obs, 15 + (ens - 15) / 2)
    assert narrow[0] + narrow[-1] > counts[0] + counts[-1]
    assert scipy.stats.chisquare(narrow.values).pvalue < 1e-6


@pytest.mark.parametrize("ties", ["random", "fractional"])
def test_rank_histogram_without_ties_equals_xskillscore(ties):
    obs, ens = (x.isel(lat=slice(2, None)) for x in forecasts(6))  # xskillscore counts nothing beside land
    np.testing.assert_array_equal(rank_histogram(obs, ens, ties=ties), xskillscore.rank_histogram(obs, ens))


@pytest.mark.parametrize("ties", ["random", "fractional"])
def test_ties_are_shared_out_evenly(ties):
    ens = xr.DataArray(np.zeros((4, 100, 100)), dims=("member", "y", "x"))
    counts = rank_histogram(ens[0], ens, ties=ties)
    if ties == "fractional":
        np.testing.assert_allclose(counts, 2000, rtol=1e-12)
    else:
        assert counts.sum() == 10_000
        assert scipy.stats.chisquare(counts.values).pvalue > 0.01
        np.testing.assert_array_equal(counts, rank_histogram(ens[0], ens, ties=ties, seed=0))
        assert (counts != rank_histogram(ens[0], ens, ties=ties, seed=1)).any()


def test_partial_ties_go_to_the_ranks_they_could_have():
    obs, ens = xr.DataArray([2.0], dims="x"), xr.DataArray([[1.0], [2], [2], [5]], dims=("member", "x"))
    np.testing.assert_allclose(rank_histogram(obs, ens, ties="fractional"), [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=1e-15)
    many = rank_histogram(obs.isel(x=[0] * 3000), ens.isel(x=[0] * 3000))
    assert many[[0, 4]].sum() == 0
    np.testing.assert_allclose(many[1:4], 1000, atol=120)


def test_rank_histogram_weights_gaps_and_kept_dimensions():
    obs, ens = forecasts(4)
    ens[1, 0, 5, 5] = np.nan
    counted = obs.notnull() & ens.notnull().all("member")
    weighted = rank_histogram(obs, ens, weights=area(obs))
    assert weighted.sum().item() == pytest.approx((area(obs) * counted).sum().item())
    by_time = rank_histogram(obs, ens, dim=("lat", "lon"))
    assert by_time.dims == ("time", "rank")
    np.testing.assert_allclose(by_time.sum("time"), rank_histogram(obs, ens))
    np.testing.assert_array_equal(by_time.sum("rank"), counted.sum(("lat", "lon")))
    assert rank_histogram(obs, ens, dim=()).dims == ("time", "lat", "lon", "rank")


def test_rmse_and_bias_equal_xskillscore_and_numpy():
    obs, ens = forecasts()
    weights = area(obs).broadcast_like(obs).transpose(*obs.dims)
    ours = rmse(obs, ens[0], weights=area(obs))
    assert ours.item() == pytest.approx(xskillscore.rmse(ens[0], obs, weights=weights, skipna=True).item(), rel=1e-12)
    expected = xskillscore.me(ens[0], obs, weights=weights, skipna=True)
    assert bias(obs, ens[0], weights=area(obs)).item() == pytest.approx(expected.item(), rel=1e-10)
    assert bias(obs, obs + 2).item() == pytest.approx(2)
    per_member = rmse(obs, ens)
    assert per_member.dims == ("member",)
    np.testing.assert_allclose(per_member, np.sqrt(np.nanmean((ens - obs.values) ** 2, axis=(1, 2, 3))), rtol=1e-12)
    assert per_member.attrs["units"] == "degC"
    np.testing.assert_allclose(rmse(obs, ens[0], dim="time"), np.sqrt(((ens[0] - obs) ** 2).mean("time")))


def quiet(factor, n=400, members=3, seed=5):
    rng = np.random.default_rng(seed)
    model = xr.DataArray(factor * rng.normal(size=(members, n, 20, 20)), dims=DIMS)
    return model, xr.DataArray(rng.normal(size=(n, 20, 20)), dims=DIMS[1:])


def test_variance_ratio_finds_collapse_per_member():
    model, reference = quiet(0.5)
    ratio = variance_ratio(model, reference)
    assert ratio.dims == ("member",)
    np.testing.assert_allclose(ratio, 0.25, rtol=0.03)
    mean = variance_ratio(model.mean("member"), reference)
    assert mean.item() == pytest.approx(0.25 / 3, rel=0.05)  # the trap: a mean of members is quieter
    cycle = 4 * np.sqrt(2) * np.cos(np.arange(400) * 2 * np.pi / 40)[:, None, None] / np.sqrt(2)
    assert variance_ratio(model + cycle, reference + cycle).min() > 0.85  # the trap: a cycle hides it


def test_variance_ratio_is_unbiased_where_a_mean_of_ratios_is_not():
    model, reference = quiet(1, n=5, members=40)
    means = variance_ratio(model, reference)
    ratios = model.var("time", ddof=1) / reference.var("time", ddof=1)
    assert means.mean().item() == pytest.approx(1, abs=0.1)
    assert ratios.mean().item() > 1.5 * means.mean().item()


def test_variance_ratio_takes_common_places_and_its_own_times():
    model, reference = quiet(0.5)
    land = reference.copy()
    land[:, :5] = np.nan
    model[:, :, :5] *= 100
    np.testing.assert_allclose(variance_ratio(model, land), 0.25, rtol=0.03)
    np.testing.assert_allclose(variance_ratio(model.isel(time=slice(200)), land), 0.25, rtol=0.05)
    assert variance_ratio(model, land, over=()).dims == ("member", "lat", "lon")
    with pytest.raises(ValueError, match="two values along 'time'"):
        variance_ratio(model.isel(time=[0]), reference)
    with pytest.raises(ValueError, match="lacks the reference's"):
        variance_ratio(model[0], model)


SCORES = [crps_ensemble, spread_error, rank_histogram]


@pytest.mark.parametrize("score", SCORES)
def test_errors_of_layout_name_the_dimensions(score):
    obs, ens = forecasts(3)
    with pytest.raises(ValueError, match=r"must have .* 'realization'"):
        score(obs, ens, member_dim="realization")
    with pytest.raises(ValueError, match="must not have the dimension 'member'"):
        score(ens, ens)
    with pytest.raises(ValueError, match="without 'member'"):
        score(obs.isel(time=0), ens)
    with pytest.raises(ValueError, match="share their coordinates"):
        score(obs.assign_coords(lon=obs.lon + 1), ens)
    with pytest.raises(ValueError, match="convert one"):
        score(obs.assign_attrs(units="K"), ens)
    with pytest.raises(ValueError, match=r"dim has \['depth'\]"):
        score(obs, ens, dim="depth")
    with pytest.raises(ValueError, match="reduce them"):
        score(obs, ens, weights=xr.DataArray(np.ones(2), dims="basin"))


def test_errors_of_choice():
    obs, ens = forecasts(1)
    with pytest.raises(ValueError, match="two members"):
        crps_ensemble(obs, ens, fair=True)
    with pytest.raises(ValueError, match="two members"):
        spread_error(obs, ens)
    with pytest.raises(ValueError, match="'fractional'"):
        rank_histogram(obs, ens, ties="middle")
    with pytest.raises(ValueError, match="lacks the observations'"):
        rmse(obs, ens.isel(time=0))


CHUNKS = [
    {"time": 1}, {"member": 1}, {"member": 4, "time": 2, "lat": 3}, {"lat": 1, "lon": 5},
    {"member": -1, "time": -1},
]  # fmt: skip


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("dim", [None, "time", ("lat", "lon"), ()])
def test_lazy_equals_eager_and_computes_nothing(chunks, dim):
    obs, ens = forecasts(decimals=1)
    before = obs.copy(deep=True), ens.copy(deep=True)
    lazy_obs = obs.chunk(dict.fromkeys(obs.dims, 2))  # chunked otherwise than the ensemble
    lazy_obs, lazy = (
        x.assign_coords(areacello=area(obs).chunk(lat=n)) for x, n in ((lazy_obs, 2), (ens.chunk(chunks), 3))
    )

    def products(y, x):
        options = {"dim": dim, "weights": area(obs)}
        both = spread_error(y, x, **options)
        skill = [score(y, x, **options) for score in (crps_ensemble, rank_histogram, rmse, bias)]
        return [
            *skill,
            both.spread,
            both.error,
            both.ratio,
            variance_ratio(x, y),
            crps_ensemble(y, x, skipna=True),
            crps_ensemble(y, x, threshold=(15, np.inf), member_weights=xr.DataArray(np.arange(10), dims="member")),
        ]

    with dask.config.set(scheduler=refuse_to_compute):
        results = products(lazy_obs, lazy)
    assert all(r.chunks is not None for r in results)
    dask.compute(spread_error(lazy_obs, lazy, dim=dim))
    for ours, expected in zip(dask.compute(*results), products(obs, ens), strict=True):
        assert ours.dims == expected.dims
        np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-13)
    xr.testing.assert_identical(obs, before[0])
    xr.testing.assert_identical(ens, before[1])


def test_maps_keep_the_coordinates_of_a_curvilinear_grid():
    obs, ens = (x.assign_coords(areacello=area(x)) for x in forecasts())
    maps = [score(obs, ens, dim="time") for score in (crps_ensemble, spread_error, rmse, bias)]
    assert all("areacello" in m.coords for m in [*maps, variance_ratio(ens, obs, over=())])


def test_lazy_scores_travel_to_other_processes():
    obs, ens = (x.chunk(time=2) for x in forecasts())
    score = crps_ensemble(obs, ens, fair=True) + rank_histogram(obs, ens)[0]
    there = cloudpickle.loads(cloudpickle.dumps(score))
    assert there.compute() == score.compute()


def test_members_in_many_chunks_do_not_become_one_huge_chunk():
    ens = xr.DataArray(dask.array.zeros((40, 30, 500, 1000), chunks=(1, 30, 500, 1000)), dims=DIMS)
    obs = ens[0]
    score = crps_ensemble(obs, ens, dim=())
    biggest = max(math.prod(block) for block in [tuple(max(c) for c in score.chunks)])
    assert biggest * 40 * 8 <= 2**28
