"""Rows of the reference table, shorter than `benchmarks/reference_scores.py` runs them; what is mistuned must fall out.

Ranges are those of the table where the run is as long as its rows were measured, and wider where it is not.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polynya.da.experiments import Row, run

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import reference_scores

torch.set_num_threads(1)
SHORT = {"cycles": 400, "burn_in": 300, "replicates": 16}
ROWS = {
    "5": (Row("lorenz96", "EnKF", 40, 1.06, **SHORT), 0.205, 0.230),
    "8": (Row("lorenz96", "ETKF", 24, 1.013, True, **SHORT), 0.165, 0.192),
    "9": (Row("lorenz96", "ETKF", 20, 1.04, True, **SHORT), 0.183, 0.207),
    "13": (Row("lorenz96", "LETKF", 7, 1.04, True, 4.0, **SHORT), 0.20, 0.235),
    "18": (Row("lorenz96", "IEnKS", 25, 1.2, True, obs_interval=12, cycles=80, replicates=12), 0.40, 0.56),
    "29": (Row("lorenz63", "IEnKS", 10, 1.02, True, cycles=200, replicates=16), 0.25, 0.36),
}
WRONG = {
    "inflation of row 9": replace(ROWS["9"][0], inflation=1.0),
    "inflation of row 5": replace(ROWS["5"][0], inflation=1.15),
    "localisation of row 13": replace(ROWS["13"][0], localisation=1.0),
    "errors of row 9": replace(ROWS["9"][0], obs_error=1.1),
    "iterations of row 18": replace(ROWS["18"][0], iterations=1),
}


@pytest.mark.parametrize("name", ROWS)
def test_scores_are_the_literature_s(name):
    row, low, high = ROWS[name]
    result = run(row)
    assert low <= result.median <= high, str(result)
    assert result.diverged <= 0.15 * row.replicates, str(result)
    assert 0.9 <= result.median_spread / result.median <= 1.5, str(result)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_mistuned_falls_out(what):
    _, low, high = ROWS[what.split()[-1]]
    result = run(WRONG[what])
    assert not low <= result.median <= high, str(result)


def test_short_rows_are_rows_of_the_table():
    for name, (row, low, high) in ROWS.items():
        reference = reference_scores.TABLE[name]
        length = {f: getattr(row, f) for f in ("cycles", "burn_in", "replicates")}
        assert replace(reference.row, **length) == row
        assert low <= reference.low + 0.02 and high >= reference.high - 0.02


def test_the_command_runs_rows_and_files(tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.json"
    other.write_text('{"system": "lorenz63", "method": "ETKF", "members": 3, "inflation": 1.3, "cycles": 100}')
    made = tmp_path / "scores.md"
    arguments = ["--rows", "2", "--json", str(other), "--cycles-scale", "0.05", "--replicates", "2"]
    monkeypatch.setattr(sys, "argv", ["reference_scores.py", *arguments, "--output", str(made), "--dapper-seeds", "0"])
    reference_scores.main()
    table = made.read_text()
    assert "| 2 | lorenz96: OI | 2 × 50 |" in table and "| other | lorenz63: ETKF, N=3, 1.3 | 2 × 5 |" in table
    assert "quoted 0.934" in table and "1 of 1 rows" in table
    with pytest.raises(SystemExit, match="no row '99'"):
        reference_scores.selected("99")
    assert set(reference_scores.selected("23,8")) == {"23a", "23b", "23c", "8"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, ref in reference_scores.TABLE.items() if ref.low > 0 and not ref.slow])
def test_the_whole_table_is_inside(name):
    line = reference_scores.Line(name, reference_scores.TABLE[name], run(reference_scores.TABLE[name].row), [], "")
    assert line.verdict == "inside", str(line.ours)
