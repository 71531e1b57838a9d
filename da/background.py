"""Roots of background-error covariances, x' = L v with B = L Lᵀ: what 3D- and 4D-Var take as their control variable.

For white v of length n, L v is a random field of covariance B; J_b = |v|²/2.  A `Root` is one linear map, and
autograd knows its exact transpose.  The roots here are simple ones and those that are made of others:

    Uncorrelated    diag(σ) v                      Composed    K L v
    Hybrid          Σ_i √β_i L_i v_i               Latent      D'(z) v, of a decoder D

(Derber and Bouttier 1999, doi:10.3402/tellusa.v51i2.12316; hybrids: Hamill and Snyder 2000,
doi:10.1175/1520-0493(2000)128<2905:AHEKFV>2.0.CO;2.)  See `ensemble_roots.py`, `diffused.py` and `balanced.py` for
others, `covariances.py` for what can be asked of any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ..emulators import Layout, LayoutError, State
from .linear import Constant

__all__ = ["Composed", "Deviations", "Hybrid", "Latent", "Root", "Uncorrelated", "deviations"]

Deviations: TypeAlias = float | Mapping[str, float | Sequence[float] | Tensor] | State | Tensor
"""Standard deviations: per variable (a number, one per level, or a map that broadcasts to (level, y, x)), or whole."""


@runtime_checkable
class Root(Protocol):
    """A square root L of a covariance B = L Lᵀ.

    Attributes:
        layout: of the fields it makes.
        size: n, length of the control vector.

    Some also have `variance() -> Tensor`, the diagonal of B (channel, y, x), and `inverse(x) -> v`.
    """

    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102

    def apply(self, v: Tensor) -> Tensor:
        """L v: (..., n) to (..., channel, y, x) in physical units, 0 on land; linear, in the dtype of v.

        Reverse and forward mode of autograd give the exact transpose and tangent.
        """
        ...


def deviations(layout: Layout, std: Deviations) -> Tensor:
    """Standard deviations as one tensor, (channel, y, x) float64, 0 on land and where none is given.

    Args:
        layout: of the fields.
        std: per variable in its unit, the same in every time slot; or a State of one member; or (channel, y, x); or one
            number for all variables, such as the 1 of a localisation.

    Raises ValueError for unknown variables, wrong shapes, negative or infinite values, or nothing above 0; LayoutError
    for a State of another layout.
    """
    out = torch.zeros(layout.shape, dtype=torch.float64)
    if isinstance(std, State):
        layout.require_same(std.layout, "standard deviations")
        std = std.data[0]
    if isinstance(std, Tensor):
        if tuple(std.shape) != layout.shape:
            raise ValueError(f"standard deviations: wanted (channel, y, x) = {layout.shape}, got {tuple(std.shape)}")
        out = std.detach().cpu().double()
    else:
        named = std if isinstance(std, Mapping) else dict.fromkeys(layout.names, std)
        unknown = sorted(set(named) - set(layout.names))
        if unknown:
            raise ValueError(f"no variable(s) {', '.join(unknown)} to deviate; the state has {', '.join(layout.names)}")
        for name, value in named.items():
            for slot in range(len(layout.slots)):
                out[layout.channels(name, slot)] = _map(layout, name, value)
    out = torch.where(layout.mask, out, 0.0)
    if not bool(((out >= 0) & out.isfinite()).all()) or not bool((out > 0).any()):
        raise ValueError(
            f"wanted standard deviations that are finite, >= 0 and not all 0 on water, got {float(out.min())} to "
            f"{float(out.max())}"
        )
    return out


def _map(layout: Layout, name: str, value: float | Sequence[float] | Tensor) -> Tensor:
    """Of one variable, (level, y, x)."""
    one = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    one = one[:, None, None] if one.ndim == 1 else one
    wanted = (layout.field(name).channels, *layout.shape[1:])
    try:
        return one.expand(wanted)
    except RuntimeError as error:
        raise ValueError(f"{name}: wanted one number, one per level or {wanted}, got {tuple(one.shape)}") from error


@dataclass(frozen=True, eq=False)
class Uncorrelated:
    """L = diag(σ): errors that have nothing to do with each other.

    Attributes:
        layout: of the fields.
        std: σ; see `deviations`. Points where it is 0 have no control.
    """

    layout: Layout = field(repr=False)
    std: Deviations

    @cached_property
    def _sigma(self) -> Constant:
        whole = deviations(self.layout, self.std).flatten()
        return Constant(whole[whole > 0])

    @cached_property
    def _where(self) -> Constant:
        return Constant((deviations(self.layout, self.std).flatten() > 0).nonzero()[:, 0])

    @property
    def size(self) -> int:
        """Number of points that have a deviation."""
        return len(self._where.value)

    def apply(self, v: Tensor) -> Tensor:
        """σ v at those points, (..., channel, y, x)."""
        out = v.new_zeros(*v.shape[:-1], math.prod(self.layout.shape))
        placed = out.index_copy(-1, self._where.like(v), v * self._sigma.like(v))
        return placed.reshape(*v.shape[:-1], *self.layout.shape)

    def inverse(self, x: Tensor) -> Tensor:
        """The control vector of a field, (..., channel, y, x) to (..., n)."""
        return x.flatten(-3)[..., self._where.like(x)] / self._sigma.like(x)

    def variance(self) -> Tensor:
        """σ², (channel, y, x)."""
        return deviations(self.layout, self.std).square()


@dataclass(frozen=True, eq=False)
class Hybrid:
    """L v = Σ √β_i L_i v_i, so that B = Σ β_i B_i; the control vector is that of each part in turn.

    Attributes:
        parts: weights β_i >= 0 and roots of one layout.

    Raises ValueError for no parts or a negative weight, LayoutError for different layouts.
    """

    parts: Sequence[tuple[float, Root]]

    def __post_init__(self) -> None:
        if not self.parts or any(beta < 0 for beta, _ in self.parts):
            raise ValueError(f"Hybrid: wanted one or more roots with weights >= 0, got {[b for b, _ in self.parts]}")
        for _, root in self.parts[1:]:
            self.layout.require_same(root.layout, "Hybrid: root")

    @property
    def layout(self) -> Layout:
        """Of all parts."""
        return self.parts[0][1].layout

    @property
    def size(self) -> int:
        """Sum of the parts'."""
        return sum(root.size for _, root in self.parts)

    def apply(self, v: Tensor) -> Tensor:
        """The weighted sum, (..., channel, y, x)."""
        pieces = torch.split(v, [root.size for _, root in self.parts], -1)
        fields = [math.sqrt(beta) * root.apply(p) for (beta, root), p in zip(self.parts, pieces, strict=True)]
        return sum(fields[1:], fields[0])


