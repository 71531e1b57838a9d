"""Regional forecasts of sea ice, twelve hours at a time: deterministic, by diffusion, or by diffusion of the residual.

Finn et al. (2024), "Generative diffusion for regional surrogate models from sea-ice simulations", J. Adv. Model. Earth
Syst., doi:10.1029/2024MS004395.  A network (`uvit`) is told the state at t and the forcing at t and t + 12 h, all
normalised.  A deterministic one gives the normalised increment d; that of a diffusion model is called many times to
turn noise into an increment z (`diffusion.sample`), or into the residual r that d lacks:

    x(t + 12 h) = clamp(x(t) + mean + std z, lower, upper)
    x(t + 12 h) = clamp(x(t) + mean + std d + m + s r, lower, upper)

All of it can be differentiated with respect to state, forcing and noise; the original cannot.  Its other baselines are
in `correlated` and `free_drift`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .checkpoint import sha256_of
from .diffusion import denoiser, karras_levels, sample, v_of
from .emulator import check_inputs
from .flow import Conditional, Function
from .gensim_files import ConfigError
from .noise import Draws
from .regional_files import RegionalConfig, load_network, load_residual, read_config
from .regional_scaling import after, encode, on_ocean
from .running import Running
from .scaling import Scaling
from .state import Layout, LayoutError, State
from .uvit import UViT

__all__ = ["ConfigError", "Regional", "RegionalConfig", "Running", "forecast", "load_network", "read_config"]

STATES = ("sithick", "siconc", "sidamage", "siu", "siv")
FORCINGS = ("tas", "huss", "uas", "vas")


# --- forecast -----------------------------------------------------------------------------------------


def forecast(
    network: UViT,
    states: Tensor,
    forcings: Tensor,
    noise: Tensor | None = None,
    config: str | Path | Mapping[str, Any] | RegionalConfig | None = None,
    *,
    first_guess: UViT | None = None,
    mask: Tensor | None = None,
    running: Running | None = None,
) -> Tensor:
    """Forecast the ice twelve hours on; differentiable in states, forcings and noise.

    Args:
        network: from `load_network`, in the dtype of the states.
        states: thickness m, concentration, damage, drift in x and y m/s (batch, 1, 5, y, x).
        forcings: temperature K, humidity kg/kg, wind in x and y m/s, at t and t + 12 h (batch, 2, 4, y, x).
        noise: standard normal numbers (batch, 5, y, x); a deterministic network needs none and uses none.
        config: constants and sampler, see `read_config`; None for the published ones.
        first_guess: deterministic network that a residual model corrects.
        mask: 1 for ocean, 0 for land (batch, 1, y, x); None for no land, as in training.
        running: how to compute it.

    Returns:
        The state at t + 12 h, physical units (batch, 5, y, x), within its bounds and 0 on land.

    Raises:
        LayoutError: if shapes do not belong together, or there is no finite value in the ocean.
        ConfigError: see `read_config`; or if networks, constants and noise do not make a forecast.

    Source: Finn et al. (2024).
    """
    c, how = read_config(config), running or Running()
    _check_networks(network, first_guess, c)
    _check(network, c, states, forcings, noise, mask)
    given = _Given(states[:, 0], forcings, noise if network.config.n_time_hidden else None, mask)
    if how.one_at_a_time:
        return torch.cat([_advance(network, first_guess, given.row(i), c, how) for i in range(len(states))])
    return _advance(network, first_guess, given, c, how)


class _Given(NamedTuple):
    """What a step is given, each (batch, ...); states have no time axis here."""

    states: Tensor
    forcings: Tensor
    noise: Tensor | None
    mask: Tensor | None

    def row(self, i: int) -> _Given:
        """One sample alone."""
        eps, mask = (None if v is None else v[i : i + 1] for v in (self.noise, self.mask))
        return _Given(self.states[i : i + 1], self.forcings[i : i + 1], eps, mask)


def _advance(network: UViT, first_guess: UViT | None, given: _Given, c: RegionalConfig, how: Running) -> Tensor:
    """Step a batch, (batch, state, y, x)."""
    if given.noise is None:
        told = encode(given.states, given.forcings, c, given.mask)
        return after(given.states, _call(network, told, None, c, how), c, mask=given.mask)
    drawn = _conditional(network, first_guess, given, c, how)
    return drawn.decode(drawn.draw(), True)


def _conditional(
    network: UViT, first_guess: UViT | None, given: _Given, c: RegionalConfig, how: Running
) -> Conditional:
    """What a generative step draws from."""
    states, forcings, eps, mask = given
    assert eps is not None
    told = encode(states, forcings, c, mask)
    d = None if first_guess is None else on_ocean(_call(first_guess, told, None, c, how), mask)
    if d is not None:
        told = torch.cat((told, d), 1)

    def v(x: Tensor, gamma: float) -> Tensor:
        return on_ocean(_call(network, torch.cat((x, told), 1), gamma, c, how), mask)

    def sampler(function: Function) -> Tensor:
        levels = karras_levels(c.n_steps, c.rho, c.gamma_min, c.gamma_max)
        return sample(function, on_ocean(eps, mask), levels, second_order=c.second_order)

    def decode(z: Tensor, bounded: bool) -> Tensor:
        limits = c if bounded else replace(c, lower=(-math.inf,) * len(c.std), upper=(math.inf,) * len(c.std))
        return after(states, z, limits, mask=mask) if d is None else after(states, d, limits, z, mask)

    return Conditional(v, sampler, decode, (denoiser, v_of))


def _call(network: UViT, x: Tensor, gamma: float | None, c: RegionalConfig, how: Running) -> Tensor:
    """One network call, (batch, state, y, x)."""
    low, high = c.level_range
    level = None if gamma is None else x.new_full((len(x), 1), (gamma - low) / (high - low))
    labels = x.new_zeros(len(x), network.config.n_augment_hidden)
    run = how.method(network)
    with how.autocast(x.device):
        if how.recompute and torch.is_grad_enabled():
            same = network.training  # only dropout draws
            out: Tensor = checkpoint(run, x, labels, level, use_reentrant=False, preserve_rng_state=same)
        else:
            out = run(x, labels, level)
    return out.to(x.dtype)


def _check_networks(network: UViT, first_guess: UViT | None, c: RegionalConfig) -> None:
    kind = c.kind_of(network.config)
    if kind != "residual":
        if first_guess is not None:
            raise ConfigError(f"a {kind} network corrects no first guess; leave it out")
        return
    if first_guess is None or c.kind_of(first_guess.config) != "deterministic":
        raise ConfigError("a residual model needs the deterministic network it corrects; give it as first_guess")
    if not c.residual_scale:
        raise ConfigError(
            "a residual model needs mean and scale of the residual; give them as `residual` in the configuration, "
            "or read them by `load_residual` from its checkpoint"
        )


def _check(
    network: UViT, c: RegionalConfig, states: Tensor, forcings: Tensor, noise: Tensor | None, mask: Tensor | None
) -> None:
    kind = c.kind_of(network.config)
    if noise is None and kind != "deterministic":
        raise ConfigError(f"a {kind} network needs noise, standard normal numbers of the states' shape, got None")
    batch, (height, width), n = len(states), states.shape[-2:], len(c.std)
    wanted = {
        "states": (states, (batch, 1, n, height, width)),
        "forcings": (forcings, (batch, 2, (len(c.input_mean) - n) // 2, height, width)),
        "noise": (noise, (batch, n, height, width)),
        "mask": (mask, (batch, 1, height, width)),
    }
    wrong = [
        f"{name} {shape}, got {tuple(v.shape)}"
        for name, (v, shape) in wanted.items()
        if v is not None and tuple(v.shape) != shape
    ]
    if wrong:
        raise LayoutError(f"regional forecast: wanted {'; '.join(wrong)}")
    _check_grid(network, (height, width))
    for name, value in (("states", states), ("forcings", forcings)):
        bad = ~value.isfinite().flatten(1, 2).all(1)
        if mask is not None:
            bad &= mask[:, 0] > 0
        if bool(bad.any()):
            b, j, i = (int(k) for k in bad.nonzero()[0])
            raise LayoutError(
                f"regional forecast: {name} are not finite in {int(bad.sum())} ocean cells, the first in sample {b}, "
                f"row {j}, column {i}; the mask and the data do not belong together"
            )


def _check_grid(network: UViT, size: tuple[int, int]) -> None:
    factor = network.config.factor
    if size[0] % factor or size[1] % factor:
        raise LayoutError(
            f"the network halves maps down to tokens of {factor} x {factor} cells, which cannot tile a grid of "
            f"{size[0]} x {size[1]}; cut or extend it to multiples of {factor}"
        )


# --- emulator -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Regional:
    """A regional network stepping States; an `Emulator`.

    Noise is drawn of the stream "regional", (member, 5, y, x) at the time a step starts from, unless the network is a
    deterministic one.

    Attributes:
        network: from `load_network`; its sizes say whether it is deterministic, a diffusion model, or a residual one.
        layout: of the state, the fields `STATES`, drift along the grid's axes.
        forcing_layout: the fields `FORCINGS`, wind along the grid's axes, at the slots 0 and 1 of `dt` each.
        config: constants and sampler.
        running: how to compute it.
        first_guess: deterministic network that a residual model corrects.
        checkpoint: SHA-256 of the weights' file, for provenance.
        dt: how far one step goes.

    Raises:
        LayoutError: for other fields or slots, or a grid that the network cannot tile.
        ConfigError: if networks and constants do not belong together.
    """

    network: UViT
    layout: Layout
    forcing_layout: Layout
    config: RegionalConfig = field(default_factory=RegionalConfig)
    running: Running = field(default_factory=Running)
    first_guess: UViT | None = None
    checkpoint: str = ""
    dt: timedelta = timedelta(hours=12)

    def __post_init__(self) -> None:
        _check_networks(self.network, self.first_guess, self.config)
        forcing = self.forcing_layout
        got = (self.layout.names, forcing.names, forcing.slots, forcing.interval, forcing.shape[1:])
        wanted = (STATES, FORCINGS, (0, 1), self.dt, self.layout.shape[1:])
        if got != wanted or len(self.layout.slots) != 1:
            raise LayoutError(
                f"Regional: wanted states, forcings, forcing slots, interval and grid {wanted}, got {got} and state "
                f"slots {self.layout.slots}"
            )
        _check_grid(self.network, self.layout.shape[1:])

    @property
    def kind(self) -> str:
        """What the network is, see `RegionalConfig.kind_of`."""
        return self.config.kind_of(self.network.config)

    def __repr__(self) -> str:
        calls = "1 network call" if self.kind == "deterministic" else f"{self.config.calls} network calls"
        return (
            f"Regional({self.kind}; grid {self.layout.shape[1:]}; {calls}; checkpoint {self.checkpoint[:12] or 'none'})"
        )

    @classmethod
    def untrained(
        cls,
        layout: Layout,
        forcing_layout: Layout,
        config: RegionalConfig,
        network: Literal["deterministic", "diffusion"] = "diffusion",
        *,
        first_guess: UViT | None = None,
        seed: int = 0,
    ) -> Regional:
        """An emulator to be trained, with random weights for one of the configuration's networks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = UViT(getattr(config, network))
        return cls(made.eval(), layout, forcing_layout, config, first_guess=first_guess)

    @classmethod
    def load(
        cls,
        path: str | Path,
        layout: Layout,
        forcing_layout: Layout,
        config: str | Path | Mapping[str, Any] | RegionalConfig | None = None,
        *,
        first_guess: str | Path | None = None,
    ) -> Regional:
        """An emulator with weights from files; a residual model's checkpoint may hold its first guess itself."""
        c, network, hashes = read_config(config), load_network(path, config), [sha256_of(Path(path))]
        guess = None
        if c.kind_of(network.config) == "residual":
            guess = load_network(first_guess or path, c, part=None if first_guess else "det_network.")
            hashes += [sha256_of(Path(first_guess))] if first_guess else []
            if not c.residual_scale:
                mean, scale = load_residual(path)
                c = replace(c, residual_mean=mean, residual_scale=scale)
        return cls(network, layout, forcing_layout, c, first_guess=guess, checkpoint=" ".join(hashes))

    @property
    def stride(self) -> int:
        """Records per step; stores have one every `dt`."""
        return 1

    @property
    def scaling(self) -> Scaling:
        """The configuration's constants as tensors."""
        c, n = self.config, self.layout.shape[0]
        numbers = (c.input_mean[:n], c.input_std[:n], c.std, c.input_mean[n:], c.input_std[n:])
        return Scaling(*(torch.tensor(v, dtype=torch.float32) for v in numbers))

    def with_network(self, network: UViT, *, recompute: bool | None = None) -> Self:
        """Around another network; see `Trainable`."""
        if recompute is None:
            return replace(self, network=network, checkpoint="")
        guess = self.first_guess and copy.deepcopy(self.first_guess).requires_grad_(False).eval()
        if guess is not None:
            guess = guess.to(next(network.parameters()).device)
        running = replace(self.running, recompute=recompute)
        return replace(self, network=network, first_guess=guess, running=running, checkpoint="")

    def tuned(self, running: Running | None = None, **sampler: Any) -> Regional:
        """The same weights, run differently: `running`, or fields of the configuration such as `n_steps=5`."""
        return replace(self, running=running or self.running, config=replace(self.config, **sampler))

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state twelve hours later, for the same members, within its bounds."""
        x, driven, eps, mask = self._told(state, forcing, noise)
        new = forecast(
            self.network,
            x[:, None],
            driven,
            eps,
            self.config,
            first_guess=self.first_guess,
            mask=mask,
            running=self.running,
        )
        return state.replace(data=new, time=state.time + self.dt)

    def conditional(self, state: State, forcing: State | None, noise: Draws) -> Iterator[Conditional]:
        """What `step` would draw from, for one member after the other or all together as it would run.

        Raises ConfigError for a deterministic network, and what `step` does.
        """
        if self.kind == "deterministic":
            raise ConfigError("a deterministic network draws nothing; wanted one of kind diffusion or residual")
        given = self._told(state, forcing, noise)
        _check(self.network, self.config, given.states[:, None], *given[1:])
        if not self.running.one_at_a_time:
            yield _conditional(self.network, self.first_guess, given, self.config, self.running)
            return
        for i in range(len(state.members)):
            alone = _conditional(self.network, self.first_guess, given.row(i), self.config, self.running)
            yield replace(alone, rows=slice(i, i + 1))

    def _told(self, state: State, forcing: State | None, noise: Draws) -> _Given:
        forcing = check_inputs(self, state, forcing)
        assert forcing is not None
        x, eps, wet = state.data, None, self.layout.mask
        if self.kind != "deterministic":
            drawn = noise.stream("regional")
            eps = drawn.normal(state.members, state.time, x.shape[1:], dtype=x.dtype, device=x.device)
        driven = forcing.data.to(x).reshape(len(x), 2, -1, *x.shape[2:])
        mask = None if bool(wet.all()) else wet[None, :1].to(x).expand(len(x), -1, -1, -1)
        return _Given(x, driven, eps, mask)
