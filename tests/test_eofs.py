"""EOFs against numpy's singular value decomposition and planted patterns."""

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import area_of, eofs


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def field(n=40, seed=0, land=True):
    rng = np.random.default_rng(seed)
    lat, lon = np.arange(-60.0, 61, 20), np.arange(0.0, 360, 45)
    values = rng.normal(288, 1, (n, lat.size, lon.size)) * np.linspace(0.5, 2, lon.size)
    if land:
        values[:, 2, 3:5] = np.nan
        values[7, 5, 5] = np.nan
    time = xr.date_range("2001-01-03", periods=n, freq="5D", calendar="noleap", use_cftime=True)
    coords = {"time": time, "lat": lat, "lon": lon}
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="tos", attrs={"units": "K"})


def test_modes_equal_a_singular_value_decomposition():
    x = field()
    found = eofs(x, modes=6)
    cells = np.isfinite(x.values).all(0)
    anomalies = x.values[:, cells] - x.values[:, cells].mean(0)
    w = area_of(x).values[cells]
    u, s, v = np.linalg.svd(anomalies * np.sqrt(w), full_matrices=False)
    np.testing.assert_allclose(found.variance_fraction, (s**2 / (s**2).sum())[:6], rtol=1e-9)
    np.testing.assert_allclose(abs(found.pc), abs(u.T[:6]) * np.sqrt(40), atol=1e-8)
    pattern = v[:6] / np.sqrt(w) * s[:6, None] / np.sqrt(40)
    np.testing.assert_allclose(abs(found.eof.values[:, cells]), abs(pattern), atol=1e-8)
    assert np.isnan(found.eof.values[:, ~cells]).all()
    assert (found.pc.max("time") >= -found.pc.min("time")).all()


def test_all_modes_rebuild_the_anomalies():
    x = field(n=12, land=False)
    found = eofs(x, modes=11)
    np.testing.assert_allclose((found.eof * found.pc).sum("mode").transpose(*x.dims), x - x.mean("time"), atol=1e-9)
    np.testing.assert_allclose(found.pc.var("time"), 1, rtol=1e-9)
    assert found.variance_fraction.sum().item() == pytest.approx(1, rel=1e-12)
    assert found.eof.attrs["units"] == "K"


def test_a_planted_pattern_comes_first():
    x = field(n=200, land=False) * 0.1
    pattern = xr.DataArray(np.cos(np.deg2rad(x.lon)) * np.cos(np.deg2rad(x.lat)))
    wave = xr.DataArray(np.sin(np.arange(200) / 9), dims="time", coords={"time": x.time})
    found = eofs((x + 3 * wave * pattern).transpose(*x.dims), modes=2)
    assert found.variance_fraction[0] > 0.9
    assert abs(np.corrcoef(found.pc[0], wave)[0, 1]) > 0.999
    assert abs(np.corrcoef(found.eof[0].values.ravel(), pattern.transpose("lat", "lon").values.ravel())[0, 1]) > 0.999


def test_errors_say_what_is_wrong():
    x = field()
    with pytest.raises(ValueError, match="select one member"):
        eofs(x.expand_dims("member"))
    with pytest.raises(ValueError, match="from 1 to 39"):
        eofs(x, modes=40)


@pytest.mark.parametrize("chunks", [{"time": 7}, {"lat": 2, "lon": 3}, {"time": 1, "lat": 4}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = eofs(field().chunk(chunks), modes=4)
    found, expected = dask.compute(lazy)[0], eofs(field(), modes=4)
    np.testing.assert_allclose(found.variance_fraction, expected.variance_fraction, rtol=1e-11)
    np.testing.assert_allclose(found.eof, expected.eof, atol=1e-9)
    np.testing.assert_allclose(found.pc, expected.pc, atol=1e-9)
