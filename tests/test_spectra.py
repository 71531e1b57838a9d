"""Spectra against Parseval, planted waves, known slopes and xrft's two-dimensional periodogram."""

import dask
import numpy as np
import pytest
import xarray as xr
import xrft

from polynya.diagnostics import isotropic_spectrum, kinetic_energy_spectrum, spectral_slope
from polynya.diagnostics.spectra import grid_spacing

RADIUS = 6.371e6


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def maps(*shape, seed=0, dtype="f8"):
    """Random maps with a mean and a slope, as real fields have."""
    values = np.random.default_rng(seed).normal(15, 1, shape) + np.linspace(0, 3, shape[-1])
    dims = ("member", "time", "y", "x")[-len(shape) :]
    return xr.DataArray(values.astype(dtype), dims=dims, name="zos", attrs={"units": "m"})


def power_law(exponent, maps=1, n=128, seed=0):
    """Fields whose ring sums fall exactly like k^-exponent, but for the ragged rings: random phases only."""
    rng = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))
    k[0, 0] = np.inf
    noise = np.fft.fft2(rng.normal(size=(maps, n, n)))
    modes = noise / abs(noise) * k ** (-(exponent + 1) / 2)
    return xr.DataArray(np.fft.ifft2(modes).real, dims=("time", "y", "x"), name="psi")


def total(spectrum):
    return spectrum.sum("wavenumber") * spectrum.attrs["ring_width"]


@pytest.mark.parametrize("shape", [(32, 32), (31, 48), (64, 17), (5, 9)])
@pytest.mark.parametrize(("dtype", "rtol"), [("f4", 1e-6), ("f8", 1e-12)])
def test_rings_sum_to_the_variance(shape, dtype, rtol):
    field = maps(3, *shape, dtype=dtype)
    ours = isotropic_spectrum(field, spacing=(8e3, 13e3), detrend="constant", window=None, truncate=False)
    np.testing.assert_allclose(total(ours), field.astype("f8").var(("y", "x")), rtol=rtol)
    assert ours.n_modes.sum() == np.prod(shape)


def test_rings_sum_to_the_corrected_variance_under_a_window_and_a_plane():
    field = maps(64, 48)
    ours = isotropic_spectrum(field, spacing=(1e4, 1e4), truncate=False)
    y, x = (c.ravel() for c in np.mgrid[:64, :48])
    design = np.stack([np.ones(y.size), y, x], axis=1)
    flat = field.values.ravel() - design @ np.linalg.lstsq(design, field.values.ravel(), rcond=None)[0]
    window = np.outer(np.hanning(65)[:-1], np.hanning(49)[:-1]).ravel()
    np.testing.assert_allclose(total(ours), ((flat * window) ** 2).mean() / (window**2).mean(), rtol=1e-12)


def test_rings_equal_xrft_in_two_dimensions():
    field = maps(48, 40).assign_coords(y=np.arange(48) * 8e3, x=np.arange(40) * 1e4)
    options = {"detrend": "constant", "window": "hann", "window_correction": True}
    flat = xrft.power_spectrum(field, dim=["y", "x"], **options)
    k = np.hypot(flat.freq_y, flat.freq_x)
    ours = isotropic_spectrum(field, spacing=(8e3, 1e4), detrend="constant", truncate=False)
    width = ours.attrs["ring_width"]
    cell = (flat.freq_y[1] - flat.freq_y[0]) * (flat.freq_x[1] - flat.freq_x[0])
    for b, k_b in enumerate(ours.wavenumber.values[:20]):
        ring = (k >= k_b - width / 2) & (k < k_b + width / 2)
        assert ours[b].item() == pytest.approx((flat.where(ring).sum() * cell / width).item(), rel=1e-9)
        assert ours.n_modes[b] == ring.sum()


def test_plane_wave_keeps_its_wavelength_and_its_variance():
    n, dx, wavelength, angle = 128, 1e4, 2e5, np.deg2rad(30)
    y, x = np.mgrid[:n, :n] * dx
    wave = np.sqrt(2) * np.cos(2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle)))
    ours = isotropic_spectrum(xr.DataArray(wave, dims=("y", "x")), spacing=(dx, dx))
    peak = int(ours.values.argmax())
    assert abs(ours.wavenumber[peak] - 1 / wavelength) <= ours.attrs["ring_width"]
    assert total(ours).item() == pytest.approx(1.000025, abs=2e-4)
    assert total(ours[peak - 1 : peak + 2]).item() == pytest.approx(0.9505, abs=5e-3)


