"""Structure functions: how much a field differs over a distance, on any domain, whatever its coasts.

    S(r) = < (a(x + s) - a(x))² >  over all pairs of wet cells with |s| in the bin of r  =  2 (variance - covariance(r))

Only pairs of water count, so nothing is filled, tapered or detrended. All pairs of a map come from four correlations
by FFT: with the mask m, sums of m m' (a² - 2 a a' + a'²) and of m m'. A spectrum k^-n with 1 < n < 3 has S ~ r^(n-1);
steeper ones give r². Babiano et al. 1985, J. Atmos. Sci. 42, 941.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
import xarray as xr

from .conventions import described, horizontal_dims
from .spectra import grid_spacing

_Array = np.ndarray[Any, Any]


def _bins(shape: tuple[int, int], spacing: tuple[float, float], edges: _Array, size: tuple[int, int]) -> _Array:
    """Bin of each lag of a transform of this size, -1 outside or of the second half of the plane."""
    (ny, nx), (dy, dx) = shape, spacing
    lag_y = np.arange(size[0])
    lag_y = np.where(lag_y < ny, lag_y, lag_y - size[0])
    lag_x = np.arange(size[1])
    possible = (np.abs(lag_y)[:, None] < ny) & (lag_x < nx)  # s and -s are the same pairs
    possible &= ~((lag_x == 0) & (lag_y[:, None] <= 0))
    distance = np.hypot(lag_y[:, None] * dy, lag_x * dx)
    index = np.searchsorted(edges, distance, side="right") - 1
    return np.where(possible & (index >= 0) & (index < edges.size - 1), index, -1)


def _pairs(maps: _Array, *, spacing: tuple[float, float], edges: _Array) -> _Array:
    """Sum of squared differences and number of pairs (…, 2, distance) of maps (…, y, x)."""
    ny, nx = maps.shape[-2:]
    size = (scipy.fft.next_fast_len(2 * ny - 1), scipy.fft.next_fast_len(2 * nx - 1, real=True))
    index = _bins((ny, nx), spacing, edges, size)
    inside = index >= 0
    flat = maps.reshape(-1, ny, nx)
    out = np.zeros((len(flat), 2, edges.size - 1))
    for n, one in enumerate(flat):
        wet = np.isfinite(one)
        if not wet.any():
            continue
        a = np.where(wet, one - one[wet].mean(dtype="f8"), 0.0)
        mask, field, square = (scipy.fft.rfft2(f, size) for f in (wet.astype("f8"), a, a * a))

        def lags(product: _Array) -> _Array:
            return np.asarray(scipy.fft.irfft2(product, size))

        squares = lags(2 * (np.conj(mask) * square).real - 2 * np.abs(field) ** 2)
        pairs = np.rint(lags(np.abs(mask) ** 2))
        for k, sums in enumerate((np.where(pairs > 0, squares, 0.0), pairs)):
            out[n, k] = np.bincount(index[inside], sums[inside], edges.size - 1)
    return out.reshape(*maps.shape[:-2], 2, -1)


def structure_function(
    field: xr.DataArray,
    *,
    dim: tuple[str, str] | None = None,
    spacing: tuple[float, float] | None = None,
    edges: _Array | None = None,
) -> xr.Dataset:
    """Second-order structure function of the maps in `field` by distance, NaN allowed.

    `field` (…, lat|y, lon|x); `dim` and `spacing` as `isotropic_spectrum`; `edges` of the bins in m, rising, by
    default those of cells up to a third of the box. Returns structure (units squared) and pairs (…, distance),
    float64, lazy for lazy input; NaN where a bin has no pair. Sums `structure * pairs` and `pairs` over maps to pool
    them. Raises ValueError for lat and lon missing without spacing, and edges that do not rise.
    """
    dim = horizontal_dims(field) if dim is None else dim
    spacing = grid_spacing(field, dim) if spacing is None else (float(spacing[0]), float(spacing[1]))
    if edges is None:
        step = max(spacing)
        reach = min(field.sizes[d] * s for d, s in zip(dim, spacing, strict=True)) / 3
        edges = (np.arange(max(2, int(reach / step) + 1)) + 0.5) * step
    edges = np.asarray(edges, dtype="f8")
    if edges.size < 2 or np.any(np.diff(edges) <= 0) or edges[0] < 0:
        raise ValueError(f"edges must be rising distances in m, at least two, got {edges}")
    whole = field.chunk(dict.fromkeys(dim, -1)) if field.chunks else field
    sums: xr.DataArray = xr.apply_ufunc(
        _pairs,
        whole,
        input_core_dims=[list(dim)],
        output_core_dims=[["_part", "distance"]],
        kwargs={"spacing": spacing, "edges": edges},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_part": 2, "distance": edges.size - 1}},
    )
    sums = sums.assign_coords(distance=("distance", (edges[1:] + edges[:-1]) / 2, {"units": "m"}))
    squares, pairs = (sums.isel(_part=k) for k in (0, 1))
    about = {"units": f"({field.attrs.get('units', '?')})2", "long_name": f"structure function of {field.name}"}
    result = {
        "structure": described(squares / pairs.where(pairs > 0), "structure", **about),
        "pairs": described(pairs * 1.0, "pairs", units="1", long_name="pairs of cells"),
    }
    return xr.Dataset(result)
