"""Searches under Ray itself: on a cluster that is started for it, which takes its time."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray import tune
from ray.tune.search import BasicVariantGenerator

from lightning_sobolev.experiments.report.records import read_csv
from lightning_sobolev.experiments.run.finished import METRICS
from lightning_sobolev.experiments.tune.history import read_history
from lightning_sobolev.experiments.tune.schedulers import Truncation
from tests.experiments.tune._toy import KNOBS, ROUNDS, STARTS, Climber, staged

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SMALL = (
    "+experiment=regression",
    "scale=smoke",
    "steps=40",
    "model.width=8",
    "tuning.population=3",
    "tuning.intervals=4",
    "tuning.workers=1",
)


# The cluster's own processes and sockets are still closing when a test ends.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_does_what_the_stage_does(tmp_path):
    """The paper's toy problem from end to end, number by number."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        tune.Tuner(
            Climber,
            param_space={key: tune.uniform(-100.0, 100.0) for key in STARTS[0]},
            tune_config=tune.TuneConfig(
                num_samples=2,
                search_alg=BasicVariantGenerator(points_to_evaluate=STARTS),
                scheduler=Truncation(KNOBS, mode="max", seed=0, fraction=0.5),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="toy",
                storage_path=str(tmp_path),
                stop={"training_iteration": ROUNDS},
                verbose=0,
            ),
        ).fit()
    finally:
        ray.shutdown()
    found = {}
    for path in (tmp_path / "toy").glob("*/progress.csv"):
        for line in read_csv(path)[1]:
            found[line["training_iteration"], line["member"]] = line["score"]
    expected = staged(Truncation(KNOBS, mode="max", seed=0, fraction=0.5), rounds=ROUNDS)
    assert found == {(number, member): score for number, member, score in expected}
    assert max(found.values()) > 1.19


def command(folder):
    return [sys.executable, "scripts/tune.py", *SMALL, f"hydra.run.dir={folder}"]


def rows(folder):
    paths = (folder / "population").glob("*/progress.csv")
    return sum(len(path.read_text().splitlines()) - 1 for path in paths if path.stat().st_size)


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "0"}
    subprocess.run(command(whole), cwd=ROOT, env=environment, check=True, timeout=600)
    process = subprocess.Popen(command(killed), cwd=ROOT, env=environment)
    deadline = time.monotonic() + 600
    while rows(killed) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / METRICS).exists()
    subprocess.run(command(killed), cwd=ROOT, env=environment, check=True, timeout=600)
    histories = [read_history(folder / "population", "min").records for folder in (whole, killed)]
    assert len(histories[0]) == 12
    assert all(math.isfinite(record["score"]) for record in histories[0])
    assert histories[0] == histories[1]
    for name in ("best.ckpt", "history.csv", "schedule.png", "lineage.png", METRICS):
        assert (killed / name).stat().st_size > 0
