"""The slope of a Taylor remainder, read off where it is neither saturated nor rounding."""

from __future__ import annotations

import math

import torch

__all__ = ["SIZES", "taylor_slope"]

SIZES = tuple(10 ** (-k / 2) for k in range(17))
"""ε, from 1 to 1e-8 by half decades."""

_DECADES = 3
_TOLERANCE = 0.05  # of the slope


def taylor_slope(pairs: list[tuple[float, float]], first: float) -> tuple[float, str, float]:
    """Slope of the remainder over three decades, what that means, and the largest ε of them.

    Of the windows in which every decade has a slope near 2 that of the largest ε is taken, else the nearest to 2.
    Rounding, which is what is left when the remainder has ceased to fall, is subtracted in squares.
    """
    if all(r <= 1e-13 * (1 + first) for _, r in pairs):
        return math.inf, "linear", 1.0
    last, decade = pairs[-1][1], pairs[-3][1]
    floor = last if decade < 10 * last or last == 0 else 0.0
    width, found = 2 * _DECADES, []
    for start in range(len(pairs) - width):
        window = pairs[start : start + width + 1]
        if all(math.isfinite(r) and r > 2 * floor for _, r in window):
            points = [(math.log(e), 0.5 * math.log(r * r - floor * floor)) for e, r in window]
            even = all(abs(_fit(points[k : k + 3]) - 2) < 0.15 for k in range(width - 1))
            found.append((_fit(points), even, window[0][0]))
    if not found:
        return math.nan, "unknown", math.nan
    if found[-1][0] < 1.2:  # however small ε is
        return found[-1][0], "wrong", found[-1][2]
    for slope, even, at in found:
        if even and abs(slope - 2) <= _TOLERANCE:
            return slope, "smooth", at
    slope, _, at = min(found, key=lambda f: abs(f[0] - 2))
    return slope, "kinked", at


def _fit(points: list[tuple[float, float]]) -> float:
    x, y = (torch.tensor(v, dtype=torch.float64) for v in zip(*points, strict=True))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
