"""Deterministic filters besides the ETKF: DEnKF, ESTKF, and EnSRF above the array functions of `serial.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..emulators import State
from .filters import (
    GlobalFilter,
    check_tuning,
    departures,
    in_order,
    inverse_root,
    over_matrices,
    precision,
    solve,
    transformed,
    updated_channels,
)
from .observations import Observations
from .rotation import projection
from .serial import Reach, alpha, serial_transform


def denkf(Y: Tensor, d: Tensor, rho: Tensor | None = None, *, inflation: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """The deterministic EnKF: anomalies are updated with half the gain, T = λ (I + A⁻¹) / 2.

    To first order in the gain its covariance is that of the Kalman filter, and it is larger by
    K H P Hᵀ Kᵀ / 4. Arguments and returned weights are those of `transform`.

    Source: Sakov and Oke (2008), doi:10.1111/j.1600-0870.2007.00299.x, eq. 15.
    """
    A, b = precision(Y, d, rho, inflation)
    eye = torch.eye(Y.shape[-1], dtype=Y.dtype, device=Y.device).expand_as(A)
    both = solve(A, torch.cat([eye, b.unsqueeze(-1)], -1))
    return over_matrices(inflation) * (eye + both[..., :-1]) / 2, both[..., -1]


def estkf(
    Y: Tensor, d: Tensor, rho: Tensor | None = None, *, inflation: float | Tensor = 1.0, root: str = "symmetric"
) -> tuple[Tensor, Tensor]:
    """The error-subspace transform Kalman filter: the algebra of `transform` in the N-1 dimensions of X.

    With Ω of `projection` and A = I + λ² Ωᵀ Yᵀ ρ Y Ω / (N-1), T = λ Ω A^(-1/2) Ωᵀ. With the symmetric root
    the anomalies X T are those of `transform`; with Cholesky's A = L Lᵀ, T = λ Ω L⁻ᵀ Ωᵀ costs a fraction,
    has the same covariance, but changes members more and depends on their order.

    Args:
        Y, d, rho, inflation: as in `transform`.
        root: "symmetric" or "cholesky".

    Returns T (..., member, member), whose rows and columns sum to zero, and w (..., member).

    Source: Nerger et al. (2012), doi:10.1175/MWR-D-11-00102.1, section 2c.
    """
    omega = projection(Y.shape[-1], dtype=Y.dtype, device=Y.device)
    scale = over_matrices(inflation) ** 2 / (Y.shape[-1] - 1)
    L = Y @ omega
    weighted = (L * (scale if rho is None else rho.unsqueeze(-1) * scale)).mT
    A = torch.eye(L.shape[-1], dtype=Y.dtype, device=Y.device) + weighted @ L
    b = weighted @ d.unsqueeze(-1)
    if root == "cholesky":
        factor = torch.linalg.cholesky(A)
        w = torch.cholesky_solve(b, factor)
        inner = torch.linalg.solve_triangular(factor.mT, omega.mT.expand(*A.shape[:-1], -1), upper=True)
    elif root == "symmetric":
        S = inverse_root(A)
        w, inner = S @ (S @ b), S @ omega.mT
    else:
        raise ValueError(f'estkf: wanted root "symmetric" or "cholesky", got {root!r}')
    return over_matrices(inflation) * (omega @ inner), (omega @ w).squeeze(-1)


@dataclass(frozen=True)
class DEnKF(GlobalFilter):
    """The deterministic ensemble Kalman filter of Sakov and Oke (2008); every observation acts everywhere.

    Attributes:
        inflation, rtpp, variables, block: as in `GlobalFilter`.
    """

    def weights(self, forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
        """T (member, member) and w (member,), float64, before relaxation."""
        return denkf(*departures(forecast, observations), inflation=self.inflation)


@dataclass(frozen=True)
class ESTKF(GlobalFilter):
    """The error-subspace transform Kalman filter of Nerger et al. (2012); every observation acts everywhere.

    Attributes:
        inflation, rtpp, variables, block: as in `GlobalFilter`.
        root: "symmetric", with the members of the ETKF, or "cholesky", cheaper.
    """

    root: str = "symmetric"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root not in ("symmetric", "cholesky"):
            raise ValueError(f'ESTKF: wanted root "symmetric" or "cholesky", got {self.root!r}')

    def weights(self, forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
        """T (member, member) and w (member,), float64, before relaxation."""
        return estkf(*departures(forecast, observations), inflation=self.inflation, root=self.root)


@dataclass(frozen=True)
class EnSRF:
    """The serial ensemble square-root filter with Schur localisation; for Gaussian filters also the EAKF.

    Observations are put into one order, whatever order they come in, and assimilated colour by colour.
    It costs one small step per colour: some 1e4 observations are a sensible number, LETKF takes more.

    Attributes:
        half_width: of the horizontal taper of covariances, m: 5/24 there, 0 at twice that; None for no
            taper at all, vertical included.
        vertical_half_width: of the vertical taper, m; None for none. Fields without levels, such as sea
            level, belong to the whole column: they neither are nor see tapered.
        inflation: λ, multiplies the background anomalies, everywhere.
        variables: what to update; default everything.
        block: columns updated at a time; changes memory, not results.
    """

    half_width: float | None
    vertical_half_width: float | None = None
    inflation: float = 1.0
    variables: tuple[str, ...] | None = None
    block: int = 4096

    def __post_init__(self) -> None:
        check_tuning("EnSRF", self.inflation, 0.0)
        for name in ("half_width", "vertical_half_width", "block"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"EnSRF: wanted {name} > 0, got {value}")

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble: same members, time and layout.

        Args:
            forecast: at least two members that differ.
            observations: of the time of its newest slot; all must have a wet point around them.

        Land, other variables and (with inflation 1) what no observation reaches are bitwise the same; without
        observations it is the forecast. It is differentiable once with respect to the forecast.

        Raises ObservationError as `departures`, LayoutError for unknown `variables`.
        """
        if not len(observations):
            return forecast
        observations = in_order(observations)
        Y, d = departures(forecast, observations)
        if self.half_width is None or math.isinf(self.half_width):
            T, w = serial_transform(Y, d, inflation=self.inflation)
            return transformed(forecast, T, w, self.variables, self.block)
        start = forecast
        if self.inflation != 1:
            eye = torch.eye(len(Y.mT), dtype=Y.dtype, device=Y.device)
            start = transformed(forecast, self.inflation * eye, 0 * Y[0], self.variables, self.block)
        channels = updated_channels(forecast.layout, self.variables)
        reach = Reach(forecast.layout, observations, channels, self.half_width, self.vertical_half_width)
        flat = start.data.flatten(-2)
        rows = flat[:, channels.to(flat.device)].permute(2, 1, 0).contiguous()  # what a cell needs lies together
        _sweep(rows, self.inflation * Y, d.clone(), reach, self.block)
        out = flat.clone()
        out[:, channels.to(flat.device)] = rows.permute(2, 1, 0)
        return forecast.replace(data=out.view_as(forecast.data))


