"""What varies: day-of-year anomalies, detrended series, temporal variance, eddy kinetic energy.

    x'(t) = x(t) - mean of x over the records with the day of year of t                   (Samudra papers)
    EKE   = <u''^2 + v''^2> / 2,      u'' = u - <u> about the mean of all records

A day-of-year climatology of n years takes 1/n of the variance with it, and all of it where a day of year occurs
once: a leap year moves the records after 29 February to other days of the year. So records that are alone are
counted, and where they are many the choice is explicit. Harmonic climatologies, which need no second year, are in
`climatology`. Dheeshjith et al. 2025, Geophys. Res. Lett.; arXiv:2606.02610.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .conventions import bare, check_units, described, matched
from .coordinates import check_along
from .heat import elapsed_seconds

_Array = np.ndarray[Any, Any]

CLIMATOLOGIES = ("auto", "day of year", "time mean")
MOST_ALONE = 0.25
"""Largest part of the records that may be the only ones of their day of year."""


class ClimatologyError(ValueError):
    """A record too short for a day-of-year climatology."""


def day_of_year(time: xr.DataArray) -> _Array:
    """Day of the year of each date, 1 to 366, in the calendar of `time` (time), cftime or datetime64."""
    elapsed_seconds(time)  # says what is wrong with numbers
    return np.asarray(time.dt.dayofyear)


def alone(labels: _Array) -> _Array:
    """Which labels (time) occur once, boolean."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] == 1)


def climatology_labels(time: xr.DataArray, climatology: str = "auto") -> tuple[_Array, str]:
    """The class of each record whose mean is removed, integers (time), and the climatology used.

    `climatology` "day of year"; "time mean", one class for all; or "auto": the first, unless more than a quarter of
    the records are the only ones of their day of year (less than two years, or one leap year among few), whose
    anomalies would be exactly 0. Raises ClimatologyError for "day of year" in that case, ValueError for other words.
    """
    if climatology not in CLIMATOLOGIES:
        raise ValueError(f"climatology must be one of {[*CLIMATOLOGIES]}, got {climatology!r}")
    days = day_of_year(time)
    lonely = float(alone(days).mean())
    if climatology == "time mean" or (climatology == "auto" and lonely > MOST_ALONE):
        return np.zeros(days.size, dtype=int), "time mean"
    if lonely > MOST_ALONE:
        raise ClimatologyError(
            f"a day-of-year climatology needs days of the year that recur, but {lonely:.0%} of the {days.size} records "
            "are the only ones of theirs and their anomalies would be 0: give two years or more, or "
            "climatology='time mean'"
        )
    return days, "day of year"


def without_class_means(x: _Array, labels: _Array) -> _Array:
    """x (…, time) minus the mean of its class, float64; NaN in a class makes all of it NaN."""
    order = np.argsort(labels, kind="stable")
    _, starts, inverse, counts = np.unique(labels[order], return_index=True, return_inverse=True, return_counts=True)
    out = x[..., order].astype("f8")
    means = np.add.reduceat(out, starts, axis=-1) / counts
    out -= means[..., inverse]
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return np.asarray(out[..., back])


def deseasoned(field: xr.DataArray, *, climatology: str = "day of year", dim: str = "time") -> xr.DataArray:
    """Anomalies from the mean over all records with the same day of the year.

    `field` (…, time, …) with dates of any calendar; `climatology` "day of year", "time mean" (all records), or
    "auto" to choose by the length of the record, see `climatology_labels`. Returns the same dimensions in float64,
    lazy for lazy input, with the choice in attrs. Raises ClimatologyError where anomalies would be 0 by construction.
    Definition: Samudra papers, see the module.
    """
    check_along(field, dim, 1, "a climatology")
    labels, used = climatology_labels(field[dim], climatology)
    whole = field.chunk({d: -1 if d == dim else "auto" for d in field.dims}) if field.chunks else field
    result: xr.DataArray = xr.apply_ufunc(
        without_class_means,
        whole,
        kwargs={"labels": labels},
        input_core_dims=[[dim]],
        output_core_dims=[[dim]],
        dask="parallelized",
        output_dtypes=["f8"],
    )
    return described(result.transpose(*field.dims), field.name, **{**field.attrs, "climatology": used})


def detrended(field: xr.DataArray, *, dim: str = "time") -> xr.DataArray:
    """The field without its least-squares line in time, and so without its mean.

    `field` (…, time, …) with dates; returns the same dimensions in float64, lazy for lazy input. Raises ValueError
    for fewer than three times, which a line fits exactly or nearly.
    """
    check_along(field, dim, 3, "detrending")
    seconds = elapsed_seconds(field[dim])
    tau = xr.DataArray((seconds - seconds.mean()) / np.ptp(seconds), dims=dim)
    x = bare(field).astype("f8").drop_vars(dim)
    x = x - x.mean(dim, skipna=False)
    slope = (x * tau).sum(dim, skipna=False) / float((tau**2).sum())
    left = (x - slope * tau).transpose(*field.dims).assign_coords(field.coords)
    return described(left, field.name, **field.attrs)


def temporal_variance(field: xr.DataArray, *, dim: str = "time") -> xr.DataArray:
    """Variance along time about the mean of all records (divided by n), (…), in the field's units squared.

    Lazy for lazy input, float64, NaN where any record is NaN. Give it `deseasoned` anomalies for the maps of the
    Samudra papers. Raises ValueError for fewer than two records.
    """
    if field.sizes.get(dim, 0) < 2:
        raise ValueError(f"a variance needs two values along {dim!r}, got dimensions {dict(field.sizes)}")
    variance = field.astype("f8").var(dim, ddof=0, skipna=False)
    units = {"units": f"({field.attrs['units']})2"} if "units" in field.attrs else {}
    name = f"variance along {dim} of {field.attrs.get('long_name', field.name)}"
    return described(variance, "variance", **units, long_name=name, cell_methods=f"{dim}: variance")


def eddy_kinetic_energy(uo: xr.DataArray, vo: xr.DataArray, *, dim: str = "time") -> xr.DataArray:
    """Eddy kinetic energy per mass, half the variance of the velocity about its time mean.

    `uo`, `vo` (…, time, …) in m s-1 at the same places; returns (…) in m2 s-2, float64, lazy for lazy input. The
    window of the mean is the record. Raises ValueError for other units, other places, fewer than two records.
    """
    for velocity in (uo, vo):
        check_units(velocity, "m s-1")
    first, second = (temporal_variance(x, dim=dim) for x in (uo, matched(uo, vo)))
    name = "eddy kinetic energy about the time mean"
    return described((first + bare(second)) / 2, "eke", units="m2 s-2", long_name=name, cell_methods=f"{dim}: mean")
