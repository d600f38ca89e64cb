"""docs/your-own-experiment.md: its files, saved outside of the repository, are an experiment."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "your-own-experiment.md"


@pytest.fixture
def mine(tmp_path):
    """The files of the page, each under the name that stands above it."""
    files = re.findall(r"^`([\w/]+\.\w+)`\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert {name for name, _ in files} == {
        "pendulum/module.py",
        "pendulum/data.py",
        "pendulum/teacher.py",
        "conf/experiment/pendulum.yaml",
    }
    for name, text in files:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "mine"


def test_an_experiment_from_outside_runs_to_its_end(mine):
    folder = mine.parent / "run"
    command = [sys.executable, ROOT / "scripts" / "train.py", "--config-dir", "mine/conf"]
    command += ["+experiment=pendulum", "steps=100", "lr=1e-2", "sobolev.doctor=false"]
    command += ["logger=none", f"hydra.run.dir={folder}"]
    paths = os.pathsep.join(["mine", str(ROOT)])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        cwd=mine.parent,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"curves.csv", "curves.png"} <= {path.name for path in folder.iterdir()}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 100
    assert metrics["train/sobolev/order_1"] > 0
    # The energy's variance over these points is 2.3.
    assert metrics["test/mse"] < 0.5
