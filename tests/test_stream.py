"""Streams against the plain functions in memory, whatever the chunks, tiles and threads; and what they refuse."""

import pickle
import shutil

import dask
import numpy as np
import pytest
import streamed
import xarray as xr
from streamed import MEMBERS, assert_close, ensemble, expected, products, stored, truth

from polynya.diagnostics import (
    Averaged,
    Each,
    EnsembleMoments,
    HeatContent,
    MemoryNeededError,
    ScoreTotals,
    bootstrap,
    global_heat_content,
    heat_uptake,
    mean_spectrum,
    scores,
    stream,
    stream_plan,
    wet_area,
)
from polynya.diagnostics.stores import Reader, Space


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


@pytest.mark.parametrize("tile", ["60 kB", "1 MB"])
@pytest.mark.parametrize(
    ("chunks", "shards"),
    [
        ({"member": 1, "time": 1}, None),
        ({"member": 1, "time": 1}, {"member": 2, "time": 3}),
        ({"time": 3, "lat": 5}, None),
        ({"member": 3, "lev": 1, "lon": 7}, None),
        ({}, None),
    ],
    ids=["records", "shards", "rows", "odd", "one"],
)
def test_stores_in_any_chunks_give_what_the_plain_functions_do(tmp_path, chunks, shards, tile):
    ds, beside = ensemble(), truth()
    store = stored(tmp_path, ds, shards=shards, **chunks)
    other = stored(tmp_path, beside, "truth.zarr", time=2)
    found = stream(products(ds), store, beside={"truth": other}, tile=tile)
    assert_close(found, expected(ds, beside))


@pytest.mark.parametrize("kind", ["memory", "dask", "opened", "selected"])
def test_datasets_of_every_kind(tmp_path, kind):
    ds, beside = ensemble("f4"), truth("f4")
    wanted = expected(ds, beside)
    if kind == "dask":
        store, other = ds.chunk(member=3, time=2, lat=7), beside.chunk(time=3)
    elif kind == "memory":
        store, other = ds, beside
    else:
        coder = xr.coders.CFDatetimeCoder(use_cftime=True)
        store = xr.open_zarr(stored(tmp_path, ds, member=1, time=2), chunks=None, decode_times=coder)
        other = beside
        if kind == "selected":
            store, other = store.isel(time=slice(1, 6), member=[0, 2]), beside.isel(time=slice(1, None))
            wanted = expected(ds.isel(time=slice(1, 6), member=[0, 2]), beside.isel(time=slice(1, 6)))
            ds = ds.isel(time=slice(1, 6), member=[0, 2])
    # Kernels of float32 may round the last places of a piece otherwise than the middle ones.
    assert_close(stream(products(ds), store, beside={"truth": other}, tile="60 kB"), wanted, rtol=2e-7)


def test_bits_do_not_depend_on_threads(tmp_path):
    ds, beside = ensemble("f4"), truth("f4")
    store = stored(tmp_path, ds, member=1, time=1)
    one, two, three = (
        stream(products(ds), store, beside={"truth": beside}, tile="20 kB", workers=n) for n in (1, 2, 3)
    )
    for name in one:
        xr.testing.assert_identical(one[name], two[name])
        xr.testing.assert_identical(one[name], three[name])


@pytest.mark.parametrize("packed", [False, True])
def test_bits_do_not_depend_on_how_a_store_is_read(tmp_path, monkeypatch, packed):
    """Decoded into place (a path), whole (opened) or in pieces that are copied: the same tiles, the same bits."""
    ds, beside = ensemble("f4"), truth("f4")
    packing = {"zos": {"dtype": "i2", "scale_factor": 1e-3, "_FillValue": -32768}} if packed else {}
    path = stored(tmp_path, ds, shards={"member": 2}, packing=packing, member=1, time=1)
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    opened = xr.open_zarr(path, chunks=None, decode_times=coder, consolidated=False)
    about = {"beside": {"truth": beside}, "tile": "60 kB"}
    asked = products(ds)
    into_place, whole = (stream(asked, store, **about) for store in (path, opened))
    monkeypatch.setattr("polynya.diagnostics.chunks._PIECE", 1e4)
    into_place_in_pieces, in_pieces = (stream(asked, store, **about) for store in (path, opened))
    for name, wanted in whole.items():
        for found in (into_place, into_place_in_pieces, in_pieces):
            xr.testing.assert_identical(found[name], wanted)


