"""Steric sea level against published columns, gsw called directly, and the identities of its parts."""

import cftime
import dask
import gsw
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import area_mean, area_of, dynamic_sea_level, global_steric, steric
from polynya.diagnostics.eos import Place, salinity_offset, salinity_slope, sea_pressure
from polynya.diagnostics.seawater import density, steric_height

SA0 = 35.16504


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def column(metres, sa, ct):
    """A column at the equator of given TEOS-10 salinity and temperature, as a model would store it."""
    lev = np.arange(metres) + 0.5
    p = gsw.p_from_z(-lev, 0.0)
    coords = {"lev": lev, "dz": ("lev", np.ones(metres), {"units": "m"}), "lat": 0.0, "lon": 190.0}
    thetao = np.full(metres, gsw.pt_from_CT(sa, ct))
    so = gsw.SP_from_SA(sa, p, 190.0, 0.0)
    return xr.Dataset(
        {"thetao": ("lev", thetao, {"units": "degC"}), "so": ("lev", so, {"units": "0.001"})}, coords=coords
    )


def ocean(seed=0, members=2, times=3):
    rng = np.random.default_rng(seed)
    dz = np.array([10.0, 40, 150, 800, 3000])
    lev = np.cumsum(dz) - dz / 2
    lat, lon = np.array([-60.0, -20, 20, 58]), np.array([20.0, 110, 190, 330])
    shape = (members, times, lev.size, lat.size, lon.size)
    wet = rng.random((lat.size, lon.size)) < 0.8
    thetao = 18 * np.exp(-lev / 700)[:, None, None] + rng.normal(0, 0.5, shape)
    so = 34.5 + rng.normal(0, 0.2, shape)
    dates = [cftime.datetime(2000, 1, 3 + 5 * k, calendar="noleap") for k in range(times)]
    coords = {
        "member": np.arange(members),
        "time": dates,
        "lev": lev,
        "lat": lat,
        "lon": lon,
        "dz": ("lev", dz, {"units": "m"}),
    }
    dims = ("member", "time", "lev", "lat", "lon")
    ds = xr.Dataset({"thetao": (dims, np.where(wet, thetao, np.nan)), "so": (dims, np.where(wet, so, np.nan))}, coords)
    ds.thetao.attrs["units"], ds.so.attrs["units"] = "degC", "psu"
    return ds.assign_coords(areacello=area_of(ds))


def start_of(ds):
    return ds.isel(time=0, member=0, drop=True)


@pytest.mark.parametrize(
    ("metres", "form", "warm", "salt"),
    [
        (100, "specvol", 0.017263302, None), (1000, "specvol", 0.181615196, None),
        (4000, "specvol", 0.840948397, None),
        (100, "boussinesq", 0.017129897, None), (1000, "boussinesq", 0.180572532, None),
        (4000, "boussinesq", 0.841844588, None), (100, "specvol", None, -0.075255),
        (1000, "specvol", None, -0.747715), (4000, "specvol", None, -2.929250),
    ],
)  # fmt: skip
def test_published_columns(metres, form, warm, salt):
    state = column(metres, SA0 + (salt is not None), 10.0 + (warm is not None))
    rise = steric(state.thetao, state.so, reference=column(metres, SA0, 10.0), form=form).steric
    assert rise.item() == pytest.approx(warm if warm is not None else salt, abs=6e-7 if salt else 2e-9)


def test_density_has_the_published_check_values():
    depth, lat, lon = (
        -gsw.z_from_p(np.array([10.0, 50, 125, 250, 600, 1000]), 4.0),
        np.full(6, 4.0),
        np.full(6, 188.0),
    )
    sp = np.array([34.5487, 34.7275, 34.8605, 34.6810, 34.5680, 34.5600])
    slope, offset = salinity_slope(depth, lat, lon), salinity_offset(depth, lat, lon)
    sa = [34.7117937385, 34.8915542343, 35.0256193736, 34.8471769816, 34.7366563607, 34.7323493921]
    np.testing.assert_allclose(slope * sp + offset, sa, atol=2e-10)
    ct = np.array([28.8099, 28.4392, 22.7862, 10.2262, 6.8272, 4.3236])
    theta = gsw.pt_from_CT(np.array(sa), ct)
    rho = gsw.rho(np.array(sa), ct, [10.0, 50, 125, 250, 600, 1000])
    np.testing.assert_allclose(density(theta, sp, slope, offset, sea_pressure(depth, lat)), rho, rtol=1e-12)


def test_density_equals_gsw_over_the_whole_range():
    rng = np.random.default_rng(0)
    sp, theta, p = rng.uniform(0, 42, (50, 40)), rng.uniform(-2, 40, (50, 40)), rng.uniform(0, 1e4, (50, 40))
    ours = density(theta, sp, np.array(SA0 / 35), np.array(0.0), p)
    sa = SA0 / 35 * sp
    np.testing.assert_allclose(ours, gsw.rho(sa, gsw.CT_from_pt(sa, theta), p), rtol=3e-15)
    assert np.isnan(density(theta * np.nan, sp, np.array(1.0), np.array(0.0), p)).all()


