"""Output rows that belong to several input rows: graphs whose nodes stand in one flat table.

References are dense derivatives of one graph at a time.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    BatchTeacher,
    NetworkTeacher,
    SobolevLoss,
    SobolevSpec,
    SobolevTerm,
)
from tests.kinds import _graphs as by_hand
from tests.kinds._by_hand import EXACT, RANDOM, Step, assert_is, numbers, share, slope
from tests.kinds._graphs import SIZES, Energy, Fit, Scalar, graphs, index_of, taught

KINDS = {
    "cotangents": {},
    "tangents": {"side": "tangent"},
    "order 2": {"order": 2},
}
ENGINES = ("tape", "func")


def student():
    return Fit(Scalar(seed=3))


def other():
    return Scalar(seed=5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("average", ["node", "graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_dense_derivatives_graph_by_graph(kind, average, engine):
    batch, teacher = graphs(), other()
    callback = taught(
        NetworkTeacher(teacher), term={**KINDS[kind], "average": average}, engine=engine
    )
    found = share(student, [batch], callback)
    net, order = Scalar(seed=3), KINDS[kind].get("order", 1)
    value = by_hand.term(net, batch, teacher, order=order, average=average)
    assert_is(found, slope(value, net), 1e-8)


@pytest.mark.parametrize("kind", ["cotangents", "tangents"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_stored_derivatives_have_a_row_for_each_node(outputs, kind):
    batch = graphs(outputs=outputs)
    make = (lambda: Fit(Energy(2, seed=3))) if outputs == 2 else student
    found = share(make, [batch], taught(BatchTeacher(jacobian="grad"), term=KINDS[kind]))
    net = make().net
    assert_is(found, slope(by_hand.term(net, batch), net))


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_student_is_left_alone(kind):
    batch = graphs()
    found = share(student, [batch], taught(NetworkTeacher(Scalar(seed=3)), term=KINDS[kind]))
    assert found.abs().max() < 1e-12


@pytest.mark.parametrize("directions", [EXACT, RANDOM], ids=["exact", "random"])
def test_stored_gradients_of_the_student_itself_leave_it_alone(directions):
    batch = graphs()
    pieces = [by_hand.derivative(Scalar(seed=3), pos) for (pos,) in by_hand.each(batch)]
    batch["grad"] = torch.cat(pieces).detach()
    found = share(student, [batch], taught(BatchTeacher(jacobian="grad"), term=directions))
    assert found.abs().max() < 1e-12


@pytest.mark.parametrize("law", ["sphere", "gaussian", "rademacher", "basis"])
@pytest.mark.parametrize("kind", KINDS)
def test_random_directions_are_unbiased(kind, law):
    batch, teacher, net = graphs(), other(), Scalar(seed=3)
    count = 1 if law == "basis" and kind != "tangents" else 2  # an energy is one number
    term = SobolevTerm(projection=law, num_projections=count, normalize="none", **KINDS[kind])
    values = []
    for seed in range(60):
        loss = SobolevLoss(teacher, SobolevSpec(terms=[term]), seed=seed)
        with loss.observe(net, groups="batch"):
            net(batch["pos"], batch["batch"])
        values.append(loss(batch=batch).loss.detach())
    found = torch.stack(values)
    exact = by_hand.term(net, batch, teacher, order=KINDS[kind].get("order", 1)).detach()
    error = found.std() / len(found) ** 0.5
    assert (found.mean() - exact).abs() < 4.0 * error + 1e-9


# What must not matter


def permuted(batch, nodes, order):
    """Renumber graphs, then put their nodes in another order."""
    back = torch.argsort(order)
    return {
        "pos": batch["pos"][nodes], "batch": back[batch["batch"]][nodes], "y": batch["y"][order],
        "grad": batch["grad"][nodes],
    }  # fmt: skip


@pytest.mark.parametrize("average", ["node", "graph"])
@pytest.mark.parametrize("kind", ["cotangents", "tangents"])
def test_the_order_of_nodes_and_graphs_does_not_matter(kind, average):
    batch = graphs()
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randperm(len(batch["pos"]), generator=generator)
    order = torch.randperm(len(SIZES), generator=generator)
    term = {**KINDS[kind], "average": average}
    callback = lambda: taught(BatchTeacher(jacobian="grad"), term=term)  # noqa: E731
    found = share(student, [permuted(batch, nodes, order)], callback())
    assert_is(found, share(student, [batch], callback()))


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_one_node_are_rows(kind):
    batch, teacher = graphs((1, 1, 1, 1, 1)), other()
    found = share(student, [batch], taught(teacher, term=KINDS[kind]))
    assert_is(found, share(student, [batch], taught(teacher, term=KINDS[kind], groups=None)))


def test_a_graph_twice_as_large_weighs_twice_by_nodes_and_once_by_graphs():
    batch = graphs((2, 4))
    net = Scalar(seed=3)
    errors = [
        (by_hand.derivative(net, pos) - stored).square().sum().detach()
        for pos, stored in by_hand.each(batch, "grad")
    ]
    expected = {"node": sum(errors) / 6, "graph": (errors[0] / 2 + errors[1] / 4) / 2}
    for average, value in expected.items():
        spec = SobolevSpec(terms=[SobolevTerm(**EXACT, average=average)])
        loss = SobolevLoss(BatchTeacher(jacobian="grad"), spec)
        with loss.observe(net, groups="batch"):
            net(batch["pos"], batch["batch"])
        assert_close(loss(batch=batch).loss.detach(), value)


# What is unknown


def test_unknown_nodes_are_left_out():
    batch, net = graphs(), Scalar(seed=3)
    batch["grad"][[1, 4, 5]] = torch.nan
    found = share(student, [batch], taught(BatchTeacher(jacobian="grad")))
    known, squares = ~batch["grad"].isnan().any(1), []
    for pos, stored, is_known in by_hand.each({**batch, "known": known}, "grad", "known"):
        error = by_hand.derivative(net, pos) - stored
        squares.append(error[is_known].square().sum())
    assert_is(found, slope(torch.stack(squares).sum() / known.sum(), net))


@pytest.mark.filterwarnings("ignore:.*known")
def test_a_batch_of_which_nothing_is_known_is_zero():
    batch = graphs()
    batch["grad"][:] = torch.nan
    assert share(student, [batch], taught(BatchTeacher(jacobian="grad"))).abs().max() == 0.0


# Some of the graphs


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_rows_is_a_part_of_the_graphs(kind):
    batch, asked = graphs(), []

    class Spy(NetworkTeacher):
        def at(self, query):
            asked.append(query)
            return super().at(query)

    found = share(student, [batch], taught(Spy(other()), term={**KINDS[kind], "rows": 0.5}))
    chosen, net = asked[-1].groups.numbers, Scalar(seed=3)
    assert len(chosen) == 2
    part = {"pos": [], "batch": [], "grad": []}
    for number, (pos, stored) in enumerate(by_hand.each(batch, "grad")):
        if number in chosen:
            part["pos"].append(pos)
            part["grad"].append(stored)
            part["batch"].append(torch.full((len(pos),), len(part["batch"])))
    part = {name: torch.cat(tables) for name, tables in part.items()}
    value = by_hand.term(net, part, other(), order=KINDS[kind].get("order", 1))
    assert_is(found, slope(value, net), 1e-8)


class Edges(nn.Module):
    """Messages along edges, numbers of nodes; the graph of each node in the batch object."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, data):
        pos, (i, j) = data["pos"], data["edge_index"]
        apart = pos[i] - pos[j]
        sent = self.net(torch.cat([apart, data["strength"][:, None]], 1))[:, 0] * data["z"][i]
        count = len(data["charge"])
        energy = sent.new_zeros(count).index_add(0, data["batch"][i], sent)
        return {"energy": energy * data["charge"], "forces": None}


