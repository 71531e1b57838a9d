"""What drives a regional sea-ice emulator, made from ERA5-like fields: positions, wind, humidity and degree days.

Pure functions with the formulas by which the published training data were made (Finn et al. 2025, arXiv:2508.14984;
rotation as in NEMO's geo2ocean, Madec et al.; saturation as in the IFS documentation, part IV, chapter 12).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["degree_days", "polar_stereographic", "rotated", "rotation", "specific_humidity", "true_area"]

_RADIUS, _FLATTENING = 6378.137, 1 / 298.257223563  # WGS84, km
_EPSILON = 287.0597 / 461.51  # gas constants of dry air and vapour
FREEZING = 271.35
_MELTING, _COLD, _RANGE = 273.16, 250.16, 23.0


def polar_stereographic(lat: Tensor, lon: Tensor) -> Tensor:
    """Project the Arctic on the plane that touches the pole, on the WGS84 ellipsoid with true scale at the pole.

    Args:
        lat, lon: degrees north and east, any one shape.

    Returns:
        x and y in km (2, *shape); longitude 0 points to negative y, 90 E to positive x.

    Source: Snyder (1987), Map projections: a working manual, equations 15-9, 21-33.
    """
    e = math.sqrt(_FLATTENING * (2 - _FLATTENING))
    phi, lam = torch.deg2rad(lat.double()), torch.deg2rad(lon.double())
    sine = e * phi.sin()
    t = torch.tan(math.pi / 4 - phi / 2) * ((1 + sine) / (1 - sine)) ** (e / 2)
    rho = 2 * _RADIUS * t / math.sqrt((1 + e) ** (1 + e) * (1 - e) ** (1 - e))
    return torch.stack((rho * lam.sin(), -rho * lam.cos())).to(lat.dtype)


def true_area(projected: Tensor, lat: Tensor) -> Tensor:
    """The area on the sphere of cells measured on the plane of `polar_stereographic`, in the units given.

    The plane exaggerates lengths by k = 2 / (1 + sin lat), 3.5 % in area at 75 N and 10 % at 65 N.
    """
    k = 2 / (1 + torch.deg2rad(lat).sin())
    return projected / k.square()


def rotation(position: Tensor, lon: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine that turn east and north components onto the axes of a grid in the Arctic.

    Args:
        position: stereographic x and y of the cells, any unit (2, y, x); the pole is at 0.
        lon: degrees east (y, x).

    Returns:
        Sine and cosine (y, x): of the angle between north and the direction of increasing row.

    Source: NEMO, geo2ocean; Finn et al. (2025).
    """
    north = -position
    along = torch.cat((position[:, 1:2] - position[:, :1], position[:, 1:] - position[:, :-1]), 1)
    size = (torch.linalg.vector_norm(north, dim=0) * torch.linalg.vector_norm(along, dim=0)).clamp(min=1e-7)
    sine = (north[0] * along[1] - north[1] * along[0]) / size
    cosine = (north[0] * along[0] + north[1] * along[1]) / size
    turned = torch.cat((lon[1:2] - lon[:1], lon[1:] - lon[:-1])).abs() % 360
    meridian = turned <= 1e-8
    return sine.masked_fill(meridian, 0.0), cosine.masked_fill(meridian, 1.0)


def rotated(u: Tensor, v: Tensor, sine: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (..., y, x) with east and north components, on the grid's axes; same units."""
    return u * cosine + v * sine, v * cosine - u * sine


def specific_humidity(dew_point: Tensor, pressure: Tensor) -> Tensor:
    """Specific humidity kg/kg from dew point K and surface pressure Pa.

    Saturation is over water and ice, mixed with the weight clip(((T - 250.16) / 23)^2, 0, 1) of water.  The square
    comes before the clipping, so that below 250.16 K water returns: not as in the IFS, but as in the published data.
    """
    t = dew_point
    water = 611.21 * torch.exp(17.502 * (t - _MELTING) / (t - 32.19))
    ice = 611.21 * torch.exp(22.587 * (t - _MELTING) / (t + 0.7))
    alpha = ((t - _COLD) / _RANGE).square().clamp(0, 1)
    e = alpha * water + (1 - alpha) * ice
    return _EPSILON * e / (pressure + e * (_EPSILON - 1))


def degree_days(temperature: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Trailing means of the degrees above and below freezing, -1.8 degC.

    Args:
        temperature: K, at equal intervals (time, ...).
        steps: number of times in a mean, the last included: 120 for a month and 1464 for a year of 6-hourly data.

    Returns:
        Mean melting and freezing degrees K, both positive (time - steps + 1, ...), the first of time `steps - 1`.

    Raises:
        ValueError: for fewer times than steps.
    """
    if not 1 <= steps <= len(temperature):
        raise ValueError(
            f"degree days over {steps} times need as many temperatures, got {len(temperature)}; read more of the past"
        )
    above = (temperature - FREEZING).double()
    means = []
    for degrees in (above.clamp(min=0), (-above).clamp(min=0)):
        total = torch.cat((torch.zeros_like(degrees[:1]), degrees.cumsum(0)))
        means.append(((total[steps:] - total[:-steps]) / steps).to(temperature.dtype))
    return means[0], means[1]
