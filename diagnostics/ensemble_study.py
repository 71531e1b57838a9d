"""An ensemble skill report: how good forecasts are, how honest their spread, and how they beat a reference.

The scores of all fields are sums of one pass over the forecasts (`score_totals`, `rank_histogram`, `event_table`), kept
by initial date or time, so that intervals come from a bootstrap over them without another read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .conventions import area_of, horizontal_dims, same_units, vertical_dim
from .probability import event_table
from .ranks import rank_histogram
from .regions import Region, select_region
from .skill import skill_score, spread_error
from .slabs import by_slab
from .spectra import isotropic_spectrum
from .study_inputs import same_index, with_members
from .totals import block_length, bootstrap, score_totals, scores

if TYPE_CHECKING:
    from .page import Report

_LEAST = 4  # forecasts, for a bootstrap


@dataclass(frozen=True, eq=False)
class EnsembleSkill:
    """A skill report of ensemble forecasts, for `report`.

    Attributes:
        forecast: (init, member, lead, [lev], lat|y, lon|x) or (member, time, …), in the units of the truth; lead 0,
            which is given, is left out.
        truth: the same without members, at the valid times; see `polynya.ensembles.verifying`.
        references: forecasts to beat, by name, of the same dates, with members or without: persistence, climatology.
        variables: names to score; default all that forecast and truth share.
        depths: m; a variable with levels is scored at the level nearest to each. Default the uppermost.
        leads: in days, those of tables and maps; default one in the middle and the last.
        quantile: of the truth at each place over all dates and leads; to reach it is the event whose probability is
            forecast.
        about: name of a reference, such as climatology, that is taken off for the event, so that a season is none.
        apart: distance in m of points that count as independent in the rank histogram.
        region: box, or its name in `REGIONS`, for the spectra of the first field; None for no spectra.
        name: of the forecasts, for legends.

    Raises ValueError for variables that are missing, other dates, leads or units, and an unknown `about`.
    """

    forecast: xr.Dataset
    truth: xr.Dataset
    references: Mapping[str, xr.Dataset] = field(default_factory=dict)
    variables: Sequence[str] | None = None
    depths: Sequence[float] = (0.0,)
    leads: Sequence[float] | None = None
    quantile: float = 0.8
    about: str | None = None
    apart: float = 1e6
    region: str | Region | None = None
    name: str = "ensemble"

    def __post_init__(self) -> None:
        if "member" not in self.forecast.dims or self.forecast.sizes["member"] < 2:
            raise ValueError(
                f"EnsembleSkill: forecast needs two members or more along 'member', got {dict(self.forecast.sizes)}"
            )
        if "member" in self.truth.dims:
            raise ValueError("EnsembleSkill: the truth has the dimension 'member': .squeeze('member', drop=True)")
        if self.sample not in self.forecast.dims:
            raise ValueError(f"EnsembleSkill: forecast needs 'init' or 'time', got {dict(self.forecast.sizes)}")
        if self.about is not None and self.about not in self.references:
            raise ValueError(f"EnsembleSkill: about={self.about!r} is none of the references {[*self.references]}")
        if not self.names():
            raise ValueError(
                f"EnsembleSkill: forecast {sorted(map(str, self.forecast.data_vars))} and truth "
                f"{sorted(map(str, self.truth.data_vars))} share no variable: rename one of them"
            )
        dims = [self.sample, *(["lead"] if "lead" in self.forecast.dims else [])]
        for what, other in {"truth": self.truth, **self.references}.items():
            if missing := [n for n in self.names() if n not in other]:
                raise ValueError(f"EnsembleSkill: {what} lacks {missing}: add them, or choose with variables=")
            if lacking := [d for d in dims if d not in other.dims]:
                raise ValueError(f"EnsembleSkill: {what} lacks the dimensions {lacking} of the forecast: align it")
            same_index(self.forecast, other, dims, ("forecast", what))
            for name in self.names():
                same_units(self.forecast[name], other[name])

    @property
    def sample(self) -> str:
        """The dimension of independent cases: "init" of hindcasts, else "time"."""
        return "init" if "init" in self.forecast.dims else "time"

    def names(self) -> list[str]:
        """The variables that are scored."""
        if self.variables is not None:
            return list(self.variables)
        return [str(n) for n in self.forecast.data_vars if n in self.truth and "member" in self.forecast[n].dims]

    def fields(self, dataset: xr.Dataset) -> dict[str, xr.DataArray]:
        """The scored fields (…, lat|y, lon|x) of a dataset by name, without lead 0."""
        if "lead" in dataset.dims:
            dataset = dataset.isel(lead=np.flatnonzero(np.asarray(dataset["lead"]).astype("f8") > 0))
        found = {}
        for name in self.names():
            one = dataset[name]
            if not {"lev", "depth", "z"} & set(one.dims):
                found[name] = one
                continue
            dim = vertical_dim(one)
            for depth in self.depths:
                level = one.sel({dim: depth}, method="nearest")
                found[f"{name} at {float(level[dim]):g} m"] = level.drop_vars(dim)
        return found

    def report(self, title: str = "", *, progress: bool = False) -> Report:
        """The report as a page, to be added to and written; `title` instead of the study's own."""
        from .ensemble_page import page  # here, because figures need matplotlib, and workers of a cluster do not

        return page(self, title, progress=progress)

    def shown_leads(self) -> list[Any]:
        """Leads of tables and maps; [None] for forecasts along time."""
        if "lead" not in self.forecast.dims:
            return [None]
        all_leads = next(iter(self.fields(self.truth).values()))["lead"].values
        if self.leads is not None:
            return [all_leads[np.abs(all_leads - lead).argmin()] for lead in self.leads]
        return [all_leads[k] for k in sorted({(all_leads.size - 1) // 2, all_leads.size - 1})]

    def thresholds(self) -> dict[str, xr.DataArray]:
        """The value of the event at each place, by field, in memory."""
        dims = [self.sample, *(["lead"] if "lead" in self.forecast.dims else [])]
        found = {}
        for name, obs in self._anomalies(self.fields(self.truth)).items():
            whole = obs.chunk(dict.fromkeys(dims, -1)) if obs.chunks else obs
            found[name] = whole.quantile(self.quantile, dims, skipna=False).drop_vars("quantile").compute()
        return found

    def _anomalies(
        self, fields: Mapping[str, xr.DataArray], about: xr.Dataset | None = None
    ) -> dict[str, xr.DataArray]:
        """Fields without what the event is about."""
        if self.about is None:
            return dict(fields)
        away = self.fields(self._centre() if about is None else about)
        return {n: (f - away[n].astype(f.dtype)).assign_attrs(f.attrs) for n, f in fields.items()}

    def _centre(self) -> xr.Dataset:
        assert self.about is not None
        reference = self.references[self.about]
        return reference.mean("member", keep_attrs=True) if "member" in reference.dims else reference

    def totals(self, *, progress: bool = False) -> dict[str, xr.Dataset]:
        """Sums of everything by field, as `score_totals` along `init` or `time`, in memory.

        Variables of `score_totals` (…), those of the references with their name before a colon, `ranks` (…, rank), and
        `cases` and `events` (…, members_with_event).
        """
        limits = self.thresholds()
        stores = [self._scored(d) for d in (self.forecast, self.truth, *self.references.values())]

        def sums(forecast: xr.Dataset, truth: xr.Dataset, *references: xr.Dataset) -> xr.Dataset:
            found: dict[str, xr.DataArray] = {}
            ens, obs = self.fields(forecast), self.fields(truth)
            named = dict(zip(self.references, references, strict=True))
            others = {n: self.fields(with_members(r)) for n, r in named.items()}
            centre = None if self.about is None else with_members(named[self.about]).mean("member", keep_attrs=True)
            events = [self._anomalies(f, centre) for f in (ens, obs)]
            for name, y in obs.items():
                dims, area = horizontal_dims(y), area_of(y)
                parts = dict(score_totals(y, ens[name], dim=dims, weights=area).data_vars)
                for other, fields in others.items():
                    theirs = score_totals(y, fields[name], dim=dims, weights=area)
                    parts |= {f"{other}:{k}": v for k, v in theirs.data_vars.items()}
                apart = self._apart(area, dims)
                parts["ranks"] = rank_histogram(y.isel(apart), ens[name].isel(apart), dim=dims)
                table = event_table(events[1][name], events[0][name], threshold=limits[name], dim=dims, weights=area)
                parts |= dict(table.data_vars)
                found |= {f"{name}/{k}": v for k, v in parts.items()}
            return xr.Dataset(found)

        found = by_slab(sums, *stores, dim=self.sample, title=self.name, progress=progress)
        members = self.forecast.sizes["member"]
        out = {}
        for name, y in self.fields(self.truth).items():
            mine = {str(k).removeprefix(f"{name}/"): v for k, v in found.items() if str(k).startswith(f"{name}/")}
            out[name] = xr.Dataset(mine, attrs={"members": members, "units": str(y.attrs.get("units", ""))})
        return out

    def _scored(self, dataset: xr.Dataset) -> xr.Dataset:
        return dataset[self.names()]

    def _apart(self, area: xr.DataArray, dims: tuple[str, str]) -> dict[str, slice]:
        """Every so many cells, about `apart` from each other."""
        every = max(1, round(self.apart / float(np.sqrt(area.mean()))))
        return {d: slice(min(every, area.sizes[d]) // 2, None, every) for d in dims}

    def block(self, totals: xr.Dataset) -> int:
        """Records drawn together in the bootstrap: the memory of the CRPS of the last lead; 0 if there are too few."""
        series = totals["fair_crps"] / totals["weight"]
        n = series.sizes[self.sample]
        if n < _LEAST:
            return 0
        last = series.isel(lead=-1, drop=True) if "lead" in series.dims else series
        return min(block_length(last.drop_vars(self.sample), dim=self.sample), n // 2)

    def intervals(self, totals: xr.Dataset) -> xr.Dataset:
        """Scores of all records along `estimate` = value, low, high (NaN with fewer than four records)."""
        own = ["weight", "crps", "error", "absolute_error", "squared_error", "fair_crps", "variance"]
        return self._with_intervals(totals[own], scores, self.block(totals))

    def skill(self, totals: xr.Dataset, reference: str) -> xr.Dataset:
        """CRPS skill score over a reference, along `estimate`; fair CRPS, of single forecasts the absolute error."""
        theirs = f"{reference}:fair_crps" if f"{reference}:fair_crps" in totals else f"{reference}:crps"
        pair = xr.Dataset(
            {"ours": totals["fair_crps"], "weight": totals["weight"], "theirs": totals[theirs],
             "their_weight": totals[f"{reference}:weight"]}
        )  # fmt: skip

        def score(t: xr.Dataset) -> xr.Dataset:
            found = skill_score(t["ours"] / t["weight"], t["theirs"] / t["their_weight"])
            return found.to_dataset(name="skill")

        return self._with_intervals(pair, score, self.block(totals))

    def _with_intervals(self, totals: xr.Dataset, score: Any, block: int) -> xr.Dataset:
        if block:
            return bootstrap(totals, score, block=block, dim=self.sample)
        value: xr.Dataset = score(totals.sum(self.sample, keep_attrs=True))
        unknown = xr.full_like(value, np.nan)
        joined: xr.Dataset = xr.concat([value, unknown, unknown], xr.Variable("estimate", ["value", "low", "high"]))
        return joined

    def maps(self, name: str) -> xr.Dataset:
        """Spread, error and their ratio at each place over all dates, of a field at the last of the shown leads."""
        pair = [self.fields(self._scored(d))[name] for d in (self.truth, self.forecast)]
        if (lead := self.shown_leads()[-1]) is not None:
            pair = [f.sel(lead=lead, drop=True) for f in pair]
        return spread_error(*pair, dim=self.sample).compute()

    def spectra(self, name: str) -> tuple[xr.DataArray, xr.DataArray]:
        """Spectra of the forecasts' single members and of the truth in the region, means over dates and members."""
        assert self.region is not None
        both = []
        for dataset in (self.forecast, self.truth):
            box = select_region(self.fields(self._scored(dataset))[name], self.region).load()
            land = "taper" if bool(box.isnull().any()) else "refuse"
            spectrum = isotropic_spectrum(box, land=land)
            both.append(spectrum.mean([d for d in (self.sample, "member") if d in spectrum.dims], keep_attrs=True))
        return both[0], both[1]
