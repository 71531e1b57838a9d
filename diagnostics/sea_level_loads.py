"""What lies on the sea: the response to the weight of the air, and the weight of floating ice.

    inverse barometer    eta_ib = -(p_a - <p_a>_ocean) / (rho0 g)                 m, 1 hPa is 9.9 mm
    effective sea level  eta    = zos + m_ice / rho0                              m, m_ice in kg m-2

The ocean mean of the pressure only compresses the water, so it is removed at each time, and eta_ib has none: without
that, the year of the pressure over the oceans puts millimetres into the global mean. Where a model presses the sea down
by the ice upon it, its surface lies lower by m_ice / rho0, which the dynamics do not feel. Wunsch & Stammer 1997, Rev.
Geophys. 35, 79; Griffies et al. 2016, Geosci. Model Dev. 9, 3231, appendix H; Campin et al. 2008, Ocean Model. 24, 1.
"""

from __future__ import annotations

import xarray as xr

from .conventions import RHO0, area_mean, area_of, bare, check_units, described, matched
from .coordinates import check_field

GRAVITY = 9.80665
"""Standard gravity, m s-2."""


def inverse_barometer(
    psl: xr.DataArray,
    *,
    ocean: xr.DataArray | None = None,
    area: xr.DataArray | None = None,
    rho0: float = RHO0,
    gravity: float = GRAVITY,
) -> xr.DataArray:
    """Static response of the sea surface to the pressure of the air, without an ocean mean at any time.

    `psl` (…, lat|y, lon|x), pressure at sea level in Pa; `ocean` (lat|y, lon|x), where the sea is: True and False, as
    `zos.isel(time=0).notnull()`, or a fraction from 0 to 1, without it the cells where `psl` is finite; `area` (lat|y,
    lon|x) in m2, by default `area_of(psl)`; `rho0` in kg m-3, `gravity` in m s-2. Returns the shape of `psl` in m,
    float64, lazy for lazy input, NaN on land. Add it to a model without pressure of the air before comparing with tide
    gauges; take it off these to compare with such a model. Raises ValueError for other units or places, and a mask that
    varies in time. Source: Wunsch & Stammer 1997.
    """
    check_units(psl, "Pa")
    pressure = bare(psl).astype("f8")
    cells = area_of(psl) if area is None else area
    if ocean is not None:
        share = _share(psl, ocean)
        pressure = pressure.where(share > 0)
        cells = matched(psl, cells) * share
    # A part of the pressure common to all loses digits in a mean of 1e5 Pa; 1e-11 of it is nothing here.
    response = (area_mean(pressure, cells) - pressure) / (rho0 * gravity)
    return described(
        response.transpose(*psl.dims).assign_coords(psl.coords),
        "eta_ib",
        units="m",
        long_name="inverse barometer response of the sea surface",
        standard_name="sea_surface_height_correction_due_to_air_pressure_at_low_frequency",
        reference_density=rho0,
        gravity=gravity,
        comment="ocean mean removed at each time",
    )


def _share(psl: xr.DataArray, ocean: xr.DataArray) -> xr.DataArray:
    """Part of each cell that is ocean, 0 to 1, on the places of `psl`."""
    check_field(ocean, "ocean")
    if extra := set(ocean.dims) - set(psl.dims):
        raise ValueError(f"ocean must be a map, got {sorted(map(str, extra))} as well: select one, as isel(time=0)")
    if "time" in ocean.dims:
        raise ValueError("ocean must not vary in time, or the mean is over other seas: give one map, as isel(time=0)")
    share = matched(psl, ocean).astype("f8").fillna(0.0)
    if share.chunks is None and not 0 <= float(share.min()) <= float(share.max()) <= 1:
        raise ValueError(
            f"ocean must be True and False or a fraction from 0 to 1, got {float(share.min()):g} to "
            f"{float(share.max()):g}: divide a percentage by 100, or give .notnull() of a field that is NaN on land"
        )
    return share


def ice_loaded_sea_level(zos: xr.DataArray, *loads: xr.DataArray, rho0: float = RHO0) -> xr.DataArray:
    """Effective sea level: the surface that the sea would have if the ice upon it were melted in place.

    `zos` (…, lat|y, lon|x) in m, of a model in which ice presses the surface down; `loads` alike, mass per area of cell
    in kg m-2, such as `simass` and `sisnmass` of CMIP, where NaN is no ice; `rho0` in kg m-3, the model's own. Returns
    the shape of `zos` in m, float64, lazy for lazy input. Its mean is not removed, see `dynamic_sea_level`. Raises
    ValueError for other units, times or places, and without a load. Source: Griffies et al. 2016, appendix H.
    """
    check_units(zos, "m")
    if not loads:
        raise ValueError("a load is needed: give the mass of ice (simass) and of snow (sisnmass) in kg m-2")
    total = bare(zos).astype("f8")
    for mass in loads:
        check_units(mass, "kg m-2")
        if extra := set(mass.dims) - set(zos.dims):
            raise ValueError(
                f"the load {mass.dims} has {sorted(map(str, extra))}, which 'zos' {zos.dims} lacks: reduce it"
            )
        total = total + matched(zos, mass).astype("f8").fillna(0.0) / rho0
    about = {"long_name": "sea level with the load of floating ice", "reference_density": rho0}
    kept = {**zos.attrs, **about}
    return described(total.transpose(*zos.dims).assign_coords(zos.coords), zos.name, **kept)
