"""The LETKF at the size of an ocean: interpolated and kept weights, memory, basins, factors, superobs, roots."""

from __future__ import annotations

from dataclasses import replace

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from polynya.da import LETKF, Observations, operator_for, transform
from polynya.da.filters import departures, update
from polynya.da.localise import BasinObservations, LocalObservations, connected_basins
from polynya.da.weights import analysis_columns, zonally_periodic
from polynya.emulators import Field, Layout, LayoutError, State

torch.set_num_threads(1)
DAY = cftime.DatetimeNoLeap(2000, 1, 6)
NY, NX = 30, 90
LAT, LON = -58.0 + 4.0 * np.arange(NY), 4.0 * np.arange(NX)
SPACING = 4 * 111.2e3  # m, between rows
FIELDS = (Field("thetao", 2), Field("so", 2), Field("zos"))


def make_layout(wet=None, fields=FIELDS, curvilinear=False):
    wet = np.ones((NY, NX), bool) if wet is None else wet
    deep = wet & (np.hypot(*np.meshgrid(np.arange(NY) - 10, np.arange(NX) - 30, indexing="ij")) > 6)
    dims = ("y", "x") if curvilinear else ("lat", "lon")
    positions = {"lat": ("lat", LAT), "lon": ("lon", LON)}
    if curvilinear:
        y, x = np.meshgrid(LAT, LON, indexing="ij")
        positions = {"lat": (dims, y + 1.5 * np.sin(np.radians(x))), "lon": (dims, x + 0.05 * y)}
    coords = positions | {
        "lev": ("lev", np.array([10.0, 150.0])),
        "dz": ("lev", np.array([20.0, 260.0])),
        "areacello": (dims, np.full((NY, NX), 2e11)),
        "wetmask": (("lev", *dims), np.stack([wet, deep])),
    }
    return Layout(fields, xr.Dataset(coords=coords))


def continents():
    """A sea with two meridional barriers and a lake."""
    wet = np.ones((NY, NX), bool)
    wet[4:, 11] = wet[:26, 60] = False
    wet[12:17, 18:23] = False
    wet[14, 20] = True
    return wet


SEA, LAND = make_layout(), make_layout(continents())


def smooth(count, channels, seed, length=4.0):
    """Random fields with a Gaussian correlation over some cells, (count, channel, y, x) float64."""
    white = np.fft.rfft2(np.random.default_rng(seed).normal(size=(count, channels, NY, NX)))
    k2 = np.add.outer(np.fft.fftfreq(NY) ** 2, np.fft.rfftfreq(NX) ** 2) * (2 * np.pi) ** 2
    x = np.fft.irfft2(white * np.exp(-k2 * length**2 / 4), s=(NY, NX))
    x[:, 1:] = 0.7 * x[:, 1:] + 0.7 * x[:, :1]
    return torch.from_numpy(x / x.std())


def ensemble(layout=SEA, n=20, seed=0, dtype=torch.float64):
    data = smooth(n, layout.shape[0], seed) * layout.mask
    return State(data.to(dtype), DAY, layout, tuple(range(n)))


def some_observations(layout=SEA, p=300, seed=1, error=0.3, variables=("thetao", "zos")):
    rng = np.random.default_rng(seed)
    table = {
        "variable": rng.choice(variables, p),
        "lat": rng.uniform(LAT[0], LAT[-1], p),
        "lon": rng.uniform(0, 360, p),
        "value": rng.normal(size=p),
        "error": error * rng.uniform(0.8, 1.2, p),
    }
    obs = operator_for(layout, Observations.from_table(DAY, table), drop=True).observations
    truth = State(smooth(1, layout.shape[0], 77) * layout.mask, DAY, layout, (0,))
    return obs.replace(value=operator_for(layout, obs).apply(truth)[0].numpy() + obs.error * rng.normal(size=len(obs)))


