"""The scorecard against loops over the definitions."""

import re

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import xarray as xr
from scorecard_ocean import BANDS, DZ, LEV, imperfect, ocean, wet_of

from polynya.diagnostics import (
    autocorrelation,
    deseasoned,
    eddy_kinetic_energy,
    isotropic_spectrum,
    nino34,
    samudra_scorecard,
    select_region,
    temporal_spectrum,
)

SCORES = {"time", "ring", "frequency", "lag"}

pytestmark = pytest.mark.filterwarnings("error:invalid value", "error:divide by zero")


@pytest.fixture(scope="module")
def truth():
    return ocean()


@pytest.fixture(scope="module")
def prediction(truth):
    return imperfect(truth)


@pytest.fixture(scope="module")
def card(prediction, truth):
    return samudra_scorecard(prediction, truth)


@pytest.fixture(scope="module")
def perfect(truth):
    return samudra_scorecard(truth, truth)


def weights_of(truth, band):
    k = BANDS[band]
    return wet_of(truth)[k] * DZ[k][:, None, None] * truth["areacello"].to_numpy()


def band_mean(dataset, name, band):
    """Thickness-weighted mean over the wet levels of a band (time, lat, lon), as xarray does it."""
    x = dataset[name].isel(lev=BANDS[band]).astype("f8")
    return x.weighted(xr.DataArray(DZ[BANDS[band]], dims="lev")).mean("lev").assign_attrs(units="degC")


def test_a_perfect_prediction_has_perfect_scores(perfect):
    for name, x in perfect.data_vars.items():
        if SCORES & set(x.dims) or "eke_prediction" in name or "eke_truth" in name:
            continue
        best = 0 if re.search("rmse|mae|distance", str(name)) else 1
        values = x.to_numpy()[np.isfinite(x)]
        assert values.size, name
        np.testing.assert_allclose(values, best, atol=1e-7, err_msg=str(name))
    assert perfect.attrs["climatology"] == "day of year"
    assert perfect.attrs["records"] == 219


def test_bias_and_other_seasons_cost_nothing(truth, perfect):
    """Separate climatologies: only scores of the whole temperature see the bias."""
    biased = truth.assign(thetao=(truth["thetao"].astype("f8") + 3).assign_attrs(units="degC"))
    found = samudra_scorecard(biased, truth, variables=["thetao"])
    for name in ("nino34_r2", "nino34_correlation", "temperature_r2", "snapshot_correlation", "variance_ratio_thetao"):
        np.testing.assert_allclose(found[name], 1, atol=1e-6, err_msg=name)
    for name in ("nino34_rmse", "snapshot_rmse", "temporal_rmse_thetao", "variance_map_rmse_thetao"):
        np.testing.assert_allclose(found[name].fillna(0), 0, atol=1e-6, err_msg=name)
    assert (found["temperature_r2_undetrended"] < -1).all()


def test_doubled_anomalies_have_four_times_the_variance(truth):
    doubled = truth.map(lambda x: (2 * x.astype("f8") - x.mean("time", dtype="f8")).assign_attrs(x.attrs))
    found = samudra_scorecard(doubled.assign_coords(truth.coords), truth)
    for name in truth.data_vars:
        for key in ("variance_ratio_", "variance_ratio_anomaly_"):
            np.testing.assert_allclose(found[f"{key}{name}"], 4, rtol=1e-5, err_msg=str(name))
    np.testing.assert_allclose(found["eke_ratio"].sel(region="Global"), 4, rtol=1e-5)
    np.testing.assert_allclose(found["eke_map_correlation"].sel(region="Global"), 1)
    np.testing.assert_allclose(found["acf_thetao_distance"].dropna("region"), 0, atol=1e-6)
    for row in ("temporal_spectrum_thetao", "spectrum_velocity"):
        np.testing.assert_allclose(found[f"{row}_distance"].dropna("region"), np.log10(4), rtol=1e-4)


