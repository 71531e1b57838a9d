"""The taper against the literature, distances, and neighbour lists against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polynya.da import gaspari_cohn, great_circle
from polynya.da.localise import EARTH_RADIUS, LocalObservations, unit_vectors

torch.set_num_threads(1)


def test_taper_at_the_points_of_the_literature():
    z = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, torch.inf], dtype=torch.float64)
    rho = gaspari_cohn(250.0 * z, half_width=250.0)
    # Gaspari and Cohn (1999, eq. 4.10), by hand: 263/384 at 1/2, 5/24 at 1, 19/1152 at 3/2.
    wanted = torch.tensor([1, 263 / 384, 5 / 24, 19 / 1152, 0, 0, 0], dtype=torch.float64)
    assert torch.allclose(rho, wanted, rtol=0, atol=1e-14)
    assert torch.equal(rho, gaspari_cohn(250.0 * z, support=500.0))


def test_taper_is_smooth_and_falls():
    z = torch.linspace(0, 2.2, 2201, dtype=torch.float64, requires_grad=True)
    rho = gaspari_cohn(z, half_width=1.0)
    (slope,) = torch.autograd.grad(rho.sum(), z)
    assert (rho.diff() <= 1e-15).all() and (rho >= 0).all()
    assert (slope.diff().abs() < 5e-3).all()  # no kink at 1 or 2
    assert torch.allclose(slope[1:-1], ((rho[2:] - rho[:-2]) / 0.002).detach(), atol=1e-5)


def test_taper_is_a_correlation_in_space():
    points = unit_vectors(*(np.random.default_rng(0).uniform(-80, 80, (2, 300))))
    chord = torch.from_numpy(np.linalg.norm(points[:, None] - points, axis=-1))
    for half_width in (0.05, 0.3, 1.0):
        assert torch.linalg.eigvalsh(gaspari_cohn(chord, half_width=half_width)).min() > -1e-10
    line = (torch.arange(100.0)[:, None] - torch.arange(100.0)).abs().double()
    assert torch.linalg.eigvalsh(gaspari_cohn(line, half_width=7.3)).min() > -1e-10


def test_taper_can_be_tuned_by_gradient():
    c = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    r = torch.tensor([0.0, 0.4, 1.9, 2.59, 4.0, torch.inf], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: gaspari_cohn(r[:-1], half_width=c), (c,))


def test_taper_wants_one_length():
    r = torch.zeros(1)
    with pytest.raises(ValueError, match="either half_width or support"):
        gaspari_cohn(r)
    with pytest.raises(ValueError, match="either half_width or support"):
        gaspari_cohn(r, half_width=1.0, support=2.0)
    with pytest.raises(ValueError, match="length > 0, got half_width=-1"):
        gaspari_cohn(r, half_width=-1.0)


def test_distances_on_the_sphere():
    quarter = np.pi / 2 * EARTH_RADIUS
    assert np.isclose(great_circle(0, 0, 0, 90), quarter) and np.isclose(great_circle(90, 17, 0, 200), quarter)
    assert np.isclose(great_circle(0, 359, 0, 1), np.radians(2) * EARTH_RADIUS)
    assert np.isclose(great_circle(10, 0, -10, 180), 2 * quarter)
    lat, lon = np.random.default_rng(1).uniform(-90, 90, (2, 50, 2))
    cosine = (unit_vectors(lat[:, 0], lon[:, 0]) * unit_vectors(lat[:, 1], lon[:, 1])).sum(-1)
    np.testing.assert_allclose(
        great_circle(lat[:, 0], lon[:, 0], lat[:, 1], lon[:, 1]), EARTH_RADIUS * np.arccos(cosine), rtol=1e-6
    )
    sector = great_circle(-50, 27.5, -50, 0.5, period=28.0)
    assert np.isclose(sector, great_circle(-50, 0, -50, 1)) and great_circle(-50, 0.5, -50, 27.5, 28.0) == sector


CASES = [
    pytest.param((-88, 88), 360.0, 9e5, id="globe"),
    pytest.param((-54, -45), 28.0, 4e5, id="sector"),
    pytest.param((-54, -45), 28.0, 2.5e6, id="sector wider than itself"),
    pytest.param((-80, 80), 180.0, 3e6, id="half globe"),
    pytest.param((-88, 88), 360.0, 1e9, id="everything"),
]


@pytest.mark.parametrize(("lats", "period", "support"), CASES)
def test_lists_are_those_of_brute_force(lats, period, support):
    rng = np.random.default_rng(2)
    lat, lon = rng.uniform(*lats, 400), rng.uniform(-period, 2 * period, 400)
    at = rng.uniform(*lats, 60), rng.uniform(0, period, 60)
    distance = great_circle(at[0][:, None], at[1][:, None], lat, lon, period)
    for most in (1000, 390, 7):
        near, away = LocalObservations(lat, lon, support, most, period).near(*at)
        assert near.shape == away.shape and near.shape[1] <= most
        for column in range(60):
            wanted = np.argsort(distance[column])[: min(most, (distance[column] <= support).sum())]
            found = np.isfinite(away[column])
            assert np.array_equal(np.sort(near[column][found]), np.sort(wanted))
            np.testing.assert_allclose(away[column][found], np.sort(distance[column])[: len(wanted)], rtol=1e-6)


def test_lists_across_the_seam_and_the_date_line():
    local = LocalObservations(np.array([-50.0, -50.0, -50.0]), np.array([27.8, 0.2, 14.0]), 1e5, 9, 28.0)
    near, away = local.near(np.array([-50.0, -50.0]), np.array([0.05, 27.95]))
    assert {tuple(sorted(row)) for row in near.tolist()} == {(0, 1)} and np.isfinite(away).all()
    assert near[:, 0].tolist() == [1, 0]  # nearest first
    globe = LocalObservations(np.array([0.0, 0.0]), np.array([-179.9, 90.0]), 1e5, 9)
    assert globe.near(np.array([0.0]), np.array([179.9]))[0].tolist() == [[0]]


def test_nobody_near():
    near, away = LocalObservations(np.array([0.0]), np.array([0.0]), 1e5, 9).near(np.array([50.0]), np.array([0.0]))
    assert near.shape == away.shape == (1, 0)
