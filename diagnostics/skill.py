"""How good a forecast is, and how honest its spread.

With M members x_i, observation y and <> the (weighted) mean over `dim`:

    CRPS    = <1/M sum|x_i - y| - c/2 sum|x_i - x_j|>,  c = 1/M^2, or 1/(M(M-1)) if fair    (Ferro 2014)
              c = (1 - (1-alpha)/M) / (M(M-1)) if almost fair                          (Lang et al. 2024)
    spread  = <var_i x>^1/2 (M-1 in the variance),   error = <(mean_i x - y)^2>^1/2
    ratio   = ((M+1)/M)^1/2 spread / error = 1 for a reliable ensemble                   (Fortin et al. 2014)
    rank    = number of members below y, flat if y is like a member                         (Hamill 2001)
    RMSE    = <(x - y)^2>^1/2,   bias = <x - y>,   MAE = <|x - y|>,   variance ratio = <var_t x> / <var_t y>

Variances are averaged before roots and quotients. An ensemble's plain CRPS is (1 + 1/M) times the CRPS of its
distribution: compare ensembles of different size by the fair one only. Observations come first, as in
xskillscore; NaN (land, gaps) in either is left out of every mean, in both alike. Ferro 2014, QJRMS 140, 1917;
Fortin et al. 2014, J. Hydrometeorol. 15, 1708; Hamill 2001, Mon. Weather Rev. 129, 550.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from . import kernels
from .conventions import bare, described, horizontal_dims, matched, same_units, weighted_mean
from .coordinates import check_field

_Array = np.ndarray[Any, Any]
Dims = str | Iterable[str] | None


def reduced(dim: Dims, field: xr.DataArray) -> list[str]:
    """Dimensions to average over: all those of `field` for None."""
    check_field(field, "the observations")
    dims = [str(d) for d in field.dims] if dim is None else [dim] if isinstance(dim, str) else list(dim)
    if missing := set(dims) - set(field.dims):
        raise ValueError(f"dim has {sorted(missing)}, which the observations {field.dims} lack: choose among these")
    return dims


def paired(obs: xr.DataArray, ens: xr.DataArray, member_dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Observations and members on the same places, all members of a place in one chunk."""
    check_field(obs, "the observations")
    check_field(ens, "the ensemble")
    if member_dim not in ens.dims or member_dim in obs.dims:
        raise ValueError(
            f"the ensemble must have and the observations must not have the dimension {member_dim!r}: got "
            f"{ens.dims} and {obs.dims}; name it with member_dim="
        )
    if set(obs.dims) != set(ens.dims) - {member_dim}:
        raise ValueError(
            f"observations {obs.dims} must have the ensemble's dimensions {ens.dims} without {member_dim!r}: "
            "select or broadcast first"
        )
    same_units(obs, ens)
    # The kernels know two types; half precision and integers are widened.
    obs, ens = (f if f.dtype in (np.float32, np.float64) else f.astype("f8") for f in (obs, ens))
    if len(ens.variable.chunksizes.get(member_dim, ())) > 1:
        # "auto" splits the other dimensions where joining the members would make huge chunks.
        ens = ens.chunk({d: -1 if d == member_dim else "auto" for d in ens.dims})
    places = ens.isel({member_dim: 0}, drop=True)
    return matched(places, obs).transpose(*places.dims), ens


