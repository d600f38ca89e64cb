"""Laws of stored Hessian-vector products, Jacobian-vector products and their adjoints."""

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, DirectionalTeacher, SobolevTerm
from lightning_sobolev._groups import Groups
from lightning_sobolev._types import Query
from tests._laws import assert_unbiased
from tests._reference import dense_hessian, dense_jacobian, parameter_gradients_by_differences
from tests.teachers._labels import Energy, Forces, Graphs, evaluated, flat_hessians

NAN = float("nan")
INDEX = torch.tensor([0, 1, 1, 0, 1, 2, 2, 0])  # rows of a graph need not be neighbors
ENGINES = pytest.mark.parametrize("engine", ["tape", "func"])
PLAIN = SobolevTerm(order=2, normalize="none")


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def rows(randn):
    """Rows with two stored products of the Hessian of another function."""
    x, v = randn(4, 3), randn(4, 2, 3)
    hv = torch.einsum("bij,bsj->bsi", dense_hessian(Energy(seed=1), x), v)
    return {"x": x, "v": v, "hv": hv}


@pytest.fixture
def graphs(randn):
    """Graphs of different size with two stored products of the Hessian of each."""
    pos, v = randn(8, 2), randn(8, 2, 2)
    hv = torch.empty_like(v)
    for graph, hessian in enumerate(flat_hessians(Graphs(seed=1), pos, INDEX)):
        own = graph == INDEX
        for stored in range(2):
            product = hessian @ v[own, stored].flatten()
            hv[own, stored] = product.reshape(-1, 2)
    return {"x": pos, "batch": INDEX, "v": v, "hv": hv}


def by_hand(net, batch):
    """Mean squared error of H v, row by row, through the dense Hessian."""
    ours = torch.einsum("bij,bsj->bsi", dense_hessian(net, batch["x"]), batch["v"].nan_to_num())
    known = ~batch["hv"].isnan() & ~batch["v"].isnan().any(-1, keepdim=True)
    errors = torch.where(known, ours - batch["hv"].nan_to_num(), 0.0).square().sum(-1)
    return errors.sum() / known.any(-1).sum()


def of_graphs_by_hand(net, batch):
    total, count = 0.0, 0
    for graph, hessian in enumerate(flat_hessians(net, batch["x"], INDEX)):
        own = graph == INDEX
        for stored in range(2):
            target, v = batch["hv"][own, stored], batch["v"][own, stored]
            known = ~target.isnan() & ~v.isnan().any()
            ours = (hessian @ v.nan_to_num().flatten()).reshape(-1, 2)
            total = total + torch.where(known, ours - target.nan_to_num(), 0.0).square().sum()
            count += int(known.any(-1).sum())
    return total / count


@ENGINES
def test_products_of_the_hessian_are_matched(rows, engine):
    net = Energy()
    rows["hv"][0, 1, 2] = rows["hv"][1, 0] = rows["v"][2, 1, 0] = NAN
    teacher = DirectionalTeacher("v", "hv", order=2)
    found, gradients = evaluated(teacher, net, rows, terms=PLAIN, engine=engine)
    assert_close(found, by_hand(net, rows))
    expected = parameter_gradients_by_differences(lambda: by_hand(net, rows), net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)
    every = SobolevTerm(order=2, projection="basis", num_projections=None, normalize="none")
    assert_close(evaluated(teacher, net, rows, terms=every, engine=engine)[0], found)


@ENGINES
@pytest.mark.parametrize("groups", ["batch", None])
def test_products_of_graphs_of_different_size_are_matched(graphs, engine, groups):
    net, teacher = Graphs(), DirectionalTeacher("v", "hv", order=2)
    graphs["hv"][0, 1, 0] = graphs["hv"][5, 0] = graphs["v"][1, 1, 1] = NAN
    where = {"terms": PLAIN, "engine": engine, "groups": groups}
    found, gradients = evaluated(teacher, net, graphs, "x", "batch", **where)
    assert_close(found, of_graphs_by_hand(net, graphs))
    expected = parameter_gradients_by_differences(lambda: of_graphs_by_hand(net, graphs), net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)


@ENGINES
def test_the_right_student_is_at_zero(rows, graphs, engine):
    teacher = DirectionalTeacher("v", "hv", order=2, per_step=1)
    rows["hv"][0, 1], graphs["hv"][0] = NAN, NAN
    for net, batch, names in ((Energy(seed=1), rows, "x"), (Graphs(seed=1), graphs, "x batch")):
        found, gradients = evaluated(teacher, net, batch, *names.split(), engine=engine)
        assert_close(found, torch.zeros_like(found))
        assert_close(gradients, tuple(map(torch.zeros_like, gradients)))


