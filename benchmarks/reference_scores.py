"""Filters and smoothers against the literature's scores: `python benchmarks/reference_scores.py`.

Runs the rows of the reference table as batches of replicates and writes benchmarks/results/reference_scores.md: the
median error, the accepted range, and DAPPER's value, which is run in the same process, before and after ours, where it
can be imported (`pip install dapper==1.7.1`, in an environment of its own), and quoted otherwise.

    --rows 5,8,13          only these; the slow rows of the quasi-geostrophic model (33, 34) are run if asked for, each
                           takes 80 to 180 CPU minutes
    --replicates 32        of ours, default 16
    --dapper-seeds 2       runs of DAPPER per row, 0 for none
    --cycles-scale 0.2     that fraction of the scored cycles, burn-in unchanged
    --json row.json        another row: the keys are the attributes of `polynya.da.experiments.Row`
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import RESULTS, processor

from polynya.da.experiments import Result, Row, run, shortened

L63, L96, KS, QG = "lorenz63", "lorenz96", "kuramoto_sivashinsky", "quasi_geostrophic"


@dataclass(frozen=True)
class Reference:
    """A row of the table, the range that is accepted, and DAPPER's value as quoted."""

    row: Row
    low: float = math.nan
    high: float = math.nan
    quoted: str = ""
    slow: bool = False


def ks(method: str, members: int = 0, **tuning: Any) -> Row:
    """As DAPPER's bocquet2019 has it: steps of 0.5, observed every second."""
    return Row(KS, method, members, model={"dt_model": 0.5}, burn_in=200, **tuning)


def qg(method: str, members: int, inflation: float) -> Row:
    """Small ensembles are given ten times the viscosity."""
    viscosity = {"viscosity": 2e-11}
    return Row(
        QG,
        method,
        members,
        inflation,
        localisation=10.0,
        cycles=250,
        member_model=viscosity,
        divergence=1.5,
    )


def var(lag: int, scale: float, covariance: str = "climatology") -> Row:
    """4D-Var with a static covariance, observed every four steps."""
    return Row(L96, "4D-Var", lag=lag, scale=scale, covariance=covariance, obs_interval=4)


