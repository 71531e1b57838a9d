"""Layout and State: channels where they are said to be, land on both sides of the border, clear refusals."""

from __future__ import annotations

import pickle
from datetime import timedelta

import numpy as np
import pytest
import torch
import xarray as xr
from small import START, random_state, small_grid, small_layout

from polynya.emulators import Field, Layout, LayoutError, State, attributes, grid_of, open_store
from polynya.emulators.names import UnitsError, flat_name, to_canonical_units


def test_channels_are_ordered_by_slot_field_level() -> None:
    layout = small_layout((-1, 0))
    assert layout.shape == (14, 8, 12)
    assert layout.channels("thetao", 0) == slice(0, 3)
    assert layout.channels("zos", 0) == slice(6, 7)
    assert layout.channels("uo") == slice(10, 13)
    assert layout.channel_labels() == ["thetao_0", "thetao_1", "thetao_2", "uo_0", "uo_1", "uo_2", "zos"]
    with pytest.raises(KeyError, match="it has thetao, uo, zos"):
        layout.channels("so")


def test_mask_follows_the_location_of_each_field() -> None:
    layout, grid = small_layout(), small_grid()
    assert np.array_equal(layout.mask[:3], grid["wetmask"].values)
    assert np.array_equal(layout.mask[3:6], grid["wetmask_corner"].values)
    assert np.array_equal(layout.mask[6], grid["wetmask"].values[0])
    assert float(layout.position(layout.field("uo"))[0][0, 0]) == float(grid["lat_corner"][0])


@pytest.mark.parametrize("slots", [(0,), (-1, 0)])
def test_unpack_then_pack_gives_the_same_bits(slots: tuple[int, ...]) -> None:
    layout = small_layout(slots)
    state = random_state(layout, (3, 7))
    dataset = state.to_xarray()
    assert dataset.thetao.dims == ("member", "time", "lev", "lat", "lon")
    assert list(dataset.member) == [3, 7]
    assert dataset.thetao.attrs == attributes("thetao")
    again = layout.pack(dataset, START, (3, 7))
    assert torch.equal(again.data, state.data)
    swapped = layout.pack(dataset, START, (7,))
    assert torch.equal(swapped.data[0], state.data[1])


def test_land_is_nan_outside_and_zero_inside() -> None:
    layout = small_layout()
    dataset = random_state(layout).to_xarray()
    assert np.isnan(dataset.thetao.values[:, 0, :, 0]).all()
    assert np.isfinite(dataset.thetao.values[:, 0][:, layout.mask[:3].numpy()]).all()
    packed = layout.pack(dataset, START, (0, 1, 2))
    assert (packed.data[:, ~layout.mask] == 0).all()


def test_nan_in_the_wet_mask_is_an_error_that_says_where() -> None:
    layout = small_layout()
    dataset = random_state(layout).to_xarray()
    dataset.thetao.values[1, 0, 2, 4, 5] = np.nan
    with pytest.raises(
        LayoutError, match="thetao: 1 NaN where the wet mask is 1, the first at member 1.*row 4, column 5"
    ):
        layout.pack(dataset, START, (0, 1, 2))


def test_nan_in_the_mask_itself_is_an_error() -> None:
    grid = small_grid()
    mask = grid["wetmask"].astype(float)
    mask[0, 2, 2] = np.nan
    with pytest.raises(LayoutError, match="`wetmask` must hold only 0 and 1, got 1 NaN"):
        Layout((Field("zos"),), grid.assign_coords(wetmask=mask))


def test_missing_variables_members_and_shapes_are_named() -> None:
    layout = small_layout()
    dataset = random_state(layout).to_xarray()
    with pytest.raises(LayoutError, match=r"lacks the variable\(s\) uo; it has thetao, zos"):
        layout.pack(dataset.drop_vars("uo"), START)
    with pytest.raises(LayoutError, match=r"members \[9\] are not in the dataset"):
        layout.pack(dataset, START, (9,))
    with pytest.raises(LayoutError, match=r"thetao: wanted \(time, lev, y, x\)"):
        layout.pack(dataset.isel(lat=slice(0, 5)), START)
    with pytest.raises(LayoutError, match=r"wanted data \(member, channel, y, x\) = \(2, 7, 8, 12\)"):
        State(torch.zeros(1, 7, 8, 12), START, layout, (0, 1))
    with pytest.raises(LayoutError, match="the grid lacks areacello"):
        Layout((Field("zos"),), small_grid().drop_vars("areacello"))


