"""What the benchmark trains: a network, the shape of its batch, the function of its output."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lightning_sobolev.atari.networks import NatureCNN
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.spec import OUTPUT_MAPS


@dataclass(frozen=True)
class Workload:
    """A student, a teacher of the same form, and a batch; ``on`` is the output map to match."""

    network: str
    make: Callable[[], nn.Module]
    in_shape: tuple[int, ...]
    batch_size: int
    on: str = "identity"

    @property
    def name(self) -> str:
        """Network and batch size."""
        return f"{self.network}-{self.batch_size}"

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Return a student and a teacher, the same ones every time."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            student, teacher = self.make(), self.make()
        return student, teacher.eval().requires_grad_(False)

    def batch(self) -> dict[str, Tensor]:
        """Return one batch: inputs, the teacher's matched values, and the rows' numbers."""
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(self.batch_size, *self.in_shape, generator=generator)
        with torch.no_grad():
            y = OUTPUT_MAPS[self.on](self.networks()[1](x))
        return {"x": x, "y": y, "index": torch.arange(self.batch_size)}


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, bias=False)
        first, norm = conv(channels, out, 3, stride, padding=1), nn.BatchNorm2d(out)
        second, last = conv(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.inner = nn.Sequential(first, norm, nn.ReLU(), second, last)
        self.past = conv(channels, out, 1, stride)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d i j"]:
        return functional.relu(self.inner(x) + self.past(x))


def resnet() -> nn.Module:
    """Return a small residual network with batch norms for images of 32 by 32."""
    blocks = [_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Encoder(nn.Module):
    """A transformer encoder over sixteen vectors, averaged and projected."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch out"]:
        """Evaluate the encoder."""
        y: Tensor = self.head(self.encoder(x).mean(1))
        return y


def perceptron(batch_size: int, *, width: int = 256, outputs: int = 1) -> Workload:
    """Return the workload of a fully connected network with two inputs."""
    return Workload("mlp", lambda: mlp(2, outputs, width=width), (2,), batch_size)


def pixels(batch_size: int) -> Workload:
    """Return the workload of Nature-CNN on four stacked frames."""
    return Workload("nature_cnn", lambda: NatureCNN(6), (4, 84, 84), batch_size, "log_softmax")


_ALL = (
    perceptron(100),
    perceptron(10_000),
    pixels(64),
    pixels(512),
    Workload("resnet", resnet, (3, 32, 32), 64, "log_softmax"),
    Workload("transformer", Encoder, (16, 64), 64),
)
WORKLOADS = {workload.name: workload for workload in _ALL}
