"""Rows of the scorecard from series and snapshots: Niño-3.4, heat by band, the last record.

    R^2 = 1 - sum (p - t)^2 / sum (t - <t>)^2

of Niño-3.4 as it is, and of the mean temperature of a band with the least-squares line of each series removed
separately: that leaves neither bias nor trend to be wrong, and where the truth hardly varies R^2 is far below 0.
Snapshots of anomalies are compared cell by cell without area weights. Dheeshjith et al. 2025, Geophys. Res. Lett.;
arXiv:2606.02610.
"""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import xarray as xr

from .comparison import Comparison
from .conventions import horizontal_dims
from .indices import WINDOW, nino34, uppermost
from .regions import RegionError, select_region
from .variability import alone, detrended

_Array = np.ndarray[Any, Any]
_Rows = dict[str, xr.DataArray]


def r_squared(prediction: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """Part of the truth's variance along time that the prediction explains: 1 at best, without lower limit."""
    missed = ((prediction - truth) ** 2).sum("time", skipna=False)
    there = ((truth - truth.mean("time", skipna=False)) ** 2).sum("time", skipna=False)
    return 1 - missed / there.where(there > 0)


def correlation(prediction: xr.DataArray, truth: xr.DataArray, wet: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """Pearson correlation over `dims`, unweighted, where `wet` is true."""
    x, y = (f - wet_mean(f, wet, dims) for f in (prediction, truth))
    scale = (wet_mean(x**2, wet, dims) * wet_mean(y**2, wet, dims)) ** 0.5
    return wet_mean(x * y, wet, dims) / scale.where(scale > 0)


def wet_mean(x: xr.DataArray, wet: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """Mean over `dims` where `wet` is true; one NaN there makes it NaN, as the end of a prediction should."""
    n = wet.sum(dims)
    return x.where(wet, 0.0).sum(dims, skipna=False) / n.where(n > 0)


def _about(x: xr.DataArray, units: str, long_name: str) -> xr.DataArray:
    return x.drop_attrs().assign_attrs(units=units, long_name=long_name)


def nino_rows(case: Comparison) -> _Rows:
    """Scores of the Niño-3.4 index, and both series, NaN in the records that are dropped."""
    if not case.has("nino34", "thetao"):
        return {}
    n = case.truth.sizes["time"]
    if n < WINDOW + 3:
        case.skipped["nino34"] = f"{n} records, and the first {WINDOW} are dropped: needs {WINDOW + 3}"
        return {}
    try:
        box = select_region(case.truth["thetao"], "Nino 3.4")
    except RegionError as error:
        case.skipped["nino34"] = str(error).split(":")[0]
        return {}
    if not np.asarray(box.isel(time=0).notnull()).any():
        case.skipped["nino34"] = "no wet cell in the box"
        return {}
    area = xr.DataArray(case.area, dims=horizontal_dims(case.truth))
    options: dict[str, Any] = {"area": area, "climatology": case.climatology}
    p, t = _compute(*(nino34(d["thetao"], **options).drop_attrs() for d in (case.prediction, case.truth)))
    text = f"Niño-3.4 index (anomalies from the {case.climatology}, trailing mean of {WINDOW} records)"
    rows = {
        "nino34_r2": _about(r_squared(p, t), "1", f"R² of {text}"),
        "nino34_rmse": _about(((p - t) ** 2).mean("time", skipna=False) ** 0.5, "degC", f"RMSE of {text}"),
        "nino34_mae": _about(abs(p - t).mean("time", skipna=False), "degC", f"mean absolute error of {text}"),
        "nino34_correlation": _about(
            correlation(p, t, xr.ones_like(t, dtype=bool), ["time"]), "1", f"correlation of {text}"
        ),
    }
    for side, x in (("prediction", p), ("truth", t)):
        # On the common axis of time; the records dropped at the start are NaN.
        rows[f"nino34_{side}"] = _about(x.reindex(time=case.truth.indexes["time"]), "degC", f"{text}, {side}")
    return rows


def _compute(*fields: xr.DataArray) -> tuple[xr.DataArray, ...]:
    compute: Any = dask.compute  # type: ignore[attr-defined,unused-ignore]  # dask has no types
    return tuple(compute(*fields))


def temperature_rows(case: Comparison, rows: _Rows) -> _Rows:
    """R² of the mean temperature of each band, from the series that `tracer_rows` found."""
    if "temperature_truth" not in rows:
        case.skipped.setdefault("temperature_r2", "no bands of thetao: needs thetao, levels and layer thicknesses")
        return {}
    if case.truth.sizes["time"] < 3:
        case.skipped["temperature_r2"] = "fewer than three records"
        return {}
    p, t = (rows[f"temperature_{side}"].assign_coords(time=case.truth["time"]) for side in ("prediction", "truth"))
    text = "R² of volume-mean potential temperature"
    return {
        "temperature_r2": _about(r_squared(detrended(p), detrended(t)), "1", f"{text}, each series detrended"),
        "temperature_r2_undetrended": _about(r_squared(p, t), "1", f"{text}, with its bias and trend"),
    }


def snapshot_rows(case: Comparison) -> _Rows:
    """Correlation and RMSE of temperature anomalies at the last record, at the first level of each band."""
    if not case.has("snapshot", "thetao"):
        return {}
    if case.climatology == "day of year" and alone(case.labels)[-1]:
        case.skipped["snapshot"] = "no other record has the day of year of the last, whose anomaly would be 0"
        return {}
    alike = np.flatnonzero(case.labels == case.labels[-1])
    if alike.size < 2:
        case.skipped["snapshot"] = "fewer than two records"
        return {}
    depth, wet, fields = _snapshot_levels(case)
    if not depth:
        case.skipped["snapshot"] = "thetao has levels but none in a band"
        return {}
    anomalies = [x.isel(time=-1) - x.isel(time=alike).astype("f8").mean("time", skipna=False) for x in fields]
    p, t = (a.drop_vars("time", errors="ignore") for a in _compute(*anomalies))
    dims = [*horizontal_dims(case.truth)]
    text = f"of temperature anomalies from the {case.climatology} at {case.truth['time'].to_numpy()[-1]}, unweighted"
    found = {
        "snapshot_correlation": _about(correlation(p, t, wet, dims), "1", f"spatial correlation {text}"),
        "snapshot_rmse": _about(wet_mean((p - t) ** 2, wet, dims) ** 0.5, "degC", f"RMSE {text}"),
    }
    about = {"units": "m", "long_name": "depth of the level of a snapshot"}
    return {name: x.assign_coords(snapshot_depth=("snapshot", [*depth.values()], about)) for name, x in found.items()}


def _snapshot_levels(case: Comparison) -> tuple[dict[str, float], xr.DataArray, list[xr.DataArray]]:
    """Depth of the level of each snapshot by name, its wet cells, and prediction and truth (…, snapshot, y, x)."""
    fields = [d["thetao"].reset_coords(drop=True) for d in (case.prediction, case.truth)]
    lev = next((d for d in ("lev", "depth", "z") if d in fields[1].dims), None)
    dims = ("snapshot", *horizontal_dims(case.truth))
    if lev is None or case.levels is None:
        top = [uppermost(f).expand_dims(snapshot=["surface"]) for f in fields]
        wet = case.wet("thetao")
        return {"surface": 0.0}, xr.DataArray(wet[:1] if wet.ndim == 3 else wet[None], dims=dims), top
    # The papers name the first level of a band by the band's top, whatever its own depth (10 -> 775 m is "700 m").
    first = {_snapshot_name(case.tops[label]): int(k[0]) for label, k in case.bands.items()}
    depth = {name: float(case.levels[k]) for name, k in first.items()}
    picked = [f.isel({lev: [*first.values()]}).drop_vars(lev).rename({lev: "snapshot"}) for f in fields]
    there = xr.DataArray(case.wet("thetao")[[*first.values()]], dims=dims)
    return depth, there, [f.assign_coords(snapshot=[*first]) for f in picked]


def _snapshot_name(top: float) -> str:
    return f"{top:g} m" if top else "surface"
