"""The page of an assimilation experiment: its scores drawn and put into words."""

from __future__ import annotations

from typing import Any

import xarray as xr

from . import figures
from .assimilation_study import AssimilationSkill
from .dates import date_words
from .page import Report, provenance_of
from .study_inputs import range_words, span_words
from .style import pretty_units

DEFINITIONS = {
    "Error": "√⟨(x̄ − x_t)²⟩ of the ensemble mean against the truth, over area and, in a band of depths, thickness.",
    "Spread": "√((N+1)/N ⟨s²⟩), s² the variance over N members (N − 1): equal to the error if truth and members are "
    "drawn alike.\nFortin et al. 2014, J. Hydrometeorol. 15, 1708.",
    "Gain": "1 − error / error of the free run, the ensemble that began alike and saw no observation.",
    "Background and analysis": "The ensemble before and after the observations of a cycle are used.",
    "Innovation": "d = y − H(x̄_b), observation minus background. Its root mean square is expected to be "
    "√⟨spread² + error²⟩ of a tuned filter.\nDesroziers et al. 2005, Q. J. R. Meteorol. Soc. 131, 3385.",
}


def page(study: AssimilationSkill, title: str) -> Report:
    """The report of an experiment."""
    scores, summary = study.scores.compute(), study.summary.compute()
    methods = [r for r in summary.run.values.tolist() if r != study.free]
    report = Report(title or "An assimilation experiment", _summary(study, scores, methods))
    report.facts(_facts(summary, methods))
    _errors(report, study, scores, methods)
    _table(report, study, summary, methods)
    _pictures(report, study)
    _innovations(report, study)
    report.section("Definitions").definitions(DEFINITIONS)
    for name, data in {"truth": study.truth, **study.runs}.items():
        if data is not None and (said := provenance_of(data)):
            report.provenance({name: said})
    return report


def _summary(study: AssimilationSkill, scores: xr.Dataset, methods: list[str]) -> str:
    beside = f" beside the {study.free}" if study.free in scores.run else ""
    return f"{', '.join(methods)}{beside}: {span_words(scores.time)}, scored against the known truth."


def _facts(summary: xr.Dataset, methods: list[str]) -> dict[str, Any]:
    facts = {}
    for name in methods:
        one = summary.sel(run=name)
        if "gain" in one:
            facts[f"mean gain of {name} over the free run"] = f"{100 * float(one.gain.mean()):.0f} %"
        facts[f"spread over error of {name}"] = range_words(float(one.ratio.min()), float(one.ratio.max()), 2)
    return facts


def _errors(report: Report, study: AssimilationSkill, scores: xr.Dataset, methods: list[str]) -> None:
    errors: dict[str, dict[str, xr.DataArray]] = {}
    ratios: dict[str, dict[str, xr.DataArray]] = {}
    for k in range(scores.sizes["band"]):
        one = scores.isel(band=k)
        if str(one["depth"].values) != "surface":
            continue
        variable, units = str(one["variable"].values), str(one["units"].values)
        # Names alone, for the coordinates of the band would be drawn as if they were the line's.
        error, ratio = (x.reset_coords(drop=True) for x in (one.error, one.spread / one.error))
        lines = {f"{m}, {s}": error.sel(run=m, state=s) for m in methods for s in ("background", "analysis")}
        if study.free in scores.run:
            lines = {study.free: error.sel(run=study.free, state="analysis")} | lines
        errors[variable] = {n: x.assign_attrs(units=units, long_name="error") for n, x in lines.items()}
        ratios[variable] = {
            n: ratio.sel(run=n, state="analysis").assign_attrs(units="1", long_name="spread / error")
            for n in scores.run.values.tolist()
        }
    report.section("How near the analysis comes").figure(
        figures.curve_panels(errors, title="Error at the surface, cycle by cycle", columns=2, from_zero=True),
        "Root mean square error of the ensemble mean against the truth, uppermost level.",
    )
    report.figure(
        figures.curve_panels(ratios, title="Spread over error: is the ensemble honest?", columns=2, from_zero=True),
        "Analyses, uppermost level: 1 is reliable, below 1 overconfident.",
    )


def _table(report: Report, study: AssimilationSkill, summary: xr.Dataset, methods: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    for k in range(summary.sizes["band"]):
        band = summary.isel(band=k)
        unit = pretty_units(str(band.units.values))
        name = str(band["variable"].values)
        row: dict[str, Any] = {"variable": f"{name} [{unit}]" if unit else name, "depth": str(band.depth.values)}
        if study.free in summary.run:
            row[f"{study.free}: error"] = float(band.error.sel(run=study.free))
        for method in methods:
            one = band.sel(run=method)
            row |= {f"{method}: {n}": float(one[n]) for n in ("error", "spread", "ratio", "gain") if n in one}
        rows.append(row)
    if "gain" in summary:
        bars: dict[str, dict[str, float]] = {
            m: {str(b.variable.values): 100 * float(b.gain.sel(run=m)) for b in _surface(summary)} for m in methods
        }
        report.section("What observations gain").figure(
            figures.bars(bars, title="Error taken away at the surface", ylabel="gain over the free run [%]"),
            "1 − error / error of the free run, at the surface, over the cycles that count; below 0 it harms.",
        )
    report.table(
        rows,
        "Analyses over the cycles that count: error of the mean, spread, their ratio, and gain over the free run.",
    )


def _surface(summary: xr.Dataset) -> list[xr.Dataset]:
    return [summary.isel(band=k) for k in range(summary.sizes["band"]) if str(summary.depth.values[k]) == "surface"]


def _pictures(report: Report, study: AssimilationSkill) -> None:
    if study.truth is None or not study.runs:
        return
    time = next(iter(study.runs.values())).time.values[-1]

    def last(run: xr.Dataset) -> xr.DataArray:
        field = run[study.shown].sel(time=time)
        return field.isel(lev=0) if "lev" in field.dims else field

    truth = last(study.truth)
    fields = {"truth": truth.isel(member=0) if "member" in truth.dims else truth}
    fields |= {f"{n}, mean": last(run).mean("member", keep_attrs=True) for n, run in study.runs.items()}
    *_, (name, run) = study.runs.items()
    fields[f"{name}, one member"] = last(run).isel(member=0)
    report.section("The last analysis").figure(
        figures.maps(fields, title=f"{study.shown} on {date_words(time)}"),
        "Where the members of a run disagree, their mean is smooth.",
    )  # fmt: skip


def _innovations(report: Report, study: AssimilationSkill) -> None:
    if not study.departures:
        return
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    for run, found in study.departures.items():
        ratios[run] = {}
        for k in range(found.sizes["type"]):
            one = found.isel(type=k)
            label = f"{one.kind.values} {one['variable'].values}"
            ratios[run][label] = float(one.rms / one.expected)
            row: dict[str, Any] = {"run": run} if len(study.departures) > 1 else {}
            row |= {"observations": label, "used": f"{int(one.used)} of {int(one.given)}"}
            words = {"mean": "mean", "rms": "rms", "expected": "expected rms", "analysis_rms": "rms after analysis"}
            rows.append(row | {text: float(one[n]) for n, text in words.items() if n in one})
    report.section("What the innovations say").figure(
        figures.bars(ratios, title="Innovations beside what the filter expects", ylabel="rms / expected rms [1]",
                     reference=1.0),
        "Above 1 the filter is too sure of its background or of the observations, below 1 not sure enough.",
    ).table(rows, "Observation minus background over all cycles, in the unit of the variable.")  # fmt: skip
