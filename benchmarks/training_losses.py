"""What the loss does to the deep ocean: a small network trained from scratch for minutes, three seeds a loss.

    python benchmarks/training_losses.py --work .work                 # everything: nature runs, trainings, table
    python benchmarks/training_losses.py --work .work --only mse:0    # one training; several may run side by side
    python benchmarks/training_losses.py --work .work --long          # also 8 years of the embedded emulator

Trainings are kept in --work and continued where they were cut. Forecasts of 30 days start every 30 days of two
years of weather that no training saw; errors are area-weighted root-mean-square over wet cells and starts. The
table compares with persistence and with the annual cycle of another run. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from machine import RESULTS, keep
from torch import Tensor

from polynya.diagnostics import samudra_scorecard, scorecard_table
from polynya.emulators import Emulator, Noise, Persistence, Samudra, Source, State, layout_of, load, open_store, samples
from polynya.emulators.losses import Dynamic, Loss
from polynya.emulators.scaling import scaling_from
from polynya.emulators.statistics import statistics_of
from polynya.emulators.training import Recipe, train, windows_of
from polynya.ensembles import rollout

LOSSES = {
    "mse": Loss("mse", "cells", "std"),
    "dynamic": Loss("mse", "cells", "std", dynamic=Dynamic(limit=20.0)),
    "default": Loss(),
}
SEEDS, YEAR, LEAD = (0, 1, 2), 73, 6
STATE, FORCING = ("thetao", "so", "uo", "vo", "zos"), ("tauuo", "tauvo", "hfatm")
STATICS = ("latitude", "cos_longitude", "sin_longitude", "depth", "wet")


def nature(work: Path) -> tuple[Path, Path]:
    """Six years of three members to learn from, eight years of another to be judged by."""
    ocean = samples.nature("globe")
    forcing = ocean.forcing(noise=Noise(77).stream("weather"))
    start = Source.open(samples.sample("globe"), ocean.layout).state()
    paths = work / "truth_train.zarr", work / "truth_test.zarr"
    for path, members, years in ((paths[0], (1, 2, 3), 6), (paths[1], (0,), 8)):
        steps = years * YEAR + LEAD
        rollout(
            ocean, start.spread_to(members), forcing, steps=steps, store=path, with_forcing=True, resume=True,
            progress=True,
        )  # fmt: skip
    return paths


def trained(name: str, seed: int, updates: int, work: Path, truth: Path) -> tuple[Samudra, float]:
    """The emulator of one loss and seed, and the seconds its training took."""
    folder = work / f"{name}_{seed}_{updates}"
    clock = folder / "seconds.txt"
    if (folder / "emulator.safetensors").exists():
        return load(folder / "emulator.safetensors"), float(clock.read_text()) if clock.exists() else math.nan
    store = open_store(truth).isel(time=slice(2, None))  # three identical members need a moment to part
    layout, forcing_layout = layout_of(store, STATE), layout_of(store, FORCING)
    scaling = scaling_from(statistics_of(store, variables=[*STATE, *FORCING]), layout, forcing_layout)
    emulator = Samudra.untrained(
        layout, forcing_layout, scaling, statics=STATICS, seed=seed, widths=(56, 96), dilations=(1, 2), expansion=1,
        norm="none",
    )  # fmt: skip
    emulator.network.to(memory_format=torch.channels_last)
    recipe = Recipe(
        updates, batch=4, steps=(1, 1, 2, 3), links=(1, 1, 8, 24), jitter=0.5, loss=LOSSES[name], learning_rate=2e-3,
        seed=seed,
    )  # fmt: skip
    windows = windows_of(emulator, [store], in_memory=True)
    begin = time.perf_counter()
    done = train(emulator, windows, recipe, folder=folder, resume=True, progress=True)
    took = time.perf_counter() - begin
    clock.write_text(f"{took:.0f}\n")
    return done, took


def errors(model: Emulator, layout_source: tuple[Source, Source]) -> Tensor:
    """Root-mean-square error of 30-day forecasts (channel,)."""
    states, forcings = layout_source
    layout, times = states.layout, states.times
    starts = range(0, 2 * YEAR, LEAD)
    members = tuple(range(len(starts)))
    area = torch.tensor(layout.grid["areacello"].values) * layout.mask
    data = torch.cat([states.state(times[i]).data for i in starts])
    with torch.inference_mode():
        for k in range(LEAD):
            driven = torch.cat([forcings.at(times[i + k]).data for i in starts])
            forcing = State(driven, times[k], forcings.layout, members)
            data = model.step(State(data, times[k], layout, members), forcing, Noise(0)).data
    target = torch.cat([states.state(times[i + LEAD]).data for i in starts])
    mean: Tensor = ((data - target) ** 2 * area).sum((0, 2, 3)) / (area.sum((1, 2)) * len(starts))
    return mean.sqrt()


def seasons(states: Source) -> Tensor:
    """The same of the annual cycle, which needs each start's own date (channel,)."""
    layout, times = states.layout, states.times
    model = samples.climatology("globe", layout)
    area = torch.tensor(layout.grid["areacello"].values) * layout.mask
    starts = range(0, 2 * YEAR, LEAD)
    ends = [(states.state(times[i + LEAD - 1]), states.state(times[i + LEAD])) for i in starts]
    squares = [(model.step(before, None, Noise(0)).data - after.data) ** 2 for before, after in ends]
    mean: Tensor = (torch.cat(squares) * area).sum((0, 2, 3)) / (area.sum((1, 2)) * len(starts))
    return mean.sqrt()


