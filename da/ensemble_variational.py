"""Ensemble-variational analyses: the mean by 4D-Var with the ensemble's covariance, the members around it.

    B = (1-β) C ∘ P + β B_c            P of the ensemble, localised by C; B_c static

`EnVar` needs no adjoint of the emulator (4DEnVar): its control weighs members, whose own trajectories say what
observations within the window see,

    δx = Σ_j X_j ∘ a_j,    H δx = Σ_j Y_j ∘ a_j          a_j = C^½ v_j

at the time of the analysis, where observations of that time are taken of δx itself and those within the window of the
members' trajectories. `En4DVar` corrects the beginning of the window with the emulator's adjoint. In both, the members'
deviations are those of an ensemble filter; in `En4DVar` also of the Hessian (`posterior.py`) or of perturbed
observations.

Source: Lorenc (2003), doi:10.1256/qj.02.132; Liu et al. (2008), doi:10.1175/2008MWR2312.1; hybrids: Hamill and Snyder
(2000), Clayton et al. (2013), doi:10.1002/qj.2054; the members recentred: Buehner et al. (2010),
doi:10.1175/2009MWR3157.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor

from ..emulators import Draws, Emulator, Forcing, Noise, State
from ..ensembles import trajectory
from .background import Hybrid, Root
from .cycle import Analysis, Smoothed
from .ensemble_roots import LocalisedEnsemble
from .minimise import LBFGS
from .observations import ObservationError, Observations
from .operators import operator_for
from .solving import Minimiser, minimised, report_of
from .variational import FourDVar, ThreeDVar
from .window import Window
from .window_cost import Snapshot

__all__ = ["En4DVar", "EnVar", "FromHessian"]


def _around(mean: State, members: State, weight: float = 1.0) -> State:
    """The members, moved so that their mean is another, or part of the way there; on land their own bits."""
    wet = members.layout.mask.to(members.data.device)
    shift = weight * (mean.data - members.data.mean(0))
    return members.replace(data=torch.where(wet, members.data + shift, members.data))


@dataclass(frozen=True)
class _Covariance:
    """What both have in common: B of an ensemble and of a static root.

    Attributes:
        localisation: C^½, as in `LocalisedEnsemble`.
        static: root of B_c; None for the ensemble's covariance alone.
        share: β, of the static covariance, in [0, 1]; without `static` it is not used.
        minimiser: `LBFGS()` or `GaussNewton()`.
        recentre: how far the members of a filter are moved from its own mean to the variational one, in [0, 1]; the two
            estimates err differently, and between them there may be a better one (a hybrid gain, Penny 2014,
            doi:10.1175/MWR-D-13-00131.1).
    """

    localisation: Root
    static: Root | None = None
    share: float = 0.2
    minimiser: Minimiser = field(default_factory=LBFGS)
    recentre: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.recentre <= 1:
            raise ValueError(
                f"{type(self).__name__}: wanted a share of the static covariance and recentre in [0, 1], got "
                f"{self.share} and {self.recentre}"
            )

    def root(self, ensemble: State) -> Root:
        """Of B, whose control begins with that of the ensemble."""
        if len(ensemble.members) < 2:
            raise ObservationError(f"{type(self).__name__} needs at least two members, got {ensemble.members}")
        if self.static is None:
            return LocalisedEnsemble(ensemble, self.localisation)
        return Hybrid([(1 - self.share, LocalisedEnsemble(ensemble, self.localisation)), (self.share, self.static)])


@dataclass(frozen=True)
class EnVar(_Covariance):
    """Four-dimensional ensemble-variational analysis without an adjoint (4DEnVar); at one time, 3DEnVar.

    Attributes:
        localisation, static, share, minimiser, recentre: see above; observations within the window see the static part
            as if they were at the time of the analysis.
        filter: whose analysis gives the members' deviations from the mean, such as `LETKF(...)`.
    """

    filter: Analysis = field(kw_only=True)

    def analysis(self, forecast: State, observations: Observations) -> State:
        """The analysis ensemble: same members, time and layout; without observations it is the forecast.

        Raises ObservationError for fewer than two members, and what the filter and `ThreeDVar` do.
        """
        if not len(observations):
            return forecast
        how = ThreeDVar(self.root(forecast), self.minimiser)
        problem = _Seen(how, forecast, observations, self.localisation, 1.0 if self.static is None else 1 - self.share)
        mean = problem.first(minimised(problem, self.minimiser).v)
        return _around(mean, self.filter.analysis(forecast, observations), self.recentre)


class _Seen(Snapshot):
    """J of the mean, whose increments observations within the window see through the members' trajectories."""

    def __init__(
        self, how: ThreeDVar, forecast: State, observations: Observations, localisation: Root, weight: float
    ) -> None:
        super().__init__(how, forecast.mean(), observations)
        view = observations.view
        self._moved: Tensor | None = None
        if view is None or view.shift is None or not bool((observations.offset < 0).any()):
            return
        shift = view.shift.double()
        self._rows = torch.from_numpy(np.flatnonzero(observations.offset < 0)).to(shift.device)
        self._moved = (shift - shift.mean(0))[:, self._rows] * (weight / (len(shift) - 1)) ** 0.5
        self._localisation = localisation
        self._at = operator_for(localisation.layout, _of_localisation(localisation, observations))

    def equivalents(self, v: Tensor) -> Tensor:
        """What would be observed, (1, observation) float64."""
        seen = super().equivalents(v)
        if self._moved is None:
            return seen
        root, layout = self._localisation, self._localisation.layout
        parts = v[0, : len(self._moved) * root.size].view(len(self._moved), root.size)
        more = torch.zeros_like(self._moved[0])
        for moved, part in zip(self._moved, parts, strict=True):
            weights = State(root.apply(part)[None], self.background.time, layout, (0,))
            more = more + moved * self._at.apply(weights)[0].double()
        return seen.index_add(1, self._rows, more[None])


