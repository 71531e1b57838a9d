"""Scores as sums and weights: those of any chunks, stores, years or members' batches add up, the quotient comes last.

    totals = merged(score_totals(obs_1, ens_1), score_totals(obs_2, ens_2), …)      sums over `dim`, and their weight
    scores(totals)                                                                  CRPS, RMSE, spread, ratio …

`resampled` draws blocks of records from sums kept by time, so every score has a confidence interval without another
read of the data (`bootstrap`). Sums are float64. Chan et al. 1983 for merging, Künsch 1989, Ann. Stat. 17, 1217 and
Politis & Romano 1992 for moving and circular blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import dask.array as da
import numpy as np
import xarray as xr

from . import kernels
from .conventions import bare, described
from .ranks import matched_weights
from .skill import Dims, paired, reduced, units_of

_Array = np.ndarray[Any, Any]
_Data = TypeVar("_Data", xr.DataArray, xr.Dataset)


def score_totals(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    member_dim: str = "member",
    dim: Dims = None,
    weights: xr.DataArray | None = None,
) -> xr.Dataset:
    """Weighted sums over `dim` from which the scores of an ensemble follow, see `scores`.

    `obs` (…), `ens` (member, …), `dim` and `weights` as for `crps_ensemble`; keep "time" out of `dim` to bootstrap.
    Returns weight and the sums of crps, fair_crps (two members or more), error, absolute_error and squared_error of
    the ensemble mean, and variance (M - 1), all over the same places: those where all members and the observation
    are. float64, lazy for lazy input. Raises ValueError as `crps_ensemble`.
    """
    y, x = paired(obs, ens, member_dim)
    dims, n = reduced(dim, y), x.sizes[member_dim]
    # Terms are 0 where they do not count, so the weights need not be.
    area = xr.DataArray(1.0) if weights is None else bare(matched_weights(y, weights)).fillna(0.0)
    kept = [d for d in y.dims if d not in dims]
    found = zip(kernels.SCORE_TERMS, _summed(y, x, area, dims, member_dim), strict=True)
    sums = {name: (kept, s) for name, s in found if n > 1 or name not in ("fair_crps", "variance")}
    coords = {d: obs.indexes[d] for d in kept if d in obs.indexes}
    attrs = {"members": n, **units_of(obs, ens)}
    return xr.Dataset(sums, coords=coords, attrs=attrs)


def _summed(y: xr.DataArray, x: xr.DataArray, area: xr.DataArray, dims: list[str], member_dim: str) -> Any:
    """`score_sums` of labelled fields (term, …), without the dimensions summed over; lazy fields chunk by chunk."""
    axes = tuple(k for k, d in enumerate(y.dims) if d in dims)
    x, area = bare(x).transpose(member_dim, *y.dims), area.transpose(*(d for d in y.dims if d in area.dims))
    missing = [k for k, d in enumerate(y.dims) if d not in area.dims]

    def block(ens: _Array, obs: _Array, weights: _Array) -> _Array:
        return kernels.score_sums(ens, obs, np.expand_dims(weights, missing), axes)

    summed = tuple(k + 1 for k in axes)
    if not any(f.chunks for f in (y, x, area)):
        return block(x.to_numpy(), y.to_numpy(), area.to_numpy()).squeeze(summed)
    chunks = y.variable.chunksizes or {d: c for d, c in x.variable.chunksizes.items() if d != member_dim}
    fields = [f.chunk({d: chunks.get(d, -1) for d in f.dims}) for f in (x, bare(y), area)]
    names = (member_dim, *y.dims)
    operands = [part for f in fields for part in (f.data, f.dims)]
    blockwise: Any = da.blockwise  # dask has no types
    sizes = {member_dim: len(kernels.SCORE_TERMS), **dict.fromkeys(dims, 1)}
    about = {"dtype": "f8", "meta": np.empty((0,) * len(names)), "adjust_chunks": sizes}
    return blockwise(block, names, *operands, **about).sum(summed)


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    """Raise ValueError unless both are sums of one kind and of one experiment."""
    if set(first.data_vars) != set(other.data_vars) or dict(first.sizes) != dict(other.sizes):
        raise ValueError(
            f"totals must be alike to be merged, got {dict(first.sizes)} of {sorted(map(str, first.data_vars))} and "
            f"{dict(other.sizes)} of {sorted(map(str, other.data_vars))}: reduce over the same dim"
        )
    differing = sorted(k for k in {*first.attrs, *other.attrs} if first.attrs.get(k) != other.attrs.get(k))
    if differing:
        told = [{k: f.attrs.get(k) for k in differing} for f in (first, other)]
        raise ValueError(f"totals must be of one experiment to be merged, got {told[0]} and {told[1]}")


def merged(*stores: _Data) -> _Data:
    """Sum of totals, event tables or histograms of other times, places or stores.

    All must have the same variables, dimensions, coordinates and attrs (members, threshold, units), else ValueError:
    scores of ensembles of different size do not mix.
    """
    if not stores:
        raise ValueError("nothing to merge: give totals, tables or histograms")
    alike = [s if isinstance(s, xr.Dataset) else s.to_dataset(name="_").assign_attrs(s.attrs) for s in stores]
    for other in alike[1:]:
        _check_alike(alike[0], other)
    together: _Data = xr.concat(stores, dim="_store", join="exact", coords="minimal", compat="override")
    return together.sum("_store", keep_attrs=True)


def scores(totals: xr.Dataset) -> xr.Dataset:
    """Scores from their totals: crps, bias, mae and rmse of the mean; fair_crps, spread and ratio for two members.

    `totals` of `score_totals`, merged or resampled; returns the same dimensions, NaN where the weight is 0. The ratio
    is spread over error with the correction for M members (Fortin et al. 2014). Raises ValueError for other datasets.
    """
    if missing := {"weight", "crps", "squared_error"} - set(totals.data_vars) or {"members"} - set(totals.attrs):
        raise ValueError(f"wanted totals of `score_totals`, got a dataset without {sorted(missing)}")
    n = totals.attrs["members"]
    mean = {str(k): v / totals["weight"].where(totals["weight"] > 0) for k, v in totals.data_vars.items()}
    result = {
        "crps": (mean["crps"], "CRPS"),
        "bias": (mean["error"], "mean error of the ensemble mean"),
        "mae": (mean["absolute_error"], "mean absolute error of the ensemble mean"),
        "rmse": (mean["squared_error"] ** 0.5, "root mean square error of the ensemble mean"),
    }
    if "variance" in mean:
        ratio = ((n + 1) / n * mean["variance"] / mean["squared_error"]) ** 0.5
        result["fair_crps"] = (mean["fair_crps"], "fair CRPS")
        result["spread"] = (mean["variance"] ** 0.5, "ensemble spread")
        result["ratio"] = (ratio, "spread over error, corrected for the number of members")
    units = {"units": totals.attrs["units"]} if "units" in totals.attrs else {}
    named = {
        name: described(v * 1.0, name, long_name=text, **({"units": "1"} if name == "ratio" else units))
        for name, (v, text) in result.items()
    }
    return xr.Dataset(named, attrs=totals.attrs)


def block_counts(n: int, *, block: int, samples: int, seed: int = 0) -> _Array:
    """How often each of n records is drawn: (samples, n), from circular blocks of neighbours, n records in each sample.

    Each block starts at a record chosen at random and wraps round the end, so all records are equally likely.
    """
    rng = np.random.default_rng(seed)
    blocks = -(-n // block)
    starts = rng.integers(0, n, (samples, blocks))
    drawn = ((starts[..., None] + np.arange(block)) % n).reshape(samples, -1)[:, :n]
    flat = drawn + n * np.arange(samples)[:, None]
    return np.bincount(flat.ravel(), minlength=samples * n).reshape(samples, n).astype("f8")


def resampled(totals: _Data, *, block: int, dim: str = "time", samples: int = 1000, seed: int = 0) -> _Data:
    """Sums over `dim` of randomly drawn blocks of records, along a new dimension `sample`.

    `totals` (…, time) of anything that adds up; `block`, records drawn together, longer than their memory (see
    `block_length`). The same seed draws the same records, so forecasts of the same times are compared in pairs.
    Raises ValueError for a dimension that is not there, or a block that leaves fewer than two.
    """
    if dim not in totals.dims:
        raise ValueError(f"totals must keep {dim!r} to be resampled along it, got {dict(totals.sizes)}")
    n = totals.sizes[dim]
    if not 1 <= block <= n // 2:
        raise ValueError(f"block must be between 1 and half of the {n} records, got {block}")
    counts = xr.DataArray(block_counts(n, block=block, samples=samples, seed=seed), dims=("sample", dim))

    def drawn(field: xr.DataArray) -> xr.DataArray:
        if dim not in field.dims:
            return field
        plain = field.drop_vars(dim, errors="ignore").astype("f8")
        plain = plain.chunk({dim: -1}) if plain.chunks else plain
        total: xr.DataArray = xr.dot(plain, counts, dim=dim)
        return total.assign_attrs(field.attrs)

    return drawn(totals) if isinstance(totals, xr.DataArray) else totals.map(drawn, keep_attrs=True)


def bootstrap(
    totals: xr.Dataset,
    score: Callable[[xr.Dataset], xr.Dataset] = scores,
    *,
    block: int,
    against: xr.Dataset | None = None,
    level: float = 0.95,
    dim: str = "time",
    samples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Scores of all records with confidence intervals, and the significance of a difference, by block bootstrap.

    `totals` (…, time) of `score_totals(dim=…)` or `event_table(dim=…)`; `score` turns totals into scores, such as
    `scores` or `brier_score`; `against`, totals of a reference forecast of the same records, whose score is taken off;
    the rest as `resampled`. Returns the scores (or differences) along `estimate` = value, low, high, p_value: the
    percentile interval of this `level`, and twice the part of the samples on the other side of 0, at least
    1/samples (only with `against`). Raises ValueError as `resampled`, and for records that differ.
    """
    pair = [totals] if against is None else [totals, against]
    if against is not None:
        xr.align(totals, against, join="exact", copy=False)
    options: dict[str, Any] = {"block": block, "dim": dim, "samples": samples, "seed": seed}
    whole = [score(t.sum(dim, keep_attrs=True)) for t in pair]
    drawn = [score(resampled(t, **options)) for t in pair]
    value, sample = (v[0] if against is None else v[0] - v[1] for v in (whole, drawn))
    if any(f.chunks for f in sample.data_vars.values()):
        sample = sample.chunk({"sample": -1})
    edges = sample.quantile([(1 - level) / 2, (1 + level) / 2], "sample").rename(quantile="estimate")
    parts = [value, *(edges.isel(estimate=k, drop=True) for k in (0, 1))]
    names = ["value", "low", "high"]
    if against is not None:
        above, below = ((s > 0).mean("sample") for s in (sample, -sample))
        p = 2 * above.where(above < below, below)
        parts.append(p.clip(1 / samples, 1.0).where(value.notnull()))
        names.append("p_value")
    result = xr.concat(parts, dim="estimate", coords="minimal", compat="override").assign_coords(estimate=names)
    about = {"level": level, "block": block, "samples": samples, "seed": seed, "method": "circular block bootstrap"}
    result = result.assign_attrs(**totals.attrs, **about)
    return result.map(lambda f: f.assign_attrs(whole[0][f.name].attrs), keep_attrs=True)


