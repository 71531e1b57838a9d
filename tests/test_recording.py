"""What a run keeps, in which numbers, of how many members, and what it says of input that cannot be."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from small import START, random_state, small_layout
from test_emulators import network_emulator
from test_rollout import RandomForcing, Wanderer, equal

from polynya.emulators import Bounds, Corrected, Draws, Noise, SourceError, State, open_store
from polynya.ensembles import (
    Box,
    Covariance,
    Exceedance,
    Index,
    Moments,
    OtherRunError,
    Output,
    Packed,
    Quantiles,
    Rounded,
    Several,
    StoreExistsError,
    ensemble_statistics,
    reproduce,
    rollout,
    verify,
)
from polynya.ensembles.durable import Background, Durable
from polynya.ensembles.experiment import weights_of
from polynya.ensembles.packing import PackingError
from polynya.ensembles.plan import Plan, plan
from polynya.ensembles.recording import Recording
from polynya.ensembles.reproduce import DamagedError

LAYOUT = small_layout()
MEMBERS = tuple(range(13))


def waves(size: int, batch: int, members: tuple[int, ...] = MEMBERS) -> Plan:
    """A plan of waves of this size."""
    made = plan(Wanderer(LAYOUT), random_state(LAYOUT, (0,)), members=members, steps=1, probe=False)
    return replace(made, batch=batch, waves=tuple(members[k : k + size] for k in range(0, len(members), size)))


def run(store: Path, steps: int = 20, members: tuple[int, ...] = MEMBERS, **more: Any) -> xr.Dataset:
    state = random_state(LAYOUT, MEMBERS)
    return rollout(Wanderer(LAYOUT), state.sel(members), steps=steps, store=store, noise=Noise(3), **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return run(tmp_path_factory.mktemp("whole") / "run.zarr").load()


@pytest.mark.parametrize(("wave", "batch"), [(13, 1), (13, 7), (5, 32), (4, 3), (1, 1)])
def test_waves_and_batches_make_no_difference(whole: xr.Dataset, tmp_path: Path, wave: int, batch: int) -> None:
    assert equal(run(tmp_path / "s.zarr", plan=waves(wave, batch)), whole)
    blocks = Recording(tmp_path / "s.zarr").blocks()
    assert [(b.attrs["first"], b.attrs["stop"]) for b in blocks] == [(k, min(k + wave, 13)) for k in range(0, 13, wave)]


def test_initial_states_may_be_made_as_they_are_needed(whole: xr.Dataset, tmp_path: Path) -> None:
    asked = []

    def begin(members: tuple[int, ...]) -> State:
        asked.append(len(members))
        return random_state(LAYOUT, MEMBERS).sel(members)

    made = rollout(
        Wanderer(LAYOUT), begin, steps=20, store=tmp_path / "s.zarr", noise=Noise(3), members=MEMBERS, plan=waves(4, 4)
    )
    assert equal(made, whole) and max(asked) == 4
    with pytest.raises(ValueError, match="needs to be told which members"):
        rollout(Wanderer(LAYOUT), begin, steps=1, store=tmp_path / "t.zarr")


# --- what is kept --------------------------------------------------------------------------------


def test_variables_levels_region_and_times_are_those_asked_for(whole: xr.Dataset, tmp_path: Path) -> None:
    lev, lat, lon = whole.lev.values, whole.lat.values, whole.lon.values
    box = Box(lat=(lat[2] - 0.1, lat[5] + 0.1), lon=(lon[-2] - 0.1, lon[3] + 0.1))
    output = Output(("zos", "thetao"), (lev[1], lev[2]), box, every=3)
    made = run(tmp_path / "s.zarr", output=output)
    wanted = whole[["zos", "thetao"]].isel(time=slice(None, None, 3), lev=slice(1, 3), lat=slice(2, 6))
    wanted = wanted.isel(lon=[10, 11, 0, 1, 2, 3])
    assert equal(made, wanted) and list(made.time.values) == list(wanted.time.values)
    assert np.array_equal(made.areacello, wanted.areacello) and np.array_equal(made.wetmask, wanted.wetmask)
    assert np.array_equal(made.lon, wanted.lon) and np.array_equal(made.lev, wanted.lev)


def test_time_means_are_means_within_their_bounds(whole: xr.Dataset, tmp_path: Path) -> None:
    made = run(tmp_path / "s.zarr", output=Output(every=5, mean=True))
    wanted = whole.isel(time=slice(0, 20)).coarsen(time=5).mean()
    assert made.sizes["time"] == 4 and made.zos.attrs["cell_methods"] == "time: mean"
    for name in ("zos", "thetao", "uo"):
        np.testing.assert_allclose(made[name], wanted[name], rtol=1e-5, atol=1e-6)
    bounds = xr.open_zarr(tmp_path / "s.zarr", decode_times=False)
    times = xr.open_zarr(tmp_path / "s.zarr", decode_times=xr.coders.CFDatetimeCoder(use_cftime=True)).time.values
    seconds = (bounds.time_bnds[:, 1] - bounds.time_bnds[:, 0]).values
    assert (seconds == 4 * 5 * 86400).all() and times[0] == START + timedelta(days=10)


def test_forcing_beside_means_is_meaned_too(tmp_path: Path) -> None:
    emulator = network_emulator()
    forcing, start = RandomForcing(emulator.forcing_layout), random_state(emulator.layout)
    every = rollout(emulator, start, forcing, steps=7, store=tmp_path / "a.zarr", with_forcing=True)
    means = rollout(
        emulator,
        start,
        forcing,
        steps=7,
        store=tmp_path / "b.zarr",
        with_forcing=True,
        output=Output(every=4, mean=True),
    )
    np.testing.assert_allclose(means.hfatm, every.hfatm.coarsen(time=4).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (Output(("salt",)), "no field 'salt'"),
        (Output(depth=(9000.0, 9900.0)), "no level lies between"),
        (Output(box=Box(lat=(88, 89))), "no cell lies within"),
    ],
)
def test_what_is_not_there_cannot_be_kept(tmp_path: Path, output: Output, words: str) -> None:
    with pytest.raises((ValueError, KeyError), match=words):
        run(tmp_path / "s.zarr", output=output)
    assert not (tmp_path / "s.zarr").exists()


def test_outputs_that_make_no_sense() -> None:
    for wrong in ({"every": 0}, {"mean": True}, {"depth": (10.0, 5.0)}):
        with pytest.raises(ValueError):
            Output(**wrong)  # type: ignore[arg-type]


# --- numbers on disk -----------------------------------------------------------------------------


def test_packed_stores_read_as_cf_and_are_as_exact_as_they_say(whole: xr.Dataset, tmp_path: Path) -> None:
    made = run(tmp_path / "s.zarr", output=Output(packing=Packed({"thetao": (-8.0, 8.0), "uo": (-6.0, 6.0)})))
    assert zarr.open_group(tmp_path / "s.zarr")["thetao"].dtype == np.int16
    plain = xr.open_zarr(tmp_path / "s.zarr", decode_times=False)
    for name, width in (("thetao", 16.0), ("zos", 10.0), ("uo", 12.0)):
        assert float(abs(made[name] - whole[name]).max()) <= width / 128000 * 1.01
        assert np.array_equal(made[name].isnull(), whole[name].isnull())
        assert np.array_equal(plain[name].values, made[name].values, equal_nan=True)


def test_values_that_do_not_fit_are_said_not_cut(tmp_path: Path) -> None:
    with pytest.raises(PackingError, match=r"zos = -?\d.* do not fit into 16 bits of \(-0.01, 0.01\); give Packed"):
        run(tmp_path / "s.zarr", output=Output(("zos",), packing=Packed({"zos": (-0.01, 0.01)})))
    x = torch.full((1, 1, 2, 2), torch.nan)
    out = torch.empty(1, 1, 2, 2, dtype=torch.int16)
    with pytest.raises(PackingError, match="do not fit"):
        Packed().pack("zos", x, torch.ones(1, 2, 2, dtype=torch.bool), out)
    with pytest.raises(PackingError, match="no range of salt"):
        Packed().attributes("salt")
    with pytest.raises(ValueError, match="1 to 22 bits"):
        Rounded(0)


# --- statistics ----------------------------------------------------------------------------------

STATISTICS = (
    Moments("thetao"),
    Quantiles("zos", bins=200, range=(-4.0, 4.0)),
    Exceedance("zos", (0.0, 1.0)),
    Covariance("thetao", Index("tropics", "zos")),
)


@pytest.mark.parametrize("wave", [13, 4])
def test_statistics_are_those_of_stored_members(whole: xr.Dataset, tmp_path: Path, wave: int) -> None:
    more = {"statistics": STATISTICS, "statistics_every": 2, "plan": waves(wave, 3)}
    nothing = run(tmp_path / "s.zarr", output=Output(variables=()), **more)
    assert not nothing.data_vars
    found, members = ensemble_statistics(tmp_path / "s.zarr").load(), whole.isel(time=slice(None, None, 2)).astype("f8")
    assert list(found.time.values) == list(members.time.values)
    np.testing.assert_allclose(found.thetao_mean, members.thetao.mean("member"), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.thetao_variance, members.thetao.var("member", ddof=1), rtol=1e-9, atol=1e-12)
    wet = members.zos.isel(time=0, member=0).notnull()
    np.testing.assert_allclose(
        found.zos_probability_above.isel(zos_threshold=0).where(wet), (members.zos > 0).mean("member").where(wet)
    )
    exact = members.zos.quantile([0.05, 0.5, 0.95], "member").transpose("time", "quantile", ...).values
    assert np.nanmax(abs(found.zos_quantiles.transpose("time", "zos_quantile", ...).values - exact)) <= 8 / 200
    assert "cell_methods" in found.thetao_mean.attrs and found.thetao_mean.dims == ("time", "lev", "lat", "lon")


def test_statistics_need_different_names_and_known_variables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two statistics are named"):
        run(tmp_path / "s.zarr", statistics=(Moments("zos"), Moments("zos", 4)))
    with pytest.raises(KeyError, match="no field 'salt'"):
        run(tmp_path / "s.zarr", statistics=(Moments("salt"),))
    with pytest.raises(ValueError, match="nothing would come of the run"):
        run(tmp_path / "s.zarr", output=Output(variables=()))
    run(tmp_path / "s.zarr", steps=1)
    with pytest.raises(SourceError, match="has no statistics"):
        ensemble_statistics(tmp_path / "s.zarr")


# --- longer, wider, deeper -----------------------------------------------------------------------


def test_a_store_grows_in_time_members_and_variables(whole: xr.Dataset, tmp_path: Path) -> None:
    store, some = tmp_path / "s.zarr", MEMBERS[:7]
    more = {"plan": waves(5, 5), "resume": True, "statistics": (Moments("zos"),)}
    run(store, 8, some, output=Output(("zos",)), **more)
    run(store, 20, some, output=Output(("zos",)), **more)
    run(store, 20, some, output=Output(("zos", "uo")), **more)
    grown = run(store, 20, output=Output(("zos", "uo", "thetao")), **more)
    assert equal(grown, whole) and list(grown.member) == list(MEMBERS)
    found = ensemble_statistics(store)
    np.testing.assert_allclose(found.zos_mean, whole.zos.astype("f8").mean("member"), rtol=1e-9, atol=1e-12)
    assert found.attrs["members"] == 13 and verify(store) > 0


def test_another_experiment_is_refused_and_told_apart(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    first = run(store, 3).load()
    start = random_state(LAYOUT, MEMBERS)

    @dataclass(frozen=True)
    class Other(Wanderer):
        factor: float = 0.5

    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: rollout(Wanderer(LAYOUT), start, steps=3, store=store, noise=Noise(4), resume=True),
            "noise: .*seed=3",
        ),
        (lambda: rollout(Other(LAYOUT), start, steps=3, store=store, noise=Noise(3), resume=True), "emulator: "),
        (lambda: run(store, 3, output=Output(every=2), resume=True), "output: "),
        (lambda: run(store, 3, output=Output(("zos",)), resume=True), "also keeps thetao, uo"),
        (lambda: run(store, 2, resume=True), "reaches 3 steps"),
        (lambda: run(store, 3, MEMBERS[:5], resume=True), "holds members"),
        (lambda: run(store, 3, statistics=(Moments("zos"),), resume=True), "statistics: "),
    ]
    for case, words in cases:
        with pytest.raises(OtherRunError, match=words):
            case()
    moved = start.replace(data=start.data.clone())
    moved.data[2] += LAYOUT.mask
    with pytest.raises(OtherRunError, match=r"members \[2\] began with another state"):
        rollout(Wanderer(LAYOUT), moved, steps=3, store=store, noise=Noise(3), resume=True)
    with pytest.raises(StoreExistsError):
        run(store, 3)
    (tmp_path / "notes").mkdir()
    with pytest.raises(StoreExistsError, match="is no store of a run"):
        run(tmp_path / "notes", 3, resume=True)
    assert equal(open_store(store), first)


def test_weights_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    emulator = network_emulator()
    forcing, start = RandomForcing(emulator.forcing_layout), random_state(emulator.layout)
    rollout(emulator, start, forcing, steps=1, store=tmp_path / "s.zarr")
    with torch.no_grad():
        next(emulator.network.parameters()).add_(1e-3)
    with pytest.raises(OtherRunError, match="weights"):
        rollout(emulator, start, forcing, steps=2, store=tmp_path / "s.zarr", resume=True)
    other = network_emulator()
    inside = [Several((emulator, other)), Several((other, emulator)), Corrected(emulator, Bounds({}))]
    assert len({weights_of(e) for e in (emulator, other, *inside)}) == 4, "all networks count, what wraps them does not"
    assert weights_of(inside[2]) == weights_of(emulator) and weights_of(Wanderer(LAYOUT)) == ""


# --- bad input -----------------------------------------------------------------------------------


def test_nan_is_named_before_anything_is_written(tmp_path: Path) -> None:
    start = random_state(LAYOUT, MEMBERS)
    start.data[4, LAYOUT.channels("zos").start, 3, 2] = torch.nan
    with pytest.raises(
        ValueError, match=r"initial state: 1 values are not finite, the first in zos of member 4 .*row 3"
    ):
        rollout(Wanderer(LAYOUT), start, steps=1, store=tmp_path / "s.zarr")

    @dataclass(frozen=True)
    class Holes(RandomForcing):
        def at(self, time: object, members: tuple[int, ...] = (0,)) -> State:
            found = super().at(time, members)
            if time == START + timedelta(days=10):
                return found.replace(data=torch.full_like(found.data, torch.inf))
            return found

    emulator = network_emulator()
    holes = Holes(emulator.forcing_layout)
    with pytest.raises(ValueError, match="forcing: .* not finite, the first in tauuo .* at 2000-01-11"):
        rollout(emulator, random_state(emulator.layout), holes, steps=5, store=tmp_path / "f.zarr")


def test_members_that_blow_up_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Explosive(Wanderer):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            after = super().step(state, forcing, noise)
            rows = [k for k, m in enumerate(state.members) if m in (3, 5)]
            after.data[rows] = torch.nan
            return after

    with pytest.warns(RuntimeWarning, match=r"members \[3, 5\] are not finite at 2000-01-1"):
        made = rollout(Explosive(LAYOUT), random_state(LAYOUT, MEMBERS), steps=2, store=tmp_path / "s.zarr")
    wet = made.zos.isel(time=0, member=0).notnull()
    assert made.zos.sel(member=4).where(wet, 0.0).notnull().all()


@pytest.mark.parametrize("members", [(), (1, 1), (-1, 0)])
def test_members_are_numbers_from_zero(tmp_path: Path, members: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one or more members of different numbers"):
        rollout(
            Wanderer(LAYOUT), lambda m: random_state(LAYOUT, m), steps=1, store=tmp_path / "s.zarr", members=members
        )


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(
    whole: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = Durable.__mro__[1].set, [40]  # type: ignore[attr-defined]

    async def full(self: Durable, key: str, value: Any, byte_range: Any = None) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        await write(self, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(Durable.__mro__[1], "set", full)
        with pytest.raises(OSError, match="no space is left for .*; what was written before is safe.*resume=True"):
            run(tmp_path / "s.zarr", restart_minutes=0)
    assert equal(run(tmp_path / "s.zarr", resume=True), whole)


def test_a_writer_that_fails_is_heard_and_back_pressure_is_bounded() -> None:
    done: list[int] = []
    with pytest.raises(ZeroDivisionError), Background(depth=2) as background:
        background.do(lambda: done.append(1))
        background.do(lambda: done.append(1 // 0))
        background.do(lambda: done.append(2))
    assert done == [1]


# --- proof ---------------------------------------------------------------------------------------


def test_one_member_is_computed_again_alone_and_is_equal(whole: xr.Dataset, tmp_path: Path) -> None:
    store, output = tmp_path / "s.zarr", Output(("zos",), every=3, packing=Rounded(9))
    made = run(store, output=output, plan=waves(5, 2))
    again = reproduce(store, Wanderer(LAYOUT), member=11, output=output)
    assert equal(again, made.sel(member=[11]))
    some = slice("2000-02-01", "2000-03-05")
    part = reproduce(store, Wanderer(LAYOUT), member=7, time=some, output=output)
    assert part.sizes["time"] == 2 and equal(part, made.sel(member=[7], time=some))
    with pytest.raises(KeyError, match="has no member 99"):
        reproduce(store, Wanderer(LAYOUT), member=99, output=output)
    with pytest.raises(OtherRunError, match="noise"):
        reproduce(store, Wanderer(LAYOUT), member=7, output=output, noise=Noise(1))
    with pytest.raises(SourceError, match="has no record in"):
        reproduce(store, Wanderer(LAYOUT), member=7, output=output, time=slice("2010", "2011"))


def test_verify_finds_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    run(store, plan=waves(4, 4))
    count = verify(store)
    files = sorted((store / "zos").glob("c.*"))
    assert count == 3 * len(files)
    files[0].unlink()
    content = bytearray(files[1].read_bytes())
    content[len(content) // 3] ^= 1
    files[1].write_bytes(content)
    with pytest.raises(DamagedError, match=rf"2 of {count} shards are missing or damaged") as raised:
        verify(store)
    assert str(files[0].relative_to(store)) in str(raised.value) and "missing" in str(raised.value)
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "none.zarr")
