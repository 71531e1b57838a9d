"""Maps to Fourier modes and modes to rings of wavenumber: what all horizontal spectra share.

A map is detrended, multiplied with a window and transformed; land is refused, filled or tapered to first. Modes with
|(k, l)| in [(b - 1/2) dk, (b + 1/2) dk) belong to ring b. Maps of float32 are detrended in float64 and transformed in
float32, whose rounding is below that of the map itself; sums over modes are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
from scipy.ndimage import distance_transform_edt

from .sorting import compiled

_Array = np.ndarray[Any, Any]

MAPS_AT_ONCE = 16
"""Maps transformed together, which bounds the temporaries whatever the chunk."""

ORDERS = {None: 0, "constant": 1, "linear": 3}
"""Terms of the polynomial taken off a map by each `detrend`."""

WINDOWS: dict[str | None, Callable[[int], _Array]] = {
    None: np.ones,
    "hann": lambda n: np.sin(np.pi * np.arange(n) / n) ** 2,  # periodic
}
"""Windows along one axis."""


@dataclass(frozen=True)
class Rings:
    """Rings of wavenumber: centres `k`, width `dk` (m-1), modes and mean wavenumber of each.

    `ring` (mode), the ring of each mode of a real transform, -1 beyond the last; `twice` (mode), modes it stands for.
    """

    k: _Array
    dk: float
    n_modes: _Array
    mean_k: _Array
    ring: _Array
    twice: _Array


@lru_cache(maxsize=8)
def rings_of(shape: tuple[int, int], spacing: tuple[float, float], truncate: bool) -> Rings:
    """Rings of maps of this shape (y, x) and spacing (dy, dx) in m, up to the smaller Nyquist or to the corners."""
    (ny, nx), (dy, dx) = shape, spacing
    k = np.hypot(scipy.fft.fftfreq(ny, dy)[:, None], scipy.fft.rfftfreq(nx, dx)).ravel()
    # A real transform stores one of each conjugate pair, except in the column 0 and the Nyquist column.
    both = np.full((ny, nx // 2 + 1), 2.0)
    both[:, 0] = 1
    if nx % 2 == 0:
        both[:, -1] = 1
    twice = both.ravel()
    dk = max(1 / (ny * dy), 1 / (nx * dx))
    ring = np.floor(k / dk + 0.5).astype(int)
    last = int((min(0.5 / dy, 0.5 / dx) if truncate else k.max()) / dk + 0.5)
    ring[ring > last] = -1
    inside = ring >= 0
    n_modes, total_k = (np.bincount(ring[inside], w[inside], last + 1) for w in (twice, twice * k))
    mean_k = total_k / np.maximum(n_modes, 1)
    return Rings(k=np.arange(last + 1) * dk, dk=dk, n_modes=n_modes, mean_k=mean_k, ring=ring, twice=twice)


@compiled
def _add_power(modes: _Array, ring: _Array, twice: _Array, out: _Array) -> None:
    for n in range(modes.shape[0]):
        for m in range(ring.size):
            if ring[m] >= 0:
                a = modes[n, m]
                out[n, ring[m]] += twice[m] * (np.float64(a.real) ** 2 + np.float64(a.imag) ** 2)


@compiled
def _add_products(first: _Array, second: _Array, ring: _Array, twice: _Array, out: _Array) -> None:
    for n in range(first.shape[0]):
        for m in range(ring.size):
            if ring[m] >= 0:
                a, b = first[n, m], second[n, m]
                # The conjugate mode, which is not stored, cancels the imaginary part.
                out[n, ring[m]] += twice[m] * (np.float64(a.real) * b.real + np.float64(a.imag) * b.imag)


def power_sums(modes: _Array, rings: Rings) -> _Array:
    """Sum of |modes|² (map, mode) in each ring, (map, ring), float64."""
    out = np.zeros((len(modes), rings.k.size))
    _add_power(modes.reshape(len(modes), -1), rings.ring, rings.twice, out)
    return out


def product_sums(first: _Array, second: _Array, rings: Rings) -> _Array:
    """Sum of the real part of first times conjugate second (map, mode) in each ring, (map, ring), float64."""
    out = np.zeros((len(first), rings.k.size))
    _add_products(first.reshape(len(first), -1), second.reshape(len(second), -1), rings.ring, rings.twice, out)
    return out


def _refuse(maps: _Array) -> tuple[_Array, _Array]:
    missing = np.isnan(maps).mean()
    if missing:
        raise ValueError(
            f"a spectrum needs maps without NaN but {missing:.1%} of the values are (land?): choose a box of "
            "open ocean, or land='taper' (a window that falls to 0 at the coast), land='mask' (one that ends there) or "
            "land='fill' (ocean mean)"
        )
    return maps, np.ones((1, *maps.shape[1:]))


def _fill(maps: _Array) -> tuple[_Array, _Array]:
    wet = np.isfinite(maps)
    with np.errstate(invalid="ignore"):  # a map without ocean is NaN, and so is its spectrum
        ocean_mean = maps.sum((1, 2), keepdims=True, where=wet) / wet.sum((1, 2), keepdims=True)
    return np.where(np.isnan(maps), ocean_mean, maps), np.ones((1, *maps.shape[1:]))


def _taper(maps: _Array) -> tuple[_Array, _Array]:
    """Window that falls to 0 at the coast over an eighth of the box, by distance to land."""
    wet = ~np.isnan(maps)
    if np.all(wet == wet[0]):
        wet = wet[:1]
    width = max(2, min(maps.shape[1:]) // 8)
    reach = [np.minimum(distance_transform_edt(w) / width, 1) if not w.all() else np.ones(w.shape) for w in wet]
    return np.where(np.isnan(maps), 0.0, maps), np.sin(np.pi / 2 * np.stack(reach)) ** 2


def _mask(maps: _Array) -> tuple[_Array, _Array]:
    """The window ends sharply at the coast, and what it lets through is corrected for its mean square."""
    wet = ~np.isnan(maps)
    if np.all(wet == wet[0]):
        wet = wet[:1]
    return np.where(np.isnan(maps), 0.0, maps), wet.astype("f8")


LAND = {"refuse": _refuse, "fill": _fill, "mask": _mask, "taper": _taper}
"""What to do about NaN: maps (n, y, x) to maps without and the window of open water (n or 1, y, x)."""


def remove_plane(maps: _Array, wet: _Array, order: int) -> _Array:
    """Least-squares constant (`order` 1) or plane (3) over the wet cells taken off maps (n, y, x)."""
    n, ny, nx = maps.shape
    y, x = np.meshgrid(np.linspace(-1, 1, ny), np.linspace(-1, 1, nx), indexing="ij")
    basis = np.stack([np.ones_like(x), y, x])[:order].reshape(order, -1)
    flat, weight = maps.reshape(n, -1), wet.reshape(len(wet), 1, -1)
    normal = (basis * weight) @ basis.T
    right = (flat * weight[:, 0]) @ basis.T
    fit = (np.linalg.pinv(normal, hermitian=True) @ right[..., None])[..., 0]
    return np.asarray((flat - fit @ basis).reshape(maps.shape))


@compiled
def _open_ocean(maps: _Array, order: int, window_y: _Array, window_x: _Array, out: _Array) -> bool:
    """Detrend and window maps (n, y, x) without land in two passes; False if one has land."""
    n, ny, nx = maps.shape
    y, x = np.linspace(-1.0, 1.0, ny), np.linspace(-1.0, 1.0, nx)
    yy, xx = (y * y).sum() * nx, (x * x).sum() * ny
    for k in range(n):
        total, along_y, along_x = 0.0, 0.0, 0.0
        for i in range(ny):
            row, row_sum = maps[k, i], 0.0
            for j in range(nx):
                row_sum += np.float64(row[j])
                along_x += np.float64(row[j]) * x[j]
            total += row_sum
            along_y += row_sum * y[i]
        if not np.isfinite(total):
            return False
        mean = total / (ny * nx) if order > 0 else 0.0
        slope_y = along_y / yy if order > 1 and ny > 1 else 0.0
        slope_x = along_x / xx if order > 1 and nx > 1 else 0.0
        for i in range(ny):
            row, target = maps[k, i], out[k, i]
            start = mean + slope_y * y[i]
            for j in range(nx):
                target[j] = (row[j] - start - slope_x * x[j]) * window_y[i] * window_x[j]
    return True


def transformed(maps: _Array, *, detrend: str | None, window: str | None, land: str) -> tuple[_Array, _Array]:
    """Modes (n, ky, kx) of real transforms of maps (n, y, x), and the mean square of their windows, (n or 1).

    Raises ValueError for NaN with land="refuse".
    """
    ny, nx = maps.shape[1:]
    order, tapers = ORDERS[detrend], (WINDOWS[window](ny), WINDOWS[window](nx))
    if maps.dtype not in (np.float32, np.float64):
        maps = maps.astype("f8")
    ready = np.empty(maps.shape, maps.dtype)
    if _open_ocean(np.ascontiguousarray(maps), order, *tapers, ready):
        return scipy.fft.rfft2(ready, overwrite_x=True), np.array([np.mean(tapers[0] ** 2) * np.mean(tapers[1] ** 2)])
    batch, open_water = LAND[land](maps.astype("f8"))
    if order:
        batch = remove_plane(batch, open_water > 0, order)
    weight = tapers[0][:, None] * tapers[1] * open_water
    return scipy.fft.rfft2(batch * weight), (weight**2).mean((1, 2))
