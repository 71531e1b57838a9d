"""`polynya steps`: how good are fewer network calls? Hindcasts of a generative sea-ice emulator by several samplers.

A sampler of n intervals calls the network n times by Euler's method and 2 n - 1 times by Heun's.  All samplers get the
same initial states and the same noise, so that what differs is how well each follows the flow from noise to data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..diagnostics.conventions import area_of, horizontal_dims
from ..diagnostics.sampling import sampling_figure
from ..diagnostics.skill import crps_ensemble, spread_error
from ..emulators import (
    Emulator,
    GenSIM,
    Noise,
    Regional,
    Source,
    SourceError,
    State,
    StoreExistsError,
    attributes,
    load,
)
from ..emulators.source import cftime_like
from ..ensembles.rollout import trajectory

__all__ = ["SAMPLERS", "NothingToSampleError", "Sampler", "score_samplers", "score_table"]

_SCORES = {
    "error": "error of the ensemble mean",
    "crps": "fair continuous ranked probability score",
    "spread": "ensemble spread",
}


class NothingToSampleError(ValueError):
    """An emulator whose forecast does not depend on noise, or is not made by a sampler with steps."""


@dataclass(frozen=True)
class Sampler:
    """Intervals between noise and data, and the method by which they are crossed."""

    n_steps: int
    second_order: bool

    @property
    def calls(self) -> int:
        """Network calls of one step of the emulator."""
        return 2 * self.n_steps - 1 if self.second_order else self.n_steps

    def __str__(self) -> str:
        return f"{'Heun' if self.second_order else 'Euler'} {self.n_steps}"


SAMPLERS = (*(Sampler(n, True) for n in (20, 10, 5, 3)), *(Sampler(n, False) for n in (20, 5)))
"""Of 39, 19, 9 and 5 calls (Heun), 20 and 5 (Euler)."""


def score_samplers(
    emulator: Emulator,
    truth: str | Path | xr.Dataset,
    forcing: str | Path | xr.Dataset | None = None,
    *,
    starts: int | Sequence[str | cftime.datetime] = 8,
    steps: int = 10,
    members: int = 16,
    samplers: Sequence[Sampler] = SAMPLERS,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """Score ensemble hindcasts of a generative emulator by several samplers.

    Args:
        emulator: a `GenSIM`, or a `Regional` of kind diffusion or residual, on the device where it is to run.
        truth: store or Dataset with the emulator's states, from which forecasts begin and by which they are scored.
        forcing: store or Dataset with its forcing; default `truth`.
        starts: initial dates, or how many of them, spread over the record.
        steps: steps of each forecast.
        members: of each forecast, all from the same state.
        samplers: to be compared.
        seed: of the noise, the same for every sampler.
        progress: show a bar.

    Returns:
        Dataset with `error` (RMSE of the ensemble mean), `crps` (fair) and `spread`, `(sampler, variable, lead)` in the
        units of the variable (coordinate `units`), and `seconds (sampler)`, of wall clock for each member and step.
        Means over ocean cells, weighted by area, and over initial dates, the root of `error` and `spread` taken last.
        `lead` in days, 1 step and more; coordinates `calls`, `n_steps` and `second_order`; dates in the attribute
        `starts`.

    Raises:
        NothingToSampleError: for an emulator without a sampler.
        ValueError: for fewer than two members, less than one step or sampler, or two samplers that are the same.
        SourceError: if states and forcing have no records in common, for a store that is not of this emulator, or a
            date that it lacks.
    """
    model = _generative(emulator)
    if members < 2 or steps < 1 or not samplers or len(set(samplers)) < len(samplers):
        raise ValueError(
            f"wanted at least 2 members, 1 step and 1 sampler, all different, got {members} members, {steps} steps and "
            f"samplers {', '.join(map(str, samplers)) or 'none'}"
        )
    states = Source.open(truth, model.layout)
    driven = Source.open(truth if forcing is None else forcing, model.forcing_layout)
    dates = _dates(states, driven, starts, steps, model.dt)
    sums, seconds = np.zeros((len(_SCORES), len(samplers), len(model.layout.names), steps)), np.zeros(len(samplers))
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("forecasts", total=len(dates) * steps * sum(s.calls for s in samplers))
        for i, sampler in enumerate(samplers):
            tuned, clock = model.tuned(n_steps=sampler.n_steps, second_order=sampler.second_order), _Clock()
            for date in dates:
                start = _start(tuned, states, date, members)
                forecast = islice(trajectory(tuned, start, driven, Noise(seed)), 1, steps + 1)
                for k, state in enumerate(clock(forecast)):
                    sums[:, i, :, k] += _scores(states, state)
                    bar.advance(task, sampler.calls)
            seconds[i] = np.median(clock.taken) / members
    sums /= len(dates)
    sums[[0, 2]] **= 0.5  # error and spread came squared
    about = {"members": members, "seed": seed, "starts": [str(d) for d in dates]}
    return _dataset(sums, seconds, model, samplers, about)


def run(
    emulator: Path,
    store: Path,
    out: Path,
    *,
    forcing: Path | None,
    starts: int,
    steps: int,
    members: int,
    seed: int,
    device: str,
    overwrite: bool,
    console: Console,
) -> Path:
    """Score the samplers of an emulator in a file, print a table, and write scores and figure into a folder.

    Raises what `load` and `score_samplers` raise; an existing folder is found before anything is read.
    """
    if out.exists() and not (overwrite and out.is_dir()):
        raise StoreExistsError(
            f"{out} exists; nothing was read or written. Choose another folder, or replace it with --overwrite"
        )
    model = _on(_generative(load(emulator)), device)
    options: dict[str, Any] = {"starts": starts, "steps": steps, "members": members, "seed": seed}
    scores = score_samplers(model, store, forcing, **options, progress=console.is_terminal)
    out.mkdir(parents=True, exist_ok=True)
    scores.to_zarr(out / "scores.zarr", mode="w", zarr_format=2)  # the third version has no text yet
    sampling_figure(scores).savefig(out / "steps.png", dpi=150)
    console.print(score_table(scores))
    return out


def score_table(scores: xr.Dataset, lead: float | None = None) -> Table:
    """A table of the scores at one lead in days, default the last; `scores` from `score_samplers`."""
    last = scores.isel(lead=-1) if lead is None else scores.sel(lead=lead)
    title = (
        f"{float(last['lead']):g} days ahead, {last.attrs['members']} members, {len(last.attrs['starts'])} forecasts"
    )
    table = Table(title=title, title_justify="left")
    for column in ("variable", "sampler", "calls", "error", "CRPS", "spread", "units", "s/member/step"):
        table.add_column(column, justify="left" if column in ("variable", "sampler", "units") else "right")
    for variable in last["variable"].values:
        for sampler in last["sampler"].values:
            one = last.sel(variable=variable, sampler=sampler)
            first = sampler == last["sampler"].values[0]
            table.add_row(
                str(variable) if first else "",
                str(sampler),
                str(int(one["calls"])),
                *(f"{float(one[n]):.4g}" for n in _SCORES),
                str(one["units"].values),
                f"{float(one['seconds']):.3g}",
                end_section=bool(sampler == last["sampler"].values[-1]),
            )
    return table


# --- how it is done -------------------------------------------------------------------------------------


def _generative(emulator: Emulator) -> GenSIM | Regional:
    kind = f"{emulator.kind} " if isinstance(emulator, Regional) else ""
    if not isinstance(emulator, GenSIM | Regional) or kind == "deterministic ":
        raise NothingToSampleError(
            f"there is nothing to sample in a {kind}{type(emulator).__name__}: its steps are not made from noise by a "
            "sampler; give a GenSIM, or a Regional of kind diffusion or residual"
        )
    return emulator


def _on(model: GenSIM | Regional, device: str) -> GenSIM | Regional:
    """The emulator with its networks on a device."""
    for network in (model.network, getattr(model, "first_guess", None)):
        if network is not None:
            network.to(device)
    return model


def _dates(
    states: Source, driven: Source, starts: int | Sequence[str | cftime.datetime], steps: int, dt: timedelta
) -> list[cftime.datetime]:
    """The initial dates; from each, all states to compare with and all forcing are there."""
    ours, theirs = states.times, driven.times
    if (starts if isinstance(starts, int) else len(starts)) < 1:
        raise SourceError("wanted at least one initial date, got none")
    if not isinstance(starts, int):
        dates = [states.nearest(cftime_like(d, ours[0]) if isinstance(d, str) else d) for d in starts]
    else:
        shared: list[cftime.datetime] = []
        if ours[0].calendar == theirs[0].calendar:
            first, last = max(ours[0], theirs[0]), min(ours[-1], theirs[-1]) - steps * dt
            shared = [t for t in ours if first <= t <= last]
        dates = [shared[round(k)] for k in np.linspace(0, len(shared) - 1, min(starts, len(shared)))]
    if not dates:
        raise SourceError(
            f"states and forcing have no records in common for {steps} steps of {dt}: the states cover {ours[0]} to "
            f"{ours[-1]} ({ours[0].calendar} calendar), the forcing {theirs[0]} to {theirs[-1]} "
            f"({theirs[0].calendar}); choose stores of the same dates, or fewer steps"
        )
    for date in dates:
        states.require(date, steps, dt)
        driven.require(date, steps - 1, dt)
    return dates


def _start(model: GenSIM | Regional, states: Source, date: cftime.datetime, members: int) -> State:
    like = next(model.network.parameters())
    one = states.state(date, states.members[:1], like.dtype).replace(members=(0,))
    return one.spread_to(range(members)).to(like.device)


class _Clock:
    """Wall-clock seconds that steps take."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, states: Iterator[State]) -> Iterator[State]:
        """The same states, without gradients, each with its time taken."""
        while True:
            begin = time.perf_counter()
            with torch.no_grad():
                state = next(states, None)
            if state is None:
                return
            if state.data.is_cuda:
                torch.cuda.synchronize(state.data.device)
            self.taken.append(time.perf_counter() - begin)
            yield state


