"""The finite-size ensemble Kalman filter, EnKF-N: the inflation that sampling errors call for.

Where mean and covariance are themselves uncertain because they were estimated from N members, and with
Jeffreys' prior for them, the weights w of x = x̄ + X w are not normal but

    -2 ln p(w) = c ln(e + |w|²) + const,   e = x_N (N+1)/N,  c = x_N (N+g)

(Bocquet 2011; Bocquet, Raanes and Hannart 2015, doi:10.5194/npg-22-645-2015). Minimising |d - Y w|² with it
equals minimising over one number ζ, the dual problem, with C = Yᵀ ρ Y and b = Yᵀ ρ d:

    2 D(ζ) = dᵀ ρ d - bᵀ (ζ I + C)⁻¹ b + e ζ - c ln ζ

whose minimum is an ETKF with inflation λ² = (N-1) / ζ. x_N tells how far the prior of ζ is trusted (1 in
theory), g is 0 when w is counted in the N-1 dimensions of X and 1 in its N members.

Where observations are weak, the mode of that prior, λ² = (e/c)(N-1) < 1, would deflate. The mode
correction raises it to (e (N-1) / c)^(1-κ), κ = tr (I + C/(N-1))⁻¹ / N, which is 1 where nothing is
observed (after section 5 of the paper of 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..emulators import State
from .filters import GlobalFilter, departures, inverse_root, solve, transform
from .observations import Observations

_GRID, _STEPS = 48, 40


def finite_size_inflation(
    Y: Tensor,
    d: Tensor,
    rho: Tensor | None = None,
    *,
    xN: float | Tensor = 1.0,
    nullity: int = 0,
    mode_correction: bool = True,
) -> Tensor:
    """The inflation λ of the finite-size filter, one per experiment (...); differentiable once.

    Args:
        Y: anomalies of the background in observation space, divided by the observation errors,
            (..., observation, member); they sum to zero over members.
        d: observations minus the background mean, divided by the errors, (..., observation).
        rho: localisation weights that multiply R⁻¹, (..., observation).
        xN: confidence in the prior of the inflation; a number, or one per experiment (...).
        nullity: g.
        mode_correction: whether the prior's mode tends to 1 where little is observed.
    """
    N = Y.shape[-1]
    weighted = (Y if rho is None else Y * rho.unsqueeze(-1)).mT
    C, b = weighted @ Y, (weighted @ d.unsqueeze(-1)).squeeze(-1)
    e, c = cost_prior(C, N, xN, nullity, mode_correction)
    zeta = _minimum(C.detach(), b.detach(), e.detach(), c.detach())
    # One more Newton step, in ln ζ and with everything's derivatives: the implicit function theorem.
    eye = torch.eye(N, dtype=Y.dtype, device=Y.device)
    M = C + zeta[..., None, None] * eye
    w = solve(M, b.unsqueeze(-1))
    slope = zeta * ((w**2).sum((-2, -1)) + e) - c
    with torch.no_grad():
        curvature = zeta * ((w**2).sum((-2, -1)) + e) - 2 * zeta**2 * (w * solve(M, w)).sum((-2, -1))
        curvature = curvature.clamp(min=1e-6 * c)
    factor: Tensor = (N - 1) ** 0.5 * torch.exp((slope / curvature - zeta.log()) / 2)
    return factor


def enkf_n(
    Y: Tensor,
    d: Tensor,
    rho: Tensor | None = None,
    *,
    xN: float | Tensor = 1.0,
    nullity: int = 0,
    mode_correction: bool = True,
    hessian: bool = False,
) -> tuple[Tensor, Tensor]:
    """The weights of the finite-size filter, batched over experiments.

    Args:
        Y, d, rho, xN, nullity, mode_correction: as in `finite_size_inflation`.
        hessian: whether anomalies follow the whole Hessian of the cost, ζ I + C - 2 ζ²/c w wᵀ, instead of
            its first two terms, which are an ETKF's. It shrinks less where the innovation was large.

    Returns T (..., member, member) and w (..., member): the analysis is x̄ + X w + X T.

    Source: Bocquet et al. (2015).
    """
    N = Y.shape[-1]
    prior = {"xN": xN, "nullity": nullity, "mode_correction": mode_correction}
    factor = finite_size_inflation(Y, d, rho, **prior)  # type: ignore[arg-type]
    T, w = transform(Y, d, rho, inflation=factor)
    if not hessian:
        return T, w
    weighted = (Y if rho is None else Y * rho.unsqueeze(-1)).mT
    C, zeta = weighted @ Y, (N - 1) / factor**2
    _, c = cost_prior(C, N, xN, nullity, mode_correction)
    eye = torch.eye(N, dtype=Y.dtype, device=Y.device)
    outer = w.unsqueeze(-1) * w.unsqueeze(-2) * (2 * zeta**2 / c)[..., None, None]
    return (N - 1) ** 0.5 * inverse_root(C + zeta[..., None, None] * eye - outer), w


def cost_prior(C: Tensor, N: int, xN: float | Tensor, nullity: int, mode_correction: bool) -> tuple[Tensor, Tensor]:
    """e and c, (...)."""
    ones = torch.ones(C.shape[:-2], dtype=C.dtype, device=C.device)
    e, c = ones * ((N + 1) / N), ones * (N + nullity)
    if mode_correction:
        A = torch.eye(N, dtype=C.dtype, device=C.device) + C / (N - 1)
        kept = torch.cholesky_inverse(torch.linalg.cholesky(A)).diagonal(dim1=-2, dim2=-1).mean(-1)
        correction = (e * (N - 1) / c) ** (kept / 2)
        e, c = e / correction, c * correction
    return e * xN, c * xN


def _minimum(C: Tensor, b: Tensor, e: Tensor, c: Tensor) -> Tensor:
    """The global minimum ζ of the dual cost: the best of a grid, then Newton's method within its neighbours."""
    values, V = torch.linalg.eigh(C)
    values = values.clamp(min=0.0).unsqueeze(-2)  # (..., 1, member)
    beta = (V.mT @ b.unsqueeze(-1)).squeeze(-1).square().unsqueeze(-2)
    # ζ = c / (e + |w|²), and |w| is largest without a prior.
    some = values > 1e-10 * values.amax(-1, keepdim=True).clamp(min=1e-30)
    longest = torch.where(some, beta / values.clamp(min=1e-300) ** 2, 0.0).sum((-2, -1))
    high = (c / e).log()
    low = (c / (e + longest)).log() - 1e-3
    e, c = e.unsqueeze(-1), c.unsqueeze(-1)

    def cost(u: Tensor) -> Tensor:
        zeta = u.exp()
        value: Tensor = e * zeta - c * u - (beta / (values + zeta.unsqueeze(-1))).sum(-1)
        return value

    fraction = torch.linspace(0, 1, _GRID, dtype=C.dtype, device=C.device)
    grid = low.unsqueeze(-1) + fraction * (high - low).unsqueeze(-1)
    best = cost(grid).argmin(-1, keepdim=True)
    u = grid.gather(-1, best)
    low = grid.gather(-1, (best - 1).clamp(min=0))
    high = grid.gather(-1, (best + 1).clamp(max=_GRID - 1))
    for _ in range(_STEPS):
        zeta = u.exp()
        far = values + zeta.unsqueeze(-1)
        weight = e + (beta / far**2).sum(-1)
        slope = zeta * weight - c
        curvature = zeta * weight - 2 * zeta**2 * (beta / far**3).sum(-1)
        low, high = torch.where(slope < 0, u, low), torch.where(slope > 0, u, high)
        newton = u - slope / curvature
        inside = (newton >= low) & (newton <= high)
        u = torch.where(inside, newton, (low + high) / 2)
        if bool((slope.abs() <= 1e-13 * c).all()):
            break
    return u.exp().squeeze(-1)


