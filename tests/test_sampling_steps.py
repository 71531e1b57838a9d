"""What fewer network calls cost: the scores of `polynya steps` against sums by hand, its table, figure and errors."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import islice

import cftime
import numpy as np
import pytest
import test_gensim_emulator as gensims
import test_regional_emulator as regionals
import torch
import xarray as xr
from rich.console import Console

from polynya.cli import main as cli
from polynya.cli import steps as module
from polynya.cli.steps import SAMPLERS, NothingToSampleError, Sampler, score_samplers, score_table
from polynya.diagnostics.sampling import sampling_figure
from polynya.emulators import Noise, Persistence, Source, SourceError, StoreExistsError
from polynya.emulators.stores import open_zarr
from polynya.ensembles import record, trajectory

BEGIN = cftime.DatetimeNoLeap(2018, 1, 1)
HALF = timedelta(hours=12)
FEW = (Sampler(3, True), Sampler(2, False), Sampler(1, False))
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def years(model, kind, times=7):
    """A record of random ice and its weather, as one Dataset."""
    state = kind.ice(model.layout)
    parts = []
    for k in range(times):
        now = replace(state, data=state.data.roll(k, -1) * model.layout.mask, time=BEGIN + k * HALF).sel((0,))
        # The second slot is the next record's first.
        weather = kind.weather(model.forcing_layout, now.replace(time=now.time)).to_xarray().isel(time=[0])
        fields = weather.assign_coords(time=[now.time]) + 0.01 * k
        parts.append(xr.merge([now.to_xarray(), fields], compat="override"))
    return xr.concat(parts, "time", coords="minimal", compat="override", data_vars="minimal").isel(member=0, drop=True)


@pytest.fixture(params=["diffusion", "residual", "gensim"])
def case(request):
    kind = gensims if request.param == "gensim" else regionals
    model = kind.emulator() if request.param == "gensim" else kind.emulator(request.param)
    return model, years(model, kind)


def test_the_samplers_are_those_of_the_specification() -> None:
    assert [(str(s), s.calls) for s in SAMPLERS] == [
        *(("Heun 20", 39), ("Heun 10", 19), ("Heun 5", 9), ("Heun 3", 5)),
        *(("Euler 20", 20), ("Euler 5", 5)),
    ]
    model = regionals.emulator("diffusion")
    for s in SAMPLERS:
        assert model.tuned(n_steps=s.n_steps, second_order=s.second_order).config.calls == s.calls


def test_scores_are_sums_by_hand(case) -> None:
    model, data = case
    found = score_samplers(model, data, starts=2, steps=3, members=4, samplers=FEW, seed=5)
    assert found.error.dims == ("sampler", "variable", "lead") and found.lead.values.tolist() == [0.5, 1, 1.5]
    assert found.calls.values.tolist() == [5, 2, 1] and found.attrs["starts"] == [str(BEGIN + k * HALF) for k in (0, 3)]
    assert (found.seconds > 0).all() and found.units.values.tolist()[0] == "m"
    states, driven = Source.open(data, model.layout), Source.open(data, model.forcing_layout)
    area = (model.layout.grid.areacello.values * model.layout.mask[0].numpy()).astype(float)
    tuned, k = model.tuned(n_steps=2, second_order=False), 1
    squares, crps, spread = [], [], []
    for date in (BEGIN, BEGIN + 3 * HALF):
        start = states.state(date).spread_to(range(4))
        with torch.no_grad():
            *_, state = islice(trajectory(tuned, start, driven, Noise(5)), 3)
        x, y = state.data.double().numpy(), states.state(date + 2 * HALF).data[0].double().numpy()
        mean = [np.abs(x - y).mean(0), np.abs(x[:, None] - x[None]).sum((0, 1)) / (2 * 4 * 3)]
        squares.append(((x.mean(0) - y) ** 2 * area).sum((1, 2)) / area.sum())
        crps.append(((mean[0] - mean[1]) * area).sum((1, 2)) / area.sum())
        spread.append((x.var(0, ddof=1) * area).sum((1, 2)) / area.sum())
    at = found.sel(sampler="Euler 2").isel(lead=k)
    np.testing.assert_allclose(at.error, np.mean(squares, 0) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(at.crps, np.mean(crps, 0), rtol=1e-5)
    np.testing.assert_allclose(at.spread, np.mean(spread, 0) ** 0.5, rtol=1e-5)


def test_samplers_get_the_same_noise_and_do_not_depend_on_their_company() -> None:
    model = regionals.emulator("diffusion")
    data = years(model, regionals)
    given = {"starts": ["2018-01-01", "2018-01-02 12:00"], "steps": 2, "members": 3}
    both = score_samplers(model, data, **given, samplers=FEW).drop_vars("seconds")
    alone = score_samplers(model, data, data, **given, samplers=FEW[1:2]).drop_vars("seconds")
    xr.testing.assert_identical(both.isel(sampler=[1]), alone)
    other = score_samplers(model, data, **given, samplers=FEW[1:2], seed=1)
    assert not np.allclose(other.crps, alone.crps)


def test_table_and_figure() -> None:
    model = regionals.emulator("diffusion")
    scores = score_samplers(model, years(model, regionals), starts=1, steps=2, members=2, samplers=FEW)
    console = Console(record=True, width=140)
    console.print(score_table(scores))
    text = console.export_text()
    for wanted in (
        "1 days ahead, 2 members, 1 forecasts",
        "sithick",
        "Euler 2",
        "m s-1",
        f"{float(scores.crps[0, 0, 1]):.4g}",
    ):
        assert wanted in text, wanted
    figure = sampling_figure(scores)
    left, right = figure.axes
    assert "relative to 5 calls" in left.get_ylabel() and "CRPS" in right.get_ylabel()
    drawn = next(line for line in right.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == ":")
    np.testing.assert_allclose(drawn.get_ydata(), (scores.crps[[2, 1], 0, 1] / scores.crps[0, 0, 1]).values)
    assert "0.5 days ahead" in sampling_figure(scores, lead=0.5).get_suptitle()
    with pytest.raises(ValueError, match=r"wanted a lead among \[0.5, 1.0\] days, got 3"):
        sampling_figure(scores, lead=3)
    with pytest.raises(ValueError, match="got no .*'crps'"):
        sampling_figure(scores.drop_vars("crps"))


def test_the_command_writes_scores_and_a_figure(tmp_path, monkeypatch, capsys) -> None:
    model = regionals.emulator("diffusion")
    data = years(model, regionals)
    data.to_zarr(tmp_path / "ice.zarr", zarr_format=3, consolidated=False)
    monkeypatch.setattr(module, "load", lambda path: model)
    arguments = ["steps", "emulator.safetensors", str(tmp_path / "ice.zarr"), "--out", str(tmp_path / "out")]
    arguments += ["--starts", "1", "--leads", "1", "--members", "2"]
    cli.app(arguments, standalone_mode=False)
    assert "Heun 20" in capsys.readouterr().out and (tmp_path / "out" / "steps.png").stat().st_size > 1e4
    scores = open_zarr(tmp_path / "out" / "scores.zarr")
    assert scores.sampler.values.tolist() == [str(s) for s in SAMPLERS] and scores.attrs["members"] == 2
    with pytest.raises(StoreExistsError, match="nothing was read or written"):
        cli.app(arguments, standalone_mode=False)
    cli.app([*arguments, "--overwrite"], standalone_mode=False)


def test_errors() -> None:
    model = regionals.emulator("diffusion")
    data = years(model, regionals)
    few = {"starts": 1, "steps": 2, "members": 2, "samplers": FEW}
    for other in (
        regionals.emulator("deterministic"),
        regionals.emulator("correlated"),
        Persistence(model.layout, HALF),
    ):
        with pytest.raises(NothingToSampleError, match="nothing to sample in a .*GenSIM, or a Regional of kind"):
            score_samplers(other, data, **few)
    late = data.assign_coords(time=[t + timedelta(days=30) for t in data.time.values])
    with pytest.raises(SourceError, match="no records in common for 2 steps of 12:00:00: the states cover 2018-01-01"):
        score_samplers(model, data, late, **few)
    with pytest.raises(SourceError, match="no records in common for 8 steps"):
        score_samplers(model, data, **few | {"steps": 8})
    other = data.assign_coords(time=[cftime.DatetimeGregorian(*t.timetuple()[:6]) for t in data.time.values])
    with pytest.raises(SourceError, match=r"the forcing .*\(standard\)"):
        score_samplers(model, data, other, **few)
    with pytest.raises(SourceError, match="choose a time within"):
        score_samplers(model, data, **few | {"starts": ["2018-01-03 12:00"]})
    with pytest.raises(SourceError, match="at least one initial date"):
        score_samplers(model, data, **few | {"starts": 0})
    with pytest.raises(ValueError, match="at least 2 members, 1 step and 1 sampler, all different, got 1 members"):
        score_samplers(model, data, **few | {"members": 1})
    with pytest.raises(ValueError, match="samplers Heun 3, Heun 3"):
        score_samplers(model, data, **few | {"samplers": [FEW[0]] * 2})


def test_a_record_of_an_ensemble_serves_as_truth(tmp_path) -> None:
    model = regionals.emulator("diffusion")
    data = years(model, regionals)
    states = [regionals.ice(model.layout).replace(time=BEGIN + k * HALF) for k in range(3)]
    record(states, tmp_path / "truth.zarr")
    found = score_samplers(model, tmp_path / "truth.zarr", data, starts=1, steps=1, members=2, samplers=FEW[1:])
    assert np.isfinite(found.crps).all()
