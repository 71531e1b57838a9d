"""Maps of the atmosphere at the cells of a grid, read when asked for and checked as they come."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .ice_weights import Weights
from .names import VARIABLES
from .stores import SourceError

__all__ = ["Maps", "around", "part_of_chunk"]

_BYTES = 64e6
# What is possible over an ocean on Earth, in the units of the table: other values are in other units.
_POSSIBLE = {
    "tas": (150.0, 350.0),
    "tdps": (130.0, 350.0),
    "ps": (3e4, 1.2e5),
    "huss": (-1e-3, 0.1),
    "uas": (-120.0, 120.0),
    "vas": (-120.0, 120.0),
}


class Maps:
    """A variable of the atmosphere at the ocean cells of a grid.

    Not a dataclass: dask looks for lazy arrays in those, and would read all that is in them for every block.

    Args:
        name: as in `names`.
        values: (time, lat, lon), unread or not.
        conversion: factor and offset to the table's units.
        weights: from maps to cells.
        begin: date of the first record.
        step: time between records.
        places: latitude and longitude of the cells, degrees (2, cell).
    """

    def __init__(
        self,
        name: str,
        values: xr.Variable,
        conversion: tuple[float, float],
        weights: Weights,
        begin: cftime.datetime,
        step: timedelta,
        places: NDArray[Any],
    ) -> None:
        self.name, self.values, self.conversion, self.weights = name, values, conversion, weights
        self.begin, self.step, self.places = begin, step, places

    def __dask_tokenize__(self) -> str:
        return uuid.uuid4().hex  # dask would read all the values to name what is made of them

    def __call__(self, records: slice) -> NDArray[Any]:
        """The cells of some records, float32 in the table's units (time, cell).

        Raises SourceError for a value that is NaN or impossible, with its place and date.
        """
        part = self.values[records, self.weights.rows, self.weights.columns]
        # On the thread that asks: it is one of a pool already.
        read = np.asarray(part.compute(scheduler="synchronous").values if part.chunks is not None else part.values)
        factor, offset = self.conversion
        cells = self.weights(read)
        cells = cells if (factor, offset) == (1.0, 0.0) else cells.astype(float) * factor + offset
        low, high = _POSSIBLE[self.name]
        good = (cells >= low) & (cells <= high)  # not of NaN
        if not good.all():
            raise self._refused(cells, good, range(len(self.values))[records])
        return cells.astype(np.float32)

    def _refused(self, cells: NDArray[Any], good: NDArray[Any], records: range) -> SourceError:
        bad = (t, c) = tuple(int(k) for k in np.argwhere(~good)[0])
        where = f"{self.begin + records[t] * self.step}, lat {self.places[0, c]:.4g}, lon {self.places[1, c]:.4g}"
        if np.isnan(cells[bad]):
            return SourceError(
                f"{self.name} is NaN in {int(np.isnan(cells).sum())} values over the ocean, the first at {where}; fill "
                "them, or take an atmosphere without holes"
            )
        low, high = _POSSIBLE[self.name]
        units = VARIABLES[self.name].units
        return SourceError(
            f"{self.name}: wanted {low:g} to {high:g} {units} over the ocean, got {cells[bad]:.5g} at {where}; if the "
            "data are in other units, say so in their `units` attribute, or convert them"
        )


def part_of_chunk(maps: Maps) -> int:
    """Records that are best read together: those of one chunk of the store, but not above 64 MB."""
    values = maps.values
    own = values.chunksizes.get("time") or (values.encoding.get("preferred_chunks", {}).get("time", 1),)
    rows, columns = (s.stop - s.start for s in (maps.weights.rows, maps.weights.columns))
    return max(1, min(max(own), int(_BYTES / (rows * columns * values.dtype.itemsize))))


def around(count: int, size: int) -> tuple[int, ...]:
    """Chunks of `size` that make `count`, the last perhaps smaller."""
    whole, rest = divmod(count, size)
    return (size,) * whole + ((rest,) if rest else ())
