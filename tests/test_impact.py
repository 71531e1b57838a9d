"""Impact of observations on forecasts: dense algebra, exactness for linear models, and the truth in Lorenz-96."""

from __future__ import annotations

from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
from small import random_state, small_layout
from toys import Lorenz96, Matrix, row_layout

from polynya.da import ETKF, LETKF, Observations, gaspari_cohn, great_circle, innovation, operator_for, pooled
from polynya.da.filters import departures
from polynya.da.impact import ImpactStatistics, efso, norm, observation_impact
from polynya.da.verification import tabulated
from polynya.emulators import LayoutError, Noise, State

DAY = cftime.DatetimeNoLeap(2000, 1, 6)
ONE = torch.ones((), dtype=torch.float64)


def drawn(layout, members, seed=0):
    g = torch.Generator().manual_seed(seed)
    data = torch.randn(members, *layout.shape, generator=g, dtype=torch.float64) * layout.mask
    return State(data, DAY, layout, tuple(range(members)))


def network(lon, seed=0, **columns):
    value = np.random.default_rng(seed).standard_normal(len(lon))
    named = {"variable": "zos", "lat": 0.0, "lon": lon, "value": value, "error": 0.7}
    named["kind"] = np.where(np.arange(len(lon)) % 2, "drifter", "altimeter")
    return Observations.from_table(DAY, named | columns)


