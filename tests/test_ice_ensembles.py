"""The benchmark of generative against deterministic sea ice: scores against sums by hand, restarts, claims."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from polynya.diagnostics import isotropic_spectrum
from polynya.emulators import Noise, Source, open_store, regional
from polynya.emulators.nature_ice import IceParameters, arctic
from polynya.emulators.uvit import UViTConfig
from polynya.ensembles import rollout, trajectory

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import ice_cases
import ice_ensembles
import ice_pictures
import ice_years
from ice_cases import Bench, Plan
from ice_verdict import scores, small_scale_power

SIZES = UViTConfig(
    n_features=8, n_bottleneck=1, n_down_blocks=(1,), n_up_blocks=(1,), channel_mul=(2,), n_heads=2, n_embedding=8
)
DAYS = timedelta(hours=12)
PLAN = Plan(members=4, leads=3)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Untrained emulators and a few steps of a coarse, rough nature."""
    nature = replace(arctic(32, 40e3), parameters=IceParameters(substeps=6))
    store = tmp_path_factory.mktemp("ice") / "truth.zarr"
    start = nature.at_rest(cftime.datetime(1, 1, 1, calendar="360_day"), (4, 5))
    weather = nature.forcing(Noise(1).stream("weather"))
    truth = rollout(nature, start, weather, steps=9, store=store, with_forcing=True)
    sizes = {"deterministic": replace(SIZES, n_input=13), "diffusion": replace(SIZES, n_input=18, n_time_hidden=8)}
    config = regional.RegionalConfig(**sizes, n_steps=1)
    layouts = nature.layout.select(regional.STATES), nature.forcing_layout
    made = [regional.Regional.untrained(*layouts, config, kind) for kind in ("diffusion", "deterministic")]
    return Bench(*made, truth)


def test_a_case_is_what_sums_by_hand_give(bench):
    member, date = 5, Source.open(bench.truth, bench.generative.layout).times[2]
    found = ice_cases.case(bench, PLAN, member, date)
    layout = bench.generative.layout
    states, driven = (bench.source(bench.generative, member, forcing=f) for f in (False, True))
    area = layout.grid["areacello"].values * layout.mask[0].numpy()
    start = states.state(date, (0,)).spread_to(range(4))
    noise = Noise(0).stream("truth 5")
    with torch.no_grad():
        runs = trajectory(bench.generative, start, driven, noise)
        x = [next(runs).data.double().numpy() for _ in range(4)][3]
        det = trajectory(bench.deterministic, start.sel((0,)), driven, noise)
        d = [next(det).data.double().numpy() for _ in range(4)][3][0]
    y = states.state(date + 3 * DAYS, (0,)).data[0].double().numpy()

    def mean(z):
        return (z * area).sum((-2, -1)) / area.sum()

    pairs = np.abs(x[:, None] - x[None]).sum((0, 1)) / (2 * 4 * 3)
    first = states.state(date, (0,)).data[0].double().numpy()
    wanted = [
        mean((x.mean(0) - y) ** 2), mean(x.var(0, ddof=1)), mean((x - y) ** 2).mean(0), mean((d - y) ** 2),
        mean((first - y) ** 2), mean(np.abs(x - y).mean(0) - pairs), mean(np.abs(d - y)),
    ]  # fmt: skip
    np.testing.assert_allclose(found["sums"][:, :, 2], wanted, rtol=1e-4, atol=1e-9)
    assert found["ranks"].shape == (2, 5, 5) and np.allclose(found["ranks"].sum(-1), area.sum())
    wet = layout.mask[0].numpy()
    np.testing.assert_allclose(found["maps"][0][:, wet], y[:, wet], rtol=1e-6)
    assert wet[bench.square["y"], bench.square["x"]].all()

    cases = ice_cases.gathered([found, found], bench.names, PLAN, DAYS)
    told = scores(cases, bench.generative.config.input_std[:5])
    np.testing.assert_allclose(told.rmse.sel(forecast="mean").isel(lead=2), np.sqrt(wanted[0]), rtol=1e-4)
    np.testing.assert_allclose(told.ratio.isel(lead=2), np.sqrt(5 / 4 * wanted[1] / wanted[0]), rtol=1e-4)
    std = np.array(bench.generative.config.input_std[:5])
    np.testing.assert_allclose(told.nrmse.sel(forecast="deterministic")[2], np.sqrt((wanted[3] / std**2).mean()), 1e-4)
    for spectra in (cases.spectra, cases.local):
        doubled = spectra * xr.where(cases.run == "generative", 2.0, 1.0)
        ratio = small_scale_power(doubled.transpose(*spectra.dims)).ratio / small_scale_power(spectra).ratio
        np.testing.assert_allclose(ratio.sel(run="generative"), 2)
        np.testing.assert_allclose(ratio.sel(run="deterministic"), 1)
    side = bench.square["y"].stop - bench.square["y"].start
    # The spectrum of a single map in a single square, of the days that spectra are a mean of.
    maps, squares = [states.state(date + k * DAYS, (0,)).data[0, 0].double().numpy() for k in PLAN.window], []
    for s in bench.small_squares:
        assert wet[s["y"], s["x"]].all() and s["y"].stop - s["y"].start == side // 2
        squares += [
            isotropic_spectrum(xr.DataArray(m[s["y"], s["x"]], dims=("y", "x")), spacing=bench.spacing) for m in maps
        ]
    mean = np.mean([x.to_numpy() for x in squares], 0)[: cases.sizes["local_wavenumber"]]
    np.testing.assert_allclose(cases.local.sel(run="truth", quantity="sithick")[0], mean, rtol=1e-5)


