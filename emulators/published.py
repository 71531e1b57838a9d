"""A published Samudra checkpoint as an emulator: what its channels are, and where their constants come from.

The file holds weights alone. The variables follow from the numbers of channels where the published sets are
unambiguous; grid, mask and statistics come from a data store with its stores of scalar means and standard
deviations, or from one statistics file (`polynya stats`) that holds all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .checkpoint import CheckpointError, load_network, sha256_of
from .grids import grid_of, layout_of
from .names import ALIASES, flat_name
from .samudra import Samudra
from .scaling import scaling_from
from .source import Source
from .state import Field, Layout
from .statistics import interval_of, open_statistics
from .stores import levels_in, open_store, open_zarr
from .unet import NetworkConfig

# Published sets of variables, by what they need; tried in this order.
_STATES = (("uo", "vo", "thetao", "so", "zos"), ("thetao", "so", "zos"), ("thetao",))
# Published forcings by number of boundary channels: names and time slots (version 1 saw the newest slot alone).
_FORCINGS = {
    8: (("tauuo", "tauvo", "hfds", "hfds_anomalies"), (-1, 0)),
    6: (("tauuo", "tauvo", "hfds"), (-1, 0)),
    4: (("tauuo", "tauvo", "hfds", "hfds_anomalies"), (0,)),
    3: (("tauuo", "tauvo", "hfds"), (0,)),
    2: (("hfds",), (-1, 0)),
    1: (("hfds",), (0,)),
}
_SLOTS = (-1, 0)
_SURFACE = ("zos", "tos")


def published(
    path: Path,
    *,
    data: Any,
    means: Any,
    stds: Any,
    statistics: Any,
    variables: Sequence[str] | None,
    forcing: Sequence[str] | None,
    network: dict[str, Any],
) -> Samudra:
    """A published checkpoint, ready to step; arguments and errors are those of `load`."""
    net = load_network(path, **network)
    if statistics is None:
        absent = [n for n, v in (("data", data), ("means", means), ("stds", stds)) if v is None]
        if absent:
            raise ValueError(
                f"{path} holds weights alone; give {', '.join(absent)}: the OM4-layout store for grid and mask, and "
                "its stores of means and standard deviations; or statistics=FILE, made by `polynya stats`"
            )
        store = open_store(data)
        constants = _canonical(means, "mean").merge(_canonical(stds, "std"))
    else:
        store = constants = open_statistics(statistics)
        store = store if data is None else open_store(data)
    layout, forcing_layout = _layouts(path, net.config, store, variables, forcing)
    if "hfds_anomalies" in forcing_layout.names and "hfds_anomalies_mean" not in constants:
        # Not stored with the public data: the original computes them over the whole opened record.
        anomalies = Source.open(store, forcing_layout).dataset["hfds_anomalies"].astype("float64")
        constants = constants.assign(hfds_anomalies_mean=anomalies.mean(), hfds_anomalies_std=anomalies.std())
    scaling = scaling_from(constants, layout, forcing_layout)
    return Samudra(net, layout, forcing_layout, scaling, checkpoint=sha256_of(path))


def _layouts(
    path: Path, config: NetworkConfig, store: xr.Dataset, variables: Sequence[str] | None, forcing: Sequence[str] | None
) -> tuple[Layout, Layout]:
    """State and forcing layouts that have the network's numbers of channels."""
    outputs, inputs = config.out_channels, config.in_channels - config.out_channels
    states = _STATES if variables is None else (tuple(variables),)
    for names in states:
        levels = _levels(outputs, names)
        if levels is not None and levels <= _have(store, names):
            break
    else:
        sizes = [(n, _have(store, n)) for n in states]
        wanted = "; ".join(f"{', '.join(n)} on {k} levels ({2 * _channels(n, k)} channels)" for n, k in sizes)
        raise CheckpointError(
            f"{path}: its {outputs} output channels are no two time slots of what the data have: {wanted}, or fewer "
            "levels; pass variables=(...) in the order it was trained with, or data with all levels"
        )
    layout = _layout(store, names, levels)
    if forcing is None and inputs not in _FORCINGS:
        raise CheckpointError(
            f"{path}: its {config.in_channels} input channels leave {inputs} for the forcing beside {outputs} of "
            f"{', '.join(names)}; published are {', '.join(map(str, _FORCINGS))}; pass forcing=(...)"
        )
    forced, slots = _FORCINGS[inputs] if forcing is None else (tuple(forcing), _SLOTS)
    if forcing is not None and inputs in (len(forced), 2 * len(forced)):
        slots = _SLOTS if inputs == 2 * len(forced) else (0,)
    elif len(forced) * len(slots) != inputs:
        raise CheckpointError(
            f"{path}: wanted {inputs} forcing channels, got {', '.join(forced)} at one or two time slots"
        )
    grid = layout.grid
    return layout, Layout(tuple(Field(n) for n in forced), grid, slots, layout.interval)


