"""What an analysis made of its observations: consistency of errors, χ², degrees of freedom for signal.

With departures of the background d_b = y - H x̄_b and of the analysis d_a = y - H x̄_a, in a filter whose gain is
optimal (Desroziers et al. 2005, doi:10.1256/qj.05.108, eq. 2 to 4)

    E[d_a d_b] = r²    E[(H x̄_a - H x̄_b) d_b] = HPHᵀ    E[(H x̄_a - H x̄_b) d_a] = HP_aHᵀ

of each observation, whether or not errors of observation are correlated; where the gain is not optimal these are the
first step of a fixed-point iteration. The sum of squares (Ménard et al. 2000; Talagrand 1999)

    χ² = dᵀ (HPHᵀ + R)⁻¹ d,   E[χ²] = p

tests both errors and their correlations together, and the trace of ∂(H x̄_a)/∂y is how many of the p observations
went into the analysis (Rodgers 2000, section 2.4; Cardinali et al. 2004, doi:10.1256/qj.03.205). Matrices are of the
size of the ensemble; anomalies and departures are multiplied by R^(-1/2), see `filters.departures`. Statistics are
sums that add up over times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..emulators import State
from .filters import departures, over_matrices, precision
from .observations import ObservationError, Observations
from .verification import Innovation, Type, rows_of_types


@dataclass(frozen=True)
class Consistency:
    """Sums over departures from background and analysis of one variable and kind; `a + b` is of both.

    Attributes:
        count: number of observations.
        observation: Σ d_a d_b, in the squared unit of the variable.
        background: Σ (H x̄_a - H x̄_b) d_b.
        analysis: Σ (H x̄_a - H x̄_b) d_a.
        assumed_observation, assumed_background, assumed_analysis: Σ of error² and of spread² before and after.
    """

    count: int
    observation: float
    background: float
    analysis: float
    assumed_observation: float
    assumed_background: float
    assumed_analysis: float

    columns: ClassVar[dict[str, str]] = {
        "count": "number of observations",
        "observation_error": "standard deviation of observation errors, diagnosed",
        "assumed_observation_error": "standard deviation of observation errors, assumed",
        "background_error": "standard deviation of background errors, diagnosed",
        "background_spread": "ensemble spread of the background",
        "analysis_error": "standard deviation of analysis errors, diagnosed",
        "analysis_spread": "ensemble spread of the analysis",
    }

    def __add__(self, other: Consistency) -> Consistency:
        mine, its = vars(self), vars(other)
        return Consistency(**{name: mine[name] + its[name] for name in mine})

    def _root(self, total: float) -> float:
        return math.sqrt(total / self.count) if total >= 0 else math.nan

    @property
    def observation_error(self) -> float:
        """Diagnosed standard deviation of the errors of observation; NaN where its square is negative."""
        return self._root(self.observation)

    @property
    def background_error(self) -> float:
        """Diagnosed standard deviation of the background's errors; NaN where its square is negative."""
        return self._root(self.background)

    @property
    def analysis_error(self) -> float:
        """Diagnosed standard deviation of the analysis' errors; NaN where its square is negative."""
        return self._root(self.analysis)

    @property
    def assumed_observation_error(self) -> float:
        """Root mean square of the errors that the observations came with."""
        return self._root(self.assumed_observation)

    @property
    def background_spread(self) -> float:
        """Root mean square spread of the observed background."""
        return self._root(self.assumed_background)

    @property
    def analysis_spread(self) -> float:
        """Root mean square spread of the observed analysis."""
        return self._root(self.assumed_analysis)


def consistency(before: Innovation, after: Innovation) -> dict[Type, Consistency]:
    """Sums per (kind, variable) of the diagnostics of Desroziers et al. (2005).

    Args:
        before: observations against the background.
        after: the same observations against the analysis.

    Raises ObservationError unless both are of the same observations.
    """
    o, other = before.observations, after.observations
    if len(o) != len(other) or (o.value != other.value).any():
        raise ObservationError(f"wanted departures of the same observations, got {o} and {other}")
    d_b, d_a, moved = before.departure, after.departure, before.departure - after.departure
    squares = d_a * d_b, moved * d_b, moved * d_a, o.error**2, before.spread**2, after.spread**2
    return {k: Consistency(len(i), *(float(s[i].sum()) for s in squares)) for k, i in rows_of_types(o).items()}


@dataclass(frozen=True)
class ChiSquare:
    """χ² of all observations of some times; `a + b` is of both.

    Attributes:
        count: p, number of observations.
        value: Σ χ².
    """

    count: int
    value: float

    def __add__(self, other: ChiSquare) -> ChiSquare:
        return ChiSquare(self.count + other.count, self.value + other.value)

    @property
    def ratio(self) -> float:
        """χ²/p: 1 if errors are what they should be, above if they are larger than the filter believes."""
        return self.value / self.count

    @property
    def score(self) -> float:
        """How many standard deviations of the χ² distribution, sqrt(2p), the value is above p."""
        return (self.value - self.count) / math.sqrt(2 * self.count)


