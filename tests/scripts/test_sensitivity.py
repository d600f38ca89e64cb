"""The experiment ``sensitivity`` from training to tables, on small pictures."""

import json
from pathlib import Path

import pytest

from lightning_sobolev.experiments.report.records import read_csv
from lightning_sobolev.experiments.run.train import run

SETTINGS = (
    "+experiment=sensitivity",
    "scale=smoke",
    "steps=40",
    "data.batch_size=16",
    "data.num_train=64",
    "data.num_validation=32",
    "sizes.smoke.num_attacked=4",
    "sizes.smoke.num_defence=6",
    "sizes.smoke.defence_steps=2",
    "sizes.smoke.particles=4",
    "sizes.smoke.iterations=2",
)


@pytest.mark.usefixtures("pictures")
def test_a_classifier_is_attacked_defended_and_distilled(finished, composed):
    cfg, metrics = finished(*SETTINGS)
    folder = Path(cfg.run_dir)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["test/accuracy"] > 0.2
    assert 0 <= metrics["influence/plain_cut_differs"] <= 1
    for name in ("vulnerable.png", "adversarial.png", "influence.png"):
        assert (folder / name).is_file()
    _, lines = read_csv(folder / "defences.csv")
    assert [line["defence"] for line in lines] == ["before", "originals", "swarm", "pgd"]
    assert lines[0]["clean_accuracy"] == pytest.approx(metrics["test/accuracy"], abs=1e-5)

    taught = (f"teacher.folder={folder}", "teacher=classifier", "~task.closing.study")
    student = composed(*SETTINGS, *taught, "sobolev=order1", name="student")
    assert run(student)["test/accuracy"] > 0.1
