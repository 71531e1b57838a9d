"""Input that cannot be right: each diagnostic says which variable, what came, and what to do, and never guesses."""

import dask
import numpy as np
import pytest
import xarray as xr

import polynya.diagnostics as d

LEV = np.array([5.0, 20, 50, 110, 250, 550])
DZ = np.array([10.0, 20, 40, 80, 200, 400])
LAT, LON = np.arange(-75.0, 80, 10), np.arange(5.0, 360, 10)
SIZES = {"member": 3, "time": 12, "lev": LEV.size, "lat": LAT.size, "lon": LON.size}
MAP = ("time", "lat", "lon")
COLUMN = ("time", "lev", "lat", "lon")


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("computed something lazy")


def field(name, units, dims=MAP, mean=0.0):
    rng = np.random.default_rng(len(name))
    times = xr.date_range("2001-01-03", periods=12, freq="30D", calendar="noleap", use_cftime=True)
    coords = {"member": np.arange(3), "time": times, "lev": LEV, "lat": LAT, "lon": LON}
    coords = {k: v for k, v in coords.items() if k in dims} | (
        {"dz": ("lev", DZ, {"units": "m"})} if "lev" in dims else {}
    )
    values = rng.normal(mean, 1, [SIZES[k] for k in dims])
    return xr.DataArray(values, dims=dims, coords=coords, name=name, attrs={"units": units})


THETA, SALT = field("thetao", "degC", COLUMN, 10.0), field("so", "0.001", COLUMN, 35.0)
ZOS, ENS = field("zos", "m"), field("zos_hat", "m", ("member", *MAP))
HFDS, ICE = field("hfds", "W m-2"), field("siconc", "1").clip(0, 1)
U, V = field("uo", "m s-1", COLUMN), field("vo", "m s-1", COLUMN)
WIDTH = xr.DataArray(np.full(LAT.size, 1e5), dims="lat", coords={"lat": LAT}, attrs={"units": "m"}, name="width")
BASINS = xr.ones_like(ZOS.isel(time=0, drop=True)).rename("basin")


def like(x, values):
    return x.copy(data=np.broadcast_to(values, x.shape).copy())


def reference(theta=THETA, salt=SALT):
    return xr.Dataset({"thetao": theta.mean("time", keep_attrs=True), "so": salt.mean("time", keep_attrs=True)})


COLUMNS = {
    "heat_content": d.heat_content,
    "global_heat_content": d.global_heat_content,
    "mixed_layer_depth": d.mixed_layer_depth,
    "steric": lambda x: d.steric(
        x, SALT.assign_coords(lev=x.lev), reference=reference(x, SALT.assign_coords(lev=x.lev))
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda x: (x + 273.15).assign_attrs(units="K"),
            r"'thetao' must be in 'degC' but has units 'K': subtract 273\.15",
        ),
        (lambda x: x.drop_attrs(deep=False), r"'thetao' must be in 'degC' but has no units attribute: if it is"),
        (lambda x: x.assign_coords(lev=-x.lev), r"'lev'.* positive down, got \[ *-5.*change their sign"),
        (lambda x: x.assign_coords(lev=("lev", LEV, {"positive": "up"})), r"'lev'.* positive down, got positive: up"),
        (lambda x: x.assign_coords(lev=x.lev[::-1].values), r"'lev'.* from the surface downwards.*sortby\('lev'\)"),
        (lambda x: x.assign_coords(lev=[5.0, 20, 20, 110, 250, 550]), r"'lev'.* each once.*drop_duplicates"),
        (lambda x: x.assign_coords(lev=("lev", LEV / 1000, {"units": "km"})), r"'lev'.* 'km': multiply by 1000"),
        (lambda x: x.assign_coords(lev=("lev", LEV, {"units": "dbar"})), r"'lev'.* 'dbar': convert pressure"),
        (lambda x: x.to_dataset(), r"must be a DataArray, got a Dataset: choose one variable"),
        (lambda x: x.values, r"must be a DataArray .* got ndarray"),
    ],
)
def test_columns_of_temperature(name, change, words):
    wrong = change(THETA)
    if name == "steric" and not isinstance(wrong, xr.DataArray):
        pytest.skip("the table's function needs its levels")
    with pytest.raises((ValueError, TypeError), match=words):
        COLUMNS[name](wrong)


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_known_without_data_is_said_at_the_call(lazy):
    wrong = THETA.assign_coords(lev=-THETA.lev)
    with dask.config.set(scheduler=refuse_to_compute), pytest.raises(ValueError, match="positive down"):
        d.heat_content(wrong.chunk(time=1) if lazy else wrong)


