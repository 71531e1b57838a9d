"""Budgets that close by construction, trends with errors against simulation and statsmodels, basins against loops."""

import cftime
import dask
import numpy as np
import pytest
import scipy.signal
import statsmodels.api as sm
import xarray as xr

from polynya.diagnostics import basin_totals, heat_closure, thermosteric_efficiency, trend, trend_with_error


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def days(n, step=30):
    start = cftime.datetime(2000, 1, 3, calendar="noleap")
    return xr.date_range(start, periods=n, freq=f"{step}D", calendar="noleap", use_cftime=True)


def series(values, units="J"):
    coords = {"time": days(values.shape[-1])}
    return xr.DataArray(values, coords, ("case", "time")[-values.ndim :], name="ohc", attrs={"units": units})


def red(n, phi, cases, seed=0):
    noise = np.random.default_rng(seed).normal(size=(cases, n + 200))
    return scipy.signal.lfilter([1], [1, -phi], noise)[:, 200:]


def test_white_residuals_give_the_ordinary_error():
    values = np.random.default_rng(0).normal(size=(1, 200)) + np.arange(200) * 0.01
    values[0, 1::2] = -values[0, ::2] + 0.02 * np.arange(100)  # negative memory is not counted
    found = trend_with_error(series(values))
    seconds = 30 * 86400.0 * np.arange(200)
    fit = sm.OLS(values[0], sm.add_constant(seconds)).fit()
    assert found.trend.item() == pytest.approx(fit.params[1], rel=1e-9)
    assert found.standard_error.item() == pytest.approx(fit.bse[1], rel=1e-9)
    low, high = fit.conf_int()[1]
    assert (found.low.item(), found.high.item()) == (pytest.approx(low, rel=1e-7), pytest.approx(high, rel=1e-7))
    np.testing.assert_allclose(found.trend, trend(series(values)), rtol=1e-10)
    assert found.effective_size == 200


def test_intervals_cover_for_red_residuals_where_ordinary_ones_do_not():
    values = red(400, 0.7, 400)
    found = trend_with_error(series(values))
    covered = ((found.low < 0) & (found.high > 0)).mean().item()
    assert 0.9 < covered < 0.98
    naive = found.standard_error * np.sqrt(found.effective_size / 400)
    assert (abs(found.trend) < 1.97 * naive).mean() < 0.75
    assert found.effective_size.mean().item() == pytest.approx(400 * 0.3 / 1.7, rel=0.15)
    assert found.standard_error.mean().item() == pytest.approx(found.trend.std().item(), rel=0.15)


