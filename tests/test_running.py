"""How sea-ice networks are run: compiled functions, one per shape, that give the same numbers and hold nothing up."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import test_gensim_emulator as gensims
import test_regional_emulator as regionals
import torch

from polynya.emulators import Noise, gensim, regional, running
from polynya.emulators.running import Running, compiled

Small = torch.nn.Linear


@pytest.fixture
def made(monkeypatch):
    """`torch.compile` that records what it is asked and compiles nothing."""
    asked = []

    def compiling(function, **how):
        asked.append((function, how))
        return function

    monkeypatch.setattr(torch, "compile", compiling)
    return asked


def test_there_is_one_kind_of_running():
    assert gensim.Running is regional.Running is Running
    assert Running() == Running(True, 1, True, True, False, False)
    network = Small(2, 2)
    assert Running().method(network) == network.__call__
    with Running(bf16=True).autocast(torch.device("cpu")), torch.no_grad():
        assert network(torch.ones(1, 2)).dtype == torch.bfloat16
    with Running().autocast(torch.device("cpu"), True), torch.no_grad():
        assert network(torch.ones(1, 2)).dtype == torch.bfloat16


def test_a_function_is_compiled_once_for_every_shape(made):
    network = Small(3, 2)
    call = compiled(network)
    x = torch.randn(4, 3)
    with torch.no_grad():
        for given in (x, x + 1, x[:2], x[:2], x):
            assert torch.equal(call(given), network(given))
        assert torch.equal(compiled(network)(x), network(x)) and len(made) == 2  # kept, whoever asks
    assert call(x).requires_grad and len(made) == 3
    compiled(Small(3, 2))(x)
    assert len(made) == 4 and all(how == {"dynamic": False, "mode": None} for _, how in made)
    assert len({id(function.__code__) for function, _ in made}) == 4


def test_compiled_functions_belong_to_no_pickle_and_keep_no_network_alive(made):
    network = Small(3, 2)
    compiled(network)(torch.randn(1, 3))
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert other not in running._FUNCTIONS
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", ["gensim", "diffusion", "residual"])
def test_emulators_call_it_and_pickle(kind, made):
    kinds = gensims if kind == "gensim" else regionals
    model = kinds.emulator() if kind == "gensim" else kinds.emulator(kind)
    quick = model.tuned(replace(model.running, compiled=True))
    state = kinds.ice(model.layout)
    forcing = kinds.weather(model.forcing_layout, state)
    with torch.no_grad():
        wanted, got = (m.step(state, forcing, Noise(0)).data for m in (model, quick))
        again = pickle.loads(pickle.dumps(quick))
        assert torch.equal(got, wanted) and torch.equal(again.step(state, forcing, Noise(0)).data, wanted)
    assert made and again.running.compiled
    state = replace(state, data=state.data.clone().requires_grad_())
    grads = [torch.autograd.grad(m.step(state, forcing, Noise(0)).data.sum(), state.data)[0] for m in (model, quick)]
    assert torch.equal(*grads)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gensim", "diffusion"])
def test_compiled_steps_are_those_of_before(kind):
    """By the C++ compiler, values and gradients, more shapes than one function may have."""
    kinds = gensims if kind == "gensim" else regionals
    model = kinds.emulator(n_steps=2) if kind == "gensim" else kinds.emulator(kind, n_steps=2)
    quick = model.tuned(replace(model.running, compiled=True))
    state = kinds.ice(model.layout)
    forcing = kinds.weather(model.forcing_layout, state)
    state = replace(state, data=state.data.clone().requires_grad_())
    found = []
    for m in (model, quick):
        with torch.no_grad():
            plain = m.step(state, forcing, Noise(0)).data
        after = m.step(state, forcing, Noise(0)).data
        found.append((plain, after.detach(), torch.autograd.grad(after.sum(), state.data)[0]))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    again = pickle.loads(pickle.dumps(quick))
    with torch.no_grad():
        torch.testing.assert_close(again.step(state, forcing, Noise(0)).data, found[0][0], rtol=1e-5, atol=1e-5)


def test_more_shapes_than_torch_allows_a_function(monkeypatch):
    """Traced, not compiled: nothing is traced twice, and nothing given up."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: plain(f, backend="eager", dynamic=how["dynamic"]))
    network, x = Small(3, 2), torch.randn(20, 3)
    with torch._dynamo.config.patch(error_on_recompile=True, fail_on_recompile_limit_hit=True):
        for n in range(1, 13):
            for _ in range(2):
                assert torch.equal(compiled(network)(x[:n]), network(x[:n]))
    assert len(running._FUNCTIONS[network]) == 12
