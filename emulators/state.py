"""Layout and State: what is in which channel, and the values an emulator advances.

`Layout.pack` and `Layout.unpack` are the only border between labelled arrays and tensors: land is NaN
in xarray and on disk, 0 in tensors, and nothing else in the package converts between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .names import attributes


class LayoutError(ValueError):
    """A dataset or a state does not have the fields, the shape or the mask that was asked for."""


@dataclass(frozen=True)
class Field:
    """A variable of a layout.

    Attributes:
        name: CF/CMIP name, e.g. `thetao`.
        levels: number of depth levels from the surface down; 0 for a surface field.
        location: `center` of the cell, or its north-east `corner` (velocities of a B grid).
    """

    name: str
    levels: int = 0
    location: str = "center"

    @property
    def channels(self) -> int:
        """Number of channels of one time slot."""
        return max(self.levels, 1)


@dataclass(frozen=True, eq=False)
class Layout:
    """Which fields sit in which channel of a `(member, channel, y, x)` tensor, and on which grid.

    Channels are ordered by time slot (slowest), then field, then level.

    Attributes:
        fields: the variables, in channel order.
        grid: coordinates: `lat`, `lon` (1-D or 2-D), `areacello` (m2), and where there are levels `lev`,
            `dz` (m) and `wetmask (lev, y, x)`; `wetmask_corner`, `lat_corner`, `lon_corner` where a field
            sits on corners. A grid without levels may have a `wetmask (y, x)`.
        slots: time slots as multiples of `interval` relative to the state's time, oldest first.
        interval: time between slots.
    """

    fields: tuple[Field, ...]
    grid: xr.Dataset = field(repr=False)
    slots: tuple[int, ...] = (0,)
    interval: timedelta = timedelta(days=5)

    def __post_init__(self) -> None:
        missing = [c for c in ("lat", "lon", "areacello", "wetmask") if c not in self.grid.coords]
        if missing:
            raise LayoutError(
                f"the grid lacks {', '.join(missing)}; it has {', '.join(map(str, self.grid.coords))}. "
                "Build it with `grid_of(dataset)` or add them"
            )
        wet = self.grid["wetmask"]
        if not np.isin(wet.values, (0, 1)).all():
            raise LayoutError(
                f"`wetmask` must hold only 0 and 1, got {int(np.isnan(wet.values.astype(float)).sum())} NaN "
                f"and values in [{np.nanmin(wet.values)}, {np.nanmax(wet.values)}]; fill it before use"
            )

    # --- shape -----------------------------------------------------------------------------------

    @cached_property
    def dims(self) -> tuple[str, str]:
        """The two horizontal dimensions, `(lat, lon)` or `(y, x)`."""
        first, second = self.grid["areacello"].dims
        return str(first), str(second)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(channel, y, x)."""
        channels = len(self.slots) * sum(f.channels for f in self.fields)
        return channels, self.grid.sizes[self.dims[0]], self.grid.sizes[self.dims[1]]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Variable names, in channel order."""
        return tuple(f.name for f in self.fields)

    def field(self, name: str) -> Field:
        """The field of that name; KeyError with the names there are."""
        for f in self.fields:
            if f.name == name:
                return f
        raise KeyError(f"no field {name!r} in this layout; it has {', '.join(self.names)}")

    def channels(self, name: str, slot: int = -1) -> slice:
        """Channels of a field in one time slot (by position in `slots`; -1 is the newest)."""
        start = (slot % len(self.slots)) * sum(f.channels for f in self.fields)
        for f in self.fields:
            if f.name == name:
                return slice(start, start + f.channels)
            start += f.channels
        raise KeyError(f"no field {name!r} in this layout; it has {', '.join(self.names)}")

    def channel_labels(self) -> list[str]:
        """One `name_level` per channel of one slot, as the flat stores of the field have them."""
        return [f"{f.name}_{k}" if f.levels else f.name for f in self.fields for k in range(f.channels)]

    # --- geometry --------------------------------------------------------------------------------

    def field_mask(self, f: Field) -> np.ndarray:
        """Wet cells of one field, (level, y, x) bool."""
        wet = self.grid["wetmask" if f.location == "center" else "wetmask_corner"].values.astype(bool)
        return wet[: f.channels] if wet.ndim == 3 else np.broadcast_to(wet, (f.channels, *wet.shape))

    @cached_property
    def mask(self) -> Tensor:
        """Wet cells per channel, (channel, y, x) bool, on the CPU."""
        one = np.concatenate([self.field_mask(f) for f in self.fields])
        return torch.from_numpy(np.tile(one, (len(self.slots), 1, 1)))

    def position(self, f: Field) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude (degrees) of a field's points, both (y, x)."""
        suffix = "_corner" if f.location == "corner" else ""
        lat, lon = self.grid[f"lat{suffix}"].values, self.grid[f"lon{suffix}"].values
        if lat.ndim == 1:
            lat, lon = np.meshgrid(lat, lon, indexing="ij")
        return lat, lon

    def select(self, names: Sequence[str], **changes: Any) -> Layout:
        """A layout of some of the fields, in the order given."""
        return replace(self, fields=tuple(self.field(n) for n in names), **changes)

    def require_same(self, other: Layout, what: str) -> None:
        """Raise LayoutError, naming the difference, unless `other` has the same channels and shape."""
        for label, wanted, got in (
            ("fields", self.fields, other.fields),
            ("time slots", self.slots, other.slots),
            ("(channel, y, x)", self.shape, other.shape),
        ):
            if wanted != got:
                raise LayoutError(f"{what}: wanted {label} {wanted}, got {got}")

    # --- the border between xarray and torch -----------------------------------------------------

    def times(self, time: cftime.datetime) -> list[cftime.datetime]:
        """The times of the slots of a state at `time`, oldest first."""
        return [time + s * self.interval for s in self.slots]

    def pack(
        self,
        dataset: xr.Dataset,
        time: cftime.datetime,
        members: Sequence[int] = (0,),
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """Read a State from a dataset that has exactly the slots' times (or no time dimension).

        Args:
            dataset: variables `([member], [time], [lev], y, x)` in the units of the table.
            time: the time of the state (its newest slot is at `time + slots[-1] * interval`).
            members: member numbers, looked up in the dataset's `member` coordinate where it has one.
            dtype: of the resulting tensor.

        Raises LayoutError for a missing variable, a wrong shape, or NaN where the mask is wet.
        """
        missing = [f.name for f in self.fields if f.name not in dataset]
        if missing:
            raise LayoutError(
                f"the dataset lacks the variable(s) {', '.join(missing)}; "
                f"it has {', '.join(map(str, dataset.data_vars))}"
            )
        blocks = [self._field_values(dataset[f.name], f, members) for f in self.fields]
        data = np.concatenate(blocks, axis=2).reshape(len(blocks[0]), *self.shape)
        return State(torch.from_numpy(data).to(dtype), time, self, tuple(members))

    def _field_values(self, array: xr.DataArray, f: Field, members: Sequence[int]) -> np.ndarray:
        """Values of one field, (member, slot, level, y, x), with land set to 0."""
        if "member" in array.dims:
            absent = sorted(set(members) - set(array["member"].values.tolist()))
            if absent:
                raise LayoutError(f"{f.name}: members {absent} are not in the dataset ({array['member'].values})")
            array = array.sel(member=list(members))
        for dim, size in (("member", 1), ("time", 1), ("lev", 1)):
            if dim not in array.dims:
                array = array.expand_dims({dim: size})
        if f.levels:
            array = array.isel(lev=slice(0, f.levels))
        values = np.array(array.transpose("member", "time", "lev", *self.dims).values)
        wanted = (len(self.slots), f.channels, *self.shape[1:])
        if values.shape[1:] != wanted:
            raise LayoutError(f"{f.name}: wanted (time, lev, y, x) = {wanted}, got {values.shape[1:]}")
        wet = self.field_mask(f)
        holes = np.isnan(values) & wet
        if holes.any():
            m, t, k, j, i = np.argwhere(holes)[0]
            raise LayoutError(
                f"{f.name}: {int(holes.sum())} NaN where the wet mask is 1, the first at member {m}, time {t}, "
                f"level {k}, row {j}, column {i}; the mask and the data do not belong together"
            )
        values[np.broadcast_to(~wet, values.shape)] = 0.0
        if "member" not in array.dims or values.shape[0] == 1:
            values = np.broadcast_to(values, (len(members), *values.shape[1:]))
        return values

    def unpack(self, state: State) -> xr.Dataset:
        """The state as a Dataset `(member, time, [lev], y, x)`: NaN on land, CF attributes, the grid's coordinates."""
        self.require_same(state.layout, "unpack")
        data = state.data.detach().cpu().numpy()
        coords = {
            "member": ("member", np.asarray(state.members), MEMBER_ATTRS),
            "time": self.times(state.time),
        }
        variables = {}
        for f in self.fields:
            wet = self.field_mask(f)
            slots = [data[:, self.channels(f.name, s)] for s in range(len(self.slots))]
            values = np.where(wet, np.stack(slots, 1), np.nan).astype(data.dtype, copy=False)
            dims = ("member", "time", "lev", *self.dims) if f.levels else ("member", "time", *self.dims)
            values = values if f.levels else values[:, :, 0]
            attrs = attributes(f.name) | ({"location": "corner"} if f.location == "corner" else {})
            variables[f.name] = (dims, values, attrs)
        return xr.Dataset(variables, coords=coords).assign_coords(self.grid.coords)


MEMBER_ATTRS = {"standard_name": "realization", "units": "1", "long_name": "ensemble member"}


@dataclass(frozen=True, eq=False)
class State:
    """The state of an ensemble at one time.

    Attributes:
        data: (member, channel, y, x), physical units, 0 on land.
        time: cftime date.
        layout: what the channels are.
        members: the members' *numbers*: member 17 is member 17 in any batch, on any device, after any restart.
    """

    data: Tensor
    time: cftime.datetime
    layout: Layout
    members: tuple[int, ...]

    def __post_init__(self) -> None:
        wanted = (len(self.members), *self.layout.shape)
        if tuple(self.data.shape) != wanted:
            raise LayoutError(
                f"state: wanted data (member, channel, y, x) = {wanted} for members {self.members} and fields "
                f"{self.layout.names}, got {tuple(self.data.shape)}"
            )

    def __getitem__(self, name: str) -> Tensor:
        """A field in the newest time slot, (member, level, y, x); a view, surface fields have one level."""
        return self.data[:, self.layout.channels(name)]

    def __repr__(self) -> str:
        m = self.members
        numbers = f"{m[0]}..{m[-1]}" if len(m) > 2 and m == tuple(range(m[0], m[-1] + 1)) else f"{list(m)}"
        return (
            f"State({', '.join(self.layout.names)}; {len(m)} members {numbers}; {self.time}; "
            f"{tuple(self.data.shape)} {str(self.data.dtype).removeprefix('torch.')} on {self.data.device})"
        )

    def replace(self, **changes: Any) -> State:
        """A copy with some attributes changed."""
        return replace(self, **changes)

    def to(self, *args: Any) -> State:
        """The same state on another device or in another dtype, as `Tensor.to`."""
        return replace(self, data=self.data.to(*args))

    def sel(self, members: Sequence[int]) -> State:
        """Some members, by number; KeyError if one is not here."""
        absent = [m for m in members if m not in self.members]
        if absent:
            raise KeyError(f"members {absent} are not in this state, which has {self.members}")
        rows = [self.members.index(m) for m in members]
        return replace(self, data=self.data[rows], members=tuple(members))

    def spread_to(self, members: Sequence[int]) -> State:
        """Copies of a one-member state under the given member numbers."""
        if len(self.members) != 1:
            raise LayoutError(f"only a state of one member can be copied to {len(members)}; this has {self.members}")
        return replace(self, data=self.data.expand(len(members), -1, -1, -1).clone(), members=tuple(members))

    def mean(self) -> State:
        """The mean over members, a state of one, under the number of the first."""
        return replace(self, data=self.data.mean(0, keepdim=True), members=self.members[:1])

    def select(self, layout: Layout) -> State:
        """The newest slot's fields of another, smaller one-slot layout on the same grid."""
        channels = torch.cat([self[name] for name in layout.names], dim=1)
        return replace(self, data=channels, layout=layout)

    def to_xarray(self) -> xr.Dataset:
        """The state as a Dataset `(member, time, [lev], y, x)`; see `Layout.unpack`."""
        return self.layout.unpack(self)
