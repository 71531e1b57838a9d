"""Random numbers that belong to a member, not to a generator.

Every draw is a function of (seed, stream, member, time, index) and of nothing else: not of the batch a
member ran in, the order of calls, the device, or how often a run was restarted.  Philox (`philox.py`;
Salmon et al. 2011) makes it so, with

    counter = (index // 4, member number, time low word, time high word)
    key     = the first 64 bits of SHA-256 of (seed, stream path, kind of draw)

Because noise is an argument of a step, it can also be *given*: `GivenNoise` returns tensors that were
chosen elsewhere, which makes the noise of a generative emulator a control variable with gradients.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cftime
import torch
from torch import Tensor

from . import philox

__all__ = ["Draws", "GivenNoise", "Noise"]


class Draws(Protocol):
    """What an emulator needs of randomness: `Noise` draws it, `GivenNoise` was told it."""

    def stream(self, name: str) -> Draws:
        """Return the draws for one purpose, separate from those of every other name."""
        ...

    def normal(
        self,
        members: Sequence[int],
        time: cftime.datetime | None,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return standard normal numbers (member, *shape)."""
        ...


@dataclass(frozen=True)
class Noise:
    """Independent draws for every purpose, member and time, from one seed.

    Asking twice gives the same numbers twice: separate purposes by `stream`, separate times by `time`.
    The i-th number of a draw, counted in C order over `shape`, does not depend on `shape`: a shorter
    draw is the beginning of a longer one.

    Args:
        seed: any integer >= 0, of any size.
        path: names of the nested streams joined by "/"; use `stream` to extend it.

    Raises:
        ValueError: for a negative seed.
        TypeError: for a seed that is not an integer.

    Source: Salmon et al. (2011), doi:10.1145/2063384.2063405.
    """

    seed: int
    path: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _whole(self.seed, "a seed"))

    def stream(self, name: str) -> Noise:
        """Return the noise for one purpose; streams nest, and "a/b" is "b" within "a".

        Raises:
            ValueError: for a name that is empty or has an empty part.
        """
        return replace(self, path=_join(self.path, name))

    def normal(
        self,
        members: Sequence[int],
        time: cftime.datetime | None,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw standard normal numbers.

        Args:
            members: numbers of the members, 0 to 2^32 - 1, in any order.
            time: date of the draw in any calendar, to the second (`datetime.datetime` will do; equal
                dates of two calendars draw equal numbers), or None for what has no date.
            shape: shape of one member's draw, at most 2^34 numbers.
            dtype: floating type, to which the float64 numbers are rounded.
            device: where the numbers are drawn.

        Returns:
            Standard normal numbers (member, *shape), without unit.

        Raises:
            ValueError: for a member number out of range or a draw too large.
            TypeError: for a member that is not an integer, a time that is not a date, or a dtype that
                is not floating.
        """
        return self._draw("normal", philox.box_muller, members, time, shape, dtype, device)

    def uniform(
        self,
        members: Sequence[int],
        time: cftime.datetime | None,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw numbers uniform in the open interval (0, 1), independent of `normal` of the same stream.

        Arguments, returned shape and errors are those of `normal`.
        """
        u = self._draw("uniform", philox.uniforms, members, time, shape, dtype, device)
        return u.clamp_(max=1 - torch.finfo(dtype).eps / 2)  # rounding to float32 may have reached 1

    def _draw(
        self,
        kind: str,
        numbers: Callable[[philox.Words, Tensor], None],
        members: Sequence[int],
        time: cftime.datetime | None,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Tensor:
        if not dtype.is_floating_point:
            raise TypeError(f"draws have a floating dtype such as torch.float32, got {dtype}")
        numbered = [_whole(m, "a member number", most=philox.WORD) for m in members]
        key, size, place = _key(self.seed, self.path, kind), math.prod(shape), torch.device(device)
        draws = philox.draw(numbers, key, numbered, _code(time), size, dtype=dtype, device=place)
        return draws.reshape(len(numbered), *shape)


@dataclass(frozen=True, eq=False)
class GivenNoise:
    """Draws that were given as tensors, so that noise can be a control variable with gradients.

    The tensors are for one step: they are returned for whatever time is asked.

    Args:
        draws: stream path, such as "sampler/eps", to tensor (member, *shape), without unit.
        members: numbers of the members in the rows of the tensors.
        path: names of the nested streams joined by "/"; use `stream` to extend it.

    Raises:
        ValueError: if a tensor has not one row for each member, or a member occurs twice.
    """

    draws: Mapping[str, Tensor]
    members: tuple[int, ...]
    path: str = ""

    def __post_init__(self) -> None:
        if len(set(self.members)) != len(self.members):
            raise ValueError(f"given noise needs every member once, got members {self.members}")
        for path, tensor in self.draws.items():
            if tensor.ndim == 0 or len(tensor) != len(self.members):
                raise ValueError(
                    f"given noise {path!r} needs one row for each of {len(self.members)} members, "
                    f"got shape {tuple(tensor.shape)}"
                )

    def stream(self, name: str) -> GivenNoise:
        """Return the draws of one purpose; nests as `Noise.stream` does.

        Raises:
            ValueError: for a name that is empty or has an empty part.
        """
        return replace(self, path=_join(self.path, name))

    def normal(
        self,
        members: Sequence[int],
        time: cftime.datetime | None,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the rows of the given tensor that belong to `members`, differentiably.

        Args and returns are those of `Noise.normal`; `time` is not looked at.

        Raises:
            ValueError: if nothing was given for this stream, a member is unknown, or the shape differs.
        """
        if self.path not in self.draws:
            known = ", ".join(map(repr, self.draws)) or "none"
            raise ValueError(
                f"a step asked for noise of stream {self.path!r}, but what was given is {known}; "
                f"add {self.path!r} to draws"
            )
        given = self.draws[self.path]
        if tuple(given.shape[1:]) != tuple(shape):
            raise ValueError(
                f"stream {self.path!r} was asked for shape {tuple(shape)} per member, "
                f"but what was given has {tuple(given.shape[1:])}"
            )
        row = {member: i for i, member in enumerate(self.members)}
        unknown = [m for m in members if m not in row]
        if unknown:
            raise ValueError(f"stream {self.path!r} was asked for members {unknown}, but has {self.members}")
        rows = torch.tensor([row[m] for m in members], dtype=torch.int64, device=given.device)
        return given.index_select(0, rows).to(device=device, dtype=dtype)


def _key(seed: int, path: str, kind: str) -> tuple[int, int]:
    # Digits end at the first newline and kinds hold none, so no two triples make the same text.
    digest = hashlib.sha256(f"{seed}\n{kind}\n{path}".encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def _code(time: cftime.datetime | None) -> int:
    """Return a number below 2^64 that no two dates of one calendar share; None is 0, which no date is."""
    if time is None:
        return 0
    try:
        days = (time.year * 12 + time.month - 1) * 31 + time.day - 1
        seconds = ((days * 24 + time.hour) * 60 + time.minute) * 60 + time.second
    except AttributeError as error:
        raise TypeError(
            f"the time of a draw is a cftime.datetime, a datetime.datetime or None, "
            f"got {time!r} of type {type(time).__name__}"
        ) from error
    return int(seconds) + (1 << 63)  # years before 0 too become positive


def _join(path: str, name: str) -> str:
    if not all(name.split("/")):
        raise ValueError(f'a stream name is text such as "perturb" or "sampler/eps", got {name!r}')
    return f"{path}/{name}" if path else name


def _whole(value: int, what: str, most: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{what} is an integer, got {value!r} of type {type(value).__name__}") from error
    if number < 0 or (most is not None and number > most):
        limit = ">= 0" if most is None else f"from 0 to {most}"
        raise ValueError(f"{what} is an integer {limit}, got {number}")
    return number