@ENGINES
def test_order_1_on_forces_is_order_2_on_energies(graphs, engine):
    """The sign of a column of the energy's Hessian is that of minus the forces' derivative."""
    energy = Graphs()
    second = DirectionalTeacher("v", "hv", order=2)
    first = DirectionalTeacher("v", "hv", scale=-1.0)
    where = {"engine": engine, "groups": "batch"}
    term = SobolevTerm(side="tangent", normalize="none")
    expected = evaluated(second, energy, graphs, "x", "batch", terms=PLAIN, **where)
    found = evaluated(first, Forces(energy), graphs, "x", "batch", terms=term, **where)
    assert_close(found, expected)
    graphs["v"][0, 0, 0] = NAN  # every node of the graph moves with it
    expected = evaluated(second, energy, graphs, "x", "batch", terms=PLAIN, **where)
    found = evaluated(first, Forces(energy), graphs, "x", "batch", terms=term, **where)
    assert_close(found, expected)


@ENGINES
def test_flat_ragged_hessians_are_matched(graphs, engine):
    """All basis directions together are the whole Hessian."""
    hessians = flat_hessians(Graphs(seed=1), graphs["x"], INDEX)
    graphs["h"] = torch.cat([hessian.flatten() for hessian in hessians])
    teacher, net = BatchTeacher(hessian="h"), Graphs()
    where = {"engine": engine, "groups": "batch"}
    found, gradients = evaluated(
        teacher, Graphs(seed=1), graphs, "x", "batch", terms=PLAIN, **where
    )
    assert_close(found, torch.zeros_like(found))
    assert_close(gradients, tuple(map(torch.zeros_like, gradients)))
    every = SobolevTerm(order=2, normalize="none", num_projections=None, projection="basis")
    found, gradients = evaluated(teacher, net, graphs, "x", "batch", terms=every, **where)

    def whole():
        ours = flat_hessians(net, graphs["x"], INDEX)
        return sum((a - b).square().sum() for a, b in zip(ours, hessians, strict=True)) / 8

    assert_close(found, whole().detach())
    expected = parameter_gradients_by_differences(whole, net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)


def test_unknown_entries_of_flat_hessians_are_left_out(graphs):
    hessians = flat_hessians(Graphs(seed=1), graphs["x"], INDEX)
    hessians[1][2, 3] = NAN  # the second number of the second node of its graph
    graphs["h"] = torch.cat([hessian.flatten() for hessian in hessians])
    net = Graphs(seed=1)
    found, _ = evaluated(
        BatchTeacher(hessian="h"), net, graphs, "x", "batch", terms=PLAIN, groups="batch"
    )
    assert_close(found, torch.zeros_like(found))
    graphs["h"] = graphs["h"].nan_to_num(nan=7.0)
    found, _ = evaluated(
        BatchTeacher(hessian="h"), net, graphs, "x", "batch", terms=PLAIN, groups="batch"
    )
    assert found > 0.1


@ENGINES
def test_adjoint_and_tangent_pairs_stand_in_one_teacher(randn, engine):
    x, v, u = randn(4, 3), randn(4, 2, 3), randn(4, 2)
    jacobian = dense_jacobian(Energy(outputs=2, seed=1), x)
    batch = {"x": x, "v": v, "u": u, "jv": torch.einsum("bcd,bsd->bsc", jacobian, v)}
    batch["jtu"] = torch.einsum("bcd,bc->bd", jacobian, u)
    batch["jtu"][0, 1] = batch["jtu"][1] = batch["u"][2, 0] = NAN
    teacher = DirectionalTeacher("v", "jv", cotangents="u", pulled="jtu")
    assert [term.key for term in teacher.default_term] == ["tangents", "cotangents"]
    found, gradients = evaluated(teacher, Energy(outputs=2, seed=1), batch, engine=engine)
    assert_close(found, torch.zeros_like(found))
    assert_close(gradients, tuple(map(torch.zeros_like, gradients)))
    net, one = Energy(outputs=2), torch.tensor([True, False, False, True])

    def hand():
        ours = dense_jacobian(net, x)
        pushed = torch.einsum("bcd,bsd->bsc", ours, v) - batch["jv"]
        pulled = torch.einsum("bcd,bc->bd", ours, u.nan_to_num()) - batch["jtu"].nan_to_num()
        pulled = pulled.masked_fill(batch["jtu"].isnan(), 0.0)[one]
        return pushed.square().sum(-1).mean() + pulled.square().sum(-1).mean()

    plain = [SobolevTerm(side="tangent", normalize="none", name="a"),
             SobolevTerm(normalize="none", name="b")]  # fmt: skip
    found, gradients = evaluated(teacher, net, batch, terms=plain, engine=engine)
    assert_close(found, hand().detach())
    expected = parameter_gradients_by_differences(hand, net)
    assert_close(list(gradients), expected, rtol=1e-5, atol=1e-8)


def test_adjoint_pairs_of_graphs(graphs, randn):
    net, u = Graphs(seed=1), randn(3, 2)
    each = dense_of_graphs(net, graphs["x"])  # [nodes, 2]
    graphs |= {"u": u, "jtu": u[INDEX][..., None] * each[:, None]}
    graphs["u"][1, 0] = NAN
    teacher = DirectionalTeacher(cotangents="u", pulled="jtu", per_step=1)
    found, _ = evaluated(teacher, net, graphs, "x", "batch", groups="batch")
    assert_close(found, torch.zeros_like(found))
    found, _ = evaluated(teacher, Graphs(), graphs, "x", "batch", groups="batch")
    assert found > 0.01


