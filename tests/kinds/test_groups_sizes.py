"""Graphs of which some have no nodes, calls of different sizes, and lengths that agree by chance.

References are dense derivatives of one graph at a time.
"""

import pytest
import torch
from torch.nn.functional import mse_loss

from lightning_sobolev import DirectionalTeacher, SobolevTerm
from lightning_sobolev._groups import Groups
from lightning_sobolev.loss.compare import Comparison, in_groups
from tests.kinds import _graphs as by_hand
from tests.kinds._by_hand import assert_is, numbers, share, slope
from tests.kinds._graphs import Fit, Scalar, graphs, taught
from tests.kinds.test_groups_doors import FitForces, Forces

KINDS = {"cotangents": {}, "tangents": {"side": "tangent"}, "order 2": {"order": 2}}
AVERAGES = ["node", "graph"]


class Counted(Fit):
    """Says how many graphs there are, of which some have no nodes."""

    def __init__(self):
        super().__init__(Scalar(seed=3))

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["pos"], batch["batch"], len(batch["y"])), batch["y"])


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_without_nodes_count_nothing(kind, average):
    full, teacher, net = graphs(), Scalar(seed=5), Scalar(seed=3)
    batch = {**full, "batch": torch.tensor([0, 2, 3, 5])[full["batch"]], "y": numbers(7)}
    term = {**KINDS[kind], "average": average}
    order = KINDS[kind].get("order", 1)
    expected = slope(by_hand.term(net, full, teacher, order=order, average=average), net)
    assert_is(share(Counted, [batch], taught(teacher, term=term)), expected, 1e-8)


@pytest.mark.parametrize("average", AVERAGES)
def test_columns_of_a_student_that_returns_forces_are_averaged_by_nodes_or_graphs(average):
    batch, net = graphs(), Scalar(seed=3)
    batch |= {"vs": numbers(10, 3, seed=4), "column": numbers(10, 3, seed=5)}
    term = {"side": "tangent", "average": average}
    callback = taught(DirectionalTeacher("vs", "column"), term=term)
    found = share(lambda: FitForces(Forces(3)), [batch], callback)
    squares, sizes = [], []
    for pos, v, column in by_hand.each(batch, "vs", "column"):
        pushed = torch.einsum("iajb,jb->ia", by_hand.derivative(net, pos, 2), v)
        squares.append((-pushed - column).square().sum())
        sizes.append(len(pos))
    assert_is(found, slope(by_hand.mean(squares, sizes, average), net))


class Twice(Fit):
    """Calls the student with two batches of graphs."""

    def __init__(self):
        super().__init__(Scalar(seed=3))

    def training_step(self, batch, batch_idx):
        return sum(mse_loss(self.net(b["pos"], b["batch"]), b["y"]) for b in batch)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_directions_of_several_calls_whose_largest_graphs_differ(kind, average):
    first, second = graphs(), graphs((2, 5, 1), seed=4)
    teacher, net, squares, sizes = Scalar(seed=5), Scalar(seed=3), [], []
    term = {**KINDS[kind], "average": average}
    found = share(Twice, [[first, second]], taught(teacher, call="all", term=term))
    for batch in (first, second):
        for (pos,) in by_hand.each(batch):
            both = (by_hand.derivative(n, pos, KINDS[kind].get("order", 1)) for n in (net, teacher))
            ours, theirs = both
            squares.append((ours - theirs.detach()).square().sum())
            sizes.append(len(pos))
    assert_is(found, slope(by_hand.mean(squares, sizes, average), net), 1e-8)


def test_a_process_with_more_directions_counts_no_more():
    """Sums over processes are those of rows, whatever the largest graph of each is."""
    groups, term = Groups(torch.tensor([0, 0, 1]), 2), SobolevTerm(side="tangent")
    counted = []
    for projections in (6, 9):
        distance = torch.ones(projections, 2, dtype=torch.float64)
        (share_of,) = in_groups(term, Comparison(distance, None), groups).shares
        counted.append(float((share_of.count * distance).sum()))
    assert counted == pytest.approx([3.0, 3.0], rel=1e-12)
