"""Is the gradient right? What every emulator, observation operator and covariance root has to pass before 4D-Var.

For y = M(x), scaled by the typical size of each variable so that all count alike, and random u and w,

    dot product   |⟨M'u, w⟩ - ⟨u, M'ᵀw⟩| / (|M'u| |w|)            rounding error
    Taylor        |M(x + εu) - M(x) - ε M'u|  ~  ε²               slope 2 over three decades, or nothing if M is linear
    land          M'ᵀw = 0 on land, and finite everywhere
    chain         M'ᵀ of n steps is n times M'ᵀ of one            rounding error
    frozen        twice M(x) has the same bits, and x is as before

(Navon, Zou, Derber and Sela 1992, Mon. Weather Rev. 120, on testing adjoints.)  The first compares forward with
reverse differentiation, which share the code of M; only the second compares them with M itself, and finds a step
that was detached, a time that was skipped, or a term that was left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, Noise, State
from .adjoint_cases import Case, case_of
from .adjoint_faults import cut_at, one_line
from .adjoint_taylor import SIZES, taylor_slope
from .background import Root
from .observations import Observations
from .operators import ObservationOperator

__all__ = ["AdjointError", "AdjointReport", "check_adjoint"]


class AdjointError(ValueError):
    """A gradient is not that of the function; the message is the report."""


@dataclass(frozen=True)
class AdjointReport:
    """What `check_adjoint` found.

    Attributes:
        name: of what was checked.
        tangent: how M'u was found: "forward", or "double backward" where forward mode is missing; "" for not at all.
        dot_product: its error; NaN if it could not be found.
        taylor: (ε, remainder / |M(x)|) pairs, largest ε first.
        slope: of the Taylor remainder over three decades, of those with 2 where there are any; infinite for a linear M.
        kind: "smooth", "linear", "kinked" (neither 2 nor below 1.2, as with ReLU, clamps and limiters), "wrong" (first
            order for the smallest ε), or "unknown".
        land: largest gradient on land.
        finite: whether the gradient is.
        chain: relative difference between the transposes of all steps and of one step at a time; NaN for one step.
        frozen: whether two calls have the same bits.
        pure: whether the input is as before.
        influence: norm of the gradient with respect to each input, per variable.
        failures: what is wrong, in words; empty if nothing is.
        notes: what is worth knowing.
    """

    name: str
    tangent: str = ""
    dot_product: float = math.nan
    taylor: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    slope: float = math.nan
    kind: str = "unknown"
    land: float = math.nan
    finite: bool = False
    chain: float = math.nan
    frozen: bool = False
    pure: bool = False
    influence: dict[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures

    def __str__(self) -> str:
        rows = [
            ("dot product", f"{self.dot_product:.1e}", f"{self.tangent} mode" if self.tangent else "no tangent"),
            ("Taylor slope", "linear" if self.kind == "linear" else f"{self.slope:.3f}", self.kind),
            ("gradient on land", f"{self.land:.1e}", "finite" if self.finite else "not finite"),
            ("chain of steps", "one step" if math.isnan(self.chain) else f"{self.chain:.1e}", ""),
            ("same bits twice", "yes" if self.frozen else "no", ""),
            ("input unchanged", "yes" if self.pure else "no", ""),
        ]
        lines = [f"{self.name}: {'passed' if self.passed else 'FAILED'}"]
        lines += [f"  {a:18}{b:>10}  {c}".rstrip() for a, b, c in rows]
        if self.influence:
            lines.append("  influence         " + ", ".join(f"{k} {v:.2g}" for k, v in self.influence.items()))
        return "\n".join([*lines, *(f"  ! {f}" for f in self.failures), *(f"  - {n}" for n in self.notes)])


def check_adjoint(
    what: Emulator | ObservationOperator | Root,
    state: State | None = None,
    forcing: Forcing | State | None = None,
    noise: Draws | None = None,
    observations: Observations | None = None,
    *,
    steps: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    smooth: bool = True,
    may_ignore: Collection[str] = (),
    land: bool = True,
    strict: bool = False,
) -> AdjointReport:
    """Check derivatives of an emulator, an observation operator, both together, or a root of a covariance.

    Args:
        what: an emulator's networks are copied to `dtype`.
        state: where; of its members the first is taken. Not wanted for a root.
        forcing: as for `rollout`, or one State for every step. It is an input, and checked as the state is.
        noise: frozen; of stochastic emulators.
        observations: to follow an emulator, or `what` if that is one, by H.
        steps: of an emulator.
        dtype: in float32 tolerances are wider and the Taylor test is left out.
        seed: of u and w.
        smooth: whether kinks are a failure. Piecewise smooth functions have a gradient almost everywhere.
        may_ignore: variables, `forcing` ones too, that need not have an influence.
        land: whether a gradient on land is a failure. It does no harm where increments are 0 on land, as a root's are.
        strict: raise AdjointError, with the report as message, if anything failed.

    Raises ValueError for a state that is missing, or steps < 1.
    """
    case = case_of(what, state, forcing, noise, observations, steps, dtype)
    report = _check(case, seed, smooth, land, set(may_ignore))
    if strict and not report.passed:
        raise AdjointError(str(report))
    return report


# --- the checks --------------------------------------------------------------------------------------


def _check(case: Case, seed: int, smooth: bool, land: bool, may_ignore: set[str]) -> AdjointReport:
    found: dict[str, Any] = {}
    failures: list[str] = []
    notes: list[str] = []
    _frozen(case, found, failures)
    draw = Noise(seed).stream("adjoint")
    zeros = [torch.zeros_like(x) for x in case.inputs]
    u = [
        draw.stream(f"u{k}").normal((0,), None, z.shape[1:], dtype=z.dtype).to(z) * m
        for k, (z, m) in enumerate(zip(zeros, case.masks, strict=True))
    ]
    with torch.no_grad():
        base = case.scaled(*zeros)
    w = draw.stream("w").normal((0,), None, base.shape[1:], dtype=base.dtype).to(base) * case.out_mask
    gradient = _gradient(case, zeros, w, found, failures, notes)
    tangent = None if gradient is None else _tangent(case, zeros, u, found, failures, notes)
    if gradient is not None and tangent is not None:
        left = float((tangent * w).sum())
        right = sum(float((a * b).sum()) for a, b in zip(u, gradient, strict=True))
        size = float(tangent.norm() * w.norm())
        found["dot_product"] = abs(left - right) / size if size > 0 else abs(left - right)
        limit = 1e-11 if base.dtype == torch.float64 else 1e-4
        if not found["dot_product"] <= limit:
            failures.append(f"the transpose is not that of the tangent: {left:.9g} against {right:.9g}")
        if base.dtype == torch.float64:
            _taylor(case, zeros, u, base, tangent, smooth, found, failures, notes)
    if gradient is not None:
        if land and found["land"] != 0:
            failures.append(
                f"the gradient on land is up to {found['land']:.2g}: mask the input (`land=False` allows it)"
            )
        _influence(case, zeros, u, gradient, base, may_ignore, found, failures)
        _chain(case, w, found, failures)
    if case.must_be_linear and found.get("kind") not in (None, "linear"):
        failures.append("the root is not linear")
    return AdjointReport(case.name, failures=tuple(dict.fromkeys(failures)), notes=tuple(notes), **found)


def _frozen(case: Case, found: dict[str, Any], failures: list[str]) -> None:
    """Two calls have the same bits, and leave their inputs alone."""
    given = [x.clone() for x in case.inputs]
    with torch.no_grad():
        one = case.function(*given)
        found["pure"] = all(torch.equal(a, b) for a, b in zip(given, case.inputs, strict=True))
        two = case.function(*(x.clone() for x in case.inputs))
    found["frozen"] = torch.equal(one, two)
    if not found["pure"]:
        failures.append("the input is changed in place: copy before writing, or gradients are those of another state")
    if not found["frozen"]:
        failures.append("two calls with the same input and noise differ: draw from the `noise` that is given")
    land = ~case.out_mask.expand_as(one)
    if case.out_mask.ndim == 4 and bool((one[land] != 0).any()):
        failures.append(f"{int((one[land] != 0).sum())} values on land are not 0")


def _gradient(
    case: Case, zeros: list[Tensor], w: Tensor, found: dict[str, Any], failures: list[str], notes: list[str]
) -> list[Tensor] | None:
    """M'ᵀw, in typical units; None if there is none."""
    given = [z.clone().requires_grad_() for z in zeros]
    try:
        out = case.scaled(*given)
        if not out.requires_grad:
            with torch.no_grad():
                same = torch.equal(case.scaled(*zeros), case.scaled(*(0.1 * m for m in case.masks)))
            failures.append(
                "the input is ignored: the output is always the same"
                if same
                else f"the gradient is cut: the output has none, and changes{cut_at(case.links, case.inputs)}"
            )
            return None
        raw = torch.autograd.grad(out, given, w, allow_unused=True)
    except RuntimeError as error:
        failures.append(f"no gradient: {one_line(error)}{cut_at(case.links, case.inputs)}")
        return None
    gradient = [torch.zeros_like(z) if g is None else g for g, z in zip(raw, zeros, strict=True)]
    found["finite"] = all(bool(g.isfinite().all()) for g in gradient)
    found["land"], *elsewhere = (_dry(g, m) for g, m in zip(gradient, case.masks, strict=True))
    if any(elsewhere):
        notes.append(f"forcing on land has an influence, of up to {max(elsewhere):.2g}")
    if not found["finite"]:
        failures.append("the gradient is not finite: look for 0/0, √0, or log 0 in wet cells or behind a `where`")
    return gradient


