"""Imprints planted with a known amplitude are found, and errors that only vary leave none."""

import dask
import numpy as np
import pytest
import scipy.signal
import xarray as xr

from polynya.diagnostics import area_of, imprint
from polynya.diagnostics.imprinting import small_scales

LAT, LON = np.arange(-48.0, 49, 4), np.arange(2.0, 360, 9)
SHAPE = (LAT.size, LON.size)


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def on(values, name="thetao", units="degC"):
    times = xr.date_range("2001-01-03", periods=values.shape[-3], freq="5D", calendar="noleap", use_cftime=True)
    coords = {"time": times, "lat": LAT, "lon": LON}
    return xr.DataArray(values, coords, ("member", "time", "lat", "lon")[-values.ndim :], name, {"units": units})


def red(n, phi, seed, scale=1.0):
    """AR(1) noise in time, smooth or not in space, of unit variance."""
    noise = np.random.default_rng(seed).normal(size=(n + 300, *SHAPE))
    return scale * np.sqrt(1 - phi**2) * scipy.signal.lfilter([1], [1, -phi], noise, axis=0)[300:]


def land(field):
    return field.where(~((field.lat > 10) & (field.lon < 80)))


def by_hand(x, cells, periodic):
    """Departures from the mean of a box, by a loop over cells."""
    out, half = np.full(x.shape, np.nan), cells // 2
    for j, i in np.ndindex(x.shape):
        rows = [r for r in range(j - half, j + half + 1) if 0 <= r < x.shape[0]]
        columns = range(i - half, i + half + 1)
        columns = [c % x.shape[1] for c in columns] if periodic else [c for c in columns if 0 <= c < x.shape[1]]
        out[j, i] = x[j, i] - np.nanmean(x[np.ix_(rows, columns)])
    return out


@pytest.mark.parametrize("periodic", [True, False])
def test_small_scales_equal_a_loop_with_land_and_round_the_globe(periodic):
    field = land(on(red(1, 0, 0)))
    field = field if periodic else field.isel(lon=slice(0, 25))
    found = small_scales(field, cells=5)
    np.testing.assert_allclose(found[0], by_hand(field[0].values, 5, periodic), atol=1e-13)
    assert found.attrs == field.attrs


def rms(values):
    field = xr.DataArray(values, {"lat": LAT, "lon": LON}, ("lat", "lon"))
    return float((field**2).weighted(area_of(field).where(field.notnull(), 0)).mean() ** 0.5)


@pytest.mark.parametrize("phi", [0.0, 0.6])
@pytest.mark.parametrize("amplitude", [0.15, 0.4])
def test_a_planted_pattern_is_found_with_its_amplitude(amplitude, phi):
    checkers = amplitude * (-1.0) ** np.add.outer(np.arange(LAT.size), np.arange(LON.size))
    truth = land(on(red(400, 0.5, 1)))
    model = truth + on(checkers + red(400, phi, 2))
    found = imprint(truth, model.assign_attrs(truth.attrs))
    planted = small_scales(land(on(np.broadcast_to(checkers, (1, *SHAPE))))).values[0]
    assert found.fixed.item() == pytest.approx(rms(planted), rel=0.08)
    assert found.ratio > 3
    assert (
        np.corrcoef(found.pattern.values.ravel()[np.isfinite(planted.ravel())], planted[np.isfinite(planted)])[0, 1]
        > 0.8
    )
    calm = small_scales(truth.mean("time")).values
    assert found.relative.item() == pytest.approx(found.fixed.item() / rms(calm), rel=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9])
def test_errors_that_only_vary_leave_no_imprint(phi):
    truth = land(on(red(400, 0.5, 1)))
    ratios = [imprint(truth, truth + on(red(400, phi, seed, 3.0))).ratio.item() for seed in range(2, 8)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)
    found = imprint(truth, truth + on(red(400, phi, 9)))
    assert found.effective_size.item() == pytest.approx(400 * (1 - phi) / (1 + phi), rel=0.15)
    assert found.fixed < 0.6 * found.noise  # at most what chance leaves of the difference


