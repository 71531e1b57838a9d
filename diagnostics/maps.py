"""Maps without a map library: latitude and longitude as plain axes, scaled so that shapes are right in mid-map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from . import style
from .panels import Panel, panel_of, place

_DIFFERENCES = ("anomaly", "bias", "change", "difference", "error", "increment", "minus", "trend")
# Inches of a table of maps.
_EDGE, _GAP, _KEY, _BAR, _HEADING, _COLUMN = 0.1, 0.08, 0.75, 0.13, 0.32, 0.25
_DOT = "#15395b"  # seen on pale and on strong colours; a hue, so that a dark page keeps it
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 90)


@dataclass(frozen=True)
class _Scale:
    """Colours, their limits, and which ends of the colour bar are open."""

    cmap: Colormap
    low: float
    high: float
    ends: str


def _scale(panels: list[Panel], *, anomaly: bool, cmap: str | None) -> _Scale:
    """Limits that hold the middle 96 % of the finite values, or symmetric ones that hold 98 %."""
    name = cmap or style.colormap_name(panels[0].field, anomaly=anomaly)
    finite = np.concatenate([p.values[np.isfinite(p.values)] for p in panels])
    if not finite.size:
        return _Scale(style.colormap(name), 0.0, 1.0, "neither")
    least, most = float(finite.min()), float(finite.max())
    if anomaly or name in style.DIVERGING:
        high = float(np.percentile(np.abs(finite), 98)) or max(-least, most) or 1.0
        low = -high
    else:
        low, high = (float(p) for p in np.percentile(finite, [2, 98]))
        if low == high:
            low, high = (least, most) if least < most else (low - 0.5, high + 0.5)
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    return _Scale(style.colormap(name), low, high, ends[least < low, most > high])


def _degrees(axes: Axes, panel: Panel, room: int) -> None:
    """Ticks at round degrees, written 30°S and 150°W."""

    def lon(value: float, _: int) -> str:
        turned = (value + 180) % 360 - 180
        return f"{abs(turned):g}°" + ("" if turned in (0, -180) else "E" if turned > 0 else "W")

    def lat(value: float, _: int) -> str:
        return f"{abs(value):g}°" + ("" if value == 0 else "N" if value > 0 else "S")

    west, east, south, north = panel.box
    for axis, span, ticks, text in (
        (axes.xaxis, east - west, room, lon),
        (axes.yaxis, north - south, 5, lat),
    ):
        step = next((s for s in _STEPS if span / s <= ticks), 90)
        axis.set_major_locator(MultipleLocator(step))
        axis.set_major_formatter(FuncFormatter(text))


def _draw(axes: Axes, name: str, panel: Panel, scale: _Scale, room: int) -> None:
    style.dress(axes, frame=True, grid=False)
    axes.set_facecolor(style.LAND)
    colours: dict[str, Any] = {"cmap": scale.cmap, "norm": Normalize(scale.low, scale.high)}
    axes.pcolormesh(panel.x, panel.y, panel.values, shading="nearest", rasterized=True, **colours)
    if panel.outside is not None:
        paper = ListedColormap(["white"])
        axes.pcolormesh(
            panel.x, panel.y, np.where(panel.outside, 0, np.nan), shading="nearest", rasterized=True, cmap=paper
        )
    west, east, south, north = panel.box
    axes.set(xlim=(west, east), ylim=(south, north), aspect=panel.aspect)
    axes.set_title(name, loc="left", fontsize=style.TEXT, color=style.INK, parse_math=False)
    if panel.geographic:
        _degrees(axes, panel, room)
    else:
        axes.set(xlabel=str(panel.field.dims[1]), ylabel=str(panel.field.dims[0]))


def _dot(axes: Axes, panel: Panel, across: int) -> None:
    """Dots where the panel is 1, at most so many across the map."""
    rows, columns = panel.values.shape
    every = max(1, -(-columns // across))
    inside = np.zeros((rows, columns), bool)
    inside[every // 2 :: every, every // 2 :: every] = True
    row, column = np.nonzero((panel.values == 1) & inside)
    axes.plot(panel.x[column], panel.y[row], linestyle="none", marker=".", markersize=1.8, color=_DOT)


def _colour_bar(axes: Axes, scale: _Scale, field: xr.DataArray, *, anomaly: bool) -> None:
    fig = axes.get_figure(root=True)
    assert fig is not None
    colours = ScalarMappable(Normalize(scale.low, scale.high), scale.cmap)
    bar = fig.colorbar(colours, cax=axes, orientation="horizontal", extend=scale.ends, extendfrac=0.03)
    bar.outline.set(visible=False)
    axes.tick_params(labelsize=style.SMALL, color=style.QUIET, labelcolor=style.INK)
    axes.xaxis.label.set(fontsize=style.TEXT, color=style.INK, parse_math=False)
    name = style.name_of(field)
    if anomaly and not any(word in name.lower() for word in _DIFFERENCES):
        name += " anomaly"
    largest = max(abs(scale.low), abs(scale.high))
    style.label_axis(axes.xaxis, name, str(field.attrs.get("units", "")), largest)


def maps(
    fields: Mapping[str, xr.DataArray],
    *,
    title: str,
    anomaly: bool = False,
    columns: int = 2,
    shared_scale: bool = True,
    cmap: str | None = None,
    dots: Mapping[str, xr.DataArray] | None = None,
) -> Figure:
    """Panels of maps, land grey, colour by variable and limits that leave out 2 % at either end.

    `fields`, {panel title: field}, each (lat|y, lon|x) in memory or lazy, with lat and lon in degrees, 1-D or
    2-D, or without them; `title`, what to see; `anomaly` for colours symmetric about 0; `columns` at most;
    `shared_scale` for one scale and one colour bar, else each panel has its own; `cmap`, a name of cmocean or
    matplotlib, by default told from the variable; `dots`, {panel title: (lat|y, lon|x)}, true where a panel is to be
    dotted, as where members disagree. Signed variables are symmetric about 0 as well. Raises ValueError for an empty
    title, no fields, other dimensions, an unknown cmap, dots for no panel, or other units on one scale.
    """
    if dots and (unknown := set(dots) - set(fields)):
        raise ValueError(f"dots belong to panels {[*fields]}, got {sorted(unknown)}")
    panels = [panel_of(name, field) for name, field in style.computed(fields).items()]
    if shared_scale:
        style.one_unit([p.field for p in panels], "or give each its own with shared_scale=False")
    columns = max(1, min(columns, len(panels)))
    outer = len({p.box for p in panels}) == 1
    page = place(panels, columns, own_bars=not shared_scale, outer=outer)
    fig = style.new_figure(title, page.height, constrained=False)
    inches = np.array([*fig.get_size_inches(), *fig.get_size_inches()])
    axes, bars = ([fig.add_axes(tuple(r / inches)) for r in group] for group in (page.maps, page.bars))
    for i, (name, panel) in enumerate(zip(fields, panels, strict=True)):
        scale = _scale(panels if shared_scale else [panel], anomaly=anomaly, cmap=cmap)
        _draw(axes[i], name, panel, scale, room=6 if columns == 1 else 4)
        if dots and name in dots:
            _dot(axes[i], panel_of(name, dots[name].astype("f8")), 100 // columns)
        if outer:
            axes[i].tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= len(axes))
        if i < len(bars):
            _colour_bar(bars[i], scale, panel.field, anomaly=anomaly)
    return fig


def map_rows(rows: Mapping[str, Mapping[str, xr.DataArray]], *, title: str, cmap: str | None = None) -> Figure:
    """A table of maps: a variable in each row, on one scale with its colour bar, and the runs compared in columns.

    `rows`, {heading: {column: field}}, each field (lat|y, lon|x) in memory or lazy, the same columns in every row;
    without ticks, for these are to be compared by eye. Around a pole leave lat and lon out, `drop_vars(["lat",
    "lon"])`, to see the grid's own plane. `cmap` for all rows, by default told from each variable. Raises ValueError
    as `maps`, and for rows of other columns.
    """
    columns = [*next(iter(rows.values()), {})]
    if not columns or any([*fields] != columns for fields in rows.values()):
        raise ValueError(f"rows of maps need the same columns, got { {n: [*f] for n, f in rows.items()} }")
    panels = [[panel_of(n, f) for n, f in style.computed(fields).items()] for fields in rows.values()]
    wide = (style.WIDTH - 2 * _EDGE - _KEY - _GAP * (len(columns) - 1)) / len(columns)
    heights = [wide * row[0].shape for row in panels]
    height = sum(heights) + len(rows) * _HEADING + _COLUMN + _EDGE
    fig = style.new_figure(title, height, constrained=False)
    inches = np.array([*fig.get_size_inches(), *fig.get_size_inches()])
    text: dict[str, Any] = {"color": style.INK, "parse_math": False, "ha": "left", "va": "bottom"}
    top = height - _COLUMN
    for k, (heading, row) in enumerate(zip(rows, panels, strict=True)):
        style.one_unit([p.field for p in row], "one row of maps has one scale")
        scale = _scale(row, anomaly=False, cmap=cmap)
        bottom = top - _HEADING - heights[k]
        units = style.pretty_units(str(row[0].field.attrs.get("units", "")))
        about = f"{heading} [{units}]" if units else heading
        fig.text(_EDGE / inches[0], (bottom + heights[k] + 0.05) / inches[1], about, fontsize=style.TEXT, **text)
        for i, (name, panel) in enumerate(zip(columns, row, strict=True)):
            x = _EDGE + i * (wide + _GAP)
            axes = fig.add_axes(tuple(np.array([x, bottom, wide, heights[k]]) / inches))
            _draw(axes, "", panel, scale, room=4)
            axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
            if k == 0:
                fig.text(x / inches[0], (top + 0.02) / inches[1], name, fontsize=style.TEXT, fontweight="bold", **text)
        bar = (style.WIDTH - _EDGE - _KEY + 0.1, bottom, _BAR, heights[k])
        _key(fig.add_axes(tuple(np.array(bar) / inches)), scale)
        top = bottom
    return fig


def _key(axes: Axes, scale: _Scale) -> None:
    """A colour bar beside a row."""
    fig = axes.get_figure(root=True)
    assert fig is not None
    colours = ScalarMappable(Normalize(scale.low, scale.high), scale.cmap)
    bar = fig.colorbar(colours, cax=axes, extend=scale.ends, extendfrac=0.04)
    bar.outline.set(visible=False)
    axes.tick_params(labelsize=style.SMALL, color=style.QUIET, labelcolor=style.INK)
