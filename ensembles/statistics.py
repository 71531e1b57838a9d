"""Statistics of an ensemble whose members are not kept: moments, extremes, covariances with an index; all merge.

A `Statistic` turns a block of members at one time into parts, sums per cell that are small beside the members. Parts
of any blocks merge (micro-batches, waves, ranks, restarts) and are finished once, when all members are in. A mean x̄
and sums of powers M_p = Σ (x - x̄)^p merge exactly (Chan et al. 1983, Am. Stat. 37, 242; Pébay 2008, SAND2008-6212):
with δ = x̄_b - x̄_a and n = n_a + n_b,

    x̄  = x̄_a + δ n_b/n
    M2 = M2_a + M2_b + δ² n_a n_b/n                   (and Σ (x - x̄)(i - ī) with δ δ_i in the place of δ²)
    M3 = M3_a + M3_b + δ³ n_a n_b (n_a - n_b)/n² + 3δ (n_a M2_b - n_b M2_a)/n
    M4 = M4_a + M4_b + δ⁴ n_a n_b (n_a² - n_a n_b + n_b²)/n³
         + 6δ² (n_a² M2_b + n_b² M2_a)/n² + 4δ (n_a M3_b - n_b M3_a)/n

A NaN of any member makes the cell's results NaN. Sums over members are taken in the order given, in float64, so the
same blocks in the same order give the same bits. Histograms are in `histograms.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..emulators import Layout
from ..emulators.names import attributes
from .scenarios import Box

__all__ = ["Covariance", "Index", "Moments", "Parts", "Statistic", "merge_all"]

Edges = tuple[float, float]
Parts = dict[str, Tensor]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
Finished = dict[str, tuple[Tensor, tuple[str, ...], dict[str, Any]]]
Coords = dict[str, tuple[str, np.ndarray, dict[str, Any]]]

_CELLS = 2**17  # float64 maps of so many cells stay in a CPU's cache: 29 ms against 40 ms for 32 x 10 x 180 x 360


class Statistic(Protocol):
    """A statistic over members, per cell and time, made of parts that merge."""

    @property
    def variable(self) -> str:
        """CF name of what it is a statistic of."""
        ...

    def parts(self, values: Tensor, context: Mapping[str, Tensor], members: Sequence[int]) -> Parts:
        """Parts of a block of members at one time, on the device of the values.

        Args:
            values: (member, level, y, x), physical units; one level for a surface field. May have no members.
            context: the state's fields by name, (member, level, y, x) each.
            members: the members' numbers, in the order of the values.
        """
        ...

    def merged(self, a: Parts, b: Parts) -> Parts:
        """Parts of all members of `a` and `b`, in this order; associative up to rounding."""
        ...

    def finished(self, parts: Parts) -> Finished:
        """Results by name: values (*leading, level, y, x), names of the leading dimensions, CF attributes.

        What is one number for all cells has no cell dimensions: (*leading).
        """
        ...

    def coords(self) -> Coords:
        """Coordinates of leading dimensions by name: dimension, values, attributes."""
        ...

    def part_shapes(self, field_shape: tuple[int, int, int]) -> Shapes:
        """Shape and dtype of every part for a field (level, y, x), whatever the dtype of the values."""
        ...


def merge_all(statistic: Statistic, parts: Iterable[Parts]) -> Parts:
    """Parts of many blocks merged, first to last; one block at a time is in memory if `parts` is an iterator.

    Raises ValueError if there are none.
    """
    blocks = iter(parts)
    first = next(blocks, None)
    if first is None:
        raise ValueError(f"{statistic.variable}: no parts to merge; give those of at least one block of members")
    return reduce(statistic.merged, blocks, first)


@dataclass(frozen=True)
class Moments:
    """Mean and variance, and for order 4 skewness and kurtosis: `<v>_mean`, `<v>_variance`, ...

    Variance has the divisor n - 1 and is NaN for one member. Skewness is √n M3 / M2^1.5 and kurtosis the excess
    n M4 / M2² - 3, neither corrected for bias; NaN where nothing varies.

    Attributes:
        variable: CF name.
        order: 2 or 4.

    Raises ValueError for another order.
    """

    variable: str
    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (2, 4):
            raise ValueError(f"moments of {self.variable}: wanted order 2 or 4 (skewness, kurtosis), got {self.order}")

    def parts(self, values: Tensor, context: Mapping[str, Tensor], members: Sequence[int]) -> Parts:
        """Count (), mean and sums of powers M2 (to M4) per cell, float64."""
        return {"count": count_of(self.variable, values, members), **_power_sums(values, self.order)}

    def merged(self, a: Parts, b: Parts) -> Parts:
        """Chan's and Pébay's rules."""
        require_alike(self.variable, a, b)
        na, nb = float(a["count"]), float(b["count"])
        n, d = max(na + nb, 1.0), b["mean"] - a["mean"]
        merged = {"count": a["count"] + b["count"], "mean": a["mean"] + d * (nb / n)}
        merged["M2"] = a["M2"] + b["M2"] + d**2 * (na * nb / n)
        if self.order == 4:
            third = d**3 * (na * nb * (na - nb) / n**2) + 3 * d * (na * b["M2"] - nb * a["M2"]) / n
            fourth = d**4 * (na * nb * (na**2 - na * nb + nb**2) / n**3)
            fourth += 6 * d**2 * (na**2 * b["M2"] + nb**2 * a["M2"]) / n**2
            merged["M3"] = a["M3"] + b["M3"] + third
            merged["M4"] = a["M4"] + b["M4"] + fourth + 4 * d * (na * b["M3"] - nb * a["M3"]) / n
        return merged

    def finished(self, parts: Parts) -> Finished:
        """`<v>_mean`, `<v>_variance`, and for order 4 `<v>_skewness`, `<v>_kurtosis`; (level, y, x), float64."""
        v, n, square = self.variable, float(parts["count"]), parts["M2"]
        mean, variance = _unless(n < 1, parts["mean"]), _unless(n < 2, square / max(n - 1, 1))
        found: Finished = {
            f"{v}_mean": (mean, (), described(v, "mean", method="mean")),
            f"{v}_variance": (variance, (), described(v, "variance", method="variance", units=product_of_units(v, v))),
        }
        if self.order == 4:
            skewness, kurtosis = n**0.5 * parts["M3"] / square**1.5, n * parts["M4"] / square**2 - 3
            found[f"{v}_skewness"] = skewness, (), described(v, "skewness", units="1", quantity=False)
            found[f"{v}_kurtosis"] = kurtosis, (), described(v, "excess kurtosis", units="1", quantity=False)
        return found

    def coords(self) -> Coords:
        """None."""
        return {}

    def part_shapes(self, field_shape: tuple[int, int, int]) -> Shapes:
        """Count () and one float64 map per moment."""
        maps = ("mean", *_powers(self.order))
        return {"count": ((), torch.int64)} | dict.fromkeys(maps, (field_shape, torch.float64))


@dataclass(frozen=True, eq=False)
class Index:
    """A weighted mean over the cells of a field: one number per member and time, e.g. a mean SST of a box.

    Attributes:
        name: of the index, as it appears in names of results.
        variable: the field averaged.
        weights: (y, x), not negative, of any sum; None weighs every cell alike, land (which is 0) included, so on a
            grid with land prefer `Index.over_box`.
        level: of the field.

    Raises ValueError for weights that are not a map, negative, NaN or zero everywhere, or a negative level.
    """

    name: str
    variable: str
    weights: np.ndarray | None = field(default=None, repr=False)
    level: int = 0

    def __post_init__(self) -> None:
        w = self.weights
        if not self.name or self.level < 0:
            raise ValueError(f"index: wanted a name and level >= 0, got name {self.name!r} and level {self.level}")
        if w is not None and (w.ndim != 2 or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0):
            raise ValueError(
                f"index {self.name}: wanted weights (y, x) that are finite, not negative and not zero everywhere, "
                f"got shape {w.shape}, {int(np.sum(~np.isfinite(w)))} not finite, from {w.min()} to {w.max()}"
            )

    @classmethod
    def over_box(cls, name: str, variable: str, layout: Layout, *, lat: Edges, lon: Edges, level: int = 0) -> Index:
        """The mean by cell area over a box's wet cells.

        Args:
            name, variable, level: of the index; the variable is a field of the layout.
            layout: whose grid has `areacello` and the wet mask.
            lat: southern and northern edge, degrees.
            lon: western and eastern edge, degrees, in any turn of the circle: (350, 10) crosses Greenwich.

        Raises KeyError for a field that is not there; ValueError for a level that is not, and without a wet cell.
        """
        f = layout.field(variable)
        if not 0 <= level < f.channels:
            raise ValueError(f"index {name}: {variable} has levels 0 to {f.channels - 1}, got {level}")
        inside = Box(lat=lat, lon=lon).weights(layout, variable).numpy()
        area = layout.grid["areacello"].fillna(0.0).values.astype(np.float64)
        weights = np.where(layout.field_mask(f)[level], area * inside, 0.0)
        if not weights.sum() > 0:
            raise ValueError(
                f"index {name}: no wet cell of {variable} at level {level} within lat {lat} and lon {lon}; "
                "choose another box or level"
            )
        return cls(name, variable, weights, level)

    def of(self, context: Mapping[str, Tensor]) -> Tensor:
        """The index of every member, (member,), float64, from fields (member, level, y, x).

        Raises ValueError if the field, the level or a grid of the weights' shape is not there.
        """
        if self.variable not in context:
            raise ValueError(f"index {self.name} needs {self.variable}; the state has {', '.join(context)}")
        values, wanted = context[self.variable], None if self.weights is None else self.weights.shape
        if self.level >= values.shape[1] or wanted not in (None, values.shape[2:]):
            raise ValueError(
                f"index {self.name}: wanted level {self.level} and (y, x) = {wanted}, but {self.variable} (member, "
                f"level, y, x) is {tuple(values.shape)}; build the index with the layout of the run"
            )
        maps = values[:, self.level]
        weights = np.ones(maps.shape[1:]) if self.weights is None else self.weights
        w = torch.tensor(weights, dtype=torch.float64, device=maps.device).flatten()
        cells = w.nonzero().flatten()
        w = w[cells] / w.sum()
        means = [(row.flatten()[cells].double() * w).sum() for row in maps]  # alone, whatever the block
        return torch.stack(means) if means else w.new_zeros(0)


@dataclass(frozen=True)
class Covariance:
    """Covariance and correlation over members of every cell with an index: `<v>_<index>_covariance`, `_correlation`.

    Covariance has the divisor n - 1; correlation is NaN where the cell or the index does not vary. The index's own
    `<v>_<index>_index_mean` and `<v>_<index>_index_variance` come along.

    Attributes:
        variable: CF name of the cells' variable.
        index: one number per member and time.
    """

    variable: str
    index: Index

    def parts(self, values: Tensor, context: Mapping[str, Tensor], members: Sequence[int]) -> Parts:
        """Count, the index's mean and M2, (); mean, M2 and sum of products C per cell; float64."""
        count, index = count_of(self.variable, values, members), self.index.of(context)
        if len(index) != len(members):
            raise ValueError(f"index {self.index.name}: wanted {len(members)} members in the context, got {len(index)}")
        series = _power_sums(index[:, None], 2)
        sums = _power_sums(values, 2, index - series["mean"])
        return {"count": count, "index_mean": series["mean"][0], "index_M2": series["M2"][0], **sums}

    def merged(self, a: Parts, b: Parts) -> Parts:
        """Chan's rule, for products as for squares."""
        require_alike(self.variable, a, b)
        na, nb = float(a["count"]), float(b["count"])
        n, d, e = max(na + nb, 1.0), b["mean"] - a["mean"], b["index_mean"] - a["index_mean"]
        return {
            "count": a["count"] + b["count"],
            "index_mean": a["index_mean"] + e * (nb / n),
            "index_M2": a["index_M2"] + b["index_M2"] + e**2 * (na * nb / n),
            "mean": a["mean"] + d * (nb / n),
            "M2": a["M2"] + b["M2"] + d**2 * (na * nb / n),
            "C": a["C"] + b["C"] + d * (e * (na * nb / n)),
        }

    def finished(self, parts: Parts) -> Finished:
        """Covariance and correlation (level, y, x), and the index's own mean and variance, (); float64."""
        v, i, other, n = self.variable, self.index.name, self.index.variable, float(parts["count"])
        correlation = parts["C"] / (parts["M2"].sqrt() * parts["index_M2"].sqrt())
        covariance, variance = (_unless(n < 2, parts[m] / max(n - 1, 1)) for m in ("C", "index_M2"))
        of = described(v, f"covariance with {i}", units=product_of_units(v, other), quantity=False)
        scaled = described(v, f"correlation with {i}", units="1", quantity=False)
        its, its_square = (
            described(other, f"{what} of {i}, a spatial mean,", units=units, method=what)
            for what, units in (("mean", None), ("variance", product_of_units(other, other)))
        )
        return {
            f"{v}_{i}_covariance": (covariance, (), of),
            f"{v}_{i}_correlation": (correlation.clamp(-1.0, 1.0), (), scaled),
            f"{v}_{i}_index_mean": (_unless(n < 1, parts["index_mean"]), (), its),
            f"{v}_{i}_index_variance": (variance, (), its_square),
        }

    def coords(self) -> Coords:
        """None."""
        return {}

    def part_shapes(self, field_shape: tuple[int, int, int]) -> Shapes:
        """Three numbers and three float64 maps."""
        one: Shapes = {"count": ((), torch.int64), "index_mean": ((), torch.float64), "index_M2": ((), torch.float64)}
        return one | dict.fromkeys(("mean", "M2", "C"), (field_shape, torch.float64))