TABLE = {
    "1": Reference(Row(L96, "Climatology"), 3.45, 3.75, "3.585"),
    "2": Reference(Row(L96, "OI"), 0.91, 0.96, "0.934"),
    "3": Reference(Row(L96, "3D-Var", scale=0.02), 0.40, 0.44, "0.421"),
    "4": Reference(Row(L96, "ExtKF", inflation=10.0), 0.21, 0.25, "0.229"),
    "5": Reference(Row(L96, "EnKF", 40, 1.06), 0.205, 0.230, "0.211"),
    "7": Reference(Row(L96, "DEnKF", 40, 1.01), 0.165, 0.195, "0.175"),
    "8": Reference(Row(L96, "ETKF", 24, 1.013, True), 0.165, 0.19, "0.169"),
    "9": Reference(Row(L96, "ETKF", 20, 1.04, True), 0.183, 0.207, "0.190"),
    "11": Reference(Row(L96, "EnKF-N", 24, rotation=True), 0.195, 0.222, "0.208"),
    "13": Reference(Row(L96, "LETKF", 7, 1.04, True, 4.0), 0.20, 0.235, "0.211"),
    "16": Reference(Row(L96, "EnKS", 24, 1.013, True, lag=10), 0.165, 0.19, "0.168"),
    "17": Reference(Row(L96, "IEnKS", 20, lag=4, xN=2.0, obs_interval=4, cycles=500), 0.26, 0.33, "0.284"),
    "18": Reference(Row(L96, "IEnKS", 25, 1.2, True, lag=1, obs_interval=12, cycles=300), 0.42, 0.55, "0.498"),
    "19": Reference(var(1, 0.2, "identity"), 0.42, 0.50, "0.452 (patched)"),
    "20": Reference(var(2, 0.1, "identity"), 0.36, 0.43, "0.397 (patched)"),
    "22a": Reference(var(1, 0.2), 0.64, 0.68, "0.659 (patched)"),
    "22b": Reference(var(2, 0.1), 0.57, 0.61, "0.590 (patched)"),
    "22c": Reference(var(4, 0.02), 0.47, 0.51, "0.493 (patched)"),
    "23a": Reference(Row(L63, "Climatology"), 7.5, 7.7, "7.58"),
    "23b": Reference(Row(L63, "OI"), 1.21, 1.29, "1.251"),
    "23c": Reference(Row(L63, "3D-Var", scale=0.1), 1.00, 1.08, "1.036"),
    "24": Reference(Row(L63, "ExtKF", inflation=180.0), 0.86, 0.95, "0.902"),
    "25": Reference(Row(L63, "ETKF", 3, 1.30), 0.65, 0.95, "0.801"),
    "27": Reference(Row(L63, "EnKF", 100, 1.01), 0.50, 0.60, "0.551"),
    "29": Reference(Row(L63, "IEnKS", 10, 1.02, True, lag=1), 0.26, 0.36, "0.310"),
    "30": Reference(Row(L63, "PF", 800, regularisation=0.9, resample=0.2), 0.22, 0.33, "0.269"),
    "33": Reference(qg("LETKF", 25, 1.04), 0.58, 0.70, "0.64 (literature)", slow=True),
    "34a": Reference(qg("EnSRF", 45, 1.03), 0.53, 0.64, "0.58 (its comments)", slow=True),
    "34b": Reference(qg("LETKF", 45, 1.02), 0.47, 0.57, "0.52 (its comments)", slow=True),
    # What DAPPER's own comments expect, with no accepted range.
    "d1": Reference(Row(L96, "EnKF", 28, 1.08), quoted="0.24 (its comments)"),
    "d2": Reference(Row(L96, "EnSRF", 28, 1.02, True), quoted="0.18 (its comments)"),
    "d3": Reference(Row(L96, "EnSRF", 7, 1.07, True, 6.0), quoted="0.23 (its comments)"),
    "d4": Reference(Row(L96, "EnKF-N", 24, rotation=True, xN=2.0), quoted="0.18 (its comments)"),
    "d5": Reference(Row(L63, "ETKF", 10, 1.02, True), quoted="0.60 (its comments)"),
    "d6": Reference(Row(L63, "EnKF-N", 3), quoted="0.60 (its comments)"),
    "d7": Reference(Row(L63, "EnKF-N", 10, rotation=True), quoted="0.54 (its comments)"),
    "d8": Reference(Row(L63, "PF", 100, regularisation=2.4, resample=0.3), quoted="0.38 (its comments)"),
    "d9": Reference(ks("ETKF", 20, inflation=1.03, rotation=True), quoted="0.115 (its comments)"),
    "d10": Reference(
        ks("LETKF", 6, inflation=1.06, rotation=True, localisation=25 / 1.82), quoted="0.14 (its comments)"
    ),
}


# --- DAPPER ----------------------------------------------------------------------------------------------


def peer_model(row: Row, first: int) -> Any:
    """DAPPER's hidden Markov model of a row, or None where it has none."""
    import dapper.mods as modelling
    from dapper.mods.KS import bocquet2019
    from dapper.mods.Lorenz63 import sakov2012
    from dapper.mods.Lorenz96 import sakov2008

    module = {L63: sakov2012, L96: sakov2008, KS: bocquet2019}.get(row.system)
    if module is None or row.member_model or row.observed_every != 1 or dict(row.model) not in ({}, {"dt_model": 0.5}):
        return None
    interval, dt = row.obs_interval or {L63: 25, L96: 1, KS: 2}[row.system], module.tseq.dt
    tseq = modelling.Chronology(
        dt, dko=interval, Ko=first + row.cycles - 1, BurnIn=(first - 0.5) * interval * dt, Tplot=1
    )
    obs = dict(module.Obs)
    if row.obs_error:
        obs["noise"] = row.obs_error**2
    return modelling.HiddenMarkovModel(module.Dyn, obs, tseq, module.X0)


def peer_method(row: Row) -> Any:
    """DAPPER's method of a row, or None where it has none."""
    import dapper.da_methods as da

    N, tuned = row.members, {"infl": row.inflation, "rot": row.rotation}
    flavours = {"enkf": "PertObs", "denkf": "DEnKF", "etkf": "Sqrt", "ensrf": "Serial"}
    if row.kind == "ensrf" and row.localisation:
        return da.SL_EAKF(N=N, loc_rad=row.localisation, **tuned)
    if row.kind in flavours:
        return da.EnKF(flavours[row.kind], N=N, **tuned)
    chosen = {
        "climatology": lambda: da.Climatology(),
        "oi": lambda: da.OptInterp(),
        "3dvar": lambda: da.Var3D(xB=row.scale),
        "extkf": lambda: da.ExtKF(infl=row.inflation),
        "enkfn": lambda: da.EnKF_N(N=N, xN=row.xN or 1.0, **tuned),
        "letkf": lambda: da.LETKF(N=N, loc_rad=row.localisation, xN=row.xN, **tuned),
        "enks": lambda: da.EnKS("Sqrt", N=N, Lag=row.lag, **tuned),
        "ienks": lambda: da.iEnKS(
            "Sqrt", N=N, Lag=row.lag, nIter=row.iterations, wtol=1e-5, xN=row.xN, bundle=row.bundle, **tuned
        ),
        "pf": lambda: da.PartFilt(N=N, reg=row.regularisation, NER=row.resample),
    }.get(row.kind)
    return chosen() if chosen else None


