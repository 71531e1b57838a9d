"""Diagnostics beside what users would call otherwise, interleaved in one run on the same arrays.

    python benchmarks/diagnostics.py [--rounds 5] [--only CRPS] [--record]

Prints CPU and wall seconds (medians over rounds), ratios, the largest difference between the results, and what NumPy
allocates for a call beside its input, and says which aims are met. `--record` writes results/diagnostics.md. Needs the
extras `test` and `bench`; nothing else should be running.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import dask
import gsw
import numpy as np
import xarray as xr
import xrft
import xskillscore
from machine import RESULTS, processor

from polynya.diagnostics import crps_ensemble, isotropic_spectrum, rank_histogram, steric

Task = Callable[[], xr.DataArray]

DIMS = ("time", "lat", "lon")
THREADS = 2  # of dask


@dataclass(frozen=True)
class Race:
    """Ours against a peer's: calls without arguments, the ratio aimed at, and what the results may differ by."""

    name: str
    ours: Task
    peer: Task
    peer_name: str
    aim: float
    nbytes: int
    difference: float | None = None
    memory: float | None = None


def crps_races() -> list[Race]:
    """CRPS at each place of 50 members x 20 x 180 x 360 float32; dask in chunks of one time."""
    rng = np.random.default_rng(0)
    obs = xr.DataArray(rng.standard_normal((20, 180, 360), dtype="f4"), dims=DIMS)
    ens = xr.DataArray(rng.standard_normal((50, 20, 180, 360), dtype="f4"), dims=("member", *DIMS))
    lazy = obs.chunk(time=1), ens.chunk(time=1)
    nbytes = obs.nbytes + ens.nbytes

    def fair() -> xr.DataArray:
        # xskillscore has none: what two of its scores make of it.
        distance = xskillscore.mae(ens, obs.broadcast_like(ens), dim="member")
        return distance - (distance - xskillscore.crps_ensemble(obs, ens, dim=[])) * 50 / 49

    def peer(y: xr.DataArray, x: xr.DataArray) -> xr.DataArray:
        return xskillscore.crps_ensemble(y, x, dim=[]).compute()

    return [
        Race("plain CRPS, NumPy", lambda: crps_ensemble(obs, ens, dim=()), lambda: peer(obs, ens), "xskillscore", 10,
             nbytes, 1e-6, 0.1),
        Race("fair CRPS, NumPy", lambda: crps_ensemble(obs, ens, dim=(), fair=True), fair, "xskillscore, two scores",
             10, nbytes, 1e-6, 0.1),
        Race("plain CRPS, dask", lambda: crps_ensemble(*lazy, dim=()).compute(), lambda: peer(*lazy), "xskillscore", 3,
             nbytes, 1e-6),
    ]  # fmt: skip


def rank_races() -> list[Race]:
    """Rank histogram of 50 members x 5 x 180 x 360 float32; ties, which xskillscore breaks unseeded, differ."""
    rng = np.random.default_rng(0)
    obs = xr.DataArray(rng.standard_normal((5, 180, 360), dtype="f4"), dims=DIMS)
    ens = xr.DataArray(rng.standard_normal((50, 5, 180, 360), dtype="f4"), dims=("member", *DIMS))
    lazy = obs.chunk(time=1), ens.chunk(time=1)
    nbytes = obs.nbytes + ens.nbytes

    def peer(y: xr.DataArray, x: xr.DataArray) -> xr.DataArray:
        return xskillscore.rank_histogram(y, x).compute()

    return [
        Race("rank histogram, NumPy", lambda: rank_histogram(obs, ens), lambda: peer(obs, ens), "xskillscore", 5,
             nbytes, 5.0),
        Race("rank histogram, dask", lambda: rank_histogram(*lazy).compute(), lambda: peer(*lazy), "xskillscore", 5,
             nbytes, 5.0),
    ]  # fmt: skip


def spectrum_races() -> list[Race]:
    """Isotropic spectra of 200 maps of 256 x 256 float32, Hann window; definitions differ, see the module."""
    rng = np.random.default_rng(0)
    coords = {"y": 1e4 * np.arange(256), "x": 1e4 * np.arange(256)}
    maps = xr.DataArray(rng.standard_normal((200, 256, 256), dtype="f4"), dims=("time", "y", "x"), coords=coords)

    def race(detrend: str) -> Race:
        return Race(
            f"isotropic spectrum, {detrend} detrend",
            lambda: isotropic_spectrum(maps, dim=("y", "x"), spacing=(1e4, 1e4), detrend=detrend),
            lambda: xrft.isotropic_power_spectrum(maps, dim=["y", "x"], window="hann", detrend=detrend, truncate=True),
            "xrft",
            10,
            maps.nbytes,
        )

    return [race("constant"), race("linear")]


