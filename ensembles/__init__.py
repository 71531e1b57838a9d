"""Ensembles: perturb a state, roll an emulator out, record what comes."""

from .antithetic import Antithetic, Mirrored
from .balance import Balance
from .bounded import ICE, Log, Logit, Space
from .bred import Bred, breed
from .diffusion_noise import Diffused
from .hindcast import hindcasts, verifying
from .lagged import Lagged, lagged
from .norms import Norm
from .perturb import Correlated, Perturbation, White, perturb
from .record import StoreExistsError, record, states_of
from .remembered import Remembered
from .rollout import rollout, trajectory
from .scenarios import Box, Changed, NoisyForcing, Ramp, SurrogateYears
from .several import Several
from .singular import SingularVectors, singular_vectors
from .tendencies import StochasticTendencies

__all__ = [
    "ICE",
    "Antithetic",
    "Balance",
    "Box",
    "Bred",
    "Changed",
    "Correlated",
    "Diffused",
    "Lagged",
    "Log",
    "Logit",
    "Mirrored",
    "NoisyForcing",
    "Norm",
    "Perturbation",
    "Ramp",
    "Remembered",
    "Several",
    "SingularVectors",
    "Space",
    "StochasticTendencies",
    "StoreExistsError",
    "SurrogateYears",
    "White",
    "breed",
    "hindcasts",
    "lagged",
    "perturb",
    "record",
    "rollout",
    "singular_vectors",
    "states_of",
    "trajectory",
    "verifying",
]