def _power_sums(values: Tensor, order: int, along: Tensor | None = None) -> Parts:
    """Mean and Σ d², .. Σ d^order over members, d = x - mean; with deviations `along` (member,) also C = Σ d along.

    Twice through the members, one after the other, never with more than a few float64 maps at once. A field in
    which all members agree has M2 = 0 exactly, for its mean is taken about the first of them.
    """
    rows, cells = values.flatten(1), math.prod(values.shape[1:])
    names = ("mean", *_powers(order), *(() if along is None else ("C",)))
    sums = {m: torch.zeros(cells, dtype=torch.float64, device=values.device) for m in names}
    step = cells if values.is_cuda else _CELLS
    for start in range(0, cells if len(values) else 0, step):
        block = rows[:, start : start + step]
        here = {m: s[start : start + step] for m, s in sums.items()}
        first = block[0].double()
        for row in block[1:]:
            here["mean"] += row - first
        here["mean"].div_(len(block)).add_(first)
        for k, row in enumerate(block):
            d = row - here["mean"]
            square = d * d
            here["M2"] += square
            if order == 4:
                here["M3"].addcmul_(square, d)
                here["M4"].addcmul_(square, square)
            if along is not None:
                here["C"].addcmul_(d, along[k])
    return {m: s.view(values.shape[1:]) for m, s in sums.items()}


