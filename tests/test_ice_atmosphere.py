"""The weather of the sea-ice emulators from a reanalysis: against brute force, analytic fields and plain means."""

from __future__ import annotations

from datetime import timedelta

import cftime
import dask
import numpy as np
import pytest
import torch
import xarray as xr

from polynya.emulators import (
    Field,
    Layout,
    Source,
    SourceError,
    UnitsError,
    gensim,
    ice_forcing,
    ice_forcing_of,
    regional,
)
from polynya.emulators.ice_weights import bilinear, covered, nearest

HOURS = timedelta(hours=1)
BEGIN = cftime.DatetimeProlepticGregorian(2017, 1, 1)
ROWS, COLUMNS = np.arange(60, 90.1, 2.5), np.arange(0, 360, 5.0)


def arctic(ny: int = 7, nx: int = 6, size: float = 350.0) -> xr.Dataset:
    """A stereographic grid beside the pole, turned and off its axes, with a land cell in a corner."""
    i, j = np.meshgrid(np.arange(nx) - 2.2, np.arange(ny) - 3.4)
    turn = np.radians(25)
    x, y = size * (i * np.cos(turn) - j * np.sin(turn)), size * (i * np.sin(turn) + j * np.cos(turn))
    lat, lon = inverse(x, y)
    wet = np.ones((ny, nx), bool)
    wet[0, :2] = False
    area = np.full((ny, nx), size**2 * 1e6)
    fields = {"lat": lat, "lon": lon, "areacello": area, "wetmask": wet}
    return xr.Dataset(coords={n: (("y", "x"), v) for n, v in fields.items()})


def plane(lat, lon):
    """Snyder (1987) written again, in numpy: equations 15-9, 21-33."""
    e = np.sqrt(2 / 298.257223563 - 298.257223563**-2)
    phi = np.radians(lat)
    t = np.tan(np.pi / 4 - phi / 2) / ((1 - e * np.sin(phi)) / (1 + e * np.sin(phi))) ** (e / 2)
    rho = 2 * 6378.137 * t / np.sqrt((1 + e) ** (1 + e) * (1 - e) ** (1 - e))
    return rho * np.sin(np.radians(lon)), -rho * np.cos(np.radians(lon))


def inverse(x, y):
    """Latitude by bisection of `plane`."""
    low, high = np.full_like(x, -80.0), np.full_like(x, 90.0)
    for _ in range(60):
        middle = (low + high) / 2
        further = np.hypot(*plane(middle, 0 * x)) > np.hypot(x, y)
        low, high = np.where(further, middle, low), np.where(further, high, middle)
    return (low + high) / 2, np.degrees(np.arctan2(x, -y))


def era5(times: int = 6, every: int = 6, lat=ROWS[::-1], lon=COLUMNS, seed: int = 0) -> xr.Dataset:
    """Random weather under ERA5's names, as its files have it: latitudes descending, numpy's dates."""
    rng = np.random.default_rng(seed)
    date = np.datetime64("2017-01-01") + np.arange(times) * np.timedelta64(every, "h")
    means = {"t2m": (270, 12, "K"), "d2m": (262, 8, "K"), "sp": (1e5, 1e3, "Pa")}
    means |= dict.fromkeys(("u10", "v10"), (0, 6, "m s**-1"))
    shape = (times, len(lat), len(lon))
    fields = {
        n: (("time", "latitude", "longitude"), (m + s * rng.uniform(-1, 1, shape)).astype("f4"), {"units": u})
        for n, (m, s, u) in means.items()
    }
    coords = {"time": date.astype("datetime64[ns]"), "latitude": lat, "longitude": lon}
    return xr.Dataset(fields, coords=coords)


def cells_of(array: xr.DataArray, grid: xr.Dataset) -> np.ndarray:
    return array.values[:, grid["wetmask"].values]


