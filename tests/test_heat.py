"""Heat content against closed forms, rates against known slopes, and the traps that bias both."""

import cftime
import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import (
    HEAT_CONVENTIONS,
    HeatConvention,
    global_heat_content,
    heat_content,
    heat_uptake,
    tendency,
    trend,
    wet_area,
)
from polynya.diagnostics.heat import CP0, elapsed_seconds

DZ = np.array([5.0, 15, 30, 50, 100, 200, 400, 800])


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def days(n, step=5, calendar="noleap"):
    start = cftime.datetime(2000, 1, 3, calendar=calendar)
    return xr.date_range(start, periods=n, freq=f"{step}D", calendar=calendar, use_cftime=True)


def ocean(members=2, times=4, seed=0):
    """A store with land, shelves and lazy-able coordinates: (member, time, lev, lat, lon), float32."""
    rng = np.random.default_rng(seed)
    lat, lon = np.arange(-37.5, 40, 15), np.arange(7.5, 360, 45)
    floor = rng.choice([0.0, 60, 700, 5000], size=(lat.size, lon.size), p=[0.2, 0.2, 0.2, 0.4])
    lev = np.cumsum(DZ) - DZ / 2
    values = rng.normal(10, 5, (members, times, lev.size, lat.size, lon.size))
    values[..., lev[:, None, None] > floor] = np.nan
    coords = {
        "member": np.arange(members),
        "time": days(times),
        "lev": lev,
        "lat": lat,
        "lon": lon,
        "dz": ("lev", DZ, {"units": "m"}),
        "areacello": (("lat", "lon"), rng.uniform(1, 2, floor.shape) * 1e11, {"units": "m2"}),
    }
    dims = ("member", "time", "lev", "lat", "lon")
    return xr.DataArray(values.astype("f4"), dims=dims, coords=coords, name="thetao", attrs={"units": "degC"})


def by_hand(thetao, top, bottom):
    """Heat content by a loop over layers and columns in Python floats."""
    x = thetao.values.astype("f8")
    out = np.full(x.shape[:2] + x.shape[3:], np.nan)
    for place in np.ndindex(out.shape):
        m, t, j, i = place
        edge = 0.0
        for k, dz in enumerate(DZ):
            thick = min(edge + dz, bottom) - max(edge, top)
            if thick > 0 and np.isfinite(x[m, t, k, j, i]):
                out[place] = np.nan_to_num(out[place]) + x[m, t, k, j, i] * thick
            edge += dz
    return out * 1035 * 3991.86795711963


def test_constant_column_has_the_published_value():
    field = ocean() * 0 + 10
    field.attrs["units"] = "degC"
    full = heat_content(field).where(field.isel(lev=6, drop=True).notnull())
    np.testing.assert_allclose(full.max(), 2.8921083349e10, rtol=1e-10)
    np.testing.assert_allclose(full.min(), 2.8921083349e10, rtol=1e-10)
    np.testing.assert_allclose(heat_content(field, cp=3850).max(), 2.789325e10, rtol=1e-6)
    np.testing.assert_allclose(heat_content(field, cp=3992).max(), 2.892204e10, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("TEOS-10", 2.8921083349e10), ("CM4", 2.892204e10), ("Samudra", 2.789325e10), ("Samudra viz", 2.762375e10)],
)
def test_named_constants_are_those_in_use(name, expected):
    field = (ocean() * 0 + 10).assign_attrs(units="degC")
    found = heat_content(field, convention=name)
    np.testing.assert_allclose(found.max(), expected, rtol=1e-7)
    constants = HEAT_CONVENTIONS[name]
    assert found.attrs["convention"] == constants.source
    assert found.equals(heat_content(field, rho0=constants.rho0, cp=constants.cp))
    assert found.equals(heat_content(field, convention=HeatConvention(constants.rho0, constants.cp)))
    total = global_heat_content(field, convention=name)
    assert total.attrs["specific_heat_capacity"] == constants.cp
    assert heat_content(field, convention=name, rho0=1026.0).attrs["reference_density"] == 1026


def test_unknown_or_swapped_constants_are_refused():
    with pytest.raises(ValueError, match="one of .*'Samudra viz'.* got 'samudra'"):
        heat_content(ocean(), convention="samudra")
    with pytest.raises(ValueError, match="rho0 must be the density"):
        heat_content(ocean(), rho0=CP0, cp=1035.0)


@pytest.mark.parametrize("depth", [(0, 700), (700, 2000), (0, np.inf), (3, 4), (40, 333)])
def test_every_range_equals_a_loop_over_layers(depth):
    field = ocean()
    np.testing.assert_allclose(heat_content(field, depth=depth), by_hand(field, *depth), rtol=1e-13)


