"""Streams on a cluster of processes: the bits of threads, whatever happens to a worker."""

import os
import signal
import threading
import time

import pytest
import xarray as xr
from distributed import Client, LocalCluster
from streamed import assert_close, ensemble, expected, heat, products, stored, truth

from polynya.diagnostics import MemoryNeededError, compute, global_heat_content, stream


@pytest.fixture(scope="module")
def client():
    about = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**about) as cluster, Client(cluster) as found:
        yield found


def test_two_workers_give_the_numbers_of_threads_and_of_numpy(client, tmp_path):
    ds, beside = ensemble(), truth()
    store, other = stored(tmp_path, ds, member=1, time=1), stored(tmp_path, beside, "truth.zarr", time=1)
    ours = stream(products(ds), store, beside={"truth": other}, client=client, tile="150 kB")
    threads = stream(products(ds), store, beside={"truth": other}, tile="150 kB")
    for name in ours:
        xr.testing.assert_identical(ours[name], threads[name])
    assert_close(ours, expected(ds, beside))


def test_datasets_travel_in_pieces(client):
    ds, beside = ensemble(), truth()
    asked = {k: v for k, v in products(ds).items() if k in ("heat", "map")}
    wanted = stream(asked, ds, beside={"truth": beside}, tile="60 kB")
    for store in (ds, ds.chunk(member=2, time=3)):
        found = stream(asked, store, beside={"truth": beside}, client=client, tile="60 kB")
        assert_close(found, {"heat": wanted["heat"].ohc, "map": wanted["map"]})


def slow_heat(ds):
    time.sleep(0.1)
    return heat(ds)


def test_a_killed_worker_loses_nothing(client, tmp_path):
    ds = ensemble()
    store = stored(tmp_path, ds, member=1, time=1)
    wanted = stream({"heat": slow_heat}, store, tile="10 kB", workers=2)
    processes = client.run(os.getpid)
    victim = next(iter(processes.values()))
    killer = threading.Timer(0.6, os.kill, (victim, signal.SIGKILL))
    killer.start()
    found = stream({"heat": slow_heat}, store, tile="10 kB", client=client)
    killer.join()
    client.wait_for_workers(2, timeout=30)
    assert victim not in client.run(os.getpid).values()  # it did die, and another took its place
    xr.testing.assert_identical(found["heat"], wanted["heat"])


def test_the_guard_knows_the_client(client):
    lazy = global_heat_content(ensemble().chunk(time=1).thetao)
    (found,) = compute(lazy, client=client)
    xr.testing.assert_allclose(found, global_heat_content(ensemble().thetao))
    with pytest.raises(MemoryNeededError):
        compute(lazy, client=client, memory="10 kB")


def test_errors_of_a_product_reach_the_caller(client):
    def broken(ds):
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        stream({"broken": broken}, ensemble(), client=client, tile="60 kB")
