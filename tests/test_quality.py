"""Quality control: planted errors are found, good observations stay, neighbours decide, biases are learned."""

from __future__ import annotations

from dataclasses import dataclass

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
from small import random_state, small_layout

from polynya.da import ETKF, ObservationError, Observations, innovation, operator_for, pooled
from polynya.da.bias import Debiased
from polynya.da.localise import gaspari_cohn, unit_vectors
from polynya.da.neighbours import Buddy, Duplicates, Thin
from polynya.da.observations import Derived, View
from polynya.da.quality import Checked, Excluded, Gross, Located, Quality, Range, adapted_errors
from polynya.da.verification import order_of, rows_of_types
from polynya.emulators import Field, Layout, Noise, State

DAY = cftime.DatetimeNoLeap(2000, 1, 6)


def plain(ny=20, nx=40, period=None):
    """A region of one degree cells around the equator, sea level and temperature, all wet."""
    lat, lon = np.arange(ny) - ny / 2 + 0.5, 0.5 + np.arange(nx)
    coords = {"lat": ("lat", lat), "lon": ("lon", lon), "areacello": (("lat", "lon"), np.ones((ny, nx)))}
    coords |= {"wetmask": (("lev", "lat", "lon"), np.ones((2, ny, nx), bool))}
    coords |= {"lev": ("lev", [10.0, 100.0]), "dz": ("lev", [20.0, 160.0])}
    grid = xr.Dataset(coords=coords, attrs={"zonal_period": period} if period else {})
    return Layout((Field("thetao", 2), Field("zos")), grid)


def ensemble(layout, members=20, seed=0):
    """Members whose first is drawn as the truth is: one smooth field each."""
    g = torch.Generator().manual_seed(seed)
    lat, lon = (torch.tensor(a) for a in layout.position(layout.field("zos")))
    data = torch.zeros(members, *layout.shape, dtype=torch.float64)
    for k in range(1, 4):
        phase = 2 * torch.pi * torch.rand(members, layout.shape[0], 1, 1, generator=g)
        size = torch.randn(members, layout.shape[0], 1, 1, generator=g)
        data += size * torch.cos(k * (lon / 6 + lat / 9) + phase)
    return State(data, DAY, layout, tuple(range(members)))


def table(lat, lon, value, error=0.1, variable="zos", **columns):
    named = {"variable": variable, "lat": lat, "lon": lon, "value": value, "error": error}
    return Observations.from_table(DAY, named | columns)


def scattered(layout, count, seed=0, variable="zos", error=0.1, **columns):
    rng = np.random.default_rng(seed)
    lat, lon = layout.grid["lat"].values, layout.grid["lon"].values
    lat, lon = rng.uniform(lat[0], lat[-1], count), rng.uniform(lon[0], lon[-1], count)
    return table(lat, lon, np.zeros(count), error, variable, **columns)


def shuffle(obs, seed=0):
    order = np.random.default_rng(seed).permutation(len(obs))
    return order, obs.select(order)


CHECKS = [
    Located(),
    Range({"zos": (-1.5, 1.5)}),
    Gross(2.0),
    Buddy(6e5, threshold=2.0),
    Duplicates(4e4),
    Thin(2.0),
    Thin(),
    Thin(2.0, depth=30.0, noise=Noise(3)),
    Excluded(kinds=("a",)),
]


# --- checks and their counting -----------------------------------------------------------------------


def test_every_rejection_has_the_first_reason_and_is_counted():
    layout = small_layout()
    forecast = random_state(layout)
    rows = [  # variable, lat, lon, depth, value, reason
        ("thetao", -12.0, 40.0, 30.0, 0.0, ""),
        ("chl", -12.0, 40.0, 30.0, 0.0, "of unknown variables"),
        ("thetao", -12.0, 40.0, 30.0, 60.0, "out of range"),
        ("thetao", -12.0, 40.0, 30.0, 30.0, "gross"),
        ("thetao", -15.0, 135.0, 30.0, 99.0, "on land"),
        ("thetao", 70.0, 40.0, 30.0, 99.0, "outside the domain"),
        ("zos", 70.0, 40.0, 0.0, 99.0, "outside the domain"),
        ("thetao", -12.0, 40.0, 4000.0, 0.0, "below the bottom"),
        ("thetao", -25.0, 40.0, 210.0, 0.0, "below the bottom"),
        ("zos", -12.0, 40.0, 0.0, 0.1, ""),
    ]
    variable, lat, lon, depth, value, wanted = map(list, zip(*rows, strict=True))
    obs = table(np.array(lat), np.array(lon), np.array(value), 0.1, variable, depth=depth, kind="x")
    checked = Quality().check(forecast, obs)
    assert [("", *checked.reasons)[k] for k in checked.flags] == wanted
    assert checked.used.value.tolist() == [0.0, 0.1] and checked.observations is obs
    assert operator_for(layout, checked.used).apply(forecast).isfinite().all()
    assert repr(checked).startswith("10 observations: 2 used, 1 of unknown variables, 2 outside the domain, 1 on land")
    counts = checked.counts()
    assert counts["x", "zos"] == {"used": 1, "outside the domain": 1}
    assert sum(sum(c.values()) for c in counts.values()) == len(obs)
    assert pooled(counts, counts)["x", "thetao"]["gross"] == 2


