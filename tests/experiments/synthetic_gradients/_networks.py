"""Small networks to be cut, and exact models of what lies above a cut."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import cross_entropy

CLASSES = 3


def vectors(seed=0):
    """Four blocks of dense layers."""
    torch.manual_seed(seed)
    sizes = (5, 7, 6, 8)
    blocks = [
        nn.Sequential(nn.Linear(before, after), nn.Tanh()) for before, after in pairwise(sizes)
    ]
    return nn.Sequential(*blocks, nn.Linear(8, CLASSES))


def maps(seed=0):
    """Four blocks of convolutions with batch norm."""
    torch.manual_seed(seed)
    blocks = [
        nn.Sequential(nn.Conv2d(before, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        for before in (2, 4, 4)
    ]
    return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)))


SHAPES = {vectors: (5,), maps: (2, 4, 4)}


def batch(network, generator, size=6):
    x = torch.randn(size, *SHAPES[network], generator=generator)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


class Oracle(nn.Module):
    """The true loss of the layers above a cut, as a model."""

    def __init__(self, above):
        super().__init__()
        self.above = copy.deepcopy(above).requires_grad_(False)

    def forward(self, h, y):
        return cross_entropy(self.above(h), y, reduction="none")


class GradientOracle(Oracle):
    """Its derivative."""

    def forward(self, h, y):
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            losses = super().forward(leaf, y)
            return torch.autograd.grad(losses.sum(), leaf)[0]


def learned(models, seed=1):
    """Give models weights other than zero, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for model in models:
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.3 * drawn.to(parameter.dtype)
    return models