@pytest.mark.parametrize("exponent", [5 / 3, 3, 4])
def test_slope_of_a_power_law(exponent):
    field = power_law(exponent, maps=12)
    options = {"spacing": (1e4, 1e4), "normalize": "mean"}
    band = (4e-6, 4e-5)
    bare = isotropic_spectrum(field, detrend=None, window=None, **options)
    np.testing.assert_allclose(spectral_slope(bare, band=band), -exponent, atol=0.02)
    tapered = isotropic_spectrum(field, **options).mean("time")
    assert spectral_slope(tapered, band=band).item() == pytest.approx(-exponent, abs=0.1)


def test_slope_of_an_exact_power_law_is_exact():
    k = np.arange(50) * 1e-6
    spectrum = xr.DataArray(np.append(0, k[1:] ** -2.5), dims="wavenumber", coords={"wavenumber": k})
    assert spectral_slope(spectrum, band=(2e-6, 3e-5)).item() == pytest.approx(-2.5, abs=1e-12)
    with pytest.raises(ValueError, match="three rings"):
        spectral_slope(spectrum, band=(0, 2.5e-6))


def test_white_noise_grows_like_k_and_both_normalisations_agree_on_average():
    field = maps(40, 64, 64)
    summed, mean = (
        isotropic_spectrum(field, spacing=(1e4, 1e4), normalize=n).mean("time")[2:] for n in ("sum", "mean")
    )
    assert spectral_slope(mean, band=(5e-6, 5e-5)).item() == pytest.approx(1, abs=0.03)
    assert (summed / mean).mean().item() == pytest.approx(1, abs=0.02)


def waves_at_60_north(direction, wavelength=1.5e5):
    """A wave of given length in metres on a grid in degrees around 60 N."""
    lat, lon = np.arange(55, 65, 0.125), np.arange(350, 366, 0.125) % 360
    y = np.deg2rad(lat - 60)[:, None] * RADIUS
    x = np.deg2rad(np.arange(lon.size) * 0.125) * RADIUS * np.cos(np.deg2rad(60))
    phase = x + 0 * y if direction == "zonal" else y + 0 * x
    return xr.DataArray(np.cos(2 * np.pi * phase / wavelength), dims=("lat", "lon"), coords={"lat": lat, "lon": lon})


@pytest.mark.parametrize("direction", ["zonal", "meridional"])
def test_wavelengths_are_metres_on_the_sphere_not_degrees(direction):
    field = waves_at_60_north(direction)
    ours = isotropic_spectrum(field)
    assert abs(ours.wavenumber[int(ours.values.argmax())] - 1 / 1.5e5) <= ours.attrs["ring_width"]
    per_degree = (0.125 * 111.32e3,) * 2  # the trap: a degree of longitude taken as long as one of latitude
    wrong = isotropic_spectrum(field, spacing=per_degree)
    seen = 1 / wrong.wavenumber[int(wrong.values.argmax())].item()
    assert (seen > 2.5e5) == (direction == "zonal")