def _powers(order: int) -> tuple[str, ...]:
    return tuple(f"M{p}" for p in range(2, order + 1))


def _unless(unknown: bool, values: Tensor) -> Tensor:
    return torch.full_like(values, torch.nan) if unknown else values


def count_of(variable: str, values: Tensor, members: Sequence[int]) -> Tensor:
    """Number of members of a block, (), int64, on its device.

    Raises ValueError unless values are floating, (member, level, y, x), of these members, each of them once.
    """
    if values.ndim != 4 or not values.is_floating_point() or len(values) != len(members):
        raise ValueError(
            f"{variable}: wanted floating values (member, level, y, x) of {len(members)} members, got "
            f"{values.dtype} {tuple(values.shape)}; a surface field has one level"
        )
    if len(set(members)) < len(members):
        raise ValueError(f"{variable}: wanted every member once, got {list(members)}")
    return torch.tensor(len(members), dtype=torch.int64, device=values.device)


def require_alike(variable: str, a: Parts, b: Parts) -> None:
    """Raise ValueError, naming the parts that differ, unless `a` and `b` have the same names and shapes."""
    shapes = [{m: tuple(t.shape) for m, t in parts.items()} for parts in (a, b)]
    if shapes[0] != shapes[1]:
        differ = [m for m in {**shapes[0], **shapes[1]} if shapes[0].get(m) != shapes[1].get(m)]
        said = "; ".join(f"{m} {shapes[0].get(m, 'missing')} and {shapes[1].get(m, 'missing')}" for m in differ)
        raise ValueError(f"{variable}: these are not parts of one statistic of one field and do not merge: {said}")


