"""Whether a filter believes the right things: observations against the background that predicted them.

If background and observation errors are what the ensemble and R say, and are independent, the departures
d = y - H x̄ have mean zero and

    E[d²] = H P Hᵀ + R = spread² + error²

(Desroziers et al. 2005, doi:10.1256/qj.05.108, eq. 1), and an observation is as likely to be below all members, seen
with errors of observation of their own, as between any two of them (Hamill 2001,
doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2). Statistics are sums that add up over times; the division comes
last. What an analysis made of the observations is in `diagnosis.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
import xarray as xr
from scipy import stats

from ..emulators import Draws, State, attributes
from .correlation import coloured
from .observations import Observations
from .operators import operator_for

Type = tuple[str, str]  # kind and variable


class _Sum(Protocol):
    def __add__(self, other: Any) -> Any: ...


_S = TypeVar("_S", bound=_Sum)


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

    columns: ClassVar[dict[str, str]] = {
        "count": "number of observations",
        "mean": "mean departure from the background",
        "rms": "root mean square departure from the background",
        "expected": "departure expected from ensemble spread and observation error",
    }

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

    def statistics(self) -> dict[Type, InnovationStatistics]:
        """Sums per (kind, variable)."""
        d, expected = self.departure, self.expected
        return {
            key: InnovationStatistics(
                len(i), float(d[i].sum()), float((d[i] ** 2).sum()), float((expected[i] ** 2).sum())
            )
            for key, i in rows_of_types(self.observations).items()
        }


def innovation(forecast: State, observations: Observations) -> Innovation:
    """Compare observations with a background; a single member has spread 0.

    Raises ObservationError as `operator_for`.
    """
    seen = seen_by(forecast, observations)
    spread = seen.std(0, ddof=1) if len(seen) > 1 else np.zeros(seen.shape[1])
    return Innovation(observations, observations.value - seen.mean(0), spread)


def seen_by(forecast: State, observations: Observations) -> np.ndarray:
    """What would be observed of every member, (member, observation) float64, without gradients."""
    with torch.no_grad():
        seen = operator_for(forecast.layout, observations).apply(forecast)
        return seen.to("cpu", torch.float64).numpy()


def rows_of_types(observations: Observations) -> dict[Type, np.ndarray]:
    """Positions of the observations of each (kind, variable), both in alphabetical order."""
    kinds, kind = np.unique(observations.kind, return_inverse=True)
    names, name = np.unique(observations.variable, return_inverse=True)
    code = kind * len(names) + name
    order = np.argsort(code, kind="stable")
    found, first = np.unique(code[order], return_index=True)
    parts = np.split(order, first[1:]) if len(order) else []
    return {(str(kinds[c // len(names)]), str(names[c % len(names)])): p for c, p in zip(found, parts, strict=True)}


def order_of(observations: Observations) -> np.ndarray:
    """Positions of the observations in an order that does not depend on the one they came in, (observation,)."""
    o = observations
    text = [np.unique(a, return_inverse=True)[1] for a in (o.kind, o.variable)]
    return np.lexsort((o.group, o.offset, o.error, o.value, o.depth, o.lon, o.lat, *text))


def pooled(*statistics: Mapping[Type, _S]) -> dict[Type, _S]:
    """Statistics of several times together, per (kind, variable); of whatever adds up."""
    total: dict[Type, _S] = {}
    for one in statistics:
        for key, sums in one.items():
            total[key] = total[key] + sums if key in total else sums
    return total


def tabulated(statistics: Mapping[Type, Any]) -> xr.Dataset:
    """Statistics per (kind, variable) as a Dataset (kind, variable), NaN where there is none of a type.

    Args:
        statistics: such as `pooled(...)` of any statistics here, all of one class; its `columns` name what is shown.
    """
    kinds, names = (sorted({key[i] for key in statistics}) for i in (0, 1))
    columns: dict[str, str] = next(iter(statistics.values())).columns if statistics else {}
    data: dict[str, Any] = {}
    for column, meaning in columns.items():
        rows = {key: np.asarray(getattr(s, column), float) for key, s in statistics.items()}
        shape = np.broadcast_shapes(*(r.shape for r in rows.values()))
        values = np.full((len(kinds), len(names), *shape), np.nan)
        for (kind, name), row in rows.items():
            values[kinds.index(kind), names.index(name)] = row
        data[column] = (("kind", "variable", "rank")[: 2 + len(shape)], values, {"long_name": meaning})
    units = [attributes(n).get("units", "") for n in names]
    coords: dict[str, Any] = {
        "kind": ("kind", np.asarray(kinds, str), {"long_name": "where the observations came from"}),
        "variable": ("variable", np.asarray(names, str), {"long_name": "CF name of the observed variable"}),
        "units": ("variable", np.asarray(units, str), {"long_name": "unit of the variable"}),
    }
    return xr.Dataset(data, coords)


@dataclass(frozen=True, eq=False)
class RankHistogram:
    """How often an observation was above so many members; `a + b` counts both.

    Attributes:
        counts: (rank,) integers, one more than there are members.
    """

    counts: np.ndarray

    columns: ClassVar[dict[str, str]] = {
        "counts": "number of observations above so many members",
        "p_value": "probability of a histogram that is less flat, if observations are like members",
    }

    def __add__(self, other: RankHistogram) -> RankHistogram:
        if self.counts.shape != other.counts.shape:
            raise ValueError(
                f"rank histograms add up for ensembles of one size, got {len(self.counts) - 1} and "
                f"{len(other.counts) - 1} members"
            )
        return RankHistogram(self.counts + other.counts)

    @property
    def p_value(self) -> float:
        """Of Pearson's χ² test that it is flat; observations of one time are not independent, which makes it small."""
        return float(stats.chisquare(self.counts).pvalue) if self.counts.sum() else math.nan


