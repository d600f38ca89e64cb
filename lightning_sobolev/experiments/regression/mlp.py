"""Fully connected networks for the regression experiments."""

import math
from collections.abc import Callable

import torch
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev.activations import ReCU, ReQU, Sine, scale_by_sample

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "sine": Sine,
    "recu": ReCU,
    "requ": ReQU,
}
_SAMPLE = 1024


def mlp(
    in_features: int,
    out_features: int | None = None,
    *,
    width: int = 256,
    depth: int = 2,
    activation: str = "relu",
    frequency: float = 3.0,
) -> nn.Sequential:
    """Return a fully connected network ``[batch, in_features] -> [batch, *out]``.

    Without ``out_features`` it has one output without an axis of its own, ``[batch]``. ReLU has no
    second derivative to train. Networks of recu and requ begin with unit mean squares in every
    layer, on standard normal inputs, those of sines as in the source; high frequencies bend between
    points that are far apart: 30, the source's, is for dense pixels.

    Source:
        Sitzmann et al. 2020, Implicit neural representations with periodic activation functions
        (arXiv:2006.09661), section 3.2, for the first weights of a network of sines.
    """
    require(frequency > 0, "frequency", "positive", frequency)
    require(activation in ACTIVATIONS, "activation", f"one of {tuple(ACTIVATIONS)}", activation)
    for name, size in (("in_features", in_features), ("width", width), ("depth", depth)):
        require(size >= 1, name, "at least 1", size)
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(in_features if index == 0 else width, width)]
        layers += [Sine(frequency) if activation == "sine" else ACTIVATIONS[activation]()]
    layers += [nn.Linear(width, 1 if out_features is None else out_features)]
    if out_features is None:
        layers += [nn.Flatten(start_dim=0)]  # [batch, 1] -> [batch]
    net = nn.Sequential(*layers)
    if activation == "sine":
        _begin_sines(net, frequency)
    if activation in ("recu", "requ"):
        scale_by_sample(net, torch.randn(_SAMPLE, in_features))
    return net


@torch.no_grad()
def _begin_sines(net: nn.Sequential, frequency: float) -> None:
    """Draw weights that bring a standard normal to every later sine, apart from its bias."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(linear):
        inputs = layer.in_features
        bound = 1 / inputs if number == 0 else math.sqrt(6 / inputs) / frequency
        layer.weight.uniform_(-bound, bound)
