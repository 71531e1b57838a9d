"""Normal numbers per second on one core: ours beside torch's and numpy's generators, interleaved.

    python benchmarks/noise.py [--rounds 3] [--record]

Ours are a function of seed, stream, member and time, the same in any batch and on any device; torch.randn and
numpy's Philox are one stream each, whose numbers depend on what was drawn before. Seconds are CPU seconds, of which
the fastest round counts, so that other work on the machine matters little. With --record the table is kept as
benchmarks/results/noise.md.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cftime
import numpy as np
import torch
from machine import RESULTS, processor

from polynya.emulators import Noise

SHAPES = {
    "1 degree state, 32 members": (32, 77, 180, 360),
    "1 degree state, 1 member": (1, 77, 180, 360),
    "1 degree map, 32 members": (32, 1, 180, 360),
    "embedded ocean, 100 members": (100, 41, 37, 90),
    "latent of 512 numbers, 1000 members": (1000, 512),
}
GOAL = 40e6  # normals per second and core
DATE = cftime.DatetimeNoLeap(2000, 1, 1)


def tasks(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Draw float32 normals of one shape, three ways."""
    noise, generator = Noise(0), torch.Generator().manual_seed(0)
    philox = np.random.Generator(np.random.Philox(0))
    return {
        "polynya": lambda: noise.normal(range(shape[0]), DATE, shape[1:]),
        "torch.randn": lambda: torch.randn(shape, generator=generator),
        "numpy Philox": lambda: philox.standard_normal(shape, dtype=np.float32),
    }


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Normals per CPU second, of the fastest of some rounds in turn; small draws are repeated."""
    best: dict[str, float] = {}
    repeats = max(1, 10_000_000 // math.prod(shape))
    for _ in range(rounds + 1):
        for name, task in tasks(shape).items():
            began = time.process_time()
            for _ in range(repeats):
                task()
            rate = repeats * math.prod(shape) / (time.process_time() - began)
            best[name] = max(rate, best.get(name, 0.0))
    return best


def table(found: dict[str, dict[str, float]]) -> str:
    """Millions per second, and ours over theirs."""
    names = list(next(iter(found.values())))
    head = ["draw", "shape", *(f"{n}, M/s" for n in names), *(f"ours / {n}" for n in names[1:])]
    rows = []
    for title, rates in found.items():
        ours = rates[names[0]]
        shape = " x ".join(map(str, SHAPES[title]))
        rows.append([title, shape, *(f"{r / 1e6:.0f}" for r in rates.values())])
        rows[-1] += [f"{ours / rates[n]:.2f}" for n in names[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="keep the table under benchmarks/results/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    found = {title: measure(shape, given.rounds) for title, shape in SHAPES.items()}
    slowest = min(rates["polynya"] for rates in found.values())
    verdict = f"{'PASS' if slowest >= GOAL else 'FAIL'}  at least {GOAL / 1e6:.0f} M/s a core: {slowest / 1e6:.0f} M/s"
    text = f"{table(found)}\n\n- {verdict}\n"
    print(text)
    if given.record:
        machine = f"{processor()}, 1 thread, load {load:.1f}, torch {torch.__version__}, numpy {np.__version__}"
        day = datetime.now(UTC).date().isoformat()
        about = f"float32, millions per CPU second on one core, best of {given.rounds + 1} rounds. {machine}, {day}."
        (RESULTS / "noise.md").write_text(f"# Normal numbers per second\n\n{about}\n\n{text}")


if __name__ == "__main__":
    main()
