"""Order statistics of an ensemble whose members are not kept: extremes, probabilities of thresholds, quantiles.

Their parts are extremes and counts per cell, which merge exactly, in any order; see `statistics.py` for what a
statistic is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..emulators.names import RANGES, attributes
from .statistics import Coords, Finished, Parts, Shapes, count_of, described, require_alike

__all__ = ["Exceedance", "Extremes", "Quantiles"]

_CELLS = 2**12  # of all members of a block at once: 0.42 s for 32 x 10 x 180 x 360 on one core, 0.79 s unsliced
_CELLS_CUDA = 2**20
_NOBODY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest value over members, and who has them: `<v>_min`, `<v>_min_member`, `<v>_max`, ...

    Of several members with the same value it is the one with the smallest number; of NaN likewise.

    Attributes:
        variable: CF name.
    """

    variable: str

    def parts(self, values: Tensor, context: Mapping[str, Tensor], members: Sequence[int]) -> Parts:
        """Extremes (float64, which holds float32 exactly) and members' numbers (int64) per cell."""
        count_of(self.variable, values, members)
        if not len(values):
            shapes, on = self.part_shapes(_shape(values)), values.device
            return {m: torch.full(shape, _EMPTY[m], dtype=of, device=on) for m, (shape, of) in shapes.items()}
        numbers = torch.tensor(members, dtype=torch.int64, device=values.device)
        if list(members) != sorted(members):
            numbers, order = numbers.sort()
            values = values[order]
        low, high = values.min(0), values.max(0)  # of ties the first, which is the smallest number
        return {
            "min": low.values.double(),
            "min_member": numbers[low.indices],
            "max": high.values.double(),
            "max_member": numbers[high.indices],
        }

    def merged(self, a: Parts, b: Parts) -> Parts:
        """The smaller minimum and the larger maximum; of equal ones the smaller member number."""
        require_alike(self.variable, a, b)
        merged = {}
        for which, sign in (("min", 1.0), ("max", -1.0)):
            x, y, who, other = sign * a[which], sign * b[which], a[f"{which}_member"], b[f"{which}_member"]
            wins = (y < x) | (y.isnan() & ~x.isnan())
            ties = (y == x) | (y.isnan() & x.isnan())
            take = wins | (ties & (other < who))
            merged[which] = torch.where(take, b[which], a[which])
            merged[f"{which}_member"] = torch.where(take, other, who)
        return merged

    def finished(self, parts: Parts) -> Finished:
        """`<v>_min`, `<v>_max` and `<v>_min_member`, `<v>_max_member` (int64, -1 for none); (level, y, x)."""
        found: Finished = {}
        for which in ("min", "max"):
            who, name = parts[f"{which}_member"], f"{self.variable}_{which}"
            about = described(self.variable, f"{which}imum", method=f"{which}imum")
            what = f"member with the {which}imum of {attributes(self.variable).get('long_name', self.variable)}"
            found[name] = torch.where(who == _NOBODY, torch.nan, parts[which]), (), about
            found[f"{name}_member"] = torch.where(who == _NOBODY, -1, who), (), {"long_name": what, "units": "1"}
        return found

    def coords(self) -> Coords:
        """None."""
        return {}

    def part_shapes(self, field_shape: tuple[int, int, int]) -> Shapes:
        """Two float64 and two int64 maps."""
        return {m: (field_shape, torch.int64 if "member" in m else torch.float64) for m in _EMPTY}


_EMPTY = {"min": np.inf, "min_member": _NOBODY, "max": -np.inf, "max_member": _NOBODY}


