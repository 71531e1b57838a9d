"""Inflation: what is done to an ensemble so that it is not too sure of itself.

`Inflated(analysis, before=…, after=…)` is an analysis again, whatever it wraps. Each inflation is a small frozen
object with one method, `inflate(state, reference) -> State`: before the analysis both are the forecast, after
it the reference is the forecast as it came. Without observations nothing is inflated.

    multiplicative    X ← λ X                                      (Anderson and Anderson 1999)
    additive          x_i ← x_i + s A ξ_i / √(K-1), Σ ξ_i = 0        (Mitchell and Houtekamer 2000)
    RTPP              X ← (1-α) X + α X_f                          (Zhang et al. 2004)
    RTPS              X ← X (1 + α (σ_f - σ) / σ)                  (Whitaker and Hamill 2012)
    adaptive          X ← λ(y, x) X, λ² from innovations           (Miyoshi 2011)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..emulators import Draws, Layout, LayoutError, Noise, State
from .cycle import Analysis
from .filters import departures, updated_channels
from .letkf import LETKF
from .observations import Observations
from .operators import newest


class Inflation(Protocol):
    """Anything that changes the spread of an ensemble."""

    def inflate(self, state: State, reference: State) -> State:
        """The state with another spread and, but for rounding, the same mean; land bitwise the same."""
        ...


def multiplied(E: Tensor, factor: float | Tensor, *, dim: int = 0) -> Tensor:
    """Members E with anomalies multiplied by a factor, which broadcasts; `dim` is that of members."""
    return E + (E - E.mean(dim, keepdim=True)) * (factor - 1)


def rtpp(E: Tensor, forecast: Tensor, alpha: float | Tensor, *, dim: int = 0) -> Tensor:
    """Relaxation to prior perturbations, X ← (1-α) X + α X_f; `dim` is that of members.

    Source: Zhang et al. (2004), doi:10.1175/1520-0493(2004)132<1238:IOIEAO>2.0.CO;2.
    """
    X, Xf = (a - a.mean(dim, keepdim=True) for a in (E, forecast))
    return E + alpha * (Xf - X)


def rtps(E: Tensor, forecast: Tensor, alpha: float | Tensor, *, dim: int = 0) -> Tensor:
    """Relaxation to prior spread, X ← X (1 + α (σ_f - σ) / σ); nothing where σ = 0; `dim` is that of members.

    Source: Whitaker and Hamill (2012), doi:10.1175/MWR-D-11-00276.1.
    """
    X, Xf = (a - a.mean(dim, keepdim=True) for a in (E, forecast))
    variance, prior = (a.square().sum(dim, keepdim=True) for a in (X, Xf))
    safe = (variance > 0) & (prior > 0)
    # The root has no derivative at 0, and what is not used must not give NaN either.
    ratio = (torch.where(safe, prior, 1.0) / torch.where(safe, variance, 1.0)).sqrt()
    factor = torch.where(safe, ratio - 1, torch.where(variance > 0, -1.0, 0.0))
    return E + X * (alpha * factor)


def adapted(
    delta: Tensor, h: Tensor, d: Tensor, rho: Tensor, *, variance: float = 0.0016, least: float = 1.0, most: float = 4.0
) -> Tensor:
    """The inflation of covariances that innovations ask for, mixed with the one so far, batched over columns.

    Innovations should have E d dᵀ = Δ H P Hᵀ + R. From the observations near a column, all divided by R^½,

        Δ_o = (Σ ρ d² - Σ ρ) / Σ ρ h,   v_o = 2/Σρ ((Δ Σ ρ h + Σ ρ) / Σ ρ h)²,   h = diag(H P Hᵀ)/R

    is an estimate with error variance v_o, and Δ ← (v_o Δ + v Δ_o) / (v_o + v) is the Kalman filter for it.

    Args:
        delta: Δ so far, λ², (...).
        h: variance of the observed background *without* inflation, divided by the error variance,
            (..., observation).
        d: observations minus the background mean, divided by the errors, (..., observation).
        rho: localisation weights, (..., observation).
        variance: v, the prior variance of Δ: how fast it adapts.
        least, most: bounds of the estimate, against outliers.

    Returns Δ (...); where nothing is seen it is `delta`.

    Source: Miyoshi (2011), doi:10.1175/2010MWR3570.1, section 2.
    """
    weight, spread = rho.sum(-1), (rho * h).sum(-1)
    seen = (weight > 0) & (spread > 0)
    safe_weight, safe_spread = (torch.where(seen, a, 1.0) for a in (weight, spread))
    estimate = ((rho * d.square()).sum(-1) - weight) / safe_spread
    error = 2 / safe_weight * ((delta * spread + weight) / safe_spread) ** 2
    mixed = (error * delta + variance * estimate) / (error + variance)
    return torch.where(seen, mixed.clamp(least, most), delta)


@dataclass(frozen=True)
class Multiplicative:
    """Anomalies times a factor λ > 0, for all variables or some."""

    factor: float
    variables: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"Multiplicative: wanted factor > 0, got {self.factor}")

    def inflate(self, state: State, reference: State) -> State:
        """As `multiplied`."""
        return state if self.factor == 1 else _where_wet(state, multiplied(state.data, self.factor), self.variables)


@dataclass(frozen=True)
class RTPP:
    """Relaxation to prior perturbations, α in [0, 1]; for use after an analysis."""

    alpha: float
    variables: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _require_fraction("RTPP", self.alpha)

    def inflate(self, state: State, reference: State) -> State:
        """As `rtpp`."""
        return _where_wet(state, rtpp(state.data, _same(state, reference), self.alpha), self.variables)


@dataclass(frozen=True)
class RTPS:
    """Relaxation to prior spread, point by point, α in [0, 1]; for use after an analysis."""

    alpha: float
    variables: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _require_fraction("RTPS", self.alpha)

    def inflate(self, state: State, reference: State) -> State:
        """As `rtps`."""
        return _where_wet(state, rtps(state.data, _same(state, reference), self.alpha), self.variables)


@dataclass(frozen=True)
class Additive:
    """Random combinations of the anomalies of given states are added: noise of the covariance s² B.

    Attributes:
        static: states whose sample covariance is B, such as differences between a model and a reanalysis, at
            least two; balanced as they are.
        scale: s, >= 0.
        noise: where the combinations come from, by the members' numbers and the time.
        variables: what to change; default everything.
    """

    static: State = field(repr=False)
    scale: float = 1.0
    noise: Draws = field(default_factory=lambda: Noise(0))
    variables: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.scale >= 0 or len(self.static.members) < 2:
            got = f"scale={self.scale} and {len(self.static.members)}"
            raise ValueError(f"Additive: wanted scale >= 0 and at least two static states, got {got}")

    def inflate(self, state: State, reference: State) -> State:
        """The members with noise whose mean over members is zero."""
        state.layout.require_same(self.static.layout, "Additive: static states")
        K, N, device = len(self.static.members), len(state.members), state.data.device
        drawn = self.noise.stream("additive").normal(
            state.members, newest(state), (K,), dtype=torch.float64, device=device
        )
        # Centred numbers vary less by (N-1)/N; the sample covariance, which divides by N-1, does not.
        weights = self.scale / (K - 1) ** 0.5 * (drawn - drawn.mean(0) if N > 1 else drawn)
        A = self.static.data.to(state.data)
        noise = torch.einsum("ik,k...->i...", weights.to(A.dtype), A - A.mean(0))
        return _where_wet(state, state.data + noise, self.variables)


@dataclass(frozen=True)
class Inflated:
    """An analysis with inflation before and after it.

    Attributes:
        wrapped: any analysis.
        before: inflations of the forecast, in order.
        after: inflations of the analysis, in order, relative to the forecast as it came.
    """

    wrapped: Analysis
    before: Sequence[Inflation] = ()
    after: Sequence[Inflation] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", tuple(self.before))
        object.__setattr__(self, "after", tuple(self.after))
        if any(isinstance(i, RTPP | RTPS) for i in self.before):
            raise ValueError("Inflated: relaxation wants an analysis and its forecast; give RTPP and RTPS as `after`")

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble, inflated; without observations it is the forecast. Raises what `wrapped` does."""
        if not len(observations):
            return forecast
        state = forecast
        for inflation in self.before:
            state = inflation.inflate(state, forecast)
        state = self.wrapped.analysis(state, observations)
        for inflation in self.after:
            state = inflation.inflate(state, forecast)
        return state


