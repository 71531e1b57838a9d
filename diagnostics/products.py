"""What a stream can be asked for: statistics of a tile that merge into those of the store.

A product turns a tile into a small Dataset, its state (`partial`); adds up states of the same places and times
(`merge`); and makes the result of them (`finish`). Where a state keeps a dimension along which the store is read in
tiles, `stream` puts the states side by side, otherwise it merges them; so no product knows of tiles. The formulas are
those of the plain functions, which are called here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import xarray as xr

from .conventions import bare, described, wet_area
from .heat import heat_between, heat_uptake
from .kernels import moments
from .moments import merged_moments
from .sea_level import global_rise, volume_sums
from .spectra import isotropic_spectrum, kinetic_energy_spectrum
from .totals import score_totals

_Array = np.ndarray[Any, Any]
Data: TypeAlias = xr.DataArray | xr.Dataset

COLUMN = ("lev", "depth", "z")
"""Names of the vertical dimension."""


class Product(Protocol):
    """A statistic that merges; see the module.

    Attributes:
        variables: that it reads; None for those that a trial with empty arrays shows.
        whole: dimensions that a tile must hold complete; names that a store lacks do not matter. None for all but
            member, time, init and lead, and those that the trial shows to be summed.
        working: bytes of temporaries for each byte of its variables that it is given.
    """

    @property
    def variables(self) -> tuple[str, ...] | None:
        """See above."""
        ...

    @property
    def whole(self) -> tuple[str, ...] | None:
        """See above."""
        ...

    @property
    def working(self) -> float:
        """See above."""
        ...

    def partial(self, tile: xr.Dataset) -> xr.Dataset:
        """State of a tile, whose values the next tile overwrites: only a state may hold them, which is then copied."""
        ...

    def merge(self, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
        """State of two tiles together."""
        ...

    def finish(self, total: xr.Dataset) -> Data:
        """Result of the state of the whole store."""
        ...


def added(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Sum of two states; what is NaN in one, for there was nothing to sum, is that of the other."""

    def sums(a: xr.DataArray) -> xr.DataArray:
        b = second[a.name]
        both = np.where(np.isnan(a), b, np.where(np.isnan(b), a, a.values + b.values))
        return a.copy(data=both)

    return first.map(sums, keep_attrs=True)


def _as_state(result: Data) -> xr.Dataset:
    if isinstance(result, xr.Dataset):
        return result
    called = {} if result.name is None else {"_called": result.name}
    return result.to_dataset(name="_result").assign_attrs(called)


def _as_result(state: xr.Dataset) -> Data:
    if "_result" not in state.data_vars:
        return state
    return state["_result"].rename(state.attrs.get("_called"))


