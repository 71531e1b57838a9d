"""Guided samplers: against exact Gaussian posteriors, in cycles of the embedded sea ice, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, partial

import cftime
import numpy as np
import pytest
import test_gensim_emulator as gensims
import test_regional_emulator as regionals
import torch
from toys import Matrix, row_layout

from polynya.da import Derived, NoAnalysis, Observations, Smoothing, cycle
from polynya.da.guidance import DPS, MMPS, SDA, Linearised, PiGDM, draw, guided
from polynya.da.guided import GuidanceError, Guided
from polynya.emulators import Layout, Noise, Source, State, diffusion, flow, samples
from polynya.emulators.regional import ConfigError
from polynya.ensembles import trajectory

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
DAY = cftime.DatetimeNoLeap(2000, 1, 1)
N = 128


# --- the exact Gaussian: a smooth periodic field of unit variance, every fourth point observed ----------


def spectrum():
    away = (torch.arange(N)[:, None] - torch.arange(N)).abs().double()
    C = torch.exp(-0.5 * (torch.minimum(away, N - away) / 6) ** 2) + 1e-6 * torch.eye(N, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(C)
    return values.clamp(min=1e-8), vectors, C


VALUES, VECTORS, C = spectrum()
SITES = torch.arange(0, N, 4)


@cache
def gain(s):
    return (VECTORS * (VALUES / (VALUES + s * s))) @ VECTORS.T


def exact(y, s):
    return y @ gain(s)


def levels(n, most=80.0, least=0.002, rho=7):
    a, b = most ** (1 / rho), least ** (1 / rho)
    return tuple((a + k / (n - 1) * (b - a)) ** rho for k in range(n))


def pairs(half=256, n=N, seed=0):
    """Standard normal numbers whose mean is 0: what is left of the mean of a linear map of them is its bias."""
    eps = torch.randn(half, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat((eps, -eps))


def observed(root, seed=1):
    """Observations with errors of a covariance root rootᵀ, their departures, and the exact posterior."""
    g = torch.Generator().manual_seed(seed)
    truth = (VECTORS * VALUES.sqrt()) @ torch.randn(N, generator=g, dtype=torch.float64)
    o = truth[SITES] + root @ torch.randn(len(SITES), generator=g, dtype=torch.float64)
    K = C[:, SITES] @ torch.linalg.inv(C[SITES][:, SITES] + root @ root.T)
    W = torch.linalg.inv(root)
    return lambda x: (o - x[:, SITES]) @ W.T, K @ o, (C - K @ C[SITES]).diagonal().sqrt()


def calibration(rule, error, steps=36, root=None, sampled=None):
    """Error of the mean over the posterior's standard deviation, and spread over it."""
    departures, mean, std = observed(error * torch.eye(len(SITES), dtype=torch.float64) if root is None else root)
    x = (sampled or partial(draw, levels=levels(steps)))(guided(exact, departures, rule), pairs())
    return float(((x.mean(0) - mean) / std).square().mean().sqrt()), float((x.std(0) / std).mean())


@pytest.mark.parametrize("error", [0.3, 0.05])
def test_moment_matching_is_calibrated(error):
    for steps in (36, 128):
        off, spread = calibration(MMPS(20), error, steps)
        assert off < 0.05 and abs(spread - 1) < 0.05, (steps, off, spread)
    # A few iterations, as networks can afford.
    off, spread = calibration(MMPS(), error)
    assert off < 0.05 and abs(spread - 1) < 0.05


def test_moment_matching_with_correlated_errors():
    away = (SITES[:, None] - SITES).abs().double()
    root = torch.linalg.cholesky(0.2**2 * torch.exp(-away / 12))
    off, spread = calibration(MMPS(40, 1e-6), 0.0, root=root)
    assert off < 0.05 and abs(spread - 1) < 0.05