def model_of(n):
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(9), dtype=torch.float64) / 4
    return Matrix(A, row_layout(n // 2, "zos", "thetao"))


def linear(members=5, nx=12, **columns):
    """A background, its analysis and forecasts of both by a linear map, of fewer members than cells."""
    model = model_of(2 * nx)
    layout = model.layout
    background = drawn(layout, members)
    obs = network(360 / nx * np.arange(0, nx, 2), **columns)
    analysis = ETKF().analysis(background, obs)
    forecast, earlier = (model.step(model.step(s, None, Noise(0)), None, Noise(0)) for s in (analysis, background))
    truth = drawn(layout, 1, seed=3).replace(time=forecast.time)
    return background, analysis, obs, forecast, earlier, truth


def weights_like(state, seed=4):
    return torch.rand(state.layout.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- algebra -----------------------------------------------------------------------------------------


def test_impacts_are_those_of_the_equation_written_out():
    g = torch.Generator().manual_seed(0)
    N, p, n = 5, 4, 7
    Y, X = (torch.randn(2, k, N, generator=g, dtype=torch.float64) for k in (p, n))
    d, gradient = (torch.randn(2, k, generator=g, dtype=torch.float64) for k in (p, n))
    rho = torch.rand(2, p, n, generator=g, dtype=torch.float64)
    for taper in (None, rho):
        wanted = torch.zeros(2, p, dtype=torch.float64)
        for e in range(2):
            for i in range(p):
                for j in range(n):
                    covariance = sum(Y[e, i, m] * X[e, j, m] for m in range(N)) / (N - 1)
                    wanted[e, i] += d[e, i] * (1 if taper is None else taper[e, i, j]) * covariance * gradient[e, j]
        assert torch.allclose(efso(Y, d, X, gradient, taper), wanted)


@pytest.mark.parametrize("columns", [{}, {"group": 3, "length": 5e6}], ids=["independent", "correlated"])
@pytest.mark.parametrize("members", [4, 30])
def test_impacts_of_a_linear_model_sum_to_the_change_of_its_error(members, columns):
    case = linear(members, **columns)
    C = weights_like(case[3])
    impact = observation_impact(*case, C)
    e_0, e_b = (s.data.mean(0) - case[5].data[0] for s in (case[3], case[4]))
    assert np.isclose(impact.actual, float((C * (e_0**2 - e_b**2)).sum()))
    assert abs(impact.actual) > 0.01 and np.isclose(impact.estimated, impact.actual, rtol=1e-9)


def test_single_observations_have_the_impact_of_the_difference_that_they_make():
    background, analysis, obs, forecast, earlier, truth = linear(30)
    C = weights_like(forecast)
    impact = observation_impact(background, analysis, obs, forecast, earlier, truth, C)
    # Linear: d_i times the change of the forecast per departure, along the sum of both errors.
    A = model_of(24).A
    d = innovation(background, obs).departure
    both = C * (forecast.data.mean(0) + earlier.data.mean(0) - 2 * truth.data[0])
    for i in range(len(obs)):
        moved = obs.replace(value=obs.value + (np.arange(len(obs)) == i))
        step = ETKF().analysis(background, moved).data.mean(0) - analysis.data.mean(0)
        assert np.isclose(impact.impact[i], d[i] * float(both.flatten() @ A @ A @ step.flatten()))


@pytest.mark.parametrize("period", [None, 90.0])
def test_localised_impacts_are_those_of_dense_tapers(period):
    background, analysis, obs, forecast, earlier, truth = linear(6)
    C, half = weights_like(forecast), 2.5e6
    impact = observation_impact(background, analysis, obs, forecast, earlier, truth, C, half_width=half, block=5)
    (_, d), (Y, _) = departures(background, obs), departures(analysis, obs)
    lon = np.tile(30.0 * np.arange(12), 2)
    rho = gaspari_cohn(torch.tensor(great_circle(0.0, obs.lon[:, None], 0.0, lon)), half_width=half)
    X = (forecast.data - forecast.data.mean(0)).flatten(1).mT
    both = C * (forecast.data.mean(0) + earlier.data.mean(0) - 2 * truth.data[0])
    np.testing.assert_allclose(impact.impact, efso(Y, d, X, both.flatten(), rho), rtol=1e-9, atol=1e-14)
    wide = observation_impact(background, analysis, obs, forecast, earlier, truth, C, half_width=np.inf)
    none = observation_impact(background, analysis, obs, forecast, earlier, truth, C)
    np.testing.assert_allclose(wide.impact, none.impact)


def test_land_has_no_impact():
    layout = small_layout()
    background, forecast, earlier, truth = (random_state(layout, seed=k).to(torch.float64) for k in range(4))
    obs = Observations.from_table(
        background.time, {"variable": "zos", "lat": -12.0, "lon": [40.0, 200.0], "value": 0.3, "error": 0.5}
    )
    analysis = ETKF().analysis(background, obs)
    C = norm(layout, {"thetao": 1.0, "zos": 0.1})
    dirty = [s.replace(data=torch.where(layout.mask, s.data, torch.nan)) for s in (forecast, earlier, truth)]
    for half_width in (None, 3e6):
        clean = observation_impact(background, analysis, obs, forecast, earlier, truth, C, half_width=half_width)
        land = observation_impact(background, analysis, obs, *dirty, C, half_width=half_width)
        assert np.array_equal(clean.impact, land.impact) and clean.actual == land.actual


def test_a_norm_averages_over_wet_volume():
    layout = small_layout((-1, 0))
    C = norm(layout, {"thetao": 0.5, "zos": 0.1})
    assert C.shape == layout.shape and not C[~layout.mask].any()
    assert np.isclose(float(C[layout.channels("thetao")].sum()), 4.0) and np.isclose(
        float(C[layout.channels("zos")].sum()), 100.0
    )
    assert np.isclose(float(C.sum()), 104.0)  # the other slot and velocities do not count
    top, low = C[layout.channels("thetao")][0, 5, 5], C[layout.channels("thetao")][1, 5, 5]
    assert np.isclose(float(low / top), 3.0)  # as thick
    with pytest.raises(LayoutError, match="no variable"):
        norm(layout, {"so": 1.0})


def test_states_that_do_not_belong_together_are_refused():
    background, analysis, obs, forecast, earlier, truth = linear(6)
    with pytest.raises(LayoutError, match="wanted a forecast of the analysed members"):
        observation_impact(background, analysis, obs, forecast.sel(range(3)), earlier, truth, ONE)
    with pytest.raises(LayoutError, match="observation_impact: truth"):
        observation_impact(background, analysis, obs, forecast, earlier, drawn(row_layout(12), 1), ONE)


def test_statistics_add_up_and_nothing_has_no_impact():
    case = linear(6)
    impact = observation_impact(*case, ONE)
    one = impact.statistics()
    assert set(one) == {("altimeter", "zos"), ("drifter", "zos")}
    assert np.isclose(sum(s.total for s in one.values()), impact.estimated)
    twice = pooled(one, one)["drifter", "zos"]
    rows = impact.observations.kind == "drifter"
    assert twice.count == 2 * rows.sum() and np.isclose(twice.mean, impact.impact[rows].mean())
    assert np.isclose(twice.share, (impact.impact[rows] < 0).mean()) and isinstance(twice, ImpactStatistics)
    assert np.isclose(tabulated(one)["total"].sum(), impact.estimated)
    none = case[2].select(np.zeros(0, int))
    nothing = observation_impact(case[0], case[0], none, case[4], case[4], case[5], ONE)
    assert nothing.estimated == 0 and nothing.actual == 0 and nothing.statistics() == {}


# --- a nonlinear model -------------------------------------------------------------------------------


@pytest.mark.parametrize("members, half_width", [(40, None), (20, 3e6)], ids=["global", "local"])
def test_estimated_impacts_follow_the_actual_ones_in_lorenz_96(members, half_width):
    model, steps = Lorenz96(), 4  # one day ahead

    def run(state, count):
        for _ in range(count):
            state = model.step(state, None, Noise(0))
        return state

    truth = run(drawn(model.layout, 1).replace(data=drawn(model.layout, 1).data + 8), 200)
    state = State(truth.data + drawn(model.layout, members, 1).data, truth.time, model.layout, tuple(range(members)))
    rng, seen = np.random.default_rng(0), 9.0 * np.arange(0, 40, 2)
    method = ETKF(inflation=1.03) if half_width is None else LETKF(half_width, inflation=1.03)
    estimated, actual, bad = [], [], []
    for k in range(120):
        truth, state = run(truth, 1), run(state, 1)
        obs = network(seen).replace(time=truth.time)
        wrong = np.arange(20) == k % 20  # one that is much worse than it says
        noise = 0.7 * rng.standard_normal(20) * np.where(wrong, 4.0, 1.0)
        obs = obs.replace(value=operator_for(truth.layout, obs).apply(truth)[0].numpy() + noise)
        analysis = method.analysis(state, obs)
        if k >= 40:
            later = run(analysis, steps), run(state, steps), run(truth, steps)
            impact = observation_impact(state, analysis, obs, *later, ONE / 40, half_width=half_width)
            estimated, actual = [*estimated, impact.estimated], [*actual, impact.actual]
            bad.append((impact.impact[wrong].mean(), impact.impact[~wrong].mean()))
        state = analysis
    assert np.corrcoef(estimated, actual)[0, 1] > 0.6
    assert 0.5 < np.sum(estimated) / np.sum(actual) < 2 and np.sum(actual) < 0
    of_bad, of_good = np.mean(bad, 0)
    assert of_good < 0 < of_bad  # it tells which observation was wrong
    assert model.dt == timedelta(days=1)
