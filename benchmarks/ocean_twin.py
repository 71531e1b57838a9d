"""Twin experiments in the embedded channel: which analysis comes nearest to a nature run that the emulator is not.

    python benchmarks/ocean_twin.py --out FOLDER [--cycles 75] [--methods OI LETKF ...] [--faulty] [--record]

Every five days a swath of surface temperature, points of sea level and Argo-like floats see the nature run, which is
the ocean model itself; the forecasts are the emulator's. All methods begin from the same ensemble of lagged forecasts
and see the same observations. `--faulty` plants 10 % gross errors and a bias of the floats' temperature, and adds the
checks that are to find them. Experiments that are there already are gone on with. Prints errors per variable and depth
over the cycles after the first 15, spread / error, and what the checks have rejected; `--record` writes the table to
`benchmarks/results/ocean_twin.md` and figures beside the stores.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import replace
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from polynya.da import (
    LBFGS,
    LETKF,
    OI,
    RTPP,
    Adaptive,
    Biased,
    Buddy,
    Debiased,
    DiffusedRoot,
    EnVar,
    Faulty,
    Floats,
    FourDVar,
    Gross,
    Inflated,
    LocalisedEnsemble,
    Located,
    Quality,
    RandomPoints,
    Range,
    SurfaceField,
    ThreeDVar,
    Twin,
    twin,
)
from polynya.emulators import Corrected, GridNoise, Layout, Noise, Source, State, samples
from polynya.ensembles import states_of, trajectory

SKIP = 15
TAPER = {"max_observations": 300}
RELAXED = ((0.6, ("thetao", "uo", "vo")), (0.63, ("so",)), (0.5, ("zos",)))  # few see salinity, many sea level


def network(faulty: bool):
    """What sees the truth: clean, or with gross errors everywhere and one biased instrument."""
    clean = (
        SurfaceField("thetao", error=0.3, coverage=0.5, stride=2, kind="SST swath"),
        RandomPoints("zos", error=0.02, count=300, kind="altimeter"),
        Floats(80, {"thetao": 0.1, "so": 0.02}, max_depth=2000.0, kind="float"),
    )
    if not faulty:
        return clean
    swath, altimeter, floats = (Faulty(i, fraction=0.1, size=10.0) for i in clean)
    return swath, altimeter, Biased(floats, {"thetao": 0.2})


MINIMISER = LBFGS(1e-2, evaluations=40)


def taper(layout: Layout, length: float) -> DiffusedRoot:
    """Correlations along the water that localise an ensemble's covariance, the same at all levels."""
    return DiffusedRoot(layout.select(("zos",)), 1.0, length, normalisation="local")


def methods(climatology: State) -> dict:
    """By name; the static ones have the covariance of states of the nature run before the experiment.

    The hybrid's mean is half way between the LETKF's and that of an EnVar with four fifths of the ensemble's covariance
    and a fifth of a tenth of the climatology's, of every third state.
    """
    plain = LETKF(1e5, **TAPER)
    letkf = Inflated(plain, after=[RTPP(alpha, names) for alpha, names in RELAXED])
    some = climatology.sel(climatology.members[::3])
    static = LocalisedEnsemble(some, taper(some.layout, 8e4), scale=0.1)
    hybrid = EnVar(taper(some.layout, 8e4), static, 0.2, MINIMISER, recentre=0.5, filter=letkf)
    return {
        "OI": OI(climatology, half_width=1.2e5, **TAPER),
        "LETKF": replace(plain, inflation=1.2, rtpp=0.6),
        "adaptive LETKF": Adaptive(letkf, 2e5, variance=0.01, **TAPER),
        "hybrid 4DEnVar": Adaptive(hybrid, 2e5, variance=0.01, **TAPER),
    }


