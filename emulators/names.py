"""The names of things: CF/CMIP variables, their units, and the aliases and units that are accepted on input.

One table for the whole package. A variable that is not in it may still be used; it is then stored
with the attributes it came with. References: CF conventions 1.11, CMIP6 data request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import xarray as xr


@dataclass(frozen=True)
class Variable:
    """CF attributes of a variable; `standard_name` is empty where CF has none."""

    units: str
    standard_name: str
    long_name: str

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes as written to a store."""
        named = {"standard_name": self.standard_name} if self.standard_name else {}
        return {**named, "long_name": self.long_name, "units": self.units}


VARIABLES: dict[str, Variable] = {
    "thetao": Variable("degC", "sea_water_potential_temperature", "potential temperature"),
    "so": Variable("0.001", "sea_water_salinity", "salinity"),
    "uo": Variable("m s-1", "sea_water_x_velocity", "zonal velocity"),
    "vo": Variable("m s-1", "sea_water_y_velocity", "meridional velocity"),
    "zos": Variable("m", "sea_surface_height_above_geoid", "sea surface height"),
    "tos": Variable("degC", "sea_surface_temperature", "sea surface temperature"),
    "tauuo": Variable("N m-2", "surface_downward_x_stress", "zonal wind stress on the ocean"),
    "tauvo": Variable("N m-2", "surface_downward_y_stress", "meridional wind stress on the ocean"),
    "hfds": Variable("W m-2", "surface_downward_heat_flux_in_sea_water", "net heat flux into the ocean"),
    "hfds_anomalies": Variable("W m-2", "", "net heat flux minus its day-of-year climatology"),
    "hfatm": Variable("W m-2", "", "heat flux into the ocean if its surface had the reference temperature"),
    "wfo": Variable("kg m-2 s-1", "water_flux_into_sea_water", "water flux into the ocean"),
    "siconc": Variable("1", "sea_ice_area_fraction", "sea-ice concentration"),
    "sithick": Variable("m", "sea_ice_thickness", "sea-ice thickness"),
    "siu": Variable("m s-1", "sea_ice_x_velocity", "zonal sea-ice velocity"),
    "siv": Variable("m s-1", "sea_ice_y_velocity", "meridional sea-ice velocity"),
    "sisnthick": Variable("m", "surface_snow_thickness", "snow thickness on sea ice"),
    "sidamage": Variable("1", "", "sea-ice damage"),
    "tas": Variable("K", "air_temperature", "near-surface air temperature"),
    "huss": Variable("1", "specific_humidity", "near-surface specific humidity"),
    "tdps": Variable("K", "dew_point_temperature", "near-surface dew point"),
    "ps": Variable("Pa", "surface_air_pressure", "surface air pressure"),
    "uas": Variable("m s-1", "x_wind", "near-surface wind along x"),
    "vas": Variable("m s-1", "y_wind", "near-surface wind along y"),
    "pdd_month": Variable("K", "", "mean melting degree days of the last month"),
    "fdd_month": Variable("K", "", "mean freezing degree days of the last month"),
    "pdd_year": Variable("K", "", "mean melting degree days of the last year"),
    "fdd_year": Variable("K", "", "mean freezing degree days of the last year"),
}

# What values can be on Earth, in the units of the table: of numbers packed into 16 bits and of histograms.
RANGES: dict[str, tuple[float, float]] = {
    "thetao": (-3.0, 40.0), "so": (0.0, 45.0), "uo": (-4.0, 4.0), "vo": (-4.0, 4.0), "zos": (-5.0, 5.0),
    "tos": (-3.0, 40.0), "tauuo": (-10.0, 10.0), "tauvo": (-10.0, 10.0), "hfds": (-3000.0, 2000.0),
    "siconc": (0.0, 1.0), "sithick": (0.0, 30.0), "siu": (-3.0, 3.0), "siv": (-3.0, 3.0), "sisnthick": (0.0, 5.0),
    "sidamage": (0.0, 1.0), "tas": (180.0, 340.0), "huss": (0.0, 0.05), "tdps": (180.0, 320.0),
    "ps": (40000.0, 110000.0), "uas": (-100.0, 100.0), "vas": (-100.0, 100.0),
}  # fmt: skip

GRID_ATTRS: dict[str, dict[str, str]] = {
    "lat": {"units": "degrees_north", "standard_name": "latitude"},
    "lon": {"units": "degrees_east", "standard_name": "longitude"},
    "lev": {"units": "m", "positive": "down", "axis": "Z", "standard_name": "depth"},
    "dz": {"units": "m", "long_name": "layer thickness"},
    "areacello": {"units": "m2", "standard_name": "cell_area"},
    "deptho": {"units": "m", "standard_name": "sea_floor_depth_below_geoid"},
    "wetmask": {"long_name": "wet cells"},
    "wetmask_corner": {"long_name": "wet north-east corners, where velocities sit"},
    "lat_corner": {"units": "degrees_north", "standard_name": "latitude"},
    "lon_corner": {"units": "degrees_east", "standard_name": "longitude"},
}

