"""Climate indices: Niño-3.4 as the Samudra papers compute it.

    N(t) = trailing mean over 30 records of < T'(x, t) >,     T' the day-of-year anomaly of the uppermost level

over 170-120 W, 5 S-5 N, weighted by area; 30 records of five days are 150 days. The first 30 records, over which
the trailing mean begins, are dropped. Dheeshjith et al. 2025, Geophys. Res. Lett.; arXiv:2606.02610.
"""

from __future__ import annotations

import xarray as xr

from .conventions import area_mean, bare, described, matched, vertical_dim
from .regions import select_region
from .variability import deseasoned

WINDOW = 30


def uppermost(field: xr.DataArray) -> xr.DataArray:
    """The first level of a field with levels, the field itself if it has none."""
    try:
        lev = vertical_dim(field)
    except ValueError:
        return field
    return field.isel({lev: 0}, drop=True)


def nino34(
    thetao: xr.DataArray,
    *,
    area: xr.DataArray | None = None,
    climatology: str = "day of year",
    window: int = WINDOW,
) -> xr.DataArray:
    """Niño-3.4 index: trailing mean of the anomalous surface temperature of the equatorial Pacific.

    `thetao` (…, time, [lev,] lat|y, lon|x) in degC; `area` (lat|y, lon|x) in m2, by default `area_of(thetao)`;
    `climatology` as in `deseasoned`; `window`, records of the trailing mean, also the number dropped at the start.
    Returns (…, time) in the field's units, float64, lazy for lazy input, `window` records shorter. Raises ValueError
    if no more than `window` records are there, RegionError if the box holds no cell. Definition: see the module.
    """
    if thetao.sizes["time"] <= window:
        raise ValueError(f"Nino-3.4 needs more than {window} records, got {thetao.sizes['time']}: shorten window=")
    surface = uppermost(thetao)
    if area is not None:
        surface = surface.assign_coords(areacello=matched(surface, area).assign_attrs(units="m2"))
    box = select_region(surface, "Nino 3.4")
    # Means over cells and over records commute, and one series is quicker to smooth than all cells.
    series = area_mean(deseasoned(box, climatology=climatology))
    if series.chunks:
        series = series.chunk({"time": -1})
    smooth = bare(series).rolling(time=window).mean().isel(time=slice(window, None))
    smooth = smooth.assign_coords(time=thetao["time"].isel(time=slice(window, None)).variable)
    return described(
        smooth,
        "nino34",
        units=thetao.attrs.get("units", "degC"),
        long_name=f"Niño-3.4 index, trailing mean of {window} records",
        cell_methods="area: mean time: mean",
        climatology=climatology,
    )