def _sweep(rows: Tensor, Y: Tensor, d: Tensor, reach: Reach, block: int) -> None:
    """Assimilate all observations into `rows` (cell, channel, member), Y and d, all changed in place."""
    N, wet = Y.shape[-1], reach.wet.to(rows.device).mT
    for colour in reach.colours():
        j = torch.from_numpy(colour).to(Y.device)
        own, seen = Y[j], d[j].unsqueeze(-1)
        s = (own**2).sum(-1, keepdim=True) / (N - 1)
        shift, shrink = seen / (1 + s), own * alpha(s) / (1 + s)
        direction, change = (a.to(rows.dtype) for a in (own / (N - 1), shift - shrink))  # (observation, member)
        for cells, of, rho in reach.cells(colour, block, rows.device):
            background = rows[cells]  # (cell, channel, member)
            covariance = (background - background.mean(-1, keepdim=True)) @ direction[of].unsqueeze(-1)
            increment = rho.to(rows.dtype).mT.unsqueeze(-1) * covariance * change[of].unsqueeze(1)
            touched = (wet[cells] & (rho.mT > 0)).unsqueeze(-1)
            rows[cells] = torch.where(touched, background + increment, background)
        others, of, rho = reach.others(colour, Y.device)
        k = rho * (Y[others] * own[of]).sum(-1) / (N - 1)
        d[others] = d[others] - k * shift[of, 0]
        Y[others] = Y[others] - k.unsqueeze(-1) * shrink[of]
