"""Ensemble transform filters: the exact Kalman update, exact identities, brute force, published numbers."""

from __future__ import annotations

from dataclasses import replace

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from polynya.da import ETKF, LETKF, ObservationError, Observations, gaspari_cohn, great_circle, operator_for, transform
from polynya.emulators import Field, Layout, LayoutError, State

torch.set_num_threads(1)
DAY = cftime.DatetimeNoLeap(2000, 1, 6)
LEV = np.array([25.0, 90.0, 200.0])
NY, NX = 6, 14
LAT, LON = np.linspace(-54.0, -49.0, NY), 1.0 + 2.0 * np.arange(NX)


def make_layout(slots=(0,)):
    wet = np.ones((3, NY, NX), bool)
    wet[:, 2, 5:7] = False
    wet[1:, 0] = False
    coords = {
        "lat": ("lat", LAT),
        "lon": ("lon", LON),
        "lev": ("lev", LEV),
        "dz": ("lev", np.array([50.0, 80.0, 140.0])),
        "areacello": (("lat", "lon"), np.ones((NY, NX))),
        "wetmask": (("lev", "lat", "lon"), wet),
        "wetmask_corner": (("lev", "lat", "lon"), wet & np.roll(wet, 1, 2)),
        "lat_corner": ("lat", LAT + 0.5),
        "lon_corner": ("lon", LON + 1.0),
    }
    grid = xr.Dataset(coords=coords, attrs={"zonal_period": 28.0})
    return Layout((Field("thetao", 3), Field("uo", 3, "corner"), Field("zos")), grid, slots)


LAYOUT = make_layout()


def ensemble(n=8, layout=LAYOUT, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, layout.shape[0], 1, 1, generator=g, dtype=dtype)
    patterns = torch.randn(n, 4, 1, *layout.shape[1:], generator=g, dtype=dtype)
    data = (patterns * mixing).sum(1) + 0.5 * torch.randn(n, *layout.shape, generator=g, dtype=dtype)
    return State(data * layout.mask, DAY, layout, tuple(range(n)))


def some_observations(p=15, seed=1, error=0.7):
    rng = np.random.default_rng(seed)
    columns = {
        "variable": rng.choice(["thetao", "zos"], p),
        "lat": rng.choice([-53.2, -50.1, -49.3], p) + rng.uniform(-0.3, 0.3, p),
        "lon": rng.uniform(0, 28, p),
        "depth": rng.choice([0.0, 40.0, 150.0], p),
        "value": rng.normal(size=p),
        "error": error * rng.uniform(0.5, 1.5, p),
    }
    columns["depth"] *= columns["variable"] == "thetao"
    return Observations.from_table(DAY, columns)


def one_observation(**changes):
    table = {"variable": "thetao", "lat": -50.0, "lon": 1.0, "depth": 25.0, "value": 2.0, "error": 0.5} | changes
    return Observations.from_table(DAY, {k: np.atleast_1d(v) for k, v in table.items()})


def matrix_of(observations, layout=LAYOUT):
    """H (observation, state) from its action on the unit vectors."""
    size = int(np.prod(layout.shape))
    unit = State(torch.eye(size, dtype=torch.float64).view(size, *layout.shape), DAY, layout, tuple(range(size)))
    return operator_for(layout, observations).apply(unit).T.numpy()


def same(a, b, tolerance=1e-10):
    scale = b.data.abs().max()
    assert (a.data - b.data).abs().max() <= tolerance * scale


EVERYWHERE = [
    pytest.param(ETKF, id="ETKF"),
    pytest.param(lambda **k: LETKF(None, **k), id="LETKF without taper"),
    pytest.param(lambda **k: LETKF(1e15, **k), id="LETKF with endless taper"),
]


# --- the exact update ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", EVERYWHERE)
@pytest.mark.parametrize("inflation", [1.0, 1.3])
def test_without_localisation_it_is_the_kalman_filter(make, inflation):
    forecast, obs = ensemble(), some_observations()
    analysis = make(inflation=inflation).analysis(forecast, obs)
    # Kalman (1960) with the sample covariance, in NumPy. Dry points have no variance, so stay.
    x, H, R = forecast.data.flatten(1).numpy().T, matrix_of(obs), np.diag(obs.error**2)
    mean, P = x.mean(1), inflation**2 * np.cov(x)
    K = P @ H.T @ np.linalg.inv(H @ P @ H.T + R)
    got = analysis.data.flatten(1).numpy().T
    np.testing.assert_allclose(got.mean(1), mean + K @ (obs.value - H @ mean), atol=1e-10)
    np.testing.assert_allclose(np.cov(got), P - K @ H @ P, atol=1e-10)
    if inflation == 1.3:
        same(analysis, ETKF(inflation=1.3).analysis(forecast, obs))


