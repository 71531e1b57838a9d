"""Shared fixtures, and one sentence for the commonest trap: a file that the installed package does not know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import polynya.emulators
from polynya.emulators import nature_ocean as nature

ROOT = Path(__file__).parent.parent
ROOMS = ("emulators", "ensembles", "da", "diagnostics", "cli")


def pytest_configure(config: pytest.Config) -> None:
    installed = Path(polynya.emulators.__file__).parent.parent
    if installed == ROOT:
        return
    for room in ROOMS:
        here = {p.name for p in (ROOT / room).glob("*.py")}
        there = {p.name for p in (installed / room).glob("*.py")}
        if here != there:
            raise pytest.UsageError(
                f"{room}/ has {sorted(here ^ there)} on one side only: the installed polynya is not this checkout; "
                "run `pip install -e .` again"
            )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def globe() -> nature.NatureOcean:
    return nature.globe()


@pytest.fixture(scope="session")
def channel() -> nature.NatureOcean:
    return nature.channel()
