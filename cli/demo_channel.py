"""The channel: a twin experiment. Does assimilating satellites and floats beat a free run?"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
import xarray as xr
from rich.console import Console

from ..da import LETKF, Adaptive, Floats, Observations, Quality, RandomPoints, SurfaceField, Twin, observe, twin
from ..diagnostics import Report, kinetic_energy_spectrum, rmse, spread_error
from ..diagnostics.figures import bars, maps, series, spectra
from ..emulators import Corrected, GridNoise, Noise, Source, State, samples
from ..ensembles import states_of

NAME: Final = "channel"
MEMBERS = 24
CYCLES = 30
NETWORK = (
    SurfaceField("thetao", error=0.3, coverage=0.5, stride=2, kind="SST swath"),
    RandomPoints("zos", error=0.02, count=300, kind="altimeter"),
    Floats(80, {"thetao": 0.1, "so": 0.02}, max_depth=2000.0, kind="float"),
)
FILTER = Adaptive(LETKF(half_width=1e5, rtpp=0.6, max_observations=300), half_width=2e5, variance=0.01)
HORIZONTAL = ("lat", "lon")


def chapter(report: Report, out: Path, members: int, days: int, overwrite: bool, console: Console) -> None:
    """Run the twin experiment in the channel and add its sections to the report."""
    cycles = min(CYCLES, days // 5)
    done, seen = _run(out, cycles, overwrite, console)
    runs = {"truth": done.truth, "free run": done.runs["free run"].analysis, "analysis": done.runs["LETKF"].analysis}
    report.section(
        "Observations pull an ensemble onto the truth",
        f"The nature run of an eddying channel is the truth. Every five days it is seen through a swath of surface "
        f"temperature, {NETWORK[1].count} points of sea level and half of {NETWORK[2].count} floats. {MEMBERS} members "
        "of the emulator begin from unrelated dates; one copy runs free, the other is corrected at each observation "
        "time by a local ensemble transform Kalman filter that learns its inflation.",
    )
    _errors(report, runs)
    _pictures(report, runs, len(seen))
    _spectra(report, runs)
    found = done.runs["LETKF"].departures()
    rows: list[dict[str, object]] = []
    for k in range(found.sizes["type"]):
        one = found.isel(type=k)
        rows.append(
            {
                "observations": str(one.kind.values),
                "variable": str(one.variable.values),
                "used": f"{int(one.used)} of {int(one.given)}",
                "O-B mean": float(one["mean"]),
                "O-B rms": float(one.rms),
                "expected rms": float(one.expected),
            }
        )
    report.table(
        rows,
        "Innovations (observation minus background) over all cycles. If the filter is tuned, their rms is what "
        "background spread and observation error predict.",
    )


def _run(out: Path, cycles: int, overwrite: bool, console: Console) -> tuple[Twin, Observations]:
    """Truth, free run and analyses, and what was observed last."""
    console.print(f"channel: nature run, free run and {cycles} LETKF cycles with {MEMBERS} members")
    ocean, sample = samples.nature(NAME), samples.sample(NAME)
    emulator = Corrected(samples.emulator(NAME), GridNoise(0.2))  # which would pile up over months
    noise, start = Noise(2), Source.open(sample, ocean.layout).state()
    past = list(states_of(sample, emulator.layout))[-MEMBERS - 2 : -2]  # unrelated to the present, or nearly so
    ensemble = State(torch.cat([s.data for s in past]), start.time, emulator.layout, tuple(range(MEMBERS)))
    done = twin(
        ocean, start, emulator, ensemble, NETWORK, {"LETKF": FILTER}, cycles=cycles, store=out / "channel",
        forcing=ocean.forcing(), noise=noise, quality=Quality(), overwrite=overwrite, progress=True,
    )  # fmt: skip
    return done, list(observe(states_of(done.truth, ocean.layout), NETWORK, noise))[-1]


def _errors(report: Report, runs: dict[str, xr.Dataset]) -> None:
    truth = runs["truth"].squeeze("member", drop=True).load()
    shown = {"sea level": ("zos", None), "surface temperature": ("thetao", 0), "surface zonal current": ("uo", 0)}
    for label, (name, level) in shown.items():
        lines = {}
        for run in ("free run", "analysis"):
            obs, ens = (d[name] if level is None else d[name].isel(lev=level) for d in (truth, runs[run]))
            scores = spread_error(obs, ens, dim=HORIZONTAL, weights=truth.areacello).compute()
            units = {"units": obs.attrs["units"].replace("degC", "K"), "long_name": f"{label}"}
            lines[f"{run}: error"] = scores.error.assign_attrs(units)
            if run == "analysis":
                lines["analysis: spread"] = scores.spread.assign_attrs(units)
        report.figure(
            series(lines, title=f"{label.capitalize()}: the analysis stays near the truth, the free run does not"),
            f"Root-mean-square error of the ensemble mean and spread of the members, {label}.",
        )
    rows, ratios = [], {}
    for name in ("thetao", "so", "uo", "vo", "zos"):
        late = slice(truth.sizes["time"] // 3, None)
        error = {}
        for run in ("free run", "analysis"):
            mean = runs[run][name].isel(time=late).mean("member", keep_attrs=True)
            error[run] = float(rmse(truth[name].isel(time=late), mean))
        ratios[name] = error["analysis"] / error["free run"]
        rows.append({"variable": name, "unit": truth[name].attrs["units"], **error, "ratio": ratios[name]})
    report.figure(
        bars(
            {"analysis error / free-run error": ratios},
            title="The analysis beats the free run in every variable"
            if max(ratios.values()) < 1
            else "Error of the analysis relative to the free run",
            ylabel="ratio [1]",
        ),
        "All levels, all times after the first third of the experiment; below 1 is better than running free.",
    )
    report.table(rows, "RMSE of the ensemble mean against the truth, all levels.")
    report.facts(
        {"analysis error relative to the free run, mean of variables": f"{np.mean(list(ratios.values())):.2f}"}
    )


def _pictures(report: Report, runs: dict[str, xr.Dataset], seen: int) -> None:
    last = {
        "truth": runs["truth"].zos.isel(time=-1, member=0),
        "free run, mean": runs["free run"].zos.isel(time=-1).mean("member", keep_attrs=True),
        "analysis, mean": runs["analysis"].zos.isel(time=-1).mean("member", keep_attrs=True),
        "analysis, member 0": runs["analysis"].zos.isel(time=-1, member=0),
    }
    report.figure(
        maps(last, title="Sea level on the last day: the analysis has the eddies of the truth"),
        "The free mean has none: its members disagree about where they are. The last analysis used "
        f"{seen} observations.",
    )


def _spectra(report: Report, runs: dict[str, xr.Dataset]) -> None:
    """Of single members: a mean of members is smooth because they disagree."""
    box = {"lat": slice(2, 37), "lon": slice(0, 56)}  # west of the island, off the walls
    lines = {}
    for label, run in runs.items():
        late = run.isel(time=slice(-12, None), lev=0).isel(box)
        late = late.isel(member=slice(0, 8))
        lines[label] = kinetic_energy_spectrum(late.uo, late.vo).mean(("time", "member"), keep_attrs=True).compute()
    report.figure(
        spectra(lines, title="Kinetic energy at every scale: truth, free run, analysis"),
        "Isotropic spectra of surface currents in the open west of the channel, mean of the last 60 days and of "
        "single members. An emulator that blurs would fall off at small scales.",
    )
