"""Orbits against what is known of them, tracks and swaths on grids, and clouds."""

from __future__ import annotations

from datetime import timedelta

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from polynya.da import ObservationError, SurfaceField, great_circle, observe, observe_state, operator_for
from polynya.da.observations import Derived
from polynya.da.orbits import AQUA, CRYOSAT, JASON, SENTINEL3, SMOS, SWOT, Orbit
from polynya.da.satellites import Altimeter, Clouds, LinearError, Swath
from polynya.emulators import Field, Layout, Noise, State, samples

torch.set_num_threads(1)
DAY = timedelta(days=1)
NOW = cftime.DatetimeNoLeap(2001, 3, 1)
GLOBE, CHANNEL, ARCTIC = (samples.nature(n).layout for n in ("globe", "channel", "arctic"))
ORBITS = {"jason": JASON, "swot": SWOT, "sentinel3": SENTINEL3, "cryosat": CRYOSAT, "smos": SMOS, "aqua": AQUA}
each_orbit = pytest.mark.parametrize("orbit", ORBITS.values(), ids=ORBITS.keys())


def flat_truth(layout, value=1.0, time=NOW):
    data = value * layout.mask[None].to(torch.float64)
    return State(data, time, layout, (0,))


# --- orbits --------------------------------------------------------------------------------------


@each_orbit
def test_an_orbit_precesses_as_the_oblate_earth_makes_it(orbit):
    """Kepler's third law and the secular rate of the node by J2 give the nodal day that is declared."""
    mu, radius, j2, sidereal = 3.986004e14, 6.378137e6, 1.08263e-3, 86164.1
    n = 2 * np.pi / orbit.period
    a = (mu / n**2) ** (1 / 3)
    node = -1.5 * j2 * n * (radius / a) ** 2 * np.cos(np.radians(orbit.inclination))
    nodal_day = 2 * np.pi / (2 * np.pi / sidereal - node)
    assert orbit.repeat.total_seconds() / orbit.turns == pytest.approx(nodal_day, rel=3e-4)


@each_orbit
def test_the_track_reaches_its_inclination_and_repeats(orbit):
    t = np.linspace(0, orbit.period, 20001)
    lat, lon = orbit.point(t)
    assert lat.max() == pytest.approx(min(orbit.inclination, 180 - orbit.inclination), abs=1e-5)
    assert lat.min() == pytest.approx(-lat.max(), abs=1e-5)
    again = orbit.point(t + orbit.repeat.total_seconds())
    assert great_circle(lat, lon, *again).max() < 1.0
    half = orbit.point(t + orbit.repeat.total_seconds() / 2)
    assert great_circle(lat, lon, *half).max() > 1e4


@each_orbit
def test_nodes_follow_each_other_to_the_west(orbit):
    lat, lon = orbit.point(orbit.period * np.arange(5) + 10 * orbit.repeat.total_seconds())
    assert np.abs(lat).max() < 1e-4
    spacing = 360.0 * orbit.turns / orbit.revolutions  # = period * (rotation of the Earth relative to the plane)
    np.testing.assert_allclose((-np.diff(lon)) % 360, spacing, atol=1e-4)
    lat, lon = orbit.point(orbit.period * np.arange(orbit.revolutions))
    np.testing.assert_allclose(np.diff(np.sort(lon)), 360.0 / orbit.revolutions, atol=1e-4)  # an even net in the end


@pytest.mark.parametrize("spacing", [7e3, 5e4])
def test_points_are_a_spacing_apart_and_windows_join(spacing):
    first = JASON.samples(NOW, 2 * DAY, spacing)
    lat, lon = JASON.point(first)
    apart = great_circle(lat[1:], lon[1:], lat[:-1], lon[:-1])
    assert (np.abs(apart / spacing - 1) < 0.08).all()  # the Earth turns 0.46 km/s below 5.9 km/s of the nadir
    assert len(first) == pytest.approx(2 * 86400 / JASON.period * 2 * np.pi * 6.371e6 / spacing, abs=20)
    parts = [JASON.samples(NOW - DAY, DAY, spacing), JASON.samples(NOW, DAY, spacing)]
    assert np.array_equal(np.concatenate(parts), first)


def test_points_across_are_square_to_the_orbit():
    t = np.linspace(0, JASON.period, 500)[:, None]
    across = np.array([-6e4, -1e4, 0.0, 1e4, 6e4])
    lat, lon = JASON.point(t, across)
    nadir = JASON.point(t)
    np.testing.assert_allclose(great_circle(lat, lon, *nadir), np.abs(np.broadcast_to(across, lat.shape)), atol=1e-2)
    going_north = (t[:, 0] < 0.2 * JASON.period) & (t[:, 0] > 0)
    assert (((lon[:, -1] - lon[:, 0] + 180) % 360 - 180)[going_north] < 0).all(), "left of a flight to the north-east"


# --- tracks --------------------------------------------------------------------------------------


