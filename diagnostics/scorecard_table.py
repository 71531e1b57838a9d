"""A scorecard as text, in the rows in which the Samudra papers print theirs.

Dheeshjith et al. 2025, Geophys. Res. Lett.; arXiv:2606.02610.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from .scorecards import VARIABLES

_ABSENT = "–"
_RATIO = "variance_ratio_anomaly_"
_Cells = dict[str, str]


def _number(scores: xr.DataArray) -> str:
    """The mean over members ± their standard deviation, or the one value."""
    values = np.asarray(scores, dtype="f8").ravel()
    if np.isnan(values).all():
        return "nan"
    text = f"{np.nanmean(values):#.4g}"
    return text if values.size < 2 else f"{text} ± {np.nanstd(values, ddof=1):.2g}"


def _nino(card: xr.Dataset) -> _Cells:
    rows = {"R²": "r2", "RMSE °C": "rmse", "correlation": "correlation"}
    return {f"Niño-3.4 {words}": _number(card[f"nino34_{k}"]) for words, k in rows.items() if f"nino34_{k}" in card}


def _heat(card: xr.Dataset) -> _Cells:
    if "temperature_r2" not in card:
        return {}
    scores = card["temperature_r2"]
    return {f"R² {band} (detrended global mean)": _number(scores.sel(band=band)) for band in scores["band"].to_numpy()}


def _snapshots(card: xr.Dataset) -> _Cells:
    if "snapshot_correlation" not in card:
        return {}
    cells = {}
    for name in card["snapshot"].to_numpy():
        one = card.sel(snapshot=name)
        label = f"snapshot {name} ({float(one['snapshot_depth']):g} m) correlation / RMSE °C"
        cells[label] = f"{_number(one['snapshot_correlation'])} / {_number(one['snapshot_rmse'])}"
    return cells


def _ratios(card: xr.Dataset) -> _Cells:
    """Ratios of the variance of anomalies at the level of each snapshot, or at the first level."""
    cells = {}
    found = {str(n).removeprefix(_RATIO): x for n, x in card.data_vars.items() if str(n).startswith(_RATIO)}
    # Stores do not keep an order of variables.
    for variable in [*(v for v in VARIABLES if v in found), *sorted(set(found) - set(VARIABLES))]:
        scores = found[variable]
        lev = next((d for d in ("lev", "depth", "z") if d in scores.dims), None)
        if lev is None:
            cells[f"variance ratio {variable}"] = _number(scores)
            continue
        first = [float(card[lev][0])]
        depths = card["snapshot_depth"].to_numpy() if "snapshot_depth" in card else first
        words = " / ".join(f"{d:g}" for d in depths)
        values = [_number(scores.sel({lev: d}, method="nearest")) for d in depths]
        cells[f"variance ratio {variable}, {words} m"] = " / ".join(values)
    return cells


def scorecard_table(scorecard: xr.Dataset | Mapping[str, xr.Dataset]) -> str:
    """Markdown table of a scorecard in the papers' rows, then ratios of variance, then what is missing and why.

    `scorecard`, of `samudra_scorecard`, or several by name, one for each column; with members, the mean of their
    scores ± one standard deviation (n - 1). Snapshots are named as in the papers, with the depth of the level that
    they are of. Raises ValueError for an empty mapping.
    """
    cards = {"score": scorecard} if isinstance(scorecard, xr.Dataset) else dict(scorecard)
    if not cards:
        raise ValueError("there is nothing to print: give at least one scorecard, {name: Dataset}")
    columns = {name: _nino(c) | _heat(c) | _snapshots(c) | _ratios(c) for name, c in cards.items()}
    labels = list(dict.fromkeys(label for cells in columns.values() for label in cells))
    table = [["", *columns], *([label, *(cells.get(label, _ABSENT) for cells in columns.values())] for label in labels)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in table]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([*lines, "", *(_note(name, card, len(cards) > 1) for name, card in cards.items())])


def _note(name: str, card: xr.Dataset, named: bool) -> str:
    about = card.attrs
    left_out = about["times_left_out_of_prediction"], about["times_left_out_of_truth"]
    text = f"{about['records']} records, anomalies from the {about['climatology']}"
    if about["climatology"] == "day of year" and about["records_alone_in_day_of_year"]:
        text += f" ({about['records_alone_in_day_of_year']} records are the only ones of theirs: anomaly 0)"
    if any(left_out):
        text += f"; {left_out[0]} times of the prediction and {left_out[1]} of the truth left out"
    lines = [f"{name}: {text}" if named else text]
    lines += [f"not computed: {line}" for line in about["skipped"].splitlines()]
    if undefined := len(about["undefined"].splitlines()):
        lines.append(f"undefined for some level or region, see attribute 'undefined': {undefined} scores")
    return "\n".join(lines)
