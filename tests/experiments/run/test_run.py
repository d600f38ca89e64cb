"""A run of a small experiment: what it leaves, what it refuses, and how it goes on."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from torch import nn

from lightning_sobolev.experiments.run import train as single_run
from lightning_sobolev.experiments.run.checkpoints import BEST, LAST
from lightning_sobolev.experiments.run.conf import STORED, config_hash
from lightning_sobolev.experiments.run.curves import Curves
from lightning_sobolev.experiments.run.decided import DECISION, decided, prepared_data
from lightning_sobolev.experiments.run.stored import load_module
from lightning_sobolev.experiments.run.train import run, score_of
from tests.experiments.run._toy import ToyData, composed


def weights(folder, name=LAST):
    return torch.load(folder / name, weights_only=True)["state_dict"]


def curves(folder):
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stored(cfg):
    """Leave beside a run what Hydra leaves."""
    path = Path(cfg.run_dir) / STORED
    path.parent.mkdir(parents=True)
    OmegaConf.save(cfg, path)
    return cfg


def with_callback(folder, callback, *overrides, **settings):
    target = {"_target_": f"{__name__}.{callback.pop('name')}", **callback}
    return composed(folder, *overrides, callbacks={"added": target}, **settings)


# What it leaves


@pytest.mark.parametrize(("rank", "is_there"), [("0", False), ("1", True)])
def test_an_earlier_runs_decision_is_not_for_the_processes_of_the_next(
    rank, is_there, tmp_path, monkeypatch
):
    found = []

    def spied(cfg, _):
        found.append((Path(cfg.run_dir) / DECISION).exists())
        return {}, cfg

    monkeypatch.setattr(single_run, "_train_and_test", spied)
    monkeypatch.setenv("LOCAL_RANK", rank)
    cfg = composed(tmp_path)
    (tmp_path / DECISION).write_text("{}")
    run(cfg)
    assert found == [is_there]


def test_a_run_that_goes_on_keeps_its_decision(tmp_path, monkeypatch):
    cfg = composed(tmp_path)
    run(cfg)
    (tmp_path / DECISION).write_text("{}")
    monkeypatch.setattr(single_run, "_train_and_test", lambda cfg, _: ({}, cfg))
    run(composed(tmp_path, ckpt=str(tmp_path / LAST)))
    assert (tmp_path / DECISION).exists()


def test_a_run_leaves_numbers_curves_and_a_checkpoint(tmp_path):
    cfg = composed(tmp_path)
    metrics = run(cfg)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["config_hash"] == config_hash(cfg)
    assert metrics["steps"] == 12
    assert 0 < metrics["seconds_fit"] < metrics["seconds_total"]
    assert metrics["cpu_seconds_fit"] > 0
    assert score_of(cfg, metrics) == metrics["val/error"] > 0
    trained = [row["step"] for row in curves(tmp_path) if row["train/loss"]]
    assert trained == ["2", "4", "6", "8", "10", "12"]
    assert [row["step"] for row in curves(tmp_path) if row["val/error"]] == ["5", "10"]
    assert (tmp_path / "curves.png").is_file()


def test_processor_time_is_that_of_the_whole_training_and_leaves_out_waiting(tmp_path):
    curves = Curves(tmp_path)
    curves.load_state_dict({"rows": [], "seconds": 5.0, "cpu_seconds": 5.0})
    time.sleep(0.3)
    assert 5.0 <= curves.cpu_seconds < curves.seconds - 0.2
    again = Curves(tmp_path)
    again.load_state_dict(curves.state_dict())
    assert again.cpu_seconds >= 5.0


def test_without_a_terminal_lines_say_how_it_goes(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(composed(tmp_path))
    assert "step 12/12: train/loss" in caplog.text
    assert "step 10/12: val/error" in caplog.text
    assert "Sobolev doctor: agrees with finite differences" in caplog.text
    assert "GPU available" not in caplog.text


def test_hash_follows_the_settings_and_not_the_place(tmp_path):
    one = config_hash(composed(tmp_path / "a"))
    assert one == config_hash(composed(tmp_path / "b", "pictures=false", "threads=2"))
    assert one != config_hash(composed(tmp_path / "a", lr=2e-3))


# What it refuses


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match=r"run_dir must be of one run, got .*, where one works"),
    ):
        run(composed(tmp_path))


def test_of_a_run_of_another_edition_the_broadest_differences_are_named(tmp_path):
    run(stored(composed(tmp_path / "one")))
    others = {f"a{n}": {"b": 1} for n in range(100)}
    with pytest.raises(ValueError, match=r"with others: zone: nothing, not 1, ") as caught:
        run(composed(tmp_path / "two", "ckpt=last", zone=1, **others))
    assert "a12.b: nothing, not 1 and 95 more; name the file" in str(caught.value)


def test_last_refuses_a_run_of_other_settings_and_names_them(tmp_path):
    run(stored(composed(tmp_path / "one")))
    other = composed(tmp_path / "two", "ckpt=last", lr=2e-3, seed=1)
    with pytest.raises(ValueError, match=r"same settings.*lr: 0\.01, not 0\.002.*seed: 0, not 1"):
        run(other)
    named = composed(tmp_path / "two", f"ckpt={tmp_path / 'one' / LAST}", lr=2e-3)
    assert run(named)["steps"] == 12
    with pytest.raises(ValueError, match="ckpt=last needs an earlier run's"):
        run(composed(tmp_path / "elsewhere" / "one", "ckpt=last"))
    with pytest.raises(ValueError, match=r"ckpt must be 'last' or .*, got 'no\.ckpt'"):
        run(composed(tmp_path / "three", "ckpt=no.ckpt"))


@pytest.mark.parametrize("steps", [12, 11])
def test_a_diverged_run_keeps_its_good_checkpoint(steps, tmp_path):
    (tmp_path / "metrics.json").write_text('{"test/error": 0.0}')  # an earlier run's
    cfg = with_callback(tmp_path, {"name": "Diverge", "step": 10}, steps=steps, checkpoint_every=8)
    cfg.sobolev.callback = None
    with pytest.raises(FloatingPointError, match=r"weights must be finite, .*holds step 8"):
        run(cfg)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    assert not (tmp_path / "metrics.json").exists()


# How it goes on


class Raise(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("as asked")


class Diverge(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > self.step:
            nn.init.constant_(pl_module.net[0].weight, float("nan"))


class Signal(pl.Callback):
    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_train_start(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers

        def half_way(*_):
            if trainer.global_step == self.step:
                os.kill(os.getpid(), self.number)

        optimizer.register_step_post_hook(half_way)


class Requeue(Signal):
    """Saves when it is told to, as Lightning does where Slurm is about to kill the job."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.earlier = signal.signal(
            signal.SIGUSR1,
            lambda *_: trainer.save_checkpoint(Path(trainer.default_root_dir) / "requeued.ckpt"),
        )

    def on_train_end(self, *_):
        signal.signal(signal.SIGUSR1, self.earlier)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    torch.set_default_dtype(torch.float32)
    run(stored(composed(folder, "callbacks=best")))
    return folder


