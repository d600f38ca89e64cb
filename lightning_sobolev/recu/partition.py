r"""A partition of unity that ReCU makes exactly: cubic B-splines.

.. math:: B(x) = \frac{1}{6} \sum_{k=0}^{4} (-1)^k \binom{4}{k} \rho(x + 2 - k)

vanishes outside (-2, 2), is positive inside, twice continuously differentiable, and its integer
translates add up to one.
"""

import torch
from torch import nn

from lightning_sobolev.recu.exact import Block, network

_BINOMIAL = (1.0, -4.0, 6.0, -4.0, 1.0)


def splines(low: float, high: float, cells: int) -> Block:
    """Return the ``cells + 3`` splines that do not vanish on an interval, as one hidden layer.

    Args:
        low: Beginning of the interval.
        high: Its end.
        cells: Equal parts of the interval; a spline covers four of them.

    Raises:
        ValueError: If the interval has no length or there is no cell.
    """
    if not low < high:
        raise ValueError(f"high must be above low, got {high} and {low}")
    if cells < 1:
        raise ValueError(f"cells must be at least 1, got {cells}")
    width = (high - low) / cells
    knots = torch.arange(-3, cells + 4, dtype=torch.float64)
    out = torch.zeros(cells + 3, len(knots), dtype=torch.float64)
    for spline in range(cells + 3):
        out[spline, spline : spline + 5] = torch.tensor(_BINOMIAL, dtype=torch.float64) / 6
    return Block(
        torch.full((len(knots), 1), 1 / width, dtype=torch.float64),
        -low / width - knots,
        out,
        torch.zeros(cells + 3, dtype=torch.float64),
    )


def partition_of_unity(low: float, high: float, cells: int) -> nn.Sequential:
    r"""Return a ReCU network ``[batch, 1] -> [batch, cells + 3]`` whose outputs add up to one.

    Output i is a cubic B-spline around ``low + (i - 1) * width``, zero two widths away from there.
    That zero is a sum of cubes that cancel: within the interval it is off by about
    :math:`\epsilon\,\text{cells}^3`.

    Args:
        low: Beginning of the interval on which the sum is one.
        high: Its end.
        cells: Equal parts of the interval.

    Returns:
        The network, in float64.

    Example:
        >>> net = partition_of_unity(0.0, 1.0, 4)
        >>> net(torch.tensor([[0.3]], dtype=torch.float64)).sum().round(decimals=12).item()
        1.0
    """
    return network([splines(low, high, cells)])
