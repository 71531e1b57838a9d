"""Figure of how deformation of sea ice scales: its moments against box size, and the exponents they give.

Moments of order q are drawn as <eps^q>^(1/q), in one unit for all orders, so a straight line falls like L^(-beta / q).
The style is in `style`; series of extent, area and volume are drawn by `figures.series`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import style
from .ice_scaling import scaling_exponents

_Array = np.ndarray[Any, Any]

_MARKERS = "osD^v<>"
_PER_DAY = 86400.0


def scaling_curves(
    moments: Mapping[str, xr.DataArray],
    *,
    title: str,
    member_dim: str = "member",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Moments of deformation against box size, and exponents beta against order, of each model.

    `moments`, {legend: (member, order, box) or (order, box)}, as `deformation_moments` returns them, in memory or lazy,
    of the same orders; shading and bars are the range of members. `colors`, {legend: colour} where the palette should
    not choose. Raises ValueError for an empty title, no moments, other dimensions, or ways of averaging that differ.
    """
    curves = {n: _checked(n, m, member_dim) for n, m in style.computed(moments).items()}
    ways = {str(m.attrs.get("average")) for m in curves.values()}
    if len(ways) > 1:
        raise ValueError(f"moments averaged as {sorted(ways)} cannot be compared: draw two figures")
    fig = style.new_figure(title, 3.9)
    left, right = (style.dress(ax) for ax in fig.subplots(1, 2, width_ratios=(1.25, 1)))
    for name, color in style.colors_of(curves, colors).items():
        _draw_moments(left, curves[name], color, name)
        _draw_exponents(right, curves[name], color)
    _dress_moments(left)
    right.axhline(0, color=style.QUIET, linewidth=1)
    right.set(xlabel="order q", ylabel="exponent β(q)")
    orders = np.unique(np.concatenate([c["order"].to_numpy() for c in curves.values()]))
    right.set_xticks(orders, [f"{q:g}" for q in orders])
    right.margins(x=0.12)
    text: dict[str, Any] = {"frameon": False, "fontsize": style.SMALL, "labelcolor": style.INK, "columnspacing": 1.4}
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, handlelength=1.6, **text)
    marks = _order_marks(next(iter(curves.values())))
    left.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(marks), handlelength=0.8, **text)
    return fig


def _checked(name: str, moments: xr.DataArray, member_dim: str) -> xr.DataArray:
    """Moments (member, order, box), with one member if they have none."""
    if set(moments.dims) - {member_dim} != {"order", "box"} or "scale" not in moments.coords:
        raise ValueError(
            f"scaling needs moments (order, box) with their scale, got {dict(moments.sizes)} for {name!r}: use "
            "deformation_moments, and average the rest with its dim="
        )
    if member_dim not in moments.dims:
        moments = moments.expand_dims(member_dim)
    return moments.rename({member_dim: "member"}).transpose("member", "order", "box")


def _draw_moments(ax: Axes, moments: xr.DataArray, color: str, name: str) -> None:
    x = moments["scale"].to_numpy() / 1e3
    for n, q in enumerate(moments["order"].to_numpy()):
        each = moments.isel(order=n).to_numpy() ** (1 / q) * _PER_DAY
        middle = moments.isel(order=n).mean("member").to_numpy() ** (1 / q) * _PER_DAY
        if len(each) > 1:
            ax.fill_between(x, each.min(0), each.max(0), color=color, alpha=0.2, linewidth=0)
        marker = _MARKERS[n % len(_MARKERS)]
        ax.plot(x, middle, color=color, linewidth=1.8, marker=marker, markersize=4.5, label=name if n == 0 else None)


def _draw_exponents(ax: Axes, moments: xr.DataArray, color: str) -> None:
    beta = scaling_exponents(moments)["exponent"].transpose("member", "order").to_numpy()
    q = moments["order"].to_numpy()
    middle = beta.mean(0)
    ax.plot(q, middle, color=color, linewidth=1.8, marker="o", markersize=5)
    if len(beta) > 1:
        ax.errorbar(q, middle, [middle - beta.min(0), beta.max(0) - middle], color=color, linewidth=0, elinewidth=1.4)


def _order_marks(moments: xr.DataArray) -> list[Line2D]:
    orders = enumerate(moments["order"].to_numpy())
    about: dict[str, Any] = {"color": style.QUIET, "linewidth": 0, "markersize": 5}
    return [Line2D([], [], marker=_MARKERS[n % len(_MARKERS)], label=f"q = {q:g}", **about) for n, q in orders]


def _dress_moments(ax: Axes) -> None:
    ax.set(xscale="log", yscale="log", xlabel="box size L [km]", ylabel=r"$\langle\epsilon^q\rangle^{1/q}$ [day⁻¹]")
    ax.yaxis.label.set_parse_math(True)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
