"""Several processes, refused strategies, other precisions."""

import re
import subprocess
import sys
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.plugin.checks import check_strategy
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points, weights

TWO = {
    "devices": 2,
    "strategy": "ddp_spawn",
    "use_distributed_sampler": False,
}
EXACT = SobolevTerm(projection="basis", num_projections=None)


class SameOnEveryRank(L.Callback):
    """Raises in the process where the weights are not those of rank 0."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        mine = weights(pl_module)
        first = trainer.strategy.broadcast(mine, src=0)
        assert_close(mine, first, rtol=0, atol=0)


class DerivativeAlone(Regressor):
    """Has no loss of its own, not even one of weight zero; each process takes half a batch."""

    def half(self, batch):
        return [part[self.global_rank :: self.trainer.world_size] for part in batch]

    def training_step(self, batch, batch_idx):
        self.net(self.half(batch)[0])
        return torch.zeros((), dtype=torch.float64)


def test_two_processes_train_as_one_with_the_derivative_alone():
    """The last bias has no derivative term: without a path to it the reduction never ends."""
    spec = SobolevSpec(terms=[EXACT])
    single, double = DerivativeAlone(), DerivativeAlone()
    fit(single, points(), SobolevCallback(mlp(seed=7), spec))
    fit(double, points(), SobolevCallback(mlp(seed=7), spec), SameOnEveryRank(), **TWO)
    assert_close(weights(double), weights(single), rtol=1e-12, atol=1e-12)


class ValueToo(DerivativeAlone):
    def training_step(self, batch, batch_idx):
        return Regressor.training_step(self, self.half(batch), batch_idx)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_two_processes_train_as_one_in_every_mode(engine):
    every = {"projection": "basis", "num_projections": None}
    terms = [SobolevTerm(side="tangent", name="tangent", **every), SobolevTerm(order=2, **every)]
    found = []
    for options in ({}, TWO):
        module = ValueToo()
        used = SobolevCallback(mlp(seed=7), SobolevSpec(terms=terms), engine=engine)
        fit(module, points(), used, SameOnEveryRank(), **options)
        found.append(weights(module))
    assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_sharded_student_trains_as_a_whole_one():
    """The inner backward must not reshard what the outer one needs."""
    found = []
    for devices in ("1", "2"):
        command = [sys.executable, "-m", "tests.plugin._fsdp2", devices]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = re.findall(r"WEIGHTS (.*)", done.stdout)
        found.append(torch.tensor([*map(float, line.split())], dtype=torch.float64))
    assert_close(*found, rtol=1e-12, atol=1e-12)


def stub(strategy):
    return SimpleNamespace(strategy=strategy)


def test_strategies_without_double_backward_are_refused():
    text = "strategy: FSDPStrategy does not support double backward.*use ModelParallelStrategy"
    with pytest.raises(ValueError, match=text):
        check_strategy(stub(FSDPStrategy()))
    deepspeed = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # its package is not needed for this
    with pytest.raises(ValueError, match="strategy: DeepSpeedStrategy does not support double"):
        check_strategy(stub(deepspeed))
    check_strategy(stub(DDPStrategy()))


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_the_inner_derivative_under_mixed_precision(side, engine):
    spec = SobolevSpec(terms=[SobolevTerm(side=side, weight=0.1)])
    mixed, single = Regressor(mlp().float()), Regressor(mlp().float())
    data = DataLoader([tuple(part.float() for part in row) for row in points().dataset], 8)
    for module, precision in ((mixed, "bf16-mixed"), (single, "32-true")):
        used = SobolevCallback(mlp(seed=7).float(), spec, engine=engine)
        fit(module, data, used, precision=precision)
    assert_close(weights(mixed), weights(single), rtol=0.05, atol=0.02)
    assert (weights(single) - weights(Regressor(mlp().float()))).norm() > 0.1


def test_a_teacher_in_another_precision():
    module = Regressor()
    fit(module, points(), SobolevCallback(mlp(seed=7).float()))
    reference = Regressor()
    fit(reference, points(), SobolevCallback(mlp(seed=7)))
    assert_close(weights(module), weights(reference), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_of_a_student_without_a_loss():
    module = DerivativeAlone()
    fit(module, points(), SobolevCallback(mlp(seed=7), doctor=False), limit_train_batches=1)
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert_close(module.net[2].bias.grad, torch.zeros(2).double(), rtol=0, atol=0)
