"""A store larger than memory through heat uptake, steric sea level, spectra and CRPS, beside plain reading of it.

    python benchmarks/streaming.py [--folder .] [--gigabytes 30] [--workers 2] [--record] [--keep]

Writes an ensemble of 16 members of the 1 degree ocean (thetao, so, uo, vo on 19 levels, zos) with `rollout` as every
ensemble is written, 10 bits of the mantissa kept, and a truth of one member; then runs each case in a process of its
own: plain reading (whole shards by zarr, as many threads), the products one by one and all in one pass, and two of them
by the plain functions on dask. Wall and CPU seconds and the highest resident memory of the process, the imports
included. `--record` writes results/streaming.md. Needs 14 GB of disk for 30 GB; the store is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("BLOSC_NTHREADS", "1")

import numpy as np
import xarray as xr
from machine import RESULTS, processor

MEMBERS, LEVELS, ROWS, COLUMNS = 16, 19, 180, 360
SCALES = {"thetao": (10.0, 6.0), "so": (35.0, 0.5), "uo": (0.0, 0.2), "vo": (0.0, 0.2), "zos": (0.0, 0.5)}
BOX = {"y": slice(60, 124), "x": slice(100, 164)}  # of open water
MEMORY = "1.5 GB"


# --- the store -----------------------------------------------------------------------------------


def make(folder: Path, gigabytes: float) -> None:
    """The ensemble and its truth, as rollouts of an emulator that plays what was made before."""
    import scipy.ndimage
    import torch
    from recording import DATE, Playback

    from polynya.emulators import Field, Layout, State, gaussian_grid
    from polynya.ensembles import Output, Rounded, rollout

    torch.set_num_threads(1)
    fields = (*(Field(v, LEVELS) for v in ("thetao", "so", "uo", "vo")), Field("zos"))
    rng = np.random.default_rng(0)
    blobs = scipy.ndimage.gaussian_filter(rng.standard_normal((ROWS, COLUMNS)), ROWS / 20, mode="wrap")
    wet = blobs > np.quantile(blobs, 0.35)
    wet[58:126, 98:166] = True
    lev, grid = np.linspace(5.0, 5000.0, LEVELS), gaussian_grid(ROWS, COLUMNS)
    edges = np.concatenate([[0.0], (lev[1:] + lev[:-1]) / 2, [2 * lev[-1] - (lev[-1] + lev[-2]) / 2]])
    dims = tuple(grid["areacello"].dims)
    grid = grid.assign_coords(
        lev=("lev", lev, {"units": "m"}),
        dz=("lev", np.diff(edges), {"units": "m"}),
        wetmask=(("lev", *dims), np.repeat(wet[None], LEVELS, 0)),
    )
    layout = Layout(fields, grid)
    scale = np.concatenate([np.full(LEVELS if v != "zos" else 1, SCALES[v][1]) for v in SCALES])[:, None, None]
    offset = np.concatenate([np.full(LEVELS if v != "zos" else 1, SCALES[v][0]) for v in SCALES])[:, None, None]

    def states(members: int, seed: int) -> tuple[State, ...]:
        noise = np.random.default_rng(seed).standard_normal((3, members, *layout.shape), dtype="f4")
        found = []
        for step in noise:
            smooth = scipy.ndimage.gaussian_filter(step, (0, 0, 3, 3), mode="wrap") * 10
            data = torch.from_numpy((smooth * scale + offset).astype("f4")) * layout.mask
            found.append(State(data, DATE, layout, tuple(range(members))))
        return tuple(found)

    each = MEMBERS * float(np.prod(layout.shape)) * 4
    steps = max(2, round(gigabytes * 1e9 / each))
    for name, members, seed in (("ensemble.zarr", MEMBERS, 1), ("truth.zarr", 1, 2)):
        played = states(members, seed)
        emulator = Playback(layout, played)
        output = Output(packing=Rounded(10))
        rollout(emulator, played[0], steps=steps - 1, store=folder / name, output=output)


# --- what is run in a process of its own ---------------------------------------------------------


def products(case: str) -> dict[str, Any]:
    """What a case asks `stream` for."""
    from polynya.diagnostics import GlobalSteric, HeatContent, ScoreTotals, mean_energy_spectrum

    one: dict[str, Callable[[], Any]] = {
        "heat": HeatContent,
        "steric": lambda: GlobalSteric(reference()),
        "spectra": lambda: mean_energy_spectrum(box=BOX),
        "crps": lambda: ScoreTotals("thetao", "thetao_truth", keep=("time", "lev")),
    }
    return {name: make() for name, make in one.items() if case in (name, "all")}


def opened(folder: Path, name: str, **options: Any) -> xr.Dataset:
    return xr.open_zarr(folder / name, decode_times=xr.coders.CFDatetimeCoder(use_cftime=True), **options)


def reference() -> xr.Dataset:
    """State of the truth at the first time."""
    return opened(Path(sys.argv[2]), "truth.zarr")[["thetao", "so"]].isel(time=0, member=0, drop=True).load()


def read(folder: Path, names: list[str], workers: int) -> None:
    """Decode all shards of some variables into memory, and forget them."""
    import zarr

    group = zarr.open_group(folder / "ensemble.zarr", mode="r")

    def one(task: tuple[str, int, int]) -> None:
        name, member, when = task
        array: Any = group[name]
        across, deep = (array.shards or array.chunks)[:2]
        array[member * across : (member + 1) * across, when * deep : (when + 1) * deep]

    tasks: list[tuple[str, int, int]] = []
    for name in names:
        array: Any = group[name]
        across, deep = (array.shards or array.chunks)[:2]
        tasks += product([name], range(-(-array.shape[0] // across)), range(-(-array.shape[1] // deep)))
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, tasks))


def streamed(folder: Path, case: str, workers: int) -> dict[str, Any]:
    from polynya.diagnostics import stream, stream_plan

    truth = opened(folder, "truth.zarr", chunks=None).isel(member=0, drop=True)
    beside = {"truth": truth} if case in ("crps", "all") else {}
    about: dict[str, Any] = {"beside": beside, "memory": MEMORY, "workers": workers}
    told = str(stream_plan(products(case), str(folder / "ensemble.zarr"), **about))
    stream(products(case), str(folder / "ensemble.zarr"), **about)
    return {"plan": told}


def lazily(folder: Path, case: str, workers: int) -> dict[str, Any]:
    """The same by the plain functions, a dask graph."""
    from polynya.diagnostics import compute, global_heat_content, memory_needed, score_totals

    store = opened(folder, "ensemble.zarr")
    if case == "heat":
        bands = ((0.0, 700.0), (0.0, 2000.0), (0.0, np.inf))
        lazy = [global_heat_content(store.thetao, depth=band) for band in bands]
    else:
        truth = opened(folder, "truth.zarr").isel(member=0, drop=True)
        lazy = [score_totals(truth.thetao, store.thetao, dim=("y", "x"), weights=store.areacello.load())]
    needed = memory_needed(*lazy, workers=workers)
    compute(*lazy, memory="1000 GB", workers=workers)
    return {"tasks": needed.tasks, "estimate": needed.peak}


def highest() -> float:
    """Highest resident memory of this process so far, GB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def case_of(how: str, case: str, folder: Path, workers: int) -> None:
    """Run one case and print what it took as JSON."""
    import zarr

    import polynya.diagnostics  # noqa: F401  # imports are not what is timed

    zarr.config.set({"threading.max_workers": workers})
    before = highest()
    began = time.process_time(), time.perf_counter()
    told: dict[str, Any] = {}
    if how == "read":
        read(folder, case.split("+"), workers)
    else:
        told = (streamed if how == "stream" else lazily)(folder, case, workers)
    cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
    print(json.dumps({"cpu": cpu, "wall": wall, "peak": highest(), "before": before, **told}))


