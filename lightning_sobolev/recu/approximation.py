r"""A ReCU network that approximates a given function, without training.

.. math:: N(t, x) = \sum_{i,j} B_i(t)\,B_j(x)\,P_{ij}(t, x)
    = \sum_{a + b \le n} t^a x^b \sum_{i,j} c_{ijab}\,B_i(t)\,B_j(x)

with cubic B-splines on cells of width h and :math:`P_{ij}` the Taylor polynomial of degree n around
the middle of the spline. Three hidden layers: splines and powers of t and x; products of splines,
:math:`t^a x^b`; products of both.

Note [rate]
    At every point at most 16 terms do not vanish, each with its middle within 2h. The error is
    :math:`\sum_{ij} B_i B_j (u - P_{ij})`. A derivative of order s falls on both factors:
    :math:`|D^l (B_i B_j)| \le C h^{-l}` and :math:`|D^{s-l}(u - P_{ij})| \le C h^{n+1-s+l}`, so
    every summand is of order :math:`h^{n+1-s}` for u with n + 1 bounded derivatives and s <= 2.
    In d + 1 variables there are :math:`h^{-(d+1)}` cells with a fixed number of weights each. In a
    norm whose highest derivative has total order s, W weights therefore give

    .. math:: |u - N| = O(W^{-(n + 1 - s) / (d + 1)}).

    Splines reproduce more than constants, so that even n may do better by one order.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev._types import BatchFn
from lightning_sobolev.functional.mixed import Index, mixed_derivatives
from lightning_sobolev.functional.quadrature import Box, check_box
from lightning_sobolev.recu.exact import Block, network, power, splines, times


def approximate(fn: BatchFn, box: Box, cells: int, *, degree: int = 1) -> nn.Sequential:
    """Return a ReCU network that approximates a function of time and one axis of space.

    The note above has its rate. Weights: about ``(cells + 3)^2 (88 + 32 (degree + 1)(degree + 2))``
    that are not zero; they are stored with the zeros, ``(cells + 3)^3`` numbers and more. In
    float64, ``[batch, 2] -> [batch, 1]``, for points of the box.

    Args:
        fn: Maps ``[batch, 2]`` to ``[batch]``, in torch operations; it is differentiated ``degree``
            times at the middles of the splines.
        box: ``(low, high)`` of time and of space.
        cells: Equal parts of each axis.
        degree: Of the local Taylor polynomials, 0 to 3.

    Raises:
        ValueError: If the box has other than two axes, or a number is out of its range.

    Source:
        Abdeljawad and Grohs 2020 (arXiv:2101.06115) for the way: exact polynomials and a partition
        of unity. The construction is ours, with plain in place of averaged Taylor polynomials.
    """
    check_box(box)
    if len(box) != 2:
        raise ValueError(f"box must have time and one axis of space, got {len(box)} axes")
    require(degree in range(4), "degree", "0, 1, 2 or 3", degree)
    powers = [i for i in product(range(degree + 1), repeat=2) if sum(i) <= degree]
    coefficients = _coefficients(fn, box, cells, powers)
    first = _splines_and_powers(box, cells, degree)
    second = _cells_and_monomials(coefficients, first.out.shape[0], powers)
    return network([first, second, _sum_of_products(coefficients, powers)])


def num_weights(net: nn.Module) -> int:
    """Return how many weights and biases are not zero."""
    return sum(int(torch.count_nonzero(weight)) for weight in net.parameters())


def _coefficients(
    fn: BatchFn, box: Box, cells: int, powers: Sequence[Index]
) -> Float[Tensor, "power i j"]:
    # Taylor polynomials in powers of the coordinates that run from 0 to 1.
    middles = (torch.arange(-1, cells + 2, dtype=torch.float64) / cells).clamp(0, 1)
    low, high = torch.tensor([list(side) for side in box], dtype=torch.float64).T
    s, r = torch.meshgrid(middles, middles, indexing="ij")
    found = mixed_derivatives(fn, low + (high - low) * torch.stack([s, r], -1), powers)
    sides = (high - low).tolist()
    result = {index: torch.zeros_like(s) for index in powers}
    for (a, b), derivative in found.items():
        scaled = derivative.detach() * sides[0] ** a * sides[1] ** b
        scaled = scaled / (math.factorial(a) * math.factorial(b))
        for c, d in product(range(a + 1), range(b + 1)):  # (t - s)^a (x - r)^b
            binomials = math.comb(a, c) * math.comb(b, d)
            result[c, d] += scaled * binomials * (-s) ** (a - c) * (-r) ** (b - d)
    return torch.stack([result[index] for index in powers])


def _splines_and_powers(box: Box, cells: int, degree: int) -> Block:
    """Give all splines of t, all of x, then t, t^2, ..., then x, x^2, ..., all on [0, 1]."""
    axis = [splines(0.0, 1.0, cells), *(power(n) for n in range(1, degree + 1))]
    kinds = [(kind, which) for kind in (axis[:1], axis[1:]) for which in (0, 1)]
    blocks = [(block, which) for kind, which in kinds for block in kind]
    low, high = torch.tensor([list(side) for side in box], dtype=torch.float64).T
    source = torch.tensor([which for _, which in blocks])
    select = torch.eye(2, dtype=torch.float64)[source] / (high - low)[source, None]
    shift = -(low / (high - low))[source]
    return Block.beside([block for block, _ in blocks]).reading(select, shift)


def _cells_and_monomials(
    coefficients: Float[Tensor, "power i j"], inputs: int, powers: Sequence[Index]
) -> Block:
    """Give, for every power, the sum of weighted products of splines; then the monomials."""
    count, degree = coefficients.shape[1], max(a for a, _ in powers)
    unit = torch.eye(inputs, dtype=torch.float64)
    pair = times()
    # [i, j, hidden, in]: each cell reads one spline of t and one of x
    into = torch.einsum("h,in->inh", pair.into[:, 0], unit[:count])[:, None] + torch.einsum(
        "h,jn->jnh", pair.into[:, 1], unit[count : 2 * count]
    )
    cells = Block(
        into.movedim(-1, -2).reshape(-1, inputs),
        pair.shift.repeat(count * count),
        torch.einsum("pij,h->pijh", coefficients, pair.out[0]).flatten(1),
        torch.zeros(len(powers), dtype=torch.float64),
    )
    axes = [unit[2 * count : 2 * count + degree], unit[2 * count + degree :]]
    monomials = []
    for index in powers:
        read = [axes[which][n - 1] for which, n in enumerate(index) if n]
        if read:
            monomials.append((times() if len(read) == 2 else power(1)).reading(torch.stack(read)))
    into = torch.cat([cells.into, *(block.into for block in monomials)])
    own = [Block(b.into[:, :0], b.shift, b.out, b.offset) for b in (cells, *monomials)]
    joined = Block.beside(own)
    return Block(into, joined.shift, joined.out, joined.offset)


def _sum_of_products(coefficients: Tensor, powers: Sequence[Index]) -> Block:
    sizes = [max(float(c.abs().max()), 1e-300) for c in coefficients]
    places = iter(range(len(powers), 2 * len(powers)))
    blocks, read = [], []
    for place, index in enumerate(powers):
        constant = not any(index)
        blocks.append(power(1, sizes[place]) if constant else times(sizes[place], 1.0))
        read += [place] if constant else [place, next(places)]
    unit = torch.eye(2 * len(powers) - 1, dtype=torch.float64)
    joined = Block.beside(blocks).reading(unit[read])
    out, offset = joined.out.sum(0, keepdim=True), joined.offset.sum()[None]
    return Block(joined.into, joined.shift, out, offset)
