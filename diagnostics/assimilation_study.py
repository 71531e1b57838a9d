"""An assimilation experiment: error and spread of analyses beside a free run, and what the innovations say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from .page import Report


@dataclass(frozen=True, eq=False)
class AssimilationSkill:
    """An assimilation experiment with a known truth, for `report`.

    Attributes:
        scores: `error` and `spread` (run, band, state, time) in the unit of each band, with the coordinates `variable`,
            `depth` and `units` (band); `state` is background or analysis: `polynya.da.Twin.scores()`.
        summary: `error`, `spread`, `ratio` and, beside a free run, `gain` (run, band), means over time:
            `Twin.summary()`.
        departures: innovation statistics by run, each with `kind`, `variable`, `given`, `used`, `mean`, `rms` and
            `expected` (type): `polynya.da.Assimilation.departures()`.
        truth: (time, [lev], lat|y, lon|x), with or without one member, and
        runs: by name (member, time, …): analyses, for maps of `shown`.
        shown: the variable of the maps, at its uppermost level.
        free: the run that sees no observations.

    Raises ValueError for variables, coordinates or dimensions that are missing, and runs that have no truth.
    """

    scores: xr.Dataset
    summary: xr.Dataset
    departures: Mapping[str, xr.Dataset] = field(default_factory=dict)
    truth: xr.Dataset | None = None
    runs: Mapping[str, xr.Dataset] = field(default_factory=dict)
    shown: str = "zos"
    free: str = "free run"

    def __post_init__(self) -> None:
        for what, data, dims in (
            ("scores", self.scores, {"run", "band", "state", "time"}),
            ("summary", self.summary, {"run", "band"}),
        ):
            wanted = {"error", "spread", "variable", "depth", "units"}
            if (missing := sorted(wanted - set(data.variables))) or set(data["error"].dims) != dims:
                raise ValueError(
                    f"AssimilationSkill: {what} needs error and spread {sorted(dims)} with the coordinates variable, "
                    f"depth and units along band, got {dict(data.sizes)} without {missing}: give Twin.{what}()"
                )
        for name, one in self.departures.items():
            if missing := sorted({"kind", "variable", "given", "used", "mean", "rms", "expected"} - set(one.variables)):
                raise ValueError(
                    f"AssimilationSkill: departures of {name!r} lack {missing}: give Assimilation.departures()"
                )
        if self.runs and self.truth is None:
            raise ValueError("AssimilationSkill: runs are drawn beside the truth: give truth= as well")
        for name, run in {"truth": self.truth, **self.runs}.items():
            if run is not None and self.shown not in run:
                raise ValueError(f"AssimilationSkill: {name} lacks {self.shown!r}, which is shown: choose with shown=")

    def report(self, title: str = "", *, progress: bool = False) -> Report:
        """The experiment as a page, to be added to and written; `title` instead of its own; `progress` is unused."""
        from .assimilation_page import page  # here, because figures need matplotlib, and workers of a cluster do not

        return page(self, title)