def test_ranges_add_up():
    field = ocean()
    parts = [heat_content(field, depth=d).fillna(0) for d in ((0, 123), (123, 456), (456, 1600))]
    np.testing.assert_allclose(sum(parts), heat_content(field, depth=(0, 1600)).fillna(0), rtol=1e-12)


def test_land_is_nan_and_so_is_a_layer_below_the_sea_floor():
    field = ocean()
    land = field.isel(member=0, time=0, lev=0, drop=True).isnull()
    shelf = field.isel(member=0, time=0, lev=4, drop=True).isnull()
    assert land.any()
    assert (shelf & ~land).any()
    np.testing.assert_array_equal(heat_content(field).isel(member=0, time=0).isnull(), land)
    np.testing.assert_array_equal(heat_content(field, depth=(200, 700)).isel(member=1, time=2).isnull(), shelf)


def test_partial_cells_count_with_their_own_thickness():
    field = ocean(members=1, times=1)
    thick = xr.DataArray(DZ, dims="lev").broadcast_like(field[0, 0]).copy()
    thick[-1] *= 0.25
    given = field.drop_vars("dz").assign_coords(thkcello=thick.reset_coords(drop=True).assign_attrs(units="m"))
    expected = by_hand(field, 0, 800 + 200)
    np.testing.assert_allclose(heat_content(given, depth=(0, np.inf)), expected, rtol=1e-13)


def test_attrs_carry_the_constants_and_the_input_is_untouched():
    field = ocean()
    before = field.copy(deep=True)
    ohc = heat_content(field, rho0=1026)
    assert ohc.attrs["units"] == "J m-2"
    assert (ohc.attrs["reference_density"], ohc.attrs["specific_heat_capacity"]) == (1026, CP0)
    assert ohc.attrs["depth_range"] == [0.0, 700.0]
    assert ohc.dims == ("member", "time", "lat", "lon")
    xr.testing.assert_identical(field, before)


def test_kelvin_is_refused():
    with pytest.raises(ValueError, match=r"'thetao'.*'K': subtract"):
        heat_content(ocean().assign_attrs(units="K"))


def test_global_heat_and_the_trap_of_land_counted_as_zero():
    field = ocean()
    total = global_heat_content(field)
    expected = np.nansum(by_hand(field, 0, 700) * field.areacello.values, axis=(2, 3))
    np.testing.assert_allclose(total, expected, rtol=1e-13)
    assert total.attrs["units"] == "J"
    thickness = xr.DataArray([*DZ[:6], 300, 0], dims="lev")
    careless = (field * thickness).sum("lev").weighted(field.areacello).mean(("lat", "lon")) * 1035 * CP0
    right = total / wet_area(field)
    assert (careless / right).max() < 0.95  # land as 0 makes the ocean cold


def test_seconds_follow_the_calendar():
    leap = [
        cftime.datetime(2000, 2, 28, calendar="standard"),
        cftime.datetime(2000, 3, 1, calendar="standard"),
    ]
    short = [
        cftime.datetime(2000, 2, 28, calendar="360_day"),
        cftime.datetime(2000, 3, 1, calendar="360_day"),
    ]
    for dates, n in ((leap, 2), (short, 3)):
        assert elapsed_seconds(xr.DataArray(dates, dims="time", coords={"time": dates}))[1] == n * 86400
    plain = np.array(["2000-02-28", "2000-03-01"], dtype="M8[s]")
    assert elapsed_seconds(xr.DataArray(plain, dims="time", coords={"time": plain}))[1] == 2 * 86400
    with pytest.raises(ValueError, match="cftime"):
        elapsed_seconds(xr.DataArray([0.0, 1.0], dims="time", coords={"time": [0.0, 1.0]}, name="time"))


def series(per_second, n=73, noise=0.0, calendar="noleap"):
    rng = np.random.default_rng(1)
    t = 5 * 86400.0 * np.arange(n)
    values = 1e25 + np.outer(per_second, t) + noise * rng.normal(size=(len(per_second), n))
    coords = {"member": np.arange(len(per_second)), "time": days(n, calendar=calendar)}
    return xr.DataArray(values, dims=("member", "time"), coords=coords, name="ohc", attrs={"units": "J"})


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian", "standard"])
def test_both_rates_find_an_exact_slope_per_member(calendar):
    rates = np.array([3.6e14, -1e14, 0])
    ohc = series(rates, calendar=calendar)
    np.testing.assert_allclose(trend(ohc), rates, atol=1e5)
    np.testing.assert_allclose(tendency(ohc), np.repeat(rates[:, None], 71, 1), atol=1e5)
    assert tendency(ohc).time[0] == ohc.time[1]
    assert trend(ohc).attrs["units"] == "J s-1"


