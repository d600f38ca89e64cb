"""A training that was stopped anywhere goes on bit for bit as if it had not been."""

import itertools
import random
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lightning_sobolev import (
    BatchTeacher,
    Cosine,
    KeepGenerators,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.experiments.run.checkpoints import LastCheckpoint
from tests.plugin._trainers import trainer, weights

STEPS_PER_EPOCH, EPOCHS = 3, 3
FIRST = SobolevTerm(weight=Cosine(1.0, 0.1, steps=6))
SPEC = SobolevSpec(terms=[FIRST, SobolevTerm(order=2, weight=0.1, rows=0.5)])


class Fits(L.LightningModule):
    """Momentum and a schedule of the learning rate: both have a memory."""

    def __init__(self, dropout):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layers = nn.Linear(2, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1)
            self.net = nn.Sequential(*layers)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["x"])[:, 0], batch["y"])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Interrupt(L.Callback):
    def __init__(self, moment, number):
        self.moment, self.number, self.batch = moment, number, -1

    def _at(self, moment):
        if moment == self.moment and self.batch == self.number:
            raise KeyboardInterrupt

    def on_train_batch_start(self, *args):
        self.batch += 1
        self._at("before the step")

    def on_before_backward(self, *args):
        self._at("before the backward")

    def on_after_backward(self, *args):
        self._at("after the backward")

    def on_train_batch_end(self, *args):
        self._at("after the step")


MOMENTS = ["before the step", "before the backward", "after the backward", "after the step"]


def points():
    return LandscapeDataModule("booth", 20, batch_size=8, steps_per_epoch=STEPS_PER_EPOCH)


def train(folder, *others, resume=False, every=1000, dropout=0.0, data=None, **options):
    folder.mkdir(exist_ok=True)
    module = Fits(dropout)
    matching = SobolevCallback(BatchTeacher("dydx", hessian="hessian"), SPEC, module="net")
    usual = {"max_epochs": EPOCHS, "precision": "32-true", "enable_checkpointing": True}
    used = trainer(matching, *others, LastCheckpoint(folder, every), **usual | options)
    path = folder / "last.ckpt" if resume else None
    used.fit(module, points() if data is None else data, ckpt_path=path, weights_only=True)
    return weights(module), matching.state_dict(), used.global_step


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return train(tmp_path_factory.mktemp("straight"))


def assert_goes_on(folder, straight):
    found, state, steps = train(folder, resume=True)
    assert (steps, state["counter"]) == (straight[2], straight[1]["counter"])
    assert torch.equal(found, straight[0])


@pytest.mark.parametrize("number", [2, 3, 7])
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_of_a_step(moment, number, straight, tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Interrupt(moment, number))
    assert_goes_on(tmp_path, straight)


# Saved anywhere, killed for good


class SaveAfter(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        folder = trainer.default_root_dir
        trainer.save_checkpoint(f"{folder}/{trainer.global_step}/last.ckpt")


def test_every_checkpoint_of_a_run_leads_to_the_same_end(straight, tmp_path):
    train(tmp_path, SaveAfter(), default_root_dir=tmp_path)
    for step in range(1, STEPS_PER_EPOCH * EPOCHS):
        found, _, _ = train(tmp_path / str(step), resume=True)
        assert torch.equal(found, straight[0]), f"resumed behind step {step}"


def test_with_the_global_generators_dropout_goes_on_too(tmp_path):
    """In the middle of an epoch and between two; without them the masks are others."""
    torch.manual_seed(5)
    options = {"dropout": 0.5, "default_root_dir": tmp_path}
    expected, _, _ = train(tmp_path, KeepGenerators(), SaveAfter(), **options)
    found = {}
    for step in (2, 3, 4):
        for keep in ([KeepGenerators()], []):
            torch.manual_seed(6)
            folder = tmp_path / f"{step}-{len(keep)}"
            shutil.copytree(tmp_path / str(step), folder)
            with nullcontext() if keep else pytest.warns(UserWarning, match="KeepGenerators"):
                found[step, bool(keep)] = train(folder, *keep, resume=True, dropout=0.5)[0]
    assert [torch.equal(w, expected) for w in found.values()] == [True, False] * 3


def test_every_global_generator_is_set_back():
    def draws():
        return torch.rand(1).item(), random.random(), np.random.rand(), np.random.randn()

    used = KeepGenerators()
    np.random.randn()  # leaves the second of a pair for the next time
    state = used.state_dict()
    before = draws()
    used.load_state_dict(state)
    process = SimpleNamespace(world_size=1, global_rank=0)
    used.on_train_batch_start(process, None, batch=None, batch_idx=3)
    assert draws() == before
    used.on_train_batch_start(process, None, batch=None, batch_idx=4)
    assert draws() != before


ANY = [(moment, number) for moment in [*MOMENTS, "while saving"] for number in (2, 5, 7)]


@pytest.mark.parametrize(
    ("moment", "number"),
    [("while saving", 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ANY)],
)
def test_kill_9_at_any_moment(moment, number, straight, tmp_path):
    """In a process of its own, which kills itself."""
    module = [sys.executable, "-m", "tests.experiments.run._killed"]
    command = [*module, str(tmp_path), moment, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert_goes_on(tmp_path, straight)


# With and without the plugin


def plain(folder, path=None):
    module, options = Fits(0.0), {"precision": "32-true", "enable_checkpointing": True}
    used = trainer(LastCheckpoint(folder), **options)
    used.fit(module, points(), ckpt_path=path, weights_only=True)
    return module, used.global_step


def test_a_checkpoint_made_with_the_plugin_is_gone_on_from_without_it(tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Interrupt("after the step", 1))
    with pytest.warns(UserWarning, match="Please add the following callbacks: .*SobolevCallback"):
        module, steps = plain(tmp_path, tmp_path / "last.ckpt")
    assert steps == STEPS_PER_EPOCH
    loaded = Fits.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, dropout=0.0)
    assert torch.equal(weights(loaded), weights(module))


def test_a_checkpoint_made_without_the_plugin_is_gone_on_from_with_it(tmp_path):
    plain(tmp_path)
    _, state, steps = train(tmp_path, resume=True)
    assert steps == STEPS_PER_EPOCH * EPOCHS
    # it begins to draw and to measure its scales where it is added
    assert state["counter"] == STEPS_PER_EPOCH * (EPOCHS - 1)
    assert state["scales"]["order_1"]["count"] == STEPS_PER_EPOCH * (EPOCHS - 1)


# The loader that the documentation shows


def documented_loader():
    text = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (code,) = (block for block in blocks if "class Resumable" in block)
    names = {"torch": torch, "itertools": itertools}
    exec(code, names)
    return names["Resumable"]


class OwnData(L.LightningDataModule):
    def train_dataloader(self):
        rows = [{name: column[i] for name, column in TABLE.items()} for i in range(15)]
        sampler = torch.utils.data.DistributedSampler(rows, num_replicas=1, rank=0, seed=3)
        return documented_loader()(rows, batch_size=5, sampler=sampler, trainer=self.trainer)


TABLE = points().train_points.columns


@pytest.mark.parametrize(("moment", "number"), [("before the backward", 4), ("after the step", 6)])
def test_the_documented_loader_resumes_exactly(moment, number, tmp_path):
    expected, _, _ = train(tmp_path, data=OwnData())
    with pytest.raises(SystemExit):
        train(tmp_path, Interrupt(moment, number), data=OwnData())
    found, _, _ = train(tmp_path, resume=True, data=OwnData())
    assert torch.equal(found, expected)
