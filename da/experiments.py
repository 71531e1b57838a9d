"""Twin experiments on the reference systems, whole batches of replicates at a time: rows of the literature's tables.

    row = Row("lorenz96", "LETKF", members=7, inflation=1.04, rotation=True, localisation=4)
    print(run(row))

A replicate has its own truth, observations and members. All replicates are advanced and analysed together, through
the array functions that the filters of whole states use; conventions are those of the tables (Sakov and Oke 2008;
Raanes' DAPPER), so that scores can be compared:

- the score is the root mean square error over the points of the mean after the analysis, averaged over the cycles after
  the burn-in; the spread is the root of the mean variance, averaged likewise;
- inflation multiplies the anomalies (not the covariance) after the analysis, then come random rotations;
- localisation is a "radius" in grid spacings: the half width of the taper of Gaspari and Cohn is 1.82 times it;
- the median over replicates is compared, because single ones diverge; these are counted.
"""

from __future__ import annotations

import difflib
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from ..emulators import Noise
from .experiment_methods import Local, Method
from .experiment_static import METHODS, WITHOUT_MEMBERS
from .experiment_systems import SYSTEMS, Drawn, Setup, build


@dataclass(frozen=True)
class Row:
    """A twin experiment: system, method and tuning. None stands for what is usual for the system.

    Attributes:
        system: "lorenz63", "lorenz96", "kuramoto_sivashinsky" or "quasi_geostrophic".
        method: "Climatology", "OI", "3D-Var", "4D-Var", "ExtKF", "EnKF" (stochastic), "DEnKF", "ETKF", "ESTKF",
            "EnSRF" (serial), "EnKF-N", "LETKF", "EnKS", "IEnKS" (with lag 1 the IEnKF) or "PF"; case, hyphens and
            spaces do not matter.
        members: of the ensemble, where there is one.
        inflation: of the anomalies after each analysis; of the covariance per time unit for ExtKF.
        rotation: whether members are rotated at random after each analysis, keeping their mean and covariance.
        localisation: "radius" in grid spacings, for LETKF and EnSRF.
        batch: of the LETKF: points so many along a side, squares or segments of a ring, share the transform of
            their centre; 2 for quasi_geostrophic, as Sakov and Oke's code has it.
        lag: of smoothers and 4D-Var, in cycles.
        obs_error: standard deviation of the observations.
        obs_interval: model time steps between observations.
        observed_every: every so manieth point is observed.
        cycles: observation times that are scored.
        burn_in: observation times before.
        replicates: independent experiments.
        xN: confidence in the prior of the inflation, for EnKF-N, and LETKF and IEnKS with a finite-size prior.
        iterations: of the IEnKS and 4D-Var, at most.
        bundle: whether the IEnKS takes sensitivities from a small bundle instead of the ensemble.
        scale: of the background's covariance in 3D-Var and 4D-Var.
        covariance: of these, times the scale: "climatology" or "identity".
        regularisation: of the PF: jitter of copies over N^(-1/(n+4)) times the members' spread.
        resample: of the PF: resampled when no more than this fraction of the members is effective.
        divergence: mean error beyond which a replicate counts as diverged; default the observation error, half of it
            for Lorenz-96 observed every step, as its tables have it, and for Kuramoto-Sivashinsky, and infinite for
            Climatology and OI.
        model: options of the system's emulator, such as {"n": 10, "forcing": 8.0}.
        member_model: options of the members' emulator besides, for a model that is not the truth's.

    Raises ValueError for what is unknown or makes no sense.
    """

    system: str
    method: str
    members: int = 0
    inflation: float = 1.0
    rotation: bool = False
    localisation: float | None = None
    batch: int | None = None
    lag: int = 1
    obs_error: float | None = None
    obs_interval: int | None = None
    observed_every: int = 1
    cycles: int = 1000
    burn_in: int | None = None
    replicates: int = 16
    xN: float | None = None  # noqa: N815
    iterations: int = 10
    bundle: bool = False
    scale: float = 1.0
    covariance: str = "climatology"
    regularisation: float = 1.0
    resample: float = 1.0
    divergence: float | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    member_model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.system not in SYSTEMS:
            raise ValueError(f"no system {self.system!r}{_like(self.system, SYSTEMS)}; there are {', '.join(SYSTEMS)}")
        if self.kind not in METHODS:
            raise ValueError(f"no method {self.method!r}{_like(self.kind, METHODS)}; there are {', '.join(METHODS)}")
        for f in fields(self):
            self._check(f.name, str(f.type), f.default is MISSING)
        if self.covariance not in ("climatology", "identity"):
            raise ValueError(f'covariance: wanted "climatology" or "identity", got {self.covariance!r}')
        if self.kind not in WITHOUT_MEMBERS and self.members < 2:
            raise ValueError(f"{self.method}: wanted at least two members, got {self.members}")
        on_ring = self.system in ("lorenz96", "kuramoto_sivashinsky", "quasi_geostrophic")
        if self.kind == "letkf" and self.localisation is None:
            raise ValueError("LETKF: wanted a localisation, in grid spacings; without one it is the ETKF")
        if self.localisation is not None and not (self.kind in ("letkf", "ensrf") and on_ring):
            raise ValueError(
                f"{self.method} on {self.system}: localisation is for LETKF and EnSRF, on systems with points in space"
            )
        if self.batch is not None and self.kind != "letkf":
            raise ValueError(f"{self.method}: batch is for LETKF, whose points share transforms")

    def _check(self, name: str, kind: str, needed: bool) -> None:
        value = getattr(self, name)
        if value is None and "None" in kind:
            return
        least: dict[str, float] = {"members": 0, "lag": 0, "burn_in": 0, "cycles": 1, "replicates": 1, "iterations": 1}
        if kind.startswith("int"):
            least_one = least.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < least_one:
                raise ValueError(f"{name}: wanted a whole number >= {least_one:g}, got {value!r}")
        elif kind.startswith("float"):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name}: wanted a number >= 0, got {value!r}")
            if value == 0 and name not in ("regularisation", "resample"):
                raise ValueError(f"{name}: wanted a number > 0, got {value!r}")
        elif kind == "bool" and not isinstance(value, bool):
            raise ValueError(f"{name}: wanted true or false, got {value!r}")
        elif kind.startswith("Mapping") and not isinstance(value, Mapping):
            raise ValueError(f"{name}: wanted options by name, got {value!r}")

    @property
    def kind(self) -> str:
        """The method's name without case, spaces and hyphens."""
        return "".join(c for c in str(self.method).lower() if c.isalnum())

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> Row:
        """A row of a JSON object: its text, a path to it (a `Path`, or text that ends in .json), or the mapping itself.

        Raises ValueError for what is no JSON object, unknown or missing keys, and as `Row`.
        """
        if isinstance(source, Path) or (isinstance(source, str) and source.endswith(".json")):
            source = Path(source).read_text()
        try:
            given = json.loads(source) if isinstance(source, str) else dict(source)
        except json.JSONDecodeError as error:
            raise ValueError(f"a row is a JSON object, got {str(source)[:80]!r}: {error}") from error
        if not isinstance(given, dict):
            raise ValueError(f'a row is a JSON object such as {{"system": "lorenz96", ...}}, got {given!r}')
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise ValueError(f"a row has no {key!r}{_like(key, known)}; it has {', '.join(known)}")
        missing = [name for name in ("system", "method") if name not in given]
        if missing:
            raise ValueError(f"a row needs {' and '.join(missing)}")
        return cls(**given)

    def setup(self, noise: Noise) -> Setup:
        """The system as arrays. Raises ValueError for unknown options of the emulator."""
        kind = SYSTEMS[self.system]
        interval = self.obs_interval or kind.obs_interval
        truth = build(kind, self.model, interval, "model")
        model = build(kind, {**self.model, **self.member_model}, interval, "member_model")
        return Setup(kind, truth, model, self.obs_error or kind.obs_error, self.observed_every, noise)

    @property
    def first(self) -> int:
        """Number of the first cycle that is scored."""
        setup = self.setup(Noise(0))
        return math.ceil(setup.kind.burn_in / setup.interval - 1e-9) if self.burn_in is None else self.burn_in


