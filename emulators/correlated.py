"""The stochastic baseline: an emulator and, after each step, noise that is correlated in space and between fields.

Finn et al. (2024, doi:10.1029/2024MS004395) add to their deterministic forecast white noise that is filtered to the
spectrum of its errors, and mixed to their covariance C = L L^T:

    x <- clamp(x + mean + L F^-1(a F(xi)))

with a per field scaled so that filtered noise has variance 1 everywhere.  (The original divides by the standard
deviation over the ensemble instead, which makes a member depend on the others.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .emulator import Bounds, Wrapped
from .noise import Draws
from .state import LayoutError, State

__all__ = ["CorrelatedNoise", "amplitude_of", "correlated", "factor_of", "periodic_part"]

_BOUNDS = Bounds({"sithick": (0.0, None), "siconc": (0.0, 1.0), "sidamage": (0.0, 1.0)})
_CORRELATIONS = {(0, 1): 0.57, (0, 2): -0.05, (3, 4): -0.06}  # of sithick, siconc, sidamage, siu, siv
_INFLATION = (1.05, 1.35, 1.1, 1.02, 1.02)


def periodic_part(maps: Tensor) -> Tensor:
    """Maps (..., y, x) less the smooth ones that take up their jumps from one edge to the opposite.

    Source: Moisan (2011), J. Math. Imaging Vis. 39, algorithm 1.
    """
    height, width = maps.shape[-2:]
    jump = torch.zeros_like(maps)
    across, along = maps[..., -1, :] - maps[..., 0, :], maps[..., :, -1] - maps[..., :, 0]
    jump[..., 0, :] += across
    jump[..., -1, :] -= across
    jump[..., :, 0] += along
    jump[..., :, -1] -= along
    q, r = (2 * torch.cos(2 * math.pi * torch.fft.fftfreq(n, dtype=maps.dtype)) for n in (height, width))
    laplacian = (q[:, None] + r - 4).to(maps.device)
    laplacian[0, 0] = 1.0  # the mean belongs to the periodic part
    smooth = torch.fft.fft2(jump) / laplacian
    smooth[..., 0, 0] = 0.0
    periodic: Tensor = maps - torch.fft.ifft2(smooth).real
    return periodic


def amplitude_of(residuals: Tensor) -> Tensor:
    """The amplitude of each wave in the errors of a forecast, for `correlated`.

    Args:
        residuals: truth minus forecast (sample, channel, y, x), any units; the mean residual alone, as in the
            original, is one sample.

    Returns:
        Root-mean-square amplitude (channel, y, x // 2 + 1) of the periodic part, without unit: 0 for the mean, and such
        that filtered white noise has variance 1.

    Raises:
        ValueError: if a channel's residuals are constant.
    """
    power: Tensor = torch.fft.fft2(periodic_part(residuals.double())).abs().square().mean(0)
    power[..., 0, 0] = 0.0
    total = power.mean((-2, -1), keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError("residuals are constant in a channel, and have no spectrum; leave it out or give more samples")
    width = residuals.shape[-1]
    return (power / total).sqrt()[..., : width // 2 + 1].to(residuals.dtype)


def factor_of(std: Tensor) -> Tensor:
    """The lower Cholesky factor of the published error covariance.

    Args:
        std: standard deviation of the deterministic forecast's errors in sithick m, siconc, sidamage, siu and siv m/s
            (5,).

    Returns:
        L (5, 5) in their units: standard deviations times 1.05, 1.35, 1.1, 1.02, 1.02, and correlations of 0.57 between
        thickness and concentration, -0.05 between thickness and damage, -0.06 between drift components.

    Source: Finn et al. (2024).
    """
    size, correlation = std.double() * torch.tensor(_INFLATION).to(std).double(), torch.eye(5, dtype=torch.float64)
    for (i, j), value in _CORRELATIONS.items():
        correlation[i, j] = correlation[j, i] = value
    factor: Tensor = torch.linalg.cholesky(size[:, None] * correlation.to(size) * size)
    return factor.to(std.dtype)


def correlated(xi: Tensor, amplitude: Tensor, factor: Tensor) -> Tensor:
    """White noise (batch, channel, y, x), filtered and mixed; arguments as from `amplitude_of` and `factor_of`."""
    filtered = torch.fft.irfft2(torch.fft.rfft2(xi) * amplitude, s=xi.shape[-2:])
    return torch.einsum("ij,bjyx->biyx", factor, filtered)


@dataclass(frozen=True, eq=False)
class CorrelatedNoise(Wrapped):
    """An emulator whose every step is followed by correlated noise; an `Emulator`.

    Noise is drawn of the stream "correlated", (member, channel, y, x) at the time a step starts from.

    Attributes:
        emulator: the deterministic one, of one time slot.
        amplitude: of waves (channel, y, x // 2 + 1), see `amplitude_of`.
        factor: of the covariance between channels (channel, channel), in their units, see `factor_of`.
        mean: of truth minus forecast, added to each step (channel,), in their units; None for 0.
        bounds: applied after the noise.

    Raises:
        LayoutError: for amplitudes or factors of other channels or another grid.
    """

    amplitude: Tensor = field(repr=False)
    factor: Tensor
    mean: Tensor | None = None
    bounds: Bounds = _BOUNDS

    def __post_init__(self) -> None:
        n, height, width = self.layout.shape
        got = (tuple(self.amplitude.shape), tuple(self.factor.shape), None if self.mean is None else len(self.mean))
        wanted = ((n, height, width // 2 + 1), (n, n), None if self.mean is None else n)
        if got != wanted or len(self.layout.slots) != 1:
            raise LayoutError(
                f"CorrelatedNoise: wanted one time slot, and amplitude, factor and mean of {wanted}, got slots "
                f"{self.layout.slots} and {got}; make them by `amplitude_of` and `factor_of` on this grid"
            )

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """One step of the deterministic emulator, with noise, within bounds; land stays 0."""
        new, shape = self.emulator.step(state, forcing, noise), state.data.shape[1:]
        drawn = noise.stream("correlated")
        xi = drawn.normal(state.members, state.time, shape, dtype=new.data.dtype, device=new.data.device)
        amplitude, factor = self.amplitude.to(xi), self.factor.to(xi)
        # Singly: transforms of many maps may round otherwise than those of one.
        change = torch.cat([correlated(one[None], amplitude, factor) for one in xi])
        if self.mean is not None:
            change = change + self.mean.to(xi)[:, None, None]
        moved = torch.where(self.layout.mask.to(xi.device), new.data + change, 0.0)
        return self.bounds(state, new.replace(data=moved), forcing)