def _scores(states: Source, state: State) -> NDArray[np.float64]:
    """Squared error, CRPS and squared spread of an ensemble, over the ocean (score, variable)."""
    ensemble = state.to_xarray().isel(time=-1, drop=True)
    observed = states.state(state.time, states.members[:1]).to_xarray().isel(member=0, time=-1, drop=True)
    area, dims = area_of(ensemble), horizontal_dims(ensemble)
    found = []
    for name in state.layout.names:
        pair: dict[str, Any] = {"obs": observed[name], "ens": ensemble[name], "dim": dims, "weights": area}
        both = spread_error(**pair)
        found.append([float(both.error) ** 2, float(crps_ensemble(**pair, fair=True)), float(both.spread) ** 2])
    return np.array(found).T


def _dataset(
    sums: NDArray[np.float64],
    seconds: NDArray[np.float64],
    model: GenSIM | Regional,
    samplers: Sequence[Sampler],
    attrs: dict[str, Any],
) -> xr.Dataset:
    dims, names = ("sampler", "variable", "lead"), model.layout.names
    fields: dict[str, Any] = {n: (dims, v, {"long_name": _SCORES[n]}) for n, v in zip(_SCORES, sums, strict=True)}
    about = {"units": "s", "long_name": "wall clock for each member and step, median over steps"}
    days = [(k + 1) * model.dt / timedelta(days=1) for k in range(sums.shape[-1])]
    coords = {
        "sampler": [str(s) for s in samplers],
        "variable": list(names),
        "units": ("variable", [attributes(n).get("units", "1") for n in names]),
        "lead": ("lead", days, {"units": "days", "standard_name": "forecast_period"}),
        "calls": ("sampler", [s.calls for s in samplers], {"long_name": "network calls of one step"}),
        "n_steps": ("sampler", [s.n_steps for s in samplers], {"long_name": "intervals of the sampler"}),
        "second_order": ("sampler", [int(s.second_order) for s in samplers], {"long_name": "Heun rather than Euler"}),
    }
    attrs = {"title": "scores of samplers of one emulator", "emulator": repr(model), **attrs}
    return xr.Dataset(fields | {"seconds": ("sampler", seconds, about)}, coords=coords, attrs=attrs)
