"""Compiled parts of a student: right, or an error that says what to do; slow, for it compiles."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import jacfwd, jacrev, vmap
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import CompileSettings
from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    descend,
    distance,
    exact,
    fit,
    frobenius,
    jacobian,
    mlp,
    share,
    slope,
    target,
    weights,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, t):
        return self.body(x * (1.0 + t))


class Flows(Step):
    def __init__(self):
        super().__init__(Timed())

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0], 0.01 * batch_idx), batch[1])


@pytest.mark.parametrize("side", SIDES)
def test_a_float_that_changes_each_step_falls_back_to_the_tape(side):
    """A compiler makes a graph for each value, and has a limit of them."""
    settings = CompileSettings(backend="aot_eager", uncompilable="tape")
    module, net, steps = Flows(), mlp(), 12
    callback = exact(term={"side": side, "weight": 0.1}, compile=settings)
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, [(X, Y)] * steps, callback)
    told = [str(w.message) for w in caught if str(w.message).startswith("compile:")]
    assert told
    assert sum("tape" in text for text in told) <= 1

    def loss(t):
        def at(x):
            return net(x * (1.0 + t))

        return mse_loss(at(X), Y) + 0.1 * frobenius(at, target, X)

    expected = descend(net, *[lambda number=n: loss(0.01 * number) for n in range(steps)])
    assert_close(weights(module), expected, rtol=1e-8, atol=1e-10)


def act(z):
    return torch.tanh(z) * z.sigmoid()


class Inside(nn.Module):
    """A compiled function (not a module) in the middle of the forward."""

    def __init__(self, compiled=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        self.act = torch.compile(act, backend="aot_eager") if compiled else act

    def forward(self, x):
        return self.outer(self.act(self.inner(x)))


def hessian(f, x):
    """Return the second derivatives, [batch, out, in * in]."""
    return vmap(jacfwd(jacrev(f)))(x).flatten(2)


@pytest.mark.parametrize("doctor", [False, True])
@pytest.mark.parametrize(("order", "side"), [(1, "cotangent"), (1, "tangent"), (2, "cotangent")])
def test_a_compiled_function_inside_is_right_or_says_what_to_do(order, side, doctor):
    torch._dynamo.reset()
    callback = exact(term={"order": order, "side": side}, doctor=doctor)
    try:
        found = share(lambda: Step(Inside()), [(X, Y)], callback)
    except (RuntimeError, ValueError) as error:
        text = "\n".join([str(error), *getattr(error, "__notes__", [])])
        assert "uncompiled" in text, text
        return
    net, derivative = Inside(compiled=False), hessian if order == 2 else jacobian
    assert_is(found, slope(distance(derivative(net, X), derivative(target, X)), net), 1e-8)
