"""The local ensemble transform Kalman filter for ocean-sized states.

Every water column makes its own analysis from the observations near it (Hunt et al. 2007,
doi:10.1016/j.physd.2006.11.008): the transform of `filters.py` with R⁻¹ multiplied by the weights of
Gaspari and Cohn (R-localisation), the same weights for all variables, levels and time slots of the column,
or, with a vertical half width or factors between variables, one transform for each group of channels that
share them. With a stride, columns between the analysed ones interpolate their transforms (`weights.py`).

Columns are taken in blocks; a block holds (column, near, member) numbers in float64, so memory does not
grow with the grid. Weights belong to the centre of a cell; velocities at its corner, half a cell away,
share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..emulators import Field, Layout, LayoutError, State
from .adaptive_localisation import column_taper
from .filters import check_tuning, departures, transform, updated_channels
from .localise import BasinObservations, LocalObservations, connected_basins, gaspari_cohn
from .observations import Observations
from .operators import operator_for
from .roots import faster_root
from .weights import AnalysisColumns, Solved, Weights, analysis_columns, updated, zonally_periodic

LARGEST_FLOAT32 = 1e4  # of ‖A‖, between interpolated weights: its root is then off by 1e-3 at the very most
EXACT_FLOAT32 = 300.0  # likewise, where weights are used as they are: what is lost is what the state is rounded by
COARSE = 1e-4  # relative error of a root whose gain is interpolated, which errs by percents
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
        stride: weights are computed in columns so many rows and columns apart and interpolated; 1 for
            every column, "auto" for a spacing of at most a quarter of the half width. Observations then reach up to two
            strides beyond their support.
        memory: bytes to work in, beside forecast, analysis and the observed members; `block` shrinks to fit.
        basins: labels (y, x) of basins, integers; an observation acts only on columns with the label of its
            heaviest cell, 0 on either side stands for any; "connected" for the connected parts of the wet cells.
        variable_factors: R⁻¹ of an observed variable is multiplied by a factor in [0, 1] when another variable
            is updated, {(observed, updated): factor}; those not named have 1.
        chance: an observation acts on a column only so far as its sample correlations with the column's channels exceed
            those that independent members have with this probability; see `column_taper`. 0.3 beside distance, 0.05
            alone; None for no such weights.
    """

    half_width: float | None
    vertical_half_width: float | None = None
    inflation: float = 1.0
    rtpp: float = 0.0
    max_observations: int = 1000
    block: int = 128
    variables: tuple[str, ...] | None = None
    stride: int | str = 1
    memory: int = 1_000_000_000
    basins: np.ndarray | str | None = field(default=None, compare=False)
    variable_factors: Mapping[tuple[str, str], float] | None = field(default=None, hash=False)
    chance: float | None = None

    def __post_init__(self) -> None:
        check_tuning("LETKF", self.inflation, self.rtpp)
        for name in ("half_width", "vertical_half_width", "max_observations", "block", "memory"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"LETKF: wanted {name} > 0, got {value}")
        if self.stride != "auto" and not (isinstance(self.stride, int) and self.stride > 0):
            raise ValueError(f'LETKF: wanted a stride of whole columns > 0 or "auto", got {self.stride!r}')
        if isinstance(self.basins, str) and self.basins != "connected":
            raise ValueError(f'LETKF: wanted basins (y, x) or "connected", got {self.basins!r}')
        if self.basins is not None and self._is_global:
            raise ValueError("LETKF: basins need a half_width; without one there is a single transform for all columns")
        wrong = {k: v for k, v in (self.variable_factors or {}).items() if not 0 <= v <= 1}
        if wrong:
            raise ValueError(f"LETKF: wanted variable_factors in [0, 1], got {wrong}")
        if self.chance is not None and not (0 < self.chance < 1 and not self._is_global):
            raise ValueError(f"LETKF: wanted 0 < chance < 1 and a half_width, got {self.chance} and {self.half_width}")

    @property
    def _is_global(self) -> bool:
        return self.half_width is None or math.isinf(self.half_width)

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble.

        Args:
            forecast: at least two members.
            observations: of the time of its newest slot; all must have a wet point around them.

        Returns a state of the same members, time and layout. Land, other variables and (with inflation 1)
        columns without observations are bitwise the same; without observations it is the forecast. It is
        differentiable once with respect to the forecast. Transforms are computed in float64; for float32 states with
        a stride in float32, where A is not too ill-conditioned for that to show.

        Raises ObservationError as `departures`, LayoutError for unknown `variables` or basins of another
        shape, ValueError if `memory` is too little for some rows of transforms.
        """
        if not len(observations):
            return forecast
        updates = updated_channels(forecast.layout, self.variables)
        columns = self._columns(forecast.layout, updates, forecast.data.device)
        observations = _side_by_side(observations) if columns.interpolates else observations
        groups = self.level_groups(forecast.layout, observations)
        channels = [c for c, _ in groups]
        self._require_memory(forecast, len(observations), columns, len(groups))
        solved = self._solved(forecast, observations, columns, groups)
        return updated(forecast, columns, channels, solved, self._block(forecast, len(observations)))

    def weights(self, forecast: State, observations: Observations, layout: Layout | None = None) -> Weights:
        """The transforms of an analysis, to be applied to this and other states of the same members.

        Args:
            forecast, observations: as in `analysis`.
            layout: of the states they will be applied to, default that of the forecast; it matters where transforms
                differ between fields or levels.

        They take twice (analysis column, member, member) numbers of the forecast's dtype for each group of channels.
        Raises what `analysis` does, and ValueError if they do not fit into `memory`.
        """
        if self.chance is not None and layout not in (None, forecast.layout):
            raise ValueError(
                "LETKF: weights by correlations (chance=) belong to the forecast's own fields; give no layout"
            )
        layout, known, N = layout or forecast.layout, forecast.layout.names, len(forecast.members)
        names = known if self.variables is None else self.variables
        variables = tuple(n for n in layout.names if n in names or n not in known)
        columns = self._columns(forecast.layout, updated_channels(forecast.layout, names), forecast.data.device)
        observations = _side_by_side(observations) if columns.interpolates else observations
        groups = self.level_groups(layout, observations, variables, forecast.layout)
        size = len(groups) * len(columns.cells) * N * N * forecast.data.element_size()
        if 2 * size > self.memory:  # they are joined from blocks
            raise ValueError(
                f"LETKF: {len(columns.cells)} columns of weights take {2 * size:.1e} bytes, got {self.memory:.0e}; "
                "take a larger stride or more memory (memory=)"
            )
        labels = [(f.name, k) for f in layout.fields for k in range(f.channels)]
        group: dict[tuple[str, int], int | None] = dict.fromkeys(labels)
        group |= {labels[c % len(labels)]: g for g, (channels, _) in enumerate(groups) for c in channels.tolist()}
        gains: tuple[Tensor, ...] = ()
        seen: tuple[Tensor, ...] = ()
        if len(observations) and len(columns.cells):
            parts = list(self._solved(forecast, observations, columns, groups))
            gains, seen = (tuple(torch.cat(p) for p in zip(*(part[i] for part in parts), strict=True)) for i in (0, 1))
        block = self._block(forecast, len(observations))
        return Weights(columns, gains, seen, group, forecast.members, forecast.layout.shape[1:], block)

    def column_blocks(self, layout: Layout, observations: Observations, columns: Tensor) -> Iterator[_Block]:
        """Columns with the observations that act on them; without a taper, one block with a single transform."""
        near = self._near(layout, observations, columns.device)
        for part in [columns] if self._is_global else torch.split(columns, self.block):
            index, rho = near(part)
            if self.inflation == 1 and not self._is_global:  # what nothing can change needs no work
                some = (rho > 0).any(-1)
                part, index, rho = part[some], index[some], rho[some]
            if len(part):
                yield part, index, rho

    def level_groups(
        self,
        layout: Layout,
        observations: Observations,
        variables: tuple[str, ...] | None = None,
        observed: Layout | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Channels that share a transform, and the weight of each observation for them.

        Args:
            layout: whose channels.
            observations: what acts.
            variables: what to update, default `self.variables`.
            observed: the layout that the observations are of, default `layout`.

        Raises LayoutError for unknown variables.
        """
        observed = observed or layout
        channels = updated_channels(layout, self.variables if variables is None else variables)
        factors = self._factors(layout, observed)
        seen = observations.primary
        surface = torch.tensor([observed.field(str(n)).levels == 0 for n in seen], dtype=torch.bool)
        depth, everywhere = torch.tensor(observations.depth), torch.ones(len(observations), dtype=torch.float64)
        sharp = self.vertical_half_width is not None
        of_slot = [(k if f.levels and sharp else -1, factors[f.name]) for f in layout.fields for k in range(f.channels)]
        kind = [of_slot[c % len(of_slot)] for c in channels.tolist()]
        groups = []
        for level, row in sorted(set(kind)):
            taper = everywhere
            if level >= 0:
                apart = (depth - float(layout.grid["lev"][level])).abs()
                near = gaspari_cohn(apart, half_width=self.vertical_half_width)
                taper = torch.where(surface, everywhere, near)
            if row:
                factor = dict(row)
                taper = taper * torch.tensor([factor.get(str(n), 1.0) for n in seen]).to(taper)
            groups.append((channels[torch.tensor([k == (level, row) for k in kind])], taper))
        return groups

    def _factors(self, layout: Layout, observed: Layout) -> dict[str, tuple[tuple[str, float], ...]]:
        """For each field to update, the factors of observed variables that are not 1."""
        given = self.variable_factors or {}
        unknown = sorted({n for pair in given for n in pair} - set(layout.names) - set(observed.names))
        if unknown:
            names = ", ".join(layout.names)
            raise LayoutError(f"variable_factors: no variable(s) {', '.join(unknown)}; the state has {names}")
        return {n: tuple(sorted((o, f) for (o, u), f in given.items() if u == n and f != 1)) for n in layout.names}

    def _near(
        self, layout: Layout, observations: Observations, place: torch.device
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """From columns to the observations near them, (column or 1, near), and the weights of these."""
        if self._is_global:
            all_of_them = torch.arange(len(observations), device=place)[None]
            return lambda part: (all_of_them, torch.ones(all_of_them.shape, dtype=torch.float64, device=place))
        assert self.half_width is not None
        half_width, (lat, lon) = self.half_width, (a.ravel() for a in layout.position(Field("any centre")))
        period = float(layout.grid.attrs.get("zonal_period", 360.0))
        o, limits = observations, (2 * half_width, self.max_observations, period)
        labels = self.labels(layout)
        if labels is None:
            local = LocalObservations(o.lat, o.lon, *limits)
            lists: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda c: local.near(lat[c], lon[c])  # noqa: E731
        else:
            of_cell = labels.ravel()
            apart = BasinObservations(o.lat, o.lon, of_cell[_heaviest_cells(layout, o)], *limits)
            lists = lambda c: apart.near(lat[c], lon[c], of_cell[c])  # noqa: E731

        def near(part: Tensor) -> tuple[Tensor, Tensor]:
            index, distance = (torch.from_numpy(a).to(part.device) for a in lists(part.cpu().numpy()))
            return index, gaspari_cohn(distance, half_width=half_width)

        return near

    def labels(self, layout: Layout) -> np.ndarray | None:
        """The labels of basins on a grid, (y, x) integers, or None; raises LayoutError for another shape or type."""
        if self.basins is None:
            return None
        if isinstance(self.basins, str):
            return connected_basins(layout.mask.any(0).numpy(), periodic=zonally_periodic(layout))
        labels = np.asarray(self.basins)
        if labels.shape != layout.shape[1:] or not np.issubdtype(labels.dtype, np.integer):
            raise LayoutError(
                f"wanted basins (y, x) = {layout.shape[1:]} of integers, got {labels.shape} of {labels.dtype}"
            )
        return labels

    def _columns(self, layout: Layout, channels: Tensor, place: torch.device) -> AnalysisColumns:
        """Where transforms are computed for these channels."""
        wet = layout.mask[channels].any(0).numpy()
        if self._is_global:
            every = torch.from_numpy(np.flatnonzero(wet))
            first = torch.zeros(len(every), 1, dtype=torch.int64)
            columns = AnalysisColumns(every[:1], every, first, torch.ones(first.shape, dtype=torch.float64))
        else:
            columns = analysis_columns(layout, wet, self.stride, self.half_width, self.labels(layout))
        return AnalysisColumns(*(a.to(place) for a in (columns.cells, columns.every, columns.around, columns.share)))

    def _solved(
        self,
        forecast: State,
        observations: Observations,
        columns: AnalysisColumns,
        groups: list[tuple[Tensor, Tensor]],
    ) -> Iterator[Solved]:
        """Gains of the analysis columns in order, block by block; 0 where nothing is seen, not only up to rounding."""
        place, dtype = forecast.data.device, forecast.data.dtype
        Y, d = departures(forecast, observations)
        near, tapers = self._near(forecast.layout, observations, place), [t.to(place) for _, t in groups]
        data, channels = forecast.data.flatten(-2), [c.to(place) for c, _ in groups]
        # For a state in float32 float32 is enough, unless A may be of a condition that is too high for it.
        single, condition = dtype == torch.float32, Y.square().sum(1) / (Y.shape[-1] - 1)
        largest = LARGEST_FLOAT32 if columns.interpolates else EXACT_FLOAT32
        Y_32, d_32 = (Y.float(), d.float()) if single else (Y, d)
        for part in torch.split(columns.cells, self._block(forecast, len(observations))):
            index, rho = near(part)
            some = (rho > 0).any(-1) | (self.inflation != 1)
            if not some.all():
                index, rho = index[some], rho[some]
            low = single and bool((self.inflation**2 * (rho * condition[index]).sum(-1) < largest).all())
            # As Y[index], at half the cost.
            Y_near = (Y_32 if low else Y).index_select(0, index.flatten()).view(*index.shape, Y.shape[-1])
            d_near = (d_32 if low else d)[index]
            eye = torch.eye(Y.shape[-1], dtype=Y_near.dtype, device=place)
            gains: list[Tensor] = []
            seen: list[Tensor] = []
            for rows, taper in zip(channels, tapers, strict=True):
                local = rho * taper[index]
                if self.chance is not None:
                    X = data[:, rows.unsqueeze(-1), part[some]].permute(2, 1, 0)
                    X = (X - X.mean(-1, keepdim=True)).to(Y_near.dtype)
                    local = local * column_taper(X, Y_near, chance=self.chance)
                T, w = transform(
                    Y_near, d_near, local.to(Y_near.dtype), inflation=self.inflation, rtpp=self.rtpp,
                    inverse_root=partial(faster_root, tolerance=COARSE if low and columns.interpolates else 0.0),
                )  # fmt: skip
                sees = (local > 0).any(-1) | (self.inflation != 1)
                gain = torch.where(sees[:, None, None], T + w.unsqueeze(-1) - eye, 0.0).to(dtype)
                if some.all():
                    gains, seen = [*gains, gain], [*seen, sees]
                    continue
                full = torch.zeros(len(some), *gain.shape[1:], dtype=dtype, device=place)
                all_sees = torch.zeros_like(some)
                full[some], all_sees[some] = gain, sees
                gains, seen = [*gains, full], [*seen, all_sees]
            yield gains, seen

    def _column_bytes(self, forecast: State, observations: int) -> int:
        """What one column needs while it is solved and while it is updated."""
        N, channels, size = len(forecast.members), forecast.layout.shape[0], forecast.data.element_size()
        near = min(self.max_observations, observations)
        near += 0 if self.chance is None else channels * near // (4 * N)  # correlations
        return 8 * (4 * near * N + 7 * N * N) + size * (6 * channels * N + 2 * N * N)

    def _block(self, forecast: State, observations: int) -> int:
        """Columns at a time, so that they take half the memory at most."""
        return max(1, min(self.block, self.memory // (2 * self._column_bytes(forecast, observations))))

    def _require_memory(self, forecast: State, observations: int, columns: AnalysisColumns, groups: int) -> None:
        block, N = self._block(forecast, observations), len(forecast.members)
        # Rows of gains around a block, once more while they are joined, and what is computed ahead.
        held = (2 * columns.longest(block) + block) * groups * N * N * forecast.data.element_size()
        wanted = block * self._column_bytes(forecast, observations) + held
        if wanted > self.memory:
            raise ValueError(
                f"LETKF: wanted memory >= {wanted:.2e} bytes for {N} members and the transforms of "
                f"{columns.longest(block)} columns around a block, got {self.memory:.2e}; a larger stride needs less"
            )


def _heaviest_cells(layout: Layout, observations: Observations) -> np.ndarray:
    """The cell that counts most for each observation, (observation,)."""
    operator = operator_for(layout, observations)
    heaviest = operator.index.gather(0, operator.weight.argmax(0, keepdim=True))[0]
    return (heaviest % (layout.shape[1] * layout.shape[2])).numpy()


def _side_by_side(observations: Observations) -> Observations:
    """Neighbours in space made neighbours in memory: gathering them takes a third of the time."""
    o = observations
    return o.select(np.lexsort((o.lon % 360, np.floor(o.lat), o.variable)))
