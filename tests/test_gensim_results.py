"""What surrounds the training of GenSIM: constants from data, files of the result, and half of their size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from small_regional import emulator as regional_emulator
from test_emulators import network_emulator
from test_gensim_training import TINY, layouts, mesh, truth

from polynya.cli.info import describe
from polynya.cli.steps import Sampler, run, score_samplers
from polynya.emulators import Noise, Source, StatisticsError, export, gensim, load
from polynya.emulators.checkpoint import CheckpointError
from polynya.emulators.ice_constants import fitted
from polynya.emulators.stores import SourceError
from polynya.emulators.training import windows_of
from polynya.emulators.windows import Place

SMALL = gensim.GenSIMConfig(network=TINY, window=(16, 16), halo=(2, 2), n_steps=2)


def model(place=None, **config):
    c = replace(fitted(SMALL, *layouts(), [truth()]), **config)
    return gensim.GenSIM.untrained(*layouts(), c, mesh=place, seed=1)


def stepped(emulator):
    source, driven = (Source.open(truth(), of) for of in (emulator.layout, emulator.forcing_layout))
    state = source.state(source.times[2]).spread_to(range(2))
    with torch.no_grad():
        return emulator.step(state, driven.at(state.time, (0, 1)), Noise(1)).data


# --- constants ----------------------------------------------------------------------------------------


def test_constants_are_those_of_numpy():
    stores = [truth(10), truth(6, seed=1)]
    c = fitted(SMALL, *layouts(), stores)
    wet = layouts()[0].mask[0].numpy()
    first = {n: k for k, n in enumerate((*gensim.STATES, *gensim.FORCINGS))} | {
        n: 14 + k for k, n in enumerate(gensim.DEGREE_DAYS)
    }
    assert len(c.input_mean) == len(c.input_std) == 18 and c.network == TINY and c.window == (16, 16)
    for name, k in first.items():
        values = [s[name].values.astype(float)[:, wet] for s in stores]
        both = np.concatenate(values)
        assert c.input_mean[k] == pytest.approx(both.mean(), abs=1e-6)
        assert c.input_std[k] == pytest.approx(both.std(), rel=1e-6)
        if name in gensim.FORCINGS:
            assert c.input_mean[k] == c.input_mean[k + 4] and c.input_std[k] == c.input_std[k + 4]
        if name in gensim.STATES:
            changes = np.concatenate([(d := np.diff(v, axis=0)) - d.mean() for v in values])
            assert c.std[k] == pytest.approx(np.sqrt((changes**2).mean()), rel=1e-6) and c.mean[k] == 0.0
    calm = truth()
    with pytest.raises(StatisticsError, match="increment of 0 for siu"):
        fitted(SMALL, *layouts(), [calm.assign(siu=0 * calm.siu + calm.siu[0])])
    with pytest.raises(SourceError, match="has no pdd_year"):
        fitted(SMALL, *layouts(), [calm.drop_vars("pdd_year")])
    with pytest.raises(gensim.ConfigError, match="got one every 24 hours"):
        fitted(SMALL, *layouts(), [calm.isel(time=slice(None, None, 2))])


def test_scaling_follows_the_layouts():
    emulator = model()
    c, s = emulator.config, emulator.scaling
    assert emulator.stride == 1
    for got, wanted in ((s.mean, c.input_mean[:6]), (s.std, c.input_std[:6]), (s.increment, c.std)):
        assert got.tolist() == pytest.approx(wanted)
    names = 2 * emulator.forcing_layout.names
    assert len(s.forcing_mean) == len(s.forcing_std) == emulator.forcing_layout.shape[0] == len(names)
    for k, name in enumerate(names):
        at = 14 + gensim.DEGREE_DAYS.index(name) if name in gensim.DEGREE_DAYS else 6 + 4 * (k > 7) + k % 8
        assert (float(s.forcing_mean[k]), float(s.forcing_std[k])) == pytest.approx((c.input_mean[at], c.input_std[at]))


def test_windows_need_degree_days():
    emulator = model()
    batch = windows_of(emulator, [truth()]).batch([Place(1)], 1, 1)
    wanted = np.nan_to_num(truth().fdd_month.values[1:3])
    assert np.array_equal(batch.forcings[0, 0, [5, 13]].numpy(), wanted)
    with pytest.raises(SourceError, match="fdd_month"):
        windows_of(emulator, [truth().drop_vars("fdd_month")])


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [None, mesh()], ids=["projected", "given"])
def test_an_exported_emulator_needs_nothing_else(place, tmp_path):
    emulator = replace(model(place, bf16=False), checkpoint="abc")
    path = export(emulator, tmp_path / "e.safetensors", data="toy")
    again = load(path)
    assert isinstance(again, gensim.GenSIM) and again.config == emulator.config and again.dt == emulator.dt
    assert again.layout.fields == emulator.layout.fields and again.layout.grid.identical(emulator.layout.grid)
    assert again.forcing_layout.slots == (0, 1) and len(again.checkpoint) == 64 and not again.network.training
    assert (again.mesh is None) if place is None else torch.equal(again.mesh, place)
    assert torch.equal(stepped(again), stepped(emulator))
    assert all(p.requires_grad for p in again.network.parameters())

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["polynya"], parse_constant=refuse)
    assert header["format"] == "polynya-gensim-1" and header["checkpoint"] == "abc"
    assert header["config"]["upper"][0] is None and header["provenance"] == {"data": "toy"}
    console = Console(record=True, width=160)
    describe(path, console)
    text = console.export_text()
    assert "GenSIM sea ice, 3 network calls" in text and "12 hours a step" in text and "windows (16, 16)" in text


def test_the_command_scores_its_samplers_from_the_file(tmp_path):
    truth().to_zarr(tmp_path / "truth.zarr", zarr_format=2)
    path = export(model(mesh()), tmp_path / "e.safetensors")
    console = Console(record=True, width=160)
    out = run(
        path, tmp_path / "truth.zarr", tmp_path / "out", forcing=None, starts=1, steps=1, members=2, seed=0,
        device="cpu", overwrite=False, console=console,
    )  # fmt: skip
    assert (out / "scores.zarr").exists() and (out / "steps.png").exists() and "sithick" in console.export_text()
    one, two = (score_samplers(m, truth(), starts=1, steps=1, members=2, samplers=(Sampler(1, False),))
                for m in (model(mesh()), load(path)))  # fmt: skip
    assert one.crps.equals(two.crps)


@pytest.mark.parametrize("kind", ["samudra", "deterministic", "residual", "gensim"])
def test_half_the_size_for_three_digits(kind, tmp_path):
    made = {"samudra": network_emulator, "gensim": model}
    emulator = made[kind]() if kind in made else regional_emulator(kind)
    full, half = (export(emulator, tmp_path / f"{h}.safetensors", half=h, data="toy") for h in (False, True))
    heads, sizes = [], []
    for path in (full, half):
        with safe_open(path, "pt") as file:
            heads.append(file.metadata())
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        weights = {k: v for k, v in tensors.items() if k.startswith(("network.", "first_guess."))}
        sizes.append(sum(v.nbytes for v in weights.values()))
        others = [v.dtype for k, v in tensors.items() if k not in weights]
        assert torch.float16 not in others
    assert heads[0] == heads[1] and sizes[1] <= 0.51 * sizes[0]
    again = load(half)
    for name in ("network", "first_guess"):
        if getattr(emulator, name, None) is None:
            continue
        one, two = (getattr(e, name).state_dict() for e in (emulator, again))
        assert one.keys() == two.keys() and all(two[k].dtype == v.dtype for k, v in one.items())
        assert all(torch.equal(two[k], v.half().float()) for k, v in one.items() if v.is_floating_point())


def test_weights_that_half_cannot_hold_are_refused(tmp_path):
    emulator = model()
    path = export(emulator, tmp_path / "e.safetensors")
    before = path.read_bytes()
    with torch.no_grad():
        emulator.network.head.out_layer.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"network.head.out_layer.weight has values to 1e\+05, too large for float16"):
        export(emulator, path, half=True)
    assert path.read_bytes() == before and torch.equal(stepped(load(export(emulator, path))), stepped(emulator))


def test_a_file_without_its_tensors_is_not_loaded(tmp_path):
    path = export(model(), tmp_path / "e.safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(path)
