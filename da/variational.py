"""Variational analyses with the emulator's own adjoint: 4D-Var with strong or weak constraint, and 3D-Var.

    J(v) = ½ |v|² + ½ Σ_k |R^(-1/2) (y_k - H_k x_k)|²,     x_0 = x_b + L v_0,   x_k+1 = M(x_k, f_k, ξ_k) + L_Q η_k

with the control v = (v_0, η, ξ): the initial increment through a root L of the background's covariance, increments for
the model's errors (weak constraint, Trémolet 2006, doi:10.1256/qj.05.224), and the noise of a generative emulator,
which is standard normal already. Every member of the background is a problem of its own, and all are minimised in one
batch: with perturbed observations they are an ensemble of 4D-Vars (Isaksen et al. 2010). There is no learning rate;
see `minimise.py`. The cost is float64, the model runs in the dtype of the background.

`Problem` (`window_cost.py`) is the cost function, `Trajectory` (`window_trajectory.py`) that of a window, `minimised`
(`solving.py`) finds its minimum; here is what `cycle` and users call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..emulators import Draws, Emulator, Forcing, State
from .background import Root, Uncorrelated
from .bounded import Transform
from .cycle import Smoothed
from .minimise import LBFGS
from .observations import Observations
from .posterior import Posterior, posterior_of
from .solving import Minimiser, minimised, report_of
from .window_cost import Problem, Snapshot
from .window_memory import CHECKPOINTS, GradientCost, gradient_cost
from .window_trajectory import Trajectory


@dataclass(frozen=True)
class FourDVar:
    """4D-Var over the window from one time of observations to the next; an analysis for `cycle`.

    Attributes:
        root: of the covariance of the background at the beginning of the window.
        minimiser: `LBFGS()` or `GaussNewton()`.
        model_error: root of the covariance of the model's error, for a weak constraint.
        error_every: steps from one such error to the next.
        control_noise: whether the noise of a stochastic emulator is corrected, too.
        perturb: where perturbations of the observations come from, one draw for each member; None for none.
        transforms: of bounded variables, in which the increment is added: x_0 = T⁻¹(T(x_b) + L v_0).
        growing: the window is lengthened in steps, each of which begins with the minimum of that before (quasi-static,
            Pires et al. 1996, doi:10.3402/tellusa.v48i1.11634): fractions of it in ascending order, the last 1.
        checkpoint: what of a trajectory is kept for the adjoint: "all", "states" (one per step; each step is computed
            twice), "few" (one in about √steps; each step is computed three times), or "auto" for the fastest of them
            that fits into `memory`.
        tendencies: J_c, how much the increment of a variable may change in a step: standard deviations by name, root
            mean square over the wet points; None for no such penalty.
        bounds: (lower, upper) by variable that x_0 is kept between, with an `Uncorrelated` root and `LBFGS`; for other
            roots there are `transforms`.
        starts: first guesses of each problem, the background and others drawn from its covariance; the lowest minimum
            counts, where J has several.
        memory: bytes for the gradient of a window, with "auto"; beside what the model itself works in.
    """

    root: Root
    minimiser: Minimiser = field(default_factory=LBFGS)
    model_error: Root | None = None
    error_every: int = 1
    control_noise: bool = False
    perturb: Draws | None = None
    transforms: Mapping[str, Transform] | None = field(default=None, hash=False)
    growing: tuple[float, ...] = (1.0,)
    checkpoint: str = "states"
    memory: int = 4_000_000_000
    tendencies: Mapping[str, float] | None = field(default=None, hash=False)
    bounds: Mapping[str, tuple[float, float]] | None = field(default=None, hash=False)
    starts: int = 1

    def __post_init__(self) -> None:
        if self.checkpoint not in (*CHECKPOINTS, "auto") or self.error_every < 1 or self.memory < 1:
            raise ValueError(
                f'FourDVar: wanted checkpoint "all", "states", "few" or "auto", error_every >= 1 and memory > 0, got '
                f"{self.checkpoint!r}, {self.error_every} and {self.memory}"
            )
        if self.starts < 1 or not all(v > 0 for v in (self.tendencies or {}).values()):
            raise ValueError(
                f"FourDVar: wanted starts >= 1 and standard deviations of tendencies > 0, got {self.starts} and "
                f"{self.tendencies}"
            )
        if self.bounds and not (isinstance(self.root, Uncorrelated) and isinstance(self.minimiser, LBFGS)):
            raise ValueError(
                "FourDVar: bounds belong to an Uncorrelated root and LBFGS, whose control is the state itself; keep "
                "others within them by transforms"
            )
        if list(self.growing) != sorted(self.growing) or not self.growing or self.growing[-1] != 1.0:
            raise ValueError(f"FourDVar: wanted ascending fractions of the window that end with 1, got {self.growing}")

    def window(
        self,
        emulator: Emulator,
        begin: State,
        forcing: Forcing | None,
        noise: Draws | None,
        observations: Observations,
        steps: int,
    ) -> Smoothed:
        """The analysed trajectory from the beginning of the window to the time of the observations.

        Args:
            emulator: differentiable.
            begin: the background at the beginning of the window; each member is a problem of its own.
            forcing, noise: as for `trajectory`.
            observations: of the end of the window; those within it have an `offset`.
            steps: of the window.

        Without observations it is the background's trajectory. The `report` holds, for each member, J at the background
        and at the minimum, its parts `cost_background` and `cost_observations` there, the norm of the gradient relative
        to that at the background, iterations, evaluations, and whether the minimiser has converged.

        Raises ObservationError for observations that are nowhere or outside the window; LayoutError if the root is of
        another layout; VariationalError if the emulator cuts the gradient, or it is not finite, saying at which step.
        """
        problem = Trajectory(self, emulator, begin, forcing, noise, observations, steps)
        if not len(observations):
            return Smoothed(problem.states(problem.start()))
        found = minimised(problem, self.minimiser, self.growing, self.starts, self.bounds)
        return Smoothed(problem.states(found.v), report_of(problem, found))

    def cost(
        self,
        emulator: Emulator,
        begin: State,
        forcing: Forcing | None,
        noise: Draws | None,
        observations: Observations,
        steps: int,
    ) -> GradientCost:
        """What one gradient costs, in forward runs of the window and in bytes; print it. Args as of `window`."""
        return gradient_cost(Trajectory(self, emulator, begin, forcing, noise, observations, steps))

    def posterior(
        self,
        emulator: Emulator,
        begin: State,
        forcing: Forcing | None,
        noise: Draws | None,
        observations: Observations,
        steps: int,
        *,
        pairs: int = 30,
    ) -> Posterior:
        """The analysis of one state with its error covariance, root and samples.

        Args:
            emulator, begin, forcing, noise, observations, steps: as in `window`; `begin` has one member.
            pairs: Ritz pairs of the Hessian, each one product with it.

        Raises as `window`, and ValueError for several members or perturbed observations.
        """

        def again(background: State) -> Problem:
            return Trajectory(self, emulator, background, forcing, noise, observations, steps)

        problem = again(begin)
        return posterior_of(
            problem, minimised(problem, self.minimiser, self.growing, self.starts, self.bounds), pairs, again
        )


@dataclass(frozen=True)
class ThreeDVar:
    """3D-Var: the background is corrected at the time of the analysis, through a root of its covariance.

    Observations within the window are compared with the background at their own times (first guess at the appropriate
    time), as `cycle` does for every analysis. Each member of the forecast is a problem of its own.

    Attributes:
        root, minimiser, perturb, transforms: as in `FourDVar`.
    """

    root: Root
    minimiser: Minimiser = field(default_factory=LBFGS)
    perturb: Draws | None = None
    transforms: Mapping[str, Transform] | None = field(default=None, hash=False)

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis: same members, time and layout; without observations it is the forecast.

        Raises as `FourDVar.window`.
        """
        if not len(observations):
            return forecast
        problem = Snapshot(self, forecast, observations)
        return problem.first(minimised(problem, self.minimiser).v)

    def posterior(self, forecast: State, observations: Observations, *, pairs: int = 30) -> Posterior:
        """The analysis of one state with its error; see `FourDVar.posterior`."""

        def again(background: State) -> Problem:
            return Snapshot(self, background, observations)

        problem = again(forecast)
        return posterior_of(problem, minimised(problem, self.minimiser), pairs, again)
