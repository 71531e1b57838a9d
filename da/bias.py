"""Bias of observations, estimated as they come and taken off.

Departures of one (kind, variable) that do not average to nothing are the bias of the background or of the observations;
nothing in them tells which (Dee 2005, doi:10.1256/qj.05.137). So only named kinds are corrected, towards a
background that others, the anchor, keep in place: if all were, the model's own bias would become the truth.

    w ← (1 - 1/memory) w + n,     b ← b + Σ_n d / (w + prior)

With departures d of observations that were corrected by the b so far, b is their running mean, each cycle 1/memory less
remembered than the next. The state (w, b) is an argument and a result, so that a restart needs no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .observations import Observations
from .verification import Innovation, Type, rows_of_types

Carried = Mapping[Type, tuple[float, float]]  # weight in observations, and bias in the unit of the variable


@dataclass(frozen=True)
class Debiased:
    """A bias of each named kind and variable, constant in space and slow in time.

    Attributes:
        kinds: labels of observations to correct.
        variables: which of their variables.
        memory: e-folding time in cycles with observations; inf for the mean of all.
        prior: how many observations the guess that there is no bias counts for.
    """

    kinds: tuple[str, ...]
    variables: tuple[str, ...]
    memory: float = float("inf")
    prior: float = 0.0

    def __post_init__(self) -> None:
        if not self.memory >= 1 or not self.prior >= 0:
            raise ValueError(f"Debiased: wanted memory >= 1 cycle and prior >= 0, got {self}")

    @property
    def types(self) -> tuple[Type, ...]:
        """Every (kind, variable) that is corrected, in the order of `flat`."""
        return tuple((kind, name) for kind in self.kinds for name in self.variables)

    @property
    def initial(self) -> dict[Type, tuple[float, float]]:
        """What is carried before the first cycle: no bias, from no observation."""
        return dict.fromkeys(self.types, (0.0, 0.0))

    def correct(self, observations: Observations, carried: Carried) -> Observations:
        """The observations less their bias; those of other kinds as they are."""
        value = observations.value.copy()
        for key, rows in rows_of_types(observations).items():
            if key in self.types:
                value[rows] -= carried[key][1]
        return observations.replace(value=value)

    def step(self, seen: Innovation, carried: Carried) -> dict[Type, tuple[float, float]]:
        """What to carry to the next cycle.

        Args:
            seen: the corrected observations that passed all checks, against the background.
            carried: what they were corrected with.
        """
        out, keep = dict(carried), 1 - 1 / self.memory
        for key, rows in rows_of_types(seen.observations).items():
            if key in self.types:
                weight, bias = carried[key]
                weight = keep * weight + len(rows)
                out[key] = weight, bias + float(seen.departure[rows].sum()) / (weight + self.prior)
        return out

    def flat(self, carried: Carried) -> Tensor:
        """What is carried as one tensor (2 types,) float64, to be stored."""
        return torch.tensor([x for key in self.types for x in carried[key]], dtype=torch.float64)

    def carried(self, flat: Tensor) -> dict[Type, tuple[float, float]]:
        """What `flat` made a tensor of; raises ValueError for one of another length."""
        if flat.shape != (2 * len(self.types),):
            raise ValueError(f"wanted {2 * len(self.types)} numbers for {self.types}, got {tuple(flat.shape)}")
        pairs = np.asarray(flat.detach().cpu(), float).reshape(-1, 2)
        return {key: (float(w), float(b)) for key, (w, b) in zip(self.types, pairs, strict=True)}
