"""Ratios of energy by scale against planted losses, and intervals against simulation."""

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import isotropic_spectrum, scale_ratio, variance_ratio

BANDS = {"small": (3e4, 8e4), "large": (2e5, 1e6)}


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def maps(n, seed=0, smooth=False):
    """Fields of a k^-3 spectrum; `smooth` halves the amplitude of waves shorter than 100 km."""
    size, rng = 64, np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(size, 1e4)[:, None], np.fft.fftfreq(size, 1e4))
    amplitude = np.where(k > 0, np.maximum(k, 1e-9) ** -2.0, 0)
    if smooth:
        amplitude = np.where(k > 1e-5, 0.5 * amplitude, amplitude)
    values = np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, size, size))) * amplitude).real
    return xr.DataArray(values / 1e9, dims=("time", "y", "x"), name="zos")


def spectrum(field, **options):
    return isotropic_spectrum(field, spacing=(1e4, 1e4), **options)


def test_a_loss_of_small_scales_is_found_that_the_variance_hides():
    model, truth = maps(40, smooth=True), maps(40, seed=1)
    spectra = [spectrum(f) for f in (model, truth)]
    spectra = [s.mean("time").assign_attrs(s.attrs) for s in spectra]
    found = scale_ratio(*spectra, bands=BANDS, maps=(40, 40))
    assert found.ratio.sel(band="small").item() == pytest.approx(0.25, rel=0.1)
    assert found.collapsed.sel(band="small")
    assert not found.collapsed.sel(band="large")
    assert 0.8 < variance_ratio(model, truth).item() < 1.2


@pytest.mark.parametrize("window", [None, "hann"])
def test_intervals_cover(window):
    # A plane taken off a periodic field leaves a jump at its edge that only a window hides.
    options = {"window": window, "detrend": "linear" if window else "constant"}
    one, other = (spectrum(maps(900, seed), **options) for seed in (1, 5))
    groups = [s.coarsen(time=6).mean() for s in (one, other)]
    for g in groups:
        g.attrs = one.attrs
    found = scale_ratio(groups[0], groups[1], bands={"middle": (5e4, 2e5)}, maps=(6, 6))
    inside = (found.low < 1) & (found.high > 1)
    assert 0.88 < inside.mean().item() <= 1


def test_errors_say_what_is_wrong():
    s = spectrum(maps(2))
    with pytest.raises(ValueError, match="band 'tiny', 1 to 2 m, has no ring"):
        scale_ratio(s, s, bands={"tiny": (1, 2)}, maps=(1, 1))
    with pytest.raises(ValueError, match="other \\['window'\\]"):
        scale_ratio(s, spectrum(maps(2), window=None), bands=BANDS, maps=(1, 1))
    with pytest.raises(ValueError, match="other wavenumbers"):
        scale_ratio(s, isotropic_spectrum(maps(2), spacing=(2e4, 2e4)), bands=BANDS, maps=(1, 1))
    with pytest.raises(ValueError, match="at least"):
        scale_ratio(s, s, bands=BANDS, maps=(0, 1))


def test_lazy_equals_eager_and_computes_nothing():
    model, truth = maps(4), maps(4, seed=1)
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = scale_ratio(spectrum(model.chunk(time=1)), spectrum(truth.chunk(time=1)), bands=BANDS, maps=(1, 1))
    xr.testing.assert_allclose(
        dask.compute(lazy)[0], scale_ratio(spectrum(model), spectrum(truth), bands=BANDS, maps=(1, 1))
    )
