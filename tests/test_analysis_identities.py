"""Exact identities of the ensemble analyses, on arrays: the Kalman update, batches, orders, units, gradients."""

from __future__ import annotations

import pytest
import torch

from polynya.da import (
    denkf,
    enkf,
    enkf_n,
    ensrf,
    estkf,
    finite_size_inflation,
    rotation,
    serial_transform,
    transform,
)
from polynya.da.particles import effective_size, log_weights, systematic
from polynya.da.rotation import projection
from polynya.da.static import static_weights

torch.set_num_threads(1)
N, P, NX = 9, 14, 20


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(*batch, n=N, p=P, seed=0):
    """Members (..., state, member), H (p, state), Y, d; R = 1 in these units."""
    E, H = normal(*batch, NX, n, seed=seed) * 1.5 + 3, normal(p, NX, seed=seed + 1) / 3
    seen = H @ E
    return E, H, seen - seen.mean(-1, keepdim=True), normal(*batch, p, seed=seed + 2) * 2 - seen.mean(-1) + 8


def applied(E, T, w):
    mean = E.mean(-1, keepdim=True)
    return mean + (E - mean) @ (T + w.unsqueeze(-1))


def cov(E):
    X = E - E.mean(-1, keepdim=True)
    return X @ X.mT / (E.shape[-1] - 1)


def kalman(E, H, d, inflation=1.0):
    """Kalman (1960) with the sample covariance: mean, covariance, gain, covariance of the background."""
    B = inflation**2 * cov(E)
    K = B @ H.T @ torch.linalg.inv(H @ B @ H.T + torch.eye(len(H), dtype=E.dtype))
    return E.mean(-1) + (K @ d.unsqueeze(-1)).squeeze(-1), B - K @ H @ B, K, B


def close(a, b, tolerance=1e-10):
    assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def rotated(Y, d, **k):
    return transform(Y, d, rotation=rotation(normal(*Y.shape[:-2], Y.shape[-1], Y.shape[-1] - 1, seed=8)), **k)


EXACT = {
    "ETKF": transform,
    "ETKF rotated": rotated,
    "ESTKF": estkf,
    "ESTKF Cholesky": lambda Y, d, **k: estkf(Y, d, root="cholesky", **k),
    "serial": serial_transform,
}
exact = pytest.mark.parametrize("weights", EXACT.values(), ids=EXACT)
MEAN = EXACT | {"DEnKF": denkf, "EnKF": lambda Y, d, **k: enkf(Y, d, normal(*Y.shape, seed=5), **k)}
ALL = MEAN | {"EnKF-N": enkf_n, "EnKF-N Hessian": lambda Y, d: enkf_n(Y, d, hessian=True, nullity=1)}
every = pytest.mark.parametrize("weights", ALL.values(), ids=ALL)


# --- the exact update ----------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("inflation", [1.0, 1.2])
@pytest.mark.parametrize("p", [3, P, 60])
def test_deterministic_filters_are_the_kalman_filter(weights, inflation, p):
    E, H, Y, d = problem(p=p)
    got = applied(E, *weights(Y, d, inflation=inflation))
    mean, covariance, *_ = kalman(E, H, d, inflation)
    close(got.mean(-1), mean)
    close(cov(got), covariance)


@pytest.mark.parametrize("weights", MEAN.values(), ids=MEAN)
def test_means_are_the_kalman_filters(weights):
    E, H, Y, d = problem()
    got = applied(E, *weights(Y, d, inflation=1.1))
    close(got.mean(-1), kalman(E, H, d, 1.1)[0])


def test_anomalies_sum_to_zero_and_symmetric_transforms_keep_the_ones():
    _, _, Y, d = problem()
    for name, weights in ALL.items():
        T, w = weights(Y, d)
        X = normal(4, N) - normal(4, N).mean(-1, keepdim=True)
        assert (X @ T).sum(-1).abs().max() < 1e-12, name
        assert w.sum().abs() < 1e-12, name
        if name in ("ETKF", "ETKF rotated", "serial", "DEnKF", "EnKF"):
            close(T.sum(-1), torch.ones(N, dtype=T.dtype), 1e-12)


def test_error_subspace_is_the_transform_member_by_member():
    E, _, Y, d = problem()
    rho = normal(P, seed=3).abs()
    close(applied(E, *estkf(Y, d, rho, inflation=1.1)), applied(E, *transform(Y, d, rho, inflation=1.1)), 1e-12)
    with pytest.raises(ValueError, match='wanted root "symmetric" or "cholesky", got \'other\''):
        estkf(Y, d, root="other")


