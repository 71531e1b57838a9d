"""Checks before use: which observations an analysis may see, and why not the others.

    departure² > threshold² (spread² + error²)           rejected, or
    error² ← sqrt((spread² + error²)² + (spread departure / K)²) - spread²       softened

Checks run in order and each sees what those before have left; all that they reject is counted with its reason.
Those of an observation's neighbours are in `neighbours.py`. What is rejected does not depend on the order of
observations. The second line is the adaptive quality control of Sakov and Sandery (2017,
doi:10.1080/16000870.2017.1318031), which limits the increment of a single observation, spread² departure /
(spread² + error²), to K times the spread, and leaves small ones nearly as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ..emulators import Layout, State
from ..emulators.names import RANGES
from .observations import Observations
from .operators import located
from .verification import Innovation, Type, innovation, rows_of_types

NOTICEABLE = 1.1  # an error that has grown by less is not counted as softened
_UNKNOWN, _OUTSIDE, _LAND, _BELOW = range(1, 5)


class Check(Protocol):
    """A reason, or some, to reject observations."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong with those rejected, as it is counted."""
        ...

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """For each, (observation,): 0 or False to keep it, k or True for the k-th or only reason."""
        ...


@dataclass(frozen=True, eq=False)
class Checked:
    """Observations that were checked.

    Attributes:
        observations: all, as they were given.
        flags: (observation,) integers: 0 for those to use, k for those rejected for `reasons[k-1]`.
        reasons: of all checks, in their order.
        errors: standard deviations to use, (observation,): those given, or larger.
    """

    observations: Observations
    flags: np.ndarray = field(repr=False)
    reasons: tuple[str, ...]
    errors: np.ndarray = field(repr=False)

    @property
    def used(self) -> Observations:
        """Those that passed, in the order they came in, with the errors to use."""
        good = self.flags == 0
        return self.observations.select(good).replace(error=self.errors[good])

    @property
    def softened(self) -> np.ndarray:
        """Which are used with an error that is noticeably larger, by a tenth or more, (observation,) bool."""
        return np.asarray((self.flags == 0) & (self.errors >= NOTICEABLE * self.observations.error))

    def counts(self) -> dict[Type, Counter[str]]:
        """How many of each (kind, variable) were "used" and rejected for each reason; `pooled` adds several times."""
        names = np.array(["used", *self.reasons])
        out = {}
        for key, rows in rows_of_types(self.observations).items():
            number = np.bincount(self.flags[rows], minlength=len(names))
            out[key] = Counter({str(n): int(c) for n, c in zip(names, number, strict=True) if c})
            if softened := int(self.softened[rows].sum()):
                out[key]["softened"] = softened
        return out

    def __repr__(self) -> str:
        number = np.bincount(self.flags, minlength=len(self.reasons) + 1).tolist()
        softened = int(self.softened.sum())
        used = f"{number[0]} used" + (f" ({softened} softened)" if softened else "")
        rest = [f"{c} {reason}" for c, reason in zip(number[1:], self.reasons, strict=True) if c]
        return f"{len(self.observations)} observations: {', '.join([used, *rest])}"


@dataclass(frozen=True)
class Located:
    """Rejects what cannot be compared with the state: unknown variables, places where the model has no water."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Four, of which the last is below the model's sea floor."""
        return "of unknown variables", "outside the domain", "on land", "below the bottom"

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """Numbers of the reasons, (observation,); only positions and variables count."""
        layout, o = forecast.layout, observations
        flags = np.zeros(len(o), np.int64)
        lost = np.flatnonzero(~located(layout, o))
        if len(lost):
            at_surface = o.select(lost).replace(depth=0.0)
            wet, inside = located(layout, at_surface), located(_flooded(layout), at_surface)
            inputs = {d.name: d.inputs for d in o.derived}
            names = [str(n) for n in np.unique(at_surface.variable)]
            unknown = [n for n in names if not set(inputs.get(n, (n,))) <= set(layout.names)]
            of_those = np.isin(at_surface.variable, unknown)
            flags[lost] = np.select([of_those, wet, inside], [_UNKNOWN, _BELOW, _LAND], _OUTSIDE)
        return flags


def _flooded(layout: Layout) -> Layout:
    """The same grid without land, but where a curvilinear one has no positions."""
    grid = layout.grid
    for mask, suffix in (("wetmask", ""), ("wetmask_corner", "_corner")):
        if mask in grid.coords:
            there = grid[f"lat{suffix}"].notnull() & grid[f"lon{suffix}"].notnull()
            wet = np.broadcast_to(there.transpose(*layout.dims).values, grid[mask].shape)
            grid = grid.assign_coords({mask: (grid[mask].dims, wet)})
    return replace(layout, grid=grid)


