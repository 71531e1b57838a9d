"""Inflation: what it does to mean and spread, on arrays and on states, alone and around analyses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import START, random_state, small_layout
from toys import Lorenz96

from polynya.da import (
    ETKF,
    RTPP,
    RTPS,
    Adaptive,
    Additive,
    DEnKF,
    EnKF,
    Inflated,
    Multiplicative,
    Observations,
    gaspari_cohn,
    great_circle,
    operator_for,
)
from polynya.da.inflation import adapted, multiplied, rtpp, rtps
from polynya.emulators import LayoutError, Noise, State

torch.set_num_threads(1)
LAYOUT = small_layout()
MEMBERS = (4, 0, 7, 2, 9, 3)


def forecast(seed=0):
    return random_state(LAYOUT, MEMBERS, seed).to(torch.float64)


def observations(p=12, seed=3):
    rng = np.random.default_rng(seed)
    table = {"variable": "zos", "lat": rng.uniform(-8, 4, p), "lon": rng.uniform(0, 330, p)}
    return Observations.from_table(START, table | {"value": rng.normal(size=p), "error": np.full(p, 0.5)})


def moments(state):
    return state.data.mean(0), state.data.std(0)


ALONE = [Multiplicative(1.3), Additive(random_state(LAYOUT, tuple(range(15)), 8), 0.5, Noise(1))]
RELAXATIONS = [RTPP(0.4), RTPS(0.4)]
objects = pytest.mark.parametrize("inflation", ALONE + RELAXATIONS, ids=lambda i: type(i).__name__)


@objects
def test_the_mean_stays_and_so_does_land(inflation):
    before, analysis = forecast(), ETKF().analysis(forecast(), observations())
    land = ~LAYOUT.mask
    analysis.data[:, land] = torch.nan
    after = inflation.inflate(analysis, before)
    assert torch.allclose(after.data.mean(0)[~land], analysis.data.mean(0)[~land], atol=1e-12)
    assert after.data[:, land].isnan().all() and after.data[:, ~land].isfinite().all()
    assert after.data.std(0)[~land].mean() > analysis.data.std(0)[~land].mean()
    assert (after.members, after.time, after.layout) == (analysis.members, analysis.time, analysis.layout)
    some = type(inflation)(**(vars(inflation) | {"variables": ("zos",)})).inflate(analysis, before)
    assert torch.equal(some.data[:, :6].nan_to_num(9), analysis.data[:, :6].nan_to_num(9))
    assert torch.equal(some.data[:, 6].nan_to_num(9), after.data[:, 6].nan_to_num(9))
    order = [9, 4, 3, 2, 0, 7]
    shuffled = inflation.inflate(analysis.sel(order), before.sel(order))
    assert torch.allclose(shuffled.sel(MEMBERS).data, after.data, atol=1e-12, equal_nan=True)


def test_formulas():
    E, F = (torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    X, Xf = E - E.mean(0), F - F.mean(0)
    assert torch.allclose(multiplied(E, 1.2), E.mean(0) + 1.2 * X)
    assert torch.allclose(rtpp(E, F, 0.3), E.mean(0) + 0.7 * X + 0.3 * Xf)
    relaxed = rtps(E, F, 0.3)
    assert torch.allclose(relaxed.std(0), 0.7 * E.std(0) + 0.3 * F.std(0))
    assert torch.allclose(relaxed - relaxed.mean(0), X * (relaxed.std(0) / E.std(0)))
    # Settings of experiments, and members elsewhere.
    alphas = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)[:, None, None]
    for function in (rtpp, rtps):
        many = function(E.mT.expand(3, 3, 5), F.mT.expand(3, 3, 5), alphas, dim=-1)
        assert torch.allclose(many[1].mT, function(E, F, 0.3), atol=1e-14)
        assert torch.equal(many[0].mT, E)
    assert torch.allclose(rtpp(E, F, 1.0), E.mean(0) + Xf)
    assert torch.allclose(rtps(E, F, 1.0).std(0), F.std(0))


def test_spread_that_is_zero_gives_neither_nan_nor_a_gradient_of_it():
    E, F = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    E[:, 0] = 2.0
    F[:, 1] = 3.0
    E, F = E.requires_grad_(), F.requires_grad_()
    out = rtps(E, F, 0.5)
    assert torch.equal(out[:, 0], E[:, 0]) and torch.allclose(out[:, 1].std(), 0.5 * E[:, 1].std())
    gradients = torch.autograd.grad(out.pow(2).sum(), (E, F))
    assert all(g.isfinite().all() for g in gradients)
    E2, F2 = (torch.randn(4, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda E, F: rtps(E, F, 0.4), (E2, F2))


def test_relaxation_to_prior_perturbations_is_that_of_the_filter():
    wanted = ETKF(rtpp=0.4).analysis(forecast(), observations())
    got = Inflated(ETKF(), after=[RTPP(0.4)]).analysis(forecast(), observations())
    assert torch.allclose(got.data, wanted.data, atol=1e-12)
    for make in (ETKF, DEnKF, EnKF):
        wanted = make(inflation=1.1).analysis(forecast(), observations())
        got = Inflated(make(), before=[Multiplicative(1.1)]).analysis(forecast(), observations())
        assert torch.allclose(got.data, wanted.data, atol=1e-12)


def test_it_composes_in_order_and_leaves_an_unobserved_forecast_alone():
    start, obs = forecast(), observations()
    method = Inflated(ETKF(), before=[Multiplicative(1.1)], after=[RTPS(0.3), Multiplicative(1.05)])
    step = ETKF().analysis(Multiplicative(1.1).inflate(start, start), obs)
    step = Multiplicative(1.05).inflate(RTPS(0.3).inflate(step, start), start)
    assert torch.equal(method.analysis(start, obs).data, step.data)
    assert method.analysis(start, obs.select(np.zeros(12, bool))) is start
    nested = Inflated(Inflated(ETKF(), after=[RTPS(0.3)]), after=[Multiplicative(1.05)])
    plain = Inflated(ETKF(), after=[RTPS(0.3), Multiplicative(1.05)])
    assert torch.equal(nested.analysis(start, obs).data, plain.analysis(start, obs).data)
    assert Multiplicative(1.0).inflate(start, start) is start


def test_additive_noise_has_the_given_covariance():
    static = random_state(LAYOUT, tuple(range(5)), 8).to(torch.float64)
    members = tuple(range(3000))
    start = random_state(LAYOUT, members).to(torch.float64)
    start = start.replace(data=torch.zeros_like(start.data))
    noise = Additive(static, 0.5, Noise(2)).inflate(start, start).data[:, LAYOUT.mask][:, ::37]
    wanted = 0.25 * torch.cov(static.data[:, LAYOUT.mask][:, ::37].T)
    assert (torch.cov(noise.T) - wanted).abs().max() < 0.12 * wanted.abs().max()
    again = Additive(static, 0.5, Noise(2)).inflate(start, start).data[:, LAYOUT.mask][:, ::37]
    later = Additive(static, 0.5, Noise(2)).inflate(start.replace(time=START.replace(day=3)), start)
    assert torch.equal(again, noise) and not torch.equal(later.data, start.data + noise[0, 0])
    assert not torch.allclose(later.data[:, LAYOUT.mask][:, ::37], noise)


# --- adaptive ------------------------------------------------------------------------------------


def test_adaptive_inflation_finds_the_missing_variance():
    g = torch.Generator().manual_seed(0)
    columns, p, n = 30, 25, 20
    delta = torch.ones(columns, dtype=torch.float64)
    truth = torch.linspace(1.0, 2.5, columns, dtype=torch.float64)
    rho, history = torch.ones(columns, p, dtype=torch.float64), []
    for _ in range(600):
        h = torch.randn(columns, p, n, dtype=torch.float64, generator=g).var(-1)
        d = torch.randn(columns, p, dtype=torch.float64, generator=g) * (1 + truth[:, None]).sqrt()
        delta = adapted(delta, h, d, rho, variance=0.02, least=0.5)
        history.append(delta)
    assert (torch.stack(history[300:]).mean(0) - truth).abs().max() < 0.12
    # Where nothing is seen it waits; outliers are bounded; a batch is a loop.
    assert torch.equal(adapted(delta, h, d, 0 * rho), delta)
    assert adapted(delta, h, 1e4 * d, rho).max() == 4.0 and adapted(delta, h, 0 * d, rho).min() == 1.0
    assert torch.allclose(adapted(delta[3], h[3], d[3], rho[3]), adapted(delta, h, d, rho)[3], rtol=1e-14)


def test_adaptive_inflation_against_the_formula():
    d, rho = torch.tensor([2.0, 3.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    h = np.array([1.0, 3.0])
    estimate = (4 + 0.5 * 9 - 1.5) / (h[0] + 0.5 * h[1])
    error = 2 / 1.5 * ((1.2 * 2.5 + 1.5) / 2.5) ** 2
    wanted = (error * 1.2 + 0.01 * estimate) / (error + 0.01)
    got = adapted(torch.tensor(1.2, dtype=torch.float64), torch.from_numpy(h), d, rho, variance=0.01)
    assert abs(got.item() - wanted) < 1e-14


def wide(delta, forecast, obs):
    """One Δ for all: Δ over the whole domain from every observation."""
    seen = operator_for(LAYOUT, obs).apply(forecast)
    h, error = seen.var(0) / torch.tensor(obs.error) ** 2, torch.tensor(obs.error)
    d = (torch.tensor(obs.value) - seen.mean(0)) / error
    return adapted(delta, h, d, torch.ones_like(d), variance=0.1)


def test_adaptive_inflation_of_states():
    start, obs = forecast(), observations().replace(value=3 * observations().value)
    method = Adaptive(ETKF(), None, variance=0.1)
    delta = method.start(LAYOUT)
    assert torch.equal(delta, torch.ones(8, 12, dtype=torch.float64))
    analysis, learned = method.step(start, obs, delta)
    assert torch.allclose(analysis.data, ETKF().analysis(start, obs).data, atol=1e-12)
    assert torch.allclose(learned, wide(delta, start, obs), atol=1e-12) and (learned > 1.05).all()
    again, more = method.step(start, obs, learned)
    wanted = ETKF(learned[0, 0].item() ** 0.5).analysis(start, obs)
    assert torch.allclose(again.data, wanted.data, atol=1e-12) and (more > learned).all()
    assert torch.equal(again.data[:, ~LAYOUT.mask], start.data[:, ~LAYOUT.mask])
    local = Adaptive(ETKF(), 1e6, variance=0.1).adapt(start, obs, delta)
    seen = operator_for(LAYOUT, obs).apply(start)
    error, value = torch.tensor(obs.error), torch.tensor(obs.value)
    for j, i in [(4, 3), (3, 8), (6, 0), (0, 5)]:
        lat, lon = LAYOUT.grid["lat"].values[j], LAYOUT.grid["lon"].values[i]
        rho = gaspari_cohn(torch.from_numpy(great_circle(lat, lon, obs.lat, obs.lon)), half_width=1e6)
        d = (value - seen.mean(0)) / error
        wanted = adapted(delta[j, i], seen.var(0) / error**2, d, rho, variance=0.1)
        assert torch.allclose(local[j, i], wanted, atol=1e-12)
    assert (local == 1).any() and local.max() > 1.02
    assert torch.equal(Adaptive(ETKF(), 1e6, variance=0.1, block=5).adapt(start, obs, delta), local)
    nobody = obs.select(np.zeros(12, bool))
    same, kept = method.step(start, nobody, learned)
    assert same is start and kept is learned
    with pytest.raises(LayoutError, match=r"wanted delta \(y, x\) = \(8, 12\), got \(3,\)"):
        method.step(start, obs, torch.ones(3))
    for wrong in ({"variance": 0.0}, {"least": 2.0, "most": 1.0}):
        with pytest.raises(ValueError, match="Adaptive: wanted variance > 0"):
            Adaptive(ETKF(), None, **wrong)


def test_adaptive_inflation_keeps_lorenz_96_on_track_and_restarts_to_the_same_bits():
    model, noise = Lorenz96(), Noise(3)
    truth = State(torch.zeros(1, *model.layout.shape, dtype=torch.float64), START, model.layout, (0,))
    truth.data[..., 0] = 1.0
    for _ in range(300):
        truth = model.step(truth, None, noise)
    state = truth.replace(members=tuple(range(20)), data=truth.data + noise.normal(range(20), None, (1, 1, 40)))

    def run(truth, state, delta, cycles):
        errors = []
        for _ in range(cycles):
            truth, state = model.step(truth, None, noise), model.step(state, None, noise)
            drawn = noise.stream("observed").normal((0,), truth.time, (40,), dtype=torch.float64)
            value = (truth.data.ravel() + drawn[0]).numpy()
            table = {"variable": "zos", "lat": 0.0, "lon": model.layout.grid["lon"].values}
            obs = Observations.from_table(truth.time, table | {"value": value, "error": 1.0})
            state, delta = method.step(state, obs, delta)
            errors.append((state.data.mean(0) - truth.data[0]).square().mean().sqrt().item())
        return truth, state, delta, errors

    method = Adaptive(ETKF(rotate=True), None)
    *_, state_end, delta_end, errors = run(truth, state, method.start(model.layout), 220)
    middle = run(truth, state, method.start(model.layout), 120)
    *_, state_again, delta_again, later = run(*middle[:3], 100)
    assert torch.equal(state_again.data, state_end.data) and torch.equal(delta_again, delta_end)
    assert errors[120:] == later
    assert 0.15 < np.mean(errors[110:]) < 0.27 and 1.0 < delta_end.mean() < 1.4, (np.mean(errors[110:]), delta_end)


# --- messages ------------------------------------------------------------------------------------


def test_messages():
    static, start = forecast(), forecast()
    for make, message in (
        (lambda: Multiplicative(0.0), "Multiplicative: wanted factor > 0, got 0.0"),
        (lambda: RTPP(1.2), r"RTPP: wanted alpha in \[0, 1\], got 1.2"),
        (lambda: RTPS(-0.1), r"RTPS: wanted alpha in \[0, 1\], got -0.1"),
        (lambda: Additive(static.sel([4])), "at least two static states, got scale=1.0 and 1"),
        (lambda: Inflated(ETKF(), before=[RTPS(0.5)]), "give RTPP and RTPS as `after`"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(LayoutError, match=r"wanted a forecast of members \(4, 0\), got"):
        RTPP(0.5).inflate(start.sel([4, 0]), start)
    with pytest.raises(LayoutError, match="no variable"):
        Multiplicative(1.1, variables=("so",)).inflate(start, start)
