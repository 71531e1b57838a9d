"""What regional sea-ice networks are trained on: one step's increment, or its denoising.

Finn et al. (2024, doi:10.1029/2024MS004395).  Every draw - flips and turns, noise, noise levels - is of the noise that
an update is given, named by the numbers of its windows; the trainer's restarts therefore continue to the same bits.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .diffusion import AdaptiveSchedule
from .flow import stratified_times
from .ice_patches import moved
from .losses import Dynamic, SingleStep, Task
from .noise import Noise
from .processes import Processes
from .regional import FORCINGS, STATES, Regional
from .regional_loss import denoising_error, increment_error, ocean_mean, sample_means
from .trainable import Trainable
from .uvit import weight_decay_groups
from .windows import Batch

__all__ = ["Denoising", "Increment", "Sample", "augmented"]


@dataclass(frozen=True)
class _Single(SingleStep):
    """An objective of single steps and members.

    Attributes:
        augment: flip maps along x, along y, and turn square ones by 90 degrees, each with probability 1/2, and tell
            the network which by three labels.
        vectors: components of drift and wind follow; False turns them like maps of scalars, as published.
        dynamic: weights of channels that follow the inverse of their errors, `Dynamic(probe=False)`; None for equal
            ones, as published. Of a residual it is drift that is told best, and small scales of it that equal weights
            neglect.
    """

    augment: bool = True
    vectors: bool = True
    dynamic: Dynamic | None = None

    def _checked(self, emulator: Trainable, kinds: tuple[str, ...]) -> Regional:
        """The emulator, if it is one of these kinds, and its labels serve."""
        got = emulator.kind if isinstance(emulator, Regional) else type(emulator).__name__
        if not isinstance(emulator, Regional) or got not in kinds:
            raise ValueError(
                f"{type(self).__name__} trains a Regional that is {' or '.join(kinds)}, got {got}; choose another loss"
            )
        if self.dynamic is not None and self.dynamic.probe:
            raise ValueError(
                f"{type(self).__name__} draws its noise levels by the errors of updates, which a further step would "
                "disturb; choose Dynamic(probe=False)"
            )
        labels = emulator.network.config.n_augment_hidden
        if self.augment and labels != 3:
            raise ValueError(
                f"flips and turns are told by 3 labels, and the network takes {labels}; set augment=False, or make a "
                "network with n_augment_hidden=3"
            )
        return emulator


@dataclass(frozen=True)
class Increment(_Single):
    """The squared error of a deterministic network's normalised increment, the mean over ocean cells."""

    def task(self, emulator: Trainable) -> Task:
        """The module that computes it."""
        return _Increment(self._checked(emulator, ("deterministic",)), self)


@dataclass(frozen=True)
class Denoising(_Single):
    """The weighted error of v of a diffusion or residual model, at noise levels drawn where it is large.

    The `diffusion.AdaptiveSchedule` that draws them is the buffer `bins` of the task. Validation draws them uniformly,
    so that it means the same at every update.

    Attributes:
        levels: limits of gamma that are drawn; None for the network's `level_range`. Those of the sampler and a little
            more are enough: of the published range, -20 to 20, half is lost on levels where nothing is to be learnt.
        memory: share of its height that a bin of the schedule keeps when it is hit. The published one is slow: with 16
            windows a batch, a bin still has a third of its first height after 7500 updates.
    """

    levels: tuple[float, float] | None = None
    memory: float = 0.999

    def __post_init__(self) -> None:
        if not (self.levels is None or self.levels[0] < self.levels[1]) or not 0 < self.memory < 1:
            raise ValueError(f"Denoising: wanted levels that grow and 0 < memory < 1, got {self}")

    def task(self, emulator: Trainable) -> Task:
        """The module that computes it."""
        return _Denoising(self._checked(emulator, ("diffusion", "residual")), self)


@dataclass(frozen=True, eq=False)
class Sample:
    """What a network is trained on.

    Attributes:
        states: at t and one step later, physical units (batch, 2, state, y, x).
        forcings: at t and one step later (batch, 2, forcing, y, x).
        mask: 1 for ocean, 0 for land (batch, 1, y, x); None for no land.
        labels: which of horizontal flip, vertical flip and quarter turn were done, 1 or 0 (batch, label).
    """

    states: Tensor
    forcings: Tensor
    mask: Tensor | None
    labels: Tensor


def augmented(sample: Sample, flags: Tensor, vectors: bool = True) -> Sample:
    """Maps flipped and turned, one sample unlike the other.

    Args:
        sample: as it was.
        flags: horizontal flip, vertical flip, quarter turn, bool (batch, 3); turns are for square maps.
        vectors: let components follow.

    Returns:
        The sample with these labels.
    """
    states, forcings = sample.states.shape[2], sample.forcings.shape[2]
    drift, wind = (
        (names.index(x), names.index(y)) for names, x, y in ((STATES, "siu", "siv"), (FORCINGS, "uas", "vas"))
    )
    begins = ((drift, 0), (drift, states), (wind, 2 * states), (wind, 2 * states + forcings))
    follow = tuple((u + k, v + k) for (u, v), k in begins) if vectors else ()
    maps = [sample.states.flatten(1, 2), sample.forcings.flatten(1, 2)]
    x = moved(torch.cat(maps if sample.mask is None else [*maps, sample.mask.to(sample.states)], 1), flags, follow)
    return Sample(
        x[:, : 2 * states].reshape(sample.states.shape),
        x[:, 2 * states : 2 * (states + forcings)].reshape(sample.forcings.shape),
        None if sample.mask is None else x[:, -1:],
        flags.to(x),
    )


