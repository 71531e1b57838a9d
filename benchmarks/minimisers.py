"""How much each minimiser needs for a 4D-Var window of Lorenz-96, Adam and scipy's L-BFGS-B beside ours.

    python benchmarks/minimisers.py [--cases 16] [--record]

Half of the 40 sites are observed every 4 steps from the first on, with variance 0.25; backgrounds are truth plus an
error of covariance B, a part of the climatology's. Two regimes: 8 steps with little error, nearly linear, and 16
steps with much. Costs are counted, not timed, in forward runs of the window: a gradient is 3, a product with the
Gauss-Newton Hessian 4. A case is solved when J is within 1 % (or 0.1 %) of the lowest that any method has found.
`--record` writes `benchmarks/results/minimisers.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from polynya.da import LBFGS, GaussNewton
from polynya.da.experiment_systems import SYSTEMS, Setup
from polynya.emulators import Noise
from polynya.emulators.integrate import integrate
from polynya.emulators.lorenz import Lorenz96

REGIMES = {"nearly linear: 8 steps, B = 0.02 of the climatology": (8, 0.02),
           "nonlinear: 16 steps, B = 0.1 of the climatology": (16, 0.1)}  # fmt: skip
GRADIENT, PRODUCT, EVERY = 3, 4, 4


@dataclass
class Cases:
    """Windows, one per row: departures as a function of the control vector."""

    background: Tensor
    root: Tensor
    values: Tensor
    model: Lorenz96

    def residual(self, v: Tensor, rows: slice | list[int] = slice(None)) -> Tensor:
        """(y - H x_k(v)) / error of all times, (case, time x site)."""
        x, parts = self.background[rows] + v @ self.root.mT, []
        for k in range(self.values.shape[1]):
            x = x if k == 0 else integrate(self.model.tendency, x, self.model.dt_model, EVERY)
            parts.append((self.values[rows][:, k] - x[:, ::2]) / 0.5)
        return torch.cat(parts, 1)


def made(count: int, steps: int, scale: float) -> Cases:
    """Cases of one regime."""
    model, noise = Lorenz96(), Noise(1)
    _, clim = Setup(SYSTEMS["lorenz96"], model, model, 0.5, 2, Noise(0)).climatology()
    values, V = torch.linalg.eigh(scale * clim)
    root = V * values.clamp(min=0).sqrt()
    truth = model.at_attractor(range(count), noise).data.flatten(1)
    drawn = noise.stream("background").normal(range(count), None, (40,), dtype=torch.float64)
    seen, x = [], truth
    shock = noise.stream("observations").normal(range(count), None, (steps // EVERY + 1, 20), dtype=torch.float64)
    for k in range(steps // EVERY + 1):
        x = x if k == 0 else integrate(model.tendency, x, model.dt_model, EVERY)
        seen.append(x[:, ::2] + 0.5 * shock[:, k])
    return Cases(truth + drawn @ root.mT, root, torch.stack(seen, 1), model)


@dataclass
class Meter:
    """J of each case against what has been spent on it."""

    spent: float = 0.0
    trace: list[tuple[float, Tensor]] = field(default_factory=list)

    def saw(self, J: Tensor, spent: float) -> None:
        """Note costs J (case,) that came at a price."""
        self.spent += spent
        self.trace.append((self.spent, J.detach()))

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Spent (evaluation,), and the lowest J so far (evaluation, case)."""
        J = torch.stack([j for _, j in self.trace]).nan_to_num(torch.inf).cummin(0).values
        return np.array([s for s, _ in self.trace]), J.numpy()


def gradient(cases: Cases, meter: Meter, v: Tensor, physical: bool = False) -> tuple[Tensor, Tensor]:
    """J and its gradient in the control space, or of increments in physical space."""
    v = v.detach().requires_grad_()
    control = torch.linalg.solve(cases.root, v.mT).mT if physical else v
    J = (control.square().sum(1) + cases.residual(control).square().sum(1)) / 2
    meter.saw(J, GRADIENT)
    return J.detach(), torch.autograd.grad(J.sum(), v)[0]


