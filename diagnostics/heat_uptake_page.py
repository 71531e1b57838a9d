"""The page of a heat uptake study: what `HeatUptake` computes, drawn and put into words."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from . import figures
from .heat_uptake_study import WHOLE, HeatUptake
from .page import Report, format_value, provenance_of
from .study_inputs import mean_and_range, range_words, region_words, span_words
from .style import name_of

_ZETTA = 1e21
_ROBUST = 0.8

DEFINITIONS = {
    "Heat content": "H = ρ₀ cₚ ∫∫ θ dz dA, layers cut exactly at the bounds of a band; relative to 0 °C.\n"
    "Levitus et al. 2012, Geophys. Res. Lett. 39, L10603.",
    "Response": "[H_forced(t) − H_forced(0)] − [H_control(t) − H_control(0)] of the same member, so that the seasons, "
    "drift and weather that both runs share fall out; without a control the change itself.",
    "Heat uptake": "The least-squares slope of the response in time, per area, W m⁻². The rate is the centred "
    "difference from record to record.",
    "Interval of the trend": "95 %, of the trend of the ensemble mean, with as many independent values as the lag-one "
    "autocorrelation of its residuals leaves.\nSanter et al. 2000, J. Geophys. Res. 105, 7337.",
    "Spread": "Standard deviation (M − 1) and the 5–95 % range over the members: what one realisation may do.",
    "Agreement": "Dots where fewer than 80 % of the members have the sign of the mean.\nIPCC AR6 (2021), WG I, "
    "Cross-Chapter Box Atlas.1.",
    "Steric sea level": "Global: (V/A) ln(ρ_ref/ρ) with TEOS-10 densities; local: −(1/ρ₀) ∫ (ρ − ρ_ref) dz. The "
    "thermosteric part keeps salinity at the reference, the halosteric part temperature.\nGriffies et al. 2016, "
    "Geosci. Model Dev. 9, 3231, appendix H; IOC et al. 2010.",
    "Dynamic sea level": "Sea surface height without its ocean mean at each time.",
}


def page(study: HeatUptake, title: str, *, progress: bool) -> Report:
    """The report of a study."""
    found = study.results(progress=progress)
    other = study.compared()
    theirs = None if other is None else other.results(progress=progress)
    report = Report(title or f"Ocean heat uptake: {study.name}", _summary(study, found))
    facts = _facts(found)
    if other is not None and theirs is not None:
        facts[f"heat uptake, {other.name}"] = f"{float(theirs.uptake.sel(band=WHOLE).mean()):.2f} W m⁻²"
    report.facts(facts)
    _heat(report, study, found, other, theirs)
    _uptake(report, study, found, other, theirs)
    _patterns(report, study, found)
    _sea_level(report, study, found, other, theirs)
    for one, numbers in ((study, found), (other, theirs)):
        if one is not None and numbers is not None and "residual" in numbers:
            _closure(report, one, numbers)
    _spectra(report, study)
    report.section("Definitions").definitions(_definitions(study))
    for what, run in (("forced", study.forced), ("control", study.control)):
        if run is not None:
            report.provenance({what: provenance_of(run)})
    if other is not None:
        report.provenance({other.name: provenance_of(other.forced)})
    return report


def _summary(study: HeatUptake, found: xr.Dataset) -> str:
    members, control = found.sizes["member"], study.control is not None
    runs = f"{members} member{'s' * (members > 1)}"
    pairs = f"{runs} under the forcing beside {members} of a control" if control else f"{runs}, without a control run"
    beside = "" if study.reference is None else f" Beside them stands the {study.reference.name}."
    return (
        f"{study.name[:1].upper()}{study.name[1:]}: {pairs}, {span_words(study.forced.time)}.{beside}\n\n"
        f"All fluxes are per {format_value(found.attrs['area'])} m² "
        + ("of ocean surface." if study.area is None else "as given.")
    )


def _facts(found: xr.Dataset) -> dict[str, Any]:
    def with_spread(values: xr.DataArray, factor: float, digits: int, unit: str) -> str:
        numbers = mean_and_range(values * factor)
        spread = f" ± {numbers['std']:.{digits}f}" if np.isfinite(numbers["std"]) else ""
        return f"{numbers['mean']:.{digits}f}{spread} {unit}".replace("-", "−")

    last = found.isel(time=-1)
    facts = {
        "heat uptake, mean ± spread of members": with_spread(found.uptake.sel(band=WHOLE), 1.0, 2, "W m⁻²"),
        "heat gained by the last record": with_spread(last.response.sel(band=WHOLE), 1 / _ZETTA, 1, "ZJ"),
    }
    if "thermosteric" in found:
        facts["thermosteric rise by the last record"] = with_spread(last.thermosteric, 1e3, 1, "mm")
    return facts


def _heat(
    report: Report, study: HeatUptake, found: xr.Dataset, other: HeatUptake | None, theirs: xr.Dataset | None
) -> None:
    def zetta(heat: xr.DataArray) -> xr.DataArray:
        change = (heat - heat.isel(time=0)) / _ZETTA
        return change.assign_attrs(units="ZJ", long_name="heat content change")

    whole = found.sel(band=WHOLE, drop=True)
    lines = {f"{study.name}, forced": zetta(whole.heat)}
    if "heat_control" in whole:
        lines[f"{study.name}, control"] = zetta(whole.heat_control)
    if other is not None and theirs is not None:
        single = theirs.sel(band=WHOLE, drop=True)
        lines[f"{other.name}, forced"] = zetta(_single(single.heat))
        if "heat_control" in single:
            lines[f"{other.name}, control"] = zetta(_single(single.heat_control))
    gained = mean_and_range(found.response.sel(band=WHOLE).isel(time=-1) / _ZETTA)
    verb = "gains" if gained["mean"] > 0 else "loses"
    against = " beyond its control" if study.control is not None else ""
    report.section("Heat content").figure(
        figures.fan(lines, title=f"The ocean {verb} {abs(gained['mean']):.3g} ZJ{against}", zero_line=True),
        f"Heat content of the whole depth since the first record: mean of {found.sizes['member']} members, and bands "
        "that hold the middle half and the middle nine tenths of them. 1 ZJ is 10²¹ J.",
    )
    panels = {}
    for band in found.band.values.tolist()[:-1]:
        panels[band] = {study.name: _zeroed(found.response.sel(band=band, drop=True))}
        if other is not None and theirs is not None and band in theirs.band:
            panels[band][other.name] = _zeroed(_single(theirs.response.sel(band=band, drop=True)))
    report.figure(
        figures.curve_panels(panels, title="How deep the heat has gone", columns=2, spread="fan"),
        "Response of heat content in each layer. Mind the scales, which differ.",
    )


def _zeroed(response: xr.DataArray) -> xr.DataArray:
    return (response / _ZETTA).assign_attrs(units="ZJ", long_name="heat content change")


def _single(values: xr.DataArray) -> xr.DataArray:
    """Without the dimension of a single member, which would be drawn as an ensemble."""
    return values.squeeze("member", drop=True) if values.sizes["member"] == 1 else values


def _uptake(
    report: Report, study: HeatUptake, found: xr.Dataset, other: HeatUptake | None, theirs: xr.Dataset | None
) -> None:
    rows = []
    for band in found.band.values.tolist():
        one, numbers = found.sel(band=band), mean_and_range(found.uptake.sel(band=band))
        row: dict[str, Any] = {
            "layer": band,
            "heat gained [ZJ]": float(one.response.isel(time=-1).mean()) / _ZETTA,
            "uptake [W m⁻²]": numbers["mean"],
            "spread": numbers["std"],
            "5–95 % of members": range_words(numbers["5 %"], numbers["95 %"]),
            "95 % interval of the trend": range_words(float(one.low), float(one.high)),
        }
        if other is not None and theirs is not None:
            row[other.name] = float(theirs.uptake.sel(band=band).mean()) if band in theirs.band else None
        rows.append(row)
    report.section("Heat uptake", _verdict(study, found, other, theirs)).table(
        rows,
        "Heat gained by the last record, and uptake by layer in W m⁻²: mean, standard deviation and 5–95 % range of "
        "the members' trends, and the interval of the trend of their mean, wide or missing (–) where a straight line "
        "fits badly, as after a sudden change.",
    )
    rate = found.rate.dropna("time", how="all")  # the first and the last record have no neighbour
    lines = {study.name: rate.assign_attrs(units="W m-2", long_name="rate of heat uptake")}
    if other is not None and theirs is not None:
        lines[other.name] = _single(theirs.rate.dropna("time", how="all"))
    report.figure(
        figures.fan(lines, title="Heat uptake from record to record", zero_line=True),
        "Rate of change of the response of the whole depth, centred differences.",
    )


def _verdict(study: HeatUptake, found: xr.Dataset, other: HeatUptake | None, theirs: xr.Dataset | None) -> str:
    """How the uptake lies to that of the reference."""
    if other is None or theirs is None:
        return ""
    ours, reference = found.uptake.sel(band=WHOLE), float(theirs.uptake.sel(band=WHOLE).mean())
    numbers = mean_and_range(ours)
    inside = numbers["5 %"] <= reference <= numbers["95 %"]
    part = 100 * (numbers["mean"] / reference - 1)
    return (
        f"The {study.name} takes up {abs(part):.2g} % {'more' if part > 0 else 'less'} than the {other.name}: "
        f"{numbers['mean']:.2f} against {reference:.2f} W m⁻², which lies {'within' if inside else 'outside'} the "
        "5–95 % range of its members."
    )


def _patterns(report: Report, study: HeatUptake, found: xr.Dataset) -> None:
    maps = study.patterns()
    last = span_words(study.forced.time.isel(time=slice(-study.records(), None)))
    how = "forced minus control" if study.control is not None else "last window minus first, the seasons included"
    many = found.sizes["member"] > 1
    dotted = f" Dots: fewer than {100 * _ROBUST:.0f} % of the members agree on the sign." if many else ""

    def draw(names: list[str], title: str, factor: float, units: str, columns: int) -> None:
        fields = {n: (maps[n][0] * factor).assign_attrs(maps[n][0].attrs, units=units) for n in names}
        if len(fields) > 1:
            fields = {n: f.assign_attrs(long_name="change of sea level") for n, f in fields.items()}
        dots = {n: maps[n][1] < _ROBUST for n in names} if many else None
        fig = figures.maps(fields, title=title, anomaly=True, columns=columns, dots=dots)
        report.figure(fig, f"Mean of {last}, {how}, ensemble mean.{dotted}")

    report.section("Where the heat goes")
    draw(["heat content"], "Where the ocean has gained heat and where it has lost it", 1e-9, "GJ m-2", 1)
    heights = [n for n in maps if n != "heat content"]
    if heights:
        draw(heights, "Sea level: what expands, what freshens, what currents move", 100, "cm", 2)


def _sea_level(
    report: Report, study: HeatUptake, found: xr.Dataset, other: HeatUptake | None, theirs: xr.Dataset | None
) -> None:
    if "steric" not in found:
        return
    lines = {p: (1e3 * found[p]).assign_attrs(units="mm", long_name="global mean sea level") for p in _parts(found)}
    if other is not None and theirs is not None and "steric" in theirs:
        lines[f"steric, {other.name}"] = (1e3 * _single(theirs.steric)).assign_attrs(units="mm")
    report.section("Steric sea level").figure(
        figures.fan(lines, title="How much the sea rises as it expands", zero_line=True),
        "Response of global mean steric sea level and its parts (TEOS-10). The global halosteric part is no rise of "
        "the sea where fresh water was added (Gregory et al. 2019, Surv. Geophys. 40, 1251).",
    )
    rows = []
    for part in _parts(found):
        numbers = mean_and_range(1e3 * found[part].isel(time=-1))
        rows.append({"part": part} | {f"{k} [mm]": v for k, v in numbers.items()})
    report.table(rows, "Response of global mean sea level at the last record: members' mean, spread and range.")


def _parts(found: xr.Dataset) -> list[str]:
    return [p for p in ("steric", "thermosteric", "halosteric") if p in found]


def _closure(report: Report, study: HeatUptake, found: xr.Dataset) -> None:
    words = {"change": "heat content", "accumulated": "surface flux", "residual": "difference"}
    attrs = {"units": "MJ m-2", "long_name": "heat since the first record"}
    lines = {w: _single((found[n] / 1e6).assign_attrs(attrs)) for n, w in words.items()}
    last = found.isel(time=-1)
    ratio = float(abs(last.residual).mean() / abs(last.change).mean())
    title = f"Heat content and surface flux differ by {100 * ratio:.2g} % at the end"
    report.section(f"Does the heat add up? {study.name[:1].upper()}{study.name[1:]}").figure(
        figures.fan(lines, title=title, zero_line=True),
        "Change of heat content of the forced runs beside the accumulated surface heat flux, per area of ocean. What "
        f"differs is what the model, or the records kept of it, lose. cₚ {study.cp:.6g} J kg⁻¹ K⁻¹, "
        f"ρ₀ {study.rho0:g} kg m⁻³.",
    )


def _spectra(report: Report, study: HeatUptake) -> None:
    if study.region is None:
        return
    found = study.spectra()
    region = region_words(study.region)
    name = name_of(study.forced[study.spectrum])
    report.section("At which scales").figure(
        figures.spectra(found, title=f"{name[:1].upper()}{name[1:]}: variance by wavelength", spread="5-95%"),
        f"Isotropic spectra of {name} in the box {region}, of single members, averaged over the last {study.records()} "
        "records: plane removed, Hann window, tapered at coasts.",
    )


def _definitions(study: HeatUptake) -> dict[str, str]:
    constants = f"cₚ = {study.cp:.6g} J kg⁻¹ K⁻¹, ρ₀ = {study.rho0:g} kg m⁻³."
    return {**DEFINITIONS, "Constants": constants}
