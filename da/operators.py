"""The observation operator H: from a state to what instruments would see of it.

H is linear and sparse, (Hx)_i = Σ_k w_ik x_{j(i,k)} over at most eight points: bilinear in latitude and
longitude on the field's own points (cell centres or corners), linear in depth. Points on land take no
part: weights are renormalised over the wet points of each level, then over the levels that have any, so
that a horizontally uniform ocean is reproduced exactly next to a coast. Beyond the outermost points the
nearest value holds for half a cell; above the first level it holds to the surface. On curvilinear grids
(2-D latitude and longitude) the horizontal part is the nearest cell that is wet at the surface.
Observations refer to the newest time slot.

Derived quantities are functions of several variables that are seen in this way, so that H is then nonlinear.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cftime
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..emulators import Field, Layout, State
from .localise import EARTH_RADIUS, unit_vectors
from .observations import Derived, ObservationError, Observations


@dataclass(frozen=True, eq=False)
class ObservationOperator:
    """H for one set of observations and one layout; made by `operator_for`.

    Attributes:
        layout: of the states it takes.
        observations: what it gives values for (without those that were dropped).
        index: (point, observation) positions in the flattened `(channel, y, x)`; of a derived quantity those of its
            first input.
        weight: (point, observation), sums to one over `point`.
        derived: which observations are derived, and for each further input how it is seen.
    """

    layout: Layout = field(repr=False)
    observations: Observations
    index: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    derived: tuple[tuple[Derived, Tensor, tuple[tuple[Tensor, Tensor], ...]], ...] = field(default=(), repr=False)

    def apply(self, state: State, *, shifted: bool = True) -> Tensor:
        """What would be observed of every member, (member, observation), in the state's dtype; differentiable.

        Args:
            state: the members; if the observations have a view, what that is a view of.
            shifted: whether to add the view's shift, which is that of the forecast: to its members, or to a state of
                one member its mean.

        Raises LayoutError for a state of another layout.
        """
        self.layout.require_same(state.layout, "observation operator: state")
        view = self.observations.view
        if view is not None and view.lens is not None:
            state = view.lens(state)
        flat = state.data.flatten(1)
        seen = self._linear(flat, self.index, self.weight)
        for derived, rows, others in self.derived:
            rows = rows.to(flat.device)
            inputs = seen[:, rows], *(self._linear(flat, index, weight) for index, weight in others)
            seen = seen.index_copy(1, rows, derived.function(*inputs))
        if view is not None and view.shift is not None and shifted:
            shift = view.shift.to(seen)
            seen = seen + (shift if state.members == view.members else shift.mean(0))
        return seen

    @staticmethod
    def _linear(flat: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        index, weight = index.to(flat.device), weight.to(flat)
        # Point by point: the order of the sum, hence its bits, does not depend on the number of members.
        seen = flat.index_select(1, index[0]) * weight[0]  # which is three times as fast as flat[:, index[0]]
        for k in range(1, len(index)):
            seen = seen + flat.index_select(1, index[k]) * weight[k]
        return seen


def newest(state: State) -> cftime.datetime:
    """The time of a state's newest slot, to which observations refer."""
    return state.layout.times(state.time)[-1]


def operator_for(layout: Layout, observations: Observations, *, drop: bool = False) -> ObservationOperator:
    """The observation operator of these observations for states of this layout.

    Args:
        layout: of the states to come; `layout.grid.attrs["zonal_period"]` (degrees, default 360) says
            where longitudes repeat.
        observations: of any mix of variables.
        drop: leave out observations outside the grid or without a wet point around them; what is left
            is `operator.observations`. Without it they are an error.

    Raises ObservationError for a variable that is not in the layout, or an observation that is nowhere.
    """
    unknown = sorted({n for names in _inputs(observations).values() for n in names} - set(layout.names))
    if unknown:
        raise ObservationError(f"no field(s) {', '.join(unknown)} to observe; the state has {', '.join(layout.names)}")
    index, weight, found = _placed(layout, observations)
    if not found.all():
        if not drop:
            raise ObservationError(
                "observations must have a wet point around them (`operator_for(..., drop=True).observations` are those "
                f"that have): {observations.examples(~found)}"
            )
        observations, index, weight = observations.select(found), index[:, found], weight[:, found]
    derived = []
    for d in observations.derived:
        chosen = np.flatnonzero(observations.variable == d.name)
        if len(chosen):
            others = (_tensors(*_points_of(layout, observations.select(chosen), n)) for n in d.inputs[1:])
            derived.append((d, torch.from_numpy(chosen), tuple(others)))
    return ObservationOperator(layout, observations, *_tensors(index, weight), tuple(derived))


def located(layout: Layout, observations: Observations) -> np.ndarray:
    """Which observations have a place in states of a layout, (observation,) bool.

    They are of known variables, and these have a wet point around them, or around each of a derived one's inputs.
    """
    known = {n for n, inputs in _inputs(observations).items() if set(inputs) <= set(layout.names)}
    found = np.isin(observations.variable, sorted(known))
    found[found] = _placed(layout, observations.select(found))[2]
    return found


