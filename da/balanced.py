"""Balance as part of a covariance: from independent errors to those that belong together.

A root makes temperature, and of salinity, sea level and currents the part that balance does not explain; K adds the
other part, in this order (Weaver, Deltel, Machu, Ricci and Daget 2005, Q. J. R. Meteorol. Soc. 131,
doi:10.1256/qj.05.119):

    S = S_u + (α/β) T                                     at constant density (`salinity`)
    η = η_u - Σ_k (ρ'_k/ρ₀) Δz_k                          steric, over the whole column (`sea_level`)
    u = u_u + (1/f) k × ∇φ_k,   φ_k = g η + g Σ_{l<k} (ρ'_l/ρ₀) Δz_l + ½ g (ρ'_k/ρ₀) Δz_k      (`currents`)

with ρ'/ρ₀ = -α T + β S linearised at a state, by TEOS-10 (IOC, SCOR and IAPSO 2010) or with numbers that are given.
Currents are thus in thermal-wind balance, and vanish at the bottom of an ocean whose sea level is steric.  They fade
out towards the equator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import gsw
import numpy as np
import torch
from torch import Tensor

from ..emulators import Field, Layout, State
from ..ensembles import Balance
from .background import Root
from .linear import Constant

__all__ = ["Balanced"]

_GRAVITY = 9.81  # m s-2
_SALINITY = 35.16504 / 35.0  # absolute over practical


@dataclass(frozen=True, eq=False)
class Balanced:
    """L = K L_u: a root of unbalanced errors, and what follows from them. K is one to one.

    Attributes:
        root: of temperature and of the unbalanced parts of the other variables.
        at: state of one member about which density is linear; the fields' layout.
        salinity: compensate temperature by salinity at constant density. What is compensated has no steric sea level.
        sea_level: add the steric sea level.
        currents: add geostrophic currents.
        equator: degrees of latitude within which there are none; full ones from twice that on.
        expansion: α (K-1) and β (per 0.001 of salinity) instead of those of `at`.

    Raises ValueError if a variable is missing that is asked for, or all parts are switched off; LayoutError for states
    of another layout.
    """

    root: Root
    at: State = field(repr=False)
    salinity: bool = False
    sea_level: bool = True
    currents: bool = True
    equator: float = 5.0
    expansion: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.layout.require_same(self.at.layout, "Balanced: state")
        wanted = {"thetao", "so"} if self.salinity or self.sea_level else set()
        wanted |= {"zos"} if self.sea_level or self.currents else set()
        wanted |= {"uo", "vo"} if self.currents else set()
        missing = sorted(wanted - set(self.layout.names))
        if missing or not wanted:
            raise ValueError(
                f"Balanced: wanted one or more of salinity, sea_level and currents, with {', '.join(sorted(wanted))}; "
                f"the state has {', '.join(self.layout.names)}"
            )

    @property
    def layout(self) -> Layout:
        """Of the root."""
        return self.root.layout

    @property
    def size(self) -> int:
        """Of the root."""
        return self.root.size

    def apply(self, v: Tensor) -> Tensor:
        """Balanced fields, (..., channel, y, x)."""
        return self.balance(self.root.apply(v))

    def balance(self, x: Tensor) -> Tensor:
        """K x: unbalanced fields to whole ones, (..., channel, y, x); linear, differentiable."""
        slots = []
        for slot in range(len(self.layout.slots)):
            parts = {n: x[..., self.layout.channels(n, slot), :, :] for n in self.layout.names}
            if self.salinity:
                parts["so"] = parts["so"] + self._constants["ratio"].like(x) * parts["thetao"]
            light = self._buoyant(parts) if "thetao" in parts and "so" in parts else None
            if self.sea_level:
                assert light is not None
                parts["zos"] = parts["zos"] + self._wet("zos", x) * light.sum(-3, keepdim=True)
            if self.currents:
                parts["uo"], parts["vo"] = self._currents(parts, light)
            slots.append(torch.cat([parts[n] for n in self.layout.names], -3))
        return torch.cat(slots, -3)

    # --- the parts -------------------------------------------------------------------------------

    @cached_property
    def _constants(self) -> dict[str, Constant]:
        """-Δz ∂(ρ/ρ₀)/∂T and /∂S, and α/β, (level, y, x), 0 on land."""
        f = self.layout.field("thetao")
        wet = self.layout.field_mask(f)
        alpha, beta = self._expansion(f, wet)
        dz = self.layout.grid["dz"].values[: f.channels, None, None] if f.levels else np.ones((1, 1, 1))
        arrays = {"warm": dz * alpha * wet, "salty": -dz * beta * wet, "ratio": wet * alpha / np.where(wet, beta, 1.0)}
        return {k: Constant(torch.from_numpy(np.nan_to_num(a))) for k, a in arrays.items()}

    def _expansion(self, f: Field, wet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """α and β of practical salinity, (level, y, x)."""
        if self.expansion is not None:
            return np.full(wet.shape, self.expansion[0]), np.full(wet.shape, self.expansion[1])
        theta, salt = (self.at[n][0].detach().cpu().double().numpy() for n in ("thetao", "so"))
        lat, _ = self.layout.position(f)
        depth = self.layout.grid["lev"].values[: f.channels] if f.levels else np.zeros(1)
        pressure = np.broadcast_to(gsw.p_from_z(-depth[:, None, None], lat), wet.shape)
        absolute = _SALINITY * np.where(wet, salt, 35.0).clip(min=0)
        conservative = gsw.CT_from_pt(absolute, np.where(wet, theta, 10.0))
        alpha, beta = (g(absolute, conservative, pressure) for g in (gsw.alpha, gsw.beta))
        return np.asarray(alpha), np.asarray(_SALINITY * beta)

    def _buoyant(self, parts: Mapping[str, Tensor]) -> Tensor:
        """By how much each layer swells, -(ρ'/ρ₀) Δz in m, (..., level, y, x)."""
        c, T, S = self._constants, parts["thetao"], parts["so"]
        return c["warm"].like(T) * T + c["salty"].like(S) * S

    def _wet(self, name: str, x: Tensor) -> Tensor:
        return self.layout.mask[self.layout.channels(name)].to(x)

    def _currents(self, parts: Mapping[str, Tensor], light: Tensor | None) -> tuple[Tensor, Tensor]:
        """Currents with their geostrophic part, both (..., level, y, x)."""
        levels = max(self.layout.field("uo").channels, 1)
        height = parts["zos"].expand(*parts["zos"].shape[:-3], levels, *parts["zos"].shape[-2:])
        if light is not None:  # φ/g at mid-layer: sea level less what has swollen above
            above = torch.cumsum(light, -3) - 0.5 * light
            height = height - above[..., :levels, :, :]
        u, v = [], []
        for k in range(levels):
            one = self._geostrophic(k, height[..., k, :, :])
            u.append(one[..., 0, :, :])
            v.append(one[..., 1, :, :])
        return parts["uo"] + torch.stack(u, -3), parts["vo"] + torch.stack(v, -3)

    def _geostrophic(self, level: int, height: Tensor) -> Tensor:
        """u and v of a level from its φ/g (..., y, x), by `ensembles.Balance` with the coasts of that level."""
        layout = self._surfaces[level]
        rows = height.flatten(0, -3) if height.ndim > 2 else height[None]
        still = torch.zeros_like(rows)
        members = tuple(range(len(rows)))
        moved = State(torch.stack([rows, still, still], 1), self.at.time, layout, members)
        balance = Balance(salinity=False, equator=self.equator)
        both = balance(moved.replace(data=torch.zeros_like(moved.data)), moved).data[:, 1:]
        return both.reshape(*height.shape[:-2], 2, *height.shape[-2:])

    @cached_property
    def _surfaces(self) -> list[Layout]:
        """For each level a layout of sea level and currents as if that level were the surface."""
        place = self.layout.field("uo").location
        fields = (Field("zos"), Field("uo", 0, place), Field("vo", 0, place))
        found = []
        for k in range(self.layout.field("uo").channels):
            masks = [m for m in ("wetmask", "wetmask_corner") if m in self.layout.grid.coords]
            single = {m: self.layout.grid[m] for m in masks}
            single = {m: a.isel(lev=k, drop=True) if "lev" in a.dims else a for m, a in single.items()}
            grid = self.layout.grid.drop_vars(masks).assign_coords(single)
            found.append(replace(self.layout, fields=fields, grid=grid, slots=(0,)))
        return found