def test_an_altimeter_sees_every_pass_of_its_window():
    altimeter = Altimeter(window=timedelta(days=9.9156), spacing=1e5, timed=True)
    obs = altimeter.places(GLOBE, NOW, Noise(0))
    assert len(set(obs.group)) in (254, 255), "half revolutions of a cycle, the first and last may be parts of one"
    assert np.abs(obs.lat).max() < 66.1 and obs.offset.min() > -86400 * 9.9157 and obs.offset.max() <= 0
    since = (NOW - cftime.DatetimeNoLeap(2000, 1, 1)).total_seconds()
    for g in np.unique(obs.group)[[5, 100]]:
        one = obs.select(obs.group == g)
        assert len(set(np.sign(np.diff(one.lat)))) == 1 and np.ptp(one.offset) < JASON.period / 2
        np.testing.assert_allclose(one.lat, JASON.point(since + one.offset)[0], atol=1e-6)
    later = altimeter.places(GLOBE, NOW + timedelta(days=9.9156), Noise(1))
    assert len(later) == pytest.approx(len(obs), abs=1), "the same track again"
    operator_for(GLOBE, obs)  # all in water
    assert not Altimeter(window=DAY, spacing=1e5).places(GLOBE, NOW, Noise(0)).offset.any()


def test_a_sector_sees_its_own_longitudes_once():
    obs = Altimeter(window=timedelta(days=9.9156)).places(CHANNEL, NOW, Noise(0))
    world = JASON.point(JASON.samples(NOW, timedelta(days=9.9156), 7e3))
    inside = (world[0] > CHANNEL.grid.lat.values.min() - 0.1125) & (world[0] < CHANNEL.grid.lat.values.max() + 0.1125)
    inside &= world[1] % 360 < 28.0
    assert 0.85 * inside.sum() < len(obs) <= inside.sum(), "less the walls and the island"
    assert obs.lon.min() >= 0 and obs.lon.max() < 28
    assert len(set(obs.group)) == pytest.approx(254 * 28 / 360 * 1.3, rel=0.35), "tracks slant"


@pytest.mark.parametrize("west", [-30.0, 175.0])
def test_a_region_sees_what_crosses_it(west):
    lat, lon = np.linspace(30.0, 50.0, 21), west + np.arange(21.0)
    coords = {"lat": lat, "lon": lon, "wetmask": (("lat", "lon"), np.ones((21, 21)))}
    area = 1.2e10 * np.cos(np.radians(lat))[:, None] * np.ones(21)
    layout = Layout((Field("zos"),), xr.Dataset(coords=coords | {"areacello": (("lat", "lon"), area)}))
    obs = Altimeter(spacing=2e4).places(layout, NOW, Noise(0))
    world = JASON.point(JASON.samples(NOW, 5 * DAY, 2e4))
    inside = (np.abs(world[0] - 40) <= 10.5) & (((world[1] - west + 0.5) % 360) <= 21)
    assert len(obs) == inside.sum() > 100


def test_passes_can_have_correlated_errors_and_times():
    altimeter = Altimeter("zos", 0.05, spacing=3e4, length=2e5, timed=True)
    errors = []
    for k in range(60):
        states = [flat_truth(CHANNEL, 1.0, NOW + (5 * k + d) * DAY) for d in (0, 5)]
        obs = next(observe(states, altimeter, Noise(k)))
        errors += [(obs.value - 1.0)[obs.group == g] for g in np.unique(obs.group)]
    neighbours = np.concatenate([np.stack([e[1:], e[:-1]]) for e in errors if len(e) > 1], 1)
    assert np.std(np.concatenate(errors)) == pytest.approx(0.05, rel=0.1)
    assert np.corrcoef(neighbours)[0, 1] == pytest.approx(np.exp(-3e4 / 2e5), abs=0.03)
    assert (obs.length == 2e5).all()


def test_ice_thickness_is_seen_where_there_is_ice():
    thick = 2.0 * (torch.arange(64) < 32).to(torch.float64)[:, None].expand(64, 64)
    truth = flat_truth(ARCTIC)
    truth = truth.replace(data=truth.data * thick)
    seen = observe_state(truth, Altimeter("sithick", LinearError(0.1, 0.2, least=0.05), CRYOSAT, spacing=1e4), Noise(0))
    assert len(seen) > 1000 and seen.error == pytest.approx(0.5)
    assert abs(seen.value.mean() - 2) < 4 * 0.5 / np.sqrt(len(seen))
    assert seen.lat.max() < 88.2, "the hole at the pole"


def test_a_derived_quantity_can_be_seen_from_space():
    freeboard = Derived("freeboard", ("sithick", "siconc"), lambda h, c: 0.1 * h * c, "m")
    seen = observe_state(flat_truth(ARCTIC, 3.0), Altimeter(freeboard, 1e-6, CRYOSAT, spacing=5e4), Noise(0))
    np.testing.assert_allclose(seen.value, 0.9, atol=1e-5)
    with pytest.raises(ObservationError, match="no field sithick"):
        Altimeter(freeboard).places(GLOBE, NOW, Noise(0))


# --- swaths --------------------------------------------------------------------------------------


