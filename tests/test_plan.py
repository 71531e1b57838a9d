"""Plans and micro-batches: the same bits in any batch, one shape, memory under the limit, and honest numbers."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pytest
import torch
from small import forcing_layout, random_state, small_layout

from polynya.emulators import Draws, Layout, Noise, Source, State, samples
from polynya.ensembles import Mirrored, Several, perturb, trajectory
from polynya.ensembles.batches import Batched
from polynya.ensembles.costs import Rates, StepCost
from polynya.ensembles.plan import Achieved, Plan, in_batches, plan

MODULE = importlib.import_module("polynya.ensembles.plan")  # `polynya.ensembles.plan` may be the function
LAYOUT, FORCING = small_layout(), forcing_layout()
RATES = Rates(flops=1e11, memory=1e10, transfer=None, disk=1e9)
FEW = Noise(3).stream("few")


@dataclass(frozen=True, eq=False)
class Wanderer:
    """Half of yesterday, the forcing and noise; remembers the shapes it saw, and has room for `most` members."""

    layout: Layout = LAYOUT
    forcing_layout: Layout | None = None
    dt: timedelta = timedelta(days=5)
    most: int = 1000
    error: type[RuntimeError] = torch.OutOfMemoryError
    words: str = "CUDA out of memory"
    seen: list[int] = field(default_factory=list)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        self.seen.append(len(state.members))
        if len(state.members) > self.most:
            raise self.error(self.words)
        drawn = noise.stream("wander").normal(state.members, state.time, self.layout.shape)
        push = 0.0 if forcing is None else forcing.data.mean(1, keepdim=True)
        data = (0.5 * state.data + drawn.to(state.data) + push) * self.layout.mask
        return state.replace(data=data, time=state.time + self.dt)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "measure_rates", lambda *args, **more: RATES)


# --- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ocean() -> tuple[State, Source, list[State]]:
    """Eight members of the embedded ocean, its forcing, and two steps of all at once."""
    emulator, dataset = samples.emulator("globe"), samples.sample("globe")
    source, forcing = Source.open(dataset, emulator.layout), Source.open(dataset, emulator.forcing_layout)
    start = perturb(source.state(source.times[0]), members=8, amplitude={"thetao": 0.1}, noise=Noise(1))
    with torch.no_grad():
        return start, forcing, list(islice(trajectory(emulator, start, forcing), 3))


@pytest.mark.parametrize("batch", [1, 3, 7, 11])
def test_the_embedded_ocean_is_the_same_in_any_batch(batch: int, ocean: tuple[State, Source, list[State]]) -> None:
    start, forcing, whole = ocean
    emulator = in_batches(samples.emulator("globe"), batch)
    with torch.no_grad():
        got = list(islice(trajectory(emulator, start, forcing), 3))
    for a, b in zip(got, whole, strict=True):
        assert torch.equal(a.data, b.data) and a.members == b.members and a.time == b.time
    assert not torch.equal(got[-1].data[0], got[-1].data[7])


@pytest.mark.parametrize("noise", [Noise(4), Mirrored(Noise(4))], ids=["noise", "mirrored"])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 9])
def test_stochastic_members_are_themselves_in_any_batch_of_one_shape(batch: int, noise: Draws) -> None:
    members = (4, 0, 9, 33, 2, 1, 8)
    state, forcing = random_state(LAYOUT, members), random_state(FORCING, members, seed=5)
    whole = Wanderer().step(state, forcing, noise)
    inner = Wanderer()
    got = in_batches(inner, batch).step(state, forcing, noise)
    assert torch.equal(got.data, whole.data) and got.members == members and got.time == whole.time
    assert inner.seen == [batch] * -(-7 // batch)
    with torch.no_grad():
        again = in_batches(inner, batch).step(state, forcing, noise)
    assert torch.equal(again.data, whole.data)


def test_several_checkpoints_in_batches() -> None:
    models = Several((Wanderer(), samples_of_another_mind()))
    state = random_state(LAYOUT, (0, 1, 2, 3, 4))
    assert torch.equal(in_batches(models, 3).step(state, None, FEW).data, models.step(state, None, FEW).data)


def samples_of_another_mind() -> Wanderer:
    class Faster(Wanderer):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            after = super().step(state, forcing, noise)
            return after.replace(data=2 * after.data)

    return Faster()


def test_forcing_of_one_row_serves_all_and_is_never_copied() -> None:
    state, one = random_state(LAYOUT, tuple(range(5))), random_state(FORCING, (0,))
    strides = []

    class Watching(Wanderer):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            assert forcing is not None and forcing.members == state.members
            strides.append((forcing.data.stride(0), forcing.data.data_ptr()))
            return super().step(state, forcing, noise)

    whole = Wanderer().step(state, replace(one, data=one.data.expand(5, -1, -1, -1), members=state.members), FEW)
    for given in (one, replace(one, data=one.data.expand(5, -1, -1, -1), members=state.members)):
        assert torch.equal(in_batches(Watching(), 2).step(state, given, FEW).data, whole.data)
    assert set(strides) == {(0, one.data.data_ptr())}
    with pytest.raises(ValueError, match="a step of 5 members needs forcing of 1 or 5, got 3"):
        in_batches(Wanderer(), 2).step(state, random_state(FORCING, (0, 1, 2)), FEW)


def test_gradients_flow_and_nothing_given_is_changed() -> None:
    state = random_state(LAYOUT, tuple(range(5)))
    before = state.data.clone()
    leaf = state.replace(data=state.data.clone().requires_grad_())
    in_batches(Wanderer(), 2).step(leaf, None, FEW).data.square().sum().backward()
    wanted = Wanderer().step(state, None, FEW).data  # d(y²)/dx = 2 y / 2 on wet cells, and once for each member
    assert leaf.data.grad is not None and torch.allclose(leaf.data.grad, wanted * LAYOUT.mask)
    assert torch.equal(state.data, before)


def test_the_memory_format_stays_and_no_members_are_no_trouble() -> None:
    state = random_state(LAYOUT, tuple(range(5)))
    last = state.replace(data=state.data.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        after = in_batches(Wanderer(), 2).step(last, None, FEW)
        none = in_batches(Wanderer(), 2).step(random_state(LAYOUT, ()), None, FEW)
    assert after.data.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(after.data, Wanderer().step(state, None, FEW).data)
    assert none.members == () and none.data.shape[0] == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_for_the_rest_of_the_run(error: type[RuntimeError], words: str) -> None:
    inner = Wanderer(most=3, error=error, words=words)
    state = random_state(LAYOUT, tuple(range(9)))
    whole = Wanderer().step(state, None, FEW)
    emulator = in_batches(inner, 8)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="out of memory with .* members at once") as told:
        got = emulator.step(state, None, FEW)
    assert torch.equal(got.data, whole.data) and len(told) == 2
    assert inner.seen == [8, 4, 2, 2, 2, 2, 2] and (emulator.batch, emulator.size) == (8, 2)
    inner.seen.clear()
    assert torch.equal(emulator.step(got, None, FEW).data, Wanderer().step(whole, None, FEW).data)
    assert inner.seen == [2] * 5


def test_memory_that_runs_out_in_the_middle_of_a_step() -> None:
    class Tiring(Wanderer):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            if len(self.seen) == 1 and len(state.members) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step(state, forcing, noise)

    state, inner = random_state(LAYOUT, tuple(range(7))), Tiring()
    with pytest.warns(RuntimeWarning, match="goes on with 1"):
        got = in_batches(inner, 3).step(state, None, FEW)
    assert torch.equal(got.data, Wanderer().step(state, None, FEW).data) and inner.seen == [3, 1, 1, 1, 1]


def test_other_errors_and_one_member_too_many_are_raised() -> None:
    state = random_state(LAYOUT)
    with pytest.raises(RuntimeError, match="a bug"):
        in_batches(Wanderer(most=0, error=RuntimeError, words="a bug"), 2).step(state, None, FEW)
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError) as failed:
        in_batches(Wanderer(most=0), 2).step(state, None, FEW)
    assert "one member does not fit" in failed.value.__notes__[0]
    with pytest.raises(ValueError, match="at least one member, got 0"):
        in_batches(Wanderer(), 0)


def test_batches_of_batches_are_batches() -> None:
    emulator = in_batches(in_batches(Wanderer(), 8), 2)
    assert isinstance(emulator, Batched) and isinstance(emulator.emulator, Wanderer)
    assert emulator.layout is LAYOUT and emulator.dt == timedelta(days=5) and emulator.forcing_layout is None
    assert pickle.loads(pickle.dumps(in_batches(samples.emulator("channel"), 3))).size == 3


# --- plans -----------------------------------------------------------------------------------------------------------


def wanted_memory(p: Plan) -> float:
    wave = max(map(len, p.waves))
    states = 2 * wave * (p.state_bytes + p.output_bytes)
    return p.cost.weight_bytes + p.cost.fixed_bytes + p.batch * p.cost.member_bytes + states


@pytest.mark.parametrize("members", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("memory", [10**5, 10**6, 10**8])
def test_waves_cover_the_members_once_and_fit(members: int, memory: int) -> None:
    p = plan(Wanderer(), random_state(LAYOUT), members=members, steps=10, memory=memory, probe=False)
    assert [m for wave in p.waves for m in wave] == list(p.members) and len(p.members) == members
    assert wanted_memory(p) == pytest.approx(sum(p.needs.values())) and sum(p.needs.values()) <= memory
    sizes = [len(w) for w in p.waves]
    assert all(n % p.batch == 0 for n in sizes[:-1]) and max(sizes) - min(sizes) <= 2 * p.batch
    assert members * 10 <= p.computed < (members + p.batch) * 10 and p.member_steps == members * 10
    assert p.batch * p.cost.member_bytes <= memory / 2 or p.batch == 1


@pytest.mark.parametrize("members", [1, 5, 64, 97, 1000])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("most", [8, 13, 40, 5000])
def test_waves_are_nearly_equal_whole_batches(members: int, batch: int, most: int) -> None:
    waves = MODULE._waves(tuple(range(members)), batch, most)
    assert sum(waves, ()) == tuple(range(members)) and all(waves)
    assert max(map(len, waves)) <= most
    batches = [-(-len(w) // batch) for w in waves]
    assert max(batches) - min(batches) <= 1
    assert all(len(w) % batch == 0 for w in waves[:-1])
    assert len(waves) == -(-sum(batches) // (most // batch))


def seconds_of(table: dict[int, float]) -> object:
    return lambda emulator, state, forcing, noise, n: table[n] * n


@pytest.mark.parametrize(
    ("table", "members", "batch", "tried"),
    [
        ({1: 1.0, 2: 1.0}, 50, 1, 2),  # a CPU: nothing is won
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.3, 16: 0.295}, 1000, 8, 5),  # a knee
        ({1: 1.0, 2: 0.6, 4: 0.3, 8: 0.29}, 4, 4, 3),  # no more than there are
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.37, 16: 0.35, 32: 0.35}, 17, 4, 5),  # rows that only fill up cost, too
    ],
)
def test_the_smallest_batch_within_three_per_cent_of_the_best(
    table: dict[int, float], members: int, batch: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_BUDGET", 1e9)
    monkeypatch.setattr(MODULE, "_timed", seconds_of(table))
    p = plan(Wanderer(), random_state(LAYOUT), members=members, steps=3, memory=10**9)
    assert p.batch == batch and len(p.probed) == tried
    assert p.step_seconds == table[batch] and p.wall == pytest.approx(table[batch] * p.computed)


def test_a_probe_stops_at_its_budget_and_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_timed", seconds_of({2**k: 0.5**k for k in range(12)}))
    monkeypatch.setattr(MODULE, "_BUDGET", 1.0)
    assert len(plan(Wanderer(), random_state(LAYOUT), members=100, steps=1, memory=10**9).probed) == 1

    def falling(emulator: Wanderer, state: State, forcing: None, noise: Draws, n: int) -> float:
        emulator.step(random_state(LAYOUT, tuple(range(n))), forcing, noise)
        return 0.5**n

    monkeypatch.setattr(MODULE, "_timed", falling)
    monkeypatch.setattr(MODULE, "_BUDGET", 1e9)
    p = plan(Wanderer(most=4), random_state(LAYOUT), members=100, steps=1, memory=10**9)
    assert [n for n, _ in p.probed] == [1, 2, 4] and p.batch == 4
    with pytest.raises(torch.OutOfMemoryError):
        plan(Wanderer(most=4), random_state(LAYOUT), members=100, steps=1, memory=10**9, batch=8)


def test_a_probe_times_steps_with_forcing_and_noise() -> None:
    class Weather:
        def at(self, time: object, members: tuple[int, ...]) -> State:
            return random_state(FORCING, tuple(members))

    inner = Wanderer(forcing_layout=FORCING)
    p = plan(in_batches(inner, 4), random_state(LAYOUT), Weather(), members=6, steps=2, memory=10**9)
    assert p.probed and p.step_seconds is not None and p.step_seconds > 0 and p.wall > 0
    assert p.forcing_bytes == 4 * 2 * 8 * 12 and max(inner.seen) <= 8
    fixed = plan(inner, random_state(LAYOUT), Weather(), members=6, steps=2, batch=3)
    assert [n for n, _ in fixed.probed] == [3] and fixed.batch == 3 and fixed.waves == ((0, 1, 2, 3, 4, 5),)


def test_members_are_numbers() -> None:
    state = random_state(LAYOUT, (3, 5, 8))

    def of(members: int | list[int]) -> tuple[int, ...]:
        return plan(Wanderer(), state, members=members, steps=1, probe=False).members

    assert of(3) == (3, 5, 8) and of(4) == (0, 1, 2, 3) and of([7, 2]) == (7, 2)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"members": 0}, ValueError, "at least one member"),
        ({"members": -3}, ValueError, "at least one member.*got members=-3"),
        ({"members": []}, ValueError, "at least one member"),
        ({"members": [1, 1]}, ValueError, "different numbers"),
        ({"members": [-1]}, ValueError, "numbers >= 0"),
        ({"steps": -1}, ValueError, "got -1 steps"),
        ({"batch": 0}, ValueError, "batch 0"),
        ({"memory": 5000}, MemoryError, "one member needs .* kB.*the limit is 5 kB.*`output_bytes`"),
        ({"memory": 10**6, "batch": 500}, MemoryError, "a batch of 500 needs .* MB.*smaller `batch`"),
    ],
)
def test_errors_say_what_to_do(wrong: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"members": 4, "steps": 1} | wrong
    with pytest.raises(error, match=message):
        plan(Wanderer(), random_state(LAYOUT), **given)  # type: ignore[arg-type]


COST = StepCost(operations=2e9, fixed_bytes=10**6, member_bytes=10**7, weight_bytes=10**8, moved_bytes=1e8)
MADE = Plan(
    members=tuple(range(100)),
    steps=73,
    batch=8,
    waves=(tuple(range(56)), tuple(range(56, 100))),
    device=torch.device("cuda"),
    cost=COST,
    state_bytes=10**6,
    output_bytes=5e5,
    rates=Rates(1e14, 4e12, 2e10, 1e9),
    memory=10**9,
    dt=timedelta(days=5),
    forcing_bytes=10**5,
    probed=((4, 2e-4), (8, 1e-4)),
)


def test_the_numbers_of_a_plan() -> None:
    assert MADE.member_steps == 7300 and MADE.computed == 73 * (56 + 48)
    seconds = MADE.seconds
    assert seconds["compute"] == pytest.approx(2e9 * 7592 / 1e14)
    assert seconds["memory"] == pytest.approx(1e8 * 7592 / 4e12)
    assert seconds["transfer"] == pytest.approx((7300 * 5e5 + 100 * 2e6 + 73 * 2 * 1e5) / 2e10)
    assert seconds["disk"] == pytest.approx(3.65) == MADE.wall and MADE.bound == "disk"
    assert MADE.steps_seconds == pytest.approx(0.7592)
    assert MADE.member_years_per_day == pytest.approx(7300 * 5 / 365.25 * 86400 / 3.65)
    light = replace(MADE, output_bytes=10.0)
    assert light.bound == "memory" and light.wall == pytest.approx(0.7592)
    assert replace(light, cost=replace(COST, operations=1e12)).bound == "compute"
    slow_bus = replace(light, rates=replace(MADE.rates, transfer=1e7))
    assert slow_bus.bound == "transfer"
    unknown = replace(light, probed=())
    assert unknown.step_seconds is None and unknown.wall == pytest.approx(seconds["memory"])
    assert replace(MADE, steps=0).wall < 0.1 and replace(MADE, steps=0).member_years_per_day == 0


def lines(text: object) -> Iterator[tuple[str, str]]:
    for line in str(text).splitlines():
        label, rest = line[:12].strip(), line[12:]
        assert label and rest and len(line) <= 120
        yield label, rest


def test_a_printed_plan() -> None:
    rows = dict(lines(MADE))
    assert rows["run"] == "100 members x 73 steps of 5 days on cuda"
    assert rows["waves"] == "2 of 56 to 44 members, in micro-batches of 8"
    assert rows["operations"] == "2 GFLOP a member-step, 15.2 TFLOP in all"
    assert rows["memory"].startswith("349 MB of 1 GB: weights 100 MB, activations 81 MB, states 112 MB, output 56 MB")
    assert rows["to disk"] == "500 kB a member-step, 3.65 GB in all"
    assert rows["if transfer"].strip() == "193 ms  at 20 GB/s" and "at 1 GB/s" in rows["if disk"]
    assert "at 25% of the roofline" in rows["steps"] and "4: 200 µs, 8: 100 µs" in rows["steps"]
    assert "3.65 s  bound by disk; 2,365," in rows["expected"] and rows["expected"].endswith("member-years a day")
    unprobed = replace(MADE, probed=(), dt=timedelta(hours=12), rates=RATES, waves=(tuple(range(100)),))
    rows = dict(lines(unprobed))
    assert "at least" in rows["steps"] and "if transfer" not in rows and "steps of 12 h" in rows["run"]
    assert rows["waves"].startswith("1 of 100 members")
    still = plan(Wanderer(), random_state(LAYOUT), members=2, steps=0, output_bytes=0, probe=False)
    assert "0 member-years a day" in dict(lines(still))["expected"]


def test_the_plan_of_the_embedded_ocean(ocean: tuple[State, Source, list[State]], tmp_path: Path) -> None:
    start, forcing, _ = ocean
    emulator = samples.emulator("globe")
    p = plan(emulator, start, forcing, members=100, steps=365, store=tmp_path / "run.zarr", memory=10**9)
    assert p.waves == (tuple(range(100)),) and p.batch <= 8 and p.cost.operations > 1e9
    assert p.state_bytes == p.output_bytes == start.data[0].nbytes
    assert p.bound in ("compute", "memory") and p.wall == p.steps_seconds > p.seconds["compute"] / 4
    assert not list(tmp_path.iterdir())


def test_what_a_run_achieved() -> None:
    done = Achieved(
        member_steps=7300, dt=timedelta(days=5), wall=10.0, in_steps=8.0, stalled=1.0, operations=2e9, flops=1e13,
        peak_memory=349 * 10**6,
    )  # fmt: skip
    assert done.member_steps_per_second == 730 and done.achieved_flops == pytest.approx(1.825e12)
    assert done.fraction == pytest.approx(0.1825) and done.stall_fraction == pytest.approx(0.1)
    assert done.member_years_per_day == pytest.approx(7300 * 5 / 365.25 * 8640)
    assert str(done).splitlines() == [
        "7,300 member-steps in 10 s: 730 a second, 863,409 member-years a day",
        "steps 8 s at 1.82 TFLOP/s, 18% of the measured rate",
        "waiting for the writer 1 s (10.0%)",
        "peak memory 349 MB",
    ]
    nothing = Achieved(0, timedelta(days=5), 0.0, 0.0, 0.0, 0.0)
    assert nothing.fraction is None and nothing.member_years_per_day == 0 and "0 member-steps" in str(nothing)
