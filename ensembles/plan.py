"""The plan of a large run, before it runs: micro-batch, waves, operations, bytes, and what will bound it.

A wave is the members whose states are on the device at once; a step takes them through the network in micro-batches
of one shape. Throughput saturates at a few members, so the smallest batch within 3 % of the best is taken and the
memory is spent on resident states: of every member of a wave the old and the new state and two buffers of output,

    weights + fixed + batch · activations + wave · (2 state + 2 output)  <=  limit.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch

from ..emulators import Draws, Emulator, Forcing, Noise, State
from .batches import Batched, in_batches, out_of_memory
from .costs import Rates, StepCost, elapsed, measure_rates, memory_limit, repeated, shared, step_cost
from .meter import Achieved, days, each_and_all, over, short, si, years_per_day

__all__ = ["Achieved", "Plan", "Rates", "StepCost", "in_batches", "plan", "step_cost"]

_CLOSE = 1.03  # a batch is as good as the best within 3 %
_BUDGET = 20.0  # seconds of probing


@dataclass(frozen=True)
class Plan:
    """How a run is going to be done, and what is expected of it; `print` it.

    Attributes:
        members: their numbers.
        steps: of each member.
        batch: members in one call of the emulator.
        waves: numbers of the members that are on the device at once; together `members`, in order.
        device: where.
        cost: of a step.
        state_bytes: of one member's state.
        output_bytes: recorded per member-step, before compression.
        rates: what the machine does at best.
        memory: limit in bytes.
        dt: length of a step.
        forcing_bytes: uploaded per step and wave.
        probed: batch sizes tried and seconds per member-step, as measured.
    """

    members: tuple[int, ...]
    steps: int
    batch: int
    waves: tuple[tuple[int, ...], ...]
    device: torch.device
    cost: StepCost
    state_bytes: int
    output_bytes: float
    rates: Rates
    memory: int
    dt: timedelta
    forcing_bytes: int = 0
    probed: tuple[tuple[int, float], ...] = ()

    @property
    def member_steps(self) -> int:
        """Steps times members."""
        return self.steps * len(self.members)

    @property
    def computed(self) -> int:
        """Member-steps that are computed, with those that fill up ragged batches."""
        return self.steps * self.batch * sum(math.ceil(len(wave) / self.batch) for wave in self.waves)

    @property
    def needs(self) -> dict[str, int]:
        """Bytes on the device in the largest wave: weights, activations, states and output."""
        wave = max(len(w) for w in self.waves)
        return {
            "weights": self.cost.weight_bytes,
            "activations": self.cost.fixed_bytes + self.batch * self.cost.member_bytes,
            "states": 2 * wave * self.state_bytes,
            "output": math.ceil(2 * wave * self.output_bytes),
        }

    @property
    def step_seconds(self) -> float | None:
        """Measured seconds per member-step in the chosen batch; None if nothing was timed."""
        return dict(self.probed).get(self.batch)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of the whole run if nothing else took any: compute, memory, transfer (on CUDA), disk."""
        output = self.output_bytes * self.member_steps
        seconds = {
            "compute": self.cost.operations * self.computed / self.rates.flops,
            "memory": self.cost.moved_bytes * self.computed / self.rates.memory,
        }
        if self.rates.transfer is not None:
            loads = 2 * self.state_bytes * len(self.members) + self.forcing_bytes * self.steps * len(self.waves)
            seconds["transfer"] = (output + loads) / self.rates.transfer
        seconds["disk"] = output / self.rates.disk
        return seconds

    @property
    def steps_seconds(self) -> float:
        """Seconds of all steps: as measured, otherwise the longer of compute and memory, which is a lower bound."""
        roof = max(self.seconds["compute"], self.seconds["memory"])
        return roof if self.step_seconds is None else self.step_seconds * self.computed

    @property
    def wall(self) -> float:
        """Expected seconds of the run if steps, transfers and writing overlap."""
        return max(self.steps_seconds, self.seconds["disk"], self.seconds.get("transfer", 0.0))

    @property
    def bound(self) -> str:
        """What the run waits for: compute, memory, transfer or disk."""
        s = self.seconds
        slower = [k for k in ("transfer", "disk") if s.get(k, 0.0) > self.steps_seconds]
        return max(slower or ["compute", "memory"], key=s.__getitem__)

    @property
    def member_years_per_day(self) -> float:
        """Simulated years of all members per day of wall time."""
        return years_per_day(self.member_steps, self.dt, self.wall)

    def __str__(self) -> str:
        waves, c, needs = [len(w) for w in self.waves], self.cost, self.needs
        sizes = f"{waves[0]}" if len(set(waves)) == 1 else f"{max(waves)} to {min(waves)}"
        used = ", ".join(f"{k} {si(v, 'B')}" for k, v in needs.items())
        all_output = self.output_bytes * self.member_steps
        rows = [
            ("run", f"{len(self.members)} members x {self.steps} steps of {days(self.dt)} on {self.device}"),
            ("waves", f"{len(waves)} of {sizes} members, in micro-batches of {self.batch}"),
            ("operations", each_and_all(c.operations, self.computed, "FLOP")),
            ("moved", each_and_all(c.moved_bytes, self.computed, "B")),
            ("memory", f"{si(sum(needs.values()), 'B')} of {si(self.memory, 'B')}: {used}"),
            ("to disk", f"{si(self.output_bytes, 'B')} a member-step, {si(all_output, 'B')} in all"),
            *self._times(),
        ]
        return "\n".join(f"{label:<12}{text}" for label, text in rows)

    def _times(self) -> Iterator[tuple[str, str]]:
        """The rows of the table that are durations."""
        s, r = self.seconds, self.rates
        for name, rate in (("compute", r.flops), ("memory", r.memory), ("transfer", r.transfer), ("disk", r.disk)):
            if rate is not None:
                yield f"if {name}", f"{short(s[name]):>8}  at {si(rate, 'FLOP/s' if name == 'compute' else 'B/s')}"
        how = "at least"
        if self.step_seconds is not None:
            tried = ", ".join(f"{n}: {short(t)}" for n, t in self.probed)
            roof = over(max(s["compute"], s["memory"]), self.steps_seconds)
            how = f"at {roof:.0%} of the roofline; a member-step by batch {tried}"
        yield "steps", f"{short(self.steps_seconds):>8}  {how}"
        speed = f"{self.member_years_per_day:,.0f} member-years a day"
        yield "expected", f"{short(self.wall):>8}  bound by {self.bound}; {speed}"


