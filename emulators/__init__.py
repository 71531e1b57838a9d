"""Emulators: the values that flow, nature runs, networks and their training."""

from . import samples
from .emulator import Bounds, Climatology, Corrected, Emulator, Forcing, Persistence, annual_cycle
from .names import UnitsError, attributes
from .noise import Draws, GivenNoise, Noise
from .samudra import CheckpointError, Samudra
from .source import Source, SourceError, grid_of, layout_of, open_store
from .state import Field, Layout, LayoutError, State
from .weights import export, load

__all__ = [
    "Bounds",
    "CheckpointError",
    "Climatology",
    "Corrected",
    "Draws",
    "Emulator",
    "Field",
    "Forcing",
    "GivenNoise",
    "Layout",
    "LayoutError",
    "Noise",
    "Persistence",
    "Samudra",
    "Source",
    "SourceError",
    "State",
    "UnitsError",
    "annual_cycle",
    "attributes",
    "export",
    "grid_of",
    "layout_of",
    "load",
    "open_store",
    "samples",
]
