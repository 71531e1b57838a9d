"""`polynya run`: an ensemble of any emulator, planned, recorded as it goes, continued if it was cut short."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import xarray as xr
from rich.console import Console

from ..emulators import Forcing, Noise, Source, State, StoreExistsError, load, open_store, samples
from ..emulators.trainable import Trainable
from ..ensembles import Exact, Moments, Output, Packed, Plan, plan, rollout


@dataclass(frozen=True)
class Begin:
    """Where a run starts: a record of a store, by its date; None for its last."""

    store: Path | None = None
    date: str | None = None


@dataclass(frozen=True)
class Kept:
    """What a run keeps; see `Output` and `rollout`.

    Attributes:
        variables: names, with commas between; None for all.
        every: records from one that is kept to the next.
        mean: keep means of so many records.
        packed: 16-bit integers.
        statistics: names of variables whose mean and variance over members are kept.
    """

    variables: str | None = None
    every: int = 1
    mean: bool = False
    packed: bool = False
    statistics: str | None = None

    @property
    def output(self) -> Output:
        """As `rollout` wants it."""
        names = None if self.variables is None else _names(self.variables)
        return Output(names, every=self.every, mean=self.mean, packing=Packed() if self.packed else Exact())


@dataclass(frozen=True)
class Ensemble:
    """What is to be run; see `prepared`."""

    emulator: Trainable
    state: State
    forcing: Forcing
    noise: Noise
    members: tuple[int, ...]
    steps: int

    def begin(self, members: tuple[int, ...]) -> State:
        """All members begin alike."""
        return self.state.spread_to(members)


def prepared(
    emulator: str, begin: Begin, *, forcing: Path | None, days: float, members: int, seed: int, device: str
) -> Ensemble:
    """Read what a run needs.

    Args:
        emulator: a file that `polynya.emulators.load` reads, or the name of one that comes with the package.
        begin: initial state; without a store that of the package's sample, for an embedded emulator.
        forcing: a Zarr store; None for the weather of the embedded nature run, each member its own.
        days: length of the run.
        members: all start from the same state, and differ by noise and weather.
        seed: of both.
        device: where the network runs.

    Raises FileNotFoundError before anything is read; ValueError if it is not said where state and forcing come from.
    """
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
    state = source.state(begin.date, (0,)).to(torch.device(device))
    driven: Forcing
    if forcing is None:
        driven = samples.nature(samples.EMULATORS[emulator]).forcing(noise=noise.stream("weather"))
    else:
        driven = Source.open(forcing, model.forcing_layout)
    steps = int(timedelta(days=days) / model.dt)
    return Ensemble(model, state, driven, noise.stream("run"), tuple(range(members)), steps)


def planned(ensemble: Ensemble, out: Path, kept: Kept, console: Console) -> Plan:
    """Print how a run is going to be done."""
    example = ensemble.begin(ensemble.members[:1])
    selection = kept.output.selection(ensemble.emulator.layout)
    each = 2 if kept.packed else 4
    made = plan(
        ensemble.emulator, example, ensemble.forcing, members=ensemble.members, steps=ensemble.steps, store=out,
        noise=ensemble.noise, output_bytes=each * math.prod(selection.layout.shape) / kept.every,
    )  # fmt: skip
    console.print(str(made), highlight=False, soft_wrap=True)
    return made


def run(
    ensemble: Ensemble,
    out: Path,
    kept: Kept,
    *,
    resume: bool,
    overwrite: bool,
    console: Console,
) -> xr.Dataset:
    """Roll an ensemble out and print what came.

    Args:
        ensemble: what is run.
        out: Zarr store to write.
        kept: what it keeps.
        resume, overwrite: see `rollout`.
        console: where the progress bar and the result go.

    Raises StoreExistsError before anything is done; else what `rollout` raises.
    """
    if out.exists() and not (resume or overwrite):
        raise StoreExistsError(f"{out} exists; nothing was written. Pass --resume to go on with it, or --overwrite")
    model, first = ensemble.emulator, ensemble.state
    console.print(
        f"{model!r}\n{len(ensemble.members)} member(s), {ensemble.steps} steps of {model.dt} from {first.time}",
        soft_wrap=True,
    )
    made = planned(ensemble, out, kept, console) if len(ensemble.members) > 1 else None
    store = rollout(
        model, ensemble.begin, ensemble.forcing, members=ensemble.members, steps=ensemble.steps, store=out,
        noise=ensemble.noise, output=kept.output, statistics=[Moments(n) for n in _names(kept.statistics or "")],
        plan=made, resume=resume, overwrite=overwrite, progress=console.is_terminal,
    )  # fmt: skip
    for name in map(str, store.data_vars):
        last = store[name].isel(time=-1)
        units = last.attrs.get("units", "")
        console.print(f"  {name}: {float(last.min()):.4g} to {float(last.max()):.4g} {units} at the end")
    return store


def _names(given: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in given.split(",") if n.strip())
