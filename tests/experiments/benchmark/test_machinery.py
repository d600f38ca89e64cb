"""The study of the machinery measures every part and writes rows and tables."""

import json
import logging

from hydra import compose, initialize_config_dir

from lightning_sobolev.experiments.benchmark.machinery import run_machinery
from lightning_sobolev.experiments.run.conf import config_folder


def quick(out):
    tiny = [f"students.{name}={{layers:3,width:4,batch:3}}" for name in ("mlp", "deep")]
    tiny += ["~students.very_deep", "pictures={batch:2,steps:1}", "rounds=1", "steps=1"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("benchmark", ["study=machinery", *tiny, f"out={out}"])


def test_every_part_is_measured(tmp_path, caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")
    table = run_machinery(quick(tmp_path))
    rows = {row.pop("name"): row for row in json.loads((tmp_path / "machinery.json").read_text())}
    assert list(rows) == ["mlp", "deep", "sphere", "rademacher", "calls"]
    for student in ("mlp", "deep"):
        keys = ("hand_seconds", "net_to_hand", "net_to_hand_min", "defaults_to_hand")
        assert all(rows[student][key] > 0 for key in keys)
    assert all(0 < rows[law]["share"] < 1 for law in ("sphere", "rademacher"))
    assert 3 < rows["calls"]["files"] < rows["calls"]["calls"] < 1000
    text = table.read_text()
    assert f"| {rows['calls']['calls']} | {rows['calls']['files']} |" in text
    assert all(f"| {name} |" in text for name in ("mlp", "deep", "sphere", "rademacher"))
