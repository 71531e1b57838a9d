"""Whether a filter believes the right things: observations against the background that predicted them.

If background and observation errors are what the ensemble and R say, and are independent, the departures
d = y - H x̄ have mean zero and

    E[d²] = H P Hᵀ + R = spread² + error²

(Desroziers et al. 2005, doi:10.1256/qj.05.108, eq. 1). Statistics are sums that add up over times; the
division comes last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ..emulators import State
from .observations import Observations
from .operators import operator_for


@dataclass(frozen=True)
class InnovationStatistics:
    """Sums over departures of one variable and kind; `a + b` is the statistics of both.

    Attributes:
        count: number of observations.
        total: Σ d, in the unit of the variable.
        squares: Σ d².
        expected_squares: Σ (spread² + error²).
    """

    count: int
    total: float
    squares: float
    expected_squares: float

    def __add__(self, other: InnovationStatistics) -> InnovationStatistics:
        return InnovationStatistics(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.expected_squares + other.expected_squares,
        )

    @property
    def mean(self) -> float:
        """Mean departure: the bias of the background, or of the observations."""
        return self.total / self.count

    @property
    def rms(self) -> float:
        """Root mean square departure."""
        return math.sqrt(self.squares / self.count)

    @property
    def expected(self) -> float:
        """What the root mean square should be, from ensemble spread and observation error."""
        return math.sqrt(self.expected_squares / self.count)


@dataclass(frozen=True, eq=False)
class Innovation:
    """Observations against one background.

    Attributes:
        observations: what was observed.
        departure: observation minus background mean, (observation,).
        spread: standard deviation over members of the observed background, (observation,).
    """

    observations: Observations
    departure: np.ndarray = field(repr=False)
    spread: np.ndarray = field(repr=False)

    @property
    def expected(self) -> np.ndarray:
        """Standard deviation the departure should have, sqrt(spread² + error²), (observation,)."""
        return np.asarray(np.hypot(self.spread, self.observations.error))

    def statistics(self) -> dict[tuple[str, str], InnovationStatistics]:
        """Sums per (kind, variable)."""
        rows: dict[tuple[str, str], list[int]] = {}
        for i, key in enumerate(zip(self.observations.kind, self.observations.variable, strict=True)):
            rows.setdefault((str(key[0]), str(key[1])), []).append(i)
        return {
            key: InnovationStatistics(
                len(i),
                float(self.departure[i].sum()),
                float((self.departure[i] ** 2).sum()),
                float((self.expected[i] ** 2).sum()),
            )
            for key, i in rows.items()
        }


def innovation(forecast: State, observations: Observations) -> Innovation:
    """Compare observations with a background; a single member has spread 0.

    Raises ObservationError as `operator_for`.
    """
    with torch.no_grad():
        seen = operator_for(forecast.layout, observations).apply(forecast).to("cpu", torch.float64).numpy()
    spread = seen.std(0, ddof=1) if len(seen) > 1 else np.zeros(seen.shape[1])
    return Innovation(observations, observations.value - seen.mean(0), spread)


def pooled(
    *statistics: Mapping[tuple[str, str], InnovationStatistics],
) -> dict[tuple[str, str], InnovationStatistics]:
    """Statistics of several times together, per (kind, variable)."""
    total: dict[tuple[str, str], InnovationStatistics] = {}
    for one in statistics:
        for key, sums in one.items():
            total[key] = total[key] + sums if key in total else sums
    return total
