"""How far samples of guided denoisers are from the true posterior, where both are known exactly.

    python benchmarks/guidance.py [--samples 1024] [--record]

A periodic Gaussian field of 128 points, unit variance and a correlation of six points, every fourth point observed with
errors of 0.3 and of 0.05; the exact denoiser; Heun's method in 36 and 128 intervals from s = 80 to 0.002. In each
column: root mean square error of the mean in units of the posterior's standard deviation, and the ratio of the spread
to it; ideal are 0 and 1. Samples come in pairs of opposite noise, so that the error of the mean is not one of chance.

The rules, not anybody's trained models, are what is compared. ζ of DPS is that of departures without units, as
published. With --record the table is kept as benchmarks/results/guidance.json.
"""

from __future__ import annotations

import argparse
import os
from functools import cache

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import keep
from torch import Tensor

from polynya.da.guidance import DPS, MMPS, SDA, PiGDM, Rule, draw, guided

POINTS, LENGTH, EVERY = 128, 6.0, 4
ERRORS, INTERVALS = (0.3, 0.05), (36, 128)


def rules(error: float) -> dict[str, Rule]:
    """The rules of the table; departures are in units of the error."""
    return {
        "MMPS, CG to convergence": MMPS(60, 1e-6),
        "MMPS, 10 iterations": MMPS(10, 0),
        "MMPS, 5 iterations": MMPS(5, 0),
        "MMPS, 3 iterations": MMPS(3, 0),
        "MMPS, 1 iteration": MMPS(1, 0),
        "SDA, gamma 0.01": SDA(1e-2),
        "SDA, gamma 0.001": SDA(1e-3),
        "SDA, gamma 0.00005": SDA(5e-5),
        "SDA, gamma 0.3": SDA(0.3),
        "PiGDM": PiGDM(),
        "DPS, zeta 1": DPS(error),
    }


class Field:
    """The field, its exact denoiser, and the posterior of one set of observations."""

    def __init__(self, error: float) -> None:
        away = (torch.arange(POINTS)[:, None] - torch.arange(POINTS)).abs().double()
        away = torch.minimum(away, POINTS - away)
        C = torch.exp(-0.5 * (away / LENGTH) ** 2) + 1e-6 * torch.eye(POINTS, dtype=torch.float64)
        values, self.vectors = torch.linalg.eigh(C)
        self.values, self.sites, self.error = values.clamp(min=1e-8), torch.arange(0, POINTS, EVERY), error
        g = torch.Generator().manual_seed(0)
        truth = (self.vectors * self.values.sqrt()) @ torch.randn(POINTS, generator=g, dtype=torch.float64)
        shock = torch.randn(len(self.sites), generator=g, dtype=torch.float64)
        self.observed = truth[self.sites] + error * shock
        R = error**2 * torch.eye(len(self.sites), dtype=torch.float64)
        K = C[:, self.sites] @ torch.linalg.inv(C[self.sites][:, self.sites] + R)
        self.mean, self.std = K @ self.observed, (C - K @ C[self.sites]).diagonal().sqrt()
        self._gain = cache(lambda s: (self.vectors * (self.values / (self.values + s * s))) @ self.vectors.T)

    def denoise(self, y: Tensor, s: float) -> Tensor:
        """E[x_0 | y]."""
        return y @ self._gain(s)

    def departures(self, x: Tensor) -> Tensor:
        """(o - H x) / error."""
        return (self.observed - x[:, self.sites]) / self.error

    def calibration(self, rule: Rule, intervals: int, samples: int) -> tuple[float, float]:
        """Error of the mean, and ratio of the spread."""
        a, b = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
        levels = [(a + k / (intervals - 1) * (b - a)) ** 7 for k in range(intervals)]
        eps = torch.randn(samples // 2, POINTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x = draw(guided(self.denoise, self.departures, rule), torch.cat((eps, -eps)), levels)
        off = ((x.mean(0) - self.mean) / self.std).square().mean().sqrt()
        return float(off), float((x.std(0) / self.std).mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fields = {error: Field(error) for error in ERRORS}
    columns = [(error, n) for error in ERRORS for n in INTERVALS]
    print(f"{'':26s}" + "".join(f"  error {e}, {n} steps".rjust(24) for e, n in columns))
    table: dict[str, list[list[float]]] = {}
    for name in rules(1.0):
        found = [fields[e].calibration(rules(e)[name], n, options.samples) for e, n in columns]
        table[name] = [list(pair) for pair in found]
        print(f"{name:26s}" + "".join(_cell(*pair).rjust(24) for pair in found), flush=True)
    if options.record:
        keep("guidance", {"columns": columns, "samples": options.samples, "table": table}, ("torch",), 1)


def _cell(off: float, spread: float) -> str:
    return f"{off:.2f}  {spread:.2f}" if off < 100 else "diverges"


if __name__ == "__main__":
    main()
