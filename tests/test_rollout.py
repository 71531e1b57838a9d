"""Rollouts and recordings: lazy, exact, resumable, honest about what is on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from small import START, forcing_layout, random_state, small_layout
from test_emulators import network_emulator
from test_source import flux_store, julian_years

from polynya.da import ObservationError, Observations, cycle
from polynya.emulators import (
    Draws,
    Field,
    Layout,
    LayoutError,
    Noise,
    Source,
    SourceError,
    State,
    layout_of,
    nature_ice,
    open_store,
)
from polynya.ensembles import StoreExistsError, hindcasts, record, rollout, states_of, trajectory, verifying
from polynya.ensembles.record import recorded


@dataclass(frozen=True)
class Wanderer:
    """A stochastic emulator for tests: half of yesterday, the forcing, and a member's own noise."""

    layout: Layout
    forcing_layout: Layout | None = None
    dt: timedelta = timedelta(days=5)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        drawn = noise.stream("wander").normal(state.members, state.time, self.layout.shape)
        push = 0.0 if forcing is None else forcing.data.mean(1, keepdim=True)
        data = (0.5 * state.data + drawn.to(state.data) + push) * self.layout.mask
        return state.replace(data=data, time=state.time + self.dt)


@dataclass(frozen=True)
class RandomForcing:
    layout: Layout

    def at(self, time: object, members: tuple[int, ...] = (0,)) -> State:
        data = Noise(11).normal((0,), time, self.layout.shape) * self.layout.mask  # type: ignore[arg-type]
        return State(data.expand(len(members), -1, -1, -1), time, self.layout, tuple(members))  # type: ignore[arg-type]


def equal(a: xr.Dataset, b: xr.Dataset) -> bool:
    return set(a.data_vars) == set(b.data_vars) and all(
        np.array_equal(a[v].values, b[v].values, equal_nan=True) for v in a.data_vars
    )


def test_a_trajectory_is_lazy_and_begins_at_the_beginning() -> None:
    layout = small_layout()
    steps = []

    class Counting(Wanderer):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            steps.append(state.time)
            return super().step(state, forcing, noise)

    run = trajectory(Counting(layout), random_state(layout), None, Noise(0))
    assert not steps
    first = next(run)
    assert first.time == START and not steps
    assert next(run).time == START + timedelta(days=5) and len(steps) == 1


def test_gradients_flow_through_a_trajectory() -> None:
    layout = small_layout()
    data = random_state(layout).data.requires_grad_()
    state = random_state(layout).replace(data=data)
    last = list(islice(trajectory(Wanderer(layout), state, None, Noise(0)), 4))[-1]
    last.data.sum().backward()
    assert data.grad is not None
    assert torch.allclose(data.grad, 0.125 * layout.mask.float().expand_as(data.grad))


def test_a_member_is_the_same_alone_and_in_any_batch(tmp_path: Path) -> None:
    layout = small_layout()
    many = rollout(
        Wanderer(layout), random_state(layout, (3, 5, 8)), steps=6, store=tmp_path / "m.zarr", noise=Noise(1)
    )
    alone = rollout(
        Wanderer(layout), random_state(layout, (3, 5, 8)).sel((5,)), steps=6, store=tmp_path / "a.zarr", noise=Noise(1)
    )
    assert equal(many.sel(member=[5]), alone)
    assert float(many.zos.std("member").mean()) > 0.1


@pytest.mark.parametrize("slots", [(0,), (-1, 0)])
def test_ten_steps_and_ten_more_are_twenty(tmp_path: Path, slots: tuple[int, ...]) -> None:
    emulator = network_emulator(slots, increments=False)
    forcing = RandomForcing(emulator.forcing_layout)
    start = random_state(emulator.layout, (0, 1))
    whole = rollout(emulator, start, forcing, steps=20, store=tmp_path / "whole.zarr")
    half = rollout(emulator, start, forcing, steps=10, store=tmp_path / "half.zarr")
    again = Source.open(half, emulator.layout).state()
    rest = rollout(emulator, again, forcing, steps=10, store=tmp_path / "rest.zarr")
    assert whole.sizes["time"] == 20 * len(slots) + len(slots)
    assert equal(whole.isel(time=slice(-len(slots), None)), rest.isel(time=slice(-len(slots), None)))
    continued = rollout(emulator, start, forcing, steps=20, store=tmp_path / "half.zarr", resume=True)
    assert equal(whole, continued)
    untouched = rollout(emulator, start, forcing, steps=20, store=tmp_path / "half.zarr", resume=True)
    assert equal(whole, untouched)


