"""What surrounds the training of regional sea-ice models: constants from data, and files of the result."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from small import START
from small_regional import DAY, KINDS, batch_of, emulator, layouts, truth

from polynya.cli.info import describe
from polynya.emulators import Noise, Persistence, State, StatisticsError, export, load, regional
from polynya.emulators.checkpoint import CheckpointError
from polynya.emulators.ice_constants import fitted
from polynya.emulators.regional_constants import residual_constants, sharpened, unbiased
from polynya.emulators.stores import SourceError
from polynya.emulators.training import windows_of
from polynya.emulators.windows import Place

# --- constants ----------------------------------------------------------------------------------------


def test_constants_are_those_of_numpy():
    stores = [truth(24), truth(10, seed=1)]
    c = fitted(regional.RegionalConfig(), *layouts(), stores)
    wet = layouts()[0].mask[0].numpy()
    for i, name in enumerate((*regional.STATES, *regional.FORCINGS)):
        values = [s[name].values.astype(float)[:, wet] for s in stores]
        both = np.concatenate(values)
        assert c.input_mean[i] == pytest.approx(both.mean(), abs=1e-6)
        assert c.input_std[i] == pytest.approx(both.std(), rel=1e-6)
        if i < 5:
            changes = np.concatenate([(d := np.diff(v, axis=0)) - d.mean() for v in values])
            assert c.std[i] == pytest.approx(np.sqrt((changes**2).mean()), rel=1e-6) and c.mean[i] == 0.0
        else:
            assert c.input_mean[i] == c.input_mean[i + 4] and c.input_std[i] == c.input_std[i + 4]
    early = fitted(regional.RegionalConfig(), *layouts(), stores[:1], end=str(START + 9 * DAY)[:16])
    first = stores[0].siconc.values[:10, wet].astype(float)
    assert early.input_std[1] == pytest.approx(first.std(), rel=1e-6)
    calm = truth()
    with pytest.raises(SourceError, match="siu never varies"):
        fitted(regional.RegionalConfig(), *layouts(), [calm.assign(siu=0 * calm.siu)])
    with pytest.raises(StatisticsError, match="increment of 0 for siu"):
        fitted(regional.RegionalConfig(), *layouts(), [calm.assign(siu=0 * calm.siu + calm.siu[0])])
    with pytest.raises(regional.ConfigError, match="got one every 24 hours"):
        fitted(regional.RegionalConfig(), *layouts(), [calm.isel(time=slice(None, None, 2))])


def test_constants_of_the_residual():
    model = emulator("deterministic")
    windows = windows_of(model, [truth()], in_memory=True)
    mean, scale = residual_constants(model, windows, 6)
    free = replace(model, config=replace(model.config, lower=(-math.inf,) * 5, upper=(math.inf,) * 5))
    lacks = []
    for k in (0, 3, 7, 11, 15, 19):
        batch = windows.get(k, 1, 1)
        state = State(batch.start, batch.time, model.layout, (0,))
        forcing = State(batch.forcings[0], batch.time, model.forcing_layout, (0,))
        with torch.no_grad():
            lacks.append((batch.targets[0] - free.step(state, forcing, Noise(0)).data)[0][:, model.layout.mask[0]])
    wanted = torch.stack(lacks, 1).double().flatten(1).numpy()
    assert mean == pytest.approx(wanted.mean(1), abs=1e-6) and scale == pytest.approx(wanted.std(1), rel=1e-4)
    sizes = replace(model.config.diffusion, n_input=model.config.diffusion.n_input + 5)
    c = replace(model.config, diffusion=sizes, residual_mean=mean, residual_scale=scale)
    assert regional.Regional.untrained(*layouts(), c, first_guess=model.network).kind == "residual"
    with pytest.raises(regional.ConfigError, match="wanted a deterministic emulator"):
        residual_constants(emulator("diffusion"), windows)


def test_an_unbiased_residual_model_errs_by_nothing_on_average(capsys):
    model = emulator("residual")
    windows = windows_of(model, [truth()], in_memory=True)

    def error(model):
        batch = windows.batch([Place(k) for k in (0, 3, 7, 11, 15, 19)], 1, 1)
        state = State(batch.start, batch.time, model.layout, batch.numbers)
        forcing = State(batch.forcings[0], batch.time, model.forcing_layout, batch.numbers)
        with torch.no_grad():
            later = model.step(state, forcing, Noise(2)).data
        return (later - batch.targets[0])[..., model.layout.mask[0]].mean((0, 2))

    found = unbiased(model, windows, 6, Noise(2), progress=True)
    assert "forecasts" in capsys.readouterr().out
    before, after = error(model), error(found)
    assert (after.abs() < 0.05 * before.abs()).all(), (before, after)
    assert found.network is model.network and found.config.residual_scale == model.config.residual_scale
    for kind in ("deterministic", "diffusion"):
        for correct in (unbiased, sharpened):
            with pytest.raises(regional.ConfigError, match=f"wanted a residual model, .* got a {kind} one"):
                correct(emulator(kind), windows)


class Made:
    """Windows that are an emulator's own forecasts."""

    def __init__(self, model, noise):
        self.model, self.noise, self.windows = model, noise, windows_of(model, [truth()], in_memory=True)

    def count(self, *given):
        return self.windows.count(*given)

    def batch(self, *given):
        batch, targets = self.windows.batch(*given), []
        state = State(batch.start, batch.time, self.model.layout, batch.numbers)
        for driven in batch.forcings:
            forcing = State(driven, state.time, self.model.forcing_layout, batch.numbers)
            with torch.no_grad():
                state = self.model.step(state, forcing, self.noise)
            targets.append(state.data)
        return replace(batch, targets=torch.stack(targets))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_gain_of_small_scales_is_found_again(steps):
    model, gain = emulator("residual"), (1.3, 1.0, 0.8, 1.1, 0.9)
    how = {"steps": steps, "rounds": 30, "cells": 8}
    found = sharpened(model, Made(model.tuned(residual_gain=gain), Noise(3)), 6, Noise(3), **how)
    assert found.config.residual_gain == pytest.approx(gain, abs=0.01) and found.network is model.network


