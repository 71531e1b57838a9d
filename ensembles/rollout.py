"""Rollouts: fold an emulator over time, lazily, and record what comes.

`trajectory` is an endless iterator of States; `rollout` cuts it and records it. Both yield the initial
state first, so that a store begins where the run began and can be continued from its last record.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cftime
import torch
import xarray as xr

from ..emulators import Draws, Emulator, Forcing, Noise, State
from .record import record, recorded, reopen, shifted, slot_times


def trajectory(
    emulator: Emulator, state: State, forcing: Forcing | None = None, noise: Draws | None = None
) -> Iterator[State]:
    """The initial state and then, endlessly, the states one step further each.

    Args:
        emulator: what advances them.
        state: initial condition; its members are the run's members.
        forcing: asked for `forcing.at(time, members)` at the start of every step.
        noise: for stochastic emulators; `Noise(0)` if not given.

    Over a stored forcing the states carry the dates of its records, however irregular the calendar makes them
    (`Source.shift`); otherwise each is `emulator.dt` later than the one before. Gradients flow from any state to
    the first, unless the caller switched them off.
    """
    noise = Noise(0) if noise is None else noise
    while True:
        yield state
        driven = None if forcing is None else forcing.at(state.time, state.members)
        after = emulator.step(state, driven, noise)
        state = after.replace(time=shifted(forcing, state.time, after.time - state.time))


def rollout(
    emulator: Emulator,
    state: State,
    forcing: Forcing | None = None,
    *,
    steps: int,
    store: str | Path,
    noise: Draws | None = None,
    with_forcing: bool = False,
    title: str = "",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Run an ensemble forward and record it; returns the store, opened lazily.

    Args:
        emulator: what advances the states; gradients are off.
        state: initial condition with the run's members.
        forcing: a `Source`, a nature run's forcing, or None for an emulator without.
        steps: number of emulator steps; the store holds the initial state as well.
        store: path of the Zarr store.
        noise: for stochastic emulators; `Noise(0)` if not given.
        with_forcing: record the forcing of every step beside the state.
        title: of the store.
        resume: continue a run that was cut short (or that should go further): the steps that are
            missing to make `steps` in all are computed from the last record, in the same bits.
        overwrite: replace an existing store.
        progress: show a progress bar.

    Raises ValueError before anything is written if the forcing ends too early or the state does not fit.
    """
    emulator.layout.require_same(state.layout, f"rollout of {type(emulator).__name__}: initial state")
    noise = Noise(0) if noise is None else noise
    first, done = state, 0
    if resume and (times := recorded(store)):
        done = _steps_done(times, emulator, state, forcing, store)
        if not 0 <= done <= steps:
            raise ValueError(
                f"{store} reaches {times[-1]}, {done} steps from {state.time}: it is not part of a run of {steps} steps"
            )
        first = reopen(store, emulator.layout, state.members).to(state.data.device)
    require = getattr(forcing, "require", None)  # a stored forcing ends somewhere, a nature run's does not
    if require is not None and done < steps:
        require(first.time, steps - done - (0 if with_forcing else 1), emulator.dt)
    made_by = {
        "emulator": repr(emulator),
        "checkpoint": getattr(emulator, "checkpoint", None),
        "forcing": repr(forcing),
        "noise": repr(noise),
    }
    with torch.no_grad():
        return record(
            islice(trajectory(emulator, first, forcing, noise), steps - done + 1),
            store,
            forcing=forcing if with_forcing else None,
            dates=forcing,
            provenance=made_by,
            title=title or f"{type(emulator).__name__} ensemble of {len(state.members)}",
            append=resume,
            overwrite=overwrite,
            steps=steps - done + 1,
            progress=progress,
        )


def _steps_done(
    times: list[cftime.datetime], emulator: Emulator, state: State, forcing: Forcing | None, store: str | Path
) -> int:
    """How many steps after `state` a store reaches, counted in records: dates are not evenly spaced in every calendar.

    Raises ValueError if the state is not in the store, or its records do not make whole steps.
    """
    layout = emulator.layout
    begin = slot_times(state, forcing)[-1]
    each = sum((layout.slots[-1] - s) * layout.interval < emulator.dt for s in layout.slots)  # new records per step
    records = len(times) - 1 - times.index(begin) if begin in times else -1
    steps, rest = divmod(records, each)
    if records < 0 or rest:
        raise ValueError(
            f"{store} holds {times[0]} to {times[-1]}: it is not part of a run from {begin} with {each} record(s) a "
            "step; choose another store, or give the state that the run began with"
        )
    return steps