def assert_goes_on(saved, folder, straight):
    run(composed(folder, "callbacks=best", f"ckpt={saved}"))
    for name in (LAST, BEST):
        for key, value in weights(straight, name).items():
            assert torch.equal(weights(folder, name)[key], value), (name, key)
    kept, expected = ([row | {"seconds": ""} for row in curves(one)] for one in (folder, straight))
    assert kept == expected


@pytest.mark.parametrize("step", [3, 5, 10])
def test_a_step_that_was_broken_off_changes_nothing_that_follows(step, straight, tmp_path):
    """Neither the last weights, nor the steps of validations, the best weights and the curves."""
    broken = with_callback(tmp_path / "one", {"name": "Raise", "step": step}, "callbacks=best")
    with pytest.raises(RuntimeError, match="as asked"):
        run(broken)
    assert torch.load(tmp_path / "one" / LAST, weights_only=True)["global_step"] == step
    assert_goes_on(tmp_path / "one" / LAST, tmp_path / "two", straight)
    seconds = [float(row["seconds"]) for row in curves(tmp_path / "two")]
    assert seconds == sorted(seconds)


def test_ctrl_c_inside_an_update_waits_for_its_end(straight, tmp_path, caplog):
    sent = {"name": "Signal", "step": 6, "number": int(signal.SIGINT)}
    with pytest.raises(SystemExit, match="1"):
        run(with_callback(tmp_path / "one", sent, "callbacks=best"))
    assert "stopping behind this step" in caplog.text
    assert "interrupted at step 7; to go on:" in caplog.text
    assert not (tmp_path / "one" / "metrics.json").exists()
    assert_goes_on(tmp_path / "one" / LAST, tmp_path / "two", straight)


