"""Students whose derivatives are labels, and what a loss makes of them."""

import torch
from torch import nn

from lightning_sobolev import SobolevLoss


class Energy(nn.Module):
    """A smooth function of rows; ``outputs`` of them, or a scalar without an axis."""

    def __init__(self, dim=3, outputs=None, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(dim, 5), nn.Tanh(), nn.Linear(5, outputs or 1))
        self.is_scalar = outputs is None
        self.double()

    def forward(self, x):
        y = self.body(x)
        return y[:, 0] if self.is_scalar else y


class Graphs(nn.Module):
    """Energies of graphs in one flat table of nodes, each node seeing its whole graph."""

    def __init__(self, seed=0, field=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(4 if field else 2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.double()

    def forward(self, pos, batch, field=None):
        count = int(batch.max()) + 1
        sums = torch.zeros(count, pos.shape[1], dtype=pos.dtype).index_add(0, batch, pos)
        seen = pos * sums[batch] + pos
        if field is not None:
            seen = torch.cat([seen, pos * field[batch]], 1)
        energy = self.body(seen)[:, 0]
        return torch.zeros(count, dtype=pos.dtype).index_add(0, batch, energy)


class Forces(nn.Module):
    """Minus the gradient of such energies."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, pos, batch):
        with torch.enable_grad():
            pos = pos if pos.requires_grad else pos.requires_grad_()
            energy = self.energy(pos, batch).sum()
            return -torch.autograd.grad(energy, pos, create_graph=True)[0]


def evaluated(teacher, net, batch, *names, terms=None, seed=0, counter=0, **where):
    """Return the loss, and its gradients in the parameters, of one evaluation."""
    loss = SobolevLoss(teacher, terms, seed=seed)
    loss.counter = counter
    names = names or ("x",)
    with loss.observe(net, **where):
        net(*(batch[name] for name in names))
    found = loss(batch=batch).loss
    gradients = torch.autograd.grad(
        found, list(net.parameters()), allow_unused=True, materialize_grads=True
    )
    return found.detach(), gradients


def flat_hessians(energy, pos, batch):
    """Return the Hessian of each graph, by definition."""
    found = []
    for graph in range(int(batch.max()) + 1):
        own = pos[graph == batch]
        zeros = torch.zeros(len(own), dtype=torch.long)
        hessian = torch.autograd.functional.hessian(lambda p, zeros=zeros: energy(p, zeros)[0], own)
        found.append(hessian.reshape(own.numel(), own.numel()))
    return found
