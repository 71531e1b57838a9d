"""A scorecard as a picture: Niño-3.4, heat by band, variance by depth, and the curves of one region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import style
from .abscissa import abscissae
from .variability import detrended

_Array = np.ndarray[Any, Any]
_Panel = Callable[[Axes], None]

_TRUTH, _PREDICTION = style.INK, style.PALETTE[1]
_ROW_HEIGHT = 2.3


def _curves(ax: Axes, x: _Array, truth: xr.DataArray, prediction: xr.DataArray, *, along: str) -> None:
    """Truth and prediction, the range of members shaded."""
    ax.plot(x, truth.to_numpy(), color=_TRUTH, linewidth=1.6, label="truth")
    mean = prediction
    if "member" in prediction.dims:
        mean = prediction.mean("member")
        members = prediction.transpose("member", along).to_numpy()
        ax.fill_between(x, members.min(0), members.max(0), color=_PREDICTION, alpha=0.25, linewidth=0)
    ax.plot(x, mean.to_numpy(), color=_PREDICTION, linewidth=1.6, label="prediction")


def _score(scores: xr.DataArray) -> str:
    return f"{float(scores.mean()):.2f}"


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=style.SMALL)


def _plain(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _nino(card: xr.Dataset) -> list[_Panel]:
    if "nino34_truth" not in card:
        return []

    def draw(ax: Axes) -> None:
        at, label = abscissae({"time": card["time"]})
        _curves(ax, at["time"], card["nino34_truth"], card["nino34_prediction"], along="time")
        ax.axhline(0, color=style.QUIET, linewidth=0.8)
        ax.set_xlabel(label)
        style.label_axis(ax.yaxis, "Niño-3.4", "degC", 1.0)
        _title(ax, f"R² {_score(card['nino34_r2'])}")
        ax.legend(frameon=False, fontsize=style.SMALL, labelcolor=style.INK, ncols=2, loc="best")

    return [draw]


def _heat(card: xr.Dataset) -> list[_Panel]:
    if "temperature_r2" not in card:
        return []

    def panel(band: str) -> _Panel:
        def draw(ax: Axes) -> None:
            one = card.sel(band=band)
            at, label = abscissae({"time": card["time"]})
            # In thousandths of a degree, for below 700 m nothing varies by more.
            truth, prediction = (detrended(one[f"temperature_{side}"]) * 1e3 for side in ("truth", "prediction"))
            _curves(ax, at["time"], truth, prediction, along="time")
            ax.set_xlabel(label.replace("time [", "[") if "since" not in label else label.split(" since")[0] + "]")
            style.label_axis(ax.yaxis, "temperature" if band == card["band"].to_numpy()[0] else "", "mK", 1.0)
            _title(ax, f"{band}, R² {_score(one['temperature_r2'])}")

        return draw

    return [panel(str(b)) for b in card["band"].to_numpy()]


def _ratios(card: xr.Dataset) -> list[_Panel]:
    lev = next((d for d in ("lev", "depth", "z") if d in card.dims), None)
    prefix = "variance_ratio_anomaly_"
    names = [str(n) for n, x in card.data_vars.items() if str(n).startswith(prefix) and lev in x.dims]
    if lev is None or not names:
        return []

    def draw(ax: Axes) -> None:
        ax.axvline(1, color=style.QUIET, linewidth=1)
        for name, color in style.colors_of(names, None).items():
            x = card[name].mean("member") if "member" in card[name].dims else card[name]
            ax.plot(x.to_numpy(), card[lev].to_numpy(), color=color, linewidth=1.8, label=name.removeprefix(prefix))
        values = np.concatenate([card[n].to_numpy().ravel() for n in names])
        values = values[np.isfinite(values) & (values > 0)]
        if values.size and values.max() > 5 * values.min():
            ax.set_xscale("log")
        ax.set_yscale("log")
        _plain(ax.yaxis)
        ax.invert_yaxis()
        ax.set_xlabel("variance, prediction / truth")
        ax.set_ylabel("depth [m]")
        ax.legend(frameon=False, fontsize=style.SMALL, labelcolor=style.INK, handlelength=1.2)

    return [draw]


def _regions_of(card: xr.Dataset, row: str) -> list[str]:
    """The regions that have this row."""
    if f"{row}_distance" not in card:
        return []
    there = card[f"{row}_distance"].notnull()
    there = there.any([d for d in there.dims if d != "region"])
    return [str(n) for n in card["region"].to_numpy()[there.to_numpy()]]


def _region_curves(card: xr.Dataset, field: str, region: str | None) -> list[_Panel]:
    """Panels of one region: the one asked for, else the first with all curves, else each curve's first."""
    rows = {"acf": "lag", "temporal_spectrum": "frequency", "spectrum": "ring"}
    known = {kind: _regions_of(card, f"{kind}_{field}") for kind in rows}
    known = {kind: names for kind, names in known.items() if names}
    if region is not None and known and not any(region in names for names in known.values()):
        wet = list(dict.fromkeys(n for names in known.values() for n in names))
        raise ValueError(f"the scorecard has no curves of {field} in {region!r}: choose among {wet}")
    if region is None and known:
        region = next((r for r in next(iter(known.values())) if all(r in names for names in known.values())), None)
    places = {kind: names[0] if region is None else region for kind, names in known.items()}
    return [_curve_panel(card, k, rows[k], field, place) for k, place in places.items() if place in known[k]]


