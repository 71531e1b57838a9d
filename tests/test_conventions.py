"""Areas and thicknesses against closed forms, means against masks and precision traps, units and laziness."""

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import area_mean, area_of, check_units, thickness_of, wet_area
from polynya.diagnostics.conventions import matched, same_units, thickness_within, weighted_mean

RADIUS = 6.371e6


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def globe(step=1.0):
    lat, lon = np.arange(-90 + step / 2, 90, step), np.arange(step / 2, 360, step)
    return xr.DataArray(np.ones((lat.size, lon.size)), dims=("lat", "lon"), coords={"lat": lat, "lon": lon})


def column(dz, **coords):
    lev = np.cumsum(dz) - np.asarray(dz) / 2
    return xr.DataArray(
        np.ones(len(dz)),
        dims="lev",
        coords={"lev": lev, "dz": ("lev", dz, {"units": "m"}), **coords},
        name="thetao",
    )


@pytest.mark.parametrize("step", [1.0, 2.5, 30.0])
def test_areas_of_bands_cover_the_sphere(step):
    area = area_of(globe(step))
    assert area.attrs["units"] == "m2"
    np.testing.assert_allclose(area.sum(), 4 * np.pi * RADIUS**2, rtol=1e-14)


def test_area_of_one_cell_is_the_exact_band_also_across_the_date_line():
    field = xr.DataArray(
        np.ones((2, 2)), dims=("y", "x"), coords={"lat": ("y", [30.0, 31.0]), "lon": ("x", [359.5, 0.5])}
    )
    band = RADIUS**2 * np.deg2rad(1) * (np.sin(np.deg2rad(30.5)) - np.sin(np.deg2rad(29.5)))
    np.testing.assert_allclose(area_of(field)[0], band, rtol=1e-12)


def test_area_uses_bounds_of_a_gaussian_grid():
    ds = globe(30.0).to_dataset(name="zos")
    edges = np.array([-90, -70, -40, 0, 35, 60, 90.0])
    ds["lat_bnds"] = ("lat", "bnds"), np.stack([edges[:-1], edges[1:]], axis=1)
    expected = 2 * np.pi * RADIUS**2 * np.diff(np.sin(np.deg2rad(edges)))
    np.testing.assert_allclose(area_of(ds).sum("lon"), expected, rtol=1e-13)


def test_given_area_wins_and_a_curvilinear_grid_needs_one():
    field = xr.DataArray(np.ones((2, 3)), dims=("y", "x"), coords={"lat": (("y", "x"), np.zeros((2, 3)))})
    with pytest.raises(ValueError, match="areacello"):
        area_of(field)
    given = field.assign_coords(areacello=(("y", "x"), np.full((2, 3), 5.0), {"units": "m2"}))
    assert area_of(given).sum() == 30
    with pytest.raises(ValueError, match="'m2'"):
        area_of(field.assign_coords(areacello=(("y", "x"), np.ones((2, 3)), {"units": "km2"})))


def test_single_column_has_no_inferable_area():
    with pytest.raises(ValueError, match="single 'lat'"):
        area_of(globe().isel(lat=[3]))


def test_mean_on_the_sphere_has_its_closed_form():
    field = globe(0.5)
    field = field * 0 + 30 * np.cos(np.deg2rad(field.lat)) ** 2 - 2
    assert abs(area_mean(field).item() - 18) < 1e-4  # 30 * 2/3 - 2, mid-point error of half a degree


def test_mean_ignores_land_and_is_nan_on_land_alone():
    field = globe(30.0).rename("zos").assign_attrs(units="m")
    half = field.where(field.lon < 180)
    assert area_mean(half).item() == pytest.approx(1, abs=1e-15)
    assert area_mean(half).attrs == field.attrs
    assert np.isnan(area_mean(field * np.nan))
    np.testing.assert_allclose(wet_area(half), 2 * np.pi * RADIUS**2, rtol=1e-14)


def test_mean_accumulates_in_float64():
    field = (globe(0.5) * 288.15).astype("f4")
    exact = float(field[0, 0])
    assert abs(area_mean(field).item() - exact) < 1e-11
    light = globe(0.5).astype("f4")  # float32 weights must not make a float32 sum
    assert abs(weighted_mean(field, light, dim=("lat", "lon")).item() - exact) < 1e-11
    assert weighted_mean(field, None, dim=["lat"]).dtype == np.float64


def test_weights_with_a_foreign_dimension_are_refused():
    with pytest.raises(ValueError, match="reduce them"):
        weighted_mean(globe(30.0), xr.DataArray(np.ones(2), dims="time"), dim=["lat"])


def test_thickness_from_dz_thkcello_and_bounds():
    dz = [10.0, 20.0, 30.0]
    np.testing.assert_array_equal(thickness_of(column(dz)), dz)
    ds = column(dz).drop_vars("dz").to_dataset()
    with pytest.raises(ValueError, match="dz=thickness_of"):
        thickness_of(ds.thetao)
    ds["lev_bnds"] = ("lev", "bnds"), [[0, 10], [10, 30], [30, 60]]
    np.testing.assert_array_equal(thickness_of(ds), dz)
    ds = ds.assign_coords(thkcello=(("lev", "x"), np.ones((3, 2)), {"units": "m"}))
    assert thickness_of(ds).dims == ("lev", "x")


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        ((0, 60), [10, 20, 30]),
        ((0, 35), [10, 20, 5]),
        ((5, 15), [5, 5, 0]),
        ((31, 32), [0, 0, 1]),
        ((0, np.inf), [10, 20, 30]),
    ],
)
def test_overlap_of_layers_with_a_range(depth, expected):
    np.testing.assert_allclose(thickness_within(column([10.0, 20, 30]), depth=depth), expected)