def quasi_newton(cases: Cases, physical: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ours, all cases in one batch, none of which sees the others."""
    meter = Meter()
    LBFGS(1e-7, 300, 300).minimise(
        partial(gradient, cases, meter, physical=physical), torch.zeros_like(cases.background)
    )
    return [meter.curve()]


def gauss_newton(cases: Cases, outer: int, inner: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ours, case by case: the inner iterations of a batch go on until the last has converged."""
    curves = []
    for row in range(len(cases.background)):
        meter, residual = Meter(), partial(cases.residual, rows=[row])

        def linearised(v: Tensor, meter: Meter = meter, residual: Callable[[Tensor], Tensor] = residual):
            r, pull = torch.func.vjp(residual, v)
            J = (v.square().sum(1) + r.square().sum(1)) / 2
            meter.saw(J, GRADIENT)

            def product(p: Tensor) -> Tensor:
                meter.spent += PRODUCT
                return p + pull(torch.func.jvp(residual, (v,), (p,))[1])[0]

            return J, v + pull(r)[0], product

        GaussNewton(1e-7, outer, inner, 0.05).minimise(linearised, torch.zeros(1, 40, dtype=torch.float64))
        curves.append(meter.curve())
    return curves


def adam(cases: Cases, rate: float, iterations: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """torch.optim.Adam in the control space."""
    meter, v = Meter(), torch.zeros_like(cases.background)
    optimiser = torch.optim.Adam([v], lr=rate)
    for _ in range(iterations):
        v.grad = gradient(cases, meter, v)[1]
        optimiser.step()
    gradient(cases, meter, v)
    return [meter.curve()]


def scipys(cases: Cases) -> list[tuple[np.ndarray, np.ndarray]]:
    """scipy's L-BFGS-B in the control space, case by case."""
    curves = []
    for row in range(len(cases.background)):
        meter, residual = Meter(), partial(cases.residual, rows=[row])

        def cost(v: np.ndarray, meter: Meter = meter, residual: Callable[[Tensor], Tensor] = residual):
            w = torch.tensor(v[None], requires_grad=True)
            J = (w.square().sum(1) + residual(w).square().sum(1)) / 2
            meter.saw(J, GRADIENT)
            return float(J.detach()), torch.autograd.grad(J.sum(), w)[0][0].numpy()

        scipy.optimize.minimize(cost, np.zeros(40), jac=True, method="L-BFGS-B", options={"maxcor": 10, "gtol": 1e-7})
        curves.append(meter.curve())
    return curves


METHODS: dict[str, Callable[[Cases], list[tuple[np.ndarray, np.ndarray]]]] = {
    "L-BFGS, control space (default)": quasi_newton,
    "L-BFGS, physical space": partial(quasi_newton, physical=True),
    "scipy L-BFGS-B, control space": scipys,
    "Gauss-Newton 20 x 30, trust region": partial(gauss_newton, outer=20, inner=30),
    "Gauss-Newton 4 x 10, trust region": partial(gauss_newton, outer=4, inner=10),
    "Adam, rate 0.1, 300 iterations": partial(adam, rate=0.1, iterations=300),
    "Adam, rate 0.01, 300 iterations": partial(adam, rate=0.01, iterations=300),
    "Adam, rate 0.001, 300 iterations": partial(adam, rate=0.001, iterations=300),
}


def table(count: int, steps: int, scale: float) -> list[str]:
    """Rows of one regime."""
    cases = made(count, steps, scale)
    found = {name: run(cases) for name, run in METHODS.items()}
    lowest = np.min([np.concatenate([J[-1] for _, J in curves]) for curves in found.values()], axis=0)
    first = next(iter(found.values()))[0][1][0]
    lines = [f"Median J {np.median(first):.0f} at the background, {np.median(lowest):.1f} at the minimum.", ""]
    lines += [
        "| | within 1 % | runs of the window | in 35 or fewer | within 0.1 % | runs of the window |",
        "|---" * 6 + "|",
    ]
    for name, curves in found.items():
        near, nearer = (prices(curves, tolerance * lowest) for tolerance in (1.01, 1.001))
        early = f"{100 * np.mean(near <= 35):.0f} %"
        lines.append(f"| {name} | " + " | ".join([*shown(near), early, *shown(nearer)]) + " |")
    return lines


def prices(curves: list[tuple[np.ndarray, np.ndarray]], wanted: np.ndarray) -> np.ndarray:
    """What was spent until J was as low as wanted, (case,); inf where it never was."""
    found = []
    for spent, J in curves:
        for column in J.T:
            reached = np.flatnonzero(column <= wanted[len(found)])
            found.append(spent[reached[0]] if len(reached) else np.inf)
    return np.array(found)


def shown(price: np.ndarray) -> list[str]:
    """Share of cases solved, median and largest price of those."""
    solved = price[np.isfinite(price)]
    share = f"{100 * len(solved) / len(price):.0f} %"
    return [share, f"{np.median(solved):.0f} ({solved.max():.0f})" if len(solved) else "–"]


def main() -> None:
    """Count, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Minimisers of a 4D-Var window",
        "",
        f"`python benchmarks/minimisers.py --cases {asked.cases} --record`: Lorenz-96, {asked.cases} cases; median",
        "(and largest) cost of those that were solved, in forward runs of the window.",
    ]
    for name, (steps, scale) in REGIMES.items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", "", *table(asked.cases, steps, scale)]
    print("\n".join(lines))
    if asked.record:
        (Path(__file__).parent / "results" / "minimisers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
