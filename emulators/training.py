"""The trainer: K autoregressive steps, averaged weights, restarts to the same bits, one process or many.

Any `Trainable` emulator is trained on any `Objective` for it. The usual one, `Loss`, is that of the emulator as
it will run: K calls of `step`, each fed with the one before, gradients through the whole chain. Which windows
an update takes, its learning rate and its noise are functions of the recipe and the update's number alone, so
that a run that was killed continues as if it had not been. Weights are averaged as in Samudra 2
(arXiv:2606.02610), θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + n) / (10 + n)) after the n-th update, n from 1;
batch-norm statistics are the latest ones.

Under `torchrun` every process takes its part of each batch, and gradients are averaged by
DistributedDataParallel.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .exports import described
from .noise import Noise
from .processes import Processes
from .recipe import Recipe
from .trainable import Trainable
from .training_files import TrainingFiles
from .unet import statistics_kept
from .windows import Batch, Place, Windows, read_ahead, windows_of

E = TypeVar("E", bound=Trainable)
_VALIDATED = 32  # windows
_LOST = 0.5  # standard deviations of a channel, root-mean-square

__all__ = ["Recipe", "Windows", "parameters", "train", "windows_of"]


def train(
    emulator: E,
    windows: Windows,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    save_minutes: float = 10.0,
    validation: Windows | None = None,
    validate_every: int = 500,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> E:
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
        validation: windows of other years; the folder gets `validation.csv`, the loss of the averaged weights on
            up to 32 of them, spread evenly, with the largest K, from the truth and without jitter. What an objective
            draws at random is drawn alike every time.
        validate_every: in updates, and at the end.
        device: default: this process's GPU under `torchrun`, else where the network is.
        progress: show a bar with the loss and the share of time spent waiting for data.

    Raises ValueError if the recipe's objective is not for such an emulator, a store is too short for the windows,
    there is no folder for validation, or the folder's training was made by another recipe or of another emulator;
    FileExistsError if the folder holds a training and `resume` is not set; FloatingPointError if the loss or a
    gradient is not finite (what is in the folder stays); TypeError for a folder and an emulator that cannot be
    exported.
    """
    if validation is not None and folder is None:
        raise ValueError("validation is logged to validation.csv; say in which folder=...")
    processes = Processes(device)
    run = _Run(emulator, recipe, processes)
    first = 0
    files = None
    if folder is not None:
        settings = _settings(emulator, recipe, processes.count)
        files = TrainingFiles(Path(folder), settings, processes.rank == 0)
        if (kept := files.begin(resume)) is not None:
            first = run.restore(kept)
    saved = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not (progress and processes.rank == 0)) as bar:
        task = bar.add_task("training", total=recipe.updates, completed=first)
        for n, batches, waited in _timed(read_ahead(run.reader(windows), first, recipe.updates), first):
            row = run.update(n, batches)
            if files is not None:
                files.log(n + 1, row | {"waiting": waited()}, run.labels)
                due = (n + 1) % validate_every == 0 or n + 1 == recipe.updates
                if validation is not None and due and processes.rank == 0:
                    files.log_validation(n + 1, run.validated(validation), run.labels)
                if n + 1 == recipe.updates or processes.agree(time.monotonic() - saved >= 60 * save_minutes):
                    files.save(run.content(n + 1))
                    saved = time.monotonic()
            shown = f"K={recipe.horizon(n)} loss {row['loss']:.4g}, waiting {waited():.0%}"
            bar.update(task, advance=1, description=shown)
    trained = run.trained()
    if files is not None:
        files.finish(trained, recipe)
    return trained


def _settings(emulator: Trainable, recipe: Recipe, processes: int) -> dict[str, Any]:
    """What must agree for a run to be continued to the same bits."""
    header = {k: v for k, v in described(emulator)[0].items() if not k.startswith("grid")}
    return {"recipe": recipe.described(), "emulator": header, "run": {"processes": processes}}


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


@contextmanager
def _seeded(noise: Noise, batch: Batch, device: torch.device) -> Iterator[None]:
    """Dropout draws of torch's generator; within, its draws too are a function of update and windows."""
    drawn = noise.stream("dropout").uniform(batch.numbers[:1], None, (1,), dtype=torch.float64)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(drawn.item() * 2**53))
        yield