def block_length(series: xr.DataArray, *, dim: str = "time") -> int:
    """Records to draw together for the mean of a series, by its autocorrelation (Politis & White 2004, Patton 2009).

    `series` (time), finite and in memory or small: an area mean of a score. Returns 1 for white noise, at most a third
    of the records. Raises ValueError for other dimensions or missing values. Politis & White 2004, Econometr. Rev. 23,
    53; correction in Patton et al. 2009, ibid. 28, 372; for the circular bootstrap.
    """
    if series.dims != (dim,) or not bool(np.isfinite(series).all()):
        raise ValueError(f"a block length needs a finite series along {dim!r} alone, got dimensions {series.dims}")
    x = np.asarray(series, dtype="f8") - float(series.mean())
    n = x.size
    quiet = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    longest = min(int(np.ceil(np.sqrt(n))) + quiet, n - 1)
    r = np.array([x[: n - k] @ x[k:] / n for k in range(longest + 1)])
    if r[0] == 0:
        return 1
    small = abs(r[1:] / r[0]) < 2 * np.sqrt(np.log10(n) / n)
    runs = [k for k in range(small.size - quiet + 1) if small[k : k + quiet].all()]
    m = runs[0] if runs else int(np.flatnonzero(~small).max(initial=0)) + 1
    window = min(2 * max(m, 1), longest)
    k = np.arange(1, window + 1)
    taper = np.clip(2 * (1 - k / window), 0, 1)
    slope, zero = 2 * (taper * k * r[1 : window + 1]).sum(), r[0] + 2 * (taper * r[1 : window + 1]).sum()
    if zero <= 0:
        return 1
    best = (2 * slope**2 / (4 / 3 * zero**2) * n) ** (1 / 3)
    return int(np.clip(np.round(best), 1, max(n // 3, 1)))
