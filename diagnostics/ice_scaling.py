"""How deformation of sea ice changes with the scale at which it is seen.

    <eps^q>(L) ~ L^-beta(q),     beta(q) = a q^2 + b q,  a > 0 for multifractal fields,

with eps the total deformation rate in boxes of size L, and < > the mean over boxes weighted by the area of their ice.
Two ways to eps in a box differ in what cancels:

    "gradients": the means of u_x, u_y, v_x, v_y over the box first, then their invariants (Marsan et al. 2004;
                 Rampal et al. 2019): deformation of opposite sign cancels, beta(1) >= 0;
    "rates":     the mean of the cells' own eps (Finn et al. 2024): nothing cancels, beta(1) = 0 identically.

All scales see the same ice: a box counts where enough of its area has values, and a cell only where its boxes of all
sizes do. Marsan et al. 2004, Phys. Rev. Lett. 93, 178501; Rampal et al. 2019, The Cryosphere 13, 2457; Finn et al.
2024, J. Adv. Model. Earth Syst. 16, e2024MS004395.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from .conventions import area_of, bare, described, horizontal_dims
from .ice_deformation import COMPONENTS, whole_maps
from .skill import Dims

_Array = np.ndarray[Any, Any]

_AVERAGES = ("gradients", "rates")


def _total(g: _Array) -> _Array:
    """Total deformation rate (…) of gradients (4, …)."""
    u_x, u_y, v_x, v_y = g
    return np.asarray(np.sqrt((u_x + v_y) ** 2 + (u_x - v_y) ** 2 + (u_y + v_x) ** 2))


def _boxed(field: _Array, n: int) -> _Array:
    """Sums over boxes of n by n cells: (…, J / n, I / n) of (…, J, I)."""
    *rest, rows, columns = field.shape
    return np.asarray(field.reshape(*rest, rows // n, n, columns // n, n).sum((-3, -1)))


def _spread_out(boxes: _Array, n: int) -> _Array:
    return np.repeat(np.repeat(boxes, n, axis=0), n, axis=1)


def _ratio(numerator: _Array, denominator: _Array) -> _Array:
    return np.asarray(numerator / np.where(denominator > 0, denominator, np.nan))


def _cropped(field: _Array, n: int) -> _Array:
    """The middle of maps (…, J, I) that boxes of n by n cells tile."""
    for axis in (-2, -1):
        used = field.shape[axis] // n * n
        start = (field.shape[axis] - used) // 2
        field = np.moveaxis(np.moveaxis(field, axis, 0)[start : start + used], 0, axis)
    return field


def _map_sums(
    g: _Array, area: _Array, *, boxes: Sequence[int], orders: Sequence[float], average: str, least: float
) -> _Array:
    """Area, and sum of area times eps^q for each order q, at each box size (1 + order, box), of one map (4, J, I)."""
    area = np.nan_to_num(area)
    ice = np.where(np.isfinite(g).all(0), area, 0.0)
    g = np.where(ice > 0, g, 0.0)
    enough = np.ones(ice.shape, bool)
    for n in boxes:
        part = _ratio(_boxed(ice, n), _boxed(area, n))
        enough &= _spread_out(part >= least, n)
    ice = ice * enough
    seen = g if average == "gradients" else _total(g)
    sums = np.zeros((1 + len(orders), len(boxes)))
    for k, n in enumerate(boxes):
        inside = _boxed(ice, n)
        mean = _ratio(_boxed(seen * ice, n), inside)
        eps = (_total(mean) if average == "gradients" else mean)[inside > 0]
        weight = inside[inside > 0]
        sums[:, k] = [weight.sum(), *((weight * eps**q).sum() for q in orders)]
    return sums


def _moment_sums(g: _Array, area: _Array, **options: Any) -> _Array:
    """`_map_sums` of each of the maps (…, 4, J, I): (…, 1 + order, box)."""
    largest = options["boxes"][-1]
    area = _cropped(area.astype("f8"), largest)
    flat = g.reshape(-1, *g.shape[-3:])
    sums = np.stack([_map_sums(_cropped(one.astype("f8"), largest), area, **options) for one in flat])
    return sums.reshape(*g.shape[:-3], *sums.shape[1:])


def _scales(area: _Array, *, boxes: Sequence[int]) -> _Array:
    """Square root of the mean area of the boxes of each size, m."""
    area = _cropped(area.astype("f8"), boxes[-1])
    return np.array([np.sqrt(np.nanmean(area)) * n for n in boxes])


def _check(
    sizes: tuple[int, int], boxes: tuple[int, ...], orders: tuple[float, ...], average: str, least: float
) -> None:
    if average not in _AVERAGES:
        raise ValueError(f"average must be one of {list(_AVERAGES)}, got {average!r}")
    if not boxes or boxes[0] < 1 or any(b <= a or b % a for a, b in pairwise(boxes)):
        raise ValueError(f"boxes must be rising numbers of cells, each dividing the next, like (1, 2, 4), got {boxes}")
    if boxes[-1] > min(sizes):
        raise ValueError(f"boxes of {boxes[-1]} cells do not fit the map of {sizes} cells: leave the largest out")
    if not orders or min(orders) <= 0:
        raise ValueError(f"orders of moments must be positive, got {orders}")
    if not 0 < least <= 1:
        raise ValueError(f"min_fraction must lie in (0, 1], got {least}")


def deformation_moments(
    gradients: xr.DataArray,
    *,
    boxes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    orders: Sequence[float] = (1, 2, 3),
    average: str = "gradients",
    dim: Dims = None,
    area: xr.DataArray | None = None,
    min_fraction: float = 0.5,
) -> xr.DataArray:
    """Moments of the total deformation rate in boxes of several sizes.

    `gradients` (…, gradient, lat|y, lon|x) in s-1 of `velocity_gradients`; `boxes`, their sides in cells, each
    dividing the next; the middle of the map that the largest tile is used; `orders` q of the moments; `average`
    "gradients" or "rates" over a box; `dim` to average over besides the boxes, by default all but member; `area`
    (lat|y, lon|x) in m2, by default `area_of(gradients)`; `min_fraction`, the part of a box's area (land included)
    that must have values.

    Returns (…, order, box), units (s-1)^q, float64, lazy for lazy input, NaN where no box counts, with the coordinate
    scale (box) in m, the square root of the mean true area of a box. Raises ValueError for gradients that are none,
    sizes that do not nest or fit, unknown options. Definition: above.
    """
    if "gradient" not in gradients.dims or gradients.sizes["gradient"] != len(COMPONENTS):
        raise ValueError(
            f"need the dimension 'gradient' with {COMPONENTS}, got {gradients.dims}: use velocity_gradients"
        )
    dims = horizontal_dims(gradients)
    options: dict[str, Any] = {"boxes": tuple(int(n) for n in boxes), "orders": tuple(float(q) for q in orders)}
    options |= {"average": average, "least": min_fraction}
    _check((gradients.sizes[dims[0]], gradients.sizes[dims[1]]), **options)
    over = _averaged(gradients, dim, dims)
    area = whole_maps(bare(area_of(gradients) if area is None else area).transpose(*dims), dims)
    sums = _all_sums(gradients, area, dims, options).sum(over)
    ice = bare(sums.isel(order=0))
    moments = sums.isel(order=slice(1, None)) / ice.where(ice > 0)
    return _labelled(moments, _scale(area, dims, options["boxes"]), **options)


def _all_sums(
    gradients: xr.DataArray, area: xr.DataArray, dims: tuple[str, str], options: dict[str, Any]
) -> xr.DataArray:
    """`_moment_sums` at each time and member: (…, 1 + order, box)."""
    elsewhere = [n for n, c in gradients.coords.items() if set(c.dims) & set(dims)]
    sums: xr.DataArray = xr.apply_ufunc(
        _moment_sums,
        whole_maps(gradients.drop_vars(elsewhere), ("gradient", *dims)),
        area.drop_vars(dims, errors="ignore"),
        input_core_dims=[["gradient", *dims], list(dims)],
        output_core_dims=[["order", "box"]],
        kwargs=options,
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"order": 1 + len(options["orders"]), "box": len(options["boxes"])}},
    )
    return sums


def _averaged(gradients: xr.DataArray, dim: Dims, dims: tuple[str, str]) -> list[str]:
    kept = {"member", "gradient", *dims}
    over = (
        [str(d) for d in gradients.dims if d not in kept] if dim is None else [dim] if isinstance(dim, str) else [*dim]
    )
    if wrong := set(over) - (set(map(str, gradients.dims)) - {"gradient", *dims}):
        raise ValueError(f"dim has {sorted(wrong)}: choose among {gradients.dims} besides the boxes' own")
    return over


def _scale(area: xr.DataArray, dims: tuple[str, str], boxes: tuple[int, ...]) -> xr.DataArray:
    scale: xr.DataArray = xr.apply_ufunc(
        _scales,
        area,
        input_core_dims=[list(dims)],
        output_core_dims=[["box"]],
        kwargs={"boxes": boxes},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"box": len(boxes)}},
    )
    return scale


def _labelled(
    moments: xr.DataArray,
    scale: xr.DataArray,
    *,
    boxes: Sequence[int],
    orders: Sequence[float],
    average: str,
    least: float,
) -> xr.DataArray:
    moments = moments.assign_coords(order=list(orders), box=list(boxes))
    about = {"units": "m", "long_name": "size of boxes"}
    moments = moments.assign_coords(scale=("box", scale.data, about))
    moments["order"].attrs.update(units="1", long_name="order of the moment")
    moments["box"].attrs.update(units="1", long_name="side of boxes in cells")
    return described(
        moments,
        "moment",
        units="(s-1)^order",
        long_name="moments of total deformation rate",
        average=average,
        min_fraction=least,
    )


def scaling_exponents(moments: xr.DataArray) -> xr.Dataset:
    """Exponents beta(q) of <eps^q> ~ L^-beta(q), and how they bend with q.

    `moments` (…, order, box) of `deformation_moments`; `moments.isel(box=slice(0, 4))` for part of the scales. Returns
    exponent, least squares of log moment on log scale, with the range smallest and largest of the exponents between
    neighbouring scales (…, order), and curvature a and linear b (…) of beta(q) = a q^2 + b q by least squares (NaN
    with one order), all dimensionless, lazy for lazy input. Raises ValueError for fewer than two scales. Source:
    Marsan et al. 2004; range as in Finn et al. 2024.
    """
    if not {"order", "box"} <= set(moments.dims) or "scale" not in moments.coords or moments.sizes["box"] < 2:
        raise ValueError(f"exponents need moments (order, box) at two scales or more, got {dict(moments.sizes)}")
    log_l, log_m = (_log(bare(x).drop_vars("box")) for x in (moments["scale"], moments))
    centred = log_l - log_l.mean("box")
    slope = (log_m * centred).sum("box", skipna=False) / (centred**2).sum("box")
    steps = -log_m.diff("box") / log_l.diff("box")
    bend, linear = _parabola(-slope)
    found = {
        "exponent": (-slope, "scaling exponent of deformation"),
        "smallest": (steps.min("box", skipna=False), "smallest exponent between two scales"),
        "largest": (steps.max("box", skipna=False), "largest exponent between two scales"),
        "curvature": (bend, "a in beta = a q^2 + b q"),
        "linear": (linear, "b in beta = a q^2 + b q"),
    }
    fields = {n: described(x, n, units="1", long_name=long) for n, (x, long) in found.items()}
    return xr.Dataset(fields, attrs={k: v for k, v in moments.attrs.items() if k in ("average", "min_fraction")})


def _log(x: xr.DataArray) -> xr.DataArray:
    return x.copy(data=np.log(x.data))


def _parabola(beta: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Coefficients a, b (…) of beta (…, order) = a q^2 + b q by least squares."""
    q = np.asarray(beta["order"], dtype="f8")
    design = np.stack([q**2, q], axis=1)
    weights = np.linalg.pinv(design) if q.size > 1 else np.full((2, 1), np.nan)
    bare_beta = beta.drop_vars("order")
    a, b = ((bare_beta * xr.DataArray(w, dims="order")).sum("order", skipna=False) for w in weights)
    return a, b
