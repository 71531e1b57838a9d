"""Errors of the ice edge and of ice drift.

With c = [concentration >= 0.15] and true cell areas A, over the cells that both fields know,

    O = sum A max(c_f - c_o, 0),  U = sum A max(c_o - c_f, 0),     too much and too little ice,
    IIEE = O + U = AEE + ME,      AEE = |O - U|,  ME = 2 min(O, U) (Goessling et al. 2016),
    SPS  = sum A (P - c_o)^2,     P = fraction of members with ice (Goessling & Jung 2018),

AEE being the error in extent, ME that of misplaced ice. SPS of one member is its IIEE. With M members of a
reliable forecast, SPS is too large by sum A P (1 - P) / (M - 1), which the fair score takes off (Ferro 2014).
The edge of an ensemble is that of `ens.median("member")`, not of its mean.

Drift w = u + iv is scored as a vector, so no frame matters: <|w_f - w_o|^2>^1/2, and the complex correlation
<w_o'* w_f'> / (<|w_o'|^2> <|w_f'|^2>)^1/2, whose angle is the veering of the forecast, anticlockwise (Kundu 1976).

Goessling et al. 2016, Geophys. Res. Lett. 43, 1642; Goessling & Jung 2018, Q. J. R. Meteorol. Soc. 144, 735;
Ferro 2014, Q. J. R. Meteorol. Soc. 140, 1917; Kundu 1976, J. Phys. Oceanogr. 6, 238.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from .conventions import area_of, bare, cell_area, check_units, described, horizontal_dims, matched, weighted_mean
from .ice import THRESHOLD, area_sum, is_ice
from .skill import Dims, reduced

_EDGE_PARTS = {
    "iiee": "integrated ice-edge error",
    "over": "area with ice in the forecast only",
    "under": "area with ice in the observations only",
    "absolute": "absolute extent error",
    "misplacement": "misplacement error",
}


def _beside(forecast: xr.DataArray, obs: xr.DataArray) -> xr.DataArray:
    """The observations on the coordinates of the forecast, which may have more dimensions."""
    if missing := set(obs.dims) - set(forecast.dims):
        raise ValueError(
            f"the forecast {forecast.dims} lacks the observations' {sorted(map(str, missing))}: select these, or "
            "give the observations first"
        )
    return matched(forecast, obs)


def iiee(
    obs: xr.DataArray, forecast: xr.DataArray, *, area: xr.DataArray | None = None, threshold: float = THRESHOLD
) -> xr.Dataset:
    """Integrated ice-edge error and its parts.

    `obs` (…, lat|y, lon|x) and `forecast` (…, lat|y, lon|x), which may have more dimensions (member, lead), are
    concentrations in 1 or %, NaN on land and in gaps; `area` (lat|y, lon|x) in m2, by default `area_of(obs)`. Returns
    iiee, over, under, absolute and misplacement over the other dimensions of `forecast`, in m2, float64, lazy for
    lazy input. Cells that either lacks are left out of all. Raises ValueError for other units, coordinates that
    differ, a threshold outside (0, 1], unknown areas. Source: Goessling et al. 2016.
    """
    area = cell_area(obs, area)
    theirs = is_ice(forecast, threshold)
    error = theirs - _beside(theirs, is_ice(obs, threshold))
    over, under = area_sum(error.clip(min=0), area), area_sum((-error).clip(min=0), area)
    # None is the input of another: dask.compute loses a variable that another is computed from (pydata/xarray#11329).
    parts = {
        "iiee": over + bare(under),
        "over": over + 0.0,
        "under": under + 0.0,
        "absolute": abs(over - bare(under)),
        "misplacement": 2 * over.where(bare(over < under), bare(under)),
    }
    about = {"units": "m2", "threshold": threshold}
    return xr.Dataset({n: described(x, n, long_name=_EDGE_PARTS[n], **about) for n, x in parts.items()})


def ice_probability(ens: xr.DataArray, *, member_dim: str = "member", threshold: float = THRESHOLD) -> xr.DataArray:
    """Fraction of the members with ice, at each place.

    `ens` (member, …) in 1 or %. Returns (…), float64, dimensionless, lazy for lazy input, NaN where a member is NaN.
    Raises ValueError for other units, without members, for a threshold outside (0, 1].
    """
    if member_dim not in ens.dims:
        raise ValueError(
            f"the ensemble must have the dimension {member_dim!r}, got {ens.dims}: name it with member_dim="
        )
    found = is_ice(ens, threshold).astype("f8").mean(member_dim, skipna=False)
    about = {"long_name": f"probability of ice concentration from {threshold:g}", "threshold": threshold}
    return described(found, "ice_probability", units="1", members=ens.sizes[member_dim], **about)


def sps(
    obs: xr.DataArray,
    ens: xr.DataArray,
    *,
    member_dim: str = "member",
    area: xr.DataArray | None = None,
    threshold: float = THRESHOLD,
    fair: bool = False,
) -> xr.DataArray:
    """Spatial probability score of an ensemble's ice edge, an area; 0 is perfect.

    `obs` (…, lat|y, lon|x) and `ens` (member, …, lat|y, lon|x) in 1 or %, NaN on land and in gaps; `area`
    (lat|y, lon|x) in m2, by default `area_of(obs)`; `fair` for the score of the distribution that M members sample.
    Returns the other dimensions of `ens`, in m2, float64, lazy for lazy input. A cell that the observations or a
    member lack is left out. Raises ValueError as `iiee`, without members, and for fair with one member. Source:
    Goessling & Jung 2018.
    """
    p = ice_probability(ens, member_dim=member_dim, threshold=threshold)
    n = ens.sizes[member_dim]
    if fair and n < 2:
        raise ValueError("a fair SPS needs at least two members, got 1: use fair=False (the IIEE)")
    score = (p - _beside(p, is_ice(obs, threshold))) ** 2
    if fair:
        score = score - bare(p * (1 - p)) / (n - 1)
    total = area_sum(score, cell_area(obs, area))
    about = {"long_name": f"{'fair ' if fair else ''}spatial probability score", "members": n, "threshold": threshold}
    return described(total, "sps", units="m2", **about)


def drift_error(
    obs: tuple[xr.DataArray, xr.DataArray],
    forecast: tuple[xr.DataArray, xr.DataArray],
    *,
    dim: Dims = None,
    area: xr.DataArray | None = None,
    siconc: xr.DataArray | None = None,
    threshold: float = THRESHOLD,
) -> xr.Dataset:
    """Error of ice drift as a vector: rmse, bias of the speed, correlation and veering.

    `obs` and `forecast`, each (siu, siv) in m s-1 along the same axes; the forecast may have more dimensions (member,
    lead), kept; `dim` to average over, by default all those of `obs`; `area` (lat|y, lon|x) in m2, by default
    `area_of(siu)` where a horizontal dimension is averaged over; `siconc` in 1 or %, with dimensions of `obs`, to
    count only where it reaches `threshold`. Returns what is left: rmse and speed_bias in m s-1, correlation in 1,
    veering in degrees anticlockwise; lazy for lazy input. Raises ValueError for other units, coordinates that differ
    and unknown areas. Source: Kundu 1976.
    """
    for component in (*obs, *forecast):
        check_units(component, "m s-1")
    dims = reduced(dim, obs[0])
    if area is None and set(dims) & set(horizontal_dims(obs[0])):
        area = area_of(obs[0])
    f = _complex(*forecast)
    o = _beside(f, _complex(*obs))
    both = bare(f.notnull() & o.notnull())
    if siconc is not None:
        both = both & (_beside(both, is_ice(siconc, threshold)) == 1)

    def mean(x: xr.DataArray) -> xr.DataArray:
        return weighted_mean(x.where(both), area, dim=dims)

    covariance, power = _second_moments(f, o, mean)
    found = {
        "rmse": (mean(abs(f - o) ** 2) ** 0.5, "m s-1", "root mean square error of ice drift"),
        "speed_bias": (mean(abs(f) - abs(o)), "m s-1", "mean error of drift speed"),
        "correlation": (abs(covariance) / power**0.5, "1", "vector correlation of ice drift"),
        "veering": (_angle(covariance), "degree", "mean angle from observed to forecast drift, anticlockwise"),
    }
    return xr.Dataset({n: described(x, n, units=u, long_name=long) for n, (x, u, long) in found.items()})


def _second_moments(
    f: xr.DataArray, o: xr.DataArray, mean: Callable[[xr.DataArray], xr.DataArray]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Covariance <o'* f'> and product of the variances of two complex fields, about their means."""

    def complex_mean(z: xr.DataArray) -> xr.DataArray:
        return mean(z.real) + 1j * bare(mean(z.imag))

    mean_f, mean_o = complex_mean(f), bare(complex_mean(o))
    covariance = complex_mean(f * o.conj()) - bare(mean_f * mean_o.conj())
    variances = [mean(abs(z) ** 2) - bare(abs(m) ** 2) for z, m in ((f, mean_f), (o, mean_o))]
    return covariance, bare(variances[0] * bare(variances[1]))


def _complex(u: xr.DataArray, v: xr.DataArray) -> xr.DataArray:
    return u.astype("f8") + 1j * matched(u, v)


def _angle(z: xr.DataArray) -> xr.DataArray:
    angle: xr.DataArray = xr.apply_ufunc(np.arctan2, z.imag, bare(z.real), dask="allowed")
    return angle * (180 / np.pi)
