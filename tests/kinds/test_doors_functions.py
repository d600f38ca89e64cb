"""Students that are called inside torch.func, with scalars first, or from a script."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import mse_loss

from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    exact,
    frobenius,
    mlp,
    numbers,
    refuses,
    share,
    slope,
    target,
)


def slopes(net, x):
    return vmap(grad(lambda row: net(row).sum()))(x)


def jacobians(net, x):
    return vmap(jacrev(net))(x)


def curvatures(net, x):
    return vmap(jacrev(jacrev(lambda row: net(row).sum())))(x)


class Residual(Step):
    """As a physics-informed module: an equation's residual first, then the plain call."""

    inner = staticmethod(slopes)

    def training_step(self, batch, batch_idx):
        residual = self.inner(self.net, batch[0]).square().mean()
        return residual + mse_loss(self.net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("call", "side"),
    [("first", "cotangent"), (0, "tangent"), (-1, "cotangent"), ("all", "tangent")],
)
@pytest.mark.parametrize("inner", [slopes, jacobians, curvatures])
def test_calls_inside_a_transform_are_not_observed(inner, side, call):
    make = type("Residual", (Residual,), {"inner": staticmethod(inner)})
    found, net = share(make, [(X, Y)], exact(term={"side": side}, call=call)), mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


@pytest.mark.parametrize("doctor", [False, True])
def test_the_doctor_is_not_in_the_way_of_a_transform(doctor):
    found, net = share(Residual, [(X, Y)], exact(doctor=doctor)), mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


class Fast(Step):
    """A call with other weights, made of the student's own, and then a plain one."""

    def training_step(self, batch, batch_idx):
        fast = {name: 1.5 * p for name, p in self.net.named_parameters()}
        y = functional_call(self.net, fast, (batch[0],))
        return mse_loss(y, batch[1]) + mse_loss(self.net(batch[0]), batch[1])


@pytest.mark.parametrize("call", ["first", 1, -1, "all"])
@pytest.mark.parametrize("side", SIDES)
def test_a_call_with_other_weights_is_a_call_with_those(side, call):
    found, net = share(Fast, [(X, Y)], exact(term={"side": side}, call=call)), mlp()
    fast = {name: 1.5 * p for name, p in net.named_parameters()}
    with_fast = frobenius(lambda x: functional_call(net, fast, (x,)), target, X)
    plain = frobenius(net, target, X)
    expected = {"first": with_fast, "all": (with_fast + plain) / 2}.get(call, plain)
    assert_is(found, slope(expected, net))


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, t, x):
        return self.body(torch.cos(torch.as_tensor(t, dtype=x.dtype)) * x)


class Flows(Step):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[2], batch[0]), batch[1])


TIMES = {"a scalar tensor": torch.tensor(0.7).double(), "a float": 0.7, "an integer": 1}


@pytest.mark.parametrize("rows", [1.0, 0.9999])  # the second takes all rows in another way
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("time", TIMES.values(), ids=TIMES)
def test_the_input_is_the_first_tensor_with_an_axis(time, side, rows):
    callback = exact(term={"side": side, "rows": rows})
    found, net = share(lambda: Flows(Timed()), [(X, Y, time)], callback), mlp()
    factor = torch.as_tensor(time, dtype=torch.float64).cos()
    assert_is(found, slope(frobenius(lambda x: net(factor * x), target, X), net))


class Scored(nn.Module):
    """Gives its regulariser first, a scalar, and then one row for each of the input's."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body[0].weight.square().mean(), self.body(x)


class Sums(Step):
    def training_step(self, batch, batch_idx):
        penalty, y = self.net(batch[0])
        return penalty + mse_loss(y, batch[1])


@pytest.mark.parametrize("side", SIDES)
def test_the_output_is_the_first_tensor_with_a_row_for_each_input(side):
    callback = exact(term={"side": side})
    found, net = share(lambda: Sums(Scored()), [(X, Y)], callback), mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


def test_a_scripted_student_is_refused_by_name():
    with pytest.warns(DeprecationWarning, match="jit.script"):
        module = Step(torch.jit.script(mlp()))
    refuses(module, [(X, Y)], exact(), "jit.script")


def test_a_traced_student_is_refused_by_name():
    with pytest.warns(DeprecationWarning, match="jit.trace"):
        module = Step(torch.jit.trace(mlp(), numbers(6, 3)))
    refuses(module, [(X, Y)], exact(), "jit")
