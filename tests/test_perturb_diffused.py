"""Diffused noise: the Matérn correlation where it is open, full variance at coasts, and nothing across land."""

from __future__ import annotations

import pickle
from math import gamma

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import kv
from small import START, random_state, small_layout

from polynya.emulators import Field, Layout, Noise, gaussian_grid, nature_ice, nature_ocean
from polynya.emulators.grids import EARTH_RADIUS
from polynya.ensembles import Correlated, Diffused, perturb
from polynya.ensembles.diffusion_noise import Diffusion, diffusion, scattered

Array = NDArray[np.float64]

SPACING = 20e3
DEGREES = np.degrees(SPACING / EARTH_RADIUS)


def plane(ny: int = 31, nx: int = 31) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Square cells of 20 km on the equator."""
    lat, lon = np.meshgrid((np.arange(ny) - ny // 2) * DEGREES, np.arange(nx) * DEGREES, indexing="ij")
    return lat, lon, np.ones((ny, nx), bool)


def covariance(operator: Diffusion) -> Array:
    """Dense, (cell, cell): what the operator does to every unit impulse, times its transpose."""
    columns = []
    for j, i in np.argwhere(operator.wet):
        impulse = np.zeros(operator.wet.shape)
        impulse[j, i] = 1.0
        columns.append(operator.sample(impulse)[operator.wet])
    factor = np.stack(columns, 1)
    return np.asarray(factor @ factor.T)


def surface(lat: Array, lon: Array, wet: NDArray[np.bool_]) -> Layout:
    coords = {"lat": lat, "lon": lon, "areacello": np.ones(lat.shape), "wetmask": wet}
    return Layout((Field("zos"),), xr.Dataset(coords={n: (("y", "x"), v) for n, v in coords.items()}))


@pytest.mark.parametrize("solves", [2, 3])
def test_correlation_is_materns_in_the_open(solves: int) -> None:
    length = 4 * SPACING
    dense = covariance(diffusion(*plane(), length, solves=solves))
    nu, scale = 2 * solves - 1, length / np.sqrt(4 * solves - 4)
    origin = 15 * 31 + 15
    for away in [(0, 1), (0, 3), (4, 0), (3, 3), (0, 7), (9, 0)]:
        r = np.hypot(*away) * SPACING / scale
        analytic = 2 ** (1 - nu) / gamma(nu) * r**nu * kv(nu, r)
        assert dense[origin, origin + 31 * away[0] + away[1]] == pytest.approx(analytic, abs=0.02)


def test_the_operator_is_the_dense_one() -> None:
    """Variances from the textbook matrix, assembled face by face and inverted."""
    lat, lon, wet = plane(6, 7)
    wet[2:4, 3] = wet[0, 5] = False
    operator = diffusion(lat, lon, wet, 3 * SPACING)
    number = np.cumsum(wet.ravel()).reshape(wet.shape) - 1
    matrix = np.eye(int(wet.sum()))
    for j, i in np.argwhere(wet):
        for other in ((j + 1, i), (j, i + 1)):
            if other[0] < 6 and other[1] < 7 and wet[other]:
                a, b = number[j, i], number[other]
                matrix[[a, b], [a, b]] += (3 / 2) ** 2
                matrix[[a, b], [b, a]] -= (3 / 2) ** 2
    inverse = np.linalg.inv(matrix)
    wanted = inverse @ inverse @ inverse @ inverse
    spread = np.sqrt(np.diag(wanted))
    assert np.abs(covariance(operator) - wanted / spread[:, None] / spread).max() < 1e-4  # cos(lat) is not quite 1


def test_unit_variance_in_every_wet_cell() -> None:
    lat, lon, wet = plane(15, 20)
    wet[4:9, 6:9] = wet[10, :7] = wet[11:, 12] = False
    assert np.diag(covariance(diffusion(lat, lon, wet, 4 * SPACING))) == pytest.approx(1.0, abs=1e-9)
    layout = small_layout()
    many = tuple(range(2000))
    drawn = Diffused(3e6, 60.0).draw(layout, many, START, Noise(1))
    assert (drawn[:, ~layout.mask] == 0).all()
    assert float((drawn.std(0)[layout.mask] - 1).abs().max()) < 5 / np.sqrt(2 * len(many))


def test_shared_solves_find_the_same_variance() -> None:
    """Impulses that share a solve, on the sphere and around land, within 2 % of one solve for each cell."""
    grid = gaussian_grid(44, 90)
    lat, lon = grid["lat"].values, grid["lon"].values
    wet = np.ones(lat.shape, bool)
    wet[10:30, 20:35] = wet[36, :60] = wet[:4] = False
    exact, shared = (diffusion(lat, lon, wet, 1.0e6, exact=n) for n in (10**6, 0))
    assert (shared.deviation / exact.deviation) ** 2 == pytest.approx(1.0, abs=0.02)


def test_groups_are_apart_and_complete() -> None:
    where = np.random.default_rng(0).normal(size=(200, 3))
    groups = list(scattered(where, 1.5))
    assert sorted(np.concatenate(groups)) == list(range(200))
    for group in groups:
        distance = np.linalg.norm(where[group][:, None] - where[group], axis=-1)
        assert (distance[~np.eye(len(group), dtype=bool)] >= 1.5).all()


def test_nothing_crosses_an_isthmus_of_one_cell() -> None:
    lat, lon, wet = plane(11, 21)
    wet[:, 10] = False
    dense = covariance(diffusion(lat, lon, wet, 4 * SPACING))
    west = np.argwhere(wet)[:, 1] < 10
    assert np.abs(dense[np.ix_(west, ~west)]).max() == 0
    many, layout = tuple(range(3000)), surface(lat, lon, wet)
    apart, leaking = (
        kind.draw(layout, many, START, Noise(0))[:, 0, 5, [9, 11]].T.corrcoef()[0, 1]
        for kind in (Diffused(4 * SPACING), Correlated(4 * SPACING / np.sqrt(2)))
    )
    assert abs(float(apart)) < 0.06 and float(leaking) > 0.7


def test_a_strait_lets_correlation_through() -> None:
    lat, lon, wet = plane(11, 21)
    wet[:5, 10] = wet[6:, 10] = False
    dense = covariance(diffusion(lat, lon, wet, 4 * SPACING))
    cells = [tuple(c) for c in np.argwhere(wet)]
    assert dense[cells.index((5, 9)), cells.index((5, 11))] > 0.5
    assert dense[cells.index((0, 9)), cells.index((0, 11))] < 0.1


def test_metric_distances_on_a_globe_and_around_it() -> None:
    """On a grid whose cells narrow poleward correlation is one function of distance."""
    layout = nature_ocean.globe().layout.select(["zos"])
    operator = Diffused(2.0e6).prepare(layout)[0][0]
    dense, lat = covariance(operator), layout.position(layout.fields[0])[0]
    cells = [tuple(c) for c in np.argwhere(operator.wet)]
    for row in (5, 18):
        columns = [c for c in range(90) if all(operator.wet[row, (c + k) % 90] for k in range(4))]
        seen = [dense[cells.index((row, c)), cells.index((row, (c + 3) % 90))] for c in columns]
        r = 3 * 4 * np.radians(1) * np.cos(np.radians(lat[row, 0])) * EARTH_RADIUS
        assert np.median(seen) == pytest.approx(2**-2 / 2 * (r / 1e6) ** 3 * kv(3, r / 1e6), abs=0.06)


def test_the_first_column_follows_the_last_where_the_ocean_is_periodic() -> None:
    layout = nature_ocean.channel().layout.select(["zos"])
    drawn = Diffused(75e3).draw(layout, tuple(range(500)), START, Noise(2))[:, 0, 30]
    assert float((drawn[:, 79] * drawn[:, 0]).mean()) == pytest.approx(
        float((drawn[:, 20] * drawn[:, 21]).mean()), abs=0.1
    )
    lat, lon, wet = plane(5, 40)  # a box is not
    assert abs(covariance(diffusion(lat, lon, wet, 6e4))[0, 39]) < 1e-3


def test_correlation_crosses_the_fold_of_a_tripolar_grid() -> None:
    """A polar cap cut in half and unfolded into one row after the other is still the cap."""
    y, x = (np.arange(12) - 5.5) * 2e5, (np.arange(9) - 4) * 2e5
    east, up = np.meshgrid(x, y)
    lat, lon = 90 - np.degrees(2 * np.arctan(np.hypot(east, up) / (2 * EARTH_RADIUS))), np.degrees(np.arctan2(up, east))
    cap = diffusion(lat, lon, np.ones(lat.shape, bool), 6e5)

    def unfolded(field: Array, between: object) -> Array:
        """(6, 19): the lower half, a column of land, and the upper half turned around."""
        return np.concatenate([field[:6], np.full((6, 1), between), field[:5:-1, ::-1]], 1)

    wet = unfolded(np.ones(lat.shape, bool), False)
    tripolar = diffusion(unfolded(lat, np.nan), unfolded(lon, np.nan), wet, 6e5)
    order = unfolded(np.arange(lat.size).reshape(lat.shape), -1)[wet]
    assert covariance(tripolar) == pytest.approx(covariance(cap)[np.ix_(order, order)], abs=1e-9)
    assert covariance(tripolar)[wet.ravel()[: 5 * 19].sum() + 4, -5] > 0.8  # either side of the pole


def test_curvilinear_grids_with_corners_and_nan_on_land() -> None:
    layout = nature_ice.arctic(16, 80e3).layout
    drawn = Diffused(3e5).draw(layout, tuple(range(800)), START, Noise(2))
    assert float((drawn.std(0)[layout.mask] - 1).abs().max()) < 5 / np.sqrt(1600)
    lat, lon, wet = plane(8, 8)
    wet[2:5, 2:5] = False
    holed = np.where(wet, lat, np.nan), np.where(wet, lon, np.nan)
    assert covariance(diffusion(*holed, wet, 5e4)) == pytest.approx(covariance(diffusion(lat, lon, wet, 5e4)), abs=0.05)


def test_members_are_independent_of_each_other_and_of_their_batch() -> None:
    layout = small_layout().select(["thetao"])
    kind = Diffused(1e6)
    drawn = kind.draw(layout, tuple(range(1500)), START, Noise(3))[:, layout.mask]
    rho = torch.corrcoef(drawn)
    assert abs(float(rho.diagonal(1).mean())) < 0.02
    assert abs(float((rho.sum() - 1500) / (1500 * 1499))) < 0.02
    state = random_state(small_layout(), (0,))
    for batch in ((7,), (3, 7, 1), tuple(range(32))):
        one = perturb(state, batch, amplitude={"thetao": 0.1, "uo": 0.1}, noise=Noise(3), kind=Diffused(2e6, 50.0))
        alone = perturb(state, (7,), amplitude={"thetao": 0.1, "uo": 0.1}, noise=Noise(3), kind=Diffused(2e6, 50.0))
        assert torch.equal(one.sel((7,)).data, alone.data)


def test_levels_are_correlated_if_a_depth_is_given() -> None:
    layout, many = small_layout(), tuple(range(1500))
    deep, flat = (Diffused(1e6, d).draw(layout, many, START, Noise(1)) for d in (1000.0, 0.0))
    assert float((deep[:, 0, 6, 6] * deep[:, 1, 6, 6]).mean()) > 0.9
    assert abs(float((flat[:, 0, 6, 6] * flat[:, 1, 6, 6]).mean())) < 0.1


def test_a_level_without_water_is_dry() -> None:
    grid = small_layout().grid.copy(deep=True)
    grid["wetmask"][2] = False
    layout = Layout((Field("thetao", 3),), grid)
    kind = Diffused(1e6, 100.0)
    drawn = kind.draw(layout, tuple(range(300)), START, Noise(0))
    assert kind.prepare(layout)[0][2] is None and (drawn[:, 2] == 0).all()
    assert float((drawn.std(0)[layout.mask] - 1).abs().max()) < 5 / np.sqrt(600)


def test_operators_are_kept_shared_and_not_pickled() -> None:
    kind, layout = Diffused(1e6), small_layout()
    first, again = kind.prepare(layout), kind.prepare(layout)
    assert first[0][0] is again[0][0] and first[0][0] is first[0][1]  # two levels have one mask
    assert first[2][0] is first[0][0] and first[1][0] is not first[0][0]  # corners lie elsewhere
    assert pickle.loads(pickle.dumps(kind)) == kind == Diffused(1e6)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="length > 0 m and solves >= 2, got 0"):
        Diffused(0.0)
    with pytest.raises(ValueError, match="solves >= 2, got 100000.0 and 1"):
        Diffused(1e5, solves=1)
    lat, lon, wet = plane(4, 4)
    with pytest.raises(ValueError, match=r"0.0 m apart; wanted distinct finite `lat` and `lon`"):
        diffusion(0 * lat, 0 * lon, wet, 1e5)
    with pytest.raises(ValueError, match="at least one wet cell"):
        diffusion(lat, lon, ~wet, 1e5)
