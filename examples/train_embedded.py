"""Make an embedded ocean's sample and train its small emulator: the whole path from truth to weights.

    python examples/train_embedded.py channel          # nature run 25 minutes, training 20, on two cores
    python examples/train_embedded.py globe            # nature run 10 minutes, training 20, steadying 45

Writes NAME.zarr.zip and NAME.safetensors, the files in emulators/embedded/. Every part can be killed and
run again: rollouts that are on disk are kept. To train on your own data, replace `nature_run` by the
paths of your stores and choose the variables of `layout_of`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from zarr.codecs import BloscCodec
from zarr.storage import ZipStore

from polynya.emulators import (
    Layout,
    Noise,
    Samudra,
    Source,
    annual_cycle,
    export,
    layout_of,
    open_store,
    samples,
    statistics_of,
)
from polynya.emulators.nature_forcing import Warming
from polynya.emulators.scaling import scaling_from
from polynya.emulators.training import Recipe, Windows, parameters, train
from polynya.ensembles import Correlated, perturb, rollout

Pair = tuple[Source, Source]
STEADY: dict[str, Any] = {"batch": 4, "jitter": 0.5, "learning_rate": 7e-4, "warmup": 0.05}
STATICS = ("latitude", "cos_longitude", "sin_longitude", "depth", "wet")
YEAR = 73  # records


# Standard deviations (K and 1e-3) of the initial states that teach the globe's emulator how anomalies decay.
# Without them every training state lies on one climate, and a year-long rollout drifts off it and away.
ANOMALIES = {
    "thetao": [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.03],
    "so": [0.10, 0.10, 0.08, 0.06, 0.04, 0.03, 0.02, 0.01, 0.005, 0.003],
}


def nature_run(name: str, work: Path, years: int) -> dict[str, Path]:
    """Spin up, then run members apart: by weather, warming and anomalies on the globe, by eddies in the channel."""
    ocean, noise = samples.nature(name), Noise(20)
    weather = noise.stream("weather")
    start = cftime.DatetimeNoLeap(1, 1, 1)
    calm = ocean.forcing(noise=weather) if name == "globe" else ocean.forcing()
    spin = 30 if name == "globe" else 3
    rest = ocean.at_rest(start, noise)
    spun = rollout(ocean, rest, calm, steps=spin * YEAR, store=work / f"{name}_spin.zarr", resume=True, progress=True)
    state = Source.open(spun, ocean.layout).state()
    if name == "channel":
        kind = Correlated(1e5, 300.0)
        state = perturb(state, range(1, 7), amplitude={"thetao": 0.3}, noise=noise, kind=kind)
        runs = {"free": (state, calm, int(1.4 * YEAR) + (years - 1) * YEAR)}
    else:
        scenarios = (Warming(), Warming(step=2.0), Warming(rate=0.5, start=state.time))
        runs = {
            tag: (state.spread_to((2 * k + 1, 2 * k + 2)), ocean.forcing(warming=w, noise=weather), years * YEAR)
            for k, (tag, w) in enumerate(zip(("control", "step", "ramp"), scenarios, strict=True))
        }
        kind = Correlated(1.2e6, 300.0)
        apart = perturb(state, range(21, 33), amplitude=1.0, scale=ANOMALIES, noise=noise, kind=kind)
        runs["perturbed"] = (apart, calm, 110)
    stores = {}
    for tag, (first, forcing, steps) in runs.items():
        store = work / f"{name}_{tag}.zarr"
        rollout(ocean, first, forcing, steps=steps, store=store, with_forcing=True, resume=True, progress=True)
        stores[tag] = store
    return stores


def untrained(climates: list[xr.Dataset], layout: Layout, forcing: Layout, widths: tuple[int, ...]) -> Samudra:
    """A residual network whose first forecast is persistence, normalised by the training data."""
    together = xr.concat(climates, "member", data_vars="minimal", coords="minimal", compat="override")
    scaling = scaling_from(statistics_of(together, variables=[*layout.names, *forcing.names]), layout, forcing)
    emulator = Samudra.untrained(
        layout, forcing, scaling, statics=STATICS, widths=widths, dilations=(1, 2), expansion=1, norm="none"
    )
    emulator.network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    return emulator


def write_sample(dataset: xr.Dataset, emulator: Samudra, cycle: torch.Tensor, path: Path, records: int) -> None:
    """One member's last records, with 12 significant bits, the annual cycle and the statistics, in one zip."""
    last = dataset.isel(member=0, time=slice(-records, None)).drop_vars("member").load()
    for f in emulator.layout.fields:
        part = cycle[:, emulator.layout.channels(f.name)].numpy()
        wet = emulator.layout.field_mask(f)
        maps = np.where(wet, part, np.nan).astype("float32")
        dims = ("harmonic", "lev", *emulator.layout.dims) if f.levels else ("harmonic", *emulator.layout.dims)
        last[f"{f.name}_annual_cycle"] = (
            dims,
            maps if f.levels else maps[:, 0],
            {"units": last[f.name].attrs["units"]},
        )
    labels = emulator.layout.channel_labels()
    for key in ("mean", "std", "increment"):
        last[f"statistics_{key}"] = ("channel", getattr(emulator.scaling, key).numpy())
    last = last.assign_coords(channel=("channel", labels), harmonic=("harmonic", ["mean", "cosine", "sine"]))
    last.attrs["title"] = (
        f"sample of the embedded ocean, made by: python examples/train_embedded.py {path.stem.split('.')[0]}"
    )
    zipped(last, path)


