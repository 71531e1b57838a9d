"""How numbers are kept on disk: exactly, with fewer bits, or as 16-bit integers.

Compressors find nothing in the last bits of a model's floats, which are noise. `Rounded` sets them to zero (Klöwer et
al. 2021, doi:10.1038/s43588-021-00156-2); `Packed` stores integers with a scale and an offset as CF has it. Both are
tensor operations, so that on a GPU less is copied to the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..emulators.names import RANGES

__all__ = ["Exact", "Packed", "Packing", "PackingError", "Rounded"]

_FILL = -(2**15)
_STEPS = 64000  # of a range; what is left of 16 bits on either side is for values a little outside
_BITS = {torch.float32: 23, torch.float64: 52}


class PackingError(ValueError):
    """Values do not fit into what they are to be packed into."""


@runtime_checkable
class Packing(Protocol):
    """How values of a variable become numbers on disk; small, frozen, of a stable `repr`."""

    def dtype(self, dtype: torch.dtype) -> np.dtype[Any]:
        """What a state's numbers are on disk."""
        ...

    def fill(self, dtype: torch.dtype) -> float | int:
        """What land is on disk."""
        ...

    def attributes(self, name: str) -> dict[str, Any]:
        """CF attributes that tell readers how to unpack."""
        ...

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor) -> None:
        """Write a variable (member, level, y, x) into `out` as it goes to disk; land is what is not wet."""
        ...


@dataclass(frozen=True)
class Exact:
    """The state's own numbers, bit by bit; NaN on land."""

    def dtype(self, dtype: torch.dtype) -> np.dtype[Any]:
        """Float32 or float64, as the state."""
        return np.dtype("float64" if dtype == torch.float64 else "float32")

    def fill(self, dtype: torch.dtype) -> float:
        """NaN."""
        return float("nan")

    def attributes(self, name: str) -> dict[str, Any]:
        """None."""
        return {}

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor) -> None:
        """Values with NaN on land."""
        torch.where(wet, values, values.new_tensor(torch.nan), out=out)


@dataclass(frozen=True)
class Rounded(Exact):
    """Floats rounded to some bits of their mantissa, to nearest, ties to even: a relative error of 2^-(bits+1).

    Attributes:
        bits: of the mantissa that are kept, at least 1; 10 is an error of half a thousandth.

    Raises ValueError for bits outside 1 to 22.
    """

    bits: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 22:
            raise ValueError(f"of a mantissa 1 to 22 bits can be kept, got {self.bits}")

    def attributes(self, name: str) -> dict[str, Any]:
        """How many bits were kept, as the CF conventions 1.12 name it."""
        return {"quantization": f"bit rounded to nearest even, {self.bits} bits of the mantissa kept"}

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor) -> None:
        """Rounded values with NaN on land."""
        drop = _BITS[values.dtype] - self.bits
        for value, to in zip(values, out, strict=True):  # by member: new memory costs more than arithmetic
            bits = value.contiguous().view(torch.int32 if value.dtype == torch.float32 else torch.int64)
            rounded = (bits >> drop).bitwise_and_(1).add_((1 << (drop - 1)) - 1).add_(bits)
            rounded.bitwise_and_(~((1 << drop) - 1))
            torch.where(wet, rounded.view(value.dtype), value.new_tensor(torch.nan), out=to)


@dataclass(frozen=True)
class Packed:
    """16-bit integers: `value = scale_factor * integer + add_offset`, error of at most range / 128000.

    Attributes:
        ranges: smallest and largest value by variable; what is not given comes from the table of
            `polynya.emulators.names`. Values up to 1 % of the range outside still fit.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def dtype(self, dtype: torch.dtype) -> np.dtype[Any]:
        """Int16."""
        return np.dtype("int16")

    def fill(self, dtype: torch.dtype) -> int:
        """The smallest integer."""
        return _FILL

    def attributes(self, name: str) -> dict[str, Any]:
        """`scale_factor`, `add_offset` and `_FillValue`; raises PackingError for a variable of unknown range."""
        scale, offset = self._line(name)
        return {"scale_factor": scale, "add_offset": offset, "_FillValue": _FILL}

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor) -> None:
        """Integers; raises PackingError, naming the first, if a wet value does not fit or is not a number."""
        scale, offset = self._line(name)
        for k, (value, to) in enumerate(zip(values, out, strict=True)):
            steps = torch.sub(value, offset).mul_(1.0 / scale).round_()
            torch.where(wet, steps, steps.new_tensor(float(_FILL)), out=steps)
            low, high = torch.aminmax(steps)
            if not (low >= _FILL and high < -_FILL):  # true of NaN, too
                raise self._unfit(name, k, value, wet & ~(steps.abs() <= -_FILL - 1))
            to.copy_(steps)

    def _unfit(self, name: str, member: int, value: Tensor, wrong: Tensor) -> PackingError:
        first = torch.nonzero(wrong)[0].tolist()
        return PackingError(
            f"{name} = {float(value[tuple(first)]):.6g} of the {member}th member here, at (level, y, x) = "
            f"{tuple(first)}, and {int(wrong.sum())} of its values in all, do not fit into 16 bits of "
            f"{self._range(name)}; give Packed(ranges={{{name!r}: (low, high)}}), or keep floats: packing=Rounded()"
        )

    def _range(self, name: str) -> tuple[float, float]:
        found = self.ranges.get(name, RANGES.get(name))
        if found is None or not found[0] < found[1]:
            raise PackingError(
                f"there is no range of {name} to pack it into 16 bits; give Packed(ranges={{{name!r}: (low, high)}}), "
                "or keep floats: packing=Rounded()"
            )
        return found

    def _line(self, name: str) -> tuple[float, float]:
        low, high = self._range(name)
        return (high - low) / _STEPS, 0.5 * (low + high)
