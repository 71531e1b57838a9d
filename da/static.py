"""Static covariances in ensemble form: ensemble optimal interpolation, optimal interpolation, the hybrid gain.

The covariance B = s A Aᵀ / (K-1) comes from K states that were chosen once, such as a climatology, with
anomalies A; it costs no model runs. With Y = H A and departures d, both divided by the observation errors,

    A K-vector of weights  w = s/(K-1) (I + s/(K-1) Yᵀ ρ Y)⁻¹ Yᵀ ρ d,    x ← x + A w

(Evensen 2003, doi:10.1007/s10236-003-0036-9; Oke et al. 2010). ρ localises as in the LETKF.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..emulators import State
from .correlation import whitening
from .cycle import Analysis
from .filters import over_matrices, solve, updated_channels
from .letkf import LETKF
from .observations import ObservationError, Observations
from .operators import newest, operator_for


def static_weights(Y: Tensor, D: Tensor, rho: Tensor | None = None, *, scale: float | Tensor = 1.0) -> Tensor:
    """The weights of ensemble optimal interpolation, batched over columns or experiments.

    Args:
        Y: anomalies of the static ensemble in observation space, divided by the observation errors,
            (..., observation, K); they sum to zero.
        D: departures of each background to correct, divided by the errors, (..., observation, member).
        rho: localisation weights that multiply R⁻¹, (..., observation).
        scale: s, multiplies the covariance; a number, or one per experiment (...).

    Returns w (..., K, member): the analysis is x + A w. Differentiable; where observations are fewer than K and
    nothing is localised the algebra is done in their space.
    """
    K = Y.shape[-1]
    factor = over_matrices(scale) / (K - 1)
    if rho is None and Y.shape[-2] < K:
        eye = torch.eye(Y.shape[-2], dtype=Y.dtype, device=Y.device)
        return factor * (Y.mT @ solve(eye + factor * (Y @ Y.mT), D))
    weighted = ((Y if rho is None else Y * rho.unsqueeze(-1)) * factor).mT
    eye = torch.eye(K, dtype=Y.dtype, device=Y.device)
    return solve(eye + weighted @ Y, weighted @ D)


@dataclass(frozen=True)
class EnOI:
    """Ensemble optimal interpolation: each member is corrected by itself, with one given covariance.

    With the forecast as background and no localisation it is 3D-Var, solved exactly. A single member will do.

    Attributes:
        static: states whose sample covariance is used, at least two members that differ; their time and
            mean do not matter.
        scale: multiplies the covariance, > 0.
        half_width: of the horizontal taper of R⁻¹, m, as in `LETKF`; None for no taper.
        vertical_half_width: likewise, m; None for none.
        max_observations: at most so many, the nearest, act on a column where there is a taper.
        variables: what to update; default everything.
        block: columns analysed at a time; changes memory, not results.
    """

    static: State = field(repr=False)
    scale: float = 1.0
    half_width: float | None = None
    vertical_half_width: float | None = None
    max_observations: int = 1000
    variables: tuple[str, ...] | None = None
    block: int = 128

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"{type(self).__name__}: wanted scale > 0, got {self.scale}")
        if len(self.static.members) < 2:
            raise ObservationError(
                f"{type(self).__name__}: wanted a static ensemble of at least two states, got "
                f"{len(self.static.members)}"
            )
        self._local()

    def _local(self) -> LETKF:
        return LETKF(
            self.half_width,
            self.vertical_half_width,
            max_observations=self.max_observations,
            block=self.block,
            variables=self.variables,
        )

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis of each member: same members, time and layout; land bitwise the same.

        Args:
            forecast: one member or more.
            observations: of the time of its newest slot; all must have a wet point around them.

        Without observations it is the forecast. Differentiable once with respect to forecast and static states.

        Raises ObservationError for observations of another time or as `operator_for`, LayoutError for static
        states of another layout and unknown `variables`.
        """
        return forecast if not len(observations) else self._corrected(forecast, observations)

    def _corrected(self, background: State, observations: Observations) -> State:
        layout, place = background.layout, background.data.device
        layout.require_same(self.static.layout, f"{type(self).__name__}: static ensemble")
        Y, D = self._departures(background, observations)
        data, wet = background.data.flatten(-2), layout.mask.flatten(-2).to(place)
        static = self.static.data.to(place).flatten(-2)
        out, local = data.clone(), self._local()
        groups = [(c.to(place), wet[c], t.to(place)) for c, t in local.level_groups(layout, observations)]
        some_wet = torch.stack([w.any(0) for _, w, _ in groups]).any(0)
        for columns, near, rho in local.column_blocks(layout, observations, some_wet.nonzero()[:, 0]):
            for channels, water, taper in groups:
                weight = rho * taper[near]
                plain = self.half_width is None and self.vertical_half_width is None
                w = static_weights(Y[near], D[near], None if plain else weight, scale=self.scale)
                seen = (weight > 0).any(-1)
                for part in torch.split(columns, self.block):
                    where = (slice(None), channels.unsqueeze(-1), part)
                    A = static[where]
                    A = (A - A.mean(0)).permute(2, 1, 0)  # (column, channel, K)
                    increment = (A @ w.to(A.dtype)).permute(2, 1, 0).to(data.dtype)
                    out[where] = torch.where(water[:, part] & seen, data[where] + increment, data[where])
        return background.replace(data=out.view_as(background.data))

    def _departures(self, background: State, observations: Observations) -> tuple[Tensor, Tensor]:
        """Y (observation, K) and D (observation, member), both multiplied by R^(-1/2), float64."""
        if observations.time != newest(background):
            raise ObservationError(
                f"wanted observations of the forecast's time {newest(background)}, got {observations.time}"
            )
        operator = operator_for(background.layout, observations)
        seen = operator.apply(background).to(torch.float64)
        static = operator.apply(self.static, shifted=False).to(seen)
        value, error = (torch.tensor(a, device=seen.device) for a in (observations.value, observations.error))
        if not seen.isfinite().all() or not static.isfinite().all():
            raise ObservationError("wanted a forecast and static states that are finite where they are observed")
        white = whitening(observations, seen.device)
        return white(((static - static.mean(0)) / error).mT), white(((value - seen) / error).mT)


