"""What training minimises: an error per channel and autoregressive step, and the weights that balance channels.

    J = mean_c [ s_v(c)  Σ_k  ℓ_c(k) ]

ℓ_c(k) is the error of channel c after k steps, s_v the weight of its variable and level v, shared by the
time slots. Samudra 2 (arXiv:2606.02610) takes for ℓ the mean-square error of normalised fields over the
whole map, land counted as zero error, and for s the *dynamic* weights of `Dynamic`. New models are better
served by errors over wet cells, weighted by area, in units of a typical change (`Loss()`).

`Loss` runs an emulator as it will run. Generative models are trained otherwise, on a single call of their network:
an `Objective` says how, and its `Task` computes it (`regional_objectives`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from .noise import Noise
from .processes import Processes
from .state import State
from .trainable import Trainable
from .windows import Batch

Kind: TypeAlias = Literal["mse", "mae", "crps"]
Weights: TypeAlias = Literal["area", "cells"]
Units: TypeAlias = Literal["increment", "std"]


@dataclass(frozen=True)
class Dynamic:
    """Weights that follow the inverse of each variable's error, so that none is neglected.

    After every update w_c = 1 / ℓ_c of the single-step error with the new weights (an error of 0 counts as
    1e-8), averaged over time slots, capped at `limit` times the smallest, and s <- ((window - 1) s + w) / window.

    Attributes:
        limit: largest ratio of two weights; None for no cap.
        window: relaxation time in updates.
        probe: measure ℓ by one more forward step, as published; otherwise take the errors of the update
            itself, summed over its steps, which were made with the weights before it and cost nothing.

    Source: Samudra 2 (arXiv:2606.02610).
    """

    limit: float | None = 20.0
    window: int = 25
    probe: bool = True

    def __post_init__(self) -> None:
        if self.window < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"wanted a window of at least 1 update and a limit of at least 1, got {self}")

    def updated(self, scale: Tensor, errors: Tensor) -> Tensor:
        """The next weights.

        Args:
            scale: present weights, 1 to begin with (variable and level,).
            errors: ℓ (time slot times variable and level,), time slot slowest.

        Returns:
            Like `scale`.
        """
        inverse = 1.0 / torch.where(errors == 0, 1e-8, errors)
        weight = inverse.view(-1, len(scale)).mean(0)
        if self.limit is not None:
            weight = weight.clamp(max=self.limit * weight.min())
        return ((self.window - 1) * scale + weight) / self.window


class Task(nn.Module, ABC):
    """An objective of one emulator, as one module, so that it can be distributed and kept.

    Whatever changes in training belongs to its state dict: the network, further parameters, buffers. In eval mode it
    measures without changing, and without augmentation.

    Args:
        network: its weights are averaged and become the emulator.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(self, batch: Batch, start: Tensor, horizon: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """What is minimised.

        Args:
            batch: windows.
            start: initial states, all members, member slowest (member * window, channel, y, x), physical units.
            horizon: number of steps.
            noise: of this update; all draws are of it, named by the windows' numbers.

        Returns:
            ℓ per step and channel (step, channel), and the states where the runs end, without gradient.
        """

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of parameters for AdamW; further parameters than the network's are neither clipped nor averaged.

        A group may have a `peak`, the largest learning rate of its own instead of the recipe's.
        """
        return [{"params": list(self.network.parameters()), "weight_decay": weight_decay}]

    def adopt(self, trained: Task) -> None:
        """Take over, to validate, what was learnt besides the network; nothing unless the objective needs it."""

    def finish_update(self, processes: Processes) -> None:
        """What is to be done after an optimiser update, alike in all processes."""


class Objective(Protocol):
    """What a recipe minimises: a dataclass of settings.

    Attributes:
        members: how many members are run per window.
        dynamic: weights that follow the errors; None for equal weights.
        one_step: whether it is of single steps only.
    """

    @property
    def members(self) -> int: ...  # noqa: D102
    @property
    def dynamic(self) -> Dynamic | None: ...  # noqa: D102
    @property
    def one_step(self) -> bool: ...  # noqa: D102

    def task(self, emulator: Trainable) -> Task:
        """The module that computes it, of the emulator's own network; ValueError if it is not for such an emulator."""
        ...


class SingleStep:
    """What objectives of one step and one member per window have in common."""

    @property
    def members(self) -> int:
        """One."""
        return 1

    @property
    def dynamic(self) -> Dynamic | None:
        """None: such an objective balances channels itself."""
        return None

    @property
    def one_step(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True)
class Loss:
    """How a prediction's error is measured, per channel.

    Attributes:
        kind: "mse", "mae", or "crps": the fair continuous ranked probability score of an ensemble, for an
            emulator that draws noise. E|X - y| - E|X - X'|/2 without the bias of a finite ensemble
            (Ferro 2014, Q. J. R. Meteorol. Soc. 140).
        weights: "area": mean over wet cells weighted by cell area; "cells": mean over all cells of the map,
            as published.
        units: "increment": of a channel's typical change over one interval; "std": its standard deviation,
            as published.
        members: how many members are run per window; at least 2 for "crps", which needs a spread.
        dynamic: weights that follow the errors; None for equal weights.
    """

    kind: Kind = "mse"
    weights: Weights = "area"
    units: Units = "increment"
    members: int = 1
    dynamic: Dynamic | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("kind", Kind), ("weights", Weights), ("units", Units)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} of a loss is one of {get_args(kinds)}, got {getattr(self, name)!r}")
        if self.members < (2 if self.kind == "crps" else 1):
            raise ValueError(f"wanted at least 2 members for 'crps' and 1 else, got {self.members} for {self.kind!r}")

    @property
    def one_step(self) -> bool:
        """Of any number of steps."""
        return False

    def task(self, emulator: Trainable) -> Task:
        """K steps of the emulator and their errors."""
        return _Rollout(emulator, self)

    def map_weights(self, emulator: Trainable) -> Tensor:
        """Weights of every cell, 0 on land (channel, y, x), float32; with "area" they sum to 1 per channel."""
        mask = emulator.layout.mask
        if self.weights == "cells":
            return mask.float() / mask[0].numel()
        area = torch.from_numpy(emulator.layout.grid["areacello"].values).double().nan_to_num(0.0)
        weight = mask * area
        return (weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-30)).float()

    def unit(self, emulator: Trainable) -> Tensor:
        """What one unit of error is, in physical units (channel,)."""
        return emulator.scaling.increment if self.units == "increment" else emulator.scaling.std

    def errors(self, predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """ℓ per channel.

        Args:
            predicted: in units of `unit` (member, window, channel, y, x).
            target: likewise (window, channel, y, x).
            weight: from `map_weights` (channel, y, x).

        Returns:
            (channel,), the mean over members and windows.
        """
        error = predicted - target
        if self.kind == "mse":
            local = error.square().mean(0)
        elif self.kind == "mae":
            local = error.abs().mean(0)
        else:
            local = _fair_crps(predicted, error)
        return (local * weight).sum((-2, -1)).mean(0)


class _Rollout(Task):
    """K steps of an emulator and their errors per channel."""

    def __init__(self, emulator: Trainable, loss: Loss) -> None:
        super().__init__(emulator.network)
        self.emulator, self.loss = emulator, loss
        device = next(emulator.network.parameters()).device
        self.weight = loss.map_weights(emulator).to(device)
        self.unit = loss.unit(emulator).to(device).view(-1, 1, 1)

    def forward(self, batch: Batch, start: Tensor, horizon: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """ℓ per step and channel (step, channel) of runs from `start`, and where they end (member * window, ...)."""
        m, count = self.loss.members, len(batch.start)
        numbers = batch.members(m)
        layouts = self.emulator.layout, self.emulator.forcing_layout
        state = State(start, batch.time, layouts[0], numbers)
        errors = []
        for k in range(horizon):
            forcing = State(batch.forcings[k].repeat(m, 1, 1, 1), state.time, layouts[1], numbers)
            state = self.emulator.step(state, forcing, noise)
            predicted = (state.data / self.unit).view(m, count, *state.data.shape[1:])
            errors.append(self.loss.errors(predicted, batch.targets[k] / self.unit, self.weight))
        return torch.stack(errors), state.data.detach()


# The recipe of Samudra 2; version 1 was trained with the same but `dynamic=None`.
SAMUDRA2 = Loss("mse", "cells", "std", dynamic=Dynamic(limit=20.0))


def _fair_crps(predicted: Tensor, error: Tensor) -> Tensor:
    """Fair CRPS per cell; the sum over pairs by the order statistics, Σ_{i<j} |x_i - x_j| = Σ_i (2i - m - 1) x_(i)."""
    m = len(predicted)
    rank = 2 * torch.arange(1, m + 1, device=predicted.device, dtype=predicted.dtype) - m - 1
    pairs = (rank.view(-1, *(1,) * (predicted.ndim - 1)) * predicted.sort(0).values).sum(0)
    return error.abs().mean(0) - pairs / (m * (m - 1))
