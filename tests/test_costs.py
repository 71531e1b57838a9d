"""The cost of a step against what can be counted by hand, and rates that are at least rates."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from small import START, forcing_layout, random_state, small_layout
from torch import Tensor

from polynya.emulators import Draws, Layout, Noise, Source, State, samples
from polynya.ensembles import costs
from polynya.ensembles.costs import measure_rates, memory_limit, repeated, shared, step_cost

LAYOUT = small_layout()
C, H, W = LAYOUT.shape
STATE = 4 * C * H * W  # bytes of a float32 member


@dataclass(frozen=True, eq=False)
class Toy:
    """An emulator of one function of (data, forcing, noise)."""

    call: Callable[[Tensor, State | None, Draws], Tensor]
    layout: Layout = LAYOUT
    forcing_layout: Layout | None = None
    dt: timedelta = timedelta(days=5)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        return state.replace(data=self.call(state.data, forcing, noise), time=state.time + self.dt)


def convolution(hidden: int) -> tuple[Toy, int]:
    """Two 3 x 3 convolutions with a rectifier between them, and the bytes of their weights."""
    there, back = torch.randn(hidden, C, 3, 3), torch.randn(C, hidden, 3, 3)
    bias = torch.randn(hidden)

    def call(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        y = torch.nn.functional.conv2d(x, there, bias, padding=1)
        z = y.relu()
        return torch.nn.functional.conv2d(z, back, padding=1)

    return Toy(call), 4 * (there.numel() + back.numel() + hidden)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_a_convolution_costs_what_is_counted_by_hand(members: int) -> None:
    toy, weights = convolution(16)
    cost = step_cost(toy, random_state(LAYOUT, tuple(range(members))), None, Noise(0))
    hidden = 16 * STATE // C
    assert cost.operations == 2 * (2 * 9 * C * 16) * H * W
    assert cost.weight_bytes == weights
    assert cost.member_bytes == 2 * hidden + STATE  # y, z and the new state live together
    assert cost.fixed_bytes == 0
    assert cost.moved_bytes == (STATE + hidden) + 2 * hidden + (hidden + STATE)
    assert cost.dtype == torch.float32


def test_a_linear_map_and_attention_are_counted_in_the_dtype_they_run_in() -> None:
    A = torch.randn(C, 32)
    linear = Toy(lambda x, f, n: ((x.transpose(1, 3) @ A).bfloat16() @ A.T.bfloat16()).transpose(1, 3).float())
    cost = step_cost(linear, random_state(LAYOUT), None, Noise(0))
    assert cost.operations == 4 * H * W * C * 32 and cost.dtype == torch.float32

    def attend(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        tokens = torch.cat([x, x[:, :1]], 1).flatten(2).transpose(1, 2)[:, None].bfloat16().contiguous()
        out = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return out[:, 0, :, :C].transpose(1, 2).reshape(x.shape).float()

    assert C + 1 == 8
    cost = step_cost(Toy(attend), random_state(LAYOUT), None, Noise(0))
    assert cost.operations == 4 * (H * W) ** 2 * (C + 1) and cost.dtype == torch.bfloat16


def test_what_is_freed_reused_and_seen_twice_is_not_counted_twice() -> None:
    def chain(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        y = x * 2
        for _ in range(10):
            y = y + 1  # two alive at a time
        view = y.view(-1).reshape(y.shape)
        view.mul_(0.5)
        return y

    cost = step_cost(Toy(chain), random_state(LAYOUT), None, Noise(0))
    assert (cost.member_bytes, cost.fixed_bytes, cost.weight_bytes, cost.operations) == (2 * STATE, 0, 0, 0)
    assert cost.moved_bytes == STATE * (2 + 10 * 2 + 2)


def test_what_does_not_grow_with_members_is_apart() -> None:
    table = torch.randn(1000)
    kept: list[Tensor] = []

    def call(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        if not kept:
            kept.append(torch.ones(50))  # made at the first step and kept
        scale = torch.ones(500) * 2  # two alive, then freed one after the other
        numbers = torch.tensor([1.0, 2.0])
        return x + (table.sum() + kept[0].sum() + scale.sum() + numbers.sum())

    cost = step_cost(Toy(call), random_state(LAYOUT), None, Noise(0))
    assert cost.weight_bytes == 4 * 1050
    assert cost.member_bytes == STATE
    assert 2000 <= cost.fixed_bytes <= 4100  # the small numbers beside `scale`


def test_shared_forcing_and_noise_are_no_weights() -> None:
    layout = forcing_layout()

    def call(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        assert forcing is not None and len(forcing.members) == len(x)
        return x + forcing.data.mean(1, keepdim=True) + noise.normal(range(len(x)), START, LAYOUT.shape)

    for rows in ((0,), (0, 1, 2)):
        forcing = random_state(layout, rows)
        cost = step_cost(Toy(call, forcing_layout=layout), random_state(LAYOUT), forcing, Noise(0))
        assert cost.weight_bytes == 0 and cost.member_bytes >= 2 * STATE
    assert shared(None, 3) is None
    one = shared(random_state(layout, (4,)), 3)
    assert one is not None and one.members == (4, 4, 4) and one.data.stride(0) == 0
    state = random_state(LAYOUT, (3, 9))
    assert repeated(state, 3).members == (3, 9, 3) and torch.equal(repeated(state, 3).data[2], state.data[0])


def test_the_embedded_ocean_costs_the_same_from_any_state() -> None:
    emulator, dataset = samples.emulator("globe"), samples.sample("globe")
    source, forcing = Source.open(dataset, emulator.layout), Source.open(dataset, emulator.forcing_layout)
    start = source.state(source.times[0])
    driven = forcing.at(start.time, start.members)
    one = step_cost(emulator, start, driven, Noise(0))
    many = step_cost(emulator, start.spread_to(range(4)), forcing.at(start.time, range(4)), Noise(0))
    assert (one.operations, one.member_bytes) == (many.operations, many.member_bytes)
    convolutions = 0

    def count(module: torch.nn.Conv2d, args: object, out: Tensor) -> None:
        nonlocal convolutions
        convolutions += 2 * out[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in emulator.network.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        emulator.step(start, driven, Noise(0))
    for hook in hooks:
        hook.remove()
    assert hooks and one.operations == convolutions
    parameters = sum(p.nbytes for p in emulator.network.parameters())
    assert parameters <= one.weight_bytes < 1.5 * parameters
    with torch.no_grad():
        thirteen = costs._counted(emulator, repeated(start, 13), shared(driven, 13), Noise(0)).peak
    assert thirteen <= one.fixed_bytes + 13 * one.member_bytes < 1.2 * thirteen  # its slope bends at four members
    whole = step_cost(emulator.tuned(one_at_a_time=False), start, driven, Noise(0))
    assert whole.operations == one.operations and whole.member_bytes > 1.5 * one.member_bytes


@pytest.mark.parametrize(("fast", "sizes"), [(0.0, [1, 1, 2, 4, 8]), (0.5, [1, 1, 2, 3]), (5.0, [1, 1, 2])])
def test_slow_steps_are_counted_less_often(fast: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def call(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        seen.append(len(x))
        return x + 1

    def clock(task: Callable[[], object], device: torch.device) -> float:
        task()
        return fast

    monkeypatch.setattr(costs, "elapsed", clock)
    assert step_cost(Toy(call), random_state(LAYOUT), None, Noise(0)).member_bytes == STATE
    assert seen == sizes


@pytest.mark.parametrize("room", [1, 3, 7])
def test_counting_stops_where_memory_ends(room: int) -> None:
    kernel = torch.ones(C, C, 1, 1)

    def call(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        if len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.nn.functional.conv2d(x, kernel).relu()

    cost = step_cost(Toy(call), random_state(LAYOUT), None, Noise(0))
    assert cost.operations == 2 * C * C * H * W and cost.weight_bytes == 4 * C * C
    assert (cost.member_bytes, cost.fixed_bytes) == (2 * STATE, 0)

    def broken(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        step_cost(Toy(broken), random_state(LAYOUT), None, Noise(0))


def test_a_cost_needs_a_member_and_is_a_value() -> None:
    toy, _ = convolution(4)
    with pytest.raises(ValueError, match="a state without members"):
        step_cost(toy, random_state(LAYOUT, ()), None, Noise(0))
    cost = step_cost(toy, random_state(LAYOUT), None, Noise(0))
    assert pickle.loads(pickle.dumps(cost)) == cost


def test_rates_are_rates_and_leave_nothing_behind(tmp_path: Path) -> None:
    rates = measure_rates("cpu", tmp_path / "not" / "yet", dtype=torch.bfloat16)
    assert min(rates.flops, rates.memory, rates.disk) > 1e6 and rates.transfer is None
    assert not list(tmp_path.iterdir())


def test_the_memory_limit_is_a_part_of_what_there_is() -> None:
    assert 2**24 < memory_limit(torch.device("cpu")) < 2**44


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_the_allocator_agrees(tmp_path: Path) -> None:
    def double(x: Tensor, forcing: State | None, noise: Draws) -> Tensor:
        return (x * 2).relu()

    cost = step_cost(Toy(double), random_state(LAYOUT).to("cuda"), None, Noise(0))
    assert 2 * STATE <= cost.member_bytes <= 2 * STATE + 2 * 512
    rates = measure_rates("cuda", tmp_path)
    assert rates.transfer is not None and rates.transfer > 1e8
    assert 0 < memory_limit(torch.device("cuda")) < torch.cuda.mem_get_info()[1]