def test_a_store_that_grew_is_read_anew(tmp_path):
    short, whole = ensemble().isel(time=slice(2)), ensemble()
    path = stored(tmp_path, short, member=1, time=1)
    before = stream({"heat": HeatContent()}, path)["heat"]
    shutil.rmtree(path)
    stored(tmp_path, whole, member=1, time=1)
    after = stream({"heat": HeatContent()}, path)["heat"]
    assert (before.sizes["time"], after.sizes["time"]) == (2, whole.sizes["time"])


def test_no_result_holds_the_memory_that_tiles_are_read_into(tmp_path, monkeypatch):
    """Tiles are read one over the other; what a product keeps of one must outlive it."""
    ds, beside = ensemble(), truth()
    other = stored(tmp_path, beside, "truth.zarr", time=1)
    store = stored(tmp_path, ds, member=1, time=1)
    views = {
        "same": lambda tile: tile.zos,
        "part": lambda tile: tile.thetao[..., ::2, 1:],
        "all": lambda tile: tile[["uo", "vo"]],
        "lazy": lambda tile: tile.zos.chunk(),
        "coordinate": Each(lambda tile: (2 * tile.uo).assign_coords(where=tile.vo), ("uo", "vo")),
        "averaged": Averaged(lambda tile: tile.zos, over=()),
    }
    asked = products(ds) | views
    plan = stream_plan(asked, store, beside={"truth": other})
    reader, space = Reader.of(store, {"truth": other}), Space()
    monkeypatch.setattr("polynya.diagnostics.chunks._PIECE", 1e3)
    tile = {"member": slice(0, MEMBERS), "time": slice(2, 4)}
    for wanted in (w for walk in plan.walks for w in walk.wanted):
        data = reader.load(wanted.variables, tile, space)
        state = space.apart(wanted.product.partial(data).compute())
        copy = state.copy(deep=True)
        assert set(wanted.variables) <= set(space._arrays)
        for array in space._arrays.values():
            array.fill(1e9)
        xr.testing.assert_identical(state, copy)
    found = stream(views, store, tile="20 kB", workers=2)
    xr.testing.assert_identical(found["same"].drop_attrs(), ds.zos.drop_attrs())
    xr.testing.assert_equal(found["part"], ds.thetao[..., ::2, 1:])
    xr.testing.assert_equal(found["lazy"], ds.zos)
    np.testing.assert_array_equal(found["all"].vo, ds.vo)
    np.testing.assert_array_equal(found["coordinate"]["where"], ds.vo)


def test_rows_of_latitude_when_memory_is_short(tmp_path):
    ds, beside = ensemble(), truth()
    store = stored(tmp_path, ds, member=1, time=1, lat=3)
    asked = {k: v for k, v in products(ds).items() if k in ("heat", "steric", "series", "moments")}
    about = {"beside": {"truth": stored(tmp_path, beside, "truth.zarr", time=1, lat=3)}, "workers": 1}
    plan = stream_plan(asked, store, memory="400 kB", tile="40 kB", **about)
    assert all(walk.steps["lat"] < streamed.ROWS for walk in plan.walks)
    assert plan.peak <= 400e3
    wanted = expected(ds, beside)
    assert_close(stream(asked, store, memory="400 kB", tile="40 kB", **about), {k: wanted[k] for k in asked})