def same(a, b, tolerance=1e-10):
    assert (a.data - b.data).abs().max() <= tolerance * b.data.abs().max()


def before_weights(method, forecast, obs):
    """The analysis as it was before there were strides: the loop over blocks of `transform` and `update`."""
    layout = forecast.layout
    Y, d = departures(forecast, obs)
    data, wet = forecast.data.flatten(-2), layout.mask.flatten(-2)
    out = data.clone()
    groups = [(c, wet[c], t) for c, t in method.level_groups(layout, obs)]
    some_wet = torch.stack([w.any(0) for _, w, _ in groups]).any(0)
    for columns, near, rho in method.column_blocks(layout, obs, some_wet.nonzero()[:, 0]):
        for channels, water, taper in groups:
            local = rho * taper[near]
            T, w = transform(Y[near], d[near], local, inflation=method.inflation, rtpp=method.rtpp)
            seen = (local > 0).any(-1) | (method.inflation != 1)
            for part in torch.split(columns, method.block):
                update(out, data, ~(water[:, part] & seen), channels, part, T, w)
    return forecast.replace(data=out.view_as(forecast.data))


METHODS = [
    pytest.param(LETKF(6e5), id="plain"),
    pytest.param(LETKF(6e5, inflation=1.1, rtpp=0.4, block=50), id="inflated"),
    pytest.param(LETKF(6e5, vertical_half_width=90.0, max_observations=9), id="vertical"),
    pytest.param(LETKF(None, rtpp=0.2), id="global"),
    pytest.param(LETKF(9e5, stride=3, block=40), id="stride"),
    pytest.param(LETKF(1.6e6, stride="auto", vertical_half_width=90.0), id="auto"),
    pytest.param(LETKF(9e5, stride=2, basins="connected", inflation=1.05), id="basins"),
    pytest.param(LETKF(9e5, variable_factors={("thetao", "zos"): 0.3, ("zos", "so"): 0.0}), id="factors"),
    pytest.param(LETKF(9e5, variables=("zos", "thetao"), stride=2), id="variables"),
]
methods = pytest.mark.parametrize("method", METHODS)


# --- interpolation -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS[:4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [SEA, LAND], ids=["sea", "land"])
def test_stride_one_is_column_by_column(method, dtype, layout):
    forecast, obs = ensemble(layout, dtype=dtype), some_observations(layout, 60)
    found, wanted = method.analysis(forecast, obs).data, before_weights(method, forecast, obs).data
    if dtype == torch.float64:
        assert torch.equal(found, wanted)
    else:  # whose weights are in float32
        assert (found - wanted).abs().max() < 2e-6 * wanted.abs().max()
    fits = replace(method, stride="auto", half_width=method.half_width and 1e5)  # less than a row apart
    assert torch.equal(fits.analysis(forecast, obs).data, replace(fits, stride=1).analysis(forecast, obs).data)


@pytest.mark.parametrize(
    ("layout", "half_widths", "percent"),
    [
        pytest.param(SEA, 8.1, 1.0, id="sea, stride 2"),
        pytest.param(SEA, 12.1, 2.0, id="sea, stride 3"),
        pytest.param(LAND, 8.1, 2.0, id="land, stride 2"),
        pytest.param(
            LAND, 12.1, 3.5, id="land, stride 3"
        ),  # the taper spans the basins: what is left is next to coasts
        pytest.param(make_layout(continents(), curvilinear=True), 8.1, 2.0, id="curvilinear, stride 2"),
    ],
)
def test_error_of_the_recommended_stride_in_percent_of_the_posterior_spread(layout, half_widths, percent):
    forecast, obs = ensemble(layout, 30), some_observations(layout, 400)
    method = LETKF(half_widths * SPACING)
    exact, coarse = (replace(method, stride=s).analysis(forecast, obs) for s in (1, "auto"))
    wet = layout.mask.any(0).numpy()
    columns = analysis_columns(layout, wet, "auto", method.half_width)
    assert len(columns.cells) < (0.35 if half_widths < 10 else 0.2) * wet.sum()
    spread = exact.data.std(0).square().mean().sqrt()
    for error in (coarse.data - exact.data, coarse.data.mean(0) - exact.data.mean(0)):
        assert 0 < error.square().mean().sqrt() < percent / 100 * spread