def test_spacing_of_one_and_two_dimensional_coordinates():
    field = waves_at_60_north("zonal")
    dy, dx = grid_spacing(field, ("lat", "lon"))
    assert dy == pytest.approx(np.deg2rad(0.125) * RADIUS, rel=1e-9)
    assert dx == pytest.approx(np.deg2rad(0.125) * RADIUS * np.cos(np.deg2rad(field.lat)).mean().item(), rel=1e-6)
    lat, lon = np.meshgrid(field.lat, field.lon, indexing="ij")
    curved = xr.DataArray(field.values, dims=("y", "x"), coords={"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)})
    assert grid_spacing(curved, ("y", "x")) == pytest.approx((dy, dx))
    with pytest.raises(ValueError, match="in memory"):
        isotropic_spectrum(curved.assign_coords(lat=curved.lat.chunk()))
    with pytest.raises(ValueError, match="in memory"):
        isotropic_spectrum(maps(8, 8))
    with pytest.raises(ValueError, match="smaller box"):
        grid_spacing(field.assign_coords(lat=np.linspace(0, 80, field.lat.size)), ("lat", "lon"))


def with_land(field):
    shore = field.copy()
    shore[..., 50:70, 10:40] = np.nan
    return shore


def test_land_is_refused_with_advice_eager_at_once_and_lazy_when_computed():
    field = with_land(maps(2, 128, 128))
    with pytest.raises(ValueError, match=r"3\.7% of the values.*land='fill'"):
        isotropic_spectrum(field, spacing=(1e4, 1e4))
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = isotropic_spectrum(field.chunk(time=1), spacing=(1e4, 1e4))
    with pytest.raises(ValueError, match="open ocean"):
        lazy.compute()


@pytest.mark.parametrize("seed", range(3))
def test_taper_keeps_the_small_scales_that_zeros_spoil(seed):
    field = power_law(3, seed=seed)
    field = field / field.std() + 3
    options = {"spacing": (1e4, 1e4)}

    def small_scales(x, **more):
        return isotropic_spectrum(x, **options, **more).isel(wavenumber=slice(30, 64)).sum().item()

    truth = small_scales(field)
    assert small_scales(with_land(field).fillna(0)) > 5 * truth
    assert small_scales(with_land(field), land="fill") < 5 * truth
    assert small_scales(with_land(field), land="taper") == pytest.approx(truth, rel=0.1)


def islands(field, seed=1):
    y, x = np.mgrid[: field.sizes["y"], : field.sizes["x"]]
    rng, shore = np.random.default_rng(seed), np.zeros(y.shape, bool)
    for north, east in zip(rng.integers(0, y.shape[0], 12), rng.integers(0, y.shape[1], 12), strict=True):
        shore |= (y - north) ** 2 + (x - east) ** 2 < 64
    return field.where(xr.DataArray(~shore, dims=("y", "x")))


def test_mask_is_the_windowed_periodogram_over_its_mean_square():
    field = islands(maps(1, 64, 48))
    found = isotropic_spectrum(field, spacing=(1e4, 2e4), land="mask", detrend="constant", truncate=False)
    a, wet = field.values[0], np.isfinite(field.values[0])
    hann = np.outer(*(np.sin(np.pi * np.arange(n) / n) ** 2 for n in a.shape))
    w = hann * wet
    modes = np.fft.fft2(np.where(wet, a - a[wet].mean(), 0) * w)
    density = abs(modes) ** 2 * 1e4 * 2e4 / (64 * 48 * (w**2).mean())
    assert total(found).item() == pytest.approx((density / (64e4 * 96e4)).sum(), rel=1e-12)
    k = np.hypot(np.fft.fftfreq(64, 1e4)[:, None], np.fft.fftfreq(48, 2e4))
    dk = max(1 / 64e4, 1 / 96e4)
    rings = np.bincount(np.floor(k / dk + 0.5).astype(int).ravel(), density.ravel()) / (64e4 * 96e4 * dk)
    np.testing.assert_allclose(found[0], rings, rtol=1e-10)


@pytest.mark.parametrize("land", ["mask", "taper"])
@pytest.mark.parametrize(("exponent", "most"), [(0, 1.05), (1, 1.2)])
def test_masked_windows_keep_flat_spectra(land, exponent, most):
    field = power_law(exponent, maps=30)
    whole = isotropic_spectrum(field, spacing=(1e4, 1e4)).mean("time")
    ratio = isotropic_spectrum(islands(field), spacing=(1e4, 1e4), land=land).mean("time") / whole
    for band in (slice(2, 6), slice(6, 20), slice(20, 60)):
        assert 1 / most < ratio.isel(wavenumber=band).mean().item() < most
    filled = isotropic_spectrum(islands(field), spacing=(1e4, 1e4), land="fill").mean("time") / whole
    assert filled.isel(wavenumber=slice(20, 60)).mean() < 0.93


def test_the_stated_bias_of_a_mask_in_a_steep_spectrum():
    field = power_law(3, maps=10)
    whole = isotropic_spectrum(field, spacing=(1e4, 1e4)).mean("time")
    ratio = {
        land: (isotropic_spectrum(islands(field), spacing=(1e4, 1e4), land=land).mean("time") / whole)[20:60].mean()
        for land in ("mask", "taper")
    }
    assert ratio["mask"] > 5
    assert ratio["taper"] < 1.6


@pytest.mark.parametrize("land", ["fill", "mask", "taper"])
def test_land_options_change_nothing_without_land(land):
    field = maps(3, 32, 40)
    ours = isotropic_spectrum(field, spacing=(1e4, 1e4), land=land)
    np.testing.assert_allclose(ours, isotropic_spectrum(field, spacing=(1e4, 1e4)), rtol=1e-12)


def test_taper_forgets_a_plane_over_the_ocean_alone():
    y, x = np.mgrid[:64, :64]
    plane = xr.DataArray(5 + 0.1 * y - 0.2 * x, dims=("y", "x"))
    plane[20:30, 40:60] = np.nan
    assert isotropic_spectrum(plane, spacing=(1e4, 1e4), land="taper").max() < 1e-15


def test_taper_handles_a_mask_that_changes_in_time():
    field = maps(2, 32, 32)
    field[1, 4:9, 4:9] = np.nan
    ours = isotropic_spectrum(field, spacing=(1e4, 1e4), land="taper")
    for t in range(2):
        alone = isotropic_spectrum(field[t], spacing=(1e4, 1e4), land="taper")
        np.testing.assert_allclose(ours[t], alone, rtol=1e-12)


def test_kinetic_energy_of_a_vortex_field():
    n, dx = 64, 1e4
    y, x = np.mgrid[:n, :n] * dx
    wave = 2 * np.pi * 8 / (n * dx)  # u = sin(wave y), v = sin(wave x): energy 1/4 + 1/4 at one ring
    uo, vo = (
        xr.DataArray(np.sin(wave * c), dims=("y", "x"), name=name, attrs={"units": "m s-1"})
        for c, name in ((y, "uo"), (x, "vo"))
    )
    ours = kinetic_energy_spectrum(uo, vo, spacing=(dx, dx), window=None)
    assert int(ours.values.argmax()) == 8
    assert total(ours).item() == pytest.approx(0.5, rel=1e-2)
    assert ours.attrs["units"] == "m3 s-2"
    with pytest.raises(ValueError, match="divide by 100"):
        kinetic_energy_spectrum(uo, vo.assign_attrs(units="cm s-1"), spacing=(dx, dx))
    with pytest.raises(ValueError, match="share"):
        kinetic_energy_spectrum(uo, vo.isel(x=slice(9)), spacing=(dx, dx))


def test_unknown_options_are_refused():
    field = maps(8, 8)
    for option in ({"detrend": "quadratic"}, {"window": "boxcar"}, {"land": "zero"}, {"normalize": "k"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be one of"):
            isotropic_spectrum(field, spacing=(1, 1), **option)
    with pytest.raises(ValueError, match="positive"):
        isotropic_spectrum(field, spacing=(1, 0))


CHUNKS = [{"time": 1}, {"member": 1, "y": 7}, {"x": 5, "y": 5, "time": 2}, {"member": -1, "x": 1}]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_lazy_equals_eager_and_computes_nothing(chunks):
    field = maps(2, 20, 16, 24, dtype="f4")
    before = field.copy(deep=True)
    eager = isotropic_spectrum(field, spacing=(1e4, 2e4))
    xr.testing.assert_identical(field, before)
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = isotropic_spectrum(field.chunk(chunks), spacing=(1e4, 2e4))
        slope = spectral_slope(lazy, band=(1e-6, 1e-3))
    assert lazy.dims == ("member", "time", "wavenumber")
    xr.testing.assert_allclose(lazy.compute(), eager, rtol=1e-12)
    assert lazy.attrs == eager.attrs
    np.testing.assert_allclose(slope.compute(), spectral_slope(eager, band=(1e-6, 1e-3)), rtol=1e-9)


def test_changing_a_result_changes_no_later_one():
    first = isotropic_spectrum(maps(16, 16), spacing=[1e4, 1e4])
    n_modes = first.n_modes.values.copy()
    first["n_modes"][:] = 0
    np.testing.assert_array_equal(isotropic_spectrum(maps(16, 16), spacing=np.array([1e4, 1e4])).n_modes, n_modes)


def test_maps_are_independent_of_their_batch():
    field = maps(37, 16, 16)
    together = isotropic_spectrum(field, spacing=(1e4, 1e4))
    np.testing.assert_allclose(together[23], isotropic_spectrum(field[23], spacing=(1e4, 1e4)), rtol=1e-13)
