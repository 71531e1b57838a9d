"""`polynya stats`: the statistics of a store as one small file, and as a table to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from ..emulators import StoreExistsError, save_statistics, statistics_of


def write(
    store: Path,
    out: Path,
    *,
    start: str | None,
    end: str | None,
    variables: Sequence[str] | None,
    overwrite: bool,
    console: Console,
) -> Path:
    """Compute the statistics of a store, write them and print a table.

    Raises what `statistics_of` and `save_statistics` raise; an existing file is found before anything is read.
    """
    if out.exists() and not overwrite:
        raise StoreExistsError(f"{out} exists; nothing was read or written. Choose another path, or pass --overwrite")
    if not out.name.endswith((".zarr", ".zarr.zip")):
        raise ValueError(f"wanted an OUT that ends in .zarr.zip (one file) or .zarr (a folder), got {out}")
    statistics = statistics_of(store, start=start, end=end, variables=variables, progress=console.is_terminal)
    path = save_statistics(statistics, out, overwrite)
    console.print(_table(statistics))
    return path


def _table(statistics: xr.Dataset) -> Table:
    attrs = statistics.attrs
    table = Table(title=f"{attrs['records']} records, {attrs['start']} to {attrs['end']}", title_justify="left")
    for column in ("variable", "level", "mean", "std", "increment", "units"):
        table.add_column(column, justify="left" if column in ("variable", "units") else "right")
    for name in (str(n).removesuffix("_mean") for n in statistics.data_vars if str(n).endswith("_mean")):
        mean = statistics[f"{name}_mean"]
        values = [np.ravel(statistics[f"{name}_{k}"].values) if f"{name}_{k}" in statistics else None
                  for k in ("mean", "std", "increment")]  # fmt: skip
        for k in range(mean.size):
            numbers = ["" if v is None else f"{v[k]:.5g}" for v in values]
            if np.isfinite(np.ravel(mean.values)[k]):
                depth = f"{statistics['lev'].values[k]:g} m" if mean.ndim else ""
                table.add_row(name, depth, *numbers, str(mean.attrs.get("units", "")))
    return table
