"""What a stream was estimated to take, against the resident memory that it took."""

import subprocess
import sys
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr
from streamed import stored

_MEASURE = """
import os, sys
from pathlib import Path
import xarray as xr
from polynya.diagnostics import HeatContent, ScoreTotals, stream, stream_plan

def resident(what):
    return 1024 * int(Path("/proc/self/status").read_text().split(what + ":")[1].split()[0])

product = {"heat": HeatContent(), "scores": ScoreTotals("thetao", "so")}[sys.argv[2]]
small = xr.open_zarr(sys.argv[1], chunks=None, consolidated=False).isel(time=[0], lon=slice(4)).load()
product.partial(small.assign(so=small.so))  # compiled code is loaded once
plan = stream_plan({"one": product}, sys.argv[1], workers=int(sys.argv[3]))
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
stream({"one": product}, sys.argv[1], workers=int(sys.argv[3]))
print(plan.peak, resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """16 members of 41 MB together at a time, in shards of four, and a truth."""
    members, times, levels, rows, columns = 16, 6, 20, 160, 200
    dims, rng = ("member", "time", "lev", "lat", "lon"), np.random.default_rng(0)
    one = rng.normal(10, 2, (members, 1, levels, rows, columns)).astype("f4")
    fields = {
        "thetao": (dims, np.repeat(one, times, 1), {"units": "degC"}),
        "so": (dims[1:], np.repeat(one[0], times, 0), {"units": "degC"}),
    }
    coords = {
        "time": [cftime.DatetimeNoLeap(2000, 1 + k, 1) for k in range(times)],
        "lev": ("lev", np.arange(5.0, 200, 10), {"units": "m"}),
        "lat": np.linspace(-80, 80, rows),
        "lon": np.arange(columns) * 1.8,
        "dz": ("lev", np.full(levels, 10.0), {"units": "m"}),
    }
    ds = xr.Dataset(fields, coords)
    return stored(tmp_path_factory.mktemp("large"), ds, shards={"member": 4}, member=1, time=1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("product", ["heat", "scores"])
def test_the_estimate_is_an_upper_one_and_near(store, product, threads):
    command = [sys.executable, "-c", _MEASURE, str(store), product, str(threads)]
    estimated, measured = map(float, subprocess.check_output(command, text=True).split())
    assert 0.5 * estimated < measured < 1.1 * estimated