# --- interpolation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [0, -180, 100])
@pytest.mark.parametrize("order", [1, -1])
def test_the_nearest_point_is_that_of_all_distances(turned: int, order: int) -> None:
    grid, lat, lon = arctic(), ROWS[:-1][::order], COLUMNS + turned
    to_lat, to_lon = (grid[c].values.ravel() for c in ("lat", "lon"))
    there, here = np.stack(plane(*np.meshgrid(lat, lon, indexing="ij"))), np.stack(plane(to_lat, to_lon))
    wanted = np.hypot(*(there.reshape(2, -1, 1) - here[:, None])).argmin(0)
    found = nearest(lat, lon, to_lat, to_lon)
    field = np.arange(lat.size * lon.size).reshape(1, lat.size, lon.size)
    np.testing.assert_array_equal(found(field[:, found.rows, found.columns])[0], wanted)


def test_at_the_pole_the_meridian_of_the_cell_counts() -> None:
    to_lat, to_lon = np.array([89.9, 89.99, 90.0]), np.array([-61.0, 178.0, 43.0])
    found = nearest(ROWS, COLUMNS, to_lat, to_lon)
    column = np.broadcast_to(COLUMNS, (len(ROWS), len(COLUMNS)))
    np.testing.assert_array_equal(found(column[found.rows, found.columns]), [300, 180, 45])


@pytest.mark.parametrize(("lon", "order"), [(COLUMNS, 1), (COLUMNS - 180, -1), (np.arange(-40, 41.0, 5), 1)])
def test_bilinear_is_exact_for_bilinear_fields(lon: np.ndarray, order: int) -> None:
    rng = np.random.default_rng(1)
    to_lat, to_lon = rng.uniform(61, 89, 50), rng.uniform(-39, 39, 50)
    lat = ROWS[::order]

    def field(phi, lam):
        east = (lam + 180) % 360 - 180  # linear where the cells are, across Greenwich
        return 3 + 0.2 * phi - 0.1 * east + 0.01 * phi * east

    found = bilinear(lat, lon, to_lat, to_lon)
    maps = field(*np.meshgrid(lat, lon, indexing="ij"))[found.rows, found.columns]
    np.testing.assert_allclose(found(maps), field(to_lat, to_lon), rtol=1e-12)
    np.testing.assert_allclose(found.weight.sum(0), 1)


def test_bilinear_ends_at_the_edge_and_needs_no_points_without_weight() -> None:
    to_lat, to_lon = np.array([87.9, 70.0, 62.5]), np.array([10.0, 42.0, 10.0])
    lat, lon = np.arange(60, 87.6, 2.5), np.arange(-40, 41.0, 5)
    found = bilinear(lat, lon, to_lat, to_lon)
    maps = np.add.outer(lat, lon / 1000)
    maps[0] = np.nan  # south of the third point, which lies on a row
    np.testing.assert_allclose(found(maps[found.rows, found.columns]), [87.5 + 0.01, 70 + 0.04, 62.5 + 0.01])


def test_covered() -> None:
    lon = np.array([0.0, 0.0, 181.0, 359.0])
    lat = np.array([58.0, 90.0, 75.0, 60.0])
    np.testing.assert_array_equal(covered(ROWS[:-1], COLUMNS, lat, lon), [False, True, True, True])
    np.testing.assert_array_equal(covered(ROWS[:-2], np.arange(0, 91, 5.0), lat, lon), [False, False, False, True])


# --- the fields ---------------------------------------------------------------------------------------


