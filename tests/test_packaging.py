"""What is installed is what is here: every package listed, typed, importable, with its data."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]


def test_every_folder_with_an_init_is_listed_and_typed() -> None:
    folders = {p.parent for p in ROOT.glob("*/__init__.py")} | {p.parent for p in ROOT.glob("[!.b]*/*/__init__.py")}
    folders = {f for f in folders if not f.relative_to(ROOT).parts[0].startswith((".", "build"))}
    listed = {ROOT / path for path in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    assert folders == listed
    assert all((folder / "py.typed").exists() for folder in listed)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_and_export_what_they_say(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name), f"{package}.{name}"


def test_diagnostics_work_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import polynya.diagnostics"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_version_and_requirements_come_from_one_place() -> None:
    assert version("polynya") == PROJECT["project"]["version"]
    assert any(r.startswith("torch") for r in requires("polynya") or [])


def test_constraints_pin_every_requirement() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
    names = {w.split(">")[0].split("[")[0].lower().replace("_", "-") for w in wanted}
    assert names <= pinned, names - pinned


@pytest.mark.parametrize("name", ["globe.safetensors", "globe.zarr.zip", "channel.safetensors", "channel.zarr.zip"])
def test_embedded_data_is_installed(name: str) -> None:
    data = files("polynya.emulators") / "embedded" / name
    assert data.is_file()
    limit = 3e6 if name.endswith("safetensors") else 10e6
    assert len(data.read_bytes()) <= limit
