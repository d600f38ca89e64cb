"""Key paths into the structures of published packages, and students that take them whole."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from lightning_sobolev import BatchTeacher, NetworkTeacher, _paths
from lightning_sobolev._types import Query
from tests.kinds._by_hand import (
    Step,
    X,
    Y,
    assert_is,
    exact,
    frobenius,
    mlp,
    slope,
    target,
    trainer,
    weights,
)
from tests.teachers._dense import assert_is_jet, numbers

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


def graph(size=3, seed=0):
    data = pytest.importorskip("torch_geometric.data")
    edges = torch.tensor([[0, 1], [1, 0]])
    return data.Data(pos=numbers(size, 3, seed=seed), edge_index=edges, energy=numbers(1))


def batch_of_graphs():
    data = pytest.importorskip("torch_geometric.data")
    return data.Batch.from_data_list([graph(), graph(2, seed=1)])


def tensordict():
    package = pytest.importorskip("tensordict")
    inner = package.TensorDict({"pos": numbers(5, 3)}, [5])
    return package.TensorDict({"pos": numbers(5, 3, seed=2), "inner": inner}, [5])


def locked():
    return tensordict().lock_()


def tensorclass():
    package = pytest.importorskip("tensordict")

    @package.tensorclass
    class Points:
        pos: torch.Tensor
        y: torch.Tensor

    return Points(numbers(5, 3), numbers(5, 1), batch_size=[5])


@pytest.mark.parametrize("make", [graph, batch_of_graphs, tensordict, locked, tensorclass])
def test_a_place_inside_is_read_and_filled_in_a_copy(make):
    tree, value = make(), numbers(5, 3, seed=9)
    before = {path: tensor.clone() for path, tensor in _paths.tensors(tree)}
    assert ("pos",) in before
    changed = _paths.put({"deep": [tree]}, ("deep", 0, "pos"), value)["deep"][0]
    assert type(changed) is type(tree)
    assert torch.equal(_paths.get(changed, ("pos",), ""), value)
    for path, tensor in before.items():
        assert torch.equal(_paths.get(tree, path, ""), tensor)
        assert path == ("pos",) or torch.equal(_paths.get(changed, path, ""), tensor)
    with pytest.raises(ValueError, match="wrt: no 'speed' here; got a"):
        _paths.get(tree, ("speed",), "wrt")
    with pytest.raises(ValueError, match="wrt: no '0' here; got a"):
        _paths.get(tree, (0,), "wrt")


@pytest.mark.parametrize("make", [graph, batch_of_graphs])
def test_a_graph_has_no_first_tensor(make):
    tree = make()
    names = [path for path, _ in _paths.tensors(tree)]
    assert names == sorted(names)
    assert _paths.rivals(tree, ("pos",)) == [("energy",), ("pos",)]


def share(make, batch, callback):
    """Return what a step subtracted because of the callback."""
    after = []
    for callbacks in ([callback], []):
        module = make()
        # The default would take a TensorDict for a dict.
        loader = DataLoader([batch], batch_size=None, collate_fn=lambda own: own)
        trainer(*callbacks).fit(module, loader)
        after.append(weights(module))
    return after[1] - after[0]


class OfKinds(Step):
    """Takes a graph of several kinds of nodes; its network gets the graph, or the tables."""

    def __init__(self, takes_graph):
        super().__init__()
        self.takes_graph, self.net = takes_graph, Tables()

    def training_step(self, batch, batch_idx):
        tables = batch if self.takes_graph else batch.x_dict
        return mse_loss(self.net(tables), batch["atom"].y)


class Tables(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x_dict):
        tables = x_dict if isinstance(x_dict, dict) else x_dict.x_dict
        return self.body(tables["atom"]) + 0.0 * tables["bond"].sum()


@pytest.mark.parametrize(("takes_graph", "wrt"), [(True, "0.x_dict.atom"), (False, "x_dict.atom")])
def test_nodes_of_one_kind(takes_graph, wrt):
    package = pytest.importorskip("torch_geometric.data")
    batch = package.HeteroData()
    batch["atom"].x, batch["atom"].y, batch["bond"].x = X, Y, numbers(4, 2)
    callback = exact(module="net", wrt=wrt)
    found, net = share(lambda: OfKinds(takes_graph), batch, callback), mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


class Policy(Step):
    def __init__(self, in_place):
        from tensordict.nn import TensorDictModule

        super().__init__(TensorDictModule(mlp(), in_keys=["obs"], out_keys=["action"]))
        self.in_place = in_place

    def training_step(self, batch, batch_idx):
        batch = batch.copy()
        answered = self.net(batch)
        return mse_loss((batch if self.in_place else answered)["action"], batch["y"])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("wrt", ["obs", "0.obs"])
def test_a_module_that_reads_and_writes_a_tensordict(in_place, wrt):
    package = pytest.importorskip("tensordict")
    batch = package.TensorDict({"obs": X, "y": Y}, [6])
    callback = exact(module="net", wrt=wrt, output="action")
    found, net = share(lambda: Policy(in_place), batch, callback), mlp()
    assert_is(found, slope(frobenius(net, target, X), net))


def test_derivatives_of_a_tensordict_batch():
    package = pytest.importorskip("tensordict")
    jacobian = numbers(6, 2, 3, seed=4)
    batch = package.TensorDict({"obs": X, "y": Y, "known": {"jacobian": jacobian}}, [6])
    callback = exact(BatchTeacher("known.jacobian"), module="net", wrt="obs", output="action")
    found, net = share(lambda: Policy(in_place=False), batch, callback), mlp()
    ours = torch.func.vmap(torch.func.jacrev(net))(X)
    assert_is(found, slope((ours - jacobian).square().flatten(1).sum(1).mean(), net))


def test_a_teacher_whose_inputs_stand_in_a_tensordict():
    package = pytest.importorskip("tensordict")
    hidden, net = numbers(6, 2, seed=3), mlp(5)
    batch = package.TensorDict({"groups": {"policy": X, "privileged": hidden}}, [6])
    paths = ["groups.policy", "groups.privileged"]
    teacher = NetworkTeacher(net, inputs=[paths], shared=paths[0])
    jet = teacher.at(Query(X, batch=batch))
    assert_is_jet(jet, lambda x, h: net(torch.cat([x, h])[None])[0], X, hidden)