@dataclass(frozen=True)
class Exceedance:
    """Share of members above (or below) thresholds: `<v>_probability_above (<v>_threshold, ...)`.

    With `below`, `<v>_probability_below (<v>_threshold_below, ...)`. A value equal to a threshold, in the dtype of
    the values, is neither above nor below.

    Attributes:
        variable: CF name.
        thresholds: increasing, in the variable's units.
        below: count members below instead.

    Raises ValueError for no thresholds, or thresholds that are not finite and increasing.
    """

    variable: str
    thresholds: tuple[float, ...]
    below: bool = False

    def __post_init__(self) -> None:
        _require_increasing(f"exceedance of {self.variable}: wanted thresholds", self.thresholds)

    def parts(self, values: Tensor, context: Mapping[str, Tensor], members: Sequence[int]) -> Parts:
        """Number of members (); of those beyond each threshold (threshold, level, y, x), int32; where any is NaN."""
        count, shape = count_of(self.variable, values, members), tuple(values.shape[1:])
        beyond = torch.zeros(len(self.thresholds), *shape, dtype=torch.int32, device=values.device)
        unknown = torch.zeros(shape, dtype=torch.bool, device=values.device)
        for row in values:
            unknown |= row.isnan()
            for k, threshold in enumerate(self.thresholds):
                beyond[k] += row < threshold if self.below else row > threshold
        return {"count": count, "beyond": beyond, "unknown": unknown}

    def merged(self, a: Parts, b: Parts) -> Parts:
        """Sums."""
        require_alike(self.variable, a, b)
        counts = {m: a[m] + b[m] for m in ("count", "beyond")}
        return {**counts, "unknown": a["unknown"] | b["unknown"]}

    def finished(self, parts: Parts) -> Finished:
        """The probability (threshold, level, y, x), float64; NaN without members."""
        side = "below" if self.below else "above"
        probability = torch.where(parts["unknown"], torch.nan, parts["beyond"].double() / parts["count"])
        about = described(self.variable, f"probability to be {side} a threshold", units="1", quantity=False)
        return {f"{self.variable}_probability_{side}": (probability, (self._dim,), about)}

    def coords(self) -> Coords:
        """The thresholds."""
        about = attributes(self.variable)
        named = {"long_name": f"threshold of {about.get('long_name', self.variable)}"}
        kept = {k: about[k] for k in ("standard_name", "units") if k in about}
        return {self._dim: (self._dim, np.array(self.thresholds, np.float64), kept | named)}

    def part_shapes(self, field_shape: tuple[int, int, int]) -> Shapes:
        """Count (), int32 maps per threshold, one bool map."""
        return {
            "count": ((), torch.int64),
            "beyond": ((len(self.thresholds), *field_shape), torch.int32),
            "unknown": (field_shape, torch.bool),
        }

    @property
    def _dim(self) -> str:
        return f"{self.variable}_threshold{'_below' if self.below else ''}"