@dataclass(frozen=True)
class Adaptive:
    """Multiplicative inflation that every column learns from the innovations near it (Miyoshi 2011).

    What it has learned, Δ = λ² (y, x), is not kept inside: `step` takes it and returns the next, so that a
    cycle which stored it goes on in the same bits.

        delta = adaptive.start(state.layout)
        state, delta = adaptive.step(forecast, observations, delta)

    Attributes:
        wrapped: the analysis of the inflated forecast, without multiplicative inflation of its own.
        half_width: of the taper of observations around a column, m; None for one Δ for all.
        variance: prior variance of Δ: how fast it adapts, 0.04² in the paper.
        least, most: bounds of Δ.
        max_observations: at most so many, the nearest, count for a column.
        block: columns at a time; changes memory, not results.
    """

    wrapped: Analysis
    half_width: float | None
    variance: float = 0.0016
    least: float = 1.0
    most: float = 4.0
    max_observations: int = 1000
    block: int = 1024

    def __post_init__(self) -> None:
        if not self.variance > 0 or not 0 < self.least <= self.most:
            got = f"variance={self.variance}, least={self.least}, most={self.most}"
            raise ValueError(f"Adaptive: wanted variance > 0 and 0 < least <= most, got {got}")
        self._columns()

    def start(self, layout: Layout) -> Tensor:
        """Δ of no inflation, or the least there may be: (y, x) float64."""
        return torch.full(layout.shape[1:], max(1.0, self.least), dtype=torch.float64)

    def step(self, forecast: State, observations: Observations, delta: Tensor) -> tuple[State, Tensor]:
        """The analysis of the forecast inflated by √Δ, and the next Δ (y, x); without observations both stay.

        Raises LayoutError for a Δ of another shape, and what `wrapped` does.
        """
        if delta.shape != forecast.layout.shape[1:]:
            raise LayoutError(f"Adaptive: wanted delta (y, x) = {forecast.layout.shape[1:]}, got {tuple(delta.shape)}")
        if not len(observations):
            return forecast, delta
        factor = delta.to(forecast.data).sqrt()
        inflated = _where_wet(forecast, multiplied(forecast.data, factor), None)
        return self.wrapped.analysis(inflated, observations), self.adapt(forecast, observations, delta)

    def adapt(self, forecast: State, observations: Observations, delta: Tensor) -> Tensor:
        """The next Δ (y, x) from a forecast that is not inflated; columns that see nothing keep theirs."""
        Y, d = departures(forecast, observations)
        h = Y.square().sum(-1) / (Y.shape[-1] - 1)
        old = delta.flatten().to(Y)
        new = old.clone()
        everywhere = torch.arange(len(old), device=Y.device)
        limits = {"variance": self.variance, "least": self.least, "most": self.most}
        for columns, near, rho in self._columns().column_blocks(forecast.layout, observations, everywhere):
            new[columns] = adapted(old[columns], h[near], d[near], rho, **limits)
        return new.view_as(delta)

    def _columns(self) -> LETKF:
        return LETKF(self.half_width, max_observations=self.max_observations, block=self.block)


def _where_wet(state: State, data: Tensor, variables: tuple[str, ...] | None) -> State:
    """The state with new data at wet points of some variables, and its own bits elsewhere."""
    wet = state.layout.mask
    if variables is not None:
        updated = torch.zeros(wet.shape[0], 1, 1, dtype=torch.bool)
        updated[updated_channels(state.layout, variables)] = True
        wet = wet & updated
    return state.replace(data=torch.where(wet.to(data.device), data, state.data))


def _same(state: State, reference: State) -> Tensor:
    state.layout.require_same(reference.layout, "relaxation: forecast")
    if state.members != reference.members:
        raise LayoutError(f"relaxation: wanted a forecast of members {state.members}, got {reference.members}")
    return reference.data


def _require_fraction(name: str, alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"{name}: wanted alpha in [0, 1], got {alpha}")
