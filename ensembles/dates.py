"""Dates of runs: counted in the records of a stored forcing, which leap years make uneven; plain sums without one."""

from __future__ import annotations

from datetime import timedelta

import cftime

from ..emulators import Forcing, State
from ..emulators.state import Layout

__all__ = ["run_dates", "shifted", "slot_times"]


def shifted(forcing: Forcing | None, time: cftime.datetime, by: timedelta) -> cftime.datetime:
    """The date `by` after `time`, counted in the records of a stored forcing; plainly `time + by` without one."""
    shift = getattr(forcing, "shift", None)
    return time + by if shift is None else shift(time, by)


def slot_times(state: State, forcing: Forcing | None) -> list[cftime.datetime]:
    """The dates of a state's time slots, oldest first, counted in the records of a stored forcing."""
    return _slots(state.layout, state.time, forcing)


def run_dates(
    layout: Layout, start: cftime.datetime, dt: timedelta, steps: int, forcing: Forcing | None
) -> list[cftime.datetime]:
    """The dates of all records of a run: of every slot of every state that is later than those before."""
    dates, time = _slots(layout, start, forcing), start
    for _ in range(steps):
        time = shifted(forcing, time, dt)
        dates += [t for t in _slots(layout, time, forcing) if t > dates[-1]]
    return dates


def _slots(layout: Layout, time: cftime.datetime, forcing: Forcing | None) -> list[cftime.datetime]:
    return [shifted(forcing, time, s * layout.interval) for s in layout.slots]
