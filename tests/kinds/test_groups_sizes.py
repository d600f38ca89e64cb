"""Graphs of which some have no nodes, calls of different sizes, and lengths that agree by chance.

References are dense derivatives of one graph at a time.
"""

from itertools import combinations

import pytest
import torch
from torch import nn
from torch.func import jacrev
from torch.nn.functional import mse_loss

from lightning_sobolev import BatchTeacher, DirectionalTeacher, NetworkTeacher, SobolevTerm
from lightning_sobolev._groups import Groups
from lightning_sobolev.loss.compare import Comparison
from lightning_sobolev.loss.reduce import in_groups
from tests.kinds import _graphs as by_hand
from tests.kinds._by_hand import assert_is, numbers, refuses, share, slope, weights
from tests.kinds._graphs import Fit, Scalar, graphs, taught
from tests.kinds.test_groups import FitStrained, Strained, strained_slopes
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


# Lengths that agree by chance, in a batch behind others


class Tables(nn.Module):
    """Energies along edges, with a table for each kind of row and one that has none."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, pos, batch, z, edges, strength, cell, kinds):
        i, j = edges
        apart = torch.einsum("ea,eab->eb", pos[i] - pos[j], cell.reshape(-1, 3, 3)[batch[i]])
        given = torch.stack([strength, kinds[z[i]], pos[i].sum(1)], 1)
        sent = self.net(torch.cat([apart, given], 1))[:, 0]
        return sent.new_zeros(len(cell) // 3).index_add(0, batch[i], sent)


class FitTables(Fit):
    def __init__(self):
        super().__init__(Tables())

    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(*(batch[name] for name in NAMES)).sum()


NAMES = ("pos", "batch", "z", "edges", "strength", "cell", "kinds")
# By graph: its nodes, and its edges; then: as many edges as nodes, three times as many nodes as
# graphs, three times as many edges as graphs, as many nodes as kinds, all at once.
BATCHES = {
    "different": ((3, 2, 4, 2), (4, 2, 5, 2)),
    "edges": ((3, 2, 4, 2), (2, 1, 6, 2)),
    "cells": ((4, 2, 5, 1), (4, 2, 5, 3)),
    "edges and cells": ((3, 2, 4, 2), (4, 2, 5, 1)),
    "kinds": ((2, 2, 1, 2), (3, 2, 1, 2)),
    "all": ((5, 2, 3, 2), (2, 5, 1, 4)),
}


def tables(nodes, edges, seed=0):
    index = torch.repeat_interleave(torch.arange(len(nodes)), torch.tensor(nodes))
    generator, start, pairs = torch.Generator().manual_seed(seed), 0, []
    for size, count in zip(nodes, edges, strict=True):
        pairs.append(start + torch.randint(size, (2, count), generator=generator))
        start += size
    return {
        "pos": numbers(len(index), 3, seed=seed), "batch": index, "edges": torch.cat(pairs, 1),
        "z": torch.randint(7, (len(index),), generator=generator),
        "strength": numbers(sum(edges), seed=seed + 2),
        "cell": numbers(3 * len(nodes), 3, seed=seed + 3), "kinds": numbers(7, seed=99),
        "grad": numbers(len(index), 3, seed=seed + 4), "y": numbers(len(nodes)),
    }  # fmt: skip


def halves(net, batch):
    """Yield the term's gradient for each two of the graphs."""
    pos = batch["pos"].clone().requires_grad_()
    energy = net(pos, *(batch[name] for name in NAMES[1:])).sum()
    (found,) = torch.autograd.grad(energy, pos, create_graph=True)
    squares = (found - batch["grad"]).square().sum(1)
    for pair in combinations(range(4), 2):
        own = sum(batch["batch"] == number for number in pair).bool()
        parameters = list(net.parameters())
        slopes = torch.autograd.grad(
            squares[own].mean(), parameters, retain_graph=True, materialize_grads=True
        )
        yield torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize("last", BATCHES)
