"""Figures of `ice_ensembles`: scores by lead, maps of a case, spectra, scaling, ranks, a year of volume and extent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from ice_cases import PLACES, QUANTITIES, Bench
from ice_verdict import FORECASTS
from ice_years import Year
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from polynya.diagnostics import deformation, style
from polynya.diagnostics.figures import curve_panels, lead_curves, map_rows
from polynya.diagnostics.ice_figures import scaling_curves
from polynya.emulators import attributes

DPI = 150
INK, BLUE, ORANGE, GREEN, PINK = style.PALETTE[6], *style.PALETTE[:4]
COLORS = {
    "truth": INK,
    "ensemble mean": GREEN,
    "generative": BLUE,
    "single member": BLUE,
    "fair CRPS": BLUE,
    "deterministic": ORANGE,
    "absolute error, deterministic": ORANGE,
    "persistence": PINK,
    "flat": INK,
}


def draw(
    cases: xr.Dataset,
    found: xr.Dataset,
    moments: dict[str, dict[str, xr.DataArray]],
    years: dict[str, Year],
    bench: Bench,
    shown: int,
    folder: Path,
) -> list[Path]:
    """Write all figures as PNG; `shown` is the case of the maps."""
    late = float(cases["day"][-1])
    drawn = {
        "rmse": rmse_figure(found),
        "crps": crps_figure(found),
        "spread": spread_figure(found),
        "ranks": rank_figure(cases),
        "maps": map_figure(cases.isel(case=shown), bench),
        "spectra": spectra_figure(cases),
    }
    for average, curves in moments.items():
        title = f"Scaling of deformation after {late:g} days, {_WAYS[average]}"
        drawn[f"scaling_{average}"] = scaling_curves(curves, title=title, colors=_colors(curves))
    if years:
        drawn["year"] = year_figure(years)
    paths = [folder / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


_WAYS = {"gradients": "gradients averaged over boxes", "rates": "deformation rates averaged over boxes"}


def _colors(lines: Any) -> dict[str, str]:
    return {n: COLORS[n] for n in lines if n in COLORS}


def _named(name: str) -> str:
    return str(attributes(name).get("long_name", name)).replace("sea-ice ", "").replace("zonal", "x").replace(
        "meridional", "y"
    )  # fmt: skip


def _in_units(line: xr.DataArray, name: str) -> xr.DataArray:
    return line.assign_attrs(units=attributes(name).get("units", "1")).reset_coords(drop=True)


def rmse_figure(found: xr.Dataset) -> Figure:
    """Root-mean-square errors against lead, each variable and all."""
    panels = {
        _named(v): {words: _in_units(found.rmse.sel(variable=v, forecast=n), v) for n, words in FORECASTS.items()}
        for v in found["variable"].values
    }
    panels["all, normalised"] = {w: found.nrmse.sel(forecast=n).reset_coords(drop=True) for n, w in FORECASTS.items()}
    return curve_panels(panels, title="Root-mean-square error of forecasts", from_zero=True, colors=COLORS)


def crps_figure(found: xr.Dataset) -> Figure:
    """The ensemble's fair CRPS against the deterministic run's, which is its absolute error."""
    both = {"fair CRPS": found.crps, "absolute error, deterministic": found.absolute}
    panels = {
        _named(v): {words: _in_units(x.sel(variable=v), v) for words, x in both.items()}
        for v in found["variable"].values
    }
    return curve_panels(panels, title="Continuous ranked probability score", from_zero=True, colors=COLORS)


def spread_figure(found: xr.Dataset) -> Figure:
    """Spread over error against lead."""
    lines = {_named(v): found.ratio.sel(variable=v).reset_coords(drop=True) for v in found["variable"].values}
    fig = lead_curves(lines, title="Spread over error of the ensemble", ylabel="spread / error")
    (ax,) = fig.axes
    ax.axhspan(0.8, 1.2, color=style.GUIDE, zorder=0)
    ax.axhline(1, color=style.QUIET, linewidth=1)
    ax.set_ylim(0, max(1.4, 1.05 * float(found.ratio.max())))
    return fig


def rank_figure(cases: xr.Dataset) -> Figure:
    """Rank histograms as multiples of a flat one, the early and the late day."""
    ranks = cases["ranks"].sum("case")
    ranks = ranks / ranks.mean("rank")
    panels: dict[str, dict[str, xr.DataArray]] = {}
    for v in cases["variable"].values:
        of = ranks.sel(variable=v, drop=True)
        panels[_named(v)] = {f"lead {float(d):g} d": of.isel(day=k, drop=True) for k, d in enumerate(ranks["day"])}
    fig = curve_panels(panels, title="Rank of the truth among the members, 1 = flat", from_zero=True)
    for ax in (ax for ax in fig.axes if ax.axison):
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.axhline(1, color=style.QUIET, linewidth=1)
    return fig


def map_figure(case: xr.Dataset, bench: Bench) -> Figure:
    """Thickness, concentration and shear of one case: truth, a member, the ensemble mean, the deterministic run."""
    columns = {"truth": "truth", "one member": "member 0", "ensemble mean": "ensemble mean",
               "deterministic": "deterministic"}  # fmt: skip
    plane = {d: bench.generative.layout.grid[d] for d in PLACES}
    maps = case["maps"].assign_coords(plane)
    rows: dict[str, dict[str, xr.DataArray]] = {_named(n): {} for n in ("sithick", "siconc")}
    rows["shear"] = {}
    for heading, source in columns.items():
        one = {str(v): _in_units(maps.sel(source=source, variable=v), v).rename(v) for v in maps["variable"].values}
        for n in ("sithick", "siconc"):
            rows[_named(n)][heading] = one[n]
        ice = one["siconc"] >= 0.15
        drift = (one[n].where(ice) for n in ("siu", "siv"))
        shear = deformation(*drift, spacing=bench.spacing)["shear"] * 86400
        rows["shear"][heading] = shear.assign_attrs(units="day-1").rename("shear_speed")
    return map_rows(rows, title=f"The ice {float(case['day'][-1]):g} days ahead")


def spectra_figure(cases: xr.Dataset) -> Figure:
    """Spectra of all quantities, mean over cases."""
    mean = cases["spectra"].mean("case")
    panels = {}
    for q in QUANTITIES:
        units = "m3 s-2" if q == "kinetic energy" else f"({attributes(q).get('units', '1')})2 m".replace("(1)2 ", "")
        lines = {str(r): mean.sel(run=r, quantity=q).reset_coords(drop=True) for r in mean["run"].values}
        panels[q if q == "kinetic energy" else _named(q)] = {n: x.assign_attrs(units=units) for n, x in lines.items()}
    title = f"Spectra after {float(cases['day'][-1]):g} days, largest square without land"
    return curve_panels(panels, title=title, columns=2, colors=COLORS)


def year_figure(years: dict[str, Year]) -> Figure:
    """Volume, extent and area of the long runs; shading is the range of members."""
    first = next(iter(years.values()))
    scales = {"volume": (1e-9, "km3"), "extent": (1e-12, "10⁶ km2"), "area": (1e-12, "10⁶ km2")}
    panels = {}
    for n, (factor, units) in scales.items():
        lines = {name: year.run[n] for name, year in years.items()} | {"truth": first.truth[n]}  # on top
        panels[n] = {name: (x * factor).assign_attrs(units=units) for name, x in lines.items()}
    return curve_panels(panels, title="Long runs under the truth's weather", columns=1, from_zero=True, colors=COLORS)
