"""What two fields share at each scale: co-spectra and correlation by wavenumber, coherence and phase by frequency.

In rings of wavenumber, with the rings, windows and land of `spectra`, and < > over rings and the dimensions `over`,

    C(k) = Re <X Y*>,    r(k) = C / (<|X|²> <|Y|²>)^1/2,    coherence² = r²;

the imaginary part of a whole ring vanishes for real fields, so phase has no meaning there. In time, with Welch's
overlapping segments, coherence² = |<X Y*>|² / (<|X|²> <|Y|²>) and the phase is that of <X* Y>. Without averaging either
would be 1 identically: several maps or segments are asked for. Welch 1967, IEEE Trans. Audio Electroacoust. 15, 70.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.fft
import xarray as xr

from .conventions import bare, described, horizontal_dims, matched
from .coordinates import check_along
from .rings import MAPS_AT_ONCE, WINDOWS, power_sums, product_sums, rings_of, transformed
from .spectra import check_choices, grid_spacing, labelled
from .timescales import DAYS_PER_YEAR, time_step

_Array = np.ndarray[Any, Any]


def _sums(first: _Array, second: _Array, *, spacing: tuple[float, float], truncate: bool, **options: Any) -> _Array:
    """Densities of Re XY*, |X|² and |Y|² (…, 3, ring) of maps (…, y, x)."""
    ny, nx = first.shape[-2:]
    rings = rings_of((ny, nx), spacing, truncate)
    x, y = first.reshape(-1, ny, nx), second.reshape(-1, ny, nx)
    out = np.empty((len(x), 3, rings.k.size))
    for start in range(0, len(x), MAPS_AT_ONCE):
        part = slice(start, start + MAPS_AT_ONCE)
        # Land of either is land of both, or their windows would differ.
        missing = np.isnan(x[part]) | np.isnan(y[part])
        both = [np.where(missing, np.nan, f[part]).astype(f.dtype) for f in (x, y)]
        (a, squares), (b, _) = (transformed(f, **options) for f in both)
        sums = product_sums(a, b, rings), power_sums(a, rings), power_sums(b, rings)
        out[part] = np.stack(sums, axis=1) / ((ny * nx) ** 2 * squares * rings.dk)[:, None, None]
    return out.reshape(*first.shape[:-2], 3, -1)


def cross_spectrum(
    first: xr.DataArray,
    second: xr.DataArray,
    *,
    over: Iterable[str] | None = None,
    dim: tuple[str, str] | None = None,
    spacing: tuple[float, float] | None = None,
    detrend: str | None = "linear",
    window: str | None = "hann",
    truncate: bool = True,
    land: str = "refuse",
) -> xr.Dataset:
    """Isotropic co-spectrum of two fields and their correlation at each wavenumber.

    `first`, `second` (…, lat|y, lon|x) on the same places; `over`, dimensions such as ("time",) to average over before
    the quotient, by default all but the map's; the rest as `isotropic_spectrum`. Returns cospectrum (sum C dk =
    covariance under the window; product of the units times m), correlation (-1 to 1) and coherence (its square)
    (…, wavenumber), float64, lazy for lazy input. Raises ValueError as `isotropic_spectrum`, and for other places.
    """
    check_choices(detrend=detrend, window=window, land=land)
    dim = horizontal_dims(first) if dim is None else dim
    spacing = grid_spacing(first, dim) if spacing is None else (float(spacing[0]), float(spacing[1]))
    rings = rings_of((first.sizes[dim[0]], first.sizes[dim[1]]), spacing, truncate)
    second = matched(first, second)
    if first.dtype != second.dtype:
        first, second = first.astype("f8"), second.astype("f8")
    whole = [bare(f).chunk(dict.fromkeys(dim, -1)) if f.chunks else bare(f) for f in (first, second)]
    sums: xr.DataArray = xr.apply_ufunc(
        _sums,
        *whole,
        input_core_dims=[list(dim)] * 2,
        output_core_dims=[["_part", "wavenumber"]],
        kwargs={"spacing": spacing, "truncate": truncate, "detrend": detrend, "window": window, "land": land},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_part": 3, "wavenumber": rings.k.size}},
    )
    averaged = [d for d in sums.dims if d not in ("_part", "wavenumber")] if over is None else list(over)
    cross, x, y = (sums.mean(averaged).isel(_part=k) for k in range(3))
    power = (x * y) ** 0.5
    correlation = cross / power.where(power > 0)
    units = " ".join(f"({f.attrs.get('units', '?')})" for f in (first, second))
    result = {
        "cospectrum": described(labelled(cross, first, rings), "cospectrum", units=f"{units} m", ring_width=rings.dk),
        "correlation": described(
            correlation * 1.0, "correlation", units="1", long_name="correlation at each wavenumber"
        ),
        "coherence": described(correlation**2, "coherence", units="1", long_name="squared coherence"),
    }
    return xr.Dataset(result)


def _segments(x: _Array, segment: int) -> _Array:
    """Modes (…, segment number, frequency) of half overlapping segments, each without its line, under Hann windows."""
    windows = np.lib.stride_tricks.sliding_window_view(x, segment, axis=-1)
    parts = windows[..., :: segment - segment // 2, :].astype("f8")
    tau = np.linspace(-1, 1, segment)
    parts = parts - parts.mean(-1, keepdims=True)
    parts = parts - (parts @ tau / (tau @ tau))[..., None] * tau
    return np.asarray(scipy.fft.rfft(parts * WINDOWS["hann"](segment)))


def _welch(x: _Array, y: _Array, *, segment: int) -> _Array:
    """|<XY*>|²/(<XX><YY>) and the phase of <X*Y> (…, 2, frequency), of x, y (…, time)."""
    first, second = _segments(x, segment), _segments(y, segment)
    cross = (np.conj(first) * second).mean(-2)
    a, b = ((np.abs(f) ** 2).mean(-2) for f in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([np.abs(cross) ** 2 / (a * b), np.angle(cross)], axis=-2)


def temporal_coherence(first: xr.DataArray, second: xr.DataArray, *, segment: int, dim: str = "time") -> xr.Dataset:
    """Squared coherence and phase of two series at each frequency, by Welch's method.

    `first`, `second` (…, time, …) with dates at even steps; `segment`, records of a segment, Hann windows half
    overlapping, a line taken off each. Returns coherence (…, frequency) in 0 to 1, phase in radians (positive where
    `second` leads), frequency in cycles per year of 365.25 days, and attrs `segments` and `significant`, the coherence
    that independent series exceed once in twenty, 1 - 0.05^(1/(n-1)) for n segments less their overlap. float64, lazy
    for lazy input. Raises ValueError for uneven steps, other times, and fewer than two segments.
    """
    check_along(first, dim, 1, "coherence")
    records = first.sizes[dim]
    if not 4 <= segment <= records // 2:
        raise ValueError(f"coherence needs segments of 4 to {records // 2} of the {records} records, got {segment}")
    step = time_step(first[dim]) / DAYS_PER_YEAR
    fields = [first, matched(first, second)]
    if first.chunks:
        fields = [f.chunk({d: -1 if d == dim else "auto" for d in first.dims}) for f in fields[:1]]
        fields.append(matched(fields[0], second))
    frequency = np.fft.rfftfreq(segment, step)
    found: xr.DataArray = xr.apply_ufunc(
        _welch,
        *map(bare, fields),
        kwargs={"segment": segment},
        input_core_dims=[[dim]] * 2,
        output_core_dims=[["_part", "frequency"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"_part": 2, "frequency": frequency.size}},
    )
    attrs = {"units": "year-1", "long_name": "frequency in cycles per year of 365.25 days"}
    found = found.assign_coords(frequency=("frequency", frequency, attrs))
    coherence, phase = (found.isel(_part=k) for k in (0, 1))
    n = (records - segment) // (segment - segment // 2) + 1
    independent = n / (1 + 2 / 36 * (n - 1) / n)  # periodograms of half overlapping Hann windows correlate by 1/36
    told = {"segments": n, "significant": 1 - 0.05 ** (1 / (independent - 1))}
    result = {
        "coherence": described(coherence, "coherence", units="1", long_name="squared coherence"),
        "phase": described(phase, "phase", units="radian", long_name="phase, positive where the second leads"),
    }
    return xr.Dataset(result, attrs=told)