def edges_of(index):
    same = (index[:, None] == index[None]) & ~torch.eye(len(index), dtype=torch.bool)
    return same.nonzero().T


@pytest.mark.parametrize("rows", [1.0, 0.5])
def test_edges_and_tables_are_cut_with_the_graphs(rows):
    sizes = (3, 2, 4, 2)
    index = index_of(sizes)
    edges = edges_of(index)
    batch = {
        "pos": numbers(11, 3), "z": numbers(11, seed=1), "charge": numbers(4, seed=2),
        "strength": numbers(edges.shape[1], seed=3), "edge_index": edges, "batch": index,
        "grad": numbers(11, 3, seed=4),
    }  # fmt: skip

    class Alone(Fit):
        def training_step(self, batch, batch_idx):
            return 0.0 * self.net(batch)["energy"].sum()

    teacher = BatchTeacher(jacobian="grad")
    options = {
        "wrt": "data.pos",
        "groups": "data.batch",
        "output": "energy",
        "term": {"rows": rows},
    }
    found = share(lambda: Alone(Edges(3)), [batch], taught(teacher, **options))
    net, squares = Edges(3), []
    pos = batch["pos"].clone().requires_grad_()
    slopes = torch.autograd.grad(net({**batch, "pos": pos})["energy"].sum(), pos, create_graph=True)
    errors = (slopes[0] - batch["grad"]).square().sum(1)
    squares = torch.stack([errors[index == g].sum() for g in range(4)])
    candidates = []
    for chosen in torch.combinations(torch.arange(4), 2 if rows < 1.0 else 4):
        nodes = sum(sizes[g] for g in chosen)
        candidates.append(slope_of(squares[chosen].sum() / nodes, net))
    distances = [float((found - candidate).norm() / found.norm()) for candidate in candidates]
    assert min(distances) < 1e-10, distances
    assert found.norm() > 1e-3