def test_transform_conserves_the_mean_and_is_symmetric():
    g = torch.Generator().manual_seed(2)
    Y = torch.randn(5, 9, 6, generator=g, dtype=torch.float64)
    Y = Y - Y.mean(-1, keepdim=True)
    d, rho = torch.randn(5, 9, generator=g, dtype=torch.float64), torch.rand(5, 9, generator=g, dtype=torch.float64)
    T, w = transform(Y, d, rho, inflation=1.1, rtpp=0.3)
    assert torch.allclose(T.sum(-1), torch.full((5, 6), 0.7 * 1.1 + 0.3, dtype=T.dtype), atol=1e-12)
    assert torch.allclose(w.sum(-1), torch.zeros(5, dtype=T.dtype), atol=1e-12)
    assert torch.allclose(T, T.mT, atol=1e-12) and (torch.linalg.eigvalsh(T) > 0).all()
    for b in range(5):  # a batch is a loop
        t, v = transform(Y[b], d[b], rho[b], inflation=1.1, rtpp=0.3)
        assert torch.allclose(t, T[b], atol=1e-13) and torch.allclose(v, w[b], atol=1e-13)
    eye = torch.eye(6, dtype=T.dtype)
    A = eye + 1.21 * (Y[0].mT * rho[0]) @ Y[0] / 5
    root = (T[0] - 0.3 * eye) / 0.77
    assert torch.allclose(root @ root @ A, eye, atol=1e-12)


def test_relaxation_to_prior_perturbations():
    forecast, obs = ensemble(), some_observations()
    full, none = LETKF(3e5).analysis(forecast, obs), LETKF(3e5, rtpp=1.0).analysis(forecast, obs)
    relaxed = LETKF(3e5, rtpp=0.4).analysis(forecast, obs)
    before, after = (s.data - s.data.mean(0) for s in (forecast, full))
    wanted = full.data.mean(0) + 0.6 * after + 0.4 * before
    same(relaxed, full.replace(data=wanted))
    same(none, full.replace(data=full.data.mean(0) + before))


# --- localisation --------------------------------------------------------------------------------


def test_one_observation_against_the_formula():
    forecast, obs, c = ensemble(12), one_observation(lon=27.5), 2.5e5
    analysis = LETKF(c).analysis(forecast, obs)
    hx = operator_for(LAYOUT, obs).apply(forecast)[:, 0]
    lat, lon = np.meshgrid(LAT, LON, indexing="ij")
    rho = gaspari_cohn(torch.from_numpy(great_circle(lat, lon, -50.0, 27.5, 28.0)), half_width=c)
    X, hX = forecast.data - forecast.data.mean(0), hx - hx.mean()
    covariance = (X * hX[:, None, None, None]).sum(0) / 11
    # R/ρ in place of R, once: a taper on both factors would give R/ρ².
    increment = rho * covariance / (rho * hX.var() + 0.5**2) * (2.0 - hx.mean())
    assert torch.allclose(analysis.data.mean(0) - forecast.data.mean(0), increment, atol=1e-12)
    variance = (X**2).sum(0) / 11 - rho * covariance**2 / (rho * hX.var() + 0.5**2)
    assert torch.allclose(analysis.data.var(0), variance, atol=1e-12)
    assert (rho[:, 0] > 0.1).any() and (rho[:, -1] > 0.1).any()  # it was seen across the seam


def test_vertical_taper_against_the_formula():
    forecast, c, v = ensemble(12), 2.5e5, 60.0
    for name, depth in (("thetao", 25.0), ("zos", 0.0)):
        obs = one_observation(variable=name, depth=depth)
        analysis = LETKF(c, vertical_half_width=v).analysis(forecast, obs)
        hx = operator_for(LAYOUT, obs).apply(forecast)[:, 0]
        lat, lon = np.meshgrid(LAT, LON, indexing="ij")
        across = gaspari_cohn(torch.from_numpy(great_circle(lat, lon, -50.0, 1.0, 28.0)), half_width=c)
        down = gaspari_cohn(torch.tensor(LEV - depth), half_width=v)
        down = torch.cat([down, down, torch.ones(1)]) if name == "thetao" else torch.ones(7)
        rho = across * down[:, None, None]
        X, hX = forecast.data - forecast.data.mean(0), hx - hx.mean()
        gain = rho * (X * hX[:, None, None, None]).sum(0) / 11 / (rho * hX.var() + 0.5**2)
        wanted = forecast.data.mean(0) + gain * (2.0 - hx.mean())
        assert torch.allclose(analysis.data.mean(0), wanted, atol=1e-12)
        unseen = (rho == 0).expand_as(LAYOUT.mask)
        assert unseen.any() and torch.equal(analysis.data[:, unseen], forecast.data[:, unseen])


