"""The study of exact derivatives measures every network and writes rows and a table."""

import json

from hydra import compose, initialize_config_dir

from lightning_sobolev.experiments.benchmark.exact import run_exact
from lightning_sobolev.experiments.run.conf import config_folder


def test_every_way_is_measured(tmp_path):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        tiny = ["study=exact", "outputs=[9]", "rounds=1", "batch=2", f"out={tmp_path}"]
        table = run_exact(compose("benchmark", tiny))
    rows = json.loads((tmp_path / "exact.json").read_text())
    assert [(row["network"], row["outputs"]) for row in rows] == [("tutorial", 9), ("conv", 9)]
    ways = ("plain", "one", "eight", "loop", "at_once", "more_at_once", "default")
    assert all(row[way] > 0 for row in rows for way in ways)
    assert all(row["chosen"] in (1, 16) for row in rows)
    assert all(f"| {name} | 9 |" in table.read_text() for name in ("tutorial", "conv"))
