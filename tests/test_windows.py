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
