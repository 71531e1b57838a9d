"""How far a forecast follows the observations: R², and correlation of anomalies, centred or not.

With <> the weighted mean over `dim` of the places where both are there, and anomalies x', y' from one climatology:

    R²   = 1 - <(x - y)²> / <(y - <y>)²>                                          (Nash & Sutcliffe 1970)
    ACC  = <x' y'> / (<x'²> <y'²>)^1/2,   centred: x' - <x'>, y' - <y'> in their places   (Wilks 2011, ch. 8)

R² is about the variance of the observation, not symmetric, and negative if the mean of the observations is better.
Sums are float64 and means are taken off first, so kelvin and a small signal lose no digits.
"""

from __future__ import annotations

import xarray as xr

from .conventions import bare, described, matched, weighted_mean
from .skill import Dims, difference, reduced


def r2(
    obs: xr.DataArray, forecast: xr.DataArray, *, dim: Dims = None, weights: xr.DataArray | None = None
) -> xr.DataArray:
    """Part of the observed variance that the forecast explains, 1 at best.

    `obs` (…) and `forecast` (…), which may have more dimensions (member, lead), kept; `dim` to average over, by
    default all those of `obs`; `weights` (…) as an area. Returns what is left, dimensionless, lazy for lazy input.
    Raises ValueError for coordinates or units that differ.
    """
    dims = reduced(dim, obs)
    error = difference(obs, forecast)
    y = matched(forecast, obs).astype("f8").where(error.notnull())
    variance = weighted_mean((y - weighted_mean(y, weights, dim=dims)) ** 2, weights, dim=dims)
    result = 1 - weighted_mean(error**2, weights, dim=dims) / variance.where(variance > 0)
    return described(result, "r2", units="1", long_name="coefficient of determination")


def anomaly_correlation(
    obs: xr.DataArray,
    forecast: xr.DataArray,
    *,
    climatology: xr.DataArray | None = None,
    dim: Dims = None,
    weights: xr.DataArray | None = None,
    centred: bool = True,
) -> xr.DataArray:
    """Correlation over `dim` of the anomalies of a forecast with those observed, -1 to 1.

    Arguments as `r2`; `climatology`, on a subset of the dimensions of `obs`, is taken off both (one whose mean was
    computed from the observations alone favours none); `centred=False` leaves the mean anomalies in, which rewards
    a right trend or bias. Without climatology and centred it is the pattern or Pearson correlation. Returns what is
    left, NaN where either does not vary. Raises ValueError as `r2`, and if uncentred without a climatology.
    """
    if climatology is None and not centred:
        raise ValueError("an uncentred correlation is about a climatology: give climatology=, or use centred=True")
    dims = reduced(dim, obs)
    error = difference(obs, forecast)
    y = matched(forecast, obs).astype("f8").where(error.notnull())
    x = (bare(forecast).astype("f8")).where(error.notnull())
    if climatology is not None:
        if extra := set(climatology.dims) - set(obs.dims):
            raise ValueError(f"the climatology has {sorted(map(str, extra))}, which the observations {obs.dims} lack")
        x, y = (f - matched(forecast, climatology) for f in (x, y))
    if centred:
        x, y = (f - weighted_mean(f, weights, dim=dims) for f in (x, y))
    covariance, ours, theirs = (weighted_mean(f, weights, dim=dims) for f in (x * y, x * x, y * y))
    product = (ours * theirs) ** 0.5
    result = covariance / product.where(product > 0)
    name = "centred anomaly correlation" if centred else "anomaly correlation"
    return described(result, "acc", units="1", long_name=name)
