"""The annual cycle against one that is known, and the trap that it is there for."""

from __future__ import annotations

from datetime import timedelta

import cftime
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import annual_cycle, anomaly, variance_ratio
from polynya.diagnostics.climatology import year_fraction

START = cftime.DatetimeNoLeap(3, 1, 1)


def series(years: int, cycle: float, noise: float, seed: int = 0) -> xr.DataArray:
    times = np.array([START + k * timedelta(days=5) for k in range(73 * years)], dtype=object)
    phase = 2 * np.pi * np.arange(len(times)) / 73
    values = (
        4.0 + cycle * np.cos(phase)[:, None] + noise * np.random.default_rng(seed).standard_normal((len(times), 40))
    )
    return xr.DataArray(values, dims=("time", "x"), coords={"time": times}, attrs={"units": "degC"}, name="tos")


def test_a_known_cycle_is_recovered() -> None:
    found = annual_cycle(series(3, 2.0, 0.0))
    assert found.dims == ("harmonic", "x") and found.attrs["units"] == "degC"
    assert np.allclose(found.sel(harmonic="mean"), 4.0)
    assert np.allclose(found.sel(harmonic="cosine"), 2.0)
    assert np.allclose(found.sel(harmonic="sine"), 0.0, atol=1e-12)
    assert float(abs(anomaly(series(3, 2.0, 0.0))).max()) < 1e-12


def test_lazy_in_lazy_out_and_the_same_numbers() -> None:
    field = series(2, 1.0, 0.5)
    lazy = anomaly(field.chunk(time=20, x=7))
    assert lazy.chunks is not None
    assert np.allclose(lazy.compute(), anomaly(field), atol=1e-12)


def test_a_collapse_hidden_under_the_cycle_is_uncovered() -> None:
    truth, model = series(10, 4.0, 1.0, 1), series(10, 4.0, 0.5, 2)
    raw = float(variance_ratio(model, truth, over=("x",)))
    cleared = float(variance_ratio(anomaly(model), anomaly(truth), over=("x",)))
    assert raw > 0.85
    assert cleared == pytest.approx(0.25, rel=0.05)


def test_a_given_cycle_is_used() -> None:
    long, short = series(20, 3.0, 0.2, 1), series(1, 3.0, 0.2, 2)
    assert float(anomaly(short, annual_cycle(long)).std()) == pytest.approx(0.2, rel=0.1)


def test_dates_and_refusals() -> None:
    julian = xr.DataArray([cftime.DatetimeJulian(1976, 7, 1, 12)], dims="time", name="time")
    assert float(year_fraction(julian)[0]) == pytest.approx(182.5 / 366)
    with pytest.raises(ValueError, match="three values along 'time', got 2"):
        annual_cycle(series(1, 1.0, 0.0).isel(time=slice(0, 2)))
