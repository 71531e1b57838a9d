"""The scorecard against loops over the definitions, and what it does with less than everything."""

import re

import dask
import numpy as np
import pytest
import scipy.signal
import scipy.stats
import xarray as xr
import xskillscore

from polynya.diagnostics import (
    Region,
    autocorrelation,
    deseasoned,
    eddy_kinetic_energy,
    figures,
    isotropic_spectrum,
    nino34,
    samudra_scorecard,
    scorecard_table,
    select_region,
    temporal_spectrum,
)
from polynya.diagnostics.comparison import ComparisonError
from polynya.diagnostics.regions import RegionError
from polynya.diagnostics.variability import ClimatologyError

LEV = np.array([10.0, 300, 900, 1500, 3000])
DZ = np.array([20.0, 500, 600, 800, 2500])
BANDS = {"0-700 m": [0, 1], "700-2000 m": [2, 3], "2000-7000 m": [4]}
SCORES = {"time", "ring", "frequency", "lag"}

pytestmark = pytest.mark.filterwarnings("error:invalid value", "error:divide by zero")


def smooth(rng, n, shape, phi=0.9):
    return scipy.signal.lfilter([1], [1, -phi], rng.normal(size=(n, *shape)), axis=0)


def ocean(n=219, *, seed=0, calendar="noleap", names=("thetao", "so", "uo", "vo", "zos")):
    """A globe of 7.5 x 10 degrees with a continent, a shelf and an annual cycle, float32."""
    rng = np.random.default_rng(seed)
    lat, lon = np.arange(-56.25, 60, 7.5), np.arange(5.0, 360, 10)
    floor = np.full((lat.size, lon.size), 5000.0)
    floor[:, :6] = 0
    floor[5:9, 6:9] = 1000
    wet = LEV[:, None, None] < floor
    wet[:, 6, 20] = False  # an island in the equatorial Pacific
    season = np.cos(2 * np.pi * np.arange(n) / 73)[:, None, None, None]
    scale = np.exp(-LEV / 800)[:, None, None]
    units = {"thetao": "degC", "so": "0.001", "uo": "m s-1", "vo": "m s-1", "zos": "m"}
    size = {"thetao": 1.0, "so": 0.1, "uo": 0.05, "vo": 0.05}
    mean = {"thetao": 15.0, "so": 35.0, "uo": 0.1, "vo": 0.0}
    data = {}
    for name in names:
        if name == "zos":
            x = np.where(wet[0], 0.1 * smooth(rng, n, floor.shape), np.nan)
            data[name] = (("time", "lat", "lon"), x.astype("f4"), {"units": "m"})
            continue
        x = mean[name] + size[name] * scale * (smooth(rng, n, wet.shape) + 3 * season)
        data[name] = (("time", "lev", "lat", "lon"), np.where(wet, x, np.nan).astype("f4"), {"units": units[name]})
    time = xr.date_range("2001-01-03", periods=n, freq="5D", calendar=calendar, use_cftime=True)
    area = rng.uniform(1, 2, floor.shape) * 1e11
    coords = {"time": time, "lev": LEV, "lat": lat, "lon": lon, "dz": ("lev", DZ, {"units": "m"})}
    return xr.Dataset(data, coords | {"areacello": (("lat", "lon"), area, {"units": "m2"})})


def imperfect(truth, seed=1, error=0.5):
    other = ocean(truth.sizes["time"], seed=seed, names=[*truth.data_vars])
    anomalies = {n: error * (other[n] - other[n].mean("time")) for n in truth.data_vars}
    made = {n: (0.8 * truth[n] + anomalies[n]).transpose(*truth[n].dims).astype("f4") for n in truth.data_vars}
    return truth.assign({n: x.assign_attrs(truth[n].attrs) for n, x in made.items()})


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


def wet_of(truth, name="thetao"):
    return np.isfinite(truth[name].isel(time=0).to_numpy())


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


def test_members_are_scored_singly_and_lazily(card, perfect, prediction, truth):
    members = xr.concat(
        [truth, prediction], dim=xr.Variable("member", [4, 9]), data_vars="all", coords="minimal", compat="override"
    )
    with dask.config.set(scheduler="synchronous"):
        found = samudra_scorecard(members.chunk(time=20, lev=2, member=1), truth.chunk(time=1), batch_bytes=1e6)
    assert found["member"].to_numpy().tolist() == [4, 9]
    for number, alone in ((4, perfect), (9, card)):
        assert set(found.data_vars) == set(alone.data_vars)
        for name, x in alone.data_vars.items():
            one = found[name].sel(member=number) if "member" in found[name].dims else found[name]
            np.testing.assert_allclose(one, x.transpose(*one.dims), rtol=1e-6, atol=1e-9, err_msg=str(name))
    table = scorecard_table(found)
    assert re.search(r"Niño-3.4 R² +\| [\d.]+ ± [\d.]+ ", table)


