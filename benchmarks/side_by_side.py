"""Ours and the peers', timed in one run, interleaved: `python benchmarks/side_by_side.py [--rounds 5]`.

Prints CPU seconds (median over rounds) and ratios, and writes them as JSON under benchmarks/results/ with the
hardware named. Nothing else should be running: two busy cores make any number meaningless.
Needs the extras `test` and `bench`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import properscoring
import scoringrules
import torch
import xarray as xr
import xrft
import xskillscore
from machine import keep

from polynya.diagnostics import crps_ensemble, isotropic_spectrum
from polynya.emulators import Noise

Task = Callable[[], object]


def crps_tasks() -> dict[str, Task]:
    """CRPS of 50 members x 20 times x 180 x 360 float32."""
    rng = np.random.default_rng(0)
    dims = ("time", "lat", "lon")
    obs = xr.DataArray(rng.standard_normal((20, 180, 360), dtype="f4"), dims=dims)
    ens = xr.DataArray(rng.standard_normal((50, 20, 180, 360), dtype="f4"), dims=("member", *dims))
    return {
        "polynya": lambda: crps_ensemble(obs, ens, dim=()),
        "scoringrules (numba, pwm)": lambda: scoringrules.crps_ensemble(
            obs.values, ens.values, m_axis=0, estimator="pwm", backend="numba"
        ),
        "properscoring": lambda: properscoring.crps_ensemble(obs.values, ens.values, axis=0),
        "xskillscore": lambda: xskillscore.crps_ensemble(obs, ens, dim=[]),
    }


def spectrum_tasks() -> dict[str, Task]:
    """Isotropic spectra of 200 maps of 256 x 256 float32, Hann window, linear detrend."""
    rng = np.random.default_rng(0)
    coords = {"y": 1e4 * np.arange(256), "x": 1e4 * np.arange(256)}
    maps = xr.DataArray(rng.standard_normal((200, 256, 256), dtype="f4"), dims=("time", "y", "x"), coords=coords)
    return {
        "polynya": lambda: isotropic_spectrum(maps, dim=("y", "x"), spacing=(1e4, 1e4)),
        "xrft": lambda: xrft.isotropic_power_spectrum(maps, dim=["y", "x"], window="hann", detrend="linear"),
    }


def noise_tasks() -> dict[str, Task]:
    """8 million normals; torch's generator gives numbers that depend on batch and device, ours do not."""
    noise, generator = Noise(1), torch.Generator().manual_seed(1)
    return {
        "polynya (Philox, per member)": lambda: noise.normal(range(8), None, (1_000_000,)),
        "torch.randn (one generator)": lambda: torch.randn(8, 1_000_000, generator=generator),
    }


SUITES = {"CRPS": crps_tasks, "isotropic spectrum": spectrum_tasks, "normals": noise_tasks}


def measure(tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each task; every round runs all tasks in turn, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            began = time.process_time()
            task()
            if turn:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(s) for name, s in seconds.items()}


def main() -> None:
    """Run every suite and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, object] = {}
    for title, make in SUITES.items():
        seconds = measure(make(), given.rounds)
        ours = next(iter(seconds.values()))
        print(f"\n{title}: {make.__doc__}")
        for name, value in seconds.items():
            print(f"  {name:32s} {value:8.3f} CPU s   {value / ours:6.1f} x ours")
        results[title] = {name: round(value, 4) for name, value in seconds.items()}
    keep("side_by_side", results, ("numpy", "scoringrules", "properscoring", "xskillscore", "xrft", "torch"), 1)


if __name__ == "__main__":
    main()