@dataclass(frozen=True)
class Quantiles:
    """Quantiles from a histogram of equal bins: `<v>_quantiles (<v>_quantile, ...)` and `<v>_outside`.

    Within one bin width of numpy's `linear` quantile of the members, as long as the members it lies between are in
    the range: each of these two is placed inside its bin, and no farther out than the smallest and the largest
    member, which are kept exactly. Members out of range are counted in `<v>_outside`; quantiles among them lie
    between the end of the range and the extreme. The parts hold (bins + 2) int32 maps: less than the members only
    if these are more than the bins.

    Attributes:
        variable: CF name.
        levels: probabilities, increasing, 0 to 1.
        bins: number of bins.
        range: lowest and highest value of the bins, both included, in the variable's units; None for what it can
            be on Earth (`emulators/names.py`), which is wide: narrower is more precise.

    Raises ValueError for levels out of order or range, fewer than one bin, or a range that is empty, or missing for
    a variable that is not in the table.
    """

    variable: str
    levels: tuple[float, ...] = (0.05, 0.5, 0.95)
    bins: int = 128
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        what = f"quantiles of {self.variable}: wanted"
        _require_increasing(f"{what} levels from 0 to 1", self.levels)
        if self.levels[0] < 0 or self.levels[-1] > 1:
            raise ValueError(f"{what} levels from 0 to 1, increasing, got {self.levels}")
        if self.bins < 1:
            raise ValueError(f"{what} at least one bin, got {self.bins}")
        if self.range is None and self.variable not in RANGES:
            raise ValueError(
                f"{what} range=(lowest, highest), for the table has none: members are not kept, so that the bins must "
                "be known before the run; choose what the variable can reach in its units"
            )
        _require_increasing(f"{what} a range (lowest, highest)", self.bounds)
        if len(self.bounds) != 2:
            raise ValueError(f"{what} a range (lowest, highest), got {self.range}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of the bins: `range`, or what the table says the variable can reach."""
        return RANGES[self.variable] if self.range is None else self.range

    @property
    def bin_width(self) -> float:
        """Width of a bin, in the variable's units."""
        return (self.bounds[1] - self.bounds[0]) / self.bins

    def parts(self, values: Tensor, context: Mapping[str, Tensor], members: Sequence[int]) -> Parts:
        """Number of members (); counts (bin, level, y, x), int32, the first below and the last above; extremes."""
        count, shape, device = count_of(self.variable, values, members), _shape(values), values.device
        rows, one = values.flatten(1), torch.ones((), dtype=torch.int32, device=device)
        counts = torch.zeros(self.bins + 2, math.prod(shape), dtype=torch.int32, device=device)
        step = _CELLS_CUDA if values.is_cuda else _CELLS
        for block, here in zip(torch.split(rows, step, 1), torch.split(counts, step, 1), strict=True):
            here.scatter_add_(0, self._bin(block), one.expand(block.shape))
        some = len(values) > 0
        return {
            "count": count,
            "bins": counts.view(self.bins + 2, *shape),
            "min": (values.amin(0) if some else torch.full(shape, torch.inf, device=device)).double(),
            "max": (values.amax(0) if some else torch.full(shape, -torch.inf, device=device)).double(),
        }

    def merged(self, a: Parts, b: Parts) -> Parts:
        """Sums of counts, extremes of extremes."""
        require_alike(self.variable, a, b)
        counts = {m: a[m] + b[m] for m in ("count", "bins")}
        return {**counts, "min": torch.minimum(a["min"], b["min"]), "max": torch.maximum(a["max"], b["max"])}

    def finished(self, parts: Parts) -> Finished:
        """The quantiles (quantile, level, y, x), float64, and the number of members outside (level, y, x), int32."""
        v, bins = self.variable, parts["bins"]
        maps, n = zip(bins.unbind(1), parts["min"], parts["max"], strict=True), int(parts["count"])
        levels = [self._quantiles(n, *of) for of in maps]
        outside = bins[0] + bins[-1]
        return {
            f"{v}_quantiles": (
                torch.stack(levels, 1),
                (f"{v}_quantile",),
                described(v, "quantiles")
                | {"bin_width": self.bin_width, "range": list(self.bounds)}
                | {"comment": f"within bin_width of the members' quantile; see {v}_outside"},
            ),
            f"{v}_outside": (
                outside,
                (),
                described(v, "number outside the range of the histogram", units="1", quantity=False),
            ),
        }

    def coords(self) -> Coords:
        """The probabilities."""
        name, attrs = f"{self.variable}_quantile", {"long_name": "probability of a quantile", "units": "1"}
        return {name: (name, np.array(self.levels, np.float64), attrs)}

    def part_shapes(self, field_shape: tuple[int, int, int]) -> Shapes:
        """Count (), bins + 2 int32 maps, two float64 maps."""
        counts: Shapes = {"count": ((), torch.int64), "bins": ((self.bins + 2, *field_shape), torch.int32)}
        return counts | dict.fromkeys(("min", "max"), (field_shape, torch.float64))

    def _bin(self, values: Tensor) -> Tensor:
        """Which of the bins + 2 a value is in, int64: 0 below, bins + 1 above; 1 for NaN, which spoils `min`."""
        lowest, highest = self.bounds
        place = ((values.double() - lowest) * (self.bins / (highest - lowest))).floor_()
        place = place.fmax(place.new_zeros(())).clamp_(max=self.bins - 1.0)  # the highest value is in the last bin
        return (place + (values > highest) - (values < lowest).double()).long() + 1

    def _quantiles(self, n: int, bins: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Quantiles of one level, (quantile, y, x), of n members, from counts (bin, y, x) and extremes (y, x)."""
        below = bins.cumsum(0, dtype=torch.int32)
        found = []
        for level in self.levels:
            rank = max(n - 1, 0) * level
            first, share = int(rank), rank - int(rank)
            value = self._ranked(first, n, bins, below, low, high)
            if share:
                value = torch.lerp(value, self._ranked(first + 1, n, bins, below, low, high), share)
            found.append(value)
        return torch.stack(found)

    def _ranked(self, k: int, n: int, bins: Tensor, below: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The k-th smallest of n members, (y, x): at its place among those that share its bin, or an extreme."""
        if n == 0:
            return torch.full_like(low, torch.nan)
        if k in (0, n - 1):
            return high if k else low
        which = torch.zeros_like(low, dtype=torch.int64)
        for until in below:  # seven times faster than a sum over the bins
            which += until <= k
        inside = bins.gather(0, which[None])[0]
        before = below.gather(0, which[None])[0] - inside
        edges = torch.linspace(*self.bounds, self.bins + 1, dtype=torch.float64, device=low.device)
        edges = torch.cat([edges.new_tensor([-torch.inf]), edges, edges.new_tensor([torch.inf])])
        left, right = (edges[which + side].clamp(low, high) for side in (0, 1))
        return left + (right - left) * ((k - before + 0.5) / inside)


def _require_increasing(what: str, values: Sequence[float]) -> None:
    """Raise ValueError unless there are values, finite and increasing."""
    if not len(values) or not np.isfinite(values).all() or any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"{what} that are finite and increasing, got {values}")


def _shape(values: Tensor) -> tuple[int, int, int]:
    level, y, x = values.shape[1:]
    return level, y, x