@pytest.mark.parametrize("first", ["different", "kinds", "all"])
def test_tables_are_cut_as_what_they_are(first, last):
    batches = [tables(*BATCHES[name], seed=seed) for seed, name in enumerate((first, last))]
    callback = taught(BatchTeacher("grad"), term={"rows": 0.5})
    make, moved = FitTables, share(FitTables, batches[:1], callback)
    callback = taught(BatchTeacher("grad"), term={"rows": 0.5})
    found = share(make, batches, callback) - moved
    net = Tables()
    torch.nn.utils.vector_to_parameters(weights(net) - moved, net.parameters())
    distances = [float((found - one).norm() / found.norm()) for one in halves(net, batches[1])]
    assert min(distances) < 1e-9, distances


# As many nodes as graphs


def stored_of_itself(batch, count):
    """Return the batch with the student's own gradients and as many graphs."""
    pos, net = batch["pos"].clone().requires_grad_(), Scalar(seed=3)
    energy = net(pos, batch["batch"], count)
    (gradient,) = torch.autograd.grad(energy.sum(), pos)
    return {**batch, "grad": gradient, "y": energy.detach()}


@pytest.mark.parametrize("groups", ["batch", None])
@pytest.mark.parametrize("index", [[2, 0, 3, 1], [0, 0, 1, 3], [0, 0, 1, 1]])
def test_as_many_graphs_as_nodes_behind_another_batch(index, groups):
    batch = {"pos": numbers(4, 3), "batch": torch.tensor(index)}
    batches = [stored_of_itself(graphs(), 4), stored_of_itself(batch, 4)]
    term = {"projection": "rademacher", "num_projections": 1}
    found = share(Counted, batches, taught(BatchTeacher("grad"), term=term, groups=groups))
    assert found.abs().max() < 1e-12


def strained(index, count):
    batch = {"pos": numbers(len(index), 3), "batch": torch.tensor(index)}
    batch |= {"strain": 0.1 * numbers(count, 3, 3, seed=9)}
    net = Strained(seed=3)
    slopes = strained_slopes(net, batch)
    batch |= {"grad": slopes[0].detach(), "virial": slopes[1].detach()}
    return {**batch, "y": net(batch["pos"], batch["strain"], batch["batch"]).detach()}


STRESS = BatchTeacher(["grad", "virial"])


@pytest.mark.parametrize("index", [[1, 0, 3, 2], [0, 0, 1, 3]])
def test_inputs_of_nodes_and_graphs_that_cannot_be_told_apart_are_refused(index):
    callback = taught(STRESS, wrt=["pos", "strain"])
    refuses(FitStrained(), [strained(index, 4)], callback, "that can be told apart, got 4 of both")


def test_graphs_of_one_node_each_have_strains_as_well():
    term = {"projection": "rademacher", "num_projections": 1}
    callback = taught(STRESS, wrt=["pos", "strain"], term=term)
    batches = [strained([0, 0, 1], 2), strained([0, 1, 2, 3], 4)]
    assert share(FitStrained, batches, callback).abs().max() < 1e-12


class Told(Scalar):
    """Is told how many graphs there are, and a number that may be the same by chance."""

    def forward(self, pos, batch, count, power=4):
        return super().forward(pos, batch, count) * (1.0 + 0.1 * power)


class FitTold(Fit):
    def __init__(self):
        super().__init__(Told(seed=3))

    def training_step(self, batch, batch_idx):
        sizes = {"count": len(batch["y"]), "power": 4}
        return mse_loss(self.net(batch["pos"], batch["batch"], **sizes), batch["y"])


def test_a_number_of_graphs_is_cut_and_another_number_is_not():
    batch, asked = graphs(), []

    class Spy(NetworkTeacher):
        def at(self, query):
            asked.append(query.groups.numbers)
            return super().at(query)

    callback = taught(Spy(Told(seed=5)), term={"rows": 0.5})
    found, net, other = share(FitTold, [batch], callback), Told(seed=3), Told(seed=5)
    chosen, squares, nodes = asked[-1].tolist(), 0.0, 0
    assert len(chosen) == 2
    for number, (pos,) in enumerate(by_hand.each(batch)):
        if number in chosen:
            own = torch.zeros(len(pos), dtype=torch.long)
            ours, theirs = (jacrev(lambda p, n=n, i=own: n(p, i, 1)[0])(pos) for n in (net, other))
            squares = squares + (ours - theirs.detach()).square().sum()
            nodes += len(pos)
    assert_is(found, slope(squares / nodes, net), 1e-8)