def test_serial_equals_all_at_once_in_any_order():
    E, H, Y, d = problem()
    whole = applied(E, *transform(Y, d, inflation=1.05))
    ones = torch.ones(P, NX, dtype=E.dtype), torch.ones(P, P, dtype=E.dtype)
    for order in (torch.arange(P), torch.randperm(P, generator=torch.Generator().manual_seed(1))):
        for got in (
            applied(E, *serial_transform(Y[order], d[order], inflation=1.05)),
            ensrf(E, Y[order], d[order], *ones, inflation=1.05),
        ):
            close(got.mean(-1), whole.mean(-1))
            close(cov(got), cov(whole))
    close(ensrf(E, Y, d, *ones), applied(E, *serial_transform(Y, d)), 1e-11)  # member by member
    assert H.shape == (P, NX)


def test_one_observation_serial_is_the_adjustment_filter():
    E, H, Y, d = problem(p=1)
    got = applied(E, *serial_transform(Y, d))
    # Anderson (2001): move and contract what was observed, then regress.
    seen = H @ E
    s = seen.var()
    new_mean = seen.mean() + s / (1 + s) * d
    new = new_mean + (seen - seen.mean()) * (1 / (1 + s)).sqrt()
    slope = (E - E.mean(-1, keepdim=True)) @ Y[0] / (N - 1) / s
    close(got, E + slope.unsqueeze(-1) * (new - seen), 1e-12)


@every
def test_single_precision(weights):
    E, _, Y, d = problem()
    if weights is not ALL["EnKF"] and weights is not ALL["ETKF rotated"]:  # whose random numbers are float64
        single = applied(E.float(), *weights(Y.float(), d.float()))
        assert single.dtype == torch.float32
        close(single.double(), applied(E, *weights(Y, d)), 2e-5)


# --- the approximate ones ------------------------------------------------------------------------


def test_denkf_differs_by_a_quarter_of_the_second_order_term():
    E, H, Y, d = problem()
    _, covariance, K, B = kalman(E, H, d)
    excess = cov(applied(E, *denkf(Y, d))) - covariance
    close(excess, K @ H @ B @ H.T @ K.T / 4)
    small = [0.02, 0.01]  # so the error of the covariance is of second order where spread is small
    errors = []
    for size in small:
        covariance = kalman(E * size, H, d)[1] / size**2
        errors.append((cov(applied(E, *denkf(size * Y, d))) - covariance).norm())
    assert 15 < errors[0] / errors[1] < 16.5  # K H K H ~ size⁴


def test_stochastic_filter_in_expectation():
    draws, (E, H, Y, d) = 4000, problem(n=5, p=3)
    T, w = enkf(Y.expand(draws, 3, 5), d.expand(draws, 3), normal(draws, 3, 5, seed=7))
    got = H @ applied(E, T, w)
    mean, covariance, *_ = kalman(E, H, d)
    close(got.mean(-1), (H @ mean).expand(draws, 3))  # exact: the perturbations are centred
    covariances = cov(got)
    error = (covariances.mean(0) - H @ covariance @ H.T) / (covariances.std(0) / draws**0.5)
    assert error.abs().max() < 4, error
    # Without perturbations the covariance is (I - K H) B (I - K H)ᵀ, too small by K R Kᵀ.
    bare = cov(H @ applied(E, *enkf(Y, d, 0 * Y)))
    assert ((covariances.mean(0) - bare) / (covariances.std(0) / draws**0.5)).diagonal().min() > 10


def test_stochastic_filter_tends_to_the_kalman_filter_as_the_ensemble_grows():
    errors = []
    for n in (20, 1500):
        E, H, Y, d = problem(n=n, p=4)
        covariance = kalman(E, H, d)[1]
        got = cov(H @ applied(E, *enkf(Y, d, normal(4, n, seed=2))))
        errors.append((got - H @ covariance @ H.T).norm() / (H @ covariance @ H.T).norm())
    assert errors[1] < 0.1 and errors[1] < errors[0] / 3


# --- rotations -----------------------------------------------------------------------------------


def test_rotations_are_orthogonal_keep_the_mean_and_are_uniform():
    for n in (2, 3, 8):
        omega = projection(n)
        close(omega.T @ omega, torch.eye(n - 1, dtype=omega.dtype), 1e-14)
        assert omega.sum(0).abs().max() < 1e-14
    U = rotation(normal(20_000, 4, 3))
    close(U @ U.mT, torch.eye(4, dtype=U.dtype).expand_as(U), 1e-13)
    close(U.sum(-1), torch.ones(20_000, 4, dtype=U.dtype), 1e-13)
    inner = (projection(4).T @ U @ projection(4)).flatten(1)
    assert inner.mean(0).abs().max() < 0.02  # Haar: E Q = 0, E Q_ij Q_kl = δ δ / n, E Q⁴ = 3 / (n (n+2))
    close(inner.T @ inner / 20_000, torch.eye(9, dtype=U.dtype) / 3, 0.02)
    assert (inner**4).mean(0).sub(3 / 15).abs().max() < 0.01
    assert abs((torch.linalg.det(U) > 0).double().mean() - 0.5) < 0.02  # reflections too
    with pytest.raises(ValueError, match=r"wanted normal numbers \(\.\.\., member, member-1\), got \(4, 4\)"):
        rotation(normal(4, 4))
    with pytest.raises(ValueError, match="from two members on, got 1"):
        projection(1)


