"""Figures that say what to see: series, fans, spectra, rank histograms, reliability, scores by lead, scorecards, maps.

Functions from xarray objects, in memory or lazy, to a `matplotlib.figure.Figure`, drawn without pyplot and
without a display; `fig.savefig(path)` or `Report.figure` turn it into a picture. Names and units come from
attrs; the style is in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import style
from .abscissa import abscissae
from .bars import bars, rank_bars
from .conventions import check_units
from .curve_panels import curve_panels
from .lines import abscissa_dim, draw_lines
from .maps import map_rows, maps
from .reliability import reliability
from .scorecard_figures import scorecard_figure

__all__ = [
    "bars",
    "curve_panels",
    "fan",
    "lead_curves",
    "map_rows",
    "maps",
    "rank_bars",
    "reliability",
    "scorecard_figure",
    "series",
    "spectra",
]

_Array = np.ndarray[Any, Any]


def series(
    lines: Mapping[str, xr.DataArray],
    *,
    title: str,
    spread: str | None = "range",
    member_dim: str = "member",
    zero_line: bool = False,
    ylabel: str | None = None,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Lines against time, or any other one dimension: the ensemble mean, its spread, and few members singly.

    `lines`, {legend: (member, time) or (time)}, in memory or lazy, in one unit; time in cftime of any one
    calendar, datetime64, timedelta64 or numbers (a numeric `lead` counts days); dates become days, or years
    beyond two of them, since the earliest. `spread` "range", "5-95%", "std", "fan" or None; `zero_line` marks 0;
    `ylabel` replaces the long_name; `colors`, {legend: colour} where the palette should not choose. A
    member that is missing at some time is left out there. Raises ValueError for an empty title, no lines,
    unknown spread, other dimensions, units that differ, or times that cannot share an axis.
    """
    lines = style.computed(lines)
    style.one_unit(lines.values(), "or draw two figures")
    dims = {name: abscissa_dim(name, line, member_dim) for name, line in lines.items()}
    at, words = abscissae({name: line[dims[name]] for name, line in lines.items()})
    fig = style.new_figure(title, 3.8)
    ax = style.dress(fig.subplots())
    if zero_line:
        ax.axhline(0, color=style.QUIET, linewidth=1)
    entries = draw_lines(ax, lines, at, spread=spread, member_dim=member_dim, colors=colors)
    ax.margins(x=0.01)
    ax.set_xlabel(words)
    first = next(iter(lines.values()))
    largest = style.largest_of(lines.values())
    style.label_axis(ax.yaxis, ylabel or style.name_of(first), str(first.attrs.get("units", "")), largest)
    if entries > 1:
        style.legend(ax, entries=entries, longest=max(map(len, ax.get_legend_handles_labels()[1])))
    return fig