def _like(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name).lower(), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@dataclass(frozen=True)
class Result:
    """Scores of a row.

    Attributes:
        row: what was run.
        rmse: mean error of the analysis of each replicate (replicate,), infinite where the forecast failed.
        spread: mean spread of the analysis (replicate,).
        smoothed: mean error as many cycles ago as the lag, for smoothers (replicate,).
        limit: error from which on a replicate has diverged.
        cpu_seconds: of this process, with setting up.
        cycles: observation times that were run, with the burn-in.
    """

    row: Row
    rmse: Tensor = field(repr=False)
    spread: Tensor = field(repr=False)
    smoothed: Tensor | None = field(repr=False)
    limit: float
    cpu_seconds: float
    cycles: int

    @property
    def median(self) -> float:
        """Median error over all replicates."""
        return _median(self.rmse)

    @property
    def deviation(self) -> float:
        """Standard deviation of the error over the replicates that have not diverged; nan for fewer than two."""
        kept = self.rmse[self.rmse <= self.limit]
        return float(kept.std()) if len(kept) > 1 else math.nan

    @property
    def median_spread(self) -> float:
        """Median spread over all replicates."""
        return _median(self.spread)

    @property
    def median_smoothed(self) -> float:
        """Median error of the smoother over all replicates, nan for filters."""
        return math.nan if self.smoothed is None else _median(self.smoothed)

    @property
    def diverged(self) -> int:
        """Number of replicates that diverged: with a mean error beyond the limit, or a forecast that failed."""
        return int((~(self.rmse <= self.limit)).sum())

    @property
    def cycles_per_second(self) -> float:
        """Cycles of single replicates per CPU second."""
        return self.cycles * len(self.rmse) / self.cpu_seconds

    def __str__(self) -> str:
        return (
            f"{self.row.method} on {self.row.system}: RMSE {self.median:.4f} ± {self.deviation:.4f}, spread "
            f"{self.median_spread:.4f} (median of {len(self.rmse)} replicates, {self.diverged} diverged), "
            f"{self.cycles_per_second:.0f} cycles per CPU second"
        )