@dataclass(frozen=True, eq=False)
class Composed:
    """L v = K(root v), for any linear map K of fields, such as a filter, a balance or a rotation.

    Attributes:
        operator: K, (..., channel, y, x) of the root to (..., channel, y, x) of `to`; linear, differentiable.
        root: what is mapped.
        to: layout of the result, if it is not that of the root.
    """

    operator: Callable[[Tensor], Tensor]
    root: Root
    to: Layout | None = None

    @property
    def layout(self) -> Layout:
        """Of what K makes."""
        return self.root.layout if self.to is None else self.to

    @property
    def size(self) -> int:
        """Of the root."""
        return self.root.size

    def apply(self, v: Tensor) -> Tensor:
        """K L v, (..., channel, y, x), 0 on land."""
        made = self.operator(self.root.apply(v))
        if tuple(made.shape) != (*v.shape[:-1], *self.layout.shape):
            raise LayoutError(
                f"Composed: wanted the operator to make (channel, y, x) = {self.layout.shape} of "
                f"{self.root.layout.shape}, got {tuple(made.shape[-3:])}"
            )
        return torch.where(self.layout.mask.to(made.device), made, 0.0)


@dataclass(frozen=True, eq=False)
class Latent:
    """L v = D'(z) v, the derivative of a decoder D at a latent state z: B is the decoder's, to first order.

    The step D(z + v) - D(z) itself is not linear, and neither would the cost be a quadratic in it; relinearise at a new
    `at` between outer loops instead.

    Attributes:
        layout: of the decoded fields.
        decoder: D, (batch, n) to (batch, channel, y, x) in physical units; differentiable forward and backward.
        at: z, (n,). The latent variables count as independent and of variance 1.
    """

    layout: Layout = field(repr=False)
    decoder: Callable[[Tensor], Tensor] = field(repr=False)
    at: Tensor = field(repr=False)

    @property
    def size(self) -> int:
        """Number of latent variables."""
        return len(self.at)

    def apply(self, v: Tensor) -> Tensor:
        """D'(z) v, (..., channel, y, x), 0 on land."""
        rows = v.reshape(-1, self.size)
        at = self.at.to(v).expand_as(rows).clone()
        tangent = torch.func.jvp(self.decoder, (at,), (rows,))[1]
        return torch.where(self.layout.mask.to(v.device), tangent, 0.0).reshape(*v.shape[:-1], *self.layout.shape)