def test_times_are_matched_and_counted(prediction, truth):
    early, late = prediction.isel(time=slice(0, 200)), truth.isel(time=slice(10, None))
    found = samudra_scorecard(early, late, variables=["zos"])
    assert found.attrs["times_left_out_of_prediction"] == 10
    assert found.attrs["times_left_out_of_truth"] == 19
    same = samudra_scorecard(early.isel(time=slice(10, None)), late.isel(time=slice(0, 190)), variables=["zos"])
    np.testing.assert_allclose(found["variance_ratio_zos"], same["variance_ratio_zos"])
    assert "10 times of the prediction and 19 of the truth left out" in scorecard_table(found)


def test_a_prediction_of_the_uppermost_levels_is_scored_on_those(card, prediction, truth):
    few = samudra_scorecard(prediction.isel(lev=slice(2)), truth)
    assert few.sizes["lev"] == 2 and "levels" in few.attrs["skipped"]
    np.testing.assert_allclose(few.variance_ratio_thetao, card.variance_ratio_thetao.isel(lev=slice(2)), rtol=1e-6)


def test_what_is_missing_is_said(truth):
    only = truth[["zos"]]
    found = samudra_scorecard(only, only)
    assert set(found.data_vars) == {"variance_ratio_zos", "variance_ratio_anomaly_zos"}
    for line in (
        "nino34: thetao not in both",
        "eddies and kinetic energy: uo and vo not in both",
        "temperature_r2: no bands",
    ):
        assert line in found.attrs["skipped"]
    half = samudra_scorecard(truth[["thetao", "uo"]], truth)
    assert "eddies and kinetic energy: vo not in both" in half.attrs["skipped"]
    assert {"variance_ratio_uo", "temperature_r2"} <= set(half.data_vars)
    assert "eke_ratio" not in half


def test_shallow_channels_and_unknown_thicknesses(truth):
    channel = truth.isel(lat=slice(0, 4), lon=slice(10, 20), lev=slice(0, 2))
    found = samudra_scorecard(channel, channel)
    assert found["band"].to_numpy().tolist() == ["0-700 m"]
    assert found["region"].to_numpy().tolist() == ["Global"]
    skipped = found.attrs["skipped"]
    assert "nino34: no cell in 190-240 E" in skipped
    assert "band 700-2000 m: no level between 700 and 2000 m" in skipped
    assert "curves: no region" in skipped
    unknown = samudra_scorecard(channel.drop_vars("dz"), channel.drop_vars("dz"))
    assert "has no layer thickness" in unknown.attrs["skipped"]
    assert "snapshot_correlation" in unknown
    given = samudra_scorecard(channel.drop_vars("dz"), channel.drop_vars("dz"), dz=channel["dz"])
    np.testing.assert_allclose(given["temperature_truth"], found["temperature_truth"])
    unmeasured = samudra_scorecard(channel.drop_vars("lev"), channel.drop_vars("lev"))
    assert "bands: 'lev' has no coordinate" in unmeasured.attrs["skipped"]
    assert {"variance_ratio_thetao", "snapshot_rmse"} <= set(unmeasured.data_vars)
    dry = truth.assign(thetao=truth["thetao"].where(truth["lev"] < 2000), so=truth["so"].where(truth["lev"] < 2000))
    assert "band 2000-7000 m: no wet cell" in samudra_scorecard(dry, dry, variables=["thetao", "so"]).attrs["skipped"]


