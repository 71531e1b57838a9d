"""Smoothers against the Kalman smoother, the filters they contain, and the cost function they minimise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polynya.da import enkf_n, transform
from polynya.da.smoothers import enks, esmda, ienks, reweighted

torch.set_num_threads(1)
n, p, N, CYCLES = 4, 2, 12, 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


M = torch.linalg.qr(normal(n, n, seed=1))[0] * 1.1
H = normal(p, n, seed=2) / 0.7  # divided by the observation errors
E0 = normal(3, n, N, seed=3) * torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)[:, None]
Y = normal(CYCLES, 3, p, seed=4) * 2


def departures(E, y):
    seen = H @ E
    mean = seen.mean(-1)
    return seen - mean[..., None], y - mean


def close(a, b, tolerance):
    assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def covariance(E):
    X = E - E.mean(-1, keepdim=True)
    return X @ X.mT / (E.shape[-1] - 1)


def kalman_smoother(mean, P, y):
    """Rauch, Tung and Striebel's, of x_{k+1} = M x_k and y_k = H x_k + e, numpy, one experiment."""
    A, B, filtered, forecast = M.numpy(), H.numpy(), [], []
    for value in y:
        mean, P = A @ mean, A @ P @ A.T
        forecast.append((mean, P))
        K = P @ B.T @ np.linalg.inv(B @ P @ B.T + np.eye(p))
        mean, P = mean + K @ (value - B @ mean), P - K @ B @ P
        filtered.append((mean, P))
    out = [filtered[-1]]
    for (m, C), (mf, Cf) in zip(filtered[-2::-1], forecast[:0:-1], strict=True):
        G = C @ A.T @ np.linalg.inv(Cf)
        ms, Cs = out[0]
        out.insert(0, (m + G @ (ms - mf), C + G @ (Cs - Cf) @ G.T))
    return out


def smoothed(lag):
    """Members of every cycle after the EnKS with the ETKF's weights, (cycle, 3, n, N)."""
    E, done = E0, []
    for k in range(CYCLES):
        T, w = transform(*departures(M @ E, Y[k]))
        done.append(M @ E)
        window = done[max(0, k - lag) :]
        done[max(0, k - lag) :] = enks(torch.stack(window), T, w).unbind(0)
        E = done[-1]
    return torch.stack(done)


# --- the EnKS ------------------------------------------------------------------------------------


def test_enks_is_the_kalman_smoother():
    ours = smoothed(CYCLES)
    for b in range(3):
        expected = kalman_smoother(E0[b].mean(-1).numpy(), covariance(E0[b]).numpy(), Y[:, b].numpy())
        for k, (mean, P) in enumerate(expected):
            close(ours[k, b].mean(-1), torch.from_numpy(mean), 1e-8)
            close(covariance(ours[k, b]), torch.from_numpy(P), 1e-8)


def test_enks_with_lag_zero_is_the_filter():
    E = M @ E0
    T, w = transform(*departures(E, Y[0]))
    mean = E.mean(-1, keepdim=True)
    filtered = mean + (E - mean) @ T + (E - mean) @ w[..., None]
    close(enks(E[None], T, w)[0], filtered, 1e-14)
    close(smoothed(0)[-1], smoothed(CYCLES)[-1], 1e-13)


def test_enks_is_the_analysis_of_all_times_at_once():
    window = torch.stack([E0, M @ E0, M @ (M @ E0)])
    joint = torch.cat(window.unbind(0), -2)  # (3, 3 n, N), of which the last n rows are observed
    T, w = transform(*departures(joint[:, -n:], Y[0]))
    mean = joint.mean(-1, keepdim=True)
    together = mean + (joint - mean) @ (T + w[..., None])
    close(torch.cat(enks(window, T, w).unbind(0), -2), together, 1e-14)


def test_smoothed_members_run_into_the_analysis():
    ours = smoothed(CYCLES)
    close(M @ ours[:-1], ours[1:], 1e-10)


# --- the IEnKS -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bundle", [False, True])
@pytest.mark.parametrize("lag", [1, 3])
def test_ienks_of_a_linear_model_is_the_etkf(lag, bundle):
    propagated = torch.linalg.matrix_power(M, lag)
    found = ienks(E0, lambda E: H @ (propagated @ E), Y[0], bundle=bundle, tolerance=1e-20)
    T, w = transform(*departures(propagated @ E0, Y[0]))
    close(found.T, T, 1e-8)
    close(found.w, w, 1e-8)
    assert bool(found.converged.all()) and int(found.iterations.max()) <= 3
    smooth = enks(torch.stack([E0, propagated @ E0]), T, w)
    close(propagated @ reweighted(E0, found.T, found.w), smooth[1], 1e-8)


def curved(E):
    x = M @ E
    return H @ (x + 0.1 * x**2)


