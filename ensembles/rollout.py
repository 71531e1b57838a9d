"""Rollouts: fold an emulator over time, lazily, and record what comes.

`trajectory` is an endless iterator of States. `rollout` runs an ensemble of any size, in waves of members that fit
into memory, and records it; killed at any moment and run again with `resume=True`, it ends in the same bits. Under
`torchrun` each process takes every so many waves, and one store comes out.
"""

from __future__ import annotations

import resource
import time as clock
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import cftime
import torch
import xarray as xr
from rich.progress import Progress

from ..emulators import Draws, Emulator, Forcing, Noise, State, open_store
from ..emulators.processes import Processes
from .batches import in_batches
from .block import Block
from .dates import shifted
from .durable import Background
from .experiment import Experiment, require_finite
from .meter import Achieved
from .online import Online, merge_statistics
from .output import Output
from .plan import Plan
from .record import Recorder
from .recording import Recording
from .statistics import Statistic

__all__ = ["rollout", "trajectory"]


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
    state: State | Callable[[tuple[int, ...]], State],
    forcing: Forcing | None = None,
    *,
    steps: int,
    store: str | Path,
    noise: Draws | None = None,
    members: Sequence[int] | None = None,
    output: Output | None = None,
    statistics: Sequence[Statistic] = (),
    statistics_every: int = 1,
    with_forcing: bool = False,
    plan: Plan | None = None,
    title: str = "",
    resume: bool = False,
    overwrite: bool = False,
    restart_minutes: float = 5.0,
    progress: bool = False,
) -> xr.Dataset:
    """Run an ensemble forward and record it; returns the store, opened lazily.

    Args:
        emulator: what advances the states; gradients are off.
        state: initial condition with the run's members; or a function of member numbers that gives it, so that no
            more than a wave of them is in memory.
        forcing: a `Source`, a nature run's forcing, or None for an emulator without.
        steps: number of emulator steps; the store holds the initial state as well.
        store: path of the Zarr store.
        noise: for stochastic emulators; `Noise(0)` if not given.
        members: their numbers, if `state` is a function; default those of the state.
        output: what is kept of members; default every value of every record.
        statistics: over members, per cell and time, that need no stored members; see `ensemble_statistics`.
        statistics_every: records from one of their times to the next.
        with_forcing: record the forcing of every step beside the state.
        plan: waves and micro-batches, see `plan`; default all members at once.
        title: of the store.
        resume: continue a run that was cut short, in the same bits; or one that is complete with more steps, more
            members or more variables. The arguments that say what the run is have to be those it began with.
        overwrite: replace an existing store.
        restart_minutes: how often it is made sure of what was written, and of the state it goes on from.
        progress: show a progress bar, and at the end what was achieved.

    Under `torchrun` every process calls this with the same arguments; waves are dealt out, and one store results.

    Raises before anything is written: SourceError if the forcing ends too early; LayoutError or ValueError if the
    state does not fit or is not finite; StoreExistsError; OtherRunError if the store is of another run, saying what
    differs. Later: ValueError that names variable, member and time for forcing that is not finite; OSError when the
    disk is full, after which the run can be resumed.
    """
    if members is None:
        if not isinstance(state, State):
            raise ValueError("a function that gives initial states needs to be told which members: members=range(100)")
        members = state.members
    experiment = Experiment(
        emulator, state, forcing, Noise(0) if noise is None else noise, tuple(members), steps, output or Output(),
        tuple(statistics), statistics_every, with_forcing, title,
    )  # fmt: skip
    path, processes = Path(store), Processes()
    with torch.no_grad():
        if processes.rank == 0:
            experiment.require_forcing()
            wave = max(map(len, plan.waves)) if plan is not None else len(experiment.members)
            experiment.prepare(path, min(wave, -(-len(experiment.members) // processes.count)), resume, overwrite)
        processes.agree(True)  # the store is there
        recording = Recording(path)
        blocks = list(experiment.blocks(recording))
        own = blocks[processes.rank :: processes.count]
        achieved = _run(experiment, own, plan, restart_minutes, path.name if progress else "")
        processes.agree(True)  # all blocks are done
        if processes.rank == 0:
            _finish(experiment, recording, blocks)
        processes.agree(True)
    if progress and processes.rank == 0 and achieved.member_steps:
        print(achieved)
    return open_store(path)


def _run(experiment: Experiment, blocks: list[Block], plan: Plan | None, minutes: float, shown: str) -> Achieved:
    """Run blocks one after another; what was achieved."""
    begin, meter = clock.perf_counter(), _Meter()
    with Progress(disable=not shown) as bar:
        total = sum(experiment.steps - b.steps for b in blocks)
        task = bar.add_task(shown, total=total)
        for block in blocks:
            block.tidy()
            if block.records < len(experiment.dates):
                _run_block(experiment, block, plan, minutes, meter, lambda: bar.advance(task))
    operations = plan.cost.operations if plan is not None else 0.0
    flops = plan.rates.flops if plan is not None else None
    return Achieved(
        meter.member_steps, experiment.emulator.dt, clock.perf_counter() - begin, meter.in_steps, meter.stalled,
        operations, flops, _peak_memory(experiment.example.data.device),
    )  # fmt: skip


def _run_block(
    experiment: Experiment, block: Block, plan: Plan | None, minutes: float, meter: _Meter, told: Callable[[], None]
) -> None:
    """Run the members of a block from where they are to the end."""
    device = experiment.example.data.device
    begun = block.restart()
    if begun is None:
        state, sums = experiment.initial(block.members), {}
    else:
        state, sums = begun[0].to(device), {k: v.to(device) for k, v in begun[1].items()}
    emulator = experiment.emulator if plan is None else in_batches(experiment.emulator, plan.batch)
    beside = experiment.forcing if experiment.with_forcing else None
    last = experiment.dates[block.records - 1] if block.records else None
    done, made_sure, blown = block.steps, clock.monotonic(), set[int]()
    with Background() as background:
        taken = Recorder(
            block, background, experiment.output, experiment.selections, beside, experiment.forcing, last, sums
        )
        online = Online(block, background, experiment.statistics, experiment.statistics_every, len(experiment.dates))
        if begun is None:
            background.do(partial(block.begin, state))
        forcing = None if experiment.forcing is None else _Resident(experiment.forcing, device)
        run = trajectory(emulator, state, forcing, experiment.noise)
        if block.records:
            next(run)  # is on disk
            done += 1
        for n in range(done, experiment.steps + 1):
            state = meter.timed(run)
            online.write(state, taken.write(state))
            if n > done and clock.monotonic() - made_sure >= 60 * minutes:
                taken.commit(n, state)
                made_sure = clock.monotonic()
                _warn_of_blown(state, blown)
            if n:
                told()
        taken.commit(experiment.steps, state)
        _warn_of_blown(state, blown)
    meter.stalled += background.waited


@dataclass(eq=False)
class _Meter:
    """Where a run's time goes."""

    member_steps: int = 0
    in_steps: float = 0.0
    stalled: float = 0.0

    def timed(self, run: Iterator[State]) -> State:
        """The next state; the first is given, not made."""
        begin = clock.perf_counter()
        state = next(run)
        if state.data.device.type == "cuda":
            torch.cuda.synchronize(state.data.device)
        self.in_steps += clock.perf_counter() - begin
        self.member_steps += len(state.members)
        return state


@dataclass(frozen=True, eq=False)
class _Resident:
    """A forcing that is checked and put on the device once a step; what members share is one row there."""

    forcing: Forcing | None
    device: torch.device

    def at(self, time: cftime.datetime, members: Sequence[int]) -> State:
        """The forcing of a step."""
        assert self.forcing is not None
        found = self.forcing.at(time, members)
        shared = len(members) > 1 and found.data.stride(0) == 0
        one = found.replace(data=found.data[:1], members=found.members[:1]) if shared else found
        require_finite(one, "forcing")
        data = one.data.to(self.device)
        return found.replace(data=data.expand(len(members), -1, -1, -1) if shared else data)

    def shift(self, time: cftime.datetime, by: timedelta) -> cftime.datetime:
        """As the forcing has it."""
        return shifted(self.forcing, time, by)


def _warn_of_blown(state: State, known: set[int]) -> None:
    """Warn once of every member that is no longer finite; the others go on."""
    if torch.isfinite(state.data.sum()):
        return
    bad = ~torch.isfinite(state.data).flatten(1).all(1)
    new = {m for m, b in zip(state.members, bad.tolist(), strict=True) if b} - known
    if new:
        known |= new
        warnings.warn(
            f"members {sorted(new)} are not finite at {state.time}; the others go on. Perturb less, or put `Bounds` "
            "around the emulator",
            RuntimeWarning,
            stacklevel=3,
        )


def _finish(experiment: Experiment, recording: Recording, blocks: list[Block]) -> None:
    """Merge statistics and declare the store complete."""
    if recording.group.attrs["status"] == "complete":
        return
    if experiment.statistics:
        merge_statistics(
            recording, blocks, experiment.statistics, experiment.statistics_every, experiment.dates
        )  # fmt: skip
    recording.finish()


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
