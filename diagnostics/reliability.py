"""Reliability diagrams: how often an event came when so many members had it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from . import style


def reliability(diagrams: Mapping[str, xr.Dataset], *, title: str, colors: Mapping[str, str] | None = None) -> Figure:
    """Observed frequency of an event by forecast probability, and below how often each probability was forecast.

    `diagrams`, {legend: dataset of `reliability_diagram`} with the one dimension `probability`. The diagonal is a
    reliable forecast, the dashed line the observed frequency of all cases of the first. Bars are shares of all cases.
    Raises ValueError for an empty title, no diagrams, or other datasets.
    """
    if not diagrams:
        raise ValueError("there is nothing to draw: give at least one diagram, {name: Dataset}")
    for name, one in diagrams.items():
        if not {"observed_frequency", "cases"} <= set(one.data_vars) or one["cases"].dims != ("probability",):
            raise ValueError(
                f"wanted a dataset of `reliability_diagram` along 'probability' alone, got {dict(one.sizes)} of "
                f"{sorted(map(str, one.data_vars))} for {name!r}: sum the table over the rest first"
            )
    fig = style.new_figure(title, 5.0)
    top, bottom = (style.dress(ax) for ax in fig.subplots(2, 1, sharex=True, height_ratios=[3.5, 1]))
    top.plot([0, 1], [0, 1], color=style.QUIET, linewidth=1)
    diagrams = {n: d[["observed_frequency", "cases"]].compute() for n, d in diagrams.items()}
    first = next(iter(diagrams.values()))
    rate = float((first["observed_frequency"] * first["cases"]).sum() / first["cases"].sum())
    top.axhline(rate, color=style.QUIET, linewidth=1, linestyle=(0, (5, 3)))
    for i, (name, color) in enumerate(style.colors_of(diagrams, colors).items()):
        one = diagrams[name]
        p = one["probability"].to_numpy()
        width = 0.8 / (p.size * len(diagrams))
        line: dict[str, Any] = {"color": color, "linewidth": 2, "marker": "o", "markersize": 4}
        top.plot(p, one["observed_frequency"].to_numpy(), label=name, **line)
        shares = one["cases"] / one["cases"].sum()
        bottom.bar(p + (i - (len(diagrams) - 1) / 2) * width, shares.to_numpy(), width, color=color)
    bottom.set(ylabel="share of\ncases [1]", xlabel="forecast probability [1]")
    top.set(ylim=(-0.02, 1.02), ylabel="observed frequency [1]", aspect="auto")
    top.margins(x=0.02)
    if len(diagrams) > 1:
        style.legend(top, entries=len(diagrams), longest=max(map(len, diagrams)))
    return fig
