"""Windows of linear models, with what they are exactly."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np
import torch
from toys import Matrix, row_layout

from polynya.da import LBFGS, GaussNewton, Observations
from polynya.emulators import Layout, State

DAY, N, STEPS = cftime.DatetimeNoLeap(2000, 1, 1), 8, 3
LAYOUT = row_layout(N)
EXACT = {
    "lbfgs": LBFGS(tolerance=1e-12, iterations=500, evaluations=1000),
    "newton": GaussNewton(1e-12, inner=60, inner_tolerance=1e-13),
}


@dataclass(frozen=True, eq=False)
class Dense:
    """L as a matrix."""

    L: torch.Tensor
    layout: Layout = LAYOUT

    @property
    def size(self) -> int:
        return self.L.shape[1]

    def apply(self, v):
        return (v @ self.L.mT.to(v)).unflatten(-1, self.layout.shape)


def linear(seed=0):
    """A stable model, roots of B and Q, all dense."""
    g = torch.Generator().manual_seed(seed)
    M = torch.linalg.qr(torch.randn(N, N, generator=g, dtype=torch.float64))[0] * 0.9
    L, LQ = (s * torch.randn(N, N, generator=g, dtype=torch.float64) for s in (1.0, 0.2))
    return Matrix(M, LAYOUT), Dense(L), Dense(LQ)


def state(data, time=DAY, members=None):
    data = torch.as_tensor(data, dtype=torch.float64).reshape(-1, 1, 1, N)
    return State(data, time, LAYOUT, tuple(members or range(len(data))))


def observations(seed=0, error=0.3, steps=STEPS):
    """Three sites at every step of a window of five-day steps."""
    g = np.random.default_rng(seed)
    day = 5 * 86400.0
    offset = np.repeat(-day * np.arange(steps)[::-1], 3)
    site = np.concatenate([g.permutation(N)[:3] for _ in range(steps)])
    table = {"variable": "zos", "lat": 0.0, "lon": 360.0 / N * site, "value": g.normal(size=len(site)), "error": error}
    return Observations.from_table(DAY + timedelta(days=5 * steps), table | {"offset": offset}), site


def observation_matrix(model, site, weak, steps=STEPS):
    """H of all observations on (x_0, w_1, ..., w_n), or on x_0 alone."""
    M, n = model.A.numpy(), N * (steps + 1)
    maps = [np.eye(N, n)]
    for k in range(steps):
        inject = np.zeros((N, n))
        inject[:, N * (k + 1) : N * (k + 2)] = np.eye(N)
        maps.append(M @ maps[-1] + inject)
    H = np.stack([maps[1 + i // 3][s] for i, s in enumerate(site)])
    return H if weak else H[:, :N]


def smoother(model, B, Q, site, y, error, background, steps=STEPS):
    """The exact smoothed means at all times: one linear Gaussian problem for (x_0, w_1, ..., w_n)."""
    prior = np.kron(np.eye(steps + 1), Q)
    prior[:N, :N] = B
    H = observation_matrix(model, site, weak=True, steps=steps)
    found = np.zeros((steps + 1, N))
    found[0] = background
    K = prior @ H.T @ np.linalg.inv(H @ prior @ H.T + error**2 * np.eye(len(H)))
    found = found + (K @ (y - H @ found.ravel())).reshape(found.shape)
    for k in range(steps):
        found[k + 1] += model.A.numpy() @ found[k]
    return found
