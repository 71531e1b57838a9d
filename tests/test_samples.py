"""The embedded oceans and emulators: what ships is consistent, skilful and stable."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice

import numpy as np
import pytest
import torch

from polynya.diagnostics import anomaly, rmse, variance_ratio
from polynya.emulators import Noise, Persistence, Source, samples
from polynya.ensembles import hindcasts, trajectory, verifying


@pytest.fixture(scope="module", params=samples.OCEANS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_samples_carry_grid_masks_forcing_and_statistics(name: str) -> None:
    dataset, ocean, emulator = samples.sample(name), samples.nature(name), samples.emulator(name)
    assert {"thetao", "so", "uo", "vo", "zos", "hfds", "tauuo", "tauvo", "hfatm"} <= set(dataset.data_vars)
    assert {"areacello", "wetmask", "wetmask_corner", "dz", "deptho"} <= set(dataset.coords)
    assert np.array_equal(dataset["wetmask"].values, ocean.grid["wetmask"].values)
    assert np.array_equal(emulator.layout.mask, ocean.layout.select(emulator.layout.names).mask)
    assert list(dataset["channel"].values) == emulator.layout.channel_labels()
    assert "examples/train_embedded.py" in dataset.attrs["title"]
    Source.open(dataset, ocean.layout).state()
    Source.open(dataset, ocean.forcing_layout).at(dataset.time.values[0])


def test_forecasts_beat_persistence_and_climatology(name: str) -> None:
    """From dates of the sample, at 10 and 20 days; the page of the demo shows it on unseen runs."""
    emulator, ocean, dataset = samples.emulator(name), samples.nature(name), samples.sample(name)
    source = Source.open(dataset, emulator.layout)
    stored = Source.open(dataset, ocean.forcing_layout)
    dates = source.times[: len(source.times) - 5 : 6]
    models = {
        "emulator": (emulator, stored),
        "persistence": (Persistence(emulator.layout, timedelta(days=5)), None),
        "climatology": (samples.climatology(name, emulator.layout), None),
    }
    errors = {}
    for label, (model, forcing) in models.items():
        cast = hindcasts(model, [source.state(t) for t in dates], forcing, steps=4)
        truth = verifying(dataset[list(emulator.layout.names)].load(), cast)
        one = cast.squeeze("member", drop=True)
        for variable in ("thetao", "zos"):
            score = rmse(truth[variable], one[variable], dim=[d for d in truth[variable].dims if d != "lead"])
            for lead in (10, 20):
                errors[label, variable, lead] = float(score.sel(lead=lead))
    for variable in ("thetao", "zos"):
        for lead in (10, 20):
            rivals = {r: errors[r, variable, lead] for r in ("persistence", "climatology")}
            assert errors["emulator", variable, lead] < min(rivals.values()), (variable, lead, rivals, errors)


def test_a_rollout_keeps_its_variance(name: str) -> None:
    emulator, ocean, dataset = samples.emulator(name), samples.nature(name), samples.sample(name)
    source = Source.open(dataset, emulator.layout)
    forcing = Source.open(dataset, ocean.forcing_layout)
    start = source.state(source.times[0])
    with torch.no_grad():
        states = list(islice(trajectory(emulator, start, forcing, Noise(0)), len(source.times)))
    import xarray as xr

    run = xr.concat([s.to_xarray().zos for s in states], "time").squeeze("member", drop=True)
    cycle = dataset["zos_annual_cycle"]
    ratio = float(variance_ratio(anomaly(run, cycle), anomaly(dataset.zos, cycle), weights=dataset.areacello))
    assert 0.5 < ratio < 2.0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing embedded is called 'moon'; there are globe, channel, arctic"):
        samples.nature("moon")


def test_the_embedded_sea_ice_starts_and_is_forecast_from_its_sample() -> None:
    """Four members and the deterministic emulator, two days from a date of the sample, unseen in training."""
    dataset, ice = samples.sample("arctic"), samples.nature("arctic")
    assert np.array_equal(dataset["wetmask"].values, ice.grid["wetmask"].values)
    assert "examples/train_ice.py" in dataset.attrs["title"]
    Source.open(dataset, ice.layout).state()
    generative, single = samples.emulator("arctic"), samples.emulator("arctic_deterministic")
    assert (generative.kind != "deterministic", single.kind) == (True, "deterministic")
    source, forcing = Source.open(dataset, single.layout), Source.open(dataset, single.forcing_layout)
    start, later = source.times[20], source.times[24]
    truth, wet = source.state(later).data[0], single.layout.mask[0]
    scale = torch.tensor(single.config.std)

    def error(data: torch.Tensor) -> float:
        return float(((data - truth)[:, wet] / scale[:, None]).square().mean().sqrt())

    with torch.no_grad():
        ensemble = [*islice(trajectory(generative, source.state(start, range(4)), forcing, Noise(1)), 5)]
        alone = [*islice(trajectory(generative, source.state(start, (2,)), forcing, Noise(1)), 5)]
        one = [*islice(trajectory(single, source.state(start), forcing), 5)]
    for state in (*ensemble, *one):
        for name, high in (("sithick", 20.0), ("siconc", 1.0), ("sidamage", 1.0)):
            assert float(state[name].min()) >= 0.0 and float(state[name].max()) <= high, name
    assert torch.equal(alone[-1].data[0], ensemble[-1].data[2])
    persistence = error(source.state(start).data[0])
    assert error(one[-1].data[0]) < 0.8 * persistence
    assert error(ensemble[-1].data.mean(0)) < 0.8 * persistence
