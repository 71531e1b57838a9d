"""What lazy computations are said to need, against what they were measured to, and what is refused."""

import importlib
import json
import subprocess
import sys

import dask
import numpy as np
import pytest
import xarray as xr
from streamed import SPACING, ensemble, truth

from polynya.diagnostics import (
    MemoryNeededError,
    compute,
    crps_ensemble,
    global_heat_content,
    isotropic_spectrum,
    memory_needed,
)

guard = importlib.import_module("polynya.diagnostics.guard")

MEASURE = """
import json, sys
from pathlib import Path
import numpy as np, xarray as xr
from polynya.diagnostics import compute, crps_ensemble, global_heat_content, memory_needed

def resident(which):
    return int(Path("/proc/self/status").read_text().split(which)[1].split()[0]) * 1024

store = xr.open_zarr(sys.argv[1], consolidated=False)
lev = xr.DataArray([10.0, 60.0], dims="lev")
store = store.assign_coords(lev=lev, dz=("lev", [20.0, 80.0], {"units": "m"}))
store.thetao.attrs["units"] = "degC"

def lazy(part):
    x = part.thetao
    if sys.argv[2] == "heat":
        return global_heat_content(x)
    if sys.argv[2] == "joined":
        return crps_ensemble(x.isel(member=0, drop=True), x.chunk(member=-1), dim=("lat", "lon"))
    return ((x - x.mean("member")) ** 2).mean("lev")

compute(lazy(store.isel(time=slice(1), lat=slice(8)).load().chunk()))  # compiles
before, wanted = resident("VmRSS:"), lazy(store)
needed = memory_needed(wanted, workers=2)
compute(wanted, workers=2, memory="100 GB")
print(json.dumps([needed.peak, resident("VmHWM:") - before]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Half a GB in chunks of 16 MB, one member and two times each."""
    folder = tmp_path_factory.mktemp("large") / "large.zarr"
    rng = np.random.default_rng(0)
    values = rng.normal(10, 1, (4, 16, 2, 1000, 1000)).astype("f4")
    coords = {"lat": np.linspace(-80, 80, 1000), "lon": np.linspace(0.5, 359.5, 1000)}
    ds = xr.Dataset({"thetao": (("member", "time", "lev", "lat", "lon"), values)}, coords)
    ds.to_zarr(folder, encoding={"thetao": {"chunks": (1, 2, 2, 1000, 1000)}}, zarr_format=3, consolidated=False)
    return folder


@pytest.mark.parametrize("case", ["heat", "joined", "map"])
def test_estimates_are_within_a_factor_of_two(large, case):
    """A process of its own, for memory that was once taken is not given back."""
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), case], capture_output=True, text=True, check=True, timeout=300
    )
    estimate, measured = json.loads(told.stdout.splitlines()[-1])
    assert 0.5 < estimate / measured < 2, (estimate / 1e6, measured / 1e6)


def test_nothing_is_computed_for_an_estimate():
    def refuse(*args, **kwargs):
        raise AssertionError("computed something lazy")

    ds = ensemble().chunk(time=2)
    with dask.config.set(scheduler=refuse):
        needed = memory_needed(global_heat_content(ds.thetao), isotropic_spectrum(ds.zos, spacing=SPACING), workers=3)
    assert needed.variable == "thetao"
    assert needed.chunk == ds.thetao.isel(time=slice(2)).nbytes
    assert needed.workers == 3
    assert f"{needed.tasks} tasks" in str(needed)
    assert "with 3 threads" in str(needed)
    assert memory_needed(ensemble().thetao).tasks == 0


def test_computed_together_as_dask_does(capsys):
    ds = ensemble()
    lazy = ds.chunk(time=2)
    heat, spectrum = compute(
        global_heat_content(lazy.thetao), isotropic_spectrum(lazy.zos, spacing=SPACING), progress=True
    )
    xr.testing.assert_allclose(heat, global_heat_content(ds.thetao))
    xr.testing.assert_allclose(spectrum, isotropic_spectrum(ds.zos, spacing=SPACING))
    assert "compute" in capsys.readouterr().out


def test_a_huge_chunk_is_refused_by_name():
    whole = ensemble().chunk()
    with pytest.raises(MemoryNeededError, match=r"a chunk of 'thetao' is too large; open it in chunks at least"):
        compute(global_heat_content(whole.thetao), memory="1 MB", workers=2)
    with pytest.raises(MemoryNeededError, match=r"the result itself is too large; reduce it further"):
        compute(whole.thetao * 2, memory="300 kB")


def test_chunks_that_are_joined_are_counted():
    ds, beside = ensemble(), truth()
    lazy = ds.chunk(member=1, time=1)
    score = crps_ensemble(beside.thetao.chunk(time=1), lazy.thetao.chunk(member=-1), dim=("lev", "lat", "lon"))
    needed = memory_needed(score, workers=1)
    assert needed.piece == ds.thetao.isel(time=0).nbytes
    with pytest.raises(MemoryNeededError, match=r"chunks of 'data' are joined; chunk the other dimensions more finely"):
        compute(score, memory=2 * needed.piece, workers=1)
    across = memory_needed(ds.thetao.chunk(time=1).chunk(time=-1, lat=1).mean("time"), workers=1)
    assert across.kept > 0.8 * ds.thetao.nbytes  # all times wait for each other


def test_an_explosion_of_tasks_is_refused(monkeypatch):
    """Observations chunked in places minus an ensemble chunked in time."""
    monkeypatch.setattr(guard, "_TASKS", 2000)
    big = xr.DataArray(dask.array.zeros((50, 100, 100), chunks=(1, -1, -1)), dims=("time", "y", "x"), name="ens")
    other = xr.DataArray(dask.array.zeros((50, 100, 100), chunks=(-1, 10, 10)), dims=("time", "y", "x"))
    memory_needed(big - other.chunk(time=1, y=-1, x=-1))
    with pytest.raises(MemoryNeededError, match=r"tasks, \d+ of them to '.*', are more than 2000.*`stream`"):
        memory_needed(big - other)
