"""Maps without a map library: latitude and longitude as plain axes, scaled so that shapes are right in mid-map.

One-dimensional lat and lon are drawn cell by cell. Curvilinear grids (2-D lat and lon, tripolar) are shown by
the nearest cell on a regular raster: their quadrilaterals cross the date line and meet at poles inside
land, which no pair of plain axes can draw. Nothing but the picture uses that raster.
"""

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
from scipy.spatial import KDTree

from . import style
from .conventions import coordinate, horizontal_dims

_Array = np.ndarray[Any, Any]

_DIFFERENCES = ("anomaly", "bias", "change", "difference", "error", "increment", "minus", "trend")
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 90)


@dataclass(frozen=True)
class _Panel:
    """A field on plain axes: values (y, x), the centres of its rows and columns, what lies outside its grid."""

    field: xr.DataArray
    values: _Array
    y: _Array
    x: _Array
    geographic: bool
    outside: _Array | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """West, east, south and north edge."""
        (west, east), (south, north) = _ends(self.x), _ends(self.y)
        return (west, east, max(south, -90.0), min(north, 90.0)) if self.geographic else (west, east, south, north)

    @property
    def aspect(self) -> float:
        """Length of a degree north over that of a degree east, at the mean latitude; 1 without latitudes."""
        return 1 / max(np.cos(np.deg2rad(np.mean(self.box[2:]))), 0.2) if self.geographic else 1.0


def _ends(centres: _Array) -> tuple[float, float]:
    first, last = centres[0] - (centres[1] - centres[0]) / 2, centres[-1] + (centres[-1] - centres[-2]) / 2
    return float(min(first, last)), float(max(first, last))


def _panel(name: str, field: xr.DataArray) -> _Panel:
    dims = horizontal_dims(field)
    if field.ndim != 2 or min(field.shape) < 2:
        raise ValueError(
            f"a map needs two dimensions, got {dict(field.sizes)} for {name!r}: select or average the rest"
        )
    field = field.transpose(*dims)
    values = field.to_numpy().astype("f8")
    lat, lon = coordinate(field, "lat", "latitude"), coordinate(field, "lon", "longitude")
    if lat is None or lon is None:
        y, x = (np.asarray(field[d], dtype="f8") for d in dims)
        return _Panel(field, values, y, x, geographic=False)
    if lat.ndim == lon.ndim == 1:
        east = np.unwrap(lon.to_numpy().astype("f8"), period=360)
        return _Panel(field, values, lat.to_numpy().astype("f8"), east, geographic=True)
    both = (c.transpose(*dims).to_numpy().astype("f8") for c in xr.broadcast(lat, lon))
    values, y, x, outside = _rastered(values, *both)
    return _Panel(field, values, y, x, geographic=True, outside=outside)


def _sphere(lat: _Array, lon: _Array) -> _Array:
    """Points on the unit sphere with shape (…, 3)."""
    north, east = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def _rastered(values: _Array, lat: _Array, lon: _Array) -> tuple[_Array, _Array, _Array, _Array]:
    """Values (y, x) of the nearest cell on a regular raster, its rows, its columns, and what lies outside."""
    known = np.isfinite(lat) & np.isfinite(lon)
    points = _sphere(lat, lon)
    # A cell reaches as far as its farther neighbour: beyond that the raster is outside the grid.
    to_north, to_east = (np.linalg.norm(np.diff(points, axis=a), axis=-1) for a in (0, 1))
    reach = np.maximum(np.pad(to_north, ((0, 1), (0, 0)), mode="edge"), np.pad(to_east, ((0, 0), (0, 1)), mode="edge"))
    start = _largest_gap(lon[known])
    east = start + (lon[known] - start) % 360
    rows, columns = (min(2 * n, limit) for n, limit in zip(values.shape, (720, 1440), strict=True))
    y, x = (np.linspace(c.min(), c.max(), n) for c, n in ((lat[known], rows), (east, columns)))
    distance, nearest = KDTree(points[known]).query(_sphere(*np.meshgrid(y, x, indexing="ij")))
    return values[known][nearest], y, x, distance > 0.75 * reach[known][nearest]


