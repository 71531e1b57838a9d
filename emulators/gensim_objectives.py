"""What GenSIM is trained on: the censored likelihood of the flow, in patches at several resolutions.

Finn et al. (2025, arXiv:2508.14984).  Of every window of the data several patches are cut, each as large as one of the
network's windows with its halo, of cells 1, 2, 4 or 8 times as wide, so that one network serves them all and is told
which; see `ice_patches`.  Every draw - levels, corners, flips and turns, noise, pseudo-times - is of the noise that an
update is given, named by the numbers of its windows; the trainer's restarts therefore continue to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .flow import stratified_times
from .gensim import DEGREE_DAYS, FORCINGS, STATES, GenSIM
from .gensim_loss import flow_errors
from .ice_patches import corners, cut_patch, moved
from .losses import SingleStep, Task
from .noise import Noise
from .trainable import Trainable
from .transformer import LogScale, weight_decay_groups
from .windows import Batch

__all__ = ["CensoredFlow", "Sample", "grid_axes"]


@dataclass(frozen=True)
class CensoredFlow(SingleStep):
    """The censored likelihood of GenSIM's flow; an `Objective`.

    The scale of its errors is learnt beside the network, by a `LogScale` that belongs to the task, whose weights do not
    decay and whose gradient is not clipped.  Levels that do not fit the map, or find no ocean, are left out.

    As published, with four windows on each of eight GPUs: `Recipe(1_000_000, batch=32, steps=(1,), learning_rate=5e-4,
    warmup=0.005, weight_decay=1e-3, clip=1.0, decay=0.9999, loss=CensoredFlow(vectors=False))`, but for a rate that
    ends at 1e-6 there and at 0 here.

    Attributes:
        augment: flip patches along x, along y, and turn square ones by 90 degrees, each with probability 1/2, and tell
            the network which by three labels.
        vectors: components of drift and wind follow, and so do the positions of cells, as if the world were seen in a
            mirror; False carries all of them along unchanged, as published.
        levels: how often patches of cells of 1, 2, 4, ... cells' width are cut, relative to each other.
        patches: cut of each window of the data.
        least_ocean: share of ocean that a patch must exceed.
        log_scale_rate: peak learning rate of the log-scale; None: that of the recipe.
        betas: of Adam.

    Raises ValueError for numbers that cannot be these.
    """

    augment: bool = True
    vectors: bool = True
    levels: tuple[float, ...] = (8, 4, 2, 1)
    patches: int = 8
    least_ocean: float = 0.1
    log_scale_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if min(self.levels, default=-1) < 0 or sum(self.levels) <= 0 or self.patches < 1:
            raise ValueError(
                f"levels are drawn in proportion to numbers of 0 or more, not all 0, for at least 1 patch, got "
                f"{self.levels} and {self.patches} patches"
            )
        if not 0 <= self.least_ocean < 1:
            raise ValueError(f"least_ocean is a share that can be exceeded, 0 to below 1, got {self.least_ocean}")

    def task(self, emulator: Trainable) -> Task:
        """The module that computes it; ValueError for another emulator, or a map without ocean."""
        if not isinstance(emulator, GenSIM):
            raise ValueError(f"CensoredFlow trains a GenSIM, got {type(emulator).__name__}; choose another loss")
        network = emulator.network.config
        if self.augment and network.n_augment_in != 3:
            raise ValueError(
                f"flips and turns are told by 3 labels, and the network takes {network.n_augment_in}; set "
                "augment=False, or make a network with n_augment_in=3"
            )
        if (network.n_time_in, network.n_res_in) != (1, 1):
            raise ValueError(f"a GenSIM is told one time and one resolution, got {network}")
        return _CensoredFlow(emulator, self)


@dataclass(frozen=True, eq=False)
class Sample:
    """Patches that a network is trained on.

    Attributes:
        states: at t and one step later, physical units, 0 on land (patch, 2, state, y, x).
        forcings: at t and one step later (patch, 2, forcing, y, x).
        degree_days: at t (patch, degree day, y, x).
        mesh: position of the cells in km (patch, 2, y, x).
        mask: 1 where every cell is ocean (patch, 1, y, x).
        labels: which of horizontal flip, vertical flip and quarter turn were done, 1 or 0 (patch, label).
        resolution: size of a cell in km (patch, 1).
    """

    states: Tensor
    forcings: Tensor
    degree_days: Tensor
    mesh: Tensor
    mask: Tensor
    labels: Tensor
    resolution: Tensor


class _CensoredFlow(Task):
    """The objective of one emulator; `log_scale` is trained with its network."""

    def __init__(self, emulator: GenSIM, objective: CensoredFlow) -> None:
        super().__init__(emulator.network)
        self.emulator, self.objective = emulator, objective
        c = emulator.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of what is told to the scale, alike in all processes
            self.log_scale = LogScale(c.network)
        self.size = (c.window[0] + 2 * c.halo[0], c.window[1] + 2 * c.halo[1])
        self.ocean = emulator.layout.mask[:1].float()
        self.axes = grid_axes(emulator.position)
        along = torch.einsum("ij,iyx->jyx", self.axes, emulator.position.double().cpu())
        self.place = along - along.mean((1, 2), keepdim=True)  # attention sees differences only
        found = [
            corners(self.ocean[0], 2**k, self.size, c.halo, objective.least_ocean) if weight > 0 else torch.empty(0, 2)
            for k, weight in enumerate(objective.levels)
        ]
        self.levels = [(2**k, objective.levels[k], where) for k, where in enumerate(found) if len(where)]
        if not self.levels:
            raise ValueError(
                f"no patch of {self.size} cells, at any level of {objective.levels}, lies on the map of "
                f"{tuple(self.ocean.shape[1:])} cells with more than {objective.least_ocean:.0%} of ocean; lower "
                "least_ocean, or give finer levels a weight"
            )

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Matrices decay, but for embedder, skips and angles; the log-scale has its own rate."""
        named = dict(self.network.named_parameters())
        decays, others = ([named[n] for n in names] for names in weight_decay_groups(self.emulator.network))
        betas, peak = self.objective.betas, self.objective.log_scale_rate
        return [
            {"params": decays, "weight_decay": weight_decay, "betas": betas},
            {"params": others, "weight_decay": 0.0, "betas": betas},
            {"params": list(self.log_scale.parameters()), "weight_decay": 0.0, "betas": betas, "peak": peak},
        ]

    def adopt(self, trained: Task) -> None:
        """Take over the log-scale."""
        assert isinstance(trained, _CensoredFlow)
        self.log_scale.load_state_dict(trained.log_scale.state_dict())

    def forward(self, batch: Batch, start: Tensor, horizon: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """See `Task`; no run goes on from where this ends, at the truth."""
        if horizon != 1:
            raise ValueError(f"{type(self.objective).__name__} is of single steps, got {horizon}")
        s, (kind, device) = self.sample(batch, start, noise), (start.dtype, start.device)
        shape = (self.objective.patches, len(STATES), *self.size)
        eps = noise.stream("noise").normal(batch.numbers, None, shape, dtype=kind, device=device).flatten(0, 1)
        shift = noise.stream("times").uniform(batch.numbers[:1], None, (), dtype=kind).to(device)
        errors = flow_errors(
            self.call,
            self.log_scale,
            s.states,
            s.forcings,
            s.degree_days,
            s.mesh,
            s.mask,
            s.labels,
            s.resolution,
            eps,
            stratified_times(len(eps), shift)[:, None],
            self.emulator.config,
        )
        return errors[None], batch.targets[0].detach()

    def sample(self, batch: Batch, start: Tensor, noise: Noise) -> Sample:
        """Patches of the windows, those of one window side by side, augmented in training."""
        each = self.objective.patches
        places = [place for row in self._places(batch.numbers, noise) for place in row]
        driven = batch.forcings[0].to(start).reshape(len(start), 2, -1, *start.shape[2:])
        n, ocean = len(FORCINGS), self.ocean.to(start)[None]
        maps = torch.cat((start, batch.targets[0], driven[:, :, :n].flatten(1, 2), driven[:, 0, n:]), 1)
        still = torch.cat((self.place.to(start)[None], ocean), 1).expand(len(start), -1, -1, -1)
        maps = torch.cat((torch.where(ocean > 0, maps, 0.0), still), 1)  # a store may hold anything on land
        x = torch.cat(
            [
                cut_patch(maps[k // each, None], corner, level, self.size, self.emulator.config.halo)
                for k, (level, corner) in enumerate(places)
            ]
        )
        labels = start.new_zeros(len(x), self.emulator.network.config.n_augment_in)
        if self.training and self.objective.augment:
            drawn = noise.stream("augmentation").uniform(batch.numbers, None, (each, 3))
            flags = drawn.flatten(0, 1) < 0.5
            flags[:, 2] &= self.size[0] == self.size[1] and len(set(self.emulator.config.halo)) == 1
            x, labels = moved(x, flags, self._vectors(x.shape[1])), flags.to(x)
        states, forcings, days, mesh, mask = torch.split(x, [2 * len(STATES), 2 * n, len(DEGREE_DAYS), 2, 1], 1)
        levels = start.new_tensor([level for level, _ in places])[:, None]
        return Sample(
            states.reshape(len(x), 2, -1, *self.size),
            forcings.reshape(len(x), 2, -1, *self.size),
            days,
            torch.einsum("ij,bjyx->biyx", self.axes.to(x), mesh),
            (mask == 1).to(x),
            labels,
            levels * self.emulator.config.resolution,
        )

    def _vectors(self, channels: int) -> tuple[tuple[int, int], ...]:
        """Channels of drift, wind and position, in the order of `sample`."""
        if not self.objective.vectors:
            return ()
        drift, wind = (
            (names.index(x), names.index(y)) for names, x, y in ((STATES, "siu", "siv"), (FORCINGS, "uas", "vas"))
        )
        first = 2 * len(STATES)
        begins = ((drift, 0), (drift, len(STATES)), (wind, first), (wind, first + len(FORCINGS)))
        return (*((u + k, v + k) for (u, v), k in begins), (channels - 3, channels - 2))

    def _places(self, numbers: Sequence[int], noise: Noise) -> list[list[tuple[int, tuple[int, int]]]]:
        """Level and corner of every patch of every window."""
        drawn = noise.stream("patches").uniform(numbers, None, (self.objective.patches, 2), dtype=torch.float64)
        total = math.fsum(weight for _, weight, _ in self.levels)
        bounds = torch.tensor([weight / total for _, weight, _ in self.levels], dtype=torch.float64).cumsum(0)[:-1]
        chosen = torch.searchsorted(bounds, drawn[..., 0].contiguous(), right=True)
        found = []
        for levels, shares in zip(chosen.tolist(), drawn[..., 1].tolist(), strict=True):
            row = []
            for at, share in zip(levels, shares, strict=True):
                level, _, where = self.levels[at]
                i, j = where[min(int(share * len(where)), len(where) - 1)].tolist()
                row.append((level, (int(i), int(j))))
            found.append(row)
        return found

    def call(self, *given: Tensor) -> Tensor:
        """The network, without keeping its activations if that is wanted."""
        how = self.emulator.running
        run = how.method(self.network)
        with how.autocast(given[0].device, self.emulator.config.bf16):
            if how.recompute and torch.is_grad_enabled():
                out = cast(Tensor, checkpoint(run, *given, use_reentrant=False))
            else:
                out = run(*given)
        return out.to(given[0].dtype)


def grid_axes(position: Tensor) -> Tensor:
    """How a grid lies in the plane that its cells' positions are of.

    Args:
        position: of the cells in km (2, y, x).

    Returns:
        The orthogonal matrix nearest to the mean directions of columns and rows (2, 2), float64: times components
        along the grid's axes it gives components in the plane.
    """
    p = position.double().cpu()
    along = [(p[..., -1] - p[..., 0]).mean(1), (p[..., -1, :] - p[..., 0, :]).mean(1)]
    u, _, vh = torch.linalg.svd(torch.stack([v / v.norm().clamp(min=1e-12) for v in along], 1))
    axes: Tensor = u @ vh
    return axes
