r"""Smooth activations: Sine; ReCU and ReQU, and a beginning that keeps their outputs in bounds.

Note [no variance is stable]
    For z normal with second moment q, ReCU gives :math:`E\,\rho(z)^2 = \tfrac{15}{2} q^3`, ReQU
    :math:`\tfrac{3}{2} q^2`. Weights of variance 2/(15 n), 2/(3 n) keep q = 1, but an error of
    :math:`\log q` triples, doubles in every layer, and is there from the start: the mean of
    :math:`\rho(z)^2` over n units is off by :math:`\sqrt{91 / n}`, :math:`\sqrt{11 / n}`. So a
    sample is sent through the network and every layer set right before the next one sees it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Sine(nn.Module):
    """The sine of ``frequency`` times the input: smooth, with derivatives that do not fade away."""

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``sin(frequency * x)``."""
        return torch.sin(self.frequency * x)


class ReCU(nn.Module):
    r"""The rectified cubic unit :math:`\max(0, x)^3`.

    Twice continuously differentiable; its derivatives are :math:`3 \max(0, x)^2` and
    :math:`6 \max(0, x)`. Grows fast: begin with :func:`scale_by_sample`, and with a lower learning
    rate than usual.

    Source:
        Abdeljawad and Grohs 2020, Approximations with deep neural networks in Sobolev time-space
        (arXiv:2101.06115).

    Example:
        >>> ReCU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 8.])
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the cube of the positive part."""
        positive = torch.relu(x)
        return positive * positive * positive


class ReQU(nn.Module):
    r"""The rectified quadratic unit :math:`\max(0, x)^2`.

    Once continuously differentiable, with derivative :math:`2 \max(0, x)`; the second one jumps
    from 0 to 2 at zero, where it is taken to be 0.

    Example:
        >>> ReQU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 4.])
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the square of the positive part."""
        positive = torch.relu(x)
        return positive * positive


@torch.no_grad()
def scale_by_sample(net: nn.Module, sample: Float[Tensor, "batch *in"]) -> None:
    """Rescale every linear layer so that its outputs on a sample have a mean square of one.

    One forward pass: each layer, called once in it, is set right after those before it; biases are
    scaled with the weights.

    Raises:
        ValueError: If a layer gives zeros alone or numbers that are not finite, or is not called.

    Source:
        Mishkin and Matas 2016, All you need is a good init (arXiv:1511.06422), without its
        orthogonal beginning. Note [no variance is stable] says why it is needed here.
    """
    done: set[nn.Module] = set()

    def set_right(layer: Any, inputs: Any, output: Tensor) -> Tensor | None:
        del inputs
        if layer in done:
            return None
        size = output.square().mean().sqrt()
        if not (torch.isfinite(size) and size > 0):
            raise ValueError(
                f"sample must give {layer} outputs with a finite mean square above zero, "
                f"got {float(size) ** 2}"
            )
        layer.weight.div_(size)
        if layer.bias is not None:
            layer.bias.div_(size)
        done.add(layer)
        return output / size

    linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(set_right) for layer in linear]
    try:
        net(sample)
    finally:
        for hook in hooks:
            hook.remove()
    if left := [layer for layer in linear if layer not in done]:
        raise ValueError(f"net must call every linear layer, got no call of {left}")
