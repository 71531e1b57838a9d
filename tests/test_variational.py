"""Variational analyses: against Kalman smoothers, exact posteriors, finite differences; what is kept and refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import pytest
import scipy.optimize
import torch
from linear_windows import (
    DAY,
    EXACT,
    LAYOUT,
    STEPS,
    Dense,
    N,
    linear,
    observation_matrix,
    observations,
    smoother,
    state,
)
from toys import Lorenz96, Matrix, row_layout

from polynya.da import (
    LBFGS,
    Derived,
    FourDVar,
    Logit,
    ObservationError,
    Observations,
    RandomPoints,
    ThreeDVar,
    Uncorrelated,
    VariationalError,
    assimilate,
    cycle,
    observe,
    operator_for,
)
from polynya.da.window_trajectory import Trajectory
from polynya.emulators import Layout, LayoutError, Noise, Source, SourceError, State

torch.set_num_threads(1)


@pytest.mark.parametrize("minimiser", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("weak", [False, True])
def test_a_linear_window_is_the_kalman_smoother(minimiser, weak):
    model, root, error_root = linear()
    given, site = observations()
    g = torch.Generator().manual_seed(1)
    background = state(torch.randn(2, N, generator=g, dtype=torch.float64))
    method = FourDVar(root, minimiser, model_error=error_root if weak else None)
    found = method.window(model, background, None, None, given, STEPS)
    B, Q = ((r.L @ r.L.mT).numpy() for r in (root, error_root))
    for member in range(2):
        exact = smoother(model, B, Q * weak, site, given.value, 0.3, background.data[member].flatten().numpy())
        for got, wanted in zip(found.states, exact, strict=True):
            assert np.allclose(got.data[member].flatten().numpy(), wanted, atol=1e-8)
    assert (found.report["converged"] == 1).all() and (found.report["cost"] <= found.report["cost_first"]).all()


def test_three_d_var_is_the_kalman_update():
    _, root, _ = linear()
    given, site = observations(steps=1)
    given = given.replace(time=DAY)
    background = state(torch.arange(N) * 0.1)
    B, H = (root.L @ root.L.mT).numpy(), np.eye(N)[site]
    K = B @ H.T @ np.linalg.inv(H @ B @ H.T + 0.09 * np.eye(3))
    x = background.data.flatten().numpy()
    for minimiser in EXACT.values():
        found = ThreeDVar(root, minimiser).analysis(background, given)
        assert np.allclose(found.data.flatten().numpy(), x + K @ (given.value - H @ x), atol=1e-8)
    with pytest.raises(ObservationError, match="forecast's time"):
        ThreeDVar(root).analysis(background, given.replace(time=DAY + timedelta(days=1)))


@pytest.mark.parametrize("kept", ["all", "states", "few"])
def test_gradients_are_those_of_finite_differences_whatever_is_kept(kept):
    model, truth = Lorenz96(), Noise(0).normal((0,), None, (40,), dtype=torch.float64)
    layout = model.layout
    background = State(8 + truth.reshape(1, 1, 1, 40), DAY, layout, (0,))
    table = {"variable": "zos", "lat": 0.0, "lon": np.arange(0, 360, 45.0), "value": 3.0, "error": 0.5}
    table["offset"] = -86400.0 * np.arange(8) * 0.9
    given = Observations.from_table(DAY + timedelta(days=9), table)
    how = FourDVar(Dense(0.3 * torch.eye(40, dtype=torch.float64), layout), checkpoint=kept)
    problem = Trajectory(how, model, background, None, None, given, 9)
    g = torch.Generator().manual_seed(2)
    v, u = (torch.randn(1, 40, generator=g, dtype=torch.float64) for _ in range(2))
    J, gradient = problem.cost(v)
    slopes = []
    for eps in (1e-2, 1e-3, 1e-4):
        ahead = problem.cost(v + eps * u)[0]
        slopes.append(float((ahead - J - eps * (gradient * u).sum()).abs()))
    assert np.allclose(np.diff(np.log10(slopes)), -2, atol=0.05)
    _, same, product = problem.linearised(v)
    assert torch.allclose(same, gradient, rtol=1e-12)
    w = torch.randn(1, 40, generator=g, dtype=torch.float64)
    assert float((product(u) * w).sum()) == pytest.approx(float((product(w) * u).sum()), rel=1e-10)


def test_what_is_kept_fits_into_the_memory_that_is_given():
    model, layout = Lorenz96(), Lorenz96().layout
    background = State(8 + torch.zeros(2, 1, 1, 40, dtype=torch.float64), DAY, layout, (0, 1))
    table = {"variable": "zos", "lat": 0.0, "lon": 9.0, "value": 3.0, "error": 0.5}
    given = Observations.from_table(DAY + timedelta(days=25), table)
    how, window = FourDVar(Uncorrelated(layout, 0.3)), (model, background, None, None, given, 25)
    cost = how.cost(*window)
    state = background.data.numel() * 8
    assert cost.bytes["all"] > cost.bytes["states"] > cost.bytes["few"] > 10 * state
    assert cost.bytes["states"] - cost.bytes["few"] == 15 * state
    assert 1 < cost.ratio < 50 and "forward runs of the window" in str(cost) and cost.checkpoint == "states"
    alike = set()
    for kept, limit in cost.bytes.items():
        bounded = replace(how, checkpoint="auto", memory=limit)
        problem = Trajectory(bounded, *window)
        assert problem.checkpoint == kept
        alike.add(float(problem.cost(problem.start())[1].sum()))
    assert len(alike) == 1
    with pytest.raises(ValueError, match=r"needs at least .* bytes, got memory=1\.00e\+02"):
        replace(how, checkpoint="auto", memory=100).window(*window)


def test_a_perfect_twin_costs_nothing_and_windows_cycle():
    model, layout = Lorenz96(), Lorenz96().layout
    g = torch.Generator().manual_seed(3)
    truth = State(8 + torch.randn(1, 1, 1, 40, generator=g, dtype=torch.float64), DAY, layout, (0,))
    path = [truth]
    for _ in range(40):
        path.append(model.step(path[-1], None, Noise(0)))
    network = RandomPoints("zos", error=0.5, count=40)
    seen = list(observe(path, network, Noise(1), every=4))
    how = FourDVar(Dense(0.3 * torch.eye(40, dtype=torch.float64), layout), LBFGS(1e-3))
    exact = [o.replace(value=operator_for(layout, o).apply(path[4 * (k + 1)])[0].numpy()) for k, o in enumerate(seen)]
    found = how.window(model, truth, None, None, exact[0], 4)
    assert found.report["cost"].max() < 1e-20 and torch.equal(found.states[-1].data, path[4].data)
    wrong = truth.replace(data=truth.data + 0.3 * torch.randn(1, 1, 1, 40, generator=g, dtype=torch.float64))
    cycles = []
    states = list(cycle(model, wrong, None, seen, how, monitor=cycles.append))
    assert len(states) == 41 and [s.time for s in states] == [s.time for s in path]
    error = [float((c.analysis.data - path[4 * (k + 1)].data).square().mean().sqrt()) for k, c in enumerate(cycles)]
    background = [
        float((c.background.data - path[4 * (k + 1)].data).square().mean().sqrt()) for k, c in enumerate(cycles)
    ]
    assert np.mean(error) < 0.7 * np.mean(background) and np.mean(error) < 0.6
    assert (cycles[-1].report["cost"] < cycles[-1].report["cost_first"]).all()


def test_members_are_problems_of_their_own_and_an_ensemble_of_them_knows_its_error():
    """With perturbed backgrounds and observations the spread of analyses is the posterior's."""
    model, root, _ = linear(4)
    given, site = observations(4)
    members = tuple(range(1500))
    drawn = Noise(7).normal(members, None, (N,), dtype=torch.float64)
    background = state(drawn @ root.L.mT, members=members)
    how = FourDVar(root, EXACT["newton"], perturb=Noise(8))
    found = how.window(model, background, None, None, given, STEPS).states[0].data.flatten(1)
    B = (root.L @ root.L.mT).numpy()
    H, M = [], np.eye(N)
    for i, s in enumerate(site):
        M = model.A.numpy() @ M if i % 3 == 0 else M
        H.append(M[s])
    H = np.stack(H)
    posterior = B - B @ H.T @ np.linalg.solve(H @ B @ H.T + 0.09 * np.eye(len(H)), H @ B)
    assert np.allclose(np.cov(found.numpy().T), posterior, atol=0.1 * np.trace(posterior) / N + 0.04)
    alone = how.window(model, background.sel((17,)), None, None, given, STEPS).states[0].data.flatten()
    assert torch.allclose(alone, found[17], atol=1e-7)


