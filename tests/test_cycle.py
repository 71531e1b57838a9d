"""Cycling a toy emulator: order of states, restarts to the bit, perfect twins, skill, innovations."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from polynya.da import (
    ETKF,
    LETKF,
    Analysis,
    ObservationError,
    Observations,
    RandomPoints,
    SurfaceField,
    cycle,
    innovation,
    observe,
    observe_state,
    operator_for,
    pooled,
)
from polynya.emulators import Emulator, Field, Layout, Noise, State
from polynya.ensembles import record, trajectory

torch.set_num_threads(1)
START = cftime.DatetimeNoLeap(2000, 1, 1)
NX = 24


def ring(slots=(0,)):
    """One latitude circle of a sector of 24 degrees, sea level only."""
    coords = {"lat": ("lat", [-50.0]), "lon": ("lon", np.arange(NX) + 0.5)}
    coords |= {"areacello": (("lat", "lon"), np.ones((1, NX))), "wetmask": (("lat", "lon"), np.ones((1, NX), bool))}
    return Layout((Field("zos"),), xr.Dataset(coords=coords, attrs={"zonal_period": 24.0}), slots, timedelta(days=1))


@dataclass(frozen=True)
class Advection:
    """One cell to the east per day, with smoothing and red noise of its own."""

    layout: Layout = field(default_factory=ring)
    noise_amplitude: float = 0.0
    dt: timedelta = timedelta(days=1)
    forcing_layout: None = None

    def step(self, state, forcing, noise):
        x = state.data
        moved = 0.98 * x.roll(1, -1) + 0.01 * (x + x.roll(2, -1))
        drawn = noise.stream("model").normal(state.members, state.time, self.layout.shape, dtype=x.dtype)
        data = (moved + self.noise_amplitude * drawn) * self.layout.mask
        return state.replace(data=data, time=state.time + self.dt)


def smooth(seed, members):
    """Random waves of unit variance, (member, 1, 1, x)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.arange(NX) * 2 * torch.pi / NX
    waves = torch.stack([f(k * x) for k in range(1, 5) for f in (torch.cos, torch.sin)]).double()
    data = torch.randn(len(members), 8, generator=g, dtype=torch.float64) @ waves / 2
    layout = ring()
    return State(data[:, None, None] * layout.mask, START, layout, tuple(members))


TRUTH, ENSEMBLE = smooth(1, (0,)), smooth(2, range(12))
NETWORK = SurfaceField("zos", 0.1, stride=4)
EMULATOR = Advection(noise_amplitude=0.02)
METHOD = LETKF(5e5, inflation=1.05)


def truth(emulator=EMULATOR, first=TRUTH):
    return trajectory(emulator, first, None, Noise(100))


def observations(every=1, steps=6, first=TRUTH):
    return observe(islice(truth(first=first), steps + 1), NETWORK, Noise(3), every=every)


def test_the_toy_and_the_filters_fit_the_protocols():
    assert isinstance(EMULATOR, Emulator) and isinstance(METHOD, Analysis) and isinstance(ETKF(), Analysis)


def test_a_cycle_is_a_loop_of_forecasts_and_analyses():
    states = list(cycle(EMULATOR, ENSEMBLE, None, observations(every=3), METHOD, Noise(5)))
    assert [(s.time - START).days for s in states] == list(range(7))
    assert states[0] is ENSEMBLE
    seen, state = {o.time: o for o in observations(every=3)}, ENSEMBLE
    for got in states[1:]:
        state = EMULATOR.step(state, None, Noise(5))
        if state.time in seen:
            state = METHOD.analysis(state, seen[state.time])
        assert torch.equal(state.data, got.data) and got.members == ENSEMBLE.members
    assert len(seen) == 2
    forecast_only = list(cycle(EMULATOR, ENSEMBLE, None, [], METHOD))
    assert forecast_only == [ENSEMBLE]


def test_a_cycle_is_lazy():
    def endless():
        yield next(observations())
        raise AssertionError("asked for more than was needed")

    first, second = islice(cycle(EMULATOR, ENSEMBLE, None, endless(), METHOD), 2)
    assert (second.time - first.time).days == 1


def test_three_and_three_cycles_are_six_to_the_bit():
    whole = list(cycle(EMULATOR, ENSEMBLE, None, observations(), METHOD, Noise(5)))
    half = list(cycle(EMULATOR, ENSEMBLE, None, observations(steps=3), METHOD, Noise(5)))
    middle = list(islice(truth(), 4))[-1]  # the truth goes on, too
    rest = list(cycle(EMULATOR, half[-1], None, observations(steps=3, first=middle), METHOD, Noise(5)))
    assert len(half) == len(rest) == 4
    for a, b in zip(whole, half + rest[1:], strict=True):
        assert a.time == b.time and torch.equal(a.data, b.data)


def test_members_keep_their_numbers_and_their_noise():
    numbers = (40, 3, 17, 5)
    ensemble = ENSEMBLE.sel(range(4)).replace(members=numbers)
    last = list(cycle(EMULATOR, ensemble, None, observations(), ETKF(), Noise(5)))[-1]
    assert last.members == numbers
    order = [2, 0, 3, 1]
    shuffled = ensemble.sel([numbers[i] for i in order])
    other = list(cycle(EMULATOR, shuffled, None, observations(), ETKF(), Noise(5)))[-1]
    assert torch.allclose(other.sel(numbers).data, last.data, atol=1e-12)


