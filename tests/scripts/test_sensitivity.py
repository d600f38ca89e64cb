"""The experiment ``sensitivity`` from training to tables, on small pictures."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_sobolev.tasks.attack_report import attack_report
from lightning_sobolev.tasks.records import read_csv
from lightning_sobolev.tasks.robustness import robustness
from lightning_sobolev.tasks.run import run
from tests.scripts.conftest import DISTILLATION

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
def test_a_classifier_is_attacked_defended_and_distilled(finished, composed, tmp_path):
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

    written = attack_report(folder, tmp_path / "tables")
    _, records = read_csv(written[0])
    pgd = [line for line in records if line["attack"] == "pgd"]
    assert [line["images"] for line in pgd] == ["ordinary", "vulnerable"]
    assert all(line["seconds_per_pgd"] == 1 for line in pgd)
    assert (tmp_path / "tables" / "sensitivity_adversarial.png").is_file()

    taught = (f"teacher.folder={folder}", "teacher=classifier", "~task.closing.study")
    student = composed(*SETTINGS, *taught, "sobolev=order1", name="student")
    assert run(student)["test/accuracy"] > 0.1
    notes = Path(student.run_dir) / ".hydra"
    notes.mkdir()
    OmegaConf.save(student, notes / "config.yaml")
    OmegaConf.save({"hydra": {"runtime": {"choices": {}}}}, notes / "hydra.yaml")
    table, _ = robustness(Path(student.run_dir), tmp_path, name="r", radii=(0, 8), count=64)
    _, lines = read_csv(table)
    accuracy = json.loads((Path(student.run_dir) / "metrics.json").read_text())["test/accuracy"]
    assert lines[0]["wrong"] == pytest.approx(1 - accuracy, abs=1e-5)
    assert lines[0]["changed"] == 0
    assert lines[1]["wrong"] >= lines[0]["wrong"]


def test_frames_are_attacked_from_a_stored_student(finished, tmp_path):
    cfg, metrics = finished(*DISTILLATION)
    table, _ = robustness(Path(cfg.run_dir), tmp_path, name="r", radii=(0, 4), count=32)
    _, lines = read_csv(table)
    assert lines[0]["wrong"] == pytest.approx(metrics["test/merged_disagreement"], abs=1e-5)
    assert lines[1]["wrong"] >= lines[0]["wrong"]


def test_a_folder_without_attacks_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"runs that hold attacks.csv is needed"):
        attack_report(tmp_path, tmp_path)