def _median(values: Tensor) -> float:
    return (
        float(values.quantile(0.5)) if bool(values.isfinite().all()) else float(values.sort().values[len(values) // 2])
    )


@torch.inference_mode()
def run(row: Row, seed: int = 0, progress: bool = False) -> Result:
    """Run all replicates of a row as one batch.

    Args:
        row: the experiment.
        seed: of all randomness; a replicate's is a function of the seed, its number, and the cycle.
        progress: whether to show how far it is.

    Raises ValueError for options of the model that it does not have.
    """
    began, noise = time.process_time(), Noise(seed)
    setup = row.setup(noise)
    R = row.replicates
    members = 1 if row.kind in WITHOUT_MEMBERS else row.members
    start, E = setup.start(R, members)
    truth = start
    chosen: type[Method] = Local if row.localisation is not None else METHODS[row.kind]
    method = chosen(row, setup, noise, E)
    errors = Drawn(noise.stream("observations"), R, (len(setup.observed(0)),))
    sums, smoothed = torch.zeros(2, R, dtype=torch.float64), torch.zeros(R, dtype=torch.float64)
    past: deque[Tensor] = deque(maxlen=row.lag + 1)
    first, counted = row.first, 0
    total = first + row.cycles
    for cycle in track(range(total), f"{row.method} on {row.system}", disable=not progress):
        truth = method.kept(setup.advance(truth, truth=True), start)
        past.append(truth)
        y = truth[:, setup.observed(cycle)] + setup.error * errors.at(cycle)
        estimate = method.step(cycle, y)
        if cycle >= first:
            sums += torch.stack([_rms(estimate.mean - truth), estimate.spread])
            if estimate.smoothed is not None and len(past) > row.lag:
                smoothed += _rms(estimate.smoothed - past[0])
                counted += 1
    rmse, spread = sums / row.cycles
    rmse = torch.where(method.failed | ~rmse.isfinite(), math.inf, rmse)
    seconds = time.process_time() - began
    return Result(row, rmse, spread, smoothed / counted if counted else None, _limit(row, setup), seconds, total)


def shortened(row: Row, scale: float) -> Row:
    """The row with that fraction of its scored cycles, at least one; the burn-in stays."""
    return replace(row, cycles=max(1, round(scale * row.cycles)))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt()


def _limit(row: Row, setup: Setup) -> float:
    if row.divergence is not None:
        return row.divergence
    if row.kind in ("climatology", "oi"):
        return math.inf
    often = row.system == "kuramoto_sivashinsky" or (row.system == "lorenz96" and setup.model.steps == 1)
    return setup.error * (0.5 if often else 1.0)
