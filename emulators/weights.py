"""Emulators as files: `export` writes one that needs nothing else, `load` reads it or a published checkpoint.

An exported file is safetensors: weights, statistics and grid as tensors, and layout, configuration and
provenance as JSON in its header. It is a third of a training checkpoint and cannot run code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .samudra import CheckpointError, NetworkConfig, Samudra, SamudraNet, load_network
from .scaling import Scaling
from .source import Source, grid_of, layout_of, open_store
from .state import Field, Layout

_FORMAT = "polynya-samudra-1"
_OM4_STATE = ("uo", "vo", "thetao", "so", "zos")
_OM4_FORCING = ("tauuo", "tauvo", "hfds", "hfds_anomalies")


def export(emulator: Samudra, path: str | Path, **provenance: Any) -> Path:
    """Write an emulator as one safetensors file.

    Args:
        emulator: to write.
        path: of the file; its folder must exist, an existing file is replaced.
        provenance: kept in the header, e.g. `data="..."`, `command="..."`.
    """
    grid = emulator.layout.grid
    tensors = {f"network.{k}": v.contiguous() for k, v in emulator.network.state_dict().items()}
    tensors |= {f"scaling.{f.name}": getattr(emulator.scaling, f.name).clone() for f in fields(Scaling)}
    tensors |= {f"grid.{n}": torch.from_numpy(np.array(grid[n].values)) for n in grid.coords}
    header = {
        "format": _FORMAT,
        "polynya": version("polynya"),
        "config": asdict(emulator.network.config),
        "layout": _describe(emulator.layout),
        "forcing_layout": _describe(emulator.forcing_layout),
        "grid": {n: {"dims": list(grid[n].dims), "attrs": grid[n].attrs} for n in map(str, grid.coords)},
        "grid_attrs": grid.attrs,
        "increments": emulator.increments,
        "statics": emulator.statics,
        "noise_maps": emulator.noise_maps,
        "provenance": provenance,
    }
    part = Path(f"{path}.part")  # an interrupted export leaves the file before it
    save_file(tensors, part, metadata={"polynya": json.dumps(header)})
    return part.replace(path)


def load(
    path: str | Path,
    *,
    data: str | Path | xr.Dataset | None = None,
    means: str | Path | xr.Dataset | None = None,
    stds: str | Path | xr.Dataset | None = None,
    **network: Any,
) -> Samudra:
    """Load an emulator, ready to step.

    Args:
        path: a file written by `export`, or a published Samudra checkpoint (`.pt`).
        data: for a published checkpoint: a store in the OM4 layout, for grid, mask, and the statistics of
            `hfds_anomalies`.
        means, stds: for a published checkpoint: the stores of scalar statistics.
        network: what a published checkpoint cannot tell, see `load_network`.

    Raises FileNotFoundError; CheckpointError for a file that is neither, or for one whose channels do not
    fit the store; ValueError if `data`, `means` or `stds` is missing.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return _published(path, data, means, stds, network)
    if not path.exists():
        raise FileNotFoundError(f"no emulator at {path}; check the path")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("polynya", "{}"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy or export it again") from error
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: wanted an emulator exported by polynya (format {_FORMAT!r}), got {header.get('format')!r}; "
            "write it with `export(emulator, path)`"
        )
    return _exported(header, tensors, hashlib.sha256(path.read_bytes()).hexdigest())


def _exported(header: dict[str, Any], tensors: dict[str, Tensor], checkpoint: str) -> Samudra:
    coords = {n: (tuple(c["dims"]), tensors[f"grid.{n}"].numpy(), c["attrs"]) for n, c in header["grid"].items()}
    grid = xr.Dataset(coords=coords, attrs=header["grid_attrs"])
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()}
    net = SamudraNet(NetworkConfig(**lists))
    net.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    return Samudra(
        net.eval(),
        _layout(header["layout"], grid),
        _layout(header["forcing_layout"], grid),
        Scaling(**{f.name: tensors[f"scaling.{f.name}"] for f in fields(Scaling)}),
        header["increments"],
        tuple(header["statics"]),
        checkpoint,
        header.get("noise_maps", 0),
    )


def _describe(layout: Layout) -> dict[str, Any]:
    return {
        "fields": [asdict(f) for f in layout.fields],
        "slots": layout.slots,
        "interval": layout.interval.total_seconds(),
    }


def _layout(described: dict[str, Any], grid: xr.Dataset) -> Layout:
    return Layout(
        tuple(Field(**f) for f in described["fields"]),
        grid,
        tuple(described["slots"]),
        timedelta(seconds=described["interval"]),
    )


def _published(path: Path, data: Any, means: Any, stds: Any, network: dict[str, Any]) -> Samudra:
    """A published checkpoint with grid, mask and statistics from stores in the OM4 layout."""
    net = load_network(path, **network)
    absent = [n for n, v in (("data", data), ("means", means), ("stds", stds)) if v is None]
    if absent:
        raise ValueError(
            f"{path} holds weights alone; give {', '.join(absent)}: the OM4-layout store for grid and mask, and its "
            "stores of means and standard deviations"
        )
    config = net.config
    levels, rest = divmod(config.out_channels // 2 - 1, 4)
    if rest or config.in_channels - config.out_channels != 2 * len(_OM4_FORCING):
        raise CheckpointError(
            f"{path}: wanted two slots of {', '.join(_OM4_STATE)} and of {', '.join(_OM4_FORCING)}, got "
            f"{config.in_channels} channels in and {config.out_channels} out; build a Samudra(...) from `load_network`"
        )
    store = open_store(data)
    layout = layout_of(store, _OM4_STATE, slots=(-1, 0), levels=levels)
    forcing_layout = Layout(
        tuple(Field(n) for n in _OM4_FORCING), grid_of(store, levels), layout.slots, layout.interval
    )
    scaling = _scalar_statistics(layout, forcing_layout, store, _scalars(means), _scalars(stds))
    return Samudra(net, layout, forcing_layout, scaling, checkpoint=hashlib.sha256(path.read_bytes()).hexdigest())


def _scalars(store: Any) -> xr.Dataset:
    if not isinstance(store, xr.Dataset) and not Path(store).exists():
        raise FileNotFoundError(
            f"no statistics at {store}; they belong to the data store, as OM4_means.zarr and OM4_stds.zarr"
        )
    return store.load() if isinstance(store, xr.Dataset) else xr.open_zarr(str(store)).load()


def _scalar_statistics(
    layout: Layout, forcing: Layout, store: xr.Dataset, means: xr.Dataset, stds: xr.Dataset
) -> Scaling:
    if "hfds_anomalies" not in means:
        # Not stored with the public data: the original computes them over the whole opened record.
        anomalies = Source.open(store, forcing).dataset["hfds_anomalies"].astype("float64")
        means = means.assign(hfds_anomalies=anomalies.mean())
        stds = stds.assign(hfds_anomalies=anomalies.std())

    def constants(of: Layout, values: xr.Dataset) -> Tensor:
        missing = [c for c in of.channel_labels() if c not in values]
        if missing:
            raise CheckpointError(
                f"the statistics lack {', '.join(missing[:5])}; they have {', '.join(map(str, list(values)[:9]))} ..."
            )
        return torch.tensor([float(values[c]) for c in of.channel_labels()] * len(of.slots))

    std = constants(layout, stds)
    return Scaling(constants(layout, means), std, std, constants(forcing, means), constants(forcing, stds))
