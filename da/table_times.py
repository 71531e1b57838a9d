"""The dates in tables of observations, and the analyses that observations are for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, TypeAlias, TypeGuard

import cftime
import numpy as np
import pandas as pd

from .observations import ObservationError

AnalysisTimes: TypeAlias = Sequence[cftime.datetime] | tuple[cftime.datetime, timedelta]
"""Times in ascending order, or the first and the step between them."""

_ISO = re.compile(
    r"\s*(-?\d{4,})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?\s*(?:Z|\+00:?00|UTC)?\s*$"
)


def times_until(times: AnalysisTimes, last: float) -> list[cftime.datetime]:
    """All analysis times; of a first and a step those up to the first at or after `last`, s after the first."""
    if not _regular(times):
        return list(times)
    first, step = times
    return [first + k * step for k in range(int(np.ceil(last / step.total_seconds())) + 1)]


def assigned(
    times: AnalysisTimes,
    analyses: Sequence[cftime.datetime],
    seconds: np.ndarray,
    offset: np.ndarray,
    window: timedelta | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The analysis each observation is for, its seconds relative to that, and whether it is in the window.

    Args:
        times: as they were given.
        analyses: all of them, of `times_until`.
        seconds: from the first analysis to the date of each observation, NaN for none (observation,).
        offset: seconds from that to the observation (observation,).
        window: how long before an analysis observations are its own; None for all since the analysis before.

    Raises ObservationError for a window that is not positive, or that cannot be known.
    """
    ends = np.array([(t - analyses[0]).total_seconds() for t in analyses])
    length = _lengths(times, ends, window)
    dated = np.where(np.isfinite(seconds), seconds, 0.0)
    number = np.minimum(np.searchsorted(ends, dated + offset), len(ends) - 1)
    since = dated - ends[number] + offset  # in this order exact for what is dated as its analysis
    later = np.minimum(number + (since > 0), len(ends) - 1)  # which rounding may have hidden
    since = np.where(later > number, dated - ends[later] + offset, since)
    inside = np.isfinite(seconds) & (since > -length[later]) & (since <= 0)
    return later, np.where(inside, since, 0.0), inside


def seconds_since(times: AnalysisTimes, column: np.ndarray) -> np.ndarray:
    """Seconds from the first analysis to the dates of a column in its calendar, NaN for no such date, (row,).

    Raises ObservationError for analysis times that do not ascend, or a column of numbers.
    """
    if column.dtype.kind in "iufb":
        raise ObservationError(
            f"wanted dates in the column of times, such as 2000-01-31T12:00:00 or datetime64, got {column.dtype} such "
            f"as {column[:1]}; convert them, `pandas.to_datetime` or `cftime.num2date` do"
        )
    first = _first(times)
    distinct, inverse = _distinct(column)
    found = [_date(v, first.calendar, first.has_year_zero) for v in distinct]
    seconds = np.array([np.nan if t is None else (t - first).total_seconds() for t in found], float)
    return np.asarray(seconds[inverse])


def _regular(times: AnalysisTimes) -> TypeGuard[tuple[cftime.datetime, timedelta]]:
    return len(times) == 2 and isinstance(times[1], timedelta)


def _first(times: AnalysisTimes) -> cftime.datetime:
    if _regular(times):
        if times[1] <= timedelta(0):
            raise ObservationError(f"wanted a step > 0 between analysis times, got {times[1]}")
    elif not len(times) or any(b <= a for a, b in pairwise(times)):
        raise ObservationError(f"wanted analysis times in ascending order, got {[str(t) for t in times][:5]}")
    return times[0]


def _lengths(times: AnalysisTimes, ends: np.ndarray, window: timedelta | None) -> np.ndarray:
    """Length of the window of each analysis, s."""
    if window is None and _regular(times):
        window = times[1]
    if window is not None:
        if window <= timedelta(0):
            raise ObservationError(f"wanted a window > 0, got {window}")
        return np.full(len(ends), window.total_seconds())
    if len(ends) < 2:
        raise ObservationError("wanted a window, or two analysis times that say how long it is; got one time")
    return np.append(ends[1] - ends[0], np.diff(ends))


def _distinct(column: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The dates that a column holds, once each, and which of them is in each row: many rows share a date."""
    if column.dtype.kind in "MSU":
        kind = "datetime64[us]" if column.dtype.kind == "M" else column.dtype
        distinct, inverse = np.unique(column.astype(kind), return_inverse=True)
        return distinct.tolist(), inverse
    number: dict[Any, int] = {}
    plain = [None if v is pd.NA or v is pd.NaT or v != v else v for v in column.tolist()]
    inverse = np.array([number.setdefault(v, len(number)) for v in plain], np.int64)
    return list(number), inverse


def _date(value: Any, calendar: str, has_year_zero: bool) -> cftime.datetime | None:
    """The same year, month, day and time of day in a calendar; None if it has no such date."""
    value = value.decode() if isinstance(value, bytes) else value
    if isinstance(value, str):
        match = _ISO.match(value)
        if match is None:
            return None
        *parts, fraction = (g or "0" for g in match.groups())
        numbers = [*map(int, parts), int(f"{fraction:0<6}"[:6])]
    elif isinstance(value, datetime | cftime.datetime):
        ahead = value.utcoffset() if isinstance(value, datetime) else None
        value = value if ahead is None else value - ahead
        numbers = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
    else:
        return None
    try:
        return cftime.datetime(*numbers, calendar=calendar, has_year_zero=has_year_zero)
    except ValueError:
        return None
