"""Observation errors that are correlated within groups: R^(-1/2) applied to departures.

    R = D^½ C D^½,   C_ij = exp(-r_ij/length - z_ij/height)   within a group, of one variable; 0 between groups

with distances r on the sphere and z in depth; a length of inf drops its factor. The product of two exponentials is
positive definite. The symmetric root C^(-1/2) is, of all matrices W with W C Wᵀ = 1, the one that changes a vector
least, so that row i of a whitened departure still belongs to where observation i is, and filters that multiply
R⁻¹ with a taper can do so after it. Without a taper the analysis is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .localise import great_circle
from .observations import ObservationError, Observations

LARGEST_GROUP = 4000  # its matrix of 128 MB and the root of it take about half a minute
_LEAST = 1e-8  # eigenvalue of C: below, observations of a group are the same


def groups_of(observations: Observations) -> list[np.ndarray]:
    """Positions of the observations of each group and variable with correlated errors, two at least."""
    o = observations
    correlated = np.flatnonzero((o.group > 0) & (np.isfinite(o.length) | np.isfinite(o.height)))
    if not len(correlated):
        return []
    names = np.unique(o.variable[correlated], return_inverse=True)[1]
    _, label = np.unique(np.stack([o.group[correlated], names]), axis=1, return_inverse=True)
    order = np.argsort(label, kind="stable")
    parts = np.split(correlated[order], np.flatnonzero(np.diff(label[order])) + 1)
    return [p for p in parts if len(p) > 1]


def correlation(observations: Observations) -> np.ndarray:
    """C of observations of one group and variable, (observation, observation).

    Raises ObservationError unless all have the same length and height.
    """
    o = observations
    if np.ptp(np.nan_to_num(o.length, posinf=0)) or np.ptp(np.nan_to_num(o.height, posinf=0)):
        raise ObservationError(
            f"wanted one length and one height of correlation for group {o.group[0]} of {o.variable[0]}, got lengths "
            f"{np.unique(o.length)} and heights {np.unique(o.height)}; number them as different groups"
        )
    away = great_circle(o.lat[:, None], o.lon[:, None], o.lat, o.lon) / o.length[0]
    return np.asarray(np.exp(-away - np.abs(o.depth[:, None] - o.depth) / o.height[0]))


def whitening(observations: Observations, device: torch.device | None = None) -> Callable[[Tensor], Tensor]:
    """A function that multiplies departures (observation, ...), divided by the errors, by C^(-1/2).

    Raises ObservationError for groups that are too large, whose lengths differ, or that hold the same place twice.
    """
    roots = [
        (torch.from_numpy(p).to(device), _root(observations.select(p), -0.5).to(device)) for p in _checked(observations)
    ]

    def white(departures: Tensor) -> Tensor:
        out = departures
        for rows, root in roots:
            flat = departures[rows].flatten(1) if departures.ndim > 1 else departures[rows, None]
            out = out.index_copy(0, rows, (root.to(flat) @ flat).view_as(departures[rows]))
        return out

    return white


def coloured(observations: Observations, independent: np.ndarray) -> np.ndarray:
    """Draws with the correlations of the errors, (observation,), from standard normal ones."""
    out = np.array(independent, float)
    for rows in _checked(observations):
        out[rows] = _root(observations.select(rows), 0.5).numpy() @ independent[rows]
    return out


def _checked(observations: Observations) -> list[np.ndarray]:
    parts = groups_of(observations)
    longest = max(map(len, parts), default=0)
    if longest > LARGEST_GROUP:
        raise ObservationError(
            f"wanted at most {LARGEST_GROUP} observations with correlated errors in a group, got {longest}; cut the "
            "track into pieces much longer than the correlation, or average it first (`superobbed`)"
        )
    return parts


def _root(group: Observations, power: float) -> Tensor:
    eigenvalues, V = np.linalg.eigh(correlation(group))
    if eigenvalues[0] < _LEAST:
        raise ObservationError(
            f"group {group.group[0]} holds observations of {group.variable[0]} whose errors are the same (smallest "
            f"eigenvalue of their correlation {eigenvalues[0]:.1e}): two are at one place, or a length is far "
            "too long. Thin them, or shorten it"
        )
    return torch.from_numpy((V * eigenvalues**power) @ V.T)
