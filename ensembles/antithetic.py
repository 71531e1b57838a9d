"""Antithetic pairs: members 2k and 2k + 1 get opposite draws, so that what is odd in them cancels in the mean.

The sampling error of an ensemble mean then starts at second order in the amplitude (Hammersley and Morton
1956, Proc. Camb. Phil. Soc. 52).  A member stays itself alone: number 7 is minus number 6, whether 6 is there or
not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cftime
import torch
from torch import Tensor

from ..emulators import Draws, Layout
from .perturb import Perturbation

__all__ = ["Antithetic", "Mirrored"]


@dataclass(frozen=True)
class Antithetic:
    """A perturbation in opposite pairs, e.g. `perturb(..., kind=Antithetic(Diffused(3e5)))`.

    Attributes:
        kind: of any kind: members 2k and 2k + 1 get what its member k draws, and the opposite of it.
    """

    kind: Perturbation

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """The draws of `kind`, (member, channel, y, x), those of odd members with their sign turned."""
        return _paired(members, lambda firsts: self.kind.draw(layout, firsts, time, noise))


@dataclass(frozen=True)
class Mirrored:
    """Draws in opposite pairs, for emulators that are stochastic themselves: `rollout(..., noise=Mirrored(Noise(1)))`.

    Attributes:
        noise: where the draws of even members come from.
    """

    noise: Draws

    def stream(self, name: str) -> Mirrored:
        """The draws for one purpose."""
        return Mirrored(self.noise.stream(name))

    def normal(
        self,
        members: Sequence[int],
        time: cftime.datetime | None,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Standard normal numbers, (member, *shape), those of odd members with their sign turned."""
        return _paired(members, lambda firsts: self.noise.normal(firsts, time, shape, dtype=dtype, device=device))


def _paired(members: Sequence[int], draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
    firsts = list(dict.fromkeys(m // 2 for m in members))
    drawn = draw(firsts)
    rows = [drawn[firsts.index(m // 2)] for m in members]
    return torch.stack([-row if m % 2 else row for m, row in zip(members, rows, strict=True)])
