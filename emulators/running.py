"""How a sea-ice network is run: which changes its numbers by rounding only, and its speed and memory a lot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["Running", "compiled"]


@dataclass(frozen=True)
class Running:
    """How a forecast is computed.

    Attributes:
        skip_land: leave out windows and tokens without ocean; of emulators that see maps through windows.
        together: windows that run as one batch: 1 for a CPU, more for a GPU; likewise.
        one_at_a_time: members singly, so that no bit of one depends on the others; False for a GPU.
        recompute: where gradients are wanted, keep no activations and compute each network call, or group of windows,
            again in the backward pass (Chen et al. 2016, arXiv:1604.06174): a third more work, the memory of one call.
        bf16: run the network under bfloat16 autocast, the sampler in full precision.
        compiled: run the network through `torch.compile`, see `compiled`. Every shape takes a minute at first, and with
            `skip_land` most groups of windows have a shape of their own: it is for many calls, and fewer shapes are had
            by more windows `together`.
    """

    skip_land: bool = True
    together: int = 1
    one_at_a_time: bool = True
    recompute: bool = True
    bf16: bool = False
    compiled: bool = False

    def autocast(self, device: torch.device, bf16: bool = False) -> AbstractContextManager[Any]:
        """The precision of network calls; bfloat16 if it is wanted here or there."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16 or bf16)

    def method(self, network: nn.Module, name: str = "__call__") -> Callable[..., Tensor]:
        """A method of a network, compiled if that is wanted."""
        return compiled(network, name) if self.compiled else cast(Callable[..., Tensor], getattr(network, name))


_FUNCTIONS: WeakKeyDictionary[nn.Module, dict[Any, Callable[..., Tensor]]] = WeakKeyDictionary()


def compiled(network: nn.Module, name: str = "__call__") -> Callable[..., Tensor]:
    """A method of a network through `torch.compile`, one function for each shape and for with and without gradients.

    Functions are kept as long as the network is and are no part of it: it is copied and pickled without them. On CUDA
    and without gradients they are CUDA graphs (`mode="reduce-overhead"`), whose results are copied before the next call
    overwrites them; this branch has not been run, for want of a GPU. On a CPU a C++ compiler is needed.

    Derivatives in reverse mode only.
    """
    functions = _FUNCTIONS.setdefault(network, {})

    def call(*given: Any) -> Tensor:
        graphs = not torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.is_cuda for v in given)
        autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
        key = (name, torch.is_grad_enabled(), network.training, *autocast, *map(_kind, given))
        if key not in functions:
            mode = "reduce-overhead" if graphs else None
            functions[key] = torch.compile(_another(), dynamic=False, mode=mode)
        if not graphs:
            return functions[key](network, name, *given)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return functions[key](network, name, *given).clone()

    return call


def _kind(value: Any) -> Any:
    """What a function is compiled for."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    return value


def _method(network: nn.Module, name: str, *given: Any) -> Any:
    return getattr(network, name)(*given)


def _another() -> Callable[..., Tensor]:
    """`_method` with code of its own: what is compiled belongs to its code, which takes a few shapes only."""
    return cast(Callable[..., Tensor], FunctionType(_method.__code__.replace(), globals()))