def test_fields_are_the_nearest_values_in_canonical_units() -> None:
    grid, data = arctic(), era5()
    data["t2m"] = (data["t2m"] - 273.15).assign_attrs(units="degC")
    data["sp"] = (data["sp"] / 100).assign_attrs(units="hPa")
    made = ice_forcing_of(data, grid)
    assert list(made.data_vars) == ["tas", "huss", "uas", "vas"] and made.tas.dims == ("time", "y", "x")
    assert list(made.time.values) == [BEGIN + k * 12 * HOURS for k in range(3)]
    assert made.tas.attrs["units"] == "K" and made.uas.attrs["standard_name"] == "x_wind"
    weights = nearest(
        data.latitude.values, data.longitude.values, *(grid[c].values[grid.wetmask.values] for c in ("lat", "lon"))
    )
    at = {n: weights(data[n].values[::2, weights.rows, weights.columns]) for n in data.data_vars}
    np.testing.assert_allclose(cells_of(made.tas, grid), at["t2m"] + 273.15, rtol=1e-6)
    wanted = ice_forcing.specific_humidity(torch.from_numpy(at["d2m"]), torch.from_numpy(at["sp"] * 100))
    np.testing.assert_allclose(cells_of(made.huss, grid), wanted, rtol=1e-5)
    assert all(np.isnan(made[n].values[:, ~grid.wetmask.values]).all() for n in made.data_vars)


def test_humidity_is_taken_where_it_is_given() -> None:
    data = era5().rename(t2m="tas", u10="uas", v10="vas").drop_vars(["d2m", "sp"])
    data["huss"] = xr.full_like(data["tas"], 0.002).assign_attrs(units="kg kg**-1")
    made = ice_forcing_of(data, arctic(), method="bilinear")
    np.testing.assert_allclose(made.huss.mean(), 0.002, rtol=1e-6)


def test_wind_follows_the_axes_of_the_grid() -> None:
    """The components along x and y of a wind are its projections on the steps from cell to cell on the sphere."""
    grid, data = arctic(41, 41, 20.0), era5()
    data["u10"], data["v10"] = (xr.full_like(data[n], v) for n, v in (("u10", 3.0), ("v10", 4.0)))
    made = ice_forcing_of(data, grid).isel(time=0)
    lat, lon = (np.radians(grid[c].values) for c in ("lat", "lon"))
    up = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    east = np.stack([-np.sin(lon), np.cos(lon), 0 * lon])
    wind = 3 * east + 4 * np.cross(up, east, axis=0)
    steps = [np.gradient(up, axis=a) for a in (2, 1)]
    for name, along in zip(("uas", "vas"), steps, strict=True):
        wanted = (wind * along).sum(0) / np.linalg.norm(along, axis=0)
        # The published angle is that of the plane, backward, of one step; the pole's cells have none.
        away = (grid.wetmask.values & (grid.lat.values < 88.5))[1:-1, 1:-1]
        np.testing.assert_allclose(made[name].values[1:-1, 1:-1][away], wanted[1:-1, 1:-1][away], atol=0.03)
    speed = np.hypot(made.uas, made.vas).values[grid.wetmask.values]
    np.testing.assert_allclose(speed, 5, rtol=1e-5)


