"""What of a run is kept: which variables, levels, region and times, and in which numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..emulators import Field, Layout
from .packing import Exact, Packing
from .scenarios import Box

__all__ = ["Output", "Selection"]


@dataclass(frozen=True)
class Output:
    """What a store keeps of the states of a run; everything, if nothing is said.

    Attributes:
        variables: CF names; None for all of the state, () for none: a run of statistics only.
        depth: from where to where in m; levels whose depth lies between are kept.
        box: a region; the smallest rectangle of rows and columns that holds its cells. On grids that close upon
            themselves it may cross the seam.
        every: keep one record of so many, beginning with the first.
        mean: keep the mean of every so many records instead of the first of them.
        packing: `Exact()`, `Rounded(bits)` or `Packed()`.

    Raises ValueError for `every` below 1, a mean of single records, or an empty range of depths.
    """

    variables: tuple[str, ...] | None = None
    depth: tuple[float, float] | None = None
    box: Box | None = None
    every: int = 1
    mean: bool = False
    packing: Packing = field(default_factory=Exact)

    def __post_init__(self) -> None:
        if self.every < 1 or (self.mean and self.every < 2):
            raise ValueError(
                f"an output is kept every 1 or more records, and a mean is of 2 or more; got every={self.every}, "
                f"mean={self.mean}"
            )
        if self.depth is not None and not self.depth[0] <= self.depth[1]:
            raise ValueError(f"depth goes from above to below in m, got {self.depth}")

    def selection(self, layout: Layout) -> Selection:
        """What is kept of states of this layout.

        Raises KeyError for a variable that is not in the layout; ValueError if no level or no cell is within.
        """
        names = layout.names if self.variables is None else self.variables
        rows, columns = self._window(layout)
        grid = layout.grid.isel({layout.dims[0]: rows, layout.dims[1]: columns})
        first, fields = 0, [layout.field(n) for n in names]
        if self.depth is not None and any(f.levels for f in fields):
            depths = layout.grid["lev"].values
            inside = np.flatnonzero((depths >= self.depth[0]) & (depths <= self.depth[1]))
            if not len(inside):
                raise ValueError(
                    f"no level lies between {self.depth[0]} and {self.depth[1]} m; there are "
                    f"{', '.join(f'{d:g}' for d in depths)} m"
                )
            first, stop = int(inside[0]), int(inside[-1]) + 1
            fields = [replace(f, levels=min(f.levels, stop) - first) if f.levels else f for f in fields]
            below = [f.name for f in fields if layout.field(f.name).levels and f.levels < 1]
            if below:
                raise ValueError(f"{', '.join(below)} has no level between {self.depth[0]} and {self.depth[1]} m")
            grid = grid.isel(lev=slice(first, stop))
        wanted = Layout(tuple(fields), grid, (0,), layout.interval)
        return Selection(wanted, tuple(_channels(layout, f, first) for f in fields), layout, rows, columns)

    def _window(self, layout: Layout) -> tuple[np.ndarray | slice, np.ndarray | slice]:
        """Rows and columns of the box; columns that cross the seam begin at its western edge."""
        if self.box is None:
            return slice(None), slice(None)
        inside = self.box.weights(layout, layout.names[0]).numpy() > 0
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        ring = inside.shape[1]
        gaps = np.diff(columns, append=columns[0] + ring)
        begin = columns[(int(gaps.argmax()) + 1) % len(columns)]
        width = ring - int(gaps.max()) + 1
        return np.arange(rows[0], rows[-1] + 1), (begin + np.arange(width)) % ring


@dataclass(frozen=True, eq=False)
class Selection:
    """The part of states that is kept.

    Attributes:
        layout: of one record of what is kept.
        channels: of each field in the first slot of a state.
        whole: layout of the states.
        rows, columns: of the grid.
    """

    layout: Layout
    channels: tuple[slice, ...]
    whole: Layout
    rows: np.ndarray | slice
    columns: np.ndarray | slice

    def of(self, data: Tensor, slot: int) -> Tensor:
        """What is kept of a slot of states (member, channel, y, x): (member, kept channel, y, x), a view if it can."""
        shift = slot * (self.whole.shape[0] // len(self.whole.slots))
        parts = [data[:, c.start + shift : c.stop + shift] for c in self.channels]
        joined = all(a.stop == b.start for a, b in zip(self.channels, self.channels[1:], strict=False))
        if not parts:
            return data[:, :0]
        first, last = self.channels[0].start + shift, self.channels[-1].stop + shift
        kept = data[:, first:last] if joined else torch.cat(parts, 1)
        if isinstance(self.rows, np.ndarray) and isinstance(self.columns, np.ndarray):
            kept = kept.index_select(-2, torch.from_numpy(self.rows).to(data.device))
            kept = kept.index_select(-1, torch.from_numpy(self.columns).to(data.device))
        return kept


def _channels(layout: Layout, kept: Field, first: int) -> slice:
    """Channels of a field's kept levels in the first slot."""
    begin = layout.channels(kept.name, 0).start + (first if kept.levels else 0)
    return slice(begin, begin + kept.channels)
