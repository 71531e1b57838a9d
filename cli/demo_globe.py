"""The globe: a warming ensemble, its heat uptake, sea level and skill, and how good the emulator is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from rich.console import Console

from ..diagnostics import (
    Report,
    anomaly,
    crps_ensemble,
    dynamic_sea_level,
    global_heat_content,
    global_steric,
    heat_content,
    heat_uptake,
    rank_histogram,
    rmse,
    spread_error,
    steric,
    variance_ratio,
    wet_area,
)
from ..diagnostics.figures import bars, lead_curves, maps, rank_bars, series
from ..emulators import Emulator, Forcing, Noise, Persistence, Samudra, Source, State, samples
from ..emulators.nature_forcing import Warming
from ..emulators.nature_ocean import NatureOcean
from ..ensembles import Correlated, hindcasts, perturb, rollout, verifying

NAME: Final = "globe"
TRUTH = 100  # the member number, and so the weather, of the nature runs
BANDS = {"0-300 m": (0.0, 300.0), "300-700 m": (300.0, 700.0), "700-2000 m": (700.0, 2000.0)}
JUMP = 2.0  # K
HORIZONTAL = ("lat", "lon")


def chapter(report: Report, out: Path, members: int, days: int, overwrite: bool, console: Console) -> None:
    """Run the experiments on the globe and add their sections to the report."""
    ocean, emulator = samples.nature(NAME), samples.emulator(NAME)
    runs = _runs(ocean, emulator, out, members, days // 5, overwrite, console)
    report.section(
        "A warming ocean",
        f"On day 0 the atmosphere over a near-global 4-degree ocean becomes {JUMP:g} K warmer. {members} members of "
        "the emulator, each under its own stochastic weather, are run beside control members with the same weather. "
        "The nature run, the model that the emulator was trained on, is one more draw of the same climate.",
    )
    _heat(report, runs)
    _sea_level(report, runs)
    _skill(report, runs)
    console.print("globe: forecasts from twelve dates")
    _forecasts(report, runs, ocean, emulator)


def _runs(
    ocean: NatureOcean, emulator: Samudra, out: Path, members: int, steps: int, overwrite: bool, console: Console
) -> dict[str, xr.Dataset]:
    """Nature runs and ensembles, with and without warming, from the last record of the sample."""
    console.print(f"globe: two nature runs and {members} + {min(members, 8)} members over {5 * steps} days")
    noise, start = Noise(1), Source.open(samples.sample(NAME), ocean.layout).state()
    calm = ocean.forcing(noise=noise.stream("weather"))
    warm = ocean.forcing(warming=Warming(step=JUMP), noise=noise.stream("weather"))
    ensemble = perturb(
        start.select(emulator.layout),
        members,
        amplitude={"thetao": 0.05, "so": 0.005},
        noise=noise,
        kind=Correlated(1e6, 200.0),
    )
    truth = start.spread_to((TRUTH,))
    cases: dict[str, tuple[Emulator, State, Forcing]] = {
        "nature_warm": (ocean, truth, warm),
        "nature_control": (ocean, truth, calm),
        "ensemble_warm": (emulator, ensemble, warm),
        "ensemble_control": (emulator, ensemble.sel(ensemble.members[:8]), calm),
    }
    return {
        name: rollout(
            model, state, forcing, steps=steps, store=out / f"globe_{name}.zarr", noise=noise,
            title=f"{name.replace('_', ' ')} on the embedded globe", overwrite=overwrite, progress=True,
        )
        for name, (model, state, forcing) in cases.items()
    }  # fmt: skip


def _heat(report: Report, runs: dict[str, xr.Dataset]) -> None:
    content = {n: global_heat_content(r.thetao, depth=(0, 2000)).compute() for n, r in runs.items()}
    attrs = {"units": "ZJ", "long_name": "heat content change"}
    zetta = {n: ((c - c.isel(time=0)) / 1e21).assign_attrs(attrs) for n, c in content.items()}
    report.figure(
        series(
            {
                f"emulator, +{JUMP:g} K": zetta["ensemble_warm"],
                "emulator, control": zetta["ensemble_control"],
                f"nature, +{JUMP:g} K": zetta["nature_warm"].squeeze("member", drop=True),
                "nature, control": zetta["nature_control"].squeeze("member", drop=True),
            },
            title="The warmed ocean gains heat: emulator and nature run",
            spread="range",
            zero_line=True,
        ),
        "Heat content of the upper 2000 m since day 0. Lines are ensemble means and single nature runs, shading is "
        "the range of the members; the annual cycle is that of the ocean's uneven hemispheres.",
    )
    paired = runs["ensemble_control"].member.values
    area = float(wet_area(runs["nature_warm"].thetao.isel(lev=0, time=0, member=0)))
    table: dict[str, dict[str, float]] = {"emulator": {}, "nature run": {}}
    spans = []
    for band, depth in BANDS.items():
        rates = {
            n: heat_uptake(global_heat_content(r.thetao, depth=depth), area=area).compute() for n, r in runs.items()
        }
        response = rates["ensemble_warm"].sel(member=paired) - rates["ensemble_control"]
        table["emulator"][band] = float(response.mean())
        table["nature run"][band] = float((rates["nature_warm"] - rates["nature_control"]).squeeze())
        spans.append((float(response.min()), float(response.max())))
    ranges = "; ".join(f"{b} {low:.2f} to {high:.2f}" for b, (low, high) in zip(BANDS, spans, strict=True))
    report.figure(
        bars(table, title="Most of the extra heat stays in the upper 300 m", ylabel="heat uptake [W m-2]"),
        "Heat uptake due to warming: trend of heat content, warm minus control with the same weather, per area of "
        f"ocean surface. Range of the members: {ranges} W m-2.",
    )
    total = {k: sum(v.values()) for k, v in table.items()}
    report.facts(
        {
            "heat uptake due to warming, emulator": f"{total['emulator']:.2f} W m⁻²",
            "the same, nature run": f"{total['nature run']:.2f} W m⁻²",
        }
    )
    column = {
        n: heat_content(r.thetao.isel(time=slice(-6, None)), depth=(0, 700)).mean("time") for n, r in runs.items()
    }
    change = column["ensemble_warm"].sel(member=paired) - column["ensemble_control"]
    gain = {
        "emulator, ensemble mean": change.mean("member"),
        "nature run": (column["nature_warm"] - column["nature_control"]).squeeze("member", drop=True),
    }
    attrs = {"units": "GJ m-2", "long_name": "heat content change, 0-700 m"}
    report.figure(
        maps({k: (v / 1e9).assign_attrs(attrs) for k, v in gain.items()}, title="Where the heat goes", anomaly=True),
        "Heat content of the upper 700 m, warm minus control, mean of the last 30 days.",
    )


def _sea_level(report: Report, runs: dict[str, xr.Dataset]) -> None:
    first, height = runs["nature_warm"].isel(time=0, member=0), {}
    for name in ("ensemble_warm", "nature_warm"):
        run = runs[name].isel(time=slice(0, None, 3))
        rise = global_steric(run.thetao, run.so, reference=first, parts=False).steric.compute()
        height[name] = (1e3 * (rise - rise.isel(time=0))).assign_attrs(units="mm", long_name="global steric sea level")
    report.figure(
        series(
            {"emulator": height["ensemble_warm"], "nature run": height["nature_warm"].squeeze("member", drop=True)},
            title="The warmer ocean stands higher",
            spread="range",
            zero_line=True,
        ),
        "Global steric sea level since day 0 (TEOS-10), mean and range of the members, and the nature run.",
    )
    panels = {}
    for label, name in (("emulator, mean", "ensemble_warm"), ("nature run", "nature_warm")):
        some = runs[name].isel(member=slice(0, 8))
        last, start = some.isel(time=-1).load(), some.isel(time=0, member=0).load()
        local = steric(last.thetao, last.so, reference=start, parts=False).steric.mean("member")
        dynamic = dynamic_sea_level(last.zos).mean("member") - dynamic_sea_level(start.zos)
        panels[f"steric, {label}"] = (100 * local).assign_attrs(units="cm", long_name="sea level change")
        panels[f"dynamic, {label}"] = (100 * dynamic).assign_attrs(units="cm", long_name="sea level change")
    report.figure(
        maps(panels, title="Sea level changes where heat and currents do", anomaly=True),
        "Change of sea level from the first to the last day under warming, emulator as the mean of up to 8 members: "
        "steric height of the whole column, and "
        "dynamic sea level (deviation of the sea surface from its global mean).",
    )


def _skill(report: Report, runs: dict[str, xr.Dataset]) -> None:
    truth, ensemble = runs["nature_warm"].squeeze("member", drop=True), runs["ensemble_warm"]
    weights = truth.areacello
    lead = (np.arange(truth.sizes["time"]) * 5.0, {"units": "days", "long_name": "days since start"})

    def by_lead(scores: xr.DataArray) -> xr.DataArray:
        return scores.drop_vars("time").rename(time="lead").assign_coords(lead=("lead", *lead))

    obs, ens = truth.thetao.isel(lev=0), ensemble.thetao.isel(lev=0)
    scores = spread_error(obs, ens, dim=HORIZONTAL, weights=weights).compute()
    crps = crps_ensemble(obs, ens, dim=HORIZONTAL, weights=weights, fair=True).compute()
    curves = {"error of the ensemble mean": scores.error, "spread": scores.spread, "CRPS (fair)": crps}
    report.section(
        "Is the ensemble honest?",
        "The members differ by their weather. If the emulator were perfect, the nature run would be one of them: "
        "spread would equal error, and the nature run would take every rank equally often.",
    )
    last = ", ".join(f"{name} {float(score[-1]):.2f}" for name, score in curves.items())
    report.figure(
        lead_curves(
            {k: by_lead(v) for k, v in curves.items()},
            title="Sea surface temperature: spread against error",
            ylabel="spread, error, CRPS",
        ),
        "Area-weighted over the ocean. Spread counts the finite ensemble (Fortin et al. 2014), CRPS is the fair one "
        f"(Ferro 2014). On the last day: {last} K.",
    )
    apart = {"time": slice(6, None, 6), "lat": slice(0, None, 4), "lon": slice(0, None, 6)}
    histogram = rank_histogram(obs.isel(apart), ens.isel(apart)).compute()
    report.figure(
        rank_bars(histogram, title="Where the nature run ranks among the members"),
        "Sea surface temperature at points and times far enough apart to be nearly independent.",
    )


def _forecasts(report: Report, runs: dict[str, xr.Dataset], ocean: NatureOcean, emulator: Samudra) -> None:
    """Forecasts with known forcing from dates of the control nature run, which no training has seen."""
    control, noise = runs["nature_control"], Noise(1)
    source = Source.open(control, emulator.layout)
    steps = min(12, len(source.times) // 2)
    dates = source.times[: len(source.times) - steps : max(1, (len(source.times) - steps) // 12)]
    forcing = ocean.forcing(noise=noise.stream("weather"))
    layout = emulator.layout
    models: dict[str, Emulator] = {
        "emulator": emulator,
        "persistence": Persistence(layout, layout.interval),
        "climatology": samples.climatology(NAME, layout),
    }
    truth, errors = control.squeeze("member", drop=True)[list(layout.names)].load(), {}
    for name, model in models.items():
        drive = forcing if model.forcing_layout is not None else None
        forecast = hindcasts(model, (source.state(t) for t in dates), drive, steps=steps, noise=noise)
        errors[name] = _errors(verifying(truth, forecast), forecast.squeeze("member", drop=True), truth.areacello)
    some = errors["emulator"]
    for variable in ("SST", "sea level"):
        best = all(_beats(errors, variable, lead) for lead in (10, 20) if lead in some.lead)
        report.figure(
            lead_curves(
                {n: e[variable].isel(lead=slice(1, None)) for n, e in errors.items()},
                title=f"{variable[0].upper()}{variable[1:]}: error of forecasts with known forcing"
                + (", best with the emulator at 10 and 20 days" if best else ""),
                ylabel="RMSE",
            ),
            f"Root-mean-square error over the ocean of forecasts from {len(dates)} dates of a nature run.",
        )
    rows = [
        {"variable": v, "unit": some[v].attrs["units"], "lead (days)": lead}
        | {n: float(e[v].sel(lead=lead)) for n, e in errors.items()}
        for v in some.data_vars
        for lead in (10, 20)
        if lead in some.lead
    ]
    report.table(rows, "Error at 10 and 20 days (RMSE over the ocean); the smallest is the best.")
    report.table(
        _variance(runs),
        "Does the rollout keep its variance? 1 is right, near 0 a collapse, above 1 noise.",
    )


def _beats(errors: dict[str, xr.Dataset], variable: str, lead: float) -> bool:
    score = {n: float(e[variable].sel(lead=lead)) for n, e in errors.items()}
    return score["emulator"] < min(score["persistence"], score["climatology"])


def _errors(truth: xr.Dataset, forecast: xr.Dataset, area: xr.DataArray) -> xr.Dataset:
    shown = {
        "SST": ("thetao", 0),
        "temperature at 170 m": ("thetao", 2),
        "temperature at 455 m": ("thetao", 4),
        "surface salinity": ("so", 0),
        "surface zonal current": ("uo", 0),
        "sea level": ("zos", None),
    }
    out = {}
    for label, (name, level) in shown.items():
        pair = [d[name] if level is None else d[name].isel(lev=level, drop=True) for d in (truth, forecast)]
        score = rmse(*pair, dim=("init", *HORIZONTAL), weights=area)
        out[label] = score.assign_attrs(units=truth[name].attrs["units"].replace("degC", "K"))
    return xr.Dataset(out)


def _variance(runs: dict[str, xr.Dataset]) -> list[dict[str, object]]:
    """Variance of anomalies in time, emulator against nature, both under control forcing."""
    cycle, rows = samples.sample(NAME), []
    for label, name, level in (("SST", "thetao", 0), ("temperature at 170 m", "thetao", 2), ("sea level", "zos", None)):
        seasonal = cycle[f"{name}_annual_cycle"]
        fields = [runs[f"{kind}_control"][name] for kind in ("ensemble", "nature")]
        if level is not None:
            seasonal, fields = seasonal.isel(lev=level), [f.isel(lev=level) for f in fields]
        model, reference = (anomaly(f, seasonal) for f in fields)
        ratio = variance_ratio(model, reference.squeeze("member", drop=True), weights=fields[0].areacello).compute()
        rows.append(
            {
                "variable": label,
                "variance ratio": float(ratio.mean()),
                "lowest member": float(ratio.min()),
                "highest member": float(ratio.max()),
            }
        )
    return rows
