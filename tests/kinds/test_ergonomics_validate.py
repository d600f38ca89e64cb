"""``validate=True``: the terms and their cosine in validation and test, at no cost to training."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, mse_loss
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    distance,
    exact,
    fit,
    jacobian,
    loader,
    mlp,
    numbers,
    target,
    trainer,
    weights,
)


class Validates(Step):
    def validation_step(self, batch, batch_idx):
        assert not torch.is_grad_enabled()
        self.log("val_loss", mse_loss(self.net(batch[0]), batch[1]))

    test_step = validation_step


BATCHES = [(X, Y), (numbers(3, 3, seed=8), numbers(3, 2, seed=9))]
OPTIONS = {"validate": True, "term": {"side": "cotangent", "name": "slope"}}


def measured(net, side):
    """Return distance and cosine over all nine rows."""
    rows = torch.cat([x for x, _ in BATCHES])
    ours, theirs = jacobian(net, rows), jacobian(target, rows)
    cosine = cosine_similarity(ours, theirs, dim=2 if side == "cotangent" else 1)
    return distance(ours, theirs).detach(), cosine.mean().detach()


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("side", SIDES)
def test_validate_logs_distance_and_cosine(side, stage):
    module = Validates()
    callback = exact(validate=True, term={"side": side, "name": "slope"})
    used = fit(module, BATCHES[:1], callback, val=BATCHES, max_epochs=2)
    if stage == "test":
        used.test(module, loader(BATCHES), verbose=False)
    found = used.callback_metrics
    keys = (f"{stage}/sobolev/slope", f"{stage}/sobolev/slope_cosine")
    for key, expected in zip(keys, measured(module.net, side), strict=True):
        assert_close(found[key].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_alone_has_the_numbers_too(inference_mode):
    module = Validates()
    used = trainer(exact(**OPTIONS), inference_mode=inference_mode)
    (found,) = used.validate(module, loader(BATCHES), verbose=False)
    distance_, cosine = measured(module.net, "cotangent")
    assert_close(found["val/sobolev/slope"], float(distance_), rtol=1e-5, atol=0)
    assert_close(found["val/sobolev/slope_cosine"], float(cosine), rtol=1e-5, atol=0)


@pytest.mark.parametrize("flags", [{"num_sanity_val_steps": 2}, {"val_check_interval": 1}])
def test_validate_changes_no_training(flags):
    spec = SobolevSpec(terms=[SobolevTerm(weight=0.1)])
    ours, plain = (
        SobolevCallback(mlp(seed=7), spec, validate=validate, doctor=False)
        for validate in (True, False)
    )
    watched, module = Validates(), Step()
    used = fit(watched, BATCHES, ours, val=BATCHES, max_epochs=2, **flags)
    fit(module, BATCHES, plain, max_epochs=2)
    assert "val/sobolev/order_1" in used.callback_metrics
    assert_close(weights(watched), weights(module), rtol=0, atol=0)
    assert str(ours.state_dict()) == str(plain.state_dict())


def test_without_validate_nothing_is_logged_there():
    used = fit(Validates(), BATCHES, exact(), val=BATCHES)
    assert not any(key.startswith("val/sobolev") for key in used.callback_metrics)


class Computes(Validates):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", mse_loss(self.net(batch[0] * 1.0), batch[1]))


@pytest.mark.parametrize("make", [Validates, Computes])
@pytest.mark.parametrize("side", SIDES)
def test_tensors_that_are_made_under_inference_mode_will_do(make, side):
    """A loader collates them there; autograd will not save such tensors."""
    module, rows = make(), torch.cat([x for x, _ in BATCHES])
    data = TensorDataset(rows, torch.cat([y for _, y in BATCHES]))
    callback = exact(validate=True, term={"side": side, "name": "slope"})
    (found,) = trainer(callback).validate(module, DataLoader(data, batch_size=4), verbose=False)
    distance_, cosine = measured(module.net, side)
    assert_close(found["val/sobolev/slope"], float(distance_), rtol=1e-5, atol=0)
    assert_close(found["val/sobolev/slope_cosine"], float(cosine), rtol=1e-5, atol=0)


class Counts(nn.Module):
    """Its buffers move in every call, whatever the mode."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = mlp(), nn.BatchNorm1d(3).double()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1.0)
        return self.body(self.norm(x))


@pytest.mark.parametrize("side", SIDES)
def test_validate_moves_no_buffer_of_the_student(side):
    found = []
    for callbacks in ([exact(validate=True, term={"side": side, "weight": 0.0})], []):
        module = Validates(Counts())
        fit(module, BATCHES, *callbacks, val=BATCHES)
        found.append(module.state_dict())
    assert_close(*found, rtol=1e-12, atol=1e-14)


def test_stored_derivatives_are_validated_on_the_batchs_own():
    class Stored(Validates):
        def training_step(self, batch, batch_idx):
            return mse_loss(self.net(batch[0]), batch[1])

    batches = [(x, y, jacobian(target, x).detach()) for x, y in BATCHES]
    module = Stored()
    term = {"side": "cotangent", "name": "slope"}
    callback = exact(BatchTeacher(jacobian=2), validate=True, term=term)
    used = fit(module, batches[:1], callback, val=batches)
    expected, cosine = measured(module.net, "cotangent")
    assert_close(used.callback_metrics["val/sobolev/slope"].double(), expected, rtol=1e-5, atol=0)
    found = used.callback_metrics["val/sobolev/slope_cosine"].double()
    assert_close(found, cosine, rtol=1e-5, atol=0)


class OfNumbers(Validates):
    """One number for each row, without an axis of its own."""

    def __init__(self):
        super().__init__(nn.Sequential(mlp(outputs=1), nn.Flatten(0)))

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])


@pytest.mark.parametrize("term", [{"side": "tangent"}, {"order": 0}], ids=["tangents", "values"])
def test_a_student_of_one_number_for_each_row_is_validated(term):
    def first(x):
        return target(x)[..., 0]

    module, batch = OfNumbers(), (X, Y[:, 0])
    callback = exact(first, validate=True, term={**term, "name": "one"})
    found = fit(module, [batch], callback, val=[batch]).callback_metrics
    if "order" in term:
        ours, theirs = module.net(X)[:, None], first(X)[:, None]
    else:
        ours, theirs = jacobian(lambda x: module.net(x[None])[0], X), jacobian(first, X)
    error = (ours - theirs).square().sum(1).mean().detach()
    assert_close(found["val/sobolev/one"].double(), error, rtol=1e-5, atol=0)
    signs = (ours * theirs).sign().mean().detach()  # the cosine of two numbers
    assert_close(found["val/sobolev/one_cosine"].double(), signs, rtol=1e-5, atol=1e-12)
