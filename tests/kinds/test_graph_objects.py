"""Students of one structure: graphs as torch-geometric makes them, dicts, what they write into."""

import copy
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.func import hessian
from torch.nn.functional import mse_loss

from lightning_sobolev import (
    BatchTeacher,
    DirectionalTeacher,
    NetworkTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from tests.kinds import _graph_objects as by_hand
from tests.kinds._by_hand import (
    EXACT,
    Step,
    X,
    Y,
    assert_is,
    exact,
    fit,
    frobenius,
    mlp,
    numbers,
    refuses,
    said,
    share,
    slope,
    target,
)
from tests.kinds._graph_objects import GRAPHS, SIZES, Batch, Energy, Forces, Graph

FORCES = BatchTeacher(forces="forces")


class Fit(Step):
    def __init__(self, net=None):
        super().__init__(Energy() if net is None else net)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch), batch.energy)


def taught(teacher=FORCES, term=(), **options):
    spec = SobolevSpec(terms=[SobolevTerm(**{**EXACT, **dict(term)})])
    return SobolevCallback(teacher, spec, **{"doctor": False, "module": "net", **options})


def joined():
    return Batch.from_data_list(GRAPHS)


# Naming


@pytest.mark.parametrize("wrt", ["pos", "data.pos", "0.pos"])
@pytest.mark.parametrize("groups", ["batch", "data.batch", None])
def test_the_input_and_the_index_are_named_inside_of_the_object(wrt, groups):
    found = share(Fit, [joined()], taught(wrt=wrt, groups=groups))
    net = Energy()
    assert_is(found, slope(by_hand.term(net), net))


class Named(Energy):
    """Its argument has the name of the index."""

    def forward(self, batch):
        return super().forward(batch)


@pytest.mark.parametrize("groups", ["batch", "batch.batch", None])
def test_an_argument_with_the_name_of_the_index(groups):
    found = share(lambda: Fit(Named()), [joined()], taught(wrt="batch.pos", groups=groups))
    net = Energy()
    assert_is(found, slope(by_hand.term(net), net))


@pytest.mark.parametrize(("make", "wrt"), [(Energy, "pos"), (Named, "batch.pos")])
def test_a_single_graph_has_no_index(make, wrt):
    single = Batch.from_data_list(GRAPHS[:1])
    net, index = Energy(), single.batch

    class Alone(make):
        def forward(self, batch):
            batch = copy.copy(batch)
            batch.batch = index
            return Energy.forward(self, batch)

    single.batch = None
    found = share(lambda: Fit(Alone()), [single], taught(wrt=wrt, groups="batch"))
    assert_is(found, slope(by_hand.term(net, GRAPHS[:1]), net))


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_both_engines(engine):
    found = share(Fit, [joined()], taught(wrt="pos", engine=engine))
    net = Energy()
    assert_is(found, slope(by_hand.term(net), net))


def test_an_object_without_an_order_is_no_place_to_guess_in():
    text = r"wrt=None: the observed input must be named .* got \['cell', 'charge', 'edge_weight'"
    refuses(Fit(), [joined()], taught(), text)


def test_the_only_tensor_needs_no_name():
    class Single(Step):
        def training_step(self, batch, batch_idx):
            return self.net(batch).square().mean() * 0.0

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, data):
            return self.body(data.x)

    batch = Graph(x=X, kind=torch.arange(6))
    found = share(lambda: Single(Reads()), [batch], exact(module="net"))
    net = mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


# Some of the graphs


def assert_is_of_two_graphs(found):
    net = Energy()
    pairs = [slope(by_hand.term(net, list(few)), net) for few in combinations(GRAPHS, 2)]
    assert_is(found, min(pairs, key=lambda one: float((one - found).norm())))


def test_a_part_of_the_graphs():
    callback = taught(term={"rows": 0.5}, wrt="pos", doctor=True)
    assert_is_of_two_graphs(share(Fit, [joined()], callback))


def test_tensors_that_were_set_behind_the_making_of_the_batch_are_cut_too():
    batch = joined()
    for one in (earlier := copy.deepcopy(GRAPHS)):
        del one._store["charge"]
    batch.__dict__["_graphs"] = earlier
    assert_is_of_two_graphs(share(Fit, [batch], taught(term={"rows": 0.5}, wrt="pos")))


class Tables(nn.Module):
    """Takes the same as a dict."""

    def __init__(self):
        super().__init__()
        self.energy = Energy()

    def forward(self, data):
        return {"energy": self.energy(Graph(**data))}


class FitTables(Step):
    def __init__(self):
        super().__init__(Tables())

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch)["energy"], batch["energy"])


@pytest.mark.parametrize("rows", [1.0, 0.5])
def test_a_dict_of_tables(rows):
    """Its ptr and its cells, three rows for each graph, are cut with all others."""
    batch = dict(joined()._store)
    found = share(FitTables, [batch], taught(term={"rows": rows}, wrt="pos"))
    if rows < 1.0:
        return assert_is_of_two_graphs(found)
    net = Energy()
    return assert_is(found, slope(by_hand.term(net), net))


# Students that differentiate inside


