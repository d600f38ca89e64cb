"""The derivative terms, dense and in float64; nothing of the package is in here.

With every basis direction, and no scale, a term is the mean over rows of a squared Frobenius norm,

    vjp, jvp   |J_s(x) - J_t(x)|^2    order_2   |H_s(x) - H_t(x)|^2    value   |s(x) - t(x)|^2

whose gradient in the parameters is plain autograd's. Rows of the Jacobian are ``vmap(jacrev)``;
what comes of tangents are sixth-order differences in x, which share no code with either engine.
"""

import torch
from torch.func import jacrev, vmap

_STEP, _COEFFICIENTS = 1e-2, (3 / 4, -3 / 20, 1 / 60)


def jacobian(fn, x, *rows):
    """Return ``[batch, out, in]``; ``rows`` are further arguments with one row for each of x."""

    def one(point, *others):
        return fn(point[None], *[other[None] for other in others])[0].flatten()

    return vmap(jacrev(one))(x, *rows).flatten(2)


def differences(fn, x):
    """Return the derivative of ``fn`` along every element of a row of x, in a last axis."""
    columns = []
    for element in torch.eye(x[0].numel(), dtype=x.dtype):
        shift = _STEP * element.reshape(x.shape[1:])
        steps = enumerate(_COEFFICIENTS, start=1)
        sides = [c * (fn(x + k * shift) - fn(x - k * shift)) for k, c in steps]
        columns.append(torch.stack(sides).sum(0) / _STEP)
    return torch.stack(columns, -1)


def derivative(kind, fn, x, *rows):
    """Return ``[batch, out, in]``, ``[batch, out, in, in]`` for order 2, or ``[batch, out]``."""
    if kind == "value":
        return fn(x, *rows).flatten(1)
    if kind == "vjp":
        return jacobian(fn, x, *rows)
    if kind == "jvp":
        return differences(lambda points: fn(points, *rows).flatten(1), x)
    return differences(lambda points: jacobian(fn, points, *rows), x)


def term(kind, student, teacher, x, *rows):
    """Return the mean over rows of the squared distance of two derivatives."""
    error = derivative(kind, student, x, *rows) - derivative(kind, teacher, x).detach()
    return error.square().flatten(1).sum(1).mean()


def gradient(value, module):
    """Return the gradient of a scalar in every parameter of ``module``, by name."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), materialize_grads=True)
    return {name: g.detach() for name, g in zip(named, found, strict=True)}