def test_one_pass_over_columns_equals_sums_of_densities():
    rng = np.random.default_rng(1)
    shape = (3, 7, 30, 50)  # more cells than a tile
    theta, sp = rng.uniform(-2, 30, shape), rng.uniform(30, 38, shape).astype("f4")
    theta[:, 4:, :5] = np.nan
    theta[:, :, 9, 9] = np.nan
    slope, offset = np.full(shape[-3:], 1.0047), np.zeros((1, 1, 1))
    p = np.linspace(0, 5000, 7)[:, None, None] + rng.uniform(0, 5, (30, 1))
    dz = rng.uniform(1, 100, (7, 1, 1))
    dz[2] = 0
    sa = slope * sp.astype("f8")
    rho = gsw.rho(sa, gsw.CT_from_pt(sa, theta), p)
    ref = np.where(np.isfinite(rho[:1]), rho[:1], np.nan)
    for rho0, below in ((1035.0, 1035.0), (0.0, rho)):
        expected = np.nansum((ref - rho) / below * dz, axis=1)
        expected[:, 9, 9] = np.nan
        ours = steric_height(theta, sp, slope, offset, p, ref[0], dz, rho0=rho0)
        np.testing.assert_allclose(ours, expected, atol=1e-11)


def test_absolute_salinity_is_affine_also_in_the_baltic():
    depth, lat, lon = np.array([5.0, 40.0]), np.array([58.0, 58.0]), np.array([20.0, 20.0])
    p = sea_pressure(depth, lat)
    slope, offset = salinity_slope(depth, lat, lon), salinity_offset(depth, lat, lon)
    assert (offset > 0.08).all()
    for sp in (2.0, 8.0, 34.0):
        np.testing.assert_allclose(slope * sp + offset, gsw.SA_from_SP(sp, p, lon, lat), atol=2e-14)


def test_where_the_atlas_is_empty_the_reference_composition_is_used():
    south = (np.array([10.0]), np.array([-89.0]), np.array([0.0]))
    assert np.isnan(gsw.SA_from_SP(35.0, 10.0, 0.0, -89.0))
    assert salinity_slope(*south) == SA0 / 35
    assert salinity_offset(*south) == 0
    ds = ocean()
    assert "no value" in steric(ds.thetao, ds.so, reference=start_of(ds)).attrs["absolute_salinity"]


def by_gsw(ds):
    """In-situ density by gsw's own functions, without our affine maps."""
    lat, lon = (ds[n].values for n in ("lat", "lon"))
    p = gsw.p_from_z(-ds.lev.values[:, None], lat)[..., None]
    sa = gsw.SA_from_SP(ds.so.values, p, lon, lat[:, None])
    sa = np.where(np.isnan(sa), SA0 / 35 * ds.so.values, sa)
    return gsw.rho(sa, gsw.CT_from_pt(sa, ds.thetao.values), p)


def test_global_mean_equals_the_definition_in_plain_numpy():
    ds = ocean()
    rho, rho_ref = by_gsw(ds), by_gsw(start_of(ds))
    cells = ds.dz.values[:, None, None] * ds.areacello.values
    volume = np.where(np.isfinite(rho_ref), cells, 0)
    area = np.where(np.isfinite(rho_ref[0]), ds.areacello.values, 0).sum()
    mass, mass_ref = ((volume * np.nan_to_num(r)).sum((-3, -2, -1)) for r in (rho, rho_ref))
    expected = volume.sum() / area * np.log(mass_ref / mass)
    ours = global_steric(ds.thetao, ds.so, reference=start_of(ds))
    np.testing.assert_allclose(ours.steric, expected, atol=1e-9)
    assert ours.steric.attrs["standard_name"] == "global_average_steric_sea_level_change"
    assert ours.steric.dims == ("member", "time")


def test_global_mean_compares_water_that_is_wet_in_both_states():
    ds = ocean()
    reference = start_of(ds).copy(deep=True)
    reference["thetao"][:, 1, 2] = np.nan
    dried = ds.copy(deep=True)
    dried["thetao"][..., 1, 2] = np.nan
    ours, expected = (global_steric(x.thetao, x.so, reference=reference).steric for x in (ds, dried))
    np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_local_height_equals_the_definition_in_plain_numpy():
    ds = ocean()
    rho, rho_ref = by_gsw(ds), by_gsw(start_of(ds))
    dz = ds.dz.values[:, None, None]
    boussinesq, specvol = (
        steric(ds.thetao, ds.so, reference=start_of(ds), form=form).steric for form in ("boussinesq", "specvol")
    )
    np.testing.assert_allclose(boussinesq, -(dz * (rho - rho_ref)).sum(-3) / 1035, atol=1e-10)
    np.testing.assert_allclose(specvol, (dz * (rho_ref / rho - 1)).sum(-3), atol=1e-10)


