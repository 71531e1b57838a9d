"""`polynya run`: an ensemble of any emulator for days or years, recorded as it goes, continued if it was cut short."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import xarray as xr
from rich.console import Console

from ..emulators import Forcing, Noise, Source, StoreExistsError, load, open_store, samples
from ..emulators.trainable import Trainable
from ..ensembles import rollout


@dataclass(frozen=True)
class Begin:
    """Where a run starts: a record of a store, by its date; None for its last."""

    store: Path | None = None
    date: str | None = None


def run(
    emulator: str,
    out: Path,
    begin: Begin,
    *,
    forcing: Path | None,
    days: float,
    members: int,
    seed: int,
    device: str,
    resume: bool,
    overwrite: bool,
    console: Console,
) -> xr.Dataset:
    """Roll an ensemble out and print what came.

    Args:
        emulator: a file that `polynya.emulators.load` reads, or the name of one that comes with the package.
        out: Zarr store to write.
        begin: initial state; without a store that of the package's sample, for an embedded emulator.
        forcing: a Zarr store; None for the weather of the embedded nature run, each member its own.
        days: length of the run.
        members: all start from the same state, and differ by noise and weather.
        seed: of both.
        device: where the network runs.
        resume, overwrite: see `rollout`.
        console: where the progress bar and the result go.

    Raises StoreExistsError or FileNotFoundError before anything is read; ValueError if it is not said where state and
    forcing come from; else what `rollout` raises.
    """
    if out.exists() and not (resume or overwrite):
        raise StoreExistsError(f"{out} exists; nothing was written. Pass --resume to go on with it, or --overwrite")
    embedded = emulator in samples.EMULATORS
    if not embedded and not Path(emulator).exists():
        raise FileNotFoundError(
            f"no emulator at {emulator}; give a file, or one that comes along: {', '.join(samples.EMULATORS)}"
        )
    if not embedded and (begin.store is None or forcing is None):
        raise ValueError(
            f"say where initial state and forcing of {emulator} come from: --state STORE --forcing STORE; only the "
            f"emulators that come along ({', '.join(samples.EMULATORS)}) bring theirs"
        )
    model: Trainable = samples.emulator(emulator) if embedded else load(emulator)
    model = model.with_network(model.network.to(device)) if device != "cpu" else model
    noise = Noise(seed)
    dataset = samples.sample(samples.EMULATORS[emulator]) if begin.store is None else open_store(begin.store)
    source = Source.open(dataset, model.layout)
    state = source.state(begin.date, tuple(range(members))).to(torch.device(device))
    driven: Forcing
    if forcing is None:
        driven = samples.nature(samples.EMULATORS[emulator]).forcing(noise=noise.stream("weather"))
    else:
        driven = Source.open(forcing, model.forcing_layout)
    steps = int(timedelta(days=days) / model.dt)
    console.print(f"{model!r}\n{members} member(s), {steps} steps of {model.dt} from {state.time}", soft_wrap=True)
    store = rollout(
        model, state, driven, steps=steps, store=out, noise=noise.stream("run"), resume=resume, overwrite=overwrite,
        progress=console.is_terminal,
    )  # fmt: skip
    for name in model.layout.names:
        last = store[name].isel(time=-1)
        units = last.attrs.get("units", "")
        console.print(f"  {name}: {float(last.min()):.4g} to {float(last.max()):.4g} {units} at the end")
    return store