@pytest.mark.parametrize("every", [6, 3])
def test_degree_days_are_plain_trailing_means(every: int) -> None:
    grid = arctic(3, 3)
    day = 24 // every
    data = era5(400 * day, every, lat=np.arange(50, 91, 5.0), lon=np.arange(0, 360, 30.0))[["t2m"]]
    names = ["tas", *gensim.DEGREE_DAYS]
    made = ice_forcing_of(data, grid, names=names, method="bilinear")
    first = 366 * day
    assert made.time.values[0] == BEGIN + timedelta(days=366) and made.sizes["time"] == 68
    here = np.asarray(ice_forcing_of(data, grid, names=["tas"], interval=every * HOURS, method="bilinear").tas)
    for days, label in ((30, "month"), (366, "year")):
        for k in (0, 1, 13, 40, 67):
            end = first + k * day // 2 + 1
            past = here[end - days * day : end].astype(float) - 271.35
            np.testing.assert_allclose(made[f"pdd_{label}"][k], np.maximum(past, 0).mean(0), rtol=1e-6)
            np.testing.assert_allclose(made[f"fdd_{label}"][k], -np.minimum(past, 0).mean(0), rtol=1e-6)
    melting, freezing = ice_forcing.degree_days(torch.from_numpy(here), 366 * day)
    np.testing.assert_allclose(made.pdd_year, melting[1 :: day // 2], rtol=1e-5)
    np.testing.assert_allclose(made.fdd_year, freezing[1 :: day // 2], rtol=1e-5)


def test_degree_days_begin_with_the_first_year_and_do_not_depend_on_the_order(monkeypatch) -> None:
    grid = arctic(3, 3)
    data = era5(1480, lat=np.arange(50, 91, 5.0), lon=np.arange(0, 360, 30.0))
    names = gensim.FORCINGS + gensim.DEGREE_DAYS
    made = ice_forcing_of(data, grid, names=names, start="2018-01-01 18:00")
    assert made.time.values[0] == BEGIN + 1463 * 6 * HOURS
    past = ice_forcing_of(data, grid, names=["tas"], interval=6 * HOURS).tas[:1464].values.astype(float)
    np.testing.assert_allclose(made.pdd_year[0], np.maximum(past - 271.35, 0).mean(0), rtol=1e-6)
    last = made.isel(time=[-1]).compute()
    xr.testing.assert_identical(last, made.compute().isel(time=[-1]))
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_identical(made.compute().isel(time=[-1]), last)


# --- laziness, and the way to an emulator --------------------------------------------------------------


def test_nothing_is_read_before_it_is_asked_for(tmp_path) -> None:
    data, grid = era5(1480, lat=ROWS[::2], lon=COLUMNS[::6]), arctic(3, 3)
    read = []

    def spied(block):
        read.append(block.shape)
        return block

    lazy = data.chunk(time=8)
    lazy = lazy.map(lambda a: a.copy(data=a.data.map_blocks(spied, dtype=a.dtype, meta=a.data._meta)))
    read.clear()
    made = ice_forcing_of(lazy, grid, names=gensim.FORCINGS + gensim.DEGREE_DAYS)
    layout = Layout(tuple(Field(n) for n in made.data_vars), grid, (0, 1), 12 * HOURS)
    forcing = Source.open(made, layout)
    assert not read and made.tas.chunks is not None
    assert max(made.pdd_year.chunks[0]) <= 12 and max(made.tas.chunks[0]) <= 8
    few = made[["tas", "uas"]].isel(time=2).compute()
    assert len(read) == 5  # one chunk each, of what humidity needs too
    state = forcing.at(made.time.values[2])
    np.testing.assert_array_equal(np.nan_to_num(few.tas), state.data[0, 0])


def test_a_store_serves_as_a_dataset_does_and_its_result_can_be_written(tmp_path) -> None:
    data, grid = era5(), arctic()
    data.chunk(time=2).to_zarr(tmp_path / "era5.zarr", zarr_format=3, consolidated=False)
    made = ice_forcing_of(tmp_path / "era5.zarr", grid)
    xr.testing.assert_equal(made.compute(), ice_forcing_of(data, grid).compute())
    made.to_zarr(tmp_path / "forcing.zarr", zarr_format=3, consolidated=False)
    layout = Layout(tuple(Field(n) for n in regional.FORCINGS), grid, (0, 1), 12 * HOURS)
    one, two = (Source.open(d, layout).at(BEGIN + 12 * HOURS) for d in (made, tmp_path / "forcing.zarr"))
    assert torch.equal(one.data, two.data) and one.data.shape == (1, 8, 7, 6)


# --- errors -------------------------------------------------------------------------------------------


def refused(data: xr.Dataset, message: str, grid: xr.Dataset | None = None, error=SourceError, **options) -> None:
    with pytest.raises(error, match=message):
        ice_forcing_of(data, arctic() if grid is None else grid, **options).compute()


def test_variables_that_are_missing_or_odd() -> None:
    refused(era5().drop_vars("t2m"), r"dataset, with d2m, sp, u10, v10, lacks tas \(t2m or 2m_temperature\);")
    refused(era5().drop_vars("sp"), r"lacks ps .*humidity is huss, or both tdps and ps")
    refused(era5().expand_dims(expver=2), r"wanted tas \(time, lat, lon\), got .*'expver': 2")
    refused(era5().isel(latitude=0), "wanted a regular map with 1-D lat and lon")
    refused(era5(), "wanted names among .*, got tas, thetao", names=["tas", "thetao"])
    refused(era5(), "wanted a method among nearest, bilinear, got 'cubic'", method="cubic")
    assert issubclass(SourceError, ValueError) and issubclass(UnitsError, ValueError)


def test_units_that_are_unknown_or_wrong() -> None:
    data = era5()
    refused(
        data.assign(u10=data.u10.assign_attrs(units="knots")), r"uas: wanted units 'm s-1'.*'knots'", error=UnitsError
    )
    celsius = (data.t2m - 273.15).drop_attrs()
    refused(data.assign(t2m=celsius), r"tas: wanted 150 to 350 K over the ocean, got -.* at 2017-.*, lat .*`units`")
    pressure = (data.sp / 100).drop_attrs()
    refused(data.assign(sp=pressure), r"ps: wanted 30000 to 120000 Pa")
    refused(data.assign(v10=data.v10 * 100), "vas: wanted -120 to 120 m s-1")


def test_times_with_gaps_or_out_of_order() -> None:
    data = era5(20)
    refused(
        data.isel(time=[0, 1, 2, 5, 6, 7]), "records are missing between 2017-01-01 12:00:00 and 2017-01-02 06:00:00"
    )
    refused(data.isel(time=[0, 2, 1, 3]), "time must increase, but record 2")
    refused(data.isel(time=[0, 1, 1, 2]), "time must increase, but record 2")
    odd = data.assign_coords(time=data.time.values + np.timedelta64(10, "m") * (np.arange(20) > 9))
    refused(
        odd,
        "wanted records at equal steps, but from 2017-01-03 06:00:00 to 2017-01-03 12:10:00 it is 6:10",
    )
    refused(data.isel(time=[0]), "at least two records, got 1")
    refused(era5(20, every=5), r"divides the emulator's 12:00:00, which divides 6 days, got 5:00:00")
    refused(data.drop_vars("time"), "has no records")


def test_too_little_past() -> None:
    names = gensim.FORCINGS + gensim.DEGREE_DAYS
    refused(era5(20), r"366 days, 1464 records of 6:00:00 each.* but it holds 20 \(5 days\)", names=names)
    data = era5(1480, lat=ROWS[::4], lon=COLUMNS[::12])
    message = r"up to 2017-12-01 00:00:00 there are 1337 \(334.25 days\); start at 2018-01-01 18:00:00 or later"
    refused(data, message, names=names, start="2017-12-01 00:00")
    refused(data, "wanted a start that is one of its dates", start="2016-12-01")


def test_a_domain_that_does_not_cover_the_ocean() -> None:
    refused(era5(lat=ROWS[10:]), r"does not cover the grid: \d+ of 40 ocean cells.*lie outside of lat 85 to 90")
    refused(era5(lon=COLUMNS[:40]), r"lon 0 to 195")
    grid = arctic()
    grid["wetmask"][:] = False
    grid["wetmask"][3, 2] = True  # of land nothing is asked
    assert ice_forcing_of(era5(lat=ROWS[10:]), grid).tas.notnull().sum() == 3
    refused(era5(), "the grid lacks wetmask", grid=arctic().drop_vars("wetmask"))


def test_holes_over_the_ocean() -> None:
    data = era5()
    data["u10"][2] = np.nan
    refused(data, r"uas is NaN in 40 values over the ocean, the first at 2017-01-01 12:00:00, lat")