@dataclass(frozen=True, eq=False)
class Cut(Wanderer):
    """An emulator whose process is stopped at a date."""

    until: object = None

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        if state.time >= self.until:
            raise KeyboardInterrupt
        return super().step(state, forcing, noise)

    def __repr__(self) -> str:
        return repr(Wanderer(self.layout))


def test_a_stopped_run_says_so_and_resumes_in_the_same_bits(tmp_path: Path) -> None:
    layout = small_layout()
    store, start = tmp_path / "run.zarr", random_state(layout)
    whole = rollout(Wanderer(layout), start, steps=8, store=tmp_path / "whole.zarr", noise=Noise(2))
    with pytest.raises(KeyboardInterrupt):
        rollout(
            Cut(layout, until=START + timedelta(days=20)), start, steps=8, store=store, noise=Noise(2),
            restart_minutes=0,
        )  # fmt: skip
    assert len(recorded(store)) == 5
    # The worst moment: values of the next time are there, nothing says so.
    zarr.open_group(store)["zos"][:, 5] = 99.0
    with pytest.raises(SourceError, match="incomplete|cut short"):
        open_store(store)
    with pytest.raises(StoreExistsError, match="nothing was written"):
        rollout(Wanderer(layout), start, steps=8, store=store, noise=Noise(2))
    resumed = rollout(Wanderer(layout), start, steps=8, store=store, noise=Noise(2), resume=True)
    assert equal(resumed, whole)


