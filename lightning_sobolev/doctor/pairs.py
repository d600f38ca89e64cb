"""Pairs of near points of a data set: what its labels say of one another, without a network."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 2**22
"""Most numbers of a block of distances."""
_WORK, _LEAST_ASKED = 2**31, 256
"""Most numbers that all distances are made of, about two seconds; but so many points are asked."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Near points: numbers of both, and what lies between them.

    Args:
        first: Numbers of the points that were asked about.
        second: Numbers of their neighbours.
        dx: The way from the first to the second.
        dy: The change of the values along it.
    """

    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    dx: Float[Tensor, "pairs in"]
    dy: Float[Tensor, "pairs out"]


def near_pairs(
    x: Float[Tensor, "points in"],
    y: Float[Tensor, "points out"],
    neighbors: int,
    most: int = 2048,
) -> Pairs:
    """Pair points with their nearest neighbours, measured in standard deviations of each input.

    Of more than ``most`` points, that many evenly spread ones are asked about; their neighbours are
    looked for among all. Of many points with many inputs it is fewer, at least 256. Points that
    coincide are no pair.

    Returns:
        Up to ``neighbors`` pairs for each point that was asked about, in the points' order.
    """
    spread = x.std(0)
    most = min(most, max(_LEAST_ASKED, _WORK // max(x.numel(), 1)))
    scaled = x / torch.where(spread > 0, spread, torch.ones_like(spread))
    asked = torch.arange(len(x)) if len(x) <= most else torch.linspace(0, len(x) - 1, most).long()
    count = min(neighbors, len(x) - 1)
    found = []
    for block in torch.split(asked, max(1, _CHUNK // len(x))):
        # By a product of matrices a point is a rounding error away from itself.
        exact = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(scaled[block], scaled, compute_mode=exact)
        # Zero is the point itself, or one that says nothing of a derivative.
        apart = apart.masked_fill(apart <= 1e-12, torch.inf)
        near = apart.topk(count, largest=False)
        found.append(near.indices.masked_fill(near.values.isinf(), -1))
    second = torch.cat(found).flatten()
    first = asked.repeat_interleave(count)
    first, second = first[second >= 0], second[second >= 0]
    return Pairs(first, second, x[second] - x[first], y[second] - y[first])
