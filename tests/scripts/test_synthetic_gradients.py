import csv
import json
import math
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.testing import assert_close

from lightning_sobolev.experiments.run.checkpoints import LAST
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.run.stored import load_module
from lightning_sobolev.experiments.run.train import run
from lightning_sobolev.experiments.synthetic_gradients.processes import study as processes
from lightning_sobolev.experiments.synthetic_gradients.processes.study import run_processes

SMALL = ("data.batch_size=16", "data.num_validation=32")
STEPS = ("steps=6", "val_every=3", "log_every=2", "data.num_train=64")
SETTINGS = ("+experiment=synthetic_gradients", "scale=smoke", *STEPS, *SMALL)


class StopAt(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def stored(cfg):
    return torch.load(Path(cfg.run_dir) / LAST, weights_only=True)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("kind", ["noprop", "sobolev"])
def test_a_run_leaves_numbers_curves_a_figure_and_its_module(finished, kind):
    cfg, metrics = finished(*SETTINGS, f"kind={kind}", "cuts=1")
    folder = Path(cfg.run_dir)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert 0 <= metrics["test/accuracy"] <= 1
    assert metrics["steps"] == 6
    assert metrics["train/epochs"] == 1.5
    assert ("test/gradient_cosine" in metrics) == (kind == "sobolev")
    with (folder / "curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/accuracy"]]
    assert [row["step"] for row in rows] == ["3", "6"]
    assert (folder / "probes.png").is_file()
    assert_close(dict(load_module(folder).state_dict()), stored(cfg)["state_dict"], rtol=0, atol=0)


@pytest.mark.usefixtures("pictures")
def test_the_network_with_batch_norm_learns(composed):
    fast = ("pictures=false", "steps=60", "lr=1e-2", "model_lr=1e-2", "model=image_resnet")
    assert run(composed(*SETTINGS, *fast))["test/accuracy"] > 0.5


@pytest.mark.usefixtures("pictures")
def test_a_run_resumes_in_the_middle_of_an_epoch(composed):
    drawn = (*SETTINGS, "pictures=false", "module.matching.normalize=target")
    whole = composed(*drawn, name="whole")
    run(whole)
    stop = f"+callbacks.stop={{_target_:{__name__}.StopAt,step:5}}"
    with pytest.raises(SystemExit):
        run(composed(*drawn, stop, name="stopped"))
    resumed = composed(*drawn, "ckpt=last", name="resumed")
    run(resumed)
    for part in ("state_dict", "scales"):
        assert_close(stored(resumed)[part], stored(whole)[part], rtol=0, atol=0)


def study(tmp_path, *overrides):
    inner = f"overrides={list(SMALL)}"
    settings = ["study=processes", f"out={tmp_path}", "progress=false", inner, "num_train=64"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return run_processes(compose("benchmark", [*settings, *overrides]))


@pytest.mark.usefixtures("pictures")
def test_all_ways_in_processes_leave_a_table_and_a_figure(tmp_path):
    path = study(tmp_path, "steps=4", "rounds=1", "delays=[0.0]")
    table = pd.read_csv(path).set_index("way")
    published = config_folder().parent / "docs" / "results" / "decoupling.csv"
    assert path.read_text().splitlines()[0] == published.read_text().splitlines()[0]
    assert list(table.index) == ["locked", "lockstep", "decoupled"]
    assert table.test_accuracy.between(0, 1).all()
    assert table.waited.between(0, 1).all()
    assert (table.samples_per_second > 0).all()
    assert (table.sections == 2).all()
    assert table.lateness["locked"] == table.lateness["lockstep"] == 0
    assert math.isnan(table.gradient_cosine["locked"])  # it has no model
    assert abs(table.gradient_cosine["lockstep"]) <= 1
    assert {"decoupling.md", "decoupling.png"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.usefixtures("pictures")
def test_processes_train_as_the_experiment_says(tmp_path, monkeypatch):
    given, rates = [], ["model_updates=3", "lr=0.25", "model_lr=0.125"]

    def instead(*parts):
        given.append(parts[-1])
        raise InterruptedError

    monkeypatch.setattr(processes, "run_pipeline", instead)
    with pytest.raises(InterruptedError):
        study(tmp_path, "rounds=1", f"overrides={[*SMALL, *rates]}")
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    assert given[0].model_updates == 3
    assert given[0].optimizer(parameters).param_groups[0]["lr"] == 0.25
    assert given[0].model_optimizer(parameters).param_groups[0]["lr"] == 0.125


def test_nothing_to_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rounds, delays and ways must be at least one each"):
        study(tmp_path, "rounds=0")
