"""Data assimilation: observations of a truth or of the world, ensemble Kalman filters, cycling."""

from .analyses import ESTKF, DEnKF, EnSRF, denkf, estkf
from .cycle import Analysis, cycle
from .experiments import Result, Row
from .filters import ETKF, transform
from .finite_size import EnKFN, enkf_n, finite_size_inflation
from .inflation import RTPP, RTPS, Adaptive, Additive, Inflated, Inflation, Multiplicative
from .letkf import LETKF
from .localise import gaspari_cohn, great_circle
from .networks import Instrument, Profiles, RandomPoints, SurfaceField, observe, observe_state
from .observations import ObservationError, Observations
from .operators import ObservationOperator, operator_for
from .particles import ParticleFilter
from .rotation import rotation
from .serial import ensrf, serial_transform
from .smoothers import enks, esmda, ienks, reweighted
from .static import OI, EnOI, HybridGain
from .stochastic import EnKF, enkf
from .superob import superobbed
from .verification import Innovation, InnovationStatistics, innovation, pooled
from .weights import Weights

__all__ = [
    "ESTKF",
    "ETKF",
    "LETKF",
    "OI",
    "RTPP",
    "RTPS",
    "Adaptive",
    "Additive",
    "Analysis",
    "DEnKF",
    "EnKF",
    "EnKFN",
    "EnOI",
    "EnSRF",
    "HybridGain",
    "Inflated",
    "Inflation",
    "Innovation",
    "InnovationStatistics",
    "Instrument",
    "Multiplicative",
    "ObservationError",
    "ObservationOperator",
    "Observations",
    "ParticleFilter",
    "Profiles",
    "RandomPoints",
    "Result",
    "Row",
    "SurfaceField",
    "Weights",
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
    "great_circle",
    "ienks",
    "innovation",
    "observe",
    "observe_state",
    "operator_for",
    "pooled",
    "reweighted",
    "rotation",
    "serial_transform",
    "superobbed",
    "transform",
]
