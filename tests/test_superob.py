"""Superobservations: the Kalman filter of what they stand for, and what is never joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_letkf_ocean import DAY, ensemble, same, some_observations

from polynya.da import ETKF, LETKF, ObservationError, Observations
from polynya.da.superob import superobbed

torch.set_num_threads(1)


def test_superobs_of_one_place_are_the_kalman_filter():
    forecast, rng = ensemble(n=12), np.random.default_rng(4)
    lat, lon = np.repeat([10.2, -31.0, 10.4], 6), np.repeat([20.1, 359.5, 300.0], 6)
    error = rng.uniform(0.2, 0.9, 18)
    many = Observations(DAY, "zos", lat, lon, 0.0, rng.normal(size=18), error, "t")
    few = superobbed(many.select(rng.permutation(18)), 1.0)
    assert len(few) == 3
    for method in (ETKF(), LETKF(9e5)):
        same(method.analysis(forecast, few), method.analysis(forecast, many), 1e-11)
    alike = superobbed(many.replace(error=0.6), 1.0)
    np.testing.assert_allclose(alike.error, 0.6 / np.sqrt(6))
    np.testing.assert_allclose(superobbed(many, 1.0, floor=0.3).error, np.hypot(few.error, 0.3))
    np.testing.assert_allclose(superobbed(many, 1.0, floor={"thetao": 0.3}).error, few.error)


def test_superobs_keep_apart_what_differs():
    table = {
        "variable": ["zos", "thetao", "thetao", "thetao", "thetao", "thetao"],
        "lat": [0.2, 0.2, 0.4, 0.6, 0.6, 1.2],
        "lon": [-0.5, -0.5, 359.7, 359.9, 0.1, 359.9],
        "depth": [0.0, 5.0, 15.0, 150.0, 5.0, 5.0],
        "value": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        "error": [1.0, 1.0, 1.0, 1.0, 1.0, 0.7],
        "kind": ["a", "a", "a", "a", "a", "a"],
    }
    obs = Observations.from_table(DAY, {k: np.array(v) for k, v in table.items()})
    assert len(superobbed(obs, 1.0)) == 6
    for depth in (100.0, np.array([0.0, 100.0, 500.0])):
        few = superobbed(obs, 1.0, depth=depth)
        assert sorted(few.value) == [1.0, 3.0, 8.0, 16.0, 32.0]
        two = int(np.flatnonzero(few.value == 3.0)[0])
        np.testing.assert_allclose([few.lat[two], few.lon[two] % 360, few.depth[two]], [0.3, 359.6, 10.0])
        np.testing.assert_allclose(few.error[two], 1 / np.sqrt(2))
    kinds = obs.replace(kind=np.array(list("aabbbb")))
    assert sorted(superobbed(kinds, 1.0, depth=100.0).value) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    alone = superobbed(obs, (0.01, 0.02))
    assert sorted(zip(alone.lat, alone.lon, alone.value, alone.error, strict=True)) == sorted(
        zip(obs.lat, obs.lon, obs.value, obs.error, strict=True)
    )
    assert len(superobbed(obs.select(np.zeros(6, bool)), 1.0)) == 0


def test_superob_messages():
    obs = some_observations(p=9)
    for wrong in ({"size": 0.0}, {"floor": -1.0}, {"depth": 0.0}, {"depth": np.array([5.0, 1.0])}):
        with pytest.raises(ObservationError, match="wanted"):
            superobbed(obs, **({"size": 1.0} | wrong))
