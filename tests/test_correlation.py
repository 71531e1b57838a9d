"""Correlated observation errors against dense algebra; derived quantities and views of observations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import START, random_state, small_grid, small_layout
from toys import row_layout

from polynya.da import ETKF, LETKF, ObservationError, Observations, great_circle, operator_for
from polynya.da.correlation import LARGEST_GROUP, coloured, correlation, groups_of, whitening
from polynya.da.observations import Derived, View
from polynya.emulators import Field, Layout, State

torch.set_num_threads(1)
ROW = row_layout(24, "zos", "tos")


def observed(p=16, seed=0, **changes):
    """Two correlated groups, of two variables each, some that are alone, and independent ones."""
    rng = np.random.default_rng(seed)
    group = np.arange(p) % 4  # 0: independent
    columns = {"variable": np.where(np.arange(p) % 3 == 0, "tos", "zos"), "lat": 0.0, "lon": rng.uniform(0, 360, p)}
    columns |= {"value": rng.normal(size=p), "error": rng.uniform(0.3, 1.0, p), "group": group}
    columns |= {"length": np.where(group == 3, np.inf, 4e6), "height": np.inf}
    return Observations.from_table(START, columns | changes)


def dense(o):
    """C written down element by element."""
    C = np.eye(len(o))
    for i in range(len(o)):
        for j in range(len(o)):
            if i != j and o.group[i] == o.group[j] > 0 and o.variable[i] == o.variable[j]:
                away = great_circle(o.lat[i], o.lon[i], o.lat[j], o.lon[j]) / o.length[i]
                deep = abs(o.depth[i] - o.depth[j]) / o.height[i]
                correlated = np.isfinite(o.length[i]) or np.isfinite(o.height[i])
                C[i, j] = np.exp(-away - deep) if correlated else 0.0
    return C


# --- R -------------------------------------------------------------------------------------------


def test_whitening_makes_the_unit_matrix_and_colouring_undoes_it():
    o = observed(depth=np.linspace(0, 500, 16), height=np.where(np.arange(16) % 4 == 1, 300.0, np.inf))
    C, eye = dense(o), torch.eye(16, dtype=torch.float64)
    assert (np.abs(C - np.eye(16)) > 0.01).sum() > 10
    W = whitening(o)(eye).numpy()
    np.testing.assert_allclose(W @ C @ W.T, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(W, W.T, atol=1e-12)
    root = np.stack([coloured(o, e) for e in np.eye(16)], 1)
    np.testing.assert_allclose(root @ root.T, C, atol=1e-12)
    d = torch.randn(16, dtype=torch.float64)
    assert torch.allclose(whitening(o)(d), torch.from_numpy(W) @ d)
    alone = o.group == 0
    assert torch.equal(whitening(o)(d)[alone], d[alone]), "independent errors are left to the bit"
    for rows in groups_of(o):
        np.testing.assert_allclose(correlation(o.select(rows)), C[np.ix_(rows, rows)])


def test_whitening_is_differentiable():
    o, d = observed(), torch.randn(16, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(whitening(o), (d,))


def ensemble(members=12, seed=3):
    g = torch.Generator().manual_seed(seed)
    data = torch.randn((members, *ROW.shape), generator=g, dtype=torch.float64)
    return State((data + data.roll(1, -1) + data.roll(-1, -1)), START, ROW, tuple(range(members)))


def kalman(forecast, o):
    """The exact update with the ensemble's covariance: mean and covariance."""
    x = forecast.data.flatten(1).numpy()
    X = (x - x.mean(0)).T / np.sqrt(len(x) - 1)
    H = operator_for(ROW, o)
    eye = torch.eye(x.shape[1], dtype=torch.float64).view(-1, *ROW.shape)
    Hx = H.apply(State(eye, START, ROW, tuple(range(len(eye))))).numpy().T
    R = o.error[:, None] * dense(o) * o.error
    P = X @ X.T
    K = P @ Hx.T @ np.linalg.inv(Hx @ P @ Hx.T + R)
    return x.mean(0) + K @ (o.value - Hx @ x.mean(0)), P - K @ Hx @ P


