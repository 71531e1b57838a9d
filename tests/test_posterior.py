"""The error of variational analyses: Ritz pairs, covariances of linear problems, samples, degrees of freedom."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_windows import EXACT, STEPS, N, linear, observation_matrix, observations, state
from toys import Lorenz96

from polynya.da import FourDVar, Observations, ThreeDVar, Uncorrelated
from polynya.da.posterior import ritz_pairs
from polynya.emulators import Noise, State

torch.set_num_threads(1)


def covariances(model, B, site, Q=None):
    """Of x_0 and the model's errors, before and after: one linear Gaussian problem."""
    H = observation_matrix(model, site, weak=Q is not None)
    prior = B if Q is None else np.kron(np.eye(STEPS + 1), Q)
    if Q is not None:
        prior[:N, :N] = B
    gain = prior @ H.T @ np.linalg.inv(H @ prior @ H.T + 0.09 * np.eye(len(H)))
    return prior - gain @ H @ prior, float(np.trace(H @ gain))


@pytest.mark.parametrize("weak", [False, True])
def test_the_posterior_of_a_linear_window_is_exact(weak):
    model, root, error_root = linear()
    given, site = observations()
    B, Q = ((r.L @ r.L.mT).numpy() for r in (root, error_root))
    exact, signal = covariances(model, B, site, Q if weak else None)
    how = FourDVar(root, EXACT["newton"], model_error=error_root if weak else None)
    begin = state(torch.linspace(-1, 1, N))
    found = how.posterior(model, begin, None, None, given, STEPS, pairs=9 if weak else N)  # as many as observations
    columns = found.root.apply(torch.eye(found.root.size, dtype=torch.float64)).flatten(1)
    assert np.allclose((columns.mT @ columns).numpy(), exact[:N, :N], atol=1e-8)
    assert found.degrees_of_freedom == pytest.approx(signal, abs=1e-8)
    path = how.window(model, begin, None, None, given, STEPS).states
    for a, b in zip(found.states, path, strict=True):
        assert torch.equal(a.data, b.data)


def test_samples_are_trajectories_of_the_posterior():
    model, root, _ = linear(1)
    given, site = observations(1)
    exact, _ = covariances(model, (root.L @ root.L.mT).numpy(), site)
    found = FourDVar(root, EXACT["newton"]).posterior(model, state(torch.zeros(N)), None, None, given, STEPS, pairs=N)
    drawn = found.samples(Noise(3), range(10, 4010))
    assert len(drawn) == STEPS + 1 and drawn[0].members == tuple(range(10, 4010))
    scale = np.sqrt(np.diag(exact))
    off = (np.cov(drawn[0].data.flatten(1).numpy().T) - exact) / np.outer(scale, scale)
    assert np.abs(off).max() < 0.08
    for sample, analysed in zip(drawn, found.states, strict=True):
        assert torch.allclose(sample.data.mean(0), analysed.data[0], atol=1e-9)
    plain = found.samples(Noise(3), (12, 17), centred=False)[0]
    alone = found.samples(Noise(3), (17,), centred=False)[0]
    assert torch.allclose(plain.data[1], alone.data[0], rtol=1e-13, atol=1e-13)


def test_three_d_var_and_few_pairs():
    """With too few pairs the covariance is between the exact one and the background's."""
    _, root, _ = linear(2)
    given, site = observations(2, steps=1)
    given = given.replace(time=state(torch.zeros(N)).time)
    B, H = (root.L @ root.L.mT).numpy(), np.eye(N)[site]
    exact = B - B @ H.T @ np.linalg.solve(H @ B @ H.T + 0.09 * np.eye(3), H @ B)
    traces = []
    for pairs in (1, 2, 3):
        found = ThreeDVar(root, EXACT["newton"]).posterior(state(torch.zeros(N)), given, pairs=pairs)
        columns = found.root.apply(torch.eye(N, dtype=torch.float64)).flatten(1)
        traces.append(float(columns.square().sum()))
    assert np.trace(B) > traces[0] > traces[1] > traces[2]
    assert np.allclose((columns.mT @ columns).numpy(), exact, atol=1e-8)
    assert len(found.samples(Noise(0), range(3))) == 1


def test_ritz_pairs_are_eigenpairs():
    g = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=g, dtype=torch.float64))[0]
    spectrum = torch.cat([torch.tensor([50.0, 20.0, 20.0, 3.0]), torch.zeros(26)]).double()  # repeated, and singular
    A = (basis * spectrum) @ basis.mT
    values, vectors = ritz_pairs(lambda v: v @ A, torch.randn(30, generator=g, dtype=torch.float64), 30)
    assert torch.allclose(values, spectrum, atol=1e-10)
    assert torch.allclose(vectors @ vectors.mT, torch.eye(30, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(vectors[:4] @ A, values[:4, None] * vectors[:4], atol=1e-9)
    one = ritz_pairs(lambda v: v @ A, basis[:, 0], 1)[0]
    assert float(one[0]) == pytest.approx(50.0)


def test_of_a_nonlinear_window_the_spread_is_that_of_an_ensemble_of_analyses():
    model = Lorenz96()
    g = torch.Generator().manual_seed(6)
    truth = 8 + torch.randn(1, 1, 1, 40, generator=g, dtype=torch.float64)
    begin = State(truth, state(torch.zeros(N)).time, model.layout, (0,))
    for _ in range(60):
        begin = model.step(begin, None, Noise(0))
    path = [begin]
    for _ in range(4):
        path.append(model.step(path[-1], None, Noise(0)))
    lon, noise = 9.0 * np.arange(0, 40, 2), np.random.default_rng(0)
    value = path[-1].data.flatten()[::2].numpy() + 0.2 * noise.normal(size=20)
    given = Observations.from_table(
        path[-1].time, {"variable": "zos", "lat": 0.0, "lon": lon, "value": value, "error": 0.2}
    )
    root = Uncorrelated(model.layout, 0.3)
    many = begin.replace(
        data=begin.data + 0.3 * torch.randn(400, 1, 1, 40, generator=g, dtype=torch.float64), members=tuple(range(400))
    )
    eda = FourDVar(root, EXACT["lbfgs"], perturb=Noise(1)).window(model, many, None, None, given, 4).states
    found = FourDVar(root, EXACT["lbfgs"]).posterior(model, begin, None, None, given, 4, pairs=20)
    drawn = found.samples(Noise(2), range(400))
    for k in (0, 4):
        a, b = (s[k].data.flatten(1).std(0).square().mean().sqrt() for s in (eda, drawn))
        assert float(b / a) == pytest.approx(1, abs=0.05)


def test_what_has_no_posterior():
    model, root, _ = linear()
    given, _ = observations()
    for how, members, pairs in (
        (FourDVar(root), (0, 1), 3),
        (FourDVar(root), (0,), 0),
        (FourDVar(root, perturb=Noise(0)), (0,), 3),
    ):
        begin = state(torch.zeros(len(members), N), members=members)
        with pytest.raises(ValueError, match="posterior is that of one state"):
            how.posterior(model, begin, None, None, given, STEPS, pairs=pairs)
