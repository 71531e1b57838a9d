"""The README tells the truth: its program runs, and it stays short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_program_runs(tmp_path: Path) -> None:
    program = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "import" in block)
    assert "members=100" in program and "steps=73" in program
    small = program.replace("members=100", "members=3").replace("steps=73", "steps=4")
    done = subprocess.run([sys.executable, "-c", small], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"[0-9.]+ ± [0-9.]+ W m-2", done.stdout)


def test_it_fits_on_three_screens_and_begins_with_the_two_commands() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert "make demo" in "\n".join(lines[:12]) and "make test" in "\n".join(lines[:12])
