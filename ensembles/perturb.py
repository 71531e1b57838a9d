"""Initial perturbations: what makes the members of an ensemble differ.

A perturbation is a small frozen object with one method, `draw(layout, members, time, noise)`, that gives
fields of unit variance in every wet cell; `perturb` scales them per variable and adds them. Draws belong
to (seed, member), so a member is the same in an ensemble of 3 and of 3000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import cftime
import numpy as np
import torch
from torch import Tensor

from ..emulators import Draws, Layout, State
from .bounded import Space


class Perturbation(Protocol):
    """Anything that draws unit-variance fields."""

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """Fields of unit variance where wet, 0 on land, (member, channel, y, x)."""
        ...


@dataclass(frozen=True)
class White:
    """Independent noise in every wet cell and channel."""

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """White noise, (member, channel, y, x)."""
        return noise.stream("white").normal(members, time, layout.shape) * layout.mask


@dataclass(frozen=True)
class Correlated:
    """Noise smoothed in the horizontal and the vertical, of unit variance in every wet cell.

    White noise over wet cells is averaged with Gaussian weights exp(-r²/2L²) along both axes and divided
    by the root sum of squares of the weights that fell on water, so coasts keep full variance. Correlation
    follows the axes and may cross narrow land; that of `Diffused` does not, for a few solves per draw.

    Attributes:
        length: L, in m.
        depth: vertical length scale in m; 0 for independent levels.
    """

    length: float
    depth: float = 0.0

    def draw(self, layout: Layout, members: Sequence[int], time: cftime.datetime, noise: Draws) -> Tensor:
        """Correlated noise, (member, channel, y, x); variables and time slots are independent."""
        white = noise.stream("correlated").normal(members, time, layout.shape) * layout.mask
        across, along = (torch.from_numpy(m).float() for m in _weights(layout, self.length))
        out = torch.empty_like(white)
        for slot in range(len(layout.slots)):
            for f in layout.fields:
                channels = layout.channels(f.name, slot)
                vertical = torch.from_numpy(vertical_weights(layout, f.channels, self.depth)).float()
                wet = layout.mask[channels].float()
                norm = torch.sqrt(_smooth(wet, across**2, along**2, vertical**2)).clamp(min=1e-12)
                for row, fields in enumerate(white):  # member by member: bits must not depend on the batch
                    out[row, channels] = _smooth(fields[channels].clone(), across, along, vertical) / norm * wet
        return out


def _smooth(field: Tensor, across: Tensor, along: Tensor, vertical: Tensor) -> Tensor:
    """Weighted sums along z, y and x; `along` has one matrix per row, (y, x, x)."""
    mixed = torch.einsum("kl,lyx->kyx", vertical, field)
    mixed = torch.einsum("yz,kzx->kyx", across, mixed)
    return torch.einsum("yxw,kyw->kyx", along, mixed)


def _weights(layout: Layout, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian weights between rows, (y, y), and within each row, (y, x, x), from metric distances."""
    lat, lon = layout.position(layout.fields[0])
    metres = np.radians(1.0) * 6.371e6
    middle = lat.mean(1)
    across = np.exp(-0.5 * ((middle[:, None] - middle) * metres / length) ** 2)
    period = float(layout.grid.attrs.get("zonal_period", 360.0))
    apart = (lon[:, :, None] - lon[:, None, :] + period / 2) % period - period / 2
    scale = np.maximum(np.cos(np.radians(middle)), 0.05)[:, None, None] * metres / length
    return across, np.exp(-0.5 * (apart * scale) ** 2)


def vertical_weights(layout: Layout, levels: int, depth: float) -> np.ndarray:
    """Gaussian weights between levels, (level, level): the identity for surface fields or a `depth` of 0 m."""
    if levels == 1 or depth <= 0 or "lev" not in layout.grid.coords:
        return np.eye(levels)
    lev = layout.grid["lev"].values[:levels]
    return np.asarray(np.exp(-0.5 * ((lev[:, None] - lev) / depth) ** 2))


def perturb(
    state: State,
    members: int | Sequence[int] | None = None,
    *,
    amplitude: float | Mapping[str, float],
    noise: Draws,
    kind: Perturbation = White(),
    scale: Mapping[str, Sequence[float]] | None = None,
    space: Mapping[str, Space] | None = None,
) -> State:
    """An ensemble around a state.

    Args:
        state: one member, or already an ensemble (which is then perturbed member by member).
        members: how many, or which numbers; default the state's own.
        amplitude: standard deviation per variable in its own unit, e.g. `{"thetao": 0.1}` (variables not
            named are left alone); or one number in units of `scale` for every variable of it.
        noise: of the experiment.
        kind: what is drawn: `White()`, `Correlated(length, depth)`, `Diffused(length, depth)`, ...
        scale: standard deviation per variable and level, e.g. `emulator.scale` or the background spread;
            amplitudes are multiplied by it.
        space: where bounded variables are displaced, e.g. `ICE`; their amplitudes are standard deviations there,
            without unit: 0.1 of `Log()` is 10 %. Variables without one, and those not perturbed, are left alone.

    The same noise gives the same draws, whatever the state, the amplitudes and the forcing that follow: experiments
    that share it differ by what was changed and not by chance (common random numbers).

    Raises ValueError for an amplitude of a variable that is not in the state, or a number without `scale`.
    """
    numbers = (
        state.members if members is None else tuple(range(members)) if isinstance(members, int) else tuple(members)
    )
    ensemble = state if numbers == state.members else state.spread_to(numbers)
    if not isinstance(amplitude, Mapping):
        if scale is None:
            raise ValueError(
                f"amplitude={amplitude} has no unit; give `scale`, or amplitudes per variable like {{'thetao': 0.1}}"
            )
        amplitude = dict.fromkeys(scale, amplitude)
    unknown = [n for n in amplitude if n not in state.layout.names]
    if unknown:
        raise ValueError(
            f"no variable(s) {', '.join(unknown)} to perturb; the state has {', '.join(state.layout.names)}"
        )
    layout = state.layout
    size = torch.zeros(layout.shape[0])
    for name, value in amplitude.items():
        for slot in range(len(layout.slots)):
            factor = torch.tensor(scale[name], dtype=torch.float32) if scale else torch.ones(1)
            size[layout.channels(name, slot)] = value * factor
    drawn = kind.draw(layout, numbers, state.time, noise.stream("perturb")).to(ensemble.data)
    by = drawn * size.to(ensemble.data)[:, None, None]
    data = ensemble.data + by
    for name in (n for n in space or {} if n in amplitude):
        for slot in range(len(layout.slots)):
            c = layout.channels(name, slot)
            wet, moved = layout.mask[c].to(by.device), data[:, c]
            moved[:, wet] = (space or {})[name].move(ensemble.data[:, c][:, wet], by[:, c][:, wet])
    return ensemble.replace(data=data)
