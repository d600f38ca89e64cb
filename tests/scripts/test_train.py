import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from torch.testing import assert_close

from lightning_sobolev.experiments.regression.surface import FIT, Surface
from lightning_sobolev.experiments.run.history import read_curves
from lightning_sobolev.experiments.run.resuming import LAST, checkpoint_to_resume
from lightning_sobolev.experiments.run.train import config_hash, run

ROOT = Path(__file__).parents[2]
REGRESSION = ("+experiment=regression", "steps=6", "log_every=2", "data.num_test_points=64")


def weights(folder):
    checkpoint = torch.load(folder / LAST, weights_only=True)
    return checkpoint["state_dict"]


def train_script(*arguments, folder):
    """Run the script as a user does, from another folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_regression_leaves_numbers_curves_surface_and_checkpoint(composed):
    cfg = composed(*REGRESSION)
    metrics = run(cfg)
    folder = Path(cfg.run_dir)
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored == metrics
    for key in ("test/value_nmse", "test/derivative_nmse", "train/loss", "seconds_total"):
        assert isinstance(stored[key], float)
    assert "train/sobolev/order_1" in stored
    assert stored["config_hash"] == config_hash(cfg)
    assert [step for step, _, _ in read_curves(folder / "curves.csv")["train/loss"]] == [2, 4, 6]
    assert (folder / LAST).is_file()
    assert (folder / "surface.png").is_file()
    assert (folder / "curves.png").is_file()


@pytest.mark.parametrize("sobolev", ["order1_full", "order2", "order2_full"])
def test_every_choice_of_terms_trains(composed, sobolev):
    metrics = run(composed(*REGRESSION, "model.activation=tanh", f"sobolev={sobolev}"))
    assert metrics["train/sobolev/total"] > 0


@pytest.mark.parametrize("sobolev", ["none", "order2_full"])
def test_a_line_search_is_a_word_of_the_configuration(composed, sobolev):
    chosen = ("optimizer=lbfgs", "steps=2", "log_every=1", f"sobolev={sobolev}")
    cfg = composed(*REGRESSION, *chosen, "model.activation=tanh")
    metrics = run(cfg)
    assert metrics["steps"] == 2
    curve = read_curves(Path(cfg.run_dir) / "curves.csv")["train/loss"]
    assert [step for step, _, _ in curve] == [1, 2]
    assert curve[1][2] < curve[0][2]


def test_stored_surface_is_the_network_in_the_functions_units(composed):
    cfg = composed(*REGRESSION, "function=booth")
    run(cfg)
    surface = Surface.load(Path(cfg.run_dir) / FIT)
    x0, x1 = surface.x[..., 0], surface.x[..., 1]
    booth = (x0 + 2 * x1 - 7) ** 2 + (2 * x0 + x1 - 5) ** 2
    np.testing.assert_allclose(surface.value, booth, rtol=1e-4, atol=1e-3)
    data, module = instantiate(cfg.data), instantiate(cfg.task.module)
    module.load_state_dict(weights(Path(cfg.run_dir)))
    x = torch.from_numpy(surface.x).reshape(-1, 2).double()
    scaled = ((x - data.units.x_mean) / data.units.x_std).float().requires_grad_()
    fit = module.net(scaled)
    (slope,) = torch.autograd.grad(fit.sum(), scaled)
    original = data.units.targets(fit.detach(), undo=True).numpy().reshape(41, 41)
    np.testing.assert_allclose(surface.fit, original, rtol=1e-4, atol=1e-3)
    slope = data.units.jacobian(slope, undo=True).numpy().reshape(41, 41, 2)
    np.testing.assert_allclose(surface.fit_gradient, slope, rtol=1e-3, atol=1e-2)


def test_none_is_training_without_a_callback(composed):
    cfg = composed(*REGRESSION, "sobolev=none")
    run(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    data, module = instantiate(cfg.data), instantiate(cfg.task.module)
    plain = pl.Trainer(
        accelerator="cpu",
        max_steps=cfg.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    plain.fit(module, datamodule=data)
    for name, value in weights(Path(cfg.run_dir)).items():
        assert_close(value, module.state_dict()[name], rtol=0, atol=0)


def test_a_weight_of_zero_is_none(composed):
    runs = {
        "none": composed(*REGRESSION, "sobolev=none", name="none"),
        "zero": composed(*REGRESSION, "sobolev.weight=0", name="zero"),
        "order1": composed(*REGRESSION, name="order1"),
    }
    for cfg in runs.values():
        run(cfg)
    none, zero, order1 = (weights(Path(cfg.run_dir)) for cfg in runs.values())
    for name, value in none.items():
        assert_close(zero[name], value, rtol=0, atol=0)
    assert not torch.equal(order1["net.0.weight"], none["net.0.weight"])


def test_seed_zero_is_a_seed(composed):
    first = run(composed(*REGRESSION, "seed=0", name="a"))
    second = run(composed(*REGRESSION, "seed=0", name="b"))
    other = run(composed(*REGRESSION, "seed=1", name="c"))
    assert first["test/value_nmse"] == second["test/value_nmse"] != other["test/value_nmse"]


def test_without_a_seed_one_is_drawn_and_told(composed):
    seeds = {run(composed(*REGRESSION, "seed=null", name=name))["seed"] for name in "ab"}
    assert len(seeds) == 2


def test_last_resumes_where_the_newest_run_stopped(composed, caplog):
    settings = (*REGRESSION, "data.batch_size=8")
    whole = composed(*settings, name="whole")
    run(whole)
    stop = f"+callbacks.stop={{_target_:{__name__}.StopAt,step:4}}"
    cfg = composed(*settings, stop, name="stopped")
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit, match="1"):
        run(cfg)
    assert f"ckpt={Path(cfg.run_dir) / LAST}" in caplog.text
    assert not (Path(cfg.run_dir) / "metrics.json").exists()
    resumed = composed(*settings, "ckpt=last", name="resumed")
    assert run(resumed)["steps"] == 6
    curves = read_curves(Path(resumed.run_dir) / "curves.csv")
    assert [step for step, _, _ in curves["train/loss"]] == [6]
    for name, value in weights(Path(whole.run_dir)).items():
        assert_close(weights(Path(resumed.run_dir))[name], value)


class StopAt(pl.Callback):
    """Press Ctrl-C when a step is done."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_checkpoint_to_resume_must_exist(tmp_path):
    with pytest.raises(ValueError, match=r"ckpt must be 'last' or .*, got 'no\.ckpt'"):
        checkpoint_to_resume("no.ckpt", tmp_path)
    with pytest.raises(ValueError, match="ckpt=last needs an earlier run's"):
        checkpoint_to_resume("last", tmp_path / "run")


