"""A derivative that hangs on no graph cannot be trained: it is refused, not taken for zero."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    by_rows,
    distance,
    exact,
    frobenius,
    jacobian,
    mlp,
    numbers,
    refuses,
    share,
    slope,
    target,
)


class Blind(torch.autograd.Function):
    """tanh(x w), whose backward computes in numpy: right values, no graph."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.tanh(x @ w)

    @staticmethod
    def backward(ctx, g):
        x, w, g = (tensor.detach().numpy() for tensor in (*ctx.saved_tensors, g))
        d = g * (1 - np.tanh(x @ w) ** 2)
        return torch.from_numpy(d @ w.T), torch.from_numpy(x.T @ d)


class NoGrad(Blind):
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        with torch.no_grad():
            d = g * (1 - torch.tanh(x @ w) ** 2)
            return d @ w.T, x.T @ d


class Sighted(Blind):
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        d = g * (1 - torch.tanh(x @ w) ** 2)
        return d @ w.T, x.T @ d


class Solver(nn.Module):
    def __init__(self, function, inputs=3):
        super().__init__()
        self.w, self.function = nn.Parameter(numbers(inputs, 2, seed=3)), function

    def forward(self, x):
        return self.function.apply(x, self.w)


class Beside(nn.Module):
    """A second branch gives the sum of both a graph."""

    def __init__(self, function):
        super().__init__()
        self.solver, self.branch = Solver(function), mlp()

    def forward(self, x):
        return self.solver(x) + self.branch(x)


MAKES = {
    "alone": Solver,
    "behind an encoder": lambda function: nn.Sequential(mlp(outputs=2), Solver(function, 2)),
    "before a head": lambda function: nn.Sequential(Solver(function), mlp(inputs=2)),
    "beside a branch": Beside,
}


@pytest.mark.parametrize(
    ("function", "side", "doctor"),
    [
        (Blind, "cotangent", False),
        (Blind, "tangent", True),
        (NoGrad, "cotangent", True),
        (NoGrad, "tangent", False),
    ],
)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_backward_without_a_graph_is_refused(make, function, side, doctor):
    callback = exact(term={"side": side}, doctor=doctor)
    refuses(Step(make(function)), [(X, Y)], callback, "graph|double backward")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_backward_of_ones_own_with_a_graph_is_right(make, side):
    callback = exact(term={"side": side}, doctor=True)
    found = share(lambda: Step(make(Sighted)), [(X, Y)], callback)
    net = make(Sighted)
    assert_is(found, slope(distance(by_rows(net, X), jacobian(target, X)), net))


@pytest.mark.parametrize("side", SIDES)
def test_an_adjoint_solver_is_refused_and_a_taped_one_right(side):
    torchdiffeq = pytest.importorskip("torchdiffeq")

    class Flow(nn.Module):
        def __init__(self, solve):
            super().__init__()
            self.field, self.solve = Field(), solve

        def forward(self, x):
            times = torch.linspace(0, 1, 4, dtype=x.dtype)
            return self.solve(self.field, x, times, method="rk4")[-1]

    refuses(Step(Flow(torchdiffeq.odeint_adjoint)), [(X[:, :2], Y)], exact(term={"side": side}),
            "graph|double backward")  # fmt: skip
    found = share(lambda: Step(Flow(torchdiffeq.odeint)), [(X[:, :2], Y)], exact())
    net = Flow(torchdiffeq.odeint)
    ours, theirs = by_rows(net, X[:, :2]), jacobian(target, X[:, :2])
    assert_is(found, slope(distance(ours, theirs), net))


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(inputs=2)

    def forward(self, t, y):
        return self.net(y)


def test_a_part_that_the_derivative_does_not_hang_on_is_no_fault():
    """The bias of the last layer and a detached branch have no share in any derivative."""

    class Detached(Beside):
        def forward(self, x):
            return self.solver(x.detach()) + self.branch(x)

    found = share(lambda: Step(Detached(NoGrad)), [(X, Y)], exact())
    net = Detached(NoGrad)
    assert_is(found, slope(frobenius(net.branch, target, X), net))
