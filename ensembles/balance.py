"""Balance: changes of salinity and currents that belong to those of temperature and sea level.

A change of temperature at constant density needs one of salinity, and a change of sea level at rest in the
rotating frame needs a current, the same at all depths where density did not change:

    δS = (α / β) δT,        f k × δu = -g ∇δη,

with α / β of TEOS-10 (IOC, SCOR and IAPSO 2010) at the state itself.  Such perturbations last, where others are
radiated away as waves within hours (Weaver et al. 2005, Q. J. R. Meteorol. Soc. 131).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gsw
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..emulators import Layout, State
from .metric import closes, distance

__all__ = ["Balance"]

Array = NDArray[np.float64]

_GRAVITY = 9.81
_ROTATION = 7.2921e-5
_SALINITY = 35.0 / 35.16504  # practical over absolute


@dataclass(frozen=True)
class Balance:
    """Adds what balances a perturbation: `Balance()(state, perturb(state, ...))`.

    Balancing changes come on top of any that were drawn for salinity and currents themselves. Land stays 0.

    Attributes:
        salinity: compensate changes of `thetao` by `so`, level by level.
        currents: answer changes of `zos` by geostrophic `uo` and `vo` along the axes of the grid.
        equator: degrees of latitude within which there are no currents; full ones from twice that on.
    """

    salinity: bool = True
    currents: bool = True
    equator: float = 5.0

    def __call__(self, before: State, after: State) -> State:
        """The perturbed state `after`, balanced; differentiable with respect to the perturbation.

        Args:
            before: unperturbed, of one member or the members of `after`; where α / β is taken.
            after: perturbed.

        Raises LayoutError if the two differ; ValueError if a variable to change, or to change by, is missing.
        """
        layout = after.layout
        layout.require_same(before.layout, "Balance")
        self._require(layout)
        change, data = after.data - before.data, after.data.clone()
        mask = layout.mask.to(data.device)
        for slot in range(len(layout.slots)):
            if self.salinity:
                c = layout.channels("so", slot)
                ratio = _compensation(layout, before, slot).to(data)
                data[:, c] += mask[c] * ratio * change[:, layout.channels("thetao", slot)]
            if self.currents:
                u, v = self._geostrophic(layout, change[:, layout.channels("zos", slot)][:, 0])
                for name, current in (("uo", u), ("vo", v)):
                    c = layout.channels(name, slot)
                    data[:, c] += mask[c] * current[:, None]
        return after.replace(data=data)

    def _require(self, layout: Layout) -> None:
        wanted = [*(("thetao", "so") if self.salinity else ()), *(("zos", "uo", "vo") if self.currents else ())]
        missing = [n for n in wanted if n not in layout.names]
        if missing:
            raise ValueError(
                f"Balance wanted {', '.join(wanted)}, the state lacks {', '.join(missing)}; set salinity=False or "
                "currents=False"
            )
        if self.salinity and (layout.field("thetao").levels != layout.field("so").levels):
            raise ValueError("Balance wanted `thetao` and `so` on the same levels")

    def _geostrophic(self, layout: Layout, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Currents (m s-1) of a sea level (member, y, x), where the layout has its currents, (member, y, x)."""
        f = layout.field("uo")
        lat = layout.position(f)[0]
        coriolis = 2 * _ROTATION * np.sin(np.radians(lat))
        near = np.clip(np.abs(lat) / self.equator - 1, 0, 1) if self.equator > 0 else np.ones_like(lat)
        share = np.where(coriolis != 0, np.sin(0.5 * math.pi * near) ** 2 / np.where(coriolis, coriolis, 1.0), 0.0)
        gradient = _on_corners if f.location == "corner" else _on_centers
        along, across = gradient(layout, eta)
        factor = torch.from_numpy(_GRAVITY * share).to(eta)
        return -factor * across, factor * along


def _compensation(layout: Layout, state: State, slot: int) -> Tensor:
    """α / β, the salinity (1e-3) that makes up for 1 K, (member, level, y, x); 0 on land."""
    f = layout.field("thetao")
    lat, lon = layout.position(f)
    depth = layout.grid["lev"].values[: f.channels] if f.levels else np.zeros(1)
    wet = layout.field_mask(f)
    theta, salt = (state.data[:, layout.channels(n, slot)].detach().cpu().double().numpy() for n in ("thetao", "so"))
    shape = theta.shape
    where = np.broadcast_to(wet, shape)
    p = np.broadcast_to(gsw.p_from_z(-depth[:, None, None], lat), shape)[where]
    place = [np.broadcast_to(c, shape)[where] for c in (lon, lat)]
    absolute = gsw.SA_from_SP(np.maximum(salt[where], 0.0), p, *place)
    ratio = np.zeros(shape)
    ratio[where] = _SALINITY * gsw.alpha_on_beta(absolute, gsw.CT_from_pt(absolute, theta[where]), p)
    return torch.from_numpy(np.nan_to_num(ratio))


def _on_centers(layout: Layout, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along x and y at cell centers: the mean of those towards wet neighbours, 0 without."""
    lat, lon = layout.position(layout.field("zos"))
    wet = torch.from_numpy(layout.field_mask(layout.field("zos"))[0].copy()).to(eta.device)
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    gradients = []
    for axis in (1, 0):
        each = distance(lat, lon, np.roll(lat, -1, axis), np.roll(lon, -1, axis), period)
        step = torch.from_numpy(each).to(eta)
        face = wet & wet.roll(-1, axis)
        if axis == 0 or not closes(lat, lon, period):
            face[(slice(None), -1) if axis else (-1,)] = False
        slope = torch.where(face, (eta.roll(-1, axis - 2) - eta) / torch.where(face, step, 1.0), 0.0)
        count = face.to(eta) + face.roll(1, axis).to(eta)
        gradients.append((slope + slope.roll(1, axis - 2)) / count.clamp(min=1))
    return gradients[0], gradients[1]


def _on_corners(layout: Layout, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along x and y at the north-east corners of cells, of the four around; right where all are wet."""
    lat, lon = layout.position(layout.field("zos"))
    period = float(layout.grid.attrs.get("zonal_period", 360.0))

    def steps(axis: int) -> Tensor:
        """Distance between the middles of the sides of the square of four cells."""
        each = distance(lat, lon, np.roll(lat, -1, axis), np.roll(lon, -1, axis), period)
        return torch.from_numpy(0.5 * (each + np.roll(each, -1, 1 - axis))).to(eta).clamp(min=1.0)

    north, east = eta.roll(-1, -2), eta.roll(-1, -1)
    both = north.roll(-1, -1)
    return 0.5 * (east - eta + both - north) / steps(1), 0.5 * (north - eta + both - east) / steps(0)
