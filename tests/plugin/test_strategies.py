"""Several processes, refused strategies, other precisions."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.plugin.checks import check_strategy
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points, weights


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
