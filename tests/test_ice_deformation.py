"""Velocity gradients against linear flows, motions of the sphere of known deformation, and the original model's."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import area_of, deformation, velocity_gradients
from polynya.diagnostics.ice_deformation import contour_gradients, corners

RADIUS = 6.371e6
SEA_ICE = Path(__file__).parent / "data" / "seaice"
FIXTURE = SEA_ICE / "regional_deformation.npz"


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def velocity(u, v, **coords):
    dims = ("member", "time", "y", "x")[-np.ndim(u) :]
    return tuple(
        xr.DataArray(w, dims=dims, coords=coords, name=name, attrs={"units": "m s-1"})
        for w, name in ((u, "siu"), (v, "siv"))
    )


def plane_flow(u_x, u_y, v_x, v_y, *, dy=8e3, dx=12e3, shape=(9, 13)):
    y, x = np.meshgrid(np.arange(shape[0]) * dy, np.arange(shape[1]) * dx, indexing="ij")
    return velocity(0.3 + u_x * x + u_y * y, -0.1 + v_x * x + v_y * y), (dy, dx)


FLOWS = {
    "divergence": ((1e-6, 0, 0, 1e-6), (2e-6, 0, 2e-6)),
    "pure shear": ((1e-6, 0, 0, -1e-6), (0, 2e-6, 2e-6)),
    "simple shear": ((0, 3e-6, 0, 0), (0, 3e-6, 3e-6)),
    "rotation": ((0, -2e-6, 2e-6, 0), (0, 0, 0)),
    "uniaxial": ((-1e-6, 0, 0, 0), (-1e-6, 1e-6, 2**0.5 * 1e-6)),
}


@pytest.mark.parametrize("method", ["contour", "backward"])
@pytest.mark.parametrize("flow", FLOWS)
def test_linear_flows_are_exact(flow, method):
    gradients, expected = FLOWS[flow]
    (siu, siv), spacing = plane_flow(*gradients)
    found = deformation(siu, siv, spacing=spacing, method=method)
    inner = found.isel(y=slice(1, None), x=slice(1, None)) if method == "backward" else found
    for name, value in zip(("divergence", "shear", "total"), expected, strict=True):
        np.testing.assert_allclose(inner[name], value, atol=1e-18, rtol=1e-9)
    assert found.sizes == ({"y": 9, "x": 13} if method == "backward" else {"y": 8, "x": 12})
    assert found["divergence"].isel(y=0).isnull().all() == (method == "backward")
    four = velocity_gradients(siu, siv, spacing=spacing, method=method).isel(y=slice(1, None), x=slice(1, None))
    np.testing.assert_allclose(four.mean(("y", "x")), gradients, atol=1e-18)
    assert found["divergence"].attrs["standard_name"] == "divergence_of_sea_ice_velocity"
    assert found["total"].attrs["units"] == "s-1"


def test_contour_integrals_are_exact_on_any_quadrilateral():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:7, :9] * 1e4 + rng.uniform(-3e3, 3e3, (2, 7, 9))
    u, v = 1e-6 * x - 2e-6 * y, 3e-6 * x + 4e-6 * y
    found = contour_gradients(*(np.stack(corners(f)) for f in (u, v, x, y)))
    np.testing.assert_allclose(found, np.array([1e-6, -2e-6, 3e-6, 4e-6])[:, None, None] * np.ones((6, 8)), rtol=1e-9)
    mirrored = contour_gradients(*(np.stack(corners(f)) for f in (u, v, -x, y)))
    np.testing.assert_allclose(mirrored[0], -found[0], rtol=1e-9)


def test_backward_differences_equal_those_of_the_original_regional_model():
    with np.load(FIXTURE) as kept:
        siu, siv = velocity(*(kept[n].astype("f8")[None] for n in ("siu", "siv")))
        found = deformation(siu, siv, method="backward", spacing=(12.5e3, 12.5e3))
        for ours, theirs in (("divergence", "div"), ("shear", "shear"), ("total", "total")):
            np.testing.assert_allclose(found[ours][0], kept[theirs], rtol=1e-5)


# Motions of the sphere as vectors in space, with their divergence and shear in closed form.


def nodes(lat, lon):
    north, east = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


AXIS = np.array([0.48, -0.6, 0.64])


def rotation(n):
    """Solid rotation: no deformation at all."""
    return np.cross(0.2 * AXIS, n), np.zeros(n.shape[:-1]), np.zeros(n.shape[:-1])


def dipole(n):
    """Away from one point, into its antipode: conformal, divergence -2 V (a . n) / R and no shear."""
    height = n @ AXIS
    return 0.2 * (AXIS - height[..., None] * n), -0.4 * height / RADIUS, np.zeros(height.shape)


def jet(n):
    """Rotation by an angle of a . n: along the parallels of AXIS with speed U cos^2, shear U |sin cos| / R."""
    height = n @ AXIS
    width = np.sqrt(1 - height**2)
    return 0.2 * width[..., None] * np.cross(AXIS, n), np.zeros(height.shape), 0.2 * abs(height) * width / RADIUS


def regular():
    lat, lon = np.meshgrid(np.arange(55, 85, 0.25), np.arange(340, 400, 0.25) % 360, indexing="ij")
    return lat, lon


def stereographic(dx=25e3, n=120, around=(90.0, 0.0)):
    """Even grid in the plane that touches a point, turned: the north pole may lie inside."""
    y, x = (np.mgrid[:n, :n] - n / 2 + 0.3) * dx / (2 * RADIUS)
    scale = 1 / (1 + x**2 + y**2)
    local = np.stack([2 * x * scale, 2 * y * scale, (1 - x**2 - y**2) * scale], axis=-1)
    tilt, turn = np.deg2rad(90 - around[0]), np.deg2rad(around[1])
    about_y = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    n3 = local @ (about_z @ about_y).T
    return np.rad2deg(np.arcsin(n3[..., 2])), np.rad2deg(np.arctan2(n3[..., 1], n3[..., 0]))


def creg():
    """Part of the real 0.25-degree grid of GenSIM's training data."""
    with np.load(SEA_ICE / "grid_creg025_512_part.npz") as kept:
        return tuple(kept[n].astype("f8") for n in ("latitude", "longitude"))


