"""A small globe and an imperfect prediction of it, for tests of the scorecard."""

import numpy as np
import scipy.signal
import xarray as xr

LEV = np.array([10.0, 300, 900, 1500, 3000])
DZ = np.array([20.0, 500, 600, 800, 2500])
BANDS = {"0-700 m": [0, 1], "700-2000 m": [2, 3], "2000-7000 m": [4]}


def smooth(rng, n, shape, phi=0.9):
    return scipy.signal.lfilter([1], [1, -phi], rng.normal(size=(n, *shape)), axis=0)


def ocean(n=219, *, seed=0, calendar="noleap", names=("thetao", "so", "uo", "vo", "zos")):
    """A globe of 7.5 x 10 degrees with a continent, a shelf and an annual cycle, float32."""
    rng = np.random.default_rng(seed)
    lat, lon = np.arange(-56.25, 60, 7.5), np.arange(5.0, 360, 10)
    floor = np.full((lat.size, lon.size), 5000.0)
    floor[:, :6] = 0
    floor[5:9, 6:9] = 1000
    wet = LEV[:, None, None] < floor
    wet[:, 6, 20] = False  # an island in the equatorial Pacific
    season = np.cos(2 * np.pi * np.arange(n) / 73)[:, None, None, None]
    scale = np.exp(-LEV / 800)[:, None, None]
    units = {"thetao": "degC", "so": "0.001", "uo": "m s-1", "vo": "m s-1", "zos": "m"}
    size = {"thetao": 1.0, "so": 0.1, "uo": 0.05, "vo": 0.05}
    mean = {"thetao": 15.0, "so": 35.0, "uo": 0.1, "vo": 0.0}
    data = {}
    for name in names:
        if name == "zos":
            x = np.where(wet[0], 0.1 * smooth(rng, n, floor.shape), np.nan)
            data[name] = (("time", "lat", "lon"), x.astype("f4"), {"units": "m"})
            continue
        x = mean[name] + size[name] * scale * (smooth(rng, n, wet.shape) + 3 * season)
        data[name] = (("time", "lev", "lat", "lon"), np.where(wet, x, np.nan).astype("f4"), {"units": units[name]})
    time = xr.date_range("2001-01-03", periods=n, freq="5D", calendar=calendar, use_cftime=True)
    area = rng.uniform(1, 2, floor.shape) * 1e11
    coords = {"time": time, "lev": LEV, "lat": lat, "lon": lon, "dz": ("lev", DZ, {"units": "m"})}
    return xr.Dataset(data, coords | {"areacello": (("lat", "lon"), area, {"units": "m2"})})


def imperfect(truth, seed=1, error=0.5):
    other = ocean(truth.sizes["time"], seed=seed, names=[*truth.data_vars])
    anomalies = {n: error * (other[n] - other[n].mean("time")) for n in truth.data_vars}
    made = {n: (0.8 * truth[n] + anomalies[n]).transpose(*truth[n].dims).astype("f4") for n in truth.data_vars}
    return truth.assign({n: x.assign_attrs(truth[n].attrs) for n, x in made.items()})


def wet_of(truth, name="thetao"):
    return np.isfinite(truth[name].isel(time=0).to_numpy())
