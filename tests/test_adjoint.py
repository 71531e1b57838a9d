"""check_adjoint: what passes it, and that every way to break a gradient is caught and named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from small import START, forcing_layout, random_state, small_layout
from test_emulators import Case, cases
from torch import Tensor

from polynya.da import ObservationOperator, Observations, operator_for
from polynya.da.adjoint import AdjointError, AdjointReport, check_adjoint
from polynya.da.background import Uncorrelated
from polynya.emulators import (
    Draws,
    KuramotoSivashinsky,
    Layout,
    Lorenz63,
    Lorenz96,
    Noise,
    QuasiGeostrophic,
    Source,
    State,
    samples,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def reference(emulator: Any) -> Case:
    return emulator, emulator.at_attractor((0,), Noise(1)), lambda state: None


def sea_ice(kind: str) -> Callable[[], Case]:
    def made() -> Case:
        import test_gensim_emulator as gensim  # these need their own fixtures, only when run
        import test_regional_emulator as regional

        if kind == "gensim":
            return gensim.case_of(gensim.emulator(n_steps=2))
        return regional.case_of(regional.emulator(kind))

    return made


SMOOTH: dict[str, Callable[[], Case]] = {
    "lorenz63": lambda: reference(Lorenz63()),
    "lorenz96": lambda: reference(Lorenz96()),
    "kuramoto": lambda: reference(KuramotoSivashinsky()),
    "qg": lambda: reference(QuasiGeostrophic(n=33, viscosity=2e-10, dt_model=5.0, steps=1)),
    **{k: cases()[k] for k in ("persistence", "samudra", "samudra, two slots", "several", "stochastic", "corrected")},
    **{f"regional, {k}": sea_ice(k) for k in ("deterministic", "residual", "correlated")},
    "gensim": sea_ice("gensim"),
}


@pytest.mark.parametrize("name", list(SMOOTH))
def test_emulators_pass(name: str) -> None:
    emulator, state, forcing = SMOOTH[name]()
    report = check_adjoint(emulator, state, forcing(state), steps=2)
    assert report.passed, str(report)
    assert report.tangent == "forward" and report.dot_product < 1e-14
    assert report.chain < 1e-13 and report.land == 0 and report.frozen and report.pure and report.finite
    assert report.kind == ("linear" if name == "persistence" else "smooth")
    if report.kind == "smooth":
        assert report.slope == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("name", ["regional, diffusion", "free drift"])
def test_bounds_are_kinks(name: str) -> None:
    emulator, state, forcing = sea_ice(name.removeprefix("regional, "))()
    ignored = ("siu", "siv", "tas", "huss") if name == "free drift" else ()
    report = check_adjoint(emulator, state, forcing(state), smooth=False, may_ignore=ignored, land=False)
    assert report.passed and report.kind in ("smooth", "kinked"), str(report)


@pytest.mark.parametrize("name", ["globe", "channel"])
def test_the_nature_run_has_kinks_and_a_right_gradient(name: str) -> None:
    emulator, state, forcing = cases()[name]()
    one = timedelta(seconds=emulator.parameters.time_step)
    report = check_adjoint(
        replace(emulator, interval=one, _prepared={}),
        state,
        forcing(state),
        smooth=False,
        may_ignore=("hfds",),
    )
    assert report.passed and report.kind == "kinked", str(report)
    assert report.dot_product < 1e-13


def test_the_nature_run_of_sea_ice_has_kinks_and_a_right_gradient() -> None:
    ice = samples.nature("arctic")
    hour = timedelta(seconds=ice.parameters.time_step)
    short = replace(ice, interval=hour, parameters=replace(ice.parameters, substeps=6))
    state = Source.open(samples.sample("arctic"), ice.layout).state()
    forcing = short.forcing(Noise(1)).at(state.time, state.members)
    report = check_adjoint(short, state, forcing, smooth=False, may_ignore=("huss", "siu", "siv"))
    assert report.passed and report.kind == "kinked" and report.land == 0, str(report)
    assert report.dot_product < 1e-13


def look(count: int = 6) -> Observations:
    return Observations(
        time=START,
        variable=np.array("thetao"),
        lat=np.linspace(-22, -4, count),
        lon=np.linspace(10, 320, count),
        depth=np.array(5.0),
        value=np.zeros(count),
        error=np.array(0.5),
        kind=np.array("buoy"),
    )


def test_operators_pass_alone_and_after_an_emulator() -> None:
    emulator, state, forcing = cases()["samudra"]()
    observations = look()
    alone = check_adjoint(operator_for(state.layout, observations), state)
    assert isinstance(operator_for(state.layout, observations), ObservationOperator)
    assert alone.passed and alone.kind == "linear" and alone.influence["uo"] == 0, str(alone)
    together = check_adjoint(emulator, state, forcing(state), observations=observations, steps=2)
    assert together.passed and together.kind == "smooth", str(together)
    assert "2 steps and H" in str(together)


def test_roots_pass_and_must_be_linear() -> None:
    layout = small_layout()
    root = Uncorrelated(layout, {"thetao": 0.5, "zos": [0.1]})
    report = check_adjoint(root)
    assert report.passed and report.kind == "linear" and math.isinf(report.slope), str(report)

    class Curved(Uncorrelated):
        def apply(self, v: Tensor) -> Tensor:
            return super().apply(v + 0.1 * v**2)

    assert "not linear" in str(check_adjoint(Curved(layout, {"thetao": 0.5})))


# --- broken ones -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Driven:
    """A smooth step in which forcing and all fields matter, and one thing may be broken."""

    change: Callable[[Tensor], Tensor] = lambda x: x
    layout: Layout = field(default_factory=small_layout)
    forcing_layout: Layout | None = field(default_factory=forcing_layout)
    dt: timedelta = timedelta(days=5)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        mask = self.layout.mask
        x = state.data * mask
        push = torch.zeros(()) if forcing is None else forcing.data.sum(1, keepdim=True)
        mixed = x + x.roll(1, 1) + 0.1 * x * x.roll(1, -1) + 0.1 * torch.sin(push)
        return state.replace(data=self.change(mixed * mask) * mask, time=state.time + self.dt)


def run(emulator: Any, steps: int = 2, **options: Any) -> AdjointReport:
    state = random_state(emulator.layout)
    forcing = None if emulator.forcing_layout is None else random_state(emulator.forcing_layout)
    return check_adjoint(emulator, state, forcing, steps=steps, **options)


def test_the_example_is_sound() -> None:
    report = run(Driven())
    assert report.passed and report.kind == "smooth", str(report)


def half(x: Tensor) -> Tensor:
    return 0.5 * x + 0.5 * x.detach()


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.sin(x)


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.sin(x.numpy()))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda x: x.detach(), "the gradient is cut: the output has none, and changes; in step 1 by Tensor.detach at"),
        (lambda x: x.data, "the gradient is cut: .* in step 1 by Tensor.data at test_adjoint.py:"),
        (without_gradient, "the gradient is cut: .* in step 1 by sin at test_adjoint.py:"),
        (half, "the gradient is cut or wrong: it misses .* in step 1 by Tensor.detach at test_adjoint.py:"),
        (lambda x: torch.round(10 * x) / 10, "the gradient with respect to thetao is cut: .* in step 1 by round at"),
        (through_numpy, "no gradient: .*numpy.*; step 1 raises"),
        (lambda x: x + 1e-6 * x.detach(), "cut or wrong: it misses [12].*e-06"),
        (lambda x: torch.sqrt((x * x).sum() * 0 + x * x), "not finite"),
    ],
    ids=["detach", "data", "no_grad", "half", "round", "numpy", "1e-6", "root of 0"],
)
def test_a_broken_gradient_is_named(change: Callable[[Tensor], Tensor], wanted: str) -> None:
    report = run(Driven(change))
    assert not report.passed and re.search(wanted, str(report)), str(report)
    with pytest.raises(AdjointError, match="FAILED"):
        run(Driven(change), strict=True)


@dataclass(frozen=True, eq=False)
class OneField(Driven):
    """Loses one field, by detaching or by ignoring it."""

    how: str = "detach"

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        zos = self.layout.channels("zos")
        data = state.data.clone()
        data[:, zos] = data[:, zos].detach() if self.how == "detach" else 0.0
        return super().step(state.replace(data=data), forcing, noise)


def test_a_point_at_a_kink_is_not_taken_for_a_wrong_gradient() -> None:
    emulator = Driven(lambda x: x + 0.1 * x.abs(), forcing_layout=None)
    rest = random_state(emulator.layout)
    rest = rest.replace(data=torch.zeros_like(rest.data))
    report = check_adjoint(emulator, rest)
    assert report.kind == "kinked" and "kinks, as of ReLU" in str(report)
    assert check_adjoint(emulator, rest, smooth=False).passed


def test_lost_inputs_are_named() -> None:
    assert "the gradient with respect to zos is cut" in str(run(OneField(), steps=1))
    ignored = run(OneField(how="ignore"), steps=1)
    assert "zos is ignored" in str(ignored) and not ignored.passed
    assert run(OneField(how="ignore"), steps=1, may_ignore=("zos",)).passed

    class Windless(Driven):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            return super().step(state, None, noise)

    assert "forcing tauuo is ignored" in str(run(Windless()))

    class Deaf(Driven):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            return state.replace(data=torch.ones_like(state.data) * self.layout.mask)

    assert "the input is ignored: the output is always the same" in str(run(Deaf()))


def test_a_cut_in_a_later_step_is_found_there() -> None:
    class Late(Driven):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            new = super().step(state, forcing, noise)
            return new if state.time == START else new.replace(data=new.data.detach())

    assert "in step 2 by Tensor.detach" in str(run(Late()))


def test_writing_into_the_input_is_caught() -> None:
    class InPlace(Driven):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            state.data.mul_(1.01)
            return super().step(state, forcing, noise)

    assert "the input is changed in place" in str(run(InPlace()))


def test_draws_from_elsewhere_and_values_on_land_are_caught() -> None:
    class Random(Driven):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            new = super().step(state, forcing, noise)
            return new.replace(data=new.data + torch.randn(()) * self.layout.mask)

    assert "two calls with the same input and noise differ" in str(run(Random()))

    class Wet(Driven):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            new = super().step(state, forcing, noise)
            return new.replace(data=new.data + 1.0)

    assert "values on land are not 0" in str(run(Wet()))

    class FromLand(Driven):
        def step(self, state: State, forcing: State | None, noise: Draws) -> State:
            new = super().step(state, forcing, noise)
            return new.replace(data=new.data + state.data.mean() * self.layout.mask)

    leaking = run(FromLand())
    assert "the gradient on land is up to" in str(leaking) and leaking.land > 0
    assert run(FromLand(), land=False).passed


class Sine(torch.autograd.Function):
    """Without forward mode, and with a factor by which its gradient is wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wrong: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.wrong = wrong
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.wrong * g[0] * torch.cos(x), None


def test_without_forward_mode_the_transpose_is_differentiated() -> None:
    report = run(Driven(lambda x: Sine.apply(x, 1.0)))
    assert report.passed and report.tangent == "double backward", str(report)
    assert "no forward mode" in str(report) and report.dot_product < 1e-14
    wrong = run(Driven(lambda x: Sine.apply(x, 1.1)))
    assert wrong.kind == "wrong" and "cut or wrong: it misses" in str(wrong)


def test_a_transpose_that_is_not_one_is_caught() -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 1.0 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *g: Any) -> Any:
            return 0.5 * g[0]

        @staticmethod
        def jvp(ctx: Any, *t: Any) -> Any:
            return 1.0 * t[0]

    assert "the transpose is not that of the tangent" in str(run(Driven(lambda x: Half.apply(x))))


def test_float32_has_wider_limits_and_no_taylor_test() -> None:
    report = run(Driven(), dtype=torch.float32)
    assert report.passed and math.isnan(report.slope) and 0 < report.dot_product < 1e-4


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="needs a state"):
        check_adjoint(Driven())
    with pytest.raises(ValueError, match="steps >= 1"):
        run(Driven(), steps=0)
