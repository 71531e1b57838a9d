"""The trainer: K autoregressive steps, averaged weights, restarts to the same bits, one process or many.

The loss is that of the emulator as it will run: K calls of `step`, each fed with the one before, gradients
through the whole chain. Which windows an update takes, its learning rate and its noise are functions of the
recipe and the update's number alone, so that a run that was killed continues as if it had not been. Weights
are averaged as in Samudra 2 (arXiv:2606.02610), θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + n) / (10 + n))
after the n-th update, n from 1; batch-norm statistics are the latest ones.

Under `torchrun` every process takes its part of each batch, and gradients are averaged by
DistributedDataParallel.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .losses import SAMUDRA2, Loss
from .noise import Noise
from .processes import Processes
from .samudra import Samudra
from .state import State
from .training_files import TrainingFiles
from .unet import statistics_kept
from .windows import Batch, Windows, read_ahead, windows_of

__all__ = ["Recipe", "Windows", "parameters", "train", "windows_of"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights, besides the data and the first weights.

    Attributes:
        updates: number of optimiser updates.
        batch: windows per update, over all processes and micro-batches.
        steps: K, the number of autoregressive steps, for equal parts of the updates.
        loss: what is minimised.
        learning_rate: peak, of Adam with a cosine decay to zero.
        warmup: fraction of the updates in which the rate rises linearly to its peak.
        weight_decay: decoupled (AdamW); 0 is Adam.
        clip: largest global norm of the gradient.
        decay: of the weights' average.
        accumulate: micro-batches per update.
        recompute: keep no activations of blocks, compute them again in the backward pass: a third more
            work for a fraction of the memory.
        seed: of the order of windows and of noise.
    """

    updates: int
    batch: int = 8
    steps: Sequence[int] = (1, 2, 4)
    loss: Loss = field(default_factory=Loss)
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    decay: float = 0.999
    accumulate: int = 1
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.updates, self.batch, self.accumulate, *self.steps, 1) < 1 or not self.steps:
            raise ValueError(f"updates, batch, accumulate and every entry of steps are at least 1, got {self}")
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be cut into {self.accumulate} equal micro-batches")

    @classmethod
    def samudra2(cls, updates: int, **changes: Any) -> Recipe:
        """That of Samudra 2 at 1 degree (arXiv:2606.02610): K = 4, Adam 6e-4 with cosine, dynamic loss, limit 20."""
        given: dict[str, Any] = {
            "batch": 4, "steps": (4,), "loss": SAMUDRA2, "learning_rate": 6e-4, "warmup": 0.0, "recompute": True
        }  # fmt: skip
        return cls(updates, **(given | changes))

    def horizon(self, update: int) -> int:
        """K of an update."""
        return self.steps[min(update * len(self.steps) // self.updates, len(self.steps) - 1)]

    def rate(self, update: int) -> float:
        """Learning rate of an update."""
        rise = min(1.0, (update + 1) / max(1.0, self.warmup * self.updates))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * update / self.updates))

    def windows(self, update: int, total: int) -> list[int]:
        """Windows of an update: every window once per epoch, in an order of the epoch's own."""
        chosen = []
        for place in range(update * self.batch, (update + 1) * self.batch):
            epoch, at = divmod(place, total)
            chosen.append(int(_order(self.seed, epoch, total)[at]))
        return chosen


_ORDERS: dict[tuple[int, int, int], Tensor] = {}


def _order(seed: int, epoch: int, total: int) -> Tensor:
    """A permutation of the windows, a function of (seed, epoch); the latest two are kept."""
    key = (seed, epoch, total)
    if key not in _ORDERS:
        while len(_ORDERS) > 1:
            _ORDERS.pop(next(iter(_ORDERS)))
        draws = Noise(seed).stream("windows").uniform((epoch,), None, (total,), dtype=torch.float64)
        _ORDERS[key] = draws[0].argsort()
    return _ORDERS[key]