def _dry(gradient: Tensor, mask: Tensor) -> float:
    """Largest gradient where a mask is not."""
    return float((gradient * ~mask).abs().max()) if gradient.numel() else 0.0


def _tangent(
    case: Case, zeros: list[Tensor], u: list[Tensor], found: dict[str, Any], failures: list[str], notes: list[str]
) -> Tensor | None:
    """M'u, by forward mode or by differentiating the transpose in its argument."""
    try:
        tangent: Tensor = torch.func.jvp(case.scaled, tuple(zeros), tuple(u))[1].detach()
        found["tangent"] = "forward"
        return tangent
    except (RuntimeError, NotImplementedError) as error:
        notes.append(f"no forward mode: {one_line(error)}")
    try:
        given = [z.clone().requires_grad_() for z in zeros]
        out = case.scaled(*given)
        dual = torch.zeros_like(out, requires_grad=True)
        back = torch.autograd.grad(out, given, dual, create_graph=True, allow_unused=True, materialize_grads=True)
        tangent = torch.autograd.grad(back, dual, u, allow_unused=True, materialize_grads=True)[0].detach()
        found["tangent"] = "double backward"
        return tangent
    except RuntimeError as error:
        failures.append(f"no tangent, forward or by double backward: {one_line(error)}")
        return None


