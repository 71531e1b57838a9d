"""The three scripts that users begin with: short, and they run and write their pages, here in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_report import Page

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "heat_uptake": [("MEMBERS, STEPS, JUMP = 16, 73, 2.0", "MEMBERS, STEPS, JUMP = 2, 6, 2.0")],
    "skill_report": [("MEMBERS, DATES, STEPS, TRUTH = 12, 12, 8, 100", "MEMBERS, DATES, STEPS, TRUTH = 2, 4, 2, 100"),
                     ("6 * DATES", "DATES"), (": DATES : 6]", ": DATES]")],
    "twin_experiment": [("[:24]", "[:6]"), ("range(24)", "range(6)"), ("cycles=12", "cycles=2"), ("skip=4", "skip=1")],
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_an_example_is_one_screen_and_writes_its_page(name: str, tmp_path: Path) -> None:
    program = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(program.splitlines()) <= 40
    for old, new in SMALL[name]:
        assert old in program, old
        program = program.replace(old, new)
    script = tmp_path / f"{name}.py"
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "report.html"
    assert done.stdout.splitlines()[-1].endswith("report.html") and path.exists()
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.images) >= 4 and "table" in page.tags and "/work" not in "".join(page.text)
