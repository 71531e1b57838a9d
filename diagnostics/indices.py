"""Climate indices: those of El Niño, computed as the Samudra papers compute Niño-3.4.

    N(t) = trailing mean over 30 records of < T'(x, t) >,     T' the day-of-year anomaly of the uppermost level

over a box, 170-120 W, 5 S-5 N for Niño-3.4, weighted by area; 30 records of five days are 150 days. The first 30
records, over which the trailing mean begins, are dropped. Dheeshjith et al. 2025, Geophys. Res. Lett.;
arXiv:2606.02610.
"""

from __future__ import annotations

import xarray as xr

from .conventions import area_mean, bare, check_units, described, matched, vertical_dim
from .coordinates import check_along, check_levels
from .regions import Region, select_region
from .variability import deseasoned

WINDOW = 30

NINO_REGIONS = {
    "Nino 1+2": Region(270, 280, -10, 0),
    "Nino 3": Region(210, 270, -5, 5),
    "Nino 3.4": Region(190, 240, -5, 5),
    "Nino 4": Region(160, 210, -5, 5),
}
"""The boxes of the four usual indices (Trenberth 1997, Bull. Am. Meteorol. Soc. 78, 2771)."""


def uppermost(field: xr.DataArray) -> xr.DataArray:
    """The first level of a field with levels, which must run downwards, the field itself if it has none."""
    try:
        lev = vertical_dim(field)
    except ValueError:
        return field
    check_levels(field, lev)
    return field.isel({lev: 0}, drop=True)


def nino(
    thetao: xr.DataArray,
    region: str = "Nino 3.4",
    *,
    area: xr.DataArray | None = None,
    climatology: str = "day of year",
    window: int = WINDOW,
) -> xr.DataArray:
    """Index of El Niño: trailing mean of the anomalous surface temperature of a box.

    `thetao` (…, time, [lev,] lat|y, lon|x) in degC or K; `region`, a name of `NINO_REGIONS`; `area` (lat|y, lon|x) in
    m2, by default `area_of(thetao)`; `climatology` as in `deseasoned`; `window`, records of the trailing mean, also the
    number dropped at the start. Returns (…, time) in the field's units, float64, lazy for lazy input, `window` records
    shorter. Raises ValueError for another name and if no more than `window` records are there, RegionError if the box
    holds no cell. Definition: see the module.
    """
    if region not in NINO_REGIONS:
        raise ValueError(f"region must be one of {[*NINO_REGIONS]}, got {region!r}")
    check_along(thetao, "time", 1, "an index")
    if str(thetao.attrs.get("units")).strip() != "K":  # an anomaly is the same in both
        check_units(thetao, "degC")
    name = region.replace("Nino ", "Niño-")
    if thetao.sizes["time"] <= window:
        raise ValueError(
            f"{name.replace('ñ', 'n')} needs more than {window} records, got {thetao.sizes['time']}: shorten window="
        )
    surface = uppermost(thetao)
    if area is not None:
        surface = surface.assign_coords(areacello=matched(surface, area).assign_attrs(units="m2"))
    box = select_region(surface, NINO_REGIONS[region])
    # Means over cells and over records commute, and one series is quicker to smooth than all cells.
    series = area_mean(deseasoned(box, climatology=climatology))
    if series.chunks:
        series = series.chunk({"time": -1})
    smooth = bare(series).rolling(time=window).mean().isel(time=slice(window, None))
    smooth = smooth.assign_coords(time=thetao["time"].isel(time=slice(window, None)).variable)
    return described(
        smooth,
        region.lower().replace(" ", "").replace(".", "").replace("+", ""),
        units=thetao.attrs.get("units", "degC"),
        long_name=f"{name} index, trailing mean of {window} records",
        cell_methods="area: mean time: mean",
        climatology=climatology,
    )


def nino34(
    thetao: xr.DataArray,
    *,
    area: xr.DataArray | None = None,
    climatology: str = "day of year",
    window: int = WINDOW,
) -> xr.DataArray:
    """Niño-3.4 index: `nino` of the box 170-120 W, 5 S-5 N, with its arguments and errors."""
    return nino(thetao, "Nino 3.4", area=area, climatology=climatology, window=window)