def dense_of_graphs(net, pos):
    pos = pos.clone().requires_grad_()
    return torch.autograd.grad(net(pos, INDEX).sum(), pos)[0]


def test_a_step_takes_some_of_the_stored_pairs_at_random(randn):
    """Known ones, for each row its own, the same again for the same step."""
    x, v = randn(300, 3), randn(300, 4, 3)
    hv = 2.0 * v  # a pair tells which one it is
    v[0, 1:, 0], hv[1, :3] = NAN, NAN  # one is known of these rows
    teacher = DirectionalTeacher("v", "hv", order=2, per_step=2)
    batch, term = {"x": x, "v": v, "hv": hv}, SobolevTerm(order=2)
    counts = torch.zeros(300, 4)
    for step in range(20):
        given = teacher.directions(Query(x, batch=batch, seed=(0, 0, step, 0)), term)
        again = teacher.directions(Query(x, batch=batch, seed=(0, 0, step, 0)), term)
        assert_close(given.target, again.target, equal_nan=True)
        assert_close(given.cotangents, torch.ones(2, 300, dtype=torch.float64))
        known = ~given.target.isnan().any(-1)
        assert_close(given.target[known], 2.0 * given.tangents[known])
        same = (given.target[:, :, None] == hv).all(-1)  # [taken, rows, stored]
        assert_close(same.sum(-1).bool(), known)
        assert int(same[:, 2:].sum(0).max()) == 1  # without replacement
        counts += same.sum(0)
    assert_close(counts[0], torch.tensor([20.0, 0, 0, 0]))
    assert_close(counts[1], torch.tensor([0.0, 0, 0, 20]))
    assert_close(counts[2:].sum(0) / 298 / 20, torch.full((4,), 0.5), atol=0.03, rtol=0.0)
    assert counts[2:].std() > 1.0  # rows choose apart


def test_nodes_of_a_graph_take_the_same_pair(graphs):
    teacher, taken = DirectionalTeacher("v", "hv", order=2, per_step=1), []
    groups = Groups(INDEX, 3)
    for step in range(8):
        query = Query(graphs["x"], batch=graphs, seed=(0, 0, step, 0), groups=groups)
        given = teacher.directions(query, PLAIN).tangents[0]
        first = (given == graphs["v"][:, 0]).all(-1)
        assert_close(given, torch.where(first[:, None], graphs["v"][:, 0], graphs["v"][:, 1]))
        of_graph = torch.zeros(3).index_add(0, INDEX, first.float()) / torch.bincount(INDEX)
        assert set(of_graph.tolist()) <= {0.0, 1.0}
        taken.append(of_graph)
    assert torch.stack(taken).std(0).gt(0.0).all()


def test_the_expectation_of_a_random_pair_is_all_of_them(rows):
    net, teacher = Energy(), DirectionalTeacher("v", "hv", order=2, per_step=1)
    found = torch.stack(
        [evaluated(teacher, net, rows, terms=PLAIN, counter=step)[0] for step in range(100)]
    )
    whole, _ = evaluated(DirectionalTeacher("v", "hv", order=2), net, rows, terms=PLAIN)
    assert_unbiased(found, whole)


@ENGINES
def test_a_part_of_the_rows_has_its_own_pairs(rows, graphs, engine):
    teacher = DirectionalTeacher("v", "hv", order=2, per_step=1)
    term = SobolevTerm(order=2, rows=0.5)
    for net, batch, names in ((Energy(seed=1), rows, "x"), (Graphs(seed=1), graphs, "x batch")):
        where = {"engine": engine} | ({} if names == "x" else {"groups": "batch"})
        found, _ = evaluated(teacher, net, batch, *names.split(), terms=term, **where)
        assert_close(found, torch.zeros_like(found))


def test_what_does_not_fit_is_refused(rows):
    with pytest.raises(ValueError, match="tangents must be given, or cotangents"):
        DirectionalTeacher()
    with pytest.raises(ValueError, match="pushed must be given with tangents="):
        DirectionalTeacher("v")
    with pytest.raises(ValueError, match="pulled must be given with cotangents="):
        DirectionalTeacher("v", "jv", cotangents="u")
    with pytest.raises(ValueError, match="order must be 1 without tangents"):
        DirectionalTeacher(cotangents="u", pulled="jtu", order=2)
    with pytest.raises(ValueError, match="per_step must be at least 1"):
        DirectionalTeacher("v", "jv", per_step=0)
    with pytest.raises(ValueError, match="per_step must be at most the 2 stored directions, got 3"):
        evaluated(DirectionalTeacher("v", "hv", order=2, per_step=3), Energy(), rows)
    with pytest.raises(ValueError, match="are those of a scalar output"):
        evaluated(DirectionalTeacher("v", "hv", order=2), Energy(outputs=2), rows)
    rows["hv"] = rows["hv"][..., :2]
    with pytest.raises(ValueError, match=r"pushed must have shape \[batch, \*in\]"):
        evaluated(DirectionalTeacher("v", "hv", order=2), Energy(), rows)
