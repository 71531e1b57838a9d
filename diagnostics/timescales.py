"""How fast things vary: spectra in time and autocorrelations of a region.

    S(f) = 2 dt |FFT(w a)|^2 / sum w^2,      a detrended, w the periodic Hann window, sum S df = variance
    r(l) = sum_x c_x(l) / sum_x c_x(0),      c_x(l) = 1/n sum_t a_x(t) a_x(t + l)

The autocorrelation of a region is weighted by variance: covariances are summed over the cells before the quotient,
so a quiet cell counts little. The estimator is biased (1/n at all lags), which keeps it positive definite.
Dheeshjith et al. 2025, Geophys. Res. Lett.; arXiv:2606.02610.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.fft
import xarray as xr

from .conventions import described, horizontal_dims
from .coordinates import check_along
from .heat import elapsed_seconds

_Array = np.ndarray[Any, Any]

DAYS_PER_YEAR = 365.25
_CELLS_AT_ONCE = 4096  # bounds the transforms to some tens of MB
_UNEVEN = 0.25  # a six-day step in leap years among steps of five is even enough


def time_step(time: xr.DataArray) -> float:
    """Mean distance in days between records; ValueError if one differs from it by more than a quarter, or for one."""
    if time.size < 2:
        raise ValueError(f"a time step needs two times, got {time.size}")
    steps = np.diff(elapsed_seconds(time)) / 86400
    step = float(steps.mean())
    if np.abs(steps - step).max() > _UNEVEN * step:
        raise ValueError(
            f"spectra and lags need even steps, got {steps.min():g} to {steps.max():g} days: select a part without "
            "gaps, or interpolate"
        )
    return step


def _periodogram(x: _Array, *, step: float) -> _Array:
    """One-sided power density (…, frequency) of x (…, time), detrended and windowed."""
    n = x.shape[-1]
    tau = np.linspace(-1, 1, n)
    flat = x.reshape(-1, n)
    window = np.sin(np.pi * np.arange(n) / n) ** 2
    out = np.empty((len(flat), n // 2 + 1))
    for first in range(0, len(flat), _CELLS_AT_ONCE):
        part = flat[first : first + _CELLS_AT_ONCE].astype("f8")
        part = part - part.mean(-1, keepdims=True)
        part = part - (part @ tau / (tau @ tau))[:, None] * tau
        modes = scipy.fft.rfft(part * window)
        out[first : first + _CELLS_AT_ONCE] = (modes.real**2 + modes.imag**2) * step / (window @ window)
    out[:, 1 : (n + 1) // 2] *= 2  # all but the mean and, for even n, the Nyquist frequency stand for two
    return out.reshape(*x.shape[:-1], -1)


def temporal_spectrum(field: xr.DataArray, *, dim: str = "time") -> xr.DataArray:
    """Power spectral density in time over the whole record, linearly detrended, Hann window.

    `field` (…, time, …) with dates at even steps; give it `deseasoned` anomalies. Returns (…, frequency) in units^2
    year, float64, lazy for lazy input, one-sided, window-corrected (sum S df = variance), frequency in cycles per
    year of 365.25 days; NaN where a record is. Raises ValueError for uneven steps and fewer than four records.
    """
    check_along(field, dim, 4, "a spectrum")
    step = time_step(field[dim]) / DAYS_PER_YEAR
    whole = field.chunk({d: -1 if d == dim else "auto" for d in field.dims}) if field.chunks else field
    frequency = scipy.fft.rfftfreq(field.sizes[dim], step)
    result: xr.DataArray = xr.apply_ufunc(
        _periodogram,
        whole,
        kwargs={"step": step},
        input_core_dims=[[dim]],
        output_core_dims=[["frequency"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"frequency": frequency.size}},
    )
    attrs = {"units": "year-1", "long_name": "frequency in cycles per year of 365.25 days"}
    result = result.assign_coords(frequency=("frequency", frequency, attrs))
    name = f"power spectral density in time of {field.attrs.get('long_name', field.name)}"
    units = f"({field.attrs.get('units', '?')})2 year"
    return described(result, "temporal_spectrum", units=units, long_name=name, detrend="linear", window="hann")


def _autocorrelation(x: _Array, *, lags: int, cells: int) -> _Array:
    """Variance-weighted autocorrelation (…, lag) of x (…, cells…, time) over the last `cells` + 1 axes."""
    n = x.shape[-1]
    outer = x.shape[: x.ndim - 1 - cells]
    flat = x.reshape(int(np.prod(outer)), -1, n)
    size = scipy.fft.next_fast_len(2 * n - 1, real=True)
    out = np.zeros((len(flat), lags))
    for i, series in enumerate(flat):
        for first in range(0, len(series), _CELLS_AT_ONCE):
            part = series[first : first + _CELLS_AT_ONCE].astype("f8")
            part = part[np.isfinite(part).all(-1)]
            modes = scipy.fft.rfft(part - part.mean(-1, keepdims=True), size)
            out[i] += scipy.fft.irfft((modes.real**2 + modes.imag**2).sum(0), size)[:lags] / n
    with np.errstate(invalid="ignore"):
        return (out / out[:, :1]).reshape(*outer, lags)


def autocorrelation(
    field: xr.DataArray, *, years: float = 5.0, over: Iterable[str] | None = None, dim: str = "time"
) -> xr.DataArray:
    """Autocorrelation in time of a region, its cells weighted by their variance.

    `field` (…, time, lat|y, lon|x) with dates at even steps, NaN on land, such as a box of `deseasoned` anomalies;
    `years`, the longest lag; `over`, the dimensions of the cells, by default the horizontal ones, `()` for each
    cell alone. Returns (…, lag), dimensionless, lag in days, float64, lazy for lazy input. Cells with a gap in time
    are left out; NaN if nothing varies. Raises ValueError for uneven steps. Definition: see the module.
    """
    check_along(field, dim, 2, "an autocorrelation")
    step = time_step(field[dim])
    cells = list(horizontal_dims(field)) if over is None else list(over)
    lags = min(int(years * DAYS_PER_YEAR / step + 1e-6), field.sizes[dim] - 1) + 1
    core = [*cells, dim]
    whole = field.chunk(dict.fromkeys(core, -1)) if field.chunks else field
    result: xr.DataArray = xr.apply_ufunc(
        _autocorrelation,
        whole,
        kwargs={"lags": lags, "cells": len(cells)},
        input_core_dims=[core],
        output_core_dims=[["lag"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"lag": lags}},
    )
    result = result.assign_coords(lag=("lag", np.arange(lags) * step, {"units": "days", "long_name": "lag"}))
    name = f"autocorrelation of {field.attrs.get('long_name', field.name)}"
    return described(result, "autocorrelation", units="1", long_name=name, estimator="biased, variance-weighted")