class Breaks(torch.optim.Adam):
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        first = self.param_groups[0]["params"][0]
        if self.state.setdefault(first, {}).setdefault("steps", 0) == 9:
            first.data.add_(1.0)
            raise RuntimeError("within the update")
        self.state[first]["steps"] += 1
        return loss


def test_half_an_update_is_never_saved(tmp_path, caplog):
    cfg = composed(tmp_path, checkpoint_every=4, scheduler=None)
    cfg.optimizer = {"_target_": f"{__name__}.Breaks", "_partial_": True}
    with pytest.raises(RuntimeError, match="within the update"):
        run(cfg)
    assert "step 9 is not saved (its update was broken off)" in caplog.text
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 8


def test_a_checkpoint_that_slurm_asks_for_is_gone_on_from_exactly(straight, tmp_path):
    sent = {"name": "Requeue", "step": 6, "number": int(signal.SIGUSR1)}
    run(with_callback(tmp_path / "one", sent, "callbacks=best"))
    saved = tmp_path / "one" / "requeued.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 7
    assert_goes_on(saved, tmp_path / "two", straight)


def test_sigterm_is_no_success(straight, tmp_path):
    sent = {"name": "Signal", "step": 6, "number": int(signal.SIGTERM)}
    with pytest.raises(SystemExit, match="143"):
        run(with_callback(tmp_path / "one", sent, "callbacks=best"))
    assert_goes_on(tmp_path / "one" / LAST, tmp_path / "two", straight)


