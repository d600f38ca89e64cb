r"""What stands at a cut and answers for everything above it.

A loss model is :math:`m(h, y) = \ell(p(h), y)`: a small network predicts the class, of which the
log-loss is taken; the synthetic gradient is its derivative in h. A gradient model answers with a
gradient right away. Both begin with zeros: nothing below moves before a model has learned.

Source: Czarnecki et al. 2017, Sobolev Training for Neural Networks (arXiv:1706.04859), section on
synthetic gradients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common.tables import check_counts
from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind

Shape = tuple[int, ...]
Labels = Int[Tensor, " batch"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus, "elu": nn.ELU}


class LossModel(nn.Module):
    """The log-loss of a class that is predicted from an activation, row by row."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, h: Float[Tensor, "batch *in"], y: Labels) -> Float[Tensor, " batch"]:
        """Return the expected loss of every row."""
        return cross_entropy(self.predictor(h), y, reduction="none")


class GradientModel(nn.Module):
    """A network that takes activation and class and answers with a gradient.

    The class is appended to the channels (or the units) as as many more, of which one is one.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes

    def forward(self, h: Float[Tensor, "batch *in"], y: Labels) -> Float[Tensor, "batch *in"]:
        """Return the expected gradient of every row's loss."""
        label = one_hot(y, self.num_classes).to(h.dtype)
        label = label.reshape(*label.shape, *[1] * (h.ndim - 2))
        label = label.expand(*label.shape[:2], *h.shape[2:])
        gradient: Tensor = self.network(torch.cat([h, label], dim=1))
        return gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Size of the models that are built for cuts.

    Args:
        width: Channels or units of the hidden layers.
        depth: Hidden layers; 0 for a linear model.
        stride: Of the first convolution of a loss model, which looks at a whole map to say one
            number; a gradient model answers at every place and keeps them all.
        activation: One of relu, softplus, elu.
    """

    width: int = 32
    depth: int = 1
    stride: int = 2
    activation: str = "elu"

    def __post_init__(self) -> None:
        check_counts(1, width=self.width, stride=self.stride)
        check_counts(0, depth=self.depth)
        known = tuple(_ACTIVATIONS)
        require(self.activation in known, "activation", f"one of {known}", self.activation)


def build_models(
    kind: Kind, shapes: Sequence[Shape], num_classes: int, settings: ModelSettings = ModelSettings()
) -> list[nn.Module]:
    """Build a model for every cut: convolutions for feature maps, dense layers for vectors.

    ``shapes`` are those of one row of the activation at every cut.
    """
    if kind.model is None:
        return []
    for cut, shape in enumerate(shapes, start=1):
        if len(shape) not in (1, 3):
            raise ValueError(
                "models are built for activations [units] or [channels, height, width], got "
                f"{list(shape)} at cut {cut}: pass models of your own"
            )
    return [_build_model(kind, shape, num_classes, settings) for shape in shapes]


def _build_model(kind: Kind, shape: Shape, num_classes: int, settings: ModelSettings) -> nn.Module:
    channels, sizes, stride = shape[0], shape[1:], settings.stride
    if kind.model == "gradient":
        channels, stride = channels + num_classes, 1
    layers: list[nn.Module] = []
    for _ in range(settings.depth):
        layers.append(_layer(channels, settings.width, len(sizes), stride))
        layers.append(_ACTIVATIONS[settings.activation]())
        sizes = tuple(math.ceil(size / stride) for size in sizes)
        channels, stride = settings.width, 1
    if kind.model == "gradient":
        last = _layer(channels, shape[0], len(sizes))
    else:
        layers.append(nn.Flatten())
        last = nn.Linear(channels * math.prod(sizes), num_classes)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    network = nn.Sequential(*layers, last)
    return GradientModel(network, num_classes) if kind.model == "gradient" else LossModel(network)


def _layer(channels: int, out: int, dimensions: int, stride: int = 1) -> nn.Module:
    if dimensions == 0:
        return nn.Linear(channels, out)
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1)


def check_models(
    models: Sequence[nn.Module], kind: Kind, shapes: Sequence[Shape], like: Tensor
) -> None:
    """Refuse models whose answers to two rows of zeros, of the type of ``like``, do not fit."""
    y = torch.zeros(2, dtype=torch.int64, device=like.device)
    for cut, (model, shape) in enumerate(zip(models, shapes, strict=True), start=1):
        h = torch.zeros(2, *shape, dtype=like.dtype, device=like.device)
        expected = [2, *shape] if kind.model == "gradient" else [2]
        try:
            with torch.no_grad():
                answer = list(model(h, y).shape)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"the model of cut {cut} must take activations of {list(h.shape)}, got: {error}"
            ) from error
        name = f"the answer of the model of cut {cut} to activations of {list(h.shape)}"
        require(answer == expected, name, f"{expected}", answer)