# --- batches and invariances ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("ETKF rotated", "EnKF")])
def test_a_batch_of_experiments_is_a_loop(name):
    _, _, Y, d = problem(2, 3)
    T, w = ALL[name](Y, d)
    for b in [(0, 0), (1, 2)]:
        t, v = ALL[name](Y[b], d[b])
        close(T[b], t, 1e-12)
        close(w[b], v, 1e-12)


def test_given_random_numbers_a_batch_is_a_loop():
    _, _, Y, d = problem(4)
    eps, Z = normal(4, P, N, seed=6), normal(4, N, N - 1, seed=7)
    whole = enkf(Y, d, eps), transform(Y, d, rotation=rotation(Z))
    for b in range(4):
        one = enkf(Y[b], d[b], eps[b]), transform(Y[b], d[b], rotation=rotation(Z[b]))
        for (T, w), (t, v) in zip(whole, one, strict=True):
            close(T[b], t, 1e-12)
            close(w[b], v, 1e-12)


def test_settings_are_a_batch_too():
    E, _, Y, d = problem()
    settings = torch.tensor([1.0, 1.1, 1.4], dtype=torch.float64)
    for name in ("ETKF", "ESTKF", "serial", "DEnKF", "EnKF"):
        many = MEAN[name] if name != "EnKF" else (lambda Y, d, **k: enkf(Y, d, normal(P, N, seed=5), **k))
        T, w = many(Y.expand(3, P, N), d.expand(3, P), inflation=settings)
        for k, inflation in enumerate(settings):
            t, v = many(Y, d, inflation=inflation.item())
            close(T[k], t, 1e-12)
            close(w[k], v, 1e-12)
    T, _ = transform(Y.expand(3, P, N), d.expand(3, P), rtpp=settings - 1)
    close(T[2], transform(Y, d, rtpp=0.4)[0], 1e-12)
    ones = torch.ones(P, NX, dtype=E.dtype), torch.ones(P, P, dtype=E.dtype)
    both = ensrf(E.expand(3, NX, N), Y.expand(3, P, N), d.expand(3, P), *ones, inflation=settings)
    close(both[1], ensrf(E, Y, d, *ones, inflation=1.1), 1e-12)
    trust = finite_size_inflation(Y.expand(3, P, N), d.expand(3, P), xN=settings)
    close(trust[1], finite_size_inflation(Y, d, xN=1.1), 1e-12)


@pytest.mark.parametrize("name", [n for n in ALL if n != "ETKF rotated"])
def test_orders_and_duplicates_do_not_matter(name):
    E, _, Y, d = problem()
    g = torch.Generator().manual_seed(3)
    rows, members = torch.randperm(P, generator=g), torch.randperm(N, generator=g)
    eps = normal(P, N, seed=5)
    weights = ALL[name] if name != "EnKF" else None

    def run(Y, d, eps):
        return enkf(Y, d, eps) if weights is None else weights(Y, d)

    wanted = applied(E, *run(Y, d, eps))
    other = applied(E, *run(Y[rows], d[rows], eps[rows]))
    close(other.mean(-1), wanted.mean(-1))
    close(cov(other), cov(wanted))
    shuffled = applied(E[:, members], *run(Y[:, members], d, eps[:, members]))
    if name == "ESTKF Cholesky":
        close(cov(shuffled), cov(wanted))
    else:
        close(shuffled, wanted[:, members])
    if weights is not None:  # the same observation twice with twice the variance
        twice = applied(E, *run(torch.cat([Y, Y]) / 2**0.5, torch.cat([d, d]) / 2**0.5, None))
        close(twice.mean(-1), wanted.mean(-1))
        close(cov(twice), cov(wanted))


@every
def test_affine_maps_of_the_state_commute_with_the_analysis(weights):
    E, H, Y, d = problem()
    M, shift = normal(NX, NX, seed=9) / 4 + 2 * torch.eye(NX, dtype=torch.float64), normal(NX, 1, seed=10)
    mapped, there = M @ E + shift, H @ torch.linalg.inv(M)
    seen = there @ (mapped - shift)
    close(seen, H @ E)
    got = applied(mapped, *weights(seen - seen.mean(-1, keepdim=True), d))
    close(got, M @ applied(E, *weights(Y, d)) + shift, 1e-9)


