"""What fitting changes in a module is undone."""

import lightning.pytorch as L
import pytest
from torch.nn.functional import mse_loss

from tests.plugin._students import Breaks, Regressor, callback
from tests.plugin._traces import assert_unchanged, attributes
from tests.plugin._trainers import fit, points, trainer, weights


def test_everything_is_restored_after_fit_and_fit_works_twice():
    module, used = Regressor(), callback()
    before = attributes(module)
    fit(module, points(), used)
    assert_unchanged(module, before)
    once = weights(module)
    fit(module, points(), used)
    assert_unchanged(module, before)
    assert (weights(module) - once).norm() > 0.0


class Interrupts(L.Callback):
    def on_train_batch_end(self, *args):
        raise KeyboardInterrupt


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize(
    ("make", "others", "error"), [(Breaks, [], KeyError), (Regressor, [Interrupts()], SystemExit)]
)
def test_everything_is_restored_after_a_crash_and_an_interrupt(make, others, error, engine):
    module, used = make(), callback(engine=engine)
    before = attributes(module)
    with pytest.raises(error):
        fit(module, points(), used, *others)
    assert_unchanged(module, before)
    fit(module, points(), used, limit_train_batches=1)
    assert_unchanged(module, before)


def test_a_step_that_the_user_put_on_the_instance_comes_back():
    module = Regressor()

    def training_step(batch, batch_idx):
        del batch_idx  # Lightning looks for the name
        return 2.0 * mse_loss(module(batch[0]), batch[1])

    module.training_step = training_step
    plain, doubled = Regressor(), weights(module)
    fit(module, points(), callback(), limit_train_batches=1)
    fit(plain, points(), callback(), limit_train_batches=1)
    assert module.training_step is training_step
    assert (weights(module) - doubled).norm() > (weights(plain) - doubled).norm()


def test_other_stages_leave_the_module_alone():
    class Tested(Regressor):
        def test_step(self, batch, batch_idx):
            assert "training_step" not in vars(self)
            assert self.net(batch[0]).grad_fn is None

    module = Tested()
    trainer(callback()).test(module, points(), verbose=False)
