"""Graphs in objects as torch-geometric makes them, students that take one, and their references."""

import torch
from torch import nn
from torch.func import jacrev

from tests.kinds._by_hand import mlp, numbers
from tests.test_paths import Listing

SIZES = (3, 2, 4, 2)


class Graph(Listing):
    """Keeps its tensors elsewhere and lists their names in no order."""

    def __getitem__(self, name):
        return self._store[name]

    def __copy__(self):
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.__dict__["_store"] = dict(self._store)
        return copied


class Batch(Graph):
    """Several graphs in one, which remembers how each of its first tensors was joined."""

    @classmethod
    def from_data_list(cls, graphs):
        made, sizes = cls(), torch.tensor([len(graph.pos) for graph in graphs])
        begins = sizes.cumsum(0) - sizes
        made.__dict__["_graphs"] = list(graphs)
        for name in graphs[0]._store:
            parts = [graph[name] for graph in graphs]
            if name == "edge_index":
                parts = [part + begin for part, begin in zip(parts, begins, strict=True)]
            setattr(made, name, torch.cat(parts, -1 if name == "edge_index" else 0))
        made.batch = torch.arange(len(graphs)).repeat_interleave(sizes)
        made.ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return made

    def index_select(self, chosen):
        return [self._graphs[number] for number in chosen.tolist()]


def graph(size, seed):
    edges = [(i, j) for i in range(size) for j in range(size) if i != j]
    return Graph(
        charge=numbers(size, 1, seed=seed + 1), pos=numbers(size, 3, seed=seed),
        edge_index=torch.tensor(edges).T, energy=numbers(1, seed=seed + 2),
        forces=numbers(size, 3, seed=seed + 3), cell=numbers(3, 3, seed=seed + 5),
        edge_weight=numbers(len(edges), 1, seed=seed + 4),
    )  # fmt: skip


GRAPHS = [graph(size, 10 * number) for number, size in enumerate(SIZES)]


class Energy(nn.Module):
    """A graph's energy, over its edges."""

    def __init__(self, seed=0):
        super().__init__()
        self.pair = mlp(6, 1, seed)

    def forward(self, data):
        source, target = data.edge_index
        between = data.pos[source] - data.pos[target] * 0.5
        charges = data.charge[source] * data.edge_weight + data.charge[target]
        volume = data.cell.unflatten(0, (-1, 3)).sum((1, 2))[data.batch[source]]
        found = self.pair(torch.cat([between, charges, charges.sin(), volume[:, None]], -1))
        count = len(data.ptr) - 1
        return found.new_zeros(count).index_add(0, data.batch[source], found[:, 0])


class Forces(nn.Module):
    """Minus the derivative of the energy, taken inside."""

    def __init__(self, seed=0):
        super().__init__()
        self.energy = Energy(seed)

    def forward(self, data):
        pos = data.pos if data.pos.requires_grad else data.pos.requires_grad_()
        energy = self.energy(data)
        return -torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]


def alone(net, one):
    """Return a graph's energy as a function of its own positions."""

    def energy(pos):
        single = Batch.from_data_list([one])
        single.pos = pos
        return net(single)[0]

    return energy


def term(net, graphs=GRAPHS):
    """Return the mean over the nodes of the squared error of the forces."""
    errors = [(jacrev(alone(net, one))(one.pos) + one.forces).square().sum() for one in graphs]
    return torch.stack(errors).sum() / sum(len(one.pos) for one in graphs)
