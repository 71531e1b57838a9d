"""Whole studies as one page: a heat uptake study, an assimilation experiment, an ensemble skill report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .page import Report


class Study(Protocol):
    """What `report` writes: `HeatUptake`, `AssimilationSkill`, `EnsembleSkill`, or one of your own."""

    def report(self, title: str = "", *, progress: bool = False) -> Report:
        """The study as a page; `title` instead of its own."""
        ...


def report(study: Study, path: str | os.PathLike[str], *, title: str = "", progress: bool = False) -> Path:
    """Write a study as one self-contained HTML page and return its path.

    `study` a `HeatUptake`, an `AssimilationSkill` or an `EnsembleSkill`; `title` instead of the study's own;
    `progress` shows how far the numbers are. The page holds figures for light and dark, tables, definitions with
    their sources and the provenance of the stores, and loads nothing. Numbers come from the plain functions of
    `polynya.diagnostics`, computed in slabs of records, whatever the size of the stores. To add to the page before it
    is written: `study.report().section(…).figure(…).write(path)`. Raises ValueError as the study does.
    """
    return study.report(title, progress=progress).write(path)
