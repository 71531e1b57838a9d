"""How much sea ice there is: extent, area, volume, and the marginal ice zone.

With concentration c, thickness h and true cell areas A,

    extent = sum A [c >= 0.15],   area = sum A c,   marginal ice zone = sum A [0.15 <= c < 0.80],
    volume = sum A h  (h in m3 of ice per m2 of cell)  or  sum A c h  (h in m3 of ice per m2 of ice).

Extent is not linear: that of a time mean or on coarser cells is another, mostly larger, so take it first. Sums are in
float64 over the cells that are not NaN. For one hemisphere, `siconc.where(siconc.lat > 0)`. Notz et al. 2016,
Geosci. Model Dev. 9, 3427 (names and definitions of CMIP); Strong & Rigor 2013, Geophys. Res. Lett. 40, 4864 (marginal
ice zone).
"""

from __future__ import annotations

import re

import xarray as xr

from .conventions import bare, cell_area, check_units, described, horizontal_dims, matched

THRESHOLD = 0.15
"""Concentration from which a cell counts as ice."""

_PERCENT = ("%", "percent")


def ice_fraction(siconc: xr.DataArray) -> xr.DataArray:
    """Concentration in 1, whether its units attribute says "1" or "%"; ValueError for other or no units."""
    if str(siconc.attrs.get("units", "")).strip() in _PERCENT:
        # Divided, not multiplied by 0.01: 15 % in float32 must become the float32 next to 0.15.
        return (siconc / 100).assign_attrs({**siconc.attrs, "units": "1"})
    check_units(siconc, "1")
    return siconc


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless the concentration `threshold` is a fraction above 0."""
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of concentration must lie in (0, 1], got {threshold}: 15 % is 0.15")


def is_ice(siconc: xr.DataArray, threshold: float) -> xr.DataArray:
    """1 where concentration (1 or %) reaches `threshold`, else 0, NaN where it is NaN; dimensions of `siconc`."""
    check_threshold(threshold)
    c = ice_fraction(siconc)
    return (c >= threshold).astype("f4").where(bare(c.notnull()))


def area_sum(field: xr.DataArray, area: xr.DataArray | None) -> xr.DataArray:
    """Sum of `field` (…, lat|y, lon|x) times cell areas (m2), float64; NaN where no cell is finite.

    `area` defaults to `area_of(field)`.
    """
    area = matched(field, cell_area(field, area)).astype("f8")
    return (field * area).sum(horizontal_dims(field), min_count=1)


def _sum_method(field: xr.DataArray) -> str:
    return ": ".join(horizontal_dims(field)) + ": sum"


def ice_extent(siconc: xr.DataArray, *, area: xr.DataArray | None = None, threshold: float = THRESHOLD) -> xr.DataArray:
    """Area of the cells with ice: of all those whose concentration is `threshold` or more.

    `siconc` (…, lat|y, lon|x) in 1 or %, NaN on land; `area` (lat|y, lon|x) in m2, by default `area_of(siconc)`.
    Returns (…) in m2, float64, lazy for lazy input. Raises ValueError for other units, a threshold outside (0, 1],
    unknown areas or areas of other cells. Definition: above (siextent of CMIP).
    """
    total = area_sum(is_ice(siconc, threshold), area)
    about = {"standard_name": "sea_ice_extent", "long_name": "sea-ice extent", "threshold": threshold}
    return described(total, "ice_extent", units="m2", cell_methods=_sum_method(siconc), **about)


def ice_area(siconc: xr.DataArray, *, area: xr.DataArray | None = None) -> xr.DataArray:
    """Area covered by ice, leads between floes not counted; arguments, result and errors as `ice_extent`."""
    total = area_sum(ice_fraction(siconc), area)
    about = {"standard_name": "sea_ice_area", "long_name": "sea-ice area"}
    return described(total, "ice_area", units="m2", cell_methods=_sum_method(siconc), **about)


def marginal_ice_zone(
    siconc: xr.DataArray, *, area: xr.DataArray | None = None, limits: tuple[float, float] = (THRESHOLD, 0.8)
) -> xr.DataArray:
    """Area of the marginal ice zone, the cells with limits[0] <= concentration < limits[1].

    Other arguments, result and errors as `ice_extent`; ValueError unless 0 < limits[0] < limits[1] <= 1.
    """
    low, high = limits
    if not 0 < low < high <= 1:
        raise ValueError(f"limits of concentration need 0 < low < high <= 1, got {limits}: 15 to 80 % is (0.15, 0.8)")
    total = area_sum(is_ice(siconc, low) - bare(is_ice(siconc, high)), area)
    about = {"long_name": "area of the marginal ice zone", "limits": list(limits)}
    return described(total, "marginal_ice_zone", units="m2", cell_methods=_sum_method(siconc), **about)


def ice_volume(
    thickness: xr.DataArray, siconc: xr.DataArray | None = None, *, area: xr.DataArray | None = None
) -> xr.DataArray:
    """Volume of the ice.

    `thickness` (…, lat|y, lon|x) in m, per area of cell if `siconc` is None (sivol of CMIP; the thickness of neXtSIM
    and of its emulators), per area of ice if it is given (sithick of CMIP); `siconc` (…, lat|y, lon|x) in 1 or %;
    `area` (lat|y, lon|x) in m2, by default `area_of(thickness)`. Returns (…) in m3, float64, lazy for lazy input. A
    cell without ice may have no thickness (NaN) in the second form. Raises ValueError for other units, other cells,
    and where the cell_methods of `thickness` contradict the form.
    """
    total = _volume(thickness, siconc, area)
    about = {"standard_name": "sea_ice_volume", "long_name": "sea-ice volume"}
    return described(total, "ice_volume", units="m3", cell_methods=_sum_method(thickness), **about)


def snow_volume(
    thickness: xr.DataArray, siconc: xr.DataArray | None = None, *, area: xr.DataArray | None = None
) -> xr.DataArray:
    """Volume of the snow on the ice; arguments (with `thickness` of snow), result and errors as `ice_volume`."""
    total = _volume(thickness, siconc, area)
    about = {"long_name": "volume of snow on sea ice"}
    return described(total, "snow_volume", units="m3", cell_methods=_sum_method(thickness), **about)


def _volume(thickness: xr.DataArray, siconc: xr.DataArray | None, area: xr.DataArray | None) -> xr.DataArray:
    check_units(thickness, "m")
    _check_form(thickness, per_ice=siconc is not None)
    if siconc is not None:
        # The product in float64, or a lazy float32 store would round every cell before the sum.
        thickness = thickness.astype("f8") * matched(thickness, ice_fraction(siconc))
    return area_sum(thickness, area)


def _check_form(thickness: xr.DataArray, *, per_ice: bool) -> None:
    """ValueError if cell_methods say that thickness is a mean over ice and not over the cell, or the reverse."""
    methods = str(thickness.attrs.get("cell_methods", ""))
    name = repr(str(thickness.name))
    if not per_ice and re.search(r"where sea_ice\b", methods):
        raise ValueError(
            f"{name} is thickness per area of ice (cell_methods {methods!r}), whose volume needs the concentration: "
            "give siconc as well"
        )
    if per_ice and re.search(r"where sea\b", methods):
        raise ValueError(
            f"{name} is thickness per area of sea (cell_methods {methods!r}), which contains the concentration "
            "already: leave siconc out"
        )
