"""As many small networks as there are runs, in one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

_WIDTH = 64


class Stack(nn.Module):
    """Independent networks of two tanh layers, each begun as ``nn.Linear`` begins.

    Args:
        seeds: Of the first weights, one a network.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        single = {seed: first_weights(seed) for seed in set(seeds)}
        chosen = [single[seed] for seed in seeds]
        self.weights = nn.ParameterList(torch.stack(each) for each in zip(*chosen, strict=True))

    def forward(self, x: Float[Tensor, "runs rows 2"]) -> Float[Tensor, "runs rows"]:
        """Evaluate every network at its own rows."""
        hidden = x
        for place in range(0, len(self.weights), 2):
            hidden = torch.baddbmm(self.weights[place + 1], hidden, self.weights[place].mT)
            hidden = hidden.tanh() if place + 2 < len(self.weights) else hidden
        return hidden[..., 0]


def bare_network(seed: int) -> nn.Sequential:
    """Return one network.

    Args:
        seed: Of its first weights.
    """
    torch.manual_seed(seed)
    first, second, last = nn.Linear(2, _WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 1)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


def first_weights(seed: int) -> list[Tensor]:
    """Return weights ``[out, in]`` and biases ``[1, out]`` of one network in turn.

    Args:
        seed: Of the network.
    """
    found = [parameter.detach() for parameter in bare_network(seed).parameters()]
    return [each if each.ndim == 2 else each[None] for each in found]


def gradients(loss: Float[Tensor, " runs"], net: Stack) -> Float[Tensor, "runs parameters"]:
    """Return every run's parameter gradient.

    Args:
        loss: One a run; each depends on its own network alone.
        net: The networks.
    """
    whole, to = loss.sum(), list(net.weights)
    found = torch.autograd.grad(whole, to, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten(1) for gradient in found], 1)