class _OneStep(Task):
    """A call of a regional network; errors of samples that are drawn from windows."""

    def __init__(self, emulator: Regional, objective: _Single) -> None:
        super().__init__(emulator.network)
        self.emulator, self.objective = emulator, objective
        self.ocean = emulator.layout.mask[:1].float()[None]
        self.land = not bool(emulator.layout.mask.all())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Weights of matrices decay, but for embeddings."""
        named = dict(self.network.named_parameters())
        decays, others = ([named[n] for n in names] for names in weight_decay_groups(self.network))
        return [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    def forward(self, batch: Batch, start: Tensor, horizon: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """See `Task`; no run goes on from where this ends, at the truth."""
        if horizon != 1:
            raise ValueError(f"{type(self.objective).__name__} is of single steps, got {horizon}")
        with self.emulator.running.autocast(start.device):
            errors = self.errors(self.sample(batch, start, noise), batch.numbers, noise)
        return errors[None], batch.targets[0].detach()

    def sample(self, batch: Batch, start: Tensor, noise: Noise) -> Sample:
        """The windows as samples, augmented in training."""
        states, count = torch.stack((start, batch.targets[0]), 1), len(start)
        forcings = batch.forcings[0].to(start).reshape(count, 2, -1, *start.shape[2:])
        mask = self.ocean.to(start).expand(count, -1, -1, -1) if self.land else None
        labels = start.new_zeros(count, self.emulator.network.config.n_augment_hidden)
        sample = Sample(states, forcings, mask, labels)
        if not (self.training and self.objective.augment):
            return sample
        flags = noise.stream("augmentation").uniform(batch.numbers, None, (3,)) < 0.5
        flags[:, 2] &= start.shape[-2] == start.shape[-1]
        return augmented(sample, flags, self.objective.vectors)

    @abstractmethod
    def errors(self, sample: Sample, numbers: tuple[int, ...], noise: Noise) -> Tensor:
        """ℓ per channel (channel,)."""

    def call(self, *given: Tensor) -> Tensor:
        """The network, without keeping its activations if that is wanted."""
        run = self.emulator.running.method(self.network)
        if self.emulator.running.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(run, *given, use_reentrant=False))
        return run(*given)


class _Increment(_OneStep):
    def errors(self, sample: Sample, numbers: tuple[int, ...], noise: Noise) -> Tensor:
        """The mean squared error per channel."""
        given = sample.states, sample.forcings, sample.labels
        return ocean_mean(increment_error(self.call, *given, self.emulator.config, sample.mask), sample.mask)


class _Denoising(_OneStep):
    objective: Denoising
    bins: Tensor

    def __init__(self, emulator: Regional, objective: _Single) -> None:
        super().__init__(emulator, objective)
        self.register_buffer("bins", AdaptiveSchedule().bins)
        self._seen: list[tuple[Tensor, Tensor]] = []  # levels and errors of each micro-batch

    @property
    def schedule(self) -> AdaptiveSchedule:
        """As it is at this update."""
        low, high = self.objective.levels or self.emulator.config.level_range
        return AdaptiveSchedule(self.bins, low, high, self.objective.memory)

    def errors(self, sample: Sample, numbers: tuple[int, ...], noise: Noise) -> Tensor:
        """Half the mean over samples and ocean of `v_error` by density, per channel."""
        x, schedule = sample.states[:, 0], self.schedule
        eps = noise.stream("noise").normal(numbers, None, x.shape[1:], dtype=x.dtype, device=x.device)
        shift = noise.stream("times").uniform(numbers[:1], None, (), dtype=x.dtype).to(x.device)
        gamma = schedule.gamma(stratified_times(len(x), shift))
        guess = self.emulator.first_guess
        error = denoising_error(
            self.call,
            sample.states,
            sample.forcings,
            sample.labels,
            eps,
            gamma,
            self.emulator.config,
            None if guess is None else self.emulator.running.method(guess),
            sample.mask,
        )
        if self.training:
            self._seen.append((gamma, sample_means(error.detach(), sample.mask)))
        return 0.5 * ocean_mean(error / schedule.density(gamma)[:, None, None, None], sample.mask)

    def finish_update(self, processes: Processes) -> None:
        """Move the bins that were hit, by the samples of all processes."""
        gamma, error = (torch.cat(v) for v in zip(*self._seen, strict=True))
        self._seen.clear()
        both = [torch.cat(v) for v in zip(*processes.gathered([gamma, error]), strict=True)]
        self.bins = self.schedule.updated(*(v.to(self.bins) for v in both)).bins
