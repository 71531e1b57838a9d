"""Diffused roots: Matérn where it is open, exact variance at coasts, nothing across land, levels, time slots."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import gamma, kv
from small import small_grid, small_layout
from torch import Tensor

from polynya.da import gaspari_cohn
from polynya.da.adjoint import check_adjoint
from polynya.da.background import Root
from polynya.da.diffused import DiffusedRoot, vertical_root
from polynya.da.implicit_diffusion import implicit_diffusion, series
from polynya.emulators import Field, Layout, nature_ice, nature_ocean
from polynya.emulators.grids import EARTH_RADIUS

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

SPACING = 20e3
DEGREES = float(np.degrees(SPACING / EARTH_RADIUS))


def plane(wet: NDArray[np.bool_], curvilinear: bool = True) -> Layout:
    """Square cells of 20 km on the equator, in closed walls."""
    ny, nx = wet.shape
    lat, lon = (np.arange(ny) - ny // 2) * DEGREES, np.arange(nx) * DEGREES
    dims = ("y", "x") if curvilinear else ("lat", "lon")
    if curvilinear:
        lat, lon = np.meshgrid(lat, lon, indexing="ij")
    coords = {
        "lat": (dims if curvilinear else "lat", lat),
        "lon": (dims if curvilinear else "lon", lon),
        "areacello": (dims, np.full(wet.shape, SPACING**2)),
        "wetmask": (dims, wet),
    }
    return Layout((Field("zos"),), xr.Dataset(coords=coords))


def dense(root: Root) -> Tensor:
    """L, (channel y x, n)."""
    return root.apply(torch.eye(root.size, dtype=torch.float64)).flatten(1).mT


def matern(r: float, length: float, solves: int) -> float:
    nu, x = 2 * solves - 1, r / (length / math.sqrt(4 * solves - 4))
    return float(2 ** (1 - nu) / gamma(nu) * x**nu * kv(nu, x))


@pytest.mark.parametrize("solves", [2, 3, 5])
@pytest.mark.parametrize("ratio", [3, 5])
def test_the_correlation_is_materns_in_the_open(solves: int, ratio: int) -> None:
    root = DiffusedRoot(plane(np.ones((41, 41), bool)), 1.0, ratio * SPACING, solves=solves)
    middle = torch.zeros(41, 41, dtype=torch.float64)
    middle[20, 20] = 1.0
    found = root.apply(torch.func.vjp(root.apply, torch.zeros(root.size, dtype=torch.float64))[1](middle[None])[0])[0]
    for away in [(0, 1), (0, 3), (4, 0), (3, 3), (0, 8), (9, 0)]:
        wanted = matern(math.hypot(*away) * SPACING, ratio * SPACING, solves)
        assert float(found[20 + away[0], 20 + away[1]]) == pytest.approx(wanted, abs=0.03 if ratio == 3 else 0.012)


def coast() -> NDArray[np.bool_]:
    wet = np.ones((14, 18), bool)
    wet[4:9, 6:8] = wet[10, :7] = wet[11:, 12] = wet[0, 3:] = False
    return wet


@pytest.mark.parametrize("solver", ["factor", "chebyshev"])
def test_the_variance_is_exact_everywhere(solver: str) -> None:
    root = DiffusedRoot(plane(coast()), 2.0, 4 * SPACING, solver=solver)
    covariance = dense(root) @ dense(root).mT
    wet = torch.from_numpy(coast().ravel())
    assert float((torch.diagonal(covariance)[wet] - 4).abs().max()) < 1e-10
    assert float(covariance[~wet].abs().max()) == 0
    assert torch.allclose(root.variance().flatten(), torch.diagonal(covariance), atol=1e-10)


def test_both_solvers_agree_in_both_precisions() -> None:
    v = torch.randn(5, int(coast().sum()), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = (DiffusedRoot(plane(coast()), 1.0, 6 * SPACING, solver=s) for s in ("factor", "chebyshev"))
    assert float((one.apply(v) - two.apply(v)).abs().max()) < 1e-12
    assert float((one.apply(v) - two.apply(v.float())).abs().max()) < 5e-5
    assert one.apply(v.float()).dtype == two.apply(v.float()).dtype == torch.float32


def test_the_series_is_the_power() -> None:
    for top, solves in [(1.5, 2), (300.0, 2), (40.0, 6)]:
        c = series(solves, top, 2e-15)
        x = np.linspace(1, top, 501)
        found = np.polynomial.chebyshev.chebval((2 * x - top - 1) / (top - 1), c)
        assert np.abs(found - x**-solves).max() < 1e-13


def test_nothing_crosses_a_wall_and_little_goes_round_a_peninsula() -> None:
    wet = np.ones((21, 21), bool)
    wet[:, 10] = False
    root = DiffusedRoot(plane(wet), 1.0, 5 * SPACING)
    B = (dense(root) @ dense(root).mT).reshape(21, 21, 21, 21)
    assert float(B[:, :10, :, 11:].abs().max()) == 0
    wet[18:, 10] = True  # open at the northern end
    root = DiffusedRoot(plane(wet), 1.0, 5 * SPACING)
    B = (dense(root) @ dense(root).mT).reshape(21, 21, 21, 21)
    across, open_water = float(B[8, 9, 8, 11]), matern(2 * SPACING, 5 * SPACING, 2)
    assert 0 < across < 0.02 < 0.8 < open_water
    assert float(B[20, 9, 20, 11]) > 0.7


def test_length_may_vary_in_space() -> None:
    wet = np.ones((21, 41), bool)
    length = np.where(np.arange(41) < 20, 3 * SPACING, 6 * SPACING) * np.ones((21, 1))
    root = DiffusedRoot(plane(wet), 1.0, length)
    B = (dense(root) @ dense(root).mT).reshape(21, 41, 21, 41)
    assert float(torch.diagonal(B.reshape(861, 861)).sub(1).abs().max()) < 1e-10
    for column, near in ((8, 3), (32, 6)):
        assert float(B[10, column, 10, column + 3]) == pytest.approx(matern(3 * SPACING, near * SPACING, 2), abs=0.04)


def test_sectors_close_where_their_period_says() -> None:
    layout = nature_ocean.channel().layout.select(["zos"])
    layout = replace(layout, grid=layout.grid.isel(lat=slice(8, 28), lat_corner=slice(8, 28), missing_dims="ignore"))
    root = DiffusedRoot(layout, 1.0, 100e3)
    impulse = torch.zeros(root.size, dtype=torch.float64)
    field = root.apply(torch.func.vjp(root.apply, impulse)[1](unit(layout, 10, 0))[0])[0]
    assert float(field[10, -1]) == pytest.approx(float(field[10, 1]), rel=1e-6) and float(field[10, -1]) > 0.7


def unit(layout: Layout, row: int, column: int, channel: int = 0) -> Tensor:
    x = torch.zeros(layout.shape, dtype=torch.float64)
    x[channel, row, column] = 1.0
    return x


def test_grids_around_the_pole() -> None:
    layout = nature_ice.arctic(24, 80e3).layout
    names = [f.name for f in layout.fields if f.name in ("siconc", "siu_corner")]
    root = DiffusedRoot(layout.select(names), 1.0, 320e3)
    L = dense(root)
    B = (L @ L.mT).reshape(len(names), 576, len(names), 576)
    for k in range(len(names)):
        wet = root.layout.mask[k].flatten()
        assert float(torch.diagonal(B[k, :, k])[wet].sub(1).abs().max()) < 1e-10
    middle = B[0, 12 * 24 + 12, 0].reshape(24, 24)
    for away in ((12, 15), (15, 12), (9, 12), (10, 10)):
        far = math.hypot(away[0] - 12, away[1] - 12) * 80e3
        assert float(middle[away]) == pytest.approx(matern(far, 320e3, 2), abs=0.04)


STD = {"thetao": [1.0, 0.5, 0.2], "uo": 0.1, "zos": 0.05}


def test_levels_variables_and_corners() -> None:
    """The dense covariance is the vertical correlation times what levels of these masks have in common."""
    layout = small_layout()
    root = DiffusedRoot(layout, STD, {"thetao": [2e6, 2e6, 1e6], "uo": 1e6, "zos": 3e6}, {"thetao": 60.0})
    assert root.size == int(layout.mask.sum())
    L = dense(root)
    B = (L @ L.mT).reshape(7, 96, 7, 96)
    sigma = torch.cat([torch.tensor([1.0, 0.5, 0.2]), torch.full((3,), 0.1), torch.tensor([0.05])]).double()
    for c in range(7):
        wet = layout.mask[c].flatten()
        assert torch.allclose(torch.diagonal(B[c, :, c])[wet], sigma[c] ** 2, rtol=1e-10)
    assert float(B[:3, :, 3:].abs().max()) == 0 and float(B[3:6, :, 6].abs().max()) == 0
    lev = torch.tensor([10.0, 50.0, 200.0]).double()
    Cz = gaspari_cohn((lev[:, None] - lev).abs(), half_width=math.sqrt(10 / 3) * 60.0)
    both = torch.diagonal(B[0, :, 1])[layout.mask[1].flatten()] / 0.5
    assert torch.allclose(both, Cz[0, 1].expand_as(both), rtol=1e-9)  # one mask and length
    deep = torch.diagonal(B[0, :, 2])[layout.mask[2].flatten()] / 0.2
    assert bool((deep.abs() <= Cz[0, 2] + 1e-9).all())


def test_a_vertical_correlation_may_be_given() -> None:
    layout = small_layout()
    C = np.array([[1.0, 0.9, -0.2], [0.9, 1.0, 0.1], [-0.2, 0.1, 1.0]])
    V = vertical_root(layout, 3, C)
    assert np.abs(V @ V.T - C).max() < 1e-12 and np.abs(np.triu(V, 1)).max() == 0
    ones = vertical_root(layout, 3, np.ones((3, 3)))
    assert np.abs(ones @ ones.T - 1).max() < 1e-7
    assert np.array_equal(vertical_root(layout, 3, 0.0), np.eye(3))
    with pytest.raises(ValueError, match="without negative eigenvalues"):
        vertical_root(layout, 3, np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]))
    with pytest.raises(ValueError, match="symmetric vertical correlation"):
        vertical_root(layout, 3, np.eye(2))
    with pytest.raises(ValueError, match="length >= 0"):
        vertical_root(layout, 3, -1.0)


def test_water_below_dry_cells_keeps_its_variance() -> None:
    grid = small_grid()
    wet = grid["wetmask"].values.copy()
    wet[0, 5, 5] = False  # a cavity
    layout = Layout((Field("thetao", 3),), grid.assign_coords(wetmask=(("lev", "lat", "lon"), wet)))
    root = DiffusedRoot(layout, 1.0, 2e6, 100.0)
    assert root.size == int(wet.sum()) + 1
    variance = dense(root).square().sum(1).reshape(layout.shape)
    assert torch.allclose(variance, layout.mask.double(), atol=1e-10)
    with pytest.raises(ValueError, match="no inverse root"):
        root.inverse(torch.zeros(layout.shape, dtype=torch.float64))


def test_time_slots() -> None:
    layout = small_layout((-1, 0))
    same, half = (DiffusedRoot(layout, {"zos": 0.1}, 2e6, between_slots=c) for c in (1.0, 0.5))
    v = torch.randn(same.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = same.apply(v)
    assert torch.equal(x[6], x[13]) and float(x[6].abs().max()) > 0
    L = dense(half)
    B = (L @ L.mT).reshape(14, 96, 14, 96)
    wet = layout.mask[6].flatten()
    assert torch.allclose(torch.diagonal(B[6, :, 13])[wet], torch.tensor(0.005).double(), rtol=1e-9)


@pytest.mark.parametrize("slots", [(0,), (-1, 0)])
def test_it_passes_the_adjoint_check_and_has_an_inverse(slots: tuple[int, ...]) -> None:
    layout = small_layout(slots)
    root = DiffusedRoot(layout, STD, 1.5e6, 80.0, between_slots=0.8)
    report = check_adjoint(root)
    assert report.passed and report.dot_product < 1e-12 and report.tangent == "forward", str(report)
    v = torch.randn(2, 3, root.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = root.apply(v)
    assert x.shape == (2, 3, *layout.shape) and bool((x[..., ~layout.mask] == 0).all())
    assert torch.allclose(root.inverse(x), v, atol=1e-9)
    assert torch.allclose(torch.func.vmap(torch.func.vmap(root.apply))(v), x, atol=1e-12)
    again = pickle.loads(pickle.dumps(root))
    assert torch.equal(again.apply(v), x)
    with pytest.raises(ValueError, match="has no inverse"):
        replace(root, layout=small_layout((-1, 0)), between_slots=1.0, _kept={}).inverse(torch.zeros(14, 8, 12))


def test_normalisations_agree_within_what_they_promise() -> None:
    grid = nature_ocean.globe().grid
    lat, lon = np.meshgrid(grid["lat"], grid["lon"], indexing="ij")
    wet = grid["wetmask"].values[0].astype(bool)
    exact, local, random = (implicit_diffusion(lat, lon, wet, 6e5, normalisation=n) for n in ("exact", "local", 800))
    assert np.abs(local.gain / exact.gain - 1).max() < 0.01
    assert np.abs(random.gain / exact.gain - 1).std() < 1.3 / math.sqrt(2 * 800)
    ones = torch.ones(exact.size, dtype=torch.float64)
    assert float((exact.mean(ones) - 1).abs().max()) < 1e-12
    v = torch.randn(exact.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    area = torch.from_numpy(exact.area)
    assert float((area * exact.mean(v)).sum()) == pytest.approx(float((area * v).sum()), abs=1e-9)


def test_arguments_are_checked() -> None:
    layout = small_layout()
    with pytest.raises(ValueError, match="lengths > 0 m"):
        _ = DiffusedRoot(layout, {"zos": 1.0}, 0.0).size
    with pytest.raises(ValueError, match="no length"):
        _ = DiffusedRoot(layout, {"zos": 1.0}, {"thetao": 1e5}).size
    with pytest.raises(ValueError, match="control vector of"):
        DiffusedRoot(layout, {"zos": 1.0}, 1e6).apply(torch.zeros(3))
    with pytest.raises(ValueError, match="at least 2 random fields"):
        _ = DiffusedRoot(layout, {"zos": 1.0}, 1e6, normalisation=1).size