def over_members(
    function: Callable[..., Any],
    obs: xr.DataArray,
    ens: xr.DataArray,
    member_dim: str,
    *more: xr.DataArray,
    dtype: Any,
    outputs: int = 1,
) -> list[xr.DataArray]:
    """Apply function(members (member, point), *more, obs (point)) -> one or more (point) at each place, block by block.

    `obs` (…) and `ens` (member, …) from `paired`; `more` is like `ens`. Returns `outputs` fields like `obs`. Unlike
    xr.apply_ufunc it keeps the members first, as they lie in memory, and copies no block.
    """
    fields = [bare(f).transpose(member_dim, *obs.dims) for f in (ens, *more)]

    def block(y: _Array, *members: _Array) -> _Array:
        out = function(*(x.reshape(len(x), -1) for x in members), y.reshape(-1))
        if isinstance(out, tuple):
            return np.stack([o.reshape(y.shape) for o in out])
        return np.asarray(out).reshape(outputs, *y.shape)

    if not any(f.chunks for f in (obs, *fields)):
        data: Any = block(obs.to_numpy(), *(f.to_numpy() for f in fields))
    else:
        chunks = obs.variable.chunksizes
        fields = [f if f.chunks else f.chunk({member_dim: -1, **chunks}) for f in fields]
        axes = tuple(range(obs.ndim + 1))
        operands = [part for f in fields for part in (f.data, axes)]
        blockwise: Any = da.blockwise  # dask has no types
        about = {"dtype": dtype, "meta": np.empty((0,) * len(axes), dtype), "adjust_chunks": {0: outputs}}
        data = blockwise(block, axes, bare(obs).chunk(chunks).data, axes[1:], *operands, **about)
    return [bare(obs).copy(data=data[k]) for k in range(outputs)]


def crps_ensemble(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    member_dim: str = "member",
    dim: Dims = None,
    fair: bool = False,
    alpha: float | None = None,
    weights: xr.DataArray | None = None,
    member_weights: xr.DataArray | None = None,
    threshold: tuple[float, float] | None = None,
    skipna: bool = False,
) -> xr.DataArray:
    """Continuous ranked probability score of an ensemble, in the units of the field; 0 is perfect.

    `obs` (…) and `ens` (member, …) with the same other dimensions and units; `dim` to average over, all by default,
    `()` for a map; `fair` for the score of the distribution that M members sample; `alpha`, from 0 to 1, for the almost
    fair score that networks are trained with (Lang et al. 2024, arXiv:2412.15832): alpha times the fair plus 1 - alpha
    times the plain one, 0.95 there; `weights` (…) as an area; `member_weights` (member) or (member, …), importance
    weights >= 0 of any sum, 0 for a member that is not there; `threshold` (low, high) to judge only what lies between,
    as (20, inf) for heat (Gneiting & Ranjan 2011, J. Bus. Econ. Stat. 29, 411); `skipna` to score each place with the
    members that are there, else a missing member leaves the place out. Returns the dimensions that are left; lazy for
    lazy input, which may be chunked at will. Raises ValueError for dimensions, coordinates or units that differ, for
    negative weights, an empty threshold, an alpha beyond 0 to 1 or beside fair=True, and for (almost) fair with one
    member.
    """
    y, x = paired(obs, ens, member_dim)
    dims = reduced(dim, y)
    share = _fairness(fair, alpha)
    if share and x.sizes[member_dim] < 2:
        raise ValueError("a fair CRPS needs at least two members, got 1: use fair=False (absolute error)")
    if threshold is not None:
        if not threshold[0] < threshold[1]:
            raise ValueError(f"threshold must be (low, high) with low < high, got {threshold}")
        # Scoring clipped values is weighting the integral over thresholds with 1 inside and 0 outside.
        y, x = (f.clip(*threshold).astype(f.dtype) for f in (y, x))
    values = _crps_map(y, x, member_dim, member_weights, fair=share, skipna=skipna).assign_coords(obs.coords)
    result = weighted_mean(values, weights, dim=dims) if dims else values
    name = ("threshold-weighted " if threshold else "") + (
        "CRPS" if not share else "fair CRPS" if share == 1 else "almost fair CRPS"
    )
    told: dict[str, Any] = {"members": x.sizes[member_dim]} | ({"threshold": list(threshold)} if threshold else {})
    told |= {} if alpha is None else {"alpha": alpha}
    return described(result, "crps", **units_of(obs, ens), long_name=name, **told)


def _fairness(fair: bool, alpha: float | None) -> float:
    """Share of the fair score: 0, 1, or alpha."""
    if alpha is None:
        return float(fair)
    if fair or not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 (plain) to 1 (fair) and without fair=True, got {alpha} and fair={fair}")
    return float(alpha)