def test_trend_equals_polyfit_with_noise_and_marks_gaps():
    ohc = series(np.array([3e14, 1e14]), noise=1e21)
    fit = np.polyfit(5 * 86400.0 * np.arange(73), (ohc.values - 1e25).T, 1)[0]
    np.testing.assert_allclose(trend(ohc), fit, rtol=1e-6)
    holed = ohc.copy()
    holed[0, 3] = np.nan
    assert np.isnan(trend(holed)).values.tolist() == [True, False]


def test_uneven_steps_weigh_by_time():
    ohc = series(np.array([2e14])).isel(time=[0, 1, 2, 5, 9, 10, 40])
    np.testing.assert_allclose(trend(ohc), 2e14, rtol=1e-8)
    np.testing.assert_allclose(tendency(ohc), 2e14, rtol=1e-5)


def test_uptake_of_one_watt_is_the_known_energy_per_year():
    ohc = series(np.array([1.139579e22 / (365.25 * 86400)]))
    flux = heat_uptake(ohc, area=3.6111e14)
    np.testing.assert_allclose(flux, 1, rtol=2e-5)
    assert flux.attrs["units"] == "W m-2"
    assert heat_uptake(ohc, area=xr.DataArray(3.6111e14), rate=tendency).sizes["time"] == 71
    local = heat_uptake(ohc.assign_attrs(units="J m-2") / 1e14)
    np.testing.assert_allclose(local, 3.6111, rtol=2e-5)


def test_uptake_asks_for_one_area_only_where_it_is_needed():
    ohc = series(np.array([1e14]))
    with pytest.raises(ValueError, match="wet_area"):
        heat_uptake(ohc)
    with pytest.raises(ValueError, match="none"):
        heat_uptake(ohc.assign_attrs(units="J m-2"), area=1.0)
    with pytest.raises(ValueError, match="sum it over the ocean"):
        heat_uptake(ohc, area=xr.DataArray(np.ones(3), dims="lat"))
    with pytest.raises(ValueError, match="no wet cell"):
        heat_uptake(ohc, area=wet_area(ocean() * np.nan))
    with pytest.raises(ValueError, match="three values"):
        tendency(ohc.isel(time=slice(2)))
    with pytest.raises(ValueError, match="'init'"):
        trend(ohc, dim="init")


CHUNKS = [
    {"time": 1},
    {"member": 1, "lev": 3},
    {"lat": 2, "lon": 3, "lev": 1},
    {"time": 3, "lat": 1},
    {"member": -1, "time": -1, "lev": -1, "lat": -1, "lon": -1},
]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_lazy_equals_eager_and_computes_nothing(chunks):
    field = ocean()
    lazy = field.chunk(chunks)
    for name in ("dz", "areacello"):
        lazy[name] = field[name].chunk()

    def products(x):
        total = global_heat_content(x)
        uptake = heat_uptake(total, area=wet_area(x))
        return heat_content(x), total, uptake, heat_uptake(heat_content(x), rate=tendency)

    with dask.config.set(scheduler=refuse_to_compute):
        results = products(lazy)
    for ours, expected in zip(dask.compute(*results), products(field), strict=True):
        scale = float(abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12 * scale)
        assert ours.attrs == expected.attrs
    assert all(r.chunks is not None and r.dtype == np.float64 for r in results)


def test_a_store_on_disk_gives_what_memory_gives(tmp_path):
    field = ocean()
    field.to_dataset().to_zarr(
        tmp_path / "store.zarr", consolidated=False, encoding={"thetao": {"chunks": (1, 2, 3, 4, 5)}}
    )
    with dask.config.set(scheduler=refuse_to_compute):
        stored = xr.open_zarr(tmp_path / "store.zarr", consolidated=False).thetao
        uptake = heat_uptake(global_heat_content(stored), area=wet_area(stored))
    assert isinstance(stored.time.values[0], cftime.DatetimeNoLeap)
    assert stored.dz.chunks is not None  # coordinates of a store are lazy too
    expected = heat_uptake(global_heat_content(field), area=wet_area(field))
    np.testing.assert_allclose(uptake.compute(), expected, rtol=1e-11)


def test_lazy_inconsistent_layers_are_refused_when_computed():
    lazy = ocean().isel(lev=slice(2, None)).chunk(time=1)
    lazy["dz"] = lazy["dz"].chunk()
    ohc = heat_content(lazy)
    with pytest.raises(ValueError, match="from the surface downwards"):
        ohc.compute()
