"""One forecast case of `ice_ensembles`: an ensemble, a deterministic run and the truth, reduced to sums and maps.

A case is a member of the truth and a date. Both emulators begin from the true state of that date and are driven by
the true weather. What is kept of 16 members and 30 leads are sums over the ocean, weighted by area, in float64; of
ten days ahead also the maps of a few members, and of eight to twelve days ahead the mean spectra. Each case is a file,
so that a run that was cut goes on.

Spectra and land: of squares without land, plane removed, Hann window, so that no coast adds small scales. The largest
square (33 x 33 of the 64 x 64 cells) shows all scales, of the middle of the map. Small scales are told by all squares
half as wide, four cells apart (Welch 1967, doi:10.1109/TAU.1967.1161901). Their power comes in rare events: that of a
single map of the truth varies by 1.2 to 1.6 times its mean in the largest square, so that 16 maps tell it to a third
only. Hence all squares, the days around the tenth, and many cases. Drift where there is less than 15 % ice is left out
of deformation only.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from polynya.diagnostics import (
    area_of,
    crps_ensemble,
    isotropic_spectrum,
    kinetic_energy_spectrum,
    rank_histogram,
    rmse,
    spread_error,
)
from polynya.diagnostics.conventions import weighted_mean
from polynya.emulators import Noise, Source, State
from polynya.emulators.regional import Regional
from polynya.ensembles import trajectory

Arrays = dict[str, NDArray[Any]]

PLACES = ("y", "x")
SCORES = ("mean", "spread", "member", "deterministic", "persistence", "crps", "absolute")
"""Squares but the last two: the deterministic run's CRPS is its absolute error."""

RUNS = ("generative", "ensemble mean", "deterministic", "truth")
QUANTITIES = ("sithick", "siconc", "sidamage", "kinetic energy")
EARLY, LATE = 2, 20  # steps of the rank histograms; maps at the second, spectra around it
KEPT = 4  # members whose maps are kept


@dataclass(frozen=True)
class Plan:
    """What is computed for every case; cases of another plan are not reused."""

    members: int = 16
    leads: int = 30
    seed: int = 0
    around: int = 4

    @property
    def days(self) -> tuple[int, int]:
        """The steps of rank histograms; the second is that of maps."""
        return min(EARLY, self.leads), min(LATE, self.leads)

    @property
    def window(self) -> tuple[int, ...]:
        """The steps that spectra are a mean of: every other one not further than `around` from that of maps."""
        late = self.days[1]
        return tuple(k for k in range(late - self.around, late + self.around + 1, 2) if 1 <= k <= self.leads)

    @property
    def kept(self) -> int:
        """Members whose maps are kept."""
        return min(KEPT, self.members)


