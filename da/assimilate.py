"""Assimilation experiments that are kept: a cycle whose background, analysis, observations and scores go to one store.

Killed at any moment and run again with `resume=True`, an experiment ends in the same bits.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, Layout, Noise, State
from ..ensembles import Output
from ..ensembles.block import Block
from ..ensembles.durable import Background
from ..ensembles.experiment import require_finite, weights_of
from ..ensembles.record import Recorder, made_by
from ..ensembles.recording import TIME_UNITS, Recording, whole
from .archive import Archive, Assimilation, open_assimilation
from .bias import Debiased
from .cycle import Cycle, Method, cycle
from .observations import ATTRIBUTES, Observations
from .operators import located, newest, operator_for
from .quality import Quality
from .scores import against, newest_channels

Column = tuple[np.ndarray, tuple[str, ...], Mapping[str, Any]]


def assimilate(
    emulator: Emulator,
    state: State,
    forcing: Forcing | None,
    observations: Iterable[Observations],
    analysis: Method,
    noise: Draws | None = None,
    *,
    store: str | Path,
    quality: Quality | None = None,
    bias: Debiased | None = None,
    increments: int = 0,
    truth: Callable[[cftime.datetime], State] | None = None,
    output: Output | None = None,
    title: str = "",
    resume: bool = False,
    overwrite: bool = False,
    restart_minutes: float = 5.0,
    steps: int | None = None,
    progress: bool = False,
) -> Assimilation:
    """Cycle an ensemble and keep background, analysis, observations, innovations and why some were not used.

    Args:
        emulator, state, forcing, observations, analysis, noise, quality, bias, increments: see `cycle`; gradients are
            off.
        store: path of the Zarr store.
        truth: the true state at a time, of one member, such as `Source.open(nature_run, layout).state`; error and
            spread of background and analysis are then kept for every cycle and channel.
        output: what is kept of members; default every value. The experiment goes on from full states in any case.
        title: of the store.
        resume: continue an experiment that was cut short, with the same arguments, in the same bits; or one whose
            observations had come to an end, with more. Observations up to where it is are passed over.
        overwrite: replace an existing store.
        restart_minutes: how often it is made sure of what was written, and of the state it goes on from.
        steps: how many cycles will come, for the progress bar.
        progress: show one.

    Returns the store, opened lazily. Raises what `cycle` does; StoreExistsError; OtherExperimentError if the store is
    of another experiment, saying what differs; ValueError for an initial state that is not finite.
    """
    noise, output, path = Noise(0) if noise is None else noise, output or Output(), Path(store)
    if output.every > 1 or output.mean:
        raise ValueError(
            f"assimilate: every analysis is kept, got an output of every={output.every}; select afterwards"
        )
    emulator.layout.require_same(state.layout, "assimilate: initial state")
    require_finite(state, "assimilate: initial state")
    says = {
        "emulator": repr(emulator), "weights": weights_of(emulator), "forcing": repr(forcing), "noise": repr(noise),
        "analysis": repr(analysis), "quality": repr(quality), "bias": repr(bias), "increments": increments,
        "output": repr(output), "truth": truth is not None, "begins": str(state.time), "members": list(state.members),
    }  # fmt: skip
    if resume and (path / "cycles" / "zarr.json").exists():
        archive = Archive(path)
        archive.require_same(says)
        archive.reopen()
    else:
        archive = Archive.create(path, {**made_by(state, says), **says}, title or "assimilation", overwrite=overwrite)
    with torch.no_grad(), Background() as background:
        journal = _Journal(archive, emulator.layout, output, background, truth, forcing)
        begun = journal.begin(state)
        left = (o for o in observations if o.time > newest(begun.state))
        run = cycle(
            emulator, begun.state, forcing, left, analysis, noise, quality=quality, bias=bias, increments=increments,
            carried=begun.carried, monitor=journal.take,
        )  # fmt: skip
        made_sure = clock.monotonic()
        try:
            for _ in _shown(run, journal, path.name if progress else "", steps):
                if clock.monotonic() - made_sure > 60 * restart_minutes:
                    journal.commit()
                    made_sure = clock.monotonic()
        finally:
            journal.commit()
    journal.finish()
    return open_assimilation(path)


def _shown(run: Iterator[State], journal: _Journal, name: str, total: int | None) -> Iterator[int]:
    """Numbers of finished cycles, one by one, with a bar."""
    before = journal.cycles
    with Progress(disable=not name) as bar:
        task = bar.add_task(name, total=total, completed=before)
        for _ in run:
            if journal.cycles > before:
                before = journal.cycles
                bar.update(task, completed=before)
                yield before


@dataclass(eq=False)
class _Begun:
    state: State
    carried: dict[str, Tensor] | None


@dataclass(eq=False)
class _Journal:
    """Takes cycles and has them written."""

    archive: Archive
    layout: Layout
    output: Output
    background: Background
    truth: Callable[[cftime.datetime], State] | None
    dates: Forcing | None
    cycles: int = 0
    _last: Cycle | None = None
    _tables: list[dict[str, dict[str, Column]]] = field(default_factory=list)
    _recorders: dict[str, Recorder] = field(default_factory=dict)

    def begin(self, state: State) -> _Begun:
        """Make room, or find where the experiment goes on."""
        selection = self.output.selection(self.layout)
        blocks = {}
        for name in ("analysis", "background"):
            folder = self.archive.path / name
            if (folder / "blocks" / "0" / "zarr.json").exists():
                recording = Recording(folder)
                recording.reopen()
                group = recording.blocks()[0]
            else:
                recording = Recording.create(
                    folder, (selection.layout,), state.members, state.time.calendar, state.data.dtype,
                    wave=len(state.members), packing=self.output.packing, title=name, overwrite=True,
                )  # fmt: skip
                group = recording.add_block(slice(0, len(state.members)), selection.layout.names)
            blocks[name] = Block(recording, group, (selection.layout,), self.output.packing, self.layout)
        blocks["analysis"].tidy()
        begun = blocks["analysis"].restart()
        if begun is None:
            blocks["analysis"].begin(state)
            goes_on, carried = state, None
        else:
            goes_on, carried = begun[0].to(state.data.device), {k: v.to(state.data.device) for k, v in begun[1].items()}
            if not torch.equal(blocks["analysis"].initial().data, state.data.cpu()):  # type: ignore[union-attr]
                raise ValueError(f"{self.archive.path} began with another state; give the state of that experiment")
        self.cycles = blocks["analysis"].steps
        self._cut(blocks)
        for name, block in blocks.items():
            known = block.recording.dates()
            self._recorders[name] = Recorder(
                block, self.background, self.output, (selection,), None, self.dates, known[-1] if known else None,
                grows=True,
            )  # fmt: skip
        if not blocks["analysis"].records:
            self._recorders["analysis"].write(state)
        return _Begun(goes_on, carried)

    def _cut(self, blocks: Mapping[str, Block]) -> None:
        """Forget what lies beyond the last cycle that was committed."""
        self.archive.cut("cycles", self.cycles)
        given = self.archive.column("cycles", "given") if self.cycles else np.zeros(0)
        self.archive.cut("observations", int(given.sum()))
        records = self.archive.column("cycles", "records") if self.cycles else np.zeros(0)
        kept = {"analysis": blocks["analysis"].records, "background": int(records.sum())}
        for name, block in blocks.items():
            group = block.group
            if whole(group, "kept") > kept[name]:
                group.update_attributes({"records": kept[name], "kept": kept[name]})
            dates = block.recording.array("time")[: kept[name]]
            block.recording.extend_time(np.asarray(dates))

    def take(self, done: Cycle) -> None:
        """What happened in one cycle."""
        records = len(self._recorders["background"].write(done.background))
        self._recorders["analysis"].write(done.analysis)
        self._tables.append({"observations": self._rows(done), "cycles": self._row(done, records)})
        self._last, self.cycles = done, self.cycles + 1

    def commit(self) -> None:
        """Make sure of what was taken, once the records before are written."""
        if self._last is None:
            return
        tables, self._tables = self._tables, []
        self.background.do(partial(self._append, tables))
        self._recorders["background"].commit(self.cycles)
        taken = self._recorders["analysis"]
        taken.sums = dict(self._last.carried)
        taken.commit(self.cycles, self._last.goes_on)
        self._last = None

    def _append(self, tables: list[dict[str, dict[str, Column]]]) -> None:
        seen = [t["observations"] for t in tables]
        joined = {
            key: (np.concatenate([rows[key][0] for rows in seen]), dims, attrs)
            for key, (_, dims, attrs) in seen[0].items()
        }
        self.archive.append("observations", joined)
        for one in tables:  # which need not have the same columns: an analysis without observations reports nothing
            self.archive.append("cycles", one["cycles"])
        if self.truth is not None:
            rows = newest_channels(self.layout)
            labels = [(f.name, k) for f in self.layout.fields for k in range(f.channels)]
            assert len(labels) == rows.stop - rows.start
            names, levels = (np.asarray(x) for x in zip(*labels, strict=True))
            self.archive.coordinate("cycles", "variable", names, "channel", {"long_name": "CF name of the variable"})
            self.archive.coordinate("cycles", "level", levels, "channel", {"long_name": "level from the surface down"})
        self.archive.files.sync()

    def finish(self) -> None:
        """Declare the store complete."""
        for recorder in self._recorders.values():
            recorder.block.recording.finish()
        self.archive.finish()

    # --- rows ------------------------------------------------------------------------------------

    def _rows(self, done: Cycle) -> dict[str, Column]:
        """Of the observations of a cycle."""
        checked = done.checked
        given, dim = checked.observations, ("observation",)
        error = np.array(given.error)
        error[checked.flags == 0] = checked.used.error
        labels = np.asarray(["", *checked.reasons])[checked.flags]
        stamps = np.asarray(cftime.date2num(given.times, TIME_UNITS, given.time.calendar), dtype="float64")
        columns = {n: getattr(given, n) for n in ("variable", "kind", "lat", "lon", "depth", "value")}
        out: dict[str, Column] = {n: (np.asarray(v), dim, ATTRIBUTES[n]) for n, v in columns.items()}
        out["error"] = error, dim, ATTRIBUTES["error"]
        out["reason"] = labels, dim, {"long_name": "why it was not used, empty if it was"}
        out["cycle"] = np.full(len(given), self.cycles, "int32"), dim, {"long_name": "number of the cycle"}
        out["time"] = np.round(stamps).astype("int64"), dim, {"units": TIME_UNITS, "calendar": given.time.calendar}
        for name, state in (("background", done.background), ("analysis", done.analysis)):
            mean, spread = _seen(state, given)
            out[name] = mean, dim, {"long_name": f"mean over members of the {name}, where it was observed"}
            out[f"{name}_spread"] = spread, dim, {"long_name": f"standard deviation over members of the {name} there"}
        return out

    def _row(self, done: Cycle, records: int) -> dict[str, Column]:
        """Of the cycle itself."""
        time, dim = newest(done.analysis), ("time",)
        stamp = np.asarray([round(float(cftime.date2num(time, TIME_UNITS, time.calendar)))], dtype="int64")
        counts = {"given": len(done.checked.observations), "used": len(done.checked.used), "records": records}
        out: dict[str, Column] = {
            n: (np.asarray([v], "int64"), dim, {"long_name": _COUNTS[n]}) for n, v in counts.items()
        }
        out["time"] = stamp, dim, {"units": TIME_UNITS, "calendar": time.calendar}
        if "inflation" in done.carried:
            learned = done.carried["inflation"].cpu().numpy()[None]
            dims = (
                (*dim, *self.layout.dims) if learned.ndim == 3 else (*dim, *(f"n{k}" for k in range(1, learned.ndim)))
            )
            out["inflation"] = learned, dims, {"long_name": "inflation of variances for the next cycle", "units": "1"}
        if "bias" in done.carried:
            said = {"long_name": "number and bias of each kind of observations that is corrected"}
            out["bias"] = done.carried["bias"].cpu().numpy()[None], (*dim, "bias_of"), said
        for name, numbers in done.report.items():
            out[name] = (
                numbers[None].astype("float64"),
                (*dim, "member"),
                {"long_name": f"{name.replace('_', ' ')} of the analysis"},
            )
        if self.truth is not None:
            for name, state in (("background", done.background), ("analysis", done.analysis)):
                pair = against(state, self.truth(state.time).to(state.data.device))
                for what, squares in zip(("error", "spread"), pair, strict=True):
                    said = {"long_name": f"{what} of the {name}, root mean square over area"}
                    out[f"{name}_{what}"] = squares.sqrt().cpu().numpy()[None], (*dim, "channel"), said
        return out


_COUNTS = {
    "given": "observations of the cycle",
    "used": "observations that were used",
    "records": "records of the background",
}


def _seen(state: State, observations: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over members of what would be observed, (observation,); NaN where nothing is."""
    there = located(state.layout, observations)
    mean, spread = np.full(len(there), np.nan), np.full(len(there), np.nan)
    if there.any():
        seen = operator_for(state.layout, observations.select(there)).apply(state).double().cpu()
        mean[there] = seen.mean(0).numpy()
        spread[there] = seen.std(0).numpy() if len(seen) > 1 else 0.0
    return mean, spread