@every
def test_nothing_observed_changes_nothing(weights):
    E, _, Y, d = problem()
    T, w = weights(0 * Y, 0 * d)
    if weights not in (ALL["ETKF rotated"], ALL["EnKF-N"], ALL["EnKF-N Hessian"]):
        close(applied(E, T, w), E, 1e-12)
    close(applied(E, T, w).mean(-1), E.mean(-1), 1e-12)


# --- gradients -----------------------------------------------------------------------------------

GRADIENTS = {n: f for n, f in ALL.items() if n not in ("ETKF rotated", "EnKF-N Hessian")}


@pytest.mark.parametrize("weights", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients(weights):
    _, _, Y, d = problem(n=5, p=3)
    assert torch.autograd.gradcheck(lambda Y, d: weights(Y, d), (Y.requires_grad_(), d.requires_grad_()))


@pytest.mark.parametrize("weights", [transform, denkf], ids=["ETKF", "DEnKF"])
def test_adjoint_of_the_tangent_linear(weights):
    E, H, _, _ = problem()
    y = normal(P, seed=12)

    def analysis(E):
        seen = H @ E
        return applied(E, *weights(seen - seen.mean(-1, keepdim=True), y - seen.mean(-1), inflation=1.1))

    u, v = normal(NX, N, seed=13), normal(NX, N, seed=14)
    _, forward = torch.func.jvp(analysis, (E,), (u,))
    (backward,) = torch.func.vjp(analysis, E)[1](v)
    assert torch.isclose((forward * v).sum(), (u * backward).sum(), rtol=1e-11)
    step = 1e-5
    numerical = (analysis(E + step * u) - analysis(E - step * u)) / (2 * step)
    close(forward, numerical, 1e-7)


def test_inflation_can_be_learned_through_the_filter():
    _, _, Y, d = problem()
    inflation = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    for weights in (transform, estkf, denkf, serial_transform):
        assert torch.autograd.gradcheck(lambda i, f=weights: f(Y, d, inflation=i), (inflation,))


# --- static covariances and particles ------------------------------------------------------------


@pytest.mark.parametrize("p", [3, 40])
@pytest.mark.parametrize("rho", [None, 1.0])
def test_static_weights_are_the_kalman_gain_of_the_given_covariance(p, rho):
    A, H, Y, _ = problem(p=p)
    X, D = A - A.mean(-1, keepdim=True), normal(p, 4, seed=4)
    B = 0.3 * cov(A)
    K = B @ H.T @ torch.linalg.inv(H @ B @ H.T + torch.eye(p, dtype=B.dtype))
    weight = None if rho is None else torch.full((p,), rho, dtype=B.dtype)
    close(X @ static_weights(Y, D, weight, scale=0.3), K @ D)


def test_particle_weights_against_the_normal_posterior():
    # Prior N(1, 4), observation 2.5 with error 0.8: quantiles of the prior as particles.
    n = 20_000
    z = torch.erfinv(2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1) * 2**0.5
    x = 1 + 2 * z
    Y, d = (x - x.mean())[None] / 0.8, (2.5 - x.mean())[None] / 0.8
    weights = log_weights(Y, d).exp()
    gain = 4 / (4 + 0.64)
    mean, variance = 1 + gain * 1.5, (1 - gain) * 4
    got = (weights * x).sum()
    assert abs(weights.sum() - 1) < 1e-12 and abs(got - mean) < 1e-4
    assert abs((weights * (x - got) ** 2).sum() - variance) < 1e-3
    copies = x[systematic(weights.log(), torch.tensor(0.3, dtype=torch.float64))]
    assert abs(copies.mean() - mean) < 1e-2 and abs(copies.var() - variance) < 1e-2
    two = log_weights(Y, d, prior=log_weights(Y, d))  # assimilating twice
    gain = 4 / (4 + 0.32)
    assert abs((two.exp() * x).sum() - (1 + gain * 1.5)) < 1e-4


def test_systematic_resampling_rounds_the_expected_copies_and_is_unbiased():
    weights = torch.tensor([[0.5, 0.02, 0.28, 0.2, 0.0], [0.2] * 5, [0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(effective_size(weights.log()), 1 / (weights**2).sum(-1))
    total = torch.zeros(3, 5)
    us = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    for u in us:
        drawn = systematic(weights.log(), u.expand(3))
        counts = torch.stack([(drawn == i).sum(-1) for i in range(5)], -1)
        assert ((counts - 5 * weights).abs() < 1).all() and (counts.sum(-1) == 5).all()
        assert torch.equal(drawn[1], torch.arange(5)) and (drawn[2] == 2).all()
        here = counts[0] > 0
        assert torch.equal(drawn[0][here], torch.arange(5)[here])  # survivors stay where they were
        assert torch.equal(drawn[0], systematic(weights[0].log(), u))
        total += counts
    assert (total / 500 - 5 * weights).abs().max() < 0.01