@dataclass(frozen=True)
class EnKFN(GlobalFilter):
    """The finite-size ensemble Kalman filter, which finds its inflation; every observation acts everywhere.

    Attributes:
        inflation: multiplies the background anomalies besides, for errors of the model.
        rtpp, variables, block: as in `GlobalFilter`.
        xN: confidence in the prior of the inflation, > 0.
        nullity: g, 0 or 1.
        mode_correction: whether the prior's mode tends to 1 where little is observed.
        hessian: whether anomalies follow the whole Hessian of the cost.
    """

    xN: float = 1.0  # noqa: N815
    nullity: int = 0
    mode_correction: bool = True
    hessian: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.xN > 0 or self.nullity < 0:
            raise ValueError(f"EnKFN: wanted xN > 0 and nullity >= 0, got xN={self.xN}, nullity={self.nullity}")

    def weights(self, forecast: State, observations: Observations) -> tuple[Tensor, Tensor]:
        """T (member, member) and w (member,), float64, before relaxation."""
        Y, d = departures(forecast, observations)
        T, w = enkf_n(
            self.inflation * Y,
            d,
            xN=self.xN,
            nullity=self.nullity,
            mode_correction=self.mode_correction,
            hessian=self.hessian,
        )
        return self.inflation * T, self.inflation * w
