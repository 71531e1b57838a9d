"""The training log and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polynya.diagnostics.learning import learning_curves, training_log

HEAD = "update,steps,learning_rate,loss,objective,gradient_norm,waiting,thetao_0,thetao_1,so_0,zos"


def written(folder: Path, rows: int = 30) -> Path:
    lines = [HEAD]
    for k in range(1, rows + 1):
        steps = 1 if k <= rows // 2 else 2
        lines.append(f"{10 * k},{steps},1e-3,{1 / k},{2 / k},0.5,0.03,{1 / k},{2 / k},{3 / k},{4 / k}")
    (folder / "training.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_log_is_read_by_variable_and_level(tmp_path: Path) -> None:
    log = training_log(written(tmp_path))
    assert log.thetao.dims == ("update", "lev") and log.zos.dims == ("update",)
    assert np.allclose(log.thetao.sel(update=100, lev=1), 0.2)
    assert np.isnan(log.so.sel(lev=1)).all() and log.steps.values[[0, -1]].tolist() == [1, 2]


def test_the_picture_shows_every_variable(tmp_path: Path) -> None:
    figure = learning_curves(written(tmp_path) / "training.csv")
    left, right = figure.axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["thetao", "so", "zos"]
    assert left.get_yscale() == "log" and len(right.lines) == 2
    assert "K = 1, 2; 3% of the time" in figure.get_suptitle()
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_validation_is_drawn_beside(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "validation.csv").write_text("update,loss,thetao_0,thetao_1,so_0,zos\n100,2,1,3,4,5\n200,1,1,1,1,1\n")
    checked = training_log(tmp_path / "validation.csv")
    assert checked.thetao.sel(update=100).values.tolist() == [1, 3] and checked.loss.values.tolist() == [2, 1]
    left = learning_curves(tmp_path).axes[0]
    assert sum(line.get_linestyle() == "--" for line in left.lines) == 3 and "validation" in left.get_ylabel()


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_text(HEAD + "\n")
    with pytest.raises(ValueError, match="at least one row"):
        training_log(tmp_path)
    (tmp_path / "training.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="wanted a training log"):
        training_log(tmp_path)
    with pytest.raises(FileNotFoundError):
        training_log(tmp_path / "none")
