"""Transports of flows whose stream function is known, and mixed layers against gsw and a loop over columns."""

import dask
import gsw
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import barotropic_streamfunction, mixed_layer_depth, overturning, section_transport

DZ = np.array([20.0, 30, 50, 100, 300, 500])
LEV = np.cumsum(DZ) - DZ / 2
DIMS = ("time", "lev", "lat", "lon")


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def ocean(values, units="m s-1"):
    lat, lon = np.arange(-20.0, 21, 10), np.arange(0.0, 60, 10)
    coords = {"lev": LEV, "lat": lat, "lon": lon, "dz": ("lev", DZ, {"units": "m"})}
    shape = (2, LEV.size, lat.size, lon.size)
    return xr.DataArray(np.broadcast_to(values, shape).copy(), coords, DIMS, attrs={"units": units})


def width(field, seed=0):
    values = np.random.default_rng(seed).uniform(8e5, 1e6, (field.sizes["lat"], field.sizes["lon"]))
    return xr.DataArray(values, dims=("lat", "lon"), attrs={"units": "m"})


def random_flow(seed=0):
    values = np.random.default_rng(seed).normal(0, 0.1, (2, 6, 5, 6))
    values[:, 3:, 1, 2:4] = np.nan
    values[:, :, 4, 5] = np.nan
    return ocean(values)


def test_a_two_layer_overturning_is_its_upper_transport():
    upper = LEV < 200
    speed = np.where(upper, 0.01 / DZ[upper].sum(), -0.01 / DZ[~upper].sum())[:, None, None]
    vo = ocean(speed)
    dx = width(vo)
    psi = overturning(vo, width=dx)
    assert psi.dims == ("time", "lev", "lat")
    np.testing.assert_allclose(psi.max("lev")[0], 0.01 * dx.sum("lon") / 1e6, rtol=1e-12)
    np.testing.assert_allclose(psi.isel(lev=-1), 0, atol=1e-12)
    assert (psi > -1e-12).all()


def test_overturning_equals_a_loop_with_land():
    vo = random_flow()
    dx = width(vo)
    expected = np.zeros((2, 6, 5))
    for t, k, j, i in np.ndindex(2, 6, 5, 6):
        expected[t, k:, j] += np.nan_to_num(vo.values[t, k, j, i]) * DZ[k] * dx.values[j, i] / 1e6
    np.testing.assert_allclose(overturning(vo, width=dx), expected, atol=1e-12)


def test_barotropic_stream_function_of_a_gyre_comes_back():
    """u = -dpsi/dy of a known psi, on rows of even width: sums of differences are exact."""
    psi = np.random.default_rng(1).normal(0, 10, (5, 6))
    dy = xr.DataArray(1e6, attrs={"units": "m"})
    u = -np.diff(psi, axis=0, prepend=0) * 1e6 / (1e6 * DZ.sum())
    found = barotropic_streamfunction(ocean(u), width=dy)
    np.testing.assert_allclose(found, np.broadcast_to(psi, (2, 5, 6)), atol=1e-10)
    assert found.attrs["units"] == "Sv"
    with pytest.raises(ValueError, match="south to north"):
        barotropic_streamfunction(ocean(u).sortby("lat", ascending=False), width=dy)


def test_a_section_has_two_directions():
    uo = random_flow(2)
    section = uo.isel(lon=3)
    dy = xr.DataArray(np.linspace(1, 2, 5) * 1e5, dims="lat", attrs={"units": "m"})
    found = section_transport(section, along="lat", width=dy)
    faces = np.nan_to_num(section.values) * DZ[:, None] * dy.values / 1e6
    np.testing.assert_allclose(found.net, faces.sum((1, 2)))
    np.testing.assert_allclose(found.positive, np.maximum(faces, 0).sum((1, 2)))
    np.testing.assert_allclose(found.net, found.positive + found.negative)
    upper = section_transport(section, along="lat", width=dy, depth=(0, 100))
    np.testing.assert_allclose(upper.net, faces[:, :3].sum((1, 2)))
    with pytest.raises(ValueError, match="along 'lon'"):
        section_transport(section, along="lon", width=dy)
    with pytest.raises(ValueError, match="'m s-1'"):
        section_transport(section.assign_attrs(units="cm s-1"), along="lat", width=dy)


def test_mixed_layer_of_a_linear_profile_is_where_it_should_be():
    lev = np.arange(5.0, 300, 10)
    thetao = xr.DataArray(20 - 0.004 * np.maximum(lev - 40, 0), {"lev": lev}, ("lev",), attrs={"units": "degC"})
    assert mixed_layer_depth(thetao).item() == pytest.approx(40 + 0.2 / 0.004, abs=1e-9)
    assert mixed_layer_depth(thetao, criterion=0.5).item() == pytest.approx(165, abs=1e-9)
    assert mixed_layer_depth(thetao.copy(data=0 * lev)).item() == 295


def test_mixed_layer_by_density_equals_a_loop_with_gsw():
    rng = np.random.default_rng(0)
    lev = np.array([5.0, 15, 25, 40, 60, 90, 140, 200, 300])
    theta = 15 - 8 * (1 - np.exp(-np.maximum(lev - rng.uniform(5, 150, (4, 5, 1)), 0) / 100))
    salt = 35 + 0.1 * rng.normal(size=(4, 5, 1)) + 0 * lev
    theta[0, 0] = np.nan
    theta[1, 1, 5:] = np.nan
    dims = ("lat", "lon", "lev")
    thetao = xr.DataArray(theta, {"lev": lev}, dims, attrs={"units": "degC"})
    so = xr.DataArray(salt, {"lev": lev}, dims, attrs={"units": "0.001"})
    found = mixed_layer_depth(thetao, so)
    assert np.isnan(found[0, 0])
    sa = 35.16504 / 35 * salt
    sigma = gsw.sigma0(sa, gsw.CT_from_pt(sa, theta))
    for j, i in np.ndindex(4, 5):
        wet = np.isfinite(sigma[j, i])
        if not wet.any():
            continue
        z = np.linspace(10, lev[wet][-1], 200_001)
        profile = np.interp(z, lev[wet], sigma[j, i][wet])
        beyond = profile - profile[0] > 0.03
        expected = z[beyond.argmax()] if beyond.any() else lev[wet][-1]
        assert found[j, i].item() == pytest.approx(expected, abs=5e-3)


def test_errors_of_levels():
    thetao = ocean(10.0, "degC")
    for wrong in (thetao.assign_coords(lev=-LEV), thetao.isel(lev=slice(None, None, -1))):
        with pytest.raises(ValueError, match="positive down"):
            mixed_layer_depth(wrong)
    with pytest.raises(ValueError, match="between the levels 10 and 750"):
        mixed_layer_depth(thetao, reference=2)
    with pytest.raises(ValueError, match="criterion must be positive"):
        mixed_layer_depth(thetao, criterion=0)
    with pytest.raises(ValueError, match="subtract 273.15"):
        mixed_layer_depth(thetao.assign_attrs(units="K"))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"lev": 2, "lat": 3}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    flow, dx = random_flow(), width(random_flow())
    heat = ocean(20 * np.exp(-LEV / 300)[:, None, None], "degC")

    def products(x, t):
        return [overturning(x, width=dx), barotropic_streamfunction(x, width=dx), mixed_layer_depth(t)]

    with dask.config.set(scheduler=refuse_to_compute):
        lazy = products(flow.chunk(chunks), heat.chunk(chunks))
    for ours, expected in zip(dask.compute(*lazy), products(flow, heat), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-10)
        assert ours.dims == expected.dims
