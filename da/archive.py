"""The store of an assimilation experiment: one Zarr group.

    store.zarr/
      background/, analysis/     what `record` writes: (member, time, [lev], y, x), each opened with `open_store`
      observations/              one row per observation: what, where, used or why not, background and analysis there
      cycles/                    one row per cycle: counts, inflation, error and spread where the truth is known

A commit writes rows and backgrounds first, then the analysis block with the state to go on from. The number of cycles
in that block is what counts; whatever lies beyond is cut off and written again, in the same bits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from ..emulators import SourceError, StoreExistsError, open_store
from ..ensembles.durable import Durable
from ..ensembles.recording import TIME_UNITS, differences

_TEXT = ("variable", "kind", "reason")  # columns of numbers that stand for labels


class OtherExperimentError(ValueError):
    """The store at the path is of another experiment; nothing was touched."""


@dataclass(frozen=True, eq=False)
class Assimilation:
    """An assimilation experiment that was recorded, opened lazily.

    Attributes:
        path: of the store.
        title: of the store.
        background: ensembles before each analysis, (member, time, [lev], y, x).
        analysis: the initial ensemble and every analysis, likewise.
        observations: one row per observation along `observation`: `cycle`, `time`, position, `variable`, `kind`,
            `value`, `error` (as used), `reason` ("" if it was used), and mean and standard deviation over members of
            what the ensemble has there, `background`, `background_spread`, `analysis`, `analysis_spread`, in the unit
            of the variable.
        cycles: along `time`: numbers of observations `given` and `used`; with a truth `error` and `spread`
            (state, time, channel), root mean squares over area, `state` being background or analysis; with adaptive
            inflation `inflation` (time, y, x), of variances.
        provenance: how it was made.
    """

    path: Path
    title: str
    background: xr.Dataset
    analysis: xr.Dataset
    observations: xr.Dataset
    cycles: xr.Dataset
    provenance: dict[str, Any]

    def departures(self) -> xr.Dataset:
        """Statistics of observations minus background and analysis over all cycles, along `type`.

        Returns, with coordinates `kind` and `variable` and in the unit of the variable: `given` and `used`, numbers;
        `mean` and `rms` of the departures d from the background, `expected` = sqrt(mean(spread² + error²)), which a
        tuned filter has for `rms`; `analysis_rms`; and what Desroziers et al. (2005, doi:10.1256/qj.05.108, eq. 2, 3)
        make of both, `error` = sqrt(E[d_a d_b]) of the observations and `background_error` =
        sqrt(E[(H x_a - H x_b) d_b]), NaN where it is the root of a negative number.
        """
        data = self.observations
        columns = ("kind", "variable", "value", "error", "reason", "background", "background_spread", "analysis")
        table = pd.DataFrame({n: np.asarray(data[n].values) for n in columns})
        used = table[table.reason == ""]
        ahead, behind = used.value - used.background, used.value - used.analysis
        numbers = pd.DataFrame(
            {
                "kind": used.kind,
                "variable": used.variable,
                "mean": ahead,
                "rms": ahead**2,
                "expected": used.background_spread**2 + used.error**2,
                "analysis_rms": behind**2,
                "error": behind * ahead,
                "background_error": (ahead - behind) * ahead,
            }
        )
        keys = ["kind", "variable"]
        means = numbers.groupby(keys).mean()
        for name in ("rms", "expected", "analysis_rms", "error", "background_error"):
            means[name] = np.sqrt(means[name].where(means[name] >= 0))
        counts = table.assign(used=table.reason == "").groupby(keys).used.agg(given="size", used="sum")
        joined = counts.join(means).reset_index()
        out = xr.Dataset({n: ("type", joined[n].to_numpy()) for n in joined.columns})
        return out.set_coords(keys)


def open_assimilation(path: str | Path) -> Assimilation:
    """Open the store of an experiment; raises FileNotFoundError if there is none, SourceError if it was cut short."""
    path = Path(path)
    if not (path / "cycles" / "zarr.json").exists():
        raise FileNotFoundError(f"{path} is no store of an assimilation experiment; `assimilate` makes one")
    said = zarr.open_group(path, mode="r").attrs
    if said["status"] != "complete":
        raise SourceError(f"{path} is incomplete, the experiment was cut short; finish it with `resume=True`")
    return Assimilation(
        path,
        str(said["title"]),
        open_store(path / "background"),
        open_store(path / "analysis"),
        _opened(path, "observations"),
        _both(_opened(path, "cycles")),
        json.loads(str(said["provenance"])),
    )


def _both(cycles: xr.Dataset) -> xr.Dataset:
    """Scores of background and analysis along one dimension."""
    if "background_error" not in cycles:
        return cycles
    states = xr.Variable("state", ["background", "analysis"])
    for what in ("error", "spread"):
        parts = [cycles[f"{s}_{what}"] for s in states.values]
        cycles[what] = xr.concat(parts, states).assign_attrs(long_name=f"{what}, root mean square over area")
    return cycles.drop_vars([f"{s}_{w}" for s in states.values for w in ("error", "spread")])


def _opened(path: Path, name: str) -> xr.Dataset:
    data = xr.open_zarr(path / name, consolidated=False, decode_times=False, chunks={})
    if "time" in data:
        dates = cftime.num2date(data["time"].values, TIME_UNITS, str(data["time"].attrs["calendar"]))
        data = data.assign_coords(time=(data["time"].dims, np.asarray(dates, dtype=object)))
    for column in _TEXT:
        if column in data and "labels" in data[column].attrs:
            labels = np.asarray(data[column].attrs["labels"], dtype=object)
            data[column] = (data[column].dims, labels[data[column].values])
    opened: xr.Dataset = data.set_coords(
        [n for n in ("variable", "kind", "lat", "lon", "depth", "cycle", "level") if n in data]
    )
    return opened


class Archive:
    """A store of an experiment that is being written.

    Args:
        path: of the store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = Durable(path)
        self.group = zarr.open_group(self.files, mode="r+", use_consolidated=False)

    @classmethod
    def create(cls, path: Path, provenance: Mapping[str, Any], title: str, *, overwrite: bool) -> Archive:
        """A new store without a cycle; an old one is removed first, if that was asked for.

        Raises StoreExistsError.
        """
        if path.exists() and not overwrite:
            raise StoreExistsError(
                f"{path} exists; nothing was written. Choose another path, pass resume=True to go on with an "
                "experiment, or overwrite=True"
            )
        shutil.rmtree(path, ignore_errors=True)
        said: dict[str, Any] = {
            "title": title,
            "provenance": json.dumps(provenance, default=repr),
            "status": "recording",
        }
        root = zarr.open_group(Durable(path), mode="w-", zarr_format=3, attributes=said)
        for name in ("observations", "cycles"):
            root.create_group(name)
        return cls(path)

    def require_same(self, provenance: Mapping[str, Any]) -> None:
        """Raise OtherExperimentError, saying what differs, unless the store is of this experiment."""
        differs = differences(json.loads(str(self.group.attrs["provenance"])), provenance)
        if differs:
            raise OtherExperimentError(
                f"{self.path} is of another experiment; nothing was touched. Choose another path, or make these the "
                "same:\n  " + "\n  ".join(differs)
            )

    def cut(self, table: str, length: int) -> None:
        """Forget the rows of a table beyond a number of them."""
        for _, array in self._table(table).arrays():
            if _grows(array) and array.shape[0] > length:
                array.resize((length, *array.shape[1:]))

    def length(self, table: str) -> int:
        """How many rows a table has."""
        return max((a.shape[0] for _, a in self._table(table).arrays() if _grows(a)), default=0)

    def column(self, table: str, name: str) -> np.ndarray:
        """The values of a column."""
        array = self._table(table)[name]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[...])

    def append(self, table: str, columns: Mapping[str, tuple[np.ndarray, tuple[str, ...], Mapping[str, Any]]]) -> None:
        """Rows more of a table: for each column values (row, ...), names of its dimensions, and attributes.

        A column that is new has no values in the rows before, one that is not given none in these.
        """
        group, first = self._table(table), self.length(table)
        last = first + max((len(values) for values, _, _ in columns.values()), default=0)
        for name, known in group.arrays():
            if _grows(known) and name not in columns:
                known.resize((last, *known.shape[1:]))
        for name, (values, dims, attrs) in columns.items():
            array = group.get(name)
            if not isinstance(array, zarr.Array):
                long = 65536 if values.ndim == 1 else 1
                array = group.create_array(
                    name, shape=(0, *values.shape[1:]), chunks=(long, *values.shape[1:]), dtype=_dtype(name, values),
                    dimension_names=dims, attributes=dict(attrs), fill_value=_fill(name, values),
                )  # fmt: skip
            if name in _TEXT:
                values = _numbered(array, values)
            array.resize((last, *array.shape[1:]))
            array[first:] = values

    def coordinate(self, table: str, name: str, values: np.ndarray, dim: str, attrs: Mapping[str, Any]) -> None:
        """A coordinate of a table that does not grow; nothing if it is there."""
        group = self._table(table)
        if name in group:
            return
        labels = values.dtype.kind in "UO"
        numbers = np.unique(values, return_inverse=True)[1] if labels else values
        said = {**attrs, "fixed": True, **({"labels": np.unique(values).tolist()} if labels else {})}
        array = group.create_array(
            name,
            shape=numbers.shape,
            chunks=numbers.shape,
            dtype=numbers.dtype,
            dimension_names=(dim,),
            attributes=said,
        )
        array[...] = numbers

    def reopen(self) -> None:
        """Say that it is no longer complete, and clear what a killed process left."""
        self._say("recording")
        self.files.sweep()

    def finish(self) -> None:
        """Declare it complete."""
        self.files.sync()
        self._say("complete")

    def _say(self, status: str) -> None:
        self.group.attrs["status"] = status
        self.files.sync()

    def _table(self, name: str) -> zarr.Group:
        group = self.group[name]
        assert isinstance(group, zarr.Group)
        return group


def _grows(array: Any) -> bool:
    return not array.attrs.get("fixed", False)


def _dtype(name: str, values: np.ndarray) -> Any:
    return np.dtype("int16") if name in _TEXT else values.dtype


def _fill(name: str, values: np.ndarray) -> Any:
    return np.nan if name not in _TEXT and values.dtype.kind == "f" else 0


def _numbered(array: zarr.Array[Any], values: np.ndarray) -> np.ndarray:
    """Labels as numbers; new ones are added to those the array knows, before the numbers are written."""
    known = [str(x) for x in array.attrs.get("labels", [])]  # type: ignore[union-attr]
    new = [str(x) for x in np.unique(values) if str(x) not in known]
    if new:
        known += new
        array.attrs["labels"] = known
    numbers = {label: k for k, label in enumerate(known)}
    return np.asarray([numbers[str(v)] for v in values], dtype="int16")
