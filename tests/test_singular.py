"""Norms, bred vectors and singular vectors, against dense algebra and the literature's Lyapunov exponent."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from small import START, random_state, small_layout
from toys import Lorenz96, Matrix, row_layout

from polynya.emulators import Noise, Source, State, samples
from polynya.ensembles import Box, Norm, SingularVectors, White, breed, perturb, singular_vectors, trajectory

SMALL = Norm({"zos": 1e-6})


def attractor() -> State:
    """Lorenz-96 after its transient, float64."""
    model = Lorenz96()
    start = Noise(0).normal((0,), None, model.layout.shape, dtype=torch.float64) + 8.0
    return next(islice(trajectory(model, State(start, START, model.layout, (0,))), 400, None))


# --- norms ---------------------------------------------------------------------------------------


def test_a_norm_is_the_volume_weighted_mean_square() -> None:
    layout = small_layout((-1, 0))
    norm, data = Norm({"thetao": (0.5, 1.0, 2.0), "zos": 0.1}), random_state(layout).data
    volume = (layout.grid["areacello"] * layout.grid["dz"] * layout.grid["wetmask"]).transpose("lev", ...).values
    theta = np.stack([data[1, layout.channels("thetao", s)].double().numpy() for s in (0, 1)])
    mean = (volume * (theta / np.array([0.5, 1.0, 2.0])[:, None, None]) ** 2).sum() / volume.sum() / 2
    area = (layout.grid["areacello"] * layout.grid["wetmask"][0]).values
    zos = np.stack([data[1, layout.channels("zos", s)].double().numpy() for s in (0, 1)])
    assert float(norm.parts(layout, data)["thetao"][1]) == pytest.approx(np.sqrt(mean), rel=1e-12)
    whole = mean + (area * (zos[:, 0] / 0.1) ** 2).sum() / area.sum() / 2
    assert float(norm.of(layout, data)[1]) == pytest.approx(np.sqrt(whole), rel=1e-12)
    assert float((norm.weights(layout) * data[1].double() ** 2).sum()) == pytest.approx(whole, rel=1e-12)
    boxed = Norm({"zos": 1.0}, Box((-20.0, 0.0), (0.0, 100.0))).weights(layout)
    assert float(boxed.sum()) == pytest.approx(1.0) and float(boxed[..., 4:].sum()) == 0
    assert (norm.in_units(layout, data)[:, 2] == data[:, 2] / 2).all() and (
        norm.in_units(layout, data)[:, 3] == 0
    ).all()


def test_bad_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="positive scales"):
        Norm({"zos": 0.0})
    with pytest.raises(ValueError, match="positive scales"):
        Norm({})
    with pytest.raises(ValueError, match=r"no variable\(s\) so; the state has thetao"):
        Norm({"so": 1.0}).weights(small_layout())
    with pytest.raises(ValueError, match="scale of thetao needs 1 or 3 numbers, got 2"):
        Norm({"thetao": (1.0, 2.0)}).weights(small_layout())
    with pytest.raises(ValueError, match="no wet cell where the norm counts"):
        Norm({"zos": 1.0}, Box((-31.0, -29.0))).weights(small_layout())


# --- bred vectors --------------------------------------------------------------------------------


def test_bred_vectors_grow_as_lyapunov_says() -> None:
    """The largest exponent of Lorenz-96 with F = 8 is 1.67 to 1.69 (Karimi and Paul 2010); random ones start slower."""
    bred = breed(Lorenz96(), attractor(), members=4, norm=SMALL, cycles=800, steps=4, noise=Noise(1))
    rates = bred.growth.log() / (4 * 0.05)
    assert float(rates[100:].mean()) == pytest.approx(1.68, abs=0.12)
    assert float(bred.norm.of(bred.base.layout, bred.vectors).sub(1).abs().max()) < 1e-9
    assert bred.base.time == attractor().time + 3200 * Lorenz96().dt
    control = next(islice(trajectory(Lorenz96(), attractor()), 3200, None))
    assert torch.equal(bred.base.data[2], control.data[0]), "the base evolves, unperturbed"
    alignment = torch.corrcoef(bred.vectors.flatten(1)).abs()
    assert float(alignment.min()) > 0.999, "after a long time all are the leading Lyapunov vector"


def test_a_bred_member_does_not_depend_on_its_companions() -> None:
    layout = row_layout(12, "zos", "tos")
    A = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 4
    start = State(torch.zeros(1, *layout.shape), START, layout, (0,))
    setting = {"norm": Norm({"zos": 0.1, "tos": 2.0}), "cycles": 3, "steps": 2, "noise": Noise(2)}
    many = breed(Matrix(A, layout, 0.3), start, members=9, **setting)
    some = breed(Matrix(A, layout, 0.3), start, members=(7, 2), **setting)
    assert torch.equal(some.vectors, many.vectors[[7, 2]]) and torch.equal(some.growth, many.growth[:, [7, 2]])
    assert not torch.equal(
        many.base.data[0], many.base.data[1]
    )  # a stochastic control, and the same noise in both runs


@pytest.mark.parametrize("together", [False, True])
def test_rescaling_is_per_variable_or_together(together: bool) -> None:
    """After many cycles of a linear map: the leading eigenvector if all variables share one factor."""
    layout = row_layout(5, "zos", "tos")
    A = torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    A = A @ A.mT  # real eigenvalues
    start = State(torch.zeros(1, *layout.shape, dtype=torch.float64), START, layout, (0,))
    norm = Norm({"zos": 0.1, "tos": 2.0})
    bred = breed(Matrix(A, layout), start, members=2, norm=norm, cycles=200, noise=Noise(2), together=together)
    parts = norm.parts(layout, bred.vectors)
    if together:
        values, vectors = torch.linalg.eigh(A)
        cosine = (bred.vectors.flatten(1) @ vectors[:, -1]).abs() / bred.vectors.flatten(1).norm(dim=1)
        assert cosine.tolist() == pytest.approx([1, 1], abs=1e-9)
        assert float(bred.growth[-1, 0]) == pytest.approx(float(values[-1]), rel=1e-9)
        assert norm.of(layout, bred.vectors).tolist() == pytest.approx([2**0.5] * 2)
    else:
        assert all(size.tolist() == pytest.approx([1, 1], rel=1e-9) for size in parts.values())


def test_bred_vectors_are_a_kind_of_perturbation() -> None:
    state = attractor()
    bred = breed(Lorenz96(), state, members=3, norm=SMALL, cycles=20, noise=Noise(1))
    ensemble = perturb(bred.base.sel((1,)), (1, 2), amplitude={"zos": 1e-6}, noise=Noise(0), kind=bred)
    assert torch.allclose(ensemble.data - bred.base.data[1:2], bred.vectors[1:], atol=1e-14)
    with pytest.raises(ValueError, match=r"bred members are \(0, 1, 2\), got \[5\]"):
        bred.draw(state.layout, (5,), START, Noise(0))
    with pytest.raises(ValueError, match="cycles >= 1"):
        breed(Lorenz96(), state, members=3, norm=SMALL, cycles=0, noise=Noise(1))
    dead = Matrix(torch.zeros(40, 40), state.layout)
    with pytest.raises(ValueError, match="vanished or the run blew up"):
        breed(dead, state, members=1, norm=SMALL, cycles=2, noise=Noise(1))


# --- singular vectors ----------------------------------------------------------------------------


def dense(emulator, state: State, steps: int, initial: Norm, final: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values and right vectors (in units of the state) of the scaled Jacobian, by columns."""

    def window(x: torch.Tensor) -> torch.Tensor:
        run = trajectory(emulator, state.replace(data=x.view_as(state.data)))
        return next(islice(run, steps, None)).data.flatten()

    M = torch.autograd.functional.jacobian(window, state.data.flatten())
    w, v = (n.weights(state.layout).sqrt().flatten() for n in (initial, final))
    inside = w > 0
    _, s, V = torch.linalg.svd((v[:, None] * M)[:, inside] / w[inside])
    out = torch.zeros(len(s), len(w), dtype=torch.float64)
    out[:, inside] = V / w[inside]
    return s, out


