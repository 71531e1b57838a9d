"""Diagnostics: heat uptake, sea level, spectra and ensemble skill, lazily on xarray and dask.

Plain functions: xarray in, xarray out, lazy in, lazy out, whatever the chunks; constants and choices are
written to attrs. They read any CMIP-like store and know nothing of emulators.

Figures are in `polynya.diagnostics.figures`, imported by name, for workers of a cluster need no matplotlib.
"""

from .climatology import annual_cycle, anomaly
from .conventions import area_mean, area_of, check_units, thickness_of, wet_area
from .heat import global_heat_content, heat_content, heat_uptake, tendency, trend
from .ranks import rank_histogram
from .report import Report
from .sea_level import dynamic_sea_level, global_steric, steric
from .skill import bias, crps_ensemble, rmse, spread_error, variance_ratio
from .spectra import isotropic_spectrum, kinetic_energy_spectrum, spectral_slope

__all__ = [
    "Report",
    "annual_cycle",
    "anomaly",
    "area_mean",
    "area_of",
    "bias",
    "check_units",
    "crps_ensemble",
    "dynamic_sea_level",
    "global_heat_content",
    "global_steric",
    "heat_content",
    "heat_uptake",
    "isotropic_spectrum",
    "kinetic_energy_spectrum",
    "rank_histogram",
    "rmse",
    "spectral_slope",
    "spread_error",
    "steric",
    "tendency",
    "thickness_of",
    "trend",
    "variance_ratio",
    "wet_area",
]
