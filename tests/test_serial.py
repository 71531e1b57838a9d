"""The serial filter: colours, coloured against one by one, localisation on arrays and on the sphere."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small import START, random_observations, random_state, small_layout

from polynya.da import ETKF, EnSRF, Observations, ensrf, gaspari_cohn, great_circle, operator_for
from polynya.da.filters import in_order
from polynya.da.serial import Reach, coloured, colours_of
from polynya.emulators import LayoutError

torch.set_num_threads(1)
LAYOUT = small_layout()
WIDE, NARROW = 1.5e6, 4e5  # cells are 550 km by 3300 km


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ring(n=60, p=25, half_width=4.0, members=7, *batch):
    """A state on a ring, observations between its points, tapers of distance."""
    places = torch.from_numpy(np.random.default_rng(2).uniform(0, n, p))

    def taper(a, b):
        apart = (a[:, None] - b).abs()
        return gaspari_cohn(torch.minimum(apart, n - apart), half_width=half_width)

    points = torch.arange(n, dtype=torch.float64)
    E = normal(*batch, n, members)
    left, part = places.long(), places.frac().unsqueeze(-1)
    seen = E[..., left, :] * (1 - part) + E[..., (left + 1) % n, :] * part
    mean = seen.mean(-1, keepdim=True)
    return E, (seen - mean) / 0.6, normal(*batch, p, seed=4), taper(places, points), taper(places, places)


# --- colours -------------------------------------------------------------------------------------


def test_colours_partition_and_separate():
    rng = np.random.default_rng(0)
    near = rng.random((80, 80)) < 0.05
    near |= near.T
    groups = coloured([np.flatnonzero(row) for row in near])
    np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(80))
    for group in groups:
        assert not (near[np.ix_(group, group)] & ~np.eye(len(group), dtype=bool)).any()
    assert len(groups) <= 1 + near.sum(0).max()  # greedy colouring needs no more
    assert coloured([]) == []
    assert [g.tolist() for g in coloured([np.arange(3)] * 3)] == [[0], [1], [2]]
    assert [g.tolist() for g in coloured([np.array([i]) for i in range(3)])] == [[0, 1, 2]]


def test_observations_that_share_a_point_or_see_each_other_are_apart():
    _, _, _, rho, seen = ring()
    groups = colours_of(rho, seen)
    assert 1 < len(groups) < 25
    for group in groups:
        reach = torch.cat([rho, seen], -1)[group] > 0
        assert (reach.sum(0) <= 1).all()


# --- on arrays -----------------------------------------------------------------------------------


def one_by_one(E, Y, d, rho, seen, order):
    """Whitaker and Hamill (2002), observation by observation, in NumPy."""
    E, Y, d, rho, seen = (a.numpy().copy() for a in (E, Y, d, rho, seen))
    n = E.shape[1]
    mean = E.mean(1)
    X = E - mean[:, None]
    for j in order:
        y, s, innovation = Y[j].copy(), Y[j].var(ddof=1), d[j]
        K, k = rho[j] * (X @ y) / (n - 1) / (1 + s), seen[j] * (Y @ y) / (n - 1) / (1 + s)
        reduced = 1 / (1 + np.sqrt(1 / (1 + s)))
        mean, d = mean + K * innovation, d - k * innovation
        X, Y = X - reduced * np.outer(K, y), Y - reduced * np.outer(k, y)
    return torch.from_numpy(mean[:, None] + X)


def test_coloured_is_one_by_one():
    E, Y, d, rho, seen = ring()
    order = torch.cat(colours_of(rho, seen)).tolist()
    got = ensrf(E, Y, d, rho, seen)
    assert (got - one_by_one(E, Y, d, rho, seen, order)).abs().max() < 1e-13
    singly = ensrf(E, Y, d, rho, seen, colours=[torch.tensor([j]) for j in order])
    assert (got - singly).abs().max() < 1e-14


def test_experiments_are_a_loop_and_may_have_their_own_localisation():
    E, Y, d, rho, seen = ring(60, 25, 4.0, 7, 3)
    whole = ensrf(E, Y, d, rho, seen, inflation=1.1)
    narrow = [t * (t > 0.2) for t in (rho, seen)]
    own = ensrf(E, Y, d, *(torch.stack([a, b, a]) for a, b in zip((rho, seen), narrow, strict=True)))
    for b in range(3):
        assert (ensrf(E[b], Y[b], d[b], rho, seen, inflation=1.1) - whole[b]).abs().max() < 1e-12
        tapers = narrow if b == 1 else (rho, seen)
        groups = colours_of(rho, seen)
        assert (ensrf(E[b], Y[b], d[b], *tapers, colours=groups) - own[b]).abs().max() < 1e-12


def test_what_is_out_of_reach_keeps_its_members():
    E, Y, d, rho, seen = ring()
    rho, seen = rho[:3], seen[:3, :3]
    got = ensrf(E, Y[:3], d[:3], rho, seen)
    far = (rho == 0).all(0)
    assert far.any() and torch.allclose(got[far], E[far], rtol=1e-15, atol=1e-15)


def test_gradients():
    E, Y, d, rho, seen = ring(12, 4, 2.0, 4)
    groups = colours_of(rho, seen)
    arguments = [a.clone().requires_grad_() for a in (E, Y, d, rho, seen)]
    assert torch.autograd.gradcheck(lambda *a: ensrf(*a, inflation=1.1, colours=groups), arguments)


# --- on states -----------------------------------------------------------------------------------


def forecast(n=8, seed=0):
    return random_state(LAYOUT, tuple(range(n)), seed).to(torch.float64)


observations = partial(random_observations, least=0.3)


def tapers(obs, half_width, vertical):
    """Dense tapers of great-circle distance (observation, channel * cell) and (observation, observation)."""
    o, lat, lon = obs, LAYOUT.grid["lat"].values, LAYOUT.grid["lon"].values
    lat, lon = (a.ravel() for a in np.meshgrid(lat, lon, indexing="ij"))

    def across(a, b):
        return gaspari_cohn(torch.from_numpy(great_circle(o.lat[:, None], o.lon[:, None], a, b)), half_width=half_width)

    rho, seen = across(lat, lon)[:, None].expand(-1, 7, -1), across(o.lat, o.lon)
    if vertical is not None:
        surface = torch.from_numpy(o.variable == "zos")
        lev = torch.tensor([10.0, 50.0, 200.0] * 2)
        down = gaspari_cohn((torch.tensor(o.depth)[:, None] - lev).abs(), half_width=vertical)
        down = torch.where(surface[:, None], 1.0, torch.cat([down, torch.ones(len(o), 1)], -1))
        rho = rho * down[..., None]
        depth = torch.tensor(o.depth)
        both = gaspari_cohn((depth[:, None] - depth).abs(), half_width=vertical)
        seen = seen * torch.where(surface[:, None] | surface, 1.0, both)
    return rho.flatten(1), seen


@pytest.mark.parametrize("vertical", [None, 60.0])
@pytest.mark.parametrize("half_width", [WIDE, NARROW])
def test_the_sphere_against_dense_arrays(half_width, vertical):
    start, obs = forecast(), in_order(observations())
    got = EnSRF(half_width, vertical, inflation=1.05).analysis(start, obs)
    order = np.concatenate(Reach(LAYOUT, obs, torch.arange(7), half_width, vertical).colours())
    seen = operator_for(LAYOUT, obs).apply(start)
    error, value = torch.tensor(obs.error), torch.tensor(obs.value)
    Y, d = 1.05 * ((seen - seen.mean(0)) / error).T, (value - seen.mean(0)) / error
    E = start.data.flatten(1).T
    E = E.mean(1, keepdim=True) + 1.05 * (E - E.mean(1, keepdim=True))
    wanted = one_by_one(E, Y, d, *tapers(obs, half_width, vertical), order).T.view_as(start.data)
    assert torch.allclose(got.data[:, LAYOUT.mask], wanted[:, LAYOUT.mask], rtol=0, atol=1e-12)
    assert torch.equal(got.data[:, ~LAYOUT.mask], start.data[:, ~LAYOUT.mask])


def test_colours_on_the_sphere_are_two_supports_apart():
    obs = observations(60)
    groups = Reach(LAYOUT, obs, torch.arange(7), NARROW, None).colours()
    assert sorted(np.concatenate(groups)) == list(range(60)) and len(groups) < 30
    for group in groups:
        o = obs.select(group)
        apart = great_circle(o.lat[:, None], o.lon[:, None], o.lat, o.lon) + 1e9 * np.eye(len(o))
        assert apart.min() > 4 * NARROW


def test_one_observation_is_the_formula_of_schur_localisation():
    start = forecast()
    obs = Observations.from_table(
        START, {"variable": ["zos"], "lat": [-10.0], "lon": [60.0], "value": [1.0], "error": [0.5]}
    )
    got = EnSRF(WIDE).analysis(start, obs)
    hx = operator_for(LAYOUT, obs).apply(start)[:, 0]
    rho = tapers(obs, WIDE, None)[0].view(LAYOUT.shape)
    X = start.data - start.data.mean(0)
    covariance = (X * (hx - hx.mean())[:, None, None, None]).sum(0) / 7
    mean = start.data.mean(0) + rho * covariance / (hx.var() + 0.25) * (1.0 - hx.mean())
    assert torch.allclose(got.data.mean(0), mean, atol=1e-13)
    # The taper multiplies the covariance, not R⁻¹: where it is seen half, variance falls by more than half.
    k = rho * covariance / (hx.var() + 0.25)
    reduced = 1 / (1 + (0.25 / (hx.var() + 0.25)).sqrt())
    assert torch.allclose(got.data.var(0), X.var(0) - 2 * reduced * k * covariance + (reduced * k) ** 2 * hx.var())


def test_without_a_taper_it_is_the_etkf_in_mean_and_covariance():
    start, obs = forecast(), observations()
    for wide in (EnSRF(None, inflation=1.1), EnSRF(float("inf"), inflation=1.1), EnSRF(1e15, inflation=1.1)):
        ours, theirs = wide.analysis(start, obs).data.flatten(1), ETKF(1.1).analysis(start, obs).data.flatten(1)
        assert torch.allclose(ours.mean(0), theirs.mean(0), atol=1e-10)
        assert torch.allclose(torch.cov(ours.T), torch.cov(theirs.T), atol=1e-10)


@pytest.mark.parametrize("method", [EnSRF(WIDE), EnSRF(WIDE, 60.0), EnSRF(None)], ids=str)
def test_orders_blocks_bits_and_precision(method):
    start, obs = forecast(), observations()
    analysis = method.analysis(start, obs)
    shuffled = method.analysis(start, obs.select(np.random.default_rng(0).permutation(14)))
    assert torch.equal(shuffled.data, analysis.data)
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    assert torch.allclose(method.analysis(start.sel(order), obs).sel(range(8)).data, analysis.data, atol=1e-12)
    assert torch.allclose(replace(method, block=5).analysis(start, obs).data, analysis.data, rtol=0, atol=1e-13)
    single = method.analysis(start.to(torch.float32), obs)
    assert single.data.dtype == torch.float32 and torch.allclose(single.data.double(), analysis.data, atol=2e-5)
    poisoned = start.data.clone()
    poisoned[:, ~LAYOUT.mask] = torch.nan
    kept = poisoned.clone()
    clean = method.analysis(start.replace(data=poisoned), obs)
    assert torch.equal(clean.data[:, LAYOUT.mask], analysis.data[:, LAYOUT.mask])
    assert clean.data[:, ~LAYOUT.mask].isnan().all() and torch.equal(poisoned.nan_to_num(7), kept.nan_to_num(7))
    only = replace(method, variables=("zos",)).analysis(start, obs)
    assert torch.equal(only.data[:, :6], start.data[:, :6])
    assert torch.allclose(only["zos"], analysis["zos"], atol=1e-12)
    assert method.analysis(start, obs.select(np.zeros(14, bool))) is start


def test_what_no_observation_reaches_keeps_its_bits():
    start, obs = forecast(), observations(3)
    got, rho = EnSRF(NARROW).analysis(start, obs), tapers(obs, NARROW, None)[0].view(3, *LAYOUT.shape)
    far = (rho == 0).all(0)
    assert far.any() and torch.equal(got.data[:, far], start.data[:, far])
    assert (got.data != start.data).any()


@pytest.mark.parametrize("method", [EnSRF(WIDE, 60.0, inflation=1.1), EnSRF(None)], ids=["local", "global"])
def test_gradients_through_the_analysis(method):
    start, obs, weight = forecast(4), observations(6), normal(4, *LAYOUT.shape, seed=4)
    direction = forecast(4, seed=9).data

    def cost(data):
        return (method.analysis(start.replace(data=data), obs).data * weight).sum()

    x = start.data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(x), x)
    numerical = (cost(start.data + 1e-6 * direction) - cost(start.data - 1e-6 * direction)) / 2e-6
    assert torch.isclose((gradient * direction).sum(), numerical, rtol=1e-6)


def test_messages():
    for wrong in ({"half_width": 0.0}, {"block": 0}, {"inflation": -1.0}, {"vertical_half_width": -5.0}):
        with pytest.raises(ValueError, match="EnSRF: wanted"):
            EnSRF(**({"half_width": 1e5} | wrong))
    with pytest.raises(LayoutError, match="no variable"):
        EnSRF(WIDE, variables=("so",)).analysis(forecast(), observations())
