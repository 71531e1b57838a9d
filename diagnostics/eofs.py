"""Empirical orthogonal functions of data larger than memory, by the products of its records.

With anomalies x (time, cell) and weights w of the cells, of sum 1, the matrix of records G = x w x^T (time, time) is
summed over chunks in one pass; its eigenvectors are the principal components and one more product gives the patterns,

    G p_k = λ_k n p_k,      e_k = x^T p_k (λ_k n)^-1/2,      x = sum_k (λ_k n)^1/2 p_k e_k,

the same as a singular value decomposition of w^1/2 x, at the cost of n² numbers in memory. Errors of the eigenvalues
are λ (2/n)^1/2 (North et al. 1982, Mon. Weather Rev. 110, 699). Hannachi et al. 2007, Int. J. Climatol. 27, 1119.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .conventions import area_of, bare, described, horizontal_dims, matched

_Array = np.ndarray[Any, Any]

_MOST_RECORDS = 20_000  # n² float64 of 3 GB


def _eigen(gram: _Array, *, modes: int) -> _Array:
    """Leading eigenvalues in the first column, then the unit eigenvectors (mode, 1 + time), largest entry positive."""
    if not np.isfinite(gram).all():
        raise ValueError(
            "EOFs need cells with a value at every time, but there is none of them (all NaN?): select another box or "
            "depth, or fill the gaps in time first"
        )
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:modes], vectors[:, ::-1][:, :modes].T
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return np.concatenate([np.maximum(values, 0)[:, None], vectors * np.sign(largest)], axis=1)


def eofs(field: xr.DataArray, *, modes: int = 10, area: xr.DataArray | None = None, dim: str = "time") -> xr.Dataset:
    """Leading patterns of variability, their time series, and the part of the variance that they explain.

    `field` (time, [lev,] lat|y, lon|x), usually `deseasoned` and `detrended`, whose time mean is removed; cells with a
    missing record do not count; `modes`, how many; `area` (lat|y, lon|x) in m2 as weights, by default `area_of(field)`.
    Returns eof (mode, …) in the field's units for one standard deviation of pc (mode, time), which is dimensionless, of
    unit variance, its largest value positive; variance_fraction and its standard error by North's rule (mode). All
    float64 and lazy for lazy input, chunked at will. Raises ValueError for another dimension such as member (choose
    one, or stack it with time), more modes than records less one, and more than 20 000 records.
    """
    places = [d for d in field.dims if d != dim]
    n = field.sizes.get(dim, 0)
    if dim not in field.dims or not set(horizontal_dims(field)) <= set(places) or "member" in places:
        raise ValueError(
            f"EOFs need ({dim}, [lev,] lat, lon), got {field.dims}: select one member or stack it with time"
        )
    if not 1 <= modes < n:
        raise ValueError(f"modes must be from 1 to {n - 1}, one less than the records, got {modes}")
    if n > _MOST_RECORDS:
        raise ValueError(f"EOFs of {n} records need {n * n * 8 / 1e9:.0f} GB: average to at most {_MOST_RECORDS} first")
    x = bare(field).astype("f8").drop_vars(dim, errors="ignore")
    x = x - x.mean(dim, skipna=False)
    whole = x.isel({dim: 0}, drop=True)
    # Cells with a gap have a mean of NaN, so their first record shows it.
    weight = matched(whole, area_of(field) if area is None else area).astype("f8").where(whole.notnull(), 0.0).fillna(0)
    x = x.fillna(0.0)
    gram = xr.dot(x * weight, x.rename({dim: "_other"}), dim=places) / (weight.sum() * n)
    if gram.chunks:
        gram = gram.chunk({dim: -1, "_other": -1})
    solved: xr.DataArray = xr.apply_ufunc(
        _eigen,
        gram,
        input_core_dims=[[dim, "_other"]],
        output_core_dims=[["mode", "_entry"]],
        kwargs={"modes": modes},
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"mode": modes, "_entry": n + 1}},
    )
    value = solved.isel(_entry=0)
    pc = solved.isel(_entry=slice(1, None)).rename(_entry=dim) * np.sqrt(n)
    pattern = xr.dot(x, pc, dim=dim) / n
    pattern = pattern.where(weight > 0).transpose("mode", *places)
    trace = gram.where(xr.DataArray(np.eye(n, dtype=bool), dims=(dim, "_other")), 0.0).sum()
    fraction = value / trace
    coords = {name: c for name, c in field.coords.items() if dim not in c.dims}
    units = {"units": str(field.attrs["units"])} if "units" in field.attrs else {}
    pc = pc.assign_coords({dim: field[dim].variable}) if dim in field.coords else pc
    result = {
        "eof": described(pattern.assign_coords(coords), "eof", **units, long_name="pattern for one standard deviation"),
        "pc": described(pc * 1.0, "pc", units="1", long_name="principal component, of unit variance"),
        "variance_fraction": described(
            fraction * 1.0, "variance_fraction", units="1", long_name="part of the variance"
        ),
        "variance_error": described(fraction * np.sqrt(2 / n), "variance_error", units="1", long_name="North's error"),
    }
    return xr.Dataset(result, coords={"mode": np.arange(1, modes + 1)})
