"""Isotropic wavenumber spectra that keep the variance.

For a map a on cells dy by dx, detrended and multiplied with a window w, the two-dimensional density is

    S(k, l) = |FFT(w a)|^2 dx dy / (Ny Nx <w^2>),          sum S dk dl = variance,

and its isotropic form collects the modes of each ring |(k, l)| in [(b - 1/2) dk, (b + 1/2) dk):

    E_b = sum_{ring b} S dk dl / dk_b,                      sum_b E_b dk_b = variance (Parseval).

Wavenumbers are in cycles per metre, of distances measured on the sphere: degrees of longitude taken as metres
turn a 150 km wave at 60 N into one of 315 km. Ring 0 holds the mean and whatever is longer than the box.
Durran et al. 2017, Mon. Weather Rev. 145, 3833 (rings and their normalisation).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .conventions import EARTH_RADIUS, bare, check_units, coordinate, described, horizontal_dims, matched
from .coordinates import check_degrees, named
from .rings import LAND, MAPS_AT_ONCE, ORDERS, WINDOWS, Rings, power_sums, rings_of, transformed

_Array = np.ndarray[Any, Any]


def _spectra(
    maps: _Array,
    *,
    spacing: tuple[float, float],
    detrend: str | None,
    window: str | None,
    mean: bool,
    truncate: bool,
    land: str,
    name: str = "a spectrum",
) -> _Array:
    """Isotropic spectra (…, ring), float64, of maps (…, y, x)."""
    ny, nx = maps.shape[-2:]
    rings = rings_of((ny, nx), spacing, truncate)
    flat = maps.reshape(-1, ny, nx)
    out = np.empty((len(flat), rings.k.size))
    for first in range(0, len(flat), MAPS_AT_ONCE):
        part = slice(first, first + MAPS_AT_ONCE)
        try:
            modes, squares = transformed(flat[part], detrend=detrend, window=window, land=land)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        with np.errstate(invalid="ignore"):  # a map without ocean has neither modes nor window: NaN
            out[part] = power_sums(modes, rings) / ((ny * nx) ** 2 * squares * rings.dk)[:, None]
    if mean:
        modes_per_area = spacing[0] * spacing[1] * ny * nx * rings.dk
        out *= 2 * np.pi * rings.k * modes_per_area / np.maximum(rings.n_modes, 1)
    return out.reshape(*maps.shape[:-2], -1)


def grid_spacing(field: xr.DataArray, dim: tuple[str, str]) -> tuple[float, float]:
    """Mean distance in m between neighbours along `dim` (north-south, east-west), on the sphere.

    From 1-D or 2-D `lat` and `lon` in degrees. Raises ValueError if they are missing, lazy, or if the
    east-west spacing varies more than twofold over the box, where one wavenumber means nothing.
    """
    lat, lon = coordinate(field, "lat", "latitude"), coordinate(field, "lon", "longitude")
    if lat is None or lon is None or lat.chunks is not None or lon.chunks is not None:
        raise ValueError("distances need lat and lon in memory: assign or load() them, or give spacing=(dy, dx) in m")
    check_degrees(lat, lon)
    both = xr.broadcast(bare(lat), bare(lon))
    north, east = (np.deg2rad(c.transpose(*dim).to_numpy().astype("f8")) for c in both)
    dy, dx = (_distances(north, east, axis) for axis in (0, 1))
    if dx.max() > 2 * dx.min():
        raise ValueError(
            f"east-west spacing varies from {dx.min():.0f} to {dx.max():.0f} m: choose a smaller box, "
            "or give spacing=(dy, dx) in m for a field interpolated to even distances"
        )
    return float(dy.mean()), float(dx.mean())


def _distances(lat: _Array, lon: _Array, axis: int) -> _Array:
    """Great-circle distance in m between neighbours along an axis (haversine)."""
    north, east = np.diff(lat, axis=axis), np.diff(lon, axis=axis)
    here, there = (np.delete(lat, end, axis=axis) for end in (-1, 0))
    h = np.sin(north / 2) ** 2 + np.cos(here) * np.cos(there) * np.sin(east / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.sqrt(h)))


_CHOICES: dict[str, list[Any]] = {
    "detrend": list(ORDERS),
    "window": list(WINDOWS),
    "land": list(LAND),
    "normalize": ["sum", "mean"],
}


def check_choices(**options: Any) -> None:
    """Raise ValueError for an option of a spectrum that does not exist."""
    for name, value in options.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {_CHOICES[name]}, got {value!r}")


def isotropic_spectrum(
    field: xr.DataArray,
    *,
    dim: tuple[str, str] | None = None,
    spacing: tuple[float, float] | None = None,
    detrend: str | None = "linear",
    window: str | None = "hann",
    normalize: str = "sum",
    truncate: bool = True,
    land: str = "refuse",
) -> xr.DataArray:
    """Isotropic spectral density of the maps in `field`.

    `field` (…, lat|y, lon|x); `dim`, the two map dimensions, north-south first, by default detected;
    `spacing` (dy, dx) in m, by default measured from lat and lon; `detrend` None, "constant" or "linear" (a
    plane); `window` None or "hann"; `normalize` "sum" (keeps the variance) or "mean" (2 pi k times the ring
    mean: smoother, not exact for ragged rings); `truncate` at the smaller Nyquist wavenumber, else to the
    corners; `land` "refuse" NaN, or a window w of the ocean, whose <w²> corrects for what is missing: "taper" it to
    0 at the coast (peaks are smoothed over the wavenumbers of the taper, an eighth of the box; under islands the large
    scales of a k^-3 field come out up to three times too high, the smallest right), "mask", 1 to the coast (all of the
    ocean counts: within 6 % for k^-1 or flatter, but the coast adds small scales to steeper ones, 1.7 times theirs for
    k^-2 and 27 times for k^-3 under islands on 13 % of the box), or "fill" land with the ocean mean of its map (as
    "mask", without the correction).

    Returns (…, wavenumber), float64, lazy for lazy input, in units^2 m, with the coordinates wavenumber (ring
    centres, m-1), n_modes and mean_wavenumber. Raises ValueError for unknown options, lazy or missing lat and
    lon without spacing, and, when computed, for NaN with land="refuse". Definition: above.
    """
    check_choices(detrend=detrend, window=window, land=land, normalize=normalize)
    dim = horizontal_dims(field) if dim is None else dim
    spacing = grid_spacing(field, dim) if spacing is None else (float(spacing[0]), float(spacing[1]))
    if spacing[0] <= 0 or spacing[1] <= 0:
        raise ValueError(f"spacing must be positive distances (dy, dx) in m, got {spacing}")
    rings = rings_of((field.sizes[dim[0]], field.sizes[dim[1]]), spacing, truncate)
    # A transform needs the whole map.
    whole = field.chunk(dict.fromkeys(dim, -1)) if field.chunks else field
    options = {"spacing": spacing, "detrend": detrend, "window": window, "land": land, "truncate": truncate}
    result: xr.DataArray = xr.apply_ufunc(
        _spectra,
        whole,
        input_core_dims=[list(dim)],
        output_core_dims=[["wavenumber"]],
        kwargs={**options, "mean": normalize == "mean", "name": named(field)},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"wavenumber": rings.k.size}},
    )
    chosen = {name: str(value) for name, value in options.items()} | {"spacing": list(spacing)}
    return labelled(result, field, rings).assign_attrs({**chosen, "normalize": normalize})


def labelled(spectrum: xr.DataArray, field: xr.DataArray, rings: Rings) -> xr.DataArray:
    """The spectrum (…, wavenumber) of `field` with the coordinates and attrs of its rings."""
    coords = {"wavenumber": rings.k, "n_modes": rings.n_modes, "mean_wavenumber": rings.mean_k}
    # Copies, for the rings are shared by all spectra of this shape.
    spectrum = spectrum.assign_coords({name: ("wavenumber", values.copy()) for name, values in coords.items()})
    for name in ("wavenumber", "mean_wavenumber"):
        spectrum[name].attrs.update(units="m-1", long_name="wavenumber in cycles per metre")
    return described(
        spectrum,
        "spectrum",
        units=f"({field.attrs.get('units', '?')})2 m",
        long_name=f"isotropic spectral density of {field.name}",
        ring_width=rings.dk,
    )


def kinetic_energy_spectrum(uo: xr.DataArray, vo: xr.DataArray, **options: Any) -> xr.DataArray:
    """Isotropic spectral density of kinetic energy, (E_uu + E_vv) / 2, in m3 s-2.

    `uo`, `vo` (…, lat|y, lon|x) in m s-1 at the same places; options, shape and errors as
    `isotropic_spectrum`, and ValueError if the two are in other units or on other cells.
    """
    for velocity in (uo, vo):
        check_units(velocity, "m s-1")
    spacing = options.pop("spacing", None) or grid_spacing(uo, options.get("dim") or horizontal_dims(uo))
    first, second = (isotropic_spectrum(x, spacing=spacing, **options) for x in (uo, matched(uo, vo)))
    result = (first + bare(second)) / 2
    long_name = "isotropic spectral density of kinetic energy"
    return described(result, "spectrum", **{**first.attrs, "units": "m3 s-2", "long_name": long_name})


def _log_line(spectrum: xr.DataArray, band: tuple[float, float], least: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Log of the energy in a band, and log of its wavenumbers about their mean."""
    k = np.asarray(spectrum.indexes["wavenumber"], dtype="f8")
    inside = np.flatnonzero((k >= band[0]) & (k <= band[1]) & (k > 0))
    if inside.size < least:
        width = k[1] - k[0]
        words = {3: "three", 4: "four"}[least]
        raise ValueError(f"a slope needs {words} rings in {band} m-1, got {inside.size}, {width:.3g} m-1 apart")
    centred = xr.DataArray(np.log(k[inside]) - np.log(k[inside]).mean(), dims="wavenumber")
    energy = bare(spectrum.isel(wavenumber=inside)).drop_vars("wavenumber")
    return energy.copy(data=np.log(energy.data)), centred