class FitForces(Step):
    def __init__(self, net=None):
        super().__init__(Forces() if net is None else net)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch), batch.forces)


def with_columns():
    """One direction and the Hessian of another energy along it, for each graph."""
    batch, other = joined(), Energy(seed=7)
    v, columns = [], []
    for number, one in enumerate(GRAPHS):
        v.append(numbers(len(one.pos), 3, seed=40 + number))
        curved = hessian(by_hand.alone(other, one))(one.pos)
        columns.append(-torch.einsum("iajb,jb->ia", curved, v[-1]).detach())
    batch.vs, batch.hessian_col = torch.cat(v), torch.cat(columns)
    return batch, v, columns


def columns_by_hand(net, v, columns, chosen):
    errors = []
    for number in chosen:
        curved = hessian(by_hand.alone(net, GRAPHS[number]))(GRAPHS[number].pos)
        found = -torch.einsum("iajb,jb->ia", curved, v[number])
        errors.append((found - columns[number]).square().sum())
    return torch.stack(errors).sum() / sum(SIZES[number] for number in chosen)


@pytest.mark.parametrize(("groups", "engine"), [("batch", "tape"), (None, "tape"), (None, "func")])
def test_hessian_columns_of_a_student_of_forces(groups, engine):
    batch, v, columns = with_columns()
    teacher = DirectionalTeacher("vs", "hessian_col")
    where = {"wrt": "pos", "groups": groups, "engine": engine}
    found = share(FitForces, [batch], taught(teacher, {"side": "tangent"}, **where))
    net = Energy()
    assert_is(found, slope(columns_by_hand(net, v, columns, range(4)), net))


def test_hessian_columns_of_some_graphs():
    batch, v, columns = with_columns()
    term = {"side": "tangent", "rows": 0.5}
    options = {"wrt": "pos", "groups": "batch"}
    callback = taught(DirectionalTeacher("vs", "hessian_col"), term, **options)
    found, net = share(FitForces, [batch], callback), Energy()
    pairs = [slope(columns_by_hand(net, v, columns, few), net) for few in combinations(range(4), 2)]
    assert_is(found, min(pairs, key=lambda one: float((one - found).norm())))


def test_the_doctor_examines_a_student_of_forces():
    batch, *_ = with_columns()
    teacher = DirectionalTeacher("vs", "hessian_col")
    options = {"wrt": "pos", "groups": "batch", "doctor": True}
    lines = said(lambda: fit(FitForces(), [batch], taught(teacher, {"side": "tangent"}, **options)))
    assert any("agrees with finite differences" in line for line in lines), lines
    assert not any("not checked" in line or "coupled" in line for line in lines), lines


def test_torch_func_does_not_follow_a_derivative_inside():
    batch, *_ = with_columns()
    callback = taught(NetworkTeacher(Forces()), {"side": "tangent"}, wrt="pos", engine="func")
    with pytest.raises(RuntimeError) as caught:
        fit(FitForces(), [batch], callback)
    assert "works with engine='tape' only" in "".join(caught.value.__notes__)


# What a student writes into what it was given


class Writes(nn.Module):
    """Puts its answer beside its input."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, data):
        data["answer"] = self.body(data["x"])
        data["x"] = data["x"] * 1.0
        return data


class Mutable(Graph):
    __setitem__ = Graph.__setattr__


class Reads(Step):
    """Its step reads the answer where it was written."""

    def __init__(self):
        super().__init__(Writes())

    def training_step(self, batch, batch_idx):
        kept = batch["x"]
        self.net(batch)
        assert batch["x"] is not kept
        return mse_loss(batch["answer"], batch["y"])


@pytest.mark.parametrize("kind", [dict, Mutable])
def test_what_is_written_into_the_input_is_there_behind_the_call(kind):
    callback = exact(module="net", wrt="x", output="answer")
    found = share(Reads, [kind(x=X, y=Y)], callback)
    net = mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, data):
        return {**data, "answer": self.body(data["x"])}


class Returns(Step):
    def __init__(self):
        super().__init__(Beside())

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch)["answer"], batch["y"])


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_an_input_among_the_outputs_is_not_taken_for_one(engine):
    text = "output must be named where the observed module returns its input beside its output"
    batch = {"x": X, "y": Y}
    refuses(Returns(), [copy.copy(batch)], exact(module="net", wrt="x", engine=engine), text)
    found = share(Returns, [batch], exact(module="net", wrt="x", output="answer", engine=engine))
    net = mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


class Several(nn.Module):
    """Answers in an object that has no order."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, data):
        return Graph(mean=self.body(data["x"]), spread=self.body(data["x"]).exp())


class Answers(Returns):
    def __init__(self):
        super().__init__()
        self.net = Several()

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch).mean, batch["y"])


def test_an_output_without_an_order_is_named():
    batch, options = {"x": X, "y": Y}, {"module": "net", "wrt": "x"}
    refuses(Answers(), [batch], exact(**options), r"output must be named .*\['mean', 'spread'\]")
    found, net = share(Answers, [batch], exact(**options, output="mean")), mlp()
    assert_is(found, slope(frobenius(net, target, X), net))
