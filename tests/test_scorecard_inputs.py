"""What the scorecard does with less than everything, with other calendars and coordinates, and what it refuses."""

import re

import dask
import numpy as np
import pytest
import xarray as xr
import xskillscore
from scorecard_ocean import imperfect, ocean, wet_of

from polynya.diagnostics import (
    Region,
    figures,
    samudra_scorecard,
    scorecard_table,
)
from polynya.diagnostics.comparison import ComparisonError
from polynya.diagnostics.regions import RegionError
from polynya.diagnostics.variability import ClimatologyError

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