def _of_localisation(localisation: Root, observations: Observations) -> Observations:
    """Where the observations within the window are, as observations of the localisation's fields."""
    within, layout = observations.select(observations.offset < 0), localisation.layout
    name = np.array([n if n in layout.names else layout.fields[0].name for n in within.primary])
    sharp = np.array([layout.field(n).levels for n in name], dtype=bool)
    table = {"variable": name, "lat": within.lat, "lon": within.lon, "depth": np.where(sharp, within.depth, 0.0)}
    return Observations.from_table(within.time, table | {"value": 0.0, "error": 1.0})


@dataclass(frozen=True)
class FromHessian:
    """Members drawn from the posterior of the mean's analysis; see `FourDVar.posterior`.

    Attributes:
        pairs: Ritz pairs of the Hessian.
        noise: where they are drawn from; every window draws anew.
    """

    pairs: int = 30
    noise: Noise = field(default_factory=lambda: Noise(0))


@dataclass(frozen=True)
class En4DVar(_Covariance):
    """4D-Var of the ensemble's mean, with the ensemble's covariance at the beginning of the window.

    Attributes:
        localisation, static, share, minimiser, recentre: see above.
        members: what gives their deviations from the analysed mean: a filter such as `LETKF(...)`, which sees the
            same observations at the end of the window; `FromHessian()`; or a `Noise`, with which every member is
            analysed by a 4D-Var of its own, with perturbed observations.
        model_error, error_every, control_noise, growing, checkpoint, memory: as in `FourDVar`.
    """

    members: Analysis | FromHessian | Noise = field(kw_only=True)
    model_error: Root | None = None
    error_every: int = 1
    control_noise: bool = False
    growing: tuple[float, ...] = (1.0,)
    checkpoint: str = "states"
    memory: int = 4_000_000_000

    def window(
        self,
        emulator: Emulator,
        begin: State,
        forcing: Forcing | None,
        noise: Draws | None,
        observations: Observations,
        steps: int,
    ) -> Smoothed:
        """The analysed ensemble from the beginning of the window to the time of the observations.

        Args and errors are those of `FourDVar.window`, and ObservationError for fewer than two members. The `report` is
        that of the mean's 4D-Var, the same for every member, or with perturbed observations of each.
        """
        path = list(islice(trajectory(emulator, begin, forcing, noise), steps + 1))
        if not len(observations):
            return Smoothed(path)
        how = FourDVar(
            self.root(begin), self.minimiser, self.model_error, self.error_every, self.control_noise,
            growing=self.growing, checkpoint=self.checkpoint, memory=self.memory,
        )  # fmt: skip
        if isinstance(self.members, Noise):
            how = replace(how, perturb=self.members)
            return how.window(emulator, begin, forcing, noise, observations, steps)
        window = emulator, begin.mean(), forcing, noise, observations, steps
        if isinstance(self.members, FromHessian):
            known = how.posterior(*window, pairs=self.members.pairs)
            found = Smoothed(known.states, report_of(known.problem, known.found))
            around = known.samples(self.members.noise, begin.members)
        else:
            found = how.window(*window)
            around = [*path[:-1], self._filtered(self.members, path, observations)]
        weights = [1.0] * steps + [1.0 if isinstance(self.members, FromHessian) else self.recentre]
        states = [_around(*all_of) for all_of in zip(found.states, around, weights, strict=True)]
        every = {name: np.broadcast_to(value, (len(begin.members),)) for name, value in found.report.items()}
        return Smoothed(states, every)

    def _filtered(self, members: Analysis, path: Sequence[State], observations: Observations) -> State:
        lag = observations.time - path[-1].time
        window = Window(observations, path[0].layout, [s.time + lag for s in path])
        seen = [window.seen(k, *pair) for k, pair in enumerate(pairwise(path))]
        return members.analysis(path[-1], window.observations(seen, path[-1]))