def test_inconsistent_layers_and_empty_ranges_are_refused():
    field = column([10.0, 20, 30])
    for wrong in (field.isel(lev=slice(1, None)), field.isel(lev=slice(None, None, -1))):
        with pytest.raises(ValueError, match="from the surface downwards"):
            thickness_within(wrong, depth=(0, 60))
    for depth in ((5, 5), (-1, 5), (9, 2)):
        with pytest.raises(ValueError, match="top < bottom"):
            thickness_within(field, depth=depth)
    with pytest.raises(ValueError, match="dimension 'lev'"):
        thickness_within(field, depth=(0, 1), dz=xr.DataArray(1.0))


@pytest.mark.parametrize("units", ["degC", "°C", "degree_Celsius", "celsius", "C"])
def test_spellings_of_celsius(units):
    check_units(column([1.0]).assign_attrs(units=units), "degC")


@pytest.mark.parametrize("units", ["psu", "0.001", "1e-3", "g kg-1", 1, 0.001])
def test_spellings_of_salinity(units):
    check_units(column([1.0]).assign_attrs(units=units), "0.001")


def test_unit_errors_say_wanted_got_and_what_to_do():
    with pytest.raises(ValueError, match=r"'thetao' must be in 'degC' but has units 'K': subtract 273\.15"):
        check_units(column([1.0]).assign_attrs(units="K"), "degC")
    with pytest.raises(ValueError, match=r"no units attribute: .*set \.attrs"):
        check_units(column([1.0]), "degC")
    with pytest.raises(ValueError, match="unnamed field"):
        check_units(xr.DataArray(1.0, attrs={"units": "furlong"}), "m")
    celsius, kelvin = (column([1.0]).assign_attrs(units=u) for u in ("°C", "K"))
    same_units(celsius, celsius.assign_attrs(units="degC"))
    with pytest.raises(ValueError, match="convert one"):
        same_units(celsius, kelvin)


def test_unequal_coordinates_are_an_error_not_an_intersection():
    field = globe(30.0)
    moved = field.assign_coords(lat=field.lat + 1e-6)
    assert (field + moved).size == 0  # what xarray does by itself
    with pytest.raises(ValueError, match="share their coordinates"):
        matched(field, moved)


def times(n, calendar="noleap", start="2001-01-03"):
    return xr.date_range(start, periods=n, freq="5D", calendar=calendar, use_cftime=True)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda f: f.assign_coords(lon=(f.lon + 180) % 360 - 180).sortby("lon"), r"'lon' counts from another meridian"),
        (lambda f: f.sortby("lat", ascending=False), r"'lat' runs in another order; sortby\('lat'\)"),
        (lambda f: f.assign_coords(lev=-f.lev), r"'lev' has the other sign; make both depths"),
        (lambda f: f.assign_coords(member=[0, 2]), r"members \[0, 2\] are not \[0, 1\]"),
        (
            lambda f: f.assign_coords(time=times(3, start="2001-01-08")),
            r"'time' is 3 from 2001-01-08.* not 3 from 2001-01-03",
        ),
        (lambda f: f.isel(lev=slice(1, None)), r"'lev' differs; select or interpolate"),
    ],
)
def test_coordinates_that_differ_are_named_with_the_fix(change, advice):
    field = globe(30.0).expand_dims(member=[0, 1], time=times(3), lev=[5.0, 20.0])
    with pytest.raises(ValueError, match=advice):
        matched(field, change(field))


def test_heights_are_refused_as_depths():
    field = column([10.0, 20, 30])
    with pytest.raises(ValueError, match="positive down"):
        thickness_within(field.assign_coords(lev=-field.lev), depth=(0, 60))


def test_matched_follows_the_chunks_of_the_field():
    field = globe(30.0).chunk(lat=2, lon=5)
    assert matched(field, globe(30.0)).chunksizes == field.chunksizes


@pytest.mark.parametrize("chunks", [{"lat": 1}, {"lat": 4, "lon": 5}, {"lon": 1}, {"lat": -1, "lon": -1}])
def test_lazy_means_equal_eager_ones_and_compute_nothing(chunks):
    rng = np.random.default_rng(0)
    field = globe(15.0) * rng.normal(size=(12, 24))
    field = field.where(rng.random(field.shape) < 0.7).assign_coords(areacello=area_of(field))
    lazy = field.chunk(chunks)
    lazy["areacello"] = field.areacello.chunk(lat=5)  # as open_zarr gives it: lazy, in its own chunks
    with dask.config.set(scheduler=refuse_to_compute):
        mean, area = area_mean(lazy), wet_area(lazy)
    assert mean.chunks is not None
    np.testing.assert_allclose(mean.compute(), area_mean(field), rtol=1e-14)
    np.testing.assert_allclose(area.compute(), wet_area(field), rtol=1e-14)
