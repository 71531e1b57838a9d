"""Experiments that are kept: what the store holds, killed and resumed to the same bits, refused if another."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
import zarr
from test_cycle import EMULATOR, ENSEMBLE, METHOD, NETWORK, START, observations, truth

from polynya.da import (
    LETKF,
    Adaptive,
    Biased,
    Debiased,
    NoAnalysis,
    Observations,
    OtherExperimentError,
    SurfaceField,
    assimilate,
    by_band,
    cycle,
    observe,
    open_assimilation,
    operator_for,
)
from polynya.da.archive import Archive
from polynya.emulators import Noise, SourceError, State, StoreExistsError
from polynya.ensembles import Output

torch.set_num_threads(1)
STEPS = 6
LEARNING = Adaptive(LETKF(5e5), 1e6)
BIAS = Debiased(("surface",), ("zos",))


def known(time):
    return next(s for s in islice(truth(), STEPS + 2) if s.time == time)


def run(path, *, steps=STEPS, method=METHOD, **how):
    return assimilate(EMULATOR, ENSEMBLE, None, observations(steps=steps), method, Noise(5), store=path, **how)


def files(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and "blocks" not in str(p) and p.name != "zarr.json"
    }


def test_the_store_holds_what_the_cycle_made(tmp_path):
    cycles = []
    states = list(cycle(EMULATOR, ENSEMBLE, None, observations(), METHOD, Noise(5), monitor=cycles.append))
    kept = run(tmp_path / "a.zarr", truth=known)
    assert [t.dayofyr - 1 for t in kept.analysis.time.values] == list(range(STEPS + 1))
    assert [t.dayofyr - 1 for t in kept.background.time.values] == list(range(1, STEPS + 1))
    for k, state in enumerate(states):
        assert np.array_equal(kept.analysis.zos.isel(time=k).values, state["zos"][:, 0].numpy())
    rows, count = kept.observations, 0
    for k, done in enumerate(cycles):
        assert np.array_equal(kept.background.zos.isel(time=k).values, done.background["zos"][:, 0].numpy())
        used, mine = done.checked.used, rows.isel(observation=rows.cycle.values == k)
        assert np.array_equal(mine.value.values, used.value) and (mine.kind.values == "surface").all()
        seen = operator_for(ENSEMBLE.layout, used).apply(done.background)
        assert np.allclose(mine.background.values, seen.mean(0), atol=1e-14)
        assert np.allclose(mine.background_spread.values, seen.std(0), atol=1e-14)
        assert {str(t) for t in mine.time.values} == {str(done.analysis.time)}
        count += len(used)
        error = kept.cycles.error.isel(time=k).sel(state="analysis", channel=0)
        exact = known(done.analysis.time)
        assert float(error) == pytest.approx(float((done.analysis.data.mean(0) - exact.data[0]).square().mean().sqrt()))
    assert rows.sizes["observation"] == count == int(kept.cycles.used.sum())
    found = kept.departures().isel(type=0)
    d, a = (np.asarray(rows.value - rows[n]) for n in ("background", "analysis"))
    expected = np.asarray(rows.background_spread**2 + rows.error**2)
    assert found.kind == "surface" and found.given == found.used == count
    assert np.allclose(found["mean"], d.mean()) and np.allclose(found.rms**2, (d**2).mean())
    assert np.allclose(found.error**2, (d * a).mean()) and np.allclose(found.expected**2, expected.mean())
    bands = by_band(kept.cycles, kept.analysis)
    assert bands.variable.values.tolist() == ["zos"] and bands.units.values.tolist() == ["m"]
    late = bands.isel(time=slice(2, None)).mean("time")
    assert float(late.error.sel(state="analysis")[0]) < float(late.error.sel(state="background")[0]) < 0.3


class KilledError(Exception):
    pass


def killed(after):
    """The observations until the experiment is killed."""
    yield from islice(observations(), after)
    raise KilledError


@pytest.mark.parametrize(
    ("after", "method", "increments"), [(0, LEARNING, 0), (3, METHOD, 0), (2, LEARNING, 1), (5, LEARNING, 0)]
)
def test_killed_and_resumed_it_ends_in_the_same_bits(tmp_path, after, method, increments):
    how = {"truth": known, "method": method, "increments": increments, "bias": BIAS}
    whole = run(tmp_path / "whole.zarr", **how)
    with pytest.raises(KilledError):
        assimilate(
            EMULATOR, ENSEMBLE, None, killed(after), method, Noise(5), store=tmp_path / "cut.zarr", truth=known,
            increments=increments, bias=BIAS, restart_minutes=0 if after % 2 else 5,
        )  # fmt: skip
    assert Archive(tmp_path / "cut.zarr").length("cycles") == after
    with pytest.raises(SourceError, match="resume=True"):
        open_assimilation(tmp_path / "cut.zarr")
    rest = run(tmp_path / "cut.zarr", resume=True, **how)
    for name in ("analysis", "background", "observations", "cycles"):
        assert getattr(whole, name).equals(getattr(rest, name)), name
    assert files(tmp_path / "whole.zarr") == files(tmp_path / "cut.zarr")
    if method is LEARNING:
        assert whole.cycles.inflation.shape == (STEPS, 1, 24) and float(whole.cycles.inflation.std()) > 0


def test_rows_beyond_the_last_commit_are_written_again(tmp_path):
    whole = run(tmp_path / "whole.zarr", truth=known)
    run(tmp_path / "cut.zarr", steps=3, truth=known)
    # As if it had been killed after the tables and the background were written, before the analysis was committed.
    longer = open_assimilation(tmp_path / "cut.zarr")
    assert longer.cycles.sizes["time"] == 3
    group = zarr.open_group(tmp_path / "cut.zarr", mode="r+")
    for name in ("observations", "cycles"):
        for _, array in group[name].arrays():
            if not array.attrs.get("fixed"):
                array.resize((array.shape[0] + 2, *array.shape[1:]))
    run(tmp_path / "cut.zarr", resume=True, truth=known)
    assert files(tmp_path / "whole.zarr") == files(tmp_path / "cut.zarr")
    assert open_assimilation(tmp_path / "cut.zarr").observations.equals(whole.observations)


def test_it_goes_on_with_more_observations(tmp_path):
    whole = run(tmp_path / "whole.zarr")
    run(tmp_path / "part.zarr", steps=2)
    more = run(tmp_path / "part.zarr", resume=True)
    assert whole.analysis.equals(more.analysis) and whole.observations.equals(more.observations)
    again = run(tmp_path / "part.zarr", resume=True)  # which has nothing left to do
    assert whole.analysis.equals(again.analysis)


def test_another_experiment_is_refused_and_nothing_is_touched(tmp_path):
    path = tmp_path / "a.zarr"
    run(path, steps=2)
    before = files(path)
    with pytest.raises(StoreExistsError, match="resume=True"):
        run(path)
    with pytest.raises(OtherExperimentError, match="analysis: the store has .*inflation=1.05"):
        run(path, resume=True, method=LETKF(5e5, inflation=1.2))
    other = ENSEMBLE.replace(data=ENSEMBLE.data + 1)
    with pytest.raises(ValueError, match="began with another state"):
        assimilate(EMULATOR, other, None, observations(), METHOD, Noise(5), store=path, resume=True)
    with pytest.raises(ValueError, match="not finite"):
        bad = ENSEMBLE.replace(data=ENSEMBLE.data * float("nan"))
        assimilate(EMULATOR, bad, None, observations(), METHOD, Noise(5), store=path, overwrite=True)
    with pytest.raises(ValueError, match="every analysis is kept"):
        run(tmp_path / "b.zarr", output=Output(every=2))
    with pytest.raises(FileNotFoundError, match="assimilate"):
        open_assimilation(tmp_path / "b.zarr")
    assert files(path) == before


# --- what the cycle itself can do --------------------------------------------------------------------


def test_increments_are_added_on_the_way():
    cycles = []
    seen = list(observations(every=3))
    states = list(cycle(EMULATOR, ENSEMBLE, None, seen, METHOD, Noise(5), increments=2, monitor=cycles.append))
    assert [(s.time - START).days for s in states] == list(range(7))
    first = cycles[0]
    increment = first.analysis.data - first.background.data
    assert torch.equal(first.goes_on.data, first.background.data) and torch.equal(states[3].data, first.analysis.data)
    state = first.background
    for k in range(3):
        if k < 2:
            state = state.replace(data=state.data + increment / 2)
        state = EMULATOR.step(state, None, Noise(5))
        assert torch.equal(state.data, states[4 + k].data if k < 2 else cycles[1].background.data)
    with pytest.raises(ValueError, match="increments=4"):
        list(cycle(EMULATOR, ENSEMBLE, None, seen, METHOD, Noise(5), increments=4))


def test_a_bias_is_learned_and_taken_off():
    """One instrument is off, another is not: the first is corrected towards the second."""
    clean = SurfaceField("zos", 0.1, stride=3, kind="anchor")
    wrong = Biased(SurfaceField("zos", 0.1, stride=4, kind="wrong"), 0.5)
    seen = list(observe(islice(truth(), 31), (clean, wrong), Noise(3)))
    errors, biases = {}, []
    for name, bias in (("plain", None), ("corrected", Debiased(("wrong",), ("zos",), memory=10))):
        cycles = []
        list(cycle(EMULATOR, ENSEMBLE, None, seen, METHOD, Noise(5), bias=bias, monitor=cycles.append))
        pairs = zip(cycles[10:], islice(truth(), 11, None), strict=False)
        errors[name] = np.mean([float((c.analysis.data.mean(0) - t.data[0]).square().mean().sqrt()) for c, t in pairs])
        biases.append(cycles[-1].carried.get("bias"))
    assert biases[0] is None and abs(float(biases[1][1]) - 0.5) < 0.1
    assert errors["corrected"] < 0.6 * errors["plain"]


def test_observations_between_steps_see_the_trajectory_there():
    """Values of the truth at odd hours are matched by a perfect ensemble at those hours, not at the analysis."""
    day = 86400.0
    path = list(islice(truth(), 4))
    lon, offsets = np.arange(NETWORK.stride, 24) + 0.5, np.array([-2.5, -1.0, -0.25, 0.0]) * day
    table = {"variable": "zos", "lat": -50.0, "lon": np.repeat(lon, 4), "error": 0.1, "value": 0.0}
    given = Observations.from_table(path[3].time, table | {"offset": np.tile(offsets, len(lon))})
    seen = [operator_for(s.layout, given).apply(s)[0].numpy() for s in path]
    at = 3 + given.offset / day
    left = np.minimum(at.astype(int), 2)
    value = np.array([(1 - (t - k)) * seen[k][i] + (t - k) * seen[k + 1][i] for i, (t, k) in enumerate(zip(at, left))])  # noqa: B905
    cycles = []
    same = State(path[0].data.repeat(3, 1, 1, 1), START, path[0].layout, (0, 1, 2))

    class Watch:
        def analysis(self, forecast, observations):
            cycles.append(operator_for(forecast.layout, observations).apply(forecast))
            return forecast

    assert NoAnalysis().analysis(same, given) is same
    list(cycle(EMULATOR, same.sel((0,)), None, [given.replace(value=value)], Watch(), Noise(100)))
    assert np.allclose(cycles[0][0].numpy(), value, atol=1e-12)
    early = given.replace(offset=np.full(len(given), -3.5 * day))
    with pytest.raises(ValueError, match="after the cycle before"):
        list(cycle(EMULATOR, same, None, [early], METHOD, Noise(100)))
