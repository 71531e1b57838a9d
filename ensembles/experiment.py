"""An ensemble experiment: what makes a run what it is, and whether a store is of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
from torch import nn

from ..emulators import Draws, Emulator, Forcing, State, StoreExistsError
from .block import Block
from .dates import run_dates
from .output import Output, Selection
from .record import made_by
from .recording import Recording, differences, numbers_of
from .statistics import Statistic

__all__ = ["Experiment", "OtherRunError", "require_finite", "weights_of"]


class OtherRunError(ValueError):
    """The store at the path is of another run; nothing was touched."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a run is. Which processes run it, in which waves and batches, makes no difference to what comes out.

    Attributes:
        members: numbers of all members.
        emulator, state, forcing, noise, steps, output: see `rollout`.
        statistics, statistics_every, with_forcing, title: see there.
    """

    emulator: Emulator
    state: State | Callable[[tuple[int, ...]], State]
    forcing: Forcing | None
    noise: Draws
    members: tuple[int, ...]
    steps: int
    output: Output
    statistics: tuple[Statistic, ...]
    statistics_every: int
    with_forcing: bool
    title: str

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) < len(self.members) or min(self.members) < 0:
            raise ValueError(f"a run needs one or more members of different numbers >= 0, got {self.members}")
        if self.steps < 0 or self.statistics_every < 1:
            raise ValueError(
                f"a run has 0 or more steps, and statistics of every 1 or more records; got {self.steps} and "
                f"{self.statistics_every}"
            )
        if not self.output.variables and self.output.variables is not None and not self.statistics:
            raise ValueError("neither variables nor statistics are to be kept; nothing would come of the run")
        layout, names = self.emulator.layout, set[str]()
        for statistic in self.statistics:
            f = layout.field(statistic.variable)
            shapes = statistic.part_shapes((f.channels, *layout.shape[1:]))
            empty = {n: torch.zeros(shape, dtype=dtype) for n, (shape, dtype) in shapes.items()}
            made = {*statistic.finished(empty), *statistic.coords()}
            if made & names:
                raise ValueError(
                    f"two statistics are named {', '.join(sorted(made & names))}; join them into one, such as one "
                    "Exceedance of several thresholds"
                )
            names |= made

    def initial(self, members: tuple[int, ...]) -> State:
        """The state some members begin with; raises ValueError if it does not fit, or is not finite."""
        if isinstance(self.state, State):
            state = self.state if self.state.members == members else self.state.sel(members)
        else:
            state = self.state(members)
        what = f"rollout of {type(self.emulator).__name__}: initial state"
        self.emulator.layout.require_same(state.layout, what)
        require_finite(state, what)
        if state.members != members:
            raise ValueError(f"{what}: wanted members {members}, got {state.members}")
        return state

    @cached_property
    def example(self) -> State:
        """The initial state of the first member: of its date, dtype and device."""
        return self.initial(self.members[:1])

    @cached_property
    def selections(self) -> tuple[Selection, ...]:
        """What is kept of states and, with forcing, of it."""
        first = self.output.selection(self.emulator.layout)
        if not self.with_forcing or self.forcing is None:
            return (first,)
        layout = self.forcing.at(self.example.time, self.members[:1]).layout
        return first, replace(self.output, variables=None).selection(layout)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of all that is kept of members."""
        return tuple(n for s in self.selections for n in s.layout.names)

    @cached_property
    def dates(self) -> list[cftime.datetime]:
        """Of all records, kept or not."""
        return run_dates(self.emulator.layout, self.example.time, self.emulator.dt, self.steps, self.forcing)

    @cached_property
    def says(self) -> dict[str, Any]:
        """What makes it this experiment and no other; variables, members and steps may become more."""
        return {
            "emulator": repr(self.emulator),
            "weights": weights_of(self.emulator),
            "forcing": repr(self.forcing),
            "noise": repr(self.noise),
            "output": repr(replace(self.output, variables=None)),
            "statistics": [repr(s) for s in self.statistics],
            "statistics_every": self.statistics_every,
            "with_forcing": self.with_forcing,
            "begins": str(self.example.time),
        }

    def require_forcing(self) -> None:
        """Raise SourceError now, rather than hours later, if the forcing ends too early."""
        require = getattr(self.forcing, "require", None)  # a stored forcing ends somewhere, a nature run's does not
        if require is not None:
            require(self.example.time, self.steps - (0 if self.with_forcing else 1), self.emulator.dt)

    # --- its store -------------------------------------------------------------------------------

    def prepare(self, path: Path, wave: int, resume: bool, overwrite: bool) -> None:
        """Make the store, or make an existing one ready to go on: longer, of more members, of more variables.

        Raises StoreExistsError if there is one and it is neither to be continued nor replaced; OtherRunError if it is
        of another experiment, saying what differs.
        """
        there = (path / "blocks" / "zarr.json").exists()
        if path.exists() and not (overwrite or (resume and there)):
            raise StoreExistsError(
                f"{path} exists{'' if there else ' and is no store of a run'}; nothing was written. Choose another "
                "path, pass resume=True to go on with a store, or overwrite=True"
            )
        layouts = tuple(s.layout for s in self.selections)
        dtype, packing = self.example.data.dtype, self.output.packing
        if resume and there:
            recording = Recording(path)
            self._require_same(recording)
            recording.reopen()
        else:
            for name in self.variables:  # a packing that does not know a variable says so now
                packing.attributes(name)
            recording = Recording.create(
                path, layouts, self.members, self.example.time.calendar, dtype, wave=wave, packing=packing,
                bounds=self.output.mean, title=self.title or f"{type(self.emulator).__name__} ensemble of "
                f"{len(self.members)}", overwrite=overwrite, provenance=made_by(self.example, self._says_more()),
            )  # fmt: skip
        recording.extend_members(self.members)
        for layout in layouts:
            recording.add(layout, layout.names, dtype, packing, self.output.mean)
        recording.extend_time(*self._stamps())
        self._add_blocks(recording)

    def _says_more(self) -> dict[str, Any]:
        return {**self.says, "checkpoint": getattr(self.emulator, "checkpoint", None)}

    def _require_same(self, recording: Recording) -> None:
        have, path = recording.provenance, recording.path
        differs = differences(have, self.says)
        if differs:
            raise OtherRunError(
                f"{path} is of another experiment; nothing was touched. Choose another path, or make these the "
                "same:\n  " + "\n  ".join(differs)
            )
        members, blocks = recording.members, list(self.blocks(recording))
        if self.members[: len(members)] != members:
            raise OtherRunError(
                f"{path} holds members {members}; a run that goes on has these first, this one has {self.members}"
            )
        steps = max((b.steps for b in blocks), default=0)
        if steps > self.steps:
            raise OtherRunError(
                f"{path} reaches {steps} steps: it is not part of a run of {self.steps} steps; ask for as many or more"
            )
        dropped = {n for b in blocks for n in b.variables} - set(self.variables)
        if dropped:
            raise OtherRunError(f"{path} also keeps {', '.join(map(str, sorted(dropped)))}; ask for them as well")
        for block in blocks:
            began, begins = block.initial(), self.initial(block.members)
            if began is not None and not torch.equal(began.data, begins.data.cpu()):
                rows = (began.data != begins.data.cpu()).flatten(1).any(1)
                other = [m for m, different in zip(block.members, rows.tolist(), strict=True) if different]
                raise OtherRunError(f"{path}: members {other} began with another state; give the state of that run")

    def _stamps(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Dates of the records that are kept, and the bounds of means."""
        numbers, every = numbers_of(self.dates, self.example.time.calendar), self.output.every
        if not self.output.mean:
            return numbers[::every], None
        count = len(numbers) // every
        bounds = np.stack([numbers[: count * every : every], numbers[every - 1 :: every]], 1)
        return bounds.sum(1) // 2, bounds

    def _add_blocks(self, recording: Recording) -> None:
        """Blocks of members, or of variables, that have none yet."""
        have: dict[tuple[int, int], set[str]] = {}
        for block in self.blocks(recording):
            have.setdefault((block.rows.start, block.rows.stop), set()).update(block.variables)
        for (first, stop), names in have.items():
            more = [n for n in self.variables if n not in names]
            if more:
                recording.add_block(slice(first, stop), more, statistics=False)
        begin = max((stop for _, stop in have), default=0)
        while begin < len(self.members):  # a block ends where shards do
            stop = min(begin - begin % recording.wave + recording.wave, len(self.members))
            recording.add_block(slice(begin, stop), self.variables, statistics=True)
            begin = stop

    def blocks(self, recording: Recording) -> Iterator[Block]:
        """All blocks of its store."""
        layouts = tuple(s.layout for s in self.selections)
        return (
            Block(recording, group, layouts, self.output.packing, self.emulator.layout) for group in recording.blocks()
        )


def weights_of(emulator: object) -> str:
    """A digest of the numbers in all networks of an emulator and of those inside it, "" if there are none."""
    networks = list(_networks(emulator))
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16] if networks else ""


def _networks(part: object) -> Iterator[nn.Module]:
    """Networks in the fields of an emulator, of emulators it is made of, and in tuples of them."""
    if isinstance(part, nn.Module):
        yield part
    elif isinstance(part, tuple):
        for one in part:
            yield from _networks(one)
    elif is_dataclass(part) and hasattr(part, "step"):
        for f in fields(part):
            yield from _networks(getattr(part, f.name))


def require_finite(state: State, what: str) -> None:
    """Raise ValueError that names variable, member and time unless all values are finite."""
    if torch.isfinite(state.data.sum()):  # infinity or NaN anywhere makes the sum so
        return
    wrong = ~torch.isfinite(state.data)
    if not wrong.any():
        return
    member, channel, j, i = torch.nonzero(wrong)[0].tolist()
    layout = state.layout
    slot, name = next(
        (s, n) for s in range(len(layout.slots)) for n in layout.names
        if layout.channels(n, s).start <= channel < layout.channels(n, s).stop
    )  # fmt: skip
    level = channel - layout.channels(name, slot).start
    raise ValueError(
        f"{what}: {int(wrong.sum())} values are not finite, the first in {name} of member {state.members[member]} at "
        f"{state.time}, slot {layout.slots[slot]}, level {level}, row {j}, column {i}; look where it comes from"
    )