def steric_races() -> list[Race]:
    """Local steric height, 24 x 20 levels x 180 x 360 float32 against a reference state, from practical salinity."""
    rng = np.random.default_rng(0)
    lev = np.linspace(5, 4500, 20)
    lat, lon = np.arange(-85.5, 86, 0.955), np.arange(0.5, 360)
    shape = (24, lev.size, lat.size, lon.size)
    dz = np.diff(np.concatenate([[0], (lev[1:] + lev[:-1]) / 2, [4600]]))
    coords = {"lev": lev, "lat": lat, "lon": lon, "dz": ("lev", dz, {"units": "m"})}
    dims = ("time", "lev", "lat", "lon")
    theta = 20 * np.exp(-lev / 800)[:, None, None] + rng.standard_normal(shape, dtype="f4")
    thetao = xr.DataArray(theta.astype("f4"), coords, dims, name="thetao", attrs={"units": "degC"})
    salt = 35 + 0.3 * rng.standard_normal(shape, dtype="f4")
    so = xr.DataArray(salt, coords, dims, name="so", attrs={"units": "0.001"})
    reference = xr.Dataset({"thetao": thetao[0], "so": so[0]})

    def density(t: xr.DataArray, s: xr.DataArray) -> np.ndarray:
        p = gsw.p_from_z(-lev[:, None], lat)[..., None]
        sa = gsw.SA_from_SP(s.values.astype("f8"), p, lon, lat[:, None])
        sa = np.where(np.isnan(sa), 35.16504 / 35 * s.values.astype("f8"), sa)  # land of the atlas
        return gsw.rho(sa, gsw.CT_from_pt(sa, t.values.astype("f8")), p)

    def peer() -> xr.DataArray:
        change = density(thetao, so) - density(reference["thetao"], reference["so"])
        return xr.DataArray(-(change * dz[:, None, None]).sum(1) / 1035, dims=("time", "lat", "lon"))

    def ours() -> xr.DataArray:
        return steric(thetao, so, reference=reference, parts=False)["steric"]

    return [Race("steric height", ours, peer, "gsw", 8, thetao.nbytes + so.nbytes, 1e-9)]


SUITES = {"CRPS": crps_races, "ranks": rank_races, "spectra": spectrum_races, "steric": steric_races}


def extra_memory(task: Task) -> int:
    """Peak of what NumPy allocates during a call, bytes, its result included."""
    tracemalloc.start()
    task()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def run(race: Race, rounds: int) -> dict[str, float]:
    """Both sides in turn, after one round to warm up: median CPU and wall seconds, difference, memory."""
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    results: dict[str, xr.DataArray] = {}
    for turn in range(rounds + 1):
        for side, task in (("ours", race.ours), ("peer", race.peer)):
            began = time.process_time(), time.perf_counter()
            results[side] = task()
            if turn:
                times[side].append((time.process_time() - began[0], time.perf_counter() - began[1]))
    found = {
        f"{side} {kind}": statistics.median(t[k] for t in times[side])
        for side in times
        for k, kind in enumerate(("CPU", "wall"))
    }
    if race.difference is not None:
        found["difference"] = float(np.abs(results["ours"].to_numpy() - results["peer"].to_numpy()).max())
    results.clear()
    return found | {f"{side} memory": extra_memory(getattr(race, side)) / race.nbytes for side in times}


def lines_of(name: str, race: Race, found: dict[str, float]) -> tuple[str, list[str]]:
    """One row of the table, and what the aims say."""
    ratio = found["peer CPU"] / found["ours CPU"]
    difference = f"{found['difference']:.1e}" if "difference" in found else "other definition"
    cells = [name, race.peer_name, *(f"{found[k]:.3f}" for k in ("ours CPU", "peer CPU", "ours wall", "peer wall"))]
    cells += [f"{ratio:.1f}", difference, f"{found['ours memory']:.0%}", f"{found['peer memory']:.0%}"]
    said = [f"{'PASS' if ratio >= race.aim else 'FAIL'}  {name}: {ratio:.1f} x {race.peer_name}, aim {race.aim:g}"]
    if race.difference is not None:
        good = found["difference"] <= race.difference
        said += [f"{'PASS' if good else 'FAIL'}  {name}: differs by {difference}, aim {race.difference:g}"]
    if race.memory is not None:
        good = found["ours memory"] <= race.memory
        said += [
            f"{'PASS' if good else 'FAIL'}  {name}: {found['ours memory']:.0%} extra memory, aim {race.memory:.0%}"
        ]
    return "| " + " | ".join(cells) + " |", said


def main() -> None:
    """Run the races and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=[*SUITES], nargs="*", default=[*SUITES])
    parser.add_argument("--record", action="store_true", help="write results/diagnostics.md")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, verdicts, notes = [], [], []
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        for suite in given.only:
            races = SUITES[suite]()
            notes.append(f"- {suite}: {SUITES[suite].__doc__}")
            for race in races:
                row, said = lines_of(race.name, race, run(race, given.rounds))
                print(row, *said, sep="\n", flush=True)
                rows.append(row)
                verdicts += said
    today = datetime.now(UTC).date()
    packages = ", ".join(f"{p} {version(p)}" for p in ("numpy", "numba", "dask", "xskillscore", "xrft", "gsw"))
    text = f"""# Diagnostics beside their peers

Median of {given.rounds} interleaved rounds, CPU seconds (one thread; {THREADS} for dask) and wall seconds; memory is
what NumPy allocates during the call beside its input, in per cent of the input. By `benchmarks/diagnostics.py`.
{processor()}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {packages}, {today}.

| what | peer | ours CPU | peer CPU | ours wall | peer wall | peer / ours | difference | our memory | theirs |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

{chr(10).join(notes)}

{chr(10).join("- " + v for v in verdicts)}
"""
    if given.record:
        (RESULTS / "diagnostics.md").write_text(text)


if __name__ == "__main__":
    main()