def spectral_slope(spectrum: xr.DataArray, *, band: tuple[float, float]) -> xr.DataArray:
    """Exponent s of the power law E ~ k^s, by least squares of log E on log k within a band.

    `spectrum` (…, wavenumber); `band` (low, high) in m-1. Returns (…), dimensionless, lazy for lazy input.
    Raises ValueError if fewer than three rings above wavenumber 0 lie in the band.
    """
    log_e, centred = _log_line(spectrum, band, 3)
    slope: xr.DataArray = (log_e * centred).sum("wavenumber", skipna=False) / (centred**2).sum()
    return described(slope, "slope", units="1", long_name="spectral slope", band=list(band))


def spectral_slope_error(spectrum: xr.DataArray, *, band: tuple[float, float]) -> xr.DataArray:
    """Standard error of `spectral_slope`, from the scatter of the rings about the line.

    As `spectral_slope`, for four rings or more. Rings under a window are not independent: with "hann" neighbours share
    energy, and the error is about 1.2 to 1.5 times this. Average a spectrum over maps before the fit, not slopes.
    """
    log_e, centred = _log_line(spectrum, band, 4)
    slope = (log_e * centred).sum("wavenumber", skipna=False) / (centred**2).sum()
    left = log_e - log_e.mean("wavenumber", skipna=False) - slope * centred
    variance = (left**2).sum("wavenumber", skipna=False) / (centred.size - 2)
    error: xr.DataArray = (variance / float((centred**2).sum())) ** 0.5
    return described(error, "slope_error", units="1", long_name="standard error of the slope", band=list(band))