def test_other_rules_are_not():
    """As in the table of `benchmarks/guidance.py`."""
    for gamma in (1e-2, 1e-3):
        off, spread = calibration(SDA(gamma), 0.3)
        assert off > 0.1 and 0.3 < spread < 0.5
    assert 1.15 < calibration(PiGDM(), 0.3)[1] < 1.45
    assert 1.3 < calibration(SDA(0.3), 0.3)[1] < 1.9
    assert calibration(DPS(0.3), 0.3)[1] > 2.5  # ζ = 1 of unweighted departures
    assert calibration(PiGDM(), 0.05)[1] > 3
    assert calibration(SDA(1e-2), 0.05)[0] > 100


def test_more_iterations_come_closer():
    off = [calibration(MMPS(n), 0.3)[0] for n in (1, 3, 10)]
    assert off[0] > 1.5 * off[1] and off[1] > 1.5 * off[2]


def test_inflation_is_a_prior_of_larger_variance():
    # At the last level, where s² J is small, the gain is proportional to it.
    departures, *_ = observed(0.3 * torch.eye(len(SITES), dtype=torch.float64))
    at = Linearised(exact, departures, pairs(2), 0.002)
    one, four = (MMPS(20, inflation=f).increment(at, 0.002) for f in (1, 4))
    torch.testing.assert_close(four, 4 * one, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_denoisers_of_networks(kind):
    """Exact networks of v and of velocity imply the exact denoiser, and samplers around them the same posterior."""
    if kind == "diffusion":

        def network(x_g, gamma):
            s = float(np.exp(-gamma / 2))
            alpha = 1 / np.sqrt(1 + s * s)
            return (alpha * x_g - exact(x_g / alpha, s)) / (s * alpha)

        denoise, undo = diffusion.denoiser(network), diffusion.v_of
        nodes = diffusion.karras_levels(36, 7.0, -2 * np.log(80.0), -2 * np.log(0.002))
        place = (torch.randn(2, N, dtype=torch.float64), 0.7)
    else:

        def network(x, t):
            return (exact(x / t, (1 - t) / t) - x) / (1 - t)

        denoise, undo = flow.denoiser(network), flow.velocity_of
        nodes = flow.time_nodes(36)
        place = (torch.randn(2, N, dtype=torch.float64), 0.3)
    y = torch.randn(3, N, dtype=torch.float64)
    for s in (0.01, 1.0, 30.0):
        torch.testing.assert_close(denoise(y, s), exact(y, s), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(undo(denoise)(*place), network(*place))
    sampler = diffusion.sample if kind == "diffusion" else flow.sample
    off, spread = calibration(MMPS(20), 0.3, sampled=lambda d, eps: sampler(undo(d), eps, nodes))
    assert off < 0.06 and abs(spread - 1) < 0.05, (off, spread)


def test_products_are_those_of_the_jacobians():
    g = torch.Generator().manual_seed(2)
    W = torch.randn(6, 6, generator=g, dtype=torch.float64)

    def denoise(y, s):
        return torch.tanh(y @ W.T) * s

    def departures(x):
        return 1.0 - torch.stack((x[:, 0] * x[:, 1], x[:, 2].exp(), x[:, 3]), 1) / 0.5

    y, p = (torch.randn(1, 6, generator=g, dtype=torch.float64) for _ in range(2))
    u = torch.randn(1, 3, generator=g, dtype=torch.float64)
    at = Linearised(denoise, departures, y, 0.8)
    J = torch.autograd.functional.jacobian(lambda v: denoise(v[None], 0.8)[0], y[0])
    A = -torch.autograd.functional.jacobian(lambda v: departures(v[None])[0], at.denoised[0])
    torch.testing.assert_close(at.back(p)[0], J.T @ p[0])
    torch.testing.assert_close(at.observe(p)[0], A @ p[0])
    torch.testing.assert_close(at.transposed(u)[0], A.T @ u[0])


def test_a_derivative_that_is_no_covariance_does_no_harm():
    departures, *_ = observed(0.05 * torch.eye(len(SITES), dtype=torch.float64))
    for denoise in (lambda y, s: -exact(y, s), lambda y, s: exact(y, s).roll(5, -1), lambda y, s: 0 * y):
        at = Linearised(denoise, departures, pairs(2), 1.0)
        increment = MMPS(5).increment(at, 1.0)
        assert increment.isfinite().all() and increment.abs().max() < 100


def test_members_are_guided_by_themselves():
    departures, *_ = observed(0.3 * torch.eye(len(SITES), dtype=torch.float64))
    eps = pairs(2)
    together = draw(guided(exact, departures, MMPS()), eps, levels(8))
    for i in range(4):
        alone = draw(guided(exact, departures, MMPS()), eps[i : i + 1], levels(8))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-7, atol=1e-9)


def test_settings_are_checked():
    for wrong in ({"iterations": 0}, {"tolerance": -1.0}, {"inflation": 0.0}):
        with pytest.raises(ValueError, match="MMPS: wanted iterations >= 1"):
            MMPS(**wrong)
    for nodes in ((), (1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="noise levels > 0 that fall"):
            draw(exact, pairs(1), nodes)


# --- states: an emulator whose posterior is known -------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian:
    """x' = 0.9 x + Q^½ r on a row of cells, r drawn by a sampler with its exact denoiser, of unit size."""

    layout: Layout = field(default_factory=lambda: row_layout(N, "zos", "siu"))
    dt: timedelta = timedelta(days=1)
    forcing_layout: Layout | None = None
    scale: float = 0.5

    def conditional(self, state, forcing, noise):
        eps = noise.stream("gaussian").normal(state.members, state.time, self.layout.shape, dtype=state.data.dtype)
        yield flow.Conditional(
            exact,
            lambda denoise: draw(denoise, eps, levels(24)),
            lambda r, bounded: 0.9 * state.data + self.scale * r,
            (lambda d: d, lambda d: d),
        )

    def step(self, state, forcing, noise):
        parts = [c.decode(c.draw(), True) for c in self.conditional(state, forcing, noise)]
        return state.replace(data=torch.cat(parts), time=state.time + self.dt)


def row_state(model, members=1024):
    x = torch.sin(torch.arange(N, dtype=torch.float64) / 9).expand(members, 2, 1, N).clone()
    return State(x, DAY, model.layout, tuple(range(members)))


def row_observations(sites, variable="zos", days=1, derived=(), **columns):
    smooth = np.sin(sites / 9) + 0.5 * np.cos(4 * np.pi * sites / N)
    value = smooth + 0.2 * np.random.default_rng(3).normal(size=len(sites))
    table = {"variable": variable, "lat": 0.0, "lon": 360.0 / N * sites, "value": value}
    return Observations.from_table(DAY + timedelta(days=days), table | {"error": 0.2} | columns, derived)


def test_a_step_is_drawn_from_the_posterior_of_its_observations():
    """With errors correlated along a track; what is not observed is a forecast, as it does not depend on it."""
    model, sites = Gaussian(), np.arange(0, N, 4)
    given = row_observations(sites, group=1, length=2e6)
    begin = row_state(model, 512)
    found = Guided(MMPS(40, 1e-6)).window(model, begin, None, Noise(0), given, 1)
    away = np.abs(sites[:, None] - sites)
    away = np.minimum(away, N - away) * 2 * np.pi / N * 6.371e6
    R, P = 0.04 * np.exp(-away / 2e6), 0.25 * C.numpy()
    prior = 0.9 * begin.data[0, 0, 0].numpy()
    K = P[:, sites] @ np.linalg.inv(P[np.ix_(sites, sites)] + R)
    mean, std = prior + K @ (given.value - prior[sites]), np.sqrt(np.diag(P - K @ P[sites]))
    x = found.states[-1]["zos"][:, 0, 0].numpy()
    assert np.sqrt((((x.mean(0) - mean) / std) ** 2).mean()) < 0.1  # 0.044 is chance
    assert abs((x.std(0) / std).mean() - 1) < 0.05
    forecast = model.step(begin, None, Noise(0))
    torch.testing.assert_close(found.states[-1]["siu"], forecast["siu"], rtol=0, atol=1e-12)
    assert found.report["misfit"].shape == (512,) and found.report["misfit"].mean() < 2


def test_observations_within_a_window_guide_the_step_that_passes_them():
    model, sites = Gaussian(), np.arange(0, N, 2)
    begin = row_state(model, 4)
    between = row_observations(sites, days=3, offset=-1.5 * 86400.0)
    found = Guided(MMPS(20)).window(model, begin, None, Noise(0), between, 3)
    free = [s for s, _ in zip(trajectory(model, begin, None, Noise(0)), range(4), strict=False)]
    assert [s.time for s in found.states] == [s.time for s in free]
    assert torch.equal(found.states[1].data, free[1].data)  # no observations before it
    halfway = [(s[1]["zos"] + s[2]["zos"])[:, 0, 0, sites].numpy() / 2 for s in (found.states, free)]
    off = [np.abs(h - between.value).mean() for h in halfway]
    assert off[0] < 0.6 * off[1]
    again = model.step(found.states[2], None, Noise(0))
    assert torch.equal(again.data, found.states[3].data)  # none after it


def test_nonlinear_observations():
    speed = Derived("speed", ("zos", "siu"), lambda a, b: (a.square() + b.square() + 1e-6).sqrt())
    model, sites = Gaussian(), np.arange(0, N, 3)
    begin = row_state(model, 8)
    given = row_observations(sites, "speed", derived=(speed,), value=1.5, error=0.1)
    found = Guided(MMPS(10)).window(model, begin, None, Noise(0), given, 1)
    x = found.states[-1].data[:, :, 0, sites]
    assert (x.square().sum(1).sqrt() - 1.5).square().mean().sqrt() < 0.2
    assert found.report["misfit"].max() < 2


def test_without_observations_it_is_the_forecast():
    model = regionals.emulator("residual")
    begin = regionals.ice(model.layout)
    weather = Weather(regionals, model)
    given = Observations.from_table(
        begin.time + 2 * model.dt, {n: [] for n in ("variable", "lat", "lon", "value", "error")}
    )
    found = Guided().window(model, begin, weather, Noise(3), given, 2)
    with torch.no_grad():
        free = [s for s, _ in zip(trajectory(model, begin, weather, Noise(3)), range(3), strict=False)]
    for a, b in zip(found.states, free, strict=True):
        assert torch.equal(a.data, b.data) and a.time == b.time
    assert found.report == {}


# --- sea ice --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weather:
    """The weather of the emulators' own tests, whatever the time."""

    kind: object
    model: object

    def at(self, time, members):
        like = self.kind.ice(self.model.layout)
        return self.kind.weather(self.model.forcing_layout, like.sel(members)).replace(time=time)


@pytest.mark.parametrize("kind", ["diffusion", "residual", "gensim"])
def test_random_networks_stay_within_bounds_alone_and_together(kind):
    module = gensims if kind == "gensim" else regionals
    model = (module.emulator() if kind == "gensim" else module.emulator(kind)).tuned(n_steps=3)
    begin, weather = module.ice(model.layout), Weather(module, model)
    wet = np.argwhere(model.layout.mask[0].numpy())[::3]
    lat, lon = (a[tuple(wet.T)] for a in model.layout.position(model.layout.fields[0]))
    table = {"variable": "siconc", "lat": lat, "lon": lon, "value": np.arange(len(wet)) % 2, "error": 0.05}
    given = Observations.from_table(begin.time + model.dt, table)
    method = Guided(MMPS(2))
    found = method.window(model, begin, weather, Noise(3), given, 1).states[-1]
    alone = method.window(model, begin.sel((1,)), weather, Noise(3), given, 1).states[-1]
    assert torch.equal(alone.data[0], found.data[1])
    free = model.step(begin, weather.at(begin.time, begin.members), Noise(3))
    assert (found.data[:, :3] >= 0).all() and (found.data[:, 1:3] <= 1).all() and found.data.isfinite().all()
    assert (found.data[:, ~model.layout.mask] == 0).all() and not torch.equal(found.data, free.data)
    batch = model.tuned(running=replace(model.running, one_at_a_time=False))
    together = method.window(batch, begin, weather, Noise(3), given, 1).states[-1]
    torch.testing.assert_close(together.data, found.data, rtol=1e-3, atol=1e-3)


def arctic():
    """The embedded ice, its record, and noisy observations of it at 500 places every twelve hours."""
    model = samples.emulator("arctic")
    # Five intervals instead of six for time; with three, guided members blow up.
    model = model.tuned(running=replace(model.running, recompute=False), n_steps=5)
    data = samples.sample("arctic")
    truth, forcing = Source.open(data, model.layout), Source.open(data, model.forcing_layout)
    g, dates, given = np.random.default_rng(0), data.time.values[10:14], []
    wet = np.argwhere(model.layout.mask[0].numpy())
    for date in dates[1:]:
        parts = []
        for name, error in (("siconc", 0.03), ("sithick", 0.05)):
            y, x = wet[g.permutation(len(wet))[:500]].T
            value = truth.state(date)[name][0, 0, y, x].numpy() + error * g.normal(size=500)
            lat, lon = (model.layout.grid[n].values[y, x] for n in ("lat", "lon"))
            table = {"variable": name, "lat": lat, "lon": lon, "value": value, "error": error}
            parts.append(Observations.from_table(date, table))
        given.append(Observations.concat(parts))
    return model, truth, forcing, dates, given


def test_cycles_of_the_embedded_ice():
    model, truth, forcing, dates, given = arctic()
    begin = truth.state(dates[0]).spread_to(range(6))
    wet, reports = model.layout.mask[0], []
    with torch.no_grad():
        method = Guided(MMPS(2, inflation=4.0))
        assert isinstance(method, Smoothing)
        found = list(cycle(model, begin, forcing, given, method, Noise(1), monitor=lambda c: reports.append(c.report)))
        free = list(cycle(model, begin, forcing, given, NoAnalysis(), Noise(1)))
        alone = list(cycle(model, begin.sel((4,)), forcing, given[:1], method, Noise(1)))
    error = []
    for states in (found, free):
        off = states[-1].data.mean(0) - truth.state(dates[-1]).data[0]
        error.append(off[:2, wet].square().mean(1).sqrt())
    assert (error[0] < 0.85 * error[1]).all(), error
    for state in found:
        assert (state["siconc"] >= 0).all() and (state["siconc"] <= 1).all() and (state["sithick"] >= 0).all()
        assert (state.data[:, :, ~wet] == 0).all()
    assert torch.equal(alone[1].data[0], found[1].data[4])
    assert all(0.5 < r["misfit"].mean() < 1.5 for r in reports)


# --- what is refused ------------------------------------------------------------------------------------


def test_emulators_without_a_denoiser_are_refused():
    row = row_layout(8)
    x = State(torch.zeros(1, *row.shape), DAY, row, (0,))
    given = Observations.from_table(
        DAY + timedelta(days=5), {"variable": "zos", "lat": 0.0, "lon": [0.0], "value": 1.0, "error": 1.0}
    )
    with pytest.raises(GuidanceError, match=r"wanted an emulator with a denoiser .* got Matrix"):
        Guided().window(Matrix(torch.eye(8), row), x, None, None, given, 1)
    model = regionals.emulator("deterministic")
    begin = regionals.ice(model.layout)
    lat, lon = (a[model.layout.mask[0].numpy()][:1] for a in model.layout.position(model.layout.fields[0]))
    seen = {"variable": "siconc", "lat": lat, "lon": lon, "value": 1.0, "error": 1.0}
    given = Observations.from_table(begin.time + model.dt, seen)
    with pytest.raises(ConfigError, match="a deterministic network draws nothing"):
        Guided().window(model, begin, Weather(regionals, model), Noise(0), given, 1)
