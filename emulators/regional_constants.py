"""Constants of a regional model of the residual: what normalises it, and what corrects means and small scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from .gensim_files import ConfigError
from .noise import Draws, Noise
from .regional import Regional
from .regional_scaling import encode, increment
from .state import State
from .windows import Place, Windows

_AT_ONCE = 16  # forecasts
_DAMPED = 0.6  # power grows with the first to second power of a gain

__all__ = ["fine_power", "residual_constants", "sharpened", "unbiased"]


def residual_constants(
    emulator: Regional, windows: Windows, count: int = 256
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of what a deterministic emulator's forecasts lack, before they are clamped.

    Args:
        emulator: deterministic.
        windows: of training.
        count: of windows, spread evenly; all of them if there are fewer.

    Returns:
        `residual_mean` and `residual_scale` of the configuration of a residual model around its network (state,),
        physical units, over ocean cells, added up in float64.

    Raises ConfigError for an emulator that is not deterministic, or a channel that it forecasts without any error.
    """
    if emulator.kind != "deterministic":
        raise ConfigError(
            f"wanted a deterministic emulator, whose forecasts are to be corrected, got a {emulator.kind} one"
        )
    config, device = emulator.config, next(emulator.network.parameters()).device
    wet = emulator.layout.mask[None, :1].to(device)
    cells = squares = sums = torch.zeros((), dtype=torch.float64, device=device)
    for k in _spread(windows, count):
        batch = windows.get(k, 1, 1).to(device)
        driven = batch.forcings[0].reshape(1, 2, -1, *wet.shape[2:])
        told = encode(batch.start, driven, config, wet.to(batch.start))
        with torch.no_grad():
            d = emulator.network(told, told.new_zeros(1, emulator.network.config.n_augment_hidden))
        lacks = torch.where(wet, increment(batch.start, batch.targets[0], config) - d, 0.0).double()
        cells, sums, squares = cells + wet.sum(), sums + lacks.sum((0, 2, 3)), squares + lacks.square().sum((0, 2, 3))
    std = torch.tensor(config.std, dtype=torch.float64, device=device)
    mean, scale = std * sums / cells, std * (squares / cells - (sums / cells).square()).clamp(min=0).sqrt()
    exact = [n for n, s in zip(emulator.layout.names, scale.tolist(), strict=True) if s == 0]
    if exact:
        raise ConfigError(f"the forecasts of {', '.join(exact)} lack nothing that varies, which no residual can learn")
    return _numbers(mean), _numbers(scale)


def sharpened(
    emulator: Regional,
    windows: Windows,
    count: int = 128,
    noise: Draws | None = None,
    *,
    steps: int = 20,
    rounds: int = 4,
    cells: int = 16,
    progress: bool = False,
) -> Regional:
    """A residual model whose forecasts have, on average, as much power at the smallest scales as its training.

    What a network has not learnt it blurs, and a sampler of few calls overshoots. By a few per cent that a step lacks,
    forecasts of days lack a fifth, as they go on from their own states. Therefore the small scales of the residuals,
    `regional_scaling.detail`, are multiplied by a constant for each state, found by repeated forecasts.

    Args:
        emulator: trained; steps are taken as it is to be used, with its sampler. Gains it has are where to begin.
        windows: of training.
        count: of forecasts, spread evenly; all there are if these are fewer.
        noise: of the forecasts, for members numbered as windows; `Noise(0)` if not given.
        steps: of a forecast; powers are means over its second half.
        rounds: how often all of them are made. What a first one lacks a second one lacks half of.
        cells: of `fine_power`.
        progress: show a bar for every round.

    Returns:
        The emulator with `residual_gain`; powers are added up in float64. It may change the mean error, by bounds:
        `unbiased` is for afterwards.

    Raises ConfigError for an emulator that is not of the residual, for a map without such a square, or if a gain is
    less than 1/2 or more than 2.
    """
    wet, names = _of_residual(emulator).layout.mask[0], emulator.layout.names
    gain = np.array(emulator.config.residual_gain or (1.0,) * len(names))
    for _ in range(rounds):
        found, wanted = np.zeros((2, len(names)))
        for state, target in _forecasts(emulator, windows, count, steps, noise, progress):
            found += fine_power(state, wet, cells) * len(state)
            wanted += fine_power(target, wet, cells) * len(state)
        gain = gain * (found / wanted) ** -_DAMPED
        if not ((gain >= 0.5) & (gain <= 2.0)).all():
            told = ", ".join(f"{n} {f / w:.3g}" for n, f, w in zip(names, found, wanted, strict=True))
            raise ConfigError(
                f"no gain between 0.5 and 2 gives every state the truth's power at small scales: of that, forecasts "
                f"have {told}; train the emulator longer, or choose more forecasts than {count}"
            )
        emulator = emulator.tuned(residual_gain=tuple(gain.tolist()))
    return emulator


