"""What the gradient of a window costs: bytes that are kept for the adjoint, and time in units of one forward run.

With s bytes of a state, a of what one step keeps for its adjoint, and n steps, the gradient needs about

    "all"      n a                     1 forward and 1 backward run
    "states"   n s + a                 each step but the last once more
    "few"      2 √n s + a              each step once or twice more
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .window_trajectory import Trajectory

__all__ = ["CHECKPOINTS", "GradientCost", "gradient_cost"]

CHECKPOINTS = ("all", "states", "few")
"""What may be kept of a window, from fast to small."""


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of a computation, parameters not counted, each storage once."""
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, torch.nn.Parameter):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()
    del result
    return sum(seen.values())


def needed(problem: Trajectory) -> dict[str, int]:
    """Bytes that the gradient of a window needs for each choice of what is kept."""
    state = problem.background.data
    leaf = state.detach().clone().requires_grad_()
    step = kept_bytes(lambda: problem.stepped(problem.start(), leaf, 0)) if problem.steps else 0
    s, n = state.numel() * state.element_size(), problem.steps
    pieces = math.ceil(math.sqrt(max(n, 1)))
    return {"all": n * step, "states": n * s + step, "few": 2 * pieces * s + step}


def chosen(problem: Trajectory, limit: int) -> str:
    """The fastest choice whose gradient stays below a limit in bytes; ValueError if none does."""
    wanted = needed(problem)
    for name in CHECKPOINTS:
        if wanted[name] <= limit:
            return name
    raise ValueError(
        f"the gradient of {problem.steps} steps of {len(problem.background.members)} members needs at least "
        f"{wanted['few']:.2e} bytes, got memory={limit:.2e}: take fewer members at a time, a shorter window, or more "
        "memory"
    )


@dataclass(frozen=True)
class GradientCost:
    """What one gradient of J costs.

    Attributes:
        forward: seconds of one run of the window without gradients, median.
        gradient: seconds of J and its gradient, median.
        bytes: that each choice of what is kept needs, estimated from what the first step keeps.
        checkpoint: the choice that was timed.
    """

    forward: float
    gradient: float
    bytes: dict[str, int]
    checkpoint: str

    @property
    def ratio(self) -> float:
        """One gradient in forward runs of the window."""
        return self.gradient / self.forward

    def __str__(self) -> str:
        kept = ", ".join(f"{name}: {size / 1e6:.0f} MB" for name, size in self.bytes.items())
        return (
            f"one gradient is {self.ratio:.1f} forward runs of the window ({self.gradient:.3g} s to {self.forward:.3g} "
            f's) with checkpoint="{self.checkpoint}"; kept for the adjoint: {kept}'
        )


def gradient_cost(problem: Trajectory, repeats: int = 3) -> GradientCost:
    """Time forward runs and gradients of a window in turns, after one of each to warm up."""
    v, clocks = problem.start(), (list[float](), list[float]())

    def forward() -> None:
        with torch.no_grad():
            problem.parts(v)

    def gradient() -> None:
        problem.cost(v)

    for turn in range(repeats + 1):
        for run, clock in zip((forward, gradient), clocks, strict=True):
            begin = time.perf_counter()
            run()
            if v.device.type == "cuda":
                torch.cuda.synchronize(v.device)
            clock += [time.perf_counter() - begin] if turn else []
    ahead, both = (statistics.median(c) for c in clocks)
    return GradientCost(ahead, both, needed(problem), problem.checkpoint)
