"""A generative emulator of sea ice against a deterministic one of equal size, on the embedded sea ice.

    python benchmarks/ice_ensembles.py --truth run.zarr --out .work/ice --record
    python benchmarks/ice_ensembles.py --generative G.safetensors --deterministic D.safetensors --out .work/ice

Ensembles and single runs of both start from the true state on many dates and feel the true weather. Scores are over
the ocean, weighted by area (`ice_cases`); a year of both is in `ice_years`; at the end a list says which claims hold
(`ice_verdict`). Without --truth one is made by the nature model: two members, 60 days of spin-up from rest and what
the forecasts need, five minutes of one processor, or half an hour where `torch.compile` does not work (--eager).
Everything lies in --out and a run that was cut goes on; a case is computed again
if emulators, sampler, truth or settings have changed. Tables and figures go to --out; with --record the tables also go
to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from ice_cases import Bench, Plan, chosen, gathered, read_or_made
from ice_pictures import draw
from ice_verdict import AVERAGES, claims, exponents, moments, scores, small_scale_power, tables
from ice_years import Year, year
from machine import RESULTS, keep
from rich.progress import track

from polynya.emulators import Noise, load, open_store, samples
from polynya.emulators.nature_ice import arctic
from polynya.emulators.regional import Regional, Running
from polynya.ensembles import rollout

SPIN_UP = 120  # steps
SEED = 31  # of the weather; emulators learn from that of another


def emulator(path: Path | None, name: str, device: str, intervals: int | None, fast: bool) -> Regional:
    """An emulator from its file, or the one that comes with the package."""
    found: Any = load(path) if path is not None else samples.emulator(name)
    if not isinstance(found, Regional):
        raise SystemExit(f"wanted a Regional, got {type(found).__name__} from {path or name}")
    for network in filter(None, (found.network, found.first_guess)):
        network.to(device)
    if fast or device != "cpu":
        found = found.tuned(Running(one_at_a_time=False, bf16=fast, compiled=fast))
    return found if intervals is None else found.tuned(n_steps=intervals)


def own_truth(path: Path, steps: int, *, compiled: bool) -> xr.Dataset:
    """Two members of the embedded sea ice with their weather, after spin-up; continued where it was cut."""
    nature = replace(arctic(), compiled=compiled)
    start = nature.at_rest(cftime.datetime(1, 1, 1, calendar="360_day"), (0, 1))
    rollout(
        nature, start, nature.forcing(Noise(SEED).stream("weather")), steps=SPIN_UP + steps, store=path,
        with_forcing=True, resume=True, progress=True, title="embedded sea ice",
    )  # fmt: skip
    return open_store(path).isel(time=slice(SPIN_UP, None))


def long_runs(bench: Bench, given: argparse.Namespace, member: int) -> dict[str, Year]:
    """A year of both emulators, or as much of it as the truth has weather for."""
    steps = min(given.long_steps, bench.truth.sizes["time"] - 2)
    if steps < 2:
        return {}
    if steps < given.long_steps:
        print(f"long runs of {steps} steps, for which the truth has weather, not {given.long_steps}")
    both = (("generative", bench.generative, given.long_members), ("deterministic", bench.deterministic, 1))
    return {name: year(bench, m, member, size, steps, given.seed, given.out) for name, m, size in both}


def results(
    cases: xr.Dataset,
    found: xr.Dataset,
    power: dict[str, xr.Dataset],
    betas: dict[str, dict[str, list[float]]],
    years: dict[str, Year],
) -> dict[str, Any]:
    """All numbers, for JSON."""
    listed: dict[str, Any] = {str(n): _rounded(v) for n, v in found.data_vars.items()}
    ranks = cases["ranks"].sum("case")
    return {
        "cases": cases.sizes["case"],
        "variables": found["variable"].values.tolist(),
        "lead_days": found["lead"].values.tolist(),
        "forecasts": found["forecast"].values.tolist(),
        **listed,
        "rank_histograms": _rounded(ranks / ranks.mean("rank")),
        "small_scale_power": _by_run(power, "ratio"),
        "its_standard_error": _by_run(power, "error"),
        "quantities": cases["quantity"].values.tolist(),
        "beta": betas,
        "seconds_a_member_and_step": _rounded(cases["seconds"].median("case")),
        "years": {
            n: {
                "days": (y.run.sizes["time"] - 1) / 2,
                "drift": y.drift(y.run.sizes["time"] - 1),
                "variance_ratio": y.variances(y.run.sizes["time"] - 1),
                "clamped_share": _rounded(y.clamped.share.mean("time")),
                "made_by_clamp_m_a_day": float(y.clamped.made.mean()),
            }
            for n, y in years.items()
        },
    }


def _by_run(power: dict[str, xr.Dataset], name: str) -> dict[str, dict[str, Any]]:
    return {where: {str(r): _rounded(x[name].sel(run=r)) for r in x["run"].values} for where, x in power.items()}


def _rounded(values: xr.DataArray) -> Any:
    return np.vectorize(lambda v: float(f"{v:.5g}"))(values.to_numpy()).tolist()


def run(bench: Bench, plan: Plan, given: argparse.Namespace) -> str:
    """Everything after the emulators and the truth are there; returns the report."""
    members = given.truth_members or bench.truth["member"].values.tolist()[-2:]
    wanted = chosen(bench, members, given.cases, plan.leads)
    if given.share:
        for m, date in track(wanted[given.share[0] :: given.share[1]], description="cases"):
            read_or_made(bench, plan, m, date, given.out)
        return "these cases are there; run again without --share for the tables"
    made = [read_or_made(bench, plan, m, date, given.out) for m, date in track(wanted, description="cases")]
    cases = gathered(made, bench.names, plan, bench.generative.dt)
    years = long_runs(bench, given, members[0])
    found = scores(cases, bench.generative.config.input_std[: len(bench.names)])
    power = {n: small_scale_power(cases[k]) for n, k in (("all small ones", "local"), ("the largest", "spectra"))}
    curves = {average: moments(cases, bench, average) for average in AVERAGES}
    betas = {average: exponents(m) for average, m in curves.items()}
    days = bench.generative.dt / timedelta(days=1)
    span = days * plan.window[0], days * plan.window[-1]
    tested = claims(found, power["all small ones"], betas, years, bench, float(cases["day"][-1]), span)
    draw(cases, found, curves, years, bench, min(given.map_case, len(wanted) - 1), given.out)
    calls = bench.generative.config.calls
    about = (
        f"{len(wanted)} cases of members {members} of the truth; {plan.members} members, {calls} network calls a step"
    )
    verdict = "\n".join(f"- {c}" for c in tested)
    text = f"# Generative and deterministic emulators of sea ice\n\n{about}\n\n## Claims\n\n{verdict}\n\n"
    text += tables(found, power, betas, years)
    settings = asdict(plan) | {"truth_members": members}
    numbers: dict[str, Any] = {"settings": settings, "emulators": [repr(bench.generative), repr(bench.deterministic)]}
    numbers |= results(cases, found, power, betas, years) | {"claims": [asdict(c) for c in tested]}
    for folder in (given.out, RESULTS) if given.record else (given.out,):
        path = keep("ice_ensembles", numbers, ("torch",), torch.get_num_threads(), folder)
        hardware = json.loads(path.read_text())["hardware"]
        (folder / "ice_ensembles.md").write_text(f"{text}\n\nMeasured on {hardware}.\n")
    return text


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generative", type=Path, help="emulator file; default the embedded one")
    parser.add_argument("--deterministic", type=Path, help="emulator file; default the embedded one")
    parser.add_argument("--truth", type=Path, help="store of the nature model with its weather; default one is made")
    parser.add_argument("--truth-members", type=int, nargs="+", help="to test with; default the last two")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--leads", type=int, default=30, help="steps of a forecast")
    parser.add_argument("--intervals", type=int, help="of the sampler; default the emulator's own")
    parser.add_argument("--long-steps", type=int, default=720, help="of the long runs, 0 for none")
    parser.add_argument("--long-members", type=int, default=4)
    parser.add_argument("--map-case", type=int, default=0, help="which case the maps show")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="members together, bfloat16, torch.compile: a third of the time, other rounding",
    )
    parser.add_argument(
        "--share",
        type=int,
        nargs=2,
        metavar=("K", "N"),
        help="every N-th case from the K-th on, for N processes at once",
    )
    parser.add_argument("--eager", action="store_true", help="do without torch.compile for the nature model")
    parser.add_argument("--out", type=Path, default=Path(".work/ice_ensembles"))
    parser.add_argument("--record", action="store_true", help="keep the tables under benchmarks/results/")
    return parser


def main() -> None:
    given = arguments().parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    generative = emulator(given.generative, "arctic", given.device, given.intervals, given.fast)
    deterministic = emulator(given.deterministic, "arctic_deterministic", given.device, None, given.fast)
    if given.truth is None:
        needed = max(given.long_steps, given.leads + 720) + 2
        truth = own_truth(given.out / "truth.zarr", needed, compiled=not given.eager)
    else:
        truth = open_store(given.truth)
    plan = Plan(given.members, given.leads, given.seed)
    print(run(Bench(generative, deterministic, truth), plan, given))
    print(f"\ntables and figures are in {given.out}")


if __name__ == "__main__":
    main()
