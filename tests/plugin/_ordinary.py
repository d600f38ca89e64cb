"""Ordinary architectures, small: name to (builder, shape of a batch of inputs)."""

import torch
from torch import nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from tests.plugin._students import mlp


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class FunctionalAttention(nn.Module):
    """Calls the fused kernel by itself, as modern transformers do; no layer betrays it."""

    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(6, 18), nn.Linear(6, 2)

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        return self.out(scaled_dot_product_attention(query, key, value).mean(1))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 6, 3, stride=3)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 6)), nn.Parameter(torch.ones(5, 6))
        layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x):
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.place
        return self.encoder(tokens)[:, 0]


class Residual(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1), norm(channels),
        )  # fmt: skip

    def forward(self, x):
        return torch.relu(x + self.body(x))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 3, 2, 2), nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x):
        skip = nn.functional.silu(self.down(x))
        deep = nn.functional.silu(self.bottom(nn.functional.avg_pool2d(skip, 2)))
        return self.out(torch.cat([skip, self.up(deep)], 1))


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(3.0 * x)


class Fourier(nn.Module):
    """A spectral layer: real in, real out, complex parameters."""

    def __init__(self):
        super().__init__()
        self.lift, self.out = mlp(3, 8), mlp(8, 2)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(5, 5, dtype=torch.complex128, generator=generator)
        self.weight = nn.Parameter(0.3 * weight)

    def forward(self, x):
        spectrum = torch.fft.rfft(self.lift(x)) @ self.weight
        return self.out(torch.fft.irfft(spectrum, n=8).tanh())


class Graph(nn.Module):
    """Messages over all pairs of the points of one example, through distances."""

    def __init__(self):
        super().__init__()
        self.message, self.readout = mlp(1, 4), mlp(4, 1)

    def forward(self, x):
        apart = x[:, :, None] - x[:, None]
        distance = (apart.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        return self.readout(self.message(torch.exp(-distance)).sum((1, 2)))


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.prototypes = mlp(3, 4), nn.Parameter(torch.eye(2, 4))

    def forward(self, x):
        return normalize(self.body(x)) @ normalize(self.prototypes).T


ORDINARY = {
    "relu mlp": (lambda: mlp(activation=nn.ReLU), (4, 3)),
    "deep tanh mlp": (lambda: nn.Sequential(mlp(3, 8), nn.Tanh(), mlp(8, 8), mlp(8, 2)), (4, 3)),
    "silu and softplus": (lambda: nn.Sequential(mlp(3, 4, activation=nn.SiLU), nn.Softplus(),
                                                nn.Linear(4, 2)), (4, 3)),
    "dropout": (lambda: nn.Sequential(mlp(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)), (4, 3)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), mlp(6, 2)), (4, 3)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.RMSNorm(6), mlp(6, 2)), (4, 3)),
    "group norm": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(),
                                         nn.Flatten(), nn.Linear(16, 2)), (4, 2, 6)),
    "instance norm": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4), nn.GELU(),
                                            nn.Flatten(), nn.Linear(16, 2)), (4, 2, 6)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), mlp(6, 2)), (4, 3)),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(
        nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)), (4, 3)),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(
        nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)), (4, 3)),
    "orthogonal weights": (lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(
        nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)), (4, 3)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.LeakyReLU(), nn.MaxPool2d(2),
                                           nn.Flatten(), nn.Linear(12, 2)), (4, 1, 6, 6)),
    "upsampling": (lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2, 2), nn.ELU(),
                                         nn.AvgPool2d(2), nn.Flatten()), (4, 1, 3, 3)),
    "pixel shuffle, local response norm": (lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(2), nn.Mish(), nn.PixelShuffle(2),
        nn.Upsample(scale_factor=0.5, mode="bilinear"), nn.Flatten()), (3, 1, 5, 5)),
    "residual network": (lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), Residual(3, nn.BatchNorm2d), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(12, 2)), (4, 1, 6, 6)),
    "u-net": (UNet, (3, 1, 4, 4)),
    "gru": (lambda: Last(nn.GRU(3, 4, batch_first=True)), (3, 4, 3)),
    "lstm": (lambda: Last(nn.LSTM(3, 4, batch_first=True)), (3, 4, 3)),
    "attention": (Attention, (3, 4, 6)),
    "functional attention": (FunctionalAttention, (3, 4, 6)),
    "vision transformer": (VisionTransformer, (3, 1, 6, 6)),
    "sine network": (lambda: nn.Sequential(nn.Linear(3, 8), Sine(), mlp(8, 2)), (4, 3)),
    "fourier layer": (Fourier, (4, 3)),
    "graph of points": (Graph, (3, 4, 3)),
    "l2-normalized": (Normalized, (4, 3)),
}  # fmt: skip

PIECEWISE_LINEAR = ("relu mlp", "convolutions", "residual network")
