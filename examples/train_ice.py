"""Make the embedded sea ice's sample and train its two small emulators: the whole path from truth to weights.

    python examples/train_ice.py                       # nature run 20 minutes on one core, training an hour or two each
    python examples/train_ice.py --only residual       # one of the two; the deterministic one has to be there

Writes arctic.zarr.zip, arctic_deterministic.safetensors and arctic.safetensors, the files in emulators/embedded/. Both
networks are trained on noisy states, which keeps the one from blowing up and the other from piling up what it gets
wrong. The generative emulator is a diffusion model of what the deterministic one lacks, and needs its file beside its
own. It is trained twice: the second time without noise on its states, which blurs small scales, but with what the
truth's own model makes of the states of its forecasts (Ross, Gordon & Bagnell 2011, AISTATS). At the end its steps are
given the mean and the small scales of its training. Every part can be killed and run again. To train on your own data,
replace `nature_run` by the path of a store with a record every twelve hours, and leave out the second part, whose truth
has to go on from any state.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cftime
import torch
import xarray as xr
from train_embedded import zipped

from polynya.emulators import (
    Field,
    Layout,
    Noise,
    Regional,
    RegionalConfig,
    Source,
    State,
    export,
    layout_of,
    load,
    open_store,
)
from polynya.emulators.ice_constants import fitted
from polynya.emulators.losses import Dynamic
from polynya.emulators.nature_ice import STATES, NatureIce, arctic
from polynya.emulators.regional_constants import residual_constants, sharpened, unbiased
from polynya.emulators.regional_objectives import Denoising, Increment
from polynya.emulators.running import Running
from polynya.emulators.training import Recipe, parameters, train, windows_of
from polynya.emulators.uvit import UViTConfig
from polynya.ensembles import rollout

TRAINING, VALIDATION = slice(0, 8), slice(9, 9)  # members; 10 and 11 are never trained on
TRAINED = 660  # records of each, eleven months: what comes after is for tests
FORCING = ("tas", "huss", "uas", "vas")
SIZE = {
    "n_features": 32, "channel_mul": (2, 3, 4), "n_embedding": 64, "n_heads": 4, "mult": 2,
    "dropout_attn": 0.0, "dropout_mlp": 0.0,
}  # fmt: skip
# 11 network calls instead of the published 39, between -10 and 15; a smaller largest level blurs the smallest scales.
SAMPLER = {"n_steps": 6, "gamma_min": -6.0, "gamma_max": 12.0}
OBJECTIVES = {
    "deterministic": Increment(augment=False),
    "residual": Denoising(augment=False, dynamic=Dynamic(probe=False), levels=(-7.0, 13.0), memory=0.98),
}
JITTER = {"deterministic": 0.2, "residual": 0.1, "residual, with excursions": 0.0}
LEADS = (1, 3, 6, 10)  # steps into a forecast, where excursions begin
FAST = Running(bf16=True, compiled=True)  # two thirds of the time on a CPU that has bfloat16
FILES = {"deterministic": "arctic_deterministic", "residual": "arctic"}


def nature_run(work: Path, members: int = 12) -> Path:
    """Ten months from even ice, each member under its own weather, which are thrown away; then fifteen to keep."""
    ice, noise = replace(arctic(), compiled=True), Noise(30)
    weather = ice.forcing(noise.stream("weather"))
    state = ice.at_rest(cftime.datetime(1, 1, 1, calendar="360_day"), tuple(range(members)))
    spun = rollout(ice, state, weather, steps=600, store=work / "ice_spin.zarr", resume=True, progress=True)
    state = Source.open(spun, ice.layout).state(members=state.members)
    store = work / "ice_run.zarr"
    rollout(ice, state, weather, steps=905, store=store, with_forcing=True, resume=True, progress=True)
    return store


def untrained(dataset: xr.Dataset, guess: Regional | None = None) -> Regional:
    """A deterministic network with the constants of the training data; or a diffusion model of what it lacks."""
    if guess is None:
        layout = layout_of(dataset, STATES)
        forcing = Layout(tuple(Field(n) for n in FORCING), layout.grid, (0, 1), layout.interval)
        sizes = {
            "deterministic": UViTConfig(n_input=14, **SIZE),  # type: ignore[arg-type]
            "diffusion": UViTConfig(n_input=24, n_time_hidden=64, **SIZE),  # type: ignore[arg-type]
        }
        config = RegionalConfig(**sizes, **SAMPLER, sees_mask=True)  # type: ignore[arg-type]
        config = fitted(config, layout, forcing, [dataset])
        emulator = Regional.untrained(layout, forcing, config, "deterministic")
    else:
        mean, scale = residual_constants(guess, windows_of(guess, [dataset]), 256)
        config = replace(guess.config, residual_mean=mean, residual_scale=scale)
        emulator = Regional.untrained(
            guess.layout, guess.forcing_layout, config, "diffusion", first_guess=guess.network
        )
    emulator.network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    return emulator


def excursion(
    ice: NatureIce, whole: Source, ours: Source, driven: Source, time: cftime.datetime, members: tuple[int, ...]
) -> State:
    """The emulator's ice with all that the truth's model starts from.

    The emulator has no stress. It starts as the truth's of that time, after twelve hours in the emulator's ice.
    """
    state, seen = whole.state(time, members), ours.state(time, members).data
    state = state.replace(data=torch.cat((seen, state.data[:, len(STATES) :]), 1))
    later = ice.step(state, driven.at(time, members), Noise(0))
    return state.replace(data=torch.cat((seen, later.data[:, len(STATES) :]), 1))


def excursions(emulator: Regional, dataset: xr.Dataset, work: Path, dates: int = 64) -> list[Path]:
    """Where the truth's own model goes from states of the emulator's forecasts: stores of two records each."""
    ice = replace(arctic(), compiled=True)
    truth, whole, driven = (Source.open(dataset, each) for each in (emulator.layout, ice.layout, ice.forcing_layout))
    emulator = emulator.tuned(replace(FAST, one_at_a_time=False))
    last, stores = len(truth.times) - max(LEADS) - 3, []
    for k in range(dates):
        first = k * last // (dates - 1)
        start, store = truth.state(truth.times[first], truth.members), work / "ice_forecasts" / f"{k:02d}.zarr"
        steps = max(LEADS)
        forecast = rollout(emulator, start, driven, steps=steps, noise=Noise(k), store=store, resume=True)
        ours = Source.open(forecast, emulator.layout)
        for lead in LEADS:
            begin = partial(excursion, ice, whole, ours, driven, truth.times[first + lead])
            stores.append(work / "ice_excursions" / f"{k:02d}_{lead:02d}.zarr")
            rollout(
                ice, begin, driven, steps=1, members=truth.members, store=stores[-1], with_forcing=True, resume=True
            )
    return stores


def write_sample(dataset: xr.Dataset, path: Path, records: int = 60) -> None:
    """The first month of a member that was never trained on, in winter."""
    names = [*arctic().layout.names, *FORCING]
    part = dataset[names].isel(member=-1, time=slice(records)).drop_vars("member").load()
    part.attrs["title"] = "sample of the embedded sea ice, made by: python examples/train_ice.py"
    zipped(part, path)


def main() -> None:
    """Run every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".work"), help="where the nature run goes (1 GB)")
    parser.add_argument("--out", type=Path, default=Path("emulators/embedded"))
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--only", choices=tuple(OBJECTIVES))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    dataset = open_store(nature_run(given.work))
    write_sample(dataset, given.out / "arctic.zarr.zip")
    early = dataset.isel(time=slice(TRAINED))
    training, validation = early.sel(member=TRAINING), early.sel(member=VALIDATION)

    def trained(emulator: Regional, kind: str, part: str, others: Sequence[Path] = ()) -> Regional:
        windows = windows_of(emulator, [training, *others], in_memory=True)
        recipe = Recipe(
            given.updates, batch=16, steps=(1,), loss=OBJECTIVES[kind], learning_rate=1e-3, warmup=0.05,
            weight_decay=0.01, decay=0.998, jitter=JITTER[part],
        )  # fmt: skip
        return train(emulator, windows, recipe, folder=given.work / f"ice_{part}", resume=True,
                     validation=windows_of(emulator, [validation]), progress=True)  # fmt: skip

    for kind in [given.only] if given.only else OBJECTIVES:
        beside = None if kind == "deterministic" else given.out / f"{FILES['deterministic']}.safetensors"
        guess = None if beside is None else load(beside)
        assert guess is None or isinstance(guess, Regional)
        emulator = untrained(training, guess).tuned(FAST)
        print(f"{kind}: {parameters(emulator.network)} parameters")
        emulator = trained(emulator, kind, kind)
        if kind == "residual":
            others = excursions(emulator, training, given.work)
            emulator = trained(emulator, kind, f"{kind}, with excursions", others)
            emulator = emulator.tuned(replace(FAST, one_at_a_time=False))
            emulator = sharpened(emulator, windows_of(emulator, [training]), progress=True)
            emulator = unbiased(emulator, windows_of(emulator, [training, *others]), progress=True)
        command = f"python examples/train_ice.py --updates {given.updates}"
        export(emulator, given.out / f"{FILES[kind]}.safetensors", command=command, half=True, beside=beside)


if __name__ == "__main__":
    main()
