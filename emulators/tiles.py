"""Windows over a map: what a transformer needs of mesh and mask, worked out once and used at every network call.

A network with attention costs too much for a whole map, so the map is cut into windows of n x n cells, each seen with
a halo of h cells whose results are thrown away (Finn et al. 2025, arXiv:2508.14984).  Beyond the map's edge the
nearest cell is repeated.  Windows without ocean are left out, and in the others so are land tokens: one number, the
logarithm of how many are missing, gives attention what it needs of them (`transformer.Transformer.tokens`).

One table of cell numbers per group of windows does padding, windowing, cutting into patches and skipping of land in a
single gather.  Windows of one group run together; to have equally many tokens the emptier ones keep some of their land.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Group", "Tiling", "TilingError", "tiling"]


class TilingError(ValueError):
    """Windows, halo and patches do not fit a grid, or mesh and mask do not."""


@dataclass(frozen=True)
class Group:
    """Windows with the same number of tokens.

    Attributes:
        cells: numbers of the cells of each patch (window, token, p²), int64; tokens without halo come first.
        ocean: 1 where a token has ocean, else 0 (window, token, 1).
        mesh: position of the cells in km (window, token, 2 p²).
        skipped: number of land tokens left out of each window.
        wanted: number of tokens, the first ones, among which are all whose results are kept.
        kept: places in (window, wanted, p²), flattened, whose results are kept.
        goals: the cells these belong to.
    """

    cells: Tensor
    ocean: Tensor
    mesh: Tensor
    skipped: int
    wanted: int
    kept: Tensor
    goals: Tensor

    def to(self, *args: Any) -> Group:
        """The same on another device or in another floating type, as `Tensor.to`."""
        mesh = self.mesh.to(*args)
        cells, kept, goals = (n.to(mesh.device) for n in (self.cells, self.kept, self.goals))
        return Group(cells, self.ocean.to(mesh), mesh, self.skipped, self.wanted, kept, goals)

    def gather(self, x: Tensor) -> Tensor:
        """Cut maps (batch, channel, y, x) into patches (batch window, token, channel p²)."""
        cut = x.flatten(2)[..., self.cells]
        return cut.permute(0, 2, 3, 1, 4).reshape(-1, self.cells.shape[1], x.shape[1] * self.cells.shape[2])

    def select(self, out: Tensor) -> Tensor:
        """The kept results of patches (batch window, wanted, channel p²), (batch, channel, kept)."""
        maps = out.reshape(-1, len(self.cells), self.wanted, out.shape[-1] // self.cells.shape[2], self.cells.shape[2])
        maps = maps.permute(0, 3, 1, 2, 4)
        return maps.flatten(2)[..., self.kept]


@dataclass(frozen=True)
class Tiling:
    """All windows of a map.

    Attributes:
        size: of the map (y, x).
        groups: of windows.
        tokens: number of tokens of one window, land included.
        windows: number of windows, without ocean too.
    """

    size: tuple[int, int]
    groups: tuple[Group, ...]
    tokens: int
    windows: int

    def to(self, *args: Any) -> Tiling:
        """The same on another device or in another floating type, as `Tensor.to`."""
        return Tiling(self.size, tuple(g.to(*args) for g in self.groups), self.tokens, self.windows)

    def assemble(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """Put the groups' selected results (batch, channel, kept) on a map, 0 elsewhere (batch, channel, y, x)."""
        full = like.new_zeros(*like.shape[:2], self.size[0] * self.size[1])
        if parts:
            goals = torch.cat([g.goals for g in self.groups])
            full = full.index_copy(2, goals, torch.cat(parts, 2).to(like.dtype))
        return full.reshape(*like.shape[:2], *self.size)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Of each group the number of windows and of tokens per window, the key of skipped land not counted."""
        return [(g.cells.shape[0], g.cells.shape[1]) for g in self.groups]


def tiling(
    mesh: Tensor,
    mask: Tensor,
    window: tuple[int, int],
    halo: tuple[int, int],
    patch: int,
    *,
    skip_land: bool = True,
    together: int = 1,
) -> Tiling:
    """Cut a map into windows.

    Args:
        mesh: position of the cells in km (2, y, x).
        mask: 1 for ocean and 0 for land (1, y, x).
        window: cells (y, x) of a window without halo.
        halo: cells (y, x) on each side.
        patch: cells along the side of a token.
        skip_land: leave out windows and tokens without ocean, and results that nobody asks for; the results that are
            left change by rounding only.
        together: windows of one group: 1 wastes nothing on a CPU, more keep a GPU busy.

    Returns:
        The windows, in the order of their number of ocean tokens.

    Raises:
        TilingError: if windows cannot tile the grid, patches cannot tile windows, or mesh and mask do not fit.
    """
    size = _checked(mesh, mask, window, halo, patch, together)
    cells, inner = _window_cells(size, window, halo, patch)
    flat = mask.reshape(-1)
    ocean = (flat[cells] > 0).any(-1)
    count = ocean.sum(1)
    order = torch.argsort(count, stable=True)
    if skip_land:
        wet_core = (ocean & inner).any(1)
        order = order[wet_core[order]]
    groups = []
    for chosen in (order[i : i + together] for i in range(0, len(order), together)):
        length = int(count[chosen].max()) if skip_land else cells.shape[1]
        wanted = int((ocean & inner)[chosen].sum(1).max()) if skip_land else length
        groups.append(_group(cells[chosen], ocean[chosen], inner, length, wanted, mesh, flat))
    return Tiling(size, tuple(groups), cells.shape[1], len(cells))


def _group(cells: Tensor, ocean: Tensor, inner: Tensor, length: int, wanted: int, mesh: Tensor, mask: Tensor) -> Group:
    """Keep `length` tokens of each window: ocean of the window, ocean of its halo, then land, each in their order."""
    first = torch.argsort(2 - ocean.int() - (ocean & inner).int(), dim=1, stable=True)[:, :length]
    cells = torch.take_along_dim(cells, first[..., None], 1)
    wet = torch.take_along_dim(ocean, first, 1)
    inside = (wet & inner[first])[:, :wanted, None] & (mask[cells[:, :wanted]] > 0)
    kept = inside.flatten().nonzero()[:, 0]
    place = mesh.flatten(1)[:, cells].permute(1, 2, 0, 3).flatten(2)
    skipped, goals = ocean.shape[1] - length, cells[:, :wanted].flatten()[kept]
    return Group(cells, wet[..., None].to(mesh.dtype), place, skipped, wanted, kept, goals)


def _window_cells(
    size: tuple[int, int], window: tuple[int, int], halo: tuple[int, int], p: int
) -> tuple[Tensor, Tensor]:
    """The cells of every token of every window (window, token, p²), row by row, and which tokens are not halo."""
    rows, columns = (_lines(size[i], window[i], halo[i], p) for i in (0, 1))
    cells = rows[:, None, :, None, :, None] * size[1] + columns[None, :, None, :, None, :]
    inner = torch.zeros(rows.shape[1], columns.shape[1], dtype=torch.bool)
    inner[halo[0] // p : rows.shape[1] - halo[0] // p, halo[1] // p : columns.shape[1] - halo[1] // p] = True
    return cells.flatten(4).flatten(2, 3).flatten(0, 1), inner.flatten()


def _lines(size: int, window: int, halo: int, p: int) -> Tensor:
    """Rows (or columns) of every window's tokens (window, token row, p), those beyond the edge repeated."""
    starts = torch.arange(0, size, window)[:, None]
    lines = starts + torch.arange(-halo, window + halo)
    return lines.clamp(0, size - 1).reshape(len(starts), -1, p)


def _checked(
    mesh: Tensor, mask: Tensor, window: tuple[int, int], halo: tuple[int, int], p: int, together: int
) -> tuple[int, int]:
    height, width = mask.shape[-2:]
    if mask.shape != (1, height, width) or mesh.shape != (2, height, width):
        raise TilingError(
            f"wanted mask (1, y, x) and mesh (2, y, x) of one grid, got {tuple(mask.shape)} and {tuple(mesh.shape)}"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise TilingError("the mask holds 1 for ocean and 0 for land, got other values; fill or round it")
    if any(n < 1 or n % p for n in window) or any(n < 0 or n % p for n in halo):
        raise TilingError(f"patches of {p} x {p} cells cannot tile windows of {window} with a halo of {halo}")
    if together < 1:
        raise TilingError(f"at least 1 window runs together, got {together}")
    if height % window[0] or width % window[1]:
        least = tuple(-(-n // w) * w for n, w in zip((height, width), window, strict=True))
        raise TilingError(
            f"windows of {window[0]} x {window[1]} cells cannot tile a grid of {height} x {width}; extend it by "
            f"land to {least[0]} x {least[1]}, or choose a window that divides it"
        )
    return height, width
