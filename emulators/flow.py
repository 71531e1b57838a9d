"""Flow matching between noise and data, with physical bounds in its likelihood and in its sampler.

Lipman et al. (2023, arXiv:2210.02747) join noise eps and data r by straight lines, and Finn et al. (2025,
arXiv:2508.14984) respect bounds L <= r <= U on them:

    x_t = t r + (1 - t) eps,   velocity v = r - eps,   t from 0 (noise) to 1 (data)

Training maximises the likelihood of the velocity, Gaussian with a learnt scale sigma = exp(s), and where the data sit
at a bound the probability of lying at it or beyond.  In sampling no velocity may end beyond a bound:

    v <- (clamp(x_t + (1 - t) v, L, U) - x_t) / (1 - t)

These are pure functions of tensors, whatever the network and the number of dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = [
    "Conditional",
    "bounded",
    "censored_nll",
    "denoiser",
    "on_path",
    "sample",
    "stratified_times",
    "time_nodes",
    "velocity_of",
]

Bounds = tuple[Tensor, Tensor]
Function = Callable[[Tensor, float], Tensor]
_TINY = 1e-5
_MOST_NOISE = 80.0  # of data of unit size; at t = 0 it would be infinite


def time_nodes(n_steps: int, scale: float = 3.0, shift: float = 0.5) -> tuple[float, ...]:
    """Pseudo-times of a sampler, dense at both ends as a logistic function is.

    Args:
        n_steps: number of intervals.
        scale: steepness; 0 for equal intervals.
        shift: towards the noise where positive.

    Returns:
        n_steps + 1 times from 0 to 1: (S(scale (k/n - 1/2) + shift) - S_0) / (S_n - S_0), S the logistic function.

    Raises:
        ValueError: for fewer than one step.

    Source: Finn et al. (2025).
    """
    if n_steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {n_steps}")
    if scale == 0:
        return tuple(k / n_steps for k in range(n_steps + 1))
    s = [1 / (1 + math.exp(-(scale * (k / n_steps - 0.5) + shift))) for k in range(n_steps + 1)]
    return (0.0, *((x - s[0]) / (s[-1] - s[0]) for x in s[1:-1]), 1.0)


def bounded(v: Tensor, x: Tensor, t: float, bounds: Bounds) -> Tensor:
    """Change a velocity so that a straight line along it ends within bounds.

    Args:
        v, x: velocity and place, any shape.
        t: pseudo-time, below 1.
        bounds: lowest and highest end, broadcast to x; infinite for none.
    """
    return (torch.clamp(x + (1 - t) * v, *bounds) - x) / (1 - t)


def sample(
    velocity: Function,
    eps: Tensor,
    nodes: Sequence[float],
    *,
    second_order: bool = True,
    bounds: Bounds | None = None,
) -> Tensor:
    """Follow the flow from noise to data; differentiable in whatever the velocity depends on.

    Args:
        velocity: network as function of (x, t).
        eps: standard normal start, any shape.
        nodes: pseudo-times from 0 to 1, see `time_nodes`.
        second_order: Heun's method, 2 n - 1 calls for n intervals, the last of which is Euler's; else Euler's, n calls.
        bounds: of the data, which are then met to rounding.

    Returns:
        Data, normalised, of eps's shape.

    Source: Finn et al. (2025); Karras et al. (2022, arXiv:2206.00364) for the order of calls.
    """

    def admissible(x: Tensor, t: float) -> Tensor:
        v = velocity(x, t)
        return v if bounds is None else bounded(v, x, t, bounds)

    x = eps
    for k in range(len(nodes) - 1):
        t, s = nodes[k], nodes[k + 1]
        v = admissible(x, t)
        ahead = x + (s - t) * v
        if second_order and k < len(nodes) - 2:
            ahead = x + (s - t) * 0.5 * (v + admissible(ahead, s))
        x = ahead
    return x


def denoiser(velocity: Function) -> Function:
    """The denoiser D(y, s) = E[r | y] of y = r + s eps that a velocity v(x, t) implies.

    With t = 1 / (1 + s), t y lies on the path, and D = x + (1 - t) v.
    """

    def denoise(y: Tensor, s: float) -> Tensor:
        t = 1 / (1 + s)
        x = t * y
        return x + (1 - t) * velocity(x, t)

    return denoise


def velocity_of(denoise: Function) -> Function:
    """The velocity that a denoiser implies; undoes `denoiser`, but for the noisiest times, which it takes as later."""

    def velocity(x: Tensor, t: float) -> Tensor:
        told = max(t, 1 / (1 + _MOST_NOISE))
        return (denoise(x / told, (1 - told) / told) - x) / (1 - t)

    return velocity


@dataclass(frozen=True, eq=False)
class Conditional:
    """What a generative step knows of the next states of some members before it draws them.

    Attributes:
        network: v(x, t) or v(x_g, gamma), told the state and the forcing.
        sampler: from the step's own noise to normalised data r (row, channel, y, x), around such a function.
        decode: the next state of r, physical units (row, channel, y, x), 0 on land; within bounds, or as it comes.
        conversions: of the network to a denoiser, and back.
        rows: of the state that this is for.
    """

    network: Function
    sampler: Callable[[Function], Tensor]
    decode: Callable[[Tensor, bool], Tensor]
    conversions: tuple[Callable[[Function], Function], Callable[[Function], Function]]
    rows: slice = field(default_factory=lambda: slice(None))

    @property
    def denoise(self) -> Function:
        """D(y, s) = E[r | y] of y = r + s eps."""
        return self.conversions[0](self.network)

    def draw(self, denoise: Function | None = None) -> Tensor:
        """The step's own draw of r; or one by its sampler around another denoiser."""
        return self.sampler(self.network if denoise is None else self.conversions[1](denoise))


def on_path(r: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point x_t and the velocity there, of data r and noise eps at times t broadcast to them."""
    return t * r + (1 - t) * eps, r - eps


def stratified_times(n: int, shift: Tensor) -> Tensor:
    """Times (shift + k / n) mod 1 of a batch of n, (n): uniform each, and spread over the batch."""
    return (shift + torch.arange(n, dtype=shift.dtype, device=shift.device) / n) % 1


def censored_nll(v: Tensor, predicted: Tensor, s: Tensor, at_lower: Tensor, at_upper: Tensor) -> Tensor:
    """The negative log-likelihood of velocities, censored where the data are at a bound.

    Args:
        v: true velocity, any shape.
        predicted: of the same shape.
        s: logarithm of the error's scale, broadcast to v.
        at_lower, at_upper: where the data sit at their lower and upper bound, bool, of v's shape.

    Returns:
        Of v's shape: err^2 / 2 + s + log sqrt(2 pi) with err = (v - predicted) / (exp(s) + 1e-5), but
        -log Phi(err) at the lower bound and -log Phi(-err) at the upper one, Phi the normal distribution function.

    Source: Finn et al. (2025).
    """
    err = (v - predicted) / (s.exp() + _TINY)
    inside = 0.5 * err.square() + s + 0.5 * math.log(2 * math.pi)
    beyond = -torch.special.log_ndtr(torch.where(at_lower, err, -err))
    return torch.where(at_lower | at_upper, beyond, inside)
