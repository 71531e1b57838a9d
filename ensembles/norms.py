"""Norms of perturbations: root mean squares over the ocean's volume, in units of each variable's scale.

    |δ|² = Σ_v ⟨(δ_v / s_v)²⟩,        ⟨·⟩ the mean over wet cells by area times thickness, and over time slots.

Fields on corners take the area of their cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..emulators import Layout
from .scenarios import Box

__all__ = ["Norm"]


@dataclass(frozen=True)
class Norm:
    """A norm weighted by area and volume, e.g. `Norm({"thetao": 0.5, "zos": 0.05})`; unit noise of v variables has √v.

    Attributes:
        scale: what counts as 1, per variable in its unit: one number, or one per level (as `emulator.scale`).
            Variables not named have no weight.
        where: count a region only, such as the target of singular vectors.

    Raises ValueError for no variables or a scale that is not positive.
    """

    scale: Mapping[str, float | Sequence[float]]
    where: Box | None = None

    def __post_init__(self) -> None:
        wrong = [n for n, s in self.scale.items() if not bool((torch.as_tensor(s) > 0).all())]
        if wrong or not self.scale:
            raise ValueError(f"a norm needs positive scales of at least one variable, got {dict(self.scale)}")

    def weights(self, layout: Layout) -> Tensor:
        """Weights w of |δ|² = Σ w δ², (channel, y, x), float64.

        Raises ValueError for a variable that is not in the layout, or is dry everywhere (where asked).
        """
        self._require_known(layout)
        weights = torch.zeros(layout.shape, dtype=torch.float64)
        area = torch.from_numpy(layout.grid["areacello"].fillna(0.0).values).double()
        for name in self.scale:
            f = layout.field(name)
            volume = area * torch.from_numpy(layout.field_mask(f).astype(float))
            if f.levels and "dz" in layout.grid.coords:
                volume = volume * torch.from_numpy(layout.grid["dz"].values[: f.levels]).double()[:, None, None]
            if self.where is not None:
                volume = volume * self.where.weights(layout, name)
            total = volume.sum() * len(layout.slots)
            if not total > 0:
                raise ValueError(f"{name} has no wet cell where the norm counts ({self.where})")
            for slot in range(len(layout.slots)):
                weights[layout.channels(name, slot)] = volume / total / self.divisor(layout, name)[:, None, None] ** 2
        return weights

    def divisor(self, layout: Layout, name: str) -> Tensor:
        """The scale of a variable, one number per channel, (level,), float64."""
        given, levels = torch.as_tensor(self.scale[name], dtype=torch.float64).flatten(), layout.field(name).channels
        if len(given) not in (1, levels):
            raise ValueError(f"the scale of {name} needs 1 or {levels} numbers, got {len(given)}")
        return given.expand(levels)

    def in_units(self, layout: Layout, data: Tensor) -> Tensor:
        """Perturbations (..., channel, y, x) over their scales; 0 where there is none."""
        out = torch.zeros_like(data)
        for name in self.scale:
            divisor = self.divisor(layout, name).to(data)[:, None, None]
            for slot in range(len(layout.slots)):
                c = layout.channels(name, slot)
                out[..., c, :, :] = data[..., c, :, :] / divisor
        return out

    def parts(self, layout: Layout, data: Tensor) -> dict[str, Tensor]:
        """Norm of each variable's share of perturbations (member, channel, y, x), (member,), float64."""
        weights = self.weights(layout).to(data.device)
        squares = torch.stack([(weights * row.double().square()).sum((-2, -1)) for row in data])
        sums = {}
        for name in self.scale:
            slots = [squares[:, layout.channels(name, s)].sum(1) for s in range(len(layout.slots))]
            sums[name] = torch.stack(slots).sum(0).sqrt()
        return sums

    def of(self, layout: Layout, data: Tensor) -> Tensor:
        """Norm of perturbations (member, channel, y, x), (member,), float64."""
        return torch.stack(list(self.parts(layout, data).values())).square().sum(0).sqrt()

    def _require_known(self, layout: Layout) -> None:
        unknown = [n for n in self.scale if n not in layout.names]
        if unknown:
            raise ValueError(f"norm: no variable(s) {', '.join(unknown)}; the state has {', '.join(layout.names)}")
