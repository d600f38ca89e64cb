"""The code of docs/labels-doctor.md runs, and prints what the page says."""

import re
from pathlib import Path

import pandas as pd

PAGE = Path(__file__).parent.parent / "docs" / "labels-doctor.md"
TEXT = PAGE.read_text()
ARRAYS, FIT = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COUNTS = PAGE.parent / "results" / "label_faults.csv"


def test_the_code_prints_what_the_page_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(ARRAYS, str(PAGE), "exec"), names)
    (shown,) = re.findall(r"^    labels: .*\n(?:^    .*\n)*", TEXT, re.MULTILINE)
    assert capsys.readouterr().out == re.sub("^    ", "", shown, flags=re.MULTILINE)
    quiet = 'enable_progress_bar=False, logger=False, accelerator="cpu", '
    exec(compile(FIT.replace("L.Trainer(", f"L.Trainer({quiet}"), str(PAGE), "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "right"


def test_the_counts_are_of_every_draw():
    table = pd.read_csv(COUNTS)
    findings = ["right", "noise", "unknown", "sign", "unit", "transposed", "shifted"]
    assert (table[findings].sum(axis=1) == table["draws"]).all()
    assert (table.loc[table["labels"] == "right", "draws"] == 100).all()
