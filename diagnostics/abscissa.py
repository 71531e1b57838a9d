"""Where on the horizontal axis a value belongs: dates of any calendar and lead times as numbers with a unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from . import style
from .dates import date_words
from .heat import elapsed_seconds

_Array = np.ndarray[Any, Any]

_DAY = 86400.0
_YEARS = {"noleap": 365.0, "365_day": 365.0, "360_day": 360.0, "all_leap": 366.0, "366_day": 366.0}
_LEAP_YEAR = 365.2425


def abscissae(coordinates: Mapping[str, xr.DataArray]) -> tuple[dict[str, _Array], str]:
    """Numbers for one common axis, and its label.

    `coordinates`, {line: coordinate (n)} of cftime dates, datetime64, timedelta64, or numbers. Dates count from
    the earliest of all lines, in days, or in years of their calendar beyond two; timedelta64 becomes days.
    Raises ValueError if the lines cannot share an axis: dates beside numbers, or other calendars.
    """
    kinds = {name: _kind(c) for name, c in coordinates.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"lines on one axis need one kind of time, got {kinds}: convert with convert_calendar or sel")
    kind = next(iter(kinds.values()))
    if kind == "number":
        label = _number_label(next(iter(coordinates.values())))
        return {name: np.asarray(c, dtype="f8") for name, c in coordinates.items()}, label
    if kind == "timedelta64":
        days = {name: c.to_numpy() / np.timedelta64(1, "D") for name, c in coordinates.items()}
        return days, f"{_words(next(iter(coordinates.values())))} [days]"
    return _since_first(coordinates, kind)


def _kind(coordinate: xr.DataArray) -> str:
    """Kind of the values: "number", "timedelta64", "datetime64" or, for cftime, the calendar."""
    if coordinate.dtype.kind in "mM":
        return f"{'timedelta' if coordinate.dtype.kind == 'm' else 'datetime'}64"
    first = coordinate.to_numpy()[0]
    return str(first.calendar) if hasattr(first, "calendar") else "number"


def _since_first(coordinates: Mapping[str, xr.DataArray], calendar: str) -> tuple[dict[str, _Array], str]:
    origin = min(c.to_numpy()[0] for c in coordinates.values())
    since = {}
    for name, c in coordinates.items():
        both = xr.DataArray(np.concatenate([[origin], c.to_numpy()]), dims="time", name="time")
        since[name] = elapsed_seconds(both)[1:] / _DAY
    year = _YEARS.get(calendar, _LEAP_YEAR)
    unit = "days"
    if max(days.max() for days in since.values()) > 2 * year:
        unit = "years"
        since = {name: days / year for name, days in since.items()}
    return since, f"time [{unit} since {date_words(origin)}]"


def _words(coordinate: xr.DataArray) -> str:
    return "lead time" if coordinate.name == "lead" else style.name_of(coordinate)


def _number_label(coordinate: xr.DataArray) -> str:
    """A numeric lead without units counts days."""
    units = str(coordinate.attrs.get("units", "days" if coordinate.name == "lead" else ""))
    return f"{_words(coordinate)} [{style.pretty_units(units)}]" if units not in ("", "1") else _words(coordinate)
