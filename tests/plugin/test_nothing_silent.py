"""A step that cannot be observed is one error that names what was expected and what came."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import SobolevSpec, SobolevTerm
from tests.plugin._loops import by_hand, refuses, taught
from tests.plugin._students import Checkpointed, ManualRegressor, Regressor, mlp
from tests.plugin._trainers import points


class TwoChildren(Regressor):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2).double()


class Tokens(Regressor):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Embedding(5, 3), mlp()).double())


def without_gradients(module, x):
    with torch.no_grad():
        module(x)
    return module.net[0].weight


# A step's loss is the square of what it gives.
SILENT = {
    "it calls nothing": (
        Regressor, lambda module, x: x @ module.net[0].weight.T,
        "called none of the watched modules.*watched: the module itself, 'net'"),
    "it calls without gradients": (
        Regressor, without_gradients, "called none of the watched modules with gradients enabled"),
    "two children compete": (
        TwoChildren, lambda module, x: module.head(module.net(x)),
        r"called several submodules \('net', 'head'\); name the one"),
    "integers go in": (
        Tokens, lambda module, x: module(x.long().abs().clamp(max=4)[:, 0]),
        r"wrt=None: .*got a tensor \[8\] of torch.int64; for integer inputs name"),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_a_step_that_cannot_be_observed(name):
    make, give, text = SILENT[name]

    class Step(make):
        def training_step(self, batch, batch_idx):
            return give(self, batch[0]).square().mean()

    refuses(Step(), text)


@pytest.mark.parametrize(
    ("forward", "text"),
    [
        (lambda self, x: self.net(x).argmax(-1), r"must return a real .* \[8\] of torch.int64"),
        (lambda self, x: self.net(x.detach()), "output does not depend on the observed input"),
    ],
)
def test_an_output_that_has_no_derivative(forward, text):
    class Cut(Regressor):
        def training_step(self, batch, batch_idx):
            return 0.0 * self(batch[0]).sum() + self.net[0].weight.square().sum()

    Cut.forward = forward
    refuses(Cut(), text)


@pytest.mark.parametrize(("call", "made"), [(1, 1), (-2, 1), (3, 1)])
def test_a_call_that_was_not_made(call, made):
    refuses(Regressor(), rf"call must be in \[-{made}, {made}\) for 1 calls, got {call}", call=call)


class HandsLossToItself(ManualRegressor):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        mse_loss(self(batch[0]), batch[1]).backward()


def test_a_backward_that_cannot_be_seen_is_refused_under_manual_optimization():
    refuses(
        HandsLossToItself(), r"through self.manual_backward\(loss\).*cannot be seen from outside"
    )


class OwnLoss(Regressor):
    """Returns its loss first, as some libraries' models do."""

    def forward(self, x):
        y = self.net(x)
        return {"loss": y.square().mean(), "y": y}

    def training_step(self, batch, batch_idx):
        return self(batch[0])["loss"]


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_an_output_without_rows_is_passed_over_unless_it_is_named(engine):
    expected = by_hand([(x, torch.zeros_like(y)) for x, y in points()])
    assert_close(taught(OwnLoss(), engine=engine), expected)
    assert_close(taught(OwnLoss(), output="y", engine=engine), expected)
    text = (
        r"must give one row for each of its 8 input rows, got a tensor \[\] .* name another output="
    )
    refuses(OwnLoss(), text, output="loss", engine=engine)


def test_activation_checkpointing_without_reentry_changes_nothing():
    assert_close(taught(Regressor(Checkpointed(mlp(), reentrant=False))), by_hand())


class ScalarFirst(Regressor):
    def forward(self, share, x):
        return share * self.net(x)

    def training_step(self, batch, batch_idx):
        return mse_loss(self(torch.tensor(1.0).double(), batch[0]), batch[1])


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_an_input_without_rows_is_passed_over_unless_it_is_named(engine):
    assert_close(taught(ScalarFirst(), engine=engine), by_hand())
    text = r"wrt='share': .* must have rows, got a tensor \[\] of torch.float64; name another"
    refuses(ScalarFirst(), text, wrt="share", engine=engine)


class Wavers(nn.Module):
    """Answers differently from call to call, in eval mode, too."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = mlp(), 0

    def forward(self, x):
        self.calls += 1
        return self.calls * self.body(x)


def test_some_rows_of_a_student_that_is_not_deterministic():
    spec = SobolevSpec(terms=[SobolevTerm(rows=0.5)])
    refuses(Regressor(Wavers()), "student that is not deterministic", spec=spec)


class Twice(Regressor):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleDict({"b": self.net})


def test_a_submodule_may_be_named_by_any_of_its_names():
    for name in ("net", "nets.b"):
        assert_close(taught(Twice(), module=name), by_hand())
