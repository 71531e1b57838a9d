"""Ensembles: perturb a state, roll an emulator out, record what comes."""

from .antithetic import Antithetic, Mirrored
from .balance import Balance
from .bounded import ICE, Log, Logit, Space
from .bred import Bred, breed
from .diffusion_noise import Diffused
from .experiment import OtherRunError
from .hindcast import hindcasts, verifying
from .histograms import Exceedance, Extremes, Quantiles
from .lagged import Lagged, lagged
from .norms import Norm
from .online import ensemble_statistics
from .output import Output
from .packing import Exact, Packed, Rounded
from .perturb import Correlated, Perturbation, White, perturb
from .plan import Plan, plan
from .record import StoreExistsError, record, states_of
from .remembered import Remembered
from .reproduce import DamagedError, reproduce, verify
from .rollout import rollout, trajectory
from .scenarios import Box, Changed, NoisyForcing, Ramp, SurrogateYears
from .several import Several
from .singular import SingularVectors, singular_vectors
from .statistics import Covariance, Index, Moments
from .tendencies import StochasticTendencies

__all__ = [
    "ICE",
    "Antithetic",
    "Balance",
    "Box",
    "Bred",
    "Changed",
    "Correlated",
    "Covariance",
    "DamagedError",
    "Diffused",
    "Exact",
    "Exceedance",
    "Extremes",
    "Index",
    "Lagged",
    "Log",
    "Logit",
    "Mirrored",
    "Moments",
    "NoisyForcing",
    "Norm",
    "OtherRunError",
    "Output",
    "Packed",
    "Perturbation",
    "Plan",
    "Quantiles",
    "Ramp",
    "Remembered",
    "Rounded",
    "Several",
    "SingularVectors",
    "Space",
    "StochasticTendencies",
    "StoreExistsError",
    "SurrogateYears",
    "White",
    "breed",
    "ensemble_statistics",
    "hindcasts",
    "lagged",
    "perturb",
    "plan",
    "record",
    "reproduce",
    "rollout",
    "singular_vectors",
    "states_of",
    "trajectory",
    "verify",
    "verifying",
]