def test_noise_of_a_stochastic_model_is_a_control():
    """x' = A x + 0.3 ξ with the noise as control is the weak-constraint smoother with Q = 0.09."""
    model, root, _ = linear(5)
    noisy = replace(model, noise=0.3)
    given, site = observations(5)
    background = state(torch.zeros(N))
    how = FourDVar(root, EXACT["lbfgs"], control_noise=True)
    found = how.window(noisy, background, None, Noise(3), given, STEPS)
    B = (root.L @ root.L.mT).numpy()
    exact = smoother(model, B, 0.09 * np.eye(N), site, given.value, 0.3, np.zeros(N))
    for got, wanted in zip(found.states, exact, strict=True):
        assert np.allclose(got.data.flatten().numpy(), wanted, atol=1e-7)


def test_bounded_variables_stay_within_their_bounds():
    layout = row_layout(N, "siconc")
    still = Matrix(torch.eye(N, dtype=torch.float64), layout)
    background = State(torch.linspace(0, 1, N, dtype=torch.float64).reshape(1, 1, 1, N), DAY, layout, (0,))
    table = {"variable": "siconc", "lat": 0.0, "lon": 360.0 / N * np.arange(N), "value": 1 - np.linspace(0, 1, N)}
    given = Observations.from_table(DAY + timedelta(days=5), table | {"error": 0.05})
    how = FourDVar(Dense(2 * torch.eye(N, dtype=torch.float64), layout), transforms={"siconc": Logit()})
    found = how.window(still, background, None, None, given, 1).states[-1].data.flatten()
    assert found.min() >= 0 and found.max() <= 1
    assert ((found - torch.tensor(given.value)).abs() < 0.1).all()