def rank_histograms(forecast: State, observations: Observations, noise: Draws) -> dict[Type, RankHistogram]:
    """Ranks of observations among members that are seen with errors of observation, per (kind, variable).

    Args:
        forecast: the background, or any ensemble that has not seen these observations.
        observations: of the time of its newest slot.
        noise: of the members' errors, which have the correlations of R, and of the ranks among equals, which are
            random; it does not depend on the order of observations.

    Source: Hamill (2001), on errors of observation.
    """
    o, members, seen = observations, forecast.members, seen_by(forecast, observations)
    drawn, order = noise.stream("ranks"), order_of(observations)
    shuffled = drawn.stream("error").normal(members, o.time, (len(o),), dtype=torch.float64).cpu().numpy()
    of_ties = drawn.stream("ties").normal(members[:1], o.time, (len(o),), dtype=torch.float64).cpu().numpy()
    eta, tie = np.empty_like(shuffled), np.empty(len(o))
    eta[:, order], tie[order] = shuffled, stats.norm.cdf(of_ties[0])
    seen = seen + o.error * coloured(o, eta.T).T
    below, equal = (seen < o.value).sum(0), (seen == o.value).sum(0)
    rank = below + np.minimum(np.floor(tie * (equal + 1)).astype(int), equal)
    size = len(members) + 1
    return {key: RankHistogram(np.bincount(rank[i], minlength=size)) for key, i in rows_of_types(o).items()}


@dataclass(frozen=True)
class Calibration:
    """Root mean expected over root mean square error of a series, and how well it is known.

    Attributes:
        ratio: 1 if spread and errors are what they should be, below if there is too little spread.
        low, high: bounds of the confidence interval.
        effective: number of independent times that the series is worth.
    """

    ratio: float
    low: float
    high: float
    effective: float

    columns: ClassVar[dict[str, str]] = {
        "ratio": "expected over actual root mean square error",
        "low": "lower bound of the confidence interval",
        "high": "upper bound of the confidence interval",
        "effective": "number of independent times",
    }


def calibration(expected: np.ndarray, squares: np.ndarray, level: float = 0.95) -> Calibration:
    """The ratio of spread to error over a series of times, with an interval that knows of autocorrelation.

    With sums (or means over a fixed set of places) v_t and e_t of one time, the ratio is sqrt(Σv / Σe), and by the
    delta method the variance of ln(Σv / Σe) is that of the mean of u_t = v_t/v̄ - e_t/ē, whose n terms are worth
    n/τ independent ones.

    Args:
        expected: variances v_t, (time,): of the ensemble, times (N+1)/N of N members, and of the observations if
            errors are those of departures.
        squares: squared errors e_t, (time,).
        level: of confidence; of fewer than some 50 independent times the interval is a little too narrow, as neither
            their number nor the tails of e_t are then well known.

    Raises ValueError for series that are shorter than two times, differ in length, or of which a mean is 0.
    """
    v, e = np.asarray(expected, float), np.asarray(squares, float)
    if v.ndim != 1 or v.shape != e.shape or len(v) < 2 or not (v.mean() > 0 and e.mean() > 0):
        raise ValueError(f"wanted two series (time,) of two times or more and means > 0, got {v.shape} and {e.shape}")
    u = v / v.mean() - e / e.mean()
    effective = max(len(u) / autocorrelation_time(u), 2.0)
    sigma = u.std(ddof=1) / math.sqrt(effective)
    ratio, factor = math.sqrt(v.sum() / e.sum()), math.exp(stats.t.ppf((1 + level) / 2, effective - 1) * sigma / 2)
    return Calibration(ratio, ratio / factor, ratio * factor, effective)


def calibrations(series: Sequence[Mapping[Type, InnovationStatistics]], level: float = 0.95) -> dict[Type, Calibration]:
    """`calibration` of departures for each (kind, variable) that was observed at two times or more.

    Args:
        series: `innovation(...).statistics()` of consecutive analyses.
        level: of confidence.
    """
    found = {}
    for key in sorted({k for one in series for k in one}):
        sums = [one[key] for one in series if key in one]
        if len(sums) > 1:
            expected, squares = (np.array([getattr(s, n) for s in sums]) for n in ("expected_squares", "squares"))
            found[key] = calibration(expected, squares, level)
    return found


def autocorrelation_time(series: np.ndarray) -> float:
    """τ = 1 + 2 Σ_k r_k >= 1: the mean of n correlated terms is known as well as that of n/τ independent ones.

    Autocorrelations are summed in pairs as long as these are positive, and not larger than those before.

    Source: Geyer (1992), doi:10.1214/ss/1177011137, section 3.3, initial monotone sequence.
    """
    x = np.asarray(series, float) - np.mean(series)
    n = len(x)
    spectrum = np.abs(np.fft.rfft(x, 2 * n)) ** 2
    covariance = np.fft.irfft(spectrum, 2 * n)[:n] / (n - np.arange(n))
    if not covariance[0] > 0:
        return 1.0
    time = 1.0
    for _ in range(3):  # the sample's mean was taken off, not the true one, whose variance is covariance[0] time / n
        missing = covariance[0] * min(time / n, 0.5)
        time = _summed((covariance + missing) / (covariance[0] + missing))
    return float(np.clip(time, 1.0, n))


def _summed(r: np.ndarray) -> float:
    pairs = r[: len(r) // 2 * 2].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs <= 0)
    kept = pairs[: negative[0]] if len(negative) else pairs
    return 2 * float(np.minimum.accumulate(kept).sum()) - 1
