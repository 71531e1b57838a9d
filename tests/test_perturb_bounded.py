"""Bounded perturbations keep their bounds, antithetic ones cancel, and common random numbers are common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice

import numpy as np
import pytest
import torch
from small import START, random_state, small_grid, small_layout

from polynya.emulators import Draws, Field, Layout, Noise, State, nature_ocean
from polynya.emulators.nature_forcing import Warming
from polynya.ensembles import (
    ICE,
    Antithetic,
    Correlated,
    Diffused,
    Log,
    Logit,
    Mirrored,
    Perturbation,
    White,
    perturb,
    trajectory,
)

KINDS: list[Perturbation] = [White(), Correlated(3e6), Diffused(2e6)]
AMPLITUDE = {"siconc": 2.0, "sithick": 0.8, "sisnthick": 0.3, "zos": 0.1}


def ice_state() -> State:
    """Open water, full cover and everything between."""
    layout = Layout(tuple(Field(n) for n in ("siconc", "sithick", "sisnthick", "siu", "zos")), small_grid(levels=1))
    data = torch.rand(1, *layout.shape, generator=torch.Generator().manual_seed(0))
    data[:, :, 5] = 0.0
    data[:, 0, 6] = 1.0
    return State(data * layout.mask, START, layout, (0,))


@pytest.mark.parametrize("kind", [*KINDS, Antithetic(Diffused(2e6))])
def test_bounds_hold_and_open_water_stays_open(kind: Perturbation) -> None:
    state = ice_state()
    ensemble = perturb(state, 300, amplitude=AMPLITUDE, noise=Noise(1), kind=kind, space=ICE)
    cover, thick = ensemble["siconc"], ensemble["sithick"]
    assert float(cover.min()) >= 0 and float(cover.max()) <= 1 and float(thick.min()) >= 0
    for name in ("siconc", "sithick", "sisnthick"):
        was, now = state[name].expand_as(ensemble[name]), ensemble[name]
        assert (now[was == 0] == 0).all() and (now[was > 0] > 0).all()
        assert (now != was)[(was > 0) & (was < 1)].float().mean() > 0.99
    assert (cover[state["siconc"].expand_as(cover) == 1] == 1).all()
    assert (ensemble.data[:, ~state.layout.mask] == 0).all()
    plain = perturb(state, 300, amplitude=AMPLITUDE, noise=Noise(1), kind=kind)
    assert torch.equal(ensemble["zos"], plain["zos"]) and torch.equal(ensemble["siu"], plain["siu"])
    assert float(plain["siconc"].min()) < 0  # what the space is for


def test_moves_are_those_of_the_transforms() -> None:
    x = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    z = torch.linspace(-3, 3, 9, dtype=torch.float64)
    assert torch.allclose(Logit().move(x, z), torch.sigmoid(torch.logit(x) + z), atol=1e-14)
    assert torch.allclose(Logit(-2, 2).move(4 * x - 2, z), 4 * torch.sigmoid(torch.logit(x) + z) - 2, atol=1e-13)
    assert torch.allclose(Log(1.0).move(1 + x, z), 1 + torch.exp(torch.log(x) + z), atol=1e-13)
    edges = torch.tensor([0.0, 1.0, 1e-30, 1 - 1e-7])
    for far in (-800.0, 800.0):
        moved = Logit().move(edges, torch.full((4,), far))
        assert moved[0] == 0 and moved[1] == 1 and (moved >= 0).all() and (moved <= 1).all()


def test_the_mean_moves_as_documented() -> None:
    """Against Gauss-Hermite quadrature of the displaced value."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights, sigma = torch.from_numpy(weights / weights.sum()), 0.2
    by = sigma * torch.from_numpy(nodes)
    for x in (0.1, 0.3, 0.5, 0.9):
        mean = float((weights * Logit().move(torch.full_like(by, x), by)).sum())
        assert mean - x == pytest.approx(sigma**2 * x * (1 - x) * (1 - 2 * x) / 2, abs=2e-4)
    thick = float((weights * Log().move(torch.full_like(by, 1.5), by)).sum())
    assert thick == pytest.approx(1.5 * np.exp(sigma**2 / 2), rel=1e-12)


