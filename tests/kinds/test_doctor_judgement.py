"""The doctor refuses what is wrong, passes what is right, and says when it could not tell."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.kinds._by_hand import (
    SIDES,
    Step,
    X,
    Y,
    assert_is,
    by_rows,
    distance,
    exact,
    fit,
    jacobian,
    mlp,
    numbers,
    refuses,
    said,
    share,
    slope,
    target,
    weights,
)

KINDS = [(1, "cotangent"), (1, "tangent"), (2, "cotangent")]


class Slope(torch.autograd.Function):
    """The derivative of tanh, whose own derivative is too small by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return 1 - torch.tanh(x).square()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        y = torch.tanh(x)
        return -2 * ctx.factor * g * y * (1 - y.square()), None


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * Slope.apply(x, ctx.factor), None


class Custom(nn.Module):
    def __init__(self, factor, single=False):
        super().__init__()
        net = mlp()
        self.inner, self.outer = net[0], net[2]
        self.factor, self.single = factor, single

    def forward(self, x):
        hidden = self.inner(x)
        if self.single:  # as norms do that compute in float32 whatever comes in
            hidden = (hidden.float() * 1.0).to(x.dtype)
        return self.outer(Tanh.apply(hidden, self.factor))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_a_wrong_double_backward_is_refused(side, single):
    callback = exact(term={"side": side}, doctor=True)
    refuses(Step(Custom(0.5, single)), [(X, Y)], callback, "doctor.*double backward")


@pytest.mark.parametrize("side", SIDES)
def test_a_right_one_passes_and_is_right(side):
    callback = exact(term={"side": side}, doctor=True)
    net = mlp()
    expected = slope(distance(jacobian(net, X), jacobian(target, X)), net)
    found = []
    lines = said(lambda: found.append(share(lambda: Step(Custom(1.0)), [(X, Y)], callback)))
    assert_is(found[0], expected)
    assert any("agrees with" in line for line in lines)
    assert not any("not checked" in line for line in lines)


class Norm(nn.Module):
    """As LLaMA's: float32 inside, whatever comes in."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, h):
        dtype, h = h.dtype, h.float()
        return self.weight * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).to(dtype)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norms = nn.Linear(3, 8), nn.ModuleList([Norm(8), Norm(8)])
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.body = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))
        self.outer = nn.Linear(8, 2)

    def forward(self, x):
        x = self.inner(x)
        h = self.norms[0](x)
        scores = self.query(h) @ self.key(h).transpose(1, 2) / 3
        x = x + torch.softmax(scores, -1, dtype=torch.float32).to(x.dtype) @ self.value(h)
        return self.outer(x + self.body(self.norms[1](x)))


@pytest.mark.filterwarnings("ignore:Sobolev doctor")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("order", "side"), KINDS)
def test_a_student_that_computes_in_float32_inside_is_no_false_alarm(order, side, seed):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = Step(Block())
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1e-4)
    batch = (numbers(3, 4, 3, seed=seed).float(), numbers(3, 4, 2, seed=seed + 50).float())
    term = {"order": order, "side": side, "projection": "sphere", "num_projections": 1}
    fit(module, [batch], exact(doctor=True, term=term), precision="32-true")


class Graph(nn.Module):
    """One layer of messages between nodes; numbers of nodes are in ``edges``."""

    def __init__(self):
        super().__init__()
        net = mlp()
        self.inner, self.outer = net[0], net[2]

    def forward(self, x, edges):
        h = torch.tanh(self.inner(x))
        return self.outer(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


class Nodes(Step):
    def __init__(self):
        super().__init__(Graph())

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0], batch[2]) - batch[1]).square().mean()


EDGES = {
    "a ring": torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]),
    "the first alone": torch.tensor([[2, 3, 5], [1, 4, 5]]),
    "none": torch.zeros(2, 0, dtype=torch.long),
}


@pytest.mark.filterwarnings("ignore:Sobolev doctor")  # it may say that rows are coupled
@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
def test_a_graph_of_nodes_survives_the_doctor_and_is_right(edges):
    found = share(Nodes, [(X, Y, edges)], exact(doctor=True))
    net = Graph()
    ours = by_rows(lambda x: net(x, edges), X)
    assert_is(found, slope(distance(ours, jacobian(target, X)), net))


class Length(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4, bias=False).double(), nn.Linear(1, 2).double()

    def forward(self, x):
        return self.outer(self.inner(x).norm(dim=-1, keepdim=True).square())


@pytest.mark.parametrize("side", SIDES)
def test_a_norm_at_zero_in_its_rows_is_named_as_what_it_is(side):
    x = torch.cat([torch.zeros(1, 3).double(), X[1:]])
    module = Step(Length())
    before = weights(module)
    with pytest.raises((ValueError, FloatingPointError), match="zero") as caught:
        fit(module, [(x, Y)], exact(doctor=True, term={"side": side}))
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "fused" not in text
    assert "nan%" not in text
    assert_close(weights(module), before, rtol=0, atol=0)
