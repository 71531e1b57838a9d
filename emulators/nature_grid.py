"""Where the embedded nature runs live: grids, coasts and sea floors of the globe, the channel and the Arctic basin.

The oceans are regular in latitude and longitude. Tracers and sea level sit at cell centres, velocities at
the north-east corner of the cell (Arakawa's B grid), so that `lat_corner = lat + dlat / 2`. A level is
wet or dry as a whole (no partial cells). The returned datasets carry every coordinate that a
`Layout` needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .names import GRID_ATTRS

EARTH_RADIUS = 6.371e6  # m

# Coastlines as (longitude, latitude) in degrees, drawn to survive a 4-degree grid.
CONTINENTS: dict[str, list[tuple[float, float]]] = {
    "north america": [
        (190, 72), (192, 66), (200, 57), (225, 58), (236, 48), (236, 38), (252, 24), (264, 15), (276, 8),
        (283, 7), (277, 12), (272, 20), (262, 21), (262, 29), (276, 31), (280, 26), (284, 36), (295, 46),
        (306, 50), (302, 56), (295, 61), (282, 63), (280, 72),
    ],
    "south america": [
        (281, 9), (279, -4), (284, -14), (289, -20), (286, -40), (285, -52), (292, -55), (297, -42),
        (303, -36), (312, -26), (321, -18), (326, -6), (310, 1), (300, 9), (288, 12),
    ],
    "eurasia and africa": [
        (-17, 14), (-8, 4), (8, 4), (9, -2), (14, -12), (12, -18), (18, -35), (28, -34), (36, -24),
        (41, -14), (41, -3), (51, 11), (55, 17), (60, 24), (67, 25), (73, 18), (77, 7), (81, 14), (88, 22),
        (92, 21), (97, 16), (98, 8), (103, 1), (104, 9), (109, 12), (107, 20), (117, 23), (122, 31),
        (119, 38), (128, 36), (133, 43), (141, 53), (156, 51), (163, 60), (178, 63), (192, 66), (192, 72),
        (28, 72), (12, 66), (5, 60), (8, 54), (-2, 49), (-9, 43), (-9, 36), (-10, 30), (-17, 21),
    ],
    "australia": [
        (113, -22), (115, -35), (130, -32), (140, -39), (150, -38), (154, -27), (144, -12), (130, -12),
    ],
    "new guinea": [(131, 0), (142, -2), (151, -9), (142, -9), (132, -5)],
    "borneo": [(109, 3), (118, 6), (118, -4), (110, -4)],
    "greenland": [(303, 66), (316, 59), (322, 66), (338, 72), (303, 72)],
}  # fmt: skip

# Mid-ocean ridges: longitude of the crest (degrees), height (m).
RIDGES = [(330.0, 1500.0), (70.0, 1300.0), (250.0, 1400.0), (160.0, 900.0)]


def globe() -> xr.Dataset:
    """Near-global ocean, 4 degrees, 37 x 90 cells, ten levels to 4600 m, with idealised continents."""
    lat, lon = np.arange(-74.0, 71.0, 4.0), np.arange(2.0, 360.0, 4.0)
    dz = np.array([50.0, 70, 100, 140, 190, 240, 490, 730, 1030, 1160])
    x, y = np.meshgrid(lon, lat)
    land = (y < -71) | np.any([_inside(x, y, coast) for coast in CONTINENTS.values()], axis=0)
    floor = 4600.0 - sum(h * np.exp(-(((x - crest) / 9.0) ** 2)) for crest, h in RIDGES)
    levels = _levels_above(np.where(land, 0.0, floor), dz)
    return _grid(lat, lon, dz, _open_corners(np.where(levels > 0, np.maximum(levels, 2), 0)), 360.0)


def channel() -> xr.Dataset:
    """Zonally periodic sector of a Southern-Ocean-like channel: about 25 km, 40 x 80 cells, eight levels.

    A ridge steers the jet and an island sheds eddies; the sector repeats every 28 degrees of longitude.
    """
    lat, lon = -54.0 + 0.225 * (np.arange(40) + 0.5), 0.35 * (np.arange(80) + 0.5)
    dz = np.array([50.0, 80, 130, 200, 290, 400, 550, 800])
    ridge = np.exp(-(((np.arange(80) + 0.5 - 28.0) / 5.0) ** 2))
    levels = np.tile(8 - np.round(2 * ridge).astype(int), (40, 1))
    levels[[0, -1]] = 0
    levels[17:22, 60:64] = 0
    return _grid(lat, lon, dz, _open_corners(levels), 28.0)


def arctic(cells: int, spacing: float) -> xr.Dataset:
    """A basin around the pole with a rugged coast and two islands, `cells` x `cells` of `spacing` m, on a plane."""
    side = (2 * np.arange(cells) + 1 - cells) / cells
    a, b = np.meshgrid(side, side)
    angle = np.arctan2(b, a)
    wet = np.hypot(a, 1.05 * b) < 0.92 + 0.05 * np.sin(5 * angle) + 0.03 * np.sin(9 * angle + 1)
    wet &= (a - 0.35) ** 2 + (b - 0.45) ** 2 >= 0.012
    wet &= 2 * (a + 0.5) ** 2 + (b - 0.1) ** 2 >= 0.008
    wet[[0, -1]] = wet[:, [0, -1]] = False
    return plane(wet, spacing)


def plane(wet: np.ndarray, spacing: float) -> xr.Dataset:
    """The grid of a map on the plane that touches the pole at its middle.

    Args:
        wet: True for sea (y, x); its edge is closed.
        spacing: size of a cell, m; an area is its square, as the solver has it.

    Returns:
        Coordinates as a `Layout` needs them, and `x`, `y` (m) along the dimensions.
    """
    ny, nx = wet.shape
    y, x = ((np.arange(n) + 0.5 - n / 2) * spacing for n in (ny, nx))
    lat, lon = _plane_position(*np.meshgrid(x, y))
    lat_corner, lon_corner = _plane_position(*np.meshgrid(x + spacing / 2, y + spacing / 2))
    corner = np.zeros_like(wet)
    corner[:-1, :-1] = wet[:-1, :-1] & wet[1:, :-1] & wet[:-1, 1:] & wet[1:, 1:]
    named = {
        "lat": lat, "lon": lon, "lat_corner": lat_corner, "lon_corner": lon_corner,
        "areacello": np.full(wet.shape, spacing**2), "wetmask": wet, "wetmask_corner": corner,
    }  # fmt: skip
    metres = {"units": "m", "standard_name": "projection_{}_coordinate"}
    axes = {n: (n, v, metres | {"standard_name": f"projection_{n}_coordinate"}) for n, v in (("x", x), ("y", y))}
    return xr.Dataset(coords=axes | {n: (("y", "x"), v, GRID_ATTRS[n]) for n, v in named.items()})


def _plane_position(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude (degrees) of points of a polar stereographic plane, true to scale at the pole."""
    lat = 90 - np.degrees(2 * np.arctan(np.hypot(x, y) / (2 * EARTH_RADIUS)))
    return lat, np.degrees(np.arctan2(x, -y)) % 360