def _largest_gap(lon: _Array) -> float:
    """The longitude east of the widest gap between longitudes, where a map can begin without being cut."""
    turn = np.unique(lon % 360)
    return float(turn[(np.argmax(np.diff(turn, append=turn[0] + 360)) + 1) % turn.size])


@dataclass(frozen=True)
class _Scale:
    """Colours, their limits, and which ends of the colour bar are open."""

    cmap: Colormap
    low: float
    high: float
    ends: str


def _scale(panels: list[_Panel], *, anomaly: bool, cmap: str | None) -> _Scale:
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


def _degrees(axes: Axes, panel: _Panel, room: int) -> None:
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


def _draw(axes: Axes, name: str, panel: _Panel, scale: _Scale, room: int) -> None:
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


def _colour_bar(fig: Figure, axes: list[Axes], scale: _Scale, field: xr.DataArray, *, anomaly: bool) -> None:
    many = len(axes) > 1
    colours = ScalarMappable(Normalize(scale.low, scale.high), scale.cmap)
    shape: dict[str, Any] = {"location": "bottom", "shrink": 0.7 if many else 0.9, "aspect": 36 if many else 26}
    bar = fig.colorbar(colours, ax=axes, extend=scale.ends, pad=0.02, **shape)
    bar.outline.set(visible=False)
    bar.ax.tick_params(labelsize=style.SMALL, color=style.QUIET, labelcolor=style.INK)
    bar.ax.xaxis.label.set(fontsize=style.TEXT, color=style.INK, parse_math=False)
    largest = max(abs(scale.low), abs(scale.high))
    name = style.name_of(field)
    if anomaly and not any(word in name.lower() for word in _DIFFERENCES):
        name += " anomaly"
    style.label_axis(bar.ax.xaxis, name, str(field.attrs.get("units", "")), largest)


def maps(
    fields: Mapping[str, xr.DataArray],
    *,
    title: str,
    anomaly: bool = False,
    columns: int = 2,
    shared_scale: bool = True,
    cmap: str | None = None,
) -> Figure:
    """Panels of maps, land grey, colour by variable and limits that leave out 2 % at either end.

    `fields`, {panel title: field}, each (lat|y, lon|x) in memory or lazy, with lat and lon in degrees, 1-D or
    2-D, or without them; `title`, what to see; `anomaly` for colours symmetric about 0; `columns` at most;
    `shared_scale` for one scale and one colour bar, else each panel has its own; `cmap`, a name of cmocean or
    matplotlib, by default told from the variable. The figure is 7 inches wide. Raises ValueError for an empty
    title, no fields, other dimensions, or other units on one scale.
    """
    panels = {name: _panel(name, field) for name, field in style.computed(fields).items()}
    if shared_scale:
        style.one_unit([p.field for p in panels.values()], "or give each its own with shared_scale=False")
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    width = (style.WIDTH - 0.6) / columns
    shapes = [(p.box[3] - p.box[2]) * p.aspect / (p.box[1] - p.box[0]) for p in panels.values()]
    each = min(max(shapes) * width, 6.0) + (0.42 if shared_scale else 1.05)
    fig = style.new_figure(title, rows * each + (0.72 if shared_scale else 0.1))
    grid = fig.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[len(panels) :]:
        spare.remove()
    axes = list(grid[: len(panels)])
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        scale = _scale(list(panels.values()) if shared_scale else [panel], anomaly=anomaly, cmap=cmap)
        _draw(ax, name, panel, scale, room=6 if columns == 1 else 4)
        if not shared_scale:
            _colour_bar(fig, [ax], scale, panel.field, anomaly=anomaly)
    if shared_scale:
        _colour_bar(fig, axes, scale, panel.field, anomaly=anomaly)
    if len({p.box for p in panels.values()}) == 1:
        _outer_labels(axes, columns)
    return fig


def _outer_labels(axes: list[Axes], columns: int) -> None:
    """Tick labels only at the left and below the lowest panel of each column."""
    for i, ax in enumerate(axes):
        ax.tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= len(axes))
