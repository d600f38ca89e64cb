"""``scripts/train.py`` as a user runs it, and what its configuration promises."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from torch.testing import assert_close

from lightning_sobolev.experiments.run.checkpoints import LAST
from lightning_sobolev.experiments.run.train import run
from tests.plugin._trainers import QUIET

ROOT = Path(__file__).parents[2]
REGRESSION = ("+experiment=regression", "steps=6", "log_every=2", "data.num_test_points=64")


def weights(cfg):
    return torch.load(Path(cfg.run_dir) / LAST, weights_only=True)["state_dict"]


def train_script(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("sobolev", ["order1_full", "order2", "order2_full"])
def test_every_choice_of_terms_trains(composed, sobolev):
    metrics = run(composed(*REGRESSION, "model.activation=tanh", f"sobolev={sobolev}"))
    assert metrics["train/sobolev/total"] > 0


def test_none_is_training_without_a_callback(composed):
    cfg = composed(*REGRESSION, "sobolev=none")
    run(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    data, module = instantiate(cfg.data), instantiate(cfg.module)
    plain = pl.Trainer(**{**QUIET, "precision": None}, max_steps=cfg.steps)
    plain.fit(module, datamodule=data)
    for name, value in weights(cfg).items():
        assert_close(value, module.state_dict()[name], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Sobolev doctor")  # a seed that is drawn may draw bad points
def test_seed_zero_is_a_seed_and_null_draws_one(composed):
    first, second, other, drawn, again = (
        run(composed(*REGRESSION, f"seed={seed}", name=name))
        for seed, name in ((0, "a"), (0, "b"), (1, "c"), ("null", "d"), ("null", "e"))
    )
    assert first["test/value_nmse"] == second["test/value_nmse"] != other["test/value_nmse"]
    assert drawn["seed"] != again["seed"]


def test_missing_tensorboard_falls_back_to_csv(composed, caplog):
    cfg = composed(*REGRESSION, "pictures=false")
    cfg.logger = {"board": {"_target_": f"{__name__}.missing_logger"}}
    run(cfg)
    assert "logging to CSV files instead" in caplog.text
    assert list(Path(cfg.run_dir).glob("csv/metrics.csv"))


def missing_logger():
    raise ModuleNotFoundError("tensorboard is not available")


def test_an_experiment_must_be_chosen(composed):
    with pytest.raises(ValueError, match=r"\+experiment=distill_pong"):
        run(composed())


def test_the_script_sweeps_reports_and_says_how_it_goes(tmp_path):
    done = train_script(*REGRESSION, "sobolev=none,order1", "pictures=false", "-m", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted(tmp_path.glob("runs/multirun/regression/*/*/metrics.json"))
    assert [path.parent.name for path in found] == ["0", "1"]
    assert "matched: values; order 1" in done.stdout
    assert "step 6/6: train/loss" in done.stdout
    assert "Sobolev doctor: agrees with finite differences" in done.stdout + done.stderr
    report = [sys.executable, str(ROOT / "scripts" / "report.py"), "runs", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(report, cwd=tmp_path, env=environment, check=True, capture_output=True)
    with (tmp_path / "out" / "regression.csv").open() as file:
        assert [line["sobolev"] for line in csv.DictReader(file)] == ["none", "order1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=regression"], r"use \+experiment=regression"),
        (["+experiment=regression", "lrr=1"], "Could not override 'lrr'"),
        (["+experiment=regression", "model.widht=1"], "Could not override 'model.widht'"),
        (["+experiment=regresion"], "Could not find 'experiment/regresion'"),
        (["+experiment=regression", "sobolev=order3"], "Could not find 'sobolev/order3'"),
    ],
)
def test_a_typo_is_found_when_the_configuration_is_composed(composed, arguments, message):
    with pytest.raises(HydraException, match=message):
        composed(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+experiment=regression", "function=mountain"], "mountain"),
        (["+experiment=regression", "model.activation=step"], "activation must be one of"),
        (["+experiment=distill_pong", "env.settings.game=pomg"], r"snake case \(pong\?\)"),
    ],
)
def test_a_wrong_value_is_named_before_training(composed, arguments, message):
    with pytest.raises(InstantiationException, match=message):
        run(composed(*arguments))