def on_nodes(motion, lat, lon, axes):
    """Components to the east and north, or along the grid, and the positions as coordinates."""
    w = motion(nodes(lat, lon))[0]
    if axes == "east-north":
        north, east = np.deg2rad(lat), np.deg2rad(lon)
        first = np.stack([-np.sin(east), np.cos(east), 0 * east], axis=-1)
        up = [-np.sin(north) * np.cos(east), -np.sin(north) * np.sin(east), np.cos(north)]
        second = np.stack(up, axis=-1)
    else:
        first, second = (np.gradient(nodes(lat, lon), axis=a) for a in (1, 0))
        first, second = (d / np.linalg.norm(d, axis=-1, keepdims=True) for d in (first, second))
    places = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    return velocity((w * first).sum(-1), (w * second).sum(-1), **places)


@pytest.mark.parametrize("axes", ["grid", "east-north"])
@pytest.mark.parametrize("motion", [rotation, dipole, jet])
@pytest.mark.parametrize("grid", [regular, stereographic, lambda: stereographic(around=(60.0, 130.0)), creg])
def test_motions_of_the_sphere_have_their_deformation(grid, motion, axes):
    lat, lon = grid()
    siu, siv = on_nodes(motion, lat, lon, axes)
    inner = {"y": slice(2, -2), "x": slice(2, -2)}  # one-sided directions of the grid at its edges
    found = deformation(siu, siv, axes=axes).isel(inner)
    _, divergence, shear = motion(nodes(found.lat.values, found.lon.values))
    # The real grid is in float32: half a metre of noise in the direction of its axes.
    atol = (3e-2 if (grid, axes) == (creg, "grid") else 3e-3) * 0.2 / RADIUS
    np.testing.assert_allclose(found["divergence"], divergence, atol=atol)
    np.testing.assert_allclose(found["shear"], shear, atol=atol)


def test_components_taken_as_if_on_a_plane_deform_a_solid_rotation():
    lat, lon = stereographic()
    siu, siv = on_nodes(rotation, lat, lon, "east-north")
    plane = deformation(siu.drop_vars(("lat", "lon")), siv.drop_vars(("lat", "lon")), spacing=(25e3, 25e3))
    assert plane["total"].max() > 1e4 * deformation(siu, siv, axes="east-north")["total"].max()


@pytest.mark.parametrize("southwards", [False, True])
def test_one_dimensional_latitudes_are_east_north_in_either_order(southwards):
    lat, lon = np.arange(60, 80, 0.25), np.arange(350, 380, 0.25) % 360
    lat = lat[::-1] if southwards else lat
    both = np.meshgrid(lat, lon, indexing="ij")
    siu, siv = (c.drop_vars(("lat", "lon")).rename(y="lat", x="lon").assign_coords(lat=lat, lon=lon)
                for c in on_nodes(dipole, *both, "east-north"))  # fmt: skip
    found = deformation(siu, siv)
    middle = np.meshgrid(found.lat, found.lon, indexing="ij")
    np.testing.assert_allclose(found["divergence"], dipole(nodes(*middle))[1], atol=1e-3 * 0.2 / RADIUS)
    assert (np.diff(found.lon) > 0).all()
    back = velocity_gradients(siu, siv, method="backward").sel(gradient=["u_x", "v_y"])
    assert back.sizes["lat"] == lat.size
    north = np.gradient(siv.values, np.deg2rad(lat) * RADIUS, axis=0)
    np.testing.assert_allclose(back.sel(gradient="v_y")[1:, 5], (north[1:, 5] + north[:-1, 5]) / 2, atol=3e-10)


