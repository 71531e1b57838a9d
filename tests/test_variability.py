"""Anomalies, trends, variances and eddies against loops, scipy and closed forms, in four calendars."""

import dask
import numpy as np
import pytest
import scipy.signal
import xarray as xr

from polynya.diagnostics import area_mean, deseasoned, detrended, eddy_kinetic_energy, nino, nino34, temporal_variance
from polynya.diagnostics.moments import ClassMoments, batches
from polynya.diagnostics.regions import EmptyRegionError
from polynya.diagnostics.variability import ClimatologyError, climatology_labels

CALENDARS = ["noleap", "julian", "360_day", "standard"]


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def field(n=220, calendar="noleap", *, step=5, seed=0, name="thetao", units="degC"):
    time = xr.date_range("2001-01-03", periods=n, freq=f"{step}D", calendar=calendar, use_cftime=True)
    values = np.random.default_rng(seed).normal(10, 2, (n, 3, 4))
    values[:, 0, 0] = np.nan
    attrs = {"units": units, "long_name": "temperature"}
    return xr.DataArray(values, dims=("time", "lat", "lon"), coords={"time": time}, name=name, attrs=attrs)


@pytest.mark.parametrize("calendar", CALENDARS)
def test_anomalies_equal_a_loop_over_dates(calendar):
    x = field(calendar=calendar, step=1, n=800)
    days = [t.timetuple().tm_yday for t in x["time"].to_numpy()]
    wanted = np.array([x[k] - np.mean([x[j] for j in range(800) if days[j] == d], axis=0) for k, d in enumerate(days)])
    found = deseasoned(x)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found.attrs == {"units": "degC", "long_name": "temperature", "climatology": "day of year"}
    assert found.dtype == "f8"


def test_anomalies_know_no_annual_cycle_and_no_bias():
    x = field(219)
    season = xr.DataArray(
        np.tile(np.random.default_rng(1).normal(0, 50, 73), 3), dims="time", coords={"time": x["time"]}
    )
    np.testing.assert_allclose(deseasoned((x + season + 7).transpose(*x.dims)), deseasoned(x), atol=1e-12)


def test_short_records_are_refused_or_lose_their_mean_only():
    x = field(74)
    with pytest.raises(ClimatologyError, match="97% of the 74 records are the only ones"):
        deseasoned(x)
    found = deseasoned(x, climatology="auto")
    np.testing.assert_allclose(found, x - x.mean("time"))
    assert found.attrs["climatology"] == "time mean"
    assert deseasoned(field(146), climatology="auto").attrs["climatology"] == "day of year"
    np.testing.assert_allclose(deseasoned(field(146), climatology="time mean"), field(146) - field(146).mean("time"))
    with pytest.raises(ValueError, match="climatology must be one of"):
        deseasoned(x, climatology="monthly")


def test_a_leap_year_leaves_records_alone():
    """2004 has a 29 February: five-day records of 2003 and 2004 share no day of the year after it."""
    time = xr.date_range("2003-01-03", periods=146, freq="5D", calendar="julian", use_cftime=True)
    shifted = [
        t if t.year == 2003 else t.replace(month=d.month, day=d.day)
        for t, d in zip(time, [*time[:73], *time[:73]], strict=True)
    ]
    labels, used = climatology_labels(xr.DataArray(shifted, dims="time", name="time"))
    assert used == "time mean"
    assert not labels.any()
    with pytest.raises(ValueError, match="must hold cftime dates"):
        climatology_labels(xr.DataArray(np.arange(5), dims="time", name="time"))


def test_detrending_equals_scipy_and_removes_any_line():
    x = field().fillna(0)
    np.testing.assert_allclose(detrended(x), scipy.signal.detrend(x, axis=0), atol=1e-12)
    line = xr.DataArray(3 + 0.5 * np.arange(220), dims="time", coords={"time": x["time"]})
    np.testing.assert_allclose(detrended(x + line), detrended(x), atol=1e-10)
    gap = x.isel(time=[0, 1, 2, 10, 11, 40])
    days = np.array([0, 5, 10, 50, 55, 200.0])
    fit = np.polynomial.polynomial.polyfit(days, gap.to_numpy().reshape(6, -1), 1)
    wanted = gap.to_numpy().reshape(6, -1) - np.vander(days, 2, increasing=True) @ fit
    np.testing.assert_allclose(detrended(gap).to_numpy().reshape(6, -1), wanted, atol=1e-10)
    with pytest.raises(ValueError, match="detrending needs three values along 'time', got 2"):
        detrended(x.isel(time=slice(2)))


def test_variance_is_numpys_and_land_stays_land():
    x = field()
    np.testing.assert_allclose(temporal_variance(x), np.var(x.to_numpy(), axis=0))
    assert temporal_variance(x).attrs["units"] == "(degC)2"
    assert np.isnan(temporal_variance(x)[0, 0])
    with pytest.raises(ValueError, match="two values along 'time'"):
        temporal_variance(x.isel(time=[0]))


