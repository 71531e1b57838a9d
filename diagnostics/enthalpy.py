"""Heat content of the water itself, without a reference density: what observations and non-Boussinesq models hold.

    H(x, y, t) = sum_k rho(S_A, CT, p) h0(S_A, CT) |layer_k ∩ [z1, z2]|,      h0 = cp0 CT           J m-2

with the in-situ density of TEOS-10 and the potential enthalpy h0, the enthalpy that water has at the surface. Against
1035 cp0 CT this is 0.56 % less for an Argo profile to 2000 dbar. It is the form of chapter 3 of the sixth assessment
report of the IPCC; the heat that a Boussinesq model conserves is `heat_content`. McDougall 2003, J. Phys. Oceanogr. 33,
945; IOC et al. 2010; McDougall et al. 2021, Geosci. Model Dev. 14, 6445.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from . import seawater
from .columns import integral, over_columns
from .conventions import bare, described, matched, thickness_within, vertical_dim
from .eos import SALINITY_NOTE, Place, check_water
from .heat import CP0

_Array = np.ndarray[Any, Any]

_TEMPERATURES = ("potential", "conservative")


def enthalpy_content(
    thetao: xr.DataArray,
    so: xr.DataArray,
    *,
    temperature: str = "potential",
    depth: tuple[float, float] = (0.0, 700.0),
    dz: xr.DataArray | None = None,
) -> xr.DataArray:
    """Potential enthalpy of the water between two depths, by its own density and TEOS-10.

    `thetao` (…, lev, lat|y, lon|x) in degC, NaN on land; `so` alike, practical salinity; `temperature`, what `thetao`
    holds: "potential" (thetao of CMIP, converted) or "conservative" (bigthetao); `depth` and `dz` in m as
    `heat_content`. Needs lat and lon. Returns (…, lat|y, lon|x) in J m-2, float64, lazy for lazy input, NaN where no
    water lies in the range. Raises ValueError for an unknown temperature, and as `heat_content`. Source: the module.
    """
    if temperature not in _TEMPERATURES:
        raise ValueError(f"temperature must be one of {[*_TEMPERATURES]}, got {temperature!r}")
    check_water(thetao, so)
    dim, place = vertical_dim(thetao), Place.of(thetao)
    thickness = thickness_within(thetao, depth=depth, dz=dz)
    conservative = temperature == "conservative"

    def column(*fields: _Array) -> _Array:
        *water, layers = fields
        return integral(seawater.enthalpy_density(*water, conservative=conservative), layers)

    fields = [bare(thetao), matched(thetao, so), place.slope, place.offset, place.pressure, thickness]
    (heat,) = over_columns(column, fields, like=thetao)
    return described(
        heat,
        "enthalpy",
        units="J m-2",
        long_name=f"potential enthalpy {depth[0]:g}-{depth[1]:g} m, by in-situ density",
        standard_name="integral_wrt_depth_of_sea_water_conservative_temperature_expressed_as_heat_content",
        cell_methods=f"{dim}: sum",
        depth_range=list(depth),
        specific_heat_capacity=CP0,
        equation_of_state="TEOS-10",
        absolute_salinity=SALINITY_NOTE,
        temperature=temperature,
    )