def test_values_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted values between 0.0 and 1.0, got 1 outside, in \[-0.5, 0.25"):
        Logit().move(torch.tensor([-0.5, 0.25]), torch.zeros(2))
    with pytest.raises(ValueError, match="not below 0.0, got 2 outside"):
        Log().move(torch.tensor([-0.5, -0.25]), torch.zeros(2))
    with pytest.raises(ValueError, match="low < high, got 1.0 and 1.0"):
        Logit(1.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_opposite_and_a_member_is_itself_alone(kind: Perturbation) -> None:
    layout = small_layout()
    drawn = Antithetic(kind).draw(layout, range(6), START, Noise(5))
    assert torch.equal(drawn[0::2], -drawn[1::2]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(Antithetic(kind).draw(layout, (5, 2), START, Noise(5)), drawn[[5, 2]])
    assert torch.equal(Antithetic(kind).draw(layout, range(0, 6, 2), START, Noise(5)),
                       kind.draw(layout, range(3), START, Noise(5)))  # fmt: skip
    state = random_state(layout, (0,))
    mean = perturb(state, 10, amplitude={"thetao": 3.0}, noise=Noise(5), kind=Antithetic(kind)).data.mean(0)
    assert torch.allclose(mean, state.data[0], atol=1e-6)


def test_mirrored_noise_is_noise_in_pairs() -> None:
    noise = Mirrored(Noise(3)).stream("a")
    drawn = noise.normal((0, 1, 2, 7), START, (5,))
    assert torch.equal(drawn[0], -drawn[1]) and torch.equal(drawn[3], -noise.normal((6,), START, (5,))[0])
    assert torch.equal(drawn[2:3], Noise(3).stream("a").normal((1,), START, (5,)))


@dataclass(frozen=True)
class Linear:
    """x' = 0.9 x + forcing + noise."""

    layout: Layout
    forcing_layout: Layout
    dt: timedelta = timedelta(days=5)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        assert forcing is not None
        shock = noise.stream("model").normal(state.members, state.time, state.layout.shape)
        new = 0.9 * state.data + forcing.data[:, :1] + shock
        return state.replace(data=new * self.layout.mask, time=state.time + self.dt)


def test_common_random_numbers_make_scenarios_comparable() -> None:
    """Same noise, two forcings: initial perturbations, weather and model noise are the same draws."""
    ocean = nature_ocean.globe()
    layout = ocean.layout.select(["zos"])
    emulator = Linear(layout, ocean.forcing_layout)
    start = State(torch.zeros(1, *layout.shape), START, layout, (0,))

    def final(warming: Warming, seed: int) -> State:
        ensemble = perturb(start, 4, amplitude={"zos": 1.0}, noise=Noise(seed), kind=Correlated(2e6))
        forcing = replace(ocean.forcing(noise=Noise(seed)), warming=warming)
        states = trajectory(emulator, ensemble, Heated(forcing), Noise(seed))
        return next(islice(states, 2, None))

    calm, warm = final(Warming(), 1), final(Warming(step=1.0), 1)
    response = (warm["zos"] - calm["zos"]).std(0)
    apart = (final(Warming(step=1.0), 2)["zos"] - calm["zos"]).std(0)
    wet = layout.mask
    assert float(response[wet].max()) < 1e-4 < 0.5 < float(apart[wet].mean())


@dataclass(frozen=True)
class Heated:
    """The heat flux alone, in K."""

    forcing: nature_ocean.NatureForcing

    def at(self, time: object, members: tuple[int, ...]) -> State:
        driven = self.forcing.at(time, members)  # type: ignore[arg-type]
        return driven.replace(data=driven["hfatm"].expand(-1, 3, -1, -1) / 40.0)
