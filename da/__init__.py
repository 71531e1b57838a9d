"""Data assimilation: observations of a truth or of the world, ensemble Kalman filters, cycling."""

from .cycle import Analysis, cycle
from .filters import ETKF, transform
from .letkf import LETKF
from .localise import gaspari_cohn, great_circle
from .networks import Instrument, Profiles, RandomPoints, SurfaceField, observe, observe_state
from .observations import ObservationError, Observations
from .operators import ObservationOperator, operator_for
from .verification import Innovation, InnovationStatistics, innovation, pooled

__all__ = [
    "ETKF",
    "LETKF",
    "Analysis",
    "Innovation",
    "InnovationStatistics",
    "Instrument",
    "ObservationError",
    "ObservationOperator",
    "Observations",
    "Profiles",
    "RandomPoints",
    "SurfaceField",
    "cycle",
    "gaspari_cohn",
    "great_circle",
    "innovation",
    "observe",
    "observe_state",
    "operator_for",
    "pooled",
    "transform",
]