def test_hash_follows_the_settings_and_not_the_place(composed):
    one = config_hash(composed(*REGRESSION, name="a"))
    assert one == config_hash(composed(*REGRESSION, "pictures=false", name="b"))
    assert one != config_hash(composed(*REGRESSION, "lr=2e-3", name="a"))


def test_missing_tensorboard_falls_back_to_csv(composed, caplog):
    cfg = composed(*REGRESSION, "pictures=false")
    cfg.logger = {"board": {"_target_": f"{__name__}.missing_logger"}}
    run(cfg)
    assert "logging to CSV files instead" in caplog.text
    assert list(Path(cfg.run_dir).glob("csv/metrics.csv"))


def missing_logger():
    """Fail as a logger whose library is not installed."""
    raise ModuleNotFoundError("tensorboard is not available")


def test_missing_matplotlib_is_said_once(composed, caplog, monkeypatch):
    monkeypatch.setattr("lightning_sobolev.experiments.run.train.find_spec", {}.get)
    cfg = composed(*REGRESSION)
    run(cfg)
    assert caplog.text.count("matplotlib is missing") == 1
    assert not list(Path(cfg.run_dir).glob("*.png"))


def test_an_experiment_must_be_chosen(composed):
    with pytest.raises(ValueError, match=r"\+experiment=distill_pong"):
        run(composed())


def test_script_sweeps_and_writes_below_the_working_folder(tmp_path):
    done = train_script(*REGRESSION, "sobolev=none,order1", "pictures=false", "-m", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted(tmp_path.glob("runs/multirun/regression/*/*/metrics.json"))
    assert [path.parent.name for path in found] == ["0", "1"]
    assert "matched: values; order 1" in done.stdout
    report = [sys.executable, str(ROOT / "scripts" / "report.py"), "runs", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(report, cwd=tmp_path, env=environment, check=True, capture_output=True)
    with (tmp_path / "out" / "regression.csv").open() as file:
        assert [line["sobolev"] for line in csv.DictReader(file)] == ["none", "order1"]


def test_script_says_that_an_experiment_needs_a_plus(tmp_path):
    done = train_script("experiment=regression", folder=tmp_path)
    assert done.returncode != 0
    assert "use +experiment=regression" in done.stderr
    assert not list(tmp_path.glob("runs/**/metrics.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
        (["+experiment=distill_pong", "env.settings.game=pomg"], "close matches: pong"),
    ],
)
def test_a_wrong_value_is_named_before_training(composed, arguments, message):
    with pytest.raises(InstantiationException, match=message):
        run(composed(*arguments))
