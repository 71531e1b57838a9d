"""Finite-volume operators of the embedded ocean, on an Arakawa B grid with z levels.

Fields are `(..., lev, y, x)` with level 0 at the surface; x is periodic, y ends at walls. Tracers and
sea level are means over cells, velocities sit at the cells' north-east corners, volume transports on
the east and north faces. References: Arakawa and Lamb (1977) for the grid; van Leer (1977, J. Comput.
Phys. 23, 276) for the limited slopes; Killworth et al. (1991) for the free surface on a B grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .nature_grid import EARTH_RADIUS

OMEGA = 7.292e-5  # s-1
GRAVITY = 9.81  # m s-2


def east(x: Tensor) -> Tensor:
    """The value of the neighbour to the east."""
    return torch.roll(x, -1, -1)


def west(x: Tensor) -> Tensor:
    """The value of the neighbour to the west."""
    return torch.roll(x, 1, -1)


def north(x: Tensor) -> Tensor:
    """The value of the neighbour to the north."""
    return torch.roll(x, -1, -2)


def south(x: Tensor) -> Tensor:
    """The value of the neighbour to the south."""
    return torch.roll(x, 1, -2)


def to_corner(x: Tensor) -> Tensor:
    """Mean of the four cells around each corner."""
    pairs = x + east(x)
    return 0.25 * (pairs + north(pairs))


class Mesh:
    """Lengths, areas and masks of one grid as tensors of one dtype and device."""

    def __init__(self, grid: xr.Dataset, dtype: torch.dtype, device: str | torch.device) -> None:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        lat, lat_corner = np.radians(grid["lat"].values), np.radians(grid["lat_corner"].values)
        dlon = float(np.radians(grid["lon"].values[1] - grid["lon"].values[0]))
        depth = grid["lev"].values
        self.dy = EARTH_RADIUS * float(lat[1] - lat[0])
        self.dx = tensor(EARTH_RADIUS * dlon * np.cos(lat)[:, None])
        self.dx_corner = tensor(EARTH_RADIUS * dlon * np.cos(lat_corner)[:, None])
        self.coriolis = tensor(2 * OMEGA * np.sin(lat_corner)[:, None])
        self.cos_corner = tensor(np.cos(lat_corner)[:, None])
        self.area = tensor(grid["areacello"].values)
        self.dz = tensor(grid["dz"].values[:, None, None])
        self.depth = tensor(depth[:, None, None])
        self.interface = tensor(np.cumsum(grid["dz"].values)[:-1, None, None])
        self.dz_between = tensor(np.diff(depth)[:, None, None])
        wet, corner = grid["wetmask"].values.astype(bool), grid["wetmask_corner"].values.astype(bool)
        open_north = wet & np.roll(wet, -1, -2)
        open_north[:, -1] = False
        self.wet, self.corner = tensor(wet), tensor(corner)
        self.open_east, self.open_north = tensor(wet & np.roll(wet, -1, -1)), tensor(open_north)
        self.open_below = tensor(wet[1:] & wet[:-1])
        self.open_below_corner = tensor(corner[1:] & corner[:-1])
        self.bottom_corner = tensor(corner & ~np.concatenate([corner[1:], np.zeros_like(corner[:1])]))
        self.column_corner = (self.corner * self.dz).sum(0)
        self.surface = torch.as_tensor(np.flatnonzero(wet[0]), device=device)

    def transports(self, u: Tensor, v: Tensor, thickness: Tensor | float) -> tuple[Tensor, Tensor]:
        """Volume transports (m3 s-1) through the east and north faces, from corner velocities."""
        eastward = 0.5 * (u + south(u)) * (thickness * self.dy)
        northward = 0.5 * (v + west(v)) * (thickness * self.dx_corner)
        return eastward, northward

    def convergence(self, eastward: Tensor, northward: Tensor) -> Tensor:
        """Net transport into each cell."""
        return west(eastward) - eastward + south(northward) - northward

    def gradient(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient at the corners of a field at cell centres."""
        px, py = east(p) - p, north(p) - p
        return (px + north(px)) / (2 * self.dx_corner), (py + east(py)) / (2 * self.dy)

    def down_gradient(self, q: Tensor, diffusivity: float, level: int | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Flux -K ∇q through the open east and north faces, times the faces' length."""
        open_east, open_north = self.open_east[level], self.open_north[level]
        eastward = (q - east(q)) * open_east * (diffusivity * self.dy) / self.dx
        northward = (q - north(q)) * open_north * (diffusivity / self.dy) * self.dx_corner
        return eastward, northward

    def laplacian_corner(self, v: Tensor) -> Tensor:
        """∇²v at corners, with no slip: velocity is zero on land."""
        zonal = (east(v) - 2 * v + west(v)) / self.dx_corner**2
        return (zonal + (north(v) - 2 * v + south(v)) / self.dy**2) * self.corner


def upward_transport(inflow: Tensor) -> Tensor:
    """Volume transport up through the top of each cell, from the horizontal inflow into the cells."""
    return torch.flip(torch.cumsum(torch.flip(inflow, (-3,)), -3), (-3,))


def advective_inflow(mesh: Mesh, q: Tensor, eastward: Tensor, northward: Tensor, upward: Tensor) -> Tensor:
    """Net advective inflow of q into each cell (unit of q times m3 s-1), second order and monotone.

    Upwind values are extrapolated to the faces with van Leer's harmonic slopes. No q crosses the sea
    surface: there the transport changes the cell's thickness.
    """
    total = torch.zeros_like(q)
    for transport, ahead, behind, open_face in (
        (eastward, east, west, mesh.open_east),
        (northward, north, south, mesh.open_north),
    ):
        slope = (ahead(q) - q) * open_face
        half = _half_slope(slope, behind(slope))
        flux = _upwind(transport, q + half, ahead(q - half))
        total = total + behind(flux) - flux
    slope = torch.nn.functional.pad((q[..., :-1, :, :] - q[..., 1:, :, :]) * mesh.open_below, (0, 0, 0, 0, 1, 1))
    half = _half_slope(slope[..., :-1, :, :], slope[..., 1:, :, :])
    through = upward[..., 1:, :, :]
    flux = _upwind(through, (q + half)[..., 1:, :, :], (q - half)[..., :-1, :, :])
    flux = torch.nn.functional.pad(flux, (0, 0, 0, 0, 1, 1))
    return total + flux[..., 1:, :, :] - flux[..., :-1, :, :]


def _upwind(transport: Tensor, behind: Tensor, ahead: Tensor) -> Tensor:
    """Flux of the value upstream; written so that its derivative at rest is the mean of both sides, not zero."""
    return 0.5 * (transport * (behind + ahead) + transport.abs() * (behind - ahead))


def _half_slope(ahead: Tensor, behind: Tensor) -> Tensor:
    """Half of van Leer's slope: the harmonic mean of two differences of one sign, else zero."""
    both, product = ahead + behind, torch.relu(ahead * behind)
    return product * both / (both * both + 1e-12)


def advective_tendency_corner(mesh: Mesh, v: Tensor, eastward: Tensor, northward: Tensor, upward: Tensor) -> Tensor:
    """-(u·∇)v at the corners, centred, with transports averaged to the corners' own cells."""
    e, n, w = (to_corner(t).unsqueeze(-4) for t in (eastward, northward, upward))
    flux_e, flux_n = 0.5 * (v + east(v)) * e, 0.5 * (v + north(v)) * n
    pad = torch.nn.functional.pad
    inner = w[..., 1:, :, :]
    flux_up = pad(0.5 * (v[..., 1:, :, :] + v[..., :-1, :, :]) * inner, (0, 0, 0, 0, 1, 1))
    through_up = pad(inner, (0, 0, 0, 0, 1, 1))
    inflow = west(flux_e) - flux_e + south(flux_n) - flux_n + flux_up[..., 1:, :, :] - flux_up[..., :-1, :, :]
    volume = west(e) - e + south(n) - n + through_up[..., 1:, :, :] - through_up[..., :-1, :, :]
    return (inflow - v * volume) / (mesh.dx_corner * mesh.dy * mesh.dz) * mesh.corner


def implicit_diffusion(q: Tensor, diffusivity: Tensor, thickness: Tensor, between: Tensor, dt: float) -> Tensor:
    """Backward Euler of ∂q/∂t = ∂/∂z(K ∂q/∂z), by the Thomas algorithm down the levels.

    Args:
        q: (..., lev, y, x).
        diffusivity: at the interfaces (m2 s-1), (..., lev - 1, y, x); zero closes an interface.
        thickness: of the cells (m), (..., lev, y, x); the sum of thickness times q does not change.
        between: distance between cell centres (m), (lev - 1, 1, 1).
        dt: time step (s).
    """
    rate = dt * diffusivity / between
    below = rate / thickness[..., :-1, :, :]  # what level k sees of the level below it
    above = rate / thickness[..., 1:, :, :]  # what level k + 1 sees of the level above it
    levels = q.shape[-3]
    carried: list[Tensor] = []
    solved: list[Tensor] = []
    for k in range(levels):
        diagonal = 1.0 + below[..., k, :, :] if k < levels - 1 else torch.ones_like(above[..., -1, :, :])
        value = q[..., k, :, :]
        if k > 0:
            a = above[..., k - 1, :, :]
            diagonal = diagonal + a * (1.0 - carried[-1])
            value = value + a * solved[-1]
        solved.append(value / diagonal)
        if k < levels - 1:
            carried.append(below[..., k, :, :] / diagonal)
    for k in range(levels - 2, -1, -1):
        solved[k] = solved[k] + carried[k] * solved[k + 1]
    return torch.stack(solved, -3)


def dense_inverse(operator: Callable[[Tensor], Tensor], shape: tuple[int, int], wet: Tensor) -> Tensor:
    """Inverse of a linear operator on maps, over its wet cells only: (wet, wet), float64.

    The operator is applied to one unit map per wet cell, so the matrix is that of the code that uses it.
    """
    columns = []
    for block in torch.split(wet, 512):
        unit = torch.zeros(len(block), shape[0] * shape[1], dtype=torch.float64, device=wet.device)
        unit[torch.arange(len(block), device=wet.device), block] = 1.0
        columns.append(operator(unit.view(-1, *shape)).flatten(1)[:, wet])
    inverse: Tensor = torch.linalg.inv(torch.cat(columns))
    return inverse
