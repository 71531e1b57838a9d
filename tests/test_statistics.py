"""Statistics of a store against NumPy on the whole array, against the public ones, and within bounded memory."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from datetime import timedelta
from pathlib import Path

import cftime
import dask.array
import numpy as np
import pytest
import xarray as xr
from small import small_grid
from test_source import columns, flattened, flux_store, julian_years

from polynya.emulators import (
    Field,
    Layout,
    Source,
    SourceError,
    StoreExistsError,
    grid_of,
    open_statistics,
    open_store,
    save_statistics,
    statistics_of,
)
from polynya.emulators import statistics as module
from polynya.emulators.statistics import flat_statistics, interval_of
from polynya.emulators.stores import levels_in

OM4 = Path(__file__).parent / "data" / "om4"
STORED = json.loads((OM4 / "statistics.json").read_text())
DRIVERS = ("tauuo", "tauvo", "hfds")


def ensemble(times: int = 30, members: int = 3) -> xr.Dataset:
    """Two variables of an ensemble, one of them on corners, with large means."""
    grid, rng = small_grid(), np.random.default_rng(3)
    dates = [cftime.DatetimeNoLeap(2000, 1, 1) + timedelta(days=5 * k) for k in range(times)]
    dims = ("member", "time", "lev", "lat", "lon")
    data = {}
    for name, mask, mean in (("thetao", "wetmask", 1e4), ("uo", "wetmask_corner", 0.0)):
        values = mean + rng.normal(size=(members, times, 3, 8, 12)).cumsum(1)
        data[name] = (dims, np.where(grid[mask].values, values, np.nan).astype("float32"))
    store = xr.Dataset(data, coords={"time": dates, "member": np.arange(members)}).assign_coords(grid.coords)
    store["uo"].attrs["location"] = "corner"
    return store.chunk(time=4, member=-1)


@pytest.mark.parametrize("block", [1.0, 3e4, 64e6])
def test_moments_are_those_of_numpy_on_the_whole_array(block: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    store = ensemble()
    found = statistics_of(store)
    for name in ("thetao", "uo"):
        values = store[name].values.astype(np.float64)
        for kind, of in (("", values), ("increment", np.diff(values, axis=1))):
            mean, std = np.nanmean(of, (0, 1, 3, 4)), np.nanstd(of, (0, 1, 3, 4))
            if kind:
                assert np.allclose(found[f"{name}_increment"].values, std, rtol=1e-12)
            else:
                assert np.allclose(found[f"{name}_mean"].values, mean, rtol=1e-13, atol=1e-13)
                assert np.allclose(found[f"{name}_std"].values, std, rtol=1e-10)
    assert found.uo_mean.attrs == {"units": "m s-1", "location": "corner"}
    assert found.thetao_mean.dtype == np.float64 and found.thetao_mean.dims == ("lev",)


def test_the_file_alone_builds_a_layout_and_says_what_it_is_of() -> None:
    found = statistics_of(flux_store(julian_years(3)))
    assert interval_of(found) == timedelta(days=5) and found.attrs["interval"] == 432000.0
    assert found.attrs["calendar"] == "julian" and found.attrs["records"] == 219
    assert (found.attrs["start"], found.attrs["end"]) == ("1975-01-03 12:00:00", "1977-12-29 12:00:00")
    layout = Layout((Field("zos"),), grid_of(found), (0,), interval_of(found))
    assert layout.shape == (1, 8, 12) and layout.mask.sum() == 70
    made = json.loads(found.attrs["provenance"])
    assert "zarr" in made["versions"] and found.attrs["Conventions"] == "CF-1.11"


def test_climatology_and_anomalies_belong_together() -> None:
    store = flux_store(julian_years(5))
    found = statistics_of(store)
    flux = store.hfds.load()
    groups = flux.groupby("time.dayofyear")
    mean = groups.mean("time")
    assert np.array_equal(found.hfds_climatology.values, mean.values, equal_nan=True), "to the bit, as the original"
    assert found.hfds_climatology.dtype == np.float32
    assert np.array_equal(found.dayofyear.values, mean.dayofyear.values)
    anomalies = (groups - mean).values.astype(np.float64)
    assert float(found.hfds_anomalies_std) == pytest.approx(np.nanstd(anomalies), rel=1e-6)
    assert abs(float(found.hfds_anomalies_mean) - np.nanmean(anomalies)) < 1e-6
    read = Source.open(store, Layout((Field("hfds_anomalies"),), grid_of(found)), found)
    assert np.array_equal(read.dataset.hfds_anomalies.values, (groups - mean).values, equal_nan=True)


def test_members_share_a_climatology() -> None:
    flux = flux_store(julian_years(3), lazy=False)
    both = xr.concat([flux, flux + 2], "member").transpose("member", "time", ...)
    one, two = statistics_of(flux), statistics_of(both)
    assert np.nanmax(np.abs(two.hfds_climatology - one.hfds_climatology - 1)) < 1e-4
    assert float(two.hfds_anomalies_std) == pytest.approx(np.hypot(float(one.hfds_anomalies_std), 1), rel=1e-5)


def test_only_the_period_counts_and_its_ends_are_included() -> None:
    store = flux_store(julian_years(4))
    found = statistics_of(store, start="1976-01-03", end="1977-01-03")
    assert found.attrs["records"] == 74
    values = store.zos.values[73:147].astype(float)
    assert float(found.zos_mean) == pytest.approx(np.nanmean(values), rel=1e-12)
    assert float(found.zos_increment) == pytest.approx(np.nanstd(np.diff(values, axis=0)), rel=1e-12)
    by_date = statistics_of(store, start=store.time.values[73], end=store.time.values[146], variables=["zos"])
    assert float(by_date.zos_std) == float(found.zos_std)
    assert set(by_date.data_vars) == {"zos_mean", "zos_std", "zos_increment"}
    with pytest.raises(SourceError, match="at least two records from 1990-01-01 to the last, got 0; the store covers"):
        statistics_of(store, start="1990-01-01")
    with pytest.raises(SourceError, match="wanted dates of the julian calendar"):
        statistics_of(store, end=cftime.DatetimeNoLeap(1976, 1, 1))


def test_flat_stores_have_statistics_down_to_where_they_stop() -> None:
    store = columns(times=5)
    flat = flattened(store.chunk(time=1)).drop_vars("thetao_2")
    found, whole = statistics_of(flat), statistics_of(store)
    assert np.isnan(found.thetao_std.values[2]) and found.sizes["lev"] == 3
    assert np.array_equal(found.thetao_std.values[:2], whole.thetao_std.values[:2])
    assert levels_in(found.thetao_mean) == 2 and levels_in(whole.thetao_mean) == 3
    scalars = flat_statistics(found)
    assert set(scalars["mean"]) == set(scalars["increment"]) == {"thetao_0", "thetao_1"}
    assert float(scalars["std"]["thetao_1"]) == float(found.thetao_std[1]) and scalars["std"]["thetao_1"].ndim == 0


def test_what_cannot_be_normalised_is_named() -> None:
    store = columns(times=5)
    store["thetao"][:, 1] = store["thetao"][0, 1] * 0 + 3
    with pytest.raises(
        SourceError, match="thetao never varies at level 1: it is 3 in every wet cell and record; leave"
    ):
        statistics_of(store)
    store = columns(times=5)
    store["thetao"][3, 2, 4, 5] = np.nan
    with pytest.raises(
        SourceError, match=r"thetao is NaN in 1 wet cells at 2000-01-16.* level 2, row 4, column 5 \(member 0\)"
    ):
        statistics_of(store)
    store["thetao"][3] = np.nan
    with pytest.raises(SourceError, match="thetao is NaN in all wet cells at 2000-01-16"):
        statistics_of(store)
    with pytest.raises(SourceError, match="has no zos over time; it has thetao"):
        statistics_of(store, variables=["thetao", "zos"])
    with pytest.warns(UserWarning, match="hfds_anomalies are 0 everywhere, as no day of the year occurs twice"):
        assert float(statistics_of(flux_store(julian_years(1))).hfds_anomalies_std) == 0
    with pytest.raises(SourceError, match="records are missing between"):
        statistics_of(flux_store(julian_years(2)).isel(time=[0, 1, 2, 5]))


def test_memory_is_bounded_when_the_store_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4e6)
    times, ny, nx = julian_years(6), 90, 120
    base = np.random.default_rng(0).normal(size=(ny, nx)).astype("float32")

    def made(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:  # type: ignore[type-arg]
        k = block_info[None]["chunk-location"][0]  # type: ignore[index]
        return (base * np.cos(k) + k % 7)[None, None].repeat(5, 1)

    values = dask.array.zeros((len(times), 5, ny, nx), chunks=(1, -1, -1, -1), dtype="float32").map_blocks(
        made, dtype="float32", meta=np.empty((0, 0, 0, 0), "float32")
    )
    coords = {"lat": np.linspace(-80, 80, ny), "lon": np.arange(nx) * 3.0, "lev": np.arange(5.0), "time": times}
    store = xr.Dataset({"thetao": (("time", "lev", "lat", "lon"), values)}, coords=coords)
    store = store.assign_coords(wetmask=(("lev", "lat", "lon"), np.ones((5, ny, nx), bool)))
    assert values.nbytes > 90e6
    statistics_of(store.isel(time=slice(0, 3)))  # what is imported on the way does not count
    tracemalloc.start()
    found = statistics_of(store)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 35e6, f"{peak / 1e6:.0f} MB for blocks of 4 MB"
    assert float(found.thetao_mean[0]) == pytest.approx(np.mean([base.mean() * np.cos(k) + k % 7 for k in range(438)]))


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s.zarr.zip", "s.zarr"])
def test_a_file_holds_everything_and_nothing_is_lost(tmp_path: Path, name: str) -> None:
    found = statistics_of(flux_store(julian_years(3)))
    path = save_statistics(found, tmp_path / name)
    assert path == tmp_path / name and [p.name for p in tmp_path.iterdir()] == [name]
    again = open_statistics(path)
    assert again.hfds_climatology.values.dtype == np.float32
    assert again.load().identical(found.load())
    with pytest.raises(StoreExistsError, match="exists; nothing was written"):
        save_statistics(found, path)
    save_statistics(found.drop_vars("zos_increment"), path, overwrite=True)
    assert "zos_increment" not in open_statistics(path) and [p.name for p in tmp_path.iterdir()] == [name]
    if name.endswith("zip"):
        assert zipfile.ZipFile(path).testzip() is None


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = statistics_of(flux_store(julian_years(2)))
    path = save_statistics(found, tmp_path / "s.zarr.zip")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(OSError, match="no space left"):
        save_statistics(found, path, overwrite=True)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s.zarr.zip"]


def test_what_is_no_statistics_file_is_refused(tmp_path: Path) -> None:
    found = statistics_of(flux_store(julian_years(2)))
    with pytest.raises(SourceError, match="wanted statistics written by polynya .*got None with.*polynya stats"):
        open_statistics(columns())
    with pytest.raises(SourceError, match="wanted a path that ends in .zarr.zip"):
        save_statistics(found, tmp_path / "s.nc")
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_statistics(found, tmp_path / "none" / "s.zarr")
    with pytest.raises(FileNotFoundError, match="no store at"):
        open_statistics(tmp_path / "none.zarr.zip")
    (tmp_path / "bad.zarr.zip").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="cannot be read as a Zarr store"):
        open_statistics(tmp_path / "bad.zarr.zip")


def test_a_saved_climatology_is_read_day_by_day(tmp_path: Path) -> None:
    store = flux_store(julian_years(3))
    path = save_statistics(statistics_of(store), tmp_path / "s.zarr.zip")
    layout = Layout((Field("hfds_anomalies"),), grid_of(open_store(store)))
    saved, own = (Source.open(store, layout, c).dataset.hfds_anomalies for c in (path, None))
    assert saved.chunks is not None and np.array_equal(saved.values, own.values, equal_nan=True)


def normal(source: Source, time: cftime.datetime, means: list[float], stds: list[float]) -> np.ndarray:
    """Two slots of forcing as the network sees them, in float32 as the original computes it."""
    mean, std = (np.tile(np.float32(v), 2)[:, None, None] for v in (means, stds))
    return np.where(source.layout.mask[:1], (source.at(time).data[0].numpy() - mean) / std, 0)


def forcing_of(store: xr.Dataset) -> Layout:
    return Layout(tuple(Field(n) for n in (*DRIVERS, "hfds_anomalies")), grid_of(store, 5), (-1, 0))


def test_a_part_of_the_public_store_with_saved_statistics_gives_the_forcing_of_the_original() -> None:
    saved, pipeline = open_statistics(OM4 / "OM4_statistics.zarr.zip"), np.load(OM4 / "pipeline.npz")
    part = open_store(OM4 / "OM4.zarr.zip").drop_vars("hfds_anomalies")  # eight records of 160
    source = Source.open(part, forcing_of(part), saved)
    means, stds = ([STORED[k][n] for n in (*DRIVERS, "hfds_anomalies")] for k in ("means", "stds"))
    for call, wanted in enumerate(pipeline["boundary"]):
        assert np.array_equal(normal(source, source.times[2 * call + 1], means, stds), wanted), "to the bit"
    assert float(saved.hfds_anomalies_std) == pytest.approx(stds[-1], rel=1e-6)


@pytest.mark.skipif("POLYNYA_FIXTURES" not in os.environ, reason="names the folder of the original's full fixtures")
def test_statistics_and_forcing_are_those_of_the_original(tmp_path: Path) -> None:
    folder = Path(os.environ["POLYNYA_FIXTURES"])
    store, reference = open_store(folder / "synth" / "OM4.zarr"), np.load(folder / "data_pipeline_reference.npz")
    found = statistics_of(store)
    scalars = flat_statistics(found)
    for name, mean in STORED["means"].items():
        std = STORED["stds"][name]
        assert float(scalars["mean"][name]) == pytest.approx(mean, abs=3e-5 * std), "theirs are float32 sums"
        assert float(scalars["std"][name]) == pytest.approx(std, rel=2e-6)
    kept = [float(reference[f"hfds_anomalies_{k}"]) for k in ("mean", "std")]
    assert float(found.hfds_anomalies_std) == pytest.approx(kept[1], rel=1e-6)
    assert abs(float(found.hfds_anomalies_mean) - kept[0]) < 1e-7
    means, stds = ([STORED[k][n] for n in DRIVERS] for k in ("means", "stds"))
    climatology = save_statistics(found, tmp_path / "s.zarr.zip")
    for part, given in ((slice(None), None), (slice(130, None), climatology)):
        source = Source.open(store.isel(time=part), forcing_of(store), given)
        dates = [str(t) for t in source.times]
        for call, wanted in enumerate(reference["boundary"]):
            now = source.times[dates.index(str(reference["times"][2 * call + 1])[:19])]
            ours = normal(source, now, [*means, kept[0]], [*stds, kept[1]])
            assert np.array_equal(ours, wanted), f"call {call}, to the bit"
