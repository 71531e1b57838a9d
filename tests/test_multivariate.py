"""Scores of vectors against scoringrules, closed forms, and the CRPS they become for one place."""

import math

import dask
import numpy as np
import pytest
import scoringrules
import xarray as xr

from polynya.diagnostics import crps_ensemble, energy_score, variogram_score

DIMS = ("member", "time", "lat", "lon")


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def forecasts(members=7, seed=0, shape=(4, 5, 6), land=False):
    values = np.random.default_rng(seed).normal(15, 1, (members + 1, *shape))
    if land:
        values[..., :2, :3] = np.nan
    attrs = {"units": "degC"}
    return xr.DataArray(values[0], dims=DIMS[1:], attrs=attrs), xr.DataArray(values[1:], dims=DIMS, attrs=attrs)


@pytest.mark.parametrize(("fair", "estimator"), [(False, "nrg"), (True, "fair")])
def test_energy_score_equals_scoringrules(fair, estimator):
    obs, ens = forecasts()
    ours = energy_score(obs, ens, norm_dim=("lat", "lon"), dim=(), fair=fair)
    flat = obs.values.reshape(4, -1), ens.values.reshape(7, 4, -1)
    theirs = scoringrules.es_ensemble(*flat, m_axis=0, v_axis=-1, estimator=estimator, backend="numpy")
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert ours.dims == ("time",)
    assert ours.attrs["units"] == "degC"


def test_energy_score_of_one_place_is_the_crps():
    obs, ens = forecasts(shape=(4, 1, 1))
    for fair in (False, True):
        ours = energy_score(obs, ens, norm_dim="lon", fair=fair)
        assert ours.item() == pytest.approx(crps_ensemble(obs, ens, fair=fair).item(), rel=1e-11)


@pytest.mark.parametrize(
    ("d", "expected"), [(1, 0.5641895835), (2, 0.8862269255), (3, 1.1283791671), (10, 2.1809490744)]
)
def test_fair_energy_score_of_a_perfect_forecast(d, expected):
    draws = np.random.default_rng(d).normal(size=(11, 40_000, d))
    obs, ens = xr.DataArray(draws[0], dims=("x", "v")), xr.DataArray(draws[1:], dims=("member", "x", "v"))
    assert energy_score(obs, ens, norm_dim="v", fair=True).item() == pytest.approx(expected, rel=1.5e-2)
    assert expected == pytest.approx(math.gamma((d + 1) / 2) / math.gamma(d / 2), rel=1e-9)


def test_weights_are_fractions_of_the_places_that_are_there():
    obs, ens = forecasts(land=True)
    area = xr.DataArray(np.linspace(1, 2, 5), dims="lat")
    ours = energy_score(obs, ens, norm_dim=("lat", "lon"), norm_weights=area)
    np.testing.assert_allclose(energy_score(obs, ens, norm_dim=("lat", "lon"), norm_weights=7e9 * area), ours)
    w = (area * obs[0].notnull()).transpose("lat", "lon").values.ravel()
    keep, w = w > 0, w[w > 0] / w.sum()
    flat = obs.values.reshape(4, -1)[:, keep], ens.values.reshape(7, 4, -1)[..., keep]
    scaled = (f * np.sqrt(w) for f in flat)
    theirs = scoringrules.es_ensemble(*scaled, m_axis=0, v_axis=-1, backend="numpy").mean()
    assert ours.item() == pytest.approx(theirs, rel=1e-12)


def test_float32_and_close_members_keep_their_digits():
    obs, ens = forecasts(members=20, shape=(1, 60, 90))
    near = (obs + 1e-3 * (ens - 15)).astype("f4")
    exact = energy_score(obs.astype("f4").astype("f8"), near.astype("f8"), norm_dim=("lat", "lon"))
    ours = energy_score(obs.astype("f4"), near, norm_dim=("lat", "lon"))
    assert ours.item() == pytest.approx(exact.item(), rel=1e-10)


@pytest.mark.parametrize("order", [0.5, 1, 2])
def test_variogram_score_equals_scoringrules(order):
    obs, ens = forecasts()
    ours = variogram_score(obs, ens, norm_dim=("lat", "lon"), order=order, dim=())
    flat = obs.values.reshape(4, -1), ens.values.reshape(7, 4, -1)
    theirs = scoringrules.vs_ensemble(*flat, m_axis=0, v_axis=-1, p=order, backend="numpy")
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)


def test_variogram_score_sees_a_wrong_correlation_that_the_crps_does_not():
    rng = np.random.default_rng(3)
    common = rng.normal(size=(11, 4000, 1)) + 0 * rng.normal(size=(11, 4000, 3))
    own = rng.normal(size=(11, 4000, 3))
    obs = xr.DataArray(common[0], dims=("x", "v"))
    right, wrong = (xr.DataArray(e[1:], dims=("member", "x", "v")) for e in (common, own))
    crps = [crps_ensemble(obs, e, fair=True).item() for e in (right, wrong)]
    assert crps[0] == pytest.approx(crps[1], abs=0.02)
    assert variogram_score(obs, wrong, norm_dim="v") > 1 + variogram_score(obs, right, norm_dim="v")


def test_land_and_gaps_do_not_count_and_nothing_is_nan():
    obs, ens = forecasts(land=True)
    ens[2, 0, 4, 4] = np.nan
    kept = obs.isel(lat=slice(2, None))
    for score in (energy_score, variogram_score):
        ours = score(obs, ens, norm_dim=("lat", "lon"), dim=())
        assert np.isfinite(ours).all()
        assert np.isnan(score(obs * np.nan, ens, norm_dim=("lat", "lon"), dim=())).all()
        part = score(kept, ens.isel(lat=slice(2, None)), norm_dim=("lat", "lon"), dim=())
        assert (ours > part).all()


def test_errors_say_what_is_wrong():
    obs, ens = forecasts(1)
    with pytest.raises(ValueError, match="two members"):
        energy_score(obs, ens, norm_dim="lat", fair=True)
    for score in (energy_score, variogram_score):
        with pytest.raises(ValueError, match=r"norm_dim has \['depth'\]"):
            score(obs, ens, norm_dim="depth")
        with pytest.raises(ValueError, match="no dimension"):
            score(obs, ens, norm_dim=())
        with pytest.raises(ValueError, match="norm_weights must have"):
            score(obs, ens, norm_dim="lat", norm_weights=xr.DataArray(np.ones(4), dims="time"))
    with pytest.raises(ValueError, match="coarsen"):
        variogram_score(
            xr.DataArray(np.zeros(40_000), dims="x"),
            xr.DataArray(np.zeros((2, 40_000)), dims=("member", "x")),
            norm_dim="x",
        )
    with pytest.raises(ValueError, match="order must be positive"):
        variogram_score(obs, ens, norm_dim="lat", order=0)


@pytest.mark.parametrize("chunks", [{"time": 1}, {"member": 2}, {"lat": 2, "lon": 5}])
@pytest.mark.parametrize("score", [energy_score, variogram_score])
def test_lazy_equals_eager_and_computes_nothing(chunks, score):
    obs, ens = forecasts(land=True)
    area = xr.DataArray(np.linspace(1, 2, 5), dims="lat")
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = score(obs.chunk(time=3, lat=1), ens.chunk(chunks), norm_dim=("lat", "lon"), norm_weights=area)
    expected = score(obs, ens, norm_dim=("lat", "lon"), norm_weights=area)
    assert lazy.compute().item() == pytest.approx(expected.item(), rel=1e-12)
