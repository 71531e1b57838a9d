"""Analyses of bounded variables: transformed to where a Gaussian is a fair description, analysed there, and back.

Ice concentration lies in [0, 1] and thickness above 0; a linear analysis leaves both. `Bounded` gives the analysis it
wraps a state in which these variables are transformed point by point, and observations that see through the inverse
transform: they keep their own values, units and errors, and only H becomes nonlinear.

    logit          y = ln((x - a + m) / (b - x + m))          bounded on both sides
    above          y = s ln(exp((x - a) / s + m) - 1)          like x far above the bound, like ln x near it
    anamorphosis   y = Φ⁻¹(F(x)), F the distribution of x      (Bertino et al. 2003)

The margin m keeps values on the bound finite; where nothing changed, a value keeps its bits.
Source of the last: doi:10.1111/j.1751-5823.2003.tb00194.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..emulators import LayoutError, State
from .cycle import Analysis
from .observations import ObservationError, Observations, View
from .static import EnOI, HybridGain


class Transform(Protocol):
    """A monotonic function of one variable and its inverse."""

    def forward(self, x: Tensor) -> Tensor:
        """From physical values, which are first put within the bounds."""
        ...

    def inverse(self, y: Tensor) -> Tensor:
        """To physical values, within the bounds."""
        ...


@dataclass(frozen=True)
class Logit:
    """Between two bounds.

    Attributes:
        lower, upper: bounds, in the unit of the variable.
        margin: relative to the distance between them.
    """

    lower: float = 0.0
    upper: float = 1.0
    margin: float = 1e-2

    def __post_init__(self) -> None:
        if not self.lower < self.upper or not self.margin > 0:
            raise ValueError(f"Logit: wanted lower < upper and margin > 0, got {self}")

    def forward(self, x: Tensor) -> Tensor:
        """y of x."""
        share = ((x - self.lower) / (self.upper - self.lower)).clamp(0, 1)
        return torch.log(share + self.margin) - torch.log(1 - share + self.margin)

    def inverse(self, y: Tensor) -> Tensor:
        """x of y."""
        share = torch.sigmoid(y) * (1 + 2 * self.margin) - self.margin
        return self.lower + (self.upper - self.lower) * share.clamp(0, 1)


@dataclass(frozen=True)
class Above:
    """Above a bound.

    Attributes:
        lower: bound, in the unit of the variable.
        scale: s, far above which the transform changes nothing, in the unit of the variable.
        margin: relative to the scale.
    """

    lower: float = 0.0
    scale: float = 0.1
    margin: float = 1e-2

    def __post_init__(self) -> None:
        if not self.scale > 0 or not self.margin > 0:
            raise ValueError(f"Above: wanted scale > 0 and margin > 0, got {self}")

    def forward(self, x: Tensor) -> Tensor:
        """y of x."""
        z = (x - self.lower).clamp(min=0) / self.scale + self.margin
        return self.scale * (z + torch.log(-torch.expm1(-z)))  # ln(e^z - 1) without overflow

    def inverse(self, y: Tensor) -> Tensor:
        """x of y."""
        z = torch.nn.functional.softplus(y / self.scale, threshold=40) - self.margin
        return self.lower + self.scale * z.clamp(min=0)


@dataclass(frozen=True)
class Anamorphosis:
    """The distribution of a sample made Gaussian; linear between quantiles and beyond the outermost.

    Attributes:
        values: quantiles in ascending order, in the unit of the variable.
        normal: those of the standard normal distribution at the same probabilities.
        lower, upper: bounds of the inverse.
    """

    values: tuple[float, ...]
    normal: tuple[float, ...]
    lower: float = -np.inf
    upper: float = np.inf

    @classmethod
    def of(
        cls, sample: Tensor | np.ndarray, quantiles: int = 50, lower: float = -np.inf, upper: float = np.inf
    ) -> Anamorphosis:
        """Of a climatological sample of a variable, of any shape; NaN do not count.

        Raises ValueError for a sample with fewer than two different values.
        """
        x = np.asarray(sample, dtype=float).ravel()
        x = x[np.isfinite(x)]
        share = (np.arange(quantiles) + 0.5) / quantiles
        values, first = np.unique(np.quantile(x, share), return_index=True) if len(x) else (x, x)
        if len(values) < 2:
            raise ValueError(
                f"Anamorphosis: wanted a sample with different values, got {len(x)} of {len(values)} values"
            )
        # Values that a bound repeats stand for all the probability there: its middle.
        last = np.append(first[1:], quantiles) - 1
        middle = (share[first] + share[last]) / 2
        return cls(tuple(values.tolist()), tuple(stats.norm.ppf(middle).tolist()), lower, upper)

    def forward(self, x: Tensor) -> Tensor:
        """y of x."""
        return _piecewise(x.clamp(self.lower, self.upper), self.values, self.normal)

    def inverse(self, y: Tensor) -> Tensor:
        """x of y."""
        return _piecewise(y, self.normal, self.values).clamp(self.lower, self.upper)


def _piecewise(x: Tensor, at: tuple[float, ...], to: tuple[float, ...]) -> Tensor:
    a, b = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (at, to))
    k = torch.searchsorted(a, x.detach().contiguous()).clamp(1, len(at) - 1)
    return b[k - 1] + (x - a[k - 1]) * (b[k] - b[k - 1]) / (a[k] - a[k - 1])


@dataclass(frozen=True)
class Bounded:
    """An analysis that respects bounds.

    Attributes:
        wrapped: any analysis that sees observations through `operator_for`, as all of this package do.
        transforms: for each bounded variable.
    """

    wrapped: Analysis
    transforms: Mapping[str, Transform] = field(hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.wrapped, EnOI | HybridGain):
            raise ValueError(
                f"Bounded: the static states of {type(self.wrapped).__name__} would not be transformed; wrap an "
                "ensemble filter"
            )

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble: same members, time and layout; bounded variables within their bounds.

        Raises LayoutError for a variable that is not in the state, and what `wrapped` does.
        """
        unknown = sorted(set(self.transforms) - set(forecast.layout.names))
        if unknown:
            names = ", ".join(forecast.layout.names)
            raise LayoutError(f"Bounded: no variable(s) {', '.join(unknown)}; the state has {names}")
        if not len(observations):
            return forecast
        view = observations.view or View()
        if view.lens is not None:
            raise ObservationError("Bounded: these observations see through a transform already; use one `Bounded`")
        inside = transformed_state(forecast, self.transforms, "forward")
        lens = partial(transformed_state, transforms=self.transforms, way="inverse")
        after = self.wrapped.analysis(inside, observations.replace(view=replace(view, lens=lens)))
        outside = lens(after)
        return forecast.replace(data=torch.where(after.data == inside.data, forecast.data, outside.data))


def transformed_state(state: State, transforms: Mapping[str, Transform], way: str) -> State:
    """A state with some variables transformed, "forward" or "inverse"; land stays as it is."""
    layout, data = state.layout, state.data
    parts = list(data.unbind(1))
    for name, transform in transforms.items():
        for slot in range(len(layout.slots)):
            for row in range(*layout.channels(name, slot).indices(data.shape[1])):
                wet = layout.mask[row].to(data.device)
                # Land is put where every transform has a derivative.
                inside = torch.where(wet, parts[row], 0.5)
                parts[row] = torch.where(wet, getattr(transform, way)(inside), parts[row])
    return state.replace(data=torch.stack(parts, 1))
