"""The root of a modelled covariance: standard deviations, Matérn correlations along the water, and vertical ones.

    L = Σ (G ⊗ V),    V Vᵀ = C_z between levels,    G_k G_kᵀ = C_k within level k, by `implicit_diffusion.py`,

with Σ the standard deviations.  Level k has the coasts of its own depth, and rows of G_k and of V have norm 1, so the
variance is Σ² exactly in every wet cell, and between two levels the correlation is C_z times G_k G_lᵀ.  V is
lower triangular, surface first: level k then needs white noise of levels above it only, which are wet where k is, and
the control vector holds one number for each wet cell.  Variables are independent; give them their relations by
`Balanced`, or by the ensemble part of a `Hybrid`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..emulators import Field, Layout
from .background import Deviations, deviations
from .implicit_diffusion import ImplicitDiffusion, Normalisation, Solver, implicit_diffusion
from .linear import Constant
from .localise import gaspari_cohn

__all__ = ["DiffusedRoot", "Length", "Vertical", "vertical_root"]

Array = NDArray[np.float64]
Length: TypeAlias = float | Sequence[float] | Array
"""D in m: one number, one per level, (y, x), or (level, y, x)."""
Vertical: TypeAlias = float | Array
"""Vertical length in m, 0 for independent levels, or the correlation matrix (level, level)."""


def vertical_root(layout: Layout, levels: int, vertical: Vertical) -> Array:
    """V with V Vᵀ the correlation between levels, (level, level), lower triangular, rows of norm 1.

    Args:
        layout: its `lev` are the depths.
        levels: how many; one, of surface fields, needs no correlation.
        vertical: the length D of the function of Gaspari and Cohn that begins as 1 - r²/2D², as a Gaussian does, and
            is 0 beyond 3.65 D; or the correlation itself, which may be singular.

    Raises ValueError for a negative length, or a matrix of other shape, without ones on its diagonal, or that has
    negative eigenvalues.
    """
    given = np.asarray(vertical, float)
    if levels == 1:
        return np.ones((1, 1))
    if given.ndim == 0:
        if not given >= 0:
            raise ValueError(f"wanted a vertical length >= 0 m, got {vertical}")
        if given == 0 or "lev" not in layout.grid.coords:
            return np.eye(levels)
        lev = torch.from_numpy(layout.grid["lev"].values[:levels].astype(float))
        given = gaspari_cohn((lev[:, None] - lev).abs(), half_width=math.sqrt(10 / 3) * float(given)).numpy()
    if given.shape != (levels, levels) or not np.allclose(np.diag(given), 1) or not np.allclose(given, given.T):
        raise ValueError(f"wanted a symmetric vertical correlation of ones and shape {(levels, levels)}, got\n{given}")
    values, vectors = np.linalg.eigh(given)
    if values.min() < -1e-8:
        raise ValueError(f"wanted a vertical correlation without negative eigenvalues, got {values.min():.3g}")
    upper = np.linalg.qr(np.sqrt(values.clip(min=0))[:, None] * vectors.T).R  # C = (√Λ Qᵀ)ᵀ (√Λ Qᵀ) = Rᵀ R
    lower = np.tril((upper * np.where(np.diag(upper) < 0, -1.0, 1.0)[:, None]).T)
    return np.asarray(lower / np.linalg.norm(lower, axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class DiffusedRoot:
    """Errors of given size, correlated along the water and in the vertical; variables are independent.

    Operators are prepared when first needed and kept, one for each distinct mask and length, which takes seconds for
    thousands of wet cells and minutes for tens of thousands (see `normalisation`).

    Attributes:
        layout: of the fields.
        std: standard deviations, see `deviations`; variables without one have no control.
        length: D of the horizontal correlation, which begins as 1 - r²/2D²; one for all, or per variable.
        vertical: of the vertical correlation, see `vertical_root`; one for all, or per variable.
        solves: m; the more, the closer to a Gaussian. Two give c(D) = 0.65 and c(2D) = 0.24.
        between_slots: correlation of neighbouring time slots; 1 gives all of them the same error.
        normalisation: "exact" variances, "local" to some tenths of a percent, or by a number of random fields.
        solver: "factor", "chebyshev", or "auto".
        device: on which variances are computed.

    Raises ValueError, when first used, for lengths that are not positive or missing, and as `vertical_root`.
    """

    layout: Layout = field(repr=False)
    std: Deviations
    length: Length | Mapping[str, Length]
    vertical: Vertical | Mapping[str, Vertical] = 0.0
    solves: int = 2
    between_slots: float = 1.0
    normalisation: Normalisation = "exact"
    solver: Solver = "auto"
    device: str = "cpu"
    _kept: dict[str, ImplicitDiffusion] = field(default_factory=dict, repr=False)

    @cached_property
    def _sigma(self) -> Constant:
        return Constant(deviations(self.layout, self.std))

    @cached_property
    def _plans(self) -> list[_Plan]:
        plans, start = [], 0
        for f in self.layout.fields:
            channels = [self.layout.channels(f.name, s) for s in range(len(self.layout.slots))]
            if any(bool((self._sigma.value[c] > 0).any()) for c in channels):
                plan = self._plan(f, start)
                start += plan.size
                plans.append(plan)
        return plans

    def _plan(self, f: Field, start: int) -> _Plan:
        slots = self.between_slots ** np.abs(np.subtract.outer(*[np.arange(len(self.layout.slots))] * 2))
        between = vertical_root(self.layout, len(slots), slots)
        vertical = self.vertical.get(f.name, 0.0) if isinstance(self.vertical, Mapping) else self.vertical
        wet = self.layout.field_mask(f)
        white = np.flip(np.logical_or.accumulate(np.flip(wet, 0), 0), 0).reshape(f.channels, -1)
        index = np.full((len(slots), *white.shape), -1)
        held = np.broadcast_to(white, index.shape)
        index[held] = start + np.arange(held.sum())
        return _Plan(
            f.name, int(held.sum()), Constant(torch.from_numpy(index)), Constant(torch.from_numpy(between)),
            Constant(torch.from_numpy(vertical_root(self.layout, f.channels, vertical))), self._groups(f, wet),
        )  # fmt: skip

    def _groups(self, f: Field, wet: NDArray[np.bool_]) -> list[tuple[list[int], Constant, ImplicitDiffusion]]:
        """Levels that share an operator, its cells in the flattened map, and the operator."""
        lat, lon = (np.ascontiguousarray(a, dtype=np.float64) for a in self.layout.position(f))
        period = float(self.layout.grid.attrs.get("zonal_period", 360.0))
        lengths = self._lengths(f)
        found: dict[str, list[int]] = {}
        for k in range(f.channels):
            if not wet[k].any():
                continue
            about = (lat, lon, wet[k], lengths[k], np.array([period, self.solves]), np.array(wet.shape))
            digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in about))
            key = f"{digest.hexdigest()} {self.normalisation} {self.solver}"
            if key not in self._kept:
                self._kept[key] = implicit_diffusion(
                    lat, lon, wet[k].copy(), lengths[k], solves=self.solves, period=period,
                    normalisation=self.normalisation, solver=self.solver, device=self.device,
                )  # fmt: skip
            found.setdefault(key, []).append(k)
        cells = {key: Constant(torch.from_numpy(np.flatnonzero(wet[levels[0]]))) for key, levels in found.items()}
        return [(levels, cells[key], self._kept[key]) for key, levels in found.items()]

    def _lengths(self, f: Field) -> Array:
        """D of a field, (level, y, x)."""
        given = self.length[f.name] if isinstance(self.length, Mapping) and f.name in self.length else self.length
        if isinstance(given, Mapping):
            raise ValueError(f"{f.name} has a standard deviation but no length; there are lengths of {list(given)}")
        one = np.asarray(given, float)
        one = one[:, None, None] if one.ndim == 1 else one
        return np.broadcast_to(one, (f.channels, *self.layout.shape[1:]))

    @cached_property
    def size(self) -> int:
        """Number of wet cells of all levels, variables and time slots that have a deviation."""
        return sum(p.size for p in self._plans)

    def apply(self, v: Tensor) -> Tensor:
        """Correlated fields of standard deviation σ, (..., channel, y, x)."""
        if v.shape[-1] != self.size:
            raise ValueError(f"DiffusedRoot: wanted a control vector of {self.size}, got {v.shape[-1]}")
        fields = {p.name: p.apply(v) for p in self._plans}
        ny, nx = self.layout.shape[1:]
        blocks = []
        for slot in range(len(self.layout.slots)):
            for f in self.layout.fields:
                empty = v.new_zeros(*v.shape[:-1], f.channels, ny * nx)
                blocks.append(fields[f.name][..., slot, :, :] if f.name in fields else empty)
        return torch.cat(blocks, -2).reshape(*v.shape[:-1], *self.layout.shape) * self._sigma.like(v)

    def inverse(self, x: Tensor) -> Tensor:
        """The control vector of a field, (..., channel, y, x) to (..., n).

        Raises ValueError where there is none or more than one: deviations of 0 on water, singular correlations, time
        slots of the same error, or cells that are wet below dry ones.
        """
        pieces = []
        for p in self._plans:
            channels = [self.layout.channels(p.name, s) for s in range(len(self.layout.slots))]
            sigma, wet, fields = (
                torch.stack([a[..., c, :, :] for c in channels], -4).flatten(-2)
                for a in (self._sigma.like(x), self.layout.mask.to(x.device), x)
            )
            if bool((sigma[wet] == 0).any()) or p.size != int(wet.sum()) or p.singular:
                raise ValueError(f"the covariance of {p.name} has no inverse root")
            pieces.append(p.inverse(torch.where(wet, fields / torch.where(wet, sigma, 1.0), 0.0)))
        return torch.cat(pieces, -1)

    def variance(self) -> Tensor:
        """σ², (channel, y, x) float64: exact with exact normalisation."""
        return self._sigma.value.square()


@dataclass(frozen=True, eq=False)
class _Plan:
    """How one field is made of the control vector.

    Attributes:
        name: of the field.
        size: of its part of the control.
        index: positions in the control vector, (slot, level, cell), -1 for none.
        between: root of the correlation between time slots, (slot, slot).
        vertical: root of that between levels, (level, level).
        groups: levels, cells and operator of each distinct mask.
    """

    name: str
    size: int
    index: Constant
    between: Constant
    vertical: Constant
    groups: list[tuple[list[int], Constant, ImplicitDiffusion]]

    @property
    def singular(self) -> bool:
        """Whether a root has no inverse."""
        return any(float(torch.diagonal(r.value).abs().min()) < 1e-6 for r in (self.between, self.vertical))

    def apply(self, v: Tensor) -> Tensor:
        """Fields of unit variance, (..., slot, level, cell)."""
        index = self.index.like(v)
        white = torch.where(index >= 0, v[..., index.clamp(min=0)], 0.0)
        mixed = torch.einsum("st,kl,...tlc->...skc", self.between.like(v), self.vertical.like(v), white)
        out = torch.zeros_like(mixed)
        for levels, cells, operator in self.groups:
            where = cells.like(v)
            chosen = mixed[..., levels, :].index_select(-1, where)
            spread = v.new_zeros(*chosen.shape[:-1], index.shape[-1]).index_copy(-1, where, operator.root(chosen))
            out = out.index_copy(-2, torch.tensor(levels, device=v.device), spread)
        return out

    def inverse(self, fields: Tensor) -> Tensor:
        """The part of the control vector of fields of unit variance, (..., slot, level, cell) to (..., size)."""
        index, mixed = self.index.like(fields), torch.zeros_like(fields)
        for levels, cells, operator in self.groups:
            where = cells.like(fields)
            back = operator.inverse(fields[..., levels, :].index_select(-1, where))
            spread = fields.new_zeros(*back.shape[:-1], index.shape[-1]).index_copy(-1, where, back)
            mixed = mixed.index_copy(-2, torch.tensor(levels, device=fields.device), spread)
        up = torch.linalg.inv(self.vertical.like(fields))
        across = torch.linalg.inv(self.between.like(fields))
        white = torch.einsum("st,kl,...tlc->...skc", across, up, mixed)
        return white.flatten(-3)[..., (index >= 0).flatten()]
