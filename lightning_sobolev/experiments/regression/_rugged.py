"""Formulas of the test functions with many local minima, as in ``_formulas``."""

import math

import torch
from torch import Tensor

from lightning_sobolev.experiments.regression._formulas import matrix, vector

# Griewank: sum of x_i^2 / 4000 - product of cos(x_i / sqrt(i)) + 1, i from 1 on.


def _griewank_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    roots = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device).sqrt()
    return roots, torch.cos(x / roots), torch.sin(x / roots) / roots


def _product_without(cosines: Tensor, left_out: Tensor) -> Tensor:
    # Dividing the whole product would fail where a cosine is zero.
    return cosines.masked_fill(left_out, 1.0).prod(-1)


def griewank(x: Tensor) -> Tensor:
    """Return the values."""
    _, cosines, _ = _griewank_parts(x)
    return x.square().sum(-1) / 4000 - cosines.prod(-1) + 1


def griewank_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    _, cosines, sines = _griewank_parts(x)
    itself = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    return x / 2000 + sines * _product_without(cosines[..., None, :], itself)


def griewank_hessian(x: Tensor) -> Tensor:
    """Return the Hessians; cubic in the number of inputs."""
    roots, cosines, sines = _griewank_parts(x)
    itself = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    rest = _product_without(cosines[..., None, None, :], itself[:, None] | itself)
    mixed = -sines[..., :, None] * sines[..., None, :] * rest
    diagonal = 1 / 2000 + cosines.prod(-1, keepdim=True) / roots.square()
    return torch.where(itself, torch.diag_embed(diagonal), mixed)


# Eggholder: -w S(x / 2 + w) - x S(x - w), w = y + 47, S(q) = sin(|q|^(1/2)). Both arguments vanish
# along a line, where the slope of S is unbounded; S' and S'' are set to zero there.


def _egg_wave(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root = q.abs().sqrt()
    inverse = torch.where(root == 0, 0.0, 1 / root)
    sine, cosine = torch.sin(root), torch.cos(root)
    slope = 0.5 * q.sign() * cosine * inverse
    return sine, slope, -0.25 * inverse**2 * (sine + cosine * inverse)


def _egg_parts(x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    u, w = x[:, 0], x[:, 1] + 47
    return u, w, _egg_wave(0.5 * u + w), _egg_wave(u - w)


def eggholder(x: Tensor) -> Tensor:
    """Return the values."""
    u, w, (first, _, _), (second, _, _) = _egg_parts(x)
    return -w * first - u * second


def eggholder_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    u, w, (first, a, _), (second, b, _) = _egg_parts(x)
    return vector(-0.5 * w * a - second - u * b, -first - w * a + u * b)


def eggholder_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    u, w, (_, a, aa), (_, b, bb) = _egg_parts(x)
    return matrix(
        -0.25 * w * aa - 2 * b - u * bb,
        -0.5 * (a + w * aa) + b + u * bb,
        -2 * a - w * aa - u * bb,
    )


# Cross-in-tray: -(g + 1)^0.1 / 10^4, g = |sin x sin y| exp|100 - r / pi|, r^2 = x^2 + y^2. Written
# with h = log g, because g reaches e^100, beyond single precision. Its cross, the lines on which a
# sine vanishes, is a cusp: the function is constant along it, and its derivatives are set to zero.

_SCALE, _POWER = 1e-4, 0.1


def _tray_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return h, whether a point is on the cross, r there replaced by 1, and the sign of h_r."""
    sines = torch.sin(x)
    on_cross = (sines == 0).any(-1)
    radius = torch.where(on_cross, 1.0, x.square().sum(-1).sqrt())
    height = 100 - radius / math.pi
    logarithm = sines.abs().log().sum(-1) + height.abs()
    return torch.where(on_cross, -math.inf, logarithm), on_cross, radius, -height.sign()


def cross_in_tray(x: Tensor) -> Tensor:
    """Return the values."""
    logarithm, _, _, _ = _tray_parts(x)
    return -_SCALE * torch.exp(_POWER * torch.nn.functional.softplus(logarithm))


def _tray_slopes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradient and Hessian of h, zero on the cross, and how much of g + 1 is g."""
    logarithm, on_cross, radius, sign = _tray_parts(x)
    sines = torch.sin(x).masked_fill(on_cross[:, None], 1.0)
    unit, factor = x / radius[:, None], sign / math.pi
    slope = torch.cos(x) / sines + factor[:, None] * unit
    away = torch.eye(2, dtype=x.dtype, device=x.device) - unit[:, :, None] * unit[:, None, :]
    bend = (factor / radius)[:, None, None] * away - torch.diag_embed(sines**-2)
    keep = (~on_cross).to(x.dtype)
    return slope * keep[:, None], bend * keep[:, None, None], torch.sigmoid(logarithm)


def cross_in_tray_gradient(x: Tensor) -> Tensor:
    """Return the gradients."""
    slope, _, share = _tray_slopes(x)
    return (_POWER * cross_in_tray(x) * share)[:, None] * slope


def cross_in_tray_hessian(x: Tensor) -> Tensor:
    """Return the Hessians."""
    slope, bend, share = _tray_slopes(x)
    outer = slope[:, :, None] * slope[:, None, :]
    share = share[:, None, None]
    inner = (_POWER * share + 1 - share) * outer + bend
    return _POWER * cross_in_tray(x)[:, None, None] * share * inner
