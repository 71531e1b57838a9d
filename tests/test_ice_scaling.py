"""Scaling exponents against cascades and faults whose exponents are known, rough velocities, and a loop over boxes."""

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import deformation, deformation_moments, scaling_exponents, velocity_gradients

BOXES = (1, 2, 4, 8, 16, 32)
DX = 12.5e3


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def gradients(u, v=None, dx=DX):
    """Gradients between the nodes of an even grid."""
    v = np.zeros_like(u) if v is None else v
    dims = ("member", "time", "y", "x")[-np.ndim(u) :]
    siu, siv = (xr.DataArray(w, dims=dims, name="si", attrs={"units": "m s-1"}) for w in (u, v))
    return velocity_gradients(siu, siv, spacing=(dx, dx))


def sheared(profile, n):
    """Velocity along x whose shear across y is the profile."""
    return np.concatenate([[0.0], np.cumsum(profile)])[:, None] * DX * np.ones(n + 1)


def rough(hurst, *, maps=4, n=128, seed=0):
    """Velocities whose differences over L grow like L^hurst, from random phases."""
    rng = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(2 * n)[:, None], np.fft.fftfreq(2 * n))
    k[0, 0] = np.inf
    noise = np.fft.fft2(rng.normal(size=(2, maps, 2 * n, 2 * n)))
    return np.fft.ifft2(noise * k ** -(1 + hurst)).real[..., : n + 1, : n + 1]


@pytest.mark.parametrize("average", ["gradients", "rates"])
def test_binary_cascade_has_its_multifractal_exponents(average):
    weights = np.array([0.6, 1.4])
    profile = np.ones(1)
    for _ in range(6):
        profile = (profile[:, None] * weights).ravel()
    moments = deformation_moments(gradients(sheared(1e-6 * profile, 64)), boxes=(*BOXES, 64), average=average)
    scaling = scaling_exponents(moments)
    expected = [np.log2((weights**q).mean()) for q in (1, 2, 3)]
    np.testing.assert_allclose(scaling["exponent"], expected, atol=1e-9)
    np.testing.assert_allclose(scaling["smallest"], scaling["largest"], atol=1e-9)
    np.testing.assert_allclose(moments.sel(order=2, box=64), 1e-12, rtol=1e-9)
    np.testing.assert_allclose(moments.scale, DX * np.array((*BOXES, 64)))
    q = np.array([1.0, 2, 3])
    fit = np.linalg.lstsq(np.stack([q**2, q], 1), np.array(expected), rcond=None)[0]
    np.testing.assert_allclose([scaling["curvature"], scaling["linear"]], fit, atol=1e-9)


@pytest.mark.parametrize("average", ["gradients", "rates"])
def test_one_straight_fault_and_a_uniform_strain(average):
    fault = np.zeros(64)
    fault[21] = 1e-5
    found = scaling_exponents(deformation_moments(gradients(sheared(fault, 64)), boxes=BOXES, average=average))
    np.testing.assert_allclose(found["exponent"], [0, 1, 2], atol=1e-9)
    even = scaling_exponents(deformation_moments(gradients(sheared(np.full(64, 1e-6), 64)), average=average))
    np.testing.assert_allclose(even["exponent"], 0, atol=1e-9)


@pytest.mark.parametrize("hurst", [0.3, 0.6])
def test_rough_velocities_lose_deformation_as_their_gradients_cancel(hurst):
    g = gradients(*rough(hurst))
    boxes = (2, 4, 8, 16)
    cancelled = scaling_exponents(deformation_moments(g, boxes=boxes))
    np.testing.assert_allclose(cancelled["exponent"], np.array([1, 2, 3]) * (1 - hurst), rtol=0.08)
    assert abs(cancelled["curvature"]) < 0.01  # not multifractal
    rates = scaling_exponents(deformation_moments(g, boxes=boxes, average="rates"))
    assert abs(rates["exponent"].sel(order=1).item()) < 1e-12
    assert (rates["exponent"] < 0.2 * cancelled["exponent"]).all()


