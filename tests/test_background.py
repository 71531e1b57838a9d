"""Roots of covariances against dense matrices: simple, hybrid, ensemble, EOFs, localised, balanced, latent."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import xarray as xr
from small import START, random_state, small_layout
from torch import Tensor

from polynya.da.adjoint import check_adjoint
from polynya.da.background import Composed, Hybrid, Latent, Root, Uncorrelated, deviations
from polynya.da.balanced import Balanced
from polynya.da.covariances import correlation_at, nearest_point, randomise, std_of, variance
from polynya.da.diffused import DiffusedRoot
from polynya.da.ensemble_roots import EnsembleRoot, EOFRoot, LocalisedEnsemble, common_layout
from polynya.da.linear import linear
from polynya.emulators import Field, Layout, LayoutError, Noise, Source, State, nature_ocean
from polynya.ensembles import Balance, Norm

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

STD = {"thetao": [1.0, 0.5, 0.2], "zos": 0.05}


def dense(root: Root) -> Tensor:
    """L, (channel y x, n)."""
    return root.apply(torch.eye(root.size, dtype=torch.float64)).flatten(1).mT


def ensemble(count: int = 5, slots: tuple[int, ...] = (0,)) -> State:
    return random_state(small_layout(slots), tuple(range(count)), seed=3).to(torch.float64)


def sample_covariance(states: State) -> Tensor:
    X = (states.data - states.data.mean(0)).flatten(1)
    return X.mT @ X / (len(X) - 1)


def roots() -> dict[str, Root]:
    layout, states = small_layout(), ensemble()
    smooth = DiffusedRoot(layout, STD, 2e6, 50.0)
    return {
        "uncorrelated": Uncorrelated(layout, STD),
        "ensemble": EnsembleRoot(states, 1.2),
        "eofs": EOFRoot(states, modes=2),
        "hybrid": Hybrid([(0.4, smooth), (0.6, EnsembleRoot(states))]),
        "localised": LocalisedEnsemble(states, DiffusedRoot(common_layout(layout), 1.0, 3e6, 100.0)),
        "composed": Composed(lambda x: x.roll(1, -1), smooth),
        "latent": latent(),
    }


def latent() -> Latent:
    layout = small_layout()
    W = torch.randn(4, int(np.prod(layout.shape)), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Latent(layout, lambda z: torch.tanh(z @ W.to(z)).reshape(-1, *layout.shape), torch.full((4,), 0.1))


@pytest.mark.parametrize("name", list(roots()))
def test_every_root_is_one(name: str) -> None:
    root = roots()[name]
    assert isinstance(root, Root)
    report = check_adjoint(root)
    assert report.passed and report.dot_product < 1e-12 and report.kind == "linear", str(report)
    v = torch.randn(2, 3, root.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = root.apply(v)
    assert x.shape == (2, 3, *root.layout.shape) and bool(x.isfinite().all())
    assert bool((x[..., ~root.layout.mask] == 0).all())
    assert torch.allclose(x[1, 2], root.apply(v[1, 2]), atol=1e-12)
    assert root.apply(v.float()).dtype == torch.float32
    if hasattr(root, "variance"):
        assert torch.allclose(root.variance().flatten(), dense(root).square().sum(1), atol=1e-10)


def test_a_linear_map_is_differentiable_in_every_mode() -> None:
    A = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls = []

    def there(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return torch.from_numpy(x.numpy() @ A.numpy().T)  # outside of torch

    def f(x: Tensor) -> Tensor:
        return linear(x, there, lambda y: torch.from_numpy(y.numpy() @ A.numpy()))

    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)
    calls.clear()
    assert torch.allclose(torch.func.vmap(f)(x), x @ A.mT) and calls == [(4, 5)]  # all of a batch at once
    assert torch.allclose(torch.func.jacrev(f)(x[0]), A) and torch.allclose(torch.func.jacfwd(f)(x[0]), A)


def test_uncorrelated_and_its_deviations() -> None:
    layout = small_layout()
    root = Uncorrelated(layout, STD)
    assert root.size == int(layout.mask[:3].sum() + layout.mask[6].sum())
    v = torch.randn(4, root.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(root.inverse(root.apply(v)), v)
    assert float(root.apply(torch.ones(root.size, dtype=torch.float64))[1].max()) == 0.5
    same = deviations(layout, State(root.variance().sqrt()[None], START, layout, (0,)))
    assert torch.equal(same, root.variance().sqrt()) and torch.equal(deviations(layout, same), same)
    spatial = torch.rand(8, 12)
    assert torch.equal(deviations(layout, {"thetao": spatial})[2], torch.where(layout.mask[2], spatial.double(), 0.0))
    for wrong, message in (
        ({"so": 1.0}, "no variable"), ({"zos": -1.0}, "finite, >= 0"), ({"thetao": [1.0, 2.0]}, "one number"),
        (torch.zeros(3), "wanted \\(channel"), ({"zos": 0.0}, "not all 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            deviations(layout, wrong)


def test_a_hybrid_adds_covariances() -> None:
    one, two = Uncorrelated(small_layout(), STD), EnsembleRoot(ensemble())
    L1, L2, L = dense(one), dense(two), dense(Hybrid([(0.3, one), (0.7, two)]))
    assert torch.allclose(L @ L.mT, 0.3 * L1 @ L1.mT + 0.7 * L2 @ L2.mT, atol=1e-12)
    with pytest.raises(LayoutError, match="Hybrid: root"):
        Hybrid([(1.0, one), (1.0, EnsembleRoot(ensemble(slots=(-1, 0))))])
    with pytest.raises(ValueError, match="weights >= 0"):
        Hybrid([(-1.0, one)])


def test_ensemble_and_eofs() -> None:
    states = ensemble(6)
    P = sample_covariance(states)
    L = dense(EnsembleRoot(states, 2.0))
    assert torch.allclose(L @ L.mT, 2 * P, atol=1e-12)
    whole = EOFRoot(states, modes=5)
    L = dense(whole)
    assert torch.allclose(L @ L.mT, P, atol=1e-10) and whole.explained == pytest.approx(1.0)
    norm = Norm({"thetao": 1.0, "zos": 0.5})
    few = EOFRoot(states, modes=3, norm=norm)
    L, W = dense(few), norm.weights(states.layout).flatten().sqrt()
    singular = torch.linalg.svd(W[:, None] * L).S[:3]
    everything = torch.linalg.svd(W[:, None] * dense(EnsembleRoot(states))).S
    assert torch.allclose(singular, everything[:3])  # the best of rank 3
    share = float((everything[:3] ** 2).sum() / (everything**2).sum())
    assert few.explained == pytest.approx(share) and few.size == 3
    with pytest.raises(ValueError, match="1 to 5 modes"):
        EOFRoot(states, modes=6)
    with pytest.raises(ValueError, match="at least two members"):
        EnsembleRoot(states.sel([0]))


@pytest.mark.parametrize("kind", ["levels", "one field", "all channels"])
def test_localisation_is_a_schur_product(kind: str) -> None:
    slots = (-1, 0) if kind == "levels" else (0,)
    states = ensemble(4, slots)
    layout = states.layout
    if kind == "all channels":
        localisation, channel = DiffusedRoot(layout, 1.0, 3e6, 100.0), np.arange(7)
    elif kind == "one field":
        localisation, channel = DiffusedRoot(layout.select(["zos"]), 1.0, 3e6), np.zeros(7, int)
    else:
        localisation = DiffusedRoot(common_layout(layout), 1.0, 3e6, 100.0)
        channel = np.tile([0, 1, 2, 0, 1, 2, 0], 2)
    root = LocalisedEnsemble(states, localisation, 1.5)
    Lc = dense(localisation).reshape(localisation.layout.shape[0], 96, -1)[channel].reshape(len(channel) * 96, -1)
    wanted = 1.5 * (Lc @ Lc.mT) * sample_covariance(states)
    L = dense(root)
    assert torch.allclose(L @ L.mT, wanted, atol=1e-12)
    assert root.size == 4 * localisation.size


def test_what_does_not_fit_is_refused() -> None:
    states = ensemble()
    with pytest.raises(LayoutError, match="wanted a localisation of the fields"):
        LocalisedEnsemble(states, Uncorrelated(states.layout.select(["thetao", "zos"]), 1.0))
    with pytest.raises(LayoutError, match="wanted the operator to make"):
        Composed(lambda x: x[..., :2, :, :], Uncorrelated(states.layout, STD)).apply(torch.zeros(1))


# --- balance -----------------------------------------------------------------------------------------


def ocean() -> tuple[Layout, State]:
    made = nature_ocean.globe()
    layout = made.layout.select(["thetao", "so", "uo", "vo", "zos"])
    return layout, made.at_rest(START, Noise(1), (0,)).select(layout).to(torch.float64)


def test_balance_is_that_of_the_equations() -> None:
    layout, at = ocean()
    root = Uncorrelated(layout, {"thetao": 0.5, "so": 0.1, "zos": 0.02, "uo": 0.01, "vo": 0.01})
    alpha, beta = 2e-4, 7.6e-4
    balanced = Balanced(root, at, expansion=(alpha, beta))
    v = torch.randn(2, root.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, x = root.apply(v), balanced.apply(v)
    T, S, zos = (layout.channels(n) for n in ("thetao", "so", "zos"))
    dz = torch.from_numpy(layout.grid["dz"].values)[:, None, None]
    steric = (dz * (alpha * u[:, T] - beta * u[:, S])).sum(1)
    assert torch.equal(x[:, T], u[:, T]) and torch.equal(x[:, S], u[:, S])
    assert torch.allclose(x[:, zos][:, 0] - u[:, zos][:, 0], steric * layout.mask[zos], atol=1e-12)
    report = check_adjoint(balanced)
    assert report.passed and report.dot_product < 1e-12, str(report)
    assert bool((x[:, ~layout.mask] == 0).all())


def test_sea_level_alone_gives_the_same_current_at_all_depths() -> None:
    layout, at = ocean()
    balanced = Balanced(Uncorrelated(layout, {"zos": 0.1}), at, sea_level=False)
    x = torch.zeros(1, *layout.shape, dtype=torch.float64)
    x[:, layout.channels("zos")] = torch.sin(torch.arange(90) / 5.0) * layout.mask[layout.channels("zos")]
    found = balanced.balance(x)
    before = at.replace(data=torch.zeros_like(at.data))
    wanted = Balance(salinity=False)(before, before.replace(data=x)).data
    assert float(found[:, layout.channels("vo")].abs().max()) > 0.01
    assert torch.allclose(found, wanted, atol=1e-12)


def test_a_steric_sea_level_has_no_current_at_the_bottom() -> None:
    """Thermal wind: a warm upper ocean over a flat bottom at rest below."""
    layout, at = ocean()
    x = torch.zeros(1, *layout.shape, dtype=torch.float64)
    T = layout.channels("thetao")
    x[:, T.start : T.start + 3] = torch.sin(torch.arange(90) / 5.0) * layout.mask[T][:3]
    balanced = Balanced(Uncorrelated(layout, {"thetao": 1.0}), at, equator=2.0)
    v = balanced.balance(x)[0, layout.channels("vo")]
    assert float(v[0].abs().max()) > 0.02
    assert float(v[4:].abs().max()) < 1e-12 * float(v[0].abs().max()) + 1e-15
    compensated = replace(balanced, salinity=True).balance(x)
    assert float(compensated[0, layout.channels("zos")].abs().max()) < 1e-15
    assert float(compensated[0, layout.channels("so")].max()) > 0.1
    with pytest.raises(ValueError, match="Balanced: wanted"):
        replace(balanced, sea_level=False, currents=False)


def test_balanced_fields_on_cell_centres() -> None:
    layout, at = ocean()
    fields = tuple(Field(f.name, f.levels) for f in layout.fields)
    centred = replace(layout, fields=fields)
    root = Uncorrelated(centred, {"thetao": 0.5, "zos": 0.02})
    balanced = Balanced(root, State(at.data * centred.mask, at.time, centred, (0,)))
    report = check_adjoint(balanced)
    assert report.passed and report.dot_product < 1e-12, str(report)


# --- what can be asked -------------------------------------------------------------------------------


def test_random_fields_have_the_covariance() -> None:
    root = DiffusedRoot(small_layout(), {"zos": 0.1}, 3e6)
    drawn = randomise(root, Noise(2), range(4000), START, dtype=torch.float64)
    B = dense(root) @ dense(root).mT
    flat = drawn.flatten(1)
    assert float((flat.mT @ flat / 4000 - B).abs().max()) < 0.15 * 0.01
    assert torch.equal(randomise(root, Noise(2), [17], START, dtype=torch.float64)[0], drawn[17])
    assert torch.allclose(variance(root, samples=2000, noise=Noise(1)), root.variance(), atol=0.15 * 0.01)
    hybrid = Hybrid([(0.25, root), (0.75, Uncorrelated(small_layout(), STD))])
    assert torch.allclose(variance(hybrid).flatten(), dense(hybrid).square().sum(1), atol=1e-12)
    composed = Composed(lambda x: 2 * x, root)
    assert torch.allclose(variance(composed), 4 * root.variance(), atol=1e-10)


def test_a_latent_root_is_the_derivative_of_its_decoder() -> None:
    root = latent()
    v = 1e-6 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = (root.decoder(root.at + v) - root.decoder(root.at - v)) / 2 * root.layout.mask
    assert torch.allclose(root.apply(v), step, rtol=1e-6, atol=1e-13)


def test_correlations_at_a_point() -> None:
    layout = small_layout()
    root = DiffusedRoot(layout, STD, 3e6, 80.0)
    found = correlation_at(root, "thetao", -4.0, 61.0, level=1)
    row, column = nearest_point(layout, "thetao", -4.0, 61.0, 1)
    assert (row, column) == (5, 2) and float(found.thetao[1, 5, 2]) == pytest.approx(1.0)
    B = (dense(root) @ dense(root).mT).reshape(7, 96, 7, 96)
    wanted = B[1, 5 * 12 + 2, 0].reshape(8, 12) / (1.0 * 0.5)
    assert np.allclose(found.thetao[0].values[layout.mask[0]], wanted[layout.mask[0]], atol=1e-12)
    assert np.isnan(found.thetao[0].values[~layout.mask[0]]).all() and found.thetao.attrs["units"] == "1"
    assert np.isnan(found.uo.values).all() and float(abs(found.zos).max()) == 0
    assert found.attrs["standard_deviation"] == pytest.approx(0.5)
    slots = correlation_at(DiffusedRoot(small_layout((-1, 0)), STD, 3e6, between_slots=0.5), "zos", -4.0, 61.0)
    assert slots.zos.dims[0] == "slot" and slots.zos[:, 5, 2].values == pytest.approx([0.5, 1.0])
    with pytest.raises(ValueError, match="does not vary"):
        correlation_at(root, "uo", -4.0, 61.0)
    with pytest.raises(ValueError, match="no wet point on level 7"):
        nearest_point(layout, "thetao", 0.0, 0.0, 7)


def later(state: State) -> State:
    return state.replace(time=state.time + timedelta(days=5), members=(0,))


def test_deviations_of_states() -> None:
    states = ensemble(7)
    point = std_of(states)
    assert torch.allclose(point[states.layout.mask], states.data.std(0)[states.layout.mask], atol=1e-12)
    one_by_one = (states.sel([m]).replace(time=START + m * timedelta(days=1)) for m in states.members)
    assert torch.allclose(std_of(one_by_one), point)
    level = std_of(states, by="level")
    assert float(level[0][states.layout.mask[0]].std()) < 1e-12 and float(level[0, 0].abs().max()) == 0
    smooth = std_of(states, smooth=3e6)
    wet = states.layout.mask[6]
    assert float(smooth[6][wet].std()) < 0.7 * float(point[6][wet].std())
    assert bool((smooth[~states.layout.mask] == 0).all())
    dataset = xr.concat([one.to_xarray() for one in (states.sel([0]), later(states.sel([1])))], "time", join="override")
    stored = Source.open(dataset.isel(member=0, drop=True), states.layout)
    assert torch.allclose(std_of(stored), std_of(states.sel([0, 1])), atol=1e-6)
    with pytest.raises(ValueError, match="at least two fields"):
        std_of(states.sel([0]))
    with pytest.raises(ValueError, match="by='point' or 'level'"):
        std_of(states, by="basin")