def table(found: dict[str, list[Tensor]], labels: list[str]) -> str:
    """Rows of temperature by level and of sea level; mean and range over seeds, and the ratio to persistence."""
    rows = [k for k, label in enumerate(labels) if label.startswith("thetao") or label == "zos"]
    lines = [f"| channel | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for k in rows:
        cells = []
        for seeds in found.values():
            values = [float(e[k]) for e in seeds]
            spread = f" ({min(values):.3g}–{max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3g}{spread}")
        lines.append(f"| {labels[k]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def long_run(emulator: Samudra, truth: xr.Dataset, work: Path) -> str:
    """Eight years on from the first record, scored against the truth with the same forcing."""
    source, forcing = Source.open(truth, emulator.layout), Source.open(truth, emulator.forcing_layout)
    start = source.state(source.times[0], (0,))
    run = rollout(
        emulator, start, forcing, steps=8 * YEAR, store=work / "long.zarr", overwrite=True, progress=True,
        title="eight years of the trained emulator",
    )  # fmt: skip
    wanted = list(emulator.layout.names)
    return scorecard_table(samudra_scorecard(run[wanted], truth.squeeze("member", drop=True)[wanted]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".work"), help="nature runs and trainings (1 GB)")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--only", help="LOSS:SEED, and no table")
    parser.add_argument("--long", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    train_path, test_path = nature(given.work)
    jobs = [(name, seed) for name in LOSSES for seed in SEEDS]
    if given.only:
        name, seed = given.only.split(":")
        print(f"{given.only}: {trained(name, int(seed), given.updates, given.work, train_path)[1]:.0f} s")
        return
    truth = open_store(test_path)
    found: dict[str, list[Tensor]] = {}
    seconds: dict[str, float] = {}
    for name, seed in jobs:
        emulator, took = trained(name, seed, given.updates, given.work, train_path)
        sources = Source.open(truth, emulator.layout), Source.open(truth, emulator.forcing_layout)
        if not found:
            persistence = Persistence(emulator.layout, emulator.layout.interval)
            found = {"persistence": [errors(persistence, sources)], "annual cycle": [seasons(sources[0])]}
        found.setdefault(name, []).append(errors(emulator, sources))
        seconds[f"{name}:{seed}"] = took
    labels = emulator.layout.channel_labels()
    text = table(found, labels)
    print(text)
    if given.long:
        longer = long_run(samples.emulator("globe"), truth, given.work)
        text += f"\n\n# Eight years of the embedded emulator\n\n{longer}"
        print(longer)
    numbers = {n: [[round(float(v), 6) for v in e] for e in seeds] for n, seeds in found.items()}
    results = {"updates": given.updates, "seconds": seconds, "channels": labels, "rmse_30_days": numbers}
    keep("training_losses", results, ("torch",), torch.get_num_threads())
    (RESULTS / "training_losses.md").write_text(f"# 30-day errors after {given.updates} updates\n\n{text}\n")


if __name__ == "__main__":
    main()
