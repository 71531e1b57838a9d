"""Variables with bounds, perturbed in a space without: concentration by its logit, thickness by its logarithm.

A space moves a value x by a displacement z of its transform. Written out, the transform itself cancels,

    logit:  x' = x / (x + (1 - x) exp(-z)),          log:  x' = x exp(z),

so 0 stays 0 and 1 stays 1 exactly (open water stays open, in every member) and nothing leaves its bounds.
The mean moves, as it must: to second order by z's variance σ² times x (1 - x) (1 - 2x) / 2 for the logit
(away from the nearer bound), and exactly by the factor exp(σ²/2) for the logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ICE", "Log", "Logit", "Space"]

_SLACK = 1e-5  # values outside their bounds by no more than this were rounded
_FAR = 700.0  # exp of it is finite


class Space(Protocol):
    """Where displacements of a bounded variable are added."""

    def move(self, values: Tensor, by: Tensor) -> Tensor:
        """Values whose transforms lie `by` further on; those at a bound stay there."""
        ...


@dataclass(frozen=True)
class Logit:
    """For values between two bounds, as `siconc` and `sidamage`; log(x - low) - log(high - x) is what is displaced.

    A displacement of standard deviation σ moves x by about σ (x - low) (high - x) / (high - low).

    Raises ValueError unless low < high.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Logit needs low < high, got {self.low} and {self.high}")

    def move(self, values: Tensor, by: Tensor) -> Tensor:
        """Values within the bounds, in their dtype; raises ValueError for values outside."""
        width = self.high - self.low
        x = (values.double() - self.low) / width
        _require((x < -_SLACK) | (x > 1 + _SLACK), values, f"between {self.low} and {self.high}")
        x = x.clamp(0, 1)
        moved = x / (x + (1 - x) * torch.exp(-by.double().clamp(-_FAR, _FAR)))
        return (self.low + width * moved).to(values.dtype).clamp(self.low, self.high)


@dataclass(frozen=True)
class Log:
    """For values above a bound, as `sithick` and `sisnthick`; log(x - low) is what is displaced.

    A displacement of standard deviation σ is a relative error of about σ.
    """

    low: float = 0.0

    def move(self, values: Tensor, by: Tensor) -> Tensor:
        """Values not below the bound, in their dtype; raises ValueError for values below."""
        x = values.double() - self.low
        _require(x < -_SLACK, values, f"not below {self.low}")
        return (
            (self.low + x.clamp(min=0) * torch.exp(by.double().clamp(-_FAR, _FAR))).to(values.dtype).clamp(min=self.low)
        )


ICE: Mapping[str, Space] = {"siconc": Logit(), "sidamage": Logit(), "sithick": Log(), "sisnthick": Log()}
"""The spaces of sea ice, for `perturb(..., space=ICE)`."""


def _require(outside: Tensor, values: Tensor, wanted: str) -> None:
    if bool(outside.any()):
        raise ValueError(
            f"wanted values {wanted}, got {int(outside.sum())} outside, in [{float(values.min())}, "
            f"{float(values.max())}]; clamp the state first, or choose another space"
        )