def train(
    emulator: Samudra,
    windows: Windows,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    save_minutes: float = 10.0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Samudra:
    """Train a copy of an emulator's network; returns an emulator with the averaged weights, in eval mode.

    Args:
        emulator: with a network to start from; it is left as it is.
        windows: training data.
        recipe: how.
        folder: where to keep `restart.pt`, the log `training.csv` (one row per ten updates: loss per
            variable and level, learning rate, norm of the gradient, share of time spent waiting for data)
            and, at the end, `emulator.safetensors`.
        resume: continue what is in the folder, to the same bits on the same hardware; from the beginning if
            there is nothing.
        save_minutes: a crash loses at most so much.
        device: default: this process's GPU under `torchrun`, else where the network is.
        progress: show a bar with the loss and the share of time spent waiting for data.

    Raises ValueError if a store is too short for the windows, FileExistsError if the folder holds a training
    and `resume` is not set, `ValueError` if it was made by another recipe, FloatingPointError if the loss or a
    gradient is not finite (what is in the folder stays).
    """
    processes = Processes(device)
    run = _Run(emulator, recipe, processes)
    first = 0
    files = None if folder is None else TrainingFiles(Path(folder), _settings(emulator, recipe), processes.rank == 0)
    if files is not None and (kept := files.begin(resume)) is not None:
        first = run.restore(kept)
    saved = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not (progress and processes.rank == 0)) as bar:
        task = bar.add_task("training", total=recipe.updates, completed=first)
        for n, batches, waited in _timed(read_ahead(run.reader(windows), first, recipe.updates), first):
            row = run.update(n, batches)
            if files is not None:
                files.log(n + 1, row | {"waiting": waited()}, run.labels)
                if n + 1 == recipe.updates or processes.agree(time.monotonic() - saved >= 60 * save_minutes):
                    files.save(run.content(n + 1))
                    saved = time.monotonic()
            shown = f"K={recipe.horizon(n)} loss {row['loss']:.4g}, waiting {waited():.0%}"
            bar.update(task, advance=1, description=shown)
    trained = run.trained()
    if files is not None:
        files.finish(trained, recipe)
    return trained


def _settings(emulator: Samudra, recipe: Recipe) -> dict[str, Any]:
    """What must agree for a run to be continued."""
    return {"recipe": asdict(recipe), "network": asdict(emulator.network.config), "layout": repr(emulator.layout)}


def _timed(batches: Iterator[Batch], first: int) -> Iterator[tuple[int, Batch, Callable[[], float]]]:
    """Batches with their update's number and the share of time so far that was spent waiting for them."""
    begin, waited, n = time.monotonic(), 0.0, first
    while True:
        asked = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        waited += time.monotonic() - asked
        total = waited
        yield n, batch, lambda total=total: total / max(time.monotonic() - begin, 1e-9)  # type: ignore[misc]
        n += 1


class _Chain(nn.Module):
    """K steps of an emulator and their errors per channel, as one module, so that it can be distributed."""

    def __init__(self, emulator: Samudra, loss: Loss) -> None:
        super().__init__()
        self.network, self.emulator, self.loss = emulator.network, emulator, loss
        device = next(emulator.network.parameters()).device
        self.weight = loss.map_weights(emulator).to(device)
        self.unit = loss.unit(emulator).to(device).view(-1, 1, 1)

    def forward(self, batch: Batch, horizon: int, noise: Noise) -> Tensor:
        """ℓ per step and channel (step, channel)."""
        m, count = self.loss.members, len(batch.start)
        numbers = tuple(m * k + i for i in range(m) for k in batch.numbers)
        layouts = self.emulator.layout, self.emulator.forcing_layout
        state = State(batch.start.repeat(m, 1, 1, 1), batch.time, layouts[0], numbers)
        errors = []
        for k in range(horizon):
            forcing = State(batch.forcings[k].repeat(m, 1, 1, 1), state.time, layouts[1], numbers)
            state = self.emulator.step(state, forcing, noise)
            predicted = (state.data / self.unit).view(m, count, *state.data.shape[1:])
            errors.append(self.loss.errors(predicted, batch.targets[k] / self.unit, self.weight))
        return torch.stack(errors)