def test_what_an_iterator_gave_before_it_failed_is_on_disk(tmp_path: Path) -> None:
    layout, store = small_layout(), tmp_path / "run.zarr"

    def failing() -> Iterator[State]:
        yield from islice(trajectory(Wanderer(layout), random_state(layout), None, Noise(2)), 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        record(failing(), store)
    assert len(recorded(store)) == 4
    with torch.no_grad():
        rest = islice(trajectory(Wanderer(layout), random_state(layout), None, Noise(2)), 6)
        again = record(rest, store, append=True)
    assert equal(again, rollout(Wanderer(layout), random_state(layout), steps=5, store=tmp_path / "w", noise=Noise(2)))


def test_a_float64_run_resumes_in_float64(tmp_path: Path) -> None:
    layout = small_layout()
    start = random_state(layout).to(torch.float64)
    whole = rollout(Wanderer(layout), start, steps=4, store=tmp_path / "w.zarr")
    rollout(Wanderer(layout), start, steps=2, store=tmp_path / "h.zarr")
    assert equal(rollout(Wanderer(layout), start, steps=4, store=tmp_path / "h.zarr", resume=True), whole)
    assert whole.zos.dtype == np.float64
    exact = Source.open(whole, layout).state(dtype=torch.float64)
    assert np.array_equal(exact["zos"][:, 0].numpy(), whole.zos.isel(time=-1).fillna(0.0).values)


def test_stores_are_complete_cf_and_say_how_they_were_made(tmp_path: Path) -> None:
    emulator = network_emulator()
    forcing = RandomForcing(emulator.forcing_layout)
    dataset = rollout(
        emulator, random_state(emulator.layout, (4, 6)), forcing, steps=2, store=tmp_path / "s.zarr", with_forcing=True
    )
    assert dataset.thetao.dims == ("member", "time", "lev", "lat", "lon")
    assert dataset.thetao.attrs["standard_name"] == "sea_water_potential_temperature"
    assert dataset.member.attrs["standard_name"] == "realization" and list(dataset.member) == [4, 6]
    assert dataset.attrs["Conventions"] == "CF-1.11" and dataset.attrs["status"] == "complete"
    assert {"areacello", "wetmask", "dz", "lev"} <= set(dataset.coords)
    assert set(dataset.data_vars) == {"thetao", "uo", "zos", "tauuo", "hfatm"}
    provenance = json.loads(dataset.attrs["provenance"])
    assert provenance["versions"]["torch"] == torch.__version__
    assert "Samudra" in provenance["emulator"] and "Noise" in provenance["noise"]
    arrays = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert arrays["thetao"].shards == (2, 64, 3, 8, 12), "of all members, and many records as they are small"
    assert "blosc" in str(arrays["thetao"].compressors).lower()
    assert zarr.open_group(tmp_path / "s.zarr").metadata.zarr_format == 3
    assert dataset.time.values[1] - dataset.time.values[0] == timedelta(days=5)
    plain = xr.open_zarr(tmp_path / "s.zarr", decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    assert plain.time.values[0] == START


def test_forcing_in_the_store_is_the_forcing_that_was_used(tmp_path: Path) -> None:
    emulator = network_emulator()
    forcing = RandomForcing(emulator.forcing_layout)
    start = random_state(emulator.layout)
    first = rollout(emulator, start, forcing, steps=3, store=tmp_path / "a.zarr", with_forcing=True)
    stored = Source.open(first, emulator.forcing_layout)
    again = rollout(emulator, start, stored, steps=3, store=tmp_path / "b.zarr")
    assert equal(first[["thetao", "uo", "zos"]], again)


def test_an_existing_store_is_never_touched_unasked(tmp_path: Path) -> None:
    layout = small_layout()
    store = tmp_path / "s.zarr"
    first = rollout(Wanderer(layout), random_state(layout), steps=1, store=store, noise=Noise(0)).load()
    with pytest.raises(StoreExistsError, match="s.zarr exists; nothing was written"):
        rollout(Wanderer(layout), random_state(layout), steps=2, store=store, noise=Noise(0))
    assert equal(open_store(store), first)
    second = rollout(Wanderer(layout), random_state(layout), steps=2, store=store, noise=Noise(0), overwrite=True)
    assert second.sizes["time"] == 3
    with pytest.raises(ValueError, match="holds members"):
        rollout(Wanderer(layout), random_state(layout, (0,)), steps=4, store=store, resume=True)
    with pytest.raises(ValueError, match="not part of a run of 1 steps"):
        rollout(Wanderer(layout), random_state(layout), steps=1, store=store, resume=True)


def test_forcing_that_ends_too_early_is_found_before_anything_is_written(tmp_path: Path) -> None:
    emulator = network_emulator()
    forcing = RandomForcing(emulator.forcing_layout)
    dataset = xr.concat([forcing.at(START + k * timedelta(days=5)).to_xarray() for k in range(4)], "time")
    source = Source.open(dataset.isel(member=0, drop=True), emulator.forcing_layout)
    with pytest.raises(SourceError, match="it covers 2000-01-01.* to 2000-01-16.*choose a time within"):
        rollout(emulator, random_state(emulator.layout), source, steps=5, store=tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
    assert (
        rollout(emulator, random_state(emulator.layout), source, steps=4, store=tmp_path / "s.zarr").sizes["time"] == 5
    )


def test_states_of_a_store_are_the_states_that_were_recorded(tmp_path: Path) -> None:
    layout = small_layout((-1, 0))
    emulator = replace(network_emulator((-1, 0), False))
    dataset = rollout(
        emulator, random_state(layout), RandomForcing(forcing_layout((-1, 0))), steps=3, store=tmp_path / "s.zarr"
    )
    with torch.no_grad():
        run = list(islice(trajectory(emulator, random_state(layout), RandomForcing(forcing_layout((-1, 0)))), 4))
    again = list(states_of(dataset, layout))
    assert [s.time for s in again][::2] == [s.time for s in run]
    assert all(torch.equal(a.data, b.data) for a, b in zip(again[::2], run, strict=True))


def test_recording_refuses_what_cannot_be_one_store(tmp_path: Path) -> None:
    layout = small_layout()
    with pytest.raises(ValueError, match="no states came"):
        record([], tmp_path / "empty.zarr")
    assert not (tmp_path / "empty.zarr").exists()
    one, two = random_state(layout), random_state(layout, (7, 8, 9)).replace(time=START + timedelta(days=5))
    with pytest.raises(ValueError, match="wanted members"):
        record([one, two], tmp_path / "mixed.zarr")
    with pytest.raises(LayoutError, match="rollout of Wanderer: initial state"):
        rollout(Wanderer(layout), random_state(small_layout((-1, 0))), steps=1, store=tmp_path / "x.zarr")


def test_progress_shows_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = small_layout()
    rollout(Wanderer(layout), random_state(layout), steps=2, store=tmp_path / "bar.zarr", progress=True)
    shown = capsys.readouterr()
    assert "bar.zarr" in shown.out + shown.err
    rollout(Wanderer(layout), random_state(layout), steps=2, store=tmp_path / "quiet.zarr")
    assert capsys.readouterr() == ("", "")


def test_a_source_of_one_member_serves_any_and_knows_its_times(tmp_path: Path) -> None:
    emulator = network_emulator()
    dataset = rollout(
        emulator, random_state(emulator.layout, (0,)), RandomForcing(emulator.forcing_layout), steps=3,
        store=tmp_path / "s.zarr",
    )  # fmt: skip
    source = Source.open(tmp_path / "s.zarr", emulator.layout)
    assert source.state("2000-01-06", (5, 6)).members == (5, 6)
    assert source.state().time == START + timedelta(days=15)
    with pytest.raises(SourceError, match="has no record of thetao, uo, zos for 2001-01-01"):
        source.state("2001-01-01")
    with pytest.raises(SourceError, match="wanted a date like"):
        source.state("next tuesday")
    with pytest.raises(SourceError, match=r"lacks the variable\(s\) tauuo"):
        Source.open(tmp_path / "s.zarr", emulator.forcing_layout)
    with pytest.raises(FileNotFoundError, match="no store at"):
        Source.open(tmp_path / "nothing.zarr", emulator.layout)
    with pytest.raises(SourceError, match="wanted a grid of"):
        Source.open(dataset.isel(lat=slice(0, 4)), emulator.layout)
    assert layout_of(dataset, ["uo", "zos"]).field("uo").location == "corner"


@dataclass(frozen=True)
class Driven:
    """A two-slot emulator that forgets half and adds the forcing, and knows nothing of leap years."""

    layout: Layout
    forcing_layout: Layout
    dt: timedelta = timedelta(days=10)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        assert forcing is not None
        return state.replace(data=(0.5 * state.data + forcing.data) * self.layout.mask, time=state.time + self.dt)


def public_like(years: int, lazy: bool = False) -> tuple[Driven, Source, Source]:
    """Records as the public stores date them, and an emulator that they drive."""
    store = flux_store(julian_years(years), lazy=lazy)
    layout = layout_of(store, ["zos"], slots=(-1, 0))
    forcing = Layout((Field("hfds"),), layout.grid, layout.slots, layout.interval)
    return Driven(layout, forcing), Source.open(store, layout), Source.open(store, forcing)


def test_thirty_years_of_steps_never_drift_from_the_records() -> None:
    emulator, truth, forcing = public_like(30)
    start = truth.state(truth.times[1])
    with torch.no_grad():
        states = list(islice(trajectory(emulator, start, forcing), 1095))
    assert [s.time for s in states] == truth.times[1::2]
    plain = start.time + 1094 * emulator.dt
    assert truth.times[-1] - plain == timedelta(days=8), "a day per leap year, which is more than half an interval"
    past = next(islice(trajectory(emulator, states[-1].replace(time=truth.times[-3]), forcing), 2, None))
    assert past.time == truth.times[-1] + timedelta(days=10), "past the last record, plainly dt"


def test_both_slots_are_recorded_at_the_dates_of_the_records(tmp_path: Path) -> None:
    emulator, truth, forcing = public_like(3)
    start = truth.state(truth.times[1])
    steps = (len(truth.times) - 2) // 2
    whole = rollout(emulator, start, forcing, steps=steps, store=tmp_path / "whole.zarr")
    assert list(whole.time.values) == truth.times[: 2 * steps + 2]
    rollout(emulator, start, forcing, steps=42, store=tmp_path / "part.zarr")  # ends between the two slots of 1976
    part = rollout(emulator, start, forcing, steps=60, store=tmp_path / "part.zarr", resume=True)
    again = rollout(emulator, start, forcing, steps=steps, store=tmp_path / "part.zarr", resume=True)
    assert part.sizes["time"] == 122 and equal(again, whole)
    assert list(again.time.values) == list(whole.time.values)
    with pytest.raises(ValueError, match="108 steps: it is not part of a run of 60 steps"):
        rollout(emulator, start, forcing, steps=60, store=tmp_path / "part.zarr", resume=True)
    other = truth.state(truth.times[2])
    with pytest.raises(ValueError, match="begins: the store has"):
        rollout(emulator, other, forcing, steps=60, store=tmp_path / "part.zarr", resume=True)
    with pytest.raises(SourceError, match="109 steps of 10 days"):
        rollout(emulator, start, forcing, steps=110, store=tmp_path / "more.zarr")
    assert not (tmp_path / "more.zarr").exists()


def test_states_recorded_by_hand_take_their_dates_from_a_source(tmp_path: Path) -> None:
    emulator, truth, _ = public_like(2)
    states = [truth.state(truth.times[k]) for k in range(1, 146, 2)]
    dated = record(states, tmp_path / "dated.zarr", dates=truth)
    assert list(dated.time.values) == truth.times
    back = list(states_of(dated, emulator.layout))[::2]
    assert all(torch.equal(a.data, b.data) for a, b in zip(back, states, strict=True))


def test_hindcasts_meet_the_truth_across_a_leap_year() -> None:
    emulator, truth, forcing = public_like(3)
    starts = [truth.state(truth.times[k]) for k in (78, 81)]
    forecasts = hindcasts(emulator, starts, forcing, steps=4)
    assert list(forecasts.valid_time.values[0]) == [truth.times[k] for k in range(78, 87, 2)]
    assert verifying(truth.dataset[["zos"]], forecasts).sizes["lead"] == 5


def test_a_cycle_counts_its_steps_as_the_trajectory_dates_them() -> None:
    emulator, truth, forcing = public_like(3)
    start = truth.state(truth.times[79])

    class Keep:
        def analysis(self, forecast: State, observations: Observations) -> State:
            return forecast

    def seen(k: int) -> Observations:
        scalars = ("zos", 0.0, 0.0, 0.0, 1.0, 1.0, "point")
        return Observations(truth.times[k], *(np.array(v) for v in scalars))

    states = list(cycle(emulator, start, forcing, [seen(83), seen(87)], Keep()))
    assert [s.time for s in states] == truth.times[79:88:2]
    with pytest.raises(ObservationError, match="wanted a whole number >= 1"):
        list(cycle(emulator, start, forcing, [seen(82)], Keep()))
    with pytest.raises(ObservationError, match="wanted a whole number >= 1"):
        list(cycle(emulator, start, None, [seen(87)], Keep()))


def test_a_date_that_was_not_yet_written_is_no_record(tmp_path: Path) -> None:
    layout = small_layout()
    store = tmp_path / "run.zarr"
    whole = rollout(Wanderer(layout), random_state(layout), steps=6, store=tmp_path / "w.zarr", noise=Noise(2))
    rollout(Wanderer(layout), random_state(layout), steps=3, store=store, noise=Noise(2))
    zarr.open_group(store)["time"].resize((5,))  # killed after making room for a date, before writing it
    assert len(recorded(store)) == 4
    assert equal(
        rollout(Wanderer(layout), random_state(layout), steps=6, store=store, noise=Noise(2), resume=True), whole
    )


def test_forcing_that_looks_ahead_is_recorded_at_its_own_dates(tmp_path: Path) -> None:
    ice = nature_ice.arctic(16, 80e3)
    weather = ice.forcing(Noise(2))
    times = [START + k * ice.dt for k in range(3)]
    states = (ice.at_rest(t) for t in times)
    store = record(states, tmp_path / "ice.zarr", forcing=weather)
    again = Source.open(store, ice.forcing_layout)
    for time in times[:-1]:  # the last one's second slot is not in the store
        assert torch.equal(again.at(time, (0,)).data, weather.at(time, (0,)).data)
