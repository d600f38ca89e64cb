"""The mixin brings the callback; how the class writes its step does not matter."""

import lightning.pytorch as L
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevMixin
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points, trainer, weights


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


class StepOverridden(InheritedStep):
    """The step is overridden below the mixin."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class OtherCallbacks(Brings, Regressor):
    """Brings callbacks of its own."""

    def configure_callbacks(self):
        return [*super().configure_callbacks(), L.Callback()]


class BaseBringsCallbacks(Brings, Regressor):
    """Its base class brings one callback that is not in a list."""


class Base(Regressor):
    def configure_callbacks(self):
        return L.Callback()


BaseBringsCallbacks.__bases__ = (Brings, Base)


@pytest.mark.parametrize(
    "layout", [OwnStep, InheritedStep, StepOverridden, OtherCallbacks, BaseBringsCallbacks]
)
def test_every_layout_trains_as_the_callback_does(layout):
    module, plain = layout(), Regressor()
    fit(module, points())
    fit(plain, points(), SobolevCallback(mlp(seed=7)))
    assert_close(weights(module), weights(plain), rtol=0, atol=0)


def test_manual_optimization():
    class Manual(Brings, ManualRegressor):
        pass

    module, plain = Manual(), Regressor()
    fit(module, points())
    fit(plain, points(), SobolevCallback(mlp(seed=7)))
    assert_close(weights(module), weights(plain))


def test_other_stages_work():
    class Tested(InheritedStep):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self(batch[0]).square().mean())

        test_step = validation_step

    module, used = Tested(), trainer()
    used.fit(module, points(), points())
    used.test(module, points(), verbose=False)
    assert "training_step" not in vars(module)


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
