"""Micro-batches: an emulator that takes many members through a step a few at a time, always in one shape."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..emulators import Draws, Emulator, State
from ..emulators.emulator import Wrapped

__all__ = ["Batched", "in_batches", "out_of_memory"]


@dataclass(frozen=True, eq=False)
class Batched(Wrapped):
    """An emulator whose steps run members in micro-batches of one shape; see `in_batches`.

    Attributes:
        batch: members at once, to begin with.
    """

    batch: int
    _now: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"a micro-batch has at least one member, got {self.batch}")
        self._now[:] = [self.batch]

    @property
    def size(self) -> int:
        """Members at once now: less than `batch` if that did not fit into memory."""
        return self._now[0]

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """One step of all members; after an out-of-memory error in smaller batches from there on."""
        total, done = len(state.members), 0
        if forcing is not None and len(forcing.members) not in (1, total):
            raise ValueError(f"a step of {total} members needs forcing of 1 or {total}, got {len(forcing.members)}")
        if not total:
            return self.emulator.step(state, forcing, noise)
        parts: list[Tensor] = []
        whole: Tensor | None = None
        while done < total:
            end = min(done + self.size, total)
            some, driven = _rows(state, done, end, self.size), _shared(forcing, state, done, end, self.size)
            new = self._attempt(some, driven, noise)
            if new is None:
                self._halve()
                continue
            part, time, layout = new.data[: end - done], new.time, new.layout
            if torch.is_grad_enabled():
                parts.append(part)
            else:  # the parts do not pile up beside the whole
                whole = _like(part, total) if whole is None else whole
                whole[done:end] = part
            done = end
            del new, part, some, driven  # before the next batch needs the room
        return State(torch.cat(parts) if whole is None else whole, time, layout, state.members)

    def _attempt(self, state: State, forcing: State | None, noise: Draws) -> State | None:
        """The step of a micro-batch, or None if it did not fit into memory (and is not a single member)."""
        try:
            return self.emulator.step(state, forcing, noise)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if self.size == 1:
                error.add_note("one member does not fit: free memory on the device, or use a lower precision")
                raise
        return None  # outside the handler: the error's traceback, which holds tensors, is gone

    def _halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before, self._now[0] = self.size, self.size // 2
        warnings.warn(
            f"out of memory with {before} members at once: the run goes on with {self.size}, in the same step",
            RuntimeWarning,
            stacklevel=3,
        )


def in_batches(emulator: Emulator, batch: int) -> Batched:
    """An emulator that takes its members through each step `batch` at a time, in the same bits.

    Every call has exactly `batch` members, so that compiled code and CUDA graphs see one shape: the last is filled up
    by repeating a member and cut. Forcing is shared by the micro-batches; one row serves all members. When memory runs
    out, the batch is halved for the rest of the run, with a warning, and the step goes on.

    Raises ValueError for a batch below 1.
    """
    return Batched(emulator.emulator if isinstance(emulator, Batched) else emulator, batch)


def _rows(state: State, begin: int, end: int, batch: int) -> State:
    """Members begin to end, as views where they fill a batch, else with the last one repeated."""
    if end - begin == batch:
        return replace(state, data=state.data[begin:end], members=state.members[begin:end])
    rows = [*range(begin, end), *[end - 1] * (batch - end + begin)]
    return replace(state, data=state.data[rows], members=tuple(state.members[i] for i in rows))


def _shared(forcing: State | None, state: State, begin: int, end: int, batch: int) -> State | None:
    """The forcing of members begin to end; what all members share is not copied."""
    if forcing is None:
        return None
    if len(forcing.members) > 1 and forcing.data.stride(0):
        return _rows(forcing, begin, end, batch)
    members = state.members[begin:end] + state.members[end - 1 : end] * (batch - end + begin)
    return replace(forcing, data=forcing.data[:1].expand(batch, -1, -1, -1), members=members)


def _like(part: Tensor, rows: int) -> Tensor:
    """Room for all members, in the memory format of some."""
    last = part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty((rows, *part.shape[1:]), dtype=part.dtype, device=part.device, memory_format=form)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "DefaultCPUAllocator")
    )