def test_what_is_located_is_what_the_operator_accepts():
    layout, rng = small_layout(), np.random.default_rng(0)
    n = 500
    obs = table(
        rng.uniform(-40, 20, n), rng.uniform(0, 360, n), np.zeros(n), 0.1, rng.choice(["thetao", "uo", "zos"], n),
        depth=rng.uniform(0, 500, n),
    )  # fmt: skip
    flags = Located().rejects(random_state(layout), obs)
    kept = operator_for(layout, obs, drop=True).observations
    assert np.array_equal(obs.select(flags == 0).lat, kept.lat) and set(flags) == {0, 2, 3, 4}


def test_derived_quantities_need_all_their_inputs():
    speed = Derived("speed", ("uo", "vo"), lambda u, v: (u**2 + v**2) ** 0.5)
    heat = Derived("heat", ("thetao", "zos"), lambda t, z: t * z)
    obs = table([-12.0, -12.0], [40.0, 40.0], [0.0, 0.0], 0.1, ["speed", "heat"])
    assert Located().rejects(random_state(small_layout()), obs.replace(derived=(speed, heat))).tolist() == [1, 0]


def test_curvilinear_grids_tell_land_from_outside():
    lat, lon = np.meshgrid(np.linspace(60, 80, 8), np.linspace(0, 40, 9), indexing="ij")
    wet = np.ones((8, 9), bool)
    wet[:, :4] = False
    lat, lon = np.where(wet, lat, lat + 0.0), np.where(wet, lon, lon)
    lat[0, 0] = lon[0, 0] = np.nan  # masked, as some land is
    coords = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon), "wetmask": (("y", "x"), wet)}
    coords |= {"areacello": (("y", "x"), np.full((8, 9), (3e5) ** 2))}
    layout = Layout((Field("zos"),), xr.Dataset(coords=coords))
    state = State(torch.zeros(2, *layout.shape), DAY, layout, (0, 1))
    obs = table([70.0, 70.0, 0.0], [35.0, 1.0, 0.0], np.zeros(3))
    assert [("", *Located().reasons)[k] for k in Located().rejects(state, obs)] == ["", "on land", "outside the domain"]


def test_range_knows_the_table_of_names_and_tolerates_errors():
    state, obs = random_state(small_layout()), table([0, 0, 0], [40, 40, 40], [41.0, 39.0, -3.2], 0.5, "thetao")
    assert Range().rejects(state, obs).tolist() == [True, False, True]
    assert Range(tolerance=1.0).rejects(state, obs).tolist() == [True, False, False]
    assert Range({"so": (0, 45)}).rejects(state, obs).sum() == 0


def test_planted_gross_errors_are_caught_and_good_observations_stay():
    layout = plain()
    states = ensemble(layout, 41, seed=3)
    forecast, truth = states.sel(range(1, 41)), states.sel([0])
    obs = scattered(layout, 5000, seed=1)
    rng = np.random.default_rng(2)
    wrong = rng.random(5000) < 0.1
    exact = operator_for(layout, obs).apply(truth)[0].numpy()
    spread = innovation(forecast, obs).expected
    planted = wrong * rng.choice([-1, 1], 5000) * rng.uniform(6, 20, 5000) * spread
    obs = obs.replace(value=exact + 0.1 * rng.standard_normal(5000) + planted)
    seen = innovation(forecast, obs)
    six = wrong & (np.abs(seen.departure) > 6 * seen.expected)
    flags = Quality((Located(), Gross(4.0))).check(forecast, obs).flags > 0
    assert flags[six].mean() >= 0.95 and flags[~wrong].mean() < 0.01
    # Neighbours find also most of those that the spread hides.
    both = Quality((Located(), Gross(4.0), Buddy(6e5))).check(forecast, obs).flags > 0
    assert both[wrong].mean() >= 0.99 and both[~wrong].mean() < 0.01


def test_inflation_widens_the_gross_check():
    forecast = ensemble(plain(), 10)
    obs = table([0.5], [10.5], [0.0])
    seen = innovation(forecast, obs)
    far = obs.replace(value=obs.value - seen.departure + 3 * seen.expected)
    assert Gross(2.9).rejects(forecast, far).all() and not Gross(2.9, inflation=1.1).rejects(forecast, far).any()