def zipped(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset in memory as one zip, its maps with 12 significant bits."""
    for name in dataset.data_vars:
        if dataset[name].dtype == np.float32 and dataset[name].ndim > 2:
            dataset[name].data = bit_rounded(dataset[name].values, 12)
        dataset[name].encoding.clear()
    dataset.attrs["status"] = "complete"
    path.unlink(missing_ok=True)
    codec = BloscCodec(cname="zstd", clevel=9, shuffle="bitshuffle")
    encoding = {n: {"compressors": [codec]} for n, v in dataset.data_vars.items() if v.ndim > 2}
    with ZipStore(path, mode="w") as store:
        dataset.to_zarr(store, encoding=encoding, zarr_format=3, consolidated=False)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {dataset.sizes['time']} records")


def bit_rounded(values: np.ndarray, keep: int) -> np.ndarray:
    """Round float32 to `keep` bits of the mantissa, to nearest even, so that it compresses."""
    bits = values.view(np.uint32)
    drop = np.uint32(23 - keep)
    half = (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1)
    rounded = (bits + half + ((bits >> drop) & np.uint32(1))) >> drop << drop
    return np.where(np.isnan(values), values, rounded.view(np.float32))


def steadied(emulator: Samudra, pairs: dict[str, Pair], work: Path) -> Samudra:
    """Second and third stage: runs that go on from their own states for months, then for years.

    After the first stage alone 10-day forecasts are as good, but a rollout of years blows up at the scale of the
    grid. Noise on the initial states teaches the network to damp that; long runs, to find back from its drift.
    """
    climates = [pair for tag, pair in pairs.items() if tag != "perturbed"]
    for number, (data, updates, steps, links) in enumerate(
        (([*pairs.values()], 900, (2, 3), (8, 24)), (climates, 800, (3,), (120,))), 1
    ):
        recipe = Recipe(updates, steps=steps, links=links, seed=50 + number, decay=0.99, **STEADY)
        folder = work / f"globe_steady_{number}"
        emulator = train(emulator, windows(data), recipe, folder=folder, resume=True, progress=True)
    return emulator


def windows(pairs: list[Pair]) -> Windows:
    """Windows of pairs of state and forcing sources."""
    return Windows([p[0] for p in pairs], [p[1] for p in pairs])


def main() -> None:
    """Run every part for one ocean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=samples.OCEANS)
    parser.add_argument("--work", type=Path, default=Path(".work"), help="where the nature runs go (1.5 GB)")
    parser.add_argument("--out", type=Path, default=Path("emulators/embedded"))
    parser.add_argument("--years", type=int, default=None, help="length of each training run")
    parser.add_argument("--updates", type=int, default=3500)
    parser.add_argument("--sample-only", action="store_true", help="keep the weights that are in --out")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    stores = nature_run(given.name, given.work, given.years or (6 if given.name == "globe" else 3))
    skip = {"free": 29, "perturbed": 2}  # until the members have forgotten each other, or the first shock
    opened = {tag: open_store(s).isel(time=slice(skip.get(tag, 0), None)) for tag, s in stores.items()}
    layout = layout_of(next(iter(opened.values())), ["thetao", "so", "uo", "vo", "zos"])
    forcing_layout = layout_of(next(iter(opened.values())), ["tauuo", "tauvo", "hfatm"])
    pairs = {tag: (Source.open(d, layout), Source.open(d, forcing_layout)) for tag, d in opened.items()}
    climate = [p for tag, p in pairs.items() if tag != "perturbed"]
    states, forcings = ([p[k] for p in climate] for k in (0, 1))
    emulator = untrained([s.dataset for s in states], layout, forcing_layout, (56, 96))
    print(f"{parameters(emulator.network)} parameters")
    cycle = annual_cycle(states[0].state(t) for t in states[0].times)
    records = 36 if given.name == "globe" else 30
    write_sample(states[0].dataset, emulator, cycle, given.out / f"{given.name}.zarr.zip", records)
    if given.sample_only:
        return
    recipe = Recipe(given.updates, batch=4, steps=(1, 1, 2, 3), jitter=0.5, learning_rate=2e-3)
    trained = train(
        emulator,
        Windows(states, forcings),
        recipe,
        folder=given.work / f"{given.name}_first",
        resume=True,
        progress=True,
    )
    if given.name == "globe":
        trained = steadied(trained, pairs, given.work)
    command = f"python examples/train_embedded.py {given.name} --updates {given.updates}"
    export(trained, given.out / f"{given.name}.safetensors", command=command)


if __name__ == "__main__":
    main()
