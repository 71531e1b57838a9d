"""L-BFGS with a strong Wolfe line search, for batches of independent problems.

A problem is a row of v (problem, n); one call of the cost function serves all of them, each of which is at its own
place of its own line search. There is no learning rate: steps follow from the cost function alone. For problems of
least squares with a linearised model there is `gauss_newton.py`.

Source: Nocedal and Wright (2006), Numerical Optimization, 2nd ed., algorithms 3.5, 3.6 (the search) and 7.4; Dai et al.
(2015, doi:10.1007/s10589-014-9698-6) for the scale of what is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Cost = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From v (problem, n) to J (problem,) and its gradient (problem, n)."""

_ARMIJO, _CURVATURE = 1e-4, 0.9
# Of a cost: nearer to the minimum only the gradient tells (Hager and Zhang 2005, doi:10.1137/030601880).
_BLUR = {torch.float32: 1e-6}
_SEARCH = 20  # evaluations of one line search at most


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        v: the minimum, (problem, n).
        cost: J there, (problem,) float64.
        gradient: norm of the gradient there, (problem,) float64.
        start: norm of the gradient at the first guess, (problem,).
        iterations: (problem,) int.
        evaluations: of the cost function and its gradient, each of which served all problems.
        products: of the Gauss-Newton Hessian with a vector, likewise; 0 for L-BFGS.
        converged: whether the gradient norm has fallen as far as was asked for, (problem,) bool.
        history: J of all problems after each evaluation, the best so far, (evaluation, problem).
    """

    v: Tensor
    cost: Tensor
    gradient: Tensor
    start: Tensor
    iterations: Tensor
    evaluations: int
    products: int
    converged: Tensor
    history: Tensor = field(repr=False)


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a strong Wolfe line search.

    Attributes:
        tolerance: stop when the norm of the gradient is this fraction of what it was at the first guess.
        iterations: at most so many.
        evaluations: at most so many.
        memory: pairs of steps and changes of the gradient that are remembered.
    """

    tolerance: float = 1e-3
    iterations: int = 100
    evaluations: int = 200
    memory: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1 or min(self.iterations, self.evaluations, self.memory) < 1:
            raise ValueError(f"LBFGS: wanted 0 <= tolerance < 1 and counts >= 1, got {self}")

    def minimise(
        self, cost: Cost, start: Tensor, *, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Minimum:
        """The minimum of each problem.

        Args:
            cost: of rows v (problem, n); a problem whose J is not finite makes a shorter step.
            start: first guess, (problem, n).
            lower, upper: bounds that broadcast to it. Steps are projected onto them, and what is held by a bound takes
                no part in the quasi-Newton direction (Bertsekas 1982, doi:10.1137/0320018).

        Raises ValueError if J or its gradient is not finite at the first guess.
        """
        box = _Box(lower, upper)
        search = _Search.begin(cost, box.into(start), box)
        limit = self.tolerance * search.norm
        first = search.norm.clone()
        pairs = _Pairs(self.memory, start)
        iterations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        search.direct(pairs, torch.ones(len(start), dtype=torch.bool, device=start.device), first=True)
        history, evaluations = [search.best.clone()], 1
        done = (search.norm <= limit) | (search.norm == 0)
        stuck = torch.zeros_like(done)
        while not done.all() and evaluations < self.evaluations:
            accepted, failed = search.advance(~done)
            evaluations += 1
            history.append(search.best.clone())
            if accepted.any():
                pairs.learn(search.step, search.change, accepted)
                iterations += accepted
                stuck &= ~accepted
            # A search that fails forgets what it knows and goes down the gradient; the second time it ends.
            pairs.forget(failed)
            done |= (failed & stuck) | (accepted & (search.norm <= limit)) | (iterations >= self.iterations)
            stuck |= failed
            search.direct(pairs, (accepted | failed) & ~done)
        return Minimum(
            search.v, search.cost, search.norm, first, iterations, evaluations, 0, search.norm <= limit,
            torch.stack(history),
        )  # fmt: skip


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Products of rows (problem, n), (problem,) float64."""
    return (a.double() * b.double()).sum(-1)


@dataclass(frozen=True, eq=False)
class _Box:
    lower: Tensor | None
    upper: Tensor | None

    def into(self, v: Tensor) -> Tensor:
        return v if self.lower is None and self.upper is None else v.clamp(self.lower, self.upper)

    def free(self, v: Tensor, gradient: Tensor) -> Tensor | None:
        """What no bound holds, None if nothing is bounded."""
        if self.lower is None and self.upper is None:
            return None
        held = torch.zeros_like(v, dtype=torch.bool)
        if self.lower is not None:
            held |= (v <= self.lower) & (gradient > 0)
        if self.upper is not None:
            held |= (v >= self.upper) & (gradient < 0)
        return ~held


class _Pairs:
    """Steps s and changes of the gradient y of each problem, newest first."""

    def __init__(self, memory: int, like: Tensor) -> None:
        self.s, self.y = (like.new_zeros(memory, *like.shape) for _ in range(2))
        self.rho = torch.zeros(memory, len(like), dtype=torch.float64, device=like.device)

    def learn(self, s: Tensor, y: Tensor, which: Tensor) -> None:
        curvature = dot(s, y)
        which = which & (curvature > 1e-10 * dot(y, y).sqrt() * dot(s, s).sqrt())
        rows = which[:, None]
        for known, new in ((self.s, s), (self.y, y)):
            known[1:] = torch.where(rows, known[:-1].clone(), known[1:])
            known[0] = torch.where(rows, new, known[0])
        self.rho[1:] = torch.where(which, self.rho[:-1].clone(), self.rho[1:])
        self.rho[0] = torch.where(which, 1 / torch.where(which, curvature, 1.0), self.rho[0])

    def forget(self, which: Tensor) -> None:
        self.rho[:, which] = 0.0

    def direction(self, gradient: Tensor, free: Tensor | None) -> Tensor:
        """-H g by the two loops."""
        keep = (lambda x: x) if free is None else (lambda x: torch.where(free, x, 0.0))
        q, alphas = keep(gradient), []
        for s, y, rho in zip(self.s, self.y, self.rho, strict=True):
            alpha = rho * dot(keep(s), q)
            alphas.append(alpha)
            q = q - alpha.to(q)[:, None] * keep(y)
        # What no pair knows is scaled by |s| / |y|, the mean of the two Barzilai-Borwein steps: s·y / y·y, which is
        # usual, follows the largest curvatures, of which the observed part of a control space has few.
        s_s, y_y = (dot(keep(a[0]), a[0]) for a in (self.s, self.y))
        known = (self.rho[0] > 0) & (y_y > 0)
        scale = torch.where(known, s_s / torch.where(known, y_y, 1.0), 1.0).sqrt()
        q = q * scale.to(q)[:, None]
        for s, y, rho, alpha in zip(self.s.flip(0), self.y.flip(0), self.rho.flip(0), alphas[::-1], strict=True):
            q = q + (alpha - rho * dot(keep(y), q)).to(q)[:, None] * keep(s)
        return -q


@dataclass(eq=False)
class _Search:
    """The line searches of all problems; each evaluation brings each of them one step further."""

    function: Cost
    box: _Box
    blur: float
    v: Tensor
    cost: Tensor
    g: Tensor
    norm: Tensor
    best: Tensor

    @classmethod
    def begin(cls, function: Cost, v: Tensor, box: _Box) -> _Search:
        cost, g = function(v)
        blur, cost = _BLUR.get(cost.dtype, 1e-12), cost.double()
        bad = ~(cost.isfinite() & g.isfinite().all(-1))
        if bad.any():
            raise ValueError(
                f"wanted a finite cost and gradient at the first guess, got cost {cost[bad].tolist()} in problems "
                f"{bad.nonzero()[:, 0].tolist()}; look at the background, the observations and the emulator's adjoint"
            )
        search = cls(function, box, blur, v, cost, g, torch.zeros_like(cost), cost.clone())
        search.norm = search._norm(v, g)
        return search

    def _norm(self, v: Tensor, g: Tensor) -> Tensor:
        free = self.box.free(v, g)
        return dot(g, g if free is None else torch.where(free, g, 0.0)).clamp(min=0).sqrt()

    def direct(self, pairs: _Pairs, which: Tensor, first: bool = False) -> None:
        """Begin a search of some problems along the quasi-Newton direction."""
        direction = pairs.direction(self.g, self.box.free(self.v, self.g))
        slope = dot(direction, self.g)
        uphill = ~(slope < 0)
        free = self.box.free(self.v, self.g)
        steepest = -(self.g if free is None else torch.where(free, self.g, 0.0))
        direction = torch.where(uphill[:, None], steepest, direction)
        slope = torch.where(uphill, dot(steepest, self.g), slope)
        unknown = pairs.rho[0] == 0
        # Where nothing is known: to where J would be 0 along its slope (Polyak 1969), as no sum of squares is less.
        norm = self.norm.clamp(min=1e-150)
        length = torch.where(self.cost > 0, self.cost / norm.square(), 1 / norm).clamp(max=1.0)
        length = torch.where(unknown | uphill, length, 1.0)
        if first:
            zero = torch.zeros_like(self.cost)
            self.p, self.slope, self.alpha = direction, slope, length
            self.lo, self.f_lo, self.d_lo = zero.clone(), self.cost.clone(), slope.clone()
            self.hi, self.f_hi, self.d_hi = zero.clone(), self.cost.clone(), slope.clone()
            self.zoom, self.count = torch.zeros_like(which), torch.zeros_like(zero, dtype=torch.int64)
            self.x_lo, self.g_lo = self.v.clone(), self.g.clone()
            return
        rows = which[:, None]
        self.p = torch.where(rows, direction, self.p)
        self.x_lo, self.g_lo = torch.where(rows, self.v, self.x_lo), torch.where(rows, self.g, self.g_lo)
        new = {
            "slope": slope, "alpha": length, "lo": 0.0, "f_lo": self.cost, "d_lo": slope, "hi": 0.0,
            "f_hi": self.cost, "d_hi": slope, "zoom": False, "count": 0,
        }  # fmt: skip
        for name, value in new.items():
            setattr(self, name, torch.where(which, torch.as_tensor(value).to(getattr(self, name)), getattr(self, name)))

    def advance(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate once; which problems have made a step, and which cannot."""
        x = self.box.into(self.v + self.alpha.to(self.v)[:, None] * self.p)
        x = torch.where(which[:, None], x, self.v)
        f, g = self.function(x)
        f = f.double()
        sane = f.isfinite() & g.isfinite().all(-1)
        f = torch.where(sane, f, torch.inf)
        g = torch.where(sane[:, None], g, 0.0)
        d = torch.where(sane, dot(g, self.p), torch.inf)
        self.best = torch.where(which, torch.minimum(self.best, f), self.best)
        a, blur = self.alpha, self.blur * self.cost.abs()
        enough = self.cost + _ARMIJO * self.alpha * self.slope + blur
        high = (f > enough) | (f >= self.f_lo + blur) & (self.count + self.zoom > 0) | ~sane
        wolfe = ~high & (d.abs() <= -_CURVATURE * self.slope)
        rising = ~high & ~wolfe & torch.where(self.zoom, d * (self.hi - self.lo) >= 0, d >= 0)
        # The new point is the upper end; or the lower one, whose place the old lower end may take.
        old = self.lo, self.f_lo, self.d_lo
        for name, mine, theirs in zip(("hi", "f_hi", "d_hi"), (a, f, d), old, strict=True):
            setattr(self, name, torch.where(high, mine, torch.where(rising, theirs, getattr(self, name))))
        lower = ~high
        for name, mine in zip(("lo", "f_lo", "d_lo"), (a, f, d), strict=True):
            setattr(self, name, torch.where(lower, mine, getattr(self, name)))
        rows = lower[:, None] & which[:, None]
        self.x_lo, self.g_lo = torch.where(rows, x, self.x_lo), torch.where(rows, g, self.g_lo)
        self.zoom = self.zoom | high | rising
        self.count = self.count + which
        spent = which & ~wolfe & (self.count >= _SEARCH)
        accepted = which & (wolfe | spent & (self.lo > 0) & (self.f_lo < self.cost))
        failed = spent & ~accepted
        self._take(accepted)
        self.alpha = torch.where(self.zoom, self._between(), 2 * a)
        return accepted, failed

    def _take(self, which: Tensor) -> None:
        rows = which[:, None]
        self.step = torch.where(rows, self.x_lo - self.v, 0.0)
        self.change = torch.where(rows, self.g_lo - self.g, 0.0)
        self.v, self.g = torch.where(rows, self.x_lo, self.v), torch.where(rows, self.g_lo, self.g)
        self.cost = torch.where(which, self.f_lo, self.cost)
        self.norm = torch.where(which, self._norm(self.v, self.g), self.norm)

    def _between(self) -> Tensor:
        """The minimum of the cubic through both ends, or of the quadratic, kept off the ends."""
        width = self.hi - self.lo
        safe = torch.where(width == 0, 1.0, width)
        d1 = self.d_lo + self.d_hi - 3 * (self.f_hi - self.f_lo) / safe
        root = (d1.square() - self.d_lo * self.d_hi).clamp(min=0).sqrt() * safe.sign()
        cubic = self.hi - width * (self.d_hi + root - d1) / (self.d_hi - self.d_lo + 2 * root)
        quadratic = self.lo - self.d_lo * width.square() / (2 * (self.f_hi - self.f_lo - self.d_lo * width))
        middle = self.lo + width / 2
        at = torch.where(cubic.isfinite(), cubic, torch.where(quadratic.isfinite(), quadratic, middle))
        share = ((at - self.lo) / safe).clamp(0.1, 0.9)
        return self.lo + torch.where(share.isfinite(), share, 0.5) * width