def described(
    variable: str, what: str, *, method: str = "", units: str | None = None, quantity: bool = True
) -> dict[str, Any]:
    """CF attributes of a result; `quantity` if it still is of the variable's kind and keeps its standard name."""
    about = attributes(variable)
    named = {
        "standard_name": about.get("standard_name", "") if quantity else "",
        "long_name": f"{what} over members of {about.get('long_name', variable)}",
        "units": about.get("units", "") if units is None else units,
        "cell_methods": f"realization: {method}" if method else "",
    }
    return {k: v for k, v in named.items() if v}


def product_of_units(*variables: str) -> str:
    """Units of a product of deviations of variables, K2 of thetao twice; empty if one is not in the table."""
    units = [attributes(v).get("units", "?") for v in variables]
    factor, powers = 1.0, dict[str, int]()
    for token in " ".join("K" if u == "degC" else u for u in units).split():
        match = re.fullmatch(r"([A-Za-z]+)(-?\d+)?", token)
        if token == "?":
            return ""
        if match is None:
            factor *= float(token)
        else:
            powers[match[1]] = powers.get(match[1], 0) + int(match[2] or 1)
    names = [f"{u}{p if p != 1 else ''}" for u, p in powers.items() if p]
    return " ".join(([f"{factor:g}"] if factor != 1 or not names else []) + names)
