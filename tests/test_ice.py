"""Amounts of sea ice and errors of its edge against discs, caps and loops; drift against turned and scaled vectors."""

import itertools

import dask
import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import (
    drift_error,
    ice_area,
    ice_extent,
    ice_probability,
    ice_volume,
    iiee,
    isotropic_spectrum,
    marginal_ice_zone,
    snow_volume,
    sps,
)

RADIUS = 6.371e6
DX = 1e3


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def concentration(values, **attrs):
    """Concentration (…, y, x) on cells of 1 km, NaN on land."""
    dims = ("member", "time", "y", "x")[-np.ndim(values) :]
    area = np.full(np.shape(values)[-2:], DX**2)
    coords = {"areacello": (("y", "x"), area, {"units": "m2"})}
    return xr.DataArray(values, dims=dims, coords=coords, name="siconc", attrs={"units": "1", **attrs})


def disc(radius, *, at=(0.0, 0.0), value=1.0, n=300):
    y, x = (np.arange(n) + 0.5 - n / 2) * DX, (np.arange(n) + 0.5 - n / 2) * DX
    return concentration(np.where(np.hypot(y[:, None] - at[0], x - at[1]) <= radius, value, 0.0))


def lens(radius, distance):
    """Common area of two circles."""
    chord = distance / 2 * np.sqrt(4 * radius**2 - distance**2)
    return 2 * radius**2 * np.arccos(distance / (2 * radius)) - chord


def weather(*shape, seed=0, land=0.2, dtype="f4"):
    """Random concentrations with clusters at 0 and 1, fixed land and varying areas."""
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(0.4, 0.5, shape), 0, 1).astype(dtype)
    values[..., np.random.default_rng(99).random(shape[-2:]) < land] = np.nan
    field = concentration(values)
    return field.assign_coords(areacello=field.areacello * np.random.default_rng(7).uniform(1, 2, shape[-2:]))


def with_units(field):
    field.areacello.attrs["units"] = "m2"
    return field


def test_disc_has_its_extent_area_and_volume():
    field = disc(100e3, value=0.5)
    circle = np.pi * 100e3**2
    assert ice_extent(field).item() == pytest.approx(circle, rel=1e-3)
    assert ice_area(field).item() == pytest.approx(circle / 2, rel=1e-3)
    thick = xr.full_like(field, 2.0).assign_attrs(units="m").rename("sithick")
    assert ice_volume(thick, field).item() == pytest.approx(circle, rel=1e-3)
    assert marginal_ice_zone(field).item() == ice_extent(field).item()


def test_polar_cap_has_the_area_of_the_sphere():
    lat, lon = np.arange(60.5, 90), np.arange(0.5, 360)
    values = np.where(lat[:, None] > 70, 0.9, np.nan) * np.ones(lon.size)
    field = xr.DataArray(values, dims=("lat", "lon"), coords={"lat": lat, "lon": lon}, attrs={"units": "1"})
    cap = 2 * np.pi * RADIUS**2 * (1 - np.sin(np.deg2rad(70)))
    assert ice_extent(field).item() == pytest.approx(cap, rel=1e-12)
    assert ice_area(field).item() == pytest.approx(0.9 * cap, rel=1e-12)
    assert marginal_ice_zone(field).item() == 0


