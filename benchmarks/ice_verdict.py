"""What the cases of `ice_ensembles` say: scores, exponents of deformation, tables, and which claims hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from ice_cases import QUANTITIES, Bench
from ice_years import SHORT, Year

from polynya.diagnostics import deformation_moments, scaling_exponents, velocity_gradients
from polynya.emulators import attributes

FORECASTS = {
    "mean": "ensemble mean",
    "member": "single member",
    "deterministic": "deterministic",
    "persistence": "persistence",
}
AVERAGES = {"gradients": "contour", "rates": "backward"}
"""Ways to average over boxes and the differences they go with: Marsan et al. (2004) and Finn et al. (2024)."""

ORDERS = (1, 2, 3)
SMALLEST = 2 / 3  # of the highest wavenumber: above are the smallest scales
DRIFT = 0.2  # of the truth's range of volume, seasonal in a run of a year: more is a drift
_PARTIAL = 0.15  # of ice below which drift is left out of deformation
_TABLED = (0.5, 1, 2, 5, 10, 15)  # days


@dataclass(frozen=True)
class Claim:
    """A sentence to be tested, whether it holds, and by what numbers."""

    words: str
    holds: bool
    numbers: str

    def __str__(self) -> str:
        return f"{'PASS' if self.holds else 'FAIL'}  {self.words}: {self.numbers}"


def scores(cases: xr.Dataset, deviations: tuple[float, ...]) -> xr.Dataset:
    """Scores over all cases, roots last.

    Args:
        cases: of `ice_cases.gathered`.
        deviations: standard deviations of the states, for the mean over variables.

    Returns:
        `rmse` (forecast, variable, lead), `nrmse` (forecast, lead), `crps` and `absolute` (variable, lead): the fair
        CRPS of the ensemble and the deterministic run's, and `ratio` (variable, lead), spread over error with the
        factor ((M + 1) / M)^1/2.
    """
    sums = cases["sums"].mean("case")
    square = sums.sel(score=list(FORECASTS)).rename(score="forecast")
    std = xr.DataArray(list(deviations), dims="variable", coords={"variable": cases["variable"]})
    m = cases.attrs["members"]
    ratio = ((m + 1) / m * sums.sel(score="spread", drop=True) / sums.sel(score="mean", drop=True)) ** 0.5
    found = {
        "rmse": square**0.5,
        "nrmse": (square / std**2).mean("variable") ** 0.5,
        "crps": sums.sel(score="crps", drop=True),
        "absolute": sums.sel(score="absolute", drop=True),
        "ratio": ratio,
    }
    return xr.Dataset(found)


def small_scale_power(spectra: xr.DataArray) -> xr.Dataset:
    """Power in the upper third of wavenumbers, relative to the truth's, over all cases.

    Args:
        spectra: (case, run, quantity, wavenumber), under whatever name.

    Returns:
        `ratio` (run, quantity), and `error`, its standard error by the jackknife over cases (Efron & Stein 1981,
        Ann. Statist. 9, 586-596).
    """
    name = str(spectra.dims[-1])
    k = spectra[name].to_numpy()
    power = spectra.isel({name: k > SMALLEST * k.max()}).sum(name)
    total, n = power.sum("case"), power.sizes["case"]
    ratio, without = (p / p.sel(run="truth", drop=True) for p in (total, total - power))
    error = ((n - 1) / n * ((without - without.mean("case")) ** 2).sum("case")) ** 0.5
    return xr.Dataset({"ratio": ratio, "error": error}).drop_sel(run="truth")


def moments(cases: xr.Dataset, bench: Bench, average: str) -> dict[str, xr.DataArray]:
    """Moments of deformation over all cases: {run: (order, box), with member for the generative one}."""
    n = cases.attrs["members"]
    members = [s for s in cases["source"].values.tolist() if s.startswith("member ")][:n]
    sources = {"generative": members, "deterministic": ["deterministic"], "truth": ["truth"]}
    return {run: _moments(cases["maps"].sel(source=s), bench, average) for run, s in sources.items()}


def _moments(maps: xr.DataArray, bench: Bench, average: str) -> xr.DataArray:
    maps = maps.drop_vars("source").rename(source="member")
    ice = maps.sel(variable="siconc", drop=True) >= _PARTIAL
    u, v = (maps.sel(variable=n, drop=True).where(ice).assign_attrs(units="m s-1") for n in ("siu", "siv"))
    gradients = velocity_gradients(u, v, method=AVERAGES[average], spacing=bench.spacing)
    size = tuple(gradients.sizes[d] for d in ("y", "x"))
    boxes = [b for b in (1, 2, 4, 8, 16) if 2 * b <= min(size)]
    area = xr.DataArray(np.full(size, np.prod(bench.spacing)), dims=("y", "x"))
    found = deformation_moments(gradients, boxes=boxes, orders=ORDERS, average=average, area=area)
    return found.squeeze("member") if found.sizes["member"] == 1 else found


def exponents(found: dict[str, xr.DataArray]) -> dict[str, list[float]]:
    """beta(q) of each run, mean over members."""
    betas = {run: scaling_exponents(m)["exponent"] for run, m in found.items()}
    return {run: [float(b) for b in (x.mean("member") if "member" in x.dims else x)] for run, x in betas.items()}


# --- claims ---------------------------------------------------------------------------------------------


def claims(
    found: xr.Dataset,
    power: xr.Dataset,
    betas: dict[str, dict[str, list[float]]],
    years: dict[str, Year],
    bench: Bench,
    day: float,
    span: tuple[float, float],
) -> list[Claim]:
    """The sentences of the benchmark's goal, tested; `day` is the lead of exponents, `span` those of power.

    Claims say the leads and the length that they were tested with, which short runs cannot choose.
    """
    tested = [*_score_claims(found), *_power_claims(power, span)]
    for average, beta in betas.items():
        off = {r: [abs(b - t) for b, t in zip(beta[r], beta["truth"], strict=True)] for r in beta if r != "truth"}
        for q in (2, 3):
            ours, theirs = (off[r][ORDERS.index(q)] for r in ("generative", "deterministic"))
            values = ", ".join(f"{run} {beta[run][ORDERS.index(q)]:.3f}" for run in beta)
            tested.append(
                Claim(f"β({q}) by {average} at {day:g} days closer to truth than deterministic", ours < theirs, values)
            )
    if "generative" in years:
        tested += _year_claims(years["generative"], bench)
    return tested


def _score_claims(found: xr.Dataset) -> list[Claim]:
    late = found.sel(lead=found["lead"] >= min(10.0, float(found["lead"][-1])))
    relative = (late.rmse.sel(forecast="mean") / late.rmse.sel(forecast="deterministic")).max("lead")
    overall = (late.nrmse.sel(forecast="mean") / late.nrmse.sel(forecast="deterministic")).max("lead")
    crps = (found.crps / found.absolute).max("lead")
    low, high = found.ratio.min("lead"), found.ratio.max("lead")
    spans = {
        str(v): f"{float(low.sel(variable=v)):.2f}–{float(high.sel(variable=v)):.2f}" for v in low["variable"].values
    }
    inside = bool((low >= 0.8).all() & (high <= 1.2).all())
    words = f"ensemble-mean RMSE below the deterministic at every lead of {float(late.lead[0]):g} days or more"
    return [
        Claim(f"{words}, each variable", bool((relative < 1).all()), f"largest ratio {_by_variable(relative)}"),
        Claim(f"{words}, over variables", bool(overall < 1), f"largest ratio of nRMSE {float(overall):.3f}"),
        Claim("fair CRPS below the deterministic error at every lead", bool((crps < 1).all()),
              f"largest ratio {_by_variable(crps)}"),
        Claim("spread / error within 0.8–1.2 at every lead", inside, ", ".join(f"{n} {s}" for n, s in spans.items())),
    ]  # fmt: skip


def _power_claims(power: xr.Dataset, span: tuple[float, float]) -> list[Claim]:
    ours, theirs = power.sel(run="generative"), power.sel(run="deterministic")
    words = f"small-scale power of a member at {span[0]:g} to {span[1]:g} days within 10 % of truth"
    return [
        Claim(words, bool((abs(ours.ratio - 1) <= 0.1).all()), _by_quantity(ours)),
        Claim("the deterministic loses half of it or more", bool((theirs.ratio <= 0.5).all()), _by_quantity(theirs)),
    ]


def _year_claims(year: Year, bench: Bench) -> list[Claim]:
    steps = year.run.sizes["time"] - 1
    tested = []
    for n in sorted({min(SHORT, steps), steps}):
        days = n * bench.generative.dt.total_seconds() / 86400
        bad, drift = year.beyond(bench.generative, n), year.drift(n)
        made = float(year.clamped.made.mean()) * days
        span = f"the truth's range in {steps * bench.generative.dt.total_seconds() / 86400:g} days"
        numbers = f"volume off by {drift:+.3f} of {span} (allowed {DRIFT}); clamp makes {made:+.3g} m"
        tested.append(Claim(f"{days:g} days in bounds", bad == 0, f"{bad} maps out of bounds or not finite"))
        tested.append(Claim(f"{days:g} days without drift", abs(drift) <= DRIFT, numbers))
    return tested


def _by_variable(x: xr.DataArray) -> str:
    return ", ".join(f"{v} {float(x.sel(variable=v)):.3f}" for v in x["variable"].values)


def _by_quantity(x: xr.Dataset) -> str:
    return ", ".join(f"{q} {_with_error(x.sel(quantity=q))}" for q in QUANTITIES)


def _with_error(x: xr.Dataset) -> str:
    return f"{float(x.ratio):.2f} ± {float(x.error):.2f}"


# --- tables ---------------------------------------------------------------------------------------------


def tables(
    found: xr.Dataset,
    power: dict[str, xr.Dataset],
    betas: dict[str, dict[str, list[float]]],
    years: dict[str, Year],
) -> str:
    """Everything as markdown."""
    parts = ["## Scores by lead", _score_table(found)]
    rows = [
        [where, str(run), *(_with_error(x.sel(run=run, quantity=q)) for q in QUANTITIES)]
        for where, x in power.items()
        for run in x["run"].values
    ]
    parts += [
        "## Power at the smallest scales, truth = 1, with its standard error over cases",
        _table(["squares", "run", *QUANTITIES], rows),
    ]
    head = ["average", "run", *(f"β({q})" for q in ORDERS)]
    rows = [[a, run, *(f"{b:.3f}" for b in beta)] for a, found_by in betas.items() for run, beta in found_by.items()]
    parts += ["## Scaling of deformation", _table(head, rows)]
    if years:
        parts += ["## Long runs", _year_table(years)]
    return "\n\n".join(parts)


def _score_table(found: xr.Dataset) -> str:
    leads = [d for d in found["lead"].values if d in _TABLED or d == found["lead"].values[-1]]
    rows: list[list[str]] = []
    lines: dict[str, Any] = {f"RMSE, {words}": found.rmse.sel(forecast=n) for n, words in FORECASTS.items()}
    lines |= {"fair CRPS": found.crps, "absolute error, deterministic": found.absolute, "spread / error": found.ratio}
    for v in found["variable"].values:
        units = attributes(str(v)).get("units", "1")
        for words, line in lines.items():
            values = [f"{float(line.sel(variable=v, lead=d)):.3g}" for d in leads]
            rows.append([f"{v} [{units}]" if words == next(iter(lines)) else "", words, *values])
    for n, words in FORECASTS.items():
        values = [f"{float(found.nrmse.sel(forecast=n, lead=d)):.3g}" for d in leads]
        rows.append(["all, normalised" if n == "mean" else "", f"nRMSE, {words}", *values])
    return _table(["variable", "score", *(f"{d:g} d" for d in leads)], rows)


def _year_table(years: dict[str, Year]) -> str:
    head = ["run", "days", "volume drift [truth's range]", "extent, last 30 d [truth]", "cells clamped [%]",
            "made by clamp [mm/day]", "variance at the end [truth]"]  # fmt: skip
    rows = []
    for name, year in years.items():
        steps = year.run.sizes["time"] - 1
        for n in sorted({min(SHORT, steps), steps}):
            end = {"time": slice(max(0, n - 59), n + 1)}
            extent = float(year.run.extent.isel(end).mean() / year.truth.extent.isel(end).mean())
            share = ", ".join(f"{v} {100 * float(year.clamped.share.sel(variable=v).mean()):.2g}" for v in _CLAMPED)
            variances = ", ".join(f"{v} {r:.2f}" for v, r in year.variances(n).items())
            made = 1e3 * float(year.clamped.made.mean())
            rows.append(
                [name, f"{n / 2:g}", f"{year.drift(n):+.3f}", f"{extent:.3f}", share, f"{made:+.2g}", variances]
            )
    return _table(head, rows)


_CLAMPED = ("sithick", "siconc", "sidamage")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
