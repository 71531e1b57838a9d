"""Forecasts of an event by the number of members that have it: Brier score, reliability, ROC.

Everything comes from one table that adds up over chunks, stores and years: for k = 0 … M members with the event, the
cases n_k (or their weight) and those of them in which it was observed, o_k. With p_k = k/M and sums over k,

    Brier        = sum [n_k p_k² - 2 p_k o_k + o_k] / n                                              (Brier 1950)
    fair         = Brier - sum n_k k (M - k) / (M² (M - 1)) / n                                      (Ferro 2014)
    reliability  = sum n_k (p_k - o_k/n_k)² / n,   resolution = sum n_k (o_k/n_k - o/n)² / n,
    uncertainty  = o/n (1 - o/n),   Brier = reliability - resolution + uncertainty                  (Murphy 1973)
    ROC          : hit rate sum_{k >= j} o_k / o against false alarms sum_{k >= j} (n_k - o_k) / (n - o), j = M+1 … 0

A comparison x >= threshold turns missing values into "no"; here they stay missing and are not counted. Brier 1950,
Mon. Weather Rev. 78, 1; Murphy 1973, J. Appl. Meteorol. 12, 595; Mason 1982, Aust. Meteorol. Mag. 30, 291.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .conventions import bare, described, matched
from .ranks import histogram, spread_weights
from .skill import Dims, over_members, paired, reduced

_Array = np.ndarray[Any, Any]


def _members_with(members: _Array, observed: _Array) -> tuple[_Array, _Array]:
    """Members >= 0 and whether the observation is, int32; -1 where one is missing."""
    count = (members >= 0).sum(0, dtype=np.int32)
    valid = np.isfinite(members).all(0) & np.isfinite(observed)
    return np.where(valid, count, np.int32(-1)), (observed >= 0).astype(np.int32)


def event_table(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    threshold: float | xr.DataArray,
    member_dim: str = "member",
    dim: Dims = None,
    weights: xr.DataArray | None = None,
) -> xr.Dataset:
    """Cases, and cases with the event observed, by the number of members that have the event: value >= threshold.

    `obs` (…) and `ens` (member, …) as for `crps_ensemble`; `threshold` in their units, one number or on a subset of
    the dimensions of `obs`, such as a map of a percentile; `dim` to count over, all by default; `weights` as an area.
    Returns cases and events (…, members_with_event), which add up over tables of other times or stores; float64,
    lazy for lazy input. Raises ValueError as `crps_ensemble`. For events below a threshold change all signs.
    """
    y, x = paired(obs, ens, member_dim)
    dims = reduced(dim, y)
    limit = threshold if isinstance(threshold, xr.DataArray) else xr.DataArray(float(threshold))
    if extra := set(limit.dims) - set(y.dims):
        raise ValueError(f"the threshold has {sorted(map(str, extra))}, which the observations {y.dims} lack")
    y, x = (f - matched(f, limit) for f in (y, x))
    counted, observed = over_members(_members_with, y, x, member_dim, dtype="i4", outputs=2)
    weight = xr.ones_like(counted, dtype="f8") if weights is None else spread_weights(counted, weights)
    options: dict[str, Any] = {"dims": dims, "highest": x.sizes[member_dim], "name": "members_with_event"}
    tables = {
        "cases": histogram(counted, weight, **options),
        "events": histogram(counted, weight * observed, **options),
    }
    units = {"units": "1" if weights is None else str(weights.attrs.get("units", "1"))}
    tables = {name: described(bare(t), name, **units) for name, t in tables.items()}
    coords = {d: obs.indexes[d] for d in tables["cases"].dims if d in obs.indexes}
    members = {"members_with_event": np.arange(x.sizes[member_dim] + 1)}
    told = {"threshold": float(limit) if limit.ndim == 0 else "varies"}
    return xr.Dataset(tables, coords={**coords, **members}, attrs={"members": x.sizes[member_dim], **told})


def _probability(table: xr.Dataset) -> xr.DataArray:
    if missing := {"cases", "events"} - set(table.data_vars):
        raise ValueError(f"wanted a table of `event_table`, got one without {sorted(missing)}")
    return table["members_with_event"] / (table.sizes["members_with_event"] - 1)


def brier_score(table: xr.Dataset, *, fair: bool = False) -> xr.Dataset:
    """Brier score of a table of `event_table`, and its parts.

    `fair` for the score of the probability that M members sample (then the parts are still those of the plain
    score). Returns brier, reliability, resolution, uncertainty and base_rate (…), brier = reliability - resolution +
    uncertainty if not fair. Raises ValueError for another table, and for fair with one member.
    """
    p, k = _probability(table), table["members_with_event"]
    members = table.sizes["members_with_event"] - 1
    if fair and members < 2:
        raise ValueError("a fair Brier score needs at least two members, got 1: use fair=False")
    n_k, o_k, name = table["cases"], table["events"], "members_with_event"
    n, o = n_k.sum(name), o_k.sum(name)
    n = n.where(n > 0)
    rate = o / n
    observed = (o_k / n_k.where(n_k > 0)).fillna(0.0)
    brier = (n_k * p**2 - 2 * p * o_k + o_k).sum(name) / n
    if fair:
        brier = brier - (n_k * (k * (members - k))).sum(name) / (members**2 * (members - 1)) / n
    parts = {
        "brier": (brier, "fair Brier score" if fair else "Brier score"),
        "reliability": ((n_k * (p - observed) ** 2).sum(name) / n, "reliability, 0 at best"),
        "resolution": ((n_k * (observed - rate) ** 2).sum(name) / n, "resolution"),
        "uncertainty": (rate * (1 - rate), "uncertainty, the Brier score of the base rate"),
        "base_rate": (o / n, "observed frequency of the event"),
    }
    # Copies, for dask.compute loses a variable of a Dataset that another is computed from (pydata/xarray#11329).
    values = {key: described(v * 1.0, key, units="1", long_name=text) for key, (v, text) in parts.items()}
    return xr.Dataset(values, attrs={"members": members})


def reliability_diagram(table: xr.Dataset) -> xr.Dataset:
    """Observed frequency of an event by forecast probability, from a table of `event_table`.

    Returns observed_frequency, its standard_error (binomial, for independent cases and a table without weights) and
    cases (…, probability), probability = 0, 1/M … 1; NaN where there are no cases. Raises ValueError for another table.
    """
    p = _probability(table).values
    cases = table["cases"].where(table["cases"] > 0)
    frequency = table["events"] / cases
    error = (frequency * (1 - frequency) / cases).clip(0) ** 0.5  # rounding may end below 0
    result = {
        "observed_frequency": described(frequency, "observed_frequency", units="1", long_name="observed frequency"),
        "standard_error": described(error * 1.0, "standard_error", units="1", long_name="standard error"),
        "cases": table["cases"] * 1.0,
    }
    renamed = xr.Dataset(result, attrs=table.attrs).rename(members_with_event="probability")
    return renamed.assign_coords(probability=("probability", p, {"units": "1", "long_name": "forecast probability"}))


def roc(table: xr.Dataset) -> xr.Dataset:
    """Hit rate against false alarm rate as fewer and fewer members are asked for, from a table of `event_table`.

    Returns hit_rate and false_alarm_rate (…, members_asked), from M + 1 (never warned) down to 0 (always), and area
    (…) under the curve by trapezoids: 1 for perfect discrimination, 1/2 for none. NaN where the event, or its absence,
    was never observed. Raises ValueError for another table.
    """
    _probability(table)
    name = "members_with_event"
    asked = np.arange(table.sizes[name], -1, -1)

    def rate(cases: xr.DataArray) -> xr.DataArray:
        total = cases.sum(name)
        falling = bare(cases).isel({name: slice(None, None, -1)}).drop_vars(name, errors="ignore").cumsum(name)
        warned = falling.pad({name: (1, 0)}, constant_values=0.0) / total.where(total > 0)
        return warned.rename({name: "members_asked"})

    hits, alarms = rate(table["events"]), rate(table["cases"] - table["events"])
    ahead, behind = {"members_asked": slice(1, None)}, {"members_asked": slice(None, -1)}
    width = alarms.isel(ahead) - alarms.isel(behind)
    area = (width * (hits.isel(ahead) + hits.isel(behind)) / 2).sum("members_asked", skipna=False)
    result = {
        "hit_rate": described(hits, "hit_rate", units="1", long_name="hit rate"),
        "false_alarm_rate": described(alarms, "false_alarm_rate", units="1", long_name="false alarm rate"),
        "area": described(area * 1.0, "area", units="1", long_name="area under the ROC curve"),
    }
    return xr.Dataset(result, coords={"members_asked": asked}, attrs=table.attrs)