def test_a_depth_range_is_the_sum_over_its_layers():
    ds = ocean()
    parts = [steric(ds.thetao, ds.so, reference=start_of(ds), depth=d).steric for d in ((0, 600), (600, np.inf))]
    full = steric(ds.thetao, ds.so, reference=start_of(ds)).steric
    np.testing.assert_allclose(parts[0] + parts[1], full, atol=1e-13)


def test_parts_leave_the_documented_residual():
    cold, warm = column(1000, SA0, 10.0), column(1000, SA0 + 1, 11.0)
    parts = steric(warm.thetao, warm.so, reference=cold, form="specvol")
    total = parts.thermosteric + parts.halosteric + parts.residual
    np.testing.assert_allclose(parts.steric, total, atol=1e-15)
    assert abs(parts.residual.item()) == pytest.approx(2.2e-3, rel=0.2)
    assert list(steric(warm.thetao, warm.so, reference=cold, parts=False).data_vars) == ["steric"]


def test_same_state_has_no_height_and_land_stays_nan():
    ds = ocean()
    first = start_of(ds)
    still = steric(first.thetao, first.so, reference=first)
    land = first.thetao.isel(lev=0).isnull()
    assert land.any()
    for name in still:
        np.testing.assert_array_equal(still[name].isnull(), land)
        assert still[name].fillna(0).max() == 0
        assert still[name].attrs["units"] == "m"


def test_float32_input_and_a_float64_reference_agree():
    ds = ocean()
    single = ds.astype("f4", keep_attrs=True).assign_coords(ds.coords)
    double = single.astype("f8", keep_attrs=True)
    one, two = (global_steric(x.thetao, x.so, reference=start_of(double)).steric for x in (single, double))
    np.testing.assert_allclose(one, two, atol=1e-12)


def test_input_is_untouched_and_attrs_name_the_choices():
    ds = ocean()
    before = ds.copy(deep=True)
    result = steric(ds.thetao, ds.so, reference=start_of(ds), rho0=1026)
    xr.testing.assert_identical(ds, before)
    assert result.attrs["form"] == "boussinesq"
    assert result.attrs["reference_density"] == 1026


def test_errors_name_what_is_wrong():
    ds = ocean()
    first = start_of(ds)
    with pytest.raises(ValueError, match="'boussinesq', 'specvol'"):
        steric(ds.thetao, ds.so, reference=first, form="wright")
    with pytest.raises(ValueError, match=r"'so' must be in '0\.001'"):
        steric(ds.thetao, ds.so.assign_attrs(units="kg m-3"), reference=first)
    with pytest.raises(ValueError, match="must not vary along \\['time'\\]"):
        steric(ds.thetao, ds.so, reference=ds.isel(member=0, drop=True))
    with pytest.raises(ValueError, match="lacks \\['so'\\]"):
        steric(ds.thetao, ds.so, reference=first[["thetao"]])
    with pytest.raises(ValueError, match="share their coordinates"):
        steric(ds.thetao, ds.so, reference=first.assign_coords(lat=first.lat + 0.1))
    with pytest.raises(ValueError, match="positive down"):
        Place.of(ds.thetao.assign_coords(lev=-ds.lev))
    with pytest.raises(ValueError, match=r"lat and lon \(degrees\), got"):
        Place.of(ds.thetao.drop_vars("lon"))


def test_dynamic_sea_level_has_no_mean_at_any_time():
    zos = ocean().thetao.isel(lev=0, drop=True).rename("zos").assign_attrs(units="m")
    dynamic = dynamic_sea_level(zos)
    assert abs(area_mean(dynamic)).max() < 1e-13
    np.testing.assert_allclose(dynamic - dynamic.mean(("lat", "lon")), zos - zos.mean(("lat", "lon")), atol=1e-12)
    assert dynamic.attrs["units"] == "m"
    with pytest.raises(ValueError, match="divide by 100"):
        dynamic_sea_level(zos.assign_attrs(units="cm"))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"member": 1, "lev": 2}, {"lat": 1, "lon": 3, "lev": 1}, {"lat": 3}])
def test_lazy_equals_eager_and_computes_nothing(chunks):
    ds = ocean()
    lazy = ds.chunk(chunks)
    lazy = lazy.assign_coords(areacello=ds.areacello.chunk(lat=1))

    def products(x):
        local = steric(x.thetao, x.so, reference=start_of(x))
        return [*local.data_vars.values(), global_steric(x.thetao, x.so, reference=start_of(x)).steric]

    with dask.config.set(scheduler=refuse_to_compute):
        results = products(lazy)
        results.append(dynamic_sea_level(lazy.thetao.isel(lev=0).assign_attrs(units="m")))
    expected = [*products(ds), dynamic_sea_level(ds.thetao.isel(lev=0).assign_attrs(units="m"))]
    joint = dask.compute(steric(lazy.thetao, lazy.so, reference=start_of(lazy)))[0]
    np.testing.assert_allclose(joint.residual, expected[3], atol=1e-11)
    for ours, wanted in zip(dask.compute(*results), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-11)
