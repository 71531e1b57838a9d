"""Samudra as an Emulator: normalisation, history slots, masks and increments around the network.

Two ways to use the same network are in service here. The published models take two time slots and give
two, absolute, with the forcing of the input slots:

    x(t+1), x(t+2) = net(x(t-1), x(t), f(t-1), f(t))

Small models trained with polynya take one slot and predict the change of each channel in units of its
typical change, with the forcing of the interval they step over and static maps of where they are:

    x(t+1) = x(t) + σ_Δ net(x(t), f(t), static)

References: Dheeshjith et al. (2025, Geophys. Res. Lett. 52); Samudra 2 (arXiv:2606.02610).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .checkpoint import CheckpointError, load_network
from .emulator import check_inputs
from .noise import Draws
from .scaling import Scaling
from .state import Layout, LayoutError, State
from .unet import NetworkConfig, SamudraNet

__all__ = ["CheckpointError", "NetworkConfig", "Samudra", "SamudraNet", "load_network"]


@dataclass(frozen=True, eq=False)
class Samudra:
    """A Samudra network stepping States; an `Emulator`.

    Attributes:
        network: takes `in_channels` = state + forcing + static channels, gives the state's channels.
        layout: of the state; one step replaces all its time slots, so `dt` is slots times interval.
        forcing_layout: of the forcing.
        scaling: normalisation constants.
        increments: predict changes from the newest slot instead of absolute values.
        statics: names of static input maps, see `static_maps`.
        noise_maps: number of input maps of standard normal noise, drawn anew every step: what makes an
            emulator stochastic, trained with the loss "crps". The last input channels.
        checkpoint: SHA-256 of the weights' file, for provenance.
    """

    network: SamudraNet
    layout: Layout
    forcing_layout: Layout
    scaling: Scaling
    increments: bool = False
    statics: tuple[str, ...] = ()
    checkpoint: str = ""
    noise_maps: int = 0

    def __post_init__(self) -> None:
        config = self.network.config
        got = self.layout.shape[0] + self.forcing_layout.shape[0] + len(self.statics) + self.noise_maps
        if (config.in_channels, config.out_channels) != (got, self.layout.shape[0]):
            raise LayoutError(
                f"the network takes {config.in_channels} and gives {config.out_channels} channels; the layouts have "
                f"{self.layout.shape[0]} state + {self.forcing_layout.shape[0]} forcing + {len(self.statics)} static "
                f"and {self.noise_maps} noise channels and {self.layout.shape[0]} to predict"
            )

    def __repr__(self) -> str:
        c = self.network.config
        return (
            f"Samudra({', '.join(self.layout.names)}; slots {self.layout.slots}; forcing "
            f"{', '.join(self.forcing_layout.names)}; widths {c.widths}; checkpoint {self.checkpoint[:12] or 'none'})"
        )

    @classmethod
    def untrained(
        cls,
        layout: Layout,
        forcing_layout: Layout,
        scaling: Scaling,
        *,
        increments: bool = True,
        statics: tuple[str, ...] = (),
        noise_maps: int = 0,
        seed: int = 0,
        **network: Any,
    ) -> Samudra:
        """An emulator to be trained: random weights, and with `increments` a first forecast that is persistence.

        Args:
            layout, forcing_layout, scaling: see the class; `scaling_from(statistics, ...)` makes the constants.
            increments, statics, noise_maps: see the class.
            seed: of the weights.
            network: fields of `NetworkConfig` other than the numbers of channels.
        """
        channels = layout.shape[0]
        inputs = channels + forcing_layout.shape[0] + len(statics) + noise_maps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = SamudraNet(NetworkConfig(inputs, channels, **network))
        if increments:
            torch.nn.init.zeros_(net.decoder.weight)
            assert net.decoder.bias is not None
            torch.nn.init.zeros_(net.decoder.bias)
        return cls(net.eval(), layout, forcing_layout, scaling, increments, statics, "", noise_maps)

    def tuned(self, *, bf16: bool | None = None, one_at_a_time: bool | None = None, compiled: bool = False) -> Samudra:
        """The same weights, shared, run differently.

        Args:
            bf16: the U-Net under bfloat16 autocast, the decoder in float32; None as it is. About twice as fast on
                CPUs and GPUs with bfloat16 units, at 1 % of relative error a step.
            one_at_a_time: see `SamudraNet`; False lets a GPU run whole batches, whose last bits then depend on it.
            compiled: by `torch.compile`, at the first step of every shape; needs a C++ compiler.
        """
        old = self.network
        config = old.config if bf16 is None else replace(old.config, bf16=bf16)
        with torch.device("meta"):
            network = SamudraNet(config, one_at_a_time=old.one_at_a_time if one_at_a_time is None else one_at_a_time)
        network.load_state_dict(old.state_dict(keep_vars=True), assign=True)
        network.recompute = old.recompute
        network.train(old.training)
        if compiled:
            network.unet.compile()
        return replace(self, network=network)

    def with_network(self, network: SamudraNet, *, recompute: bool | None = None) -> Self:
        """Around another network; see `Trainable`."""
        network.recompute = network.recompute if recompute is None else recompute
        return replace(self, network=network, checkpoint="")

    @property
    def stride(self) -> int:
        """Records per step."""
        return len(self.layout.slots)

    @property
    def dt(self) -> timedelta:
        """Interval between records times the number of slots."""
        return self.layout.interval * self.stride

    @cached_property
    def _static(self) -> Tensor:
        return static_maps(self.layout, self.statics)

    @cached_property
    def _mask(self) -> dict[torch.device, Tensor]:
        return {}

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """The next time slots, for the same members; noise is drawn if there are `noise_maps`."""
        forcing = check_inputs(self, state, forcing)
        assert forcing is not None
        x, constants = state.data, self.scaling.to(state.data)
        mask = self._mask.setdefault(x.device, self.layout.mask.to(x.device))
        wet = mask[: self.layout.shape[0] // self.stride].any(0)
        normal = torch.where(mask, (x - constants.mean) / constants.std, 0.0)
        driven = torch.where(wet, (forcing.data.to(x) - constants.forcing_mean) / constants.forcing_std, 0.0)
        inputs = [driven, self._static.to(x).expand(len(x), -1, -1, -1)]
        if self.noise_maps:
            drawn = noise.stream("samudra").normal(
                state.members, state.time, (self.noise_maps, *x.shape[2:]), device=x.device, dtype=x.dtype
            )
            inputs.append(torch.where(wet, drawn, 0.0))
        boundary = torch.cat(inputs, 1)
        predicted = self.network(normal, boundary, mask)
        if self.increments:
            newest = x[:, self.layout.shape[0] - self.layout.shape[0] // self.stride :]
            result = newest.repeat(1, self.stride, 1, 1) + predicted * constants.increment
        else:
            result = torch.where(mask, predicted * constants.std + constants.mean, 0.0)
        return state.replace(data=result, time=state.time + self.dt)


def static_maps(layout: Layout, names: tuple[str, ...]) -> Tensor:
    """Maps that tell a convolution where it is, (static, y, x), float32, 0 on land.

    Names: `latitude` (standardised), `cos_longitude`, `sin_longitude` (once around the domain's zonal
    period), `depth` (of the sea floor, in 5 km), `wet`. Raises KeyError for any other.
    """
    if not names:
        return torch.zeros(0, *layout.shape[1:])
    lat, lon = layout.position(layout.fields[0])
    phase = 2 * np.pi * lon / float(layout.grid.attrs.get("zonal_period", 360.0))
    surface = layout.grid["wetmask"].values.astype(float)
    surface = surface[0] if surface.ndim == 3 else surface
    known: dict[str, Any] = {
        "latitude": lambda: (lat - lat.mean()) / lat.std(),
        "cos_longitude": lambda: np.cos(phase),
        "sin_longitude": lambda: np.sin(phase),
        "depth": lambda: layout.grid["deptho"].values / 5000.0,
        "wet": lambda: np.ones_like(surface),
    }
    return torch.from_numpy(np.stack([known[n]() * surface for n in names])).float()
