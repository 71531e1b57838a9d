"""Observations, the operator H against SciPy and by its adjoint, and observing networks."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
from scipy.interpolate import RegularGridInterpolator

from polynya.da import (
    ObservationError,
    Observations,
    Profiles,
    RandomPoints,
    SurfaceField,
    observe,
    observe_state,
    operator_for,
)
from polynya.emulators import Field, Layout, LayoutError, Noise, State

torch.set_num_threads(1)
DAY = cftime.DatetimeNoLeap(2000, 1, 6)
LEV = np.array([25.0, 90.0, 200.0, 400.0])
DZ = np.array([50.0, 80.0, 140.0, 260.0])


def layout_on(lat, lon, *, wet=None, period=None, slots=(0,), fields=None):
    shape = (len(LEV), len(lat), len(lon))
    coords = {
        "lat": ("lat", lat),
        "lon": ("lon", lon),
        "lev": ("lev", LEV),
        "dz": ("lev", DZ),
        "areacello": (("lat", "lon"), np.cos(np.radians(lat))[:, None] * np.ones(len(lon))),
        "wetmask": (("lev", "lat", "lon"), np.ones(shape, bool) if wet is None else wet),
        "wetmask_corner": (("lev", "lat", "lon"), np.ones(shape, bool) if wet is None else wet),
        "lat_corner": ("lat", lat + (lat[1] - lat[0]) / 2),
        "lon_corner": ("lon", lon + (lon[1] - lon[0]) / 2),
    }
    grid = xr.Dataset(coords=coords, attrs={"zonal_period": period} if period else {})
    return Layout(fields or (Field("thetao", 4), Field("uo", 4, "corner"), Field("zos")), grid, slots)


REGION = layout_on(np.linspace(-54.0, -45.0, 10), np.linspace(10.0, 21.0, 12))
SECTOR = layout_on(np.linspace(-54.0, -45.0, 10), 0.5 + np.arange(28.0), period=28.0)


def state_of(layout, members=(0, 1, 2), seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    data = torch.randn((len(members), *layout.shape), generator=g, dtype=dtype) * layout.mask
    return State(data, DAY, layout, tuple(members))


def table(p=5, **changes):
    columns = {"variable": "thetao", "lat": np.linspace(-52, -47, p), "lon": np.linspace(11, 19, p)}
    columns |= {"depth": 30.0, "value": np.arange(float(p)), "error": 0.5}
    return Observations.from_table(DAY, columns | changes)


def with_land(layout):
    wet = np.ones((4, *layout.shape[1:]), bool)
    wet[:, 3:6, 4:8] = False
    wet[2:, :, :3] = False
    return layout_on(layout.grid["lat"].values, layout.grid["lon"].values, wet=wet)


# --- values --------------------------------------------------------------------------------------


def test_scalars_stand_for_all_rows_and_arrays_are_kept():
    obs = table(3, kind="sst")
    assert len(obs) == 3 and obs.error.tolist() == [0.5] * 3 and obs.kind.tolist() == ["sst"] * 3
    assert repr(obs) == "Observations(2000-01-06 00:00:00: 3 sst thetao)"
    assert len(table(0)) == 0 and repr(table(0)).endswith("none)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lat": np.zeros(4)}, r"one length .*'lat': \(4,\)"),
        ({"value": np.array([0, np.nan, 1, np.nan, 2])}, "value must be a finite .* 2 of 5 .* number 1 .*thetao"),
        ({"error": np.array([1, 1, 0.0, 1, 1])}, "error must be .* > 0: 1 of 5 .* number 2"),
        ({"depth": -3.0}, "positive down"),
        ({"lat": 91.0}, "within"),
        ({"value": np.zeros((5, 1))}, "one length"),
    ],
)
def test_malformed_observations_are_named(changes, message):
    with pytest.raises(ObservationError, match=message):
        table(5, **changes)


def test_select_and_concat():
    obs = table(5)
    even = obs.select(np.arange(5) % 2 == 0)
    assert even.value.tolist() == [0, 2, 4]
    both = Observations.concat([even, obs.select(np.array([3, 1]))])
    assert both.value.tolist() == [0, 2, 4, 3, 1] and both.time == DAY
    assert len(obs.select(np.array([]))) == 0
    with pytest.raises(ObservationError, match=r"mask of shape \(5,\), got \(4,\)"):
        obs.select(np.ones(4, bool))
    with pytest.raises(ObservationError, match=r"one time, got .*2000-01-06.*2001"):
        Observations.concat([obs, obs.replace(time=DAY.replace(year=2001))])
    with pytest.raises(ObservationError, match="none at all"):
        Observations.concat([])


def test_dataset_round_trip():
    obs = table(4, kind="profile")
    dataset = obs.to_dataset()
    assert dataset["value"].dims == ("observation",) and dataset["depth"].attrs["positive"] == "down"
    again = Observations.from_table(DAY, dataset)
    for name in ("variable", "kind", "lat", "lon", "depth", "value", "error"):
        assert np.array_equal(getattr(again, name), getattr(obs, name))


def test_a_table_without_a_column_says_which():
    with pytest.raises(ObservationError, match=r"lacks the column\(s\) lon, error; it has variable, lat, value"):
        Observations.from_table(DAY, {"variable": "zos", "lat": [0.0], "value": [1.0]})


# --- H -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("name", ["thetao", "uo"])
def test_operator_is_scipys_interpolation_where_all_is_wet(name, flip):
    lat = REGION.grid["lat"].values
    layout = layout_on(lat[::-1].copy() if flip else lat, REGION.grid["lon"].values)
    state, rng = state_of(layout), np.random.default_rng(1)
    rows, columns = layout.position(layout.field(name))
    axes = [rows[:, 0], columns[0]]
    lat, lon, depth = (rng.uniform(min(a), max(a), 60) for a in (*axes, LEV))
    seen = operator_for(layout, table(60, variable=name, lat=lat, lon=lon, depth=depth)).apply(state)
    for m, values in enumerate(state[name].numpy()):
        wanted = RegularGridInterpolator((LEV, *axes), values)(np.stack([depth, lat, lon], 1))
        np.testing.assert_allclose(seen[m].numpy(), wanted, rtol=0, atol=1e-12)


def test_a_sector_repeats_and_so_does_the_globe():
    state = state_of(SECTOR)
    lon = np.array([27.9, 0.1, 14.0])
    seen = operator_for(SECTOR, table(3, lon=lon)).apply(state)
    assert torch.allclose(seen, operator_for(SECTOR, table(3, lon=lon - 28.0)).apply(state), atol=1e-12)
    last, first = (state["thetao"][:, :, 2:4, i] for i in (-1, 0))
    middle = operator_for(SECTOR, table(2, lat=-52.0, lon=28.0, depth=25.0)).apply(state)[:, 0]
    assert torch.allclose(middle, (last + first)[:, 0, 0] / 2)
    globe = layout_on(np.linspace(-60.0, 60.0, 13), np.arange(0.0, 360.0, 10.0))
    state = state_of(globe)
    west, east = (operator_for(globe, table(1, lat=7.0, lon=x)).apply(state) for x in (-3.0, 357.0))
    assert torch.allclose(west, east, atol=1e-12)


def test_dot_product_linearity_and_gradient():
    layout = with_land(REGION)
    obs = RandomPoints("thetao", 1.0, count=40).places(layout, DAY, Noise(3))
    H, x = operator_for(layout, obs), state_of(layout)
    x.data.requires_grad_()
    y = torch.randn(3, 40, dtype=torch.float64)
    Hx = H.apply(x)
    (adjoint,) = torch.autograd.grad((Hx * y).sum(), x.data)
    dx = state_of(layout, seed=5)
    assert torch.allclose((H.apply(dx) * y).sum(), (dx.data * adjoint).sum(), rtol=1e-12)
    both = x.replace(data=2 * x.data - 3 * dx.data)
    assert torch.allclose(H.apply(both), 2 * Hx - 3 * H.apply(dx), atol=1e-12)
    assert not adjoint[:, ~layout.mask].any()
    assert torch.equal(H.apply(x.sel([2]))[0], Hx[2])  # a member does not depend on its batch


def test_next_to_land_only_water_is_seen():
    layout = with_land(REGION)
    state = state_of(layout)
    profile = torch.linspace(20, 2, 4, dtype=torch.float64)
    data = torch.full_like(state.data, torch.nan)
    data[:, :4] = profile[:, None, None]
    data[:, ~layout.mask] = torch.nan
    lat, lon = np.array([-51.2, -50.6, -49.0, -52.0]), np.array([13.6, 13.4, 17.5, 11.2])
    obs = table(4, lat=lat, lon=lon, depth=np.array([25.0, 145.0, 150.0, 145.0]))
    seen = operator_for(layout, obs).apply(state.replace(data=data))
    wanted = np.interp(obs.depth, LEV, profile.numpy())
    wanted[3] = profile[1]  # below is the sea floor: the level above stands alone
    np.testing.assert_allclose(seen[0].numpy(), wanted, atol=1e-12)


def test_an_observation_that_is_nowhere_is_an_error_or_dropped():
    layout = with_land(REGION)
    # in water, on land, west of the region, below the bottom, above the first level
    lat, lon = np.array([-47.0, -50.0, -47.0, -47.0, -47.0]), np.array([19.0, 15.5, 9.0, 19.0, 19.0])
    depth = np.array([30.0, 30.0, 30.0, 600.0, 0.0])
    obs = table(5, lat=lat, lon=lon, depth=depth)
    with pytest.raises(
        ObservationError, match=r"wet point around them .*: 3 of 5 are not, the first is number 1 .*-50"
    ):
        operator_for(layout, obs)
    H = operator_for(layout, obs, drop=True)
    assert H.observations.value.tolist() == [0, 4]
    state = state_of(layout)
    assert H.apply(state).shape == (3, 2)
    assert torch.allclose(H.apply(state)[:, 1], state["thetao"][:, 0, 7, 9])  # 0 m: the first level


def test_the_newest_slot_is_observed_and_a_foreign_state_refused():
    layout = layout_on(REGION.grid["lat"].values, REGION.grid["lon"].values, slots=(-1, 0))
    state = state_of(layout)
    obs = table(1, variable="zos", lat=-54.0, lon=10.0)
    H = operator_for(layout, obs)
    assert torch.equal(H.apply(state), state.data[:, layout.channels("zos", -1)][:, :, 0, 0])
    with pytest.raises(LayoutError, match="observation operator: state"):
        H.apply(state_of(REGION))
    with pytest.raises(ObservationError, match=r"no field\(s\) siconc to observe; the state has thetao"):
        operator_for(layout, table(1, variable="siconc"))


def test_curvilinear_grids_use_the_nearest_wet_cell():
    lat, lon = np.meshgrid(np.linspace(60.0, 80.0, 11), np.linspace(0.0, 40.0, 21), indexing="ij")
    lat = lat + 0.02 * lon  # a tilted grid
    wet = np.ones((11, 21), bool)
    wet[5, 10] = False
    spacing = {"areacello": (("y", "x"), np.full((11, 21), 2.2e5**2)), "wetmask": (("y", "x"), wet)}
    layout = Layout((Field("zos"),), xr.Dataset(coords={"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)} | spacing))
    state = state_of(layout)
    obs = table(
        2, variable="zos", lat=np.array([lat[3, 4] + 0.1, lat[5, 10]]), lon=np.array([lon[3, 4], lon[5, 10] + 0.2])
    )
    seen = operator_for(layout, obs).apply(state)
    assert torch.equal(seen[:, 0], state["zos"][:, 0, 3, 4])
    assert torch.equal(seen[:, 1], state["zos"][:, 0, 5, 11])
    assert len(operator_for(layout, table(1, variable="zos", lat=0.0, lon=0.0), drop=True).observations) == 0
    assert len(observe_state(state.sel([0]), RandomPoints("zos", 0.1, count=7), Noise(1))) == 7


# --- networks ------------------------------------------------------------------------------------


NETWORK = (
    RandomPoints("zos", 0.02, count=30, kind="altimeter"),
    SurfaceField("thetao", 0.4, stride=2, coverage=0.5, kind="sst"),
    Profiles(6, {"thetao": 0.1}, max_depth=250.0),
)


def test_a_network_reads_the_truth_with_its_errors():
    truth = state_of(with_land(REGION), members=(0,))
    obs = observe_state(truth, NETWORK, Noise(4))
    kinds = dict(zip(*np.unique(obs.kind, return_counts=True), strict=True))
    assert kinds["altimeter"] == 30 and kinds["sst"] > 5
    profiles = obs.select(obs.kind == "profile")
    assert set(profiles.depth) <= {25.0, 90.0, 200.0} and len(set(profiles.lat)) == 6
    many = RandomPoints("thetao", 0.3, fraction=50.0)
    obs = observe_state(truth, many, Noise(4))
    assert len(obs) == 50 * truth.layout.field_mask(truth.layout.fields[0])[0].sum()
    eta = (obs.value - operator_for(truth.layout, obs).apply(truth)[0].numpy()) / 0.3
    assert abs(eta.mean()) < 4 / np.sqrt(len(eta)) and abs(eta.std() - 1) < 4 / np.sqrt(2 * len(eta))


def test_places_are_uniform_over_wet_area():
    layout = layout_on(np.linspace(-75.0, 75.0, 16), np.arange(5.0, 360.0, 10.0))
    obs = RandomPoints("zos", 1.0, count=20000).places(layout, DAY, Noise(5))
    expected = np.sin(np.radians(30)) / np.sin(np.radians(80))
    assert abs((np.abs(obs.lat) < 30).mean() - expected) < 0.015
    assert abs(obs.lon.mean() - 180) < 4


def test_swaths_cover_their_share_and_move():
    times = [DAY.replace(day=d) for d in range(1, 29)]
    swath = SurfaceField("thetao", 0.4, coverage=0.25)
    places = [swath.places(SECTOR, t, Noise(6)) for t in times]
    assert {len(p) for p in places} <= {60, 70, 80}
    assert len({tuple(p.lon) for p in places}) > 5
    assert len(SurfaceField("thetao", 0.4).places(SECTOR, DAY, Noise(6))) == 280
    assert len(SurfaceField("thetao", 0.4, stride=2).places(SECTOR, DAY, Noise(6))) == 5 * 14


def test_observing_is_lazy_restartable_and_skips_the_first():
    truth = [state_of(REGION, (0,), seed=k).replace(time=DAY.replace(day=6 + k)) for k in range(7)]
    seen = list(observe(iter(truth), NETWORK, Noise(7), every=2))
    assert [o.time.day for o in seen] == [8, 10, 12]
    later = list(observe(truth[2:], NETWORK, Noise(7), every=2))
    for a, b in zip(seen[1:], later, strict=True):
        assert np.array_equal(a.value, b.value) and np.array_equal(a.lon, b.lon)
    assert [o.time.day for o in observe(truth, NETWORK, Noise(7), every=3, skip_first=False)] == [6, 9, 12]
    assert len(list(observe(truth[0], NETWORK, Noise(7)))) == 1
    assert not np.array_equal(seen[0].value[:30], seen[1].value[:30])
    alone = observe_state(truth[2], NETWORK[0], Noise(7))
    two = observe_state(truth[2], (NETWORK[0], NETWORK[0]), Noise(7))
    assert not np.array_equal(two.lat[:30], two.lat[30:])
    assert np.array_equal(alone.value, seen[0].value[:30])  # an instrument's draws do not depend on those after it


def test_errors_of_networks():
    truth = state_of(REGION)
    with pytest.raises(ObservationError, match=r"one member, got members \(0, 1, 2\)"):
        observe_state(truth, NETWORK, Noise(0))
    with pytest.raises(ObservationError, match="no field so to observe; the truth has thetao"):
        observe_state(truth.sel([0]), Profiles(3, {"so": 0.1}), Noise(0))
    with pytest.raises(ObservationError, match="same points of the grid"):
        observe_state(truth.sel([0]), Profiles(3, {"thetao": 0.1, "uo": 0.1}), Noise(0))
    with pytest.raises(ValueError, match="either count or fraction"):
        RandomPoints("zos", 0.1)
    with pytest.raises(ValueError, match="stride >= 1"):
        SurfaceField(stride=0)
    with pytest.raises(ValueError, match="every >= 1"):
        next(observe(truth, NETWORK, Noise(0), every=0))
