"""Several checkpoints as members: an ensemble that knows that its emulator might be another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch

from ..emulators import Draws, Emulator, Layout, LayoutError, State

__all__ = ["Several"]


@dataclass(frozen=True)
class Several:
    """Emulators of one layout in turn: member m is advanced by emulator m modulo their number; an `Emulator`.

    A member's emulator depends on its number alone, not on who else is in the batch. Member 2 of three checkpoints is
    the same as in a run with the third alone.

    Attributes:
        emulators: at least one; all with the same fields, slots, grid size, forcing and step.

    Raises ValueError for none, or steps that differ; LayoutError for layouts that differ.
    """

    emulators: tuple[Emulator, ...]

    def __post_init__(self) -> None:
        if not self.emulators:
            raise ValueError("Several needs at least one emulator, got none")
        first = self.emulators[0]
        for k, other in enumerate(self.emulators[1:], 1):
            what = f"Several: emulator {k}"
            first.layout.require_same(other.layout, what)
            if (first.forcing_layout is None) != (other.forcing_layout is None):
                raise LayoutError(f"{what}: wanted forcing like the first, {first.forcing_layout}, got the opposite")
            if first.forcing_layout is not None and other.forcing_layout is not None:
                first.forcing_layout.require_same(other.forcing_layout, f"{what}: forcing")
            if other.dt != first.dt:
                raise ValueError(f"{what}: wanted steps of {first.dt}, got {other.dt}")

    @property
    def layout(self) -> Layout:
        """Of the first emulator."""
        return self.emulators[0].layout

    @property
    def forcing_layout(self) -> Layout | None:
        """Of the first emulator."""
        return self.emulators[0].forcing_layout

    @property
    def dt(self) -> timedelta:
        """Of every emulator."""
        return self.emulators[0].dt

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """One step of each member by its own emulator."""
        parts, numbers = [], []
        for k, emulator in enumerate(self.emulators):
            mine = [m for m in state.members if m % len(self.emulators) == k]
            if mine:
                driven = None if forcing is None else forcing.sel(mine)
                parts.append(emulator.step(state.sel(mine), driven, noise))
                numbers += mine
        rows = [numbers.index(m) for m in state.members]
        return parts[0].replace(data=torch.cat([p.data for p in parts])[rows], members=state.members)
