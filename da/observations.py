"""Observations: the values of one time, where they were taken, and how far they may be off.

    y = H(x) + ε,   ε ~ N(0, R),   R_ij = error_i C_ij error_j

Errors are independent, C = 1, but for those of one `group` (a satellite's pass, a float's profile) that have a
finite `length` or `height`; see `correlation.py`. A time's observations may mix variables, depths and
instruments; they are a table with one row each, kept in NumPy because they are read from files, sorted
and searched. `operator_for` (`operators.py`) makes the H that belongs to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import cftime
import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from torch import Tensor

    from ..emulators import State

_TEXT = ("variable", "kind")
_NUMBERS = ("lat", "lon", "depth", "value", "error")
_OPTIONAL: dict[str, Any] = {"offset": 0.0, "group": 0, "length": np.inf, "height": np.inf}
_COLUMNS = (*_TEXT, *_NUMBERS, *_OPTIONAL)
ATTRIBUTES = {
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
    "depth": {"standard_name": "depth", "units": "m", "positive": "down"},
    "variable": {"long_name": "CF name of the observed variable"},
    "value": {"long_name": "observed value, in the unit of its variable"},
    "error": {"long_name": "standard deviation of the observation error, in the unit of its variable"},
    "kind": {"long_name": "where the observation came from"},
    "offset": {"long_name": "time of the observation relative to that of the analysis", "units": "s"},
    "group": {"long_name": "observations of one number have correlated errors, 0 for none"},
    "length": {"long_name": "horizontal length of correlation of errors in a group", "units": "m"},
    "height": {"long_name": "vertical length of correlation of errors in a group", "units": "m"},
}


class ObservationError(ValueError):
    """Observations are malformed, or do not fit the state they are compared with."""


@dataclass(frozen=True)
class Derived:
    """An observed quantity that is no variable of the state but a function of some at one place.

    Attributes:
        name: what observations call it.
        inputs: variables of the state; the first says which columns and levels an observation is close to.
        function: of their values where they are observed, (member, observation) each, to values of the same shape;
            made of torch operations, so that it can be differentiated.
        units: of the result.
    """

    name: str
    inputs: tuple[str, ...]
    function: Callable[..., Tensor]
    units: str = ""

    def __post_init__(self) -> None:
        if not self.inputs or self.name in self.inputs:
            raise ValueError(f"Derived: wanted one or more inputs beside {self.name!r} itself, got {self.inputs}")


@dataclass(frozen=True, eq=False)
class View:
    """How observations see the states they are given, where that is not directly.

    Attributes:
        lens: from the states that an analysis works on to physical ones, such as the inverse of an anamorphosis.
        members: numbers of the members that `shift` is of.
        shift: what is added to H(x), (member, observation): of observations between two steps, by how much H of the
            trajectory at their time differs from H at the time of the analysis.
    """

    lens: Callable[[State], State] | None = None
    members: tuple[int, ...] = ()
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Observations:
    """The observations of one time; every array is (observation,), and a scalar stands for all of them.

    Attributes:
        time: when they are valid, or the analysis that they are for.
        variable: CF/CMIP names, e.g. `thetao`.
        lat: degrees north.
        lon: degrees east, of any branch.
        depth: m, positive down; 0 for fields without levels.
        value: in the unit of the variable.
        error: standard deviation of its error, in the same unit, > 0.
        kind: a label such as `profile` or `sst`.
        offset: s, when each was taken relative to `time`, <= 0.
        group: observations of the same variable and the same number > 0 have correlated errors.
        length: m, their horizontal length of correlation; inf for none, where errors stay as they are.
        height: m, the vertical one.
        derived: observed quantities that are functions of the state's variables.
        view: how they see states; set by what calls an analysis.

    Raises ObservationError for unequal lengths, NaN, errors that are not positive, negative depths, or times after
    that of the analysis.
    """

    time: cftime.datetime
    variable: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    depth: np.ndarray
    value: np.ndarray
    error: np.ndarray
    kind: np.ndarray
    offset: np.ndarray = field(default_factory=lambda: np.array(0.0))
    group: np.ndarray = field(default_factory=lambda: np.array(0))
    length: np.ndarray = field(default_factory=lambda: np.array(np.inf))
    height: np.ndarray = field(default_factory=lambda: np.array(np.inf))
    derived: tuple[Derived, ...] = ()
    view: View | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        types: dict[str, Any] = {**dict.fromkeys(_TEXT, str), "group": np.int64}
        raw = {n: np.asarray(getattr(self, n), dtype=types.get(n, float)) for n in _COLUMNS}
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
        self._require(np.isfinite(self.offset) & (self.offset <= 0), "offset must be <= 0, in s, before the analysis")
        self._require(self.group >= 0, "group must be a whole number >= 0")
        self._require((self.length > 0) & (self.height > 0), "length and height must be > 0, in m, or inf for none")

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
        view = self.view
        if view is not None and view.shift is not None:
            view = replace(view, shift=view.shift[:, which])
        return replace(self, view=view, **{n: getattr(self, n)[which] for n in _COLUMNS})

    @property
    def primary(self) -> np.ndarray:
        """Variables of the state, (observation,): the observed ones, and for a derived one its first input."""
        first = {d.name: d.inputs[0] for d in self.derived}
        return np.asarray([first.get(str(n), str(n)) for n in self.variable], dtype=str)

    @property
    def times(self) -> list[cftime.datetime]:
        """When each was taken, (observation,)."""
        return [self.time + timedelta(seconds=float(s)) for s in self.offset]

    @classmethod
    def concat(cls, parts: Sequence[Observations]) -> Observations:
        """All observations of one time in one; raises ObservationError for none, or for different times."""
        times = {p.time for p in parts}
        if len(times) != 1:
            raise ObservationError(f"wanted observations of one time, got {sorted(map(str, times)) or 'none at all'}")
        if any(p.view is not None for p in parts):
            raise ObservationError("observations are joined before an analysis sees them; some have a view already")
        joined: dict[str, Any] = {n: np.concatenate([getattr(p, n) for p in parts]) for n in _COLUMNS}
        joined["group"] = _apart([p.group for p in parts])
        return cls(time=parts[0].time, derived=tuple(dict.fromkeys(d for p in parts for d in p.derived)), **joined)

    @classmethod
    def from_table(
        cls, time: cftime.datetime, table: Mapping[Any, Any], derived: tuple[Derived, ...] = ()
    ) -> Observations:
        """Observations from columns: a dict of arrays, a pandas DataFrame, or what `to_dataset` returned.

        Args:
            time: when they are valid.
            table: columns `variable`, `lat`, `lon`, `value`, `error`, and optionally `depth` (m, default 0),
                `kind`, `offset` (s), `group`, `length` and `height` (m); a scalar stands for all rows.
            derived: definitions of observed quantities that are no variables of the state.

        Raises ObservationError if a column is missing or malformed.
        """
        columns = {"depth": 0.0, "kind": "", **_OPTIONAL, **{n: table[n] for n in _COLUMNS if n in table}}
        missing = [n for n in _COLUMNS if n not in columns]
        if missing:
            raise ObservationError(
                f"the table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, table))}"
            )
        arrays: dict[str, Any] = {n: np.asarray(columns[n]) for n in _COLUMNS}
        return cls(time=time, derived=derived, **arrays)

    def to_dataset(self) -> xr.Dataset:
        """A Dataset along `observation`, with time, positions, variable and kind as coordinates."""
        columns = {n: ("observation", getattr(self, n), ATTRIBUTES[n]) for n in _COLUMNS}
        places = ["lat", "lon", "depth", *_TEXT, *_OPTIONAL]
        return xr.Dataset(columns, coords={"time": self.time}).set_coords(places)


def _apart(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Group numbers of several tables joined, so that those of one are not those of another."""
    above, out = 0, []
    for group in groups:
        out.append(np.where(group > 0, group + above, 0))
        above += int(group.max(initial=0))
    return np.concatenate(out)
