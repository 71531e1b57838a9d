"""Heatwaves against a loop over days written from the definition, and planted events."""

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import heatwave_climatology, marine_heatwaves


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def daily(years=4, seed=0, calendar="standard", cells=3):
    time = xr.date_range("2001-01-01", periods=365 * years + years // 4, freq="D", calendar=calendar, use_cftime=True)
    rng = np.random.default_rng(seed)
    day = np.arange(time.size)
    noise = np.zeros((time.size, cells))
    for t in range(1, time.size):
        noise[t] = 0.9 * noise[t - 1] + 0.4 * rng.normal(size=cells)
    values = 15 + 5 * np.cos(2 * np.pi * day / 365.25)[:, None] + noise
    return xr.DataArray(values, {"time": time}, ("time", "x"), name="tos", attrs={"units": "degC"})


def test_climatology_equals_a_loop():
    sst = daily()
    found = heatwave_climatology(sst)
    when = sst.time.to_numpy()
    leap = {(m, d): k for k, (m, d) in enumerate(_leap_days(), 1)}
    day = np.array([leap[t.month, t.day] for t in when])
    raw = np.empty((2, 366, 3))
    for d in range(1, 367):
        near = [(x - d) % 366 <= 5 or (d - x) % 366 <= 5 for x in day]
        raw[0, d - 1], raw[1, d - 1] = sst.values[near].mean(0), np.percentile(sst.values[near], 90, axis=0)
    for k, name in enumerate(("climatology", "threshold")):
        for d in (1, 60, 100, 366):
            around = [(d - 1 + s) % 366 for s in range(-15, 16)]
            np.testing.assert_allclose(found[name][:, d - 1], raw[k, around].mean(0), rtol=1e-12)


def _leap_days():
    lengths = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    return [(m, d) for m, n in enumerate(lengths, 1) for d in range(1, n + 1)]


def flat_climatology(sst):
    shape = {"x": sst.sizes["x"], "dayofyear": 366}
    made = xr.DataArray(np.full(tuple(shape.values()), 15.0), dims=tuple(shape))
    return xr.Dataset({"climatology": made, "threshold": made + 1})


def test_events_follow_the_definition():
    sst = daily(cells=1) * 0 + 15
    sst.attrs["units"] = "degC"
    sst = sst.copy()
    sst[10:14] = 16.5  # four days: too short
    sst[30:35] = 16.5  # five days, moderate
    sst[50:56] = 17.5  # two events of six and five days, two apart: one, strong
    sst[58:63] = 17.5
    sst[80:85] = 20  # followed by a gap of three: two events, extreme
    sst[88:93] = 18.2
    found = marine_heatwaves(sst, flat_climatology(sst))
    category = found.category.values[:, 0]
    expected = np.zeros(sst.sizes["time"])
    expected[30:35], expected[50:56], expected[58:63], expected[80:85], expected[88:93] = 1, 2, 2, 4, 3
    np.testing.assert_array_equal(category, expected)
    np.testing.assert_allclose(found.intensity.values[30:35, 0], 1.5)
    assert (found.intensity.values[:30] == 0).all()


def test_about_a_tenth_of_the_days_are_warm_and_fewer_are_events():
    sst = daily(years=8)
    found = marine_heatwaves(sst, heatwave_climatology(sst))
    share = float((found.intensity != 0).mean())
    assert 0.03 < share < 0.1


def test_leap_years_do_not_shift_the_season():
    for calendar in ("standard", "noleap", "360_day"):
        sst = daily(calendar=calendar)
        assert np.isfinite(heatwave_climatology(sst).threshold).all() or calendar != "standard"


def test_errors_say_what_is_wrong():
    sst = daily()
    with pytest.raises(ValueError, match="subtract 273.15"):
        heatwave_climatology(sst.assign_attrs(units="K"))
    with pytest.raises(ValueError, match="daily values of a year"):
        heatwave_climatology(sst[::5])
    with pytest.raises(ValueError, match="must be odd"):
        heatwave_climatology(sst, window=10)
    with pytest.raises(ValueError, match="without \\['threshold'\\]"):
        marine_heatwaves(sst, heatwave_climatology(sst).drop_vars("threshold"))


@pytest.mark.parametrize("chunks", [{"time": 100}, {"x": 1}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    sst = daily()
    sst[:, 1] = np.nan
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = marine_heatwaves(sst.chunk(chunks), heatwave_climatology(sst.chunk(chunks)))
    expected = marine_heatwaves(sst, heatwave_climatology(sst))
    assert np.isnan(expected.intensity[:, 1]).all()
    xr.testing.assert_allclose(dask.compute(lazy)[0], expected)