@dataclass(frozen=True)
class Range:
    """Rejects values that nothing on Earth has.

    Attributes:
        limits: least and largest value of each variable, in its unit; None for those of the table of names
            (`thetao` -3 to 40 degC). Variables that are not named pass.
        tolerance: how many errors beyond the limits are allowed, as Gaussian errors of twin experiments need where
            variables are bounded.
    """

    limits: Mapping[str, tuple[float, float]] | None = field(default=None, hash=False)
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or any(not low < high for low, high in (self.limits or {}).values()):
            raise ValueError(f"Range: wanted limits that ascend and a tolerance >= 0, got {self}")

    @property
    def reasons(self) -> tuple[str, ...]:
        """One."""
        return ("out of range",)

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """Which are out of range, (observation,) bool; the forecast does not count."""
        o, out = observations, np.zeros(len(observations), bool)
        margin = self.tolerance * o.error
        for name, (low, high) in (RANGES if self.limits is None else self.limits).items():
            out |= (o.variable == name) & ((o.value < low - margin) | (o.value > high + margin))
        return out


@dataclass(frozen=True)
class Gross:
    """Rejects departures that neither spread nor error explain: |d| > threshold sqrt(spread² + error²).

    Attributes:
        threshold: in standard deviations; 3 to 5 are usual.
        inflation: multiplies the spread, where an ensemble is known to have too little.

    Source: the background check, as in Ingleby and Huddleston (2007), doi:10.1016/j.jmarsys.2005.11.019.
    """

    threshold: float = 5.0
    inflation: float = 1.0

    def __post_init__(self) -> None:
        if not self.threshold > 0 or not self.inflation > 0:
            raise ValueError(f"Gross: wanted threshold > 0 and inflation > 0, got {self}")

    @property
    def reasons(self) -> tuple[str, ...]:
        """One."""
        return ("gross",)

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """Which depart too far, (observation,) bool."""
        seen = innovation(forecast, observations)
        expected = np.hypot(self.inflation * seen.spread, observations.error)
        return np.asarray(
            np.abs(seen.departure) > self.threshold * expected
        )  # not NaN: a forecast that failed is an error


@dataclass(frozen=True)
class Excluded:
    """Rejects kinds and variables that are not wanted.

    Attributes:
        kinds: labels of observations.
        variables: CF names.
    """

    kinds: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """One."""
        return ("excluded",)

    def rejects(self, forecast: State, observations: Observations) -> np.ndarray:
        """Which are of these kinds or variables, (observation,) bool."""
        return np.isin(observations.kind, self.kinds) | np.isin(observations.variable, self.variables)


@dataclass(frozen=True)
class Quality:
    """Checks in their order, and what to do with departures that remain large.

    Attributes:
        checks: default `Located`, `Range` and `Gross`.
        softening: K, how many spreads one observation may move the analysis at its place: errors of those that
            would move it further grow until they do not. None for errors as they are. 2 does no harm to a
            system that is well tuned (Sakov and Sandery 2017).
    """

    checks: tuple[Check, ...] = (Located(), Range(), Gross())
    softening: float | None = None

    def __post_init__(self) -> None:
        if self.softening is not None and not self.softening > 0:
            raise ValueError(f"Quality: wanted softening > 0, got {self.softening}")

    def check(self, forecast: State, observations: Observations) -> Checked:
        """Apply all checks.

        Args:
            forecast: the background, one member or more; with one, its spread is 0.
            observations: of the time of its newest slot.

        Raises ObservationError as `operator_for` if a check needs H x of observations that `Located` would reject.
        """
        flags, errors, reasons = np.zeros(len(observations), np.int64), observations.error.copy(), tuple[str, ...]()
        for check in self.checks:
            left = np.flatnonzero(flags == 0)
            if len(left):
                found = np.asarray(check.rejects(forecast, observations.select(left)), np.int64)
                flags[left] = np.where(found > 0, found + len(reasons), 0)
            reasons += check.reasons
        left = np.flatnonzero(flags == 0)
        if self.softening is not None and len(left):
            errors[left] = adapted_errors(innovation(forecast, observations.select(left)), self.softening)
        return Checked(observations, flags, reasons, errors)


def adapted_errors(seen: Innovation, K: float = 2.0) -> np.ndarray:
    """Errors with which no observation alone moves the analysis by more than K spreads, (observation,).

    Source: Sakov and Sandery (2017), section 2, as in the module's docstring; with s the spread, r the error and d the
    departure, s² d / (s² + r̃²) = s² d / sqrt((s² + r²)² + (s d / K)²) < K s.
    """
    s, r, d = seen.spread, seen.observations.error, seen.departure
    whole = np.hypot(s**2 + r**2, s * d / K)
    # Not whole - s², which cancels where s² is much larger than r².
    return np.asarray(np.sqrt(r**2 + (s * d / K) ** 2 / (whole + s**2 + r**2)))
