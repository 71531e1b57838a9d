"""The LETKF at the size of an ocean: CPU seconds, peak memory, how cost grows, and DAPPER beside it.

    python benchmarks/letkf.py [--parts ocean growth dapper] [--small] [--dapper /path/to/site-packages] [--record]

1. ocean: analyses of a 1 degree ocean, 180 x 360 x 77 rows, in processes of their own; memory is the peak of the
   process over what it had when forecast and observations were there, less the analysis itself. The error is
   the RMS difference from stride 1 over the RMS posterior spread, in 1500 columns drawn at random. Of the CPU seconds
   some are the kernel's, which hands out a gigabyte of pages; in a virtual machine they may be a third of all.
2. growth: exponents of the cost in observations, columns and rows of the state, by least squares in logarithms.
3. dapper: DAPPER's local analyses on the same columns, observations and weights, in one process. Where DAPPER is
   not found it is replaced by a plain NumPy loop over columns with given lists of observations: a stand-in.

Seconds are CPU seconds of one thread, so other work on the machine matters little. Install DAPPER beside, not
into, this environment: python -m venv DAPPER && DAPPER/bin/pip install dapper, and give its folder.
With --record the tables are kept as benchmarks/results/letkf.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cftime
import numpy as np
import torch
import xarray as xr
from machine import RESULTS, processor

from polynya.da import LETKF, Observations, gaspari_cohn, operator_for, transform
from polynya.da.filters import departures
from polynya.da.localise import EARTH_RADIUS, LocalObservations, unit_vectors
from polynya.da.superob import superobbed
from polynya.da.weights import analysis_columns
from polynya.emulators import Field, Layout, State

DAY = cftime.DatetimeNoLeap(2000, 1, 6)
GOAL = 8.0  # CPU seconds of the 1 degree analysis


def world(ny: int, nx: int, levels: int, land: bool, south: float = -90.0, north: float = 90.0) -> Layout:
    """A grid of cells of equal angles with levels of temperature, salinity and velocity, and sea level."""
    step = (north - south) / ny
    lat, lon = south + step * (np.arange(ny) + 0.5), 360.0 / nx * (np.arange(nx) + 0.5)
    y, x = np.meshgrid(np.radians(lat), np.radians(lon), indexing="ij")
    depth = np.cos(3 * x + np.sin(3 * y)) * np.cos(2 * y) + 0.6 * np.sin(7 * x - 2 * np.cos(5 * y)) + 0.3
    steps = np.linspace(-0.15, 0.6, max(levels, 1)) if land else np.full(max(levels, 1), -9.0)
    lev = np.cumsum(np.linspace(10, 500, max(levels, 1)))
    coords = {
        "lat": ("lat", lat),
        "lon": ("lon", lon),
        "lev": ("lev", lev),
        "dz": ("lev", np.gradient(lev) if levels > 1 else np.array([20.0])),
        "areacello": (("lat", "lon"), (111.2e3 * step) ** 2 * np.cos(y)),
        "wetmask": (("lev", "lat", "lon"), depth > steps[:, None, None]),
    }
    names = ("thetao", "so", "uo", "vo") if levels else ()
    return Layout((*(Field(n, levels) for n in names), Field("zos")), xr.Dataset(coords=coords))


def ensemble(layout: Layout, members: int, modes: int = 12) -> State:
    """Members with smooth differences: random coarse fields, interpolated; rows of a column share a part."""
    channels, ny, nx = layout.shape
    g = torch.Generator().manual_seed(0)
    data = torch.empty(members, channels, ny, nx)
    for m in range(members):
        coarse = torch.randn(1, channels, modes, 2 * modes, generator=g)
        coarse = 0.6 * coarse + 0.8 * torch.randn(1, 1, modes, 2 * modes, generator=g)
        coarse = torch.cat([coarse[..., -2:], coarse, coarse[..., :2]], -1)
        width = nx * (2 * modes + 4) // (2 * modes)
        fine = torch.nn.functional.interpolate(coarse, (ny, width), mode="bicubic", align_corners=False)[0]
        data[m] = fine[..., (width - nx) // 2 : (width - nx) // 2 + nx]
    data *= layout.mask
    return State(data, DAY, layout, tuple(range(members)))


def network(layout: Layout, count: int, error: float, seed: int = 1) -> Observations:
    """Half surface temperature, a quarter sea level, a quarter temperature at depth; even on the sphere."""
    rng, found = np.random.default_rng(seed), []
    lat = layout.grid["lat"].values
    limits = np.sin(np.radians([lat[0], lat[-1]]))
    while sum(map(len, found)) < count:
        kind = rng.choice(3, count, p=(0.5, 0.25, 0.25)) if len(layout.names) > 1 else np.ones(count, int)
        table = {
            "variable": np.where(kind == 1, "zos", "thetao"),
            "lat": np.degrees(np.arcsin(rng.uniform(*limits, count))),
            "lon": rng.uniform(0, 360, count),
            "depth": np.where(kind == 2, rng.uniform(0, 2000, count), 0.0),
            "value": rng.normal(size=count),
            "error": error,
        }
        found.append(operator_for(layout, Observations.from_table(DAY, table), drop=True).observations)
    obs = Observations.concat(found).select(np.arange(count))
    truth = ensemble(layout, 1)  # its first member, seen with errors: innovations are as they should be
    return obs.replace(value=operator_for(layout, obs).apply(truth)[0].numpy() + error * rng.normal(size=count))


def cpu(task: Callable[[], Any], rounds: int = 1) -> tuple[float, Any]:
    """CPU seconds of the fastest of some rounds, and what came out."""
    best, result = np.inf, None
    for _ in range(rounds):
        began = time.process_time()
        result = task()
        best = min(best, time.process_time() - began)
    return best, result


def memory(what: str) -> float:
    """Bytes of this process: VmRSS is what it has, VmHWM the most it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(float(line.split()[1]) for line in lines if line.startswith(what))