def shares_matrix(columns, size):
    """Dense (cell, cell): how the weights of every column are made of those of the analysis columns."""
    W = np.zeros((size, size))
    for k, cell in enumerate(columns.every.tolist()):
        np.add.at(W[cell], columns.cells[columns.around[k]].numpy(), columns.share[k].numpy())
    return W


@pytest.mark.parametrize("stride", [2, 3, 5, "auto"])
@pytest.mark.parametrize("layout", [SEA, LAND], ids=["sea", "land"])
def test_shares(layout, stride):
    wet = layout.mask.any(0).numpy()
    labels = connected_basins(wet, periodic=True)
    labels[3:8, 70:75] = 7
    columns = analysis_columns(layout, wet, stride, 8.1 * SPACING, labels)
    W = shares_matrix(columns, NY * NX)
    np.testing.assert_allclose(W.sum(1), wet.ravel(), atol=1e-12)
    assert (W[:, ~wet.ravel()] == 0).all()
    np.testing.assert_array_equal(W[columns.cells, columns.cells], 1.0)  # its own weights where there are some
    y, x = np.divmod(np.arange(NY * NX), NX)
    assert (W[labels.ravel()[:, None] != labels.ravel()] == 0).all()
    assert len(columns.cells) < (0.7 if layout is LAND else 0.6) * wet.sum()
    if layout is SEA and stride != "auto":  # far from the label a cubic polynomial is reproduced, also across the seam
        far = (y > 15) & (y < 22)
        np.testing.assert_allclose((W @ (y**3 - 4.0 * y))[far], (y**3 - 4.0 * y)[far], atol=1e-8)
        inland = far & (x > 2 * stride) & (x < NX - 3 * stride)
        np.testing.assert_allclose((W @ x**3.0)[inland], (x**3.0)[inland], atol=1e-7)
        wave = np.cos(2 * np.pi * x / NX)
        assert np.abs(W @ wave - wave)[far].max() < 1e-3
    if layout is LAND:
        lake = 14 * NX + 20
        assert W[lake, lake] == 1.0  # a column of its own


def test_interpolated_gains_are_shares_of_exact_ones():
    forecast, obs = ensemble(LAND), some_observations(LAND)
    method = LETKF(1.2e6, stride=3)
    exact, coarse = (replace(method, stride=s).weights(forecast, obs) for s in (1, 3))
    G = torch.zeros(NY * NX, 20, 20, dtype=torch.float64)
    G[exact.columns.cells] = exact.gains[0]
    mixed = torch.einsum("ij,jab->iab", torch.from_numpy(shares_matrix(coarse.columns, NY * NX)), G)
    X = (forecast.data - forecast.data.mean(0)).flatten(-2)
    wanted = forecast.data + torch.einsum("jcs,sji->ics", X, mixed).view_as(forecast.data) * LAND.mask
    same(method.analysis(forecast, obs), forecast.replace(data=wanted), 1e-12)


@pytest.mark.parametrize("error", [0.3, 0.003], ids=["common", "accurate"])
def test_single_precision_agrees_with_double(error):
    forecast, obs = ensemble(LAND), some_observations(LAND, error=error)
    method = LETKF(1.2e6, stride=3)
    exact = method.analysis(forecast, obs)
    single = method.analysis(forecast.to(torch.float32), obs)
    assert single.data.dtype == torch.float32
    assert (single.data - exact.data).square().mean().sqrt() < 1e-3 * exact.data.std(0).square().mean().sqrt()


