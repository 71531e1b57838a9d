"""Data assimilation: observations of a truth or of the world, ensemble Kalman filters, cycling."""

from .adaptive_localisation import column_taper, correlation_taper, tapered_kalman
from .adjoint import AdjointError, AdjointReport, check_adjoint
from .analyses import ESTKF, DEnKF, EnSRF, denkf, estkf
from .archive import Assimilation, OtherExperimentError, open_assimilation
from .assimilate import assimilate
from .background import Composed, Hybrid, Latent, Root, Uncorrelated
from .balanced import Balanced
from .bias import Debiased
from .bounded import Above, Anamorphosis, Bounded, Logit
from .correlation import correlation, whitening
from .covariances import correlation_at, randomise, std_of
from .cycle import Analysis, Cycle, Learning, NoAnalysis, Smoothed, Smoothing, cycle
from .diagnosis import chi_square_of, consistency, information
from .diffused import DiffusedRoot
from .ensemble_roots import EnsembleRoot, EOFRoot, LocalisedEnsemble, common_layout
from .ensemble_variational import En4DVar, EnVar, FromHessian
from .experiments import Result, Row
from .faults import Biased, Faulty, Repeated, Representative, Spread, unresolved
from .filters import ETKF, transform
from .finite_size import EnKFN, enkf_n, finite_size_inflation
from .gauss_newton import GaussNewton
from .guidance import DPS, MMPS, SDA, PiGDM, guided
from .guided import Generative, GuidanceError, Guided
from .impact import norm, observation_impact
from .inflation import RTPP, RTPS, Adaptive, Additive, Inflated, Inflation, Multiplicative
from .instruments import Buoys, Floats, Moorings, Profiles, RandomPoints, SurfaceField
from .letkf import LETKF
from .localise import gaspari_cohn, great_circle
from .minimise import LBFGS, Minimum
from .neighbours import Buddy, Duplicates, Thin
from .networks import Network, observe, observe_state
from .observations import Derived, ObservationError, Observations, View
from .operators import ObservationOperator, located, operator_for
from .orbits import AQUA, CRYOSAT, JASON, SENTINEL3, SMOS, SWOT, Orbit
from .particles import ParticleFilter
from .places import Instrument, Wrapper
from .posterior import Posterior, PosteriorRoot
from .quality import Checked, Excluded, Gross, Located, Quality, Range
from .quantities import At, HeatContent, IceVolume, Mean
from .realism import Dynamics, gradient_spectra, passport
from .rotation import rotation
from .satellites import Altimeter, Clouds, LinearError, Swath, ThinIceError
from .scores import against, by_band
from .sensitivity import sensitivity
from .serial import ensrf, serial_transform
from .smoothers import enks, esmda, ienks, reweighted
from .static import OI, EnOI, HybridGain
from .stochastic import EnKF, enkf
from .superob import superobbed
from .tables import ObservationTable, read_observations, save_observations
from .twin import Twin, open_twin, twin
from .variational import FourDVar, ThreeDVar
from .verification import Innovation, InnovationStatistics, calibrations, innovation, pooled, rank_histograms, tabulated
from .weights import Weights
from .window_cost import VariationalError

__all__ = [
    "AQUA",
    "CRYOSAT",
    "DPS",
    "ESTKF",
    "ETKF",
    "JASON",
    "LBFGS",
    "LETKF",
    "MMPS",
    "OI",
    "RTPP",
    "RTPS",
    "SDA",
    "SENTINEL3",
    "SMOS",
    "SWOT",
    "Above",
    "Adaptive",
    "Additive",
    "AdjointError",
    "AdjointReport",
    "Altimeter",
    "Analysis",
    "Anamorphosis",
    "Assimilation",
    "At",
    "Balanced",
    "Biased",
    "Bounded",
    "Buddy",
    "Buoys",
    "Checked",
    "Clouds",
    "Composed",
    "Cycle",
    "DEnKF",
    "Debiased",
    "Derived",
    "DiffusedRoot",
    "Duplicates",
    "Dynamics",
    "EOFRoot",
    "En4DVar",
    "EnKF",
    "EnKFN",
    "EnOI",
    "EnSRF",
    "EnVar",
    "EnsembleRoot",
    "Excluded",
    "Faulty",
    "Floats",
    "FourDVar",
    "FromHessian",
    "GaussNewton",
    "Generative",
    "Gross",
    "GuidanceError",
    "Guided",
    "HeatContent",
    "Hybrid",
    "HybridGain",
    "IceVolume",
    "Inflated",
    "Inflation",
    "Innovation",
    "InnovationStatistics",
    "Instrument",
    "Latent",
    "Learning",
    "LinearError",
    "LocalisedEnsemble",
    "Located",
    "Logit",
    "Mean",
    "Minimum",
    "Moorings",
    "Multiplicative",
    "Network",
    "NoAnalysis",
    "ObservationError",
    "ObservationOperator",
    "ObservationTable",
    "Observations",
    "Orbit",
    "OtherExperimentError",
    "ParticleFilter",
    "PiGDM",
    "Posterior",
    "PosteriorRoot",
    "Profiles",
    "Quality",
    "RandomPoints",
    "Range",
    "Repeated",
    "Representative",
    "Result",
    "Root",
    "Row",
    "Smoothed",
    "Smoothing",
    "Spread",
    "SurfaceField",
    "Swath",
    "Thin",
    "ThinIceError",
    "ThreeDVar",
    "Twin",
    "Uncorrelated",
    "VariationalError",
    "View",
    "Weights",
    "Wrapper",
    "against",
    "assimilate",
    "by_band",
    "calibrations",
    "check_adjoint",
    "chi_square_of",
    "column_taper",
    "common_layout",
    "consistency",
    "correlation",
    "correlation_at",
    "correlation_taper",
    "cycle",
    "denkf",
    "enkf",
    "enkf_n",
    "enks",
    "ensrf",
    "esmda",
    "estkf",
    "finite_size_inflation",
    "gaspari_cohn",
    "gradient_spectra",
    "great_circle",
    "guided",
    "ienks",
    "information",
    "innovation",
    "located",
    "norm",
    "observation_impact",
    "observe",
    "observe_state",
    "open_assimilation",
    "open_twin",
    "operator_for",
    "passport",
    "pooled",
    "randomise",
    "rank_histograms",
    "read_observations",
    "reweighted",
    "rotation",
    "save_observations",
    "sensitivity",
    "serial_transform",
    "std_of",
    "superobbed",
    "tabulated",
    "tapered_kalman",
    "transform",
    "twin",
    "unresolved",
    "whitening",
]
