"""A student with noise: its value and its derivative are of the same draw."""

import logging

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import NetworkTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.layers import inject_noise
from tests._reference import dense_jacobian
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit_one_step

SEED = 5
TERM = SobolevTerm(projection="basis", num_projections=None, normalize="none")


class Noisy(Regressor):
    """Begins every step at the same place of the generator, and says what came out."""

    def __init__(self, where):
        example = None if where == "weight" else torch.randn(6, 3).double()
        super().__init__(inject_noise(mlp(), where, example=example))

    def training_step(self, batch, batch_idx):
        torch.manual_seed(SEED)
        x, y = batch
        loss = mse_loss(self.net(x), y)
        self.log("value", loss)
        return loss


def at_seed(net, x):
    torch.manual_seed(SEED)
    return net(x)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("where", ["weight", "input", "output"])
def test_value_and_derivative_are_of_one_draw(where, engine):
    module, teacher = Noisy(where), mlp(seed=7)
    torch.manual_seed(0)
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    value = mse_loss(at_seed(module.net, x), y).detach()
    rows = jacobian(lambda x: at_seed(module.net, x).sum(0), x).movedim(1, 0)  # rows: independent
    expected = (rows - dense_jacobian(teacher, x)).square().sum((1, 2)).mean()
    term = TERM if engine == "tape" else SobolevTerm(
        side="tangent", projection="basis", num_projections=None, normalize="none"
    )  # fmt: skip
    spec = SobolevSpec(terms=[term])
    callback = SobolevCallback(NetworkTeacher(teacher), spec, module="net", engine=engine)
    used = fit_one_step(module, (x, y), callback)
    assert_close(used.callback_metrics["value"].double(), value)
    assert_close(used.callback_metrics["train/sobolev/order_1"].double(), expected)


def test_a_replay_on_some_rows_is_named(caplog):
    module = Noisy("weight")
    spec = SobolevSpec(terms=[SobolevTerm(rows=0.5)])
    callback = SobolevCallback(NetworkTeacher(mlp(seed=7)), spec, module="net")
    batch = (torch.randn(4, 3).double(), torch.randn(4, 2).double())
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit_one_step(module, batch, callback)
    assert "(NoiseInjection): the replay on some rows draws its own noise" in caplog.text
