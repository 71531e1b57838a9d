"""Rows of the scorecard for boxes: spectra in space and time and autocorrelations of the uppermost level.

Of temperature, and of velocity as half the sum of those of its components (kinetic energy). In space, the time mean is
removed and land filled with 0, plane detrended, Hann window; in time, anomalies on land count as 0 in the mean over
the box; autocorrelations know no land. The whole ocean has no curves: there these rows are NaN. Curves of prediction
and truth are compared by

    <(log10 S_p - log10 S_t)^2>^1/2  for spectra (in dex),      <(r_p - r_t)^2>^1/2  for autocorrelations.

Spectra in space are 2 pi k times the mean density of each ring, rings and cycles per metre as in `spectra`; the papers
give rad per km on half as many bins as the box has cells. Spectra in time are one-sided and keep the variance.
Dheeshjith et al. 2025, Geophys. Res. Lett.; arXiv:2606.02610.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import xarray as xr

from .comparison import Comparison
from .conventions import horizontal_dims
from .indices import uppermost
from .regions import select_region
from .spectra import isotropic_spectrum
from .timescales import autocorrelation, temporal_spectrum, time_step
from .variability import deseasoned

_Array = np.ndarray[Any, Any]
_Rows = dict[str, xr.DataArray]
_Curve = Callable[[xr.DataArray, str], xr.DataArray]

LEAST_CELLS = 8
"""Cells that a box must have each way for a wavenumber spectrum of three rings and more."""

_FIELDS = {"thetao": ("thetao",), "velocity": ("uo", "vo")}
_NAMES = {
    "spectrum": "isotropic wavenumber spectral density",
    "temporal_spectrum": "power spectral density in time",
    "acf": "autocorrelation weighted by variance",
}


def _in_space(box: xr.DataArray, climatology: str) -> xr.DataArray:
    eddies = (box - box.mean("time", skipna=False)).fillna(0).assign_attrs(box.attrs)
    found = isotropic_spectrum(eddies, normalize="mean").mean("time", keep_attrs=True)
    # Regions have other rings: number them, and let wavenumber be data.
    about = {"units": "m-1", "long_name": "wavenumber in cycles per metre"}
    wavenumber = ("wavenumber", found["wavenumber"].to_numpy(), about)
    found = found.drop_vars(["wavenumber", "n_modes", "mean_wavenumber"]).assign_coords(k=wavenumber)
    return (
        found.rename(wavenumber="ring").rename(k="wavenumber").assign_coords(ring=np.arange(found.sizes["wavenumber"]))
    )


def _in_time(box: xr.DataArray, climatology: str) -> xr.DataArray:
    anomalies = deseasoned(box, climatology=climatology).fillna(0)
    return temporal_spectrum(anomalies).mean(horizontal_dims(box), keep_attrs=True)


def _lagged(box: xr.DataArray, climatology: str) -> xr.DataArray:
    return autocorrelation(deseasoned(box, climatology=climatology))


_CURVES: dict[str, _Curve] = {"spectrum": _in_space, "temporal_spectrum": _in_time, "acf": _lagged}


def _boxes(case: Comparison, names: tuple[str, ...]) -> dict[str, dict[str, list[xr.DataArray]]]:
    """The uppermost level of each variable in each region and run, read in one go: {region: {run: [...]}}."""
    runs = {"prediction": case.prediction, "truth": case.truth}
    lazy = {
        region: {side: [select_region(uppermost(d[n]), box).astype("f8") for n in names] for side, d in runs.items()}
        for region, box in case.regions.items()
    }
    compute: Any = dask.compute  # type: ignore[attr-defined,unused-ignore]  # dask has no types
    (found,) = compute(lazy)
    return dict(found)


def _wet_regions(case: Comparison, boxes: dict[str, dict[str, list[xr.DataArray]]]) -> list[str]:
    wet = []
    for region, runs in boxes.items():
        if np.isfinite(runs["truth"][0].isel(time=0)).any():
            wet.append(region)
        else:
            case.skipped[f"curves in {region}"] = "no wet cell in the uppermost level"
    return wet


def _large(case: Comparison) -> list[str]:
    """The regions with enough cells for a spectrum in space."""
    sizes = {name: tuple(i.size for i in case.boxes[name]) for name in case.regions}
    small = [f"{name} ({ny} x {nx})" for name, (ny, nx) in sizes.items() if min(ny, nx) < LEAST_CELLS]
    if small:
        case.skipped["spectrum"] = f"fewer than {LEAST_CELLS} cells each way in {', '.join(small)}"
    return [name for name, size in sizes.items() if min(size) >= LEAST_CELLS]


def curve_rows(case: Comparison) -> _Rows:
    """Spectra in space and time and autocorrelations in each region, of both runs, and how far they are apart."""
    rows: _Rows = {}
    if not case.regions:
        case.skipped["curves"] = "no region on this grid"
        return rows
    even = _even(case)
    large = _large(case)
    for name, parts in _FIELDS.items():
        if not case.has(f"curves of {name}", *parts):
            continue
        boxes = _boxes(case, parts)
        regions = _wet_regions(case, boxes)
        for kind, curve in _CURVES.items():
            chosen = [r for r in regions if kind != "spectrum" or r in large]
            if chosen and (even or kind == "spectrum"):
                pairs = {r: boxes[r] for r in chosen}
                rows |= _curves(case, f"{kind}_{name}", kind, curve, pairs)
    return rows


def _even(case: Comparison) -> bool:
    if case.truth.sizes["time"] < 4:
        case.skipped["temporal_spectrum and acf"] = "fewer than four records"
        return False
    try:
        time_step(case.truth["time"])
    except ValueError as error:
        case.skipped["temporal_spectrum and acf"] = str(error)
        return False
    return True


def _curves(
    case: Comparison, row: str, kind: str, curve: _Curve, boxes: dict[str, dict[str, list[xr.DataArray]]]
) -> _Rows:
    sides: _Rows = {}
    for side in ("prediction", "truth"):
        found = []
        for runs in boxes.values():
            first, *others = (curve(x, case.climatology) for x in runs[side])
            found.append(sum(others, first) / 2 if others else first)
        every = xr.concat(found, dim="region", join="outer", coords="different", compat="equals")
        every = every.assign_coords(region=[*boxes]).reindex(region=[*case.boxes])
        about = {"units": _units(row, kind), "long_name": f"{_NAMES[kind]}, uppermost level, {side}"}
        sides[side] = every.drop_attrs(deep=False).assign_attrs(about)
    rows = {f"{row}_{side}": x for side, x in sides.items()}
    return rows | {f"{row}_distance": _distance(sides["prediction"], sides["truth"], kind)}


def _units(row: str, kind: str) -> str:
    if kind == "acf":
        return "1"
    squared = "degC2" if row.endswith("thetao") else "m2 s-2"
    return f"{squared} {'m' if kind == 'spectrum' else 'year'}"


def _distance(prediction: xr.DataArray, truth: xr.DataArray, kind: str) -> xr.DataArray:
    """Root mean square distance of two curves, without their first point (the mean, lag 0)."""
    (along,) = {"ring", "frequency", "lag"} & set(truth.dims)
    p, t = (x.isel({along: slice(1, None)}) for x in (prediction, truth))
    if kind == "acf":
        far, units = p - t, "1"
    else:
        logs = (x.copy(data=np.log10(x.where(x > 0).to_numpy())) for x in (p, t))
        far, units = next(logs) - next(logs), "dex"
    found = (far**2).mean(along) ** 0.5
    return found.drop_attrs().assign_attrs(units=units, long_name=f"RMS distance of {_NAMES[kind]}")
