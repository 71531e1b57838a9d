"""Balanced changes: density stays, geostrophy holds, and a nature run keeps what is balanced."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import islice

import gsw
import numpy as np
import pytest
import torch
from small import START, small_grid

from polynya.emulators import Field, Layout, LayoutError, Noise, State, gaussian_grid, nature_ice, nature_ocean
from polynya.emulators.grids import EARTH_RADIUS
from polynya.ensembles import Balance, Diffused, perturb, trajectory
from polynya.ensembles.metric import closes, distance, folds

FIELDS = ("thetao", "so", "uo", "vo")


def ocean(location: str = "center", slots: tuple[int, ...] = (0,)) -> State:
    fields = [Field(n, 3, location if n in ("uo", "vo") else "center") for n in FIELDS]
    layout = Layout((*fields, Field("zos")), small_grid(16), slots)
    data = torch.zeros(1, *layout.shape, dtype=torch.float64)
    for slot in range(len(slots)):
        data[:, layout.channels("thetao", slot)] = torch.tensor([20.0, 10.0, 2.0])[:, None, None].double()
        data[:, layout.channels("so", slot)] = 35.0
    return State(data * layout.mask, START, layout, (0,))


def density(state: State) -> np.ndarray:
    layout = state.layout
    lat, lon = layout.position(layout.field("thetao"))
    p = gsw.p_from_z(-layout.grid["lev"].values[:, None, None], lat)
    salt = gsw.SA_from_SP(state["so"].numpy(), p, lon, lat)
    rho = gsw.rho(salt, gsw.CT_from_pt(salt, state["thetao"].numpy()), p)
    return np.asarray(rho)[:, layout.field_mask(layout.field("thetao"))]


def test_density_does_not_change() -> None:
    state = ocean(slots=(-1, 0))
    warm = perturb(state, 3, amplitude={"thetao": 0.1}, noise=Noise(0), kind=Diffused(2e6))
    balanced = Balance(currents=False)(state, warm)
    before, plain, now = (density(s) for s in (state, warm, balanced))
    assert np.abs(now - before).max() < 0.02 * np.abs(plain - before).max()
    assert torch.equal(balanced["thetao"], warm["thetao"]) and torch.equal(balanced["zos"], warm["zos"])
    old = balanced.layout.channels("so", 0)
    assert float((balanced.data[:, old] - state.data[:, old]).abs().max()) > 0.01
    assert (balanced.data[:, ~state.layout.mask] == 0).all()
    drawn = perturb(warm, amplitude={"so": 0.1}, noise=Noise(1))
    assert torch.allclose(Balance(currents=False)(state, drawn)["so"] - drawn["so"], balanced["so"] - warm["so"])


@pytest.mark.parametrize("location", ["center", "corner"])
def test_currents_are_geostrophic(location: str) -> None:
    """An analytic sea level on the sphere: u = -g/(f R) ∂η/∂φ, v = g/(f R cos φ) ∂η/∂λ."""
    state = ocean(location)
    layout = state.layout
    lat, lon = layout.position(layout.field("zos"))
    eta = 0.1 * np.sin(np.radians(lat)) * np.cos(np.radians(lon))
    raised = state.replace(data=state.data.clone())
    raised["zos"][:] = torch.from_numpy(eta) * layout.mask[-1]
    moved = Balance(salinity=False)(state, raised)
    phi, lam = (np.radians(c) for c in layout.position(layout.field("uo")))
    f = 2 * 7.2921e-5 * np.sin(phi)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = -9.81 / (f * EARTH_RADIUS) * 0.1 * np.cos(phi) * np.cos(lam)
        v = 9.81 / (f * EARTH_RADIUS * np.cos(phi)) * 0.1 * np.sin(phi) * -np.sin(lam)
    for name, wanted in (("uo", u), ("vo", v)):
        got = moved[name][0].numpy()
        for j, i in ((4, 8), (8, 9), (14, 2)):  # 30 degrees south to 45 north, away from coasts
            assert (got[:, j, i][layout.field_mask(layout.field(name))[:, j, i]]) == pytest.approx(
                wanted[j, i], rel=0.06, abs=2e-3
            )
        assert (got[:, np.abs(np.degrees(phi)) <= 5] == 0).all()
    assert (moved.data[:, ~layout.mask] == 0).all() and torch.equal(moved["zos"], raised["zos"])


def test_a_nature_run_keeps_a_balanced_sea_level() -> None:
    """Six hours on, the balanced perturbation is still there, the other has left as waves."""
    ocean = replace(nature_ocean.channel(), interval=timedelta(hours=6), _prepared={})
    calm = ocean.at_rest(START, None, (0,))
    forcing = nature_ocean.channel().forcing()
    wavy = perturb(calm, 1, amplitude={"zos": 0.05}, noise=Noise(3), kind=Diffused(1.5e5))

    class Short:
        def at(self, time: object, members: tuple[int, ...]) -> State:
            return forcing.at(time, members).replace(layout=ocean.forcing_layout)  # type: ignore[arg-type]

    with torch.no_grad():
        starts = [calm, wavy, Balance(salinity=False)(calm, wavy)]
        base, plain, balanced = (next(islice(trajectory(ocean, s, Short()), 1, None))["zos"] for s in starts)
    wanted = (wavy["zos"] - calm["zos"]).flatten()
    kept = [float(torch.stack([wanted, (run - base).flatten()]).corrcoef()[0, 1]) for run in (plain, balanced)]
    assert kept[1] > 0.8 > kept[0] + 0.2


def test_what_is_missing_is_named() -> None:
    state = ocean()
    layout = state.layout.select(["thetao", "zos"])
    with pytest.raises(ValueError, match=r"the state lacks so, uo, vo; set salinity=False"):
        Balance()(state.select(layout), state.select(layout))
    with pytest.raises(LayoutError, match="Balance: wanted fields"):
        Balance()(state, state.select(layout))


# --- distances -----------------------------------------------------------------------------------


def test_distances_and_shapes_of_grids() -> None:
    there, here = (
        np.array([[0.0, 0.0], [0.0, 350.0], [90.0, 3.0]]).T,
        np.array([[0.0, 90.0], [0.0, 10.0], [0.0, 7.0]]).T,
    )
    quarter = distance(*there, *here)
    assert quarter / EARTH_RADIUS == pytest.approx(np.radians([90.0, 20.0, 90.0]))
    globe = gaussian_grid(32, 64)
    lat, lon = globe["lat"].values, globe["lon"].values
    assert closes(lat, lon, 360.0) and not folds(lat, lon)
    assert not closes(lat[:, :40], lon[:, :40], 360.0) and not closes(lat[:, :2], lon[:, :2], 360.0)
    sector = nature_ocean.channel().layout
    assert closes(*sector.position(sector.fields[0]), 28.0) and not closes(*sector.position(sector.fields[0]), 360.0)
    ice = nature_ice.arctic(16, 80e3).layout
    place = ice.position(ice.fields[0])
    assert not closes(*place, 360.0) and not folds(*place)