def test_a_gain_that_cannot_be_is_refused():
    model = emulator("residual")
    windows = Made(model.tuned(residual_gain=(1.0, 1.0, 1.0, 1.0, 4.0)), Noise(3))
    with pytest.raises(regional.ConfigError, match=r"no gain between .* of that, forecasts have sithick 1, .*siv 0\."):
        sharpened(model, windows, 6, Noise(3), steps=1, cells=8)
    with pytest.raises(regional.ConfigError, match="no square of 16 x 16 cells is without land"):
        sharpened(model, windows, 6)
    for wrong in ((1.0,), (1.0, 1.0, 0.0, 1.0, 1.0)):
        with pytest.raises(regional.ConfigError, match="gain"):
            model.tuned(residual_gain=wrong)


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_emulator_needs_nothing_else(kind, tmp_path):
    model = emulator(kind)
    path = export(model, tmp_path / "e.safetensors", data="toy")
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode  # as readable as any other file
    again = load(path)
    assert isinstance(again, regional.Regional) and again.kind == kind and again.config == model.config
    assert again.dt == model.dt and again.layout.fields == model.layout.fields
    assert again.layout.grid.identical(model.layout.grid) and again.forcing_layout.slots == (0, 1)
    assert len(again.checkpoint) == 64 and not again.network.training
    batch = batch_of(model)
    state = State(batch.start, batch.time, model.layout, (0, 1, 2))
    forcing = State(batch.forcings[0], batch.time, model.forcing_layout, (0, 1, 2))
    one, two = (m.step(state, forcing, Noise(1)).data for m in (model, again))
    assert torch.equal(one, two) and two.requires_grad

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["polynya"], parse_constant=refuse)
    assert header["format"] == "polynya-regional-1" and header["constants"]["upper"][0] is None
    console = Console(record=True, width=160)
    describe(path, console)
    text = console.export_text()
    assert f"regional sea ice, {kind}" in text and "12 hours a step" in text and "16 x 16" in text


def test_files_of_other_formats_are_refused(tmp_path):
    save_file(
        {"x": torch.ones(1)}, tmp_path / "e.safetensors", metadata={"polynya": '{"format": "polynya-regional-9"}'}
    )
    with pytest.raises(CheckpointError, match=r"'polynya-samudra-1' or 'polynya-regional-1'.*got 'polynya-regional-9'"):
        load(tmp_path / "e.safetensors")
    with pytest.raises(TypeError, match="Samudra or Regional, got Persistence"):
        export(Persistence(layouts()[0], DAY), tmp_path / "p.safetensors")


def test_a_first_guess_may_lie_beside(tmp_path):
    """Two files that share a network: the same forecast, and clear errors when they are parted."""
    whole = emulator("residual")
    guess = replace(whole, network=whole.first_guess, first_guess=None)
    det = export(guess, tmp_path / "det.safetensors", half=True)
    path = export(whole, tmp_path / "res.safetensors", half=True, beside=det)
    alone = export(whole, tmp_path / "alone.safetensors", half=True)
    assert path.stat().st_size < 0.7 * alone.stat().st_size
    batch = batch_of(whole)
    state = State(batch.start, batch.time, whole.layout, (0, 1, 2))
    forcing = State(batch.forcings[0], batch.time, whole.forcing_layout, (0, 1, 2))
    assert torch.equal(*(load(p).step(state, forcing, Noise(0)).data for p in (path, alone)))
    with pytest.raises(ValueError, match="does not hold the first guess"):
        export(guess, tmp_path / "x.safetensors", beside=det)
    with pytest.raises(ValueError, match="does not hold the first guess"):
        export(whole, tmp_path / "x.safetensors", beside=alone)
    det.unlink()
    with pytest.raises(CheckpointError, match="keep both files together"):
        load(path)