def test_each_variable_is_read_once_and_no_other(tmp_path, monkeypatch):
    ds = ensemble()
    store = stored(tmp_path, ds, member=1, time=1)
    seen = []
    load = Reader.load

    def watched(self, variables, tile, space):
        piece = load(self, variables, tile, space)
        seen.extend((v, piece[v].size) for v in piece.data_vars)
        return piece

    monkeypatch.setattr(Reader, "load", watched)
    asked = {"heat": HeatContent(), "same": streamed.heat, "spectrum": mean_spectrum("zos", spacing=(1e5, 1e5))}
    stream(asked, store, tile="20 kB")
    total = {v: sum(n for name, n in seen if name == v) for v, _ in seen}
    assert total == {"thetao": ds.thetao.size, "zos": ds.zos.size}


def test_a_plan_reads_nothing_and_says_what_will_be_done():
    ds = ensemble()
    ds = ds.chunk(member=1, time=2).assign_coords(ds.coords)  # coordinates may be read
    with dask.config.set(scheduler=refuse_to_compute):
        plan = stream_plan({**products(ensemble()), "series": streamed.heat, "map": streamed.heat}, ds, tile="20 kB")
    told = str(plan)
    assert "member 1 of 4" in told
    assert "thetao" in told
    assert "estimated peak" in told
    again = stream_plan({"s": streamed.heat}, ds, tile="10 kB")
    assert "chunks read" not in str(again)
    assert pickle.loads(pickle.dumps(again.walks[0])).n_tiles == again.walks[0].n_tiles


def test_uptake_and_scores_follow(tmp_path):
    ds, beside = ensemble(), truth()
    store = stored(tmp_path, ds, member=1, time=1)
    asked = {"heat": HeatContent(), "scores": ScoreTotals("zos", "zos_truth", keep=("time",))}
    found = stream(asked, store, beside={"truth": beside}, tile="10 kB")
    whole = global_heat_content(ds.thetao, depth=(0, np.inf))
    np.testing.assert_allclose(
        found["heat"].uptake.sel(band="0-inf m"), heat_uptake(whole, area=wet_area(ds.thetao)), rtol=1e-10
    )
    assert found["heat"].uptake.attrs["units"] == "W m-2"
    assert {"crps", "spread", "ratio"} <= set(scores(found["scores"].sum("time", keep_attrs=True)))
    assert bootstrap(found["scores"], block=2, samples=20).crps.sizes == {"estimate": 3}


def test_moments_keep_their_digits():
    ds = ensemble()[["zos"]] + 1e4  # sums of squares would keep 8 digits
    found = stream({"m": EnsembleMoments("zos")}, ds, tile="4 kB")["m"]
    np.testing.assert_allclose(found.variance, ds.zos.var(("member", "time"), ddof=1), rtol=1e-11)
    by_time = stream({"m": EnsembleMoments("zos", over=("member",))}, ds, tile="4 kB")["m"]
    np.testing.assert_allclose(by_time["mean"], ds.zos.mean("member"), rtol=1e-15)


def test_averages_leave_out_what_is_missing():
    ds = ensemble()[["zos"]]
    ds["zos"][1, 2, 3] = np.nan
    found = stream({"m": Averaged(lambda tile: tile.zos * 2)}, ds, tile="4 kB")["m"]
    xr.testing.assert_allclose(found, (ds.zos * 2).mean(("member", "time")).drop_attrs(), rtol=1e-13)


def test_functions_that_join_what_tiles_split():
    """What is summed over is found out; the rest must be said, and is refused where it shows."""
    ds = ensemble()[["zos"]]

    def eager(tile):
        return xr.DataArray(tile.zos.values.mean((1, 2, 3)), dims="member", name="mean")

    found = stream({"m": lambda tile: tile.zos.mean("time"), "r": lambda tile: tile.zos.std("member")}, ds, tile="9 kB")
    xr.testing.assert_allclose(found["m"], ds.zos.mean("time"))
    xr.testing.assert_allclose(found["r"], ds.zos.std("member"))
    with pytest.raises(ValueError, match=r"lacks a dimension along which the store is read in tiles: name what"):
        stream({"e": eager}, ds, tile="9 kB")
    told = stream({"e": Each(eager, whole=("time", "lat", "lon"))}, ds, tile="9 kB")["e"]
    np.testing.assert_allclose(told, ds.zos.mean(("time", "lat", "lon")))
    with pytest.raises(ValueError, match=r"1 of 3 values along 'time'.*name 'time' in its `whole`|0 of 1 values"):
        stream({"d": lambda tile: tile.zos.isel(time=slice(2, None))}, ds, tile="9 kB")
    with pytest.raises(ValueError, match=r"'h' needs \['thetao'\], which the store lacks: it has \['zos'\]"):
        stream({"h": HeatContent()}, ds)


