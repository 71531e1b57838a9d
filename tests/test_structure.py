"""The arrows of the design: who may import whom, how long a file may be, and that nobody keeps a junk drawer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "emulators": set(),
    "ensembles": {"emulators"},
    "da": {"emulators", "ensembles"},
    "diagnostics": set(),
    "cli": {"emulators", "ensembles", "da", "diagnostics"},
}
FILES = [p for room in MAY_IMPORT for p in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """First names of absolute imports, and rooms reached by relative ones."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level >= 2:
                module = node.module or ""
                names |= {f"polynya.{module}"} if module else {f"polynya.{a.name}" for a in node.names}
            elif node.level == 0:
                names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_follow_the_arrows(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    rooms = {n.split(".")[1] for n in imported(path) if n.startswith("polynya.")}
    assert rooms <= MAY_IMPORT[room] | {room}


def test_the_reader_of_imports_sees_them() -> None:
    assert "polynya.emulators" in imported(ROOT / "ensembles" / "rollout.py")
    assert "torch" in imported(ROOT / "ensembles" / "rollout.py")


def test_diagnostics_never_import_torch() -> None:
    for path in (ROOT / "diagnostics").rglob("*.py"):
        assert not any(n.split(".")[0] == "torch" for n in imported(path)), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert path.stem not in {"utils", "common", "core", "helpers", "misc"}


def test_tests_are_at_least_half_as_long_as_the_source() -> None:
    source = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in FILES)
    tests = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "tests").glob("*.py"))
    assert tests >= source / 2