def variational(ensemble: State) -> dict:
    """One state each, begun from the ensemble's mean; B is half the first ensemble's, localised along the water."""
    root = LocalisedEnsemble(ensemble, taper(ensemble.layout, 6e4), scale=0.5)
    return {"3D-Var": ThreeDVar(root, MINIMISER), "4D-Var": FourDVar(root, MINIMISER)}


@torch.no_grad()
def first_ensemble(emulator, states: list[State], forcing, end) -> torch.Tensor:
    """Forecasts of all states to one date, and a year beyond: members that differ by days to months, and by a year."""
    lagged = [
        next(islice(trajectory(emulator, s, forcing), round((end - s.time) / emulator.dt), None)).data for s in states
    ]
    first = State(torch.cat(lagged), end, emulator.layout, tuple(range(len(lagged))))
    later = next(islice(trajectory(emulator, first, forcing), 73, None))
    return torch.cat([first.data, later.data])


def experiment(folder: Path, cycles: int, wanted: list[str], faulty: bool) -> Twin:
    """Run what is not there yet."""
    ocean, sample = samples.nature("channel"), samples.sample("channel")
    emulator, forcing = Corrected(samples.emulator("channel"), GridNoise(0.2)), ocean.forcing()
    start = Source.open(sample, ocean.layout).state()
    states = list(states_of(sample, emulator.layout))
    begin = folder.parent / "ensemble.pt"
    if not begin.exists():
        begin.parent.mkdir(parents=True, exist_ok=True)
        torch.save(first_ensemble(emulator, states[:28], forcing, start.time), begin)
    data = torch.load(begin)
    ensemble = State(data, start.time, emulator.layout, tuple(range(len(data))))
    everything = torch.cat([s.data for s in states])
    climatology = State(everything, start.time, emulator.layout, tuple(range(len(everything))))
    quality = Quality((Located(), Range(), Gross(3.0), Buddy(1.5e5))) if faulty else None
    bias = Debiased(("float",), ("thetao",), memory=30) if faulty else None  # the swath is the anchor
    known, single = methods(climatology), variational(ensemble)
    shared = {
        "cycles": cycles, "store": folder, "forcing": forcing, "noise": Noise(2), "quality": quality, "bias": bias,
        "resume": True, "progress": True,
    }  # fmt: skip
    done = twin(
        ocean, start, emulator, ensemble, network(faulty), {n: known[n] for n in wanted if n in known},
        free=not faulty, **shared,
    )  # fmt: skip
    chosen = {n: single[n] for n in wanted if n in single}
    if not chosen:
        return done
    mean = ensemble.mean()
    more = twin(ocean, start, emulator, mean, network(faulty), chosen, free=False, **shared)
    return Twin(done.truth, done.runs | more.runs)


def table(done: Twin) -> str:
    """Errors and spread / error of all runs, as Markdown."""
    summary = done.summary(skip=SKIP).compute()
    names = [f"{v} {d}" for v, d in zip(summary.variable.values, summary.depth.values, strict=True)]
    error = pd.DataFrame(summary.error.transpose("band", "run").values, names, summary.run.values)
    ratio = pd.DataFrame(summary.ratio.transpose("band", "run").values, names, summary.run.values)
    error.insert(0, "unit", summary.units.values)
    lines = ["| error (RMSE) | " + " | ".join(map(str, error.columns)) + " |", "|---" * (len(error.columns) + 1) + "|"]
    lines += [f"| {n} | " + " | ".join(x if isinstance(x, str) else f"{x:.4f}" for x in row) + " |"
              for n, row in zip(names, error.values.tolist(), strict=True)]  # fmt: skip
    lines += [
        "",
        "| spread / error | " + " | ".join(map(str, ratio.columns)) + " |",
        "|---" * (len(ratio.columns) + 1) + "|",
    ]
    lines += [f"| {n} | " + " | ".join(f"{x:.2f}" for x in row) + " |"
              for n, row in zip(names, ratio.values.tolist(), strict=True)]  # fmt: skip
    return "\n".join(lines)


