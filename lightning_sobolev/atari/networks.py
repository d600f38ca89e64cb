"""Convolutional policies over stacked frames: from pixels in 0..1 to logits of the actions."""

import math
from typing import ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev.atari.environments import AtariSettings, num_actions

Stacks = Float[Tensor, "batch stack height width"]
Logits = Float[Tensor, "batch actions"]


def scale_pixels(stacks: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Map bytes to float32 in 0..1; refuse anything else, which may have been scaled already."""
    require(stacks.dtype == torch.uint8, "stacks", "uint8", stacks.dtype)
    return stacks.to(torch.float32).div_(255.0)


class PixelPolicy(nn.Module):
    """Convolutions, one hidden layer, logits; ReLU between them. Subclasses say which."""

    convs: ClassVar[tuple[tuple[int, int, int], ...]]
    """Channels out, kernel and stride of every convolution."""
    hidden: ClassVar[int]

    def __init__(
        self, num_actions: int, *, stack_num: int = 4, height: int = 84, width: int = 84
    ) -> None:
        super().__init__()
        self.in_shape = (stack_num, height, width)
        layers: list[nn.Module] = []
        channels, size = stack_num, np.array([height, width])
        for out, kernel, stride in self.convs:
            layers += [nn.Conv2d(channels, out, kernel, stride), nn.ReLU()]
            channels, size = out, (size - kernel) // stride + 1
        if size.min() < 1:
            raise ValueError(f"height and width are too small for the kernels: {height} x {width}")
        flat = channels * math.prod(size.tolist())
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.hidden), nn.ReLU())
        self.head = nn.Linear(self.hidden, num_actions)

    @classmethod
    def for_game(cls, settings: AtariSettings) -> Self:
        """Return a network for what the settings show and the actions of the game."""
        return cls.showing(settings, num_actions(settings))

    @classmethod
    def showing(cls, settings: AtariSettings, num_actions: int) -> Self:
        """Return a network for what the settings show, with a number of actions of its own."""
        height, width = settings.img_height, settings.img_width
        return cls(num_actions, stack_num=settings.stack_num, height=height, width=width)

    @property
    def num_actions(self) -> int:
        """Width of the output."""
        return self.head.out_features

    def forward(self, x: Stacks) -> Logits:
        """Return logits of the actions; pixels are in 0..1, the newest frame last."""
        if tuple(x.shape[1:]) != self.in_shape or not x.is_floating_point():
            shape = ", ".join(map(str, self.in_shape))
            got = f"{x.dtype} {list(x.shape)}"
            raise ValueError(f"x must be floating point [batch, {shape}], got {got}")
        logits: Tensor = self.head(self.body(x))
        return logits


class NatureCNN(PixelPolicy):
    """The network of deep Q-learning: 32@8/4, 64@4/2, 64@3/1, 512 hidden units.

    Source:
        Mnih et al. 2015, Human-level control through deep reinforcement learning, Methods.
    """

    convs = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    hidden = 512


class SmallCNN(PixelPolicy):
    """The small student of the distillation experiments: 16@8/4, 32@4/2, 256 hidden units.

    Source:
        Czarnecki et al. 2017, Sobolev Training for Neural Networks, experiments on policy
        distillation.
    """

    convs = ((16, 8, 4), (32, 4, 2))
    hidden = 256


class CenteredPolicy(nn.Module):
    r"""A policy that sees what differs from the mean stack: :math:`(x - \bar x)\,g`.

    Nearly every pixel of a game is the same in nearly every state. A student fed with raw pixels
    first has to learn to ignore that constant: on Pong it answers with one fixed policy for
    hundreds of steps and is far from converged when this one is done. Derivatives with respect to
    ``x`` keep their meaning; the mean is part of the state.

    Args:
        policy: Maps centered stacks to logits.
        gain: Factor :math:`g` after subtraction.
    """

    mean: Tensor

    def __init__(self, policy: PixelPolicy, gain: float = 3.0) -> None:
        super().__init__()
        require(gain > 0.0, "gain", "positive", gain)
        self.policy, self.gain = policy, gain
        self.register_buffer("mean", torch.zeros(policy.in_shape))

    def center_on(self, mean: Float[Tensor, "stack height width"]) -> None:
        """Set the mean of the training stacks, pixels in 0..1."""
        if mean.shape != (shape := self.mean.shape):
            raise ValueError(f"mean must have shape {list(shape)}, got {list(mean.shape)}")
        self.mean.copy_(mean)

    def forward(self, x: Stacks) -> Logits:
        """Return logits of the actions; pixels are in 0..1, the newest frame last."""
        logits: Tensor = self.policy((x - self.mean).mul_(self.gain))
        return logits
