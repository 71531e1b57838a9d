"""Transforms of an ensemble, and the global ensemble transform Kalman filter.

With background members x_i (N of them, mean x̄, anomalies X), their observed anomalies Y = HX and the
departures d = y - H x̄, both divided by the observation errors, Hunt et al. (2007,
doi:10.1016/j.physd.2006.11.008) find the analysis within the span of the ensemble, after the anomalies
were inflated by λ and R⁻¹ was multiplied by the localisation weights ρ:

    A = I + λ² Yᵀ ρ Y / (N-1)
    T = λ A^(-1/2)                           anomalies: X T, symmetric root: the smallest change
    w = λ² A⁻¹ Yᵀ ρ d / (N-1)                mean: x̄ + X w
    T ← (1-α) T + α I                        relaxation to prior perturbations (Zhang et al. 2004)

It is the exact Kalman update with the sample covariance λ² X Xᵀ / (N-1). Everything is differentiable.

Other filters differ in T alone (`denkf`, `estkf`, `enkf`, `enkf_n`, `serial_transform`); what
turns T and w into an analysis of a State is shared by all of them (`GlobalFilter`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..emulators import Draws, Layout, LayoutError, Noise, State
from .correlation import whitening
from .observations import ObservationError, Observations
from .operators import newest, operator_for
from .rotation import drawn_rotation


class _InverseRoot(torch.autograd.Function):
    """A^(-1/2) of symmetric positive definite matrices, differentiable where eigenvalues repeat.

    The derivative of `eigh` has a pole where two eigenvalues are equal, and A = I + (low rank) has many
    equal to one. That of the root has none: with A = V diag(s²) Vᵀ it is V (F ∘ VᵀdA V) Vᵀ,
    F_ij = (1/s_i - 1/s_j) / (s_i² - s_j²) = -1 / (s_i s_j (s_i + s_j)) (Daleckii and Krein 1965).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eigenvalues, V = torch.linalg.eigh(A)
        s = eigenvalues.sqrt()
        return (V / s.unsqueeze(-2)) @ V.mT, s, V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, s, V = output
        ctx.mark_non_differentiable(s, V)
        ctx.save_for_backward(s, V)
        ctx.save_for_forward(s, V)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Tensor:
        return _InverseRoot._derivative(ctx, grad)  # which is its own adjoint

    @staticmethod
    def jvp(ctx: Any, dA: Tensor) -> tuple[Tensor, None, None]:
        return _InverseRoot._derivative(ctx, dA), None, None

    @staticmethod
    def _derivative(ctx: Any, dA: Tensor) -> Tensor:
        s, V = ctx.saved_tensors
        i, j = s.unsqueeze(-1), s.unsqueeze(-2)
        return -V @ ((V.mT @ ((dA + dA.mT) / 2) @ V) / (i * j * (i + j))) @ V.mT  # type: ignore[no-any-return]


def precision(Y: Tensor, d: Tensor, rho: Tensor | None, inflation: float | Tensor) -> tuple[Tensor, Tensor]:
    """A (..., member, member) and b = λ² Yᵀ ρ d / (N-1), (..., member); arguments are those of `transform`."""
    N = Y.shape[-1]
    # ρ enters once, not as √ρ on both sides: the derivative of √ρ does not exist where ρ = 0.
    scale = over_matrices(inflation) ** 2 / (N - 1)
    weighted = (Y * (scale if rho is None else rho.unsqueeze(-1) * scale)).mT
    eye = torch.eye(N, dtype=Y.dtype, device=Y.device)
    return eye + weighted @ Y, (weighted @ d.unsqueeze(-1)).squeeze(-1)


def over_matrices(setting: float | Tensor) -> float | Tensor:
    """A setting that multiplies matrices: a number, or one per experiment (...) as (..., 1, 1)."""
    return setting[..., None, None] if isinstance(setting, Tensor) else setting


def inverse_root(A: Tensor) -> Tensor:
    """A^(-1/2), symmetric, of symmetric positive definite matrices (..., n, n); differentiable once."""
    root: Tensor = _InverseRoot.apply(A)[0]  # type: ignore[no-untyped-call]
    return root


def solve(A: Tensor, B: Tensor) -> Tensor:
    """A⁻¹ B for symmetric positive definite A (..., n, n) and B (..., n, k)."""
    return torch.cholesky_solve(B, torch.linalg.cholesky(A))


