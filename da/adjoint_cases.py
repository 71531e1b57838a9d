"""What `check_adjoint` looks at: a function of a state and forcings, or of a control vector, in typical units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..emulators import Draws, Emulator, Layout, Noise, State
from ..ensembles.dates import shifted
from .adjoint_faults import fields_of, in_dtype
from .background import Root
from .observations import Observations
from .operators import ObservationOperator, operator_for

__all__ = ["Case", "case_of"]


@dataclass(frozen=True, eq=False)
class Case:
    """A function of some inputs in typical units, and what is known about it.

    Attributes:
        name: to call it by.
        function: of physical inputs.
        links: the same in steps: functions of the state and one forcing each.
        inputs: physical, the state (or control) first.
        sizes: typical deviation of each input, of its shape or one that broadcasts.
        masks: where each input counts.
        fields: for each input variable its input and channels.
        out_size: typical deviation of the output.
        out_mask: where that counts.
        must_be_linear: whether it is meant to be.
        all_matter: whether every variable is meant to have an influence.
    """

    name: str
    function: Callable[..., Tensor]
    links: list[Callable[[Tensor, Tensor | None], Tensor]]
    inputs: list[Tensor]
    sizes: list[Tensor]
    masks: list[Tensor]
    fields: dict[str, tuple[int, list[int]]]
    out_size: Tensor
    out_mask: Tensor
    must_be_linear: bool = False
    all_matter: bool = False

    def scaled(self, *deviations: Tensor) -> Tensor:
        """M in typical units: of deviations of the inputs."""
        moved = [x + s * d for x, s, d in zip(self.inputs, self.sizes, deviations, strict=True)]
        return self.function(*moved) / self.out_size


def case_of(
    what: Any, state: State | None, forcing: Any, noise: Draws | None, obs: Observations | None, steps: int,
    dtype: torch.dtype,
) -> Case:  # fmt: skip
    """The function to check; arguments and errors are those of `check_adjoint`."""
    if steps < 1:
        raise ValueError(f"check_adjoint: wanted steps >= 1, got {steps}")
    if isinstance(what, Root) and not isinstance(what, Emulator):
        return _root_case(what, dtype)
    if state is None:
        raise ValueError(f"check_adjoint: {type(what).__name__} needs a state to be checked at")
    state = state.sel(state.members[:1])
    state = state.replace(data=state.data.detach().to(dtype).clone())
    if isinstance(what, ObservationOperator):
        return _state_case(type(what).__name__, what.layout, state, [], [], what, dtype)
    emulator, noise = in_dtype(what, dtype), Noise(0) if noise is None else noise
    times, driven = [state.time], []
    for _ in range(steps):
        one = forcing if forcing is None or isinstance(forcing, State) else forcing.at(times[-1], state.members)
        one = one if one is None else one.sel(state.members) if state.members[0] in one.members else one
        driven.append(None if one is None else one.replace(data=one.data[:1].detach().to(dtype), time=times[-1]))
        times.append(shifted(None if isinstance(forcing, State) else forcing, times[-1], emulator.dt))

    def link(k: int) -> Callable[[Tensor, Tensor | None], Tensor]:
        def step(x: Tensor, f: Tensor | None) -> Tensor:
            drive = driven[k]
            given = drive if drive is None or f is None else drive.replace(data=f, members=state.members)
            new: Tensor = emulator.step(state.replace(data=x, time=times[k]), given, noise).data
            return new

        return step

    links = [link(k) for k in range(steps)]
    operator = None if obs is None else operator_for(emulator.layout, obs)
    return _state_case(type(what).__name__, emulator.layout, state, links, driven, operator, dtype)


def _state_case(
    name: str, layout: Layout, state: State, links: list[Callable[[Tensor, Tensor | None], Tensor]],
    driven: list[State | None], operator: ObservationOperator | None, dtype: torch.dtype,
) -> Case:  # fmt: skip
    drives = [d for d in driven if d is not None]

    def function(x: Tensor, *forcings: Tensor) -> Tensor:
        for k, link in enumerate(links):
            x = link(x, forcings[k] if forcings else None)
        return x if operator is None else operator.apply(state.replace(data=x))

    inputs = [state.data, *(d.data for d in drives)]
    layouts = [layout, *(d.layout for d in drives)]
    masks = [ly.mask.to(state.data.device)[None] for ly in layouts]
    fields = {n: (0, fields_of(layout, n)) for n in layout.names}
    for d in drives[:1]:
        fields |= {f"forcing {n}": (1, fields_of(d.layout, n)) for n in d.layout.names}
    with torch.no_grad():
        made = function(*(x.clone() for x in inputs))
    if operator is None:
        out_size, out_mask = _typical(made, masks[0]), masks[0]
    else:
        out_size = torch.tensor(operator.observations.error).to(made)[None]
        out_mask = torch.ones_like(made, dtype=torch.bool)
    sizes = [_typical(x, m) for x, m in zip(inputs, masks, strict=True)]
    whole = name if not links else f"{name}, {len(links)} step{'s' if len(links) > 1 else ''}"
    whole += "" if operator is None or not links else " and H"
    return Case(whole, function, links, inputs, sizes, masks, fields, out_size, out_mask, False, operator is None)


def _root_case(root: Root, dtype: torch.dtype) -> Case:
    v = torch.zeros(1, root.size, dtype=dtype)
    with torch.no_grad():
        made = root.apply(Noise(0).normal((0,), None, (root.size,), dtype=dtype))
    mask = root.layout.mask[None]
    one = torch.ones_like(v)
    fields: dict[str, tuple[int, list[int]]] = {"control": (0, [])}
    size = _typical(made, mask)
    return Case(type(root).__name__, root.apply, [], [v], [one], [one > 0], fields, size, mask, must_be_linear=True)


def _typical(data: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation over the wet cells of each channel, (1, channel, 1, 1); 1 where there is none."""
    wet = mask.expand_as(data).to(data)
    count = wet.sum((-2, -1), keepdim=True).clamp(min=1)
    mean = (data * wet).sum((-2, -1), keepdim=True) / count
    size = (((data - mean) * wet).square().sum((-2, -1), keepdim=True) / count).sqrt()
    floor = 1e-6 * size.amax().clamp(min=1e-300)
    return torch.where(size > floor, size, 1.0)
