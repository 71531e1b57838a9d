"""What can be asked of any root of a covariance: random fields, variances, correlations; and σ from states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cftime
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..emulators import Draws, Layout, Noise, Source, State, attributes
from ..ensembles.metric import distance
from .background import Hybrid, Root
from .implicit_diffusion import implicit_diffusion

__all__ = ["correlation_at", "nearest_point", "randomise", "std_of", "variance"]

_COLUMNS = 64  # control vectors at once


def randomise(
    root: Root,
    noise: Draws,
    members: Sequence[int],
    time: cftime.datetime | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random fields of covariance B, (member, channel, y, x): of each member the same in any batch.

    Args:
        root: L.
        noise: draws white control vectors of the stream "background".
        members: numbers.
        time: of the draw.
        dtype, device: of the fields.
    """
    white = noise.stream("background").normal(members, time, (root.size,), dtype=dtype, device=device)
    return torch.stack([root.apply(row) for row in white])


def variance(root: Root, *, samples: int | None = None, noise: Draws | None = None) -> Tensor:
    """Diagonal of B, (channel, y, x) float64.

    Args:
        root: if it knows its own (`root.variance()`), that is the answer; of a `Hybrid` the sum over its parts.
        samples: number of random fields to estimate it from, with a relative error of sqrt(2/samples); by default
            exactly, from one product for each element of the control vector.
        noise: of the random fields.
    """
    if isinstance(root, Hybrid):
        parts = [beta * variance(part, samples=samples, noise=noise) for beta, part in root.parts]
        return torch.stack(parts).sum(0)
    known = getattr(root, "variance", None)
    if known is not None and samples is None:
        found: Tensor = known()
        return found
    count, total = root.size if samples is None else samples, torch.zeros(root.layout.shape, dtype=torch.float64)
    noise = (Noise(0) if noise is None else noise).stream("variance")
    for start in range(0, count, _COLUMNS):
        some = range(start, min(start + _COLUMNS, count))
        if samples is None:
            v = torch.zeros(len(some), root.size, dtype=torch.float64)
            v[range(len(some)), some] = 1.0
        else:
            v = noise.normal(some, None, (root.size,), dtype=torch.float64)
        total += root.apply(v).square().sum(0)
    return total if samples is None else total / samples


def correlation_at(
    root: Root, variable: str, lat: float, lon: float, *, level: int = 0, std: Tensor | None = None
) -> xr.Dataset:
    """Correlations of everything with one variable at one place: a column of B over standard deviations.

    Args:
        root: L.
        variable, lat, lon, level: where; the nearest wet point, in the newest time slot.
        std: square root of the diagonal of B, (channel, y, x), if `variance(root)` would take too long.

    Returns a Dataset of the layout's variables `(time slots, [lev], y, x)`, between -1 and 1, NaN on land and where
    nothing varies; attributes say which point.

    Raises KeyError for an unknown variable, ValueError for a level that has no wet point or a point that does not vary.
    """
    layout = root.layout
    row, column = nearest_point(layout, variable, lat, lon, level)
    channel = layout.channels(variable).start + level
    sigma = variance(root).sqrt() if std is None else std.double().cpu()
    here = float(sigma[channel, row, column])
    if not here > 0:
        raise ValueError(
            f"{variable} does not vary at row {row}, column {column}, level {level}: it has no correlation"
        )
    impulse = torch.zeros(layout.shape, dtype=torch.float64)
    impulse[channel, row, column] = 1.0
    start = torch.zeros(root.size, dtype=torch.float64)
    covariance = root.apply(torch.func.vjp(root.apply, start)[1](impulse)[0])
    values = torch.where(sigma > 0, covariance / torch.where(sigma > 0, sigma, 1.0) / here, torch.nan)
    state = State(values[None], cftime.DatetimeNoLeap(1, 1, 1), layout, (0,))
    dataset = layout.unpack(state).isel(member=0, drop=True).drop_vars("time")
    place = [float(a[row, column]) for a in layout.position(layout.field(variable))]
    for name in layout.names:
        long_name = attributes(name).get("long_name", name)
        dataset[name].attrs = {"long_name": f"correlation with {long_name}", "units": "1"}
    dataset = dataset.isel(time=0) if len(layout.slots) == 1 else dataset.rename(time="slot")
    return dataset.assign_attrs(
        title=f"correlation with {variable} at {place[0]:.2f}N {place[1]:.2f}E, level {level}",
        variable=variable, level=level, row=row, column=column, standard_deviation=here,
    )  # fmt: skip


