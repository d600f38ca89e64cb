"""Formulas of the test functions: ``[batch, d]`` to values, gradients and Hessians."""

import math

import torch
from torch import Tensor

Formulas = tuple[Tensor, Tensor, Tensor]
_PEAK, _DECAY, _TURN = 20.0, 0.2, 2 * math.pi
_BEALE = (1.5, 2.25, 2.625)


def ackley(x: Tensor) -> Formulas:
    r"""-20 exp(-r / 5) - exp(m) + 20 + e, r^2 = mean of x_i^2, m = mean of cos(2 pi x_i)."""
    # A cone at the origin: both derivatives of the first term are set to zero there.
    d = x.shape[-1]
    root = x.square().mean(-1, keepdim=True).sqrt()
    wave = torch.cos(_TURN * x).mean(-1, keepdim=True).exp()
    well = _PEAK * torch.exp(-_DECAY * root)
    value = (_PEAK - well + (math.e - wave)).squeeze(-1)
    unit = x / root.masked_fill(root == 0, 1.0)
    gradient = (_DECAY * well * unit + _TURN * torch.sin(_TURN * x) * wave) / d
    root, well, wave = root[..., None], well[..., None], wave[..., None]
    inverse = torch.where(root == 0, 0.0, 1 / root)
    column, sines = x[..., None] * inverse, torch.sin(_TURN * x)[..., None]
    outer = column * column.mT / d
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    well_part = _DECAY * well * (eye * inverse - outer * (inverse + _DECAY))
    cosines = torch.diag_embed(torch.cos(_TURN * x))
    return value, gradient, (well_part + _TURN**2 * wave * (cosines - sines * sines.mT / d)) / d


def beale(x: Tensor) -> Formulas:
    """The sum over k = 1, 2, 3 of t_k^2, t_k = c_k - x (1 - y^k)."""
    u, v = x.unbind(-1)
    values, gradients, hessians = [], [], []
    for k, c in enumerate(_BEALE, 1):
        t, a, b = c - u * (1 - v**k), v**k - 1, k * u * v ** (k - 1)
        mixed = k * v ** (k - 1)
        twice = k * (k - 1) * u * v ** max(k - 2, 0)
        values.append(t.square())
        gradients.append(t[:, None] * vector(a, b))
        hessians.append(matrix(a * a, a * b + t * mixed, b * b + t * twice))
    value, gradient, hessian = (torch.stack(part).sum(0) for part in (values, gradients, hessians))
    return value, 2 * gradient, 2 * hessian


def booth(x: Tensor) -> Formulas:
    """(x + 2y - 7)^2 + (2x + y - 5)^2."""
    u, v = x.unbind(-1)
    value = (u + 2 * v - 7).square() + (2 * u + v - 5).square()
    gradient = vector(10 * u + 8 * v - 34, 8 * u + 10 * v - 38)
    return value, gradient, x.new_tensor([[10.0, 8.0], [8.0, 10.0]]).expand(len(x), 2, 2)


def bukin_n6(x: Tensor) -> Formulas:
    """100 |q|^(1/2) + |x + 10| / 100, q = y - x^2 / 100."""
    # The gradient is unbounded near the ridge q = 0. On the ridge the derivatives of the first
    # term, at x = -10 those of the second, are set to zero.
    u, v = x.unbind(-1)
    value = 100 * (v - 0.01 * u.square()).abs().sqrt() + 0.01 * (u + 10).abs()
    q = v - 0.01 * u.square()
    inverse = torch.where(q == 0, 0.0, q.abs().rsqrt())
    slope, bend = 50 * q.sign() * inverse, -25 * inverse**3
    gradient = vector(-0.02 * u * slope + 0.01 * (u + 10).sign(), slope)
    hessian = matrix((0.02 * u).square() * bend - 0.02 * slope, -0.02 * u * bend, bend)
    return value, gradient, hessian


def mccormick(x: Tensor) -> Formulas:
    """sin(x + y) + (x - y)^2 - 1.5 x + 2.5 y + 1."""
    u, v = x.unbind(-1)
    value = torch.sin(u + v) + (u - v).square() - 1.5 * u + 2.5 * v + 1
    wave, slope = torch.cos(u + v), 2 * (u - v)
    gradient = vector(wave + slope - 1.5, wave - slope + 2.5)
    bend = -torch.sin(x.sum(-1))
    return value, gradient, matrix(bend + 2, bend - 2, bend + 2)


def rosenbrock(x: Tensor) -> Formulas:
    """The sum over neighbors of 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2."""
    low, high = x[:, :-1], x[:, 1:]
    gap = high - low.square()
    value = (100 * gap.square() + (1 - low).square()).sum(-1)
    gradient, diagonal = torch.zeros_like(x), torch.zeros_like(x)
    gradient[:, :-1] = -400 * low * gap - 2 * (1 - low)
    gradient[:, 1:] += 200 * gap
    diagonal[:, :-1] = 1200 * low.square() - 400 * high + 2
    diagonal[:, 1:] += 200
    beside = torch.diag_embed(-400 * low, offset=1)
    return value, gradient, torch.diag_embed(diagonal) + beside + beside.mT


def styblinski_tang(x: Tensor) -> Formulas:
    """Half the sum of x_i^4 - 16 x_i^2 + 5 x_i."""
    value = 0.5 * (x**4 - 16 * x.square() + 5 * x).sum(-1)
    return value, 2 * x**3 - 16 * x + 2.5, torch.diag_embed(6 * x.square() - 16)


def vector(first: Tensor, second: Tensor) -> Tensor:
    """Return ``[batch, 2]`` from its columns."""
    return torch.stack([first, second], dim=-1)


def matrix(first: Tensor, mixed: Tensor, second: Tensor) -> Tensor:
    """Return symmetric ``[batch, 2, 2]`` from its entries."""
    return torch.stack([vector(first, mixed), vector(mixed, second)], dim=-2)
