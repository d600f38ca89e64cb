"""The mixin brings the callback; how the class writes its step does not matter."""

import lightning.pytorch as L
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevMixin
from tests.plugin._loops import by_hand
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points, weights


class Brings(SobolevMixin):
    def configure_sobolev(self):
        return SobolevCallback(mlp(seed=7))


class OwnStep(Brings, L.LightningModule):
    """Everything in one class."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class InheritedStep(Brings, Regressor):
    """The step comes from a base class."""


class OtherCallbacks(Brings, Regressor):
    """Brings callbacks of its own."""

    def configure_callbacks(self):
        return [*super().configure_callbacks(), L.Callback()]


class OneCallback(Regressor):
    """Brings one callback that is not in a list."""

    def configure_callbacks(self):
        return L.Callback()


class BaseBringsCallbacks(Brings, OneCallback):
    pass


@pytest.mark.parametrize("layout", [OwnStep, InheritedStep, OtherCallbacks, BaseBringsCallbacks])
def test_every_layout_trains_as_the_hand_written_loop(layout):
    module = layout()
    fit(module, points())
    assert_close(weights(module), by_hand())


def test_a_mixin_behind_the_lightning_module_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match="Late must list SobolevMixin before LightningModule"):

        class Late(Regressor, SobolevMixin):
            pass


def test_a_mixin_without_configuration_is_refused():
    class Unfinished(SobolevMixin, Regressor):
        pass

    with pytest.raises(TypeError, match=r"Unfinished must define configure_sobolev\(\)"):
        fit(Unfinished(), points())


def test_a_lost_callback_is_found_before_training():
    class Loses(Brings, Regressor):
        def configure_callbacks(self):
            return [L.Callback()]

    module = Loses()
    before = weights(module)
    with pytest.raises(ValueError, match=r"Loses\.configure_callbacks must extend super"):
        fit(module, points())
    assert_close(weights(module), before, rtol=0, atol=0)