def chi_square(Y: Tensor, d: Tensor, *, inflation: float | Tensor = 1.0) -> Tensor:
    """dᵀ (I + λ² Y Yᵀ/(N-1))⁻¹ d, batched over experiments, by the N x N matrix of the ensemble transform.

    Args:
        Y: anomalies of the background in observation space, multiplied by R^(-1/2), (..., observation, member).
        d: departures, likewise, (..., observation).
        inflation: λ, multiplies the anomalies; a number, or one per experiment (...).

    Returns (...,). With the covariance of few members its expectation is above p even if these are drawn from the true
    distribution: the inverse of a sample covariance overestimates. By (I + ZZᵀ)⁻¹ = I - Z (I + ZᵀZ)⁻¹ Zᵀ.
    """
    A, b = precision(Y, d, None, inflation)
    residual = torch.linalg.solve(A, b.unsqueeze(-1))
    fitted: Tensor = d - (Y @ residual).squeeze(-1)  # (I + ZZᵀ)⁻¹ d, not d² - ..., which cancels
    return (d * fitted).sum(-1)


def chi_square_of(forecast: State, observations: Observations, *, inflation: float = 1.0) -> ChiSquare:
    """χ² of one background and its observations, with the correlations of errors that these have.

    Without localisation: of many more observations than members it tests R above all, as the ensemble's covariance
    reaches few of their directions. Raises ObservationError as `departures`.
    """
    if not len(observations):
        return ChiSquare(0, 0.0)
    with torch.no_grad():
        Y, d = departures(forecast, observations)
        return ChiSquare(len(observations), float(chi_square(Y, d, inflation=inflation)))


@dataclass(frozen=True)
class Information:
    """Degrees of freedom for signal of one variable and kind; `a + b` is of both.

    Attributes:
        count: number of observations.
        signal: tr ∂(H x̄_a)/∂y over these, between 0 and their number.
    """

    count: int
    signal: float

    columns: ClassVar[dict[str, str]] = {
        "count": "number of observations",
        "signal": "degrees of freedom for signal",
        "share": "weight of an observation in the analysis at its place",
    }

    def __add__(self, other: Information) -> Information:
        return Information(self.count + other.count, self.signal + other.signal)

    @property
    def share(self) -> float:
        """Mean weight of an observation in the analysis at its own place; the rest is the background's."""
        return self.signal / self.count


def self_sensitivity(Y: Tensor, *, inflation: float | Tensor = 1.0) -> Tensor:
    """Diagonal of R^(-1/2) HK R^(1/2), (..., observation), of the gain of an ensemble transform filter.

    S = λ² Y A⁻¹ Yᵀ/(N-1),  A = I + λ² YᵀY/(N-1)

    Args:
        Y: anomalies of the background, as in `chi_square`.
        inflation: λ, as in `chi_square`.

    Its sum is the trace of ∂(H x̄_a)/∂y. So is the part of any observations whose errors are not correlated
    with those of others.
    """
    A, _ = precision(Y, torch.zeros_like(Y[..., 0]), None, inflation)
    weighted = Y * over_matrices(inflation) / math.sqrt(Y.shape[-1] - 1)
    sensitivity: Tensor = (weighted * torch.linalg.solve(A, weighted.mT).mT).sum(-1)
    return sensitivity


def information(analysis: State, observations: Observations) -> dict[Type, Information]:
    """Degrees of freedom for signal per (kind, variable), from the spread that a filter has left.

    The gain is K = P_a Hᵀ R⁻¹, so that HK is the covariance of the analysis members where they are observed, divided
    by R; localised or not, but before relaxation or inflation of the analysis, which would count as signal.

    Source: Liu et al. (2009), doi:10.1002/qj.511. Raises ObservationError as `departures`.
    """
    if not len(observations):
        return {}
    with torch.no_grad():
        Y, _ = departures(analysis, observations)
        return _by_type(observations, Y.square().sum(-1) / (Y.shape[-1] - 1))


def information_of_etkf(
    forecast: State, observations: Observations, *, inflation: float = 1.0
) -> dict[Type, Information]:
    """Degrees of freedom for signal per (kind, variable) of a global filter, from the background alone.

    Raises ObservationError as `departures`.
    """
    if not len(observations):
        return {}
    with torch.no_grad():
        Y, _ = departures(forecast, observations)
        return _by_type(observations, self_sensitivity(Y, inflation=inflation))


def _by_type(observations: Observations, sensitivity: Tensor) -> dict[Type, Information]:
    s = sensitivity.cpu().numpy()
    return {key: Information(len(i), float(s[i].sum())) for key, i in rows_of_types(observations).items()}