def in_process(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {}
    return found


# --- the table -----------------------------------------------------------------------------------

READ = {
    "heat": "thetao",
    "steric": "thetao+so",
    "spectra": "uo+vo",
    "crps": "thetao",
    "all": "thetao+so+uo+vo",
}
AIMS = {"heat": 2.0, "crps": 2.0}


def table(folder: Path, workers: int, cases: list[str]) -> list[str]:
    store = opened(folder, "ensemble.zarr", chunks=None)
    sizes = {v: store[v].size * 4 / 1e9 for v in SCALES}
    files = [f for v in SCALES for f in (folder / "ensemble.zarr" / v).rglob("*") if f.is_file()]
    disk = sum(f.stat().st_size for f in files) / 1e9
    shape = ", ".join(f"{d} {n}" for d, n in store.sizes.items())
    encoding = store.thetao.encoding
    lines = [
        f"{sum(sizes.values()):.1f} GB of float32 ({shape}), {disk:.1f} GB on disk (compression "
        f"{sum(sizes.values()) / disk:.1f}); thetao in chunks {encoding['chunks']} and shards {encoding['shards']}.",
        "",
        "| what | GB | wall s | CPU s | GB/s | peak GB | wall / reading | CPU / reading |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    said, plans = [], []
    read_before: dict[str, dict[str, Any]] = {}

    def row(name: str, gigabytes: float, found: dict[str, Any], reading: dict[str, Any] | None) -> None:
        ratios = [f"{found[k] / reading[k]:.2f}" if reading else "" for k in ("wall", "cpu")]
        cells = [f"{gigabytes:.1f}", f"{found['wall']:.1f}", f"{found['cpu']:.1f}", f"{gigabytes / found['wall']:.2f}"]
        lines.append("| " + " | ".join([name, *cells, f"{found['peak']:.2f}", *ratios]) + " |")
        print(lines[-1], flush=True)

    for case in cases:
        names = READ[case]
        size = sum(sizes[v] for v in names.split("+"))
        if names not in read_before:
            read_before[names] = in_process("read", folder, names, workers)
            row(f"reading {names}", size, read_before[names], None)
        reading = read_before[names]
        found = in_process("stream", folder, case, workers)
        row(f"stream: {case}", size, found, reading)
        plans.append(found["plan"])
        said.append(f"{'PASS' if found['peak'] < 2 else 'FAIL'}  {case}: peak {found['peak']:.2f} GB, aim below 2")
        if case in AIMS:
            ratio = found["wall"] / reading["wall"]
            said.append(
                f"{'PASS' if ratio <= AIMS[case] else 'FAIL'}  {case}: {ratio:.2f} times the wall time of reading, aim "
                f"{AIMS[case]:g}"
            )
        if case in AIMS:
            found = in_process("lazy", folder, case, workers)
            row(f"plain functions on dask: {case} ({found['tasks']} tasks)", size, found, reading)
            plans.append(f"dask, {case}: estimated {found['estimate'] / 1e9:.2f} GB beside the imports' "
                         f"{found['before']:.2f}, measured {found['peak']:.2f}")  # fmt: skip
    return [*lines, "", *(f"- {s}" for s in said), "", "```", *plans, "```"]


def main() -> None:
    """Make the store, run the cases, keep the table."""
    if len(sys.argv) > 1 and sys.argv[1] in ("read", "stream", "lazy"):
        how, folder, case, workers = sys.argv[1:5]
        case_of(how, case, Path(folder), int(workers))
        return
    if len(sys.argv) > 1 and sys.argv[1] == "make":
        make(Path(sys.argv[2]), float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--gigabytes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=[*READ], nargs="*", default=[*READ])
    parser.add_argument("--record", action="store_true", help="write results/streaming.md")
    parser.add_argument("--keep", action="store_true", help="leave the store where it is")
    given = parser.parse_args()
    folder = given.folder / "streaming"
    folder.mkdir(parents=True, exist_ok=True)
    load: list[float] = []
    threading.Thread(target=_loads, args=(load,), daemon=True).start()
    try:
        if not (folder / "truth.zarr").exists():
            in_process("make", folder, given.gigabytes)
        lines = table(folder, given.workers, given.only)
    finally:
        if not given.keep:
            shutil.rmtree(folder)
    packages = ", ".join(f"{p} {version(p)}" for p in ("numpy", "xarray", "zarr", "dask", "numba"))
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    text = "\n".join(
        [
            "# Streaming a store beside reading it",
            "",
            f"`python benchmarks/streaming.py`, {given.workers} threads, memory={MEMORY!r}. {processor()}, "
            f"{os.cpu_count()} cores, {have:.0f} GB of memory, load {min(load):.1f} to {max(load):.1f} during the run "
            "(others were at work where it is above the threads), files in part in the page cache. Reading is whole "
            "shards by zarr in as many threads. Peak is of the whole process, imports included. "
            f"{packages}, {datetime.now(UTC).date()}.",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    if given.record:
        (RESULTS / "streaming.md").write_text(text)


def _loads(found: list[float]) -> None:
    while True:
        found.append(os.getloadavg()[0])
        time.sleep(5)


if __name__ == "__main__":
    main()
