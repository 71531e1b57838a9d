"""What the gradient of a 4D-Var window costs, in time and memory, for each choice of what is kept for the adjoint.

    python benchmarks/adjoint_cost.py [--steps 2 8] [--rounds 5] [--record]

For the embedded Samudra (channel), the embedded sea-ice network (arctic_deterministic) and Lorenz-96: seconds of one
gradient over seconds of one forward run of the same window, timed in turns; the largest resident memory of a process
that computes the gradient of a Samudra window, beyond that of one of two steps; and a batch of 16 problems beside one.
`--record` writes `benchmarks/results/adjoint_cost.md`. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from machine import processor

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


def memory(name: str, steps: int, kept: str) -> tuple[float, float]:
    """Peak resident megabytes of a fresh process after a short gradient, and beyond that after a long one."""
    run = [sys.executable, __file__, "--one", name, str(steps), kept]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    return float(out[-2]), float(out[-1])


def one(name: str, steps: int, kept: str) -> None:
    """What `memory` runs."""
    torch.set_num_threads(1)
    problem = window(name, steps, kept)
    v = problem.start()
    window(name, 2, kept).cost(v)  # what a gradient needs whatever the window
    with torch.no_grad():
        problem.parts(v)
    before = peak()
    problem.cost(v)
    print(before, peak() - before)


def peak() -> float:
    """Largest resident memory so far, MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return float(line.split()[1]) / 1e3


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
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one[0], int(asked.one[1]), asked.one[2])
        return
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
    lines += ["", "Largest resident memory of a process beyond that of a window of two steps, forcing included, MB:"]
    lines += ["", "| Samudra, channel: steps | all | states | few |", "|---|---|---|---|"]  # fmt: skip
    for steps in (8, 32, 128):
        cells = [f"{memory('channel', steps, kept)[1]:.0f}" for kept in KEPT]
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
        (Path(__file__).parent / "results" / "adjoint_cost.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
