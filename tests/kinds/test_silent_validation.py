"""Validation by ``training_step`` sees the module's own loss and moves nothing."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from tests.kinds._by_hand import Step, X, Y, fit, weights

TRAIN = [(X, Y, torch.ones(6, 2, 3).double() * size) for size in (1, 2, 3)]
VALIDATE = [(X, Y, torch.full((6, 2, 3), 1000.0).double())]


class Validates(Step):
    """As modules must that need the gradient of their input in their loss."""

    def __init__(self, enabled=True):
        super().__init__()
        self.seen, self.enabled = [], enabled

    @torch.no_grad()
    def own(self, batch):
        return float(mse_loss(self.net(batch[0]), batch[1]))

    def validation_step(self, batch, batch_idx):
        with torch.set_grad_enabled(self.enabled):
            loss = self.training_step(batch, batch_idx)
            self.seen.append((float(loss.detach()), self.own(batch)))


def callback():
    # Drawn directions and running scales: both have a state that validation could move.
    term = SobolevTerm(weight=0.01, projection="sphere", normalize="target")
    return SobolevCallback(BatchTeacher(jacobian=2), SobolevSpec(terms=[term]), doctor=False)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_validation_loss_is_the_modules_own(enabled):
    module = Validates(enabled)
    fit(module, TRAIN, callback(), val=VALIDATE, max_epochs=2)
    assert len(module.seen) == 2
    for found, own in module.seen:
        assert_close(found, own, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "flags", [{"num_sanity_val_steps": 1}, {"val_check_interval": 1}, {"max_epochs": 2}]
)
def test_weights_and_scales_are_as_without_validation(flags):
    ours, theirs = callback(), callback()
    validated, plain = Validates(), Step()
    fit(validated, TRAIN, ours, val=VALIDATE, **flags)
    fit(plain, TRAIN, theirs, **flags)
    assert validated.seen
    assert_close(weights(validated), weights(plain), rtol=0, atol=0)
    assert str(ours.state_dict()) == str(theirs.state_dict())