def test_short_records_lose_their_mean_only_and_say_so(prediction, truth):
    short = prediction.isel(time=slice(0, 74)), truth.isel(time=slice(0, 74))
    with pytest.warns(UserWarning, match="74 records are too few for a day-of-year climatology"):
        found = samudra_scorecard(*short)
    assert found.attrs["climatology"] == "time mean"
    np.testing.assert_allclose(found["variance_ratio_anomaly_so"], found["variance_ratio_so"])
    assert 0.1 < found["nino34_r2"] < 1
    p, t = (d["thetao"].to_numpy()[:, 0].astype("f8") for d in short)
    wet = wet_of(truth)[0]
    p, t = ((x[-1] - x.mean(0))[wet] for x in (p, t))
    np.testing.assert_allclose(found["snapshot_correlation"].sel(snapshot="surface"), np.corrcoef(p, t)[0, 1])
    with pytest.raises(ClimatologyError, match="give two years or more"):
        samudra_scorecard(*short, climatology="day of year")
    brief = samudra_scorecard(*(d.isel(time=slice(0, 20)) for d in short), climatology="time mean")
    assert "nino34: 20 records, and the first 30 are dropped" in brief.attrs["skipped"]
    assert "temperature_r2" in brief
    single = samudra_scorecard(*(d.isel(time=slice(0, 1)) for d in short), climatology="time mean")
    assert "snapshot: fewer than two records" in single.attrs["skipped"]


@pytest.mark.parametrize("calendar", ["360_day", "julian", "datetime64"])
def test_other_calendars(calendar):
    run = ocean(150, calendar="standard" if calendar == "datetime64" else calendar, names=("thetao",))
    if calendar == "datetime64":
        run = run.assign_coords(time=run.indexes["time"].to_datetimeindex(time_unit="us"))
    found = samudra_scorecard(run, run)
    np.testing.assert_allclose(found["nino34_r2"], 1)
    assert getattr(found["time"].to_numpy()[0], "calendar", "datetime64") == calendar


def test_two_dimensional_coordinates_and_unnumbered_members(card, prediction, truth):
    """As in the store of OM4: dims y, x with lat and lon (y, x), here cut at 180 degrees instead of 0."""

    def curved(dataset):
        lat, lon = xr.broadcast(dataset["lat"], (dataset["lon"] + 180) % 360 - 180)
        flat = dataset.drop_vars(["lat", "lon"]).rename(lat="y", lon="x")
        both = {n: (("y", "x"), c.to_numpy()) for n, c in (("lat", lat), ("lon", lon))}
        return flat.assign_coords(both).roll(x=18, roll_coords=True)

    found = samudra_scorecard(curved(prediction).expand_dims(member=2), curved(truth))
    assert found["member"].to_numpy().tolist() == [0, 1]
    for name in ("nino34_r2", "eke_map_rmse", "acf_velocity_distance", "spectrum_thetao_distance", "temperature_r2"):
        np.testing.assert_allclose(found[name].isel(member=1), card[name], rtol=1e-6, err_msg=name)


def test_r2_is_that_of_xskillscore(card):
    p, t = (card[f"nino34_{side}"].dropna("time") for side in ("prediction", "truth"))
    np.testing.assert_allclose(card["nino34_r2"], xskillscore.r2(t, p, dim="time"))
    np.testing.assert_allclose(card["nino34_correlation"], xskillscore.pearson_r(t, p, dim="time"))


def test_a_last_day_without_partner_has_no_snapshot(truth):
    odd = truth.assign_coords(
        time=[
            *truth["time"].to_numpy()[:-1],
            truth["time"].to_numpy()[-1] + (truth["time"].to_numpy()[1] - truth["time"].to_numpy()[0]) / 5,
        ]
    )
    found = samudra_scorecard(odd, odd, variables=["thetao"])
    assert "snapshot: no other record has the day of year of the last" in found.attrs["skipped"]
    assert found.attrs["records_alone_in_day_of_year"] == 1
    assert "(1 records are the only ones of theirs: anomaly 0)" in scorecard_table(found)


def test_a_prediction_that_ends_in_nan_says_so(prediction, truth):
    broken = prediction.copy()
    broken["thetao"] = prediction["thetao"].where(prediction["time"] < prediction["time"][-5])
    found = samudra_scorecard(broken, truth, variables=["thetao"], regions=[])
    for name in ("temperature_r2", "snapshot_correlation", "snapshot_rmse", "variance_ratio_thetao", "nino34_r2"):
        assert found[name].isnull().all(), name
        assert f"{name}: " in found.attrs["undefined"]