def test_variance_ratio_is_a_ratio_of_area_means(card, prediction, truth):
    area = truth["areacello"].to_numpy() * wet_of(truth, "so")
    for key, change in {"": lambda x: x, "anomaly_": deseasoned}.items():
        ours, theirs = (
            (change(d["so"].astype("f8")).var("time").fillna(0) * area).sum(("lat", "lon")) for d in (prediction, truth)
        )
        np.testing.assert_allclose(card[f"variance_ratio_{key}so"], ours / theirs, rtol=1e-9)
    assert card["variance_ratio_zos"].dims == ()


def test_nino_scores_equal_their_definitions(card, prediction, truth):
    p, t = (nino34(d["thetao"]).to_numpy() for d in (prediction, truth))
    np.testing.assert_allclose(card["nino34_r2"], 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())
    np.testing.assert_allclose(card["nino34_correlation"], np.corrcoef(p, t)[0, 1])
    np.testing.assert_allclose(card["nino34_mae"], abs(p - t).mean())
    np.testing.assert_allclose(card["nino34_rmse"], np.sqrt(((p - t) ** 2).mean()))
    assert int(card["nino34_truth"].isnull().sum()) == 30
    np.testing.assert_allclose(card["nino34_truth"][30:], t)


@pytest.mark.parametrize("band", BANDS)
def test_heat_equals_its_definition(card, prediction, truth, band):
    w = weights_of(truth, band)
    found = []
    for side, dataset in (("prediction", prediction), ("truth", truth)):
        x = np.nan_to_num(dataset["thetao"].isel(lev=BANDS[band]).to_numpy().astype("f8"))
        series = (x * w).sum((1, 2, 3)) / w.sum()
        np.testing.assert_allclose(card[f"temperature_{side}"].sel(band=band), series, rtol=1e-12)
        found.append(series)
    one = card.sel(band=band)
    p, t = found
    np.testing.assert_allclose(
        one["temperature_r2_undetrended"], 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()
    )
    p, t = (scipy.signal.detrend(x) for x in found)
    np.testing.assert_allclose(one["temperature_r2"], 1 - ((p - t) ** 2).sum() / (t**2).sum())


def test_heat_of_planted_waves_and_trends(truth):
    """Any trend and bias, and an error of a third of the truth's amplitude: R2 = 1 - 1/9."""
    phase = 2 * np.pi * np.arange(219) / 219
    shapes = {"truth": 0.3 * np.sin(6 * phase), "error": 0.1 * np.sin(20 * phase), "trend": np.linspace(0, 5, 219)}
    t, e, line = (xr.DataArray(x, dims="time") for x in shapes.values())
    still = truth["thetao"].isel(time=0, drop=True).astype("f8")
    dims = truth["thetao"].dims
    base = (still + t).transpose(*dims).assign_coords(truth["thetao"].coords).assign_attrs(units="degC")
    other = (base + e + line - 2).transpose(*dims).assign_attrs(units="degC")
    found = samudra_scorecard(truth.assign(thetao=other), truth.assign(thetao=base), variables=["thetao"])
    np.testing.assert_allclose(found["temperature_r2"], 1 - 1 / 9, atol=5e-3)


def test_snapshots_equal_their_definition(card, prediction, truth):
    alike = [t for t in range(219) if t % 73 == 218 % 73]
    for name, k in {"surface": 0, "700 m": 2, "2000 m": 4}.items():
        p, t = (d["thetao"].to_numpy()[:, k].astype("f8") for d in (prediction, truth))
        p, t = (x[-1] - x[alike].mean(0) for x in (p, t))
        wet = wet_of(truth)[k]
        one = card.sel(snapshot=name)
        np.testing.assert_allclose(one["snapshot_correlation"], np.corrcoef(p[wet], t[wet])[0, 1])
        np.testing.assert_allclose(one["snapshot_rmse"], np.sqrt(((p - t)[wet] ** 2).mean()))
        assert one["snapshot_depth"] == LEV[k]