class _Run:
    """What changes while a network is trained."""

    def __init__(self, emulator: Samudra, recipe: Recipe, processes: Processes) -> None:
        self.original, self.recipe, self.processes = emulator, recipe, processes
        processes.share(recipe.batch, recipe.accumulate)  # raises now rather than later
        network = copy.deepcopy(emulator.network).to(processes.device or next(emulator.network.parameters()).device)
        processes.prepare(network)
        self.network = network.train()
        self.network.recompute = recipe.recompute
        self.average = copy.deepcopy(self.network)
        self.chain = _Chain(replace(emulator, network=self.network), recipe.loss)
        self.distributed = processes.distribute(self.chain)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.device = next(self.network.parameters()).device
        self.labels = emulator.layout.channel_labels()
        self.scale = torch.ones(len(self.labels), device=self.device)
        self.noise = Noise(recipe.seed).stream("training")

    def reader(self, windows: Windows) -> Callable[[int], Batch]:
        """The function that reads this process's windows of an update."""
        stride = self.original.stride

        def read(update: int) -> Batch:
            horizon = self.recipe.horizon(update)
            chosen = self.recipe.windows(update, windows.count(horizon, stride))
            return windows.batch(chosen[self.processes.rank :: self.processes.count], horizon, stride)

        for horizon in set(self.recipe.steps):
            windows.count(horizon, stride)  # raises now rather than later
        return read

    def update(self, n: int, batch: Batch) -> dict[str, Any]:
        """One optimiser update; returns what is worth logging."""
        recipe, horizon, noise = self.recipe, self.recipe.horizon(n), self.noise.stream(str(n))
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate(n)
        self.optimiser.zero_grad(set_to_none=True)
        parts = [part.to(self.device) for part in _cut(batch, recipe.accumulate)]
        errors, objective = torch.zeros_like(self.scale).repeat(self.original.stride), 0.0
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last else self.processes.unsynchronised(self.distributed):
                found = self.distributed(part, horizon, noise).sum(0)
                loss = (found * self.scale.repeat(self.original.stride)).mean() / len(parts)
                loss.backward()
            errors += found.detach() / len(parts)
            objective += loss.item()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite after {n} updates (loss {objective}); lower the learning rate, or look "
                "for values in the data that are not finite"
            )
        self.optimiser.step()
        _average(self.average, self.network, averaging(n, recipe.decay))
        if recipe.loss.dynamic is not None:
            seen = self._probe(parts[-1], noise) if recipe.loss.dynamic.probe else errors
            self.scale = self.processes.mean(recipe.loss.dynamic.updated(self.scale, seen))
        errors = self.processes.mean(errors) / horizon
        return {
            "steps": horizon, "learning_rate": recipe.rate(n), "loss": float(errors.mean()), "objective": objective,
            "gradient_norm": float(norm), "errors": errors.view(self.original.stride, -1).mean(0).cpu(),
        }  # fmt: skip

    @torch.no_grad()
    def _probe(self, batch: Batch, noise: Noise) -> Tensor:
        """ℓ of one step with the new weights, which must not disturb batch-norm statistics."""
        with statistics_kept(self.network):
            errors: Tensor = self.chain(batch, 1, noise)[0]
        return errors

    def content(self, done: int) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "updates": done,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scale": self.scale,
        }

    def restore(self, kept: dict[str, Any]) -> int:
        """Continue from `content`; returns the number of updates that are done."""
        self.network.load_state_dict(kept["network"])
        self.average.load_state_dict(kept["average"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.scale = kept["scale"].to(self.scale)
        return int(kept["updates"])

    def trained(self) -> Samudra:
        """The emulator with the averaged weights, on the device and in the form it came."""
        network = copy.deepcopy(self.original.network)
        network.load_state_dict(self.average.state_dict())
        return replace(self.original, network=network.eval(), checkpoint="")


def _cut(batch: Batch, parts: int) -> list[Batch]:
    """Micro-batches of equal size."""
    size = len(batch.numbers) // parts
    return [
        replace(
            batch,
            start=batch.start[i : i + size],
            forcings=batch.forcings[:, i : i + size],
            targets=batch.targets[:, i : i + size],
            numbers=batch.numbers[i : i + size],
        )
        for i in range(0, size * parts, size)
    ]


def averaging(update: int, decay: float) -> float:
    """d after update number `update`, counted from 0."""
    return min(decay, (2 + update) / (11 + update))


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
    for kept, live in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(live)


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())
