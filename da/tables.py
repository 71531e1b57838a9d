"""Tables of real observations: read into the observations of each analysis time, and written.

A table has a row for each observation, with columns `time`, `variable`, `lat`, `lon`, `value`, `error` and optionally
`depth`, `kind`, `offset`, `group`, `length`, `height` (see `Observations`) and `units`. What cannot be used is counted
by reason, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from ..emulators.names import ALIASES, conversion
from .observations import ATTRIBUTES, Derived, ObservationError, Observations
from .table_times import AnalysisTimes, assigned, seconds_since, times_until

Table: TypeAlias = Mapping[Any, Any]  # also an xr.Dataset, a pd.DataFrame

_OPTIONAL: dict[str, Any] = {
    "depth": 0.0, "kind": "", "offset": 0.0, "group": 0, "length": np.inf, "height": np.inf
}  # fmt: skip
_WANTED = ("time", "variable", "lat", "lon", "value", "error")
_KNOWN = (*_WANTED, *_OPTIONAL, "units")
COLUMN_ALIASES = {
    "latitude": "lat", "longitude": "lon", "observation": "value", "obs": "value", "obs_value": "value",
    "depth_m": "depth", "lev": "depth", "date": "time", "datetime": "time", "valid_time": "time",
    "timestamp": "time", "obs_error": "error", "error_std": "error",
    "uncertainty": "error", "type": "kind", "instrument": "kind", "platform": "kind", "unit": "units",
}  # fmt: skip
_PARQUET = "Parquet files need pyarrow, which is not installed: `pip install pyarrow`, or use CSV or NetCDF"


@dataclass(frozen=True, eq=False)
class ObservationTable:
    """The observations of each of some analysis times, in order; may be iterated over again and again.

    Attributes:
        parts: one for each time, also where there are none.
        rejected: how many rows were left out, for each reason; a row is counted once, for the first of
            "no variable", "no value", "no position" (or a depth < 0), "no error" (or one <= 0), "no time" (or a date
            that the calendar has not), "no correlation" (a length, height or group below 0), "outside all windows".
    """

    parts: tuple[Observations, ...] = field(repr=False)
    rejected: dict[str, int]

    def __iter__(self) -> Iterator[Observations]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        left = ", ".join(f"{n} {reason}" for reason, n in self.rejected.items() if n)
        span = f", {self.parts[0].time} to {self.parts[-1].time}" if self.parts else ""
        used = sum(map(len, self.parts))
        return f"ObservationTable({used} observations of {len(self)} times{span}; rejected: {left or 'none'})"


def read_observations(
    source: str | PathLike[str] | Table | pd.DataFrame,
    *,
    times: AnalysisTimes,
    window: timedelta | None = None,
    columns: Mapping[str, str] | None = None,
    error: float | Mapping[str, float] | None = None,
    derived: tuple[Derived, ...] = (),
) -> ObservationTable:
    """Read a table of observations, and sort them to the analyses that come next after each.

    Args:
        source: a CSV, Parquet or NetCDF file, by its suffix; or a pandas DataFrame, an xarray Dataset along one
            dimension such as `Observations.to_dataset` returns, or a mapping of arrays, in which a scalar stands for
            all rows.
        times: analysis times in ascending order; or the first and the step between them, up to the last observation.
            Their calendar is that of all observations: dates are carried over by year, month and day.
        window: observations taken in (time - window, time] belong to a time; default all since the one before, and for
            the first as long as until the second.
        columns: names in the table of polynya's columns, {"value": "sst"}. Common names (`latitude`, `observation`,
            `obs_error`, ...) are known.
        error: standard deviation where the table has no such column, in the variable's unit; one number, or one for
            each variable.
        derived: definitions of observed quantities that are no variables of the state; files do not hold them.

    Values are in the unit of their variable, or are converted to it from what a column `units` says. Blank cells of
    `kind`, `offset`, `group`, `length` and `height` stand for their defaults; a blank depth is no position.

    Returns observations with `offset` = their time minus that of the analysis.

    Raises:
        ObservationError: for a missing column, or times that do not ascend.
        UnitsError: for units that are not known for a variable.
        ImportError: for a Parquet file without pyarrow.
        ValueError: for a suffix that is not known.
    """
    table = _renamed(_opened(source, columns or {}), columns or {}, error)
    rows = max((len(v) for v in table.values() if np.ndim(v)), default=1)
    table = {n: np.broadcast_to(v, (rows,)) for n, v in table.items()}
    seconds = seconds_since(times, table.pop("time"))
    reasons = _cleaned(table, np.isfinite(seconds), error)
    usable = ~np.any(list(reasons.values()), 0)
    analyses = times_until(times, float((seconds + table["offset"])[usable].max(initial=0.0)))
    number, offset, inside = assigned(times, analyses, seconds, table["offset"], window)
    reasons["outside all windows"] = ~inside
    good, rejected = np.ones(rows, bool), {}
    for reason, bad in reasons.items():
        rejected[reason] = int((good & bad).sum())
        good &= ~bad
    table["offset"] = offset
    kept = np.flatnonzero(good)
    kept = kept[np.argsort(number[kept], kind="stable")]
    borders = np.searchsorted(number[kept], np.arange(len(analyses) + 1))
    parts = tuple(
        Observations.from_table(t, {n: v[kept[a:b]] for n, v in table.items()}, derived)
        for t, (a, b) in zip(analyses, pairwise(borders), strict=True)
    )
    return ObservationTable(parts, rejected)


def save_observations(observations: Iterable[Observations], path: str | PathLike[str]) -> None:
    """Write observations as one table, CSV, Parquet or NetCDF by the suffix of the path.

    `time` is that of the analysis, `offset` that of the observation relative to it. With the same times
    `read_observations` gives the same numbers again, if every observation belongs to the first analysis after it; files
    hold no definitions of derived quantities.

    Raises ObservationError for no observations, ImportError for Parquet without pyarrow, ValueError for another suffix.
    """
    parts, path = [o for o in observations if len(o)], Path(path)
    kind = _kind(path)
    if not parts:
        raise ObservationError(f"wanted observations to write to {path}, got none at all")
    names = ("variable", "kind", "lat", "lon", "depth", "value", "error", "offset", "group", "length", "height")
    columns: dict[str, np.ndarray] = {n: np.concatenate([getattr(o, n) for o in parts]) for n in names}
    count = [len(o) for o in parts]
    if kind == "netcdf":
        time = np.repeat(np.array([o.time for o in parts], object), count)
        data = {n: ("observation", v, ATTRIBUTES[n]) for n, v in columns.items()}
        dataset = xr.Dataset(data, coords={"time": ("observation", time, {"long_name": "time of the analysis"})})
        start = parts[0].time.strftime("%Y-%m-%d %H:%M:%S")
        encoding = {"time": {"units": f"seconds since {start}", "dtype": "float64"}}
        dataset.assign_attrs(Conventions="CF-1.11").to_netcdf(path, encoding=encoding)
        return
    stamps = np.repeat([o.time.isoformat() for o in parts], count)
    frame = pd.DataFrame({"time": stamps, **columns})
    if kind == "csv":
        frame.to_csv(path, index=False)
    else:
        _require_pyarrow()
        frame.to_parquet(path, index=False)


# --- files ---------------------------------------------------------------------------------------


def _kind(path: Path) -> str:
    kinds = {".csv": "csv", ".parquet": "parquet", ".nc": "netcdf", ".nc4": "netcdf", ".netcdf": "netcdf"}
    suffix = next((s for s in reversed(path.suffixes) if s != ".gz"), "")
    if suffix not in kinds:
        raise ValueError(f"wanted a table in a file that ends with {', '.join(kinds)} (or .csv.gz), got {path}")
    return kinds[suffix]


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(_PARQUET) from error


def _opened(source: str | PathLike[str] | Table | pd.DataFrame, columns: Mapping[str, str]) -> Table:
    if isinstance(source, pd.DataFrame):
        return dict(source)
    if isinstance(source, Mapping):  # which a Dataset is
        return source
    path = Path(source)
    kind = _kind(path)
    if kind == "netcdf":
        with xr.open_dataset(path, decode_times=xr.coders.CFDatetimeCoder(use_cftime=True)) as dataset:
            return dataset.load()
    if kind == "parquet":
        _require_pyarrow()
        return dict(pd.read_parquet(path))
    names = _names(pd.read_csv(path, nrows=0).columns, columns)
    frame = pd.read_csv(path, usecols=list(names.values()), dtype=str, keep_default_na=False)
    return dict(frame)


def _names(there: Iterable[Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """What each of polynya's columns is called in a table."""
    there = list(there)
    absent = [v for v in columns.values() if v not in there]
    if absent or not set(columns) <= set(_KNOWN):
        raise ObservationError(
            f"wanted columns={{one of {', '.join(_KNOWN)}: a name in the table}}, got {dict(columns)}; the table has "
            f"{', '.join(map(str, there))}"
        )
    lower = {str(n).strip().lower(): n for n in reversed(there)}
    aliased = {COLUMN_ALIASES[n]: lower[n] for n in reversed(list(COLUMN_ALIASES)) if n in lower}
    return {**aliased, **{n: lower[n] for n in _KNOWN if n in lower}, **columns}