def test_a_failed_forecast_is_not_the_observations_fault():
    forecast = ensemble(plain(), 5)
    broken = forecast.replace(data=forecast.data * torch.nan)
    checked = Quality().check(broken, table([0.5], [10.5], [0.0]))
    assert len(checked.used) == 1
    with pytest.raises(ObservationError, match="forecast has failed"):
        ETKF().analysis(broken, checked.used)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: type(c).__name__)
def test_the_order_of_observations_does_not_matter(check):
    layout = plain()
    forecast = ensemble(layout, 6)
    rng = np.random.default_rng(0)
    obs = scattered(layout, 600, variable=rng.choice(["zos", "thetao"], 600), kind=rng.choice(["a", "b"], 600))
    obs = obs.replace(value=rng.standard_normal(600).round(1), error=rng.choice([0.1, 0.2], 600), lat=obs.lat.round(1))
    obs = obs.replace(lon=obs.lon.round(1))
    flags = np.asarray(check.rejects(forecast, obs))
    order, shuffled = shuffle(obs)
    assert np.array_equal(np.asarray(check.rejects(forecast, shuffled)), flags[order])
    assert 0 < (flags > 0).sum() < 600 or isinstance(check, Located)
    checked = Quality((Located(), check), softening=2.0).check(forecast, obs)
    assert np.array_equal(checked.used.lat, obs.lat[flags == 0])


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: type(c).__name__)
def test_nothing_and_one_alone_are_handled(check):
    forecast = ensemble(plain(), 3)
    none = table([], [], np.zeros(0))
    assert np.asarray(check.rejects(forecast, none)).shape == (0,)
    checked = Quality((check,), softening=2.0).check(forecast, none)
    assert len(checked.used) == 0 and repr(checked) == "0 observations: 0 used" and checked.counts() == {}
    one = table([0.5], [10.5], [0.0])
    assert not np.asarray(check.rejects(forecast, one)).any()


def test_nothing_left_leaves_the_forecast():
    forecast = ensemble(plain(), 3)
    checked = Quality().check(forecast, table([0.5, 60.0], [10.5, 0.5], [1e3, 0.0], variable=["zos", "zos"]))
    assert len(checked.used) == 0 and ETKF().analysis(forecast, checked.used) is forecast


def test_checks_of_ones_own_are_accepted():
    @dataclass(frozen=True)
    class Even:
        reasons = ("even", "more than one hundred")

        def rejects(self, forecast, observations):
            return np.where(observations.value > 100, 2, observations.value % 2 == 0)

    checked = Quality((Even(), Excluded(variables=("zos",)))).check(
        ensemble(plain(), 2), table(np.zeros(4), np.full(4, 5.0), [1.0, 2.0, 301.0, 3.0], variable=["zos"] * 3 + ["so"])
    )
    assert checked.flags.tolist() == [3, 1, 2, 0] and checked.reasons == (*Even.reasons, "excluded")


def test_a_view_stays_with_the_observations_it_is_of():
    forecast = ensemble(plain(), 4)
    shift = torch.arange(8.0, dtype=torch.float64).view(4, 2)
    obs = table([0.5, 0.5], [10.5, 12.5], [1e3, 0.0]).replace(view=View(members=forecast.members, shift=shift))
    used = Quality((Located(), Gross())).check(forecast, obs).used
    assert len(used) == 1 and used.view is not None and torch.equal(used.view.shift, shift[:, 1:])


# --- softening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1.0, 2.0])
def test_softened_observations_move_the_analysis_by_k_spreads_at_most(K):
    layout = plain()
    forecast = ensemble(layout, 12)
    for far in (0.1, 1.0, 5.0, 1e3):
        obs = table([0.5], [10.5], [0.0], 0.3)
        seen = innovation(forecast, obs)
        obs = obs.replace(value=obs.value - seen.departure + far)
        checked = Quality((), softening=K).check(forecast, obs)
        s, r, error = seen.spread[0], 0.3, checked.used.error[0]
        assert np.isclose(error**2, np.sqrt((s**2 + r**2) ** 2 + (s * far / K) ** 2) - s**2)  # the paper's form
        moved = innovation(ETKF().analysis(forecast, checked.used), obs).departure
        assert abs(far - moved[0]) < K * s * (1 + 1e-9)
        assert checked.softened[0] == (error > 1.1 * r) and (far < 1 or checked.softened[0])
    assert abs(far - moved[0]) > 0.99 * K * s
    assert repr(checked) == "1 observations: 1 used (1 softened)" and checked.counts()["", "zos"]["softened"] == 1


