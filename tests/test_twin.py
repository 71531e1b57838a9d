"""Twin experiments: one truth, the same observations for all, scores in bands, continued and extended."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
import torch
from small import random_state, small_layout
from test_cycle import EMULATOR, ENSEMBLE, METHOD, NETWORK, TRUTH, Advection

from polynya.da import ETKF, RandomPoints, against, open_twin, twin
from polynya.emulators import Noise, Persistence

torch.set_num_threads(1)


def run(path, analysis=METHOD, cycles=8, **how):
    imperfect = Advection(noise_amplitude=0.03)
    return twin(
        EMULATOR, TRUTH, imperfect, ENSEMBLE, NETWORK, analysis, cycles=cycles, noise=Noise(4), store=path, **how
    )


def test_analyses_see_the_same_and_beat_the_free_run(tmp_path):
    done = run(tmp_path, {"local": METHOD, "global": ETKF(inflation=1.1)})
    assert list(done.runs) == ["free run", "local", "global"] and done.truth.sizes["time"] == 9
    free, local, _ = done.runs.values()
    assert np.array_equal(free.observations.value, local.observations.value) and free.observations.sizes["observation"]
    assert free.analysis.zos.isel(time=slice(1, None)).equals(free.background.zos)
    summary = done.summary(skip=4).compute()
    assert summary.gain.sel(run="free run") == 0 and (summary.gain.sel(run=["local", "global"]) > 0.3).all()
    assert 0.5 < float(summary.ratio.sel(run="local")[0]) < 2
    scores = done.scores()
    assert scores.error.dims == ("run", "band", "state", "time") and scores.sizes["time"] == 8
    assert open_twin(tmp_path).summary(skip=4).sel(run=summary.run).equals(summary)


def test_it_can_be_continued_and_given_another_analysis(tmp_path):
    whole = run(tmp_path / "whole", {"local": METHOD, "global": ETKF()})
    run(tmp_path / "part", {"local": METHOD}, cycles=3)
    rest = run(tmp_path / "part", {"local": METHOD, "global": ETKF()}, resume=True)
    for name, one in whole.runs.items():
        assert one.analysis.equals(rest.runs[name].analysis), name
        assert one.observations.equals(rest.runs[name].observations), name


def test_error_and_spread_are_weighted_by_wet_area():
    layout = small_layout()
    state, truth = random_state(layout, (0, 1, 2)), random_state(layout, (0,), seed=1)
    error, spread = against(state, truth)
    area = np.broadcast_to(layout.grid["areacello"].values, layout.shape[1:])
    for k in range(layout.shape[0]):
        weight = np.where(layout.mask[k], area, 0.0)
        x, t = state.data[:, k].double().numpy(), truth.data[0, k].double().numpy()
        assert float(error[k]) == pytest.approx(np.average((x.mean(0) - t) ** 2, weights=weight))
        assert float(spread[k]) == pytest.approx(np.average(x.var(0, ddof=1), weights=weight) * 4 / 3)
    assert not against(state.sel((1,)), truth)[1].any()
    with pytest.raises(ValueError, match="one true state"):
        against(state, state)


def test_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="a truth of one member"):
        twin(EMULATOR, ENSEMBLE, EMULATOR, ENSEMBLE, NETWORK, METHOD, cycles=2, store=tmp_path / "a")
    with pytest.raises(ValueError, match="divide"):
        slow = Persistence(TRUTH.layout, timedelta(days=2))
        twin(slow, TRUTH, EMULATOR, ENSEMBLE, NETWORK, METHOD, cycles=2, store=tmp_path / "a")
    with pytest.raises(ValueError, match="thetao"):
        twin(EMULATOR, TRUTH, EMULATOR, ENSEMBLE, RandomPoints("thetao", 0.1, count=3), METHOD, cycles=2,
             store=tmp_path / "b")  # fmt: skip
    with pytest.raises(FileNotFoundError):
        open_twin(tmp_path / "c")
