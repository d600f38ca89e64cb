"""Convolutional policies over stacked pictures: from pixels in 0..1 to logits of the actions."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

Conv = tuple[int, int, int]
"""Channels out, kernel, stride."""


def scale_pixels(stacks: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Map bytes to numbers in 0..1, the input of every network here.

    Args:
        stacks: Pictures with pixels in 0..255.

    Returns:
        The same pictures divided by 255, in float32.

    Raises:
        ValueError: If the pictures are not bytes: they may have been scaled already.
    """
    if stacks.dtype != torch.uint8:
        raise ValueError(f"stacks must be uint8, got {stacks.dtype}")
    return stacks.to(torch.float32).div_(255.0)


class _PixelPolicy(nn.Module):
    """Convolutions, one hidden layer, logits; ReLU between them."""

    def __init__(
        self,
        num_actions: int,
        *,
        convs: Sequence[Conv],
        hidden: int,
        stack_num: int,
        height: int,
        width: int,
    ) -> None:
        super().__init__()
        if num_actions < 1:
            raise ValueError(f"num_actions must be at least 1, got {num_actions}")
        self.in_shape = (stack_num, height, width)
        layers: list[nn.Module] = []
        channels, size = stack_num, np.array([height, width])
        for out, kernel, stride in convs:
            layers += [nn.Conv2d(channels, out, kernel, stride), nn.ReLU()]
            channels, size = out, (size - kernel) // stride + 1
        if size.min() < 1:
            raise ValueError(f"height and width are too small for the kernels: {height} x {width}")
        flat = channels * math.prod(size.tolist())
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, num_actions)

    @property
    def num_actions(self) -> int:
        """Width of the output."""
        return self.head.out_features

    def forward(
        self, x: Float[Tensor, "batch stack height width"]
    ) -> Float[Tensor, "batch actions"]:
        """Evaluate the policy.

        Args:
            x: Stacks with pixels in 0..1, the newest picture last.

        Returns:
            Logits of the actions.

        Raises:
            ValueError: If the stacks have another shape or are not floating point.
        """
        if tuple(x.shape[1:]) != self.in_shape or not x.is_floating_point():
            raise ValueError(
                f"x must be floating point [batch, {', '.join(map(str, self.in_shape))}], "
                f"got {x.dtype} {list(x.shape)}"
            )
        logits: Tensor = self.head(self.body(x))
        return logits


class NatureCNN(_PixelPolicy):
    """The network of deep Q-learning: 32@8/4, 64@4/2, 64@3/1, 512 hidden units.

    Args:
        num_actions: Width of the output.
        stack_num: Pictures in a stack.
        height: Height of a picture.
        width: Width of a picture.

    Raises:
        ValueError: If the pictures are too small or there is no action.

    Source:
        Mnih et al. 2015, Human-level control through deep reinforcement learning, Methods.
    """

    def __init__(
        self, num_actions: int, *, stack_num: int = 4, height: int = 84, width: int = 84
    ) -> None:
        convs = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
        super().__init__(
            num_actions, convs=convs, hidden=512, stack_num=stack_num, height=height, width=width
        )


class SmallCNN(_PixelPolicy):
    """The small student of the distillation experiments: 16@8/4, 32@4/2, 256 hidden units.

    Args:
        num_actions: Width of the output.
        stack_num: Pictures in a stack.
        height: Height of a picture.
        width: Width of a picture.

    Raises:
        ValueError: If the pictures are too small or there is no action.

    Source:
        Czarnecki et al. 2017, Sobolev Training for Neural Networks, experiments on policy
        distillation.
    """

    def __init__(
        self, num_actions: int, *, stack_num: int = 4, height: int = 84, width: int = 84
    ) -> None:
        convs = ((16, 8, 4), (32, 4, 2))
        super().__init__(
            num_actions, convs=convs, hidden=256, stack_num=stack_num, height=height, width=width
        )


class CenteredPolicy(nn.Module):
    r"""A policy that sees what differs from the usual picture: :math:`(x - \bar x)\,g`.

    Nearly every pixel of a game is the same in nearly every state. A student fed with raw pixels
    first has to learn to ignore that constant: on Pong it answers with one fixed policy for
    hundreds of steps and is far from converged when this one is done. Derivatives with respect to
    ``x`` keep their meaning; the mean is part of the state.

    Args:
        policy: Maps centered stacks to logits.
        gain: Factor :math:`g` after subtraction.

    Raises:
        ValueError: If ``gain`` is not positive.
    """

    mean: Tensor

    def __init__(self, policy: _PixelPolicy, gain: float = 3.0) -> None:
        super().__init__()
        if not gain > 0.0:
            raise ValueError(f"gain must be positive, got {gain}")
        self.policy = policy
        self.gain = gain
        self.register_buffer("mean", torch.zeros(policy.in_shape))

    @property
    def num_actions(self) -> int:
        """Width of the output."""
        return self.policy.num_actions

    def center_on(self, mean: Float[Tensor, "stack height width"]) -> None:
        """Set the mean picture.

        Args:
            mean: Mean of the training stacks, pixels in 0..1.

        Raises:
            ValueError: If it has another shape than the policy's input.
        """
        if mean.shape != self.mean.shape:
            raise ValueError(
                f"mean must have shape {list(self.mean.shape)}, got {list(mean.shape)}"
            )
        self.mean.copy_(mean)

    def forward(
        self, x: Float[Tensor, "batch stack height width"]
    ) -> Float[Tensor, "batch actions"]:
        """Evaluate the policy.

        Args:
            x: Stacks with pixels in 0..1, the newest picture last.

        Returns:
            Logits of the actions.
        """
        logits: Tensor = self.policy((x - self.mean).mul_(self.gain))
        return logits