def test_small_departures_keep_their_errors_and_nothing_cancels():
    forecast = ensemble(plain(), 12)
    obs = table([0.5, 4.5], [10.5, 20.5], [0.0, 0.0], [1e-9, 0.3])
    seen = innovation(forecast, obs)
    exact = obs.replace(value=obs.value - seen.departure)
    assert np.allclose(adapted_errors(innovation(forecast, exact)), obs.error, rtol=1e-6)
    single = innovation(forecast.sel([0]), obs)
    assert np.allclose(adapted_errors(single), obs.error, rtol=1e-12)  # no spread, nothing to limit


# --- neighbours --------------------------------------------------------------------------------------


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


# --- bias --------------------------------------------------------------------------------------------


def biased(seed, count=200):
    """Observations of a truth of 0 by an anchor and by an instrument that reads 0.5 too much; a background near 0."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(["anchor", "drifting"], count)
    value = 0.1 * rng.standard_normal(2 * count) + np.where(kind == "drifting", 0.5, 0.0)
    layout = plain()
    obs = scattered(layout, 2 * count, seed).replace(value=value, kind=kind)
    return State(torch.zeros(1, *layout.shape), DAY, layout, (0,)), obs


def test_a_bias_is_learned_and_the_anchor_is_left_alone():
    debiased = Debiased(("drifting",), ("zos", "thetao"))
    carried = debiased.initial
    raw = []
    for k in range(8):
        state, obs = biased(k)
        raw.append(obs.value[obs.kind == "drifting"])
        corrected = debiased.correct(obs, carried)
        assert np.array_equal(corrected.value[obs.kind == "anchor"], obs.value[obs.kind == "anchor"])
        carried = debiased.step(innovation(state, corrected), carried)
    weight, bias = carried["drifting", "zos"]
    assert weight == 1600 and np.isclose(bias, np.mean(raw)) and abs(bias - 0.5) < 0.01  # the mean of all
    assert carried["drifting", "thetao"] == (0.0, 0.0) and set(carried) == set(debiased.types)
    assert abs(debiased.correct(biased(99)[1], carried).value[200:].mean()) < 0.03


def test_a_bias_with_memory_follows_and_a_prior_holds_back():
    debiased = Debiased(("drifting",), ("zos",), memory=3.0)
    carried, state = {("drifting", "zos"): (1e4, 5.0)}, biased(0)[0]
    for k in range(60):
        carried = debiased.step(innovation(state, debiased.correct(biased(k)[1], carried)), carried)
    weight, bias = carried["drifting", "zos"]
    assert abs(bias - 0.5) < 0.02 and np.isclose(weight, 600, rtol=1e-3)
    careful = Debiased(("drifting",), ("zos",), prior=200.0)
    obs = biased(0)[1]
    after = careful.step(innovation(state, obs), careful.initial)["drifting", "zos"]
    assert np.isclose(after[1], obs.value[200:].sum() / 400)


def test_what_a_bias_carries_can_be_stored():
    debiased = Debiased(("a", "b"), ("zos", "so"))
    carried = {t: (float(k), -0.1 * k) for k, t in enumerate(debiased.types)}
    flat = debiased.flat(carried)
    assert flat.dtype == torch.float64 and flat.shape == (8,) and debiased.carried(flat) == carried
    with pytest.raises(ValueError, match="wanted 8 numbers"):
        debiased.carried(flat[:-1])


# --- what checks share -------------------------------------------------------------------------------


def test_rows_of_types_and_the_order_of_observations():
    obs = table(
        np.zeros(5), np.arange(5.0), np.arange(5.0), variable=["zos", "so", "zos", "so", "so"], kind=list("bbaab")
    )
    assert {k: v.tolist() for k, v in rows_of_types(obs).items()} == {
        ("a", "so"): [3], ("a", "zos"): [2], ("b", "so"): [1, 4], ("b", "zos"): [0]
    }  # fmt: skip
    _, shuffled = shuffle(obs)
    assert np.array_equal(shuffled.select(order_of(shuffled)).lon, obs.select(order_of(obs)).lon)


def test_settings_can_be_hashed_and_written_down():
    quality = Quality((Located(), Range({"so": (0, 45)}), Buddy(3e5), Thin(1.0, noise=Noise(1))), softening=2.0)
    assert hash(quality) == hash(eval(repr(quality))) and len(repr(Quality())) < 200
    assert quality == eval(repr(quality))


def test_checked_can_be_made_by_hand():
    obs = table([0.5], [10.5], [0.0])
    assert repr(Checked(obs, np.zeros(1, np.int64), (), obs.error)) == "1 observations: 1 used"