def _crps_map(
    y: xr.DataArray, x: xr.DataArray, member_dim: str, member_weights: xr.DataArray | None, *, fair: float, skipna: bool
) -> xr.DataArray:
    if member_weights is None:

        def score(members: _Array, observed: _Array) -> _Array:
            return kernels.crps(members, observed, fair=fair, skipna=skipna)

        return over_members(score, y, x, member_dim, dtype=x.dtype)[0]
    if member_dim not in member_weights.dims or not set(member_weights.dims) <= set(x.dims):
        raise ValueError(
            f"member_weights must have {member_dim!r} and no dimension that the ensemble {x.dims} lacks, got "
            f"{member_weights.dims}"
        )
    if member_weights.chunks is None and bool((member_weights < 0).any()):
        raise ValueError("member_weights must be >= 0, got negative ones: normalise or mask them")
    shares = xr.zeros_like(x, dtype="f8") + matched(x, member_weights)
    if skipna:
        shares = shares.where(x.notnull(), 0.0)

    def weighted(members: _Array, share: _Array, observed: _Array) -> _Array:
        return kernels.crps_weighted(members, share, observed, fair=fair)

    return over_members(weighted, y, x, member_dim, shares, dtype=x.dtype)[0]


def units_of(*fields: xr.DataArray) -> dict[str, Any]:
    """Attrs with the units of the first field that states some."""
    return next(({"units": f.attrs["units"]} for f in fields if "units" in f.attrs), {})


def spread_error(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    member_dim: str = "member",
    dim: Dims = None,
    weights: xr.DataArray | None = None,
) -> xr.Dataset:
    """Spread of the ensemble, error of its mean, and their ratio corrected for the number of members.

    Arguments as `crps_ensemble`. Returns spread, error (units of the field) and ratio (1 for a reliable
    ensemble, less if overconfident) over the dimensions that are left. Observation error is part of `error`:
    add its variance to spread squared for real observations. Raises ValueError as `crps_ensemble`, and for
    one member.
    """
    y, x = paired(obs, ens, member_dim)
    dims = reduced(dim, y)
    n = x.sizes[member_dim]
    if n < 2:
        raise ValueError(f"a spread needs at least two members along {member_dim!r}, got {n}")
    x = x.astype("f8")
    mean = x.mean(member_dim, skipna=False)
    squared_error = (mean - y) ** 2
    # One mask for both, or spread and error would be of different places.
    variance = (((x - mean) ** 2).sum(member_dim, skipna=False) / (n - 1)).where(squared_error.notnull())
    variance, squared_error = (weighted_mean(v, weights, dim=dims) for v in (variance, squared_error))
    # Not from spread and error: dask.compute loses a variable of a Dataset that another is computed from
    # (pydata/xarray#11329).
    ratio = ((n + 1) / n * variance / squared_error) ** 0.5
    about = {"units": "1", "long_name": "spread over error, corrected for the number of members"}
    result = {
        "spread": described(variance**0.5, "spread", **units_of(obs, ens), long_name="ensemble spread"),
        "error": described(squared_error**0.5, "error", **units_of(obs, ens), long_name="error of the ensemble mean"),
        "ratio": described(ratio, "ratio", **about),
    }
    return xr.Dataset(result, attrs={"members": n})


def rmse(
    obs: xr.DataArray, forecast: xr.DataArray, *, dim: Dims = None, weights: xr.DataArray | None = None
) -> xr.DataArray:
    """Root mean square difference, the root taken after all averaging.

    `obs` (…) and `forecast` (…), which may have more dimensions (member, lead), kept; `dim` to average over,
    by default all those of `obs`; `weights` as an area. Returns what is left, in the units of the field.
    """
    squares = difference(obs, forecast) ** 2
    result = weighted_mean(squares, weights, dim=reduced(dim, obs)) ** 0.5
    return described(result, "rmse", **units_of(obs, forecast), long_name="root mean square error")


