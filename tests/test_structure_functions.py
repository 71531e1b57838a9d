"""Structure functions against all pairs one by one, covariances, and power laws."""

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import structure_function


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def maps(shape=(2, 9, 11), seed=0, land=True):
    values = np.random.default_rng(seed).normal(15, 1, shape)
    if land:
        values[..., 2:5, 3:7] = np.nan
    return xr.DataArray(values, dims=("time", "y", "x"), name="zos", attrs={"units": "m"})


def brute(one, dy, dx, edges):
    y, x = (c.ravel() for c in np.mgrid[: one.shape[0], : one.shape[1]])
    a = one.ravel()
    i, j = np.triu_indices(a.size, 1)
    distance = np.hypot((y[i] - y[j]) * dy, (x[i] - x[j]) * dx)
    squares = (a[i] - a[j]) ** 2
    good = np.isfinite(squares)
    pairs = np.histogram(distance[good], edges)[0]
    return np.histogram(distance[good], edges, weights=squares[good])[0] / pairs, pairs


def test_all_pairs_of_water_count_once():
    field, edges = maps(), np.array([0, 9e3, 15e3, 28e3, 50.5e3])
    found = structure_function(field, spacing=(8e3, 1e4), edges=edges)
    for t in range(2):
        structure, pairs = brute(field.values[t], 8e3, 1e4, edges)
        np.testing.assert_array_equal(found.pairs[t], pairs)
        np.testing.assert_allclose(found.structure[t], structure, rtol=1e-10)
    assert found.structure.attrs["units"] == "(m)2"


def test_white_noise_is_twice_the_variance_and_a_plane_grows_like_r2():
    found = structure_function(maps((4, 128, 128)), spacing=(1e4, 1e4))
    np.testing.assert_allclose(found.structure.mean("time"), 2, rtol=0.03)
    _, x = np.mgrid[:64, :64]
    plane = structure_function(xr.DataArray(0.1 * x + 300, dims=("y", "x")), spacing=(1e4, 1e4)).structure
    slope = np.polyfit(np.log(plane.distance), np.log(plane), 1)[0]
    assert slope == pytest.approx(2, abs=0.12)  # lags along x run out first


def test_slope_of_a_shallow_spectrum_survives_land():
    """E ~ k^-2 has S ~ r; land changes the sample, not the law."""
    n, rng = 256, np.random.default_rng(0)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))
    k[0, 0] = np.inf
    noise = np.fft.fft2(rng.normal(size=(8, n, n)))
    field = xr.DataArray(np.fft.ifft2(noise * k**-1.5).real[:, :128, :128].copy(), dims=("time", "y", "x"))
    whole = structure_function(field, spacing=(1e4, 1e4)).structure.mean("time")
    field[:, 30:60, 50:100] = np.nan
    masked = structure_function(field, spacing=(1e4, 1e4)).structure.mean("time")
    for found in (whole, masked):
        near = found.sel(distance=slice(2e4, 2e5))
        assert np.polyfit(np.log(near.distance), np.log(near), 1)[0] == pytest.approx(1, abs=0.2)
    np.testing.assert_allclose(masked, whole, rtol=0.3)


def test_a_large_mean_costs_no_digits_and_land_alone_is_nan():
    field = maps(land=False)
    hot = (field + 1e6).astype("f8")
    options = {"spacing": (1e4, 1e4)}
    np.testing.assert_allclose(
        structure_function(hot, **options).structure, structure_function(field, **options).structure, rtol=1e-8
    )
    assert np.isnan(structure_function(field * np.nan, **options).structure).all()


def test_errors_say_what_is_wrong():
    for edges in ([1.0], [2.0, 1.0], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="rising distances"):
            structure_function(maps(), spacing=(1, 1), edges=edges)
    with pytest.raises(ValueError, match="in memory"):
        structure_function(maps())


@pytest.mark.parametrize("chunks", [{"time": 1}, {"y": 4, "x": 3}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = structure_function(maps().chunk(chunks), spacing=(1e4, 1e4))
    xr.testing.assert_allclose(lazy.compute(), structure_function(maps(), spacing=(1e4, 1e4)))
