"""Small layouts and states for tests: a box ocean that is quick to step."""

from __future__ import annotations

import cftime
import numpy as np
import xarray as xr

from polynya.da import Observations
from polynya.emulators import Field, Layout, Noise, State

START = cftime.DatetimeNoLeap(2000, 1, 1)


def small_grid(ny: int = 8, nx: int = 12, levels: int = 3) -> xr.Dataset:
    """A box ocean with a land rim in the south and an island, and corners for velocities."""
    wet = np.ones((levels, ny, nx), bool)
    wet[:, 0] = wet[:, 3, 4:6] = wet[-1, 1] = False
    corner = wet & np.roll(wet, -1, -1) & np.roll(wet, -1, -2) & np.roll(np.roll(wet, -1, -1), -1, -2)
    corner[:, -1] = False
    lat, lon = -30 + 5.0 * np.arange(ny), 30.0 * np.arange(nx)
    return xr.Dataset(
        coords={
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
            "lev": ("lev", np.array([10.0, 50.0, 200.0])[:levels], {"units": "m"}),
            "dz": ("lev", np.array([20.0, 60.0, 240.0])[:levels], {"units": "m"}),
            "areacello": (("lat", "lon"), np.tile(1e10 * np.cos(np.radians(lat))[:, None], (1, nx)), {"units": "m2"}),
            "deptho": (("lat", "lon"), (wet * np.array([20.0, 60.0, 240.0])[:levels, None, None]).sum(0)),
            "wetmask": (("lev", "lat", "lon"), wet),
            "wetmask_corner": (("lev", "lat", "lon"), corner),
            "lat_corner": ("lat", lat + 2.5),
            "lon_corner": ("lon", lon + 15.0),
        },
        attrs={"zonal_period": 360.0},
    )


def small_layout(slots: tuple[int, ...] = (0,)) -> Layout:
    """Temperature, velocity on corners, sea level."""
    return Layout((Field("thetao", 3), Field("uo", 3, "corner"), Field("zos")), small_grid(), slots)


def forcing_layout(slots: tuple[int, ...] = (0,)) -> Layout:
    return Layout((Field("tauuo"), Field("hfatm")), small_grid(), slots)


def random_state(layout: Layout, members: tuple[int, ...] = (0, 1, 2), seed: int = 0) -> State:
    data = Noise(seed).stream("test").normal(members, START, layout.shape) * layout.mask
    return State(data, START, layout, members)


def random_observations(p: int = 14, seed: int = 3, time: cftime.datetime = START, least: float = 0.4) -> Observations:
    """Of temperature and sea level at random wet places of `small_grid`, with errors from `least` to 0.9."""
    rng = np.random.default_rng(seed)
    variable = rng.choice(["thetao", "zos"], p)
    table = {
        "variable": variable,
        "lat": rng.choice([-23.0, -9.0, 3.0], p) + rng.uniform(-1, 1, p),
        "lon": rng.uniform(0, 360, p),
        "depth": np.where(variable == "thetao", rng.choice([10.0, 30.0], p), 0.0),
        "value": rng.normal(size=p),
        "error": rng.uniform(least, 0.9, p),
    }
    return Observations.from_table(time, table)
