"""House style of the figures, in one place: sizes, palette, labels, colour maps by variable.

Text is 10 pt or more on a figure 7 inches wide, which still reads on a telephone. Lines have the colours of
Okabe and Ito (2008), told apart by the colour-blind; maps those of cmocean (Thyng et al. 2016, Oceanography
29, 9). All is set on the artists themselves: no rcParams, no pyplot, nothing global.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import dask
import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axes._base import _AxesBase
from matplotlib.axis import Axis, YAxis
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter

from .conventions import same_units

WIDTH = 7.0
"""Width of a figure, inches."""

TEXT, SMALL, HEADING = 11, 10, 13
"""Font sizes, points."""

INK, QUIET, GUIDE, LAND = "#1f2328", "#6e7781", "#e4e7eb", "#c4c8cd"
"""Colours of text, of secondary marks, of grid lines, of land."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito without the yellow, which vanishes on white."""

DIVERGING = frozenset({"balance", "curl", "delta", "diff", "tarn"})
"""Colour maps with a middle, drawn symmetric about 0."""

# The first pattern that name, standard_name or long_name contains decides.
_BY_VARIABLE = (
    (r"\brmse\b|\bcrps\b|spread|\berror\b|standard deviation|variance", "amp"),
    (r"vorticity|\bcurl\b", "curl"),
    (r"anomaly|bias|mean error|difference|trend|tendency|uptake|flux|stress|\bhfds\b|\btau[uv]o\b", "balance"),
    (r"\bspeed\b|kinetic energy", "speed"),
    (r"velocity|\b[uvw]o\b|sea surface height|sea level|steric|\bzos\b", "balance"),
    (r"salinity|\bsos?\b", "haline"),
    (r"temperature|heat content|\bthetao\b|\bohc\b|\bs?tos\b|\bsst\b", "thermal"),
    (r"\bice\b|snow|\bsi(conc|thick|snthick)\b", "ice"),
    (r"density|\brho\b", "dense"),
)
AnyAxes = TypeVar("AnyAxes", bound=_AxesBase)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SPELLING = {"degC": "°C", "degree_C": "°C", "0.001": "10⁻³", "1e-3": "10⁻³"}


