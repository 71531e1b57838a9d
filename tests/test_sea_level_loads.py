"""The weight of air and ice against closed forms and means by hand."""

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import area_mean, dynamic_sea_level, ice_loaded_sea_level, inverse_barometer

LAT, LON = np.arange(-75.0, 80, 15), np.arange(15.0, 360, 30)


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def maps(name, units, mean, spread, land=True):
    rng = np.random.default_rng(len(name))
    times = xr.date_range("2001-01-03", periods=5, freq="5D", calendar="noleap", use_cftime=True)
    values = rng.normal(mean, spread, (5, LAT.size, LON.size))
    if land:
        values[:, 2:4, 5:8] = np.nan
    return xr.DataArray(values, {"time": times, "lat": LAT, "lon": LON}, ("time", "lat", "lon"), name, {"units": units})


def test_a_hectopascal_is_a_centimetre():
    psl = maps("psl", "Pa", 101325, 0, land=False)
    low = psl.copy()
    low[0, 4, 4] -= 100.0
    found = inverse_barometer(low)
    area = np.cos(np.deg2rad(LAT))[:, None] * np.ones(LON.size)
    mean = 100 * area[4, 4] / area.sum()
    assert found[0, 4, 4].item() == pytest.approx((100 - mean) / (1035 * 9.80665), rel=1e-9)
    assert found[0, 4, 4].item() == pytest.approx(9.85e-3, rel=0.02)
    assert np.abs(found[1:]).max() < 1e-14
    assert found.attrs["units"] == "m"


@pytest.mark.parametrize("kind", ["fraction", "mask", "none"])
def test_only_the_pressure_over_the_ocean_counts(kind):
    psl, zos = maps("psl", "Pa", 101325, 800, land=False), maps("zos", "m", 0, 1)
    wet = zos[0].notnull()
    given = {"fraction": wet.astype("f8"), "mask": wet}.get(kind)
    wrong = psl.where(wet, 9e4)  # what stands on land must not matter
    found = inverse_barometer(wrong, ocean=given) if kind != "none" else inverse_barometer(psl.where(wet))
    band = np.abs(np.diff(np.sin(np.deg2rad(np.arange(-82.5, 83, 15)))))[:, None] * wet.values
    mean = (psl.values * band).sum((1, 2)) / band.sum()
    expected = -(psl.values - mean[:, None, None]) / (1035 * 9.80665)
    np.testing.assert_allclose(found, np.where(wet, expected, np.nan), rtol=1e-9, atol=1e-13)
    assert np.abs(area_mean(found)).max() < 1e-13


def test_a_fraction_weighs_the_mean_of_the_coast():
    psl = maps("psl", "Pa", 1e5, 500, land=False)
    half = xr.ones_like(psl[0], dtype="f8").where(psl.lon > 180, 0.5).drop_attrs()
    found = inverse_barometer(psl, ocean=half)
    assert abs((found * half * np.cos(np.deg2rad(psl.lat))).sum().item()) < 1e-10
    assert np.isfinite(found).all()


def test_a_sea_that_follows_the_barometer_has_no_pressure_gradient():
    psl = maps("psl", "Pa", 101325, 800)
    zos = inverse_barometer(psl)
    bottom = psl + 1035 * 9.80665 * zos
    np.testing.assert_allclose(bottom.std(("lat", "lon")), 0, atol=1e-9)


def test_ice_and_snow_float():
    zos = maps("zos", "m", 0, 0.3)
    ice, snow = (abs(maps(n, "kg m-2", 0, m)) for n, m in (("simass", 900), ("sisnmass", 50)))
    ice, snow = (
        ice.where(ice.lat > 40).assign_attrs(units="kg m-2"),
        snow.where(ice.lat > 50).assign_attrs(units="kg m-2"),
    )
    found = ice_loaded_sea_level(zos, ice, snow)
    expected = zos.values + (np.nan_to_num(ice.values) + np.nan_to_num(snow.values)) / 1035
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert found.attrs["units"] == "m"
    assert found.dtype == np.float64
    # One metre of ice of 917 kg m-3 presses the surface down by 0.886 m, wherever it lies.
    flat = ice_loaded_sea_level((zos * 0).assign_attrs(units="m"), (zos * 0 + 917.0).assign_attrs(units="kg m-2"))
    np.testing.assert_allclose(flat.max(), 917 / 1035)
    assert np.abs(dynamic_sea_level(flat)).max() < 1e-15


@pytest.mark.parametrize("chunks", [{"time": 2}, {"lat": 3}, {"lon": 5, "time": 1}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    psl, zos = maps("psl", "Pa", 101325, 800), maps("zos", "m", 0, 1)
    ice = abs(maps("simass", "kg m-2", 0, 900)).assign_attrs(units="kg m-2")
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = inverse_barometer(psl.chunk(chunks), ocean=zos[0].notnull().chunk(lat=4))
        loaded = ice_loaded_sea_level(zos.chunk(chunks), ice.chunk(time=1))
    np.testing.assert_allclose(lazy.compute(), inverse_barometer(psl, ocean=zos[0].notnull()), atol=1e-14)
    np.testing.assert_array_equal(loaded.compute(), ice_loaded_sea_level(zos, ice))


def test_errors_name_what_is_wrong():
    psl, zos = maps("psl", "Pa", 101325, 800), maps("zos", "m", 0, 1)
    with pytest.raises(ValueError, match="'psl' must be in 'Pa' but has units 'hPa': multiply by 100"):
        inverse_barometer(psl.assign_attrs(units="hPa"))
    with pytest.raises(ValueError, match="must not vary in time"):
        inverse_barometer(psl, ocean=zos)
    with pytest.raises(ValueError, match="must be a map, got"):
        inverse_barometer(psl, ocean=zos[0].expand_dims(member=[0]))
    with pytest.raises(ValueError, match="0 to 100: divide a percentage"):
        inverse_barometer(psl, ocean=(zos[0] * 0 + 100).assign_attrs(units="1"))
    with pytest.raises(ValueError, match="share their coordinates"):
        inverse_barometer(psl, ocean=zos[0].isel(lat=slice(2, None)))
    with pytest.raises(ValueError, match="a load is needed"):
        ice_loaded_sea_level(zos)
    with pytest.raises(ValueError, match="'simass' must be in 'kg m-2'"):
        ice_loaded_sea_level(zos, psl.rename("simass"))
    with pytest.raises(ValueError, match="share their coordinates"):
        ice_loaded_sea_level(zos, psl.isel(time=slice(1, None)).assign_attrs(units="kg m-2"))