def _renamed(
    table: Table, columns: Mapping[str, str], error: float | Mapping[str, float] | None
) -> dict[str, np.ndarray]:
    """The columns of a table that are known, by polynya's names; defaults for those that may be missing."""
    there = list(table.variables) if isinstance(table, xr.Dataset) else list(table)
    names = _names(there, columns)
    missing = [n for n in _WANTED if n not in names and (n != "error" or error is None)]
    if missing:
        raise ObservationError(
            f"the table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, there)) or 'none'}. Name "
            "others with `columns`" + (", or give `error`" if "error" in missing else "")
        )
    found = {n: np.asarray(table[v]) for n, v in names.items()}
    shapes = {n: v.shape for n, v in found.items() if v.ndim}
    if len(set(shapes.values())) > 1 or any(len(shape) > 1 for shape in shapes.values()):
        raise ObservationError(f"wanted columns of one length, a row for each observation, got {shapes}")
    return {**{n: np.asarray(v) for n, v in _OPTIONAL.items()}, **found}


# --- values --------------------------------------------------------------------------------------


def _numbers(column: np.ndarray) -> np.ndarray:
    """As float64, what is no number as NaN."""
    try:
        return np.asarray(column, np.float64)
    except (TypeError, ValueError):
        return np.array([_number(v) for v in column], np.float64)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


