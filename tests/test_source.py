"""Stores as they come: layouts, grids, calendars, anomalies, and what is said about bad ones."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import cftime
import cloudpickle
import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
from small import small_grid

from polynya.emulators import (
    Field,
    Layout,
    Source,
    SourceError,
    UnitsError,
    gaussian_grid,
    grid_of,
    layout_of,
    open_store,
    statistics_of,
)
from polynya.emulators.anomalies import means_of
from polynya.emulators.stores import open_zarr

OM4 = Path(__file__).parent / "data" / "om4" / "OM4.zarr.zip"
DAY = timedelta(days=1)


def julian_years(years: int, first: int = 1975) -> list[cftime.DatetimeJulian]:
    """Five-day means as the public stores date them: 73 a year, one of six days in leap years."""
    return [
        cftime.DatetimeJulian(year, 1, 3, 12) + (5 * k + (year % 4 == 0 and k >= 12)) * DAY
        for year in range(first, first + years)
        for k in range(73)
    ]


def flux_store(times: list[cftime.datetime], lazy: bool = True, seed: int = 1) -> xr.Dataset:
    """hfds and zos on the small grid, float32, NaN on land."""
    grid = small_grid(levels=1).isel(lev=0, drop=True)
    wet = grid["wetmask"].values
    values = np.random.default_rng(seed).normal(20, 50, (2, len(times), *wet.shape)).astype("float32")
    values = np.where(wet, values, np.nan)
    names, dims = ("hfds", "zos"), ("time", "lat", "lon")
    data = {n: (dims, dask.array.from_array(v, (1, -1, -1)) if lazy else v) for n, v in zip(names, values, strict=True)}
    return xr.Dataset(data, coords={"time": times}).assign_coords(grid.coords)


def columns(levels: int = 3, times: int = 4) -> xr.Dataset:
    """thetao on a few levels, five days apart."""
    grid = small_grid()
    wet = grid["wetmask"].values
    values = np.where(wet, np.random.default_rng(0).normal(size=(times, *wet.shape)), np.nan).astype("float32")
    dates = [cftime.DatetimeNoLeap(2000, 1, 1) + 5 * k * DAY for k in range(times)]
    data = xr.Dataset({"thetao": (("time", "lev", "lat", "lon"), values)}, coords={"time": dates})
    return data.assign_coords(grid.coords).isel(lev=slice(0, levels))


def flattened(dataset: xr.Dataset, name: str = "thetao", label: str = "{name}_{k}") -> xr.Dataset:
    """One variable per level instead of one with levels."""
    parts = {
        label.format(name=name, k=k, depth=f"{z:.1f}".replace(".", "_")): dataset[name].isel(lev=k).drop_vars("lev")
        for k, z in enumerate(dataset["lev"].values.tolist())
    }
    return dataset.drop_vars(name).assign(parts)


# --- layouts -------------------------------------------------------------------------------------


def test_three_layouts_of_the_public_stores_give_the_same_dataset() -> None:
    public = open_zarr(OM4)
    stacked = {n: [public[f"{n}_{k}"] for k in range(5)] for n in ("thetao", "so", "uo", "vo")}
    masks = [public[f"mask_{k}"] for k in range(19)]
    bare = public.drop_vars([v for v in public.data_vars if str(v)[-1].isdigit()])
    depths = [f"{z:.1f}".replace(".", "_") for z in public["lev"].values]
    first = bare.assign({f"{n}_lev_{depths[k]}": v for n, parts in stacked.items() for k, v in enumerate(parts)})
    first = first.assign(wetmask=xr.concat(masks, "lev").assign_coords(lev=public["lev"]))
    upper = bare.isel(lev=slice(0, 5))
    compact = upper.assign({n: xr.concat(parts, "lev").transpose("time", ...) for n, parts in stacked.items()})
    compact = compact.assign(wetmask=xr.concat(masks[:5], "lev"))
    flat_upper = public.isel(lev=slice(0, 5)).drop_vars([f"mask_{k}" for k in range(5, 19)])
    assert open_store(first).identical(open_store(public))
    assert open_store(compact).identical(open_store(flat_upper))
    names, states = ("uo", "vo", "thetao", "so", "zos"), []
    for store in (public, first, compact, flat_upper):
        layout = layout_of(open_store(store), names, slots=(-1, 0))
        assert layout.shape == (42, 24, 48)
        states.append(Source.open(store, layout).state().data)
    assert all(torch.equal(states[0], s) for s in states[1:])


@pytest.mark.parametrize("label", ["{name}_{k}", "{name}_lev_{depth}"])
@pytest.mark.parametrize("lazy", [True, False])
def test_flat_levels_are_put_in_order_whatever_order_they_come_in(label: str, lazy: bool) -> None:
    compact = columns()
    flat = flattened(compact.chunk(time=1) if lazy else compact, label=label)
    shuffled = flat[list(flat.data_vars)[::-1]]
    opened = open_store(shuffled)
    assert (opened.thetao.chunks is not None) == lazy
    assert opened.thetao.dims == ("time", "lev", "lat", "lon")
    assert np.array_equal(opened.thetao.values, compact.thetao.values, equal_nan=True)
    some = opened.thetao.isel(time=[2, 0], lev=1, lat=slice(2, 5)).values
    assert np.array_equal(some, compact.thetao.values[[2, 0], 1, 2:5], equal_nan=True)
    assert open_store(opened).identical(opened)


def test_levels_get_their_depth_from_names_if_nothing_else_tells() -> None:
    flat = flattened(columns(), label="{name}_lev_{depth}").drop_vars(["lev", "dz"])
    flat = flat.drop_dims("lev").assign_coords(wetmask=columns()["wetmask"].isel(lev=0, drop=True))
    assert open_store(flat)["lev"].values.tolist() == [10.0, 50.0, 200.0]


def test_a_variable_may_stop_above_the_deepest_level() -> None:
    flat = flattened(columns().chunk(time=1)).drop_vars("thetao_2")
    opened = open_store(flat)
    assert opened.sizes["lev"] == 3 and opened.thetao.attrs["levels"] == 2
    assert opened.thetao.isel(lev=2).isnull().all()
    layout = layout_of(opened, ["thetao"])
    assert layout.fields == (Field("thetao", 2),) and layout.grid.sizes["lev"] == 2
    assert Source.open(opened, layout).state().data.shape == (1, 2, 8, 12)
    with pytest.raises(SourceError, match=r"wanted 3 levels of thetao, got 2 \(down to 50.0 m\); choose a layout"):
        layout_of(opened, ["thetao"], levels=3)
    with pytest.raises(SourceError, match="wanted 3 levels of thetao, got 2"):
        Source.open(opened, Layout((Field("thetao", 3),), small_grid()))


@pytest.mark.parametrize("kind", ["int8", "float32", "bool"])
def test_flat_masks_of_any_type_are_wet_or_not(kind: str) -> None:
    store = columns()
    masks = {f"mask_{k}": store["wetmask"].isel(lev=k).reset_coords(drop=True).astype(kind) for k in (1, 0, 2)}
    wet = open_store(flattened(store).drop_vars("wetmask").assign(masks))["wetmask"]
    assert wet.dtype == bool and np.array_equal(wet.values, store["wetmask"].values)
    if kind != "float32":
        shallow = {n: m for n, m in masks.items() if n != "mask_2"}
        wet = open_store(flattened(store).drop_vars("wetmask").assign(shallow))["wetmask"]
        assert not wet.values[2].any() and np.array_equal(wet.values[:2], store["wetmask"].values[:2])
    upper = open_store(flattened(store).drop_vars("thetao_2")).isel(lev=slice(0, 1))
    assert layout_of(upper, ["thetao"]).fields == (Field("thetao", 1),)


def test_columns_that_are_none_are_refused() -> None:
    flat = flattened(columns())
    with pytest.raises(SourceError, match=r"thetao: level 1 is missing: the store has thetao_0, thetao_2; add it"):
        open_store(flat.drop_vars("thetao_1"))
    with pytest.raises(SourceError, match="named in two ways, thetao_0 and thetao_lev_50_0"):
        open_store(flat.rename(thetao_1="thetao_lev_50_0"))
    with pytest.raises(SourceError, match="holds both thetao and thetao_0"):
        open_store(flat.assign(thetao=columns().thetao))
    depths = flattened(columns(), label="{name}_lev_{depth}").rename(thetao_lev_50_0="thetao_lev_77_0")
    with pytest.raises(SourceError, match=r"levels are named 10.0, 77.0, 200.0, but `lev` holds 10.0, 50.0, 200.0"):
        open_store(depths)
    with pytest.raises(SourceError, match="thetao_1 is .*'north': 7.*: wanted one grid"):
        open_store(flat.assign(thetao_1=flat.thetao_1.isel(lat=slice(0, 7)).rename(lat="north").drop_vars("north")))


def test_units_that_are_unknown_name_the_variable() -> None:
    store = columns()
    store.thetao.attrs["units"] = "furlong"
    with pytest.raises(UnitsError, match="thetao: wanted units 'degC'.*got 'furlong'"):
        open_store(store)


# --- grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ny", [2, 3, 24, 90, 180])
def test_gaussian_grids_are_those_of_the_legendre_polynomials(ny: int) -> None:
    grid = gaussian_grid(ny, 2 * ny)
    sine, weight = np.polynomial.legendre.leggauss(ny)
    assert np.abs(grid.lat.values[:, 0] - np.degrees(np.arcsin(sine))).max() < 1e-10
    assert np.abs(grid.areacello.values[:, 0] * ny / np.pi / 6.371e6**2 / weight - 1).max() < 1e-9
    assert abs(float(grid.areacello.sum()) / (4 * np.pi * 6.371e6**2) - 1) < 1e-13
    assert np.array_equal(grid.lat.values, -grid.lat.values[::-1])
    # Quadrature of degree 2n - 1: cos²(lat) is 1 - sin², whose mean over the sphere is 2/3.
    mean = float((grid.areacello * np.cos(np.radians(grid.lat)) ** 2).sum() / grid.areacello.sum())
    assert mean == pytest.approx(2 / 3, rel=1e-12)


def test_the_gaussian_grid_of_one_degree_is_the_published_one() -> None:
    grid = gaussian_grid(180, 360)
    assert np.allclose(grid.lat.values[[0, 89, 90, 179], 0], [-89.2366, -0.4986, 0.4986, 89.2366], atol=5e-5)
    assert np.abs(np.diff(grid.lat.values[60:120, 0]) - 0.9972).max() < 1e-4
    assert grid.lon.values[0, [0, -1]].tolist() == [0.5, 359.5]
    with pytest.raises(ValueError, match="at least 2 x 2"):
        gaussian_grid(1, 4)


def test_a_gaussian_store_without_coordinates_gets_its_grid_and_others_do_not() -> None:
    bare = columns().drop_vars(["lat", "lon", "areacello", "deptho", "lat_corner", "lon_corner", "wetmask_corner"])
    bare = bare.rename(lat="y", lon="x")
    gaussian = open_store(bare.assign_attrs(grid_type="gaussian"))
    layout = layout_of(gaussian, ["thetao"])
    assert layout.dims == ("y", "x") and layout.grid.lat[0, 0] < 0
    assert np.array_equal(layout.grid.areacello.values, gaussian_grid(8, 12).areacello.values)
    assert Source.open(gaussian, layout).state().data.shape == (1, 3, 8, 12)
    southward = gaussian.assign_coords(y=np.arange(8.0, 0.0, -1.0))
    assert grid_of(southward)["lat"].values[0, 0] > 0
    with pytest.raises(SourceError, match="lacks `areacello`.*gaussian_grid"):
        grid_of(open_store(bare))
    with pytest.raises(SourceError, match="has no dimensions y, x"):
        grid_of(gaussian.rename(y="j", x="i"))
    given = open_store(bare).assign_coords(gaussian_grid(8, 12).coords)
    assert np.array_equal(grid_of(given)["lat"].values, layout.grid.lat.values)


# --- calendars -----------------------------------------------------------------------------------


def source_of(store: xr.Dataset, slots: tuple[int, ...] = (0,), names: tuple[str, ...] = ("hfds",)) -> Source:
    layout = layout_of(store, ["zos"], slots=slots)
    return Source.open(store, Layout(tuple(Field(n) for n in names), layout.grid, slots, layout.interval))


def test_dates_are_counted_in_records_across_leap_years() -> None:
    times = julian_years(30)
    source = source_of(flux_store(times))
    assert source.spacing == 5 * DAY and times[-1] - times[0] == (2189 * 5 + 8) * DAY
    date = times[0]
    for k in range(1, len(times) // 2):
        date = source.shift(date, 10 * DAY)
        assert date == times[2 * k]
    assert source.shift(times[100], -5 * DAY) == times[99]
    assert source.shift(times[100], timedelta(0)) == times[100]
    assert source.shift(times[0], 2189 * 5 * DAY) == times[-1]
    assert source.shift(times[-1], 10 * DAY) == times[-1] + 10 * DAY, "past the last record"
    assert source.shift(times[0], -5 * DAY) == times[0] - 5 * DAY, "before the first"
    assert source.shift(times[84], 3 * DAY) == times[84] + 3 * DAY, "no whole number of records"
    later = timedelta(hours=12)
    assert source.shift(times[84] + later, 10 * DAY) == times[86] + later, "between records"


def test_the_nearest_record_is_within_half_an_interval() -> None:
    times = julian_years(2)
    source = source_of(flux_store(times))
    assert source.nearest(times[7] + 2 * DAY) == times[7]
    assert source.nearest(times[7] + 3 * DAY) == times[8]
    assert source.nearest(times[-1] + 3 * DAY) == times[-1] + 3 * DAY
    with pytest.raises(SourceError, match="wanted a date of the julian calendar, got .* of noleap"):
        source.at(cftime.DatetimeNoLeap(1975, 2, 1))


def test_months_are_records_too() -> None:
    times = [cftime.DatetimeNoLeap(2000 + k // 12, k % 12 + 1, 1) for k in range(36)]
    source = source_of(flux_store(times))
    assert source.shift(times[0], 30 * DAY) == times[1]
    assert source.shift(times[3], 365 * DAY) == times[15]
    assert source.shift(times[0], 5 * DAY) == times[0] + 5 * DAY


def test_forcing_that_ends_too_early_is_counted_in_records() -> None:
    times = julian_years(30)
    source = source_of(flux_store(times), (-1, 0))
    source.require(times[1], 1094, 10 * DAY)
    with pytest.raises(
        SourceError, match="and 1095 steps of 10 days.* after it: with time slots .*choose a time within"
    ):
        source.require(times[1], 1095, 10 * DAY)
    with pytest.raises(SourceError, match="has no record of hfds for"):
        source.require(times[0], 1, 10 * DAY)
    source.require(times[1], 100, 3 * DAY)


def test_finding_a_record_does_not_walk_through_all_of_them() -> None:
    import time

    times = julian_years(65)
    source = source_of(flux_store(times))
    assert source.nearest(times[0]) == times[0]
    begun = time.perf_counter()
    for date in times[:1000]:
        source.nearest(date)
    assert time.perf_counter() - begun < 1.0  # it was 5 s with a loop over the records


# --- stores that are bad --------------------------------------------------------------------------


def test_time_that_does_not_increase_or_has_gaps_is_found_at_opening() -> None:
    store = flux_store(julian_years(3))
    order = np.arange(100)
    order[[40, 41]] = [41, 40]
    with pytest.raises(SourceError, match=r"record 41 \(1975-07-22 12:00:00\) does not come after record 40"):
        source_of_layout(store.isel(time=order), store)
    with pytest.raises(SourceError, match="time must increase"):
        source_of_layout(store.isel(time=[0, 1, 1, 2]), store)
    with pytest.raises(SourceError, match=r"missing between 1975-02-02 12:00:00 and 1975-02-12 12:00:00 .*contiguous"):
        source_of_layout(store.isel(time=[*range(7), *range(8, 20)]), store)
    with pytest.raises(SourceError, match="wanted cftime dates, got datetime64"):
        days = np.datetime64("2000-01-01", "ns") + np.arange(219) * np.timedelta64(5, "D")
        source_of_layout(store.assign_coords(time=days), store)
    with pytest.raises(SourceError, match="has no records"):
        source_of_layout(store.isel(time=slice(0, 0)).drop_vars("hfds"), store, "zos")
    source_of_layout(store, store)  # the six days of 1976 are no gap


def source_of_layout(store: xr.Dataset, whole: xr.Dataset, name: str = "hfds") -> Source:
    return Source.open(store, Layout((Field(name),), grid_of(open_store(whole))))


def test_time_slots_want_records_of_their_interval() -> None:
    store = flux_store(julian_years(2))
    layout = layout_of(store, ["zos"], slots=(-1, 0))
    with pytest.raises(SourceError, match="wanted records every 5 days, 0:00:00 for the time slots"):
        Source.open(store.isel(time=slice(0, 20, 2)), layout)


def test_a_hole_in_the_ocean_is_named_with_file_date_and_place() -> None:
    store = columns()
    store["thetao"][2, 1, 4, 5] = np.nan
    source = Source.open(store, layout_of(open_store(store), ["thetao"]))
    source.state(source.times[1])
    with pytest.raises(
        SourceError, match=r"the dataset, 2000-01-11 00:00:00: thetao: 1 NaN .* level 1, row 4, column 5; the mask"
    ):
        source.state(source.times[2])
    store["thetao"][3] = np.nan
    with pytest.raises(SourceError, match=r"\(thetao: NaN everywhere\)"):
        Source.open(store, source.layout).state()


def test_a_mask_is_not_read_off_a_variable_that_is_nan_everywhere() -> None:
    store = columns().drop_vars("wetmask")
    store["thetao"][0] = np.nan
    with pytest.raises(SourceError, match="thetao is NaN everywhere at 2000-01-01.*add a `wetmask`"):
        open_store(store)


# --- anomalies -----------------------------------------------------------------------------------


def anomalies_of(store: xr.Dataset, climatology: xr.Dataset | Path | None = None) -> xr.DataArray:
    grid = grid_of(open_store(flux_store(julian_years(1))))
    return Source.open(store, Layout((Field("hfds_anomalies"),), grid), climatology).dataset["hfds_anomalies"]


def test_anomalies_are_relative_to_the_day_of_the_year_and_lazy() -> None:
    store = flux_store(julian_years(4))
    found = anomalies_of(store)
    assert found.chunks is not None and found.dtype == np.float32 and found.attrs["units"] == "W m-2"
    flux = store.hfds.load()
    groups = flux.groupby("time.dayofyear")
    assert np.array_equal((groups - groups.mean("time")).values, found.values, equal_nan=True)
    odd = anomalies_of(flux_store(julian_years(4)).chunk(time=7, lat=3))
    assert np.array_equal(odd.values, found.values, equal_nan=True)
    eager = anomalies_of(flux_store(julian_years(4), lazy=False))
    assert eager.chunks is None and np.array_equal(eager.values, found.values, equal_nan=True)


def test_opening_and_reading_anomalies_reads_no_more_than_the_days_that_are_wanted() -> None:
    read: list[int] = []

    def noted(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:  # type: ignore[type-arg]
        read.append(block_info[None]["chunk-location"][0])  # type: ignore[index]
        return block

    store = flux_store(julian_years(4))
    store["hfds"] = store.hfds.copy(data=store.hfds.data.map_blocks(noted, dtype="float32"))
    found = anomalies_of(store)
    assert read == []
    found.isel(time=3).load()
    assert sorted(read) == [3, 3, 76, 149, 222]
    read.clear()
    found.isel(time=76).load()
    assert read == [76], "the day's mean is kept"


def test_a_saved_climatology_gives_a_part_the_anomalies_of_the_whole() -> None:
    store = flux_store(julian_years(4))
    whole, part = anomalies_of(store), store.isel(time=slice(160, 190))
    saved = anomalies_of(part, statistics_of(store, variables=["hfds"]))
    assert saved.chunks is not None
    assert np.array_equal(saved.values, whole.values[160:190], equal_nan=True)
    assert not np.allclose(saved.values, anomalies_of(part).values, equal_nan=True)


def test_a_day_that_is_missing_in_the_climatology_takes_the_nearest() -> None:
    climatology = statistics_of(flux_store(julian_years(3)), variables=["hfds"])  # 1976 is a leap year
    flux = climatology.hfds_climatology
    days = flux.dayofyear.values.tolist()
    assert {58, 63, 64}.issubset(days) and not {1, 2, 59, 62, 366} & set(days) - {2}
    one = [cftime.DatetimeJulian(1979, 3, 1, 12)]  # day 60: 59 and 61 are absent, 58 is there
    store = flux_store(one)
    nearest = min(days, key=lambda d: abs(d - 60))
    expected = store.hfds.values[0] - flux.sel(dayofyear=nearest).values
    assert np.array_equal(anomalies_of(store, climatology).values[0], expected, equal_nan=True)
    few = climatology.sel(dayofyear=[3, 98])
    round_the_year = flux_store([cftime.DatetimeJulian(1979, 12, 31, 12)])  # day 365 is three from day 3 of 366
    with pytest.raises(SourceError, match=r"no climatology of hfds for 1979-12-31 .*: day 365 .* 2 days \(3 to 98\)"):
        anomalies_of(round_the_year, few)
    leap = flux_store([cftime.DatetimeJulian(1980, 12, 31, 12)])  # day 366
    expected = leap.hfds.values[0] - few.hfds_climatology.values[0]
    assert np.array_equal(anomalies_of(leap, few).values[0], expected, equal_nan=True)


def test_climatologies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = flux_store(julian_years(2))
    climatology = statistics_of(store, variables=["hfds"])
    with pytest.raises(SourceError, match=r"on the grid of the dataset, \(y, x\) = \(8, 12\), got \(7, 12\)"):
        anomalies_of(store, climatology.isel(lat=slice(0, 7)))
    with pytest.raises(SourceError, match="wanted hfds_climatology .*, got hfds_mean.*polynya stats"):
        anomalies_of(store, climatology.drop_vars("hfds_climatology"))
    with pytest.raises(SourceError, match="with the days as a coordinate"):
        anomalies_of(store, climatology.drop_vars("dayofyear"))
    with pytest.raises(FileNotFoundError, match="no store at"):
        anomalies_of(store, tmp_path / "none.zarr.zip")


def test_the_public_fixture_with_its_climatology_gives_the_stored_anomalies() -> None:
    public = open_store(OM4)
    mean = (public.hfds - public.hfds_anomalies).assign_coords(dayofyear=public.time.dt.dayofyear)
    climatology = mean.swap_dims(time="dayofyear").drop_vars("time").to_dataset(name="hfds_climatology")
    layout = Layout((Field("hfds_anomalies"),), grid_of(public))
    found = Source.open(public.drop_vars("hfds_anomalies"), layout, climatology).dataset["hfds_anomalies"]
    assert np.nanmax(np.abs(found.values - public.hfds_anomalies.values)) < 1e-4


def test_means_of_days_travel_to_other_processes_without_what_they_keep() -> None:
    flux = flux_store(julian_years(2), lazy=False).hfds
    both = xr.concat([flux, flux + 1], "member").transpose("member", "time", ...)
    means = means_of(both)
    day = means.days[4]
    assert np.nanmax(np.abs(means(day) - means_of(flux)(day) - 0.5)) < 1e-4
    sent = cloudpickle.dumps(means)  # as dask does
    assert len(sent) == len(cloudpickle.dumps(means_of(both)))
    assert np.array_equal(cloudpickle.loads(sent)(day), means(day), equal_nan=True)
