"""The methods of twin experiments that have a covariance and no members: static ones, 4D-Var, the extended filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..emulators import Noise
from .experiment_methods import Estimate, Filter, Iterative, Local, Method, Particles, Smoother
from .experiment_systems import Setup
from .gauss_newton import GaussNewton

if TYPE_CHECKING:
    from .experiments import Row

_DIFFERENCE = 1e-4  # of the tangent linear model by central differences: exact to 1e-8


class Static(Method):
    """Climatology, optimal interpolation into it, and 3D-Var with its covariance times `scale`."""

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, setup.first(len(E))[:, None])
        self._mean, B = setup.climatology()
        self._B = covariance(row, B) if row.kind == "3dvar" else B

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        points, B = self.setup.observed(cycle), self._B
        x = self.forecast(self.E)[:, 0] if self.row.kind == "3dvar" else self._mean.expand(len(y), -1)
        if self.row.kind != "climatology":
            R = self.setup.error**2 * torch.eye(len(points), dtype=B.dtype)
            K = torch.linalg.solve(B[points][:, points] + R, B[points]).mT
            x, B = x + (y - x[:, points]) @ K.mT, B - K @ B[points]
        self.E = x[:, None]
        return Estimate(x, B.diagonal().mean().sqrt().expand(len(y)))


class Variational(Method):
    """4D-Var: a state at the beginning of a window of `lag` cycles, which moves on by one with every observation.

    B is the same at the beginning of each window, where the background is the analysis of the window before: of its
    observations only the newest is not yet in it, and only that is used.
    """

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, setup.first(len(E))[:, None])
        B = covariance(row, setup.climatology()[1])
        values, V = torch.linalg.eigh(B)
        self._L = V * values.clamp(min=0).sqrt()
        self._spread = B.diagonal().mean().sqrt()
        self._minimiser = GaussNewton(1e-4, iterations=row.iterations, inner=len(B), inner_tolerance=1e-2)
        self._behind = 0  # cycles from the state to the last observation

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        self._behind += 1
        points, begin = self.setup.observed(cycle), self.E

        def residual(v: Tensor) -> Tensor:
            return (y - self._end(begin + (v @ self._L.mT)[:, None])[:, 0, points]) / self.setup.error

        def linearised(v: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
            def along(p: Tensor) -> Tensor:
                change: Tensor = torch.func.jvp(residual, (v,), (p.expand_as(v),))[1]
                return change

            # The tangents of all variables at once take hardly longer here than that of one, of which each product
            # with the Hessian would need another.
            eye = torch.eye(v.shape[1], dtype=v.dtype)
            r, J = residual(v), torch.func.vmap(along, out_dims=-1)(eye)
            H = eye + J.mT @ J
            gradient = v + (J.mT @ r.unsqueeze(-1)).squeeze(-1)
            return (
                (v.square().sum(-1) + r.square().sum(-1)) / 2,
                gradient,
                lambda p: (H @ p.unsqueeze(-1)).squeeze(-1),
            )

        found = self._minimiser.minimise(linearised, y.new_zeros(len(y), self._L.shape[1]))
        self.E = begin + (found.v @ self._L.mT)[:, None]
        now, smoothed = self._end(self.E), None
        if self._behind == self.row.lag:
            smoothed = self.E[:, 0]
            self.E = self.forecast(self.E)
            self._behind -= 1
        return Estimate(now[:, 0], self._spread.expand(len(y)), smoothed)

    def _end(self, E: Tensor) -> Tensor:
        for _ in range(self._behind):
            E = self.setup.advance(E)
        return E


class Extended(Method):
    """The extended Kalman filter; `inflation` multiplies the covariance, per time unit."""

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, setup.first(len(E))[:, None])
        eye = torch.eye(setup.n, dtype=torch.float64)
        self._P = (setup.kind.variance or 1.0) * eye.expand(len(E), -1, -1)

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        n, points = self.setup.n, self.setup.observed(cycle)
        steps = _DIFFERENCE * torch.eye(n, dtype=self.E.dtype)
        x = self.forecast(torch.cat([self.E, self.E + steps, self.E - steps], 1))
        F = (x[:, 1 : n + 1] - x[:, n + 1 :]).mT / (2 * _DIFFERENCE)
        P = self.row.inflation**self.setup.interval * (F @ self._P @ F.mT)
        mean = x[:, 0]
        R = self.setup.error**2 * torch.eye(len(points), dtype=P.dtype)
        K = torch.linalg.solve(P[:, points][:, :, points] + R, P[:, points]).mT
        mean = mean + (K @ (y - mean[:, points]).unsqueeze(-1)).squeeze(-1)
        P = P - K @ P[:, points]
        self.E, self._P = mean[:, None], (P + P.mT) / 2
        return Estimate(mean, P.diagonal(dim1=-2, dim2=-1).mean(-1).sqrt())


def covariance(row: Row, climatology: Tensor) -> Tensor:
    """B of a row: `scale` times the climatological covariance, or the identity."""
    return row.scale * (torch.eye(len(climatology)).to(climatology) if row.covariance == "identity" else climatology)


METHODS: dict[str, type[Method]] = {
    "climatology": Static,
    "oi": Static,
    "3dvar": Static,
    "4dvar": Variational,
    "extkf": Extended,
    "enkf": Filter,
    "denkf": Filter,
    "etkf": Filter,
    "estkf": Filter,
    "ensrf": Filter,
    "enkfn": Filter,
    "letkf": Local,
    "enks": Smoother,
    "ienks": Iterative,
    "pf": Particles,
}
"""By name without case, spaces and hyphens; "ensrf" with a localisation is `Local`."""

WITHOUT_MEMBERS = ("climatology", "oi", "3dvar", "4dvar", "extkf")
