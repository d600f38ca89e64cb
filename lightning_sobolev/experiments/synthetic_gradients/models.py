r"""What stands at a cut and answers for everything above it.

A loss model is :math:`m(h, y) = \ell(p(h), y)`: a small network predicts the class and the log-loss
:math:`\ell` of the whole network is applied; the synthetic gradient is its derivative in h. A
gradient model answers with a gradient right away. Both begin with a last layer of zeros, so the
first messages are zero and nothing below moves before the model has learned something.

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

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus, "elu": nn.ELU}


class LossModel(nn.Module):
    """The log-loss of a predicted class.

    Args:
        predictor: Maps an activation to logits; rows must not depend on each other.
    """

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(
        self, h: Float[Tensor, "batch *in"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the expected loss of every row."""
        return cross_entropy(self.predictor(h), y, reduction="none")


class GradientModel(nn.Module):
    """A network that takes activation and class and answers with a gradient.

    The class is appended to the channels (or the units) as as many more, of which one is one.

    Args:
        network: Maps ``[batch, channels + classes, ...]`` to the shape of the activation.
        num_classes: Number of classes.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes

    def forward(
        self, h: Float[Tensor, "batch *in"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch *in"]:
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

    Raises:
        ValueError: If a setting is out of range.
    """

    width: int = 32
    depth: int = 1
    stride: int = 2
    activation: str = "elu"

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("depth", 0), ("stride", 1)):
            if (got := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {got}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {tuple(_ACTIVATIONS)}, got {self.activation!r}"
            )


def build_models(
    kind: Kind,
    shapes: Sequence[tuple[int, ...]],
    num_classes: int,
    settings: ModelSettings = ModelSettings(),
) -> list[nn.Module]:
    """Build a model for every cut: convolutions for feature maps, dense layers for vectors.

    Args:
        kind: Says which models are needed.
        shapes: Shape of one row of the activation at every cut.
        num_classes: Number of classes.
        settings: Their size.

    Returns:
        The models; none where the kind needs none.

    Raises:
        ValueError: If an activation is neither a vector nor a feature map.
    """
    if kind.model is None:
        return []
    for cut, shape in enumerate(shapes, start=1):
        if len(shape) not in (1, 3):
            raise ValueError(
                "models are built for activations [units] or [channels, height, width], got "
                f"{list(shape)} at cut {cut}: pass models of your own"
            )
    if kind.model == "gradient":
        return [GradientModel(_regressor(s, num_classes, settings), num_classes) for s in shapes]
    return [LossModel(_predictor(shape, num_classes, settings)) for shape in shapes]


def _predictor(shape: tuple[int, ...], num_classes: int, settings: ModelSettings) -> nn.Sequential:
    maps = len(shape) == 3
    hidden = _hidden(shape[0], maps, settings, stride=settings.stride)
    channels, stride = (settings.width, settings.stride) if hidden else (shape[0], 1)
    units = channels * math.prod(math.ceil(size / stride) for size in shape[1:])
    return nn.Sequential(*hidden, nn.Flatten(), _zeroed(nn.Linear(units, num_classes)))


def _regressor(shape: tuple[int, ...], num_classes: int, settings: ModelSettings) -> nn.Sequential:
    maps = len(shape) == 3
    hidden = _hidden(shape[0] + num_classes, maps, settings)
    channels = settings.width if hidden else shape[0] + num_classes
    return nn.Sequential(*hidden, _zeroed(_layer(channels, shape[0], maps=maps)))


def _hidden(
    channels: int, maps: bool, settings: ModelSettings, *, stride: int = 1
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number in range(settings.depth):
        before, step = (settings.width, 1) if number else (channels, stride)
        layers.append(_layer(before, settings.width, maps=maps, stride=step))
        layers.append(_ACTIVATIONS[settings.activation]())
    return layers


def _layer(channels: int, out: int, *, maps: bool, stride: int = 1) -> nn.Conv2d | nn.Linear:
    if not maps:
        return nn.Linear(channels, out)
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1)


def _zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
