"""Power by spherical harmonic degree of fields on the whole sphere.

With orthonormal harmonics a(θ, λ) = sum_lm a_lm P̄_lm(cos θ) e^{imλ}, P̄ of mean square 1 over the sphere,

    S_l = sum_m |a_lm|²,      sum_l S_l = mean of a² over the sphere (Parseval).

Coefficients are sums over latitudes with weights that integrate polynomials exactly: Gauss-Legendre on Gaussian
latitudes, Fejér's on evenly spaced ones (cell centres), so degrees up to N - 1 or (N - 1)/2 of N rows are exact for
band-limited fields. P̄_lm comes from the recurrence in degree at fixed order, stable to thousands of degrees; where
sin^m θ underflows the functions are 0 to rounding. Holmes & Featherstone 2002, J. Geod. 76, 279; degree l corresponds
to a wavelength of 2 pi R / (l (l + 1))^1/2. Kinetic energy is that of vorticity and divergence,

    E_l = R² (|ζ_l|² + |δ_l|²) / (2 l (l + 1)),      sum_l E_l = mean of (u² + v²) / 2,

whose coefficients come from u and v by partial integration, so nothing is differenced. Components u and v alone have no
spectrum on a sphere: they jump at the poles. Lambert 1984, Atmos.-Ocean 22, 411; Augier & Lindborg 2013, J. Atmos. Sci.
70, 2293.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.fft
import xarray as xr

from .conventions import bare, check_units, coordinate, described, horizontal_dims, matched
from .coordinates import check_degrees

_Array = np.ndarray[Any, Any]


def latitude_weights(lat: _Array) -> tuple[_Array, int]:
    """Weights (lat), of sum 1, and the largest degree that they resolve exactly; lat in degrees, either order.

    Raises ValueError for latitudes that are neither Gaussian nor the centres of even cells from pole to pole.
    """
    n = lat.size
    x = np.sin(np.deg2rad(lat))
    nodes, weights = np.polynomial.legendre.leggauss(n)
    order = np.argsort(x)
    if np.allclose(x[order], nodes, atol=1e-5):
        out = np.empty(n)
        out[order] = weights / 2
        return out, n - 1
    theta = np.pi * (np.arange(n) + 0.5) / n
    if np.allclose(np.sort(90 - lat), np.rad2deg(theta), atol=1e-3 * 180 / n):
        j = np.arange(1, n // 2 + 1)
        weights = (1 - 2 * (np.cos(2 * j * theta[:, None]) / (4 * j**2 - 1)).sum(1)) / n
        return weights, (n - 1) // 2
    raise ValueError(
        f"spherical harmonics need Gaussian latitudes or centres of even cells from pole to pole, got {n} from "
        f"{lat.min():g} to {lat.max():g}: interpolate to a regular global grid"
    )


def legendre(lat: _Array, degree: int) -> Iterator[_Array]:
    """P̄_lm for the orders m = 0 … `degree`, each (l = m … degree, lat), of mean square 1 with its factor e^{imλ}."""
    x, s = np.sin(np.deg2rad(lat)), np.cos(np.deg2rad(lat))
    first = np.ones_like(x)
    for m in range(degree + 1):
        if m:
            first = first * s * np.sqrt((2 * m + 1) / (2 * m))
        rows = np.empty((degree + 1 - m, x.size))
        rows[0] = first
        if degree > m:
            rows[1] = np.sqrt(2 * m + 3) * x * first
        for n in range(m + 2, degree + 1):
            a = np.sqrt((2 * n + 1) * (2 * n - 1) / ((n - m) * (n + m)))
            b = np.sqrt((2 * n + 1) * (n + m - 1) * (n - m - 1) / ((2 * n - 3) * (n - m) * (n + m)))
            rows[n - m] = a * x * rows[n - m - 1] - b * rows[n - m - 2]
        yield rows


def _degrees(maps: _Array, *, lat: _Array, degree: int) -> _Array:
    """Power by degree (…, degree) of maps (…, lat, lon)."""
    weights, _ = latitude_weights(lat)
    nlon = maps.shape[-1]
    flat = maps.reshape(-1, *maps.shape[-2:]).astype("f8")
    if np.isnan(flat).any():
        raise ValueError("spherical harmonics need maps without NaN: fill land first, or use structure_function")
    modes = np.moveaxis(scipy.fft.rfft(flat) / nlon, -1, 0) * weights  # (m, map, lat)
    out = np.zeros((len(flat), degree + 1))
    for m, rows in enumerate(legendre(lat, degree)):
        power = np.abs(modes[m] @ rows.T) ** 2
        out[:, m:] += power if m == 0 else 2 * power  # order -m has as much
    return out.reshape(*maps.shape[:-2], -1)


def _kinetic(uo: _Array, vo: _Array, *, lat: _Array, degree: int) -> _Array:
    """Rotational, divergent and all kinetic energy by degree (…, 3, degree) of maps (…, lat, lon)."""
    weights, _ = latitude_weights(lat)
    nlon, shape = uo.shape[-1], np.broadcast_shapes(uo.shape, vo.shape)
    flat = [np.broadcast_to(x, shape).reshape(-1, *shape[-2:]).astype("f8") for x in (uo, vo)]
    if any(np.isnan(x).any() for x in flat):
        raise ValueError("spherical harmonics need velocities without NaN: fillna(0) on land, where nothing flows")
    over = weights / np.cos(np.deg2rad(lat))
    u, v = (np.moveaxis(scipy.fft.rfft(x) / nlon, -1, 0) * over for x in flat)  # (m, map, lat)
    out = np.zeros((len(flat[0]), 3, degree + 1))
    for m, rows in zip(range(degree + 1), legendre(lat, degree + 1), strict=False):
        n = np.arange(m, degree + 2)
        step = np.sqrt((n**2 - m**2) / (4 * n**2 - 1.0))  # couples the degrees n and n - 1
        below = np.concatenate([np.zeros((1, lat.size)), rows[:-2]])
        n, here, above = n[:-1], rows[:-1], rows[1:]
        slope = ((n + 1) * step[:-1])[:, None] * below - (n * step[1:])[:, None] * above  # cos² d/dsin of P̄
        vorticity = 1j * m * (v[m] @ here.T) + u[m] @ slope.T
        divergence = 1j * m * (u[m] @ here.T) - v[m] @ slope.T
        share = np.where(n > 0, (1 if m == 0 else 2) / np.maximum(2 * n * (n + 1), 1), 0.0)
        for k, part in enumerate((vorticity, divergence)):
            out[:, k, m:] += share * np.abs(part) ** 2
    out[:, 2] = out[:, 0] + out[:, 1]
    return out.reshape(*shape[:-2], 3, -1)


def _global_grid(field: xr.DataArray, degree: int | None) -> tuple[_Array, int]:
    """Latitudes of a global grid, and the degree asked for or the last exact one; ValueError for other grids."""
    lat, lon = coordinate(field, "lat", "latitude"), coordinate(field, "lon", "longitude")
    if lat is None or lon is None or lat.ndim != 1 or lon.ndim != 1:
        raise ValueError("spherical harmonics need 1-D lat and lon: interpolate to a regular global grid")
    check_degrees(lat, lon)
    steps = np.diff(np.unwrap(np.asarray(lon, dtype="f8"), period=360))
    if not np.allclose(steps, 360 / lon.size, atol=1e-3):
        raise ValueError(f"longitudes must go round the globe evenly, got {lon.size} in steps of {steps.min():g}")
    latitudes = np.asarray(lat, dtype="f8")
    _, exact = latitude_weights(latitudes)
    exact = min(exact, (lon.size - 1) // 2)
    degree = exact if degree is None else degree
    if not 0 <= degree <= exact:
        raise ValueError(f"degree must be from 0 to {exact} on this grid, got {degree}")
    return latitudes, degree


def spherical_spectrum(field: xr.DataArray, *, degree: int | None = None) -> xr.DataArray:
    """Power of global maps by spherical harmonic degree; the sum over degrees is the mean square.

    `field` (…, lat, lon) with 1-D lat (Gaussian, or centres of even cells from pole to pole) and lon round the globe,
    without NaN; `degree`, the largest, by default the last exact one. Returns (…, degree), float64, in units squared,
    lazy for lazy input. Raises ValueError for other grids, a degree beyond the exact one, and, when computed, for NaN.
    """
    rows, columns = horizontal_dims(field)
    latitudes, degree = _global_grid(field, degree)
    whole = field.chunk({rows: -1, columns: -1}) if field.chunks else field
    result: xr.DataArray = xr.apply_ufunc(
        _degrees,
        whole,
        input_core_dims=[[rows, columns]],
        output_core_dims=[["degree"]],
        kwargs={"lat": latitudes, "degree": degree},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"degree": degree + 1}},
    )
    about = {"units": f"({field.attrs.get('units', '?')})2", "long_name": f"power of {field.name} by degree"}
    return described(result.assign_coords(degree=np.arange(degree + 1)), "spherical_spectrum", **about)


_PARTS = {
    "rotational": "rotational kinetic energy",
    "divergent": "divergent kinetic energy",
    "energy": "kinetic energy",
}


def spherical_energy_spectrum(uo: xr.DataArray, vo: xr.DataArray, *, degree: int | None = None) -> xr.Dataset:
    """Kinetic energy of the flow round the globe by spherical harmonic degree, and its two parts.

    `uo`, `vo` (…, lat, lon), eastward and northward in m s-1 on the same cells, 1-D lat (Gaussian, or centres of even
    cells from pole to pole) and lon round the globe, without NaN (`fillna(0)` on land, where nothing flows); `degree`,
    the largest, by default the last exact one. Returns rotational, divergent and energy (…, degree) in m2 s-2, whose
    sum over degrees is the area mean of (u² + v²) / 2 for a flow that the degrees resolve, float64, lazy for lazy
    input. Raises ValueError as `spherical_spectrum`, for other units and other cells. Definition: the module.
    """
    for velocity in (uo, vo):
        check_units(velocity, "m s-1")
    dims = list(horizontal_dims(uo))
    latitudes, degree = _global_grid(uo, degree)
    fields = [bare(f).chunk(dict.fromkeys(dims, -1)) if f.chunks else bare(f) for f in (uo, matched(uo, vo))]
    found: xr.DataArray = xr.apply_ufunc(
        _kinetic,
        *fields,
        input_core_dims=[dims] * 2,
        output_core_dims=[["_part", "degree"]],
        kwargs={"lat": latitudes, "degree": degree},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_part": 3, "degree": degree + 1}},
    )
    kept = {name: c for name, c in uo.coords.items() if not set(c.dims) & set(dims)}
    found = found.assign_coords(kept).assign_coords(degree=np.arange(degree + 1))
    parts = {
        name: described(found.isel(_part=k), name, units="m2 s-2", long_name=f"{text} by degree")
        for k, (name, text) in enumerate(_PARTS.items())
    }
    return xr.Dataset(parts)
