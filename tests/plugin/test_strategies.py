"""Strategies that are refused, and what a strategy needs of every step."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback
from lightning_sobolev.plugin.checks import check_strategy
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points


class DerivativeAlone(Regressor):
    """Has no loss of its own, not even one of weight zero."""

    def training_step(self, batch, batch_idx):
        self.net(batch[0])
        return torch.zeros((), dtype=torch.float64)


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


def test_refused_strategies_of_the_other_import_name():
    other = pytest.importorskip("pytorch_lightning")
    with pytest.raises(ValueError, match="strategy: FSDPStrategy does not support double"):
        check_strategy(stub(other.strategies.FSDPStrategy()))
    check_strategy(stub(other.strategies.DDPStrategy()))


def test_gradients_reach_every_parameter_of_a_student_without_a_loss():
    module = DerivativeAlone()
    fit(module, points(), SobolevCallback(mlp(seed=7), doctor=False), limit_train_batches=1)
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert_close(module.net[2].bias.grad, torch.zeros(2).double(), rtol=0, atol=0)
