"""Consistency of errors, χ² and degrees of freedom for signal, against dense algebra and known truths."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
import torch
from scipy import stats
from toys import row_layout

from polynya.da import ETKF, LETKF, ObservationError, Observations, innovation, operator_for, pooled
from polynya.da.correlation import correlation, groups_of
from polynya.da.diagnosis import (
    ChiSquare,
    Consistency,
    Information,
    chi_square,
    chi_square_of,
    consistency,
    information,
    information_of_etkf,
    self_sensitivity,
)
from polynya.da.verification import Innovation, tabulated
from polynya.emulators import State

DAY = cftime.DatetimeNoLeap(2000, 1, 6)
NX = 8
LON = 360 / NX * np.arange(NX)


def covariance(nx=NX, names=2, size=0.5):
    """Of smooth fields around a circle, the second variable half of the first and half its own."""
    away = np.abs(np.arange(nx)[:, None] - np.arange(nx))
    C = size**2 * np.exp(-np.minimum(away, nx - away) / 3.0)
    mix = np.array([[1.0, 0.0], [0.5, 0.8]])[:names, :names]
    return np.kron(mix @ mix.T, C)


def members_of(B, count, rng):
    layout = row_layout(NX, *("zos", "thetao")[: len(B) // NX])
    data = (np.linalg.cholesky(B) @ rng.standard_normal((len(B), count))).T.reshape(count, -1, 1, NX)
    return State(torch.from_numpy(data.copy()), DAY, layout, tuple(range(count)))


def network(error=(0.5, 1.0), **columns):
    """Sea level everywhere and temperature in every other cell, of two kinds."""
    some = np.arange(0, NX, 2)
    named = {"variable": ["zos"] * NX + ["thetao"] * len(some), "lat": 0.0, "lon": np.append(LON, LON[some])}
    named |= {
        "value": 0.0,
        "error": np.repeat(error, [NX, len(some)]),
        "kind": ["altimeter"] * NX + ["argo"] * len(some),
    }
    return Observations.from_table(DAY, named | columns)


def covariance_of(obs):
    C = np.eye(len(obs))
    for rows in groups_of(obs):
        C[np.ix_(rows, rows)] = correlation(obs.select(rows))
    return obs.error[:, None] * C * obs.error


def matrix_of(obs, layout):
    n = int(np.prod(layout.shape))
    unit = State(torch.eye(n, dtype=torch.float64).view(n, *layout.shape), DAY, layout, tuple(range(n)))
    return operator_for(layout, obs).apply(unit).numpy().T


def dense(forecast, obs, inflation=1.0):
    """H, sample covariance, R and gain, all dense."""
    H, R = matrix_of(obs, forecast.layout), covariance_of(obs)
    P = inflation**2 * np.cov(forecast.data.flatten(1).numpy().T)
    return H, P, R, P @ H.T @ np.linalg.inv(H @ P @ H.T + R)


CORRELATED = {"group": np.where(np.arange(NX + 4) < NX, 1, 2), "length": 8e6}
CASES = pytest.mark.parametrize("columns", [{}, CORRELATED], ids=["independent", "correlated"])


# --- Desroziers --------------------------------------------------------------------------------------


def experiment(true_error, assumed_error, times=250, members=200, columns=None):
    """Linear and Gaussian: truth and members from one B, observed with one error and assimilated with another."""
    rng, B, total, chi = np.random.default_rng(0), covariance(), {}, []
    for _ in range(times):
        drawn = members_of(B, members + 1, rng)
        truth, forecast = drawn.sel([0]), drawn.sel(range(1, members + 1))
        obs = network(true_error, **(columns or {}))
        noise = np.linalg.cholesky(covariance_of(obs)) @ rng.standard_normal(len(obs))
        obs = obs.replace(value=operator_for(truth.layout, obs).apply(truth)[0].numpy() + noise)
        obs = obs.replace(error=np.repeat(assumed_error, [NX, 4]))
        analysis = ETKF().analysis(forecast, obs)
        total = pooled(total, consistency(innovation(forecast, obs), innovation(analysis, obs)))
        chi.append(chi_square_of(forecast, obs))
    return total, chi


@CASES
def test_desroziers_recovers_the_errors_of_a_linear_gaussian_experiment(columns):
    total, chi = experiment((0.5, 1.0), (0.5, 1.0), columns=columns)
    B = np.diag(covariance())
    for (kind, name), s in total.items():
        r, b = (0.5, B[0]) if name == "zos" else (1.0, B[NX])
        assert s.count == 250 * (NX if name == "zos" else 4) and kind == ("altimeter" if name == "zos" else "argo")
        assert np.isclose(s.observation_error, r, rtol=0.08) and np.isclose(s.assumed_observation_error, r)
        assert np.isclose(s.background_error, np.sqrt(b), rtol=0.08) and np.isclose(
            s.background_spread, np.sqrt(b), rtol=0.02
        )
        assert np.isclose(s.analysis_error, s.analysis_spread, rtol=0.12) and s.analysis_error < r
    # 200 members in 12 directions: E[χ²] is a little above p
    whole = sum(chi[1:], chi[0])
    assert abs(whole.ratio - 1) < 0.08 and whole.count == 250 * (NX + 4)


def test_desroziers_moves_towards_the_true_error_and_chi_square_notices():
    total, chi = experiment((0.5, 1.0), (0.25, 1.0), times=120)
    s = total["altimeter", "zos"]
    assert 0.25 < s.assumed_observation_error * 1.2 < s.observation_error < 0.6
    assert sum(chi[1:], chi[0]).ratio > 1.3 and sum(chi[1:], chi[0]).score > 5


def test_desroziers_of_a_scalar_is_analytic():
    n, sb, so, assumed = 200_000, 1.5, 1.0, 0.5
    rng = np.random.default_rng(0)
    d = sb * rng.standard_normal(n) + so * rng.standard_normal(n)
    K = sb**2 / (sb**2 + assumed**2)
    obs = Observations.from_table(DAY, {"variable": "zos", "lat": 0, "lon": 0, "value": d, "error": assumed})
    spread = np.full(n, sb)
    before, after = Innovation(obs, d, spread), Innovation(obs, (1 - K) * d, np.sqrt(1 - K) * spread)
    s = consistency(before, after)["", "zos"]
    total = sb**2 + so**2
    assert np.isclose(s.observation_error**2, (1 - K) * total, rtol=0.01)
    assert np.isclose(s.background_error**2, K * total, rtol=0.01)
    assert np.isclose(s.analysis_error**2, K * (1 - K) * total, rtol=0.01)
    assert np.isclose(s.observation + s.background, (d**2).sum())


def test_sums_add_up_and_negative_squares_are_not_a_number():
    a, b = Consistency(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), Consistency(10, 20.0, 30.0, -40.0, 50.0, 60.0, 70.0)
    assert a + b == Consistency(11, 22.0, 33.0, -36.0, 55.0, 66.0, 77.0)
    assert np.isnan((a + b).analysis_error) and np.isclose((a + b).observation_error, np.sqrt(2))
    assert np.isclose((a + b).background_spread, np.sqrt(6)) and np.isclose((a + b).analysis_spread, np.sqrt(7))
    table = tabulated({("argo", "so"): a, ("sst", "thetao"): b})
    assert table["analysis_error"].sel(kind="argo", variable="so") == 2 and len(table) == len(Consistency.columns)


def test_departures_of_different_observations_are_refused():
    forecast = members_of(covariance(), 5, np.random.default_rng(0))
    one = innovation(forecast, network())
    for other in (network(value=1.0), network().select(np.arange(3))):
        with pytest.raises(ObservationError, match="the same observations"):
            consistency(one, innovation(forecast, other))


# --- χ² ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N, p", [(4, 9), (30, 5)])
def test_chi_square_is_that_of_dense_matrices(N, p):
    rng = np.random.default_rng(0)
    Y, d = rng.standard_normal((3, p, N)), rng.standard_normal((3, p))
    Y -= Y.mean(-1, keepdims=True)
    for inflation in (1.0, 1.3):
        S = np.eye(p) + inflation**2 * Y @ Y.swapaxes(-1, -2) / (N - 1)
        wanted = np.einsum("ei,eij,ej->e", d, np.linalg.inv(S), d)
        np.testing.assert_allclose(chi_square(*map(torch.tensor, (Y, d)), inflation=inflation), wanted, rtol=1e-12)
    each = torch.tensor([1.0, 1.1, 1.2], dtype=torch.float64)
    assert torch.allclose(
        chi_square(torch.tensor(Y), torch.tensor(d), inflation=each)[2],
        chi_square(torch.tensor(Y[2]), torch.tensor(d[2]), inflation=1.2),
    )


@CASES
def test_chi_square_of_states_knows_the_correlations_of_errors(columns):
    rng = np.random.default_rng(1)
    forecast, obs = members_of(covariance(), 6, rng), network(value=rng.standard_normal(NX + 4), **columns)
    H, P, R, _ = dense(forecast, obs, 1.1)
    d = innovation(forecast, obs).departure
    wanted = d @ np.linalg.solve(H @ P @ H.T + R, d)
    got = chi_square_of(forecast, obs, inflation=1.1)
    assert np.isclose(got.value, wanted) and got.count == len(obs)
    assert chi_square_of(forecast, obs.select(np.zeros(0, int))) == ChiSquare(0, 0.0)


def test_chi_square_of_a_perfect_ensemble_has_its_distribution():
    rng, p, N = np.random.default_rng(2), 6, 250
    B = covariance()[:p, :p]
    root = np.linalg.cholesky(B)
    values = []
    for _ in range(300):
        Y = root @ rng.standard_normal((p, N))
        d = root @ rng.standard_normal(p) + rng.standard_normal(p)
        values.append(float(chi_square(torch.tensor(Y - Y.mean(1, keepdims=True)), torch.tensor(d))))
    assert stats.kstest(values, stats.chi2(p).cdf).pvalue > 0.01 and abs(np.mean(values) / p - 1) < 0.07


# --- degrees of freedom for signal -------------------------------------------------------------------


@pytest.mark.parametrize("inflation", [1.0, 1.4])
@CASES
def test_degrees_of_freedom_are_the_trace_of_hk(columns, inflation):
    forecast, obs = members_of(covariance(), 7, np.random.default_rng(3)), network(**columns)
    H, _, _, K = dense(forecast, obs, inflation)
    share = np.diag(H @ K)
    exact = information_of_etkf(forecast, obs, inflation=inflation)
    after = information(ETKF(inflation=inflation).analysis(forecast, obs), obs)
    wanted = {("altimeter", "zos"): share[:NX].sum(), ("argo", "thetao"): share[NX:].sum()}
    for key, signal in wanted.items():
        assert np.isclose(exact[key].signal, signal) and np.isclose(after[key].signal, signal)
        assert 0 < exact[key].share < 1 and exact[key].count == (NX if key[1] == "zos" else 4)
    assert sum(s.signal for s in exact.values()) < 6 + 1e-9  # no more than the ensemble has dimensions
    assert information(forecast, obs.select(np.zeros(0, int))) == information_of_etkf(forecast, obs.select([])) == {}


def test_each_sensitivity_is_a_derivative_of_the_analysis():
    forecast, obs = members_of(covariance(), 7, np.random.default_rng(4)), network()
    for method in (ETKF(), LETKF(None), LETKF(8e6)):  # observations are at centres of columns, where the taper is 1
        analysis = method.analysis(forecast, obs)
        Y = innovation(analysis, obs).spread ** 2 / obs.error**2
        for i in (0, 5, NX + 1):
            one = np.zeros(len(obs))
            one[i] = 1.0
            moved = method.analysis(forecast, obs.replace(value=obs.value + one))
            change = innovation(analysis, obs).departure[i] - innovation(moved, obs).departure[i]
            assert np.isclose(change, Y[i])
        total = sum(s.signal for s in information(analysis, obs).values())
        assert np.isclose(total, Y.sum())


def test_sensitivities_in_batches():
    Y = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Y = Y - Y.mean(-1, keepdim=True)
    S = Y @ Y.mT / 3
    wanted = torch.linalg.solve(torch.eye(5, dtype=torch.float64) + S, S).diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(self_sensitivity(Y), wanted)
    assert Information(2, 1.0) + Information(3, 0.5) == Information(5, 1.5) and Information(5, 1.5).share == 0.3
