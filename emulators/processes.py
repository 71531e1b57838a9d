"""Training in one process, or in several under `torchrun`: the one place that knows which."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Processes:
    """The processes of a training run; alone if it was not started by `torchrun`.

    Attributes:
        rank, count: this process's number, and how many there are.
        device: where this process computes; None for where the network is.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self.device = None if device is None else torch.device(device)
        if self.count == 1:
            return
        if self.device is None:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def require_even(self, batch: int, accumulate: int) -> None:
        """Raise ValueError if the windows of a batch cannot be dealt out evenly."""
        if batch % (self.count * accumulate):
            raise ValueError(
                f"a batch of {batch} windows cannot be dealt out to {self.count} processes in {accumulate} "
                f"micro-batches; choose a multiple of {self.count * accumulate}"
            )

    def prepare(self, network: nn.Module) -> None:
        """Take batch-norm statistics over all processes (torch has that on GPUs only); changes `network`."""
        if self.count > 1 and self.device is not None and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]

    def distribute(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes."""
        return module if self.count == 1 else DistributedDataParallel(module, broadcast_buffers=False)

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[None]:
        """For all but the last micro-batch: gradients are averaged once per update."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
            values /= self.count
        return values

    def gathered(self, own: list[Tensor]) -> list[list[Tensor]]:
        """What each process has, in order of rank, on the CPU."""
        mine = [t.cpu() for t in own]
        if self.count == 1:
            return [mine]
        found: list[list[Tensor]] = [[] for _ in range(self.count)]
        distributed.all_gather_object(found, mine)
        return found

    def agree(self, wish: bool) -> bool:
        """What the first process wishes, so that all save, or none."""
        if self.count == 1:
            return wish
        told = [wish]
        distributed.broadcast_object_list(told, 0)
        return told[0]