@pytest.mark.parametrize("steps", [1, 8])
def test_singular_vectors_are_those_of_a_dense_svd(steps: int) -> None:
    state, norm = attractor(), Norm({"zos": 0.3})
    target = Norm({"zos": 0.7}, Box((-10.0, 10.0), (90.0, 270.0)))
    for initial, final in ((norm, norm), (norm, target), (target, norm)):
        values, vectors = dense(Lorenz96(), state, steps, initial, final)
        got = singular_vectors(
            Lorenz96(), state, initial=initial, final=final, steps=steps, count=3, tolerance=1e-5, iterations=40
        )
        assert got.values.tolist() == pytest.approx(values[:3].tolist(), rel=1e-6)
        assert initial.of(state.layout, got.initial).tolist() == pytest.approx([1] * 3, rel=1e-9)
        assert final.of(state.layout, got.final).tolist() == pytest.approx(got.values.tolist(), rel=1e-6)
        weights = initial.weights(state.layout)
        overlap = torch.einsum("acyx,cyx,bcyx->ab", got.initial, weights, vectors[:3].view_as(got.initial))
        assert torch.allclose(overlap.abs(), torch.eye(3, dtype=torch.float64), atol=1e-4)


def test_masks_levels_and_unnamed_variables_are_respected() -> None:
    layout = small_layout()
    size = int(np.prod(layout.shape))
    A = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / size**0.5
    wet = layout.mask.flatten().double()
    emulator = Matrix(wet[:, None] * A * wet, layout)
    state = replace(random_state(layout, (3,)), data=random_state(layout, (3,)).data.double())
    initial, final = Norm({"thetao": (1.0, 0.3, 0.1), "zos": 0.05}), Norm({"uo": 0.1})
    values, _ = dense(emulator, state, 1, initial, final)
    got = singular_vectors(emulator, state, initial=initial, final=final, count=4, tolerance=1e-4, iterations=60)
    assert got.values.tolist() == pytest.approx(values[:4].tolist(), rel=1e-6)
    assert (got.initial[:, ~layout.mask] == 0).all() and (got.initial[:, layout.channels("uo")] == 0).all()
    assert (got.residuals <= 1e-4).all() and got.products < 4 * 60 * 6