@dataclass(frozen=True)
class Bench:
    """Two emulators and the truth they are judged by."""

    generative: Regional
    deterministic: Regional
    truth: xr.Dataset

    def __post_init__(self) -> None:
        kinds = self.generative.kind, self.deterministic.kind
        if kinds[0] == "deterministic" or kinds[1] != "deterministic":
            raise SystemExit(f"wanted a generative and a deterministic emulator, got {kinds[0]} and {kinds[1]}")
        if "member" not in self.truth.dims:
            raise SystemExit(f"wanted a truth with members, got the dimensions {dict(self.truth.sizes)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Variables."""
        return tuple(self.generative.layout.names)

    def source(self, model: Regional, member: int, *, forcing: bool) -> Source:
        """The states or the forcing of one member of the truth, which serve any members of a forecast."""
        return Source.open(self.truth.sel(member=[member]), model.forcing_layout if forcing else model.layout)

    @cached_property
    def square(self) -> dict[str, slice]:
        """The largest square without land."""
        wet = self.generative.layout.mask[0].numpy()
        size = np.zeros((wet.shape[0] + 1, wet.shape[1] + 1), int)
        for j, i in np.argwhere(wet):
            size[j + 1, i + 1] = 1 + min(size[j, i + 1], size[j + 1, i], size[j, i])
        j, i = np.unravel_index(size.argmax(), size.shape)
        n = int(size.max())
        return {"y": slice(int(j) - n, int(j)), "x": slice(int(i) - n, int(i))}

    @cached_property
    def small_squares(self) -> list[dict[str, slice]]:
        """All squares without land that are half as wide as the largest, a quarter of their width apart."""
        wet, n = self.generative.layout.mask[0].numpy(), (self.square["y"].stop - self.square["y"].start) // 2
        ny, nx = (range(0, size - n + 1, max(n // 4, 1)) for size in wet.shape)
        places = [{"y": slice(j, j + n), "x": slice(i, i + n)} for j in ny for i in nx]
        return [p for p in places if wet[p["y"], p["x"]].all()]

    @cached_property
    def spacing(self) -> tuple[float, float]:
        """Size of cells (dy, dx), m."""
        dy, dx = (float(np.diff(self.generative.layout.grid[d].values).mean()) for d in PLACES)
        return dy, dx

    def key(self, *models: Regional, **settings: Any) -> str:
        """A name for what these emulators, with their samplers, make of this truth with these settings."""
        about = {k: str(self.truth.attrs.get(k, "")) for k in ("history", "provenance")}
        found = hashlib.sha256(json.dumps([about, settings], sort_keys=True).encode())
        for model in models:
            found.update(repr(model.config).encode())
            for network in filter(None, (model.network, model.first_guess)):
                for name, tensor in network.state_dict().items():
                    found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:12]


def chosen(bench: Bench, members: list[int], cases: int, leads: int) -> list[tuple[int, cftime.datetime]]:
    """Cases spread evenly over the record, the members of the truth in turn."""
    times = Source.open(bench.truth, bench.generative.layout).times
    last = len(times) - 1 - leads
    if last < 0:
        raise SystemExit(f"wanted a truth of {leads + 1} records at least, got {len(times)}")
    starts = np.linspace(0, last, cases).round().astype(int)
    found = [(members[k % len(members)], times[at]) for k, at in enumerate(starts)]
    return list(dict.fromkeys(found))


def read_or_made(bench: Bench, plan: Plan, member: int, date: cftime.datetime, folder: Path) -> Arrays:
    """A case from its file, or computed and kept there."""
    key = bench.key(bench.generative, bench.deterministic, **asdict(plan))
    path = folder / "cases" / key / f"{member:03d}_{date.strftime('%Y-%m-%dT%H')}.npz"
    if path.exists():
        with np.load(path) as kept:
            return dict(kept)
    found = case(bench, plan, member, date)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **found)  # type: ignore[arg-type]  # of the stubs
    part.replace(path)
    return found


def case(bench: Bench, plan: Plan, member: int, date: cftime.datetime) -> Arrays:
    """Sums, spectra and maps of one case.

    Returns:
        `sums` (score, variable, lead), `ranks` (day, variable, rank), `spectra` of the largest square and `local` ones
        of small squares (run, quantity, ring), their `wavenumber` and `local_wavenumber` (ring), `maps` (truth, kept
        members, ensemble mean, deterministic; variable, y, x) and `seconds` (generative, deterministic) of a member and
        step.
    """
    states = bench.source(bench.generative, member, forcing=False)
    runs = [
        _forecast(bench, model, member, date, range(size), plan)
        for model, size in ((bench.generative, plan.members), (bench.deterministic, 1))
    ]
    first = stacked(states.state(date, (0,))).isel(member=0)
    sums = np.zeros((len(SCORES), len(bench.names), plan.leads))
    found: Arrays = {"ranks": np.zeros((2, len(bench.names), plan.members + 1))}
    taken = np.zeros((2, plan.leads))
    squares: dict[str, list[dict[str, slice]]] = {"spectra": [bench.square], "local": bench.small_squares}
    spectra: dict[str, list[xr.DataArray]] = {n: [] for n in squares}
    for k in range(1, plan.leads + 1):
        (ens, taken[0, k - 1]), (det, taken[1, k - 1]) = (next(run) for run in runs)
        obs, single = (
            stacked(states.state(states.shift(date, k * bench.generative.dt), (0,))).isel(member=0),
            det.isel(member=0),
        )
        sums[:, :, k - 1] = _scores(obs, ens, single, first)
        for day in (i for i, wanted in enumerate(plan.days) if wanted == k):
            seed = zlib.crc32(f"{member} {date} {k}".encode())
            ranked: dict[str, Any] = {"dim": PLACES, "weights": area_of(ens), "seed": seed}
            found["ranks"][day] = rank_histogram(obs, ens, **ranked).transpose("variable", "rank")
        if k in plan.window:
            for n, places in squares.items():
                spectra[n].append(_spectra(bench, obs, ens, single, places))
        if k == plan.days[1]:
            found["maps"] = _maps(plan, obs, ens, single)
    for (n, each), k_name in zip(spectra.items(), ("wavenumber", "local_wavenumber"), strict=True):
        found |= {n: np.mean([s.to_numpy() for s in each], 0), k_name: each[0]["wavenumber"].to_numpy()}
    return found | {"sums": sums, "seconds": np.median(taken, 1) / (plan.members, 1)}


def stacked(state: State) -> xr.DataArray:
    """A state as (member, variable, y, x), NaN on land."""
    fields = state.to_xarray().isel(time=-1, drop=True)
    return fields.to_dataarray("variable").transpose("member", "variable", *PLACES)


# --- how it is done -------------------------------------------------------------------------------------


def _forecast(
    bench: Bench, model: Regional, member: int, date: cftime.datetime, members: range, plan: Plan
) -> Iterator[tuple[xr.DataArray, float]]:
    """The states of a forecast after its start, and the seconds that each took."""
    states, driven = (bench.source(model, member, forcing=f) for f in (False, True))
    states.require(date, plan.leads, model.dt)
    driven.require(date, plan.leads - 1, model.dt)
    device = next(model.network.parameters()).device
    start = states.state(date, (0,)).spread_to(tuple(members)).to(device)
    # Two members of the truth may be forecast from one date: a stream each.
    forecast = islice(trajectory(model, start, driven, Noise(plan.seed).stream(f"truth {member}")), 1, None)
    while True:
        begin = time.perf_counter()
        with torch.no_grad():
            data = next(forecast).to("cpu")
        yield stacked(data), time.perf_counter() - begin


def _scores(obs: xr.DataArray, ens: xr.DataArray, det: xr.DataArray, first: xr.DataArray) -> NDArray[np.float64]:
    """`SCORES` of one lead (score, variable)."""
    over: dict[str, Any] = {"dim": PLACES, "weights": area_of(ens)}
    both = spread_error(obs, ens, **over)
    found = {
        "mean": both.error**2,
        "spread": both.spread**2,
        "member": (rmse(obs, ens, **over) ** 2).mean("member"),
        "deterministic": rmse(obs, det, **over) ** 2,
        "persistence": rmse(obs, first, **over) ** 2,
        "crps": crps_ensemble(obs, ens, **over, fair=True),
        "absolute": weighted_mean(np.abs(det.astype("f8") - obs), area_of(ens), dim=PLACES),
    }
    return np.stack([found[n].to_numpy() for n in SCORES])


def _maps(plan: Plan, obs: xr.DataArray, ens: xr.DataArray, det: xr.DataArray) -> NDArray[np.float32]:
    """Truth, kept members, ensemble mean, deterministic (source, variable, y, x)."""
    mean = ens.astype("f8").mean("member").to_numpy()
    return np.stack([obs.to_numpy(), *ens.to_numpy()[: plan.kept], mean, det.to_numpy()]).astype("f4")


def _spectra(
    bench: Bench, obs: xr.DataArray, ens: xr.DataArray, det: xr.DataArray, squares: list[dict[str, slice]]
) -> xr.DataArray:
    """Spectra of one lead (run, quantity, wavenumber)."""
    mean = ens.astype("f8").mean("member", keep_attrs=True)
    runs = {"truth": obs, "generative": ens, "ensemble mean": mean, "deterministic": det}
    inside = {n: xr.concat([_bare(x.isel(s)) for s in squares], "square") for n, x in runs.items()}
    found = [xr.concat([_spectrum(bench, inside[run], q) for q in QUANTITIES], "quantity") for run in RUNS]
    return xr.concat(found, "run")


def _bare(x: xr.DataArray) -> xr.DataArray:
    """Without its place, which differs from square to square."""
    return x.drop_vars(["lat", "lon", *PLACES], errors="ignore")


def _spectrum(bench: Bench, inside: xr.DataArray, quantity: str) -> xr.DataArray:
    """Spectrum (wavenumber), mean over squares and members."""
    # Members stay: a mean of spectra is not the spectrum of a mean.
    options: dict[str, Any] = {"dim": PLACES, "spacing": bench.spacing}
    if quantity == "kinetic energy":
        drift = (inside.sel(variable=n).assign_attrs(units="m s-1") for n in ("siu", "siv"))
        found = kinetic_energy_spectrum(*drift, **options)
    else:
        found = isotropic_spectrum(inside.sel(variable=quantity), **options)
    found = found.isel(wavenumber=found["wavenumber"].to_numpy() <= 0.5 / max(bench.spacing))  # the last ring is cut
    return found.mean([d for d in ("member", "square") if d in found.dims])


def gathered(cases: list[Arrays], names: tuple[str, ...], plan: Plan, dt: timedelta) -> xr.Dataset:
    """All cases as one Dataset; maps and coordinates named."""
    days = dt / timedelta(days=1)
    sources = ["truth", *(f"member {i}" for i in range(plan.kept)), "ensemble mean", "deterministic"]
    dims = {
        "sums": ("score", "variable", "lead"),
        "ranks": ("day", "variable", "rank"),
        "spectra": ("run", "quantity", "wavenumber"),
        "local": ("run", "quantity", "local_wavenumber"),
        "maps": ("source", "variable", *PLACES),
        "seconds": ("model",),
    }
    fields = {n: (("case", *d), np.stack([c[n] for c in cases])) for n, d in dims.items()}
    coords = {
        "score": list(SCORES),
        "variable": list(names),
        "lead": ("lead", days * np.arange(1, plan.leads + 1), {"units": "days"}),
        "day": ("day", days * np.array(plan.days), {"units": "days"}),
        "run": list(RUNS),
        "quantity": list(QUANTITIES),
        **{n: (n, cases[0][n], {"units": "m-1"}) for n in ("wavenumber", "local_wavenumber")},
        "source": sources,
        "model": ["generative", "deterministic"],
    }
    return xr.Dataset(fields, coords=coords, attrs=asdict(plan))