@pytest.mark.parametrize("most", [1000, 4])
def test_against_a_loop_over_columns(most):
    forecast, obs, c = ensemble(), some_observations(40), 2e5
    analysis = LETKF(c, max_observations=most, inflation=1.05, rtpp=0.2).analysis(forecast, obs)
    hx = operator_for(LAYOUT, obs).apply(forecast).numpy()
    for j, i in [(0, 0), (1, 13), (4, 6), (5, 9), (3, 0)]:
        distance = great_circle(LAT[j], LON[i], obs.lat, obs.lon, 28.0)
        near = np.argsort(distance)[:most]
        rho = gaspari_cohn(torch.from_numpy(distance[near]), half_width=c).numpy()
        near, rho = near[rho > 0], rho[rho > 0]
        # Hunt et al. (2007), steps 4 to 8, letter by letter.
        Yb, C = (hx - hx.mean(0)).T[near], ((hx - hx.mean(0)).T[near] * (rho / obs.error[near] ** 2)[:, None]).T
        Pa = np.linalg.inv(7 / 1.05**2 * np.eye(8) + C @ Yb)
        values, vectors = np.linalg.eigh(7 * Pa)
        W, wbar = (vectors * np.sqrt(values)) @ vectors.T, Pa @ C @ (obs.value - hx.mean(0))[near]
        x = forecast.data[:, :, j, i].numpy().T
        X = x - x.mean(1, keepdims=True)
        wanted = x.mean(1, keepdims=True) + X @ (0.8 * W + 0.2 * np.eye(8) + wbar[:, None])
        wet = LAYOUT.mask[:, j, i].numpy()
        np.testing.assert_allclose(analysis.data[:, :, j, i].numpy().T[wet], wanted[wet], atol=1e-11)


# --- invariances ---------------------------------------------------------------------------------

FILTERS = [ETKF(rtpp=0.2), LETKF(3e5, rtpp=0.2, inflation=1.02), LETKF(2e5, vertical_half_width=100.0)]
filters = pytest.mark.parametrize("method", FILTERS, ids=["ETKF", "LETKF", "LETKF vertical"])


@filters
def test_orders_units_and_duplicates_do_not_matter(method):
    forecast, obs = ensemble(), some_observations()
    analysis = method.analysis(forecast, obs)
    same(method.analysis(forecast, obs.select(np.random.default_rng(0).permutation(15))), analysis)
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    shuffled = method.analysis(forecast.sel(order), obs)
    assert shuffled.members == tuple(order)
    same(shuffled.sel(range(8)), analysis)
    twice = Observations.concat([obs, obs])
    same(method.analysis(forecast, twice.replace(error=twice.error * np.sqrt(2))), analysis)
    in_other_units = obs.replace(value=1000 * obs.value, error=1000 * obs.error)
    same(
        method.analysis(forecast.replace(data=1000 * forecast.data), in_other_units),
        analysis.replace(data=1000 * analysis.data),
    )


@filters
def test_what_must_not_change_does_not_change_a_bit(method):
    method = replace(method, inflation=1.0)
    forecast, land = ensemble(), ~LAYOUT.mask
    poisoned = forecast.data.clone()
    poisoned[:, land] = torch.nan
    forecast = forecast.replace(data=poisoned, members=(17, 3, 5, 8, 9, 11, 2, 40))
    kept = forecast.data.clone()
    nobody = some_observations().select(np.zeros(15, bool))
    assert method.analysis(forecast, nobody) is forecast
    analysis = method.analysis(forecast, one_observation())
    assert torch.equal(forecast.data.nan_to_num(7), kept.nan_to_num(7))  # the forecast was not written to
    littered = forecast.replace(data=torch.where(land, torch.randn_like(poisoned), poisoned))
    assert torch.equal(method.analysis(littered, one_observation()).data[:, land], littered.data[:, land])
    assert analysis.data[:, land].isnan().all() and analysis.data[:, ~land].isfinite().all()
    assert (analysis.members, analysis.time, analysis.layout) == (forecast.members, DAY, LAYOUT)
    changed = (analysis.data != forecast.data).any(0) & ~land
    assert changed[:, 4, 0].any() and (method == ETKF(rtpp=0.2)) == bool(changed[:, :, 7].any())
    only = replace(method, variables=("zos",)).analysis(forecast, one_observation())
    assert torch.equal(only.data[:, :6].nan_to_num(7), kept[:, :6].nan_to_num(7))
    assert torch.allclose(only["zos"], analysis["zos"], rtol=1e-13, atol=1e-13, equal_nan=True)


def test_inflation_reaches_columns_without_observations():
    forecast = ensemble()
    analysis = LETKF(2e5, inflation=1.1).analysis(forecast, one_observation())
    before, after = (s.data[:, :, 4, 7] - s.data[:, :, 4, 7].mean(0) for s in (forecast, analysis))
    assert torch.allclose(after, 1.1 * before, atol=1e-12)


