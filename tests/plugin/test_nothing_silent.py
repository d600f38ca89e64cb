"""A step that cannot be observed is one error that names what was expected and what came."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from lightning_sobolev import NetworkTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._refusals import refuses
from tests.plugin._students import ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points, weights


class CallsNothing(Regressor):
    def training_step(self, batch, batch_idx):
        hidden = batch[0] @ self.net[0].weight.T
        return hidden.square().mean()


def test_a_step_that_calls_nothing_names_what_was_watched():
    refuses(
        CallsNothing(), r"called none of the watched modules.*watched: the module itself, 'net'"
    )


class TwoChildren(Regressor):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2).double()

    def training_step(self, batch, batch_idx):
        return mse_loss(self.head(self.net(batch[0])), batch[1])


def test_two_children_that_were_called_compete():
    refuses(TwoChildren(), r"called several submodules \('net', 'head'\); name the one")


@pytest.mark.parametrize(("call", "made"), [(1, 1), (-2, 1), (3, 1)])
def test_a_call_that_was_not_made(call, made):
    refuses(Regressor(), rf"call must be in \[-{made}, {made}\) for 1 calls, got {call}", call=call)


class CallsWithoutGradients(Regressor):
    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self(batch[0])
        return self.net[0].weight.square().sum()


def test_calls_without_gradients_do_not_count():
    refuses(CallsWithoutGradients(), "called none of the watched modules with gradients enabled")


class HandsLossToItself(ManualRegressor):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        mse_loss(self(batch[0]), batch[1]).backward()


def test_a_backward_that_cannot_be_seen_is_refused_under_manual_optimization():
    refuses(
        HandsLossToItself(), r"through self.manual_backward\(loss\).*cannot be seen from outside"
    )


class Decides(Regressor):
    def forward(self, x):
        return self.net(x).argmax(-1)

    def training_step(self, batch, batch_idx):
        self(batch[0])
        return self.net[0].weight.square().sum()


def test_an_output_of_integers_has_no_derivative():
    refuses(
        Decides(), r"must return a real floating-point tensor .* got a tensor \[8\] of torch.int64"
    )


class Rounds(Regressor):
    def forward(self, x):
        return self.net(x.detach())


def test_an_output_that_is_cut_off_from_its_input():
    refuses(Rounds(), "the output does not depend on the observed input")


class IntegerInput(Regressor):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Embedding(5, 3), mlp()).double())

    def training_step(self, batch, batch_idx):
        return self(batch[0].long().abs().clamp(max=4)[:, 0]).square().mean()


def test_integers_as_input_point_to_the_submodule_behind_the_embedding():
    refuses(
        IntegerInput(), r"wrt=None: .*got a tensor \[8\] of torch.int64; for integer inputs name"
    )


class OwnLoss(Regressor):
    """Returns its loss first, as some libraries' models do."""

    def forward(self, x):
        y = self.net(x)
        return {"loss": y.square().mean(), "y": y}

    def training_step(self, batch, batch_idx):
        return self(batch[0])["loss"]


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_an_output_without_rows(engine):
    text = (
        r"must give one row for each of its 8 input rows, got a tensor \[\] .* name another output="
    )
    refuses(OwnLoss(), text, engine=engine)
    teacher = NetworkTeacher(mlp(seed=7))
    fit(OwnLoss(), points(), SobolevCallback(teacher, output="y", engine=engine))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body, self.reentrant = mlp(), reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def test_reentrant_activation_checkpointing():
    text = r"activation checkpointing must use use_reentrant=False \(torch says: "
    refuses(Regressor(Checkpointed(True)), text, error=RuntimeError)


def test_activation_checkpointing_under_torch_func():
    text = r"activation checkpointing works with engine='tape' only"
    for side in ("cotangent", "tangent"):
        spec = SobolevSpec(terms=[SobolevTerm(side=side)])
        options = {"engine": "func", "spec": spec, "doctor": False}
        refuses(Regressor(Checkpointed(False)), text, error=RuntimeError, **options)


def test_activation_checkpointing_without_reentry_changes_nothing():
    found = []
    for net in (mlp(), Checkpointed(False)):
        module = Regressor(net)
        fit(module, points(), SobolevCallback(mlp(seed=7)))
        found.append(weights(module))
    assert_close(*found)


class ScalarFirst(Regressor):
    def forward(self, share, x):
        return share * self.net(x)

    def training_step(self, batch, batch_idx):
        return mse_loss(self(torch.tensor(1.0).double(), batch[0]), batch[1])


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_an_input_without_rows(engine):
    text = r"wrt=None: .* must have rows, got a tensor \[\] of torch.float64; name another"
    refuses(ScalarFirst(), text, engine=engine)


class Twice(Regressor):
    """One network under two names."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleDict({"b": self.net})


def test_a_submodule_may_be_named_by_any_of_its_names():
    found = []
    for name in ("net", "nets.b"):
        module = Twice()
        fit(module, points(), SobolevCallback(mlp(seed=7), module=name))
        found.append(weights(module))
    assert_close(*found, rtol=0, atol=0)
