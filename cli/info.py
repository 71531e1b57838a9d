"""`polynya info`: what a store or an emulator is and how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import xarray as xr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..emulators import GenSIM, Regional, Samudra, load, open_store
from ..emulators.checkpoint import load_network, sha256_of
from ..emulators.samudra import SamudraNet
from ..emulators.training import parameters


def describe(path: Path, console: Console) -> None:
    """Print a summary of a Zarr store, of an exported emulator or of a published checkpoint.

    Raises FileNotFoundError, SourceError for a store that is incomplete or unreadable, CheckpointError.
    """
    if path.suffix == ".safetensors":
        _emulator(path, load(path), console)
    elif path.suffix in (".pt", ".pth"):
        _checkpoint(path, load_network(path), console)
    else:
        _store(path, open_store(path), console)


def _emulator(path: Path, emulator: Samudra | Regional | GenSIM, console: Console) -> None:
    table, layout, step = _table(str(path)), emulator.layout, emulator.dt
    if isinstance(emulator, Samudra):
        config, family = emulator.network.config, "Samudra family"
        shape = f"widths {config.widths}, dilations {config.dilations}, norm {config.norm}"
    elif isinstance(emulator, GenSIM):
        c, tokens = emulator.config, emulator.network.config
        family = f"GenSIM sea ice, {c.calls} network calls a step"
        shape = f"{tokens.n_blocks} transformer blocks of width {tokens.n_features}, windows {c.window} + {c.halo}"
    else:
        sizes, family = emulator.network.config, f"regional sea ice, {emulator.kind}"
        shape = f"widths {sizes.widths}, {sizes.n_bottleneck} transformer blocks"
    long = f"{step.days} days" if step.days else f"{step.total_seconds() / 3600:g} hours"
    _row(table, "emulator", f"{family}, {parameters(emulator.network):,} parameters")
    _row(table, "predicts", f"{', '.join(layout.names)} ({layout.shape[0]} channels), {long} a step")
    _row(table, "forcing", ", ".join(emulator.forcing_layout.names))
    _row(table, "grid", f"{layout.shape[1]} x {layout.shape[2]} {layout.dims}")
    _row(table, "network", shape)
    _row(table, "sha256", emulator.checkpoint)
    console.print(table)


def _checkpoint(path: Path, network: SamudraNet, console: Console) -> None:
    """What the file tells; the rest must be given to `load`."""
    table, config = _table(str(path)), network.config
    _row(table, "network", f"Samudra family, {parameters(network):,} parameters")
    _row(table, "channels", f"{config.in_channels} in (state and forcing), {config.out_channels} out")
    _row(table, "widths", f"{config.widths}, expansion {config.expansion}, norm {config.norm}")
    _row(table, "assumed", f"dilations {config.dilations}, upsample {config.upsample}, seam {config.seam}, float32")
    _row(table, "not in the file", "variables, grid, mask, statistics: see polynya.emulators.load")
    _row(table, "sha256", sha256_of(path))
    console.print(table)


def _store(path: Path, dataset: xr.Dataset, console: Console) -> None:
    table = _table(str(path))
    _row(table, "title", str(dataset.attrs.get("title", "")))
    if "time" in dataset.dims:
        time = dataset["time"].values
        _row(table, "time", f"{time[0]} to {time[-1]}, {len(time)} records, {time[0].calendar} calendar")
    if "member" in dataset.dims:
        numbers = dataset["member"].values.tolist()
        _row(table, "members", f"{len(numbers)}: {numbers[0]} to {numbers[-1]}")
    _row(table, "size", f"{dict(dataset.sizes)}, {dataset.nbytes / 1e6:,.0f} MB unpacked")
    _row(table, "history", str(dataset.attrs.get("history", "")))
    for name, variable in sorted(dataset.data_vars.items(), key=lambda item: str(item[0])):
        attrs = variable.attrs
        _row(table, str(name), f"{variable.dims} [{attrs.get('units', '?')}] {attrs.get('long_name', '')}")
    for key, value in json.loads(dataset.attrs.get("provenance", "{}")).items():
        _row(table, f"made by: {key}", json.dumps(value) if isinstance(value, dict) else str(value))
    console.print(table)


def _row(table: Table, key: str, value: str) -> None:
    # Text, not markup: brackets are units here.
    table.add_row(Text(key, style="bold"), Text(value))


def _table(title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
