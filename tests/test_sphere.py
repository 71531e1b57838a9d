"""Spherical harmonics against scipy's, Parseval, and orthogonality up to degree 360."""

import dask
import numpy as np
import pytest
import scipy.special
import xarray as xr

from polynya.diagnostics import area_mean, spherical_spectrum
from polynya.diagnostics.sphere import latitude_weights, legendre


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def grid(n=40, gaussian=False):
    lat = (
        np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(n)[0]))
        if gaussian
        else (np.arange(n) + 0.5) * 180 / n - 90
    )
    return lat, np.arange(2 * n) * 180 / n


def harmonic(degree, order, lat, lon):
    theta = np.deg2rad(90 - lat)[:, None]
    return scipy.special.sph_harm_y(degree, order, theta, np.deg2rad(lon)).real * np.sqrt(4 * np.pi)


def on(lat, lon, values):
    return xr.DataArray(
        values, dims=("time", "lat", "lon")[-values.ndim :], coords={"lat": lat, "lon": lon}, name="zos"
    )


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(("degree", "order"), [(0, 0), (1, 0), (7, 3), (19, 19), (18, 1)])
def test_a_planted_harmonic_has_its_degree_and_its_power(gaussian, degree, order):
    lat, lon = grid(gaussian=gaussian)
    found = spherical_spectrum(on(lat, lon, harmonic(degree, order, lat, lon)))
    expected = np.zeros(found.sizes["degree"])
    expected[degree] = 1 if order == 0 else 0.5
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("gaussian", [False, True])
def test_degrees_sum_to_the_mean_square(gaussian):
    lat, lon = grid(gaussian=gaussian)
    rng = np.random.default_rng(0)
    values = sum(rng.normal() * harmonic(n, m, lat, lon) for n in range(12) for m in range(n + 1))
    found = spherical_spectrum(on(lat, lon, values))
    weights, _ = latitude_weights(lat)
    np.testing.assert_allclose(found.sum(), (weights @ values**2).mean(), rtol=1e-12)
    if not gaussian:
        area = area_mean(on(lat, lon, values) ** 2)
        assert found.sum().item() == pytest.approx(area.item(), rel=1e-2)
    turned = spherical_spectrum(on(lat[::-1], lon, values[::-1]))
    np.testing.assert_allclose(turned, found, atol=1e-12 * float(found.max()))


def test_functions_are_orthonormal_to_degree_360():
    nodes, weights = np.polynomial.legendre.leggauss(361)
    for m, rows in enumerate(legendre(np.rad2deg(np.arcsin(nodes)), 360)):
        if m in (0, 1, 50, 200, 340, 360):
            np.testing.assert_allclose((rows * weights / 2) @ rows.T, np.eye(361 - m), atol=1e-10)


def test_functions_equal_scipy():
    lat = np.array([-89.9, -60, 0, 1, 45, 89.99])
    functions = list(legendre(lat, 60))
    for degree, order in ((60, 0), (60, 30), (45, 44), (60, 60)):
        theta = np.deg2rad(90 - lat)
        expected = np.sqrt(4 * np.pi) * scipy.special.sph_harm_y(degree, order, theta, 0.0).real
        np.testing.assert_allclose(abs(functions[order][degree - order]), abs(expected), atol=1e-11)


def test_rotation_about_the_axis_changes_nothing_and_float32_is_summed_in_float64():
    lat, lon = grid()
    values = np.random.default_rng(1).normal(size=(2, 40, 80))
    found = spherical_spectrum(on(lat, lon, values))
    np.testing.assert_allclose(spherical_spectrum(on(lat, lon, np.roll(values, 13, -1))), found, rtol=1e-9)
    assert spherical_spectrum(on(lat, lon, values.astype("f4"))).dtype == np.float64


def test_errors_say_what_is_wrong():
    lat, lon = grid()
    values = np.zeros((40, 80))
    with pytest.raises(ValueError, match="pole to pole, got 40 from -80"):
        spherical_spectrum(on(np.linspace(-80, 80, 40), lon, values))
    with pytest.raises(ValueError, match="round the globe"):
        spherical_spectrum(on(lat, lon / 2, values))
    with pytest.raises(ValueError, match="from 0 to 19"):
        spherical_spectrum(on(lat, lon, values), degree=25)
    with pytest.raises(ValueError, match="without NaN"):
        spherical_spectrum(on(lat, lon, values * np.nan))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"lat": 7, "lon": 30}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    lat, lon = grid()
    field = on(lat, lon, np.random.default_rng(1).normal(size=(3, 40, 80)))
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = spherical_spectrum(field.chunk(chunks))
    xr.testing.assert_allclose(lazy.compute(), spherical_spectrum(field))
