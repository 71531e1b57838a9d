"""Twin experiments: a nature run, what a network sees of it, and how near analyses come.

The truth is a run of one emulator, the forecasts are of another or of the same. Every analysis sees the same
observations and begins from the same ensemble, and so does the free run, which sees none of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from ..emulators import Emulator, Forcing, Noise, Source, State, open_store
from ..ensembles import rollout, states_of
from .archive import Assimilation, open_assimilation
from .assimilate import assimilate
from .bias import Debiased
from .cycle import Method, NoAnalysis
from .networks import Network, observe
from .quality import Quality
from .scores import by_band

FREE = "free run"


@dataclass(frozen=True, eq=False)
class Twin:
    """A twin experiment that was run.

    Attributes:
        truth: the nature run, (member, time, [lev], y, x), opened lazily.
        runs: by name; "free run" is the ensemble that saw nothing.
    """

    truth: xr.Dataset
    runs: dict[str, Assimilation]

    def scores(self, bands: Mapping[str, tuple[float, float]] | None = None, *, skip: int = 0) -> xr.Dataset:
        """Error and spread of every run per variable, depth band and time.

        Args:
            bands: from where to where, m, by name; see `by_band`.
            skip: cycles at the beginning that do not count.

        Returns `error`, `spread` and `ratio` = spread / error, (run, state, band, time), root mean squares over area
        in the unit of the variable; `state` is background or analysis.
        """
        parts = [by_band(r.cycles.isel(time=slice(skip, None)), r.analysis, bands) for r in self.runs.values()]
        return xr.concat(parts, xr.Variable("run", list(self.runs)))

    def summary(
        self, bands: Mapping[str, tuple[float, float]] | None = None, *, skip: int = 0, state: str = "analysis"
    ) -> xr.Dataset:
        """As `scores`, root mean squares over time, (run, band); with `gain` = 1 - error / error of the free run."""
        scores = self.scores(bands, skip=skip).sel(state=state)
        out = ((scores[["error", "spread"]] ** 2).mean("time")) ** 0.5
        out = out.assign(ratio=out["spread"] / out["error"])
        return out.assign(gain=1 - out["error"] / out["error"].sel(run=FREE, drop=True)) if FREE in self.runs else out


def twin(
    nature: Emulator,
    truth: State,
    emulator: Emulator,
    ensemble: State,
    network: Network,
    analysis: Mapping[str, Method] | Method,
    *,
    cycles: int,
    store: str | Path,
    every: int = 1,
    forcing: Forcing | None = None,
    nature_forcing: Forcing | None = None,
    noise: Noise | None = None,
    quality: Quality | None = None,
    bias: Debiased | None = None,
    increments: int = 0,
    free: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Twin:
    """Run a twin experiment: nature run, observations, free run, and cycles of one analysis or several.

    Args:
        nature: makes the truth; its step divides that of `emulator`.
        truth: its initial state, one member.
        emulator: makes the forecasts; not the nature run itself, if the experiment is to say something of the world.
        ensemble: its initial state.
        network: what observes the truth: an instrument, or several.
        analysis: one, or several by name.
        cycles: number of observation times.
        store: a folder, where `truth.zarr` and a store for each run are kept.
        every: emulator steps from one observation time to the next.
        forcing: of the emulator.
        nature_forcing: of the nature run, default that of the emulator.
        noise: of truth, observations and ensemble, in streams of their own; `Noise(0)` if not given.
        quality, bias, increments: see `cycle`.
        free: also run the ensemble without observations.
        resume: go on with what was cut short, with more cycles, or with other analyses beside those that are there.
        overwrite: replace what is there.
        progress: show progress bars.

    Raises ValueError unless all fits together; otherwise as `rollout` and `assimilate`.
    """
    noise = Noise(0) if noise is None else noise
    if len(truth.members) != 1:
        raise ValueError(f"twin: wanted a truth of one member, got {truth.members}; choose with `state.sel`")
    if cycles < 1 or every < 1 or emulator.dt % nature.dt:
        raise ValueError(
            f"twin: wanted cycles >= 1, every >= 1 and steps of the nature run ({nature.dt}) that divide those of the "
            f"emulator ({emulator.dt}), got cycles={cycles}, every={every}"
        )
    folder = Path(store)
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    apart = every * (emulator.dt // nature.dt)
    nature_run = rollout(
        nature, truth, forcing if nature_forcing is None else nature_forcing, steps=cycles * apart,
        store=folder / "truth.zarr", noise=noise.stream("nature"), title="nature run", resume=resume, progress=progress,
    )  # fmt: skip
    known = Source.open(nature_run, emulator.layout)
    named = dict(analysis) if isinstance(analysis, Mapping) else {type(analysis).__name__: analysis}
    if free:
        named = {FREE: NoAnalysis(), **named}
    runs = {}
    for name, method in named.items():
        runs[name] = assimilate(
            emulator, ensemble, forcing, observe(states_of(nature_run, nature.layout), network, noise, every=apart),
            method, noise, store=folder / f"{_file_name(name)}.zarr", quality=quality, bias=bias, increments=increments,
            truth=lambda time: known.state(time, (0,)), title=name, resume=resume, steps=cycles, progress=progress,
        )  # fmt: skip
    return Twin(nature_run, runs)


def open_twin(store: str | Path) -> Twin:
    """Open a twin experiment that was run; raises FileNotFoundError if there is none, SourceError if cut short."""
    folder = Path(store)
    opened = [open_assimilation(p.parent.parent) for p in sorted(folder.glob("*.zarr/cycles/zarr.json"))]
    runs = {r.title: r for r in opened}
    first = {FREE: runs.pop(FREE)} if FREE in runs else {}
    return Twin(open_store(folder / "truth.zarr"), {**first, **runs})


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)
