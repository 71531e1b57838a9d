"""What changes the observations of an instrument: their times, bias, gross errors, and what a coarser model lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np
import torch
from torch import Tensor

from ..emulators import Layout, Noise, State
from .observations import ObservationError, Observations
from .operators import operator_for
from .places import Wrapper, reported_by


@dataclass(frozen=True)
class Spread(Wrapper):
    """An instrument whose observations are spread over the time before the analysis, with an `offset` each.

    Times are uniform in (-window, 0]; observations of one group, or of one place, share theirs.

    Attributes:
        window: the time between analyses, or less.
    """

    window: timedelta = timedelta(days=5)

    def __post_init__(self) -> None:
        if self.window <= timedelta(0):
            raise ValueError(f"Spread: wanted a window > 0, got {self.window}")

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places with times."""
        places = super().places(layout, time, noise)
        alone = places.group == 0
        keys = np.stack([places.group, np.where(alone, places.lat, 0.0), np.where(alone, places.lon, 0.0)])
        _, first, member = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        u = self.own(noise).uniform((0,), time, (len(places),), dtype=torch.float64)[0].numpy()
        return places.replace(offset=-self.window.total_seconds() * u[first][member])


@dataclass(frozen=True)
class Repeated(Wrapper):
    """An instrument that looks again and again within the time before the analysis, each time at places of its own.

    Attributes:
        interval: from one look to the next; the last is at the time of the analysis.
        window: the time between analyses, of which the beginning belongs to the one before.
    """

    interval: timedelta = timedelta(days=1)
    window: timedelta = timedelta(days=5)

    def __post_init__(self) -> None:
        if not timedelta(0) < self.interval <= self.window:
            raise ValueError(f"Repeated: wanted 0 < interval <= window, got {self.interval} and {self.window}")

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places of all looks, with times."""
        looks, back = [], timedelta(0)
        while back < self.window:
            one = super().places(layout, time - back, noise)
            looks.append(one.replace(time=time, offset=one.offset - back.total_seconds()))
            back += self.interval
        return Observations.concat(looks[::-1])


@dataclass(frozen=True)
class Biased(Wrapper):
    """An instrument with a bias, which analyses are not told of.

    Attributes:
        bias: added to every value, in its unit; one number, or one per variable (0 for those not named).
    """

    bias: float | Mapping[str, float] = 0.0

    def places(self, layout: Layout, time: cftime.datetime, noise: Noise) -> Observations:
        """The places, with the bias as value."""
        places = super().places(layout, time, noise)
        return places.replace(value=places.value + _per_variable(self.bias, places))


@dataclass(frozen=True)
class Faulty(Wrapper):
    """An instrument of whose observations some have gross errors, which analyses are not told of.

    A gross error is added to the random one: normal with a standard deviation of `size` times that of the random error.

    Attributes:
        fraction: probability of a gross error, for each observation by itself.
        size: in standard deviations of the error.
    """

    fraction: float = 0.01
    size: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1 or not self.size > 0:
            raise ValueError(f"Faulty: wanted 0 <= fraction <= 1 and size > 0, got {self.fraction} and {self.size}")

    def reported(self, observations: Observations, noise: Noise) -> Observations:
        """The observations, with gross errors in some."""
        o, drawn = super().reported(observations, noise), self.own(noise)
        bad = drawn.uniform((0,), o.time, (len(o),), dtype=torch.float64)[0].numpy() < self.fraction
        gross = drawn.normal((0,), o.time, (len(o),), dtype=torch.float64)[0].numpy()
        return o.replace(value=o.value + np.where(bad, self.size * o.error * gross, 0.0))


@dataclass(frozen=True)
class Representative(Wrapper):
    """An instrument that tells analyses of an error of representativeness beside its own.

    The square of the error is added to that of what is told, and nothing is drawn: a truth that is finer than the
    model has it. With both on one grid there is none.

    Attributes:
        error: standard deviation in the variable's unit; one number, one per variable (0 for those not named), or
            maps, a state such as `unresolved` makes.
    """

    error: float | Mapping[str, float] | State = 0.0

    def reported(self, observations: Observations, noise: Noise) -> Observations:
        """The observations with larger errors."""
        o = reported_by(self.instrument, observations, noise)
        if isinstance(self.error, State):
            if len(self.error.members) != 1:
                raise ObservationError(f"wanted maps of errors of one member, got members {self.error.members}")
            H = operator_for(self.error.layout, o.replace(view=None))
            return o.replace(error=np.hypot(o.error, H.apply(self.error)[0].detach().cpu().numpy()))
        return o.replace(error=np.hypot(o.error, _per_variable(self.error, o)))


def unresolved(states: State | Iterable[State], width: int) -> State:
    """Standard deviations of what a grid with cells `width` times as wide does not resolve.

    They are of the states about their means over boxes of width x width cells, weighted with wet area, and over all
    states and members. A truth on a grid three times as fine as the emulator's has them for `width=3`: give
    `Representative` what is returned, or a number made from it. Slopes within a box count too, though an emulator that
    is interpolated to an observation does resolve them: it is an upper bound.

    Args:
        states: of a fine truth or reanalysis.
        width: of a box, in cells; boxes are counted from the first row and column.

    Returns a state of one member and the time of the last, with the same standard deviation in all cells of a box.

    Raises ValueError for a width below 2, or no states.
    """
    if width < 2:
        raise ValueError(f"unresolved: wanted a width of 2 cells or more, got {width}")
    total, number, last = torch.zeros(()), 0, None
    for last in (states,) if isinstance(states, State) else states:
        wet = last.layout.mask.to(torch.float64) * torch.as_tensor(last.layout.grid["areacello"].values.copy())
        data = last.data.detach().cpu().to(torch.float64)
        mean = _over_boxes(torch.where(wet > 0, data, 0.0) * wet, wet, width)
        off = torch.where(wet > 0, data - mean, 0.0)
        total, number = total + _over_boxes(off**2 * wet, wet, width).sum(0), number + len(last.members)
    if last is None:
        raise ValueError("unresolved: wanted one state or more, got none")
    return State(((total / number).sqrt() * last.layout.mask)[None], last.time, last.layout, (0,))


def _over_boxes(weighted: Tensor, weight: Tensor, width: int) -> Tensor:
    """Σ weighted / Σ weight over boxes, (..., y, x), in every cell of a box; 0 where there is no weight."""
    ny, nx = weighted.shape[-2:]

    def summed(a: Tensor) -> Tensor:
        a = torch.nn.functional.pad(a, (0, -nx % width, 0, -ny % width))
        rows, columns = (n // width for n in a.shape[-2:])
        return a.reshape(*a.shape[:-2], rows, width, columns, width).sum((-3, -1))

    over = summed(weight)
    mean: Tensor = torch.where(over > 0, summed(weighted) / over.clamp(min=torch.finfo(over.dtype).tiny), 0.0)
    return mean.repeat_interleave(width, -1).repeat_interleave(width, -2)[..., :ny, :nx]


def _per_variable(number: float | Mapping[str, float], o: Observations) -> np.ndarray:
    if isinstance(number, Mapping):
        return np.array([number.get(str(v), 0.0) for v in o.variable], float)
    return np.full(len(o), float(number))