def test_what_killed_writers_left_is_deleted_and_nothing_else(tmp_path):
    (tmp_path / LAST).parent.mkdir()
    left = [tmp_path / "metrics.json.0123abcd.tmp", tmp_path / f"{LAST}.0123abcd.tmp"]
    mine = [tmp_path / "notes.tmp", tmp_path / "deadbeef.txt"]
    for path in left + mine:
        path.write_text("half")
    run(composed(tmp_path))
    assert [path.exists() for path in left + mine] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer=ddp_cpu"],
        ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"],
    ],
    ids=["ddp", "fully_shard"],
)
def test_behind_several_processes_one_tests_the_whole_network_on_every_row(overrides, tmp_path):
    command = [sys.executable, "-m", "tests.experiments.run._toy", str(tmp_path), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    kept = {name.removeprefix("net."): value for name, value in weights(tmp_path).items()}
    x = torch.linspace(-1.0, 1.0, 14)[:, None]
    hidden = (x @ kept["0.weight"].T + kept["0.bias"]).tanh()
    fit = hidden @ kept["2.weight"][0] + kept["2.bias"]
    expected = float((fit - (3 * x[:, 0]).sin()).square().mean())
    assert metrics["test/error"] == pytest.approx(expected, rel=1e-5)
    assert metrics["trainable_parameters"] == 49
    assert metrics["steps"] == 12


# Read back


@pytest.mark.parametrize(
    "target",
    [
        "pathlib.Path.touch",
        "distutils.spawn.spawn",
        "lightning_sobolev._files.os.system",
        "lightning_sobolev._files.write_text",
        "lightning_sobolev.experiments.run.train.instantiate",
        "torch.load",
        "torch.hub.load",
        "lightning_sobolev.tasks.RegressionModule",
    ],
)
def test_a_folder_of_somebody_else_runs_nothing(target, tmp_path):
    cfg = composed(tmp_path)
    part = {"_target_": target, "path": str(tmp_path / "marker")}
    cfg.module = {"_target_": "torch.nn.Sequential", "_args_": [part]}
    stored(cfg)
    with pytest.raises(ValueError, match=f"only parts of models .*_target_={target}"):
        load_module(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"folder must be that of a run"):
        load_module(tmp_path)
    (tmp_path / STORED).parent.mkdir()
    (tmp_path / STORED).write_text("a: [")
    with pytest.raises(ValueError, match=r"config\.yaml must hold the configuration of a run"):
        load_module(tmp_path)


# What the data decide


class Decider:
    """Decides for a learning rate that no one gave, by the data."""

    def check(self, cfg):
        if cfg.lr == 0.0:
            raise ValueError("lr must be above 0, got 0.0")

    def settings(self, cfg, datamodule, earlier):
        torch.rand(3)  # what is drawn here is none of the run's business
        found = {"where": "somewhere", "rate": float(len(datamodule.training_points()))}
        return {name: earlier.get(name, value) for name, value in found.items()}

    def applied(self, cfg, settings):
        cfg = cfg.copy()
        cfg.lr = settings["rate"] * 1e-4
        return cfg


class Unprepared(ToyData):
    def prepare_data(self):
        raise AssertionError("recorded before the settings were checked")


def deciding(folder, *overrides, **settings):
    return composed(folder, *overrides, decide={"_target_": f"{__name__}.Decider"}, **settings)


def kept(folder):
    return json.loads((folder / DECISION).read_text())


def test_settings_that_the_data_decide_are_as_if_they_had_been_given(tmp_path):
    cfg = deciding(tmp_path / "decided")
    metrics = run(cfg)
    run(composed(tmp_path / "given", lr=1.4e-3))
    one, other = weights(tmp_path / "decided"), weights(tmp_path / "given")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (metrics["where"], metrics["rate"]) == ("somewhere", 14.0)
    assert metrics["config_hash"] == config_hash(cfg)
    assert metrics["cpu_seconds_decide"] == kept(tmp_path / "decided")["cpu_seconds_decide"] > 0


def test_what_is_to_decide_is_checked_before_data_are_made(tmp_path):
    cfg = deciding(tmp_path, lr=0.0, data={"_target_": f"{__name__}.Unprepared"})
    with pytest.raises(ValueError, match="lr must be above 0"):
        run(cfg)


def test_a_resumed_run_keeps_what_was_decided(tmp_path):
    run(stored(deciding(tmp_path / "first")))
    before = {**kept(tmp_path / "first"), "where": "as before", "cpu_seconds_decide": 100.0}
    (tmp_path / "first" / DECISION).write_text(json.dumps(before))
    last = f"ckpt={tmp_path / 'first' / LAST}"
    metrics = run(deciding(tmp_path / "second", last, steps=20))
    assert metrics["where"] == "as before"
    assert metrics["cpu_seconds_decide"] > 100.0
    assert kept(tmp_path / "second")["rate"] == 14.0


@pytest.mark.parametrize("left", [None, "{", "[]"])
def test_a_run_that_decided_nothing_is_gone_on_with_and_that_is_said(left, tmp_path, caplog):
    run(composed(tmp_path))  # as runs were before there was anything to decide
    if left is not None:
        (tmp_path / DECISION).write_text(left)
    with caplog.at_level(logging.WARNING):
        metrics = run(deciding(tmp_path, f"ckpt={tmp_path / LAST}", steps=20))
    assert f"{tmp_path / DECISION} is missing: what the data decide is decided now" in caplog.text
    assert metrics["where"] == kept(tmp_path)["where"] == "somewhere"


def test_a_checkpoint_without_folders_above_it_is_gone_on_from(tmp_path, monkeypatch):
    run(deciding(tmp_path / "first"))
    (tmp_path / "moved.ckpt").write_bytes((tmp_path / "first" / LAST).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(deciding(tmp_path / "second", "ckpt=moved.ckpt", steps=20))["steps"] == 20


def test_a_further_process_takes_what_the_first_decided(tmp_path, monkeypatch):
    text = json.dumps({"where": "there", "rate": 3.0})
    (tmp_path / DECISION).write_text(text)
    monkeypatch.setenv("LOCAL_RANK", "1")
    cfg = deciding(tmp_path)
    found, settings = decided(cfg, prepared_data(cfg), tmp_path / "of a run that is resumed")
    assert (found.lr, settings["where"]) == (pytest.approx(3e-4), "there")
    assert (tmp_path / DECISION).read_text() == text
    (tmp_path / DECISION).unlink()
    with pytest.raises(ValueError, match=r"decision.json must be the decision of the first proc"):
        decided(cfg, prepared_data(cfg))
