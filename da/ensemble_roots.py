"""Roots of covariances that an ensemble shows: its perturbations, their leading EOFs, or localised in space.

With X the N members minus their mean, channels and cells in a column, and s a scale,

    EnsembleRoot          √s X v / √(N-1)                       B = s X Xᵀ / (N-1) = s P
    EOFRoot               √s X V_k v / √(N-1)                   the k leading right singular vectors V_k of W^½ X
    LocalisedEnsemble     √s Σ_j X_j ∘ (C^½ v_j) / √(N-1)       B = s C ∘ P, a Schur product

(Lorenc 2003, doi:10.1256/qj.02.132; Buehner 2005, doi:10.1256/qj.04.15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..emulators import Field, Layout, LayoutError, State
from ..ensembles import Norm
from .background import Root
from .linear import Constant

__all__ = ["EOFRoot", "EnsembleRoot", "LocalisedEnsemble", "common_layout"]


def _anomalies(states: State, scale: float, what: str) -> Tensor:
    """√s X / √(N-1), (member, channel, y, x)."""
    count = len(states.members)
    if count < 2 or not scale > 0:
        raise ValueError(f"{what}: wanted at least two members and scale > 0, got {count} and {scale}")
    data = states.data.detach()
    X: Tensor = torch.where(states.layout.mask.to(data.device), data - data.mean(0), 0.0)
    return X * math.sqrt(scale / (count - 1))


@dataclass(frozen=True, eq=False)
class EnsembleRoot:
    """L = √s X / √(N-1): one control per member.

    Attributes:
        states: the ensemble, at least two members; only its deviations from the mean count.
        scale: s, multiplies the covariance.
    """

    states: State
    scale: float = 1.0

    def __post_init__(self) -> None:
        _ = self._X

    @cached_property
    def _X(self) -> Constant:  # noqa: N802
        return Constant(_anomalies(self.states, self.scale, type(self).__name__).flatten(1))

    @property
    def layout(self) -> Layout:
        """Of the states."""
        return self.states.layout

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self._X.value)

    def apply(self, v: Tensor) -> Tensor:
        """The combination of columns with coefficients v, (..., channel, y, x)."""
        return (v @ self._X.like(v)).reshape(*v.shape[:-1], *self.layout.shape)

    def variance(self) -> Tensor:
        """Diagonal of B, (channel, y, x) float64."""
        return self._X.value.cpu().double().square().sum(0).reshape(self.layout.shape)


@dataclass(frozen=True, eq=False)
class EOFRoot(EnsembleRoot):
    """The leading empirical orthogonal functions of an ensemble, each times its standard deviation.

    With all N - 1 modes the covariance is that of `EnsembleRoot`. Any number of states may be given, of a long run,
    say: the control has the length of `modes`.

    Attributes:
        modes: k, at most N - 1.
        norm: in which the functions are orthogonal and variance is counted; by default the mean over the ocean's
            volume of squares in units of each variable's standard deviation.
    """

    modes: int = 10
    norm: Norm | None = None

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Shares of variance (mode,), and right singular vectors (mode, member), both float64, largest first."""
        X = _anomalies(self.states, self.scale, "EOFRoot").double()
        if not 1 <= self.modes < len(X):
            raise ValueError(f"EOFRoot: wanted 1 to {len(X) - 1} modes of {len(X)} states, got {self.modes}")
        W = (self._default_norm(X) if self.norm is None else self.norm).weights(self.layout).to(X.device)
        values, vectors = torch.linalg.eigh((X * W).flatten(1) @ X.flatten(1).mT)
        return values.flip(0).clamp(min=0) / values.sum(), vectors.flip(1).mT

    def _default_norm(self, X: Tensor) -> Norm:
        scale, layout = {}, self.layout
        for f in layout.fields:
            c = layout.channels(f.name)
            wet = layout.mask[c].to(X.device)
            std = float(X[:, c][:, wet].square().sum(0).mean().sqrt()) if wet.any() else 0.0
            if std > 0:
                scale[f.name] = std
        return Norm(scale)

    @cached_property
    def _X(self) -> Constant:  # noqa: N802
        X = _anomalies(self.states, self.scale, "EOFRoot").flatten(1)
        return Constant((self._spectrum[1][: self.modes].to(X.device) @ X.double()).to(X))

    @property
    def explained(self) -> float:
        """Share of the ensemble's variance in the norm that the modes hold."""
        return float(self._spectrum[0][: self.modes].sum())