def slope_of(value, net):
    found = torch.autograd.grad(
        value, list(net.parameters()), retain_graph=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in found]).detach()


# Several inputs with different numbers of rows


class Strained(Scalar):
    """Energies of positions and of a strain of each graph; the strain's derivative is stress."""

    def forward(self, pos, strain, batch):
        moved = pos + torch.einsum("nab,nb->na", strain[batch], pos)
        return super().forward(moved, batch, len(strain))


class FitStrained(Step):
    def __init__(self, seed=3):
        super().__init__(Strained(seed=seed))

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["pos"], batch["strain"], batch["batch"]), batch["y"])


def strained_batch():
    batch = graphs()
    return {**batch, "strain": 0.1 * numbers(4, 3, 3, seed=9), "virial": numbers(4, 3, 3, seed=10)}


def strained_slopes(net, batch):
    """Return the derivatives in the positions and in the strains."""
    pos, strain = (batch[name].clone().requires_grad_() for name in ("pos", "strain"))
    energy = net(pos, strain, batch["batch"]).sum()
    return torch.autograd.grad(energy, (pos, strain), create_graph=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("average", ["node", "graph"])
def test_forces_and_stress_at_once(average, engine):
    batch, net = strained_batch(), Strained(seed=3)
    teacher = BatchTeacher(jacobian=["grad", "virial"])
    term = {"average": average}
    callback = taught(teacher, wrt=["pos", "strain"], term=term, engine=engine)
    found = share(FitStrained, [batch], callback)
    of_pos, of_strain = strained_slopes(net, batch)
    at_nodes = (of_pos - batch["grad"]).square().sum(1)
    weight = torch.full((10,), 0.1, dtype=torch.float64)
    if average == "graph":
        weight = (1.0 / torch.tensor(SIZES).double())[batch["batch"]] / 4
    value = (weight * at_nodes).sum() + (of_strain - batch["virial"]).square().sum((1, 2)).mean()
    assert_is(found, slope(value, net))


def test_units_of_forces_and_stress_differ():
    batch, net = strained_batch(), Strained(seed=3)
    of_pos, of_strain = strained_slopes(net, batch)
    batch["forces"], batch["pressure"] = -of_pos.detach() / 27.0, -of_strain.detach() / 160.0
    teacher = BatchTeacher(forces=["forces", "pressure"], scale=[27.0, 160.0])
    found = share(FitStrained, [batch], taught(teacher, wrt=["pos", "strain"]))
    assert found.abs().max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_teacher_answers_for_several_inputs(kind):
    batch, teacher = strained_batch(), Strained(seed=5)
    found = share(FitStrained, [batch], taught(teacher, wrt=["pos", "strain"], term=KINDS[kind]))
    assert found.norm() > 1e-3
    same = share(
        FitStrained, [batch], taught(Strained(seed=3), wrt=["pos", "strain"], term=KINDS[kind])
    )
    assert same.abs().max() < 1e-12


# Values of each node


class Nodes(Scalar):
    """Energies of the nodes, which depend on their neighbors."""

    def forward(self, pos, batch):
        return self.nodes(pos, batch)[:, 0]


class FitNodes(Fit):
    def __init__(self, seed=3):
        super().__init__(Nodes(seed=seed))

    def training_step(self, batch, batch_idx):
        energy = self.net(batch["pos"], batch["batch"])
        return mse_loss(torch.zeros(4).double().index_add(0, batch["batch"], energy), batch["y"])


def test_the_gradient_of_a_graph_reaches_a_student_that_answers_for_each_node():
    batch = graphs()
    found = share(FitNodes, [batch], taught(BatchTeacher(jacobian="grad")))
    net = Scalar(seed=3)
    assert_is(found, slope(by_hand.term(net, batch), net))


@pytest.mark.parametrize("kind", ["cotangents", "tangents"])
def test_a_teacher_that_answers_for_each_node(kind):
    batch, net, teacher = graphs(), Nodes(seed=3), Nodes(seed=5)
    found = share(FitNodes, [batch], taught(teacher, term=KINDS[kind]))
    squares, sizes = [], []
    for (pos,) in by_hand.each(batch):
        own = torch.zeros(len(pos), dtype=torch.long)
        ours, theirs = (torch.func.jacrev(partial(n, batch=own))(pos) for n in (net, teacher))
        squares.append((ours - theirs.detach()).square().sum())
        sizes.append(len(pos))
    assert_is(found, slope(by_hand.mean(squares, sizes), net), 1e-8)
