"""Filters on Lorenz-96 reach the scores of the literature: Sakov and Oke (2008), Bocquet (2011)."""

from __future__ import annotations

import pytest
import torch

from polynya.da import gaspari_cohn, transform

# --- Lorenz-96, Sakov and Oke (2008) -------------------------------------------------------------


def lorenz(x, dt=0.05):
    def tendency(x):
        return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8.0

    k1 = tendency(x)
    k2 = tendency(x + dt / 2 * k1)
    k3 = tendency(x + dt / 2 * k2)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + tendency(x + dt * k3))


def rotation(replicates, n, g):
    """Random orthogonal matrices that keep the mean: Q 1 = 1."""
    start = torch.randn(n, n, dtype=torch.float64, generator=g)
    start[:, 0] = 1.0
    basis = torch.linalg.qr(start).Q
    q, r = torch.linalg.qr(torch.randn(replicates, n - 1, n - 1, dtype=torch.float64, generator=g))
    inner = torch.zeros(replicates, n, n, dtype=torch.float64)
    inner[:, 0, 0] = 1.0
    inner[:, 1:, 1:] = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return basis @ inner @ basis.T


def twin(n, inflation, half_width, replicates=24, cycles=900, burn_in=400):
    """Time-mean analysis RMSE and spread of each replicate; 40 sites, all observed with R = I every 0.05."""
    g = torch.Generator().manual_seed(11)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=g)

    truth = torch.zeros(replicates, 40, dtype=torch.float64)
    truth[:, 0] = 1.0
    truth, E = truth + 0.03 * draw(replicates, 40), truth.unsqueeze(1) + 0.03 * draw(replicates, n, 40)
    apart = (torch.arange(40)[:, None] - torch.arange(40)).abs()
    rho = None
    if half_width is not None:
        rho = gaspari_cohn(torch.minimum(apart, 40 - apart).double(), half_width=half_width)
    rmse, spread = [], []
    for k in range(cycles):
        truth, E = lorenz(truth), lorenz(E)
        mean = E.mean(1)
        X = E - mean.unsqueeze(1)
        Y, d = X.mT, truth + draw(replicates, 40) - mean
        if rho is not None:
            Y, d = Y.unsqueeze(1), d.unsqueeze(1)
        T, w = transform(Y, d, rho, inflation=inflation)
        T = T @ (rotation(replicates, n, g) if rho is None else rotation(replicates, n, g).unsqueeze(1))
        weights = (T + w.unsqueeze(-1)) if rho is not None else (T + w.unsqueeze(-1)).unsqueeze(1)
        E = mean.unsqueeze(1) + (X.mT.unsqueeze(-2) @ weights).squeeze(-2).mT
        if k >= burn_in:
            rmse.append((E.mean(1) - truth).pow(2).mean(-1).sqrt())
            spread.append(E.var(1).mean(-1).sqrt())
    return torch.stack(rmse).mean(0), torch.stack(spread).mean(0)


@pytest.mark.parametrize(
    ("n", "inflation", "half_width", "low", "high"),
    [
        pytest.param(20, 1.04, None, 0.183, 0.207, id="ETKF N=20 (0.20 published)"),
        pytest.param(7, 1.04, 1.82 * 4, 0.20, 0.235, id="LETKF N=7 (0.22 published)"),
    ],
)
def test_lorenz_96_reaches_published_scores(n, inflation, half_width, low, high):
    rmse, spread = twin(n, inflation, half_width)
    assert low < rmse.median() < high
    assert (rmse > 0.5).sum() <= 2  # replicates that diverged
    assert 0.9 < (spread / rmse).median() < 1.3
