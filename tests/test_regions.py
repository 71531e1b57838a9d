"""Boxes: the same cells however longitudes count, whichever way the grid is cut, and refusals that say why."""

import dask.array
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import REGIONS, Region, isotropic_spectrum, select_region
from polynya.diagnostics.regions import EmptyRegionError, RegionError, region_indices


def globe(first=1.0, step=2.0):
    """Values lon + 1000 lat on a regular globe whose longitudes begin at `first`."""
    lat, lon = np.arange(-89.0, 90, 2), first + np.arange(0, 360, step)
    values = 1000 * lat[:, None] + lon % 360
    return xr.DataArray(values, dims=("lat", "lon"), coords={"lat": lat, "lon": lon}, name="x")


def test_the_boxes_are_those_of_the_papers():
    boxes = {name: (r.west, r.east, r.south, r.north) for name, r in REGIONS.items()}
    assert boxes == {
        "Gulf Stream": (300, 320, 25, 45),
        "Kuroshio": (150, 170, 25, 45),
        "Agulhas": (40, 60, -50, -30),
        "Malvinas": (311, 331, -51, -31),
        "Nino 3.4": (190, 240, -5, 5),
        "Tropical Pacific": (130, 290, -30, 30),
    }


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("first", [1.0, -179.0, 61.0, 201.0, 1.0 + 1e-6])
def test_the_same_cells_wherever_the_grid_is_cut(name, first):
    box = REGIONS[name]
    found = select_region(globe(first), name)
    np.testing.assert_allclose(found["lon"] % 360, np.arange(2 * (box.west // 2) + 1, box.east + 0.5, 2), atol=1e-5)
    assert found["lat"].min() >= box.south
    assert found["lat"].max() <= box.north
    np.testing.assert_allclose(found, 1000 * found["lat"] + found["lon"] % 360, atol=1e-5)
    np.testing.assert_allclose(np.diff(found["lon"]), 2, atol=1e-6)


def test_edges_belong_to_the_box_and_float32_is_precise_enough():
    field = globe(first=0.0)
    assert select_region(field, "Nino 3.4")["lon"].to_numpy()[[0, -1]].tolist() == [190, 240]
    rounded = field.assign_coords(lon=((field["lon"] + 0.1) % 360).astype("f4"))
    found = select_region(rounded, Region(190.1, 240.1, -5, 5))
    assert found.sizes["lon"] == 26


def test_a_box_across_greenwich_rises_through_it():
    found = select_region(globe(), Region(350, 370, 0, 10))
    assert found["lon"].to_numpy().tolist() == [351, 353, 355, 357, 359, 361, 363, 365, 367, 369]
    assert select_region(globe(), Region(0, 360, -90, 90)).shape == globe().shape


def test_two_dimensional_coordinates_of_a_separable_grid():
    flat = globe(-179.0)
    both = xr.broadcast(flat["lat"], flat["lon"])
    grid = xr.DataArray(flat.to_numpy(), dims=("y", "x"), name="x")
    grid = grid.assign_coords({n: (("y", "x"), c.to_numpy()) for n, c in zip(("lat", "lon"), both, strict=True)})
    np.testing.assert_array_equal(select_region(grid, "Tropical Pacific"), select_region(flat, "Tropical Pacific"))
    turned = grid.assign_coords(lon=grid["lon"].transpose())
    np.testing.assert_array_equal(select_region(turned, "Kuroshio"), select_region(flat, "Kuroshio"))
    waves = isotropic_spectrum(select_region(grid, "Gulf Stream"))
    np.testing.assert_allclose(waves, isotropic_spectrum(select_region(flat, "Gulf Stream")))


def test_datasets_and_lazy_fields_stay_what_they_are():
    dataset = xr.Dataset({"a": globe(-179.0).chunk(lat=30), "b": globe(-179.0)})
    found = select_region(dataset, "Tropical Pacific")
    assert isinstance(found["a"].data, dask.array.Array)
    np.testing.assert_array_equal(found["a"], found["b"])


def test_refusals_say_what_to_do():
    with pytest.raises(RegionError, match="no region 'Niño': choose among"):
        select_region(globe(), "Niño")
    with pytest.raises(EmptyRegionError, match="no cell in 300-320 E, 25-45 N: the grid spans latitudes -89 to -49"):
        select_region(globe().isel(lat=slice(0, 21)), "Gulf Stream")
    field = globe()
    bent = field["lat"] + 0.01 * field["lon"]
    with pytest.raises(RegionError, match="lat varies along both dimensions"):
        region_indices(xr.DataArray(field.to_numpy(), dims=("y", "x"), coords={
            "lat": (("y", "x"), bent.to_numpy()), "lon": ("x", field["lon"].to_numpy())}), "Kuroshio")  # fmt: skip
    with pytest.raises(RegionError, match="needs the coordinates lat and lon"):
        select_region(field.drop_vars("lon"), "Kuroshio")
    for wrong in ((20, 10, 0, 5), (0, 400, 0, 5), (0, 10, 5, -5), (0, 10, -95, 5)):
        with pytest.raises(RegionError, match="west < east"):
            Region(*wrong)
