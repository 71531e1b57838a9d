"""Bars: rank histograms with the band of a flat one, and tables as grouped bars.

The shape of a rank histogram with counts n_r of n independent cases and expectation e = n / (M + 1) is tested by

    t_l = sum_r l_r (n_r - e) / e^1/2,   sum l = 0, sum l^2 = 1,

about N(0, 1) for a flat one, with l linear (bias) and l quadratic (spread): Jolliffe and Primo 2008, Mon.
Weather Rev. 136, 2133.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

from . import style

_Array = np.ndarray[Any, Any]

_MANY_BARS = 16  # more numbers than this do not fit
_SIGNIFICANT = 1.96


def flat_band(members: int, samples: float, *, coverage: float = 0.95) -> tuple[float, float]:
    """Limits of one bar of a flat rank histogram, as multiples of its expectation.

    Binomial with `samples` independent draws and probability 1 / (members + 1); `coverage` of each bar alone.
    """
    n, p = round(samples), 1 / (members + 1)
    tails = scipy.stats.binom.ppf([(1 - coverage) / 2, (1 + coverage) / 2], n, p) / (n * p)
    return float(tails[0]), float(tails[1])


def rank_shape(counts: _Array, samples: float) -> str:
    """What the shape of a rank histogram says, in words, if it says anything beyond sampling.

    `counts` (rank), of which `samples` are independent. Test: Jolliffe and Primo 2008, see the module.
    """
    ranks = np.arange(counts.size)
    expected = samples / counts.size
    basis, _ = np.linalg.qr(np.vander((ranks - ranks.mean()) / counts.size, min(3, counts.size), increasing=True))
    contrasts = basis.T @ (counts / counts.sum() * samples - expected) / np.sqrt(expected)
    # QR leaves the signs open: let both contrasts be positive at the highest rank.
    slope, *bend = (t * np.sign(c[-1]) for t, c in zip(contrasts[1:], basis.T[1:], strict=True))
    if bend and abs(bend[0]) > max(_SIGNIFICANT, abs(slope)):
        return "too many outliers: spread too small" if bend[0] > 0 else "too few outliers: spread too large"
    if abs(slope) > _SIGNIFICANT:
        return "observations rank high: members too low" if slope > 0 else "observations rank low: members too high"
    return "flat within sampling error"


def rank_bars(histogram: xr.DataArray, *, title: str, samples: float | None = None) -> Figure:
    """Rank histogram as multiples of a flat one, with the band that holds 95 % of the bars of a flat one.

    `histogram` (rank), of `rank_histogram`; `samples`, how many of its cases are independent, by default all:
    neighbouring places and days are not, so give fewer. A weighted histogram needs it. The hint below the title
    comes from `rank_shape`. Raises ValueError for an empty title, other dimensions, nothing counted, or
    fewer samples than ranks.
    """
    histogram = style.computed({"ranks": histogram})["ranks"]
    if histogram.dims != ("rank",):
        raise ValueError(f"a rank histogram needs the one dimension 'rank', got {histogram.dims}: sum the rest")
    counts = histogram.to_numpy().astype("f8")
    weighted = str(histogram.attrs.get("units", "1")) != "1"
    cases = samples if samples is not None else 0.0 if weighted else float(counts.sum())
    if not cases >= counts.size or not counts.sum() > 0:
        wanted = f"at least as many independent cases as its {counts.size} ranks"
        raise ValueError(f"a rank histogram needs {wanted}, got {cases:g}: give samples=, or count more cases")
    fig = style.new_figure(title, 3.5)
    ax = style.dress(fig.subplots())
    ax.grid(False, axis="x")
    low, high = flat_band(counts.size - 1, cases)
    ax.axhspan(low, high, color=style.PALETTE[4], alpha=0.35, linewidth=0, label="95 % of a flat histogram")
    ax.bar(histogram["rank"].to_numpy(), counts / counts.mean(), width=0.9, color=style.PALETTE[0])
    ax.axhline(1, color=style.INK, linewidth=1)
    ax.set_xlabel(f"rank of the observation among {counts.size - 1} members")
    ax.set_ylabel("frequency [1 = flat]")
    ax.margins(x=0.01)
    ax.set_title(rank_shape(counts, cases), loc="right", pad=9, fontsize=style.SMALL, color=style.INK)
    style.legend(ax, entries=1, longest=24)
    return fig


def bars(
    table: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    ylabel: str,
    reference: float | None = None,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Grouped bars: one colour for each entry of `table`, one group for each key inside.

    `table`, {legend: {group: value}}, such as {"emulator": {"thetao": 0.4}, "persistence": {"thetao": 0.7}};
    missing or NaN values leave a gap. `ylabel` with units, `reference` draws a line, such as 1 for normalised
    values. Raises ValueError for an empty title or table.
    """
    groups = list(dict.fromkeys(group for row in table.values() for group in row))
    if not groups:
        raise ValueError("there are no bars to draw: give {legend: {group: value}}")
    fig = style.new_figure(title, 3.5)
    ax = style.dress(fig.subplots())
    ax.grid(False, axis="x")
    width = 0.8 / len(table)
    palette = style.colors_of(table, colors)
    for i, (name, row) in enumerate(table.items()):
        at = np.arange(len(groups)) + (i - (len(table) - 1) / 2) * width
        drawn = ax.bar(at, [float(row.get(g, np.nan)) for g in groups], 0.94 * width, color=palette[name], label=name)
        if len(table) * len(groups) <= _MANY_BARS:
            ax.bar_label(drawn, fmt="%.2g", fontsize=style.SMALL, color=style.INK, padding=2)
    if reference is not None:
        ax.axhline(reference, color=style.INK, linewidth=1, linestyle=(0, (5, 3)))
    ax.set_xticks(range(len(groups)), [g.replace(" ", "\n", 1) if len(g) > 12 else g for g in groups])
    ax.set_ylabel(style.balanced(ylabel, 38))
    if len(table) > 1:
        style.legend(ax, entries=len(table), longest=max(map(len, table)))
    return fig