def transform(
    Y: Tensor,
    d: Tensor,
    rho: Tensor | None = None,
    *,
    inflation: float | Tensor = 1.0,
    rtpp: float | Tensor = 0.0,
    rotation: Tensor | None = None,
    inverse_root: Callable[[Tensor], Tensor] = inverse_root,
) -> tuple[Tensor, Tensor]:
    """The weights of an ensemble transform Kalman filter, batched over columns or experiments.

    Args:
        Y: anomalies of the background in observation space, divided by the observation errors,
            (..., observation, member); they sum to zero over members.
        d: observations minus the background mean, divided by the errors, (..., observation).
        rho: localisation weights that multiply R⁻¹, (..., observation); 0 removes an observation.
        inflation: λ, multiplies the background anomalies; a number, or one per experiment (...).
        rtpp: α, how much of the (uninflated) background anomalies is kept; likewise.
        rotation: U with U 1 = 1, (..., member, member): T becomes T U before the relaxation.
        inverse_root: what finds A^(-1/2), of (..., member, member).

    Returns T (..., member, member), symmetric without rotation, and w (..., member), in the dtype of Y: the
    analysis is x̄ + X w + X T. It may be differentiated once with respect to every tensor.

    Source: Hunt et al. (2007), section 2.3; the rotation is that of Sakov and Oke (2008b).
    """
    A, b = precision(Y, d, rho, inflation)
    root, b = inverse_root(A), b.unsqueeze(-1)
    w = root @ (root @ b)
    if w.dtype == torch.float32:  # they multiply all that is known, T only the spread: their error is what is seen
        w = w + root @ (root @ (b.double() - A.double() @ w.double()).float())
    T = over_matrices(inflation) * (root if rotation is None else root @ rotation)
    return relaxed(T, rtpp), w.squeeze(-1)


def relaxed(T: Tensor, rtpp: float | Tensor) -> Tensor:
    """Relaxation to prior perturbations, (1-α) T + α I (Zhang et al. 2004)."""
    alpha = over_matrices(rtpp)
    return (1 - alpha) * T + alpha * torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)


