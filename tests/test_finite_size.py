"""The finite-size filter: against its primal problem by brute force, its limits, and Lorenz-96 without tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from polynya.da import enkf_n, finite_size_inflation, rotation, transform
from polynya.da.rotation import projection

torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(*batch, n=7, p=5, size=1.0, seed=0):
    Y = size * normal(*batch, p, n, seed=seed)
    return Y - Y.mean(-1, keepdim=True), 2 * normal(*batch, p, seed=seed + 1)


OPTIONS = [{}, {"xN": 2.5}, {"nullity": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_the_mean_minimises_the_primal_cost(options, size):
    n = 7
    Y, d = problem(n=n, size=size)
    c, e = options.get("xN", 1) * (n + options.get("nullity", 0)), options.get("xN", 1) * (n + 1) / n
    Yn, dn, omega = Y.numpy(), d.numpy(), projection(n).numpy()

    def cost(v):  # Bocquet et al. (2015), eq. 20, in the subspace of weights that sum to zero
        w = omega @ v
        return ((dn - Yn @ w) ** 2).sum() + c * np.log(e + w @ w)

    starts = [np.zeros(n - 1), *(normal(6, n - 1, seed=3).numpy() * size**-1)]
    best = min((minimize(cost, s, method="BFGS", options={"gtol": 1e-9}) for s in starts), key=lambda r: r.fun)
    _, w = enkf_n(Y, d, mode_correction=False, **options)
    np.testing.assert_allclose(w.numpy(), omega @ best.x, atol=2e-6 * max(1, np.abs(best.x).max()))


def test_the_hessian_option_is_the_hessian_of_the_primal_cost():
    n = 7
    Y, d = problem(n=n)
    T, w = enkf_n(Y, d, hessian=True, mode_correction=False)

    def cost(w):
        return ((d - Y @ w).square().sum() + n * torch.log((n + 1) / n + w.square().sum())) / 2

    hessian = torch.autograd.functional.hessian(cost, w)
    close = torch.allclose(T @ T @ hessian, (n - 1) * torch.eye(n, dtype=T.dtype), atol=1e-9)
    assert close
    gradient = torch.autograd.functional.jacobian(cost, w)
    assert gradient.abs().max() < 1e-10
    plain, same = enkf_n(Y, d, mode_correction=False)
    assert torch.equal(w, same)
    larger = torch.linalg.eigvalsh(T @ T - plain @ plain)
    assert larger.min() > -1e-12 and larger.max() > 1e-4


def test_the_best_of_several_minima_is_found():
    # Costs with two minima appear at random in few dimensions: compare with a fine search over ζ.
    n, p = 4, 3
    Y, d = problem(300, n=n, p=p, size=0.6, seed=5)
    d = d * torch.linspace(0.2, 12, 300, dtype=torch.float64)[:, None]
    factor = finite_size_inflation(Y, d, mode_correction=False)
    zeta = (n - 1) / factor**2
    eye = torch.eye(p, dtype=Y.dtype)

    def dual(z, b):
        S = eye + Y[b] @ Y[b].mT / z
        return d[b] @ torch.linalg.solve(S, d[b]) + (n + 1) / n * z - n * np.log(z)

    high, several = n * n / (n + 1), 0
    for b in range(0, 300, 3):
        grid = np.geomspace(1e-7 * high, high, 300)
        values = np.array([dual(z, b).item() for z in grid])
        k = int(values.argmin())
        several += int(((np.diff(values)[:-1] < 0) & (np.diff(values)[1:] > 0)).sum() > 1)
        bounds = (grid[max(k - 1, 0)], grid[min(k + 1, 299)])
        fine = minimize_scalar(lambda z, b=b: dual(z, b).item(), bounds=bounds, method="bounded")
        assert dual(zeta[b].item(), b) <= min(fine.fun, values.min()) + 1e-8 * abs(values.min())


def test_it_is_an_etkf_with_the_inflation_it_found():
    Y, d = problem(2, 3)
    rho = normal(5, seed=4).abs()
    factor = finite_size_inflation(Y, d, rho)
    for ours, wanted in zip(enkf_n(Y, d, rho), transform(Y, d, rho, inflation=factor), strict=True):
        assert torch.equal(ours, wanted)
    one = torch.stack([torch.stack([finite_size_inflation(Y[i, j], d[i, j], rho) for j in range(3)]) for i in range(2)])
    assert torch.allclose(one, factor, rtol=1e-12)


def test_limits():
    # Nothing observed: the mode of the prior, 1 with the correction, below 1 without.
    Y, d = problem(n=20)
    nothing = torch.zeros_like(Y), torch.zeros_like(d)
    assert torch.allclose(finite_size_inflation(*nothing), torch.ones((), dtype=Y.dtype), atol=1e-12)
    bare = finite_size_inflation(*nothing, mode_correction=False)
    assert torch.allclose(bare**2, torch.tensor(21 / 20 * 19 / 20, dtype=Y.dtype), atol=1e-12)
    # Large ensembles have no sampling error; nor has a prior that is trusted without end.
    for correction in (True, False):
        distance = []
        for n in (10, 60, 400):
            Y, d = problem(n=n, p=3)
            distance.append(abs(finite_size_inflation(Y, d, mode_correction=correction).item() - 1))
        assert distance[2] < 1e-2 and distance[2] < distance[0]
        T, w = enkf_n(Y, d, mode_correction=correction)
        t, v = transform(Y, d)
        assert (T - t).abs().max() < 1e-2 and (w - v).norm() < 1e-2 * v.norm()
    Y, d = problem(n=10)
    trusted = finite_size_inflation(Y, d, xN=1e8, mode_correction=False)
    assert torch.allclose(trusted**2, torch.tensor(11 / 10 * 9 / 10, dtype=Y.dtype), rtol=1e-6)


def test_surprise_inflates():
    Y, d = problem(n=12)
    sizes = torch.tensor([0.0, 0.5, 1.0, 3.0, 10.0, 1e3, 1e6], dtype=torch.float64)
    factors = finite_size_inflation(Y.expand(7, 5, 12), d * sizes[:, None])
    assert (factors.diff() > 0).all() and factors.isfinite().all() and factors[0] < 1.0 < factors[4]
    T, w = enkf_n(Y.expand(7, 5, 12), d * sizes[:, None])
    assert T.isfinite().all() and w.isfinite().all()


def test_gradients_of_the_inflation():
    Y, d = problem(n=6, p=4)
    rho = normal(4, seed=2).abs()
    xN = torch.tensor(1.3, dtype=torch.float64)
    for tensor in (Y, d, rho, xN):
        tensor.requires_grad_()
    for correction in (True, False):
        assert torch.autograd.gradcheck(
            lambda Y, d, r, x, m=correction: finite_size_inflation(Y, d, r, xN=x, mode_correction=m), (Y, d, rho, xN)
        )


def lorenz(x, dt=0.05):
    def tendency(x):
        return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8.0

    k1 = tendency(x)
    k2 = tendency(x + dt / 2 * k1)
    k3 = tendency(x + dt / 2 * k2)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + tendency(x + dt * k3))


def test_lorenz_96_without_tuning():
    # Accepted for long runs: 0.195 to 0.222, N = 24, x_N = 1, rotated.
    replicates, n, g = 6, 24, torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=g)

    truth = torch.zeros(replicates, 40, dtype=torch.float64)
    truth[:, 0] = 1.0
    truth, E, rmse = truth + 0.03 * draw(replicates, 40), truth.unsqueeze(1) + 0.03 * draw(replicates, n, 40), []
    for k in range(500):
        truth, E = lorenz(truth), lorenz(E)
        mean = E.mean(1, keepdim=True)
        T, w = enkf_n((E - mean).mT, truth + draw(replicates, 40) - mean[:, 0])
        T = T @ rotation(draw(replicates, n, n - 1))
        E = mean + (T + w.unsqueeze(-1)).mT @ (E - mean)
        if k >= 250:
            rmse.append((E.mean(1) - truth).square().mean(-1).sqrt())
    assert 0.17 < torch.stack(rmse).mean(0).median() < 0.25
