"""Ensemble-variational analyses: where nothing is localised they are the Kalman update with the sample covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_windows import DAY, EXACT, STEPS, Dense, N, linear, observation_matrix, observations, state
from toys import Lorenz96

from polynya.da import (
    ETKF,
    LBFGS,
    LETKF,
    En4DVar,
    EnVar,
    FourDVar,
    FromHessian,
    NoAnalysis,
    ObservationError,
    RandomPoints,
    assimilate,
    cycle,
    observe,
)
from polynya.emulators import LayoutError, Noise, State

torch.set_num_threads(1)
EVERYWHERE = Dense(torch.ones(N, 1, dtype=torch.float64))  # no localisation
EXACTLY = EXACT["newton"]


def ensemble(seed=0, members=6):
    g = torch.Generator().manual_seed(seed)
    return state(torch.randn(members, N, generator=g, dtype=torch.float64))


def after(method, model, begin, given):
    return list(cycle(model, begin, None, [given], method))


def test_without_localisation_all_of_them_are_the_etkf():
    """On a linear model, with observations at several times of the window: mean and members, to rounding."""
    model, _, _ = linear()
    given, _ = observations()
    exact = after(ETKF(), model, ensemble(), given)[-1]
    for method in (
        EnVar(EVERYWHERE, minimiser=EXACTLY, filter=ETKF()),
        En4DVar(EVERYWHERE, minimiser=EXACTLY, members=ETKF()),
    ):
        found = after(method, model, ensemble(), given)
        assert len(found) == STEPS + 1 and found[-1].time == given.time
        assert torch.allclose(found[-1].data, exact.data, atol=1e-8)


@pytest.mark.parametrize("static", [False, True])
def test_localised_and_hybrid_covariances_are_the_dense_ones(static):
    _, climate, _ = linear(1)
    given, site = observations(1, steps=1)
    given, forecast = given.replace(time=DAY), ensemble(2)
    apart = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    C = np.exp(-0.5 * np.minimum(apart, N - apart) ** 2 / 1.2**2)
    root = Dense(torch.linalg.cholesky(torch.tensor(C) + 1e-12 * torch.eye(N)))
    X = forecast.data.flatten(1).numpy()
    B = C * np.cov(X.T)
    if static:
        B = 0.7 * B + 0.3 * (climate.L @ climate.L.mT).numpy()
    H, mean = np.eye(N)[site], X.mean(0)
    exact = mean + B @ H.T @ np.linalg.solve(H @ B @ H.T + 0.09 * np.eye(3), given.value - H @ mean)
    how = EnVar(root, climate if static else None, 0.3, EXACTLY, filter=ETKF())
    found = how.analysis(forecast, given).data.flatten(1).numpy()
    assert np.allclose(found.mean(0), exact, atol=1e-8)
    members = ETKF().analysis(forecast, given).data.flatten(1).numpy()
    assert np.allclose(found - found.mean(0), members - members.mean(0), atol=1e-12)


def test_within_the_window_localised_weights_act_where_the_observations_are():
    """Observations before the end see the members' trajectories: H δx = Σ Y_j a_j with a_j at their place."""
    model, _, _ = linear(3)
    given, site = observations(3)
    C = np.eye(N) * 0.6 + 0.4
    root = Dense(torch.linalg.cholesky(torch.tensor(C)))
    begin = ensemble(4)
    found = after(EnVar(root, minimiser=EXACTLY, filter=ETKF()), model, begin, given)[-1].data.flatten(1).numpy()
    path = [begin.data.flatten(1).numpy()]
    for _ in range(STEPS):
        path.append(path[-1] @ model.A.numpy().T)
    X = path[-1] - path[-1].mean(0)
    Y = np.stack([path[1 + i // 3][:, s] - path[1 + i // 3][:, s].mean() for i, s in enumerate(site)], 1)
    seen = np.stack([path[1 + i // 3][:, s].mean() for i, s in enumerate(site)])
    cross, inner = (a.T @ Y / (len(X) - 1) for a in (X, Y))
    K = (C[:, site] * cross) @ np.linalg.inv(C[np.ix_(site, site)] * inner + 0.09 * np.eye(len(site)))
    assert np.allclose(found.mean(0), path[-1].mean(0) + K @ (given.value - seen), atol=1e-8)


def test_members_from_the_hessian_and_from_perturbed_observations_have_the_posterior():
    model, _, _ = linear(5)
    given, site = observations(5)
    begin = ensemble(6, 12)
    P = np.cov(begin.data.flatten(1).numpy().T)
    H = observation_matrix(model, site, weak=False)
    exact = P - P @ H.T @ np.linalg.solve(H @ P @ H.T + 0.09 * np.eye(len(H)), H @ P)
    M = np.linalg.matrix_power(model.A.numpy(), STEPS)
    exact = M @ exact @ M.T
    spreads: dict[str, list[float]] = {"hessian": [], "perturbed": []}
    mean = after(En4DVar(EVERYWHERE, minimiser=EXACTLY, members=ETKF()), model, begin, given)[-1].data.mean(0)
    for seed in range(12):
        for name, members in (("hessian", FromHessian(12, Noise(seed))), ("perturbed", Noise(seed))):
            found = after(En4DVar(EVERYWHERE, minimiser=EXACTLY, members=members), model, begin, given)[-1]
            spreads[name].append(float(found.data.var(0).sum()))
            if name == "hessian":
                assert torch.allclose(found.data.mean(0), mean, atol=1e-8)
    for found in spreads.values():
        assert np.mean(found) == pytest.approx(np.trace(exact), rel=0.12)


def test_on_a_chaotic_model_the_hybrid_is_better_than_either(tmp_path):
    """Lorenz-96, 10 members, half of the sites: hybrid En4DVar beside LETKF and 4D-Var with a static covariance."""
    model, layout = Lorenz96(), Lorenz96().layout
    g = torch.Generator().manual_seed(3)
    truth = State(8 + torch.randn(1, 1, 1, 40, generator=g, dtype=torch.float64), DAY, layout, (0,))
    path = [truth]
    for _ in range(320):
        path.append(model.step(path[-1], None, Noise(0)))
    path = path[80:]
    seen = list(observe(path, RandomPoints("zos", error=1.0, count=20), Noise(1), every=4))
    begin = path[0].replace(
        data=path[0].data + torch.randn(10, 1, 1, 40, generator=g, dtype=torch.float64), members=tuple(range(10))
    )
    lon = np.arange(40)
    apart = np.minimum(lon, 40 - lon)[(lon[:, None] - lon) % 40]
    values, vectors = torch.linalg.eigh(torch.tensor(np.exp(-0.5 * (apart / 4.0) ** 2)))
    local = Dense(vectors * values.clamp(min=0).sqrt(), layout)
    step = 111.195e3 * 360 / 40
    letkf = LETKF(3 * step, inflation=1.06)
    static = Dense(0.7 * torch.eye(40, dtype=torch.float64), layout)
    methods = {
        "LETKF": letkf,
        "4D-Var": FourDVar(static, LBFGS(1e-2)),
        "hybrid": En4DVar(local, static, 0.2, LBFGS(1e-2), members=letkf),
        "EnVar": EnVar(local, static, 0.1, LBFGS(1e-2), filter=letkf),
    }
    error = {}
    for name, method in methods.items():
        start = begin if name != "4D-Var" else begin.mean()
        found = [s.data.mean(0) for s in cycle(model, start, None, seen, method)][::4]
        off = [float((a - b.data[0]).square().mean().sqrt()) for a, b in zip(found, path[::4], strict=False)]
        error[name] = float(np.mean(off[15:]))

    assert error["hybrid"] < min(error["LETKF"], error["4D-Var"]), error
    assert error["EnVar"] < 1.1 * error["LETKF"], error
    kept = assimilate(model, begin, None, seen[:3], methods["hybrid"], store=tmp_path / "one.zarr")
    assert (kept.cycles.iterations.values > 0).all() and kept.cycles.iterations.dims == ("time", "member")


def test_what_cannot_be():
    model, root, _ = linear()
    given, _ = observations()
    one, end = ensemble(members=6).sel((0,)), given.replace(time=DAY, offset=np.zeros(len(given)))
    with pytest.raises(ObservationError, match="EnVar needs at least two members"):
        EnVar(EVERYWHERE, filter=ETKF()).analysis(one, end)
    with pytest.raises(ObservationError, match="En4DVar needs at least two members"):
        after(En4DVar(EVERYWHERE, members=ETKF()), model, one, given)
    with pytest.raises(ValueError, match=r"share of the static covariance and recentre"):
        EnVar(EVERYWHERE, root, 1.2, filter=ETKF())
    with pytest.raises(LayoutError):
        EnVar(Dense(torch.ones(40, 1), Lorenz96().layout), filter=ETKF()).analysis(ensemble(), end)
    none = given.select(np.zeros(len(given), bool))
    free = after(NoAnalysis(), model, ensemble(), none)
    for method in (EnVar(EVERYWHERE, filter=ETKF()), En4DVar(EVERYWHERE, members=ETKF())):
        assert torch.equal(after(method, model, ensemble(), none)[-1].data, free[-1].data)