def test_a_global_grid_can_be_closed():
    lat, lon = np.arange(60, 88, 1.0), np.arange(0.5, 360)
    both = np.meshgrid(lat, lon, indexing="ij")
    siu, siv = (c.drop_vars(("lat", "lon")).rename(y="lat", x="lon").assign_coords(lat=lat, lon=lon).pad(
        lon=(0, 1), mode="wrap") for c in on_nodes(dipole, *both, "east-north"))  # fmt: skip
    found = deformation(siu, siv)
    assert found.sizes["lon"] == 360
    middle = np.meshgrid(found.lat, found.lon, indexing="ij")
    np.testing.assert_allclose(found["divergence"], dipole(nodes(*middle))[1], atol=2e-3 * 0.2 / RADIUS)


def test_cells_have_the_true_area():
    lat, lon = np.arange(60.5, 80), np.arange(0.5, 40)
    corner = xr.DataArray(np.zeros((20, 40)), dims=("lat", "lon"), coords={"lat": lat, "lon": lon})
    siu = corner.assign_attrs(units="m s-1")
    ours = velocity_gradients(siu, siu)
    centres = {"lat": (lat[1:] + lat[:-1]) / 2, "lon": (lon[1:] + lon[:-1]) / 2}
    exact = area_of(xr.DataArray(np.zeros((19, 39)), dims=("lat", "lon"), coords=centres))
    np.testing.assert_allclose(ours.areacello, exact, rtol=1e-3)
    assert area_of(ours).attrs["units"] == "m2"
    even = velocity_gradients(*plane_flow(1, 0, 0, 0)[0], spacing=(8e3, 12e3))
    assert (even.areacello == 96e6).all()


def test_axes_of_the_gradients_agree_between_neighbours():
    """Uniform simple shear on a small plane patch over the pole, where meridians turn by 180 degrees."""
    lat, lon = stereographic(dx=1e3, n=40)
    siu, siv = on_nodes(jet, lat, lon, "east-north")
    g = velocity_gradients(siu, siv, axes="east-north")
    assert (g.std(("y", "x")) < 0.02 * abs(g).max()).all()


def test_a_missing_node_empties_the_cells_around_it():
    (siu, siv), spacing = plane_flow(1e-6, 0, 0, 0)
    siu[4, 5] = np.nan
    found = deformation(siu, siv, spacing=spacing)
    empty = np.zeros((8, 12), bool)
    empty[3:5, 4:6] = True
    np.testing.assert_array_equal(found["total"].isnull(), empty)


def test_bad_input_is_refused():
    (siu, siv), spacing = plane_flow(1e-6, 0, 0, 0)
    with pytest.raises(ValueError, match="divide by 100"):
        deformation(siu, siv.assign_attrs(units="cm s-1"), spacing=spacing)
    with pytest.raises(ValueError, match="positions of the nodes"):
        deformation(siu, siv)
    with pytest.raises(ValueError, match="positive distances"):
        deformation(siu, siv, spacing=(1e3, -1e3))
    with pytest.raises(ValueError, match="method must be one of"):
        deformation(siu, siv, spacing=spacing, method="spectral")
    with pytest.raises(ValueError, match="axes must be one of"):
        deformation(siu, siv, spacing=spacing, axes="polar")
    with pytest.raises(ValueError, match="two nodes each way"):
        deformation(siu[:1], siv[:1], spacing=spacing)
    with pytest.raises(ValueError, match="share"):
        deformation(siu, siv.isel(x=slice(4)), spacing=spacing)
    siu, siv = on_nodes(jet, *stereographic(n=8), "east-north")
    with pytest.raises(ValueError, match="method='contour'"):
        deformation(siu.assign_attrs(standard_name="eastward_sea_ice_velocity"), siv, method="backward")


CHUNKS = [{"time": 1}, {"member": 1, "y": 7}, {"x": 5, "y": 5, "time": 2}, {"member": -1, "x": 1}]


@pytest.mark.parametrize("method", ["contour", "backward"])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("lazy_places", [False, True])
def test_lazy_equals_eager_and_computes_nothing(chunks, method, lazy_places):
    lat, lon = stereographic(n=16)
    u, v = np.random.default_rng(0).normal(0, 0.1, (2, 2, 3, 16, 16)).astype("f4")
    places = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    siu, siv = velocity(u, v, **places, member=[3, 5], time=np.arange(3))
    before = siu.copy(deep=True)
    eager = deformation(siu, siv, method=method)
    xr.testing.assert_identical(siu, before)
    more = {n: siu[n].chunk(y=4) for n in ("lat", "lon")} if lazy_places else {}
    lazy_siu = siu.chunk(chunks).assign_coords({n: c if more else c.compute() for n, c in (more or siu.coords).items()})
    with dask.config.set(scheduler=refuse_to_compute):
        lazy = deformation(lazy_siu, siv.chunk(chunks), method=method)
        assert lazy["total"].dims == ("member", "time", "y", "x")
    (together,) = dask.compute(lazy)
    for name in eager:
        assert lazy[name].chunks is not None
        xr.testing.assert_allclose(together[name], eager[name], rtol=1e-12)
        assert together[name].attrs == eager[name].attrs
