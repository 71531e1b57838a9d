"""Land skipping of GenSIM on its real mask: `python benchmarks/gensim_land.py [--time]`.

Prints the operations of one network call as published and here, and of a 12-hour step by number of network calls.
With `--time`, one call with random weights of the released sizes, with land and without, in CPU seconds on one thread,
and the largest difference of the two; that takes minutes and 5 GB, and nothing else should be running.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from machine import keep

from polynya.emulators import gensim
from polynya.emulators.gensim_cost import call_operations, published_operations
from polynya.emulators.tiles import tiling
from polynya.emulators.transformer import Transformer

MASK = Path(__file__).parent.parent / "tests" / "data" / "seaice" / "grid_creg025_512_part.npz"


def real_mask() -> torch.Tensor:
    """The mask of the published model's grid, (1, 512, 512)."""
    bits = np.unpackbits(np.load(MASK)["mask_bits"])
    return torch.from_numpy(bits.reshape(1, 512, 512)).float()


def counted() -> None:
    config, mask = gensim.GenSIMConfig(), real_mask()
    mesh = torch.zeros(2, 512, 512)
    ours = tiling(mesh, mask, config.window, config.halo, 2)
    tokens = sum(w * n for w, n in ours.lengths)
    theirs = published_operations(config, ours)
    print(f"windows {len(ours.groups)} of {ours.windows}, tokens {tokens} of {ours.windows * ours.tokens}")
    print(f"{'one network call, TFLOP':32s}  linear  attention   total   ratio")
    for name, (a, b) in (
        ("as published", theirs),
        (
            "every token, no dead keys",
            call_operations(config, tiling(mesh, mask, (64, 64), (8, 8), 2, skip_land=False)),
        ),
        ("ocean tokens only", call_operations(config, ours)),
    ):
        print(f"{name:32s}  {a / 1e12:6.3f}  {b / 1e12:9.3f}  {(a + b) / 1e12:6.3f}  {sum(theirs) / (a + b):6.3f}")
    for calls in (39, 20, 19, 9, 5):
        dense, wet = (calls * sum(n) / 1e12 for n in (theirs, call_operations(config, ours)))
        print(f"a step of {calls:2d} calls: {dense:6.1f} TFLOP as published, {wet:6.1f} here")


def timed() -> None:
    torch.set_num_threads(1)
    free = {"std": (1.0,) * 6, "lower": (-torch.inf,) * 6, "upper": (torch.inf,) * 6}  # the result is noise + velocity
    config, mask = gensim.GenSIMConfig(n_steps=1, second_order=False, censoring=False, **free), real_mask()[None]
    torch.manual_seed(0)
    network = Transformer(config.network).eval()
    line = 12.5 * torch.arange(512.0)
    mesh = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None]
    states, noise = torch.zeros(1, 1, 6, 512, 512), torch.randn(1, 6, 512, 512)
    given = (states, torch.rand(1, 2, 4, 512, 512), torch.rand(1, 4, 512, 512), mesh, mask, noise)
    results, seconds = [], {}
    for skip in (True, False):
        start = time.process_time()
        with torch.no_grad():
            results.append(gensim.forecast(network, *given, config, gensim.Running(skip_land=skip)))
        name = f"land {'skipped' if skip else 'computed'}"
        seconds[name] = round(time.process_time() - start, 1)
        print(f"one call, {name}: {seconds[name]} CPU s")
    print(f"ratio {seconds['land computed'] / seconds['land skipped']:.2f}")
    keep("gensim_land", {"cpu_seconds": seconds}, ("torch",), 1)
    velocity = results[1] - given[-1] * mask
    print(
        f"largest difference {float((results[0] - results[1]).abs().max()):.1e}, of velocities with standard deviation "
        f"{float(velocity[mask.expand_as(velocity) > 0].std()):.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true")
    counted()
    if parser.parse_args().time:
        timed()
