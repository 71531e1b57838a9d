"""From a problem to its minimum: first guesses, windows that grow, bounds; and what is reported of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..emulators import Noise
from .background import Uncorrelated
from .gauss_newton import GaussNewton
from .minimise import LBFGS, Minimum
from .window_cost import Problem

__all__ = ["Minimiser", "minimised", "report_of"]

Minimiser = LBFGS | GaussNewton
Bounds = Mapping[str, tuple[float, float]]


def minimised(
    problem: Problem,
    minimiser: Minimiser,
    growing: tuple[float, ...] = (1.0,),
    starts: int = 1,
    bounds: Bounds | None = None,
) -> Minimum:
    """The lowest minimum of J from several first guesses, of which the first is the background.

    Args:
        problem, minimiser: whose, and with what.
        growing: fractions of the window that are fitted one after the other.
        starts: first guesses; all but the first are drawn from the background's covariance, by member and time.
        bounds: of x_0 by variable, for an `Uncorrelated` root and `LBFGS`.

    Raises VariationalError without a finite gradient at the background.
    """
    first = problem.start()
    problem.require_gradient(first)
    box = {} if bounds is None else _box(problem, bounds)
    best: Minimum | None = None
    for number in range(starts):
        v = first if number == 0 else first + _drawn(problem, number)
        for part in growing:
            within = problem.until(part)
            if isinstance(minimiser, LBFGS):
                found = minimiser.minimise(within.cost, v, **box)
            else:
                found = minimiser.minimise(within.linearised, v)
            v = found.v
        best = found if best is None else _lower(best, found)
    assert best is not None
    return best


def _drawn(problem: Problem, number: int) -> Tensor:
    """White control vectors of a first guess, each member's its own."""
    x = problem.background
    noise = Noise(0).stream("first guess").stream(str(number))
    return noise.normal(x.members, x.time, (problem.size,), dtype=torch.float64, device=x.data.device)


def _lower(a: Minimum, b: Minimum) -> Minimum:
    """Of two minimisations the lower minimum of each problem, and the effort of both."""
    better = b.cost < a.cost
    rows = better[:, None]
    chosen = {
        name: torch.where(better, getattr(b, name), getattr(a, name))
        for name in ("cost", "gradient", "start", "iterations", "converged")
    }
    return replace(
        a, **chosen, v=torch.where(rows, b.v, a.v), evaluations=a.evaluations + b.evaluations,
        products=a.products + b.products, history=torch.cat([a.history, b.history]).cummin(0).values,
    )  # fmt: skip


def _box(problem: Problem, bounds: Bounds) -> dict[str, Tensor]:
    """Bounds of x_0 as those of the control vector, whose first part is (x_0 - x_b) / σ."""
    root, x = problem.how.root, problem.background.data.double()
    assert isinstance(root, Uncorrelated)
    layout = problem.background.layout
    lower, upper = (torch.full(layout.shape, side * torch.inf, dtype=torch.float64) for side in (-1, 1))
    for name, (least, most) in bounds.items():
        for slot in range(len(layout.slots)):
            lower[layout.channels(name, slot)], upper[layout.channels(name, slot)] = least, most
    beyond = x.new_full((len(x), problem.size - root.size), torch.inf)
    low, high = (root.inverse(side.to(x.device) - x) for side in (lower, upper))
    # A background that is outside already may stay where it is, up to rounding.
    return {
        "lower": torch.cat([low.clamp(max=0), -beyond], 1),
        "upper": torch.cat([high.clamp(min=0), beyond], 1),
    }


def report_of(problem: Problem, found: Minimum) -> dict[str, np.ndarray]:
    """What `FourDVar.window` reports, (member,) each."""
    begin, end = (problem.parts(v) for v in (problem.start(), found.v))
    counts = {"iterations": found.iterations, "converged": found.converged.int()}
    counts["evaluations"] = torch.full_like(found.iterations, found.evaluations)
    numbers: dict[str, Tensor] = {
        "cost_first": torch.stack(begin).sum(0),
        "cost": torch.stack(end).sum(0),
        **dict(zip(("cost_background", "cost_observations", "cost_tendencies"), end, strict=False)),
        "gradient": found.gradient / found.start.clamp(min=1e-300),
        **counts,
    }
    return {name: value.detach().cpu().numpy() for name, value in numbers.items()}