@pytest.mark.parametrize("bundle", [True, False])
def test_ienks_minimises_its_cost(bundle):
    small = E0.mean(-1, keepdim=True) + (0.1 if bundle else 1e-4) * (E0 - E0.mean(-1, keepdim=True))
    scale = 1.0 if bundle else 1e4  # with small anomalies the ensemble's sensitivity is the derivative
    y = curved(small).mean(-1) + 0.3 * Y[0] / scale
    found = ienks(small, curved, y, bundle=bundle, iterations=60, tolerance=0.0)
    w = found.w.clone().requires_grad_()
    mean = small.mean(-1, keepdim=True)
    x = mean + (small - mean) @ w[..., None]
    cost = ((y - curved(x)[..., 0]) ** 2).sum() / 2 + (N - 1) * (w**2).sum() / 2
    (gradient,) = torch.autograd.grad(cost, w)
    limit = 1e-5 if bundle else 1e-3  # the ensemble has a spread
    assert float(gradient.abs().max()) < limit * float(((N - 1) * w).abs().max().detach())


def test_finite_size_ienks_is_the_enkf_n():
    found = ienks(M @ E0, lambda E: H @ E, 3 * Y[0], xN=1.0, iterations=200, tolerance=1e-26)
    T, w = enkf_n(*departures(M @ E0, 3 * Y[0]))
    close(found.w, w, 1e-6)
    close(found.T, T, 1e-6)


def test_ienks_of_a_batch_is_a_loop():
    together = ienks(E0, curved, Y[0])
    for b in range(3):
        alone = ienks(E0[b], curved, Y[0, b])
        close(together.w[b], alone.w, 1e-12)
        close(together.T[b], alone.T, 1e-12)
        assert int(together.iterations[b]) == int(alone.iterations)


def test_ienks_says_what_is_wrong():
    with pytest.raises(ValueError, match="iterations >= 1"):
        ienks(E0, curved, Y[0], iterations=0)
    with pytest.raises(ValueError, match="not finite"):
        ienks(E0, lambda E: curved(E) / 0, Y[0])


# --- ES-MDA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alphas", [[2.0, 2.0], [4.0] * 4, [9.333, 7.0, 4.0, 2.0]])
def test_esmda_of_a_linear_model_is_one_step(alphas):
    alphas = [a * sum(1 / b for b in alphas) for a in alphas]
    once = esmda(E0, lambda E: H @ E, Y[0], [1.0])
    often = esmda(E0, lambda E: H @ E, Y[0], alphas)
    T, w = transform(*departures(E0, Y[0]))
    close(once, reweighted(E0, T, w), 1e-14)
    close(often.mean(-1), once.mean(-1), 1e-10)
    close(covariance(often), covariance(once), 1e-10)


def test_esmda_with_exact_perturbations_is_one_step():
    """Perturbations of covariance I that are uncorrelated with the members: nothing is left to sampling."""
    E, steps = normal(n, 40, seed=5), 4
    X = E - E.mean(-1, keepdim=True)
    known = torch.cat([torch.ones(1, 40, dtype=torch.float64), X])
    free = torch.linalg.qr(torch.cat([known.mT, normal(40, steps * p, seed=6)], 1))[0][:, n + 1 :]
    perturbations = (39**0.5 * free.mT).view(steps, p, 40)
    T, w = transform(*departures(E, Y[0, 0]))
    expected = reweighted(E, T, w)
    ours = esmda(E, lambda E: H @ E, Y[0, 0], [4.0] * steps, perturbations=perturbations)
    close(ours.mean(-1), expected.mean(-1), 1e-10)
    close(covariance(ours), covariance(expected), 1e-10)


def test_esmda_with_random_perturbations_comes_near():
    E = normal(n, 500, seed=7)
    perturbations = normal(4, p, 500, seed=8)
    T, w = transform(*departures(E, Y[0, 0]))
    ours = esmda(E, lambda E: H @ E, Y[0, 0], [4.0] * 4, perturbations=perturbations)
    close(ours.mean(-1), reweighted(E, T, w).mean(-1), 0.15)
    close(covariance(ours), covariance(reweighted(E, T, w)), 0.15)


def test_esmda_says_what_is_wrong():
    for alphas in ([], [2.0, 3.0], [0.5]):
        with pytest.raises(ValueError, match="inverses sum to 1"):
            esmda(E0, curved, Y[0], alphas)
    with pytest.raises(ValueError, match="perturbations of 2 steps"):
        esmda(E0, curved, Y[0], [2.0, 2.0], perturbations=normal(3, 3, p, N))


# --- gradients -----------------------------------------------------------------------------------


def test_enks_and_esmda_are_differentiable():
    y = Y[0, 0].clone().requires_grad_()

    def analysis(y):
        T, w = transform(*departures(E0[0], y))
        return enks(E0[None, 0], T, w).sum() + (esmda(E0[0], curved, y, [2.0, 2.0]) ** 2).sum()

    assert torch.autograd.gradcheck(analysis, (y,))