@dataclass(frozen=True)
class Each:
    """Any function that treats each member and time by itself: its results put together along the tiles.

    `function` takes a Dataset and returns a DataArray or Dataset. What it sums over, or joins in other ways along
    member or time (running means, anomalies from a mean), must be named in `whole`.
    """

    function: Callable[[xr.Dataset], Data]
    variables: tuple[str, ...] | None = None
    whole: tuple[str, ...] | None = None
    working: float = 8.0

    def partial(self, tile: xr.Dataset) -> xr.Dataset:
        """Result of the function."""
        return _as_state(self.function(tile))

    def merge(self, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
        """Never: two tiles of the same places and times are of a dimension that the function lost."""
        raise ValueError(
            f"{self.function!r} returned {dict(first.sizes)}, which lacks a dimension along which the store is read in "
            "tiles: name what it sums over in Each(function, whole=(…)), or let a product with a merge do it"
        )

    def finish(self, total: xr.Dataset) -> Data:
        """Results of all tiles."""
        return _as_result(total)


@dataclass(frozen=True)
class Averaged:
    """Mean over members and times of what a function returns for each, such as a spectrum; NaN is left out.

    `function` as for `Each`; `over`, the dimensions of its result to average over.
    """

    function: Callable[[xr.Dataset], Data]
    over: tuple[str, ...] = ("member", "time")
    variables: tuple[str, ...] | None = None
    whole: tuple[str, ...] | None = None
    working: float = 8.0

    def partial(self, tile: xr.Dataset) -> xr.Dataset:
        """Sums and numbers of what is finite."""
        found = _as_state(self.function(tile))
        over = [d for d in self.over if d in found.dims]
        sums = {f"{name}": bare(v).astype("f8").sum(over, keep_attrs=True) for name, v in found.data_vars.items()}
        counts = {f"_count_{name}": bare(v).notnull().sum(over).astype("f8") for name, v in found.data_vars.items()}
        coords = {name: c for name, c in found.coords.items() if not set(c.dims) & set(over)}
        return xr.Dataset({**sums, **counts}, attrs=found.attrs).assign_coords(coords)

    def merge(self, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
        """Sums."""
        return added(first, second)

    def finish(self, total: xr.Dataset) -> Data:
        """Quotients."""
        names = [str(n) for n in total.data_vars if not str(n).startswith("_count_")]
        means = {
            n: (total[n] / total[f"_count_{n}"].where(total[f"_count_{n}"] > 0)).assign_attrs(total[n].attrs)
            for n in names
        }
        return _as_result(xr.Dataset(means, attrs=total.attrs))


def mean_spectrum(
    variable: str, *, box: Mapping[str, Any] | None = None, over: tuple[str, ...] = ("member", "time"), **options: Any
) -> Averaged:
    """Isotropic spectrum of a variable, averaged over members and times.

    `box`, labels such as dict(lev=5.0, lat=slice(-60, -40)), or positions of dimensions without labels, such as
    dict(y=slice(60, 124)); `options` of `isotropic_spectrum`.
    """
    return Averaged(partial(_spectrum, variable=variable, box=dict(box or {}), options=options), over, (variable,))


def _spectrum(tile: xr.Dataset, *, variable: str, box: dict[str, Any], options: dict[str, Any]) -> xr.DataArray:
    return isotropic_spectrum(_boxed(tile[variable], box), **options)


def _boxed(field: xr.DataArray, box: dict[str, Any]) -> xr.DataArray:
    labels = {d: at for d, at in box.items() if d in field.indexes}
    return field.sel(labels).isel({d: at for d, at in box.items() if d not in labels})


def mean_energy_spectrum(
    uo: str = "uo",
    vo: str = "vo",
    *,
    box: Mapping[str, Any] | None = None,
    over: tuple[str, ...] = ("member", "time"),
    **options: Any,
) -> Averaged:
    """Spectrum of kinetic energy, averaged over members and times; arguments as `mean_spectrum`."""
    return Averaged(partial(_energy, names=(uo, vo), box=dict(box or {}), options=options), over, (uo, vo))


def _energy(tile: xr.Dataset, *, names: tuple[str, str], box: dict[str, Any], options: dict[str, Any]) -> xr.DataArray:
    u, v = (_boxed(tile[name], box) for name in names)
    return kinetic_energy_spectrum(u, v, **options)


@dataclass(frozen=True)
class HeatContent:
    """Heat content (band, …) in J between pairs of depths, and its uptake by trend, W m-2 of ocean surface.

    `bands` (top, bottom) in m; thickness and `areacello` are those of the store. See `global_heat_content`.
    """

    bands: tuple[tuple[float, float], ...] = ((0.0, 700.0), (0.0, 2000.0), (0.0, np.inf))
    variable: str = "thetao"
    whole: tuple[str, ...] = COLUMN
    working: float = 1.0

    @property
    def variables(self) -> tuple[str, ...]:
        """Temperature."""
        return (self.variable,)

    def partial(self, tile: xr.Dataset) -> xr.Dataset:
        """Heat and area of the places in the tile."""
        thetao = tile[self.variable]
        return xr.Dataset({"ohc": heat_between(thetao, self.bands), "ocean_area": wet_area(thetao)})

    def merge(self, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
        """Sums over places."""
        return added(first, second)

    def finish(self, total: xr.Dataset) -> xr.Dataset:
        """With the uptake, if there are two times or more."""
        if total["ohc"].sizes.get("time", 0) < 2:
            return total
        return total.assign(uptake=heat_uptake(total["ohc"], area=total["ocean_area"]))


@dataclass(frozen=True, eq=False)
class GlobalSteric:
    """Global mean steric height with its parts, against `reference`: `global_steric` of the store."""

    reference: xr.Dataset
    parts: bool = True
    depth: tuple[float, float] = (0.0, np.inf)
    variables: tuple[str, ...] = ("thetao", "so")
    whole: tuple[str, ...] = COLUMN
    working: float = 2.5

    def partial(self, tile: xr.Dataset) -> xr.Dataset:
        """Volume, masses and surface of the places in the tile."""
        thetao, so = (tile[name] for name in self.variables)
        return volume_sums(thetao, so, reference=_there(self.reference, tile), parts=self.parts, depth=self.depth)

    def merge(self, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
        """Sums over places."""
        return added(first, second)

    def finish(self, total: xr.Dataset) -> xr.Dataset:
        """Heights."""
        return global_rise(total)


def _there(field: xr.Dataset, tile: xr.Dataset) -> xr.Dataset:
    """The field at the tile's coordinates."""
    shared = [d for d in field.dims if d in tile.indexes and d in field.indexes]
    return field.sel({d: tile.indexes[d] for d in shared if not field.indexes[d].equals(tile.indexes[d])})


@dataclass(frozen=True)
class ScoreTotals:
    """Sums for `scores`, `bootstrap` and `merged`: CRPS, spread and errors of an ensemble against a truth.

    `ensemble` and `truth`, names of variables: that of `stream(beside={"truth": …})` is called `thetao_truth`. `keep`,
    the dimensions that are not summed over, as ("time",) for a series or ("lat", "lon") for a map. Weighted with the
    cells' area if the store tells it. What was kept can be summed later: `scores(totals.sum("lat"))`.
    """

    ensemble: str
    truth: str
    keep: tuple[str, ...] = ()
    member_dim: str = "member"
    working: float = 1.0

    @property
    def variables(self) -> tuple[str, ...]:
        """Both."""
        return (self.ensemble, self.truth)

    @property
    def whole(self) -> tuple[str, ...]:
        """All members of a place are needed at once."""
        return (self.member_dim,)

    def partial(self, tile: xr.Dataset) -> xr.Dataset:
        """Totals of the tile."""
        truth, ensemble = bare(tile[self.truth]), bare(tile[self.ensemble])
        weights = bare(tile["areacello"]) if "areacello" in tile.coords else None
        dims = [str(d) for d in truth.dims if d not in self.keep]
        return score_totals(truth, ensemble, member_dim=self.member_dim, dim=dims, weights=weights)

    def merge(self, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
        """Sums."""
        return added(first, second)

    def finish(self, total: xr.Dataset) -> xr.Dataset:
        """The totals."""
        return total


@dataclass(frozen=True)
class EnsembleMoments:
    """Mean and variance (n - 1) of a variable at each place over members and times; NaN where one value is.

    Merged as in Chan et al. 1983, so that no digits are lost however large the mean.
    """

    variable: str
    over: tuple[str, ...] = ("member", "time")
    whole: tuple[str, ...] = field(default=(), init=False)
    working: float = 4.0

    @property
    def variables(self) -> tuple[str, ...]:
        """The variable."""
        return (self.variable,)

    def partial(self, tile: xr.Dataset) -> xr.Dataset:
        """Number, mean and squares about it."""
        x = bare(tile[self.variable])
        over = [d for d in self.over if d in x.dims]

        def both(values: _Array) -> _Array:
            rows = np.moveaxis(values, range(-len(over), 0), range(len(over)))
            found = moments(rows.reshape(-1, int(np.prod(rows.shape[len(over) :], dtype=int))))
            return np.moveaxis(found.reshape(2, *rows.shape[len(over) :]), 0, -1)

        pair: xr.DataArray = xr.apply_ufunc(
            both, x, input_core_dims=[over], output_core_dims=[["_moment"]], dask="parallelized", output_dtypes=["f8"],
            dask_gufunc_kwargs={"output_sizes": {"_moment": 2}},
        )  # fmt: skip
        number = float(np.prod([x.sizes[d] for d in over]))
        state = {"mean": pair.isel(_moment=0), "m2": pair.isel(_moment=1), "number": xr.DataArray(number)}
        return xr.Dataset(state, attrs=x.attrs)

    def merge(self, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
        """Moments of both."""
        ours, theirs = (tuple(s[k].to_numpy() for k in ("number", "mean", "m2")) for s in (first, second))
        number, mean, m2 = merged_moments(ours, theirs)  # type: ignore[arg-type]
        data = {"number": number, "mean": mean, "m2": m2}
        return first.assign({k: first[k].copy(data=v) for k, v in data.items()})

    def finish(self, total: xr.Dataset) -> xr.Dataset:
        """Mean and variance."""
        units = total.attrs.get("units")
        number = total["number"].item()
        about = {"units": units} if units else {}
        squared = {"units": f"({units})2"} if units else {}
        name = total.attrs.get("long_name", self.variable)
        mean = described(total["mean"], "mean", **about, long_name=f"mean of {name}")
        variance = total["m2"] / (number - 1) if number > 1 else total["m2"] * np.nan
        variance = described(variance, "variance", **squared, long_name=f"variance of {name}")
        return xr.Dataset({"mean": mean, "variance": variance}, attrs={"number": number})
