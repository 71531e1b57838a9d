"""Superobservations: many observations of one thing in a box become one, with the error that is left.

Independent observations y_i of one state with errors r_i carry the information of a single one:

    y = Σ y_i r_i⁻² / Σ r_i⁻²,     r² = 1 / Σ r_i⁻²  ( = r_1²/n if all are alike)

With a linear H that is the same for all of them the Kalman update is the same; where H varies within the box,
errors of representativeness do not average out, and are added to r² as a floor. A filter's cost falls with
the number of observations, so that dense tracks and images should be averaged to the resolution of the state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .correlation import groups_of
from .observations import ObservationError, Observations


def superobbed(
    observations: Observations,
    size: float | tuple[float, float],
    *,
    depth: float | np.ndarray | None = None,
    floor: float | Mapping[str, float] = 0.0,
) -> Observations:
    """Averages of observations over boxes, separately for each variable and kind.

    Args:
        observations: of one time; their errors are independent.
        size: of a box in degrees, one number or (latitude, longitude), counted from the south pole and 0 E.
        depth: thickness of boxes, m, or their edges (edge,), m, ascending; None averages only what is at one depth.
            Edges open two more boxes, above the first and below the last.
        floor: standard deviation of what differs within a box, in the variable's unit, whose square is added to
            r²; one number, or one per variable (0 for those not named).

    Returns one observation per box that has any: value and position are means weighted with r_i⁻², in order of
    variable, kind, depth, latitude and longitude. A box with one observation keeps that, but for the floor. A mean
    position next to a coast may be on land, where `operator_for(..., drop=True)` drops it.

    Raises ObservationError for sizes that are not positive, edges that do not ascend, a floor that is negative, or
    correlated errors.

    Source: Oke et al. (2008), doi:10.1016/j.ocemod.2007.11.002, section 3.1, on superobservations.
    """
    across = np.broadcast_to(np.asarray(size, float), (2,))
    if not (across > 0).all():
        raise ObservationError(f"wanted boxes of a size > 0 degrees, got {size}")
    o, lon = observations, observations.lon % 360.0
    floors = np.array([floor.get(str(v), 0.0) if isinstance(floor, Mapping) else floor for v in o.variable], float)
    if not (floors >= 0).all():
        raise ObservationError(f"wanted a floor >= 0, got {floor}")
    if not len(o):
        return o
    correlated = sum(map(len, groups_of(o)))
    if correlated:
        raise ObservationError(
            f"superobservations average independent errors, those of {correlated} observations are correlated; leave "
            "these out and join them with the others afterwards, or make length and height inf"
        )
    parts = [_numbered(o.variable), _numbered(o.kind), _layer(o.depth, depth)]
    parts += [np.floor((o.lat + 90) / across[0]).astype(np.int64), np.floor(lon / across[1]).astype(np.int64)]
    _, first, box, count = np.unique(_joint(parts), return_index=True, return_inverse=True, return_counts=True)
    weight = o.error**-2.0
    total = np.bincount(box, weight)

    def mean(x: np.ndarray) -> np.ndarray:
        # Relative to one of them, so that equal numbers stay what they are.
        return np.asarray(x[first] + np.bincount(box, weight * (x - x[first][box])) / total)

    alone = count == 1
    error = np.where(alone, o.error[first], 1 / np.sqrt(total))
    error = np.where(floors[first] > 0, np.hypot(error, floors[first]), error)
    place = np.where(alone, o.lon[first], mean(lon))
    return o.select(first).replace(
        lat=mean(o.lat), lon=place, depth=np.maximum(mean(o.depth), 0.0), value=mean(o.value), error=error,
        offset=np.minimum(mean(o.offset), 0.0), group=np.where(alone, o.group[first], 0),
    )  # fmt: skip


def _numbered(labels: np.ndarray) -> np.ndarray:
    return np.asarray(np.unique(labels, return_inverse=True)[1])


def _layer(depth: np.ndarray, boxes: float | np.ndarray | None) -> np.ndarray:
    """The number of the layer each depth is in."""
    if boxes is None:
        return _numbered(depth)
    edges = np.asarray(boxes, float)
    if edges.ndim == 0:
        if not edges > 0:
            raise ObservationError(f"wanted boxes of a thickness > 0 m, got {boxes}")
        return np.asarray(np.floor(depth / edges), np.int64)
    if not (np.diff(edges) > 0).all():
        raise ObservationError(f"wanted edges of boxes in ascending order, got {edges}")
    return np.asarray(np.searchsorted(edges, depth, side="right"))


def _joint(parts: list[np.ndarray]) -> np.ndarray:
    """One number for each combination, in lexicographic order."""
    joint = np.zeros(len(parts[0]), np.int64)
    for part in parts:
        joint = _numbered(joint)
        joint = joint * (int(part.max()) + 1) + part
    return joint
