"""Weights from correlations: their noise, their limits, and what they do for a small ensemble of Lorenz-96."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from polynya.da import denkf
from polynya.da.adaptive_localisation import (
    column_taper,
    correlation_taper,
    correlations,
    noise_level,
    tapered_kalman,
)
from polynya.da.localise import gaspari_cohn


def anomalies(*shape, seed=0):
    Z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Z - Z.mean(-1, keepdim=True)


def test_correlations_are_those_of_numpy_in_any_unit():
    X, Y = anomalies(3, 5, 8), anomalies(3, 4, 8, seed=1)
    got = correlations(1e6 * X, 1e-6 * Y)
    for e in range(3):
        wanted = np.corrcoef(X[e].numpy(), Y[e].numpy())[:5, 5:]
        np.testing.assert_allclose(got[e].numpy(), wanted, atol=1e-12)
    X[0, 0] = 0.0  # land
    assert not correlations(X, Y)[0, 0].any() and correlations(X, X).diagonal(dim1=-2, dim2=-1).max() <= 1


@pytest.mark.parametrize("members", [3, 10, 40])
@pytest.mark.parametrize("chance", [0.3, 0.05, 0.001])
def test_noise_is_exceeded_as_often_as_it_should(members, chance):
    r = correlations(anomalies(300, members), anomalies(2000, members, seed=1)).abs()
    found = float((r > noise_level(members, chance)).double().mean())
    assert abs(found - chance) < 5 * np.sqrt(chance / 6e5) + 0.05 * chance
    r, t = noise_level(members, chance), members - 2
    assert np.isclose(2 * stats.t.sf(r * np.sqrt(t / (1 - r**2)), t), chance)


def test_noise_needs_members_and_a_chance():
    for members, chance in ((2, 0.1), (10, 0.0), (10, 1.0)):
        with pytest.raises(ValueError, match="wanted three members"):
            noise_level(members, chance)


@pytest.mark.parametrize("members", [5, 10, 20, 50])
def test_weights_are_bounded_and_grow_with_correlation(members):
    r = torch.linspace(-1, 1, 401, dtype=torch.float64)
    rho = correlation_taper(r, members)
    assert rho.min() >= 0 and rho.max() <= 1 and rho[0] == rho[-1] == 1
    assert torch.equal(rho, rho.flip(0)) and (rho[200:].diff() >= 0).all()
    level = torch.tensor(noise_level(members), dtype=torch.float64)
    assert np.isclose(float(correlation_taper(level, members)), 5 / 24)
    assert not rho[r.abs() <= 2 * level - 1].any()
    assert (correlation_taper(r, members, chance=0.01) <= rho).all()


@pytest.mark.parametrize("members", [8, 20])
def test_independent_noise_has_weights_near_zero_and_perfect_correlation_one(members):
    X, Y = anomalies(100, members), anomalies(100, members, seed=1)
    rho = correlation_taper(correlations(X, Y), members)
    assert rho.mean() < 0.06 and (rho < 0.25).double().mean() > 0.94
    assert (correlation_taper(correlations(X, -3 * X), members).diagonal() > 1 - 1e-12).all()


def test_spurious_updates_shrink_more_than_real_ones():
    """Of a covariance that is known: the tapered sample is nearer to it."""
    n, N = 60, 12
    away = np.abs(np.arange(n)[:, None] - np.arange(n))
    B = torch.tensor(np.exp(-0.5 * (np.minimum(away, n - away) / 3.0) ** 2))
    root = torch.linalg.cholesky(B + 1e-6 * torch.eye(n))
    error = torch.zeros(2)
    for k in range(30):
        X = root @ anomalies(n, N, seed=k)
        P = X @ X.mT / (N - 1)
        tapered = correlation_taper(correlations(X, X), N) * P
        error += torch.stack([(P - B).norm(), (tapered - B).norm()])
    assert error[1] < 0.65 * error[0]


# --- columns -----------------------------------------------------------------------------------------


def test_a_column_has_the_weight_of_its_largest_correlation_or_of_most():
    N = 12
    Y = anomalies(7, 3, N)
    X = anomalies(7, 6, N, seed=1)
    X[:, 2] = 5 * Y[:, 1]  # one channel follows the second observation
    X[:, 4] = 0.0  # land
    for over, chance in (("max", 0.05 / 6), ("rms", 0.05)):
        got = column_taper(X, Y, over=over)
        assert got.shape == (7, 3)
        r = correlations(X, Y)
        whole = r.abs().amax(1) if over == "max" else (r.square().sum(1) / 5).sqrt()
        assert torch.allclose(got, correlation_taper(whole, N, chance=chance))
    assert (column_taper(X, Y)[:, 1] > 1 - 1e-12).all() and column_taper(X, Y)[:, [0, 2]].mean() < 0.1
    with pytest.raises(ValueError, match='over="max" or "rms"'):
        column_taper(X, Y, over="min")


def test_the_chance_of_a_column_does_not_grow_with_its_channels():
    N = 20
    Y = anomalies(500, 4, N)
    means = [float(column_taper(anomalies(500, c, N, seed=c), Y).mean()) for c in (1, 10, 100)]
    assert max(means) < 0.06


# --- the filter --------------------------------------------------------------------------------------


def test_without_a_taper_it_is_the_deterministic_filter():
    E, Y, d = (torch.randn(2, k, 6, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (5, 4, 3))
    Y, d = Y - Y.mean(-1, keepdim=True), d[..., 0].new_ones(2, 4)
    each = torch.tensor([1.0, 1.2], dtype=torch.float64)
    got = tapered_kalman(E, Y, d, torch.ones((), dtype=torch.float64), inflation=each)
    for e in range(2):
        lam = float(each[e])
        mean = E[e].mean(-1, keepdim=True)
        X, Z = lam * (E[e] - mean), lam * Y[e]
        K = X @ Z.mT / 5 @ torch.linalg.inv(torch.eye(4, dtype=torch.float64) + Z @ Z.mT / 5)
        assert torch.allclose(got[e], mean + K @ d[e][:, None] + X - K @ Z / 2)
        T, w = denkf(Y[e], d[e], inflation=lam)
        assert torch.allclose(got[e], mean + (E[e] - mean) @ (T + w[:, None]))


def test_entries_of_the_gain_are_tapered():
    E, Y = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), anomalies(4, 6)
    d, rho = torch.ones(4, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64)
    whole = [tapered_kalman(E, Y, torch.eye(4, dtype=torch.float64)[i], torch.ones(5, 4).double()) for i in range(4)]
    base = tapered_kalman(E, Y, 0 * d, torch.ones(5, 4).double())
    K = torch.stack([(w - base).mean(-1) for w in whole], -1)
    got = tapered_kalman(E, Y, d, rho).mean(-1)
    assert torch.allclose(got, E.mean(-1) + (rho * K) @ d)
    default = correlation_taper(correlations(E - E.mean(-1, keepdim=True), Y), 6)
    assert torch.allclose(tapered_kalman(E, Y, d), tapered_kalman(E, Y, d, default))
    assert torch.equal(
        tapered_kalman(E, Y, d, torch.zeros(5, 4).double()), E.mean(-1, keepdim=True) + (E - E.mean(-1, keepdim=True))
    )


def l96_error(taper, members, inflation, sites=40, experiments=3, times=240):
    """Root mean square error of analyses, observed everywhere with error 1, without information on distance."""

    def tendency(x):
        return (x.roll(-1, -2) - x.roll(2, -2)) * x.roll(1, -2) - x + 8.0

    def step(x, h=0.05):
        k1 = tendency(x)
        k2 = tendency(x + h / 2 * k1)
        k3 = tendency(x + h / 2 * k2)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + tendency(x + h * k3))

    g = torch.Generator().manual_seed(0)

    def draw(last):
        return torch.randn(experiments, sites, last, generator=g, dtype=torch.float64)

    x = draw(1) + 8
    for _ in range(400):
        x = step(x)
    E, errors = x + draw(members), []
    for k in range(times):
        x, E = step(x), step(E)
        mean = E.mean(-1, keepdim=True)
        E = tapered_kalman(E, E - mean, (x + draw(1) - mean)[..., 0], taper, inflation=inflation)
        if k >= times // 3:
            errors.append((E.mean(-1, keepdim=True) - x).square().mean().sqrt())
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("sites, members", [(40, 10), (80, 20)])
def test_small_ensembles_of_lorenz_96_need_no_distance(sites, members):
    ones = torch.ones((), dtype=torch.float64)
    adaptive = l96_error(None, members, 1.05, sites)
    assert adaptive < 0.35  # of observations: 1
    assert min(l96_error(ones, members, inflation, sites) for inflation in (1.05, 1.2)) > 3 * adaptive
    away = (torch.arange(sites)[:, None] - torch.arange(sites)).abs()
    known = gaspari_cohn(torch.minimum(away, sites - away).double(), half_width=4.0)
    assert adaptive < 1.5 * l96_error(known, members, 1.05, sites)  # distance knows a little more
