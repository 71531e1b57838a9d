"""Observing networks: what truth, offset and error make of an observation, wrappers, times, and what drifts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
from small import START, random_state, small_layout

from polynya.da import (
    ObservationError,
    Observations,
    Profiles,
    RandomPoints,
    Repeated,
    SurfaceField,
    great_circle,
    observe,
    observe_state,
    operator_for,
)
from polynya.da.correlation import correlation
from polynya.da.faults import Biased, Faulty, Representative, Spread, unresolved
from polynya.da.instruments import Buoys, Floats, Moorings
from polynya.da.places import Instrument, blank
from polynya.da.satellites import Clouds, LinearError, ThinIceError
from polynya.emulators import Noise, State

torch.set_num_threads(1)
DAY = timedelta(days=1)
LAYOUT = small_layout()
COLUMNS = ("variable", "kind", "lat", "lon", "depth", "value", "error", "offset", "group", "length", "height")
POINTS = RandomPoints("zos", 0.1, count=400)


def truth_at(day, layout=LAYOUT, seed=0, slope=0.0):
    """A random state that grows linearly with the days."""
    state = random_state(layout, (0,), seed).to(torch.float64)
    return state.replace(data=state.data * (1 + slope * day), time=START + day * DAY)


def same(a: Observations, b: Observations, *but: str) -> bool:
    return a.time == b.time and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in COLUMNS if n not in but)


def exact(truth: State, obs: Observations) -> np.ndarray:
    return operator_for(truth.layout, obs).apply(truth)[0].numpy()


@dataclass(frozen=True)
class Off:
    """An instrument whose own offset is its number."""

    def places(self, layout, time, noise):
        obs = blank(time, "zos", np.full(3, -10.0), np.full(3, 60.0), np.zeros(3), 0.1, "")
        return obs.replace(value=np.arange(3.0))


# --- what is read --------------------------------------------------------------------------------


def test_an_instruments_own_offset_is_added_to_truth_and_error():
    truth = truth_at(0)
    seen = observe_state(truth, Off(), Noise(1))
    perfect = blank(truth.time, "zos", seen.lat, seen.lon, seen.depth, 0.1, "")
    error = seen.value - exact(truth, perfect) - np.arange(3.0)
    assert (np.abs(error) < 0.5).all() and error.std() > 0


def test_what_a_perfect_instrument_reads_is_as_documented():
    truth, network = truth_at(0), (POINTS, SurfaceField("thetao", 0.4))
    seen, own = observe_state(truth, network, Noise(1)), Noise(1).stream("observe/1")
    places = network[1].places(LAYOUT, START, own)
    eta = own.stream("error").normal((0,), START, (len(places),), dtype=torch.float64)[0].numpy()
    assert np.array_equal(seen.value[400:], exact(truth, places) + 0.4 * eta)


def test_wrappers_leave_what_the_wrapped_one_draws():
    truth = truth_at(0)
    plain = observe_state(truth, POINTS, Noise(2))
    for wrapped in (Biased(POINTS, 0.0), Faulty(POINTS, 0.0), Representative(POINTS, 0.0), Clouds(POINTS, cover=0.0)):
        assert same(observe_state(truth, wrapped, Noise(2)), plain), wrapped
    spread = Spread(POINTS, DAY).places(LAYOUT, START, Noise(2))
    assert same(spread, POINTS.places(LAYOUT, START, Noise(2)), "offset")


def test_bias_by_variable():
    truth, profiles = truth_at(0), Profiles(20, {"thetao": 0.1})
    plain = observe_state(truth, (profiles, POINTS), Noise(2))
    biased = observe_state(truth, (Biased(profiles, {"thetao": 0.5, "so": 9.0}), Biased(POINTS, -1.0)), Noise(2))
    off = biased.value - plain.value
    np.testing.assert_allclose(off, np.where(plain.variable == "thetao", 0.5, -1.0), atol=1e-12)
    assert np.array_equal(biased.error, plain.error)


def test_a_fraction_of_the_observations_is_grossly_wrong():
    truth, points = truth_at(0), RandomPoints("zos", 0.1, count=20000)
    plain = observe_state(truth, points, Noise(3))
    faulty = observe_state(truth, Faulty(points, 0.05, 20.0), Noise(3))
    off = (faulty.value - plain.value)[faulty.value != plain.value] / 0.1
    assert abs(len(off) / 20000 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 20000)
    assert abs(off.std() / 20 - 1) < 4 / np.sqrt(2 * len(off)) and abs(off.mean()) < 80 / np.sqrt(len(off))
    twice = observe_state(truth, Faulty(Faulty(points, 0.05), 0.05), Noise(3))
    assert 0.09 < (twice.value != plain.value).mean() < 0.105, "not the same ones again"
    assert np.array_equal(faulty.error, plain.error), "nobody is told"


def test_errors_that_depend_on_the_truth():
    @dataclass(frozen=True)
    class Thickness(RandomPoints):
        def errors(self, places, exact):
            return LinearError(0.1, 0.5, least=0.2)(exact)

    truth = truth_at(0)
    seen = observe_state(truth, Thickness("zos", 1.0, count=20000), Noise(4))
    x = exact(truth, seen)
    assert x.min() >= 0.2 and 0.2 < len(seen) / 20000 < 0.6
    np.testing.assert_allclose(seen.error, 0.1 + 0.5 * x)
    eta = (seen.value - x) / seen.error
    assert abs(eta.std() - 1) < 4 / np.sqrt(2 * len(eta)) and abs(eta.mean()) < 4 / np.sqrt(len(eta))
    biased = observe_state(truth, Biased(Thickness("zos", 1.0, count=20000), 0.3), Noise(4))
    np.testing.assert_allclose(biased.value, seen.value + 0.3)


def test_error_models():
    h = np.array([0.0, 0.4, 1.0, 1.2])
    np.testing.assert_allclose(ThinIceError(0.05, 0.4)(h), [np.inf, 0.05 * np.e, 0.05 * np.exp(2.5), np.inf])
    np.testing.assert_allclose(LinearError(0.1, 0.2)(np.array([-1.0, 2.0])), [0.3, 0.5])


def test_drawn_errors_have_the_correlation_that_is_told():
    mooring = Moorings((-10.0,), (60.0,), {"thetao": 0.3}, height=100.0)
    truth = truth_at(0)
    states = [truth.replace(time=START + k * DAY) for k in range(1000)]
    seen = list(observe(states, mooring, Noise(5), skip_first=False))
    error = np.stack([o.value for o in seen]) - exact(states[0], seen[0])
    C = np.exp(-np.abs(seen[0].depth[:, None] - seen[0].depth) / 100.0)
    np.testing.assert_allclose(correlation(seen[0]), C)
    np.testing.assert_allclose(np.cov(error.T) / 0.09, C, atol=4 * np.sqrt(2 / 1000))


def test_an_instruments_draws_are_its_own():
    truth, network = truth_at(0), (POINTS, Clouds(SurfaceField(), 0.3), Floats(20, {"thetao": 0.1}))
    together = observe_state(truth, network, Noise(6))
    assert same(together, observe_state(truth, network, Noise(6)))
    assert same(observe_state(truth, network[:2], Noise(6)), together.select(together.kind != "float"))
    assert not same(together, observe_state(truth, network, Noise(7)))


# --- when it is read -----------------------------------------------------------------------------


def test_times_are_spread_over_the_window_and_shared_by_groups():
    spread = Spread(POINTS, 5 * DAY).places(LAYOUT, START, Noise(1))
    assert spread.offset.max() < 0 and spread.offset.min() > -432000
    assert abs(spread.offset.mean() / -216000 - 1) < 0.12 and len(set(spread.offset)) == 400
    for instrument in (Profiles(30, {"thetao": 0.1, "zos": 0.1}), Floats(30, {"thetao": 0.1}, window=10 * DAY)):
        obs = Spread(instrument, 5 * DAY).places(LAYOUT, START, Noise(1))
        times = {(a, b): set() for a, b in zip(obs.lat, obs.lon, strict=True)}
        for a, b, offset in zip(obs.lat, obs.lon, obs.offset, strict=True):
            times[a, b].add(offset)
        assert all(len(t) == 1 for t in times.values()) and len(times) > 20


def test_an_instrument_looks_again_and_again_within_the_window():
    looks = Repeated(POINTS, 2 * DAY, 6 * DAY).places(LAYOUT, START, Noise(1))
    assert np.array_equal(np.unique(looks.offset), [-4 * 86400, -2 * 86400, 0]) and len(looks) == 3 * 400
    for back in (0, 2, 4):
        one = looks.select(looks.offset == -back * 86400)
        alone = POINTS.places(LAYOUT, START - back * DAY, Noise(1))
        assert np.array_equal(one.lat, alone.lat) and np.array_equal(one.lon, alone.lon)
    seen = next(observe([truth_at(k) for k in range(7)], Repeated(POINTS, 2 * DAY, 6 * DAY), Noise(1), every=6))
    np.testing.assert_allclose(seen.value, exact(truth_at(0), seen), atol=6 * POINTS.error)
    both = Repeated(Spread(POINTS, DAY), 2 * DAY, 6 * DAY).places(LAYOUT, START, Noise(1))
    assert both.offset.min() > -5 * 86400 and (np.abs(both.offset % -(2 * 86400)) <= 86400).all()


@pytest.mark.parametrize("every", [1, 3])
def test_a_truth_that_is_linear_in_time_is_seen_exactly_between_its_states(every):
    states = [truth_at(k, slope=0.1) for k in range(7)]
    network = (Spread(RandomPoints("zos", 1e-9, count=50), every * DAY), POINTS)
    seen = list(observe(states, network, Noise(1), every=every))
    assert [(o.time - START).days for o in seen] == list(range(every, 7, every))
    for o in seen:
        early = o.select(o.error < 1e-6)
        day = (o.time - START).days + early.offset / 86400
        np.testing.assert_allclose(early.value, exact(states[0], early) * (1 + 0.1 * day), atol=1e-7)
        assert len(set(np.floor(day))) == every
    assert same(next(observe(states[every:], network, Noise(1), every=every)), seen[1]), "continued"
    plain = observe_state(states[every], (POINTS, POINTS), Noise(1))
    assert np.array_equal(plain.value[400:], seen[0].value[50:]), "others are read at the time itself, to the bit"


def test_times_that_the_truth_does_not_reach_are_errors():
    states, spread = [truth_at(k) for k in range(4)], Spread(POINTS, 2 * DAY)
    with pytest.raises(ObservationError, match=r"up to 1 day, 23:.* there is only one state; give `observe`"):
        observe_state(states[0], spread, Noise(0))
    with pytest.raises(ObservationError, match="only one state"):
        next(observe(states, spread, Noise(0), skip_first=False))
    with pytest.raises(ObservationError, match=r"after 2000-01-01 .* of 400 are earlier, by up to .* Shorten"):
        next(observe(states, spread, Noise(0)))
    assert len(next(observe(states, spread, Noise(0), every=2))) == 400


# --- floats, buoys, moorings ---------------------------------------------------------------------


def surfacings(floats, days, step=1, layout=LAYOUT):
    """Of each profile: (number of the float, day, lat, lon); floats are told apart by their draws."""
    out = []
    for day in range(0, days, step):
        obs = floats.places(layout, START + day * DAY, Noise(3))
        top = obs.select(obs.depth == 10.0)
        number, _ = floats._surfaced(START + day * DAY, Noise(3))
        out += [(number[g - 1], day, a, b) for g, a, b in zip(top.group, top.lat, top.lon, strict=True)]
    return out


def test_each_float_surfaces_once_in_a_cycle():
    floats = Floats(50, {"thetao": 0.1}, window=DAY, range=0.0)
    seen = surfacings(floats, 30)
    for k in range(50):
        days = [d for n, d, *_ in seen if n == k]
        assert len(days) == 3 and set(np.diff(days)) == {10}, k
    assert {d % 10 for _, d, *_ in seen} == set(range(10)), "not all on one day"
    wide = Floats(50, {"thetao": 0.1}, window=20 * DAY, range=0.0).places(LAYOUT, START + 20 * DAY, Noise(3))
    assert (np.unique(wide.lat, return_counts=True)[1] >= 4).all() and wide.group.max() == 100
    five = [Floats(50, {"zos": 0.1}, range=0.0).places(LAYOUT, START + d * DAY, Noise(3)) for d in (0, 5)]
    assert sum(map(len, five)) == 50


def test_floats_roam_continuously_and_stay_a_fleet():
    floats = Floats(40, {"zos": 0.1}, every=DAY, window=DAY, range=1e5, memory=timedelta(days=30))
    days = [floats.places(LAYOUT, START + d * DAY, Noise(3)) for d in (0, 1, 2, 400)]
    a, b = ({g: i for i, g in enumerate(o.group)} for o in days[:2])
    step = [
        great_circle(days[0].lat[a[g]], days[0].lon[a[g]], days[1].lat[b[g]], days[1].lon[b[g]])
        for g in set(a) & set(b)
    ]
    expected = 1e5 / 30 * np.sqrt(np.pi / 2)  # mean of a Rayleigh distribution: m a day
    assert len(step) > 30 and max(step) < 5 * expected and 0.7 < np.mean(step) / expected < 1.4
    far = [
        great_circle(days[0].lat[a[g]], days[0].lon[a[g]], o.lat[i], o.lon[i])
        for o in days[3:]
        for i, g in enumerate(o.group)
        if g in a
    ]
    assert 1e5 < np.sqrt(np.mean(np.square(far))) < 3e5, "two displacements of 1e5 m in each direction: 2e5 m"
    fewer = Floats(10, {"zos": 0.1}, every=DAY, window=DAY, range=1e5, memory=timedelta(days=30))
    again = fewer.places(LAYOUT, START + DAY, Noise(3))
    assert np.array_equal(again.lat, days[1].lat[days[1].group <= 10])


def test_profiles_of_floats_end_at_the_sea_floor_and_say_when():
    floats = Floats(300, {"thetao": 0.1, "zos": 0.02}, timed=True, max_depth=100.0, range=5e5, height=50.0)
    obs = floats.places(LAYOUT, START, Noise(8))
    assert set(obs.depth) == {0.0, 10.0, 50.0} and (obs.height == 50.0).all()
    assert obs.offset.max() <= 0 and obs.offset.min() > -432000 and len(set(obs.offset)) > 100
    one = obs.select(obs.group == obs.group[0])
    assert len(set(one.lat)) == len(set(one.offset)) == 1 and set(one.variable) == {"thetao", "zos"}
    deep = Floats(300, {"thetao": 0.1}, range=5e5).places(LAYOUT, START, Noise(8))
    operator_for(LAYOUT, deep)  # all have water
    assert (deep.depth == 200).sum() < (deep.depth == 50).sum()


def test_moorings_and_buoys_stay_where_they_are_and_drift():
    mooring = Moorings((-10.0, -25.0), (60.0, 90.0), {"thetao": 0.1, "zos": 0.01})
    seen = mooring.places(LAYOUT, START, Noise(0))
    assert seen.depth.tolist() == [10, 50, 200, 10, 50, 0, 0], "the second stands where 50 m is the last level"
    assert seen.group.tolist() == [1, 1, 1, 2, 2, 1, 2]
    deep = Moorings((-10.0,), (60.0,), {"thetao": 0.1}, depths=(20.0, 900.0))
    assert deep.places(LAYOUT, START, Noise(0)).depth.tolist() == [20]
    assert same(seen, mooring.places(LAYOUT, START, Noise(1)))
    with pytest.raises(ObservationError, match=r"1 of 2 have no water .* \(-15.0, 135.0\)"):
        Moorings((-10.0, -15.0), (60.0, 135.0), {"thetao": 0.1}).places(LAYOUT, START, Noise(0))
    buoys = Buoys(50, {"uo": 0.01}, range=2e5)
    a, b = (buoys.places(LAYOUT, START + d * DAY, Noise(0)) for d in (0, 1))
    both = sorted(set(a.group) & set(b.group))
    moved = great_circle(*(x[np.searchsorted(o.group, both)] for o in (a, b) for x in (o.lat, o.lon)))
    assert len(both) > 35 and moved.min() > 0 and moved.max() < 1e5 and (a.depth == 0).all()


def test_wrong_settings_are_named():
    for make, message in (
        (lambda: Moorings((1.0,), (), {"zos": 0.1}), "as many lat as lon, got 1 and 0"),
        (lambda: Floats(3, {"zos": 0.1}, every=timedelta(0)), "Floats: wanted every > 0"),
        (lambda: Floats(3, {"zos": 0.1}, range=-1.0), "Floats: wanted range >= 0"),
        (lambda: Buoys(3, {"zos": 0.1}, memory=timedelta(0)), "Buoys: .* memory > 0"),
        (lambda: Spread(POINTS, timedelta(0)), "window > 0"),
        (lambda: Repeated(POINTS, 2 * DAY, DAY), "0 < interval <= window"),
        (lambda: Faulty(POINTS, 1.5), "0 <= fraction <= 1"),
        (lambda: unresolved(truth_at(0), 1), "width of 2 cells"),
        (lambda: unresolved([], 2), "got none"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for instrument in (Floats(3, {"so": 0.1}), Buoys(3, {"so": 0.1}), Moorings((0.0,), (0.0,), {"so": 0.1})):
        with pytest.raises(ObservationError, match="no field so to observe; the truth has thetao"):
            instrument.places(LAYOUT, START, Noise(0))


# --- representativeness --------------------------------------------------------------------------


def test_what_boxes_do_not_resolve():
    state = random_state(LAYOUT, (0, 1))
    ny, nx = LAYOUT.shape[1:]
    checks = torch.where((torch.arange(ny)[:, None] + torch.arange(nx)) % 2 == 0, 1.0, -1.0)
    wet = LAYOUT.mask
    std = unresolved(state.replace(data=((5 + 0.3 * checks) * wet).expand(2, -1, -1, -1)), 2)["thetao"][0, 0]
    assert torch.allclose(std[4:], torch.full((), 0.3, dtype=torch.float64), atol=1e-3), (
        "rows differ in area, by little"
    )
    assert not std[~wet[0]].any()
    assert unresolved(state.replace(data=3.0 * wet.expand(2, -1, -1, -1)), 3).data.abs().max() < 1e-12
    several = unresolved([state.sel([0]), state.sel([1])], 5)
    both = unresolved(state, 5)
    assert torch.allclose(several.data, both.data) and both.members == (0,) and both.layout is LAYOUT
    area = torch.as_tensor(LAYOUT.grid["areacello"].values)[5:8, 10:12]
    box = state["zos"][:, 0, 5:8, 10:12].double()
    mean = (box * area).sum((-2, -1), keepdim=True) / area.sum()
    wanted = (((box - mean) ** 2 * area).sum((-2, -1)) / area.sum()).mean().sqrt()
    assert torch.allclose(both["zos"][0, 0, 5:8, 10:12], wanted), "a box cut by the edge"


def test_representativeness_is_told_and_not_drawn():
    truth = truth_at(0)
    plain = observe_state(truth, (POINTS, Profiles(9, {"thetao": 0.2})), Noise(1))
    for error, zos, thetao in ((0.3, 0.3, 0.3), ({"zos": 0.4}, 0.4, 0.0)):
        network = (Representative(POINTS, error), Representative(Profiles(9, {"thetao": 0.2}), error))
        told = observe_state(truth, network, Noise(1))
        assert same(told, plain, "error")
        np.testing.assert_allclose(told.error, np.hypot(plain.error, np.where(told.variable == "zos", zos, thetao)))
    maps = unresolved(truth, 3)
    told = observe_state(truth, Representative(POINTS, maps), Noise(1))
    np.testing.assert_allclose(told.error, np.hypot(0.1, exact(maps, told)))
    with pytest.raises(ObservationError, match="one member, got"):
        observe_state(truth, Representative(POINTS, random_state(LAYOUT)), Noise(1))


def test_instruments_are_instruments():
    kinds: list[Instrument] = [POINTS, Spread(POINTS), Floats(1, {"zos": 1.0}), Buoys(1, {"zos": 1.0})]
    assert all(isinstance(k.places(LAYOUT, cftime.DatetimeNoLeap(1, 1, 1), Noise(0)), Observations) for k in kinds)
