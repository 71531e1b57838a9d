"""The long runs of `ice_ensembles`: a year of both emulators under the truth's weather, and what their bounds did.

The run is an ordinary store, continued where it was cut. Its first 100 steps are the run of 50 days. A variable at a
bound was not always put there: a truth has open water too. So some steps are taken again with the same noise and
without bounds, which says in how many cells the clamp acted and how much ice it made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from ice_cases import Bench

from polynya.diagnostics import area_mean, area_of, ice_area, ice_extent, ice_volume
from polynya.emulators import Noise, Source, open_store
from polynya.emulators.regional import Regional
from polynya.ensembles import rollout
from polynya.ensembles.record import recorded

LAST = 60  # steps of the mean at the end: 30 days
SHORT = 100  # 50 days
_INF = float("inf")


@dataclass(frozen=True)
class Year:
    """A long run of one emulator and the truth of the same times.

    Attributes:
        run: `measures` of the emulator.
        truth: of the truth, without member.
        clamped: `clamp` of the emulator.
    """

    run: xr.Dataset
    truth: xr.Dataset
    clamped: xr.Dataset

    def drift(self, steps: int) -> float:
        """Difference of mean volume over the last 30 days of `steps`, in units of the truth's range."""
        end = {"time": slice(max(0, steps - LAST + 1), steps + 1)}
        ours, theirs = (float(d.volume.isel(end).mean()) for d in (self.run, self.truth))
        return (ours - theirs) / self.span

    @property
    def span(self) -> float:
        """Range of the truth's volume in the whole run, m3: the seasonal one if that is a year."""
        return float(self.truth.volume.max() - self.truth.volume.min())

    def variances(self, steps: int) -> dict[str, float]:
        """Variance over the map in the last 30 days, over that of the truth, of each variable."""
        end = {"time": slice(max(0, steps - LAST + 1), steps + 1)}
        ours, theirs = (d.variance.isel(end).mean([n for n in d.variance.dims if n != "variable"]) for d in
                        (self.run, self.truth))  # fmt: skip
        return {str(n): float(ours.sel(variable=n) / theirs.sel(variable=n)) for n in ours["variable"].values}

    def beyond(self, model: Regional, steps: int) -> int:
        """How many of the values up to `steps` are not finite or out of bounds, counted by map."""
        some = self.run.isel(time=slice(steps + 1))
        low, high = (xr.DataArray(list(v), dims="variable") for v in (model.config.lower, model.config.upper))
        bad = ~((some.smallest >= low) & (some.largest <= high) & np.isfinite(some.smallest + some.largest))
        return int(bad.sum())


def year(bench: Bench, model: Regional, member: int, members: int, steps: int, seed: int, folder: Path) -> Year:
    """Run an emulator from the first record of a member of the truth, or read the run that is there."""
    states, driven = (bench.source(model, member, forcing=f) for f in (False, True))
    start = states.state(states.times[0], (0,)).spread_to(tuple(range(members)))
    start = start.to(next(model.network.parameters()).device)
    key = bench.key(model, member=member, members=members, seed=seed)
    store = folder / "years" / f"{model.kind}_{key}.zarr"
    store.parent.mkdir(parents=True, exist_ok=True)
    noise = Noise(seed).stream(f"truth {member}")
    if len(recorded(store)) <= steps:
        rollout(
            model, start, driven, steps=steps, store=store, noise=noise, resume=True, progress=True,
            title=f"{model.kind} emulator of the embedded sea ice",
        )  # fmt: skip
    run = open_store(store).isel(time=slice(steps + 1))
    names = list(model.layout.names)
    truth = bench.truth[names].sel(member=member, drop=True).isel(time=slice(steps + 1))
    return Year(measures(run[names]), measures(truth), clamp(model, run, driven, noise))


def measures(states: xr.Dataset) -> xr.Dataset:
    """Volume (m3), extent and area (m2), and least, greatest and variance over the map of each variable by time."""
    states = states.load()
    area = area_of(states)
    found = {
        "volume": ice_volume(states["sithick"], area=area),
        "extent": ice_extent(states["siconc"], area=area),
        "area": ice_area(states["siconc"], area=area),
    }
    stacked = states.to_dataarray("variable").astype("f8")
    found |= {
        "smallest": stacked.min(("y", "x")),
        "largest": stacked.max(("y", "x")),
        "variance": area_mean(stacked**2, area) - area_mean(stacked, area) ** 2,
    }
    kept = {n: f.drop_vars([c for c in f.coords if c not in f.dims]) for n, f in found.items()}
    return xr.Dataset(kept)


def clamp(model: Regional, run: xr.Dataset, driven: Source, noise: Noise, samples: int = 12) -> xr.Dataset:
    """What the bounds do in some steps of a run: the share of the ocean they change, and the ice that they make.

    Returns:
        `share` (time, variable), by area, and `made` (time), m of thickness a day.
    """
    free = model.tuned(lower=(-_INF,) * 5, upper=(_INF,) * 5)
    low, high = (torch.tensor(v)[:, None, None] for v in (model.config.lower, model.config.upper))
    wet = model.layout.mask
    area = torch.tensor(model.layout.grid["areacello"].values) * wet[0]
    source = Source.open(run, model.layout)
    at = np.unique(np.linspace(0, len(source.times) - 2, samples).round().astype(int))
    share, made = np.zeros((len(at), len(model.layout.names))), np.zeros(len(at))
    device = next(model.network.parameters()).device
    for i, k in enumerate(at):
        state = source.state(source.times[k]).to(device)
        with torch.no_grad():
            data = free.step(state, driven.at(state.time, state.members), noise).data.cpu()
        bounded = torch.minimum(torch.maximum(data, low), high)
        changed = ((bounded - data).abs() > 1e-6) & wet
        share[i] = (changed.double().mean(0) * area).sum((1, 2)) / area.sum()
        added = ((bounded - data)[:, 0].double().mean(0) * area).sum() / area.sum()
        made[i] = float(added) / (model.dt.total_seconds() / 86400)
    times = np.array([source.times[k] for k in at], dtype=object)
    coords: dict[str, Any] = {"time": times, "variable": list(model.layout.names)}
    return xr.Dataset({"share": (("time", "variable"), share), "made": ("time", made)}, coords)
