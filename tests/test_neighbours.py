"""Checks against neighbours: buddies, duplicates and thinning, by brute force and on planted errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_quality import ensemble, plain, scattered, table

from polynya.da import innovation, operator_for
from polynya.da.bias import Debiased
from polynya.da.localise import gaspari_cohn, unit_vectors
from polynya.da.neighbours import Buddy, Duplicates, Thin
from polynya.da.quality import Gross, Quality, Range
from polynya.emulators import Noise


def chords(obs):
    points = 6.371e6 * unit_vectors(obs.lat, obs.lon)
    return np.linalg.norm(points[:, None] - points, axis=-1)


def brute_buddies(check, d, s, r, c):
    """The same rule with dense matrices, one at a time: of all suspects the worst goes first."""
    gone = np.zeros(len(d), bool)
    while True:
        worst, most = -1, 0.0
        for i in np.flatnonzero(~gone):
            near = np.flatnonzero((c[i] > 0) & ~gone)
            if len(near) < check.least:
                continue
            pair = s[i] ** 2 + s[near] ** 2 - 2 * s[i] * s[near] * c[i, near] + r[near] ** 2
            w, votes = c[i, near] / pair, c[i, near] / (s[near] ** 2 + r[near] ** 2)
            w, votes = w / w.sum(), votes / votes.sum()
            mean_s = w @ s[near]
            var = r[i] ** 2 + w**2 @ r[near] ** 2 + (s[i] - mean_s) ** 2 + 2 * s[i] * (w * s[near]) @ (1 - c[i, near])
            misfit = abs(d[i] - w @ d[near]) / np.sqrt(var)
            agree = votes[np.abs(d[i] - d[near]) <= check.threshold / 2 * np.sqrt(pair + r[i] ** 2)].sum()
            if misfit > check.threshold and agree <= check.quorum and misfit > most:
                worst, most = i, misfit
        if worst < 0:
            return gone
        gone[worst] = True


def test_buddies_are_those_of_the_rule_written_out():
    layout, rng = plain(), np.random.default_rng(5)
    forecast = ensemble(layout, 10)
    obs = scattered(layout, 250, seed=4, depth=0.0, error=rng.uniform(0.05, 0.3, 250))
    seen = innovation(forecast, obs)
    truth = 0.5 * seen.spread * np.sin(np.radians(8 * obs.lon))
    obs = obs.replace(value=obs.value - seen.departure + truth + obs.error * rng.standard_normal(250))
    obs = obs.replace(value=obs.value + np.where(rng.random(250) < 0.15, 8.0, 0.0))
    check = Buddy(4e5, threshold=3.0, most=200)
    away = (
        np.linalg.norm(unit_vectors(obs.lat, obs.lon)[:, None] - unit_vectors(obs.lat, obs.lon), axis=-1)
        * 6.371e6
        / 4e5
    )
    c = gaspari_cohn(torch.from_numpy(away), support=1.0).numpy()
    np.fill_diagonal(c, 0.0)
    seen = innovation(forecast, obs)
    wanted = brute_buddies(check, seen.departure, seen.spread, obs.error, c)
    assert 10 < wanted.sum() < 60
    assert np.array_equal(check.rejects(forecast, obs), wanted)


def cluster(departures, spacing=0.2, error=0.1, depth=0.0):
    """A patch of observations with these departures (y, x) from a forecast with spread."""
    ny, nx = departures.shape
    lat, lon = np.meshgrid(spacing * np.arange(ny), 15 + spacing * np.arange(nx), indexing="ij")
    obs = table(lat.ravel(), lon.ravel(), np.zeros(ny * nx), error, depth=depth)
    forecast = ensemble(plain(), 20)
    return forecast, obs.replace(value=departures.ravel() - innovation(forecast, obs).departure)


def test_a_wrong_member_of_a_cluster_is_caught_and_its_neighbours_stay():
    departures = 0.05 * np.random.default_rng(0).standard_normal((5, 5))
    departures[2, 2] += 1.8  # which is less than twice the spread
    forecast, obs = cluster(departures)
    assert not Gross(3.0).rejects(forecast, obs).any()
    assert np.flatnonzero(Buddy(6e5).rejects(forecast, obs)).tolist() == [12]


def test_two_wrong_ones_beside_each_other_are_caught():
    departures = 0.05 * np.random.default_rng(0).standard_normal((6, 6))
    departures[2, 2:4] += 2.0
    forecast, obs = cluster(departures)
    assert np.flatnonzero(Buddy(6e5).rejects(forecast, obs)).tolist() == [14, 15]


@pytest.mark.parametrize("high", [1.5, 4.0, 20.0])
def test_a_real_sharp_anomaly_that_many_see_is_kept(high):
    departures = 0.05 * np.random.default_rng(0).standard_normal((10, 10))
    departures[:, 5:] += high  # a front
    forecast, obs = cluster(departures)
    assert not Buddy(6e5).rejects(forecast, obs).any()
    departures[2:8, 2:8] += high  # and an eddy on it
    forecast, obs = cluster(departures)
    assert not Buddy(6e5).rejects(forecast, obs).any()


def test_buddies_find_many_errors_that_the_spread_hides_and_no_others():
    layout = plain()
    states = ensemble(layout, 41, seed=4)
    forecast, truth = states.sel(range(1, 41)), states.sel([0])
    obs, rng = scattered(layout, 5000, seed=4), np.random.default_rng(4)
    wrong = rng.random(5000) < 0.1
    exact = operator_for(layout, obs).apply(truth)[0].numpy()
    planted = wrong * rng.choice([-1, 1], 5000) * rng.uniform(1, 5, 5000)  # the spread is 1.2
    obs = obs.replace(value=exact + 0.1 * rng.standard_normal(5000) + planted)
    alone = Gross(4.0).rejects(forecast, obs)
    both = Quality((Gross(4.0), Buddy(6e5))).check(forecast, obs).flags > 0
    assert both[wrong].mean() > max(2 * alone[wrong].mean(), 0.55) and both[~wrong].mean() < 1e-3


def test_a_pair_that_disagrees_is_kept_for_nobody_knows_who_is_wrong():
    forecast, obs = cluster(np.array([[0.0, 5.0]]))
    assert not Buddy(6e5).rejects(forecast, obs).any()


def test_buddies_do_not_look_through_the_depth():
    forecast, obs = cluster(np.pad([[2.0]], 2))
    deep = np.zeros(25)
    deep[12] = 150.0
    assert Buddy(6e5, height=100.0).rejects(forecast, obs)[12]
    assert not Buddy(6e5, height=100.0).rejects(forecast, obs.replace(depth=deep)).any()


def test_buddies_see_across_the_seam_of_a_sector():
    layout = plain(nx=40, period=40.0)
    forecast = ensemble(layout, 20)
    obs = table(np.zeros(5), [39.8, 0.1, 39.6, 0.3, 40.0], np.zeros(5))
    departures = np.array([0.0, 0.0, 0.0, 0.0, 2.0])
    obs = obs.replace(value=departures - innovation(forecast, obs).departure)
    assert np.flatnonzero(Buddy(6e5).rejects(forecast, obs)).tolist() == [4]


def test_duplicates_are_those_with_a_better_one_near_by_brute_force():
    layout, rng = plain(), np.random.default_rng(1)
    obs = scattered(layout, 400, error=rng.uniform(0.1, 0.2, 400), depth=rng.uniform(0, 20, 400))
    obs = obs.replace(offset=-rng.uniform(0, 7200, 400))
    check = Duplicates(1e5, height=15.0, seconds=3600.0)
    across = (
        np.linalg.norm(unit_vectors(obs.lat, obs.lon)[:, None] - unit_vectors(obs.lat, obs.lon), axis=-1)
        * 6.371e6
        / 1e5
    )
    down, late = (np.abs(a[:, None] - a) / scale for a, scale in ((obs.depth, 15.0), (obs.offset, 3600.0)))
    near = across**2 + down**2 + late**2 <= 1
    wanted = (near & (obs.error < obs.error[:, None])).any(1)
    assert np.array_equal(check.rejects(ensemble(layout, 2), obs), wanted) and 20 < wanted.sum() < 380


def test_of_many_at_one_place_one_stays():
    n = 5000
    forecast = ensemble(plain(), 2)
    obs = table(np.zeros(n), np.full(n, 5.0), np.random.default_rng(0).standard_normal(n), 0.1)
    out = Duplicates().rejects(forecast, obs)
    assert (~out).sum() == 1 and obs.value[~out] == obs.value.min()
    same = obs.replace(value=np.zeros(n))
    assert (~Duplicates().rejects(forecast, same)).sum() == 1
    named = obs.replace(variable=np.where(np.arange(n) % 2, "zos", "thetao"))
    assert (~Duplicates().rejects(forecast, named)).sum() == 2


def test_duplicates_in_a_sector_are_found_across_its_seam():
    obs = table([0.0, 0.0], [39.999, 0.001], [0.0, 0.0], [0.1, 0.2])
    assert Duplicates().rejects(ensemble(plain(period=40.0), 2), obs).tolist() == [False, True]
    assert not Duplicates().rejects(ensemble(plain(), 2), obs).any()


@pytest.mark.parametrize("noise", [None, Noise(1)])
def test_thinning_keeps_one_in_each_box(noise):
    layout = plain()
    obs = scattered(layout, 3000, variable=np.random.default_rng(0).choice(["zos", "thetao"], 3000))
    out = Thin((1.0, 2.0), noise=noise).rejects(ensemble(layout, 2), obs)
    box = [*zip(obs.variable, np.floor(obs.lat).tolist(), np.floor(obs.lon / 2).tolist(), strict=True)]
    kept = [b for b, gone in zip(box, out, strict=True) if not gone]
    assert len(kept) == len(set(kept)) and set(kept) == set(box)
    if noise is None:
        away = (obs.lat % 1 - 0.5) ** 2 + (obs.lon / 2 % 1 - 0.5) ** 2
        assert all(away[i] == min(away[j] for j in range(3000) if box[j] == box[i]) for i in np.flatnonzero(~out)[:50])
        assert not np.array_equal(out, Thin((1.0, 2.0), noise=Noise(1)).rejects(ensemble(layout, 2), obs))


def test_thinning_to_cells_keeps_the_nearest_of_each_cell_and_level():
    layout = plain()
    obs = scattered(layout, 4000, variable="thetao", depth=np.random.default_rng(0).uniform(0, 150, 4000))
    out = Thin().rejects(ensemble(layout, 2), obs)
    cell = [*zip(obs.lat.round(6) // 1, obs.lon // 1, obs.depth > 55, strict=True)]
    kept = [c for c, gone in zip(cell, out, strict=True) if not gone]
    assert len(kept) == len(set(kept)) and set(kept) == set(cell)


def test_settings_that_make_no_sense_are_refused():
    for make in (
        lambda: Gross(0), lambda: Gross(inflation=-1), lambda: Range({"so": (2, 1)}), lambda: Range(tolerance=-1),
        lambda: Buddy(0), lambda: Buddy(1e5, most=1), lambda: Buddy(1e5, quorum=1.0), lambda: Duplicates(0),
        lambda: Thin(0.0), lambda: Thin(1.0, depth=-1), lambda: Quality(softening=0.0),
        lambda: Debiased(("a",), ("b",), 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="wanted"):
            make()
