"""GenSIM: a generative forecast of Arctic sea ice, twelve hours at a time, as tensors and as an `Emulator`.

Finn et al. (2025), "GenSIM: a generative sea-ice model", arXiv:2508.14984.  From the state x(t), the forcing at t and
t + 12 h and the degree days of the past, all normalised, a network gives the velocity of a flow that turns noise into
the normalised increment r; the flow is kept within the bounds of the state (`flow`), and

    x(t + 12 h) = clamp(x(t) + mean + std r, lower, upper) mask

Every call of the network sees the map through windows (`tiles`).  All of it can be differentiated with respect to
state, forcing and noise; the original cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .checkpoint import sha256_of
from .emulator import check_inputs
from .flow import Conditional, Function, denoiser, sample, time_nodes, velocity_of
from .gensim_files import ConfigError, GenSIMConfig, load_network, located, read_config
from .gensim_scaling import decode, encode, latent_bounds
from .ice_forcing import polar_stereographic
from .noise import Draws
from .running import Running
from .scaling import Scaling
from .state import Layout, LayoutError, State
from .tiles import Group, Tiling, TilingError, tiling
from .transformer import Transformer

__all__ = [
    "ConfigError",
    "GenSIM",
    "GenSIMConfig",
    "Running",
    "TilingError",
    "forecast",
    "load_network",
    "read_config",
]

STATES = ("sithick", "siconc", "sidamage", "siu", "siv", "sisnthick")
FORCINGS = ("tas", "huss", "uas", "vas")
DEGREE_DAYS = ("pdd_month", "fdd_month", "pdd_year", "fdd_year")


# --- forecast -----------------------------------------------------------------------------------------


def forecast(
    network: Transformer,
    states: Tensor,
    forcings: Tensor,
    degree_days: Tensor,
    mesh: Tensor,
    mask: Tensor,
    noise: Tensor,
    config: str | Path | Mapping[str, Any] | GenSIMConfig | None = None,
    running: Running | None = None,
) -> Tensor:
    """Forecast the ice twelve hours on; differentiable in states, forcings, degree days and noise.

    Args:
        network: from `load_network`, in the dtype of the states.
        states: thickness m, concentration, damage, drift in x and y m/s, snow m (batch, 1, 6, y, x).
        forcings: temperature K, humidity kg/kg, wind in x and y m/s, at t and t + 12 h (batch, 2, 4, y, x).
        degree_days: mean melting and freezing degrees K of month and year before t (batch, 4, y, x).
        mesh: position of the cells in km, polar stereographic (batch, 2, y, x).
        mask: 1 for ocean, 0 for land (batch, 1, y, x).
        noise: standard normal numbers (batch, 6, y, x).
        config: constants, sampler and windows, see `read_config`; None for the released ones.
        running: how to compute it; bfloat16 if it or the configuration says so.

    Returns:
        The state at t + 12 h, physical units (batch, 6, y, x), within its bounds and 0 on land.

    Raises:
        LayoutError: if shapes do not belong together, or there is no finite value where the mask says ocean.
        TilingError: if windows cannot tile the grid.
        ConfigError: see `read_config`.

    Source: Finn et al. (2025).
    """
    c, how = read_config(config), running or Running()
    _check(c, states, forcings, degree_days, mesh, mask, noise)
    given = _Given(states[:, 0], forcings, degree_days, noise, mask)
    return _members(network, given, _tilings(states, mesh, mask, c, how), c, how)


class _Given(NamedTuple):
    """What a step is given, each (batch, ...); states have no time axis here."""

    states: Tensor
    forcings: Tensor
    degree_days: Tensor
    noise: Tensor
    mask: Tensor


def _members(network: Transformer, given: _Given, tilings: list[Tiling], c: GenSIMConfig, how: Running) -> Tensor:
    """Step one by one, or all together where they share mesh and mask."""
    if not how.one_at_a_time and all(t is tilings[0] for t in tilings):
        return _advance(network, given, tilings[0], c, how)
    rows = (_Given(*(v[i : i + 1] for v in given)) for i in range(len(given.mask)))
    return torch.cat([_advance(network, row, t, c, how) for row, t in zip(rows, tilings, strict=True)])


def _advance(network: Transformer, given: _Given, windows: Tiling, c: GenSIMConfig, how: Running) -> Tensor:
    """Step a batch on one mesh and mask, (batch, state, y, x)."""
    drawn = _conditional(network, given, windows, c, how)
    return drawn.decode(drawn.draw(), True)


def _conditional(network: Transformer, given: _Given, windows: Tiling, c: GenSIMConfig, how: Running) -> Conditional:
    """What a step of a batch on one mesh and mask draws from."""
    mask, dry = given.mask, given.mask == 0
    states, degree_days, noise = (v.masked_fill(dry, 0.0) for v in (given.states, given.degree_days, given.noise))
    forcings = given.forcings.masked_fill(dry[:, None], 0.0)
    conditions = torch.cat((encode(states, forcings, degree_days, mask, c), mask.to(states)), 1)
    told = [group.gather(conditions) for group in windows.groups]
    nodes = time_nodes(c.n_steps, c.schedule_scale, c.schedule_shift)
    bounds = latent_bounds(states, mask, c) if c.censoring else None

    def velocity(x: Tensor, t: float) -> Tensor:
        return _velocity(network, x, told, t, windows, c, how)

    def decoded(increment: Tensor, bounded: bool) -> Tensor:
        limits = c if bounded else replace(c, lower=(-math.inf,) * len(c.std), upper=(math.inf,) * len(c.std))
        return decode(states, increment, mask, limits)

    def sampler(function: Function) -> Tensor:
        return sample(function, noise, nodes, second_order=c.second_order, bounds=bounds)

    return Conditional(velocity, sampler, decoded, (denoiser, velocity_of))


def _velocity(
    network: Transformer, x: Tensor, told: list[Tensor], t: float, windows: Tiling, c: GenSIMConfig, how: Running
) -> Tensor:
    """One network call through all windows, (batch, state, y, x)."""
    sizes = (c.network.n_time_in, c.network.n_augment_in, c.network.n_res_in)
    time, labels, resolution = (x.new_full((1, n), v) for n, v in zip(sizes, (t, 0.0, c.resolution), strict=True))
    with how.autocast(x.device, c.bf16):
        e = network.embedder(time, labels, resolution)
        run = _recomputed if how.recompute and torch.is_grad_enabled() else _through
        parts = [run(network, g, x, cut, e, resolution, how) for g, cut in zip(windows.groups, told, strict=True)]
    return windows.assemble(parts, x)


def _through(
    network: Transformer, group: Group, x: Tensor, told: Tensor, e: Tensor, resolution: Tensor, how: Running
) -> Tensor:
    """The network in the windows of one group, (batch, state, kept cell); `told` is cut into patches."""
    cut = torch.cat((group.gather(x), told), -1)
    place, ocean = (v.repeat(len(x), 1, 1) for v in (network.position(group.mesh, resolution), group.ocean))
    return group.select(how.method(network, "tokens")(cut, place, ocean, e, group.skipped, group.wanted))


def _recomputed(network: Transformer, *given: Any) -> Tensor:
    same = network.training  # only dropout draws
    out: Tensor = checkpoint(_through, network, *given, use_reentrant=False, preserve_rng_state=same)
    return out


def _tilings(like: Tensor, mesh: Tensor, mask: Tensor, c: GenSIMConfig, how: Running) -> list[Tiling]:
    """The windows of every sample; samples of one mesh and mask share them."""
    made: list[Tiling] = []
    for i in range(len(mask)):
        if i and torch.equal(mesh[i], mesh[i - 1]) and torch.equal(mask[i], mask[i - 1]):
            made.append(made[-1])
        else:
            made.append(_tiling(mesh[i], mask[i], c, how).to(like.device, like.dtype))
    return made


def _tiling(mesh: Tensor, mask: Tensor, c: GenSIMConfig, how: Running) -> Tiling:
    patch = c.network.patch_size
    return tiling(mesh.cpu(), mask.cpu(), c.window, c.halo, patch, skip_land=how.skip_land, together=how.together)


def _check(
    c: GenSIMConfig,
    states: Tensor,
    forcings: Tensor,
    degree_days: Tensor,
    mesh: Tensor,
    mask: Tensor,
    noise: Tensor,
) -> None:
    batch, (height, width), n = len(states), states.shape[-2:], len(c.std)
    days = len(c.input_mean) - n - 2 * (forcings.shape[2] if forcings.ndim == 5 else 0)
    wanted = {
        "states": (states, (batch, 1, n, height, width)),
        "forcings": (forcings, (batch, 2, (len(c.input_mean) - n - days) // 2, height, width)),
        "degree_days": (degree_days, (batch, days, height, width)),
        "mesh": (mesh, (batch, 2, height, width)),
        "mask": (mask, (batch, 1, height, width)),
        "noise": (noise, (batch, n, height, width)),
    }
    wrong = [f"{k} {shape}, got {tuple(v.shape)}" for k, (v, shape) in wanted.items() if tuple(v.shape) != shape]
    if wrong:
        raise LayoutError(f"GenSIM: wanted {'; '.join(wrong)}")
    ocean = mask[:, 0] > 0
    for name, value in (("states", states), ("forcings", forcings), ("degree_days", degree_days)):
        bad = ~value.isfinite().flatten(1, -3).all(1) & ocean
        if bool(bad.any()):
            b, j, i = (int(k) for k in bad.nonzero()[0])
            raise LayoutError(
                f"GenSIM: {name} are not finite in {int(bad.sum())} cells where the mask is 1, the first in sample "
                f"{b}, row {j}, column {i}; the mask and the data do not belong together"
            )


# --- emulator -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GenSIM:
    """A GenSIM network stepping States; an `Emulator`.

    Noise is drawn of the stream "gensim", (member, 6, y, x) at the time a step starts from.

    Attributes:
        network: from `load_network`.
        layout: of the state, the fields `STATES`, drift along the grid's axes.
        forcing_layout: the fields `FORCINGS` and `DEGREE_DAYS`, wind along the grid's axes, at the slots 0 and 1 of
            `dt` each; the second slot's degree days are not used.
        config: constants, sampler and windows.
        running: how to compute it.
        mesh: position of the cells in km (2, y, x), x first; None to project the layout's latitude and longitude.
        checkpoint: SHA-256 of the weights' file, for provenance.
        dt: how far one step goes.

    Raises:
        LayoutError: for other fields or slots.
        TilingError: if windows cannot tile the grid.
    """

    network: Transformer
    layout: Layout
    forcing_layout: Layout
    config: GenSIMConfig = field(default_factory=GenSIMConfig)
    running: Running = field(default_factory=Running)
    mesh: Tensor | None = field(default=None, repr=False)
    checkpoint: str = ""
    dt: timedelta = timedelta(hours=12)

    def __post_init__(self) -> None:
        if self.network.config != self.config.network:
            raise ConfigError(
                f"the network has {self.network.config}, the configuration {self.config.network}; load it with that"
            )
        forcing = self.forcing_layout
        got = (self.layout.names, forcing.names, forcing.slots, forcing.interval, forcing.shape[1:])
        wanted = (STATES, FORCINGS + DEGREE_DAYS, (0, 1), self.dt, self.layout.shape[1:])
        if got != wanted or len(self.layout.slots) != 1:
            raise LayoutError(
                f"GenSIM: wanted states, forcings, forcing slots, interval and grid {wanted}, got {got} and state "
                f"slots {self.layout.slots}"
            )
        self._windows  # noqa: B018  # a grid that windows cannot tile is better found now than later

    def __repr__(self) -> str:
        c = self.config
        return (
            f"GenSIM(grid {self.layout.shape[1:]}; {c.calls} network calls; windows {c.window} + {c.halo}; "
            f"{'censored' if c.censoring else 'uncensored'}; checkpoint {self.checkpoint[:12] or 'none'})"
        )

    @classmethod
    def untrained(
        cls, layout: Layout, forcing_layout: Layout, config: GenSIMConfig, *, mesh: Tensor | None = None, seed: int = 0
    ) -> GenSIM:
        """An emulator to be trained, with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Transformer(config.network)
        return cls(network.eval(), layout, forcing_layout, config, mesh=mesh)

    @classmethod
    def load(
        cls,
        path: str | Path,
        layout: Layout,
        forcing_layout: Layout,
        config: str | Path | Mapping[str, Any] | GenSIMConfig | None = None,
        *,
        file: str | None = None,
        revision: str | None = None,
    ) -> GenSIM:
        """An emulator with weights from a file or a Hugging Face repository; arguments as `load_network`."""
        read, found = read_config(config), located(path, file, revision)
        return cls(load_network(found, read), layout, forcing_layout, read, checkpoint=sha256_of(found))

    @property
    def stride(self) -> int:
        """Records per step; stores have one every `dt`."""
        return 1

    @property
    def scaling(self) -> Scaling:
        """The configuration's constants as tensors, in the layouts' order of channels."""
        c, n, f = self.config, len(STATES), len(FORCINGS)
        order = (*range(n, n + f), *range(n + 2 * f, len(c.input_mean)))  # degree days stand in both slots
        later = (*range(n + f, n + 2 * f), *range(n + 2 * f, len(c.input_mean)))
        driven = ([v[k] for k in (*order, *later)] for v in (c.input_mean, c.input_std))
        return Scaling(*(torch.tensor(v) for v in (c.input_mean[:n], c.input_std[:n], c.std, *driven)))

    def with_network(self, network: Transformer, *, recompute: bool | None = None) -> Self:
        """Around another network; see `Trainable`."""
        running = self.running if recompute is None else replace(self.running, recompute=recompute)
        return replace(self, network=network, running=running, checkpoint="")

    def tuned(self, running: Running | None = None, **sampler: Any) -> GenSIM:
        """The same weights, run differently: `running`, or fields of the configuration such as `n_steps=5`."""
        return replace(self, running=running or self.running, config=replace(self.config, **sampler))

    @property
    def position(self) -> Tensor:
        """Position of the cells in km (2, y, x), x first: the `mesh`, or the projected latitude and longitude."""
        if self.mesh is not None:
            return self.mesh
        lat, lon = (torch.from_numpy(v).double() for v in self.layout.position(self.layout.fields[0]))
        return polar_stereographic(lat, lon)

    @cached_property
    def _windows(self) -> Tiling:
        mesh = self.position
        return _tiling(mesh, self.layout.mask[:1].to(mesh), self.config, self.running)

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tiling, Tensor]]:
        return {}

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The state twelve hours later, for the same members, within its bounds."""
        given, windows = self._told(state, forcing, noise)
        new = _members(self.network, given, [windows] * len(given.states), self.config, self.running)
        return state.replace(data=new, time=state.time + self.dt)

    def conditional(self, state: State, forcing: State | None, noise: Draws) -> Iterator[Conditional]:
        """What `step` would draw from, for one member after the other or all together as it would run."""
        given, windows = self._told(state, forcing, noise)
        if not self.running.one_at_a_time:
            yield _conditional(self.network, given, windows, self.config, self.running)
            return
        for i in range(len(state.members)):
            row = _Given(*(v[i : i + 1] for v in given))
            alone = _conditional(self.network, row, windows, self.config, self.running)
            yield replace(alone, rows=slice(i, i + 1))

    def _told(self, state: State, forcing: State | None, noise: Draws) -> tuple[_Given, Tiling]:
        forcing = check_inputs(self, state, forcing)
        assert forcing is not None
        x, where = state.data, (state.data.device, state.data.dtype)
        if where not in self._placed:
            self._placed[where] = self._windows.to(*where), self.layout.mask[None, :1].to(x)
        windows, mask = self._placed[where]
        driven = forcing.data.to(x).reshape(len(x), 2, -1, *x.shape[2:])
        eps = noise.stream("gensim").normal(state.members, state.time, x.shape[1:], dtype=x.dtype, device=x.device)
        n, masks = len(FORCINGS), mask.expand(len(x), -1, -1, -1)
        return _Given(x, driven[:, :, :n], driven[:, 0, n:], eps, masks), windows
