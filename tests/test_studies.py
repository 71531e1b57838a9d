"""Studies: their numbers are those of the plain functions, lazy or not, and their pages show them and stand alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr
from test_report import Page

from polynya import diagnostics as dx
from polynya.diagnostics import AssimilationSkill, EnsembleSkill, HeatUptake, Region, report
from polynya.diagnostics.page import format_value
from polynya.diagnostics.slabs import by_slab, slabs_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:cmocean")

BOX = Region(10, 200, -40, 40)


def ocean(members=3, times=10, *, warming=0.0, seed=0):
    """A warm, salty box of an ocean with land in a corner, its members apart, its surface warming in time."""
    rng = np.random.default_rng(seed)
    lat, lon, dz = np.linspace(-35, 35, 8), np.linspace(15, 195, 13), np.array([100.0, 300.0, 600.0, 1500.0])
    lev = np.cumsum(dz) - dz / 2
    time = xr.date_range("0001-01-01", periods=times, freq="30D", calendar="noleap", use_cftime=True)
    coords = {"member": np.arange(members), "time": time, "lev": lev, "lat": lat, "lon": lon}
    shape = (members, times, 4, 8, 13)
    profile = np.array([18.0, 10.0, 5.0, 2.0])[:, None, None]
    thetao = profile + 0.1 * rng.normal(size=shape) + 0.02 * rng.normal(size=(members, 1, 1, 1, 1))
    thetao[:, :, 0] += warming * np.arange(times)[:, None, None]
    fields = {
        "thetao": (thetao, "degC"),
        "so": (35 - 0.2 * warming + 0.05 * rng.normal(size=shape) * (1 + warming), "0.001"),
        "zos": (0.1 * rng.normal(size=shape)[:, :, 0], "m"),
    }
    out = xr.Dataset(coords=coords)
    for name, (values, units) in fields.items():
        values = values.astype("f4")
        values[..., :2, :3] = np.nan
        dims = [d for d in coords if d != "lev" or values.ndim == 5]
        out[name] = (dims, values, {"units": units, "long_name": name})
    out = out.assign_coords(dz=("lev", dz, {"units": "m"}))
    out.attrs = {"title": "a box", "provenance": '{"seed": 1, "emulator": "' + "x" * 900 + '"}'}
    return out


@pytest.fixture(scope="module")
def runs():
    return ocean(warming=0.05), ocean()


@pytest.fixture(scope="module")
def heat_page(runs):
    forced, control = runs
    nature = HeatUptake(forced.isel(member=0, drop=True), control.isel(member=0, drop=True), name="nature")
    study = HeatUptake(forced, control, reference=nature, name="emulator", region=BOX)
    return study, study.report().html()


def text_of(html):
    return re.sub(r"\s+", " ", "".join(Page(html).text))


def check_page(html):
    """It parses, loads nothing, and every figure has a caption that is its text."""
    page = Page(html)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?://|url\(|@import|<script|(?:src|href|srcset)=\"(?!data:|#)", bare)
    assert page.images and all(len(image["alt"]) > 20 for image in page.images)
    assert page.tags.count("figcaption") == len(page.images) == page.tags.count("source")
    assert page.tags.count("table") and "definitions" in html and "prefers-color-scheme: dark" in html
    return page


def test_heat_uptake_has_the_numbers_of_the_plain_functions(runs):
    forced, control = runs
    found = HeatUptake(forced, control).results()
    area = dx.wet_area(forced.thetao)
    for band, depth in {"0-300 m": (0, 300), "700-2000 m": (700, 2000), "whole depth": (0, np.inf)}.items():
        heat, calm = (dx.global_heat_content(r.thetao, depth=depth) for r in (forced, control))
        expected = dx.heat_uptake(heat, area=area) - dx.heat_uptake(calm, area=area)
        np.testing.assert_allclose(found.uptake.sel(band=band), expected, rtol=1e-6)
        response = heat - heat.isel(time=0) - (calm - calm.isel(time=0))
        fit = dx.trend_with_error(response.mean("member"))
        np.testing.assert_allclose(found.low.sel(band=band), fit.low / area, rtol=1e-6, atol=1e-6)
    start = control[["thetao", "so"]].isel(time=0, drop=True).mean("member", keep_attrs=True)
    rise = [dx.global_steric(r.thetao, r.so, reference=start).thermosteric for r in (forced, control)]
    expected = rise[0] - rise[1] - (rise[0] - rise[1]).isel(time=0)
    np.testing.assert_allclose(found.thermosteric, expected, atol=1e-12)
    assert list(found.band.values) == ["0-300 m", "300-700 m", "700-2000 m", "below 2000 m", "whole depth"]


def test_heat_uptake_is_the_same_lazily_and_of_a_single_run(runs):
    forced, control = runs
    eager = HeatUptake(forced, control).results()
    lazy = HeatUptake(forced.chunk(member=2, time=4, lat=5), control.chunk(time=3)).results()
    for name, field in eager.data_vars.items():  # beside their size, for a response is a small difference
        np.testing.assert_allclose(lazy[name], field, rtol=0, atol=1e-9 * float(abs(field).max()), err_msg=str(name))
    one = HeatUptake(*(r.isel(member=1, drop=True) for r in runs)).results()
    np.testing.assert_allclose(one.uptake.isel(member=0), eager.uptake.sel(member=1))
    alone = HeatUptake(forced).results()
    heat = dx.global_heat_content(forced.thetao, depth=(0, 300))
    expected = dx.heat_uptake(heat, area=dx.wet_area(forced.thetao))
    np.testing.assert_allclose(alone.uptake.sel(band="0-300 m"), expected, rtol=1e-6)


def test_patterns_are_forced_minus_control_with_the_agreement_of_members(runs):
    forced, control = runs
    maps = HeatUptake(forced, control, window=3).patterns()
    assert {"heat content", "steric height", "thermosteric height", "halosteric height", "dynamic sea level"} == set(
        maps
    )
    change, agreement = maps["heat content"]
    last = [dx.heat_content(r.thetao.isel(time=slice(-3, None)), depth=(0, np.inf)).mean("time") for r in runs]
    np.testing.assert_allclose(change, (last[0] - last[1]).mean("member"))
    np.testing.assert_allclose(agreement, dx.sign_agreement(last[0] - last[1]))


def test_heat_that_came_through_the_surface_adds_up(runs):
    forced = runs[0].copy()
    heat = dx.heat_content(forced.thetao, depth=(0, np.inf))
    flux = heat.diff("time") / (30 * 86400)
    hfds = flux.reindex(time=forced.time).fillna(0.0).where(heat.notnull())
    forced["hfds"] = hfds.assign_attrs(units="W m-2")
    study = HeatUptake(forced)
    found = study.results()
    assert float(abs(found.change).max()) > 1e6
    np.testing.assert_allclose(found.residual, 0.0, atol=1e-3 * float(abs(found.change).max()))
    assert "Does the heat add up?" in study.report().html()


def test_the_heat_page_shows_the_numbers_and_stands_alone(heat_page, runs, tmp_path):
    study, html = heat_page
    page = check_page(html)
    text = text_of(html)
    found = study.results()
    for value in (found.uptake.sel(band="0-300 m").mean(), found.uptake.sel(band="whole depth").std("member", ddof=1)):
        assert format_value(float(value)) in text
    assert "3 members under the forcing beside 3 of a control, 10 records from 0001-01-01 to 0001-09-28" in text
    assert "Levitus et al. 2012" in text and "Santer et al. 2000" in text
    assert '"seed": 1' in text and "x" * 400 in text and "x" * 401 not in text  # provenance, long values cut short
    assert len(page.images) >= 7
    path = report(HeatUptake(*runs), tmp_path / "a" / "page.html", title="Another title", progress=True)
    assert "<h1>Another title</h1>" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, c: (f.drop_vars("thetao"), c), r"forced lacks \['thetao'\]"),
        (lambda f, c: (f, c.drop_vars("thetao")), r"control lacks \['thetao'\]"),
        (lambda f, c: (f.assign(thetao=f.thetao.assign_attrs(units="K")), c), "'thetao' must be in 'degC'.*273.15"),
        (lambda f, c: (f.assign(so=f.so.drop_attrs()), c), "'so' must be in"),
        (lambda f, c: (f, c.isel(member=slice(0, 2))), r"need the same 'member'.*forced.sel\(member=control.member\)"),
        (lambda f, c: (f, c.isel(time=slice(1, None))), "need the same 'time'"),
        (lambda f, c: (f.isel(time=slice(0, 3)), c), "five records"),
    ],
)
def test_heat_uptake_names_what_is_wrong(runs, change, words):
    with pytest.raises(ValueError, match=words):
        HeatUptake(*change(*runs))


def test_heat_uptake_checks_its_choices(runs):
    with pytest.raises(ValueError, match="'tos'.*spectrum="):
        HeatUptake(*runs, region=BOX, spectrum="tos")
    with pytest.raises(ValueError, match="no layer"):
        HeatUptake(*runs, bands={"abyss": (6000, 9000)})


def forecasts(members=6, dates=6, leads=4, *, spread=1.0, seed=0):
    """Truth and members drawn alike about a pattern, if `spread` is 1; lead 0 is there; and a poor single forecast."""
    rng = np.random.default_rng(seed)
    box = ocean(1, 1)
    wet = box.zos.isel(member=0, time=0, drop=True).notnull()
    time = xr.date_range("0001-01-01", periods=dates, freq="10D", calendar="noleap", use_cftime=True)
    coords = {"init": time, "lead": ("lead", np.arange(leads) * 5.0, {"units": "days"})}
    grow = xr.DataArray(np.arange(1.0, leads + 1), dims="lead")
    sizes = {"init": dates, "lead": leads, **wet.sizes}

    def draw(**more):
        noise = xr.DataArray(rng.normal(size=(*more.values(), *sizes.values())), dims=[*more, *sizes])
        return (noise * grow).where(wet).transpose("init", *more, "lead", ...)

    def named(field):
        return field.assign_coords(coords | dict(wet.coords)).assign_attrs(units="m").to_dataset(name="zos")

    centre = draw()
    truth, ens, poor = centre + draw(), centre + spread * draw(member=members), centre + 3 * draw()
    return named(ens.assign_coords(member=range(members))), named(truth), named(poor)


def test_ensemble_skill_has_the_numbers_of_the_plain_functions():
    ens, truth, poor = forecasts()
    study = EnsembleSkill(ens, truth, {"poor": poor})
    totals = study.totals()["zos"]
    assert totals.sizes["lead"] == 3 and 0.0 not in totals.lead
    area = dx.area_of(truth.zos)
    dims = ("init", "lat", "lon")
    pair = [f.zos.sel(lead=15) for f in (truth, ens)]
    found = study.intervals(totals).sel(lead=15)
    both = dx.spread_error(*pair, dim=dims, weights=area)
    crps = dx.crps_ensemble(*pair, dim=dims, weights=area, fair=True)
    for name, expected in (("spread", both.spread), ("rmse", both.error), ("ratio", both.ratio), ("fair_crps", crps)):
        np.testing.assert_allclose(found[name].sel(estimate="value"), expected, rtol=1e-6)
    assert (found.ratio.sel(estimate="low") < both.ratio) and (both.ratio < found.ratio.sel(estimate="high"))
    theirs = dx.mae(pair[0], poor.zos.sel(lead=15), dim=dims, weights=area)
    skill = study.skill(totals, "poor").skill.sel(lead=15)
    np.testing.assert_allclose(skill.sel(estimate="value"), dx.skill_score(crps, theirs), rtol=1e-6)
    assert float(skill.sel(estimate="low")) > 0
    limit = study.thresholds()["zos"]
    np.testing.assert_allclose(limit, truth.zos.isel(lead=slice(1, None)).quantile(0.8, ("init", "lead")))
    table = dx.event_table(*pair, threshold=limit, dim=dims, weights=area)
    np.testing.assert_allclose(totals.cases.sel(lead=15).sum("init"), table.cases, rtol=1e-6)


def test_ensemble_skill_is_the_same_lazily():
    ens, truth, poor = forecasts()
    eager = EnsembleSkill(ens, truth, {"poor": poor}, about="poor").totals()["zos"]
    lazy = EnsembleSkill(ens.chunk(init=1, lat=4), truth.chunk(init=2), {"poor": poor.chunk(init=3)}, about="poor")
    xr.testing.assert_allclose(eager, lazy.totals()["zos"])


def test_the_skill_page_shows_the_numbers_and_stands_alone():
    ens, truth, poor = forecasts(spread=0.3)
    study = EnsembleSkill(ens, truth, {"poor": poor}, about="poor", apart=1e5, region=BOX, name="model")
    html = study.report().html()
    check_page(html)
    text = text_of(html)
    one = study.intervals(study.totals()["zos"]).sel(lead=15, estimate="value")
    for name in ("fair_crps", "rmse", "spread", "ratio"):
        assert format_value(float(one[name])) in text
    assert "Forecasts of 6 members from 6 dates, 0001-01-01 to 0001-02-20, compared with the truth in zos" in text
    assert "spread too small" in text and "Ferro 2014" in text


def test_forecasts_along_time_are_scored_over_time():
    ens, truth, _ = (f.isel(lead=2, drop=True).rename(init="time") for f in forecasts(dates=12))
    study = EnsembleSkill(ens, truth)
    found = study.intervals(study.totals()["zos"])
    expected = dx.spread_error(truth.zos, ens.zos, weights=dx.area_of(truth.zos))
    np.testing.assert_allclose(found.ratio.sel(estimate="value"), expected.ratio, rtol=1e-6)
    check_page(study.report().html())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e, t: (e.isel(member=0, drop=True), t, {}), "two members or more"),
        (lambda e, t: (e, t.expand_dims(member=1), {}), "squeeze"),
        (lambda e, t: (e, t.rename(zos="ssh"), {}), "share no variable"),
        (lambda e, t: (e, t, {"poor": t.rename(zos="ssh")}), r"poor lacks \['zos'\]"),
        (lambda e, t: (e, t.isel(lead=slice(1, None)), {}), "forecast and truth need the same 'lead'"),
        (lambda e, t: (e, t.isel(init=0), {}), r"truth lacks the dimensions \['init'\]"),
        (lambda e, t: (e, t.assign(zos=t.zos.assign_attrs(units="cm")), {}), "units must agree"),
    ],
)
def test_ensemble_skill_names_what_is_wrong(change, words):
    ens, truth, _ = forecasts(2, 4, 2)
    with pytest.raises(ValueError, match=words):
        EnsembleSkill(*change(ens, truth))


def experiment():
    """Scores as a twin experiment gives them, of two variables, and what comes of them."""
    rng = np.random.default_rng(0)
    time = xr.date_range("0001-01-01", periods=6, freq="5D", calendar="noleap", use_cftime=True)
    runs, states = ["free run", "LETKF"], ["background", "analysis"]
    labels = {"variable": ["thetao", "thetao", "zos"], "depth": ["surface", "0-300 m", "surface"]}
    coords = {"run": runs, "state": states, "time": time} | {k: ("band", v) for k, v in labels.items()}
    error = xr.DataArray(rng.uniform(0.5, 1, (2, 3, 2, 6)), dims=("run", "band", "state", "time"))
    error = error * xr.DataArray([1.0, 0.4], dims="run")
    scores = xr.Dataset({"error": error, "spread": 0.8 * error}).assign_coords(
        coords | {"units": ("band", ["degC", "degC", "m"])}
    )
    scores["ratio"] = scores.spread / scores.error
    summary = (scores[["error", "spread"]].sel(state="analysis", drop=True) ** 2).mean("time") ** 0.5
    gain = 1 - summary.error / summary.error.sel(run="free run", drop=True)
    return scores, summary.assign(ratio=summary.spread / summary.error, gain=gain)


def test_the_page_of_an_assimilation_shows_its_numbers():
    scores, summary = experiment()
    columns = {"given": [90, 50], "used": [80, 50], "mean": [0.1, 0.0], "rms": [0.5, 0.1], "expected": [0.4, 0.1]}
    found = xr.Dataset({n: ("type", v) for n, v in columns.items()})
    found = found.assign_coords(kind=("type", ["SST", "altimeter"]), variable=("type", ["thetao", "zos"]))
    run = ocean(3, 6)
    study = AssimilationSkill(scores, summary, {"LETKF": found}, run.isel(member=[0]), {"free run": run, "LETKF": run})
    html = study.report().html()
    check_page(html)
    text = text_of(html)
    for value in (summary.gain.sel(run="LETKF")[0], summary.error.sel(run="free run")[2], found["mean"][0]):
        assert format_value(float(value)) in text
    assert "80 of 90" in text and "Desroziers et al. 2005" in text
    assert "6 records from 0001-01-01 to 0001-01-26 (25 days)" in text


def test_an_assimilation_names_what_is_wrong():
    scores, summary = experiment()
    with pytest.raises(ValueError, match=r"scores needs error.*without \['units'\].*Twin.scores"):
        AssimilationSkill(scores.drop_vars("units"), summary)
    with pytest.raises(ValueError, match=r"summary needs error and spread \['band', 'run'\]"):
        AssimilationSkill(scores, scores)
    with pytest.raises(ValueError, match="give truth="):
        AssimilationSkill(scores, summary, runs={"LETKF": ocean(1, 6)})
    with pytest.raises(ValueError, match="truth lacks 'tos'"):
        AssimilationSkill(scores, summary, truth=ocean(1, 6), shown="tos")
    with pytest.raises(ValueError, match="'LETKF' lack.*rms"):
        AssimilationSkill(scores, summary, {"LETKF": xr.Dataset()})


def test_slabs_are_whole_chunks_and_join_to_the_whole(monkeypatch):
    run = ocean(2, 10).chunk(time=3)
    monkeypatch.setattr("polynya.diagnostics.slabs._BYTES", 0.7 * run.nbytes)
    assert slabs_of((run,), "time") == [slice(0, 6), slice(6, 10)]
    means = by_slab(lambda slab: slab[["zos"]].mean(("lat", "lon")), run)
    xr.testing.assert_allclose(means.zos, run.zos.mean(("lat", "lon")).compute())
    monkeypatch.setattr("polynya.diagnostics.slabs._BYTES", 1.0)
    assert len(slabs_of((run,), "time")) == 4 and len(slabs_of((run.compute(),), "time")) == 10


def test_agreement_counts_members_of_the_sign_of_the_mean():
    change = xr.DataArray([[1.0, -3.0, 1.0, np.nan], [2.0, 1.0, -1.0, 1.0], [1.0, 1.0, 0.0, 1.0]], dims=("member", "x"))
    np.testing.assert_allclose(dx.sign_agreement(change), [1.0, 1 / 3, np.nan, np.nan])
    with pytest.raises(ValueError, match="member_dim="):
        dx.sign_agreement(change.isel(member=0))


def test_a_skill_score_is_1_when_perfect_and_0_when_no_better():
    score = xr.DataArray([0.0, 2.0, 4.0], dims="x", attrs={"units": "m"})
    np.testing.assert_allclose(dx.skill_score(score, xr.full_like(score, 2.0)), [1, 0, -1])
    assert np.isnan(dx.skill_score(score, 0 * score)).all()
    np.testing.assert_allclose(dx.skill_score(score / 4, xr.full_like(score, 0.5), perfect=1.0), [-1, 0, 1])
    with pytest.raises(ValueError, match="units must agree"):
        dx.skill_score(score, score.assign_attrs(units="cm"))
