"""The experiments on images from their configuration to their numbers, tables and figures."""

from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from lightning_sobolev.experiments.run.train import run

SMALL = ("scale=smoke", "data.batch_size=16", "data.num_train=64", "data.num_validation=32")


@pytest.mark.parametrize("rule", ["rate=50", "energy=90"])
@pytest.mark.usefixtures("pictures")
def test_band_limits(rule, finished):
    cfg, metrics = finished("+experiment=band_limits", *SMALL, "steps=3", rule)
    for rate in (0, 25, 50, 75, 85, 95):
        assert 0 <= metrics[f"test/accuracy_rate_{rate}"] <= 1
    assert metrics["test/accuracy_noise_2"] <= 1
    # the test set is smaller than the rows that are used
    assert metrics["test/accuracy"] == metrics["test/accuracy_noise_0"]
    if rule == "rate=50":
        assert metrics["test/accuracy_rate_50"] == metrics["test/accuracy"]
    assert (Path(cfg.run_dir) / "bands.png").is_file()


def test_signals_take_the_place_of_images(composed):
    short = ("+experiment=band_limits", "data=signals", "scale=smoke", "steps=2")
    assert run(composed(*short, "~callbacks.bands"))["steps"] == 2


@pytest.mark.parametrize("noise", ["none", "colored"])
@pytest.mark.usefixtures("pictures")
def test_noise_injection(noise, finished):
    _, metrics = finished("+experiment=noise_injection", *SMALL, "steps=2", f"noise={noise}")
    assert 0 <= metrics["test/pgd_accuracy"] <= metrics["test/accuracy"] <= 1
    assert ("test/expected_pgd_accuracy" in metrics) == (noise != "none")
    assert "val/attacked_accuracy" in metrics


SENSITIVITY = (
    *("+experiment=sensitivity", *SMALL, "steps=40"),
    *("sizes.smoke.num_attacked=4", "sizes.smoke.num_adversarial=6"),
    *("sizes.smoke.adversarial_steps=2", "sizes.smoke.particles=4", "sizes.smoke.iterations=2"),
)


@pytest.mark.usefixtures("pictures")
def test_a_classifier_is_attacked_trained_again_and_distilled(finished, composed):
    cfg, metrics = finished(*SENSITIVITY)
    folder = Path(cfg.run_dir)
    assert metrics["test/accuracy"] > 0.2
    assert 0 <= metrics["influence/plain_cut_differs"] <= 1
    for name in ("vulnerable.png", "adversarial.png", "influence.png"):
        assert (folder / name).is_file()
    attacks = pd.read_csv(folder / "attacks.csv")
    assert list(attacks) == [
        *("images", "attack", "passes", "success", "mean_change", "changed_pixels", "seconds")
    ]
    assert attacks.groupby("images").size().tolist() == [9, 9]
    trained = pd.read_csv(folder / "defences.csv")
    assert trained["defence"].tolist() == ["before", "originals", "swarm", "pgd"]
    assert trained["clean_accuracy"][0] == pytest.approx(metrics["test/accuracy"], abs=1e-5)

    taught = (f"teacher.folder={folder}", "teacher=classifier", "~callbacks.study")
    student = composed(*SENSITIVITY, *taught, "sobolev=order1", name="student")
    assert run(student)["test/accuracy"] > 0.1


def test_a_data_set_says_what_the_models_take(composed):
    sizes = {"images": (1, 28), "atari_frames": (3, 32)}
    for name, expected in sizes.items():
        model = composed("+experiment=sensitivity", f"data={name}").model
        assert (model.in_channels, model.size) == expected
    signals = composed("+experiment=band_limits", "data=signals")
    assert OmegaConf.select(signals, "model.axes") == 1