@pytest.mark.parametrize("curvilinear", [False, True])
def test_the_seam_is_nothing_special(curvilinear):
    layout = make_layout(curvilinear=curvilinear)
    assert zonally_periodic(layout)
    assert not zonally_periodic(replace(layout, grid=layout.grid.isel({layout.dims[1]: slice(0, 20)})))
    if curvilinear:
        return
    layout, shift = replace(layout, fields=FIELDS[2:]), 12
    forecast, obs = ensemble(layout), some_observations(layout, variables=("zos",))
    method = LETKF(1.5e6, stride=3)  # 90 columns: the analysis columns shift onto each other
    moved = forecast.replace(data=forecast.data.roll(shift, -1))
    there = method.analysis(moved, obs.replace(lon=obs.lon + shift * 4.0))
    same(there.replace(data=there.data.roll(-shift, -1)), method.analysis(forecast, obs), 1e-10)


@methods
def test_what_must_not_change_does_not_change_a_bit(method):
    method, forecast, land = replace(method, inflation=1.0), ensemble(LAND), ~LAND.mask
    poisoned = forecast.data.clone()
    poisoned[:, land] = torch.nan
    forecast = forecast.replace(data=poisoned)
    one = Observations(DAY, "thetao", 10.0, 36.0, 10.0, 2.0, 0.5, "test")
    assert method.analysis(forecast, one.select(np.zeros(1, bool))) is forecast
    analysis = method.analysis(forecast, one)
    assert analysis.data[:, land].isnan().all() and analysis.data[:, ~land].isfinite().all()
    littered = forecast.replace(data=torch.where(land, torch.randn_like(poisoned), poisoned))
    assert torch.equal(method.analysis(littered, one).data[:, land], littered.data[:, land])
    changed = ((analysis.data != forecast.data) & ~land).any(0).any(0)
    assert changed[17, 9] and (method.half_width is None or not changed[:, 50].any())


@methods
def test_gradients(method):
    forecast, obs = ensemble(LAND, 4), some_observations(LAND, 30)
    weight, direction = (smooth(4, 5, seed) for seed in (5, 6))

    def cost(data):
        return (method.analysis(forecast.replace(data=data), obs).data * weight).sum()

    x = forecast.data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(x), x)
    direction = direction * LAND.mask
    numerical = (cost(forecast.data + 1e-6 * direction) - cost(forecast.data - 1e-6 * direction)) / 2e-6
    assert torch.isclose((gradient * direction).sum(), numerical, rtol=1e-6)


# --- memory --------------------------------------------------------------------------------------


@methods
def test_memory_changes_nothing_but_memory(method):
    forecast, obs = ensemble(LAND), some_observations(LAND)
    method = replace(method, block=10_000, memory=10**10)
    whole, small = method.analysis(forecast, obs), replace(method, memory=4_000_000)
    assert small._block(forecast, len(obs)) < 60
    same(small.analysis(forecast, obs), whole, 1e-12)
    with pytest.raises(ValueError, match="wanted memory >= .* for 20 members"):
        replace(method, memory=1000).analysis(forecast, obs)