@filters
def test_blocks_do_not_matter(method):
    forecast, obs = ensemble(), some_observations()
    whole = replace(method, block=10_000).analysis(forecast, obs)
    for block in (1, 7, 64):
        same(replace(method, block=block).analysis(forecast, obs), whole, 1e-13)


@filters
def test_all_time_slots_move_together(method):
    layout = make_layout((-1, 0))
    forecast = ensemble(layout=layout)
    forecast = forecast.replace(time=DAY)
    one = ensemble()
    data = forecast.data.clone()
    data[:, 7:] = one.data
    data[:, :7] = 3 * one.data - 1  # the older slot is a linear function of the newer
    analysis = method.analysis(forecast.replace(data=data * layout.mask), some_observations())
    wanted = method.analysis(one, some_observations())
    assert torch.allclose(analysis.data[:, 7:], wanted.data, atol=1e-11)
    wet = layout.mask[:7]
    assert torch.allclose(analysis.data[:, :7][:, wet], (3 * wanted.data - 1)[:, wet], atol=1e-10)


@filters
def test_single_precision_agrees_with_double(method):
    forecast, obs = ensemble(), some_observations()
    forecast = forecast.replace(data=(forecast.data + 10) * LAYOUT.mask)
    obs = obs.replace(value=obs.value + 10)
    single = method.analysis(forecast.to(torch.float32), obs)
    assert single.data.dtype == torch.float32
    same(single.to(torch.float64), method.analysis(forecast, obs), 2e-6)


# --- gradients -----------------------------------------------------------------------------------


def test_gradients_of_the_transform_where_eigenvalues_repeat():
    g = torch.Generator().manual_seed(3)
    Y = torch.randn(2, 2, 6, generator=g, dtype=torch.float64)  # two observations: four eigenvalues are 1
    Y = (Y - Y.mean(-1, keepdim=True)).requires_grad_()
    d = torch.randn(2, 2, generator=g, dtype=torch.float64, requires_grad=True)
    rho = torch.tensor([[0.5, 0.0], [1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: transform(*a, inflation=1.1, rtpp=0.3), (Y, d, rho), check_forward_ad=True
    )
    both = torch.func.vmap(transform)(Y.detach(), d.detach(), rho.detach())
    for ours, batched in zip(transform(Y, d, rho), both, strict=True):
        assert torch.allclose(ours, batched, atol=1e-13)
    jacobian = torch.func.jacrev(lambda d: transform(Y.detach()[0], d, rho.detach()[0])[1])(d.detach()[0])
    assert jacobian.shape == (6, 2) and jacobian.abs().max() > 0
    through_root = torch.func.grad(lambda Y: transform(Y, d.detach(), rho.detach())[0].pow(2).sum())
    wanted = torch.autograd.grad(transform(Y, d, rho)[0].pow(2).sum(), Y)[0]
    assert torch.allclose(through_root(Y.detach()), wanted, atol=1e-13)


@filters
def test_gradients_through_the_analysis(method):
    forecast, obs = ensemble(4), some_observations(6)
    weight = torch.randn(forecast.data.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    direction = ensemble(4, seed=9).data

    def cost(data):
        return (method.analysis(forecast.replace(data=data), obs).data * weight).sum()

    x = forecast.data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(x), x)
    numerical = (cost(forecast.data + 1e-6 * direction) - cost(forecast.data - 1e-6 * direction)) / 2e-6
    assert torch.isclose((gradient * direction).sum(), numerical, rtol=1e-6)


# --- messages ------------------------------------------------------------------------------------


def test_messages():
    forecast, obs = ensemble(), some_observations()
    with pytest.raises(ValueError, match=r"at least two members, got \(0,\)"):
        LETKF(1e5).analysis(forecast.sel([0]), obs)
    with pytest.raises(ObservationError, match=r"forecast's time 2000-01-06 .*got 2000-01-07"):
        ETKF().analysis(forecast, obs.replace(time=DAY.replace(day=7)))
    with pytest.raises(LayoutError, match=r"no variable\(s\) so to analyse; the state has thetao"):
        LETKF(1e5, variables=("so",)).analysis(forecast, obs)
    with pytest.raises(ObservationError, match="wet point"):
        LETKF(1e5).analysis(forecast, one_observation(lat=-52.0, lon=12.0))
    for wrong in ({"rtpp": 1.5}, {"inflation": 0.0}, {"half_width": -1.0}, {"max_observations": 0}, {"block": 0}):
        with pytest.raises(ValueError, match="LETKF: wanted"):
            LETKF(**({"half_width": 1e5} | wrong))
