"""The serial ensemble square-root filter, with Schur localisation: one observation after the other.

For one observation with anomalies Y_j and departure d_j divided by its error, s = |Y_j|² / (N-1), everything
that is correlated with it, state and other observations alike (Z), changes by (Whitaker and Hamill 2002,
doi:10.1175/1520-0493(2002)130<1913:EDAWPO>2.0.CO;2)

    k = ρ ∘ Z Y_jᵀ / (N-1) / (1+s)           mean: + k d_j,   anomalies: - α k Y_j
    α = 1 / (1 + (1+s)^(-1/2))

which for a single observation is also the ensemble adjustment filter (Anderson 2001). ρ is a taper of
distance that multiplies the covariance itself. Carrying the observed ensemble along, as Anderson (2003)
does, means H is applied once.

Two observations that reach nothing in common do not see each other: they may go together. Colours are
such groups, found greedily; the result is that of one by one in the order of the colours. Without
localisation the order does not matter, and the result is the Kalman filter's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..emulators import Field, Layout
from .filters import over_matrices
from .localise import LocalObservations, gaspari_cohn
from .observations import Observations


def coloured(neighbours: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Groups of observations that can be assimilated together.

    Args:
        neighbours: for each observation, the numbers of those that reach something it reaches (itself or
            not).

    Returns the observations of each colour, each in increasing order.
    """
    lists = list(neighbours)
    colour = np.full(len(lists), -1)
    for j, near in enumerate(lists):
        taken = np.unique(colour[near])
        taken = taken[taken >= 0]
        free = np.flatnonzero(taken != np.arange(len(taken)))
        colour[j] = free[0] if len(free) else len(taken)
    return [np.flatnonzero(colour == k) for k in range(colour.max(initial=-1) + 1)]


def colours_of(rho: Tensor, rho_observed: Tensor) -> list[Tensor]:
    """Groups of observations whose tapers have no point or observation in common.

    Args:
        rho: taper between observations and the state, (..., observation, point).
        rho_observed: taper between observations, (..., observation, observation).
    """
    reach = torch.cat([rho, rho_observed], -1) > 0
    reach = reach.flatten(0, -3).any(0) if reach.ndim > 2 else reach
    reach = reach | torch.cat([torch.zeros_like(reach[:, : rho.shape[-1]]), torch.eye(len(reach)).to(reach)], -1)
    overlap = (reach.to(torch.float32) @ reach.to(torch.float32).mT > 0).cpu().numpy()
    return [torch.from_numpy(c).to(rho.device) for c in coloured(np.flatnonzero(row) for row in overlap)]


def ensrf(
    E: Tensor,
    Y: Tensor,
    d: Tensor,
    rho: Tensor,
    rho_observed: Tensor,
    *,
    inflation: float | Tensor = 1.0,
    colours: Sequence[Tensor] | None = None,
) -> Tensor:
    """The analysis of a serial ensemble square-root filter with dense tapers, batched over experiments.

    Args:
        E: background members (..., point, member).
        Y: anomalies of the background in observation space, divided by the observation errors,
            (..., observation, member); they sum to zero over members.
        d: observations minus the background mean, divided by the errors, (..., observation).
        rho: taper between observations and the state, (..., observation, point); 1 on its own for none.
        rho_observed: taper between observations, (..., observation, observation).
        inflation: λ, multiplies the background anomalies; a number, or one per experiment (...).
        colours: groups of observations to assimilate together, in order; default `colours_of` the tapers.

    Returns the analysis members (..., point, member). Differentiable.

    Source: Whitaker and Hamill (2002); Anderson (2003).
    """
    N, lam = E.shape[-1], over_matrices(inflation)
    mean = E.mean(-1, keepdim=True)
    X, Y, d = (E - mean) * lam, Y * lam, d.unsqueeze(-1)
    for j in colours_of(rho, rho_observed) if colours is None else colours:
        own, seen = Y[..., j, :], d[..., j, :]
        s = (own**2).sum(-1, keepdim=True) / (N - 1)
        shift, shrink = seen / (1 + s), own * alpha(s) / (1 + s)
        # Tapers of one colour do not overlap: every row of these products has one term.
        K, k = (taper[..., j, :].mT * (Z @ own.mT) / (N - 1) for taper, Z in ((rho, X), (rho_observed, Y)))
        mean, X = mean + K @ shift, X - K @ shrink
        d, Y = d - k @ shift, Y - k @ shrink
    return mean + X


def alpha(s: Tensor) -> Tensor:
    """How much less anomalies change than the mean, 1 / (1 + (1+s)^(-1/2))."""
    return 1 / (1 + (1 + s).rsqrt())


