"""What observations within a window see of a trajectory that goes by: H at their own times, linear between steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cftime
import numpy as np
import torch
from torch import Tensor

from ..emulators import Layout, State
from .observations import ObservationError, Observations, View
from .operators import ObservationOperator, located, operator_for


class Window:
    """The observations of one analysis, and which step of a trajectory passes by each.

    Args:
        given: observations of the end of the window, those within with an `offset`.
        layout: of the states.
        dates: of the trajectory's states, of their newest slots; the last is the time of the analysis.

    Raises ObservationError for observations of another time, or before the first date.
    """

    def __init__(self, given: Observations, layout: Layout, dates: Sequence[cftime.datetime]) -> None:
        self.given, self.layout = given, layout
        if dates[-1] != given.time:
            raise ObservationError(f"wanted observations of the end of the window, {dates[-1]}, got {given.time}")
        ahead = np.array([(t - given.time).total_seconds() for t in dates])
        early = given.offset < ahead[0]
        if early.any():
            raise ObservationError(
                f"wanted observations after the cycle before, {dates[0]}: {given.examples(early)}; they belong to that"
            )
        within = given.offset < 0
        if within.any():
            within = within & located(layout, given)
        self.end = np.flatnonzero(~within)  # and those that are nowhere, which are somebody else's to find
        self.rows = [
            np.flatnonzero(within & (given.offset >= first) & (given.offset < last)) for first, last in pairwise(ahead)
        ]
        self._between: list[tuple[ObservationOperator, Tensor] | None] = []
        for k, rows in enumerate(self.rows):
            share = (given.offset[rows] - ahead[k]) / (ahead[k + 1] - ahead[k])
            some = operator_for(layout, given.select(rows)) if len(rows) else None
            self._between.append(None if some is None else (some, torch.from_numpy(share)))

    def seen(self, step: int, before: State, after: State) -> Tensor | None:
        """What the observations between two states of the trajectory see, (member, row) float64, or None."""
        found = self._between[step]
        if found is None:
            return None
        operator, share = found[0], found[1].to(after.data.device)
        return (1 - share) * operator.apply(before).double() + share * operator.apply(after).double()

    def observations(self, seen: Sequence[Tensor | None], end: State) -> Observations:
        """Those given, which see states at the time of the analysis as if on the trajectory; see `View`.

        Args:
            seen: of every step.
            end: of the trajectory.
        """
        parts = [s for s in seen if s is not None]
        if not parts:
            return self.given
        rows = np.concatenate(self.rows)
        at_end = operator_for(self.layout, self.given.select(rows)).apply(end).double()
        shift = at_end.new_zeros(len(at_end), len(self.given))
        place = torch.from_numpy(rows).to(shift.device)
        shift = shift.index_copy(1, place, torch.cat(parts, 1) - at_end)
        return self.given.replace(view=View(members=end.members, shift=shift))
