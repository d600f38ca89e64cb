"""Searches from end to end; under Ray itself they take the time of starting a cluster."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lightning_sobolev.experiments.run.decided import DECISION
from lightning_sobolev.experiments.run.train import METRICS
from lightning_sobolev.experiments.tune import tune as search
from lightning_sobolev.experiments.tune.history import read_history
from lightning_sobolev.experiments.tune.trainable import WORKING
from lightning_sobolev.experiments.tune.tune import first_configs, run_tuning
from tests.experiments.tune._search import composed

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("overrides", "settings", "text"),
    [
        (["tuning.population=1"], {}, "population must be at least 2, got 1"),
        (["tuning.intervals=0"], {}, "intervals must be from 1 to steps"),
        ([], {"score": {"mode": "up"}}, r"score must be .*got .*up"),
    ],
)
def test_bad_settings_are_refused(tmp_path, overrides, settings, text):
    with pytest.raises(ValueError, match=text):
        run_tuning(composed(tmp_path, *overrides, **settings))


def test_a_folder_is_of_one_search(tmp_path):
    (tmp_path / METRICS).write_text("{}")
    for _ in range(2):  # also where the seed is drawn
        assert run_tuning(composed(tmp_path, "seed=null")) == {}  # finished, and left alone
    with pytest.raises(ValueError, match="run_dir must be of a search of the same settings"):
        run_tuning(composed(tmp_path, "seed=1"))


class Decider:
    """Decides anew whenever nothing was decided earlier."""

    times = 0

    def check(self, cfg):
        pass

    def settings(self, cfg, datamodule, earlier):
        Decider.times += not earlier
        return {"where": earlier.get("where", f"way {Decider.times}")}

    def applied(self, cfg, settings):
        return cfg


def test_a_search_that_goes_on_keeps_what_it_decided(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "_train_population", killed)
    cfg = composed(tmp_path, decide={"_target_": f"{__name__}.Decider"})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_tuning(cfg)
        assert json.loads((tmp_path / DECISION).read_text())["where"] == "way 1"
    assert Decider.times == 1


def test_members_begin_with_samples_uniform_in_the_logarithm(tmp_path):
    cfg = composed(tmp_path, "tuning.population=2000")
    first = first_configs(cfg)
    assert first == first_configs(cfg)
    assert [config["member"] for config in first] == list(range(2000))
    low, high = math.log(3e-4), math.log(3e-2)
    uniform = stats.uniform(low, high - low).cdf
    assert stats.kstest([config["lr"] for config in first], uniform).pvalue > 0.01
    assert first_configs(composed(tmp_path, "tune=constant"))[1] == {"member": 1}


def reported(folder):
    paths = (folder / "population").glob("*/progress.csv")
    return sum(len(path.read_text().splitlines()) - 1 for path in paths if path.stat().st_size)


def check_copies(history):
    """Of three members the worst goes on from the best, with settings a little changed."""
    rounds = [rows.set_index("member") for _, rows in history.groupby("interval")]
    for before, after in itertools.pairwise(rounds):
        worst, best = before["score"].idxmax(), before["score"].idxmin()
        assert after["parent"].to_dict() == {**{m: m for m in range(3)}, worst: best}
        for name in ("setting_lr", "setting_weight", "setting_rows"):
            kept = after[name].drop(worst)
            pd.testing.assert_series_equal(kept, before[name].drop(worst), check_exact=True)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "tests.experiments.tune._search"]
    options = {
        "cwd": ROOT,
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "TUNE_GLOBAL_CHECKPOINT_S": "0"},
    }
    subprocess.run([*command, str(whole)], check=True, timeout=600, **options)
    process = subprocess.Popen([*command, str(killed)], **options)
    deadline = time.monotonic() + 600
    while reported(killed) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / METRICS).exists()
    subprocess.run([*command, str(killed)], check=True, timeout=600, **options)
    one, two = (read_history(folder / "population") for folder in (whole, killed))
    assert len(one) == 12
    assert np.isfinite(one["score"]).all()
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    check_copies(one)
    for name in ("best.ckpt", "history.csv", "schedule.png", "lineage.png", METRICS):
        assert (killed / name).stat().st_size > 0
    assert not (killed / WORKING).exists()
    numbers = [json.loads((folder / METRICS).read_text()) for folder in (whole, killed)]
    assert all(n.pop("seconds_total") > 0 for n in numbers)
    assert numbers[0] == numbers[1]
    assert math.isfinite(numbers[0]["test/error"])
