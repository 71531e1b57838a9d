"""Lines of ensembles on given axes: members thin, their spread shaded, the mean thick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from . import style

_Array = np.ndarray[Any, Any]
_Pair = tuple[xr.DataArray, xr.DataArray]

_MANY_MEMBERS = 12  # more thin lines than this are a blur
_FEW_POINTS = 16  # with so few the points themselves are marked


def _between(low: float, high: float) -> Callable[[xr.DataArray, str], _Pair]:
    return lambda x, d: (x.quantile(low, d), x.quantile(high, d))


# What each shading is called in the legend, and the limits of its bands, the outer one first.
_SPREADS: dict[str, tuple[str, list[Callable[[xr.DataArray, str], _Pair]]]] = {
    "range": ("range of members", [lambda x, d: (x.min(d), x.max(d))]),
    "5-95%": ("5–95 % of members", [_between(0.05, 0.95)]),
    "std": (
        "mean ± 1 standard deviation",
        [lambda x, d: (x.mean(d) - x.std(d, ddof=1), x.mean(d) + x.std(d, ddof=1))],
    ),
    "fan": ("5–95 and 25–75 % of members", [_between(0.05, 0.95), _between(0.25, 0.75)]),
}


def abscissa_dim(name: str, line: xr.DataArray, member_dim: str) -> str:
    """The one dimension of a line besides its members; ValueError if there are others."""
    dims = [str(d) for d in line.dims if d != member_dim]
    if len(dims) != 1:
        wanted = f"one dimension besides {member_dim!r}"
        raise ValueError(f"a line needs {wanted}, got {line.dims} for {name!r}: select or average the rest")
    return dims[0]


def draw_lines(
    ax: Axes,
    lines: Mapping[str, xr.DataArray],
    at: Mapping[str, _Array],
    *,
    spread: str | None,
    member_dim: str,
    colors: Mapping[str, str] | None,
) -> int:
    """Draw each line at its abscissae: members thin, spread shaded, mean thick. Returns the legend's entries."""
    if spread is not None and spread not in _SPREADS:
        raise ValueError(f"spread must be one of {[*_SPREADS]} or None, got {spread!r}")
    shading = ""
    for name, color in style.colors_of(lines, colors).items():
        line, x, mean = lines[name], at[name], lines[name]
        if member_dim in line.dims:
            mean = line.mean(member_dim)
            if spread is not None and line.sizes[member_dim] > 1:
                shading, bands = _SPREADS[spread]
                for limits in bands:
                    ax.fill_between(x, *limits(line, member_dim), color=color, alpha=0.2, linewidth=0)
            if 1 < line.sizes[member_dim] <= _MANY_MEMBERS and spread != "fan":
                members = line.transpose(..., member_dim).to_numpy()
                ax.plot(x, members, color=color, linewidth=0.6, alpha=0.5)
        marker: dict[str, Any] = {"marker": "o", "markersize": 4} if x.size <= _FEW_POINTS else {}
        ax.plot(x, mean.to_numpy(), color=color, linewidth=2, label=name, **marker)
    if shading:
        ax.fill_between([], [], [], color=style.QUIET, alpha=0.3, linewidth=0, label=shading)
    return len(lines) + bool(shading)
