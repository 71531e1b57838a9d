"""The page of an ensemble skill report: what `EnsembleSkill` computes, drawn and put into words."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from . import figures
from .bars import rank_shape
from .dates import date_words
from .ensemble_study import EnsembleSkill
from .page import Report, provenance_of
from .probability import brier_score, reliability_diagram
from .scale_ratio import scale_ratio
from .study_inputs import range_words, region_words
from .style import pretty_units
from .totals import scores

DEFINITIONS = {
    "CRPS": "1/M Σ|xᵢ − y| − 1/(2M(M−1)) Σ|xᵢ − xⱼ|, the fair form, which does not depend on the number of members; "
    "of a single forecast it is the absolute error. In the units of the field, 0 is perfect.\n"
    "Ferro 2014, Q. J. R. Meteorol. Soc. 140, 1917.",
    "Skill score": "1 − CRPS / CRPS of the reference: 1 is perfect, 0 no better than the reference.\n"
    "Wilks 2019, Statistical Methods in the Atmospheric Sciences, ch. 9.",
    "Spread, error and their ratio": "error² = ⟨(x̄ − y)²⟩, spread² = ⟨s²⟩ with M − 1, ratio = √((M+1)/M) spread/error: "
    "1 for a reliable ensemble, below 1 for an overconfident one.\n"
    "Fortin et al. 2014, J. Hydrometeorol. 15, 1708.",
    "Rank histogram": "Number of members below the truth; flat if the truth is like a member. The verdict tests slope "
    "and bend.\nHamill 2001, Mon. Weather Rev. 129, 550; Jolliffe & Primo 2008, Mon. Weather Rev. 136, 2133.",
    "Reliability": "How often the event came when k of M members had it. Brier = reliability − resolution + "
    "uncertainty.\nMurphy 1973, J. Appl. Meteorol. 12, 595.",
    "Energy ratio": "Energy of single members over that of the truth in a band of wavelengths: below 1 they are too "
    "smooth there.",
    "Intervals": "95 %, by a circular block bootstrap over the dates, blocks as long as the memory of the CRPS.\n"
    "Politis & Romano 1992; Politis & White 2004, Econometr. Rev. 23, 53.",
    "Averages": "Over the area of the ocean and all dates, before any root or quotient.",
}


def page(study: EnsembleSkill, title: str, *, progress: bool) -> Report:
    """The report of a study."""
    totals = study.totals(progress=progress)
    found = {name: study.intervals(t) for name, t in totals.items()}
    skills = {name: {r: study.skill(t, r) for r in study.references} for name, t in totals.items()}
    report = Report(title or f"Ensemble skill: {study.name}", _summary(study))
    report.facts(_facts(study, found, skills))
    _curves(report, study, totals, found, skills)
    _tables(report, study, found, skills)
    _honesty(report, study, totals, found)
    _maps(report, study)
    _event(report, study, totals)
    _spectra(report, study)
    report.section("Definitions").definitions(DEFINITIONS)
    for what, dataset in {"forecast": study.forecast, "truth": study.truth, **study.references}.items():
        if said := provenance_of(dataset):
            report.provenance({what: said})
    return report


def _summary(study: EnsembleSkill) -> str:
    first, n = study.forecast[study.sample].values, study.forecast.sizes[study.sample]
    members = study.forecast.sizes["member"]
    dates = f"{date_words(first[0])} to {date_words(first[-1])}"
    cases = f"from {n} dates, {dates}," if study.sample == "init" else f"at {n} times, {dates},"
    against = "" if not study.references else f" They are measured against {_listed([*study.references])}."
    names = _listed([*study.fields(study.truth)])
    return f"Forecasts of {members} members {cases} compared with the truth in {names}.{against}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _at(values: Any, lead: Any) -> Any:
    return values if lead is None else values.sel(lead=lead)


def _ahead(lead: Any) -> str:
    return "" if lead is None else f" at {_days(lead):g} days"


def _days(lead: Any) -> float:
    value = np.asarray(lead)
    days = float(value / np.timedelta64(1, "D")) if value.dtype.kind == "m" else float(value)
    return int(days) if days.is_integer() else days


def _facts(
    study: EnsembleSkill, found: dict[str, xr.Dataset], skills: dict[str, dict[str, xr.Dataset]]
) -> dict[str, Any]:
    name, lead = next(iter(found)), study.shown_leads()[-1]
    facts: dict[str, Any] = {}
    one = _at(found[name], lead)
    facts[f"spread over error of {name}{_ahead(lead)}"] = float(one.ratio.sel(estimate="value"))
    for reference, skill in skills[name].items():
        value = _at(skill, lead).skill.sel(estimate="value")
        facts[f"CRPS skill over {reference}"] = float(value)
    return facts


def _curves(
    report: Report,
    study: EnsembleSkill,
    totals: dict[str, xr.Dataset],
    found: dict[str, xr.Dataset],
    skills: dict[str, dict[str, xr.Dataset]],
) -> None:
    words = {"rmse": "error of the mean", "spread": "spread", "fair_crps": "CRPS"}
    by_lead = "lead" in study.forecast.dims
    curves = {n: one.sel(estimate="value", drop=True) if by_lead else scores(totals[n]) for n, one in found.items()}
    panels = {name: {text: one[n] for n, text in words.items()} for name, one in curves.items()}
    title = f"Error, spread and CRPS {'by lead time' if by_lead else 'in time'}"
    report.section("How good the forecasts are").figure(
        figures.curve_panels(panels, title=title, columns=2, from_zero=True),
        f"Root mean square error of the mean of {study.forecast.sizes['member']} members, their spread, and the fair "
        "CRPS. Error and spread of a reliable ensemble coincide.",
    )
    if study.references and by_lead:
        panels = {
            name: {r: s.skill.sel(estimate="value", drop=True) for r, s in some.items()}
            for name, some in skills.items()
        }
        report.figure(
            figures.curve_panels(panels, title="Skill over the references", columns=2, zero_line=True),
            "CRPS skill score: 1 is perfect, 0 no better than the reference, which as a single forecast is judged by "
            "its absolute error.",
        )


def _tables(
    report: Report, study: EnsembleSkill, found: dict[str, xr.Dataset], skills: dict[str, dict[str, xr.Dataset]]
) -> None:
    columns = {"fair_crps": "CRPS", "rmse": "error", "spread": "spread", "ratio": "ratio"}
    rows, gains = [], []
    for name, one in found.items():
        for lead in study.shown_leads():
            at, ahead = _at(one, lead), {} if lead is None else {"lead [days]": _days(lead)}
            value, unit = at.sel(estimate="value"), pretty_units(str(at.attrs.get("units", "")))
            row: dict[str, Any] = {"field": f"{name} [{unit}]" if unit else name, **ahead}
            row |= {text: float(value[n]) for n, text in columns.items()}
            rows.append(row | {"95 % of the ratio": _interval(at.ratio)})
            gain: dict[str, Any] = {"field": name, **ahead}
            for reference, skill in skills[name].items():
                over = _at(skill.skill, lead)
                gain |= {f"over {reference}": float(over.sel(estimate="value")), f"95 %, {reference}": _interval(over)}
            gains.append(gain)
    report.table(
        rows, "Fair CRPS, error of the mean, spread, and spread over error, over all dates and the area of the ocean."
    )
    if study.references:
        report.table(gains, "CRPS skill scores over the references, with intervals: one that holds 0 shows no skill.")


def _interval(score: xr.DataArray) -> str:
    return range_words(float(score.sel(estimate="low")), float(score.sel(estimate="high")), digits=2)


def _honesty(report: Report, study: EnsembleSkill, totals: dict[str, xr.Dataset], found: dict[str, xr.Dataset]) -> None:
    lead = study.shown_leads()[-1]
    report.section(
        "Is the spread honest?",
        "If the truth were drawn like a member, it would take every rank equally often and spread would equal error.",
    )
    if "lead" in study.forecast.dims:
        ratios = {n: one.ratio.sel(estimate="value", drop=True) for n, one in found.items()}
        report.figure(
            figures.lead_curves(ratios, title="Spread over error by lead time", ylabel="spread / error"),
            "1 is reliable, below 1 overconfident; corrected for the number of members.",
        )
    for name, one in totals.items():
        ranks = _at(one.ranks, lead).sum(study.sample)
        cases = float(ranks.sum())
        verdict = rank_shape(ranks.to_numpy().astype("f8"), cases)
        report.figure(
            figures.rank_bars(ranks.assign_attrs(units="1"), title=f"Rank of the truth: {name}{_ahead(lead)}"),
            f"Rank of the truth among the members, {cases:.0f} cases at points about {study.apart / 1e3:.0f} km apart: "
            f"{verdict}.",
        )


def _maps(report: Report, study: EnsembleSkill) -> None:
    name, lead = next(iter(study.fields(study.truth))), study.shown_leads()[-1]
    found = study.maps(name)
    units = {"units": study.fields(study.truth)[name].attrs.get("units", "")}
    pair = {n: found[k].assign_attrs(units, long_name=f"root mean square of {name}, spread or error")
            for n, k in (("error of the mean", "error"), ("spread", "spread"))}  # fmt: skip
    cases = f"Over {study.forecast.sizes[study.sample]} dates at each place, {name}{_ahead(lead)}."
    report.section("Where they err").figure(
        figures.maps(pair, title=f"Error and spread of {name}{_ahead(lead)}"),
        f"{cases} Where both look alike, the ensemble knows where it is uncertain.",
    )
    ratio = np.log2(found.ratio.where(found.ratio > 0)).assign_attrs(units="1", long_name="log₂ of spread over error")
    report.figure(
        figures.maps({"spread over error": ratio}, title="Too confident or too cautious", anomaly=True, columns=1,
                     cmap="balance"),
        f"{cases} Base-2 logarithm: −1 is half the spread there should be, 1 twice. Few dates make single cells noisy.",
    )  # fmt: skip


def _event(report: Report, study: EnsembleSkill, totals: dict[str, xr.Dataset]) -> None:
    lead = study.shown_leads()[-1]
    beyond = "" if study.about is None else f", as a deviation from {study.about}"
    report.section(
        "Probabilities",
        f"The event: a value that reaches the {100 * study.quantile:.0f} % quantile of the truth at its place over all "
        f"dates and leads{beyond}.",
    )
    diagrams, rows = {}, []
    for name, one in totals.items():
        table = _at(one[["cases", "events"]], lead).sum(study.sample)
        diagrams[name] = reliability_diagram(table)
        brier = brier_score(table)
        row: dict[str, Any] = {"field": name, "fair Brier score": float(brier_score(table, fair=True).brier)}
        row |= {k: float(brier[k]) for k in ("reliability", "resolution", "uncertainty", "base_rate")}
        rows.append({k.replace("_", " "): v for k, v in row.items()})
    report.figure(
        figures.reliability(diagrams, title="How often the event comes when it is forecast"),
        f"Reliability diagram{_ahead(lead)}, weighted with area; the diagonal is reliable, the dashed line the base "
        "rate. Below: how often each probability was forecast.",
    )
    report.table(rows, f"Brier score of the event{_ahead(lead)} and its parts; 0 is best for score and reliability.")


def _spectra(report: Report, study: EnsembleSkill) -> None:
    if study.region is None:
        return
    name = next(iter(study.fields(study.truth)))
    ours, theirs = study.spectra(name)
    leads, place = study.shown_leads(), region_words(study.region)
    lines = {"truth": _at(theirs, leads[-1])}
    lines |= {f"{study.name}{_ahead(lead)}": _at(ours, lead) for lead in leads}
    lines = {n: x.drop_vars("lead", errors="ignore") for n, x in lines.items()}
    report.section("At which scales").figure(
        figures.spectra(lines, title=f"Spectra of {name}: do forecasts blur?"),
        f"Isotropic spectra in the box {place}, means over dates and single members; never of an ensemble mean, which "
        "is smooth because its members disagree.",
    )
    k = theirs["wavenumber"].to_numpy()
    k, n = k[k > 0], study.forecast.sizes[study.sample]
    middle = float(np.sqrt(k[0] * k[-1]))
    bands = {
        f"longer than {1e-3 / middle:.0f} km": (1 / middle, 1.001 / k[0]),
        f"{1e-3 / k[-1]:.0f} to {1e-3 / middle:.0f} km": (0.999 / k[-1], 0.999 / middle),
    }
    ratio = scale_ratio(ours, theirs, bands=bands, maps=(n, n))
    rows = [
        {"wavelengths": band, **({} if lead is None else {"lead [days]": _days(lead)})}
        | {"energy ratio": float(at.ratio), "95 % interval": range_words(float(at.low), float(at.high))}
        for band in bands
        for lead in leads
        for at in [_at(ratio.sel(band=band), lead)]
    ]
    report.table(rows, "Energy of the forecasts over that of the truth by wavelength; 1 is right.")
