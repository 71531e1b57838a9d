"""Samudra as an emulator on data in the OM4 layout, against what the original package makes of the same files."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from small import random_state
from test_emulators import network_emulator

from polynya.emulators import CheckpointError, Layout, Noise, Samudra, Source, export, load, open_store
from polynya.emulators.samudra import NetworkConfig, SamudraNet, load_network, static_maps
from polynya.emulators.scaling import StatisticsError
from polynya.emulators.source import _anomalies
from polynya.emulators.statistics import flat_statistics, save_statistics, statistics_of
from polynya.ensembles import rollout

DATA = Path(__file__).parent / "data"
PIPELINE = np.load(DATA / "om4" / "pipeline.npz")
WEIGHTS = DATA / "samudra" / "v2_tiny.pt"
STORE = DATA / "om4" / "OM4.zarr.zip"


def statistics(kind: str) -> xr.Dataset:
    values = json.loads((DATA / "om4" / "statistics.json").read_text())[kind]
    return xr.Dataset({name: ((), value) for name, value in values.items()})


@pytest.fixture(scope="module")
def emulator() -> Samudra:
    return load(WEIGHTS, data=STORE, means=statistics("means"), stds=statistics("stds"))


@pytest.fixture(scope="module")
def sources(emulator: Samudra) -> tuple[Source, Source]:
    path = STORE
    return Source.open(path, emulator.layout), Source.open(path, emulator.forcing_layout)


def normal(values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    return (((values - mean[:, None, None]) / std[:, None, None]) * mask).numpy()


def test_flat_stores_open_as_compact_fields(sources: tuple[Source, Source]) -> None:
    dataset = sources[0].dataset
    assert dataset.thetao.dims == ("time", "lev", "y", "x")
    assert dataset["wetmask"].dtype == bool and dataset["wetmask"].dims == ("lev", "y", "x")
    assert dataset.thetao.attrs["units"] == "degC" and dataset["areacello"].attrs["units"] == "m2"
    assert dataset.thetao.chunks is not None


def test_states_and_forcings_are_those_of_the_original_loader(
    emulator: Samudra, sources: tuple[Source, Source]
) -> None:
    state, forcing = sources[0].state("1976-11-08"), sources[1].at(sources[0].times[1])
    scaling, mask = emulator.scaling, emulator.layout.mask
    ours = normal(state.data, scaling.mean, scaling.std, mask)
    assert np.abs(ours - PIPELINE["initial_prognostic"]).max() < 1e-6
    driven = normal(forcing.data, scaling.forcing_mean, scaling.forcing_std, mask[:1])
    assert np.abs(driven[0] - PIPELINE["boundary"][0]).max() < 1e-6
    later = sources[1].at(sources[0].times[3])
    driven = normal(later.data, scaling.forcing_mean, scaling.forcing_std, mask[:1])
    assert np.abs(driven[0] - PIPELINE["boundary"][1]).max() < 1e-6


def test_a_step_is_the_network_between_normalisations(emulator: Samudra, sources: tuple[Source, Source]) -> None:
    state = sources[0].state("1976-11-08")
    with torch.no_grad():
        new = emulator.step(state, sources[1].at(state.time), Noise(0))
        mask = emulator.layout.mask
        reference = load_network(WEIGHTS)(
            torch.from_numpy(PIPELINE["initial_prognostic"]), torch.from_numpy(PIPELINE["boundary"][:1]), mask
        )
    ours = normal(new.data, emulator.scaling.mean, emulator.scaling.std, mask)
    assert np.abs(ours - reference.numpy()).max() < 1e-5 * float(reference.std())
    assert new.time - state.time == timedelta(days=10) == emulator.dt
    assert (new.data[:, ~mask] == 0).all()


def test_four_members_roll_out_on_the_real_layout(
    emulator: Samudra, sources: tuple[Source, Source], tmp_path: Path
) -> None:
    start = sources[0].state("1976-11-08", (0, 1, 2, 3))
    run = rollout(emulator, start, sources[1], steps=3, store=tmp_path / "run.zarr")
    assert run.thetao.sizes == {"member": 4, "time": 8, "lev": 5, "y": 24, "x": 48}
    assert run.time.values[0].calendar == "julian"
    assert {"lat", "lon"} <= set(run.coords) and run.lat.dims == ("y", "x")
    again = open_store(tmp_path / "run.zarr")
    assert np.array_equal(again.zos.values, run.zos.values, equal_nan=True)


def test_anomalies_are_relative_to_the_day_of_year_of_the_opened_record() -> None:
    times = xr.date_range("2001-01-01", periods=146, freq="5D", calendar="noleap", use_cftime=True)
    flux = xr.DataArray(np.arange(146.0), dims="time", coords={"time": times})
    assert np.allclose(_anomalies(flux), np.where(np.arange(146) < 73, -36.5, 36.5))


def test_published_weights_need_a_store_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds weights alone; give data, means, stds"):
        load(WEIGHTS)
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        load(WEIGHTS, data=STORE, means=tmp_path / "none", stds=tmp_path / "none")
    few = statistics("means").drop_vars(["thetao_3", "zos"])
    with pytest.raises(StatisticsError, match="lack the mean of thetao_3, zos"):
        load(WEIGHTS, data=STORE, means=few, stds=statistics("stds"))
    zero = statistics("stds").assign(so_2=0.0)
    with pytest.raises(StatisticsError, match="a std of 0 for so_2"):
        load(WEIGHTS, data=STORE, means=statistics("means"), stds=zero)


def saved(path: Path, state: int, boundary: int, layout: str = "unet") -> Path:
    """A checkpoint of an untrained network with so many channels, in one of the published key layouts."""
    torch.manual_seed(0)
    network = SamudraNet(NetworkConfig(state + boundary, state, (6, 8), (1, 2), 4, "batch", "plain"))
    weights = network.state_dict()
    if layout == "original":
        weights = {k.removeprefix("unet.").replace("decoder", "layers.9"): v for k, v in weights.items()}
    torch.save({"model": weights, "epoch": 1}, path)
    return path


@pytest.mark.parametrize(
    ("state", "boundary", "names", "forcing", "slots"),
    [
        (42, 4, ("uo", "vo", "thetao", "so", "zos"), ("tauuo", "tauvo", "hfds", "hfds_anomalies"), (0,)),
        (42, 6, ("uo", "vo", "thetao", "so", "zos"), ("tauuo", "tauvo", "hfds"), (-1, 0)),
        (14, 8, ("thetao", "so", "zos"), ("tauuo", "tauvo", "hfds", "hfds_anomalies"), (-1, 0)),
        (2, 2, ("thetao",), ("hfds",), (-1, 0)),
    ],
)
def test_published_sets_of_variables_follow_from_the_channels(
    tmp_path: Path, state: int, boundary: int, names: tuple[str, ...], forcing: tuple[str, ...], slots: tuple[int, ...]
) -> None:
    path = saved(tmp_path / "c.pt", state, boundary, "original")
    emulator = load(path, data=STORE, means=statistics("means"), stds=statistics("stds"))
    assert emulator.layout.names == names and emulator.forcing_layout.names == forcing
    assert emulator.forcing_layout.slots == slots and emulator.network.config.upsample == "plain"
    source, forced = Source.open(STORE, emulator.layout), Source.open(STORE, emulator.forcing_layout)
    start = source.state("1976-11-08")
    assert forced.at(start.time).data.shape[1] == boundary
    run = rollout(emulator, start, forced, steps=2, store=tmp_path / "run.zarr")
    assert run.sizes["time"] == 6 and bool(run.thetao.isel(lev=0).notnull().any())


def test_what_channels_cannot_tell_must_be_said(tmp_path: Path) -> None:
    given = {"data": STORE, "means": statistics("means"), "stds": statistics("stds")}
    with pytest.raises(
        CheckpointError,
        match=r"38 output channels are no.*uo, vo, thetao, so, zos on 5 levels \(42 channels\).*pass variables",
    ):
        load(saved(tmp_path / "a.pt", 38, 8), **given)
    with pytest.raises(CheckpointError, match=r"leave 5 for the forcing.*pass forcing"):
        load(saved(tmp_path / "b.pt", 42, 5), **given)
    with pytest.raises(CheckpointError, match="wanted 8 forcing channels, got tauuo"):
        load(saved(tmp_path / "c.pt", 42, 8), forcing=("tauuo",), **given)
    told = load(saved(tmp_path / "d.pt", 22, 4), variables=("so", "thetao", "zos"), forcing=("tauvo", "hfds"), **given)
    assert told.layout.names == ("so", "thetao", "zos") and told.layout.shape[0] == 22
    assert told.forcing_layout.names == ("tauvo", "hfds") and told.forcing_layout.slots == (-1, 0)


def test_statistics_of_the_first_generation_have_depths_in_their_names(emulator: Samudra) -> None:
    depths = ("2_5", "10_0", "22_5", "40_0", "65_0")
    means, stds = (
        d.rename({f"{v}_{k}": f"{v}_lev_{depths[k]}" for v in ("uo", "vo", "thetao", "so") for k in range(5)})
        for d in (statistics("means"), statistics("stds"))
    )
    again = load(WEIGHTS, data=STORE, means=means, stds=stds)
    assert torch.equal(again.scaling.mean, emulator.scaling.mean)
    assert torch.equal(again.scaling.std, emulator.scaling.std)


def test_one_statistics_file_replaces_the_stores(tmp_path: Path, sources: tuple[Source, Source]) -> None:
    """Made from the data, it holds grid, mask and constants; the forecast is the same as with the data's stores."""
    file = save_statistics(statistics_of(STORE), tmp_path / "small.zarr.zip")
    alone = load(WEIGHTS, statistics=file)
    flat = flat_statistics(statistics_of(STORE))
    classic = load(WEIGHTS, data=STORE, means=flat["mean"], stds=flat["std"])
    assert torch.equal(alone.scaling.mean, classic.scaling.mean)
    assert alone.layout.interval == timedelta(days=5)
    assert torch.equal(alone.layout.mask, classic.layout.mask)
    state = sources[0].state("1976-11-08")
    with torch.no_grad():
        one, two = (e.step(state, sources[1].at(state.time), Noise(0)).data for e in (alone, classic))
    assert torch.equal(one, two)