def plan(
    emulator: Emulator,
    state: State,
    forcing: Forcing | None = None,
    *,
    members: int | Sequence[int],
    steps: int,
    store: str | Path | None = None,
    noise: Draws | None = None,
    output_bytes: float | None = None,
    memory: int | None = None,
    batch: int | None = None,
    probe: bool = True,
) -> Plan:
    """Measure an emulator and this machine, and lay out a run; a few seconds, nothing is kept.

    Args:
        emulator: what will run, on the device of the state.
        state: one or more of the members at the start.
        forcing: asked for its values at the state's time.
        members: how many, or their numbers; a number is the state's own members if it has that many, else 0, 1, ...
        steps: of every member.
        store: where records will go; its folder's disk is measured, that of temporary files without.
        noise: for stochastic emulators; `Noise(0)` if not given.
        output_bytes: recorded per member-step; the whole float32 state if not given.
        memory: limit in bytes; if not given, what is free on a GPU but 5 %, or half of what the computer has free.
        batch: members at once, if it is known.
        probe: time steps of 1, 2, 4, 8, ... members for up to 20 s and take the smallest batch within 3 % of the best.
            Otherwise the largest whose activations take no more than half of the memory.

    Raises ValueError for no members, a number twice, negative steps or a batch below 1; MemoryError if not even one
    member (or the given batch) fits.
    """
    numbers = _numbers(members, state)
    if steps < 0 or (batch is not None and batch < 1):
        raise ValueError(f"a plan needs steps >= 0 and a batch >= 1, got {steps} steps and batch {batch}")
    emulator.layout.require_same(state.layout, f"plan for {type(emulator).__name__}: initial state")
    emulator = emulator.emulator if isinstance(emulator, Batched) else emulator
    noise, device = Noise(0) if noise is None else noise, state.data.device
    driven = None if forcing is None else forcing.at(state.time, state.members[:1]).to(device)
    cost = step_cost(emulator, state, driven, noise)
    cells = math.prod(state.layout.shape)
    output = 4.0 * cells if output_bytes is None else output_bytes
    limit = memory_limit(device, cost.weight_bytes) if memory is None else memory
    room, resident = limit - cost.weight_bytes - cost.fixed_bytes, 2 * (state.data.element_size() * cells + output)
    _require_room(cost, resident, limit, batch or 1)
    largest = min(len(numbers), int(room // (cost.member_bytes + resident))) if batch is None else batch
    probed: tuple[tuple[int, float], ...] = ()
    if probe:
        sizes = [2**k for k in range(largest.bit_length())] if batch is None else [batch]
        probed = tuple(_probe(emulator, state, driven, noise, sizes))
    chosen = batch or (_knee(probed, len(numbers)) if probed else _half(largest, len(numbers), room, cost.member_bytes))
    wave = int((room - chosen * cost.member_bytes) // resident) if resident else len(numbers)
    return Plan(
        members=numbers,
        steps=steps,
        batch=chosen,
        waves=_waves(numbers, chosen, wave),
        device=device,
        cost=cost,
        state_bytes=state.data.element_size() * cells,
        output_bytes=output,
        rates=measure_rates(device, tempfile.gettempdir() if store is None else Path(store).parent, dtype=cost.dtype),
        memory=limit,
        dt=emulator.dt,
        forcing_bytes=0 if driven is None else driven.data.nbytes,
        probed=probed,
    )


def _numbers(members: int | Sequence[int], state: State) -> tuple[int, ...]:
    if isinstance(members, int):
        numbers = state.members if members == len(state.members) else tuple(range(members))
    else:
        numbers = tuple(int(m) for m in members)
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ValueError(f"a plan needs at least one member and different numbers >= 0, got members={members}")
    return numbers


def _require_room(cost: StepCost, resident: float, limit: int, batch: int) -> None:
    """Raise MemoryError unless a wave of one batch fits."""
    need = cost.weight_bytes + cost.fixed_bytes + batch * (cost.member_bytes + resident)
    if need > limit:
        activations = cost.fixed_bytes + batch * cost.member_bytes
        raise MemoryError(
            f"{'one member needs' if batch == 1 else f'a batch of {batch} needs'} {si(need, 'B')}: weights "
            f"{si(cost.weight_bytes, 'B')}, activations {si(activations, 'B')}, states and output "
            f"{si(batch * resident, 'B')}; the limit is {si(limit, 'B')}. Free memory or give a higher `memory`, "
            "take a smaller `batch`, record less (`output_bytes`), or use a lower precision"
        )


def _probe(
    emulator: Emulator, state: State, forcing: State | None, noise: Draws, sizes: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Batches and measured seconds per member, until they no longer fall by 3 %, or time or memory runs out."""
    began, best = time.perf_counter(), math.inf
    for n in sizes:
        if best < math.inf and time.perf_counter() - began + 2 * n * best > _BUDGET:
            return
        try:
            seconds = _timed(emulator, state, forcing, noise, n) / n
        except RuntimeError as error:
            if best == math.inf or not out_of_memory(error):
                raise
            return
        yield n, seconds
        if seconds * _CLOSE > best:
            return
        best = seconds


def _timed(emulator: Emulator, state: State, forcing: State | None, noise: Draws, n: int) -> float:
    """Seconds of the fastest of two to five steps of n members, the first of which warms up; of one if it is slow."""
    batch, driven = repeated(state, n), shared(forcing, n)
    runs: list[float] = []
    with torch.no_grad():
        while not runs or (sum(runs) < _BUDGET / 4 and (len(runs) < 2 or (len(runs) < 5 and sum(runs) < 0.3))):
            runs.append(elapsed(lambda: emulator.step(batch, driven, noise), state.data.device))
    return min(runs)


def _knee(probed: Sequence[tuple[int, float]], members: int) -> int:
    """The smallest batch within 3 % of the best, where rows that only fill up the last batch cost, too."""
    full = {n: seconds * n * math.ceil(members / n) for n, seconds in probed}
    return min(n for n, seconds in full.items() if seconds <= _CLOSE * min(full.values()))


def _half(largest: int, members: int, room: float, member_bytes: int) -> int:
    """The largest batch, up to `largest`, whose activations leave half of the room, less what evens its batches out."""
    most = max(1, min(largest, int(room / 2 // member_bytes) if member_bytes else largest))
    return math.ceil(members / math.ceil(members / most))


def _waves(members: tuple[int, ...], batch: int, most: int) -> tuple[tuple[int, ...], ...]:
    """Nearly equal waves of whole batches (but the last), none above `most` members."""
    batches = math.ceil(len(members) / batch)
    number = math.ceil(batches / max(1, most // batch))
    ends = [batch * math.ceil(batches * k / number) for k in range(number + 1)]
    return tuple(members[a:b] for a, b in pairwise(ends))