def bias(
    obs: xr.DataArray, forecast: xr.DataArray, *, dim: Dims = None, weights: xr.DataArray | None = None
) -> xr.DataArray:
    """Mean of forecast minus observation; arguments and result as `rmse`."""
    result = weighted_mean(difference(obs, forecast), weights, dim=reduced(dim, obs))
    return described(result, "bias", **units_of(obs, forecast), long_name="mean error")


def mae(
    obs: xr.DataArray, forecast: xr.DataArray, *, dim: Dims = None, weights: xr.DataArray | None = None
) -> xr.DataArray:
    """Mean absolute difference; arguments and result as `rmse`."""
    result = weighted_mean(abs(difference(obs, forecast)), weights, dim=reduced(dim, obs))
    return described(result, "mae", **units_of(obs, forecast), long_name="mean absolute error")


def difference(obs: xr.DataArray, forecast: xr.DataArray) -> xr.DataArray:
    """Forecast minus observation, float64, at common coordinates; ValueError for others or other units."""
    check_field(obs, "the observations")
    check_field(forecast, "the forecast")
    if missing := set(obs.dims) - set(forecast.dims):
        raise ValueError(f"the forecast {forecast.dims} lacks the observations' {sorted(map(str, missing))}")
    same_units(obs, forecast)
    return forecast.astype("f8") - matched(forecast, obs)


def skill_score(score: xr.DataArray, reference: xr.DataArray, *, perfect: float = 0.0) -> xr.DataArray:
    """Improvement over a reference forecast, (reference - score) / (reference - perfect): 1 perfect, 0 as good.

    `score` and `reference` (…) of one kind and over the same cases, already averaged: a mean of skill scores is none.
    Returns (…), dimensionless, lazy for lazy input, NaN where the reference is perfect. Raises ValueError for units or
    coordinates that differ. Source: Wilks 2019, Statistical Methods in the Atmospheric Sciences, ch. 9.
    """
    same_units(score, reference)
    theirs = matched(score, reference).astype("f8")
    result = (theirs - score) / (theirs - perfect).where(theirs != perfect)
    name = f"skill of {score.attrs.get('long_name', score.name or 'the score')}"
    return described(result, "skill", units="1", long_name=name)


def variance_ratio(
    model: xr.DataArray,
    reference: xr.DataArray,
    *,
    dim: str = "time",
    over: Dims = None,
    weights: xr.DataArray | None = None,
) -> xr.DataArray:
    """Variance along `dim` of a model over that of a reference: below 1 the model is too quiet.

    `model` (…, time, …), `reference` without the model's member; `over`, dimensions over which both variances
    are averaged before the quotient, by default the horizontal ones; `weights` as an area. Returns what is
    left, one value per member. The times may differ, the places not.

    Traps: remove the climatology and trend first (an annual cycle of amplitude 4 in both turns a ratio of
    0.25 into 0.92); never use an ensemble mean, whose variance falls to 1/M; a mean of ratios of n samples is
    too large by (n - 1)/(n - 3), which is why variances are averaged first. Raises ValueError for dimensions,
    coordinates or units that differ.
    """
    for field in (model, reference):
        if dim not in field.dims or field.sizes[dim] < 2:
            raise ValueError(f"variances need two values along {dim!r}, got dimensions {dict(field.sizes)}")
    if missing := set(reference.dims) - set(model.dims):
        raise ValueError(f"the model {model.dims} lacks the reference's {sorted(map(str, missing))}")
    same_units(model, reference)
    ours, theirs = (f.astype("f8").var(dim, ddof=1, skipna=False) for f in (model, reference))
    theirs = matched(ours, theirs)
    # Only places that both have, or the two means would be of different seas.
    ours, theirs = ours.where(theirs.notnull()), theirs.where(ours.notnull())
    dims = list(horizontal_dims(ours)) if over is None else reduced(over, ours)
    ratio = weighted_mean(ours, weights, dim=dims) / weighted_mean(theirs, weights, dim=dims)
    return described(ratio, "variance_ratio", units="1", long_name=f"ratio of variances along {dim}")
