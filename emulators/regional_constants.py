"""Constants of a regional model of the residual: what normalises it, and what corrects means and small scales."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .gensim_files import ConfigError
from .noise import Draws, Noise
from .regional import Regional
from .regional_scaling import detail, encode, increment
from .state import State
from .windows import Windows

__all__ = ["residual_constants", "sharpened", "unbiased"]


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
    emulator: Regional, windows: Windows, count: int = 512, noise: Draws | None = None, *, cells: int = 16
) -> Regional:
    """A residual model whose steps have, on average, as much power at the smallest scales as its training.

    What a network has not learnt it blurs, and a sampler of few calls overshoots. Forecasts of days go on from their
    own states and have twice the error of single steps. Therefore the small scales of the residuals,
    `regional_scaling.detail`, are multiplied by a constant for each state.

    Args:
        emulator: trained; steps are taken as it is to be used, with its sampler.
        windows: of training.
        count: of windows, spread evenly; all of them if there are fewer.
        noise: of the steps, for members numbered as windows; `Noise(0)` if not given.
        cells: width of the squares without land whose spectra are averaged (Welch 1967, doi:10.1109/TAU.1967.1161901);
            a quarter of it apart. Small scales are the upper third of wavenumbers.

    Returns:
        The emulator with the `residual_gain` that makes the powers agree, added up in float64. It may change the mean
        error, by bounds: `unbiased` is for afterwards.

    Raises ConfigError for an emulator that is not of the residual, for a map without such a square, or if a gain is
    less than 1/2 or more than 2.
    """
    emulator, wet = _of_residual(emulator).tuned(residual_gain=()), emulator.layout.mask[:1]
    kept = _squares(wet, cells).all((-2, -1))[0]
    if not bool(kept.any()):
        raise ConfigError(f"no square of {cells} x {cells} cells is without land; choose fewer cells")
    gains = np.geomspace(0.5, 2.0, 21)
    found, wanted = np.zeros((len(gains), len(emulator.layout.names))), np.zeros(len(emulator.layout.names))
    for state, driven, target in _steps(emulator, windows, count):
        with torch.no_grad():
            (drawn,) = emulator.conditional(state, driven, noise or Noise(0))
            z = drawn.draw()
            fine = detail(z, wet.to(z.device)[None])
            maps = torch.cat([drawn.decode(z + (gain - 1) * fine, True) for gain in gains.tolist()])
        found += _fine_power(_squares(maps, cells)[:, :, kept.to(maps.device)])
        wanted += _fine_power(_squares(target, cells)[:, :, kept.to(maps.device)])[0]
    fitting = np.array([_where(gains, f, w) for f, w in zip(found.T, wanted, strict=True)])
    if not np.isfinite(fitting).all():
        wrong = np.array(emulator.layout.names)[~np.isfinite(fitting)].tolist()
        share = (found[len(gains) // 2] / wanted).round(3).tolist()
        raise ConfigError(
            f"no gain between {gains[0]:g} and {gains[-1]:g} gives {', '.join(wrong)} the truth's power at small "
            f"scales, of which the emulator has {share}; train it longer, or take more windows than {count}"
        )
    return emulator.tuned(residual_gain=tuple(fitting.tolist()))


def unbiased(emulator: Regional, windows: Windows, count: int = 1024, noise: Draws | None = None) -> Regional:
    """A residual model whose steps are wrong by nothing on average over its training.

    A mean of thickness that network and sampler miss by a hundredth of a residual's 5 cm is 0.4 m of ice after a year
    of twelve-hour steps.

    Args:
        emulator: trained; steps are taken as it is to be used, with its sampler.
        windows: of training.
        count: of windows, spread evenly; all of them if there are fewer.
        noise: of the steps, for members numbered as windows; `Noise(0)` if not given.

    Returns:
        The emulator with `residual_mean` less the mean error, over ocean cells, added up in float64.

    Raises ConfigError for an emulator that is not of the residual.
    """
    errors, wet = [], _of_residual(emulator).layout.mask[0]
    for state, driven, target in _steps(emulator, windows, count):
        with torch.no_grad():
            later = emulator.step(state, driven, noise or Noise(0)).data
        errors.append((later - target).cpu()[0][:, wet].double().mean(1))
    mean = torch.tensor(emulator.config.residual_mean, dtype=torch.float64) - torch.stack(errors).mean(0)
    return emulator.tuned(residual_mean=_numbers(mean))


def _of_residual(emulator: Regional) -> Regional:
    if emulator.kind != "residual":
        raise ConfigError(f"wanted a residual model, which has constants of its own, got a {emulator.kind} one")
    return emulator


def _steps(emulator: Regional, windows: Windows, count: int) -> Iterator[tuple[State, State, Tensor]]:
    """States, forcings and the states after a step, of windows spread evenly, for the member of their number."""
    device = next(emulator.network.parameters()).device
    for k in _spread(windows, count):
        batch = windows.get(k, 1, 1).to(device)
        state = State(batch.start, batch.time, emulator.layout, batch.numbers)
        yield state, State(batch.forcings[0], batch.time, emulator.forcing_layout, batch.numbers), batch.targets[0]


def _squares(maps: Tensor, cells: int) -> Tensor:
    """Overlapping squares of maps, (..., y, x) to (..., row, column, cell, cell)."""
    apart = max(cells // 4, 1)
    return maps.unfold(-2, cells, apart).unfold(-2, cells, apart)


def _fine_power(squares: Tensor) -> NDArray[np.float64]:
    """Mean power in the upper third of wavenumbers (map, channel), of squares (map, channel, square, cell, cell)."""
    n = squares.shape[-1]
    taper = torch.hann_window(n + 2, periodic=False, dtype=torch.float64, device=squares.device)[1:-1]
    x = squares.double()
    power = torch.fft.fft2((x - x.mean((-2, -1), keepdim=True)) * taper * taper[:, None]).abs().square()
    k = torch.fft.fftfreq(n, 2 / n, dtype=torch.float64, device=squares.device)
    ring = torch.hypot(k, k[:, None])  # Nyquist's is 1
    return np.asarray(power[..., (ring > 2 / 3) & (ring <= 1)].sum(-1).mean(-1).cpu())


def _where(x: NDArray[np.float64], y: NDArray[np.float64], wanted: float) -> float:
    """The last x at which y, on straight lines between its values, rises to what is wanted; NaN for none."""
    rises = np.flatnonzero((y[:-1] <= wanted) & (wanted <= y[1:]))
    if not len(rises):
        return math.nan
    k = rises[-1]
    return float(np.interp(wanted, y[k : k + 2], x[k : k + 2]))


def _spread(windows: Windows, count: int) -> list[int]:
    total = windows.count(1, 1)
    return sorted({i * total // count for i in range(count)})


def _numbers(*tensors: Tensor) -> tuple[float, ...]:
    return tuple(float(v) for t in tensors for v in t)
