"""Weights of a local analysis: computed in some columns, interpolated to all others, used as often as wanted.

An ensemble transform changes no point by itself: x_i ← x_i + Σ_j X_j G_ji with the gain G = T + w 1ᵀ - I of the
column, X the anomalies. G varies over the localisation length, not over the grid's, so it is computed in columns
some `stride` apart and interpolated in index space, which a curvilinear grid has too (Yang et al. 2009,
doi:10.1002/qj.353): with cubic polynomials, which err two to four times less than the bilinear shares of the paper,
where all 16 columns around are wet and of the same basin; else bilinearly between those that are, with their shares
renormalised; a wet column that has lost more than a quarter of its shares has weights of its own. Fields keep
their own anomalies: fronts stay sharp.

Columns are numbered as cells of the flattened (y, x) and taken in that order, block by block; only the rows
of weights around the block exist, not those of the whole grid, unless they are to be kept (`Weights`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..emulators import Field, Layout, LayoutError, State
from .filters import updated_channels
from .localise import great_circle

IN_CACHE = 128  # columns whose state rows are moved at a time
# For each group of channels: gains (column or 1, member, member), and which columns see an observation (column or 1,).
Solved = tuple[list[Tensor], list[Tensor]]
RECOMMENDED = 0.25  # spacing of the analysis columns over the half width of the taper
ENOUGH = 0.75  # a column of which less is left, because of land, is computed by itself: extrapolation errs most


@dataclass(frozen=True, eq=False)
class AnalysisColumns:
    """Where weights are computed, and how those of every column are made of them.

    Attributes:
        cells: where, numbers of cells in ascending order, (analysis column,).
        every: all columns that have weights, numbers of cells in ascending order, (column,).
        around: the analysis columns around each, positions in `cells`, (column, 1 or 16).
        share: what each of them counts, (column, 1 or 16) float64; they sum to 1.
    """

    cells: Tensor
    every: Tensor
    around: Tensor
    share: Tensor

    @property
    def interpolates(self) -> bool:
        """Whether weights are interpolated at all."""
        return self.around.shape[1] > 1

    def spread(self, solved: Iterable[Solved], block: int) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
        """The gains of every column, some columns at a time.

        Args:
            solved: the gains of all analysis columns in order, in blocks of any size.
            block: columns at a time.

        Yields numbers of cells (column,), and for each group of channels their gains (column or 1, member, member)
        and whether they see an observation (column or 1,). Of `solved` it holds what the block needs.
        """
        source, start = iter(solved), 0
        held: Solved = ([], [])
        if not len(self.every):
            return
        low = _least_from_here(self.around.amin(1))
        for part in torch.split(torch.arange(len(self.every), device=self.every.device), block):
            need, until = int(low[part[0]]), int(self.around[part].max()) + 1
            held, start = _dropped(held, need - start), max(start, need)
            while not held[0] or start + len(held[0][0]) < until:
                held = _joined(held, next(source))
                held, start = _dropped(held, need - start), max(start, need)
            near, share = self.around[part] - start, self.share[part]
            yield self.every[part], *self._mixed(held, near, share)

    def _mixed(self, held: Solved, near: Tensor, share: Tensor) -> Solved:
        gains, seen = held
        if len(self.cells) == 1:  # one transform for all
            return gains, seen
        if not self.interpolates:
            first = int(near[0, 0])  # which are neighbours, in order
            here = slice(first, first + len(near))
            return [g[here].clone() for g in gains], [s[here] for s in seen]
        mixed = []
        for g in gains:
            flat = embedding_bag(near, g.flatten(1), per_sample_weights=share.to(g.dtype), mode="sum")
            mixed.append(flat.view(-1, *g.shape[1:]))
        return mixed, [(s[near] & (share != 0)).any(1) for s in seen]

    def longest(self, block: int) -> int:
        """How many analysis columns `spread` must hold at once, without what was computed ahead."""
        if not len(self.every):
            return 0
        low = _least_from_here(self.around.amin(1))
        parts = torch.split(torch.arange(len(self.every), device=self.every.device), block)
        return max(int(self.around[p].max()) + 1 - int(low[p[0]]) for p in parts)


def _least_from_here(x: Tensor) -> Tensor:
    return x.flip(0).cummin(0).values.flip(0)


def _dropped(held: Solved, number: int) -> Solved:
    """Without the first columns, if there are so many."""
    if number <= 0 or not held[0]:
        return held
    return [g[number:] for g in held[0]], [s[number:] for s in held[1]]


def _joined(held: Solved, more: Solved) -> Solved:
    if not held[0] or not len(held[0][0]):
        return more
    gains, seen = ([torch.cat(p) for p in zip(a, b, strict=True)] for a, b in zip(held, more, strict=True))
    return gains, seen


def analysis_columns(
    layout: Layout,
    wet: np.ndarray,
    stride: int | str,
    half_width: float | None = None,
    basins: np.ndarray | None = None,
) -> AnalysisColumns:
    """Columns a stride apart, and shares to interpolate between them.

    Args:
        layout: of the states; only its grid matters.
        wet: columns that need weights, (y, x) bool.
        stride: in rows and columns; or "auto": as many rows, and in each row of analysis columns as many
            columns, as fit in a quarter of the half width, so that their number falls towards the poles.
        half_width: of the horizontal taper, m, for "auto".
        basins: labels (y, x); weights are interpolated between columns of the same label only.

    Raises ValueError for a stride that is neither.
    """
    nx, cells = wet.shape[1], np.flatnonzero(wet)
    if stride == 1 or not len(cells):
        number, every = torch.arange(len(cells))[:, None], torch.from_numpy(cells)
        return AnalysisColumns(every, every, number, torch.ones(number.shape, dtype=torch.float64))
    rows, steps = _coarse(layout, wet, stride, half_width)
    if len(rows) == wet.shape[0] and (steps == 1).all():
        return analysis_columns(layout, wet, 1)
    periodic = zonally_periodic(layout)

    def around(cubic: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corner, share = _corners(*np.divmod(cells, nx), rows, steps, nx, periodic, cubic)
        good = wet.ravel()[corner]
        if basins is not None:
            good &= basins.ravel()[corner] == basins.ravel()[cells][:, None]
        return corner, share * good, (good | (share == 0)).all(1)

    corner, share, whole = around(cubic=True)
    corner_2, share_2, _ = around(cubic=False)
    corner[~whole], share[~whole] = corner[~whole][:, :1], 0.0
    corner[~whole, :4], share[~whole, :4] = corner_2[~whole], share_2[~whole]
    total = share.sum(1, keepdims=True)
    alone = total < ENOUGH
    share = np.where(alone, [1.0] + [0.0] * (share.shape[1] - 1), share / np.where(alone, 1.0, total))
    corner = np.where(alone, cells[:, None], corner)
    heaviest = np.take_along_axis(corner, share.argmax(1)[:, None], 1)
    chosen, position = np.unique(np.where(share != 0, corner, heaviest), return_inverse=True)
    return AnalysisColumns(*map(torch.from_numpy, (chosen, cells, position.reshape(corner.shape), share)))


def _coarse(layout: Layout, wet: np.ndarray, stride: int | str, half_width: float | None) -> tuple[np.ndarray, ...]:
    """Rows of analysis columns, and the distance between them within each in columns, both (row,)."""
    ny, nx = wet.shape
    if stride != "auto":
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f'wanted a stride of whole columns >= 1, or "auto", got {stride!r}')
        rows = np.unique(np.append(np.arange(0, ny, stride), ny - 1))
        return rows, np.full(len(rows), stride)
    if half_width is None:
        raise ValueError('stride="auto" needs a half width to choose it from')
    limit = RECOMMENDED * half_width
    north, east = spacings(layout, wet)
    chosen = [0]
    while chosen[-1] < ny - 1:
        reach = np.cumsum(north[chosen[-1] :])
        chosen.append(chosen[-1] + max(1, int(np.searchsorted(reach, limit * (1 + 1e-9), side="right"))))
    rows = np.minimum(np.array(chosen), ny - 1)
    steps = []
    for k in range(len(rows)):
        served = east[rows[max(k - 1, 0)] : rows[min(k + 1, len(rows) - 1)] + 1].max()
        steps.append(int(np.clip(limit * (1 + 1e-9) // max(served, 1.0), 1, max(nx // 2, 1))))
    return rows, np.array(steps)


def spacings(layout: Layout, wet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest distance (m) between wet neighbours, from each row to the next (y-1,) and within each row (y,)."""
    lat, lon = layout.position(Field("any centre"))
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    north = great_circle(lat[:-1], lon[:-1], lat[1:], lon[1:], period)
    east = great_circle(lat[:, :-1], lon[:, :-1], lat[:, 1:], lon[:, 1:], period)
    north = np.where(wet[:-1] & wet[1:], north, 0.0).max(1, initial=0.0)
    return north, np.where(wet[:, :-1] & wet[:, 1:], east, 0.0).max(1, initial=0.0)


