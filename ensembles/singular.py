"""Singular vectors: the perturbations of a state that an emulator makes grow most over a window.

With M the derivative of the window's steps at a state, and norms |δ|² = Σ w δ² at both ends,

    max |M δ|_final / |δ|_initial        is the largest singular value of  A = W_f^½ M W_i^-½

(Buizza and Palmer 1995, J. Atmos. Sci. 52).  M and its transpose act by
`jvp` and `vjp`; A is never formed.  Its leading singular vectors come from a random block and the Krylov
space of A^T A that it generates, orthogonalised in full (Golub and Underwood 1977; Musco and Musco 2015,
arXiv:1504.05477), until the residuals |A^T A v - σ² v| / σ² are small: σ is then right to their square.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cftime
import torch
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, Layout, Noise, State
from .dates import shifted
from .norms import Norm

__all__ = ["SingularVectors", "leading", "singular_vectors"]

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SingularVectors:
    """The leading singular vectors at a state, largest growth first; a `Perturbation`.

    Attributes:
        values: growth from the initial to the final norm, (vector,), float64.
        initial: (vector, channel, y, x), physical units, each of norm 1.
        final: what becomes of them, M times initial, (vector, channel, y, x); of final norm `values`.
        residuals: |A^T A v - σ² v| / σ², (vector,).
        products: how many times M and its transpose were applied, together.
        norm: at the beginning.
        layout: of the vectors.
    """

    values: Tensor
    initial: Tensor = field(repr=False)
    final: Tensor = field(repr=False)
    residuals: Tensor
    products: int
    norm: Norm
    layout: Layout = field(repr=False)

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """Random combinations in units of the norm's scales, (member, channel, y, x).

        Coefficients are independent normals; the expected norm is that of unit noise in the norm's variables.
        """
        self.layout.require_same(layout, "SingularVectors: layout")
        count = len(self.values)
        coefficients = noise.stream("singular").normal(members, time, (count,), dtype=torch.float64)
        units = self.norm.in_units(layout, self.initial.double()) * (len(self.norm.scale) / count) ** 0.5
        return torch.stack([torch.einsum("v,vcyx->cyx", row.clone(), units) for row in coefficients]).float()


def singular_vectors(
    emulator: Emulator,
    state: State,
    forcing: Forcing | None = None,
    *,
    initial: Norm,
    final: Norm | None = None,
    steps: int = 1,
    count: int = 4,
    noise: Draws | None = None,
    block: int | None = None,
    iterations: int = 20,
    tolerance: float = 1e-3,
) -> SingularVectors:
    """The leading singular vectors of `steps` steps of an emulator.

    Args:
        emulator: differentiable forward and backward.
        state: around which; one member. Float64 helps where singular values lie close.
        forcing: as for `rollout`.
        initial: norm at the beginning. Variables it does not name, and cells outside its box, are not perturbed.
        final: norm at the end; default the initial one. Its box is where growth counts.
        steps: length of the window; the graph of all of them is held in memory.
        count: how many vectors.
        noise: of stochastic emulators, and of the random block.
        block: vectors applied in each iteration, one after another; default `count + 2`.
        iterations: at most so many, of 2 `block` products each.
        tolerance: of the residuals; their square is that of the values.

    Raises ValueError for a state of several members, or more vectors than there are degrees of freedom. Warns if
    `iterations` did not suffice.
    """
    if len(state.members) != 1 or steps < 1 or count < 1:
        raise ValueError(
            f"singular vectors belong to one member, steps >= 1 and count >= 1; got members {state.members}, {steps} "
            f"and {count}; choose one by `state.sel`"
        )
    noise, layout = Noise(0) if noise is None else noise, state.layout
    forward, backward = _derivatives(emulator, state, forcing, steps, noise)
    root_i, root_f = (n.weights(layout).sqrt().to(state.data.device) for n in (initial, final or initial))
    support = root_i > 0
    inverse = torch.where(support, 1 / root_i.clamp(min=1e-300), 0.0)
    freedom = int(support.sum())
    block = min(count + 2 if block is None else block, freedom)
    if count > freedom or block < 1:
        raise ValueError(f"wanted {count} singular vectors by blocks of {block}, of {freedom} degrees of freedom")
    random = noise.stream("singular").normal(range(block), None, layout.shape, dtype=torch.float64)
    values, vectors, residuals, products = leading(
        lambda v: (root_f * forward(inverse * v.view(layout.shape))).flatten(),
        lambda u: (inverse * backward(root_f * u.view(layout.shape))).flatten(),
        (random.to(root_i) * support).flatten(1),
        count=count,
        iterations=iterations,
        tolerance=tolerance,
    )
    if bool((residuals > tolerance).any()):
        warnings.warn(
            f"singular vectors: after {products} products residuals are {residuals.tolist()}, wanted {tolerance}; "
            "allow more `iterations` or a larger `block`",
            stacklevel=2,
        )
    begin = torch.stack([inverse * v.view(layout.shape) for v in vectors])
    end = torch.stack([forward(b) for b in begin])
    return SingularVectors(
        values, begin.to(state.data), end.to(state.data), residuals, products + count, initial, layout
    )


def leading(
    forward: Map, backward: Map, start: Tensor, *, count: int, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Leading singular values and right vectors of a matrix A known by its products.

    Args:
        forward: v (n,) to A v (m,).
        backward: u (m,) to A^T u (n,).
        start: random block, (vector, n), float64.
        count: how many are wanted; no more than n.
        iterations: at most.
        tolerance: of the residuals of all `count`.

    Returns:
        Values (count,), vectors (count, n), residuals (count,), and the number of products with A and A^T.
    """
    new, size = torch.linalg.qr(start.mT).Q.mT, start.shape[1]
    Q, Y, Z = (start.new_empty(0, size), [], start.new_empty(0, size))
    for _ in range(iterations):
        Q = torch.cat([Q, new])
        Y += [forward(v) for v in new]
        Z = torch.cat([Z, torch.stack([backward(u) for u in Y[len(Z) :]])])
        stacked = torch.stack(Y)
        squares, W = torch.linalg.eigh(stacked @ stacked.mT)
        keep = min(count, len(squares))
        squares, W = squares.flip(0)[:keep].clamp(min=1e-300), W.flip(1)[:, :keep]
        vectors = W.mT @ Q
        residuals = torch.linalg.norm(W.mT @ Z - squares[:, None] * vectors, dim=1) / squares
        new = _orthogonal(Z[-len(new) :], Q)
        if (keep == count and bool((residuals <= tolerance).all())) or not len(new):
            break
    return squares.sqrt(), vectors, residuals, 2 * len(Q)


