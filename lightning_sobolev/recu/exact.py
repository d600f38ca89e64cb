r"""ReCU networks that are a polynomial or a spline, up to rounding, for all real inputs.

From :math:`x^3 = \rho(x) - \rho(-x)` follow, by the binomial formula,

.. math::
    (x+1)^3 + (x-1)^3 - 2x^3 = 6x, \quad (x+1)^3 - (x-1)^3 - 2 = 6x^2, \quad
    4xy = (x+y)^2 - (x-y)^2.

Note [rounding]
    Cubes cancel. For inputs up to a in size the error is about :math:`\epsilon\,a^3` with these
    formulas as they stand; ``scale`` s applies them to x / s, which brings it down to
    :math:`\epsilon` times the result's own largest size where s is about a.

Note [splines]
    :math:`B(x) = \frac{1}{6} \sum_{k=0}^{4} (-1)^k \binom{4}{k} \rho(x + 2 - k)` vanishes outside
    (-2, 2), is positive inside, twice continuously differentiable, and its integer translates add
    up to one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev.activations import ReCU

_BINOMIAL = (1.0, -4.0, 6.0, -4.0, 1.0)


@dataclass(frozen=True, slots=True)
class Block:
    """One hidden layer: ``out @ recu(into @ x + shift) + offset``, all in float64."""

    into: Float[Tensor, "hidden in"]
    shift: Float[Tensor, " hidden"]
    out: Float[Tensor, "out hidden"]
    offset: Float[Tensor, " out"]

    @classmethod
    def beside(cls, blocks: Sequence[Self]) -> Self:
        """Put blocks side by side: each has inputs and outputs of its own."""
        return cls(
            torch.block_diag(*(block.into for block in blocks)),  # type: ignore[no-untyped-call]
            torch.cat([block.shift for block in blocks]),
            torch.block_diag(*(block.out for block in blocks)),  # type: ignore[no-untyped-call]
            torch.cat([block.offset for block in blocks]),
        )

    def reading(self, select: Float[Tensor, "in source"], shift: Tensor | None = None) -> Self:
        """Return the block whose input is ``select @ source + shift``."""
        moved = self.shift if shift is None else self.shift + self.into @ shift
        return type(self)(self.into @ select, moved, self.out, self.offset)


def power(exponent: int, scale: float = 1.0) -> Block:
    """Return x, x^2 or x^3 as one hidden layer of 6, 4 or 2 units; scale as in note [rounding]."""
    cubes = {1: ((1, 1), (-1, 1), (0, -2)), 2: ((1, 1), (-1, -1)), 3: ((0, 1),)}[exponent]
    divisor = {1: 6.0, 2: 6.0, 3: 1.0}[exponent] / scale**exponent
    # factor (x + moved)^3, the cube of x being rho(x) - rho(-x)
    units = [(sign, moved, factor) for moved, factor in cubes for sign in (1.0, -1.0)]
    signs, moved, factors = torch.tensor(units, dtype=torch.float64).T
    offset = torch.full((1,), -2.0 / divisor if exponent == 2 else 0.0, dtype=torch.float64)
    out = (signs * factors / divisor)[None]
    return Block((signs / scale)[:, None], signs * moved, out, offset)


def times(scale_x: float = 1.0, scale_y: float = 1.0) -> Block:
    """Return x y as one hidden layer of 8 units: ((x + y)^2 - (x - y)^2) / 4."""
    one = power(2)  # the two constants cancel
    into = torch.cat([one.into * torch.tensor([1.0, y], dtype=torch.float64) for y in (1.0, -1.0)])
    into = into / torch.tensor([scale_x, scale_y], dtype=torch.float64)
    out = torch.cat([one.out, -one.out], -1) * (scale_x * scale_y / 4)
    return Block(into, one.shift.repeat(2), out, torch.zeros(1, dtype=torch.float64))


def network(blocks: Sequence[Block]) -> nn.Sequential:
    """Return the blocks one after the other as a float64 network, which can be trained on.

    The outer half of a block and the inner half of the next are one linear layer.
    """
    layers: list[nn.Module] = [_linear(blocks[0].into, blocks[0].shift), ReCU()]
    for before, block in pairwise(blocks):
        shift = block.into @ before.offset + block.shift
        layers += [_linear(block.into @ before.out, shift), ReCU()]
    return nn.Sequential(*layers, _linear(blocks[-1].out, blocks[-1].offset))


def identity(scale: float = 1.0) -> nn.Sequential:
    """Return x as a ReCU network of 6 units; ``scale`` is about the largest input."""
    return network([power(1, scale)])


def square(scale: float = 1.0) -> nn.Sequential:
    """Return x^2 as a ReCU network of 4 units; ``scale`` is about the largest input.

    Example:
        >>> square()(torch.tensor([[-3.0]], dtype=torch.float64)).round(decimals=12).item()
        9.0
    """
    return network([power(2, scale)])


def product(scale: float = 1.0) -> nn.Sequential:
    """Return x y as a ReCU network of 8 units on ``[batch, 2]``; ``scale`` as before."""
    return network([times(scale, scale)])


def monomial(exponents: Sequence[int], scale: float = 1.0) -> nn.Sequential:
    r"""Return :math:`\prod_i x_i^{n_i}` as a ReCU network on ``[batch, len(exponents)]``.

    A balanced tree of products: :math:`\lceil \log_2 n \rceil` hidden layers and O(n) weights that
    are not zero, for total degree n.

    Raises:
        ValueError: If an exponent is negative, or all are zero.
    """
    fits = bool(exponents) and min(exponents) >= 0 and sum(exponents) >= 1
    require(fits, "exponents", "whole numbers >= 0, not all of them 0", list(exponents))
    axes = [axis for axis, count in enumerate(exponents) for _ in range(count)]
    factors = torch.eye(len(exponents), dtype=torch.float64)[axes]
    sizes = [scale] * len(axes)
    blocks: list[Block] = []
    while len(sizes) > 1 or not blocks:
        pairs = list(zip(sizes[::2], sizes[1::2], strict=False))
        rest = [power(1, sizes[-1])] if len(sizes) % 2 else []
        block = Block.beside([times(*pair) for pair in pairs] + rest)
        blocks.append(block if blocks else block.reading(factors))
        sizes = [x * y for x, y in pairs] + sizes[2 * len(pairs) :]
    return network(blocks)


def splines(low: float, high: float, cells: int) -> Block:
    """Return the ``cells + 3`` splines that do not vanish on an interval, as one hidden layer."""
    if not low < high:
        raise ValueError(f"high must be above low, got {high} and {low}")
    require(cells >= 1, "cells", "at least 1", cells)
    width = (high - low) / cells
    knots = torch.arange(-3, cells + 4, dtype=torch.float64)
    out = torch.zeros(cells + 3, len(knots), dtype=torch.float64)
    for spline in range(cells + 3):
        out[spline, spline : spline + 5] = torch.tensor(_BINOMIAL, dtype=torch.float64) / 6
    into = torch.full((len(knots), 1), 1 / width, dtype=torch.float64)
    return Block(into, -low / width - knots, out, torch.zeros(cells + 3, dtype=torch.float64))


def partition_of_unity(low: float, high: float, cells: int) -> nn.Sequential:
    r"""Return a ReCU network ``[batch, 1] -> [batch, cells + 3]`` whose outputs add up to one.

    Output i is a cubic B-spline around ``low + (i - 1) * width``, zero two widths away from there.
    That zero is a sum of cubes that cancel: within the interval it is off by about
    :math:`\epsilon\,\text{cells}^3`.

    Example:
        >>> net = partition_of_unity(0.0, 1.0, 4)
        >>> net(torch.tensor([[0.3]], dtype=torch.float64)).sum().round(decimals=12).item()
        1.0
    """
    return network([splines(low, high, cells)])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return layer
