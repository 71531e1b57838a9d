"""What a scalar at the end of a forecast depends on: its gradient in the initial state and in all forcing, as maps.

    J = q(x[n]),    x[k+1] = M(x[k], f[k], ξ[k]),    ∂J/∂x[0] and ∂J/∂f[k] by one backward pass

(Marotzke et al. 1999, J. Geophys. Res. 104, doi:10.1029/1999JC900236, on the heat transport of an ocean; Heimbach et
al. 2011, Deep-Sea Res. II 58).  Each step is run again when its gradient is wanted, so memory holds the states of all
steps and the intermediate values of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cftime
import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..emulators import Draws, Emulator, Forcing, Layout, Noise, State, attributes
from ..ensembles.dates import shifted, slot_times
from .quantities import volumes

__all__ = ["sensitivity"]


def sensitivity(
    emulator: Emulator,
    state: State,
    forcing: Forcing | None,
    quantity: Callable[[State], Tensor],
    steps: int,
    noise: Draws | None = None,
    *,
    density: bool = False,
) -> xr.Dataset:
    """Gradient of a scalar of the state `steps` steps on, with respect to this state and the forcing on the way.

    Args:
        emulator: differentiable; see `check_adjoint`.
        state: the members, each with its own gradient.
        forcing: as for `rollout`.
        quantity: State to (member,), such as `HeatContent()`; its `units`, if it has any, are those of the result.
        steps: 0 for the gradient of the quantity itself.
        noise: of stochastic emulators, frozen.
        density: divide by the volume of each cell, of surface fields by its area. What is left does not depend on the
            resolution, where the quantity does not: J changes by ∫ density δx dV.

    Returns a Dataset: `quantity (member,)`; for each variable of the state `(member, time, [lev], y, x)`, `time` being
    that of its slots; for each of the forcing `(member, forcing_time, [lev], y, x)`, one map for each record that was
    used, with `forcing_` before its name if the state has one of that name. NaN on land. A gradient is that per cell
    and record: its product with a change, summed over cells, is the change of the quantity.

    Raises ValueError for negative `steps`, a quantity of another shape, or one that has no gradient; LayoutError as the
    emulator does.
    """
    if steps < 0:
        raise ValueError(f"sensitivity: wanted steps >= 0, got {steps}")
    noise = Noise(0) if noise is None else noise
    begin = state.data.detach().clone().requires_grad_()
    now, driven = state.replace(data=begin), []
    for _ in range(steps):
        drive = None if forcing is None else forcing.at(now.time, now.members)
        if drive is not None:
            drive = drive.replace(data=drive.data.detach().to(begin.device).clone().requires_grad_())
            driven.append(drive)
        later = shifted(forcing, now.time, emulator.dt)
        now = _step(emulator, now, drive, noise).replace(time=later)
    value = quantity(now)
    if tuple(value.shape) != (len(state.members),) or not value.requires_grad:
        raise ValueError(
            f"sensitivity: wanted a quantity of shape {(len(state.members),)} with a gradient, got "
            f"{tuple(value.shape)}{'' if value.requires_grad else ' without'}; see `check_adjoint`"
        )
    leaves = [begin, *(d.data for d in driven)]
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    units = str(getattr(quantity, "units", "1"))
    maps = _described(state.layout, state.layout.unpack(state.replace(data=gradients[0])), units, density)
    if driven:
        maps = _joined(maps, _forcings(driven, gradients[1:], forcing, units, density))
    attrs = {"long_name": repr(quantity), "units": units}
    maps["quantity"] = ("member", value.detach().cpu().numpy(), attrs)
    title = f"gradient of {quantity!r} after {steps} steps of {emulator.dt}"
    return maps.assign_attrs(Conventions="CF-1.11", title=title, end=str(now.time), density=int(density))


def _step(emulator: Emulator, now: State, drive: State | None, noise: Draws) -> State:
    """One step whose intermediate values are not kept."""

    def run(x: Tensor, f: Tensor | None) -> Tensor:
        given = drive if drive is None or f is None else drive.replace(data=f)
        return emulator.step(now.replace(data=x), given, noise).data

    given = None if drive is None else drive.data
    new: Tensor = checkpoint(run, now.data, given, use_reentrant=False, preserve_rng_state=False)
    return now.replace(data=new)


def _forcings(
    driven: list[State], gradients: list[Tensor], forcing: Forcing | None, units: str, density: bool
) -> xr.Dataset:
    """Gradients in each record, whichever steps and time slots it served."""
    layout = driven[0].layout
    single, per_slot = replace(layout, slots=(0,)), layout.shape[0] // len(layout.slots)
    sums: dict[cftime.datetime, Tensor] = {}
    for drive, gradient in zip(driven, gradients, strict=True):
        for slot, date in enumerate(slot_times(drive, forcing)):
            part = gradient[:, slot * per_slot : (slot + 1) * per_slot]
            sums[date] = sums[date] + part if date in sums else part
    records = [single.unpack(State(sums[d], d, single, driven[0].members)) for d in sorted(sums)]
    return _described(single, xr.concat(records, "time", data_vars="minimal"), units, density).rename(
        time="forcing_time"
    )


def _described(layout: Layout, maps: xr.Dataset, units: str, density: bool) -> xr.Dataset:
    """With attributes of gradients, and if asked per volume."""
    for name in layout.names:
        about = attributes(name)
        unit, per = about.get("units", "1"), ""
        if density:
            size = volumes(layout, name).numpy()
            size = size if layout.field(name).levels else size[0]
            maps[name] = maps[name] / np.where(size > 0, size, np.nan)
            per = " m-3" if layout.field(name).levels else " m-2"
        maps[name].attrs = {
            "long_name": f"gradient in {about.get('long_name', name)}",
            "units": f"{units} ({unit})-1{per}",
        }
    return maps


def _joined(state: xr.Dataset, forcing: xr.Dataset) -> xr.Dataset:
    """Both in one, on the grid and coordinates of the state."""
    same = {n: f"forcing_{n}" for n in forcing.data_vars if n in state.data_vars}
    extra = [c for c in forcing.coords if c not in ("member", "forcing_time") and c in state.coords]
    return state.merge(forcing.rename(same).drop_vars(extra), compat="override")