def nearest_point(layout: Layout, variable: str, lat: float, lon: float, level: int = 0) -> tuple[int, int]:
    """Row and column of the wet point of a variable that is nearest to a place in degrees.

    Raises KeyError for an unknown variable, ValueError for a level without wet points.
    """
    f = layout.field(variable)
    if not 0 <= level < f.channels or not layout.field_mask(f)[level].any():
        raise ValueError(f"{variable} has no wet point on level {level} of {f.channels}")
    away = distance(
        *layout.position(f), np.array(lat), np.array(lon), float(layout.grid.attrs.get("zonal_period", 360.0))
    )
    row, column = np.unravel_index(np.argmin(np.where(layout.field_mask(f)[level], away, np.inf)), away.shape)
    return int(row), int(column)


def std_of(states: State | Source | Iterable[State], *, by: str = "point", smooth: float = 0.0) -> Tensor:
    """Standard deviations over members and times, (channel, y, x) float64, 0 on land.

    Of differences between forecasts for one time (Parrish and Derber 1992, the NMC method) they are a first guess of
    background errors; so are those of anomalies from a climatology, times a factor.

    Args:
        states: an ensemble; a source, of which every record counts; or any states of one layout, read once.
        by: "point"; or "level", the root mean square over the wet area of each channel.
        smooth: length in m over which variances are averaged along the water, 0 for none; integrals stay.

    Raises ValueError for fewer than two fields or another `by`, LayoutError for states of different layouts.
    """
    if by not in ("point", "level"):
        raise ValueError(f"wanted by='point' or 'level', got {by!r}")
    count, mean, squares, layout = 0, None, None, None
    if isinstance(states, Source):
        states = map(states.state, states.times[: len(states.times) - max(states.layout.slots)])
    for state in [states] if isinstance(states, State) else states:
        if layout is not None:
            layout.require_same(state.layout, "std_of")
        layout = state.layout
        for row in state.data.detach().cpu().double():  # Welford (1962)
            count += 1
            mean = torch.zeros_like(row) if mean is None else mean
            squares = torch.zeros_like(row) if squares is None else squares
            change = row - mean
            mean = mean + change / count
            squares = squares + change * (row - mean)
    if layout is None or squares is None or count < 2:
        raise ValueError(f"standard deviations need at least two fields, got {count}")
    found = torch.where(layout.mask, squares / (count - 1), 0.0)
    if smooth > 0:
        found = _smoothed(layout, found, smooth)
    if by == "level":
        area = torch.from_numpy(np.nan_to_num(layout.grid["areacello"].values)).double() * layout.mask
        total = area.sum((-2, -1)).clamp(min=1e-300)
        found = ((area * found).sum((-2, -1)) / total)[:, None, None] * layout.mask
    return found.sqrt()


def _smoothed(layout: Layout, maps: Tensor, length: float) -> Tensor:
    """Maps (channel, y, x), averaged by implicit diffusion within each level's coasts."""
    out = torch.zeros_like(maps)
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    for f in layout.fields:
        lat, lon = (np.ascontiguousarray(a, dtype=np.float64) for a in layout.position(f))
        for k, wet in enumerate(layout.field_mask(f)):
            if not wet.any():
                continue
            filtered = implicit_diffusion(lat, lon, wet.copy(), length, period=period, normalisation=None)
            where = torch.from_numpy(wet.copy())
            for slot in range(len(layout.slots)):
                c = layout.channels(f.name, slot).start + k
                out[c][where] = filtered.mean(maps[c][where]).clamp(min=0)
    return out