def departures(forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
    """What `transform` needs: Y (observation, member) and d (observation,), both multiplied by R^(-1/2).

    They are float64: A has a condition number of 1 + ‖YᵀY‖ / (N-1), 1e5 and more where many accurate
    observations meet, and its N x N algebra costs little beside the states.

    Raises ObservationError unless there are two members that differ, finite where they are observed, and the
    observations are of the newest slot's time; or as `operator_for`.
    """
    if len(forecast.members) < 2:
        raise ObservationError(f"an ensemble filter needs at least two members, got {forecast.members}")
    time = newest(forecast)
    if observations.time != time:
        raise ObservationError(
            f"wanted observations of the forecast's time {time} ({time.calendar}), got {observations.time} "
            f"({observations.time.calendar}); `cycle` steps the forecast to them"
        )
    observed = operator_for(forecast.layout, observations).apply(forecast).to(torch.float64)
    value, error = (torch.tensor(a, device=observed.device) for a in (observations.value, observations.error))
    mean, white = observed.mean(0), whitening(observations, observed.device)
    if not observed.isfinite().all():
        bad = (~observed.isfinite()).any(1).nonzero()[:, 0].tolist()
        raise ObservationError(
            f"wanted a forecast that is finite where it is observed, members {[forecast.members[i] for i in bad]} are "
            "not; the forecast has failed before this analysis"
        )
    if not (observed != observed[0]).any():  # which may be so where, say, there is no ice
        _require_spread(forecast)
    return white(((observed - mean) / error).mT), white((value - mean) / error)


def _require_spread(forecast: State) -> None:
    """Raise ObservationError if all members are the same at all wet points."""
    wet = forecast.layout.mask.to(forecast.data.device)
    if all(torch.equal(forecast.data[0][wet], member[wet]) for member in forecast.data[1:]):
        raise ObservationError(
            f"wanted an ensemble with spread, all {len(forecast.members)} members are the same at {newest(forecast)}; "
            "perturb the initial states, or use inflation or noise so that it does not collapse"
        )


def in_order(observations: Observations) -> Observations:
    """The observations in an order that does not depend on the one they came in, for what depends on it."""
    o = observations
    return o.select(np.lexsort((o.error, o.value, o.depth, o.lon, o.lat, o.kind, o.variable)))


def updated_channels(layout: Layout, variables: tuple[str, ...] | None) -> Tensor:
    """Channels of some variables (default: of all) in every time slot, (channel,)."""
    names = layout.names if variables is None else variables
    unknown = [n for n in names if n not in layout.names]
    if unknown:
        raise LayoutError(f"no variable(s) {', '.join(unknown)} to analyse; the state has {', '.join(layout.names)}")
    numbers = torch.arange(layout.shape[0])
    return torch.cat([numbers[layout.channels(n, s)] for s in range(len(layout.slots)) for n in names])


def update(out: Tensor, data: Tensor, keep: Tensor, channels: Tensor, columns: Tensor, T: Tensor, w: Tensor) -> None:
    """Write the analysis of some channels and columns into `out`: x_i ← x_i + Σ_j X_j (T_ji + w_j - δ_ji).

    Args:
        out: (member, channel, cell), changed in place.
        data: background (member, channel, cell).
        keep: cells to leave bitwise alone, (channel, column) or what broadcasts to it.
        channels: numbers (channel,).
        columns: numbers of cells (column,).
        T: (column or 1, member, member), of `transform`.
        w: (column or 1, member).
    """
    where = (slice(None), channels.unsqueeze(-1), columns)
    background = data[where]  # (member, channel, column)
    anomalies = (background - background.mean(0)).permute(2, 1, 0)
    # As an increment, what rounding does to the mean of float32 members cancels: columns of T - I sum to 0.
    gain = T + w.unsqueeze(-1) - torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
    increment = (anomalies @ gain.to(data.dtype)).permute(2, 1, 0)
    out[where] = torch.where(keep, background, background + increment)


def transformed(forecast: State, T: Tensor, w: Tensor, variables: tuple[str, ...] | None, block: int) -> State:
    """The analysis x̄ + X w + X T with one T (member, member) and w (member,); land bitwise the same.

    `variables` are updated, None for all, `block` columns at a time. Raises LayoutError for unknown variables.
    """
    layout, place = forecast.layout, forecast.data.device
    data, channels = forecast.data.flatten(-2), updated_channels(layout, variables).to(place)
    wet, out = layout.mask.flatten(-2).to(place)[channels], data.clone()
    for columns in torch.split(wet.any(0).nonzero()[:, 0], block):
        update(out, data, ~wet[:, columns], channels, columns, T[None], w[None])
    return forecast.replace(data=out.view_as(forecast.data))


def check_tuning(name: str, inflation: float, rtpp: float) -> None:
    """Raise ValueError unless inflation > 0 and 0 <= rtpp <= 1."""
    if not inflation > 0 or not 0 <= rtpp <= 1:
        raise ValueError(f"{name}: wanted inflation > 0 and 0 <= rtpp <= 1, got inflation={inflation}, rtpp={rtpp}")


@dataclass(frozen=True)
class GlobalFilter:
    """What the filters share whose analysis is x̄ + X w + X T with one T and w; not a filter itself.

    Attributes:
        inflation: λ, multiplies the background anomalies.
        rtpp: relaxation to prior perturbations, in [0, 1].
        variables: what to update; default everything.
        block: columns updated at a time; changes memory, not results.
    """

    inflation: float = 1.0
    rtpp: float = 0.0
    variables: tuple[str, ...] | None = None
    block: int = 4096

    def __post_init__(self) -> None:
        check_tuning(type(self).__name__, self.inflation, self.rtpp)
        if not self.block > 0:
            raise ValueError(f"{type(self).__name__}: wanted block > 0, got {self.block}")

    def weights(self, forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
        """T (member, member) and w (member,), float64, before relaxation."""
        raise NotImplementedError(f"{type(self).__name__} has no weights; use ETKF, EnKF, DEnKF, ESTKF or EnKFN")

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble: same members, time and layout; land and other variables bitwise the same.

        Args:
            forecast: at least two members that differ.
            observations: of the time of its newest slot; all must have a wet point around them.

        Without observations it is the forecast. It is differentiable once with respect to the forecast.

        Raises ObservationError as `departures`, LayoutError for unknown `variables`.
        """
        if not len(observations):
            return forecast
        T, w = self.weights(forecast, observations)
        T = relaxed(T, self.rtpp) if self.rtpp else T
        return transformed(forecast, T, w, self.variables, self.block)


@dataclass(frozen=True)
class ETKF(GlobalFilter):
    """The global ensemble transform Kalman filter: every observation acts everywhere.

    Attributes:
        inflation, rtpp, variables, block: as in `GlobalFilter`.
        rotate: whether to rotate the anomalies at random, keeping mean and covariance (Sakov and Oke 2008b,
            doi:10.1175/2007MWR2021.1); it undoes clusters of members that nonlinear models make.
        noise: where the rotations come from, by the members' numbers and the time.
    """

    rotate: bool = False
    noise: Draws = field(default_factory=lambda: Noise(0))

    def weights(self, forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
        """T (member, member) and w (member,), float64, before relaxation."""
        Y, d = departures(forecast, observations)
        U = drawn_rotation(self.noise, forecast.members, observations.time, Y.device) if self.rotate else None
        return transform(Y, d, inflation=self.inflation, rotation=U)
