"""What the trainer needs of an emulator: a network of torch, constants in physical units, and records per step."""

from __future__ import annotations

from typing import Any, Protocol, Self

from torch import nn

from .emulator import Emulator
from .scaling import Scaling
from .state import Layout


class Trainable(Emulator, Protocol):
    """An emulator around a network that can be trained: `Samudra`, `Regional`, `GenSIM`.

    Attributes:
        forcing_layout: of the forcing; there is some.
        network: its weights are trained; whatever else the emulator holds is not.
        scaling: standard deviations and typical changes of the state's channels, in which errors are counted.
        stride: records per step.
    """

    @property
    def forcing_layout(self) -> Layout: ...  # noqa: D102
    @property
    def network(self) -> nn.Module: ...  # noqa: D102
    @property
    def scaling(self) -> Scaling: ...  # noqa: D102
    @property
    def stride(self) -> int: ...  # noqa: D102

    def with_network(self, network: Any, *, recompute: bool | None = None) -> Self:
        """The same emulator around another network of its shape, with no file's checkpoint.

        Args:
            network: on any device; what else the emulator holds follows it there.
            recompute: for training: keep no activations, compute them again in the backward pass, or do not; nothing
                else the emulator holds gets gradients. None: as it is.
        """
        ...
