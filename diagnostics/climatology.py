"""The annual cycle, and what is left without it.

    x(t) = a₀ + a₁ cos(2πφ) + b₁ sin(2πφ) + x'(t),      φ = position in the calendar year

Variances, correlations and skill are about x': an annual cycle left in hides a collapse of everything else
(a true variance ratio of 0.25 shows as 0.92 under a cycle four times as large).
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from .conventions import matched
from .coordinates import check_along
from .heat import elapsed_seconds

HARMONICS = ["mean", "cosine", "sine"]


def year_fraction(time: xr.DataArray) -> xr.DataArray:
    """Position of cftime dates in their calendar year, 0 to 1, (time,)."""

    def fraction(date: object) -> float:
        start = date.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0)  # type: ignore[attr-defined]
        return float((date - start) / (start.replace(year=start.year + 1) - start))

    return xr.DataArray([fraction(t) for t in time.values], dims=time.dims, coords={time.name: time})


def annual_cycle(field: xr.DataArray) -> xr.DataArray:
    """Least-squares mean, cosine and sine of the annual cycle, `(harmonic, ...)` in the field's units.

    Args:
        field: `(time, ...)` with cftime dates; lazy in, lazy out; float64 sums. NaN anywhere in time gives NaN.

    Raises ValueError for fewer than three times.
    """
    check_along(field, "time", 3, "an annual cycle")
    elapsed_seconds(field["time"])  # says what is wrong with numbers
    basis = _basis(field["time"])
    solve = np.linalg.pinv(basis.transpose("time", "harmonic").values)
    weights = xr.DataArray(solve, dims=("harmonic", "time"), coords={"harmonic": HARMONICS})
    plain = field.astype("float64").drop_vars("time")
    cycle = (plain * weights).sum("time", skipna=False)
    return cycle.transpose("harmonic", ...).assign_attrs(field.attrs)


def anomaly(field: xr.DataArray, cycle: xr.DataArray | None = None) -> xr.DataArray:
    """The field without its annual cycle: its own, or a given one such as that of a long control run.

    Args:
        field: `(time, ...)`.
        cycle: `(harmonic, ...)` from `annual_cycle`; default the field's own.

    Raises ValueError for a cycle of other places: xarray alone would keep what both have.
    """
    check_along(field, "time", 1, "an anomaly")
    cycle = annual_cycle(field) if cycle is None else matched(field, cycle)
    season = (cycle * _basis(field["time"])).sum("harmonic", skipna=False)
    return (field - season).transpose(*field.dims).assign_attrs(field.attrs)


def _basis(time: xr.DataArray) -> xr.DataArray:
    phase = 2 * np.pi * year_fraction(time).values
    values = np.stack([np.ones_like(phase), np.cos(phase), np.sin(phase)])
    return xr.DataArray(values, dims=("harmonic", "time"), coords={"harmonic": HARMONICS, "time": time})
