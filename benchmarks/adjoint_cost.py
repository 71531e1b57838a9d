"""What the gradient of a 4D-Var window costs, in time and memory, for each choice of what is kept for the adjoint.

    python benchmarks/adjoint_cost.py [--steps 2 8] [--rounds 5] [--record]

For the embedded Samudra (channel), the embedded sea-ice network (arctic_deterministic) and Lorenz-96: seconds of one
gradient over seconds of one forward run of the same window, timed in turns; the bytes of tensors that are alive at a
time in the gradient of a Samudra window, by its length; and a batch of 16 problems beside one.
`--record` writes `benchmarks/results/adjoint_cost.md`. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref

import numpy as np
import torch
from machine import RESULTS, processor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polynya.da import FourDVar, Observations, Uncorrelated
from polynya.da.window_trajectory import Trajectory
from polynya.emulators import samples
from polynya.emulators.lorenz import Lorenz96
from polynya.emulators.noise import Noise
from polynya.ensembles import states_of
from polynya.ensembles.dates import shifted

KEPT = ("all", "states", "few")
OBSERVED = {"channel": "thetao", "arctic_deterministic": "sithick", "Lorenz-96": "x"}


def window(name: str, steps: int, kept: str, members: int = 1) -> Trajectory:
    """One with a few observations at its end."""
    if name == "Lorenz-96":
        emulator, forcing = Lorenz96(), None
        begin = emulator.at_attractor(range(members), Noise(0))
    else:
        place = name.split("_")[0]
        emulator, forcing = samples.emulator(name), samples.nature(place).forcing()
        one = next(iter(states_of(samples.sample(place), emulator.layout)))
        begin = one.spread_to(range(members))
    date = begin.time
    for _ in range(steps):
        date = shifted(forcing, date, emulator.dt)
    seen = emulator.layout.field(OBSERVED[name])
    wet = emulator.layout.field_mask(seen)[0]
    lat, lon = (np.asarray(a)[wet][:: max(1, wet.sum() // 20)] for a in emulator.layout.position(seen))
    table = {"variable": OBSERVED[name], "lat": lat, "lon": lon, "value": 1.0, "error": 1.0}
    given = Observations.from_table(date, table)
    how = FourDVar(Uncorrelated(emulator.layout, {OBSERVED[name]: 0.1}), checkpoint=kept)
    return Trajectory(how, emulator, begin, forcing, Noise(0), given, steps)


class Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, of those made meanwhile: what resident memory says depends on malloc."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Run the operation, and count what is new."""
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self._sizes:
                place = x.untyped_storage()
                self._sizes[place._cdata] = place.nbytes()
                self.now += place.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(place, self._gone, place._cdata)
        return found

    def _gone(self, which: int) -> None:
        self.now -= self._sizes.pop(which, 0)


def memory(name: str, steps: int, kept: str) -> float:
    """The most megabytes of tensors that one gradient has alive at a time, without background and forcing."""
    problem = window(name, steps, kept)
    v = problem.start()
    problem.cost(v)
    with Alive() as alive:
        problem.cost(v)
    return alive.peak / 1e6


def ratios(name: str, steps: int, rounds: int, members: int = 1) -> tuple[float, dict[str, float]]:
    """Seconds of a forward run, and of a gradient over that for each choice, all in turns."""
    problems = {kept: window(name, steps, kept, members) for kept in KEPT}
    v = problems["all"].start()
    seconds: dict[str, list[float]] = {"forward": [], **{k: [] for k in KEPT}}
    for turn in range(rounds + 1):
        for what, clock in seconds.items():
            begin = time.process_time()
            if what == "forward":
                with torch.no_grad():
                    problems["all"].parts(v)
            else:
                problems[what].cost(v)
            clock += [time.process_time() - begin] if turn else []
    middle = {k: statistics.median(c) for k, c in seconds.items()}
    return middle["forward"], {k: middle[k] / middle["forward"] for k in KEPT}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Cost of one gradient of a 4D-Var window", "",
             f"`python benchmarks/adjoint_cost.py --record`, {processor()}, 1 thread; CPU seconds, median of "
             f"{asked.rounds} rounds.", "",
             "| emulator | steps | forward run [s] | all | states | few |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name in OBSERVED:
        for steps in asked.steps:
            forward, ratio = ratios(name, steps, asked.rounds)
            lines.append(f"| {name} | {steps} | {forward:.3g} | " + " | ".join(f"{ratio[k]:.2f}" for k in KEPT) + " |")
            print(lines[-1], flush=True)
    lines += ["", "Tensors alive at a time in one gradient, MB; in brackets beyond those of 2 steps, which one step",
              "takes whatever the window, over what is beyond them at 8 steps (a square root doubles from row to row):",
              "", "| Samudra, channel: steps | all | states | few |", "|---|---|---|---|"]  # fmt: skip
    first = {kept: memory("channel", 2, kept) for kept in KEPT}
    unit: dict[str, float] = {}
    for steps in (8, 32, 128):
        found = {kept: memory("channel", steps, kept) for kept in KEPT}
        unit = unit or {kept: found[kept] - first[kept] for kept in KEPT}
        cells = [f"{found[kept]:.1f} ({(found[kept] - first[kept]) / unit[kept]:.1f})" for kept in KEPT]
        lines.append(f"| {steps} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "A batch of 16 problems over one, CPU seconds of a gradient:",
        "",
        "| emulator | ratio |",
        "|---|---|",
    ]
    for name in OBSERVED:
        (alone, single), (batch, many) = (ratios(name, 2, asked.rounds, members) for members in (1, 16))
        lines.append(f"| {name} | {batch * many['states'] / (alone * single['states']):.1f} |")
        print(lines[-1], flush=True)
    if asked.record:
        (RESULTS / "adjoint_cost.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
