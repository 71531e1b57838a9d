"""Philox 4x32-10: random words without a generator's state, as uniform and normal numbers.

A counter-based generator is a bijection of counters scrambled by a key: there is no state to carry, so
any draw can be made alone, in any order, on any device and after any restart (Salmon, Moraes, Dror and
Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11, doi:10.1145/2063384.2063405).  One of
the ten rounds maps four 32-bit words, with the two-word key k, to

    (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0))

and then adds a constant to each key word.  Words become numbers u = (w + 1/2) / 2^32 in the open
interval (0, 1), and pairs of them become normals by Box and Muller (1958, Ann. Math. Stat. 29, 610),
finite always and at most sqrt(66 ln 2) = 6.76 in size:

    z0 = sqrt(-2 ln u0) cos(2 pi u1),      z1 = sqrt(-2 ln u0) sin(2 pi u1)

All of this is float64 and the result is rounded once: float32 and float64 draws are the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["WORD", "Words", "box_muller", "draw", "philox4x32", "uniforms"]

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

WORD = 0xFFFFFFFF  # the largest 32-bit word, and the mask of one
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers of Salmon et al. (2011), table 2
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments: golden ratio and sqrt(3) - 1
_ROUNDS = 10
# Counters drawn at once.  On a CPU the six words of a block (0.8 MB) stay in the second-level cache;
# elsewhere a block only bounds the memory for scratch.
_CPU_BLOCK, _DEVICE_BLOCK = 2**14, 2**22


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Scramble 128-bit counters by ten rounds of Philox 4x32.

    Args:
        counter: four int64 tensors of 32-bit words, 0 to 2^32 - 1, of shapes that broadcast together.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of 32-bit words, of the broadcast shape.

    Source: Salmon et al. (2011), section 3.3; Random123's known answers are a test.
    """
    shape = torch.broadcast_shapes(*(c.shape for c in counter))  # type: ignore[no-untyped-call]
    c0, c1, c2, c3 = (c.expand(shape).clone() for c in counter)
    p0, p1 = torch.empty_like(c0), torch.empty_like(c0)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product wraps modulo 2^64, of which the shift gives the high and a mask the low word.  The
        # low words c1 and c3 are only ever xored, so their mask can wait until they are.
        torch.mul(c0, _M0, out=p0)
        torch.mul(c2, _M1, out=p1)
        torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(WORD)
        torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(WORD)
        c1, c3, p0, p1 = p1, p0, c3, c1
        k0, k1 = (k0 + _W0) & WORD, (k1 + _W1) & WORD
    return c0, c1.bitwise_and_(WORD), c2, c3.bitwise_and_(WORD)


def uniforms(words: Words, out: Tensor) -> None:
    """Write the numbers (w + 1/2) / 2^32 of four words into out (..., 4), rounded to its dtype."""
    for i, word in enumerate(words):
        out[..., i] = _unit(word)


def box_muller(words: Words, out: Tensor) -> None:
    """Write the four normals of two pairs of words into out (..., 4), rounded to its dtype."""
    for i in (0, 2):
        radius = _unit(words[i]).log_().mul_(-2).sqrt_()
        angle = _unit(words[i + 1]).mul_(2 * math.pi)
        out[..., i] = angle.cos().mul_(radius)
        out[..., i + 1] = angle.sin_().mul_(radius)


def draw(
    numbers: Callable[[Words, Tensor], None],
    key: tuple[int, int],
    members: Sequence[int],
    time: int,
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw the first `size` numbers of every member.

    Args:
        numbers: `uniforms` or `box_muller`.
        key: two 32-bit words.
        members: second word of the counter for each row.
        time: third and fourth word of the counter as one number below 2^64.
        size: numbers per member, at most 2^34, four for each value of the counter's first word.
        dtype: floating type of the result.
        device: where to draw.

    Returns:
        Draws (member, size).

    Raises:
        ValueError: for more than 2^34 numbers per member.
    """
    if size > 4 * (WORD + 1):
        raise ValueError(f"a draw has at most 2**34 numbers per member, got {size}; use several streams")
    # Metal has no float64: such draws are made on the CPU and moved.
    home = torch.device("cpu") if device.type == "mps" else device
    member = torch.tensor(members, dtype=torch.int64, device=home)[:, None]
    low, high = (torch.tensor(t & WORD, device=home) for t in (time, time >> 32))
    counters = -(-size // 4)
    out = torch.empty(len(members), counters, 4, dtype=dtype, device=home)
    for rows, columns in _blocks(len(members), counters, home):
        index = torch.arange(columns.start, columns.stop, device=home)
        numbers(philox4x32((index, member[rows], low, high), key), out[rows, columns])
    return out.view(len(members), 4 * counters)[:, :size].contiguous().to(device)


def _unit(word: Tensor) -> Tensor:
    """Return (w + 1/2) / 2^32, exact in float64 and inside (0, 1)."""
    return word.to(torch.float64).add_(0.5).mul_(2.0**-32)


def _blocks(members: int, counters: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cut (member, counter) into pieces of about one block: many short rows, or parts of long ones."""
    block = _CPU_BLOCK if device.type == "cpu" else _DEVICE_BLOCK
    rows = max(1, block // max(counters, 1))
    for first in range(0, members, rows):
        for start in range(0, counters, block):
            yield slice(first, min(first + rows, members)), slice(start, min(start + block, counters))