def test_refusals_say_what_was_wanted(prediction, truth):
    def refused(match, p=prediction, t=truth, error=ComparisonError, **options):
        with pytest.raises(error, match=match):
            samudra_scorecard(p, t, **options)

    refused("none of .* is in both prediction \\['a'\\]", prediction.rename(thetao="a")[["a"]])
    refused("have no common time", t=truth.assign_coords(time=truth.indexes["time"].shift(2000, "D")))
    refused("must share a calendar, got 'noleap' and '360_day'", t=ocean(60, calendar="360_day"))
    refused("'lat' has 10 and 16 points", prediction.isel(lat=slice(0, 10)))
    refused("grids differ: 'lon'", prediction.assign_coords(lon=prediction["lon"] + 1))
    refused("grids differ: 'lev'", prediction.assign_coords(lev=prediction["lev"] + 1))
    refused("one truth is needed, got 2 members", t=xr.concat([truth, truth], dim="member", data_vars="all"))
    refused("must rise without repetition", prediction.isel(time=[1, 0, 2]))
    refused("needs records along the coordinate 'time'", prediction.isel(time=0))
    refused("no region 'Atlantis'", error=RegionError, regions=["Atlantis"])
    kelvin = truth.assign(thetao=truth["thetao"].assign_attrs(units="K"))
    refused("must be in 'degC'", t=kelvin, error=ValueError)
    refused("units must agree", kelvin, error=ValueError)
    leads = (d[["zos"]].expand_dims(lead=2) for d in (prediction, truth))
    refused("zos has the dimensions \\['lead'\\]", *leads)
    refused("zos has dimensions", prediction.assign(zos=prediction["zos"].isel(lon=0, drop=True)))


def test_regions_and_bands_of_ones_own(prediction, truth):
    found = samudra_scorecard(
        prediction, truth, regions={"Indian": Region(70, 110, -30, 10)}, bands={"top": (0, 50)}, variables=["thetao"]
    )
    assert found["region"].to_numpy().tolist() == ["Global", "Indian"]
    assert found["band"].to_numpy().tolist() == ["top"]
    assert found["snapshot"].to_numpy().tolist() == ["surface"]


def test_table_has_the_papers_rows(card, perfect):
    lines = scorecard_table({"emulator": card, "itself": perfect}).splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert rows == [
        "Niño-3.4 R²",
        "Niño-3.4 RMSE °C",
        "Niño-3.4 correlation",
        "R² 0-700 m (detrended global mean)",
        "R² 700-2000 m (detrended global mean)",
        "R² 2000-7000 m (detrended global mean)",
        "snapshot surface (10 m) correlation / RMSE °C",
        "snapshot 700 m (900 m) correlation / RMSE °C",
        "snapshot 2000 m (3000 m) correlation / RMSE °C",
        "variance ratio thetao, 10 / 900 / 3000 m",
        "variance ratio so, 10 / 900 / 3000 m",
        "variance ratio uo, 10 / 900 / 3000 m",
        "variance ratio vo, 10 / 900 / 3000 m",
        "variance ratio zos",
    ]
    assert lines[2].split("|")[2].strip() == f"{float(card['nino34_r2']):#.4g}"
    assert lines[2].split("|")[3].strip() == "1.000"
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    with pytest.raises(ValueError, match="nothing to print"):
        scorecard_table({})


def test_figure_draws_what_there_is(card, prediction, truth):
    fig = figures.scorecard_figure(card, title="Half as good as the truth")
    fig.draw_without_rendering()
    axes = fig.get_axes()
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles[0] == f"R² {float(card['nino34_r2']):.2f}"
    assert len(axes) == 1 + 3 + 2 + 2
    assert [t for t in titles if "Tropical Pacific" in t] == [
        "autocorrelation, Tropical Pacific",
        "spectrum in time, Tropical Pacific",
        "spectrum in space, Tropical Pacific",
    ]
    small = samudra_scorecard(prediction, truth, variables=["uo", "vo"], regions=["Malvinas"])
    fig = figures.scorecard_figure(small, title="Eddies", field="velocity", region="Malvinas")
    assert len(fig.get_axes()) == 3  # ratios, autocorrelation, spectrum in time
    with pytest.raises(ValueError, match="no curves of velocity in 'Kuroshio': choose among"):
        figures.scorecard_figure(small, title="Eddies", field="velocity", region="Kuroshio")
    with pytest.raises(ValueError, match="no series or curves to draw"):
        figures.scorecard_figure(samudra_scorecard(truth, truth, variables=["zos"]), title="Nothing")


def test_a_scorecard_describes_itself_and_can_be_stored(card, tmp_path):
    for name, x in card.data_vars.items():
        assert {"units", "long_name"} <= set(x.attrs), name
    assert card.attrs["Conventions"] == "CF-1.11"
    card.to_zarr(tmp_path / "card.zarr", zarr_format=2)
    back = xr.open_zarr(tmp_path / "card.zarr", decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    assert scorecard_table(back) == scorecard_table(card)
