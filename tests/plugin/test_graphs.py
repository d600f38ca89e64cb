"""Which graphs are alive when."""

import weakref

import torch
from torch import nn

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points


class Sentinel:
    """Lives as long as the node of the graph that holds it."""


class Marked(torch.autograd.Function):
    """The identity; says when it is differentiated, and puts something into its node."""

    @staticmethod
    def forward(ctx, x, differentiated):
        ctx.differentiated, ctx.sentinel = differentiated, Sentinel()
        differentiated.nodes.append(weakref.ref(ctx.sentinel))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.differentiated()
        return gradient, None


class Mark:
    """Remembers the nodes of one network, and which nodes of another were alive at its backward."""

    def __init__(self, other=None):
        self.nodes, self.other, self.alive = [], other, []

    def __call__(self):
        if self.other is not None:
            self.alive.append(sum(node() is not None for node in self.other.nodes))


class Net(nn.Module):
    def __init__(self, mark, seed):
        super().__init__()
        self.body, self.mark = mlp(3, 2, seed=seed), mark

    def forward(self, x):
        return self.body(Marked.apply(x, self.mark))


def test_the_graph_of_the_teacher_is_gone_when_the_student_is_differentiated():
    asked = Mark()
    differentiated = Mark(asked)
    terms = [SobolevTerm(), SobolevTerm(num_projections=3, name="more")]
    used = SobolevCallback(Net(asked, 7), SobolevSpec(terms=terms), engine="tape", doctor=False)
    fit(Regressor(Net(differentiated, 1)), points(size=8), used)
    assert len(asked.nodes) == 1  # one forward of the teacher for both terms
    # one pull of the first term, three of the second, and the outer backward pass
    assert differentiated.alive[:4] == [0, 0, 0, 0]