def forget_peak() -> None:
    """The most it had is what it has."""
    Path("/proc/self/clear_refs").write_text("5")


# --- 1. the ocean --------------------------------------------------------------------------------


def ocean(case: dict[str, Any]) -> dict[str, Any]:
    """One analysis; runs in a process of its own."""
    layout = world(case["ny"], case["nx"], case["levels"], case["land"])
    forecast, obs = ensemble(layout, case["members"]), network(layout, case["observations"], 1.0)
    made, super_seconds = len(obs), 0.0
    if case.get("superob"):
        super_seconds, obs = cpu(lambda: superobbed(obs, case["superob"], depth=200.0))
        obs = operator_for(layout, obs, drop=True).observations  # a mean position may be on land
    method = LETKF(
        case["half_width"] * 1e3,
        rtpp=0.5,
        block=case.get("block", 128),
        stride=case["stride"],
        max_observations=case["most"],
        memory=case.get("memory", 10**9),
    )
    columns = analysis_columns(layout, layout.mask.any(0).numpy(), method.stride, method.half_width)
    departures(forecast, obs)  # its memory is not of the LETKF's
    forget_peak()
    before, load = memory("VmRSS"), os.getloadavg()[0]
    wall, system = time.perf_counter(), os.times().system
    seconds, analysis = cpu(lambda: method.analysis(forecast, obs))
    wall, system = time.perf_counter() - wall, os.times().system - system
    result = {
        "observations": f"{made} → {len(obs)}" if case.get("superob") else str(made),
        "wet": int(layout.mask.any(0).sum()),
        "analysed": len(columns.cells),
        "seconds": seconds + super_seconds,
        "system": system,
        "wall": wall + super_seconds,
        "memory": (memory("VmHWM") - before - analysis.data.nbytes) / 1e9,
        "load": load,
    }
    if case.get("error"):
        result["error"] = error_of(method, forecast, obs, analysis)
    return result