def test_a_repository_is_asked_for_a_file_and_a_revision(monkeypatch: pytest.MonkeyPatch, emulator: Samudra) -> None:
    asked = {}

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.update(repository=repository, file=file, revision=revision)
        return str(WEIGHTS)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    given = {"data": STORE, "means": statistics("means"), "stds": statistics("stds")}
    there = load("M2LInES/Samudra2", file="onedeg/ema_ckpt.pt", revision="abc123", **given)
    assert asked == {"repository": "M2LInES/Samudra2", "file": "onedeg/ema_ckpt.pt", "revision": "abc123"}
    assert there.checkpoint == emulator.checkpoint


def test_a_truncated_download_and_a_pickle_of_code_are_refused(tmp_path: Path) -> None:
    given = {"data": STORE, "means": statistics("means"), "stds": statistics("stds")}
    whole = WEIGHTS.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="download it again"):
        load(tmp_path / "cut.pt", **given)
    with (tmp_path / "code.pt").open("wb") as file:
        pickle.dump({"model": print}, file)
    with pytest.raises(CheckpointError, match="cannot be read as one"):
        load(tmp_path / "code.pt", **given)
    exported = export(network_emulator(), tmp_path / "e.safetensors")
    (tmp_path / "half.safetensors").write_bytes(exported.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(tmp_path / "half.safetensors")


def test_an_interrupted_export_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(network_emulator(), tmp_path / "e.safetensors")
    before = path.read_bytes()

    def dies(file: Path, data: bytes) -> None:
        with file.open("wb") as opened:
            opened.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(OSError, match="disk full"):
        export(network_emulator(), path)
    assert path.read_bytes() == before


def test_an_exported_emulator_needs_nothing_else(
    tmp_path: Path, emulator: Samudra, sources: tuple[Source, Source]
) -> None:
    again = load(export(emulator, tmp_path / "small.safetensors", data="fixture"))
    state = sources[0].state("1976-11-08")
    forcing = sources[1].at(state.time)
    with torch.no_grad():
        one, two = (e.step(state, forcing, Noise(0)).data for e in (emulator, again))
    assert torch.equal(one, two)
    assert again.layout.slots == (-1, 0) and again.layout.interval == timedelta(days=5)
    assert (tmp_path / "small.safetensors").stat().st_size < 0.5 * WEIGHTS.stat().st_size
    assert len(again.checkpoint) == 64 and again.checkpoint[:12] in repr(again)


def test_an_exported_small_emulator_keeps_its_statics_and_increments(tmp_path: Path) -> None:
    emulator = network_emulator()
    again = load(export(emulator, tmp_path / "e.safetensors"))
    assert again.statics == emulator.statics and again.increments
    state, forcing = random_state(emulator.layout), random_state(emulator.forcing_layout)
    with torch.no_grad():
        assert torch.equal(again.step(state, forcing, Noise(0)).data, emulator.step(state, forcing, Noise(0)).data)


def test_files_that_are_no_emulator_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no emulator at"):
        load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(tmp_path / "bad.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="wanted an emulator exported by polynya"):
        load(tmp_path / "foreign.safetensors")


def test_an_untrained_increment_network_is_persistence() -> None:
    emulator = network_emulator()
    for parameter in emulator.network.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    state, forcing = random_state(emulator.layout), random_state(emulator.forcing_layout)
    with torch.no_grad():
        assert torch.equal(emulator.step(state, forcing, Noise(0)).data, state.data)


def test_static_maps_are_of_order_one_and_zero_on_land() -> None:
    layout: Layout = network_emulator().layout
    maps = static_maps(layout, ("latitude", "cos_longitude", "sin_longitude", "depth", "wet"))
    assert maps.shape == (5, 8, 12) and float(maps.abs().max()) < 3
    assert (maps[:, ~layout.mask[0]] == 0).all()
    with pytest.raises(KeyError):
        static_maps(layout, ("nonsense",))
    assert static_maps(layout, ()).shape == (0, 8, 12)


def test_land_values_do_not_reach_the_ocean() -> None:
    emulator = network_emulator()
    state, forcing = random_state(emulator.layout), random_state(emulator.forcing_layout)
    litter = torch.where(emulator.layout.mask, state.data, torch.full_like(state.data, 1e6))
    with torch.no_grad():
        clean, dirty = (emulator.step(s, forcing, Noise(0)) for s in (state, replace(state, data=litter)))
    assert torch.equal(clean.data[:, emulator.layout.mask], dirty.data[:, emulator.layout.mask])


def test_tuned_emulators_share_weights_and_agree(emulator: Samudra, sources: tuple[Source, Source]) -> None:
    state = sources[0].state("1976-11-08", (0, 1))
    forcing = sources[1].at(state.time, (0, 1))
    half, whole = emulator.tuned(bf16=True), emulator.tuned(one_at_a_time=False)
    assert half.network.decoder.weight.data_ptr() == emulator.network.decoder.weight.data_ptr()
    assert half.network.config.bf16 and not emulator.network.config.bf16 and not half.network.training
    with torch.no_grad():
        plain, coarse, batched = (e.step(state, forcing, Noise(0)).data for e in (emulator, half, whole))
    scale = emulator.scaling.std.view(-1, 1, 1)
    assert float(((coarse - plain) / scale).std()) < 0.03 * float(((plain) / scale).std())
    assert torch.allclose(batched / scale, plain / scale, atol=1e-5) and not torch.equal(coarse, plain)


def test_an_untrained_emulator_is_persistence_and_its_seed_decides_its_weights() -> None:
    plain = network_emulator()
    layouts = plain.layout, plain.forcing_layout
    one, two, other = (
        Samudra.untrained(*layouts, plain.scaling, widths=(6, 8), dilations=(1, 2), seed=seed) for seed in (1, 1, 2)
    )
    state, forcing = random_state(layouts[0]), random_state(layouts[1])
    with torch.no_grad():
        assert torch.equal(one.step(state, forcing, Noise(0)).data, state.data)
    first = "unet.layers.0.convblock.0.weight"
    weights = [e.network.state_dict()[first] for e in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_noise_maps_make_members_differ_and_belong_to_them() -> None:
    plain = network_emulator()
    emulator = Samudra.untrained(
        plain.layout,
        plain.forcing_layout,
        plain.scaling,
        increments=False,
        noise_maps=2,
        widths=(6, 8),
        dilations=(1, 2),
    )
    state = random_state(emulator.layout, (0,)).spread_to((3, 8, 9))
    forcing = random_state(emulator.forcing_layout, (0,)).spread_to((3, 8, 9))
    with torch.no_grad():
        all_three = emulator.step(state, forcing, Noise(1))
        alone = emulator.step(state.sel((8,)), forcing.sel((8,)), Noise(1))
        other = emulator.step(state, forcing, Noise(2))
    assert not torch.equal(all_three.data[0], all_three.data[1])
    assert torch.equal(all_three.sel((8,)).data, alone.data)
    assert not torch.equal(all_three.data, other.data)
