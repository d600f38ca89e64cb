"""What fitting changes in a module is undone."""

import lightning.pytorch as L
import pytest
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import SobolevSpec, SobolevTerm
from tests.plugin._students import Breaks, Regressor, callback, mlp
from tests.plugin._trainers import fit, points, weights


def attributes(module):
    return {k: v for k, v in vars(module).items() if k not in ("_hparams", "_trainer")}


def assert_unchanged(module, before):
    after = attributes(module)
    assert set(after) == set(before)
    assert all(after[key] is before[key] for key in after if key.startswith("__") or "step" in key)
    for part in module.modules():
        assert "forward" not in vars(part)
        assert not part._forward_hooks
    assert module.training_step.__func__ is type(module).training_step


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


# Two callbacks on two submodules of one module


class Chain(Regressor):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(2, 2)).double()
        nn.init.eye_(self.head[1].weight)
        nn.init.zeros_(self.head[1].bias)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.head(self.net(batch[0])), batch[1])


def pair(*, weights=(1.0, 1.0)):
    terms = [SobolevTerm(name=name, weight=w) for name, w in zip("ab", weights, strict=True)]
    return [
        callback(module="net", spec=SobolevSpec(terms=[terms[0]])),
        callback(module="head", teacher=mlp(dim=2, seed=8), spec=SobolevSpec(terms=[terms[1]])),
    ]


def gradient_of(*callbacks):
    module = Chain()
    before = weights(module)
    used = fit(module, points(), *callbacks, limit_train_batches=1)
    return before - weights(module), used.callback_metrics


def test_two_callbacks_add_their_terms():
    assert len({callback.state_key for callback in pair()}) == 2  # saved apart
    plain, _ = gradient_of()
    both, logged = gradient_of(*pair())
    first, _ = gradient_of(*pair(weights=(1.0, 0.0)))
    second, _ = gradient_of(*pair(weights=(0.0, 1.0)))
    assert_close(both - plain, first + second - 2 * plain)
    assert (first - plain).norm() > 0.0
    assert (second - plain).norm() > 0.0
    total = logged["train/sobolev/a"] + logged["train/sobolev/b"]
    assert_close(logged["train/sobolev/total"], total)


def test_one_of_two_may_leave_while_the_other_stays():
    module = Chain()
    before = attributes(module)
    fit(module, points(), *pair())
    assert_unchanged(module, before)


def test_two_callbacks_with_one_name_are_refused():
    module = Chain()
    before = attributes(module)
    used = [callback(module="net"), callback(module="head", teacher=mlp(dim=2))]
    with pytest.raises(ValueError, match=r"must be named differently .* got 'order_1' twice"):
        fit(module, points(), *used)
    assert_unchanged(module, before)
