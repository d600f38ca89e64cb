import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "report.py")
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    runpy.run_path(SCRIPT, run_name="__main__")


def test_a_stored_table_is_read_with_its_columns(tmp_path, monkeypatch, capsys):
    table = RESULTS / "pong.csv"
    chosen = ("--out", tmp_path, "--name", "p", "--x", "fraction", "--y", "test_kl,seconds")
    command(monkeypatch, table, *chosen)
    assert capsys.readouterr().out.split() == [str(tmp_path / "p.md"), str(tmp_path / "p.png")]
    lines = [" ".join(line.split()) for line in (tmp_path / "p.md").read_text().splitlines()]
    assert "| same | 0.015625 | none | 3 | 0.0202 ± 0.0023 | 42.3 ± 0.15 |" in lines


def test_errors_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"report.py: a folder with finished runs"):
        command(monkeypatch, tmp_path)
