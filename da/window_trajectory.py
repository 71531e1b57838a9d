"""The cost function of a window: the emulator's trajectory from a control vector, and what observations see of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import cftime
import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..emulators import Draws, Emulator, Forcing, GivenNoise, Noise, State
from ..ensembles.dates import shifted
from .adjoint_faults import cut_at
from .background import Root
from .observations import Observations
from .operators import newest, operator_for
from .window import Window
from .window_cost import Problem, Settings, VariationalError
from .window_memory import chosen

__all__ = ["Trajectory", "WindowSettings"]


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
    @property
    def tendencies(self) -> Mapping[str, float] | None: ...  # noqa: D102


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
        self._calm = _Calm(self) if how.tendencies and steps else None
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

    def _piece(self, v: Tensor, data: Tensor, first: int, last: int, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Steps `first` to `last`: the state after them, what observations between them see, and the penalties."""
        state, nothing = self.background.replace(data=data, time=self.dates[first]), v.new_zeros(len(v), 0).double()
        seen, restless = [nothing], [nothing]
        for k in range(first, last):
            if keep or last == first + 1:
                after = self._step(v, state, k)
            else:
                data = _again(self.stepped, v, state.data, k)
                after = state.replace(data=data, time=self.dates[k + 1])
            between = self.window.seen(k, state, after)
            seen += [] if between is None else [between]
            restless += [] if self._calm is None else [self._calm.of(k, state.data, after.data)]
            state = after
        return state.data, torch.cat(seen, 1), torch.cat(restless, 1)

    def terms(self, v: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
        """The scaled departures, and the penalties of tendencies if there are any."""
        length = max(1, math.isqrt(self.steps)) if self.checkpoint == "few" else 1
        keep = keep or self.checkpoint == "all" or not torch.is_grad_enabled()
        data, parts = self.first(v).data, list[tuple[Tensor, Tensor]]()
        for first in range(0, self.steps, length):
            last = min(first + length, self.steps)
            # The adjoint begins with the last piece: what that keeps would be computed again at once.
            if keep or last == self.steps:
                data, *more = self._piece(v, data, first, last, keep)
            else:
                data, *more = _again(self._piece, v, data, first, last, False)
            parts.append((more[0], more[1]))
        end = self.background.replace(data=data, time=self.dates[-1])
        both = torch.cat([*(s for s, _ in parts), self._at_end.apply(end).double()], 1)
        order = torch.from_numpy(self._order).to(both.device)
        fit = self.scaled(both[:, order])
        return (fit,) if self._calm is None else (fit, torch.cat([c for _, c in parts], 1))

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
            where = cut_at([lambda x, _: self.stepped(v, x, 0)], [self.background.data])
            raise VariationalError(
                f"the gradient is cut{where}: {type(self.emulator).__name__}.step returns numbers that do not depend "
                f"on its state for autograd; {self._advice}"
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


def _again(function: Callable[..., Any], *args: Any) -> Any:
    """The function, computed once more for its adjoint. Its noise is an argument: no generator needs to be kept."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


class _Calm:
    """The penalty J_c: increments of a variable should change by no more than so much in a step.

        J_c = ½ Σ_k Σ_variable <(Δx_k - Δx_k of the background)²> / σ²          <> over the wet points

    It keeps adjustment waves out of the analysis, which an increment without balance would set off (a penalty as in
    Gauthier and Thépaut 2001, doi:10.1175/1520-0493(2001)129<2089:IOTDFA>2.0.CO;2, of plain tendencies).
    """

    def __init__(self, problem: Trajectory) -> None:
        layout, place = problem.background.layout, problem.background.data.device
        weight = torch.zeros(layout.shape, dtype=torch.float64)
        for name, std in (problem.how.tendencies or {}).items():
            channels = layout.channels(name)
            count = int(layout.mask[channels].sum())
            weight[channels] = layout.mask[channels] / (std * count**0.5)
        flat = weight.flatten()
        self._where = flat.nonzero()[:, 0].to(place)
        self._weight = flat.to(place)[self._where]
        path = problem.states(problem.start())
        self._background = [self._change(a.data, b.data) for a, b in pairwise(path)]

    def of(self, step: int, before: Tensor, after: Tensor) -> Tensor:
        """The residuals of a step, (member, point) float64."""
        return (self._change(before, after) - self._background[step]) * self._weight

    def _change(self, before: Tensor, after: Tensor) -> Tensor:
        return (after - before).flatten(1)[:, self._where].double()


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
