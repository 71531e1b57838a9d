"""Analyses with covariances that do not change, and the hybrid gain, against the Kalman update by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import START, random_state, small_layout
from small import random_observations as observations
from test_analyses import LAYOUT, STATIC, WIDE, forecast

from polynya.da import (
    ETKF,
    OI,
    EnOI,
    HybridGain,
    ObservationError,
    Observations,
    gaspari_cohn,
    great_circle,
    operator_for,
)
from polynya.emulators import LayoutError, State

torch.set_num_threads(1)


def with_covariance(root, mean):
    """States whose sample covariance is root rootᵀ, (state, k), and whose mean is given."""
    k = root.shape[1]
    halves = ((2 * k - 1) / 2) ** 0.5 * root.T
    data = mean + torch.cat([halves, -halves]).view(2 * k, *LAYOUT.shape)
    return State(data, START, LAYOUT, tuple(range(2 * k)))


def kalman(background, obs, B):
    """x + K (y - H x) for members (member, state), in NumPy."""
    size = int(np.prod(LAYOUT.shape))
    unit = State(torch.eye(size, dtype=torch.float64).view(size, *LAYOUT.shape), START, LAYOUT, tuple(range(size)))
    H = operator_for(LAYOUT, obs).apply(unit).T.numpy()
    K = B @ H.T @ np.linalg.inv(H @ B @ H.T + np.diag(obs.error**2))
    x = background.flatten(1).numpy()
    return torch.from_numpy(x + (obs.value - x @ H.T) @ K.T).view(background.shape)


def test_interpolation_is_the_kalman_update_with_the_given_covariance():
    obs, start = observations(), forecast(3)
    root = torch.randn(start.data[0].numel(), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    root = root * LAYOUT.mask.flatten()[:, None]
    mean = forecast(1, 6).data
    static, B = with_covariance(root, mean), (root @ root.T).numpy()
    assert torch.allclose(EnOI(static).analysis(start, obs).data, kalman(start.data, obs, B), atol=1e-10)
    assert torch.allclose(EnOI(static, 0.3).analysis(start, obs).data, kalman(start.data, obs, 0.3 * B), atol=1e-10)
    best = OI(static).analysis(start, obs).data
    assert torch.allclose(best, kalman(mean, obs, B).expand_as(best), atol=1e-10)
    single = EnOI(static).analysis(start.sel([1]), obs)  # each member by itself
    assert torch.allclose(single.data[0], EnOI(static).analysis(start, obs).data[1], atol=1e-13)
    wide = EnOI(static, half_width=1e15).analysis(start, obs)
    assert torch.allclose(wide.data, EnOI(static).analysis(start, obs).data, atol=1e-10)


def test_local_interpolation_of_one_observation():
    obs = Observations.from_table(
        START, {"variable": ["zos"], "lat": [-10.0], "lon": [60.0], "value": [1.0], "error": [0.5]}
    )
    start = forecast(2)
    got = EnOI(STATIC, 2.0, WIDE).analysis(start, obs).data
    lat, lon = np.meshgrid(LAYOUT.grid["lat"], LAYOUT.grid["lon"], indexing="ij")
    rho = gaspari_cohn(torch.from_numpy(great_circle(lat, lon, -10.0, 60.0)), half_width=WIDE)
    hA, hx = (operator_for(LAYOUT, obs).apply(s)[:, 0] for s in (STATIC, start))
    A, h = STATIC.data - STATIC.data.mean(0), (hA - hA.mean())[:, None, None, None]
    gain = rho * 2 * (A * h).sum(0) / 11 / (rho * 2 * hA.var() + 0.25)
    wanted = start.data + gain * (1.0 - hx)[:, None, None, None]
    assert torch.allclose(got, wanted, atol=1e-12)
    assert torch.equal(got[:, :, rho == 0], start.data[:, :, rho == 0])


def test_static_states_of_another_layout_are_refused():
    other = random_state(small_layout((-1, 0)), (0, 1, 2))
    for method in (EnOI(other), OI(other)):
        with pytest.raises(LayoutError, match="static ensemble: wanted time slots"):
            method.analysis(forecast(), observations())
    with pytest.raises(ObservationError, match="2000-01-01.*got 2000-01-02"):
        EnOI(STATIC).analysis(forecast(), observations(time=START.replace(day=2)))
    failed = forecast()
    failed.data[0] = torch.nan
    with pytest.raises(ObservationError, match="finite where they are observed"):
        EnOI(STATIC).analysis(failed, observations())


@pytest.mark.parametrize("background", ["analysis", "forecast"])
def test_limits_of_the_hybrid_gain(background):
    start, obs, static = forecast(), observations(), EnOI(STATIC)
    filtered = ETKF().analysis(start, obs)
    assert torch.equal(HybridGain(ETKF(), static, 0.0, background).analysis(start, obs).data, filtered.data)
    whole = HybridGain(ETKF(), static, 1.0, background).analysis(start, obs).data
    guess = filtered if background == "analysis" else start
    wanted = static.analysis(guess.replace(data=guess.data.mean(0)[None], members=(0,)), obs).data[0]
    assert torch.allclose(whole.mean(0), wanted, atol=1e-12)
    anomalies = filtered.data - filtered.data.mean(0)
    half = HybridGain(ETKF(), static, 0.5, background).analysis(start, obs).data
    for data in (whole, half):
        assert torch.allclose(data - data.mean(0), anomalies, atol=1e-12)
    assert torch.allclose(half.mean(0), (filtered.data.mean(0) + wanted) / 2, atol=1e-12)


def test_the_hybrid_gain_is_a_gain():
    # Penny (2014): K + α K_B - α K_B H K, with K_B's covariance that of the static states.
    start, obs = forecast(), observations()
    got = HybridGain(ETKF(), EnOI(STATIC), 0.4).analysis(start, obs).data.mean(0)
    mean = start.data.mean(0, keepdim=True)
    filtered = kalman(mean, obs, np.cov(start.data.flatten(1).numpy().T))
    static = kalman(filtered, obs, np.cov(STATIC.data.flatten(1).numpy().T))
    assert torch.allclose(got, (0.6 * filtered + 0.4 * static)[0], atol=1e-10)
