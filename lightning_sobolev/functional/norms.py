r"""Norms in which time and space are measured differently.

For :math:`X = W^{k,q}(\Omega)`, :math:`|w|_X^q = \sum_{|a| \le k} \int |D^a w|^q dx`,

.. math:: |u|_{W^{m,p}(I; X)}^p = \sum_{j \le m} \int_I |\partial_t^j u(t)|_X^p\,dt
    = \sum_{j \le m} \int_I \Big( \sum_{|a| \le k} \int_\Omega |\partial_t^j D^a u|^q\,dx
    \Big)^{p/q} dt,

with maxima in place of sums and integrals where an exponent is infinite. The power p/q acts on the
integral over space before time is integrated: for p = q it is one sum of mixed derivatives, for
p != q it is no mean over points at all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._types import BatchFn
from lightning_sobolev.functional.mixed import Index, mixed_derivatives
from lightning_sobolev.functional.quadrature import Box, Quadrature, gauss_legendre

Derivatives = Mapping[Index, Tensor]
"""Index (order in time, orders in space) to ``[time, space]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpaceNorm:
    r"""The norm of :math:`W^{m,p}(I; W^{k,q}(\Omega))` on a quadrature.

    Args:
        time_order: m, how often time is differentiated; 0 to 2.
        space_order: k, up to which total order space is; 0 to 2.
        time_exponent: p in [1, inf].
        space_exponent: q in [1, inf].
        total_order: Leaves out derivatives whose orders in time and space add up to more. With
            p = q and all three orders the same number n it is the isotropic :math:`W^{n,p}(I
            \times \Omega)`; None leaves nothing out.

    Raises:
        ValueError: If an order or exponent is out of its range.

    Source:
        Abdeljawad and Grohs 2020, Approximations with deep neural networks in Sobolev time-space
        (arXiv:2101.06115), for the setting; the norms are the usual ones. ``total_order`` is ours.

    Example:
        >>> norm = TimeSpaceNorm(time_exponent=1.0)  # L^1(I; L^2)
        >>> norm.indices()
        ((0, 0),)
        >>> u = lambda x: x[:, 0] * x[:, 1] ** 0.5
        >>> round(norm.distance(u, lambda x: torch.zeros_like(x[:, 0]), [(0, 2), (0, 1)]).item(), 6)
        1.414214
    """

    time_order: int = 0
    space_order: int = 0
    time_exponent: float = 2.0
    space_exponent: float = 2.0
    total_order: int | None = None

    def __post_init__(self) -> None:
        for name in ("time_order", "space_order"):
            order = getattr(self, name)
            require(order in range(3) and not isinstance(order, bool), name, "0, 1 or 2", order)
        for name in ("time_exponent", "space_exponent"):
            exponent = getattr(self, name)
            number = isinstance(exponent, int | float) and not isinstance(exponent, bool)
            require(number and exponent >= 1, name, "a number in [1, inf]", exponent)
        total = self.total_order
        fits = total is None or (isinstance(total, int) and total >= 0)
        require(fits, "total_order", "a whole number >= 0 or None", total)

    def indices(self, dim: int = 1) -> tuple[Index, ...]:
        """Return the derivatives that the norm needs: orders in time and along axes of space."""
        require(dim >= 1, "dim", "at least 1", dim)
        return tuple(i for j in range(self.time_order + 1) for i in self._at_order(j, dim))

    def _at_order(self, time_order: int, dim: int) -> list[Index]:
        highest = self.space_order
        if self.total_order is not None:
            highest = min(highest, self.total_order - time_order)
        grid = product(range(highest + 1), repeat=dim)
        return [(time_order, *space) for space in grid if sum(space) <= highest]

    def slice_norms(
        self, derivatives: Derivatives, quadrature: Quadrature
    ) -> Float[Tensor, "order time"]:
        r"""Return :math:`|\partial_t^j u(t_i)|_X` for every order j and time i.

        Raises:
            ValueError: If a derivative is missing or has another shape than the quadrature.
        """
        dim = quadrature.points.shape[-1] - 1
        weights, rows = quadrature.space_weights, []
        for order in range(self.time_order + 1):
            # A low total_order may leave nothing of a high order in time.
            if needed := self._at_order(order, dim):
                found = [_looked_up(derivatives, index, weights.shape) for index in needed]
                repeated = weights.to(found[0]).repeat(1, len(needed))
                rows.append(_lp(torch.cat(found, -1), repeated, self.space_exponent))
        return torch.stack(rows)

    def __call__(self, derivatives: Derivatives, quadrature: Quadrature) -> Float[Tensor, ""]:
        """Return the norm; differentiable, with gradient zero where everything is zero.

        With a random quadrature the result is biased where p and q differ, by about one over the
        number of places; a maximum over points is a lower bound of the supremum.
        """
        slices = self.slice_norms(derivatives, quadrature)
        weights = quadrature.time_weights.to(slices).repeat(len(slices))
        return _lp(slices.flatten(), weights, self.time_exponent)

    def standard_error(self, derivatives: Derivatives, quadrature: Quadrature) -> Float[Tensor, ""]:
        r"""Return the standard error of the norm on a random quadrature of two times or more.

        With :math:`G_i = \sum_j |\partial_t^j u(t_i)|_X^p` the norm is :math:`(|I| \bar G)^{1/p}`;
        to first order its error is that of the mean times :math:`|I|\,|u|^{1 - p} / p`. Draws of
        space are part of the scatter of the rows. The bias for p != q is not.

        Raises:
            ValueError: If rows are not independent draws, there is one alone, or p is infinite.
        """
        times = len(quadrature.time_weights)
        if not quadrature.random or times < 2:
            got = f"{times} times, random={quadrature.random}"
            raise ValueError(f"quadrature must hold two random times or more, got {got}")
        p = self.time_exponent
        if math.isinf(p):
            raise ValueError("time_exponent must be finite for a standard error, got inf")
        slices = self.slice_norms(derivatives, quadrature)
        largest = _nonzero(slices.max())
        powers = (slices / largest).pow(p).sum(0)
        length = quadrature.time_weights.sum().to(powers)
        norm = _nonzero((length * powers.mean()).pow(1 / p))
        return largest * length * powers.std() / math.sqrt(times) * norm.pow(1 - p) / p

    def loss(
        self, student: Derivatives, target: Derivatives, quadrature: Quadrature
    ) -> Float[Tensor, ""]:
        r"""Return :math:`|s - u|^2 / |u|^2`, to train on; 1 is the student that is zero.

        The square, not the p-th power: it has one scale for all exponents, infinite ones as well,
        and for p = q = 2 it is the usual mean of squares.

        Raises:
            ValueError: If the target is zero.
        """
        size = self(target, quadrature)
        if not (found := float(size.detach())) > 0.0:
            raise ValueError(f"target must have a positive norm, got {found}")
        # An index that one of the two lacks is reported by who needs it.
        error = {index: student[index] - target[index] for index in student if index in target}
        return (self(error, quadrature) / size).square()

    def distance(
        self, student: BatchFn, target: BatchFn, box: Box, nodes: int | Sequence[int] = 16
    ) -> Float[Tensor, ""]:
        """Return the norm of the difference of two functions on a Gauss-Legendre grid.

        Both map ``[batch, axes]`` to ``[batch]``, time first; the result is differentiable in the
        parameters of both. Costs what ``mixed_derivatives`` does.
        """
        grid = gauss_legendre(box, nodes, dtype=torch.get_default_dtype())
        indices = self.indices(len(box) - 1)
        found = mixed_derivatives(lambda x: student(x) - target(x), grid.points, indices)
        return self(found, grid)


def _looked_up(derivatives: Derivatives, index: Index, shape: torch.Size) -> Tensor:
    if index not in derivatives:
        raise ValueError(f"derivatives must hold index {index}, got {sorted(derivatives)}")
    if derivatives[index].shape != shape:
        got = list(derivatives[index].shape)
        raise ValueError(f"derivatives[{index}] must have shape {list(shape)}, got {got}")
    return derivatives[index]


def _lp(values: Tensor, weights: Tensor, exponent: float) -> Tensor:
    size = values.abs()
    if math.isinf(exponent):
        return size.amax(-1)
    # Divided by the largest: 1e-5 to the power 10 is no float32 any more. It cancels, so it needs
    # no gradient.
    largest = _nonzero(size.detach().amax(-1, keepdim=True))
    total = (weights * (size / largest).pow(exponent)).sum(-1)
    # A root has no slope at zero; the norm of zero has subgradient 0.
    positive = total > 0
    root = torch.where(positive, total, 1.0).pow(1 / exponent)
    return largest.squeeze(-1) * torch.where(positive, root, 0.0)


def _nonzero(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))