def _texts(column: np.ndarray) -> np.ndarray:
    """As text, what is missing as ""."""
    if column.dtype.kind in "SU":
        return np.char.strip(np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column)
    plain = [
        "" if v is None or v is pd.NA or v != v else (v.decode() if isinstance(v, bytes) else str(v)).strip()
        for v in column
    ]
    return np.asarray(plain, dtype=str)


def _cleaned(
    table: dict[str, np.ndarray], dated: np.ndarray, error: float | Mapping[str, float] | None
) -> dict[str, np.ndarray]:
    """Turn columns into numbers in the table's units, in place; which rows are bad, (row,) for each reason."""
    variable = _texts(table["variable"])
    for alias in set(ALIASES) & set(np.unique(variable).tolist()):
        variable = np.where(variable == alias, ALIASES[alias], variable)
    table |= {"variable": variable, "kind": _texts(table["kind"])}
    given = "error" in table
    table.setdefault("error", np.full(len(variable), np.nan))
    units = table.pop("units", None)
    for name in ("lat", "lon", "depth", "value", "error", "offset", "group", "length", "height"):
        number = _numbers(table[name])
        default = _OPTIONAL.get(name)
        if default is not None and name != "depth":
            number = np.where(np.isnan(number), default, number)
        table[name] = number
    if units is not None:
        _convert(table, _texts(units))
    if not given:
        of = error if isinstance(error, Mapping) else dict.fromkeys(variable.tolist(), error)
        table["error"] = np.array([of.get(v, np.nan) for v in variable.tolist()], float)
    lat, lon, depth = table["lat"], table["lon"], table["depth"]
    placed = (np.abs(lat) <= 90) & np.isfinite(lon) & np.isfinite(depth) & (depth >= 0)
    correlated = (table["group"] >= 0) & (table["group"] % 1 == 0) & (table["length"] > 0) & (table["height"] > 0)
    return {
        "no variable": variable == "",
        "no value": ~np.isfinite(table["value"]),
        "no position": ~placed,
        "no error": ~(np.isfinite(table["error"]) & (table["error"] > 0)),
        "no time": ~(dated & np.isfinite(table["offset"])),
        "no correlation": ~correlated,
    }


def _convert(table: dict[str, np.ndarray], units: np.ndarray) -> None:
    """Values and errors in the units of their variables, in place."""
    value, error = table["value"].copy(), table["error"].copy()
    for name, unit in sorted(set(zip(table["variable"].tolist(), units.tolist(), strict=True))):
        factor, offset = conversion(name, unit or None)
        rows = (table["variable"] == name) & (units == unit)
        value[rows], error[rows] = value[rows] * factor + offset, error[rows] * factor
    table |= {"value": value, "error": error}
