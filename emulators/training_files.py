"""The folder of a training run: restart file, logs and result, each complete or absent at any moment."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .recipe import Recipe
from .trainable import Trainable
from .weights import export

_EVERY = 10  # updates per row of the log


class TrainingFiles:
    """`restart.pt`, `training.csv`, `validation.csv` and `emulator.safetensors` in one folder.

    Args:
        folder: made if it is not there.
        settings: what must agree with an earlier run for it to be continued.
        writes: whether this process writes; of several, one does.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], writes: bool) -> None:
        self.folder, self.settings, self.writes = folder, json.loads(json.dumps(settings)), writes
        self.restart, self.table = folder / "restart.pt", folder / "training.csv"
        self.validation = folder / "validation.csv"
        self._sums: dict[str, Any] = {}

    def begin(self, resume: bool) -> dict[str, Any] | None:
        """The restart of an earlier run if there is one and it is to be continued.

        Raises FileExistsError if there is one and it is not; ValueError if it was made differently.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.restart.exists():
            if self.writes:  # of a run that died before its first restart
                self.table.unlink(missing_ok=True)
                self.validation.unlink(missing_ok=True)
            return None
        if not resume:
            raise FileExistsError(
                f"{self.folder} holds a training; nothing was touched. Continue it with resume=True, or choose "
                "another folder"
            )
        kept: dict[str, Any] = torch.load(self.restart, map_location="cpu", weights_only=True)
        now, then = self.settings, json.loads(kept.pop("settings"))
        different = [
            f"{key}: {then.get(part, {}).get(key)!r} then, {now[part][key]!r} now"
            for part in ("recipe", "emulator", "run")
            for key in now[part]
            if now[part][key] != then.get(part, {}).get(key)
        ]
        if different:
            raise ValueError(
                f"{self.folder} holds a training with other settings ({'; '.join(different)}); "
                "continue it with its own, or choose another folder"
            )
        self._sums = json.loads(kept.pop("row"))  # of the row that was begun
        if self.writes:
            for table in (self.table, self.validation):
                _forget_rows(table, int(kept["updates"]))
        return kept

    def log(self, update: int, row: dict[str, Any], labels: list[str]) -> None:
        """Add an update to the log: rows are means over ten."""
        if not self.writes:
            return
        errors: Tensor = row.pop("errors")
        values = row | dict(zip(labels, errors.tolist(), strict=True))
        for key, value in values.items():
            self._sums.setdefault(key, []).append(value)
        if update % _EVERY:
            return
        means = {k: (v[-1] if k in ("steps", "waiting") else sum(v) / len(v)) for k, v in self._sums.items()}
        self._sums.clear()
        _append(self.table, {"update": update, **means})

    def log_validation(self, update: int, errors: Tensor, labels: list[str]) -> None:
        """Add a validation: loss, the mean over variables and levels, and each of them."""
        if self.writes:
            values = dict(zip(labels, errors.tolist(), strict=True))
            _append(self.validation, {"update": update, "loss": float(errors.mean()), **values})

    def save(self, content: dict[str, Any]) -> None:
        """Replace the restart; a crash in between leaves the one before."""
        if not self.writes:
            return
        part = self.restart.with_suffix(".part")
        torch.save({**content, "settings": json.dumps(self.settings), "row": json.dumps(self._sums)}, part)
        part.replace(self.restart)

    def finish(self, emulator: Trainable, recipe: Recipe) -> None:
        """Export the trained emulator."""
        if self.writes:
            export(emulator, self.folder / "emulator.safetensors", recipe=recipe.described())


def _append(table: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV file, with a head if it is the first."""
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(row)
        writer.writerow(v if isinstance(v, int) else f"{v:.6g}" for v in row.values())


def _forget_rows(table: Path, update: int) -> None:
    """Rows that the restart does not know will be written again."""
    if not table.exists():
        return
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= update]
    part = table.with_suffix(".part")
    with part.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:1] + kept)
    part.replace(table)
