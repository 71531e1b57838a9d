"""Density of sea water and steric height as compiled loops over rows of cells: TEOS-10 at 5 ns a cell.

Specific volume is the polynomial of 75 terms in s = (S_A/S_u + 24 g/kg / S_u)^1/2, t = CT/40 degC and z = p/10⁴ dbar
(Roquet et al. 2015, Ocean Modelling 90, 29, table 2), Conservative Temperature that of potential temperature by the
potential enthalpy of the Gibbs function (IOC et al. 2010, appendix A.15). Both equal gsw to rounding.

Arrays are (…, y, x) or (…, lev, y, x); an axis of length 1 stands for all places along it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .sorting import compiled, inlined

_Array = np.ndarray[Any, Any]

_SALT = 0.0248826675584615  # 1 / (40 x 35.16504/35 g/kg)
_SALT_OFFSET = 0.5971840214030754  # 24 g/kg
_CP0 = 3991.86795711963
_WIDTH = 1024  # rows of float64 that stay in the first cache


@inlined
def _conservative(sa: float, pt: float) -> float:
    """Conservative Temperature (degC) of Absolute Salinity (g/kg) and potential temperature (degC)."""
    x2, y = _SALT * sa, pt * 0.025
    x: float = np.sqrt(x2)
    fresh = y * (545.7340497931629 + (-50.91091728474331 - 18.30489878927802 * y) * y)
    fresh = y * (-2735.2785605119625 + y * (2574.2164453821433 + y * (-1536.6644434977543 + fresh)))
    fresh = 61.01362420681071 + y * (168776.46138048015 + fresh)
    square = y * (465.28655623826234 + (-0.6370820302376359 - 10.650848542359153 * y) * y)
    square = y * (-12019.028203559312 + y * (3734.858026725145 + y * (-2046.7671145057618 + square)))
    cube = y * (588.1802812170108 + y * (248.39476522971285 + (-3.871557904936333 - 2.6268019854268356 * y) * y))
    fourth = y * (369.4389437509002 + (-33.83664947895248 - 9.987880382780322 * y) * y)
    fourth = y * (936.3206544460336 + y * (-942.7827304544439 + fourth))
    higher = x * (246.9598888781377 + x * (123.59576582457964 - 48.5891069025409 * x))
    cube = 937.2099110620707 + cube + x * (-1687.914374187449 + higher + fourth)
    return (fresh + x2 * (268.5520265845071 + square + x * cube)) / _CP0


@inlined
def _volume(sa: float, ct: float, p: float) -> float:
    """Specific volume (m3/kg) of Absolute Salinity (g/kg), Conservative Temperature (degC) and sea pressure (dbar)."""
    s: float = np.sqrt(_SALT * sa + _SALT_OFFSET)
    t, z = ct * 0.025, p * 1e-4
    v00 = 5.8086069943e-4 + s * (-2.1092370507e-4 + s * 3.1932457305e-5)
    v00 = 1.0769995862e-3 + s * (-3.1038981976e-4 + s * (6.6928067038e-4 + s * (-8.5047933937e-4 + s * v00)))
    v10 = 3.4532461828e-5 + s * (-1.1959409788e-5 + s * 1.3864594581e-6)
    v10 = -1.5649734675e-5 + s * (3.5009599764e-5 + s * (-4.3592678561e-5 + s * v10))
    v20 = 3.5907822760e-5 + s * (-1.8698584187e-5 + s * 3.8595339244e-6)
    v20 = 2.7762106484e-5 + s * (-3.7435842344e-5 + s * v20)
    v30 = -1.6521159259e-5 + s * (2.4141479483e-5 + s * (-1.4353633048e-5 + s * 2.2863324556e-6))
    v40 = 6.9111322702e-6 + s * (-8.7595873154e-6 + s * 4.3703680598e-6)
    v50 = -8.0539615540e-7 - s * 3.3052758900e-7 + t * 2.0543094268e-7
    surface = v00 + t * (v10 + t * (v20 + t * (v30 + t * (v40 + t * v50))))
    v01 = 3.7470777305e-5 + s * (-1.7322218612e-5 + s * 3.0927427253e-6)
    v01 = -6.0799143809e-5 + s * (2.4262468747e-5 + s * (-3.4792460974e-5 + s * v01))
    v11 = -9.5677088156e-6 + s * (1.1100834765e-5 + s * (-9.8447117844e-6 + s * 2.5909225260e-6))
    v11 = 1.8505765429e-5 + s * v11
    v21 = -1.1716606853e-5 + s * (-2.3678308361e-7 + s * (2.9283346295e-6 - s * 4.8826139200e-7))
    v31 = 7.9279656173e-6 + s * (-3.4558773655e-6 + s * 3.1655306078e-7)
    v41 = -3.4102187482e-6 + s * 1.2956717783e-6 + t * 5.0736766814e-7
    first = v01 + t * (v11 + t * (v21 + t * (v31 + t * v41)))
    v02 = -4.8122251597e-6 + s * (4.9263106998e-6 - s * 1.7811974727e-6)
    v02 = 9.9856169219e-6 + s * (-5.8484432984e-7 + s * v02)
    v12 = -1.1736386731e-6 + s * (-5.5699154557e-6 + s * (5.4620748834e-6 - s * 1.3544185627e-6))
    v22 = 2.1305028740e-6 + s * (3.9137387080e-7 - s * 6.5731104067e-7)
    v32 = -4.6132540037e-7 + s * 7.7618888092e-9 - t * 6.3352916514e-8
    second = v02 + t * (v12 + t * (v22 + t * v32))
    third = -1.1309361437e-6 + s * (3.6310188515e-7 + s * 1.6746303780e-8)
    third += t * (-3.6527006553e-7 - s * 2.7295696237e-7 + t * 2.8695905159e-7)
    fourth = 1.0531153080e-7 - s * 1.1147125423e-7 + t * 3.1454099902e-7
    deep = z * (third + z * (fourth + z * (-1.2647261286e-8 + z * 1.9613503930e-9)))
    return surface + z * (first + z * (second + deep))


@compiled
def _densities(theta: _Array, sp: _Array, slope: _Array, offset: _Array, p: _Array, out: _Array) -> None:
    for j in range(out.size):
        sa = slope[j] * np.float64(sp[j]) + offset[j]
        out[j] = 1.0 / _volume(sa, _conservative(sa, np.float64(theta[j])), p[j])


@compiled
def _add(rho: _Array, rho_ref: _Array, dz: _Array, rho0: float, height: _Array, wet: _Array) -> None:
    """Add a layer to the steric height; rho0 = 0 for the form by specific volume. NaN and empty layers do not count."""
    for j in range(height.size):
        below = rho0 if rho0 > 0 else rho[j]
        rise = (rho_ref[j] - rho[j]) / below * dz[j]
        there = (rise == rise) & (dz[j] > 0)
        height[j] += rise if there else 0.0
        wet[j] += 1.0 if there else 0.0


@compiled
def _columns(
    theta: _Array,
    sp: _Array,
    place: tuple[_Array, _Array, _Array],
    rho_ref: _Array,
    dz: _Array,
    rho0: float,
    out: _Array,
) -> None:
    """Steric height (1, cell) of columns (lev, cell)."""
    slope, offset, p = place
    rho, wet = np.empty(_WIDTH), np.empty(_WIDTH)
    for first in range(0, out.shape[1], _WIDTH):
        end = min(first + _WIDTH, out.shape[1])
        height, count = out[0, first:end], wet[: end - first]
        height[:] = 0.0
        count[:] = 0.0
        for k in range(theta.shape[0]):
            cells = rho[: end - first]
            water = theta[k, first:end], sp[k, first:end]
            _densities(water[0], water[1], slope[k, first:end], offset[k, first:end], p[k, first:end], cells)
            _add(cells, rho_ref[k, first:end], dz[k, first:end], rho0, height, count)
        for j in range(height.size):
            height[j] = height[j] if count[j] > 0 else np.nan


@compiled
def _masses(
    theta: _Array, sp: _Array, place: tuple[_Array, _Array, _Array], rho_ref: _Array, dz: _Array, out: _Array
) -> None:
    """Volume, mass and what the reference has more of it, per area (3, cell), of layers (lev, cell) wet in both."""
    slope, offset, p = place
    rho = np.empty(_WIDTH)
    for first in range(0, out.shape[1], _WIDTH):
        end = min(first + _WIDTH, out.shape[1])
        volume, mass, deficit = out[0, first:end], out[1, first:end], out[2, first:end]
        volume[:] = 0.0
        mass[:] = 0.0
        deficit[:] = 0.0
        for k in range(theta.shape[0]):
            cells = rho[: end - first]
            water = theta[k, first:end], sp[k, first:end]
            _densities(water[0], water[1], slope[k, first:end], offset[k, first:end], p[k, first:end], cells)
            reference, thickness = rho_ref[k, first:end], dz[k, first:end]
            for j in range(volume.size):
                here, there, d = cells[j], reference[j], thickness[j]
                wet = (here == here) & (there == there) & (d > 0)
                volume[j] += d if wet else 0.0
                mass[j] += here * d if wet else 0.0
                deficit[j] += (there - here) * d if wet else 0.0


def _spread(field: _Array, shape: tuple[int, ...], axes: int) -> _Array:
    """The field with its last `axes` axes as in `shape`, the last two joined, contiguous; the others as they are."""
    field = field.reshape((1,) * (len(shape) - field.ndim) + field.shape)
    whole = np.broadcast_to(field, field.shape[: len(shape) - axes] + shape[len(shape) - axes :])
    whole = np.ascontiguousarray(whole, dtype=None if whole.dtype in (np.float32, np.float64) else "f8")
    return whole.reshape(*whole.shape[:-2], -1)


def _at(field: _Array, index: tuple[int, ...]) -> Any:
    return field[tuple(min(i, n - 1) for i, n in zip(index, field.shape, strict=False))]


def _pointwise(function: Callable[..., None], fields: tuple[_Array, ...], *constants: Any) -> _Array:
    """A compiled function of points and constants, over fields (…, y, x) that are broadcast, float64."""
    whole = [np.atleast_2d(f) for f in fields]
    shape = np.broadcast_shapes(*(f.shape for f in whole))
    out = np.empty((*shape[:-2], shape[-2] * shape[-1]))
    rows = [_spread(f, shape, 2) for f in whole]
    for index in np.ndindex(shape[:-2]):
        function(*(_at(f, index) for f in rows), *constants, out[index])
    return out.reshape(np.broadcast_shapes(*(np.shape(f) for f in fields)))


def density(theta: _Array, sp: _Array, slope: _Array, offset: _Array, p: _Array) -> _Array:
    """In-situ density (kg m-3) of potential temperature (degC) and practical salinity, as gsw.rho, float64.

    Absolute Salinity is slope sp + offset (g/kg), `p` sea pressure (dbar); all (…, y, x), broadcast.
    """
    return _pointwise(_densities, (theta, sp, slope, offset, p))


@compiled
def _enthalpies(theta: _Array, sp: _Array, slope: _Array, offset: _Array, p: _Array, kept: bool, out: _Array) -> None:
    for j in range(out.size):
        sa = slope[j] * np.float64(sp[j]) + offset[j]
        ct = np.float64(theta[j]) if kept else _conservative(sa, np.float64(theta[j]))
        out[j] = _CP0 * ct / _volume(sa, ct, p[j])


def enthalpy_density(
    theta: _Array, sp: _Array, slope: _Array, offset: _Array, p: _Array, *, conservative: bool
) -> _Array:
    """Potential enthalpy per volume (J m-3), rho cp0 CT = gsw.rho gsw.enthalpy(SA, CT, 0), float64.

    Arguments as `density`; `theta` is Conservative Temperature already if `conservative`.
    """
    return _pointwise(_enthalpies, (theta, sp, slope, offset, p), conservative)


def _columnwise(
    function: Callable[..., None], columns: tuple[_Array, ...], constants: tuple[float, ...], outputs: int
) -> _Array:
    """Apply function(theta, sp, place, rho_ref, dz, *constants, out) to the columns (…, lev, y, x) of each index."""
    fields = [np.asarray(f).reshape((1,) * (3 - np.ndim(f)) + np.shape(f)) for f in columns]
    shape = np.broadcast_shapes(*(f.shape for f in fields))
    out = np.empty((outputs, *shape[:-3], shape[-2] * shape[-1]))
    x, y, a, b, c, reference, thickness = (_spread(f, shape, 3) for f in fields)
    for index in np.ndindex(shape[:-3]):
        place = _at(a, index), _at(b, index), _at(c, index)
        water, target = (_at(x, index), _at(y, index)), out[(slice(None), *index)]
        function(*water, place, _at(reference, index), _at(thickness, index), *constants, target)
    return out.reshape(outputs, *shape[:-3], *shape[-2:])


def column_masses(
    theta: _Array, sp: _Array, slope: _Array, offset: _Array, p: _Array, rho_ref: _Array, dz: _Array
) -> _Array:
    """Volume (m), mass and deficit of mass against the density `rho_ref` (kg m-2) of columns (…, lev, y, x).

    The deficit is summed as such, for millimetres of sea level are in the seventh digit of a mass. Arguments as
    `steric_height`; layers that lack one of the densities or a thickness do not count. Returns (3, …, y, x), float64, 0
    where no layer counts.
    """
    return _columnwise(_masses, (theta, sp, slope, offset, p, rho_ref, dz), (), 3)


def steric_height(
    theta: _Array,
    sp: _Array,
    slope: _Array,
    offset: _Array,
    p: _Array,
    rho_ref: _Array,
    dz: _Array,
    *,
    rho0: float,
) -> _Array:
    """Steric height (…, y, x) in m of columns (…, lev, y, x) against the density `rho_ref`, in one pass.

    Arguments as `density`; `dz` in m, layers of no thickness or with NaN do not count; NaN where none counts. `rho0` in
    kg m-3 for the Boussinesq form, 0 for that by specific volume.
    """
    height: _Array = _columnwise(_columns, (theta, sp, slope, offset, p, rho_ref, dz), (rho0,), 1)[0]
    return height