class _Run(Generic[E]):
    """What changes while a network is trained."""

    def __init__(self, emulator: E, recipe: Recipe, processes: Processes) -> None:
        self.original, self.recipe, self.processes = emulator, recipe, processes
        processes.require_even(recipe.batch, recipe.accumulate)  # raises now rather than later
        network = copy.deepcopy(emulator.network).to(processes.device or next(emulator.network.parameters()).device)
        processes.prepare(network)
        self.network = network.train()
        self.average = copy.deepcopy(self.network)
        self.task = recipe.loss.task(emulator.with_network(self.network, recompute=recipe.recompute))
        self.task.to(next(self.network.parameters()).device)
        self.distributed = processes.distribute(self.task)
        self.optimiser = torch.optim.AdamW(self.task.parameter_groups(recipe.weight_decay), lr=recipe.learning_rate)
        self.device = next(self.network.parameters()).device
        self.labels = emulator.layout.channel_labels()
        self.scale = torch.ones(len(self.labels), device=self.device)
        self.noise = Noise(recipe.seed).stream("training")
        self.carried: list[Tensor] = []  # where the runs of each micro-batch have ended

    def reader(self, windows: Windows) -> Callable[[int], Batch]:
        """The function that reads this process's windows of an update."""
        stride = self.original.stride

        def read(update: int) -> Batch:
            horizon = self.recipe.horizon(update)
            links = self.recipe.chain(update)
            chosen = self.recipe.places(update, windows.count(horizon * links, stride))
            return windows.batch(chosen[self.processes.rank :: self.processes.count], horizon, stride, links)

        for length in {self.recipe.horizon(n) * self.recipe.chain(n) for n in range(self.recipe.updates)}:
            windows.count(length, stride)  # raises now rather than later
        return read

    def _start(self, batch: Batch, carried: Tensor | None) -> Tensor:
        """Initial states of all members of a micro-batch: the truth, or where the runs before have ended."""
        truth = batch.start.repeat(self.recipe.loss.members, 1, 1, 1)
        if carried is None or all(batch.fresh):
            return truth
        std = self.original.scaling.to(truth).std
        wet = self.original.layout.mask.to(truth.device)
        far = (((carried - truth) / std).square().sum((-2, -1)) / wet.sum((-2, -1)).clamp(min=1)).sqrt().amax(-1)
        keep = far < _LOST  # a run that is lost, or not finite, would teach nothing
        keep &= ~torch.tensor(batch.fresh * self.recipe.loss.members, device=truth.device)
        return torch.where(keep.view(-1, 1, 1, 1), carried, truth)

    def _jittered(self, start: Tensor, batch: Batch, noise: Noise) -> Tensor:
        """Initial states with white noise in wet cells."""
        if not self.recipe.jitter:
            return start
        numbers = batch.members(self.recipe.loss.members)
        drawn = noise.stream("jitter").normal(numbers, None, start.shape[1:], device=start.device)
        amplitude = self.recipe.jitter * self.original.scaling.to(start).increment
        return start + amplitude * drawn * self.original.layout.mask.to(start.device)

    def update(self, n: int, batch: Batch) -> dict[str, Any]:
        """One optimiser update; returns what is worth logging."""
        recipe, horizon, noise = self.recipe, self.recipe.horizon(n), self.noise.stream(str(n))
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate(n, group.get("peak"))
        self.optimiser.zero_grad(set_to_none=True)
        parts = [part.to(self.device) for part in _cut(batch, recipe.accumulate)]
        errors, objective = torch.zeros_like(self.scale).repeat(self.original.stride), 0.0
        before: list[Tensor | None] = [*self.carried] or [None] * len(parts)
        self.carried = []
        for i, (part, carried) in enumerate(zip(parts, before, strict=True)):
            last = i == len(parts) - 1
            with nullcontext() if last else self.processes.unsynchronised(self.distributed):
                start = self._jittered(self._start(part, carried), part, noise)
                with _seeded(noise, part, self.device):
                    steps, end = self.distributed(part, start, horizon, noise)
                found = steps.sum(0)
                loss = (found * self.scale.repeat(self.original.stride)).mean() / len(parts)
                loss.backward()
            if recipe.chain(n) > 1:
                self.carried.append(end)
            errors += found.detach() / len(parts)
            objective += loss.item()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite after {n} updates (loss {objective}); lower the learning rate, or look "
                "for values in the data that are not finite"
            )
        self.optimiser.step()
        self.task.finish_update(self.processes)
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
        with statistics_kept(self.network), _seeded(noise, batch, self.device):
            errors: Tensor = self.task(batch, self._start(batch, None), 1, noise)[0][0]
        return errors

    @torch.no_grad()
    def validated(self, windows: Windows) -> Tensor:
        """ℓ of the averaged weights per variable and level, the mean over steps and windows."""
        stride, horizon = self.original.stride, max(self.recipe.steps)
        total = windows.count(horizon, stride)
        chosen = [Place(k) for k in sorted({k * total // _VALIDATED for k in range(_VALIDATED)})]
        task = self.recipe.loss.task(self.original.with_network(self.average, recompute=False)).to(self.device).eval()
        task.adopt(self.task)
        sums: Tensor | float = 0.0
        for place in chosen:
            batch = windows.batch([place], horizon, stride).to(self.device)
            sums = sums + task(batch, self._start(batch, None), horizon, self.noise)[0].mean(0)
        return (torch.as_tensor(sums) / len(chosen)).view(stride, -1).mean(0).cpu()

    def content(self, done: int) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "updates": done,
            "task": self.task.state_dict(),  # with the network's
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scale": self.scale,
            "carried": self.processes.gathered(self.carried),
        }

    def restore(self, kept: dict[str, Any]) -> int:
        """Continue from `content`; returns the number of updates that are done."""
        self.task.load_state_dict(kept["task"])
        self.average.load_state_dict(kept["average"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.scale = kept["scale"].to(self.scale)
        self.carried = [end.to(self.device) for end in kept["carried"][self.processes.rank]]
        return int(kept["updates"])

    def trained(self) -> E:
        """The emulator with the averaged weights, on the device and in the form it came."""
        network = copy.deepcopy(self.original.network)
        network.load_state_dict(self.average.state_dict())
        return self.original.with_network(network.eval())


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
            fresh=batch.fresh[i : i + size],
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