def serial_transform(Y: Tensor, d: Tensor, *, inflation: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """The weights of a serial ensemble square-root filter without localisation, batched over experiments.

    The state is not needed: every step is a weight too. Mean and covariance are those of `transform`; members
    are not.

    Args:
        Y: anomalies of the background in observation space, divided by the observation errors,
            (..., observation, member); they sum to zero over members.
        d: observations minus the background mean, divided by the errors, (..., observation).
        inflation: λ, multiplies the background anomalies; a number, or one per experiment (...).

    Returns T (..., member, member) and w (..., member): the analysis is x̄ + X w + X T.
    """
    N, lam = Y.shape[-1], over_matrices(inflation)
    Y0 = Y * lam
    T = torch.eye(N, dtype=Y.dtype, device=Y.device).expand(*Y.shape[:-2], N, N)
    w = torch.zeros_like(Y[..., 0, :])
    for j in range(Y.shape[-2]):
        own = (Y0[..., j, None, :] @ T).squeeze(-2)  # (..., member)
        seen = d[..., j] - (Y0[..., j, :] * w).sum(-1)
        s = (own**2).sum(-1) / (N - 1)
        k = (T @ own.unsqueeze(-1)).squeeze(-1) / ((N - 1) * (1 + s)).unsqueeze(-1)
        w = w + k * seen.unsqueeze(-1)
        T = T - k.unsqueeze(-1) * (alpha(s).unsqueeze(-1) * own).unsqueeze(-2)
    return lam * T, (lam * w.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Reach:
    """What each observation reaches: cells and other observations, with the taper."""

    layout: Layout
    observations: Observations
    channels: Tensor  # that are updated
    half_width: float
    vertical_half_width: float | None
    wet: Tensor = field(init=False)  # (channel, cell)
    _cells: LocalObservations = field(init=False)
    _others: LocalObservations = field(init=False)
    _number: np.ndarray = field(init=False)  # of the cells that are wet somewhere
    _level: Tensor = field(init=False)  # of each updated channel, -1 for the whole column
    _surface: Tensor = field(init=False)  # observations of fields without levels
    _depth: Tensor = field(init=False)

    def __post_init__(self) -> None:
        layout, o = self.layout, self.observations
        wet = layout.mask.flatten(-2)[self.channels]
        number = wet.any(0).nonzero()[:, 0].numpy()
        lat, lon = (a.ravel()[number] for a in layout.position(Field("any centre")))
        one_slot = [k if f.levels else -1 for f in layout.fields for k in range(f.channels)]
        for name, value in (
            ("wet", wet),
            ("_number", number),
            ("_cells", self._points(lat, lon, 1.0)),
            ("_others", self._points(o.lat, o.lon, 1.0)),
            ("_level", torch.tensor(one_slot * len(layout.slots))[self.channels]),
            ("_surface", torch.tensor([layout.field(str(n)).levels == 0 for n in o.variable])),
            ("_depth", torch.tensor(o.depth)),
        ):
            object.__setattr__(self, name, value)

    def _points(self, lat: np.ndarray, lon: np.ndarray, supports: float) -> LocalObservations:
        period = float(self.layout.grid.attrs.get("zonal_period", 360.0))
        return LocalObservations(lat, lon, supports * 2 * self.half_width, max(len(lat), 1), period)

    def colours(self) -> list[np.ndarray]:
        """Observations that go together: further apart than two supports."""
        o = self.observations
        points = self._points(o.lat, o.lon, 2 * (1 + 1e-9))

        def neighbours() -> Iterator[np.ndarray]:
            for part in np.array_split(np.arange(len(o)), max(1, len(o) // 256)):
                index, distance = points.near(o.lat[part], o.lon[part])
                yield from (i[r < np.inf] for i, r in zip(index, distance, strict=True))

        return coloured(neighbours())

    def cells(self, colour: np.ndarray, block: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Cells (cell,), which of the colour reaches each (cell,), and the taper (channel, cell), block by block."""
        cell, of, across = self._found(self._cells, colour)
        cell = self._number[cell]
        for part in np.array_split(np.arange(len(cell)), max(1, -(-len(cell) // block))):
            rho = across[part].expand(len(self.channels), -1)
            if self.vertical_half_width is not None:
                seen = torch.from_numpy(colour[of[part]])
                rho = rho * self._down(seen, self._level[:, None])
            cells, whose = (torch.from_numpy(a[part]).to(device) for a in (cell, of))
            yield cells, whose, rho.to(device)

    def others(self, colour: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Observations (other,), which of the colour reaches each (other,), and the taper (other,)."""
        other, of, rho = self._found(self._others, colour)
        if self.vertical_half_width is not None:
            a, b = torch.from_numpy(other), torch.from_numpy(colour[of])
            apart = (self._depth[a] - self._depth[b]).abs()
            near = gaspari_cohn(apart, half_width=self.vertical_half_width)
            rho = torch.where(self._surface[a] | self._surface[b], rho, rho * near)
        return torch.from_numpy(other).to(device), torch.from_numpy(of).to(device), rho.to(device)

    def _found(self, points: LocalObservations, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
        index, distance = points.near(self.observations.lat[colour], self.observations.lon[colour])
        of, place = np.nonzero(distance < 2 * self.half_width)
        rho = gaspari_cohn(torch.from_numpy(distance[of, place]), half_width=self.half_width)
        return index[of, place], of, rho

    def _down(self, seen: Tensor, level: Tensor) -> Tensor:
        """Vertical taper between observations (n,) and levels (channel, 1), (channel, n)."""
        assert self.vertical_half_width is not None
        lev = torch.tensor(self.layout.grid["lev"].values, dtype=torch.float64)
        apart = (self._depth[seen] - lev[level.clamp(min=0)]).abs()
        near = gaspari_cohn(apart, half_width=self.vertical_half_width)
        return torch.where(self._surface[seen] | (level < 0), torch.ones_like(near), near)
