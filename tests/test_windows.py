"""Training windows that are kept in memory; what windows are is in `test_training`."""

from __future__ import annotations

import pytest
import torch
from test_emulators import network_emulator
from test_training import truth

from polynya.emulators.windows import windows_of


@pytest.mark.parametrize("slots", [(0,), (-1, 0)])
def test_windows_in_memory_are_those_of_the_store(slots: tuple[int, ...]) -> None:
    """States of two members, and forcing of each or of both."""
    emulator, dataset = network_emulator(slots, len(slots) == 1), truth(12)
    shared = dataset.assign({n: dataset[n].isel(member=0, drop=True) for n in ("tauuo", "hfatm")})
    for store in (dataset, shared, dataset.isel(member=[1])):
        read, kept = (windows_of(emulator, [store], in_memory=m) for m in (False, True))
        assert not read._kept and kept._kept
        for k in range(read.count(2, emulator.stride)):
            one, two = (w.get(k, 2, emulator.stride) for w in (read, kept))
            assert all(torch.equal(getattr(one, n), getattr(two, n)) for n in ("start", "forcings", "targets"))
            assert one.time == two.time


@pytest.mark.parametrize("slots", [(0,), (-1, 0)])
@pytest.mark.parametrize("last", [8, 12])  # the second ends with the truth
def test_windows_begin_from_forecasts_and_end_in_the_truth(slots: tuple[int, ...], last: int) -> None:
    emulator, dataset = network_emulator(slots, len(slots) == 1), truth(12)
    part = dataset.isel(member=[1], time=slice(2, last))
    forecast = part.assign({n: part[n] + 1.0 for n in emulator.layout.names})
    plain = windows_of(emulator, [dataset])
    stride, steps = emulator.stride, 2
    for memory in (False, True):
        windows = windows_of(emulator, [dataset], forecasts=[forecast], in_memory=memory)
        old, new = plain.count(steps, stride), windows.count(steps, stride)
        first = 3 - min(slots)  # the record of the first window: that after the initial one, with what lies before
        assert new - old == min(last, 12 - steps * stride) - first
        assert all(torch.equal(plain.get(k, 2, stride).start, windows.get(k, 2, stride).start) for k in range(old))
        begin = old // 2 + first + min(slots)  # of the member's windows of the truth, half of all
        for k in range(new - old):
            own, true = windows.get(old + k, steps, stride), plain.get(begin + k, steps, stride)
            assert all(torch.equal(getattr(own, n), getattr(true, n)) for n in ("targets", "forcings"))
            assert own.time == true.time and own.numbers == (old + k,)
            wet = emulator.layout.mask
            assert torch.allclose(own.start[0][wet], true.start[0][wet] + 1.0, atol=1e-5)
        both, later = windows.get(old, 2, stride), windows.get(old, 1, stride, 2, 1)  # the latter: a second link
        assert torch.equal(later.targets, both.targets[1:]) and torch.equal(later.start, both.targets[0])


def test_forecasts_need_their_truth() -> None:
    emulator, dataset = network_emulator(), truth(12)
    other = dataset.assign_coords(member=[0, 7])
    with pytest.raises(ValueError, match=r"no store has the members \(0, 7\) of this forecast at its times"):
        windows_of(emulator, [dataset], forecasts=[other.isel(time=slice(2, 6))])
    with pytest.raises(ValueError, match="no store has the members"):
        windows_of(emulator, [dataset.isel(time=slice(0, 5))], forecasts=[dataset.isel(time=slice(2, 9))])
    short = windows_of(emulator, [dataset], forecasts=[dataset.isel(time=slice(10, 12))])
    with pytest.raises(ValueError, match="are too few for windows of 1 steps"):
        short.count(1, emulator.stride)
