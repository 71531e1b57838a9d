"""The reference systems of twin experiments as arrays: batches of replicates, networks, distances, climatologies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..emulators import Noise, State
from ..emulators.integrate import EPOCH, integrate
from ..emulators.kuramoto import KuramotoSivashinsky, etdrk4
from ..emulators.lorenz import Lorenz63, Lorenz96
from ..emulators.qg import QuasiGeostrophic
from .localise import gaspari_cohn

Model = Lorenz63 | Lorenz96 | KuramotoSivashinsky | QuasiGeostrophic


@dataclass(frozen=True)
class Kind:
    """What a system is assumed to be observed like, unless a row says otherwise."""

    model: type[Model]
    obs_error: float
    obs_interval: int  # model time steps
    burn_in: float  # time units
    variance: float | None  # of the first members around the first truth's mean; None: all from the attractor
    batch: int = 1  # side of the patches of points that share a local transform


SYSTEMS = {
    "lorenz63": Kind(Lorenz63, math.sqrt(2.0), 25, 16.0, 2.0),
    "lorenz96": Kind(Lorenz96, 1.0, 1, 20.0, 0.001),
    "kuramoto_sivashinsky": Kind(KuramotoSivashinsky, 1.0, 2, 100.0, 0.001),
    "quasi_geostrophic": Kind(QuasiGeostrophic, 2.0, 4, 250.0, None, batch=2),
}
"""Sakov, Oliver and Bertino (2012); Sakov and Oke (2008); Bocquet and Farchi (2019); Sakov and Oke (2008)."""

_FIRST_63 = (1.509, -1.531, 25.46)
_TRACK = 300  # observations of the quasi-geostrophic model at a time
_SAMPLES, _TIMES, _APART = 128, 32, 4.0  # members, times, and time units between them, of a climatology


def build(kind: Kind, options: Mapping[str, Any], interval: int, what: str) -> Model:
    """The model with `interval` time steps in a step. Raises ValueError for unknown options."""
    known = [f.name for f in fields(kind.model) if f.name not in ("steps", "unit", "noise_std")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{what}: {kind.model.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return kind.model(**{**options, "steps": interval})


@dataclass(frozen=True)
class Setup:
    """A system that is observed at intervals; states are (..., point).

    Attributes:
        kind: of system.
        truth: model of the truth.
        model: model of the members.
        error: standard deviation of the observations.
        every: of the points of a ring every so manieth is observed.
        noise: where networks and initial states come from.
    """

    kind: Kind
    truth: Model
    model: Model
    error: float
    every: int
    noise: Noise

    @cached_property
    def n(self) -> int:
        """Number of points."""
        return math.prod(self.model.layout.shape)

    @property
    def interval(self) -> float:
        """Time units between observations."""
        return self.model.dt_model * self.model.steps

    def advance(self, x: Tensor, truth: bool = False) -> Tensor:
        """States (..., point) one interval between observations later."""
        model = self.truth if truth else self.model
        if isinstance(model, KuramotoSivashinsky):
            return etdrk4(x, model.length, model.dt_model, model.steps, model.dealias)
        if isinstance(model, QuasiGeostrophic):
            data = x.reshape(-1, *model.layout.shape)
            state = State(data, EPOCH, model.layout, tuple(range(len(data))))
            return model.step(state, None, self.noise).data.view_as(x)
        return integrate(model.tendency, x, model.dt_model, model.steps)

    def start(self, replicates: int, members: int) -> tuple[Tensor, Tensor]:
        """The first truths (replicate, point) and members (replicate, member, point).

        A replicate's states depend on its number and the number of members only.
        """
        numbers = range(replicates)
        if self.kind.variance is None:
            each = members + 1
            x = self._attractor(self.truth, [r * each + i for r in numbers for i in range(each)])
            x = x.view(replicates, each, self.n)
            return x[:, 0], x[:, 1:]
        z = self.noise.stream("start").normal(numbers, None, (members + 1, self.n), dtype=torch.float64)
        x = self.first(replicates)[:, None] + self.kind.variance**0.5 * z
        return x[:, 0], x[:, 1:]

    def first(self, replicates: int) -> Tensor:
        """The mean of the first states, (replicate, point)."""
        if isinstance(self.model, Lorenz63):
            return torch.tensor([_FIRST_63] * replicates, dtype=torch.float64)
        if isinstance(self.model, Lorenz96):
            one = torch.zeros(replicates, self.n, dtype=torch.float64)
            one[:, 0] = 1.0
            return one
        return self._attractor(self.truth, range(replicates))

    def _attractor(self, model: Model, members: Sequence[int]) -> Tensor:
        return model.at_attractor(members, self.noise.stream("start")).data.flatten(1).to(torch.float64)

    def observed(self, cycle: int) -> Tensor:
        """Numbers of the points that are observed, (observation,)."""
        if not isinstance(self.model, QuasiGeostrophic):
            return torch.arange(0, self.n, self.every)
        stride = self.n / _TRACK
        date = EPOCH + timedelta(days=cycle)
        offset = self.noise.stream("track").uniform((0,), date, (), dtype=torch.float64)[0]
        return (stride * (torch.arange(_TRACK) + offset)).to(torch.int64).clamp(max=self.n - 1)

    def position(self, numbers: Tensor) -> Tensor:
        """Of points, in spacings, (point, axis) float64."""
        if isinstance(self.model, QuasiGeostrophic):
            numbers = torch.stack((numbers // self.model.n, numbers % self.model.n), -1)
        else:
            numbers = numbers[:, None]
        return numbers.to(torch.float64)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Between positions (a, axis) and (b, axis), in spacings, (a, b)."""
        apart = (a[:, None] - b).abs()
        if not isinstance(self.model, QuasiGeostrophic):  # a ring
            apart = torch.minimum(apart, self.n - apart)
        return apart.square().sum(-1).sqrt()

    def patches(self, side: int) -> Tensor:
        """The patch that each point is in, (point,): segments of a ring or squares, `side` points along a side."""
        place = (self.position(torch.arange(self.n)) / side).to(torch.int64)  # (point, axis)
        across = int(place.max()) + 1
        return place @ across ** torch.arange(place.shape[1]).flip(0)

    def near(self, observed: Tensor, half_width: float, patch: Tensor) -> tuple[Tensor, Tensor]:
        """For each patch the observations that reach its centre and their taper, both (patch, local).

        Args:
            observed: numbers of points (observation,).
            half_width: of the taper, in spacings.
            patch: of each point (point,), see `patches`.
        """
        place, many = self.position(torch.arange(self.n)), patch.bincount()
        centre = torch.zeros(len(many), place.shape[1], dtype=place.dtype).index_add_(0, patch, place) / many[:, None]
        distance = self.distance(centre, self.position(observed))
        most = max(1, int((distance < 2 * half_width).sum(1).max()))
        apart, near = distance.topk(most, largest=False)
        return near, gaspari_cohn(apart, half_width=half_width)

    def climatology(self) -> tuple[Tensor, Tensor]:
        """Mean (point,) and covariance (point, point) of the truth's model on its attractor."""
        often = max(1, round(_APART / self.truth.dt_model))
        long = replace(self, truth=replace(self.truth, steps=often))
        x = self._attractor(self.truth, range(_SAMPLES))
        rows = []
        for _ in range(_TIMES):
            rows.append(x)
            x = long.advance(x, truth=True)
        sample = torch.cat(rows)
        mean = sample.mean(0)
        return mean, (sample - mean).mT @ (sample - mean) / (len(sample) - 1)


class Drawn:
    """Normal numbers (replicate, *shape) for cycle after cycle, drawn a block of cycles at a time."""

    def __init__(self, noise: Noise, replicates: int, shape: Sequence[int]) -> None:
        self._noise, self._replicates, self._shape = noise, replicates, tuple(shape)
        self._length = max(1, min(100, 2**15 // math.prod(shape)))
        self._number, self._block = -1, torch.empty(0)

    def at(self, cycle: int) -> Tensor:
        """Those of a cycle, float64; a replicate's depend on its number and the cycle only."""
        number, place = divmod(cycle, self._length)
        if number != self._number:
            date, shape = EPOCH + timedelta(days=number), (self._length, *self._shape)
            self._block = self._noise.normal(range(self._replicates), date, shape, dtype=torch.float64)
            self._number = number
        return self._block[:, place]