def test_few_degrees_of_freedom_are_exhausted_exactly() -> None:
    layout = row_layout(3)
    A = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = State(torch.zeros(1, 1, 1, 3, dtype=torch.float64), START, layout, (0,))
    got = singular_vectors(Matrix(A, layout), state, initial=Norm({"zos": 1.0}), count=3, tolerance=1e-12)
    assert got.values.tolist() == pytest.approx(torch.linalg.svdvals(A).tolist(), rel=1e-9)
    with pytest.raises(ValueError, match="wanted 4 singular vectors by blocks of 3, of 3 degrees of freedom"):
        singular_vectors(Matrix(A, layout), state, initial=Norm({"zos": 1.0}))
    with pytest.raises(ValueError, match="belong to one member"):
        singular_vectors(Matrix(A, layout), state.spread_to((0, 1)), initial=Norm({"zos": 1.0}))


def test_too_few_iterations_are_reported() -> None:
    with pytest.warns(UserWarning, match="allow more `iterations`"):
        singular_vectors(Lorenz96(), attractor(), initial=Norm({"zos": 1.0}), count=3, iterations=1, steps=4)


def test_singular_vectors_are_a_kind_of_perturbation() -> None:
    state, norm = attractor(), Norm({"zos": 0.3})
    found = singular_vectors(Lorenz96(), state, initial=norm, steps=4, count=4)
    assert isinstance(found, SingularVectors)
    many = perturb(state, 3000, amplitude={"zos": 0.01}, noise=Noise(0), kind=found)
    shifts = many.data - state.data
    assert float(norm.of(state.layout, shifts).square().mean().sqrt()) == pytest.approx(0.01 / 0.3, rel=0.05)
    space = found.initial.flatten(1).mT
    outside = shifts.flatten(1).mT - space @ torch.linalg.lstsq(space, shifts.flatten(1).mT).solution
    assert float(outside.abs().max()) < 1e-7
    alone = perturb(state, (11,), amplitude={"zos": 0.01}, noise=Noise(0), kind=found)
    assert torch.equal(alone.data[0], many.data[11])


def test_they_grow_faster_than_noise_on_the_embedded_ocean() -> None:
    """Run as they are, not linearised: over 15 days in the channel at least twice as fast as noise of the same norm."""
    emulator, store, steps = samples.emulator("channel"), samples.sample("channel"), 3
    source, forcing = Source.open(store, emulator.layout), Source.open(store, emulator.forcing_layout)
    layout, state = emulator.layout, source.state(source.times[10], (0,))
    norm = Norm({"thetao": 0.1, "uo": 0.05, "vo": 0.05, "zos": 0.02})
    found = singular_vectors(
        emulator, state, forcing, initial=norm, steps=steps, count=1, block=2, iterations=8, tolerance=0.03
    )
    small, scale = 1e-2, {n: [s] for n, s in norm.scale.items()}
    starts = [perturb(state, 2, amplitude=small, scale=scale, noise=Noise(0), kind=k) for k in (White(), found)]
    with torch.no_grad():
        calm, *runs = (next(islice(trajectory(emulator, s, forcing), steps, None)) for s in (state, *starts))
    noisy, fast = (
        norm.of(layout, run.data - calm.data) / norm.of(layout, start.data - state.data)
        for run, start in zip(runs, starts, strict=True)
    )
    assert float(fast.min()) > 2 * float(noisy.max())
    assert fast.tolist() == pytest.approx([float(found.values[0])] * 2, rel=0.05)
