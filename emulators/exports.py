"""An emulator as a header of JSON and named tensors, and back: what `weights` writes and reads, kind by kind.

Numbers that JSON has not, infinite bounds, are null.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from .gensim import GenSIM
from .gensim_files import GenSIMConfig
from .regional import Regional
from .regional_files import RegionalConfig
from .samudra import NetworkConfig, Samudra, SamudraNet
from .scaling import Scaling
from .state import Field, Layout
from .trainable import Trainable
from .transformer import Transformer, TransformerConfig
from .uvit import UViT, UViTConfig

__all__ = ["FORMATS", "described", "halved", "restored"]

Header = dict[str, Any]
Tensors = dict[str, Tensor]
_N = TypeVar("_N", bound=nn.Module)
_SAMUDRA, _REGIONAL, _GENSIM = FORMATS = ("polynya-samudra-1", "polynya-regional-1", "polynya-gensim-1")
_NETWORKS = ("network.", "first_guess.")
_BOUNDS = {"lower": -math.inf, "upper": math.inf}


def described(emulator: Trainable) -> tuple[Header, Tensors]:
    """Everything of an emulator but how it is run.

    Returns:
        A header that JSON can hold, with `format`, one of `FORMATS`; and tensors, whose names begin with `network.`,
        `grid.`, and what else the kind has.

    Raises TypeError for an emulator of a kind that has no format.
    """
    header: Header
    if isinstance(emulator, Samudra):
        tensors = {f"scaling.{f.name}": getattr(emulator.scaling, f.name).clone() for f in fields(Scaling)}
        header = {
            "format": _SAMUDRA,
            "config": asdict(emulator.network.config),
            "increments": emulator.increments,
            "statics": emulator.statics,
            "noise_maps": emulator.noise_maps,
        }
    elif isinstance(emulator, Regional):
        guess = emulator.first_guess
        tensors = {} if guess is None else _weights(guess, "first_guess.")
        header = {
            "format": _REGIONAL,
            "config": asdict(emulator.network.config),
            "first_guess": None if guess is None else asdict(guess.config),
            "constants": _finite(emulator.config),
            "dt": emulator.dt.total_seconds(),
        }
    elif isinstance(emulator, GenSIM):
        tensors = {} if emulator.mesh is None else {"mesh": emulator.mesh.cpu().contiguous()}
        header = {
            "format": _GENSIM,
            "config": _finite(emulator.config),
            "checkpoint": emulator.checkpoint,
            "dt": emulator.dt.total_seconds(),
        }
    else:
        raise TypeError(
            f"wanted an emulator that can be written, GenSIM, Samudra or Regional, got {type(emulator).__name__}"
        )
    grid = emulator.layout.grid
    tensors |= _weights(emulator.network, "network.")
    tensors |= {f"grid.{n}": torch.from_numpy(np.array(grid[n].values)) for n in grid.coords}
    header |= {
        "layout": _describe(emulator.layout),
        "forcing_layout": _describe(emulator.forcing_layout),
        "grid": {n: {"dims": list(grid[n].dims), "attrs": grid[n].attrs} for n in map(str, grid.coords)},
        "grid_attrs": grid.attrs,
    }
    return header, tensors


def halved(tensors: Tensors) -> Tensors:
    """Weights as float16, all else as it is.

    Raises ValueError for weights beyond the range of float16.
    """
    found = {}
    for name, value in tensors.items():
        small = value.half() if name.startswith(_NETWORKS) and value.is_floating_point() else value
        if not torch.equal(small.isfinite(), value.isfinite()):
            raise ValueError(f"{name} has values to {float(value.abs().max()):.3g}, too large for float16; half=False")
        found[name] = small
    return found


def restored(header: Header, tensors: Tensors, checkpoint: str) -> Samudra | Regional | GenSIM:
    """The emulator that `described` gave, in eval mode on the CPU.

    Args:
        header: of one of the `FORMATS`.
        tensors: as they were, or `halved`.
        checkpoint: SHA-256 of the file they came from.
    """
    tensors = {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}
    coords = {n: (tuple(c["dims"]), tensors[f"grid.{n}"].numpy(), c["attrs"]) for n, c in header["grid"].items()}
    grid = xr.Dataset(coords=coords, attrs=header["grid_attrs"])
    layouts = _layout(header["layout"], grid), _layout(header["forcing_layout"], grid)
    if header["format"] == _REGIONAL:
        return Regional(
            _uvit(header["config"], tensors, "network."),
            *layouts,
            _regional(header["constants"]),
            first_guess=header["first_guess"] and _uvit(header["first_guess"], tensors, "first_guess."),
            checkpoint=checkpoint,
            dt=timedelta(seconds=header["dt"]),
        )
    if header["format"] == _GENSIM:
        config = _gensim(header["config"])
        with torch.device("meta"):
            transformer = Transformer(config.network)
        return GenSIM(
            _filled(transformer, tensors, "network."),
            *layouts,
            config,
            mesh=tensors["mesh"].clone() if "mesh" in tensors else None,
            checkpoint=checkpoint,
            dt=timedelta(seconds=header["dt"]),
        )
    net = SamudraNet(NetworkConfig(**_tuples(header["config"])))
    net.load_state_dict(_part(tensors, "network."))
    return Samudra(
        net.eval(),
        *layouts,
        Scaling(**_part(tensors, "scaling.")),
        header["increments"],
        tuple(header["statics"]),
        checkpoint,
        header.get("noise_maps", 0),
    )


def _weights(network: nn.Module, prefix: str) -> Tensors:
    return {f"{prefix}{k}": v.contiguous() for k, v in network.state_dict().items()}


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _uvit(sizes: Header, tensors: Tensors, prefix: str) -> UViT:
    with torch.device("meta"):  # no memory and no random initial weights: all of them are replaced
        network = UViT(UViTConfig(**sizes))
    return _filled(network, tensors, prefix)


def _filled(network: _N, tensors: Tensors, prefix: str) -> _N:
    # Cloned, because a file's tensors are not aligned, and kernels for those round otherwise.
    network.load_state_dict({k: v.clone() for k, v in _part(tensors, prefix).items()}, assign=True)
    return network.requires_grad_().eval()


def _finite(config: RegionalConfig | GenSIMConfig) -> Header:
    """A configuration with null for infinite bounds."""
    bounds = {n: [None if math.isinf(b) else b for b in getattr(config, n)] for n in _BOUNDS}
    return asdict(config) | bounds


def _infinite(described: Header) -> Header:
    """Back: what is a tuple, with infinite bounds."""
    bounds = {n: tuple(free if b is None else b for b in described[n]) for n, free in _BOUNDS.items()}
    return _tuples(described) | bounds


def _tuples(described: Header) -> Header:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in described.items()}


def _regional(described: Header) -> RegionalConfig:
    sizes = {n: UViTConfig(**described[n]) for n in ("deterministic", "diffusion")}
    return RegionalConfig(**_infinite(described) | sizes)


def _gensim(described: Header) -> GenSIMConfig:
    return GenSIMConfig(**_infinite(described) | {"network": TransformerConfig(**described["network"])})


def _describe(layout: Layout) -> Header:
    return {
        "fields": [asdict(f) for f in layout.fields],
        "slots": layout.slots,
        "interval": layout.interval.total_seconds(),
    }


def _layout(described: Header, grid: xr.Dataset) -> Layout:
    return Layout(
        tuple(Field(**f) for f in described["fields"]),
        grid,
        tuple(described["slots"]),
        timedelta(seconds=described["interval"]),
    )
