"""A small ensemble with its truth for the tests of streams, as Datasets and as stores."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cftime
import numpy as np
import xarray as xr

from polynya.diagnostics import (
    EnsembleMoments,
    GlobalSteric,
    HeatContent,
    ScoreTotals,
    global_heat_content,
    global_steric,
    isotropic_spectrum,
    kinetic_energy_spectrum,
    mean_energy_spectrum,
    mean_spectrum,
    score_totals,
)
from polynya.diagnostics.conventions import area_of

MEMBERS, TIMES, LEVELS, ROWS, COLUMNS = 4, 7, 3, 18, 24
SPACING = (1e5, 1e5)
BANDS = ((0.0, 50.0), (0.0, np.inf))


def ensemble(dtype: str = "f8") -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape, dims = (MEMBERS, TIMES, LEVELS, ROWS, COLUMNS), ("member", "time", "lev", "lat", "lon")
    land = np.zeros((ROWS, COLUMNS))
    land[:3] = land[8, 5:9] = np.nan
    fields = {
        "thetao": (dims, rng.normal(10, 2, shape) + land, {"units": "degC"}),
        "so": (dims, rng.normal(35, 0.3, shape) + land, {"units": "0.001"}),
    }
    surface = (*dims[:2], *dims[3:])
    for name, units in (("zos", "m"), ("uo", "m s-1"), ("vo", "m s-1")):
        fields[name] = (surface, rng.normal(0, 1, (MEMBERS, TIMES, ROWS, COLUMNS)), {"units": units})
    coords = {
        "member": np.arange(MEMBERS),
        "time": [cftime.DatetimeNoLeap(2000, 1 + k, 1) for k in range(TIMES)],
        "lev": ("lev", np.array([10.0, 60.0, 240.0]), {"units": "m"}),
        "lat": np.linspace(-80, 80, ROWS),
        "lon": np.arange(7.5, 360, 15),
        "dz": ("lev", np.array([20.0, 80.0, 280.0]), {"units": "m"}),
    }
    return xr.Dataset(fields, coords).astype(dtype, keep_attrs=True)


def truth(dtype: str = "f8") -> xr.Dataset:
    """Member 0, a little off."""
    like = ensemble(dtype).isel(member=0, drop=True)[["thetao", "zos"]]
    rng = np.random.default_rng(1)
    return like.map(lambda v: v.copy(data=v + rng.normal(0, 0.5, v.shape).astype(dtype)))


def reference(ds: xr.Dataset) -> xr.Dataset:
    return ds[["thetao", "so"]].isel(time=0, member=0, drop=True).load()


def heat(ds: xr.Dataset) -> xr.DataArray:
    return global_heat_content(ds.thetao)


def member_mean(ds: xr.Dataset) -> xr.DataArray:
    return ds.zos.mean("member")


def products(ds: xr.Dataset) -> dict:
    """One of each kind; what a plain function loses is found out by itself."""
    return {
        "heat": HeatContent(BANDS),
        "steric": GlobalSteric(reference(ds)),
        "series": ScoreTotals("thetao", "thetao_truth", keep=("time", "lev")),
        "map": ScoreTotals("zos", "zos_truth", keep=("lat", "lon")),
        "spectrum": mean_spectrum("zos", spacing=SPACING),
        "energy": mean_energy_spectrum(spacing=SPACING),
        "moments": EnsembleMoments("thetao"),
        "function": heat,
        "mean": member_mean,
    }


def expected(ds: xr.Dataset, beside: xr.Dataset) -> dict:
    """The same by the plain functions, in memory."""
    every, area = ("member", "time"), area_of(ds)
    totals = partial(score_totals, weights=area)
    variance = ds.thetao.astype("f8").var(every, ddof=1, skipna=False)
    return {
        "heat": xr.concat([global_heat_content(ds.thetao, depth=b) for b in BANDS], "band"),
        "steric": global_steric(ds.thetao, ds.so, reference=reference(ds)),
        "series": totals(beside.thetao, ds.thetao, dim=("lat", "lon")),
        "map": totals(beside.zos, ds.zos, dim="time"),
        "spectrum": isotropic_spectrum(ds.zos, spacing=SPACING).mean(every),
        "energy": kinetic_energy_spectrum(ds.uo, ds.vo, spacing=SPACING).mean(every),
        "moments": xr.Dataset({"mean": ds.thetao.astype("f8").mean(every, skipna=False), "variance": variance}),
        "function": heat(ds),
        "mean": member_mean(ds),
    }


def assert_close(found: dict, wanted: dict, rtol: float = 1e-12) -> None:
    assert list(found) == list(wanted)
    for name, right in wanted.items():
        left = found[name]
        if name == "heat":
            left = left.ohc
        pairs = [(left[v], right[v]) for v in right.data_vars] if isinstance(right, xr.Dataset) else [(left, right)]
        for a, b in pairs:
            assert set(a.dims) == set(b.dims), name
            scale = float(abs(b).max())
            np.testing.assert_allclose(
                a.transpose(*b.dims), b, rtol=rtol, atol=1e-13 * scale, err_msg=f"{name} {b.name}"
            )


def stored(
    folder: Path,
    ds: xr.Dataset,
    name: str = "store.zarr",
    shards: dict | None = None,
    packing: dict | None = None,
    **chunks: int,
) -> Path:
    """Written in chunks, or in shards of these chunks, and with the encoding of some variables."""
    encoding = {v: dict((packing or {}).get(v, {})) for v in ds.data_vars}
    for v, field in ds.data_vars.items():
        encoding[v] |= {"chunks": tuple(min(chunks.get(str(d), field.sizes[d]), field.sizes[d]) for d in field.dims)}
        if shards is not None:
            per = zip(field.dims, encoding[v]["chunks"], strict=True)
            encoding[v]["shards"] = tuple(c * shards.get(str(d), 1) for d, c in per)
    ds.drop_encoding().to_zarr(folder / name, encoding=encoding, zarr_format=3, consolidated=False)
    return folder / name
