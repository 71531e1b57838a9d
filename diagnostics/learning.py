"""Learning curves: what a training run wrote to its `training.csv`, drawn per variable and per level."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import style

_FIRST = ("update", "loss")  # of a validation log, before the variables
_OWN = ("update", "steps", "learning_rate", "loss", "objective", "gradient_norm", "waiting")


def training_log(path: str | Path) -> xr.Dataset:
    """A training's log as a Dataset over `update`.

    Args:
        path: of `training.csv` or `validation.csv`, or of the folder that `training.csv` is in.

    Returns:
        Loss per variable, `(update, [lev])` without units, with the level's number as `lev`, and the columns
        `steps`, `learning_rate`, `loss`, `objective`, `gradient_norm` and `waiting` (share of time) `(update)`; of a
        validation `loss` alone.

    Raises FileNotFoundError; ValueError if the file is no training log or has no rows yet.
    """
    path = Path(path)
    path = path / "training.csv" if path.is_dir() else path
    with path.open(newline="") as file:
        head, *rows = csv.reader(file) if path.stat().st_size else [[]]
    own = next((names for names in (_OWN, _FIRST) if tuple(head[: len(names)]) == names), None)
    if own is None or not rows:
        raise ValueError(
            f"{path}: wanted a training log with columns {', '.join(_OWN)} and at least one row, got {head[:8]} and "
            f"{len(rows)} rows; a training writes its first row after ten updates"
        )
    table = dict(zip(head, np.array(rows, float).T, strict=True))
    update = table.pop("update").astype(int)
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {n: (("update",), table.pop(n)) for n in own[1:]}
    columns: dict[str, list[np.ndarray]] = {}
    for name, values in table.items():
        variable, _, number = name.rpartition("_")
        columns.setdefault(variable if variable and number.isdigit() else name, []).append(values)
    deep = {variable for variable in columns if variable not in table}
    most = max((len(columns[variable]) for variable in deep), default=0)
    for variable, levels in columns.items():
        if variable not in deep:
            found[variable] = (("update",), levels[0])
            continue
        padded = np.full((len(update), most), np.nan)
        padded[:, : len(levels)] = np.stack(levels, 1)
        found[variable] = (("update", "lev"), padded)
    coords = {"update": update, **({"lev": np.arange(most)} if most else {})}
    return xr.Dataset(found, coords=coords, attrs={"title": f"training in {path.parent.name}"})


def learning_curves(path: str | Path) -> Figure:
    """Draw a training: loss per variable against updates, and of the last tenth per level, as a Figure.

    A `validation.csv` beside the log is drawn dashed.

    Args:
        path: as for `training_log`, whose errors are raised.
    """
    log, beside = training_log(path), Path(path)
    beside = (beside if beside.is_dir() else beside.parent) / "validation.csv"
    checked = training_log(beside) if beside.exists() else None
    names = [str(n) for n in log.data_vars if n not in _OWN]
    figure = Figure(figsize=(style.WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    last = log.isel(update=slice(-max(1, log.sizes["update"] // 10), None)).mean("update")
    for name, color in style.colors_of(names, None).items():
        curve = log[name].mean("lev") if "lev" in log[name].dims else log[name]
        left.plot(log["update"], curve, color=color, linewidth=1.5, label=name)
        if checked is not None and name in checked:
            seen = checked[name].mean("lev") if "lev" in checked[name].dims else checked[name]
            left.plot(checked["update"], seen, color=color, linewidth=1, linestyle="--")
        if "lev" in log[name].dims:
            right.plot(last[name], last["lev"], color=color, marker="o", markersize=3)
    changes = log["update"].values[1:][np.diff(log["steps"].values) != 0]
    for change in changes:
        left.axvline(change, color=style.GUIDE, zorder=0)
    left.set(yscale="log", xlabel="updates", ylabel="loss" if checked is None else "loss (dashed: validation)")
    right.set(xscale="log", xlabel="loss, last tenth", ylabel="level, from the surface")
    right.invert_yaxis()
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False, fontsize=style.SMALL)
    share, steps = float(log["waiting"][-1]), ", ".join(f"{k:.0f}" for k in dict.fromkeys(log["steps"].values))
    figure.suptitle(f"Loss per variable and level; K = {steps}; {share:.0%} of the time waiting for data", fontsize=11)
    return figure
