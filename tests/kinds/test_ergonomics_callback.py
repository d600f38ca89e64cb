"""The callback in few words: a weight, a teacher in the batch, numbers in validation."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    DirectionalTeacher,
    SobolevCallback,
    SobolevSpec,
)
from tests.kinds._by_hand import (
    RANDOM,
    SIDES,
    Overheard,
    Step,
    X,
    Y,
    along,
    assert_all_differ,
    assert_is,
    descend,
    distance,
    exact,
    fit,
    jacobian,
    mlp,
    numbers,
    share,
    slope,
    target,
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


@pytest.mark.parametrize("side", SIDES)
def test_each_step_has_random_directions_of_its_own(side):
    teacher, module, net = Overheard(), Step(), mlp()
    term = {**RANDOM, "side": side, "weight": 0.1}
    fit(module, [(X, Y)] * 4, exact(teacher, term=term))
    assert_all_differ(teacher.along)
    losses = [lambda u=u: mse_loss(net(X), Y) + 0.1 * along(u, side, net, X) for u in teacher.along]
    assert_close(weights(module), descend(net, *losses), rtol=1e-9, atol=1e-11)


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


def test_the_last_report_holds_the_terms():
    callback = exact(term={"weight": 0.5, "name": "slope"})
    fit(Step(), [(X, Y)], callback)
    expected = distance(jacobian(mlp(), X), jacobian(target, X)).detach()
    assert_close(callback.report.terms["slope"].detach(), expected, rtol=1e-10, atol=0)
    assert callback.report.weights == {"slope": 0.5}
