"""Whether derivatives of an emulator are those of the dynamics it learned: growth, validity, spectra.

A gradient that passes `check_adjoint` is that of the emulator, which need not be that of the ocean: learned steps may
grow perturbations too fast, too slow or at the wrong scales (Selz and Craig 2023, doi:10.1029/2023GL105747; Tian,
Holdaway and Kleist 2024, arXiv:2411.14677).  Compared with the truth, where that is a model too, or with expectation:

    growth     |M(x + δ) - M(x)| and |M'δ| in a norm, for differences δ of the size of analysis errors
    validity   how long M'δ resembles M(x + δ) - M(x): correlation > 0.9 and relative error < 0.5
    spectra    zonal wavenumber spectra of ∂J/∂x, whose small scales a noisy adjoint fills, and of x itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, LayoutError, Noise, State
from ..ensembles import Norm
from ..ensembles.dates import shifted
from .adjoint import check_adjoint
from .sensitivity import sensitivity

__all__ = ["Dynamics", "gradient_spectra", "growth", "passport", "zonal_spectrum"]


@dataclass(frozen=True, eq=False)
class Dynamics:
    """A model with a state to start from: the emulator under test, or the truth's own.

    Attributes:
        emulator: differentiable.
        state: where perturbations start; the same members for all that are compared.
        forcing: as for `rollout`.
    """

    emulator: Emulator
    state: State
    forcing: Forcing | None = field(default=None, repr=False)


def passport(
    models: Mapping[str, Dynamics],
    errors: State,
    norm: Norm,
    quantity: Callable[[State], Tensor],
    steps: int,
    *,
    sizes: Sequence[float] = (0.1, 1.0),
    segment: int = 32,
    noise: Draws | None = None,
) -> xr.Dataset:
    """`growth`, `gradient_spectra`, and of one step of each model the numbers of `check_adjoint`, in one Dataset.

    Arguments and errors are those of the first two. To what they return are added `dot_product`, `taylor_slope`
    (infinite for linear steps) and `gradient_on_land` (model), and `failures` (model), text, empty where nothing is
    wrong.
    """
    found = growth(models, errors, norm, steps, sizes=sizes, noise=noise)
    found = found.merge(gradient_spectra(models, quantity, steps, segment=segment, noise=noise), combine_attrs="drop")
    reports = [check_adjoint(m.emulator, m.state, m.forcing, noise) for m in models.values()]
    numbers = {
        "dot_product": [r.dot_product for r in reports],
        "taylor_slope": [r.slope for r in reports],
        "gradient_on_land": [r.land for r in reports],
        "failures": ["; ".join(r.failures) for r in reports],
    }
    title = f"derivatives of {', '.join(models)}: norm {norm!r}, quantity {quantity!r}"
    return found.assign({k: ("model", v) for k, v in numbers.items()}).assign_attrs(title=title)


def growth(
    models: Mapping[str, Dynamics],
    errors: State,
    norm: Norm,
    steps: int,
    *,
    sizes: Sequence[float] = (0.1, 1.0),
    noise: Draws | None = None,
) -> xr.Dataset:
    """How perturbations grow in each model, and for how long its derivative says so.

    Args:
        models: by name, all of one step length. Their layouts may differ; perturbations are carried over by variable.
        errors: δ, perturbations of the members, such as `randomise(root, ...)` in a State.
        norm: of the differences.
        steps: how many.
        sizes: factors of δ.
        noise: frozen, the same with and without the perturbation.

    Returns a Dataset of `nonlinear`, `tangent` (norms), `correlation`, `relative_error` (model, size, member, lead),
    `rate` (model, size, member), the exponential growth per day of `nonlinear`, `tangent_rate`, and `valid_time` in
    days, the last lead up to which the tangent is good. `lead` is in days.

    Raises ValueError for steps < 1 or models of different steps, LayoutError for errors a model cannot take.
    """
    lengths = {d.emulator.dt for d in models.values()}
    if steps < 1 or len(lengths) != 1:
        raise ValueError(f"growth: wanted steps >= 1 and models of one step length, got {steps} and {lengths}")
    day = lengths.pop().total_seconds() / 86400.0
    noise = Noise(0) if noise is None else noise
    found = [[_pair(d, errors, float(s), norm, steps, noise) for s in sizes] for d in models.values()]
    lead = day * np.arange(steps + 1)
    dims = ("model", "size", "member", "lead")
    values = {n: np.array([[pair[n] for pair in row] for row in found]) for n in found[0][0]}
    dataset = xr.Dataset(
        {n: (dims, v, {"units": "1"}) for n, v in values.items()},
        coords={"model": list(models), "size": list(sizes), "member": list(errors.members),
                "lead": ("lead", lead, {"units": "days"})},
    )  # fmt: skip
    for name, of in (("rate", "nonlinear"), ("tangent_rate", "tangent")):
        ratio = values[of][..., -1] / np.maximum(values[of][..., 0], 1e-300)
        dataset[name] = (dims[:3], np.log(np.maximum(ratio, 1e-300)) / lead[-1], {"units": "day-1"})
    good = (values["correlation"] > 0.9) & (values["relative_error"] < 0.5)
    last = np.logical_and.accumulate(good, -1).sum(-1) - 1
    dataset["valid_time"] = (dims[:3], np.where(last >= 0, lead[last], 0.0), {"units": "days"})
    return dataset.assign_attrs(norm=repr(norm), title="growth of perturbations, nonlinear and tangent")


def _pair(model: Dynamics, errors: State, size: float, norm: Norm, steps: int, noise: Draws) -> dict[str, np.ndarray]:
    """Norms and likeness of nonlinear and tangent differences, (member, lead) each."""
    state, layout = model.state, model.state.layout
    weights = norm.weights(layout).to(state.data.device)
    delta = size * _carried(errors, state)
    now, moved = state, state.replace(data=state.data + delta)
    rows = [_likeness(delta, delta, weights)]
    for _ in range(steps):
        drive = None if model.forcing is None else model.forcing.at(now.time, now.members)
        at, later = now, shifted(model.forcing, now.time, model.emulator.dt)

        def step(x: Tensor, at: State = at, drive: State | None = drive) -> Tensor:
            return model.emulator.step(at.replace(data=x), drive, noise).data

        new, delta = torch.func.jvp(step, (now.data,), (delta,))[:2]
        with torch.no_grad():
            other = step(moved.data)
        now, moved = now.replace(data=new.detach(), time=later), moved.replace(data=other, time=later)
        delta = delta.detach()
        rows.append(_likeness(other - now.data, delta, weights))
    return {k: torch.stack([r[k] for r in rows], -1).cpu().numpy() for k in rows[0]}


def _carried(errors: State, to: State) -> Tensor:
    """Perturbations in the channels of another layout, by variable; all time slots get the same."""
    if errors.members != to.members or errors.layout.shape[1:] != to.layout.shape[1:]:
        raise LayoutError(
            f"growth: wanted errors of members {to.members} on a grid of {to.layout.shape[1:]}, got {errors.members} "
            f"and {errors.layout.shape[1:]}"
        )
    out = torch.zeros_like(to.data)
    for name in errors.layout.names:
        if name in to.layout.names and errors[name].shape[1] == to[name].shape[1]:
            for slot in range(len(to.layout.slots)):
                out[:, to.layout.channels(name, slot)] = errors[name].to(to.data)
        elif bool((errors[name] != 0).any()):
            raise LayoutError(f"growth: {name} is perturbed, and a model has {', '.join(to.layout.names)}")
    return out * to.layout.mask.to(out.device)


def _likeness(nonlinear: Tensor, tangent: Tensor, weights: Tensor) -> dict[str, Tensor]:
    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (weights * a.double() * b.double()).sum((-3, -2, -1))

    n, t = inner(nonlinear, nonlinear).sqrt(), inner(tangent, tangent).sqrt()
    apart = nonlinear - tangent
    return {
        "nonlinear": n,
        "tangent": t,
        "correlation": inner(nonlinear, tangent) / (n * t).clamp(min=1e-300),
        "relative_error": inner(apart, apart).sqrt() / n.clamp(min=1e-300),
    }


def gradient_spectra(
    models: Mapping[str, Dynamics],
    quantity: Callable[[State], Tensor],
    steps: int,
    *,
    segment: int = 32,
    level: int = 0,
    noise: Draws | None = None,
) -> xr.Dataset:
    """Zonal wavenumber spectra of the gradient of a scalar and of the state itself, and their slopes.

    Args:
        models: by name.
        quantity: State to (member,).
        steps: of the forecast.
        segment: cells in a row that are analysed together, see `zonal_spectrum`.
        level: of variables with levels.
        noise: frozen.

    Returns a Dataset of `gradient` and `state` (model, variable, wavenumber), normalised to a sum of 1, and of
    `gradient_slope` and `state_slope` (model, variable), the exponents of the wavenumber between two cycles a segment
    and one in four cells. `wavenumber` is in cycles per cell. Variables are those that all models have.
    """
    known = [m.state.layout.names for m in models.values()]
    names = [n for n in known[0] if all(n in others for others in known)]
    spectra = np.full((2, len(models), len(names), segment // 2), np.nan)
    for i, model in enumerate(models.values()):
        layout = model.state.layout
        maps = sensitivity(model.emulator, model.state, model.forcing, quantity, steps, noise)
        for j, name in enumerate(names):
            row = min(level, layout.field(name).channels - 1)
            wet = layout.field_mask(layout.field(name))[row]
            gradient = maps[name].isel(time=-1).values
            gradient = gradient[:, row] if layout.field(name).levels else gradient
            for which, values in enumerate((gradient, model.state[name][:, row].detach().cpu().numpy())):
                power = zonal_spectrum(np.where(wet, values, 0.0), wet, segment)
                total = power.sum()
                spectra[which, i, j] = power / total if total > 0 else np.nan
    k = np.arange(1, segment // 2 + 1) / segment
    coords = {"model": list(models), "variable": names, "wavenumber": ("wavenumber", k, {"units": "cycles per cell"})}
    dims = ("model", "variable", "wavenumber")
    slopes = _slopes(k, spectra)
    return xr.Dataset(
        {
            "gradient": (dims, spectra[0]), "state": (dims, spectra[1]),
            "gradient_slope": (dims[:2], slopes[0]), "state_slope": (dims[:2], slopes[1]),
        },
        coords=coords,
        attrs={"title": f"zonal spectra of the gradient of {quantity!r} after {steps} steps, and of the state"},
    )  # fmt: skip


def zonal_spectrum(maps: np.ndarray, wet: np.ndarray, segment: int) -> np.ndarray:
    """Mean power of zonal waves over all stretches of wet cells, of 1 to segment/2 cycles, (segment // 2,).

    Args:
        maps: (..., y, x).
        wet: (y, x).
        segment: cells in a stretch, even; stretches overlap by a half and are windowed with a Hann window, after
            their mean is taken away (Welch 1967).

    Returns zeros where no stretch is wet. Raises ValueError for a segment that is odd, or longer than a row.
    """
    nx = wet.shape[1]
    if segment % 2 or not 4 <= segment <= nx:
        raise ValueError(f"wanted an even segment of 4 to {nx} cells, got {segment}")
    window = np.sin(np.pi * (np.arange(segment) + 0.5) / segment) ** 2
    total, count = np.zeros(segment // 2), 0
    for start in range(0, nx - segment + 1, segment // 2):
        part = slice(start, start + segment)
        rows = wet[:, part].all(1)
        values = maps[..., rows, part].astype(float)
        values = (values - values.mean(-1, keepdims=True)) * window
        power = np.abs(np.fft.rfft(values, axis=-1)[..., 1:]) ** 2
        total += power.reshape(-1, segment // 2).sum(0)
        count += power[..., 0].size
    return total / max(count, 1)


def _slopes(k: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    """Exponents of power laws, (...,) of (..., wavenumber); NaN where there is no power."""
    inside = (k >= 2 * k[0]) & (k <= 0.25)
    x = np.log(k[inside]) - np.log(k[inside]).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(spectra[..., inside])
    y = np.where(np.isfinite(y), y, np.nan)
    return np.asarray((x * y).sum(-1) / (x**2).sum())
