"""The ensemble transform Kalman filter: its array function, and the global filter.

With background members x_i (N of them, mean x̄, anomalies X), their observed anomalies Y = HX and the
departures d = y - H x̄, both divided by the observation errors, Hunt et al. (2007,
doi:10.1016/j.physd.2006.11.008) find the analysis within the span of the ensemble, after the anomalies
were inflated by λ and R⁻¹ was multiplied by the localisation weights ρ:

    A = I + λ² Yᵀ ρ Y / (N-1)
    T = λ A^(-1/2)                           anomalies: X T, symmetric root: the smallest change
    w = λ² A⁻¹ Yᵀ ρ d / (N-1)                mean: x̄ + X w
    T ← (1-α) T + α I                        relaxation to prior perturbations (Zhang et al. 2004)

It is the exact Kalman update with the sample covariance λ² X Xᵀ / (N-1). Everything is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..emulators import Layout, LayoutError, State
from .observations import ObservationError, Observations
from .operators import newest, operator_for


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


def transform(
    Y: Tensor, d: Tensor, rho: Tensor | None = None, *, inflation: float = 1.0, rtpp: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The weights of an ensemble transform Kalman filter, batched over columns.

    Args:
        Y: anomalies of the background in observation space, divided by the observation errors,
            (..., observation, member); they sum to zero over members.
        d: observations minus the background mean, divided by the errors, (..., observation).
        rho: localisation weights that multiply R⁻¹, (..., observation); 0 removes an observation.
        inflation: λ, multiplies the background anomalies.
        rtpp: α, how much of the (uninflated) background anomalies is kept.

    Returns T (..., member, member), symmetric, and w (..., member), in the dtype of Y: the analysis is
    x̄ + X w + X T. It may be differentiated once with respect to every tensor.

    Source: Hunt et al. (2007), section 2.3.
    """
    N = Y.shape[-1]
    # ρ enters once, not as √ρ on both sides: the derivative of √ρ does not exist where ρ = 0.
    scale = inflation**2 / (N - 1)
    weighted = (Y * (scale if rho is None else rho.unsqueeze(-1) * scale)).mT
    eye = torch.eye(N, dtype=Y.dtype, device=Y.device)
    root: Tensor = _InverseRoot.apply(eye + weighted @ Y)[0]  # type: ignore[no-untyped-call]
    w = (root @ (root @ (weighted @ d.unsqueeze(-1)))).squeeze(-1)
    return (1 - rtpp) * inflation * root + rtpp * eye, w


def departures(forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
    """What `transform` needs: Y (observation, member) and d (observation,), both divided by the errors.

    They are float64: A has a condition number of 1 + ‖YᵀY‖ / (N-1), 1e5 and more where many accurate
    observations meet, and its N x N algebra costs little beside the states.

    Raises ObservationError unless there are two members and the observations are of the newest slot's
    time; or as `operator_for`.
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
    mean = observed.mean(0)
    return ((observed - mean) / error).mT, (value - mean) / error


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


def check_tuning(name: str, inflation: float, rtpp: float) -> None:
    """Raise ValueError unless inflation > 0 and 0 <= rtpp <= 1."""
    if not inflation > 0 or not 0 <= rtpp <= 1:
        raise ValueError(f"{name}: wanted inflation > 0 and 0 <= rtpp <= 1, got inflation={inflation}, rtpp={rtpp}")


@dataclass(frozen=True)
class ETKF:
    """The global ensemble transform Kalman filter: every observation acts everywhere.

    Attributes:
        inflation: multiplies the background anomalies.
        rtpp: relaxation to prior perturbations, in [0, 1].
        variables: what to update; default everything.
        block: columns updated at a time; changes memory, not results.
    """

    inflation: float = 1.0
    rtpp: float = 0.0
    variables: tuple[str, ...] | None = None
    block: int = 4096

    def __post_init__(self) -> None:
        check_tuning("ETKF", self.inflation, self.rtpp)

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble: same members, time and layout; land and other variables bitwise the same.

        Without observations it is the forecast. Raises ObservationError as `departures`.
        """
        if not len(observations):
            return forecast
        layout, place = forecast.layout, forecast.data.device
        T, w = transform(*departures(forecast, observations), inflation=self.inflation, rtpp=self.rtpp)
        data, channels = forecast.data.flatten(-2), updated_channels(layout, self.variables).to(place)
        wet, out = layout.mask.flatten(-2).to(place)[channels], data.clone()
        for columns in torch.split(wet.any(0).nonzero()[:, 0], self.block):
            update(out, data, ~wet[:, columns], channels, columns, T[None], w[None])
        return forecast.replace(data=out.view_as(forecast.data))
