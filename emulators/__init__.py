"""Emulators: the values that flow, nature runs, networks and their training."""

from .emulator import Emulator, Forcing, Persistence, Repeated
from .names import UnitsError, attributes
from .noise import Draws, GivenNoise, Noise
from .source import Source, SourceError, grid_of, layout_of, open_store
from .state import Field, Layout, LayoutError, State

__all__ = [
    "Draws",
    "Emulator",
    "Field",
    "Forcing",
    "GivenNoise",
    "Layout",
    "LayoutError",
    "Noise",
    "Persistence",
    "Repeated",
    "Source",
    "SourceError",
    "State",
    "UnitsError",
    "attributes",
    "grid_of",
    "layout_of",
    "open_store",
]