def fan(
    lines: Mapping[str, xr.DataArray],
    *,
    title: str,
    member_dim: str = "member",
    zero_line: bool = False,
    ylabel: str | None = None,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Ensembles as fans: the mean, and bands that hold the middle half and the middle nine tenths of the members.

    Arguments and errors as `series`; lines without members, such as a reference run, are drawn alone.
    """
    how: dict[str, Any] = {"zero_line": zero_line, "ylabel": ylabel, "colors": colors}
    return series(lines, title=title, spread="fan", member_dim=member_dim, **how)


def lead_curves(
    lines: Mapping[str, xr.DataArray],
    *,
    title: str,
    ylabel: str,
    spread: str | None = "range",
    member_dim: str = "member",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Scores (lead) or (member, lead) against lead time, from 0 upwards where no score is negative.

    `lead` in days as numbers, or timedelta64; everything else as `series`, units in brackets included.
    """
    fig = series(lines, title=title, ylabel=ylabel, spread=spread, member_dim=member_dim, colors=colors)
    (ax,) = fig.axes
    if ax.dataLim.ymin >= 0:
        ax.set_ylim(bottom=0)
    return fig


def spectra(
    lines: Mapping[str, xr.DataArray],
    *,
    title: str,
    reference_slopes: Sequence[float] = (-3, -5 / 3),
    spread: str | None = "range",
    member_dim: str = "member",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Spectra on logarithmic axes, wavelengths on top, with guides of known slope.

    `lines`, {legend: (member, wavenumber) or (wavenumber)}, as `isotropic_spectrum` returns them, wavenumber
    in m-1; ring 0, which holds the mean, is left out. `reference_slopes`, exponents of k to draw from a common
    point above the spectra; the rest as `series`. Raises ValueError as `series` and for other wavenumbers.
    """
    lines = style.computed(lines)
    style.one_unit(lines.values(), "or draw two figures")
    for name, line in lines.items():
        if abscissa_dim(name, line, member_dim) != "wavenumber":
            raise ValueError(f"a spectrum needs the dimension 'wavenumber', got {line.dims} for {name!r}")
        check_units(line["wavenumber"], "m-1")
    lines = {name: line.isel(wavenumber=line["wavenumber"].to_numpy() > 0) for name, line in lines.items()}
    at = {name: line["wavenumber"].to_numpy() * 1e3 for name, line in lines.items()}
    fig = style.new_figure(title, 4.5)
    ax = style.dress(fig.subplots())
    ax.set(xscale="log", yscale="log", xlabel="wavenumber [cycles km⁻¹]")
    draw_lines(ax, lines, at, spread=spread, member_dim=member_dim, colors=colors)
    _slope_guides(ax, lines, at, reference_slopes)
    first = next(iter(lines.values()))
    style.label_axis(ax.yaxis, style.name_of(first), str(first.attrs.get("units", "")), 1.0)
    _wavelengths(ax)
    ax.legend(loc="lower left", frameon=False, fontsize=style.SMALL, labelcolor=style.INK)
    return fig


def _wavelengths(ax: Axes) -> None:
    """Ticks at 1, 2 and 5 times powers of ten below, in cycles per km, and above, in km."""
    ax.margins(x=0.03)
    top = style.dress(ax.secondary_xaxis("top", functions=(_inverse, _inverse)), frame=True, grid=False)
    top.set_xlabel("wavelength [km]")
    for axis in (ax.xaxis, top.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _inverse(k: Any) -> _Array:
    """1/k; matplotlib asks for it at 0 too."""
    return np.asarray(1 / np.maximum(np.asarray(k, dtype="f8"), 1e-30))


def _slope_guides(
    ax: Axes, lines: Mapping[str, xr.DataArray], at: Mapping[str, _Array], slopes: Sequence[float]
) -> None:
    """Dashed lines k^s that start together, above the spectra."""
    low, high = (f(np.concatenate([*at.values()])) for f in (np.min, np.max))
    k = np.geomspace(low * (high / low) ** 0.3, low * (high / low) ** 0.85, 9)
    start = 0.0
    for name, line in lines.items():
        energy = line.transpose(..., "wavenumber").to_numpy().reshape(-1, at[name].size)
        near = max((np.interp(k, at[name], e) for e in energy), key=lambda e: float(e[0]))
        # Above the spectra all along, unless they are so much flatter that the guides would leave the page.
        needed = np.max(near / (k / k[0]) ** min([0.0, *slopes]))
        start = max(start, float(np.clip(1.7 * needed, 3 * near[0], 10 * near[0])))
    if not (np.isfinite(start) and start > 0):
        return
    for slope in slopes:
        values = start * (k / k[0]) ** slope
        ax.plot(k, values, color=style.QUIET, linewidth=1.2, linestyle=(0, (5, 3)))
        text = rf"$k^{{{Fraction(slope).limit_denominator(12)}}}$"
        ax.text(k[-1], values[-1], f" {text}", fontsize=style.TEXT, color=style.QUIET, va="center")
