"""Inverse roots by products of matrices: against eigenvalues, steps, derivatives, CUDA."""

from __future__ import annotations

import pytest
import torch
from test_letkf_ocean import LAND, ensemble, same, some_observations

from polynya.da import LETKF, transform
from polynya.da.filters import inverse_root
from polynya.da.roots import newton_schulz_root, steps

torch.set_num_threads(1)


def matrices(n, scale, dtype=torch.float64, batch=5):
    Y = torch.randn(batch, 3 * n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * scale
    Y = Y - Y.mean(-1, keepdim=True)
    return (torch.eye(n, dtype=torch.float64) + Y.mT @ Y / (n - 1)).to(dtype)


@pytest.mark.parametrize("n", [2, 7, 30, 64, 100])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 8.0])
def test_root_by_products_against_eigenvalues(n, scale):
    A = matrices(n, scale)
    wanted = inverse_root(A)
    found = newton_schulz_root(A)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-10) and torch.equal(found, found.mT)
    assert torch.allclose(newton_schulz_root(A.float()).double(), wanted, rtol=0, atol=1e-5)
    assert torch.allclose(newton_schulz_root(A[0]), wanted[0], rtol=0, atol=1e-10)


def test_root_takes_few_steps():
    assert max(steps(c, torch.float32) for c in (1, 191, 276, 381)) <= 7  # plain Newton-Schulz takes 14
    assert steps(1e5) <= 12 and steps(1e10) <= 24


def test_root_is_differentiable():
    A = matrices(5, 0.7, batch=2)
    B = A.clone().requires_grad_()
    weight = torch.randn(A.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, wanted = (torch.autograd.grad((f(B) * weight).sum(), B)[0] for f in (newton_schulz_root, inverse_root))
    assert torch.allclose((found + found.mT) / 2, (wanted + wanted.mT) / 2, atol=1e-10)
    assert torch.autograd.gradgradcheck(lambda A: newton_schulz_root((A + A.mT) / 2), (B[0],), atol=1e-4)


def test_transform_by_products():
    g = torch.Generator().manual_seed(2)
    Y = torch.randn(3, 40, 12, generator=g, dtype=torch.float64)
    Y, d, rho = Y - Y.mean(-1, keepdim=True), torch.randn(3, 40, generator=g).double(), torch.rand(3, 40).double()
    for found, wanted in zip(
        transform(Y, d, rho, inflation=1.1, rtpp=0.3, inverse_root=newton_schulz_root),
        transform(Y, d, rho, inflation=1.1, rtpp=0.3),
        strict=True,
    ):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-10)


def test_root_messages():
    with pytest.raises(ValueError, match="lower bound"):
        newton_schulz_root(torch.eye(2), least=0.0)
    with pytest.raises(ValueError, match="finite"):
        newton_schulz_root(torch.full((2, 2), torch.nan))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu():
    forecast, obs = ensemble(LAND), some_observations(LAND)
    for method in (LETKF(9e5), LETKF(9e5, stride=3, basins="connected"), LETKF(9e5, vertical_half_width=90.0)):
        there = method.analysis(forecast.to("cuda"), obs)
        same(there.to("cpu"), method.analysis(forecast, obs), 1e-10)