def largest_storage(task):
    """The most bytes of tensors that exist at once beside those there were, by torch's own accounting."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        task()
    now = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2], METHODS[4]])
def test_memory_is_bounded(method):
    forecast, obs = ensemble(n=40), some_observations()
    roomy, tight = (replace(method, memory=m, block=10_000) for m in (10**9, 12_000_000))
    state = forecast.data.nbytes
    peak = {m.memory: largest_storage(lambda m=m: m.analysis(forecast, obs)) - state for m in (roomy, tight)}
    assert peak[tight.memory] < tight.memory < 0.5 * peak[roomy.memory]


# --- weights that are kept -----------------------------------------------------------------------


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_on_the_forecast_are_the_analysis(method, dtype):
    forecast, obs = ensemble(LAND, 7, dtype=dtype), some_observations(LAND)
    assert torch.equal(method.weights(forecast, obs).apply(forecast).data, method.analysis(forecast, obs).data)
    nothing = method.weights(forecast, obs.select(np.zeros(len(obs), bool)))
    assert nothing.apply(forecast) is forecast


def test_weights_smooth_an_earlier_state():
    forecast, obs = ensemble(LAND), some_observations(LAND)
    earlier = forecast.replace(data=(3 * forecast.data - 2) * LAND.mask, time=DAY.replace(day=1))
    method = LETKF(9e5, stride=2, rtpp=0.3)
    smoothed, analysis = method.weights(forecast, obs).apply(earlier), method.analysis(forecast, obs)
    assert smoothed.time == earlier.time
    same(smoothed, earlier.replace(data=(3 * analysis.data - 2) * LAND.mask), 1e-12)


def test_weights_serve_other_fields():
    forecast, obs = ensemble(LAND), some_observations(LAND)
    ice = make_layout(continents(), (Field("siconc"), Field("no3", 2)))
    fields = State(forecast.data[:, [4, 0, 1]] * 2, DAY, ice, forecast.members)
    weights = LETKF(9e5, stride=2).weights(forecast, obs)
    analysis = weights.apply(forecast)
    same(weights.apply(fields), fields.replace(data=analysis.data[:, [4, 0, 1]] * 2), 1e-12)
    split = LETKF(9e5, vertical_half_width=80.0)
    with pytest.raises(LayoutError, match="no weights for siconc, no3"):
        split.weights(forecast, obs).apply(fields)
    found, analysis = split.weights(forecast, obs, ice).apply(fields), split.analysis(forecast, obs)
    same(found, fields.replace(data=analysis.data[:, [4, 0, 1]] * 2), 1e-12)
    only = LETKF(9e5, variables=("zos",)).weights(forecast, obs)
    assert torch.equal(only.apply(forecast).data[:, :4], forecast.data[:, :4])
    with pytest.raises(LayoutError, match="wanted members"):
        weights.apply(forecast.sel([1, 0, *range(2, 20)]))
    with pytest.raises(LayoutError, match="wanted a grid"):
        weights.apply(State(torch.zeros(20, 5, NY, 4), DAY, small_grid(), forecast.members))
    with pytest.raises(ValueError, match="take a larger stride or more memory"):
        LETKF(9e5, memory=2_000_000).weights(forecast, obs)


def small_grid():
    return replace(SEA, grid=SEA.grid.isel(lon=slice(0, 4)))


# --- basins --------------------------------------------------------------------------------------


def test_connected_basins():
    wet = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 1, 0, 0, 1]], bool)
    apart, joined = connected_basins(wet), connected_basins(wet, periodic=True)
    assert apart.max() == 5 and (apart[~wet] == 0).all() and (joined[~wet] == 0).all()
    assert joined.tolist() == [[1, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 2, 0, 0], [0, 3, 0, 0, 4]]
    assert connected_basins(np.zeros((2, 3), bool), periodic=True).max() == 0


def test_lists_by_basin_are_those_of_brute_force():
    rng = np.random.default_rng(3)
    lat, lon, basin = rng.uniform(-60, 60, 200), rng.uniform(0, 360, 200), rng.integers(0, 4, 200)
    at, label = (rng.uniform(-60, 60, 40), rng.uniform(0, 360, 40)), rng.integers(0, 6, 40)
    near, away = BasinObservations(lat, lon, basin, 3e6, 5).near(*at, label)
    for k in range(40):
        rows = np.flatnonzero((basin == label[k]) | (basin == 0) | (label[k] == 0))
        wanted, distance = LocalObservations(lat[rows], lon[rows], 3e6, 5).near(at[0][k : k + 1], at[1][k : k + 1])
        found = np.isfinite(away[k])
        assert rows[wanted[0]].tolist() == near[k][found].tolist()
        np.testing.assert_allclose(away[k][found], distance[0])


@pytest.mark.parametrize("stride", [1, 3])
def test_observations_do_not_act_across_land(stride):
    wet = np.ones((NY, NX), bool)
    wet[:, 20] = wet[:, 75] = False
    layout = make_layout(wet)
    forecast = ensemble(layout)
    obs = Observations(DAY, "zos", [10.0, -20.0], [4.0, 120.0], 0.0, [1.0, 2.0], 0.4, "test")
    free = LETKF(6e6, stride=stride)
    method = replace(free, basins="connected")
    analysis = method.analysis(forecast, obs.select([0]))
    changed = (analysis.data != forecast.data).any(0).any(0)
    assert changed[17, 1] and not changed[:, 21:75].any() and changed[:, 76:].any()  # through the seam
    assert (free.analysis(forecast, obs.select([0])).data != forecast.data).any(0).any(0)[:, 21:30].any()
    labels = np.where(np.arange(NX) < 20, 5, 9) * np.ones((NY, 1), int)
    labels[:, 76:] = 5
    same(replace(free, basins=labels).analysis(forecast, obs), method.analysis(forecast, obs), 1e-12)
    anywhere = np.zeros((NY, NX), int)
    same(replace(free, basins=anywhere).analysis(forecast, obs), free.analysis(forecast, obs), 1e-12)
    for wrong in (labels[:3], labels.astype(float)):
        with pytest.raises(LayoutError, match="wanted basins"):
            replace(free, basins=wrong).analysis(forecast, obs)


# --- factors between variables -------------------------------------------------------------------


def test_factors_multiply_the_weight_of_an_observation():
    forecast, obs = ensemble(), some_observations(p=50)
    factors = {("zos", "thetao"): 0.25, ("thetao", "so"): 0.0, ("zos", "so"): 0.0}
    analysis = LETKF(9e5, variable_factors=factors, rtpp=0.1).analysis(forecast, obs)
    wanted = LETKF(9e5, rtpp=0.1).analysis(
        forecast, obs.replace(error=np.where(obs.variable == "zos", 2, 1) * obs.error)
    )
    assert torch.allclose(analysis["thetao"], wanted["thetao"], atol=1e-12)
    assert torch.equal(analysis["so"], forecast["so"])
    assert torch.allclose(analysis["zos"], LETKF(9e5, rtpp=0.1).analysis(forecast, obs)["zos"], atol=1e-12)
    same(LETKF(9e5, variable_factors={("zos", "zos"): 1.0}).analysis(forecast, obs), LETKF(9e5).analysis(forecast, obs))
    with pytest.raises(LayoutError, match=r"variable_factors: no variable\(s\) salt"):
        LETKF(9e5, variable_factors={("zos", "salt"): 0.5}).analysis(forecast, obs)


def test_factors_with_vertical_groups():
    forecast, obs = ensemble(), some_observations(p=50)
    plain = LETKF(9e5, vertical_half_width=100.0)
    analysis = replace(plain, variable_factors={("zos", "so"): 0.0}).analysis(forecast, obs)
    wanted = plain.analysis(forecast, obs.select(obs.variable == "thetao"))
    assert torch.allclose(analysis["so"], wanted["so"], atol=1e-12)
    assert torch.allclose(analysis["thetao"], plain.analysis(forecast, obs)["thetao"], atol=1e-12)


# --- messages ------------------------------------------------------------------------------------


def test_messages():
    for wrong in ({"stride": 0}, {"stride": 1.5}, {"stride": "some"}, {"memory": 0}, {"basins": "all"}):
        with pytest.raises(ValueError, match="LETKF: wanted"):
            LETKF(1e5, **wrong)
    with pytest.raises(ValueError, match="variable_factors in"):
        LETKF(1e5, variable_factors={("a", "b"): 1.5})
    with pytest.raises(ValueError, match="basins need a half_width"):
        LETKF(None, basins="connected")
