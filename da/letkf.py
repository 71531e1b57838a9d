"""The local ensemble transform Kalman filter for ocean-sized states.

Every water column makes its own analysis from the observations near it (Hunt et al. 2007,
doi:10.1016/j.physd.2006.11.008): the transform of `filters.py` with R⁻¹ multiplied by the weights of
Gaspari and Cohn (R-localisation), the same weights for all variables, levels and time slots of the column,
or, with a vertical half width, one transform per level.

Columns are taken in blocks; a block holds (column, near, member) numbers in float64, so memory does not
grow with the grid. Weights belong to the centre of a cell; velocities at its corner, half a cell away,
share them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..emulators import Field, Layout, State
from .filters import check_tuning, departures, transform, update, updated_channels
from .localise import LocalObservations, gaspari_cohn
from .observations import Observations

# Some columns, the observations near them (column or 1, near), and the weights of these.
_Block = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class LETKF:
    """The local ensemble transform Kalman filter.

    Attributes:
        half_width: of the horizontal taper, m: weight 5/24 there, 0 at twice that; None for no taper.
        vertical_half_width: of the vertical taper, m; None for one transform per column. Fields without
            levels, such as sea level, belong to the whole column: they neither are nor see tapered.
        inflation: multiplies the background anomalies, in columns without observations too.
        rtpp: relaxation to prior perturbations (Zhang et al. 2004), in [0, 1].
        max_observations: at most so many, the nearest, act on a column.
        block: columns analysed at a time; changes memory, not results.
        variables: what to update; default everything.
    """

    half_width: float | None
    vertical_half_width: float | None = None
    inflation: float = 1.0
    rtpp: float = 0.0
    max_observations: int = 1000
    block: int = 128
    variables: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_tuning("LETKF", self.inflation, self.rtpp)
        for name in ("half_width", "vertical_half_width", "max_observations", "block"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"LETKF: wanted {name} > 0, got {value}")

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble.

        Args:
            forecast: at least two members.
            observations: of the time of its newest slot; all must have a wet point around them.

        Returns a state of the same members, time and layout. Land, other variables and (with inflation 1)
        columns without observations are bitwise the same; without observations it is the forecast. It is
        differentiable once with respect to the forecast.

        Raises ObservationError as `departures`, LayoutError for unknown `variables`.
        """
        if not len(observations):
            return forecast
        layout, place = forecast.layout, forecast.data.device
        Y, d = departures(forecast, observations)
        data, wet = forecast.data.flatten(-2), layout.mask.flatten(-2).to(place)
        out = data.clone()
        groups = [(c.to(place), wet[c], t.to(place)) for c, t in self.level_groups(layout, observations)]
        some_wet = torch.stack([w.any(0) for _, w, _ in groups]).any(0)
        for columns, near, rho in self.column_blocks(layout, observations, some_wet.nonzero()[:, 0]):
            Y_near, d_near = Y[near], d[near]
            for channels, water, taper in groups:
                local = rho * taper[near]
                T, w = transform(Y_near, d_near, local, inflation=self.inflation, rtpp=self.rtpp)
                # Where nothing is seen T = I, up to rounding: leave the bits alone.
                seen = (local > 0).any(-1) | (self.inflation != 1)
                for part in torch.split(columns, self.block):
                    update(out, data, ~(water[:, part] & seen), channels, part, T, w)
        return forecast.replace(data=out.view_as(forecast.data))

    def column_blocks(self, layout: Layout, observations: Observations, columns: Tensor) -> Iterator[_Block]:
        """Columns with the observations that act on them; without a taper, one block with a single transform."""
        if self.half_width is None or math.isinf(self.half_width):
            everything = torch.arange(len(observations), device=columns.device)[None]
            yield columns, everything, torch.ones(everything.shape, dtype=torch.float64, device=columns.device)
            return
        lat, lon = (a.ravel() for a in layout.position(Field("any centre")))
        period = float(layout.grid.attrs.get("zonal_period", 360.0))
        local = LocalObservations(
            observations.lat, observations.lon, 2 * self.half_width, self.max_observations, period
        )
        for part in torch.split(columns, self.block):
            cells = part.cpu().numpy()
            near, distance = (torch.from_numpy(a).to(part.device) for a in local.near(lat[cells], lon[cells]))
            rho = gaspari_cohn(distance, half_width=self.half_width)
            if self.inflation == 1:  # what nothing can change needs no work
                some = (rho > 0).any(-1)
                part, near, rho = part[some], near[some], rho[some]
            if len(part):
                yield part, near, rho

    def level_groups(self, layout: Layout, observations: Observations) -> list[tuple[Tensor, Tensor]]:
        """Channels that share a transform, and the vertical weight of each observation for them."""
        channels = updated_channels(layout, self.variables)
        everywhere = torch.ones(len(observations), dtype=torch.float64)
        if self.vertical_half_width is None:
            return [(channels, everywhere)]
        one_slot = [k if f.levels else -1 for f in layout.fields for k in range(f.channels)]
        level = torch.tensor(one_slot * len(layout.slots))[channels]
        surface = torch.tensor([layout.field(str(n)).levels == 0 for n in observations.variable])
        depth = torch.tensor(observations.depth)
        groups = []
        for k in torch.unique(level).tolist():
            taper = everywhere
            if k >= 0:
                apart = (depth - float(layout.grid["lev"][k])).abs()
                taper = torch.where(surface, everywhere, gaspari_cohn(apart, half_width=self.vertical_half_width))
            groups.append((channels[level == k], taper))
        return groups
