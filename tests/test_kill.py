"""Runs that are killed at random moments, and runs of several processes: the same store, byte by byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_server import LAYOUT, MEMBERS, STATISTICS, files
from small import random_state
from test_recording import waves
from test_rollout import Wanderer
from test_training import under_torchrun

from polynya.emulators import Noise
from polynya.ensembles import rollout, verify

HERE = Path(__file__).parent


@pytest.mark.parametrize("kills", [16, pytest.param(240, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(tmp_path: Path, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_server.py"), str(tmp_path), str(kills), "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every file is the same" in done.stdout


def run(store: Path) -> None:
    """What every process of a run calls."""
    rollout(
        Wanderer(LAYOUT), random_state(LAYOUT, MEMBERS), steps=12, store=store, noise=Noise(3), statistics=STATISTICS,
        plan=waves(2, 2, MEMBERS), resume=True,
    )  # fmt: skip


def test_two_processes_write_one_store(tmp_path: Path) -> None:
    run(tmp_path / "one.zarr")
    done = under_torchrun(Path(__file__), 2, tmp_path / "two.zarr")
    assert done.returncode == 0, done.stderr
    one, two = files(tmp_path / "one.zarr"), files(tmp_path / "two.zarr")
    assert one == two and verify(tmp_path / "two.zarr") > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
