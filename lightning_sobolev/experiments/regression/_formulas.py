"""Formulas of the test functions, each from ``[batch, d]`` to values, gradients or Hessians."""

import math

import torch
from torch import Tensor

# Ackley: -20 exp(-r / 5) - exp(m) + 20 + e, r^2 = mean of x_i^2, m = mean of cos(2 pi x_i).
# It has a cone at the origin: both derivatives of its first term are set to zero there.

_PEAK, _DECAY, _TURN = 20.0, 0.2, 2 * math.pi


def _ackley_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root = x.square().mean(-1, keepdim=True).sqrt()
    wave = torch.cos(_TURN * x).mean(-1, keepdim=True).exp()
    return root, _PEAK * torch.exp(-_DECAY * root), wave


def ackley(x: Tensor) -> Tensor:
    """Return the values."""
    _, well, wave = _ackley_parts(x)
    return (_PEAK - well + (math.e - wave)).squeeze(-1)


def ackley_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    root, well, wave = _ackley_parts(x)
    unit = x / root.masked_fill(root == 0, 1.0)
    return (_DECAY * well * unit + _TURN * torch.sin(_TURN * x) * wave) / x.shape[-1]


def ackley_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    root, well, wave = (part[..., None] for part in _ackley_parts(x))
    inverse = torch.where(root == 0, 0.0, 1 / root)
    d, unit, sines = x.shape[-1], x[..., None] * inverse, torch.sin(_TURN * x)[..., None]
    outer = unit * unit.mT / d
    well_part = _DECAY * well * (_eye(x) * inverse - outer * (inverse + _DECAY))
    cosines = torch.diag_embed(torch.cos(_TURN * x))
    return (well_part + _TURN**2 * wave * (cosines - sines * sines.mT / d)) / d


# Beale: the sum over k = 1, 2, 3 of t_k^2, t_k = c_k - x (1 - y^k).

_BEALE = (1.5, 2.25, 2.625)


def _beale_terms(x: Tensor) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    u, v = x.unbind(-1)
    return [
        (c - u * (1 - v**k), v**k - 1, k * u * v ** (k - 1), k) for k, c in enumerate(_BEALE, 1)
    ]


def beale(x: Tensor) -> Tensor:
    """Return the values."""
    return torch.stack([t.square() for t, _, _, _ in _beale_terms(x)]).sum(0)


def beale_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    return 2 * torch.stack([t[:, None] * vector(a, b) for t, a, b, _ in _beale_terms(x)]).sum(0)


def beale_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    u, v = x.unbind(-1)
    parts = []
    for t, a, b, k in _beale_terms(x):
        mixed = k * v ** (k - 1)
        twice = k * (k - 1) * u * v ** max(k - 2, 0)
        parts.append(matrix(a * a, a * b + t * mixed, b * b + t * twice))
    return 2 * torch.stack(parts).sum(0)


# Booth: (x + 2y - 7)^2 + (2x + y - 5)^2.


def booth(x: Tensor) -> Tensor:
    """Return the values."""
    u, v = x.unbind(-1)
    return (u + 2 * v - 7).square() + (2 * u + v - 5).square()


def booth_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    u, v = x.unbind(-1)
    return vector(10 * u + 8 * v - 34, 8 * u + 10 * v - 38)


def booth_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    return x.new_tensor([[10.0, 8.0], [8.0, 10.0]]).expand(len(x), 2, 2)


# Bukin N.6: 100 |q|^(1/2) + |x + 10| / 100, q = y - x^2 / 100. The gradient is unbounded near the
# ridge q = 0. On the ridge the derivatives of the first term, at x = -10 those of the second, are
# set to zero.


def _bukin_slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    q = x[:, 1] - 0.01 * x[:, 0].square()
    size = q.abs()
    inverse = torch.where(size == 0, 0.0, size.rsqrt())
    return 50 * q.sign() * inverse, -25 * inverse**3


def bukin_n6(x: Tensor) -> Tensor:
    """Return the values."""
    u, v = x.unbind(-1)
    return 100 * (v - 0.01 * u.square()).abs().sqrt() + 0.01 * (u + 10).abs()


def bukin_n6_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    u, slope = x[:, 0], _bukin_slopes(x)[0]
    return vector(-0.02 * u * slope + 0.01 * (u + 10).sign(), slope)


def bukin_n6_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    u, (slope, bend) = x[:, 0], _bukin_slopes(x)
    return matrix((0.02 * u).square() * bend - 0.02 * slope, -0.02 * u * bend, bend)


# McCormick: sin(x + y) + (x - y)^2 - 1.5 x + 2.5 y + 1.


def mccormick(x: Tensor) -> Tensor:
    """Return the values."""
    u, v = x.unbind(-1)
    return torch.sin(u + v) + (u - v).square() - 1.5 * u + 2.5 * v + 1


def mccormick_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    u, v = x.unbind(-1)
    wave, slope = torch.cos(u + v), 2 * (u - v)
    return vector(wave + slope - 1.5, wave - slope + 2.5)


def mccormick_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    wave = -torch.sin(x.sum(-1))
    return matrix(wave + 2, wave - 2, wave + 2)


# Rosenbrock: the sum over neighbours of 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2.


def rosenbrock(x: Tensor) -> Tensor:
    """Return the values."""
    low, high = x[:, :-1], x[:, 1:]
    return (100 * (high - low.square()).square() + (1 - low).square()).sum(-1)


def rosenbrock_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    low, high = x[:, :-1], x[:, 1:]
    gap = high - low.square()
    gradient = torch.zeros_like(x)
    gradient[:, :-1] = -400 * low * gap - 2 * (1 - low)
    gradient[:, 1:] += 200 * gap
    return gradient


def rosenbrock_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    low, high = x[:, :-1], x[:, 1:]
    diagonal = torch.zeros_like(x)
    diagonal[:, :-1] = 1200 * low.square() - 400 * high + 2
    diagonal[:, 1:] += 200
    beside = torch.diag_embed(-400 * low, offset=1)
    return torch.diag_embed(diagonal) + beside + beside.mT


# Styblinski-Tang: half the sum of x_i^4 - 16 x_i^2 + 5 x_i.


def styblinski_tang(x: Tensor) -> Tensor:
    """Return the values."""
    return 0.5 * (x**4 - 16 * x.square() + 5 * x).sum(-1)


def styblinski_tang_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    return 2 * x**3 - 16 * x + 2.5


def styblinski_tang_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    return torch.diag_embed(6 * x.square() - 16)


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def vector(first: Tensor, second: Tensor) -> Tensor:
    """Return ``[batch, 2]`` from its columns."""
    return torch.stack([first, second], dim=-1)


def matrix(first: Tensor, mixed: Tensor, second: Tensor) -> Tensor:
    """Return symmetric ``[batch, 2, 2]`` from its entries."""
    return torch.stack([vector(first, mixed), vector(mixed, second)], dim=-2)