def peer(row: Row, first: int, seed: int, errors_only: bool) -> tuple[float, float] | str | None:
    """DAPPER's mean error and cycles per CPU second, what went wrong, or None where it has no such row."""
    import dapper as dpr

    dpr.rc.liveplotting = False
    dpr.rc.comps["error_only"] = errors_only
    model, method = peer_model(row, first), peer_method(row)
    if model is None or method is None:
        return None
    dpr.set_seed(3000 + seed)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            xx, yy = model.simulate()
            began = time.process_time()
            method.assimilate(model, xx, yy, liveplots=False)
            seconds = time.process_time() - began
            method.stats.average_in_time()
        except Exception as error:  # whatever a row of another package's does must not end the table
            return f"{type(error).__name__}: {str(error)[:60]}"
    return float(method.avrgs.err.rms.a.val), (first + row.cycles) / seconds


# --- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A measured row."""

    name: str
    reference: Reference
    ours: Result
    theirs: list[tuple[float, float]]
    trouble: str

    @property
    def verdict(self) -> str:
        if math.isnan(self.reference.low):
            return ""
        few = self.ours.diverged <= 0.1 * len(self.ours.rmse)
        inside = self.reference.low <= self.ours.median <= self.reference.high
        return "inside" if inside and few else "DIVERGED" if inside else "OUTSIDE"

    @property
    def ratios(self) -> list[tuple[str, str]]:
        """DAPPER's speed, and ours over it, with its usual statistics and with errors only."""
        found = []
        for only in (0, 1):
            speeds = [s for i, (_, s) in enumerate(self.theirs) if i % 2 == only]
            speed = statistics.median(speeds) if speeds else math.nan
            both = (f"{speed:.0f}", f"{self.ours.cycles_per_second / speed:.1f}")
            found.append(both if speeds else ("", ""))
        return found

    def cells(self) -> list[str]:
        row, r, ref = self.ours.row, self.ours, self.reference
        band = "" if math.isnan(ref.low) else f"{ref.low:g}–{ref.high:g}"
        smoothed = f" (lag {row.lag}: {r.median_smoothed:.3f})" if r.smoothed is not None else ""
        if self.theirs:
            errors = [e for e, _ in self.theirs]
            theirs = f"{statistics.mean(errors):.3f} ({', '.join(f'{e:.3f}' for e in errors)})"
        else:
            theirs = f"quoted {ref.quoted}" if ref.quoted else self.trouble or "none"
        speeds = [s for ratio in self.ratios for s in ratio]
        return [
            self.name,
            describe(row),
            f"{len(r.rmse)} × {row.cycles}",
            f"**{r.median:.3f}** ± {r.deviation:.3f}{smoothed}",
            f"{r.median_spread:.3f}",
            str(r.diverged),
            band,
            self.verdict,
            theirs,
            f"{r.cycles_per_second:.0f}",
            *speeds,
        ]


def describe(row: Row) -> str:
    """System, method and tuning in a few words."""
    every = row.obs_interval
    words = [f"{row.system}{f' every {every}' if every else ''}: {row.method}"]
    words += [f"N={row.members}"] if row.members else []
    words += [f"{row.inflation:g}"] if row.inflation != 1 else []
    words += ["rot"] if row.rotation else []
    words += [f"loc {row.localisation:.3g}"] if row.localisation else []
    words += [f"lag {row.lag}"] if row.kind in ("enks", "ienks") else []
    words += [f"xN={row.xN:g}"] if row.xN else []
    words += [f"B×{row.scale:g}"] if row.scale != 1 else []
    words += [f"reg {row.regularisation:g}, NER {row.resample:g}"] if row.kind == "pf" else []
    return ", ".join(words)


