r"""Points and weights for integrals over time and space, a time at a time.

.. math:: \int_I g\Big(\int_\Omega f(t, x)\,dx\Big)\,dt \approx
    \sum_i w_i\, g\Big(\sum_j w_{ij} f(t_i, x_{ij})\Big)

The two sums stay apart because norms such as :math:`L^p(I; L^q(\Omega))` raise the inner one to a
power before the outer one is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require

Box = Sequence[Sequence[float]]
"""``(low, high)`` of every axis, time first."""


@dataclass(frozen=True, slots=True)
class Quadrature:
    """Times, the points of space at each of them, and the weights of both.

    Rows are times: a part of them is again a quadrature, of a part of the time integral. Axis 0 of
    the points is time, the same for all points of a row; ``random`` says that rows are independent
    draws of equal weight, as a standard error needs.

    Raises:
        ValueError: If a shape does not fit the others.
    """

    points: Float[Tensor, "time space axes"]
    time_weights: Float[Tensor, " time"]
    space_weights: Float[Tensor, "time space"]
    random: bool = False

    def __post_init__(self) -> None:
        if self.points.dim() != 3 or self.points.shape[-1] < 2:
            expected = "[time, space, axes >= 2]"
            raise ValueError(f"points must have shape {expected}, got {list(self.points.shape)}")
        times, places = self.points.shape[:2]
        shapes = {"time_weights": (times,), "space_weights": (times, places)}
        for name, shape in shapes.items():
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, got {list(got)}")


def gauss_legendre(
    box: Box, nodes: int | Sequence[int] = 16, *,
    panels: int | Sequence[int] = 1, dtype: torch.dtype = torch.float64,
) -> Quadrature:  # fmt: skip
    r"""Return the tensor grid of Gauss-Legendre rules on every axis.

    A rule of ``nodes`` points integrates polynomials of degree ``2 nodes - 1`` exactly. An axis is
    first cut into ``panels`` equal parts, each with a rule of its own: for functions that are
    smooth between known places only, such as splines. ``nodes`` and ``panels`` are one number for
    all axes, or one for each. The grid has :math:`\prod_i n_i\,p_i` points.

    Raises:
        ValueError: If the box is not one, or a count is below one.

    Example:
        >>> grid = gauss_legendre([(0.0, 2.0), (0.0, 1.0)], 2)
        >>> (grid.time_weights @ (grid.space_weights * grid.points[..., 0] ** 3).sum(-1)).item()
        4.0
    """
    check_box(box)
    counts, parts = _per_axis("nodes", nodes, box), _per_axis("panels", panels, box)
    rules = [_composite(a, b, n, m) for (a, b), n, m in zip(box, counts, parts, strict=True)]
    (times, time_weights), *space = rules
    places = torch.tensor(list(product(*(x.tolist() for x, _ in space))), dtype=torch.float64)
    weights = torch.tensor([math.prod(w) for w in product(*(w.tolist() for _, w in space))])
    shape = (len(times), len(places))
    wide = times[:, None, None].expand(*shape, 1), places.expand(*shape, places.shape[-1])
    space_weights = weights.to(dtype).expand(shape).contiguous()
    return Quadrature(torch.cat(wide, -1).to(dtype), time_weights.to(dtype), space_weights)


def monte_carlo(
    box: Box, times: int, places: int, *,
    generator: torch.Generator, dtype: torch.dtype = torch.float64,
) -> Quadrature:  # fmt: skip
    """Return times drawn uniformly, and at each of them points of space of its own.

    Rows are then independent: :meth:`TimeSpaceNorm.standard_error` rests on that.

    Raises:
        ValueError: If the box is not one, or a count is below one.
    """
    check_box(box)
    for name, count in (("times", times), ("places", places)):
        require(count >= 1, name, "at least 1", count)
    low, high = torch.tensor([list(side) for side in box], dtype=torch.float64).T
    unit = torch.rand(times, places, len(box), generator=generator, dtype=torch.float64)
    unit[..., 0] = unit[:, :1, 0]
    sides = high - low
    return Quadrature(
        (low + sides * unit).to(dtype),
        torch.full((times,), float(sides[0]) / times, dtype=dtype),
        torch.full((times, places), float(sides[1:].prod()) / places, dtype=dtype),
        random=True,
    )


def check_box(box: Box) -> None:
    """Refuse what is no box of time and one axis of space or more, each ``(low, high)``."""
    pairs = [tuple(side) for side in box]
    fits = len(pairs) >= 2 and all(len(side) == 2 and side[0] < side[1] for side in pairs)
    expected = "(low, high) with low < high for time and one axis of space or more"
    require(fits, "box", expected, pairs)


def _per_axis(name: str, given: int | Sequence[int], box: Box) -> list[int]:
    counts = [given] * len(box) if isinstance(given, int) else list(given)
    if len(counts) != len(box) or min(counts) < 1:
        raise ValueError(f"{name} must be at least 1 on each of {len(box)} axes, got {given}")
    return counts


def _composite(low: float, high: float, nodes: int, panels: int) -> tuple[Tensor, Tensor]:
    unit, weights = np.polynomial.legendre.leggauss(nodes)
    width = (high - low) / panels
    starts = low + width * np.arange(panels)
    x = starts[:, None] + width * (unit + 1) / 2
    return torch.from_numpy(x.ravel()), torch.from_numpy(np.tile(weights * width / 2, panels))