def unbiased(
    emulator: Regional,
    windows: Windows,
    count: int = 1024,
    noise: Draws | None = None,
    *,
    progress: bool = False,
) -> Regional:
    """A residual model whose steps are wrong by nothing on average over its training.

    A mean of thickness that network and sampler miss by a hundredth of a residual's 5 cm is 0.4 m of ice after a year
    of twelve-hour steps.

    Args:
        emulator: trained; steps are taken as it is to be used, with its sampler.
        windows: of training.
        count: of windows, spread evenly; all of them if there are fewer.
        noise: of the steps, for members numbered as windows; `Noise(0)` if not given.
        progress: show a bar.

    Returns:
        The emulator with `residual_mean` less the mean error, over ocean cells, added up in float64.

    Raises ConfigError for an emulator that is not of the residual.
    """
    errors, wet = [], _of_residual(emulator).layout.mask[0]
    for state, target in _forecasts(emulator, windows, count, 1, noise, progress):
        errors.append((state - target).cpu()[..., wet].double().mean(-1))
    mean = torch.tensor(emulator.config.residual_mean, dtype=torch.float64) - torch.cat(errors).mean(0)
    return emulator.tuned(residual_mean=_numbers(mean))


def fine_power(maps: Tensor, wet: Tensor, cells: int = 16) -> NDArray[np.float64]:
    """Power at the smallest scales: the upper third of wavenumbers up to that of Nyquist, in all directions.

    Args:
        maps: (map, state, y, x).
        wet: where the ocean is, bool (y, x).
        cells: width of the squares without land whose spectra are averaged, with their mean removed and a Hann window
            (Welch 1967, doi:10.1109/TAU.1967.1161901); a quarter of it apart.

    Returns:
        Power (state,), the square of the maps' units times some constant, mean over maps, in float64.

    Raises ConfigError if there is no such square.
    """
    kept = _squares(wet, cells).all(-1).all(-1)
    if not bool(kept.any()):
        raise ConfigError(f"no square of {cells} x {cells} cells is without land; choose fewer cells")
    taper = torch.hann_window(cells + 2, periodic=False, dtype=torch.float64, device=maps.device)[1:-1]
    x = _squares(maps, cells)[:, :, kept.to(maps.device)].double()
    power = torch.fft.fft2((x - x.mean((-2, -1), keepdim=True)) * taper * taper[:, None]).abs().square()
    k = torch.fft.fftfreq(cells, 0.5, dtype=torch.float64, device=maps.device)  # 1 is Nyquist's
    ring = torch.hypot(k, k[:, None])
    return np.asarray(power[..., (ring > 2 / 3) & (ring <= 1)].sum(-1).mean((0, 2)).cpu())


def _of_residual(emulator: Regional) -> Regional:
    if emulator.kind != "residual":
        raise ConfigError(f"wanted a residual model, which has constants of its own, got a {emulator.kind} one")
    return emulator


def _forecasts(
    emulator: Regional, windows: Windows, count: int, steps: int, noise: Draws | None, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Forecasts from windows spread evenly and their truth (window, state, y, x), of each step of the second half."""
    device, numbers = next(emulator.network.parameters()).device, _spread(windows, count, steps)
    starts = range(0, len(numbers), _AT_ONCE)
    for first in track(starts, description="forecasts", disable=not progress):
        batch = windows.batch([Place(k) for k in numbers[first : first + _AT_ONCE]], steps, 1).to(device)
        state = State(batch.start, batch.time, emulator.layout, batch.numbers)
        for k in range(steps):
            driven = State(batch.forcings[k], state.time, emulator.forcing_layout, batch.numbers)
            with torch.no_grad():
                state = emulator.step(state, driven, noise or Noise(0))
            if k >= steps // 2:
                yield state.data, batch.targets[k]


def _squares(maps: Tensor, cells: int) -> Tensor:
    """Overlapping squares of maps, (..., y, x) to (..., row, column, cell, cell)."""
    apart = max(cells // 4, 1)
    return maps.unfold(-2, cells, apart).unfold(-2, cells, apart)


def _spread(windows: Windows, count: int, steps: int = 1) -> list[int]:
    total = windows.count(steps, 1)
    return sorted({i * total // count for i in range(count)})


def _numbers(*tensors: Tensor) -> tuple[float, ...]:
    return tuple(float(v) for t in tensors for v in t)
