"""What a step of an emulator costs and what this machine can do, both measured: the two halves of a plan.

A step is run under a dispatch mode that sees every operator. It counts the operations of matrix products,
convolutions and attention (2 for a multiply-add, the rest is a few per cent), the bytes that operators read and
write, and the tensors alive at any moment. Comparing batches of one to eight members tells what grows with members
from what does not. With the rates this gives the roofline of Williams, Waterman and Patterson (2009, Comm.
ACM 52, 65).
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..emulators import Draws, Emulator, State
from .batches import out_of_memory

__all__ = ["Rates", "StepCost", "elapsed", "measure_rates", "memory_limit", "repeated", "shared", "step_cost"]

# Batches that are counted, by the seconds a step of one member may take. The peak is the largest of sums that grow with
# the batch, each at its own rate, so it may bend upwards: the more batches, the surer its last slope.
_COUNTED = ((0.25, (1, 2, 4, 8)), (1.0, (1, 2, 3)), (float("inf"), (1, 2)))
_DISK_BYTES = 2**26


@dataclass(frozen=True)
class StepCost:
    """What one step costs.

    Attributes:
        operations: floating-point operations in products, convolutions and attention that one more member adds.
        fixed_bytes: of the peak of live tensors made within a step, what does not grow with members; without weights.
        member_bytes: what each member of a batch adds to that peak: activations and the new state.
        weight_bytes: tensors that a step reads and neither made nor was given: weights, masks, constants.
        moved_bytes: bytes that operators read and write for one more member, each input and output once.
        dtype: of most numbers that products and convolutions give; the state's where there are none.
    """

    operations: float
    fixed_bytes: int
    member_bytes: int
    weight_bytes: int
    moved_bytes: float
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Rates:
    """What the machine does at best, measured.

    Attributes:
        flops: operations per second of a large matrix product, multiply-add = 2.
        memory: bytes read and written per second by a copy within the device.
        transfer: bytes per second from the device to pinned memory; None where they share memory.
        disk: bytes per second written and synchronised.
    """

    flops: float
    memory: float
    transfer: float | None
    disk: float


def step_cost(emulator: Emulator, state: State, forcing: State | None, noise: Draws) -> StepCost:
    """Count steps of a few members, fewer if they are slow, on the state's device.

    Args:
        emulator: what is measured; it makes one step uncounted, so that what it keeps is counted as weights.
        state: at least one member, which are repeated in turn to fill the batches.
        forcing: of that time, with one row or one per member; None if the emulator wants none.
        noise: what the steps draw from.

    What compiled code fuses and what libraries allocate inside an operator is not seen; on CUDA the allocator's own
    peak is taken where it is higher. Raises ValueError for a state without members.
    """
    if not state.members:
        raise ValueError("the cost of a step is measured on a member, got a state without members")
    with torch.no_grad():
        took = elapsed(lambda: emulator.step(repeated(state, 1), shared(forcing, 1), noise), state.data.device)
        sizes = next(sizes for most, sizes in _COUNTED if took < most)
        counted = list(_counts(emulator, state, forcing, noise, sizes))
    (few, first), (many, last) = counted[0], counted[-1]
    if few == many:  # there was memory for one member only, to whom all is ascribed
        few, first = 0, replace(last, operations=0, peak=0, moved=0)
        counted = [(few, first), *counted]
    peaks = [(n, c.peak) for n, c in counted]
    slope = max(0, *(math.ceil((q - p) / (n - m)) for (m, p), (n, q) in pairwise(peaks)))
    return StepCost(
        operations=(last.operations - first.operations) / (many - few),
        fixed_bytes=max(0, *(peak - slope * n for n, peak in peaks)),
        member_bytes=slope,
        weight_bytes=max(c.weights for _, c in counted),
        moved_bytes=(last.moved - first.moved) / (many - few),
        dtype=last.dtype,
    )


def repeated(state: State, n: int) -> State:
    """A state of n rows, made by repeating the members given in turn, numbers and all."""
    rows = [i % len(state.members) for i in range(n)]
    return replace(state, data=state.data[rows], members=tuple(state.members[i] for i in rows))


def shared(forcing: State | None, n: int) -> State | None:
    """The forcing of n rows: one row is expanded, not copied, several are repeated in turn."""
    if forcing is None or len(forcing.members) > 1:
        return None if forcing is None else repeated(forcing, n)
    return replace(forcing, data=forcing.data.expand(n, -1, -1, -1), members=forcing.members * n)


def elapsed(task: Callable[[], object], device: torch.device) -> float:
    """Seconds that a task takes, with what it started on the device."""
    _synchronise(device)
    began = time.perf_counter()
    task()
    _synchronise(device)
    return time.perf_counter() - began


def measure_rates(device: torch.device | str, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Rates:
    """Measure what device and disk do at best, in about a second, with the threads torch has now.

    Args:
        device: where the emulator runs.
        folder: where a file of 64 MB is written and removed; of one that does not exist yet, the nearest parent.
        dtype: of the matrix product.

    Raises OSError if nothing can be written there.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    size, length = (8192, 2**28) if cuda else (1024, 2**27)
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(a)
    flops = 2 * size**3 / _best(lambda: torch.mm(a, b, out=product), device)
    here, there = (torch.zeros(length, dtype=torch.uint8, device=device) for _ in range(2))
    memory = 2 * length / _best(lambda: there.copy_(here), device)
    transfer = None
    if cuda:
        host = torch.empty(length, dtype=torch.uint8, pin_memory=True)
        transfer = length / _best(lambda: host.copy_(here, non_blocking=True), device)
    return Rates(flops, memory, transfer, _disk_rate(Path(folder)))


