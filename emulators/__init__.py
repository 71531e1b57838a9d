"""Emulators: the values that flow, nature runs, networks and their training."""

from . import samples
from .conservation import Conserve
from .correlated import CorrelatedNoise
from .emulator import Bounds, Climatology, Corrected, Emulator, Forcing, Persistence, annual_cycle
from .free_drift import FreeDrift
from .gensim import GenSIM, GenSIMConfig
from .grid_noise import GridNoise
from .grids import gaussian_grid, grid_of, layout_of
from .ice_atmosphere import ice_forcing_of
from .kuramoto import KuramotoSivashinsky
from .lorenz import Lorenz63, Lorenz96
from .names import UnitsError, attributes
from .noise import Draws, GivenNoise, Noise
from .qg import QuasiGeostrophic
from .regional import Regional, RegionalConfig
from .samudra import CheckpointError, Samudra
from .scaling import StatisticsError, scaling_from
from .source import Source
from .state import Field, Layout, LayoutError, State
from .statistics import open_statistics, save_statistics, statistics_of
from .stores import SourceError, StoreExistsError, open_store
from .weights import export, load

__all__ = [
    "Bounds",
    "CheckpointError",
    "Climatology",
    "Conserve",
    "Corrected",
    "CorrelatedNoise",
    "Draws",
    "Emulator",
    "Field",
    "Forcing",
    "FreeDrift",
    "GenSIM",
    "GenSIMConfig",
    "GivenNoise",
    "GridNoise",
    "KuramotoSivashinsky",
    "Layout",
    "LayoutError",
    "Lorenz63",
    "Lorenz96",
    "Noise",
    "Persistence",
    "QuasiGeostrophic",
    "Regional",
    "RegionalConfig",
    "Samudra",
    "Source",
    "SourceError",
    "State",
    "StatisticsError",
    "StoreExistsError",
    "UnitsError",
    "annual_cycle",
    "attributes",
    "export",
    "gaussian_grid",
    "grid_of",
    "ice_forcing_of",
    "layout_of",
    "load",
    "open_statistics",
    "open_store",
    "samples",
    "save_statistics",
    "scaling_from",
    "statistics_of",
]
