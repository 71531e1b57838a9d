"""Fewer calls of a network: the scores of a generative forecast against what a step of its sampler costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from . import style

__all__ = ["sampling_figure"]

_PANELS = {"error": "error of the ensemble mean", "crps": "fair CRPS"}
_MARKERS = {True: "o", False: "s"}


def sampling_figure(scores: xr.Dataset, *, lead: float | None = None, title: str | None = None) -> Figure:
    """Error and CRPS against network calls, each relative to the sampler with the most calls.

    Args:
        scores: `error` and `crps` (sampler, variable, lead) in the variable's units, with the coordinates `calls`,
            `second_order` (sampler) and `lead` in days.
        lead: in days; default the last.
        title: default one that says the lead.

    Returns:
        A figure of two panels, one line for each variable; circles are Heun's method, squares Euler's.

    Raises:
        ValueError: for a score, a coordinate or a lead that is missing.
    """
    missing = [n for n in (*_PANELS, "calls", "second_order", "lead") if n not in scores]
    if missing:
        raise ValueError(f"wanted scores with {', '.join(_PANELS)}, calls, second_order and lead, got no {missing}")
    leads = scores["lead"].values.tolist()
    if lead is not None and lead not in leads:
        raise ValueError(f"wanted a lead among {leads} days, got {lead}")
    shown = scores.sel(lead=leads[-1] if lead is None else lead)
    shown = shown.isel(sampler=np.argsort(shown["calls"].values, kind="stable"))
    days = f"{float(shown['lead']):g} days"
    figure = style.new_figure(title or f"What fewer network calls cost, {days} ahead", 3.4)
    calls = sorted(set(shown["calls"].values.tolist()))
    for ax, (name, words) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        _panel(style.dress(ax), shown, name, calls)
        ax.set_ylabel(f"{words},\nrelative to {calls[-1]} calls")
    _legend(figure, [str(v) for v in scores["variable"].values])
    return figure


def _panel(ax: Axes, shown: xr.Dataset, name: str, calls: Sequence[int]) -> None:
    ax.axhline(1, color=style.QUIET, linewidth=1)
    x, heun = shown["calls"].values, shown["second_order"].values.astype(bool)
    variables = [str(v) for v in shown["variable"].values]
    for variable, color in style.colors_of(variables, None).items():
        score = shown[name].sel(variable=variable).values
        relative = score / score[-1]
        for method, marker in _MARKERS.items():
            ours = heun == method
            line: dict[str, Any] = {"linewidth": 1.5, "linestyle": "-" if method else ":"}
            ax.plot(x[ours], relative[ours], color=color, marker=marker, markersize=5, **line)
    ax.set(xscale="log", xlabel="network calls a step")
    labelled: list[int] = []
    for n in reversed(calls):  # labels of 19 and 20 calls would lie on each other
        labelled += [n] if not labelled or labelled[-1] > 1.15 * n else []
    ax.xaxis.set_major_locator(FixedLocator(labelled))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())


def _legend(figure: Figure, variables: Sequence[str]) -> None:
    """Below both panels: colours of the variables, marks of the methods."""
    colors = style.colors_of(variables, None)
    ax = figure.axes[0]
    marks = [ax.plot([], [], color=colors[v], linewidth=1.5, label=v)[0] for v in variables]
    for method, word in ((True, "Heun"), (False, "Euler")):
        line: dict[str, Any] = {"linestyle": "-" if method else ":", "marker": _MARKERS[method]}
        marks += ax.plot([], [], color=style.QUIET, markersize=5, label=word, **line)
    columns = min(len(marks), 84 // (max(map(len, [*variables, "Euler"])) + 7))
    place: dict[str, Any] = {"loc": "outside lower left", "ncols": columns, "frameon": False}
    figure.legend(handles=marks, **place, fontsize=style.SMALL, labelcolor=style.INK, handlelength=1.6)