def _orthogonal(block: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of the part of a block (vector, n) that is orthogonal to a basis; empty if there is none."""
    size = torch.linalg.norm(block, dim=1, keepdim=True)
    block = (block / size.clamp(min=1e-300))[size[:, 0] > 0]
    for _ in range(2):  # twice is enough (Giraud et al. 2005)
        block = block - (block @ basis.mT) @ basis
    _, size, rows = torch.linalg.svd(block, full_matrices=False)
    rows = rows[size[: len(rows)] > 1e-12][: max(basis.shape[1] - len(basis), 0)]
    new: Tensor = torch.linalg.qr((rows - (rows @ basis.mT) @ basis).mT).Q.mT
    return new


def _derivatives(
    emulator: Emulator, state: State, forcing: Forcing | None, steps: int, noise: Draws
) -> tuple[Map, Map]:
    """Products with the derivative of `steps` steps and with its transpose, (channel, y, x) to the same, float64."""
    driven: list[State | None] = []
    times = [state.time]
    for _ in range(steps):
        driven.append(None if forcing is None else forcing.at(times[-1], state.members))
        times.append(shifted(forcing, times[-1], emulator.dt))

    def window(data: Tensor) -> Tensor:
        for time, drive in zip(times[:-1], driven, strict=True):
            data = emulator.step(state.replace(data=data, time=time), drive, noise).data
        return data

    point = state.data.detach()
    transpose = torch.func.vjp(window, point)[1]

    def forward(v: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(window, (point,), (v.to(point)[None],))[1]
        return out[0].detach().double()

    def backward(u: Tensor) -> Tensor:
        out: Tensor = transpose(u.to(point)[None])[0]
        return out[0].detach().double()

    return forward, backward
