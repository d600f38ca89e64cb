"""Small networks to be cut, exact models of what lies above a cut, and what models learn."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.experiments.synthetic_gradients.kinds import KINDS
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching
from lightning_sobolev.experiments.synthetic_gradients.models import build_models
from lightning_sobolev.experiments.synthetic_gradients.sections import activation_shapes, split
from lightning_sobolev.experiments.synthetic_gradients.step import build_stages

CLASSES = 3
WITH_MODELS = [name for name, kind in KINDS.items() if kind.model is not None]


def vectors(seed=0):
    torch.manual_seed(seed)
    sizes = pairwise((5, 7, 6, 8))
    blocks = [nn.Sequential(nn.Linear(before, after), nn.Tanh()) for before, after in sizes]
    return nn.Sequential(*blocks, nn.Linear(8, CLASSES))


def maps(seed=0):
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


def batches(network, count):
    generator = torch.Generator().manual_seed(5)
    pairs = (batch(network, generator) for _ in range(count))
    return [{"x": x, "y": y} for x, y in pairs]


class Oracle(nn.Module):
    """The true loss of the layers above a cut, as a model."""

    def __init__(self, above):
        super().__init__()
        self.above = copy.deepcopy(above).requires_grad_(False)

    def forward(self, h, y):
        return cross_entropy(self.above(h), y, reduction="none")


class GradientOracle(Oracle):
    def forward(self, h, y):
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            losses = super().forward(leaf, y)
            return torch.autograd.grad(losses.sum(), leaf)[0]


class Exact(nn.Module):
    """A loss that is known in closed form: there is nothing to teach."""

    def forward(self, h, y):
        return (h - 1).square().sum(1)


def learned(models):
    generator = torch.Generator().manual_seed(1)
    for model in models:
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.3 * drawn.to(parameter.dtype)
    return models


def stages(network, cuts, kind, matching=None, seed=0):
    sections, kind = split(network(seed), cuts), KINDS[kind]
    models = learned(
        build_models(kind, activation_shapes(sections, SHAPES[network], CLASSES), CLASSES)
    )
    return build_stages(sections, models, kind, matching or Matching(normalize="none"))


def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def predicted(model, kind, h, y):
    if kind == "direct":
        return model(h, y).detach()
    leaf = h.detach().requires_grad_()
    return torch.autograd.grad(model(leaf, y).sum(), leaf)[0]


def moved_along(section, x, gradient):
    """Return the gradients of a copy of a section that is moved along one at its output."""
    section = copy.deepcopy(section)
    section.zero_grad()
    (section(x) * gradient).sum().div(len(x)).backward()
    return gradients(section)


def taught(model, kind, h, y, value, gradient, weights=(1, 1)):
    """Return the gradient in a model's parameters of the paper's sum, written out."""
    model = copy.deepcopy(model)
    leaf = h.detach().requires_grad_()
    answer = model(leaf, y)
    loss = torch.zeros(())
    if kind == "direct":
        loss = weights[1] * (answer - gradient).square().flatten(1).sum(1).mean()
    if kind in ("critic", "sobolev"):
        loss = loss + weights[0] * (answer - value).square().mean()
    if kind in ("vfbn", "sobolev"):
        (slope,) = torch.autograd.grad(answer.sum(), leaf, create_graph=True)
        loss = loss + weights[1] * (slope - gradient).square().flatten(1).sum(1).mean()
    model.zero_grad()
    loss.backward()
    return gradients(model)
