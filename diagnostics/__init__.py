"""Diagnostics: heat, sea level, sea ice, spectra, variability, ensemble skill, scorecards, lazily on xarray and dask.

Plain functions: xarray in, xarray out, lazy in, lazy out, whatever the chunks; constants and choices are
written to attrs. They read any CMIP-like store and know nothing of emulators.

Figures are in `polynya.diagnostics.figures`, imported by name, for workers of a cluster need no matplotlib.
"""

from .agreement import anomaly_correlation, r2
from .assimilation_study import AssimilationSkill
from .circulation import barotropic_streamfunction, mixed_layer_depth, overturning, section_transport
from .climatology import annual_cycle, anomaly
from .conventions import area_mean, area_of, check_units, thickness_of, wet_area
from .cross_spectra import cross_spectrum, temporal_coherence
from .ensemble_study import EnsembleSkill
from .enthalpy import enthalpy_content
from .eofs import eofs
from .guard import compute, memory_needed
from .heat import HEAT_CONVENTIONS, HeatConvention, global_heat_content, heat_content, heat_uptake, tendency, trend
from .heat_budget import basin_totals, heat_closure, thermosteric_efficiency, trend_with_error
from .heat_uptake_study import HeatUptake
from .heatwaves import heatwave_climatology, marine_heatwaves
from .ice import ice_area, ice_extent, ice_volume, marginal_ice_zone, snow_volume
from .ice_deformation import deformation, velocity_gradients
from .ice_errors import drift_error, ice_probability, iiee, sps
from .ice_scaling import deformation_moments, scaling_exponents
from .imprinting import imprint
from .indices import nino, nino34
from .multivariate import energy_score, variogram_score
from .page import Report
from .probability import brier_score, event_table, reliability_diagram, roc
from .products import (
    Averaged,
    Each,
    EnsembleMoments,
    GlobalSteric,
    HeatContent,
    ScoreTotals,
    mean_energy_spectrum,
    mean_spectrum,
)
from .ranks import rank_histogram
from .regions import REGIONS, Region, select_region
from .robustness import sign_agreement
from .scale_ratio import scale_ratio
from .scorecard_table import scorecard_table
from .scorecards import samudra_scorecard
from .sea_level import dynamic_sea_level, global_steric, steric
from .sea_level_budget import absolute_sea_level, at_points, barystatic, sea_level_closure
from .sea_level_loads import ice_loaded_sea_level, inverse_barometer
from .skill import bias, crps_ensemble, mae, rmse, skill_score, spread_error, variance_ratio
from .spectra import isotropic_spectrum, kinetic_energy_spectrum, spectral_slope, spectral_slope_error
from .sphere import spherical_energy_spectrum, spherical_spectrum
from .stream import MemoryNeededError, stream, stream_plan
from .structure import structure_function
from .studies import Study, report
from .timescales import autocorrelation, temporal_spectrum
from .totals import block_length, bootstrap, merged, resampled, score_totals, scores
from .variability import deseasoned, detrended, eddy_kinetic_energy, temporal_variance

__all__ = [
    "HEAT_CONVENTIONS",
    "REGIONS",
    "AssimilationSkill",
    "Averaged",
    "Each",
    "EnsembleMoments",
    "EnsembleSkill",
    "GlobalSteric",
    "HeatContent",
    "HeatConvention",
    "HeatUptake",
    "MemoryNeededError",
    "Region",
    "Report",
    "ScoreTotals",
    "Study",
    "absolute_sea_level",
    "annual_cycle",
    "anomaly",
    "anomaly_correlation",
    "area_mean",
    "area_of",
    "at_points",
    "autocorrelation",
    "barotropic_streamfunction",
    "barystatic",
    "basin_totals",
    "bias",
    "block_length",
    "bootstrap",
    "brier_score",
    "check_units",
    "compute",
    "cross_spectrum",
    "crps_ensemble",
    "deformation",
    "deformation_moments",
    "deseasoned",
    "detrended",
    "drift_error",
    "dynamic_sea_level",
    "eddy_kinetic_energy",
    "energy_score",
    "enthalpy_content",
    "eofs",
    "event_table",
    "global_heat_content",
    "global_steric",
    "heat_closure",
    "heat_content",
    "heat_uptake",
    "heatwave_climatology",
    "ice_area",
    "ice_extent",
    "ice_loaded_sea_level",
    "ice_probability",
    "ice_volume",
    "iiee",
    "imprint",
    "inverse_barometer",
    "isotropic_spectrum",
    "kinetic_energy_spectrum",
    "mae",
    "marginal_ice_zone",
    "marine_heatwaves",
    "mean_energy_spectrum",
    "mean_spectrum",
    "memory_needed",
    "merged",
    "mixed_layer_depth",
    "nino",
    "nino34",
    "overturning",
    "r2",
    "rank_histogram",
    "reliability_diagram",
    "report",
    "resampled",
    "rmse",
    "roc",
    "samudra_scorecard",
    "scale_ratio",
    "scaling_exponents",
    "score_totals",
    "scorecard_table",
    "scores",
    "sea_level_closure",
    "section_transport",
    "select_region",
    "sign_agreement",
    "skill_score",
    "snow_volume",
    "spectral_slope",
    "spectral_slope_error",
    "spherical_energy_spectrum",
    "spherical_spectrum",
    "spread_error",
    "sps",
    "steric",
    "stream",
    "stream_plan",
    "structure_function",
    "temporal_coherence",
    "temporal_spectrum",
    "temporal_variance",
    "tendency",
    "thermosteric_efficiency",
    "thickness_of",
    "trend",
    "trend_with_error",
    "variance_ratio",
    "variogram_score",
    "velocity_gradients",
    "wet_area",
]