def test_minimisation_within_bounds_is_scipys():
    layout = row_layout(N, "siconc")
    model, _, _ = linear(7)
    model = replace(model, layout=layout)
    background = State(torch.linspace(0, 1, N, dtype=torch.float64).reshape(1, 1, 1, N), DAY, layout, (0,))
    given, site = observations(7)
    given = given.replace(variable=np.full(len(given), "siconc"))
    how = FourDVar(Uncorrelated(layout, 0.5), EXACT["lbfgs"], bounds={"siconc": (0.0, 1.0)})
    found = how.window(model, background, None, None, given, STEPS).states[0].data.flatten().numpy()
    H, x = observation_matrix(model, site, weak=False), background.data.flatten().numpy()

    def cost(z):
        d, r = (z - x) / 0.5, (given.value - H @ z) / 0.3
        return (d @ d + r @ r) / 2, d / 0.5 - H.T @ r / 0.3

    exact = scipy.optimize.minimize(cost, x, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * N, tol=1e-14)
    assert np.allclose(found, exact.x, atol=1e-6) and 0 < ((found == 0) | (found == 1)).sum() < N


def test_a_penalty_of_tendencies_is_one_more_term_of_a_linear_problem():
    model, root, _ = linear(8)
    given, site = observations(8)
    x = np.linspace(-1, 1, N)
    how = FourDVar(root, EXACT["newton"], tendencies={"zos": 0.2})
    found = how.window(model, state(torch.tensor(x)), None, None, given, STEPS)
    H, M, B = observation_matrix(model, site, weak=False), model.A.numpy(), (root.L @ root.L.mT).numpy()
    change = [np.linalg.matrix_power(M, k + 1) - np.linalg.matrix_power(M, k) for k in range(STEPS)]
    inverse = np.linalg.inv(B) + H.T @ H / 0.09 + sum(c.T @ c for c in change) / 0.04 / N
    exact = np.linalg.solve(inverse, H.T @ (given.value - H @ x)) / 0.09
    got = found.states[0].data.flatten().numpy() - x
    assert np.allclose(got, exact, atol=1e-8)
    assert found.report["cost_tendencies"][0] == pytest.approx(sum((c @ got) @ (c @ got) for c in change) / 0.08 / N)
    free = FourDVar(root, EXACT["newton"]).window(model, state(torch.tensor(x)), None, None, given, STEPS)
    assert "cost_tendencies" not in free.report
    for kept in ("all", "few"):
        other = replace(how, checkpoint=kept).window(model, state(torch.tensor(x)), None, None, given, STEPS)
        assert torch.equal(other.states[0].data, found.states[0].data)


def test_of_several_first_guesses_the_lowest_minimum_counts():
    """Observations of x² have two minima; the background is nearer to the wrong one."""
    layout = row_layout(1)
    still = Matrix(torch.eye(1, dtype=torch.float64), layout)
    square = Derived("square", ("zos",), lambda x: x**2)
    table = {"variable": "square", "lat": 0.0, "lon": 0.0, "value": 4.0, "error": 0.1}
    given = Observations.from_table(DAY + timedelta(days=5), table, derived=(square,))
    near = {"variable": "zos", "lat": 0.0, "lon": 0.0, "value": 0.5, "error": 1.0}
    given = Observations.concat([given, Observations.from_table(given.time, near)])
    background = State(torch.full((1, 1, 1, 1), -0.3, dtype=torch.float64), DAY, layout, (0,))
    one, many = (
        FourDVar(Uncorrelated(layout, 2.0), LBFGS(1e-8), starts=n).window(still, background, None, None, given, 1)
        for n in (1, 6)
    )
    assert float(one.states[0].data) < 0 < float(many.states[0].data)
    assert many.report["cost"] < one.report["cost"] and many.report["evaluations"] > one.report["evaluations"]