@pytest.mark.parametrize("region", ["Global", "Malvinas", "Tropical Pacific"])
@pytest.mark.parametrize("band", ["0-700 m", "2000-7000 m"])
def test_table_of_variances_equals_its_definition(card, prediction, truth, region, band):
    def cut(x):
        return x if region == "Global" else select_region(x, region)

    p, t = (cut(deseasoned(band_mean(d, "thetao", band))) for d in (prediction, truth))
    area = cut(truth["areacello"]).to_numpy() * np.isfinite(t[0].to_numpy())
    p, t = (np.nan_to_num(x.to_numpy()) for x in (p, t))
    vp, vt = p.var(0), t.var(0)
    one = card.sel(region=region, band=band)
    np.testing.assert_allclose(one["variance_map_rmse_thetao"], np.sqrt(np.average((vp - vt) ** 2, weights=area)))
    matrix = np.cov(vp.ravel(), vt.ravel(), aweights=area.ravel())
    wanted = matrix[0, 1] / np.sqrt(matrix[0, 0] * matrix[1, 1])
    np.testing.assert_allclose(one["variance_map_correlation_thetao"], wanted)
    for key, error in {"": p - t, "_detrended": scipy.signal.detrend(p - t, axis=0)}.items():
        wanted = np.average(np.sqrt((error**2).mean(0)), weights=area)
        np.testing.assert_allclose(one[f"temporal_rmse{key}_thetao"], wanted, rtol=1e-9)


def test_eddies_equal_their_definition(card, prediction, truth):
    found = []
    for side, dataset in (("prediction", prediction), ("truth", truth)):
        eke = eddy_kinetic_energy(dataset["uo"].astype("f8"), dataset["vo"].astype("f8"))
        column = eke.isel(lev=[0, 1]).weighted(xr.DataArray(DZ[:2], dims="lev")).mean("lev")
        found.append(select_region(column.assign_coords(areacello=truth["areacello"]), "Kuroshio"))
        mean = found[-1].weighted(found[-1]["areacello"]).mean()
        np.testing.assert_allclose(card[f"eke_{side}"].sel(region="Kuroshio", band="0-700 m"), mean, rtol=1e-9)
    square = ((found[0] - found[1]) ** 2).weighted(found[0]["areacello"]).mean() ** 0.5
    np.testing.assert_allclose(card["eke_map_rmse"].sel(region="Kuroshio", band="0-700 m"), square, rtol=1e-6)
    kinetic = truth.assign(ke=(truth["uo"].astype("f8") ** 2 + truth["vo"].astype("f8") ** 2) / 2)
    p = prediction.assign(ke=(prediction["uo"].astype("f8") ** 2 + prediction["vo"].astype("f8") ** 2) / 2)
    vp, vt = (deseasoned(band_mean(d, "ke", "700-2000 m")).var("time") for d in (p, kinetic))
    wanted = ((vp - vt) ** 2).weighted(truth["areacello"]).mean() ** 0.5
    np.testing.assert_allclose(card["variance_map_rmse_ke"].sel(region="Global", band="700-2000 m"), wanted, rtol=1e-6)


def test_curves_equal_the_functions_they_are_made_of(card, truth):
    box = select_region(truth["thetao"].isel(lev=0, drop=True).astype("f8"), "Tropical Pacific")
    anomalies = deseasoned(box)
    assert np.isnan(box).any()
    one = card.sel(region="Tropical Pacific")
    np.testing.assert_allclose(one["acf_thetao_truth"], autocorrelation(anomalies), atol=1e-10)
    power = temporal_spectrum(anomalies.fillna(0)).mean(("lat", "lon"))  # land counts as 0
    np.testing.assert_allclose(one["temporal_spectrum_thetao_truth"], power, rtol=1e-8)
    waves = isotropic_spectrum((box - box.mean("time")).fillna(0), normalize="mean").mean("time")
    k = np.isfinite(one["wavenumber"])
    np.testing.assert_allclose(one["spectrum_thetao_truth"][k], waves, rtol=1e-8)
    np.testing.assert_allclose(one["wavenumber"][k], waves["wavenumber"])
    u, v = (select_region(truth[n].isel(lev=0, drop=True).astype("f8"), "Malvinas") for n in ("uo", "vo"))
    both = (autocorrelation(deseasoned(u)) + autocorrelation(deseasoned(v))) / 2
    np.testing.assert_allclose(card["acf_velocity_truth"].sel(region="Malvinas"), both, atol=1e-10)