def coast(g, seed=0):
    """The same with a coast, holes and varying areas."""
    rng = np.random.default_rng(seed)
    ny, nx = g.sizes["y"], g.sizes["x"]
    y, x = np.mgrid[:ny, :nx]
    land = (x + 3 * y < nx // 2) | (rng.random((ny, nx)) < 0.1)
    area = g.areacello * rng.uniform(0.5, 1.5, (ny, nx))
    return g.where(~xr.DataArray(land, dims=("y", "x"))).assign_coords(areacello=area.assign_attrs(units="m2"))


def by_hand(g, area, boxes, orders, average, least):
    """Moments of one map (4, y, x) by loops over boxes."""
    g, area = np.asarray(g), np.asarray(area)
    ny, nx = (n // boxes[-1] * boxes[-1] for n in g.shape[1:])
    top, left = (g.shape[1] - ny) // 2, (g.shape[2] - nx) // 2
    g, area = g[:, top : top + ny, left : left + nx], area[top : top + ny, left : left + nx]

    def eps(a):
        return np.sqrt((a[0] + a[3]) ** 2 + (a[0] - a[3]) ** 2 + (a[1] + a[2]) ** 2)

    seen = np.isfinite(g).all(0)
    dropped = np.zeros_like(seen)
    for n in boxes:
        for j, i in np.ndindex(ny // n, nx // n):
            box = np.s_[j * n : (j + 1) * n, i * n : (i + 1) * n]
            if area[box][seen[box]].sum() < least * area[box].sum():
                dropped[box] = True
    seen &= ~dropped
    out = np.full((len(orders), len(boxes)), np.nan)
    for b, n in enumerate(boxes):
        rates, weights = [], []
        for j, i in np.ndindex(ny // n, nx // n):
            box = np.s_[j * n : (j + 1) * n, i * n : (i + 1) * n]
            a = area[box][seen[box]]
            if a.size:
                cells = g[(slice(None), *box)][:, seen[box]]
                mean = eps((cells * a).sum(1) / a.sum()) if average == "gradients" else (eps(cells) * a).sum() / a.sum()
                rates.append(mean)
                weights.append(a.sum())
        out[:, b] = [np.average(np.array(rates) ** q, weights=weights) for q in orders]
    return out


@pytest.mark.parametrize("average", ["gradients", "rates"])
@pytest.mark.parametrize("least", [0.3, 0.8])
def test_moments_with_land_and_uneven_cells_equal_a_loop_over_boxes(average, least):
    g = coast(gradients(*rough(0.4, maps=1, n=37)))
    boxes, orders = (1, 3, 6, 12), (0.5, 1, 2.5)
    ours = deformation_moments(g, boxes=boxes, orders=orders, average=average, min_fraction=least)
    expected = by_hand(g.isel(time=0), g.areacello, boxes, orders, average, least)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_all_scales_see_the_same_ice():
    g = coast(gradients(*rough(0.4, n=64)))
    moments = deformation_moments(g, average="rates")
    np.testing.assert_allclose(moments.sel(order=1), moments.sel(order=1, box=1).item(), rtol=1e-12)


def test_rates_of_backward_differences_are_the_recipe_of_the_regional_paper():
    """Its three lines: coarsen the total deformation, take the power, average."""
    u, v = rough(0.4, n=64)
    siu, siv = (xr.DataArray(w, dims=("time", "y", "x"), attrs={"units": "m s-1"}) for w in (u, v))
    inner = {"y": slice(1, None), "x": slice(1, None)}
    options = {"method": "backward", "spacing": (DX, DX)}
    ours = deformation_moments(velocity_gradients(siu, siv, **options).isel(inner), average="rates", boxes=BOXES)
    total = deformation(siu, siv, **options)["total"].isel(inner)
    for n in BOXES:
        for q in (1, 2, 3):
            theirs = (total.coarsen(y=n, x=n).mean() ** q).mean()
            assert ours.sel(order=q, box=n).item() == pytest.approx(theirs.item(), rel=1e-12)
    logs = np.log(ours.scale), np.log(ours.sel(order=3))
    assert scaling_exponents(ours)["exponent"][2].item() == pytest.approx(-np.polyfit(*logs, 1)[0], rel=1e-9)


def test_members_stay_and_times_are_pooled_by_their_ice():
    u, v = (w.reshape(2, 3, 65, 65) for w in rough(0.4, maps=6, n=64))
    g = gradients(u, v)
    g[:, 1, :, :40] = np.nan
    together = deformation_moments(g, boxes=(1, 2, 4))
    assert together.dims == ("member", "order", "box")
    alone = deformation_moments(g, boxes=(1, 2, 4), dim=())
    assert alone.dims == ("member", "time", "order", "box")
    ice = g.isel(gradient=0).notnull().sum(("y", "x"))
    np.testing.assert_allclose(together, (alone * ice).sum("time") / ice.sum("time"), rtol=1e-12)
    everything = deformation_moments(g, boxes=(1, 2, 4), dim=("time", "member"))
    np.testing.assert_allclose(everything, together.mean("member"), rtol=1e-12)
    assert scaling_exponents(together)["exponent"].dims == ("member", "order")


def test_boxes_without_ice_have_no_moments():
    g = gradients(*rough(0.4, maps=1, n=16))
    g[:] = np.nan
    moments = deformation_moments(g, boxes=(1, 2, 4))
    assert moments.isnull().all()
    assert scaling_exponents(moments)["exponent"].isnull().all()


def test_bad_boxes_are_refused():
    g = gradients(*rough(0.4, maps=1, n=16))
    with pytest.raises(ValueError, match="each dividing the next"):
        deformation_moments(g, boxes=(1, 2, 3))
    with pytest.raises(ValueError, match="do not fit"):
        deformation_moments(g, boxes=(1, 32))
    with pytest.raises(ValueError, match="average must be one of"):
        deformation_moments(g, boxes=(1, 2), average="median")
    with pytest.raises(ValueError, match="positive"):
        deformation_moments(g, boxes=(1, 2), orders=(0,))
    with pytest.raises(ValueError, match="min_fraction"):
        deformation_moments(g, boxes=(1, 2), min_fraction=50)
    with pytest.raises(ValueError, match="use velocity_gradients"):
        deformation_moments(g.isel(gradient=0))
    with pytest.raises(ValueError, match=r"dim has \['lead'\]"):
        deformation_moments(g, boxes=(1, 2), dim="lead")
    with pytest.raises(ValueError, match="two scales"):
        scaling_exponents(deformation_moments(g, boxes=(2,)))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"member": 1, "y": 7}, {"x": 5, "gradient": 1}])
@pytest.mark.parametrize("average", ["gradients", "rates"])
def test_lazy_equals_eager_and_computes_nothing(chunks, average):
    u, v = (w.reshape(2, 3, 33, 33) for w in rough(0.4, maps=6, n=32))
    g = coast(gradients(u, v))
    options = {"boxes": (1, 2, 4), "average": average}
    eager = deformation_moments(g, **options)
    with dask.config.set(scheduler=refuse_to_compute):
        moments = deformation_moments(g.chunk(chunks), **options)
        exponents = scaling_exponents(moments)
    xr.testing.assert_allclose(moments.compute(), eager, rtol=1e-12)
    assert moments.attrs == eager.attrs
    (together,) = dask.compute(exponents)
    for name, expected in scaling_exponents(eager).items():
        assert exponents[name].chunks is not None
        xr.testing.assert_allclose(together[name], expected, rtol=1e-9)
