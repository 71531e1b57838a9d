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