def test_the_error_of_power_is_that_of_a_mean_if_the_truth_is_always_alike():
    runs, k = list(ice_cases.RUNS), np.arange(1.0, 7.0)
    power = np.random.default_rng(0).lognormal(size=(9, len(runs), 4, 6))
    power[:, runs.index("truth")] = 1.0
    spectra = xr.DataArray(power, dims=("case", "run", "quantity", "wavenumber"))
    found = small_scale_power(spectra.assign_coords(run=runs, quantity=list(ice_cases.QUANTITIES), wavenumber=k))
    means = power[:, :-1, :, 4:].mean(-1)  # rings 5 and 6 lie above two thirds of 6
    assert found.ratio.shape == (3, 4) and runs[-1] == "truth"
    np.testing.assert_allclose(found.ratio, means.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.error, means.std(0, ddof=1) / 3, rtol=1e-12)


def test_spectra_are_means_over_the_days_around_those_of_maps():
    assert Plan().window == (16, 18, 20, 22, 24) and Plan(leads=18).window == (14, 16, 18)
    assert Plan(leads=3).window == (1, 3)


def test_cases_can_be_shared_among_processes(bench, tmp_path):
    options = ["--cases", "2", "--long-steps", "0", "--out", str(tmp_path), "--share", "1", "2"]
    text = ice_ensembles.run(bench, Plan(members=2, leads=1), ice_ensembles.arguments().parse_args(options))
    assert "without --share" in text and len(list(tmp_path.glob("cases/*/*.npz"))) == 1


def test_the_command_writes_tables_and_figures_and_goes_on_where_it_was_cut(bench, tmp_path, monkeypatch):
    options = ["--cases", "2", "--long-steps", "8", "--long-members", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(ice_pictures, "DPI", 30)
    given = ice_ensembles.arguments().parse_args(options)
    text = ice_ensembles.run(bench, PLAN, given)
    assert text.count("PASS") + text.count("FAIL") >= 10 and "| sithick [m] | RMSE, ensemble mean |" in text
    assert "at every lead of 1.5 days or more" in text and "the truth's range in 4 days" in text
    numbers = json.loads((tmp_path / "ice_ensembles.json").read_text())
    assert numbers["cases"] == 2 and set(numbers["beta"]) == {"gradients", "rates"} and numbers["hardware"]
    assert abs(numbers["beta"]["rates"]["truth"][0]) < 1e-6  # nothing cancels in a mean of rates
    names = {"rmse", "crps", "spread", "ranks", "maps", "spectra", "scaling_gradients", "scaling_rates", "year"}
    assert {p.stem for p in tmp_path.glob("*.png")} == names
    monkeypatch.setattr(ice_cases, "case", None)  # cannot be called
    monkeypatch.setattr(ice_years, "rollout", None)
    monkeypatch.setattr(ice_ensembles, "draw", lambda *_: None)
    assert ice_ensembles.run(bench, PLAN, given) == text
    other = replace(bench, generative=bench.generative.tuned(n_steps=2))
    with pytest.raises(TypeError):
        ice_ensembles.run(other, PLAN, given)


def test_the_clamp_is_told_from_a_step_without_bounds(bench, tmp_path):
    shut = bench.generative.tuned(upper=(0.5, 1.0, 1.0, 1.0, 1.0), mean=(0.7, 0.0, 0.0, 0.0, 0.0))
    year = ice_years.year(bench, shut, 4, 1, 4, 0, tmp_path)
    assert year.beyond(shut, 4) > 0  # the start, 2 m thick
    run = open_store(next((tmp_path / "years").glob("*.zarr")))
    assert float(run.sithick.isel(time=-1).max()) == 0.5
    assert year.clamped.share.sel(variable="sithick").values == pytest.approx(1.0)
    assert (year.clamped.made < -0.8).all()
    volume = float(year.run.volume[0, -1] - year.truth.volume[-1])
    assert year.run.volume.isel(time=0).item() == pytest.approx(year.truth.volume[0].item())
    assert volume < 0 and year.drift(4) < -1


def test_emulators_in_the_wrong_places_are_refused(bench):
    with pytest.raises(SystemExit, match="and a deterministic emulator, got deterministic and diffusion"):
        Bench(bench.deterministic, bench.generative, bench.truth)
    with pytest.raises(SystemExit, match="wanted a truth of 31 records at least, got 10"):
        ice_cases.chosen(bench, [4], 2, 30)
