import pytest
import torch

from lightning_sobolev.experiments.images import data as images
from lightning_sobolev.experiments.images.image_set import ImageSet
from lightning_sobolev.experiments.report.report import report
from tests.scripts.test_report import read

SETTINGS = ("+experiment=noise", "scale=smoke", "steps=2", "val_every=2", "data.num_train=128",
            "data.num_validation=32", "pictures=false")  # fmt: skip


@pytest.mark.parametrize("noise", ["none", "coloured"])
def test_the_experiment_runs_from_configuration_to_table(noise, finished, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 255, (224, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(224) % 10
    made = ImageSet(pictures[:160], labels[:160], pictures[160:], labels[160:], num_classes=10)
    monkeypatch.setitem(images.IMAGES, "fashion_mnist", lambda *_, **__: made)
    _, metrics = finished(*SETTINGS, f"noise={noise}")
    assert metrics["steps"] == 2
    report(tmp_path / "runs", tmp_path / "out")
    (line,) = read(tmp_path / "out" / "colored_noise.csv")
    assert line["noise"] == noise
    assert 0 <= float(line["test_pgd_accuracy"]) <= float(line["test_accuracy"]) <= 1
    assert (line["test_expected_pgd_accuracy"] == "nan") == (noise == "none")