@pytest.mark.parametrize("k", [0, 2, 4])
def test_a_missing_level_is_found(k):
    keep = [j for j in range(LEV.size) if j != k]
    with pytest.raises(ValueError, match="do not lie in the layers.*give all layers"):
        d.heat_content(THETA.isel(lev=keep))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: d.heat_content(THETA.drop_vars("dz")), "'thetao' has no layer thickness: assign `dz`"),
        (
            lambda: d.heat_content(THETA, dz=(100 * THETA.dz).assign_attrs(units="cm")),
            "'dz' must be in 'm'.*divide by 100",
        ),
        (lambda: d.heat_content(THETA, dz=-THETA.dz.drop_attrs()), "thickness 'dz' must not be negative"),
        (
            lambda: d.global_heat_content(THETA, area=d.area_of(ZOS).assign_attrs(units="km2")),
            "'m2'.*'km2': multiply by 1e6",
        ),
        (
            lambda: d.global_heat_content(THETA, area=-d.area_of(ZOS).drop_attrs()),
            "'areacello' must be areas in m2 but is neg",
        ),
        (lambda: d.area_of(ZOS.assign_coords(lat=2 * ZOS.lat)), "'lat' must be in degrees but reaches 150"),
        (
            lambda: d.area_of(ZOS.assign_coords(lat=("lat", np.deg2rad(LAT), {"units": "radians"}))),
            "'lat' .* in radians",
        ),
        (lambda: d.isotropic_spectrum(ZOS.assign_coords(lat=1e5 * ZOS.lat)), "'lat' must be in degrees"),
        (lambda: d.select_region(ZOS.assign_coords(lat=1e5 * ZOS.lat), "Kuroshio"), "'lat' must be in degrees"),
        (lambda: d.spherical_spectrum(ZOS.assign_coords(lon=1e5 * ZOS.lon)), "'lon' must be in degrees"),
        (lambda: d.nino34(THETA.assign_attrs(units="m"), window=3), "'thetao' must be in 'degC'"),
        (lambda: d.nino34(THETA.isel(lev=slice(None, None, -1)), window=3, climatology="time mean"), "'lev'.*sortby"),
        (lambda: d.wet_area(THETA.isel(lev=slice(None, None, -1))), "'lev'.*sortby"),
        (lambda: d.steric(SALT, THETA, reference=reference()), "'so' must be in 'degC'"),
        (lambda: d.overturning(V.assign_coords(lev=-V.lev), width=WIDTH), "'lev' of 'vo'"),
        (lambda: d.overturning(V.assign_attrs(units="cm s-1"), width=WIDTH), "'vo' must be in 'm s-1'.*divide by 100"),
        (lambda: d.barotropic_streamfunction(U.isel(lat=slice(None, None, -1)), width=WIDTH), "south to north"),
        (lambda: d.dynamic_sea_level(ZOS.assign_attrs(units="cm")), "'zos' must be in 'm'.*divide by 100"),
        (lambda: d.ice_extent(ZOS), "'zos' must be in '1'"),
        (
            lambda: d.heat_closure(d.global_heat_content(THETA), HFDS.assign_attrs(units="K m s-1")),
            "'hfds' must be in 'W m-2'",
        ),
        (lambda: d.barystatic(HFDS, ocean_area=1.0), "'hfds' must be in 'kg m-2 s-1'"),
    ],
)
def test_units_thickness_areas_and_degrees(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def elsewhere(change):
    return {
        "times": (lambda: change.isel(time=slice(1, None)), r"'time' is 11 from .* not 12 from .*\(11 in common\)"),
        "a day later": (
            lambda: change.assign_coords(time=change.indexes["time"].shift(1, "D")),
            r"'time' is 12 from 2001-01-04.* not 12 from 2001-01-03.*same calendar and time of day",
        ),
        "rounded latitudes": (
            lambda: change.assign_coords(lat=LAT + 1e-6),
            r"'lat' differs by up to 1e-06, by rounding",
        ),
        "other latitudes": (
            lambda: change.assign_coords(lat=LAT + 2),
            r"'lat' differs by up to 2; select or interpolate",
        ),
        "fewer latitudes": (lambda: change.isel(lat=slice(3, 9)), r"'lat' is 6 from -45 to 5 not 16 from -75 to 75"),
        "turned": (
            lambda: change.assign_coords(lon=(LON + 180) % 360 - 180).sortby("lon"),
            r"'lon' counts from another meridian; assign_coords\(lon=lon % 360\)\.sortby",
        ),
        "turned, not sorted": (lambda: change.assign_coords(lon=(LON + 180) % 360 - 180), r"'lon' counts from another"),
        "north first": (
            lambda: change.isel(lat=slice(None, None, -1)),
            r"'lat' runs in another order; sortby\('lat'\)",
        ),
    }


PAIRS = {
    "crps_ensemble": d.crps_ensemble,
    "spread_error": d.spread_error,
    "rank_histogram": d.rank_histogram,
    "score_totals": d.score_totals,
    "event_table": lambda y, x: d.event_table(y, x, threshold=0.0),
    "energy_score": lambda y, x: d.energy_score(y, x, norm_dim=("lat", "lon")),
    "variogram_score": lambda y, x: d.variogram_score(y, x, norm_dim=("lat",)),
    "rmse": d.rmse,
    "bias": d.bias,
    "mae": d.mae,
    "r2": d.r2,
    "anomaly_correlation": d.anomaly_correlation,
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("case", elsewhere(ZOS))
@pytest.mark.parametrize("lazy", [False, True])
def test_forecast_and_observation_of_other_places_or_times(name, case, lazy):
    make, words = elsewhere(ZOS)[case]
    other = make()
    y, x = (other.chunk(time=2), ENS.chunk(time=3)) if lazy else (other, ENS)
    with (
        dask.config.set(scheduler=refuse_to_compute),
        pytest.raises(ValueError, match=f"'zos' and 'zos_hat' .*{words}"),
    ):
        PAIRS[name](y, x)


OTHERS = {
    "heat_closure": lambda x: d.heat_closure(
        d.global_heat_content(THETA), x.rename("hfds").assign_attrs(units="W m-2")
    ),
    "basin_totals": lambda x: d.basin_totals(x, BASINS),
    "area_mean": lambda x: d.area_mean(x, d.area_of(ZOS)),
    "iiee": lambda x: d.iiee(x.clip(0, 1).assign_attrs(units="1"), ICE),
    "eddy_kinetic_energy": lambda x: d.eddy_kinetic_energy(U.isel(lev=0, drop=True), x.assign_attrs(units="m s-1")),
    "anomaly": lambda x: d.anomaly(x, d.annual_cycle(ZOS)),
    "skill_score": lambda x: d.skill_score(ZOS, x),
    "cross_spectrum": lambda x: d.cross_spectrum(ZOS, x, spacing=(1e6, 1e6)),
    "sea_level_closure": lambda x: d.sea_level_closure(ZOS, steric=x),
}
TIME_ONLY = {"heat_closure", "sea_level_closure", "skill_score", "cross_spectrum", "eddy_kinetic_energy", "iiee"}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("case", elsewhere(ZOS))
def test_any_two_fields_of_other_places_or_times(name, case):
    of_time = case in ("times", "a day later")
    if (of_time and name not in TIME_ONLY) or (not of_time and name == "heat_closure"):
        pytest.skip("one of the two has no such dimension")
    make, words = elsewhere(ZOS)[case]
    words = words if of_time else words.split(" ")[0].split(";")[0]
    with pytest.raises(ValueError, match=f"must share their coordinates exactly but do not: {words}"):
        OTHERS[name](make())


def test_members_are_compared_by_number():
    with pytest.raises(ValueError, match=r"the two fields 'zos_hat' .*members \[1, 2\] are not \[0, 1\]"):
        d.rmse(ENS.isel(member=[1, 2]), ENS.isel(member=[0, 1]))
    with pytest.raises(ValueError, match=r"the dimension 'member': got .* name it with member_dim="):
        d.crps_ensemble(ZOS, ENS.rename(member="realization"))


def curvilinear(x, shift=0.0, turn=0.0):
    lat, lon = np.meshgrid(LAT, LON, indexing="ij")
    bare = x.drop_vars(["lat", "lon"]).rename(lat="y", lon="x")
    return bare.assign_coords(lat=(("y", "x"), lat + shift + 0 * lon), lon=(("y", "x"), lon + turn))


def test_places_of_curvilinear_grids_are_compared_too():
    y, x = curvilinear(ZOS), curvilinear(ENS)
    assert np.isfinite(d.crps_ensemble(y, x))
    assert np.isfinite(d.rmse(curvilinear(ZOS, 1e-5, -360.0), x)).all()  # rounding and whole turns are the same place
    with pytest.raises(ValueError, match="same cells but their 'lat' differ by up to 0.5 degrees: interpolate"):
        d.crps_ensemble(curvilinear(ZOS, 0.5), x)
    with pytest.raises(ValueError, match="same cells but their 'lon' differ by up to 10 degrees"):
        d.rmse(curvilinear(ZOS, 0.0, 10.0), x)


@pytest.mark.parametrize("first", [0.0, -180.0, 60.0])
def test_a_region_is_the_same_cells_in_any_convention_of_longitude(first):
    turned = ZOS.assign_coords(lon=(LON - first) % 360 + first).sortby("lon")
    for name in ("Gulf Stream", "Tropical Pacific", d.Region(-30, 20, -40, 40)):
        np.testing.assert_array_equal(d.select_region(turned, name), d.select_region(ZOS, name))
    places = {"a": (15.0, -175.0), "b": (15.0, 185.0)}
    found = d.at_points(turned, places, farthest=1e6)
    np.testing.assert_array_equal(found[:, 0], ZOS.sel(lat=15, lon=185))
    np.testing.assert_array_equal(found[:, 1], ZOS.sel(lat=15, lon=185))
    np.testing.assert_allclose(
        d.nino34(THETA.assign_coords(lon=(LON - first) % 360 + first), window=3, climatology="time mean"),
        d.nino34(THETA, window=3, climatology="time mean"),
        atol=1e-12,
    )


EMPTY_NAN = {
    "area_mean": d.area_mean,
    "dynamic_sea_level": d.dynamic_sea_level,
    "basin_totals": lambda x: d.basin_totals(x, BASINS),
    "select_region": lambda x: d.select_region(x, "Tropical Pacific"),
    "trend": d.trend,
    "temporal_variance": d.temporal_variance,
    "temporal_spectrum": d.temporal_spectrum,
    "autocorrelation": d.autocorrelation,
    "annual_cycle": d.annual_cycle,
    "fill": lambda x: d.isotropic_spectrum(x, spacing=(1e5, 1e5), land="fill"),
    "taper": lambda x: d.isotropic_spectrum(x, spacing=(1e5, 1e5), land="taper"),
    "structure": lambda x: d.structure_function(x, spacing=(1e5, 1e5))["structure"],
    "crps": lambda x: d.crps_ensemble(x, ENS),
    "rmse": lambda x: d.rmse(x, ENS),
    "spread": lambda x: d.spread_error(x, ENS)["spread"],
    "scores": lambda x: d.scores(d.score_totals(x, ENS))["crps"],
    "energy": lambda x: d.energy_score(x, ENS, norm_dim=("lat", "lon")),
}
EMPTY_ERROR = {
    "isotropic_spectrum": (
        lambda x: d.isotropic_spectrum(x, spacing=(1e5, 1e5)),
        "'zos': a spectrum needs maps .* 100.0%",
    ),
    "spherical_spectrum": (d.spherical_spectrum, "without NaN"),
    "eofs": (lambda x: d.eofs(x, modes=2)["eof"], "a value at every time.*select another box"),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", EMPTY_NAN)
def test_nothing_but_nan_gives_nan_from_memory_and_lazily(name, lazy):
    empty = like(ZOS, np.nan)
    found = EMPTY_NAN[name](empty.chunk(time=3) if lazy else empty)
    assert (found.chunks is not None) == lazy
    assert found.compute().isnull().all()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", EMPTY_ERROR)
def test_nothing_but_nan_is_an_error_where_there_is_no_nan_to_return(name, lazy):
    function, words = EMPTY_ERROR[name]
    empty = like(ZOS, np.nan)
    if name == "spherical_spectrum":
        empty = xr.DataArray(
            np.full((12, 18, 36), np.nan), dims=MAP, coords={"lat": np.arange(-85, 90, 10.0), "lon": LON}
        )
    with pytest.raises(ValueError, match=words):
        function(empty.chunk(time=3) if lazy else empty).compute()


def test_heat_uptake_of_no_ocean_is_an_error():
    empty = like(THETA, np.nan)
    with pytest.raises(ValueError, match="no wet cell"):
        d.heat_uptake(d.global_heat_content(empty), area=d.wet_area(empty))


BACK = ZOS.isel(time=[0, 2, 1, 3, 4, 5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: d.tendency(BACK), r"'time' must rise but record 2 at .* follows .*sortby\('time'\)"),
        (lambda: d.trend_with_error(BACK), "'time' must rise"),
        (lambda: d.trend_with_error(ZOS.isel(time=[0, 1, 2, 3, 4, 4])), "'time' must rise.*drop_duplicates"),
        (
            lambda: d.heat_closure(*(x.isel(time=[1, 0, 2]) for x in (d.global_heat_content(THETA), HFDS))),
            "'time' must rise",
        ),
        (lambda: d.barystatic(BACK.assign_attrs(units="kg m-2 s-1"), ocean_area=1.0), "'time' must rise"),
        (lambda: d.trend(ZOS.isel(time=[1, 1, 1])), "two different times"),
        (lambda: d.trend(ZOS.drop_vars("time")), "needs the dimension and coordinate 'time', but 'zos' has"),
        (lambda: d.detrended(ZOS[0]), "needs the dimension and coordinate 'time', but 'zos' has dimensions"),
        (lambda: d.deseasoned(ZOS.rename(time="t")), "'time', but 'zos' has.*or name yours with dim="),
        (lambda: d.annual_cycle(ZOS[0]), "an annual cycle needs the dimension and coordinate 'time'"),
        (lambda: d.anomaly(ZOS[0]), "an anomaly needs the dimension and coordinate 'time'"),
        (lambda: d.annual_cycle(ZOS.assign_coords(time=np.arange(12))), "'time' must hold cftime dates"),
        (lambda: d.temporal_spectrum(ZOS[:3]), "four values along 'time', got 3 in 'zos'"),
        (lambda: d.autocorrelation(ZOS.drop_vars("time")), "needs the dimension and coordinate 'time'"),
        (lambda: d.temporal_coherence(ZOS[0], ZOS[0], segment=4), "needs the dimension and coordinate 'time'"),
    ],
)
def test_times(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("score", [d.rmse, d.bias, d.crps_ensemble, d.spread_error, d.rank_histogram, d.r2])
def test_arrays_without_names_are_refused(score):
    with pytest.raises(TypeError, match="observations must be a DataArray .* got ndarray"):
        score(ZOS.values, ENS.values)
    with pytest.raises(TypeError, match=r"observations must be a DataArray, got a Dataset: choose one .*'zos'"):
        score(ZOS.to_dataset(), ENS)


def test_a_huge_chunk_is_refused_by_name_before_it_is_read():
    with pytest.raises(d.MemoryNeededError, match="a chunk of 'thetao' is too large; open it in chunks at least"):
        d.compute(d.global_heat_content(THETA.to_dataset().chunk().thetao), memory="100 kB", workers=1)