def _curve_panel(card: xr.Dataset, kind: str, along: str, field: str, region: str) -> _Panel:
    labels = {"lag": "lag [days]", "frequency": "frequency [cycles per year]", "ring": "wavelength [km]"}
    names = {"acf": "autocorrelation", "temporal_spectrum": "spectrum in time", "spectrum": "spectrum in space"}

    def draw(ax: Axes) -> None:
        one = card.sel(region=region)
        x = (1e-3 / one["wavenumber"].where(one["wavenumber"] > 0) if along == "ring" else one[along]).to_numpy()
        truth, prediction = (one[f"{kind}_{field}_{side}"] for side in ("truth", "prediction"))
        shown = np.isfinite(truth.to_numpy()) & ((x > 0) | (kind == "acf"))
        _curves(ax, x[shown], truth[{along: shown}], prediction.isel({along: shown}), along=along)
        if kind == "acf":
            ax.axhline(0, color=style.QUIET, linewidth=0.8)
        else:
            ax.set(xscale="log", yscale="log")
            _plain(ax.xaxis)
            if along == "ring":
                ax.invert_xaxis()
        ax.set_xlabel(labels[along])
        units = "" if kind == "acf" else style.pretty_units(str(truth.attrs.get("units", "")))
        ax.set_ylabel(f"{field} [{units}]" if units else field)
        _title(ax, f"{names[kind]}, {region}")

    return draw


def scorecard_figure(scorecard: xr.Dataset, *, title: str, region: str | None = None, field: str = "thetao") -> Figure:
    """The series and curves behind a scorecard, truth beside prediction, members as their range.

    `scorecard` of `samudra_scorecard`; rows that it lacks are left out. `region` of the curves, by default the first
    for which each could be computed; `field` of the curves, "thetao" or "velocity". Temperatures are detrended, as
    they are scored. Raises ValueError for an empty title, a region without curves, and if there is nothing to draw.
    """
    curves = _region_curves(scorecard, field, region)
    rows = [_nino(scorecard), _heat(scorecard), [*_ratios(scorecard), *curves[:1]], curves[1:]]
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError("the scorecard has no series or curves to draw: see its attribute 'skipped'")
    fig = style.new_figure(title, _ROW_HEIGHT * len(rows))
    for part, panels in zip(fig.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axes = part.subplots(1, len(panels), squeeze=False)[0]
        for ax, draw in zip(axes, panels, strict=True):
            draw(style.dress(ax))
    return fig