FILTERS = {"etkf": ETKF(), "all": LETKF(half_width=None), "far": LETKF(half_width=1e13)}


@pytest.mark.parametrize("analysis", FILTERS.values(), ids=FILTERS.keys())
def test_filters_with_correlated_errors_make_the_exact_kalman_update(analysis):
    forecast, o = ensemble(), observed()
    mean, P = kalman(forecast, o)
    x = analysis.analysis(forecast, o).data.flatten(1).numpy()
    np.testing.assert_allclose(x.mean(0), mean, atol=1e-9)
    np.testing.assert_allclose(np.cov(x.T), P, atol=1e-9)
    ignoring, _ = kalman(forecast, o.replace(group=0))
    assert np.abs(ignoring - mean).max() > 0.05, "correlation matters here"


def test_the_order_of_observations_does_not_matter():
    forecast, o = ensemble(), observed()
    one, two = (ETKF().analysis(forecast, x).data for x in (o, o.select(np.random.default_rng(1).permutation(len(o)))))
    assert torch.allclose(one, two, atol=1e-10)


def test_what_cannot_be_whitened_is_named():
    o = observed()
    with pytest.raises(ObservationError, match=r"one length and one height .* lengths \[4000000. 5000000.\]"):
        whitening(o.replace(length=np.where(np.arange(16) < 8, 4e6, 5e6)))
    with pytest.raises(ObservationError, match=r"group 1 holds observations of .* two are at one place"):
        whitening(o.replace(lon=np.zeros(16)))
    many = observed(LARGEST_GROUP + 1, variable="zos", group=1, length=1e5)
    with pytest.raises(ObservationError, match=rf"at most {LARGEST_GROUP} .* got {LARGEST_GROUP + 1}; cut the track"):
        whitening(many)
    for changes, message in (
        ({"group": -1}, "group must be"),
        ({"length": 0.0}, "length and height"),
        ({"offset": 1.0}, "offset"),
    ):
        with pytest.raises(ObservationError, match=message):
            observed(**changes)


