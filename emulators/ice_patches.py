"""Training samples of a generative sea-ice model: patches at several resolutions, flipped and turned.

Finn et al. (2025, arXiv:2508.14984): a patch of n x n cells with its halo is cut out of the map, whose edge is repeated
beyond it, and averaged over blocks of 1, 2, 4 or 8 cells; a coarse cell is ocean only if all of its cells are.  Maps
are then flipped and turned at random, and the network is told how by three labels.  The original turns maps of vectors
like maps of scalars; here components follow, unless `vectors` is left empty.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["coarse_mask", "corners", "cut_patch", "horizontal_flip", "moved", "quarter_turn", "vertical_flip"]

Vectors = tuple[tuple[int, int], ...]


def vertical_flip(x: Tensor, vectors: Vectors = ()) -> Tensor:
    """Reverse the rows.

    Args:
        x: maps (..., channel, y, x).
        vectors: channels (x component, y component) of each vector; the y components change sign.  Empty to match
            the original.

    Returns:
        Maps of the same shape.
    """
    return _signed(x.flip(-2), [v for _, v in vectors])


def horizontal_flip(x: Tensor, vectors: Vectors = ()) -> Tensor:
    """Reverse the columns, and the sign of x components; arguments and shape as `vertical_flip`."""
    return _signed(x.flip(-1), [u for u, _ in vectors])


def quarter_turn(x: Tensor, vectors: Vectors = ()) -> Tensor:
    """Flip vertically, then exchange rows and columns, and with them the components of vectors.

    Arguments as `vertical_flip`; y and x are exchanged in the shape.
    """
    order = list(range(x.shape[-3]))
    for u, v in vectors:
        order[u], order[v] = v, u
    return vertical_flip(x, vectors).transpose(-2, -1)[..., order, :, :]


def moved(x: Tensor, flags: Tensor, vectors: Vectors = ()) -> Tensor:
    """Flip and turn maps, one sample unlike the other.

    Args:
        x: maps (batch, channel, y, x), square if any is to be turned.
        flags: horizontal flip, vertical flip, quarter turn, in this order, bool (batch, 3).
        vectors: as `vertical_flip`.

    Returns:
        Maps of the same shape.
    """
    for move, done in zip((horizontal_flip, vertical_flip, quarter_turn), flags.T, strict=True):
        if bool(done.any()):
            x = torch.where(done.to(x.device)[:, None, None, None], move(x, vectors), x)
    return x


def cut_patch(x: Tensor, corner: tuple[int, int], level: int, size: tuple[int, int], pad: tuple[int, int]) -> Tensor:
    """Cut a patch out of maps and average it.

    Args:
        x: maps (batch, channel, y, x).
        corner: first row and column of the patch on the padded map, in cells of x.
        level: cells of x along the side of a cell of the patch, a power of 2.
        size: cells (y, x) of the patch, halo included.
        pad: rows and columns repeated at each edge of the map.

    Returns:
        Patch (batch, channel, *size).

    Raises:
        ValueError: if the patch does not lie on the padded map, or the level is not a power of 2.
    """
    padded = tuple(n + 2 * p for n, p in zip(x.shape[-2:], pad, strict=True))
    ends = tuple(c + level * n for c, n in zip(corner, size, strict=True))
    if min(corner) < 0 or ends[0] > padded[0] or ends[1] > padded[1] or level & (level - 1) or level < 1:
        raise ValueError(
            f"wanted a patch of {size} cells at a level 1, 2, 4, ... on a padded map of {padded}, "
            f"got corner {corner} and level {level}, which reaches to {ends}"
        )
    rows, columns = (  # numbers of cells rather than a padded map, which may be much larger than a patch
        torch.arange(c - p, e - p, device=x.device).clamp(0, n - 1)
        for c, e, p, n in zip(corner, ends, pad, x.shape[-2:], strict=True)
    )
    patch = x[..., rows[:, None], columns]
    while level > 1:
        patch, level = F.avg_pool2d(patch, 2), level // 2
    return patch


def coarse_mask(
    mask: Tensor, corner: tuple[int, int], level: int, size: tuple[int, int], pad: tuple[int, int]
) -> Tensor:
    """The mask of a patch, 1 where every cell is ocean (batch, 1, *size); arguments as `cut_patch`."""
    return (cut_patch(mask, corner, level, size, pad) == 1).to(mask)


def corners(mask: Tensor, level: int, size: tuple[int, int], pad: tuple[int, int], least: float = 0.1) -> Tensor:
    """All corners of patches with enough ocean.

    Args:
        mask: 1 for ocean, 0 for land (y, x).
        level, size, pad: as `cut_patch`.
        least: share of ocean that a patch must exceed.

    Returns:
        Rows and columns (corner, 2), int64, to draw from; empty if the map is too small or all land.
    """
    padded = F.pad(mask[None, None].double(), (pad[1], pad[1], pad[0], pad[0]), mode="replicate")[0, 0]
    height, width = (level * n for n in size)
    if height > padded.shape[0] or width > padded.shape[1]:
        return torch.empty(0, 2, dtype=torch.int64)
    total = F.pad(padded.cumsum(0).cumsum(1), (1, 0, 1, 0))
    inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    return (inside / (height * width) > least).nonzero()


def _signed(x: Tensor, negative: list[int]) -> Tensor:
    sign = torch.ones(x.shape[-3], dtype=x.dtype, device=x.device)
    sign[negative] = -1
    return x * sign[:, None, None]
