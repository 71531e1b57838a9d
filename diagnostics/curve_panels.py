"""Small multiples of curves: a panel for each variable, the same runs in each, one legend below them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from . import style
from .abscissa import abscissae
from .conventions import check_units
from .lines import abscissa_dim, draw_lines

_Array = np.ndarray[Any, Any]
_HEIGHT = 1.9  # of a row, inches


def curve_panels(
    panels: Mapping[str, Mapping[str, xr.DataArray]],
    *,
    title: str,
    columns: int = 3,
    from_zero: bool = False,
    zero_line: bool = False,
    spread: str | None = "range",
    member_dim: str = "member",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Curves against lead time, time or wavenumber, a panel for each variable.

    `panels`, {heading: {legend: (member, x) or (x)}}, in memory or lazy, each panel in one unit, which is added to its
    heading; x is `lead`, `time` or any other dimension as in `series`, or `wavenumber` (m-1), drawn on logarithmic
    axes without its ring 0. A legend's colour is the same in all panels; `from_zero` begins every vertical axis at 0,
    `zero_line` marks 0; `spread`, `member_dim` and `colors` as in `series`. Raises ValueError for an empty title, no
    panels or lines, other dimensions, or units that differ within a panel.
    """
    if not panels:
        raise ValueError("there is nothing to draw: give at least one panel, {heading: {legend: DataArray}}")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(n for lines in panels.values() for n in lines))
    chosen = style.colors_of(names, colors)
    fig = style.new_figure(title, _HEIGHT * rows + 0.55)
    places = fig.subplots(rows, columns, squeeze=False).ravel()
    for k, (heading, lines) in enumerate(panels.items()):
        _panel(style.dress(places[k]), heading, lines, spread, member_dim, {n: chosen[n] for n in lines})
        if zero_line:
            places[k].axhline(0, color=style.QUIET, linewidth=1)
        if from_zero:
            places[k].set_ylim(0, 1.05 * places[k].dataLim.ymax)
        if k + columns < len(panels):
            places[k].set_xlabel("")
    for ax in places[len(panels) :]:
        ax.set_axis_off()
    handles = {label: h for ax in places for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    one_row = sum(len(label) + 7 for label in handles) <= 90
    fit = len(handles) if one_row else max(1, min(len(handles), 84 // (max(map(len, handles)) + 7)))
    text: dict[str, Any] = {"frameon": False, "fontsize": style.SMALL, "labelcolor": style.INK, "handlelength": 1.6}
    fig.legend([*handles.values()], [*handles], loc="outside lower left", ncols=fit, **text)
    return fig


def _panel(
    ax: Axes,
    heading: str,
    lines: Mapping[str, xr.DataArray],
    spread: str | None,
    member_dim: str,
    colors: Mapping[str, str],
) -> None:
    lines = style.computed(lines)
    style.one_unit(lines.values(), "or draw two panels")
    dims = {n: abscissa_dim(n, line, member_dim) for n, line in lines.items()}
    spectral = set(dims.values()) == {"wavenumber"}
    if spectral:
        lines = {n: line.isel(wavenumber=line["wavenumber"].to_numpy() > 0) for n, line in lines.items()}
        for line in lines.values():
            check_units(line["wavenumber"], "m-1")
        at, words = {n: line["wavenumber"].to_numpy() * 1e3 for n, line in lines.items()}, "wavenumber [cycles km⁻¹]"
        ax.set(xscale="log", yscale="log")
    else:
        at, words = abscissae({n: line[dims[n]] for n, line in lines.items()})
    draw_lines(ax, lines, at, spread=spread, member_dim=member_dim, colors=colors)
    largest = style.largest_of(lines.values())
    style.label_axis(
        ax.yaxis, heading, str(next(iter(lines.values())).attrs.get("units", "")), 1 if spectral else largest
    )
    ax.set_title(ax.yaxis.get_label_text(), loc="left", fontsize=style.TEXT, color=style.INK, parse_math=False)
    ax.set_ylabel("")
    ax.set_xlabel(words)
    ax.margins(x=0.02)
    if spectral:
        _few_ticks(ax)


def _few_ticks(ax: Axes) -> None:
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
