"""How much each observation changed a forecast: the ensemble forecast sensitivity to observations.

A forecast from the analysis ends with the error e_0 of its mean, the one from the background with e_b. Of the
difference of their squares, in a norm C that is diagonal here, observation i accounts for (Kalnay et al. 2012,
doi:10.3402/tellusa.v64i0.18462, eq. 6)

    e_0ᵀ C e_0 - e_bᵀ C e_b  ≈  Σ_i d_i [ρ ∘ R⁻¹ Y_a X_fᵀ]_i C (e_0 + e_b) / (N-1)

with departures d of the background, anomalies Y_a of the analysis where it is observed, and X_f of the forecast that
was started from it. Negative impacts are improvements. Without localisation and for a linear model the sum is
exact, since K = X_a Y_aᵀ R⁻¹/(N-1). ρ is a taper of distance between observation and forecast; that it should
move with the flow is left out, so that it ought to be wide for long forecasts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..emulators import Field, Layout, LayoutError, State
from .filters import departures
from .localise import LocalObservations, gaspari_cohn
from .observations import Observations
from .verification import Type, rows_of_types


@dataclass(frozen=True)
class ImpactStatistics:
    """Sums over the impacts of one variable and kind; `a + b` is of both.

    Attributes:
        count: number of observations.
        total: Σ impact, in the unit of the norm; negative where the forecast became better.
        beneficial: number of observations with a negative impact.
    """

    count: int
    total: float
    beneficial: int

    columns: ClassVar[dict[str, str]] = {
        "count": "number of observations",
        "total": "change of squared forecast error, negative for improvement",
        "mean": "change of squared forecast error by one observation",
        "share": "fraction of observations that improved the forecast",
    }

    def __add__(self, other: ImpactStatistics) -> ImpactStatistics:
        return ImpactStatistics(self.count + other.count, self.total + other.total, self.beneficial + other.beneficial)

    @property
    def mean(self) -> float:
        """Impact of one observation."""
        return self.total / self.count

    @property
    def share(self) -> float:
        """Fraction of observations that improved the forecast, usually little more than a half."""
        return self.beneficial / self.count


@dataclass(frozen=True, eq=False)
class Impact:
    """Impacts of the observations of one time on one forecast.

    Attributes:
        observations: what was assimilated.
        impact: change of squared forecast error due to each, (observation,) float64.
        actual: change of squared forecast error, which the impacts should sum to.
    """

    observations: Observations
    impact: np.ndarray = field(repr=False)
    actual: float

    @property
    def estimated(self) -> float:
        """Sum of all impacts."""
        return float(self.impact.sum())

    def statistics(self) -> dict[Type, ImpactStatistics]:
        """Sums per (kind, variable)."""
        x = self.impact
        rows = rows_of_types(self.observations).items()
        return {k: ImpactStatistics(len(i), float(x[i].sum()), int((x[i] < 0).sum())) for k, i in rows}


def efso(Y: Tensor, d: Tensor, X: Tensor, gradient: Tensor, rho: Tensor | None = None) -> Tensor:
    """Impacts of observations on a forecast, batched over experiments.

    Args:
        Y: anomalies of the analysis in observation space, multiplied by R^(-1/2), (..., observation, member).
        d: departures of the background, likewise, (..., observation).
        X: anomalies of the forecast from the analysis, (..., point, member).
        gradient: C (e_0 + e_b), (..., point).
        rho: taper between observations and the forecast, (..., observation, point); None for none.

    Returns (..., observation).
    """
    N = Y.shape[-1]
    columns = gradient.unsqueeze(-1)
    along = Y @ (X.mT @ columns) if rho is None else (rho * (Y @ X.mT)) @ columns
    return d * along.squeeze(-1) / (N - 1)


def norm(layout: Layout, scales: Mapping[str, float]) -> Tensor:
    """Weights C of a norm, (channel, y, x) float64: of each variable the mean over its wet volume, or area.

    Args:
        layout: of the forecasts; only the newest time slot counts.
        scales: for each variable that counts, the error that contributes 1 if it is everywhere, in its unit.

    Raises LayoutError for unknown variables.
    """
    unknown = sorted(set(scales) - set(layout.names))
    if unknown:
        raise LayoutError(f"no variable(s) {', '.join(unknown)} to measure; the state has {', '.join(layout.names)}")
    out, area = np.zeros(layout.shape), layout.grid["areacello"].values
    for name, scale in scales.items():
        f = layout.field(name)
        thickness = layout.grid["dz"].values[: f.levels] if f.levels else np.ones(1)
        volume = thickness[:, None, None] * np.nan_to_num(area) * layout.field_mask(f)
        out[layout.channels(name)] = volume / volume.sum() / scale**2
    return torch.from_numpy(out)


def observation_impact(
    background: State,
    analysis: State,
    observations: Observations,
    forecast: State,
    earlier: State,
    truth: State,
    weights: Tensor,
    *,
    half_width: float | None = None,
    block: int = 512,
) -> Impact:
    """The impact of each observation of an analysis on a forecast from it.

    Args:
        background, analysis: the ensemble at the time of the observations, before and after.
        observations: as they were assimilated, with the errors that were used.
        forecast: the ensemble some time later, started from `analysis`.
        earlier: the ensemble, or its mean, at that time, started from `background`.
        truth: what it is verified against, an ensemble or one state; its mean counts. An analysis will do if its
            errors are independent of the forecast's.
        weights: C, (channel, y, x) or what broadcasts to it, such as `norm(layout, {"thetao": 0.5})`.
        half_width: of the taper of Gaspari and Cohn, m, as in `LETKF`; None for none.
        block: columns at a time; changes memory, not results.

    Impacts are of the analysis P_a Hᵀ R⁻¹: without relaxation or inflation after it. Where errors are correlated,
    they are those of whitened departures, whose sum is right. Raises ObservationError as `departures`, and
    LayoutError unless forecast, earlier and truth have one layout.
    """
    layout, place = forecast.layout, forecast.data.device
    for what, state in (("earlier", earlier), ("truth", truth)):
        layout.require_same(state.layout, f"observation_impact: {what}")
    if forecast.members != analysis.members:
        raise LayoutError(f"wanted a forecast of the analysed members {analysis.members}, got {forecast.members}")
    wet = layout.mask.to(place)
    with torch.no_grad():
        X = forecast.data.double()
        mean, reference = X.mean(0), truth.data.double().mean(0)
        e_0, e_b = (torch.where(wet, x - reference, 0.0) for x in (mean, earlier.data.double().mean(0)))
        C = weights.to(e_0).expand_as(e_0)
        actual = float((C * (e_0**2 - e_b**2)).sum())
        if not len(observations):
            return Impact(observations, np.zeros(0), actual)
        (_, d), (Y, _) = departures(background, observations), departures(analysis, observations)
        # What a column contributes, for each member: V_n = Σ_channel X_n C (e_0 + e_b), (column, member).
        V = torch.einsum("ncx,cx->xn", torch.where(wet, X - mean, 0.0).flatten(2), (C * (e_0 + e_b)).flatten(1))
        if half_width is None or math.isinf(half_width):
            impact = d * (Y @ V.sum(0)) / (Y.shape[-1] - 1)
        else:
            impact = d * _tapered(layout, observations, Y, V, half_width, block) / (Y.shape[-1] - 1)
    return Impact(observations, impact.cpu().numpy(), actual)


def _tapered(layout: Layout, observations: Observations, Y: Tensor, V: Tensor, half_width: float, block: int) -> Tensor:
    """Σ_columns ρ Y · V, (observation,), of the columns near each observation."""
    lat, lon = (a.ravel() for a in layout.position(Field("any centre")))
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    local = LocalObservations(observations.lat, observations.lon, 2 * half_width, len(observations), period)
    out = torch.zeros_like(Y[:, 0])
    for part in torch.split(layout.mask.any(0).flatten().nonzero()[:, 0], block):
        cells = part.numpy()
        index, distance = (torch.from_numpy(a).to(Y.device) for a in local.near(lat[cells], lon[cells]))
        rho = gaspari_cohn(distance, half_width=half_width)
        along = (Y[index] @ V[part.to(V.device)].unsqueeze(-1)).squeeze(-1)
        out.index_add_(0, index.flatten(), (rho * along).flatten())
    return out
