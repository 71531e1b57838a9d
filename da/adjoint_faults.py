"""Where a gradient is lost: the first operation of a step that takes a tensor with a gradient and gives one without."""

from __future__ import annotations

import copy
import dataclasses
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from ..emulators import Layout

__all__ = ["cut_at", "fields_of", "in_dtype", "one_line"]

_FLAT = ("floor", "ceil", "round", "trunc", "sign", "heaviside", "argmax", "argmin", "bucketize", "searchsorted")
_LEAVES = ("item", "tolist", "numpy", "__array__", "__float__")
_LIKE = ("to", "type_as", "expand_as", "view_as", "reshape_as")  # whose further arguments say what like, only
_HARMLESS = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_")


def cut_at(links: Sequence[Callable[[Tensor, Tensor | None], Tensor]], inputs: Sequence[Tensor]) -> str:
    """Which operation of which step is the first to lose the gradient, as the end of a sentence; "" if none is found.

    Args:
        links: steps, functions of the state and their forcing.
        inputs: the state and the forcings.
    """
    x = inputs[0]
    for number, link in enumerate(links, 1):
        drive = inputs[number] if len(inputs) > number else None
        given = x.detach().clone().requires_grad_()
        driven = None if drive is None else drive.detach().clone().requires_grad_()
        watch = _Watch()
        try:
            with watch:
                x = link(given * 1.0, None if driven is None else driven * 1.0)
        except RuntimeError as error:
            return f"; step {number} raises {one_line(error)}"
        if watch.found:
            return f"; in step {number} by {watch.found}"
    return ""


class _Watch(TorchFunctionMode):
    """Notes the first operation that loses a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = (resolve_name(func) or getattr(func, "__name__", str(func))).rsplit("torch.", 1)[-1]
        given = args[:1] if name.rsplit(".", 1)[-1] in _LIKE else (*args, *(kwargs or {}).values())
        if not self.found and _wants(given) and _loses(name, out):
            self.found = f"{name.removesuffix('.__get__')} at {_caller()}"
        return out


def _wants(given: tuple[Any, ...]) -> bool:
    """Whether a tensor that has a gradient goes in."""
    inside = [v for a in given if isinstance(a, list | tuple) for v in a]
    return any(isinstance(a, Tensor) and a.requires_grad for a in (*given, *inside))


def _loses(name: str, out: Any) -> bool:
    last = name.removesuffix(".__get__").rsplit(".", 1)[-1].rstrip("_")
    if any(last.startswith(h) for h in _HARMLESS) or (name.endswith("__get__") and last != "data"):
        return False
    if last in _FLAT or last in _LEAVES:
        return True
    return isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad


def _caller() -> str:
    """Place in the source outside of torch and this file, as file:line."""
    own = (str(Path(torch.__file__).parent), __file__)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(own):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "an unknown place"


def one_line(error: Exception) -> str:
    """The first line of a message, not too long."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def fields_of(layout: Layout, name: str) -> list[int]:
    """Channels of a variable in all time slots."""
    slots = [layout.channels(name, s) for s in range(len(layout.slots))]
    return [c for s in slots for c in range(s.start, s.stop)]


def in_dtype(thing: Any, dtype: torch.dtype) -> Any:
    """A copy of an emulator whose networks, at any depth, are in a dtype; itself if it has none."""
    if isinstance(thing, torch.nn.Module):
        if all(p.dtype == dtype for p in thing.parameters() if p.is_floating_point()):
            return thing
        return copy.deepcopy(thing).to(dtype)
    if isinstance(thing, tuple) and any(isinstance(t, torch.nn.Module) or hasattr(t, "step") for t in thing):
        return tuple(in_dtype(t, dtype) for t in thing)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        changed = {}
        for f in dataclasses.fields(thing):
            old = getattr(thing, f.name, None)
            if f.init and (isinstance(old, torch.nn.Module | tuple) or hasattr(old, "step")):
                new = in_dtype(old, dtype)
                if new is not old and not (isinstance(old, tuple) and all(map(lambda a, b: a is b, old, new))):
                    changed[f.name] = new
        return dataclasses.replace(thing, **changed) if changed else thing
    return thing
