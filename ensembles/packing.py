"""How numbers are kept on disk: exactly, with fewer bits, or as 16-bit integers.

Compressors find nothing in the last bits of a model's floats, which are noise. `Rounded` sets them to zero (Klöwer et
al. 2021, doi:10.1038/s43588-021-00156-2); `Packed` stores integers with a scale and an offset as CF has it. On a GPU
both are tensor operations, so that less is copied to the host. On a CPU tensor operations would go through memory five
times over, so there each is a loop that goes once, compiled; the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import numba
import numpy as np
import torch
from torch import Tensor

from ..emulators.names import RANGES

__all__ = ["Exact", "Packed", "Packing", "PackingError", "Rounded"]

_FILL, _MOST = -(2**15), 2**15 - 1
_STEPS = 64000  # of a range; what is left of 16 bits on either side is for values a little outside
_BITS = {torch.float32: 23, torch.float64: 52}
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}

_Array: TypeAlias = np.ndarray[Any, Any]
_F = TypeVar("_F", bound=Callable[..., Any])


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

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor, first: int = 0) -> None:
        """Write a variable (member, level, y, x) into `out` as it goes to disk; land is what is not wet.

        `first` is the position of the first of these members among all, for messages.
        """
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

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor, first: int = 0) -> None:
        """Values with NaN on land."""
        if not _compiled_for(values):
            torch.where(wet, values, values.new_tensor(torch.nan), out=out)
            return
        land = self.dtype(values.dtype).type(np.nan)
        for value, cells, to in _flat(values, wet, out):
            _fill(value, cells, land, to)


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

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor, first: int = 0) -> None:
        """Rounded values with NaN on land."""
        integer, drop = _INTEGERS[values.dtype], _BITS[values.dtype] - self.bits
        if not _compiled_for(values):
            land = values.new_tensor(torch.nan)
            for value, to in zip(values, out, strict=True):  # by member: memory is what a device has least of
                bits = value.contiguous().view(integer)
                rounded = (bits >> drop).bitwise_and_(1).add_((1 << (drop - 1)) - 1).add_(bits)
                rounded.bitwise_and_(~((1 << drop) - 1))
                torch.where(wet, rounded.view(values.dtype), land, out=to)
            return
        for value, cells, to in _flat(values, wet, out):
            kind = np.dtype(f"i{value.itemsize}")
            _round(value.view(kind), cells, drop, _nan(kind), to.view(kind))


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

    def pack(self, name: str, values: Tensor, wet: Tensor, out: Tensor, first: int = 0) -> None:
        """Integers; raises PackingError, naming the first, if a wet value does not fit or is not a number."""
        scale, offset = self._line(name)
        if not _compiled_for(values):
            fits = [self._pack_there(value, wet, scale, offset, to) for value, to in zip(values, out, strict=True)]
            if not torch.stack(fits).all():  # one question to the device
                raise self._unfit(name, [bool(f) for f in fits].index(False), values, wet, first)
            return
        line = values.new_tensor([offset, 1.0 / scale]).numpy()  # as exact as the values are
        for k, (value, cells, to) in enumerate(_flat(values, wet, out)):
            if not _pack(value, cells, line[0], line[1], to):
                raise self._unfit(name, k, values, wet, first)

    @staticmethod
    def _pack_there(value: Tensor, wet: Tensor, scale: float, offset: float, to: Tensor) -> Tensor:
        steps = torch.sub(value, offset).mul_(1.0 / scale).round_()
        fits = (~wet | (steps.abs() <= _MOST)).all()  # not true of NaN
        to.copy_(steps.masked_fill_(~wet, _FILL))
        return fits

    def _unfit(self, name: str, member: int, values: Tensor, wet: Tensor, before: int) -> PackingError:
        scale, offset = self._line(name)
        value = values[member]
        wrong = wet & ~((value - offset).mul_(1.0 / scale).round_().abs() <= _MOST)
        first = torch.nonzero(wrong)[0].tolist()
        return PackingError(
            f"{name} = {float(value[tuple(first)]):.6g} of the {before + member}th member here, at (level, y, x) = "
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


# --- on a CPU ------------------------------------------------------------------------------------


def _compiled_for(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _flat(values: Tensor, wet: Tensor, out: Tensor) -> Iterator[tuple[_Array, _Array, _Array]]:
    """Values, which of them are wet, and where they go, member by member as rows of numbers."""
    cells = wet.expand(values.shape[1:]).reshape(-1).numpy()
    for value, to in zip(values.detach(), out, strict=True):
        yield value.reshape(-1).numpy(), cells, to.view(-1).numpy()


def _compiled(function: _F) -> _F:
    """Compile with numba, to be kept on disk; other threads run meanwhile."""
    return cast(_F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def _nan(kind: np.dtype[Any]) -> Any:
    """The bits of NaN as an integer of this kind."""
    return np.array(np.nan, f"f{kind.itemsize}").view(kind)[()]


@_compiled
def _fill(value: _Array, wet: _Array, land: float, out: _Array) -> None:
    for i in range(value.size):
        out[i] = value[i] if wet[i] else land


@_compiled
def _round(bits: _Array, wet: _Array, drop: int, land: int, out: _Array) -> None:
    """Half of what is dropped is added, and a bit less where that makes a tie even."""
    half, kept = (1 << (drop - 1)) - 1, ~((1 << drop) - 1)
    for i in range(bits.size):
        out[i] = (bits[i] + ((bits[i] >> drop) & 1) + half) & kept if wet[i] else land


@_compiled
def _pack(value: _Array, wet: _Array, offset: float, inverse: float, out: _Array) -> bool:
    """Whether all that is wet fits."""
    wrong = False
    for i in range(value.size):
        step = np.rint((value[i] - offset) * inverse)
        wrong |= wet[i] & (not np.abs(step) <= _MOST)  # true of NaN
        out[i] = np.int32(step) if wet[i] else np.int32(_FILL)
    return not wrong
