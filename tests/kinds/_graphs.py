"""Graphs in one flat table: students, batches, and dense derivatives graph by graph."""

import torch
from torch import nn
from torch.func import jacfwd, jacrev
from torch.nn.functional import mse_loss

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.kinds._by_hand import EXACT, Step, numbers

SIZES = (3, 1, 4, 2)


class Energy(nn.Module):
    """A graph's energies, sums over the pairs and single nodes inside it."""

    def __init__(self, outputs=1, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.pair = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
            self.single = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()

    def nodes(self, pos, batch):
        same = (batch[:, None] == batch[None]) & ~torch.eye(len(pos), dtype=torch.bool)
        distance = (pos[:, None] - pos[None]).square().sum(-1, keepdim=True)
        pairs = self.pair((1.0 + distance).sqrt())
        return self.single(pos) + torch.where(same[..., None], pairs, 0.0).sum(1)

    def forward(self, pos, batch, count=None):
        each = self.nodes(pos, batch)
        count = int(batch.max()) + 1 if count is None else count
        return each.new_zeros(count, each.shape[1]).index_add(0, batch, each)


class Scalar(Energy):
    def forward(self, pos, batch, count=None):
        return super().forward(pos, batch, count)[:, 0]


def index_of(sizes=SIZES):
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def graphs(sizes=SIZES, outputs=1, seed=1):
    """Return positions, the graph of each node, energies, and each graph's gradients."""
    pos, index = numbers(sum(sizes), 3, seed=seed), index_of(sizes)
    label = numbers(sum(sizes), outputs, 3, seed=seed + 7)
    y = numbers(len(sizes), outputs, seed=seed + 8)
    if outputs == 1:
        return {"pos": pos, "batch": index, "y": y[:, 0], "grad": label[:, 0]}
    return {"pos": pos, "batch": index, "y": y, "grad": label}


class Fit(Step):
    """Mean squared error of the energies."""

    def __init__(self, net=None):
        super().__init__(Scalar() if net is None else net)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["pos"], batch["batch"]), batch["y"])


def taught(teacher, *, term=(), groups="batch", **options):
    spec = SobolevSpec(terms=[SobolevTerm(**{**EXACT, **dict(term)})])
    options = {"doctor": False, "module": "net", **options}
    return SobolevCallback(teacher, spec, groups=groups, **options)


def each(batch, *names):
    """Yield every graph's positions and its part of further node tables, graph after graph."""
    for number in range(int(batch["batch"].max()) + 1):
        own = batch["batch"] == number
        yield [batch[name][own] for name in ("pos", *names)]


def alone(net):
    """Return the energies of one graph as a function of its own positions."""
    return lambda pos: net(pos, torch.zeros(len(pos), dtype=torch.long))[0]


def derivative(net, pos, order=1):
    """Return ``[*out, nodes, 3]`` of one graph, or ``[*out, nodes, 3, nodes, 3]``."""
    function = jacrev(alone(net))
    return function(pos) if order == 1 else jacfwd(function)(pos)


def mean(squares, sizes, average="node"):
    """Return the mean of one number for each graph: over all nodes, or of the graphs' own means."""
    squares, sizes = torch.stack(squares), torch.tensor(sizes, dtype=torch.float64)
    return squares.sum() / sizes.sum() if average == "node" else (squares / sizes).mean()


def term(net, batch, teacher=None, *, order=1, average="node"):
    """Return the term by hand: stored gradients, or those of a teacher."""
    squares, sizes = [], []
    for pos, stored in each(batch, "grad"):
        ours = derivative(net, pos, order)
        if teacher is None:
            theirs = stored if stored.ndim == 2 else stored.movedim(0, 1)
        else:
            theirs = derivative(teacher, pos, order).detach()
        squares.append((ours - theirs).square().sum())
        sizes.append(len(pos))
    return mean(squares, sizes, average)
