"""The cost functions of variational analyses: from the control vector through trajectories to J and its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..emulators import Draws, State
from .background import Root
from .bounded import Transform, transformed_state
from .correlation import whitening
from .observations import ObservationError, Observations
from .operators import newest, operator_for


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
    def terms(self, v: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
        """What J sums the squares of beside v: scaled departures, and what else there is, (member, n) float64 each.

        Args:
            v: control vectors, (member, n).
            keep: whether to keep all that the adjoint needs.
        """

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
        """r(v), (member, n) float64: all terms."""
        return torch.cat(self.terms(v, keep), 1)

    def scaled(self, equivalents: Tensor) -> Tensor:
        """R^(-1/2) (y - H(v)) and its perturbation, 0 for observations that do not count yet."""
        r = self._white(((self._value - equivalents) / self._error).mT).mT + self._shock
        return r if self._counts is None else r * self._counts

    def parts(self, v: Tensor) -> tuple[Tensor, ...]:
        """J_b, J_o and other terms, (member,) float64 each."""
        return tuple(t.square().sum(-1) / 2 for t in (v.double(), *self.terms(v)))

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

    def equivalents(self, v: Tensor) -> Tensor:
        """What would be observed, (member, observation) float64."""
        return self._operator.apply(self.first(v)).double()

    def terms(self, v: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
        """The scaled departures."""
        return (self.scaled(self.equivalents(v)),)
