"""What comes with the package: for each embedded ocean a year's sample, and a small emulator trained on it.

Names are `globe` and `channel`. Each sample is a Zarr store in one zip file with states, forcing, grid,
masks, the annual cycle and the statistics of the training run; each emulator is a safetensors file. Both
are made by `python examples/train_embedded.py NAME`.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import torch
import xarray as xr

from .emulator import Climatology
from .nature_ocean import NatureOcean, channel, globe
from .samudra import Samudra
from .source import open_store
from .state import Layout
from .weights import load

NAMES = ("globe", "channel")


def nature(name: str) -> NatureOcean:
    """The embedded ocean itself: an emulator that is its own truth."""
    return {"globe": globe, "channel": channel}[_known(name)]()


def emulator(name: str) -> Samudra:
    """The small Samudra-family network trained on an embedded ocean, 5-day steps."""
    loaded = load(_path(f"{_known(name)}.safetensors"))
    assert isinstance(loaded, Samudra)
    return loaded


def sample(name: str) -> xr.Dataset:
    """Five-day records of an embedded ocean, opened lazily: states, forcing, grid and `*_annual_cycle`."""
    return open_store(_path(f"{_known(name)}.zarr.zip"))


def climatology(name: str, layout: Layout) -> Climatology:
    """The climatological forecast of an embedded ocean for the fields of a one-slot layout."""
    dataset = sample(name)
    cycles = [dataset[f"{f.name}_annual_cycle"].fillna(0.0).values for f in layout.fields]
    maps = [c if c.ndim == 4 else c[:, None] for c in cycles]
    harmonics = torch.cat([torch.from_numpy(m).float() for m in maps], 1)
    return Climatology(layout, layout.interval, harmonics)


def _known(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"no embedded ocean {name!r}; there are {' and '.join(NAMES)}")
    return name


def _path(file: str) -> Path:
    with as_file(files("polynya.emulators") / "embedded" / file) as path:
        return Path(path)
