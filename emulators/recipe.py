"""The recipe of a training run: what decides the weights, and which windows and rates each update takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .losses import SAMUDRA2, Loss, Objective
from .noise import Noise
from .windows import Place


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights, besides the data and the first weights.

    Attributes:
        updates: number of optimiser updates.
        batch: windows per update, over all processes and micro-batches.
        steps: K, the number of autoregressive steps, for equal parts of the updates.
        links: for as many parts of the updates: how many updates a run goes on for, each starting from the
            states, without gradient, where the one before ended, before new windows are taken. With 1 every update
            starts from the truth. With many an emulator of a forced ocean learns to find back from where
            its own rollouts go, which makes them stable; a run that is lost starts anew from the truth.
            (Truncated backpropagation through time, Williams & Peng 1990, Neural Computation 2.)
        jitter: standard deviation of white noise that is added to initial states, in units of each channel's
            typical change, while the targets stay as they are. The network learns to damp what grid-scale noise
            it makes itself, without which long rollouts of small networks blow up (Sanchez-Gonzalez et al. 2020,
            "Learning to simulate complex physics with graph networks", section 4.3).
        loss: what is minimised: a `Loss` of steps as they will run, or another `Objective`, such as those of
            `regional_objectives` and `gensim_objectives`, which take single steps: `steps=(1,)`.
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
    links: Sequence[int] = (1,)
    jitter: float = 0.0
    loss: Objective = field(default_factory=Loss)
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    decay: float = 0.999
    accumulate: int = 1
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        whole = (self.updates, self.batch, self.accumulate, *self.steps, *self.links)
        if self.jitter < 0:
            raise ValueError(f"jitter is a standard deviation, 0 or more, got {self.jitter}")
        if min(whole) < 1 or not self.steps or not self.links:
            raise ValueError(
                f"updates, batch, accumulate and all entries of steps and links are at least 1, got {self}"
            )
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be cut into {self.accumulate} equal micro-batches")
        if self.loss.one_step and {*self.steps, *self.links} != {1}:
            raise ValueError(
                f"{type(self.loss).__name__} is an objective of single steps from the truth: wanted steps=(1,) and "
                f"links=(1,), got {tuple(self.steps)} and {tuple(self.links)}; minimise a `Loss` for longer runs"
            )

    @classmethod
    def samudra2(cls, updates: int, **changes: Any) -> Recipe:
        """That of Samudra 2 at 1 degree (arXiv:2606.02610): K = 4, Adam 6e-4 with cosine, dynamic loss, limit 20."""
        given: dict[str, Any] = {
            "batch": 4, "steps": (4,), "loss": SAMUDRA2, "learning_rate": 6e-4, "warmup": 0.0, "recompute": True
        }  # fmt: skip
        return cls(updates, **(given | changes))

    def described(self) -> dict[str, Any]:
        """All settings, by name."""
        return asdict(self) | {"loss": {"objective": type(self.loss).__name__} | asdict(self)["loss"]}

    def horizon(self, update: int) -> int:
        """K of an update."""
        return self.steps[_part(update, self.updates, len(self.steps))]

    def chain(self, update: int) -> int:
        """Links of the chains of an update."""
        return self.links[_part(update, self.updates, len(self.links))]

    def rate(self, update: int, peak: float | None = None) -> float:
        """Learning rate of an update, or of what has a peak of its own."""
        rise = min(1.0, (update + 1) / max(1.0, self.warmup * self.updates))
        top = self.learning_rate if peak is None else peak
        return top * rise * 0.5 * (1 + math.cos(math.pi * update / self.updates))

    def places(self, update: int, total: int) -> list[Place]:
        """Windows of an update, of `total` chains: each once per epoch, in an order of the epoch's own.

        Chains of different windows of the batch begin at different updates.
        """
        links = self.chain(update)
        begin = max(_begin(update, self.updates, len(parts)) for parts in (self.steps, self.links))
        chosen = []
        for place in range(self.batch):
            number, link = divmod(update - begin + place * links // self.batch, links)
            epoch, at = divmod(number * self.batch + place, total)
            index = int(_order(self.seed, begin, epoch, total)[at])
            chosen.append(Place(index, link, link == 0 or update == begin))
        return chosen


def _part(update: int, updates: int, parts: int) -> int:
    """Which of equal parts of the updates this one is in."""
    return min(update * parts // updates, parts - 1)


def _begin(update: int, updates: int, parts: int) -> int:
    """The first update of the part that this one is in."""
    return -(-_part(update, updates, parts) * updates // parts)


_ORDERS: dict[tuple[int, int, int, int], Tensor] = {}


def _order(seed: int, begin: int, epoch: int, total: int) -> Tensor:
    """A permutation of the windows, a function of (seed, first update of the part, epoch); the latest two are kept."""
    key = (seed, begin, epoch, total)
    if key not in _ORDERS:
        while len(_ORDERS) > 1:
            _ORDERS.pop(next(iter(_ORDERS)))
        draws = Noise(seed).stream("windows").stream(str(begin)).uniform((epoch,), None, (total,), dtype=torch.float64)
        _ORDERS[key] = draws[0].argsort()
    return _ORDERS[key]
