"""Proof of a store: every shard against its checksum, and any member computed again, alone."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr
from rich.progress import track

from ..emulators import Draws, Emulator, Forcing, Noise, SourceError
from .block import Block
from .experiment import Experiment, OtherRunError
from .output import Output
from .packing import Exact
from .recording import Recording, differences, whole
from .rollout import rollout
from .shards import Array

__all__ = ["DamagedError", "reproduce", "verify"]

_NOISE = re.compile(r"Noise\(seed=(\d+), path='([^']*)'\)")


class DamagedError(ValueError):
    """Files of a store are missing, or are not what was written."""


def verify(store: str | Path, *, progress: bool = False) -> int:
    """Read every shard that is said to be on disk; how many there are.

    Chunks carry their checksums (CRC-32C), which whoever reads them checks; this also finds what is missing, which
    readers take for land.

    Args:
        store: path of the store, complete or not.
        progress: show a progress bar.

    Raises DamagedError that names every file that is missing or damaged; FileNotFoundError if there is no store.
    """
    path = Path(store)
    if not (path / "zarr.json").exists():
        raise FileNotFoundError(f"no store at {path}; nothing to verify")
    shards = list(_shards(Recording(path)))
    wrong = []
    for array, file, region in track(shards, description=path.name, disable=not progress):
        if not (path / file).exists():
            wrong.append(f"{file}: missing")
            continue
        try:
            array[region]
        except Exception as error:  # whatever a codec makes of damaged bytes
            wrong.append(f"{file}: {type(error).__name__}: {error}")
    if wrong:
        raise DamagedError(
            f"{path}: {len(wrong)} of {len(shards)} shards are missing or damaged; `reproduce` computes a member "
            "again:\n  " + "\n  ".join(wrong)
        )
    return len(shards)


def _shards(recording: Recording) -> Iterator[tuple[Array, str, tuple[slice, ...]]]:
    """Array, file and region of every shard of committed records."""
    seen = set()
    for block in recording.blocks():
        first, stop, kept = (whole(block, key) for key in ("first", "stop", "kept"))
        for name in block.attrs["variables"]:  # type: ignore[union-attr]
            array = recording.array(str(name))
            sizes = array.shards or array.chunks
            rows = range(first // sizes[0], -(-stop // sizes[0]))
            for at in product(rows, range(-(-kept // sizes[1])), *([0],) * (len(sizes) - 2)):
                file = f"{array.path}/{array.metadata.encode_chunk_key(at)}"
                region = tuple(slice(i * n, (i + 1) * n) for i, n in zip(at, sizes, strict=True))
                if file not in seen:
                    seen.add(file)
                    yield array, file, region


def reproduce(
    store: str | Path,
    emulator: Emulator,
    forcing: Forcing | None = None,
    *,
    member: int,
    time: slice | None = None,
    noise: Draws | None = None,
    output: Output | None = None,
    with_forcing: bool = False,
) -> xr.Dataset:
    """One member of a run computed again, alone, from the state it began with: equal to what is stored, bit by bit.

    Args:
        store: of the run, complete or not.
        emulator, forcing, output, with_forcing: as the run had them.
        member: its number.
        time: of the records wanted, e.g. `slice("2000-01", "2000-03")`; None for all that are stored.
        noise: as the run had it; default what the store says.

    Returns:
        In memory: the variables and times that the store has, (member = 1, time, ...).

    Raises KeyError for a member that is not in the store; OtherRunError if the run was made otherwise, saying what
    differs; SourceError if the member has not begun, or `time` holds no record.
    """
    recording = Recording(Path(store))
    kept = output or Output()
    block = _block_of(recording, member, emulator, kept)
    start = block.initial()
    if start is None or not block.kept:
        raise SourceError(f"{store}: member {member} has no records yet; finish the run with resume=True")
    if noise is None:
        told = _NOISE.fullmatch(str(recording.provenance.get("noise", "")))
        if told is None:
            raise OtherRunError(f"{store} does not say what noise it was made with; give noise=")
        noise = Noise(int(told[1]), told[2])
    steps = _steps_to(recording, block, kept, time)
    one = Experiment(emulator, start.sel((member,)), forcing, noise, (member,), steps, kept, (), 1, with_forcing, "")
    says = {k: v for k, v in one.says.items() if not k.startswith("statistics")}
    if differs := differences(recording.provenance, says):
        raise OtherRunError(f"{store} was made otherwise:\n  " + "\n  ".join(differs))
    with tempfile.TemporaryDirectory() as folder:
        made = rollout(
            emulator, one.initial((member,)), forcing, steps=steps, store=Path(folder) / "one.zarr", noise=noise,
            output=kept, with_forcing=with_forcing,
        )  # fmt: skip
        return (made if time is None else made.sel(time=time)).load()


def _block_of(recording: Recording, member: int, emulator: Emulator, output: Output) -> Block:
    for group in recording.blocks():
        layouts = (output.selection(emulator.layout).layout,)
        block = Block(recording, group, layouts, Exact(), emulator.layout)
        if member in block.members:
            return block
    raise KeyError(f"{recording.path} has no member {member}; it has {recording.members}")


def _steps_to(recording: Recording, block: Block, output: Output, time: slice | None) -> int:
    """How many steps lead to the last record of `time`."""
    if time is None:
        return block.steps
    stamps = xr.CFTimeIndex(recording.dates()[: block.kept])  # type: ignore[no-untyped-call]
    found = np.arange(block.kept)[stamps.slice_indexer(time.start, time.stop)]
    if not len(found):
        raise SourceError(f"{recording.path} has no record in {time}; it has {stamps[0]} to {stamps[-1]}")
    last = int(found[-1])
    records = (last + 1) * output.every if output.mean else last * output.every + 1
    slots = len(block.whole.slots)
    each = (block.records - slots) // max(block.steps, 1)  # records that a step adds
    return max(0, -(-(records - slots) // max(each, 1)))
