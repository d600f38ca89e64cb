"""The code of docs/foresight.md runs, and its counts are those of the table."""

import re
from pathlib import Path

import torch

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "foresight.md").read_text()


def test_the_code_runs_and_prints_the_line(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    x = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(30, 2)
    exec(code, {"x": x, "y": x.square().sum(1, keepdim=True), "jacobian": 2 * x[:, None]})
    numbers, harms = capsys.readouterr().out.splitlines()
    assert float(numbers.split()[1]) > 0.999
    expected = (
        "False the derivatives explain 100% of the change to the next point: they should help"
    )
    assert harms == expected


def test_counts_are_those_of_the_table():
    table = (DOCS / "results" / "foresight.md").read_text()
    rows = re.findall(r"^\|.*?\|(.* of .*)\|$", PAGE, re.MULTILINE)
    counts = [found for row in rows if (found := re.findall(r"\d+ of \d+", row))]
    assert len(counts) == 6
    measured = [re.findall(r"\d+ of \d+", line) for line in table.splitlines()]
    without = [[count for count in row if count != "0 of 0"] for row in measured]
    assert all(row in without for row in counts)
