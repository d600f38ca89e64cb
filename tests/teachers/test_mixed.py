"""Laws of second derivatives between two inputs, against the dense Hessian."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import MixedTeacher, SobolevTerm
from tests._laws import assert_unbiased
from tests._reference import parameter_gradients_by_differences
from tests.teachers._labels import Energy, Graphs, evaluated

NAN = float("nan")
ENGINES = pytest.mark.parametrize("engine", ["tape", "func"])
EXACT = SobolevTerm(order=2, projection="basis", num_projections=None, normalize="none")
INDEX = torch.tensor([0, 1, 1, 0, 1, 2])


class Both(nn.Module):
    """An energy of a matrix and a vector for each row."""

    def __init__(self, seed=0):
        super().__init__()
        self.body = Energy(dim=7, seed=seed)

    def forward(self, a, b):
        return self.body(torch.cat([a.flatten(1), b], 1))


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def block(net, a, b):
    """The mixed block for each row, by definition."""
    found = []
    for row_a, row_b in zip(a, b, strict=True):
        (_, mixed), _ = torch.autograd.functional.hessian(
            lambda p, q: net(p[None], q[None])[0], (row_a, row_b), create_graph=True
        )
        found.append(mixed)
    return torch.stack(found)


def block_of_graphs(net, pos, field):
    """The mixed block of every node and its graph's field."""
    (_, mixed), _ = torch.autograd.functional.hessian(
        lambda p, q: net(p, INDEX, q).sum(), (pos, field), create_graph=True
    )
    return mixed[torch.arange(len(pos)), :, INDEX]


@ENGINES
def test_all_directions_together_are_the_whole_block(randn, engine):
    a, b, net = randn(4, 2, 2), randn(4, 3), Both()
    batch = {"x": a, "b": b, "m": -block(Both(seed=1), a, b).detach()}
    batch["m"][0, 1, 0, 2] = batch["m"][1] = NAN
    teacher, where = MixedTeacher("m", scale=-1.0), {"wrt": ["a", "b"], "engine": engine}
    true, gradients = evaluated(teacher, Both(seed=1), batch, "x", "b", **where)
    assert_close(true, torch.zeros_like(true))
    assert_close(gradients, tuple(map(torch.zeros_like, gradients)))
    batch["m"] = batch["m"].nan_to_num()

    def hand():
        return (block(net, a, b) + batch["m"]).square().flatten(1).sum(1).mean()

    found, gradients = evaluated(teacher, net, batch, "x", "b", terms=EXACT, **where)
    assert_close(found, hand().detach())
    expected = parameter_gradients_by_differences(hand, net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)
    term = SobolevTerm(order=2, normalize="none")
    some = [evaluated(teacher, net, batch, "x", "b", terms=term, counter=n, **where)[0]
            for n in range(40)]  # fmt: skip
    assert_unbiased(torch.stack(some), found)


@ENGINES
def test_charges_of_nodes_in_the_field_of_their_graph(randn, engine):
    pos, field, net = randn(6, 2), randn(3, 2), Graphs(field=True)
    mixed = block_of_graphs(Graphs(field=True, seed=1), pos, field).detach()
    batch = {"x": pos, "batch": INDEX, "field": field, "m": mixed}
    names = ("x", "batch", "field")
    where = {"wrt": ["pos", "field"], "groups": "batch", "engine": engine}
    teacher, true = MixedTeacher("m"), Graphs(field=True, seed=1)
    found, gradients = evaluated(teacher, true, batch, *names, **where)
    assert_close(found, torch.zeros_like(found))
    assert_close(gradients, tuple(map(torch.zeros_like, gradients)))

    def hand():
        return (block_of_graphs(net, pos, field) - mixed).square().sum() / 6

    found, gradients = evaluated(teacher, net, batch, *names, terms=EXACT, **where)
    assert_close(found, hand().detach())
    expected = parameter_gradients_by_differences(hand, net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)
    for part in (SobolevTerm(order=2, rows=0.7), SobolevTerm(order=2, average="graph")):
        found, _ = evaluated(teacher, true, batch, *names, terms=part, **where)
        assert_close(found, torch.zeros_like(found))


def test_what_does_not_fit_is_refused(randn):
    a, b = randn(4, 2, 2), randn(4, 3)
    batch = {"x": a, "b": b, "m": randn(4, 3, 2, 2)}
    with pytest.raises(ValueError, match=r"\*first = \[2, 2\] and \*second = \[3\], the inputs in"):
        evaluated(MixedTeacher("m"), Both(), batch, "x", "b", wrt=["a", "b"])
    with pytest.raises(ValueError, match="wrt must be two inputs with MixedTeacher"):
        evaluated(MixedTeacher("m"), Both(), batch, "x", "b", wrt="a")
    with pytest.raises(ValueError, match="must be of order 2"):
        evaluated(MixedTeacher("m"), Both(), batch, "x", "b", wrt=["a", "b"], terms=SobolevTerm())
