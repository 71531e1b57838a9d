"""Observations: the values of one time, where they were taken, and how far they may be off.

    y = H(x) + ε,   ε ~ N(0, R),   R = diag(error²)

Errors of different observations are independent. A time's observations may mix variables, depths and
instruments; they are a table with one row each, kept in NumPy because they are read from files, sorted
and searched. `operator_for` (`operators.py`) makes the H that belongs to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cftime
import numpy as np
import xarray as xr

_TEXT = ("variable", "kind")
_NUMBERS = ("lat", "lon", "depth", "value", "error")
_ATTRIBUTES = {
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
    "depth": {"standard_name": "depth", "units": "m", "positive": "down"},
    "variable": {"long_name": "CF name of the observed variable"},
    "value": {"long_name": "observed value, in the unit of its variable"},
    "error": {"long_name": "standard deviation of the observation error, in the unit of its variable"},
    "kind": {"long_name": "where the observation came from"},
}


class ObservationError(ValueError):
    """Observations are malformed, or do not fit the state they are compared with."""


@dataclass(frozen=True, eq=False)
class Observations:
    """The observations of one time; every array is (observation,), and a scalar stands for all of them.

    Attributes:
        time: when they are valid.
        variable: CF/CMIP names, e.g. `thetao`.
        lat: degrees north.
        lon: degrees east, of any branch.
        depth: m, positive down; 0 for fields without levels.
        value: in the unit of the variable.
        error: standard deviation of its error, in the same unit, > 0.
        kind: a label such as `profile` or `sst`.

    Raises ObservationError for unequal lengths, NaN, errors that are not positive, or negative depths.
    """

    time: cftime.datetime
    variable: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    depth: np.ndarray
    value: np.ndarray
    error: np.ndarray
    kind: np.ndarray

    def __post_init__(self) -> None:
        raw = {n: np.asarray(getattr(self, n), dtype=str if n in _TEXT else float) for n in (*_TEXT, *_NUMBERS)}
        lengths = {n: a.shape for n, a in raw.items() if a.ndim}
        if len(set(lengths.values())) > 1 or any(len(s) > 1 for s in lengths.values()):
            raise ObservationError(f"wanted arrays of one length (observation,), got {lengths}")
        size = next(iter(lengths.values()), (1,))
        for name, array in raw.items():
            object.__setattr__(self, name, np.broadcast_to(array, size))
        for name in _NUMBERS:
            self._require(np.isfinite(getattr(self, name)), f"{name} must be a finite number; drop the others")
        self._require(self.error > 0, "error must be a standard deviation > 0")
        self._require(self.depth >= 0, "depth must be >= 0, in m, positive down")
        self._require(np.abs(self.lat) <= 90, "lat must be within [-90, 90] degrees")

    def _require(self, good: np.ndarray, wanted: str) -> None:
        if not good.all():
            raise ObservationError(f"{wanted}: {self.examples(~good)}")

    def examples(self, bad: np.ndarray) -> str:
        """For messages: how many a mask (observation,) marks, and which is the first."""
        i = int(np.argmax(bad))
        row = ", ".join(f"{n} {getattr(self, n)[i]}" for n in ("variable", *_NUMBERS))
        return f"{int(bad.sum())} of {len(self)} are not, the first is number {i} ({row})"

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        labels, counts = np.unique(
            [f"{k} {v}" for k, v in zip(self.kind, self.variable, strict=True)], return_counts=True
        )
        parts = ", ".join(f"{c} {label.strip()}" for label, c in zip(labels, counts, strict=True))
        return f"Observations({self.time}: {parts or 'none'})"

    def replace(self, **changes: Any) -> Observations:
        """A copy with some attributes changed."""
        return replace(self, **changes)

    def select(self, which: np.ndarray) -> Observations:
        """Some of the observations: a boolean mask (observation,), or integer positions in any order.

        Raises ObservationError for a mask of another length.
        """
        which = np.asarray(which)
        if which.dtype == bool and which.shape != (len(self),):
            raise ObservationError(f"wanted a mask of shape ({len(self)},), got {which.shape}")
        which = which if which.size else np.zeros(0, int)
        return replace(self, **{n: getattr(self, n)[which] for n in (*_TEXT, *_NUMBERS)})

    @classmethod
    def concat(cls, parts: Sequence[Observations]) -> Observations:
        """All observations of one time in one; raises ObservationError for none, or for different times."""
        times = {p.time for p in parts}
        if len(times) != 1:
            raise ObservationError(f"wanted observations of one time, got {sorted(map(str, times)) or 'none at all'}")
        joined = {n: np.concatenate([getattr(p, n) for p in parts]) for n in (*_TEXT, *_NUMBERS)}
        return cls(time=parts[0].time, **joined)

    @classmethod
    def from_table(cls, time: cftime.datetime, table: Mapping[Any, Any]) -> Observations:
        """Observations from columns: a dict of arrays, a pandas DataFrame, or what `to_dataset` returned.

        Args:
            time: when they are valid.
            table: columns `variable`, `lat`, `lon`, `value`, `error`, and optionally `depth` (m, default 0)
                and `kind`; a scalar stands for all rows.

        Raises ObservationError if a column is missing or malformed.
        """
        wanted = [f.name for f in fields(cls) if f.name != "time"]
        columns = {"depth": 0.0, "kind": "", **{n: table[n] for n in wanted if n in table}}
        missing = [n for n in wanted if n not in columns]
        if missing:
            raise ObservationError(
                f"the table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, table))}"
            )
        return cls(time=time, **{n: np.asarray(columns[n]) for n in wanted})

    def to_dataset(self) -> xr.Dataset:
        """A Dataset along `observation`, with time, positions, variable and kind as coordinates."""
        columns = {n: ("observation", getattr(self, n), _ATTRIBUTES[n]) for n in (*_TEXT, *_NUMBERS)}
        return xr.Dataset(columns, coords={"time": self.time}).set_coords(["lat", "lon", "depth", *_TEXT])
