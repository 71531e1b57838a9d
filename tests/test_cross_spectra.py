"""Co-spectra against Parseval and spectra of sums, coherence against scipy and planted relations."""

import dask
import numpy as np
import pytest
import scipy.signal
import xarray as xr

from polynya.diagnostics import (
    cross_spectrum,
    isotropic_spectrum,
    spectral_slope,
    spectral_slope_error,
    temporal_coherence,
)


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def maps(*shape, seed=0):
    values = np.random.default_rng(seed).normal(15, 1, shape)
    return xr.DataArray(values, dims=("member", "time", "y", "x")[-len(shape) :], name="zos", attrs={"units": "m"})


OPTIONS = {"spacing": (8e3, 1e4)}


def test_cospectrum_sums_to_the_covariance():
    a, b = maps(3, 32, 41), maps(3, 32, 41, seed=1) + 0.5 * maps(3, 32, 41)
    found = cross_spectrum(a, b, over=(), detrend="constant", window=None, truncate=False, **OPTIONS)
    total = found.cospectrum.sum("wavenumber") * found.cospectrum.attrs["ring_width"]
    expected = ((a - a.mean(("y", "x"))) * (b - b.mean(("y", "x")))).mean(("y", "x"))
    np.testing.assert_allclose(total, expected, rtol=1e-11)


@pytest.mark.parametrize("land", ["refuse", "taper"])
def test_cospectrum_is_half_of_what_the_spectrum_of_a_sum_has_more(land):
    a, b = maps(4, 48, 40), maps(4, 48, 40, seed=1)
    if land == "taper":
        a[:, :9, :9] = np.nan
        b = b.where(a.notnull())
    found = cross_spectrum(a, b, over=(), land=land, **OPTIONS).cospectrum
    parts = [isotropic_spectrum(f, land=land, **OPTIONS) for f in (a + b, a, b)]
    scale = float(abs(found).max())
    np.testing.assert_allclose(found, (parts[0] - parts[1] - parts[2]) / 2, atol=1e-10 * scale)


def test_correlation_of_a_field_with_itself_and_with_noise():
    a, b = maps(40, 32, 32), maps(40, 32, 32, seed=1)
    assert np.allclose(cross_spectrum(a, -2 * a, **OPTIONS).correlation, -1)
    mixed = cross_spectrum(a, 0.6 * a + 0.8 * b, **OPTIONS)
    np.testing.assert_allclose(mixed.correlation[2:], 0.6, atol=0.08)
    np.testing.assert_allclose(mixed.coherence, mixed.correlation**2)
    assert mixed.cospectrum.attrs["units"] == "(m) (m) m"


def dated(values):
    time = xr.date_range("2001-01-03", periods=values.shape[0], freq="5D", calendar="noleap", use_cftime=True)
    return xr.DataArray(values, dims=("time", "x")[: values.ndim], coords={"time": time}, name="a")


def test_coherence_equals_scipy_and_finds_a_lag():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2003, 3))
    a, b = noise[3:], noise[:-3] + 0.1 * rng.normal(size=(2000, 3))  # b follows a by three records
    found = temporal_coherence(dated(a), dated(b), segment=200)
    frequency, expected = scipy.signal.coherence(a, b, fs=365.25 / 5, nperseg=200, detrend="linear", axis=0)
    np.testing.assert_allclose(found.frequency, frequency)
    np.testing.assert_allclose(found.coherence.T[1:], expected[1:], rtol=1e-9)
    low = found.phase.isel(frequency=slice(2, 12))
    lag = -low / (2 * np.pi * low.frequency) * 365.25 / 5
    assert lag.mean().item() == pytest.approx(3, abs=0.1)


def test_independent_series_seldom_exceed_the_level():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 1000, 60))
    found = temporal_coherence(dated(a), dated(b), segment=100)
    share = float((found.coherence[:, 2:-2] > found.attrs["significant"]).mean())
    assert 0.03 < share < 0.07


def test_error_of_a_slope_is_its_scatter():
    k = np.arange(60) * 1e-6
    rng = np.random.default_rng(0)
    log_e = -2.5 * np.log(np.maximum(k, 1e-9)) + 0.3 * rng.normal(size=(4000, 60))
    spectrum = xr.DataArray(np.exp(log_e), dims=("case", "wavenumber"), coords={"wavenumber": k})
    slopes, errors = (f(spectrum, band=(5e-6, 4e-5)) for f in (spectral_slope, spectral_slope_error))
    assert errors.mean().item() == pytest.approx(slopes.std().item(), rel=0.05)
    with pytest.raises(ValueError, match="four rings"):
        spectral_slope_error(spectrum, band=(1e-6, 3e-6))


def test_errors_say_what_is_wrong():
    a = dated(np.zeros((30, 2)))
    with pytest.raises(ValueError, match="4 to 15 of the 30"):
        temporal_coherence(a, a, segment=20)
    with pytest.raises(ValueError, match="share"):
        cross_spectrum(maps(8, 8), maps(8, 7), **OPTIONS)
    with pytest.raises(ValueError, match="land must be one of"):
        cross_spectrum(maps(8, 8), maps(8, 8), land="zero", **OPTIONS)


@pytest.mark.parametrize("chunks", [{"time": 1}, {"y": 7, "x": 5}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    a, b = maps(6, 24, 20), maps(6, 24, 20, seed=1)
    series = dated(np.random.default_rng(0).normal(size=(80, 4)))
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = cross_spectrum(a.chunk(chunks), b, **OPTIONS)
        slow = temporal_coherence(series.chunk(time=9, x=2), series.chunk(x=1), segment=20)
    xr.testing.assert_allclose(lazy.compute(), cross_spectrum(a, b, **OPTIONS))
    xr.testing.assert_allclose(slow.compute(), temporal_coherence(series, series, segment=20))