@pytest.mark.parametrize("method", [ETKF(), METHOD], ids=["ETKF", "LETKF"])
def test_a_perfect_twin_has_nothing_to_correct(method):
    exact, anomalies = Advection(), smooth(7, range(6)).data
    twins = State(TRUTH.data + torch.cat([anomalies, -anomalies]), START, ring(), tuple(range(12)))
    perfect = []
    for state in islice(truth(exact), 1, 6):
        obs = observe_state(state, NETWORK, Noise(3))
        perfect.append(obs.replace(value=operator_for(state.layout, obs).apply(state)[0].numpy()))
    departures = []
    states = cycle(
        exact,
        twins,
        None,
        perfect,
        method,
        monitor=lambda c: departures.append(innovation(c.background, c.checked.used).departure),
    )
    for analysis, wanted in zip(states, truth(exact), strict=False):
        assert torch.allclose(analysis.data.mean(0), wanted.data[0], atol=1e-12)
    assert len(departures) == 5 and np.abs(departures).max() < 1e-12


def test_assimilation_beats_the_free_run_and_knows_its_error():
    log = []
    analyses = cycle(
        EMULATOR,
        ENSEMBLE,
        None,
        observations(steps=60),
        METHOD,
        Noise(5),
        monitor=lambda c: log.append(innovation(c.background, c.checked.used)),
    )
    pairs = list(zip(analyses, trajectory(EMULATOR, ENSEMBLE, None, Noise(5)), truth(), strict=False))[20:]

    def rmse(k):
        return np.mean([float((p[k].data.mean(0) - p[2].data[0]).pow(2).mean().sqrt()) for p in pairs])

    assert rmse(0) < 0.3 * rmse(1) and rmse(0) < 0.1  # better than the observations, too
    total = pooled(*(i.statistics() for i in log[20:]))[("surface", "zos")]
    assert abs(total.mean) < 0.02 and 0.8 < total.rms / total.expected < 1.2


def test_innovation_statistics_are_sums():
    obs = Observations.concat(
        [observe_state(TRUTH, NETWORK, Noise(1)), observe_state(TRUTH, RandomPoints("zos", 0.2, count=9), Noise(2))]
    )
    one = innovation(ENSEMBLE, obs)
    hx = operator_for(ENSEMBLE.layout, obs).apply(ENSEMBLE).numpy()
    np.testing.assert_allclose(one.departure, obs.value - hx.mean(0), atol=1e-12)
    np.testing.assert_allclose(one.expected**2, hx.var(0, ddof=1) + obs.error**2, atol=1e-12)
    parts = one.statistics()
    assert {k: s.count for k, s in parts.items()} == {("surface", "zos"): 6, ("zos", "zos"): 9}
    rows = obs.kind == "zos"
    assert np.isclose(parts["zos", "zos"].mean, one.departure[rows].mean())
    assert np.isclose(parts["zos", "zos"].rms, np.sqrt((one.departure[rows] ** 2).mean()))
    halves = [innovation(ENSEMBLE, obs.select(np.arange(15) % 2 == k)).statistics() for k in (0, 1)]
    for key, both in pooled(*halves).items():
        assert both.count == parts[key].count and np.isclose(both.rms, parts[key].rms)
        assert np.isclose(both.expected, parts[key].expected)
    assert not innovation(TRUTH, obs).spread.any()


def test_a_cycle_can_be_recorded(tmp_path):
    states = cycle(EMULATOR, ENSEMBLE, None, observations(every=2), METHOD, Noise(5))
    dataset = record(states, tmp_path / "analyses.zarr")
    assert dataset["zos"].dims == ("member", "time", "lat", "lon") and dataset.sizes["time"] == 7
    last = list(cycle(EMULATOR, ENSEMBLE, None, observations(every=2), METHOD, Noise(5)))[-1]
    assert np.array_equal(dataset["zos"].values[:, -1], last.data[:, 0].numpy())


def test_observations_belong_to_the_newest_slot():
    layout = ring((-1, 1))
    data = torch.cat([ENSEMBLE.data, ENSEMBLE.data + 1.0 * layout.mask[:1]], 1)
    ensemble = State(data, START, layout, ENSEMBLE.members)

    class Still(Advection):
        def step(self, state, forcing, noise):
            return state.replace(time=state.time + self.dt)

    obs = observe_state(TRUTH.replace(time=START + timedelta(days=2)), NETWORK, Noise(1))
    first, second = cycle(Still(layout), ensemble, None, [obs], METHOD)
    assert second.time == START + timedelta(days=1) and not torch.equal(first.data, second.data)


def test_gradients_flow_through_cycles():
    start = ENSEMBLE.data.clone().requires_grad_()
    states = list(cycle(EMULATOR, ENSEMBLE.replace(data=start), None, observations(steps=3), ETKF(), Noise(5)))
    (gradient,) = torch.autograd.grad(states[-1].data.pow(2).sum(), start)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(days=-1), timedelta(hours=36)], ids=str)
def test_observations_between_steps_are_refused(ahead):
    obs = observe_state(TRUTH.replace(time=START + ahead), NETWORK, Noise(1))
    states = cycle(EMULATOR, ENSEMBLE, None, [obs], METHOD)
    assert next(states) is ENSEMBLE
    with pytest.raises(ObservationError, match=r"wanted a whole number >= 1 of emulator steps \(1 day"):
        next(states)


def test_two_observations_of_one_time_must_be_joined():
    obs = next(observations())
    with pytest.raises(ObservationError, match=r"Observations.concat"):
        list(cycle(EMULATOR, ENSEMBLE, None, [obs, obs], METHOD))
    list(cycle(EMULATOR, ENSEMBLE, None, [Observations.concat([obs, obs])], METHOD))


def test_calendars_must_agree():
    obs = next(observations()).replace(time=cftime.DatetimeJulian(2000, 1, 2))
    with pytest.raises(ObservationError, match="calendar noleap, got julian"):
        list(cycle(EMULATOR, ENSEMBLE, None, [obs], METHOD))
