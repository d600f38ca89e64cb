"""Fully connected networks for the regression experiments."""

import math
from collections.abc import Callable

import torch
from torch import nn

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

    Args:
        in_features: Inputs.
        out_features: Outputs; None means one output without an axis of its own, ``[batch]``.
        width: Units of a hidden layer.
        depth: Hidden layers.
        activation: One of ``ACTIVATIONS``. ReLU has no second derivative to train. Networks of
            recu and requ begin with unit mean squares in every layer, on standard normal inputs.
        frequency: Of a sine, in every layer, which then begins as in the source. High frequencies
            bend between points that are far apart: 30, the source's, is for dense pixels.

    Source:
        Sitzmann et al. 2020, Implicit neural representations with periodic activation functions
        (arXiv:2006.09661), section 3.2, for the first weights of a network of sines.
    """
    if not frequency > 0:
        raise ValueError(f"frequency must be positive, got {frequency}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
    for name, size in (("in_features", in_features), ("width", width), ("depth", depth)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
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
