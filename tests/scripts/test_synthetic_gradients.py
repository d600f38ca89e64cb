import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning_sobolev.experiments.run.history import read_curves
from lightning_sobolev.experiments.run.resuming import LAST
from torch.testing import assert_close

from lightning_sobolev.experiments.images.fashion_mnist import FASHION_MNIST
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.run.train import run
from tests.scripts.test_report import read, store

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "+experiment=synthetic_gradients",
    "scale=smoke",
    "steps=6",
    "val_every=3",
    "log_every=2",
    "data.batch_size=16",
    "data.num_train=64",
    "data.num_validation=32",
)


class StopAt(pl.Callback):
    """Ends training at a step, without a word."""

    def __init__(self, step, kill=False):
        self.step, self.kill = step, kill

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def weights(cfg):
    return torch.load(Path(cfg.run_dir) / LAST, weights_only=True)["state_dict"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("kind", ["noprop", "sobolev"])
def test_a_run_leaves_numbers_curves_and_pictures(composed, kind):
    cfg = composed(*SETTINGS, f"kind={kind}", "cuts=1")
    metrics = run(cfg)
    folder = Path(cfg.run_dir)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert 0 <= metrics["test/accuracy"] <= 1
    assert metrics["steps"] == 6
    assert metrics["train/epochs"] == 1.5
    assert ("test/gradient_cosine" in metrics) == (kind == "sobolev")
    curves = read_curves(folder / "curves.csv")
    assert [step for step, _, _ in curves["val/accuracy"]] == [3, 6]
    assert (folder / "probes.png").is_file()


@pytest.mark.usefixtures("pictures")
def test_the_network_with_batch_norm_learns(composed):
    long = (
        *SETTINGS,
        "pictures=false",
        "steps=60",
        "lr=1e-2",
        "model_lr=1e-2",
        "model=image_resnet",
    )
    assert run(composed(*long))["test/accuracy"] > 0.5


@pytest.mark.usefixtures("pictures")
def test_a_run_resumes_in_the_middle_of_an_epoch(composed):
    drawn = (*SETTINGS, "pictures=false")
    whole = composed(*drawn, name="whole")
    run(whole)
    stop = f"+callbacks.stop={{_target_:{__name__}.StopAt,step:5}}"
    with pytest.raises(SystemExit, match="1"):
        run(composed(*drawn, stop, name="stopped"))
    resumed = composed(*drawn, "ckpt=last", name="resumed")
    run(resumed)
    for name, value in weights(whole).items():
        assert_close(weights(resumed)[name], value, rtol=0, atol=0)


def train_script(*arguments, folder):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *SETTINGS, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    if not FASHION_MNIST.system.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")

    def outcome(name, *arguments):
        places = [f"hydra.run.dir={tmp_path / name}", "checkpoint_every=2", "logger=none"]
        return train_script(*arguments, *places, folder=tmp_path)

    whole = outcome("whole")
    assert whole.returncode == 0, whole.stderr
    kill = f"+callbacks.stop={{_target_:{__name__}.StopAt,step:5,kill:true}}"
    killed = outcome("killed", kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = outcome("resumed", f"ckpt={tmp_path / 'killed' / LAST}")
    assert resumed.returncode == 0, resumed.stderr
    states = [
        torch.load(tmp_path / name / LAST, weights_only=True) for name in ("whole", "resumed")
    ]
    for name, value in states[0]["state_dict"].items():
        assert_close(states[1]["state_dict"][name], value, rtol=0, atol=0)
    assert states[0]["scales"] == states[1]["scales"]


def store_kinds(root):
    number = 0
    for cuts in (1, 3):
        for kind in ("noprop", "critic", "sobolev"):
            for seed in (0, 1):
                metrics = {
                    "test/accuracy": 0.8 + 0.01 * seed,
                    "seconds_fit": 3.0,
                    "train/epochs": 10.0,
                }
                if kind != "noprop":
                    metrics["test/gradient_cosine"] = 0.5
                config = {"name": "synthetic_gradients", "seed": seed, "cuts": cuts, "kind": kind}
                config["data"] = {"images": "fashion_mnist"}
                config["task"] = {"module": {"models": {"activation": "elu"}}}
                folder = root / str(number)
                store(folder, metrics, config, {"model": "image_cnn"})
                lines = ["step,seconds,val/accuracy"]
                if kind != "noprop":
                    lines[0] += ",val/cut_1/gradient_cosine"
                for step in (10, 20):
                    values = [step, step, 0.5, 0.4][: lines[0].count(",") + 1]
                    lines.append(",".join(map(str, values)))
                (folder / "curves.csv").write_text("\n".join(lines) + "\n")
                number += 1


def test_the_table_has_the_agreed_columns_and_can_be_made_again(tmp_path):
    store_kinds(tmp_path / "runs")
    written = report(tmp_path / "runs", tmp_path / "out")
    table = tmp_path / "out" / "synthetic_gradients.csv"
    lines = read(table)
    assert list(lines[0]) == [
        *("network", "data", "cuts", "activation", "kind", "seed", "epochs"),
        *("test_accuracy", "gradient_cosine", "seconds"),
    ]
    assert len(lines) == 12
    markdown = (tmp_path / "out" / "synthetic_gradients.md").read_text()
    assert "| 3 | sobolev | 2 | 0.805 ± 0.005 | 0.5 ± 0 |" in markdown
    (tmp_path / "out" / "synthetic_gradients.md").unlink()
    report(table)
    assert (tmp_path / "out" / "synthetic_gradients.md").read_text() == markdown
    names = {path.name for path in written}
    assert "synthetic_gradients_validations.png" in names
    with (tmp_path / "out" / "synthetic_gradients_validations.csv").open() as file:
        validations = list(csv.DictReader(file))
    cosines = [v for v in validations if v["measure"] == "val/cut_1/gradient_cosine"]
    assert len(cosines) == 16
