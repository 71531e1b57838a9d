"""Linear maps that autograd takes as a whole: a product and its transpose, in every mode of differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Constant", "linear"]

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, there: Map, back: Map) -> Tensor:
        return there(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return linear(gradients[0], ctx.back, ctx.there), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return linear(tangents[0], ctx.there, ctx.back)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, there: Map, back: Map) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        return linear(x.movedim(in_dims[0], 0), there, back), 0


def linear(x: Tensor, there: Map, back: Map) -> Tensor:
    """`there(x)`, whose derivative is `there` and whose gradient is `back`.

    Args:
        x: (..., n), any dtype and device.
        there: a linear map of the last dimension, (..., n) to (..., m), which may leave torch.
        back: its transpose, (..., m) to (..., n).

    Reverse and forward mode, both of any order, and `torch.func.vmap` work; nothing of `there` is kept in a graph.
    """
    out: Tensor = _Linear.apply(x, there, back)  # type: ignore[no-untyped-call]
    return out


class Constant:
    """A tensor that is kept in each dtype and on each device it was asked for."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._kept: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Constant, (self.value,)

    def like(self, x: Tensor) -> Tensor:
        """The tensor on the device of `x`, and if it is floating, in the dtype of `x`."""
        dtype = x.dtype if self.value.is_floating_point() else self.value.dtype
        key = (dtype, x.device)
        if key not in self._kept:
            self._kept[key] = self.value.to(x.device, dtype)
        return self._kept[key]
