"""A trial of a few steps: its score is that of a run, and it leaves everything as it was."""

import csv
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import warnings

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict

from lightning_sobolev.experiments.distillation.decide import _trial
from lightning_sobolev.experiments.run import doctor
from lightning_sobolev.experiments.run.checkpoints import LAST
from lightning_sobolev.experiments.run.decided import DECISION, decided, prepared_data
from lightning_sobolev.experiments.run.train import prepare_process, run
from tests.experiments.run._toy import Toy, ToyData, composed


class Taught(Toy):
    """Takes queries as a distillation does; may be sent a signal by its third batch."""

    def __init__(self, queries=None, number=None, **options):
        super().__init__(**options)
        self.number = number

    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and self.number is not None:
            os.kill(os.getpid(), self.number)
        return super().training_step(batch, batch_idx)


class Counted(ToyData):
    num_train_states = 14

    def __init__(self, batch_size, **options):
        super().__init__(**options)


def deciding(folder, *overrides, **settings):
    """The toy's run, in which a trial decides between three weights of its term."""
    name = "lightning_sobolev.experiments.distillation.decide.Decision"
    own = {
        "where": "auto",
        "query_share": None,
        "weights": {"values": 0.0, "stored": 0.3, "queries": 1.0, "auto": 0.3},
        "decide": {"_target_": name, "foresight": False, "share_of_steps": 0.5},
        "module": {"_target_": "tests.experiments.distillation.test_trial.Taught", "queries": None},
        "data": {
            "_target_": "tests.experiments.distillation.test_trial.Counted",
            "batch_size": 4,
        },
        "sobolev": {"weight": "${weights.${where}}"},
    }
    cfg = composed(folder, "pictures=false", *overrides)
    with open_dict(cfg):
        return OmegaConf.merge(cfg, own, settings)


def trial(cfg, steps=6):
    prepare_process(cfg)
    return _trial(cfg.copy(), steps)  # every way gets a configuration of its own


def surroundings():
    numbers = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    logs = {
        name: logging.getLogger(name) for name in ("", "lightning.pytorch", "lightning_sobolev")
    }
    loggers = [(each.level, each.handlers[:], each.filters[:]) for each in logs.values()]
    threads = (torch.get_num_threads(), threading.active_count())
    return numbers, handlers, loggers, threads, warnings.filters[:], torch.get_default_dtype()


def test_the_score_is_that_of_a_run_of_so_many_steps(tmp_path):
    run(composed(tmp_path / "run", "pictures=false", steps=6, val_every=6))
    with (tmp_path / "run" / "curves.csv").open(newline="") as file:
        expected = [float(row["val/error"]) for row in csv.DictReader(file) if row["val/error"]]
    found = trial(composed(tmp_path / "trial", steps=40))
    assert [found] == pytest.approx(expected, rel=1e-6)
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize("settings", [{"lr": 1e30}, {"sobolev": {"weight": 1e300}}])
def test_a_way_that_diverges_has_no_score(settings, tmp_path):
    assert math.isnan(trial(composed(tmp_path, **settings)))


def test_a_score_that_no_validation_logs_is_named(tmp_path):
    cfg = composed(tmp_path, score={"metric": "test/error", "mode": "min"})
    with pytest.raises(ValueError, match=r"score.metric must be one that .* logs: val/error, got"):
        trial(cfg)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, "1"), (signal.SIGTERM, "143")], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_ends_the_run_and_not_only_the_trial(number, error, tmp_path):
    # a test in the background of a shell is started with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit, match=error):
            run(deciding(tmp_path, module={"number": int(number)}))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / DECISION).exists()
    assert not (tmp_path / LAST).exists()


def test_a_decision_leaves_everything_as_it_was(tmp_path, capsys, caplog, monkeypatch):
    cfg, temporary = deciding(tmp_path / "decided"), tmp_path / "temporary"
    prepare_process(cfg)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = surroundings()
    with caplog.at_level(logging.INFO):
        _, settings = decided(cfg, prepared_data(cfg))
    assert surroundings() == before
    assert [path.name for path in (tmp_path / "decided").iterdir()] == [DECISION]
    assert list(temporary.iterdir()) == []
    assert settings["cpu_seconds_decide"] > 0
    assert "where: " in caplog.messages[-1]
    assert "doctor" not in caplog.text
    assert capsys.readouterr().out == ""


def test_a_run_behind_a_trial_is_the_one_in_which_its_way_is_given(tmp_path):
    way = run(deciding(tmp_path / "auto"))["where"]
    run(deciding(tmp_path / "given", where=way))
    one, other = (
        torch.load(tmp_path / name / LAST, weights_only=True)["state_dict"]
        for name in ("auto", "given")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_doctor_looks_at_the_way_that_is_given_and_makes_no_trial(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        for way in ("stored", "queries", "auto"):
            doctor._one_step(deciding(tmp_path, where=way))
    assert "after a trial" not in caplog.text
    assert caplog.text.count("agrees with finite differences") == 3
    with pytest.raises(ValueError, match="where must be stored, queries or auto, got 'values'"):
        doctor._one_step(deciding(tmp_path, where="values"))
    with pytest.raises(ValueError, match="query_share must be"):
        doctor._one_step(deciding(tmp_path, where="queries", query_share=2))


@pytest.mark.slow
def test_of_two_processes_one_makes_the_trial_and_both_do_as_it_says(tmp_path):
    command = [sys.executable, "-m", __name__, str(tmp_path), "trainer=ddp_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics, kept = (json.loads((tmp_path / n).read_text()) for n in ("metrics.json", DECISION))
    assert metrics["where"] == kept["where"]
    said = done.stdout + done.stderr
    assert said.count("after a trial of 6 steps") == 1
    assert said.count("as it was decided before") == 1


if __name__ == "__main__":  # processes that Lightning starts run this again
    logging.basicConfig(level=logging.INFO)
    FOLDER, *OVERRIDES = sys.argv[1:]
    run(deciding(FOLDER, *OVERRIDES))
