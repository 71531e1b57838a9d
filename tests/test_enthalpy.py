"""Heat of the water itself against gsw, called as the formula says, and against the Boussinesq form."""

import dask
import gsw
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import enthalpy_content, heat_content

DZ = np.array([10.0, 20, 40, 80, 150, 300, 600, 800])
LEV = np.cumsum(DZ) - DZ / 2


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def water(seed=0):
    """Stratified water with land and a shelf: potential temperature and practical salinity."""
    rng = np.random.default_rng(seed)
    lat, lon = np.array([-60.0, -10.0, 25.0, 58.0]), np.array([190.0, 330.0, 20.0])
    coords = {"time": [0, 1], "lev": LEV, "lat": lat, "lon": lon, "dz": ("lev", DZ, {"units": "m"})}
    shape = (2, LEV.size, 4, 3)
    profile = 2 + 20 * np.exp(-LEV / 400)[:, None, None]
    dry = np.zeros(shape[1:], bool)
    dry[:, 0, 0] = dry[5:, 1, 1] = True
    fields = [profile + rng.normal(0, 0.5, shape), rng.normal(34.8, 0.4, shape)]
    names = (("thetao", "degC"), ("so", "0.001"))
    return [
        xr.DataArray(np.where(dry, np.nan, x), coords, ("time", "lev", "lat", "lon"), name, {"units": units})
        for x, (name, units) in zip(fields, names, strict=True)
    ]


def by_gsw(theta, sp, top, bottom):
    """The sum of rho h0 dz, column by column with gsw; the sea pressure is that of the level."""
    lev, lat, lon = LEV[:, None, None], theta.lat.values[:, None], theta.lon.values
    p = gsw.p_from_z(-lev, lat)
    sa = gsw.SA_from_SP(sp.values, p, lon, lat)
    empty = np.isnan(sa) & np.isfinite(sp.values)
    sa = np.where(empty, sp.values * 35.16504 / 35, sa)
    ct = gsw.CT_from_pt(sa, theta.values)
    heat = gsw.rho(sa, ct, p) * gsw.enthalpy(sa, ct, 0)
    lower = np.cumsum(DZ)
    thick = np.clip(np.minimum(lower, bottom) - np.maximum(lower - DZ, top), 0, None)[:, None, None]
    wet = np.isfinite(heat) & (thick > 0)
    return np.where(wet.any(1), np.where(wet, heat * thick, 0).sum(1), np.nan)


@pytest.mark.parametrize("depth", [(0, 700), (0, np.inf), (300, 1999), (0, 5)])
def test_equals_gsw(depth):
    theta, sp = water()
    found = enthalpy_content(theta, sp, depth=depth)
    np.testing.assert_allclose(found, by_gsw(theta, sp, *depth), rtol=1e-10)
    assert found.dims == ("time", "lat", "lon")
    assert found.attrs["units"] == "J m-2"
    assert np.isnan(found[:, 0, 0]).all()


def test_conservative_temperature_is_taken_as_it_is():
    theta, sp = water()
    p = gsw.p_from_z(-LEV[:, None, None], theta.lat.values[:, None])
    sa = gsw.SA_from_SP(sp.values, p, theta.lon.values, theta.lat.values[:, None])
    sa = np.where(np.isnan(sa), sp.values * 35.16504 / 35, sa)
    ct = theta.copy(data=gsw.CT_from_pt(sa, theta.values))
    np.testing.assert_allclose(
        enthalpy_content(ct, sp, temperature="conservative"), enthalpy_content(theta, sp), rtol=1e-11
    )


def test_the_two_forms_differ_by_the_density_alone():
    theta, sp = water()
    ratio = enthalpy_content(theta, sp, depth=(0, 2000)) / heat_content(theta, depth=(0, 2000))
    # In-situ density of the upper 2000 m is 1024 to 1037, mean about 1030, against 1035; 0.56 % for an Argo profile.
    assert 0.985 < ratio.min() < ratio.max() < 1.0


@pytest.mark.parametrize("chunks", [{"time": 1}, {"lev": 3, "lat": 2}, {"lon": 1}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    theta, sp = water()
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = enthalpy_content(theta.chunk(chunks), sp.chunk(time=2))
    assert lazy.chunks is not None
    np.testing.assert_allclose(lazy.compute(), enthalpy_content(theta, sp), rtol=1e-14)


def test_errors_name_what_is_wrong():
    theta, sp = water()
    with pytest.raises(ValueError, match="temperature must be one of .* got 'in situ'"):
        enthalpy_content(theta, sp, temperature="in situ")
    with pytest.raises(ValueError, match="'thetao' must be in 'degC'"):
        enthalpy_content(theta.assign_attrs(units="K"), sp)
    with pytest.raises(ValueError, match="lat and lon"):
        enthalpy_content(theta.drop_vars("lat"), sp)
    with pytest.raises(ValueError, match="share their coordinates"):
        enthalpy_content(theta, sp.isel(time=[0]))