def zonally_periodic(layout: Layout) -> bool:
    """Whether the last column is beside the first: no further from it than neighbours are, in most rows."""
    lat, lon = layout.position(Field("any centre"))
    if lat.shape[1] < 3:
        return False
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    steps = great_circle(lat[:, :-1], lon[:, :-1], lat[:, 1:], lon[:, 1:], period)
    seam = great_circle(lat[:, -1], lon[:, -1], lat[:, 0], lon[:, 0], period)
    return bool(np.mean(seam <= 1.5 * steps.max(1)) > 0.5)


def _corners(
    y: np.ndarray, x: np.ndarray, rows: np.ndarray, steps: np.ndarray, nx: int, periodic: bool, cubic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Cells and shares, both (column, 16 or 4), of the analysis columns around some columns."""
    row, down = _nodes(y, rows, cubic)
    width = row.shape[1]
    corner, share = np.zeros((len(y), width, width), np.int64), np.zeros((len(y), width, width))
    for step in np.unique(steps):
        points = np.arange(0, nx, step)
        if periodic:  # the first ones again, one turn further, and the last ones before
            around = np.concatenate([points[-2:] - nx, points, points[:2] + nx])
        else:
            around = np.unique(np.append(points, nx - 1))
        number, across = _nodes(x, around, cubic)
        here = steps[row] == step  # (column, row of nodes)
        cell = rows[row][:, :, None] * nx + (around % nx)[number][:, None]
        corner[here], share[here] = cell[here], (down[:, :, None] * across[:, None])[here]
    return corner.reshape(len(y), -1), share.reshape(len(y), -1)


def _nodes(x: np.ndarray, points: np.ndarray, cubic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the points around x and their shares, (x, 2), or (x, 4) for Lagrange's cubic polynomial."""
    left = np.searchsorted(points, x, side="right") - 1
    if len(points) == 1:
        left = np.zeros_like(left)
    last = len(points) - 1
    number = np.clip(left[:, None] + (np.arange(-1, 3) if cubic else np.arange(2)), 0, last)
    middle = slice(1, 3) if cubic else slice(0, 2)
    a, b = (points[number[:, k]] for k in (middle.start, middle.stop - 1))
    t = (x - a) / np.maximum(b - a, 1)
    share = np.zeros(number.shape)
    share[:, middle] = np.stack([1 - t, t], 1)
    if cubic:
        whole = (left >= 1) & (left + 2 <= last)  # elsewhere it is linear
        at = points[number[whole]].astype(float)
        for k in range(4):
            others = [j for j in range(4) if j != k]
            factors = (x[whole, None] - at[:, others]) / (at[:, [k]] - at[:, others])
            share[whole, k] = factors.prod(1)
    return number, share


def write(out: Tensor, data: Tensor, keep: Tensor, channels: Tensor, cells: Tensor, gain: Tensor) -> None:
    """Write some channels and columns of the analysis: x_i ← x_i + Σ_j X_j G_ji.

    Args:
        out: (member, channel, cell), changed in place.
        data: background, likewise.
        keep: what to leave bitwise alone, (channel, column).
        channels: numbers, (channel,).
        cells: numbers of cells in ascending order, (column,).
        gain: G, (column or 1, member, member), in the dtype of the data.
    """
    where = (slice(None), channels.unsqueeze(-1), cells)
    background = data[where]
    out[where] = torch.where(keep, background, background + _increment(background, gain))


def write_range(out: Tensor, data: Tensor, keep: Tensor, channels: Tensor, cells: Tensor, gain: Tensor) -> None:
    """As `write`, but for rounding: reads and writes a range of cells at once, which is much faster."""
    first, last = int(cells[0]), int(cells[-1]) + 1
    if last - first > 2 * len(cells):  # far apart
        write(out, data, keep, channels, cells, gain)
        return
    if last - first > len(cells):  # with land between
        within, land = cells - first, torch.ones(len(keep), last - first, dtype=torch.bool, device=keep.device)
        keep = land.index_copy(1, within, keep)
        if len(gain) > 1:
            gain = torch.zeros(last - first, *gain.shape[1:], dtype=gain.dtype, device=gain.device).index_copy(
                0, within, gain
            )
    which = _as_slice(channels)
    for start in range(0, last - first, IN_CACHE):
        here = slice(start, min(start + IN_CACHE, last - first))
        background = data[:, which, first + here.start : first + here.stop]
        members, number, width = background.shape
        # Two-dimensional transposes are the fast ones: (member channel, cell) to (cell, member, channel) and back.
        anomalies = (background - background.mean(0)).reshape(members * number, width).mT.contiguous()
        increment = (gain[here] if len(gain) > 1 else gain).mT @ anomalies.view(width, members, number)
        new = increment.reshape(width, members * number).mT.contiguous().view(members, number, width) + background
        out[:, which, first + here.start : first + here.stop] = torch.where(keep[:, here], background, new)


def _as_slice(numbers: Tensor) -> Tensor | slice:
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(numbers) and bool((numbers.diff() == 1).all()) else numbers


def _increment(background: Tensor, gain: Tensor) -> Tensor:
    """(member, channel, column), from the background of that shape."""
    anomalies = (background - background.mean(0)).permute(2, 1, 0)
    return (anomalies @ gain).permute(2, 1, 0)


@dataclass(frozen=True, eq=False)
class Weights:
    """What `LETKF.weights` found, for use on any state of the same members and grid.

    On the forecast it gives the analysis, bit for bit; on an earlier state of the same members the no-cost smoother
    (Kalnay and Yang 2010, doi:10.1002/qj.652); on fields that are not assimilated their regression on those that are.

    Attributes:
        columns: where the gains are.
        gains: T + w 1ᵀ - I, one (analysis column or 1, member, member) for each group of channels.
        seen: whether an observation acts on the column, likewise (analysis column or 1,).
        group: which of the groups a field and level belongs to; None where it is not to be changed.
        members: the members' numbers, in the order of the gains.
        shape: of the grid, (y, x).
        block: columns updated at a time.
    """

    columns: AnalysisColumns = field(repr=False)
    gains: tuple[Tensor, ...] = field(repr=False)
    seen: tuple[Tensor, ...] = field(repr=False)
    group: dict[tuple[str, int], int | None] = field(repr=False)
    members: tuple[int, ...]
    shape: tuple[int, int]
    block: int = 128

    def apply(self, state: State) -> State:
        """The state with the weights applied: same members, time and layout; land bitwise the same.

        Args:
            state: of the same members in the same order, on the same grid, at any time. Its fields are those the
                weights were made for; or, where all of these share one transform, any others too.

        It is differentiable with respect to the state and what the weights were computed from.

        Raises LayoutError for other members, another grid, or fields without weights.
        """
        if state.members != self.members:
            raise LayoutError(f"weights: wanted members {self.members}, got {state.members}")
        if state.layout.shape[1:] != self.shape:
            raise LayoutError(f"weights: wanted a grid (y, x) = {self.shape}, got {state.layout.shape[1:]}")
        groups = self._channels(state.layout)
        if not self.gains:
            return state
        return updated(state, self.columns, groups, [(list(self.gains), list(self.seen))], self.block)

    def _channels(self, layout: Layout) -> list[Tensor]:
        """Channels of each group, (channel,)."""
        only = set(self.group.values()) <= {0, None}
        of_slot, missing = [], []
        for f in layout.fields:
            for k in range(f.channels):
                found = self.group.get((f.name, k), 0 if only else -1)
                of_slot.append(found)
                missing += [f.name] if found == -1 else []
        if missing:
            raise LayoutError(
                f"no weights for {', '.join(dict.fromkeys(missing))}: transforms differ between fields or levels here; "
                "give `weights` a layout that has them"
            )
        of = torch.tensor([-1 if g is None else g for g in of_slot] * len(layout.slots))
        channels = updated_channels(layout, None)
        return [channels[of == k] for k in range(len(self.gains))]  # ascending


def updated(
    state: State, columns: AnalysisColumns, groups: list[Tensor], solved: Iterable[Solved], block: int
) -> State:
    """The state with gains applied to its wet points.

    Args:
        state: of any layout on the grid.
        columns: where the gains are.
        groups: channels (channel,) of each group.
        solved: the gains of the groups, in order of columns.
        block: columns at a time.
    """
    place = state.data.device
    data, wet = state.data.flatten(-2), state.layout.mask.flatten(-2).to(place)
    out, groups = data.clone(), [g.sort().values.to(place) for g in groups]
    for cells, gains, seen in columns.spread(solved, block):
        for channels, gain, sees in zip(groups, gains, seen, strict=True):
            some = sees.expand(len(cells)).nonzero()[:, 0]
            if len(channels) and len(some):
                keep = ~wet[channels][:, cells[some]]
                chosen = gain if len(gain) == 1 or len(some) == len(gain) else gain[some]
                change = write_range if columns.interpolates else write
                change(out, data, keep, channels, cells[some], chosen.to(data.dtype))
    return state.replace(data=out.view_as(state.data))