def test_stores_beside_must_have_the_times_of_the_store():
    ds, beside = ensemble(), truth()
    asked = {"s": ScoreTotals("zos", "zos_truth")}
    some = ds.isel(time=slice(2, 5))
    found, wanted = (stream(asked, some, beside={"truth": b})["s"] for b in (beside, beside.isel(time=slice(2, 5))))
    xr.testing.assert_allclose(found, wanted)
    turned = stream(asked, ds, beside={"truth": beside.isel(lat=slice(None, None, -1))})["s"]
    xr.testing.assert_identical(turned, stream(asked, ds, beside={"truth": beside})["s"])
    with pytest.raises(ValueError, match="'truth' lacks 2 of the 7 values of 'time' in the store, 2000-06-01"):
        stream(asked, ds, beside={"truth": beside.isel(time=slice(5))})
    with pytest.raises(FileNotFoundError, match=r"there is no store 'nowhere.zarr'"):
        stream(asked, "nowhere.zarr")


def test_an_unchunked_store_is_refused_by_name(tmp_path):
    """One chunk must be decoded whole, however small the tile."""
    ds = ensemble()
    store = stored(tmp_path, ds)
    with pytest.raises(MemoryNeededError, match=r"'thetao' needs .* at once but .*kiB a thread are allowed") as caught:
        stream({"heat": HeatContent()}, store, memory="150 kB")
    told = str(caught.value)
    assert "chunks of member 4 of 4, time 7 of 7, lev 3 of 3, lat 18 of 18, lon 24 of 24" in told
    assert "ds.chunk(member=1).to_zarr(…)" in told
    assert "memory='0." in told
    assert caught.value.needed > 290e3
    assert isinstance(caught.value, ValueError)
    with pytest.raises(MemoryNeededError, match=r"'heat' needs \['lev'\] whole"):
        stream({"heat": HeatContent()}, store, memory="150 kB")


def test_results_that_do_not_fit_are_refused():
    ds = ensemble().chunk(time=1)
    with pytest.raises(MemoryNeededError, match=r"the result of 'all' alone is 28\d.* kiB.*reduce it further"):
        stream({"all": lambda tile: tile.thetao * 2, "heat": HeatContent()}, ds, memory="400 kB")


def test_products_that_cannot_share_a_tile_walk_apart():
    """CRPS wants all members, spectra whole maps: together a tile is larger than apart."""
    ds = ensemble().chunk(member=1, time=1, lat=6)
    asked = {"crps": ScoreTotals("thetao", "thetao_truth"), "map": lambda tile: tile.thetao.sum(("lev", "lat", "lon"))}
    about = {"beside": {"truth": truth().chunk(time=1, lat=6)}, "workers": 1, "tile": "30 kB"}
    assert len(stream_plan(asked, ds, memory="1 GB", **about).walks) == 1
    plan = stream_plan(asked, ds, memory="100 kB", **about)
    assert [w.wanted[0].name for w in plan.walks] == ["crps", "map"]
    found, wanted = (stream(asked, ds, memory=m, **about) for m in ("100 kB", "1 GB"))
    xr.testing.assert_allclose(found["map"], wanted["map"], rtol=1e-13)
    xr.testing.assert_allclose(found["crps"], wanted["crps"], rtol=1e-12)


def test_progress_shows_the_plan(capsys):
    stream({"heat": streamed.heat}, ensemble(), progress=True)
    told = capsys.readouterr().out
    assert "estimated peak" in told
    assert "heat" in told
