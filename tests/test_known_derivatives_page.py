"""The program of docs/known-derivatives.md runs, and does what the page says."""

import re
import warnings
from pathlib import Path

import torch
from torch.testing import assert_close

PAGE = Path(__file__).parent.parent / "docs" / "known-derivatives.md"


def program():
    (found,) = re.findall(r"```python\n(import lightning.*?)```", PAGE.read_text(), re.S)
    # Fewer epochs and no progress: the same program otherwise.
    quiet = 'enable_progress_bar=False, logger=False, accelerator="cpu", log_every_n_steps=1, '
    found = found.replace("L.Trainer(", f"L.Trainer({quiet}")
    return found.replace("max_epochs=200", "max_epochs=20").replace("steps=400", "steps=40")


def test_the_program_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*does not have many workers")
        exec(compile(program(), str(PAGE), "exec"), names)
    student, again, x, y = (names[name] for name in ("student", "again", "x", "y"))
    assert_close(again.net(x), student.net(x), rtol=0, atol=0)
    error = (student.net(x[40:]) - y[40:]).square().mean() / y[40:].var()
    assert error < 0.5
