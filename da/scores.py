"""Error and spread of an ensemble against a known truth, channel by channel, area by area.

    error² = Σ a (x̄ - x_t)² / Σ a,   spread² = (N+1)/N Σ a s² / Σ a,   s² the unbiased variance over members

If truth and members are drawn from one distribution, both have the same expectation (Fortin et al. 2014,
doi:10.1175/JHM-D-14-0008.1, eq. 15). Sums are float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..emulators import Layout, State, attributes


def against(state: State, truth: State) -> tuple[Tensor, Tensor]:
    """Error² and spread² of every channel of the newest slot, both (channel,) float64, in the square of its unit.

    Args:
        state: an ensemble; the spread of a single member is 0.
        truth: one member, of the same layout and time.

    Raises LayoutError for another layout, ValueError for several true members or another time.
    """
    state.layout.require_same(truth.layout, "scores: truth")
    if len(truth.members) != 1 or truth.time != state.time:
        raise ValueError(f"wanted one true state of {state.time}, got members {truth.members} of {truth.time}")
    layout, place = state.layout, state.data.device
    channels = newest_channels(layout)
    area = torch.tensor(layout.grid["areacello"].values, dtype=torch.float64, device=place)
    weight = layout.mask[channels].to(place) * area
    total = weight.sum((-2, -1))
    x = state.data[:, channels].double()
    error = (x.mean(0) - truth.data[0, channels].to(x)).square()
    N = len(state.members)
    spread = x.var(0) * (N + 1) / N if N > 1 else torch.zeros_like(error)
    first, second = ((weight * f).sum((-2, -1)) / total for f in (error, spread))
    return first, second


def newest_channels(layout: Layout) -> slice:
    """The channels of the newest slot."""
    count = layout.shape[0] // len(layout.slots)
    return slice(layout.shape[0] - count, layout.shape[0])


def by_band(cycles: xr.Dataset, grid: xr.Dataset, bands: Mapping[str, tuple[float, float]] | None = None) -> xr.Dataset:
    """Error and spread per variable and depth band, from what `assimilate` stored of every cycle.

    Args:
        cycles: `error` and `spread` (..., channel), root mean squares, with coordinates `variable` and `level`.
        grid: with `lev` and `dz` (lev) in m, if a variable has levels.
        bands: from where to where in m, by name; default 0-300, 300-1000 and 1000-6000 m. Bands without a level are
            left out; the uppermost level is always there, as "surface".

    Returns the same variables along `band`, with coordinates `variable`, `depth` and `units`, and `ratio` = spread /
    error; squares of levels are averaged with their thickness as weight.
    """
    bands = bands or {"0-300 m": (0, 300), "300-1000 m": (300, 1000), "1000-6000 m": (1000, 6000)}
    squares, labels = cycles[["error", "spread"]] ** 2, []
    parts: list[xr.Dataset] = []
    for name in dict.fromkeys(cycles["variable"].values.tolist()):
        channels = np.flatnonzero(cycles["variable"].values == name)
        layers = {"surface": (channels[:1], np.ones(1))}
        if len(channels) > 1:
            lev, dz = (grid[n].values[: len(channels)] for n in ("lev", "dz"))
            for band, (top, bottom) in bands.items():
                within = (lev >= top) & (lev < bottom)
                if within.any():
                    layers[band] = channels[within], dz[within]
        for band, (which, thickness) in layers.items():
            mean = squares.isel(channel=which).drop_vars(["variable", "level"])
            mean = mean.weighted(xr.DataArray(thickness, dims="channel")).mean("channel")
            parts.append(mean**0.5)
            labels.append((name, band, str(attributes(name)["units"])))
    said = dict(zip(("variable", "depth", "units"), ([*x] for x in zip(*labels, strict=True)), strict=True))
    out: xr.Dataset = xr.concat(parts, "band").assign_coords({k: ("band", v) for k, v in said.items()})
    return out.assign(ratio=out["spread"] / out["error"])
