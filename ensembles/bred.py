"""Bred vectors: what is left of perturbations that an evolving ocean was given time to grow and was not let saturate.

A control run and a perturbed one go on together; every few steps their difference is measured, scaled
back to its initial size and added to the control again (Toth and Kalnay 1993, "Ensemble forecasting at NMC: the
generation of perturbations", Bull. Amer. Meteor. Soc. 74, 2317).  Each member is bred on its own: nothing is
averaged over members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import cftime
import torch
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, Layout, State
from .norms import Norm
from .perturb import Perturbation, White, perturb
from .rollout import trajectory

__all__ = ["Bred", "breed"]


@dataclass(frozen=True, eq=False)
class Bred:
    """Bred vectors and the control run they belong to; a `Perturbation` of the members that were bred.

    Attributes:
        base: the control at the end, with the members' numbers; one and the same unless the emulator is stochastic.
        vectors: (member, channel, y, x), physical units; each variable named in the norm has size 1
            in it, or all `together` the norm of unit noise.
        growth: factor by which the norm grew in each cycle, (cycle, member), float64.
        norm: that they were scaled in.
    """

    base: State
    vectors: Tensor = field(repr=False)
    growth: Tensor = field(repr=False)
    norm: Norm

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """The members' vectors in units of the norm's scales: mean square 1 over the volume, (member, channel, y, x).

        Variables the norm does not name are 0, and so is land. Raises ValueError for a member that was not bred.
        """
        self.base.layout.require_same(layout, "Bred: layout")
        absent = [m for m in members if m not in self.base.members]
        if absent:
            raise ValueError(f"bred members are {self.base.members}, got {absent}; breed them too")
        rows = [self.base.members.index(m) for m in members]
        return self.norm.in_units(layout, self.vectors[rows])


def breed(
    emulator: Emulator,
    start: State,
    forcing: Forcing | None = None,
    *,
    members: int | Sequence[int],
    norm: Norm,
    cycles: int,
    steps: int = 1,
    noise: Draws,
    kind: Perturbation | None = None,
    together: bool = False,
) -> Bred:
    """Breed perturbations from `start` on; gradients are off.

    Args:
        emulator: what makes them grow. A stochastic one gives control and perturbed run the same noise.
        start: one member, `cycles * steps` steps before the time that perturbations are wanted for.
        forcing: as for `rollout`.
        members: how many, or which numbers.
        norm: whose scales are the size to which each variable is brought back: choose analysis errors.
        cycles: how often.
        steps: emulator steps in each cycle.
        noise: of the experiment.
        kind: what is added first; default `White()`.
        together: one factor for all variables, which keeps the ratios that growth gave them; then the whole
            norm is brought back to that of unit noise, the root of the number of variables. Otherwise each variable of
            the norm has its own, and those without weight follow the whole norm.

    Raises ValueError for no members, cycles or steps, or if a perturbation vanished or grew beyond all bounds.
    """
    numbers = tuple(range(members)) if isinstance(members, int) else tuple(members)
    if not numbers or cycles < 1 or steps < 1:
        raise ValueError(f"breeding needs members, cycles >= 1 and steps >= 1, got {numbers}, {cycles} and {steps}")
    base, layout = start.spread_to(numbers), start.layout
    scale = {n: norm.divisor(layout, n).tolist() for n in norm.scale}
    with torch.no_grad():
        first = perturb(base, amplitude=1.0, scale=scale, noise=noise.stream("breed"), kind=kind or White())
        vectors, _ = _rescaled(layout, first.data - base.data, norm, together)
        growth = []
        for _ in range(cycles):
            runs = [base, base.replace(data=base.data + vectors)]
            base, grown = (next(islice(trajectory(emulator, r, forcing, noise), steps, None)) for r in runs)
            before = norm.of(layout, vectors)
            vectors, after = _rescaled(layout, grown.data - base.data, norm, together)
            growth.append(after / before)
    return Bred(base, vectors, torch.stack(growth), norm)


def _rescaled(layout: Layout, vectors: Tensor, norm: Norm, together: bool) -> tuple[Tensor, Tensor]:
    """Vectors brought back to size, and the norm they had, (member,)."""
    parts = norm.parts(layout, vectors)
    whole = torch.stack(list(parts.values())).square().sum(0).sqrt()
    if not bool((torch.isfinite(whole) & (whole > 0)).all()):
        raise ValueError(f"perturbations of norm {whole.tolist()} cannot be rescaled; they vanished or the run blew up")
    common = len(parts) ** 0.5 / whole
    factor = common[:, None].repeat(1, layout.shape[0])
    for name, size in ({} if together else parts).items():
        for slot in range(len(layout.slots)):
            own = torch.where(size > 0, 1 / size, 0.0)
            factor[:, layout.channels(name, slot)] = own[:, None]
    return vectors * factor.to(vectors)[:, :, None, None], whole
