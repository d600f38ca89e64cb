"""The callback in few words: a weight, a teacher in the batch, numbers in validation."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    DirectionalTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    distance,
    exact,
    fit,
    jacobian,
    loader,
    mlp,
    numbers,
    share,
    slope,
    target,
    trainer,
    weights,
)


def first(x):
    return target(x)[..., :1]


def scalar():
    """Return a module with one output, whose one direction has a sign alone."""
    return Step(mlp(outputs=1))


def relative():
    """Return slope and value of the default term: 1 is a student without any derivative."""
    net = mlp(outputs=1)
    ours, theirs = jacobian(net, X), jacobian(first, X)
    value = distance(ours, theirs) / theirs.square().flatten(1).sum(1).mean()
    return slope(value, net), value.detach()


@pytest.mark.parametrize("weight", [0.1, 3, None])
def test_a_weight_is_enough(weight):
    options = {} if weight is None else {"weight": weight}
    callback = SobolevCallback(AnalyticTeacher(first), doctor=False, **options)
    found = share(scalar, [(X, Y[:, :1])], callback)
    assert_is(found, (1.0 if weight is None else weight) * relative()[0])


def test_a_weight_beside_a_spec_is_refused():
    with pytest.raises(ValueError, match=r"weight.*spec"):
        SobolevCallback(mlp(seed=7), SobolevSpec(), weight=0.1)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "large"])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        SobolevCallback(mlp(seed=7), weight=weight)


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_directions_of_the_batch_need_no_spec(weight):
    """Such a teacher knows one kind of term alone, and that is the default."""
    v, pushed = numbers(6, 3, seed=4), numbers(6, 2, seed=5)
    options = {} if weight == 1.0 else {"weight": weight}
    callback = SobolevCallback(DirectionalTeacher(2, 3), doctor=False, **options)

    class Reads(Step):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    net = mlp()
    errors = torch.einsum("bcd,bd->bc", jacobian(net, X), v) - pushed
    value = errors.square().sum(1).mean() / pushed.square().sum(1).mean()
    assert_is(share(Reads, [(X, Y, v, pushed)], callback), slope(weight * value, net))


@pytest.mark.parametrize("side", SIDES)
def test_stored_derivatives_are_matched_where_they_are_known(side):
    stored = numbers(6, 2, 3, seed=2)
    stored[[1, 4]] = torch.nan
    callback, net = exact(BatchTeacher(jacobian=2), term={"side": side}), mlp()
    known = [0, 2, 3, 5]
    value = distance(jacobian(net, X[known]), stored[known])
    assert_is(share(Step, [(X, Y, stored)], callback), slope(value, net))


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


def test_the_last_report_holds_the_terms():
    callback = exact(term={"weight": 0.5, "name": "slope"})
    fit(Step(), [(X, Y)], callback)
    expected = distance(jacobian(mlp(), X), jacobian(target, X)).detach()
    assert_close(callback.report.terms["slope"].detach(), expected, rtol=1e-10, atol=0)
    assert callback.report.weights == {"slope": 0.5}
