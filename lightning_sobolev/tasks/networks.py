"""Fully connected networks for the regression experiments."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Sine(nn.Module):
    """The sine as an activation: smooth, with derivatives that do not fade away."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``sin(x)``."""
        return torch.sin(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "sine": Sine,
}


def mlp(
    in_features: int,
    out_features: int | None = None,
    *,
    width: int = 256,
    depth: int = 2,
    activation: str = "relu",
) -> nn.Sequential:
    """Return a fully connected network ``[batch, in_features] -> [batch, *out]``.

    Args:
        in_features: Inputs.
        out_features: Outputs; None means one output without an axis of its own, ``[batch]``.
        width: Units of a hidden layer.
        depth: Hidden layers.
        activation: One of ``ACTIVATIONS``. ReLU has no second derivative to train.

    Raises:
        ValueError: If the activation is unknown or a size is below one.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
    for name, size in (("in_features", in_features), ("width", width), ("depth", depth)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(in_features if index == 0 else width, width)]
        layers += [ACTIVATIONS[activation]()]
    layers += [nn.Linear(width, 1 if out_features is None else out_features)]
    if out_features is None:
        layers += [nn.Flatten(start_dim=0)]  # [batch, 1] -> [batch]
    return nn.Sequential(*layers)
