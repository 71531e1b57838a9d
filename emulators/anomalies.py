"""Heat-flux anomalies: hfds minus its day-of-year climatology, read from a file or made from the record itself.

    a(t, y, x) = f(t, y, x) - mean of f over all records with t's day of the year

The climatology of the published models is that of the whole record they were trained on. A store that holds
part of that record would give other anomalies, so the climatology can be saved (`statistics_of`) and given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .names import attributes
from .stores import SourceError

_YEAR = {"noleap": 365, "365_day": 365, "360_day": 360}
_NEAR = 3  # days: how far leap years and the start of a record may shift the records' days


class DayMeans:
    """Mean flux of each day of the year (y, x), each read or computed when first wanted, then kept.

    What is kept grows to the size of the climatology, not of the record.
    """

    def __init__(self, days: Iterable[int], read: Callable[[int], NDArray[np.float32]]) -> None:
        self.days = sorted(set(map(int, days)))
        self._read, self._kept, self._lock = read, dict[int, NDArray[np.float32]](), Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"days": self.days, "_read": self._read}  # what is kept stays here

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state | {"_kept": {}, "_lock": Lock()}

    def __call__(self, day: int) -> NDArray[np.float32]:
        """The mean flux of a day of the year."""
        with self._lock:
            if day not in self._kept:
                self._kept[day] = self._read(day)
            return self._kept[day]


def means_of(flux: xr.DataArray) -> DayMeans:
    """The climatology of a record ([member], time, ...), over all its records and members.

    Added up in float32 in order of time, as the original does: the anomalies are the same to the bit.
    """
    days = flux["time"].dt.dayofyear.values

    def read(day: int) -> NDArray[np.float32]:
        total = count = None
        for k in np.flatnonzero(days == day):
            record = flux.isel(time=int(k))
            record = record if "member" in record.dims else record.expand_dims("member")
            for values in record.transpose("member", ...).compute(scheduler="synchronous").values:
                wet = ~np.isnan(values)
                total = np.where(wet, values, 0) + (0 if total is None else total)
                count = wet + (np.zeros(wet.shape, int) if count is None else count)
        assert total is not None and count is not None
        with np.errstate(invalid="ignore"):
            return np.asarray(total / count, dtype=total.dtype)

    return DayMeans(days, read)


def means_from(climatology: xr.DataArray, name: str) -> DayMeans:
    """A saved climatology (dayofyear, y, x), read day by day. Raises SourceError if it has no days."""
    if "dayofyear" not in climatology.dims or "dayofyear" not in climatology.coords:
        raise SourceError(
            f"{name}: wanted hfds_climatology (dayofyear, y, x) with the days as a coordinate, got "
            f"{climatology.dims}; make it with `statistics_of(store)`"
        )
    days = climatology["dayofyear"].values.tolist()
    ordered = climatology.transpose("dayofyear", ...)
    return DayMeans(days, lambda day: ordered.isel(dayofyear=days.index(day)).compute(scheduler="synchronous").values)


def anomalies(flux: xr.DataArray, means: DayMeans, name: str = "the store") -> xr.DataArray:
    """Flux minus the mean of its day of the year, or of the nearest day within three; lazy in, lazy out.

    Args:
        flux: ([member], time, y, x), W m-2.
        means: the climatology.
        name: of the store, for messages.

    Raises SourceError, naming the date, for a day that has no other near it in the climatology.
    """
    days = xr.DataArray(_known_days(flux["time"], means, name), dims="time")

    def subtract(values: NDArray[np.float32], day: NDArray[np.int64]) -> NDArray[np.float32]:
        mean = [means(d) for d in day.ravel().tolist()]
        return values - np.stack(mean) if mean else values

    ordered = flux.transpose(..., "time", *[d for d in flux.dims if d not in ("time", "member")])
    across = [d for d in ordered.dims if d not in ("time", "member")]
    if ordered.chunks is not None:
        ordered = ordered.chunk(dict.fromkeys(across, -1))
    found: xr.DataArray = xr.apply_ufunc(
        subtract,
        ordered,
        days,
        input_core_dims=[across, []],
        output_core_dims=[across],
        dask="parallelized",
        output_dtypes=[flux.dtype],
    )
    return found.assign_attrs(attributes("hfds_anomalies"))


def _known_days(time: xr.DataArray, means: DayMeans, name: str) -> list[int]:
    """For every record the day of the climatology to use: its own, or the nearest within three days."""
    days, known = time.dt.dayofyear.values.tolist(), np.array(means.days)
    year = _YEAR.get(time.values[0].calendar, 366) if len(days) else 366
    chosen: dict[int, int] = {}
    for date, day in zip(time.values, days, strict=True):
        if day in chosen:
            continue
        apart = np.abs(known - day)
        apart = np.minimum(apart, year - apart)  # the year is a circle
        if apart.min() > _NEAR:
            raise SourceError(
                f"{name}: no climatology of hfds for {date}: day {day} of the year is not among its {len(known)} days "
                f"({known[0]} to {known[-1]}), nor is one within {_NEAR} days; give a climatology of whole years"
            )
        chosen[day] = int(known[apart.argmin()])
    return [chosen[d] for d in days]
