"""A plain trainer: mean-square error over K autoregressive steps, averaged weights, a progress bar.

The loss is that of the emulator as it will run: K calls of `step`, each fed with the one before, gradients
through the whole chain. Errors are measured in units of a typical change over one interval, per channel
and over wet cells, so that persistence scores about one. Weights are averaged as in Samudra 2,
θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + n) / (10 + n)).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .noise import Noise
from .samudra import Samudra
from .source import Source
from .state import State


@dataclass(frozen=True, eq=False)
class Windows:
    """Training windows cut from sources: an initial state, the forcing of each step, and the states that came.

    Records are read once and then kept, in float32: the sources' variables must fit into memory.

    Attributes:
        states: one Source of the emulator's layout per store.
        forcings: the Source of the same store in the emulator's forcing layout.
    """

    states: Sequence[Source]
    forcings: Sequence[Source]
    _kept: dict[Any, State] = field(default_factory=dict, repr=False)

    def count(self, steps: int, stride: int) -> int:
        """How many windows of `steps` calls there are, over all stores and members."""
        return sum(len(s.members) * self._starts(s, steps, stride) for s in self.states)

    def _starts(self, source: Source, steps: int, stride: int) -> int:
        slots = source.layout.slots
        starts = len(source.times) + min(slots) - max(slots) - steps * stride
        if starts < 1:
            raise ValueError(
                f"{source.path}: {len(source.times)} records are too few for windows of {steps} steps of {stride} "
                f"record(s) and time slots {slots}"
            )
        return starts

    def get(self, index: int, steps: int, stride: int) -> tuple[State, list[State], list[State]]:
        """Window `index`: initial state, `steps` forcings, `steps` targets, each of one member."""
        for source, forcing in zip(self.states, self.forcings, strict=True):
            starts = self._starts(source, steps, stride)
            if index < starts * len(source.members):
                member, start = source.members[index // starts], index % starts - min(source.layout.slots)
                at = [start + k * stride for k in range(steps + 1)]
                records = [self._read(source, i, member) for i in at]
                driven = [self._read(forcing, i, member) for i in at[:-1]]
                return records[0], driven, records[1:]
            index -= starts * len(source.members)
        raise IndexError(f"no window {index}")

    def _read(self, source: Source, index: int, member: int) -> State:
        key = (id(source), index, member)
        if key not in self._kept:
            self._kept[key] = source.state(source.times[index], (member,))
        return self._kept[key]


def train(
    emulator: Samudra,
    windows: Windows,
    *,
    updates: int,
    batch: int = 8,
    steps: Sequence[int] = (1, 2, 4),
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    decay: float = 0.999,
    seed: int = 0,
    progress: bool = False,
) -> Samudra:
    """Train a copy of an emulator's network; returns an emulator with the averaged weights, in eval mode.

    Args:
        emulator: with a network to start from; it is left as it is.
        windows: training data.
        updates: number of optimiser updates.
        batch: windows per update.
        steps: K, the number of autoregressive steps, for equal parts of the updates.
        learning_rate: peak, of AdamW with a warm-up and a cosine decay to zero.
        weight_decay: of AdamW.
        decay: of the weights' average.
        seed: of the order of windows.
        progress: show a bar with the loss.

    Raises ValueError if a store is too short for the windows, FloatingPointError if the loss or a
    gradient is not finite.
    """
    network = copy.deepcopy(emulator.network).train()
    student = replace(emulator, network=network)
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=updates, pct_start=0.1)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("training", total=updates)
        smooth = float("nan")
        for n in range(updates):
            horizon = steps[min(n * len(steps) // updates, len(steps) - 1)]
            loss = _loss(student, windows, _choose(windows, student, horizon, batch, seed, n), horizon)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient is not finite after {n} updates (loss {loss.item()}); lower the learning rate"
                )
            optimiser.step()
            schedule.step()
            _average(average, network, min(decay, (1 + n) / (10 + n)))
            smooth = loss.item() if n == 0 else 0.98 * smooth + 0.02 * loss.item()
            bar.update(task, advance=1, description=f"K={horizon} loss {smooth:.4f}")
    return replace(emulator, network=average.eval())


def _choose(windows: Windows, emulator: Samudra, horizon: int, batch: int, seed: int, update: int) -> list[int]:
    """Window numbers of one update: a function of (seed, update) alone."""
    total = windows.count(horizon, emulator.stride)
    uniform = Noise(seed).stream("windows").uniform((update,), None, (batch,), dtype=torch.float64)
    return [min(int(u * total), total - 1) for u in uniform[0]]


def _loss(emulator: Samudra, windows: Windows, chosen: Sequence[int], horizon: int) -> Tensor:
    """Mean-square error in units of a typical change, over steps, channels and wet cells."""
    parts = [windows.get(i, horizon, emulator.stride) for i in chosen]
    members = tuple(range(len(parts)))
    state = _stack([start for start, _, _ in parts], members)
    scale = emulator.scaling.to(state.data).increment
    mask = emulator.layout.mask.to(state.data.device)
    total = state.data.new_zeros(())
    for k in range(horizon):
        forcing = _stack([driven[k] for _, driven, _ in parts], members)
        state = emulator.step(state, forcing, Noise(0))
        target = _stack([targets[k] for _, _, targets in parts], members)
        error = ((state.data - target.data) / scale) ** 2
        total = total + (error.sum((0, 2, 3)) / (mask.sum((1, 2)) * len(parts))).mean()
    return total / horizon


def _stack(states: Sequence[State], members: tuple[int, ...]) -> State:
    """Windows of different dates as the members of one batch; the date is the first one's."""
    return states[0].replace(data=torch.cat([s.data for s in states]), members=members)


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
    for kept, live in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(live)


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())


def windows_of(emulator: Samudra, stores: Sequence[Any]) -> Windows:
    """Windows from stores that hold both the states and their forcing, as `rollout(with_forcing=True)` writes."""
    opened = [Source.open(s, emulator.layout) for s in stores]
    return Windows(opened, [Source.open(s.dataset, emulator.forcing_layout) for s in opened])
