"""Mean absolute error, R² and anomaly correlation against xskillscore, numpy and a loop."""

import dask
import numpy as np
import pytest
import xarray as xr
import xskillscore

from polynya.diagnostics import anomaly_correlation, mae, r2

DIMS = ("member", "time", "lat", "lon")


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def pair(seed=0, land=True):
    rng = np.random.default_rng(seed)
    truth = rng.normal(288, 1, (6, 5, 8))
    model = truth + rng.normal(0.3, 0.7, (3, 6, 5, 8))
    if land:
        truth[:, :2, :3] = np.nan
        model[..., 4, 7] = np.nan
    coords = {"lat": np.linspace(-60, 60, 5), "lon": np.arange(8) * 45.0, "time": np.arange(6)}
    attrs = {"units": "K"}
    return xr.DataArray(truth, coords, DIMS[1:], attrs=attrs), xr.DataArray(model, coords, DIMS, attrs=attrs)


def weights_of(field):
    return np.cos(np.deg2rad(field.lat))


@pytest.mark.parametrize("dim", [None, "time", ("lat", "lon")])
def test_scores_equal_xskillscore(dim):
    obs, model = pair()
    dims = list(obs.dims) if dim is None else [dim] if isinstance(dim, str) else list(dim)
    full = (weights_of(obs) * xr.ones_like(obs.fillna(0))).transpose(*obs.dims)
    for m in range(3):
        one = model[m]
        options = {
            "dim": dims,
            "weights": full.isel({d: 0 for d in obs.dims if d not in dims}, drop=True),
            "skipna": True,
        }
        pairs = [
            (mae(obs, model, dim=dim, weights=weights_of(obs))[m], xskillscore.mae(obs, one, **options)),
            (r2(obs, model, dim=dim, weights=weights_of(obs))[m], xskillscore.r2(obs, one, **options)),
            (
                anomaly_correlation(obs, model, dim=dim, weights=weights_of(obs))[m],
                xskillscore.pearson_r(obs, one, **options),
            ),
        ]
        for ours, theirs in pairs:
            theirs = theirs.where(ours.notnull()) if ours.ndim else theirs
            np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_r2_is_about_the_observation():
    a = xr.DataArray(np.random.default_rng(0).normal(size=4000), dims="x")
    assert r2(a, a).item() == 1
    assert r2(a, 2 * a).item() == pytest.approx(0, abs=1e-2)
    assert r2(2 * a, a).item() == pytest.approx(0.75, abs=1e-2)
    assert r2(a, a * 0 + a.mean()).item() == pytest.approx(0, abs=1e-12)
    assert np.isnan(r2(a * 0, a))


def test_correlation_about_a_climatology_equals_a_loop():
    obs, model = pair()
    clim = obs.mean("time") + 0.1
    w = (weights_of(obs) * xr.ones_like(obs[0])).transpose("lat", "lon").values
    for centred in (False, True):
        found = anomaly_correlation(
            obs, model, climatology=clim, dim=("lat", "lon"), weights=weights_of(obs), centred=centred
        )
        assert found.dims == ("member", "time")
        for m, t in np.ndindex(3, 6):
            x, y = (f - clim.values for f in (model.values[m, t], obs.values[t]))
            wet = np.isfinite(x) & np.isfinite(y)
            x, y, s = x[wet], y[wet], w[wet]
            if centred:
                x, y = x - np.average(x, weights=s), y - np.average(y, weights=s)
            expected = (s * x * y).sum() / np.sqrt((s * x * x).sum() * (s * y * y).sum())
            np.testing.assert_allclose(found[m, t], expected, rtol=1e-10)


def test_a_bias_counts_in_the_uncentred_correlation_only():
    obs, _ = pair(land=False)
    clim = obs * 0 + 288
    shifted = obs + 5
    assert anomaly_correlation(obs, shifted).item() == pytest.approx(1)
    assert anomaly_correlation(obs, shifted, climatology=clim, centred=False) < 0.5


def test_float32_of_a_large_mean_keeps_its_digits():
    obs, model = (f.astype("f4") for f in pair())
    exact = anomaly_correlation(obs.astype("f8"), model.astype("f8"))
    np.testing.assert_allclose(anomaly_correlation(obs, model), exact, rtol=1e-12)


def test_errors_say_what_is_wrong():
    obs, model = pair()
    with pytest.raises(ValueError, match="climatology="):
        anomaly_correlation(obs, model, centred=False)
    with pytest.raises(ValueError, match=r"climatology has \['month'\]"):
        anomaly_correlation(obs, model, climatology=xr.DataArray(np.zeros(12), dims="month"))
    with pytest.raises(ValueError, match="lacks the observations'"):
        r2(obs, model.isel(time=0))
    with pytest.raises(ValueError, match="convert one"):
        mae(obs.assign_attrs(units="degC"), model)


@pytest.mark.parametrize("chunks", [{"time": 1}, {"member": 1, "lat": 2}, {"lon": 3}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    obs, model = pair()

    def products(y, x):
        options = {"dim": ("lat", "lon"), "weights": weights_of(obs)}
        return [score(y, x, **options) for score in (mae, r2, anomaly_correlation)]

    with dask.config.set(scheduler=refuse_to_compute):
        results = products(obs.chunk(time=2), model.chunk(chunks))
    for ours, expected in zip(dask.compute(*results), products(obs, model), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-11)
