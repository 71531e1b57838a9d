"""What the studies ask of their datasets, with messages that name the variable and the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from .conventions import check_units
from .dates import date_words
from .heat import elapsed_seconds
from .page import format_value
from .regions import Region


def require(dataset: xr.Dataset, units: Mapping[str, str], what: str) -> None:
    """Raise ValueError unless `dataset`, called `what`, has these variables in these units, {variable: CF units}."""
    if missing := [n for n in units if n not in dataset]:
        raise ValueError(
            f"{what} lacks {missing}, it has {sorted(map(str, dataset.data_vars))}: rename yours to the CF/CMIP names"
        )
    for name, wanted in units.items():
        try:
            check_units(dataset[name], wanted)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None


def with_members(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with a numbered dimension `member`, which a single run gets."""
    if "member" not in dataset.dims:
        return dataset.drop_vars("member", errors="ignore").expand_dims(member=[0])
    return dataset if "member" in dataset.indexes else dataset.assign_coords(member=range(dataset.sizes["member"]))


def same_index(first: xr.Dataset, other: xr.Dataset, dims: Iterable[str], names: tuple[str, str]) -> None:
    """Raise ValueError unless both datasets, called `names`, have the same values along each of `dims`."""
    for dim in dims:
        ours, theirs = (np.asarray(d[dim]) if dim in d.coords else np.arange(d.sizes[dim]) for d in (first, other))
        if ours.shape == theirs.shape and bool(np.all(ours == theirs)):
            continue
        told = [f"{t.size} from {t[0]} to {t[-1]}" if t.size else "none" for t in (ours, theirs)]
        common = f"{names[0]}.sel({dim}={names[1]}.{dim}), or the other way round"
        raise ValueError(
            f"{names[0]} and {names[1]} need the same {dim!r}, got {told[0]} and {told[1]}: select those that both "
            f"have, for example {common}"
        )


def span_words(time: xr.DataArray) -> str:
    """A record of time in words: "74 records from 0037-01-01 to 0038-01-01 (365 days)"."""
    values = time.to_numpy()
    days = elapsed_seconds(time)[-1] / 86400
    return f"{values.size} records from {date_words(values[0])} to {date_words(values[-1])} ({days:g} days)"


def mean_and_range(values: xr.DataArray, dim: str = "member") -> dict[str, Any]:
    """Mean, standard deviation (M - 1), and the limits that hold 90 % of the members."""
    low, high = (float(values.quantile(q, dim)) for q in (0.05, 0.95))
    spread = float(values.std(dim, ddof=1)) if values.sizes[dim] > 1 else float("nan")
    return {"mean": float(values.mean(dim)), "std": spread, "5 %": low, "95 %": high}


def range_words(low: float, high: float, digits: int = 3) -> str:
    """Two limits in words, "1.64 to 1.83"; – where they are missing."""
    if not np.isfinite([low, high]).all():
        return format_value(float("nan"))
    return f"{format_value(float(low), digits)} to {format_value(float(high), digits)}"


def region_words(region: str | Region) -> str:
    """A box by its name, or by its edges."""
    if isinstance(region, str):
        return region
    south, north = (f"{abs(v):g}°{'N' if v >= 0 else 'S'}" for v in (region.south, region.north))
    return f"{region.west:g}–{region.east:g}°E, {south}–{north}"
