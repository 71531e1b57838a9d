"""Rows of the scorecard that need the whole ocean: variances by level, eddy energy and heat by band.

Each variable is read once, a few records at a time (`moments`). With weights w = dz A on wet cells, bands by level
centres, and <> the mean over the records,

    band mean       X(x, y, t) = sum_k w x / sum_k w
    temperature     T(t)       = sum_kxy w theta / sum_kxy w
    variance ratio             = sum_xy A var_t prediction / sum_xy A var_t truth
    temporal error             = sum_xy A <(X'_p - X'_t)^2>^1/2 / sum_xy A,      direct and detrended

where kinetic energy (u^2 + v^2) / 2 is taken at each record and level before its band mean, and eddy kinetic energy is
about the time mean. Maps of var_t X' of prediction and truth are compared by area-weighted root mean square difference
and Pearson correlation. Dheeshjith et al. 2025, Geophys. Res. Lett.; arXiv:2606.02610.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from .comparison import Comparison
from .conventions import vertical_dim
from .moments import ClassMoments, batches

_Array = np.ndarray[Any, Any]
_Rows = dict[str, xr.DataArray]


@dataclass(frozen=True)
class _Bands:
    """Vertical means: weights (lev, y, x) and columns (y, x) of metres of water for each band."""

    levels: list[_Array]
    weights: list[_Array]

    @classmethod
    def of(cls, case: Comparison, wet: _Array) -> _Bands | None:
        if case.thickness is None or not case.bands or wet.ndim != 3:
            return None
        dz = np.nan_to_num(case.thickness)
        dz = dz[:, None, None] if dz.ndim == 1 else dz
        return cls([*case.bands.values()], [(dz * wet)[k] for k in case.bands.values()])

    @property
    def columns(self) -> _Array:
        """Water in each column, m, (band, y, x)."""
        return np.stack([w.sum(0) for w in self.weights])

    def mean(self, x: _Array) -> _Array:
        """Means (…, band, y, x) of x (…, lev, y, x); NaN where a band has no water."""
        out = []
        for k, w in zip(self.levels, self.weights, strict=True):
            part = np.where(w > 0, x[..., k, :, :], 0.0)
            with np.errstate(invalid="ignore"):
                out.append(np.einsum("...kyx,kyx->...yx", part, w, dtype="f8") / w.sum(0))
        return np.stack(out, axis=-3)


@dataclass
class _Sums:
    """What one pass over a variable leaves: variances by level and by band, and the mean of each band."""

    levels: dict[tuple[str, str], ClassMoments] = field(default_factory=lambda: defaultdict(ClassMoments))
    bands: dict[str, ClassMoments] = field(default_factory=lambda: defaultdict(ClassMoments))
    series: dict[str, list[_Array]] = field(default_factory=lambda: defaultdict(list))
    order: list[_Array] = field(default_factory=list)

    def in_time(self, side: str) -> _Array:
        """Band means of the ocean (…, band, time) in the order of time."""
        values = np.concatenate(self.series[side])
        return np.moveaxis(values[np.argsort(np.concatenate(self.order))], 0, -1)


def _gather(case: Comparison, names: tuple[str, ...], bands: _Bands | None, quantity: Callable[..., _Array]) -> _Sums:
    """One pass over variables: `quantity` of their records (time, …, lev, y, x) is what the bands are means of."""
    both = {"prediction": case.prediction, "truth": case.truth}
    fields = xr.Dataset({f"{side} {n}": d[n] for side, d in both.items() for n in names})
    sums, tau = _Sums(), case.tau
    for records, values in batches(fields, case.labels, limit=case.limit):
        at = (case.labels[records], tau[records])
        for side in both:
            for n in names:
                sums.levels[side, n].add(values[f"{side} {n}"], *at)
        if bands is None:
            continue
        means = {side: bands.mean(quantity(*(values[f"{side} {n}"] for n in names))) for side in both}
        volume = bands.columns * case.area
        sums.order.append(records)
        for side, x in means.items():
            sums.bands[side].add(x, *at)
            water = np.where(volume > 0, x, 0.0)
            sums.series[side].append(np.einsum("...yx,...yx->...", water, volume) / volume.sum((-2, -1)))
        sums.bands["difference"].add(means["prediction"] - means["truth"][:, None], *at)
    return sums


def _mean(x: _Array, weights: _Array) -> _Array:
    """Mean over the cells (y, x) with positive weights (…, y, x); NaN if there is none."""
    total = weights.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.einsum("...yx,...yx->...", np.where(weights > 0, x, 0.0), weights) / total)


def _quotient(x: _Array, y: _Array) -> _Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(y > 0, x / y, np.nan)


def _correlation(x: _Array, y: _Array, weights: _Array) -> _Array:
    """Weighted Pearson correlation of maps."""
    dx, dy = (np.where(weights > 0, m - _mean(m, weights)[..., None, None], 0.0) for m in (x, y))
    scale = np.sqrt(_mean(dx**2, weights) * _mean(dy**2, weights))
    return _quotient(_mean(dx * dy, weights), scale)


def _labelled(values: _Array, dims: tuple[str, ...], units: str, long_name: str) -> xr.DataArray:
    return xr.DataArray(values, dims=dims, attrs={"units": units, "long_name": long_name})


def _over_regions(case: Comparison, score: Callable[..., _Array], weights: _Array, *maps: _Array) -> _Array:
    """`score(maps, weights)` in each region: (member, region, band)."""
    found = []
    for rows, columns in case.boxes.values():
        cut = np.ix_(rows, columns)
        found.append(score(*(m[..., cut[0], cut[1]] for m in maps), weights[..., cut[0], cut[1]]))
    return np.stack(found, axis=-2)


def _ratio_rows(case: Comparison, name: str, sums: _Sums, wet: _Array) -> _Rows:
    lev = (vertical_dim(case.truth),) if wet.ndim == 3 else ()
    weights = case.area * wet
    how = {"": ("temporal variance", ClassMoments.variance), "anomaly_": ("anomalies", ClassMoments.anomaly_variance)}
    rows = {}
    for key, (words, variance) in how.items():
        ours, theirs = (_mean(variance(sums.levels[side, name]), weights) for side in ("prediction", "truth"))
        text = f"variance ratio of {name}, {words}: area means over wet cells before the quotient"
        if key:
            text += f"; about the {case.climatology}"
        rows[f"variance_ratio_{key}{name}"] = _labelled(_quotient(ours, theirs), ("member", *lev), "1", text)
    return rows


def _table_rows(case: Comparison, name: str, units: str, sums: _Sums, columns: _Array) -> _Rows:
    """Rows of the table of variances for one quantity, (member, region, band)."""
    dims = ("member", "region", "band")
    weights = case.area * (columns > 0)
    ours, theirs = (sums.bands[side].anomaly_variance() for side in ("prediction", "truth"))
    error, straight = (np.sqrt(sums.bands["difference"].anomaly_variance(t)) for t in (None, case.tau))
    about = f"of band-mean {name}, anomalies from the {case.climatology}"
    found = {
        "variance_map_rmse": (
            _over_regions(case, _map_rmse, weights, ours, theirs),
            f"({units})2",
            "RMSE of variance map",
        ),
        "variance_map_correlation": (
            _over_regions(case, _correlation, weights, ours, theirs),
            "1",
            "pattern correlation of variance map",
        ),
        "temporal_rmse": (_over_regions(case, _mean, weights, error), units, "area mean of temporal RMSE"),
        "temporal_rmse_detrended": (
            _over_regions(case, _mean, weights, straight),
            units,
            "area mean of temporal RMSE, detrended",
        ),
    }
    return {f"{key}_{name}": _labelled(v, dims, u, f"{words} {about}") for key, (v, u, words) in found.items()}


def _map_rmse(x: _Array, y: _Array, weights: _Array) -> _Array:
    return np.asarray(np.sqrt(_mean((x - y) ** 2, weights)))


def _eddy_rows(case: Comparison, sums: _Sums, bands: _Bands) -> _Rows:
    """Eddy kinetic energy about the time mean, averaged over bands."""
    eke = {
        side: bands.mean((sums.levels[side, "uo"].variance() + sums.levels[side, "vo"].variance()) / 2)
        for side in ("prediction", "truth")
    }
    weights = case.area * (bands.columns > 0)
    ours, theirs = (_over_regions(case, _mean, weights, x) for x in eke.values())
    dims, words = ("region", "band"), "eddy kinetic energy about the time mean"
    rmse, correlation = (_over_regions(case, f, weights, *eke.values()) for f in (_map_rmse, _correlation))
    return {
        "eke_prediction": _labelled(ours, ("member", *dims), "m2 s-2", f"area mean of {words}, prediction"),
        "eke_truth": _labelled(theirs, dims, "m2 s-2", f"area mean of {words}, truth"),
        "eke_ratio": _labelled(_quotient(ours, theirs), ("member", *dims), "1", f"ratio of {words}"),
        "eke_map_rmse": _labelled(rmse, ("member", *dims), "m2 s-2", f"RMSE of map of {words}"),
        "eke_map_correlation": _labelled(correlation, ("member", *dims), "1", f"pattern correlation of {words}"),
    }


def _same(x: _Array) -> _Array:
    return x


def _kinetic(u: _Array, v: _Array) -> _Array:
    return np.asarray((u.astype("f8") ** 2 + v.astype("f8") ** 2) / 2)


def tracer_rows(case: Comparison, name: str) -> _Rows:
    """Variance ratios of one variable by level; for one with levels also its table of variances by band.

    For `thetao` also band means of temperature, temperature_prediction and temperature_truth (…, band, time).
    """
    wet = case.wet(name)
    bands = _Bands.of(case, wet) if name in ("thetao", "so") else None
    sums = _gather(case, (name,), bands, _same)
    rows = _ratio_rows(case, name, sums, wet)
    if bands is None:
        return rows
    units = str(case.truth[name].attrs.get("units", "?"))
    if name == "thetao":
        for side, dims in (("prediction", ("member", "band", "time")), ("truth", ("band", "time"))):
            text = f"volume-mean potential temperature, {side}"
            rows[f"temperature_{side}"] = _labelled(sums.in_time(side), dims, units, text)
    return rows | _table_rows(case, name, units, sums, bands.columns)


def velocity_rows(case: Comparison) -> _Rows:
    """Variance ratios of uo and vo by level, eddy kinetic energy by band, table of variances of kinetic energy."""
    wet = case.wet("uo") & case.wet("vo")
    bands = _Bands.of(case, wet)
    sums = _gather(case, ("uo", "vo"), bands, _kinetic)
    rows = _ratio_rows(case, "uo", sums, wet) | _ratio_rows(case, "vo", sums, wet)
    if bands is None:
        return rows
    return rows | _eddy_rows(case, sums, bands) | _table_rows(case, "ke", "m2 s-2", sums, bands.columns)