def measure(name: str, reference: Reference, seeds: int) -> Line:
    """Ours between DAPPER's runs."""
    row, theirs, trouble = reference.row, [], ""
    print(f"{name:>4} {describe(row)}", flush=True)
    ours = None
    for turn in range(seeds + 1):
        if turn == (seeds + 1) // 2:
            ours = run(row, progress=True)
            print(f"     ours   {ours}", flush=True)
        if turn < seeds:
            got = peer(row, row.first, turn, bool(turn % 2))
            if isinstance(got, tuple):
                theirs.append(got)
                print(f"     DAPPER RMSE {got[0]:.4f}, {got[1]:.0f} cycles per CPU second", flush=True)
            elif got:
                trouble = got
    assert ours is not None
    return Line(name, reference, ours, theirs, trouble)


def write(lines: list[Line], scale: float, path: Path) -> None:
    """The table as Markdown."""
    peer_version = f"DAPPER {version('dapper')}" if find_spec("dapper") else "DAPPER not installed"
    heads = "row|experiment|replicates × cycles|RMSE: median ± deviation|spread|diverged|accepted||DAPPER"
    heads += "|cycles/CPU-s, ours|DAPPER|ratio|DAPPER, errors only|ratio"
    banded = [line for line in lines if line.verdict]
    inside = sum(line.verdict == "inside" for line in banded)
    text = [
        "# Reference scores of filters and smoothers",
        "",
        f"`python benchmarks/reference_scores.py`: {inside} of {len(banded)} rows are "
        "inside the accepted range (median over the replicates, at most a tenth of them diverged).",
        "",
        f"{processor()}, one thread, load {os.getloadavg()[0]:.1f}, torch {version('torch')}, {peer_version}, "
        f"{datetime.now(UTC).date().isoformat()}; scored cycles × {scale:g}, burn-in unchanged. Errors are of the "
        "analysis mean. DAPPER's are its mean over the seeds in brackets, same length; its CPU seconds are those of "
        "`assimilate`, with its usual statistics and with `error_only`; ours are of everything. Cycles are counted per "
        "replicate.",
        "",
        "| " + " | ".join(heads.split("|")) + " |",
        "|" + " --- |" * len(heads.split("|")),
        *("| " + " | ".join(line.cells()) + " |" for line in lines),
        "",
        *(f"Speed, ours (batched) over DAPPER{how}: {spread_of(lines, k)}." for k, how in enumerate(HOW)),
        "",
        "Rows 33 and 34 (quasi-geostrophic) are run if asked for. Rows d1-d10 are from the comments in DAPPER's "
        "modules, without an accepted range. DAPPER's own 4D-Var fails in 1.7.1; rows 19-22 quote it patched.",
    ]
    path.write_text("\n".join(text) + "\n")


HOW = ("", " that computes errors only")


def spread_of(lines: list[Line], which: int) -> str:
    """Median and range of the ratios of speeds."""
    ratios = [float(ratio) for line in lines if (ratio := line.ratios[which][1])]
    return (
        f"median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}" if ratios else "not measured"
    )


def selected(names: str) -> dict[str, Reference]:
    """Rows of the names, "23" standing for 23a, 23b and 23c; without any, all but the slow ones."""
    if not names:
        return {name: ref for name, ref in TABLE.items() if not ref.slow}
    found: dict[str, Reference] = {}
    for wanted in names.split(","):
        rows = {n: ref for n, ref in TABLE.items() if wanted in (n, n.rstrip("abc"))}
        if not rows:
            raise SystemExit(f"no row {wanted!r}; there are {', '.join(TABLE)}")
        found |= rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="")
    parser.add_argument("--replicates", type=int)
    parser.add_argument("--dapper-seeds", type=int, default=2)
    parser.add_argument("--cycles-scale", type=float, default=1.0)
    parser.add_argument("--json", action="append", default=[])
    parser.add_argument("--output", type=Path, default=RESULTS / "reference_scores.md")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    seeds = args.dapper_seeds if find_spec("dapper") else 0
    rows = {} if args.json and not args.rows else selected(args.rows)
    rows |= {Path(name).stem: Reference(Row.from_json(Path(name))) for name in args.json}
    lines = []
    for name, reference in rows.items():
        row = shortened(reference.row, args.cycles_scale)
        if args.replicates:
            row = replace(row, replicates=args.replicates)
        lines.append(measure(name, replace(reference, row=row), seeds))
        write(lines, args.cycles_scale, args.output)
    print(args.output.read_text())


if __name__ == "__main__":
    main()
