"""Scores of whole maps or vectors: does an ensemble have the right patterns, not only the right values?

With members x_i and observation y as vectors over `norm_dim`, ‖d‖² = sum_c w_c d_c²:

    energy score     ES = 1/M sum_i ‖x_i - y‖ - 1/(2M²) sum_ij ‖x_i - x_j‖, fair: M(M-1)     (Gneiting & Raftery 2007)
    variogram score  VS = sum_ab w_a w_b (|y_a - y_b|^p - 1/M sum_i |x_ia - x_ib|^p)²        (Scheuerer & Hamill 2015)

All distances come from the products of the d_i = x_i - y, one matrix product in float64: members that are centred on
the observation keep their digits. Gneiting & Raftery 2007, J. Am. Stat. Assoc. 102, 359; Scheuerer & Hamill 2015,
Mon. Weather Rev. 143, 1321.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from .conventions import bare, described, matched, weighted_mean
from .skill import Dims, paired, reduced, units_of
from .sorting import compiled

_Array = np.ndarray[Any, Any]

_MOST_PLACES = 30_000  # a variogram score compares all with all: a billion pairs for each member and time


def _energy(x: _Array, y: _Array, w: _Array, *, fair: bool, fractions: bool) -> _Array:
    """Energy score (…) of x (…, place, member), y and w (…, place); places without a value or weight do not count."""
    d = np.swapaxes(x, -1, -2) - y[..., None, :].astype("f8")
    valid = np.isfinite(d).all(-2) & (w > 0)
    w = np.where(valid, w, 0.0)
    if fractions:
        with np.errstate(invalid="ignore"):
            w = w / w.sum(-1, keepdims=True)
    d = np.where(valid[..., None, :], d, 0.0) * np.sqrt(w)[..., None, :]
    products = d @ np.swapaxes(d, -1, -2)
    squares = np.einsum("...ii->...i", products)
    pairs = squares[..., :, None] + squares[..., None, :] - 2 * products
    m = x.shape[-1]
    spread = np.sqrt(np.maximum(pairs, 0)).sum((-2, -1)) / (2 * m * (m - 1) if fair else 2 * m * m)
    return np.where(valid.any(-1), np.sqrt(squares).mean(-1) - spread, np.nan)


@compiled
def _variograms(x: _Array, y: _Array, w: _Array, order: float, out: _Array) -> None:
    """Sums over pairs of places, a < b: x (case, place, member), y and w (case, place), out (case)."""
    for case in range(x.shape[0]):
        total = 0.0
        for a in range(x.shape[1]):
            if w[case, a] == 0:
                continue
            for b in range(a):
                if w[case, b] == 0:
                    continue
                mean = 0.0
                for m in range(x.shape[2]):
                    distance = abs(x[case, a, m] - x[case, b, m])
                    mean += np.sqrt(distance) if order == 0.5 else distance**order
                distance = abs(y[case, a] - y[case, b])
                difference = (np.sqrt(distance) if order == 0.5 else distance**order) - mean / x.shape[2]
                total += w[case, a] * w[case, b] * difference * difference
        out[case] = 2 * total


def _variogram(x: _Array, y: _Array, w: _Array, *, order: float, fractions: bool) -> _Array:
    valid = np.isfinite(x).all(-1) & np.isfinite(y) & (w > 0)
    w = np.where(valid, w, 0.0)
    if fractions:
        with np.errstate(invalid="ignore"):
            w = w / w.sum(-1, keepdims=True)
    places, members = x.shape[-2:]
    out = np.empty(y.shape[:-1])
    cases = (x.reshape(-1, places, members), y.reshape(-1, places), w.reshape(-1, places))
    members_of, observed, weight = (np.ascontiguousarray(f, dtype="f8") for f in cases)
    _variograms(members_of, observed, weight, order, out.reshape(-1))
    return np.where(valid.any(-1), out, np.nan)


def _over_places(
    function: Any,
    obs: xr.DataArray,
    ens: xr.DataArray,
    norm_dim: Iterable[str],
    norm_weights: xr.DataArray | None,
    member_dim: str,
    **options: Any,
) -> xr.DataArray:
    """Apply function(x (…, place, member), y (…, place), w (…, place)) -> (…)."""
    y, x = paired(obs, ens, member_dim)
    places = [norm_dim] if isinstance(norm_dim, str) else list(norm_dim)
    if missing := set(places) - set(y.dims) or ({"no dimension"} if not places else set()):
        raise ValueError(f"norm_dim has {sorted(missing)}, it must name dimensions of the observations {obs.dims}")
    if x.chunks:
        x = x.chunk({d: -1 if d in (*places, member_dim) else "auto" for d in x.dims})
        y = matched(x.isel({member_dim: 0}, drop=True), y)
    w = xr.ones_like(y.isel({d: 0 for d in y.dims if d not in places}, drop=True), dtype="f8")
    if norm_weights is not None:
        if not set(norm_weights.dims) <= set(places):
            raise ValueError(f"norm_weights must have dimensions among {places}, got {norm_weights.dims}")
        w = (w * matched(y, norm_weights).astype("f8")).fillna(0)

    def block(x: _Array, y: _Array, w: _Array) -> _Array:
        n = len(places)
        flat_y = y.reshape(*y.shape[: y.ndim - n], -1)
        flat_x = x.reshape(*x.shape[: x.ndim - n - 1], -1, x.shape[-1])
        result = function(flat_x, flat_y, np.broadcast_to(w.reshape(-1), flat_y.shape), **options)
        return np.asarray(result)

    applied: xr.DataArray = xr.apply_ufunc(
        block,
        bare(x),
        bare(y),
        bare(w),
        input_core_dims=[[*places, member_dim], places, places],
        dask="parallelized",
        output_dtypes=["f8"],
    )
    return applied


def energy_score(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    norm_dim: str | Iterable[str],
    member_dim: str = "member",
    dim: Dims = None,
    fair: bool = False,
    norm_weights: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
) -> xr.DataArray:
    """Energy score of the vectors along `norm_dim`, in the units of the field; the CRPS of vectors, 0 is perfect.

    `obs` (…) and `ens` (member, …) as for `crps_ensemble`; `norm_dim`, the dimensions of a vector, such as ("lat",
    "lon"); `norm_weights` on these, such as areas, taken as fractions of their sum over the places that are there,
    which makes scores of regions comparable, by default 1 each (the Euclidean norm); `dim` to average over and its
    `weights`, by default all dimensions that are left. Places with a missing value do not count, in a case by itself.
    Returns what is left, float64, lazy for lazy input. Raises ValueError as `crps_ensemble`.
    """
    if fair and ens.sizes.get(member_dim, 2) < 2:
        raise ValueError("a fair energy score needs at least two members, got 1: use fair=False")
    options = {"fair": fair, "fractions": norm_weights is not None}
    values = _over_places(_energy, obs, ens, norm_dim, norm_weights, member_dim, **options)
    dims = reduced(dim, values)
    result = weighted_mean(values, weights, dim=dims) if dims else values
    name = "fair energy score" if fair else "energy score"
    return described(result, "energy_score", **units_of(obs, ens), long_name=name, members=ens.sizes[member_dim])


def variogram_score(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    norm_dim: str | Iterable[str],
    order: float = 0.5,
    member_dim: str = "member",
    dim: Dims = None,
    norm_weights: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
) -> xr.DataArray:
    """Variogram score of order p of the vectors along `norm_dim`: sensitive to wrong correlations; 0 is perfect.

    Arguments as `energy_score`; a pair of places has the product of their `norm_weights`, by default 1. Its cost grows
    with the square of the places: coarsen maps first. Raises ValueError as `energy_score`, and for more than 30 000
    places or an order that is not positive.
    """
    places = [norm_dim] if isinstance(norm_dim, str) else list(norm_dim)
    size = int(np.prod([obs.sizes.get(d, 1) for d in places]))
    if size > _MOST_PLACES:
        raise ValueError(f"a variogram score compares {size} places with each other: coarsen() to {_MOST_PLACES} first")
    if order <= 0:
        raise ValueError(f"order must be positive, got {order}")
    options = {"order": float(order), "fractions": norm_weights is not None}
    values = _over_places(_variogram, obs, ens, places, norm_weights, member_dim, **options)
    dims = reduced(dim, values)
    result = weighted_mean(values, weights, dim=dims) if dims else values
    units = {"units": f"({obs.attrs['units']}){2 * order:g}"} if "units" in obs.attrs else {}
    told = {"long_name": f"variogram score of order {order:g}", "members": ens.sizes[member_dim], "order": order}
    return described(result, "variogram_score", **units, **told)
