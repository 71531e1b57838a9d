"""Hindcasts have the leads and valid times they say, and meet the truth at the right dates."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from small import START, random_state, small_layout

from polynya.emulators import Persistence
from polynya.ensembles import hindcasts, record, verifying

STEP = timedelta(days=5)


@pytest.mark.parametrize("slots", [(0,), (-1, 0)])
def test_layout_leads_and_valid_times(slots: tuple[int, ...]) -> None:
    layout = small_layout(slots)
    dt = len(slots) * STEP
    starts = [random_state(layout, seed=k).replace(time=START + k * STEP) for k in range(3)]
    cast = hindcasts(Persistence(layout, dt), starts, steps=2, names=["thetao", "zos"])
    assert cast.thetao.dims == ("init", "member", "lead", "lev", "lat", "lon")
    assert list(cast.lead) == [0, dt.days, 2 * dt.days]
    assert cast.valid_time.dims == ("init", "lead")
    assert cast.valid_time.values[1, 2] == START + STEP + 2 * dt
    wanted = starts[2].to_xarray().zos.isel(time=-1).values
    assert np.array_equal(cast.zos.isel(init=2, lead=1).values, wanted, equal_nan=True)


def test_the_truth_is_found_at_valid_times(tmp_path) -> None:  # type: ignore[no-untyped-def]
    layout = small_layout()
    states = [random_state(layout, (0,), seed=k).replace(time=START + k * STEP) for k in range(6)]
    truth = record(states, tmp_path / "truth.zarr").squeeze("member", drop=True)
    cast = hindcasts(Persistence(layout, STEP), states[:3], steps=2)
    there = verifying(truth, cast)
    assert there.zos.dims == ("init", "lead", "lat", "lon")
    for i in range(3):
        for k in range(3):
            seen = there.zos.isel(init=i, lead=k).values
            assert np.array_equal(seen, truth.zos.isel(time=i + k).values, equal_nan=True)
    late = hindcasts(Persistence(layout, STEP), states[4:5], steps=3)
    with pytest.raises(KeyError, match="the truth has no record of"):
        verifying(truth, late)


def test_no_start_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one start"):
        hindcasts(Persistence(small_layout(), STEP), [], steps=1)