def test_a_wide_swath_has_two_halves_beside_its_nadir():
    swath = Swath("zos", 0.02, SWOT, width=1.2e5, gap=2e4, spacing=1e4, across=5e3, timed=True)
    obs = swath.places(CHANNEL, NOW, Noise(0))
    nadir = SWOT.point((NOW - cftime.DatetimeNoLeap(2000, 1, 1)).total_seconds() + obs.offset)
    away = great_circle(obs.lat, obs.lon, *nadir)
    assert away.min() == pytest.approx(12.5e3, abs=10) and away.max() == pytest.approx(57.5e3, abs=10)
    assert len(np.unique(np.round(away, -2))) == 10
    operator_for(CHANNEL, obs)
    whole = Swath("siconc", 0.1, AQUA, width=1.45e6, spacing=5e4, window=DAY).places(ARCTIC, NOW, Noise(0))
    assert len({(round(a, 2), round(b, 2)) for a, b in zip(whole.lat, whole.lon, strict=True)}) > 1000


def test_roll_is_linear_across_correlated_along_and_told_as_variance():
    swath = Swath(
        "zos", 1e-6, SWOT, width=1.2e5, gap=2e4, spacing=2e4, roll=0.04, length=3e5, timed=True, correlated=True
    )
    edges, lagged, told = [], [], []
    for k in range(60):
        states = [flat_truth(CHANNEL, 0.0, NOW + (5 * k + d) * DAY) for d in (0, 5)]
        obs = next(observe(states, swath, Noise(k)))
        told.append(obs.error)
        # Lines across the track that are whole: linear in the distance, with the sign changing sides.
        _, line = np.unique(obs.offset, return_inverse=True)
        whole = [np.flatnonzero(line == n) for n in np.flatnonzero(np.bincount(line) == 4)]
        values = np.stack([obs.value[rows] for rows in whole])
        x = swath._distances() / 6e4
        np.testing.assert_allclose(values, values[:, -1:] / x[-1] * x, atol=1e-5)
        roll, when = values[:, -1] / x[-1], np.array([obs.offset[rows[0]] for rows in whole])
        follows = np.abs(np.diff(when) - SWOT.period * 2e4 / (2 * np.pi * 6.371e6)) < 0.1
        edges.append(roll)
        lagged.append(np.stack([roll[1:], roll[:-1]])[:, follows])
    assert np.std(np.concatenate(edges)) == pytest.approx(0.04, rel=0.1)
    assert np.corrcoef(np.concatenate(lagged, 1))[0, 1] == pytest.approx(np.exp(-2e4 / 3e5), abs=0.03)
    np.testing.assert_allclose(np.concatenate(told), 0.04 * np.sqrt(np.mean(x**2)))
    assert (obs.length == 3e5).all()


def test_wrong_satellites_are_named():
    for make, message in (
        (lambda: Orbit(190.0, 1, 1, DAY), "0 < inclination < 180"),
        (lambda: Altimeter(spacing=0.0), "Altimeter: .* spacing > 0"),
        (lambda: Altimeter(error=0.0), "Altimeter: wanted an error > 0"),
        (lambda: Swath(gap=2e5), "0 <= gap < width"),
        (lambda: Swath(roll=0.1), "finite length"),
        (lambda: Clouds(SurfaceField(), cover=1.0), "0 <= cover < 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ObservationError, match="no field sithick to observe; the truth has thetao"):
        Altimeter("sithick").places(GLOBE, NOW, Noise(0))


# --- clouds --------------------------------------------------------------------------------------


def test_clouds_cover_their_share_and_hang_together():
    sst = SurfaceField("thetao", stride=2)
    everything = len(sst.places(GLOBE, NOW, Noise(0)))
    clouds = Clouds(sst, cover=0.7, scale=1e6)
    seen = [clouds.places(GLOBE, NOW + k * DAY, Noise(1)) for k in range(300)]
    share = np.array([len(o) for o in seen]) / everything
    assert abs(share.mean() - 0.3) < 4 * share.std() / np.sqrt(300) and share.std() < 0.1
    o = clouds.places(GLOBE, NOW, Noise(1))
    both = {(a, b) for a, b in zip(o.lat, o.lon, strict=True)}
    beside = np.mean([((a, b + 8.0) in both) for a, b in both if abs(a) < 30])  # 8 degrees: less than the scale
    assert beside > 0.55, "by chance it would be 0.3"
    assert np.array_equal(o.lat, clouds.places(GLOBE, NOW, Noise(1)).lat)
    twice = Clouds(Clouds(sst, cover=0.5), cover=0.5)
    kept = np.mean([len(twice.places(GLOBE, NOW + k * DAY, Noise(1))) for k in range(100)]) / everything
    assert kept == pytest.approx(0.25, abs=0.03), "other clouds"


def test_clouds_can_last():
    points = SurfaceField("thetao", stride=2).places(GLOBE, NOW, Noise(0))
    lasting = Clouds(SurfaceField("thetao", stride=2), scale=1e6, memory=10 * DAY)

    def correlation(days):
        a, b = (lasting._field(points, NOW + d * DAY, Noise(1)) for d in (0, days))
        return np.corrcoef(a, b)[0, 1]

    assert correlation(1) > 0.97 and abs(correlation(60)) < 0.35
    assert correlation(10) == pytest.approx(np.exp(-0.5), abs=0.2)
