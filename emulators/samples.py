"""What comes with the package: for each embedded nature run a sample of it, and small emulators trained on it.

`globe` and `channel` are oceans, `arctic` is sea ice. Each sample is a Zarr store in one zip file with states, forcing,
grid and masks, for the oceans also the annual cycle and the statistics of the training run; each emulator is a
safetensors file. They are made by `python examples/train_embedded.py NAME` and `python examples/train_ice.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeAlias, overload

import torch
import xarray as xr

from .emulator import Climatology
from .nature_ice import NatureIce, arctic
from .nature_ocean import NatureOcean, channel, globe
from .regional import Regional
from .samudra import Samudra
from .source import open_store
from .state import Layout
from .weights import load

Ocean: TypeAlias = Literal["globe", "channel"]
Ice: TypeAlias = Literal["arctic"]
IceEmulator: TypeAlias = Literal["arctic", "arctic_deterministic"]

OCEANS: tuple[Ocean, ...] = ("globe", "channel")
EMULATORS = {"globe": "globe", "channel": "channel", "arctic": "arctic", "arctic_deterministic": "arctic"}
_NATURES: dict[str, Callable[[], NatureOcean | NatureIce]] = {"globe": globe, "channel": channel, "arctic": arctic}


@overload
def nature(name: Ocean) -> NatureOcean: ...
@overload
def nature(name: Ice) -> NatureIce: ...
@overload
def nature(name: str) -> NatureOcean | NatureIce: ...
def nature(name: str) -> NatureOcean | NatureIce:
    """The embedded ocean or sea ice itself: an emulator that is its own truth."""
    return _NATURES[_known(name, tuple(_NATURES))]()


@overload
def emulator(name: Ocean) -> Samudra: ...
@overload
def emulator(name: IceEmulator) -> Regional: ...
@overload
def emulator(name: str) -> Samudra | Regional: ...
def emulator(name: str) -> Samudra | Regional:
    """A small network trained on an embedded nature run.

    Of the Samudra family with 5-day steps for an ocean. For sea ice, 12-hour steps: "arctic" is a diffusion model,
    "arctic_deterministic" a network of the same size that gives one forecast.
    """
    loaded = load(_path(f"{_known(name, tuple(EMULATORS))}.safetensors"))
    assert isinstance(loaded, Samudra | Regional)
    return loaded


def sample(name: str) -> xr.Dataset:
    """Records of an embedded nature run, opened lazily: states, forcing, grid, and an ocean's `*_annual_cycle`."""
    return open_store(_path(f"{_known(name, tuple(_NATURES))}.zarr.zip"))


def climatology(name: str, layout: Layout) -> Climatology:
    """The climatological forecast of an embedded ocean for the fields of a one-slot layout."""
    dataset = sample(name)
    cycles = [dataset[f"{f.name}_annual_cycle"].fillna(0.0).values for f in layout.fields]
    maps = [c if c.ndim == 4 else c[:, None] for c in cycles]
    harmonics = torch.cat([torch.from_numpy(m).float() for m in maps], 1)
    return Climatology(layout, layout.interval, harmonics)


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ValueError(f"nothing embedded is called {name!r}; there are {', '.join(names)}")
    return name


def _path(file: str) -> Path:
    with as_file(files("polynya.emulators") / "embedded" / file) as path:
        return Path(path)
