"""Families of functions on which the laws are checked: a function and points for it."""

import torch
from torch import nn


def _poly(x):
    return torch.stack([x.pow(3).sum(-1), x.prod(-1), x[:, 0] * x[:, 1] ** 2], dim=-1)


def _scalar(x):
    return torch.sin(x).sum(-1) * x[:, 0]


def _matrix_out(x):
    return torch.tanh(x[:, :, None] * x[:, None, :])


def _writes_in_place(x):
    return x.sub_(0.5).sin_().pow(2)


def family(name, generator):
    shape = (3, 2, 5, 5) if name == "conv" else (3, 4)
    modules = {
        "affine": lambda: nn.Linear(4, 3),
        "mlp": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
        "norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        "conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Conv2d(3, 1, 2)),
    }
    plain = {"poly": _poly, "scalar": _scalar, "matrix": _matrix_out, "in_place": _writes_in_place}
    fn = modules[name]() if name in modules else plain[name]
    if isinstance(fn, nn.Module):
        for parameter in fn.parameters():
            parameter.data.normal_(generator=generator)
            parameter.data.mul_(0.5)
    return fn, torch.randn(shape, generator=generator)


FAMILIES = ("affine", "mlp", "norm", "conv", "poly", "scalar", "matrix", "in_place")
