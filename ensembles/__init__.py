"""Ensembles: perturb a state, roll an emulator out, record what comes."""

from .hindcast import hindcasts, verifying
from .perturb import Correlated, Perturbation, White, perturb
from .record import StoreExistsError, record, states_of
from .rollout import rollout, trajectory

__all__ = [
    "Correlated",
    "Perturbation",
    "StoreExistsError",
    "White",
    "hindcasts",
    "perturb",
    "record",
    "rollout",
    "states_of",
    "trajectory",
    "verifying",
]
