"""One contract for every analysis of a state, and what each one promises besides."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
from small import START, random_state, small_layout
from small import random_observations as observations
from toys import Lorenz96

from polynya.da import (
    ESTKF,
    ETKF,
    LETKF,
    OI,
    RTPP,
    Additive,
    Analysis,
    DEnKF,
    EnKF,
    EnKFN,
    EnOI,
    EnSRF,
    HybridGain,
    Inflated,
    Multiplicative,
    ObservationError,
    Observations,
    ParticleFilter,
    cycle,
    operator_for,
)
from polynya.da.filters import GlobalFilter
from polynya.emulators import GivenNoise, LayoutError, Noise, Persistence, State

torch.set_num_threads(1)
LAYOUT = small_layout()
LAND = ~LAYOUT.mask
WIDE = 1.5e6


def forecast(n=8, seed=0):
    return random_state(LAYOUT, tuple(range(n)), seed).to(torch.float64)


STATIC = forecast(12, 21)


ENSEMBLE = {
    "ETKF": ETKF(1.05, 0.2),
    "ETKF rotated": ETKF(rotate=True),
    "EnKF": EnKF(1.05, 0.2),
    "DEnKF": DEnKF(1.05, 0.2),
    "ESTKF": ESTKF(1.05, 0.2),
    "ESTKF Cholesky": ESTKF(root="cholesky"),
    "EnKF-N": EnKFN(),
    "EnKF-N Hessian": EnKFN(hessian=True, nullity=1, xN=2.0),
    "EnSRF": EnSRF(None),
    "EnSRF local": EnSRF(WIDE, inflation=1.05),
    "LETKF": LETKF(WIDE),
    "hybrid": HybridGain(ETKF(), EnOI(STATIC), 0.3),
    "hybrid local": HybridGain(LETKF(WIDE), EnOI(STATIC, 0.5, WIDE), 0.3, "forecast"),
    "particles": ParticleFilter(0.3),
    "inflated": Inflated(ETKF(rotate=True), before=[Multiplicative(1.1)], after=[RTPP(0.3)]),
}
ALL = ENSEMBLE | {
    "EnOI": EnOI(STATIC, 0.4),
    "EnOI local": EnOI(STATIC, 0.4, WIDE, vertical_half_width=100.0),
    "OI": OI(STATIC),
}
every = pytest.mark.parametrize("method", ALL.values(), ids=ALL)
ensembles = pytest.mark.parametrize("method", ENSEMBLE.values(), ids=ENSEMBLE)


# --- the contract --------------------------------------------------------------------------------


@every
def test_it_is_an_analysis_without_state(method):
    start, obs = forecast(), observations()
    kept = start.data.clone()
    assert isinstance(method, Analysis)
    analysis = method.analysis(start, obs)
    assert (analysis.members, analysis.time, analysis.layout) == (start.members, START, LAYOUT)
    assert torch.equal(start.data, kept) and not torch.equal(analysis.data, kept)
    assert torch.equal(method.analysis(start, obs).data, analysis.data)
    again = pickle.loads(pickle.dumps(method)).analysis(start, obs)
    assert torch.equal(again.data, analysis.data)
    with pytest.raises(FrozenInstanceError):
        method.block = 3
    assert len(repr(method)) < 400


@every
def test_nothing_observed_changes_nothing(method):
    start = forecast()
    assert method.analysis(start, observations().select(np.zeros(14, bool))) is start


@every
def test_land_keeps_its_bits_and_its_nan_to_itself(method):
    start = forecast()
    wanted = method.analysis(start, observations()).data
    litter = torch.where(LAND, torch.randn(start.data.shape, dtype=torch.float64), start.data)
    littered = method.analysis(start.replace(data=litter), observations()).data
    assert torch.equal(littered[:, LAND], litter[:, LAND])
    poison = torch.where(LAND, torch.nan, start.data)
    poisoned = method.analysis(start.replace(data=poison), observations()).data
    assert poisoned[:, LAND].isnan().all()
    for got in (littered, poisoned):
        assert torch.equal(got[:, ~LAND], wanted[:, ~LAND])


@every
def test_single_precision_stays_and_agrees(method):
    start = forecast()
    single = method.analysis(start.to(torch.float32), observations())
    assert single.data.dtype == torch.float32
    wanted = method.analysis(start.to(torch.float32).to(torch.float64), observations())
    assert (single.data - wanted.data).abs().max() < 2e-5 * wanted.data.abs().max()


@every
def test_orders_of_members_and_observations_do_not_matter(method):
    start, obs = forecast(), observations()
    wanted = method.analysis(start, obs).data
    shuffled = method.analysis(start, obs.select(np.random.default_rng(0).permutation(14)))
    assert torch.allclose(shuffled.data, wanted, rtol=0, atol=1e-11)
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    other = method.analysis(start.sel(order), obs)
    assert other.members == tuple(order)
    if method is ALL["ESTKF Cholesky"]:  # whose members depend on their order, and whose covariance does not
        other, wanted = (torch.cov(a.flatten(1).T) for a in (other.data, wanted))
    else:
        other = other.sel(range(8)).data
    assert torch.allclose(other, wanted, rtol=0, atol=1e-11)


@every
def test_units_do_not_matter(method):
    if isinstance(method, HybridGain):
        static = replace(method.static, static=STATIC.replace(data=1000 * STATIC.data))
        scaled = replace(method, static=static)
    elif isinstance(method, EnOI):
        scaled = replace(method, static=STATIC.replace(data=1000 * STATIC.data))
    else:
        scaled = method
    start, obs = forecast(), observations()
    got = scaled.analysis(
        start.replace(data=1000 * start.data), obs.replace(value=1000 * obs.value, error=1000 * obs.error)
    )
    wanted = 1000 * method.analysis(start, obs).data
    assert (got.data - wanted).abs().max() < 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("particles", "OI", "inflated", "hybrid", "hybrid local")])
def test_only_the_variables_asked_for(name):
    start, obs, method = forecast(), observations(), ALL[name]
    only = replace(method, variables=("zos", "uo")).analysis(start, obs)
    assert torch.equal(only.data[:, :3], start.data[:, :3])
    assert torch.allclose(only.data[:, 3:], method.analysis(start, obs).data[:, 3:], atol=1e-12)
    with pytest.raises(LayoutError, match="no variable"):
        replace(method, variables=("so",)).analysis(start, obs)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("particles", "inflated", "hybrid", "hybrid local")])
def test_blocks_do_not_matter(name):
    start, obs, method = forecast(), observations(), ALL[name]
    wanted = method.analysis(start, obs).data
    assert torch.allclose(replace(method, block=7).analysis(start, obs).data, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in ALL if n != "particles"])
def test_gradients_through_the_analysis(name):
    method, start, obs = ALL[name], forecast(5), observations(6)
    weight, direction = forecast(5, 4).data, forecast(5, 9).data

    def cost(data):
        return (method.analysis(start.replace(data=data), obs).data * weight).sum()

    x = start.data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(x), x)
    step = 1e-5
    numerical = (cost(start.data + step * direction) - cost(start.data - step * direction)) / (2 * step)
    assert torch.isclose((gradient * direction).sum(), numerical, rtol=1e-6, atol=1e-8)


@ensembles
def test_ensembles_that_cannot_be_analysed(method):
    start, obs = forecast(), observations()
    with pytest.raises(ObservationError, match=r"at least two members, got \(0,\)"):
        method.analysis(start.sel([0]), obs)
    same = start.replace(data=start.data[:1].expand(8, -1, -1, -1).clone())
    with pytest.raises(ObservationError, match="wanted an ensemble with spread, all 8 members are the same"):
        method.analysis(same, obs)
    same.data[:, LAND] = torch.nan
    with pytest.raises(ObservationError, match="all 8 members are the same at 2000-01-01"):
        method.analysis(same, obs)
    failed = start.data.clone()
    failed[3] = torch.nan
    with pytest.raises(ObservationError, match=r"finite where it is observed, members \[.*3.*\] are not"):
        method.analysis(start.replace(data=failed), obs)
    with pytest.raises(ObservationError, match=r"2000-01-01 .*got 2000-01-02"):
        method.analysis(start, observations(time=START.replace(day=2)))


def test_no_spread_where_it_is_observed_is_no_error_and_no_change():
    start, obs = forecast(), observations().select(observations().variable == "zos")
    start.data[:, 6] = 0.0  # as of ice where there is none
    for name in ("ETKF", "DEnKF", "EnSRF", "LETKF", "EnKF-N"):
        method = replace(ALL[name], inflation=1.0)
        got = method.analysis(start, obs).data
        assert got.isfinite().all() and torch.allclose(got.mean(0), start.data.mean(0), atol=1e-12), name


# --- random numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [EnKF(), ETKF(rotate=True), ParticleFilter(0.3)], ids=["EnKF", "ETKF", "PF"])
def test_random_numbers_belong_to_seed_and_time(method):
    start, obs = forecast(), observations()
    analysis = method.analysis(start, obs).data
    other = replace(method, noise=Noise(1)).analysis(start, obs).data
    later, day = START.replace(day=9), observations(time=START.replace(day=9))
    then = method.analysis(start.replace(time=later), day).data
    for data in (other, then):
        assert not torch.allclose(data, analysis, atol=1e-3)
    assert torch.equal(replace(method, noise=Noise(0)).analysis(start, obs).data, analysis)


def test_given_perturbations_are_used():
    start, obs = forecast(), observations()
    none = GivenNoise({"perturbed observations": torch.zeros(8, 14, dtype=torch.float64)}, start.members)
    got = EnKF(noise=none).analysis(start, obs).data.flatten(1)
    seen = operator_for(LAYOUT, obs).apply(start) / torch.tensor(obs.error)
    K = torch.cov(torch.cat([start.data.flatten(1), seen], 1).T)
    n = start.data[0].numel()
    K = K[:n, n:] @ torch.linalg.inv(K[n:, n:] + torch.eye(14, dtype=K.dtype))
    y = torch.tensor(obs.value / obs.error)
    assert torch.allclose(got, start.data.flatten(1) + (y - seen) @ K.T, atol=1e-10)


def test_a_rotation_changes_members_but_not_moments():
    plain, turned = (ETKF(rotate=r).analysis(forecast(), observations()).data.flatten(1) for r in (False, True))
    assert torch.allclose(plain.mean(0), turned.mean(0), atol=1e-12)
    assert torch.allclose(torch.cov(plain.T), torch.cov(turned.T), atol=1e-12)
    assert (plain - turned).abs().max() > 0.1
    relaxed = ETKF(rotate=True, rtpp=1.0).analysis(forecast(), observations()).data
    start = forecast().data
    assert torch.allclose(relaxed - relaxed.mean(0), start - start.mean(0), atol=1e-12)


def test_settings_are_checked():
    for make in (ETKF, EnKF, DEnKF, ESTKF, EnKFN):
        for wrong in ({"rtpp": 1.5}, {"inflation": 0.0}, {"block": 0}):
            with pytest.raises(ValueError, match=f"^{make.__name__}: wanted"):
                make(**wrong)
    for make, message in (
        (lambda: ESTKF(root="lower"), 'wanted root "symmetric" or "cholesky", got \'lower\''),
        (lambda: EnKFN(xN=0.0), "wanted xN > 0 and nullity >= 0, got xN=0.0"),
        (lambda: EnOI(STATIC, scale=0.0), "EnOI: wanted scale > 0"),
        (lambda: EnOI(STATIC.sel([3])), "EnOI: wanted a static ensemble of at least two states, got 1"),
        (lambda: EnOI(STATIC, half_width=-1.0), "wanted half_width > 0"),
        (lambda: HybridGain(ETKF(), EnOI(STATIC), 1.5), "wanted 0 <= alpha <= 1"),
        (lambda: HybridGain(ETKF(), EnOI(STATIC), 0.5, "guess"), "got alpha=0.5, background='guess'"),
        (lambda: ParticleFilter(-1.0), "wanted bandwidth >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(NotImplementedError, match="GlobalFilter has no weights; use ETKF"):
        GlobalFilter().analysis(forecast(), observations())


# --- particles -----------------------------------------------------------------------------------


def test_particles_are_copies_of_the_likely_members():
    start, obs = forecast(), observations(3)
    got = ParticleFilter().analysis(start, obs).data
    seen = operator_for(LAYOUT, obs).apply(start)
    fit = ((torch.tensor(obs.value) - seen) / torch.tensor(obs.error)).square().sum(1)
    weights = torch.softmax(-fit / 2, 0)
    copies = torch.tensor([sum(torch.equal(a, b) for a in got) for b in start.data])
    assert copies.sum() == 8 and ((copies - 8 * weights).abs() < 1).all() and copies.max() > 1
    jittered = ParticleFilter(0.2).analysis(start, obs).data
    assert 0.05 < (jittered - got)[:, ~LAND].std() < 0.4


def test_particles_and_the_kalman_filter_agree_on_a_normal_prior():
    members = tuple(range(3000))
    start = random_state(LAYOUT, members).to(torch.float64)
    obs = Observations.from_table(
        START, {"variable": ["zos"], "lat": [-10.0], "lon": [60.0], "value": [1.0], "error": [0.7]}
    )
    here = (slice(None), 6, 4, 2)
    exact = start.data[here].var() * 0.49 / (start.data[here].var() + 0.49)
    mean = exact * (1.0 / 0.49 + start.data[here].mean() / start.data[here].var())
    got = ParticleFilter().analysis(start, obs).data[here]
    assert abs(got.mean() - mean) < 0.06 and abs(got.var() - exact) < 0.05


# --- cycles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [EnKF(noise=Noise(4)), ENSEMBLE["inflated"], ParticleFilter(0.3), Inflated(ETKF(), after=[Additive(STATIC, 0.1)])],
    ids=["EnKF", "rotated", "particles", "additive"],
)
def test_a_cycle_that_is_started_again_goes_on_in_the_same_bits(method):
    model = Persistence(LAYOUT, timedelta(days=5))
    times = [START + k * timedelta(days=5) for k in range(1, 7)]
    table = [observations(seed=k, time=t) for k, t in enumerate(times)]
    whole = list(cycle(model, forecast(), None, table, method))
    again = list(cycle(model, whole[3], None, table[3:], method))
    for a, b in zip(whole[3:], again, strict=True):
        assert a.time == b.time and torch.equal(a.data, b.data)
    assert not torch.equal(whole[3].data, whole[4].data)


# --- Lorenz-96 -----------------------------------------------------------------------------------


def lorenz_scores(method, n, cycles=320, burn_in=150):
    """Mean analysis RMSE and spread; 40 sites, all observed with R = I every 0.05 (Sakov and Oke 2008)."""
    model, noise = Lorenz96(), Noise(5)
    time = cftime.DatetimeNoLeap(2000, 1, 1)

    def draws(stream, members, date):
        return noise.stream(stream).normal(members, date, model.layout.shape, dtype=torch.float64)

    start = torch.zeros(1, *model.layout.shape, dtype=torch.float64)
    start[..., 0] = 1.0
    truth = State(start, time, model.layout, (0,))
    for _ in range(400):  # onto the attractor
        truth = model.step(truth, None, noise)
    truth = truth.replace(time=time)
    members = tuple(range(n))
    ensemble = State(truth.data + 0.5 * draws("start", members, time), time, model.layout, members)
    truths, table = {}, []
    lon = model.layout.grid["lon"].values
    for _ in range(cycles):
        truth = model.step(truth, None, noise)
        truths[truth.time] = truth.data[0]
        value = (truth.data + draws("observed", (0,), truth.time)).ravel().numpy()
        columns = {"variable": "zos", "lat": 0.0, "lon": lon, "value": value, "error": 1.0}
        table.append(Observations.from_table(truth.time, columns))
    states = list(cycle(model, ensemble, None, table, method))[burn_in:]
    assert states[-1].time == time + cycles * timedelta(days=1)
    rmse = [(s.data.mean(0) - truths[s.time]).square().mean().sqrt().item() for s in states]
    spread = [s.data.var(0).mean().sqrt().item() for s in states]
    return np.mean(rmse), np.mean(spread)


SCORES = {
    "ETKF": (Inflated(ETKF(rotate=True), after=[Multiplicative(1.02)]), 24, 0.16, 0.24),
    "DEnKF": (Inflated(DEnKF(), after=[Multiplicative(1.02)]), 40, 0.15, 0.24),
    "EnKF": (Inflated(EnKF(), after=[Multiplicative(1.06)]), 40, 0.17, 0.28),
    "EnSRF": (Inflated(EnSRF(None), after=[Multiplicative(1.02)]), 24, 0.15, 0.24),
    "EnSRF local": (Inflated(EnSRF(3e6), after=[Multiplicative(1.04)]), 12, 0.16, 0.32),  # cells are 1000 km
    "EnKF-N": (EnKFN(), 24, 0.15, 0.26),
}


@pytest.mark.parametrize("name", SCORES)
def test_lorenz_96(name):
    method, n, low, high = SCORES[name]
    rmse, spread = lorenz_scores(method, n, *((140, 70) if "local" in name else ()))
    assert low < rmse < high and 0.8 < spread / rmse < 1.5, (rmse, spread)
