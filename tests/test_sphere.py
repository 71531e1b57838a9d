"""Spherical harmonics against scipy's, Parseval, and orthogonality up to degree 360."""

import dask
import numpy as np
import pytest
import scipy.special
import xarray as xr

from polynya.diagnostics import area_mean, spherical_energy_spectrum, spherical_spectrum
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


def flow(lat, lon, degree, order, rotational=1.0, divergent=0.0):
    """Velocities of a stream function and a potential of one harmonic, by scipy's derivatives; R = 1."""
    theta, phi = np.deg2rad(90 - lat)[:, None], np.deg2rad(lon)
    slope = scipy.special.sph_harm_y(degree, order, theta, phi, diff_n=1)[1]
    north, east = -slope[..., 0], slope[..., 1] / np.sin(theta)
    scale = np.sqrt(4 * np.pi)
    u = scale * (-rotational * north + divergent * east).real
    v = scale * (rotational * east + divergent * north).real
    return u, v


def velocities(lat, lon, u, v):
    return [on(lat, lon, x).rename(n).assign_attrs(units="m s-1") for x, n in ((u, "uo"), (v, "vo"))]


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(("degree", "order"), [(1, 0), (1, 1), (7, 3), (19, 19), (18, 1), (5, 0)])
@pytest.mark.parametrize(("rotational", "divergent"), [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)])
def test_a_planted_flow_has_its_energy_in_one_degree(gaussian, degree, order, rotational, divergent):
    lat, lon = grid(gaussian=gaussian)
    found = spherical_energy_spectrum(*velocities(lat, lon, *flow(lat, lon, degree, order, rotational, divergent)))
    power = (1 if order == 0 else 0.5) * degree * (degree + 1) / 2
    for name, share in (("rotational", rotational**2), ("divergent", divergent**2), ("energy", 1.0)):
        expected = np.zeros(found.sizes["degree"])
        expected[degree] = share * power
        np.testing.assert_allclose(found[name], expected, atol=1e-11 * power)


@pytest.mark.parametrize("gaussian", [False, True])
def test_energies_sum_to_the_mean_kinetic_energy(gaussian):
    lat, lon = grid(gaussian=gaussian)
    rng = np.random.default_rng(0)
    u, v = np.zeros((2, 3, lat.size, lon.size))
    for n in range(1, 15):
        for m in range(n + 1):
            for k in range(3):
                du, dv = flow(lat, lon, n, m, *rng.normal(size=2))
                u[k], v[k] = u[k] + du, v[k] + dv
    weights, _ = latitude_weights(lat)
    kinetic = (weights @ (u**2 + v**2).transpose(1, 0, 2).reshape(lat.size, -1)).reshape(3, -1).mean(-1) / 2
    found = spherical_energy_spectrum(*velocities(lat, lon, u, v))
    np.testing.assert_allclose(found["energy"].sum("degree"), kinetic, rtol=1e-12)
    np.testing.assert_allclose(found["energy"], found["rotational"] + found["divergent"])
    # The mirror image has the same energy, seen from rows in the other order.
    turned = spherical_energy_spectrum(*velocities(lat[::-1], lon, u[:, ::-1], v[:, ::-1]))
    np.testing.assert_allclose(turned["rotational"], found["rotational"], atol=1e-12 * kinetic.max())


def test_rigid_rotation_about_any_axis_is_degree_one():
    lat, lon = grid(gaussian=True)
    y, x = np.deg2rad(lat)[:, None], np.deg2rad(lon)
    for tilt in (0.0, 0.7, np.pi / 2):  # u is not smooth at the poles, and the flow is
        u = np.cos(tilt) * np.cos(y) + np.sin(tilt) * np.sin(y) * np.cos(x)
        v = -np.sin(tilt) * np.sin(x) + 0 * y
        found = spherical_energy_spectrum(*velocities(lat, lon, u, v))
        assert found["rotational"][1].item() == pytest.approx(1 / 3, rel=1e-12)
        assert found["energy"].sum().item() == pytest.approx(1 / 3, rel=1e-12)


def test_errors_of_velocities():
    lat, lon = grid()
    uo, vo = velocities(lat, lon, *flow(lat, lon, 3, 2))
    with pytest.raises(ValueError, match="'vo' must be in 'm s-1'"):
        spherical_energy_spectrum(uo, vo.assign_attrs(units="cm s-1"))
    with pytest.raises(ValueError, match="share their coordinates"):
        spherical_energy_spectrum(uo, vo.isel(lat=slice(1, None)))
    with pytest.raises(ValueError, match=r"fillna\(0\) on land"):
        spherical_energy_spectrum(uo.where(uo.lat > 0), vo)
    with pytest.raises(ValueError, match="degree must be from 0 to 19"):
        spherical_energy_spectrum(uo, vo, degree=20)
    with pytest.raises(ValueError, match="from pole to pole"):
        spherical_energy_spectrum(uo.isel(lat=slice(3, None)), vo.isel(lat=slice(3, None)))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"lat": 7, "lon": 30}])
def test_lazy_energies_equal_eager_ones(chunks):
    lat, lon = grid()
    rng = np.random.default_rng(0)
    uo, vo = velocities(lat, lon, *rng.normal(size=(2, 4, lat.size, lon.size)))
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = spherical_energy_spectrum(uo.chunk(chunks), vo.chunk(time=2))
    xr.testing.assert_allclose(dask.compute(lazy)[0], spherical_energy_spectrum(uo, vo), rtol=1e-12)