def test_amounts_equal_a_loop_over_cells():
    field = with_units(weather(2, 3, 9, 11))
    thick = (field * 0 + 1.5).assign_attrs(units="m")
    extent, covered, zone, volume = np.zeros((4, 2, 3))
    for m, t, j, i in np.ndindex(field.shape):
        c, a = float(field.values[m, t, j, i]), float(field.areacello[j, i])
        if np.isfinite(c):
            extent[m, t] += a * (c >= 0.15)
            covered[m, t] += a * c
            zone[m, t] += a * (0.15 <= c < 0.8)
            volume[m, t] += a * 1.5 * c
    np.testing.assert_allclose(ice_extent(field), extent, rtol=1e-12)
    np.testing.assert_allclose(ice_area(field), covered, rtol=1e-12)
    np.testing.assert_allclose(marginal_ice_zone(field), zone, rtol=1e-12)
    np.testing.assert_allclose(ice_volume(thick, field), volume, rtol=1e-12)
    np.testing.assert_allclose(snow_volume(thick, field), volume, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("threshold", [0.15, 0.3, 0.7])
def test_fifteen_percent_is_ice_in_every_spelling(dtype, threshold):
    fraction = concentration(np.full((1, 1), threshold, dtype))
    percent = concentration(np.full((1, 1), round(100 * threshold), dtype), units="%")
    for field in (fraction, percent):
        assert ice_extent(field, threshold=threshold).item() == DX**2
        assert marginal_ice_zone(field, limits=(0.1, threshold)).item() == 0
    assert ice_area(percent).item() == pytest.approx(threshold * DX**2)


def test_thickness_per_cell_and_per_ice():
    c = concentration(np.array([[0.5, np.nan, 0.0]]))
    per_ice = concentration(np.array([[2.0, np.nan, np.nan]])).assign_attrs(units="m")
    per_cell = concentration(np.array([[1.0, np.nan, 0.0]])).assign_attrs(units="m")
    assert ice_volume(per_ice, c).item() == ice_volume(per_cell).item() == DX**2
    says_ice = per_ice.assign_attrs(cell_methods="area: mean where sea_ice time: mean").rename("sithick")
    with pytest.raises(ValueError, match=r"'sithick'.*give siconc"):
        ice_volume(says_ice)
    assert ice_volume(says_ice, c).item() == DX**2
    with pytest.raises(ValueError, match="leave siconc out"):
        ice_volume(per_cell.assign_attrs(cell_methods="area: mean where sea"), c)
    with pytest.raises(ValueError, match="divide by 100"):
        ice_volume(per_cell.assign_attrs(units="cm"))


def test_nothing_known_is_nan_and_no_ice_is_zero():
    field = concentration(np.stack([np.full((3, 3), np.nan), np.zeros((3, 3))]))
    for amount in (ice_extent, ice_area, marginal_ice_zone):
        np.testing.assert_array_equal(amount(field), [np.nan, 0])


def test_amounts_say_what_they_are():
    extent = ice_extent(weather(2, 4, 5).pipe(with_units))
    assert extent.attrs["units"] == "m2"
    assert extent.attrs["standard_name"] == "sea_ice_extent"
    assert extent.attrs["cell_methods"] == "y: x: sum"
    assert extent.dims == ("time",)


def test_bad_amounts_are_refused():
    field = disc(1e4, n=30)
    with pytest.raises(ValueError, match="15 % is 0.15"):
        ice_extent(field, threshold=15)
    with pytest.raises(ValueError, match="low < high"):
        marginal_ice_zone(field, limits=(0.8, 0.15))
    with pytest.raises(ValueError, match="'siconc' must be in '1'"):
        ice_area(field.assign_attrs(units="tenths"))
    with pytest.raises(ValueError, match="no units attribute"):
        ice_area(field.drop_attrs())
    with pytest.raises(ValueError, match="cell areas need"):
        ice_area(field.drop_vars("areacello"))


@pytest.mark.parametrize("distance", [20e3, 90e3])
def test_shifted_disc_is_misplaced_by_its_lunes(distance):
    score = iiee(disc(80e3, at=(0, -distance / 2)), disc(80e3, at=(0, distance / 2)))
    lune = np.pi * 80e3**2 - lens(80e3, distance)
    assert score.iiee.item() == pytest.approx(2 * lune, rel=0.01)
    assert score.over.item() == score.under.item() == score.iiee.item() / 2
    assert score.misplacement.item() == score.iiee.item()
    assert score.absolute.item() == 0


def test_larger_disc_is_wrong_in_extent_only():
    score = iiee(disc(60e3), disc(80e3, at=(3e3, 0)))
    assert score.over.item() == pytest.approx(np.pi * (80e3**2 - 60e3**2), rel=5e-3)
    assert score.under.item() == score.misplacement.item() == 0
    assert score.absolute.item() == score.iiee.item() == score.over.item()
    turned = iiee(disc(80e3, at=(3e3, 0)), disc(60e3))
    assert turned.under.item() == score.over.item()


def test_parts_of_the_edge_error_equal_a_loop_for_members_and_leads():
    obs, forecast = with_units(weather(3, 8, 9, seed=1)), weather(2, 3, 8, 9, seed=2)
    obs[0, 2, 3] = np.nan  # a gap in the observations alone
    score = iiee(obs, forecast.assign_coords(member=[4, 7]))
    over, under = np.zeros((2, 2, 3))
    for m, t, j, i in np.ndindex(forecast.shape):
        f, o, a = float(forecast.values[m, t, j, i]), float(obs.values[t, j, i]), float(obs.areacello[j, i])
        if np.isfinite(f + o):
            over[m, t] += a * (f >= 0.15 > o)
            under[m, t] += a * (o >= 0.15 > f)
    np.testing.assert_allclose(score.over, over, rtol=1e-12)
    np.testing.assert_allclose(score.under, under, rtol=1e-12)
    np.testing.assert_allclose(score.iiee, over + under, rtol=1e-12)
    np.testing.assert_allclose(score.absolute, abs(over - under), rtol=1e-12)
    np.testing.assert_allclose(score.misplacement, 2 * np.minimum(over, under), rtol=1e-12)
    assert score.iiee.dims == ("member", "time")
    assert score.member.values.tolist() == [4, 7]
    assert {v.attrs["units"] for v in score.values()} == {"m2"}


def test_probability_score_equals_a_double_loop():
    obs, ens = with_units(weather(3, 6, 7, seed=1)), weather(5, 3, 6, 7, seed=2)
    ens[1, 0, 2, 2] = np.nan  # one member lacks one cell
    plain, fair = np.zeros((2, 3))
    for t, j, i in np.ndindex(obs.shape):
        if np.isfinite(obs.values[t, j, i]) and np.isfinite(ens.values[:, t, j, i]).all():
            p = sum(float(c) >= 0.15 for c in ens.values[:, t, j, i]) / 5
            a, o = float(obs.areacello[j, i]), float(obs.values[t, j, i] >= 0.15)
            plain[t] += a * (p - o) ** 2
            fair[t] += a * ((p - o) ** 2 - p * (1 - p) / 4)
    np.testing.assert_allclose(sps(obs, ens), plain, rtol=1e-12)
    np.testing.assert_allclose(sps(obs, ens, fair=True), fair, rtol=1e-12)
    assert sps(obs, ens).attrs["members"] == 5


def test_probability_score_of_one_member_is_its_edge_error():
    obs, ens = with_units(weather(3, 6, 7, seed=1)), weather(1, 3, 6, 7, seed=2)
    np.testing.assert_allclose(sps(obs, ens), iiee(obs, ens.isel(member=0)).iiee, rtol=1e-13)


@pytest.mark.parametrize(("members", "p"), [(2, 0.5), (5, 0.2)])
def test_fair_probability_score_is_right_on_average_over_all_ensembles(members, p):
    draws = np.array(list(itertools.product([0.0, 1.0], repeat=members))).T  # (member, every outcome)
    chance = p ** draws.sum(0) * (1 - p) ** (members - draws.sum(0))
    ens = concentration(draws[:, :, None, None])
    obs = xr.zeros_like(ens.isel(member=0, drop=True))
    fair, plain = ((sps(obs, ens, fair=f).values * chance).sum() / DX**2 for f in (True, False))
    assert fair == pytest.approx(p**2)
    assert plain == pytest.approx(p**2 + p * (1 - p) / members)


def test_percent_observations_score_against_fractions():
    obs, ens = with_units(weather(6, 7, seed=1)), weather(3, 2, 6, 7, seed=2).isel(time=0, drop=True)
    percent = (obs * 100).assign_attrs(units="%")
    percent.areacello.attrs["units"] = "m2"
    assert sps(percent, ens).item() == sps(obs, ens).item()
    assert iiee(percent, ens[0]).iiee.item() == iiee(obs, ens[0]).iiee.item()


def test_bad_edges_are_refused():
    obs, ens = with_units(weather(6, 7)), weather(1, 2, 6, 7).isel(time=0, drop=True)
    with pytest.raises(ValueError, match="at least two members"):
        sps(obs, ens, fair=True)
    with pytest.raises(ValueError, match="member_dim="):
        sps(obs, obs)
    with pytest.raises(ValueError, match="observations first"):
        iiee(ens, obs, area=obs.areacello)
    with pytest.raises(ValueError, match="share"):
        iiee(obs, ens.isel(x=slice(3)))
    assert ice_probability(ens).attrs["units"] == "1"


def drift(*shape, seed=0):
    rng = np.random.default_rng(seed)
    dims = ("member", "time", "y", "x")[-len(shape) :]
    area = rng.uniform(1e8, 2e8, shape[-2:])
    coords = {"areacello": (("y", "x"), area, {"units": "m2"})}
    return tuple(
        xr.DataArray(rng.normal(0.05, 0.1, shape), dims=dims, coords=coords, name=name, attrs={"units": "m s-1"})
        for name in ("siu", "siv")
    )


def turned(velocity, degrees, factor=1.0):
    z = (velocity[0].values + 1j * velocity[1].values) * factor * np.exp(1j * np.deg2rad(degrees))
    return tuple(c.copy(data=part) for c, part in zip(velocity, (z.real, z.imag), strict=True))


@pytest.mark.parametrize(("degrees", "factor"), [(0, 1), (25, 1), (-40, 1.5)])
def test_turned_drift_correlates_fully_and_veers(degrees, factor):
    obs = drift(4, 6, 7)
    score = drift_error(obs, turned(obs, degrees, factor))
    assert score["correlation"].item() == pytest.approx(1, abs=1e-12)
    assert score["veering"].item() == pytest.approx(degrees, abs=1e-9)
    weights = np.broadcast_to(obs[0].areacello, obs[0].shape)
    power = np.average(obs[0] ** 2 + obs[1] ** 2, weights=weights)
    expected = abs(factor * np.exp(1j * np.deg2rad(degrees)) - 1) * np.sqrt(power)
    assert score["rmse"].item() == pytest.approx(expected, abs=1e-9)
    speed = np.average(np.hypot(*obs), weights=weights)
    assert score["speed_bias"].item() == pytest.approx((factor - 1) * speed, abs=1e-12)


def test_drift_error_of_members_where_there_is_ice_equals_numpy():
    obs, forecast = drift(4, 6, 7, seed=1), drift(3, 4, 6, 7, seed=2)
    forecast[0][1, 2, 3, 3] = np.nan
    ice = concentration(np.random.default_rng(3).uniform(0, 1, (4, 6, 7)))
    score = drift_error(obs, forecast, siconc=ice)
    assert score["rmse"].dims == ("member",)
    for m in range(3):
        f, o = (u.values + 1j * v.values for u, v in (tuple(c[m] for c in forecast), obs))
        a = np.where((ice.values >= 0.15) & np.isfinite(f), np.broadcast_to(obs[0].areacello, f.shape), 0)
        f = np.nan_to_num(f)
        d_f, d_o = (z - (a * z).sum() / a.sum() for z in (f, o))
        r = (a * d_o.conj() * d_f).sum() / np.sqrt((a * abs(d_o) ** 2).sum() * (a * abs(d_f) ** 2).sum())
        assert score["rmse"][m].item() == pytest.approx(np.sqrt((a * abs(f - o) ** 2).sum() / a.sum()))
        assert score["correlation"][m].item() == pytest.approx(abs(r))
        assert score["veering"][m].item() == pytest.approx(np.angle(r, deg=True))
    still = drift_error(obs, obs, dim="time")
    assert still["rmse"].dims == ("y", "x")
    np.testing.assert_allclose(still["rmse"], 0)


def test_drift_in_other_units_is_refused():
    obs = drift(4, 5)
    with pytest.raises(ValueError, match="divide by 100"):
        drift_error(obs, (obs[0], obs[1].assign_attrs(units="cm s-1")))
    with pytest.raises(ValueError, match="lacks"):
        drift_error(drift(3, 4, 5), obs)


CHUNKS = [{"time": 1}, {"member": 1, "y": 3}, {"x": 2, "time": 2}, {"member": -1, "y": 1}]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_lazy_equals_eager_and_computes_nothing(chunks):
    obs, ens = with_units(weather(3, 6, 7, seed=1)), with_units(weather(4, 3, 6, 7, seed=2))
    w_obs, w_ens = drift(3, 6, 7, seed=1), drift(4, 3, 6, 7, seed=2)

    def everything(o, e, wo, we):
        thick = e.assign_attrs(units="m")
        edge, moved = iiee(o, e), drift_error(wo, we, siconc=o)
        return {
            "extent": ice_extent(e),
            "area": ice_area(e),
            "zone": marginal_ice_zone(e),
            "volume": ice_volume(thick, e),
            "sps": sps(o, e, fair=True),
            **edge.data_vars,
            **moved.data_vars,
        }

    eager = everything(obs, ens, w_obs, w_ens)
    few = {d: n for d, n in chunks.items() if d != "member"}
    with dask.config.set(scheduler=refuse_to_compute):
        lazy_obs, lazy_ens = obs.chunk(few), ens.chunk(chunks)
        winds = tuple(c.chunk(few) for c in w_obs), tuple(c.chunk(chunks) for c in w_ens)
        lazy = everything(lazy_obs, lazy_ens, *winds)
    assert all(x.chunks is not None for x in lazy.values())
    for name, x in lazy.items():
        xr.testing.assert_allclose(x.compute(), eager[name], rtol=1e-10)
        assert x.attrs == eager[name].attrs
    for make in (lambda: iiee(lazy_obs, lazy_ens), lambda: drift_error(*winds)):
        (together,) = dask.compute(make())
        for name, x in together.data_vars.items():
            assert x.shape == (4, 3)[: x.ndim], name


def test_spectra_of_ice_fields_have_the_published_form():
    """Mean over rings k - 1/2 to k + 1/2 times their area, as the regional diffusion model was scored."""
    n = 32
    field = xr.DataArray(np.random.default_rng(0).normal(size=(2, n, n)), dims=("time", "y", "x"), attrs={"units": "m"})
    options = {"spacing": (12.5e3, 12.5e3), "detrend": None, "window": None}
    ours = isotropic_spectrum(field, normalize="mean", **options)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(n) * n, np.fft.fftfreq(n) * n, indexing="ij"))
    power = abs(np.fft.fft2(field.values)) ** 2
    for b in range(1, 16):
        ring = (k >= b - 0.5) & (k < b + 0.5)
        theirs = power[:, ring].mean(1) * np.pi * ((b + 0.5) ** 2 - (b - 0.5) ** 2)
        np.testing.assert_allclose(ours[:, b] * ours.attrs["ring_width"], theirs / n**4, rtol=1e-10)