def pictures(done: Twin, folder: Path) -> None:
    """Errors over time of all methods on one axis, and increments of the last cycle."""
    scores = done.scores().sel(state="analysis").compute()
    shown = [("thetao", "surface"), ("thetao", "300-1000 m"), ("so", "0-300 m"), ("uo", "surface"), ("zos", "surface")]
    figure, axes = plt.subplots(len(shown), 1, figsize=(9, 2.4 * len(shown)), sharex=True, layout="constrained")
    days = 5 * (1 + np.arange(scores.sizes["time"]))
    for ax, (variable, depth) in zip(axes, shown, strict=True):
        band = int(np.flatnonzero((scores.variable.values == variable) & (scores.depth.values == depth))[0])
        for k, run in enumerate(scores.run.values):
            ax.plot(days, scores.error.sel(run=run).isel(band=band), color=f"C{k}", label=str(run))
            spread = scores.spread.sel(run=run)
            if run != "free run" and float(spread.max()) > 0:
                ax.plot(days, spread.isel(band=band), color=f"C{k}", lw=0.8, ls="--")
        ax.set_ylim(bottom=0)
        ax.set_ylabel(f"{variable}, {depth}\n[{scores.units.values[band]}]")
    axes[0].set_title("Error of the analysis (full) and spread (dashed)", loc="left")
    axes[0].legend(ncols=3, fontsize=8, frameon=False)
    axes[-1].set_xlabel("days since the start")
    figure.savefig(folder / "errors.png", dpi=110)
    named = [n for n in done.runs if n != "free run"]
    figure, axes = plt.subplots(len(named), 2, figsize=(11, 2.6 * len(named)), layout="constrained", squeeze=False)
    for row, name in zip(axes, named, strict=True):
        run = done.runs[name]
        pair = run.analysis.isel(time=-1), run.background.isel(time=-1)
        for ax, variable in zip(row, ("thetao", "zos"), strict=True):
            a, b = (d[variable].isel(lev=0) if "lev" in d[variable].dims else d[variable] for d in pair)
            increment = (a - b).mean("member").compute()
            top = float(np.nanquantile(abs(increment), 0.99))
            image = ax.pcolormesh(increment.lon, increment.lat, increment, cmap="RdBu_r", vmin=-top, vmax=top)
            figure.colorbar(image, ax=ax, label=f"{variable} [{run.analysis[variable].attrs['units']}]")
            ax.set_title(f"{name}: increment of the last cycle", loc="left", fontsize=9)
    figure.savefig(folder / "increments.png", dpi=110)


def main() -> None:
    """Run, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cycles", type=int, default=75)
    parser.add_argument("--methods", nargs="+", default=["OI", "adaptive LETKF"])
    parser.add_argument("--faulty", action="store_true")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    folder = asked.out / ("faulty" if asked.faulty else "clean")
    done = experiment(folder, asked.cycles, asked.methods, asked.faulty)
    text = [table(done)]
    for name, run in done.runs.items():
        reasons, numbers = np.unique(run.observations.reason.values, return_counts=True)
        counts = ", ".join(f"{c} {r or 'used'}" for r, c in zip(reasons, numbers, strict=True))
        text.append(f"\nObservations, {name}: {counts}")
        text.append(str(run.departures().to_dataframe().round(4).to_string()))
    print("\n".join(text))
    pictures(done, folder)
    if asked.record:
        where = Path(__file__).parent / "results" / f"ocean_twin{'_faulty' if asked.faulty else ''}.md"
        head = (
            f"# Twin experiments in the embedded channel\n\n{asked.cycles} cycles of five days, the first {SKIP} not "
        )
        head += f"counted; {platform.machine()}, `python benchmarks/ocean_twin.py --out FOLDER"
        head += f"{' --faulty' if asked.faulty else ''} --methods {' '.join(asked.methods)} --record`.\n\n"
        where.write_text(head + text[0] + "\n")


if __name__ == "__main__":
    main()