ALIASES: dict[str, str] = {"sit": "sithick", "sic": "siconc", "snt": "sisnthick", "HI": "sithick", "sid": "sidamage"}

# Canonical units -> the other spellings of the same unit, and conversions (factor, offset) from others.
_SPELLINGS: dict[str, set[str]] = {
    "degC": {"degC", "°C", "C", "Celsius", "celsius", "degree_C", "degrees_C", "degree_Celsius", "deg_C"},
    "0.001": {"0.001", "1e-3", "psu", "PSU", "g kg-1", "g/kg", "PSS-78", "practical salinity units"},
    "m s-1": {"m s-1", "m/s", "m s^-1", "m s**-1", "m.s-1"},
    "m": {"m", "meter", "meters", "metre", "metres"},
    "N m-2": {"N m-2", "N/m2", "N m^-2", "Pa", "pascal"},
    "W m-2": {"W m-2", "W/m2", "W m^-2", "W/m^2", "watt/m^2"},
    "kg m-2 s-1": {"kg m-2 s-1", "kg/m2/s", "kg m^-2 s^-1"},
    "1": {"1", "", "fraction", "kg kg-1", "kg/kg", "kg kg**-1"},
    "K": {"K", "kelvin", "Kelvin"},
    "Pa": {"Pa", "pascal", "pascals", "N m-2"},
}
_CONVERSIONS: dict[tuple[str, str], tuple[float, float]] = {
    ("K", "degC"): (1.0, -273.15),
    ("kelvin", "degC"): (1.0, -273.15),
    **{(spelling, "K"): (1.0, 273.15) for spelling in _SPELLINGS["degC"]},
    ("hPa", "Pa"): (100.0, 0.0),
    ("mbar", "Pa"): (100.0, 0.0),
    ("millibars", "Pa"): (100.0, 0.0),
    ("cm", "m"): (0.01, 0.0),
    ("mm", "m"): (0.001, 0.0),
    ("cm s-1", "m s-1"): (0.01, 0.0),
    ("cm/s", "m s-1"): (0.01, 0.0),
    ("%", "1"): (0.01, 0.0),
    ("dyn cm-2", "N m-2"): (0.1, 0.0),
}

_FLAT = re.compile(r"^(?P<name>[a-z]+)_(?:lev_)?(?P<level>\d+(?:_\d+)?)$")
_MASKS = {"mask", "wetmask"}


class UnitsError(ValueError):
    """A variable came in units that are not known for it."""


def attributes(name: str) -> dict[str, str]:
    """CF attributes of a variable, empty for a name that is not in the table."""
    return VARIABLES[name].attrs if name in VARIABLES else {}


def flat_name(name: str) -> tuple[str, str] | None:
    """Split `thetao_3` or `thetao_lev_2_5` into (`thetao`, level label); None for any other name."""
    match = _FLAT.match(name)
    if match is None or match["name"] not in VARIABLES:
        return None
    return match["name"], match["level"]


def level_of(name: str) -> float:
    """3 for `thetao_3`, 2.5 for `thetao_lev_2_5`. Raises ValueError for a name without a level."""
    match = _FLAT.match(name)
    if match is None:
        raise ValueError(f"wanted a name with a level like thetao_3 or thetao_lev_2_5, got {name!r}")
    return float(match["level"].replace("_", "."))


def mask_level(name: str) -> float | None:
    """The level of a flat wet mask, 3 for `mask_3`; None for any other name."""
    match = _FLAT.match(name)
    return level_of(name) if match is not None and match["name"] in _MASKS else None


def conversion(name: str, units: object) -> tuple[float, float]:
    """Factor and offset that turn values in some units into the table's; (1, 0) for a name that is not in it.

    No units, None, are taken to be the table's. Raises UnitsError, naming the variable, for units that are not known.
    """
    variable = VARIABLES.get(name)
    if variable is None or units is None or str(units) in _SPELLINGS.get(variable.units, {variable.units}):
        return 1.0, 0.0
    found = _CONVERSIONS.get((str(units), variable.units))
    if found is None:
        known = sorted(u for u, wanted in _CONVERSIONS if wanted == variable.units)
        raise UnitsError(
            f"{name}: wanted units {variable.units!r}"
            + (f" (or {', '.join(known)}, converted)" if known else "")
            + f", got {units!r}; convert the data or correct its `units` attribute"
        )
    return found


def to_canonical_units(array: xr.DataArray, name: str) -> xr.DataArray:
    """The array in the units of the table; lazy in, lazy out.

    An array without a `units` attribute is taken to be in the table's units, as the public OM4
    stores are; the table's attributes are filled in. Raises UnitsError,
    naming the variable, for units that are not known.
    """
    variable = VARIABLES.get(name)
    if variable is None:
        return array
    factor, offset = conversion(name, array.attrs.get("units"))
    if (factor, offset) == (1.0, 0.0):
        return array.assign_attrs({**variable.attrs, **array.attrs, "units": variable.units})
    return (array * factor + offset).assign_attrs({**array.attrs, "units": variable.units})