def error_of(method: LETKF, forecast: State, obs: Observations, analysis: State) -> float:
    """Percent of the posterior spread, from exact weights of 1500 columns drawn at random."""
    layout = forecast.layout
    wet = np.flatnonzero(layout.mask.any(0).numpy())
    cells = np.sort(np.random.default_rng(0).choice(wet, min(1500, len(wet)), replace=False))
    Y, d = departures(forecast, obs)
    error = spread = 0.0
    for part, near, rho in method.column_blocks(layout, obs, torch.from_numpy(cells)):
        T, w = transform(Y[near], d[near], rho, rtpp=method.rtpp)
        X = forecast.data.flatten(-2)[:, :, part].double() * layout.mask.flatten(-2)[:, part]
        mean, X = X.mean(0), (X - X.mean(0)).permute(2, 1, 0)
        exact = mean + (X @ (T + w.unsqueeze(-1))).permute(2, 1, 0)
        found = analysis.data.flatten(-2)[:, :, part].double()
        error += float((found - exact).square().sum())
        spread += float((exact - exact.mean(0)).square().sum())
    return 100 * (error / spread) ** 0.5


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    """The result of `ocean`, in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


CASE = {"ny": 180, "nx": 360, "levels": 19, "land": True, "members": 64, "observations": 100_000, "stride": "auto"}
OCEANS = {
    "half width 450 km, nearest 400, stride 3": CASE | {"half_width": 450, "most": 400, "stride": 3, "error": True},
    "half width 900 km, nearest 400": CASE | {"half_width": 900, "most": 400, "error": True},
    "half width 900 km, superobs of 3 degrees": CASE | {"half_width": 900, "most": 1000, "superob": 3.0, "error": True},
    "half width 900 km, nearest 400, memory=1e8": CASE | {"half_width": 900, "most": 400, "memory": 10**8},
}
MILLION = {"100 members, 1e6 observations": CASE | {"half_width": 900, "most": 400, "members": 100, "levels": 9}}
MILLION["100 members, 1e6 observations"]["observations"] = 1_000_000


def oceans(small: bool, million: bool) -> str:
    """Table of 1 degree analyses; small ones have 4 degrees and 16 members."""
    head = ["case", "observations", "wet", "analysed", "CPU s", "of them the kernel's", "wall s", "working memory, GB"]
    head += ["error, %", "load"]
    rows, verdicts = [], []
    for title, case in (OCEANS | (MILLION if million else {})).items():
        if small:
            case = case | {"ny": 45, "nx": 90, "members": 16, "observations": case["observations"] // 16}
            case |= {"half_width": 4 * case["half_width"]}
        r = in_a_process(case)
        error = f"{r['error']:.2f}" if "error" in r else ""
        numbers = [f"{r[k]:.2f}" for k in ("seconds", "system", "wall", "memory")]
        rows.append([title, r["observations"], str(r["wet"]), str(r["analysed"]), *numbers, error, f"{r['load']:.1f}"])
        if not small and title in OCEANS:
            verdicts.append(
                f"- {'PASS' if r['seconds'] <= GOAL else 'FAIL'}  at most {GOAL:.0f} CPU s, {title}: {r['seconds']:.1f}"
            )
        print(*rows[-1], flush=True)
    return table(head, rows) + "\n\n" + "\n".join(verdicts)


# --- 2. growth -----------------------------------------------------------------------------------


def growth(small: bool) -> str:
    """Exponents of CPU seconds in observations, columns and rows, of the parts that each belongs to."""
    factor = 2 if small else 1  # fewer columns and observations
    half_width, members = 900e3, 32
    rows = []

    def fit(title: str, sizes: list[float], seconds: list[float]) -> None:
        slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        rows.append([title, ", ".join(f"{s:g}" for s in sizes), ", ".join(f"{t:.2f}" for t in seconds), f"{slope:.2f}"])
        print(*rows[-1], flush=True)

    for stride in (1, 2):
        method = LETKF(half_width, stride=stride, max_observations=10**6)
        sizes, seconds = [4000, 8000, 16000, 32000], []
        layout = world(90, 180 // factor, 0, False)
        forecast = ensemble(layout, members)
        for size in sizes:
            obs = network(layout, size // factor, 1.0)
            seconds.append(cpu(lambda f=forecast, o=obs, m=method: m.analysis(f, o), stride)[0])
        fit(f"observations, at the same columns, stride {stride}", [s // factor for s in sizes], seconds)
    method = LETKF(half_width, stride=2)
    sizes, seconds = [30, 60, 90, 120], []
    for ny in sizes:
        layout = world(ny, 180 // factor, 4, False, -ny / 2, ny / 2)
        forecast, obs = ensemble(layout, members), network(layout, 40 * ny // factor, 1.0)
        seconds.append(cpu(lambda f=forecast, o=obs: method.analysis(f, o), 2)[0])
    fit("columns, at the same density of observations", [n * 180 // factor for n in sizes], seconds)
    sizes, seconds = [1, 4, 9, 19], []
    for levels in sizes:
        layout = world(90, 180 // factor, levels, False)
        forecast, obs = ensemble(layout, members), network(layout, 1000, 1.0)
        weights = method.weights(forecast, obs)
        seconds.append(cpu(lambda f=forecast, w=weights: w.apply(f), 3)[0])
    fit("rows of the state, weights given", [4 * n + 1 for n in sizes], seconds)
    return table(["in", "sizes", "CPU s", "exponent"], rows)


# --- 3. DAPPER -----------------------------------------------------------------------------------


def dapper(small: bool, folder: str | None) -> str:
    """The same columns by DAPPER (or by NumPy in its place) and by us: 180 x 360, 30 members, 5000 observations."""
    layout = world(180, 360, 0, False)
    forecast, obs = ensemble(layout, 30), network(layout, 5000, 1.0)
    forecast, half_width = forecast.to(torch.float64), 10 * 111.2e3
    columns = np.sort(np.random.default_rng(0).choice(180 * 360, 300 if small else 1500, replace=False))
    E = forecast.data[:, 0].flatten(1).numpy()
    Eo = operator_for(layout, obs).apply(forecast).numpy()
    lat, lon = (a.ravel() for a in layout.position(Field("any")))
    here, there = unit_vectors(lat, lon), unit_vectors(obs.lat, obs.lon)
    lists = dict(zip(columns.tolist(), near_columns(obs, half_width, lat[columns], lon[columns]), strict=True))
    try:
        if folder:
            sys.path.append(folder)
        import dapper
        from dapper.da_methods.ensemble import local_analyses
        from dapper.tools.localization import dist2coeff, pairwise_distances
        from dapper.tools.randvars import GaussRV

        name, R = f"DAPPER {dapper.__version__}", GaussRV(C=1.0, M=len(obs)).C

        def as_shipped(i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chord = pairwise_distances(here[i], there)[0]
            index = np.flatnonzero(chord < 2 * np.sin(half_width / EARTH_RADIUS))
            arc = 2 * EARTH_RADIUS * np.arcsin(chord[index] / 2)
            return index, dist2coeff(arc, half_width / 1.82).clip(0)  # rounding makes it -1e-17 at the end

        batches = [np.array([c]) for c in columns]

        def run(taper: Callable[[np.ndarray], Any]) -> np.ndarray:
            return local_analyses(E.copy(), Eo, R, obs.value, batches, taper)[0][:, columns]

        theirs = {f"{name}, its distances": cpu(lambda: run(as_shipped), 2)}
        theirs[f"{name}, lists for nothing"] = cpu(lambda: run(lambda i: lists[int(i[0])]), 2)
    except ImportError:
        name = "NumPy loop (a stand-in, DAPPER is not here), lists for nothing"
        theirs = {name: cpu(lambda: numpy_columns(E, Eo, obs, columns, lists))}
    wanted = next(iter(theirs.values()))[1]
    rows = [[title, f"{1e6 * s / len(columns):.0f}", "", "", "", ""] for title, (s, _) in theirs.items()]
    slowest, fastest = (f(s for s, _ in theirs.values()) / len(columns) for f in (max, min))
    cells = len(layout.mask.flatten())
    spread = None
    strides = (1, "auto", 3) if small else (1, 1, "auto", 3, 4)
    for k, stride in enumerate(strides):
        state = forecast if k == 0 else forecast.to(torch.float32)
        method = LETKF(half_width, stride=stride)
        seconds, analysis = cpu(lambda m=method, f=state: m.analysis(f, obs))
        found = analysis.data[:, 0].flatten(1).double().numpy()[:, columns]
        spread = found.std(0).mean() if spread is None else spread
        off = np.sqrt(np.mean((found - wanted) ** 2)) / spread
        each = seconds / cells
        title = f"polynya, {str(state.data.dtype).removeprefix('torch.')} state, stride {stride}"
        largest = f"{np.abs(found - wanted).max() / np.abs(wanted).max():.1e}"
        ratios = [f"{slowest / each:.1f}", f"{fastest / each:.1f}"]
        rows.append([title, f"{1e6 * each:.1f}", *ratios, largest, f"{100 * off:.2g}"])
        print(*rows[-1], flush=True)
    head = ["method", "µs of CPU per column", "times faster", "than given lists", "largest relative difference"]
    return table([*head, "RMS, % of the posterior spread"], rows)


def near_columns(obs: Observations, half_width: float, lat: np.ndarray, lon: np.ndarray) -> list[Any]:
    """Observation numbers and weights of each column."""
    index, distance = LocalObservations(obs.lat, obs.lon, 2 * half_width, len(obs)).near(lat, lon)
    rho = gaspari_cohn(torch.from_numpy(distance), half_width=half_width).numpy()
    return [(i[r > 0], r[r > 0]) for i, r in zip(index, rho, strict=True)]


def numpy_columns(E: np.ndarray, Eo: np.ndarray, obs: Observations, columns: np.ndarray, lists: Any) -> np.ndarray:
    """Hunt et al. (2007), column by column."""
    N1, mean = len(E) - 1, Eo.mean(0)
    Y, d = (Eo - mean) / obs.error, (obs.value - mean) / obs.error
    out = []
    for c in columns:
        index, rho = lists[int(c)]
        C = Y[:, index] * rho
        values, V = np.linalg.eigh(np.eye(len(E)) + C @ Y[:, index].T / N1)
        w = V @ ((V.T @ (C @ d[index])) / values) / N1
        x = E[:, c]
        out.append(x.mean() + (w[:, None] + (V / np.sqrt(values)) @ V.T).T @ (x - x.mean()))
    return np.array(out).T


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["ocean", "growth", "dapper"])
    parser.add_argument("--small", action="store_true", help="a minute instead of many")
    parser.add_argument("--million", action="store_true", help="also 1e6 observations")
    parser.add_argument("--dapper", help="folder with the packages of an environment that has DAPPER")
    parser.add_argument("--record", action="store_true", help="keep the tables under benchmarks/results/")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.case:
        print(json.dumps(ocean(json.loads(given.case))))
        return
    makers = {
        "ocean": ("A 1 degree ocean, 77 rows, 64 members, float32", lambda: oceans(given.small, given.million)),
        "growth": ("How cost grows", lambda: growth(given.small)),
        "dapper": (
            "Per column, 180 x 360, 30 members, 5000 observations", lambda: dapper(given.small, given.dapper)
        ),
    }  # fmt: skip
    for title, make in (makers[part] for part in given.parts):
        load = os.getloadavg()[0]
        machine = f"{processor()}, 1 thread, load {load:.1f} at the start, torch {torch.__version__}"
        text = f"{machine}, {datetime.now(UTC).date().isoformat()}.\n\n{make()}\n"
        print(f"## {title}\n\n{text}")
        if given.record:
            keep(title, text)


def keep(title: str, text: str) -> None:
    """Put a part into benchmarks/results/letkf.md, in place of the one of that title."""
    path, head = RESULTS / "letkf.md", "# The LETKF at the size of an ocean\n\nWhat and how: `benchmarks/letkf.py`.\n"
    before, *parts = (path.read_text() if path.exists() else head).split("\n## ")
    found = dict(part.split("\n\n", 1) for part in parts) | {title: text}
    path.write_text("\n## ".join([before, *("\n\n".join(item) for item in found.items())]))


if __name__ == "__main__":
    main()
