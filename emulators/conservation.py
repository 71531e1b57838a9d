"""Global heat and salt conservation, as a correction around any ocean emulator.

An emulator that predicts each cell for itself creates and destroys heat. After each record the content of the
whole ocean is brought to what the surface flux allows,

    H(k+1) = H(k) + Δt ∫ (Q + G) dA,      H = ρ c ∫ θ dV

with the surface flux Q (`hfds`, positive down) and the geothermal flux G through the sea floor, by one number
per member: added to every wet cell ("shift", the smallest change in the volume-weighted mean square), or
multiplied ("scale"). Salt is corrected in the same way to a content that does not change. Sums are float64,
everything is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from .emulator import Forcing
from .state import Layout, LayoutError, State

How = Literal["shift", "scale"]
Records = Literal["snapshots", "means"]


@dataclass(frozen=True)
class Conserve:
    """Close the global heat and salt budgets of every record: `Corrected(emulator, Conserve())`.

    Attributes:
        heat, salt: what is conserved.
        geothermal: flux through the sea floor, W m-2, the mean over the wet surface.
        flux: where `hfds` is read at the dates of the predicted records too. Without it the forcing of the step
            is used, and the newest slot of it for all records that the step predicts.
        records: "snapshots": the flux of a record acts until the next; "means": records are means over an
            interval, and half of either flux acts from one mean to the next.
        how: "shift" adds the same to every wet cell, "scale" multiplies.
        moving_surface: the uppermost layer is thicker by `zos`.
        rho0, cp: density (kg m-3) and heat capacity (J kg-1 K-1) that turn heat into temperature.

    Raises LayoutError at the first step if temperature, salinity, `hfds`, layer thickness or a cell area is
    missing.
    """

    heat: bool = True
    salt: bool = True
    geothermal: float = 0.0
    flux: Forcing | None = None
    records: Records = "snapshots"
    how: How = "shift"
    moving_surface: bool = False
    rho0: float = 1035.0
    cp: float = 3991.86795711963

    def __post_init__(self) -> None:
        for name, kinds in (("records", Records), ("how", How)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} is one of {get_args(kinds)}, got {getattr(self, name)!r}")

    def __call__(self, before: State, after: State, forcing: State | None) -> State:
        """`after` with the contents that `before` and the fluxes allow, in every time slot."""
        layout, data = after.layout, after.data
        volume = self._volume(layout, data.device)
        gains = self._gains(before, forcing) if self.heat else []
        for name in [*(["thetao"] if self.heat else []), *(["so"] if self.salt else [])]:
            previous = self._content(before.data, layout, name, -1, volume)
            for slot in range(len(layout.slots)):
                wanted = previous + (gains[slot] if name == "thetao" else 0.0)
                data = self._corrected(data, layout, name, slot, volume, wanted)
                previous = wanted
        return after.replace(data=data)

    def _volume(self, layout: Layout, device: torch.device) -> Tensor:
        """Volume of wet cells without the moving surface, m3 (lev, y, x), float64."""
        if "dz" not in layout.grid.coords:
            raise LayoutError(
                "heat and salt content need the layer thickness `dz` (m) in the grid; add it to the store"
            )
        dz = torch.from_numpy(layout.grid["dz"].values).double()
        wet = torch.from_numpy(layout.grid["wetmask"].values.astype(bool))
        return (dz.view(-1, 1, 1) * _area(layout) * wet).to(device)

    def _thickened(self, data: Tensor, layout: Layout, slot: int, volume: Tensor) -> Tensor:
        """Volume of every member's cells, m3 (member or 1, lev, y, x)."""
        if not self.moving_surface:
            return volume[None]
        rise = data[:, layout.channels("zos", slot)].double() * _area(layout).to(data.device)
        return torch.cat([volume[None, :1] + rise, volume[None, 1:].expand(len(data), -1, -1, -1)], 1)

    def _content(self, data: Tensor, layout: Layout, name: str, slot: int, volume: Tensor) -> Tensor:
        """∫ of a tracer over the ocean, float64 (member,)."""
        tracer = data[:, layout.channels(name, slot)].double()
        return (tracer * self._thickened(data, layout, slot, volume)[:, : tracer.shape[1]]).sum((1, 2, 3))

    def _corrected(self, data: Tensor, layout: Layout, name: str, slot: int, volume: Tensor, wanted: Tensor) -> Tensor:
        """`data` with the tracer's content as wanted (member,)."""
        c = layout.channels(name, slot)
        content = self._content(data, layout, name, slot, volume)
        tracer, mask = data[:, c].double(), layout.mask[c].to(data.device)
        if self.how == "scale":
            new = tracer * (wanted / content).view(-1, 1, 1, 1)
        else:
            whole = self._thickened(data, layout, slot, volume)[:, : tracer.shape[1]].sum((1, 2, 3))
            new = tracer + ((wanted - content) / whole).view(-1, 1, 1, 1) * mask
        return torch.cat([data[:, : c.start], new.to(data.dtype), data[:, c.stop :]], 1)

    def _gains(self, before: State, forcing: State | None) -> list[Tensor]:
        """What the content of temperature gains from record to record, K m3 (member,), one per slot."""
        layout = before.layout
        dates = [before.time + k * layout.interval for k in range(len(layout.slots) + 1)]
        if self.flux is not None:
            power = [self._power(self.flux.at(date, before.members), layout) for date in dates]
        elif forcing is not None:
            power = [self._power(forcing, layout)] * len(dates)
        else:
            raise LayoutError("heat conservation needs the surface flux; pass a forcing with hfds, or flux=Source")
        if self.records == "means":
            power = [(now + then) / 2 for now, then in pairwise(power)]
        seconds = layout.interval / timedelta(seconds=1)
        return [p * seconds / (self.rho0 * self.cp) for p in power[: len(layout.slots)]]

    def _power(self, forcing: State, layout: Layout) -> Tensor:
        """Heat into the whole ocean, W (member,), float64."""
        if "hfds" not in forcing.layout.names:
            raise LayoutError(
                f"heat conservation needs the surface flux hfds, the forcing has {', '.join(forcing.layout.names)}; "
                "pass flux=Source(...) of a store that has it"
            )
        wet = _area(layout) * torch.from_numpy(layout.grid["wetmask"].values.astype(bool)[0])
        flux = forcing["hfds"][:, 0].double() + self.geothermal
        return (flux * wet.to(flux.device)).sum((1, 2))


def _area(layout: Layout) -> Tensor:
    """Cell areas, m2 (y, x), float64."""
    return torch.from_numpy(layout.grid["areacello"].values).double().nan_to_num(0.0)