def test_gaps_and_constants():
    values = red(50, 0.3, 3)
    values[0, 7] = np.nan
    values[1] = 5
    found = trend_with_error(series(values))
    assert np.isnan(found.trend).values.tolist() == [True, False, False]
    assert found.trend[1] == 0
    assert found.standard_error[1] == 0
    with pytest.raises(ValueError, match="five values"):
        trend_with_error(series(values[:, :4]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        trend_with_error(series(values), level=95)


def flux(n=12, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 50, (n, 4, 5))
    values[:, 1, 2] = np.nan
    coords = {"time": days(n), "areacello": (("lat", "lon"), rng.uniform(1, 2, (4, 5)), {"units": "m2"})}
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="hfds", attrs={"units": "W m-2"})


def test_budget_closes_for_heat_made_of_the_flux():
    hfds = flux()
    wet = np.nan_to_num(hfds.values * hfds.areacello.values).sum((1, 2))
    heat = np.concatenate([[0], np.cumsum(wet[1:] * 30 * 86400)]) + 1e9
    leak = np.linspace(0, 1e5, 12)
    ohc = xr.DataArray(heat + leak, {"time": hfds.time}, ("time",), name="ohc", attrs={"units": "J"})
    found = heat_closure(ohc, hfds)
    np.testing.assert_allclose(found.residual, leak, atol=1e-6)
    assert found.change[0] == 0
    assert found.accumulated.attrs["units"] == "J"
    local = hfds.copy(data=np.cumsum(hfds.values, axis=0) * 30 * 86400).assign_attrs(units="J m-2")
    np.testing.assert_allclose(heat_closure(local, hfds).residual.fillna(0), 0, atol=1e-3)
    with pytest.raises(ValueError, match="'W m-2'"):
        heat_closure(ohc, hfds.assign_attrs(units="K"))
    with pytest.raises(ValueError, match="share their coordinates"):
        heat_closure(ohc, hfds.assign_coords(time=days(12, step=31)))


@pytest.mark.parametrize("steady", [True, False])
def test_geothermal_heat_closes_what_the_surface_leaves(steady):
    hfds = flux()
    rng = np.random.default_rng(1)
    floor = hfds.copy(data=rng.uniform(0.02, 0.3, hfds.shape)).rename("hfgeou")
    floor = (floor.isel(time=0, drop=True) if steady else floor).where(
        hfds.notnull() if not steady else hfds[0].notnull()
    )
    floor = floor.assign_attrs(units="W m-2")
    both = hfds.values + np.broadcast_to(floor.values, hfds.shape)
    both[0] = 0  # the first record is that of the interval before
    local = hfds.copy(data=np.cumsum(both, axis=0) * 30 * 86400).assign_attrs(units="J m-2")
    found = heat_closure(local, hfds, hfgeou=floor)
    assert np.abs(found.residual).max() < 1e-5
    area = hfds.areacello
    total = (local * area).sum(("lat", "lon")).assign_attrs(units="J")
    found = heat_closure(total, hfds, hfgeou=floor)
    assert np.abs(found.residual).max() < 1e-12 * np.abs(total).max()
    assert list(found) == ["change", "accumulated", "geothermal", "residual"]
    missing = heat_closure(total, hfds)
    np.testing.assert_allclose(missing.residual, found.geothermal, rtol=1e-6, atol=1e-6 * float(found.geothermal[-1]))
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = heat_closure(total.chunk(time=2), hfds.chunk(time=3), hfgeou=floor.chunk(lat=2))
    xr.testing.assert_allclose(lazy.compute(), found, atol=1e-12 * float(np.abs(total).max()))
    with pytest.raises(ValueError, match="'hfgeou' must be in 'W m-2'"):
        heat_closure(total, hfds, hfgeou=floor.assign_attrs(units="mW m-2"))
    with pytest.raises(ValueError, match="share their coordinates"):
        heat_closure(total, hfds, hfgeou=floor.isel(lat=slice(1, None)))
    with pytest.raises(ValueError, match="hfds must have the dimension 'time'"):
        heat_closure(total, hfds[0], hfgeou=floor)


def test_basins_equal_a_loop_and_add_up():
    hfds = flux().assign_attrs(units="J m-2")
    basins = xr.DataArray(
        np.array([[1, 1, 1, 2, 2], [1, 1, 1, 2, 0], [3, 3, 2, 2, np.nan], 5 * [3]]), dims=("lat", "lon")
    )
    found = basin_totals(hfds, basins, names={1: "Atlantic", 2: "Pacific", 3: "Indian"})
    assert found.basin.values.tolist() == ["Atlantic", "Pacific", "Indian"]
    assert found.attrs["units"] == "J"
    for k, name in enumerate(("Atlantic", "Pacific", "Indian"), 1):
        expected = np.nansum(np.where(basins == k, hfds * hfds.areacello, np.nan), axis=(1, 2))
        np.testing.assert_allclose(found.sel(basin=name), expected)
    with pytest.raises(ValueError, match=r"\[3\] without a name"):
        basin_totals(hfds, basins, names={1: "a", 2: "b"})
    with pytest.raises(ValueError, match="no number"):
        basin_totals(hfds, basins * 0)


def test_efficiency_is_the_slope_of_rise_on_heat():
    heat = series(1e22 * np.arange(20.0) + red(20, 0.5, 1)[0] * 1e21)
    rise = (heat * 1.2e-25 + 0.3).assign_attrs(units="m")
    found = thermosteric_efficiency(rise, heat)
    assert found.item() == pytest.approx(1.2e-25, rel=1e-9)
    assert found.attrs["units"] == "m J-1"


def test_lazy_equals_eager_and_computes_nothing():
    hfds = flux()
    basins = xr.DataArray(np.ones((4, 5)), dims=("lat", "lon"))
    values = series(red(60, 0.5, 6))

    def products(x, y):
        ohc = (x.cumsum("time") * 1e6).assign_attrs(units="J m-2").assign_coords(x.coords)
        return [heat_closure(ohc, x), basin_totals(ohc, basins).to_dataset(name="b"), trend_with_error(y)]

    with dask.config.set(scheduler=refuse_to_compute):
        lazy = products(hfds.chunk(time=5, lat=2), values.chunk(case=2, time=7))
    for ours, expected in zip(dask.compute(*lazy), products(hfds, values), strict=True):
        xr.testing.assert_allclose(ours, expected, rtol=1e-10)
