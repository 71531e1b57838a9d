"""The cost functions of variational analyses: from the control vector through trajectories to J and its gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import cftime
import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..emulators import Draws, Emulator, Forcing, GivenNoise, Noise, State
from ..ensembles.dates import shifted
from .background import Root
from .bounded import Transform, transformed_state
from .correlation import whitening
from .observations import ObservationError, Observations
from .operators import newest, operator_for
from .window import Window
from .window_memory import chosen


class VariationalError(ValueError):
    """The cost function has no usable gradient."""


class Settings(Protocol):
    """What a problem has to know of the analysis it belongs to."""

    @property
    def root(self) -> Root: ...  # noqa: D102
    @property
    def perturb(self) -> Draws | None: ...  # noqa: D102
    @property
    def transforms(self) -> Mapping[str, Transform] | None: ...  # noqa: D102


class Problem(ABC):
    """J of every member: ½ |v|² + ½ |r(v)|², r = R^(-1/2) (y - H(v)).

    Args:
        how: root of the covariance, perturbations, transforms.
        background: (member, ...).
        observations: that count.
    """

    def __init__(self, how: Settings, background: State, observations: Observations) -> None:
        background.layout.require_same(how.root.layout, f"{type(how).__name__}: root")
        self.how, self.background, self.observations = how, background, observations
        place = background.data.device
        self._white = whitening(observations, place)
        self._value, self._error = (torch.tensor(a, device=place) for a in (observations.value, observations.error))
        self._shock: Tensor | float = 0.0
        if how.perturb is not None:
            self._shock = how.perturb.stream("perturbed observations").normal(
                background.members, observations.time, (len(observations),), dtype=torch.float64, device=place
            )
        self._counts: Tensor | None = None  # which observations count, of a window that grows

    # --- what subclasses say -------------------------------------------------------------------------

    @abstractmethod
    def equivalents(self, v: Tensor, keep: bool = False) -> Tensor:
        """What would be observed, (member, observation) float64; whether to keep all that the adjoint needs."""

    @property
    def size(self) -> int:
        """Length of the control vector."""
        return self.how.root.size

    def start(self) -> Tensor:
        """The control vector of the background, (member, n) float64."""
        data = self.background.data
        return torch.zeros(len(data), self.size, dtype=torch.float64, device=data.device)

    def until(self, part: float) -> Problem:
        """The same with the observations of the first part of the window only."""
        if part >= 1:
            return self
        shorter = copy(self)
        begin = float(self.observations.offset.min(initial=0.0))
        early = self.observations.offset <= begin * (1 - part)
        shorter._counts = torch.from_numpy(early).to(self._value.device, torch.float64)
        return shorter

    # --- J -------------------------------------------------------------------------------------------

    def first(self, v: Tensor) -> State:
        """The corrected background; land, and what has no increment, bitwise the same."""
        x, increment = self.background, self.how.root.apply(v[:, : self.how.root.size])
        transforms = self.how.transforms or {}
        inside = transformed_state(x, transforms, "forward") if transforms else x
        after = x.replace(data=inside.data + increment.to(x.data.dtype))
        if not transforms:
            return after
        outside = transformed_state(after, transforms, "inverse").data
        # Where there is no increment a value keeps its bits, and its derivative.
        same = x.data + (outside - outside.detach())
        return x.replace(data=torch.where(after.data == inside.data, same, outside))

    def residual(self, v: Tensor, keep: bool = False) -> Tensor:
        """r(v), (member, observation) float64."""
        departures = (self._value - self.equivalents(v, keep)) / self._error
        r = self._white(departures.mT).mT + self._shock
        return r if self._counts is None else r * self._counts

    def parts(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """J_b and J_o, (member,) float64 each."""
        return v.double().square().sum(-1) / 2, self.residual(v).square().sum(-1) / 2

    def cost(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """J (member,) float64 and its gradient (member, n)."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            J = sum(self.parts(v), torch.zeros((), device=v.device))
            return J.detach(), torch.autograd.grad(J.sum(), v)[0]

    def linearised(self, v: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """J, its gradient, and products with the Gauss-Newton Hessian 1 + JᵀJ."""
        with torch.enable_grad():
            # Functional derivatives of torch cannot look into checkpoints.
            residual = partial(self.residual, keep=True)
            r, pull = torch.func.vjp(residual, v.detach())  # type: ignore[misc]

            def product(p: Tensor) -> Tensor:
                along = torch.func.jvp(residual, (v.detach(),), (p,))[1]
                back: Tensor = pull(along)[0]
                return (p + back).detach()

            J = (v.double().square().sum(-1) + r.square().sum(-1)) / 2
            gradient: Tensor = v + pull(r)[0]
        return J.detach(), gradient.detach(), product

    def require_gradient(self, v: Tensor) -> None:
        """Raise VariationalError unless J has a finite gradient at v."""
        try:
            J, gradient = self.cost(v)
        except RuntimeError as error:
            raise VariationalError(f"the gradient of the cost function fails: {error}; {self._advice}") from error
        if not J.isfinite().all():
            raise VariationalError(f"the cost of the background is not finite, J = {J.tolist()}; look at its forecast")
        if not gradient.isfinite().all():
            raise VariationalError(f"the gradient is not finite{self._where(v)}; {self._advice}")

    _advice = "`check_adjoint` tells what is wrong with an emulator's adjoint"

    def _where(self, v: Tensor) -> str:
        return ""


class Snapshot(Problem):
    """At the time of the analysis."""

    def __init__(self, how: Settings, background: State, observations: Observations) -> None:
        if observations.time != newest(background):
            raise ObservationError(
                f"wanted observations of the forecast's time {newest(background)}, got {observations.time}"
            )
        super().__init__(how, background, observations)
        self._operator = operator_for(background.layout, observations)

    def equivalents(self, v: Tensor, keep: bool = False) -> Tensor:
        """What would be observed, (member, observation) float64."""
        return self._operator.apply(self.first(v)).double()


class WindowSettings(Settings, Protocol):
    """What a trajectory has to know of the analysis it belongs to."""

    @property
    def model_error(self) -> Root | None: ...  # noqa: D102
    @property
    def error_every(self) -> int: ...  # noqa: D102
    @property
    def control_noise(self) -> bool: ...  # noqa: D102
    @property
    def checkpoint(self) -> str: ...  # noqa: D102
    @property
    def memory(self) -> int: ...  # noqa: D102


class Trajectory(Problem):
    """Along a window.

    Args:
        how: the analysis.
        emulator, begin, forcing, noise, observations, steps: see `FourDVar.window`.
    """

    how: WindowSettings

    def __init__(
        self,
        how: WindowSettings,
        emulator: Emulator,
        begin: State,
        forcing: Forcing | None,
        noise: Draws | None,
        observations: Observations,
        steps: int,
    ) -> None:
        super().__init__(how, begin, observations)
        self.emulator, self.steps = emulator, steps
        self.noise: Draws = Noise(0) if noise is None else noise
        self.dates: list[cftime.datetime] = [begin.time]
        for _ in range(steps):
            self.dates.append(shifted(forcing, self.dates[-1], emulator.dt))
        self.forcings = [None if forcing is None else forcing.at(t, begin.members) for t in self.dates[:-1]]
        lag = newest(begin) - begin.time
        self.window = Window(observations, begin.layout, [t + lag for t in self.dates])
        self._at_end = operator_for(begin.layout, observations.select(self.window.end))
        self._order = np.argsort(np.concatenate([*self.window.rows, self.window.end]))
        self._drawn: list[dict[str, Tensor]] = self._draws() if how.control_noise else []
        self.checkpoint = chosen(self, how.memory) if how.checkpoint == "auto" else how.checkpoint

    # --- the control vector --------------------------------------------------------------------------

    @property
    def _errors(self) -> list[int]:
        """Steps after which the model is corrected."""
        return (
            []
            if self.how.model_error is None
            else list(range(self.how.error_every, self.steps + 1, self.how.error_every))
        )

    @property
    def size(self) -> int:
        """Length of the control vector."""
        error = self.how.model_error
        drawn = sum(t[0].numel() for draws in self._drawn for t in draws.values())
        return self.how.root.size + (len(self._errors) * error.size if error is not None else 0) + drawn

    def start(self) -> Tensor:
        """The control vector of the background, (member, n) float64: with its own noise."""
        v = super().start()
        flat = [t.flatten(1).to(v) for draws in self._drawn for t in draws.values()]
        if flat:
            drawn = torch.cat(flat, 1)
            v[:, v.shape[1] - drawn.shape[1] :] = drawn
        return v

    def _draws(self) -> list[dict[str, Tensor]]:
        """The noise of each step of the background."""
        found: list[dict[str, Tensor]] = []
        state = self.background
        with torch.no_grad():
            for k in range(self.steps):
                spy = _Spy(self.noise)
                state = self._advanced(state, k, spy)
                found.append(spy.drawn)
        return found

    def _given(self, v: Tensor, step: int) -> Draws:
        """The noise of a step, from the control vector."""
        if not self.how.control_noise:
            return self.noise
        sizes = [sum(t[0].numel() for t in draws.values()) for draws in self._drawn]
        first = v.shape[1] - sum(sizes) + sum(sizes[:step])
        given = {}
        for path, t in self._drawn[step].items():
            count = t[0].numel()
            given[path] = v[:, first : first + count].view_as(t).to(t.dtype)
            first += count
        return GivenNoise(given, self.background.members)

    # --- the trajectory ------------------------------------------------------------------------------

    def _advanced(self, state: State, step: int, noise: Draws) -> State:
        after = self.emulator.step(state, self.forcings[step], noise)
        return after.replace(time=self.dates[step + 1])

    def _step(self, v: Tensor, state: State, k: int) -> State:
        after = self._advanced(state, k, self._given(v, k))
        error = self.how.model_error
        if error is not None and k + 1 in self._errors:
            at = self.how.root.size + self._errors.index(k + 1) * error.size
            after = after.replace(data=after.data + error.apply(v[:, at : at + error.size]).to(after.data.dtype))
        return after

    def stepped(self, v: Tensor, data: Tensor, k: int) -> Tensor:
        """The state after step k, from and to (member, channel, y, x)."""
        return self._step(v, self.background.replace(data=data, time=self.dates[k]), k).data

    def _piece(self, v: Tensor, data: Tensor, first: int, last: int, keep: bool) -> tuple[Tensor, ...]:
        """Steps `first` to `last`: the state after them, and what the observations between them see."""
        state, seen = self.background.replace(data=data, time=self.dates[first]), []
        for k in range(first, last):
            if keep or last == first + 1:
                after = self._step(v, state, k)
            else:
                data = checkpoint(self.stepped, v, state.data, k, use_reentrant=False)
                after = state.replace(data=data, time=self.dates[k + 1])
            between = self.window.seen(k, state, after)
            seen += [] if between is None else [between]
            state = after
        return (state.data, *seen)

    def equivalents(self, v: Tensor, keep: bool = False) -> Tensor:
        """What would be observed, (member, observation) float64; whether to keep all that the adjoint needs."""
        length = max(1, math.isqrt(self.steps)) if self.checkpoint == "few" else 1
        keep = keep or self.checkpoint == "all" or not torch.is_grad_enabled()
        data, seen = self.first(v).data, list[Tensor]()
        for first in range(0, self.steps, length):
            last = min(first + length, self.steps)
            if keep:
                data, *more = self._piece(v, data, first, last, True)
            else:
                data, *more = checkpoint(self._piece, v, data, first, last, False, use_reentrant=False)
            seen += more
        end = self.background.replace(data=data, time=self.dates[-1])
        both = torch.cat([*seen, self._at_end.apply(end).double()], 1)
        return both[:, torch.from_numpy(self._order).to(both.device)]

    @torch.no_grad()
    def states(self, v: Tensor) -> list[State]:
        """The trajectory of a control vector."""
        path = [self.first(v)]
        for k in range(self.steps):
            path.append(self._step(v, path[-1], k))
        return path

    def require_gradient(self, v: Tensor) -> None:
        """Raise VariationalError unless J has a finite gradient at v, and every step passes it on."""
        state = self.background.replace(data=self.background.data.detach().clone().requires_grad_())
        with torch.enable_grad():
            after = self._advanced(state, 0, self._given(v, 0)) if self.steps else state
        if not after.data.requires_grad:
            raise VariationalError(
                f"the gradient is cut: {type(self.emulator).__name__}.step returns numbers that do not depend on its "
                f"state for autograd (detached, or computed without gradients); {self._advice}"
            )
        super().require_gradient(v)

    def _where(self, v: Tensor) -> str:
        """At which step the gradient ceases to be finite, going backwards."""
        with torch.enable_grad():
            path = [self.background.replace(data=self.first(v).data.detach().requires_grad_())]
            seen = []
            for k in range(self.steps):
                path.append(self._step(v, path[-1], k))
                between = self.window.seen(k, path[-2], path[-1])
                seen += [] if between is None else [between]
            both = torch.cat([*seen, self._at_end.apply(path[-1]).double()], 1)
            r = (self._value - both[:, torch.from_numpy(self._order)]) / self._error
            gradients = torch.autograd.grad(r.square().sum(), [s.data for s in path], allow_unused=True)
        bad = [k for k, g in enumerate(gradients) if g is not None and not g.isfinite().all()]
        return f" at step {max(bad)} of {self.steps}, {self.dates[max(bad)]}" if bad else " in the root of B"


@dataclass(eq=False)
class _Spy:
    """Noise that remembers what was drawn."""

    noise: Draws
    path: str = ""
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def stream(self, name: str) -> _Spy:
        return _Spy(self.noise.stream(name), f"{self.path}/{name}" if self.path else name, self.drawn)

    def normal(
        self, members: Sequence[int], time: cftime.datetime | None, shape: Sequence[int], **how: object
    ) -> Tensor:
        found = self.noise.normal(members, time, shape, **how)  # type: ignore[arg-type]
        if self.path in self.drawn:
            raise VariationalError(
                f"noise of the stream {self.path!r} was drawn twice in one step; it cannot be a control"
            )
        self.drawn[self.path] = found
        return found