def _inside(x: np.ndarray, y: np.ndarray, polygon: list[tuple[float, float]]) -> np.ndarray:
    """Points inside a polygon, by counting crossings of a ray to the east; longitudes modulo 360."""
    inside = np.zeros(x.shape, bool)
    for shift in (-360.0, 0.0, 360.0):
        for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            if y0 != y1:
                crossing = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
                inside ^= ((y0 > y) != (y1 > y)) & (x + shift < crossing)
    return inside


def _levels_above(floor: np.ndarray, dz: np.ndarray) -> np.ndarray:
    """Number of wet levels: a level is wet if the floor lies at least 40 % into it."""
    top = np.concatenate([[0.0], np.cumsum(dz)[:-1]])
    return np.asarray((floor[None] > (top + 0.4 * dz)[:, None, None]).sum(0))


def _open_corners(levels: np.ndarray) -> np.ndarray:
    """Dry every cell none of whose corners is wet: no current could reach it on a B grid."""
    for _ in range(levels.size):
        corner = _corner_mask(levels[None] > 0)[0]
        reached = corner | np.roll(corner, 1, 1)
        reached = reached | np.roll(reached, 1, 0)
        if np.array_equal(levels > 0, (levels > 0) & reached):
            break
        levels = np.where(reached, levels, 0)
    return levels


def _corner_mask(wet: np.ndarray) -> np.ndarray:
    """A corner is wet if its four cells are; the northern edge of the domain is a wall."""
    corner = wet & np.roll(wet, -1, -1)
    corner = corner & np.roll(corner, -1, -2)
    corner[:, -1] = False
    return np.asarray(corner)


def _grid(lat: np.ndarray, lon: np.ndarray, dz: np.ndarray, levels: np.ndarray, period: float) -> xr.Dataset:
    dlat, dlon = lat[1] - lat[0], lon[1] - lon[0]
    wet = np.arange(len(dz))[:, None, None] < levels
    edge = np.sin(np.radians(np.append(lat - dlat / 2, lat[-1] + dlat / 2)))
    area = EARTH_RADIUS**2 * np.radians(dlon) * np.diff(edge)
    bottom = np.cumsum(dz)
    coords: dict[str, tuple[Any, Any]] = {
        "lat": ("lat", lat),
        "lon": ("lon", lon),
        "lev": ("lev", bottom - dz / 2),
        "dz": ("lev", dz),
        "areacello": (("lat", "lon"), np.tile(area[:, None], (1, len(lon)))),
        "deptho": (("lat", "lon"), np.append(0.0, bottom)[levels]),
        "wetmask": (("lev", "lat", "lon"), wet),
        "wetmask_corner": (("lev", "lat", "lon"), _corner_mask(wet)),
        "lat_corner": ("lat", lat + dlat / 2),
        "lon_corner": ("lon", lon + dlon / 2),
    }
    return xr.Dataset(
        coords={name: (*values, GRID_ATTRS[name]) for name, values in coords.items()},
        attrs={"zonal_period": period},
    )
