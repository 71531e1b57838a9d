"""The scores by which the Samudra papers judge an ocean emulator, for any prediction and truth.

Anomalies are from the mean over records with the same day of the year, of prediction and truth separately, so that no
bias of the mean counts against a prediction. Bands are levels whose centres lie in 0-700, 700-2000 and 2000-7000 m.
The rows, their definitions and their traps are in `indices`, `scorecard_series` (Niño-3.4, heat, snapshots),
`scorecard_maps` (variances, eddies) and `scorecard_regions` (spectra, time scales). Dheeshjith et al. 2025, Geophys.
Res. Lett., "Samudra: an AI global ocean emulator for climate"; arXiv:2606.02610 (Samudra 2).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from .comparison import GLOBAL, Comparison, compare
from .regions import REGIONS, Region, region_named
from .scorecard_maps import tracer_rows, velocity_rows
from .scorecard_regions import curve_rows
from .scorecard_series import nino_rows, snapshot_rows, temperature_rows
from .variability import MOST_ALONE, alone, day_of_year

BANDS = {"0-700 m": (0.0, 700.0), "700-2000 m": (700.0, 2000.0), "2000-7000 m": (2000.0, 7000.0)}
"""Upper and lower edge in m of the bands of the Samudra papers, for the centres of levels."""

VARIABLES = ("thetao", "so", "uo", "vo", "zos")


def samudra_scorecard(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    regions: Mapping[str, Region] | Sequence[str] = tuple(REGIONS),
    bands: Mapping[str, tuple[float, float]] = BANDS,
    variables: Sequence[str] = VARIABLES,
    climatology: str = "auto",
    area: xr.DataArray | None = None,
    dz: xr.DataArray | None = None,
    batch_bytes: float = 6e7,
) -> xr.Dataset:
    """Score a prediction by a truth with the rows of the Samudra papers, and by its ratios of variance.

    Args:
        prediction: `([member,] time, [lev,] lat|y, lon|x)`, any of thetao (degC), so (0.001), uo, vo (m s-1), zos (m),
            NaN on land; in memory or lazy.
        truth: the same without member (or one), on the same grid; `areacello` (m2) and `dz` (m) as coordinates.
        regions: boxes by name, or names of `REGIONS`; those without cells on this grid are skipped.
        bands: upper and lower edge in m by name; levels belong by their centres, edges included.
        variables: the variables to score; others than the five get their variance ratio.
        climatology: "day of year" (the papers), "time mean", or "auto": the second for records too short for the
            first, with a warning. See `variability.climatology_labels`.
        area: cell area `(lat|y, lon|x)` in m2, by default that of the truth.
        dz: thickness `(lev)` or `(lev, lat|y, lon|x)` in m, by default that of the truth.
        batch_bytes: what is read at a time, which bounds the memory. Records are read day of the year by day of the
            year, once where a chunk is one record; chunks of many records are read again for each batch.

    Returns a Dataset in memory: scores `(member, region, band, lev, snapshot)` as far as they have these, the curves
    behind them, and attrs: `skipped` (a line for each row that could not be computed, and why), `undefined` (scores
    that are NaN, such as in a region without wet cells), `climatology`, `records` and how many times were left out.
    Members are scored singly. Rows of short records and partial oceans are left out, not filled.

    Raises ComparisonError for no common variable or time, other calendars or grids, RegionError for an unknown
    region, ClimatologyError for "day of year" on a record too short, ValueError for other units.
    """
    chosen = regions if isinstance(regions, Mapping) else {name: region_named(name) for name in regions}
    case = compare(
        prediction,
        truth,
        variables=list(variables),
        regions=chosen,
        bands=bands,
        climatology=climatology,
        area=area,
        dz=dz,
        limit=batch_bytes,
    )
    if climatology == "auto" and case.climatology == "time mean":
        warnings.warn(
            f"{case.labels.size} records are too few for a day-of-year climatology (more than {MOST_ALONE:.0%} are the "
            "only ones of their day): anomalies are from the time mean, the annual cycle is left in",
            stacklevel=2,
        )
    rows = _rows(case)
    # Regions have other rings: where a wavenumber is missing in one curve, another knows it.
    named = [x.to_dataset(name=name) for name, x in rows.items()]
    scores = xr.merge(named, join="outer", compat="no_conflicts", combine_attrs="override")
    scores = scores.assign_coords(_coordinates(case, rows))
    if "member" not in prediction.dims:
        scores = scores.isel(member=0, drop=True)
    return scores.assign_attrs(_about(case, scores))


def _rows(case: Comparison) -> dict[str, xr.DataArray]:
    rows: dict[str, xr.DataArray] = {}
    for name in case.truth.data_vars:
        if name not in ("uo", "vo"):
            rows |= tracer_rows(case, str(name))
    if case.has("eddies and kinetic energy", "uo", "vo"):
        rows |= velocity_rows(case)
    else:
        for name in {"uo", "vo"} & set(case.truth.data_vars):
            rows |= tracer_rows(case, str(name))
    rows |= temperature_rows(case, rows) | nino_rows(case) | snapshot_rows(case) | curve_rows(case)
    return {name: _tidy(x) for name, x in rows.items()}


def _tidy(row: xr.DataArray) -> xr.DataArray:
    """Members and regions first, no coordinates that are left of selections."""
    left = [str(name) for name, c in row.coords.items() if c.ndim == 0]
    return row.reset_coords(left, drop=True).transpose("member", "region", ..., missing_dims="ignore")


def _coordinates(case: Comparison, rows: Mapping[str, xr.DataArray]) -> dict[str, object]:
    """Labels of the dimensions that rows have, but that pure arrays left without."""
    used = {d for x in rows.values() for d in x.dims}
    bands, boxes = {"long_name": "levels by the depth of their centres"}, {"long_name": "region"}
    every: dict[str, object] = {
        "band": ("band", [*case.bands], bands),
        "region": ("region", [*case.boxes], boxes),
        "time": case.truth["time"],
    }
    members = np.arange(case.prediction.sizes["member"])
    every["member"] = case.prediction["member"] if "member" in case.prediction.coords else members
    lev = {d: case.truth[d] for d in ("lev", "depth", "z") if d in case.truth.indexes}
    return {str(d): c for d, c in (every | lev).items() if d in used}


def _undefined(scores: xr.Dataset) -> list[str]:
    """Scores that are NaN, and how many; curves and their distances are known to be of boxes only."""
    lines = []
    for name, x in scores.data_vars.items():
        if {"time", "ring", "frequency", "lag"} & set(x.dims):
            continue
        missing = x.drop_sel(region=GLOBAL).isnull() if str(name).endswith("_distance") else x.isnull()
        if missing.any():
            lines.append(f"{name}: {int(missing.sum())} of {missing.size}")
    return lines


def _about(case: Comparison, scores: xr.Dataset) -> dict[str, object]:
    days = day_of_year(case.truth["time"])
    times = [str(t) for t in case.truth["time"].to_numpy()[[0, -1]]]
    return {
        "Conventions": "CF-1.11",
        "title": "Scores of the Samudra papers",
        "references": "Dheeshjith et al. 2025, Geophys. Res. Lett.; arXiv:2606.02610",
        "climatology": case.climatology,
        "records": case.labels.size,
        "records_alone_in_day_of_year": int(alone(days).sum()),
        "first_time": times[0],
        "last_time": times[1],
        "times_left_out_of_prediction": case.left_out[0],
        "times_left_out_of_truth": case.left_out[1],
        "skipped": "\n".join(f"{row}: {why}" for row, why in case.skipped.items()),
        "undefined": "\n".join(_undefined(scores)),
    }