def computed(fields: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """The same fields in memory, all computed in one pass. Raises ValueError if there are none."""
    if not fields:
        raise ValueError("there is nothing to draw: give at least one field, {name: DataArray}")
    compute: Any = dask.compute  # type: ignore[attr-defined,unused-ignore]  # dask has no types
    return dict(zip(fields, compute(*fields.values()), strict=True))


def one_unit(fields: Iterable[xr.DataArray], advice: str) -> None:
    """Raise ValueError unless all fields that state units state the same; `advice` says what to do."""
    first, *others = fields
    for other in others:
        try:
            same_units(first, other)
        except ValueError as error:
            raise ValueError(f"{error}; {advice}") from None


def balanced(text: str, width: int) -> str:
    """The text in as few lines of at most `width` characters as it needs, of about even length."""
    lines = textwrap.wrap(text, width)
    even = -(-len(text) // max(len(lines), 1)) + 4
    return "\n".join(textwrap.wrap(text, min(even, width)))


def new_figure(title: str, height: float, *, constrained: bool = True) -> Figure:
    """An empty figure, 7 inches wide and `height` plus its heading high, laid out by matplotlib if `constrained`.

    Raises ValueError without a title.
    """
    if not title.strip():
        raise ValueError("a figure needs a title that says what to see in it")
    text = balanced(title, 62)
    total = height + 0.1 + 0.23 * (text.count("\n") + 1)
    engine: Literal["constrained"] | None = "constrained" if constrained else None
    fig = Figure(figsize=(WIDTH, total), dpi=100, layout=engine, facecolor="white")
    heading: dict[str, Any] = {"fontsize": HEADING, "fontweight": "bold", "color": INK, "parse_math": False}
    place = {} if constrained else {"y": 1 - 0.06 / total}
    fig.suptitle(text, x=0.012, ha="left", va="top", **place, **heading)
    return fig


def dress(ax: AnyAxes, *, frame: bool = False, grid: bool = True) -> AnyAxes:
    """Give axes the house style; `frame` draws all four sides."""
    ax.set_facecolor("white")
    ax.tick_params(which="both", labelsize=SMALL, color=QUIET, labelcolor=INK)
    for side, spine in ax.spines.items():
        spine.set(visible=frame or side in ("left", "bottom"), color=QUIET, linewidth=0.8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(fontsize=TEXT, color=INK, parse_math=False)
    ax.title.set(fontsize=TEXT, color=INK, parse_math=False)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(True, color=GUIDE, linewidth=0.8)
    return ax


def colors_of(names: Iterable[str], chosen: Mapping[str, str] | None) -> dict[str, str]:
    """A colour for each name: the chosen one, else the next of the palette that nobody chose."""
    chosen = dict(chosen or {})
    free = [c for c in PALETTE if c not in chosen.values()] or list(PALETTE)
    names = list(names)
    others = [n for n in names if n not in chosen]
    found = chosen | {n: free[i % len(free)] for i, n in enumerate(others)}
    return {n: found[n] for n in names}


def legend(ax: Axes, *, entries: int, longest: int) -> None:
    """Legend above the axes, in as many columns as fit."""
    columns = max(1, min(entries, 84 // (longest + 7)))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0.2, "ncols": columns}
    ax.legend(**place, frameon=False, fontsize=SMALL, labelcolor=INK, handlelength=1.6, columnspacing=1.4)


def pretty_units(units: str) -> str:
    """Units as one prints them: "m s-1" as m s⁻¹, "degC" as °C, and nothing for "1"."""
    units = units.strip()
    if units in ("1", ""):
        return ""
    if units in _SPELLING:
        return _SPELLING[units]
    units = re.sub(r"\((\w+)\)", r"\1", units).replace("degC", "°C")
    return re.sub(r"(?<=[A-Za-z°)])-?\d+", lambda m: m[0].translate(_SUPERSCRIPT), units)


def name_of(field: xr.DataArray) -> str:
    """The field's long_name, else its standard_name in words, else its name."""
    standard = str(field.attrs.get("standard_name", "")).replace("_", " ")
    return str(field.attrs.get("long_name") or standard or field.name or "value")


class _Powers(Formatter):
    """Tick labels divided by a power of ten, with as many decimals as tell them apart and no offset."""

    def __init__(self, power: int) -> None:
        self._power = power

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.fix_minus(f"{x * 10.0**-self._power:.6g}")

    def format_ticks(self, values: Any) -> list[str]:
        scaled = np.asarray(values, dtype="f8") * 10.0**-self._power
        step = np.min(np.abs(np.diff(scaled)), initial=np.inf)
        near = 1e-3 * step if np.isfinite(step) else 1e-6
        decimals = next((d for d in range(9) if np.all(np.abs(scaled - np.round(scaled, d)) <= near)), 9)
        return [self.fix_minus(f"{v + 0.0:.{decimals}f}") for v in np.round(scaled, decimals)]


def label_axis(axis: Axis, name: str, units: str, largest: float) -> None:
    """Write "name [units]" on an axis and tick labels without powers of ten, which go to the units.

    `largest` is the largest magnitude on the axis: from 1e5 or below 1e-2 the power of ten is taken out. The
    data stay as they are; only the tick labels are divided.
    """
    power = 0
    if largest > 0 and math.isfinite(largest) and not 1e-2 <= largest < 1e5:
        power = 3 * math.floor((math.log10(largest) + 1) / 3)
    factor = f"10{str(power).translate(_SUPERSCRIPT)}" if power else ""
    inside = " ".join(part for part in (factor, pretty_units(units)) if part)
    text = f"{name} [{inside}]" if inside else name
    axis.set_label_text(balanced(text, 38) if isinstance(axis, YAxis) else text)
    if axis.get_scale() == "linear":
        axis.set_major_formatter(_Powers(power))


def largest_of(values: Iterable[Any]) -> float:
    """Largest finite magnitude among arrays, 0 if there is none."""
    found = (np.abs(np.asarray(v, dtype="f8")) for v in values)
    return max((float(v[np.isfinite(v)].max()) for v in found if np.isfinite(v).any()), default=0.0)


def colormap_name(field: xr.DataArray, *, anomaly: bool = False) -> str:
    """Name of the cmocean map for a variable, told from name, standard_name and long_name."""
    if anomaly:
        return "balance"
    names = (field.name, field.attrs.get("standard_name"), field.attrs.get("long_name"))
    words = " ".join(str(n) for n in names if n is not None).replace("_", " ").lower()
    return next((cmap for pattern, cmap in _BY_VARIABLE if re.search(pattern, words)), "deep")


def colormap(name: str) -> Colormap:
    """The colour map of this name, of cmocean or else of matplotlib.

    Raises ValueError for a name that neither knows.
    """
    import cmocean.cm  # here, because cmocean imports pyplot: who draws no maps need not

    found: Colormap | None = cmocean.cm.cmap_d.get(name) or matplotlib.colormaps.get(name)
    if found is None:
        raise ValueError(f"no colour map {name!r}: give a name of cmocean (thermal, balance) or matplotlib (viridis)")
    return found