def _taylor(
    case: Case, zeros: list[Tensor], u: list[Tensor], base: Tensor, tangent: Tensor, smooth: bool,
    found: dict[str, Any], failures: list[str], notes: list[str],
) -> None:  # fmt: skip
    pairs, level = [], float(base.norm()) + 1e-300
    with torch.no_grad():
        for size in SIZES:
            moved = case.scaled(*(size * d for d in u))
            pairs.append((size, float((moved - base - size * tangent).norm()) / level))
    found["taylor"] = tuple(pairs)
    found["slope"], found["kind"], below = taylor_slope(pairs, float(tangent.norm()) / level)
    if found["kind"] == "smooth" and below < 0.1:
        notes.append(f"the Taylor remainder is that of a smooth function below ε = {below:.0e} of typical deviations")
    share = 0.0
    if found["kind"] == "wrong":
        with torch.no_grad():
            ahead, behind = (case.scaled(*(h * d for d in u)) for h in (1e-6, -1e-6))
        even, odd = (ahead + behind - 2 * base) / 2e-6, (ahead - behind) / 2e-6
        if float(even.norm()) > 0.3 * float((odd - tangent).norm()):  # the point itself is at a kink
            found["kind"] = "kinked"
        share = float((odd - tangent).norm() / odd.norm().clamp(min=1e-300))
    if found["kind"] == "wrong":
        where = cut_at(case.links, case.inputs)
        failures.append(f"the gradient is cut or wrong: it misses {share:.2g} of a change that is seen{where}")
    elif found["kind"] == "kinked" and smooth:
        failures.append(
            f"the Taylor remainder falls as ε^{found['slope']:.2f}, not ε²: kinks, as of ReLU, clamps or limiters "
            "(`smooth=False` allows them)"
        )
    elif found["kind"] == "unknown":
        failures.append("no three decades in which the Taylor remainder is above rounding and below saturation")


def _influence(
    case: Case, zeros: list[Tensor], u: list[Tensor], gradient: list[Tensor], base: Tensor, may_ignore: set[str],
    found: dict[str, Any], failures: list[str],
) -> None:  # fmt: skip
    """Gradient of each variable; of those without, whether the output knows them."""
    found["influence"] = {}
    for name, (k, channels) in case.fields.items():
        part = gradient[k][:, channels] if channels else gradient[k]
        found["influence"][name] = float(part.norm())
        if found["influence"][name] > 0 or not channels or name.removeprefix("forcing ") in may_ignore:
            continue
        only = [torch.zeros_like(z) for z in zeros]
        only[k][:, channels] = 0.1 * u[k][:, channels]
        with torch.no_grad():
            change = float((case.scaled(*only) - base).norm() / base.norm().clamp(min=1e-300))
        if change > 0:
            failures.append(
                f"the gradient with respect to {name} is cut: it is 0, and the output changes by {change:.1e}"
                + cut_at(case.links, case.inputs)
            )
        elif case.all_matter:
            failures.append(f"{name} is ignored: neither the gradient nor the output knows it (`may_ignore` allows it)")


def _chain(case: Case, w: Tensor, found: dict[str, Any], failures: list[str]) -> None:
    """The transpose of all steps, against one step at a time."""
    if len(case.links) < 2 or w.shape != case.inputs[0].shape:
        return
    x = case.inputs[0].clone().requires_grad_()
    (whole,) = torch.autograd.grad(case.function(1.0 * x, *case.inputs[1:]), x, w)
    points = [case.inputs[0]]
    forcings: Iterable[Tensor | None] = case.inputs[1:] or [None] * len(case.links)
    drives = list(forcings)
    with torch.no_grad():
        for link, drive in zip(case.links[:-1], drives, strict=False):
            points.append(link(points[-1].clone(), drive))
    g = w
    for link, drive, point in reversed(list(zip(case.links, drives, points, strict=True))):
        at = point.clone().requires_grad_()
        (g,) = torch.autograd.grad(link(1.0 * at, drive), at, g)
    found["chain"] = float((g - whole).norm() / whole.norm().clamp(min=1e-300))
    if not found["chain"] <= (1e-11 if w.dtype == torch.float64 else 1e-4):
        failures.append(f"the transpose of the steps together differs from that of each by {found['chain']:.1e}")
