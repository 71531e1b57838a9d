"""Diagnostics: heat, sea level, sea ice, spectra, variability, ensemble skill, scorecards, lazily on xarray and dask.

Plain functions: xarray in, xarray out, lazy in, lazy out, whatever the chunks; constants and choices are
written to attrs. They read any CMIP-like store and know nothing of emulators.

Figures are in `polynya.diagnostics.figures`, imported by name, for workers of a cluster need no matplotlib.
"""

from .climatology import annual_cycle, anomaly
from .conventions import area_mean, area_of, check_units, thickness_of, wet_area
from .heat import global_heat_content, heat_content, heat_uptake, tendency, trend
from .ice import ice_area, ice_extent, ice_volume, marginal_ice_zone, snow_volume
from .ice_deformation import deformation, velocity_gradients
from .ice_errors import drift_error, ice_probability, iiee, sps
from .ice_scaling import deformation_moments, scaling_exponents
from .indices import nino34
from .ranks import rank_histogram
from .regions import REGIONS, Region, select_region
from .report import Report
from .scorecard_table import scorecard_table
from .scorecards import samudra_scorecard
from .sea_level import dynamic_sea_level, global_steric, steric
from .skill import bias, crps_ensemble, rmse, spread_error, variance_ratio
from .spectra import isotropic_spectrum, kinetic_energy_spectrum, spectral_slope
from .timescales import autocorrelation, temporal_spectrum
from .variability import deseasoned, detrended, eddy_kinetic_energy, temporal_variance

__all__ = [
    "REGIONS",
    "Region",
    "Report",
    "annual_cycle",
    "anomaly",
    "area_mean",
    "area_of",
    "autocorrelation",
    "bias",
    "check_units",
    "crps_ensemble",
    "deformation",
    "deformation_moments",
    "deseasoned",
    "detrended",
    "drift_error",
    "dynamic_sea_level",
    "eddy_kinetic_energy",
    "global_heat_content",
    "global_steric",
    "heat_content",
    "heat_uptake",
    "ice_area",
    "ice_extent",
    "ice_probability",
    "ice_volume",
    "iiee",
    "isotropic_spectrum",
    "kinetic_energy_spectrum",
    "marginal_ice_zone",
    "nino34",
    "rank_histogram",
    "rmse",
    "samudra_scorecard",
    "scaling_exponents",
    "scorecard_table",
    "select_region",
    "snow_volume",
    "spectral_slope",
    "spread_error",
    "sps",
    "steric",
    "temporal_spectrum",
    "temporal_variance",
    "tendency",
    "thickness_of",
    "trend",
    "variance_ratio",
    "velocity_gradients",
    "wet_area",
]