def test_groups_of_tables_that_are_joined_stay_apart():
    both = Observations.concat([observed(8), observed(8, seed=1)])
    assert both.group.tolist() == [0, 1, 2, 3] * 2 + [0, 4, 5, 6] * 2
    C = dense(both)
    assert not C[:8, 8:].any()
    W = whitening(both)(torch.eye(16, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(W @ C @ W.T, np.eye(16), atol=1e-12)


# --- derived quantities --------------------------------------------------------------------------


CURRENTS = Layout((Field("uo", 3, "corner"), Field("vo", 3, "corner"), Field("zos")), small_grid())
SPEED = Derived("speed", ("uo", "vo"), torch.hypot, "m s-1")


def speeds(p=12, **changes):
    rng = np.random.default_rng(2)
    columns = {"variable": "speed", "lat": rng.uniform(-8, 0, p), "lon": rng.uniform(15, 285, p), "depth": 30.0}
    return Observations.from_table(START, columns | {"value": 0.0, "error": 0.1} | changes, derived=(SPEED,))


def test_a_derived_quantity_is_a_function_of_what_is_seen():
    state, o = random_state(CURRENTS).to(torch.float64), speeds()
    u, v = (operator_for(CURRENTS, o.replace(variable=n, derived=())).apply(state) for n in ("uo", "vo"))
    H = operator_for(CURRENTS, o)
    assert torch.allclose(H.apply(state), torch.hypot(u, v)) and set(o.primary) == {"uo"}
    zos = Observations.from_table(START, {"variable": "zos", "lat": o.lat, "lon": o.lon, "value": 0.0, "error": 1.0})
    mixed = Observations.concat([zos, o])
    assert torch.equal(operator_for(CURRENTS, mixed).apply(state)[:, 12:], H.apply(state))
    assert torch.equal(operator_for(CURRENTS, mixed).apply(state)[:, :12], operator_for(CURRENTS, zos).apply(state))
    few = mixed.select(np.array([20, 3, 14]))
    seen = operator_for(CURRENTS, few).apply(state)
    assert torch.equal(seen[:, [0, 2]], H.apply(state)[:, [8, 2]])


def test_gradients_flow_through_a_derived_quantity():
    state, H = random_state(CURRENTS, (0, 1)).to(torch.float64), operator_for(CURRENTS, speeds(5))

    def seen(data):
        return H.apply(state.replace(data=data))

    x = state.data.clone().requires_grad_()
    dx = torch.randn_like(state.data) * CURRENTS.mask
    (gradient,) = torch.autograd.grad(seen(x).sum(), x)
    change = (seen(state.data + 1e-6 * dx) - seen(state.data - 1e-6 * dx)).sum() / 2e-6
    assert torch.allclose((gradient * dx).sum(), change, rtol=1e-6)
    assert not gradient[:, ~CURRENTS.mask].any()


def test_a_derived_quantity_needs_its_inputs_in_water():
    with pytest.raises(ObservationError, match=r"no field\(s\) vo to observe; the state has thetao, uo, zos"):
        operator_for(small_layout(), speeds())
    with pytest.raises(ObservationError, match=r"no field\(s\) speed"):
        operator_for(CURRENTS, speeds().replace(derived=()))
    with pytest.raises(ValueError, match="one or more inputs beside 'speed' itself"):
        Derived("speed", ("speed",), torch.abs)
    # Beside the island: sea level has water around it, the corner of the cells has not.
    lat, lon = np.array([-17.5, -2.0]), np.array([135.0, 200.0])
    mixed = Derived("odd", ("zos", "uo"), torch.add)
    table = {"variable": "odd", "lat": lat, "lon": lon, "value": 0.0, "error": 1.0}
    o = Observations.from_table(START, table, derived=(mixed,))
    alone = operator_for(CURRENTS, o.replace(variable="zos", derived=()))
    assert len(alone.observations) == 2
    assert operator_for(CURRENTS, o, drop=True).observations.lon.tolist() == [200.0]
    with pytest.raises(ObservationError, match="1 of 2 are not, the first is number 0"):
        operator_for(CURRENTS, o)


def test_definitions_are_joined():
    joined = Observations.concat([speeds(2), speeds(3)])
    assert joined.derived == (SPEED,) and len(joined) == 5


# --- views ---------------------------------------------------------------------------------------


def test_a_view_has_a_lens_and_a_shift():
    state = random_state(ROW, (0, 1, 2)).to(torch.float64)
    o = observed(5)
    plain = operator_for(ROW, o).apply(state)
    through = o.replace(view=View(lens=lambda s: s.replace(data=s.data.exp())))
    assert torch.allclose(
        operator_for(ROW, through).apply(state), operator_for(ROW, o).apply(state.replace(data=state.data.exp()))
    )
    shift = torch.randn(3, 5, dtype=torch.float64)
    H = operator_for(ROW, o.replace(view=View(members=(0, 1, 2), shift=shift)))
    assert torch.allclose(H.apply(state), plain + shift)
    assert torch.equal(H.apply(state, shifted=False), plain)
    one = state.sel([1]).replace(members=(7,))
    assert torch.allclose(H.apply(one), plain[1:2] + shift.mean(0)), "a mean state has the mean shift"
    part = H.observations.select(np.array([3, 0]))
    assert torch.allclose(operator_for(ROW, part).apply(state), (plain + shift)[:, [3, 0]])
    with pytest.raises(ObservationError, match="have a view already"):
        Observations.concat([part, part])