def _placed(layout: Layout, observations: Observations) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points and weights of known variables, of derived ones of their first input, and which have any."""
    index, weight = _points_of(layout, observations, observations.primary)
    found = weight.sum(0) > 0
    for d in observations.derived:
        rows = observations.variable == d.name
        for name in d.inputs[1:] if rows.any() else ():
            found[rows] &= _points_of(layout, observations.select(rows), name)[1].sum(0) > 0
    return index, weight, found


def _inputs(observations: Observations) -> dict[str, tuple[str, ...]]:
    """For each observed variable those of the state that it is seen in."""
    derived = {d.name: d.inputs for d in observations.derived}
    return {str(n): derived.get(str(n), (str(n),)) for n in np.unique(observations.variable)}


def _tensors(index: np.ndarray, weight: np.ndarray) -> tuple[Tensor, Tensor]:
    # A point of no weight may be land, and land may be NaN: look at the heaviest point instead.
    if index.size:
        heaviest = np.take_along_axis(index, weight.argmax(0)[None], 0)
        index = np.where(weight > 0, index, heaviest)
    return torch.from_numpy(index), torch.from_numpy(weight)


def _points_of(layout: Layout, obs: Observations, names: np.ndarray | str) -> tuple[np.ndarray, np.ndarray]:
    """Up to eight points and weights, both (8, observation), of one variable, or of one for each observation."""
    names = np.broadcast_to(names, (len(obs),))
    index, weight = np.zeros((8, len(obs)), np.int64), np.zeros((8, len(obs)))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        index[:, rows], weight[:, rows] = _points(layout, layout.field(str(name)), obs.select(rows))
    return index, weight


def _points(layout: Layout, f: Field, obs: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Up to eight points and weights per observation of one field, both (8, observation)."""
    around = _bilinear if layout.grid["lat"].ndim == 1 else _nearest
    cell, across, inside = around(layout, f, obs.lat, obs.lon)
    level, down, above_bottom = _levels(layout, f, obs.depth)
    wet = layout.field_mask(f).reshape(f.channels, -1)
    weight = across[None] * wet[level[:, None], cell[None]]  # (level, cell, observation)
    total = weight.sum(1, keepdims=True)
    weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    down = down * (total[:, 0] > 0)
    total = down.sum(0)
    down = np.divide(down, total, out=np.zeros_like(down), where=(total > 0) & inside & above_bottom)
    channel = layout.channels(f.name).start + level
    index = channel[:, None] * wet.shape[1] + cell[None]
    pad = 8 - index.shape[0] * index.shape[1]
    flat = (a.reshape(-1, len(obs)) for a in (index, weight * down[:, None]))
    padded_index, padded_weight = (np.pad(a, ((0, pad), (0, 0))) for a in flat)
    return padded_index, padded_weight


def _bilinear(layout: Layout, f: Field, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The four cells around each position and their weights, both (4, observation), and what is inside."""
    rows, columns = layout.position(f)
    south, north, v, in_lat = _bracket(rows[:, 0], lat)
    west, east, u, in_lon = _bracket_zonal(columns[0], lon, float(layout.grid.attrs.get("zonal_period", 360.0)))
    width = columns.shape[1]
    cell = np.stack([south * width + west, south * width + east, north * width + west, north * width + east])
    weight = np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
    return cell, weight, in_lat & in_lon


def _nearest(layout: Layout, f: Field, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest cell that is wet at the surface, (1, observation); inside if within a cell's width of it."""
    rows, columns = layout.position(f)
    wet = np.flatnonzero(layout.field_mask(f)[0])
    if not len(wet) or not len(lat):
        return np.zeros((1, len(lat)), np.int64), np.ones((1, len(lat))), np.zeros(len(lat), bool)
    chord, nearest = cKDTree(unit_vectors(rows.ravel()[wet], columns.ravel()[wet])).query(unit_vectors(lat, lon))
    cell = wet[nearest]
    width = np.sqrt(layout.grid["areacello"].values.ravel()[cell])
    return cell[None], np.ones((1, len(lat))), chord * EARTH_RADIUS <= width


def _levels(layout: Layout, f: Field, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The levels above and below, their weights, both (2 or 1, observation), and what is above the bottom."""
    if not f.levels:
        return np.zeros((1, len(depth)), np.int64), np.ones((1, len(depth))), np.ones(len(depth), bool)
    lev, dz = (layout.grid[n].values[: f.levels] for n in ("lev", "dz"))
    upper, lower, t, _ = _bracket(lev, depth)
    return np.stack([upper, lower]), np.stack([1 - t, t]), depth <= lev[-1] + dz[-1] / 2


def _bracket(points: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours of x among monotonic points, the weight of the second, and whether x is within half a step."""
    if len(points) == 1:  # a single row has no step: it stands for every x
        nowhere = np.zeros(len(x), np.int64)
        return nowhere, nowhere, np.zeros(len(x)), np.ones(len(x), bool)
    order = np.argsort(points)
    ordered = points[order]
    k = np.clip(np.searchsorted(ordered, x, side="right") - 1, 0, len(points) - 2)
    t = (x - ordered[k]) / (ordered[k + 1] - ordered[k])
    rounding = 1e-9
    inside = (t >= -0.5 - rounding) & (t <= 1.5 + rounding)
    return order[k], order[k + 1], np.clip(t, 0.0, 1.0), inside


def _bracket_zonal(
    points: np.ndarray, x: np.ndarray, period: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `_bracket`, for longitudes: the last point is beside the first if the grid goes all the way round."""
    east = (points - points[0]) % period
    steps, gap = np.diff(np.sort(east)), period - east.max()
    if len(points) > 1 and gap <= 1.5 * steps.max():
        west, east_of, t, inside = _bracket(np.append(east, period), (x - points[0]) % period)
        return west % len(points), east_of % len(points), t, inside
    # A region: everything else lies in the gap, half of it counted from either side.
    return _bracket(east, (x - points[0] + gap / 2) % period - gap / 2)
