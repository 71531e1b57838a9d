"""Random rotations of an ensemble that keep its mean and covariance.

An orthogonal U with U 1 = 1 leaves the mean and the covariance of X U as they were: with Ω (member,
member-1) whose orthonormal columns all sum to zero,

    U = 1 1ᵀ / N + Ω Q Ωᵀ

and U is uniform among them when Q is uniform (Haar) among the orthogonal matrices of N-1 dimensions, which
the orthogonal factor of a matrix of normal numbers is, once the signs of R are made positive (Stewart
1980, doi:10.1137/0717034; Sakov and Oke 2008b, doi:10.1175/2007MWR2021.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import cftime
import torch
from torch import Tensor

from ..emulators import Draws


def projection(N: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Ω (member, member-1): orthonormal columns that sum to zero.

    Source: Nerger et al. (2012), doi:10.1175/MWR-D-11-00102.1, eq. 16.
    """
    if N < 2:
        raise ValueError(f"an ensemble has a subspace of anomalies from two members on, got {N}")
    root = N**-0.5
    omega: Tensor = torch.eye(N, N - 1, dtype=dtype, device=device) - 1 / (N * (root + 1))
    omega[-1] = -root
    return omega


def rotation(Z: Tensor) -> Tensor:
    """Random mean-preserving rotations.

    Args:
        Z: standard normal numbers (..., member, member-1).

    Returns U (..., member, member), orthogonal, with rows and columns that sum to one.

    Raises ValueError for another shape.
    """
    N = Z.shape[-2]
    if Z.shape[-1] != N - 1:
        raise ValueError(f"wanted normal numbers (..., member, member-1), got {tuple(Z.shape)}")
    omega = projection(N, dtype=Z.dtype, device=Z.device)
    Q, R = torch.linalg.qr(omega.mT @ Z)  # Ωᵀ Z is as normal as Z
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(Z.dtype)
    U: Tensor = omega @ (Q * signs.unsqueeze(-2)) @ omega.mT + 1 / N
    return U


def drawn_rotation(
    noise: Draws, members: Sequence[int], time: cftime.datetime | None, device: torch.device | str = "cpu"
) -> Tensor:
    """The rotation of these members at this time, (member, member) float64; reordering members reorders it."""
    order = sorted(range(len(members)), key=lambda i: members[i])
    numbers = [members[i] for i in order]
    Z = noise.stream("rotation").normal(numbers, time, (len(members) - 1,), dtype=torch.float64, device=device)
    back = torch.argsort(torch.tensor(order, device=device))
    return rotation(Z)[back][:, back]
