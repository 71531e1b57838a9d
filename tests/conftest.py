"""Shared fixtures, and one sentence for the commonest trap: a file that the installed package does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import polynya.emulators
from polynya.emulators import nature_ocean as nature

ROOT = Path(__file__).parent.parent
ROOMS = ("emulators", "ensembles", "da", "diagnostics", "cli")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # two threads on two busy cores wait for each other more than they work
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


@pytest.fixture(scope="session")
def globe() -> nature.NatureOcean:
    return nature.globe()


@pytest.fixture(scope="session")
def channel() -> nature.NatureOcean:
    return nature.channel()