def test_a_large_scale_bias_is_no_imprint():
    truth = land(on(red(100, 0.3, 1)))
    bias = 2.0 * np.cos(np.deg2rad(LON)) * np.cos(np.deg2rad(LAT))[:, None]
    with_bias = imprint(truth, truth + on(bias + red(100, 0.3, 2)))
    assert with_bias.ratio.item() < 1.4
    assert with_bias.fixed < 0.1 * abs(bias).mean()
    perfect = imprint(truth, truth)
    assert perfect.fixed == 0
    assert np.isnan(perfect.ratio)


@pytest.mark.parametrize("leak", [0.0, 0.05])
def test_velocity_that_leaks_into_the_deep_is_found(leak):
    truth = land(on(red(200, 0.8, 1, 0.05)))
    speed = land(on(abs(red(200, 0.5, 2)) + 0.3, "speed", "m s-1"))
    model = (truth + leak * speed.values + red(200, 0.2, 3, 0.1)).assign_attrs(truth.attrs)
    found = imprint(truth, model, source=speed)
    assert found.leak.item() == pytest.approx(leak, abs=1.5e-3)
    share = leak * rms(speed.values[0] * 0 + 1) * float(small_scales(speed).std())
    expected = share / np.hypot(share, 0.1 * np.sqrt(24 / 25))
    assert found.correlation.item() == pytest.approx(expected, abs=0.02)
    assert found.leak.attrs["units"] == "degC (m s-1)-1"


def test_members_and_gaps():
    truth = land(on(red(60, 0.3, 1)))
    model = xr.concat([truth + red(60, 0.3, 2), truth + red(60, 0.3, 3)], "member").assign_coords(member=[4, 7])
    found = imprint(truth, model.transpose("member", "time", "lat", "lon"))
    assert found.fixed.dims == ("member",)
    assert found.member.values.tolist() == [4, 7]
    one = imprint(truth, model.isel(member=1, drop=True))
    assert found.ratio[1].item() == pytest.approx(one.ratio.item(), rel=1e-12)
    gap = model.copy()
    gap[:, 5, 3, 20] = np.nan
    assert np.isnan(imprint(truth, gap).pattern[:, 3, 20]).all()
    assert np.isfinite(imprint(truth, gap).fixed).all()


@pytest.mark.parametrize("chunks", [{"time": 7}, {"lat": 5, "lon": 9}, {"time": 1, "lat": -1}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    truth, speed = land(on(red(30, 0.3, 1))), land(on(abs(red(30, 0.3, 4)), "speed", "m s-1"))
    model = truth + red(30, 0.3, 2) + 0.3 * red(1, 0, 3)
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = imprint(truth.chunk(chunks), model.chunk(time=4), source=speed.chunk(time=3))
    assert all(v.chunks is not None for v in lazy.values())
    xr.testing.assert_allclose(dask.compute(lazy)[0], imprint(truth, model, source=speed), rtol=1e-9)


def test_errors_name_what_is_wrong():
    truth = land(on(red(20, 0.3, 1)))
    with pytest.raises(ValueError, match="cells must be odd"):
        imprint(truth, truth, cells=4)
    with pytest.raises(ValueError, match="five values along 'time', got 3 in 'thetao'"):
        imprint(truth[:3], truth[:3])
    with pytest.raises(ValueError, match="share their coordinates"):
        imprint(truth, truth.isel(time=slice(1, None)))
    with pytest.raises(ValueError, match="convert one"):
        imprint(truth, truth.assign_attrs(units="K"))
    with pytest.raises(ValueError, match="which the field lacks: select one"):
        imprint(truth, truth, source=truth.expand_dims(lev=[5.0]))
    with pytest.raises(ValueError, match="share their coordinates"):
        imprint(truth, truth, source=truth.isel(lat=slice(3, None)))