@dataclass(frozen=True)
class OI(EnOI):
    """Optimal interpolation of the observations of one time into a climatology; the forecast is not used.

    Mean and covariance are those of `static`: every member of the analysis is the same best estimate,
    x̄ + K (y - H x̄). It is what a cycling method must beat. On land, and for other variables, it is the forecast.

    Attributes:
        static, scale, half_width, vertical_half_width, max_observations, variables, block: as in `EnOI`.
    """

    def _corrected(self, background: State, observations: Observations) -> State:
        layout = background.layout
        layout.require_same(self.static.layout, "OI: static ensemble")
        channels = updated_channels(layout, self.variables)
        updated = torch.zeros(layout.shape[0], 1, 1, dtype=torch.bool)
        updated[channels] = True
        where = (layout.mask & updated).to(background.data.device)
        mean = self.static.data.mean(0).to(background.data)
        return super()._corrected(background.replace(data=torch.where(where, mean, background.data)), observations)


@dataclass(frozen=True)
class HybridGain:
    """The hybrid of an ensemble filter and a static covariance that adds their gains.

    The anomalies are those of the ensemble filter, whose analysis mean is x̄_e. All members move so that
    the mean becomes

        x̄_e + α K_B (y - H x̄_e)                      background="analysis"
        (1-α) x̄_e + α (x̄ + K_B (y - H x̄))           background="forecast"

    Attributes:
        ensemble: any ensemble analysis, such as `LETKF(...)`.
        static: whose gain is K_B.
        alpha: in [0, 1]; 0 is the ensemble filter.
        background: what the static gain corrects, "analysis" (gains K + α K_B - α K_B H K) or "forecast".

    Source: Penny (2014), doi:10.1175/MWR-D-13-00131.1, section 2.
    """

    ensemble: Analysis
    static: EnOI
    alpha: float = 0.5
    background: str = "analysis"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.background not in ("analysis", "forecast"):
            raise ValueError(
                'HybridGain: wanted 0 <= alpha <= 1 and background "analysis" or "forecast", got '
                f"alpha={self.alpha}, background={self.background!r}"
            )

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble: same members, time and layout; land bitwise the same.

        Args and errors are those of the two analyses. Without observations it is the forecast.
        """
        if not len(observations):
            return forecast
        filtered = self.ensemble.analysis(forecast, observations)
        if self.alpha == 0:
            return filtered
        guess = (filtered if self.background == "analysis" else forecast).mean()
        corrected = self.static.analysis(guess, observations)
        change = self.alpha * (corrected.data - guess.data)
        if self.background == "forecast":
            change = change + self.alpha * (guess.data - filtered.mean().data)
        channels = updated_channels(forecast.layout, self.static.variables)
        updated = torch.zeros(forecast.layout.shape[0], 1, 1, dtype=torch.bool)
        updated[channels] = True
        where = (forecast.layout.mask & updated).to(change.device) & (change != 0)
        return filtered.replace(data=torch.where(where, filtered.data + change, filtered.data))
