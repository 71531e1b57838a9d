"""Forcing changed, surrogate years, noise with memory, and states that lag."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
from small import START, forcing_layout, random_state, small_layout

from polynya.emulators import Layout, Noise, Persistence, Source, SourceError, State, nature_ocean
from polynya.emulators.nature_forcing import Warming
from polynya.ensembles import (
    Box,
    Changed,
    Diffused,
    Lagged,
    NoisyForcing,
    Ramp,
    Remembered,
    SurrogateYears,
    White,
    lagged,
    perturb,
    rollout,
)

DAY = timedelta(days=1)


def stored(layout: Layout, count: int, start: cftime.datetime = START) -> Source:
    """A dataset of independent records, five days apart."""
    states = [random_state(layout, (0,), seed=k).replace(time=start + 5 * k * DAY) for k in range(count)]
    records = xr.concat([s.to_xarray().isel(member=0, drop=True) for s in states], "time", data_vars="minimal")
    return Source.open(records, layout)


@dataclass(frozen=True)
class Constant:
    """The number of days since START in every wet cell."""

    layout: Layout

    def at(self, time: cftime.datetime, members: tuple[int, ...] = (0,)) -> State:
        days = [(t - START) / DAY for t in self.layout.times(time)]
        each = torch.tensor(days).repeat_interleave(self.layout.shape[0] // len(days))[:, None, None]
        return State((each * self.layout.mask).float().repeat(len(members), 1, 1, 1), time, self.layout, members)


def test_scale_and_offset_change_what_they_name() -> None:
    forcing, time = Constant(forcing_layout()), START + 10 * DAY
    changed = Changed(forcing, scale={"tauuo": 1.5}, offset={"hfatm": 4.0, "tauuo": 1.0}).at(time, (3, 1))
    wet = forcing.layout.mask[0]
    assert changed.members == (3, 1) and (changed.data[:, ~forcing.layout.mask] == 0).all()
    assert (changed["tauuo"][:, 0, wet] == 16).all() and (changed["hfatm"][:, 0, wet] == 14).all()
    twice = Changed(Changed(forcing, offset={"hfatm": 1.0}), scale={"hfatm": 2.0}).at(time)
    assert (twice["hfatm"][:, 0, wet] == 22).all()
    assert (forcing.at(time)["hfatm"][:, 0, wet] == 10).all()


@pytest.mark.parametrize(("days", "once", "onward"), [(-3, 0, 0), (0, 0, 0), (5, 0.5, 0.5), (10, 1, 1), (30, 1, 3)])
def test_a_ramp_rises_and_stays_or_goes_on(days: int, once: float, onward: float) -> None:
    time, ends = START + days * DAY, (START, START + 10 * DAY)
    assert Ramp(*ends).at(time) == once and Ramp(*ends, onward=True).at(time) == onward
    assert Ramp(START, START).at(time) == (days >= 0)


def test_time_slots_have_their_own_weight() -> None:
    forcing = Constant(forcing_layout((-1, 0)))
    changed = Changed(forcing, scale={"hfatm": 0.0}, offset={"hfatm": 1.0}, when=Ramp(START, START + 10 * DAY))
    got = changed.at(START + 10 * DAY)
    wet = forcing.layout.mask[0]
    assert (got.data[0, 1, wet] == 5 + 0.5 * (-5 + 1)).all() and (got.data[0, 3, wet] == 1).all()


def test_boxes_end_at_their_edges_and_cross_greenwich() -> None:
    layout = forcing_layout()
    lat, lon = layout.position(layout.fields[0])
    inside = Box((-20.0, 0.0), (330.0, 60.0)).weights(layout, "hfatm").numpy()
    assert np.array_equal(inside == 1, (lat >= -20) & (lat <= 0) & ((lon >= 330) | (lon <= 60)))
    assert set(np.unique(inside)) == {0.0, 1.0}
    assert (Box().weights(layout, "hfatm") == 1).all()
    faded = Box((-20.0, 0.0), (330.0, 60.0), margin=60.0).weights(layout, "hfatm").numpy()
    row = int(np.flatnonzero(lat[:, 0] == -10)[0])
    assert faded[row, 2:6] == pytest.approx([1, 0.5, 0, 0]) and faded[row, 10] == pytest.approx(0.5)
    patch = Changed(Constant(layout), offset={"hfatm": 7.0}, where=Box((-20.0, 0.0), (330.0, 60.0))).at(START)
    assert torch.equal(patch["hfatm"][0, 0] != 0, torch.from_numpy(inside == 1) & layout.mask[0])


def test_a_ramped_offset_is_the_warming_of_the_nature_runs() -> None:
    ocean = nature_ocean.channel()
    calm, year = ocean.forcing(noise=Noise(2)), 365 * DAY
    warm = replace(calm, warming=Warming(rate=0.03, start=START))
    heat = {"hfatm": calm.heat_feedback * 0.03}
    early = ocean.layout.interval / 2  # the nature run takes the middle of its interval
    changed = Changed(calm, offset=heat, when=Ramp(START - early, START - early + year, onward=True))
    for k in (0, 7, 300):
        time = START + k * 5 * DAY
        assert torch.allclose(changed.at(time, (4,)).data, warm.at(time, (4,)).data, atol=2e-5)


def test_surrogate_years_are_other_years_under_the_dates_of_the_run() -> None:
    forcing = Constant(forcing_layout())
    got = SurrogateYears(forcing, {2010: 2001}).at(cftime.DatetimeNoLeap(2010, 2, 1), (5,))
    assert got.time == cftime.DatetimeNoLeap(2010, 2, 1) and got.members == (5,)
    assert torch.equal(got.data, forcing.at(cftime.DatetimeNoLeap(2001, 2, 1)).data)
    leap = SurrogateYears(forcing, 2001)
    assert leap.surrogate(cftime.DatetimeGregorian(2004, 2, 29)) == cftime.DatetimeGregorian(2001, 2, 28)
    with pytest.raises(ValueError, match="no surrogate for 2011 .*years has 2010"):
        SurrogateYears(forcing, {2010: 2001}).at(cftime.DatetimeNoLeap(2011, 2, 1))


def test_wrappers_pass_on_what_a_store_knows_of_its_dates(tmp_path) -> None:
    source = stored(forcing_layout(), 20)
    changed = Changed(NoisyForcing(source, {"tauuo": 0.1}, White(), Noise(0)), offset={"hfatm": 1.0})
    assert changed.shift(START, 10 * DAY) == source.shift(START, 10 * DAY)
    changed.require(START, 19, 5 * DAY)
    for other in (changed, SurrogateYears(source, 2000)):
        with pytest.raises(SourceError, match="20 steps|no record"):
            other.require(START, 20, 5 * DAY)
    layout = small_layout()
    emulator = Persistence(layout, 5 * DAY, forcing_layout())
    store = tmp_path / "run.zarr"
    with pytest.raises(SourceError):
        rollout(emulator, random_state(layout), changed, steps=30, store=store)
    assert not store.exists()
    run = rollout(emulator, random_state(layout), changed, steps=3, store=store, with_forcing=True)
    wanted = changed.at(START + 15 * DAY, (0, 1, 2))
    assert torch.equal(layout_data(run, wanted), wanted.data)


def layout_data(run: xr.Dataset, like: State) -> torch.Tensor:
    return like.layout.pack(run.isel(time=[-1]), like.time, like.members).data


def test_forcing_noise_belongs_to_member_and_date() -> None:
    layout, kind = forcing_layout((-1, 0)), Remembered(Diffused(2e6), 10 * DAY, 5 * DAY)
    noisy = NoisyForcing(Constant(layout), {"tauuo": 0.5}, kind, Noise(1))
    time = START + 40 * DAY
    many = noisy.at(time, tuple(range(1000)))
    added = many.data - Constant(layout).at(time, many.members).data
    wet = layout.mask[0]
    assert float(added[:, 2, wet].std(0).mean()) == pytest.approx(0.5, rel=0.02)
    assert (added[:, [1, 3]] == 0).all() and (added[:, ~layout.mask] == 0).all()
    alone = noisy.at(time, (17,))
    assert torch.equal(alone.data[0], many.data[17])
    older = noisy.at(time - 5 * DAY, (17,)).data - Constant(layout).at(time - 5 * DAY, (17,)).data
    assert torch.allclose(older[0, 2], alone.data[0, 0] - Constant(layout).at(time).data[0, 0], atol=1e-5)


def test_memory_is_that_of_an_autoregression() -> None:
    layout, many = forcing_layout().select(["hfatm"]), tuple(range(3000))
    kind = Remembered(White(), 10 * DAY, 5 * DAY)
    draws = [kind.draw(layout, many, START + k * 5 * DAY, Noise(4))[:, 0, 4, 4] for k in range(5)]
    assert float(draws[0].std()) == pytest.approx(1.0, abs=0.04)
    for k in range(1, 5):
        assert float(torch.stack([draws[0], draws[k]]).corrcoef()[0, 1]) == pytest.approx(np.exp(-k / 2), abs=0.05)
    again = Remembered(White(), 10 * DAY, 5 * DAY)  # no history: the same number, whatever was drawn before
    assert torch.equal(again.draw(layout, (77,), START + 15 * DAY, Noise(4))[0, 0, 4, 4], draws[3][77])
    assert torch.equal(again.draw(layout, (77,), START + 16 * DAY, Noise(4))[0, 0, 4, 4], draws[3][77])
    assert pickle.loads(pickle.dumps(kind)).memory == 10 * DAY
    other = kind.draw(layout, many, START, Noise(5))[:, 0, 4, 4]
    assert abs(float(torch.stack([draws[0], other]).corrcoef()[0, 1])) < 0.06


def test_bad_scenarios_are_refused() -> None:
    forcing = Constant(forcing_layout())
    with pytest.raises(ValueError, match="neither"):
        Changed(forcing)
    with pytest.raises(ValueError, match=r"Changed: no variable\(s\) hfds in the forcing; it has tauuo, hfatm"):
        Changed(forcing, offset={"hfds": 1.0}).at(START)
    with pytest.raises(ValueError, match=r"NoisyForcing: no variable\(s\) hfds"):
        NoisyForcing(forcing, {"hfds": 1.0}, White(), Noise(0)).at(START)
    with pytest.raises(ValueError, match="start <= stop"):
        Ramp(START, START - DAY)
    with pytest.raises(ValueError, match="start < stop"):
        Ramp(START, START, onward=True)
    with pytest.raises(ValueError, match="south to north"):
        Box((10.0, -10.0))
    with pytest.raises(ValueError, match=r"no cell lies within .*lat -30.0 to 5.0"):
        Box((50.0, 60.0)).weights(forcing.layout, "hfatm")
    with pytest.raises(ValueError, match="memory > 0"):
        Remembered(White(), timedelta(0))


# --- lagged states -------------------------------------------------------------------------------


def test_member_k_is_the_state_k_lags_before() -> None:
    layout = small_layout()
    source = stored(layout, 9)
    time = source.times[-1]
    ensemble = lagged(source, time, (3, 0), 10 * DAY)
    assert ensemble.time == time and ensemble.members == (3, 0)
    assert torch.equal(ensemble.data[0], source.state(time - 30 * DAY).data[0])
    assert torch.equal(ensemble.data[1], source.state(time).data[0])
    with pytest.raises(SourceError, match="no record"):
        lagged(source, time, 6, 10 * DAY)
    with pytest.raises(ValueError, match="at least one member and a lag that is not 0"):
        lagged(source, time, 0, DAY)


def test_lagged_anomalies_have_unit_variance_and_scale_to_amplitudes() -> None:
    layout = small_layout()
    source = stored(layout, 12)
    time, kind = source.times[-1], Lagged(source, 5 * DAY, 8)
    drawn = kind.draw(layout, range(8), time, Noise(0)).double()
    area = torch.from_numpy(layout.grid["areacello"].values) * layout.mask
    assert torch.allclose(drawn.mean(0), torch.zeros(layout.shape, dtype=torch.float64), atol=1e-6)
    mean_square = (drawn.square().mean(0) * area).sum((1, 2)) / area.sum((1, 2))
    assert torch.allclose(mean_square, torch.ones(layout.shape[0], dtype=torch.float64), atol=1e-5)
    states = lagged(source, time, 8, 5 * DAY).data
    raw = (states - states.mean(0))[:, 6]  # an anomaly of the record, up to a factor
    assert torch.allclose(drawn[:, 6].float(), raw * (drawn[2, 6, 5, 5] / raw[2, 5, 5]), atol=1e-4)
    ensemble = perturb(source.state(time), (5, 2), amplitude={"zos": 0.02}, noise=Noise(0), kind=kind)
    assert torch.allclose(ensemble.data[0, 6] - source.state(time).data[0, 6], 0.02 * drawn[5, 6].float(), atol=1e-6)
    newest = Lagged(source, 5 * DAY, 8, centred=False).draw(layout, (0, 1), time, Noise(0))
    assert (newest[0] == 0).all() and not (newest[1] == 0).all()
    with pytest.raises(ValueError, match=r"there are 8 lagged states, got members \[8\]"):
        kind.draw(layout, (1, 8), time, Noise(0))
    with pytest.raises(ValueError, match="count >= 2"):
        Lagged(source, 5 * DAY, 1)
