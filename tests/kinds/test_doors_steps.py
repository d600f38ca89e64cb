"""Steps that leave the student out, use up its graph, or get no rows."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback
from tests.kinds._by_hand import (
    EXACT,
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    descend,
    exact,
    fit,
    frobenius,
    mlp,
    numbers,
    share,
    slope,
    target,
    weights,
)


class Alternates(Step):
    """Every second step has an objective of its own."""

    def training_step(self, batch, batch_idx):
        if batch_idx % 2:
            return 0.1 * self.net[0].weight.square().sum()
        return super().training_step(batch, batch_idx)


def test_steps_without_the_student_train_without_the_term_and_are_counted():
    module, net = Alternates(), mlp()
    trainer = fit(module, [(X, Y)] * 4, exact(missing="skip", term={"weight": 0.1}))

    def taught():
        return mse_loss(net(X), Y) + 0.1 * frobenius(net, target, X)

    def other():
        return 0.1 * net[0].weight.square().sum()

    assert_close(weights(module), descend(net, taught, other, taught, other), rtol=1e-10, atol=0)
    assert trainer.callback_metrics["train/sobolev/missing_steps"] == 2


def test_a_student_that_no_step_calls_is_counted_too():
    class Never(Step):
        def training_step(self, batch, batch_idx):
            return self.net[0].weight.square().sum()

    trainer = fit(Never(), [(X, Y)] * 3, exact(missing="skip"))
    assert trainer.callback_metrics["train/sobolev/missing_steps"] == 3


@pytest.mark.parametrize("options", [{}, {"missing": "raise"}])
def test_by_default_they_are_refused_and_the_way_out_is_named(options):
    module, before = Alternates(), Step()
    fit(before, [(X, Y)], exact())
    with pytest.raises(ValueError, match="missing="):
        fit(module, [(X, Y)] * 2, exact(**options))
    assert_close(weights(module), weights(before), rtol=0, atol=0)


def test_missing_is_one_of_two_words():
    with pytest.raises(ValueError, match=r"missing must be .*'raise'.*'skip'.*'never'"):
        SobolevCallback(mlp(seed=7), missing="never")


class Fgsm(Step):
    """The first call finds the attack; its graph is gone when the step returns."""

    def training_step(self, batch, batch_idx):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(mse_loss(self.net(x), batch[1]), x)
        return mse_loss(self.net(batch[0] + 0.1 * slope.sign()), batch[1])


class Vat(Step):
    """As virtual adversarial training: a direction by one backward pass of its own."""

    def training_step(self, batch, batch_idx):
        d = numbers(6, 3, seed=9).requires_grad_()
        (d,) = torch.autograd.grad(self.net(batch[0] + d).square().mean(), d)
        return mse_loss(self.net(batch[0] + d), batch[1])


def attacked(net, make):
    if make is Vat:
        d = numbers(6, 3, seed=9).requires_grad_()
        return X + torch.autograd.grad(net(X + d).square().mean(), d)[0]
    x = X.clone().requires_grad_()
    return X + 0.1 * torch.autograd.grad(mse_loss(net(x), Y), x)[0].sign()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make", [Fgsm, Vat])
def test_a_first_call_whose_graph_is_freed_names_call(make, side):
    module = make()
    with pytest.raises(ValueError, match="call="):
        fit(module, [(X, Y)], exact(term={"side": side}))
    assert_close(weights(module), weights(make()), rtol=0, atol=0)


@pytest.mark.parametrize("call", [1, -1])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make", [Fgsm, Vat])
def test_the_second_call_is_the_one_to_name(make, side, call):
    net = mlp()
    points = attacked(net, make).detach()
    found = share(make, [(X, Y)], exact(term={"side": side}, call=call))
    assert_is(found, slope(frobenius(net, target, points), net))


class Filters(Step):
    """Its own loss copes with a batch that a filter has left empty."""

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0]), batch[1], reduction="sum") / max(len(batch[0]), 1)


EMPTY = (X[:0], Y[:0], torch.zeros(0, 2, 3).double())
FULL = (X, Y, numbers(6, 2, 3, seed=2))


# That nothing is known of no rows may be said, and that the doctor has seen none.
@pytest.mark.filterwarnings("ignore:.*no row of this batch|Sobolev doctor")
@pytest.mark.parametrize("normalize", ["none", "target", "elements"])
@pytest.mark.parametrize("teacher", ["function", "batch"])
@pytest.mark.parametrize("doctor", [False, True])
def test_a_batch_without_rows_has_no_term(teacher, normalize, doctor):
    def callback():
        term = {**EXACT, "normalize": normalize, "weight": 0.1}
        source = target if teacher == "function" else BatchTeacher(jacobian=2)
        return exact(source, term=term, doctor=doctor)

    module, without = Filters(), Filters()
    fit(module, [EMPTY, FULL, EMPTY, FULL], callback())
    fit(without, [FULL, FULL], callback())
    assert_close(weights(module), weights(without), rtol=1e-12, atol=1e-14)
    assert (weights(module) - weights(Filters())).norm() > 1e-3


@pytest.mark.parametrize("side", SIDES)
def test_batches_without_rows_alone_leave_the_weights(side):
    module = Filters()
    fit(module, [EMPTY] * 2, exact(term={"side": side}))
    assert_close(weights(module), weights(Filters()), rtol=0, atol=0)


class SometimesByHand(Step):
    def __init__(self, skips):
        super().__init__()
        self.automatic_optimization, self.skips = False, skips

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        if batch_idx >= self.skips:
            optimizer.zero_grad()
            self.manual_backward(mse_loss(self.net(batch[0]), batch[1]))
        optimizer.step()


@pytest.mark.parametrize("skips", [0, 1, 3])
def test_manual_steps_without_the_student_are_counted(skips):
    used = fit(SometimesByHand(skips), [(X, Y)] * 3, exact(missing="skip"))
    assert float(used.callback_metrics["train/sobolev/missing_steps"]) == skips