def test_states_select_members_and_fields() -> None:
    state = random_state(small_layout((-1, 0)), (4, 2, 9))
    assert state.sel((9, 4)).members == (9, 4)
    assert torch.equal(state.sel((9, 4)).data, state.data[[2, 0]])
    with pytest.raises(KeyError, match="members \\[5\\] are not in this state"):
        state.sel((5,))
    small = state.layout.select(["zos"], slots=(0,))
    assert torch.equal(state.select(small).data[:, 0], state["zos"][:, 0])
    copies = state.sel((2,)).spread_to((0, 1, 2))
    assert torch.equal(copies.data[2], state.data[1])
    with pytest.raises(LayoutError, match="only a state of one member"):
        state.spread_to((0, 1))
    assert "3 members [4, 2, 9]" in repr(state)


def test_states_are_frozen_and_pickle() -> None:
    state = random_state(small_layout())
    with pytest.raises(AttributeError):
        state.time = START  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(state))
    assert torch.equal(again.data, state.data)
    assert again.layout.shape == state.layout.shape
    later = state.replace(time=state.time + timedelta(days=5))
    assert later.time != state.time


def test_gradients_cross_fields_but_not_the_border() -> None:
    state = random_state(small_layout())
    data = state.data.clone().requires_grad_()
    state.replace(data=data)["zos"].sum().backward()
    assert data.grad is not None and data.grad[:, 6].eq(1).all() and data.grad[:, :6].eq(0).all()


@pytest.mark.parametrize(
    ("name", "units", "value", "wanted"),
    [("thetao", "K", 283.15, 10.0), ("zos", "cm", 50.0, 0.5), ("siconc", "%", 15.0, 0.15), ("so", "psu", 35.0, 35.0)],
)
def test_units_are_converted(name: str, units: str, value: float, wanted: float) -> None:
    array = xr.DataArray([value], attrs={"units": units})
    assert to_canonical_units(array, name).item() == pytest.approx(wanted, abs=1e-12)


def test_unknown_units_name_the_variable() -> None:
    with pytest.raises(UnitsError, match="thetao: wanted units 'degC'.*got 'degF'"):
        to_canonical_units(xr.DataArray([1.0], attrs={"units": "degF"}), "thetao")


def test_flat_names() -> None:
    assert flat_name("thetao_3") == ("thetao", "3")
    assert flat_name("thetao_lev_2_5") == ("thetao", "2_5")
    assert flat_name("hfds_anomalies") is None
    assert flat_name("quux_3") is None


def test_first_generation_level_names_are_joined_by_depth() -> None:
    shape, dims = (2, 3, 4), ("time", "y", "x")
    flat = xr.Dataset({f"thetao_lev_{n}": (dims, np.full(shape, v)) for n, v in (("10", 2.0), ("2_5", 1.0))})
    flat = flat.assign_coords(lat=(("y", "x"), np.ones((3, 4))), lon=(("y", "x"), np.ones((3, 4))))
    opened = open_store(flat.assign_coords(areacello=(("y", "x"), np.ones((3, 4)))))
    assert opened.thetao.dims == ("time", "lev", "y", "x")
    assert opened.thetao.isel(time=0, y=0, x=0).values.tolist() == [1.0, 2.0]


def test_cell_areas_are_computed_on_regular_grids_only() -> None:
    lat, lon = -88 + 4.0 * np.arange(45), 2 + 4.0 * np.arange(90)
    regular = xr.Dataset({"zos": (("time", "lat", "lon"), np.zeros((1, 45, 90)))}, coords={"lat": lat, "lon": lon})
    area = grid_of(open_store(regular))["areacello"]
    assert float(area.sum()) == pytest.approx(4 * np.pi * 6.371e6**2, rel=1e-12)
    curved = xr.Dataset({"zos": (("time", "y", "x"), np.zeros((1, 4, 4)))})
    with pytest.raises(ValueError, match="lacks `areacello`"):
        grid_of(open_store(curved))
