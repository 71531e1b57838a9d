"""Spectra in time against scipy and xrft, autocorrelations against loops and processes whose own is known."""

import dask
import numpy as np
import pytest
import scipy.signal
import xarray as xr
import xrft

from polynya.diagnostics import autocorrelation, temporal_spectrum
from polynya.diagnostics.timescales import time_step


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def field(values, step=5, calendar="noleap"):
    """Values (time, lat, lon) as a field of temperature."""
    time = xr.date_range("2001-01-03", periods=len(values), freq=f"{step}D", calendar=calendar, use_cftime=True)
    attrs = {"units": "degC", "long_name": "temperature"}
    return xr.DataArray(values, dims=("time", "lat", "lon"), coords={"time": time}, name="thetao", attrs=attrs)


def noise(n=301, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2, 3)).cumsum(0)


@pytest.mark.parametrize("n", [300, 301])
def test_spectrum_equals_scipy(n):
    found = temporal_spectrum(field(noise(n)))
    options = {"fs": 365.25 / 5, "window": "hann", "detrend": "linear", "scaling": "density", "axis": 0}
    frequency, wanted = scipy.signal.periodogram(noise(n), **options)
    np.testing.assert_allclose(found["frequency"], frequency)
    np.testing.assert_allclose(found.transpose("frequency", ...), wanted, rtol=1e-9, atol=1e-12)
    assert found.attrs["units"] == "(degC)2 year"


def test_spectrum_equals_xrft():
    x = field(noise(300))
    plain = x.assign_coords(time=5 / 365.25 * np.arange(300))
    wanted = xrft.power_spectrum(
        plain, dim="time", detrend="linear", window="hann", window_correction=True, real_dim="time"
    )
    found = temporal_spectrum(x)
    np.testing.assert_allclose(found["frequency"], wanted["freq_time"])
    wanted = wanted.transpose(..., "freq_time")
    # Their Nyquist frequency counts for two in some versions.
    np.testing.assert_allclose(found[..., 1:-1], wanted[..., 1:-1], rtol=1e-8)


def test_a_planted_wave_has_its_frequency_and_variance():
    t = np.arange(584)
    wave = 0.7 * np.sin(2 * np.pi * t * 5 / 365.25 * 2.5)
    found = temporal_spectrum(field(np.tile(wave[:, None, None], (1, 1, 2)) + 0.01 * t[:, None, None]))[0, 0]
    peak = float(found["frequency"][np.argmax(found.data)])
    assert abs(peak - 2.5) < 0.13
    variance = float(found.sum() * found["frequency"][1])
    np.testing.assert_allclose(variance, 0.245, rtol=0.02)


def test_step_is_measured_in_the_calendar_and_must_be_even():
    x = field(noise(100))
    assert time_step(x["time"]) == 5
    uneven = x.isel(time=[*range(50), *range(60, 100)])
    for function in (temporal_spectrum, autocorrelation):
        with pytest.raises(ValueError, match="even steps, got 5 to 55 days"):
            function(uneven)
    with pytest.raises(ValueError, match="four values along 'time', got 3"):
        temporal_spectrum(x.isel(time=slice(3)))
    with pytest.raises(ValueError, match="two times, got 1"):
        time_step(x["time"][:1])
    leap = xr.date_range("2004-01-03", periods=80, freq="5D", calendar="julian", use_cftime=True)
    six = [t + (leap[1] - leap[0]) / 5 * (k > 11) for k, t in enumerate(leap)]
    assert 5 < time_step(xr.DataArray(six, dims="time", name="time")) < 5.02


def test_autocorrelation_equals_numpys():
    values = noise(90)
    values[:, 0, 0] = np.nan
    found = autocorrelation(field(values))
    total = np.zeros(90)
    for series in values.reshape(90, -1).T[1:]:
        away = series - series.mean()
        total += np.correlate(away, away, mode="full")[89:]
    np.testing.assert_allclose(found, total / total[0], atol=1e-12)
    np.testing.assert_allclose(found["lag"], 5 * np.arange(90))
    assert found[0] == 1


def test_autocorrelation_is_weighted_by_variance():
    rng = np.random.default_rng(1)
    loud, quiet = rng.normal(size=(2, 400))
    quiet = np.sin(2 * np.pi * np.arange(400) / 20) + 0 * quiet
    pair = np.stack([10 * loud, quiet], axis=-1)[:, None]
    both = autocorrelation(field(pair))
    alone = autocorrelation(field(pair), over=())
    var = pair.var(0)[0]
    np.testing.assert_allclose(both, (alone[0] * var[:, None]).sum("lon") / var.sum(), atol=1e-12)
    np.testing.assert_allclose(alone[0, 1, 20], 0.95, atol=2e-3)  # biased: 1 - 20/400


def test_autocorrelation_of_a_first_order_process():
    rng, phi, n = np.random.default_rng(2), 0.9, 2000
    values = scipy.signal.lfilter([1], [1, -phi], rng.normal(size=(n + 200, 8, 8)), axis=0)[200:]
    found = autocorrelation(field(values), years=0.3)
    assert found.sizes["lag"] == 22
    lag, of_mean = np.arange(22), (1 + phi) / (1 - phi) / n
    # The biased estimator of a series without its mean; sampling error of 64 series: 0.009.
    wanted = (1 - lag / n) * (phi**lag - of_mean) / (1 - of_mean)
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_lags_end_after_five_years():
    found = autocorrelation(field(np.random.default_rng(3).normal(size=(400, 1, 1))))
    assert found.sizes["lag"] == 366
    assert float(found["lag"][-1]) == 1825
    assert np.isnan(autocorrelation(field(np.ones((20, 1, 2))))).all()


@pytest.mark.parametrize("function", [temporal_spectrum, autocorrelation])
def test_lazy_stays_lazy_and_keeps_members(function):
    x = xr.concat([field(noise(80, seed)) for seed in (1, 2)], dim="member")
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = function(x.chunk(time=9, member=1, lon=2))
    whole = function(x)
    np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), whole, atol=1e-12)
    np.testing.assert_allclose(function(x.isel(member=1)), whole.isel(member=1), atol=1e-12)
