"""The methods of twin experiments, each a few lines above its array function, for batches of replicates.

Members are (replicate, member, point) here, as models want them; the array functions take their transpose. As in the
literature's tables, inflation multiplies the anomalies after the analysis, and random rotations come last.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..emulators import Noise
from .analyses import denkf, estkf
from .experiment_systems import Drawn, Setup
from .filters import transform
from .finite_size import enkf_n
from .localise import gaspari_cohn
from .particles import effective_size, log_weights, systematic
from .rotation import rotation
from .serial import colours_of, ensrf, serial_transform
from .smoothers import enks, ienks, reweighted
from .stochastic import enkf

if TYPE_CHECKING:
    from .experiments import Row

HALF_WIDTH = 1.82
"""Half width of the taper over the "radius" of the reference tables, where a Gaussian would be exp(-1/2)."""

_HUGE = 1e4  # a forecast beyond has failed
_COLUMNS = 4096  # columns of a local analysis that are solved together
_DEGENERATE = 1e-5  # 1 - Σ w² of particles below which one has all the weight


class Estimate(NamedTuple):
    """What a method knows after an observation."""

    mean: Tensor  # (replicate, point)
    spread: Tensor  # (replicate,), root of the mean variance
    smoothed: Tensor | None = None  # mean (replicate, point) as many cycles ago as the lag


def spread(E: Tensor) -> Tensor:
    """Root of the mean variance of members (replicate, member, point), (replicate,)."""
    return E.var(1).mean(-1).sqrt()


class Method(ABC):
    """What all methods share: the row, forecasts that may fail, inflation and rotation; not a method itself."""

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        self.row, self.setup, self.noise = row, setup, noise
        self.E, self._spare = E, E
        self.failed = torch.zeros(len(E), dtype=torch.bool)
        N = E.shape[1]
        self._rotations = Drawn(noise.stream("rotation"), len(E), (N, max(N - 1, 1)))

    @abstractmethod
    def step(self, cycle: int, y: Tensor) -> Estimate:
        """Forecast to the observations y (replicate, observation) of a cycle, and analysis."""

    def forecast(self, E: Tensor) -> Tensor:
        """(replicate, member, point) one cycle later; replicates that failed begin anew, and are remembered."""
        return self.kept(self.setup.advance(E), self._spare)

    def kept(self, x: Tensor, spare: Tensor) -> Tensor:
        """x (replicate, n, ...), but `spare`, repeated up to n, of replicates that failed, which are remembered."""
        bad = ~(x.abs() < _HUGE).flatten(1).all(1)
        if not bool(bad.any()):
            return x
        self.failed |= bad
        spare = spare[:, torch.arange(x.shape[1]) % spare.shape[1]]
        return torch.where(bad.view(-1, *[1] * (x.dim() - 1)), spare, x)

    def departures(self, E: Tensor, cycle: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """Y (replicate, observation, member) and d (replicate, observation), divided by the errors."""
        seen = E[..., self.setup.observed(cycle)] / self.setup.error
        mean = seen.mean(1)
        return (seen - mean[:, None]).mT, y / self.setup.error - mean

    def rotated(self, cycle: int) -> Tensor | None:
        """U (replicate, member, member) of a cycle, or None."""
        return rotation(self._rotations.at(cycle)) if self.row.rotation else None

    def inflated(self, E: Tensor, cycle: int) -> Tensor:
        """Inflation and rotation of (replicate, member, point), where the row wants them."""
        U = self.rotated(cycle)
        if U is None and self.row.inflation == 1:
            return E
        mean = E.mean(1, keepdim=True)
        X = self.row.inflation * (E - mean)
        return mean + (X if U is None else U.mT @ X)


class Filter(Method):
    """The filters with one T and w for all points."""

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, E)
        shape = (len(setup.observed(0)), E.shape[1])
        self._perturbations = Drawn(noise.stream("perturbed observations"), len(E), shape)

    def weights(self, Y: Tensor, d: Tensor, cycle: int) -> tuple[Tensor, Tensor]:
        """T (replicate, member, member) and w (replicate, member), without inflation."""
        match self.row.kind:
            case "enkf":
                return enkf(Y, d, self._perturbations.at(cycle))
            case "denkf":
                return denkf(Y, d)
            case "estkf":
                return estkf(Y, d)
            case "ensrf":
                return serial_transform(Y, d)
            case "enkfn":
                return enkf_n(Y, d, xN=self.row.xN or 1.0)
        return transform(Y, d)

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        E = self.forecast(self.E)
        T, w = self.weights(*self.departures(E, cycle, y), cycle)
        U = self.rotated(cycle)
        T = self.row.inflation * (T if U is None else T @ U)
        self.E = reweighted(E.mT, T, w).mT
        return Estimate(self.E.mean(1), spread(self.E))


class Smoother(Filter):
    """The EnKS: the ETKF, and its weights for the cycles within the lag; only the newest is inflated."""

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, E)
        self._window: deque[Tensor] = deque(maxlen=row.lag + 1)

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        E = self.forecast(self.E)
        T, w = transform(*self.departures(E, cycle, y))
        U = self.rotated(cycle)
        if U is not None:
            T = T @ U
        self._window.append(E)
        past = enks(torch.stack(list(self._window)).mT, T, w).mT
        mean = past[-1].mean(1, keepdim=True)
        self.E = mean + self.row.inflation * (past[-1] - mean)
        self._window.extend((*past[:-1], self.E))
        return Estimate(self.E.mean(1), spread(self.E), past[0].mean(1))


class Local(Method):
    """The LETKF, and the serial filter with a taper of the covariance."""

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, E)
        self._half_width = HALF_WIDTH * (row.localisation or 0.0)
        self._patch = setup.patches(row.batch or setup.kind.batch)
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def _near(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        if self._last is None or not torch.equal(self._last[0], observed):
            self._last = observed, self.setup.near(observed, self._half_width, self._patch)
        return self._last[1]

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        E, observed = self.forecast(self.E), self.setup.observed(cycle)
        Y, d = self.departures(E, cycle, y)
        E = self._serial(E, Y, d, observed) if self.row.kind == "ensrf" else self._columns(E, Y, d, observed)
        self.E = self.inflated(E, cycle)
        return Estimate(self.E.mean(1), spread(self.E))

    def _columns(self, E: Tensor, Y: Tensor, d: Tensor, observed: Tensor) -> Tensor:
        (near, rho), mean = self._near(observed), E.mean(1, keepdim=True)
        rows, changed = (E - mean).mT, torch.empty_like(E.mT)  # (replicate, point, member)
        for part in torch.split(torch.arange(len(near)), max(1, _COLUMNS // len(E))):
            local = Y[:, near[part]], d[:, near[part]], rho[part]
            T, w = transform(*local) if self.row.xN is None else enkf_n(*local, xN=self.row.xN)
            inside = ((self._patch >= part[0]) & (self._patch <= part[-1])).nonzero()[:, 0]
            gain = (T + w.unsqueeze(-1))[:, self._patch[inside] - part[0]]
            changed[:, inside] = (rows[:, inside].unsqueeze(-2) @ gain).squeeze(-2)
        return mean + changed.mT

    def _serial(self, E: Tensor, Y: Tensor, d: Tensor, observed: Tensor) -> Tensor:
        if self._last is None or not torch.equal(self._last[0], observed):
            place = self.setup.position(observed)
            rho, rho_observed = (
                gaspari_cohn(self.setup.distance(place, self.setup.position(points)), half_width=self._half_width)
                for points in (torch.arange(self.setup.n), observed)
            )
            self._last = observed, (rho, rho_observed)
            self._colours = colours_of(rho, rho_observed)
        rho, rho_observed = self._last[1]
        return ensrf(E.mT, Y, d, rho, rho_observed, colours=self._colours).mT


class Iterative(Method):
    """The IEnKS: members are those of the beginning of a window of `lag` cycles, which moves on by one."""

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, E)
        self._behind = 0  # cycles from the members to the last observation

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        lag = self.row.lag
        if lag == 0:
            self.E = self.forecast(self.E)
        else:
            self._behind += 1
        points, error = self.setup.observed(cycle), self.setup.error

        def observed(E: Tensor) -> Tensor:
            return self._end(E.mT)[..., points].mT / error

        found = ienks(
            self.E.mT,
            observed,
            y / error,
            bundle=self.row.bundle,
            xN=self.row.xN,
            iterations=self.row.iterations,
        )
        begin = reweighted(self.E.mT, found.T, found.w).mT
        now = self._end(begin)
        smoothed = begin.mean(1) if self._behind == lag else None
        self.E = self.inflated(begin, cycle)
        if lag and self._behind == lag:
            self.E = now if lag == 1 and self.E is begin else self.forecast(self.E)
            self._behind -= 1
        return Estimate(now.mean(1), spread(now), smoothed)

    def _end(self, E: Tensor) -> Tensor:
        for _ in range(self._behind):
            E = self.forecast(E)
        return E


class Particles(Method):
    """The bootstrap particle filter, resampled when few members carry the weight; copies are jittered.

    Jitter is normal with the covariance of the weighted members times (regularisation · N^(-1/(n+4)))², n the number of
    points; members that were drawn once are left as they are. Where one member has all the weight the truth is lost,
    and the covariance is that of equal weights: members spread and may find it again.
    """

    def __init__(self, row: Row, setup: Setup, noise: Noise, E: Tensor) -> None:
        super().__init__(row, setup, noise, E)
        R, N, n = E.shape
        self._w = torch.full((R, N), 1 / N, dtype=E.dtype).log()
        self._u = Drawn(noise.stream("resampling"), R, (1,))
        self._jitter = Drawn(noise.stream("jitter"), R, (N, n))
        self._bandwidth = row.regularisation * N ** (-1 / (n + 4))

    def step(self, cycle: int, y: Tensor) -> Estimate:
        """As `Method.step`."""
        E = self.forecast(self.E)
        self._w = log_weights(*self.departures(E, cycle, y), self._w)
        w = self._w.exp().unsqueeze(-1)
        mean, covariance = self._moments(E, w)
        estimate = Estimate(mean, covariance.diagonal(dim1=-2, dim2=-1).mean(-1).sqrt())
        few = effective_size(self._w) <= self.row.resample * E.shape[1]
        u = (1 + torch.erf(self._u.at(cycle)[:, 0] / 2**0.5)) / 2
        ancestor = systematic(self._w, u)
        lost = (1 - (w**2).sum(1, keepdim=True) < _DEGENERATE).expand_as(w)
        _, covariance = self._moments(E, torch.where(lost, 1 / E.shape[1], w))
        tiny = 1e-12 * (1 + covariance.diagonal(dim1=-2, dim2=-1).sum(-1))
        root = torch.linalg.cholesky(covariance + tiny[:, None, None] * torch.eye(E.shape[-1], dtype=E.dtype))
        jitter = self._bandwidth * self._jitter.at(cycle) @ root.mT
        copies = torch.zeros_like(ancestor).scatter_add(1, ancestor, torch.ones_like(ancestor)).gather(1, ancestor)
        jitter = jitter * (copies > 1).unsqueeze(-1)
        drawn = E.gather(1, ancestor.unsqueeze(-1).expand_as(E)) + jitter
        self.E = torch.where(few[:, None, None], drawn, E)
        self._w = torch.where(few[:, None], torch.full_like(self._w, -math.log(E.shape[1])), self._w)
        return estimate

    @staticmethod
    def _moments(E: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (replicate, point) and covariance of members (replicate, member, point) of weights (..., 1)."""
        mean = (w * E).sum(1)
        X = E - mean[:, None]
        unbiased = 1 - (w**2).sum((1, 2)).clamp(max=1 - _DEGENERATE)
        return mean, X.mT @ (w * X) / unbiased[:, None, None]