def memory_limit(device: torch.device, held: int = 0) -> int:
    """Bytes that a run may have.

    Args:
        device: on CUDA what is free or kept unused by torch, but 5 % of all; elsewhere half of what the computer has
            available.
        held: bytes already on the device that the run needs and that should be counted in, such as weights.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused + held - total // 20)
    return _available() // 2


def _available() -> int:
    """Bytes of main memory that could be had, and not more than a container allows."""
    allowed = Path("/sys/fs/cgroup/memory.max")
    most = allowed.read_text().strip() if allowed.is_file() else "max"
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, int(most)) if most.isdigit() else free


def _best(task: Callable[[], object], device: torch.device, seconds: float = 0.25) -> float:
    """Seconds of the fastest of at least two runs."""
    runs = [elapsed(task, device), elapsed(task, device)]
    while sum(runs) < seconds:
        runs.append(elapsed(task, device))
    return min(runs)


def _disk_rate(folder: Path) -> float:
    folder = next((p for p in (folder, *folder.absolute().parents) if p.is_dir()), Path(tempfile.gettempdir()))
    values = os.urandom(_DISK_BYTES)  # zeros might be compressed
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(values)
        file.flush()
        os.fsync(file.fileno())
        return _DISK_BYTES / (time.perf_counter() - began)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Count:
    operations: float
    peak: int
    moved: int
    weights: int
    dtype: torch.dtype


def _counts(
    emulator: Emulator, state: State, forcing: State | None, noise: Draws, sizes: Sequence[int]
) -> Iterator[tuple[int, _Count]]:
    """Batches and what their steps cost, as far as memory goes."""
    for n in sizes:
        try:
            yield n, _counted(emulator, repeated(state, n), shared(forcing, n), noise)
        except RuntimeError as error:
            if n == 1 or not out_of_memory(error):
                raise
            return


def _counted(emulator: Emulator, state: State, forcing: State | None, noise: Draws) -> _Count:
    """One step, seen operator by operator."""
    device = state.data.device
    meter, flops = _Meter(device), FlopCounterMode(display=False, custom_mapping=_MORE_OPERATIONS)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with flops, meter:
        emulator.step(state, forcing, noise)
    peak = meter.peak
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = max(peak, torch.cuda.max_memory_allocated(device) - before)
    given = {s.data.untyped_storage()._cdata for s in (state, forcing) if s is not None}
    weights = sum(s.nbytes() for key, s in meter.outside.items() if key not in given)
    dtype = max(meter.products, key=lambda d: meter.products[d], default=state.data.dtype)
    return _Count(flops.get_total_flops(), peak, meter.moved, weights, dtype)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches operators: bytes alive that the step made, bytes moved, and storages that came from outside."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.moved = 0
        self.outside: dict[int, torch.UntypedStorage] = {}  # kept, so that no new storage takes their place
        self.products: Counter[torch.dtype] = Counter()
        self._device = device.type
        self._made: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = self._tensors((args, kwargs)), self._tensors(out)
        if func is not torch.ops.aten.lift_fresh.default:  # `torch.tensor(...)`, which is new though it was not made
            for tensor in read:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._made:
                    self.outside[storage._cdata] = storage
        for tensor in written:
            self._see(tensor.untyped_storage())
        if not func.is_view and func.overloadpacket not in _ALLOCATIONS:
            self.moved += sum(_bytes(t) for t in (*read, *written))
        if func.overloadpacket in flop_registry or func.overloadpacket in _MORE_OPERATIONS:
            self.products.update({t.dtype: t.numel() for t in written[:1]})
        return out

    def _tensors(self, tree: Any) -> list[Tensor]:
        leaves = [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
        return [t for t in leaves if t.device.type == self._device and t.layout is torch.strided]

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._made or key in self.outside:
            return
        self._made[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._made.pop(key)


def _bytes(tensor: Tensor) -> int:
    """Bytes that reading a tensor touches: what is expanded, once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    elements = torch.Size([n for n, stride in sizes if stride or not n]).numel()
    return elements * tensor.element_size()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **more: Any) -> int:
    """Operations of attention of shapes (batch, head, token, feature), which torch does not count on CPUs."""
    return 2 * query[:-1].numel() * key[-2] * (key[-1] + value[-1])


_ALLOCATIONS = {
    getattr(torch.ops.aten, n) for n in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
}
_MORE_OPERATIONS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