def test_eddy_energy_of_a_rotating_current():
    """u = U + a cos wt, v = a sin wt over whole periods: EKE = a^2 / 2, whatever the mean."""
    phase = 2 * np.pi * np.arange(220) / 11
    u, v = (field(name=n, units="m s-1") * 0 for n in ("uo", "vo"))
    u = u + xr.DataArray(0.8 + 0.3 * np.cos(phase), dims="time")
    v = v + xr.DataArray(0.3 * np.sin(phase), dims="time")
    for x in (u, v):
        x.attrs["units"] = "m s-1"
    eke = eddy_kinetic_energy(u, v)
    np.testing.assert_allclose(eke.max(), 0.045)
    np.testing.assert_allclose(eke.min(), 0.045)
    assert eke.attrs["units"] == "m2 s-2"
    with pytest.raises(ValueError, match="must be in 'm s-1'"):
        eddy_kinetic_energy(u, field())


@pytest.mark.parametrize("function", [deseasoned, detrended, temporal_variance])
def test_lazy_stays_lazy_and_equal(function):
    x = field()
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = function(x.chunk(time=7, lon=3))
    np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), function(x), atol=1e-12)


def pacific(n=220, members=2):
    lat, lon = np.arange(-9.0, 10, 2), np.arange(151.0, 280, 4)
    time = xr.date_range("2001-01-03", periods=n, freq="5D", calendar="noleap", use_cftime=True)
    values = np.random.default_rng(3).normal(25, 1, (members, n, 2, lat.size, lon.size))
    values[..., 3, 14:17] = np.nan
    coords = {"time": time, "lev": [5.0, 20.0], "lat": lat, "lon": lon}
    coords["areacello"] = (
        ("lat", "lon"),
        np.random.default_rng(4).uniform(1, 2, (lat.size, lon.size)),
        {"units": "m2"},
    )
    dims = ("member", "time", "lev", "lat", "lon")
    return xr.DataArray(values, dims=dims, coords=coords, name="thetao", attrs={"units": "degC"})


def test_nino_index_equals_a_loop():
    x = pacific()
    found = nino34(x)
    assert found.sizes == {"member": 2, "time": 190}
    assert found["time"].to_numpy()[0] == x["time"].to_numpy()[30]
    rows, columns = np.flatnonzero(abs(x["lat"]) <= 5), np.flatnonzero((x["lon"] >= 190) & (x["lon"] <= 240))
    box = x.to_numpy()[:, :, 0][..., rows[:, None], columns]
    area = x["areacello"].to_numpy()[rows[:, None], columns]
    for m in range(2):
        for k in (0, 57, 189):
            window = []
            for t in range(k + 1, k + 31):  # trailing: the 30 records that end at k + 30
                alike = [s for s in range(220) if s % 73 == t % 73]
                a = box[m, t] - box[m, alike].mean(0)
                wet = np.isfinite(a)
                window.append((a[wet] * area[wet]).sum() / area[wet].sum())
            np.testing.assert_allclose(found[m, k], np.mean(window), atol=1e-12)


@pytest.mark.parametrize(("region", "west", "east"), [("Nino 3", 210, 270), ("Nino 4", 160, 210)])
def test_other_boxes_of_the_pacific(region, west, east):
    x = pacific()
    found = nino(x, region)
    inside = (x["lon"] >= west) & (x["lon"] <= east)
    box = x.isel(lev=0).where(inside & (abs(x["lat"]) <= 5), drop=True)
    series = area_mean(deseasoned(box), area=box["areacello"]).rolling(time=30).mean()[:, 30:]
    np.testing.assert_allclose(found, series, atol=1e-12)
    assert found.name == region.lower().replace(" ", "")
    with pytest.raises(ValueError, match="region must be one of"):
        nino(x, "Nino 5")


def test_nino_index_is_lazy_takes_areas_and_refuses():
    x = pacific()
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = nino34(x.chunk(time=50))
    np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), nino34(x))
    np.testing.assert_allclose(nino34(x, area=x["areacello"] * 3), nino34(x))
    np.testing.assert_allclose(nino34(x.isel(lev=0, drop=True)), nino34(x))
    with pytest.raises(ValueError, match="more than 30 records, got 30"):
        nino34(x.isel(time=slice(30)))
    with pytest.raises(EmptyRegionError, match="no cell"):
        nino34(x.isel(lat=[0]))


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_moments_do_not_depend_on_batches(size):
    """Variances of batches merged against variances of everything, and anomalies detrended by scipy."""
    x = field(n=160, seed=5)
    labels = np.arange(160) % 73
    tau = 5.0 * np.arange(160)
    sums = ClassMoments()
    dataset = xr.Dataset({"x": x.chunk(time=1)})
    seen = []
    with dask.config.set(scheduler="synchronous"):
        for records, values in batches(dataset, labels, limit=size * x.nbytes / 160):
            seen += records.tolist()
            sums.add(values["x"], labels[records], tau[records])
    assert sorted(seen) == list(range(160))
    anomalies = x.to_numpy() - np.stack([x.to_numpy()[labels == k].mean(0) for k in labels])
    np.testing.assert_allclose(sums.variance(), x.to_numpy().var(0), rtol=1e-12)
    np.testing.assert_allclose(sums.anomaly_variance(), (anomalies**2).mean(0), rtol=1e-12)
    straight = scipy.signal.detrend(np.nan_to_num(anomalies), axis=0)
    np.testing.assert_allclose(np.nan_to_num(sums.anomaly_variance(tau)), (straight**2).mean(0), rtol=1e-11)


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no records were added"):
        ClassMoments().variance()
