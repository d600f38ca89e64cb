import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning_sobolev.experiments.report.records import read_csv

from lightning_sobolev.experiments.images import data as images
from lightning_sobolev.experiments.images.image_set import ImageSet
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.synthetic_gradients.processes.study import run_decoupling

SMALL = ("data.batch_size=16", "data.num_train=64", "data.num_validation=32", "progress=false")


@pytest.fixture
def composed(tmp_path, monkeypatch):
    labels = torch.arange(128) % 10
    drawn = torch.randint(0, 60, (128, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    drawn[torch.arange(128), 0, 4 + 2 * labels] += 180
    made = ImageSet(drawn.byte(), labels, drawn[:64].byte(), labels[:64], num_classes=10)
    monkeypatch.setitem(images.IMAGES, "fashion_mnist", lambda *_, **__: made)

    def build(*overrides):
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose("decouple", [*SMALL, f"out={tmp_path}", *overrides])

    return build


def test_all_ways_leave_a_table_and_a_picture(composed, tmp_path):
    path = run_decoupling(composed("steps=4", "rounds=1", "delays=[0.0]", "probe_rows=20"))
    _, records = read_csv(path)
    assert [r["way"] for r in records] == ["locked", "lockstep", "decoupled"]
    for record in records:
        assert 0 <= record["test_accuracy"] <= 1
        assert 0 <= record["waited_lowest"] < 1
        assert record["samples_per_second"] > 0
        assert record["sections"] == 2
    locked, lockstep, _ = records
    assert lockstep["lateness"] == locked["lateness"] == 0
    assert locked["gradient_cosine"] != locked["gradient_cosine"]  # it has no model
    assert abs(lockstep["gradient_cosine"]) <= 1
    assert {"decoupling.csv", "decoupling.md", "decoupling.png"} == {
        file.name for file in tmp_path.iterdir()
    }
    before = (tmp_path / "decoupling.md").read_text().splitlines()[4:]
    report(path)
    assert (tmp_path / "decoupling.md").read_text().splitlines()[4:] == before


def test_nothing_to_run_is_refused(composed):
    with pytest.raises(ValueError, match="must give at least one run, got none"):
        run_decoupling(composed("rounds=0"))
