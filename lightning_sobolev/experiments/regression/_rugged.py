"""Formulas of the test functions with many local minima, as in ``_formulas``."""

import math

import torch
from torch import Tensor

from lightning_sobolev.experiments.regression._formulas import Formulas, matrix, vector

_SCALE, _POWER = 1e-4, 0.1


def griewank(x: Tensor) -> Formulas:
    """Sum of x_i^2 / 4000 - product of cos(x_i / sqrt(i)) + 1, i from 1 on."""
    # The Hessian is cubic in the number of inputs.
    d = x.shape[-1]
    roots = torch.arange(1, d + 1, dtype=x.dtype, device=x.device).sqrt()
    cosines, sines = torch.cos(x / roots), torch.sin(x / roots) / roots
    itself = torch.eye(d, dtype=torch.bool, device=x.device)

    def product_without(left_out: Tensor) -> Tensor:
        # Dividing the whole product would fail where a cosine is zero.
        rows = cosines.reshape(len(x), *[1] * (left_out.dim() - 1), d)
        return rows.masked_fill(left_out, 1.0).prod(-1)

    value = x.square().sum(-1) / 4000 - cosines.prod(-1) + 1
    gradient = x / 2000 + sines * product_without(itself)
    rest = product_without(itself[:, None] | itself)
    mixed = -sines[..., :, None] * sines[..., None, :] * rest
    diagonal = 1 / 2000 + cosines.prod(-1, keepdim=True) / roots.square()
    return value, gradient, torch.where(itself, torch.diag_embed(diagonal), mixed)


def eggholder(x: Tensor) -> Formulas:
    """-w S(x / 2 + w) - x S(x - w), w = y + 47, S(q) = sin(|q|^(1/2))."""
    # Both arguments vanish along a line, where the slope of S is unbounded; S' and S'' are set
    # to zero there.
    u, w = x[:, 0], x[:, 1] + 47
    (first, a, aa), (second, b, bb) = _egg_wave(0.5 * u + w), _egg_wave(u - w)
    value = -w * first - u * second
    gradient = vector(-0.5 * w * a - second - u * b, -first - w * a + u * b)
    hessian = matrix(
        -0.25 * w * aa - 2 * b - u * bb, -0.5 * (a + w * aa) + b + u * bb, -2 * a - w * aa - u * bb
    )
    return value, gradient, hessian


def _egg_wave(q: Tensor) -> Formulas:
    root = q.abs().sqrt()
    inverse = torch.where(root == 0, 0.0, 1 / root)
    sine, cosine = torch.sin(root), torch.cos(root)
    slope = 0.5 * q.sign() * cosine * inverse
    return sine, slope, -0.25 * inverse**2 * (sine + cosine * inverse)


def cross_in_tray(x: Tensor) -> Formulas:
    """-(g + 1)^0.1 / 10^4, g = |sin x sin y| exp|100 - r / pi|, r^2 = x^2 + y^2."""
    # Written with h = log g, because g reaches e^100, beyond single precision. Its cross, the
    # lines on which a sine vanishes, is a cusp: the function is constant along it, and its
    # derivatives are set to zero.
    sines = torch.sin(x)
    on_cross = (sines == 0).any(-1)
    radius = torch.where(on_cross, 1.0, x.square().sum(-1).sqrt())
    height = 100 - radius / math.pi
    logarithm = sines.abs().log().sum(-1) + height.abs()
    logarithm = torch.where(on_cross, -math.inf, logarithm)
    value = -_SCALE * torch.exp(_POWER * torch.nn.functional.softplus(logarithm))
    slope, bend = _log_tray_derivatives(x, on_cross, radius, height)
    share = torch.sigmoid(logarithm)  # how much of g + 1 is g
    gradient = (_POWER * value * share)[:, None] * slope
    outer, share = slope[:, :, None] * slope[:, None, :], share[:, None, None]
    inner = (_POWER * share + 1 - share) * outer + bend
    return value, gradient, _POWER * value[:, None, None] * share * inner


def _log_tray_derivatives(
    x: Tensor, on_cross: Tensor, radius: Tensor, height: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gradient and Hessian of h, zero on the cross."""
    sines = torch.sin(x).masked_fill(on_cross[:, None], 1.0)
    unit, factor = x / radius[:, None], -height.sign() / math.pi
    slope = torch.cos(x) / sines + factor[:, None] * unit
    away = torch.eye(2, dtype=x.dtype, device=x.device) - unit[:, :, None] * unit[:, None, :]
    bend = (factor / radius)[:, None, None] * away - torch.diag_embed(sines**-2)
    keep = (~on_cross).to(x.dtype)
    return slope * keep[:, None], bend * keep[:, None, None]