def test_a_growing_window_ends_at_the_same_minimum():
    model, root, _ = linear(6)
    given, _ = observations(6)
    background = state(torch.zeros(N))
    once, slowly = (
        FourDVar(root, EXACT["lbfgs"], growing=g).window(model, background, None, None, given, STEPS)
        for g in ((1.0,), (0.4, 0.7, 1.0))
    )
    assert torch.allclose(once.states[0].data, slowly.states[0].data, atol=1e-8)


def test_what_cannot_be():
    model, root, _ = linear()
    given, _ = observations()
    background = state(torch.zeros(N))
    how = FourDVar(root)
    nothing = how.window(model, background, None, None, given.select(np.zeros(len(given), bool)), STEPS)
    assert torch.equal(nothing.states[0].data, background.data) and not nothing.report

    @dataclass(frozen=True)
    class Broken:
        layout: Layout = LAYOUT
        dt: timedelta = timedelta(days=5)
        forcing_layout: None = None
        how: str = "detach"

        def step(self, x, forcing, noise):
            data = x.data.detach() * 1.0 if self.how == "detach" else torch.sqrt(x.data * 0)
            return x.replace(data=data, time=x.time + self.dt)

    with pytest.raises(
        VariationalError, match="the gradient is cut; in step 1 by Tensor.detach at test_variational.py.*Broken"
    ):
        how.window(Broken(), background, None, None, given, STEPS)
    with pytest.raises(VariationalError, match="not finite at step"):
        how.window(Broken(how="root"), background, None, None, given, STEPS)
    with pytest.raises(LayoutError, match="root"):
        FourDVar(Dense(torch.eye(4), row_layout(4))).window(model, background, None, None, given, STEPS)
    with pytest.raises(ObservationError, match="end of the window"):
        how.window(model, background, None, None, given, STEPS - 2)
    with pytest.raises(ObservationError, match="belong to that"):
        how.window(model, background, None, None, given.replace(offset=given.offset - 86400 * 11), STEPS)
    with pytest.raises(ValueError, match="whole windows"):
        next(cycle(model, background, None, [given], how, increments=1))
    for settings, message in (
        ({"checkpoint": "some"}, "wanted checkpoint"),
        ({"growing": (1.0, 0.5)}, "ascending fractions"),
        ({"starts": 0}, "starts >= 1"),
        ({"tendencies": {"zos": 0.0}}, "tendencies > 0"),
        ({"bounds": {"zos": (0.0, 1.0)}}, "belong to an Uncorrelated root and LBFGS"),
    ):
        with pytest.raises(ValueError, match=message):
            FourDVar(root, **settings)
    with pytest.raises(KeyError, match="thetao"):
        FourDVar(root, tendencies={"thetao": 1.0}).window(model, background, None, None, given, STEPS)


def test_forcing_that_ends_within_the_window_is_named_before_anything_is_computed():
    model, root, _ = linear()
    given, _ = observations()
    layout = row_layout(N, "tauuo")
    dates = [DAY + timedelta(days=5 * k) for k in range(STEPS - 1)]
    winds = layout.grid.assign(tauuo=(("time", "lat", "lon"), np.zeros((len(dates), 1, N)), {"units": "N m-2"}))
    forcing = Source.open(winds.assign_coords(time=dates), layout)
    with pytest.raises(SourceError, match=f"no record of tauuo for {DAY + timedelta(days=10)}.* it covers {DAY} to"):
        FourDVar(root).window(model, state(torch.zeros(N)), forcing, None, given, STEPS)


def test_what_is_reported_is_stored_and_cycles_without_observations_have_none(tmp_path):
    model, root, _ = linear()
    given, _ = observations()
    later = [given.replace(time=given.time + timedelta(days=15 * k)) for k in range(3)]
    later[1] = later[1].select(np.zeros(len(given), bool))
    for first in (0, 1):  # the one without is in the middle, or the first
        seen = later if first == 0 else [later[1].replace(time=given.time), later[1], later[2]]
        kept = assimilate(model, state(torch.zeros(N)), None, seen, FourDVar(root), store=tmp_path / f"{first}.zarr")
        found = kept.cycles.cost.isel(member=0).values
        assert np.isnan(found).tolist() == [first == 1, True, False] and kept.cycles.given.values[1] == 0
        assert kept.observations.sizes["observation"] == (2 - first) * len(given)