def _layout(store: xr.Dataset, names: Sequence[str], levels: int) -> Layout:
    """Two slots of some variables, from a data store or a statistics file."""
    if any(n in store for n in names):
        return layout_of(store, names, slots=_SLOTS, levels=levels)
    fields = tuple(Field(n, levels if "lev" in store[f"{n}_mean"].dims else 0) for n in names if f"{n}_mean" in store)
    return Layout(fields, grid_of(store, levels), _SLOTS, interval_of(store))


def _have(store: xr.Dataset, names: Sequence[str]) -> int:
    """Levels that all of these variables have in a data store, or that the statistics cover."""
    known = [store[n] if n in store else store[f"{n}_mean"] for n in names if n in store or f"{n}_mean" in store]
    return min((levels_in(a) for a in known if "lev" in a.dims), default=0)


def _channels(names: Sequence[str], levels: int) -> int:
    """Channels of one slot."""
    return sum(1 if n in _SURFACE else levels for n in names)


def _levels(outputs: int, names: Sequence[str]) -> int | None:
    """Levels that make two slots of `names` have `outputs` channels; None if none do."""
    surface, deep = _channels(names, 0), _channels(names, 1) - _channels(names, 0)
    slot, odd = divmod(outputs, len(_SLOTS))
    if odd or not deep:
        return 0 if not odd and slot == surface else None
    levels, rest = divmod(slot - surface, deep)
    return levels if not rest and levels > 0 else None


def _canonical(store: Any, kind: str) -> xr.Dataset:
    """Scalar statistics of flat variables (or compact ones) as `thetao_mean(lev)`, `zos_mean`."""
    if not isinstance(store, xr.Dataset):
        if "://" not in str(store) and not Path(store).exists():
            raise FileNotFoundError(
                f"no statistics at {store}; they belong to the data store, as OM4_means.zarr and OM4_stds.zarr"
            )
        store = open_zarr(store)
    store = store.load().rename({a: b for a, b in ALIASES.items() if a in store.variables})
    by_level: dict[str, dict[float, float]] = {}
    found: dict[str, xr.DataArray] = {}
    for name in map(str, store.data_vars):
        split = flat_name(name)
        if split is None:
            found[f"{name}_{kind}"] = store[name].drop_vars("lev", errors="ignore")
        else:
            by_level.setdefault(split[0], {})[float(split[1].replace("_", "."))] = float(store[name])
    for name, values in by_level.items():
        numbered = f"{name}_{max(values):.0f}" in store  # thetao_3 says which level, thetao_lev_40_0 only the order
        places = np.arange(max(values) + 1) if numbered else sorted(values)
        found[f"{name}_{kind}"] = xr.DataArray([values.get(k, np.nan) for k in places], dims="lev")
    most = max((a.sizes.get("lev", 0) for a in found.values()), default=0)
    return xr.Dataset({n: a.pad(lev=(0, most - a.sizes["lev"])) if "lev" in a.dims else a for n, a in found.items()})
