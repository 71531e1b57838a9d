"""Budgets of sea level closed by construction, known masses of water, and cells found by looking at all of them."""

import cftime
import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import (
    absolute_sea_level,
    area_mean,
    area_of,
    at_points,
    barystatic,
    dynamic_sea_level,
    sea_level_closure,
)

DIMS = ("time", "lat", "lon")


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def days(n=6, step=30):
    start = cftime.datetime(2000, 1, 3, calendar="noleap")
    return xr.date_range(start, periods=n, freq=f"{step}D", calendar="noleap", use_cftime=True)


def field(units="m", seed=0):
    lat, lon = np.arange(-75.0, 80, 15), np.arange(15.0, 375, 30)
    values = np.random.default_rng(seed).normal(size=(6, lat.size, lon.size))
    values[:, 3:6, 2:5] = np.nan
    coords = {"time": days(), "lat": lat, "lon": lon}
    made = xr.DataArray(values, coords, DIMS, name="zos", attrs={"units": units})
    return made.assign_coords(areacello=area_of(made))


def test_the_mean_of_the_corrected_sea_level_is_the_given_one():
    zos = field()
    mean = xr.DataArray(np.linspace(0, 0.03, 6), {"time": zos.time}, ("time",), attrs={"units": "m"})
    found = absolute_sea_level(zos, mean)
    np.testing.assert_allclose(area_mean(found), mean, atol=1e-14)
    np.testing.assert_allclose(found - mean, dynamic_sea_level(zos), atol=1e-14)
    assert found.dims == zos.dims
    with pytest.raises(ValueError, match="divide by 1000"):
        absolute_sea_level(zos, mean.assign_attrs(units="mm"))
    with pytest.raises(ValueError, match="share their coordinates"):
        absolute_sea_level(zos, mean.assign_coords(time=days(step=31)))


def test_361_gigatonnes_are_a_millimetre():
    wfo = field("kg m-2 s-1") * 0
    wfo.attrs["units"] = "kg m-2 s-1"
    wfo = wfo.copy()
    wfo[2:, 0, 0] = 3.61e14 / (wfo.areacello[0, 0] * 4 * 30 * 86400)
    rise = barystatic(wfo, ocean_area=3.61e14)
    np.testing.assert_allclose(rise, 1e-3 * np.array([0, 0, 0.25, 0.5, 0.75, 1]), rtol=1e-12)
    np.testing.assert_allclose(barystatic(wfo, ocean_area=3.61e14, rho_fresh=500.0), 2 * rise)
    with pytest.raises(ValueError, match="wet_area"):
        barystatic(wfo, ocean_area=wfo.areacello)
    with pytest.raises(ValueError, match="'kg m-2 s-1'"):
        barystatic(wfo.assign_attrs(units="mm/day"), ocean_area=1.0)


def test_closure_returns_what_is_left():
    time = days()

    def line(slope, start):
        return xr.DataArray(start + slope * np.arange(6.0), {"time": time}, ("time",), attrs={"units": "m"})

    found = sea_level_closure(line(3e-3, 7), steric=line(1e-3, -1), barystatic=line(1.5e-3, 0))
    np.testing.assert_allclose(found.residual, 0.5e-3 * np.arange(6), atol=1e-14)
    assert list(found) == ["rise", "steric", "barystatic", "residual"]
    assert all(found[name][0] == 0 for name in found)
    with pytest.raises(ValueError, match="needs parts"):
        sea_level_closure(line(1, 0))


@pytest.mark.parametrize("curvilinear", [False, True])
def test_the_nearest_wet_cell_is_found_across_greenwich(curvilinear):
    zos = field()
    if curvilinear:
        lat, lon = np.meshgrid(zos.lat, zos.lon, indexing="ij")
        dims = ("time", "y", "x")
        zos = xr.DataArray(zos.values, {"time": zos.time, "lat": (dims[1:], lat), "lon": (dims[1:], lon)}, dims)
    places = {"west": (-16.0, -14.0), "on land": (-16.0, 76.0), "pole": (89.0, 100.0)}
    found = at_points(zos, places, farthest=4e6)
    for name, (lat, lon) in places.items():
        cells = [
            (np.arccos(np.clip(_cosine(lat, lon, a, o), -1, 1)) * 6.371e6, i, j)
            for i, a in enumerate(np.arange(-75.0, 80, 15))
            for j, o in enumerate(np.arange(15.0, 375, 30))
            if np.isfinite(zos.values[0, i, j])
        ]
        distance, i, j = min(cells)
        here = found.sel(point=name)
        assert here.distance.item() == pytest.approx(distance, rel=1e-6)
        np.testing.assert_array_equal(here, zos.values[:, i, j])
    assert found.attrs["sampling"] == "nearest wet cell"
    with pytest.raises(ValueError, match="within 10 km of 'on land'"):
        at_points(zos, {"on land": (-16.0, 76.0)}, farthest=1e4)


def _cosine(lat, lon, a, o):
    lat, lon, a, o = np.deg2rad([lat, lon, a, o])
    return np.sin(lat) * np.sin(a) + np.cos(lat) * np.cos(a) * np.cos(lon - o)


def test_lazy_equals_eager_and_computes_nothing():
    zos, wfo = field(), field("kg m-2 s-1", seed=1)

    def products(x, y):
        mean = barystatic(y, ocean_area=3e14)
        return [mean, absolute_sea_level(x, mean), sea_level_closure(mean, half=mean / 2 * 1).to_array()]

    def half(x, y):
        with xr.set_options(keep_attrs=True):
            return products(x, y)

    with dask.config.set(scheduler=refuse_to_compute):
        lazy = half(zos.chunk(time=2, lat=3), wfo.chunk(time=4))
    for ours, expected in zip(dask.compute(*lazy), half(zos, wfo), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-13)
    points = at_points(zos.chunk(time=1), {"a": (0.0, 200.0)}, farthest=1e7)
    assert points.chunks is not None
    np.testing.assert_array_equal(points, at_points(zos, {"a": (0.0, 200.0)}, farthest=1e7))
