"""Minimisers: against scipy and closed forms, batches against single problems, bounds, functions that fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize

from polynya.da import LBFGS, GaussNewton
from polynya.da.gauss_newton import truncated_cg

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import minimisers

torch.set_num_threads(1)


def gradient_of(f):
    def cost(v):
        v = v.detach().requires_grad_()
        J = f(v)
        return J.detach(), torch.autograd.grad(J.sum(), v)[0]

    return cost


def rosenbrock(v):
    return (100 * (v[:, 1:] - v[:, :-1] ** 2) ** 2 + (1 - v[:, :-1]) ** 2).sum(-1)


def bowl(n=30, problems=4, condition=1e4, seed=0):
    """A quadratic with known minimum."""
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(problems, n, n, generator=g, dtype=torch.float64))[0]
    A = Q * torch.logspace(0, np.log10(condition), n, dtype=torch.float64) @ Q.mT
    b = torch.randn(problems, n, generator=g, dtype=torch.float64)
    return A, b


def quadratic(A, b):
    return lambda v: (v * (A @ v[..., None])[..., 0]).sum(-1) / 2 - (b * v).sum(-1)


def test_a_quadratic_reaches_its_minimum():
    A, b = bowl(condition=1000)
    found = LBFGS(tolerance=1e-9, iterations=500, evaluations=700).minimise(
        gradient_of(quadratic(A, b)), torch.zeros_like(b)
    )
    assert found.converged.all()
    assert torch.allclose(found.v, torch.linalg.solve(A, b), atol=1e-7)
    assert (found.history.diff(dim=0) <= 0).all() and torch.allclose(found.history[-1], found.cost)


def test_rosenbrock_from_many_places_about_as_fast_as_scipy():
    g = torch.Generator().manual_seed(1)
    start = 2 * torch.randn(16, 6, generator=g, dtype=torch.float64)
    found = LBFGS(tolerance=1e-8, iterations=300, evaluations=600).minimise(gradient_of(rosenbrock), start)
    assert found.converged.all()
    evaluations = 0
    for row in range(16):
        theirs = optimize.minimize(
            optimize.rosen, start[row].numpy(), jac=optimize.rosen_der, method="L-BFGS-B",
            options={"gtol": 1e-8 * float(found.start[row]), "ftol": 0},
        )  # fmt: skip
        evaluations = max(evaluations, theirs.nfev)
        at_minimum = found.cost[row] < 1e-10 or abs(theirs.fun - found.cost[row]) < 1e-6 or found.cost[row] < 4.0
        assert at_minimum  # in six dimensions there is a second minimum, of cost 3.97
    assert found.evaluations <= 1.6 * evaluations


def test_a_batch_is_the_loop_over_its_problems():
    g = torch.Generator().manual_seed(2)
    start = torch.randn(5, 4, generator=g, dtype=torch.float64)
    minimiser = LBFGS(tolerance=1e-6, evaluations=500)
    together = minimiser.minimise(gradient_of(rosenbrock), start)
    for row in range(5):
        alone = minimiser.minimise(gradient_of(rosenbrock), start[row : row + 1])
        assert torch.equal(alone.v[0], together.v[row]) and alone.iterations[0] == together.iterations[row]


def test_bounds_hold_and_the_rest_is_as_scipy_finds_it():
    A, b = bowl(n=12, problems=3, condition=100)
    b = 20 * b
    low, high = torch.full((12,), -0.5, dtype=torch.float64), torch.full((12,), 0.8, dtype=torch.float64)
    found = LBFGS(tolerance=1e-9, iterations=300, evaluations=500).minimise(
        gradient_of(quadratic(A, b)), torch.zeros_like(b), lower=low, upper=high
    )
    assert found.converged.all()
    assert (found.v >= low).all() and (found.v <= high).all() and ((found.v == low) | (found.v == high)).any()
    for k in range(3):
        theirs = optimize.minimize(
            lambda v: 0.5 * v @ A[k].numpy() @ v - b[k].numpy() @ v,  # noqa: B023
            np.zeros(12), jac=lambda v: A[k].numpy() @ v - b[k].numpy(), method="L-BFGS-B",  # noqa: B023
            bounds=[(-0.5, 0.8)] * 12, options={"ftol": 1e-15, "gtol": 1e-10},
        )  # fmt: skip
        assert np.allclose(found.v[k], theirs.x, atol=1e-5)


def test_where_the_cost_is_not_finite_a_step_is_shorter():
    def barrier(v):
        return (v - torch.log(v)).sum(-1)  # NaN below 0

    start = torch.full((2, 3), 5.0, dtype=torch.float64)
    start[1] = 0.01
    found = LBFGS(tolerance=1e-8).minimise(gradient_of(barrier), start)
    assert found.converged.all() and torch.allclose(found.v, torch.ones_like(start), atol=1e-6)
    with pytest.raises(ValueError, match=r"problems \[1\]"):
        LBFGS().minimise(gradient_of(barrier), torch.tensor([[1.0], [-1.0]], dtype=torch.float64))


def test_float32_control_and_problems_that_are_done_already():
    A, b = bowl(n=8, problems=2, condition=10)
    start = torch.stack([torch.linalg.solve(A, b)[0], torch.zeros(8, dtype=torch.float64)]).float()
    found = LBFGS(tolerance=1e-4).minimise(gradient_of(quadratic(A.float(), b.float())), start)
    assert found.v.dtype == torch.float32 and found.cost.dtype == torch.float64 and found.converged[1]
    zero = LBFGS().minimise(gradient_of(lambda v: (v**2).sum(-1)), torch.zeros(1, 3))
    assert zero.evaluations == 1 and zero.converged.all() and zero.iterations == 0


# --- Gauss-Newton ------------------------------------------------------------------------------------


def squares(residual):
    """J = |r|² / 2 of a residual (problem, m), linearised."""

    def linearised(v):
        r, pull = torch.func.vjp(residual, v)

        def product(p):
            return pull(torch.func.jvp(residual, (v,), (p,))[1])[0]

        return (r**2).sum(-1) / 2, pull(r)[0], product

    return linearised


def test_gauss_newton_solves_a_linear_problem_at_once():
    g = torch.Generator().manual_seed(3)
    M, y = torch.randn(20, 8, generator=g, dtype=torch.float64), torch.randn(3, 20, generator=g, dtype=torch.float64)
    found = GaussNewton(tolerance=1e-9, inner=8, inner_tolerance=1e-12).minimise(
        squares(lambda v: v @ M.T - y), torch.zeros(3, 8, dtype=torch.float64)
    )
    exact = torch.linalg.lstsq(M, y.T).solution.T
    assert torch.allclose(found.v, exact, atol=1e-8) and found.iterations.max() <= 2 and found.products <= 20


def test_gauss_newton_needs_its_trust_region():
    """Rosenbrock as squares: full Gauss-Newton steps overshoot from afar, the trust region brings all home."""

    def residual(v):
        return torch.cat([10 * (v[:, 1:] - v[:, :-1] ** 2), 1 - v[:, :-1]], -1) * 2**0.5

    g = torch.Generator().manual_seed(4)
    start = 3 * torch.randn(8, 2, generator=g, dtype=torch.float64)
    found = GaussNewton(tolerance=1e-12, iterations=60, inner_tolerance=1e-3).minimise(squares(residual), start)
    assert found.converged.all() and torch.allclose(found.v, torch.ones_like(start), atol=1e-5)
    assert (found.history.diff(dim=0) <= 0).all()


def test_truncated_conjugate_gradients_stop_at_the_edge():
    A, b = bowl(n=10, problems=2, condition=50)
    far = torch.full((2,), torch.inf, dtype=torch.float64)
    everything = torch.ones(2, dtype=torch.bool)
    p, Hp, _ = truncated_cg(lambda d: (A @ d[..., None])[..., 0], -b, far, everything, 60, 1e-12)
    assert torch.allclose(p, torch.linalg.solve(A, b), atol=1e-8) and torch.allclose(Hp, b, atol=1e-8)
    near = torch.tensor([0.1, 0.2], dtype=torch.float64)
    p, _, _ = truncated_cg(lambda d: (A @ d[..., None])[..., 0], -b, near, everything, 60, 1e-12)
    assert torch.allclose(p.norm(dim=-1), near)
    p, _, _ = truncated_cg(lambda d: -(A @ d[..., None])[..., 0], -b, near, everything, 60, 1e-12)  # no minimum
    assert torch.allclose(p.norm(dim=-1), near)


def test_settings_that_make_no_sense():
    for wrong in (lambda: LBFGS(tolerance=1.0), lambda: LBFGS(memory=0), lambda: GaussNewton(inner=0)):
        with pytest.raises(ValueError, match="wanted"):
            wrong()


def test_quasi_linear_windows_take_some_thirty_forward_runs_and_adam_many_more():
    """The first part of the table of `benchmarks/minimisers.py`; a gradient counts as three forward runs."""
    cases = minimisers.made(16, 8, 0.02)
    ours, plain = minimisers.quasi_newton(cases), minimisers.adam(cases, 0.1, 100)
    lowest = ours[0][1][-1]
    near, adam = (minimisers.prices(curves, 1.01 * lowest) for curves in (ours, plain))
    assert np.median(near) <= 30 and near.max() <= 36
    assert np.median(adam) > 3 * np.median(near)
    scipys = np.concatenate([J[-1] for _, J in minimisers.scipys(minimisers.made(2, 8, 0.02))])
    assert np.allclose(lowest[:2], scipys, rtol=1e-6)
