"""Classifiers of images, as blocks that follow one another and can be cut apart."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._checks import require


def image_cnn(
    in_channels: int = 1,
    num_classes: int = 10,
    *,
    size: int = 28,
    width: int = 16,
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """Return four blocks: a convolution of patches, two of 3 by 3, and a pooled linear layer.

    ``activation`` is relu or elu; with ``batch_norm`` every convolution is followed by one.

    The linear layer sees two by two places of an image of 28 by 28. It does little with what it
    gets when the blocks below have learned nothing, so it matters whether they do.
    """
    known = {"relu": nn.ReLU, "elu": nn.ELU}
    require(activation in known, "activation", f"one of {tuple(known)}", activation)
    side = math.ceil(size // 4 / 2) // 2

    def block(convolution: nn.Conv2d) -> nn.Sequential:
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        return nn.Sequential(convolution, *norm, known[activation]())

    return nn.Sequential(
        block(nn.Conv2d(in_channels, width, 4, stride=4)),
        block(nn.Conv2d(width, width, 3, padding=1)),
        block(nn.Conv2d(width, width, 3, stride=2, padding=1)),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(width * side**2, num_classes)),
    )


def pooled_cnn(
    in_channels: int = 1, num_classes: int = 10, *, size: int = 28, axes: int = 2, width: int = 8
) -> nn.Sequential:
    """Return two convolutions of five places with maxima of two, and a linear layer."""
    if axes not in (1, 2):
        raise ValueError(f"axes must be 1 or 2, got {axes}")
    conv, pool = (nn.Conv1d, nn.MaxPool1d) if axes == 1 else (nn.Conv2d, nn.MaxPool2d)
    first = [conv(in_channels, width, 5, padding=2), nn.ReLU(), pool(2)]
    second = [conv(width, 2 * width, 5, padding=2), nn.ReLU(), pool(2)]
    last = nn.Linear(2 * width * (size // 4) ** axes, num_classes)
    return nn.Sequential(*first, *second, nn.Flatten(), last)


def _normed(before: int, after: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(after)


class Residual(nn.Module):
    """Two convolutions with batch norm around which the input is carried."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        first, second = _normed(before, after, stride), _normed(after, after, 1)
        self.main = nn.Sequential(*first, nn.ReLU(), *second)
        self.carried: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.carried = nn.Conv2d(before, after, 1, stride=stride, bias=False)
        self.last = nn.ReLU()

    def forward(
        self, x: Float[Tensor, "batch before height width"]
    ) -> Float[Tensor, "batch after height width"]:
        """Return the activation after both ways have met."""
        y: Tensor = self.last(self.main(x) + self.carried(x))
        return y


def image_resnet(in_channels: int = 1, num_classes: int = 10, *, width: int = 8) -> nn.Sequential:
    """Return a first convolution, two residual blocks and a last one with the classifier."""
    first = nn.Sequential(*_normed(in_channels, width, 2), nn.ReLU())
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes)]
    return nn.Sequential(
        first,
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.Sequential(Residual(4 * width, 4 * width, 1), *pooled),
    )


class Standardize(nn.Module):
    """First part of a network on pixels in [0, 1], as attacks need it; ``[channels, 1, 1]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return what a network that was trained on such numbers takes."""
        return (pixels - self.mean) / self.std