def common_layout(layout: Layout) -> Layout:
    """The layout to localise with: one field with the levels of the deepest, at cell centres, one time slot."""
    deepest = max(layout.fields, key=lambda f: (f.levels, f.location == "center"))
    return replace(layout, fields=(Field(deepest.name, deepest.levels),), slots=(0,))


@dataclass(frozen=True, eq=False)
class LocalisedEnsemble:
    """L v = √s Σ_j X_j ∘ (C^½ v_j) / √(N-1): an ensemble whose correlations fade with distance along the water.

    Attributes:
        states: the ensemble, at least two members.
        localisation: C^½, of unit variance, such as `DiffusedRoot(common_layout(layout), 1.0, length)`. Its layout is
            that of the states, or has one field, whose level k multiplies level k of every variable and time slot, or
            if it has one level, everything. Fields on corners take the weight of the cell south-west of them.
        scale: s, multiplies the covariance.

    Raises ValueError for too few members, LayoutError for a localisation of other layout.
    """

    states: State
    localisation: Root
    scale: float = 1.0

    def __post_init__(self) -> None:
        here, other = self.states.layout, self.localisation.layout
        deep = max(f.channels for f in here.fields)
        single = len(other.fields) == 1 and len(other.slots) == 1 and other.fields[0].channels in (1, deep)
        if (other.fields, other.slots) != (here.fields, here.slots) and not single:
            raise LayoutError(
                f"LocalisedEnsemble: wanted a localisation of the fields {here.names} in slots {here.slots}, or of one "
                f"field in one slot with 1 or {deep} levels, got {other.names} with {other.shape[0]} channels"
            )
        if other.shape[1:] != here.shape[1:]:
            raise LayoutError(f"LocalisedEnsemble: wanted a grid of {here.shape[1:]}, got {other.shape[1:]}")
        _ = self._X

    @cached_property
    def _X(self) -> Constant:  # noqa: N802
        return Constant(_anomalies(self.states, self.scale, "LocalisedEnsemble"))

    @cached_property
    def _channel(self) -> Constant:
        """Which channel of the localisation belongs to each of the states', (channel,)."""
        here, other = self.layout, self.localisation.layout
        if (other.fields, other.slots) == (here.fields, here.slots):
            return Constant(torch.arange(here.shape[0]))
        levels = other.fields[0].channels
        one = np.concatenate([np.minimum(np.arange(f.channels), levels - 1) for f in here.fields])
        return Constant(torch.from_numpy(np.tile(one, len(here.slots))))

    @property
    def layout(self) -> Layout:
        """Of the states."""
        return self.states.layout

    @property
    def size(self) -> int:
        """Members times the size of the localisation."""
        return len(self.states.members) * self.localisation.size

    def apply(self, v: Tensor) -> Tensor:
        """The sum over members, (..., channel, y, x)."""
        X, channel = self._X.like(v), self._channel.like(v)
        parts = torch.split(v, self.localisation.size, -1)
        alike = self.localisation.layout.shape[0] == 1
        out: Tensor | None = None
        for x, part in zip(X, parts, strict=True):  # member by member: the weights of all would not fit
            weights = self.localisation.apply(part)
            one = (weights if alike else weights.index_select(-3, channel)) * x
            out = one if out is None else out + one
        assert out is not None
        return out

    def variance(self) -> Tensor:
        """Diagonal of B, (channel, y, x) float64: that of the ensemble, where the localisation's is 1."""
        wet = self.localisation.layout.mask[self._channel.value]
        squares: Tensor = self._X.value.cpu().double().square().sum(0)
        return torch.where(wet, squares, 0.0)
