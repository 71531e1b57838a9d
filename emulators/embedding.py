"""What a generative network is told besides maps: pseudo-time, labels and resolution, as one vector.

Finn et al. (2025, arXiv:2508.14984), for each s of the three, with W ~ N(0, 1) / scale drawn once:

    phi(s) = [sin s W, cos s W] / sqrt(n),   e = SiLU(sum of Linear(SiLU(Linear(phi(s)))))

There is no 2 pi in the angles, and the resolution enters by its logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["Embedder", "Fourier"]

_TIME_SCALE, _LABEL_SCALE, _RESOLUTION_SCALE = 0.15, 1.0, 1.5


class Fourier(nn.Module):
    """Sines and cosines of fixed random combinations of the inputs, which published files hold as buffers.

    Args:
        inputs: numbers in.
        features: numbers of angles; twice as many come out.
        scale: of the inputs: the larger, the smoother.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(inputs, features) / scale)

    def forward(self, s: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, 2 features)."""
        angles = s @ self.frequencies
        return torch.cat((angles.sin(), angles.cos()), -1) / math.sqrt(angles.shape[-1])


class Embedder(nn.Module):
    """The sum of three embeddings; see the module's docstring.

    Args:
        width: of the embedding, even.
        times, labels, resolutions: how many numbers of each kind there are.
    """

    def __init__(self, width: int, times: int = 1, labels: int = 3, resolutions: int = 1) -> None:
        super().__init__()
        self.time_embedder = _branch(times, width, _TIME_SCALE)
        self.augment_embedder = _branch(labels, width, _LABEL_SCALE)
        self.resolution_embedder = _branch(resolutions, width, _RESOLUTION_SCALE)

    def forward(self, time: Tensor, labels: Tensor, resolution: Tensor) -> Tensor:
        """Embed.

        Args:
            time: pseudo-time, 0 noise to 1 data (batch, times).
            labels: of augmentation, 0 in forecasts (batch, labels).
            resolution: size of a cell in km (batch, resolutions).

        Returns:
            Embedding e (batch, width).
        """
        e = self.time_embedder(time) + self.augment_embedder(labels) + self.resolution_embedder(resolution.log())
        return F.silu(e)


def _branch(inputs: int, width: int, scale: float) -> nn.Sequential:
    return nn.Sequential(
        Fourier(inputs, width // 2, scale), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
    )
